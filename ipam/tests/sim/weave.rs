//! A plain model of the rules of Weave Net's address ring, to show that the faults of the
//! schedules are real: it gives addresses twice under them.
//!
//! ```text
//!  ring   start → (peer, version); a peer owns from its token to the next one
//!  give   half of the biggest free run: a token of the asker with a raised version
//!  merge  per token the higher version; a newer token, or a new one, in a range of one's own, or
//!         equal versions of different peers: an error, and the whole ring that was sent is refused
//!  rmpeer the peer that is told takes over all tokens of the other, with raised versions
//! ```
//!
//! Everything is durable before it is answered or sent, and a write that fails is made again.

#![expect(clippy::unwrap_used, reason = "a model for tests, which reads what it wrote itself")]

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use ipam::allocator::{Config, Summary};
use ipam::{AllocError, Change, Output, RequestId, Ticket};
use ipnet::IpNet;
use minicbor::{Decode, Encode};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::{Disk, Peer};

const GOSSIP: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
struct Token {
    #[n(0)]
    peer: u8,
    #[n(1)]
    version: u64,
}

type Ring = BTreeMap<u64, Token>;

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
enum Message {
    #[n(0)]
    Hello,
    #[n(1)]
    Rings(#[n(0)] Vec<Ring>),
    #[n(2)]
    Ask(#[n(0)] u8),
}

#[derive(Debug, Clone, Copy)]
enum Want {
    Any(IpNet),
    This(IpAddr),
}

#[derive(Debug, Clone)]
struct Pending {
    owner: String,
    want: Want,
    until: Duration,
}

/// One peer.
#[derive(Debug)]
pub(crate) struct Weave {
    pub(crate) life: u64,
    me: Peer,
    nets: Vec<IpNet>,
    rings: Vec<Ring>,
    given: BTreeMap<IpAddr, String>,
    peers: Vec<Peer>,
    pending: BTreeMap<RequestId, Pending>,
    out: VecDeque<Output<Peer>>,
    /// What may leave once a write is durable.
    held: Vec<(u64, Output<Peer>)>,
    writes: BTreeMap<u64, Vec<Change>>,
    next_ticket: u64,
    next_gossip: Duration,
    next_ask: Duration,
    rng: ChaCha8Rng,
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn length(net: IpNet) -> u64 {
    1u64.checked_shl(u32::from(net.max_prefix_len() - net.prefix_len())).unwrap_or(u64::MAX)
}

fn address_at(net: IpNet, offset: u64) -> IpAddr {
    let at = bits(net.network()) + u128::from(offset);
    match net {
        IpNet::V4(_) => IpAddr::V4((at as u32).into()),
        IpNet::V6(_) => IpAddr::V6(at.into()),
    }
}

fn offset_in(net: IpNet, address: IpAddr) -> Option<u64> {
    net.contains(&address).then(|| (bits(address) - bits(net.network())) as u64)
}

fn address_key(address: IpAddr) -> Vec<u8> {
    format!("addr {address}").into_bytes()
}

/// What a ring gives to a peer, as `(lo, hi)`.
fn owned(ring: &Ring, peer: u8, end: u64) -> Vec<(u64, u64)> {
    let ends = ring.keys().copied().skip(1).chain([end]);
    ring.iter().zip(ends).filter(|((_, token), _)| token.peer == peer).map(|((&lo, _), hi)| (lo, hi)).collect()
}

impl Weave {
    pub(crate) fn new(config: &Config<Peer>, disk: &Disk, seed: [u8; 32], now: Duration) -> Self {
        let mut it = Self {
            life: config.incarnation,
            me: config.me,
            nets: config.ranges.clone(),
            rings: vec![Ring::new(); config.ranges.len()],
            given: BTreeMap::new(),
            peers: Vec::new(),
            pending: BTreeMap::new(),
            out: VecDeque::new(),
            held: Vec::new(),
            writes: BTreeMap::new(),
            next_ticket: 0,
            next_gossip: now,
            next_ask: now,
            rng: ChaCha8Rng::from_seed(seed),
        };
        for (key, value) in disk {
            match std::str::from_utf8(key).unwrap().strip_prefix("addr ") {
                Some(address) => {
                    it.given.insert(address.parse().unwrap(), String::from_utf8(value.clone()).unwrap());
                }
                None => it.rings = minicbor::decode(value).unwrap(),
            }
        }
        if config.named_peers == 0 && disk.is_empty() {
            let all = Ring::from([(0, Token { peer: it.me.0, version: 0 })]);
            it.rings.fill(all);
            it.keep_rings();
        }
        it
    }

    fn write(&mut self, changes: Vec<Change>) {
        self.next_ticket += 1;
        self.writes.insert(self.next_ticket, changes.clone());
        self.out.push_back(Output::Store { ticket: Ticket(self.next_ticket), changes });
    }

    fn keep_rings(&mut self) {
        let value = minicbor::to_vec(&self.rings).unwrap();
        self.write(vec![Change { key: b"rings".to_vec(), value: Some(value) }]);
    }

    /// After all that was written until now.
    fn after_writes(&mut self, output: Output<Peer>) {
        match self.writes.last_key_value() {
            Some((&ticket, _)) => self.held.push((ticket, output)),
            None => self.out.push_back(output),
        }
    }

    pub(crate) fn handle_stored(&mut self, ticket: Ticket, result: &Result<(), String>) {
        let Some(changes) = self.writes.get(&ticket.0) else {
            return;
        };
        if result.is_err() {
            self.out.push_back(Output::Store { ticket, changes: changes.clone() });
            return;
        }
        self.writes.remove(&ticket.0);
        let first = self.writes.first_key_value().map_or(u64::MAX, |(&first, _)| first);
        let (free, held) = std::mem::take(&mut self.held).into_iter().partition(|&(needs, _)| needs < first);
        self.held = held;
        let free: Vec<(u64, Output<Peer>)> = free;
        self.out.extend(free.into_iter().map(|(_, output)| output));
    }

    fn send(&mut self, to: Peer, message: &Message) {
        let bytes = minicbor::to_vec(message).unwrap();
        self.after_writes(Output::Send { to, bytes });
    }

    fn tell_all(&mut self) {
        let bytes = minicbor::to_vec(Message::Rings(self.rings.clone())).unwrap();
        self.after_writes(Output::Broadcast { bytes });
    }

    pub(crate) fn handle_peers(&mut self, peers: &[(Peer, u64)], now: Duration) {
        let new: Vec<Peer> = peers.iter().map(|&(peer, _)| peer).filter(|peer| !self.peers.contains(peer)).collect();
        self.peers = peers.iter().map(|&(peer, _)| peer).collect();
        for peer in new {
            self.gossip_to(peer);
        }
        self.handle_timeout(now);
    }

    fn has_ring(&self) -> bool {
        self.rings.iter().all(|ring| !ring.is_empty())
    }

    fn gossip_to(&mut self, peer: Peer) {
        let message = if self.has_ring() { Message::Rings(self.rings.clone()) } else { Message::Hello };
        self.send(peer, &message);
    }

    pub(crate) fn handle_message(&mut self, from: Peer, bytes: &[u8], now: Duration) {
        match minicbor::decode(bytes).unwrap() {
            Message::Hello if self.has_ring() => self.gossip_to(from),
            Message::Hello => {}
            Message::Rings(theirs) => self.merge(&theirs),
            Message::Ask(range) => self.donate(from, usize::from(range)),
        }
        self.serve(now);
    }

    fn merge(&mut self, theirs: &[Ring]) {
        let mut merged = self.rings.clone();
        for ((ours, theirs), net) in merged.iter_mut().zip(theirs).zip(&self.nets) {
            let mine = owned(ours, self.me.0, length(*net));
            for (&at, token) in theirs {
                match ours.get(&at) {
                    Some(known) if known.version == token.version && known.peer != token.peer => return,
                    Some(known) if known.version < token.version && known.peer == self.me.0 => return,
                    Some(known) if known.version >= token.version => continue,
                    None if mine.iter().any(|&(lo, hi)| (lo..hi).contains(&at)) => return,
                    _ => ours.insert(at, *token),
                };
            }
        }
        if merged != self.rings {
            self.rings = merged;
            self.keep_rings();
            self.tell_all();
        }
    }

    fn donate(&mut self, to: Peer, range: usize) {
        let (ring, net) = (&mut self.rings[range], self.nets[range]);
        let used: Vec<u64> = self.given.keys().filter_map(|&address| offset_in(net, address)).collect();
        let mut best = (0, 0);
        for (lo, hi) in owned(ring, self.me.0, length(net)) {
            let mut at = lo;
            for busy in used.iter().copied().filter(|busy| (lo..hi).contains(busy)).chain([hi]) {
                best = if busy - at > best.1 - best.0 { (at, busy) } else { best };
                at = busy.saturating_add(1);
            }
        }
        let (lo, hi) = best;
        if lo == hi {
            return self.gossip_to(to);
        }
        let start = lo + (hi - lo) / 2;
        let version = ring.get(&start).map_or(0, |token| token.version + 1);
        ring.insert(start, Token { peer: to.0, version });
        if hi < length(net) {
            ring.entry(hi).or_insert(Token { peer: self.me.0, version: 0 });
        }
        self.keep_rings();
        self.tell_all();
    }

    pub(crate) fn remove_peer(&mut self, peer: Peer) -> Result<(), String> {
        for token in self.rings.iter_mut().flat_map(Ring::values_mut).filter(|token| token.peer == peer.0) {
            *token = Token { peer: self.me.0, version: token.version + 1 };
        }
        self.keep_rings();
        self.tell_all();
        Ok(())
    }

    pub(crate) fn survey(&mut self, in_use: &[(String, IpAddr)]) {
        for (owner, address) in in_use {
            self.give(*address, owner);
        }
    }

    fn give(&mut self, address: IpAddr, owner: &str) {
        if self.given.insert(address, owner.to_owned()).is_none() {
            self.write(vec![Change { key: address_key(address), value: Some(owner.as_bytes().to_vec()) }]);
        }
    }

    pub(crate) fn free(&mut self, owner: &str, address: Option<IpAddr>) -> Vec<IpNet> {
        let freed = self.lookup(owner);
        let freed: Vec<IpNet> = freed.into_iter().filter(|net| address.is_none_or(|it| it == net.addr())).collect();
        for net in &freed {
            self.given.remove(&net.addr());
            self.write(vec![Change { key: address_key(net.addr()), value: None }]);
        }
        freed
    }

    pub(crate) fn allocate(&mut self, request: RequestId, owner: &str, range: IpNet, now: Duration) {
        self.ask(request, owner, Want::Any(range), now);
    }

    pub(crate) fn claim(&mut self, request: RequestId, owner: &str, address: IpAddr, now: Duration) {
        self.ask(request, owner, Want::This(address), now);
    }

    fn ask(&mut self, request: RequestId, owner: &str, want: Want, now: Duration) {
        self.pending.insert(request, Pending { owner: owner.to_owned(), want, until: now + PATIENCE });
        self.next_ask = now;
        self.handle_timeout(now);
    }

    pub(crate) fn cancel(&mut self, request: RequestId) {
        self.pending.remove(&request);
        self.held.retain(|(_, output)| !matches!(output, Output::Reply { request: held, .. } if *held == request));
    }

    fn index_of(&self, want: Want) -> usize {
        let address = match want {
            Want::Any(net) => net.network(),
            Want::This(address) => address,
        };
        self.nets.iter().position(|net| net.contains(&address)).expect("the schedules ask within the ranges")
    }

    fn answer(&mut self, request: RequestId, result: Result<IpAddr, AllocError>, net: IpNet) {
        let result = result.map(|address| IpNet::new(address, net.prefix_len()).unwrap());
        self.pending.remove(&request);
        self.after_writes(Output::Reply { request, result });
    }

    fn serve(&mut self, now: Duration) {
        for (request, Pending { owner, want, until }) in self.pending.clone() {
            let index = self.index_of(want);
            let net = self.nets[index];
            let mine = owned(&self.rings[index], self.me.0, length(net));
            match want {
                _ if now >= until => {
                    let why = AllocError::TimedOut { waited_s: 10, waiting_for: "the ring".to_owned() };
                    self.answer(request, Err(why), net);
                }
                Want::This(address) => match self.given.get(&address) {
                    Some(holder) if *holder != owner => {
                        self.answer(request, Err(AllocError::InUse { address, owner: holder.clone() }), net);
                    }
                    Some(_) => self.answer(request, Ok(address), net),
                    None if offset_in(net, address)
                        .is_some_and(|at| mine.iter().any(|&(lo, hi)| lo <= at && at < hi)) =>
                    {
                        self.give(address, &owner);
                        self.answer(request, Ok(address), net);
                    }
                    None if self.has_ring() => {
                        self.answer(request, Err(AllocError::HeldElsewhere { address, peer: String::new() }), net);
                    }
                    None => {}
                },
                Want::Any(part) => {
                    let before =
                        self.given.iter().find(|(address, holder)| **holder == owner && part.contains(*address));
                    let found = before.map(|(&address, _)| address).or_else(|| self.lowest_free(net, part, &mine));
                    if let Some(address) = found {
                        self.give(address, &owner);
                        self.answer(request, Ok(address), part);
                    }
                }
            }
        }
    }

    fn lowest_free(&self, net: IpNet, part: IpNet, mine: &[(u64, u64)]) -> Option<IpAddr> {
        let first = offset_in(net, part.network())?;
        let last = first + (length(part) - 1);
        for &(lo, hi) in mine {
            for at in lo.max(first)..hi.min(last.saturating_add(1)) {
                let address = address_at(net, at);
                if at > first && at < last && at > 0 && at < length(net) - 1 && !self.given.contains_key(&address) {
                    return Some(address);
                }
            }
        }
        None
    }

    fn any(&mut self, peers: &[Peer]) -> Option<Peer> {
        let at = self.rng.next_u64() % (peers.len() as u64).max(1);
        peers.get(at as usize).copied()
    }

    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        if now >= self.next_gossip {
            self.next_gossip = now + if self.has_ring() { GOSSIP } else { ASK_AGAIN };
            let peers = self.peers.clone();
            if let Some(peer) = self.any(&peers) {
                self.gossip_to(peer);
            }
        }
        self.serve(now);
        if now >= self.next_ask {
            self.next_ask = now + ASK_AGAIN;
            let wants: Vec<Want> = self.pending.values().map(|pending| pending.want).collect();
            for want in wants {
                let index = self.index_of(want);
                let owners = self.rings[index].values();
                let mut owners: Vec<Peer> = owners.map(|token| Peer(token.peer)).collect();
                owners.retain(|peer| *peer != self.me && self.peers.contains(peer));
                if let Some(peer) = self.any(&owners) {
                    self.send(peer, &Message::Ask(index as u8));
                }
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        let ends = self.pending.values().map(|pending| pending.until).min();
        let ask = ends.map(|at| at.min(self.next_ask));
        Some(ask.map_or(self.next_gossip, |at| at.min(self.next_gossip)))
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output<Peer>> {
        self.out.pop_front()
    }

    pub(crate) fn lookup(&self, owner: &str) -> Vec<IpNet> {
        let all = self.summary().allocations.into_iter();
        all.filter(|(name, ..)| name == owner).map(|(_, net, _)| net).collect()
    }

    pub(crate) fn network(&self) -> Option<String> {
        self.has_ring().then(|| "ring".to_owned())
    }

    pub(crate) fn readiness(&self) -> Result<(), String> {
        if self.has_ring() { Ok(()) } else { Err("waiting for a ring".to_owned()) }
    }

    pub(crate) fn summary(&self) -> Summary<Peer> {
        let net_of = |address: &IpAddr| {
            let net = self.nets.iter().find(|net| net.contains(address)).expect("given from one");
            IpNet::new(*address, net.prefix_len()).unwrap()
        };
        Summary {
            ranges: self.nets.clone(),
            network: self.network(),
            owned: 0,
            free: 0,
            used: self.given.len() as u64,
            cooling: 0,
            peers: Vec::new(),
            allocations: self.given.iter().map(|(at, owner)| (owner.clone(), net_of(at), None)).collect(),
            away: Vec::new(),
            contests: Vec::new(),
            problems: Vec::new(),
        }
    }
}
