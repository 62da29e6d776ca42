//! The durable state: keys, and values with a checksum over both.
//!
//! ```text
//!  key                                value = version 2 | CRC-32 of key and body | body (CBOR)
//!  network                            what the network was founded as
//!  left                               this peer left its network and looks for another one
//!  lost                               what there was could not be read, and there is no network again yet
//!  vote                               promises and acceptances of founding
//!  panel                              the voters
//!  seat                               this voter's promises about the next panel
//!  gone                               lives that were removed, and whether anything is left of them
//!  silent                             lives that this voter found silent
//!  kept  | peer (16)                  what a peer has in use outside of its own blocks
//!  votes | range (2) | bucket (1)     what this voter promised and accepted, one part of a ring
//!  ring  | range (2) | bucket (1)     registers of one part of a ring
//!  addr  | 4 or 6    | address (16)   an address: given, or freed lately
//!  grant | id (8)                     a grant that is not confirmed yet
//! ```

use core::net::{IpAddr, Ipv6Addr};
use std::collections::BTreeMap;

use minicbor::{Decode, Encode};

use crate::Change;
use crate::allocator::StateError;
use crate::founding::{Acceptor, Network};
use crate::id::{Id, Owner};
use crate::panel::{Panel, Seat};
use crate::ring::Reg;
use crate::voter::Vote;
use crate::wire::{KeptList, Net, Removed, WireRun, append_cbor, from_cbor};

const VERSION: u8 = 2;
const HEAD: usize = 5;

/// Name of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// The network.
    Network,
    /// The voters.
    Panel,
    /// This voter's promises about the next panel.
    Seat,
    /// Lives that were removed.
    Gone,
    /// Lives that this voter found silent.
    Silent,
    /// What a peer keeps.
    Kept(Id),
    /// A part of what a voter knows.
    Votes {
        /// Number of the range.
        range: u16,
        /// Number of the bucket.
        bucket: u8,
    },
    /// A network was left for another.
    Left,
    /// State was lost, and no network was found since.
    Lost,
    /// The acceptor of founding.
    Vote,
    /// A part of a ring.
    Ring {
        /// Number of the range.
        range: u16,
        /// Number of the bucket.
        bucket: u8,
    },
    /// An address.
    Address(IpAddr),
    /// A grant under way.
    Grant(u64),
}

/// A stored run of blocks `lo..hi`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct StoredRun {
    /// First block.
    #[n(0)]
    pub(crate) lo: u32,
    /// The block after the last.
    #[n(1)]
    pub(crate) hi: u32,
    /// The register of each.
    #[n(2)]
    pub(crate) reg: Reg,
}

/// A stored run of what a voter knows of blocks `lo..hi`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct StoredVote {
    /// First block.
    #[n(0)]
    pub(crate) lo: u32,
    /// The block after the last.
    #[n(1)]
    pub(crate) hi: u32,
    /// What it knows of each.
    #[n(2)]
    pub(crate) vote: Vote,
}

/// What became of an address.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) enum StoredAddress {
    /// Given.
    #[n(0)]
    Given {
        /// Whose it is.
        #[n(0)]
        owner: String,
        /// What was asked for.
        #[n(1)]
        net: Net,
    },
    /// Freed; cools down again after a restart.
    #[n(1)]
    Freed,
}

/// A grant under way.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct StoredGrant {
    /// To whom.
    #[n(0)]
    pub(crate) to: Owner,
    /// What.
    #[n(1)]
    pub(crate) runs: Vec<WireRun>,
}

/// An entry that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// See [`Key::Network`].
    Network(Network),
    /// See [`Key::Panel`].
    Panel(Panel),
    /// See [`Key::Seat`].
    Seat(Seat),
    /// See [`Key::Gone`].
    Gone(Vec<Removed>),
    /// See [`Key::Silent`].
    Silent(Vec<Owner>),
    /// See [`Key::Kept`].
    Kept(KeptList),
    /// See [`Key::Votes`].
    Votes {
        /// Number of the range.
        range: u16,
        /// The runs.
        runs: Vec<StoredVote>,
    },
    /// See [`Key::Left`].
    Left,
    /// See [`Key::Lost`].
    Lost,
    /// See [`Key::Vote`].
    Vote(Acceptor),
    /// See [`Key::Ring`].
    Ring {
        /// Number of the range.
        range: u16,
        /// The runs.
        runs: Vec<StoredRun>,
    },
    /// See [`Key::Address`].
    Address(IpAddr, StoredAddress),
    /// See [`Key::Grant`].
    Grant(u64, StoredGrant),
}

impl Key {
    fn encode(self) -> Vec<u8> {
        match self {
            Self::Network => b"network".to_vec(),
            Self::Panel => b"panel".to_vec(),
            Self::Seat => b"seat".to_vec(),
            Self::Gone => b"gone".to_vec(),
            Self::Silent => b"silent".to_vec(),
            Self::Kept(peer) => [&b"kept"[..], &peer.0].concat(),
            Self::Left => b"left".to_vec(),
            Self::Lost => b"lost".to_vec(),
            Self::Vote => b"vote".to_vec(),
            Self::Ring { range, bucket } | Self::Votes { range, bucket } => {
                let name: &[u8] = if matches!(self, Self::Ring { .. }) { b"ring" } else { b"votes" };
                let mut key = name.to_vec();
                key.extend(range.to_be_bytes());
                key.push(bucket);
                key
            }
            Self::Address(address) => {
                let (family, bits) = match address {
                    IpAddr::V4(v4) => (4, u128::from(v4.to_bits())),
                    IpAddr::V6(v6) => (6, v6.to_bits()),
                };
                let mut key = b"addr".to_vec();
                key.push(family);
                key.extend(bits.to_be_bytes());
                key
            }
            Self::Grant(id) => {
                let mut key = b"grant".to_vec();
                key.extend(id.to_be_bytes());
                key
            }
        }
    }

    fn decode(key: &[u8]) -> Option<Self> {
        match key {
            b"network" => return Some(Self::Network),
            b"panel" => return Some(Self::Panel),
            b"seat" => return Some(Self::Seat),
            b"gone" => return Some(Self::Gone),
            b"silent" => return Some(Self::Silent),
            b"left" => return Some(Self::Left),
            b"lost" => return Some(Self::Lost),
            b"vote" => return Some(Self::Vote),
            _ => {}
        }
        if let Some(&[high, low, bucket]) = key.strip_prefix(b"ring") {
            let range = u16::from_be_bytes([high, low]);
            return Some(Self::Ring { range, bucket });
        }
        if let Some(&[high, low, bucket]) = key.strip_prefix(b"votes") {
            let range = u16::from_be_bytes([high, low]);
            return Some(Self::Votes { range, bucket });
        }
        if let Some((family, bits)) = key.strip_prefix(b"addr").and_then(<[u8]>::split_first) {
            let bits = u128::from_be_bytes(bits.try_into().ok()?);
            return match family {
                4 => Some(Self::Address(u32::try_from(bits).ok()?.to_be_bytes().into())),
                6 => Some(Self::Address(Ipv6Addr::from_bits(bits).into())),
                _ => None,
            };
        }
        if let Some(peer) = key.strip_prefix(b"kept") {
            return Some(Self::Kept(Id(peer.try_into().ok()?)));
        }
        let id = key.strip_prefix(b"grant")?;
        Some(Self::Grant(u64::from_be_bytes(id.try_into().ok()?)))
    }
}

/// CRC-32 (IEEE 802.3) of each byte, followed by so many zero bytes as the number of the table.
const CRC_TABLES: [[u32; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
};

/// The checksum of all parts, eight bytes at a time.
fn crc32(parts: &[&[u8]]) -> u32 {
    let mut crc = u32::MAX;
    for part in parts {
        let (words, rest) = part.as_chunks::<8>();
        for [a, b, c, d, e, f, g, h] in words {
            let [i, j, k, l] = crc.to_le_bytes();
            let bytes = [h, g, f, e, &(d ^ l), &(c ^ k), &(b ^ j), &(a ^ i)].map(|&byte| usize::from(byte));
            crc = CRC_TABLES.iter().zip(bytes).fold(0, |crc, (table, byte)| crc ^ table[byte]);
        }
        for &byte in rest {
            let [low, ..] = (crc ^ u32::from(byte)).to_le_bytes();
            crc = (crc >> 8) ^ CRC_TABLES[0][usize::from(low)];
        }
    }
    !crc
}

/// The change that writes a value.
pub(crate) fn put<T: Encode<()>>(key: Key, value: &T) -> Change {
    let key = key.encode();
    let mut bytes = Vec::with_capacity(128);
    bytes.resize(HEAD, 0);
    append_cbor(value, &mut bytes);
    if let Some((head, body)) = bytes.split_first_chunk_mut::<HEAD>() {
        let [a, b, c, d] = crc32(&[&key, body]).to_be_bytes();
        *head = [VERSION, a, b, c, d];
    }
    Change { key, value: Some(bytes) }
}

/// The change that deletes a value.
pub(crate) fn delete(key: Key) -> Change {
    Change { key: key.encode(), value: None }
}

/// Reads the network, if there is one.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_network(state: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Option<Network>, StateError> {
    let key = Key::Network.encode();
    match state.get(&key).map(|value| read(&key, value)).transpose()? {
        Some(Entry::Network(network)) => Ok(Some(network)),
        _ => Ok(None),
    }
}

/// Reads an entry.
///
/// # Errors
/// If this version did not write it so.
pub(crate) fn read(key: &[u8], value: &[u8]) -> Result<Entry, StateError> {
    let text = || key.escape_ascii().to_string();
    let corrupt = |why: String| StateError::Corrupt { key: text(), why };
    let (version, body) = check(key, value).map_err(corrupt)?;
    match (version, Key::decode(key)) {
        (VERSION, Some(name)) => parse(name, body).map_err(corrupt),
        // Whole, and not of this version: of no use here, and of all use to the one that wrote it.
        _ => Err(StateError::Newer { key: text() }),
    }
}

/// The version and the body of a value, if it is as somebody wrote it under this key.
fn check<'a>(key: &[u8], value: &'a [u8]) -> Result<(u8, &'a [u8]), String> {
    let Some((head, body)) = value.split_first_chunk::<HEAD>() else {
        return Err(format!("{} bytes, too few", value.len()));
    };
    let [version, crc @ ..] = *head;
    if version < VERSION {
        return Err(format!("version {version}; this program reads {VERSION}"));
    }
    if u32::from_be_bytes(crc) != crc32(&[key, body]) {
        return Err("its checksum is wrong".to_owned());
    }
    Ok((version, body))
}

fn parse(name: Key, body: &[u8]) -> Result<Entry, String> {
    Ok(match name {
        Key::Network => Entry::Network(from_cbor(body)?),
        Key::Panel => Entry::Panel(from_cbor(body)?),
        Key::Seat => Entry::Seat(from_cbor(body)?),
        Key::Gone => Entry::Gone(from_cbor(body)?),
        Key::Silent => Entry::Silent(from_cbor(body)?),
        Key::Kept(_) => Entry::Kept(from_cbor(body)?),
        Key::Votes { range, .. } => Entry::Votes { range, runs: from_cbor(body)? },
        Key::Left => from_cbor::<bool>(body).map(|_| Entry::Left)?,
        Key::Lost => from_cbor::<bool>(body).map(|_| Entry::Lost)?,
        Key::Vote => Entry::Vote(from_cbor(body)?),
        Key::Ring { range, .. } => Entry::Ring { range, runs: from_cbor(body)? },
        Key::Address(address) => Entry::Address(address, from_cbor(body)?),
        Key::Grant(id) => Entry::Grant(id, from_cbor(body)?),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_checksum_is_crc_32() {
        assert_eq!(crc32(&[b"1234", b"56789"]), 0xcbf4_3926);
    }

    fn entry() -> (Vec<u8>, Vec<u8>) {
        let given = StoredAddress::Given { owner: "c1".into(), net: Net("10.0.0.0/24".parse().unwrap()) };
        let change = put(Key::Address("10.0.0.7".parse().unwrap()), &given);
        (change.key, change.value.unwrap())
    }

    #[test]
    fn a_damaged_value_is_refused_by_its_key() {
        let (key, value) = entry();
        assert!(read(&key, &value).is_ok());
        for at in 0..value.len() * 8 {
            let mut damaged = value.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            let error = read(&key, &damaged).expect_err("damaged");
            assert!(error.to_string().contains("addr"), "{error}");
            // The version is outside of the checksum, for every version has its own.
            assert_eq!(matches!(error, StateError::Newer { .. }), at < 8 && damaged[0] > VERSION, "{error}");
        }
        for len in 0..value.len() {
            assert!(read(&key, &value[..len]).is_err());
        }
        let other = delete(Key::Address("10.0.0.8".parse().unwrap())).key;
        assert!(read(&other, &value).is_err(), "a value belongs to its key");
    }

    #[test]
    fn what_a_newer_version_wrote_is_not_taken_for_damage() {
        let body = [0xf5];
        let of = |version: u8, key: &[u8]| {
            let mut value = vec![version];
            value.extend(crc32(&[key, &body]).to_be_bytes());
            value.extend(body);
            value
        };
        assert_eq!(read(b"left", &of(VERSION, b"left")).unwrap(), Entry::Left);
        for (version, key) in [(VERSION + 1, &b"left"[..]), (VERSION, &b"later"[..])] {
            assert!(matches!(read(key, &of(version, key)), Err(StateError::Newer { .. })), "{version}");
        }
        assert!(matches!(read(b"left", &of(VERSION, b"later")), Err(StateError::Corrupt { .. })), "damaged");
    }

    proptest! {
        #[test]
        fn keys_read_back(
            v4 in any::<u32>(), v6 in any::<u128>(), id in any::<u64>(),
            range in any::<u16>(), bucket in any::<u8>(),
        ) {
            let keys = [
                Key::Network, Key::Panel, Key::Seat, Key::Gone, Key::Silent, Key::Left, Key::Lost, Key::Vote, Key::Grant(id), Key::Kept(Id(v6.to_be_bytes())),
                Key::Ring { range, bucket }, Key::Votes { range, bucket },
                Key::Address(v4.to_be_bytes().into()), Key::Address(Ipv6Addr::from_bits(v6).into()),
            ];
            for key in keys {
                prop_assert_eq!(Key::decode(&key.encode()), Some(key));
            }
        }

        #[test]
        fn arbitrary_state_is_read_or_refused(
            prefix in prop_oneof![Just("panel"), Just("seat"), Just("gone"), Just("votes"), Just("network"), Just("vote"), Just("ring"),
                Just("addr"), Just("grant"), Just("kept"), Just("")],
            rest in proptest::collection::vec(any::<u8>(), 0..20),
            body in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut key = prefix.as_bytes().to_vec();
            key.extend(rest);
            let mut value = vec![VERSION];
            value.extend(crc32(&[&key, &body]).to_be_bytes());
            value.extend(body);
            let _ = read(&key, &value);
        }
    }
}
