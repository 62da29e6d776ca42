//! The data path: called for each frame and each datagram.
//!
//! ```text
//!  TAP ─► handle_frame ─► switch ─► fate ─► sleeve sender ─► seal ─► Sink::datagram ─► UDP
//!  UDP ─► handle_datagram ─┬─ QUIC ────────────────────────► Sink::quic ─────► control
//!                          ├─ relayed, not for us ─────────► Sink::datagram ─► next hop
//!                          └─ ours ─► open ─► replay ─► switch ─► Sink::frame ─► TAP
//! ```

pub mod counters;
pub mod forwarder;
pub mod limits;
pub mod macs;
pub mod overhead;
pub mod report;
pub mod table;
pub mod window;

mod cipher;
mod fragment;
mod mtu;
mod path;
mod peer;
mod session;
mod stage;
mod too_big;

use core::net::SocketAddr;

use crate::id::PeerId;

/// Where a datagram came from, or goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hop {
    /// Straight over the underlay.
    Direct(SocketAddr),
    /// Through one or more relays, from or to that peer.
    Relayed(PeerId),
}

/// Takes what a [`forwarder::Forwarder`] makes, as it makes it: no queue, no allocation between.
///
/// The slices are valid for the call only. The router's sink copies them into preallocated batch
/// buffers; the simulator's puts them on a virtual wire.
pub trait Sink {
    /// Send this UDP datagram.
    fn datagram(&mut self, to: SocketAddr, bytes: &[u8]);
    /// Write this Ethernet frame to the TAP.
    fn frame(&mut self, bytes: &[u8]);
    /// Give this datagram to the QUIC endpoint.
    fn quic(&mut self, from: Hop, bytes: &[u8]);
}
