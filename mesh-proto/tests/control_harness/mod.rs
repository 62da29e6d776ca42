//! A little harness: nodes whose connections are queues in virtual time, and whose data path is
//! faked by answering the first probe of each path that the underlay lets through.
#![allow(dead_code, unreachable_pub, missing_debug_implementations, reason = "each test binary uses its own part")]
#![allow(clippy::allow_attributes, reason = "which part is unused differs from binary to binary")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::control::node::{Node, PeerInfo, PeerState};
use mesh_proto::control::{ConnId, Connected, DialId, Event, Identity, NodeConfig, Output, TrustConfig};
use mesh_proto::data::Hop;
use mesh_proto::handover::{Command, DataEvent, SessionKey, SessionKeys, Suite, Tables};
use mesh_proto::id::{Incarnation, PeerId};

/// Wall-clock time when the nodes' clocks were at zero.
pub const WALL: u64 = 1_800_000_000;

/// Latency of every message.
pub const LATENCY: Duration = Duration::from_millis(1);

/// A cheap stand-in for signatures: anybody can sign for a key, but any wrong byte is seen.
#[derive(Debug, Clone)]
pub struct Cheap(pub u8);

impl Identity for Cheap {
    fn sign_key(&self) -> [u8; 32] {
        [self.0; 32]
    }
    fn box_key(&self) -> [u8; 32] {
        [self.0; 32]
    }
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for byte in self.sign_key().iter().chain(message) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let mut out = [0; 64];
        out[..8].copy_from_slice(&hash.to_be_bytes());
        out
    }
    fn verify(&self, key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        Self(key[0]).sign(message) == *signature
    }
}

pub fn id(n: usize) -> PeerId {
    PeerId::of_keys(&[n as u8; 32], &[n as u8; 32])
}

pub fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n as u8], 6783))
}

pub fn secret(byte: u8) -> SessionKey {
    SessionKey(zeroize::Zeroizing::new([byte; 32]))
}

/// The configuration of peer `n`: no secret, no targets, discovery on.
pub fn config(n: usize) -> NodeConfig {
    NodeConfig {
        name: format!("peer{n}"),
        instance: n as u64,
        incarnation: Incarnation(1),
        network: "test".to_owned(),
        secret: None,
        suites: vec![Suite::Plain],
        endpoints: vec![address(n)],
        targets: Vec::new(),
        discovery: true,
        links_max: 32,
        trust: TrustConfig { wall: WALL, kept: Vec::new() },
    }
}

/// The same with a secret.
pub fn sealed(n: usize, byte: u8) -> NodeConfig {
    NodeConfig { secret: Some(secret(byte)), suites: vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305], ..config(n) }
}

pub fn target(n: usize) -> String {
    address(n).to_string()
}

/// One running peer and what it has said.
pub struct Host {
    pub node: Node<Cheap>,
    pub events: Vec<(Duration, Event)>,
    pub apps: Vec<(PeerId, Incarnation, Vec<u8>)>,
    pub tables: Arc<Tables>,
    pub keys: Vec<SessionKeys>,
    pub removed: Vec<PeerId>,
    pub sent: usize,
    pub sent_messages: usize,
    /// Paths that the data path believes in, with their address.
    up: BTreeMap<PeerId, SocketAddr>,
    /// Paths that the data path probes.
    probing: BTreeSet<PeerId>,
    conns: BTreeMap<ConnId, Pipe>,
}

#[derive(Clone, Copy)]
struct Pipe {
    to: usize,
    conn: ConnId,
    hop: Hop,
}

enum Todo {
    Message { to: usize, conn: ConnId, bytes: Vec<u8> },
    Gone { to: usize, conn: ConnId, reason: String },
    DialFailed { to: usize, dial: DialId },
    Resolved { to: usize, target: String },
    Data { to: usize, event: DataEvent },
}

/// May change a message on its way.
pub type Tamper = Box<dyn FnMut(usize, usize, &mut Vec<u8>)>;

/// All peers and the underlay between them.
pub struct Mesh {
    pub now: Duration,
    pub hosts: BTreeMap<usize, Host>,
    queue: BTreeMap<(Duration, u64), Todo>,
    serial: u64,
    /// Pairs that the underlay does not let through.
    pub cut: BTreeSet<(usize, usize)>,
    /// Pairs whose user frames do not pass, though connections do.
    pub frames_cut: BTreeSet<(usize, usize)>,
    /// These do not hear when others close a connection.
    pub ends_lost: BTreeSet<usize>,
    pub tamper: Option<Tamper>,
    /// What each place keeps between its runs.
    pub disks: BTreeMap<usize, BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Address at which a peer is seen by others, if it is not its own.
    pub nat: BTreeMap<usize, SocketAddr>,
    /// Gives each direction of each connection a latency of its own, up to sixteen times the usual.
    pub uneven: Option<u64>,
}

impl Mesh {
    pub fn new(configs: impl IntoIterator<Item = (usize, NodeConfig)>) -> Self {
        let mut mesh = Self {
            now: Duration::from_secs(1),
            hosts: BTreeMap::new(),
            queue: BTreeMap::new(),
            serial: 0,
            cut: BTreeSet::new(),
            frames_cut: BTreeSet::new(),
            ends_lost: BTreeSet::new(),
            tamper: None,
            disks: BTreeMap::new(),
            nat: BTreeMap::new(),
            uneven: None,
        };
        for (n, config) in configs {
            mesh.start(n, config);
        }
        mesh
    }

    /// Starts (or restarts) a peer.
    pub fn start(&mut self, n: usize, config: NodeConfig) {
        self.start_as(n, n, config);
    }

    /// Starts a peer at place `n` with the keys of `keys`.
    pub fn start_as(&mut self, n: usize, keys: usize, mut config: NodeConfig) {
        config.trust.kept = self.disks.get(&n).into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        self.serial += 1;
        let mut seed = [n as u8; 32];
        seed[1..9].copy_from_slice(&self.serial.to_be_bytes());
        let node = Node::new(config, Cheap(keys as u8), seed, self.now);
        let empty =
            Tables { me: id(keys), incarnation: Incarnation(0), peers: BTreeMap::new(), trees: BTreeMap::new() };
        let host = Host {
            node,
            events: Vec::new(),
            apps: Vec::new(),
            tables: Arc::new(empty),
            keys: Vec::new(),
            removed: Vec::new(),
            sent: 0,
            sent_messages: 0,
            up: BTreeMap::new(),
            probing: BTreeSet::new(),
            conns: BTreeMap::new(),
        };
        self.hosts.insert(n, host);
        self.drain(n);
    }

    /// Kills a peer without a word; the others notice after two seconds, as their transport would.
    pub fn kill(&mut self, n: usize) {
        let host = self.hosts.remove(&n).expect("it runs");
        for pipe in host.conns.values() {
            let gone = Todo::Gone { to: pipe.to, conn: pipe.conn, reason: "timed out".to_owned() };
            self.later(Duration::from_secs(2), gone);
        }
        self.paths_died();
    }

    pub fn host(&self, n: usize) -> &Host {
        &self.hosts[&n]
    }

    fn host_mut(&mut self, n: usize) -> &mut Host {
        self.hosts.get_mut(&n).expect("it runs")
    }

    pub fn node(&mut self, n: usize) -> &mut Node<Cheap> {
        &mut self.host_mut(n).node
    }

    /// Calls into a node and drains it.
    pub fn with<T>(&mut self, n: usize, call: impl FnOnce(&mut Node<Cheap>, Duration) -> T) -> T {
        let now = self.now;
        let result = call(self.node(n), now);
        self.drain(n);
        result
    }

    pub fn sever(&mut self, a: usize, b: usize) {
        self.cut.insert((a.min(b), a.max(b)));
        let mut gone = Vec::new();
        for (n, host) in &mut self.hosts {
            let lost = |pipe: &Pipe| {
                matches!(pipe.hop, Hop::Direct(_)) && (a.min(b), a.max(b)) == ((*n).min(pipe.to), (*n).max(pipe.to))
            };
            let conns: Vec<_> = host.conns.iter().filter(|(_, pipe)| lost(pipe)).map(|(conn, _)| *conn).collect();
            gone.extend(conns.into_iter().map(|conn| (*n, conn)));
        }
        for (n, conn) in gone {
            self.host_mut(n).conns.remove(&conn);
            let gone = Todo::Gone { to: n, conn, reason: "timed out".to_owned() };
            self.later(Duration::from_secs(4), gone);
        }
        self.paths_died();
    }

    pub fn mend(&mut self, a: usize, b: usize) {
        self.cut.remove(&(a.min(b), a.max(b)));
    }

    pub fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    /// Whether frames pass between two places.
    fn passes(&self, a: usize, b: usize) -> bool {
        self.hosts.contains_key(&a)
            && self.hosts.contains_key(&b)
            && !self.is_cut(a, b)
            && !self.frames_cut.contains(&(a.min(b), a.max(b)))
    }

    /// The data path of both ends notices in its time that a path is dead.
    pub fn paths_died(&mut self) {
        let mut dead = Vec::new();
        for (n, host) in &self.hosts {
            for (peer, at) in &host.up {
                if self.place(*at).is_none_or(|place| !self.passes(*n, place)) {
                    dead.push((*n, *peer));
                }
            }
        }
        for (n, peer) in dead {
            self.host_mut(n).up.remove(&peer);
            let event = DataEvent::PathDown { peer };
            self.later(Duration::from_millis(2500), Todo::Data { to: n, event });
        }
    }

    /// How long what is sent to that end of a connection takes.
    fn latency(&self, to: ConnId) -> Duration {
        let Some(seed) = self.uneven else { return LATENCY };
        let mixed = (to.0 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        LATENCY * (1 + (mixed >> 60) as u32)
    }

    fn place(&self, at: SocketAddr) -> Option<usize> {
        let seen = self.nat.iter().find(|(_, seen)| **seen == at).map(|(n, _)| *n);
        seen.or_else(|| self.hosts.keys().copied().find(|n| address(*n) == at))
    }

    fn later(&mut self, after: Duration, todo: Todo) {
        self.serial += 1;
        self.queue.insert((self.now + after, self.serial), todo);
    }

    /// Runs until nothing is left to do before `until`.
    pub fn run_until(&mut self, until: Duration) {
        loop {
            let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timers = self.hosts.iter().filter_map(|(n, host)| Some((host.node.poll_timeout()?.0, *n))).min();
            match (queued, timers) {
                (Some(at), timer) if at <= until && timer.is_none_or(|(due, _)| at <= due) => {
                    self.now = self.now.max(at);
                    let (_, todo) = self.queue.pop_first().expect("it was just seen");
                    self.perform(todo);
                }
                (_, Some((due, n))) if due <= until => {
                    self.now = self.now.max(due);
                    self.with(n, |node, now| node.handle_timeout(now));
                }
                _ => break,
            }
        }
        self.now = until;
    }

    pub fn run(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    pub fn run_secs(&mut self, seconds: u64) {
        self.run(Duration::from_secs(seconds));
    }

    /// Runs until the condition holds; gives how long it took. Panics after `limit`.
    pub fn run_until_true(&mut self, limit: Duration, what: &str, holds: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        while !holds(self) {
            assert!(self.now - start < limit, "not within {limit:?}: {what}\n{}", self.picture());
            self.run(Duration::from_millis(10));
        }
        self.now - start
    }

    fn perform(&mut self, todo: Todo) {
        let now = self.now;
        match todo {
            Todo::Message { to, conn, mut bytes } => {
                let Some(pipe) = self.hosts.get(&to).and_then(|host| host.conns.get(&conn)).copied() else { return };
                if matches!(pipe.hop, Hop::Direct(_)) && self.is_cut(to, pipe.to) {
                    return;
                }
                if let Some(tamper) = &mut self.tamper {
                    tamper(pipe.to, to, &mut bytes);
                }
                self.with(to, |node, _| node.handle_message(conn, &bytes, now));
            }
            Todo::Gone { to, conn, reason } => {
                if let Some(host) = self.hosts.get_mut(&to) {
                    host.conns.remove(&conn);
                    self.with(to, |node, _| node.handle_disconnected(conn, &reason, now));
                }
            }
            Todo::DialFailed { to, dial } => {
                if self.hosts.contains_key(&to) {
                    self.with(to, |node, _| node.handle_dial_failed(dial, "connection refused", now));
                }
            }
            Todo::Resolved { to, target } => {
                if self.hosts.contains_key(&to) {
                    let addresses: Vec<SocketAddr> = target.parse().into_iter().collect();
                    self.with(to, |node, _| node.handle_resolved(&target, &addresses, now));
                }
            }
            Todo::Data { to, event } => {
                if self.hosts.contains_key(&to) {
                    self.with(to, |node, _| node.handle_data_event(event, now));
                }
            }
        }
    }

    fn drain(&mut self, n: usize) {
        while let Some(output) = self.node(n).poll_output() {
            match output {
                Output::Dial { dial, hop } => self.dial(n, dial, hop),
                Output::Resolve { target } => self.later(LATENCY, Todo::Resolved { to: n, target }),
                Output::Send { conn, bytes } => {
                    let host = self.host_mut(n);
                    host.sent += bytes.len();
                    host.sent_messages += 1;
                    if let Some(pipe) = host.conns.get(&conn).copied() {
                        self.later(self.latency(pipe.conn), Todo::Message { to: pipe.to, conn: pipe.conn, bytes });
                    }
                }
                Output::Close { conn, reason } => {
                    let pipe = self.host_mut(n).conns.remove(&conn);
                    if let Some(pipe) = pipe.filter(|pipe| !self.ends_lost.contains(&pipe.to)) {
                        self.later(self.latency(pipe.conn), Todo::Gone { to: pipe.to, conn: pipe.conn, reason });
                    }
                }
                Output::Data(command) => self.command(n, command),
                Output::App { from, incarnation, payload } => {
                    self.host_mut(n).apps.push((from, incarnation, payload));
                }
                Output::Keep { key, value } => {
                    let disk = self.disks.entry(n).or_default();
                    _ = match value {
                        Some(value) => disk.insert(key, value),
                        None => disk.remove(&key),
                    };
                }
                Output::Event(event) => {
                    let now = self.now;
                    self.host_mut(n).events.push((now, event));
                }
            }
        }
    }

    fn dial(&mut self, n: usize, dial: DialId, hop: Hop) {
        let place = match hop {
            Hop::Direct(at) => self.place(at).filter(|to| !self.is_cut(n, *to)),
            Hop::Relayed(peer) => self.hosts.keys().copied().find(|to| id(*to) == peer).filter(|to| {
                // The data path must know a way.
                self.can_reach(n, *to)
            }),
        };
        let Some(to) = place else {
            return self.later(10 * LATENCY, Todo::DialFailed { to: n, dial });
        };
        self.serial += 2;
        let (mine, theirs) = (ConnId(self.serial), ConnId(self.serial + 1));
        let their_hop = match hop {
            Hop::Direct(_) => Hop::Direct(self.nat.get(&n).copied().unwrap_or(address(n))),
            Hop::Relayed(_) => Hop::Relayed(self.host(n).node.id()),
        };
        let mut exporter = [7; 32];
        exporter[..8].copy_from_slice(&self.serial.to_be_bytes());
        let (my_key, their_key) = (self.key(n), self.key(to));
        self.host_mut(n).conns.insert(mine, Pipe { to, conn: theirs, hop });
        self.host_mut(to).conns.insert(theirs, Pipe { to: n, conn: mine, hop: their_hop });
        let now = self.now;
        let accepted = Connected { hop: their_hop, dial: None, sign_key: my_key, exporter };
        self.node(to).handle_connected(theirs, accepted, now);
        let dialled = Connected { hop, dial: Some(dial), sign_key: their_key, exporter };
        self.node(n).handle_connected(mine, dialled, now);
        if to != n {
            self.drain(to);
        }
    }

    fn key(&self, n: usize) -> [u8; 32] {
        // Keys are one byte repeated; the id tells which.
        let node = self.host(n).node.id();
        (0..=255u8)
            .map(|byte| [byte; 32])
            .find(|key| PeerId::of_keys(key, key) == node)
            .expect("keys are one byte repeated")
    }

    fn command(&mut self, n: usize, command: Command) {
        let host = self.host_mut(n);
        match command {
            Command::Tables(tables) => {
                for (peer, path) in &tables.peers {
                    let before = host.tables.peers.get(peer).and_then(|path| path.direct);
                    if path.direct != before {
                        host.up.remove(peer);
                        host.probing.remove(peer);
                        if path.direct.is_some() {
                            host.probing.insert(*peer);
                        }
                    }
                }
                host.tables = tables;
                self.probe_all();
            }
            Command::Install(keys) => host.keys.push(*keys),
            Command::Remove(peer) => {
                host.removed.push(peer);
                host.keys.retain(|keys| keys.peer != peer);
            }
            Command::Probe(_) | Command::Learn(..) | Command::PayloadMax(_) | Command::Fences(_) => {}
        }
    }

    /// Answers the probes of paths that work: both ends must have set the path.
    fn probe_all(&mut self) {
        let mut up = Vec::new();
        for (n, host) in &self.hosts {
            for peer in &host.probing {
                let Some(at) = host.tables.peers.get(peer).and_then(|path| path.direct) else { continue };
                let Some(place) = self.place(at) else { continue };
                if self.passes(*n, place) && self.hosts[&place].keys.iter().any(|keys| keys.peer == host.node.id()) {
                    up.push((*n, *peer, at));
                }
            }
        }
        for (n, peer, at) in up {
            let host = self.host_mut(n);
            host.probing.remove(&peer);
            host.up.insert(peer, at);
            let event = DataEvent::PathUp { peer, rtt: 2 * LATENCY };
            self.later(2 * LATENCY, Todo::Data { to: n, event });
        }
    }

    /// Follows the tables of each peer on the way, as the data path would.
    pub fn can_reach(&self, from: usize, to: usize) -> bool {
        let (mut at, goal) = (from, id(to));
        for _ in 0..32 {
            let Some(host) = self.hosts.get(&at) else { return false };
            let Some(path) = host.tables.peers.get(&goal) else { return false };
            if host.up.contains_key(&goal) {
                return self.passes(at, to);
            }
            let next = path.relays.iter().find_map(|relay| {
                let address = host.up.get(relay)?;
                self.place(*address).filter(|place| self.passes(at, *place))
            });
            match next {
                Some(next) => at = next,
                None => return false,
            }
        }
        false
    }

    /// Everybody reaches everybody, as far as the underlay connects them.
    pub fn all_reach_all(&self) -> bool {
        self.hosts.keys().all(|a| self.hosts.keys().all(|b| a == b || self.can_reach(*a, *b)))
    }

    /// Follows a broadcast through the tables; gives how often each peer got it.
    pub fn broadcast(&self, from: usize) -> BTreeMap<usize, usize> {
        let (mut got, mut queue) = (BTreeMap::new(), vec![from]);
        while let Some(at) = queue.pop() {
            for child in self.host(at).tables.trees.get(&id(from)).into_iter().flatten() {
                let child = self.hosts.keys().copied().find(|n| id(*n) == *child).expect("it runs");
                let times = got.entry(child).or_insert(0);
                *times += 1;
                assert!(*times < 5, "a loop");
                queue.push(child);
            }
        }
        got
    }

    pub fn each_gets_each_broadcast_once(&self) -> bool {
        self.hosts.keys().all(|from| {
            let got = self.broadcast(*from);
            self.hosts.keys().all(|n| got.get(n).copied().unwrap_or(0) == usize::from(n != from))
        })
    }

    pub fn info(&self, n: usize, of: usize) -> Option<PeerInfo> {
        self.host(n).node.peers().into_iter().find(|info| info.id == id(of))
    }

    pub fn state(&self, n: usize, of: usize) -> Option<PeerState> {
        self.info(n, of).map(|info| info.state)
    }

    pub fn linked(&self, a: usize, b: usize) -> bool {
        let up = |a: usize, b: usize| self.info(a, b).is_some_and(|info| info.direct.is_some());
        up(a, b) && up(b, a)
    }

    pub fn refusals(&self, n: usize) -> Vec<String> {
        let reason = |event: &Event| match event {
            Event::Refused { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        self.host(n).events.iter().filter_map(|(_, event)| reason(event)).collect()
    }

    pub fn picture(&self) -> String {
        let mut out = String::new();
        for (n, host) in &self.hosts {
            out += &format!("--- {n} = {:?}, due {:?}\n", host.node.id(), host.node.poll_timeout());
            for info in host.node.peers() {
                out += &format!(
                    "  {} {:?} {:?} via {:?}: {}\n",
                    info.name, info.state, info.direct, info.via, info.reason
                );
            }
            for (at, event) in host.events.iter().rev().take(6).rev() {
                out += &format!("  {at:?} {event:?}\n");
            }
        }
        out
    }
}
