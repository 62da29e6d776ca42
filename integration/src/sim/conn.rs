//! What stands for QUIC: connections that carry messages whole, reliably and in order, over the
//! same datagrams as everything else, directly or through relays.
//!
//! ```text
//!  dialler                              acceptor
//!     │── Hello (key) ──────────────────────►│   repeated after 0.3, 0.6 s … up to DIAL_TIMEOUT
//!     │◄───────────────────── Accept (key) ──│
//!  Connected                                 │
//!     │── Done ─────────────────────────────►│ Connected
//!     │◄═ Data ══ Ack ══ Ping ══ Close ═════►│
//! ```
//!
//! Kept of QUIC: the shared port (first byte has bit 0x40), the round trips of the handshake,
//! the 1200-byte datagrams, retransmission with back-off, keep-alive, the idle timeout, closing
//! with a reason, the stateless reset by which a router that was killed and started again makes
//! the other ends let go, and that only the dialling side may change its address. Left out:
//! cryptography (keys are believed) and congestion control.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mesh_proto::control::{ConnId, Connected, DialId};
use mesh_proto::data::Hop;

use super::stream::Stream;

/// Datagrams are no larger than this, as QUIC's are before its path MTU is known.
pub(super) const DATAGRAM_MAX: usize = 1200;
// The times are those that the router gives its QUIC endpoint.
/// A dial without an answer for this long has failed.
const DIAL_TIMEOUT: Duration = Duration::from_secs(4);
/// First repetition of a Hello: three times the first guess of a round trip (RFC 9002 §6.2.2).
const HELLO_AGAIN: Duration = Duration::from_millis(300);
/// A connection on which nothing was heard for this long is gone.
const IDLE: Duration = Duration::from_secs(30);
/// A connection on which nothing was heard for this long is pinged, and again after
/// [`PING_AGAIN`].
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const PING_AGAIN: Duration = Duration::from_secs(1);
/// How long a closed connection answers late datagrams with its reason.
const GRAVE: Duration = Duration::from_secs(1);
/// Most closed connections that are remembered.
const GRAVES_MAX: usize = 64;

/// Length of what precedes the content of a datagram: kind, token.
const HEADER: usize = 9;

/// What a datagram is for; in its first byte, whose bit 0x40 says "QUIC", bit 0x08 "from the
/// acceptor".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Hello = 0,
    Accept = 1,
    Done = 2,
    Data = 3,
    Ack = 4,
    Ping = 5,
    Close = 6,
    Reset = 7,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        let kinds =
            [Self::Hello, Self::Accept, Self::Done, Self::Data, Self::Ack, Self::Ping, Self::Close, Self::Reset];
        kinds.into_iter().find(|kind| *kind as u8 == byte & 7)
    }
}

/// The side of a connection: `true` dialled.
type Side = bool;

/// What the transport tells the node.
#[derive(Debug)]
pub(super) enum Up {
    Connected(ConnId, Connected),
    Failed(DialId, String),
    Message(ConnId, Vec<u8>),
    Gone(ConnId, String),
}

#[derive(Debug)]
enum State {
    /// Hello was sent: the dial, when it began, when and after what time Hello goes again.
    Dialling {
        dial: DialId,
        since: Duration,
        again: Duration,
        wait: Duration,
    },
    /// Accept was sent.
    Accepted {
        since: Duration,
    },
    Open,
}

#[derive(Debug)]
struct Conn {
    token: u64,
    side: Side,
    hop: Hop,
    key: [u8; 32],
    state: State,
    stream: Stream,
    heard: Duration,
    pinged: Duration,
    /// Its place in [`Transport::due`].
    due: Duration,
}

/// The connections of one peer.
#[derive(Debug)]
pub(super) struct Transport {
    key: [u8; 32],
    /// Makes tokens and connection numbers that no other life of any peer makes.
    unique: u64,
    conns: BTreeMap<ConnId, Conn>,
    names: BTreeMap<(u64, Side), ConnId>,
    due: BTreeSet<(Duration, ConnId)>,
    graves: VecDeque<(Duration, u64, Side, String)>,
    up: VecDeque<Up>,
    out: VecDeque<(Hop, Vec<u8>)>,
}

impl Transport {
    /// A transport without connections. `key` is the Ed25519 key of this peer; `unique` differs
    /// between all lives of all peers in its upper 40 bits.
    pub(super) fn new(key: [u8; 32], unique: u64) -> Self {
        Self {
            key,
            unique: unique << 24,
            conns: BTreeMap::new(),
            names: BTreeMap::new(),
            due: BTreeSet::new(),
            graves: VecDeque::new(),
            up: VecDeque::new(),
            out: VecDeque::new(),
        }
    }

    /// Starts to connect.
    pub(super) fn dial(&mut self, dial: DialId, hop: Hop, now: Duration) {
        self.unique += 1;
        let (again, wait) = (now + HELLO_AGAIN, HELLO_AGAIN);
        let state = State::Dialling { dial, since: now, again, wait };
        let conn = self.open(self.unique, true, hop, [0; 32], state, now);
        self.emit(conn, Kind::Hello);
    }

    /// Sends a message, if the connection is still there.
    pub(super) fn send(&mut self, conn: ConnId, bytes: &[u8], now: Duration) {
        if let Some(found) = self.conns.get_mut(&conn) {
            found.stream.push(bytes);
            self.pump(conn, now);
            self.reckon(conn);
        }
    }

    /// Closes a connection with a reason, if it is still there. Both ends are told, as by QUIC.
    pub(super) fn close(&mut self, conn: ConnId, reason: &str, now: Duration) {
        let Some(found) = self.remove(conn) else { return };
        self.out.push_back((found.hop, close(found.token, found.side, reason)));
        self.graves.push_back((now + GRAVE, found.token, found.side, reason.to_owned()));
        if self.graves.len() > GRAVES_MAX {
            self.graves.pop_front();
        }
        self.up.push_back(Up::Gone(conn, reason.to_owned()));
    }

    /// A datagram came in.
    pub(super) fn handle_datagram(&mut self, from: Hop, bytes: &[u8], now: Duration) {
        let Some((kind, side, token, body)) = parse(bytes) else { return };
        // The sender's side is the other than ours.
        let Some(&id) = self.names.get(&(token, !side)) else {
            return self.stranger(from, kind, side, token, body, now);
        };
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.hop != from {
            let follows = matches!((conn.hop, from), (Hop::Direct(_), Hop::Direct(_)));
            if conn.side || !follows {
                return;
            }
            conn.hop = from;
        }
        conn.heard = now;
        self.take(id, kind, body, now);
        self.reckon(id);
    }

    fn take(&mut self, id: ConnId, kind: Kind, body: &[u8], now: Duration) {
        match kind {
            Kind::Hello => self.emit(id, Kind::Accept),
            Kind::Accept => self.accepted(id, body),
            Kind::Done => self.done(id),
            Kind::Data => {
                self.done(id);
                self.data(id, body, now);
            }
            Kind::Ack | Kind::Ping => {
                self.done(id);
                self.ack(id, kind, body, now);
            }
            Kind::Close => {
                let reason = String::from_utf8_lossy(body).into_owned();
                self.lose(id, reason);
            }
            Kind::Reset => {
                // Only who made the connection can, even after a restart, reset it.
                if self.conns.get(&id).is_some_and(|conn| body == conn.key) {
                    self.lose(id, "reset by peer".to_owned());
                }
            }
        }
    }

    /// The time of [`Self::poll_timeout`] has come.
    pub(super) fn handle_timeout(&mut self, now: Duration) {
        while self.graves.front().is_some_and(|grave| grave.0 <= now) {
            self.graves.pop_front();
        }
        while let Some(&(at, id)) = self.due.first()
            && at <= now
        {
            self.tick(id, now);
            self.reckon(id);
            if self.due.first() == Some(&(at, id)) {
                // Not done yet: the caller comes back for it.
                break;
            }
        }
    }

    /// When to call [`Self::handle_timeout`].
    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        let conns = self.due.first().map(|due| due.0);
        let graves = self.graves.front().map(|grave| grave.0);
        conns.into_iter().chain(graves).min()
    }

    /// The next thing that the node should know.
    pub(super) fn poll_up(&mut self) -> Option<Up> {
        self.up.pop_front()
    }

    /// The next datagram to send.
    pub(super) fn poll_out(&mut self) -> Option<(Hop, Vec<u8>)> {
        self.out.pop_front()
    }

    fn open(&mut self, token: u64, side: Side, hop: Hop, key: [u8; 32], state: State, now: Duration) -> ConnId {
        // The two ends of a connection have numbers of their own, also if both are this peer.
        let id = ConnId(token << 1 | u64::from(side));
        let stream = Stream::default();
        let mut conn = Conn { token, side, hop, key, state, stream, heard: now, pinged: now, due: now };
        conn.due = conn.next();
        self.names.insert((token, side), id);
        self.due.insert((conn.due, id));
        self.conns.insert(id, conn);
        id
    }

    /// Something happened on a connection: when is it due now?
    fn reckon(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let next = conn.next();
        if next != conn.due {
            self.due.remove(&(conn.due, id));
            self.due.insert((next, id));
            conn.due = next;
        }
    }

    fn remove(&mut self, id: ConnId) -> Option<Conn> {
        let conn = self.conns.remove(&id)?;
        self.names.remove(&(conn.token, conn.side));
        self.due.remove(&(conn.due, id));
        Some(conn)
    }

    /// A datagram of a connection that is not there.
    fn stranger(&mut self, from: Hop, kind: Kind, side: Side, token: u64, body: &[u8], now: Duration) {
        if let Some(grave) = self.graves.iter().find(|grave| (grave.1, grave.2) == (token, !side)) {
            if kind != Kind::Close {
                self.out.push_back((from, close(token, !side, &grave.3)));
            }
            return;
        }
        match (kind, body.first_chunk::<32>()) {
            (Kind::Hello, Some(key)) if side => {
                let id = self.open(token, false, from, *key, State::Accepted { since: now }, now);
                self.emit(id, Kind::Accept);
            }
            (Kind::Done | Kind::Data | Kind::Ack | Kind::Ping, _) => {
                let mut bytes = header(Kind::Reset, token, !side);
                bytes.extend_from_slice(&self.key);
                self.out.push_back((from, bytes));
            }
            _ => {}
        }
    }

    fn accepted(&mut self, id: ConnId, body: &[u8]) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Some(key) = body.first_chunk::<32>() else { return };
        if let State::Dialling { dial, .. } = conn.state {
            conn.state = State::Open;
            conn.key = *key;
            let connected = connected(conn, Some(dial));
            self.up.push_back(Up::Connected(id, connected));
        }
        // Also if Accept came again: then Done was lost.
        self.emit(id, Kind::Done);
    }

    fn done(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if matches!(conn.state, State::Accepted { .. }) {
            conn.state = State::Open;
            let connected = connected(conn, None);
            self.up.push_back(Up::Connected(id, connected));
        }
    }

    fn data(&mut self, id: ConnId, body: &[u8], now: Duration) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if !matches!(conn.state, State::Open) {
            return;
        }
        conn.stream.handle_segment(body, now);
        while let Some(message) = conn.stream.poll_message() {
            self.up.push_back(Up::Message(id, message));
        }
        self.pump(id, now);
    }

    fn ack(&mut self, id: ConnId, kind: Kind, body: &[u8], now: Duration) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.stream.handle_ack(body, now);
        if kind == Kind::Ping {
            conn.stream.owe_ack();
        }
        self.pump(id, now);
    }

    /// Sends what the stream has to send.
    fn pump(&mut self, id: ConnId, now: Duration) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if !matches!(conn.state, State::Open) {
            return;
        }
        loop {
            let mut bytes = header(Kind::Data, conn.token, conn.side);
            if !conn.stream.poll_segment(&mut bytes, DATAGRAM_MAX, now) {
                break;
            }
            self.out.push_back((conn.hop, bytes));
        }
        if conn.stream.ack_is_due(now) {
            let mut bytes = header(Kind::Ack, conn.token, conn.side);
            conn.stream.write_ack(&mut bytes);
            self.out.push_back((conn.hop, bytes));
        }
    }

    fn tick(&mut self, id: ConnId, now: Duration) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        match &mut conn.state {
            State::Dialling { dial, since, again, wait } => {
                if now >= *since + DIAL_TIMEOUT {
                    let dial = *dial;
                    self.up.push_back(Up::Failed(dial, "timed out".to_owned()));
                    self.remove(id);
                } else if now >= *again {
                    *wait *= 2;
                    *again = now + *wait;
                    self.emit(id, Kind::Hello);
                }
            }
            State::Accepted { since } => {
                if now >= *since + DIAL_TIMEOUT {
                    self.remove(id);
                }
            }
            State::Open if now >= conn.heard + IDLE => self.lose(id, "timed out".to_owned()),
            State::Open => {
                if now >= conn.ping_at() {
                    conn.pinged = now;
                    let mut bytes = header(Kind::Ping, conn.token, conn.side);
                    conn.stream.write_ack(&mut bytes);
                    self.out.push_back((conn.hop, bytes));
                }
                self.pump(id, now);
            }
        }
    }

    fn lose(&mut self, id: ConnId, reason: String) {
        let Some(conn) = self.remove(id) else { return };
        match conn.state {
            State::Dialling { dial, .. } => self.up.push_back(Up::Failed(dial, reason)),
            State::Accepted { .. } => {}
            State::Open => self.up.push_back(Up::Gone(id, reason)),
        }
    }

    fn emit(&mut self, id: ConnId, kind: Kind) {
        let Some(conn) = self.conns.get(&id) else { return };
        let mut bytes = header(kind, conn.token, conn.side);
        match kind {
            Kind::Hello => {
                bytes.extend_from_slice(&self.key);
                // RFC 9000 §14.1: a first datagram proves that the path carries 1200 bytes.
                bytes.resize(DATAGRAM_MAX, 0);
            }
            Kind::Accept => bytes.extend_from_slice(&self.key),
            _ => {}
        }
        self.out.push_back((conn.hop, bytes));
    }
}

impl Conn {
    fn next(&self) -> Duration {
        match self.state {
            State::Dialling { since, again, .. } => again.min(since + DIAL_TIMEOUT),
            State::Accepted { since } => since + DIAL_TIMEOUT,
            State::Open => {
                let alive = self.ping_at().min(self.heard + IDLE);
                self.stream.poll_timeout().map_or(alive, |stream| stream.min(alive))
            }
        }
    }
}

impl Conn {
    fn ping_at(&self) -> Duration {
        (self.heard + KEEP_ALIVE).max(self.pinged + PING_AGAIN)
    }
}

fn connected(conn: &Conn, dial: Option<DialId>) -> Connected {
    // Both ends derive the same 32 bytes from the token, which no other connection has.
    let mut exporter = [0; 32];
    for (place, byte) in exporter.iter_mut().enumerate() {
        *byte = conn.token.to_le_bytes()[place % 8] ^ u8::try_from(place).unwrap_or(0);
    }
    Connected { hop: conn.hop, dial, sign_key: conn.key, exporter }
}

fn header(kind: Kind, token: u64, side: Side) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    bytes.push(0x40 | kind as u8 | if side { 0 } else { 8 });
    bytes.extend_from_slice(&token.to_be_bytes());
    bytes
}

fn close(token: u64, side: Side, reason: &str) -> Vec<u8> {
    let mut bytes = header(Kind::Close, token, side);
    bytes.extend_from_slice(reason.as_bytes());
    bytes.truncate(DATAGRAM_MAX);
    bytes
}

/// (kind, whether the dialling side sent it, token, content)
fn parse(bytes: &[u8]) -> Option<(Kind, Side, u64, &[u8])> {
    let first = *bytes.first()?;
    let kind = Kind::of(first)?;
    let token = u64::from_be_bytes(*bytes.get(1..)?.first_chunk()?);
    (first & 0xf0 == 0x40).then_some((kind, first & 8 == 0, token, &bytes[HEADER..]))
}

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;

    use super::*;
    use crate::sim::dice::Dice;

    /// Two transports with a wire between them that loses and delays.
    struct Pair {
        ends: [Transport; 2],
        wire: Vec<(Duration, usize, Vec<u8>)>,
        dice: Dice,
        loss: u64,
        now: Duration,
        up: [Vec<Up>; 2],
    }

    fn hop() -> Hop {
        Hop::Direct(SocketAddr::from(([10, 0, 0, 1], 1)))
    }

    impl Pair {
        fn new(loss: u64) -> Self {
            Self {
                ends: [Transport::new([1; 32], 1), Transport::new([2; 32], 2)],
                wire: Vec::new(),
                dice: Dice::new(3, "pair"),
                loss,
                now: Duration::from_secs(1000),
                up: [Vec::new(), Vec::new()],
            }
        }

        fn drain(&mut self) {
            for end in 0..2 {
                while let Some((_, bytes)) = self.ends[end].poll_out() {
                    let delay = Duration::from_millis(self.dice.between(5, 25));
                    if !self.dice.chance(self.loss) {
                        self.wire.push((self.now + delay, 1 - end, bytes));
                    }
                }
                while let Some(up) = self.ends[end].poll_up() {
                    self.up[end].push(up);
                }
            }
        }

        fn run(&mut self, seconds: u64) {
            let end = self.now + Duration::from_secs(seconds);
            while self.now < end {
                self.drain();
                self.now += Duration::from_millis(1);
                let now = self.now;
                let (due, later) = self.wire.drain(..).partition(|item| item.0 <= now);
                self.wire = later;
                let due: Vec<(Duration, usize, Vec<u8>)> = due;
                for (_, to, bytes) in due {
                    self.ends[to].handle_datagram(hop(), &bytes, now);
                }
                for end in &mut self.ends {
                    if end.poll_timeout().is_some_and(|at| at <= now) {
                        end.handle_timeout(now);
                    }
                }
            }
            self.drain();
        }

        fn connect(&mut self) -> [ConnId; 2] {
            self.ends[0].dial(DialId(7), hop(), self.now);
            self.run(4);
            [0, 1].map(|end| match self.up[end].remove(0) {
                Up::Connected(id, connected) => {
                    assert_eq!(connected.dial.is_some(), end == 0);
                    assert_eq!(connected.sign_key, [2 - u8::try_from(end).unwrap(); 32]);
                    id
                }
                other => panic!("{other:?}"),
            })
        }
    }

    #[test]
    fn messages_come_whole_and_in_order_however_lossy_the_wire_is() {
        for loss in [0, 100, 300] {
            let mut pair = Pair::new(loss);
            let conns = pair.connect();
            let sent: Vec<Vec<u8>> = [0, 1, 1170, 1200, 5, 40_000, 3].map(|n| vec![n as u8; n]).into();
            for message in &sent {
                pair.ends[0].send(conns[0], message, pair.now);
                pair.ends[1].send(conns[1], message, pair.now);
            }
            pair.run(60);
            for (end, ups) in pair.up.iter().enumerate() {
                let got: Vec<_> = (ups.iter())
                    .map(|up| match up {
                        Up::Message(_, bytes) => bytes,
                        other => panic!("loss {loss}, end {end}: {other:?}"),
                    })
                    .collect();
                assert!(got.into_iter().eq(&sent), "loss {loss}, end {end}");
            }
        }
    }

    #[test]
    fn a_cut_is_noticed_at_both_ends_after_the_idle_time() {
        let mut pair = Pair::new(0);
        pair.connect();
        pair.run(60);
        assert!(pair.up.iter().all(Vec::is_empty), "keep-alive holds an idle connection");
        pair.loss = 1000;
        pair.run(35);
        for ups in &pair.up {
            assert!(matches!(&ups[..], [Up::Gone(_, reason)] if reason == "timed out"));
        }
    }

    #[test]
    fn closing_tells_the_other_end_why() {
        let mut pair = Pair::new(0);
        let conns = pair.connect();
        pair.ends[1].close(conns[1], "wrong network", pair.now);
        pair.run(1);
        assert!(matches!(&pair.up[0][..], [Up::Gone(_, reason)] if reason == "wrong network"));
        assert!(matches!(&pair.up[1][..], [Up::Gone(..)]), "who closes is told too");
    }

    #[test]
    fn a_router_that_was_started_again_makes_the_other_end_let_go_but_a_stranger_does_not() {
        for (key, resets) in [([1; 32], true), ([9; 32], false)] {
            let mut pair = Pair::new(0);
            let conns = pair.connect();
            pair.ends[0] = Transport::new(key, 7);
            pair.ends[1].send(conns[1], b"are you there?", pair.now);
            pair.run(1);
            assert_eq!(!pair.up[1].is_empty(), resets);
        }
    }

    #[test]
    fn a_dial_to_nobody_fails() {
        let mut pair = Pair::new(1000);
        pair.ends[0].dial(DialId(1), hop(), pair.now);
        pair.run(10);
        assert!(matches!(&pair.up[0][..], [Up::Failed(DialId(1), _)]));
        assert!(pair.up[1].is_empty());
        assert_eq!(pair.ends[0].poll_timeout(), None);
    }

    #[test]
    fn garbage_is_ignored() {
        let mut pair = Pair::new(0);
        let mut dice = Dice::new(5, "garbage");
        for length in 0..2000 {
            let mut bytes = vec![0; length % 64];
            dice.fill(&mut bytes);
            pair.ends[0].handle_datagram(hop(), &bytes, pair.now);
        }
        pair.run(20);
        assert!(pair.up.iter().flatten().all(|up| !matches!(up, Up::Message(..))));
    }
}
