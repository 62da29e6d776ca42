//! What `status` and `peers` show, and since when.

use super::super::Identity;
use super::super::handshake::Role;
use super::link::Peer;
use super::{Node, PeerInfo, PeerState};
use crate::id::PeerId;

impl<I: Identity> Node<I> {
    /// Notes which states have changed.
    pub(super) fn refresh_status(&mut self) {
        if !core::mem::take(&mut self.stale.status) {
            return;
        }
        let fresh: Vec<(PeerId, PeerState, String)> = self
            .peers
            .iter()
            .map(|(id, peer)| {
                let (state, reason) = self.state_of(id, peer);
                (*id, state, reason)
            })
            .collect();
        let now = self.now;
        for (id, state, reason) in fresh {
            if let Some(peer) = self.peers.get_mut(&id) {
                if peer.state != state {
                    (peer.state, peer.since) = (state, now);
                }
                peer.reason = reason;
            }
        }
    }

    fn state_of(&self, id: &PeerId, peer: &Peer) -> (PeerState, String) {
        if peer.up.is_some() {
            let how = match peer.direct.map(|direct| direct.role) {
                Some(Role::Dialler) => "direct link, dialled by this peer",
                _ => "direct link, dialled by the other end",
            };
            return (PeerState::Established, how.to_owned());
        }
        if peer.reachable && peer.keyed {
            let why = self.connector.last_failure(id).map_or(String::new(), |why| format!(" (direct: {why})"));
            return (PeerState::Established, format!("through relays{why}"));
        }
        if peer.direct.is_some() {
            return (PeerState::Connecting, "waits for the first echo on the path of user frames".to_owned());
        }
        if self.connector.busy(id) || peer.relayed.is_some() {
            return (PeerState::Connecting, "dialling".to_owned());
        }
        match self.connector.last_failure(id) {
            Some(why) => (PeerState::Retrying, why.to_owned()),
            None if peer.reachable => (PeerState::Connecting, "reachable through relays, no session yet".to_owned()),
            None => (PeerState::Retrying, "known by gossip, not reached yet".to_owned()),
        }
    }

    pub(super) fn peer_infos(&self) -> Vec<PeerInfo> {
        let others = self.peers.iter().map(|(id, peer)| PeerInfo {
            id: *id,
            name: peer.name.clone(),
            instance: peer.instance,
            incarnation: peer.incarnation,
            state: peer.state,
            direct: peer.up.and(peer.direct).map(|direct| direct.address),
            via: match (peer.up, self.routes.hops.get(id)) {
                (None, Some(hops)) => hops.first().filter(|hop| *hop != id).copied(),
                _ => None,
            },
            since: peer.since,
            reason: peer.reason.clone(),
            links: self
                .graph
                .index(id)
                .map(|node| self.graph.neighbours(node).iter().map(|(to, _)| self.graph.ids()[*to]).collect())
                .unwrap_or_default(),
        });
        core::iter::once(self.own_info()).chain(others).collect()
    }
}
