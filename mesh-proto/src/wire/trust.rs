//! Who is a member and who no more: admissions and revocations, version 1 (fields are only added).
//!
//! ```text
//!  admission     [ sponsor's sign key 32, sponsor's box key 32, not after, signature 64 ]
//!                in the record of the admitted peer; the signature covers what control C26 lists
//!  revocation    { 0 network, 1 peer id, 2 name, 3 at, 4 sign key, 5 box key, 6 signature }
//!
//!  Pake         6  { 0 SPAKE2 message }
//!  Admit        7  { 0 not after, 1 signature }
//!  Revoked      8  { 0 hash of the revoked ids }
//!  Revocations  9  { 0 [revocations], 1 ask? }
//!
//!  on disk       edge  { 0 network, 1 sign key, 2 box key, 3 instance, 4 admission }
//! ```
//!
//! Times are in seconds since 1970 (control C29).

use minicbor::{Decode, Encode};

use super::cbor::{WireError, bounded, printable, put, whole};
use super::control::NAME_MAX;
use crate::id::PeerId;

/// Most admissions in a record.
pub const ADMISSIONS_MAX: usize = 8;

/// Most revocations that are held.
pub const REVOKED_MAX: usize = 1024;

/// Longest SPAKE2 message, in bytes.
pub const PAKE_MAX: usize = 64;

/// A sponsor's word that a peer has proven the secret, as that peer carries it in its record.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Admission {
    /// The sponsor's Ed25519 key.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub sign_key: [u8; 32],
    /// The sponsor's X25519 key; both together make its id.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub box_key: [u8; 32],
    /// Until when it holds.
    #[n(2)]
    pub not_after: u64,
    /// The sponsor's signature.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub signature: [u8; 64],
}

impl Admission {
    /// The id of the sponsor.
    #[must_use]
    pub fn sponsor(&self) -> PeerId {
        PeerId::of_keys(&self.sign_key, &self.box_key)
    }
}

/// An admission together with whom it admits, as it is kept in the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Edge {
    /// The network.
    #[n(0)]
    pub network: String,
    /// Ed25519 key of the admitted peer.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub sign_key: [u8; 32],
    /// X25519 key of the admitted peer.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub box_key: [u8; 32],
    /// Its instance.
    #[n(3)]
    pub instance: u64,
    /// Who admitted it.
    #[n(4)]
    pub admission: Admission,
}

impl Edge {
    /// The id of the admitted peer.
    #[must_use]
    pub fn admitted(&self) -> PeerId {
        PeerId::of_keys(&self.sign_key, &self.box_key)
    }

    /// The bytes that are kept.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, self);
        out
    }

    /// The edge that `bytes` are.
    ///
    /// # Errors
    /// If they are malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        whole("the kept admission", bytes)
    }
}

/// A member's word that keys are to be trusted no more.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Revocation {
    /// The network.
    #[n(0)]
    pub network: String,
    /// Who is revoked.
    #[n(1)]
    pub peer: PeerId,
    /// Its name, for people; empty if the signer did not know it.
    #[n(2)]
    pub name: String,
    /// When, for people.
    #[n(3)]
    pub at: u64,
    /// The signer's Ed25519 key.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub sign_key: [u8; 32],
    /// The signer's X25519 key.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub box_key: [u8; 32],
    /// Its signature.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub signature: [u8; 64],
}

impl Revocation {
    /// The id of the signer.
    #[must_use]
    pub fn signer(&self) -> PeerId {
        PeerId::of_keys(&self.sign_key, &self.box_key)
    }

    /// The bytes that are kept.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, self);
        out
    }

    /// The revocation that `bytes` are.
    ///
    /// # Errors
    /// If they are malformed or a part is longer than its bound.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let revocation: Self = whole("the kept revocation", bytes)?;
        revocation.check()?;
        Ok(revocation)
    }

    fn check(&self) -> Result<(), WireError> {
        printable("the network's name", &self.network, NAME_MAX)?;
        printable("the revoked peer's name", &self.name, NAME_MAX)
    }
}

/// The SPAKE2 message that a Hello left out.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pake {
    /// As SPAKE2 made it.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub message: Vec<u8>,
}

impl Pake {
    pub(super) const fn check(&self) -> Result<(), WireError> {
        bounded("the SPAKE2 message", self.message.len(), PAKE_MAX)
    }
}

/// The sender admits the receiver.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Admit {
    /// Until when.
    #[n(0)]
    pub not_after: u64,
    /// The sender's signature.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: [u8; 64],
}

/// Whom the sender holds revoked, in one hash. The answer, if the receiver holds others, is its
/// [`Revocations`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Revoked {
    /// First half of the hash of the ids, ascending.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub hash: [u8; 16],
}

/// Revocations that the receiver may lack.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Revocations {
    /// Each as its signer made it.
    #[n(0)]
    pub list: Vec<Revocation>,
    /// Whether these are all that the sender holds, and it wants what it lacks.
    #[n(1)]
    pub ask: bool,
}

impl Revocations {
    pub(super) fn check(&self) -> Result<(), WireError> {
        bounded("the list of revocations", self.list.len(), REVOKED_MAX)?;
        self.list.iter().try_for_each(Revocation::check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn any_admission()(keys in any::<[[u8; 32]; 2]>(), not_after in any::<u64>(), byte in any::<u8>())
            -> Admission {
            Admission { sign_key: keys[0], box_key: keys[1], not_after, signature: [byte; 64] }
        }
    }

    proptest! {
        #[test]
        fn edges_and_revocations_read_back(
            admission in any_admission(), keys in any::<[[u8; 32]; 2]>(), instance in any::<u64>(),
            network in "[a-z]{0,20}", name in "[ -~]{0,64}", peer in any::<[u8; 16]>(), at in any::<u64>(),
        ) {
            let [sign_key, box_key] = keys;
            let signature = admission.signature;
            let edge = Edge { network: network.clone(), sign_key, box_key, instance, admission };
            prop_assert_eq!(Edge::decode(&edge.encode()), Ok(edge));
            let revocation = Revocation { network, peer: PeerId(peer), name, at, sign_key, box_key, signature };
            prop_assert_eq!(Revocation::decode(&revocation.encode()), Ok(revocation));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = (Edge::decode(&bytes), Revocation::decode(&bytes));
        }
    }

    #[test]
    fn names_with_control_characters_are_refused() {
        let revocation = Revocation {
            network: "net".into(),
            peer: PeerId([1; 16]),
            name: "a\u{1b}[2Jb".into(),
            at: 1,
            sign_key: [1; 32],
            box_key: [1; 32],
            signature: [1; 64],
        };
        assert!(Revocation::decode(&revocation.encode()).is_err());
    }
}
