//! The world: hosts and what is around them, and the loop that lets time pass.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use ipam::allocator::{Allocator, Config};
use ipnet::IpNet;
use mesh_proto::control::Identity as _;
use mesh_proto::control::node::Node;
use mesh_proto::control::{NodeConfig, TrustConfig};
use mesh_proto::data::forwarder::{Forwarder, ForwarderConfig};
use mesh_proto::handover::{SessionKey, Suite};
use mesh_proto::id::Incarnation;

use super::book::Book;
use super::clock::{Clock, MS, SECOND, TRUE_RATE, Time};
use super::conn::Transport;
use super::dice::Dice;
use super::env::{Env, target_name};
use super::faults::{Fault, HEALED, Kept, Plan};
use super::graph::Graph;
use super::host::{Disk, Host, Key};
use super::identity::CheapIdentity;
use super::ledger::{Ledger, Mac};
use super::net::{Net, Way, Weather};
use super::options::{Ablation, Options, Underlay};
use super::queue::{Event, Index, Queue};
use super::trace::Trace;
use super::traffic::Traffic;

/// Containers of each host.
const CONTAINERS: u8 = 2;
/// Wall-clock time when a host's clock was at zero.
const WALL: u64 = 1_800_000_000;

/// What [`Ablation::Chaos`] lets a run depend on: how many were before it in this process.
static CHAOS: AtomicU64 = AtomicU64::new(1);

/// A whole mesh.
#[derive(Debug)]
pub(super) struct World {
    pub(super) options: Options,
    pub(super) hosts: Vec<Host>,
    pub(super) env: Env,
    pub(super) plan: Plan,
    pub(super) traffic: Traffic,
    pub(super) events: u64,
    /// Whether a round of liveness met a change and says nothing.
    pub(super) disturbed: bool,
    /// Whom each host is told of.
    targets: Vec<Vec<Index>>,
    discovery: bool,
    links_max: usize,
    /// The ways as they are without faults.
    base: Vec<Way>,
    dice: Dice,
}

impl World {
    /// Everything in its place, nothing started yet.
    pub(super) fn new(options: Options) -> Self {
        let seed = options.seed;
        let mut dice = Dice::new(seed, "world");
        let graph = match options.underlay {
            Underlay::Partial => Graph::partial(options.peers, &mut dice),
            Underlay::Full => Graph::full(options.peers),
        };
        let tree = graph.thin(&mut dice);
        let discovery = dice.chance(500);
        let needed = if discovery { &tree } else { &graph };
        let targets = targets(needed, &mut dice);
        let plan = if options.faults {
            let dice = Dice::new(seed, "faults");
            Plan::draw(dice, options.peers, &graph, needed, &options.without)
        } else {
            Plan::default()
        };
        let delays = match options.ablation {
            Some(Ablation::Chaos) => seed.wrapping_add(CHAOS.fetch_add(1, Ordering::Relaxed)),
            _ => seed,
        };
        let ipv6 = dice.chance(500);
        let mut net = Net::new(usize::from(options.peers), ipv6, Dice::new(delays, "net"));
        let clean = dice.chance(500);
        for (a, b) in graph.links() {
            let (there, back) = ways(clean, &mut dice);
            *net.way(a, b) = there;
            *net.way(b, a) = back;
        }
        let env = Env {
            now: 0,
            net,
            queue: Queue::default(),
            trace: Trace::new(options.detail),
            ledger: Ledger::new(usize::from(options.peers)),
            book: Book::default(),
            dice: Dice::new(seed, "env"),
            ablation: options.ablation,
            stale: None,
            disk_faults: 0,
            messages: (0, 0),
            link_changes: 0,
            tree_changes: 0,
            way_changes: 0,
            tables: 0,
        };
        let mut world = Self {
            hosts: Vec::new(),
            base: Vec::new(),
            traffic: Traffic::new(seed, options.addresses),
            events: 0,
            disturbed: false,
            targets,
            discovery,
            links_max: [8, 16, 32][dice.index(3)],
            options,
            env,
            plan,
            dice,
        };
        world.base = world.env.net.ways().to_vec();
        world.place_hosts();
        world
    }

    fn place_hosts(&mut self) {
        for index in 0..self.options.peers {
            let epoch = Duration::from_nanos(self.dice.below(1_000_000 * SECOND));
            let drift = self.dice.between(TRUE_RATE - 200, TRUE_RATE + 200);
            let disk = self.new_disk();
            let macs = (0..CONTAINERS).map(|place| mac(index, 0, place)).collect();
            self.hosts.push(Host::new(index, disk, Clock::new(epoch, drift), macs));
            // The founder of the address space first, so that it is one network from the start.
            let at = if index == 0 { 0 } else { self.dice.below(SECOND) };
            self.env.queue.push(at, Event::Start(index));
        }
        for (place, (at, _)) in self.plan.faults.iter().enumerate() {
            self.env.queue.push(*at, Event::Fault(u32::try_from(place).unwrap_or(u32::MAX)));
        }
        self.env.queue.push(SECOND, Event::Traffic);
        let kinds = std::mem::take(&mut self.plan.kinds);
        let (discovery, links) = (self.discovery, self.links_max);
        let options = &self.options;
        self.env.trace.line(0, format_args!("{options}: discovery {discovery}, links {links}, faults:{kinds}"));
        self.plan.kinds = kinds;
    }

    fn new_disk(&mut self) -> Disk {
        Disk {
            identity: CheapIdentity::new(&mut self.dice),
            instance: self.dice.word(),
            incarnation: Incarnation(0),
            addresses: Default::default(),
            trust: Default::default(),
        }
    }

    /// Lets time pass until `end`, or until something happens that may not.
    ///
    /// # Errors
    /// What may not happen, and when it did.
    pub(super) fn run_until(&mut self, end: Time) -> Result<(), String> {
        while let Some((at, event)) = self.env.queue.pop_before(end) {
            self.env.now = at;
            self.events += 1;
            self.happen(event);
            self.check()?;
        }
        self.env.now = end;
        Ok(())
    }

    /// # Errors
    /// The first thing that may not happen and has.
    pub(super) fn check(&mut self) -> Result<(), String> {
        let seconds = self.env.now / MS;
        match &self.env.ledger.failure {
            Some(why) => Err(format!("at {}.{:03} s: {why}", seconds / 1000, seconds % 1000)),
            None => Ok(()),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(place) => self.arrive(place),
            Event::Wake(peer) => self.hosts[usize::from(peer)].wake(&mut self.env),
            Event::Start(peer) => self.start(peer, Kept::All),
            Event::Fault(place) => {
                let fault = self.plan.faults[place as usize].1.clone();
                self.apply(&fault);
            }
            Event::Traffic => self.traffic.tick(&mut self.hosts, &mut self.env),
            Event::Resolved { peer, life, target } => {
                let host = &mut self.hosts[usize::from(peer)];
                let address = self.env.net.address(target);
                if host.life == life {
                    host.act(&mut self.env, |live, now| {
                        live.node.handle_resolved(&target_name(target), &[address], now);
                    });
                }
            }
            Event::Stored { peer, life, ticket, fine } => {
                let host = &mut self.hosts[usize::from(peer)];
                if host.life == life {
                    host.stored(ticket, fine, &mut self.env);
                }
            }
        }
    }

    fn arrive(&mut self, place: u32) {
        let Some(mut datagram) = self.env.net.arrive(place) else { return };
        let host = &mut self.hosts[usize::from(datagram.to)];
        if host.live.is_some() {
            if !self.options.sealed {
                self.env.ledger.cross(datagram.from, datagram.to, &datagram.bytes, datagram.copy);
            }
            host.datagram(datagram.from, &mut datagram.bytes, &mut self.env);
        }
        self.env.net.recycle(place, datagram.bytes);
    }

    /// Starts the router of a host that has none.
    pub(super) fn start(&mut self, index: Index, kept: Kept) {
        let place = usize::from(index);
        if self.hosts[place].live.is_some() || (self.gone(index) && self.hosts[place].life > 0) {
            return;
        }
        if kept == Kept::Nothing {
            let disk = self.new_disk();
            let host = &mut self.hosts[place];
            host.disk = disk;
            let salt = host.life.to_le_bytes()[0].wrapping_add(1);
            host.macs = (0..CONTAINERS).map(|place| mac(index, salt, place)).collect();
            self.env.book.wiped(index);
        }
        self.env.ledger.forget(index);
        let host = &mut self.hosts[place];
        host.life += 1;
        let raise = u64::from(kept != Kept::Copy || host.disk.incarnation == Incarnation(0));
        host.disk.incarnation = Incarnation(host.disk.incarnation.0 + raise);
        let incarnation = host.disk.incarnation.0;
        self.env.trace.peer(self.env.now, index, format_args!("starts ({kept:?}) as {incarnation}"));
        self.boot(index);
        if self.options.addresses {
            self.traffic.restarted(&self.hosts[place], &mut self.env);
        }
    }

    fn boot(&mut self, index: Index) {
        let now = self.hosts[usize::from(index)].clock.local(self.env.now);
        let config = self.config(index);
        let forwarder = ForwarderConfig {
            sealed: self.options.sealed,
            macs_max: 4096,
            mac_age: Duration::from_secs(300),
            payload_max: 1472,
        };
        let seeds = (self.dice.bytes(), self.dice.word(), self.dice.bytes());
        let unique = u64::from(index) << 16 | u64::from(self.hosts[usize::from(index)].life);
        let allocator = self.options.addresses.then(|| self.allocator(index, seeds.2, now));
        let host = &mut self.hosts[usize::from(index)];
        let identity = host.disk.identity.clone();
        let transport = Transport::new(identity.sign_key(), unique);
        let node = Node::new(config, identity, seeds.0, now);
        let forwarder = Forwarder::new(forwarder, seeds.1, now);
        host.start(node, forwarder, transport, allocator.flatten(), &mut self.env);
    }

    fn config(&self, index: Index) -> NodeConfig {
        let host = &self.hosts[usize::from(index)];
        let secret = self.options.sealed.then(|| SessionKey([7; 32].into()));
        let suite = if self.options.sealed { Suite::Aes256Gcm } else { Suite::Plain };
        let targets = &self.targets[usize::from(index)];
        NodeConfig {
            name: target_name(index),
            instance: host.disk.instance,
            incarnation: host.disk.incarnation,
            network: "simulated".to_owned(),
            secret,
            suites: vec![suite],
            endpoints: vec![self.env.net.address(index)],
            targets: targets.iter().map(|target| target_name(*target)).collect(),
            discovery: self.discovery,
            links_max: self.links_max,
            trust: TrustConfig { wall: WALL, kept: host.disk.trust.clone().into_iter().collect() },
        }
    }

    fn allocator(&mut self, index: Index, seed: [u8; 32], now: Duration) -> Option<Allocator<Key>> {
        let host = &self.hosts[usize::from(index)];
        let me = mesh_proto::id::PeerId::of_keys(&host.disk.identity.sign_key(), &host.disk.identity.box_key());
        // The first host founds the network, unless it comes back with an empty disk.
        let named_peers = if index == 0 && host.life == 1 { 0 } else { 1 };
        let config = Config::new(Key(me), host.disk.incarnation.0, ranges(), named_peers);
        let state = host.disk.addresses.clone().into_iter().collect();
        match Allocator::new(config, state, seed, now) {
            Ok(mut allocator) => {
                // What its containers have is in its state: disks are lost together with containers here.
                allocator.survey(&[], now);
                Some(allocator)
            }
            Err(why) => {
                self.env.ledger.fail(format!("p{index:02} cannot read its own state: {why}"));
                None
            }
        }
    }

    /// Whether this host never comes back.
    pub(super) fn gone(&self, index: Index) -> bool {
        self.plan.gone.contains(&index)
    }

    fn apply(&mut self, fault: &Fault) {
        match fault {
            Fault::Split(_) => self.env.trace.line(self.env.now, format_args!("fault: split")),
            other => self.env.trace.line(self.env.now, format_args!("fault: {other:?}")),
        }
        match fault {
            Fault::Weather(weather) => self.env.net.weather = *weather,
            Fault::Cut(a, b) => self.env.net.way(*a, *b).cut = true,
            Fault::Mend(a, b) => self.mend(*a, *b),
            Fault::Sick(a, b, loss, twice, jitter) => {
                let way = self.env.net.way(*a, *b);
                (way.loss, way.twice, way.jitter) = (*loss, *twice, *jitter);
            }
            Fault::Narrow(a, b, payload) => {
                let way = self.env.net.way(*a, *b);
                // Never wider: mending would then be what makes it narrow, after the last fault.
                way.payload = way.payload.min(*payload);
            }
            Fault::Split(sides) => self.env.net.split(sides),
            Fault::Join => self.env.net.join(),
            Fault::Disks(refused) => self.env.disk_faults = *refused,
            Fault::Start(host, kept) => self.start(*host, *kept),
            Fault::Migrate(from, to) => self.migrate(*from, *to),
            Fault::Crash(host) => {
                let host = &mut self.hosts[usize::from(*host)];
                host.crash(&mut self.env);
                self.env.book.crashed(host.index);
            }
            Fault::Leave(host) => {
                let host = &mut self.hosts[usize::from(*host)];
                host.act(&mut self.env, |live, now| live.node.shutdown(now));
                host.crash(&mut self.env);
                self.env.book.crashed(host.index);
            }
            Fault::Pause(host) => self.hosts[usize::from(*host)].paused = true,
            Fault::Resume(host) => self.hosts[usize::from(*host)].resume(&mut self.env),
            Fault::Jump(host, by) => {
                let host = &mut self.hosts[usize::from(*host)];
                host.clock.jump(self.env.now, *by);
                host.reckon(&mut self.env);
            }
            Fault::Rate(host, rate) => {
                let host = &mut self.hosts[usize::from(*host)];
                host.clock.set_rate(self.env.now, *rate);
                host.reckon(&mut self.env);
            }
            Fault::Roam(host, told) => self.roam(*host, *told),
            Fault::Replay(count) => {
                // Without cryptography a changed bit is what UDP's checksum is for.
                let (now, sealed) = (self.env.now, self.options.sealed);
                self.env.net.replay(now, *count, sealed, &mut self.env.queue);
            }
        }
    }

    fn mend(&mut self, a: Index, b: Index) {
        let place = usize::from(a) * usize::from(self.options.peers) + usize::from(b);
        *self.env.net.way(a, b) = self.base[place];
    }

    fn roam(&mut self, index: Index, told: bool) {
        let address = self.env.net.roam(index);
        if told {
            self.hosts[usize::from(index)].act(&mut self.env, |live, now| {
                live.node.set_endpoints(vec![address], now);
            });
        }
    }

    fn migrate(&mut self, from: Index, to: Index) {
        let [from, to] = [from, to].map(usize::from);
        if from == to || self.hosts[from].macs.len() < 2 {
            return;
        }
        if let Some(mac) = self.hosts[from].macs.pop() {
            self.hosts[to].macs.push(mac);
            self.traffic.announce(&mut self.hosts[to], mac, &mut self.env);
        }
    }

    /// Ends every fault.
    pub(super) fn heal(&mut self) {
        self.env.trace.line(self.env.now, format_args!("all is well again"));
        self.env.net.weather = Weather::default();
        self.env.net.join();
        self.env.disk_faults = 0;
        let base = self.base.clone();
        self.env.net.ways().copy_from_slice(&base);
        for index in 0..self.options.peers {
            let host = &mut self.hosts[usize::from(index)];
            if host.paused {
                host.resume(&mut self.env);
            }
            host.clock.set_rate(self.env.now, TRUE_RATE);
            host.reckon(&mut self.env);
            self.start(index, Kept::All);
        }
    }

    /// Whether the faults begin now or have begun, for [`Ablation::StaleTables`].
    pub(super) fn spoil(&mut self) {
        if self.env.ablation == Some(Ablation::StaleTables) {
            self.env.stale = self.hosts.iter().find(|host| host.live.is_some()).map(|h| h.index);
        }
    }

    /// The silence begins, for [`Ablation::Restless`].
    pub(super) fn quicken(&mut self) {
        if self.env.ablation == Some(Ablation::Restless) {
            let host = &mut self.hosts[0];
            host.clock.set_rate(self.env.now, 100 * TRUE_RATE);
            host.reckon(&mut self.env);
        }
    }

    /// When the faults are over.
    pub(super) const fn healed() -> Time {
        HEALED
    }
}

/// Whom each host is told of: of each link one end or both.
fn targets(graph: &Graph, dice: &mut Dice) -> Vec<Vec<Index>> {
    let mut targets = vec![Vec::new(); graph.neighbours.len()];
    for (a, b) in graph.links() {
        let which = dice.below(3);
        if which != 0 {
            targets[usize::from(a)].push(b);
        }
        if which != 1 {
            targets[usize::from(b)].push(a);
        }
    }
    targets
}

/// Both directions between two hosts, without faults. Never lossy, so that what has to arrive
/// when all is well can be told; but it may repeat and reorder unless it is `clean`.
fn ways(clean: bool, dice: &mut Dice) -> (Way, Way) {
    let nanos = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let delay = nanos(dice.between(MS / 10, 25 * MS));
    let payload = [1472, 1472, 1452, 1392][dice.index(4)];
    let mut way = Way { open: true, delay, payload, ..Way::NONE };
    if !clean {
        way.jitter = nanos(dice.below(5 * MS));
        way.twice = u16::try_from(dice.below(3000)).unwrap_or(0);
    }
    let back = Way { delay: nanos(u64::from(delay) + dice.below(5 * MS)), ..way };
    (way, back)
}

fn mac(host: Index, salt: u8, place: u8) -> Mac {
    let [high, low] = host.to_be_bytes();
    [0x02, 0x57, salt, high, low, place]
}

/// The ranges of the network that is simulated.
pub(super) fn ranges() -> Vec<IpNet> {
    ["10.32.0.0/20", "fd00:77::/112"].into_iter().filter_map(|range| range.parse().ok()).collect()
}
