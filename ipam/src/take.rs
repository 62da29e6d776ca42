//! Settling blocks through the voters: what a peer owned in an earlier life, what it gave away
//! and nobody took, what belonged to a peer that is gone, what belongs to nobody.
//!
//! ```text
//!  taker                             voters
//!    ── BlockPrepare(term, blocks) ──►  promise
//!    ◄─ BlockPromise(accepted) ───────
//!       majority: newest register of each block; if it is the taker's to change, changed, else as it is
//!    ── BlockAccept(term, registers) ►  accepted
//!    ◄─ BlockAccepted ────────────────
//!       majority: settled; merged, told to everyone
//! ```
//!
//! A term is `version of the panel (20 bits) | round (28) | chance (16)`: terms of a newer panel
//! are above all of an older one (ipam I16).

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use crate::id::{Id, Sender};
use crate::machine::Machine;
use crate::panel::Panel;
use crate::ring::{Holder, Order, Reg, RegRun};
use crate::runs::Runs;
use crate::wire::{BlockRuns, Body, KeptAge, Prepare, Term, WireRun};

/// Where the version of the panel begins in a term.
pub(crate) const VERSION_SHIFT: u32 = 44;
const ROUND_SHIFT: u32 = 16;
/// How long an attempt may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause before the voters that are silent are asked again the first time; doubled each time. After a change of
/// voters they all begin at about the same moment, and answer nothing until they have heard each other.
const FIRST_AGAIN: Duration = Duration::from_millis(100);
/// Pause after a failed attempt; grows with their number.
const PAUSE: Duration = Duration::from_millis(200);
/// How long after a register a grant may come before the voters are asked what became of it.
const GRANT_WAIT: Duration = Duration::from_secs(5);
/// Most runs, and most blocks, in one attempt: the answers fit into one message however they are
/// cut.
const MAX_SPANS: usize = 64;
const MAX_BLOCKS: u32 = 4096;

/// An attempt.
#[derive(Debug, Clone)]
pub(crate) struct Take {
    version: u64,
    term: Term,
    blocks: Vec<BlockRuns>,
    pool: bool,
    phase: Phase,
    until: Duration,
    /// When the voters that are silent are asked again, and the pause before that.
    again: Duration,
    pause: Duration,
}

impl Take {
    /// What its voters are asked now, and who has answered.
    fn question(&self) -> (Body, &BTreeSet<Id>) {
        let (version, term) = (self.version, self.term);
        match &self.phase {
            Phase::Preparing { promised, .. } => {
                (Body::BlockPrepare(Prepare { version, term, blocks: self.blocks.clone() }), promised)
            }
            Phase::Accepting { runs, accepted } => (Body::BlockAccept { version, term, runs: runs.clone() }, accepted),
        }
    }
}

#[derive(Debug, Clone)]
enum Phase {
    Preparing { promised: BTreeSet<Id>, seen: BTreeMap<u16, Runs<Reg>> },
    Accepting { runs: Vec<WireRun>, accepted: BTreeSet<Id> },
}

/// The attempts of this peer, one at a time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Takes {
    now: Option<Take>,
    next: Duration,
    failed: u32,
    /// Since when registers name this life of blocks that no grant came for.
    unclaimed: Option<Duration>,
    /// The newest term heard of in a refusal.
    newest: u64,
    /// What the registers say is to be settled, as long as they stay as they are.
    found: Found,
}

/// What a look at all registers found.
#[derive(Debug, Clone, Default)]
struct Found {
    /// Of which changes of all rings, version of the panel and life it was; of no life at first.
    seen: (u64, u64, u64),
    /// To be settled anew.
    settle: Vec<(usize, u32, u32)>,
    /// Of this life by their registers, and not held.
    unheld: Vec<(usize, u32, u32)>,
    /// Whether there are blocks of nobody.
    pool: bool,
}

fn next_term(newest: u64, version: u64, chance: u64) -> u64 {
    let round = if newest >> VERSION_SHIFT < version {
        (version << VERSION_SHIFT) >> ROUND_SHIFT
    } else {
        newest >> ROUND_SHIFT
    };
    let last = u64::MAX >> ROUND_SHIFT;
    (round.saturating_add(1).min(last) << ROUND_SHIFT) | (chance & ((1 << ROUND_SHIFT) - 1))
}

/// Collects up to [`MAX_SPANS`] runs of up to [`MAX_BLOCKS`] blocks.
#[derive(Default)]
struct Batch {
    blocks: Vec<BlockRuns>,
    count: u32,
}

impl Batch {
    fn add(&mut self, index: usize, lo: u32, hi: u32) {
        let hi = hi.min(lo.saturating_add(MAX_BLOCKS - self.count));
        if lo >= hi || self.blocks.len() >= MAX_SPANS {
            return;
        }
        self.count += hi - lo;
        self.blocks.push(BlockRuns { range: u16::try_from(index).unwrap_or(u16::MAX), lo, hi });
    }
}

impl Takes {
    /// What was found by a look at the registers does not hold any more.
    pub(crate) fn look_again(&mut self) {
        self.found = Found::default();
    }

    /// Whether there are blocks of nobody.
    pub(crate) fn has_pool(&self) -> bool {
        self.found.pool
    }
}

impl Machine {
    /// Ends the attempt under way: the panel has changed.
    pub(crate) fn restart_takes(&mut self) {
        let found = core::mem::take(&mut self.takes.found);
        self.takes = Takes { next: self.now, found, ..Takes::default() };
    }

    /// When the next step is due.
    pub(crate) fn next_take(&self) -> Option<Duration> {
        match &self.takes.now {
            Some(take) => Some(take.until.min(take.again)),
            None if self.has_to_take() || self.wanted_of_pool().is_some() => Some(self.takes.next),
            None => self.takes.unclaimed.map(|since| (since + GRANT_WAIT).max(self.takes.next)),
        }
    }

    /// Blocks that are this life's by their registers, but that it neither holds nor has a grant
    /// for: who gave them away forgot it before the grant arrived.
    fn unclaimed(&self) -> impl Iterator<Item = (usize, u32, u32)> {
        let unheld = self.takes.found.unheld.iter().copied();
        unheld.filter(move |&(index, lo, hi)| !self.is_witnessing(index, lo, hi))
    }

    /// Looks through all registers if anything has changed since the last time.
    pub(crate) fn look_for_takes(&mut self) {
        let changes = self.areas.iter().map(|area| area.ring.changes()).sum();
        let version = self.panel.as_ref().map_or(0, |panel| panel.version);
        let seen = (changes, version, self.me.life);
        if self.takes.found.seen == seen {
            return;
        }
        let mut found = Found { seen, ..Found::default() };
        let mut back = false;
        for (index, area) in self.areas.iter().enumerate() {
            for run in area.ring.regs(0, area.ring.blocks()) {
                found.pool |= run.reg.holder == Holder::Nobody && run.reg.order.term > 0;
                if self.is_to_settle(&run.reg, version) {
                    found.settle.push((index, run.lo, run.hi));
                    back |= run.reg.holder.peer().is_some_and(|peer| self.peers.contains_key(&peer));
                }
                if run.reg.holder != Holder::One(self.me) {
                    continue;
                }
                let mut at = run.lo;
                for (lo, hi) in area.ring.held(run.lo, run.hi).chain([(run.hi, run.hi)]) {
                    found.unheld.extend((at < lo).then_some((index, at, lo)));
                    at = hi;
                }
            }
        }
        self.takes.found = found;
        if back {
            // A removed life has got blocks, so it has not heard of it: it would lose them for ever.
            self.next_gone.get_or_insert(self.now);
        }
    }

    fn has_to_take(&self) -> bool {
        self.panel.is_some()
            && (!self.takes.found.settle.is_empty()
                || (self.is_claiming() && self.unclaimed().next().is_some())
                || self.overdue_blocks().next().is_some())
    }

    /// Whether the blocks that no grant came for have waited long enough.
    fn is_claiming(&self) -> bool {
        self.takes.unclaimed.is_some_and(|since| since + GRANT_WAIT <= self.now)
    }

    /// The blocks of grants that nobody took.
    fn overdue_blocks(&self) -> impl Iterator<Item = (usize, u32, u32)> {
        self.overdue_grants().flat_map(move |wire| {
            let (index, run) = wire.parts();
            let regs = self.areas.get(index).map(|area| area.ring.regs(run.lo, run.hi));
            let same = regs.into_iter().flatten().filter(move |now| now.reg == run.reg);
            same.map(move |now| (index, now.lo, now.hi))
        })
    }

    /// Whether a register is to be settled anew by this peer.
    fn is_to_settle(&self, reg: &Reg, version: u64) -> bool {
        match reg.holder {
            Holder::One(owner) if owner.peer == self.me.peer && self.ablation.no_restart_term => false,
            Holder::One(owner) if owner.peer == self.me.peer => {
                owner != self.me || (reg.order.epoch == 0 && reg.order.term >> VERSION_SHIFT < version)
            }
            Holder::One(owner) => self.gone.contains_key(&owner),
            Holder::Nobody | Holder::Disputed => false,
        }
    }

    /// Blocks of earlier lives, of the gone, of grants that nobody took, and own ones whose term
    /// is of an older panel.
    fn blocks_to_settle(&self) -> Vec<BlockRuns> {
        let mut batch = Batch::default();
        if self.panel.is_none() {
            return batch.blocks;
        }
        if self.is_claiming() {
            for (index, lo, hi) in self.unclaimed() {
                batch.add(index, lo, hi);
            }
        }
        for &(index, lo, hi) in &self.takes.found.settle {
            batch.add(index, lo, hi);
        }
        for (index, lo, hi) in self.overdue_blocks() {
            batch.add(index, lo, hi);
        }
        batch.blocks
    }

    /// The clock's part.
    pub(crate) fn tick_takes(&mut self) {
        self.look_for_takes();
        if self.takes.now.as_ref().is_some_and(|take| self.now >= take.until) {
            self.give_up_take();
        }
        self.ask_voters_again();
        if self.takes.now.is_some() || self.now < self.takes.next || self.network.is_none() {
            return;
        }
        let unclaimed = self.unclaimed().next().is_some();
        self.takes.unclaimed = unclaimed.then(|| self.takes.unclaimed.unwrap_or(self.now));
        if self.has_to_take() {
            let blocks = self.blocks_to_settle();
            self.take(blocks, false);
        } else if let Some(blocks) = self.wanted_of_pool() {
            self.take(vec![blocks], true);
        }
    }

    /// Repeats the question of the attempt under way to those that have not answered it.
    fn ask_voters_again(&mut self) {
        let now = self.now;
        let Some((panel, take)) = self.panel.clone().zip(self.takes.now.as_mut().filter(|take| take.again <= now))
        else {
            return;
        };
        take.pause *= 2;
        take.again = now + take.pause;
        let (question, answered) = take.question();
        let silent: Vec<Id> = panel.voters.iter().copied().filter(|voter| !answered.contains(voter)).collect();
        for voter in silent {
            self.send_durably(voter, question.clone());
        }
    }

    fn give_up_take(&mut self) {
        self.takes.now = None;
        self.takes.failed = self.takes.failed.saturating_add(1);
        let most = PAUSE * self.takes.failed.min(10);
        let pause = PAUSE / 2 + self.jitter(most);
        self.takes.next = self.now + pause;
    }

    fn take(&mut self, blocks: Vec<BlockRuns>, pool: bool) {
        let Some(panel) = self.panel.clone() else {
            return;
        };
        let terms = blocks.iter().filter_map(|blocks| {
            let area = self.areas.get(usize::from(blocks.range))?;
            area.ring.regs(blocks.lo, blocks.hi).map(|run| run.reg.order.term).max()
        });
        let newest = terms.max().unwrap_or(0).max(self.takes.newest);
        let chance = self.draw();
        let term = Term { term: next_term(newest, panel.version, chance), nonce: self.draw() };
        let phase = Phase::Preparing { promised: BTreeSet::new(), seen: BTreeMap::new() };
        let version = panel.version;
        let (until, again) = (self.now + ATTEMPT, self.now + FIRST_AGAIN);
        let take = Take { version, term, blocks, pool, phase, until, again, pause: FIRST_AGAIN };
        let (question, _) = take.question();
        self.takes.now = Some(take);
        self.ask_voters(&panel, &question);
    }

    /// Sends something to every voter.
    pub(crate) fn ask_voters(&mut self, panel: &Panel, body: &Body) {
        for &voter in &panel.voters {
            self.send_durably(voter, body.clone());
        }
    }

    /// A promise at the taker.
    pub(crate) fn on_block_promise(&mut self, from: Sender, nonce: u64, runs: &[WireRun], kept: &[KeptAge]) {
        let Some(panel) = self.panel.clone().filter(|panel| panel.voters.contains(&from.peer)) else {
            return;
        };
        if !self.knows_lists(kept) {
            // A list was lost, or comes behind: the voter is asked again.
            return;
        }
        let areas = &self.areas;
        let Some(take) = self.takes.now.as_mut().filter(|take| take.term.nonce == nonce) else {
            return;
        };
        let Phase::Preparing { promised, seen } = &mut take.phase else {
            return;
        };
        if take.version != panel.version {
            return;
        }
        for run in runs {
            let (index, run) = run.parts();
            let Some(area) = areas.get(index) else {
                return;
            };
            let range = u16::try_from(index).unwrap_or(u16::MAX);
            let all = seen.entry(range).or_insert_with(|| Runs::new(area.ring.blocks(), Reg::UNKNOWN));
            let before: Vec<(u32, u32, Reg)> = all.over(run.lo, run.hi).map(|(lo, hi, reg)| (lo, hi, *reg)).collect();
            for (lo, hi, reg) in before {
                all.set(lo, hi, reg.join(run.reg));
            }
        }
        promised.insert(from.peer);
        if promised.len() < panel.majority() {
            return;
        }
        let (term, pool, seen) = (take.term, take.pool, core::mem::take(seen));
        let mut runs = Vec::new();
        for blocks in &take.blocks {
            let Some(seen) = seen.get(&blocks.range) else {
                continue;
            };
            for (lo, hi, reg) in seen.over(blocks.lo, blocks.hi) {
                let holder = Self::settled(self.me, &self.gone, reg.holder, pool);
                let reg = Reg { order: Order { term: term.term, epoch: 0 }, holder };
                runs.push(WireRun { range: blocks.range, lo, hi, reg });
            }
        }
        take.phase = Phase::Accepting { runs, accepted: BTreeSet::new() };
        (take.again, take.pause) = (self.now + FIRST_AGAIN, FIRST_AGAIN);
        let (question, _) = take.question();
        self.ask_voters(&panel, &question);
    }

    /// Whose a block is to be, by whose it was: only what is this peer's to change is changed.
    fn settled(me: crate::id::Owner, gone: &BTreeMap<crate::id::Owner, bool>, holder: Holder, pool: bool) -> Holder {
        match holder {
            Holder::One(owner) if owner.peer == me.peer => Holder::One(me),
            Holder::One(owner) if gone.contains_key(&owner) => Holder::Nobody,
            Holder::Nobody if pool => Holder::One(me),
            as_it_is => as_it_is,
        }
    }

    /// An acceptance at the taker.
    pub(crate) fn on_block_accepted(&mut self, from: Sender, nonce: u64) {
        let Some(panel) = self.panel.clone().filter(|panel| panel.voters.contains(&from.peer)) else {
            return;
        };
        let Some(take) = self.takes.now.as_mut().filter(|take| take.term.nonce == nonce) else {
            return;
        };
        let Phase::Accepting { runs, accepted } = &mut take.phase else {
            return;
        };
        accepted.insert(from.peer);
        if take.version != panel.version || accepted.len() < panel.majority() {
            return;
        }
        let runs = core::mem::take(runs);
        let (newest, unclaimed) = (self.takes.newest, self.takes.unclaimed);
        self.restart_takes();
        (self.takes.newest, self.takes.unclaimed) = (newest, unclaimed);
        for run in &runs {
            self.merge_settled(run);
        }
        self.announce(&runs);
        self.tick_takes();
    }

    fn merge_settled(&mut self, run: &WireRun) {
        let (index, run) = run.parts();
        let before: Vec<RegRun> = self.areas[index].ring.regs(run.lo, run.hi).collect();
        for old in before {
            // What was given out of a block that came back from an earlier life must be known first.
            let inherited =
                matches!(old.reg.holder, Holder::One(owner) if owner.peer == self.me.peer && owner != self.me);
            if inherited && run.reg.holder == Holder::One(self.me) {
                self.inherited = true;
            }
        }
        self.merge_run(self.me.peer, index, run);
    }

    /// A refusal.
    pub(crate) fn on_behind(&mut self, nonce: u64, term: u64, panel: Panel, from: Id) {
        let older = self.panel.as_ref().is_some_and(|ours| *ours > panel);
        if older && let Some(panel) = self.panel.clone() {
            self.send_durably(from, Body::Panel(panel));
        }
        self.learn_panel(panel);
        // A term near the end of numbers is not one that anybody came to by counting.
        if term < u64::MAX >> 1 {
            self.takes.newest = self.takes.newest.max(term);
        }
        if self.takes.now.as_ref().is_some_and(|take| take.term.nonce == nonce) {
            self.give_up_take();
        } else if self.on_witness_refused(nonce) {
            self.takes.unclaimed = Some(self.now.saturating_sub(GRANT_WAIT));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_grow_and_those_of_a_newer_panel_are_above_all_of_an_older_one() {
        let first = 1 << VERSION_SHIFT;
        let second = next_term(first, 1, u64::MAX);
        assert!(second > first && second >> VERSION_SHIFT == 1);
        assert!(next_term(second, 1, 0) > second);
        let newer = next_term(second, 2, 0);
        assert!(newer > second && newer >> VERSION_SHIFT == 2);
        assert!(next_term(newer, 1, 0) > newer, "a term that was seen is never undercut");
        assert!(next_term(u64::MAX, 1, 7) >= u64::MAX - (1 << ROUND_SHIFT));
    }

    #[test]
    fn an_attempt_takes_no_more_than_fits_into_a_message() {
        let mut batch = Batch::default();
        batch.add(0, 0, 16_384);
        batch.add(1, 0, 16_384);
        assert_eq!(batch.blocks, [BlockRuns { range: 0, lo: 0, hi: 4096 }]);
        let mut batch = Batch::default();
        for at in 0..100 {
            batch.add(0, at * 2, at * 2 + 1);
        }
        assert_eq!(batch.blocks.len(), MAX_SPANS);
    }
}
