//! Answers to "how is it going", on request only.

use core::time::Duration;

use super::Forwarder;
use crate::data::limits::PAYLOAD_BASE;
use crate::data::path::{Life, Path};
use crate::data::peer::{Peer, Way};
use crate::data::report::{Carried, PathReport};
use crate::data::stage::Route;

impl Forwarder {
    /// Every peer of the tables, in no order.
    pub fn paths(&self, now: Duration) -> impl Iterator<Item = PathReport> + '_ {
        let peers = self.peers.iter().enumerate();
        let listed = peers.filter(|(_, peer)| peer.alive && peer.listed);
        listed.map(move |(slot, peer)| self.report(slot as u32, peer, now))
    }

    fn report(&self, slot: u32, peer: &Peer, now: Duration) -> PathReport {
        let route = self.route(slot, None);
        let link = peer.link.as_deref();
        let session = link.and_then(|link| link.sessions.shown());
        let path = link.and_then(|link| link.path.as_ref());
        let (carrier, way) = match route {
            Some(Route::Direct(_)) => (Carried::Direct, Way::Direct),
            Some(Route::Relay { via, .. }) => (Carried::Relay(self.peers[via as usize].id), Way::Relayed),
            None => (Carried::Nowhere, Way::Direct),
        };
        let counts = link.map_or((0, 0), |link| link.sessions.count());
        PathReport {
            peer: peer.id,
            carrier,
            direct_up: peer.life() == Some(Life::Up),
            endpoint: route.map(|route| route.addr()),
            rtt: path.and_then(Path::rtt),
            loss: path.map_or(0.0, Path::loss),
            payload_mtu: link.map_or(PAYLOAD_BASE, |link| link.mtu[way as usize].current()),
            suite: session.map(|session| session.suite),
            session_age: session.map(|session| now.saturating_sub(session.installed)),
            datagrams_out: counts.0,
            datagrams_in: counts.1,
        }
    }
}
