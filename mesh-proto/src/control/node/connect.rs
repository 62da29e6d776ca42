//! The connector's place in the node: what it looks at, and whose links there is no room for.

use core::net::SocketAddr;
use std::collections::BTreeSet;

use super::super::connector::Step;
use super::super::handshake::{Refusal, Role};
use super::super::limits::{LINKS_BEYOND, SETTLED_AFTER, SHED_AT_ONCE, SHED_EVERY};
use super::super::timers::Timer;
use super::super::wanted::{PeerView, View, successors};
use super::super::{ConnId, Identity, Output};
use super::Node;
use super::link::Peer;
use crate::id::PeerId;
use crate::wire::control::RefuseCode;
use crate::wire::gossip::LINKS_MAX;

impl<I: Identity> Node<I> {
    /// Dials whom the connector wants to be dialled.
    pub(super) fn run_connector(&mut self) {
        if !core::mem::take(&mut self.stale.dials) {
            return;
        }
        let endpoints = self.endpoints_of_all();
        let view = self.view(&endpoints);
        let (steps, wake) = self.connector.tick(&view, self.now, &mut self.rng);
        match wake {
            Some(at) => self.timers.set(Timer::Dial, at),
            None => self.timers.clear(Timer::Dial),
        }
        self.stale.status |= !steps.is_empty();
        for step in steps {
            self.out.push_back(match step {
                Step::Dial(dial, hop) => Output::Dial { dial, hop },
                Step::Resolve(target) => Output::Resolve { target },
            });
        }
    }

    /// Endpoints of each peer without link, except those that are ours as well (bridges and
    /// loopbacks have the same addresses on every host) or where another peer is linked now.
    fn endpoints_of_all(&self) -> Vec<Vec<SocketAddr>> {
        let ours = &self.config.endpoints;
        let taken: BTreeSet<SocketAddr> =
            self.peers.values().filter_map(|peer| peer.direct).map(|direct| direct.address).collect();
        let of = |(id, peer): (&PeerId, &Peer)| match self.store.get(id) {
            Some(record) if peer.direct.is_none() => record
                .body
                .endpoints
                .iter()
                .map(|endpoint| endpoint.0)
                .filter(|address| !ours.contains(address) && !taken.contains(address))
                .collect(),
            _ => Vec::new(),
        };
        self.peers.iter().map(of).collect()
    }

    fn view<'a>(&self, endpoints: &'a [Vec<SocketAddr>]) -> View<'a> {
        let peers = self.peers.iter().zip(endpoints).map(|((id, peer), endpoints)| PeerView {
            id: *id,
            endpoints,
            address: peer.direct.map(|direct| direct.address),
            connected: peer.direct.is_some(),
            dialled: peer.direct.is_some_and(|direct| direct.role == Role::Dialler),
            reachable: peer.reachable,
            settled: self.now >= peer.known_since + SETTLED_AFTER,
            relayed: peer.relayed.is_some(),
        });
        View { me: self.me, discovery: self.config.discovery, links_max: self.config.links_max, peers: peers.collect() }
    }

    /// The direct connections that others opened.
    fn accepted(&self) -> impl Iterator<Item = (PeerId, ConnId)> + '_ {
        self.peers.iter().filter_map(|(id, peer)| {
            let direct = peer.direct.filter(|direct| direct.role == Role::Acceptor)?;
            Some((*id, direct.conn))
        })
    }

    /// Whether a newcomer must go elsewhere: we have links enough, it is no neighbour in the
    /// order of ids, and it can be reached without us.
    pub(super) fn is_crowded_for(&self, newcomer: &PeerId) -> bool {
        self.accepted().count() >= self.config.links_max
            && self.routes.reaches(newcomer)
            && self.peers.get(newcomer).is_none_or(|peer| peer.direct.is_none())
            && !self.is_ring_neighbour(newcomer)
    }

    /// Whether not one link more fits into our record.
    pub(super) fn is_full(&self) -> bool {
        self.peers.values().filter(|peer| peer.direct.is_some()).count() >= LINKS_MAX
    }

    /// The topology changed: perhaps there are links that nobody would miss.
    pub(super) fn shed_soon(&mut self) {
        if self.surplus() > 0 {
            self.timers.set_if_none(Timer::Shed, self.now + SHED_EVERY);
        }
    }

    /// How many links there are too many: accepted ones, or of all.
    fn surplus(&self) -> usize {
        let all = self.peers.values().filter(|peer| peer.direct.is_some()).count();
        let accepted = self.accepted().count().saturating_sub(self.config.links_max);
        accepted.max(all.saturating_sub(2 * self.config.links_max + LINKS_BEYOND))
    }

    /// Links too many: those that are missed least go, accepted ones first. Everybody is let in
    /// who cannot be reached otherwise, so a peer that all others name has too many for a while.
    pub(super) fn shed_if_crowded(&mut self) {
        let surplus = self.surplus();
        let mut victims: Vec<(bool, usize, PeerId, ConnId)> = self
            .peers
            .iter()
            .filter_map(|(id, peer)| {
                let direct = peer.direct?;
                let links = self.store.get(id).map_or(0, |record| record.body.links.len());
                Some((direct.role == Role::Acceptor, links, *id, direct.conn))
            })
            .filter(|(_, links, id, _)| *links > 2 && !self.is_ring_neighbour(id))
            .collect();
        victims.sort_unstable();
        for (_, _, id, conn) in victims.into_iter().rev().take(surplus.min(SHED_AT_ONCE)) {
            let refusal = Refusal::both(RefuseCode::Full, "this peer has links enough; you reach it through others");
            let Some(hop) = self.conns.get(&conn).map(|conn| conn.hop) else { continue };
            self.drop_conn(conn, "made room for another link");
            self.part(conn, hop, &refusal, None);
            self.connector.is_full(None, id, self.now, &mut self.rng);
        }
    }

    /// Whether one of us is among the other's next two in the order of ids.
    fn is_ring_neighbour(&self, other: &PeerId) -> bool {
        let no_endpoints = vec![Vec::new(); self.peers.len()];
        let ahead = successors(&self.view(&no_endpoints), |_| true);
        let after: Vec<&PeerId> = self.peers.keys().filter(|id| **id < self.me).rev().collect();
        let around: Vec<&PeerId> = self.peers.keys().filter(|id| **id > self.me).rev().collect();
        ahead.contains(other) || after.into_iter().chain(around).take(2).any(|id| id == other)
    }

    pub(super) fn on_forget(&mut self, target: &str) -> bool {
        let Some((peer, addresses)) = self.connector.remove_target(target) else { return false };
        let is_meant = |id: &PeerId, at: Option<SocketAddr>| {
            peer.as_ref() == Some(id) || at.is_some_and(|at| addresses.contains(&at))
        };
        let meant = self.peers.iter().filter_map(|(id, peer)| {
            let direct = peer.direct?;
            is_meant(id, Some(direct.address)).then_some(direct.conn)
        });
        for conn in meant.collect::<Vec<_>>() {
            self.close(conn, &format!("the operator of peer `{}` forgot this one", self.config.name));
        }
        self.stale.dials = true;
        true
    }
}
