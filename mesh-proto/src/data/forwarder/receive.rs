//! From datagrams to frames: relay, open, take the records.

use core::net::SocketAddr;
use core::ops::Range;
use core::time::Duration;

use super::Forwarder;
use crate::data::counters::DropReason;
use crate::data::fragment::Outcome;
use crate::data::joiner::Piece;
use crate::data::limits::MOVED_EVERY;
use crate::data::session::{OpenError, Opened};
use crate::data::stage::Route;
use crate::data::{Hop, Sink};
use crate::handover::DataEvent;
use crate::id::Incarnation;
use crate::wire::datagram::{Datagram, RELAY_HEADER, RelayHeader, SLEEVE_HEADER, ShortId, SleeveHeader};
use crate::wire::record::{Fragment, Record, Records};

/// How a datagram came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// From this address.
    Direct(SocketAddr),
    /// Through a relay, from the peer that its header names.
    Relayed(ShortId),
}

impl Forwarder {
    pub(super) fn receive(
        &mut self,
        from: SocketAddr,
        arena: &mut [u8],
        at: Range<usize>,
        now: Duration,
        sink: &mut impl Sink,
    ) {
        match Datagram::parse(&arena[at.clone()]) {
            Ok(Datagram::Quic) => sink.quic(Hop::Direct(from), &arena[at]),
            Ok(Datagram::Sleeve(header)) => {
                self.counters.datagrams_in += 1;
                let body = at.start + SLEEVE_HEADER..at.end;
                self.open(&header, arena, body, Arrival::Direct(from), now, sink);
            }
            Ok(Datagram::Relay(header)) => {
                self.counters.datagrams_in += 1;
                self.receive_relay(from, &header, arena, at, now, sink);
            }
            Err(_) => {
                self.counters.datagrams_in += 1;
                self.counters.drop(DropReason::Malformed);
            }
        }
    }

    /// A RELAY datagram: for us, or to be passed on (sleeve S4).
    fn receive_relay(
        &mut self,
        from: SocketAddr,
        header: &RelayHeader,
        arena: &mut [u8],
        at: Range<usize>,
        now: Duration,
        sink: &mut impl Sink,
    ) {
        if header.destination != ShortId::from(self.me) {
            return self.pass(from, header, arena, at, sink);
        }
        let inner = &arena[at.start + RELAY_HEADER..at.end];
        match Datagram::parse(inner) {
            Ok(Datagram::Sleeve(inner)) => {
                let body = at.start + RELAY_HEADER + SLEEVE_HEADER..at.end;
                self.open(&inner, arena, body, Arrival::Relayed(header.source), now, sink);
            }
            Ok(Datagram::Quic) => {
                // Nothing but the neighbour that it came from speaks for it.
                if self.by_addr.get(&from).is_none() {
                    return self.counters.drop(DropReason::RelayFromStranger);
                }
                let Some(source) = self.by_id.get(&header.source) else {
                    return self.counters.drop(DropReason::RelayUnknownPeer);
                };
                sink.quic(Hop::Relayed(self.peers[source as usize].id), inner);
            }
            Ok(Datagram::Relay(_)) | Err(_) => self.counters.drop(DropReason::Malformed),
        }
    }

    fn pass(
        &mut self,
        from: SocketAddr,
        header: &RelayHeader,
        arena: &mut [u8],
        at: Range<usize>,
        sink: &mut impl Sink,
    ) {
        let Some(neighbour) = self.by_addr.get(&from) else {
            return self.counters.drop(DropReason::RelayFromStranger);
        };
        let destination = self.by_id.get(&header.destination);
        let listed = |&slot: &u32| self.peers[slot as usize].listed;
        let Some(destination) = destination.filter(listed) else {
            return self.counters.drop(DropReason::RelayUnknownPeer);
        };
        if header.hops <= 1 {
            return self.counters.drop(DropReason::HopLimit);
        }
        // Back where it came from, or where it began: the tables disagree for the moment. A peer that
        // lost its disk has its old name and its new one at one address, so addresses count as well.
        let source = self.by_id.get(&header.source);
        let made_at = source.and_then(|source| self.peers[source as usize].direct);
        let onward = self.route(destination, Some(neighbour)).filter(|route| match *route {
            Route::Direct(addr) => addr != from,
            Route::Relay { via, addr } => source != Some(via) && addr != from && made_at != Some(addr),
        });
        let Some(route) = onward else {
            let back = self.route(destination, None).is_some();
            let reason = if back { DropReason::RelayBack } else { DropReason::NoRoute };
            return self.counters.drop(reason);
        };
        if self.circles.again(header.hops, &arena[at.clone()]) {
            return self.counters.drop(DropReason::RelayCircle);
        }
        let onward = RelayHeader { hops: header.hops - 1, ..*header };
        arena[at.start..at.start + RELAY_HEADER].copy_from_slice(&onward.bytes());
        self.counters.relayed += 1;
        self.counters.datagrams_out += 1;
        // Somebody else's datagram, as it came: it was never open here.
        self.joiner.relay(route.addr(), at.start, at.len(), arena, sink);
    }

    fn open(
        &mut self,
        header: &SleeveHeader,
        arena: &mut [u8],
        body: Range<usize>,
        arrival: Arrival,
        now: Duration,
        sink: &mut impl Sink,
    ) {
        let Some(slot) = self.by_index.get(&header.receiver) else {
            return self.unknown_session(arrival, now);
        };
        let Some(link) = self.peers[slot as usize].link.as_mut() else {
            return self.unknown_session(arrival, now);
        };
        let (records, opened) = match link.sessions.open(header, &mut arena[body.clone()], now) {
            Ok((records, opened)) => (body.start..body.start + records.len(), opened),
            Err(OpenError::Unknown) => return self.unknown_session(arrival, now),
            Err(OpenError::Seal) => return self.counters.drop(DropReason::BadSeal),
            Err(OpenError::Replayed) => {
                self.counters.replayed += 1;
                return;
            }
        };
        self.note_opened(slot, &opened, arrival, now, sink);
        let end = records.end;
        let mut records = Records::new(&arena[records]);
        while let Some(record) = records.next() {
            match record {
                Ok(Record::Segments(segments)) => {
                    let at = end - records.rest().len() - segments.frame.len();
                    let piece = Piece::new(slot, header, at, &segments);
                    self.take_segments(opened.incarnation, piece, arena, now, sink);
                }
                Ok(record) => {
                    self.joiner.deliver_of(slot, arena, sink);
                    self.take(slot, &opened, record, arrival, now, sink);
                }
                Err(_) => self.counters.drop(DropReason::BadRecord),
            }
        }
    }

    /// Somebody uses keys that are not here. A peer that there are none with at all has not noticed
    /// that we forgot it: it needs new ones, and only we know (sleeve S33). Who it is is not proven,
    /// so this asks no more than a frame for that peer would.
    #[cold]
    fn unknown_session(&mut self, arrival: Arrival, now: Duration) {
        self.counters.drop(DropReason::UnknownSession);
        let from = match arrival {
            Arrival::Direct(from) => self.by_addr.get(&from),
            Arrival::Relayed(source) => self.by_id.get(&source),
        };
        let without = |slot: &u32| {
            let peer = &self.peers[*slot as usize];
            peer.listed && !peer.has_session()
        };
        if let Some(slot) = from.filter(without) {
            self.want_session(slot, now);
        }
    }

    /// What an authentic datagram tells by its coming alone.
    fn note_opened(&mut self, slot: u32, opened: &Opened, arrival: Arrival, now: Duration, sink: &mut impl Sink) {
        if let Some(index) = opened.ended {
            self.by_index.remove(&index);
        }
        if let (Arrival::Direct(from), true) = (arrival, opened.newest) {
            let peer = &self.peers[slot as usize];
            if peer.direct.is_some_and(|old| old != from) {
                self.peer_moved(slot, from, now);
            } else if peer.move_untold {
                self.tell_move(slot, from, now);
            }
        }
        if opened.may_send {
            if let Some(path) = self.path_mut(slot) {
                path.hurry(now);
            }
            self.send_waiting(slot, now, sink);
            self.poll_peer(slot, now, sink);
        }
    }

    /// The peer speaks from another address now (sleeve S28).
    fn peer_moved(&mut self, slot: u32, to: SocketAddr, now: Duration) {
        if self.by_addr.get(&to).is_some() {
            // Another peer is there: nobody moves in with it, or could take its place as relay.
            return;
        }
        self.set_direct(slot, Some(to));
        if let Some(path) = self.path_mut(slot) {
            path.hurry(now);
        }
        self.schedule(slot, now);
        self.tell_move(slot, to, now);
    }

    /// Tells control of the last of the moves, now or when it may be told.
    fn tell_move(&mut self, slot: u32, to: SocketAddr, now: Duration) {
        let peer = &mut self.peers[slot as usize];
        peer.move_untold = peer.moved_at.is_some_and(|at| now < at + MOVED_EVERY);
        if !peer.move_untold {
            peer.moved_at = Some(now);
            let peer = peer.id;
            self.event(DataEvent::Moved { peer, to });
        }
    }

    fn take(
        &mut self,
        slot: u32,
        opened: &Opened,
        record: Record<'_>,
        arrival: Arrival,
        now: Duration,
        sink: &mut impl Sink,
    ) {
        match record {
            Record::Frame(frame) => self.take_frame(slot, opened.incarnation, frame, now, sink),
            Record::Flood(flood) => self.take_flood(slot, &flood, now, sink),
            Record::Probe(probe) => self.send_echo(slot, probe, arrival, now, sink),
            Record::Echo(probe) => self.take_echo(slot, probe, arrival, now, sink),
            Record::Fragment(piece) => {
                self.take_fragment(slot, opened.incarnation, &piece, now, sink);
            }
            // Taken where it can be joined; in fragments it does not come.
            Record::Segments(_) => self.counters.drop(DropReason::BadRecord),
            Record::Unknown(_) => self.counters.drop(DropReason::UnknownRecord),
        }
    }

    fn take_fragment(
        &mut self,
        slot: u32,
        life: Incarnation,
        piece: &Fragment<'_>,
        now: Duration,
        sink: &mut impl Sink,
    ) {
        self.counters.fragments_in += 1;
        let outcome = self.assembler.add(slot, piece, now);
        let given_up = self.assembler.take_given_up();
        match outcome {
            Outcome::Partial => self.counters.drop_many(DropReason::Incomplete, given_up),
            Outcome::Bad => self.counters.drop(DropReason::BadFragment),
            Outcome::Whole(at) => {
                self.counters.reassembled += 1;
                let (buffer, length) = self.assembler.take(at);
                match Records::new(&buffer[..length]).next() {
                    Some(Ok(Record::Frame(frame))) => {
                        self.take_frame(slot, life, frame, now, sink);
                    }
                    Some(Ok(Record::Flood(flood))) => self.take_flood(slot, &flood, now, sink),
                    _ => self.counters.drop(DropReason::BadRecord),
                }
                self.assembler.give_back(at, buffer);
            }
        }
    }
}
