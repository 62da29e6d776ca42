//! A container's interface: one veth pair from its namespace to the bridge.
//!
//! ```text
//!   container namespace                 host namespace
//!   weft0 (MAC from its address) ─veth─ weft-XXXXXXXXXX ── bridge weft
//! ```
//!
//! The host end's name is a function of the target, so that a router that was killed finds what it
//! made, and plugging twice changes nothing.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::{
    Link, Mac, NetNs, Netlink, Route, VethPeer,
    error::{NetlinkError, Result},
};

/// Name of the interface inside a container, unless told otherwise.
pub const INTERFACE: &str = "weft0";

/// How long an interface may take to carry frames once it is up, and how often it is looked at.
const RUNNING_PATIENCE: Duration = Duration::from_secs(2);
const RUNNING_STEP: Duration = Duration::from_millis(5);

/// What to plug in.
#[derive(Debug, Clone, Copy)]
pub struct Plug<'a> {
    /// The container's namespace.
    pub namespace: &'a NetNs,
    /// Bridge of the mesh on this host.
    pub bridge: &'a str,
    /// Name of the interface inside.
    pub interface: &'a str,
    /// Hardware address of the interface inside; see [`container_mac`].
    pub mac: Mac,
    /// MTU of both ends.
    pub mtu: u32,
    /// Addresses with the prefix length of the network. Others that the interface has stay.
    pub addresses: &'a [IpNet],
    /// Routes besides the connected ones.
    pub routes: &'a [Route],
    /// Whether the bridge gives back to it what it sends to itself.
    pub hairpin: bool,
    /// Whose it is, if somebody looks for it by that: the alias of the host end.
    pub alias: Option<&'a str>,
    /// What is there is completed; if nothing is, nothing is made.
    pub only_complete: bool,
}

/// A container's interface as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugged {
    /// Name of the end on the bridge.
    pub host_interface: String,
    /// The interface inside.
    pub link: Link,
    /// All its addresses, but link-local ones.
    pub addresses: Vec<IpNet>,
    /// It was there before.
    pub adopted: bool,
}

/// Name of the host end of a container's interface: a function of the namespace and the name of
/// the interface inside; at most 15 bytes.
#[must_use]
pub fn host_interface(namespace: &NetNs, interface: &str) -> String {
    let id = namespace.id();
    name_for("weft-", &format!("{}:{}:{interface}", id.device, id.inode))
}

/// A name for an interface that stays the same for the same key: the prefix, and letters and digits up to
/// the 15 bytes that the kernel takes.
#[must_use]
pub fn name_for(prefix: &str, key: &str) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    const LENGTH: usize = 15;
    let mut hash = fnv1a(key.as_bytes());
    let mut name = prefix.to_owned();
    while name.len() < LENGTH {
        name.push(char::from(ALPHABET[(hash % 32) as usize]));
        hash /= 32;
    }
    name
}

/// Refuses what cannot be the name of an interface.
///
/// # Errors
/// If it is none, with what a name may be.
pub fn check_interface(name: &str) -> Result<()> {
    super::link::check_name(name)
}

/// Hardware address of a container: locally administered, and a function of its overlay address,
/// so that a container that comes back with its address needs no one to relearn anything, and any
/// router can tell it without asking.
#[must_use]
pub fn container_mac(address: IpAddr) -> Mac {
    match address {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            [0x02, 0x77, a, b, c, d]
        }
        IpAddr::V6(ip) => {
            let [a, b, c, d, e, ..] = fnv1a(&ip.octets()).to_be_bytes();
            [0x06, a, b, c, d, e]
        }
    }
}

/// FNV-1a, finished so that all bits depend on all bytes.
fn fnv1a(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// Connects a container to the bridge, or completes what is there already.
///
/// # Errors
/// If the namespace has an interface of that name that is not ours, or the kernel refuses; then
/// nothing that was made here is left behind.
pub async fn plug(host: &Netlink, plug: &Plug<'_>) -> Result<Plugged> {
    let bridge = host.need_link(plug.bridge).await?;
    let inside = Netlink::open_in(plug.namespace)?;
    let host_name = host_interface(plug.namespace, plug.interface);
    let adopted = adopt(host, &inside, plug, &host_name).await?;
    if !adopted {
        if plug.only_complete {
            return Err(NetlinkError::other(
                plug.interface,
                "attach again",
                "it has gone, and comes back only by whoever asked for it",
            ));
        }
        let peer = VethPeer { name: plug.interface, mac: plug.mac, namespace: Some(plug.namespace) };
        host.add_veth(&host_name, plug.mtu, &peer).await?;
    }
    match complete(host, &inside, plug, &host_name, &bridge).await {
        Ok((link, addresses)) => Ok(Plugged { host_interface: host_name, link, addresses, adopted }),
        Err(error) => {
            if !adopted && let Err(second) = host.delete_link(&host_name).await {
                tracing::warn!(error = %second, "half-made interface left behind");
            }
            Err(error)
        }
    }
}

/// Says whether both ends are there and belong together. A host end without its container end is
/// a leftover and is deleted; a container end that is not ours is an error.
async fn adopt(host: &Netlink, inside: &Netlink, plug: &Plug<'_>, host_name: &str) -> Result<bool> {
    let ours = host.link(host_name).await?;
    let theirs = inside.link(plug.interface).await?;
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if ours.peer == Some(theirs.index) && theirs.peer == Some(ours.index) => Ok(true),
        (_, Some(_)) => {
            let why = format!(
                "namespace {} has an interface of that name that Weft did not make: remove or \
                 rename it",
                plug.namespace.label()
            );
            Err(NetlinkError::other(plug.interface, "attach", why))
        }
        (Some(_), None) => {
            host.delete_link(host_name).await?;
            Ok(false)
        }
        (None, None) => Ok(false),
    }
}

async fn complete(
    host: &Netlink,
    inside: &Netlink,
    plug: &Plug<'_>,
    host_name: &str,
    bridge: &Link,
) -> Result<(Link, Vec<IpNet>)> {
    let port = host.enslave(host_name, bridge, plug.mtu).await?;
    host.pin(&port, plug.mac).await?;
    if plug.hairpin {
        host.set_hairpin(&port, true).await?;
    }
    if let Some(alias) = plug.alias.filter(|alias| port.alias.as_deref() != Some(alias)) {
        host.set_alias(&port, alias).await?;
    }
    let link = inside.need_link(plug.interface).await?;
    prepare_inside(inside, plug, &link).await?;
    for &address in plug.addresses {
        inside.add_address(&link, address).await?;
    }
    // Up after the addresses: so the kernel announces them once, to whoever knew another owner.
    inside.set_up(&link).await?;
    for route in plug.routes {
        inside.add_route(&link, route).await?;
    }
    wait_running(host, host_name).await?;
    wait_running(inside, plug.interface).await?;
    let link = inside.need_link(plug.interface).await?;
    let mut addresses = inside.addresses(&link).await?;
    addresses.retain(|net| match net.addr() {
        IpAddr::V4(ip) => !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    });
    Ok((link, addresses))
}

/// Waits until an interface carries frames: the kernel starts the queue and the bridge port of one
/// that came up in a worker of its own, on a busy host long after, and drops what is sent before.
async fn wait_running(namespace: &Netlink, name: &str) -> Result<()> {
    let until = Instant::now() + RUNNING_PATIENCE;
    while !namespace.need_link(name).await?.running {
        if Instant::now() >= until {
            tracing::warn!(interface = name, "still not running: its first frames may be lost");
            break;
        }
        tokio::time::sleep(RUNNING_STEP).await;
    }
    Ok(())
}

async fn prepare_inside(inside: &Netlink, plug: &Plug<'_>, link: &Link) -> Result<()> {
    let name = plug.interface;
    if plug.addresses.iter().any(|net| net.addr().is_ipv6()) {
        // Container engines switch IPv6 off where they gave no IPv6 address themselves.
        inside.sysctl_if_possible("ipv6", name, "disable_ipv6", "0");
    }
    // Another container must not hand out routers and prefixes here.
    inside.sysctl_if_possible("ipv6", name, "accept_ra", "0");
    // Gratuitous ARP and unsolicited neighbour advertisement when it comes up.
    inside.sysctl_if_possible("ipv4", name, "arp_notify", "1");
    inside.sysctl_if_possible("ipv6", name, "ndisc_notify", "1");
    if link.mac != Some(plug.mac) {
        inside.set_mac(link, plug.mac).await?;
    }
    if link.mtu != plug.mtu {
        inside.set_mtu(link, plug.mtu).await?;
    }
    Ok(())
}

/// Removes addresses from a container's interface; the interface stays.
///
/// # Errors
/// If there is no such interface or the kernel refuses.
pub async fn remove_addresses(namespace: &NetNs, interface: &str, addresses: &[IpNet]) -> Result<()> {
    let inside = Netlink::open_in(namespace)?;
    let link = inside.need_link(interface).await?;
    for &address in addresses {
        inside.del_address(&link, address).await?;
    }
    Ok(())
}

/// Gives a container's interface another hardware address. The kernel tells whoever knew the old one (see
/// `arp_notify` and `ndisc_notify` above), and the bridge sends no more there for that.
///
/// # Errors
/// If an end is not there or the kernel refuses.
pub async fn change_mac(
    host: &Netlink,
    namespace: &NetNs,
    host_interface: &str,
    interface: &str,
    mac: Mac,
) -> Result<()> {
    let inside = Netlink::open_in(namespace)?;
    let link = inside.need_link(interface).await?;
    let port = host.need_link(host_interface).await?;
    host.pin(&port, mac).await?;
    inside.set_mac(&link, mac).await?;
    if let Some(old) = link.mac.filter(|old| *old != mac) {
        host.unpin(&port, old).await?;
    }
    Ok(())
}

/// Removes a container's interface; says whether there was one. It is found by the name of its
/// host end, so that this also works when the container has gone.
///
/// # Errors
/// If the kernel refuses.
pub async fn unplug(host: &Netlink, host_interface: &str) -> Result<bool> {
    host.delete_link(host_interface).await
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn a_containers_mac_is_a_unicast_locally_administered_function_of_its_address() {
        let v4 = container_mac(IpAddr::V4(Ipv4Addr::new(10, 32, 0, 5)));
        assert_eq!(v4, [0x02, 0x77, 10, 32, 0, 5]);
        let a = container_mac(IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5)));
        let b = container_mac(IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 6)));
        assert_ne!(a, b);
        for mac in [v4, a, b] {
            assert_eq!(mac[0] & 0b11, 0b10, "local bit set, group bit clear");
        }
    }

    #[test]
    fn neighbouring_addresses_spread_over_all_bytes_of_the_mac() {
        let mac = |n: u16| container_mac(IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)));
        let distinct: std::collections::BTreeSet<Mac> = (0..20_000).map(mac).collect();
        assert_eq!(distinct.len(), 20_000);
    }
}
