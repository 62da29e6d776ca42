//! What leaves: messages, answers, words to the operator, writes; at once, or once something is durable.

use ipnet::IpNet;

use crate::id::Id;
use crate::journal::Effect;
use crate::store::{self, Key, StoredRun, StoredVote};
use crate::wire::{Body, Message};
use crate::{AllocError, Change, Output, RequestId, Ticket};

use super::{MAX_NOTED, Machine, Packet, RingPart};

impl Machine {
    /// A message with this peer's network in its head.
    pub(crate) fn message(&self, body: Body) -> Message {
        Message { network: self.network_id(), body }
    }

    /// Sends now.
    pub(crate) fn send(&mut self, to: Id, body: Body) {
        let message = self.message(body);
        self.perform(Effect::Other(Packet::To(to, message)));
    }

    /// Sends once all that was put until now is durable.
    pub(crate) fn send_durably(&mut self, to: Id, body: Body) {
        let packet = Packet::To(to, self.message(body));
        self.hold(self.journal.newest(), Effect::Other(packet));
    }

    /// Sends to all once all that was put until now is durable.
    pub(crate) fn broadcast_durably(&mut self, body: Body) {
        let packet = Packet::All(self.message(body));
        self.hold(self.journal.newest(), Effect::Other(packet));
    }

    /// Lets an effect happen once a batch is durable.
    pub(crate) fn hold(&mut self, batch: u64, effect: Effect<Packet>) {
        if let Some(effect) = self.journal.after(batch, effect) {
            self.perform(effect);
        }
    }

    /// Lets an effect happen now.
    pub(crate) fn perform(&mut self, effect: Effect<Packet>) {
        match effect {
            Effect::Reply(request) => {
                if let Some((index, offset)) = self.answering.remove(&request) {
                    self.reply_with(request, index, offset);
                }
            }
            Effect::Other(Packet::To(to, message)) if to == self.me.peer => {
                self.inbox.push_back(message);
            }
            Effect::Other(Packet::To(to, message)) => self.out.push_back(Output::Send { to, bytes: message.encode() }),
            Effect::Other(Packet::All(message)) => self.out.push_back(Output::Broadcast { bytes: message.encode() }),
        }
    }

    /// Answers a request.
    pub(crate) fn reply(&mut self, request: RequestId, result: Result<IpNet, AllocError>) {
        self.out.push_back(Output::Reply { request, result });
    }

    /// Asks for something outside.
    pub(crate) fn output(&mut self, output: Output<Id>) {
        self.out.push_back(output);
    }

    /// Tells the operator.
    pub(crate) fn notice(&mut self, text: String) {
        self.out.push_back(Output::Notice(text));
    }

    /// Tells the operator of something that stays, once.
    pub(crate) fn problem(&mut self, text: String) {
        if self.problems.len() < MAX_NOTED && self.problems.insert(text.clone()) {
            self.notice(text);
        }
    }

    /// Writes the parts of a ring that have blocks of `lo..hi`; see [`Journal::put`].
    pub(crate) fn record(&mut self, index: usize, lo: u32, hi: u32) {
        self.touch(index, lo, hi);
        self.journal.announce();
    }

    /// As [`Self::record`] for what other peers can tell again; see [`Journal::put_lazily`].
    pub(crate) fn record_lazily(&mut self, index: usize, lo: u32, hi: u32) {
        self.touch(index, lo, hi);
        self.journal.announce_lazily(self.now);
    }

    fn touch(&mut self, index: usize, lo: u32, hi: u32) {
        let buckets = self.areas[index].ring.buckets_of(lo, hi);
        self.touched.extend(buckets.map(|bucket| RingPart { votes: false, index, bucket }));
    }

    fn encode_part(&self, part: RingPart) -> Change {
        let ring = &self.areas[part.index].ring;
        let (from, to) = ring.bucket(part.bucket);
        let range = u16::try_from(part.index).unwrap_or(u16::MAX);
        let bucket = u8::try_from(part.bucket).unwrap_or(u8::MAX);
        if part.votes {
            let votes = self.voter.votes[part.index].over(from, to);
            let runs: Vec<StoredVote> = votes.map(|(lo, hi, vote)| StoredVote { lo, hi, vote: *vote }).collect();
            return store::put(Key::Votes { range, bucket }, &runs);
        }
        let runs: Vec<StoredRun> =
            ring.regs(from, to).map(|run| StoredRun { lo: run.lo, hi: run.hi, reg: run.reg }).collect();
        store::put(Key::Ring { range, bucket }, &runs)
    }

    /// Writes what is due.
    pub(super) fn flush(&mut self) {
        if !self.journal.is_due(self.now) {
            return;
        }
        for part in core::mem::take(&mut self.touched) {
            let change = self.encode_part(part);
            self.journal.add(change);
        }
        if let Some((batch, changes)) = self.journal.flush(self.now) {
            self.out.push_back(Output::Store { ticket: Ticket(batch), changes });
        }
    }
}
