//! What must hold before a router starts: each failure says what to do.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::thread::CapabilitySet;

/// Why a router cannot run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// No TUN/TAP driver.
    #[error(
        "/dev/net/tun is not there: load the driver (modprobe tun), or in a container give it the device (--device /dev/net/tun)"
    )]
    NoTun,
    /// No right to make interfaces.
    #[error(
        "this process may not make network interfaces (CAP_NET_ADMIN is missing): run it as root, or grant the capability"
    )]
    NoNetAdmin,
    /// A range of the network is in use on this host.
    #[error("range {range} overlaps {found}: containers could not reach one of the two; choose another range with --range (the same on every peer){}", if *.given { "" } else { ", or give this one explicitly to take it all the same" })]
    Overlap {
        /// The range.
        range: IpNet,
        /// What it overlaps.
        found: String,
        /// Whether the operator chose the range.
        given: bool,
    },
}

/// Driver and right to make interfaces.
///
/// # Errors
/// Everything that is missing.
pub(super) fn check_kernel() -> Result<(), Vec<CheckError>> {
    let mut missing = Vec::new();
    if !fs::exists("/dev/net/tun").unwrap_or(false) {
        missing.push(CheckError::NoTun);
    }
    // A kernel that cannot be asked lets the first netlink call say what is wrong.
    let may = rustix::thread::capabilities(None).map_or(true, |sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
    if !may {
        missing.push(CheckError::NoNetAdmin);
    }
    if missing.is_empty() { Ok(()) } else { Err(missing) }
}

/// A route of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostRoute {
    destination: IpNet,
    interface: String,
}

/// The overlaps of the ranges with routes of this host that do not lead to `bridge`.
pub(super) fn overlaps(ranges: &[IpNet], bridge: &str, given: bool) -> Vec<CheckError> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let mut routes = routes_v4(&read("/proc/thread-self/net/route"));
    routes.extend(routes_v6(&read("/proc/thread-self/net/ipv6_route")));
    find_overlaps(ranges, &routes, bridge, given)
}

fn find_overlaps(ranges: &[IpNet], routes: &[HostRoute], bridge: &str, given: bool) -> Vec<CheckError> {
    let mut found = Vec::new();
    for range in ranges {
        let clash = routes.iter().find(|route| {
            let net = route.destination;
            route.interface != bridge
                && net.prefix_len() > 0
                && (net.contains(&range.network()) || range.contains(&net.network()))
        });
        if let Some(route) = clash {
            let text = format!("the route {} of interface {}", route.destination, route.interface);
            found.push(CheckError::Overlap { range: *range, found: text, given });
        }
    }
    found
}

/// `/proc/net/route`: addresses are hexadecimal in the byte order of the machine.
fn routes_v4(text: &str) -> Vec<HostRoute> {
    let parse = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let address = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok().map(u32::to_ne_bytes);
        let destination = Ipv4Addr::from(address(1)?);
        let mask = Ipv4Addr::from(address(7)?);
        let net = Ipv4Net::with_netmask(destination, mask).ok()?.trunc();
        let unreachable = u16::from_str_radix(fields.get(3)?, 16).ok()? & 0x0200 != 0;
        let interface = (*fields.first()?).to_owned();
        (!unreachable).then_some(HostRoute { destination: net.into(), interface })
    };
    text.lines().skip(1).filter_map(parse).collect()
}

/// `/proc/net/ipv6_route`: destination, prefix length (hexadecimal), …, flags, interface.
fn routes_v6(text: &str) -> Vec<HostRoute> {
    let parse = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let address = u128::from_str_radix(fields.first()?, 16).ok()?;
        let length = u8::from_str_radix(fields.get(1)?, 16).ok()?;
        let net = Ipv6Net::new(Ipv6Addr::from(address), length).ok()?.trunc();
        let unreachable = u32::from_str_radix(fields.get(8)?, 16).ok()? & 0x0200 != 0;
        let interface = (*fields.get(9)?).to_owned();
        let special = IpAddr::V6(net.addr()).is_multicast() || net.addr().is_loopback();
        let route = HostRoute { destination: net.into(), interface };
        (!unreachable && !special && route.interface != "lo").then_some(route)
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0000200A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
weft\t0000200A\t00000000\t0001\t0\t0\t0\t0000F0FF\t0\t0\t0
";
    const V6: &str = "\
fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth1
ff000000000000000000000000000000 08 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000003 00000000 00000001 eth1
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo
";

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a range")).collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn routes_are_read_as_the_kernel_writes_them() {
        let routes = routes_v4(V4);
        assert_eq!(routes[1].destination.to_string(), "10.32.0.0/16");
        assert_eq!(routes[2].destination.to_string(), "10.32.0.0/12");
        assert_eq!(routes_v6(V6).len(), 1);
        assert_eq!(routes_v6(V6)[0].destination.to_string(), "fd00::/64");
        assert!(routes_v4("nonsense\nmore nonsense\n\n").is_empty());
        assert!(routes_v6("nonsense\nmore nonsense\n\n").is_empty());
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn an_overlap_names_range_route_and_interface() {
        let routes = routes_v4(V4);
        let found = find_overlaps(&nets(&["10.32.0.0/12"]), &routes, "weft", false);
        let text = found[0].to_string();
        assert!(text.contains("10.32.0.0/12") && text.contains("eth0"), "{text}");
        assert!(text.contains("explicitly"), "{text}");
        // The default route is everybody's, and our own bridge is no clash.
        assert!(find_overlaps(&nets(&["10.64.0.0/16"]), &routes, "weft", false).is_empty());
        let ours: Vec<_> = routes.into_iter().filter(|r| r.interface == "weft").collect();
        assert!(find_overlaps(&nets(&["10.32.0.0/12"]), &ours, "weft", false).is_empty());
    }
}
