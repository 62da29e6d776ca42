//! What the loop shows of itself: a copy, made when asked for.

use std::net::SocketAddr;

use ipnet::IpNet;
use mesh_proto::control::node::PeerInfo;
use mesh_proto::id::PeerId;

use super::fastpath::FastSnapshot;

/// What `status`, `peers` and metrics need of the loop; of addresses, [`ipam`](super::Handle::ipam) says more.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Every peer that is known, this one first.
    pub peers: Vec<PeerInfo>,
    /// The peers that the operator named.
    pub targets: Vec<TargetView>,
    /// Whether addresses can be given; otherwise what is waited for.
    pub readiness: Result<(), String>,
    /// Ranges of the network.
    pub ranges: Vec<IpNet>,
    /// Where this peer says it can be dialled.
    pub endpoints: Vec<SocketAddr>,
    /// What went wrong at the start or since, for good.
    pub problems: Vec<String>,
    /// Messages of the control plane.
    pub messages: MessageCounters,
    /// The fast path, or that it is off and why.
    pub fast: Result<FastSnapshot, String>,
}

/// One peer that the operator named.
#[derive(Debug, Clone)]
pub struct TargetView {
    /// As it was written.
    pub target: String,
    /// Who was found there.
    pub peer: Option<PeerId>,
    /// What it resolved to last.
    pub addresses: Vec<SocketAddr>,
    /// Whether there is a link to one of them, or to a peer that says it is there.
    pub connected: bool,
    /// The last thing that went wrong.
    pub reason: String,
}

/// Messages and bytes of the control plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MessageCounters {
    /// Messages sent.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Messages received.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
}
