//! A voter: what it promised and accepted for each block, and how it comes to know what the
//! others settled.
//!
//! ```text
//!  Prepare(term) ─► promised < term?             durable ─► Promise(what is accepted)
//!  Accept(term)  ─► promised <= term, not older? durable ─► Accepted
//!  Witness(reg)  ─► promised <= reg's, newer?    durable ─► Witnessed
//! ```
//!
//! Blocks are settled independently of each other; a message carries many (ipam I15, I16).

mod reading;

use core::cmp::Ordering;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use minicbor::{Decode, Encode};
use rand_core::RngCore;

use crate::founding::Ballot;
use crate::id::{Id, Sender};
use crate::machine::{Machine, RingPart};
use crate::panel::{NextPanel, Panel, PanelChange, Seat, wished};
use crate::ring::{Order, Reg, RegRun};
use crate::runs::Runs;
use crate::store::{self, Key};
use crate::wire::{BlockRuns, Body, Prepare, Term, WireRun};

/// Pause between two looks at the panel while nothing happens.
const PERIOD: Duration = Duration::from_secs(2);
/// How long after something happened the voters look at the panel, at most: each at another moment, for
/// of two that propose at once mostly neither succeeds.
const SOON: Duration = Duration::from_millis(300);
/// How long a peer must have been a member in reach before it may become a voter.
const PROVEN: Duration = Duration::from_secs(3);
/// How long the answers to one question may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a sole voter that lost its disk listens to the members.
const SOLE_WAIT: Duration = Duration::from_secs(10);
/// Most runs in one page of a voter's state.
const PAGE: usize = 2048;

/// What a voter knows of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Vote {
    /// Nothing of an older term is accepted.
    #[n(0)]
    pub(crate) promised: Term,
    /// The newest register accepted.
    #[n(1)]
    pub(crate) reg: Reg,
}

impl Vote {
    const NOTHING: Self = Self { promised: Term { term: 0, nonce: 0 }, reg: Reg::UNKNOWN };

    fn join(self, other: Self) -> Self {
        let promised = match self.promised.term.cmp(&other.promised.term) {
            Ordering::Greater => self.promised,
            Ordering::Less => other.promised,
            // Two attempts that drew the same term: neither gets this vote.
            Ordering::Equal if self.promised != other.promised => Term { term: self.promised.term, nonce: 0 },
            Ordering::Equal => self.promised,
        };
        Self { promised, reg: self.reg.join(other.reg) }
    }

    fn may_promise(&self, term: Term) -> bool {
        let fresh = term.term > self.promised.term || term == self.promised;
        fresh && term.term >= self.reg.order.term
    }

    /// A late repetition must not overwrite what was witnessed since (ipam I16).
    fn may_accept(&self, term: Term) -> bool {
        let fresh = term.term > self.promised.term || term == self.promised;
        fresh && Order { term: term.term, epoch: 0 } >= self.reg.order
    }

    fn may_witness(&self, reg: &Reg) -> bool {
        self.reg == *reg || (self.promised.term <= reg.order.term && reg.order > self.reg.order)
    }
}

/// The state of another voter that was read to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Heard {
    /// The panel that its votes are for.
    version: u64,
    /// Whether they are all: it has not started since it knew that.
    sure: bool,
}

/// How far another voter's state was read.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    /// Where to go on: range and block.
    place: (u16, u32),
    /// What the pages until now are of; of another panel than those, a page is of no use with them.
    heard: Option<Heard>,
}

impl Cursor {
    const START: Self = Self { place: (0, 0), heard: None };
}

/// The voting part of a peer; of no use while the peer is not on the panel.
#[derive(Debug, Clone)]
pub(crate) struct Voter {
    /// Its part in the change of panels.
    pub(crate) seat: Seat,
    /// Whether it knows all that was settled.
    pub(crate) ready: bool,
    /// The panel for which it was ready last since it started; 0: for none.
    complete: u64,
    /// By range.
    pub(crate) votes: Vec<Runs<Vote>>,
    /// Whose states were read to the end.
    heard: BTreeMap<Id, Heard>,
    /// Who has said it since somebody was removed of whom that could have been read, and from when on it counts.
    lately: BTreeSet<Id>,
    lately_from: Duration,
    /// Where to go on reading whose.
    cursors: BTreeMap<Id, Cursor>,
    /// What the others of the same panel promised and accepted about the next one.
    learned: Seat,
    next_fetch: Duration,
    change: Option<(PanelChange, Duration)>,
    next_look: Duration,
    round: u64,
    /// Since when peers were heard of as members without interruption.
    pub(crate) members: BTreeMap<Id, Duration>,
    /// When peers have said last that they know the same voters.
    pub(crate) same_panel: BTreeMap<Id, Duration>,
}

impl Voter {
    /// No voter.
    pub(crate) fn new(ranges: &[u32], now: Duration) -> Self {
        Self {
            seat: Seat::default(),
            ready: false,
            complete: 0,
            votes: ranges.iter().map(|&blocks| Runs::new(blocks, Vote::NOTHING)).collect(),
            heard: BTreeMap::new(),
            lately: BTreeSet::new(),
            lately_from: now,
            cursors: BTreeMap::new(),
            learned: Seat::default(),
            next_fetch: now,
            change: None,
            next_look: now + PERIOD,
            round: 0,
            members: BTreeMap::new(),
            same_panel: BTreeMap::new(),
        }
    }

    fn begin_reading(&mut self, now: Duration) {
        self.ready = false;
        self.heard.clear();
        self.lately.clear();
        self.cursors.clear();
        self.learned = Seat::default();
        self.next_fetch = now;
        self.change = None;
        self.same_panel.clear();
    }

    fn begin_answering(&mut self) {
        self.ready = true;
        self.complete = self.seat.version;
    }

    /// Whether its votes are all that were settled with it for the version of its seat.
    const fn is_sure(&self) -> bool {
        self.complete == self.seat.version
    }

    /// Whether there is nothing more to be heard from a voter. One of this panel may come to know all for it
    /// later; one of the panel before only may become sure, or recall what it forgot if it was alone on it.
    fn has_read(&self, peer: &Id, panel: &Panel) -> bool {
        self.heard.get(peer).is_some_and(|heard| match heard.version.saturating_add(1).cmp(&panel.version) {
            Ordering::Greater => true,
            _ if panel.voters.contains(peer) => false,
            Ordering::Equal => heard.sure,
            Ordering::Less => panel.before != [*peer],
        })
    }
}

/// Range, blocks and register of a run.
fn blocks_of(run: &WireRun) -> (usize, u32, u32, Reg) {
    (usize::from(run.range), run.lo, run.hi, run.reg)
}

impl Machine {
    /// Whether this peer may answer for this version of the panel.
    pub(crate) fn votes_for(&self, version: u64) -> bool {
        self.may_change_panel(version) && self.voter.seat.accepted.is_none()
    }

    fn may_change_panel(&self, version: u64) -> bool {
        let panel = self.panel.as_ref();
        self.voter.ready
            && self.voter.seat.version == version
            && panel.is_some_and(|panel| panel.version == version && panel.voters.contains(&self.me.peer))
    }

    /// Whether this peer is on the panel and cannot answer yet.
    pub(crate) fn is_learning_to_vote(&self) -> bool {
        let on_it = self.panel.as_ref().is_some_and(|panel| panel.voters.contains(&self.me.peer));
        on_it && !(self.voter.ready && self.panel.as_ref().map(|panel| panel.version) == Some(self.voter.seat.version))
    }

    /// The votes of a voter that was there when the network was founded.
    pub(crate) fn sit_first(&mut self, registers: &[WireRun]) {
        self.vote(registers.iter().map(blocks_of), |vote, reg| vote.reg = vote.reg.join(*reg));
        self.voter.seat = Seat { version: 1, ..Seat::default() };
        self.voter.begin_answering();
        self.journal.put(store::put(Key::Seat, &self.voter.seat));
    }

    /// After a restart.
    pub(crate) fn resume_voting(&mut self) {
        self.voter.begin_reading(self.now);
        if self.ablation.no_recovery && self.panel.as_ref().map(|panel| panel.version) == Some(self.voter.seat.version)
        {
            self.voter.begin_answering();
        }
        self.finish_reading();
    }

    /// Changes the votes of some blocks, and records those that are others then.
    fn vote<T>(&mut self, blocks: impl IntoIterator<Item = (usize, u32, u32, T)>, change: impl Fn(&mut Vote, &T)) {
        for (index, lo, hi, by) in blocks {
            let Some((votes, area)) = self.voter.votes.get_mut(index).zip(self.areas.get(index)) else {
                continue;
            };
            let before: Vec<(u32, u32, Vote)> = votes.over(lo, hi).map(|(lo, hi, vote)| (lo, hi, *vote)).collect();
            for (lo, hi, old) in before {
                let mut new = old;
                change(&mut new, &by);
                if new != old {
                    votes.set(lo, hi, new);
                    let buckets = area.ring.buckets_of(lo, hi);
                    self.touched.extend(buckets.map(|bucket| RingPart { votes: true, index, bucket }));
                    self.journal.announce();
                }
            }
        }
    }

    fn votes_over(&self, runs: &[BlockRuns]) -> Option<Vec<(usize, u32, u32, Vote)>> {
        let mut found = Vec::new();
        for run in runs {
            let index = usize::from(run.range);
            let votes = self.voter.votes.get(index)?;
            if run.lo >= run.hi || run.hi > votes.end() {
                return None;
            }
            found.extend(votes.over(run.lo, run.hi).map(|(lo, hi, vote)| (index, lo, hi, *vote)));
        }
        Some(found)
    }

    fn refuse(&mut self, to: Id, nonce: u64, term: u64) {
        if let Some(panel) = self.panel.clone() {
            self.send_durably(to, Body::Behind { nonce, term, panel });
        }
    }

    /// Tells whoever asks for another version of the panel what the panel is.
    pub(crate) fn correct(&mut self, to: Id, version: u64) {
        if self.panel.as_ref().is_some_and(|panel| panel.version != version) {
            self.refuse(to, 0, 0);
        }
    }

    /// Phase 1 for blocks.
    pub(crate) fn on_block_prepare(&mut self, from: Sender, prepare: &Prepare) {
        let Some(votes) = self.votes_over(&prepare.blocks) else {
            return;
        };
        let newest = votes.iter().map(|(.., vote)| vote.promised.term.max(vote.reg.order.term)).max().unwrap_or(0);
        if !self.votes_for(prepare.version) {
            return self.correct(from.peer, prepare.version);
        }
        if !votes.iter().all(|(.., vote)| vote.may_promise(prepare.term)) {
            return self.refuse(from.peer, prepare.term.nonce, newest);
        }
        let runs = votes.iter().map(|&(index, lo, hi, vote)| WireRun::new(index, RegRun { lo, hi, reg: vote.reg }));
        let runs = runs.collect();
        let blocks = prepare.blocks.iter().map(|run| (usize::from(run.range), run.lo, run.hi, prepare.term));
        self.vote(blocks, |vote, term| vote.promised = *term);
        // Who gets a block has to know what others keep in it, whoever told it to whom (ipam I24).
        let kept = self.tell_lists(from.peer, Some(&prepare.blocks));
        self.send_durably(from.peer, Body::BlockPromise { nonce: prepare.term.nonce, runs, kept });
    }

    /// Phase 2 for blocks.
    pub(crate) fn on_block_accept(&mut self, from: Sender, version: u64, term: Term, runs: &[WireRun]) {
        let blocks: Vec<BlockRuns> = runs.iter().map(BlockRuns::of).collect();
        let Some(votes) = self.votes_over(&blocks) else {
            return;
        };
        let newest = votes.iter().map(|(.., vote)| vote.promised.term.max(vote.reg.order.term)).max().unwrap_or(0);
        let fits = runs.iter().all(|run| run.reg.order == Order { term: term.term, epoch: 0 });
        if !fits {
            return;
        }
        if !self.votes_for(version) {
            return self.correct(from.peer, version);
        }
        if !votes.iter().all(|(.., vote)| vote.may_accept(term)) {
            return self.refuse(from.peer, term.nonce, newest);
        }
        self.vote(runs.iter().map(blocks_of), |vote, reg| {
            vote.promised = term;
            vote.reg = *reg;
        });
        self.send_durably(from.peer, Body::BlockAccepted { nonce: term.nonce });
    }

    /// A grant to be witnessed.
    pub(crate) fn on_witness(&mut self, from: Sender, id: u64, version: u64, runs: &[WireRun]) {
        if !self.votes_for(version) {
            return self.correct(from.peer, version);
        }
        let mut fits = true;
        let mut newest = 0;
        for run in runs {
            let Some(votes) = self.votes_over(&[BlockRuns::of(run)]) else {
                return;
            };
            fits &= votes.iter().all(|(.., vote)| vote.may_witness(&run.reg));
            newest = votes.iter().map(|(.., vote)| vote.promised.term).fold(newest, u64::max);
        }
        if !fits {
            return self.refuse(from.peer, id, newest);
        }
        self.vote(runs.iter().map(blocks_of), |vote, reg| vote.reg = *reg);
        self.send_durably(from.peer, Body::Witnessed { id, version });
    }

    /// A panel, from anybody in the network.
    pub(crate) fn learn_panel(&mut self, panel: Panel) {
        if self.network.is_none() || !panel.is_sound() || self.panel.as_ref().is_some_and(|ours| *ours >= panel) {
            return;
        }
        self.journal.put(store::put(Key::Panel, &panel));
        self.panel = Some(panel);
        self.forget_incomplete_removals();
        self.voter.begin_reading(self.now);
        self.restart_takes();
        self.restart_witnesses();
        self.silence.begin(self.now);
        self.tick_voter();
    }

    /// A peer asks for the voters that are known here.
    pub(crate) fn on_panel_ask(&mut self, from: Sender) {
        if let Some(panel) = self.panel.clone() {
            self.send_durably(from.peer, Body::Panel(panel));
        }
    }

    /// The voters as a peer knows them.
    pub(crate) fn on_panel(&mut self, from: Sender, panel: Panel) {
        if self.panel.as_ref() == Some(&panel) {
            self.voter.same_panel.insert(from.peer, self.now);
            return self.finish_reading();
        }
        self.learn_panel(panel);
    }

    /// The voting part of the clock.
    pub(crate) fn tick_voter(&mut self) {
        self.recall_seat();
        self.finish_reading();
        self.read_seats();
        self.go_on_without_those_before();
        self.look_at_panel();
    }

    /// When its next step is due.
    pub(crate) fn next_vote(&self) -> Option<Duration> {
        self.panel.as_ref().filter(|panel| panel.voters.contains(&self.me.peer))?;
        if self.is_learning_to_vote() {
            return Some(self.voter.next_fetch);
        }
        let change = self.voter.change.as_ref().map(|&(_, until)| until);
        (!self.peers.is_empty()).then_some(change.unwrap_or(self.voter.next_look))
    }

    /// Makes this peer the only voter, with what it knows: for when most voters are gone for good.
    pub(crate) fn vote_alone(&mut self) {
        let Some(panel) = &self.panel else {
            return;
        };
        let mut panel = panel.next(vec![self.me.peer]);
        panel.before.clear();
        self.vote_for_what_is_known(true);
        self.journal.put(store::put(Key::Panel, &panel));
        self.voter.begin_reading(self.now);
        self.voter.seat = Seat { version: panel.version, ..Seat::default() };
        self.voter.begin_answering();
        self.journal.put(store::put(Key::Seat, &self.voter.seat));
        self.panel = Some(panel.clone());
        self.forget_incomplete_removals();
        self.silence.begin(self.now);
        self.restart_takes();
        self.restart_witnesses();
        self.broadcast_durably(Body::Panel(panel));
    }

    /// Who is gone has changed: those that vote need not wait for their next look to do without them.
    pub(crate) fn look_at_panel_soon(&mut self) {
        let soon = self.now + self.jitter(SOON);
        self.voter.next_look = self.voter.next_look.min(soon);
    }

    /// Proposes a better panel if there is one.
    fn look_at_panel(&mut self) {
        if self.voter.change.as_ref().is_some_and(|&(_, until)| self.now >= until) {
            self.voter.change = None;
        }
        if self.now < self.voter.next_look || self.voter.change.is_some() {
            return;
        }
        let Some(panel) = self.panel.clone().filter(|panel| self.may_change_panel(panel.version)) else {
            return;
        };
        let now = self.now;
        let proven_next = self.voter.members.values().map(|&since| since + PROVEN).filter(|&at| at > now).min();
        let (pause, soon) = (PERIOD + self.jitter(PERIOD), self.jitter(SOON));
        self.voter.next_look = proven_next.map_or(now + pause, |at| (at + soon).min(now + pause));
        let proven = |peer: &Id| self.voter.members.get(peer).is_some_and(|&since| since + PROVEN <= now);
        let mut reachable: BTreeSet<Id> = self.peers.keys().copied().filter(proven).collect();
        reachable.insert(self.me.peer);
        let voters = wished(&panel, |peer| self.is_gone(peer), &reachable);
        if voters.is_empty() || (voters == panel.voters && self.voter.seat.accepted.is_none()) {
            return;
        }
        let promised = self.voter.seat.promised.map_or(0, |ballot| ballot.round);
        self.voter.round = self.voter.round.max(promised).saturating_add(1);
        let ballot = Ballot { round: self.voter.round, proposer: self.me.peer, life: self.me.life };
        let change = PanelChange::new(ballot, panel.next(voters));
        self.voter.change = Some((change, self.now + PERIOD));
        for voter in panel.voters {
            self.send(voter, Body::PanelPrepare { version: panel.version, ballot });
        }
    }

    /// Phase 1 for the next panel.
    pub(crate) fn on_panel_prepare(&mut self, from: Sender, version: u64, ballot: Ballot) {
        if self.may_change_panel(version) && self.voter.seat.prepare(ballot) {
            self.journal.put(store::put(Key::Seat, &self.voter.seat));
            let accepted = self.voter.seat.accepted.clone();
            self.send_durably(from.peer, Body::PanelPromise { version, ballot, accepted });
        }
    }

    /// A promise at the proposer.
    pub(crate) fn on_panel_promise(&mut self, from: Sender, version: u64, ballot: Ballot, accepted: Option<NextPanel>) {
        let Some(panel) = self.panel.clone().filter(|panel| panel.version == version) else {
            return;
        };
        let Some((change, _)) = self.voter.change.as_mut().filter(|(change, _)| change.ballot == ballot) else {
            return;
        };
        if let Some(next) = change.promised(&panel, from.peer, accepted) {
            for voter in panel.voters {
                self.send(voter, Body::PanelAccept { version, next: next.clone() });
            }
        }
    }

    /// Phase 2 for the next panel.
    pub(crate) fn on_panel_accept(&mut self, from: Sender, version: u64, next: NextPanel) {
        let ballot = next.ballot;
        let fits = next.panel.is_sound() && next.panel.version == version.saturating_add(1);
        if fits && self.may_change_panel(version) && self.voter.seat.accept(next) {
            self.journal.put(store::put(Key::Seat, &self.voter.seat));
            self.send_durably(from.peer, Body::PanelAccepted { version, ballot });
        }
    }

    /// An acceptance at the proposer.
    pub(crate) fn on_panel_accepted(&mut self, from: Sender, version: u64, ballot: Ballot) {
        let Some(panel) = self.panel.clone().filter(|panel| panel.version == version) else {
            return;
        };
        let Some((change, _)) = self.voter.change.as_mut().filter(|(change, _)| change.ballot == ballot) else {
            return;
        };
        if let Some(decided) = change.accepted(&panel, from.peer) {
            self.learn_panel(decided.clone());
            self.broadcast_durably(Body::Panel(decided));
        }
    }

    /// A random number that is not 0, which stands for nobody's.
    pub(crate) fn draw(&mut self) -> u64 {
        self.rng.next_u64().max(1)
    }
}
