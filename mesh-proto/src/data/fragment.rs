//! Putting records together again that came in fragments.
//!
//! ```text
//!  record   │ 0 … 1167 │ 1168 … 2335 │ … │        pieces come in any order, twice, or not at all
//!  runs     [0,1168) [2336,3504)                what is there: sorted, apart, at most 32
//! ```
//!
//! The buffers are a fixed pool, made at first need and kept. One peer holds only a few of them,
//! and the oldest gives way when there is none left (sleeve S13).

use core::time::Duration;

use super::limits::{ASSEMBLIES, ASSEMBLIES_PER_PEER, ASSEMBLY_AGE, ASSEMBLY_RUNS};
use crate::wire::record::{Fragment, RECORD_MAX};

/// What became of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The record is whole: take it with [`Assembler::take`], then [`Assembler::give_back`].
    Whole(usize),
    /// Others are missing.
    Partial,
    /// It contradicts what came before; the record is given up.
    Bad,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    peer: u32,
    id: u32,
    total: usize,
    since: Duration,
    runs: [(u32, u32); ASSEMBLY_RUNS],
    run_count: usize,
    busy: bool,
}

const FREE: Slot =
    Slot { peer: 0, id: 0, total: 0, since: Duration::ZERO, runs: [(0, 0); ASSEMBLY_RUNS], run_count: 0, busy: false };

/// All records that are being put together.
#[derive(Debug)]
pub(crate) struct Assembler {
    slots: Box<[Slot]>,
    buffers: Vec<Vec<u8>>,
    given_up: u64,
}

impl Assembler {
    pub(crate) fn new() -> Self {
        Self { slots: vec![FREE; ASSEMBLIES].into_boxed_slice(), buffers: vec![Vec::new(); ASSEMBLIES], given_up: 0 }
    }

    /// Records that were given up since the last call.
    pub(crate) const fn take_given_up(&mut self) -> u64 {
        core::mem::replace(&mut self.given_up, 0)
    }

    /// Takes in a piece that `peer` sent.
    pub(crate) fn add(&mut self, peer: u32, fragment: &Fragment<'_>, now: Duration) -> Outcome {
        let at = self.slot(peer, fragment, now);
        let slot = &mut self.slots[at];
        let (from, to) = (fragment.offset, fragment.offset + fragment.piece.len());
        if slot.total != fragment.total || to > slot.total || !slot.add_run(from as u32, to as u32) {
            slot.busy = false;
            self.given_up += 1;
            return Outcome::Bad;
        }
        self.buffers[at][from..to].copy_from_slice(fragment.piece);
        if slot.runs[0] == (0, slot.total as u32) { Outcome::Whole(at) } else { Outcome::Partial }
    }

    /// The whole record.
    pub(crate) fn take(&mut self, at: usize) -> (Vec<u8>, usize) {
        self.slots[at].busy = false;
        (core::mem::take(&mut self.buffers[at]), self.slots[at].total)
    }

    /// Returns the buffer that [`Self::take`] gave.
    pub(crate) fn give_back(&mut self, at: usize, buffer: Vec<u8>) {
        self.buffers[at] = buffer;
    }

    /// Gives up what waited for too long.
    pub(crate) fn expire(&mut self, now: Duration) {
        for slot in &mut self.slots {
            if slot.busy && slot.expired(now) {
                slot.busy = false;
                self.given_up += 1;
            }
        }
    }

    /// Forgets what a peer began.
    pub(crate) fn forget(&mut self, peer: u32) {
        for slot in self.slots.iter_mut().filter(|s| s.peer == peer) {
            slot.busy = false;
        }
    }

    /// The slot of the record that a fragment belongs to, made if need be.
    fn slot(&mut self, peer: u32, fragment: &Fragment<'_>, now: Duration) -> usize {
        let of_peer = |slot: &Slot| slot.busy && slot.peer == peer;
        if let Some(at) = self.slots.iter().position(|s| of_peer(s) && s.id == fragment.id) {
            if !self.slots[at].expired(now) {
                return at;
            }
            self.given_up += 1;
            self.slots[at].begin(peer, fragment, now);
            return at;
        }
        let own = self.slots.iter().filter(|s| of_peer(s)).count();
        let free = self.slots.iter().position(|slot| !slot.busy);
        let at = match free {
            Some(at) if own < ASSEMBLIES_PER_PEER => at,
            _ => {
                self.given_up += 1;
                self.oldest(|slot| own < ASSEMBLIES_PER_PEER || of_peer(slot))
            }
        };
        self.slots[at].begin(peer, fragment, now);
        if self.buffers[at].is_empty() {
            self.buffers[at] = vec![0; RECORD_MAX];
        }
        at
    }

    fn oldest(&self, of: impl Fn(&Slot) -> bool) -> usize {
        let busy = self.slots.iter().enumerate().filter(|(_, slot)| of(slot));
        busy.min_by_key(|(_, slot)| slot.since).map_or(0, |(at, _)| at)
    }
}

impl Slot {
    fn begin(&mut self, peer: u32, fragment: &Fragment<'_>, now: Duration) {
        (self.peer, self.id, self.total) = (peer, fragment.id, fragment.total);
        (self.since, self.run_count, self.busy) = (now, 0, true);
    }

    fn expired(&self, now: Duration) -> bool {
        now.saturating_sub(self.since) > ASSEMBLY_AGE
    }

    /// Joins `[from, to)` to what is there. False if that makes too many separate runs.
    fn add_run(&mut self, mut from: u32, mut to: u32) -> bool {
        let runs = &mut self.runs[..self.run_count];
        let first = runs.partition_point(|run| run.1 < from);
        let last = runs.partition_point(|run| run.0 <= to);
        if first == last {
            if self.run_count == ASSEMBLY_RUNS {
                return false;
            }
            self.runs.copy_within(first..self.run_count, first + 1);
            self.run_count += 1;
        } else {
            from = from.min(runs[first].0);
            to = to.max(runs[last - 1].1);
            self.runs.copy_within(last..self.run_count, first + 1);
            self.run_count -= last - first - 1;
        }
        self.runs[first] = (from, to);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fragment(id: u32, total: usize, offset: usize, piece: &[u8]) -> Fragment<'_> {
        Fragment { id, total, offset, piece }
    }

    fn pieces(record: &[u8], size: usize) -> Vec<Fragment<'_>> {
        let cut = record.chunks(size).enumerate();
        cut.map(|(i, piece)| fragment(7, record.len(), i * size, piece)).collect()
    }

    proptest! {
        #[test]
        fn any_order_with_repeats_gives_the_record_once(
            record in prop::collection::vec(any::<u8>(), 2..3000), size in 100usize..1200,
            order in any::<prop::sample::Index>(), swaps in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..20)) {
            let mut pieces = pieces(&record, size);
            let repeated = pieces[order.index(pieces.len())];
            for (a, b) in swaps {
                let (a, b) = (a.index(pieces.len()), b.index(pieces.len()));
                pieces.swap(a, b);
            }
            pieces.insert(order.index(pieces.len()), repeated);
            let mut assembler = Assembler::new();
            let mut whole = Vec::new();
            for piece in &pieces {
                if let Outcome::Whole(at) = assembler.add(3, piece, Duration::ZERO) {
                    let (buffer, length) = assembler.take(at);
                    whole.push(buffer[..length].to_vec());
                    assembler.give_back(at, buffer);
                }
            }
            prop_assert!(whole.contains(&record));
            prop_assert!(whole.len() == 1 || pieces.len() == 2);
        }

        #[test]
        fn hostile_fragments_neither_panic_nor_grow(steps in prop::collection::vec((0u32..4, 0u32..20, 0usize..3000, 0usize..3000, 1usize..600), 0..600)) {
            let mut assembler = Assembler::new();
            for (peer, id, total, offset, len) in steps {
                let piece = vec![0; len];
                if let Outcome::Whole(at) = assembler.add(peer, &fragment(id, total, offset, &piece), Duration::ZERO) {
                    let (buffer, length) = assembler.take(at);
                    prop_assert_eq!(length, total);
                    assembler.give_back(at, buffer);
                }
                let busy = |peer| assembler.slots.iter().filter(|s| s.busy && s.peer == peer).count();
                prop_assert!((0..4).all(|peer| busy(peer) <= ASSEMBLIES_PER_PEER));
            }
        }
    }

    #[test]
    fn fragments_that_come_too_late_do_not_complete_a_record() {
        let record = [5; 200];
        let pieces = pieces(&record, 100);
        let mut assembler = Assembler::new();
        assert_eq!(assembler.add(1, &pieces[0], Duration::ZERO), Outcome::Partial);
        let late = ASSEMBLY_AGE + Duration::from_millis(1);
        assert_eq!(assembler.add(1, &pieces[1], late), Outcome::Partial);
        assert_eq!(assembler.take_given_up(), 1);
        assembler.expire(late * 3);
        assert_eq!(assembler.take_given_up(), 1);
    }

    #[test]
    fn the_same_id_of_two_peers_is_two_records() {
        let record = [5; 200];
        let pieces = pieces(&record, 100);
        let mut assembler = Assembler::new();
        assert_eq!(assembler.add(1, &pieces[0], Duration::ZERO), Outcome::Partial);
        assert_eq!(assembler.add(2, &pieces[1], Duration::ZERO), Outcome::Partial);
    }

    #[test]
    fn another_total_for_the_same_record_gives_it_up() {
        let mut assembler = Assembler::new();
        assert_eq!(assembler.add(1, &fragment(1, 300, 0, &[0; 99]), Duration::ZERO), Outcome::Partial);
        assert_eq!(assembler.add(1, &fragment(1, 200, 99, &[0; 99]), Duration::ZERO), Outcome::Bad);
        assert_eq!(assembler.take_given_up(), 1);
    }
}
