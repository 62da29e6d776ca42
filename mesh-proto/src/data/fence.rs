//! Addresses that a peer may not send from: it was removed from the network while it was alive, and
//! they have gone to another peer since (ipam I21).
//!
//! ```text
//!  frame of a peer ─► no fence (nearly all) ─────────────────────────────► delivered
//!                 └─► its sender's address, in IP, ARP or an ND message ─► in the fence: dropped
//! ```
//!
//! So nobody ever sees two holders of one address, though both are there.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ethernet;

/// Addresses that one peer may not send from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fence {
    /// First and last of each run, as IPv6 (IPv4 mapped), in order and apart.
    runs: Vec<(u128, u128)>,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl Fence {
    /// A fence around runs of addresses, each by its first and last.
    #[must_use]
    pub fn new(runs: impl IntoIterator<Item = (IpAddr, IpAddr)>) -> Self {
        let mut sorted: Vec<(u128, u128)> =
            runs.into_iter().map(|(first, last)| (number(first), number(last))).filter(|(a, b)| a <= b).collect();
        sorted.sort_unstable();
        let mut runs: Vec<(u128, u128)> = Vec::new();
        for (first, last) in sorted {
            match runs.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => runs.push((first, last)),
            }
        }
        Self { runs }
    }

    /// Whether it keeps nothing out.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    fn has(&self, address: IpAddr) -> bool {
        let at = number(address);
        let after = self.runs.partition_point(|&(first, _)| first <= at);
        after > 0 && at <= self.runs[after - 1].1
    }

    /// Whether a frame speaks for one of the addresses.
    pub(crate) fn refuses(&self, frame: &[u8]) -> bool {
        speaks_for(frame).into_iter().flatten().any(|address| self.has(address))
    }
}

/// The addresses that a frame's sender claims: its source, and what it says of itself to those that
/// look for one.
fn speaks_for(frame: &[u8]) -> [Option<IpAddr>; 2] {
    let v4 = |bytes: &[u8]| Some(IpAddr::V4(Ipv4Addr::from(*bytes.first_chunk::<4>()?)));
    let v6 = |bytes: &[u8]| Some(IpAddr::V6(Ipv6Addr::from(*bytes.first_chunk::<16>()?)));
    let Some((header, kind)) = ethernet::header(frame) else {
        return [None, None];
    };
    let body = &frame[header..];
    let from = |at: usize| body.get(at..).unwrap_or_default();
    match kind {
        0x0800 => [v4(from(12)), None],
        // Sender's protocol address of ARP over Ethernet for IPv4.
        0x0806 if body.starts_with(&[0, 1, 8, 0, 6, 4]) => [v4(from(14)), None],
        // A neighbour advertisement speaks for its target.
        0x86dd if from(6).first() == Some(&58) && from(40).first() == Some(&136) => [v6(from(8)), v6(from(48))],
        0x86dd => [v6(from(8)), None],
        _ => [None, None],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fence() -> Fence {
        let run = |first: &str, last: &str| (first.parse().unwrap(), last.parse().unwrap());
        Fence::new([run("10.0.0.64", "10.0.0.127"), run("fd00::100", "fd00::1ff"), run("10.0.0.128", "10.0.0.130")])
    }

    fn frame(tags: usize, kind: u16, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x81, 0, 0, 7].repeat(tags));
        frame.extend(kind.to_be_bytes());
        frame.extend(body);
        frame
    }

    fn ip(from: &str) -> (u16, Vec<u8>) {
        match from.parse().unwrap() {
            IpAddr::V4(v4) => (0x0800, [&[0x45; 12], &v4.octets()[..], &[9; 4]].concat()),
            IpAddr::V6(v6) => (0x86dd, [&[0x60; 8], &v6.octets()[..], &[9; 16]].concat()),
        }
    }

    #[test]
    fn what_comes_from_inside_is_refused_and_nothing_else_is() {
        for (from, refused) in [
            ("10.0.0.63", false),
            ("10.0.0.64", true),
            ("10.0.0.130", true),
            ("10.0.0.131", false),
            ("fd00::ff", false),
            ("fd00::100", true),
            ("fd00::1ff", true),
            ("::a00:40", false),
        ] {
            for tags in 0..3 {
                let (kind, body) = ip(from);
                assert_eq!(fence().refuses(&frame(tags, kind, &body)), refused, "{from} {tags}");
            }
        }
    }

    #[test]
    fn who_answers_for_an_address_inside_is_refused() {
        let arp = |sender: [u8; 4]| {
            let body = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &[2; 6], &sender, &[3; 6], &[10, 0, 0, 1]].concat();
            frame(0, 0x0806, &body)
        };
        assert!(fence().refuses(&arp([10, 0, 0, 64])));
        assert!(!fence().refuses(&arp([10, 0, 0, 1])));
        let advertisement = |target: &str| {
            let target: Ipv6Addr = target.parse().unwrap();
            let from: Ipv6Addr = "fd00::1".parse().unwrap();
            let ip = [&[0x60, 0, 0, 0, 0, 24, 58, 255][..], &from.octets(), &[9; 16]].concat();
            frame(0, 0x86dd, &[&ip[..], &[136, 0, 0, 0, 0, 0, 0, 0], &target.octets()].concat())
        };
        assert!(fence().refuses(&advertisement("fd00::100")));
        assert!(!fence().refuses(&advertisement("fd00::200")));
    }

    proptest! {
        #[test]
        fn any_frame_is_judged(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = fence().refuses(&bytes);
        }
    }
}
