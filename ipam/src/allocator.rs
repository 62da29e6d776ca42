//! The allocator: allocate, claim, free, look up, donate, behind one surface.

use core::fmt::Debug;
use core::marker::PhantomData;
use core::net::IpAddr;
use core::time::Duration;

use ipnet::IpNet;

use crate::id::{Id, Sender};
pub use crate::machine::Ablation;
use crate::machine::{Machine, Setup};
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
    /// How this peer comes to its first network.
    pub birth: Birth<P>,
    /// Keys of durable state that cannot be read: they are deleted with the first write, and remembered
    /// as lost.
    pub forgot: Vec<Vec<u8>>,
    /// Durable state was lost with its keys. A peer that has lost state looks around before it founds
    /// a network alone.
    pub lost: bool,
    /// Number of other peers that this one is known to have met. If state was lost, one of them is
    /// waited for.
    pub remembered: usize,
    /// After how long a silence a peer is taken for dead and removed; the same at every peer. At
    /// half of it, a peer that most voters have not heard of gives no more new addresses. `None`:
    /// it is not removed for silence.
    pub dead_after: Option<Duration>,
}

/// How a peer that has no network comes to one (ipam I3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Birth<P> {
    /// It founds one alone if no peer was named to it, else with the others.
    ByItself,
    /// It waits for one that others found.
    Observer,
    /// It is founded by these peers, and each of them knows it without asking.
    Seeds(Vec<P>),
}

impl<P> Config<P> {
    /// A peer that comes to its network by itself, and does not remove silent ones.
    pub const fn new(me: P, incarnation: u64, ranges: Vec<IpNet>, named_peers: usize) -> Self {
        Self {
            me,
            incarnation,
            ranges,
            named_peers,
            birth: Birth::ByItself,
            forgot: Vec::new(),
            lost: false,
            remembered: 0,
            dead_after: None,
        }
    }
}

/// The address protocol of one peer: converts peer ids, and hands everything to the machine.
#[derive(Debug, Clone)]
pub struct Allocator<P> {
    machine: Machine,
    ranges: Vec<IpNet>,
    peer: PhantomData<P>,
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
        Self::with_broken_rules(config, state, seed, now, Ablation::default())
    }

    /// As [`Self::new`], but some rules are not kept: for tests that show what each is good for.
    ///
    /// # Errors
    /// As [`Self::new`].
    #[doc(hidden)]
    pub fn with_broken_rules(
        config: Config<P>,
        state: Vec<(Vec<u8>, Vec<u8>)>,
        seed: [u8; 32],
        now: Duration,
        ablation: Ablation,
    ) -> Result<Self, StateError> {
        let setup = Setup {
            me: Id(config.me.to_bytes()),
            incarnation: config.incarnation,
            ablation,
            ranges: config.ranges.clone(),
            named: config.named_peers,
            birth: match config.birth {
                Birth::ByItself => Birth::ByItself,
                Birth::Observer => Birth::Observer,
                Birth::Seeds(peers) => Birth::Seeds(peers.into_iter().map(|peer| Id(peer.to_bytes())).collect()),
            },
            forgot: config.forgot,
            lost: config.lost,
            remembered: config.remembered,
            dead_after: config.dead_after,
            seed,
        };
        Ok(Self { machine: Machine::new(setup, state, now)?, ranges: config.ranges, peer: PhantomData })
    }

    /// The peers that can be reached now, with their incarnations (never this one).
    pub fn handle_peers(&mut self, reachable: &[(P, u64)], now: Duration) {
        let peers = reachable.iter().map(|&(peer, life)| (Id(peer.to_bytes()), life)).collect();
        self.machine.handle_peers(peers, now);
    }

    /// This peer goes on under a higher incarnation (the mesh found its number to be taken).
    /// Nothing is lost: requests under way stay so, and are asked for again in the new life.
    pub fn raise_incarnation(&mut self, incarnation: u64, now: Duration) {
        self.machine.raise_incarnation(incarnation, now);
    }

    /// A message from a peer.
    pub fn handle_message(&mut self, from: P, incarnation: u64, bytes: &[u8], now: Duration) {
        self.machine.handle_message(Sender { peer: Id(from.to_bytes()), incarnation }, bytes, now);
    }

    /// A write is durable, or failed with the given text.
    pub fn handle_stored(&mut self, ticket: Ticket, result: Result<(), String>, now: Duration) {
        self.machine.handle_stored(ticket, result, now);
    }

    /// Asks for an address in a range, or in a part of one, for an owner. The same owner and
    /// range get the same address again. The answer is an [`Output::Reply`], after 10 s at the
    /// latest.
    pub fn allocate(&mut self, request: RequestId, owner: &str, range: IpNet, now: Duration) {
        self.machine.clock(now);
        self.machine.allocate(request, owner, range);
        self.machine.settle();
    }

    /// Asks for a given address for an owner.
    pub fn claim(&mut self, request: RequestId, owner: &str, address: IpAddr, now: Duration) {
        self.machine.clock(now);
        self.machine.claim(request, owner, address);
        self.machine.settle();
    }

    /// Gives back one address of an owner, or all of them; returns those given back. They are
    /// not given again for 30 s.
    pub fn free(&mut self, owner: &str, address: Option<IpAddr>, now: Duration) -> Vec<IpNet> {
        self.machine.clock(now);
        let freed = self.machine.free(owner, address);
        self.machine.settle();
        freed
    }

    /// What runs on this host and has an address: owners and addresses. Until this was called
    /// once, no new address is given from blocks of an earlier start: an old copy of the disk, or
    /// a new disk, does not know of all that was given from them.
    pub fn survey(&mut self, in_use: &[(String, IpAddr)], now: Duration) {
        self.machine.clock(now);
        self.machine.survey(in_use);
        self.machine.settle();
    }

    /// The version of the panel of voters that this peer knows, and the voters.
    #[must_use]
    pub fn panel(&self) -> Option<(u64, Vec<P>)> {
        let panel = self.machine.panel.as_ref()?;
        Some((panel.version, panel.voters.iter().map(|voter| P::from_bytes(voter.0)).collect()))
    }

    /// Whether this peer is a voter that cannot answer yet: it does not know all that the others
    /// settled.
    #[must_use]
    pub fn is_learning_to_vote(&self) -> bool {
        self.machine.is_learning_to_vote()
    }

    /// The number of this peer's present life; another one after a restart, or if this peer was
    /// removed while it was alive.
    #[must_use]
    pub fn life(&self) -> u64 {
        self.machine.me.life
    }

    /// Removes a peer for good, in all lives in which it owns blocks: these come back to whoever
    /// needs them. Its present life, if it is alive after all, is over with that.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn remove_peer(&mut self, peer: P, now: Duration) -> Result<(), RemoveError> {
        self.machine.clock(now);
        let result = self.machine.remove_peer(Id(peer.to_bytes()));
        self.machine.settle();
        result
    }

    /// The lives that were removed, of all peers, as far as this peer knows.
    pub fn removed(&self) -> impl Iterator<Item = (P, u64)> + '_ {
        self.machine.removed().map(|removed| (P::from_bytes(removed.owner.peer.0), removed.owner.life))
    }

    /// Whether a peer was removed, and is not in reach.
    #[must_use]
    pub fn is_removed(&self, peer: P) -> bool {
        self.machine.is_gone(&Id(peer.to_bytes()))
    }

    /// Asks the owners of other blocks about addresses of theirs that are in use here: what they
    /// answer is in [`Summary::contests`] soon after.
    pub fn ask_about_strays(&mut self, now: Duration) {
        self.machine.clock(now);
        self.machine.tell_strays();
        self.machine.settle();
    }

    /// Whose block an address is in, with the term and epoch of that knowledge: what a frame's
    /// source address is to be checked against.
    #[must_use]
    pub fn owner_of(&self, address: IpAddr) -> Option<(P, u64, u64)> {
        let (peer, term, epoch) = self.machine.owner_of(address)?;
        Some((P::from_bytes(peer.0), term, epoch))
    }

    /// The addresses of an owner.
    pub fn lookup(&self, owner: &str) -> Vec<IpNet> {
        self.machine.lookup(owner)
    }

    /// Gives up on a request whose asker went away: it is not answered, and the address that it was
    /// about to get is taken back. What its owner was told of before stays given.
    pub fn cancel(&mut self, request: RequestId) {
        self.machine.cancel(request);
    }

    /// The time of [`Self::poll_timeout`] has come (earlier or later is harmless).
    pub fn handle_timeout(&mut self, now: Duration) {
        self.machine.handle_timeout(now);
    }

    /// What to do next; drain until `None` after every input.
    pub fn poll_output(&mut self) -> Option<Output<P>> {
        let output = self.machine.poll_output()?;
        Some(match output {
            Output::Send { to, bytes } => Output::Send { to: P::from_bytes(to.0), bytes },
            Output::Store { ticket, changes } => Output::Store { ticket, changes },
            Output::Broadcast { bytes } => Output::Broadcast { bytes },
            Output::Reply { request, result } => Output::Reply { request, result },
            Output::Fences(fences) => {
                Output::Fences(fences.into_iter().map(|(peer, runs)| (P::from_bytes(peer.0), runs)).collect())
            }
            Output::Notice(text) => Output::Notice(text),
        })
    }

    /// When to call [`Self::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Duration, &'static str)> {
        self.machine.poll_timeout()
    }

    /// Whether addresses can be given; otherwise what is waited for, in one line.
    ///
    /// # Errors
    /// What is waited for.
    pub fn readiness(&self) -> Result<(), String> {
        self.machine.readiness()
    }

    /// The first eight digits of the id of the address network, once there is one. Peers with
    /// different ids were founded apart.
    #[must_use]
    pub fn network(&self) -> Option<String> {
        self.machine.network_text()
    }

    /// Who owns how much, for `weft ipam`.
    pub fn summary(&self) -> Summary<P> {
        let (peers, spare) = (self.machine.owned_by_peers(), self.machine.counts());
        Summary {
            ranges: self.ranges.clone(),
            network: self.machine.network_text(),
            owned: spare.owned,
            free: spare.free,
            used: spare.used,
            cooling: spare.cooling,
            peers: peers.into_iter().map(|(peer, owned)| (P::from_bytes(peer.0), owned)).collect(),
            allocations: self.machine.allocations(),
            away: self
                .machine
                .away()
                .into_iter()
                .map(|Away { peer, silent, removal, removed }| Away {
                    peer: P::from_bytes(peer.0),
                    silent,
                    removal,
                    removed,
                })
                .collect(),
            contests: self
                .machine
                .contests()
                .into_iter()
                .map(|it| Contest {
                    address: it.address,
                    here: it.here,
                    peer: P::from_bytes(it.peer.0),
                    there: it.there,
                    theirs: it.theirs,
                })
                .collect(),
            problems: self.machine.problem_texts(),
        }
    }

    /// Grows whenever this peer learns whose a block is, or may begin or has to cease to use one:
    /// for whoever keeps what it derived from that.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.machine.changes()
    }

    /// The blocks that this peer may give addresses from, as first and last address.
    #[must_use]
    pub fn held(&self) -> Vec<(IpAddr, IpAddr)> {
        self.machine.held()
    }
}

/// The state of the address space as this peer sees it; numbers of addresses saturate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary<P> {
    /// The ranges of the network.
    pub ranges: Vec<IpNet>,
    /// The first eight digits of the address network's id, once there is one.
    pub network: Option<String>,
    /// Addresses in blocks that this peer owns, without reserved ones.
    pub owned: u64,
    /// Of these, how many can be given.
    pub free: u64,
    /// Of these, how many are given.
    pub used: u64,
    /// Of these, how many were freed too recently to be given again.
    pub cooling: u64,
    /// Owned addresses of every peer, this one first.
    pub peers: Vec<(P, u64)>,
    /// Addresses that this peer gave: owner, address, time given (seconds since the Unix epoch
    /// are the caller's business; here it is `now` of the grant, or `None` from before the start).
    pub allocations: Vec<(String, IpNet, Option<Duration>)>,
    /// Owners that cannot be reached, or that left for another network.
    pub away: Vec<Away<P>>,
    /// Addresses given here that another peer gave too, or whose block is another's.
    pub contests: Vec<Contest<P>>,
    /// What is wrong and stays so until somebody does something, a line each.
    pub problems: Vec<String>,
}

/// An owner that cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away<P> {
    /// Who.
    pub peer: P,
    /// For how long it was not heard of; `None`: not since this start.
    pub silent: Option<Duration>,
    /// In how long the voters will remove it, if they do not hear of it either; `None`: not
    /// without an operator.
    pub removal: Option<Duration>,
    /// It was removed already, and its blocks are about to become others'.
    pub removed: bool,
}

/// An address that two peers gave, or that was given here from a block that is another's now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contest<P> {
    /// The address.
    pub address: IpAddr,
    /// Whom this peer gave it.
    pub here: String,
    /// The other peer.
    pub peer: P,
    /// Whom that one gave it; `None`: nobody, or it has not said.
    pub there: Option<String>,
    /// Whether others refuse frames from here with it: its block is not this peer's, which was removed.
    pub theirs: bool,
}

/// Why a peer is not removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// Others were asked first, and have not answered yet: try again in a moment.
    #[error("{0}")]
    NotYet(String),
    /// It will not be, as things are.
    #[error("{0}")]
    Refused(String),
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
    /// A value of a newer version, which must not be thrown away.
    #[error("the address state is of a newer version of weft (entry {key}): start that one")]
    Newer {
        /// The key, as text.
        key: String,
    },
    /// The configured ranges cannot be used.
    #[error("{0}")]
    Ranges(String),
}
