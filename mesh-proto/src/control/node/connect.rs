//! The connector's place in the node: what it looks at, and whose links there is no room for.

use core::net::SocketAddr;
use core::ops::Bound;
use core::time::Duration;
use std::collections::BTreeMap;

use super::super::connector::Step;
use super::super::gossip::Store;
use super::super::handshake::{Refusal, Role};
use super::super::limits::{LINKS_BEYOND, SETTLED_AFTER, SHED_AT_ONCE, SHED_EVERY};
use super::super::timers::Timer;
use super::super::wanted::{PeerView, View};
use super::super::{ConnId, Identity, NodeConfig, Output};
use super::Node;
use super::link::Peer;
use super::routes::routes_every;
use crate::id::PeerId;
use crate::wire::control::RefuseCode;
use crate::wire::gossip::LINKS_MAX;

impl<I: Identity> Node<I> {
    /// Dials whom the connector wants to be dialled. In a large mesh looking at all peers costs
    /// something, so that is not done for each message; but at once if `urgent`.
    pub(super) fn run_connector(&mut self) {
        if !self.stale.dials {
            return;
        }
        let due = self.dials_at.map_or(self.now, |at| at + routes_every(self.store.len()));
        let urgent = core::mem::take(&mut self.stale.urgent);
        if self.now < due && !urgent {
            self.timers.set_if_later(Timer::Dial, due);
            return;
        }
        self.stale.dials = false;
        self.dials_at = Some(self.now);
        let view = Self::view(self.me, &self.config, &self.peers, &self.store, self.now);
        let (steps, wake) = self.connector.tick(&view, self.now, &mut self.rng);
        match wake {
            Some(at) => self.timers.set(Timer::Dial, at),
            None => self.timers.clear(Timer::Dial),
        }
        for step in steps {
            self.out.push_back(match step {
                Step::Dial(dial, hop) => Output::Dial { dial, hop },
                Step::Resolve(target) => Output::Resolve { target },
            });
        }
    }

    fn view<'a>(
        me: PeerId,
        config: &'a NodeConfig,
        peers: &BTreeMap<PeerId, Peer>,
        store: &'a Store,
        now: Duration,
    ) -> View<'a> {
        let one = |(id, peer): (&PeerId, &Peer)| PeerView {
            id: *id,
            endpoints: store.get(id).map_or(&[][..], |record| &record.body.endpoints),
            rank: peer.rank,
            address: peer.direct.map(|direct| direct.address),
            connected: peer.direct.is_some(),
            dialled: peer.direct.is_some_and(|direct| direct.role == Role::Dialler),
            reachable: peer.reachable,
            settled: now >= peer.known_since + SETTLED_AFTER,
            relayed: peer.relayed.is_some(),
        };
        let peers: Vec<PeerView<'a>> = peers.iter().map(one).collect();
        View {
            me,
            discovery: config.discovery,
            links_max: config.links_max,
            ours: &config.endpoints,
            taken: peers.iter().filter_map(|peer| peer.address).collect(),
            peers,
        }
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
            && self.router.routes().reaches(newcomer)
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
        let above = (Bound::Excluded(self.me), Bound::Unbounded);
        let mut ahead = self.peers.range(above).chain(self.peers.range(..self.me)).take(2);
        let mut behind = self.peers.range(..self.me).rev().chain(self.peers.range(above).rev()).take(2);
        ahead.any(|(id, _)| id == other) || behind.any(|(id, _)| id == other)
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
