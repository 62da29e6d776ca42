//! Forwarders on a virtual underlay in virtual time: every datagram takes 5 ms, and the test
//! says which pass.

#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part of this")]

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::data::forwarder::{Forwarder, ForwarderConfig};
use mesh_proto::data::virtio::{Gso, VirtioHeader};
use mesh_proto::data::{Hop, Sink};
use mesh_proto::handover::{Command, DataEvent, PeerPath, SessionKey, SessionKeys, Suite, Tables};
use mesh_proto::id::{Incarnation, PeerId};

pub(crate) const DELAY: Duration = Duration::from_millis(5);

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) fn id(n: usize) -> PeerId {
    PeerId([n as u8 + 1; 16])
}

pub(crate) fn addr(n: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n as u8 + 1], 6783))
}

pub(crate) fn node_of(addr: SocketAddr) -> Option<usize> {
    let SocketAddr::V4(v4) = addr else { return None };
    let [192, 0, 2, last] = v4.ip().octets() else { return None };
    (addr.port() == 6783).then_some(usize::from(last).checked_sub(1)?)
}

/// The MAC address of container `c` on host `n`.
pub(crate) fn mac(n: usize, c: u8) -> [u8; 6] {
    [2, 0, 0, 0, n as u8, c]
}

pub(crate) const EVERYBODY: [u8; 6] = [0xff; 6];

/// A frame of `size` bytes in all.
pub(crate) fn frame(to: [u8; 6], from: [u8; 6], size: usize, mark: u64) -> Vec<u8> {
    let mut frame: Vec<u8> = [&to[..], &from[..], &[0x88, 0xb5]].concat();
    let mut state = mark.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while frame.len() < size {
        frame.push((state >> 56) as u8);
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(mark | 1);
    }
    frame.truncate(size.max(14));
    frame
}

/// A TCP super-frame from one container to another, with 1300 bytes of payload in each segment.
pub(crate) fn super_frame(to: [u8; 6], from: [u8; 6], payload: usize) -> (VirtioHeader, Vec<u8>) {
    let mut frame = [&to[..], &from, &[8, 0]].concat();
    frame.extend([0x45, 0]);
    frame.extend((40 + payload as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 1, 1, 0, 0, 0, 0]);
    frame.resize(54 + payload, 7);
    let header = VirtioHeader {
        open_checksum: true,
        gso: Gso::Tcp4,
        ecn: false,
        headers: 54,
        gso_size: 1300,
        csum_start: 34,
        csum_offset: 16,
    };
    (header, frame)
}

#[derive(Default)]
pub(crate) struct Out {
    pub(crate) datagrams: Vec<(SocketAddr, Vec<u8>)>,
    pub(crate) frames: Vec<Vec<u8>>,
    pub(crate) quic: Vec<(Hop, Vec<u8>)>,
}

impl Sink for Out {
    fn datagram(&mut self, to: SocketAddr, bytes: &[u8]) {
        self.datagrams.push((to, bytes.to_vec()));
    }
    fn frame(&mut self, bytes: &[u8]) {
        self.frames.push(bytes.to_vec());
    }
    fn quic(&mut self, from: Hop, bytes: &[u8]) {
        self.quic.push((from, bytes.to_vec()));
    }
}

/// A datagram on the wire.
#[derive(Clone)]
pub(crate) struct Wire {
    pub(crate) at: Duration,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// Delays of the copies of a datagram that arrive: none if it is lost.
pub(crate) type Weather = Box<dyn FnMut() -> Vec<Duration>>;

/// Whether a datagram passes: from, to, bytes, time.
type Filter = Box<dyn FnMut(usize, usize, &[u8], Duration) -> bool>;

pub(crate) struct Net {
    pub(crate) nodes: Vec<Forwarder>,
    pub(crate) source: Vec<SocketAddr>,
    pub(crate) frames: Vec<Vec<Vec<u8>>>,
    pub(crate) quic: Vec<Vec<(Hop, Vec<u8>)>>,
    pub(crate) events: Vec<Vec<(Duration, DataEvent)>>,
    pub(crate) wire: VecDeque<Wire>,
    /// All that was ever sent.
    pub(crate) capture: Vec<Wire>,
    pub(crate) now: Duration,
    pub(crate) filter: Filter,
    pub(crate) weather: Weather,
    pub(crate) lives: Vec<u64>,
    next_index: u32,
    sealed: bool,
    payload_max: u16,
}

pub(crate) fn config(sealed: bool, payload_max: u16) -> ForwarderConfig {
    ForwarderConfig { sealed, macs_max: 1024, mac_age: Duration::from_secs(300), payload_max }
}

impl Net {
    pub(crate) fn new(count: usize) -> Self {
        Self::with(count, true, 1472)
    }

    pub(crate) fn with(count: usize, sealed: bool, payload_max: u16) -> Self {
        let now = Duration::from_secs(1000);
        Self {
            nodes: (0..count).map(|n| Forwarder::new(config(sealed, payload_max), n as u64, now)).collect(),
            source: (0..count).map(addr).collect(),
            frames: vec![Vec::new(); count],
            quic: vec![Vec::new(); count],
            events: vec![Vec::new(); count],
            wire: VecDeque::new(),
            capture: Vec::new(),
            now,
            filter: Box::new(|_, _, _, _| true),
            weather: Box::new(|| vec![DELAY]),
            lives: vec![1; count],
            next_index: 100,
            sealed,
            payload_max,
        }
    }

    /// Calls a node and takes all that it makes.
    pub(crate) fn call<R>(&mut self, n: usize, f: impl FnOnce(&mut Forwarder, Duration, &mut Out) -> R) -> R {
        let mut out = Out::default();
        let result = f(&mut self.nodes[n], self.now, &mut out);
        for (to, bytes) in out.datagrams {
            let wire = Wire { at: self.now, from: self.source[n], to, bytes };
            self.capture.push(wire.clone());
            for delay in (self.weather)() {
                let at = self.now + delay;
                let place = self.wire.partition_point(|w| w.at <= at);
                self.wire.insert(place, Wire { at, ..wire.clone() });
            }
        }
        self.frames[n].extend(out.frames);
        self.quic[n].extend(out.quic);
        while let Some(event) = self.nodes[n].poll_event() {
            self.events[n].push((self.now, event));
        }
        result
    }

    pub(crate) fn command(&mut self, n: usize, command: Command) {
        self.call(n, |node, now, out| node.handle_command(command, now, out));
    }

    pub(crate) fn send(&mut self, n: usize, frame: &[u8]) {
        self.call(n, |node, now, out| {
            node.handle_frame(frame, now, out);
            node.flush(now, out);
        });
    }

    pub(crate) fn inject(&mut self, n: usize, from: SocketAddr, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        self.call(n, |node, now, out| {
            node.handle_datagram(from, &mut bytes, now, out);
            node.flush(now, out);
        });
    }

    /// Lets virtual time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timers = self.nodes.iter().filter_map(|n| n.poll_timeout().map(|t| t.0));
            let arrival = self.wire.front().map(|w| w.at);
            let next = timers.chain(arrival).min().unwrap_or(end);
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            if self.now >= end && arrival != Some(next) && next >= end {
                break;
            }
            while let Some(wire) = self.wire.pop_front_if(|w| w.at <= self.now) {
                self.arrive(wire);
            }
            for n in 0..self.nodes.len() {
                if self.nodes[n].poll_timeout().is_some_and(|t| t.0 <= self.now) {
                    self.call(n, |node, now, out| node.handle_timeout(now, out));
                    let next = self.nodes[n].poll_timeout();
                    assert!(next.is_none_or(|t| t.0 > self.now), "busy loop at {n}: {next:?}");
                }
            }
        }
        self.now = end;
    }

    fn arrive(&mut self, wire: Wire) {
        let from = self.source.iter().position(|&a| a == wire.from);
        let to = self.source.iter().position(|&a| a == wire.to);
        let (Some(from), Some(to)) = (from, to) else { return };
        if (self.filter)(from, to, &wire.bytes, self.now) {
            self.inject(to, wire.from, &wire.bytes);
        }
    }

    /// Tables for all: `links` are direct, everything else goes by shortest path over them.
    pub(crate) fn link(&mut self, links: &[(usize, usize)]) {
        for n in 0..self.nodes.len() {
            let tables = self.tables(n, links);
            self.command(n, Command::Tables(Arc::new(tables)));
        }
    }

    pub(crate) fn tables(&self, me: usize, links: &[(usize, usize)]) -> Tables {
        let count = self.nodes.len();
        let linked = |a: usize, b: usize| links.contains(&(a, b)) || links.contains(&(b, a));
        let distance = |from: usize| {
            let mut dist = vec![usize::MAX; count];
            dist[from] = 0;
            let mut queue = VecDeque::from([from]);
            while let Some(at) = queue.pop_front() {
                for next in (0..count).filter(|&n| linked(at, n)) {
                    if dist[next] == usize::MAX {
                        dist[next] = dist[at] + 1;
                        queue.push_back(next);
                    }
                }
            }
            dist
        };
        let mut peers = BTreeMap::new();
        for other in (0..count).filter(|&n| n != me) {
            let dist = distance(other);
            let mut relays: Vec<usize> = (0..count)
                .filter(|&n| n != other && linked(me, n) && dist[n] != usize::MAX)
                // Not back through us: as near to the other as we are.
                .filter(|&n| dist[n] <= dist[me])
                .collect();
            relays.sort_by_key(|&n| (dist[n], n));
            relays.truncate(2);
            let path = PeerPath {
                incarnation: Incarnation(self.lives[other]),
                direct: linked(me, other).then(|| self.source[other]),
                relays: relays.into_iter().map(id).collect(),
            };
            peers.insert(id(other), path);
        }
        // The tree of an origin: each peer hangs below its first neighbour that is nearer.
        let mut trees = BTreeMap::new();
        for origin in 0..count {
            let dist = distance(origin);
            let parent =
                |n: usize| (0..count).find(|&p| linked(n, p) && dist[n] != usize::MAX && dist[p] + 1 == dist[n]);
            let children = (0..count).filter(|&n| parent(n) == Some(me)).map(id).collect();
            trees.insert(id(origin), children);
        }
        Tables { me: id(me), incarnation: Incarnation(self.lives[me]), peers, trees }
    }

    /// New keys for a pair; `a` proposed them, so `b` has them first.
    pub(crate) fn session(&mut self, a: usize, b: usize) {
        let suite = if self.sealed { Suite::Aes256Gcm } else { Suite::Plain };
        self.session_with(a, b, suite);
    }

    pub(crate) fn session_with(&mut self, a: usize, b: usize, suite: Suite) {
        let [for_a, for_b] = self.keys(a, b, suite);
        self.command(b, Command::Install(Box::new(for_b)));
        self.command(a, Command::Install(Box::new(for_a)));
    }

    pub(crate) fn keys(&mut self, a: usize, b: usize, suite: Suite) -> [SessionKeys; 2] {
        self.next_index += 2;
        let (index_a, index_b) = (self.next_index, self.next_index + 1);
        let key = |index: u32| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&index.to_be_bytes());
            SessionKey(key.into())
        };
        let half = |peer: usize, local, remote, initiator| SessionKeys {
            peer: id(peer),
            incarnation: Incarnation(self.lives[peer]),
            suite,
            local_index: local,
            remote_index: remote,
            send: key(remote),
            receive: key(local),
            initiator,
        };
        [half(b, index_a, index_b, true), half(a, index_b, index_a, false)]
    }

    /// Links, sessions for every pair, and time for the paths to come up.
    pub(crate) fn ready(&mut self, links: &[(usize, usize)]) {
        self.link(links);
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                self.session(a, b);
            }
        }
        self.run(ms(2000));
    }

    /// The router of a host is started again: nothing left but its data directory.
    pub(crate) fn restart(&mut self, n: usize, links: &[(usize, usize)]) {
        self.nodes[n] = Forwarder::new(config(self.sealed, self.payload_max), 77, self.now);
        self.lives[n] += 1;
        self.link(links);
        for other in (0..self.nodes.len()).filter(|&o| o != n) {
            self.session(n, other);
        }
    }

    pub(crate) fn dropped(&self, n: usize) -> BTreeMap<&'static str, u64> {
        let drops = self.nodes[n].counters().drops();
        drops.filter(|d| d.1 > 0).map(|(r, n)| (r.label(), n)).collect()
    }

    pub(crate) fn has_event(&self, n: usize, of: impl Fn(&DataEvent) -> bool) -> bool {
        self.events[n].iter().any(|(_, event)| of(event))
    }
}
