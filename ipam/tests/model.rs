//! Every order of events within small bounds, with the real machine: no block and no address ever
//! has two owners.
//!
//! ```text
//!  three peers, one network, three voters, 10.0.0.0/30 (two addresses to give, two blocks)
//!  steps: deliver any message under way (never: it is lost; late: it is delayed; twice: a copy)
//!         a request at any peer; a peer's clock reaches its next time
//!         a peer starts again with its disk, with an old copy of it, or with none
//! ```
//!
//! A step's writes are durable with it: a crash between a change and its write is a crash before
//! the step, because nothing leaves before the write (ipam I8). What the bounds leave out: more
//! steps than are searched, other ranges, partitions that the mesh tells of, removal.

mod sim;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher as _};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use ipam::allocator::{Ablation, Allocator, Config};
use ipam::{Output, RequestId};
use ipnet::IpNet;
use sim::{Disk, Peer, World};

const RANGE: &str = "10.0.0.0/30";
const PEERS: usize = 3;

fn range() -> IpNet {
    RANGE.parse().expect("a range")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum With {
    Disk,
    OldDisk,
    NoDisk,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Deliver(Letter),
    DeliverCopy(Letter),
    Ask(usize),
    Tick(usize),
    Start(usize, With),
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Letter {
    from: usize,
    life: u64,
    to: usize,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Letter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{} -> {}: {} bytes", self.from, self.life, self.to, self.bytes.len())
    }
}

#[derive(Debug, Clone)]
struct Node {
    allocator: Allocator<Peer>,
    now: Duration,
    life: u64,
    disk: Disk,
    old: Rc<Disk>,
    /// What its containers have; they run on whatever happens to the peer.
    has: BTreeMap<IpAddr, String>,
}

/// How much of each may happen yet.
#[derive(Debug, Clone, Copy)]
struct Budget {
    requests: u8,
    starts: u8,
    copies: u8,
    ticks: u8,
}

#[derive(Debug, Clone)]
struct State {
    nodes: Vec<Node>,
    wire: BTreeSet<Letter>,
    left: Budget,
}

/// Hashes what is written to it.
struct Print(DefaultHasher);

impl std::fmt::Write for Print {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

struct Model {
    ablation: Ablation,
    with: &'static [With],
    budget: Budget,
    depth: usize,
}

#[derive(Debug)]
struct Found {
    states: usize,
    depth: usize,
    violation: Option<(String, Vec<Step>)>,
}

impl Model {
    /// Three peers that have joined and agree.
    fn begin(&self) -> State {
        let mut world = World::new(1, &[0, 1, 1], &[RANGE]);
        world.ablation = self.ablation;
        world.start_all();
        world.run_for(Duration::from_secs(60));
        let nodes: Vec<Node> = (0..PEERS)
            .map(|at| {
                let (allocator, it) = (world.up(at).clone(), &world.nodes[at]);
                assert_eq!(allocator.panel().map(|(_, voters)| voters.len()), Some(PEERS));
                let (disk, old) = (it.disk.clone(), Rc::new(it.disk.clone()));
                Node { allocator, now: world.now, life: it.life, disk, old, has: BTreeMap::new() }
            })
            .collect();
        let mut state = State { nodes, wire: BTreeSet::new(), left: self.budget };
        (0..PEERS).for_each(|at| drain(&mut state, at));
        state
    }

    fn steps(&self, state: &State) -> Vec<Step> {
        let mut steps: Vec<Step> = state.wire.iter().cloned().map(Step::Deliver).collect();
        if state.left.copies > 0 {
            steps.extend(state.wire.iter().cloned().map(Step::DeliverCopy));
        }
        for at in 0..PEERS {
            if state.left.requests > 0 {
                steps.push(Step::Ask(at));
            }
            if state.left.ticks > 0 && state.nodes[at].allocator.poll_timeout().is_some() {
                steps.push(Step::Tick(at));
            }
            if state.left.starts > 0 {
                steps.extend(self.with.iter().map(|&with| Step::Start(at, with)));
            }
        }
        steps
    }

    fn next(&self, state: &State, step: &Step) -> State {
        let mut state = state.clone();
        match step {
            Step::Deliver(letter) | Step::DeliverCopy(letter) => {
                match step {
                    Step::Deliver(_) => {
                        state.wire.remove(letter);
                    }
                    _ => state.left.copies -= 1,
                }
                let node = &mut state.nodes[letter.to];
                let from = Peer(letter.from as u8 + 1);
                node.allocator.handle_message(from, letter.life, &letter.bytes, node.now);
                drain(&mut state, letter.to);
            }
            Step::Ask(at) => {
                state.left.requests -= 1;
                let node = &mut state.nodes[*at];
                let number = u64::from(state.left.requests);
                node.allocator.allocate(RequestId(number), &format!("c{at}.{number}"), range(), node.now);
                drain(&mut state, *at);
            }
            Step::Tick(at) => {
                state.left.ticks -= 1;
                let node = &mut state.nodes[*at];
                let due = node.allocator.poll_timeout().map_or(node.now, |(due, _)| due);
                node.now = node.now.max(due);
                node.allocator.handle_timeout(node.now);
                drain(&mut state, *at);
            }
            Step::Start(at, with) => {
                state.left.starts -= 1;
                self.start(&mut state, *at, *with);
            }
        }
        state
    }

    fn start(&self, state: &mut State, at: usize, with: With) {
        let node = &mut state.nodes[at];
        node.life += 1;
        match with {
            With::Disk => {}
            With::OldDisk => node.disk = Disk::clone(&node.old),
            With::NoDisk => node.disk.clear(),
        }
        let named_peers = usize::from(at > 0 || with == With::NoDisk);
        let config = Config::new(Peer(at as u8 + 1), node.life, vec![range()], named_peers);
        let seed = [at as u8 ^ (node.life as u8) << 4; 32];
        let disk = node.disk.clone().into_iter().collect();
        node.allocator = Allocator::with_broken_rules(config, disk, seed, node.now, self.ablation)
            .expect("its own disk is readable");
        let in_use: Vec<(String, IpAddr)> = node.has.iter().map(|(&address, owner)| (owner.clone(), address)).collect();
        node.allocator.survey(&in_use, node.now);
        drain(state, at);
        for to in 0..PEERS {
            let lives = state.nodes.iter().enumerate().filter(|&(other, _)| other != to);
            let peers: Vec<(Peer, u64)> = lives.map(|(other, node)| (Peer(other as u8 + 1), node.life)).collect();
            let node = &mut state.nodes[to];
            node.allocator.handle_peers(&peers, node.now);
            drain(state, to);
        }
    }

    /// Looks at every state that can be reached within the bounds, nearest first.
    fn search(&self) -> Found {
        let begin = self.begin();
        let mut seen = BTreeMap::from([(print(&begin), None)]);
        let mut front = vec![(print(&begin), begin)];
        for depth in 0..self.depth {
            let mut next_front = Vec::new();
            for (parent, state) in &front {
                for step in self.steps(state) {
                    let next = self.next(state, &step);
                    let print = print(&next);
                    if seen.contains_key(&print) {
                        continue;
                    }
                    let violation = violation(&next);
                    seen.insert(print, Some((*parent, step)));
                    if violation.is_some() {
                        let violation = violation.map(|text| (text, path(&seen, print)));
                        return Found { states: seen.len(), depth: depth + 1, violation };
                    }
                    next_front.push((print, next));
                }
            }
            front = next_front;
        }
        Found { states: seen.len(), depth: self.depth, violation: None }
    }
}

fn print(state: &State) -> u64 {
    let mut print = Print(DefaultHasher::new());
    for node in &state.nodes {
        write!(print, "{:?} {:?} {:?}", node.allocator, node.now, node.has).expect("a hasher takes all");
        for bytes in node.disk.iter().flat_map(|(key, value)| [key, value]) {
            print.0.write(bytes);
        }
    }
    write!(print, "{:?}", state.left).expect("a hasher takes all");
    for letter in &state.wire {
        write!(print, "{letter:?}").expect("a hasher takes all");
        print.0.write(&letter.bytes);
    }
    print.0.finish()
}

fn path(seen: &BTreeMap<u64, Option<(u64, Step)>>, mut at: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some((parent, step)) = &seen[&at] {
        steps.push(step.clone());
        at = *parent;
    }
    steps.reverse();
    steps
}

fn drain(state: &mut State, at: usize) {
    while let Some(output) = state.nodes[at].allocator.poll_output() {
        let node = &mut state.nodes[at];
        let life = node.life;
        let mut post = |to: usize, bytes: Vec<u8>| {
            state.wire.insert(Letter { from: at, life, to, bytes });
        };
        match output {
            Output::Store { ticket, changes } => {
                for change in changes {
                    match change.value {
                        Some(value) => node.disk.insert(change.key, value),
                        None => node.disk.remove(&change.key),
                    };
                }
                node.allocator.handle_stored(ticket, Ok(()), node.now);
            }
            Output::Send { to, bytes } => post(usize::from(to.0) - 1, bytes),
            Output::Broadcast { bytes } => (0..PEERS).filter(|&to| to != at).for_each(|to| post(to, bytes.clone())),
            Output::Reply { request, result: Ok(net) } => {
                node.has.insert(net.addr(), format!("c{at}.{}", request.0));
            }
            Output::Reply { .. } | Output::Notice(_) | Output::Fences(_) => {}
        }
    }
}

fn violation(state: &State) -> Option<String> {
    let mut given = BTreeMap::new();
    let mut held = BTreeMap::new();
    for (at, node) in state.nodes.iter().enumerate() {
        for &address in node.has.keys() {
            if let Some(other) = given.insert(address, at) {
                return Some(format!("{address} was given at {other} and at {at}"));
            }
        }
        // Blocks of this range are single addresses.
        for address in node.allocator.held().into_iter().flat_map(|(first, last)| between(first, last)) {
            if let Some(other) = held.insert(address, at) {
                return Some(format!("the block {address} is held at {other} and at {at}"));
            }
        }
    }
    None
}

fn between(first: IpAddr, last: IpAddr) -> impl Iterator<Item = IpAddr> {
    (0..4u8).map(|at| IpAddr::from([10, 0, 0, at])).filter(move |address| (first..=last).contains(address))
}

const ALL: &[With] = &[With::Disk, With::OldDisk, With::NoDisk];

/// How far to look: `WEFT_IPAM_DEPTH`, or what takes some seconds.
fn depth(usual: usize) -> usize {
    std::env::var("WEFT_IPAM_DEPTH").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn no_order_of_few_events_gives_a_block_two_owners() {
    let budget = Budget { requests: 2, starts: 1, copies: 1, ticks: 1 };
    let found = Model { ablation: Ablation::default(), with: ALL, budget, depth: depth(4) }.search();
    println!("all events: {} states up to {} steps", found.states, found.depth);
    assert!(found.violation.is_none(), "{:#?}", found.violation);
    assert!(found.states > 10_000, "{found:?}");
}

#[test]
fn an_old_disk_gives_no_block_two_owners_but_does_without_a_new_term() {
    let budget = Budget { requests: 2, starts: 1, copies: 0, ticks: 0 };
    let search = |ablation, depth| Model { ablation, with: &[With::OldDisk], budget, depth }.search();
    let broken = search(Ablation { no_restart_term: true, ..Ablation::default() }, 8);
    println!("without a new term: {} states, harm after {} steps", broken.states, broken.depth);
    assert!(broken.violation.is_some(), "{} states", broken.states);
    let found = search(Ablation::default(), depth(broken.depth));
    println!("old disks: {} states up to {} steps", found.states, found.depth);
    assert!(found.violation.is_none(), "{:#?}", found.violation);
}
