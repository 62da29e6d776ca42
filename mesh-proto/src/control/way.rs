//! How VXLAN goes to a peer.

use core::net::{IpAddr, SocketAddr};

use super::terms::Cover;

/// Where a peer's VXLAN device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Remote {
    /// Its address on the underlay.
    pub ip: IpAddr,
    /// Its UDP port.
    pub port: u16,
}

/// How WireGuard reaches a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// The peer's public key.
    pub key: [u8; 32],
    /// Where its WireGuard is.
    pub endpoint: SocketAddr,
}

/// How VXLAN goes to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Where it is sent: to the underlay, or into WireGuard.
    pub remote: Remote,
    /// WireGuard, if it goes by that.
    pub tunnel: Option<Tunnel>,
}

impl From<Remote> for Way {
    fn from(remote: Remote) -> Self {
        Self { remote, tunnel: None }
    }
}

impl Way {
    /// What it is made of.
    pub(crate) const fn cover(&self) -> Cover {
        if self.tunnel.is_some() { Cover::Sealed } else { Cover::Plain }
    }

    /// Whether they differ by no more than where the peer was seen: what goes one way may go on, though
    /// the link has moved to the other.
    pub(crate) fn leads_as(&self, other: &Self) -> bool {
        let key = |way: &Self| way.tunnel.map(|tunnel| tunnel.key);
        self.remote.port == other.remote.port && key(self) == key(other)
    }
}
