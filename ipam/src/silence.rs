//! Removing peers that nobody has heard of for long, without an operator (ipam I22).
//!
//! ```text
//!  every peer                                   voters
//!    ── Lease(nonce, life), each T/4 ───────────► heard of it now
//!    ◄─ Leased, or Unleased if it was found silent
//!    a majority: new addresses may be given for
//!    T/2 since it was asked for
//!                                                 neither lease nor reach for T: Silent(lives) ─► all voters
//!                                                 ◄─ SilentToo(those that are so there as well)
//!                                                 a majority: the same again, and for good this time
//!                                                 a majority: removed, as by an operator
//! ```
//!
//! Only a voter that knows a majority of its opinion finds anybody silent for good: one that was cut
//! off alone comes back without an ill word of those that were well.
//!
//! A peer has stopped giving new addresses long before it can be removed: a majority that leases and
//! one that finds silent share a voter, which counts its T from a later moment than the peer its
//! T/2, and which never grants another lease to a life that it has found silent: such a life, if it
//! was not removed, goes on as a new one, which has the voters settle its blocks. Clocks may differ
//! by a factor of two. A voter whose own clock leaps, as after it slept, begins to count anew.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use crate::id::{Id, Owner, Sender};
use crate::machine::Machine;
use crate::panel::Panel;
use crate::remove::ANY_LIFE;
use crate::ring::Holder;
use crate::store::{self, Key};
use crate::wire::{Body, names};

/// The peer asks for its lease so often in the time after which it is removed, and again so often
/// until a majority has answered.
const LEASES: u32 = 4;
const LEASE_TRIES: u32 = 64;
/// A voter looks around so often in that time.
const LOOKS: u32 = 16;
/// Pause between two tries while no new address can be given.
const URGENT: Duration = Duration::from_secs(1);
/// Shortest pause of any kind.
const SHORTEST: Duration = Duration::from_millis(500);
/// A clock that goes on by so many looks at once has leapt.
const LEAP: u32 = 3;
/// Most lives in one message, which stays far below its bound, and most peers that are remembered.
const MAX_LIVES: usize = 8192;

/// What is known of who is silent.
#[derive(Debug, Clone)]
pub(crate) struct Silence {
    /// How long a peer may be silent; `None`: for ever.
    after: Option<Duration>,
    /// What others have said of that who go by another time.
    others: BTreeMap<Id, Option<Duration>>,
    /// Nobody counts as silent for longer than since then: other voters may have heard of them before.
    since: Duration,
    /// When each owner and voter was heard of last.
    heard: BTreeMap<Id, Duration>,
    /// Lives that this voter has found silent, for good.
    pub(crate) found: BTreeSet<Owner>,
    /// The other voters are asked about them.
    poll: Option<Poll>,
    /// The last look around, and the next.
    looked: Duration,
    next_look: Duration,
    /// Until when new addresses may be given is counted from here; `None`: no lease in this life.
    leased: Option<Duration>,
    /// The lease that is being asked for.
    asked: Option<Asked>,
    next_lease: Duration,
}

/// A question to the other voters about silent lives.
#[derive(Debug, Clone)]
struct Poll {
    nonce: u64,
    /// Whoever agrees grants them no lease any more.
    binding: bool,
    /// Who agrees about whom.
    agreed: BTreeMap<Owner, BTreeSet<Id>>,
}

/// A lease that is being asked for.
#[derive(Debug, Clone)]
struct Asked {
    nonce: u64,
    at: Duration,
    granted: BTreeSet<Id>,
    refused: BTreeSet<Id>,
}

impl Silence {
    /// Nobody is silent yet.
    pub(crate) fn new(after: Option<Duration>, now: Duration) -> Self {
        Self {
            after,
            others: BTreeMap::new(),
            since: now,
            heard: BTreeMap::new(),
            found: BTreeSet::new(),
            poll: None,
            looked: now,
            next_look: now,
            leased: None,
            asked: None,
            next_lease: now,
        }
    }

    /// In seconds, for others.
    pub(crate) fn own_after(&self) -> Option<u64> {
        self.after.map(|after| after.as_secs())
    }

    /// The shortest time after which anybody removes silent peers: a lease is for half of it.
    fn shortest(&self) -> Option<Duration> {
        self.others.values().copied().chain([self.after]).flatten().min()
    }

    /// The longest such time, after which no lease that was asked for under any is good any more;
    /// `None` if somebody asks for none.
    fn longest(&self) -> Option<Duration> {
        let all = self.others.values().copied().chain([self.after]);
        all.collect::<Option<Vec<Duration>>>()?.into_iter().max()
    }

    /// A part of the time after which silent peers are removed.
    fn part(&self, of: u32) -> Option<Duration> {
        self.shortest().map(|after| (after / of).max(SHORTEST))
    }

    /// Another network begins, with other voters.
    pub(crate) fn forget(&mut self, now: Duration) {
        *self = Self::new(self.after, now);
    }

    /// Other voters grant leases, and find silent, from now on.
    pub(crate) fn begin(&mut self, now: Duration) {
        self.since = now;
        self.poll = None;
        self.next_lease = now;
    }

    /// When the next step is due.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.shortest().map(|_| self.next_look.min(self.next_lease))
    }
}

impl Machine {
    /// Whether this peer may give addresses that it has not given before: it cannot have been
    /// removed for silence.
    pub(crate) fn has_lease(&self) -> bool {
        self.silence.shortest().is_none_or(|after| self.silence.leased.is_some_and(|at| self.now < at + after / 2))
    }

    /// What is waited for without a lease.
    pub(crate) fn lease_obstacle(&self) -> String {
        let voters = self.panel.as_ref().map(|panel| names(panel.voters.iter())).unwrap_or_default();
        format!("word from a majority of the voters {voters}: without it, this peer may be taken for dead by now")
    }

    /// The peers that were in reach until now are heard of until now.
    pub(crate) fn note_heard(&mut self) {
        for &peer in self.peers.keys().filter(|peer| !self.elsewhere.contains(peer)) {
            if self.silence.heard.len() < MAX_LIVES {
                self.silence.heard.insert(peer, self.now);
            }
        }
    }

    /// After which silence a member removes others. If times differ, nobody may give for longer than
    /// half of the shortest, and nobody is removed before the longest.
    pub(crate) fn note_dead_after(&mut self, peer: Id, seconds: Option<u64>) {
        /// Nobody is configured with less, or with more, in seconds: leases for less could not be renewed.
        const CREDIBLE: (u64, u64) = (10, 1 << 32);
        if peer == self.me.peer {
            return;
        }
        if seconds == self.silence.own_after() {
            return self.forget_dead_after(peer);
        }
        let theirs = seconds.map(|seconds| Duration::from_secs(seconds.clamp(CREDIBLE.0, CREDIBLE.1)));
        if self.silence.others.len() >= MAX_LIVES || self.silence.others.insert(peer, theirs) == Some(theirs) {
            return;
        }
        let text = |after: Option<Duration>| after.map_or("never".to_owned(), |after| format!("{} s", after.as_secs()));
        let begin = other_dead_after(peer);
        self.problems.retain(|text| !text.starts_with(&begin));
        self.problem(format!(
            "{begin} ({}) than this one ({}): addresses are given by the shorter, and nobody is removed before the \
             longer; configure the same on every peer",
            text(theirs),
            text(self.silence.after)
        ));
    }

    /// A member goes by the same time as this one, or is none any more.
    fn forget_dead_after(&mut self, peer: Id) {
        if self.silence.others.remove(&peer).is_some() {
            let begin = other_dead_after(peer);
            self.problems.retain(|text| !text.starts_with(&begin));
        }
    }

    /// How long a peer has not been heard of, and how long until the voters remove it for that.
    pub(crate) fn silence_of(&self, peer: Id) -> Option<(Duration, Option<Duration>)> {
        if peer == self.me.peer || self.is_here(&peer) {
            return None;
        }
        let since = self.now.saturating_sub(*self.silence.heard.get(&peer)?);
        Some((since, self.silence.longest().map(|after| after.saturating_sub(since))))
    }

    /// The clock's part.
    pub(crate) fn tick_silence(&mut self) {
        let Some((look, lease)) = self.silence.part(LOOKS).zip(self.silence.part(LEASES)) else {
            return;
        };
        if self.now >= self.silence.next_look {
            let leapt = self.now > self.silence.looked + look * LEAP;
            if leapt {
                self.silence.begin(self.now);
                self.silence.heard.clear();
            }
            self.silence.looked = self.now;
            self.silence.next_look = self.now + look;
            self.look_who_is_here();
            self.ask_about_silent();
        }
        if self.now >= self.silence.next_lease {
            self.ask_for_lease(lease);
        }
    }

    /// Notes who is in reach, of those who own or vote.
    fn look_who_is_here(&mut self) {
        let owners = self.areas.iter().flat_map(|area| area.ring.regs(0, area.ring.blocks()));
        let owners = owners.filter_map(|run| run.reg.holder.peer());
        let voters = self.panel.iter().flat_map(|panel| panel.voters.iter().copied());
        let all: BTreeSet<Id> = owners.chain(voters).filter(|peer| *peer != self.me.peer).collect();
        self.silence.heard.retain(|peer, _| all.contains(peer));
        let others = self.silence.others.keys().copied();
        let left: Vec<Id> = others.filter(|it| !all.contains(it) && !self.peers.contains_key(it)).collect();
        left.into_iter().for_each(|peer| self.forget_dead_after(peer));
        for peer in all {
            if self.is_here(&peer) {
                self.silence.heard.insert(peer, self.now);
            } else {
                self.silence.heard.entry(peer).or_insert(self.now);
            }
        }
    }

    fn ask_for_lease(&mut self, every: Duration) {
        let Some(panel) = self.panel.clone() else {
            return;
        };
        let again = if self.has_lease() { self.silence.part(LEASE_TRIES).unwrap_or(every) } else { URGENT };
        self.silence.next_lease = self.now + again;
        let nonce = self.draw();
        self.silence.asked = Some(Asked { nonce, at: self.now, granted: BTreeSet::new(), refused: BTreeSet::new() });
        self.ask_voters(
            &panel,
            &Body::Lease { version: panel.version, nonce, life: self.me.life, dead_after: self.silence.own_after() },
        );
    }

    /// A peer is there, at a voter.
    pub(crate) fn on_lease(&mut self, from: Sender, version: u64, nonce: u64, life: u64) {
        if !self.votes_for(version) {
            return self.correct(from.peer, version);
        }
        let owner = Owner { peer: from.peer, life };
        if self.silence.found.contains(&owner) {
            return self.send(from.peer, Body::Unleased { version, nonce });
        }
        if from.peer != self.me.peer {
            self.silence.heard.insert(from.peer, self.now);
        }
        self.send(from.peer, Body::Leased { version, nonce, dead_after: self.silence.own_after() });
    }

    /// A voter knows that this peer is there.
    pub(crate) fn on_leased(&mut self, from: Sender, version: u64, nonce: u64) {
        let every = self.silence.part(LEASES);
        let Some((panel, every)) = self.panel.as_ref().filter(|panel| panel.version == version).zip(every) else {
            return;
        };
        let Some(asked) = self.silence.asked.as_mut().filter(|asked| asked.nonce == nonce) else {
            return;
        };
        if panel.voters.contains(&from.peer) {
            asked.granted.insert(from.peer);
        }
        if asked.granted.len() >= panel.majority() {
            // What could not be given without it can be now.
            let at = asked.at;
            self.wake = true;
            self.silence.leased = Some(at);
            self.silence.next_lease = self.now + every;
            self.silence.asked = None;
        }
    }

    /// A voter has found this life silent. A majority without it may still grant the lease; if none is
    /// left that could, this peer goes on in another life.
    pub(crate) fn on_unleased(&mut self, from: Sender, version: u64, nonce: u64) {
        let Some(panel) = self.panel.as_ref().filter(|panel| panel.version == version) else {
            return;
        };
        let Some(asked) = self.silence.asked.as_mut().filter(|asked| asked.nonce == nonce) else {
            return;
        };
        if panel.voters.contains(&from.peer) {
            asked.refused.insert(from.peer);
        }
        if panel.voters.len() - asked.refused.len() < panel.majority() {
            self.silence.begin(self.now);
            self.live_again();
        }
    }

    /// The lives that this peer has not heard of for too long, of those that own blocks; and voters
    /// whatever their life.
    fn silent_lives(&self) -> BTreeSet<Owner> {
        let Some(after) = self.silence.longest() else {
            return BTreeSet::new();
        };
        let away = |peer: &Id| {
            let heard = self.silence.heard.get(peer);
            let since = heard.map(|&at| at.max(self.silence.since));
            !self.is_here(peer) && since.is_some_and(|at| at + after <= self.now)
        };
        let runs = self.areas.iter().flat_map(|area| area.ring.regs(0, area.ring.blocks()));
        let owners = runs.filter_map(|run| match run.reg.holder {
            Holder::One(owner) => Some(owner),
            Holder::Nobody | Holder::Disputed => None,
        });
        let voters = self.panel.iter().flat_map(|panel| panel.voters.iter());
        let voters = voters.map(|&peer| Owner { peer, life: ANY_LIFE });
        // Not of those that only keep something: they may be well in another network.
        let left = owners.chain(voters).chain(self.keeping.owners()).filter(|owner| !self.gone.contains_key(owner));
        left.filter(|owner| away(&owner.peer)).take(MAX_LIVES).collect()
    }

    /// Asks the other voters whether they, too, have not heard of those that this one has not.
    fn ask_about_silent(&mut self) {
        let Some(panel) = self.panel.clone().filter(|panel| self.votes_for(panel.version)) else {
            return;
        };
        let lives: Vec<Owner> = self.silent_lives().into_iter().collect();
        if lives.is_empty() {
            self.silence.poll = None;
            return;
        }
        self.poll(&panel, lives, false);
    }

    fn poll(&mut self, panel: &Panel, lives: Vec<Owner>, binding: bool) {
        let nonce = self.draw();
        self.silence.poll = Some(Poll { nonce, binding, agreed: BTreeMap::new() });
        self.ask_voters(panel, &Body::Silent { version: panel.version, nonce, lives, binding });
    }

    /// A voter asks who is silent here.
    pub(crate) fn on_silent(&mut self, from: Sender, version: u64, nonce: u64, lives: Vec<Owner>, binding: bool) {
        if !self.votes_for(version) {
            return self.correct(from.peer, version);
        }
        let silent = self.silent_lives();
        let lives: Vec<Owner> = lives.into_iter().filter(|owner| silent.contains(owner)).collect();
        if binding {
            self.learn_found(lives.iter());
        }
        self.send_durably(from.peer, Body::SilentToo { version, nonce, lives });
    }

    /// Grants no more leases to these lives: this voter, or another one, has found them silent.
    pub(crate) fn learn_found<'a>(&mut self, lives: impl Iterator<Item = &'a Owner>) {
        let known = self.silence.found.len();
        self.silence.found.extend(lives.filter(|owner| owner.life != ANY_LIFE));
        if self.silence.found.len() > known {
            self.forget_found();
            let found: Vec<Owner> = self.silence.found.iter().copied().collect();
            self.journal.put(store::put(Key::Silent, &found));
        }
    }

    /// Forgets lives that were removed since and own nothing any more, if there are too many.
    fn forget_found(&mut self) {
        if self.silence.found.len() > MAX_LIVES {
            let gone = &self.gone;
            self.silence.found.retain(|owner| !gone.contains_key(owner));
        }
        while self.silence.found.len() > MAX_LIVES {
            self.silence.found.pop_first();
        }
    }

    /// A voter agrees that some lives are silent.
    pub(crate) fn on_silent_too(&mut self, from: Sender, version: u64, nonce: u64, lives: &[Owner]) {
        let Some(panel) =
            self.panel.clone().filter(|panel| self.votes_for(version) && panel.voters.contains(&from.peer))
        else {
            return;
        };
        let Some(poll) = self.silence.poll.as_mut().filter(|poll| poll.nonce == nonce) else {
            return;
        };
        for &owner in lives.iter().take(MAX_LIVES) {
            poll.agreed.entry(owner).or_default().insert(from.peer);
        }
        let binding = poll.binding;
        let agreed = poll.agreed.iter().filter(|(_, voters)| voters.len() >= panel.majority());
        let dead: Vec<Owner> = agreed.map(|(&owner, _)| owner).filter(|owner| !self.gone.contains_key(owner)).collect();
        let mut peers: Vec<Id> = dead.iter().map(|owner| owner.peer).collect();
        peers.dedup();
        if peers.is_empty() {
            return;
        }
        if !binding {
            return self.poll(&panel, dead, true);
        }
        let whatever_life = peers.iter().map(|&peer| Owner { peer, life: ANY_LIFE });
        let dead = dead.iter().copied().chain(whatever_life);
        self.notice(format!("removed, for most voters have not heard of them for long: {}", names(peers.iter())));
        self.remove_lives(dead);
    }
}

/// How the text of a problem begins.
fn other_dead_after(peer: Id) -> String {
    format!("peer {peer} has another dead-after")
}
