//! What this host says of names: those of its containers that run, and those that the operator
//! gave to services.
//!
//! ```text
//!   attachments ─┬─ a name for as long as the interface is on the bridge ─┐
//!   guests ──────┘                                                        │
//!   book: names that the operator gave, in the store ─────────────────────┴─► Handle::set_names
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_proto::control::names::NAMES_MAX;
use mesh_proto::wire::names::{ADDRESSES_MAX, Addresses, Name};
use tokio::sync::Notify;

use super::attach::Attachments;
use super::guests::Guests;
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

/// Names that the operator gave. Clones share it.
#[derive(Debug, Clone)]
pub struct Book {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    names: Mutex<BTreeMap<Name, BTreeSet<IpAddr>>>,
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
            match (text.parse::<Name>(), serde_json::from_slice::<BTreeSet<IpAddr>>(value)) {
                (Ok(name), Ok(addresses)) => {
                    names.insert(name, addresses);
                }
                _ => tracing::error!(name = %text, "a name that was given cannot be read; give it again"),
            }
        }
        let (busy, changed) = (tokio::sync::Mutex::default(), Notify::new());
        Self { inner: Arc::new(Inner { store, names: Mutex::new(names), busy, changed }) }
    }

    /// All of them.
    #[must_use]
    pub fn names(&self) -> BTreeMap<Name, BTreeSet<IpAddr>> {
        self.lock().clone()
    }

    /// Gives a name these addresses too; the answer is all that it has.
    ///
    /// # Errors
    /// If there is no room, or it cannot be written.
    pub async fn add(&self, name: Name, addresses: &[IpAddr]) -> Result<BTreeSet<IpAddr>, BookError> {
        let _busy = self.inner.busy.lock().await;
        let mut all = self.lock().get(&name).cloned().unwrap_or_default();
        all.extend(addresses);
        if all.len() > ADDRESSES_MAX {
            return Err(BookError::Full(format!("a name has at most {ADDRESSES_MAX} addresses at one host")));
        }
        if self.lock().len() >= NAMES_MAX && !self.lock().contains_key(&name) {
            return Err(BookError::Full(format!("a host has at most {NAMES_MAX} names; remove some")));
        }
        self.keep(name, all.clone()).await?;
        Ok(all)
    }

    /// Takes these addresses from a name, or all, and with the last the name; the answer is what
    /// was taken.
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
            taken = std::mem::take(&mut left);
        }
        for address in addresses {
            if !left.remove(address) && !taken.contains(address) {
                return Err(BookError::NotFound(format!("`{name}` does not have {address}")));
            }
            taken.insert(*address);
        }
        self.keep(name, left).await?;
        Ok(taken)
    }

    async fn keep(&self, name: Name, addresses: BTreeSet<IpAddr>) -> Result<(), BookError> {
        let edit = if addresses.is_empty() {
            Edit::delete(Table::Names, name.as_str())
        } else {
            let value = serde_json::to_vec(&addresses).map_err(|error| BookError::Storage(error.to_string()))?;
            Edit::set(Table::Names, name.as_str(), value)
        };
        self.inner.store.write_and_wait(vec![edit]).await.map_err(BookError::Storage)?;
        if addresses.is_empty() {
            self.lock().remove(&name);
        } else {
            self.lock().insert(name, addresses);
        }
        self.inner.changed.notify_one();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, BTreeSet<IpAddr>>> {
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
                () = noticed(&mut monitor) => {}
                () = tokio::time::sleep(patience) => {}
            }
        }
    }

    /// The names of what is there now: a container that has ended took its interface with it.
    async fn names(&self) -> Result<BTreeMap<Name, Addresses>, NetlinkError> {
        let mut attached = self.attachments.names();
        attached.extend(self.guests.names());
        let mut found: BTreeMap<Name, BTreeSet<IpAddr>> = self.book.names();
        if !attached.is_empty() {
            let ports = match self.netlink.link(&self.bridge).await? {
                Some(bridge) => self.netlink.bridge_ports(bridge.index).await?,
                None => Vec::new(),
            };
            let there: BTreeSet<&str> = ports.iter().map(|port| port.name.as_str()).collect();
            for (name, address, interface) in attached {
                if there.contains(interface.as_str()) {
                    found.entry(name).or_default().insert(address);
                }
            }
        }
        Ok(found.into_iter().map(|(name, addresses)| (name, Addresses::new(addresses))).collect())
    }
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
