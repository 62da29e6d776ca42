//! The forwarder: switch, sessions and paths behind one surface.

use core::net::SocketAddr;
use core::time::Duration;

use super::Sink;
use crate::handover::{Command, DataEvent};
use crate::id::PeerId;

/// What a [`Forwarder`] needs to know for its whole life.
#[derive(Debug, Clone)]
pub struct ForwarderConfig {
    /// Whether the network has a secret. With one, no unsealed user frame is sent or accepted.
    pub sealed: bool,
    /// Most learned MAC addresses.
    pub macs_max: usize,
    /// How long a MAC address stays learned after its last frame.
    pub mac_age: Duration,
    /// Largest UDP payload that the underlay interface could carry, in bytes: the upper end of
    /// the path MTU search.
    pub payload_max: u16,
}

/// Everything between the TAP and the UDP socket, for one data thread.
#[derive(Debug)]
pub struct Forwarder {}

impl Forwarder {
    /// A forwarder without peers. `seed` feeds jitter only.
    #[must_use]
    pub fn new(config: ForwarderConfig, seed: u64, now: Duration) -> Self {
        let _ = (config, seed, now);
        Self {}
    }
    /// Takes a decision of control.
    pub fn handle_command(&mut self, command: Command, now: Duration, sink: &mut impl Sink) {
        let _ = (command, now, sink);
    }
    /// A frame from the TAP.
    pub fn handle_frame(&mut self, frame: &[u8], now: Duration, sink: &mut impl Sink) {
        let _ = (frame, now, sink);
    }
    /// A datagram from the underlay. It is opened in place.
    pub fn handle_datagram(
        &mut self,
        from: SocketAddr,
        bytes: &mut [u8],
        now: Duration,
        sink: &mut impl Sink,
    ) {
        let _ = (from, bytes, now, sink);
    }
    /// A QUIC datagram for a peer that is reached through relays only.
    pub fn relay_quic(&mut self, to: PeerId, bytes: &[u8], now: Duration, sink: &mut impl Sink) {
        let _ = (to, bytes, now, sink);
    }
    /// The batch is over: send what waits for company.
    pub fn flush(&mut self, now: Duration, sink: &mut impl Sink) {
        let _ = (now, sink);
    }
    /// The time that [`Self::poll_timeout`] named has come (earlier or later is harmless).
    pub fn handle_timeout(&mut self, now: Duration, sink: &mut impl Sink) {
        let _ = (now, sink);
    }
    /// When to call [`Self::handle_timeout`], and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Duration, &'static str)> {
        None
    }
    /// What control should know; drain until `None`.
    pub fn poll_event(&mut self) -> Option<DataEvent> {
        None
    }
}
