//! What happens by time: probes, path MTU, old keys.
//!
//! One heap entry a peer with something to do; a peer without session or address has none. So
//! the next time is the top of the heap, and idle peers cost nothing.

use core::cmp::Reverse;
use core::net::SocketAddr;
use core::time::Duration;

use super::Forwarder;
use super::receive::Arrival;
use crate::data::Sink;
use crate::data::cipher::records_at;
use crate::data::counters::DropReason;
use crate::data::limits::{PAYLOAD_BASE, SESSION_WANTED_EVERY};
use crate::data::mtu::Burst;
use crate::data::path::{Change, Life};
use crate::data::peer::Way;
use crate::data::stage::Route;
use crate::handover::DataEvent;
use crate::wire::datagram::{RELAY_HEADER, SLEEVE_HEADER};
use crate::wire::record::{PROBE_LEN, Probe};

/// However much is due: no peer is looked at more often than this.
const TICK: Duration = Duration::from_millis(1);

impl Forwarder {
    pub(super) fn run_timers(&mut self, now: Duration, sink: &mut impl Sink) {
        self.flush_stages(now, sink);
        self.assembler.expire(now);
        let given_up = self.assembler.take_given_up();
        self.counters.drop_many(DropReason::Incomplete, given_up);
        while let Some(&Reverse((at, slot))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            // An entry that is no longer the peer's own was overtaken by an earlier one.
            if self.peers[slot as usize].scheduled == Some(at) {
                self.peers[slot as usize].scheduled = None;
                self.poll_peer(slot, now, sink);
            }
        }
        self.flush_stages(now, sink);
    }

    /// Moves what stands first and is not due any more to when it is: an echo has come, or a probe went early.
    pub(super) fn settle_timers(&mut self) {
        while let Some(&Reverse((at, slot))) = self.timers.peek() {
            let peer = &self.peers[slot as usize];
            if peer.scheduled != Some(at) {
                self.timers.pop();
                continue;
            }
            let due = self.due(slot).filter(|_| peer.alive).map(|(due, _)| due);
            if due.is_some_and(|due| due <= at) {
                return;
            }
            self.timers.pop();
            self.peers[slot as usize].scheduled = None;
            if let Some(due) = due {
                self.schedule(slot, due);
            }
        }
    }

    pub(super) fn next_timer(&self) -> Option<(Duration, &'static str)> {
        let Reverse((at, slot)) = *self.timers.peek()?;
        Some((at, self.due(slot).map_or("housekeeping", |(_, why)| why)))
    }

    /// Makes sure that the peer is looked at no later than `at`.
    pub(super) fn schedule(&mut self, slot: u32, at: Duration) {
        let scheduled = &mut self.peers[slot as usize].scheduled;
        if scheduled.is_none_or(|before| at < before) {
            *scheduled = Some(at);
            self.timers.push(Reverse((at, slot)));
        }
    }

    /// When the peer has something to do next, and what.
    fn due(&self, slot: u32) -> Option<(Duration, &'static str)> {
        let peer = &self.peers[slot as usize];
        let mut due: Option<(Duration, &'static str)> = None;
        let mut add = |next: Option<(Duration, &'static str)>| {
            if let Some(next) = next
                && due.is_none_or(|due| next.0 < due.0)
            {
                due = Some(next);
            }
        };
        let Some(link) = peer.link.as_deref().filter(|l| l.sessions.shown().is_some()) else {
            let asked = peer.wanted_at.unwrap_or_default();
            let wanted = peer.direct.map(|_| (asked + SESSION_WANTED_EVERY, "session wanted"));
            return wanted.filter(|_| peer.alive);
        };
        add(link.sessions.due());
        if let Some(path) = &link.path {
            add(Some(path.due()));
            if path.life() == Life::Up {
                add(link.mtu[Way::Direct as usize].due());
            }
        }
        if link.via.is_some() {
            add(link.mtu[Way::Relayed as usize].due());
        }
        due
    }

    /// Does what is due for a peer and sets its timer.
    pub(super) fn poll_peer(&mut self, slot: u32, now: Duration, sink: &mut impl Sink) {
        if !self.peers[slot as usize].alive {
            return;
        }
        if self.peers[slot as usize].has_session() {
            self.poll_link(slot, now, sink);
        } else if self.peers[slot as usize].direct.is_some() {
            // Without a session the path cannot be probed.
            self.want_session(slot, now);
        }
        if let Some((at, _)) = self.due(slot) {
            self.schedule(slot, at.max(now + TICK));
        }
    }

    fn poll_link(&mut self, slot: u32, now: Duration, sink: &mut impl Sink) {
        let can_send = self.peers[slot as usize].can_send();
        let Some(link) = self.peers[slot as usize].link.as_mut() else {
            return;
        };
        if let Some(index) = link.sessions.expire(now) {
            self.by_index.remove(&index);
        }
        let confirm = link.sessions.confirm_due(now);
        let mut change = None;
        let mut probe = false;
        if let Some(path) = &mut link.path {
            if can_send || path.life() != Life::Fresh {
                change = path.died(now);
                probe = path.probe_due(now) && can_send;
            } else {
                path.hold(now);
            }
        }
        self.path_changed(slot, change, now);
        if probe {
            self.send_probe(slot, 0, Way::Direct, now, sink);
        }
        if confirm {
            let way = match self.route(slot, None) {
                Some(Route::Direct(_)) => Way::Direct,
                _ => Way::Relayed,
            };
            if way == Way::Relayed || !probe {
                self.send_probe(slot, 0, way, now, sink);
            }
        }
        if can_send {
            self.poll_mtu(slot, now, sink);
        }
        self.report_mtu(slot);
    }

    fn poll_mtu(&mut self, slot: u32, now: Duration, sink: &mut impl Sink) {
        for way in [Way::Direct, Way::Relayed] {
            let peer = &mut self.peers[slot as usize];
            let life = peer.life();
            let Some(link) = peer.link.as_mut() else {
                return;
            };
            let open = match way {
                Way::Direct => life == Some(Life::Up),
                Way::Relayed => link.via.is_some(),
            };
            if !open {
                continue;
            }
            let (burst, _) = link.mtu[way as usize].poll(now);
            self.send_burst(slot, way, &burst, now, sink);
        }
    }

    fn send_burst(&mut self, slot: u32, way: Way, burst: &Burst, now: Duration, sink: &mut impl Sink) {
        for &size in burst.sizes() {
            self.send_probe(slot, size, way, now, sink);
        }
    }

    /// Sends a probe in a datagram of `size` bytes of UDP payload, or as small as it gets.
    fn send_probe(&mut self, slot: u32, size: u16, way: Way, now: Duration, sink: &mut impl Sink) {
        let route = match way {
            Way::Direct => self.peers[slot as usize].direct.map(Route::Direct),
            Way::Relayed => self.relay_route(slot),
        };
        let (Some(route), Some(link)) = (route, self.peers[slot as usize].link.as_mut()) else {
            return;
        };
        let Some(tag) = link.sessions.sender().map(|session| session.tag_len()) else {
            return;
        };
        let relay = if way == Way::Relayed { RELAY_HEADER } else { 0 };
        let least = relay + SLEEVE_HEADER + PROBE_LEN + tag;
        let padding = usize::from(size).saturating_sub(least);
        let size = (least + padding).min(u16::MAX.into()) as u16;
        let id = link.probe(size, way, now);
        self.counters.probes += 1;
        let probe = Probe { id, size };
        let mut buffer = core::mem::take(&mut self.scratch);
        let at = records_at(way == Way::Relayed);
        buffer[at..at + PROBE_LEN].copy_from_slice(&probe.probe(padding));
        buffer[at + PROBE_LEN..at + PROBE_LEN + padding].fill(0);
        self.transmit(slot, &mut buffer, PROBE_LEN + padding, route, now, sink);
        self.scratch = buffer;
    }

    /// Answers a probe at once, on the way by which it came, with one of this host's own if that is due soon
    /// (sleeve S22).
    pub(super) fn send_echo(&mut self, slot: u32, probe: Probe, arrival: Arrival, now: Duration, sink: &mut impl Sink) {
        let route = match arrival {
            Arrival::Direct(from) => Some(Route::Direct(from)),
            Arrival::Relayed(_) => self.relay_route(slot).or_else(|| self.route(slot, None)),
        };
        let Some(route) = route else {
            return self.counters.drop(DropReason::NoRoute);
        };
        let mut buffer = core::mem::take(&mut self.scratch);
        let at = records_at(matches!(route, Route::Relay { .. }));
        buffer[at..at + PROBE_LEN].copy_from_slice(&probe.echo());
        let mut end = at + PROBE_LEN;
        let peer = &mut self.peers[slot as usize];
        let direct = matches!(route, Route::Direct(from) if peer.direct == Some(from));
        if let Some(link) = peer.link.as_mut().filter(|_| direct)
            && let Some(tag) = link.sessions.sender().map(|session| session.tag_len())
            && link.path.as_mut().is_some_and(|path| path.probe_early(now))
        {
            self.put_off = true;
            let size = (end + PROBE_LEN + tag) as u16;
            let own = Probe { id: link.probe(size, Way::Direct, now), size };
            self.counters.probes += 1;
            buffer[end..end + PROBE_LEN].copy_from_slice(&own.probe(0));
            end += PROBE_LEN;
        }
        self.transmit(slot, &mut buffer, end - at, route, now, sink);
        self.scratch = buffer;
    }

    /// An echo: the direct path lives if that is how probe and echo went (sleeve S23).
    pub(super) fn take_echo(&mut self, slot: u32, probe: Probe, arrival: Arrival, now: Duration, sink: &mut impl Sink) {
        let Some(link) = self.peers[slot as usize].link.as_mut() else {
            return;
        };
        let Some(sent) = link.answered(probe.id) else {
            return;
        };
        self.counters.echoes += 1;
        link.mtu[sent.way as usize].echo(sent.size, sent.sent, now);
        let direct = sent.way == Way::Direct && matches!(arrival, Arrival::Direct(_));
        let path = link.path.as_mut().filter(|_| direct);
        let change = path.and_then(|path| path.echo(sent.sent, now));
        self.path_changed(slot, change, now);
        self.put_off = true;
        self.poll_peer(slot, now, sink);
    }

    fn path_changed(&mut self, slot: u32, change: Option<Change>, now: Duration) {
        let peer = &mut self.peers[slot as usize];
        let id = peer.id;
        let event = match change {
            None => return,
            Some(Change::Up(rtt)) => {
                // It may not be the path that it was.
                if let Some(link) = &mut peer.link {
                    link.restart_mtu(Way::Direct, now);
                }
                DataEvent::PathUp { peer: id, rtt }
            }
            Some(Change::Down) => DataEvent::PathDown { peer: id },
            Some(Change::Rtt(rtt)) => DataEvent::Rtt { peer: id, rtt },
        };
        self.event(event);
    }

    /// Tells control the path MTU when it has settled or shrunk.
    fn report_mtu(&mut self, slot: u32) {
        let way = match self.route(slot, None) {
            Some(Route::Direct(_)) => Way::Direct,
            Some(Route::Relay { .. }) => Way::Relayed,
            None => return,
        };
        let peer = &mut self.peers[slot as usize];
        let id = peer.id;
        let Some(link) = &mut peer.link else {
            return;
        };
        let mtu = &link.mtu[way as usize];
        let payload = mtu.current();
        if payload == link.reported_mtu || !(mtu.settled() || payload < link.reported_mtu) {
            return;
        }
        link.reported_mtu = payload;
        self.event(DataEvent::Mtu { peer: id, payload });
    }

    /// The path MTU searches have another upper end.
    pub(super) fn set_payload_max(&mut self, bytes: u16, now: Duration) {
        let bytes = bytes.clamp(PAYLOAD_BASE, self.payload_cap);
        if bytes == self.payload_max {
            return;
        }
        self.payload_max = bytes;
        for slot in 0..self.peers.len() as u32 {
            if let Some(link) = self.peers[slot as usize].link.as_mut() {
                link.mtu.iter_mut().for_each(|mtu| mtu.limit(bytes, now));
                self.report_mtu(slot);
                self.schedule(slot, now);
            }
        }
    }

    /// The socket refused a datagram for its size: for every peer that is reached there.
    pub(super) fn refused(&mut self, to: SocketAddr, size: usize, now: Duration) {
        let size = u16::try_from(size).unwrap_or(u16::MAX);
        let at = self.by_addr.get(&to);
        for slot in 0..self.peers.len() as u32 {
            let Some(link) = self.peers[slot as usize].link.as_mut() else {
                continue;
            };
            if at == Some(slot) {
                link.mtu[Way::Direct as usize].refused(size, now);
            }
            if at.is_some() && link.via == at {
                link.mtu[Way::Relayed as usize].refused(size, now);
            }
            self.report_mtu(slot);
            self.schedule(slot, now);
        }
    }
}
