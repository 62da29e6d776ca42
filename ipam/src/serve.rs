//! Requests of this host: allocate, claim, free, look up.
//!
//! ```text
//!  request ─► served from held blocks ─► recorded ─► durable ─► reply     no message at all
//!      └────► pending ─► ask owners for blocks ─► served, refused, or timed out after 10 s
//! ```

use core::net::IpAddr;
use core::time::Duration;

use ipnet::IpNet;

use crate::journal::Effect;
use crate::machine::Machine;
use crate::space::{Given, REUSE_DELAY};
use crate::store::{self, Key, StoredAddress};
use crate::wire::{Net, Wanted};
use crate::{AllocError, RequestId};

/// How long a request may wait for blocks.
pub(crate) const REQUEST_LIFE: Duration = Duration::from_secs(10);
/// Longest name of an owner, in bytes.
pub(crate) const MAX_OWNER: usize = 1024;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Want {
    /// Any address of a network.
    Any(IpNet),
    /// This one.
    This(IpAddr),
}

/// A request that cannot be served yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pending {
    /// For whom.
    pub(crate) owner: String,
    /// What.
    pub(crate) want: Want,
    /// Since when.
    pub(crate) since: Duration,
    /// The blocks that would help.
    pub(crate) wanted: Wanted,
}

impl Machine {
    /// Asks for any address of a network.
    pub(crate) fn allocate(&mut self, request: RequestId, owner: &str, net: IpNet) {
        let net = net.trunc();
        let Some(index) = self.universe.containing(net) else {
            let ranges = self.universe.text();
            let why = format!("{net} lies in none of its ranges: {ranges}");
            return self.reply(request, Err(AllocError::NoRange(why)));
        };
        let range = &self.areas[index].range;
        let (first, last) = range.span(net).unwrap_or((0, 0));
        let wanted = Wanted {
            range: u16::try_from(index).unwrap_or(u16::MAX),
            lo: range.block_of(first),
            hi: range.block_of(last) + 1,
            address: None,
        };
        self.accept(request, owner, Want::Any(net), wanted);
    }

    /// Asks for a given address.
    pub(crate) fn claim(&mut self, request: RequestId, owner: &str, address: IpAddr) {
        let Some((index, offset)) = self.universe.find(address) else {
            let ranges = self.universe.text();
            return self.reply(request, Err(AllocError::OutOfRange { address, ranges }));
        };
        let range = &self.areas[index].range;
        if range.is_reserved(offset) {
            return self.reply(request, Err(AllocError::Reserved { address }));
        }
        let block = range.block_of(offset);
        let wanted = Wanted {
            range: u16::try_from(index).unwrap_or(u16::MAX),
            lo: block,
            hi: block + 1,
            address: Some(Net(IpNet::from(address))),
        };
        self.accept(request, owner, Want::This(address), wanted);
    }

    fn accept(&mut self, request: RequestId, owner: &str, want: Want, wanted: Wanted) {
        if owner.is_empty() || owner.len() > MAX_OWNER {
            let why = AllocError::BadOwner { bytes: owner.len(), most: MAX_OWNER };
            return self.reply(request, Err(why));
        }
        let pending = Pending { owner: owner.to_owned(), want, since: self.now, wanted };
        if !self.try_serve(request, &pending) {
            self.deadlines.push_back((self.now + REQUEST_LIFE, request));
            self.pending.insert(request, pending);
        }
    }

    /// Tries all pending requests, oldest first.
    pub(crate) fn serve_all(&mut self) {
        if self.pending.is_empty() || self.network.is_none() {
            return;
        }
        let mut waiting: Vec<(Duration, RequestId)> =
            self.pending.iter().map(|(&request, pending)| (pending.since, request)).collect();
        waiting.sort_unstable();
        for (_, request) in waiting {
            if let Some(pending) = self.pending.remove(&request)
                && !self.try_serve(request, &pending)
            {
                self.pending.insert(request, pending);
            }
        }
    }

    /// Serves or refuses a request, unless it has to wait.
    fn try_serve(&mut self, request: RequestId, pending: &Pending) -> bool {
        match &pending.want {
            Want::Any(net) => self.serve_any(request, &pending.owner, *net),
            Want::This(address) => self.serve_this(request, &pending.owner, *address),
        }
    }

    fn serve_any(&mut self, request: RequestId, owner: &str, net: IpNet) -> bool {
        let Some(index) = self.universe.containing(net) else {
            return false;
        };
        if let Some(offset) = self.given_before(owner, index, net) {
            self.answer(request, index, offset);
            return true;
        }
        if !self.may_give() {
            return false;
        }
        let area = &mut self.areas[index];
        let Some(offset) = area.space.lowest_free(&area.range, &area.ring, net) else {
            return false;
        };
        self.give(index, offset, owner, net, false);
        self.answer(request, index, offset);
        true
    }

    fn given_before(&self, owner: &str, index: usize, net: IpNet) -> Option<u128> {
        let places = self.owners.get(owner)?;
        places.iter().find_map(|&(at, offset)| {
            let given = self.areas[at].space.given(offset)?;
            (at == index && given.net == net).then_some(offset)
        })
    }

    fn serve_this(&mut self, request: RequestId, owner: &str, address: IpAddr) -> bool {
        let Some((index, offset)) = self.universe.find(address) else {
            return false;
        };
        let area = &self.areas[index];
        if let Some(given) = area.space.given(offset) {
            if given.owner == owner {
                self.answer(request, index, offset);
            } else {
                let owner = given.owner.clone();
                self.reply(request, Err(AllocError::InUse { address, owner }));
            }
            return true;
        }
        if let Some(owner) = self.kept_by(index, offset) {
            self.reply(request, Err(AllocError::InUse { address, owner }));
            return true;
        }
        // The reuse delay is for addresses that come up by chance; this one is meant.
        let held = area.ring.holds(area.range.block_of(offset));
        if !held || !self.may_give() {
            return false;
        }
        let net = area.range.net();
        self.give(index, offset, owner, net, false);
        self.answer(request, index, offset);
        true
    }

    /// Records an address as given; nothing has to wait for that if its owner has it already.
    fn give(&mut self, index: usize, offset: u128, owner: &str, net: IpNet, has_it: bool) {
        let area = &mut self.areas[index];
        let stored = StoredAddress::Given { owner: owner.to_owned(), net: Net(net) };
        let key = Key::Address(area.range.address(offset));
        let batch = self.journal.put(store::put(key, &stored));
        let batch = if has_it { 0 } else { batch };
        let given = Given { owner: owner.to_owned(), net, since: Some(self.now), batch };
        area.space.give(offset, given);
        self.owners.entry(owner.to_owned()).or_default().insert((index, offset));
    }

    /// Takes over what runs on the host, whatever the durable state says: an old copy of it, or
    /// none at all, does not know of what was given since (ipam I9).
    pub(crate) fn survey(&mut self, in_use: &[(String, IpAddr)]) {
        for (owner, address) in in_use {
            let Some((index, offset)) = self.universe.find(*address) else {
                continue;
            };
            let known = self.areas[index].space.given(offset).is_some();
            if !known && !owner.is_empty() && owner.len() <= MAX_OWNER {
                let net = self.areas[index].range.net();
                self.give(index, offset, owner, net, true);
            }
        }
        self.surveyed = true;
        self.keeping.look_again = true;
        self.wake = true;
    }

    /// Whether it is known what is in use of what an earlier life gave: from blocks that are this one's now, or of
    /// which others know only that it has something there. Before, neither addresses nor blocks are given (ipam I9).
    pub(crate) fn knows_what_is_in_use(&self) -> bool {
        self.surveyed || !(self.inherited || self.keeping.has_any(self.me.peer))
    }

    /// Answers a request with an address once it is durable.
    fn answer(&mut self, request: RequestId, index: usize, offset: u128) {
        let batch = self.areas[index].space.given(offset).map_or(0, |given| given.batch);
        self.answering.insert(request, (index, offset));
        self.hold(batch, Effect::Reply(request));
    }

    /// Answers a request with an address that is durable.
    pub(crate) fn reply_with(&mut self, request: RequestId, index: usize, offset: u128) {
        if let Some(net) = self.given_net(index, offset) {
            self.reply(request, Ok(net));
        }
    }

    fn given_net(&self, index: usize, offset: u128) -> Option<IpNet> {
        let area = &self.areas[index];
        let given = area.space.given(offset)?;
        let address = area.range.address(offset);
        IpNet::new(address, given.net.prefix_len()).ok()
    }

    /// The write up to `batch` failed: its requests are refused, their addresses taken back.
    pub(crate) fn undo(&mut self, batch: u64, requests: Vec<RequestId>, why: &str) {
        for request in requests {
            if let Some((index, offset)) = self.answering.remove(&request) {
                let given = self.areas[index].space.given(offset);
                if given.is_some_and(|given| given.batch <= batch) {
                    self.forget(index, offset);
                }
            }
            self.reply(request, Err(AllocError::Storage(why.to_owned())));
        }
    }

    fn take_back(&mut self, index: usize, offset: u128) {
        let area = &mut self.areas[index];
        if let Some(given) = area.space.release(offset, self.now + REUSE_DELAY) {
            let key = Key::Address(area.range.address(offset));
            self.journal.put(store::put(key, &StoredAddress::Freed));
            self.keeping.look_again |= self.keeping.has_any(self.me.peer);
            self.disown(&given.owner, index, offset);
        }
    }

    fn forget(&mut self, index: usize, offset: u128) {
        let area = &mut self.areas[index];
        if let Some(given) = area.space.forget(offset) {
            let key = Key::Address(area.range.address(offset));
            self.journal.put(store::delete(key));
            self.keeping.look_again |= self.keeping.has_any(self.me.peer);
            self.disown(&given.owner, index, offset);
        }
    }

    fn disown(&mut self, owner: &str, index: usize, offset: u128) {
        if let Some(places) = self.owners.get_mut(owner) {
            places.remove(&(index, offset));
            if places.is_empty() {
                self.owners.remove(owner);
            }
        }
    }

    /// Takes back one address of an owner, or all.
    pub(crate) fn free(&mut self, owner: &str, address: Option<IpAddr>) -> Vec<IpNet> {
        let place = address.map(|address| self.universe.find(address));
        let places: Vec<(usize, u128)> = self
            .owners
            .get(owner)
            .into_iter()
            .flatten()
            .copied()
            .filter(|&at| place.is_none_or(|place| place == Some(at)))
            .collect();
        let mut freed = Vec::new();
        for (index, offset) in places {
            freed.extend(self.given_net(index, offset));
            self.withdraw_answers(index, offset);
            self.take_back(index, offset);
        }
        freed
    }

    /// Refuses what was about to be answered: blocks of a life that is over may be another peer's.
    pub(crate) fn withdraw_new(&mut self) {
        for (request, (index, offset)) in core::mem::take(&mut self.answering) {
            self.journal.forget(request);
            let address = self.areas[index].range.address(offset);
            self.forget(index, offset);
            self.reply(request, Err(AllocError::Withdrawn { address }));
        }
    }

    /// Refuses what was about to be answered with an address that nobody was told of yet: without
    /// a lease its block may be another peer's by now (ipam I22).
    pub(crate) fn refuse_late(&mut self, request: RequestId) {
        if let Some((index, offset)) = self.answering.remove(&request) {
            let since = self.areas[index].space.given(offset).and_then(|given| given.since);
            self.forget(index, offset);
            let waited_s = since.map_or(0, |since| (self.now - since).as_secs());
            let waiting_for = self.lease_obstacle();
            self.reply(request, Err(AllocError::TimedOut { waited_s, waiting_for }));
        }
    }

    /// Refuses the requests that were about to be answered with an address.
    fn withdraw_answers(&mut self, index: usize, offset: u128) {
        let requests: Vec<RequestId> =
            self.answering.iter().filter_map(|(&request, &at)| (at == (index, offset)).then_some(request)).collect();
        let address = self.areas[index].range.address(offset);
        for request in requests {
            self.answering.remove(&request);
            self.journal.forget(request);
            self.reply(request, Err(AllocError::Withdrawn { address }));
        }
    }

    /// The addresses of an owner.
    pub(crate) fn lookup(&self, owner: &str) -> Vec<IpNet> {
        self.owners
            .get(owner)
            .into_iter()
            .flatten()
            .filter_map(|&(index, offset)| self.given_net(index, offset))
            .collect()
    }

    /// Forgets a request. The address that it was about to get is taken back: kept for an owner that
    /// was never told, it would be told to a later request of it when the block is another peer's.
    pub(crate) fn cancel(&mut self, request: RequestId) {
        self.pending.remove(&request);
        self.journal.forget(request);
        if let Some(place) = self.answering.remove(&request)
            && !self.answering.values().any(|other| *other == place)
        {
            self.take_back(place.0, place.1);
        }
    }

    /// Ends the reuse delay of addresses.
    pub(crate) fn cool_down(&mut self) {
        for index in 0..self.areas.len() {
            let area = &mut self.areas[index];
            for offset in area.space.cooled(self.now) {
                let key = Key::Address(self.areas[index].range.address(offset));
                self.journal.put_lazily(store::delete(key), self.now);
                self.wake = true;
                self.keeping.look_again |= self.keeping.has_any(self.me.peer);
            }
        }
    }

    /// Refuses requests that waited too long.
    pub(crate) fn expire_requests(&mut self) {
        while let Some(&(at, request)) = self.deadlines.front() {
            let waits = self.pending.contains_key(&request);
            if at > self.now && waits {
                return;
            }
            self.deadlines.pop_front();
            if let Some(pending) = self.pending.remove(&request) {
                let waiting_for = self.obstacle(&pending.wanted);
                let why = AllocError::TimedOut { waited_s: (self.now - pending.since).as_secs(), waiting_for };
                self.reply(request, Err(why));
            }
        }
    }
}
