//! What the data thread tells about itself.

use super::Offloads;
use mesh_proto::data::counters::Counters;
use mesh_proto::data::report::PathReport;

/// Counters of the thread's own IO since its start. The forwarder counts fates of frames; these
/// count what happened between the kernel and the forwarder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoCounters {
    /// Frames read from the TAP.
    pub tap_read_frames: u64,
    /// Their bytes.
    pub tap_read_bytes: u64,
    /// Frames written to the TAP.
    pub tap_written_frames: u64,
    /// Their bytes.
    pub tap_written_bytes: u64,
    /// Frames that the TAP refused (interface down, queue full): lost.
    pub tap_write_failed: u64,
    /// Reads of the TAP that failed.
    pub tap_read_failed: u64,
    /// Datagrams received.
    pub udp_received: u64,
    /// Their payload bytes.
    pub udp_received_bytes: u64,
    /// Datagrams sent by the data thread (QUIC sends its own).
    pub udp_sent: u64,
    /// Their payload bytes.
    pub udp_sent_bytes: u64,
    /// System calls that sent them.
    pub udp_sends: u64,
    /// Messages received: datagrams that the kernel put together count once.
    pub udp_messages: u64,
    /// Datagrams longer than the receive buffer: dropped.
    pub udp_truncated: u64,
    /// Receive calls that failed.
    pub udp_receive_failed: u64,
    /// Datagrams dropped because the socket's send buffer stayed full.
    pub udp_send_busy: u64,
    /// Datagrams that are larger than the interface's MTU: dropped.
    pub udp_too_large: u64,
    /// Datagrams that the kernel refused for another reason (no route, firewall): dropped.
    pub udp_send_failed: u64,
    /// QUIC datagrams dropped because the endpoint's queue was full.
    pub quic_queue_full: u64,
}

/// A snapshot for `status` and metrics.
#[derive(Debug, Clone)]
pub struct Report {
    /// The thread's own counters.
    pub io: IoCounters,
    /// What became of frames and datagrams.
    pub forwarder: Counters,
    /// What is in use of the kernel's offloads.
    pub offloads: Offloads,
    /// How each peer is reached, with round trip, loss and path MTU.
    pub paths: Vec<PathReport>,
    /// MAC addresses that are known.
    pub macs: usize,
    /// Whether the TAP is gone (the interface was deleted): the router has to be started again.
    pub tap_lost: bool,
    /// Turns of the thread's loop: how often it woke up.
    pub turns: u64,
    /// Commands of control that are in force.
    pub commands: u64,
    /// Turns of the thread's loop that panicked: each a bug that cost a batch of frames.
    pub panics: u64,
}
