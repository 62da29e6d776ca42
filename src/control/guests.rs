//! Containers that other parts of the router than [attachments](super::attach) connect: what they
//! are called, for as long as their interface is on the bridge.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_proto::wire::names::Name;
use tokio::sync::Notify;

/// Who is on the bridge besides what is attached. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Guests {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By the interface on the bridge.
    guests: Mutex<BTreeMap<String, Guest>>,
    changed: Notify,
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guest {
    /// All that it is called.
    pub names: Vec<Name>,
    /// Where it is found by these names.
    pub addresses: Vec<IpAddr>,
}

impl Guests {
    /// A container is there, or is called otherwise from now on.
    pub fn enter(&self, interface: &str, guest: Guest) {
        let before = self.guests().insert(interface.to_owned(), guest.clone());
        if before.as_ref() != Some(&guest) {
            self.inner.changed.notify_one();
        }
    }

    /// A container has gone.
    pub fn strike(&self, interface: &str) {
        if self.guests().remove(interface).is_some() {
            self.inner.changed.notify_one();
        }
    }

    /// Each name, with an address and the interface on the bridge.
    #[must_use]
    pub fn names(&self) -> Vec<(Name, IpAddr, String)> {
        let guests = self.guests();
        let of = |(interface, guest): (&String, &Guest)| -> Vec<(Name, IpAddr, String)> {
            let all = guest.names.iter().flat_map(|name| guest.addresses.iter().map(move |at| (name, at)));
            all.map(|(name, at)| (name.clone(), *at, interface.clone())).collect()
        };
        guests.iter().flat_map(of).collect()
    }

    /// Waits until something has changed since the last time.
    pub async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    fn guests(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Guest>> {
        self.inner.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_is_new_is_told_once() {
        let guests = Guests::default();
        let (name, address) = ("web".parse::<Name>().expect("a name"), IpAddr::from([10, 32, 0, 1]));
        let guest = Guest { names: vec![name.clone()], addresses: vec![address] };
        let told = || tokio::time::timeout(Duration::from_millis(20), guests.changed());
        guests.enter("weftd-1", guest.clone());
        told().await.expect("told");
        assert_eq!(guests.names(), [(name, address, "weftd-1".to_owned())]);
        guests.enter("weftd-1", guest);
        told().await.expect_err("nothing is new");
        guests.strike("weftd-1");
        told().await.expect("told");
        assert!(guests.names().is_empty());
        guests.strike("weftd-1");
        told().await.expect_err("nothing is new");
    }
}
