//! What the containers do: send frames, ask for addresses, give them back.

use super::book::Holder;
use super::clock::{MS, Time};
use super::dice::Dice;
use super::env::Env;
use super::faults::HEALED;
use super::host::{Host, holder};
use super::ledger::{BROADCAST, Mac, Order};
use super::queue::{Event, Index};
use super::world::ranges;

/// Time from one burst of frames to the next, while there are faults.
const EVERY: Time = 40 * MS;
/// Containers of a host that want addresses.
const TENANTS: usize = 6;

/// The behaviour of all containers.
#[derive(Debug)]
pub(super) struct Traffic {
    dice: Dice,
    addresses: bool,
    frames: Vec<Vec<u8>>,
}

impl Traffic {
    pub(super) fn new(seed: u64, addresses: bool) -> Self {
        Self { dice: Dice::new(seed, "traffic"), addresses, frames: Vec::new() }
    }

    /// Some containers do something; some time later again, until the faults are over.
    pub(super) fn tick(&mut self, hosts: &mut [Host], env: &mut Env) {
        let from = self.dice.index(hosts.len());
        let burst = if self.dice.chance(100) { 1 + self.dice.below(12) } else { 1 };
        let orders: Vec<Order> = (0..burst).filter_map(|_| self.order(from, hosts)).collect();
        self.send(&mut hosts[from], &orders, env);
        if self.addresses {
            let host = self.dice.index(hosts.len());
            self.tenant(&mut hosts[host], env);
        }
        if env.now + EVERY < HEALED {
            env.queue.push(env.now + EVERY, Event::Traffic);
        }
    }

    fn order(&mut self, from: usize, hosts: &[Host]) -> Option<Order> {
        let host = &hosts[from];
        let source = *host.macs.get(self.dice.index(host.macs.len()))?;
        let to = &hosts[self.dice.index(hosts.len())];
        let other = *to.macs.get(self.dice.index(to.macs.len()))?;
        let broadcast = self.dice.chance(300) || to.index == host.index;
        Some(Order {
            from: host.index,
            to: (!broadcast).then_some(to.index),
            source,
            destination: if broadcast { BROADCAST } else { other },
            tagged: self.dice.chance(100),
            size: self.size(),
        })
    }

    /// A frame of a container of this host, for a container of another or for everybody.
    pub(super) fn one(
        &mut self,
        from: &mut Host,
        to: Option<(Index, Mac)>,
        size: usize,
        env: &mut Env,
    ) -> Option<usize> {
        let order = Order {
            from: from.index,
            to: to.map(|to| to.0),
            source: *from.macs.first()?,
            destination: to.map_or(BROADCAST, |to| to.1),
            tagged: false,
            size,
        };
        self.send(from, &[order], env).first().copied()
    }

    /// A container says where it is now, as with gratuitous ARP.
    pub(super) fn announce(&mut self, host: &mut Host, source: Mac, env: &mut Env) {
        let (from, destination) = (host.index, BROADCAST);
        let order = Order { from, to: None, source, destination, tagged: false, size: 60 };
        self.send(host, &[order], env);
    }

    fn send(&mut self, host: &mut Host, orders: &[Order], env: &mut Env) -> Vec<usize> {
        if host.live.is_none() || host.paused {
            return Vec::new();
        }
        self.frames.resize(orders.len(), Vec::new());
        let ids = orders.iter().zip(&mut self.frames).map(|(order, bytes)| {
            let id = env.ledger.write(env.now, *order, bytes);
            let (size, to) = (bytes.len(), order.to.unwrap_or(Index::MAX));
            env.trace.peer(env.now, order.from, format_args!("sends frame {id} to p{to:02}, {size} bytes"));
            id
        });
        let ids = ids.collect();
        host.frames(&self.frames, env);
        ids
    }

    /// The size of a frame, in bytes.
    pub(super) fn size(&mut self) -> usize {
        match self.dice.below(10) {
            0..6 => 60 + self.dice.index(140),
            6..9 => 200 + self.dice.index(1200),
            _ => 1400 + self.dice.index(119),
        }
    }

    /// A container of this host asks for an address, or gives back what it has.
    fn tenant(&mut self, host: &mut Host, env: &mut Env) {
        let who = holder(host.index, self.dice.index(TENANTS));
        if host.live.is_none() || host.paused || env.book.waits(&who) {
            return;
        }
        match self.dice.below(10) {
            0..6 => ask(host, who, self.dice.index(2), env),
            6 => {
                let pick = self.dice.index(1000);
                claim(host, who, pick, env);
            }
            _ => free(host, &who, env),
        }
    }

    /// A router is back: it has to know what it gave. What it gave to a container that never heard
    /// of it is given back.
    pub(super) fn restarted(&mut self, host: &Host, env: &mut Env) {
        let known = host.known(&owners(host.index));
        if let Err(why) = env.book.restarted(host.index, &known) {
            env.ledger.fail(why);
        }
    }
}

/// The containers of a host that want addresses, by name.
fn owners(host: Index) -> Vec<String> {
    (0..TENANTS).map(|tenant| holder(host, tenant).owner).collect()
}

/// A container asks for an address of the first or second range.
pub(super) fn ask(host: &mut Host, who: Holder, range: usize, env: &mut Env) {
    let Some(range) = ranges().get(range).copied() else { return };
    let owner = who.owner.clone();
    let request = env.book.ask(who);
    env.trace.peer(env.now, host.index, format_args!("asks {request:?} for {owner} in {range}"));
    host.act(env, |live, now| {
        if let Some(allocator) = &mut live.allocator {
            allocator.allocate(request, &owner, range, now);
        }
    });
}

fn claim(host: &mut Host, who: Holder, pick: usize, env: &mut Env) {
    let Some(address) = env.book.any_held(pick) else { return };
    let owner = who.owner.clone();
    let request = env.book.ask(who);
    env.trace.peer(env.now, host.index, format_args!("claims {address} for {owner}, {request:?}"));
    host.act(env, |live, now| {
        if let Some(allocator) = &mut live.allocator {
            allocator.claim(request, &owner, address, now);
        }
    });
}

fn free(host: &mut Host, who: &Holder, env: &mut Env) {
    let mut freed = Vec::new();
    let (index, owner) = (host.index, &who.owner);
    // What is given back is free from the moment of the call on, even if the answer that gives
    // it to somebody else comes before the call returns.
    for address in host.known(std::slice::from_ref(owner)).into_keys() {
        env.book.release(address);
    }
    host.act(env, |live, now| {
        if let Some(allocator) = &mut live.allocator {
            freed = allocator.free(owner, None, now);
        }
    });
    env.trace.peer(env.now, index, format_args!("{owner} gives back {freed:?}"));
}
