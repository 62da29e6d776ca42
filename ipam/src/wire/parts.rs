//! What messages are made of.

use core::net::IpAddr;

use ipnet::IpNet;
use minicbor::decode::{self, Decoder};
use minicbor::encode::{self, Encoder, Write};
use minicbor::{Decode, Encode};

use crate::founding::{Ballot, Network};
use crate::id::Owner;
use crate::panel::Seat;
use crate::ring::{Reg, RegRun};
use crate::store::StoredVote;

/// A network with its prefix, as CBOR `[address bytes, prefix length]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Net(pub(crate) IpNet);

impl<C> Encode<C> for Net {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(2)?;
        match self.0.addr() {
            IpAddr::V4(v4) => e.bytes(&v4.octets())?,
            IpAddr::V6(v6) => e.bytes(&v6.octets())?,
        };
        e.u8(self.0.prefix_len())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Net {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let at = d.position();
        let wrong = || decode::Error::message("not a network").at(at);
        if d.array()? != Some(2) {
            return Err(wrong());
        }
        let bytes = d.bytes()?;
        let address = if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
            IpAddr::from(v4)
        } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
            IpAddr::from(v6)
        } else {
            return Err(wrong());
        };
        IpNet::new(address, d.u8()?).map(Self).map_err(|_| wrong())
    }
}

/// A run of registers in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct WireRun {
    /// Number of the range.
    #[n(0)]
    pub(crate) range: u16,
    /// First block.
    #[n(1)]
    pub(crate) lo: u32,
    /// The block after the last.
    #[n(2)]
    pub(crate) hi: u32,
    /// The register of each.
    #[n(3)]
    pub(crate) reg: Reg,
}

impl WireRun {
    /// A run of range `range`.
    pub(crate) fn new(range: usize, run: RegRun) -> Self {
        Self {
            // There are at most 64 ranges.
            range: u16::try_from(range).unwrap_or(u16::MAX),
            lo: run.lo,
            hi: run.hi,
            reg: run.reg,
        }
    }

    /// The number of the range, and the run in it.
    pub(crate) fn parts(&self) -> (usize, RegRun) {
        let run = RegRun { lo: self.lo, hi: self.hi, reg: self.reg };
        (usize::from(self.range), run)
    }
}

/// What an asker wants: blocks `lo..hi` of a range, or the one with a given address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Wanted {
    /// Number of the range.
    #[n(0)]
    pub(crate) range: u16,
    /// First block that would do.
    #[n(1)]
    pub(crate) lo: u32,
    /// The block after the last that would do.
    #[n(2)]
    pub(crate) hi: u32,
    /// The address that is wanted, as a network of one address.
    #[n(3)]
    pub(crate) address: Option<Net>,
}

/// A request for blocks (ipam I5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Request {
    /// Life of the asker: grants to an earlier one are told apart by it.
    #[n(0)]
    pub(crate) life: u64,
    /// Number of the request, for the refusal.
    #[n(1)]
    pub(crate) seq: u64,
    /// Which blocks.
    #[n(2)]
    pub(crate) wanted: Wanted,
    /// How many blocks are needed now; 0 for a reserve.
    #[n(3)]
    pub(crate) need: u32,
    /// How many empty blocks the asker has.
    #[n(4)]
    pub(crate) has: u32,
}

/// A number under which registers are settled, and whose attempt it is: two that draw the same
/// number do not both get a majority of promises for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Term {
    /// The number; see [`crate::take`].
    #[n(0)]
    pub(crate) term: u64,
    /// Drawn for the attempt.
    #[n(1)]
    pub(crate) nonce: u64,
}

/// Blocks `lo..hi` of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct BlockRuns {
    /// Number of the range.
    #[n(0)]
    pub(crate) range: u16,
    /// First block.
    #[n(1)]
    pub(crate) lo: u32,
    /// The block after the last.
    #[n(2)]
    pub(crate) hi: u32,
}

impl BlockRuns {
    /// The blocks of a run.
    pub(crate) fn of(run: &WireRun) -> Self {
        Self { range: run.range, lo: run.lo, hi: run.hi }
    }
}

/// Phase 1 of settling blocks (ipam I16).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Prepare {
    /// Version of the panel that is asked.
    #[n(0)]
    pub(crate) version: u64,
    /// The term.
    #[n(1)]
    pub(crate) term: Term,
    /// The blocks.
    #[n(2)]
    pub(crate) blocks: Vec<BlockRuns>,
}

/// A page of what a voter knows (ipam I18).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct SeatState {
    /// Version of the panel of the asker.
    #[n(0)]
    pub(crate) version: u64,
    /// Life of the asker.
    #[n(1)]
    pub(crate) life: u64,
    /// Its part in the change of panels.
    #[n(2)]
    pub(crate) seat: Seat,
    /// Number of the range.
    #[n(3)]
    pub(crate) range: u16,
    /// First block that was asked for.
    #[n(4)]
    pub(crate) from: u32,
    /// What it knows.
    #[n(5)]
    pub(crate) runs: Vec<StoredVote>,
    /// Where the next page begins: range and block.
    #[n(6)]
    pub(crate) next: Option<(u16, u32)>,
    /// Lives that it has found silent; in the first page.
    #[n(7)]
    pub(crate) found: Option<Vec<Owner>>,
    /// Whether that is all that was settled with it for the version of its seat: not if it started
    /// since, for its disk may be an old copy.
    #[n(8)]
    pub(crate) sure: Option<bool>,
    /// How new the lists of what is kept are that it knows; in the first page, behind the lists themselves.
    #[n(9)]
    pub(crate) kept: Option<Vec<KeptAge>>,
}

/// How new a peer's list of what it keeps is (ipam I24).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct KeptAge {
    /// Whose.
    #[n(0)]
    pub(crate) owner: Owner,
    /// Raised with each change.
    #[n(1)]
    pub(crate) version: u64,
}

/// Why nothing is granted.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) enum Refusal {
    /// No empty block to spare.
    #[n(0)]
    Nothing,
    /// The wanted address is given.
    #[n(1)]
    InUse(#[n(0)] String),
    /// The wanted address is free, but others of its block are given.
    #[n(2)]
    BlockInUse,
    /// The blocks are not the asked peer's.
    #[n(3)]
    NotMine,
}

/// A grant (ipam I5): blocks given away to the receiver, durably, before this was sent.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Grant {
    /// Named in the confirmation.
    #[n(0)]
    pub(crate) id: u64,
    /// The registers as they are now; each names the receiver.
    #[n(1)]
    pub(crate) runs: Vec<WireRun>,
}

/// A part of a ring, by number of the range and of the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Part {
    /// Number of the range.
    #[n(0)]
    pub(crate) range: u16,
    /// Number of the bucket.
    #[n(1)]
    pub(crate) bucket: u8,
}

/// The digest of a range.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct RangeDigest {
    /// A hash for each bucket.
    #[n(0)]
    pub(crate) buckets: Vec<u64>,
}

/// An address that somebody has.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Claim {
    /// The address, as a network of one.
    #[n(0)]
    pub(crate) address: Net,
    /// Who.
    #[n(1)]
    pub(crate) owner: String,
}

/// Addresses from one on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub(crate) struct KeptRun {
    /// The first one, as a network of one.
    #[n(0)]
    pub(crate) first: Net,
    /// How many follow it.
    #[n(1)]
    pub(crate) more: u64,
}

/// What a peer has given, or freed lately, outside of its own blocks (ipam I24).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct KeptList {
    /// Who says so, in which life.
    #[n(0)]
    pub(crate) owner: Owner,
    /// Raised with every change.
    #[n(1)]
    pub(crate) version: u64,
    /// The addresses.
    #[n(2)]
    pub(crate) runs: Vec<KeptRun>,
}

/// A life that was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Removed {
    /// Which.
    #[n(0)]
    pub(crate) owner: Owner,
    /// Its peer has said, in a later life, that nothing is left of it.
    #[n(1)]
    pub(crate) cleared: bool,
}

/// A value accepted under a ballot.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Accepted {
    /// The ballot.
    #[n(0)]
    pub(crate) ballot: Ballot,
    /// The value.
    #[n(1)]
    pub(crate) network: Network,
}
