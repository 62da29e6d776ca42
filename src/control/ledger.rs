//! Addresses that other parts of the router than [attachments](super::attach) asked for: nothing of them is
//! a leak, and after a restart they are in use.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// Who holds what: an owner, as the address protocol knows it, with its address. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Without an address: it is being asked for.
    owners: Mutex<BTreeMap<String, Option<IpAddr>>>,
    restored: Notify,
}

impl Ledger {
    /// An owner is about to ask for an address. Comes before it asks.
    pub fn expect(&self, owner: &str) {
        self.owners().entry(owner.to_owned()).or_insert(None);
    }

    /// An owner has an address.
    pub fn enter(&self, owner: &str, address: IpAddr) {
        self.owners().insert(owner.to_owned(), Some(address));
    }

    /// An owner has nothing any more. Comes after it gave its address back.
    pub fn strike(&self, owner: &str) {
        self.owners().remove(owner);
    }

    /// Whether the owner has an address or is about to.
    #[must_use]
    pub fn knows(&self, owner: &str) -> bool {
        self.owners().contains_key(owner)
    }

    /// Whether the owner has this address.
    #[must_use]
    pub fn has(&self, owner: &str, address: IpAddr) -> bool {
        self.owners().get(owner) == Some(&Some(address))
    }

    /// Every owner with its address.
    #[must_use]
    pub fn entries(&self) -> Vec<(String, IpAddr)> {
        self.owners().iter().filter_map(|(owner, address)| Some((owner.clone(), (*address)?))).collect()
    }

    /// Tells whoever waits in [`Self::wait_restored`] that ports may be off the bridge.
    pub fn tell_restored(&self) {
        self.inner.restored.notify_one();
    }

    /// Waits until attachments were put back after the bridge was away.
    pub async fn wait_restored(&self) {
        self.inner.restored.notified().await;
    }

    fn owners(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Option<IpAddr>>> {
        self.inner.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_known_from_before_it_asks_until_after_it_gave_back() {
        let ledger = Ledger::default();
        let address = IpAddr::from([10, 32, 0, 1]);
        ledger.expect("a");
        assert!(ledger.knows("a") && !ledger.has("a", address) && ledger.entries().is_empty());
        ledger.enter("a", address);
        ledger.expect("a");
        assert!(ledger.has("a", address), "who asks again loses nothing");
        assert_eq!(ledger.entries(), [("a".to_owned(), address)]);
        ledger.strike("a");
        assert!(!ledger.knows("a"));
    }

    #[tokio::test]
    async fn news_are_kept_for_who_looks_later() {
        let ledger = Ledger::default();
        ledger.tell_restored();
        ledger.wait_restored().await;
    }
}
