//! Which ports of the bridge are looked at, and that they are, for as long as they are there (guard P6).
//!
//! ```text
//!  attach, docker ─ protect, release ─► what shall be ─► table of nftables ◄─ whoever takes it away
//!                                             └──────── put back ◄─ notice ──────┘
//! ```
//!
//! What is known here is what the kernel was told, so that a change costs as much as what changes. The
//! router's records are where it comes from: after a restart all of it is told once more, in one step.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use ipnet::IpNet;

use super::keeper::Occasions;
use crate::netlink::nft::{Kept, Network, Port, PortTable, REASONS};

/// The guard of the ports of one bridge. Clones share it.
#[derive(Debug, Clone)]
pub struct PortGuard {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    table: String,
    state: Mutex<State>,
    /// Told when something went wrong.
    failed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By the name of the interface.
    ports: BTreeMap<String, Port>,
    /// By id.
    networks: BTreeMap<String, Network>,
    /// Why the kernel is not as it shall be.
    problem: Option<String>,
}

/// What is shown of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guarded {
    /// Frames that were dropped, by reason.
    pub dropped: Vec<(&'static str, u64)>,
    /// Why containers are not treated as they should be.
    pub problems: Vec<String>,
}

impl PortGuard {
    /// Looks at no port yet, and changes nothing.
    #[must_use]
    pub fn new(bridge: &str) -> Self {
        Self { shared: Arc::new(Shared { table: table(bridge), state: Mutex::default(), failed: Notify::new() }) }
    }

    /// Takes over the ports and networks of the last run: replaces what the kernel has in one step. With
    /// none, what an earlier run left goes.
    pub async fn adopt(&self, ports: Vec<Port>, networks: Vec<Network>) {
        let adopted = self.in_kernel(move |table, state| {
            state.ports = ports.into_iter().map(|port| (port.interface.clone(), port)).collect();
            state.networks = networks.into_iter().map(|network| (network.id.clone(), network)).collect();
            let told = state.install(table);
            if told.is_err() && state.is_spare() {
                state.ports.clear();
            }
            told
        });
        match adopted.await {
            // A kernel without nftables has nothing of an earlier run either.
            Err(error) if self.state().is_empty() => tracing::debug!(%error, "no table of ports was looked for"),
            Err(error) => {
                tracing::error!(%error, "containers that should be kept to their addresses or networks may not be");
            }
            Ok(()) => {}
        }
    }

    /// From now on a port sends only what is its own.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is changed.
    pub async fn protect(&self, port: Port) -> io::Result<()> {
        self.in_kernel(move |table, state| {
            let name = port.interface.clone();
            let before = state.ports.insert(name.clone(), port);
            let told = table.change(before.as_ref(), state.ports.get(&name));
            // The first port, or somebody took the table away.
            let told = told.or_else(|_| state.install(table));
            if told.is_err() {
                match before {
                    Some(before) => state.ports.insert(name, before),
                    None => state.ports.remove(&name),
                };
            }
            told
        })
        .await
    }

    /// A port is looked at no more: it is gone, or may send what it likes. Fine if it never was.
    pub async fn release(&self, interface: &str) {
        if !self.state().ports.contains_key(interface) {
            return;
        }
        let interface = interface.to_owned();
        let released = self.in_kernel(move |table, state| {
            let before = state.ports.remove(&interface);
            if state.is_empty() {
                return table.remove();
            }
            // If somebody took the table away, the task that keeps it puts it back without the port.
            let _ = table.change(before.as_ref(), None);
            Ok(())
        });
        if let Err(error) = released.await {
            tracing::warn!(%error, "a table for no port is left in nftables");
        }
    }

    /// From now on there is a network of these addresses, which ports can be kept to.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is changed.
    pub async fn open_network(&self, id: &str, subnets: Vec<IpNet>) -> io::Result<()> {
        let network = Network { id: id.to_owned(), subnets };
        self.in_kernel(move |table, state| {
            if state.networks.get(&network.id) == Some(&network) {
                return Ok(());
            }
            let id = network.id.clone();
            let before = state.networks.insert(id.clone(), network);
            let told = state.install(table);
            if told.is_err() {
                match before {
                    Some(before) => state.networks.insert(id, before),
                    None => state.networks.remove(&id),
                };
            }
            told
        })
        .await
    }

    /// A network is no more, with all its ports. Fine if it never was.
    pub async fn close_network(&self, id: &str) {
        if !self.state().networks.contains_key(id) {
            return;
        }
        let id = id.to_owned();
        let closed = self.in_kernel(move |table, state| {
            state.networks.remove(&id);
            state.ports.retain(|_, port| port.kept != Kept::Network(id.clone()));
            state.install(table)
        });
        if let Err(error) = closed.await {
            tracing::warn!(%error, "rules for a network that is no more are left in nftables");
        }
    }

    /// What was dropped, and what is wrong.
    pub async fn look(&self) -> Guarded {
        let shared = self.shared.clone();
        let counts = tokio::task::spawn_blocking(move || {
            let state = shared.state();
            match state.is_empty() {
                true => None,
                false => PortTable::new(&shared.table).and_then(|table| table.dropped()).ok(),
            }
        });
        let counts = counts.await.ok().flatten().unwrap_or_default();
        Guarded {
            dropped: REASONS.into_iter().zip(counts).collect(),
            problems: self.state().problem.clone().into_iter().collect(),
        }
    }

    /// Puts back what others take away, for as long as it is polled.
    pub async fn keep(self) {
        let mut occasions = Occasions::of(&self.shared.table);
        loop {
            occasions.next(&self.shared.failed).await;
            self.check().await;
        }
    }

    /// Looks whether the table stands, and puts it back where it does not.
    async fn check(&self) {
        let before = self.state().problem.clone();
        let checked = self.in_kernel(|table, state| {
            if state.is_empty() || table.stands(state.ports.values(), state.networks.values())? {
                return Ok(false);
            }
            state.install(table).map(|()| true)
        });
        match checked.await {
            Ok(true) => tracing::warn!("the guard of the containers' ports was not whole: it was put back"),
            Ok(false) => {}
            Err(error) if before.is_none() => {
                tracing::error!(%error, "the guard of the containers' ports cannot be put back");
            }
            Err(_) => {}
        }
    }

    /// Changes what shall be and tells the kernel, on a thread that may wait. One at a time.
    async fn in_kernel<T: Send + 'static>(
        &self,
        work: impl FnOnce(&PortTable, &mut State) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let shared = self.shared.clone();
        let work = tokio::task::spawn_blocking(move || {
            let mut state = shared.state();
            let result = PortTable::new(&shared.table).and_then(|table| work(&table, &mut state));
            // Who is refused protection does not get on the bridge: only what should stand is missed.
            state.problem = match &result {
                Err(error) if !state.ports.is_empty() => Some(format!(
                    "containers may send and hear what is not theirs: the table {} of nftables cannot be kept: {error}",
                    shared.table
                )),
                _ => None,
            };
            if state.problem.is_some() {
                shared.failed.notify_one();
            }
            result
        });
        work.await.map_err(io::Error::other)?
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.networks.is_empty()
    }

    /// Whether all of it is for ports that get on the bridge without, where the kernel has no such table.
    fn is_spare(&self) -> bool {
        self.networks.is_empty() && self.ports.values().all(|port| port.kept == Kept::Open)
    }

    /// Tells the kernel all of it; nothing is there for nobody.
    fn install(&self, table: &PortTable) -> io::Result<()> {
        match self.is_empty() {
            true => table.remove(),
            false => table.install(self.ports.values(), self.networks.values()),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Name of the table in the packet filter.
#[must_use]
pub fn table(bridge: &str) -> String {
    format!("{bridge}-ports")
}

/// Takes the table out of the kernel, whoever made it; fine if there is none.
pub fn remove(bridge: &str) {
    let table = table(bridge);
    if let Err(error) = PortTable::new(&table).and_then(|table| table.remove()) {
        // A kernel without nftables has nothing to remove.
        tracing::debug!(%error, table, "the guard of the ports could not be looked for");
    }
}
