//! What one end knows of another, for the fast path.

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use super::carrier::{Carrier, Why};
use super::terms::{Cover, Terms, agree};
use super::way::{Remote, Tunnel, Way};
use crate::id::{Incarnation, PeerId};
use crate::wire::fastpath::{Seal, sealed_address};

/// The other end.
#[derive(Debug)]
pub(super) struct Partner {
    pub(super) incarnation: Incarnation,
    /// Its address, while there is a link.
    pub(super) direct: Option<SocketAddr>,
    /// Where links to it have stood, one of each family: its kernel may still send from there.
    pub(super) stood: [Option<IpAddr>; 2],
    pub(super) reachable: bool,
    /// What this end wants with it; sealed only while it can.
    pub(super) wanted: Terms,
    /// What it has said, and where its device is.
    pub(super) table: Option<Said>,
    /// When what it said in an earlier life counts no more.
    pub(super) renew_by: Option<Duration>,
    pub(super) asked: Option<Duration>,
    /// While both want it: its device, and what probing says.
    pub(super) candidate: Option<(Way, Carrier)>,
    pub(super) taught: Option<Duration>,
}

/// What it has said of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said {
    pub(super) port: u16,
    pub(super) willing: bool,
    pub(super) seal: Option<Seal>,
    pub(super) number: u64,
    /// In which of its lives.
    pub(super) life: Incarnation,
}

impl Partner {
    /// What this end offers it now.
    pub(super) fn ours(&self, seal: Option<Seal>) -> Terms {
        Terms { sealed: self.wanted.sealed && seal.is_some(), ..self.wanted }
    }

    /// What both ends have come to. `seal` is this end's.
    pub(super) fn agreed(&self, seal: Option<Seal>) -> Option<Cover> {
        let said = self.table?;
        agree(self.ours(seal), Terms { plain: said.willing, sealed: said.seal.is_some() })
    }

    /// Where VXLAN goes for it, while there is a link.
    pub(super) fn way(&self, peer: PeerId, cover: Cover) -> Option<Way> {
        let (said, direct) = (self.table?, self.direct?);
        Some(match cover {
            Cover::Plain => Remote { ip: direct.ip(), port: said.port }.into(),
            Cover::Sealed => {
                let Seal { key, port } = said.seal?;
                let tunnel = Tunnel { key, endpoint: SocketAddr::new(direct.ip(), port) };
                Way { remote: Remote { ip: sealed_address(peer).into(), port: said.port }, tunnel: Some(tunnel) }
            }
        })
    }

    pub(super) fn why_not(&self, seal: Option<Seal>) -> Why {
        match (&self.direct, self.ours(seal), &self.table) {
            (None, ..) => Why::NotDirect,
            (_, Terms::NONE, _) if self.wanted.sealed => Why::NoSeal,
            (_, Terms::NONE, _) => Why::OwnPolicy,
            (_, _, None) => Why::NoOffer,
            (_, _, Some(_)) => Why::TheirPolicy,
        }
    }
}
