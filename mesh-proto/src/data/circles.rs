//! Which datagrams were relayed here, so that none is twice.
//!
//! While tables disagree, three peers and more may hand a datagram round. Whoever gets it again with
//! fewer hops left knows, so it is enough that each relay remembers what it has sent on. (With as
//! many hops it is a copy that was made before, or was sent again by its maker.) A datagram is itself
//! for ever, for its counter is never used twice; so nothing here grows old, only overwritten.

use super::table::hash;
use crate::wire::datagram::{RELAY_HEADER, SLEEVE_HEADER, TAG};

/// How many are remembered: the last 0.6 s of a hundred thousand a second, of ten times as many 60 ms.
/// What is on its way for longer has its hops.
const PLACES: usize = 1 << 16;
const PLACE_BITS: u64 = PLACES as u64 - 1;
/// The ids, and the number of a SLEEVE datagram under its key.
const HEADERS: core::ops::Range<usize> = 4..RELAY_HEADER + SLEEVE_HEADER;

/// The memory.
#[derive(Debug)]
pub(crate) struct Circles {
    /// By the lower bits of its hash, the last datagram that has them: the others, and its hops.
    seen: Box<[u64]>,
    seed: u64,
}

impl Circles {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seen: vec![0; PLACES].into(), seed }
    }

    /// Remembers a RELAY datagram that came with so many hops left; true if it was here before and
    /// has come round.
    pub(crate) fn again(&mut self, hops: u8, datagram: &[u8]) -> bool {
        let headers = datagram.get(HEADERS).or_else(|| datagram.get(HEADERS.start..)).unwrap_or_default();
        // QUIC's headers may be alike, but not what the seal ends with.
        let end = datagram.last_chunk::<TAG>().map_or(&[][..], |end| end);
        let word = |bytes: &[u8]| bytes.iter().fold(0, |word: u64, &byte| word << 8 | u64::from(byte));
        let hash = hash(self.seed, headers.chunks(8).chain(end.chunks(8)).map(word));
        let place = hash as usize & (PLACES - 1);
        let others = hash & !PLACE_BITS;
        let before = core::mem::replace(&mut self.seen[place], others | u64::from(hops));
        before & !PLACE_BITS == others && u64::from(hops) < before & PLACE_BITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_new_once(mut datagram: Vec<u8>, circles: &mut Circles) {
        assert!(!circles.again(32, &datagram), "{datagram:?}");
        // What a relay changes.
        datagram[1] = 9;
        assert!(circles.again(29, &datagram), "{datagram:?}");
        assert!(!circles.again(29, &datagram), "{datagram:?}");
        assert!(circles.again(1, &datagram), "{datagram:?}");
    }

    #[test]
    fn sleeve_is_told_apart_by_its_counter_and_quic_by_its_seal() {
        let mut circles = Circles::new(7);
        for n in 0..100u64 {
            for place in [RELAY_HEADER + 8, 100 - 8] {
                let mut datagram = vec![2; 100];
                datagram[place..place + 8].copy_from_slice(&n.to_be_bytes());
                assert_new_once(datagram, &mut circles);
            }
        }
    }

    #[test]
    fn as_many_as_half_the_places_are_mostly_remembered() {
        let mut circles = Circles::new(7);
        let datagram = |n: usize| [&[0; RELAY_HEADER][..], &n.to_be_bytes(), &[0; 8]].concat();
        (0..PLACES / 2).for_each(|n| assert!(!circles.again(9, &datagram(n))));
        let known = (0..PLACES / 2).filter(|n| circles.again(6, &datagram(*n))).count();
        // So many have a place of their own: e to the power of minus a half.
        assert!((PLACES * 29 / 100..PLACES * 31 / 100).contains(&known), "{known}");
    }

    #[test]
    fn short_ones_are_told_apart_too() {
        let mut circles = Circles::new(7);
        assert!(!circles.again(9, &[]));
        for first in [1, 2] {
            assert_new_once(vec![first; RELAY_HEADER + 1], &mut circles);
        }
    }
}
