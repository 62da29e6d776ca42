//! How a voter comes to know what the others settled, after a start and for a new panel (ipam I18, I19).

use std::collections::BTreeSet;

use super::{Cursor, Heard, PAGE, PATIENCE, SOLE_WAIT, blocks_of};
use crate::founding::majority;
use crate::id::{Id, Sender};
use crate::machine::Machine;
use crate::panel::{Panel, Seat};
use crate::remove::UNDER_WAY;
use crate::store::{self, Key, StoredVote};
use crate::take::VERSION_SHIFT;
use crate::wire::{Body, SeatState, WireRun, names};

impl Machine {
    /// The only voter of the panel before is the only one to tell the next what was settled. If it has lost its
    /// disk, what the members know must do, as it would if it were the only voter still.
    pub(super) fn recall_seat(&mut self) {
        let Some(panel) = self.panel.as_ref().filter(|panel| panel.before == [self.me.peer]) else {
            return;
        };
        let version = panel.version - 1;
        if self.voter.seat.version >= version || !self.has_listened() {
            return;
        }
        self.vote_for_what_is_known(true);
        self.voter.seat = Seat { version, ..Seat::default() };
        self.journal.put(store::put(Key::Seat, &self.voter.seat));
    }

    /// Asks the voters whose state is missing for it.
    pub(super) fn read_seats(&mut self) {
        if !self.is_learning_to_vote() || self.now < self.voter.next_fetch {
            return;
        }
        self.voter.next_fetch = self.now + PATIENCE;
        let Some(panel) = self.panel.clone() else {
            return;
        };
        // Who may go on alone needs the word of the members that they know no newer voters.
        if (panel.voters == [self.me.peer] || self.are_most_gone_before(&panel)) && !self.peers.is_empty() {
            self.broadcast_durably(Body::PanelAsk);
        }
        let whom: BTreeSet<Id> = panel.voters.iter().chain(&panel.before).copied().collect();
        for peer in whom {
            if peer != self.me.peer && self.peers.contains_key(&peer) && !self.voter.has_read(&peer, &panel) {
                self.read_seat(peer);
            }
        }
        // It may itself have been a voter before.
        if panel.before.contains(&self.me.peer) && self.voter.seat.version.saturating_add(1) == panel.version {
            let heard = Heard { version: self.voter.seat.version, sure: self.voter.is_sure() };
            self.voter.heard.insert(self.me.peer, heard);
            self.finish_reading();
        }
    }

    fn read_seat(&mut self, peer: Id) {
        if let Some(panel) = self.panel.clone() {
            let (range, from) = self.voter.cursors.get(&peer).map_or(Cursor::START.place, |cursor| cursor.place);
            self.send_durably(peer, Body::SeatFetch { panel, life: self.me.life, range, from });
        }
    }

    /// Somebody asks for this voter's state.
    pub(crate) fn on_seat_fetch(&mut self, from: Sender, panel: Panel, life: u64, range: u16, lo: u32) {
        self.learn_panel(panel.clone());
        let ours = self.panel.clone().filter(|ours| *ours == panel);
        let Some(votes) = self.voter.votes.get(usize::from(range)) else {
            return;
        };
        if ours.is_none() {
            // It asks for what is over.
            return self.refuse(from.peer, 0, 0);
        }
        let mut runs: Vec<StoredVote> = Vec::new();
        let mut next = Some((range.saturating_add(1), 0));
        if self.voter.seat.version > 0 {
            for (lo, hi, vote) in votes.over(lo, votes.end()) {
                if runs.len() >= PAGE {
                    next = Some((range, lo));
                    break;
                }
                runs.push(StoredVote { lo, hi, vote: *vote });
            }
        } else {
            next = None;
        }
        let next = next.filter(|&(range, _)| usize::from(range) < self.voter.votes.len());
        let found = (range == 0 && lo == 0).then(|| self.silence.found.iter().copied().collect());
        let seat = self.voter.seat.clone();
        let sure = Some(self.voter.is_sure());
        let kept = if range == 0 && lo == 0 { self.tell_lists(from.peer, None) } else { None };
        let state = SeatState { version: panel.version, life, seat, range, from: lo, runs, next, found, sure, kept };
        self.send_durably(from.peer, Body::SeatState(state));
    }

    /// A page of another voter's state.
    pub(crate) fn on_seat_state(&mut self, from: Sender, state: &SeatState) {
        let Some(panel) = self.panel.clone() else {
            return;
        };
        let cursor = self.voter.cursors.get(&from.peer).copied().unwrap_or(Cursor::START);
        let place = cursor.place;
        let asked = state.life == self.me.life && state.version == panel.version && (state.range, state.from) == place;
        if !asked || !self.is_learning_to_vote() || self.voter.has_read(&from.peer, &panel) {
            return;
        }
        if !self.knows_lists(state.kept.iter().flatten()) {
            // A list was lost, or comes behind: the page is asked for again.
            return;
        }
        let theirs = state.seat.version;
        if cursor.heard.is_some_and(|before| before.version != theirs) {
            // It has come to know more since the page before, which lacks that: from the beginning.
            self.voter.cursors.remove(&from.peer);
            return self.read_seat(from.peer);
        }
        let sure = cursor.heard.is_none_or(|before| before.sure) && state.sure.unwrap_or(false);
        let found = Heard { version: theirs, sure };
        if self.voter.heard.get(&from.peer).is_some_and(|heard| *heard >= found) {
            // As it was: it was asked once more only because it may know more by now.
            self.voter.cursors.remove(&from.peer);
            self.note_said(from.peer);
            return;
        }
        let useful = theirs == panel.version || theirs.saturating_add(1) == panel.version;
        if useful {
            let runs = state.runs.iter().map(|run| (usize::from(state.range), run.lo, run.hi, run.vote));
            self.vote(runs, |vote, theirs| *vote = vote.join(*theirs));
            self.learn_found(state.found.iter().flatten());
        }
        match state.next.filter(|_| useful) {
            Some(next) if next > place => {
                self.voter.cursors.insert(from.peer, Cursor { place: next, heard: Some(found) });
                self.read_seat(from.peer);
            }
            Some(_) => {}
            None => {
                if theirs == panel.version {
                    self.voter.learned.join(&state.seat);
                }
                self.voter.heard.insert(from.peer, found);
                self.note_said(from.peer);
                self.voter.cursors.remove(&from.peer);
                self.finish_reading();
            }
        }
    }

    /// Begins to answer once enough was heard.
    pub(super) fn finish_reading(&mut self) {
        if !self.is_learning_to_vote() {
            return;
        }
        let Some(panel) = self.panel.clone() else {
            return;
        };
        let (me, voter) = (self.me.peer, &self.voter);
        let version = panel.version;
        let heard_of = |of: &[Id], at: u64| -> Vec<Heard> {
            of.iter().filter_map(|peer| voter.heard.get(peer)).filter(|heard| heard.version == at).copied().collect()
        };
        let sealed = heard_of(&panel.before, version - 1);
        let most = majority(panel.before.len());
        // One of those that are not sure may have lost its disk, unless it is one of those that know
        // nothing: without it, there must still be one of each majority.
        let unsure = sealed.iter().any(|heard| !heard.sure);
        let left = panel.before.iter().filter(|voter| !self.is_gone(voter)).count();
        let answered = panel.before.iter().filter(|voter| self.voter.heard.contains_key(voter)).count();
        let all_but_one = !unsure || answered >= left.clamp(most, most + 1);
        let gone = panel.voters.iter().filter(|voter| **voter != me && self.is_gone(voter)).count();
        let others = panel.voters.iter().filter(|peer| **peer != me && voter.heard.contains_key(peer)).count();
        let needed = panel.others_to_hear().min(panel.voters.len() - 1 - gone);
        // It may itself have answered already, and forgotten that with its disk: so many of the others
        // show that nobody else has, or what it said.
        let enough = sealed.len() >= most && all_but_one && others >= needed;
        let handed_over = !panel.before.is_empty() && enough;
        let seated = voter.seat.version == version;
        let sole = panel.voters.len() == 1;
        let known = seated || version == 1 || !heard_of(&panel.voters, version).is_empty();
        let recovered = if sole {
            // Its disk may be gone, and with it what it alone knew: what the members know must do. But if it has
            // settled nothing yet, it may as well be new here, and is still to read what the panel before knew.
            let was_ready = || panel.before.is_empty() || self.knows_what_was_settled_for(version);
            let knows = seated || was_ready() && self.has_listened();
            knows && self.words_missing().is_none()
        } else {
            known && others >= needed
        };
        if !handed_over && !recovered {
            return;
        }
        if !seated {
            if version == 1 || sole {
                self.vote_for_what_is_known(sole);
            }
            self.voter.seat = Seat { version, ..Seat::default() };
        }
        let learned = core::mem::take(&mut self.voter.learned);
        self.voter.seat.join(&learned);
        self.voter.begin_answering();
        self.journal.put(store::put(Key::Seat, &self.voter.seat));
    }

    /// Somebody was removed: what other voters know for lack of one of the panel before, they are to say once more.
    pub(crate) fn read_without(&mut self, gone: &[Id]) {
        if self.panel.as_ref().is_some_and(|panel| gone.iter().any(|peer| panel.before.contains(peer))) {
            self.voter.lately.clear();
            self.voter.lately_from = self.now + UNDER_WAY;
        }
    }

    fn note_said(&mut self, peer: Id) {
        if self.now >= self.voter.lately_from {
            self.voter.lately.insert(peer);
        }
    }

    /// Most of the panel before were removed, and nobody of this one has read enough of them in time: then nobody
    /// ever will. The lowest voter that is left goes on alone, with what it has read and knows, as when most voters
    /// of this panel are removed (ipam I20).
    pub(super) fn go_on_without_those_before(&mut self) {
        let sits = |panel: &Panel| self.voter.seat.version == panel.version;
        let Some(panel) = self.panel.clone().filter(|panel| self.is_learning_to_vote() && !sits(panel)) else {
            return;
        };
        if !self.are_most_gone_before(&panel) {
            return;
        }
        let stays = |it: &&Id| !self.is_gone(it);
        let (me, voter) = (self.me.peer, &self.voter);
        let others = |of: &[Id]| -> Vec<Id> { of.iter().filter(stays).filter(|it| **it != me).copied().collect() };
        let has_said = |it: &Id| voter.heard.contains_key(it);
        let lacks_it = |it: &Id| {
            voter.lately.contains(it) && voter.heard.get(it).is_some_and(|heard| heard.version < panel.version)
        };
        let nobody_can = others(&panel.before).iter().all(has_said) && others(&panel.voters).iter().all(lacks_it);
        if !nobody_can || panel.voters.iter().find(stays) != Some(&me) {
            return;
        }
        if self.members_apart(me).is_empty() {
            self.notice(
                "most of the voters before were removed before these had read what they knew: this peer settles \
                 alone from now on, by what it knows"
                    .to_owned(),
            );
            self.vote_alone();
        }
    }

    /// Whether so many of the panel before were removed that no majority of it is left.
    fn are_most_gone_before(&self, panel: &Panel) -> bool {
        let left = panel.before.iter().filter(|it| !self.is_gone(it)).count();
        !panel.before.is_empty() && left < majority(panel.before.len())
    }

    /// Whether members have had the time to say what they know, to one that has forgotten.
    fn has_listened(&self) -> bool {
        self.in_reach_since.is_some_and(|since| self.now >= since.max(self.joined_at) + SOLE_WAIT)
    }

    /// Whether anything is known that a panel has settled.
    fn knows_what_was_settled_for(&self, version: u64) -> bool {
        let terms = self.areas.iter().flat_map(|area| area.ring.regs(0, area.ring.blocks()));
        terms.map(|run| run.reg.order.term >> VERSION_SHIFT).any(|settled| settled == version)
    }

    /// Of whom a sole voter has yet to hear after a start that they know no newer voters, and of how
    /// many of them: it has only its disk to know by, which may be an old copy, or gone (ipam I18).
    fn words_missing(&self) -> Option<(usize, Vec<Id>)> {
        let owners = self.owned_by_peers().into_iter().map(|(peer, _)| peer);
        let others: BTreeSet<Id> = owners.filter(|peer| *peer != self.me.peer && !self.is_gone(peer)).collect();
        let needed = majority(others.len() + 1) - 1;
        let missing: Vec<Id> = others.iter().copied().filter(|it| !self.voter.same_panel.contains_key(it)).collect();
        let heard = others.len() - missing.len();
        (heard < needed).then(|| (needed - heard, missing))
    }

    /// What a sole voter waits for after a start.
    pub(crate) fn sole_obstacle(&self) -> Option<String> {
        let sole = self.panel.as_ref().is_some_and(|panel| panel.voters == [self.me.peer]);
        let (count, missing) = self.words_missing().filter(|_| sole && self.is_learning_to_vote())?;
        Some(format!(
            "word from {count} of the peers {}: without it, this peer cannot know that they have no newer voters, for \
             its disk was lost or may be an old copy; remove them (weft peer remove) if they are gone",
            names(missing.iter())
        ))
    }

    /// What the network was founded with is known to all; what was heard since need not have been
    /// settled, and counts only where no other voter knows more.
    pub(super) fn vote_for_what_is_known(&mut self, heard: bool) {
        let mut known =
            self.network.as_ref().map(|network| network.first_registers(&self.universe)).unwrap_or_default();
        for (index, area) in self.areas.iter().enumerate().filter(|_| heard) {
            known.extend(area.ring.regs(0, area.ring.blocks()).map(|run| WireRun::new(index, run)));
        }
        self.vote(known.iter().map(blocks_of), |vote, reg| vote.reg = vote.reg.join(*reg));
    }
}
