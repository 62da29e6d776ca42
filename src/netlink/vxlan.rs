//! VXLAN devices as ports of a bridge.

use std::net::Ipv6Addr;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoPortData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::{LinkBridgePort, LinkMessageBuilder, LinkVxlan};

use super::error::{Context as _, Result};
use super::{Link, Netlink};

/// What a VXLAN device sends by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VxlanBy {
    /// Whatever leads to a remote by IPv4.
    V4,
    /// Whatever leads to a remote by IPv6.
    V6,
    /// One interface, from one link-local address of IPv6. It takes nothing that came by another
    /// interface, and goes with it.
    Link {
        /// Index of the interface.
        index: u32,
        /// The address.
        address: Ipv6Addr,
    },
}

/// What a VXLAN device shall be.
#[derive(Debug, Clone, Copy)]
pub struct Vxlan<'a> {
    /// Name of the device.
    pub name: &'a str,
    /// What it sends by.
    pub by: VxlanBy,
    /// Number of the virtual network.
    pub vni: u32,
    /// UDP port, here and at the remotes that name no other.
    pub port: u16,
    /// Largest packet behind the inner Ethernet header.
    pub mtu: u32,
}

impl Netlink {
    /// Makes a VXLAN device, or adopts the one that is there if it is as wanted; one that is not
    /// is replaced. It learns nothing, and as a port of the bridge it gets nothing that the
    /// bridge floods: only frames for addresses that are pinned to it (fastpath F1).
    ///
    /// # Errors
    /// If the kernel refuses, or has no VXLAN.
    pub async fn ensure_vxlan(&self, wanted: &Vxlan<'_>, bridge: &Link) -> Result<Link> {
        let found = self.link(wanted.name).await?;
        let same = match &found {
            Some(link) => self.is_vxlan(link, wanted).await?,
            None => false,
        };
        if !same {
            if found.is_some() {
                self.delete_link(wanted.name).await?;
            }
            let mut message = LinkMessageBuilder::<LinkVxlan>::new(wanted.name)
                .id(wanted.vni)
                .port(wanted.port)
                .learning(false)
                .udp_csum(true)
                .mtu(wanted.mtu);
            message = match wanted.by {
                VxlanBy::V4 => message,
                VxlanBy::V6 => message.local6(Ipv6Addr::UNSPECIFIED),
                VxlanBy::Link { index, address } => message.dev(index).local6(address),
            };
            self.socket()
                .await
                .link()
                .add(message.build())
                .execute()
                .await
                .context(wanted.name, "create the VXLAN device")?;
        }
        let link = self.need_link(wanted.name).await?;
        self.quiet(&link).await;
        self.sysctl_if_possible("ipv6", wanted.name, "disable_ipv6", "1");
        if link.mtu != wanted.mtu {
            self.set_mtu(&link, wanted.mtu).await?;
        }
        if link.master != Some(bridge.index) {
            self.set_master(&link, Some(bridge)).await?;
        }
        self.close_port(&link).await?;
        self.set_up(&link).await?;
        self.need_link(wanted.name).await
    }

    /// Whether the device is there, the one of that index, up, of the right size, and a closed port
    /// of the bridge.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn vxlan_stands(&self, index: u32, wanted: &Vxlan<'_>, bridge: u32) -> Result<bool> {
        let Some(link) = self.link(wanted.name).await? else { return Ok(false) };
        Ok(link.index == index
            && link.up
            && link.mtu == wanted.mtu
            && link.master == Some(bridge)
            && self.is_vxlan(&link, wanted).await?
            && self.is_closed_port(&link).await?)
    }

    async fn is_vxlan(&self, link: &Link, wanted: &Vxlan<'_>) -> Result<bool> {
        let Some(message) = self.link_message(link).await? else { return Ok(false) };
        let infos = message.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
        let data = infos.into_iter().flatten().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
            _ => None,
        });
        let Some(data) = data else { return Ok(false) };
        let has = |wanted: InfoVxlan| data.contains(&wanted);
        // The kernel does not tell the family of a device without addresses; the name does.
        let by = match wanted.by {
            VxlanBy::V4 | VxlanBy::V6 => true,
            VxlanBy::Link { index, address } => has(InfoVxlan::Link(index)) && has(InfoVxlan::Local6(address)),
        };
        let number = has(InfoVxlan::Id(wanted.vni)) && has(InfoVxlan::Port(wanted.port));
        Ok(number && by && has(InfoVxlan::Learning(false)))
    }

    async fn link_message(&self, link: &Link) -> Result<Option<LinkMessage>> {
        let socket = self.socket().await;
        match socket
            .link()
            .get()
            .match_index(link.index)
            .execute()
            .try_next()
            .await
            .context(&link.name, "look at the interface")
        {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            found => found,
        }
    }

    async fn is_closed_port(&self, link: &Link) -> Result<bool> {
        let message = self.link_message(link).await?;
        let infos = message.into_iter().flat_map(|message| message.attributes).find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
        let port = infos.into_iter().flatten().find_map(|info| match info {
            LinkInfo::PortData(InfoPortData::BridgePort(port)) => Some(port),
            _ => None,
        });
        Ok(port.is_some_and(|port| CLOSED.iter().all(|setting| port.contains(setting))))
    }

    async fn close_port(&self, link: &Link) -> Result<()> {
        let message = CLOSED
            .into_iter()
            .fold(LinkBridgePort::new(link.index), |message, setting| message.append_info_data(setting));
        self.socket().await.link().set_port(message.build()).execute().await.context(&link.name, "close the port")
    }
}

/// A port that learns nothing and to which nothing is flooded.
const CLOSED: [InfoBridgePort; 4] = [
    InfoBridgePort::Learning(false),
    InfoBridgePort::UnicastFlood(false),
    InfoBridgePort::MulticastFlood(false),
    InfoBridgePort::BroadcastFlood(false),
];
