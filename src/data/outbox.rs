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

use super::quiet::Quiet;
use super::sys::Gather;
use super::tap::Tap;
use super::udp::for_socket;
use super::{IoCounters, Offloads};

/// How long one call may wait for room in the socket's buffer: meanwhile nothing is read, so what
/// is too fast is slowed down instead of lost. Long enough for the interface to send a part of
/// the buffer, short enough that the timers do not notice.
const SEND_PATIENCE: Duration = Duration::from_millis(2);

/// Most datagrams remembered, until the forwarder is told, as larger than their interface's MTU.
const TOO_LARGE_MAX: usize = 16;

/// Implements [`Sink`] on the thread's descriptors. What it is given is the kernel's when the
/// call returns: nothing is copied or kept here.
pub(super) struct Outbox {
    tap: Arc<Tap>,
    socket: Arc<UdpSocket>,
    socket_is_ipv6: bool,
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

    /// Sends one message, waiting for room for a while.
    fn send(&mut self, to: SocketAddr, bytes: Parts<'_>, size: Option<u16>, count: u64) -> io::Result<()> {
        let mut until: Option<Instant> = None;
        loop {
            match self.gather.send(&self.socket, to, bytes.iter(), size) {
                Ok(()) => {
                    self.counters.udp_sent += count;
                    self.counters.udp_sent_bytes += bytes.len() as u64;
                    self.counters.udp_sends += 1;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_busy(&error) => {
                    let until = *until.get_or_insert_with(|| Instant::now() + SEND_PATIENCE);
                    if !self.wait_writable(until.saturating_duration_since(Instant::now())) {
                        self.counters.udp_send_busy += count;
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// False if there is no room after `patience`.
    fn wait_writable(&self, patience: Duration) -> bool {
        let Ok(timeout) = Timespec::try_from(patience) else { return false };
        let mut sources = [PollFd::new(&self.socket, PollFlags::OUT)];
        !patience.is_zero() && matches!(poll(&mut sources, Some(&timeout)), Ok(1..))
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

/// The socket's buffer is full, or the interface's queue.
fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
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
