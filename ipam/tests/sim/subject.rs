//! What a node runs: the allocator, or a model of Weave Net's ring under the same schedules.

use std::net::IpAddr;
use std::time::Duration;

use ipam::allocator::{Ablation, Allocator, Config, Summary};
use ipam::{Output, RequestId, Ticket};
use ipnet::IpNet;

use super::weave::Weave;
use super::{Disk, Peer};

/// Which of them the nodes of a world run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Allocator,
    Weave,
}

#[derive(Debug)]
pub(crate) enum Subject {
    Allocator(Box<Allocator<Peer>>),
    Weave(Box<Weave>),
}

/// Calls the same method of whatever it is.
macro_rules! each {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Self::Allocator(it) => it.$method($($argument),*),
            Self::Weave(it) => it.$method($($argument),*),
        }
    };
}

impl Subject {
    pub(crate) fn new(
        kind: Kind,
        config: Config<Peer>,
        disk: Disk,
        seed: [u8; 32],
        now: Duration,
        ablation: Ablation,
    ) -> Self {
        match kind {
            Kind::Allocator => {
                let state = disk.into_iter().collect();
                let allocator = Allocator::with_broken_rules(config, state, seed, now, ablation);
                Self::Allocator(Box::new(allocator.expect("its own disk is readable")))
            }
            Kind::Weave => Self::Weave(Box::new(Weave::new(&config, &disk, seed, now))),
        }
    }

    pub(crate) fn handle_peers(&mut self, peers: &[(Peer, u64)], now: Duration) {
        each!(self.handle_peers(peers, now));
    }

    pub(crate) fn handle_message(&mut self, from: Peer, life: u64, bytes: &[u8], now: Duration) {
        match self {
            Self::Allocator(it) => it.handle_message(from, life, bytes, now),
            Self::Weave(it) => it.handle_message(from, bytes, now),
        }
    }

    pub(crate) fn handle_stored(&mut self, ticket: Ticket, result: Result<(), String>, now: Duration) {
        match self {
            Self::Allocator(it) => it.handle_stored(ticket, result, now),
            Self::Weave(it) => it.handle_stored(ticket, &result),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        each!(self.handle_timeout(now));
    }

    pub(crate) fn raise_incarnation(&mut self, life: u64, now: Duration) {
        match self {
            Self::Allocator(it) => it.raise_incarnation(life, now),
            Self::Weave(it) => it.life = life,
        }
    }

    pub(crate) fn allocate(&mut self, request: RequestId, owner: &str, range: IpNet, now: Duration) {
        each!(self.allocate(request, owner, range, now));
    }

    pub(crate) fn claim(&mut self, request: RequestId, owner: &str, address: IpAddr, now: Duration) {
        each!(self.claim(request, owner, address, now));
    }

    pub(crate) fn free(&mut self, owner: &str, address: Option<IpAddr>, now: Duration) -> Vec<IpNet> {
        match self {
            Self::Allocator(it) => it.free(owner, address, now),
            Self::Weave(it) => it.free(owner, address),
        }
    }

    pub(crate) fn survey(&mut self, in_use: &[(String, IpAddr)], now: Duration) {
        match self {
            Self::Allocator(it) => it.survey(in_use, now),
            Self::Weave(it) => it.survey(in_use),
        }
    }

    pub(crate) fn cancel(&mut self, request: RequestId) {
        each!(self.cancel(request));
    }

    pub(crate) fn remove_peer(&mut self, peer: Peer, now: Duration) -> Result<(), String> {
        match self {
            Self::Allocator(it) => it.remove_peer(peer, now).map_err(|error| error.to_string()),
            Self::Weave(it) => it.remove_peer(peer),
        }
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output<Peer>> {
        each!(self.poll_output())
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        match self {
            Self::Allocator(it) => it.poll_timeout().map(|(at, _)| at),
            Self::Weave(it) => it.poll_timeout(),
        }
    }

    pub(crate) fn lookup(&self, owner: &str) -> Vec<IpNet> {
        each!(self.lookup(owner))
    }

    pub(crate) fn life(&self) -> u64 {
        match self {
            Self::Allocator(it) => it.life(),
            Self::Weave(it) => it.life,
        }
    }

    pub(crate) fn network(&self) -> Option<String> {
        each!(self.network())
    }

    pub(crate) fn readiness(&self) -> Result<(), String> {
        each!(self.readiness())
    }

    pub(crate) fn summary(&self) -> Summary<Peer> {
        each!(self.summary())
    }

    /// Only of the allocator: the ring of the model is judged by what it answers alone.
    pub(crate) fn held(&self) -> Vec<(IpAddr, IpAddr)> {
        match self {
            Self::Allocator(it) => it.held(),
            Self::Weave(_) => Vec::new(),
        }
    }

    /// Grows with whatever may change [`Self::held`].
    pub(crate) fn changes(&self) -> u64 {
        match self {
            Self::Allocator(it) => it.changes(),
            Self::Weave(_) => 0,
        }
    }

    pub(crate) fn panel(&self) -> Option<(u64, Vec<Peer>)> {
        match self {
            Self::Allocator(it) => it.panel(),
            // It has no voters; one disk at a time is lost, as with them.
            Self::Weave(_) => Some((1, vec![Peer(1), Peer(2), Peer(3)])),
        }
    }

    pub(crate) fn is_learning_to_vote(&self) -> bool {
        matches!(self, Self::Allocator(it) if it.is_learning_to_vote())
    }

    pub(crate) fn owner_of(&self, address: IpAddr) -> Option<(Peer, u64, u64)> {
        match self {
            Self::Allocator(it) => it.owner_of(address),
            Self::Weave(_) => None,
        }
    }
}
