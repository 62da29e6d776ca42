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

use core::net::IpAddr;

use ipnet::IpNet;
use minicbor::decode::{self, Decoder};
use minicbor::encode::{self, Encoder, Write};
use minicbor::{Decode, Encode};

use crate::founding::{Ballot, Network};
use crate::id::{Id, NetworkId, Owner};
use crate::panel::{NextPanel, Panel, Seat};
use crate::ring::{Reg, RegRun};
use crate::store::StoredVote;

/// First byte of every message.
const VERSION: u8 = 2;
/// Longest message.
pub(crate) const MAX_MESSAGE: usize = 512 * 1024;
/// Most runs that are put into one message; a run takes at most 64 bytes.
pub(crate) const MAX_RUNS: usize = 4096;

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
    Gone(#[n(0)] Vec<Owner>),
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
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::Owner;
    use crate::ring::{Holder, Order};

    fn id() -> impl Strategy<Value = Id> {
        prop_oneof![(1u8..4).prop_map(|peer| Id([peer; 16])), any::<[u8; 16]>().prop_map(Id)]
    }

    fn owner() -> impl Strategy<Value = Owner> {
        (id(), prop_oneof![Just(1), any::<u64>()]).prop_map(|(peer, life)| Owner { peer, life })
    }

    fn net() -> impl Strategy<Value = Net> {
        let v4 = (any::<[u8; 4]>(), 0u8..=32).prop_map(|(bits, len)| (IpAddr::from(bits), len));
        let v6 = (any::<[u8; 16]>(), 0u8..=128).prop_map(|(bits, len)| (IpAddr::from(bits), len));
        prop_oneof![v4, v6].prop_map(|(address, len)| Net(IpNet::new(address, len).unwrap()))
    }

    /// Mostly numbers that mean something.
    fn few16() -> impl Strategy<Value = u16> {
        prop_oneof![0u16..3, any::<u16>()]
    }

    fn few32() -> impl Strategy<Value = u32> {
        prop_oneof![0u32..70, any::<u32>()]
    }

    fn run() -> impl Strategy<Value = WireRun> {
        let holder = prop_oneof![Just(Holder::Nobody), Just(Holder::Disputed), owner().prop_map(Holder::One)];
        (few16(), few32(), few32(), any::<u64>(), any::<u64>(), holder).prop_map(
            |(range, lo, hi, term, epoch, holder)| WireRun {
                range,
                lo,
                hi,
                reg: Reg { order: Order { term, epoch }, holder },
            },
        )
    }

    fn ballot() -> impl Strategy<Value = Ballot> {
        (any::<u64>(), id(), any::<u64>()).prop_map(|(round, proposer, life)| Ballot { round, proposer, life })
    }

    fn network() -> impl Strategy<Value = Network> {
        let list = |of| proptest::collection::vec(of, 0..4);
        (
            any::<[u8; 16]>(),
            list(net().boxed()),
            proptest::collection::vec(id(), 0..4),
            proptest::collection::vec(owner(), 0..4),
        )
            .prop_map(|(name, ranges, voters, shares)| Network { id: NetworkId(name), ranges, voters, shares })
    }

    fn accepted() -> impl Strategy<Value = Accepted> {
        (ballot(), network()).prop_map(|(ballot, network)| Accepted { ballot, network })
    }

    fn wanted() -> impl Strategy<Value = Wanted> {
        (few16(), few32(), few32(), proptest::option::of(net())).prop_map(|(range, lo, hi, address)| Wanted {
            range,
            lo,
            hi,
            address,
        })
    }

    fn request() -> impl Strategy<Value = Request> {
        (any::<[u64; 2]>(), wanted(), any::<u32>(), any::<u32>()).prop_map(|([life, seq], wanted, need, has)| Request {
            life,
            seq,
            wanted,
            need,
            has,
        })
    }

    fn panel() -> impl Strategy<Value = Panel> {
        let list = || proptest::collection::vec(id(), 0..4);
        (prop_oneof![0u64..4, any::<u64>()], list(), list()).prop_map(|(version, voters, before)| Panel {
            version,
            voters,
            before,
        })
    }

    fn next_panel() -> impl Strategy<Value = NextPanel> {
        (ballot(), panel()).prop_map(|(ballot, panel)| NextPanel { ballot, panel })
    }

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0u64..4, Just(1 << 44), Just((1 << 44) + (1 << 16)), any::<u64>()]
    }

    fn term() -> impl Strategy<Value = Term> {
        (number(), number()).prop_map(|(term, nonce)| Term { term, nonce })
    }

    fn about_voters() -> impl Strategy<Value = Body> {
        let runs = || proptest::collection::vec(run(), 0..5);
        let blocks = proptest::collection::vec((few16(), few32(), few32()), 0..4)
            .prop_map(|list| list.into_iter().map(|(range, lo, hi)| BlockRuns { range, lo, hi }).collect());
        let votes = proptest::collection::vec((run(), term()), 0..4).prop_map(|list| {
            let stored = |(run, promised): (WireRun, Term)| StoredVote {
                lo: run.lo,
                hi: run.hi,
                vote: crate::voter::Vote { promised, reg: run.reg },
            };
            list.into_iter().map(stored).collect()
        });
        let seat = (number(), proptest::option::of(ballot()), proptest::option::of(next_panel()))
            .prop_map(|(version, promised, accepted)| Seat { version, promised, accepted });
        let place = proptest::option::of((few16(), few32()));
        let found = proptest::option::of(proptest::collection::vec(owner(), 0..4));
        prop_oneof![
            panel().prop_map(Body::Panel),
            (number(), term(), blocks).prop_map(|(version, term, blocks)| Body::BlockPrepare(Prepare {
                version,
                term,
                blocks
            })),
            (number(), runs()).prop_map(|(nonce, runs)| Body::BlockPromise { nonce, runs }),
            (number(), term(), runs()).prop_map(|(version, term, runs)| Body::BlockAccept { version, term, runs }),
            number().prop_map(|nonce| Body::BlockAccepted { nonce }),
            (number(), number(), panel()).prop_map(|(nonce, term, panel)| Body::Behind { nonce, term, panel }),
            (number(), number(), runs()).prop_map(|(id, version, runs)| Body::Witness { id, version, runs }),
            (number(), number()).prop_map(|(id, version)| Body::Witnessed { id, version }),
            (panel(), number(), few16(), few32()).prop_map(|(panel, life, range, from)| Body::SeatFetch {
                panel,
                life,
                range,
                from
            }),
            (number(), number(), seat, few16(), few32(), votes, place, found).prop_map(
                |(version, life, seat, range, from, runs, next, found)| {
                    Body::SeatState(SeatState { version, life, seat, range, from, runs, next, found })
                }
            ),
            (number(), ballot()).prop_map(|(version, ballot)| Body::PanelPrepare { version, ballot }),
            (number(), ballot(), proptest::option::of(next_panel()))
                .prop_map(|(version, ballot, accepted)| Body::PanelPromise { version, ballot, accepted }),
            (number(), next_panel()).prop_map(|(version, next)| Body::PanelAccept { version, next }),
            (number(), ballot()).prop_map(|(version, ballot)| Body::PanelAccepted { version, ballot }),
            proptest::collection::vec(owner(), 0..4).prop_map(Body::Gone),
            (number(), number(), number()).prop_map(|(version, nonce, life)| Body::Lease { version, nonce, life }),
            (number(), number()).prop_map(|(version, nonce)| Body::Leased { version, nonce }),
            (number(), number(), proptest::collection::vec(owner(), 0..4))
                .prop_map(|(version, nonce, lives)| Body::Silent { version, nonce, lives }),
            (number(), number(), proptest::collection::vec(owner(), 0..4))
                .prop_map(|(version, nonce, lives)| Body::SilentToo { version, nonce, lives }),
            claims().prop_map(Body::Strays),
            claims().prop_map(Body::Theirs),
            Just(Body::PanelAsk),
        ]
    }

    fn claims() -> impl Strategy<Value = Vec<Claim>> {
        proptest::collection::vec((net(), ".*").prop_map(|(address, owner)| Claim { address, owner }), 0..4)
    }

    pub(crate) fn body() -> impl Strategy<Value = Body> {
        let runs = || proptest::collection::vec(run(), 0..5);
        let parts = proptest::collection::vec((any::<u16>(), any::<u8>()), 0..5)
            .prop_map(|list| list.into_iter().map(|(range, bucket)| Part { range, bucket }).collect());
        let digest = proptest::collection::vec(any::<u64>(), 0..70).prop_map(|buckets| vec![RangeDigest { buckets }]);
        let why = prop_oneof![
            Just(Refusal::Nothing),
            Just(Refusal::BlockInUse),
            Just(Refusal::NotMine),
            ".*".prop_map(Refusal::InUse),
        ];
        prop_oneof![
            about_voters(),
            (any::<u32>(), proptest::collection::vec(net(), 0..4), number(), proptest::option::of(any::<bool>()))
                .prop_map(|(named, ranges, life, observer)| Body::Seeking { named, ranges, life, observer }),
            (any::<u64>(), any::<bool>(), any::<u64>()).prop_map(|(root, untouched, ranges)| Body::Here {
                root,
                untouched,
                ranges
            }),
            Just(Body::Fetch),
            (network(), panel()).prop_map(|(network, panel)| Body::Founded(network, panel)),
            digest.prop_map(Body::Digest),
            (runs(), parts).prop_map(|(runs, want)| Body::Delta { runs, want }),
            ballot().prop_map(Body::Prepare),
            (ballot(), proptest::option::of(accepted()), any::<u32>(), number())
                .prop_map(|(ballot, accepted, named, life)| Body::Promise { ballot, accepted, named, life }),
            ballot().prop_map(Body::Promised),
            accepted().prop_map(Body::Accept),
            ballot().prop_map(Body::AcceptedBallot),
            request().prop_map(Body::Request),
            (any::<u64>(), any::<u64>(), why).prop_map(|(seq, life, why)| Body::Refused { seq, life, why }),
            (any::<u64>(), runs()).prop_map(|(id, runs)| Body::Grant(Grant { id, runs })),
            any::<u64>().prop_map(|id| Body::Confirm { id }),
        ]
    }

    proptest! {
        #[test]
        fn messages_read_back(body in body(), network in proptest::option::of(any::<[u8; 16]>())) {
            let message = Message { network: network.map(NetworkId), body };
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }

        #[test]
        fn arbitrary_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Message::decode(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let _ = Message::decode(&bytes);
        }
    }

    #[test]
    fn version_2_stays_as_it_is() {
        let hex = |body: Body| {
            let message = Message { network: Some(NetworkId([0xaa; 16])), body };
            let bytes = message.encode();
            let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            text.replace(&"aa".repeat(16), "<network>").replace(&"11".repeat(16), "<peer>")
        };
        let peer = Id([0x11; 16]);
        let owner = Owner { peer, life: 3 };
        let reg = Reg { order: Order { term: 1, epoch: 2 }, holder: Holder::One(owner) };
        let run = WireRun { range: 0, lo: 5, hi: 9, reg };
        let wanted = Wanted { range: 0, lo: 0, hi: 16, address: None };
        let request = Request { life: 3, seq: 8, wanted, need: 1, has: 0 };
        assert_eq!(hex(Body::Fetch), "028250<network>820280");
        assert_eq!(hex(Body::Here { root: 1, untouched: true, ranges: 2 }), "028250<network>82018301f502");
        assert_eq!(
            hex(Body::Grant(Grant { id: 1, runs: vec![run] })),
            "028250<network>820d8182018184000509828201028201818250<peer>03"
        );
        assert_eq!(hex(Body::Request(request)), "028250<network>820b81850308830000100100");
        assert_eq!(hex(Body::Confirm { id: 1 }), "028250<network>820e8101");
    }

    #[test]
    fn the_longest_messages_fit() {
        let owner = Owner { peer: Id([255; 16]), life: u64::MAX };
        let order = Order { term: u64::MAX, epoch: u64::MAX };
        let run =
            WireRun { range: u16::MAX, lo: u32::MAX, hi: u32::MAX, reg: Reg { order, holder: Holder::One(owner) } };
        let part = Part { range: u16::MAX, bucket: u8::MAX };
        let want = vec![part; crate::range::MAX_RANGES * 64];
        let message =
            Message { network: Some(NetworkId([255; 16])), body: Body::Delta { runs: vec![run; MAX_RUNS], want } };
        assert!(message.encode().len() <= MAX_MESSAGE, "{}", message.encode().len());
    }
}
