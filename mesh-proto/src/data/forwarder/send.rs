//! From records to datagrams: route, fill, cut, seal.

use core::time::Duration;

use super::Forwarder;
use crate::data::Sink;
use crate::data::counters::DropReason;
use crate::data::limits::SESSION_WANTED_EVERY;
use crate::data::path::Life;
use crate::data::peer::Way;
use crate::data::stage::Route;
use crate::handover::DataEvent;
use crate::id::PeerId;
use crate::wire::datagram::{HOPS, QUIC_BIT, RELAY_HEADER, RelayHeader, SLEEVE_HEADER};
use crate::wire::record::{FRAGMENT_HEADER, Fragment};

impl Forwarder {
    /// How a datagram would go to a peer now: the direct path if it lives, else the first relay
    /// whose own direct path does, else whatever is not yet known to be dead (sleeve S21).
    /// `except` is a neighbour that it must not go to.
    pub(super) fn route(&self, slot: u32, except: Option<u32>) -> Option<Route> {
        let direct = self.direct(slot, except);
        let (relay_life, relay) = self.relay(slot, except);
        match direct {
            Some((Life::Up, route)) => Some(route),
            _ if relay_life == Some(Life::Up) => relay,
            Some((Life::Fresh, route)) => Some(route),
            _ if relay_life == Some(Life::Fresh) => relay,
            Some((Life::Down, route)) => Some(route),
            None => relay,
        }
    }

    /// The way through a relay, whatever the direct path is.
    pub(super) fn relay_route(&self, slot: u32) -> Option<Route> {
        self.relay(slot, None).1
    }

    fn direct(&self, slot: u32, except: Option<u32>) -> Option<(Life, Route)> {
        let peer = &self.peers[slot as usize];
        let addr = peer.direct.filter(|_| except != Some(slot))?;
        Some((peer.life()?, Route::Direct(addr)))
    }

    /// The best relay: of equals the first.
    fn relay(&self, slot: u32, except: Option<u32>) -> (Option<Life>, Option<Route>) {
        let mut best: (Option<Life>, Option<Route>) = (None, None);
        for via in self.peers[slot as usize].relays.into_iter().flatten() {
            let relay = &self.peers[via as usize];
            let (Some(addr), Some(life)) = (relay.direct, relay.life()) else {
                continue;
            };
            let better = matches!(
                (best.0, life),
                (None, _) | (Some(Life::Down), Life::Up | Life::Fresh) | (Some(Life::Fresh), Life::Up)
            );
            if better && except != Some(via) {
                best = (Some(life), Some(Route::Relay { via, addr }));
            }
        }
        best
    }

    /// Sends a record, given in two parts, to a peer: now or at the next flush, whole or in
    /// fragments, or when there is a session. Gives the size up to which it would go whole.
    pub(super) fn send_record(
        &mut self,
        slot: u32,
        head: &[u8],
        body: &[u8],
        now: Duration,
        sink: &mut impl Sink,
    ) -> Option<usize> {
        if !self.peers[slot as usize].can_send() {
            self.wait(slot, head, body, now);
            return None;
        }
        let Some(route) = self.route(slot, None) else {
            self.counters.drop(DropReason::NoRoute);
            return None;
        };
        let room = self.room(slot, route, now);
        if head.len() + body.len() <= room {
            self.stage(slot, route, room, [head, body, &[]], now, sink);
        } else {
            self.send_fragments(slot, route, room, head, body, now, sink);
        }
        Some(room)
    }

    /// Whether the path MTU of the way in use is found.
    pub(super) fn way_settled(&self, slot: u32) -> bool {
        let way = match self.route(slot, None) {
            Some(Route::Direct(_)) => Way::Direct,
            _ => Way::Relayed,
        };
        let link = self.peers[slot as usize].link.as_deref();
        link.is_some_and(|link| link.mtu[way as usize].settled())
    }

    /// Bytes of records that one datagram to the peer takes.
    pub(super) fn room(&mut self, slot: u32, route: Route, now: Duration) -> usize {
        let Some(link) = self.peers[slot as usize].link.as_mut() else {
            return 0;
        };
        let tag = link.sessions.sender().map_or(0, |session| session.tag_len());
        let (way, relay) = match route {
            Route::Direct(_) => (Way::Direct, 0),
            Route::Relay { via, .. } => {
                if link.via != Some(via) {
                    link.via = Some(via);
                    link.restart_mtu(Way::Relayed, now);
                }
                (Way::Relayed, RELAY_HEADER)
            }
        };
        let mtu = &mut link.mtu[way as usize];
        let payload = usize::from(mtu.current());
        if mtu.used(now) {
            self.schedule(slot, now);
        }
        payload - SLEEVE_HEADER - tag - relay
    }

    #[expect(clippy::too_many_arguments, reason = "a record in two parts and its way")]
    fn send_fragments(
        &mut self,
        slot: u32,
        route: Route,
        room: usize,
        head: &[u8],
        body: &[u8],
        now: Duration,
        sink: &mut impl Sink,
    ) {
        let peer = &mut self.peers[slot as usize];
        let id = peer.next_fragment;
        peer.next_fragment = id.wrapping_add(1);
        let total = head.len() + body.len();
        let most = room - FRAGMENT_HEADER;
        let mut offset = 0;
        while offset < total {
            let end = (offset + most).min(total);
            let of_head = &head[offset.min(head.len())..end.min(head.len())];
            let at = |n: usize| n.saturating_sub(head.len());
            let of_body = &body[at(offset)..at(end)];
            let header = Fragment::header_of(id, total, offset, end - offset);
            self.stage(slot, route, room, [&header, of_head, of_body], now, sink);
            self.counters.fragments_out += 1;
            offset = end;
        }
    }

    /// Puts a record that fits into the peer's datagram; begins another if that is too full.
    fn stage(&mut self, slot: u32, route: Route, room: usize, parts: [&[u8]; 3], now: Duration, sink: &mut impl Sink) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let at = self.stage_of(slot, route, room, now, sink);
        if self.stages.all[at].len + length > self.stages.all[at].room {
            self.close(at, now, sink);
        }
        self.stages.all[at].push(parts);
    }

    /// The peer's stage, for that route and with at most that room in a datagram.
    pub(super) fn stage_of(
        &mut self,
        slot: u32,
        route: Route,
        room: usize,
        now: Duration,
        sink: &mut impl Sink,
    ) -> usize {
        let at = match self.peers[slot as usize].stage {
            Some(at) => {
                if self.stages.all[at].route != route {
                    self.flush_stage(at, now, sink);
                } else if self.stages.all[at].len > room {
                    self.close(at, now, sink);
                }
                at
            }
            None => {
                let at = self.stages.pick();
                self.flush_stage(at, now, sink);
                at
            }
        };
        self.peers[slot as usize].stage = Some(at);
        let stage = &mut self.stages.all[at];
        (stage.peer, stage.route, stage.room) = (slot, route, room);
        self.stages.since.get_or_insert(now);
        at
    }

    pub(super) fn flush_stages(&mut self, now: Duration, sink: &mut impl Sink) {
        if self.stages.since.take().is_some() {
            for at in 0..self.stages.all.len() {
                self.flush_stage(at, now, sink);
            }
        }
    }

    /// Sends all that is in a stage, and frees it.
    fn flush_stage(&mut self, at: usize, now: Duration, sink: &mut impl Sink) {
        self.close(at, now, sink);
        let stage = &mut self.stages.all[at];
        stage.train.send(stage.route.addr(), sink);
        let owner = &mut self.peers[stage.peer as usize].stage;
        if *owner == Some(at) {
            *owner = None;
        }
    }

    /// Seals the open datagram of a stage.
    pub(super) fn close(&mut self, at: usize, now: Duration, sink: &mut impl Sink) {
        let stage = &mut self.stages.all[at];
        let records = core::mem::take(&mut stage.len);
        stage.group = None;
        if records > 0 {
            self.seal_datagrams(at, core::iter::once(|_: &mut [u8]| records), now, sink);
        }
    }

    /// Seals datagrams of a stage one behind the other, each after its records were written.
    pub(super) fn seal_datagrams<W: FnOnce(&mut [u8]) -> usize>(
        &mut self,
        at: usize,
        datagrams: impl Iterator<Item = W>,
        now: Duration,
        sink: &mut impl Sink,
    ) {
        let stage = &mut self.stages.all[at];
        let peer = &mut self.peers[stage.peer as usize];
        let id = peer.id;
        let Some(session) = peer.link.as_mut().and_then(|link| link.sessions.sender()) else {
            return self.counters.drop(DropReason::NoSession);
        };
        let header = RelayHeader { hops: HOPS, destination: id.into(), source: self.me.into() };
        let relay = matches!(stage.route, Route::Relay { .. }).then_some(&header);
        for write in datagrams {
            let records = write(stage.records());
            if stage.train.seal(&mut session.keys.seal, records, relay, stage.route.addr(), sink) {
                self.counters.datagrams_out += 1;
            } else {
                self.counters.drop(DropReason::KeyExhausted);
            }
        }
        if session.ask_rekey(now) {
            self.event(DataEvent::RekeyDue { peer: id });
        }
    }

    /// Seals one datagram and sends it at once.
    pub(super) fn transmit(
        &mut self,
        slot: u32,
        buffer: &mut [u8],
        records: usize,
        route: Route,
        now: Duration,
        sink: &mut impl Sink,
    ) {
        let peer = &mut self.peers[slot as usize];
        let id = peer.id;
        let sender = peer.link.as_mut().and_then(|link| link.sessions.sender());
        let Some(session) = sender else {
            return self.counters.drop(DropReason::NoSession);
        };
        let relay = match route {
            Route::Direct(_) => None,
            Route::Relay { .. } => Some(RelayHeader { hops: HOPS, destination: id.into(), source: self.me.into() }),
        };
        match session.keys.seal.seal(buffer, records, relay.as_ref()) {
            Some(sealed) => {
                self.counters.datagrams_out += 1;
                sealed.send(route.addr(), sink);
            }
            None => self.counters.drop(DropReason::KeyExhausted),
        }
        if session.ask_rekey(now) {
            self.event(DataEvent::RekeyDue { peer: id });
        }
    }

    /// Keeps a record until there is a session.
    fn wait(&mut self, slot: u32, head: &[u8], body: &[u8], now: Duration) {
        self.want_session(slot, now);
        let dropped = self.waiting.push(slot, head, body, now);
        self.counters.drop_many(DropReason::NoSession, dropped);
    }

    /// Asks control for a session, but not all the time.
    pub(super) fn want_session(&mut self, slot: u32, now: Duration) {
        let peer = &mut self.peers[slot as usize];
        if peer.wanted_at.is_none_or(|at| now >= at + SESSION_WANTED_EVERY) {
            peer.wanted_at = Some(now);
            let peer = peer.id;
            self.event(DataEvent::SessionWanted { peer });
        }
    }

    /// Sends what waited for the session, if it can be sent now.
    pub(super) fn send_waiting(&mut self, slot: u32, now: Duration, sink: &mut impl Sink) {
        if !self.peers[slot as usize].can_send() {
            return;
        }
        let Some(queue) = self.waiting.take(slot) else {
            return;
        };
        let (records, old) = queue.fresh(now);
        for record in records {
            self.send_record(slot, record, &[], now, sink);
        }
        self.counters.drop_many(DropReason::NoSession, old as u64);
        self.waiting.give_back(queue);
    }

    /// Wraps a QUIC datagram for a peer that is reached through relays (sleeve S4).
    pub(super) fn send_relayed_quic(&mut self, to: PeerId, bytes: &[u8], _now: Duration, sink: &mut impl Sink) {
        if bytes.first().is_none_or(|first| first & QUIC_BIT == 0) {
            return self.counters.drop(DropReason::Malformed);
        }
        let Some(slot) = self.slot(to) else {
            return self.counters.drop(DropReason::RelayUnknownPeer);
        };
        let end = RELAY_HEADER + bytes.len();
        if end > self.scratch.len() {
            return self.counters.drop(DropReason::Giant);
        }
        let route = self.relay_route(slot).or_else(|| self.route(slot, None));
        let Some(route) = route else {
            return self.counters.drop(DropReason::NoRoute);
        };
        let header = RelayHeader { hops: HOPS, destination: to.into(), source: self.me.into() };
        self.scratch[..RELAY_HEADER].copy_from_slice(&header.bytes());
        self.scratch[RELAY_HEADER..end].copy_from_slice(bytes);
        self.counters.datagrams_out += 1;
        // Ciphertext of QUIC: no user record can be in it, for its first byte has the QUIC bit.
        sink.datagram(route.addr(), &self.scratch[..end]);
    }
}
