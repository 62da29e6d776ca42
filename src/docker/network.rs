//! The network driver's networks. The mesh is one link: a network is a part of its addresses, to which the
//! guard of the ports keeps its containers, or all of them, and then open (guard P10).

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::addresses::{SPACE, only_dockers};
use super::book::Network;
use super::pool::inside;
use super::refusal::{Refusal, short};
use super::wire::{CreateNetwork, NetworkOnly, PoolData};
use super::{Docker, Place, Ports};

/// Held by whatever makes or removes a network.
const NETWORKS: &str = "networks";
/// Options that the user gave, among those of the engine.
const GENERIC: &str = "com.docker.network.generic";
const INTERNAL: &str = "com.docker.network.internal";
const MTU: &str = "com.docker.network.driver.mtu";
/// Longest id that is taken, in bytes: the engine's have 64.
const ID_MAX: usize = 128;

impl<P: Ports> Docker<P> {
    pub(super) async fn create_network(&self, request: &CreateNetwork) -> Result<(), Refusal> {
        check_id(&request.network_id)?;
        let none = Map::new();
        let options = request.options.as_ref().unwrap_or(&none);
        self.check_options(options)?;
        let data = request.ipv4_data.iter().chain(&request.ipv6_data).flatten();
        let pools: Vec<IpNet> = data.map(|data| self.own_pool(data)).collect::<Result<_, _>>()?;
        if pools.is_empty() {
            let why = "a network has an IPv4 or an IPv6 pool; create it with --ipam-driver weft".to_owned();
            return Err(Refusal::Pool { pool: "none".to_owned(), why });
        }
        let internal = options.get(INTERNAL).is_some_and(|value| value.as_bool() == Some(true));
        self.add_network(Network { id: request.network_id.clone(), pools, internal }).await
    }

    /// Makes it a network of this router.
    pub(super) async fn add_network(&self, network: Network) -> Result<(), Refusal> {
        let lock = self.inner.locks.of(NETWORKS);
        let _busy = lock.lock().await;
        for other in self.inner.book.networks().iter().filter(|other| other.id != network.id) {
            if let Some((theirs, ours)) = overlap(&other.pools, &network.pools) {
                return Err(Refusal::Overlap { other: short(&other.id), theirs, ours });
            }
        }
        if self.is_apart(&network) {
            self.inner.ports.open_network(&network.id, network.pools.clone()).await?;
        }
        if self.inner.book.network(&network.id).as_ref() == Some(&network) {
            return Ok(());
        }
        let full = network.id.clone();
        let id = short(&full);
        if let Err(refusal) = self.inner.book.keep_network(network).await {
            if self.inner.book.network(&full).is_none() {
                self.inner.ports.close_network(&full).await;
            }
            return Err(refusal);
        }
        tracing::info!(network = id, "Docker network created");
        Ok(())
    }

    fn check_options(&self, options: &Map<String, Value>) -> Result<(), Refusal> {
        let hint = "leave it out of `docker network create -o`; docs/docker.md lists what there is";
        for name in options.keys() {
            only_dockers(name, hint)?;
        }
        let none = Map::new();
        let given = options.get(GENERIC).and_then(Value::as_object).unwrap_or(&none);
        for name in given.keys() {
            only_dockers(name, hint)?;
        }
        match given.get(MTU) {
            Some(Value::String(wanted)) if wanted.parse() != Ok(self.inner.mtu) => {
                Err(Refusal::Mtu { wanted: super::pool::shown(wanted), mtu: self.inner.mtu })
            }
            _ => Ok(()),
        }
    }

    /// A pool that came from our IPAM driver.
    fn own_pool(&self, data: &PoolData) -> Result<IpNet, Refusal> {
        let pool = inside(&data.pool, &self.inner.ranges);
        // Said first: whoever forgot our IPAM driver has a pool of Docker's, which is not inside.
        if data.address_space != SPACE {
            return Err(Refusal::OtherIpam { pool: super::pool::shown(&data.pool) });
        }
        pool
    }

    pub(super) async fn delete_network(&self, request: &NetworkOnly) -> Result<(), Refusal> {
        let lock = self.inner.locks.of(NETWORKS);
        let _busy = lock.lock().await;
        // Not known: deleted already, by a call whose answer was lost.
        let Some(network) = self.inner.book.network(&request.network_id) else { return Ok(()) };
        let mut endpoints = self.inner.book.endpoints();
        endpoints.retain(|endpoint| endpoint.network == network.id);
        let mut used = Vec::new();
        for endpoint in &endpoints {
            if self.inner.ports.place(&endpoint.id).await? == Place::Container {
                used.push(short(&endpoint.id));
            }
        }
        if !used.is_empty() {
            return Err(Refusal::Used { network: short(&network.id), endpoints: used.join(", ") });
        }
        for endpoint in &endpoints {
            self.remove_endpoint(&endpoint.id).await?;
            for address in &endpoint.addresses {
                self.release(address.addr()).await?;
            }
        }
        self.inner.book.drop_network(&network).await?;
        self.inner.ports.close_network(&network.id).await;
        tracing::info!(network = short(&network.id), "Docker network removed");
        Ok(())
    }
}

/// A subnet of each that have addresses in common.
fn overlap(theirs: &[IpNet], ours: &[IpNet]) -> Option<(IpNet, IpNet)> {
    let mut pairs = theirs.iter().flat_map(|&their| ours.iter().map(move |&our| (their, our)));
    pairs.find(|(their, our)| their.contains(our) || our.contains(their))
}

/// Ids become keys in the store and names in messages.
pub(super) fn check_id(id: &str) -> Result<(), Refusal> {
    if id.is_empty() || id.len() > ID_MAX || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        let shown = super::pool::shown(id);
        return Err(Refusal::Malformed(format!("`{shown}` is no id: 1 to {ID_MAX} letters and digits are")));
    }
    Ok(())
}
