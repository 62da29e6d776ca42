//! One host: a whole peer made of the real machines, its disk, its clock, its containers.
//!
//! ```text
//!  datagram ─► Forwarder ─┬─► Sink::frame ──► Ledger
//!                         ├─► Sink::datagram ─► Net
//!                         └─► Sink::quic ─► Transport ─► Node ─┬─► Command ─► Forwarder
//!                                                              └─► App ─► Allocator
//! ```

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ipam::allocator::{Allocator, PeerKey};
use mesh_proto::control::node::Node;
use mesh_proto::control::{Event as NodeEvent, Output};
use mesh_proto::data::forwarder::Forwarder;
use mesh_proto::data::{Hop, Sink};
use mesh_proto::handover::{Command, Tables};
use mesh_proto::id::{Incarnation, PeerId};

use super::book::Holder;
use super::clock::{Clock, Time};
use super::conn::{Transport, Up};
use super::env::Env;
use super::identity::CheapIdentity;
use super::ledger::Mac;
use super::options::Ablation;
use super::queue::{Event, Index};

/// Rounds of draining after which the machines of a host are said to keep each other busy.
const ROUNDS_MAX: u32 = 10_000;
/// Datagrams that wait for a router that does not run at the moment, as in a socket's buffer.
const BACKLOG: usize = 256;

/// A peer id as the allocator wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(pub(super) PeerId);

impl PeerKey for Key {
    fn to_bytes(self) -> [u8; 16] {
        self.0.0
    }

    fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(PeerId(bytes))
    }
}

/// What outlives the router.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) identity: CheapIdentity,
    pub(super) instance: u64,
    pub(super) incarnation: Incarnation,
    pub(super) addresses: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) trust: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) index: Index,
    pub(super) disk: Disk,
    pub(super) clock: Clock,
    pub(super) macs: Vec<Mac>,
    /// Its router, while it runs.
    pub(super) live: Option<Live>,
    /// Number of the router's present or last life.
    pub(super) life: u32,
    /// Whether the router is stopped (as by a debugger).
    pub(super) paused: bool,
    backlog: VecDeque<(SocketAddr, Vec<u8>)>,
    /// Writes that were done while the router was stopped.
    late: VecDeque<(u64, bool)>,
}

/// A router that runs.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) node: Node<CheapIdentity>,
    pub(super) forwarder: Forwarder,
    pub(super) transport: Transport,
    pub(super) allocator: Option<Allocator<Key>>,
    /// The tables that the forwarder was given last.
    pub(super) tables: Option<Arc<Tables>>,
    /// Writes that are not durable yet, in their order.
    writes: VecDeque<(u64, Vec<ipam::Change>)>,
    written: Time,
    reachable: Vec<(Key, u64)>,
    inbox: VecDeque<(Hop, Vec<u8>)>,
    due: Due,
    wake: Time,
    spins: u32,
    spun: Time,
}

/// When each machine wants to be called, in time of the simulation; and whether that has to be
/// asked again.
#[derive(Debug)]
struct Due {
    at: [Time; 4],
    stale: [bool; 4],
}

const NODE: usize = 0;
const FORWARDER: usize = 1;
const TRANSPORT: usize = 2;
const ALLOCATOR: usize = 3;

/// Takes what a forwarder makes.
struct Wire<'a> {
    host: Index,
    env: &'a mut Env,
    inbox: &'a mut VecDeque<(Hop, Vec<u8>)>,
}

impl Sink for Wire<'_> {
    fn datagram(&mut self, to: SocketAddr, bytes: &[u8]) {
        self.env.send(self.host, to, bytes);
    }

    fn frame(&mut self, bytes: &[u8]) {
        self.env.deliver(self.host, bytes);
    }

    fn quic(&mut self, from: Hop, bytes: &[u8]) {
        self.inbox.push_back((from, bytes.to_vec()));
    }
}

impl Host {
    pub(super) fn new(index: Index, disk: Disk, clock: Clock, macs: Vec<Mac>) -> Self {
        let (backlog, late) = (VecDeque::new(), VecDeque::new());
        Self { index, disk, clock, macs, live: None, life: 0, paused: false, backlog, late }
    }

    /// Starts the router with these machines.
    pub(super) fn start(
        &mut self,
        node: Node<CheapIdentity>,
        forwarder: Forwarder,
        transport: Transport,
        allocator: Option<Allocator<Key>>,
        env: &mut Env,
    ) {
        self.live = Some(Live {
            node,
            forwarder,
            transport,
            allocator,
            tables: None,
            writes: VecDeque::new(),
            written: env.now,
            reachable: Vec::new(),
            inbox: VecDeque::new(),
            due: Due { at: [Time::MAX; 4], stale: [true; 4] },
            wake: Time::MAX,
            spins: 0,
            spun: 0,
        });
        self.settle(env);
    }

    /// Stops the router without a word. Of the writes that were under way, those that the disk
    /// had got to are there.
    pub(super) fn crash(&mut self, env: &mut Env) {
        self.paused = false;
        self.backlog.clear();
        self.late.clear();
        let Some(live) = self.live.take() else { return };
        let done = env.dice.index(live.writes.len() + 1);
        for (_, changes) in live.writes.into_iter().take(done) {
            self.disk.store(changes);
        }
    }

    /// The machines, while they run and are not stopped, and the time on the host's clock.
    fn running(&mut self, env: &Env) -> Option<(&mut Live, Duration)> {
        let now = self.clock.local(env.now);
        self.live.as_mut().filter(|_| !self.paused).map(|live| (live, now))
    }

    /// Something happens to the machines; afterwards they are drained.
    pub(super) fn act(&mut self, env: &mut Env, what: impl FnOnce(&mut Live, Duration)) {
        if let Some((live, now)) = self.running(env) {
            live.due.stale = [true; 4];
            what(live, now);
            self.settle(env);
        }
    }

    /// A datagram comes in.
    pub(super) fn datagram(&mut self, from: SocketAddr, bytes: &mut [u8], env: &mut Env) {
        if self.paused {
            if self.backlog.len() < BACKLOG {
                self.backlog.push_back((from, bytes.to_vec()));
            }
            return;
        }
        let host = self.index;
        let Some((live, now)) = self.running(env) else { return };
        let mut wire = Wire { host, env, inbox: &mut live.inbox };
        live.forwarder.handle_datagram(from, bytes, now, &mut wire);
        live.due.stale[FORWARDER] = true;
        self.settle(env);
    }

    /// Containers send frames, all in one batch.
    pub(super) fn frames(&mut self, frames: &[Vec<u8>], env: &mut Env) {
        let host = self.index;
        let Some((live, now)) = self.running(env) else { return };
        for frame in frames {
            let mut wire = Wire { host, env, inbox: &mut live.inbox };
            live.forwarder.handle_frame(frame, now, &mut wire);
        }
        live.due.stale[FORWARDER] = true;
        self.settle(env);
    }

    /// The router goes on after it was stopped; what came meanwhile is waiting for it.
    pub(super) fn resume(&mut self, env: &mut Env) {
        self.paused = false;
        for (from, mut bytes) in std::mem::take(&mut self.backlog) {
            self.datagram(from, &mut bytes, env);
        }
        for (ticket, fine) in std::mem::take(&mut self.late) {
            self.stored(ticket, fine, env);
        }
        self.act(env, |_, _| {});
    }

    /// The clock changed: what was due at some time is due at another.
    pub(super) fn reckon(&mut self, env: &mut Env) {
        self.act(env, |_, _| {});
    }

    /// A machine had asked to be called now.
    pub(super) fn wake(&mut self, env: &mut Env) {
        let (host, now) = (self.index, self.clock.local(env.now));
        let Some(live) = self.live.as_mut().filter(|live| live.wake == env.now) else { return };
        live.wake = Time::MAX;
        if self.paused {
            return;
        }
        if std::mem::replace(&mut live.spun, env.now) == env.now {
            live.spins += 1;
        } else {
            live.spins = 0;
        }
        if live.spins > 100 {
            let asks = live.asks();
            env.ledger.fail(format!("p{host:02} asks again and again to be called now: {asks:?}"));
            return;
        }
        let due = live.due.at.map(|at| at <= env.now);
        for (machine, _) in due.iter().enumerate().filter(|(_, due)| **due) {
            live.due.stale[machine] = true;
        }
        if due[FORWARDER] {
            let mut wire = Wire { host, env, inbox: &mut live.inbox };
            live.forwarder.handle_timeout(now, &mut wire);
        }
        if due[TRANSPORT] {
            live.transport.handle_timeout(now);
        }
        if due[NODE] {
            live.node.handle_timeout(now);
        }
        if let Some(allocator) = live.allocator.as_mut().filter(|_| due[ALLOCATOR]) {
            allocator.handle_timeout(now);
        }
        self.settle(env);
    }

    /// A write is durable, or has failed.
    pub(super) fn stored(&mut self, ticket: u64, fine: bool, env: &mut Env) {
        if self.paused {
            self.late.push_back((ticket, fine));
            return;
        }
        let Some(live) = &mut self.live else { return };
        while let Some((number, changes)) = live.writes.pop_front() {
            if fine {
                self.disk.store(changes);
            }
            if number == ticket {
                break;
            }
        }
        let result = if fine { Ok(()) } else { Err("No space left on device".to_owned()) };
        self.act(env, |live, now| {
            if let Some(allocator) = &mut live.allocator {
                allocator.handle_stored(ipam::Ticket(ticket), result, now);
            }
        });
    }

    /// The addresses that the router's allocator says its containers have.
    pub(super) fn known(&self, owners: &[String]) -> BTreeMap<IpAddr, String> {
        let allocator = self.live.as_ref().and_then(|live| live.allocator.as_ref());
        let all = allocator.into_iter().flat_map(|allocator| {
            owners.iter().flat_map(|owner| allocator.lookup(owner).into_iter().map(|net| (net.addr(), owner.clone())))
        });
        all.collect()
    }

    /// Drains the machines into each other until all are quiet, then notes when to call them.
    fn settle(&mut self, env: &mut Env) {
        let index = self.index;
        let Some((_, now)) = self.running(env) else { return };
        let Self { live: Some(live), disk, clock, .. } = self else { return };
        for round in 0.. {
            let mut busy = live.drain_data(index, now, env);
            busy |= live.drain_transport(now);
            busy |= live.drain_node((index, self.life), now, disk, env);
            busy |= live.drain_allocator(index, self.life, now, env);
            busy |= live.drain_sent(index, now, env);
            if !busy {
                break;
            }
            if round > ROUNDS_MAX {
                env.ledger.fail(format!("the machines of p{index:02} keep each other busy"));
                break;
            }
        }
        live.schedule(index, clock, env);
    }
}

impl Live {
    fn drain_data(&mut self, host: Index, now: Duration, env: &mut Env) -> bool {
        let mut busy = false;
        if self.due.stale[FORWARDER] {
            let mut wire = Wire { host, env, inbox: &mut self.inbox };
            self.forwarder.flush(now, &mut wire);
            while let Some(event) = self.forwarder.poll_event() {
                env.trace.peer(env.now, host, format_args!("saw {event:?}"));
                self.node.handle_data_event(event, now);
                self.due.stale[NODE] = true;
                busy = true;
            }
        }
        while let Some((from, bytes)) = self.inbox.pop_front() {
            self.transport.handle_datagram(from, &bytes, now);
            self.due.stale[TRANSPORT] = true;
            busy = true;
        }
        busy
    }

    fn drain_transport(&mut self, now: Duration) -> bool {
        let mut busy = false;
        while let Some(up) = self.transport.poll_up() {
            match up {
                Up::Connected(conn, connected) => self.node.handle_connected(conn, connected, now),
                Up::Failed(dial, reason) => self.node.handle_dial_failed(dial, &reason, now),
                Up::Message(conn, bytes) => self.node.handle_message(conn, &bytes, now),
                Up::Gone(conn, reason) => self.node.handle_disconnected(conn, &reason, now),
            }
            self.due.stale[NODE] = true;
            self.due.stale[TRANSPORT] = true;
            busy = true;
        }
        busy
    }

    fn drain_node(&mut self, at: (Index, u32), now: Duration, disk: &mut Disk, env: &mut Env) -> bool {
        let (host, life) = at;
        let mut busy = false;
        while let Some(output) = self.node.poll_output() {
            busy = true;
            match output {
                Output::Dial { dial, hop } => {
                    env.trace.peer(env.now, host, format_args!("dials {hop:?}"));
                    self.transport.dial(dial, hop, now);
                    self.due.stale[TRANSPORT] = true;
                }
                Output::Send { conn, bytes } => {
                    env.messages(bytes.len());
                    self.transport.send(conn, &bytes, now);
                    self.due.stale[TRANSPORT] = true;
                }
                Output::Close { conn, reason } => {
                    env.trace.peer(env.now, host, format_args!("closes: {reason}"));
                    self.transport.close(conn, &reason, now);
                    self.due.stale[TRANSPORT] = true;
                }
                Output::Resolve { target } => env.resolve(host, life, &target),
                Output::Data(command) => self.command(host, command, now, env),
                Output::App { from, incarnation, payload } => {
                    if let Some(allocator) = &mut self.allocator {
                        allocator.handle_message(Key(from), incarnation.0, &payload, now);
                        self.due.stale[ALLOCATOR] = true;
                    }
                }
                Output::Keep { key, value: Some(value) } => _ = disk.trust.insert(key, value),
                Output::Keep { key, value: None } => _ = disk.trust.remove(&key),
                Output::Event(event) => {
                    env.trace.peer(env.now, host, format_args!("{event:?}"));
                    match event {
                        NodeEvent::IncarnationRaised { to } => disk.incarnation = to,
                        NodeEvent::LinkUp { .. } | NodeEvent::LinkDown { .. } => env.link_changes += 1,
                        _ => {}
                    }
                }
            }
        }
        busy
    }

    fn command(&mut self, host: Index, command: Command, now: Duration, env: &mut Env) {
        let command = match command {
            Command::Tables(tables) => {
                if env.stale == Some(host) {
                    return;
                }
                env.tables += 1;
                let (peers, trees) = (tables.peers.len(), tables.trees.len());
                env.trace.peer(env.now, host, format_args!("has new tables: {peers} peers, {trees} trees"));
                let tables = match env.ablation {
                    Some(Ablation::Flood) => Arc::new(flooding(&tables)),
                    _ => tables,
                };
                let same = self.tables.as_ref().is_some_and(|old| old.trees == tables.trees);
                env.tree_changes += u64::from(!same);
                let same = self.tables.as_ref().is_some_and(|old| old.peers == tables.peers);
                env.way_changes += u64::from(!same);
                self.tell_allocator(&tables, now);
                self.tables = Some(Arc::clone(&tables));
                Command::Tables(tables)
            }
            other => {
                if let Command::Install(keys) = &other {
                    let ends = (keys.peer.short(), keys.local_index, keys.remote_index, keys.initiator);
                    env.trace.peer(env.now, host, format_args!("installs keys {ends:08x?}"));
                }
                other
            }
        };
        let mut wire = Wire { host, env, inbox: &mut self.inbox };
        self.forwarder.handle_command(command, now, &mut wire);
        self.due.stale[FORWARDER] = true;
    }

    fn tell_allocator(&mut self, tables: &Tables, now: Duration) {
        let Some(allocator) = &mut self.allocator else { return };
        let reachable: Vec<(Key, u64)> = (tables.peers.iter())
            .filter(|(_, path)| path.direct.is_some() || !path.relays.is_empty())
            .map(|(id, path)| (Key(*id), path.incarnation.0))
            .collect();
        if reachable != self.reachable {
            allocator.handle_peers(&reachable, now);
            self.reachable = reachable;
            self.due.stale[ALLOCATOR] = true;
        }
    }

    fn drain_allocator(&mut self, host: Index, life: u32, now: Duration, env: &mut Env) -> bool {
        let Some(allocator) = &mut self.allocator else { return false };
        let mut busy = false;
        while let Some(output) = allocator.poll_output() {
            busy = true;
            match output {
                ipam::Output::Store { ticket, changes } => {
                    self.writes.push_back((ticket.0, changes));
                    self.written = env.store(host, life, ticket.0, self.written);
                }
                ipam::Output::Send { to, bytes } => {
                    self.node.send_app(to.0, bytes, now);
                    self.due.stale[NODE] = true;
                }
                ipam::Output::Broadcast { bytes } => {
                    self.node.broadcast_app(bytes, now);
                    self.due.stale[NODE] = true;
                }
                ipam::Output::Reply { request, result } => env.answer(host, request, result),
                // No peer is removed from the simulated meshes.
                ipam::Output::Fences(_) => {}
                ipam::Output::Notice(text) => {
                    env.trace.peer(env.now, host, format_args!("addresses: {text}"));
                }
            }
        }
        busy
    }

    fn drain_sent(&mut self, host: Index, now: Duration, env: &mut Env) -> bool {
        let mut busy = false;
        while let Some((hop, bytes)) = self.transport.poll_out() {
            match hop {
                Hop::Direct(to) => env.send(host, to, &bytes),
                Hop::Relayed(to) => {
                    let mut wire = Wire { host, env, inbox: &mut self.inbox };
                    self.forwarder.relay_quic(to, &bytes, now, &mut wire);
                    self.due.stale[FORWARDER] = true;
                    busy = true;
                }
            }
        }
        busy
    }

    fn asks(&self) -> [Option<(Duration, &'static str)>; 4] {
        [
            self.node.poll_timeout(),
            self.forwarder.poll_timeout(),
            self.transport.poll_timeout().map(|at| (at, "transport")),
            self.allocator.as_ref().and_then(Allocator::poll_timeout),
        ]
    }

    fn schedule(&mut self, host: Index, clock: &Clock, env: &mut Env) {
        for machine in 0..4 {
            if !std::mem::take(&mut self.due.stale[machine]) {
                continue;
            }
            let asked = match machine {
                NODE => self.node.poll_timeout().map(|(at, _)| at),
                FORWARDER => self.forwarder.poll_timeout().map(|(at, _)| at),
                TRANSPORT => self.transport.poll_timeout(),
                _ => self.allocator.as_ref().and_then(Allocator::poll_timeout).map(|(at, _)| at),
            };
            self.due.at[machine] = asked.map_or(Time::MAX, |at| clock.reaches(at, env.now));
        }
        // What was due while the router was stopped is due now.
        let next = self.due.at.into_iter().min().unwrap_or(Time::MAX).max(env.now);
        if next < self.wake {
            self.wake = next;
            env.queue.push(next, Event::Wake(host));
        }
    }
}

impl Disk {
    fn store(&mut self, changes: Vec<ipam::Change>) {
        for change in changes {
            match change.value {
                Some(value) => self.addresses.insert(change.key, value),
                None => self.addresses.remove(&change.key),
            };
        }
    }
}

/// The tables of a router that does not know of trees.
fn flooding(tables: &Tables) -> Tables {
    let neighbours: Vec<PeerId> =
        (tables.peers.iter()).filter(|(_, path)| path.direct.is_some()).map(|(id, _)| *id).collect();
    let mut flooding = tables.clone();
    flooding.trees.values_mut().for_each(|next| next.clone_from(&neighbours));
    flooding
}

/// The containers of a host, as the allocator knows them.
pub(super) fn holder(host: Index, container: usize) -> Holder {
    Holder { host, owner: format!("container-{host}-{container}") }
}
