//! Which numbers were seen already: a sliding window after RFC 6479.
//!
//! ```text
//!  words   │ n+1 … │   a ring: number s is bit s % 64 of word (s / 64) % WORDS
//!          └──▲────┘   the word ahead of the newest is always the one that is cleared next,
//!           newest     so (WORDS − 1) × 64 numbers back from the newest are told apart
//! ```
//!
//! RFC 6479 saves the shifting of the classic bitmap: moving on clears whole words.

/// What a window knows of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// First time, and higher than every number before.
    Newest,
    /// First time.
    New,
    /// It was here before.
    Duplicate,
    /// So far behind the newest that it cannot be told: treated like a duplicate.
    TooOld,
}

impl Seen {
    /// Whether what bears the number may be used.
    #[must_use]
    pub const fn fresh(self) -> bool {
        matches!(self, Self::Newest | Self::New)
    }
}

/// A window over `WORDS × 64` numbers, of which the last `(WORDS − 1) × 64` are usable. `WORDS`
/// is a power of two, at least 2.
#[derive(Debug, Clone)]
pub struct Window<const WORDS: usize> {
    words: [u64; WORDS],
    /// One more than the newest number; 0 before the first.
    next: u64,
}

/// 8192 bits, of which 8128 are usable: the replay window of a session (sleeve S6).
pub type ReplayWindow = Window<128>;
/// 2048 bits, of which 1984 are usable: the floods of one origin (sleeve S17).
pub type FloodWindow = Window<32>;

impl<const WORDS: usize> Default for Window<WORDS> {
    fn default() -> Self {
        const {
            assert!(WORDS.is_power_of_two() && WORDS >= 2);
        }
        Self { words: [0; WORDS], next: 0 }
    }
}

impl<const WORDS: usize> Window<WORDS> {
    /// How far behind the newest a number may be.
    pub const USABLE: u64 = (WORDS as u64 - 1) * 64;

    /// Notes a number. `u64::MAX` is never fresh: its successor would not exist.
    pub fn see(&mut self, number: u64) -> Seen {
        if number == u64::MAX || number.saturating_add(Self::USABLE) < self.next {
            return Seen::TooOld;
        }
        let newest = number >= self.next;
        if newest {
            self.advance(number);
        }
        let word = &mut self.words[Self::place(number / 64)];
        let bit = 1 << (number % 64);
        if *word & bit != 0 {
            return Seen::Duplicate;
        }
        *word |= bit;
        if newest { Seen::Newest } else { Seen::New }
    }

    /// Clears the words between the newest number and `number`, and makes that the newest.
    fn advance(&mut self, number: u64) {
        let from = self.next.checked_sub(1).map_or(0, |last| last / 64 + 1);
        let to = number / 64;
        // Further than once around the ring there is nothing more to clear.
        let count = (to + 1).saturating_sub(from).min(WORDS as u64);
        for word in (to + 1 - count)..=to {
            self.words[Self::place(word)] = 0;
        }
        self.next = number + 1;
    }

    const fn place(word: u64) -> usize {
        (word % WORDS as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const USABLE: u64 = ReplayWindow::USABLE;

    fn run(steps: &[(u64, bool)]) {
        let mut window = ReplayWindow::default();
        for (i, &(number, fresh)) in steps.iter().enumerate() {
            let seen = window.see(number);
            assert_eq!(seen.fresh(), fresh, "step {i}: {number} was {seen:?}");
        }
    }

    #[test]
    fn numbers_near_the_start_count_once() {
        run(&[(0, true), (1, true), (1, false), (9, true), (8, true), (7, true), (7, false), (0, false)]);
    }

    #[test]
    fn the_edge_of_the_window_is_exact() {
        run(&[
            (USABLE, true),
            (USABLE - 1, true),
            (USABLE - 1, false),
            (USABLE - 2, true),
            (1, true),
            (1, false),
            (2, true),
            (0, false), // was too far behind at once: USABLE + 1 numbers apart
            (USABLE + 16, true),
            (3, false),
            (USABLE + 16, false),
            (USABLE * 4, true),
            (USABLE * 4 - (USABLE - 1), true),
            (10, false),
            (USABLE * 4 - USABLE, false),
            (USABLE * 4 - (USABLE + 1), false),
            (USABLE * 4 - (USABLE - 2), true),
            (USABLE * 4 + 1 - USABLE, false),
            (0, false),
        ]);
    }

    #[test]
    fn a_leap_forgets_all_that_is_behind_and_only_that() {
        let mut window = ReplayWindow::default();
        for number in 0..20_000 {
            assert_eq!(window.see(number), Seen::Newest);
        }
        assert_eq!(window.see(1 << 40), Seen::Newest);
        for number in 0..20_000 {
            assert_eq!(window.see(number), Seen::TooOld);
        }
        for number in (1 << 40) + 1 - USABLE..1 << 40 {
            assert_eq!(window.see(number), Seen::New);
            assert_eq!(window.see(number), Seen::Duplicate);
        }
    }

    #[test]
    fn backwards_through_a_whole_window_each_counts_once() {
        let mut window = ReplayWindow::default();
        for number in (1..=USABLE).rev() {
            assert!(window.see(number).fresh());
        }
        for number in 0..=USABLE {
            assert!(!window.see(number).fresh());
        }
    }

    #[test]
    fn the_highest_numbers_neither_overflow_nor_count() {
        let mut window = ReplayWindow::default();
        assert_eq!(window.see(u64::MAX - 1), Seen::Newest);
        assert_eq!(window.see(u64::MAX - 1), Seen::Duplicate);
        assert_eq!(window.see(u64::MAX), Seen::TooOld);
        assert_eq!(window.see(0), Seen::TooOld);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set_of_all_numbers(steps in prop::collection::vec((0u64..400, any::<bool>()), 1..600)) {
            let mut window = Window::<4>::default();
            let mut all = BTreeSet::new();
            let mut top = 0u64;
            for (step, back) in steps {
                let number = if back { top.saturating_sub(step) } else { top + step / 8 };
                let reach = all.last().is_none_or(|&last: &u64| number + Window::<4>::USABLE > last);
                let expect = reach && all.insert(number);
                prop_assert_eq!(window.see(number).fresh(), expect);
                top = top.max(number);
            }
        }
    }
}
