//! From records to tables: when to compute, and what the data path is told.

use core::time::Duration;
use std::sync::Arc;

use super::super::limits::ROUTES_EVERY;
use super::super::timers::Timer;
use super::super::topology::Change;
use super::super::{Identity, Output};
use super::Node;
use super::link::Peer;
use crate::handover::{Command, MAX_RELAYS, PeerPath, Tables};
use crate::id::PeerId;

/// The least time between two computations in a mesh of that many peers: all pairs cost about
/// the square of it.
pub(super) fn routes_every(peers: usize) -> Duration {
    ROUTES_EVERY * (1 + u32::try_from(peers / 16).unwrap_or(u32::MAX / 2)).min(50)
}

impl<I: Identity> Node<I> {
    /// Computes routes and trees if an edge may have changed, not too often.
    pub(super) fn recompute_routes(&mut self) {
        if !self.stale.routes {
            return;
        }
        let due = self.routes_at.map_or(self.now, |at| at + routes_every(self.store.len()));
        if self.now < due {
            self.timers.set_if_none(Timer::Routes, due);
            return;
        }
        self.stale.routes = false;
        self.timers.clear(Timer::Routes);
        let mine: Vec<(PeerId, u32)> =
            self.peers.iter().filter_map(|(id, peer)| Some((*id, peer.up?.published_us))).collect();
        let relinked = core::mem::take(&mut self.relinked);
        let change = self.topology.update(&self.store, self.me, &mine, &relinked);
        if change == Change::Nothing {
            return;
        }
        self.routes_at = Some(self.now);
        self.router.update(self.topology.graph(), &change, self.me);
        let reachable: Vec<(PeerId, bool)> =
            self.peers.iter().map(|(id, peer)| (*id, self.router.routes().reaches(id) || peer.up.is_some())).collect();
        for (id, reachable) in reachable {
            self.set_reachable(id, reachable);
        }
        self.stale.tables = true;
        self.compare_soon();
        self.shed_soon();
    }

    /// Hands the tables over if they differ from the last.
    pub(super) fn publish_tables(&mut self) {
        if core::mem::take(&mut self.stale.tables) {
            let tables = self.build_tables();
            if self.tables.as_deref() != Some(&tables) {
                let tables = Arc::new(tables);
                self.tables = Some(Arc::clone(&tables));
                self.out.push_back(Output::Data(Command::Tables(tables)));
            }
        }
        for peer in core::mem::take(&mut self.probe) {
            if self.peers.get(&peer).is_some_and(|peer| peer.direct.is_some()) {
                self.out.push_back(Output::Data(Command::Probe(peer)));
            }
        }
    }

    fn build_tables(&self) -> Tables {
        let up = |id: &PeerId| self.peers.get(id).is_some_and(|peer| peer.up.is_some());
        let peers = self.peers.iter().filter(|(id, peer)| self.is_spoken_to(id, peer));
        let trees = self.router.routes().trees.iter().filter_map(|(origin, children)| {
            let children: Vec<PeerId> = children.iter().filter(|child| up(child)).copied().collect();
            (!children.is_empty()).then_some((*origin, children))
        });
        Tables {
            me: self.me,
            incarnation: self.incarnation,
            peers: peers.map(|(id, peer)| (*id, self.path_to(id, peer))).collect(),
            trees: trees.collect(),
        }
    }

    fn is_spoken_to(&self, id: &PeerId, peer: &Peer) -> bool {
        self.store.get(id).is_some() || peer.direct.is_some() || peer.relayed.is_some()
    }

    fn path_to(&self, id: &PeerId, peer: &Peer) -> PeerPath {
        let relays = match (peer.up, self.router.routes().hops.get(id)) {
            (None, Some(hops)) => hops
                .iter()
                .filter(|hop| *hop != id && self.peers.get(hop).is_some_and(|hop| hop.up.is_some()))
                .take(MAX_RELAYS)
                .copied()
                .collect(),
            _ => Vec::new(),
        };
        PeerPath { incarnation: peer.incarnation, direct: peer.direct.map(|direct| direct.address), relays }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_meshes_compute_less_often_but_at_least_once_a_second() {
        assert_eq!(routes_every(5), ROUTES_EVERY);
        assert!(routes_every(100) <= Duration::from_millis(200));
        assert_eq!(routes_every(4096), Duration::from_secs(1));
    }
}
