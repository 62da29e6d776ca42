//! A hash table for look-ups per frame: open addressing, seeded, no allocation while it has room.
//!
//! ```text
//!  slot   hash(key) % n ─► │ (k,v) │ (k,v) │ empty │     linear probing; a removal shifts
//!                          └───────┴───────┴───────┘     the rest of its run back
//! ```
//!
//! The standard map is not used: its order is random, hence no two runs alike. This one has no
//! order at all (there is no iterator), and its seed keeps strangers from choosing keys that meet.

/// What can be looked up.
pub trait Key: Copy + Eq {
    /// The key as numbers for the hash: different keys give different numbers, mostly.
    fn words(&self) -> [u64; 3];
}

impl Key for u32 {
    fn words(&self) -> [u64; 3] {
        [u64::from(*self), 0, 0]
    }
}

/// A map from keys to small values.
#[derive(Debug, Clone)]
pub struct Table<K, V> {
    slots: Box<[Option<(K, V)>]>,
    len: usize,
    seed: u64,
}

/// Folds a 128-bit product: every bit of the input reaches every bit of the output.
const fn mix(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    (product >> 64) as u64 ^ product as u64
}

/// The hash of some words, another one for each seed.
pub(crate) fn hash(seed: u64, words: impl Iterator<Item = u64>) -> u64 {
    words.fold(seed, |hash, word| mix(hash ^ word ^ 0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93))
}

impl<K: Key, V: Copy> Table<K, V> {
    /// A table that holds `room` keys without allocating again.
    #[must_use]
    pub fn new(room: usize, seed: u64) -> Self {
        // At most half full: probes stay short.
        let slots = (room.max(4) * 2).next_power_of_two();
        Self { slots: vec![None; slots].into_boxed_slice(), len: 0, seed }
    }

    /// How many keys are in it.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no key.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<V> {
        self.slots[self.find(key)].map(|(_, value)| value)
    }

    /// Puts a value in, and returns the one that was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        if (self.len + 1) * 2 > self.slots.len() {
            self.grow();
        }
        let at = self.find(&key);
        let old = self.slots[at].replace((key, value));
        self.len += usize::from(old.is_none());
        old.map(|(_, value)| value)
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let mut hole = self.find(key);
        let (_, value) = self.slots[hole].take()?;
        self.len -= 1;
        // Shift back what probing pushed past the hole, or its keys would not be found again.
        let mask = self.slots.len() - 1;
        let mut at = (hole + 1) & mask;
        while let Some((key, _)) = self.slots[at] {
            let home = self.home(&key);
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.slots[hole] = self.slots[at].take();
                hole = at;
            }
            at = (at + 1) & mask;
        }
        Some(value)
    }

    fn home(&self, key: &K) -> usize {
        hash(self.seed, key.words().into_iter()) as usize & (self.slots.len() - 1)
    }

    /// The slot of a key, or the empty slot where it would go. There is always an empty slot.
    fn find(&self, key: &K) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = self.home(key);
        while self.slots[at].is_some_and(|(other, _)| other != *key) {
            at = (at + 1) & mask;
        }
        at
    }

    fn grow(&mut self) {
        let mut larger = Self::new(self.slots.len(), self.seed);
        for (key, value) in self.slots.iter().flatten() {
            larger.insert(*key, *value);
        }
        *self = larger;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// All keys meet in one slot.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Colliding(u8);

    impl Key for Colliding {
        fn words(&self) -> [u64; 3] {
            [u64::from(self.0 % 3), 0, 0]
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_ordered_map(seed: u64, steps in prop::collection::vec((any::<bool>(), 0u32..64, any::<u16>()), 0..400)) {
            let mut table = Table::new(4, seed);
            let mut map = BTreeMap::new();
            for (put, key, value) in steps {
                if put {
                    prop_assert_eq!(table.insert(key, value), map.insert(key, value));
                } else {
                    prop_assert_eq!(table.remove(&key), map.remove(&key));
                }
                prop_assert_eq!(table.len(), map.len());
                for key in 0..64 {
                    prop_assert_eq!(table.get(&key), map.get(&key).copied());
                }
            }
        }

        #[test]
        fn keys_that_meet_are_told_apart(steps in prop::collection::vec((any::<bool>(), 0u8..24), 0..300)) {
            let mut table = Table::new(4, 1);
            let mut map = BTreeMap::new();
            for (put, key) in steps {
                if put {
                    prop_assert_eq!(table.insert(Colliding(key), key), map.insert(key, key));
                } else {
                    prop_assert_eq!(table.remove(&Colliding(key)), map.remove(&key));
                }
                for key in 0..24 {
                    prop_assert_eq!(table.get(&Colliding(key)), map.get(&key).copied());
                }
            }
        }
    }
}
