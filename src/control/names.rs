//! What this host says of names: those of its containers that run, and those that the operator
//! gave to services.
//!
//! ```text
//!   attachments ─┬─ a name for as long as the interface is on the bridge ─┐
//!   guests ──────┘                                                        │
//!   book: names that the operator gave, in the store ─────────────────────┤
//!   services: names of what is imported ──────────────────────────────────┴─► Handle::set_names
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_proto::control::names::NAMES_MAX;
use mesh_proto::wire::names::{ADDRESSES_MAX, Name};
use mesh_proto::wire::services::{NameRecords, SERVICES_MAX, Service};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::attach::Attachments;
use super::guests::{Guests, Named};
use super::services::Services;
use super::store::{Edit, Store, Table};
use crate::netlink::{Monitor, Netlink, NetlinkError, Topic};
use crate::router::Handle;

/// Changes that come together are looked at once.
const BURST: Duration = Duration::from_millis(20);
/// How often is looked without any notice, in case one was missed.
const LOOK: Duration = Duration::from_secs(30);
/// The same while the kernel gives no notice.
const LOOK_BLIND: Duration = Duration::from_secs(1);
/// How soon is looked again after the kernel could not be asked.
const RETRY: Duration = Duration::from_millis(100);

/// The addresses of a name, each with what it serves.
pub type Places = BTreeMap<IpAddr, BTreeSet<Service>>;

/// [`Places`] in the store: a list of addresses where nothing is served, as it was before there were
/// services, so that an earlier version reads it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Stored {
    Plain(BTreeSet<IpAddr>),
    Serving(BTreeMap<IpAddr, BTreeSet<String>>),
}

impl Stored {
    fn of(places: &Places) -> Self {
        if places.values().all(BTreeSet::is_empty) {
            return Self::Plain(places.keys().copied().collect());
        }
        let texts = |services: &BTreeSet<Service>| services.iter().map(ToString::to_string).collect();
        Self::Serving(places.iter().map(|(address, services)| (*address, texts(services))).collect())
    }

    /// None if a service is none.
    fn places(self) -> Option<Places> {
        match self {
            Self::Plain(addresses) => Some(addresses.into_iter().map(|address| (address, BTreeSet::new())).collect()),
            Self::Serving(places) => {
                let read = |texts: BTreeSet<String>| -> Option<BTreeSet<Service>> {
                    texts.iter().map(|text| text.parse().ok()).collect()
                };
                places.into_iter().map(|(address, texts)| Some((address, read(texts)?))).collect()
            }
        }
    }
}

/// Names that the operator gave. Clones share it.
#[derive(Debug, Clone)]
pub struct Book {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    names: Mutex<BTreeMap<Name, Places>>,
    /// One change at a time, so that disk and memory agree.
    busy: tokio::sync::Mutex<()>,
    changed: Notify,
}

/// Why a name was not changed. Then nothing is.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// It does not have what was to be taken away.
    #[error("{0}; `weft dns list` shows the names that this host gave")]
    NotFound(String),
    /// There is no room.
    #[error("{0}")]
    Full(String),
    /// It could not be written.
    #[error("the name could not be written to the data directory: {0}")]
    Storage(String),
}

impl Book {
    /// With what the store held.
    #[must_use]
    pub fn new(store: Store, stored: &BTreeMap<Vec<u8>, Vec<u8>>) -> Self {
        let mut names = BTreeMap::new();
        for (key, value) in stored {
            let text = String::from_utf8_lossy(key);
            let places = serde_json::from_slice(value).ok().and_then(Stored::places);
            match (text.parse::<Name>(), places) {
                (Ok(name), Some(places)) => {
                    names.insert(name, places);
                }
                _ => tracing::error!(name = %text, "a name that was given cannot be read; give it again"),
            }
        }
        let (busy, changed) = (tokio::sync::Mutex::default(), Notify::new());
        Self { inner: Arc::new(Inner { store, names: Mutex::new(names), busy, changed }) }
    }

    /// All of them.
    #[must_use]
    pub fn names(&self) -> BTreeMap<Name, Places> {
        self.lock().clone()
    }

    /// Gives a name these addresses too, and says that each of them serves this; the answer is all that it has.
    ///
    /// # Errors
    /// If there is no room, or it cannot be written.
    pub async fn add(&self, name: Name, addresses: &[IpAddr], services: &[Service]) -> Result<Places, BookError> {
        let _busy = self.inner.busy.lock().await;
        let mut all = self.lock().get(&name).cloned().unwrap_or_default();
        for address in addresses {
            all.entry(*address).or_default().extend(services.iter().cloned());
        }
        if all.len() > ADDRESSES_MAX {
            return Err(BookError::Full(format!("a name has at most {ADDRESSES_MAX} addresses at one host")));
        }
        if all.values().flatten().collect::<BTreeSet<_>>().len() > SERVICES_MAX {
            return Err(BookError::Full(format!("a name has at most {SERVICES_MAX} services at one host")));
        }
        if self.lock().len() >= NAMES_MAX && !self.lock().contains_key(&name) {
            return Err(BookError::Full(format!("a host has at most {NAMES_MAX} names; remove some")));
        }
        self.keep(name, all.clone()).await?;
        Ok(all)
    }

    /// Takes these addresses from a name, or all, with what they serve, and with the last the name; the
    /// answer is what was taken.
    ///
    /// # Errors
    /// If it was not given here, or does not have one of them, or it cannot be written.
    pub async fn remove(&self, name: Name, addresses: &[IpAddr]) -> Result<BTreeSet<IpAddr>, BookError> {
        let _busy = self.inner.busy.lock().await;
        let mut left = self.lock().get(&name).cloned().unwrap_or_default();
        if left.is_empty() {
            return Err(BookError::NotFound(format!("`{name}` was not given by `weft dns add` on this host")));
        }
        let mut taken = BTreeSet::new();
        if addresses.is_empty() {
            taken = std::mem::take(&mut left).into_keys().collect();
        }
        for address in addresses {
            if left.remove(address).is_none() && !taken.contains(address) {
                return Err(BookError::NotFound(format!("`{name}` does not have {address}")));
            }
            taken.insert(*address);
        }
        self.keep(name, left).await?;
        Ok(taken)
    }

    async fn keep(&self, name: Name, places: Places) -> Result<(), BookError> {
        let edit = if places.is_empty() {
            Edit::delete(Table::Names, name.as_str())
        } else {
            let value =
                serde_json::to_vec(&Stored::of(&places)).map_err(|error| BookError::Storage(error.to_string()))?;
            Edit::set(Table::Names, name.as_str(), value)
        };
        self.inner.store.write_and_wait(vec![edit]).await.map_err(BookError::Storage)?;
        if places.is_empty() {
            self.lock().remove(&name);
        } else {
            self.lock().insert(name, places);
        }
        self.inner.changed.notify_one();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Places>> {
        self.inner.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the mesh this host's names, and each change of them.
#[derive(Debug)]
pub struct Teller {
    /// Who is told.
    pub router: Handle,
    /// What is attached.
    pub attachments: Attachments,
    /// What is connected otherwise.
    pub guests: Guests,
    /// What the operator gave.
    pub book: Book,
    /// What is imported.
    pub services: Services,
    /// The host's network.
    pub netlink: Netlink,
    /// Name of the bridge.
    pub bridge: String,
}

impl Teller {
    /// Until the router stops.
    pub async fn run(self) {
        let mut told = BTreeMap::new();
        let mut monitor: Option<Monitor> = None;
        loop {
            // Subscribed before the look, so that no change falls between the two.
            if monitor.is_none() {
                monitor = self.netlink.monitor(&[Topic::Links]).ok();
            }
            let mut patience = if monitor.is_some() { LOOK } else { LOOK_BLIND };
            match self.names().await {
                Ok(names) if names != told => {
                    if self.router.set_names(names.clone()).await.is_err() {
                        return;
                    }
                    told = names;
                }
                Ok(_) => {}
                Err(error) => {
                    // What was told stays meanwhile.
                    tracing::debug!(%error, "which containers are there cannot be seen");
                    patience = RETRY;
                }
            }
            tokio::select! {
                () = self.attachments.changed() => {}
                () = self.guests.changed() => {}
                () = self.book.inner.changed.notified() => {}
                () = self.services.changed() => {}
                () = noticed(&mut monitor) => {}
                () = tokio::time::sleep(patience) => {}
            }
        }
    }

    /// The names of what is there now: a container that has ended took its interface with it.
    async fn names(&self) -> Result<BTreeMap<Name, NameRecords>, NetlinkError> {
        let mut attached = self.attachments.names();
        attached.extend(self.guests.names());
        let mut found: BTreeMap<Name, Places> = self.book.names();
        for (name, address, service) in self.services.names() {
            found.entry(name).or_default().entry(address).or_default().insert(service);
        }
        if !attached.is_empty() {
            let ports = match self.netlink.link(&self.bridge).await? {
                Some(bridge) => self.netlink.bridge_ports(bridge.index).await?,
                None => Vec::new(),
            };
            let there: BTreeSet<&str> = ports.iter().map(|port| port.name.as_str()).collect();
            for Named { name, address, services, interface } in attached {
                if there.contains(interface.as_str()) {
                    found.entry(name).or_default().entry(address).or_default().extend(services);
                }
            }
        }
        Ok(found.into_iter().map(|(name, places)| (name, records(&places))).collect())
    }
}

/// As the mesh is told it.
fn records(places: &Places) -> NameRecords {
    let at = |(address, services): (&IpAddr, &BTreeSet<Service>)| -> Vec<(Service, IpAddr)> {
        services.iter().map(|service| (service.clone(), *address)).collect()
    };
    NameRecords::new(places.keys().copied(), places.iter().flat_map(at))
}

/// Waits for a change of the host's interfaces, and a little for those that come with it.
async fn noticed(monitor: &mut Option<Monitor>) {
    let Some(open) = monitor else { return std::future::pending().await };
    if open.next().await.is_err() {
        *monitor = None;
        return;
    }
    tokio::time::sleep(BURST).await;
    open.skip();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::store;

    #[tokio::test]
    async fn what_was_given_is_known_after_a_restart_also_by_what_an_earlier_version_wrote() {
        let dir = tempfile::tempdir().expect("a directory");
        let (first, mut ended) = Store::start(store::open(dir.path()).expect("made").file).expect("started");
        let book = Book::new(first, &BTreeMap::new());
        let ip = |last: u8| IpAddr::from([192, 0, 2, last]);
        let services: Vec<Service> = ["http=80", "53/udp"].map(|text| text.parse().expect("a service")).to_vec();
        let name: Name = "db".parse().expect("a name");
        book.add(name.clone(), &[ip(7)], &[]).await.expect("given");
        let all = book.add(name.clone(), &[ip(8)], &services).await.expect("given");
        assert_eq!((all[&ip(7)].len(), all[&ip(8)].len()), (0, 2));
        let told = records(&all);
        assert_eq!(told.addresses.list(), [ip(7), ip(8)]);
        assert!(told.services().all(|(_, at)| at == ip(8)));
        drop(book);
        assert!(ended.recv().await.is_none(), "the store ends with its last owner");

        let opened = store::open(dir.path()).expect("opened");
        let mut kept = opened.state.names;
        kept.insert(b"earlier".to_vec(), br#"["192.0.2.9"]"#.to_vec());
        kept.insert(b"damaged".to_vec(), br#"{"192.0.2.9":["no port"]}"#.to_vec());
        let (second, _ended) = Store::start(opened.file).expect("started");
        let book = Book::new(second, &kept);
        let earlier = BTreeMap::from([(ip(9), BTreeSet::new())]);
        assert_eq!(book.names(), BTreeMap::from([(name.clone(), all), ("earlier".parse().expect("a name"), earlier)]));
        book.remove(name.clone(), &[ip(8)]).await.expect("taken");
        assert!(matches!(serde_json::to_string(&Stored::of(&book.names()[&name])).as_deref(), Ok(r#"["192.0.2.7"]"#)));
        let many: Vec<Service> = (1..=33).map(|port: u16| port.to_string().parse().expect("a service")).collect();
        let error = book.add(name, &[ip(1)], &many).await.expect_err("too many").to_string();
        assert!(error.contains("at most 32 services"), "{error}");
    }
}
