//! A value for every block, kept as runs of equal values.
//!
//! ```text
//!  blocks  0 1 2 3 4 5 6 7           runs  0→a  3→b  4→a     (end 8)
//!          a a a b a a a a
//! ```
//!
//! Ownership is a few long runs in practice, so that all questions about 16,384 blocks cost no
//! more than the number of runs. Neighbouring runs always differ: equal content has one form.

/// A total map from `0..end` to values: where each run starts, in order. The first starts at 0.
///
/// A sorted list instead of a tree: most questions are about few runs or about all of them, and a
/// change of a whole ring comes in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Runs<V> {
    end: u32,
    starts: Vec<(u32, V)>,
}

impl<V: Clone + Eq> Runs<V> {
    /// The same value everywhere in `0..end`; `end` is at least 1.
    pub(crate) fn new(end: u32, value: V) -> Self {
        Self { end: end.max(1), starts: vec![(0, value)] }
    }

    /// The number of blocks.
    pub(crate) fn end(&self) -> u32 {
        self.end
    }

    /// Number of the run that a block is in; beyond the end the last one.
    fn index(&self, at: u32) -> usize {
        self.starts.partition_point(|&(start, _)| start <= at).saturating_sub(1)
    }

    /// The value of a block; beyond the end that of the last one.
    pub(crate) fn get(&self, at: u32) -> &V {
        &self.starts[self.index(at)].1
    }

    /// The runs that overlap `lo..hi`, cut to it: `(lo, hi, value)`.
    pub(crate) fn over(&self, lo: u32, hi: u32) -> impl Iterator<Item = (u32, u32, &V)> {
        let hi = hi.min(self.end);
        let first = if lo < hi { self.index(lo) } else { self.starts.len() };
        let mut runs = self.starts[first..].iter().take_while(move |&&(start, _)| start < hi).peekable();
        core::iter::from_fn(move || {
            let (start, value) = runs.next()?;
            let end = runs.peek().map_or(hi, |&&(next, _)| next);
            Some((lo.max(*start), end, value))
        })
    }

    /// Gives the blocks `lo..hi` a value.
    pub(crate) fn set(&mut self, lo: u32, hi: u32, value: V) {
        let hi = hi.min(self.end);
        if lo >= hi {
            return;
        }
        let first = self.starts.partition_point(|&(start, _)| start < lo);
        let mut after = self.index(hi - 1) + 1;
        let (_, last) = &self.starts[after - 1];
        let joins_before = first > 0 && self.starts[first - 1].1 == value;
        // What is left of the last run that is covered, unless it is covered whole or goes on as
        // the new one.
        let rest = match self.starts.get(after) {
            Some(&(start, _)) if start == hi => None,
            None if hi == self.end => None,
            _ => (*last != value).then(|| (hi, last.clone())),
        };
        if rest.is_none() && self.starts.get(after).is_some_and(|(start, next)| *start == hi && *next == value) {
            after += 1;
        }
        let run = (!joins_before).then_some((lo, value));
        self.starts.splice(first..after, run.into_iter().chain(rest));
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
