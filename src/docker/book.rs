//! What the engine was given and has not given back: networks, endpoints, addresses. In memory, and in the
//! store, so that it is known again after a restart of the router; the engine does not tell it again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::refusal::Refusal;
use crate::control::store::{Edit, Store, Table};
use crate::netlink::Mac;

/// A network of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Network {
    /// As the engine calls it.
    pub(super) id: String,
    /// Where its containers' addresses are from.
    pub(super) pools: Vec<IpNet>,
    /// Its containers shall reach nothing else.
    pub(super) internal: bool,
}

/// A container's place in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Endpoint {
    /// As the engine calls it.
    pub(super) id: String,
    /// The network.
    pub(super) network: String,
    /// Its addresses, with the prefix length of their pool.
    pub(super) addresses: Vec<IpNet>,
    /// Hardware address of the interface inside.
    pub(super) mac: Mac,
}

/// An address that the engine holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hold {
    /// Its owner, as the address protocol knows it: a name of the request's own, for the engine does not say
    /// whom it is for.
    pub(super) owner: String,
    /// With the prefix length of its pool.
    pub(super) address: IpNet,
}

/// One entry of the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Entry {
    Network(Network),
    Endpoint(Endpoint),
    Hold(Hold),
}

impl Entry {
    fn key(&self) -> String {
        match self {
            Self::Network(network) => format!("network {}", network.id),
            Self::Endpoint(endpoint) => format!("endpoint {}", endpoint.id),
            Self::Hold(hold) => format!("address {}", hold.address.addr()),
        }
    }
}

#[derive(Debug, Default)]
struct Pages {
    networks: BTreeMap<String, Network>,
    endpoints: BTreeMap<String, Endpoint>,
    holds: BTreeMap<IpAddr, Hold>,
}

/// All of it. What changes is durable before it is told.
#[derive(Debug)]
pub(super) struct Book {
    store: Store,
    pages: Mutex<Pages>,
}

impl Book {
    /// With what the store had when it was opened.
    pub(super) fn load(store: Store, stored: &BTreeMap<Vec<u8>, Vec<u8>>) -> Self {
        let mut pages = Pages::default();
        for (key, value) in stored {
            match serde_json::from_slice::<Entry>(value) {
                Ok(Entry::Network(network)) => drop(pages.networks.insert(network.id.clone(), network)),
                Ok(Entry::Endpoint(endpoint)) => drop(pages.endpoints.insert(endpoint.id.clone(), endpoint)),
                Ok(Entry::Hold(hold)) => drop(pages.holds.insert(hold.address.addr(), hold)),
                Err(error) => {
                    let key = String::from_utf8_lossy(key);
                    tracing::error!(%key, %error, "what Docker was given cannot be read; start its containers anew");
                }
            }
        }
        Self { store, pages: Mutex::new(pages) }
    }

    fn pages(&self) -> std::sync::MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn networks(&self) -> Vec<Network> {
        self.pages().networks.values().cloned().collect()
    }

    pub(super) fn network(&self, id: &str) -> Option<Network> {
        self.pages().networks.get(id).cloned()
    }

    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        self.pages().endpoints.values().cloned().collect()
    }

    pub(super) fn endpoint(&self, id: &str) -> Option<Endpoint> {
        self.pages().endpoints.get(id).cloned()
    }

    /// The endpoint that has an address.
    pub(super) fn user_of(&self, address: IpAddr) -> Option<String> {
        let pages = self.pages();
        pages.endpoints.values().find(|endpoint| uses(endpoint, address)).map(|endpoint| endpoint.id.clone())
    }

    pub(super) fn holds(&self) -> Vec<Hold> {
        self.pages().holds.values().cloned().collect()
    }

    pub(super) fn hold(&self, address: IpAddr) -> Option<Hold> {
        self.pages().holds.get(&address).cloned()
    }

    /// Writes a network down.
    pub(super) async fn keep_network(&self, network: Network) -> Result<(), Refusal> {
        self.write(&Entry::Network(network.clone())).await?;
        self.pages().networks.insert(network.id.clone(), network);
        Ok(())
    }

    /// Strikes a network out.
    pub(super) async fn drop_network(&self, network: &Network) -> Result<(), Refusal> {
        self.erase(&Entry::Network(network.clone())).await?;
        self.pages().networks.remove(&network.id);
        Ok(())
    }

    /// Reserves an endpoint's addresses, so that no other one gets them; [`Self::keep_endpoint`] or
    /// [`Self::forget_endpoint`] comes after it.
    pub(super) fn reserve(&self, endpoint: &Endpoint) -> Result<(), Refusal> {
        let mut pages = self.pages();
        for other in pages.endpoints.values().filter(|other| other.id != endpoint.id) {
            if let Some(&address) = endpoint.addresses.iter().find(|net| uses(other, net.addr())) {
                return Err(Refusal::Taken { address, endpoint: super::refusal::short(&other.id) });
            }
        }
        pages.endpoints.insert(endpoint.id.clone(), endpoint.clone());
        Ok(())
    }

    /// Takes a reservation back.
    pub(super) fn forget_endpoint(&self, id: &str) {
        self.pages().endpoints.remove(id);
    }

    /// Writes an endpoint down that is reserved.
    pub(super) async fn keep_endpoint(&self, endpoint: &Endpoint) -> Result<(), Refusal> {
        self.write(&Entry::Endpoint(endpoint.clone())).await
    }

    /// Strikes an endpoint out.
    pub(super) async fn drop_endpoint(&self, endpoint: &Endpoint) -> Result<(), Refusal> {
        self.erase(&Entry::Endpoint(endpoint.clone())).await?;
        self.forget_endpoint(&endpoint.id);
        Ok(())
    }

    /// Writes an address down.
    pub(super) async fn keep_hold(&self, hold: Hold) -> Result<(), Refusal> {
        self.write(&Entry::Hold(hold.clone())).await?;
        self.pages().holds.insert(hold.address.addr(), hold);
        Ok(())
    }

    /// Strikes an address out.
    pub(super) async fn drop_hold(&self, hold: &Hold) -> Result<(), Refusal> {
        self.erase(&Entry::Hold(hold.clone())).await?;
        self.pages().holds.remove(&hold.address.addr());
        Ok(())
    }

    async fn write(&self, entry: &Entry) -> Result<(), Refusal> {
        let value = serde_json::to_vec(entry).map_err(|error| Refusal::Storage(error.to_string()))?;
        self.change(Edit::set(Table::Docker, entry.key(), value)).await
    }

    async fn erase(&self, entry: &Entry) -> Result<(), Refusal> {
        self.change(Edit::delete(Table::Docker, entry.key())).await
    }

    async fn change(&self, edit: Edit) -> Result<(), Refusal> {
        self.store.write_and_wait(vec![edit]).await.map_err(Refusal::Storage)
    }
}

fn uses(endpoint: &Endpoint, address: IpAddr) -> bool {
    endpoint.addresses.iter().any(|net| net.addr() == address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::store;

    #[tokio::test]
    async fn what_was_kept_is_known_after_a_restart_and_what_was_dropped_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let (first, mut stored) = Store::start(store::open(dir.path()).expect("made").file).expect("started");
        let book = Book::load(first, &BTreeMap::new());
        let net: IpNet = "10.32.0.5/16".parse().expect("a network");
        let network = Network { id: "n".repeat(64), pools: vec![net.trunc()], internal: true };
        let endpoint =
            Endpoint { id: "e".to_owned(), network: network.id.clone(), addresses: vec![net], mac: [2, 0, 0, 0, 0, 5] };
        let hold = Hold { owner: "docker-network:1".to_owned(), address: net };
        let gone = Hold { owner: "docker-network:2".to_owned(), address: "10.32.0.6/16".parse().expect("an address") };
        book.keep_network(network.clone()).await.expect("kept");
        book.reserve(&endpoint).expect("free");
        book.keep_endpoint(&endpoint).await.expect("kept");
        book.keep_hold(hold.clone()).await.expect("kept");
        book.keep_hold(gone.clone()).await.expect("kept");
        book.drop_hold(&gone).await.expect("dropped");
        drop(book);
        assert!(stored.recv().await.is_none(), "the store ends with its last owner");

        let opened = store::open(dir.path()).expect("opened");
        let mut kept = opened.state.docker;
        kept.insert(b"address damaged".to_vec(), b"{".to_vec());
        let (second, _) = Store::start(opened.file).expect("started");
        let book = Book::load(second, &kept);
        assert_eq!((book.networks(), book.endpoints(), book.holds()), (vec![network], vec![endpoint], vec![hold]));
        assert_eq!(book.user_of(net.addr()).as_deref(), Some("e"));
    }

    #[tokio::test]
    async fn an_address_is_reserved_by_one_endpoint() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, _) = Store::start(store::open(dir.path()).expect("made").file).expect("started");
        let book = Book::load(store, &BTreeMap::new());
        let net: IpNet = "10.32.0.5/16".parse().expect("a network");
        let endpoint =
            |id: &str| Endpoint { id: id.to_owned(), network: String::new(), addresses: vec![net], mac: [0; 6] };
        book.reserve(&endpoint("one")).expect("free");
        book.reserve(&endpoint("one")).expect("its own");
        let said = book.reserve(&endpoint("two")).expect_err("taken").to_string();
        assert!(said.contains("10.32.0.5/16 is in use by the endpoint one"), "{said}");
        book.forget_endpoint("one");
        book.reserve(&endpoint("two")).expect("free again");
    }
}
