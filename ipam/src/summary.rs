//! What a machine tells about itself.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::allocator::Away;
use crate::id::Id;
use crate::machine::Machine;
use crate::wire::Wanted;

/// Numbers of addresses in the blocks held here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// All but the reserved ones.
    pub(crate) owned: u64,
    /// Can be given now.
    pub(crate) free: u64,
    /// Given.
    pub(crate) used: u64,
    /// Freed lately.
    pub(crate) cooling: u64,
}

fn saturate(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

impl Machine {
    /// Whether addresses can be given.
    ///
    /// # Errors
    /// What is waited for.
    pub(crate) fn readiness(&self) -> Result<(), String> {
        if let Some(why) = self.journal.failure() {
            return Err(format!("the address state cannot be written: {why}"));
        }
        if self.network.is_none() {
            return Err(self.waiting());
        }
        if !self.journal.is_durable(self.network_batch) {
            return Err("the address state is being written".to_owned());
        }
        if let Some(obstacle) = self.sole_obstacle() {
            return Err(format!("waiting for {obstacle}"));
        }
        if !self.has_lease() {
            return Err(format!("waiting for {}", self.lease_obstacle()));
        }
        for (range, area) in (0u16..).zip(&self.areas) {
            if area.owned() == 0 {
                let wanted = Wanted { range, lo: 0, hi: area.ring.blocks(), address: None };
                let net = area.range.net();
                let obstacle = self.obstacle(&wanted);
                return Err(format!("waiting for a first share of {net}: {obstacle}"));
            }
        }
        Ok(())
    }

    /// How many addresses there are here.
    pub(crate) fn counts(&self) -> Counts {
        let (mut owned, mut used, mut cooling, mut kept) = (0u128, 0, 0, 0);
        for area in &self.areas {
            owned = owned.saturating_add(area.owned());
            used += area.space.used();
            cooling += area.space.cooling();
            kept += area.kept();
        }
        Counts {
            owned: saturate(owned),
            free: saturate(owned.saturating_sub(used + cooling + kept)),
            used: saturate(used),
            cooling: saturate(cooling),
        }
    }

    /// Addresses in the blocks of every peer, this one first.
    pub(crate) fn owned_by_peers(&self) -> Vec<(Id, u64)> {
        let mut peers: BTreeMap<Id, u128> = BTreeMap::new();
        for area in &self.areas {
            for run in area.ring.regs(0, area.ring.blocks()) {
                if let Some(peer) = run.reg.holder.peer() {
                    let owned = peers.entry(peer).or_default();
                    *owned = owned.saturating_add(area.range.usable(run.lo, run.hi));
                }
            }
        }
        let mine = (self.me.peer, self.counts().owned);
        peers.remove(&self.me.peer);
        let others = peers.into_iter().map(|(peer, owned)| (peer, saturate(owned)));
        core::iter::once(mine).chain(others).collect()
    }

    /// Owners that cannot be reached.
    pub(crate) fn away(&self) -> Vec<Away<Id>> {
        let rings = self.areas.iter().flat_map(|area| area.ring.regs(0, area.ring.blocks()));
        let owners: BTreeSet<Id> = rings.filter_map(|run| run.reg.holder.peer()).collect();
        let away = owners.into_iter().filter(|peer| *peer != self.me.peer && !self.is_here(peer));
        away.map(|peer| {
            let (silent, removal) = self.silence_of(peer).unzip();
            Away { peer, silent, removal: removal.flatten(), removed: self.is_gone(&peer) }
        })
        .collect()
    }

    /// The addresses given here: owner, address, since when.
    pub(crate) fn allocations(&self) -> Vec<(String, IpNet, Option<Duration>)> {
        let mut list = Vec::new();
        for area in &self.areas {
            for (offset, given) in area.space.all_given() {
                let address = area.range.address(offset);
                if let Ok(net) = IpNet::new(address, given.net.prefix_len()) {
                    list.push((given.owner.clone(), net, given.since));
                }
            }
        }
        list
    }

    /// How often a register, or what is held, has changed.
    pub(crate) fn changes(&self) -> u64 {
        self.areas.iter().map(|area| area.ring.changes()).sum()
    }

    /// The blocks held here, as first and last address.
    pub(crate) fn held(&self) -> Vec<(IpAddr, IpAddr)> {
        let mut list = Vec::new();
        for area in &self.areas {
            for (lo, hi) in area.ring.held(0, area.ring.blocks()) {
                let (first, last) = (area.range.first_of(lo), area.range.first_of(hi) - 1);
                list.push((area.range.address(first), area.range.address(last)));
            }
        }
        list
    }

    /// The network's name for people.
    pub(crate) fn network_text(&self) -> Option<String> {
        self.network_id().map(|id| id.to_string())
    }

    /// What is wrong, a line each.
    pub(crate) fn problem_texts(&self) -> Vec<String> {
        let foreign = self
            .foreign
            .iter()
            .map(|(network, peer)| format!("peer {peer} belongs to another address network ({network})"));
        self.problems.iter().cloned().chain(foreign).collect()
    }
}
