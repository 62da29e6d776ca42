//! Which peer a MAC address belongs to.
//!
//! The first to claim an address has it for as long as it lives and claims it: nobody can take
//! an address from a live owner (fastpath F8). Who claims it later waits in line.

use std::collections::{BTreeMap, BTreeSet};

use crate::data::macs::Mac;
use crate::id::PeerId;
use crate::wire::fastpath::MACS_PER_PEER;

/// Most addresses of all peers together.
const TOTAL_MAX: usize = 65_536;

/// Claims on addresses.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    /// Claimants in the order of their claims; the first is the owner. Never empty.
    lines: BTreeMap<Mac, Vec<PeerId>>,
    claims: BTreeMap<PeerId, BTreeSet<Mac>>,
    total: usize,
    refused: u64,
}

/// An address with its new owner.
pub(crate) type Change = (Mac, Option<PeerId>);

impl Owners {
    /// Who has it.
    pub(crate) fn owner(&self, mac: Mac) -> Option<PeerId> {
        self.lines.get(&mac).and_then(|line| line.first()).copied()
    }

    /// What a peer claims, owned or not.
    pub(crate) fn claimed(&self, peer: PeerId) -> impl Iterator<Item = Mac> + '_ {
        self.claims.get(&peer).into_iter().flatten().copied()
    }

    /// What a peer owns.
    pub(crate) fn owned(&self, peer: PeerId) -> impl Iterator<Item = Mac> + '_ {
        self.claimed(peer).filter(move |mac| self.owner(*mac) == Some(peer))
    }

    /// How many addresses a peer claims.
    pub(crate) fn count(&self, peer: PeerId) -> usize {
        self.claims.get(&peer).map_or(0, BTreeSet::len)
    }

    /// Claims on addresses that others have, so far.
    pub(crate) const fn refused(&self) -> u64 {
        self.refused
    }

    /// A peer claims an address. `live` says whether its owner, if it has one, still lives.
    pub(crate) fn claim(&mut self, mac: Mac, peer: PeerId, live: impl Fn(PeerId) -> bool) -> Option<Change> {
        let own = self.claims.entry(peer).or_default();
        if own.len() >= MACS_PER_PEER || self.total >= TOTAL_MAX || !own.insert(mac) {
            return None;
        }
        self.total += 1;
        let line = self.lines.entry(mac).or_default();
        match line.first() {
            Some(&owner) if live(owner) => {
                self.refused += 1;
                line.push(peer);
                None
            }
            _ => {
                line.insert(0, peer);
                Some((mac, Some(peer)))
            }
        }
    }

    /// A peer gives an address up: the next in line has it.
    pub(crate) fn withdraw(&mut self, mac: Mac, peer: PeerId) -> Option<Change> {
        let own = self.claims.get_mut(&peer)?;
        if !own.remove(&mac) {
            return None;
        }
        if own.is_empty() {
            self.claims.remove(&peer);
        }
        self.total -= 1;
        let line = self.lines.get_mut(&mac)?;
        let owned = line.first() == Some(&peer);
        line.retain(|other| *other != peer);
        let next = line.first().copied();
        if line.is_empty() {
            self.lines.remove(&mac);
        }
        owned.then_some((mac, next))
    }

    /// A peer lives no more: whoever of the living waits in line has its addresses.
    pub(crate) fn died(&mut self, peer: PeerId, live: impl Fn(PeerId) -> bool) -> Vec<Change> {
        let mut changes = Vec::new();
        for &mac in self.claims.get(&peer).into_iter().flatten() {
            let Some(line) = self.lines.get_mut(&mac) else { continue };
            if line.first() == Some(&peer)
                && let Some(at) = line.iter().position(|other| live(*other))
            {
                let heir = line.remove(at);
                line.insert(0, heir);
                changes.push((mac, Some(heir)));
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: PeerId = PeerId([1; 16]);
    const B: PeerId = PeerId([2; 16]);
    const C: PeerId = PeerId([3; 16]);

    fn mac(n: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, n])
    }

    #[test]
    fn an_address_stays_with_its_live_owner_and_goes_to_the_next_in_line() {
        let mut owners = Owners::default();
        assert_eq!(owners.claim(mac(1), A, |_| true), Some((mac(1), Some(A))));
        assert_eq!(owners.claim(mac(1), B, |_| true), None);
        assert_eq!(owners.claim(mac(1), C, |_| true), None);
        assert_eq!((owners.owner(mac(1)), owners.refused()), (Some(A), 2));
        assert_eq!(owners.withdraw(mac(1), B), None);
        assert_eq!(owners.withdraw(mac(1), A), Some((mac(1), Some(C))));
        assert_eq!(owners.withdraw(mac(1), C), Some((mac(1), None)));
        assert_eq!(owners.owner(mac(1)), None);
    }

    #[test]
    fn a_dead_owner_loses_its_address_to_the_living_only() {
        let mut owners = Owners::default();
        let alive = |peer| peer != A;
        owners.claim(mac(1), A, |_| true);
        assert_eq!(owners.died(A, alive), [], "nobody waits: it keeps it until somebody asks");
        assert_eq!(owners.claim(mac(1), B, alive), Some((mac(1), Some(B))));
        owners.claim(mac(2), A, |_| true);
        owners.claim(mac(2), C, |_| true);
        assert_eq!(owners.died(A, alive), [(mac(2), Some(C))]);
    }

    #[test]
    fn a_peer_that_claims_everything_stops_at_its_bound() {
        let mut owners = Owners::default();
        for n in 0..20_000_u32 {
            let [_, b, c, d] = n.to_be_bytes();
            owners.claim(Mac([2, 9, 0, b, c, d]), A, |_| true);
        }
        assert_eq!(owners.count(A), MACS_PER_PEER);
        assert!(owners.claim(mac(1), B, |_| true).is_some(), "others are not held up by it");
    }

    proptest! {
        #[test]
        fn the_owner_is_always_a_claimant(steps in prop::collection::vec((0u8..6, 1u8..5, 0u8..3), 0..200)) {
            let mut owners = Owners::default();
            let mut dead = BTreeSet::new();
            for (n, who, what) in steps {
                let peer = PeerId([who; 16]);
                match what {
                    0 => { dead.remove(&peer); owners.claim(mac(n), peer, |p| !dead.contains(&p)); }
                    1 => { owners.withdraw(mac(n), peer); }
                    _ => { dead.insert(peer); owners.died(peer, |p| !dead.contains(&p)); }
                }
                for n in 0..6 {
                    if let Some(owner) = owners.owner(mac(n)) {
                        prop_assert!(owners.claimed(owner).any(|m| m == mac(n)));
                    }
                }
                let counted: usize = (1..5).map(|who| owners.count(PeerId([who; 16]))).sum();
                prop_assert_eq!(counted, owners.total);
            }
        }
    }
}
