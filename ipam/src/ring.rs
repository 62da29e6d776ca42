//! Who owns which block of a range: a register for each, joined by maximum.
//!
//! ```text
//!  register   order = (term, epoch)   holder = nobody | owner | disputed
//!                      │     └ raised by the owner each time it gives the block away
//!                      └ raised when somebody else than the owner decides
//! ```
//!
//! The join of two registers is the one with the higher order; of equal orders that with a
//! holder; of equal orders with different holders, which no correct peer makes, it is
//! `Disputed`, and nobody gives addresses from such a block. So the join is total, idempotent,
//! commutative and associative, and a whole ring is the join of everything ever heard (ipam
//! I2).
//!
//! Beside the registers a ring knows what this peer *holds*, and may give addresses from: the
//! blocks whose register names its present life and is *settled*, that is, known to a majority of
//! the voters. Epoch 0 is written by voters only, so it says so by itself; a register of a higher
//! epoch is settled once the receiver of the grant has its witnesses (ipam I15).

use core::cell::OnceCell;
use core::fmt;

use minicbor::{Decode, Encode};

use crate::id::{Id, Owner};
use crate::runs::Runs;

/// Age of a register; higher wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Order {
    /// Raised by a decision of others than the owner.
    #[n(0)]
    pub(crate) term: u64,
    /// Raised by the owner's own decision.
    #[n(1)]
    pub(crate) epoch: u64,
}

/// Whom a block belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) enum Holder {
    /// Nobody.
    #[n(0)]
    Nobody,
    /// One life of one peer.
    #[n(1)]
    One(#[n(0)] Owner),
    /// Two that claim the same order: nobody may use it.
    #[n(2)]
    Disputed,
}

impl Holder {
    /// The peer, if there is one.
    pub(crate) fn peer(&self) -> Option<Id> {
        match self {
            Self::One(owner) => Some(owner.peer),
            Self::Nobody | Self::Disputed => None,
        }
    }

    fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nobody, one) | (one, Self::Nobody) => one,
            (one, same) if one == same => one,
            _ => Self::Disputed,
        }
    }
}

/// What is known of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Reg {
    /// How new it is.
    #[n(0)]
    pub(crate) order: Order,
    /// Whose it is.
    #[n(1)]
    pub(crate) holder: Holder,
}

impl Reg {
    /// The register of a block of which nothing is known; the least of all.
    pub(crate) const UNKNOWN: Self = Self { order: Order { term: 0, epoch: 0 }, holder: Holder::Nobody };

    /// The least register that is at least both.
    pub(crate) fn join(self, other: Self) -> Self {
        use core::cmp::Ordering;
        match self.order.cmp(&other.order) {
            Ordering::Greater => self,
            Ordering::Less => other,
            Ordering::Equal => Self { order: self.order, holder: self.holder.join(other.holder) },
        }
    }
}

/// A run of blocks `lo..hi` with one register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RegRun {
    /// First block.
    pub(crate) lo: u32,
    /// The block after the last.
    pub(crate) hi: u32,
    /// The register of each.
    pub(crate) reg: Reg,
}

impl fmt::Display for RegRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {}..{}", self.lo, self.hi)
    }
}

/// What a join changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Merged {
    /// Blocks `lo..hi` with a new register.
    pub(crate) changed: Vec<(u32, u32)>,
    /// Of these, blocks that this peer held until now.
    pub(crate) lost: Vec<(u32, u32)>,
    /// Of these, blocks that are disputed since now.
    pub(crate) disputed: Vec<(u32, u32)>,
    /// Of these, blocks that this peer holds since now.
    pub(crate) gained: Vec<(u32, u32)>,
}

/// Number of parts in which two rings are compared.
pub(crate) const BUCKETS: u32 = 64;

/// The registers of one range, and what this peer holds of it.
#[derive(Debug, Clone)]
pub(crate) struct Ring {
    regs: Runs<Reg>,
    held: Runs<bool>,
    changes: u64,
    /// A hash of each bucket, until something changes.
    digest: OnceCell<Vec<u64>>,
}

impl Ring {
    /// A ring of which nothing is known.
    pub(crate) fn new(blocks: u32) -> Self {
        Self {
            regs: Runs::new(blocks, Reg::UNKNOWN),
            held: Runs::new(blocks, false),
            changes: 0,
            digest: OnceCell::new(),
        }
    }

    /// Number of blocks.
    pub(crate) fn blocks(&self) -> u32 {
        self.regs.end()
    }

    /// How often a register, or what is held, has changed.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// The register of a block.
    pub(crate) fn reg(&self, block: u32) -> Reg {
        *self.regs.get(block)
    }

    /// Whether this peer may use the block.
    pub(crate) fn holds(&self, block: u32) -> bool {
        *self.held.get(block)
    }

    /// The registers of the blocks `lo..hi`.
    pub(crate) fn regs(&self, lo: u32, hi: u32) -> impl Iterator<Item = RegRun> {
        self.regs.over(lo, hi).map(|(lo, hi, &reg)| RegRun { lo, hi, reg })
    }

    /// What of `lo..hi` this peer holds, as `(lo, hi)`.
    pub(crate) fn held(&self, lo: u32, hi: u32) -> impl Iterator<Item = (u32, u32)> {
        self.held.over(lo, hi).filter_map(|(lo, hi, held)| held.then_some((lo, hi)))
    }

    fn touch(&mut self) {
        self.changes += 1;
        self.digest.take();
    }

    /// Joins a register heard from others into the blocks `run.lo..run.hi` of a peer in the life
    /// `me`.
    pub(crate) fn merge(&mut self, run: RegRun, me: Owner) -> Merged {
        let mut merged = Merged::default();
        let mine: Vec<RegRun> = self.regs(run.lo, run.hi).collect();
        for old in mine {
            let new = old.reg.join(run.reg);
            if new == old.reg {
                continue;
            }
            merged.changed.push((old.lo, old.hi));
            if new.holder == Holder::Disputed {
                merged.disputed.push((old.lo, old.hi));
            }
            let mine = new.holder == Holder::One(me) && new.order.epoch == 0;
            for (lo, hi, &held) in self.held.over(old.lo, old.hi) {
                match (held, mine) {
                    (true, false) => merged.lost.push((lo, hi)),
                    (false, true) => merged.gained.push((lo, hi)),
                    _ => {}
                }
            }
            self.touch();
            self.regs.set(old.lo, old.hi, new);
            self.held.set(old.lo, old.hi, mine);
        }
        merged
    }

    /// Writes a register that this peer decided on or was granted, and whether it holds the
    /// blocks from now on.
    pub(crate) fn write(&mut self, run: RegRun, held: bool) {
        self.touch();
        self.regs.set(run.lo, run.hi, run.reg);
        self.held.set(run.lo, run.hi, held);
    }

    /// A new life begins: nothing is held.
    pub(crate) fn let_go(&mut self) {
        self.touch();
        self.held.set(0, self.blocks(), false);
    }

    /// Nothing is known any more.
    pub(crate) fn forget(&mut self) {
        self.touch();
        self.regs.set(0, self.blocks(), Reg::UNKNOWN);
        self.held.set(0, self.blocks(), false);
    }

    /// The blocks of a bucket, `lo..hi`; empty if there are fewer blocks than buckets.
    pub(crate) fn bucket(&self, bucket: u32) -> (u32, u32) {
        let border = |at: u32| {
            let at = u64::from(at) * u64::from(self.blocks()) / u64::from(BUCKETS);
            u32::try_from(at).unwrap_or(u32::MAX)
        };
        (border(bucket), border(bucket + 1))
    }

    /// The bucket that a block is in.
    fn bucket_of(&self, block: u32) -> u32 {
        let blocks = u64::from(self.blocks());
        let at = (u64::from(BUCKETS) * (u64::from(block) + 1) - 1) / blocks;
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    /// The buckets that have a block of `lo..hi`.
    pub(crate) fn buckets_of(&self, lo: u32, hi: u32) -> impl Iterator<Item = u32> {
        let hi = hi.min(self.blocks());
        let buckets = if lo < hi { self.bucket_of(lo)..self.bucket_of(hi - 1) + 1 } else { 0..0 };
        // Of few blocks, some buckets have none.
        buckets.filter(|&bucket| {
            let (from, to) = self.bucket(bucket);
            from < to
        })
    }

    /// A hash of each bucket: equal rings have equal hashes.
    pub(crate) fn digest(&self) -> &[u64] {
        self.digest.get_or_init(|| (0..BUCKETS).map(|bucket| self.hash_of(bucket)).collect())
    }

    fn hash_of(&self, bucket: u32) -> u64 {
        let (lo, hi) = self.bucket(bucket);
        let mut hash = Hash::default();
        for run in self.regs(lo, hi) {
            hash.run(run);
        }
        hash.finish()
    }
}

/// FNV-1a over words instead of bytes, with more mixing. It finds differences between rings of
/// peers that trust each other; it need not resist an attacker, who could as well send a wrong
/// ring.
#[derive(Debug)]
pub(crate) struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    /// Adds a word.
    pub(crate) fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93);
        self.0 ^= self.0 >> 32;
    }

    fn run(&mut self, run: RegRun) {
        self.word(u64::from(run.lo) << 32 | u64::from(run.hi));
        self.word(run.reg.order.term);
        self.word(run.reg.order.epoch);
        match run.reg.holder {
            Holder::Nobody => self.word(0),
            Holder::Disputed => self.word(2),
            Holder::One(owner) => {
                self.word(1);
                let peer = u128::from_be_bytes(owner.peer.0);
                self.word((peer >> 64) as u64);
                self.word(peer as u64);
                self.word(owner.life);
            }
        }
    }

    /// The hash.
    pub(crate) fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ME: Owner = Owner { peer: Id([2; 16]), life: 1 };

    fn holder() -> impl Strategy<Value = Holder> {
        prop_oneof![
            Just(Holder::Nobody),
            Just(Holder::Disputed),
            (0u8..3, 0u64..2).prop_map(|(peer, life)| Holder::One(Owner { peer: Id([peer; 16]), life })),
        ]
    }

    fn run() -> impl Strategy<Value = RegRun> {
        (0u32..100, 1u32..60, 0u64..3, 0u64..3, holder()).prop_map(|(lo, len, term, epoch, holder)| RegRun {
            lo,
            hi: lo + len,
            reg: Reg { order: Order { term, epoch }, holder },
        })
    }

    fn ring() -> impl Strategy<Value = Ring> {
        proptest::collection::vec(run(), 0..20).prop_map(|runs| {
            let mut ring = Ring::new(100);
            for run in runs {
                ring.merge(run, ME);
            }
            ring
        })
    }

    impl PartialEq for Ring {
        fn eq(&self, other: &Self) -> bool {
            self.regs == other.regs && self.held == other.held
        }
    }

    fn joined(one: &Ring, other: &Ring) -> Ring {
        let mut result = one.clone();
        for run in other.regs(0, other.blocks()) {
            result.merge(run, ME);
        }
        result
    }

    proptest! {
        #[test]
        fn merge_is_commutative_associative_and_idempotent(a in ring(), b in ring(), c in ring()) {
            prop_assert_eq!(joined(&a, &b), joined(&b, &a));
            prop_assert_eq!(joined(&joined(&a, &b), &c), joined(&a, &joined(&b, &c)));
            prop_assert_eq!(joined(&a, &a), a.clone());
            prop_assert_eq!(joined(&joined(&a, &b), &b), joined(&a, &b));
        }

        #[test]
        fn digests_differ_exactly_where_rings_do(a in ring(), b in ring()) {
            let (left, right) = (a.digest(), b.digest());
            for bucket in 0..BUCKETS {
                let (lo, hi) = a.bucket(bucket);
                let same = a.regs(lo, hi).eq(b.regs(lo, hi));
                prop_assert_eq!(same, left[bucket as usize] == right[bucket as usize]);
            }
        }

        #[test]
        fn a_merge_reports_what_it_changed_and_holds_only_what_is_settled(
            start in ring(), held in 0u32..100, run in run(),
        ) {
            let mut ring = start;
            let keep = RegRun { lo: held, hi: held + 5, reg: ring.reg(held) };
            ring.write(keep, true);
            let before = ring.clone();
            let merged = ring.merge(run, ME);
            for block in 0..100 {
                let changed = merged.changed.iter().any(|&(lo, hi)| lo <= block && block < hi);
                prop_assert_eq!(changed, before.reg(block) != ring.reg(block));
                prop_assert!(ring.reg(block).order >= before.reg(block).order);
                let settled = ring.reg(block).order.epoch == 0 && ring.reg(block).holder == Holder::One(ME);
                prop_assert_eq!(ring.holds(block), if changed { settled } else { before.holds(block) });
                let among = |list: &[(u32, u32)]| list.iter().any(|&(lo, hi)| lo <= block && block < hi);
                prop_assert_eq!(among(&merged.lost), before.holds(block) && !ring.holds(block));
                prop_assert_eq!(among(&merged.gained), !before.holds(block) && ring.holds(block));
            }
        }
    }

    #[test]
    fn buckets_cover_every_block_once() {
        for blocks in [1, 2, 63, 64, 100, 256, 16_384] {
            let ring = Ring::new(blocks);
            let mut next = 0;
            for bucket in 0..BUCKETS {
                let (lo, hi) = ring.bucket(bucket);
                assert_eq!(lo, next);
                assert!((lo..hi).all(|block| ring.bucket_of(block) == bucket));
                next = hi;
            }
            assert_eq!(next, blocks);
            let all = (0..BUCKETS).filter(|&bucket| ring.bucket(bucket).0 < ring.bucket(bucket).1);
            assert!(ring.buckets_of(0, blocks).eq(all));
            assert_eq!(ring.buckets_of(blocks, blocks + 1).count(), 0);
        }
    }
}
