//! What the data path tells of each peer: the source of `status` and metrics.

use core::net::SocketAddr;
use core::time::Duration;

use crate::handover::Suite;
use crate::id::PeerId;

/// How frames reach a peer now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// Straight to its address.
    Direct,
    /// Through this relay.
    Relay(PeerId),
    /// Not at all.
    Nowhere,
}

/// One peer as the data path sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PathReport {
    /// The peer.
    pub peer: PeerId,
    /// How frames reach it now.
    pub carrier: Carried,
    /// Whether the direct path answers.
    pub direct_up: bool,
    /// Where datagrams for it go now: its own address or its relay's.
    pub endpoint: Option<SocketAddr>,
    /// Smoothed round trip of the direct path.
    pub rtt: Option<Duration>,
    /// Part of the last probes of the direct path, at most 64, that had no echo: 0 to 1.
    pub loss: f64,
    /// Largest UDP payload that the way in use is known to carry, in bytes.
    pub payload_mtu: u16,
    /// What protects the frames; none without a session.
    pub suite: Option<Suite>,
    /// Age of the keys in use.
    pub session_age: Option<Duration>,
    /// Datagrams sealed under the keys that live.
    pub datagrams_out: u64,
    /// Datagrams opened under the keys that live.
    pub datagrams_in: u64,
}
