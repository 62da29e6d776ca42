//! The data thread: waits, reads, hands over, sends.
//!
//! ```text
//!  loop {  wait (epoll: TAP, socket, eventfd; until the forwarder's next timer)
//!          eventfd?  commands, relayed QUIC datagrams, reports
//!          timer?    handle_timeout
//!          TAP?      up to FRAMES frames or TAP_BYTES
//!          socket?   up to a batch of datagrams
//!          flush, events }
//! ```
//!
//! A turn is bounded from every source, so a flood from one side does not starve the other.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_proto::data::forwarder::Forwarder;
use mesh_proto::data::virtio::{VIRTIO_HEADER, VirtioHeader};
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use tokio::sync::mpsc;
use tracing::{error, warn};

use super::batch::Receiver;
use super::events::Events;
use super::handle::{Inbox, Shared};
use super::outbox::Outbox;
use super::quiet::Quiet;
use super::tap::Tap;
use super::{DataConfig, DataOutputs, Report};
use crate::clock::Clock;

/// Frames read from the TAP in one turn.
const FRAMES: usize = 64;
/// Bytes after which no more is read in one turn: four super-frames, so that what comes from
/// peers does not wait for long.
const TAP_BYTES: usize = 256 * 1024;
/// Longest that a TAP gives: a super-frame and its virtio header.
const READ_MAX: usize = VIRTIO_HEADER + 65_536 + 64;
/// Inputs of control handled in one turn, of each kind.
const INPUTS: usize = 256;
/// Bound of both queues to control.
const OUTPUTS: usize = 1024;
/// How soon events that found the queue full are offered again.
const EVENTS_RETRY: Duration = Duration::from_millis(5);
/// How long a source that fails is left alone.
const MUTE: Duration = Duration::from_millis(100);
/// Longest wait: a number that every kernel's epoll takes.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

const TAP: u64 = 0;
const SOCKET: u64 = 1;
const WAKE: u64 = 2;

/// Starts the thread.
pub(super) fn start(config: DataConfig) -> io::Result<(Arc<Shared>, DataOutputs)> {
    let (shared, inbox, wake, stop) = Shared::new()?;
    let (events, events_end) = mpsc::channel(OUTPUTS);
    let (quic, quic_end) = mpsc::channel(OUTPUTS);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let tap = Arc::new(config.tap);
    epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
    let outbox = Outbox::new(tap.clone(), config.socket.clone(), quic)?;
    let now = config.clock.now();
    let thread = Thread {
        tap: Source::new(tap, TAP),
        socket: Source::new(config.socket, SOCKET),
        forwarder: Forwarder::new(config.forwarder, config.seed, now),
        clock: config.clock,
        epoll,
        wake,
        inbox,
        receiver: Receiver::new(),
        outbox,
        events: Events::new(events),
        frame: vec![0; READ_MAX].into(),
        more_inputs: false,
        events_kept: false,
        tap_lost: false,
        turns: 0,
        commands: 0,
        panics: 0,
        quiet: Quiet::default(),
    };
    thread.tap.listen(&thread.epoll)?;
    thread.socket.listen(&thread.epoll)?;
    let join = std::thread::Builder::new().name("weft-data".to_owned()).spawn(move || thread.run(&stop))?;
    shared.set_thread(join);
    Ok((Arc::new(shared), DataOutputs { events: events_end, quic: quic_end }))
}

/// A descriptor that epoll watches, and leaves alone for a while after it failed.
struct Source<F> {
    fd: Arc<F>,
    token: u64,
    muted_until: Option<Duration>,
}

impl<F: AsFd> Source<F> {
    const fn new(fd: Arc<F>, token: u64) -> Self {
        Self { fd, token, muted_until: None }
    }

    fn listen(&self, epoll: &OwnedFd) -> io::Result<()> {
        Ok(epoll::add(epoll, &self.fd, EventData::new_u64(self.token), EventFlags::IN)?)
    }

    fn ignore(&self, epoll: &OwnedFd) {
        // Fails only if it is not listened to: as wanted.
        let _ = epoll::delete(epoll, &self.fd);
    }

    /// Stops listening until [`MUTE`] from now: epoll would report the error again and again.
    fn mute(&mut self, epoll: &OwnedFd, now: Duration) {
        self.ignore(epoll);
        self.muted_until = Some(now + MUTE);
    }

    fn unmute(&mut self, epoll: &OwnedFd, now: Duration) {
        if self.muted_until.is_some_and(|until| until <= now) {
            self.muted_until = self.listen(epoll).is_err().then(|| now + MUTE);
        }
    }
}

/// Which sources have something.
#[derive(Default)]
struct Ready {
    tap: bool,
    socket: bool,
    wake: bool,
}

struct Thread {
    clock: Clock,
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    inbox: Inbox,
    tap: Source<Tap>,
    socket: Source<UdpSocket>,
    forwarder: Forwarder,
    receiver: Receiver,
    outbox: Outbox,
    events: Events,
    frame: Box<[u8]>,
    more_inputs: bool,
    events_kept: bool,
    tap_lost: bool,
    turns: u64,
    commands: u64,
    panics: u64,
    quiet: Quiet,
}

impl Thread {
    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            // A bug in the forwarder costs the batch that triggered it, not the host's network.
            if catch_unwind(AssertUnwindSafe(|| self.turn())).is_err() {
                self.panics += 1;
                self.forwarder.recover();
                if let Some(kept_quiet) = self.quiet.may_speak() {
                    error!(kept_quiet, "bug in the data path (see the panic above): a batch was lost, going on");
                }
            }
        }
    }

    fn turn(&mut self) {
        let ready = self.wait();
        self.turns += 1;
        let now = self.clock.now();
        if ready.wake || self.more_inputs {
            self.inputs(now);
        }
        self.timers(now);
        if ready.tap {
            self.read_tap(now);
        }
        if ready.socket {
            self.read_socket(now);
        }
        self.forwarder.flush(now, &mut self.outbox);
        while let Some((to, size)) = self.outbox.next_too_large() {
            self.forwarder.note_too_large(to, size, now);
        }
        while let Some(event) = self.forwarder.poll_event() {
            self.events.send(event);
        }
        self.events_kept = self.events.retry();
    }

    fn wait(&mut self) -> Ready {
        let none = epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut found = [none; 3];
        let timeout = self.patience().and_then(|patience| Timespec::try_from(patience).ok());
        let count = match epoll::wait(&self.epoll, &mut found, timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => {
                self.warn("waiting for work failed", error);
                std::thread::sleep(MUTE);
                0
            }
        };
        let mut ready = Ready::default();
        for event in &found[..count] {
            match event.data.u64() {
                TAP => ready.tap = true,
                SOCKET => ready.socket = true,
                _ => ready.wake = true,
            }
        }
        ready
    }

    /// How long there is nothing to do without input; `None` is for ever.
    fn patience(&self) -> Option<Duration> {
        if self.more_inputs {
            return Some(Duration::ZERO);
        }
        let timers = [
            self.forwarder.poll_timeout().map(|(at, _why)| at),
            self.tap.muted_until,
            self.socket.muted_until,
            self.events_kept.then(|| self.clock.now() + EVENTS_RETRY),
        ];
        let next = timers.into_iter().flatten().min()?;
        Some(next.saturating_sub(self.clock.now()).min(WAIT_MAX))
    }

    fn timers(&mut self, now: Duration) {
        if self.forwarder.poll_timeout().is_some_and(|(at, _why)| at <= now) {
            self.forwarder.handle_timeout(now, &mut self.outbox);
        }
        self.tap.unmute(&self.epoll, now);
        self.socket.unmute(&self.epoll, now);
        if self.tap_lost && self.tap.muted_until.is_none() {
            // It may be back, and nothing to read in it would not tell.
            self.read_tap(now);
        }
    }

    fn inputs(&mut self, now: Duration) {
        // Resets the eventfd; what is queued after this wakes the thread again.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        let mut left = INPUTS;
        for command in self.inbox.commands.try_iter().take(INPUTS) {
            self.forwarder.handle_command(command, now, &mut self.outbox);
            self.commands += 1;
            left -= 1;
        }
        self.more_inputs = left == 0;
        left = INPUTS;
        for (to, bytes) in self.inbox.relayed.try_iter().take(INPUTS) {
            self.forwarder.relay_quic(to, &bytes, now, &mut self.outbox);
            left -= 1;
        }
        self.more_inputs |= left == 0;
        for answer in self.inbox.reports.try_iter().take(INPUTS) {
            let report = Report {
                io: self.outbox.counters,
                forwarder: *self.forwarder.counters(),
                paths: self.forwarder.paths(now).collect(),
                macs: self.forwarder.macs_known(),
                offloads: self.outbox.offloads(),
                tap_lost: self.tap_lost,
                turns: self.turns,
                commands: self.commands,
                panics: self.panics,
            };
            // Err: whoever asked has gone.
            let _ = answer.send(report);
        }
    }

    fn read_tap(&mut self, now: Duration) {
        let mut bytes = 0;
        for _ in 0..FRAMES {
            match rustix::io::read(&self.tap.fd, &mut *self.frame) {
                Ok(0) => return self.lose_tap("closed", now),
                Ok(len) => {
                    self.outbox.counters.tap_read_frames += 1;
                    self.outbox.counters.tap_read_bytes += len as u64;
                    self.take_frame(len, now);
                    bytes += len;
                    if bytes >= TAP_BYTES {
                        return;
                    }
                }
                Err(Errno::AGAIN) => {
                    self.tap_lost = false;
                    return;
                }
                Err(Errno::INTR) => {}
                Err(Errno::BADFD) => return self.lose_tap("deleted", now),
                Err(error) => {
                    self.outbox.counters.tap_read_failed += 1;
                    self.tap.mute(&self.epoll, now);
                    return self.warn("reading the TAP failed", error);
                }
            }
        }
    }

    /// Hands over what was read: `len` bytes.
    fn take_frame(&mut self, len: usize, now: Duration) {
        let Some(bytes) = self.frame.get_mut(..len) else { return };
        #[cfg(test)]
        assert!(!bytes.ends_with(tests::BUG), "as the test wants");
        if !self.tap.fd.has_header() {
            return self.forwarder.handle_frame(bytes, now, &mut self.outbox);
        }
        match bytes.split_first_chunk_mut().map(|(header, frame)| (VirtioHeader::parse(header), frame)) {
            Some((Some(header), frame)) => {
                self.forwarder.handle_super_frame(&header, frame, now, &mut self.outbox);
            }
            _ => self.outbox.counters.tap_read_failed += 1,
        }
    }

    #[cold]
    fn lose_tap(&mut self, how: &str, now: Duration) {
        self.tap.mute(&self.epoll, now);
        if !self.tap_lost {
            self.tap_lost = true;
            error!("the TAP was {how}: no frames from or to this host until it is back");
        }
    }

    fn read_socket(&mut self, now: Duration) {
        if let Err(error) = self.receiver.receive(&self.socket.fd) {
            return self.receive_failed(&error, now);
        }
        let counters = &mut self.outbox.counters;
        counters.udp_messages += self.receiver.messages();
        let (datagrams, arena) = self.receiver.datagrams();
        for datagram in datagrams {
            let Some((from, at)) = datagram else {
                self.outbox.counters.udp_truncated += 1;
                continue;
            };
            self.outbox.counters.udp_received += 1;
            self.outbox.counters.udp_received_bytes += at.len() as u64;
            self.forwarder.handle_received(from, arena, at, now, &mut self.outbox);
        }
        self.forwarder.settle(arena, &mut self.outbox);
    }

    #[cold]
    fn receive_failed(&mut self, error: &io::Error, now: Duration) {
        use io::ErrorKind::{ConnectionRefused, ConnectionReset, Interrupted, WouldBlock};
        match error.kind() {
            WouldBlock | Interrupted => {}
            // An ICMP answer to something that was sent: reading it has cleared it.
            ConnectionRefused | ConnectionReset => self.outbox.counters.udp_receive_failed += 1,
            _ => {
                self.outbox.counters.udp_receive_failed += 1;
                self.socket.mute(&self.epoll, now);
                self.warn("receiving failed", error);
            }
        }
    }

    #[cold]
    fn warn(&mut self, what: &str, error: impl std::fmt::Display) {
        if let Some(kept_quiet) = self.quiet.may_speak() {
            warn!(%error, kept_quiet, "{what}");
        }
    }
}

#[cfg(test)]
mod tests;
