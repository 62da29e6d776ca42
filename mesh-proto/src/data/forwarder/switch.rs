//! The switch: where a frame goes by its addresses.

use core::time::Duration;

use super::Forwarder;
use crate::data::Sink;
use crate::data::counters::DropReason;
use crate::data::limits::FLOOD_HOPS;
use crate::data::macs::{Mac, Owner};
use crate::data::peer::Floods;
use crate::data::window::Seen;
use crate::id::Incarnation;
use crate::wire::record::{FRAME_MAX, Flood, frame_header};

/// Destination and source of a frame; none if it is shorter than its header.
fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    let (to, rest) = frame.split_first_chunk::<6>()?;
    let (from, rest) = rest.split_first_chunk::<6>()?;
    (rest.len() >= 2).then_some((Mac(*to), Mac(*from)))
}

/// What becomes of a frame of this host.
pub(super) enum Fate {
    /// It goes to the peer in this slot.
    Unicast(u32),
    /// It goes to everybody.
    Flood,
    /// It goes nowhere.
    Drop(DropReason),
}

impl Forwarder {
    /// A frame of this host (sleeve S15).
    pub(super) fn switch_local(&mut self, frame: &[u8], now: Duration, sink: &mut impl Sink) {
        self.counters.frames_in += 1;
        self.counters.bytes_in += frame.len() as u64;
        if frame.len() > FRAME_MAX {
            return self.counters.drop(DropReason::Giant);
        }
        match self.fate(frame, now) {
            Fate::Unicast(slot) => self.unicast(slot, frame, now, sink),
            Fate::Flood => self.flood(frame, now, sink),
            Fate::Drop(reason) => self.counters.drop(reason),
        }
    }

    /// Learns where a frame of this host comes from, and tells where it goes.
    pub(super) fn fate(&mut self, frame: &[u8], now: Duration) -> Fate {
        let Some((to, from)) = addresses(frame) else {
            return Fate::Drop(DropReason::Runt);
        };
        if to.is_link_local() {
            return Fate::Drop(DropReason::LinkLocal);
        }
        self.learn(from, Owner::Local, self.incarnation, now);
        if to.is_group() {
            return Fate::Flood;
        }
        match self.macs.lookup(to, now) {
            Some(Owner::Local) => Fate::Drop(DropReason::Local),
            Some(Owner::Peer(slot)) => Fate::Unicast(slot),
            None => Fate::Flood,
        }
    }

    /// Sends a frame of this host to one peer.
    pub(super) fn unicast(&mut self, slot: u32, frame: &[u8], now: Duration, sink: &mut impl Sink) {
        let header = frame_header(frame.len());
        let room = self.send_record(slot, &header, frame, now, sink);
        // Only the word of a search that is over: senders remember it for minutes.
        if let Some(room) = room.filter(|&room| header.len() + frame.len() > room)
            && self.way_settled(slot)
            && let Some(answer) = self.too_big.answer(frame, room - header.len(), now)
        {
            self.counters.too_big += 1;
            sink.frame(answer);
        }
    }

    /// Sends a frame of this host to everybody (sleeve S16).
    pub(super) fn flood(&mut self, frame: &[u8], now: Duration, sink: &mut impl Sink) {
        self.counters.floods += 1;
        let flood =
            Flood { origin: self.me, incarnation: self.incarnation, sequence: self.sequence, hops: FLOOD_HOPS, frame };
        self.sequence += 1;
        let header = flood.header();
        for i in 0..self.children.len() {
            self.send_record(self.children[i], &header, frame, now, sink);
        }
    }

    /// A frame that the peer in `slot` sent to us alone.
    pub(super) fn take_frame(
        &mut self,
        slot: u32,
        life: Incarnation,
        frame: &[u8],
        now: Duration,
        sink: &mut impl Sink,
    ) {
        self.deliver(frame, Owner::Peer(slot), life, now, sink);
    }

    /// A flood that the peer in `sender` passed to us: once is enough (sleeve S17, S18).
    pub(super) fn take_flood(&mut self, sender: u32, flood: &Flood<'_>, now: Duration, sink: &mut impl Sink) {
        let Some(origin) = self.listed(flood.origin) else {
            return self.counters.drop(DropReason::FloodUnknownOrigin);
        };
        let seen = &mut self.peers[origin as usize].floods;
        let seen = seen.get_or_insert_default();
        if flood.incarnation < seen.incarnation {
            return self.counters.drop(DropReason::FloodStale);
        }
        if flood.incarnation > seen.incarnation {
            **seen = Floods { incarnation: flood.incarnation, ..Floods::default() };
        }
        match seen.window.see(flood.sequence) {
            Seen::Duplicate => self.counters.flood_duplicates += 1,
            Seen::TooOld => self.counters.drop(DropReason::FloodStale),
            Seen::Newest | Seen::New => {
                self.deliver(flood.frame, Owner::Peer(origin), flood.incarnation, now, sink);
                self.pass_on(origin, sender, flood, now, sink);
            }
        }
    }

    fn pass_on(&mut self, origin: u32, sender: u32, flood: &Flood<'_>, now: Duration, sink: &mut impl Sink) {
        let count = self.peers[origin as usize].children.len();
        if count > 0 && flood.hops <= 1 {
            return self.counters.drop(DropReason::HopLimit);
        }
        let header = Flood { hops: flood.hops.saturating_sub(1), ..*flood }.header();
        for i in 0..count {
            let child = self.peers[origin as usize].children[i];
            if child != sender && child != origin {
                self.send_record(child, &header, flood.frame, now, sink);
            }
        }
    }

    fn deliver(&mut self, frame: &[u8], owner: Owner, life: Incarnation, now: Duration, sink: &mut impl Sink) {
        if self.welcome(frame, owner, life, now) {
            self.counters.frames_out += 1;
            self.counters.bytes_out += frame.len() as u64;
            sink.frame(frame);
        }
    }

    /// Learns where a frame of another host comes from, and tells whether it is to be delivered.
    pub(super) fn welcome(&mut self, frame: &[u8], owner: Owner, life: Incarnation, now: Duration) -> bool {
        let Some((to, from)) = addresses(frame) else {
            self.counters.drop(DropReason::Runt);
            return false;
        };
        if to.is_link_local() {
            self.counters.drop(DropReason::LinkLocal);
            return false;
        }
        if let Owner::Peer(slot) = owner
            && let Some(fence) = &self.peers[slot as usize].fence
            && fence.refuses(frame)
        {
            self.counters.drop(DropReason::Fenced);
            return false;
        }
        self.learn(from, owner, life, now);
        true
    }

    fn learn(&mut self, from: Mac, owner: Owner, life: Incarnation, now: Duration) {
        self.macs.learn(from, owner, life, now);
        self.counters.macs_evicted = self.macs.evicted();
    }
}
