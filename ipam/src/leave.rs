//! Meeting another address network.
//!
//! ```text
//!   ours untouched?  theirs untouched?
//!        no               no             to the one with the lower id (ipam I4)
//!        no               yes            they come over to us
//!        yes              no             we go over to them
//!        yes              yes            to the one with the lower id
//!
//!   loser                                    winner
//!    ◄─ Here ──────────────────────────────────
//!    ── Kept(all that is in use), Fetch ──────►  nobody gives what is kept
//!    ◄─ Founded(network, voters), registers ───
//!    ── Kept, Fetch ──────────────────────────►  to each of the voters
//!    ◄─ Keeping ───────────────────────────────  of a majority: whoever gets a block hears of it
//!    durable in one write: their network instead of ours, addresses as they were
//! ```
//!
//! A network that one peer founded alone, and of which nobody ever got an address or a block, is
//! nothing that anybody could miss: that peer forgets it and seeks the other one. It first listens for
//! two seconds, so that all that were started apart choose the same one.
//!
//! Of two networks in use, the peers of the one go over, each by itself and in one step, so that none is
//! ever without a network. Nobody goes to a higher id from a network in use, so none comes back to one
//! whose voters have forgotten it.

use core::time::Duration;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use rand_core::RngCore;

use crate::founding::Network;
use crate::id::{Id, NetworkId, Owner, Sender};
use crate::machine::{MAX_NOTED, Machine};
use crate::panel::Panel;
use crate::ring::BUCKETS;
use crate::space::Space;
use crate::store::{self, Key};
use crate::voter::Voter;
use crate::wire::{Body, KeptAge, names};

/// How long all networks around are listened to before one is chosen.
const LISTEN: Duration = Duration::from_secs(2);

/// For how long nothing new is given while the other network is waited for, and for how long things go on as before if
/// it does not come.
const MOVE: Duration = Duration::from_secs(3);
/// A peer of another network is not told of ours more often.
const ANSWER_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two questions for the other network.
const MOVE_TRY: Duration = Duration::from_millis(500);

/// The networks that this peer could go over to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Others {
    /// By preference: those in use first, then by id; with a member of each.
    heard: BTreeMap<(bool, NetworkId), Sender>,
    choose_at: Option<Duration>,
    moving: Option<Moving>,
    /// When whom was told of our network last.
    told: BTreeMap<Id, Duration>,
}

/// The way from one network in use to another.
#[derive(Debug, Clone)]
struct Moving {
    to: NetworkId,
    member: Sender,
    /// Until when an answer is waited for; then a pause follows.
    until: Duration,
    next: Duration,
    /// The network and its voters.
    found: Option<(Network, Panel)>,
    /// Who of them has confirmed which list, and as a voter of which panel.
    confirmed: BTreeMap<Id, (u64, KeptAge)>,
}

impl Others {
    /// When to choose, or to ask again.
    pub(crate) fn next(&self) -> Option<Duration> {
        let ask = self.moving.as_ref().map(|moving| moving.next);
        [self.choose_at, ask].into_iter().flatten().min()
    }
}

impl Machine {
    /// Whether nobody could miss this peer's network: it founded it alone, is its only voter, and neither an
    /// address nor a block of it was ever given.
    pub(crate) fn is_untouched(&self) -> bool {
        let alone = self.network.as_ref().is_some_and(|network| sole_founder(&network.shares) == Some(self.me.peer));
        alone
            && self.panel.as_ref().is_some_and(|panel| panel.version == 1)
            && self.gave_nothing()
            && self.is_all_of(self.me.peer)
            && self.areas.iter().all(|area| {
                let blocks = area.ring.blocks();
                area.ring.held(0, blocks).eq([(0, blocks)])
            })
    }

    /// Who founded this peer's network alone.
    fn founder(&self) -> Option<Id> {
        self.network.as_ref().and_then(|network| sole_founder(&network.shares))
    }

    /// Whether this peer has nothing of its network, and nobody but its founder ever had.
    pub(crate) fn is_orphan(&self) -> bool {
        self.founder().is_some_and(|founder| self.is_orphan_of(founder))
    }

    /// Whether this peer has nothing of its network, not even a vote, and the only one that ever had is `other`.
    fn is_orphan_of(&self, other: Id) -> bool {
        self.founder() == Some(other)
            && other != self.me.peer
            && self.panel.as_ref().is_some_and(|panel| !panel.voters.contains(&self.me.peer))
            && self.gave_nothing()
            && self.is_all_of(other)
            && self.areas.iter().all(|area| area.ring.held(0, area.ring.blocks()).next().is_none())
    }

    fn gave_nothing(&self) -> bool {
        let idle = |space: &Space| space.used() == 0 && space.cooling() == 0;
        self.grants.is_empty() && self.answering.is_empty() && self.areas.iter().all(|area| idle(&area.space))
    }

    /// Whether no block was ever given away by this peer.
    fn is_all_of(&self, peer: Id) -> bool {
        self.areas.iter().all(|area| {
            let mut runs = area.ring.regs(0, area.ring.blocks());
            runs.all(|run| run.reg.order.epoch == 0 && run.reg.holder.peer() == Some(peer))
        })
    }

    /// A message of a member of another network.
    pub(crate) fn on_foreign(&mut self, from: Sender, theirs: NetworkId, body: Body) {
        let Some(ours) = self.network_id() else {
            return;
        };
        match body {
            Body::Here { untouched, ranges, .. } => {
                let ours_is_nothing = self.is_untouched();
                let founder_is_away = || self.founder().is_some_and(|founder| !self.is_here(&founder));
                if ranges != self.universe.hash() {
                    self.note_other_ranges(from.peer);
                } else if self.is_orphan_of(from.peer) || (!untouched && self.is_orphan() && founder_is_away()) {
                    self.leave_for(from);
                } else if ours_is_nothing && (!untouched || theirs < ours) {
                    self.consider(from, theirs, untouched);
                } else if !untouched && theirs < ours && !self.is_orphan() {
                    self.begin_to_move(from, theirs);
                } else {
                    // It comes over once it knows of us.
                    self.answer_foreign(from.peer);
                    if !untouched {
                        self.note_foreign(ours, theirs, from.peer);
                    }
                }
            }
            Body::Founded(network, panel) if network.id == theirs => self.on_founded_elsewhere(network, panel),
            Body::Kept { lists, .. } => self.on_kept(from, &lists, false),
            Body::Keeping { panel, age } => self.on_keeping(from, panel, age),
            // A peer that is about to come over, or that does not know yet that we did.
            Body::Fetch => self.on_fetch(from),
            Body::Request(_) | Body::Digest(_) => self.answer_foreign(from.peer),
            _ => {}
        }
    }

    /// Tells a peer of another network of ours; not so often that two would only tell each other.
    fn answer_foreign(&mut self, peer: Id) {
        let now = self.now;
        self.others.told.retain(|_, at| now < *at + ANSWER_PAUSE);
        if let Entry::Vacant(place) = self.others.told.entry(peer) {
            place.insert(now);
            let here = self.here();
            self.send_durably(peer, here);
        }
    }

    /// Tells a peer of another network of ours, in case that what either said was lost.
    pub(crate) fn remind_foreign(&mut self) {
        if self.elsewhere.is_empty() {
            return;
        }
        let at = usize::try_from(self.rng.next_u64() % self.elsewhere.len() as u64).unwrap_or(0);
        if let Some(&peer) = self.elsewhere.iter().nth(at) {
            let here = self.here();
            self.send_durably(peer, here);
        }
    }

    /// Of two networks in use, ours gives way: says first what is in use here.
    fn begin_to_move(&mut self, member: Sender, to: NetworkId) {
        if self.others.moving.as_ref().is_some_and(|moving| moving.to <= to && self.now < moving.until + MOVE) {
            return;
        }
        let (until, next) = (self.now + MOVE, self.now);
        self.others.moving = Some(Moving { to, member, until, next, found: None, confirmed: BTreeMap::new() });
        self.keeping.look_again = true;
        self.look_at_kept();
        self.tick_moving();
    }

    /// Whether this peer is about to go over to another network, and gives nothing new of this one.
    fn is_waiting_to_move(&self) -> bool {
        self.others.moving.as_ref().is_some_and(|moving| self.now < moving.until)
    }

    /// What a peer waits for that is about to go over.
    pub(crate) fn move_obstacle(&self) -> Option<String> {
        let moving = self.others.moving.as_ref().filter(|moving| self.now < moving.until)?;
        let whom = match &moving.found {
            Some((_, panel)) => format!("word from a majority of the voters {}", names(panel.voters.iter())),
            None => format!("word from peer {}", moving.member.peer),
        };
        Some(format!("{whom} of the address network {}, to which this peer goes over", moving.to))
    }

    /// Whether this peer has met a network that it is to go over to.
    pub(crate) fn is_moving(&self) -> bool {
        self.others.moving.is_some()
    }

    /// Whether new addresses may be given, and blocks asked for.
    pub(crate) fn may_give(&self) -> bool {
        self.network.is_some() && self.knows_what_is_in_use() && self.has_lease() && !self.is_waiting_to_move()
    }

    fn tick_moving(&mut self) {
        let now = self.now;
        let Some(moving) = self.others.moving.as_mut().filter(|moving| moving.next <= now) else {
            return;
        };
        let (member, reach) = (moving.member, self.peers.get(&moving.member.peer));
        if moving.found.is_some() && reach == Some(&member.incarnation) {
            // Only its voters do not answer: nothing new is given, as if this peer were there already.
            moving.until = now + MOVE;
        }
        if now < moving.until && reach == Some(&member.incarnation) {
            moving.next = (now + MOVE_TRY).min(moving.until);
            let voters = moving.found.iter().flat_map(|(_, panel)| panel.voters.iter().copied());
            let whom: BTreeSet<Id> = voters.chain([member.peer]).collect();
            return self.ask_to_come(whom);
        }
        self.wake = true;
        if reach == Some(&member.incarnation) && now < moving.until + MOVE {
            moving.next = moving.until + MOVE;
            return;
        }
        // Whoever of them is met next says so.
        self.others.moving = None;
        self.keeping.look_again = true;
        if reach.is_some() {
            let here = self.here();
            self.send_durably(member.peer, here);
        }
    }

    /// Tells peers of another network what is in use here, and asks for theirs.
    fn ask_to_come(&mut self, whom: BTreeSet<Id>) {
        let list = self.own_list().cloned();
        for peer in whom {
            if !self.peers.contains_key(&peer) {
                continue;
            }
            if let Some(list) = list.clone() {
                self.send_durably(peer, Body::Kept { lists: vec![list], want: false });
            }
            self.send_durably(peer, Body::Fetch);
        }
    }

    /// The network that this peer is to go over to.
    fn on_founded_elsewhere(&mut self, network: Network, panel: Panel) {
        let Some(moving) = self.others.moving.as_mut().filter(|moving| moving.to == network.id && panel.is_sound())
        else {
            return;
        };
        let news = moving.found.as_ref().is_none_or(|(_, known)| *known < panel);
        if news {
            let voters = panel.voters.iter().copied().collect();
            moving.found = Some((network, panel));
            if self.own_list().is_some() {
                self.ask_to_come(voters);
            }
        }
        self.go_over();
    }

    /// A voter of the network that this peer is to go over to knows what is in use here.
    fn on_keeping(&mut self, from: Sender, panel: u64, age: KeptAge) {
        if let Some(moving) = &mut self.others.moving {
            moving.confirmed.insert(from.peer, (panel, age));
            self.go_over();
        }
    }

    /// Goes over once so many of the voters there know what is in use here that whoever gets a block from a majority
    /// of them hears of it (ipam I24).
    fn go_over(&mut self) {
        let Some(moving) = &self.others.moving else { return };
        let Some((network, panel)) = moving.found.clone() else { return };
        if let Some(list) = self.own_list() {
            let known = (panel.version, list.age());
            // One of them itself, whose disk was lost, knows its own; the others may need it to be voters again.
            let knows = |voter: &&Id| **voter == self.me.peer || moving.confirmed.get(voter) == Some(&known);
            if panel.voters.iter().filter(knows).count() < panel.majority() {
                return;
            }
        }
        if let Err(why) = network.check(&self.universe) {
            return self.problem(format!("this peer cannot join: {why}"));
        }
        let Some(old) = self.network_id() else {
            return;
        };
        self.notice(format!(
            "this peer goes over from the address network {old} to {}, which has the lower id; addresses that were \
             given stay, and those that are in use in both are in dispute: weft ipam check names them",
            network.id
        ));
        self.withdraw_new();
        self.forget_network();
        self.adopt(network, panel);
    }

    fn consider(&mut self, from: Sender, theirs: NetworkId, untouched: bool) {
        if self.others.heard.len() < MAX_NOTED {
            self.others.heard.insert((untouched, theirs), from);
        }
        self.others.choose_at.get_or_insert(self.now + LISTEN);
    }

    /// Goes over to the best of the networks that were heard.
    pub(crate) fn tick_others(&mut self) {
        self.tick_moving();
        if self.others.choose_at.is_none_or(|at| self.now < at) {
            return;
        }
        let others = core::mem::take(&mut self.others);
        let reachable = |peer: &Sender| self.peers.get(&peer.peer) == Some(&peer.incarnation);
        let best = others.heard.into_values().find(reachable);
        if let Some(member) = best
            && self.is_untouched()
        {
            self.leave_for(member);
        }
    }

    /// Leaves this peer's network, of which it has nothing to lose, and asks for the other's.
    fn leave_for(&mut self, other: Sender) {
        let Some(old) = self.network_id() else {
            return;
        };
        self.forget_network();
        self.journal.put(store::put(Key::Left, &true));
        self.join.left(self.now);
        self.notice(format!(
            "this peer leaves the address network {old}, of which nobody has anything, for that of peer {}",
            other.peer
        ));
        self.fetch(other);
    }

    /// Forgets all that is known of this peer's network, but not what it gave. Whatever is heard of that
    /// network later is about another life.
    fn forget_network(&mut self) {
        self.network = None;
        self.me.life = self.draw();
        self.touched.clear();
        self.journal.put(store::delete(Key::Network));
        for (range, area) in (0u16..).zip(&mut self.areas) {
            area.ring.forget();
            area.counted = None;
            for bucket in (0u8..).take(BUCKETS as usize) {
                self.journal.put(store::delete(Key::Ring { range, bucket }));
                self.journal.put(store::delete(Key::Votes { range, bucket }));
            }
        }
        for key in [Key::Panel, Key::Seat, Key::Gone, Key::Silent] {
            self.journal.put(store::delete(key));
        }
        for &grant in self.grants.keys() {
            self.journal.put(store::delete(Key::Grant(grant)));
        }
        let blocks: Vec<u32> = self.areas.iter().map(|area| area.ring.blocks()).collect();
        self.voter = Voter::new(&blocks, self.now);
        self.panel = None;
        self.gone.clear();
        self.removing.clear();
        self.next_gone = None;
        self.fencing.look_again = true;
        self.silence.forget(self.now);
        self.grants.clear();
        self.witnessing.clear();
        self.restart_takes();
        self.takes.look_again();
        self.asks.clear();
        self.others = Others::default();
        self.foreign.clear();
        self.elsewhere.clear();
        self.keeping.look_again = true;
        self.wake = true;
    }

    fn note_other_ranges(&mut self, peer: Id) {
        let text = format!(
            "peer {peer} has an address network with other ranges than {}; configure the same \
             ranges on every peer",
            self.universe.text()
        );
        self.problem(text);
    }

    fn note_foreign(&mut self, ours: NetworkId, theirs: NetworkId, peer: Id) {
        if self.foreign.len() < MAX_NOTED && self.foreign.insert(theirs, peer).is_none() {
            self.notice(format!(
                "peer {peer} belongs to another address network ({theirs}; ours is {ours}), founded apart: its peers \
                 come over to ours; an address that is in use in both stays so until one of the two goes, and weft \
                 ipam check names both"
            ));
        }
    }
}

fn sole_founder(shares: &[Owner]) -> Option<Id> {
    match shares {
        [founder] => Some(founder.peer),
        _ => None,
    }
}
