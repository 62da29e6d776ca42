//! Pieces of super-frames, joined again as they come.
//!
//! ```text
//!  datagrams   n: [hdr│p0]  n+1: [hdr│p1]  n+2: lost  n+3: [hdr│p3]
//!  to the TAP  │ hdr │ p0 │ p1 │                      │ hdr │ p3 │
//! ```
//!
//! A piece that says so continues the super-frame of the datagram numbered before its own. Each
//! is a frame by itself, so what was lost costs only what it carried. Nothing is copied but the
//! first headers: the payloads stay where they were received and opened (sleeve S32).

use core::net::SocketAddr;

use super::Sink;
use super::offload::{HEADERS_MAX, Layout};
use super::parts::{Parts, Places};
use crate::wire::datagram::SleeveHeader;
use crate::wire::record::Segments;

/// Super-frames that are joined at the same time, one a peer.
const RUNS: usize = 4;
/// Most that IP can say of its length.
const IP_MAX: usize = 65_535;
/// Datagrams that one system call sends on; kernels before 6.10 take no more.
const RELAY_MAX: usize = 64;
/// Their bytes: UDP over IPv6 carries no more in one call.
const RELAY_BYTES: usize = 65_000;

/// What was joined up to now, of one super-frame.
#[derive(Debug)]
struct Run {
    peer: u32,
    layout: Layout,
    /// Whether it may go on.
    open: bool,
    /// Number of the last datagram, and the key that it came under.
    last: SleeveHeader,
    first_payload: usize,
    last_flags: u8,
    head: [u8; HEADERS_MAX],
    payload: Places,
}

impl Run {
    const NONE: Self = Self {
        peer: 0,
        layout: Layout { ip: 0, l4: 0, headers: 0, v6: false, udp: false, ecn: false, gso: 0, segments: 0 },
        open: false,
        last: SleeveHeader { receiver: 0, counter: 0 },
        first_payload: 0,
        last_flags: 0,
        head: [0; HEADERS_MAX],
        payload: Places::NONE,
    };

    const fn busy(&self) -> bool {
        self.layout.segments > 0
    }

    /// Joins a piece to the end; false if it does not belong there.
    fn join(&mut self, piece: &Piece<'_>) -> bool {
        let Piece { layout, at, frame, from, .. } = *piece;
        let payload = frame.len() - layout.headers;
        let same = (layout.l4, layout.headers, layout.v6, layout.udp)
            == (self.layout.l4, self.layout.headers, self.layout.v6, self.layout.udp);
        let next = from.receiver == self.last.receiver && from.counter == self.last.counter.wrapping_add(1);
        let whole = layout.gso == self.layout.gso || (layout.segments == 1 && layout.gso < self.layout.gso);
        let room = self.layout.headers - self.layout.ip + self.payload.bytes() + payload <= IP_MAX;
        if !(self.open && same && next && whole && room && payload > 0) {
            return false;
        }
        if !self.payload.push(at + layout.headers, payload) {
            return false;
        }
        self.open = piece.more && layout.gso == self.layout.gso;
        self.layout.segments += layout.segments;
        self.last = *from;
        self.last_flags = layout.last_flags(frame);
        true
    }

    fn begin(&mut self, piece: &Piece<'_>) {
        let headers = piece.layout.headers;
        let payload = piece.frame.len() - headers;
        (self.peer, self.layout, self.last) = (piece.peer, piece.layout, *piece.from);
        self.open = piece.more && payload > 0;
        self.first_payload = payload;
        self.last_flags = 0;
        self.head[..headers].copy_from_slice(&piece.frame[..headers]);
        self.payload.clear();
        self.payload.push(piece.at + headers, payload);
    }

    fn deliver(&mut self, arena: &[u8], sink: &mut impl Sink) {
        let head = &mut self.head[..self.layout.headers];
        if self.payload.bytes() != self.first_payload {
            self.layout.set_payload(head, self.first_payload, self.payload.bytes());
            self.layout.set_last_flags(head, self.last_flags);
        }
        sink.super_frame(&self.layout.virtio(), Parts::new(head, arena, &self.payload));
        self.layout.segments = 0;
    }
}

/// A piece that was received.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) peer: u32,
    pub(crate) from: &'a SleeveHeader,
    /// Where the frame lies in the arena.
    pub(crate) at: usize,
    pub(crate) frame: &'a [u8],
    pub(crate) layout: Layout,
    pub(crate) continues: bool,
    pub(crate) more: bool,
}

impl<'a> Piece<'a> {
    /// `None` if the record contradicts itself.
    pub(crate) fn new(peer: u32, from: &'a SleeveHeader, at: usize, record: &Segments<'a>) -> Option<Self> {
        let mut layout = Layout::at(record.frame, record.l4, record.udp)?;
        let (payload, count) = (layout.gso, usize::from(record.count));
        // One segment may be empty; of several all are equal.
        if count == 0 || payload % count != 0 || (count > 1 && payload == 0) {
            return None;
        }
        (layout.gso, layout.segments, layout.ecn) = (payload / count, count, record.ecn);
        let (continues, more) = (record.continues, record.more);
        Some(Self { peer, from, at, frame: record.frame, layout, continues, more })
    }
}

/// All that is being joined out of one arena.
#[derive(Debug)]
pub(crate) struct Joiner {
    runs: Box<[Run; RUNS]>,
    /// How many of them are busy: none, mostly.
    busy: usize,
    victim: usize,
    relay: Relay,
}

/// Datagrams of one size that go on to one address.
#[derive(Debug)]
struct Relay {
    to: SocketAddr,
    size: usize,
    count: usize,
    /// One was shorter: it must be the last.
    full: bool,
    datagrams: Places,
}

impl Joiner {
    pub(crate) fn new() -> Self {
        let to = SocketAddr::from(([0; 4], 0));
        let relay = Relay { to, size: 0, count: 0, full: false, datagrams: Places::NONE };
        Self { runs: Box::new([Run::NONE; RUNS]), busy: 0, victim: 0, relay }
    }

    /// Takes in a piece. True if it was joined to what came before it, so that its addresses
    /// need no second look.
    pub(crate) fn join(&mut self, piece: &Piece<'_>) -> bool {
        if !piece.continues || self.busy == 0 {
            return false;
        }
        let run = self.runs.iter_mut().find(|run| run.busy() && run.peer == piece.peer);
        run.is_some_and(|run| run.join(piece))
    }

    /// Whether one of them may go on.
    pub(crate) fn is_open(&self) -> bool {
        self.busy > 0 && self.runs.iter().any(|run| run.busy() && run.open)
    }

    /// Begins anew with a piece that was not joined.
    pub(crate) fn begin(&mut self, piece: &Piece<'_>, arena: &[u8], sink: &mut impl Sink) {
        self.deliver_of(piece.peer, arena, sink);
        let free = self.runs.iter().position(|run| !run.busy());
        let at = free.unwrap_or_else(|| {
            self.victim = (self.victim + 1) % RUNS;
            self.runs[self.victim].deliver(arena, sink);
            self.busy -= 1;
            self.victim
        });
        self.runs[at].begin(piece);
        self.busy += 1;
    }

    /// Hands over what came from a peer, so that what comes next stays behind it.
    pub(crate) fn deliver_of(&mut self, peer: u32, arena: &[u8], sink: &mut impl Sink) {
        if self.busy > 0
            && let Some(run) = self.runs.iter_mut().find(|run| run.busy() && run.peer == peer)
        {
            run.deliver(arena, sink);
            self.busy -= 1;
        }
    }

    /// Sends a datagram on, with others of its size if they follow each other.
    pub(crate) fn relay(&mut self, to: SocketAddr, at: usize, len: usize, arena: &[u8], sink: &mut impl Sink) {
        let relay = &self.relay;
        let fits = relay.to == to
            && len <= relay.size
            && !relay.full
            && relay.count < RELAY_MAX
            && relay.datagrams.bytes() + len <= RELAY_BYTES;
        if relay.count > 0 && !(fits && self.relay.datagrams.push(at, len)) {
            self.send_relayed(arena, sink);
        }
        let relay = &mut self.relay;
        if relay.count == 0 {
            (relay.to, relay.size, relay.full) = (to, len, false);
            relay.datagrams.clear();
            relay.datagrams.push(at, len);
        }
        relay.count += 1;
        relay.full = len < relay.size;
    }

    /// Hands everything over: the arena is about to be used again.
    pub(crate) fn settle(&mut self, arena: &[u8], sink: &mut impl Sink) {
        for run in self.runs.iter_mut().filter(|run| run.busy()) {
            run.deliver(arena, sink);
        }
        self.busy = 0;
        self.send_relayed(arena, sink);
    }

    /// Forgets everything: the arena is gone.
    pub(crate) fn clear(&mut self) {
        self.runs.iter_mut().for_each(|run| run.layout.segments = 0);
        (self.busy, self.relay.count) = (0, 0);
    }

    fn send_relayed(&mut self, arena: &[u8], sink: &mut impl Sink) {
        if self.relay.count > 0 {
            self.relay.count = 0;
            sink.datagrams(self.relay.to, Parts::new(&[], arena, &self.relay.datagrams), self.relay.size);
        }
    }
}
