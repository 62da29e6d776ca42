//! Which relayed datagrams were sent away from their destination, so that none is twice.
//!
//! As long as each step leads nearer, nothing can come back to where it was (see
//! [`Distance`](crate::wire::datagram::Distance)). So every circle has a step that does not, and
//! whoever takes it knows: it is enough to remember the datagrams of these steps, which are few. A
//! datagram is itself for ever, for its counter is never used twice; so nothing here grows old, only
//! overwritten.

use super::table::hash;
use crate::wire::datagram::{RELAY_HEADER, SLEEVE_HEADER};

/// How many are remembered. At a hundred thousand a second, all of which are sent away, five of six
/// are still there after 30 ms, and those that are not are found when they come next.
const PLACES: usize = 1 << 14;
/// The ids, and the number of the inner datagram under its key; of QUIC, what its header protects.
const TOLD_BY: core::ops::Range<usize> = 4..RELAY_HEADER + SLEEVE_HEADER;

/// The memory.
#[derive(Debug)]
pub(crate) struct Circles {
    /// By its lower bits, the hash of the last datagram that has them.
    seen: Box<[u64]>,
    seed: u64,
}

impl Circles {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seen: vec![0; PLACES].into(), seed }
    }

    /// Remembers a RELAY datagram; true if it was here before.
    pub(crate) fn again(&mut self, datagram: &[u8]) -> bool {
        let told_by = datagram.get(TOLD_BY).or_else(|| datagram.get(TOLD_BY.start..)).unwrap_or_default();
        let word = |bytes: &[u8]| bytes.iter().fold(0, |word: u64, &byte| word << 8 | u64::from(byte));
        let hash = hash(self.seed, told_by.chunks(8).map(word));
        let place = hash as usize & (PLACES - 1);
        core::mem::replace(&mut self.seen[place], hash) == hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_datagram_is_new_once_whatever_a_relay_changes_in_its_header() {
        let mut circles = Circles::new(7);
        let datagram = |counter: u64| {
            let mut bytes = vec![2; 100];
            bytes[RELAY_HEADER + 8..RELAY_HEADER + 16].copy_from_slice(&counter.to_be_bytes());
            bytes
        };
        for counter in 0..100 {
            let mut bytes = datagram(counter);
            assert!(!circles.again(&bytes), "{counter}");
            bytes[1..4].copy_from_slice(&[9, 1, 7]);
            assert!(circles.again(&bytes), "{counter}");
        }
    }

    #[test]
    fn as_many_as_half_the_places_are_mostly_remembered() {
        let mut circles = Circles::new(7);
        let datagram = |n: usize| [&[0; RELAY_HEADER][..], &n.to_be_bytes(), &[0; 8]].concat();
        (0..PLACES / 2).for_each(|n| assert!(!circles.again(&datagram(n))));
        let known = (0..PLACES / 2).filter(|n| circles.again(&datagram(*n))).count();
        assert!(known > PLACES / 2 * 6 / 10, "{known}");
    }

    #[test]
    fn short_ones_are_told_apart_too() {
        let mut circles = Circles::new(7);
        assert!(!circles.again(&[]));
        assert!(!circles.again(&[1; RELAY_HEADER + 1]));
        assert!(!circles.again(&[2; RELAY_HEADER + 1]));
        assert!(circles.again(&[1; RELAY_HEADER + 1]));
    }
}
