//! The addresses given from a range, and those freed too recently to be given again.
//!
//! ```text
//!  free ──allocate, claim──► given ──free──► cooling ──30 s──► free
//! ```
//!
//! The lowest free address is given first, which keeps the upper blocks empty, so that they can
//! be given away.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use ipnet::IpNet;

use crate::id::Id;
use crate::keep::Keeper;
use crate::range::{Range, is_reserved_in};
use crate::ring::Ring;

/// How long a freed address is not given again, so that neighbours forget it.
pub(crate) const REUSE_DELAY: Duration = Duration::from_secs(30);

/// An address that somebody has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    /// Whose it is.
    pub(crate) owner: String,
    /// The range, or part of one, that was asked for.
    pub(crate) net: IpNet,
    /// When; `None` if before this start.
    pub(crate) since: Option<Duration>,
    /// The write before which nobody may be told; 0 if its owner had it before.
    pub(crate) batch: u64,
}

/// The addresses of one range, by offset.
#[derive(Debug, Clone, Default)]
pub(crate) struct Space {
    given: BTreeMap<u128, Given>,
    cooling: BTreeMap<u128, Duration>,
    /// The cooling addresses in the order in which they will be free; entries whose address was
    /// freed again later are skipped.
    queue: VecDeque<(Duration, u128)>,
    /// Runs of addresses that other peers keep, by the first: the last, and who.
    kept: BTreeMap<u128, (u128, Keeper)>,
    /// No address below it is free.
    hint: u128,
}

impl Space {
    /// Who has an address.
    pub(crate) fn given(&self, offset: u128) -> Option<&Given> {
        self.given.get(&offset)
    }

    /// All given addresses, in order.
    pub(crate) fn all_given(&self) -> impl Iterator<Item = (u128, &Given)> {
        self.given.iter().map(|(&offset, given)| (offset, given))
    }

    /// The given addresses of `first..=last`, in order.
    pub(crate) fn given_in(&self, first: u128, last: u128) -> impl Iterator<Item = (u128, &Given)> {
        self.given.range(first..=last).map(|(&offset, given)| (offset, given))
    }

    /// All addresses that are given or cooling, in order.
    pub(crate) fn busy(&self) -> impl Iterator<Item = u128> {
        let mut all: Vec<u128> = self.given.keys().chain(self.cooling.keys()).copied().collect();
        all.sort_unstable();
        all.into_iter()
    }

    /// Whether one of the addresses `first..=last` is given or cooling.
    pub(crate) fn is_busy(&self, first: u128, last: u128) -> bool {
        self.given.range(first..=last).next().is_some() || self.cooling.range(first..=last).next().is_some()
    }

    /// Whether an address is neither given nor cooling.
    fn is_free(&self, offset: u128) -> bool {
        !self.given.contains_key(&offset) && !self.cooling.contains_key(&offset)
    }

    /// What others keep from now on; whether that is something else than before.
    pub(crate) fn keep(&mut self, kept: BTreeMap<u128, (u128, Keeper)>) -> bool {
        let before = self.kept.first_key_value().map(|(&first, _)| first);
        let other = kept != self.kept;
        self.kept = kept;
        self.hint = before.filter(|_| other).map_or(self.hint, |first| self.hint.min(first));
        other
    }

    /// What others keep: first, last, who.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (u128, u128, Keeper)> {
        self.kept.iter().map(|(&first, &(last, keeper))| (first, last, keeper))
    }

    /// The end of the kept run that an address is in, and who keeps it.
    pub(crate) fn kept_at(&self, offset: u128) -> Option<(u128, Keeper)> {
        let (_, &(last, keeper)) = self.kept.range(..=offset).next_back()?;
        (offset <= last).then_some((last, keeper))
    }

    /// Whether all that is in use of a block is kept by one other peer.
    pub(crate) fn is_only_kept_by(&self, range: &Range, block: u32, peer: Id) -> bool {
        let (first, last) = (range.first_of(block), range.first_of(block + 1) - 1);
        let before = self.kept_at(first).map(|(_, keeper)| keeper);
        let mut keepers = before.into_iter().chain(self.kept.range(first..=last).map(|(_, &(_, keeper))| keeper));
        keepers.all(|keeper| keeper == Some(peer)) && !self.is_busy(first, last)
    }

    /// Number of given addresses.
    pub(crate) fn used(&self) -> u128 {
        self.given.len() as u128
    }

    /// Number of freed addresses that may not be given yet.
    pub(crate) fn cooling(&self) -> u128 {
        self.cooling.len() as u128
    }

    /// When the first cooling address can be given again.
    pub(crate) fn next_cooled(&self) -> Option<Duration> {
        self.queue.front().map(|&(until, _)| until)
    }

    /// Records an address as given.
    pub(crate) fn give(&mut self, offset: u128, given: Given) {
        self.cooling.remove(&offset);
        self.given.insert(offset, given);
    }

    /// Takes an address back; it can be given again at `until`.
    pub(crate) fn release(&mut self, offset: u128, until: Duration) -> Option<Given> {
        let given = self.given.remove(&offset)?;
        self.cool(offset, until);
        Some(given)
    }

    /// Takes back an address that nobody ever heard of; it can be given again at once.
    pub(crate) fn forget(&mut self, offset: u128) -> Option<Given> {
        let given = self.given.remove(&offset)?;
        self.hint = self.hint.min(offset);
        Some(given)
    }

    /// Records an address as freed.
    pub(crate) fn cool(&mut self, offset: u128, until: Duration) {
        self.cooling.insert(offset, until);
        self.queue.push_back((until, offset));
    }

    /// The addresses that are free again at `now`.
    pub(crate) fn cooled(&mut self, now: Duration) -> Vec<u128> {
        let mut cooled = Vec::new();
        while let Some(&(until, offset)) = self.queue.front() {
            if until > now {
                break;
            }
            self.queue.pop_front();
            if self.cooling.get(&offset) == Some(&until) {
                self.cooling.remove(&offset);
                self.hint = self.hint.min(offset);
                cooled.push(offset);
            }
        }
        cooled
    }

    /// Addresses at `first` and above have become available.
    pub(crate) fn gained(&mut self, first: u128) {
        self.hint = self.hint.min(first);
    }

    /// The lowest address of `net` that can be given from the blocks held.
    pub(crate) fn lowest_free(&mut self, range: &Range, ring: &Ring, net: IpNet) -> Option<u128> {
        let (first, last) = range.span(net)?;
        let whole = net == range.net();
        let found = self.search(range, ring, net, first.max(self.hint), first, last);
        if whole {
            self.hint = found.unwrap_or(range.len());
        }
        found
    }

    fn search(&self, range: &Range, ring: &Ring, net: IpNet, from: u128, first: u128, last: u128) -> Option<u128> {
        if from > last {
            return None;
        }
        for (lo, hi) in ring.held(range.block_of(from), range.block_of(last) + 1) {
            let mut at = from.max(range.first_of(lo));
            let end = last.min(range.first_of(hi) - 1);
            while at <= end {
                if let Some((kept, _)) = self.kept_at(at) {
                    at = kept + 1;
                    continue;
                }
                let reserved = range.is_reserved(at) || is_reserved_in(net, at, first, last);
                if !reserved && self.is_free(at) {
                    return Some(at);
                }
                at += 1;
            }
        }
        None
    }

    /// Runs `lo..hi` of held, empty blocks with something to give, in `lo..hi`, in order.
    pub(crate) fn empty_blocks(&self, range: &Range, ring: &Ring, lo: u32, hi: u32) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for (lo, hi) in ring.held(lo, hi) {
            let mut at = lo;
            while at < hi {
                // The next block that is in use ends the run of empty ones.
                let busy = self.next_busy(range, at).map_or(hi, |block| block.min(hi));
                runs.extend(trim_useless(range, at, busy));
                at = busy + 1;
            }
        }
        runs
    }

    /// The first block at or after `block` with an address in use.
    fn next_busy(&self, range: &Range, block: u32) -> Option<u32> {
        let from = range.first_of(block);
        let given = self.given.range(from..).next().map(|(&offset, _)| offset);
        let cooling = self.cooling.range(from..).next().map(|(&offset, _)| offset);
        // Whoever gets the block may not have heard of them yet.
        let kept = self.kept_at(from).map(|_| from).or_else(|| self.kept.range(from..).next().map(|(&first, _)| first));
        let first = [given, cooling, kept].into_iter().flatten().min()?;
        Some(range.block_of(first))
    }
}

/// Cuts off blocks at the ends of the range that have reserved addresses only.
fn trim_useless(range: &Range, mut lo: u32, mut hi: u32) -> Option<(u32, u32)> {
    if lo < hi && range.usable(lo, lo + 1) == 0 {
        lo += 1;
    }
    if lo < hi && range.usable(hi - 1, hi) == 0 {
        hi -= 1;
    }
    (lo < hi).then_some((lo, hi))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Id, Owner};
    use crate::ring::{Holder, Order, Reg, RegRun};

    fn holding(text: &str, blocks: &[(u32, u32)]) -> (Range, Ring, Space) {
        let range = Range::new(text.parse().unwrap()).unwrap();
        let mut ring = Ring::new(range.blocks());
        for &(lo, hi) in blocks {
            let reg =
                Reg { order: Order { term: 1, epoch: 0 }, holder: Holder::One(Owner { peer: Id([1; 16]), life: 1 }) };
            ring.write(RegRun { lo, hi, reg }, true);
        }
        (range, ring, Space::default())
    }

    fn given(net: IpNet) -> Given {
        Given { owner: "c1".into(), net, since: None, batch: 1 }
    }

    #[test]
    fn the_lowest_free_address_is_given_and_reserved_ones_never() {
        let (range, ring, mut space) = holding("10.0.0.0/29", &[(0, 3), (5, 8)]);
        let mut got = Vec::new();
        while let Some(offset) = space.lowest_free(&range, &ring, range.net()) {
            space.give(offset, given(range.net()));
            got.push(offset);
        }
        assert_eq!(got, [1, 2, 5, 6]);
    }

    #[test]
    fn a_part_of_a_range_has_reserved_addresses_of_its_own() {
        let (range, ring, mut space) = holding("10.0.0.0/24", &[(0, 256)]);
        let part: IpNet = "10.0.0.64/30".parse().unwrap();
        let mut got = Vec::new();
        while let Some(offset) = space.lowest_free(&range, &ring, part) {
            space.give(offset, given(part));
            got.push(offset);
        }
        assert_eq!(got, [65, 66]);
        assert_eq!(space.lowest_free(&range, &ring, range.net()), Some(1));
    }

    #[test]
    fn a_freed_address_waits_for_the_reuse_delay() {
        let (range, ring, mut space) = holding("10.0.0.0/30", &[(0, 4)]);
        let net = range.net();
        for _ in 0..2 {
            let offset = space.lowest_free(&range, &ring, net).unwrap();
            space.give(offset, given(net));
        }
        assert_eq!(space.lowest_free(&range, &ring, net), None);
        space.release(1, REUSE_DELAY);
        assert_eq!(space.lowest_free(&range, &ring, net), None);
        assert_eq!(space.cooled(REUSE_DELAY - Duration::from_millis(1)), []);
        assert_eq!(space.cooled(REUSE_DELAY), [1]);
        assert_eq!(space.lowest_free(&range, &ring, net), Some(1));
    }

    #[test]
    fn empty_blocks_leave_out_used_cooling_and_useless_ones() {
        let (range, ring, mut space) = holding("10.0.0.0/24", &[(0, 256)]);
        space.give(5, given(range.net()));
        space.cool(250, REUSE_DELAY);
        let empty = space.empty_blocks(&range, &ring, 0, 256);
        assert_eq!(empty, [(1, 5), (6, 250), (251, 255)]);
        assert_eq!(space.empty_blocks(&range, &ring, 3, 8), [(3, 5), (6, 8)]);
    }

    #[test]
    fn a_large_ipv6_range_starts_after_the_anycast_address() {
        let (range, ring, mut space) = holding("fd00::/64", &[(0, 8)]);
        assert_eq!(space.lowest_free(&range, &ring, range.net()), Some(1));
        assert_eq!(space.empty_blocks(&range, &ring, 0, range.blocks()), [(0, 8)]);
    }
}
