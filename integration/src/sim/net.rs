//! The underlay: datagrams between the addresses of hosts.
//!
//! ```text
//!  send ─► address known? ─► same side of the split? ─► way open? ─► fits? ─► loss ─► delay ─► Arrive
//!             │ no                │ no                    │ no        │ no     │ hit    + jitter,
//!             ▼                   ▼                       ▼           ▼        ▼        maybe twice
//!           lost                lost                    lost        lost     lost
//! ```
//!
//! Every ordered pair of hosts is a [`Way`] with its own properties. Jitter reorders.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::clock::{MS, SECOND, Time};
use super::dice::Dice;
use super::queue::{Event, Index, Queue};
use super::trace::{Fate, Trace};

/// The port that every router listens on.
pub(super) const PORT: u16 = 6783;

/// What each datagram costs on the wire besides its payload: IPv4 and UDP headers, in bytes.
const OVERHEAD: u64 = 28;

/// The underlay from one host to another, one direction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    /// Whether the underlay has this way at all.
    pub(super) open: bool,
    /// Whether a fault has cut it.
    pub(super) cut: bool,
    /// Delay, in nanoseconds.
    pub(super) delay: u32,
    /// Largest additional delay, drawn for each datagram, in nanoseconds.
    pub(super) jitter: u32,
    /// Datagrams lost, of 65,536.
    pub(super) loss: u16,
    /// Datagrams that arrive twice, of 65,536.
    pub(super) twice: u16,
    /// Largest UDP payload, in bytes.
    pub(super) payload: u16,
}

impl Way {
    /// No way.
    pub(super) const NONE: Self =
        Self { open: false, cut: false, delay: 1_000_000, jitter: 0, loss: 0, twice: 0, payload: 1472 };

    fn passes(&self) -> bool {
        self.open && !self.cut
    }
}

/// Faults that hit the whole underlay at once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Weather {
    /// Added to the loss of each way, of 65,536.
    pub(super) loss: u16,
    /// Added to the duplication of each way, of 65,536.
    pub(super) twice: u16,
    /// Added to the delay, in nanoseconds.
    pub(super) delay: u32,
    /// Added to the jitter, in nanoseconds.
    pub(super) jitter: u32,
}

/// A datagram on its way.
#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) to: Index,
    /// The number of the address that it was sent to: a host that moved away does not get it.
    pub(super) home: u8,
    /// Whether the underlay made it of another.
    pub(super) copy: bool,
    pub(super) bytes: Vec<u8>,
}

/// What the underlay carried.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Carried {
    pub(super) datagrams: u64,
    pub(super) bytes: u64,
    pub(super) blocked: u64,
    pub(super) blocked_bytes: u64,
    pub(super) lost: u64,
    pub(super) twice: u64,
}

/// The underlay.
#[derive(Debug)]
pub(super) struct Net {
    hosts: usize,
    ways: Vec<Way>,
    sides: Vec<u8>,
    homes: Vec<u8>,
    ipv6: bool,
    pub(super) weather: Weather,
    dice: Dice,
    store: Vec<Datagram>,
    free: Vec<u32>,
    pub(super) carried: Carried,
}

impl Net {
    /// An underlay in which nobody reaches anybody.
    pub(super) fn new(hosts: usize, ipv6: bool, dice: Dice) -> Self {
        Self {
            hosts,
            ways: vec![Way::NONE; hosts * hosts],
            sides: vec![0; hosts],
            homes: vec![0; hosts],
            ipv6,
            weather: Weather::default(),
            dice,
            store: Vec::new(),
            free: Vec::new(),
            carried: Carried::default(),
        }
    }

    /// Where a host is now.
    pub(super) fn address(&self, host: Index) -> SocketAddr {
        let home = self.homes[usize::from(host)];
        let ip = if self.ipv6 {
            IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, u16::from(home), host))
        } else {
            let [high, low] = host.to_be_bytes();
            IpAddr::V4(Ipv4Addr::new(10, home, high, low))
        };
        SocketAddr::new(ip, PORT)
    }

    /// The host that an address belongs to, and the number of that address.
    fn owner(&self, address: SocketAddr) -> Option<(Index, u8)> {
        let (host, home) = match address.ip() {
            IpAddr::V4(ip) if !self.ipv6 => {
                let [ten, home, high, low] = ip.octets();
                (ten == 10).then_some((u16::from_be_bytes([high, low]), home))?
            }
            IpAddr::V6(ip) if self.ipv6 => {
                let [net, .., home, host] = ip.segments();
                (net == 0xfd77).then_some((host, u8::try_from(home).ok()?))?
            }
            _ => return None,
        };
        let known = usize::from(host) < self.hosts && address.port() == PORT;
        (known && self.homes[usize::from(host)] == home).then_some((host, home))
    }

    /// The host gets a new address; what is on the way to the old one is lost.
    pub(super) fn roam(&mut self, host: Index) -> SocketAddr {
        let home = &mut self.homes[usize::from(host)];
        *home = home.wrapping_add(1);
        self.address(host)
    }

    /// The way from one host to another.
    pub(super) fn way(&mut self, from: Index, to: Index) -> &mut Way {
        &mut self.ways[usize::from(from) * self.hosts + usize::from(to)]
    }

    /// Every way.
    pub(super) fn ways(&mut self) -> &mut [Way] {
        &mut self.ways
    }

    /// Splits the underlay: only hosts on the same side reach each other.
    pub(super) fn split(&mut self, sides: &[u8]) {
        self.sides.copy_from_slice(sides);
    }

    /// Ends a split.
    pub(super) fn join(&mut self) {
        self.sides.fill(0);
    }

    /// Whether datagrams pass between two hosts, both ways.
    pub(super) fn joined(&self, a: Index, b: Index) -> bool {
        let (a, b) = (usize::from(a), usize::from(b));
        self.sides[a] == self.sides[b]
            && self.ways[a * self.hosts + b].passes()
            && self.ways[b * self.hosts + a].passes()
    }

    /// A host sends a datagram.
    pub(super) fn send(
        &mut self,
        at: Time,
        from: Index,
        to: SocketAddr,
        bytes: &[u8],
        queue: &mut Queue,
        trace: &mut Trace,
    ) {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.carried.datagrams += 1;
        self.carried.bytes += size + OVERHEAD;
        let Some((host, home)) = self.owner(to) else {
            self.carried.blocked += 1;
            self.carried.blocked_bytes += size + OVERHEAD;
            trace.datagram(at, from, Index::MAX, Fate::Blocked, bytes);
            return;
        };
        let draw = self.dice.word();
        let (fate, delay) = self.fate(from, host, bytes.len(), draw);
        trace.datagram(at, from, host, fate, bytes);
        match fate {
            Fate::Sent => {}
            Fate::Twice => {
                self.carried.twice += 1;
                // The copy comes up to 16 ms later.
                let later = at + delay + (draw >> 40) % (16 * MS);
                self.carry(later, from, host, home, true, bytes, queue);
            }
            Fate::Lost => {
                self.carried.lost += 1;
                return;
            }
            Fate::Blocked | Fate::TooBig => {
                self.carried.blocked += 1;
                self.carried.blocked_bytes += size + OVERHEAD;
                return;
            }
        }
        self.carry(at + delay, from, host, home, false, bytes, queue);
    }

    fn fate(&self, from: Index, to: Index, size: usize, draw: u64) -> (Fate, Time) {
        let (a, b) = (usize::from(from), usize::from(to));
        if a == b {
            return (Fate::Sent, MS / 20);
        }
        let way = &self.ways[a * self.hosts + b];
        if self.sides[a] != self.sides[b] || !way.passes() {
            return (Fate::Blocked, 0);
        }
        if size > usize::from(way.payload) {
            return (Fate::TooBig, 0);
        }
        if draw & 0xffff < u64::from(way.loss) + u64::from(self.weather.loss) {
            return (Fate::Lost, 0);
        }
        let jitter = u64::from(way.jitter) + u64::from(self.weather.jitter);
        let delay = u64::from(way.delay) + u64::from(self.weather.delay) + (((draw >> 32) * jitter) >> 32);
        if draw >> 16 & 0xffff < u64::from(way.twice) + u64::from(self.weather.twice) {
            return (Fate::Twice, delay);
        }
        (Fate::Sent, delay)
    }

    #[expect(clippy::too_many_arguments, reason = "one call site, each is needed")]
    fn carry(&mut self, arrives: Time, from: Index, to: Index, home: u8, copy: bool, bytes: &[u8], queue: &mut Queue) {
        let from = self.address(from);
        let place = if let Some(place) = self.free.pop() {
            place
        } else {
            self.store.push(Datagram { from, to, home, copy, bytes: Vec::new() });
            u32::try_from(self.store.len() - 1).unwrap_or(u32::MAX)
        };
        let datagram = &mut self.store[place as usize];
        datagram.from = from;
        datagram.to = to;
        datagram.home = home;
        datagram.copy = copy;
        datagram.bytes.clear();
        datagram.bytes.extend_from_slice(bytes);
        queue.push(arrives, Event::Arrive(place));
    }

    /// Somebody who listened sends datagrams again, in the following second: as they were, or with
    /// a bit changed if `change` says so, or noise instead. Not those of QUIC, whose stand-in has
    /// no cryptography.
    pub(super) fn replay(&mut self, at: Time, count: u32, change: bool, queue: &mut Queue) {
        for _ in 0..count {
            let draw = self.dice.word();
            let place = self.dice.index(self.store.len());
            let Some(old) = self.store.get(place) else { return };
            let (to, home, mut bytes) = (old.to, old.home, old.bytes.clone());
            let quic = |at: usize| bytes.get(at).is_some_and(|byte| byte & 0x40 != 0);
            if quic(0) || (bytes.first() == Some(&2) && quic(28)) {
                continue;
            }
            match draw % 4 {
                0 => {
                    bytes.resize(self.dice.index(1400), 0);
                    self.dice.fill(&mut bytes);
                    bytes.first_mut().map(|first| *first &= 0x03).unwrap_or_default();
                }
                1 if change && !bytes.is_empty() => {
                    let bit = self.dice.index(8 * bytes.len());
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
                _ => {}
            }
            let from = self.dice.index(self.hosts);
            let from = Index::try_from(from).unwrap_or(to);
            self.carry(at + (draw >> 32) % SECOND, from, to, home, true, &bytes, queue);
        }
    }

    /// Takes a datagram that arrives; give its buffer back with [`Self::recycle`]. Without a
    /// result the host has moved away meanwhile.
    pub(super) fn arrive(&mut self, place: u32) -> Option<Datagram> {
        let slot = &mut self.store[place as usize];
        let empty = Datagram { bytes: Vec::new(), ..*slot };
        let datagram = std::mem::replace(slot, empty);
        if self.homes[usize::from(datagram.to)] == datagram.home {
            return Some(datagram);
        }
        self.recycle(place, datagram.bytes);
        None
    }

    /// Takes back the buffer of a datagram that was taken with [`Self::arrive`].
    pub(super) fn recycle(&mut self, place: u32, bytes: Vec<u8>) {
        self.store[place as usize].bytes = bytes;
        self.free.push(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::trace::Detail;

    struct Rig {
        net: Net,
        queue: Queue,
        trace: Trace,
    }

    impl Rig {
        fn new(ipv6: bool) -> Self {
            let mut net = Net::new(3, ipv6, Dice::new(1, "net"));
            for (a, b) in [(0, 1), (1, 0), (1, 2), (2, 1)] {
                *net.way(a, b) = Way { open: true, ..Way::NONE };
            }
            Self { net, queue: Queue::default(), trace: Trace::new(Detail::Hash) }
        }

        fn send(&mut self, from: Index, to: SocketAddr, bytes: &[u8]) {
            self.net.send(0, from, to, bytes, &mut self.queue, &mut self.trace);
        }

        fn arrived(&mut self) -> Vec<(Time, Index, Vec<u8>)> {
            let mut all = Vec::new();
            while let Some((at, Event::Arrive(place))) = self.queue.pop_before(Time::MAX) {
                if let Some(datagram) = self.net.arrive(place) {
                    all.push((at, datagram.to, datagram.bytes.clone()));
                    self.net.recycle(place, datagram.bytes);
                }
            }
            all
        }
    }

    #[test]
    fn a_datagram_arrives_where_there_is_a_way_and_only_there() {
        for ipv6 in [false, true] {
            let mut rig = Rig::new(ipv6);
            for to in [1, 2] {
                rig.send(0, rig.net.address(to), b"hello");
            }
            assert_eq!(rig.arrived(), [(MS, 1, b"hello".to_vec())]);
        }
    }

    #[test]
    fn cuts_are_one_way_and_splits_are_both_ways() {
        let mut rig = Rig::new(false);
        rig.net.way(0, 1).cut = true;
        rig.send(0, rig.net.address(1), b"lost");
        rig.send(1, rig.net.address(0), b"back");
        assert_eq!(rig.arrived(), [(MS, 0, b"back".to_vec())]);
        assert!(!rig.net.joined(0, 1) && rig.net.joined(1, 2));
        rig.net.split(&[0, 0, 1]);
        assert!(!rig.net.joined(1, 2));
        rig.send(1, rig.net.address(2), b"lost");
        assert_eq!(rig.arrived(), []);
    }

    #[test]
    fn a_datagram_to_an_address_that_was_left_is_lost() {
        let mut rig = Rig::new(false);
        let old = rig.net.address(1);
        rig.send(0, old, b"on the way");
        let new = rig.net.roam(1);
        assert_ne!(old, new);
        rig.send(0, old, b"too late");
        rig.send(0, new, b"found");
        assert_eq!(rig.arrived(), [(MS, 1, b"found".to_vec())]);
    }

    #[test]
    fn loss_and_duplication_come_as_often_as_asked() {
        let mut rig = Rig::new(false);
        *rig.net.way(0, 1) = Way { open: true, loss: 16_384, twice: 19_660, ..Way::NONE };
        rig.net.weather.loss = 3_277;
        let to = rig.net.address(1);
        for _ in 0..10_000 {
            rig.send(0, to, b"x");
        }
        // 70 % come, 30 in 100 of the draws are copied unless they are lost.
        let arrived = rig.arrived().len();
        assert!((8_900..9_300).contains(&arrived), "{arrived}");
        assert!((2_800..3_200).contains(&rig.net.carried.lost), "{}", rig.net.carried.lost);
    }

    #[test]
    fn what_does_not_fit_is_dropped() {
        let mut rig = Rig::new(false);
        rig.net.way(0, 1).payload = 100;
        let to = rig.net.address(1);
        rig.send(0, to, &[0; 101]);
        rig.send(0, to, &[0; 100]);
        assert_eq!(rig.arrived().len(), 1);
    }
}
