//! A world of allocators in virtual time: one queue of events, one seeded source of chance.
//!
//! ```text
//!  allocator ─ Send ──► queue: lost, late, twice, out of order, cut by a partition ──► allocator
//!            ─ Store ─► queue: durable later, failed, or cut off by a crash before or after
//!            ─ Reply ─► checker: nobody else has the address
//! ```

#![allow(dead_code, reason = "each test program uses its own part of the world")]

mod asks;
pub(crate) mod check;
mod life;
pub(crate) mod subject;
mod wants;
mod weave;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use ipam::allocator::{Ablation, Allocator, PeerKey};
use ipam::{AllocError, RequestId, Ticket};
use ipnet::IpNet;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use check::Checker;
use subject::{Kind, Subject};

pub(crate) fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

/// Nothing was given twice so far, and nothing lost.
pub(crate) fn fine(world: &World) {
    assert_eq!(world.check.violations, Vec::<String>::new());
}

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
    /// Nodes that it was told are gone, and when, unless they were in reach afterwards.
    pub(crate) told_gone: BTreeMap<usize, Duration>,
    /// Version of the panel that one made who was told that this node is gone, until it knows of it.
    pub(crate) overruled_by: Option<u64>,
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
    /// The network that it was in when it was up last.
    pub(crate) network: Option<String>,
    /// What it was told of the last time.
    pub(crate) fences: Vec<(Peer, Vec<(IpAddr, IpAddr)>)>,
    /// When its last write ends.
    last_write: Duration,
    pub(crate) messages_sent: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) writes: u64,
}

impl Node {
    /// Whether it was removed, and does not know that yet.
    pub(crate) fn is_fenced(&self) -> bool {
        self.removed_life.is_some() || self.overruled_by.is_some()
    }
}

#[derive(Debug)]
enum Event {
    Message { from: Peer, from_life: u64, to: Peer, bytes: Rc<[u8]> },
    Written { node: usize, process: u64, ticket: Ticket, changes: Vec<ipam::Change>, fate: Fate },
    Peers { node: usize },
    Start { node: usize },
    Survey { node: usize, process: u64 },
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
    /// Nodes that start are told of what runs on their hosts up to so many milliseconds later.
    pub(crate) late_surveys: u64,
    /// Clocks stand still while hosts sleep: as those of paused virtual machines.
    pub(crate) frozen: bool,
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
                told_gone: BTreeMap::new(),
                overruled_by: None,
                dead_after: None,
                last_life: 0,
                dead: false,
                allocator: None,
                timer: None,
                notices: Vec::new(),
                network: None,
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
            late_surveys: 0,
            frozen: false,
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
    pub(crate) fn tell(&self, what: impl FnOnce() -> String) {
        if self.told {
            println!("{:?} {}", self.now, what());
        }
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), event);
    }

    /// The time as a node has it.
    fn clock(&self, node: usize) -> Duration {
        self.now + self.nodes[node].ahead
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
            Event::Written { node, .. } | Event::Peers { node } | Event::Survey { node, .. } => *node,
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
            Event::Survey { node, process } if self.nodes[node].process == process => self.survey(node),
            Event::Survey { .. } => {}
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
        self.late_surveys = 0;
        self.crash_at = None;
        self.groups = vec![0; self.nodes.len()];
        self.until_awake();
        for node in 0..self.nodes.len() {
            self.start(node);
        }
        self.peers_changed();
    }

    /// No block is held by two nodes of one network.
    pub(crate) fn check_blocks(&mut self) {
        // What nobody has learned anything about since the last look holds as it did.
        let known = self.nodes.iter().map(|node| {
            let allocator = node.allocator.as_ref().filter(|_| !node.is_fenced())?;
            Some((node.process, allocator.changes()))
        });
        let known = known.collect();
        if self.checked == known {
            return;
        }
        self.checked = known;
        let mut held: BTreeMap<Option<String>, Vec<(IpAddr, IpAddr, Peer)>> = BTreeMap::new();
        for node in &self.nodes {
            if let Some(allocator) = node.allocator.as_ref().filter(|_| !node.is_fenced()) {
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

    /// Whether all nodes, when they were up last, were in one network or in none.
    pub(crate) fn were_in_one_network(&self) -> bool {
        let networks: BTreeSet<&String> = self.nodes.iter().filter_map(|node| node.network.as_ref()).collect();
        networks.len() < 2
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
