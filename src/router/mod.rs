//! The loop that feeds the machines of a router and drains them.
//!
//! ```text
//!  QUIC events ──┐                                  ┌─► dial, send, close
//!  data events ──┤                                  ├─► commands to the data thread
//!  requests ─────┼─► core (owns Node, Allocator) ───┼─► writes to the store
//!  stored ───────┤      one input, then drain       ├─► names to resolve
//!  resolved ─────┤                                  └─► answers to requests
//!  timers ───────┘
//! ```
//!
//! It decides nothing and never waits: what takes time (a name, the disk, a dial) is handed out
//! and comes back as an input. Frames flow in another thread, whatever happens here.

mod addresses;
mod checks;
mod core;
mod devices;
mod dial;
mod drain;
mod fastpath;
mod host;
mod keeper;
mod names;
mod prepare;
mod refusals;
mod reload;
mod revoke;
#[cfg(test)]
pub(crate) mod rig;
mod snapshot;
mod start;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipam::AllocError;
use ipnet::IpNet;
use mesh_proto::id::PeerId;
use mesh_proto::wire::names::Name;
use mesh_proto::wire::services::NameRecords;
use tokio::sync::{mpsc, oneshot};

pub use checks::CheckError;
pub use fastpath::FastSnapshot;
pub use names::MeshNames;
pub use reload::{ReloadError, Reloads};
pub use revoke::{RevokeRefused, Whom};
pub use snapshot::{MessageCounters, Snapshot, TargetView};
pub use start::{Finished, run};

/// Most requests that wait for the loop.
const REQUESTS: usize = 256;

/// What others ask of the loop.
#[derive(Debug)]
pub(crate) enum Request {
    /// Everything for `status`, `peers` and metrics.
    Snapshot(oneshot::Sender<Snapshot>),
    /// The state of the address space.
    Ipam(oneshot::Sender<ipam::allocator::Summary<Peer>>),
    /// Dial these from now on, after a restart too if they are kept; names the ones that were too many.
    Connect { targets: Vec<String>, kept: bool, reply: oneshot::Sender<Result<Vec<String>, Vec<String>>> },
    /// Dial these no more; names the ones that were no targets.
    Forget(Vec<String>, oneshot::Sender<Result<Vec<String>, Vec<String>>>),
    /// Shut out the peer of this name or id.
    Revoke(String, oneshot::Sender<Result<Whom, RevokeRefused>>),
    /// Newcomers prove this secret from now on; tells whether it is another one.
    Secret(mesh_proto::handover::SessionKey, oneshot::Sender<bool>),
    /// An address of a range.
    Allocate { owner: String, range: IpNet, reply: oneshot::Sender<Result<IpNet, AllocError>> },
    /// This very address.
    Claim { owner: String, address: IpAddr, reply: oneshot::Sender<Result<IpNet, AllocError>> },
    /// Gives back one address, or all of an owner.
    Free { owner: String, address: Option<IpAddr>, reply: oneshot::Sender<Vec<IpNet>> },
    /// The addresses of an owner.
    Lookup { owner: String, reply: oneshot::Sender<Vec<IpNet>> },
    /// What runs on this host has these addresses.
    Survey(Vec<(String, IpAddr)>),
    /// These are the names of this host's containers and services.
    Names(BTreeMap<Name, NameRecords>),
    /// Find out whether addresses that are used here belong to others.
    AskAboutStrays,
    /// Removes a peer from the address space for good.
    RemovePeer(String, oneshot::Sender<Result<(PeerId, String), RemoveError>>),
    /// The addresses at which this peer can be dialled changed.
    Endpoints(Vec<std::net::SocketAddr>),
    /// Something to be shown in `status` until the router ends.
    Problem(String),
    /// What is wrong with a part of the router now, if anything.
    Concern(&'static str, Option<String>),
}

/// Why a peer was not removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// Nobody is called so.
    #[error("no peer has this name or id; `weft ipam` lists them")]
    Unknown,
    /// Several are.
    #[error("several peers are called so; name one by its id")]
    Ambiguous,
    /// Why the address protocol does not.
    #[error(transparent)]
    Addresses(#[from] ipam::allocator::RemoveError),
}

/// The loop has ended, or is stuck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the router is stopping, or too busy to answer")]
pub struct Stopped;

/// How long an answer that needs no other peer may take.
const SOON: Duration = Duration::from_secs(5);

/// A hold on the loop. Clones share it.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
}

impl Handle {
    /// A handle, and the loop's end of it.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, inbox) = mpsc::channel(REQUESTS);
        (Self { requests }, inbox)
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(make(reply)).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// As [`Self::ask`], for what the loop answers at once: a loop that is stuck must not hold up
    /// whoever wants to know why.
    async fn ask_soon<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Stopped> {
        tokio::time::timeout(SOON, self.ask(make)).await.unwrap_or(Err(Stopped))
    }

    /// Everything for `status`, `peers` and metrics.
    ///
    /// # Errors
    /// If the router stops.
    pub async fn snapshot(&self) -> Result<Snapshot, Stopped> {
        self.ask_soon(Request::Snapshot).await
    }

    /// The state of the address space.
    ///
    /// # Errors
    /// If the router stops.
    pub async fn ipam(&self) -> Result<ipam::allocator::Summary<Peer>, Stopped> {
        self.ask_soon(Request::Ipam).await
    }

    /// Dials these peers from now on, and after a restart; the answer is all that are dialled, or
    /// those that were too many.
    ///
    /// # Errors
    /// If the router stops.
    pub async fn connect(&self, targets: Vec<String>) -> Result<Result<Vec<String>, Vec<String>>, Stopped> {
        self.ask_soon(|reply| Request::Connect { targets, kept: true, reply }).await
    }

    /// As [`Self::connect`], until the router ends: the configuration names them.
    ///
    /// # Errors
    /// If the router stops.
    pub async fn connect_as_configured(
        &self,
        targets: Vec<String>,
    ) -> Result<Result<Vec<String>, Vec<String>>, Stopped> {
        self.ask_soon(|reply| Request::Connect { targets, kept: false, reply }).await
    }

    /// Dials these peers no more, and closes the links to them; the answer is those that are
    /// left, or the ones asked for that were no targets (then nothing was changed).
    ///
    /// # Errors
    /// If the router stops.
    pub async fn forget(&self, targets: Vec<String>) -> Result<Result<Vec<String>, Vec<String>>, Stopped> {
        self.ask_soon(|reply| Request::Forget(targets, reply)).await
    }

    /// Shuts out the peer of this name or id for good.
    ///
    /// # Errors
    /// If the router stops; inside, why it cannot be.
    pub async fn revoke(&self, peer: String) -> Result<Result<Whom, RevokeRefused>, Stopped> {
        self.ask_soon(|reply| Request::Revoke(peer, reply)).await
    }

    /// Newcomers prove this secret from now on; tells whether it is another one.
    ///
    /// # Errors
    /// If the router stops.
    pub async fn set_secret(&self, secret: mesh_proto::handover::SessionKey) -> Result<bool, Stopped> {
        self.ask_soon(|reply| Request::Secret(secret, reply)).await
    }

    /// An address of a range for an owner; the same one again if it has one.
    ///
    /// # Errors
    /// If the router stops; inside, why there is no address.
    pub async fn allocate(&self, owner: &str, range: IpNet) -> Result<Result<IpNet, AllocError>, Stopped> {
        let owner = owner.to_owned();
        self.ask(|reply| Request::Allocate { owner, range, reply }).await
    }

    /// A given address for an owner.
    ///
    /// # Errors
    /// If the router stops; inside, why it cannot be had.
    pub async fn claim(&self, owner: &str, address: IpAddr) -> Result<Result<IpNet, AllocError>, Stopped> {
        let owner = owner.to_owned();
        self.ask(|reply| Request::Claim { owner, address, reply }).await
    }

    /// Gives back one address of an owner, or all of them.
    ///
    /// # Errors
    /// If the router stops.
    pub async fn free(&self, owner: &str, address: Option<IpAddr>) -> Result<Vec<IpNet>, Stopped> {
        let owner = owner.to_owned();
        self.ask_soon(|reply| Request::Free { owner, address, reply }).await
    }

    /// The addresses of an owner.
    ///
    /// # Errors
    /// If the router stops.
    pub async fn lookup(&self, owner: &str) -> Result<Vec<IpNet>, Stopped> {
        let owner = owner.to_owned();
        self.ask_soon(|reply| Request::Lookup { owner, reply }).await
    }

    /// Tells the address protocol what runs on this host; before it was told once, it gives nothing new, and no
    /// blocks to others, if an earlier start may have given something (ipam I9).
    ///
    /// # Errors
    /// If the router stops.
    pub async fn survey(&self, in_use: Vec<(String, IpAddr)>) -> Result<(), Stopped> {
        self.requests.send(Request::Survey(in_use)).await.map_err(|_| Stopped)
    }

    /// Asks other peers about addresses of theirs that are in use here; what they answer is in the
    /// state of the address space soon after.
    ///
    /// # Errors
    /// If the router stops.
    pub async fn ask_about_strays(&self) -> Result<(), Stopped> {
        self.requests.send(Request::AskAboutStrays).await.map_err(|_| Stopped)
    }

    /// Tells the mesh the names of this host's containers and services.
    ///
    /// # Errors
    /// If the router stops.
    pub async fn set_names(&self, names: BTreeMap<Name, NameRecords>) -> Result<(), Stopped> {
        self.requests.send(Request::Names(names)).await.map_err(|_| Stopped)
    }

    /// Removes a peer, named by its name or id, from the address space for good.
    ///
    /// # Errors
    /// If the router stops; inside, why it cannot be removed.
    pub async fn remove_peer(&self, name: &str) -> Result<Result<(PeerId, String), RemoveError>, Stopped> {
        let name = name.to_owned();
        self.ask_soon(|reply| Request::RemovePeer(name, reply)).await
    }

    /// Tells the mesh at which addresses this peer can be dialled.
    ///
    /// # Errors
    /// If the router stops.
    pub async fn set_endpoints(&self, endpoints: Vec<std::net::SocketAddr>) -> Result<(), Stopped> {
        self.requests.send(Request::Endpoints(endpoints)).await.map_err(|_| Stopped)
    }

    /// Shows a problem in `status` until the router ends.
    ///
    /// # Errors
    /// If the router stops.
    pub async fn add_problem(&self, problem: String) -> Result<(), Stopped> {
        self.requests.send(Request::Problem(problem)).await.map_err(|_| Stopped)
    }

    /// Shows in `status` what is wrong with a part of the router, until it is told anew.
    ///
    /// # Errors
    /// If the router stops.
    pub async fn set_concern(&self, part: &'static str, problem: Option<String>) -> Result<(), Stopped> {
        self.requests.send(Request::Concern(part, problem)).await.map_err(|_| Stopped)
    }
}

/// A peer's id, as the address protocol wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(pub PeerId);

impl ipam::allocator::PeerKey for Peer {
    fn to_bytes(self) -> [u8; 16] {
        self.0.0
    }

    fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(PeerId(bytes))
    }
}
