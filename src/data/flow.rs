//! Which frames belong together: those of a flow keep their order and share a queue.

/// A number that is the same for all frames of a flow in one direction: of IP made of the addresses,
/// and the ports if every frame has them; else of the MAC addresses. Good enough to spread flows,
/// not to tell them apart.
pub(super) fn flow(frame: &[u8]) -> u32 {
    let bytes = match frame.get(12..14) {
        Some([0x08, 0x00]) => ipv4(frame),
        Some([0x86, 0xdd]) => ipv6(frame),
        _ => None,
    };
    // FNV-1a, eight bytes at a time.
    let (addresses, ports) = bytes.unwrap_or((frame.get(..12).unwrap_or(frame), &[]));
    let words = addresses
        .chunks(8)
        .chain([ports])
        .map(|bytes| bytes.iter().fold(0, |word: u64, &byte| word << 8 | u64::from(byte)));
    let hash = words.fold(0xcbf2_9ce4_8422_2325, |hash: u64, word| (hash ^ word).wrapping_mul(0x0100_0000_01b3));
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32
}

type Parts<'a> = Option<(&'a [u8], &'a [u8])>;

const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17)
}

fn ipv4(frame: &[u8]) -> Parts<'_> {
    let addresses = frame.get(26..34)?;
    // Without options, and no fragment: only the first of those would have ports.
    let whole = frame[14] == 0x45 && u16::from_be_bytes([frame[20], frame[21]]) & 0x3fff == 0;
    let ports = frame.get(34..38).filter(|_| whole && has_ports(frame[23]));
    Some((addresses, ports.unwrap_or_default()))
}

fn ipv6(frame: &[u8]) -> Parts<'_> {
    let addresses = frame.get(22..54)?;
    let ports = frame.get(54..58).filter(|_| has_ports(frame[20]));
    Some((addresses, ports.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp4(from: u8, port: u8, fragment: u16) -> Vec<u8> {
        let mut frame = [[2; 6], [4; 6]].concat();
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 1]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, 17, 0, 0, 10, 0, 0, from, 10, 0, 0, 2, 0, port, 0, 9, 0, 20, 0, 0]);
        frame
    }

    #[test]
    fn flows_spread_over_the_queues() {
        let of = |n: u8| flow(&udp4(1, n, 0)) % 8;
        let used: std::collections::BTreeSet<u32> = (0..64).map(of).collect();
        assert_eq!(used.len(), 8);
        let of = |n: u8| flow(&udp4(n, 1, 0)) % 8;
        let used: std::collections::BTreeSet<u32> = (0..64).map(of).collect();
        assert_eq!(used.len(), 8);
    }

    #[test]
    fn what_differs_within_a_flow_does_not_count() {
        let mut other = udp4(1, 1, 0);
        other[18..20].copy_from_slice(&[9, 9]);
        other.extend([1; 100]);
        assert_eq!(flow(&udp4(1, 1, 0)), flow(&other));
    }

    #[test]
    fn all_fragments_of_a_datagram_go_together() {
        let first = udp4(1, 1, 0x2000);
        let mut later = udp4(1, 1, 0x0010);
        later[34..].fill(0xee);
        assert_eq!(flow(&first), flow(&later));
    }

    #[test]
    fn frames_of_every_kind_and_length_have_a_flow() {
        for kind in [[8, 0], [0x86, 0xdd], [0x88, 0xb5]] {
            let mut frame = [&[7; 12][..], &kind, &[0x45; 60]].concat();
            while frame.pop().is_some() {
                let _ = flow(&frame);
            }
        }
    }
}
