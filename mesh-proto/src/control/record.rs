//! The signed record: what a peer says of itself, and which of two of its records holds.
//!
//! Records are the values of a delta-state CRDT. For each origin the record with the highest
//! [`Version`] holds (gossip G2); merging is a maximum, hence commutative, associative and
//! idempotent. A record is kept and relayed as the origin's exact bytes, so that its signature
//! holds whatever fields a later version adds.

use std::sync::Arc;

use super::{Identity, crypto};
use crate::id::{Incarnation, PeerId};
use crate::wire::cbor::WireError;
use crate::wire::gossip::{RECORD_LABEL, RecordBody, SIGNATURE_LEN};

/// The order of an origin's records.
///
/// The tag (of the body's hash) decides only between two bodies of the same number: a data
/// directory was copied back or runs twice, and all peers must agree on one record until its
/// origin has noticed (gossip G4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Life of the origin.
    pub incarnation: Incarnation,
    /// Number in that life.
    pub seq: u64,
    /// First eight bytes of the body's SHA-256.
    pub tag: u64,
}

/// A record whose signature was checked, with the bytes that were signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRecord {
    /// Whose it is.
    pub id: PeerId,
    /// Its place in the order of its origin's records.
    pub version: Version,
    /// What it says.
    pub body: RecordBody,
    /// Signature and body, as the origin made them.
    pub bytes: Arc<[u8]>,
}

/// Why a record is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It is too short to have a signature.
    #[error("the record is cut off in its signature")]
    Short,
    /// It was not signed by the key that it names.
    #[error("the record of peer {0} has a wrong signature")]
    Signature(PeerId),
}

/// A record that was read, but whose signature was not checked yet: enough to see whether it is
/// worth the check.
#[derive(Debug)]
pub struct Unchecked<'a> {
    /// The record as it would be.
    record: SignedRecord,
    bytes: &'a [u8],
}

impl<'a> Unchecked<'a> {
    /// Reads signature and body.
    ///
    /// # Errors
    /// If they are malformed.
    pub fn read(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (_, encoded) = bytes.split_first_chunk::<SIGNATURE_LEN>().ok_or(RecordError::Short)?;
        let body = RecordBody::decode(encoded)?;
        let record = SignedRecord {
            id: PeerId::of_keys(&body.sign_key, &body.box_key),
            version: version(&body, encoded),
            body,
            bytes: Arc::from(bytes),
        };
        Ok(Self { record, bytes })
    }

    /// Whose it claims to be.
    #[must_use]
    pub const fn id(&self) -> PeerId {
        self.record.id
    }

    /// Which one it claims to be.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.record.version
    }

    /// What it claims.
    #[must_use]
    pub const fn body(&self) -> &RecordBody {
        &self.record.body
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// If it is not the origin's.
    pub fn check(self, identity: &impl Identity) -> Result<SignedRecord, RecordError> {
        let (signature, encoded) = self.bytes.split_first_chunk::<SIGNATURE_LEN>().ok_or(RecordError::Short)?;
        let message = [RECORD_LABEL, encoded].concat();
        if identity.verify(&self.record.body.sign_key, &message, signature) {
            Ok(self.record)
        } else {
            Err(RecordError::Signature(self.record.id))
        }
    }
}

fn version(body: &RecordBody, encoded: &[u8]) -> Version {
    Version { incarnation: Incarnation(body.incarnation), seq: body.seq, tag: tag(encoded) }
}

fn tag(encoded: &[u8]) -> u64 {
    let digest = crypto::hash(&[encoded]);
    let mut tag = [0; 8];
    tag.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(tag)
}

/// The tag of a record that was not read yet.
#[must_use]
pub fn tag_of(bytes: &[u8]) -> Option<u64> {
    bytes.get(SIGNATURE_LEN..).map(tag)
}

impl SignedRecord {
    /// Signs what this peer says of itself.
    pub fn sign(body: RecordBody, identity: &impl Identity) -> Self {
        let encoded = body.encode();
        let signature = identity.sign(&[RECORD_LABEL, &encoded].concat());
        Self {
            id: PeerId::of_keys(&body.sign_key, &body.box_key),
            version: version(&body, &encoded),
            bytes: Arc::from([&signature[..], &encoded].concat()),
            body,
        }
    }

    /// Round trip in microseconds of the link to that peer, if the record lists one.
    #[must_use]
    pub fn link_to(&self, peer: &PeerId) -> Option<u32> {
        let links = &self.body.links;
        links.binary_search_by_key(peer, |link| link.peer).ok().map(|at| links[at].rtt_us)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::gossip::LinkEntry;
    use proptest::prelude::*;

    /// A cheap stand-in for signatures: whoever knows the key can "sign", any wrong byte is seen.
    #[derive(Debug, Clone)]
    pub(crate) struct Cheap(pub(crate) u8);

    impl Identity for Cheap {
        fn sign_key(&self) -> [u8; 32] {
            [self.0; 32]
        }
        fn box_key(&self) -> [u8; 32] {
            [self.0; 32]
        }
        fn sign(&self, message: &[u8]) -> [u8; 64] {
            let digest = crypto::hash(&[&self.sign_key(), message]);
            let mut out = [0; 64];
            out[..32].copy_from_slice(&digest);
            out
        }
        fn verify(&self, sign_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
            Self(sign_key[0]).sign(message) == *signature
        }
    }

    pub(crate) fn record(origin: u8, incarnation: u64, seq: u64, links: &[(PeerId, u32)]) -> SignedRecord {
        let mut links: Vec<_> = links.iter().map(|&(peer, rtt_us)| LinkEntry { peer, rtt_us }).collect();
        links.sort_by_key(|link| link.peer);
        let body = RecordBody {
            sign_key: [origin; 32],
            box_key: [origin; 32],
            instance: 1,
            incarnation,
            seq,
            name: format!("peer{origin}"),
            endpoints: vec![],
            links,
            run: [1; 16],
            admissions: vec![],
        };
        SignedRecord::sign(body, &Cheap(origin))
    }

    pub(crate) fn id(origin: u8) -> PeerId {
        PeerId::of_keys(&[origin; 32], &[origin; 32])
    }

    #[test]
    fn a_record_is_believed_with_its_origins_signature_only() {
        let record = record(1, 1, 1, &[]);
        let read = Unchecked::read(&record.bytes).unwrap();
        assert_eq!((read.id(), read.version()), (record.id, record.version));
        assert_eq!(read.check(&Cheap(9)), Ok(record.clone()));
        let mut forged = record.bytes.to_vec();
        forged[0] ^= 1;
        let read = Unchecked::read(&forged).unwrap();
        assert_eq!(read.check(&Cheap(9)), Err(RecordError::Signature(record.id)));
    }

    #[test]
    fn a_higher_incarnation_holds_over_any_number() {
        assert!(record(1, 2, 1, &[]).version > record(1, 1, 99, &[]).version);
        assert!(record(1, 1, 2, &[]).version > record(1, 1, 1, &[]).version);
        assert_ne!(record(1, 1, 1, &[]).version, record(1, 1, 1, &[(id(2), 1)]).version);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_record(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Unchecked::read(&bytes).map_or(true, |read| read.check(&Cheap(1)).is_err()));
        }
    }
}
