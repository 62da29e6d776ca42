//! The few protocol headers that the wire looks into: enough to tell UDP datagrams, translate
//! addresses, and answer "too big".
//!
//! ```text
//!  0        6        12     14
//! +--------+--------+------+----------------+-----+---------+
//! | dst MAC| src MAC| type | IPv4 or IPv6   | UDP | payload |
//! +--------+--------+------+----------------+-----+---------+
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
};

use crate::netlink::Mac;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMP: u8 = 1;
/// The extension header of a fragment of IPv6.
const PROTOCOL_FRAGMENT: u8 = 44;
const PROTOCOL_ICMP6: u8 = 58;

/// A UDP datagram seen in a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Who says it is from.
    pub source: SocketAddr,
    /// Whom it is for.
    pub destination: SocketAddr,
    /// Where the payload is in the frame.
    pub payload: Range<usize>,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// Destination of a frame.
pub(super) fn destination(frame: &[u8]) -> Option<Mac> {
    array(frame, 0)
}

/// Length of the IP packet that a frame carries, if it carries one.
pub(super) fn ip_length(frame: &[u8]) -> Option<usize> {
    match be16(frame, 12)? {
        0x0800 => be16(frame, ETHERNET + 2).map(usize::from),
        0x86dd => be16(frame, ETHERNET + 4).map(|length| usize::from(length) + IPV6),
        _ => None,
    }
}

/// The UDP datagram in a frame, if there is one that is whole.
#[must_use]
pub fn datagram(frame: &[u8]) -> Option<Datagram> {
    let (source, destination, udp): (IpAddr, IpAddr, usize) = match be16(frame, 12)? {
        0x0800 => {
            let header = usize::from(frame.get(ETHERNET)? & 0x0f) * 4;
            let fragment = be16(frame, ETHERNET + 6)? & 0x3fff;
            if *frame.get(ETHERNET + 9)? != PROTOCOL_UDP || fragment != 0 || header < IPV4 {
                return None;
            }
            let source: [u8; 4] = array(frame, ETHERNET + 12)?;
            let destination: [u8; 4] = array(frame, ETHERNET + 16)?;
            (source.into(), destination.into(), ETHERNET + header)
        }
        0x86dd => {
            if *frame.get(ETHERNET + 6)? != PROTOCOL_UDP {
                return None;
            }
            let source: [u8; 16] = array(frame, ETHERNET + 8)?;
            let destination: [u8; 16] = array(frame, ETHERNET + 24)?;
            (source.into(), destination.into(), ETHERNET + IPV6)
        }
        _ => return None,
    };
    let length = usize::from(be16(frame, udp + 4)?);
    let payload = udp + UDP..udp.checked_add(length)?;
    if length < UDP || payload.end > frame.len() {
        return None;
    }
    Some(Datagram {
        source: SocketAddr::new(source, be16(frame, udp)?),
        destination: SocketAddr::new(destination, be16(frame, udp + 2)?),
        payload,
    })
}

/// One's complement sum (RFC 1071) of the parts, each of even length but the last.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        let mut words = part.chunks_exact(2);
        for word in &mut words {
            sum += u64::from(u16::from_be_bytes([word[0], word[1]]));
        }
        if let [last] = words.remainder() {
            sum += u64::from(u16::from_be_bytes([*last, 0]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An IP header in front of `body`, and an Ethernet header in front of that. `None` if the
/// families differ or the body is too long.
fn packet(macs: (Mac, Mac), ips: (IpAddr, IpAddr), protocol: u8, body: &[u8]) -> Option<Vec<u8>> {
    let (source_mac, destination_mac) = macs;
    let mut frame = Vec::with_capacity(ETHERNET + IPV6 + body.len());
    frame.extend_from_slice(&destination_mac);
    frame.extend_from_slice(&source_mac);
    match ips {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend_from_slice(&[0x08, 0x00]);
            let length = u16::try_from(IPV4 + body.len()).ok()?;
            let mut header = [0_u8; IPV4];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&length.to_be_bytes());
            header[6] = 0x40; // do not fragment
            header[8] = 64;
            header[9] = protocol;
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend_from_slice(&header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend_from_slice(&u16::try_from(body.len()).ok()?.to_be_bytes());
            frame.extend_from_slice(&[protocol, 64]);
            frame.extend_from_slice(&source.octets());
            frame.extend_from_slice(&destination.octets());
        }
        _ => return None,
    }
    frame.extend_from_slice(body);
    Some(frame)
}

fn pseudo_header(ips: (IpAddr, IpAddr), protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(IPV6);
    match ips {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend_from_slice(&source.octets());
            bytes.extend_from_slice(&destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes.extend_from_slice(&source.octets());
            bytes.extend_from_slice(&destination.octets());
        }
        _ => {}
    }
    bytes.extend_from_slice(&(length as u32).to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, protocol]);
    bytes
}

/// A frame with a UDP datagram, checksums right. `None` if the families differ or the payload is
/// too long.
#[must_use]
pub fn build_datagram(
    macs: (Mac, Mac),
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP + payload.len()).ok()?;
    let mut body = Vec::with_capacity(usize::from(length));
    body.extend_from_slice(&source.port().to_be_bytes());
    body.extend_from_slice(&destination.port().to_be_bytes());
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(payload);
    let ips = (source.ip(), destination.ip());
    let pseudo = pseudo_header(ips, PROTOCOL_UDP, body.len());
    // Zero means "no checksum", so a sum that comes out as zero is sent as its other form.
    let sum = match checksum(&[&pseudo, &body]) {
        0 => 0xffff,
        sum => sum,
    };
    body[6..8].copy_from_slice(&sum.to_be_bytes());
    packet(macs, ips, PROTOCOL_UDP, &body)
}

/// An IP packet as two fragments, the first with so many bytes (a multiple of 8) of what is behind
/// the IP header. `None` if the frame is no IP packet without options, or not that long.
pub(super) fn fragments(frame: &[u8], id: u16, first: usize) -> Option<[Vec<u8>; 2]> {
    let v6 = match be16(frame, 12)? {
        0x0800 if *frame.get(ETHERNET)? == 0x45 => false,
        0x86dd => true,
        _ => return None,
    };
    let headers = ETHERNET + if v6 { IPV6 } else { IPV4 };
    let (head, tail) = frame.get(headers..)?.split_at_checked(first)?;
    let fragment = |part: &[u8], offset: usize, more: bool| {
        let mut bytes = frame[..headers].to_vec();
        let ip = &mut bytes[ETHERNET..];
        let (offset, length) = (offset as u16, part.len() as u16);
        if v6 {
            ip[4..6].copy_from_slice(&(length + 8).to_be_bytes());
            let next = std::mem::replace(&mut ip[6], PROTOCOL_FRAGMENT);
            bytes.extend_from_slice(&[next, 0]);
            bytes.extend_from_slice(&(offset | u16::from(more)).to_be_bytes());
            bytes.extend_from_slice(&u32::from(id).to_be_bytes());
        } else {
            ip[2..4].copy_from_slice(&(length + IPV4 as u16).to_be_bytes());
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            ip[6..8].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
            ip[10..12].fill(0);
            let sum = checksum(&[ip]);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        bytes.extend_from_slice(part);
        bytes
    };
    Some([fragment(head, 0, true), fragment(tail, first, false)])
}

/// The answer of a router to a packet that does not fit: ICMP "fragmentation needed" (RFC 1191)
/// or ICMPv6 "packet too big" (RFC 4443). `None` if the frame is no IP packet.
pub(super) fn too_big(frame: &[u8], mtu: u16, from: (Ipv4Addr, Ipv6Addr)) -> Option<Vec<u8>> {
    let macs = (array(frame, 0)?, array(frame, 6)?);
    match be16(frame, 12)? {
        0x0800 => {
            let to: [u8; 4] = array(frame, ETHERNET + 12)?;
            let quoted = frame.get(ETHERNET..)?;
            let quoted = quoted.get(..quoted.len().min(IPV4 + 8))?;
            let mut body = vec![3, 4, 0, 0, 0, 0];
            body.extend_from_slice(&mtu.to_be_bytes());
            body.extend_from_slice(quoted);
            let sum = checksum(&[&body]);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
            let ips = (IpAddr::V4(from.0), IpAddr::V4(to.into()));
            packet(macs, ips, PROTOCOL_ICMP, &body)
        }
        0x86dd => {
            let to: [u8; 16] = array(frame, ETHERNET + 8)?;
            let quoted = frame.get(ETHERNET..)?;
            let quoted = quoted.get(..quoted.len().min(1280 - IPV6 - 8))?;
            let mut body = vec![2, 0, 0, 0];
            body.extend_from_slice(&u32::from(mtu).to_be_bytes());
            body.extend_from_slice(quoted);
            let ips = (IpAddr::V6(from.1), IpAddr::V6(to.into()));
            let pseudo = pseudo_header(ips, PROTOCOL_ICMP6, body.len());
            let sum = checksum(&[&pseudo, &body]);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
            packet(macs, ips, PROTOCOL_ICMP6, &body)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACS: (Mac, Mac) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

    fn sample(v6: bool, payload: &[u8]) -> Vec<u8> {
        let (a, b) = if v6 { ("[fd99::1]:1", "[fd99::2]:2") } else { ("10.99.0.1:1", "10.99.0.2:2") };
        build_datagram(MACS, a.parse().unwrap(), b.parse().unwrap(), payload).unwrap()
    }

    #[test]
    fn a_datagram_that_was_built_is_read_back() {
        for v6 in [false, true] {
            let frame = sample(v6, b"hello");
            let seen = datagram(&frame).unwrap();
            assert_eq!(&frame[seen.payload.clone()], b"hello");
            assert_eq!((seen.source.port(), seen.destination.port()), (1, 2));
            assert_eq!(ip_length(&frame), Some(frame.len() - ETHERNET));
        }
    }

    #[test]
    fn cut_frames_are_no_datagrams_and_no_panic() {
        for v6 in [false, true] {
            let frame = sample(v6, b"hello");
            for length in 0..frame.len() {
                assert_eq!(datagram(&frame[..length]), None, "{length} bytes");
                let _ = too_big(&frame[..length], 1280, (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST));
            }
        }
    }

    #[test]
    fn the_answer_to_a_packet_that_is_too_big_quotes_it_and_sums_up_right() {
        let routers = (Ipv4Addr::new(10, 99, 255, 254), Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 9));
        let answer = too_big(&sample(false, &[7; 1400]), 1300, routers).unwrap();
        assert_eq!(checksum(&[&answer[ETHERNET + IPV4..]]), 0);
        assert_eq!(be16(&answer, ETHERNET + IPV4 + 6), Some(1300));
        let answer = too_big(&sample(true, &[7; 1400]), 1300, routers).unwrap();
        assert_eq!(ip_length(&answer), Some(1280));
        let ips = ("fd99::9".parse().unwrap(), "fd99::1".parse().unwrap());
        let body = &answer[ETHERNET + IPV6..];
        assert_eq!(checksum(&[&pseudo_header(ips, PROTOCOL_ICMP6, body.len()), body]), 0);
    }
}
