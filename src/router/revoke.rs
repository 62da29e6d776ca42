//! Which peer the operator means to shut out.

use std::time::Duration;

use mesh_proto::control::node::{PeerState, RevokeError};
use mesh_proto::id::PeerId;

use super::core::Core;

/// A peer that was revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whom {
    /// Its id.
    pub id: PeerId,
    /// Its name; empty if this router does not know it.
    pub name: String,
}

/// Why nobody was revoked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevokeRefused {
    /// Nobody is called so.
    #[error("no peer is called `{0}`; `weft peers` lists them, and one that is away is named by its id")]
    Unknown(String),
    /// Several are.
    #[error("several peers are called `{name}`: name one by its id ({})", ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Ambiguous {
        /// The name.
        name: String,
        /// Whose it is.
        ids: Vec<PeerId>,
    },
    /// The one that is meant cannot be revoked.
    #[error("peer {id} cannot be revoked: {why}")]
    Cannot {
        /// Who is meant.
        id: PeerId,
        /// Why.
        why: RevokeError,
    },
}

impl Core {
    /// An id may be of a peer that nobody here has heard of.
    pub(super) fn revoke(&mut self, peer: &str, now: Duration) -> Result<Whom, RevokeRefused> {
        let infos = self.node.peers();
        let whom = if let Ok(id) = peer.parse::<PeerId>() {
            let name = infos.into_iter().find(|info| info.id == id).map_or_else(String::new, |info| info.name);
            Whom { id, name }
        } else {
            let named: Vec<_> = infos.into_iter().filter(|info| info.name == peer).collect();
            // Who was revoked before does not stand in the way of a new one of that name.
            let there = named.iter().filter(|info| info.state != PeerState::Removed).map(|info| info.id);
            let ids: Vec<PeerId> = there.collect();
            match (&ids[..], named.first()) {
                ([id], _) => Whom { id: *id, name: peer.to_owned() },
                ([], Some(gone)) => Whom { id: gone.id, name: peer.to_owned() },
                ([], None) => return Err(RevokeRefused::Unknown(peer.to_owned())),
                _ => return Err(RevokeRefused::Ambiguous { name: peer.to_owned(), ids }),
            }
        };
        self.node.set_wall(self.clock.wall(now), now);
        self.node.revoke(whom.id, now).map_err(|why| RevokeRefused::Cannot { id: whom.id, why })?;
        Ok(whom)
    }
}
