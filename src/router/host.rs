//! What the host's interfaces mean for the router: where it can be dialled, and how large a
//! packet may be.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use mesh_proto::data::overhead::{sealed, vxlan};

use crate::config::{Mtu, Settings, host_port};
use crate::netlink::{Netlink, NetlinkError};

/// MTU of a host whose interfaces say nothing: that of Ethernet.
const MTU_UNKNOWN: u32 = 1500;
/// Bytes that an IPv4 and a UDP header add to a datagram.
const IPV4_UDP: u32 = 28;
/// What is around an inner packet in the worst direct case, so that all hosts come to the same
/// size, whatever their kernels can: interfaces of one Ethernet segment have one MTU. Sleeve has less
/// around it (fastpath F15).
const SEALED: u16 = sealed(true);
/// The same without a secret, for then the kernel carries what it can in the clear. Sleeve by IPv4 carries that
/// whole too; where it does not, it says so to whoever sends (sleeve S29).
const OPEN: u16 = vxlan(true);
/// IPv6 does not work below (RFC 8200 section 5).
const MTU_MIN: u32 = 1280;
/// Largest overlay MTU that is chosen by itself: a loopback underlay has 65536.
const MTU_AUTO_MAX: u32 = 9000;
/// Interfaces of other container networks: nobody reaches this host by their addresses.
const INTERNAL: &[&str] = &[
    "docker",
    "virbr",
    "cni",
    "flannel",
    "cali",
    "cilium",
    "lxc",
    "lxdbr",
    "podman",
    "weft",
    "weave",
    "vxlan",
    "kube-ipvs",
    "nodelocaldns",
];

/// The addresses at which this peer can be dialled.
///
/// # Errors
/// If the kernel cannot be asked.
pub(super) async fn endpoints(netlink: &Netlink, settings: &Settings) -> Result<Vec<SocketAddr>, NetlinkError> {
    if !settings.advertise.is_empty() {
        return Ok(settings.advertise.clone());
    }
    if let Some(listen) = settings.listen.filter(|address| !address.is_unspecified()) {
        return Ok(vec![SocketAddr::new(listen, settings.port)]);
    }
    let links = netlink.links().await?;
    let internal: Vec<&str> = links
        .iter()
        .map(|link| link.name.as_str())
        .filter(|name| is_internal(name) || *name == settings.bridge)
        .collect();
    let found = netlink.local_addresses(&internal).await?;
    Ok(usable(&found, settings))
}

fn is_internal(name: &str) -> bool {
    let docker_network =
        name.strip_prefix("br-").is_some_and(|id| id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()));
    docker_network || INTERNAL.iter().any(|prefix| name.starts_with(prefix))
}

fn usable(found: &[IpNet], settings: &Settings) -> Vec<SocketAddr> {
    // Bound to 0.0.0.0 means IPv4 only.
    let v4_only = settings.listen.is_some_and(|address| address.is_ipv4());
    let mut endpoints: Vec<_> = found
        .iter()
        .map(IpNet::addr)
        .filter(|address| !(v4_only && address.is_ipv6()))
        .filter(|address| !settings.ranges.iter().any(|range| range.contains(address)))
        .map(|address| SocketAddr::new(address, settings.port))
        .collect();
    endpoints.sort_unstable();
    endpoints.dedup();
    endpoints
}

/// Sizes that follow from the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// MTU of the overlay's interfaces.
    pub(super) overlay: u16,
    /// Largest UDP payload that any interface could carry.
    pub(super) payload_max: u16,
}

/// The MTU of the overlay, as configured or as the way to the peers allows, and the largest
/// datagram worth trying. `secret` says whether there is one.
///
/// # Errors
/// If the kernel cannot be asked.
pub(super) async fn sizes(netlink: &Netlink, settings: &Settings, secret: bool) -> Result<Sizes, NetlinkError> {
    let links = netlink.links().await?;
    let carrying = |mtus: Vec<u32>| mtus.into_iter().filter(|mtu| *mtu > 0);
    let usable = links
        .iter()
        .filter(|link| link.up && !link.loopback)
        .filter(|link| link.name != settings.bridge && !is_internal(&link.name));
    let mtus: Vec<u32> = usable.map(|link| link.mtu).collect();
    let towards = towards_peers(netlink, settings).await?;
    let underlay = towards.or_else(|| carrying(mtus.clone()).min()).unwrap_or(MTU_UNKNOWN);
    let largest = carrying(mtus).chain(towards).max().unwrap_or(MTU_UNKNOWN);
    Ok(Sizes { overlay: overlay_mtu(settings.mtu, underlay, secret), payload_max: payload(largest) })
}

/// The least MTU on the first hop to the peers that are named by address, or to everywhere.
async fn towards_peers(netlink: &Netlink, settings: &Settings) -> Result<Option<u32>, NetlinkError> {
    let mut least: Option<u32> = None;
    let addresses = settings
        .peers
        .iter()
        .filter_map(|peer| host_port(peer).ok())
        .filter_map(|(host, _)| host.parse::<IpAddr>().ok());
    for address in addresses {
        if let Some(mtu) = netlink.mtu_towards(address).await? {
            least = Some(least.map_or(mtu, |least| least.min(mtu)));
        }
    }
    match least {
        Some(mtu) => Ok(Some(mtu)),
        None => Ok(netlink.default_route_link().await?.map(|link| link.mtu)),
    }
}

fn overlay_mtu(wanted: Mtu, underlay: u32, secret: bool) -> u16 {
    match wanted {
        Mtu::Fixed(bytes) => bytes,
        // Sleeve carries frames of any size in pieces, so a small underlay costs speed, not
        // reachability.
        Mtu::Auto => {
            let around = if secret { SEALED } else { OPEN };
            let bytes = underlay.saturating_sub(around.into()).clamp(MTU_MIN, MTU_AUTO_MAX);
            u16::try_from(bytes).unwrap_or(u16::MAX)
        }
    }
}

fn payload(mtu: u32) -> u16 {
    /// The largest UDP payload over IPv4 (RFC 768, RFC 791).
    const UDP_MAX: u32 = 65_507;
    u16::try_from(mtu.saturating_sub(IPV4_UDP).clamp(1200, UDP_MAX)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_overlay_leaves_room_for_what_is_around_a_packet() {
        assert_eq!(overlay_mtu(Mtu::Auto, 1500, true), 1350);
        assert_eq!(overlay_mtu(Mtu::Auto, 1500, false), 1430);
        assert_eq!(overlay_mtu(Mtu::Auto, 1280, true), 1280);
        assert_eq!(overlay_mtu(Mtu::Auto, 65_536, true), 9000);
        assert_eq!(overlay_mtu(Mtu::Fixed(1000), 9000, true), 1000);
        assert_eq!(payload(1500), 1472);
        assert_eq!(payload(65_536), 65_507);
    }

    #[test]
    fn other_container_networks_are_not_advertised() {
        for name in ["docker0", "br-0123456789ab", "virbr0", "weft-tap", "cni0"] {
            assert!(is_internal(name), "{name}");
        }
        for name in ["eth0", "br0", "br-lan", "wlan0", "bond0"] {
            assert!(!is_internal(name), "{name}");
        }
    }

    #[test]
    fn addresses_of_the_overlay_are_not_dialled() {
        let settings = Settings::parse(&BTreeMap::new(), "host", Path::new("/")).expect("defaults");
        let found: Vec<IpNet> = ["192.0.2.1/24", "10.32.0.1/12", "2001:db8::1/64"]
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect();
        let endpoints = usable(&found, &settings);
        let texts: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["192.0.2.1:6783", "[2001:db8::1]:6783"]);
    }
}
