//! Giving blocks away, and taking what was given.
//!
//! ```text
//!  asker                               owner
//!   ── Request(nonce, need, has) ───────►  picks EMPTY blocks, from the top
//!                                          durable: registers (t, e+1) → asker, and the grant
//!   ◄─ Grant(registers) ─────────────────  again after 1, 2, 4 … 30 s, also after a restart
//!   durable: registers, held
//!   ── Confirm ─────────────────────────►  forgets the grant
//! ```
//!
//! From the moment it decides, before anything is durable, the owner gives no address from the
//! blocks; the asker gives none before its own record is durable. So never two give from one
//! block (ipam I5).

use core::time::Duration;

use rand_core::RngCore;

use crate::id::{Id, Owner};
use crate::machine::Machine;
use crate::range::Range;
use crate::ring::{Holder, Order, Reg, RegRun};
use crate::store::{self, Key, StoredGrant};
use crate::wire::{Body, Grant, Refusal, Request, Wanted, WireRun};

/// Pause before a grant is sent again the first time; doubled up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Most runs of blocks in a grant.
const MAX_GRANT_RUNS: usize = 256;

/// A grant that is not confirmed.
#[derive(Debug, Clone)]
pub(crate) struct Outstanding {
    stored: StoredGrant,
    /// The write that records it.
    batch: u64,
    next: Duration,
    pause: Duration,
}

impl Outstanding {
    /// A grant of an earlier life.
    pub(crate) fn restored(stored: StoredGrant, now: Duration) -> Self {
        Self { stored, batch: 0, next: now, pause: FIRST_PAUSE }
    }

    fn overlaps(&self, wanted: &Wanted) -> bool {
        self.stored.runs.iter().any(|run| run.range == wanted.range && run.lo < wanted.hi && wanted.lo < run.hi)
    }
}

impl Machine {
    /// A peer asks for blocks.
    pub(crate) fn on_request(&mut self, from: Owner, request: Request) {
        let wanted = request.wanted;
        let Some(area) = self.areas.get(usize::from(wanted.range)) else {
            return;
        };
        let bad = wanted.lo >= wanted.hi || wanted.hi > area.ring.blocks();
        if bad || request.incarnation != from.incarnation {
            return;
        }
        let under_way: Vec<u64> = self
            .grants
            .iter()
            .filter(|(_, grant)| grant.stored.to.peer == from.peer && grant.overlaps(&wanted))
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
            Ok(runs) => self.give_away(from, &request, &runs),
            Err(why) => {
                let refused = Body::Refused { seq: request.seq, nonce: request.nonce, why };
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
    fn give_away(&mut self, to: Owner, request: &Request, blocks: &[(u32, u32)]) {
        let index = usize::from(request.wanted.range);
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
        let stored = StoredGrant { to, nonce: request.nonce, runs: runs.clone() };
        let id = self.rng.next_u64();
        let batch = self.journal.put(store::put(Key::Grant(id), &stored));
        let outstanding = Outstanding { stored, batch, next: self.now + FIRST_PAUSE, pause: FIRST_PAUSE };
        self.grants.insert(id, outstanding);
        self.send_grant(id);
        self.announce(&runs);
    }

    fn send_grant(&mut self, id: u64) {
        if let Some(grant) = self.grants.get(&id) {
            let to = grant.stored.to.peer;
            let body = Body::Grant(Grant { id, nonce: grant.stored.nonce, runs: grant.stored.runs.clone() });
            self.send_durably(to, body);
        }
    }

    /// Sends grants again that were not confirmed in time.
    pub(crate) fn tick_grants(&mut self) {
        let due: Vec<u64> = self.grants.iter().filter(|(_, grant)| grant.next <= self.now).map(|(&id, _)| id).collect();
        for id in due {
            let overtaken = self.is_overtaken(id);
            let Some(grant) = self.grants.get_mut(&id) else {
                continue;
            };
            if overtaken {
                self.on_confirmed(id);
                continue;
            }
            grant.pause = MAX_PAUSE.min(grant.pause * 2);
            grant.next = self.now + grant.pause;
            let send = self.journal.is_durable(grant.batch) && self.peers.contains_key(&grant.stored.to.peer);
            if send {
                self.send_grant(id);
            }
        }
    }

    /// Whether all blocks of a grant have moved on, which only its receiver can have done.
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

    /// Blocks for this peer.
    pub(crate) fn on_grant(&mut self, from: Owner, grant: &Grant) {
        let mut gained = Vec::new();
        for run in &grant.runs {
            let (index, run) = run.parts();
            if self.may_take(index, &run, grant.nonce) {
                self.take(index, &run, &mut gained);
            } else {
                self.problem(format!(
                    "peer {} granted blocks to a life of this peer whose address state is gone; \
                     nobody gives addresses from them",
                    from.peer
                ));
            }
        }
        self.send_durably(from.peer, Body::Confirm { id: grant.id });
        gained.sort_unstable();
        gained.dedup();
        for index in gained {
            self.granted(index, from.peer);
            self.wake = true;
        }
    }

    /// Whether a granted run names this peer in a life whose state is here.
    fn may_take(&self, index: usize, run: &RegRun, nonce: u64) -> bool {
        let Some(area) = self.areas.get(index) else {
            return false;
        };
        let Holder::One(owner) = run.reg.holder else {
            return false;
        };
        let life = owner.incarnation;
        let asked_for = life == self.me.incarnation && nonce == self.nonce;
        // A grant to an earlier life of this state: the state shows whether it was taken then.
        let earlier = (self.born..self.me.incarnation).contains(&life);
        run.lo < run.hi && run.hi <= area.ring.blocks() && owner.peer == self.me.peer && (asked_for || earlier)
    }

    fn take(&mut self, index: usize, run: &RegRun, gained: &mut Vec<usize>) {
        let area = &mut self.areas[index];
        let mut taken = Vec::new();
        for old in area.ring.stored(run.lo, run.hi) {
            let newer = old.reg.order < run.reg.order;
            // The register may have come by gossip before the grant did.
            if newer || (old.reg == run.reg && !old.held) {
                let (lo, hi) = (old.lo, old.hi);
                area.ring.write(RegRun { lo, hi, ..*run }, true);
                area.space.gained(area.range.first_of(lo));
                taken.push((lo, hi));
            }
        }
        for (lo, hi) in taken {
            self.record(index, lo, hi);
            gained.push(index);
        }
    }

    /// A grant arrived.
    pub(crate) fn on_confirm(&mut self, from: Owner, id: u64) {
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
