//! Asking for blocks: one owner after the other, until one grants or all have refused.
//!
//! ```text
//!  round: ask the owner of most ─► 1 s or refusal ─► the next ─► … ─► all refused: exhausted
//!                                                               some silent: again after a pause
//! ```
//!
//! Asked for when a request cannot be served, and ahead of need when half of what is held is in
//! use (ipam I6).

use core::time::Duration;
use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::AllocError;
use crate::RequestId;
use crate::id::{Id, Sender};
use crate::machine::{Area, Machine};
use crate::ring::{Holder, RegRun};
use crate::serve::{Pending, REQUEST_LIFE, Want};
use crate::wire::{BlockRuns, Body, Refusal, Request, Wanted, names};

/// How long a peer may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pause between rounds while somebody waits.
const URGENT_PAUSE: Duration = Duration::from_secs(1);
/// Pause between rounds for a reserve; doubled up to [`MAX_PAUSE`] while there is none.
const RESERVE_PAUSE: Duration = Duration::from_secs(10);
const MAX_PAUSE: Duration = Duration::from_secs(320);

/// The search for some blocks.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// The peer asked now, the number of the request, and until when it may answer.
    asked: Option<(Id, u64, Duration)>,
    /// Who was asked before in this round, with the number of the request, and what the answer
    /// was; `None` for silence until now.
    answers: BTreeMap<Id, (u64, Option<Refusal>)>,
    /// When this round began.
    started: Duration,
    /// How often the ring had changed when it began.
    changes: u64,
    /// When the next step is due.
    next: Duration,
    fruitless: u32,
    urgent: bool,
}

impl Ask {
    fn new(now: Duration) -> Self {
        Self { asked: None, answers: BTreeMap::new(), started: now, changes: 0, next: now, fruitless: 0, urgent: false }
    }

    /// Something changed for the better: go on now.
    pub(crate) fn hurry(&mut self, now: Duration) {
        self.next = self.next.min(now);
        self.fruitless = 0;
    }

    fn pause(&self) -> Duration {
        if self.urgent {
            return URGENT_PAUSE;
        }
        let factor = 1u32 << self.fruitless.min(5);
        MAX_PAUSE.min(RESERVE_PAUSE * factor)
    }
}

impl Area {
    /// Addresses that can be given, now or once they are free.
    pub(crate) fn owned(&self) -> u128 {
        match self.counted {
            Some((changes, owned)) if changes == self.ring.changes() => owned,
            _ => self.count_owned(),
        }
    }

    fn count_owned(&self) -> u128 {
        let held = self.ring.held(0, self.ring.blocks());
        held.map(|(lo, hi)| self.range.usable(lo, hi)).sum()
    }

    /// Counts once what is asked for after every input.
    pub(crate) fn count(&mut self) {
        if self.counted.is_none_or(|(changes, _)| changes != self.ring.changes()) {
            self.counted = Some((self.ring.changes(), self.count_owned()));
        }
    }

    /// Whether half of what is held is in use.
    fn wants_reserve(&self) -> bool {
        let busy = self.space.used() + self.space.cooling();
        busy.saturating_mul(2) >= self.owned()
    }

    /// Number of empty blocks.
    fn empty(&self) -> u32 {
        let runs = self.space.empty_blocks(&self.range, &self.ring, 0, self.ring.blocks());
        runs.into_iter().map(|(lo, hi)| hi - lo).sum()
    }

    /// Blocks of each peer in `lo..hi`.
    fn shares(&self, lo: u32, hi: u32) -> BTreeMap<Id, u32> {
        let mut shares = BTreeMap::new();
        for run in self.ring.regs(lo, hi) {
            if let Some(peer) = run.reg.holder.peer() {
                *shares.entry(peer).or_default() += run.hi - run.lo;
            }
        }
        shares
    }
}

impl Machine {
    /// What is searched for, with the number of blocks that requests wait for.
    fn needs(&self) -> BTreeMap<Wanted, u32> {
        let mut needs: BTreeMap<Wanted, u32> = BTreeMap::new();
        if !self.may_give() {
            return needs;
        }
        for pending in self.pending.values() {
            let need = needs.entry(pending.wanted).or_default();
            *need = need.saturating_add(1);
        }
        for (range, area) in (0u16..).zip(&self.areas) {
            if area.wants_reserve() {
                let whole = Wanted { range, lo: 0, hi: area.ring.blocks(), address: None };
                needs.entry(whole).or_default();
            }
        }
        needs
    }

    /// Takes the next step of every search.
    pub(crate) fn drive_asks(&mut self) {
        let needs = self.needs();
        if needs.is_empty() && self.asks.is_empty() {
            return;
        }
        self.asks.retain(|wanted, _| needs.contains_key(wanted));
        for (wanted, need) in needs {
            let ask = self.asks.entry(wanted).or_insert_with(|| Ask::new(self.now));
            if need > 0 && !ask.urgent {
                ask.hurry(self.now);
            }
            ask.urgent = need > 0;
            self.drive(wanted, need);
        }
    }

    fn drive(&mut self, wanted: Wanted, need: u32) {
        let Some(mut ask) = self.asks.remove(&wanted) else {
            return;
        };
        if let Some((peer, seq, until)) = ask.asked
            && (self.now >= until || !self.peers.contains_key(&peer))
        {
            ask.answers.insert(peer, (seq, None));
            ask.asked = None;
        }
        if ask.asked.is_none() && self.now >= ask.next {
            if ask.answers.is_empty() {
                ask.started = self.now;
                ask.changes = self.changes_of(&wanted);
            }
            match self.candidate(&wanted, &ask) {
                Some(peer) => {
                    self.next_seq += 1;
                    ask.asked = Some((peer, self.next_seq, self.now + PATIENCE));
                    self.request_blocks(peer, wanted, need);
                }
                None => self.end_round(wanted, &mut ask),
            }
        }
        self.asks.insert(wanted, ask);
    }

    /// The reachable owner of most that was not asked in this round.
    fn candidate(&self, wanted: &Wanted, ask: &Ask) -> Option<Id> {
        let area = self.areas.get(usize::from(wanted.range))?;
        area.shares(wanted.lo, wanted.hi)
            .into_iter()
            .filter(|(peer, _)| self.peers.contains_key(peer) && !ask.answers.contains_key(peer))
            .max_by_key(|&(_, blocks)| blocks)
            .map(|(peer, _)| peer)
    }

    fn request_blocks(&mut self, peer: Id, wanted: Wanted, need: u32) {
        let has = self.areas.get(usize::from(wanted.range)).map_or(0, Area::empty);
        let request = Request { life: self.me.life, seq: self.next_seq, wanted, need, has };
        self.send_durably(peer, Body::Request(request));
    }

    /// Everyone was asked: refuses the requests that cannot be served.
    fn end_round(&mut self, wanted: Wanted, ask: &mut Ask) {
        // A block may have been on its way from one that was not asked yet to one that was.
        let calm = ask.changes == self.changes_of(&wanted);
        let everyone_refused = calm && self.silent(&wanted, &ask.answers).is_empty() && !self.is_more_coming(&wanted);
        if everyone_refused {
            let hopeless: Vec<(RequestId, Pending)> = self
                .pending
                .iter()
                .filter(|(_, pending)| pending.wanted == wanted && pending.since <= ask.started)
                .map(|(&request, pending)| (request, pending.clone()))
                .collect();
            for (request, pending) in hopeless {
                self.pending.remove(&request);
                let why = self.refusal(&pending, &ask.answers);
                self.reply(request, Err(why));
            }
        }
        let left = self.pending.values().any(|pending| pending.wanted == wanted);
        ask.urgent = left;
        let again_at_once = left && (everyone_refused || !calm);
        ask.next = if again_at_once { self.now } else { self.now + ask.pause() };
        ask.answers.clear();
        ask.fruitless = ask.fruitless.saturating_add(1);
    }

    fn changes_of(&self, wanted: &Wanted) -> u64 {
        self.areas.get(usize::from(wanted.range)).map_or(0, |area| area.ring.changes())
    }

    /// The owners of wanted blocks that did not answer.
    fn silent(&self, wanted: &Wanted, answers: &BTreeMap<Id, (u64, Option<Refusal>)>) -> Vec<Id> {
        let Some(area) = self.areas.get(usize::from(wanted.range)) else {
            return Vec::new();
        };
        area.shares(wanted.lo, wanted.hi)
            .into_keys()
            .filter(|peer| *peer != self.me.peer && !matches!(answers.get(peer), Some((_, Some(_)))))
            .collect()
    }

    fn refusal(&self, pending: &Pending, answers: &BTreeMap<Id, (u64, Option<Refusal>)>) -> AllocError {
        let area = &self.areas[usize::from(pending.wanted.range)];
        match &pending.want {
            Want::Any(net) => AllocError::Exhausted { range: *net, detail: exhausted(area, *net, answers.len()) },
            Want::This(address) => {
                let address = *address;
                for (_, answer) in answers.values() {
                    if let Some(Refusal::InUse(owner)) = answer {
                        let owner = owner.clone();
                        return AllocError::InUse { address, owner };
                    }
                }
                let holder = area.ring.reg(pending.wanted.lo).holder;
                AllocError::HeldElsewhere {
                    address,
                    peer: holder.peer().map_or("nobody".to_owned(), |peer| peer.to_string()),
                }
            }
        }
    }

    /// Whether blocks are about to come that no owner has to be asked for.
    pub(crate) fn is_more_coming(&self, wanted: &Wanted) -> bool {
        let Some(area) = self.areas.get(usize::from(wanted.range)) else {
            return false;
        };
        let mut runs = area.ring.regs(wanted.lo, wanted.hi);
        runs.any(|run| match run.reg.holder {
            Holder::Nobody => run.reg.order.term > 0,
            Holder::One(owner) if owner.peer == self.me.peer => {
                area.ring.held(run.lo, run.hi).map(|(lo, hi)| hi - lo).sum::<u32>() < run.hi - run.lo
            }
            Holder::One(owner) => self.gone.contains_key(&owner),
            Holder::Disputed => false,
        })
    }

    /// Blocks of nobody that are to be taken for a search under way: a share of them, begun at a
    /// place of this peer's own, so that peers in need at once seldom want the same.
    pub(crate) fn wanted_of_pool(&self) -> Option<BlockRuns> {
        if !self.takes.has_pool() {
            return None;
        }
        self.needs().into_iter().find_map(|(wanted, need)| {
            let area = self.areas.get(usize::from(wanted.range))?;
            let free = |run: &RegRun| run.reg.holder == Holder::Nobody && run.reg.order.term > 0;
            let runs: Vec<(u32, u32)> =
                area.ring.regs(wanted.lo, wanted.hi).filter(free).map(|run| (run.lo, run.hi)).collect();
            let count: u32 = runs.iter().map(|(lo, hi)| hi - lo).sum();
            let [.., last] = self.me.peer.0;
            let &(lo, hi) = runs.get(usize::from(last) % runs.len().max(1))?;
            let len = need.max(count / 4).max(1).min(hi - lo);
            Some(BlockRuns { range: wanted.range, lo: hi - len, hi })
        })
    }

    /// What keeps blocks from coming.
    pub(crate) fn obstacle(&self, wanted: &Wanted) -> String {
        if self.network.is_none() {
            return self.waiting();
        }
        if !self.knows_what_is_in_use() {
            return "a look at what runs on this host".to_owned();
        }
        if let Some(obstacle) = self.sole_obstacle() {
            return obstacle;
        }
        if let Some(obstacle) = self.move_obstacle() {
            return obstacle;
        }
        if !self.has_lease() {
            return self.lease_obstacle();
        }
        if self.is_more_coming(wanted)
            && let Some(panel) = &self.panel
        {
            return format!("a majority of the voters {} to settle blocks", names(panel.voters.iter()));
        }
        let none = BTreeMap::new();
        let silent = self.silent(wanted, &none);
        let (here, away): (Vec<Id>, Vec<Id>) = silent.into_iter().partition(|peer| self.peers.contains_key(peer));
        match (here.is_empty(), away.is_empty()) {
            (_, false) => format!("blocks of peers that cannot be reached: {}", names(away.iter())),
            (false, true) => format!("room at {}", names(here.iter())),
            (true, true) => "a free address".to_owned(),
        }
    }

    /// A refusal.
    pub(crate) fn on_refused(&mut self, from: Sender, seq: u64, life: u64, why: Refusal) {
        if life != self.me.life {
            return;
        }
        for ask in self.asks.values_mut() {
            let now = ask.asked;
            if now.is_some_and(|(peer, asked, _)| (peer, asked) == (from.peer, seq)) {
                ask.asked = None;
                ask.answers.insert(from.peer, (seq, Some(why)));
                return;
            }
            // A late answer counts as long as the round lasts.
            if let Some((asked, answer)) = ask.answers.get_mut(&from.peer)
                && *asked == seq
            {
                *answer = Some(why);
                return;
            }
        }
    }

    /// Blocks of a range came from a peer: whoever is still in need asks again.
    pub(crate) fn granted(&mut self, index: usize, from: Id) {
        for (wanted, ask) in &mut self.asks {
            if usize::from(wanted.range) == index {
                ask.asked.take_if(|&mut (peer, _, _)| peer == from);
                ask.answers.clear();
                ask.hurry(self.now);
            }
        }
    }

    /// When a search goes on.
    pub(crate) fn next_ask(&self) -> Option<Duration> {
        self.asks.values().map(|ask| ask.asked.map_or(ask.next, |(_, _, until)| until)).min()
    }
}

fn exhausted(area: &Area, net: IpNet, refused: usize) -> String {
    let mut text =
        format!("this peer holds {} addresses of {}, {} are given", area.owned(), area.range.net(), area.space.used());
    if area.space.cooling() > 0 {
        text.push_str(&format!(" and {} were freed less than 30 s ago", area.space.cooling()));
    }
    match refused {
        0 => {}
        1 => text.push_str("; the only other owner has none to spare"),
        _ => text.push_str(&format!("; none of {refused} other owners has one to spare")),
    }
    if net != area.range.net() {
        text.push_str(&format!("; only addresses of {net} would do"));
    }
    debug_assert!(REQUEST_LIFE > PATIENCE);
    text
}
