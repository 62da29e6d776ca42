//! Whose connections to outside of the mesh go in the host's name, and that they do: those of some
//! containers (kubernetes K17), or of the whole mesh (services V7).
//!
//! ```text
//!  attach ─ begin, end ─► what shall be ─► table of nftables ◄─ whoever takes it away
//!                               └──────── put back ◄─ notice ──────┘
//! ```
//!
//! As with [the guard of the ports](super::guard), what is known here is what the kernel was told. The
//! router's records are where it comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use tokio::sync::Notify;

use super::keeper::Occasions;
use crate::netlink::forward;
use crate::netlink::nft::MasqueradeTable;

/// A container whose connections to outside are masqueraded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masqueraded {
    /// Name of its interface on the bridge.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Masquerading for one bridge. Clones share it.
#[derive(Debug, Clone)]
pub struct Masquerade {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bridge: String,
    ranges: Vec<IpNet>,
    state: Mutex<State>,
    /// Told when something went wrong.
    failed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Addresses, by the name of the interface.
    sources: BTreeMap<String, Vec<IpAddr>>,
    /// For which families it is so for all of the mesh: true for IPv4.
    families: BTreeSet<bool>,
    /// Why the kernel is not as it shall be.
    problem: Option<String>,
}

impl Masquerade {
    /// For nobody yet; changes nothing. To the `ranges`, nothing is masqueraded.
    #[must_use]
    pub fn new(bridge: &str, ranges: &[IpNet]) -> Self {
        let shared = Shared {
            bridge: bridge.to_owned(),
            ranges: ranges.to_vec(),
            state: Mutex::default(),
            failed: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Takes over those of the last run: replaces what the kernel has in one step. With none, what an earlier
    /// run left goes.
    pub async fn adopt(&self, all: Vec<Masqueraded>, families: BTreeSet<bool>) {
        let adopted = self.in_kernel(move |table, state| {
            state.sources = all.into_iter().map(|one| (one.interface, one.addresses)).collect();
            state.families = families;
            state.install(table)
        });
        match adopted.await {
            // A kernel without nftables has nothing of an earlier run either.
            Err(error) if self.state().is_empty() => tracing::debug!(%error, "no masquerading was looked for"),
            Err(error) => tracing::error!(%error, "containers that should be masqueraded to outside may not be"),
            Ok(()) => {}
        }
    }

    /// From now on new connections of a container to outside go in the host's name.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is changed.
    pub async fn begin(&self, one: Masqueraded) -> io::Result<()> {
        self.in_kernel(move |table, state| {
            let Masqueraded { interface, addresses } = one;
            let before = state.sources.get(&interface).cloned();
            let old = difference(before.as_deref().unwrap_or_default(), &addresses);
            let new = difference(&addresses, before.as_deref().unwrap_or_default());
            state.sources.insert(interface.clone(), addresses);
            // The first one, or somebody took the table away.
            let told = match before {
                Some(_) => table.change(&old, &new),
                None if state.sources.len() > 1 => table.change(&[], &new),
                None => Err(io::ErrorKind::NotFound.into()),
            };
            let told = told.or_else(|_| state.install(table));
            if told.is_err() {
                match before {
                    Some(before) => state.sources.insert(interface, before),
                    None => state.sources.remove(&interface),
                };
            }
            told
        })
        .await
    }

    /// New connections of the whole mesh that leave it at this host go in its name, of these families: true
    /// for IPv4. None: they do so no more. The host forwards them.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is changed.
    pub async fn all(&self, families: BTreeSet<bool>) -> io::Result<()> {
        if self.state().families == families {
            return Ok(());
        }
        self.in_kernel(move |table, state| {
            let before = std::mem::replace(&mut state.families, families);
            let told = state.install(table);
            if told.is_err() {
                state.families = before;
            }
            told
        })
        .await
    }

    /// A container is masqueraded no more: it is gone, or shall not be. Fine if it never was.
    pub async fn end(&self, interface: &str) {
        if !self.state().sources.contains_key(interface) {
            return;
        }
        let interface = interface.to_owned();
        let ended = self.in_kernel(move |table, state| {
            let before = state.sources.remove(&interface).unwrap_or_default();
            if state.is_empty() {
                return table.remove();
            }
            // If somebody took the table away, the task that keeps it puts it back without this one.
            let _ = table.change(&before, &[]);
            Ok(())
        });
        if let Err(error) = ended.await {
            tracing::warn!(%error, "a table for nobody is left in nftables");
        }
    }

    /// Why containers are not masqueraded that should be.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.state().problem.clone()
    }

    /// Puts back what others take away, for as long as it is polled.
    pub async fn keep(self) {
        let mut occasions = Occasions::of(&table(&self.shared.bridge));
        loop {
            occasions.next(&self.shared.failed).await;
            self.check().await;
        }
    }

    /// Looks whether the table stands, and puts it back where it does not.
    async fn check(&self) {
        let before = self.problem();
        let checked = self.in_kernel(|table, state| {
            if state.is_empty() || table.stands(&state.all(), !state.families.is_empty())? {
                return Ok(false);
            }
            state.install(table).map(|()| true)
        });
        match checked.await {
            Ok(true) => tracing::warn!("the masquerading of containers was not whole: it was put back"),
            Ok(false) => {}
            Err(error) if before.is_none() => {
                tracing::error!(%error, "the masquerading of containers cannot be put back");
            }
            Err(_) => {}
        }
    }

    /// Changes what shall be and tells the kernel, on a thread that may wait. One at a time.
    async fn in_kernel<T: Send + 'static>(
        &self,
        work: impl FnOnce(&MasqueradeTable, &mut State) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let shared = self.shared.clone();
        let work = tokio::task::spawn_blocking(move || {
            let mut state = shared.state();
            let name = table(&shared.bridge);
            let made = MasqueradeTable::new(&name, &shared.bridge, &shared.ranges);
            let result = made.and_then(|table| work(&table, &mut state));
            // Who was refused is not on the bridge: only what should stand is missed.
            state.problem = match &result {
                Err(error) if !state.is_empty() => Some(format!(
                    "containers may reach outside of the mesh in their own name, or not at all: the table {name} of nftables cannot be kept: {error}"
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
    fn all(&self) -> BTreeSet<IpAddr> {
        self.sources.values().flatten().copied().collect()
    }

    fn is_empty(&self) -> bool {
        self.sources.is_empty() && self.families.is_empty()
    }

    /// Tells the kernel all of it; nothing is there for nobody.
    fn install(&self, table: &MasqueradeTable) -> io::Result<()> {
        if self.is_empty() {
            return table.remove();
        }
        self.families.iter().try_for_each(|v4| forward(*v4))?;
        table.install(&self.all(), !self.families.is_empty())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn difference(of: &[IpAddr], without: &[IpAddr]) -> Vec<IpAddr> {
    of.iter().copied().filter(|address| !without.contains(address)).collect()
}

/// Name of the table in the packet filter.
#[must_use]
pub fn table(bridge: &str) -> String {
    format!("{bridge}-masquerade")
}

/// Takes the table out of the kernel, whoever made it; fine if there is none.
pub fn remove(bridge: &str) {
    let table = table(bridge);
    if let Err(error) = MasqueradeTable::new(&table, bridge, &[]).and_then(|table| table.remove()) {
        // A kernel without nftables has nothing to remove.
        tracing::debug!(%error, table, "the masquerading could not be looked for");
    }
}
