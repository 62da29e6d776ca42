//! Every frame that a container sent, where it was seen, and what may never happen to it.
//!
//! ```text
//!  0     6     12          14/18     22/26   30/34
//!  ├ dst ┼ src ┼ (VLAN tag) 0x88B5 ┼ magic ┼ id    ┼ pattern of the id …
//! ```
//!
//! Checked at every delivery, faults or none: the frame is one of ours, byte-identical, not at the
//! TAP where it came from, and not at a TAP where it was before. Checked at every datagram that
//! carries it in the clear: no peer sends a frame on twice, so it never comes again by a way that it
//! has come before, but for the copies that the underlay made of it. (By several ways it may come: a
//! flood while the trees disagree.) At rest no peer gets it twice by whatever way.

use std::net::SocketAddr;

use memchr::memmem::Finder;
use mesh_proto::wire::datagram::RELAY;

use super::clock::Time;
use super::queue::Index;

/// Smallest frame that has room for its id.
pub(super) const FRAME_MIN: usize = 34;

const MAGIC: [u8; 8] = *b"\xb5wf-sim\xa7";
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const TAG: [u8; 4] = [0x81, 0x00, 0x00, 0x2a];

/// An Ethernet address.
pub(super) type Mac = [u8; 6];
/// Everybody.
pub(super) const BROADCAST: Mac = [0xff; 6];

/// One frame.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) from: Index,
    /// The host of the destination address when it was sent; `None` for a broadcast.
    pub(super) to: Option<Index>,
    pub(super) at: Time,
    destination: Mac,
    source: Mac,
    tagged: bool,
    /// In bytes.
    pub(super) size: usize,
    delivered: Vec<u64>,
    /// For each host by which ways it came.
    crossed: Vec<Vec<(Way, Crossings)>>,
    /// How often the underlay made two of a datagram that carried it.
    doubled: u8,
}

/// From which address a frame came, and for whom: the destination and the source if it is relayed,
/// and the session. One that is flooded may come by way of a host to others; and to a host that lost
/// its disk under its old name and its new one.
type Way = (SocketAddr, Option<[u8; 24]>, [u8; 4]);

/// Arrivals of one frame at one host by one way. What the underlay made two of goes through relays as two,
/// but with the same hops left: those count once.
#[derive(Debug, Clone, Copy, Default)]
struct Crossings {
    /// The hops that were left when it came through relays, a bit each.
    hops: u64,
    /// How often it came straight from a neighbour.
    straight: u8,
}

impl Crossings {
    fn count(self) -> u8 {
        u8::try_from(self.hops.count_ones()).unwrap_or(u8::MAX).saturating_add(self.straight)
    }
}

/// What to send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    pub(super) from: Index,
    pub(super) to: Option<Index>,
    pub(super) source: Mac,
    pub(super) destination: Mac,
    pub(super) tagged: bool,
    pub(super) size: usize,
}

/// The frames of one run.
#[derive(Debug)]
pub(super) struct Ledger {
    hosts: usize,
    frames: Vec<Frame>,
    finder: Finder<'static>,
    /// The first thing that may never happen, once it has.
    pub(super) failure: Option<String>,
    pub(super) deliveries: u64,
}

impl Ledger {
    pub(super) fn new(hosts: usize) -> Self {
        let finder = Finder::new(&MAGIC).into_owned();
        Self { hosts, frames: Vec::new(), finder, failure: None, deliveries: 0 }
    }

    /// Writes a new frame into `bytes` and returns its id.
    pub(super) fn write(&mut self, at: Time, order: Order, bytes: &mut Vec<u8>) -> usize {
        let id = self.frames.len();
        let frame = Frame {
            from: order.from,
            to: order.to,
            at,
            destination: order.destination,
            source: order.source,
            tagged: order.tagged,
            size: order.size.max(FRAME_MIN),
            delivered: vec![0; self.hosts.div_ceil(64)],
            crossed: Vec::new(),
            doubled: 0,
        };
        frame.write(id, bytes);
        self.frames.push(frame);
        id
    }

    /// The frame with this id.
    pub(super) fn frame(&self, id: usize) -> &Frame {
        &self.frames[id]
    }

    /// How many frames were sent.
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// A router wrote a frame to the TAP of its host; the id of the frame, if it is one of ours.
    pub(super) fn deliver(&mut self, host: Index, bytes: &[u8]) -> Option<usize> {
        self.deliveries += 1;
        let result = self.accept(host, bytes);
        match result {
            Ok(id) => Some(id),
            Err(why) => {
                self.fail(why);
                None
            }
        }
    }

    fn accept(&mut self, host: Index, bytes: &[u8]) -> Result<usize, String> {
        let id = (self.id_of(bytes)).ok_or_else(|| format!("p{host:02} got a frame that nobody sent: {bytes:02x?}"))?;
        let frame = &mut self.frames[id];
        let name = format_args!("frame {id} of p{:02}", frame.from).to_string();
        if frame.from == host {
            return Err(format!("{name} came back to the TAP that it was sent from"));
        }
        let (word, bit) = (usize::from(host) / 64, 1u64 << (host % 64));
        if frame.delivered[word] & bit != 0 {
            return Err(format!("{name} was delivered twice to p{host:02}"));
        }
        frame.delivered[word] |= bit;
        let mut sent = Vec::new();
        frame.write(id, &mut sent);
        if sent != bytes {
            return Err(format!("{name} came to p{host:02} changed: {sent:02x?} is {bytes:02x?}"));
        }
        Ok(id)
    }

    /// A datagram arrived at a host: counts the frames that it carries in the clear. The `copy` that
    /// the underlay made of one is no crossing of its own, but may go its own way from here on.
    pub(super) fn cross(&mut self, from: SocketAddr, host: Index, datagram: &[u8], copy: bool) {
        let (relayed, inner) = match datagram {
            [RELAY, _, _, _, header @ ..] if header.len() >= 24 => header.split_at(24),
            inner => (&[][..], inner),
        };
        let session = inner.get(4..8).and_then(|index| index.first_chunk().copied()).unwrap_or_default();
        let way = (from, relayed.first_chunk().copied(), session);
        let mut rest = datagram;
        while let Some(place) = self.finder.find(rest) {
            rest = &rest[place + MAGIC.len()..];
            let Some(id) = word(rest) else { return };
            let Some(frame) = self.frames.get_mut(id) else { continue };
            if copy {
                frame.doubled = frame.doubled.saturating_add(1);
                continue;
            }
            frame.crossed.resize(self.hosts, Vec::new());
            let ways = &mut frame.crossed[usize::from(host)];
            let at = ways.iter().position(|other| other.0 == way).unwrap_or(ways.len());
            if at == ways.len() {
                ways.push((way, Crossings::default()));
            }
            let crossings = &mut ways[at].1;
            match datagram {
                [RELAY, hops, ..] => crossings.hops |= 1 << (hops & 63),
                _ => crossings.straight = crossings.straight.saturating_add(1),
            }
            let count = crossings.count();
            if count > frame.doubled.saturating_add(1) {
                let name = format_args!("frame {id} of p{:02}", frame.from).to_string();
                return self.fail(format!("forwarding loop: {name} came to p{host:02} from {from} {count} times"));
            }
        }
    }

    /// The router of a host starts anew: what was delivered to the one before it does not know.
    /// (A frame that waited in a router that was stopped may come seconds late, to both.)
    pub(super) fn forget(&mut self, host: Index) {
        let (word, bit) = (usize::from(host) / 64, 1u64 << (host % 64));
        self.frames.iter_mut().for_each(|frame| frame.delivered[word] &= !bit);
    }

    /// Notes the first failure.
    pub(super) fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    fn id_of(&self, frame: &[u8]) -> Option<usize> {
        let tagged = frame.get(12..16) == Some(&TAG);
        let rest = frame.get(if tagged { 18 } else { 14 }..)?;
        let id = word(rest.strip_prefix(&MAGIC)?)?;
        (id < self.frames.len()).then_some(id)
    }
}

impl Frame {
    /// Whether it was delivered at a host.
    pub(super) fn reached(&self, host: Index) -> bool {
        self.delivered[usize::from(host) / 64] & 1 << (host % 64) != 0
    }

    /// The most arrivals at one host, as far as they could be seen.
    pub(super) fn crossings(&self) -> u8 {
        let arrivals = |ways: &Vec<(Way, Crossings)>| ways.iter().map(|way| way.1.count()).sum();
        self.crossed.iter().map(arrivals).max().unwrap_or(0)
    }

    /// Whether it came to one host more often than there were copies of it: a copy on a way of its
    /// own, for the tables changed between the two, is no loop.
    pub(super) fn circled(&self) -> bool {
        self.crossings() > self.doubled.saturating_add(1)
    }

    fn write(&self, id: usize, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.extend_from_slice(&self.destination);
        bytes.extend_from_slice(&self.source);
        if self.tagged {
            bytes.extend_from_slice(&TAG);
        }
        bytes.extend_from_slice(&ETHERTYPE);
        bytes.extend_from_slice(&MAGIC);
        let number = u64::try_from(id).unwrap_or(u64::MAX);
        bytes.extend_from_slice(&number.to_be_bytes());
        let pattern = number.wrapping_mul(31).to_le_bytes()[0];
        let mut at = 0u8;
        bytes.resize_with(self.size.max(bytes.len()), || {
            at = at.wrapping_add(1);
            pattern.wrapping_add(at)
        });
    }
}

fn word(bytes: &[u8]) -> Option<usize> {
    usize::try_from(u64::from_be_bytes(*bytes.first_chunk()?)).ok()
}

#[cfg(test)]
mod tests {

    use super::*;

    fn order(tagged: bool, size: usize) -> Order {
        let (source, destination) = ([2, 0, 0, 0, 0, 1], BROADCAST);
        Order { from: 0, to: None, source, destination, tagged, size }
    }

    fn peer(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 6783))
    }

    #[test]
    fn a_frame_is_known_again_at_the_other_end() {
        let mut ledger = Ledger::new(3);
        let mut bytes = Vec::new();
        for (tagged, size) in [(false, 0), (false, 60), (true, 38), (true, 1518), (false, 9014)] {
            let id = ledger.write(0, order(tagged, size), &mut bytes);
            assert_eq!(ledger.deliver(2, &bytes), Some(id));
            assert!(ledger.frame(id).reached(2) && !ledger.frame(id).reached(1));
        }
        assert_eq!(ledger.failure, None);
    }

    #[test]
    fn what_may_never_happen_is_noticed() {
        type Spoil = fn(&mut Vec<u8>);
        let tries: [(&str, Index, Spoil); 4] = [
            ("came back", 0, |_| {}),
            ("twice", 1, |_| {}),
            ("changed", 2, |bytes| *bytes.last_mut().unwrap() ^= 1),
            ("nobody sent", 2, |bytes| bytes[20] ^= 1),
        ];
        for (expected, host, spoil) in tries {
            let mut ledger = Ledger::new(3);
            let mut bytes = Vec::new();
            ledger.write(0, order(false, 60), &mut bytes);
            ledger.deliver(1, &bytes);
            assert_eq!(ledger.failure, None);
            spoil(&mut bytes);
            ledger.deliver(host, &bytes);
            assert!(ledger.failure.unwrap().contains(expected));
        }
    }

    #[test]
    fn a_loop_is_noticed_by_its_crossings() {
        let mut ledger = Ledger::new(3);
        let (mut one, mut two) = (Vec::new(), Vec::new());
        ledger.write(0, order(false, 60), &mut one);
        let id = ledger.write(0, order(false, 60), &mut two);
        let both = [&[0; 13], &one[..], &[0; 5], &two[..]].concat();
        ledger.cross(peer(2), 1, &both, false);
        ledger.cross(peer(0), 1, &both, false);
        assert_eq!(ledger.failure, None);
        assert_eq!(ledger.frame(id).crossings(), 2);
        ledger.cross(peer(2), 1, &both, false);
        assert!(ledger.failure.unwrap().contains("loop"));
    }

    #[test]
    fn a_frame_that_relays_hand_round_is_a_loop() {
        let mut ledger = Ledger::new(3);
        let mut frame = Vec::new();
        ledger.write(0, order(false, 60), &mut frame);
        for hops in [9, 6] {
            assert_eq!(ledger.failure, None);
            ledger.cross(peer(2), 1, &[&[RELAY, hops], &frame[..]].concat(), false);
        }
        assert!(ledger.failure.is_some_and(|why| why.contains("loop")));
    }

    #[test]
    fn a_copy_on_a_way_of_its_own_is_no_loop() {
        let mut ledger = Ledger::new(3);
        let mut frame = Vec::new();
        let id = ledger.write(0, order(false, 60), &mut frame);
        let hops = |left: u8| [&[RELAY, left], &frame[..]].concat();
        ledger.cross(peer(0), 1, &hops(9), false);
        ledger.cross(peer(0), 1, &hops(9), true);
        ledger.cross(peer(1), 2, &hops(8), false);
        assert!(!ledger.frame(id).circled());
        ledger.cross(peer(1), 2, &hops(7), false);
        assert!(!ledger.frame(id).circled(), "two copies");
        ledger.cross(peer(1), 2, &hops(6), false);
        assert!(ledger.frame(id).circled(), "three arrivals of two copies");
    }

    #[test]
    fn what_was_never_doubled_circles_with_the_second_arrival() {
        let mut ledger = Ledger::new(3);
        let mut frame = Vec::new();
        let id = ledger.write(0, order(false, 60), &mut frame);
        for left in [9, 7] {
            assert!(!ledger.frame(id).circled());
            ledger.cross(peer(0), 1, &[&[RELAY, left], &frame[..]].concat(), false);
        }
        assert!(ledger.frame(id).circled());
    }
}
