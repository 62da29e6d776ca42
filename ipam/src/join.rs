//! Getting a network: found one alone, join one, or found one together.
//!
//! ```text
//!                no peers named            somebody has a network
//!  no network ───────────────► found alone │
//!      │  Seeking, every second ───────────┴──► Fetch, Founded, Delta ──► member
//!      │  a majority of the named seeks too, nobody new for 2 s
//!      └──► Prepare, Promise, Accept, Accepted ──► decided ──► member
//! ```

use core::time::Duration;
use std::collections::BTreeMap;

use rand_core::RngCore;

use crate::Change;
use crate::allocator::Birth;
use crate::founding::{Acceptor, Ballot, Network, Proposal, majority};
use crate::id::{Id, NetworkId, Owner, Sender};
use crate::journal::Effect;
use crate::machine::{Machine, Packet};
use crate::panel::Panel;
use crate::store::{self, Key};
use crate::wire::{Accepted, Body, Net, Removed, names};

/// Pause between two calls for a network.
const SEEK_PERIOD: Duration = Duration::from_secs(1);
/// A seeker that was not heard for so long has stopped seeking.
const SEEKER_LIFE: Duration = Duration::from_millis(3500);
/// How long after the last new peer founding may begin.
const QUIET: Duration = Duration::from_secs(2);
/// How long after the last new peer a peer that says nothing of a network is waited for.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a peer that left its network for another one looks for that before it founds a third.
const HESITATION: Duration = Duration::from_secs(30);
/// How much later the next peer in the order of ids begins, if the first did not.
const RANK_PAUSE: Duration = Duration::from_millis(700);
/// How long the first attempt may take; doubled with each further one up to [`MAX_ATTEMPT`], in
/// case that answers take longer than that.
const ATTEMPT: Duration = Duration::from_secs(1);
const MAX_ATTEMPT: Duration = Duration::from_secs(16);
/// Pause between two calls for the same network's state.
const FETCH_PAUSE: Duration = Duration::from_millis(300);
/// Most rounds by which a ballot of others may raise one's own.
const MAX_ROUND: u64 = u64::MAX / 2;

#[derive(Debug, Clone)]
struct Seeker {
    incarnation: u64,
    life: u64,
    named: usize,
    /// It takes no part in founding.
    observer: bool,
    heard: Duration,
}

/// The way to a network.
#[derive(Debug, Clone)]
pub(crate) struct Join {
    /// The durable part.
    pub(crate) acceptor: Acceptor,
    named: usize,
    seekers: BTreeMap<Id, Seeker>,
    last_met: Duration,
    next_seek: Duration,
    next_fetch: Duration,
    /// When it is this peer's turn to propose, if nobody else does.
    turn: Option<Duration>,
    /// When it will.
    propose_at: Option<Duration>,
    proposal: Option<(Proposal, Duration)>,
    round: u64,
    attempts: u32,
    left: bool,
    birth: Birth<Id>,
    /// State of this peer was lost, and with it perhaps a network.
    pub(crate) lost: bool,
    /// Number of peers that it has met before.
    remembered: usize,
    /// When this peer, whose state was lost, founds alone if it meets nobody.
    alone_at: Option<Duration>,
}

impl Join {
    /// No network yet.
    pub(crate) fn new(named: usize, birth: Birth<Id>, remembered: usize, now: Duration) -> Self {
        Self {
            alone_at: None,
            birth,
            lost: false,
            remembered,
            acceptor: Acceptor::default(),
            named,
            seekers: BTreeMap::new(),
            last_met: now,
            next_seek: now,
            next_fetch: now,
            turn: None,
            propose_at: None,
            proposal: None,
            round: 0,
            attempts: 0,
            left: false,
        }
    }

    /// A new peer was met: wait for others.
    pub(crate) fn met(&mut self, now: Duration) {
        self.last_met = now;
    }

    /// The network was left: seek again.
    pub(crate) fn left(&mut self, now: Duration) {
        self.left = true;
        self.named = self.named.max(1);
        self.last_met = now;
        self.next_seek = now;
        self.next_fetch = now;
    }

    /// When the next step is due.
    pub(crate) fn next(&self, joined: bool) -> Option<Duration> {
        if joined {
            return None;
        }
        let attempt = self.proposal.as_ref().map(|&(_, until)| until);
        [Some(self.next_seek), self.propose_at, self.alone_at, attempt].into_iter().flatten().min()
    }

    /// Whether this peer takes no part in founding.
    fn is_observer(&self) -> bool {
        self.birth != Birth::ByItself
    }

    /// The seekers that take part in founding.
    fn founders(&self) -> impl Iterator<Item = (&Id, &Seeker)> {
        self.seekers.iter().filter(|(_, seeker)| !seeker.observer)
    }

    /// The peers that exist, as far as anybody that was heard was told.
    fn population(&self) -> usize {
        let told = self.founders().map(|(_, seeker)| seeker.named);
        let told = told.max().unwrap_or(0).max(self.named).saturating_add(1);
        told.max(self.founders().count() + 1)
    }

    /// How many more seekers are needed to found a network together.
    fn missing(&self) -> usize {
        majority(self.population()).saturating_sub(self.founders().count() + 1)
    }
}

impl Machine {
    /// The first step of a life.
    pub(crate) fn begin(&mut self, fresh: bool) {
        if self.network.is_some() {
            return;
        }
        // Who has lost its state may have lost a network of its own, and others may be in it.
        let lost = self.join.lost;
        let untried = !lost && (fresh || self.join.acceptor == Acceptor::default());
        match &self.join.birth {
            // Alone and with nobody named, there is nobody who could know more than an empty disk.
            Birth::Seeds(seeds) if seeds.contains(&self.me.peer) && (seeds.len() > 1 || self.join.named > 0) => {
                let network = Network::seeded(seeds, &self.universe);
                let panel = Panel::first(&network.voters);
                self.adopt(network, panel);
            }
            Birth::Seeds(seeds) if seeds.contains(&self.me.peer) && untried => self.found_alone(),
            Birth::ByItself if self.join.named == 0 && untried => self.found_alone(),
            birth => {
                let founds_alone = match birth {
                    Birth::ByItself => true,
                    Birth::Seeds(seeds) => seeds.contains(&self.me.peer),
                    Birth::Observer => false,
                };
                if lost && founds_alone && self.join.named == 0 && self.join.remembered == 0 {
                    self.join.alone_at = Some(self.now + HESITATION);
                }
                // Asked to join, or in the middle of founding with others when it stopped.
                let remembered = if lost { self.join.remembered } else { 0 };
                self.join.named = self.join.named.max(remembered).max(1);
                self.tick_join();
            }
        }
    }

    /// State of this peer cannot be read: deleted, so that it is not read again, and remembered as lost.
    pub(crate) fn lose(&mut self, keys: Vec<Vec<u8>>) {
        for key in keys {
            self.journal.put(Change { key, value: None });
        }
        self.journal.put(store::put(Key::Lost, &true));
        self.join.lost = true;
    }

    fn found_alone(&mut self) {
        let id = self.draw_network_id();
        let network = Network::found(id, &self.universe, vec![self.me]);
        let panel = Panel::first(&network.voters);
        self.adopt(network, panel);
    }

    fn draw_network_id(&mut self) -> NetworkId {
        let mut id = [0; 16];
        self.rng.fill_bytes(&mut id);
        NetworkId(id)
    }

    /// Makes a network this peer's own, for good.
    pub(crate) fn adopt(&mut self, network: Network, panel: Panel) {
        if core::mem::take(&mut self.join.lost) {
            self.journal.put(store::delete(Key::Lost));
        }
        self.journal.put(store::put(Key::Network, &network));
        self.journal.put(store::put(Key::Panel, &panel));
        self.journal.put(store::delete(Key::Left));
        let registers = network.first_registers(&self.universe);
        for run in &registers {
            let (index, run) = run.parts();
            let area = &mut self.areas[index];
            area.ring.merge(run, self.me);
            area.space.gained(area.range.first_of(run.lo));
            self.record(index, run.lo, run.hi);
        }
        // Only who took part in the founding, and did not forget it, knows by that alone what was
        // settled until now: nothing.
        let founder =
            network.shares.contains(&self.me) || (panel.voters.len() == 1 && self.join.acceptor.accepted.is_some());
        let first = panel.version == 1 && panel.voters.contains(&self.me.peer);
        self.network = Some(network);
        self.panel = Some(panel);
        self.joined_at = self.now;
        if first && founder {
            self.sit_first(&registers);
        } else {
            self.resume_voting();
        }
        self.network_batch = self.journal.newest();
        self.join.left = false;
        self.join.alone_at = None;
        self.join.proposal = None;
        self.join.seekers.clear();
        self.problems.clear();
        self.keeping.look_again = true;
        self.wake = true;
    }

    /// The seeking part of the clock.
    pub(crate) fn tick_join(&mut self) {
        if self.network.is_some() {
            return;
        }
        let (now, peers) = (self.now, &self.peers);
        self.join
            .seekers
            .retain(|peer, seeker| peers.get(peer) == Some(&seeker.incarnation) && now < seeker.heard + SEEKER_LIFE);
        if now >= self.join.next_seek {
            let pause = SEEK_PERIOD / 2 + self.jitter(SEEK_PERIOD);
            self.join.next_seek = now + pause;
            if !self.peers.is_empty() {
                let body = self.seeking();
                self.broadcast_durably(body);
            }
        }
        if let Some(at) = self.join.alone_at {
            if !self.peers.is_empty() {
                self.join.alone_at = Some(now + HESITATION);
            } else if self.join.acceptor != Acceptor::default() {
                // Others may have founded one meanwhile, with its promise.
                self.join.alone_at = None;
            } else if now >= at {
                return self.found_alone();
            }
        }
        self.consider_proposing();
    }

    fn seeking(&self) -> Body {
        Body::Seeking {
            named: u32::try_from(self.join.named).unwrap_or(u32::MAX),
            ranges: self.universe.nets().into_iter().map(Net).collect(),
            life: self.me.life,
            observer: self.join.is_observer().then_some(true),
        }
    }

    /// Says hello to a peer that can be reached since now.
    pub(crate) fn greet(&mut self, peer: Id) {
        let body = match self.network {
            Some(_) => self.here(),
            None => self.seeking(),
        };
        self.send_durably(peer, body);
        // Before it gives anything more: what is in use here may be in blocks that are its own.
        self.compare_lists(peer, false);
        let lives: Vec<Removed> = self.removed().filter(|removed| removed.owner.peer == peer).collect();
        if !lives.is_empty() {
            self.send_durably(peer, Body::Gone { lives, want: false });
        }
    }

    fn consider_proposing(&mut self) {
        if self.join.is_observer() {
            return;
        }
        let now = self.now;
        if self.join.proposal.as_ref().is_some_and(|&(_, until)| now >= until) {
            self.join.proposal = None;
            self.put_off();
        }
        self.join.propose_at = None;
        if self.join.missing() > 0 || self.join.founders().next().is_none() {
            self.join.turn = None;
            return;
        }
        if self.join.proposal.is_some() {
            return;
        }
        let before = self.join.founders().filter(|&(peer, _)| *peer < self.me.peer).count();
        let rank = u32::try_from(before).unwrap_or(u32::MAX).min(10);
        let turn = *self.join.turn.get_or_insert(now + RANK_PAUSE * rank);
        let at = turn.max(self.join.last_met + self.patience());
        if now >= at {
            self.propose();
        } else {
            self.join.propose_at = Some(at);
        }
    }

    /// How long after the last new peer founding may begin: a reachable peer that has not said
    /// whether it has a network may have one.
    fn patience(&self) -> Duration {
        let silent = self.peers.keys().any(|peer| !self.join.seekers.contains_key(peer));
        match silent {
            _ if self.join.left => HESITATION,
            true => SILENCE,
            false => QUIET,
        }
    }

    fn put_off(&mut self) {
        let pause = Duration::from_millis(300) + self.jitter(Duration::from_millis(1500));
        self.join.turn = Some(self.now + pause);
    }

    fn propose(&mut self) {
        let promised = self.join.acceptor.promised.map_or(0, |ballot| ballot.round);
        self.join.round = self.join.round.max(promised).saturating_add(1);
        let ballot = Ballot { round: self.join.round, proposer: self.me.peer, life: self.me.life };
        let proposal = Proposal::new(ballot, self.join.population());
        let patience = MAX_ATTEMPT.min(ATTEMPT * (1u32 << self.join.attempts.min(5)));
        self.join.attempts = self.join.attempts.saturating_add(1);
        self.join.proposal = Some((proposal, self.now + patience));
        self.ask_founders(&Body::Prepare(ballot));
    }

    /// To everyone: whoever has a network says so instead of taking part.
    fn ask_founders(&mut self, body: &Body) {
        let message = self.message(body.clone());
        self.perform(Effect::Other(Packet::All(message)));
        self.send(self.me.peer, body.clone());
    }

    /// A peer has no network.
    pub(crate) fn on_seeking(&mut self, from: Sender, named: u32, ranges: &[Net], life: u64, observer: bool) {
        if self.network.is_some() {
            let here = self.here();
            self.tell_network(from.peer, here);
            return;
        }
        let ours: Vec<Net> = self.universe.nets().into_iter().map(Net).collect();
        if ranges != ours {
            let theirs: Vec<String> = ranges.iter().map(|net| net.0.to_string()).collect();
            self.problem(format!(
                "peer {} is configured with the ranges {}, this peer with {}: they cannot found \
                 an address network together; configure the same ranges on every peer",
                from.peer,
                theirs.join(", "),
                self.universe.text()
            ));
            return;
        }
        let outdated = format!("peer {} is configured", from.peer);
        self.problems.retain(|text| !text.starts_with(&outdated));
        let named = usize::try_from(named).unwrap_or(usize::MAX);
        let seeker = Seeker { incarnation: from.incarnation, life, named, observer, heard: self.now };
        if self.peers.get(&from.peer) == Some(&from.incarnation) {
            self.join.seekers.insert(from.peer, seeker);
        }
        self.consider_proposing();
    }

    /// Sends something that only makes sense once the network is durable here.
    fn tell_network(&mut self, to: Id, body: Body) {
        let packet = Packet::To(to, self.message(body));
        self.hold(self.network_batch, Effect::Other(packet));
    }

    /// A seeker found us.
    pub(crate) fn on_fetch(&mut self, from: Sender) {
        if let Some((network, panel)) = self.network.clone().zip(self.panel.clone()) {
            self.tell_network(from.peer, Body::Founded(network, panel));
            self.confirm_list(from.peer);
            self.send_everything(from.peer);
        }
    }

    /// A member of a network answered a seeker.
    pub(crate) fn fetch(&mut self, from: Sender) {
        self.join.seekers.remove(&from.peer);
        if self.now >= self.join.next_fetch {
            self.join.next_fetch = self.now + FETCH_PAUSE;
            self.send(from.peer, Body::Fetch);
        }
    }

    /// A network, as it was founded.
    pub(crate) fn on_founded(&mut self, network: Network, panel: Panel) {
        if self.network.is_some() || !panel.is_sound() {
            return;
        }
        match network.check(&self.universe) {
            Ok(()) => self.adopt(network, panel),
            Err(why) => self.problem(format!("this peer cannot join: {why}")),
        }
    }

    /// Phase 1 at an acceptor.
    pub(crate) fn on_prepare(&mut self, from: Sender, ballot: Ballot) {
        if self.network.is_some() {
            self.on_fetch(from);
            return;
        }
        if self.join.is_observer() {
            return;
        }
        match self.join.acceptor.prepare(ballot) {
            Ok(accepted) => {
                self.journal.put(store::put(Key::Vote, &self.join.acceptor));
                let named = u32::try_from(self.join.named).unwrap_or(u32::MAX);
                let promise = Body::Promise { ballot, accepted, named, life: self.me.life };
                self.send_durably(from.peer, promise);
            }
            Err(newer) => self.send(from.peer, Body::Promised(newer)),
        }
    }

    /// A promise at the proposer.
    pub(crate) fn on_promise(&mut self, from: Owner, ballot: Ballot, accepted: Option<Accepted>, named: u32) {
        let mut founders: Vec<Owner> =
            self.join.founders().map(|(&peer, seeker)| Owner { peer, life: seeker.life }).collect();
        let id = self.draw_network_id();
        let Some((proposal, _)) = &mut self.join.proposal else {
            return;
        };
        if proposal.ballot != ballot {
            return;
        }
        let universe = &self.universe;
        let named = usize::try_from(named).unwrap_or(usize::MAX);
        let value = proposal.promised(from, accepted, named, |promised| {
            founders.extend(promised);
            Network::found(id, universe, founders)
        });
        if let Some(value) = value {
            self.ask_founders(&Body::Accept(value));
        }
    }

    /// A refusal at the proposer.
    pub(crate) fn on_promised(&mut self, newer: Ballot) {
        if self.network.is_some() || newer.round > MAX_ROUND {
            return;
        }
        self.join.round = self.join.round.max(newer.round);
        if self.join.proposal.take_if(|(proposal, _)| proposal.ballot < newer).is_some() {
            self.put_off();
        }
    }

    /// Phase 2 at an acceptor.
    pub(crate) fn on_accept(&mut self, from: Sender, accepted: Accepted) {
        if self.network.is_some() {
            self.on_fetch(from);
            return;
        }
        if self.join.is_observer() {
            return;
        }
        if let Err(why) = accepted.network.check(&self.universe) {
            self.problem(format!("peer {} proposes what cannot be: {why}", from.peer));
            return;
        }
        let ballot = accepted.ballot;
        match self.join.acceptor.accept(accepted) {
            Ok(()) => {
                self.journal.put(store::put(Key::Vote, &self.join.acceptor));
                self.send_durably(from.peer, Body::AcceptedBallot(ballot));
            }
            Err(newer) => self.send(from.peer, Body::Promised(newer)),
        }
    }

    /// An acceptance at the proposer.
    pub(crate) fn on_accepted(&mut self, from: Sender, ballot: Ballot) {
        let Some((proposal, _)) = &mut self.join.proposal else {
            return;
        };
        if proposal.ballot != ballot {
            return;
        }
        if let Some(network) = proposal.accepted(from.peer) {
            let panel = Panel::first(&network.voters);
            self.adopt(network.clone(), panel.clone());
            self.broadcast_durably(Body::Founded(network, panel));
        }
    }

    /// What a peer without a network waits for.
    pub(crate) fn waiting(&self) -> String {
        let missing = self.join.missing().max(usize::from(self.join.founders().next().is_none()));
        let seekers = names(self.join.founders().map(|(peer, _)| peer));
        let problems: Vec<String> = self.problems.iter().cloned().collect();
        let mut text = match missing {
            _ if self.join.alone_at.is_some() => {
                "the address state was lost: looking for peers that know more, for up to 30 s".to_owned()
            }
            _ if self.join.lost && self.join.remembered > 0 => format!(
                "the address state was lost: looking for one of the {} peers that were known before, for they may be in \
                 its network; if they are gone for good, start it with another data directory",
                self.join.remembered
            ),
            _ if self.join.is_observer() => "waiting for an address space that others found".to_owned(),
            0 => format!("founding the address space with {seekers}"),
            _ => format!(
                "waiting for {missing} of {} named peers, to join their address space or found \
                 one together",
                self.join.population() - 1
            ),
        };
        if missing > 0 && !seekers.is_empty() {
            text.push_str(&format!(" (already here: {seekers})"));
        }
        for problem in problems {
            text.push_str("; ");
            text.push_str(&problem);
        }
        text
    }
}
