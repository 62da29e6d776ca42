//! Interfaces: find, make, adopt, change, delete.

use std::os::fd::{AsFd as _, AsRawFd as _};

use futures_util::TryStreamExt as _;
use rtnetlink::{
    LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_route::{
        link::{
            AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoVeth,
            LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
        },
        neighbour::{NeighbourFlags, NeighbourState},
    },
};

use super::{
    NetNs, Netlink,
    error::{Context as _, NetlinkError, Result, tolerate},
};

/// Longest alias of an interface, in bytes (the kernel's IFALIASZ, less the zero at its end).
pub const ALIAS_MAX: usize = 255;

/// A hardware address.
pub type Mac = [u8; 6];

/// An interface as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name in its namespace.
    pub name: String,
    /// Kind of virtual interface ("bridge", "veth", "tun", …); `None` for hardware.
    pub kind: Option<String>,
    /// Hardware address, if it is one of six bytes.
    pub mac: Option<Mac>,
    /// Largest packet behind the link header.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up and ready: what is sent through it is not dropped.
    pub running: bool,
    /// It is a loopback interface.
    pub loopback: bool,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// Of a veth: index of the other end, in the other end's namespace.
    pub peer: Option<u32>,
    /// What whoever made it says about it.
    pub alias: Option<String>,
}

/// The far end of a veth pair, as it shall be born.
#[derive(Debug)]
pub struct VethPeer<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its hardware address.
    pub mac: Mac,
    /// The namespace in which it is born; `None` is the same as the near end's.
    pub namespace: Option<&'a NetNs>,
}

fn unspec(index: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(index)
}

/// A message that changes an interface, without its name. Before 6.2 the kernel takes any name for a new one, also
/// that which the interface has, and gives none to an interface that is up (EBUSY).
fn nameless(mut message: LinkMessage) -> LinkMessage {
    message.attributes.retain(|attribute| !matches!(attribute, LinkAttribute::IfName(_)));
    message
}

fn parse(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        running: flags.contains(LinkFlags::Running),
        loopback: flags.contains(LinkFlags::Loopback),
        master: None,
        peer: None,
        alias: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
            LinkAttribute::Controller(index) => link.master = Some(index).filter(|&i| i != 0),
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::IfAlias(text) => link.alias = Some(text),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

/// Refuses what the kernel would refuse with no more than "invalid argument".
pub(super) fn check_name(name: &str) -> Result<()> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > 15 || name.contains(bad) || name == "." || name == ".." {
        let why = "an interface name has 1 to 15 bytes without '/', ':' or spaces";
        return Err(NetlinkError::other(format!("{name:?}"), "use as an interface name", why));
    }
    Ok(())
}

impl Netlink {
    /// The interface of that name, if there is one.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn link(&self, name: &str) -> Result<Option<Link>> {
        check_name(name)?;
        one_link(self.socket().await.link().get().match_name(name), name).await
    }

    /// The interface of that index, if there is one.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>> {
        let subject = format!("interface {index}");
        one_link(self.socket().await.link().get().match_index(index), &subject).await
    }

    /// As [`Netlink::link`], where absence is an error.
    ///
    /// # Errors
    /// If there is no such interface.
    pub async fn need_link(&self, name: &str) -> Result<Link> {
        let missing = || std::io::Error::from_raw_os_error(libc::ENODEV);
        self.link(name).await?.ok_or_else(|| NetlinkError::new(name, "find the interface", missing()))
    }

    /// All interfaces.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn links(&self) -> Result<Vec<Link>> {
        let socket = self.socket().await;
        let request = socket.link().get().execute();
        let messages: Vec<LinkMessage> = request.try_collect().await.context("all interfaces", "list")?;
        Ok(messages.into_iter().map(parse).collect())
    }

    /// The ports of a bridge.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn bridge_ports(&self, bridge: u32) -> Result<Vec<Link>> {
        let mut links = self.links().await?;
        links.retain(|link| link.master == Some(bridge));
        Ok(links)
    }

    /// Creates the bridge or adopts the one that is there, and brings it up: no spanning tree, no
    /// forward delay, no multicast snooping (the mesh floods multicast as it floods broadcast), no
    /// addresses of its own.
    ///
    /// The hardware address is set explicitly: otherwise a bridge takes that of its lowest port,
    /// and changes it whenever a container comes or goes.
    ///
    /// # Errors
    /// If the name belongs to something that is no bridge, or the kernel refuses.
    pub async fn ensure_bridge(&self, name: &str, mtu: u32, mac: Mac) -> Result<Link> {
        let found = self.link(name).await?;
        if let Some(link) = &found
            && link.kind.as_deref() != Some("bridge")
        {
            let kind = link.kind.as_deref().unwrap_or("hardware");
            let why = format!("it exists and is of kind {kind:?}: remove it or use --bridge NAME");
            return Err(NetlinkError::other(name, "use as the bridge", why));
        }
        let settings = LinkMessageBuilder::<LinkBridge>::new(name)
            .address(mac.to_vec())
            .mtu(mtu)
            .stp_state(BridgeStpState::Disabled)
            .forward_delay(0)
            .mcast_snooping(false)
            // A frame to a group that bridges keep for themselves (LLDP) is seen by no chain of nftables,
            // and would all the same teach the bridge where its source is (guard P1).
            .no_linklocal_learn(true);
        let socket = self.socket().await;
        let (request, operation) = match &found {
            None => (socket.link().add(settings.build()), "create the bridge"),
            Some(link) => (socket.link().change(nameless(settings.index(link.index).build())), "adopt the bridge"),
        };
        let done = request.execute().await;
        drop(socket);
        done.context(name, operation)?;
        let link = self.need_link(name).await?;
        self.quiet(&link).await;
        self.set_up(&link).await?;
        self.need_link(name).await
    }

    /// Makes an interface that was opened elsewhere (the TAP) a port of the bridge and brings it
    /// up. The kernel gives the port no address and speaks no IPv6 on it.
    ///
    /// # Errors
    /// If the interface is missing or the kernel refuses.
    pub async fn enslave(&self, name: &str, bridge: &Link, mtu: u32) -> Result<Link> {
        let link = self.need_link(name).await?;
        self.quiet(&link).await;
        self.sysctl_if_possible("ipv6", name, "disable_ipv6", "1");
        if link.mtu != mtu {
            self.set_mtu(&link, mtu).await?;
        }
        if link.master != Some(bridge.index) {
            self.set_master(&link, Some(bridge)).await?;
        }
        self.set_up(&link).await?;
        self.need_link(name).await
    }

    /// No link-local address, no router advertisements: an interface of the mesh itself is silent.
    pub(super) async fn quiet(&self, link: &Link) {
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let spec = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]);
        let message = unspec(link.index).append_extra_attribute(spec).build();
        // A kernel without IPv6 refuses; then there is nothing to silence.
        let changed = self.socket().await.link().change(message).execute().await;
        if let Err(error) = changed {
            tracing::debug!(interface = %link.name, %error, "no IPv6 address mode on it");
        }
        self.sysctl_if_possible("ipv6", &link.name, "accept_ra", "0");
    }

    /// Creates a veth pair. The far end is born in its namespace with its name and address, so
    /// that no half-made interface is ever visible.
    ///
    /// # Errors
    /// If a name is taken or the kernel refuses.
    pub async fn add_veth(&self, name: &str, mtu: u32, peer: &VethPeer<'_>) -> Result<Link> {
        check_name(name)?;
        check_name(peer.name)?;
        let mut far = LinkUnspec::new_with_name(peer.name).mtu(mtu).address(peer.mac.to_vec());
        if let Some(namespace) = peer.namespace {
            far = far.setns_by_fd(namespace.as_fd().as_raw_fd());
        }
        let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name)
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far.build())))
            .build();
        self.socket().await.link().add(message).execute().await.context(name, "create the veth pair")?;
        self.need_link(name).await
    }

    /// Moves an interface to another namespace. It arrives down and without addresses.
    ///
    /// # Errors
    /// If the name is taken there or the kernel refuses.
    pub async fn move_to(&self, link: &Link, namespace: &NetNs) -> Result<()> {
        let message = unspec(link.index).setns_by_fd(namespace.as_fd().as_raw_fd());
        self.change(link, message, "move to another namespace").await
    }

    /// Sets the hardware address.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn set_mac(&self, link: &Link, mac: Mac) -> Result<()> {
        self.change(link, unspec(link.index).address(mac.to_vec()), "set the MAC address").await
    }

    /// Sets the MTU.
    ///
    /// # Errors
    /// If the kernel refuses the value.
    pub async fn set_mtu(&self, link: &Link, mtu: u32) -> Result<()> {
        self.change(link, unspec(link.index).mtu(mtu), "set the MTU").await
    }

    /// Brings the interface up.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn set_up(&self, link: &Link) -> Result<()> {
        self.change(link, unspec(link.index).up(), "bring the interface up").await
    }

    /// Takes the interface down.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn set_down(&self, link: &Link) -> Result<()> {
        self.change(link, unspec(link.index).down(), "take the interface down").await
    }

    /// Says about the interface whose it is, for whoever looks: at most [`ALIAS_MAX`] bytes.
    ///
    /// # Errors
    /// If it is too long or the kernel refuses.
    pub async fn set_alias(&self, link: &Link, alias: &str) -> Result<()> {
        let message = unspec(link.index).append_extra_attribute(LinkAttribute::IfAlias(alias.to_owned()));
        self.change(link, message, "set the alias of").await
    }

    /// Renames the interface.
    ///
    /// # Errors
    /// If the name is taken or not a name.
    pub async fn rename(&self, link: &Link, name: &str) -> Result<()> {
        check_name(name)?;
        self.change(link, unspec(link.index).name(name), "rename the interface").await
    }

    /// Puts the interface into a bridge, or takes it out.
    ///
    /// # Errors
    /// If it is a port of something else or the kernel refuses.
    pub async fn set_master(&self, link: &Link, bridge: Option<&Link>) -> Result<()> {
        let index = bridge.map_or(0, |bridge| bridge.index);
        self.change(link, unspec(link.index).controller(index), "change the bridge of").await
    }

    /// Whether a port of a bridge gets back what came from it: what a container sends to itself by
    /// way of an address that the host translates.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn set_hairpin(&self, link: &Link, on: bool) -> Result<()> {
        let message = LinkBridgePort::new(link.index).append_info_data(InfoBridgePort::HairpinMode(on));
        self.socket()
            .await
            .link()
            .set_port(message.build())
            .execute()
            .await
            .context(&link.name, "set the port's hairpin mode")
    }

    /// The hardware address is at this port of a bridge for as long as the port is, whoever else sends with it:
    /// a static, sticky entry (bridge(8)). What another port is heard with moves it no more; whoever sets it does.
    ///
    /// # Errors
    /// If the interface is no port of a bridge or the kernel refuses.
    pub async fn pin(&self, port: &Link, mac: Mac) -> Result<()> {
        let add = self.socket().await.neighbours().add_bridge(port.index, &mac);
        let add = add.state(NeighbourState::Noarp).flags(NeighbourFlags::Controller | NeighbourFlags::Sticky);
        add.replace().execute().await.context(&port.name, "pin a hardware address to")
    }

    /// The hardware address is wherever it is heard; fine if it was not at this port.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn unpin(&self, port: &Link, mac: Mac) -> Result<()> {
        let neighbours = self.socket().await.neighbours();
        let mut entry = neighbours.add_bridge(port.index, &mac).flags(NeighbourFlags::Controller);
        let message = std::mem::take(entry.message_mut());
        tolerate(neighbours.del(message).execute().await, &[libc::ENOENT])
            .context(&port.name, "take a hardware address from")
    }

    /// Has the host's filter of IP see what a bridge carries, IPv4 and IPv6, whatever the host says for all its
    /// bridges. Where the module `br_netfilter` is not loaded it does nothing yet.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn filter_bridged(&self, bridge: &Link) -> Result<()> {
        let builder = LinkMessageBuilder::<LinkBridge>::new(&bridge.name).index(bridge.index);
        let message = nameless(builder.nf_call_iptables(true).nf_call_ip6tables(true).build());
        let done = self.socket().await.link().change(message).execute().await;
        done.context(&bridge.name, "have the host's filter see what is bridged by")
    }

    async fn change(
        &self,
        link: &Link,
        message: LinkMessageBuilder<LinkUnspec>,
        operation: &'static str,
    ) -> Result<()> {
        self.socket().await.link().change(message.build()).execute().await.context(&link.name, operation)
    }

    /// Deletes an interface; says whether there was one. The other end of a veth goes with it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn delete_link(&self, name: &str) -> Result<bool> {
        let Some(link) = self.link(name).await? else { return Ok(false) };
        let result = self.socket().await.link().del(link.index).execute().await;
        tolerate(result, &[libc::ENODEV]).context(name, "delete the interface")?;
        Ok(true)
    }
}

async fn one_link(request: rtnetlink::LinkGetRequest, subject: &str) -> Result<Option<Link>> {
    match request.execute().try_next().await.context(subject, "look up the interface") {
        Ok(message) => Ok(message.map(parse)),
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_refuses_are_refused_with_a_reason() {
        for name in ["", "0123456789abcdef", "a b", "a/b", "a:b", "..", "\n"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for name in ["weft", "weft-0123456789", "é"] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }
}
