//! The outside of a UDP datagram: what it is, for whom, and which key opens it.
//!
//! ```text
//! byte 0 = x1xxxxxx   QUIC (RFC 9443 §3): not ours
//!
//! SLEEVE   0        1        2                 4                          8
//!          ┌────────┬────────┬─────────────────┬──────────────────────────┬───────────────────┐
//!          │ 0x01   │ 0      │ 0               │ receiver index           │ counter           │
//!          └────────┴────────┴─────────────────┴──────────────────────────┴───────────────────┘16
//!          │ records (sealed) …                                           │ tag (16; none if plain)
//!
//! RELAY    0        1           2              4                      16                     28
//!          ┌────────┬───────────┬──────────────┬──────────────────────┬──────────────────────┐
//!          │ 0x02   │ hops left │ 0            │ destination (short)  │ source (short)       │
//!          └────────┴───────────┴──────────────┴──────────────────────┴──────────────────────┘
//!          │ a SLEEVE or a QUIC datagram …
//! ```
//!
//! All numbers are big-endian (sleeve S1–S4). A short id is the first 12 bytes of a
//! [`PeerId`]: a relayed QUIC handshake (1200 bytes) then still fits the 1232 bytes of UDP that
//! IPv6's smallest MTU leaves.

use crate::id::PeerId;

/// Set in the first byte of every QUIC datagram and of none of ours.
pub const QUIC_BIT: u8 = 0x40;
/// First byte of a SLEEVE datagram.
pub const SLEEVE: u8 = 0x01;
/// First byte of a RELAY datagram.
pub const RELAY: u8 = 0x02;
/// Bytes of a SLEEVE header.
pub const SLEEVE_HEADER: usize = 16;
/// Bytes of a RELAY header.
pub const RELAY_HEADER: usize = 28;
/// Bytes of the tag that every suite but the plain one appends.
pub const TAG: usize = 16;
/// Hops that a new RELAY datagram may take, as many as a flood may. Links of few peers each, and
/// routes by round trip, make ways of nine hops among a hundred peers; a chain of sites makes
/// longer ones. Circles end before, at the first relay that knows the datagram again (sleeve S4).
pub const HOPS: u8 = 32;

/// The first 12 bytes of a [`PeerId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortId(pub [u8; 12]);

impl From<PeerId> for ShortId {
    fn from(id: PeerId) -> Self {
        let mut short = [0; 12];
        short.copy_from_slice(&id.0[..12]);
        Self(short)
    }
}

/// Why bytes are not a datagram of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    /// Shorter than the header of its type.
    #[error("datagram ends inside its header")]
    Short,
    /// The first byte is neither QUIC's nor one that this version knows.
    #[error("datagram type {0:#04x} is unknown to this version")]
    Type(u8),
    /// A byte that must be zero in this version is not.
    #[error("a reserved byte of the datagram header is not zero")]
    Reserved,
}

/// Header of a SLEEVE datagram, and the associated data of its seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SleeveHeader {
    /// Which of the receiver's keys opens it.
    pub receiver: u32,
    /// Number of this datagram under its key: never used twice.
    pub counter: u64,
}

impl SleeveHeader {
    /// The header's bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; SLEEVE_HEADER] {
        let mut bytes = [0; SLEEVE_HEADER];
        bytes[0] = SLEEVE;
        bytes[4..8].copy_from_slice(&self.receiver.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.counter.to_be_bytes());
        bytes
    }
}

/// Header of a RELAY datagram. Not authenticated: a relay changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayHeader {
    /// How many more peers may handle it.
    pub hops: u8,
    /// Whom it is for.
    pub destination: ShortId,
    /// Who made it.
    pub source: ShortId,
}

impl RelayHeader {
    /// The header's bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; RELAY_HEADER] {
        let mut bytes = [0; RELAY_HEADER];
        bytes[0] = RELAY;
        bytes[1] = self.hops;
        bytes[4..16].copy_from_slice(&self.destination.0);
        bytes[16..28].copy_from_slice(&self.source.0);
        bytes
    }
}

/// What a datagram is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datagram {
    /// For the QUIC endpoint, all of it.
    Quic,
    /// Records follow the header.
    Sleeve(SleeveHeader),
    /// Another datagram follows the header.
    Relay(RelayHeader),
}

impl Datagram {
    /// Looks at the header only.
    ///
    /// # Errors
    /// If the bytes are of no type that this version knows.
    pub fn parse(bytes: &[u8]) -> Result<Self, DatagramError> {
        match bytes.first().copied() {
            None => Err(DatagramError::Short),
            Some(first) if first & QUIC_BIT != 0 => Ok(Self::Quic),
            Some(SLEEVE) => parse_sleeve(bytes).map(Self::Sleeve),
            Some(RELAY) => parse_relay(bytes).map(Self::Relay),
            Some(other) => Err(DatagramError::Type(other)),
        }
    }
}

fn parse_sleeve(bytes: &[u8]) -> Result<SleeveHeader, DatagramError> {
    let header: &[u8; SLEEVE_HEADER] = bytes.first_chunk().ok_or(DatagramError::Short)?;
    let [_, 0, 0, 0, r0, r1, r2, r3, counter @ ..] = *header else {
        return Err(DatagramError::Reserved);
    };
    Ok(SleeveHeader { receiver: u32::from_be_bytes([r0, r1, r2, r3]), counter: u64::from_be_bytes(counter) })
}

fn parse_relay(bytes: &[u8]) -> Result<RelayHeader, DatagramError> {
    let header: &[u8; RELAY_HEADER] = bytes.first_chunk().ok_or(DatagramError::Short)?;
    if header[2..4] != [0, 0] {
        return Err(DatagramError::Reserved);
    }
    let short = |at: usize| {
        let mut id = [0; 12];
        id.copy_from_slice(&header[at..at + 12]);
        ShortId(id)
    };
    Ok(RelayHeader { hops: header[1], destination: short(4), source: short(16) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_sleeve_header_reads_back(receiver: u32, counter: u64) {
            let header = SleeveHeader { receiver, counter };
            prop_assert_eq!(Datagram::parse(&header.bytes()), Ok(Datagram::Sleeve(header)));
        }

        #[test]
        fn a_relay_header_reads_back(hops: u8, destination: [u8; 12], source: [u8; 12]) {
            let header = RelayHeader { hops, destination: ShortId(destination), source: ShortId(source) };
            prop_assert_eq!(Datagram::parse(&header.bytes()), Ok(Datagram::Relay(header)));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = Datagram::parse(&bytes);
        }

        #[test]
        fn a_first_byte_with_the_quic_bit_is_quic(first: u8, rest: Vec<u8>) {
            let mut bytes = vec![first];
            bytes.extend(rest);
            prop_assert_eq!(Datagram::parse(&bytes) == Ok(Datagram::Quic), first & QUIC_BIT != 0);
        }
    }

    #[test]
    fn short_and_unknown_and_reserved_are_told_apart() {
        assert_eq!(Datagram::parse(&[]), Err(DatagramError::Short));
        assert_eq!(Datagram::parse(&[SLEEVE; 15]), Err(DatagramError::Short));
        assert_eq!(Datagram::parse(&[RELAY; 27]), Err(DatagramError::Short));
        assert_eq!(Datagram::parse(&[SLEEVE; 16]), Err(DatagramError::Reserved));
        assert_eq!(Datagram::parse(&[RELAY; 28]), Err(DatagramError::Reserved));
        assert_eq!(Datagram::parse(&[0x3f; 99]), Err(DatagramError::Type(0x3f)));
    }
}
