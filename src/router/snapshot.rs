//! What the loop shows of itself: a copy, made when asked for.

use std::net::SocketAddr;

use ipam::allocator::Summary;
use ipnet::IpNet;
use mesh_proto::control::node::PeerInfo;
use mesh_proto::id::PeerId;

use super::Peer;
use super::fastpath::FastSnapshot;

/// Everything that `status`, `peers` and metrics need of the loop.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Every peer that is known, this one first.
    pub peers: Vec<PeerInfo>,
    /// The peers that the operator named.
    pub targets: Vec<TargetView>,
    /// Whether addresses can be given; otherwise what is waited for.
    pub readiness: Result<(), String>,
    /// Addresses owned, free, used.
    pub addresses: [u64; 3],
    /// More about the address space.
    pub address_space: AddressSpace,
    /// Ranges of the network.
    pub ranges: Vec<IpNet>,
    /// Where this peer says it can be dialled.
    pub endpoints: Vec<SocketAddr>,
    /// What went wrong at the start or since, for good.
    pub problems: Vec<String>,
    /// Messages of the control plane.
    pub messages: MessageCounters,
    /// The fast path; `None` if it is off.
    pub fast: Option<FastSnapshot>,
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

/// The address space, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddressSpace {
    /// Addresses given here lately and given back, not to be given yet.
    pub cooling: u64,
    /// Peers that own addresses, this one among them.
    pub owners: u64,
    /// Of these, those that cannot be reached.
    pub owners_away: u64,
    /// Addresses that those own.
    pub owned_away: u64,
    /// Addresses given here that another peer gave too, or owns.
    pub contested: u64,
}

impl AddressSpace {
    pub(super) fn of(summary: &Summary<Peer>) -> Self {
        let away = |peer: &Peer| summary.away.iter().any(|away| away.peer == *peer);
        let owned = summary.peers.iter().filter(|(peer, _)| away(peer)).map(|&(_, owned)| owned);
        Self {
            cooling: summary.cooling,
            owners: summary.peers.iter().filter(|&&(_, owned)| owned > 0).count() as u64,
            owners_away: summary.away.len() as u64,
            owned_away: owned.fold(0, u64::saturating_add),
            contested: summary.contests.len() as u64,
        }
    }
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
