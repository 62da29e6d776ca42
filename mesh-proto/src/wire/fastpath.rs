//! The fast path's probe frames and messages.
//!
//! ```text
//!  probe frame (Ethernet)
//!   0       6       12     14   15     16    18        34        50      58
//!  ┌───────┬───────┬──────┬────┬──────┬─────┬─────────┬─────────┬───────┬─────────┐
//!  │ dest. │source │ 88b5 │ 57 │ kind │ len │ from    │ to      │ nonce │ zeroes  │
//!  └───────┴───────┴──────┴────┴──────┴─────┴─────────┴─────────┴───────┴─────────┘
//!
//!  message      type 1 byte │ CBOR map of numbered fields
//!  Table   1  { 0 UDP port, 1 willing, 2 number, 3 addresses, 4 seal? }   all of the sender's MACs
//!             seal: { 0 WireGuard key, 1 UDP port }
//!  Delta   2  { 0 number before, 1 number after, 2 added, 3 gone }
//!  Ask     3  { }                                                 "send me your Table"
//!  Ping    4  { 0 nonce }
//!  Pong    5  { 0 nonce, 1 number of the sender's Table }
//! ```
//!
//! Messages ride on the control protocol's applications, channel 2 (fastpath F6).

use core::net::Ipv6Addr;

use minicbor::{Decode, Encode};

use super::cbor::{WireError, bounded, put, whole};
use crate::data::macs::Mac;
use crate::id::{PEER_ID_LEN, PeerId};

/// Most MAC addresses that one peer announces (fastpath F7).
pub const MACS_PER_PEER: usize = 10_000;

/// EtherType of probes: the first of IEEE's two for local experiments, which no router forwards.
pub const ETHERTYPE: u16 = 0x88b5;

/// Shortest probe: Ethernet's least, without its checksum.
pub const PROBE_MIN: usize = 60;

const VERSION: u8 = 0x57;
const HEADER: usize = 58;

/// What a probe frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeKind {
    /// Answer me.
    Probe,
    /// The answer.
    Echo,
}

/// A probe frame of the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeFrame {
    /// Question or answer.
    pub kind: ProbeKind,
    /// Who sent it.
    pub from: PeerId,
    /// Whom it is for.
    pub to: PeerId,
    /// Unpredictable; the answer repeats it.
    pub nonce: u64,
}

/// The MAC address of a peer's probes: a function of its id, so that it needs no announcement.
/// Locally administered, and never that of a container or bridge of Weft's, which begin with 02.
#[must_use]
pub const fn probe_mac(peer: PeerId) -> Mac {
    let [.., a, b, c, d, e] = peer.0;
    Mac([0x06, a, b, c, d, e])
}

/// The address of a peer's VXLAN inside WireGuard: a function of its id, so that it needs no
/// announcement (fastpath F19). Link-local, so that no route leads there but through the device that
/// is named with it: 10 bits say so (RFC 4291 section 2.5.6), 118 are the id's.
#[must_use]
pub const fn sealed_address(peer: PeerId) -> Ipv6Addr {
    let mut octets = peer.0;
    octets[0] = 0xfe;
    octets[1] = 0x80 | octets[1] & 0x3f;
    Ipv6Addr::from_octets(octets)
}

impl ProbeFrame {
    /// The whole frame, filled up to `length` bytes.
    #[must_use]
    pub fn encode(&self, length: usize) -> Vec<u8> {
        let length = length.clamp(PROBE_MIN, usize::from(u16::MAX));
        let mut frame = Vec::with_capacity(length);
        frame.extend_from_slice(&probe_mac(self.to).0);
        frame.extend_from_slice(&probe_mac(self.from).0);
        frame.extend_from_slice(&ETHERTYPE.to_be_bytes());
        frame.push(VERSION);
        frame.push(match self.kind {
            ProbeKind::Probe => 1,
            ProbeKind::Echo => 2,
        });
        frame.extend_from_slice(&(length as u16).to_be_bytes());
        frame.extend_from_slice(&self.from.0);
        frame.extend_from_slice(&self.to.0);
        frame.extend_from_slice(&self.nonce.to_be_bytes());
        frame.resize(length, 0);
        frame
    }

    /// Reads one; none if it is anything else, or was cut on its way.
    #[must_use]
    pub fn decode(frame: &[u8]) -> Option<Self> {
        let (header, _) = frame.split_first_chunk::<HEADER>()?;
        let (_, rest) = header.split_first_chunk::<12>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (from, rest) = rest.split_first_chunk::<PEER_ID_LEN>()?;
        let (to, rest) = rest.split_first_chunk::<PEER_ID_LEN>()?;
        let (nonce, _) = rest.split_first_chunk::<8>()?;
        let [a, b] = ETHERTYPE.to_be_bytes();
        let kind = match *kind {
            [x, y, VERSION, 1] if [x, y] == [a, b] => ProbeKind::Probe,
            [x, y, VERSION, 2] if [x, y] == [a, b] => ProbeKind::Echo,
            _ => return None,
        };
        (usize::from(u16::from_be_bytes(*length)) <= frame.len()).then(|| Self {
            kind,
            from: PeerId(*from),
            to: PeerId(*to),
            nonce: u64::from_be_bytes(*nonce),
        })
    }
}

/// All that a peer has to say about its end.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Table {
    /// UDP port of its VXLAN device.
    #[n(0)]
    pub port: u16,
    /// Whether it wants the fast path in the clear with the receiver (fastpath F5).
    #[n(1)]
    pub willing: bool,
    /// Number of this state of its addresses.
    #[n(2)]
    pub number: u64,
    /// Its local MAC addresses, six bytes each.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub macs: Vec<u8>,
    /// What the receiver needs to seal what it sends by the fast path, if the sender offers that
    /// (fastpath F19). Peers that know nothing of it skip it and say nothing of it.
    #[n(4)]
    pub seal: Option<Seal>,
}

/// A peer's end of WireGuard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Seal {
    /// Its public key.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub key: [u8; 32],
    /// Its UDP port.
    #[n(1)]
    pub port: u16,
}

/// A change of a peer's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Delta {
    /// Number that it changes.
    #[n(0)]
    pub before: u64,
    /// Number after it.
    #[n(1)]
    pub after: u64,
    /// Addresses that came.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub added: Vec<u8>,
    /// Addresses that went.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub gone: Vec<u8>,
}

/// A request for the whole table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ask {}

/// Is your router alive?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ping {
    /// Repeated by the answer.
    #[n(0)]
    pub nonce: u64,
}

/// It is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pong {
    /// That of the question.
    #[n(0)]
    pub nonce: u64,
    /// Number of the sender's table now.
    #[n(1)]
    pub number: u64,
}

/// Any message of the fast path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// See [`Table`].
    Table(Table),
    /// See [`Delta`].
    Delta(Delta),
    /// See [`Ask`].
    Ask,
    /// See [`Ping`].
    Ping(Ping),
    /// See [`Pong`].
    Pong(Pong),
}

impl Message {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Table(table) => {
                out.push(1);
                put(&mut out, table);
            }
            Self::Delta(delta) => {
                out.push(2);
                put(&mut out, delta);
            }
            Self::Ask => {
                out.push(3);
                put(&mut out, &Ask {});
            }
            Self::Ping(ping) => {
                out.push(4);
                put(&mut out, ping);
            }
            Self::Pong(pong) => {
                out.push(5);
                put(&mut out, pong);
            }
        }
        out
    }

    /// Reads one; `None` for a type that this version does not know.
    ///
    /// # Errors
    /// If it is malformed or longer than its bounds.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        let Some((kind, body)) = bytes.split_first() else {
            return Err(WireError::Empty);
        };
        Ok(Some(match kind {
            1 => {
                let table: Table = whole("Table", body)?;
                addresses("Table's addresses", &table.macs)?;
                Self::Table(table)
            }
            2 => {
                let delta: Delta = whole("Delta", body)?;
                addresses("Delta's new addresses", &delta.added)?;
                addresses("Delta's old addresses", &delta.gone)?;
                Self::Delta(delta)
            }
            3 => {
                whole::<Ask>("Ask", body)?;
                Self::Ask
            }
            4 => Self::Ping(whole("Ping", body)?),
            5 => Self::Pong(whole("Pong", body)?),
            _ => return Ok(None),
        }))
    }
}

fn addresses(what: &'static str, bytes: &[u8]) -> Result<(), WireError> {
    bounded(what, bytes.len(), 6 * MACS_PER_PEER)?;
    if bytes.len().is_multiple_of(6) { Ok(()) } else { Err(WireError::malformed(what, "an address has six bytes")) }
}

/// The addresses in a list of six bytes each; those that can be nobody's are left out.
pub fn macs(bytes: &[u8]) -> impl Iterator<Item = Mac> + '_ {
    let (chunks, _) = bytes.as_chunks::<6>();
    chunks.iter().map(|chunk| Mac(*chunk)).filter(|mac| !mac.is_group() && *mac != Mac([0; 6]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_probe_is_read_as_it_was_written_whatever_its_length() {
        for length in [0, PROBE_MIN, 1416, 9014] {
            let probe =
                ProbeFrame { kind: ProbeKind::Echo, from: PeerId([1; 16]), to: PeerId([2; 16]), nonce: 0x0102_0304 };
            let frame = probe.encode(length);
            assert_eq!(frame.len(), length.max(PROBE_MIN));
            assert_eq!(ProbeFrame::decode(&frame), Some(probe));
            assert_eq!(ProbeFrame::decode(&frame[..frame.len() - 1]), None, "a cut probe is none");
        }
    }

    #[test]
    fn addresses_of_groups_and_nobody_are_left_out() {
        let bytes = [[2, 0, 0, 0, 0, 1], [0xff; 6], [0; 6], [1, 0, 0x5e, 0, 0, 1]].concat();
        assert_eq!(macs(&bytes).collect::<Vec<_>>(), [Mac([2, 0, 0, 0, 0, 1])]);
    }

    #[test]
    fn too_many_addresses_and_half_ones_are_refused() {
        let table = |macs| Message::Table(Table { port: 1, willing: true, number: 1, macs, seal: None }).encode();
        assert!(Message::decode(&table(vec![2; 6 * MACS_PER_PEER])).is_ok());
        assert!(Message::decode(&table(vec![2; 6 * MACS_PER_PEER + 6])).is_err());
        assert!(Message::decode(&table(vec![2; 7])).is_err());
        assert!(Message::decode(&[]).is_err());
        assert_eq!(Message::decode(&[99, 1, 2]), Ok(None), "a later version's message is skipped");
    }

    /// A table as it was before there was a seal.
    #[derive(Encode, Decode)]
    #[cbor(map)]
    struct Before {
        #[n(0)]
        port: u16,
        #[n(1)]
        willing: bool,
        #[n(2)]
        number: u64,
        #[cbor(n(3), with = "minicbor::bytes")]
        macs: Vec<u8>,
    }

    #[test]
    fn a_table_is_read_by_and_from_peers_that_know_no_seal() {
        let seal = Some(Seal { key: [9; 32], port: 6785 });
        let table = Table { port: 6784, willing: false, number: 3, macs: vec![2; 6], seal };
        let bytes = Message::Table(table).encode();
        let before: Before = whole("Table", &bytes[1..]).expect("it skips what it does not know");
        assert_eq!((before.port, before.willing, before.number, before.macs.len()), (6784, false, 3, 6));
        let mut bytes = vec![1];
        put(&mut bytes, &before);
        let Ok(Some(Message::Table(table))) = Message::decode(&bytes) else { panic!("it is a table") };
        assert_eq!(table.seal, None);
    }

    #[test]
    fn the_sealed_address_is_link_local_and_of_one_peer() {
        let (a, mut b) = ([0xff; 16], [0xff; 16]);
        b[2] = 0;
        let address = |id| sealed_address(PeerId(id));
        assert!(address(a).is_unicast_link_local() && address([0; 16]).is_unicast_link_local());
        assert_ne!(address(a), address(b));
        assert_eq!(address(a).to_string(), "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    }

    proptest! {
        #[test]
        fn messages_survive_the_wire(before: u64, after: u64, nonce: u64, willing: bool, port: u16, count in 0usize..50) {
            let list = vec![2; 6 * count];
            for message in [
                Message::Table(Table { port, willing, number: after, macs: list.clone(), seal: None }),
                Message::Table(Table {
                    port,
                    willing,
                    number: after,
                    macs: list.clone(),
                    seal: Some(Seal { key: [nonce as u8; 32], port }),
                }),
                Message::Delta(Delta { before, after, added: list, gone: Vec::new() }),
                Message::Ask,
                Message::Ping(Ping { nonce }),
                Message::Pong(Pong { nonce, number: before }),
            ] {
                prop_assert_eq!(Message::decode(&message.encode()), Ok(Some(message)));
            }
        }

        #[test]
        fn noise_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(&bytes);
            let _ = ProbeFrame::decode(&bytes);
        }
    }
}
