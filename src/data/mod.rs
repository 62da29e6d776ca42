//! The data path's IO: one OS thread that owns the TAP, the UDP socket and the
//! [`Forwarder`](mesh_proto::data::forwarder::Forwarder).
//!
//! ```text
//!                 ┌──────────────── thread `weft-data` ────────────────┐
//!  TAP ──read───► │ handle_super_frame ─┐                              │
//!  TAP ◄──writev─ │                     ├─ Forwarder ──sendmsg, GSO────┼─► UDP
//!  UDP ─recvmmsg► │ handle_received ────┘    (GRO)                     │
//!                 └──▲─────────────────────┬──────────────┬────────────┘
//!  DataHandle:       │ command 1024         │ events 1024  │ quic 1024
//!    command, relay_quic, report, stop     ▼              ▼
//!                                     DataOutputs.events  DataOutputs.quic
//! ```
//!
//! Every queue is bounded. What is full drops and counts (QUIC datagrams), keeps the newest
//! (events), or makes control wait for one turn of the thread's loop (commands).

mod batch;
mod events;
mod handle;
mod lanes;
mod outbox;
mod patience;
mod quiet;
mod report;
mod sys;
mod tap;
mod trial;
mod udp;
mod worker;

use std::fmt;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::data::Hop;
use mesh_proto::data::forwarder::ForwarderConfig;
use mesh_proto::handover::{Command, DataEvent};
use mesh_proto::id::PeerId;
use tokio::sync::mpsc;

pub use report::{IoCounters, Report};
pub use tap::{Offloads, Tap, open_tap, renew_tap};
pub use trial::Trial;
pub use udp::bind_udp;
pub(crate) use udp::send_one;

use crate::clock::Clock;

/// What the data thread is made of.
#[derive(Debug)]
pub struct DataConfig {
    /// The TAP, opened by [`open_tap`].
    pub tap: Tap,
    /// The shared UDP socket, made by [`bind_udp`].
    pub socket: Arc<UdpSocket>,
    /// For the forwarder.
    pub forwarder: ForwarderConfig,
    /// For the forwarder's jitter.
    pub seed: u64,
    /// How long the thread goes on looking for small packets that come one soon after the other,
    /// before it sleeps; zero: not at all.
    pub busy_poll: Duration,
    /// The process' clock.
    pub clock: Clock,
}

/// What the data thread tells the control side, over bounded queues.
#[derive(Debug)]
pub struct DataOutputs {
    /// Events for the node. None is lost: if this queue is full, the thread keeps the latest of
    /// each kind for each peer and tries again.
    pub events: mpsc::Receiver<DataEvent>,
    /// QUIC datagrams for the endpoint. Dropped and counted when full: QUIC repeats them.
    pub quic: mpsc::Receiver<(Hop, Vec<u8>)>,
}

/// The control side's hold on the data thread. Clones share it.
#[derive(Clone)]
pub struct DataHandle {
    inner: Arc<handle::Shared>,
}

impl fmt::Debug for DataHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataHandle")
    }
}

impl DataHandle {
    /// Starts the thread `weft-data`. It runs until [`Self::stop`], whatever happens to the
    /// outputs or to other handles: frames flow on while control is away.
    ///
    /// # Errors
    /// When the kernel refuses the eventfd or the thread.
    pub fn start(config: DataConfig) -> io::Result<(Self, DataOutputs)> {
        let (inner, outputs) = worker::start(config)?;
        Ok((Self { inner }, outputs))
    }

    /// Hands a decision over; it is in force within a millisecond. Never lost while the thread
    /// runs: if 1024 of them wait already, this waits for a turn of the thread's loop.
    pub fn command(&self, command: Command) {
        self.inner.command(command);
    }

    /// Sends a QUIC datagram through relays. False if the queue is full: QUIC repeats it.
    #[must_use]
    pub fn relay_quic(&self, to: PeerId, bytes: &[u8]) -> bool {
        self.inner.relay_quic(to, bytes)
    }

    /// Counters and paths as they are now, made by the thread between two batches. `None` if the
    /// thread has been stopped or does not answer within a second.
    pub async fn report(&self) -> Option<Report> {
        self.inner.report().await
    }

    /// Ends the thread and waits for it (at most a few milliseconds), which closes the TAP.
    pub fn stop(&self) {
        self.inner.stop();
    }
}

#[cfg(test)]
impl DataHandle {
    /// A handle without a thread, and the QUIC datagrams that it is given for relays.
    pub(crate) fn without_thread() -> (Self, std::sync::mpsc::Receiver<(PeerId, Vec<u8>)>) {
        let (shared, inbox, _wake, _stop) = handle::Shared::new().unwrap();
        (Self { inner: Arc::new(shared) }, inbox.relayed)
    }
}
