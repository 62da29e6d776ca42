//! What went while nobody looked: the engine tells a router that is away nothing, and nothing afterwards.
//!
//! ```text
//!  endpoint, pair in a container        keep; the near end belongs into the bridge
//!  endpoint, pair in none or gone ──┐
//!  address, no endpoint ────────────┼─► does the engine have it? ─ yes ─► keep
//!  network, not seen in this run ───┤        │ no, for as long as a call may take
//!  near end, no endpoint ───────────┘        └─► remove: interface, record, addresses
//! ```
//!
//! An engine that does not answer is believed to have everything: nothing is removed then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::book::Endpoint;
use super::engine::Claims;
use super::port::near;
use super::refusal::{Refusal, short};
use super::{Docker, Place, Ports};

/// How often is looked.
const LOOK: Duration = Duration::from_secs(10);
/// How long something must be unknown to the engine: longer than between its call and its own record of it.
const UNKNOWN: Duration = Duration::from_secs(8);
/// The same for an address without an endpoint: between the two calls, the engine may try for 15 s to reach a
/// router that is away.
const UNKNOWN_ADDRESS: Duration = Duration::from_secs(45);

/// What was seen in earlier looks.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// What the engine does not have, since when.
    unknown: BTreeMap<Thing, Instant>,
    /// What it has, seen in this run: it will tell when that changes.
    seen: BTreeSet<Thing>,
}

/// What may be left over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Endpoint(String),
    Address(IpAddr),
    Network(String),
    /// The name of a near end.
    Port(String),
}

impl Thing {
    fn patience(&self) -> Duration {
        match self {
            Self::Address(_) => UNKNOWN_ADDRESS,
            Self::Endpoint(_) | Self::Network(_) | Self::Port(_) => UNKNOWN,
        }
    }

    fn is_claimed(&self, claims: &Claims) -> bool {
        match self {
            Self::Endpoint(id) => claims.endpoints.contains_key(id),
            Self::Address(address) => claims.addresses.contains(address),
            Self::Network(id) => claims.networks.contains_key(id),
            Self::Port(name) => claims.endpoints.keys().any(|id| near(id) == *name),
        }
    }
}

impl<P: Ports> Docker<P> {
    /// Looks again and again, for ever.
    pub async fn look_after(self) {
        let mut memory = Memory::default();
        loop {
            self.look(&mut memory, Instant::now()).await;
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.inner.ledger.wait_restored() => {}
            }
        }
    }

    /// One look.
    pub(super) async fn look(&self, memory: &mut Memory, now: Instant) {
        let doubtful = match self.doubtful(memory).await {
            Ok(doubtful) => doubtful,
            Err(error) => return tracing::warn!(%error, "Docker's interfaces cannot be looked at"),
        };
        memory.unknown.retain(|thing, _| doubtful.contains(thing));
        memory.seen.retain(|thing| !matches!(thing, Thing::Endpoint(_)) || doubtful.contains(thing));
        let open = doubtful.iter().any(|thing| !memory.seen.contains(thing));
        let Some(engine) = self.inner.engine.as_ref().filter(|_| open) else { return };
        let claims = match engine.claims().await {
            Ok(claims) => claims,
            Err(why) => return tracing::debug!(why, "Docker cannot be asked what it has: all is kept"),
        };
        for thing in doubtful {
            if thing.is_claimed(&claims) {
                memory.unknown.remove(&thing);
                if memory.seen.insert(thing.clone()) {
                    self.learn(&thing, &claims).await;
                }
                continue;
            }
            memory.seen.remove(&thing);
            let since = *memory.unknown.entry(thing.clone()).or_insert(now);
            if now.duration_since(since) >= thing.patience() {
                if let Err(error) = self.clean(&thing).await {
                    tracing::warn!(%error, ?thing, "is left over and cannot be removed; tried again");
                }
                memory.unknown.remove(&thing);
            }
        }
    }

    /// What the engine may not have any more. Endpoints that are in containers are put right on the way.
    async fn doubtful(&self, memory: &Memory) -> Result<BTreeSet<Thing>, Refusal> {
        let mut doubtful = BTreeSet::new();
        let endpoints = self.inner.book.endpoints();
        for endpoint in &endpoints {
            match self.inner.ports.place(&endpoint.id).await? {
                Place::Container => self.put_right(endpoint).await,
                Place::Host | Place::Nowhere => {
                    doubtful.insert(Thing::Endpoint(endpoint.id.clone()));
                }
            }
        }
        let names: BTreeSet<String> = endpoints.iter().map(|endpoint| near(&endpoint.id)).collect();
        let strays = self.inner.ports.all().await?.into_iter().filter(|name| !names.contains(name));
        doubtful.extend(strays.map(Thing::Port));
        let used: BTreeSet<IpAddr> =
            endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().map(ipnet::IpNet::addr)).collect();
        let unused =
            self.inner.book.holds().into_iter().map(|hold| hold.address.addr()).filter(|at| !used.contains(at));
        doubtful.extend(unused.map(Thing::Address));
        let networks = self.inner.book.networks().into_iter().map(|network| Thing::Network(network.id));
        doubtful.extend(networks.filter(|network| !memory.seen.contains(network)));
        Ok(doubtful)
    }

    async fn put_right(&self, endpoint: &Endpoint) {
        let lock = self.inner.locks.of(&endpoint.id);
        let _busy = lock.lock().await;
        if self.inner.book.endpoint(&endpoint.id).is_none() {
            return;
        }
        if let Err(error) = self.inner.ports.plug(&endpoint.id, endpoint.mac, self.apart(&endpoint.network)).await {
            tracing::warn!(%error, endpoint = short(&endpoint.id), "is off the bridge");
        }
    }

    /// Takes over what the engine has, and says what it has in vain.
    async fn learn(&self, thing: &Thing, claims: &Claims) {
        let found = match thing {
            Thing::Port(name) => claims.endpoints.values().find(|endpoint| near(&endpoint.id) == *name),
            Thing::Endpoint(id) => {
                tracing::warn!(endpoint = short(id), "has lost its interface; start its container anew");
                None
            }
            Thing::Address(_) | Thing::Network(_) => None,
        };
        let Some(endpoint) = found else { return };
        tracing::warn!(endpoint = short(&endpoint.id), "was not known, and is taken over from Docker");
        if let Err(error) = self.take_over(endpoint, claims).await {
            tracing::error!(%error, endpoint = short(&endpoint.id), "cannot be taken over; start its container anew");
        }
    }

    async fn take_over(&self, endpoint: &Endpoint, claims: &Claims) -> Result<(), Refusal> {
        if self.inner.book.network(&endpoint.network).is_none()
            && let Some(network) = claims.networks.get(&endpoint.network)
        {
            self.add_network(network.clone()).await?;
        }
        let lock = self.inner.locks.of(&endpoint.id);
        let _busy = lock.lock().await;
        match self.inner.book.endpoint(&endpoint.id) {
            Some(_) => Ok(()),
            None => self.adopt_endpoint(endpoint).await,
        }
    }

    async fn clean(&self, thing: &Thing) -> Result<(), Refusal> {
        match thing {
            Thing::Endpoint(id) => {
                let Some(endpoint) = self.inner.book.endpoint(id) else { return Ok(()) };
                // It went into a container meanwhile.
                if self.inner.ports.place(id).await? == Place::Container {
                    return Ok(());
                }
                self.remove_endpoint(id).await?;
                for address in &endpoint.addresses {
                    self.release(address.addr()).await?;
                }
                tracing::info!(endpoint = short(id), "Docker has it no more: removed");
            }
            Thing::Address(address) => {
                self.release(*address).await?;
                tracing::info!(%address, "Docker has it no more: free");
            }
            Thing::Network(id) => {
                let request = super::wire::NetworkOnly { network_id: id.clone() };
                self.delete_network(&request).await?;
            }
            Thing::Port(name) => {
                let endpoints = self.inner.book.endpoints();
                if endpoints.iter().all(|endpoint| near(&endpoint.id) != *name) {
                    self.inner.ports.unplug(name).await?;
                    tracing::info!(interface = name, "belongs to nothing that Docker has: deleted");
                }
            }
        }
        Ok(())
    }
}
