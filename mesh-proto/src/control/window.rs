//! Which of an origin's application messages were seen already: a window of [`WIDTH`] numbers.

use crate::id::Incarnation;

/// Numbers older than the newest by more than this are taken as seen.
const WIDTH: u64 = 1024;

/// The window of one origin.
#[derive(Debug)]
pub(crate) struct Window {
    incarnation: Incarnation,
    newest: u64,
    seen: [u64; (WIDTH / 64) as usize],
}

impl Window {
    pub(crate) const fn new(incarnation: Incarnation) -> Self {
        Self { incarnation, newest: 0, seen: [0; (WIDTH / 64) as usize] }
    }

    /// Whether that number was seen already, without changing anything.
    pub(crate) fn has(&self, incarnation: Incarnation, seq: u64) -> bool {
        let (word, bit) = slot(seq);
        incarnation < self.incarnation
            || incarnation == self.incarnation
                && seq <= self.newest
                && (seq.saturating_add(WIDTH) <= self.newest || self.seen[word] & bit != 0)
    }

    /// Whether that number comes for the first time; from now on it is seen. A new incarnation
    /// begins anew, an older one is all seen.
    pub(crate) fn is_first(&mut self, incarnation: Incarnation, seq: u64) -> bool {
        if incarnation < self.incarnation {
            return false;
        }
        if incarnation > self.incarnation {
            *self = Self::new(incarnation);
        }
        if seq.saturating_add(WIDTH) <= self.newest {
            return false;
        }
        if seq > self.newest {
            // Slots that the window moves over are free again.
            let steps = (seq - self.newest).min(WIDTH);
            for passed in (seq - steps + 1)..=seq {
                self.set(passed, false);
            }
            self.newest = seq;
        }
        let first = self.seen[slot(seq).0] & slot(seq).1 == 0;
        self.set(seq, true);
        first
    }

    const fn set(&mut self, seq: u64, to: bool) {
        let (word, bit) = slot(seq);
        if to {
            self.seen[word] |= bit;
        } else {
            self.seen[word] &= !bit;
        }
    }
}

const fn slot(seq: u64) -> (usize, u64) {
    let at = seq % WIDTH;
    ((at / 64) as usize, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_new_incarnation_begins_anew_and_an_old_one_is_over() {
        let mut window = Window::new(Incarnation(1));
        assert!(window.is_first(Incarnation(1), 5));
        assert!(window.is_first(Incarnation(2), 5));
        assert!(!window.is_first(Incarnation(1), 6));
    }

    #[test]
    fn the_largest_number_is_no_overflow() {
        let mut window = Window::new(Incarnation(1));
        assert!(window.is_first(Incarnation(1), u64::MAX - WIDTH));
        assert!(window.is_first(Incarnation(1), u64::MAX));
        assert!(!window.is_first(Incarnation(1), u64::MAX));
        assert!(!window.is_first(Incarnation(1), 1));
    }

    proptest! {
        #[test]
        fn within_the_window_it_is_a_set(list in proptest::collection::vec(0u64..3000, 0..200)) {
            let (mut window, mut set, mut newest) = (Window::new(Incarnation(0)), BTreeSet::new(), 0);
            for seq in list {
                newest = newest.max(seq);
                let expected = seq + WIDTH > newest && set.insert(seq);
                prop_assert_eq!(window.is_first(Incarnation(0), seq), expected);
            }
        }
    }
}
