//! The voters: few peers that settle what the owners of blocks cannot settle among themselves.
//!
//! ```text
//!  panel v ──Prepare, Promise, Accept, Accepted among the voters of v──► panel v+1 decided
//!    whoever accepted answers no more for v                                  │
//!    new voters ◄─ everything that a majority of v knew ─────────────────────┘  then they answer
//! ```
//!
//! A panel has 1, 3 or 5 voters. Since no majority of the old panel is left that answers, and a
//! majority of it was heard before the new one answers, the two may differ in any way (ipam I19).

use std::collections::{BTreeMap, BTreeSet};

use minicbor::{Decode, Encode};

use crate::founding::{Ballot, MAX_VOTERS, majority};
use crate::id::Id;

/// The voters of a network, as of one version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Panel {
    /// Raised with every change.
    #[n(0)]
    pub(crate) version: u64,
    /// The voters, in order.
    #[n(1)]
    pub(crate) voters: Vec<Id>,
    /// The voters of the version before, from whom these learn what was settled.
    #[n(2)]
    pub(crate) before: Vec<Id>,
}

impl Panel {
    /// The panel that a network is founded with.
    pub(crate) fn first(voters: &[Id]) -> Self {
        Self { version: 1, voters: voters.to_vec(), before: Vec::new() }
    }

    /// The next panel, of these voters.
    pub(crate) fn next(&self, mut voters: Vec<Id>) -> Self {
        voters.sort_unstable();
        voters.dedup();
        Self { version: self.version.saturating_add(1), voters, before: self.voters.clone() }
    }

    /// Whether it can be used.
    pub(crate) fn is_sound(&self) -> bool {
        !self.voters.is_empty() && self.voters.len() <= MAX_VOTERS && self.before.len() <= MAX_VOTERS
    }

    /// How many voters decide.
    pub(crate) fn majority(&self) -> usize {
        majority(self.voters.len())
    }

    /// How many of the other voters a voter must hear before it can be sure to know all that was
    /// ever settled, even if it has forgotten everything itself.
    pub(crate) fn others_to_hear(&self) -> usize {
        let count = self.voters.len();
        (count - self.majority() + 1).min(count - 1)
    }
}

/// What a voter keeps of its part in the change of panels.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Seat {
    /// The panel for which this voter's votes are complete; 0: never was a voter.
    #[n(0)]
    pub(crate) version: u64,
    /// No older ballot for the next panel is answered.
    #[n(1)]
    pub(crate) promised: Option<Ballot>,
    /// The newest next panel that was accepted. From then on, this voter settles nothing for the
    /// panel of `version`.
    #[n(2)]
    pub(crate) accepted: Option<NextPanel>,
}

/// A next panel under a ballot.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct NextPanel {
    /// The ballot.
    #[n(0)]
    pub(crate) ballot: Ballot,
    /// The panel.
    #[n(1)]
    pub(crate) panel: Panel,
}

impl Seat {
    /// Phase 1; whether it was promised.
    pub(crate) fn prepare(&mut self, ballot: Ballot) -> bool {
        if self.promised.is_some_and(|promised| promised > ballot) {
            return false;
        }
        self.promised = Some(ballot);
        true
    }

    /// Phase 2; whether it was accepted.
    pub(crate) fn accept(&mut self, next: NextPanel) -> bool {
        if self.promised.is_some_and(|promised| promised > next.ballot) {
            return false;
        }
        self.promised = Some(next.ballot);
        self.accepted = Some(next);
        true
    }

    /// Takes over what another voter of the same version knows.
    pub(crate) fn join(&mut self, other: &Self) {
        self.promised = self.promised.max(other.promised);
        let newest = |next: &Option<NextPanel>| next.as_ref().map(|next| next.ballot);
        if newest(&other.accepted) > newest(&self.accepted) {
            self.accepted.clone_from(&other.accepted);
        }
    }
}

/// An attempt to change the panel.
#[derive(Debug, Clone)]
pub(crate) struct PanelChange {
    /// Its number.
    pub(crate) ballot: Ballot,
    wish: Panel,
    promised: BTreeMap<Id, Option<NextPanel>>,
    accepting: Option<Panel>,
    accepted: BTreeSet<Id>,
}

impl PanelChange {
    /// Phase 1 begins.
    pub(crate) fn new(ballot: Ballot, wish: Panel) -> Self {
        Self { ballot, wish, promised: BTreeMap::new(), accepting: None, accepted: BTreeSet::new() }
    }

    /// A promise of a voter of `now`; what to ask all of them to accept, once a majority promised.
    pub(crate) fn promised(&mut self, now: &Panel, from: Id, before: Option<NextPanel>) -> Option<NextPanel> {
        if self.accepting.is_some() || !now.voters.contains(&from) {
            return None;
        }
        self.promised.insert(from, before);
        if self.promised.len() < now.majority() {
            return None;
        }
        let newest = self.promised.values().flatten().max_by_key(|next| next.ballot);
        let panel = newest.map_or_else(|| self.wish.clone(), |next| next.panel.clone());
        self.accepting = Some(panel.clone());
        Some(NextPanel { ballot: self.ballot, panel })
    }

    /// An acceptance of a voter of `now`; the decided panel, once a majority accepted.
    pub(crate) fn accepted(&mut self, now: &Panel, from: Id) -> Option<Panel> {
        let panel = self.accepting.as_ref()?;
        if now.voters.contains(&from) {
            self.accepted.insert(from);
        }
        (self.accepted.len() >= now.majority()).then(|| panel.clone())
    }
}

/// Who should vote: the voters of now without those that are gone, filled up with members that
/// can be reached, to 1, 3 or 5.
pub(crate) fn wished(now: &Panel, is_gone: impl Fn(&Id) -> bool, reachable: &BTreeSet<Id>) -> Vec<Id> {
    let mut keep: Vec<Id> = now.voters.iter().copied().filter(|voter| !is_gone(voter)).collect();
    let size = match reachable.len().max(keep.len()) {
        0..=2 => 1,
        3 | 4 => 3,
        _ => MAX_VOTERS,
    };
    // Those that cannot be reached are the first to be left out, if there are too many.
    keep.sort_by_key(|voter| (!reachable.contains(voter), *voter));
    keep.truncate(size);
    let more: Vec<Id> = reachable.iter().copied().filter(|peer| !keep.contains(peer) && !is_gone(peer)).collect();
    let room = size.saturating_sub(keep.len());
    keep.extend(more.into_iter().take(room));
    if keep.len().is_multiple_of(2) {
        keep.pop();
    }
    keep.sort_unstable();
    keep
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(peers: &[u8]) -> Vec<Id> {
        peers.iter().map(|&peer| Id([peer; 16])).collect()
    }

    fn wish(now: &[u8], gone: &[u8], reachable: &[u8]) -> Vec<Id> {
        let gone = ids(gone);
        let reachable = ids(reachable).into_iter().collect();
        wished(&Panel::first(&ids(now)), |peer| gone.contains(peer), &reachable)
    }

    #[test]
    fn panels_grow_by_what_can_be_reached_and_do_not_shrink_for_silence() {
        assert_eq!(wish(&[1], &[], &[1]), ids(&[1]));
        assert_eq!(wish(&[1], &[], &[1, 2]), ids(&[1]));
        assert_eq!(wish(&[2], &[], &[1, 2, 3]), ids(&[1, 2, 3]));
        assert_eq!(wish(&[1, 2, 3], &[], &[1, 2, 3, 4, 5]), ids(&[1, 2, 3, 4, 5]));
        assert_eq!(wish(&[1, 2, 3], &[], &[1]), ids(&[1, 2, 3]));
        assert_eq!(wish(&[1, 2, 3], &[], &[1, 4, 5]), ids(&[1, 2, 3]));
    }

    #[test]
    fn who_is_gone_is_replaced_or_left_out() {
        assert_eq!(wish(&[1, 2, 3], &[2], &[1, 3, 4]), ids(&[1, 3, 4]));
        assert_eq!(wish(&[1, 2, 3], &[2], &[1, 3]), ids(&[1]));
        assert_eq!(wish(&[1, 2, 3, 4, 5], &[5], &[1, 2, 3, 4]), ids(&[1, 2, 3]));
        assert_eq!(wish(&[1], &[1], &[2]), ids(&[2]));
    }

    #[test]
    fn a_voter_that_forgot_all_hears_so_many_that_it_misses_nothing() {
        for count in 1..=5u8 {
            let panel = Panel::first(&ids(&(1..=count).collect::<Vec<_>>()));
            let others = panel.others_to_hear();
            // Every majority that this voter was part of has another member among those heard.
            assert!(count == 1 || others + panel.majority() > usize::from(count));
        }
    }
}
