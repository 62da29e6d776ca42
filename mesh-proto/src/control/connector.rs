//! Whom to dial, where, and when again.
//!
//! ```text
//!  targets (operator) ── resolve ─► addresses in turn ─┐
//!  records (gossip)   ── wanted? ─► endpoints in turn ─┼─► Dial … failed ─► backoff with jitter
//!  routes (no link)   ── lower id first ─► relayed ────┘
//! ```
//!
//! One attempt per peer at a time. Dials that may well be in vain, to peers that are reached
//! through relays anyway, are few (control C19). Among the wanted peers are always the next two in the order
//! of ids, so that the graph of dials is connected however few links a peer may have (control
//! C20); the others are picked by a seeded hash.

use core::net::SocketAddr;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use rand_chacha::ChaCha20Rng;

use super::DialId;
use super::backoff::{Backoff, Pace, jitter, lately};
use super::limits::{
    BACKOFF_LATELY, BACKOFF_MIN, BACKOFF_NAMED, DIAL, DIAL_HIGHER_AFTER, FULL_FOR, MET_MAX, PROACTIVE_MAX,
    RELAY_HIGHER_AFTER, SELF_MAX, SESSION_WANTED, TARGETS_MAX, UPGRADE_EVERY,
};
use super::wanted::{Standing, View, wanted};
use crate::data::Hop;
use crate::id::PeerId;

/// What a dial is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Goal {
    /// A peer that the operator named.
    Target(String),
    /// A peer that gossip told of.
    Peer(PeerId),
    /// A peer that is reached through relays only.
    Relay(PeerId),
    /// A peer whose link works, but whose connection may not follow it to its new address.
    Renew(PeerId),
}

/// A connection that is made anew under a link that works.
#[derive(Debug)]
struct Renewal {
    address: SocketAddr,
    backoff: Backoff,
}

/// What the connector asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Dial there.
    Dial(DialId, Hop),
    /// Resolve that target.
    Resolve(String),
}

/// A peer that the operator named.
#[derive(Debug)]
struct Target {
    /// Addresses of this round that were not tried yet, next last.
    left: Vec<SocketAddr>,
    /// Until when an answer of the resolver is waited for.
    resolving: Option<Duration>,
    backoff: Backoff,
    /// Who was found there.
    peer: Option<PeerId>,
    /// Every address that it resolved to last.
    addresses: Vec<SocketAddr>,
    reason: String,
    added: Duration,
}

#[derive(Debug, Default)]
struct PeerDial {
    direct: Backoff,
    relay: Backoff,
    /// Which endpoint is next in this round.
    next: usize,
    /// When it was last linked or heard of.
    seen: Option<Duration>,
    /// When it was last linked.
    linked: Option<Duration>,
    /// It said that it has links enough.
    full_until: Duration,
    /// Was wanted before: the first time the higher id waits.
    met: bool,
    relay_met: bool,
    reason: Option<String>,
}

#[derive(Debug)]
struct Attempt {
    goal: Goal,
    hop: Hop,
    until: Duration,
    /// It may well be in vain: the peer is reached through relays, and had no link lately.
    upgrade: bool,
}

/// Whom an operator does not want to be dialled any more.
#[derive(Debug, Default)]
struct Ban {
    peers: BTreeSet<PeerId>,
    addresses: BTreeSet<SocketAddr>,
}

/// What the operator may see of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetInfo {
    /// As the operator wrote it.
    pub target: String,
    /// Who was found there.
    pub peer: Option<PeerId>,
    /// Whether a dial is under way.
    pub dialling: bool,
    /// The last failure, if the last attempt failed.
    pub reason: String,
    /// When the next attempt follows.
    pub next: Duration,
}

/// The connector of a node.
#[derive(Debug)]
pub(crate) struct Connector {
    targets: BTreeMap<String, Target>,
    peers: BTreeMap<PeerId, PeerDial>,
    /// With whom a session is wanted because frames wait for it, and until when.
    sessions: BTreeMap<PeerId, Duration>,
    upgrades: Pace,
    /// Whose attempts or failures have changed since [`Connector::take_touched`].
    touched: BTreeSet<PeerId>,
    attempts: BTreeMap<DialId, Attempt>,
    bans: BTreeMap<String, Ban>,
    /// Addresses at which we met ourselves.
    ours: BTreeSet<SocketAddr>,
    /// Who was met at addresses that others are said to have.
    met: BTreeMap<SocketAddr, PeerId>,
    renewals: BTreeMap<PeerId, Renewal>,
    dials: u64,
}

impl Default for Connector {
    fn default() -> Self {
        Self {
            targets: BTreeMap::new(),
            peers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            upgrades: Pace::new(UPGRADE_EVERY),
            touched: BTreeSet::new(),
            attempts: BTreeMap::new(),
            bans: BTreeMap::new(),
            ours: BTreeSet::new(),
            met: BTreeMap::new(),
            renewals: BTreeMap::new(),
            dials: 0,
        }
    }
}

impl Connector {
    /// Names a target. False if there are too many.
    pub(crate) fn add_target(&mut self, target: &str, now: Duration) -> bool {
        self.bans.remove(target);
        if self.targets.len() >= TARGETS_MAX && !self.targets.contains_key(target) {
            return false;
        }
        self.targets.entry(target.to_owned()).or_insert_with(|| Target {
            left: Vec::new(),
            resolving: None,
            backoff: Backoff { failures: 0, due: now },
            peer: None,
            addresses: Vec::new(),
            reason: String::new(),
            added: now,
        });
        true
    }

    /// Takes a target back; gives whom it stood for, or `None` if it was no target.
    pub(crate) fn remove_target(&mut self, target: &str) -> Option<(Option<PeerId>, Vec<SocketAddr>)> {
        let old = self.targets.remove(target)?;
        self.attempts.retain(|_, attempt| attempt.goal != Goal::Target(target.to_owned()));
        if self.bans.len() < TARGETS_MAX {
            let ban = Ban { peers: old.peer.into_iter().collect(), addresses: old.addresses.iter().copied().collect() };
            self.bans.insert(target.to_owned(), ban);
        }
        Some((old.peer, old.addresses))
    }

    /// Nobody shall be dialled any more.
    pub(crate) fn stop(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn targets(&self) -> Vec<TargetInfo> {
        let dialling = |name: &String| self.attempts.values().any(|attempt| attempt.goal == Goal::Target(name.clone()));
        self.targets
            .iter()
            .map(|(name, target)| TargetInfo {
                target: name.clone(),
                peer: target.peer,
                dialling: target.resolving.is_some() || dialling(name),
                reason: target.reason.clone(),
                next: target.backoff.due,
            })
            .collect()
    }

    /// A dial came to nothing, or its connection to no link.
    pub(crate) fn failed(&mut self, dial: DialId, reason: &str, now: Duration, rng: &mut ChaCha20Rng) {
        let Some(attempt) = self.end_attempt(dial) else { return };
        match attempt.goal {
            Goal::Target(name) => {
                let cap = self.target_cap(&name, now);
                let Some(target) = self.targets.get_mut(&name) else { return };
                reason.clone_into(&mut target.reason);
                if target.left.is_empty() {
                    target.backoff.failed_at_most(cap, now, rng);
                }
            }
            Goal::Peer(peer) => {
                let dial = self.peers.entry(peer).or_default();
                dial.reason = Some(reason.to_owned());
                // `next` wraps to zero at the last endpoint (see `tick_peers`). With a relay there
                // is no hurry: one endpoint at a time.
                if attempt.upgrade {
                    dial.direct.failed_at_most(UPGRADE_EVERY, now, rng);
                } else if dial.next == 0 {
                    dial.direct.failed(dial.linked, now, rng);
                }
            }
            Goal::Relay(peer) => {
                let dial = self.peers.entry(peer).or_default();
                dial.relay.failed(dial.seen, now, rng);
            }
            Goal::Renew(peer) => {
                if let Some(renewal) = self.renewals.get_mut(&peer) {
                    // The link works, so the peer is there.
                    renewal.backoff.failed(Some(now), now, rng);
                }
            }
        }
    }

    fn end_attempt(&mut self, dial: DialId) -> Option<Attempt> {
        let attempt = self.attempts.remove(&dial)?;
        self.touched.extend(self.stands_for(&attempt.goal));
        Some(attempt)
    }

    /// The peers whose attempts or failures have changed since the last call.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<PeerId> {
        core::mem::take(&mut self.touched)
    }

    /// A linked peer has another address now, and our connection may not follow: one more is made
    /// at once, and until it stands the link stays as it is (control C12).
    pub(crate) fn renew(&mut self, peer: PeerId, address: SocketAddr, now: Duration) {
        self.attempts.retain(|_, attempt| attempt.goal != Goal::Renew(peer));
        self.renewals.insert(peer, Renewal { address, backoff: Backoff { failures: 0, due: now } });
    }

    fn tick_renewals(&mut self, view: &View<'_>, now: Duration, plan: &mut Plan) {
        self.renewals.retain(|peer, _| view.connected(peer));
        let idle = |peer: &PeerId| !self.attempts.values().any(|attempt| attempt.goal == Goal::Renew(*peer));
        let waiting: Vec<(PeerId, SocketAddr, Duration)> = self
            .renewals
            .iter()
            .filter(|(peer, _)| idle(peer))
            .map(|(peer, renewal)| (*peer, renewal.address, renewal.backoff.due))
            .collect();
        for (peer, address, due) in waiting {
            if due > now {
                plan.wake_at(due);
            } else {
                self.dial(Goal::Renew(peer), Hop::Direct(address), false, now, plan);
            }
        }
    }

    /// The longest wait for a target: the operator wants it, so the waits are short, and shortest if
    /// it was linked, or named, just now.
    fn target_cap(&self, target: &str, now: Duration) -> Duration {
        let target = self.targets.get(target);
        let linked = target.and_then(|target| self.peers.get(&target.peer?)?.linked);
        let since = linked.or(target.map(|target| target.added));
        if lately(since, now) { BACKOFF_LATELY } else { BACKOFF_NAMED }
    }

    /// The dial led to a proven peer.
    pub(crate) fn proven(&mut self, dial: DialId, found: PeerId, now: Duration, rng: &mut ChaCha20Rng) {
        match self.attempts.get(&dial).map(|attempt| (&attempt.goal, attempt.hop)) {
            Some((Goal::Target(name), _)) => {
                let name = name.clone();
                if let Some(target) = self.targets.get_mut(&name) {
                    target.peer = Some(found);
                    target.left.clear();
                    target.reason.clear();
                }
                self.end_attempt(dial);
            }
            Some((Goal::Peer(wanted), hop)) if *wanted != found => {
                let reason = format!("{} is peer {}", describe(&hop), found.short());
                if let Hop::Direct(address) = hop
                    && (self.met.len() < MET_MAX || self.met.contains_key(&address))
                {
                    self.met.insert(address, found);
                }
                self.failed(dial, &reason, now, rng);
            }
            Some((Goal::Renew(peer), _)) => {
                let peer = *peer;
                self.renewals.remove(&peer);
                self.end_attempt(dial);
            }
            _ => {
                if self.end_attempt(dial).is_some_and(|attempt| attempt.upgrade) {
                    self.upgrades.give_back();
                }
            }
        }
        self.peers.entry(found).or_default().seen = Some(now);
    }

    /// The dial led to ourselves.
    pub(crate) fn met_self(&mut self, dial: DialId, now: Duration, rng: &mut ChaCha20Rng) {
        if let Some(Hop::Direct(address)) = self.attempts.get(&dial).map(|attempt| attempt.hop)
            && self.ours.len() < SELF_MAX
        {
            self.ours.insert(address);
        }
        self.failed(dial, "this address is this very peer", now, rng);
    }

    /// One of the two has links enough, and they can reach each other without.
    pub(crate) fn is_full(&mut self, dial: Option<DialId>, peer: PeerId, now: Duration, rng: &mut ChaCha20Rng) {
        self.peers.entry(peer).or_default().full_until = now + FULL_FOR;
        let Some(dial) = dial else { return };
        if self.attempts.get(&dial).is_some_and(|attempt| attempt.upgrade) {
            // It answered.
            self.upgrades.give_back();
        }
        if let Some(Goal::Target(name)) = self.attempts.get(&dial).map(|attempt| &attempt.goal)
            && let Some(target) = self.targets.get_mut(name)
        {
            target.peer = Some(peer);
            target.left.clear();
        }
        self.failed(dial, "it has links enough", now, rng);
    }

    /// Whether a dial of that name is under way.
    pub(crate) fn awaits(&self, dial: DialId) -> bool {
        self.attempts.contains_key(&dial)
    }

    /// A link to that peer works: all is forgiven.
    pub(crate) fn linked(&mut self, peer: PeerId, now: Duration) {
        let dial = self.peers.entry(peer).or_default();
        dial.direct.reset(now);
        dial.relay.reset(now);
        (dial.seen, dial.linked) = (Some(now), Some(now));
        (dial.next, dial.reason) = (0, None);
        self.sessions.remove(&peer);
        self.touched.insert(peer);
        for target in self.targets.values_mut().filter(|target| target.peer == Some(peer)) {
            target.backoff.reset(now);
            target.left.clear();
            target.reason.clear();
        }
    }

    /// A connection to that peer was lost. If it had become a link, or died in peace, the first
    /// attempt follows after the shortest wait; else it counts as one more failure.
    pub(crate) fn lost(&mut self, peer: PeerId, was_up: bool, reason: &str, now: Duration, rng: &mut ChaCha20Rng) {
        self.touched.insert(peer);
        let dial = self.peers.entry(peer).or_default();
        dial.reason = Some(reason.to_owned());
        if was_up {
            (dial.seen, dial.linked) = (Some(now), Some(now));
            dial.direct.reset(now + jitter(BACKOFF_MIN, rng));
        } else {
            dial.direct.failed(dial.linked, now, rng);
        }
        let due = dial.direct.due;
        for target in self.targets.values_mut().filter(|target| target.peer == Some(peer)) {
            reason.clone_into(&mut target.reason);
            target.backoff.due = target.backoff.due.max(due);
        }
    }

    /// A connection through relays was lost.
    pub(crate) fn relay_lost(&mut self, peer: PeerId, now: Duration, rng: &mut ChaCha20Rng) {
        let dial = self.peers.entry(peer).or_default();
        dial.relay.failed(dial.seen, now, rng);
    }

    /// The peer's record shows something new about where or whether it is.
    pub(crate) fn heard(&mut self, peer: PeerId, moved: bool, now: Duration) {
        let dial = self.peers.entry(peer).or_default();
        dial.seen = Some(now);
        if moved {
            dial.direct.reset(now);
            dial.relay.reset(now);
            dial.next = 0;
            dial.full_until = Duration::ZERO;
        }
    }

    /// There are frames for that peer and no keys.
    pub(crate) fn session_wanted(&mut self, peer: PeerId, now: Duration) {
        if self.sessions.insert(peer, now + SESSION_WANTED).is_none_or(|until| until <= now) {
            let dial = self.peers.entry(peer).or_default();
            dial.relay_met = true;
            dial.relay.due = dial.relay.due.min(now);
        }
    }

    /// The peer is reached no more: what was tried without hurry is urgent now.
    pub(crate) fn parted(&mut self, peer: PeerId, now: Duration) {
        let dial = self.peers.entry(peer).or_default();
        if dial.direct.due > now {
            dial.direct.reset(now);
        }
    }

    /// The peer was forgotten.
    pub(crate) fn drop_peer(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
        self.sessions.remove(peer);
    }

    /// Whether a dial to that peer is under way.
    pub(crate) fn busy(&self, peer: &PeerId) -> bool {
        self.attempts.values().any(|attempt| self.stands_for(&attempt.goal) == Some(*peer))
    }

    /// The last failure to reach that peer, if there is one.
    pub(crate) fn last_failure(&self, peer: &PeerId) -> Option<&str> {
        self.peers.get(peer)?.reason.as_deref()
    }

    fn stands_for(&self, goal: &Goal) -> Option<PeerId> {
        match goal {
            Goal::Peer(peer) | Goal::Relay(peer) | Goal::Renew(peer) => Some(*peer),
            Goal::Target(name) => self.targets.get(name)?.peer,
        }
    }

    /// The answer of the resolver.
    pub(crate) fn resolved(&mut self, name: &str, addresses: &[SocketAddr], now: Duration, rng: &mut ChaCha20Rng) {
        let (cap, ours) = (self.target_cap(name, now), &self.ours);
        let Some(target) = self.targets.get_mut(name) else { return };
        if target.resolving.take().is_none() {
            return;
        }
        target.addresses = addresses.iter().copied().take(16).collect();
        target.left = target.addresses.iter().rev().filter(|address| !ours.contains(address)).copied().collect();
        if target.left.is_empty() {
            target.reason = if addresses.is_empty() {
                format!("`{name}` does not resolve to an address: check the name, or name the peer by address")
            } else {
                "all its addresses are this very peer's".to_owned()
            };
            target.backoff.failed_at_most(cap, now, rng);
        } else {
            target.backoff.due = now;
        }
    }

    /// What to do now, and when to ask again.
    pub(crate) fn tick(
        &mut self,
        view: &View<'_>,
        now: Duration,
        rng: &mut ChaCha20Rng,
    ) -> (Vec<Step>, Option<Duration>) {
        let late: Vec<_> =
            self.attempts.iter().filter(|(_, attempt)| attempt.until <= now).map(|(dial, _)| *dial).collect();
        for dial in late {
            self.failed(dial, "no answer", now, rng);
        }
        let mut plan = Plan { steps: Vec::new(), wake: self.attempts.values().map(|attempt| attempt.until).min() };
        self.tick_renewals(view, now, &mut plan);
        self.tick_targets(view, now, rng, &mut plan);
        if view.discovery {
            self.tick_peers(view, now, &mut plan);
        }
        self.tick_relays(view, now, &mut plan);
        (plan.steps, plan.wake)
    }

    fn tick_targets(&mut self, view: &View<'_>, now: Duration, rng: &mut ChaCha20Rng, plan: &mut Plan) {
        let names: Vec<String> = self.targets.keys().cloned().collect();
        for name in names {
            let cap = self.target_cap(&name, now);
            let dialling = self.attempts.values().any(|attempt| attempt.goal == Goal::Target(name.clone()));
            let Some(target) = self.targets.get_mut(&name) else { continue };
            if let Some(until) = target.resolving {
                if now < until {
                    plan.wake_at(until);
                    continue;
                }
                target.resolving = None;
                target.reason = format!("`{name}` was not resolved in time");
                target.backoff.failed_at_most(cap, now, rng);
            }
            let peer = target.peer;
            if dialling || peer.is_some_and(|peer| view.connected(&peer) || self.busy(&peer)) {
                continue;
            }
            if let Some(until) = peer.and_then(|peer| self.full_hold(view, &peer, now)) {
                plan.wake_at(until);
                continue;
            }
            let Some(target) = self.targets.get_mut(&name) else { continue };
            if let Some(peer) = target.left.iter().find_map(|address| view.linked_at(address)) {
                // Discovery, or the other end, was quicker.
                target.peer = Some(peer);
                target.left.clear();
                target.reason.clear();
            } else if let Some(address) = target.left.pop() {
                target.peer = view.owner_of(&address).or(target.peer);
                self.dial(Goal::Target(name), Hop::Direct(address), false, now, plan);
            } else if target.backoff.due <= now {
                target.resolving = Some(now + DIAL);
                plan.wake_at(now + DIAL);
                plan.steps.push(Step::Resolve(name));
            } else {
                plan.wake_at(target.backoff.due);
            }
        }
    }

    /// Until when a peer is left alone because it has links enough and we reach it anyway.
    fn full_hold(&self, view: &View<'_>, peer: &PeerId, now: Duration) -> Option<Duration> {
        let until = self.peers.get(peer)?.full_until;
        (until > now && view.reachable(peer)).then_some(until)
    }

    /// How dialling a peer stands.
    fn standing(&self, view: &View<'_>, peer: &PeerId, now: Duration) -> Standing {
        if self.full_hold(view, peer, now).is_some() || self.is_banned(peer) {
            return Standing::Held;
        }
        match self.peers.get(peer) {
            Some(dial) if lately(dial.linked, now) => Standing::Missed,
            Some(dial) => Standing::Due(dial.direct.due),
            None => Standing::Due(Duration::ZERO),
        }
    }

    fn tick_peers(&mut self, view: &View<'_>, now: Duration, plan: &mut Plan) {
        let burst = u32::try_from(view.links_max).unwrap_or(u32::MAX).max(1);
        for peer in wanted(view, |id| self.standing(view, id, now)) {
            if self.busy(&peer.id) {
                continue;
            }
            // Where another peer was met that is linked now, this one is not.
            let another =
                |address: &SocketAddr| self.met.get(address).is_some_and(|met| *met != peer.id && view.connected(met));
            let usable: Vec<SocketAddr> =
                view.endpoints(peer).filter(|address| self.may_dial(address) && !another(address)).collect();
            if usable.is_empty() {
                continue;
            }
            let dial = self.peers.entry(peer.id).or_default();
            if !dial.met {
                dial.met = true;
                if peer.id < view.me {
                    dial.direct.due = dial.direct.due.max(now + DIAL_HIGHER_AFTER);
                }
            }
            let upgrade = peer.reachable && !lately(dial.linked, now);
            let due = if upgrade { dial.direct.due.max(self.upgrades.due(burst, now)) } else { dial.direct.due };
            if due > now {
                plan.wake_at(due);
                continue;
            }
            let at = dial.next.min(usable.len() - 1);
            dial.next = (at + 1) % usable.len();
            if upgrade {
                self.upgrades.spend(now);
            }
            self.dial(Goal::Peer(peer.id), Hop::Direct(usable[at]), upgrade, now, plan);
        }
    }

    fn tick_relays(&mut self, view: &View<'_>, now: Duration, plan: &mut Plan) {
        self.sessions.retain(|_, until| *until > now);
        let wanted: Vec<PeerId> = if view.peers.len() < PROACTIVE_MAX {
            view.peers.iter().map(|peer| peer.id).collect()
        } else {
            self.sessions.keys().copied().collect()
        };
        for id in wanted {
            if !view.peer(&id).is_some_and(|peer| peer.reachable && !peer.connected && !peer.relayed) {
                continue;
            }
            let dial = self.peers.entry(id).or_default();
            if !dial.relay_met {
                dial.relay_met = true;
                let wait = if id < view.me { RELAY_HIGHER_AFTER } else { Duration::ZERO };
                dial.relay.due = dial.relay.due.max(now + wait);
            }
            if dial.relay.due > now {
                plan.wake_at(dial.relay.due);
                continue;
            }
            let goal = Goal::Relay(id);
            if !self.attempts.values().any(|attempt| attempt.goal == goal) {
                self.dial(goal, Hop::Relayed(id), false, now, plan);
            }
        }
    }

    fn dial(&mut self, goal: Goal, hop: Hop, upgrade: bool, now: Duration, plan: &mut Plan) {
        self.dials += 1;
        let dial = DialId(self.dials);
        self.touched.extend(self.stands_for(&goal));
        self.attempts.insert(dial, Attempt { goal, hop, until: now + DIAL, upgrade });
        plan.wake_at(now + DIAL);
        plan.steps.push(Step::Dial(dial, hop));
    }

    fn is_banned(&self, peer: &PeerId) -> bool {
        self.bans.values().any(|ban| ban.peers.contains(peer))
    }

    fn may_dial(&self, address: &SocketAddr) -> bool {
        !address.ip().is_unspecified()
            && !address.ip().is_multicast()
            && address.port() != 0
            && !self.ours.contains(address)
            && !self.bans.values().any(|ban| ban.addresses.contains(address))
    }
}

#[derive(Debug)]
struct Plan {
    steps: Vec<Step>,
    wake: Option<Duration>,
}

impl Plan {
    fn wake_at(&mut self, at: Duration) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

pub(crate) fn describe(hop: &Hop) -> String {
    match hop {
        Hop::Direct(address) => address.to_string(),
        Hop::Relayed(peer) => format!("peer {} through relays", peer.short()),
    }
}
