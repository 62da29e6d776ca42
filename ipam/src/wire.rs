//! Messages between allocators, version 2 (frozen: new fields get new numbers, new meanings get
//! a new version).
//!
//! ```text
//!  0        1
//!  +--------+--------------------------------------+
//!  | 0x02   | CBOR: [network or null, body]        |   at most 512 KiB
//!  +--------+--------------------------------------+
//!             body = [kind, fields…]
//! ```
//!
//! Ranges are named by their number in the sorted list of the network's ranges.

mod parts;

use minicbor::decode::Decoder;
use minicbor::{Decode, Encode};

use crate::founding::{Ballot, Network};
use crate::id::{Id, NetworkId, Owner};
use crate::panel::{NextPanel, Panel};

pub(crate) use parts::{
    Accepted, BlockRuns, Claim, Grant, KeptAge, KeptList, KeptRun, Net, Part, Prepare, RangeDigest, Refusal, Removed,
    Request, SeatState, Term, Wanted, WireRun,
};

/// First byte of every message.
const VERSION: u8 = 2;
/// Longest message.
pub(crate) const MAX_MESSAGE: usize = 512 * 1024;
/// Most runs that are put into one message; a run takes at most 64 bytes.
pub(crate) const MAX_RUNS: usize = 4096;

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) enum Body {
    /// I am here and have no network yet.
    #[n(0)]
    Seeking {
        /// How many peers the operator named to me.
        #[n(0)]
        named: u32,
        /// My ranges.
        #[n(1)]
        ranges: Vec<Net>,
        /// My life.
        #[n(2)]
        life: u64,
        /// I take no part in founding.
        #[n(3)]
        observer: Option<bool>,
    },
    /// My registers, in one hash.
    #[n(1)]
    Here {
        /// The hash.
        #[n(0)]
        root: u64,
        /// I founded it alone, and nobody has got anything of it yet.
        #[n(1)]
        untouched: bool,
        /// A hash of my ranges.
        #[n(2)]
        ranges: u64,
        /// A hash of the lives that I know to be removed; 0 if there is none.
        #[n(3)]
        removed: u64,
        /// After how many seconds of silence I take a peer for dead; none: never.
        #[n(4)]
        dead_after: Option<u64>,
        /// A hash of what peers keep in blocks of others; none: nothing.
        #[n(5)]
        kept: Option<u64>,
    },
    /// Send me your network.
    #[n(2)]
    Fetch,
    /// The network as it was founded, and its voters now.
    #[n(3)]
    Founded(#[n(0)] Network, #[n(1)] Panel),
    /// My registers, in 64 hashes a range.
    #[n(4)]
    Digest(#[n(0)] Vec<RangeDigest>),
    /// Registers, and the parts of which I want the receiver's.
    #[n(5)]
    Delta {
        /// The registers.
        #[n(0)]
        runs: Vec<WireRun>,
        /// The parts.
        #[n(1)]
        want: Vec<Part>,
    },
    /// Founding, phase 1.
    #[n(6)]
    Prepare(#[n(0)] Ballot),
    /// Answer to phase 1.
    #[n(7)]
    Promise {
        /// The ballot promised to.
        #[n(0)]
        ballot: Ballot,
        /// What was accepted before.
        #[n(1)]
        accepted: Option<Accepted>,
        /// How many peers the operator named.
        #[n(2)]
        named: u32,
        /// The life of the acceptor.
        #[n(3)]
        life: u64,
    },
    /// Refusal of either phase: something newer was promised.
    #[n(8)]
    Promised(#[n(0)] Ballot),
    /// Founding, phase 2.
    #[n(9)]
    Accept(#[n(0)] Accepted),
    /// Answer to phase 2.
    #[n(10)]
    AcceptedBallot(#[n(0)] Ballot),
    /// Give me blocks.
    #[n(11)]
    Request(#[n(0)] Request),
    /// Nothing for you.
    #[n(12)]
    Refused {
        /// The request.
        #[n(0)]
        seq: u64,
        /// The life that asked.
        #[n(1)]
        life: u64,
        /// Why.
        #[n(2)]
        why: Refusal,
    },
    /// Blocks for you.
    #[n(13)]
    Grant(#[n(0)] Grant),
    /// The grant is recorded here; do not send it again.
    #[n(14)]
    Confirm {
        /// The grant.
        #[n(0)]
        id: u64,
    },
    /// The voters as I know them.
    #[n(15)]
    Panel(#[n(0)] Panel),
    /// Settling blocks, phase 1.
    #[n(16)]
    BlockPrepare(#[n(0)] Prepare),
    /// Answer to phase 1: what is accepted.
    #[n(17)]
    BlockPromise {
        /// Nonce of the term.
        #[n(0)]
        nonce: u64,
        /// The registers.
        #[n(1)]
        runs: Vec<WireRun>,
        /// How new the lists of what is kept in these blocks are that I know; they were sent before.
        #[n(2)]
        kept: Option<Vec<KeptAge>>,
    },
    /// Settling blocks, phase 2.
    #[n(18)]
    BlockAccept {
        /// Version of the panel.
        #[n(0)]
        version: u64,
        /// The term.
        #[n(1)]
        term: Term,
        /// The registers.
        #[n(2)]
        runs: Vec<WireRun>,
    },
    /// Answer to phase 2.
    #[n(19)]
    BlockAccepted {
        /// Nonce of the term.
        #[n(0)]
        nonce: u64,
    },
    /// Refusal of either phase, or of a witness.
    #[n(20)]
    Behind {
        /// Nonce of the term, or name of the grant.
        #[n(0)]
        nonce: u64,
        /// The newest term that was promised or accepted.
        #[n(1)]
        term: u64,
        /// The voters as the refuser knows them.
        #[n(2)]
        panel: Panel,
    },
    /// I was granted these: be my witness.
    #[n(21)]
    Witness {
        /// The grant.
        #[n(0)]
        id: u64,
        /// Version of the panel.
        #[n(1)]
        version: u64,
        /// The registers.
        #[n(2)]
        runs: Vec<WireRun>,
    },
    /// I am.
    #[n(22)]
    Witnessed {
        /// The grant.
        #[n(0)]
        id: u64,
        /// Version of the panel.
        #[n(1)]
        version: u64,
    },
    /// What do you know as a voter?
    #[n(23)]
    SeatFetch {
        /// The voters as I know them.
        #[n(0)]
        panel: Panel,
        /// My life.
        #[n(1)]
        life: u64,
        /// From this range on.
        #[n(2)]
        range: u16,
        /// From this block on.
        #[n(3)]
        from: u32,
    },
    /// This.
    #[n(24)]
    SeatState(#[n(0)] SeatState),
    /// Changing the panel, phase 1.
    #[n(25)]
    PanelPrepare {
        /// Version of the panel that is to change.
        #[n(0)]
        version: u64,
        /// The ballot.
        #[n(1)]
        ballot: Ballot,
    },
    /// Answer to phase 1.
    #[n(26)]
    PanelPromise {
        /// Version of the panel that is to change.
        #[n(0)]
        version: u64,
        /// The ballot.
        #[n(1)]
        ballot: Ballot,
        /// What was accepted before.
        #[n(2)]
        accepted: Option<NextPanel>,
    },
    /// Changing the panel, phase 2.
    #[n(27)]
    PanelAccept {
        /// Version of the panel that is to change.
        #[n(0)]
        version: u64,
        /// The next one.
        #[n(1)]
        next: NextPanel,
    },
    /// Answer to phase 2.
    #[n(28)]
    PanelAccepted {
        /// Version of the panel that is to change.
        #[n(0)]
        version: u64,
        /// The ballot.
        #[n(1)]
        ballot: Ballot,
    },
    /// These lives were removed.
    #[n(29)]
    Gone {
        /// The lives.
        #[n(0)]
        lives: Vec<Removed>,
        /// Tell me what you know beyond these.
        #[n(1)]
        want: bool,
    },
    /// I am alive.
    #[n(30)]
    Lease {
        /// Version of the panel.
        #[n(0)]
        version: u64,
        /// Named in the answer.
        #[n(1)]
        nonce: u64,
        /// My life.
        #[n(2)]
        life: u64,
        /// After how many seconds of silence I take a peer for dead; none: never.
        #[n(3)]
        dead_after: Option<u64>,
    },
    /// So I see.
    #[n(31)]
    Leased {
        /// Version of the panel.
        #[n(0)]
        version: u64,
        /// Of the lease.
        #[n(1)]
        nonce: u64,
        /// After how many seconds of silence I take a peer for dead; none: never.
        #[n(2)]
        dead_after: Option<u64>,
    },
    /// I have not heard of these lives for long; have you?
    #[n(32)]
    Silent {
        /// Version of the panel.
        #[n(0)]
        version: u64,
        /// Named in the answer.
        #[n(1)]
        nonce: u64,
        /// The lives.
        #[n(2)]
        lives: Vec<Owner>,
        /// Most voters have not: grant them no lease from now on, if you have not either.
        #[n(3)]
        binding: bool,
    },
    /// Neither have I of these.
    #[n(33)]
    SilentToo {
        /// Version of the panel.
        #[n(0)]
        version: u64,
        /// Of the question.
        #[n(1)]
        nonce: u64,
        /// The lives.
        #[n(2)]
        lives: Vec<Owner>,
    },
    /// These addresses of your blocks are in use here.
    #[n(34)]
    Strays(#[n(0)] Vec<Claim>),
    /// I gave these to others.
    #[n(35)]
    Theirs(#[n(0)] Vec<Claim>),
    /// Which voters do you know?
    #[n(36)]
    PanelAsk,
    /// I have found you silent: no lease for this life of yours.
    #[n(37)]
    Unleased {
        /// Version of the panel.
        #[n(0)]
        version: u64,
        /// Of the lease.
        #[n(1)]
        nonce: u64,
    },
    /// Peers have these in use, outside of their own blocks.
    #[n(38)]
    Kept {
        /// The lists that I know.
        #[n(0)]
        lists: Vec<KeptList>,
        /// Tell me what you know beyond these.
        #[n(1)]
        want: bool,
    },
    /// I am a voter, and will not forget your list.
    #[n(39)]
    Keeping {
        /// Version of the panel.
        #[n(0)]
        panel: u64,
        /// How new it is.
        #[n(1)]
        age: KeptAge,
    },
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(crate) struct Message {
    /// The sender's network, if it has one.
    #[n(0)]
    pub(crate) network: Option<NetworkId>,
    /// What it says.
    #[n(1)]
    pub(crate) body: Body,
}

/// Appends a value as CBOR. Writing to memory cannot fail, and no type here refuses to be encoded.
pub(crate) fn append_cbor<T: Encode<()>>(value: &T, bytes: &mut Vec<u8>) {
    let result = minicbor::encode(value, bytes);
    debug_assert!(result.is_ok(), "encoding to memory cannot fail");
}

/// The value of CBOR bytes, all of them.
///
/// # Errors
/// If the bytes are not one value of this type.
pub(crate) fn from_cbor<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, String> {
    let mut decoder = Decoder::new(bytes);
    let value = decoder.decode().map_err(|error| error.to_string())?;
    if decoder.position() != bytes.len() {
        return Err(format!("{} bytes too many", bytes.len() - decoder.position()));
    }
    Ok(value)
}

impl Message {
    /// The bytes to send.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        bytes.push(VERSION);
        append_cbor(self, &mut bytes);
        bytes
    }

    /// Reads bytes from the network.
    ///
    /// # Errors
    /// If they are no message of this version.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_MESSAGE {
            return Err(format!("{} bytes; at most {MAX_MESSAGE} are allowed", bytes.len()));
        }
        match bytes.split_first() {
            None => Err("no bytes".to_owned()),
            Some((&VERSION, rest)) => from_cbor(rest),
            Some((version, _)) => Err(format!("version {version} of the address protocol; this peer speaks {VERSION}")),
        }
    }
}

/// Whoever is named by a peer id in a text.
pub(crate) fn names<'a>(peers: impl Iterator<Item = &'a Id>) -> String {
    let names: Vec<String> = peers.map(Id::to_string).collect();
    names.join(", ")
}

#[cfg(test)]
pub(crate) mod tests;
