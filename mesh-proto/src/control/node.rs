//! The node: handshake, links, gossip, topology, routes and connector behind one surface.

use core::net::SocketAddr;
use core::time::Duration;

use super::{ConnId, Connected, DialId, Identity, NodeConfig, Output};
use crate::handover::DataEvent;
use crate::id::{Incarnation, PeerId};

/// The control plane of one peer.
#[derive(Debug)]
pub struct Node<I> {
    identity: I,
}

impl<I: Identity> Node<I> {
    /// A node that knows nobody yet. All its randomness (jitter, ephemeral keys) comes from
    /// `seed`, so the router must draw that from the system.
    pub fn new(config: NodeConfig, identity: I, seed: [u8; 32], now: Duration) -> Self {
        let _ = (config, seed, now);
        Self { identity }
    }
    /// This peer.
    pub fn id(&self) -> PeerId {
        PeerId::of_keys(&self.identity.sign_key(), &self.identity.box_key())
    }
    /// A connection was made, by us or by the other end.
    pub fn handle_connected(&mut self, conn: ConnId, connected: Connected, now: Duration) {
        let _ = (conn, connected, now);
    }
    /// A dial came to nothing.
    pub fn handle_dial_failed(&mut self, dial: DialId, reason: &str, now: Duration) {
        let _ = (dial, reason, now);
    }
    /// A message came in.
    pub fn handle_message(&mut self, conn: ConnId, bytes: &[u8], now: Duration) {
        let _ = (conn, bytes, now);
    }
    /// A connection is gone; `reason` is the other end's text or the transport's.
    pub fn handle_disconnected(&mut self, conn: ConnId, reason: &str, now: Duration) {
        let _ = (conn, reason, now);
    }
    /// The answer to [`Output::Resolve`]; no address means that the name does not resolve.
    pub fn handle_resolved(&mut self, target: &str, addresses: &[SocketAddr], now: Duration) {
        let _ = (target, addresses, now);
    }
    /// The data path saw something.
    pub fn handle_data_event(&mut self, event: DataEvent, now: Duration) {
        let _ = (event, now);
    }
    /// The addresses at which this peer can be dialled changed.
    pub fn set_endpoints(&mut self, endpoints: Vec<SocketAddr>, now: Duration) {
        let _ = (endpoints, now);
    }
    /// The operator names one more peer to dial.
    pub fn connect(&mut self, target: String, now: Duration) {
        let _ = (target, now);
    }
    /// The operator takes a target back. Established links to it are closed. False if it was no
    /// target.
    pub fn forget(&mut self, target: &str, now: Duration) -> bool {
        let _ = (target, now);
        false
    }
    /// Says goodbye on every connection, so that nobody waits for a timeout.
    pub fn shutdown(&mut self, now: Duration) {
        let _ = now;
    }
    /// Sends an application's message to one peer, through others if need be. Best effort: it is
    /// lost if there is no path, so applications repeat what matters.
    pub fn send_app(&mut self, to: PeerId, payload: Vec<u8>, now: Duration) {
        let _ = (to, payload, now);
    }
    /// Sends an application's message to every reachable peer, best effort, at most once each.
    pub fn broadcast_app(&mut self, payload: Vec<u8>, now: Duration) {
        let _ = (payload, now);
    }
    /// A time that [`Self::poll_timeout`] named has come (earlier or later is harmless).
    pub fn handle_timeout(&mut self, now: Duration) {
        let _ = now;
    }
    /// What to do next; drain until `None` after every input.
    pub fn poll_output(&mut self) -> Option<Output> {
        None
    }
    /// When to call [`Self::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Duration, &'static str)> {
        None
    }
    /// Every peer that this node knows, for `status` and `peers`, itself first.
    pub fn peers(&self) -> Vec<PeerInfo> {
        Vec::new()
    }
}

/// One peer as the control plane sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its id.
    pub id: PeerId,
    /// Its name.
    pub name: String,
    /// Its instance.
    pub instance: u64,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// What stands between us.
    pub state: PeerState,
    /// The link's address, if there is a link.
    pub direct: Option<SocketAddr>,
    /// The neighbour that frames go through, if there is no link but a route.
    pub via: Option<PeerId>,
    /// Time (on the node's clock) of the last change of `state`.
    pub since: Duration,
    /// Why the state is what it is: the last error, or how the link came about.
    pub reason: String,
    /// Peers it has links with, as gossip tells.
    pub links: Vec<PeerId>,
}

/// What stands between this peer and another (contract of `weft status -o json`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerState {
    /// It is this peer itself.
    Me,
    /// Frames can flow, by a link or through relays.
    Established,
    /// A dial or a handshake is under way.
    Connecting,
    /// The last attempt failed; another follows.
    Retrying,
    /// It was removed for good.
    Removed,
}
