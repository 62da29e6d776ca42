//! What `status` and `peers` show, and since when.

use super::super::Identity;
use super::super::handshake::Role;
use super::link::Peer;
use super::{Node, PeerInfo, PeerState};
use crate::id::PeerId;

impl<I: Identity> Node<I> {
    /// Notes which states have changed.
    pub(super) fn refresh_status(&mut self) {
        let mut touched = core::mem::take(&mut self.touched);
        touched.append(&mut self.connector.take_touched());
        for id in touched {
            let Some(state) = self.peers.get(&id).map(|peer| self.state_of(&id, peer)) else { continue };
            let now = self.now;
            if let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.state != state) {
                (peer.state, peer.since) = (state, now);
            }
        }
    }

    fn state_of(&self, id: &PeerId, peer: &Peer) -> PeerState {
        if peer.up.is_some() || peer.reachable && peer.keyed {
            PeerState::Established
        } else if peer.direct.is_some()
            || peer.relayed.is_some()
            || self.connector.busy(id)
            || peer.reachable && self.connector.last_failure(id).is_none()
        {
            PeerState::Connecting
        } else {
            PeerState::Retrying
        }
    }

    fn reason_of(&self, id: &PeerId, peer: &Peer) -> String {
        let failure = self.connector.last_failure(id);
        match peer.state {
            PeerState::Established if peer.up.is_some() => match peer.direct.map(|direct| direct.role) {
                Some(Role::Dialler) => "direct link, dialled by this peer".to_owned(),
                _ => "direct link, dialled by the other end".to_owned(),
            },
            PeerState::Established => match failure {
                Some(why) => format!("through relays (direct: {why})"),
                None => "through relays".to_owned(),
            },
            PeerState::Connecting if peer.direct.is_some() => {
                "waits for the first echo on the path of user frames".to_owned()
            }
            PeerState::Connecting => "dialling".to_owned(),
            _ => failure.unwrap_or("known by gossip, not reached yet").to_owned(),
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
            via: match (peer.up, self.router.routes().hops.get(id)) {
                (None, Some(hops)) => hops.first().filter(|hop| *hop != id).copied(),
                _ => None,
            },
            since: peer.since,
            reason: self.reason_of(id, peer),
            links: self
                .topology
                .graph()
                .index(id)
                .map(|node| {
                    self.topology
                        .graph()
                        .neighbours(node)
                        .iter()
                        .map(|(to, _)| self.topology.graph().ids()[*to])
                        .collect()
                })
                .unwrap_or_default(),
        });
        core::iter::once(self.own_info()).chain(others).chain(self.revoked_infos()).collect()
    }
}
