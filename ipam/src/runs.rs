//! A value for every block, kept as runs of equal values.
//!
//! ```text
//!  blocks  0 1 2 3 4 5 6 7           runs  0→a  3→b  4→a     (end 8)
//!          a a a b a a a a
//! ```
//!
//! Ownership is a few long runs in practice, so that all questions about 16,384 blocks cost no
//! more than the number of runs. Neighbouring runs always differ: equal content has one form.

use std::collections::BTreeMap;

/// A total map from `0..end` to values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Runs<V> {
    end: u32,
    starts: BTreeMap<u32, V>,
}

impl<V: Clone + Eq> Runs<V> {
    /// The same value everywhere in `0..end`; `end` is at least 1.
    pub(crate) fn new(end: u32, value: V) -> Self {
        Self { end: end.max(1), starts: BTreeMap::from([(0, value)]) }
    }

    /// The number of blocks.
    pub(crate) fn end(&self) -> u32 {
        self.end
    }

    /// The value of a block; beyond the end that of the last one.
    pub(crate) fn get(&self, at: u32) -> &V {
        let (_, value) = self.starts.range(..=at).next_back().expect("the run that starts at 0 is never removed");
        value
    }

    /// The runs that overlap `lo..hi`, cut to it: `(lo, hi, value)`.
    pub(crate) fn over(&self, lo: u32, hi: u32) -> impl Iterator<Item = (u32, u32, &V)> {
        let hi = hi.min(self.end);
        let first = (lo < hi).then(|| self.starts.range(..=lo).next_back()).flatten();
        let from = lo.saturating_add(1).min(hi);
        let rest = self.starts.range(from..hi);
        let mut runs = first
            .map(|(_, value)| (lo, value))
            .into_iter()
            .chain(rest.map(|(&start, value)| (start, value)))
            .peekable();
        core::iter::from_fn(move || {
            let (start, value) = runs.next()?;
            let end = runs.peek().map_or(hi, |&(next, _)| next);
            Some((start, end, value))
        })
    }

    /// Gives the blocks `lo..hi` a value.
    pub(crate) fn set(&mut self, lo: u32, hi: u32, value: V) {
        let hi = hi.min(self.end);
        if lo >= hi {
            return;
        }
        if hi < self.end && !self.starts.contains_key(&hi) {
            let after = self.get(hi).clone();
            self.starts.insert(hi, after);
        }
        let inside: Vec<u32> = self.starts.range(lo..hi).map(|(&start, _)| start).collect();
        for start in inside {
            self.starts.remove(&start);
        }
        self.starts.insert(lo, value);
        self.join_at(lo);
        self.join_at(hi);
    }

    /// Removes the border at `at` if both sides are equal.
    fn join_at(&mut self, at: u32) {
        if at == 0 || at >= self.end {
            return;
        }
        if self.get(at - 1) == self.get(at) {
            self.starts.remove(&at);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_behave_like_an_array_and_stay_coalesced(
            sets in proptest::collection::vec((0u32..20, 0u32..22, 0u8..3), 0..40),
            lo in 0u32..20, hi in 0u32..22,
        ) {
            let mut runs = Runs::new(20, 0u8);
            let mut plain = [0u8; 20];
            for (lo, hi, value) in sets {
                runs.set(lo, hi, value);
                for at in lo..hi.min(20) {
                    plain[at as usize] = value;
                }
            }
            for (at, value) in plain.iter().enumerate() {
                prop_assert_eq!(runs.get(at as u32), value);
            }
            let flat: Vec<u8> = runs.over(lo, hi)
                .flat_map(|(lo, hi, value)| (lo..hi).map(move |_| *value)).collect();
            let wanted = plain.get(lo as usize..hi.min(20) as usize).unwrap_or(&[]);
            prop_assert_eq!(&flat[..], wanted);
            let all: Vec<u8> = runs.over(0, 20).map(|(_, _, value)| *value).collect();
            prop_assert!(all.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }
}
