//! All randomness of a run, from its seed: one independent stream for each purpose, so that a
//! change in one (more traffic, say) does not reshuffle another (the faults).

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// One stream of random numbers.
#[derive(Debug)]
pub(super) struct Dice(ChaCha8Rng);

impl Dice {
    /// The stream of a run that serves this purpose.
    pub(super) fn new(seed: u64, purpose: &str) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        let name = purpose.as_bytes();
        let taken = name.len().min(24);
        key[8..8 + taken].copy_from_slice(&name[..taken]);
        Self(ChaCha8Rng::from_seed(key))
    }

    /// 64 random bits.
    pub(super) fn word(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound` (0 if `bound` is 0). The bias of the multiplication is below 2^-32
    /// for the bounds in use here.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.word()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// A number from `low` to `high`, without `high`.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low))
    }

    /// An index into something of this length.
    pub(super) fn index(&mut self, length: usize) -> usize {
        let bound = u64::try_from(length).unwrap_or(u64::MAX);
        usize::try_from(self.below(bound)).unwrap_or(0)
    }

    /// True with this probability, in thousandths.
    pub(super) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// Random bytes.
    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// Fills a buffer with random bytes.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }

    /// Puts a slice in random order.
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.index(last + 1);
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_for_a_seed_and_differ_between_purposes() {
        let draw = |seed, purpose| Dice::new(seed, purpose).bytes::<16>();
        assert_eq!(draw(7, "net"), draw(7, "net"));
        assert_ne!(draw(7, "net"), draw(7, "faults"));
        assert_ne!(draw(7, "net"), draw(8, "net"));
    }

    #[test]
    fn a_draw_stays_below_its_bound_and_reaches_both_ends() {
        let mut dice = Dice::new(1, "test");
        let drawn: Vec<u64> = (0..1000).map(|_| dice.between(3, 6)).collect();
        assert!(drawn.iter().all(|n| (3..6).contains(n)));
        assert!((3..6).all(|n| drawn.contains(&n)));
        assert_eq!(dice.below(0), 0);
    }
}
