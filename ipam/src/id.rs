//! Names on the wire and on disk: of peers, of networks, of one life of a peer.

use core::fmt;

use minicbor::{Decode, Encode};

/// A peer as 16 bytes. The surface converts from and to the caller's type.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub(crate) struct Id(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 16]);

impl fmt::Display for Id {
    /// The first eight hexadecimal digits, as in the rest of Weft's texts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address network: drawn at random by whoever founds it.
///
/// Registers of one say nothing about another, so their ids must differ even if their ranges do not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub(crate) struct NetworkId(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 16]);

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who owns a block: one life of one peer.
///
/// A life begins with a start of the process, and has a number drawn by chance: so a restart, a
/// lost disk and an old copy of a disk are all the same to the others, a new owner (ipam I9).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Owner {
    /// The peer.
    #[n(0)]
    pub(crate) peer: Id,
    /// Its life.
    #[n(1)]
    pub(crate) life: u64,
}

/// Who sent a message: a peer and the number of its start, as the mesh knows them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Sender {
    /// The peer.
    pub(crate) peer: Id,
    /// Its start.
    pub(crate) incarnation: u64,
}
