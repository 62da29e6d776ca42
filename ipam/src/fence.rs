//! Who may not send from where: a peer that was removed while it was alive may still have
//! containers with addresses that others own by now (ipam I21).
//!
//! ```text
//!  removed lives ─► their peers that are in reach ─► blocks of the ring that others own ─► Output::Fences
//! ```
//!
//! Only peers that were removed are fenced. Of all others, a register that has not arrived yet could
//! only cut off somebody who is in his right.

use core::net::IpAddr;
use std::collections::BTreeSet;

use crate::Output;
use crate::id::Id;
use crate::machine::Machine;
use crate::remove::ANY_LIFE;

/// Runs of addresses that each of some peers may not send from, by first and last.
pub(crate) type Fences = Vec<(Id, Vec<(IpAddr, IpAddr)>)>;

/// The fences that are up, and what they were made by.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fencing {
    up: Fences,
    /// How often the registers had changed.
    changes: u64,
    /// Who is in reach, or was removed, may have changed.
    pub(crate) look_again: bool,
}

impl Machine {
    /// Puts up and takes down fences.
    pub(crate) fn look_at_fences(&mut self) {
        let changes = self.changes();
        if changes == self.fencing.changes && !self.fencing.look_again {
            return;
        }
        (self.fencing.changes, self.fencing.look_again) = (changes, false);
        let left = self.gone.iter().filter(|&(owner, &cleared)| owner.life != ANY_LIFE && !cleared);
        let removed = left.map(|(owner, _)| owner.peer);
        let here: BTreeSet<Id> = removed.filter(|peer| self.peers.contains_key(peer)).collect();
        let fences: Fences = here
            .into_iter()
            .map(|peer| (peer, self.owned_by_others_than(peer)))
            .filter(|(_, runs)| !runs.is_empty())
            .collect();
        if fences != self.fencing.up {
            self.fencing.up.clone_from(&fences);
            self.output(Output::Fences(fences));
        }
    }

    fn owned_by_others_than(&self, peer: Id) -> Vec<(IpAddr, IpAddr)> {
        let mut all = Vec::new();
        for area in &self.areas {
            let mut runs: Vec<(u32, u32)> = Vec::new();
            let others = area.ring.regs(0, area.ring.blocks());
            for run in others.filter(|run| run.reg.holder.peer().is_some_and(|owner| owner != peer)) {
                match runs.last_mut() {
                    Some((_, hi)) if *hi == run.lo => *hi = run.hi,
                    _ => runs.push((run.lo, run.hi)),
                }
            }
            let range = &area.range;
            let ends = |(lo, hi)| (range.address(range.first_of(lo)), range.address(range.first_of(hi) - 1));
            all.extend(runs.into_iter().map(ends));
        }
        all
    }
}
