//! Peer records and the messages that spread them, version 1 (frozen: fields are only added).
//!
//! ```text
//!  signed record   0                    64
//!                +--------------------+----------------------------------------------------+
//!                | Ed25519 signature  | body: CBOR map                                     |
//!                +--------------------+----------------------------------------------------+
//!                  over "weft record 1" || body
//!  body    { 0 sign key, 1 box key, 2 instance, 3 incarnation, 4 sequence, 5 name,
//!            6 [endpoints], 7 [[peer id, rtt in microseconds], …] strictly ascending by id,
//!            8 run of the router, ? 9 [admissions] (wire::trust) }
//!
//!  Records  16  { 0 [signed records] }
//!  Digest   17  { 0 root }                       root = sum of all entries' hashes
//!  Buckets  18  { 0 64 × 16 bytes }              bucket of a peer: first 6 bits of its id
//!  Versions 19  { 0 bit mask of buckets, 1 n × (id 16, incarnation 8, sequence 8, tag 8) }
//!  Want     20  { 0 [peer ids] }
//! ```

use minicbor::{Decode, Encode};

use super::cbor::{Endpoint, WireError, bounded, printable, put, whole};
use super::control::NAME_MAX;
use super::rows::{pack, unpack, whole_rows};
use super::trust::{ADMISSIONS_MAX, Admission};
use crate::id::PeerId;

/// Most endpoints in a record.
pub const ENDPOINTS_MAX: usize = 16;

/// Most links in a record.
pub const LINKS_MAX: usize = 1024;

/// Number of buckets of the anti-entropy digest.
pub const BUCKETS: usize = 64;

/// Length of a hash of a bucket or of the whole, in bytes.
pub const HASH_LEN: usize = 16;

/// Length of a signature, in bytes.
pub const SIGNATURE_LEN: usize = 64;

/// What the signature covers before the body, so that it can be for nothing else.
pub const RECORD_LABEL: &[u8] = b"weft record 1";

/// What a peer says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RecordBody {
    /// Ed25519 public key.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub sign_key: [u8; 32],
    /// X25519 public key.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub box_key: [u8; 32],
    /// Instance of the data directory.
    #[n(2)]
    pub instance: u64,
    /// Incarnation.
    #[n(3)]
    pub incarnation: u64,
    /// Number of the record in this incarnation.
    #[n(4)]
    pub seq: u64,
    /// Name, for people.
    #[n(5)]
    pub name: String,
    /// Where it can be dialled.
    #[n(6)]
    pub endpoints: Vec<Endpoint>,
    /// With whom it has a direct link, strictly ascending by id.
    #[n(7)]
    pub links: Vec<LinkEntry>,
    /// Random number of this run of the router: tells a life from the one of which somebody put
    /// back a copy of the data directory.
    #[cbor(n(8), with = "minicbor::bytes")]
    pub run: [u8; 16],
    /// Who has admitted it.
    #[cbor(n(9), skip_if = "Vec::is_empty")]
    pub admissions: Vec<Admission>,
}

/// One direct link in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct LinkEntry {
    /// The other end.
    #[n(0)]
    pub peer: PeerId,
    /// Round trip in microseconds.
    #[n(1)]
    pub rtt_us: u32,
}

impl RecordBody {
    /// The bytes of the body, as they are signed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, self);
        out
    }

    /// The body that `bytes` are.
    ///
    /// # Errors
    /// If they are malformed, or a part is longer than its bound, or the links are not in order.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let body: Self = whole("the record", bytes)?;
        printable("the peer's name", &body.name, NAME_MAX)?;
        bounded("the list of endpoints", body.endpoints.len(), ENDPOINTS_MAX)?;
        bounded("the list of links", body.links.len(), LINKS_MAX)?;
        bounded("the list of admissions", body.admissions.len(), ADMISSIONS_MAX)?;
        if !body.links.is_sorted_by(|a, b| a.peer < b.peer) {
            return Err(WireError::malformed("the record", "its links are not in order"));
        }
        Ok(body)
    }
}

/// Records, each as its origin made it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Records {
    /// Signature and body of each.
    #[n(0)]
    pub records: Vec<minicbor::bytes::ByteVec>,
}

/// What the sender knows, in one hash. The answer, if the receiver knows otherwise, is its
/// [`Buckets`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Digest {
    /// Sum of all entries' hashes.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub root: [u8; HASH_LEN],
}

/// What the sender knows, in one hash for each bucket. The answer is the receiver's
/// [`Versions`] of the buckets that differ.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Buckets {
    /// All hashes, in order.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub hashes: Vec<u8>,
}

impl Buckets {
    pub(super) fn check(&self) -> Result<(), WireError> {
        if self.hashes.len() != BUCKETS * HASH_LEN {
            return Err(WireError::malformed(
                "Buckets",
                format!("it has {} bytes instead of {}", self.hashes.len(), BUCKETS * HASH_LEN),
            ));
        }
        Ok(())
    }
}

/// Which versions the sender has, of all peers in some buckets. The receiver answers with the
/// [`Records`] that are newer or missing there, and [`Want`] of those that are newer here.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Versions {
    /// The buckets: bit `b` for bucket `b`.
    #[n(0)]
    pub buckets: u64,
    /// The entries, one after the other.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub entries: Vec<u8>,
}

/// One entry of [`Versions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionEntry {
    /// Whose record.
    pub peer: PeerId,
    /// Its incarnation.
    pub incarnation: u64,
    /// Its number.
    pub seq: u64,
    /// First eight bytes of the SHA-256 of its body.
    pub tag: u64,
}

impl Versions {
    /// The message with these entries.
    #[must_use]
    pub fn of(buckets: u64, list: impl Iterator<Item = VersionEntry>) -> Self {
        let entries = pack(list.map(|entry| (entry.peer, [entry.incarnation, entry.seq, entry.tag])));
        Self { buckets, entries }
    }

    /// The entries.
    pub fn list(&self) -> impl Iterator<Item = VersionEntry> + '_ {
        unpack(&self.entries).map(|(peer, [incarnation, seq, tag])| VersionEntry { peer, incarnation, seq, tag })
    }

    pub(super) fn check(&self) -> Result<(), WireError> {
        whole_rows("Versions", &self.entries)
    }
}

/// Asks for the records of these peers.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Want {
    /// Whose.
    #[n(0)]
    pub peers: Vec<PeerId>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body() -> impl Strategy<Value = RecordBody> {
        (
            any::<[u8; 32]>(),
            any::<(u64, u64, u64)>(),
            "[a-z]{0,20}",
            proptest::collection::vec(any::<(u32, u16)>(), 0..4),
            proptest::collection::btree_map(any::<[u8; 16]>(), any::<u32>(), 0..6),
        )
            .prop_map(|(key, (instance, incarnation, seq), name, v4, links)| RecordBody {
                sign_key: key,
                box_key: [2; 32],
                instance,
                incarnation,
                seq,
                name,
                endpoints: v4
                    .into_iter()
                    .map(|(ip, port)| Endpoint((core::net::Ipv4Addr::from_bits(ip), port).into()))
                    .collect(),
                links: links.into_iter().map(|(peer, rtt_us)| LinkEntry { peer: PeerId(peer), rtt_us }).collect(),
                run: [7; 16],
                admissions: (0..instance % 3)
                    .map(|not_after| Admission { sign_key: key, box_key: [3; 32], not_after, signature: [4; 64] })
                    .collect(),
            })
    }

    proptest! {
        #[test]
        fn a_record_reads_back_from_its_bytes(body in body()) {
            prop_assert_eq!(RecordBody::decode(&body.encode()), Ok(body));
        }

        #[test]
        fn arbitrary_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = RecordBody::decode(&bytes);
        }

        #[test]
        fn a_record_with_one_wrong_byte_is_no_panic(body in body(), at in 0usize..400, to in any::<u8>()) {
            let mut bytes = body.encode();
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = RecordBody::decode(&bytes);
        }

        #[test]
        fn versions_read_back(list in proptest::collection::vec(any::<([u8; 16], u64, u64, u64)>(), 0..5)) {
            let list: Vec<_> = list.into_iter().map(|(peer, incarnation, seq, tag)| VersionEntry {
                peer: PeerId(peer), incarnation, seq, tag,
            }).collect();
            let message = Versions::of(5, list.iter().copied());
            prop_assert_eq!(message.list().collect::<Vec<_>>(), list);
            prop_assert!(message.check().is_ok());
        }
    }

    #[test]
    fn links_out_of_order_are_refused() {
        let entry = |n| LinkEntry { peer: PeerId([n; 16]), rtt_us: 1 };
        let body = RecordBody {
            sign_key: [1; 32],
            box_key: [2; 32],
            instance: 1,
            incarnation: 1,
            seq: 1,
            name: String::new(),
            endpoints: vec![],
            links: vec![entry(2), entry(1)],
            run: [0; 16],
            admissions: vec![],
        };
        assert!(RecordBody::decode(&body.encode()).is_err());
    }
}
