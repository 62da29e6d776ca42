//! Router advertisements, as somebody makes them up who is no router.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

const FORGED_PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd66, 0, 0, 0x66, 0, 0, 0, 0);

/// Whether somebody has believed one, by the addresses that it has.
pub(crate) fn is_forged(addresses: &[IpNet]) -> bool {
    let forged = |ip: &Ipv6Addr| ip.segments()[..4] == FORGED_PREFIX.segments()[..4];
    addresses.iter().any(|net| matches!(net.addr(), IpAddr::V6(ip) if forged(&ip)))
}

/// A router advertisement with a prefix, as a container would make one up.
pub(crate) fn advertisement(mac: [u8; 6]) -> Vec<u8> {
    let [a, b, c, d, e, f] = mac;
    let from = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let everybody = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    let prefix = [3, 4, 64, 0xc0, 0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
    let mut body = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    body.extend(prefix.iter().chain(&FORGED_PREFIX.octets()).chain(&[1, 1]).chain(&mac));
    let [l0, l1] = (body.len() as u16).to_be_bytes();
    // The checksum is over a header of its own too: addresses, length and protocol.
    let summed = [&from[..], &everybody, &[0, 0, l0, l1, 0, 0, 0, 58], &body].concat();
    let sum: u32 = summed.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let header = [&[0x60, 0, 0, 0, l0, l1, 58, 255][..], &from, &everybody].concat();
    [&[0x33, 0x33, 0, 0, 0, 1][..], &mac, &[0x86, 0xdd], &header, &body].concat()
}
