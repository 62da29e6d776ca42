//! Whose keys are trusted no more: a set that only grows (control C30).

use std::collections::BTreeMap;

use super::{Identity, crypto};
use crate::id::PeerId;
use crate::wire::trust::{REVOKED_MAX, Revocation};

/// The revoked peers, each with the first revocation of it that was heard of.
#[derive(Debug, Default)]
pub(crate) struct Revoked(BTreeMap<PeerId, Revocation>);

impl Revoked {
    /// Adds a revocation that was checked; false if that peer is revoked already, or there is no
    /// room.
    pub(crate) fn insert(&mut self, revocation: Revocation) -> bool {
        let fits = self.has_room() && !self.has(&revocation.peer);
        if fits {
            self.0.insert(revocation.peer, revocation);
        }
        fits
    }

    /// Whether one more is taken.
    pub(crate) fn has_room(&self) -> bool {
        self.0.len() < REVOKED_MAX
    }

    /// Whether a peer is revoked.
    pub(crate) fn has(&self, peer: &PeerId) -> bool {
        self.0.contains_key(peer)
    }

    /// The revocation of a peer.
    pub(crate) fn get(&self, peer: &PeerId) -> Option<&Revocation> {
        self.0.get(peer)
    }

    /// All of them, ascending by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Revocation> {
        self.0.values()
    }

    /// The hash of who is revoked; `None` if nobody is.
    pub(crate) fn hash(&self) -> Option<[u8; 16]> {
        if self.0.is_empty() {
            return None;
        }
        let ids: Vec<&[u8]> = self.0.keys().map(|id| &id.0[..]).collect();
        let mut half = [0; 16];
        half.copy_from_slice(&crypto::hash(&ids)[..16]);
        Some(half)
    }
}

impl Revocation {
    /// Signs a revocation.
    pub(crate) fn sign(network: &str, peer: PeerId, name: &str, at: u64, identity: &impl Identity) -> Self {
        let mut revocation = Self {
            network: network.to_owned(),
            peer,
            name: name.to_owned(),
            at,
            sign_key: identity.sign_key(),
            box_key: identity.box_key(),
            signature: [0; 64],
        };
        revocation.signature = identity.sign(&revocation.text());
        revocation
    }

    /// Whether it is from whom it says.
    pub(crate) fn is_signed(&self, identity: &impl Identity) -> bool {
        identity.verify(&self.sign_key, &self.text(), &self.signature)
    }

    /// What is signed (control C30).
    fn text(&self) -> [u8; 32] {
        let (network, name, signer) = (self.network.as_bytes(), self.name.as_bytes(), self.signer());
        crypto::hash(&[b"weft revocation 1", network, &self.peer.0, name, &self.at.to_be_bytes(), &signer.0])
    }
}
