//! Founding a network together: single-decree Paxos over what the network shall be.
//!
//! ```text
//!  proposer                      acceptors (itself included)
//!     ── Prepare(ballot) ──────────►  durable: promised = ballot
//!     ◄─ Promise(accepted before?) ─
//!        majority: value = newest accepted before, else its own
//!     ── Accept(ballot, value) ────►  durable: accepted = (ballot, value)
//!     ◄─ Accepted(ballot) ──────────
//!        majority: decided; everyone who hears of it adopts it
//! ```
//!
//! An acceptor refuses ballots below the one promised. Both answers leave only when durable, so
//! a restart forgets no promise. (ipam I3)

use std::collections::{BTreeMap, BTreeSet};

use minicbor::{Decode, Encode};

use crate::id::{Id, NetworkId, Owner};
use crate::range::Universe;
use crate::ring::{Hash, Holder, Order, Reg, RegRun};
use crate::wire::{Accepted, Net, WireRun};

/// Most voters of a network.
pub(crate) const MAX_VOTERS: usize = 5;
/// Term of the registers that a network is founded with: the first of the first panel.
pub(crate) const FIRST_TERM: u64 = 1 << crate::take::VERSION_SHIFT;

/// Number of a proposal; no two proposers ever use the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Ballot {
    /// Raised with every attempt.
    #[n(0)]
    pub(crate) round: u64,
    /// Who proposes.
    #[n(1)]
    pub(crate) proposer: Id,
    /// In which life: a proposer that restarts does not know which rounds it used.
    #[n(2)]
    pub(crate) life: u64,
}

/// What a network is founded as; it never changes.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Network {
    /// Its name, drawn by the proposer.
    #[n(0)]
    pub(crate) id: NetworkId,
    /// Its ranges, sorted.
    #[n(1)]
    pub(crate) ranges: Vec<Net>,
    /// The peers that settle what the owners cannot.
    #[n(2)]
    pub(crate) voters: Vec<Id>,
    /// Who gets a share of the blocks, in order of the shares.
    #[n(3)]
    pub(crate) shares: Vec<Owner>,
}

impl Network {
    /// A network of these founders.
    pub(crate) fn found(id: NetworkId, universe: &Universe, mut founders: Vec<Owner>) -> Self {
        founders.sort_unstable();
        founders.dedup_by_key(|owner| owner.peer);
        let count = match founders.len() {
            0..=2 => 1,
            3 | 4 => 3,
            _ => MAX_VOTERS,
        };
        Self {
            id,
            ranges: universe.nets().into_iter().map(Net).collect(),
            voters: founders.iter().take(count).map(|owner| owner.peer).collect(),
            shares: founders,
        }
    }

    /// The network that these peers were told to found: the same, whoever of them says so. Their
    /// shares are those of a life that nobody lives, so each settles its own before it uses it.
    pub(crate) fn seeded(seeds: &[Id], universe: &Universe) -> Self {
        const NOBODYS: u64 = 0;
        let founders: BTreeSet<Owner> = seeds.iter().map(|&peer| Owner { peer, life: NOBODYS }).collect();
        let mut id = [0; 16];
        for (salt, half) in (1..).zip(id.chunks_exact_mut(8)) {
            let mut hash = Hash::default();
            hash.word(salt);
            hash.word(universe.hash());
            for owner in &founders {
                let peer = u128::from_be_bytes(owner.peer.0);
                hash.word((peer >> 64) as u64);
                hash.word(peer as u64);
            }
            half.copy_from_slice(&hash.finish().to_be_bytes());
        }
        Self::found(NetworkId(id), universe, founders.into_iter().collect())
    }

    /// Whether a network read from the wire can be used with these ranges.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check(&self, universe: &Universe) -> Result<(), String> {
        if self.has_other_ranges(universe) {
            return Err(format!(
                "the network has the ranges {}, this peer is configured with {}; configure the \
                 same ranges on every peer",
                self.ranges_text(),
                universe.text()
            ));
        }
        if self.shares.is_empty() || self.voters.is_empty() || self.voters.len() > MAX_VOTERS {
            return Err("the network has no founder, no voter, or too many voters".to_owned());
        }
        Ok(())
    }

    /// Whether these are not its ranges.
    pub(crate) fn has_other_ranges(&self, universe: &Universe) -> bool {
        !self.ranges.iter().map(|net| net.0).eq(universe.nets())
    }

    /// Its ranges as text.
    pub(crate) fn ranges_text(&self) -> String {
        let texts: Vec<String> = self.ranges.iter().map(|net| net.0.to_string()).collect();
        texts.join(", ")
    }

    /// The registers of the beginning: an even split.
    pub(crate) fn first_registers(&self, universe: &Universe) -> Vec<WireRun> {
        let mut runs = Vec::new();
        let count = self.shares.len() as u64;
        for (index, range) in universe.ranges().iter().enumerate() {
            let border = |share: u64| {
                let at = share.saturating_mul(u64::from(range.blocks())) / count.max(1);
                u32::try_from(at).unwrap_or(u32::MAX)
            };
            for (share, owner) in (0u64..).zip(&self.shares) {
                let (lo, hi) = (border(share), border(share + 1));
                if lo < hi {
                    let reg = Reg { order: Order { term: FIRST_TERM, epoch: 0 }, holder: Holder::One(*owner) };
                    runs.push(WireRun::new(index, RegRun { lo, hi, reg }));
                }
            }
        }
        runs
    }
}

/// The durable side of the agreement.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Acceptor {
    /// No ballot below this one is answered.
    #[n(0)]
    pub(crate) promised: Option<Ballot>,
    /// The newest value accepted.
    #[n(1)]
    pub(crate) accepted: Option<Accepted>,
}

impl Acceptor {
    /// Phase 1: promises, and tells what was accepted.
    ///
    /// # Errors
    /// The newer ballot that was promised before.
    pub(crate) fn prepare(&mut self, ballot: Ballot) -> Result<Option<Accepted>, Ballot> {
        match self.promised {
            Some(promised) if promised > ballot => Err(promised),
            _ => {
                self.promised = Some(ballot);
                Ok(self.accepted.clone())
            }
        }
    }

    /// Phase 2: accepts.
    ///
    /// # Errors
    /// The newer ballot that was promised before.
    pub(crate) fn accept(&mut self, accepted: Accepted) -> Result<(), Ballot> {
        match self.promised {
            Some(promised) if promised > accepted.ballot => Err(promised),
            _ => {
                self.promised = Some(accepted.ballot);
                self.accepted = Some(accepted);
                Ok(())
            }
        }
    }
}

/// How many of `peers` are a majority.
pub(crate) fn majority(peers: usize) -> usize {
    peers / 2 + 1
}

/// One attempt to found a network.
#[derive(Debug, Clone)]
pub(crate) struct Proposal {
    /// Its number.
    pub(crate) ballot: Ballot,
    /// Peers that exist, as far as anybody knows: the most that any of them was told of, itself
    /// included.
    population: usize,
    phase: Phase,
}

#[derive(Debug, Clone)]
enum Phase {
    Preparing { promised: BTreeMap<Id, u64>, newest: Option<Accepted> },
    Accepting { network: Network, accepted: BTreeSet<Id> },
}

impl Proposal {
    /// Starts phase 1.
    pub(crate) fn new(ballot: Ballot, population: usize) -> Self {
        Self { ballot, population, phase: Phase::Preparing { promised: BTreeMap::new(), newest: None } }
    }

    /// A promise; returns what to ask everyone to accept once a majority promised.
    pub(crate) fn promised(
        &mut self,
        from: Owner,
        accepted: Option<Accepted>,
        named: usize,
        propose: impl FnOnce(Vec<Owner>) -> Network,
    ) -> Option<Accepted> {
        let Phase::Preparing { promised, newest } = &mut self.phase else {
            return None;
        };
        self.population = self.population.max(named.saturating_add(1));
        promised.insert(from.peer, from.life);
        if let Some(one) = accepted
            && newest.as_ref().is_none_or(|newest| newest.ballot < one.ballot)
        {
            *newest = Some(one);
        }
        if promised.len() < majority(self.population) {
            return None;
        }
        let founders = promised.iter().map(|(&peer, &life)| Owner { peer, life }).collect();
        let network = match newest.take() {
            Some(newest) => newest.network,
            None => propose(founders),
        };
        self.phase = Phase::Accepting { network: network.clone(), accepted: BTreeSet::new() };
        Some(Accepted { ballot: self.ballot, network })
    }

    /// An acceptance; returns the network once a majority accepted it.
    pub(crate) fn accepted(&mut self, from: Id) -> Option<Network> {
        let Phase::Accepting { network, accepted } = &mut self.phase else {
            return None;
        };
        accepted.insert(from);
        (accepted.len() >= majority(self.population)).then(|| network.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballot(round: u64, peer: u8) -> Ballot {
        Ballot { round, proposer: Id([peer; 16]), life: 1 }
    }

    fn owner(peer: u8) -> Owner {
        Owner { peer: Id([peer; 16]), life: 1 }
    }

    fn network(id: u8, founders: Vec<Owner>) -> Network {
        let universe = Universe::new(&["10.0.0.0/24".parse().unwrap()]).unwrap();
        Network::found(NetworkId([id; 16]), &universe, founders)
    }

    #[test]
    fn an_acceptor_keeps_its_promise() {
        let mut acceptor = Acceptor::default();
        assert_eq!(acceptor.prepare(ballot(2, 1)), Ok(None));
        assert_eq!(acceptor.prepare(ballot(1, 9)), Err(ballot(2, 1)));
        let old = Accepted { ballot: ballot(1, 9), network: network(1, vec![owner(1)]) };
        assert_eq!(acceptor.accept(old), Err(ballot(2, 1)));
        let new = Accepted { ballot: ballot(2, 1), network: network(2, vec![owner(1)]) };
        assert_eq!(acceptor.accept(new.clone()), Ok(()));
        assert_eq!(acceptor.prepare(ballot(3, 2)), Ok(Some(new)));
    }

    #[test]
    fn a_proposer_takes_the_newest_value_that_it_hears_of() {
        let mut proposal = Proposal::new(ballot(5, 1), 5);
        let before = |round, id| Some(Accepted { ballot: ballot(round, 2), network: network(id, vec![owner(id)]) });
        let own = |_| network(9, vec![owner(9)]);
        assert_eq!(proposal.promised(owner(1), before(1, 1), 4, own), None);
        assert_eq!(proposal.promised(owner(2), before(3, 3), 4, own), None);
        assert_eq!(proposal.promised(owner(2), before(3, 3), 4, own), None, "counted once");
        let asked = proposal.promised(owner(3), before(2, 2), 4, own).unwrap();
        assert_eq!(asked.network.id, NetworkId([3; 16]));
        assert_eq!(proposal.accepted(Id([1; 16])), None);
        assert_eq!(proposal.accepted(Id([1; 16])), None, "counted once");
        assert_eq!(proposal.accepted(Id([2; 16])), None);
        assert_eq!(proposal.accepted(Id([3; 16])), Some(asked.network));
    }

    #[test]
    fn the_majority_is_of_the_most_peers_that_anybody_was_told_of() {
        let mut proposal = Proposal::new(ballot(1, 1), 2);
        let own = |founders| network(9, founders);
        assert_eq!(proposal.promised(owner(1), None, 1, own), None);
        assert_eq!(proposal.promised(owner(2), None, 4, own), None, "3 of 5 are needed");
        let asked = proposal.promised(owner(3), None, 0, own).unwrap();
        assert_eq!(asked.network.shares, [owner(1), owner(2), owner(3)]);
        assert_eq!(asked.network.voters.len(), 3);
    }

    #[test]
    fn the_first_split_is_even_and_whole() {
        let universe = Universe::new(&[
            "10.0.0.0/24".parse().unwrap(),
            "fd00::/64".parse().unwrap(),
            "10.9.0.1/32".parse().unwrap(),
        ])
        .unwrap();
        let founders = vec![owner(3), owner(1), owner(2)];
        let network = Network::found(NetworkId([1; 16]), &universe, founders);
        let runs = network.first_registers(&universe);
        for (index, range) in universe.ranges().iter().enumerate() {
            let mut next = 0;
            for run in runs.iter().filter(|run| usize::from(run.range) == index) {
                assert_eq!(run.lo, next);
                next = run.hi;
            }
            assert_eq!(next, range.blocks());
        }
        let sizes: Vec<u32> = runs.iter().filter(|run| run.range == 0).map(|run| run.hi - run.lo).collect();
        assert_eq!(sizes, [85, 85, 86]);
    }
}
