//! The data thread: waits, reads, hands over, sends.
//!
//! ```text
//!  loop {  look (TAP, socket, eventfd); after a turn that found nothing, wait until the next timer,
//!          or look on for a while (linger.rs)
//!          called?   commands, relayed QUIC datagrams, reports
//!          timer?    handle_timeout
//!          TAP?      a frame of each queue, again and again, up to FRAMES or TAP_BYTES
//!          socket?   up to a batch of datagrams
//!          flush, events }
//! ```
//!
//! A turn is bounded from every source, so a flood from one side does not starve the other.
//!
//! It waits by `ppoll`, not by epoll: an epoll instance hears of each datagram that comes or goes,
//! in the kernel and under its lock, also while the thread is awake and would look anyway. That
//! costs more than asking anew before each sleep, for under load there are few.

use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_proto::data::forwarder::Forwarder;
use mesh_proto::data::virtio::{VIRTIO_HEADER, VirtioHeader};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::sync::mpsc;
use tracing::{error, warn};

use self::linger::Linger;
use super::batch::Receiver;
use super::events::Events;
use super::handle::{Inbox, Shared};
use super::outbox::Outbox;
use super::quiet::Quiet;
use super::tap::{QUEUES, Tap};
use super::{DataConfig, DataOutputs, Report};
use crate::clock::Clock;

/// Frames read from the TAP in one turn.
const FRAMES: usize = 64;
/// Bytes after which no more is read in one turn: two super-frames, so that what comes from peers,
/// or into an empty queue, does not wait for long.
const TAP_BYTES: usize = 128 * 1024;
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
/// How long the start of a super-frame waits for datagrams that its sender said are under way: they
/// come right behind, and what goes to the TAP whole costs the host a fraction of its pieces.
const HOLD: Duration = Duration::from_micros(50);
/// The thread's `nice` value, where it may be set (`CAP_SYS_NICE`): what forwards frames runs before
/// what makes them, as in the kernel, or they pile up in front of it and are lost.
const PRIORITY: i32 = -10;
/// Longest wait: a number that every kernel takes.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Starts the thread.
pub(super) fn start(config: DataConfig) -> io::Result<(Arc<Shared>, DataOutputs)> {
    let (shared, inbox, wake, stop) = Shared::new()?;
    let (events, events_end) = mpsc::channel(OUTPUTS);
    let (quic, quic_end) = mpsc::channel(OUTPUTS);
    let tap = Arc::new(config.tap);
    let outbox = Outbox::new(tap.clone(), config.socket.clone(), quic)?;
    let now = config.clock.now();
    let thread = Thread {
        tap: Source { fd: tap, muted_until: None },
        socket: Source { fd: config.socket, muted_until: None },
        forwarder: Forwarder::new(config.forwarder, config.seed, now),
        clock: config.clock,
        wake,
        inbox,
        receiver: Receiver::new(),
        outbox,
        events: Events::new(events),
        frame: vec![0; READ_MAX].into(),
        next_queue: 0,
        held_until: None,
        found: 0,
        linger: Linger::new(config.busy_poll),
        more_inputs: false,
        events_kept: false,
        tap_lost: false,
        turns: 0,
        commands: 0,
        panics: 0,
        quiet: Quiet::default(),
    };
    let join = std::thread::Builder::new().name("weft-data".to_owned()).spawn(move || thread.run(&stop))?;
    shared.set_thread(join);
    Ok((Arc::new(shared), DataOutputs { events: events_end, quic: quic_end }))
}

/// A descriptor that is read, and left alone for a while after it failed.
struct Source<F> {
    fd: Arc<F>,
    muted_until: Option<Duration>,
}

impl<F> Source<F> {
    /// Whether it is to be read.
    const fn is_open(&self) -> bool {
        self.muted_until.is_none()
    }

    fn mute(&mut self, now: Duration) {
        self.muted_until = Some(now + MUTE);
    }

    fn unmute(&mut self, now: Duration) {
        self.muted_until = self.muted_until.filter(|until| *until > now);
    }
}

/// What has something.
#[derive(Clone, Copy)]
struct Ready {
    /// The queues of the TAP, a bit for each.
    tap: u32,
    socket: bool,
    wake: bool,
}

impl Ready {
    const NOTHING: Self = Self { tap: 0, socket: false, wake: false };
}

struct Thread {
    clock: Clock,
    wake: Arc<OwnedFd>,
    inbox: Inbox,
    tap: Source<Tap>,
    socket: Source<UdpSocket>,
    forwarder: Forwarder,
    receiver: Receiver,
    outbox: Outbox,
    events: Events,
    frame: Box<[u8]>,
    /// The queue of the TAP that is read next.
    next_queue: usize,
    /// When the start of a super-frame is handed over whose rest has not come.
    held_until: Option<Duration>,
    /// Bytes that the last turn read: after some there may be more by now.
    found: usize,
    linger: Linger,
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
        // Err: it may not be set.
        let _ = rustix::process::setpriority_process(None, PRIORITY);
        while !stop.load(Ordering::Acquire) {
            // A bug in the forwarder costs the batch that triggered it, not the host's network.
            if catch_unwind(AssertUnwindSafe(|| self.turn())).is_err() {
                self.panics += 1;
                self.forwarder.recover();
                self.receiver.rewind();
                self.held_until = None;
                if let Some(kept_quiet) = self.quiet.may_speak() {
                    error!(kept_quiet, "bug in the data path (see the panic above): a batch was lost, going on");
                }
            }
        }
    }

    fn turn(&mut self) {
        let ready = self.look();
        self.turns += 1;
        let now = self.clock.now();
        self.outbox.begin(now);
        if ready.wake || self.more_inputs {
            self.inputs(now);
        }
        self.timers(now);
        if ready.tap != 0 {
            self.read_tap(ready.tap, now);
        }
        if ready.socket {
            self.read_socket(now);
        }
        if self.held_until.is_some_and(|until| until <= now) {
            self.settle();
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

    /// What there is now; after a turn that found nothing, as soon as there is something.
    fn look(&mut self) -> Ready {
        let patience = if self.looks_again() { Some(Duration::ZERO) } else { self.patience() };
        let timeout = patience.and_then(|patience| Timespec::try_from(patience).ok());
        // A source that is left alone is not asked, for errors are reported whatever is asked for: the
        // last of these takes its place.
        let mut sources: [PollFd<'_>; QUEUES + 2] = std::array::from_fn(|_| PollFd::new(&self.wake, PollFlags::IN));
        let queues = if self.tap.is_open() { self.tap.fd.queues() } else { &[] };
        for (source, queue) in sources.iter_mut().zip(queues) {
            *source = PollFd::new(queue, PollFlags::IN);
        }
        if self.socket.is_open() {
            sources[QUEUES] = PollFd::new(&self.socket.fd, PollFlags::IN);
        }
        match poll(&mut sources, timeout.as_ref()) {
            Ok(_) => {
                let has = |place: usize| !sources[place].revents().is_empty();
                let tap = (0..queues.len().min(QUEUES)).map(|queue| u32::from(has(queue)) << queue).sum();
                Ready { tap, socket: self.socket.is_open() && has(QUEUES), wake: has(QUEUES + 1) }
            }
            Err(Errno::INTR) => Ready::NOTHING,
            Err(error) => {
                self.warn("waiting for work failed", error);
                std::thread::sleep(MUTE);
                Ready::NOTHING
            }
        }
    }

    /// Whether there may be something by the time that a sleep would take.
    fn looks_again(&mut self) -> bool {
        let now = self.clock.now();
        match std::mem::take(&mut self.found) {
            0 if self.linger.goes_on(now) => {
                std::thread::yield_now();
                true
            }
            0 => false,
            bytes => {
                self.linger.found(bytes, now);
                true
            }
        }
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
            self.held_until,
            self.events_kept.then(|| self.clock.now() + EVENTS_RETRY),
        ];
        let next = timers.into_iter().flatten().min()?;
        Some(next.saturating_sub(self.clock.now()).min(WAIT_MAX))
    }

    fn timers(&mut self, now: Duration) {
        if self.forwarder.poll_timeout().is_some_and(|(at, _why)| at <= now) {
            self.forwarder.handle_timeout(now, &mut self.outbox);
        }
        self.tap.unmute(now);
        self.socket.unmute(now);
        if self.tap_lost && self.tap.is_open() {
            // It may be back, and nothing to read in it would not tell.
            self.read_tap(1, now);
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

    /// Reads a frame of each of these queues, and again while they have more and the turn lasts. The
    /// next turn begins with another queue.
    fn read_tap(&mut self, mut queues: u32, now: Duration) {
        let (mut frames, mut bytes) = (0, 0);
        let count = self.tap.fd.queues().len();
        while queues != 0 && frames < FRAMES && bytes < TAP_BYTES {
            let queue = self.next_queue % count;
            self.next_queue = queue + 1;
            if queues >> queue & 1 == 0 {
                continue;
            }
            match rustix::io::read(&self.tap.fd.queues()[queue], &mut *self.frame) {
                Ok(0) => return self.lose_tap("closed", now),
                Ok(len) => {
                    self.outbox.counters.tap_read_frames += 1;
                    self.outbox.counters.tap_read_bytes += len as u64;
                    self.take_frame(len, now);
                    self.found += len;
                    (frames, bytes) = (frames + 1, bytes + len);
                }
                Err(Errno::AGAIN) => {
                    self.tap_lost = false;
                    queues &= !(1 << queue);
                }
                Err(Errno::INTR) => {}
                Err(Errno::BADFD) => return self.lose_tap("deleted", now),
                Err(error) => {
                    self.outbox.counters.tap_read_failed += 1;
                    self.tap.mute(now);
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
        self.tap.mute(now);
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
        let mut last = None;
        let (datagrams, arena) = self.receiver.datagrams();
        for datagram in datagrams {
            let Some((from, at)) = datagram else {
                self.outbox.counters.udp_truncated += 1;
                continue;
            };
            self.outbox.counters.udp_received += 1;
            self.outbox.counters.udp_received_bytes += at.len() as u64;
            self.found += at.len();
            last = Some(from);
            self.forwarder.handle_received(from, arena, at, now, &mut self.outbox);
        }
        if let Some(from) = last {
            self.outbox.heard(from);
        }
        if self.forwarder.is_joining() && self.receiver.has_room() {
            self.held_until.get_or_insert_with(|| self.clock.now() + HOLD);
        } else {
            self.settle();
        }
    }

    /// Hands over what was held back for its rest.
    fn settle(&mut self) {
        let (_, arena) = self.receiver.datagrams();
        self.forwarder.settle(arena, &mut self.outbox);
        self.receiver.rewind();
        self.held_until = None;
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
                self.socket.mute(now);
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

mod linger;

#[cfg(test)]
mod tests;
