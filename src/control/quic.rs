//! QUIC links: one endpoint on the shared UDP port, TLS 1.3 with raw public keys on both sides.

use mesh_proto::control::{ConnId, Connected, DialId};
use mesh_proto::data::Hop;

/// What happens on the connections.
#[derive(Debug)]
pub enum QuicEvent {
    /// A connection is there, by our dial or the other end's.
    Connected(ConnId, Connected),
    /// A dial came to nothing.
    DialFailed(DialId, String),
    /// A whole message.
    Message(ConnId, Vec<u8>),
    /// A connection is gone, with the other end's reason or the transport's.
    Disconnected(ConnId, String),
}

/// The endpoint.
#[derive(Debug)]
pub struct Quic {}

impl Quic {
    /// Begins to dial; ends in [`QuicEvent::Connected`] or [`QuicEvent::DialFailed`] within 5 s.
    pub fn dial(&self, dial: DialId, hop: Hop) {
        let _ = (dial, hop);
    }
    /// Queues a message; a connection whose queue is over its bound is closed as too slow.
    pub fn send(&self, conn: ConnId, bytes: Vec<u8>) {
        let _ = (conn, bytes);
    }
    /// Closes a connection; the reason reaches the other end as text.
    pub fn close(&self, conn: ConnId, reason: &str) {
        let _ = (conn, reason);
    }
}
