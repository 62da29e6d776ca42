//! A world of allocators in virtual time: one queue of events, one seeded source of chance.
//!
//! ```text
//!  allocator ─ Send ──► queue: lost, late, twice, out of order, cut by a partition ──► allocator
//!            ─ Store ─► queue: durable later, failed, or cut off by a crash before or after
//!            ─ Reply ─► checker: nobody else has the address
//! ```

#![allow(dead_code, reason = "each test program uses its own part of the world")]

pub(crate) mod check;
pub(crate) mod subject;
mod weave;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use ipam::allocator::{Ablation, Allocator, Birth, Config, PeerKey};
use ipam::{AllocError, Output, RequestId, Ticket};
use ipnet::IpNet;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use check::Checker;
use subject::{Kind, Subject};

/// A peer, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Peer(pub(crate) u8);

impl PeerKey for Peer {
    fn to_bytes(self) -> [u8; 16] {
        [self.0; 16]
    }
    fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes[0])
    }
}

/// Durable state of a node.
pub(crate) type Disk = BTreeMap<Vec<u8>, Vec<u8>>;

/// Chances of faults, in per mille, and delays.
#[derive(Debug, Clone)]
pub(crate) struct Faults {
    pub(crate) loss: u64,
    pub(crate) duplication: u64,
    /// Most milliseconds that a message takes.
    pub(crate) delay: u64,
    /// Most milliseconds that a write takes.
    pub(crate) write: u64,
    /// A write fails.
    pub(crate) write_error: u64,
    /// A write crashes the node, before or after it is durable.
    pub(crate) write_crash: u64,
}

impl Faults {
    /// A quick network and quick disks without faults.
    pub(crate) fn none() -> Self {
        Self { loss: 0, duplication: 0, delay: 5, write: 3, write_error: 0, write_crash: 0 }
    }
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) peer: Peer,
    pub(crate) named: usize,
    /// It takes no part in founding.
    pub(crate) observer: bool,
    pub(crate) life: u64,
    /// Number of the process, which goes on when its life number is raised.
    pub(crate) process: u64,
    pub(crate) disk: Disk,
    /// Old copies of the disk.
    pub(crate) copies: Vec<Disk>,
    /// Until when its host sleeps: what happens meanwhile comes after that.
    asleep_until: Duration,
    /// How far this node's clock is ahead; another amount after each start.
    pub(crate) ahead: Duration,
    /// Removed, and dead or not aware of it yet; what it does until then does not count.
    pub(crate) removed_life: Option<u64>,
    /// It removes silent nodes after another time than the others.
    pub(crate) dead_after: Option<Option<Duration>>,
    /// Its present life as an owner, or the last one if it is down.
    last_life: u64,
    /// It will not come back by itself.
    pub(crate) dead: bool,
    pub(crate) allocator: Option<Subject>,
    /// When its allocator wants to be called, in the time of the world.
    pub(crate) timer: Option<Duration>,
    pub(crate) notices: Vec<String>,
    /// What it was told of the last time.
    pub(crate) fences: Vec<(Peer, Vec<(IpAddr, IpAddr)>)>,
    /// When its last write ends.
    last_write: Duration,
    pub(crate) messages_sent: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) writes: u64,
}

#[derive(Debug)]
enum Event {
    Message { from: Peer, from_life: u64, to: Peer, bytes: Rc<[u8]> },
    Written { node: usize, process: u64, ticket: Ticket, changes: Vec<ipam::Change>, fate: Fate },
    Peers { node: usize },
    Start { node: usize },
    Awake,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Durable,
    Error,
    CrashBefore,
    CrashAfter,
}

/// All nodes, the network between them, and what is to happen.
pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) nodes: Vec<Node>,
    pub(crate) ranges: Vec<IpNet>,
    pub(crate) faults: Faults,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) check: Checker,
    /// Nodes of different groups do not hear each other.
    pub(crate) groups: Vec<u8>,
    /// The last answer of each request, for tests that wait for one.
    pub(crate) replies: BTreeMap<RequestId, Result<IpNet, AllocError>>,
    pub(crate) trace: u64,
    /// Clocks differ, and begin anywhere.
    pub(crate) clock_jumps: bool,
    /// What its nodes run.
    pub(crate) kind: Kind,
    /// The write, counted over all nodes, that ends its node, and whether it is durable before.
    pub(crate) crash_at: Option<(u64, bool)>,
    /// Who founds the network, if that was said.
    pub(crate) seeds: Option<Vec<Peer>>,
    /// After how long a silence nodes are removed.
    pub(crate) dead_after: Option<Duration>,
    /// Rules that are broken in this world.
    pub(crate) ablation: Ablation,
    /// Some of the messages that were sent.
    pub(crate) sample: Vec<Rc<[u8]>>,
    queue: BTreeMap<(Duration, u64), Event>,
    sequence: u64,
    next_request: u64,
    /// Lives that some node knows to be removed.
    removed: BTreeSet<(Peer, u64)>,
    /// Writes of all nodes.
    writes: u64,
    /// What each node knew of the blocks when [`Self::check_blocks`] looked last.
    checked: Vec<Option<(u64, u64)>>,
    /// What happens is printed.
    told: bool,
}

impl World {
    /// Nodes that name so many peers each, all down.
    pub(crate) fn new(seed: u64, named: &[usize], ranges: &[&str]) -> Self {
        let nodes = named
            .iter()
            .enumerate()
            .map(|(index, &named)| Node {
                peer: Peer(index as u8 + 1),
                named,
                observer: false,
                life: 0,
                process: 0,
                disk: Disk::new(),
                copies: Vec::new(),
                asleep_until: Duration::ZERO,
                ahead: Duration::ZERO,
                removed_life: None,
                dead_after: None,
                last_life: 0,
                dead: false,
                allocator: None,
                timer: None,
                notices: Vec::new(),
                fences: Vec::new(),
                last_write: Duration::ZERO,
                messages_sent: 0,
                bytes_sent: 0,
                writes: 0,
            })
            .collect();
        Self {
            now: Duration::from_secs(1),
            nodes,
            ranges: ranges.iter().map(|text| text.parse().expect("a range")).collect(),
            faults: Faults::none(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            check: Checker::default(),
            groups: vec![0; named.len()],
            replies: BTreeMap::new(),
            trace: 0xcbf2_9ce4_8422_2325,
            clock_jumps: false,
            kind: Kind::Allocator,
            crash_at: None,
            seeds: None,
            dead_after: None,
            ablation: Ablation::default(),
            sample: Vec::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            next_request: 1,
            removed: BTreeSet::new(),
            writes: 0,
            checked: Vec::new(),
            told: std::env::var_os("WEFT_IPAM_DEBUG").is_some(),
        }
    }

    pub(crate) fn below(&mut self, most: u64) -> u64 {
        self.rng.next_u64() % most.max(1)
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.below(1000) < per_mille
    }

    fn millis(&mut self, most: u64) -> Duration {
        Duration::from_micros(self.below(most * 1000 + 1))
    }

    fn note(&mut self, bytes: &[u8]) {
        let mut mix = |word: u64| self.trace = (self.trace ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| mix(u64::from_le_bytes(*word)));
        rest.iter().for_each(|&byte| mix(u64::from(byte)));
    }

    /// Prints what happens, for whoever looks for the reason of a violation.
    #[expect(clippy::print_stdout, reason = "asked for by a variable")]
    fn tell(&self, what: impl FnOnce() -> String) {
        if self.told {
            println!("{:?} {}", self.now, what());
        }
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), event);
    }

    /// Starts a node that is down, with its disk.
    pub(crate) fn start(&mut self, node: usize) {
        if self.nodes[node].allocator.is_some() || self.nodes[node].dead {
            return;
        }
        if self.clock_jumps {
            self.nodes[node].ahead = Duration::from_secs(self.below(1_000_000));
        }
        let now = self.now + self.nodes[node].ahead;
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let it = &mut self.nodes[node];
        it.life += 1;
        it.process += 1;
        let birth = match &self.seeds {
            Some(seeds) => Birth::Seeds(seeds.clone()),
            None if it.observer => Birth::Observer,
            None => Birth::ByItself,
        };
        let config = Config {
            birth,
            dead_after: it.dead_after.unwrap_or(self.dead_after),
            ..Config::new(it.peer, it.life, self.ranges.clone(), it.named)
        };
        let subject = Subject::new(self.kind, config, it.disk.clone(), seed, now, self.ablation);
        self.tell(|| format!("{node} starts as {:x}", subject.life()));
        self.nodes[node].allocator = Some(subject);
        self.drain(node);
        self.audit(node);
        self.peers_changed();
    }

    pub(crate) fn start_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.start(node);
        }
    }

    /// What a router does after a start: addresses that nobody has any more are freed.
    fn audit(&mut self, node: usize) {
        let it = &self.nodes[node];
        let Some(allocator) = &it.allocator else {
            return;
        };
        let listed: Vec<(String, IpNet)> =
            allocator.summary().allocations.into_iter().map(|(owner, net, _)| (owner, net)).collect();
        let peer = it.peer;
        for (owner, net) in self.check.after_start(peer, &listed) {
            self.free(node, &owner, Some(net.addr()));
        }
        let in_use: Vec<(String, IpAddr)> =
            self.check.held_by(peer).into_iter().map(|(address, owner)| (owner, address)).collect();
        let now = self.clock(node);
        if let Some(allocator) = &mut self.nodes[node].allocator {
            allocator.survey(&in_use, now);
        }
        self.drain(node);
    }

    /// The time as a node has it.
    fn clock(&self, node: usize) -> Duration {
        self.now + self.nodes[node].ahead
    }

    /// A node's clock goes forward at once.
    pub(crate) fn jump(&mut self, node: usize, by: Duration) {
        self.nodes[node].ahead += by;
        let now = self.clock(node);
        if let Some(allocator) = &mut self.nodes[node].allocator {
            allocator.handle_timeout(now);
            self.drain(node);
        }
    }

    /// A node's host sleeps: nothing happens there, while its clock goes on; then it all happens at once.
    pub(crate) fn sleep(&mut self, node: usize, time: Duration) {
        if self.nodes[node].allocator.is_none() {
            return;
        }
        self.tell(|| format!("{node} sleeps for {time:?}"));
        let until = self.now + time;
        self.nodes[node].asleep_until = until;
        self.check.slept(self.nodes[node].peer, time);
        self.peers_changed();
        self.schedule(until, Event::Awake);
    }

    fn is_asleep(&self, node: usize) -> bool {
        self.now < self.nodes[node].asleep_until
    }

    /// Keeps a copy of a node's disk, once it knows of other owners: of one that never was anything
    /// but alone, nothing can tell an old copy from the newest state (docs/ipam.md, section 8).
    pub(crate) fn copy(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        let others = match &it.allocator {
            Some(Subject::Allocator(allocator)) => allocator.summary().peers.len() > 1,
            _ => true,
        };
        if it.copies.len() < 4 && others {
            it.copies.push(it.disk.clone());
        }
    }

    /// Ends a node, puts an old copy of its disk back; its containers run on.
    pub(crate) fn roll_back(&mut self, node: usize, back_after: Duration) -> bool {
        let count = self.nodes[node].copies.len() as u64;
        if count == 0 || self.nodes[node].allocator.is_none() {
            return false;
        }
        let at = self.below(count) as usize;
        self.crash(node, back_after);
        self.tell(|| format!("{node} gets copy {at} of its disk"));
        let it = &mut self.nodes[node];
        it.disk = it.copies[at].clone();
        self.check.lost_state(it.peer);
        true
    }

    /// A host and its containers are gone for good.
    pub(crate) fn die(&mut self, node: usize) {
        self.crash(node, Duration::ZERO);
        self.tell(|| format!("{node} is dead"));
        self.nodes[node].dead = true;
        self.check.died(self.nodes[node].peer);
    }

    /// A host that was taken for dead comes back, with its old disk or an empty one.
    pub(crate) fn rise(&mut self, node: usize, with_disk: bool) {
        if !with_disk {
            self.nodes[node].disk.clear();
            self.nodes[node].named = self.nodes[node].named.max(1);
        }
        self.tell(|| format!("{node} rises, with its disk: {with_disk}"));
        self.nodes[node].dead = false;
        self.check.lost_state(self.nodes[node].peer);
        self.start(node);
    }

    /// One node is told that another is gone; once more if it has to ask the others first.
    pub(crate) fn remove(&mut self, node: usize, gone: usize) {
        if !self.try_remove(node, gone) {
            self.run_for(Duration::from_secs(1));
            self.try_remove(node, gone);
        }
    }

    fn try_remove(&mut self, node: usize, gone: usize) -> bool {
        let (now, peer) = (self.clock(node), self.nodes[gone].peer);
        let Some(allocator) = &mut self.nodes[node].allocator else {
            return true;
        };
        let result = allocator.remove_peer(peer, now);
        let removed = result.is_ok();
        self.tell(|| format!("{node} removes {gone}: {result:?}"));
        if removed {
            let life = self.nodes[gone].allocator.as_ref().map(Subject::life);
            self.nodes[gone].removed_life = life;
            self.check.fence(peer);
        }
        self.drain(node);
        removed
    }

    /// Ends the fence of nodes that have begun another life.
    pub(crate) fn lift_fences(&mut self) {
        for node in &mut self.nodes {
            let life = node.allocator.as_ref().map(Subject::life);
            if life.is_some() && node.removed_life != life {
                node.removed_life = None;
                self.check.unfence(node.peer);
            }
        }
    }

    /// Ends a node at once; its disk stays, and it comes back after a while.
    pub(crate) fn crash(&mut self, node: usize, back_after: Duration) {
        if self.nodes[node].allocator.take().is_none() {
            return;
        }
        self.tell(|| format!("{node} ends for {back_after:?}"));
        let peer = self.nodes[node].peer;
        self.check.crashed(peer);
        self.nodes[node].timer = None;
        self.peers_changed();
        let at = self.now + back_after;
        self.schedule(at, Event::Start { node });
    }

    /// Raises the life number of a running node.
    pub(crate) fn raise(&mut self, node: usize) {
        let now = self.clock(node);
        let it = &mut self.nodes[node];
        if let Some(allocator) = &mut it.allocator {
            it.life += 1;
            allocator.raise_incarnation(it.life, now);
            self.drain(node);
            self.peers_changed();
        }
    }

    /// Ends a node and removes its disk.
    pub(crate) fn wipe(&mut self, node: usize, back_after: Duration) {
        self.crash(node, back_after);
        self.tell(|| format!("{node} loses its disk"));
        self.nodes[node].disk.clear();
        // Whoever sets a host up anew beside others names one of them.
        self.nodes[node].named = self.nodes[node].named.max(1);
        let peer = self.nodes[node].peer;
        self.check.lost_state(peer);
    }

    /// Cuts the network into groups.
    pub(crate) fn partition(&mut self, groups: Vec<u8>) {
        self.tell(|| format!("groups {groups:?}"));
        self.groups = groups;
        self.peers_changed();
    }

    fn peers_changed(&mut self) {
        for node in 0..self.nodes.len() {
            let late = self.millis(800);
            let at = self.now + late;
            self.schedule(at, Event::Peers { node });
        }
    }

    fn tell_peers(&mut self, node: usize) {
        let group = self.groups[node];
        let peers: Vec<(Peer, u64)> = (0..self.nodes.len())
            .filter(|&other| other != node && self.groups[other] == group)
            .filter(|&other| self.nodes[other].allocator.is_some() && !self.is_asleep(other))
            .map(|other| (self.nodes[other].peer, self.nodes[other].life))
            .collect();
        let now = self.clock(node);
        if let Some(allocator) = &mut self.nodes[node].allocator {
            allocator.handle_peers(&peers, now);
            self.drain(node);
        }
    }

    /// Asks for an address; `None` if the node is down.
    pub(crate) fn allocate(&mut self, node: usize, owner: &str, range: IpNet) -> Option<RequestId> {
        let request = self.request();
        let (now, peer) = (self.clock(node), self.nodes[node].peer);
        let allocator = self.nodes[node].allocator.as_mut()?;
        self.check.asked(request, peer, owner, self.now);
        allocator.allocate(request, owner, range, now);
        self.drain(node);
        Some(request)
    }

    /// Asks for a given address; `None` if the node is down.
    pub(crate) fn claim(&mut self, node: usize, owner: &str, address: IpAddr) -> Option<RequestId> {
        let request = self.request();
        let (now, peer) = (self.clock(node), self.nodes[node].peer);
        let allocator = self.nodes[node].allocator.as_mut()?;
        self.check.asked(request, peer, owner, self.now);
        allocator.claim(request, owner, address, now);
        self.drain(node);
        Some(request)
    }

    fn request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    /// Gives addresses back.
    pub(crate) fn free(&mut self, node: usize, owner: &str, address: Option<IpAddr>) {
        let (now, peer) = (self.clock(node), self.nodes[node].peer);
        if let Some(allocator) = &mut self.nodes[node].allocator {
            let freed = allocator.free(owner, address, now);
            self.check.freed(peer, owner, &freed);
            self.tell(|| format!("{node} frees {freed:?} of {owner}"));
            self.drain(node);
        }
    }

    /// Gives up on a request.
    pub(crate) fn cancel(&mut self, node: usize, request: RequestId) {
        if let Some(allocator) = &mut self.nodes[node].allocator {
            allocator.cancel(request);
            self.check.cancelled(request);
            self.drain(node);
        }
    }

    /// Performs what a node wants done.
    pub(crate) fn drain(&mut self, node: usize) {
        loop {
            let Some(allocator) = &mut self.nodes[node].allocator else {
                return;
            };
            let Some(output) = allocator.poll_output() else {
                break;
            };
            self.perform(node, output);
        }
        self.arm(node);
        self.look_for_removed(node);
    }

    /// Keeps up with the lives of nodes, and with whom nodes removed by themselves for silence.
    fn look_for_removed(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        let Some(Subject::Allocator(allocator)) = &it.allocator else {
            return;
        };
        it.last_life = allocator.life();
        if it.removed_life.is_some_and(|life| life != it.last_life) {
            it.removed_life = None;
            self.check.unfence(it.peer);
        }
        let news: Vec<(Peer, u64)> = allocator.removed().filter(|owner| !self.removed.contains(owner)).collect();
        for (peer, life) in news {
            self.removed.insert((peer, life));
            let it = &mut self.nodes[usize::from(peer.0) - 1];
            if it.removed_life.is_some() || it.dead {
                continue;
            }
            self.check.fence(peer);
            if it.last_life == life {
                it.removed_life = Some(life);
                if self.dead_after.is_some() {
                    self.check.silenced(peer);
                }
            } else {
                // It goes on in a later life, without what the earlier one owned.
                self.check.unfence(peer);
            }
        }
    }

    fn arm(&mut self, node: usize) {
        let now = self.now;
        let it = &mut self.nodes[node];
        let at = it.allocator.as_ref().and_then(Subject::poll_timeout);
        it.timer = at.map(|at| at.saturating_sub(it.ahead).max(now));
    }

    fn perform(&mut self, node: usize, output: Output<Peer>) {
        match output {
            Output::Send { to, bytes } => self.post(node, to, &bytes.into()),
            Output::Broadcast { bytes } => {
                let bytes = bytes.into();
                for other in 0..self.nodes.len() {
                    if other != node {
                        let to = self.nodes[other].peer;
                        self.post(node, to, &bytes);
                    }
                }
            }
            Output::Store { ticket, changes } => self.write(node, ticket, changes),
            Output::Reply { request, result } => {
                self.note(format!("{:?} {request:?} {result:?}", self.now).as_bytes());
                self.tell(|| format!("{node} answers {} {result:?}", self.check.asker(request)));
                self.check.answered(request, &result, self.now);
                self.replies.insert(request, result);
            }
            Output::Fences(fences) => self.nodes[node].fences = fences,
            Output::Notice(text) => {
                self.note(text.as_bytes());
                self.tell(|| format!("{node} says {text}"));
                self.nodes[node].notices.push(text);
            }
        }
    }

    fn post(&mut self, node: usize, to: Peer, bytes: &Rc<[u8]>) {
        assert!(bytes.len() <= 512 * 1024, "a message of {} bytes", bytes.len());
        self.note(bytes);
        if self.sample.len() < 300 {
            self.sample.push(Rc::clone(bytes));
        }
        let it = &mut self.nodes[node];
        it.messages_sent += 1;
        it.bytes_sent += bytes.len() as u64;
        let (from, from_life) = (it.peer, it.life);
        let copies = 1 + u32::from(self.chance(self.faults.duplication));
        for _ in 0..copies {
            if self.chance(self.faults.loss) {
                continue;
            }
            let at = self.now + Duration::from_micros(50) + self.millis(self.faults.delay);
            self.schedule(at, Event::Message { from, from_life, to, bytes: Rc::clone(bytes) });
        }
    }

    fn write(&mut self, node: usize, ticket: Ticket, changes: Vec<ipam::Change>) {
        let number = self.writes;
        self.writes += 1;
        self.nodes[node].writes += 1;
        let fate = if let Some((_, durable)) = self.crash_at.filter(|&(at, _)| at == number) {
            if durable { Fate::CrashAfter } else { Fate::CrashBefore }
        } else if self.chance(self.faults.write_error) {
            Fate::Error
        } else if self.chance(self.faults.write_crash) {
            [Fate::CrashBefore, Fate::CrashAfter][self.below(2) as usize]
        } else {
            Fate::Durable
        };
        let at = self.now + Duration::from_micros(50) + self.millis(self.faults.write);
        // A disk keeps the order of what it is given.
        let at = at.max(self.nodes[node].last_write);
        self.nodes[node].last_write = at;
        let process = self.nodes[node].process;
        let event = Event::Written { node, process, ticket, changes, fate };
        self.schedule(at, event);
    }

    /// Lets the next event happen, or the next timer go off; false if it would be after `until`.
    pub(crate) fn step(&mut self, until: Duration) -> bool {
        let event = self.queue.first_key_value().map(|(&(at, _), _)| at);
        let timers = self.nodes.iter().enumerate().filter_map(|(node, it)| Some((it.timer?, node)));
        let timer = timers.min().filter(|&(at, _)| event.is_none_or(|event| at < event));
        let next = timer.map(|(at, _)| at).or(event);
        if next.is_none_or(|at| at > until) {
            self.now = until;
            return false;
        }
        if let Some((at, node)) = timer {
            self.now = at;
            self.go_off(node);
        } else if let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            self.happen(event);
        }
        true
    }

    /// A node's timer.
    fn go_off(&mut self, node: usize) {
        if self.is_asleep(node) {
            self.nodes[node].timer = Some(self.nodes[node].asleep_until);
            return;
        }
        let now = self.clock(node);
        self.nodes[node].timer = None;
        if let Some(allocator) = &mut self.nodes[node].allocator {
            allocator.handle_timeout(now);
            self.drain(node);
        }
    }

    /// Lets time pass.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
    }

    fn happen(&mut self, event: Event) {
        let at = match &event {
            Event::Message { to, .. } => usize::from(to.0) - 1,
            Event::Written { node, .. } | Event::Peers { node } => *node,
            Event::Start { .. } | Event::Awake => usize::MAX,
        };
        if let Some(until) = self.nodes.get(at).map(|it| it.asleep_until).filter(|&until| self.now < until) {
            return self.schedule(until, event);
        }
        match event {
            Event::Message { from, from_life, to, bytes } => {
                let (source, node) = (usize::from(from.0) - 1, usize::from(to.0) - 1);
                let now = self.now + self.nodes.get(node).map_or(Duration::ZERO, |it| it.ahead);
                if node < self.nodes.len()
                    && self.groups[source] == self.groups[node]
                    && let Some(allocator) = &mut self.nodes[node].allocator
                {
                    allocator.handle_message(from, from_life, &bytes, now);
                    self.drain(node);
                }
            }
            Event::Written { node, process, ticket, changes, fate }
                if self.nodes[node].process == process && self.nodes[node].allocator.is_some() =>
            {
                self.written(node, ticket, changes, fate);
            }
            Event::Written { .. } => {}
            Event::Peers { node } => self.tell_peers(node),
            Event::Start { node } => self.start(node),
            Event::Awake => self.peers_changed(),
        }
    }

    fn written(&mut self, node: usize, ticket: Ticket, changes: Vec<ipam::Change>, fate: Fate) {
        if matches!(fate, Fate::Durable | Fate::CrashAfter) {
            for change in changes {
                match change.value {
                    Some(value) => self.nodes[node].disk.insert(change.key, value),
                    None => self.nodes[node].disk.remove(&change.key),
                };
            }
        }
        match fate {
            Fate::CrashBefore | Fate::CrashAfter => {
                let pause = self.millis(3000);
                self.crash(node, pause);
            }
            Fate::Durable | Fate::Error => {
                let result = match fate {
                    Fate::Error => Err("no space left on device".to_owned()),
                    _ => Ok(()),
                };
                let now = self.clock(node);
                if let Some(allocator) = &mut self.nodes[node].allocator {
                    allocator.handle_stored(ticket, result, now);
                    self.drain(node);
                }
            }
        }
    }

    /// Ends all faults, brings everyone back.
    pub(crate) fn heal(&mut self) {
        self.faults = Faults::none();
        self.clock_jumps = false;
        self.crash_at = None;
        self.groups = vec![0; self.nodes.len()];
        for node in 0..self.nodes.len() {
            self.start(node);
        }
        self.peers_changed();
    }

    /// Waits for the answer to a request.
    pub(crate) fn answer(&mut self, request: Option<RequestId>) -> Result<IpNet, AllocError> {
        let request = request.expect("the node is up");
        let until = self.now + Duration::from_secs(12);
        while !self.replies.contains_key(&request) {
            assert!(self.step(until), "a request was not answered in 12 s");
        }
        self.replies[&request].clone()
    }

    /// No block is held by two nodes of one network.
    pub(crate) fn check_blocks(&mut self) {
        // What nobody has learned anything about since the last look holds as it did.
        let known = self.nodes.iter().map(|node| {
            let allocator = node.allocator.as_ref().filter(|_| node.removed_life.is_none())?;
            Some((node.process, allocator.changes()))
        });
        let known = known.collect();
        if self.checked == known {
            return;
        }
        self.checked = known;
        let mut held: BTreeMap<Option<String>, Vec<(IpAddr, IpAddr, Peer)>> = BTreeMap::new();
        for node in &self.nodes {
            if let Some(allocator) = node.allocator.as_ref().filter(|_| node.removed_life.is_none()) {
                let list = held.entry(allocator.network()).or_default();
                let blocks = allocator.held().into_iter();
                list.extend(blocks.map(|(first, last)| (first, last, node.peer)));
            }
        }
        for mut list in held.into_values() {
            list.sort_unstable();
            for pair in list.windows(2) {
                if pair[0].1 >= pair[1].0 && pair[0].0.is_ipv4() == pair[1].0.is_ipv4() {
                    self.check.violation(format!("two holders: {pair:?}"));
                }
            }
        }
    }

    /// Whether all nodes are up and in one network, and would be after a crash.
    pub(crate) fn is_one_network(&self) -> bool {
        let durable = |allocator: &Subject| match allocator.readiness() {
            Ok(()) => true,
            Err(waits) => !waits.contains("written"),
        };
        let up = self.nodes.iter().all(|node| node.allocator.as_ref().is_some_and(durable));
        let networks = self.networks();
        up && networks.len() == 1 && !networks.contains(&None)
    }

    /// The allocator of a node that is up.
    pub(crate) fn up(&mut self, node: usize) -> &mut Allocator<Peer> {
        match self.nodes[node].allocator.as_mut() {
            Some(Subject::Allocator(allocator)) => allocator,
            other => panic!("no allocator is up there, but {other:?}"),
        }
    }

    /// The networks that the nodes which are up belong to.
    pub(crate) fn networks(&self) -> BTreeSet<Option<String>> {
        let up = self.nodes.iter().filter_map(|node| node.allocator.as_ref());
        up.map(|allocator| allocator.network()).collect()
    }
}

/// Requests under way, oldest first.
pub(crate) type Asked = VecDeque<(usize, RequestId)>;
