//! Which part of the machine a message is for.

use crate::id::{Id, Owner, Sender};
use crate::wire::{Body, Message};

use super::{MAX_NOTED, Machine};

impl Machine {
    /// Hands a message to the part that it is for.
    pub(super) fn dispatch(&mut self, from: Sender, message: Message) {
        if let (Some(ours), Some(theirs)) = (self.network_id(), message.network)
            && ours != theirs
        {
            if from.peer == self.me.peer {
                // Said to itself before it went over.
                return;
            }
            self.note_elsewhere(from.peer);
            self.on_foreign(from, theirs, message.body);
            return;
        }
        let same = message.network.is_some() && message.network == self.network_id();
        if same && !self.foreign.is_empty() {
            self.foreign.retain(|_, peer| *peer != from.peer);
        }
        if same && from.peer != self.me.peer && self.peers.contains_key(&from.peer) {
            self.voter.members.entry(from.peer).or_insert(self.now);
            if self.elsewhere.remove(&from.peer) {
                self.welcome_back();
            }
        }
        match message.body {
            Body::Seeking { named, ranges, life, observer } => {
                self.note_elsewhere(from.peer);
                self.on_seeking(from, named, &ranges, life, observer.unwrap_or(false));
            }
            Body::Here { root, removed, dead_after, kept, .. } => {
                if same {
                    self.note_dead_after(from.peer, dead_after);
                }
                self.on_here(from, root, removed, kept);
            }
            Body::Fetch => self.on_fetch(from),
            Body::Founded(network, panel) => self.on_founded(network, panel),
            Body::Prepare(ballot) => self.on_prepare(from, ballot),
            Body::Promise { ballot, accepted, named, life } => {
                self.on_promise(Owner { peer: from.peer, life }, ballot, accepted, named);
            }
            Body::Promised(newer) => self.on_promised(newer),
            Body::Accept(accepted) => self.on_accept(from, accepted),
            Body::AcceptedBallot(ballot) => self.on_accepted(from, ballot),
            Body::Kept { lists, want } => self.on_kept(from, &lists, want),
            // What follows is about the blocks of one network.
            _ if !same => {}
            Body::Digest(digest) => self.on_digest(from, &digest),
            Body::Delta { runs, want } => self.on_delta(from, &runs, &want),
            Body::Request(request) => self.on_request(from, request),
            Body::Refused { seq, life, why } => self.on_refused(from, seq, life, why),
            Body::Grant(grant) => self.on_grant(from, &grant),
            Body::Confirm { id } => self.on_confirm(from, id),
            about_voters => self.dispatch_to_voter(from, about_voters),
        }
    }

    /// A peer is in no network, or in another one.
    fn note_elsewhere(&mut self, peer: Id) {
        if self.peers.contains_key(&peer) {
            self.elsewhere.insert(peer);
            self.voter.members.remove(&peer);
        }
    }

    fn dispatch_to_voter(&mut self, from: Sender, body: Body) {
        match body {
            Body::Panel(panel) => self.on_panel(from, panel),
            Body::PanelAsk => self.on_panel_ask(from),
            Body::BlockPrepare(prepare) => self.on_block_prepare(from, &prepare),
            Body::BlockPromise { nonce, runs, kept } => {
                self.on_block_promise(from, nonce, &runs, &kept.unwrap_or_default());
            }
            Body::BlockAccept { version, term, runs } => self.on_block_accept(from, version, term, &runs),
            Body::BlockAccepted { nonce } => self.on_block_accepted(from, nonce),
            Body::Behind { nonce, term, panel } => self.on_behind(nonce, term, panel, from.peer),
            Body::Witness { id, version, runs } => self.on_witness(from, id, version, &runs),
            Body::Witnessed { id, version } => self.on_witnessed(from, id, version),
            Body::SeatFetch { panel, life, range, from: lo } => self.on_seat_fetch(from, panel, life, range, lo),
            Body::SeatState(state) => self.on_seat_state(from, &state),
            Body::PanelPrepare { version, ballot } => self.on_panel_prepare(from, version, ballot),
            Body::PanelPromise { version, ballot, accepted } => self.on_panel_promise(from, version, ballot, accepted),
            Body::PanelAccept { version, next } => self.on_panel_accept(from, version, next),
            Body::PanelAccepted { version, ballot } => self.on_panel_accepted(from, version, ballot),
            Body::Gone { lives, want } => self.on_gone(from, &lives, want),
            Body::Lease { version, nonce, life, dead_after } => {
                self.note_dead_after(from.peer, dead_after);
                self.on_lease(from, version, nonce, life);
            }
            Body::Leased { version, nonce, dead_after } => {
                self.note_dead_after(from.peer, dead_after);
                self.on_leased(from, version, nonce);
            }
            Body::Strays(claims) => self.on_strays(from, &claims),
            Body::Theirs(claims) => self.on_theirs(from, &claims),
            Body::Unleased { version, nonce } => self.on_unleased(from, version, nonce),
            Body::Silent { version, nonce, lives, binding } => self.on_silent(from, version, nonce, lives, binding),
            Body::SilentToo { version, nonce, lives } => self.on_silent_too(from, version, nonce, &lives),
            _ => {}
        }
    }

    /// A peer sent what this version cannot read.
    pub(super) fn note_unreadable(&mut self, peer: Id, why: &str) {
        if self.unreadable.len() < MAX_NOTED && self.unreadable.insert(peer) {
            self.notice(format!("an address message of peer {peer} is ignored, as are all others like it: {why}"));
        }
    }
}
