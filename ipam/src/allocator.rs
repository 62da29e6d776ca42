//! The allocator: allocate, claim, free, look up, donate, behind one surface.

use core::fmt::Debug;
use core::net::IpAddr;
use core::time::Duration;

use ipnet::IpNet;

use crate::{Output, RequestId, Ticket};

/// What a peer id must be able to do: be compared, copied and written as 16 bytes.
pub trait PeerKey: Copy + Ord + Debug {
    /// The id on the wire and on disk.
    fn to_bytes(self) -> [u8; 16];
    /// The id of 16 bytes.
    fn from_bytes(bytes: [u8; 16]) -> Self;
}

/// What an [`Allocator`] needs to know for its whole life.
#[derive(Debug, Clone)]
pub struct Config<P> {
    /// This peer.
    pub me: P,
    /// Number of this start; higher than of every start before.
    pub incarnation: u64,
    /// The ranges of the network, at most one a family is the default for `allocate`.
    pub ranges: Vec<IpNet>,
    /// How many peers the operator named, besides this one. None: this peer founds the network.
    pub named_peers: usize,
}

/// The address protocol of one peer.
#[derive(Debug)]
pub struct Allocator<P> {
    config: Config<P>,
}

impl<P: PeerKey> Allocator<P> {
    /// An allocator with the durable state of its last run, as (key, value) pairs in any order
    /// (empty at the first start).
    ///
    /// # Errors
    /// If the state is not one that this version wrote, or the ranges are not usable.
    pub fn new(
        config: Config<P>,
        state: Vec<(Vec<u8>, Vec<u8>)>,
        seed: [u8; 32],
        now: Duration,
    ) -> Result<Self, StateError> {
        let _ = (state, seed, now);
        Ok(Self { config })
    }
    /// The peers that can be reached now, with their incarnations (never this one).
    pub fn handle_peers(&mut self, reachable: &[(P, u64)], now: Duration) {
        let _ = (reachable, now);
    }
    /// A message from a peer.
    pub fn handle_message(&mut self, from: P, incarnation: u64, bytes: &[u8], now: Duration) {
        let _ = (from, incarnation, bytes, now);
    }
    /// A write is durable, or failed with the given text.
    pub fn handle_stored(&mut self, ticket: Ticket, result: Result<(), String>, now: Duration) {
        let _ = (ticket, result, now);
    }
    /// Asks for an address in a range for an owner. The same owner and range get the same
    /// address again. The answer is an [`Output::Reply`].
    pub fn allocate(&mut self, request: RequestId, owner: &str, range: IpNet, now: Duration) {
        let _ = (request, owner, range, now);
    }
    /// Asks for a given address for an owner.
    pub fn claim(&mut self, request: RequestId, owner: &str, address: IpAddr, now: Duration) {
        let _ = (request, owner, address, now);
    }
    /// Gives back one address of an owner, or all of them; returns those given back.
    pub fn free(&mut self, owner: &str, address: Option<IpAddr>, now: Duration) -> Vec<IpNet> {
        let _ = (owner, address, now);
        Vec::new()
    }
    /// The addresses of an owner.
    pub fn lookup(&self, owner: &str) -> Vec<IpNet> {
        let _ = owner;
        Vec::new()
    }
    /// Gives up on a request whose asker went away.
    pub fn cancel(&mut self, request: RequestId) {
        let _ = request;
    }
    /// The time of [`Self::poll_timeout`] has come (earlier or later is harmless).
    pub fn handle_timeout(&mut self, now: Duration) {
        let _ = now;
    }
    /// What to do next; drain until `None` after every input.
    pub fn poll_output(&mut self) -> Option<Output<P>> {
        None
    }
    /// When to call [`Self::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Duration, &'static str)> {
        None
    }
    /// Whether addresses can be given; otherwise what is waited for, in one line.
    pub fn readiness(&self) -> Result<(), String> {
        Err(format!("{:?}: not founded", self.config.me))
    }
    /// Who owns how much, for `weft ipam`.
    pub fn summary(&self) -> Summary<P> {
        Summary {
            ranges: Vec::new(),
            owned: 0,
            free: 0,
            used: 0,
            peers: Vec::new(),
            allocations: Vec::new(),
        }
    }
}

/// The state of the address space as this peer sees it; numbers of addresses saturate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary<P> {
    /// The ranges of the network.
    pub ranges: Vec<IpNet>,
    /// Addresses in blocks that this peer owns.
    pub owned: u64,
    /// Of these, how many can be given.
    pub free: u64,
    /// Of these, how many are given.
    pub used: u64,
    /// Owned addresses of every peer, this one first.
    pub peers: Vec<(P, u64)>,
    /// Addresses that this peer gave: owner, address, time given (seconds since the Unix epoch
    /// are the caller's business; here it is `now` of the grant, or `None` from before the start).
    pub allocations: Vec<(String, IpNet, Option<Duration>)>,
}

/// Why durable state cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A value that this version did not write.
    #[error("the address state has an unreadable entry under key {key}: {why}")]
    Corrupt {
        /// The key, as text.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// The configured ranges cannot be used.
    #[error("{0}")]
    Ranges(String),
}
