//! The router as Docker's network driver and IPAM driver.
//!
//! ```text
//!   dockerd ─ POST ─► server.rs ─┬─ addresses.rs  IpamDriver     ─► router (ring allocator)
//!                     wire.rs    ├─ network.rs    NetworkDriver  ─► book.rs ─► store
//!                                └─ endpoint.rs   NetworkDriver  ─► port.rs ─► kernel
//!   dockerd ◄─ GET ── engine.rs ─┬─ audit.rs: what it does not have any more is cleaned up
//!                                └─ names.rs: what its containers are called      ─► control/guests.rs
//! ```
//!
//! A call is answered when what it says is durable. What the engine was given is kept by the names that the
//! engine has for it, so that each call may come twice, and after a restart of either.

mod addresses;
mod audit;
mod book;
mod endpoint;
mod engine;
mod names;
mod network;
mod pool;
mod port;
mod refusal;
mod server;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

pub use engine::Engine;
pub use port::{KernelPorts, Place, Ports};
pub use refusal::Refusal;
pub use server::serve;

use crate::control::guests::Guests;
use crate::control::ledger::Ledger;
use crate::control::locks::Locks;
use crate::control::store::Store;
use crate::netlink::nft::Port;
use crate::router::Handle;
use book::Book;

/// The drivers. Clones share what they know.
#[derive(Debug)]
pub struct Docker<P> {
    inner: Arc<Inner<P>>,
}

impl<P> Clone for Docker<P> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

#[derive(Debug)]
struct Inner<P> {
    router: Handle,
    book: Book,
    ledger: Ledger,
    guests: Guests,
    ports: P,
    /// One for each thing that a call is about.
    locks: Locks,
    engine: Option<Engine>,
    mtu: u16,
    ranges: Vec<IpNet>,
}

/// What the drivers are made with.
#[derive(Debug)]
pub struct DockerConfig<P> {
    /// The router that gives addresses.
    pub router: Handle,
    /// Where what was given is kept.
    pub store: Store,
    /// What the store had of it when it was opened.
    pub stored: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Where the rest of the router learns which addresses are held.
    pub ledger: Ledger,
    /// Where the rest of the router learns what containers are called.
    pub guests: Guests,
    /// The kernel.
    pub ports: P,
    /// The engine, if it can be asked.
    pub engine: Option<Engine>,
    /// MTU of the overlay.
    pub mtu: u16,
    /// Ranges of the mesh.
    pub ranges: Vec<IpNet>,
}

impl<P: Ports> Docker<P> {
    /// Knows what was given in the last run. Comes before addresses are surveyed, so that they are known as
    /// used.
    pub fn new(config: DockerConfig<P>) -> Self {
        let book = Book::load(config.store, &config.stored);
        for hold in book.holds() {
            config.ledger.enter(&hold.owner, hold.address.addr());
        }
        for endpoint in book.endpoints() {
            config.guests.connect(&port::near(&endpoint.id), endpoint::connected(&endpoint));
        }
        let inner = Inner {
            router: config.router,
            book,
            ledger: config.ledger,
            guests: config.guests,
            ports: config.ports,
            locks: Locks::default(),
            engine: config.engine,
            mtu: config.mtu,
            ranges: config.ranges,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The networks of the last run that are kept apart from all others (guard P10).
    #[must_use]
    pub fn networks(&self) -> Vec<crate::netlink::nft::Network> {
        let apart = self.inner.book.networks().into_iter().filter(|network| self.is_apart(network));
        apart.map(|network| crate::netlink::nft::Network { id: network.id, subnets: network.pools }).collect()
    }

    /// The ports of all networks.
    #[must_use]
    pub fn guarded(&self) -> Vec<Port> {
        let of = |endpoint: book::Endpoint| port::port(&endpoint.id, endpoint.mac, self.apart(&endpoint.network));
        self.inner.book.endpoints().into_iter().map(of).collect()
    }

    /// The network, if it is kept apart.
    fn apart(&self, network: &str) -> Option<String> {
        self.inner.book.network(network).filter(|network| self.is_apart(network)).map(|network| network.id)
    }

    /// One that was given a part of the mesh's addresses is; one of them all is the open mesh.
    fn is_apart(&self, network: &book::Network) -> bool {
        network.pools.iter().any(|pool| !self.inner.ranges.contains(pool))
    }
}
