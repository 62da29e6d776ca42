//! The forwarder: switch, sessions and paths behind one surface.
//!
//! ```text
//!  commands.rs   tables, keys                     ─┐
//!  switch.rs     frames: learn, unicast, flood     ├─► send.rs: route, fill, cut, seal ─► Sink
//!  receive.rs    datagrams: relay, open, records  ─┤
//!  timers.rs     probes, path MTU, rekey          ─┘
//!  super_frame.rs   super-frames: cut at segments, or made whole frames of
//! ```
//!
//! One thread owns it; nothing in it is shared, and after warm-up nothing is allocated for a
//! frame or a datagram.

mod commands;
mod receive;
mod report;
mod send;
mod super_frame;
mod switch;
mod timers;

use core::cmp::Reverse;
use core::net::SocketAddr;
use core::ops::Range;
use core::time::Duration;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use super::Sink;
use super::cipher::Policy;
use super::circles::Circles;
use super::counters::Counters;
use super::fence::Fence;
use super::fragment::Assembler;
use super::joiner::Joiner;
use super::limits::{EVENTS_MAX, PAYLOAD_BASE};
use super::macs::Macs;
use super::peer::Peer;
use super::stage::{Stage, Stages, Waiting, buffer};
use super::table::Table;
use super::too_big::TooBig;
use super::virtio::VirtioHeader;
use crate::address::canonical;
use crate::handover::{Command, DataEvent};
use crate::id::{Incarnation, PeerId};
use crate::wire::datagram::ShortId;

/// Largest UDP payload over jumbo Ethernet: there is room for it even if the interface has an
/// ordinary MTU at the start.
const PAYLOAD_JUMBO: u16 = 8972;
/// Largest UDP payload that IP can carry, less what a relay adds.
const PAYLOAD_CAP: u16 = 65_000;

/// Longest super-frame, in bytes: what IP can say of its length, behind Ethernet and its tags.
pub const SUPER_FRAME_MAX: usize = 65_535 + 22;

/// What a [`Forwarder`] needs to know for its whole life.
#[derive(Debug, Clone)]
pub struct ForwarderConfig {
    /// Whether the network has a secret. With one, no unsealed user frame is sent or accepted.
    pub sealed: bool,
    /// Most learned MAC addresses.
    pub macs_max: usize,
    /// How long a MAC address stays learned after its last frame.
    pub mac_age: Duration,
    /// Largest UDP payload that the underlay interface could carry, in bytes: the upper end of
    /// the path MTU search. [`Command::PayloadMax`] changes it, up to this or to that of jumbo
    /// Ethernet.
    pub payload_max: u16,
}

/// Everything between the TAP and the UDP socket, for one data thread.
#[derive(Debug)]
pub struct Forwarder {
    policy: Policy,
    payload_max: u16,
    /// What the buffers have room for.
    payload_cap: u16,
    me: PeerId,
    incarnation: Incarnation,
    /// Number of the next flood that begins here.
    sequence: u64,
    /// To whom those go.
    children: Vec<u32>,
    peers: Vec<Peer>,
    /// Places in `peers` that nobody has.
    free: Vec<u32>,
    by_id: Table<ShortId, u32>,
    by_addr: Table<SocketAddr, u32>,
    by_index: Table<u32, u32>,
    macs: Macs,
    /// Of peers in the tables or not.
    fences: BTreeMap<PeerId, Arc<Fence>>,
    stages: Stages,
    waiting: Waiting,
    assembler: Assembler,
    joiner: Joiner,
    /// Where datagrams are made that do not wait for company.
    scratch: Box<[u8]>,
    /// Where single frames are made out of super-frames.
    segment: Box<[u8]>,
    too_big: TooBig,
    circles: Circles,
    timers: BinaryHeap<Reverse<(Duration, u32)>>,
    /// What stands first among the timers may not be due any more.
    put_off: bool,
    events: VecDeque<DataEvent>,
    counters: Counters,
    random: u64,
}

impl Forwarder {
    /// A forwarder without peers. `seed` feeds jitter only.
    #[must_use]
    pub fn new(config: ForwarderConfig, seed: u64, now: Duration) -> Self {
        let payload_max = config.payload_max.clamp(PAYLOAD_BASE, PAYLOAD_CAP);
        let payload_cap = payload_max.max(PAYLOAD_JUMBO);
        let _ = now;
        Self {
            policy: if config.sealed { Policy::Sealed } else { Policy::Open },
            payload_max,
            payload_cap,
            me: PeerId([0; 16]),
            incarnation: Incarnation(0),
            sequence: 0,
            children: Vec::new(),
            peers: Vec::new(),
            free: Vec::new(),
            by_id: Table::new(64, seed),
            by_addr: Table::new(64, seed),
            by_index: Table::new(64, seed),
            macs: Macs::new(config.macs_max, config.mac_age, seed),
            fences: BTreeMap::new(),
            stages: Stages::new(payload_cap.into()),
            waiting: Waiting::default(),
            assembler: Assembler::new(),
            joiner: Joiner::new(),
            scratch: buffer(payload_cap.into()),
            segment: vec![0; SUPER_FRAME_MAX].into(),
            too_big: TooBig::new(seed),
            circles: Circles::new(seed),
            timers: BinaryHeap::with_capacity(256),
            put_off: false,
            events: VecDeque::with_capacity(256),
            counters: Counters::default(),
            random: seed,
        }
    }

    /// Takes a decision of control.
    pub fn handle_command(&mut self, command: Command, now: Duration, sink: &mut impl Sink) {
        match command {
            Command::Tables(tables) => self.set_tables(&tables, now, sink),
            Command::Install(keys) => self.install(&keys, now, sink),
            Command::Remove(peer) => self.remove(peer),
            Command::Probe(peer) => self.probe_now(peer, now, sink),
            Command::Learn(peer, macs) => self.learn_behind(peer, &macs, now),
            Command::PayloadMax(bytes) => self.set_payload_max(bytes, now),
            Command::Fences(fences) => self.set_fences(fences),
        }
    }

    /// A frame from the TAP.
    pub fn handle_frame(&mut self, frame: &[u8], now: Duration, sink: &mut impl Sink) {
        self.switch_local(frame, now, sink);
    }

    /// A frame or super-frame from a TAP that puts a header before it. An open checksum may be
    /// completed in place.
    pub fn handle_super_frame(&mut self, header: &VirtioHeader, frame: &mut [u8], now: Duration, sink: &mut impl Sink) {
        self.switch_super_frame(header, frame, now, sink);
    }

    /// A datagram from the underlay. It is opened in place.
    pub fn handle_datagram(&mut self, from: SocketAddr, bytes: &mut [u8], now: Duration, sink: &mut impl Sink) {
        self.handle_received(from, bytes, 0..bytes.len(), now, sink);
        self.settle(bytes, sink);
    }

    /// One datagram of a batch that was received into `arena`. It is opened in place. What it
    /// carries may be held back to be joined with what the next ones carry: after the last one, or
    /// after those of further batches if [`Self::is_joining`], call [`Self::settle`] with the same
    /// arena, whose other bytes must be left alone until then.
    ///
    /// # Panics
    /// If `at` is not inside of `arena`.
    pub fn handle_received(
        &mut self,
        from: SocketAddr,
        arena: &mut [u8],
        at: Range<usize>,
        now: Duration,
        sink: &mut impl Sink,
    ) {
        self.receive(canonical(from), arena, at, now, sink);
    }

    /// Whether the start of a super-frame is held back whose rest is under way: datagrams that come
    /// soon, into other places of the same arena, may be joined to it before [`Self::settle`].
    #[must_use]
    pub fn is_joining(&self) -> bool {
        self.joiner.is_open()
    }

    /// Hands over what was held back of a batch.
    pub fn settle(&mut self, arena: &[u8], sink: &mut impl Sink) {
        self.joiner.settle(arena, sink);
    }

    /// Makes good what a panic in the middle of a batch may have left behind; the batch is lost.
    pub fn recover(&mut self) {
        self.joiner.clear();
        self.stages.all.iter_mut().for_each(Stage::clear);
        if self.scratch.is_empty() {
            self.scratch = buffer(self.payload_cap.into());
        }
        if self.segment.is_empty() {
            self.segment = vec![0; SUPER_FRAME_MAX].into();
        }
    }

    /// A QUIC datagram for a peer that is reached through relays only.
    pub fn relay_quic(&mut self, to: PeerId, bytes: &[u8], now: Duration, sink: &mut impl Sink) {
        self.send_relayed_quic(to, bytes, now, sink);
    }

    /// The socket refused, for its size, to send a datagram of `size` bytes of payload to `to`
    /// (EMSGSIZE of the send itself, not what an ICMP message says, for those can be forged).
    pub fn note_too_large(&mut self, to: SocketAddr, size: usize, now: Duration) {
        self.refused(canonical(to), size, now);
    }

    /// The batch is over: send what waits for company.
    pub fn flush(&mut self, now: Duration, sink: &mut impl Sink) {
        self.flush_stages(now, sink);
        if core::mem::take(&mut self.put_off) {
            self.settle_timers();
        }
    }

    /// The time that [`Self::poll_timeout`] named has come (earlier or later is harmless).
    pub fn handle_timeout(&mut self, now: Duration, sink: &mut impl Sink) {
        self.run_timers(now, sink);
    }

    /// When to call [`Self::handle_timeout`], and why. Costs a look at the top of a heap.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Duration, &'static str)> {
        let timer = self.next_timer();
        let flush = self.stages.since.map(|at| (at, "unsent records: flush"));
        match (timer, flush) {
            (Some(timer), Some(flush)) => Some(if flush.0 <= timer.0 { flush } else { timer }),
            (timer, flush) => timer.or(flush),
        }
    }

    /// What control should know; drain until `None`.
    pub fn poll_event(&mut self) -> Option<DataEvent> {
        self.events.pop_front()
    }

    /// What was counted so far.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many MAC addresses are known.
    #[must_use]
    pub const fn macs_known(&self) -> usize {
        self.macs.len()
    }

    fn event(&mut self, event: DataEvent) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        } else {
            self.counters.events_lost += 1;
        }
    }

    /// The slot of a peer.
    fn slot(&self, id: PeerId) -> Option<u32> {
        let slot = self.by_id.get(&id.into())?;
        (self.peers[slot as usize].id == id).then_some(slot)
    }

    /// The slot of a peer that is in the tables.
    fn listed(&self, id: PeerId) -> Option<u32> {
        self.slot(id).filter(|&slot| self.peers[slot as usize].listed)
    }

    /// A random number for jitter (SplitMix64).
    const fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.random;
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
