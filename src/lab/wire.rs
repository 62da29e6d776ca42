//! The underlay: every frame between hosts passes through one thread, which can do to it whatever
//! networks do, and keeps a copy where a test wants to look.
//!
//! ```text
//!  host 0 ── TAP ─┐                        ┌─ TAP ── host 1
//!  host 2 ── TAP ─┼─ capture, rule of the ─┼─ TAP ── host 3
//!                 │  directed pair, NAT    │
//! ```
//!
//! All chance comes from one seed. The rules of a pair are changed at any time from outside and
//! hold for the next frame.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{
    frame,
    nat::{Nat, NatKind},
};
use crate::netlink::Mac;

/// What happens to the frames from one host to another. The default is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Impairment {
    /// Nothing arrives.
    pub cut: bool,
    /// Part that is lost, 0.0 to 1.0.
    pub loss: f64,
    /// Part that arrives twice.
    pub duplicate: f64,
    /// Part whose UDP payload has one bit changed (with a right checksum, or it would go no
    /// further than the kernel).
    pub corrupt: f64,
    /// Every frame takes this long.
    pub delay: Duration,
    /// And up to this much longer, each by itself: so they overtake each other.
    pub jitter: Duration,
    /// Part that is held back by [`Impairment::HELD_BACK`]: overtaken by what follows.
    pub reorder: f64,
    /// Larger IP packets do not fit.
    pub max_packet: Option<u16>,
    /// Tell the sender by ICMP that they did not fit.
    pub icmp: bool,
    /// Whole datagrams to that UDP port vanish.
    pub blocked_port: Option<u16>,
}

impl Impairment {
    /// How long a reordered frame is held back.
    pub const HELD_BACK: Duration = Duration::from_millis(2);

    /// Nothing arrives.
    #[must_use]
    pub fn cut() -> Self {
        Self { cut: true, ..Self::default() }
    }

    /// Datagrams to a UDP port vanish, as behind a firewall.
    #[must_use]
    pub fn blocked(port: u16) -> Self {
        Self { blocked_port: Some(port), ..Self::default() }
    }

    /// IP packets above `bytes` vanish; `icmp` says whether the sender is told.
    #[must_use]
    pub fn path_mtu(bytes: u16, icmp: bool) -> Self {
        Self { max_packet: Some(bytes), icmp, ..Self::default() }
    }
}

/// A frame as a host sent it, before anything happened to it.
#[derive(Debug, Clone)]
pub struct Captured {
    /// Since the wire was made.
    pub at: Duration,
    /// The sending host.
    pub from: usize,
    /// The frame.
    pub frame: Vec<u8>,
}

/// Counters of a directed pair of hosts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathCount {
    /// Frames handed to the receiving host.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames lost by rule, or because the host did not take them.
    pub lost: u64,
}

/// A host's plug in the wire.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) tap: OwnedFd,
    pub(super) mac: Mac,
    pub(super) v4: Ipv4Addr,
    /// The translator that the host is behind.
    pub(super) nat: Option<usize>,
}

/// A translator of the wire.
#[derive(Debug, Clone, Copy)]
pub(super) struct NatSetup {
    pub(super) public: Ipv4Addr,
    pub(super) gateway: Mac,
    pub(super) kind: NatKind,
    pub(super) timeout: Duration,
}

/// Handle of the running wire; it ends with the handle.
pub struct Wire {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

struct Shared {
    wake: OwnedFd,
    stop: AtomicBool,
    started: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rules: BTreeMap<(usize, usize), Impairment>,
    counts: BTreeMap<(usize, usize), PathCount>,
    capture: Option<Ring>,
    injected: Vec<(usize, Vec<u8>)>,
    replaced: Vec<(usize, OwnedFd)>,
    forget_nat: Vec<usize>,
}

/// The newest frames, up to a number of bytes.
#[derive(Default)]
struct Ring {
    frames: VecDeque<Captured>,
    bytes: usize,
    limit: usize,
    overwritten: u64,
}

impl Ring {
    fn push(&mut self, captured: Captured) {
        self.bytes += captured.frame.len();
        self.frames.push_back(captured);
        while self.bytes > self.limit {
            let Some(oldest) = self.frames.pop_front() else { break };
            self.bytes -= oldest.frame.len();
            self.overwritten += 1;
        }
    }
}

impl Wire {
    pub(super) fn start(seed: u64, ports: Vec<Port>, nats: &[NatSetup]) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared {
            wake,
            stop: AtomicBool::new(false),
            started: Instant::now(),
            state: Mutex::new(State::default()),
        });
        let runner = Runner {
            shared: Arc::clone(&shared),
            ports,
            gateways: nats.iter().map(|nat| nat.gateway).collect(),
            nats: nats.iter().map(|nat| Nat::new(nat.public, nat.kind, nat.timeout)).collect(),
            random: Random(seed),
            delayed: BinaryHeap::new(),
            sequence: 0,
        };
        let thread = thread::Builder::new().name("wire".into()).spawn(move || runner.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what happens from one host to another, in that direction only.
    pub fn impair_one_way(&self, from: usize, to: usize, rule: Impairment) {
        self.state().rules.insert((from, to), rule);
    }

    /// Sets what happens between two hosts, both ways.
    pub fn impair(&self, a: usize, b: usize, rule: Impairment) {
        let mut state = self.state();
        state.rules.insert((a, b), rule);
        state.rules.insert((b, a), rule);
    }

    /// Cuts two hosts off from each other.
    pub fn cut(&self, a: usize, b: usize) {
        self.impair(a, b, Impairment::cut());
    }

    /// Nothing happens any more between two hosts.
    pub fn heal(&self, a: usize, b: usize) {
        self.impair(a, b, Impairment::default());
    }

    /// Nothing happens any more between any hosts.
    pub fn heal_all(&self) {
        self.state().rules.clear();
    }

    /// Makes a translator forget its mappings.
    pub fn forget_nat(&self, nat: usize) {
        self.state().forget_nat.push(nat);
        self.wake();
    }

    /// Counters from one host to another.
    #[must_use]
    pub fn count(&self, from: usize, to: usize) -> PathCount {
        self.state().counts.get(&(from, to)).copied().unwrap_or_default()
    }

    /// Frames and bytes that arrived anywhere so far.
    #[must_use]
    pub fn total(&self) -> PathCount {
        self.state().counts.values().fold(PathCount::default(), |sum, count| PathCount {
            frames: sum.frames + count.frames,
            bytes: sum.bytes + count.bytes,
            lost: sum.lost + count.lost,
        })
    }

    /// Starts to keep copies of the newest frames, up to `limit` bytes.
    pub fn start_capture(&self, limit: usize) {
        self.state().capture = Some(Ring { limit, ..Ring::default() });
    }

    /// Ends the capture and returns what was kept, oldest first, and how many older frames did
    /// not fit.
    #[must_use]
    pub fn take_capture(&self) -> (Vec<Captured>, u64) {
        let ring = self.state().capture.take().unwrap_or_default();
        (ring.frames.into(), ring.overwritten)
    }

    /// Hands a frame to a host as if it came from the wire. No rule applies to it.
    pub fn inject(&self, to: usize, frame: Vec<u8>) {
        self.state().injected.push((to, frame));
        self.wake();
    }

    /// Plugs another interface in, in the place of a host's.
    pub(super) fn replace(&self, host: usize, tap: OwnedFd) {
        self.state().replaced.push((host, tap));
        self.wake();
    }

    fn wake(&self) {
        // Full counter: it is awake already.
        let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the wire's thread panicked");
        }
    }
}

/// splitmix64: small, seeded, and good enough to decide about losses.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn chance(&mut self, part: f64) -> bool {
        part > 0.0 && ((self.next() >> 11) as f64) < part * (1_u64 << 53) as f64
    }

    fn up_to(&mut self, limit: Duration) -> Duration {
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(if nanos == 0 { 0 } else { self.next() % nanos })
    }
}

struct Delayed {
    due: Instant,
    // Same due time: first come, first served.
    sequence: u64,
    path: (usize, usize),
    frame: Vec<u8>,
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Delayed {}
impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.sequence).cmp(&(other.due, other.sequence))
    }
}

/// Address from which the wire's routers send their ICMP answers.
const ROUTERS: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 99, 255, 254), Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0xffff));

struct Runner {
    shared: Arc<Shared>,
    ports: Vec<Port>,
    gateways: Vec<Mac>,
    nats: Vec<Nat>,
    random: Random,
    delayed: BinaryHeap<Reverse<Delayed>>,
    sequence: u64,
}

impl Runner {
    fn run(mut self) {
        let mut buffer = vec![0_u8; 1 << 16];
        while !self.shared.stop.load(Ordering::Acquire) {
            if let Err(error) = self.wait() {
                tracing::error!(%error, "the wire cannot wait for frames");
                return;
            }
            let _ = rustix::io::read(&self.shared.wake, &mut [0_u8; 8]);
            self.obey();
            for from in 0..self.ports.len() {
                // A bounded batch, so that one host cannot starve the others.
                for _ in 0..64 {
                    match rustix::io::read(&self.ports[from].tap, &mut buffer) {
                        Ok(length) => self.carry(from, &buffer[..length]),
                        Err(_) => break,
                    }
                }
            }
            self.release();
        }
    }

    fn wait(&self) -> io::Result<()> {
        let timeout = self.delayed.peek().map(|Reverse(next)| {
            let wait = next.due.saturating_duration_since(Instant::now());
            Timespec { tv_sec: i64::try_from(wait.as_secs()).unwrap_or(1), tv_nsec: wait.subsec_nanos().into() }
        });
        let mut fds: Vec<PollFd<'_>> = self
            .ports
            .iter()
            .map(|port| PollFd::new(&port.tap, PollFlags::IN))
            .chain([PollFd::new(&self.shared.wake, PollFlags::IN)])
            .collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn obey(&mut self) {
        let (replaced, injected, forget) = {
            let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            let state = &mut *state;
            let replaced = std::mem::take(&mut state.replaced);
            (replaced, std::mem::take(&mut state.injected), std::mem::take(&mut state.forget_nat))
        };
        for (host, tap) in replaced {
            if let Some(port) = self.ports.get_mut(host) {
                port.tap = tap;
            }
        }
        for (to, frame) in injected {
            if let Some(port) = self.ports.get(to) {
                let _ = rustix::io::write(&port.tap, &frame);
            }
        }
        for nat in forget {
            if let Some(nat) = self.nats.get_mut(nat) {
                nat.forget();
            }
        }
    }

    /// One frame from a host: keep a copy, find out where it goes, apply the rules.
    fn carry(&mut self, from: usize, frame: &[u8]) {
        let at = self.shared.started.elapsed();
        {
            let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(ring) = &mut state.capture {
                ring.push(Captured { at, from, frame: frame.to_vec() });
            }
        }
        let Some(mac) = frame::destination(frame) else { return };
        if mac[0] & 1 == 1 {
            for to in 0..self.ports.len() {
                if to != from && self.ports[to].nat == self.ports[from].nat {
                    self.impair(from, to, frame);
                }
            }
        } else if let Some(to) = self.ports.iter().position(|port| port.mac == mac) {
            if self.ports[to].nat == self.ports[from].nat {
                self.impair(from, to, frame);
            }
        } else if self.gateways.contains(&mac)
            && let Some((to, translated)) = self.translate(at, from, frame)
        {
            self.impair(from, to, &translated);
        }
    }

    /// Takes a UDP datagram out of the sender's translator and into the receiver's.
    fn translate(&mut self, now: Duration, from: usize, frame: &[u8]) -> Option<(usize, Vec<u8>)> {
        let seen = frame::datagram(frame)?;
        let (SocketAddr::V4(mut source), SocketAddr::V4(mut destination)) = (seen.source, seen.destination) else {
            return None;
        };
        if let Some(nat) = self.ports[from].nat {
            source = self.nats[nat].outbound(now, source, destination);
        }
        if let Some(nat) = self.nats.iter_mut().find(|nat| nat.public == *destination.ip()) {
            destination = nat.inbound(now, source, destination.port())?;
        }
        let to = self.ports.iter().position(|port| port.v4 == *destination.ip())?;
        let gateway = self.ports[to].nat.or(self.ports[from].nat)?;
        let macs = (self.gateways[gateway], self.ports[to].mac);
        let payload = frame.get(seen.payload)?;
        let (source, destination): (SocketAddrV4, SocketAddrV4) = (source, destination);
        let rebuilt = frame::build_datagram(macs, source.into(), destination.into(), payload)?;
        Some((to, rebuilt))
    }

    fn impair(&mut self, from: usize, to: usize, frame: &[u8]) {
        let rule = {
            let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.rules.get(&(from, to)).copied().unwrap_or_default()
        };
        let blocked = || {
            let to = frame::datagram(frame).map(|datagram| datagram.destination.port());
            rule.blocked_port.is_some_and(|port| to == Some(port))
        };
        if rule.cut || blocked() || self.random.chance(rule.loss) {
            return self.lost(from, to);
        }
        if let Some(max) = rule.max_packet
            && frame::ip_length(frame).is_some_and(|length| length > usize::from(max))
        {
            if rule.icmp
                && let Some(answer) = frame::too_big(frame, max, ROUTERS)
            {
                let _ = rustix::io::write(&self.ports[from].tap, &answer);
            }
            return self.lost(from, to);
        }
        let mut frame = frame.to_vec();
        if self.random.chance(rule.corrupt)
            && let Some(flipped) = flip_one_bit(&frame, self.random.next())
        {
            frame = flipped;
        }
        if self.random.chance(rule.duplicate) {
            self.hand_over(from, to, &rule, frame.clone());
        }
        self.hand_over(from, to, &rule, frame);
    }

    fn hand_over(&mut self, from: usize, to: usize, rule: &Impairment, frame: Vec<u8>) {
        let mut wait = rule.delay + self.random.up_to(rule.jitter);
        if self.random.chance(rule.reorder) {
            wait += Impairment::HELD_BACK;
        }
        if wait.is_zero() {
            return self.deliver((from, to), &frame);
        }
        // What is under way is bounded like the queue of a real router.
        if self.delayed.len() >= 100_000 {
            return self.lost(from, to);
        }
        self.sequence += 1;
        let (due, sequence) = (Instant::now() + wait, self.sequence);
        self.delayed.push(Reverse(Delayed { due, sequence, path: (from, to), frame }));
    }

    fn release(&mut self) {
        let now = Instant::now();
        while self.delayed.peek().is_some_and(|Reverse(next)| next.due <= now) {
            if let Some(Reverse(next)) = self.delayed.pop() {
                self.deliver(next.path, &next.frame);
            }
        }
    }

    fn deliver(&self, path: (usize, usize), frame: &[u8]) {
        let taken = rustix::io::write(&self.ports[path.1].tap, frame).is_ok();
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let count = state.counts.entry(path).or_default();
        if taken {
            count.frames += 1;
            count.bytes += frame.len() as u64;
        } else {
            count.lost += 1;
        }
    }

    fn lost(&self, from: usize, to: usize) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.counts.entry((from, to)).or_default().lost += 1;
    }
}

/// The frame with one bit of its UDP payload changed and its checksum made right again.
fn flip_one_bit(frame: &[u8], random: u64) -> Option<Vec<u8>> {
    let seen = frame::datagram(frame)?;
    let mut payload = frame.get(seen.payload)?.to_vec();
    let bits = (payload.len() as u64).checked_mul(8).filter(|&bits| bits > 0)?;
    let bit = random % bits;
    *payload.get_mut((bit / 8) as usize)? ^= 1 << (bit % 8);
    let macs = (frame.get(6..12)?.try_into().ok()?, frame.get(..6)?.try_into().ok()?);
    frame::build_datagram(macs, seen.source, seen.destination, &payload)
}

/// Addresses of the underlay that tests build datagrams with.
pub(super) fn host_v6(index: usize) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, u16::try_from(index + 1).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_loses_the_same_frames() {
        let run = |seed| {
            let mut random = Random(seed);
            (0..1000).map(|_| random.chance(0.1)).collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        let lost = run(7).into_iter().filter(|&lost| lost).count();
        assert!((60..140).contains(&lost), "{lost} of 1000 at 10 %");
    }

    #[test]
    fn a_ring_keeps_the_newest_and_counts_the_rest() {
        let mut ring = Ring { limit: 10, ..Ring::default() };
        for n in 0..5_u8 {
            ring.push(Captured { at: Duration::ZERO, from: 0, frame: vec![n; 4] });
        }
        assert_eq!(ring.frames.len(), 2);
        assert_eq!(ring.frames[0].frame, vec![3; 4]);
        assert_eq!(ring.overwritten, 3);
    }

    #[test]
    fn exactly_one_bit_of_the_payload_is_flipped() {
        let (a, b) = ("10.99.0.1:1".parse().unwrap(), "10.99.0.2:2".parse().unwrap());
        let frame = frame::build_datagram(([2; 6], [4; 6]), a, b, &[0; 32]).unwrap();
        for random in 0..1000 {
            let flipped = flip_one_bit(&frame, random).unwrap();
            let seen = frame::datagram(&flipped).unwrap();
            let ones: u32 = flipped[seen.payload].iter().map(|byte| byte.count_ones()).sum();
            assert_eq!(ones, 1);
        }
    }
}
