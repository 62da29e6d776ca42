//! Where the forwarder's output goes: the TAP, the socket, the QUIC endpoint.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::address::canonical;
use mesh_proto::data::forwarder::SUPER_FRAME_MAX;
use mesh_proto::data::offload::each_frame;
use mesh_proto::data::parts::Parts;
use mesh_proto::data::virtio::{Gso, VirtioHeader};
use mesh_proto::data::{Hop, Sink};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::lanes::Lanes;
use super::patience::Patience;
use super::quiet::Quiet;
use super::sys::Gather;
use super::tap::Tap;
use super::udp::for_socket;
use super::{IoCounters, Offloads};

/// How often a full buffer is asked for room: the kernel tells of it only when half of it is free.
const ASK_AGAIN: Duration = Duration::from_micros(100);

/// Most datagrams remembered, until the forwarder is told, as larger than their interface's MTU.
const TOO_LARGE_MAX: usize = 16;

/// Implements [`Sink`] on the thread's descriptors. What it is given is the kernel's when the
/// call returns: nothing is copied or kept here.
pub(super) struct Outbox {
    tap: Arc<Tap>,
    socket: Arc<UdpSocket>,
    socket_is_ipv6: bool,
    lanes: Lanes,
    patience: Patience,
    /// When the turn began.
    now: Duration,
    /// Whether the kernel cuts trains into datagrams.
    segmented: bool,
    gather: Gather,
    /// Where what the kernel cannot cut is put together, and where it is cut.
    whole: Box<[u8]>,
    cut: Box<[u8]>,
    quic: mpsc::Sender<(Hop, Vec<u8>)>,
    too_large: Vec<(SocketAddr, usize)>,
    quiet: Quiet,
    /// Counts what passes here, and what the worker adds.
    pub(super) counters: IoCounters,
}

impl Outbox {
    pub(super) fn new(tap: Arc<Tap>, socket: Arc<UdpSocket>, quic: mpsc::Sender<(Hop, Vec<u8>)>) -> io::Result<Self> {
        Ok(Self {
            tap,
            socket_is_ipv6: socket.local_addr()?.is_ipv6(),
            socket,
            lanes: Lanes::default(),
            patience: Patience::default(),
            now: Duration::ZERO,
            segmented: true,
            gather: Gather::new(),
            whole: vec![0; SUPER_FRAME_MAX].into(),
            cut: vec![0; SUPER_FRAME_MAX].into(),
            quic,
            too_large: Vec::with_capacity(TOO_LARGE_MAX),
            quiet: Quiet::default(),
            counters: IoCounters::default(),
        })
    }

    /// What is in use of the kernel's offloads.
    pub(super) fn offloads(&self) -> Offloads {
        let mut offloads = Offloads { udp_segmentation: self.segmented, ..self.tap.offloads().clone() };
        if !self.segmented {
            offloads.missing.push("UDP trains are not cut by this kernel or interface".to_owned());
        }
        offloads
    }

    /// The next of the datagrams that were larger than their interface's MTU.
    pub(super) fn next_too_large(&mut self) -> Option<(SocketAddr, usize)> {
        self.too_large.pop()
    }

    /// Sends a train with one call. False if the kernel cannot cut it.
    fn send_train(&mut self, to: SocketAddr, bytes: Parts<'_>, size: usize) -> bool {
        let Ok(segment) = u16::try_from(size) else { return false };
        let count = bytes.len().div_ceil(size) as u64;
        match self.send(to, bytes, Some(segment), count) {
            // Old kernels cut only where the interface completes checksums.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP)) => {
                info!(%error, "this kernel does not cut UDP trains here: datagrams are sent one by one");
                self.segmented = false;
                false
            }
            Err(error) => {
                self.refused(&error, to, size, count);
                true
            }
            Ok(()) => true,
        }
    }

    /// A turn begins.
    pub(super) fn begin(&mut self, now: Duration) {
        self.now = now;
    }

    /// Something came from there.
    pub(super) fn heard(&mut self, from: SocketAddr) {
        self.patience.sees(from, self.now);
    }

    /// Sends one message, by the destination's own lane where it has one.
    fn send(&mut self, to: SocketAddr, bytes: Parts<'_>, size: Option<u16>, count: u64) -> io::Result<()> {
        self.patience.sees(canonical(to), self.now);
        let socket = self.lanes.of(to, self.now).unwrap_or(&self.socket);
        let mut result = self.gather.send(socket, to, bytes.iter(), size);
        if let Err(error) = &result
            && is_busy(error)
        {
            result = self.send_when_there_is_room(to, bytes, size);
        }
        match result {
            Ok(()) => {
                self.counters.udp_sent += count;
                self.counters.udp_sent_bytes += bytes.len() as u64;
                self.counters.udp_sends += 1;
                Ok(())
            }
            Err(error) if is_busy(&error) => {
                self.counters.udp_send_busy += count;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The buffer was full: sends it by a lane, or when there is room, or gives up.
    #[cold]
    fn send_when_there_is_room(&mut self, to: SocketAddr, bytes: Parts<'_>, size: Option<u16>) -> io::Result<()> {
        if self.lanes.of(to, self.now).is_none() {
            // Err: it waits with the others.
            let _ = self.lanes.open(&self.socket, to, self.now);
        }
        let socket = self.lanes.of(to, self.now).unwrap_or(&self.socket);
        let (start, patience) = (Instant::now(), self.patience.left(self.now));
        loop {
            let result = self.gather.send(socket, to, bytes.iter(), size);
            let waited = start.elapsed();
            if !result.as_ref().is_err_and(is_busy) || waited >= patience {
                self.patience.spend(waited);
                return result;
            }
            wait_writable(socket, (patience - waited).min(ASK_AGAIN));
        }
    }

    #[cold]
    fn refused(&mut self, error: &io::Error, to: SocketAddr, len: usize, count: u64) {
        let to = canonical(to);
        if error.raw_os_error() == Some(libc::EMSGSIZE) {
            self.counters.udp_too_large += count;
            if self.too_large.len() < TOO_LARGE_MAX {
                self.too_large.push((to, len));
            }
            return;
        }
        self.counters.udp_send_failed += count;
        // A peer that restarts answers with port unreachable: not worth a line.
        if error.kind() != io::ErrorKind::ConnectionRefused
            && let Some(kept_quiet) = self.quiet.may_speak()
        {
            warn!(%to, %error, kept_quiet, "datagram not sent");
        }
    }

    fn written(&mut self, result: io::Result<usize>) {
        match result {
            Ok(bytes) => {
                self.counters.tap_written_frames += 1;
                self.counters.tap_written_bytes += bytes as u64;
            }
            // Full, or the interface is down: as on a cable that is unplugged.
            Err(_) => self.counters.tap_write_failed += 1,
        }
    }
}

/// Returns when much of the socket's buffer is free, or after `patience`.
fn wait_writable(socket: &UdpSocket, patience: Duration) {
    let Ok(timeout) = Timespec::try_from(patience) else { return };
    // Whatever it says, the caller tries.
    let _ = poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&timeout));
}

/// The socket's buffer is full, or the interface's queue.
fn is_busy(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        || error.raw_os_error() == Some(libc::ENOBUFS)
}

impl Sink for Outbox {
    fn datagram(&mut self, to: SocketAddr, bytes: &[u8]) {
        let Some(target) = for_socket(to, self.socket_is_ipv6) else {
            self.refused(&io::ErrorKind::AddrNotAvailable.into(), to, bytes.len(), 1);
            return;
        };
        if let Err(error) = self.send(target, Parts::whole(bytes), None, 1) {
            self.refused(&error, to, bytes.len(), 1);
        }
    }

    fn datagrams(&mut self, to: SocketAddr, bytes: Parts<'_>, size: usize) {
        let length = bytes.len();
        let several = length > size;
        let Some(target) = for_socket(to, self.socket_is_ipv6) else {
            self.refused(&io::ErrorKind::AddrNotAvailable.into(), to, size, length.div_ceil(size.max(1)) as u64);
            return;
        };
        if several && self.segmented && self.send_train(target, bytes, size) {
            return;
        }
        if !several {
            if let Err(error) = self.send(target, bytes, None, 1) {
                self.refused(&error, to, length, 1);
            }
            return;
        }
        let mut whole = std::mem::take(&mut self.whole);
        if let Some(length) = bytes.copy_to(&mut whole) {
            whole[..length].chunks(size).for_each(|datagram| self.datagram(to, datagram));
        }
        self.whole = whole;
    }

    fn frame(&mut self, bytes: &[u8]) {
        if self.tap.has_header() {
            return self.super_frame(&VirtioHeader::PLAIN, Parts::whole(bytes));
        }
        let result = rustix::io::retry_on_intr(|| rustix::io::write(&self.tap, bytes));
        self.written(result.map_err(Into::into));
    }

    fn super_frame(&mut self, header: &VirtioHeader, bytes: Parts<'_>) {
        let takes = match header.gso {
            Gso::None => true,
            Gso::Tcp4 | Gso::Tcp6 => self.tap.offloads().tcp,
            Gso::Udp => self.tap.offloads().udp,
        };
        if self.tap.has_header() && takes {
            let header = header.bytes();
            let result = self.gather.write(self.tap.writer(), std::iter::once(&header[..]).chain(bytes.iter()));
            return self.written(result);
        }
        let (mut whole, mut cut) = (std::mem::take(&mut self.whole), std::mem::take(&mut self.cut));
        if let Some(length) = bytes.copy_to(&mut whole) {
            each_frame(header, &mut whole[..length], &mut cut, |frame| self.frame(frame));
        }
        (self.whole, self.cut) = (whole, cut);
    }

    fn quic(&mut self, from: Hop, bytes: &[u8]) {
        match self.quic.try_reserve() {
            Ok(permit) => permit.send((from, bytes.to_vec())),
            Err(_) => self.counters.quic_queue_full += 1,
        }
    }
}

#[cfg(test)]
impl Outbox {
    /// One that sends only.
    pub(super) fn without_tap(socket: Arc<UdpSocket>) -> Self {
        let null = std::fs::File::open("/dev/null").unwrap();
        let tap = Arc::new(Tap::from(std::os::fd::OwnedFd::from(null)));
        Self::new(tap, socket, mpsc::channel(1).0).unwrap()
    }

    /// As if the kernel did, or did not, cut trains.
    pub(super) fn set_segmented(&mut self, segmented: bool) {
        self.segmented = segmented;
    }
}
