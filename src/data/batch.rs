//! Batches of datagrams: one system call for many, all memory made at the start.
//!
//! ```text
//!  receive   ┌ slot 0 ──────┬ slot 1 ──────┬ …          each as large as the largest datagram
//!  send      ┌ dgram 0 ┬ dgram 1 ─────┬ dgram 2 ┬ free  packed, so that the cache holds a batch
//! ```

use std::io;
use std::net::{SocketAddr, UdpSocket};

use super::sys::{Messages, Span};
use super::udp::canonical;

/// Datagrams a system call, each way. From 32 on, a larger batch gains nothing measurable and
/// delays the first frame of it.
pub(super) const BATCH: usize = 32;

/// Bytes for datagrams that wait for the send call: a whole batch at an Ethernet MTU, and any
/// single datagram.
const ARENA: usize = 96 * 1024;

/// Largest payload of a UDP datagram over IPv4.
const DATAGRAM_MAX: usize = 65_507;

/// Smallest receive slot, in bytes: peers on jumbo frames are heard also by a host that has none.
const SLOT_MIN: usize = 9216;

/// Slots of a multiple of 4 KiB would all compete for the same few cache lines.
const SLOT_SKEW: usize = 192;

/// Receives datagrams.
pub(super) struct Receiver {
    messages: Messages,
    buffer: Box<[u8]>,
    slot: usize,
}

impl Receiver {
    /// For datagrams of at most `payload_max` bytes (and never less than jumbo frames hold).
    pub(super) fn new(payload_max: usize) -> Self {
        let slot = payload_max.clamp(SLOT_MIN, DATAGRAM_MAX) + SLOT_SKEW;
        Self { messages: Messages::new(BATCH), buffer: vec![0; slot * BATCH].into(), slot }
    }

    /// Takes what waits in the socket, at most a batch. Returns how many datagrams.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.messages.receive(socket, &mut self.buffer, self.slot)
    }

    /// The n-th datagram of the batch; `None` if it did not fit into its slot.
    pub(super) fn datagram(&mut self, n: usize) -> Option<(SocketAddr, &mut [u8])> {
        let (from, len) = self.messages.received(n)?;
        Some((canonical(from), self.buffer.get_mut(n * self.slot..)?.get_mut(..len)?))
    }
}

/// What became of a call to [`Sender::flush_once`].
pub(super) enum Flushed {
    /// Nothing is left.
    All,
    /// The socket's buffer is full; what is left waits.
    Busy,
    /// The kernel refused one datagram, which is skipped; the rest waits.
    Refused(io::Error, SocketAddr, usize),
}

/// Collects datagrams and sends them with one call.
pub(super) struct Sender {
    messages: Messages,
    buffer: Box<[u8]>,
    spans: Vec<Span>,
    targets: Vec<SocketAddr>,
    /// The first of `spans` that has not been sent.
    next: usize,
    used: usize,
}

impl Sender {
    pub(super) fn new() -> Self {
        Self {
            messages: Messages::new(BATCH),
            buffer: vec![0; ARENA].into(),
            spans: Vec::with_capacity(BATCH),
            targets: Vec::with_capacity(BATCH),
            next: 0,
            used: 0,
        }
    }

    /// Whether a datagram of `len` bytes fits without a flush before it.
    pub(super) fn fits(&self, len: usize) -> bool {
        self.spans.len() < self.messages.capacity() && len <= self.buffer.len() - self.used
    }

    /// Copies a datagram in. False if it does not fit.
    pub(super) fn push(&mut self, to: SocketAddr, bytes: &[u8]) -> bool {
        if !self.fits(bytes.len()) {
            return false;
        }
        let span = Span { start: self.used, len: bytes.len() };
        self.buffer[span.start..][..span.len].copy_from_slice(bytes);
        self.messages.set_target(self.spans.len(), to);
        self.used += span.len;
        self.spans.push(span);
        self.targets.push(to);
        true
    }

    /// Number and bytes of the datagrams that wait.
    pub(super) fn waiting(&self) -> (u64, u64) {
        let left = &self.spans[self.next..];
        (left.len() as u64, left.iter().map(|span| span.len as u64).sum())
    }

    /// Sends until all is gone, the socket is full, or the kernel refuses a datagram.
    pub(super) fn flush_once(&mut self, socket: &UdpSocket) -> Flushed {
        while self.next < self.spans.len() {
            match self.messages.send(socket, &self.buffer, &self.spans, self.next) {
                Ok(sent) => self.next += sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Flushed::Busy,
                Err(error) => {
                    let refused = self.next;
                    self.next += 1;
                    return Flushed::Refused(error, self.targets[refused], self.spans[refused].len);
                }
            }
        }
        self.clear();
        Flushed::All
    }

    /// Forgets what waits.
    pub(super) fn clear(&mut self) {
        self.spans.clear();
        self.targets.clear();
        self.next = 0;
        self.used = 0;
    }
}
