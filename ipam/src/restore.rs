//! Coming back from durable state.

use std::collections::BTreeMap;

use crate::Change;
use crate::allocator::StateError;
use crate::founding::Network;
use crate::grant::Outstanding;
use crate::machine::Machine;
use crate::ring::RegRun;
use crate::space::{Given, REUSE_DELAY};
use crate::store::{self, Entry, Key, StoredAddress, StoredRun, StoredVote};
use crate::wire::Net;

impl Machine {
    /// Takes over the state of earlier lives; returns whether there was none. Blocks of those are
    /// of use only once the voters have settled that they are this life's (ipam I9).
    pub(crate) fn restore(&mut self, state: Vec<(Vec<u8>, Vec<u8>)>) -> Result<bool, StateError> {
        let fresh = state.is_empty();
        self.keeping.look_again = true;
        let state: BTreeMap<Vec<u8>, Vec<u8>> = state.into_iter().collect();
        if let Some(old) = store::read_network(&state)?.filter(|network| network.has_other_ranges(&self.universe)) {
            self.change_ranges(&old, &state)?;
            return Ok(true);
        }
        for (key, value) in &state {
            let corrupt = |why: String| StateError::Corrupt { key: key.escape_ascii().to_string(), why };
            match store::read(key, value)? {
                Entry::Network(network) => self.restore_network(network)?,
                Entry::Panel(panel) => self.panel = Some(panel),
                Entry::Seat(seat) => self.voter.seat = seat,
                Entry::Gone(gone) => {
                    self.gone = gone.into_iter().map(|removed| (removed.owner, removed.cleared)).collect();
                }
                Entry::Silent(found) => self.silence.found = found.into_iter().collect(),
                Entry::Kept(list) => self.keeping.restore(list),
                Entry::Votes { range, runs } => {
                    self.restore_votes(usize::from(range), &runs).map_err(corrupt)?;
                }
                Entry::Left => self.join.left(self.now),
                Entry::Lost => self.join.lost = true,
                Entry::Vote(acceptor) => self.join.acceptor = acceptor,
                Entry::Ring { range, runs } => {
                    self.restore_runs(usize::from(range), &runs).map_err(corrupt)?;
                }
                Entry::Address(address, stored) => {
                    let (index, offset) = self.universe.find(address).ok_or_else(|| {
                        StateError::Ranges(format!(
                            "{address} is recorded, but is in none of the configured ranges ({}); \
                             configure the ranges that were used before",
                            self.universe.text()
                        ))
                    })?;
                    self.restore_address(index, offset, stored);
                }
                Entry::Grant(id, stored) => {
                    self.grants.insert(id, Outstanding::restored(stored, self.now));
                }
            }
        }
        if self.network.is_some() != self.panel.is_some() {
            let missing = if self.network.is_some() { "panel" } else { "network" };
            return Err(StateError::Corrupt { key: missing.to_owned(), why: "it is missing".to_owned() });
        }
        if self.network.is_some() {
            self.joined_at = self.now;
            self.resume_voting();
        }
        Ok(fresh)
    }

    /// Other ranges are another network: this peer leaves the old one, with what it gave, if all of that
    /// is in the new ranges (ipam I23).
    fn change_ranges(&mut self, old: &Network, state: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), StateError> {
        const NAMED: usize = 3;
        let (mut stranded, mut carried) = (Vec::new(), Vec::new());
        for (key, value) in state {
            match store::read(key, value)? {
                Entry::Address(address, stored) => match (self.universe.find(address), stored) {
                    (Some((index, offset)), stored) => carried.push((address, index, offset, stored)),
                    (None, StoredAddress::Given { owner, .. }) => stranded.push(format!("{address} of {owner}")),
                    (None, StoredAddress::Freed) => {}
                },
                // What others keep, they keep in whatever network.
                Entry::Kept(list) => self.keeping.restore(list),
                _ => {}
            }
        }
        let (before, now) = (old.ranges_text(), self.universe.text());
        if !stranded.is_empty() {
            let more = stranded.len().saturating_sub(NAMED);
            stranded.truncate(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            return Err(StateError::Ranges(format!(
                "this peer gave addresses from the ranges {before}, and is configured with {now} now, which would \
                 strand {}{more}; start it with the old ranges and detach what has them first",
                stranded.join(", ")
            )));
        }
        let kept =
            |key: &[u8], value: &[u8]| store::read(key, value).is_ok_and(|entry| matches!(entry, Entry::Kept(_)));
        for (key, _) in state.iter().filter(|(key, value)| !kept(key, value)) {
            self.journal.put(Change { key: key.clone(), value: None });
        }
        let count = carried.len();
        for (address, index, offset, stored) in carried {
            let stored = self.in_new_range(old, index, stored);
            self.journal.put(store::put(Key::Address(address), &stored));
            self.restore_address(index, offset, stored);
        }
        let carried = if count > 0 { "; the addresses that it gave stay, for all are in the new ranges" } else { "" };
        self.notice(format!(
            "the ranges were {before} and are {now} now: this peer left the address network {}{carried}; configure \
             the same ranges on every peer",
            old.id
        ));
        Ok(())
    }

    /// What was asked of a whole range is of the whole new one, for whoever asks for that again.
    fn in_new_range(&self, old: &Network, index: usize, stored: StoredAddress) -> StoredAddress {
        match stored {
            StoredAddress::Given { owner, net } => {
                let was_whole = old.ranges.contains(&net);
                let fits = !was_whole && self.universe.containing(net.0) == Some(index);
                let net = if fits { net } else { Net(self.areas[index].range.net()) };
                StoredAddress::Given { owner, net }
            }
            StoredAddress::Freed => StoredAddress::Freed,
        }
    }

    fn restore_network(&mut self, network: Network) -> Result<(), StateError> {
        network.check(&self.universe).map_err(StateError::Ranges)?;
        self.network = Some(network);
        Ok(())
    }

    fn restore_runs(&mut self, index: usize, runs: &[StoredRun]) -> Result<(), String> {
        let Some(area) = self.areas.get_mut(index) else {
            return Err(format!("there is no range number {index}"));
        };
        for run in runs {
            if run.lo >= run.hi || run.hi > area.ring.blocks() {
                return Err(format!("there are no blocks {}..{}", run.lo, run.hi));
            }
            let reg_run = RegRun { lo: run.lo, hi: run.hi, reg: run.reg };
            let kept = self.ablation.no_restart_term && run.reg.holder.peer() == Some(self.me.peer);
            area.ring.write(reg_run, kept);
        }
        Ok(())
    }

    fn restore_votes(&mut self, index: usize, runs: &[StoredVote]) -> Result<(), String> {
        let Some(votes) = self.voter.votes.get_mut(index) else {
            return Err(format!("there is no range number {index}"));
        };
        for run in runs {
            if run.lo >= run.hi || run.hi > votes.end() {
                return Err(format!("there are no blocks {}..{}", run.lo, run.hi));
            }
            votes.set(run.lo, run.hi, run.vote);
        }
        Ok(())
    }

    fn restore_address(&mut self, index: usize, offset: u128, stored: StoredAddress) {
        let area = &mut self.areas[index];
        match stored {
            StoredAddress::Given { owner, net } => {
                self.owners.entry(owner.clone()).or_default().insert((index, offset));
                let given = Given { owner, net: net.0, since: None, batch: 0 };
                area.space.give(offset, given);
            }
            // How much of the delay is left is not known: all of it again.
            StoredAddress::Freed => area.space.cool(offset, self.now + REUSE_DELAY),
        }
    }
}
