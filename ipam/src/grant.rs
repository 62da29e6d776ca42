//! Giving blocks away, and taking what was given.
//!
//! ```text
//!  asker                               owner                      voters
//!   ── Request(life, need, has) ────────►  picks EMPTY blocks, from the top
//!                                          durable: registers (t, e+1) → asker, and the grant
//!   ◄─ Grant(registers) ─────────────────  again after 1, 2, 4 … 30 s
//!   ── Witness(registers) ─────────────────────────────────────────►  durable
//!   ◄─ Witnessed ───────────────────────────────────────────────────
//!   a majority: held
//!   ── Confirm ─────────────────────────►  forgets the grant
//! ```
//!
//! From the moment it decides, before anything is durable, the owner gives no address from the
//! blocks; the asker gives none before a majority of the voters knows that they are its own. So
//! never two give from one block, even if the owner forgets what it did (ipam I5, I15).

use core::time::Duration;
use std::collections::BTreeSet;

use crate::id::{Id, Owner, Sender};
use crate::machine::Machine;
use crate::range::Range;
use crate::ring::{Holder, Order, Reg, RegRun};
use crate::store::{self, Key, StoredGrant};
use crate::wire::{Body, Grant, Refusal, Removed, Request, Wanted, WireRun};

/// Pause before a grant is sent again the first time; doubled up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Pause before voters are asked again to be witnesses the first time, and the longest; doubled each time.
const FIRST_WITNESS_PAUSE: Duration = Duration::from_millis(100);
const WITNESS_PAUSE: Duration = Duration::from_secs(4);
/// How long a grant may stay unconfirmed before the owner takes the blocks back (ipam I17).
const OVERDUE: Duration = Duration::from_secs(10);
/// Most runs of blocks in a grant.
const MAX_GRANT_RUNS: usize = 256;
/// Most grants that wait for their witnesses at once.
const MAX_WITNESSING: usize = 256;

/// A grant that is not confirmed.
#[derive(Debug, Clone)]
pub(crate) struct Outstanding {
    stored: StoredGrant,
    /// The write that records it.
    batch: u64,
    since: Duration,
    next: Duration,
    pause: Duration,
}

impl Outstanding {
    /// A grant of an earlier life.
    pub(crate) fn restored(stored: StoredGrant, now: Duration) -> Self {
        Self { stored, batch: 0, since: now, next: now, pause: FIRST_PAUSE }
    }

    fn overlaps(&self, wanted: &Wanted) -> bool {
        self.stored.runs.iter().any(|run| run.range == wanted.range && run.lo < wanted.hi && wanted.lo < run.hi)
    }
}

/// A grant to this peer that waits for its witnesses.
#[derive(Debug, Clone)]
pub(crate) struct Witnessing {
    giver: Id,
    runs: Vec<WireRun>,
    witnesses: BTreeSet<Id>,
    since: Duration,
    /// A voter has promised a newer term.
    refused: bool,
    next: Duration,
    pause: Duration,
}

impl Machine {
    /// A peer asks for blocks.
    pub(crate) fn on_request(&mut self, from: Sender, request: Request) {
        let wanted = request.wanted;
        let Some(area) = self.areas.get(usize::from(wanted.range)) else {
            return;
        };
        if wanted.lo >= wanted.hi || wanted.hi > area.ring.blocks() {
            return;
        }
        let to = Owner { peer: from.peer, life: request.life };
        if self.gone.contains_key(&to) {
            // Whatever it got, the others would take.
            return self.send_durably(
                from.peer,
                Body::Gone { lives: vec![Removed { owner: to, cleared: false }], want: false },
            );
        }
        if !self.knows_what_is_in_use() {
            // In a moment it may be: silence makes the asker ask again.
            return;
        }
        self.drop_overtaken();
        let under_way: Vec<u64> = self
            .grants
            .iter()
            .filter(|(_, grant)| grant.stored.to == to && grant.overlaps(&wanted))
            .map(|(&id, _)| id)
            .collect();
        if !under_way.is_empty() {
            // It seems that they were lost: nothing new before they arrive.
            for id in under_way {
                self.send_grant(id);
            }
            return;
        }
        match self.pick(&request) {
            Ok(runs) => self.give_away(to, usize::from(wanted.range), &runs),
            // What is not settled yet may be to spare in a moment: silence makes the asker ask again.
            Err(Refusal::Nothing) if self.is_more_coming(&wanted) => {}
            Err(why) => {
                let refused = Body::Refused { seq: request.seq, life: request.life, why };
                self.send(from.peer, refused);
            }
        }
    }

    /// Which blocks to give away, as `(lo, hi)`.
    fn pick(&self, request: &Request) -> Result<Vec<(u32, u32)>, Refusal> {
        let wanted = &request.wanted;
        let area = &self.areas[usize::from(wanted.range)];
        let empty = area.space.empty_blocks(&area.range, &area.ring, wanted.lo, wanted.hi);
        if wanted.address.is_some() && empty.is_empty() {
            return Err(self.why_not(wanted));
        }
        let count: u32 = empty.iter().map(|(lo, hi)| hi - lo).sum();
        let need = blocks_for(request.need, &area.range);
        let amount = share(count, request.has, need);
        if amount == 0 {
            return Err(Refusal::Nothing);
        }
        Ok(from_the_top(&empty, amount))
    }

    fn why_not(&self, wanted: &Wanted) -> Refusal {
        let area = &self.areas[usize::from(wanted.range)];
        if !area.ring.holds(wanted.lo) {
            return Refusal::NotMine;
        }
        let given =
            wanted.address.and_then(|net| area.range.offset(net.0.addr())).and_then(|offset| area.space.given(offset));
        match given {
            Some(given) => Refusal::InUse(given.owner.clone()),
            None => Refusal::BlockInUse,
        }
    }

    /// Writes the loss, then sends.
    pub(crate) fn give_away(&mut self, to: Owner, index: usize, blocks: &[(u32, u32)]) {
        let mut runs = Vec::new();
        for &(lo, hi) in blocks {
            let ring = &mut self.areas[index].ring;
            let before: Vec<RegRun> = ring.regs(lo, hi).collect();
            for run in before {
                let reg = Reg {
                    order: Order { term: run.reg.order.term, epoch: run.reg.order.epoch.saturating_add(1) },
                    holder: Holder::One(to),
                };
                let run = RegRun { reg, ..run };
                ring.write(run, false);
                runs.push(WireRun::new(index, run));
            }
            self.record(index, lo, hi);
        }
        let stored = StoredGrant { to, runs: runs.clone() };
        let id = self.draw();
        let batch = self.journal.put(store::put(Key::Grant(id), &stored));
        let outstanding =
            Outstanding { stored, batch, since: self.now, next: self.now + FIRST_PAUSE, pause: FIRST_PAUSE };
        self.grants.insert(id, outstanding);
        self.send_grant(id);
        self.announce(&runs);
    }

    fn send_grant(&mut self, id: u64) {
        if let Some(grant) = self.grants.get(&id) {
            let to = grant.stored.to.peer;
            let body = Body::Grant(Grant { id, runs: grant.stored.runs.clone() });
            self.send_durably(to, body);
        }
    }

    /// Sends grants again that were not confirmed in time.
    pub(crate) fn tick_grants(&mut self) {
        self.drop_overtaken();
        let due: Vec<u64> = self.grants.iter().filter(|(_, grant)| grant.next <= self.now).map(|(&id, _)| id).collect();
        for id in due {
            let Some(grant) = self.grants.get_mut(&id) else {
                continue;
            };
            grant.pause = MAX_PAUSE.min(grant.pause * 2);
            grant.next = self.now + grant.pause;
            let send = self.journal.is_durable(grant.batch) && self.peers.contains_key(&grant.stored.to.peer);
            if send {
                self.send_grant(id);
            }
        }
    }

    fn drop_overtaken(&mut self) {
        let overtaken: Vec<u64> = self.grants.keys().copied().filter(|&id| self.is_overtaken(id)).collect();
        for id in overtaken {
            self.on_confirmed(id);
        }
    }

    /// Whether all blocks of a grant have moved on: nothing of it is due any more.
    fn is_overtaken(&self, id: u64) -> bool {
        self.grants.get(&id).is_some_and(|grant| {
            grant.stored.runs.iter().all(|run| {
                let (index, run) = run.parts();
                self.areas
                    .get(index)
                    .is_some_and(|area| area.ring.regs(run.lo, run.hi).all(|now| now.reg.order > run.reg.order))
            })
        })
    }

    /// A peer came back: it may wait for a grant.
    pub(crate) fn hurry_grants(&mut self, peer: Id) {
        for grant in self.grants.values_mut() {
            if grant.stored.to.peer == peer {
                grant.next = self.now;
                grant.pause = FIRST_PAUSE;
            }
        }
    }

    /// When the next grant is sent again.
    pub(crate) fn next_grant(&self) -> Option<Duration> {
        self.grants
            .values()
            .filter(|grant| self.peers.contains_key(&grant.stored.to.peer))
            .map(|grant| grant.next)
            .min()
    }

    /// The runs of grants that were not confirmed in time.
    pub(crate) fn overdue_grants(&self) -> impl Iterator<Item = WireRun> {
        let overdue = self.grants.values().filter(|grant| grant.since + OVERDUE <= self.now);
        overdue.flat_map(|grant| grant.stored.runs.iter().copied())
    }

    /// When the next grant becomes overdue.
    pub(crate) fn next_overdue(&self) -> Option<Duration> {
        self.grants.values().map(|grant| grant.since + OVERDUE).filter(|&at| at > self.now).min()
    }

    /// Blocks for this peer.
    pub(crate) fn on_grant(&mut self, from: Sender, grant: &Grant) {
        if let Some(known) = self.witnessing.get_mut(&grant.id) {
            known.next = self.now;
            return self.tick_witnesses();
        }
        let runs = self.still_due(&grant.runs);
        if runs.is_empty() {
            // Taken before, or for a life of this peer that is over.
            self.send_durably(from.peer, Body::Confirm { id: grant.id });
            return;
        }
        if self.witnessing.len() >= MAX_WITNESSING {
            return;
        }
        let witnessing = Witnessing {
            giver: from.peer,
            runs,
            witnesses: BTreeSet::new(),
            since: self.now,
            refused: false,
            next: self.now,
            pause: FIRST_WITNESS_PAUSE,
        };
        self.witnessing.insert(grant.id, witnessing);
        self.tick_witnesses();
    }

    /// What of a grant to this life was neither taken nor overtaken.
    fn still_due(&self, runs: &[WireRun]) -> Vec<WireRun> {
        let mut due = Vec::new();
        for wire in runs {
            let (index, run) = wire.parts();
            let Some(area) = self.areas.get(index).filter(|area| run.lo < run.hi && run.hi <= area.ring.blocks())
            else {
                continue;
            };
            if run.reg.holder != Holder::One(self.me) {
                continue;
            }
            for old in area.ring.regs(run.lo, run.hi) {
                // The register may have come by gossip before the grant did.
                if old.reg.order < run.reg.order {
                    due.push(WireRun::new(index, RegRun { reg: run.reg, ..old }));
                } else if old.reg == run.reg {
                    let mut at = old.lo;
                    for (lo, hi) in area.ring.held(old.lo, old.hi) {
                        due.extend((at < lo).then_some(WireRun::new(index, RegRun { lo: at, hi: lo, reg: run.reg })));
                        at = hi;
                    }
                    due.extend(
                        (at < old.hi).then_some(WireRun::new(index, RegRun { lo: at, hi: old.hi, reg: run.reg })),
                    );
                }
            }
        }
        due
    }

    /// The panel has changed: its voters are asked anew.
    pub(crate) fn restart_witnesses(&mut self) {
        for witnessing in self.witnessing.values_mut() {
            witnessing.witnesses.clear();
            witnessing.next = self.now;
            witnessing.pause = FIRST_WITNESS_PAUSE;
        }
    }

    /// Asks the voters that have not answered.
    pub(crate) fn tick_witnesses(&mut self) {
        let due: Vec<u64> =
            self.witnessing.iter().filter(|(_, grant)| grant.next <= self.now).map(|(&id, _)| id).collect();
        for id in due {
            let Some((panel, mut witnessing)) = self.panel.clone().zip(self.witnessing.remove(&id)) else {
                continue;
            };
            let runs = self.still_due(&witnessing.runs);
            if runs.is_empty() {
                self.send_durably(witnessing.giver, Body::Confirm { id });
                continue;
            }
            if runs != witnessing.runs {
                witnessing.witnesses.clear();
                witnessing.runs.clone_from(&runs);
            }
            witnessing.next = self.now + witnessing.pause;
            witnessing.pause = WITNESS_PAUSE.min(witnessing.pause * 2);
            let silent: Vec<Id> =
                panel.voters.iter().copied().filter(|voter| !witnessing.witnesses.contains(voter)).collect();
            self.witnessing.insert(id, witnessing);
            if self.ablation.no_witness {
                self.witnessed(id);
                continue;
            }
            for voter in silent {
                self.send_durably(voter, Body::Witness { id, version: panel.version, runs: runs.clone() });
            }
        }
    }

    /// Whether a grant of some of these blocks waits for its witnesses, and may still get them: a
    /// voter that promised a newer term is none any more.
    pub(crate) fn is_witnessing(&self, index: usize, lo: u32, hi: u32) -> bool {
        let hopeful = |grant: &&Witnessing| !grant.refused && grant.since + OVERDUE > self.now;
        let young = self.witnessing.values().filter(hopeful);
        let mut runs = young.flat_map(|witnessing| &witnessing.runs);
        runs.any(|run| usize::from(run.range) == index && run.lo < hi && lo < run.hi)
    }

    /// A voter cannot be a witness of a grant any more: somebody has begun to settle the blocks
    /// anew. This peer does so at once, and learns what became of them.
    pub(crate) fn on_witness_refused(&mut self, id: u64) -> bool {
        let Some(witnessing) = self.witnessing.get_mut(&id) else {
            return false;
        };
        witnessing.refused = true;
        true
    }

    /// When voters are asked again.
    pub(crate) fn next_witness(&self) -> Option<Duration> {
        self.witnessing.values().map(|witnessing| witnessing.next).min()
    }

    /// A voter knows of a grant.
    pub(crate) fn on_witnessed(&mut self, from: Sender, id: u64, version: u64) {
        let Some(panel) = self.panel.as_ref().filter(|panel| panel.version == version) else {
            return;
        };
        let Some(witnessing) = self.witnessing.get_mut(&id).filter(|_| panel.voters.contains(&from.peer)) else {
            return;
        };
        witnessing.witnesses.insert(from.peer);
        if witnessing.witnesses.len() >= panel.majority() {
            self.witnessed(id);
        }
    }

    /// A majority knows of a grant: the blocks are this peer's.
    fn witnessed(&mut self, id: u64) {
        let Some(witnessing) = self.witnessing.remove(&id) else {
            return;
        };
        let runs = self.still_due(&witnessing.runs);
        let mut gained = BTreeSet::new();
        for wire in &runs {
            let (index, run) = wire.parts();
            let area = &mut self.areas[index];
            area.ring.write(run, true);
            area.space.gained(area.range.first_of(run.lo));
            self.record_lazily(index, run.lo, run.hi);
            gained.insert(index);
        }
        self.keeping.look_again |= self.keeping.has_any(self.me.peer);
        self.send_durably(witnessing.giver, Body::Confirm { id });
        self.announce(&runs);
        for index in gained {
            self.granted(index, witnessing.giver);
            self.wake = true;
        }
    }

    /// A grant arrived.
    pub(crate) fn on_confirm(&mut self, from: Sender, id: u64) {
        if self.grants.get(&id).is_some_and(|grant| grant.stored.to.peer == from.peer) {
            self.on_confirmed(id);
        }
    }

    fn on_confirmed(&mut self, id: u64) {
        if self.grants.remove(&id).is_some() {
            self.journal.put_lazily(store::delete(Key::Grant(id)), self.now);
        }
    }
}

/// Blocks that hold so many addresses.
fn blocks_for(addresses: u32, range: &Range) -> u32 {
    let blocks = u128::from(addresses).div_ceil(range.block_len());
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

/// How many of `empty` blocks go to a peer that has `has` of them and needs `need` at once.
///
/// Half to one that has none, the odd one only if it is needed; else half of the difference.
fn share(empty: u32, has: u32, need: u32) -> u32 {
    let fair = empty.saturating_sub(has) / 2;
    let fair = if has == 0 && need > 0 { empty.div_ceil(2) } else { fair };
    fair.max(need.min(empty))
}

/// The highest `amount` blocks of runs in order.
fn from_the_top(empty: &[(u32, u32)], mut amount: u32) -> Vec<(u32, u32)> {
    let mut picked = Vec::new();
    for &(lo, hi) in empty.iter().rev().take(MAX_GRANT_RUNS) {
        if amount == 0 {
            break;
        }
        let len = amount.min(hi - lo);
        picked.push((hi - len, hi));
        amount -= len;
    }
    picked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_goes_to_whoever_has_none_and_less_to_whoever_has_some() {
        assert_eq!(share(100, 0, 0), 50);
        assert_eq!(share(100, 40, 0), 30);
        assert_eq!(share(100, 100, 0), 0);
        assert_eq!(share(1, 0, 0), 0, "the last one is for need only");
        assert_eq!(share(1, 0, 1), 1);
        assert_eq!(share(0, 0, 1), 0);
        assert_eq!(share(10, 50, 2), 2);
        assert_eq!(share(10, 0, 200), 10);
    }

    #[test]
    fn blocks_are_given_from_the_top() {
        assert_eq!(from_the_top(&[(1, 5), (6, 250)], 100), [(150, 250)]);
        assert_eq!(from_the_top(&[(1, 5), (6, 8)], 3), [(6, 8), (4, 5)]);
        assert_eq!(from_the_top(&[(1, 5)], 0), []);
    }
}
