//! Where the forwarder's output goes: the TAP, the socket, the QUIC endpoint.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::address::canonical;
use mesh_proto::data::{Hop, Sink};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;
use tracing::warn;

use super::IoCounters;
use super::batch::{Flushed, Sender};
use super::quiet::Quiet;
use super::udp::for_socket;

/// How long one batch may wait for room in the socket's buffer. Long enough for the interface to
/// send a part of it, short enough that the TAP and the timers do not notice.
const SEND_PATIENCE: Duration = Duration::from_millis(2);

/// Most datagrams remembered, until the forwarder is told, as larger than their interface's MTU.
const TOO_LARGE_MAX: usize = 16;

/// Implements [`Sink`] on the thread's descriptors.
pub(super) struct Outbox {
    tap: Arc<OwnedFd>,
    socket: Arc<UdpSocket>,
    socket_is_ipv6: bool,
    sender: Sender,
    quic: mpsc::Sender<(Hop, Vec<u8>)>,
    too_large: Vec<(SocketAddr, usize)>,
    quiet: Quiet,
    /// Counts what passes here, and what the worker adds.
    pub(super) counters: IoCounters,
}

impl Outbox {
    pub(super) fn new(
        tap: Arc<OwnedFd>,
        socket: Arc<UdpSocket>,
        quic: mpsc::Sender<(Hop, Vec<u8>)>,
    ) -> io::Result<Self> {
        Ok(Self {
            tap,
            socket_is_ipv6: socket.local_addr()?.is_ipv6(),
            socket,
            sender: Sender::new(),
            quic,
            too_large: Vec::with_capacity(TOO_LARGE_MAX),
            quiet: Quiet::default(),
            counters: IoCounters::default(),
        })
    }

    /// Sends what was collected. What the kernel does not take in time is dropped and counted.
    pub(super) fn flush(&mut self) {
        let mut patience: Option<Instant> = None;
        let (before, before_bytes) = self.sender.waiting();
        let (mut lost, mut lost_bytes) = (0, 0);
        loop {
            match self.sender.flush_once(&self.socket) {
                Flushed::All => break,
                Flushed::Refused(error, to, len) => {
                    (lost, lost_bytes) = (lost + 1, lost_bytes + len as u64);
                    self.refused(&error, to, len);
                }
                Flushed::Busy => {
                    let until = *patience.get_or_insert_with(|| Instant::now() + SEND_PATIENCE);
                    if !self.wait_writable(until.saturating_duration_since(Instant::now())) {
                        let (left, left_bytes) = self.sender.waiting();
                        (lost, lost_bytes) = (lost + left, lost_bytes + left_bytes);
                        self.counters.udp_send_busy += left;
                        self.sender.clear();
                        break;
                    }
                }
            }
        }
        self.counters.udp_sent += before - lost;
        self.counters.udp_sent_bytes += before_bytes - lost_bytes;
    }

    /// The next of the datagrams that were larger than their interface's MTU.
    pub(super) fn next_too_large(&mut self) -> Option<(SocketAddr, usize)> {
        self.too_large.pop()
    }

    /// False if there is no room after `patience`.
    fn wait_writable(&self, patience: Duration) -> bool {
        let Ok(timeout) = Timespec::try_from(patience) else { return false };
        let mut sources = [PollFd::new(&self.socket, PollFlags::OUT)];
        !patience.is_zero() && matches!(poll(&mut sources, Some(&timeout)), Ok(1..))
    }

    #[cold]
    fn refused(&mut self, error: &io::Error, to: SocketAddr, len: usize) {
        let to = canonical(to);
        if error.raw_os_error() == Some(libc::EMSGSIZE) {
            self.counters.udp_too_large += 1;
            if self.too_large.len() < TOO_LARGE_MAX {
                self.too_large.push((to, len));
            }
            return;
        }
        self.counters.udp_send_failed += 1;
        // A peer that restarts answers with port unreachable: not worth a line.
        if error.kind() != io::ErrorKind::ConnectionRefused
            && let Some(kept_quiet) = self.quiet.may_speak()
        {
            warn!(%to, %error, kept_quiet, "datagram not sent");
        }
    }
}

impl Sink for Outbox {
    fn datagram(&mut self, to: SocketAddr, bytes: &[u8]) {
        let Some(to) = for_socket(to, self.socket_is_ipv6) else {
            self.refused(&io::ErrorKind::AddrNotAvailable.into(), to, bytes.len());
            return;
        };
        if !self.sender.fits(bytes.len()) {
            self.flush();
        }
        if !self.sender.push(to, bytes) {
            self.counters.udp_too_large += 1;
        }
    }

    fn frame(&mut self, bytes: &[u8]) {
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.tap, bytes)) {
            Ok(_) => {
                self.counters.tap_written_frames += 1;
                self.counters.tap_written_bytes += bytes.len() as u64;
            }
            // Full, or the interface is down: as on a cable that is unplugged.
            Err(_) => self.counters.tap_write_failed += 1,
        }
    }

    fn quic(&mut self, from: Hop, bytes: &[u8]) {
        match self.quic.try_reserve() {
            Ok(permit) => permit.send((from, bytes.to_vec())),
            Err(_) => self.counters.quic_queue_full += 1,
        }
    }
}
