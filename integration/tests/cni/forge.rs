//! Frames that a pod makes up, each with the reason for which it is dropped (guard P3 to P5).

use std::net::{Ipv4Addr, Ipv6Addr};

use weft::{lab::Container, netlink::Mac};

use crate::world::Must as _;

const EVERYBODY: Mac = [0xff; 6];
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const FRAGMENT: u8 = 44;
const OPTIONS: u8 = 60;

/// Whose a frame says it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Somebody {
    pub(crate) mac: Mac,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Somebody {
    /// Who has the interface `eth0` of a pod, with these addresses.
    pub(crate) fn of(container: &Container, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        let link = container.link("eth0").must("look inside").must("eth0");
        Self { mac: link.mac.must("a MAC address"), v4, v6 }
    }

    pub(crate) fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

/// A frame, what is wrong with it, and the reason under which it is counted.
pub(crate) struct Forged {
    pub(crate) what: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) frame: Vec<u8>,
}

fn ethernet(from: Mac, kind: u16, body: &[u8]) -> Vec<u8> {
    [&EVERYBODY[..], &from, &kind.to_be_bytes(), body].concat()
}

fn tagged(from: Mac, tag: [u8; 4], kind: u16, body: &[u8]) -> Vec<u8> {
    [&EVERYBODY[..], &from, &tag, &kind.to_be_bytes(), body].concat()
}

/// `fragment` are the bits of the fragment's offset and whether more follow.
fn ipv4(from: Ipv4Addr, protocol: u8, fragment: u16, body: &[u8]) -> Vec<u8> {
    let [l0, l1] = ((20 + body.len()) as u16).to_be_bytes();
    let [f0, f1] = fragment.to_be_bytes();
    let mut header = [&[0x45, 0, l0, l1, 0, 7, f0, f1, 64, protocol, 0, 0][..], &from.octets(), &[255; 4]].concat();
    let sum: u32 = header.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    // Twice: the carry may carry once more.
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&header, body].concat()
}

fn ipv6(from: Ipv6Addr, next: u8, body: &[u8]) -> Vec<u8> {
    let [l0, l1] = (body.len() as u16).to_be_bytes();
    let everybody = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    [&[0x60, 0, 0, 0, l0, l1, next, 255][..], &from.octets(), &everybody.octets(), body].concat()
}

/// The extension header of a fragment, `offset` in bytes.
fn fragment(next: u8, offset: u16, more: bool) -> [u8; 8] {
    let [a, b] = (offset | u16::from(more)).to_be_bytes();
    [next, 0, a, b, 0, 0, 0, 7]
}

fn udp(from: u16, to: u16, body: &[u8]) -> Vec<u8> {
    let [f, t, l] = [from, to, (8 + body.len()) as u16].map(u16::to_be_bytes);
    [&f[..], &t, &l, &[0, 0], body].concat()
}

/// A message about an address, with options.
fn neighbour(kind: u8, flags: u8, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, flags, 0, 0, 0][..], &target.octets(), options].concat()
}

fn option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

fn arp(operation: u8, mac: Mac, from: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, operation][..], &mac, &from.octets(), &EVERYBODY, &target.octets()].concat()
}

/// All that a pod tries that is not to leave it.
pub(crate) fn all(me: Somebody, victim: Somebody) -> Vec<Forged> {
    [frames(me, victim), internet(me, victim), neighbours(me, victim), servers(me, victim)]
        .into_iter()
        .flatten()
        .map(|(what, reason, frame)| Forged { what, reason, frame })
        .collect()
}

type List = Vec<(&'static str, &'static str, Vec<u8>)>;

fn frames(me: Somebody, victim: Somebody) -> List {
    let lie = arp(2, me.mac, victim.v4, me.v4);
    vec![
        ("another's MAC address", "port_mac", ethernet(victim.mac, 0x88b6, b"not IP")),
        ("another's MAC address on IPv4", "port_mac", ethernet(victim.mac, IPV4, &ipv4(me.v4, 99, 0, b"mac"))),
        ("ARP with a priority tag", "port_tagged", tagged(me.mac, [0x81, 0, 0x60, 0], ARP, &lie)),
        ("ARP in a VLAN", "port_tagged", tagged(me.mac, [0x81, 0, 0, 123], ARP, &lie)),
        ("ARP in a service VLAN", "port_tagged", tagged(me.mac, [0x88, 0xa8, 0, 123], ARP, &lie)),
        ("ARP with another's IP address", "port_arp", ethernet(me.mac, ARP, &lie)),
        ("ARP with another's MAC address", "port_arp", ethernet(me.mac, ARP, &arp(2, victim.mac, me.v4, me.v4))),
        ("an ARP probe for another's address", "port_arp", {
            ethernet(me.mac, ARP, &arp(1, me.mac, Ipv4Addr::UNSPECIFIED, victim.v4))
        }),
        ("ARP that is cut off", "port_arp", ethernet(me.mac, ARP, &arp(2, me.mac, me.v4, me.v4)[..12])),
    ]
}

fn internet(me: Somebody, victim: Somebody) -> List {
    let of = |from: Ipv4Addr, fragment: u16, body: &[u8]| ethernet(me.mac, IPV4, &ipv4(from, UDP, fragment, body));
    let of6 = |from: Ipv6Addr, next: u8, body: &[u8]| ethernet(me.mac, IPV6, &ipv6(from, next, body));
    let datagram = udp(4000, 4000, b"spoofed");
    let later = [&fragment(UDP, 8, false)[..], b"the rest of it"].concat();
    let mut short = of(victim.v4, 0, &datagram);
    short[14] = 0x4f;
    vec![
        ("another's IPv4 address", "port_ipv4", of(victim.v4, 0, &datagram)),
        ("another's IPv4 address on a later fragment", "port_ipv4", of(victim.v4, 2, b"the rest of it, too")),
        ("no IPv4 address", "port_ipv4", of(Ipv4Addr::UNSPECIFIED, 0, &datagram)),
        ("an IPv4 header longer than the packet", "port_malformed", short),
        ("IPv4 that is cut off", "port_malformed", of(victim.v4, 0, &datagram)[..24].to_vec()),
        ("another's IPv6 address", "port_ipv6", of6(victim.v6, UDP, &datagram)),
        ("another's link-local address", "port_ipv6", of6(victim.link_local(), UDP, &datagram)),
        ("another's IPv6 address on a later fragment", "port_ipv6", of6(victim.v6, FRAGMENT, &later)),
        ("another's IPv6 address on an echo", "port_ipv6", of6(victim.v6, ICMP6, &[128, 0, 0, 0, 0, 1, 0, 1])),
        ("no IPv6 address", "port_ipv6", of6(Ipv6Addr::UNSPECIFIED, UDP, &datagram)),
    ]
}

fn neighbours(me: Somebody, victim: Somebody) -> List {
    let of = |from: Ipv6Addr, next: u8, body: &[u8]| ethernet(me.mac, IPV6, &ipv6(from, next, body));
    let claim = neighbour(136, 0x20, victim.v6, &option(2, me.mac));
    let here = |options: &[Vec<u8>]| neighbour(136, 0x20, me.v6, &options.concat());
    let hidden = [&[ICMP6, 0, 1, 4, 0, 0, 0, 0][..], &claim].concat();
    let first = [&fragment(ICMP6, 0, true)[..], &claim].concat();
    vec![
        ("a claim on another's address", "port_neighbour", of(me.v6, ICMP6, &claim)),
        ("the same behind options", "port_neighbour", of(me.v6, OPTIONS, &hidden)),
        ("the same in a fragment", "port_neighbour", of(me.v6, FRAGMENT, &first)),
        (
            "an own address at another's MAC address",
            "port_neighbour",
            of(me.v6, ICMP6, &here(&[option(2, victim.mac)])),
        ),
        ("the same as a second option", "port_neighbour", {
            of(me.v6, ICMP6, &here(&[option(2, me.mac), option(2, victim.mac)]))
        }),
        ("a question from another's address", "port_ipv6", {
            of(victim.v6, ICMP6, &neighbour(135, 0, me.v6, &option(1, me.mac)))
        }),
        ("a question from another's MAC address", "port_neighbour", {
            of(me.v6, ICMP6, &neighbour(135, 0, victim.v6, &option(1, victim.mac)))
        }),
        ("doubt about another's address", "port_neighbour", {
            of(Ipv6Addr::UNSPECIFIED, ICMP6, &neighbour(135, 0, victim.v6, &[]))
        }),
    ]
}

fn servers(me: Somebody, victim: Somebody) -> List {
    let of = |next: u8, body: &[u8]| ethernet(me.mac, IPV6, &ipv6(me.link_local(), next, body));
    let router = [&[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..], &option(1, me.mac)].concat();
    let hidden = [&[ICMP6, 0, 1, 4, 0, 0, 0, 0][..], &router].concat();
    let whole = [&fragment(ICMP6, 0, false)[..], &router].concat();
    // The first fragment ends before it can be told what it is.
    let only_options = [&fragment(OPTIONS, 0, true)[..], &[ICMP6, 0, 1, 4, 0, 0, 0, 0]].concat();
    let half_of_them = [&fragment(OPTIONS, 0, true)[..], &[ICMP6, 3, 1, 4, 0, 0, 0, 0]].concat();
    let half = [&fragment(UDP, 0, true)[..]].concat();
    let redirect = [&[137, 0, 0, 0, 0, 0, 0, 0][..], &me.v6.octets(), &victim.v6.octets()].concat();
    let offer = udp(67, 68, &[2, 1, 6, 0]);
    vec![
        ("a router advertisement", "port_router", of(ICMP6, &router)),
        ("the same behind options", "port_router", of(OPTIONS, &hidden)),
        ("the same as the only fragment", "port_router", of(FRAGMENT, &whole)),
        ("one that its first fragment does not show", "port_malformed", of(FRAGMENT, &only_options)),
        ("one behind options that the fragment cuts", "port_malformed", of(FRAGMENT, &half_of_them)),
        ("a datagram whose ports do not show", "port_malformed", of(FRAGMENT, &half)),
        ("a redirect", "port_router", of(ICMP6, &redirect)),
        ("an answer of DHCP", "port_dhcp", ethernet(me.mac, IPV4, &ipv4(me.v4, UDP, 0, &offer))),
        ("one from another port, in a fragment", "port_dhcp", {
            ethernet(me.mac, IPV4, &ipv4(me.v4, UDP, 0x2000, &udp(4000, 68, &[2, 1, 6, 0, 0, 0, 0, 0])))
        }),
        ("an answer of DHCPv6", "port_dhcp", of(UDP, &udp(547, 546, &[2, 0, 0, 1]))),
    ]
}

/// What a pod may send.
pub(crate) fn honest(me: Somebody) -> Vec<(&'static str, Vec<u8>)> {
    let of = |from: Ipv6Addr, next: u8, body: &[u8]| ethernet(me.mac, IPV6, &ipv6(from, next, body));
    let nobody = Ipv6Addr::UNSPECIFIED;
    let elsewhere = Ipv6Addr::new(0xfd00, 0x32, 0, 0, 9, 9, 9, 9);
    let ask = |from: Ipv6Addr, target: Ipv6Addr, options: &[u8]| of(from, ICMP6, &neighbour(135, 0, target, options));
    let answer = |target: Ipv6Addr, options: &[u8]| of(me.v6, ICMP6, &neighbour(136, 0x60, target, options));
    vec![
        ("a frame that is no IP", ethernet(me.mac, 0x88b6, b"whatever")),
        ("a datagram", ethernet(me.mac, IPV4, &ipv4(me.v4, UDP, 0, &udp(4000, 4000, b"mine")))),
        ("its first fragment", ethernet(me.mac, IPV4, &ipv4(me.v4, UDP, 0x2000, &udp(4000, 4000, b"of more.")))),
        ("its last fragment", ethernet(me.mac, IPV4, &ipv4(me.v4, UDP, 2, b"the rest"))),
        ("another protocol", ethernet(me.mac, IPV4, &ipv4(me.v4, 99, 0, b"x"))),
        ("a question to DHCP servers", ethernet(me.mac, IPV4, &ipv4(me.v4, UDP, 0, &udp(68, 67, b"who")))),
        ("ARP", ethernet(me.mac, ARP, &arp(1, me.mac, me.v4, Ipv4Addr::new(10, 32, 9, 9)))),
        ("an ARP probe", ethernet(me.mac, ARP, &arp(1, me.mac, Ipv4Addr::UNSPECIFIED, me.v4))),
        ("a datagram of IPv6", of(me.v6, UDP, &udp(4000, 4000, b"mine"))),
        ("one from the link-local address", of(me.link_local(), UDP, &udp(4000, 4000, b"mine"))),
        (
            "an echo behind options",
            of(me.v6, OPTIONS, &[&[ICMP6, 0, 1, 4, 0, 0, 0, 0][..], &[128, 0, 0, 0, 0, 1, 0, 1]].concat()),
        ),
        (
            "a large echo, its beginning",
            of(me.v6, FRAGMENT, &[&fragment(ICMP6, 0, true)[..], &[128, 0, 0, 0, 0, 1, 0, 1]].concat()),
        ),
        ("a large echo, its end", of(me.v6, FRAGMENT, &[&fragment(ICMP6, 8, false)[..], b"the rest"].concat())),
        ("a question", ask(me.v6, elsewhere, &option(1, me.mac))),
        ("a question without options", ask(me.link_local(), elsewhere, &[])),
        ("whether the address is taken", ask(nobody, me.v6, &[])),
        ("whether the link-local address is", ask(nobody, me.link_local(), &[14, 1, 1, 2, 3, 4, 5, 6])),
        ("an answer", answer(me.v6, &option(2, me.mac))),
        ("an answer about the link-local address", answer(me.link_local(), &[])),
        (
            "a question to routers",
            of(me.link_local(), ICMP6, &[&[133, 0, 0, 0, 0, 0, 0, 0][..], &option(1, me.mac)].concat()),
        ),
        ("one from nobody", of(nobody, ICMP6, &[133, 0, 0, 0, 0, 0, 0, 0])),
    ]
}
