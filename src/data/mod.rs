//! The data path's IO: one OS thread that owns the TAP, the UDP socket and the
//! [`Forwarder`](mesh_proto::data::forwarder::Forwarder).

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mesh_proto::data::Hop;
use mesh_proto::data::forwarder::ForwarderConfig;
use mesh_proto::handover::{Command, DataEvent};
use mesh_proto::id::PeerId;
use tokio::sync::mpsc;

use crate::clock::Clock;

/// What the data thread is made of.
#[derive(Debug)]
pub struct DataConfig {
    /// The TAP, opened by [`open_tap`].
    pub tap: OwnedFd,
    /// The shared UDP socket, made by [`bind_udp`].
    pub socket: Arc<UdpSocket>,
    /// For the forwarder.
    pub forwarder: ForwarderConfig,
    /// For the forwarder's jitter.
    pub seed: u64,
    /// The process' clock.
    pub clock: Clock,
}

/// What the data thread tells the control side, over bounded queues.
#[derive(Debug)]
pub struct DataOutputs {
    /// Events for the node.
    pub events: mpsc::Receiver<DataEvent>,
    /// QUIC datagrams for the endpoint.
    pub quic: mpsc::Receiver<(Hop, Vec<u8>)>,
}

/// The control side's hold on the data thread. Clones share it.
#[derive(Debug, Clone)]
pub struct DataHandle {}

impl DataHandle {
    /// Hands a decision over; it is in force within a millisecond.
    pub fn command(&self, command: Command) {
        let _ = command;
    }
    /// Sends a QUIC datagram through relays. False if the queue is full: QUIC repeats it.
    pub fn relay_quic(&self, to: PeerId, bytes: &[u8]) -> bool {
        let _ = (to, bytes);
        false
    }
}
