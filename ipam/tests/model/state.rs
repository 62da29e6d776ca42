//! Three peers, their disks and what is under way between them: what may happen next, and what must not be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use ipam::allocator::{Ablation, Allocator, Config};
use ipam::{Output, RequestId};
use ipnet::IpNet;

use crate::sim::{Disk, Peer, World};

const RANGE: &str = "10.0.0.0/30";
pub(crate) const PEERS: usize = 3;

fn range() -> IpNet {
    RANGE.parse().expect("a range")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum With {
    Disk,
    OldDisk,
    NoDisk,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Deliver(Letter),
    DeliverCopy(Letter),
    Ask(usize),
    Tick(usize),
    Start(usize, With),
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Letter {
    from: usize,
    life: u64,
    to: usize,
    pub(crate) bytes: Vec<u8>,
}

impl std::fmt::Debug for Letter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{} -> {}: {} bytes", self.from, self.life, self.to, self.bytes.len())
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) allocator: Allocator<Peer>,
    pub(crate) now: Duration,
    life: u64,
    /// Whether it names others: the first founded the network, and names nobody as long as it knows that.
    names_others: bool,
    pub(crate) disk: Disk,
    old: Rc<Disk>,
    /// What its containers have; they run on whatever happens to the peer.
    pub(crate) has: BTreeMap<IpAddr, String>,
}

/// How much of each may happen yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) requests: u16,
    pub(crate) starts: u16,
    pub(crate) copies: u16,
    pub(crate) ticks: u16,
}

#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) nodes: Vec<Node>,
    pub(crate) wire: BTreeSet<Letter>,
    pub(crate) left: Budget,
}

/// The rules of a search: which are broken, how peers may start again, and how much of all may happen.
pub(crate) struct Model {
    pub(crate) ablation: Ablation,
    pub(crate) with: &'static [With],
    pub(crate) budget: Budget,
}

impl Model {
    /// Three peers that have joined and agree.
    pub(crate) fn begin(&self) -> State {
        let mut world = World::new(1, &[0, 1, 1], &[RANGE]);
        world.ablation = self.ablation;
        world.start_all();
        world.run_for(Duration::from_secs(60));
        let nodes: Vec<Node> = (0..PEERS)
            .map(|at| {
                let (allocator, it) = (world.up(at).clone(), &world.nodes[at]);
                assert_eq!(allocator.panel().map(|(_, voters)| voters.len()), Some(PEERS));
                let (disk, old) = (it.disk.clone(), Rc::new(it.disk.clone()));
                Node { allocator, now: world.now, life: it.life, names_others: at > 0, disk, old, has: BTreeMap::new() }
            })
            .collect();
        let mut state = State { nodes, wire: BTreeSet::new(), left: self.budget };
        (0..PEERS).for_each(|at| drain(&mut state, at));
        state
    }

    /// All that may happen next.
    pub(crate) fn steps(&self, state: &State) -> Vec<Step> {
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

    /// The state after a step.
    pub(crate) fn next(&self, state: &State, step: &Step) -> State {
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
        node.names_others |= with == With::NoDisk;
        let named = usize::from(node.names_others);
        let config = Config::new(Peer(at as u8 + 1), node.life, vec![range()], named);
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
}

/// Does what a peer wants done.
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

/// What must not be, if it is so.
pub(crate) fn violation(state: &State) -> Option<String> {
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
