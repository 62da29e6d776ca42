//! Distributed address allocation as a pure state machine, generic over the peer id `P`.
//!
//! Same rules of use as the mesh: time is a `Duration` since an epoch of the caller's choice,
//! randomness is a seed, outputs are drained after each input, nothing panics on bytes from the
//! network. It knows nothing of meshes, sockets or disks: [`Output`] asks for what it needs.

pub mod allocator;
mod ask;
mod fence;
mod founding;
mod gossip;
mod grant;
mod id;
mod join;
mod journal;
mod keep;
mod leave;
mod machine;
mod panel;
mod range;
mod remove;
mod restore;
mod ring;
mod runs;
mod serve;
mod silence;
mod space;
mod store;
mod stray;
mod summary;
mod take;
mod voter;
mod wire;

use core::net::IpAddr;

use ipnet::IpNet;

/// Names a request until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names a write until it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// One change of the durable state: a key with its new value, or without one if it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Key, unique within the allocator's state.
    pub key: Vec<u8>,
    /// Value; `None` deletes the key.
    pub value: Option<Vec<u8>>,
}

/// What an allocator asks of whoever runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output<P> {
    /// Make these changes durable, all or none, in the order of the tickets; then call
    /// [`allocator::Allocator::handle_stored`]. Answers and messages that depend on them are
    /// held back until then.
    Store {
        /// Name of the write.
        ticket: Ticket,
        /// The changes.
        changes: Vec<Change>,
    },
    /// Send to one peer; may be lost.
    Send {
        /// The peer.
        to: P,
        /// At most 512 KiB.
        bytes: Vec<u8>,
    },
    /// Send to every reachable peer; may be lost.
    Broadcast {
        /// At most 512 KiB.
        bytes: Vec<u8>,
    },
    /// The answer to a request.
    Reply {
        /// The request.
        request: RequestId,
        /// The address with the prefix length of its range, or why there is none.
        result: Result<IpNet, AllocError>,
    },
    /// Frames of these peers, and of no others, are not to be delivered if they come from these
    /// addresses: each a run by its first and last. A peer was removed while it was alive, and they
    /// went to others. Replaces what was said before.
    Fences(Vec<(P, Vec<(IpAddr, IpAddr)>)>),
    /// Something an operator may want to know, as one line of text.
    Notice(String),
}

/// Why a request for an address was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocError {
    /// Every address that this peer may give is given, and nobody has one to spare.
    #[error("no free address in {range}: {detail}")]
    Exhausted {
        /// The range asked for.
        range: IpNet,
        /// What was tried.
        detail: String,
    },
    /// The address is outside every range of the network.
    #[error("{address} is in no range of this network ({ranges})")]
    OutOfRange {
        /// The address asked for.
        address: IpAddr,
        /// The ranges there are.
        ranges: String,
    },
    /// The address is reserved (network, broadcast, anycast).
    #[error("{address} is reserved")]
    Reserved {
        /// The address asked for.
        address: IpAddr,
    },
    /// The address is given to somebody else.
    #[error("{address} is in use by {owner}")]
    InUse {
        /// The address asked for.
        address: IpAddr,
        /// Who has it.
        owner: String,
    },
    /// The answer did not come in time; asking again is safe.
    #[error("gave up after {waited_s} s: {waiting_for}")]
    TimedOut {
        /// Seconds waited.
        waited_s: u64,
        /// What was waited for.
        waiting_for: String,
    },
    /// The address is in a block of another peer, which has given other addresses of it.
    #[error("{address} is in a block of peer {peer} that is partly in use; choose another address or ask there")]
    HeldElsewhere {
        /// The address asked for.
        address: IpAddr,
        /// The peer that owns the block, by the first eight digits of its id.
        peer: String,
    },
    /// The owner gave the address back while this request was under way.
    #[error("{address} was given back while the request for it was under way")]
    Withdrawn {
        /// The address.
        address: IpAddr,
    },
    /// The owner's name cannot be kept.
    #[error("an owner's name must have 1 to {most} bytes; this one has {bytes}")]
    BadOwner {
        /// Length of the name.
        bytes: usize,
        /// The longest allowed.
        most: usize,
    },
    /// The durable state could not be written.
    #[error("the address state could not be written: {0}")]
    Storage(String),
    /// No range of the wanted family is configured.
    #[error("this network has no range for that ({0})")]
    NoRange(String),
}
