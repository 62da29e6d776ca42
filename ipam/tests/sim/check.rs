//! What must hold, judged from outside: from answers alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipam::{AllocError, RequestId};
use ipnet::IpNet;

use super::Peer;

/// Longest time that a request may stay without an answer: ten seconds, and two of the slowest
/// writes (301 ms), of which the first was under way already.
const ANSWER_WITHIN: Duration = Duration::from_millis(10_603);

#[derive(Debug, Clone)]
struct Asked {
    peer: Peer,
    owner: String,
    at: Duration,
}

/// An address, the node that gave it, and for whom.
type Given = (IpAddr, Peer, String);

/// Who has which address, by what was answered.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    holders: BTreeMap<IpAddr, (Peer, String)>,
    asked: BTreeMap<RequestId, Asked>,
    /// What nodes gave and may not have on disk any more: until a start that finds it there.
    unrecorded: BTreeSet<(Peer, IpAddr)>,
    fenced: BTreeSet<Peer>,
    /// Of these, those that were removed for their silence: they have noticed before.
    silenced: BTreeSet<Peer>,
    /// Addresses of nodes that were removed: somebody else may get them.
    in_dispute: BTreeSet<(IpAddr, Peer)>,
    /// In which network each was given.
    given_in: BTreeMap<Given, String>,
    /// Addresses that were given once more in another network, before the two were one.
    twice: BTreeSet<Given>,
    /// In which network each node is.
    pub(crate) networks: BTreeMap<Peer, String>,
    /// Of those given twice, the ones given when both were in one network: the news was on its way.
    pub(crate) given_late: u64,
    /// All faults have ended, and all have met: nothing is given twice any more, wherever.
    pub(crate) met: bool,
    pub(crate) given_twice: u64,
    /// What a removed node gave before it knew, though somebody else has it by right.
    orphans: BTreeSet<Given>,
    pub(crate) given: u64,
    pub(crate) refused: BTreeMap<&'static str, u64>,
    pub(crate) violations: Vec<String>,
}

impl Checker {
    pub(crate) fn violation(&mut self, text: String) {
        self.violations.push(text);
    }

    pub(crate) fn asked(&mut self, request: RequestId, peer: Peer, owner: &str, at: Duration) {
        let owner = owner.to_owned();
        self.asked.insert(request, Asked { peer, owner, at });
    }

    /// For whom a request is.
    pub(crate) fn asker(&self, request: RequestId) -> &str {
        self.asked.get(&request).map_or("nobody", |asked| &asked.owner)
    }

    /// A host sleeps for so long: its requests wait longer.
    pub(crate) fn slept(&mut self, peer: Peer, time: Duration) {
        let waiting = self.asked.values_mut().filter(|asked| asked.peer == peer);
        waiting.for_each(|asked| asked.at += time);
    }

    pub(crate) fn cancelled(&mut self, request: RequestId) {
        self.asked.remove(&request);
    }

    /// The answers of a node that crashed will never come.
    pub(crate) fn crashed(&mut self, peer: Peer) {
        self.asked.retain(|_, asked| asked.peer != peer);
    }

    pub(crate) fn answered(
        &mut self,
        request: RequestId,
        result: &Result<IpNet, AllocError>,
        network: Option<String>,
        now: Duration,
    ) {
        let Some(asked) = self.asked.remove(&request) else {
            self.violation(format!("{request:?} was answered twice, or was not asked"));
            return;
        };
        if now > asked.at + ANSWER_WITHIN {
            self.violation(format!("{request:?} was answered after {:?}", now - asked.at));
        }
        match result {
            Ok(net) => self.gave(asked, *net, network.unwrap_or_default()),
            Err(error) => *self.refused.entry(kind(error)).or_default() += 1,
        }
    }

    fn gave(&mut self, asked: Asked, net: IpNet, network: String) {
        self.given += 1;
        let holder = (asked.peer, asked.owner);
        let given = (net.addr(), holder.0, holder.1.clone());
        if self.orphans.contains(&given) || self.twice.contains(&given) {
            return;
        }
        let others = self.others_of(&given);
        let elsewhere = |other: &Given| !self.met && self.given_in.get(other).is_some_and(|it| *it != network);
        let (elsewhere, here): (Vec<_>, Vec<_>) = others.into_iter().partition(elsewhere);
        if here.is_empty() && !elsewhere.is_empty() {
            self.gave_twice(given, &elsewhere, network);
            return;
        }
        self.given_in.entry(given.clone()).or_insert_with(|| network.clone());
        if self.silenced.contains(&holder.0) && self.holders.get(&net.addr()) != Some(&holder) {
            let text = format!("WITHOUT LEASE {} to {holder:?}, who is removed for its silence", net.addr());
            self.violation(text);
        }
        if here.is_empty() {
            if self.fenced.contains(&holder.0) {
                self.in_dispute.insert((net.addr(), holder.0));
            }
            self.holders.insert(net.addr(), holder);
        } else if self.fenced.contains(&holder.0) {
            // Its container has it from now on, and is told the same when it asks again.
            self.orphans.insert(given);
        } else if here.iter().all(|(at, peer, _)| self.in_dispute.contains(&(*at, *peer))) {
            for (at, peer, owner) in here {
                self.in_dispute.remove(&(at, peer));
                self.gone(at, peer, &owner);
                self.orphans.insert((at, peer, owner));
            }
            match elsewhere.is_empty() {
                true => _ = self.holders.insert(net.addr(), holder),
                false => self.gave_twice(given, &elsewhere, network),
            }
        } else {
            let text = format!("DUPLICATE {}: {here:?} and {holder:?}", net.addr());
            self.violation(text);
        }
    }

    /// An address is given in one network while it is in use in others.
    fn gave_twice(&mut self, given: Given, elsewhere: &[Given], network: String) {
        self.given_twice += 1;
        let here = self.networks.get(&given.1);
        let late = elsewhere.iter().any(|(_, peer, _)| self.networks.get(peer) == here);
        self.given_late += u64::from(late);
        self.given_in.insert(given.clone(), network);
        self.twice.insert(given);
    }

    /// All others that have the address that was given, if it was not given to the first of all before.
    fn others_of(&self, given: &Given) -> Vec<Given> {
        let first = self.holders.get(&given.0).map(|(peer, owner)| (given.0, *peer, owner.clone()));
        if first.as_ref() == Some(given) {
            return Vec::new();
        }
        let more = self.twice.iter().filter(|other| other.0 == given.0).cloned();
        first.into_iter().chain(more).collect()
    }

    /// Of those that have an address, one has it no more: if another one is left, it is that one's.
    fn gone(&mut self, address: IpAddr, peer: Peer, owner: &str) {
        let one = (address, peer, owner.to_owned());
        self.given_in.remove(&one);
        if self.twice.remove(&one) || self.holders.get(&address) != Some(&(one.1, one.2)) {
            return;
        }
        self.holders.remove(&address);
        let next = self.twice.iter().find(|(at, ..)| *at == address).cloned();
        if let Some((_, peer, owner)) = next.as_ref().filter(|next| self.twice.remove(*next)) {
            self.holders.insert(address, (*peer, owner.clone()));
        }
    }

    /// Whether a node that was removed has an address that another one has by right.
    pub(crate) fn is_orphaned(&self, address: IpAddr) -> bool {
        self.orphans.iter().any(|(at, ..)| *at == address)
    }

    /// Who has addresses that others have too.
    pub(crate) fn twice(&self) -> Vec<Given> {
        self.twice.iter().cloned().collect()
    }

    pub(crate) fn freed(&mut self, peer: Peer, owner: &str, freed: &[IpNet]) {
        for net in freed {
            self.orphans.remove(&(net.addr(), peer, owner.to_owned()));
            self.gone(net.addr(), peer, owner);
            // What it may get there again is no remainder of its removed life.
            self.in_dispute.remove(&(net.addr(), peer));
        }
    }

    /// A node's state is gone or old; its containers, which run on, keep their addresses.
    pub(crate) fn lost_state(&mut self, peer: Peer) {
        let held: Vec<IpAddr> = self.held_by(peer).into_iter().map(|(at, _)| at).collect();
        self.unrecorded.extend(held.into_iter().map(|at| (peer, at)));
    }

    /// A host is gone with its containers.
    pub(crate) fn died(&mut self, peer: Peer) {
        for (address, owner) in self.held_by(peer) {
            self.gone(address, peer, &owner);
        }
        self.in_dispute.retain(|(_, holder)| *holder != peer);
    }

    /// A node was removed, perhaps alive: until it knows, its frames are dropped by everybody,
    /// and what it has counts as had by nobody.
    pub(crate) fn fence(&mut self, peer: Peer) {
        self.fenced.insert(peer);
        // Also what it has beside others, who may be gone before somebody else gets it.
        let had = self.held_by(peer);
        self.in_dispute.extend(had.into_iter().map(|(address, _)| (address, peer)));
    }

    /// A node that was fenced was so for its silence.
    pub(crate) fn silenced(&mut self, peer: Peer) {
        self.silenced.insert(peer);
    }

    /// The node has begun another life.
    pub(crate) fn unfence(&mut self, peer: Peer) {
        self.fenced.remove(&peer);
        self.silenced.remove(&peer);
    }

    /// Compares what a node that came back lists with what it gave; returns what nobody has:
    /// recorded but never answered, or freed shortly before the crash.
    pub(crate) fn after_start(&mut self, peer: Peer, listed: &[(String, IpNet)]) -> Vec<(String, IpNet)> {
        let mut lost = Vec::new();
        for (address, owner) in self.held_by(peer) {
            let there = listed.iter().any(|(name, net)| *name == owner && net.addr() == address);
            if there {
                self.unrecorded.remove(&(peer, address));
            } else if !self.unrecorded.contains(&(peer, address)) {
                lost.push(format!("LOST {address} of {owner} at {peer:?}"));
            }
        }
        self.violations.extend(lost);
        let held = self.held_by(peer);
        let ghosts = listed.iter().filter(|(owner, net)| !held.contains(&(net.addr(), owner.clone())));
        ghosts.cloned().collect()
    }

    /// Nobody waits in vain.
    pub(crate) fn overdue(&mut self, now: Duration) {
        let overdue: Vec<String> = self
            .asked
            .iter()
            .filter(|(_, asked)| now > asked.at + ANSWER_WITHIN)
            .map(|(request, asked)| format!("UNANSWERED {request:?} {asked:?} at {now:?}"))
            .collect();
        self.violations.extend(overdue);
    }

    /// Addresses that somebody has, with the owner, of one node.
    pub(crate) fn held_by(&self, peer: Peer) -> Vec<(IpAddr, String)> {
        self.holders
            .iter()
            .filter(|(_, (holder, _))| *holder == peer)
            .map(|(address, (_, owner))| (*address, owner.clone()))
            .chain(
                self.twice.iter().filter(|(_, holder, _)| *holder == peer).map(|(at, _, owner)| (*at, owner.clone())),
            )
            .collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.holders.len()
    }
}

fn kind(error: &AllocError) -> &'static str {
    match error {
        AllocError::Exhausted { .. } => "exhausted",
        AllocError::OutOfRange { .. } => "out of range",
        AllocError::Reserved { .. } => "reserved",
        AllocError::InUse { .. } => "in use",
        AllocError::TimedOut { .. } => "timed out",
        AllocError::Storage(_) => "storage",
        AllocError::NoRange(_) => "no range",
        AllocError::HeldElsewhere { .. } => "held elsewhere",
        AllocError::Withdrawn { .. } => "withdrawn",
        _ => "other",
    }
}
