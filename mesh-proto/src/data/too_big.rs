//! Telling a sender that smaller packets would be better.
//!
//! ```text
//!  frame that needs fragments ──► Ethernet │ IP: its destination ─► its source │ ICMP too big, MTU │ its start
//! ```
//!
//! The frame is carried nevertheless, in fragments; but a TCP that hears of it (RFC 1191,
//! RFC 8201) sends segments that go whole, two datagrams become one. Only TCP is told, for only
//! it is sure to listen; only where DF (or IPv6) says that it wants to know; never a group, a
//! fragment or an ICMP message (RFC 1122 §3.2.2; sleeve S29).

use core::net::{Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header};

use super::ethernet;
use super::limits::TOO_BIG_EVERY;

/// Sender and receiver are kept apart by so many places; two pairs that share one are told less
/// often.
const PLACES: usize = 256;
/// The whole answer is at most this long, as IPv4 hosts must take (RFC 1812 §4.3.2.3) …
const V4_MAX: usize = 576;
/// … and this long, the smallest MTU of IPv6 (RFC 4443 §2.4).
const V6_MAX: usize = 1280;
const TTL: u8 = 64;

/// Makes the answers, not too many.
#[derive(Debug)]
pub(crate) struct TooBig {
    told: Box<[Option<Duration>; PLACES]>,
    buffer: Box<[u8; ethernet::HEADER_MAX + V6_MAX]>,
    seed: u64,
}

impl TooBig {
    pub(crate) fn new(seed: u64) -> Self {
        Self { told: Box::new([None; PLACES]), buffer: Box::new([0; ethernet::HEADER_MAX + V6_MAX]), seed }
    }

    /// The frame to give back to the sender of `frame`, if it should hear that frames of more
    /// than `fits` bytes do not go whole.
    pub(crate) fn answer(&mut self, frame: &[u8], fits: usize, now: Duration) -> Option<&[u8]> {
        let (link, ether_type) = ethernet::header(frame)?;
        let packet = &frame[link..];
        let mtu = u16::try_from(fits.checked_sub(link)?).unwrap_or(u16::MAX);
        let (header, body) = self.buffer.split_at_mut(link);
        let length = match ether_type {
            0x0800 => answer_v4(packet, mtu, body)?,
            0x86dd => answer_v6(packet, mtu, body)?,
            _ => return None,
        };
        header.copy_from_slice(&frame[..link]);
        header[..6].copy_from_slice(&frame[6..12]);
        header[6..12].copy_from_slice(&frame[..6]);
        // The addresses of the answer decide whose turn it is.
        let place = self.place(&body_addresses(ether_type, &self.buffer[link..]));
        let told = &mut self.told[place];
        if told.is_some_and(|at| now < at + TOO_BIG_EVERY) {
            return None;
        }
        *told = Some(now);
        Some(&self.buffer[..link + length])
    }

    fn place(&self, addresses: &[u8]) -> usize {
        let hash = addresses
            .iter()
            .fold(self.seed, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        (hash ^ hash >> 32) as usize % PLACES
    }
}

fn body_addresses(ether_type: u16, packet: &[u8]) -> [u8; 32] {
    let mut addresses = [0; 32];
    if ether_type == 0x0800 {
        addresses[..8].copy_from_slice(&packet[12..20]);
    } else {
        addresses.copy_from_slice(&packet[8..40]);
    }
    addresses
}

fn answer_v4(packet: &[u8], mtu: u16, out: &mut [u8]) -> Option<usize> {
    let (ip, _) = Ipv4Header::from_slice(packet).ok()?;
    let (from, to) = (Ipv4Addr::from(ip.source), Ipv4Addr::from(ip.destination));
    let host = |a: Ipv4Addr| !a.is_multicast() && !a.is_broadcast() && !a.is_unspecified();
    let wanted = ip.dont_fragment && !ip.is_fragmenting_payload() && ip.protocol == IpNumber::TCP;
    if !wanted || !host(from) || !host(to) || ip.total_len <= mtu {
        return None;
    }
    let quote = &packet[..packet.len().min(V4_MAX - Ipv4Header::MIN_LEN - 8)];
    let kind = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
    let icmp = Icmpv4Header::with_checksum(Icmpv4Type::DestinationUnreachable(kind), quote);
    let length = (icmp.header_len() + quote.len()) as u16;
    let mut header = Ipv4Header::new(length, TTL, IpNumber::ICMP, ip.destination, ip.source).ok()?;
    header.header_checksum = header.calc_header_checksum();
    Some(join(out, [&header.to_bytes(), &icmp.to_bytes(), quote]))
}

fn answer_v6(packet: &[u8], mtu: u16, out: &mut [u8]) -> Option<usize> {
    let (ip, rest) = Ipv6Header::from_slice(packet).ok()?;
    let (from, to) = (Ipv6Addr::from(ip.source), Ipv6Addr::from(ip.destination));
    let host = |a: Ipv6Addr| !a.is_multicast() && !a.is_unspecified();
    // IPv6 has no smaller MTU: nothing less may be asked for.
    let mtu = mtu.max(V6_MAX as u16);
    let total = Ipv6Header::LEN + usize::from(ip.payload_length);
    if ip.next_header != IpNumber::TCP || !host(from) || !host(to) || total <= mtu.into() {
        return None;
    }
    let whole = Ipv6Header::LEN + rest.len();
    let quote = &packet[..whole.min(V6_MAX - Ipv6Header::LEN - 8)];
    let kind = Icmpv6Type::PacketTooBig { mtu: mtu.into() };
    let icmp = Icmpv6Header::with_checksum(kind, ip.destination, ip.source, quote).ok()?;
    let header = Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::default(),
        payload_length: (icmp.header_len() + quote.len()) as u16,
        next_header: IpNumber::IPV6_ICMP,
        hop_limit: TTL,
        source: ip.destination,
        destination: ip.source,
    };
    Some(join(out, [&header.to_bytes(), &icmp.to_bytes(), quote]))
}

fn join(out: &mut [u8], parts: [&[u8]; 3]) -> usize {
    let mut at = 0;
    for part in parts {
        out[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{LaxSlicedPacket, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    const A: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn tcp_v4(size: usize, df: bool) -> Vec<u8> {
        let mut ip = Ipv4Header::new(0, 64, IpNumber::TCP, [10, 32, 0, 1], [10, 32, 0, 2]).unwrap();
        ip.dont_fragment = df;
        let builder = PacketBuilder::ethernet2(A, B).ip(etherparse::IpHeaders::Ipv4(ip, Default::default()));
        let mut frame = Vec::new();
        builder.tcp(1, 2, 3, 4).write(&mut frame, &vec![7; size]).unwrap();
        frame
    }

    fn tcp_v6(size: usize) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(A, B).ipv6([1; 16], [2; 16], 64);
        let mut frame = Vec::new();
        builder.tcp(1, 2, 3, 4).write(&mut frame, &vec![7; size]).unwrap();
        frame
    }

    #[test]
    fn an_ipv4_sender_is_told_in_the_name_of_its_destination() {
        let frame = tcp_v4(1400, true);
        let mut too_big = TooBig::new(1);
        let answer = too_big.answer(&frame, 1214, Duration::ZERO).unwrap();
        assert_eq!((&answer[..6], &answer[6..12]), (&A[..], &B[..]));
        let packet = SlicedPacket::from_ethernet(answer).unwrap();
        let Some(NetSlice::Ipv4(ip)) = packet.net else { panic!() };
        assert_eq!(ip.header().source(), [10, 32, 0, 2]);
        assert_eq!(ip.header().destination(), [10, 32, 0, 1]);
        assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
        let Some(TransportSlice::Icmpv4(icmp)) = packet.transport else { panic!() };
        let kind = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1200 };
        assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(kind));
        let again = Icmpv4Header::with_checksum(icmp.icmp_type(), icmp.payload());
        assert_eq!(icmp.checksum(), again.checksum);
        assert_eq!(icmp.payload(), &frame[14..14 + 548]);
        assert_eq!(answer.len(), 14 + 576);
    }

    #[test]
    fn an_ipv6_sender_is_told_and_never_less_than_the_smallest_mtu() {
        let frame = tcp_v6(1400);
        let mut too_big = TooBig::new(1);
        let answer = too_big.answer(&frame, 1414, Duration::ZERO).unwrap();
        let packet = SlicedPacket::from_ethernet(answer).unwrap();
        let Some(NetSlice::Ipv6(ip)) = packet.net else { panic!() };
        assert_eq!((ip.header().source(), ip.header().destination()), ([2; 16], [1; 16]));
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!() };
        assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1400 });
        assert!(icmp.is_checksum_valid([2; 16], [1; 16]));
        assert_eq!(answer.len(), 14 + 1280);
        let later = Duration::from_secs(2);
        let mut too_big = TooBig::new(1);
        let answer = too_big.answer(&frame, 900, later).unwrap();
        let packet = LaxSlicedPacket::from_ethernet(answer).unwrap();
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!() };
        assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1280 });
    }

    #[test]
    fn a_tag_is_kept() {
        let mut frame = tcp_v4(1400, true);
        frame.splice(12..12, [0x81, 0, 0, 7]);
        let mut too_big = TooBig::new(1);
        let answer = too_big.answer(&frame, 1218, Duration::ZERO).unwrap();
        assert_eq!(answer[12..18], [0x81, 0, 0, 7, 8, 0]);
        let packet = SlicedPacket::from_ethernet(answer).unwrap();
        let Some(TransportSlice::Icmpv4(icmp)) = packet.transport else { panic!() };
        let kind = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1200 };
        assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(kind));
    }

    #[test]
    fn the_same_pair_is_told_once_a_second() {
        let frame = tcp_v4(1400, true);
        let mut too_big = TooBig::new(1);
        let told = (0..3000u64).filter(|&t| too_big.answer(&frame, 1214, Duration::from_millis(t)).is_some());
        assert_eq!(told.count(), 3);
    }

    #[test]
    fn nobody_else_is_told() {
        let mut too_big = TooBig::new(1);
        let mut udp = Vec::new();
        let builder = PacketBuilder::ethernet2(A, B).ipv6([1; 16], [2; 16], 64).udp(1, 2);
        builder.write(&mut udp, &[7; 1400]).unwrap();
        let mut to_group = tcp_v4(1400, true);
        to_group[30..34].copy_from_slice(&[224, 0, 0, 1]);
        let silent = [tcp_v4(1400, false), tcp_v4(100, true), tcp_v6(100), udp, to_group];
        for frame in silent {
            assert_eq!(too_big.answer(&frame, 1214, Duration::ZERO), None);
        }
    }

    proptest! {
        #[test]
        fn any_frame_is_looked_at_without_panic(start in 0usize..60, noise: Vec<u8>, v6: bool, fits in 0usize..2000) {
            let mut frame = if v6 { tcp_v6(1400) } else { tcp_v4(1400, true) };
            let end = (start + noise.len()).min(frame.len());
            frame[start..end].copy_from_slice(&noise[..end - start]);
            let _ = TooBig::new(1).answer(&frame, fits, Duration::ZERO);
            let _ = TooBig::new(1).answer(&noise, fits, Duration::ZERO);
        }
    }
}
