//! Datagrams that are being filled, and records that wait for a session.
//!
//! ```text
//!  stage    │ sealed │ sealed │ record │ record │ …free…                        one a peer, 32 in all
//!  queue    │ record │ record │ …                                             one a peer, 64 in all
//! ```
//!
//! Both are fixed pools: made once or at first need, and kept.

use core::net::SocketAddr;
use core::time::Duration;

use super::cipher::records_at;
use super::limits::{STAGES, WAITING_AGE, WAITING_BYTES, WAITING_PEERS, WAITING_RECORDS};
use super::offload::Layout;
use super::train::Train;
use crate::wire::datagram::TAG;
use crate::wire::record::{GROUP_HEADER, RECORD_MAX, Segments};

/// How a datagram goes to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// To its own address.
    Direct(SocketAddr),
    /// To the address of the peer in slot `via`, which passes it on.
    Relay { via: u32, addr: SocketAddr },
}

impl Route {
    /// Where the socket sends it.
    pub(crate) const fn addr(&self) -> SocketAddr {
        match self {
            Self::Direct(addr) | Self::Relay { addr, .. } => *addr,
        }
    }
}

/// The UDP super-frame at the end of the open datagram, which may grow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    /// Where its record begins among the records.
    pub(crate) at: usize,
    pub(crate) layout: Layout,
}

/// What is on its way to a peer: sealed datagrams, and one that is being filled.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) peer: u32,
    pub(crate) route: Route,
    /// Bytes of records in the open datagram.
    pub(crate) len: usize,
    /// Bytes of records that may be in it.
    pub(crate) room: usize,
    pub(crate) group: Option<Group>,
    pub(crate) train: Train,
}

impl Stage {
    /// Whether nothing is in it.
    pub(crate) const fn is_free(&self) -> bool {
        self.len == 0 && self.train.is_empty()
    }

    /// Forgets all that is in it.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
        self.group = None;
        self.train.clear();
    }

    /// Appends the parts of one record. The caller saw to the room.
    pub(crate) fn push(&mut self, parts: [&[u8]; 3]) {
        self.group = None;
        for part in parts {
            let at = self.len;
            self.len += part.len();
            let len = self.len;
            self.records()[at..len].copy_from_slice(part);
        }
    }

    /// Where the records of the open datagram are.
    pub(crate) fn records(&mut self) -> &mut [u8] {
        self.train.records(matches!(self.route, Route::Relay { .. }))
    }

    /// Adds a datagram to the UDP super-frame at the end, if it is one of its flow and fits.
    pub(crate) fn grow(&mut self, layout: &Layout, frame: &[u8], room: usize) -> bool {
        let Some(Group { at, layout: group }) = self.group else {
            return false;
        };
        let payload = frame.len() - layout.headers;
        let shape = |l: &Layout| (l.ip, l.l4, l.headers, l.v6, l.udp, l.gso);
        let old = group.segments * group.gso;
        let fits = self.len + payload <= self.room.min(room) && group.segments < u8::MAX.into() && payload > 0;
        if !fits || layout.segments != 1 || shape(layout) != shape(&group) {
            return false;
        }
        let (from, end) = (at + GROUP_HEADER, self.len);
        let records = self.records();
        let head = &mut records[from..from + layout.headers];
        let follows = |id: Option<u16>| id.map(|id| id.wrapping_add(group.segments as u16));
        let numbered = group.atomic(head) || follows(group.identification(head)) == layout.identification(frame);
        if !numbered || !group.same_flow(head, frame) {
            return false;
        }
        group.set_payload(head, old, old + payload);
        records[end..end + payload].copy_from_slice(&frame[layout.headers..]);
        let grown = Layout { segments: group.segments + 1, ..group };
        let length = end + payload - from;
        records[at..from].copy_from_slice(&segments(&grown, false, false).group_header(length));
        self.len += payload;
        self.group = Some(Group { at, layout: grown });
        true
    }
}

/// The record for segments with that layout, but for its frame.
pub(crate) const fn segments(layout: &Layout, continues: bool, more: bool) -> Segments<'static> {
    Segments {
        count: layout.segments as u8,
        udp: layout.udp,
        ecn: layout.ecn,
        continues,
        more,
        l4: layout.l4 as u8,
        frame: &[],
    }
}

/// All stages.
#[derive(Debug)]
pub(crate) struct Stages {
    pub(crate) all: Vec<Stage>,
    victim: usize,
    /// Since when something waits in a stage.
    pub(crate) since: Option<Duration>,
}

impl Stages {
    pub(crate) fn new(payload_max: usize) -> Self {
        let route = Route::Direct(SocketAddr::from(([0; 4], 0)));
        let stage = || Stage { peer: 0, route, len: 0, room: 0, group: None, train: Train::new(payload_max) };
        Self { all: core::iter::repeat_with(stage).take(STAGES).collect(), victim: 0, since: None }
    }

    /// A stage to begin with: a free one, or, if there is none, one that must be sent first.
    pub(crate) fn pick(&mut self) -> usize {
        let free = self.all.iter().position(Stage::is_free);
        free.unwrap_or_else(|| {
            self.victim = (self.victim + 1) % self.all.len();
            self.victim
        })
    }
}

/// A buffer with room for any datagram of that payload, relayed and sealed.
pub(crate) fn buffer(payload_max: usize) -> Box<[u8]> {
    vec![0; records_at(true) + payload_max + TAG].into_boxed_slice()
}

/// Records that wait for a session with one peer.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    peer: u32,
    busy: bool,
    bytes: Vec<u8>,
    /// Length and arrival of each record.
    records: Vec<(usize, Duration)>,
}

impl Queue {
    /// The records that are not too old, in the order in which they came, and how many were.
    pub(crate) fn fresh(&self, now: Duration) -> (impl Iterator<Item = &[u8]>, usize) {
        let young = move |at: Duration| now.saturating_sub(at) <= WAITING_AGE;
        let old = self.records.iter().filter(|r| !young(r.1)).count();
        let mut rest = &self.bytes[..];
        let records = self.records.iter().filter_map(move |&(length, at)| {
            let (record, after) = rest.split_at_checked(length)?;
            rest = after;
            young(at).then_some(record)
        });
        (records, old)
    }
}

/// All queues.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    queues: Vec<Queue>,
}

impl Waiting {
    /// Keeps a record. Gives how many records were dropped: this one or older ones.
    pub(crate) fn push(&mut self, peer: u32, head: &[u8], body: &[u8], now: Duration) -> u64 {
        let found = self.queues.iter().position(|q| q.busy && q.peer == peer);
        let Some(at) = found.or_else(|| self.claim(now)) else {
            return 1;
        };
        let queue = &mut self.queues[at];
        let mut dropped = 0;
        let last = queue.records.last().filter(|_| queue.busy).map(|r| r.1);
        if queue.peer != peer || last.is_none_or(|at| now.saturating_sub(at) > WAITING_AGE) {
            dropped += queue.records.len() as u64;
            queue.bytes.clear();
            queue.records.clear();
        }
        (queue.peer, queue.busy) = (peer, true);
        let length = head.len() + body.len();
        let bound = const { if WAITING_BYTES > RECORD_MAX { WAITING_BYTES } else { RECORD_MAX } };
        if queue.records.len() >= WAITING_RECORDS || queue.bytes.len() + length > bound {
            return dropped + 1;
        }
        queue.bytes.extend_from_slice(head);
        queue.bytes.extend_from_slice(body);
        queue.records.push((length, now));
        dropped
    }

    /// What waits for a peer; return it with [`Self::give_back`].
    pub(crate) fn take(&mut self, peer: u32) -> Option<Queue> {
        let found = self.queues.iter_mut().find(|q| q.busy && q.peer == peer)?;
        Some(core::mem::take(found))
    }

    /// Returns the memory of a queue.
    pub(crate) fn give_back(&mut self, mut queue: Queue) {
        queue.busy = false;
        queue.bytes.clear();
        queue.records.clear();
        if let Some(place) = self.queues.iter_mut().find(|q| !q.busy && q.bytes.capacity() == 0) {
            *place = queue;
        }
    }

    /// A queue that nobody uses, a new one, or one whose records are all too old.
    fn claim(&mut self, now: Duration) -> Option<usize> {
        let usable = |q: &Queue| !q.busy || q.records.last().is_none_or(|r| now.saturating_sub(r.1) > WAITING_AGE);
        if let Some(at) = self.queues.iter().position(usable) {
            return Some(at);
        }
        if self.queues.len() >= WAITING_PEERS {
            return None;
        }
        self.queues.push(Queue {
            bytes: Vec::with_capacity(RECORD_MAX.max(WAITING_BYTES)),
            records: Vec::with_capacity(WAITING_RECORDS),
            ..Queue::default()
        });
        Some(self.queues.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn waiting_for(waiting: &mut Waiting, peer: u32, now: Duration) -> Vec<Vec<u8>> {
        let Some(queue) = waiting.take(peer) else {
            return Vec::new();
        };
        let records = queue.fresh(now).0.map(<[u8]>::to_vec).collect();
        waiting.give_back(queue);
        records
    }

    #[test]
    fn records_come_out_in_order_and_only_the_fresh_ones() {
        let mut waiting = Waiting::default();
        for n in 0..5 {
            assert_eq!(waiting.push(7, &[n], &[n; 3], ms(u64::from(n) * 300)), 0);
        }
        assert_eq!(waiting_for(&mut waiting, 8, ms(1200)), Vec::<Vec<u8>>::new());
        assert_eq!(waiting_for(&mut waiting, 7, ms(1400)), [[2; 4], [3; 4], [4; 4]]);
        assert_eq!(waiting_for(&mut waiting, 7, ms(1400)), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_peer_without_session_holds_a_bounded_number_of_records() {
        let mut waiting = Waiting::default();
        let dropped: u64 = (0..100).map(|_| waiting.push(1, &[1], &[2; 50], ms(0))).sum();
        assert_eq!(dropped, 100 - WAITING_RECORDS as u64);
        assert_eq!(waiting.push(2, &[0; 37], &[0; 65_535], ms(0)), 0);
        assert_eq!(waiting.push(2, &[0; 4], &[0; 14], ms(0)), 1);
    }

    #[test]
    fn many_peers_without_session_hold_a_bounded_number_of_queues() {
        let mut waiting = Waiting::default();
        for peer in 0..WAITING_PEERS as u32 {
            assert_eq!(waiting.push(peer, &[1], &[], ms(0)), 0);
        }
        assert_eq!(waiting.push(999, &[1], &[], ms(0)), 1);
        // Their time is over: the new one takes the place of an old one.
        assert_eq!(waiting.push(999, &[1], &[], ms(1001)), 1);
        assert_eq!(waiting_for(&mut waiting, 999, ms(1001)), [[1]]);
    }
}
