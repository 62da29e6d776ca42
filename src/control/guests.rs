//! Containers that other parts of the router than [attachments](super::attach) connect: that they are
//! there, and what they are called for as long as their interface is on the bridge.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use mesh_proto::wire::names::Name;
use mesh_proto::wire::services::Service;
use tokio::sync::Notify;

use crate::netlink::Mac;

/// Who is on the bridge besides what is attached. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Guests {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By the interface on the bridge.
    guests: Mutex<BTreeMap<String, Guest>>,
    /// The same, whether or not it is known what they are called.
    connected: Mutex<BTreeMap<String, Connected>>,
    changed: Notify,
}

/// An interface that was made for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// Whose it is, in the words of whoever asked for it.
    pub owner: String,
    /// Its hardware address.
    pub mac: Mac,
    /// Its addresses, with the prefix length of their network.
    pub addresses: Vec<IpNet>,
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guest {
    /// All that it is called.
    pub names: Vec<Name>,
    /// Where it is found by these names.
    pub addresses: Vec<IpAddr>,
    /// What it serves there.
    pub services: Vec<Service>,
}

/// A name of a container that holds for as long as its interface is on the bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The name.
    pub name: Name,
    /// One of the addresses that it has there.
    pub address: IpAddr,
    /// What is served at this address.
    pub services: Vec<Service>,
    /// The interface on the bridge.
    pub interface: String,
}

impl Named {
    /// Each name with each address.
    pub(super) fn each(names: &[Name], addresses: &[IpAddr], services: &[Service], interface: &str) -> Vec<Self> {
        let one = |(name, address): (&Name, &IpAddr)| Self {
            name: name.clone(),
            address: *address,
            services: services.to_vec(),
            interface: interface.to_owned(),
        };
        names.iter().flat_map(|name| addresses.iter().map(move |address| (name, address))).map(one).collect()
    }
}

impl Guests {
    /// A container is there, or is called otherwise from now on.
    pub fn enter(&self, interface: &str, guest: Guest) {
        let before = self.guests().insert(interface.to_owned(), guest.clone());
        if before.as_ref() != Some(&guest) {
            self.inner.changed.notify_one();
        }
    }

    /// An interface was made for a container.
    pub fn connect(&self, interface: &str, connected: Connected) {
        self.connected_ones().insert(interface.to_owned(), connected);
    }

    /// The interfaces that were made, each by its end on the bridge.
    #[must_use]
    pub fn connected(&self) -> Vec<(String, Connected)> {
        self.connected_ones().iter().map(|(interface, one)| (interface.clone(), one.clone())).collect()
    }

    /// A container has gone.
    pub fn strike(&self, interface: &str) {
        self.connected_ones().remove(interface);
        if self.guests().remove(interface).is_some() {
            self.inner.changed.notify_one();
        }
    }

    /// Their names.
    #[must_use]
    pub fn names(&self) -> Vec<Named> {
        let of = |(interface, guest): (&String, &Guest)| {
            Named::each(&guest.names, &guest.addresses, &guest.services, interface)
        };
        self.guests().iter().flat_map(of).collect()
    }

    /// The names of the container with that interface.
    #[must_use]
    pub fn names_at(&self, interface: &str) -> Vec<Name> {
        self.guests().get(interface).map(|guest| guest.names.clone()).unwrap_or_default()
    }

    /// What the container with that interface serves.
    #[must_use]
    pub fn services_at(&self, interface: &str) -> Vec<Service> {
        self.guests().get(interface).map(|guest| guest.services.clone()).unwrap_or_default()
    }

    /// Waits until something has changed since the last time.
    pub async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    fn connected_ones(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Connected>> {
        self.inner.connected.lock().unwrap_or_else(PoisonError::into_inner)
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
        let services: Vec<Service> = vec!["80/tcp".parse().expect("a service")];
        let guest = Guest { names: vec![name.clone()], addresses: vec![address], services: services.clone() };
        let told = || tokio::time::timeout(Duration::from_millis(20), guests.changed());
        guests.enter("weftd-1", guest.clone());
        told().await.expect("told");
        assert_eq!((guests.names_at("weftd-1"), guests.services_at("weftd-1")), (vec![name.clone()], services.clone()));
        assert_eq!(guests.names(), [Named { name, address, services, interface: "weftd-1".to_owned() }]);
        guests.enter("weftd-1", guest);
        told().await.expect_err("nothing is new");
        let connected = Connected { owner: "docker-endpoint:1".to_owned(), mac: [2; 6], addresses: Vec::new() };
        guests.connect("weftd-1", connected.clone());
        assert_eq!(guests.connected(), [("weftd-1".to_owned(), connected)]);
        guests.strike("weftd-1");
        assert!(guests.connected().is_empty());
        told().await.expect("told");
        assert!(guests.names().is_empty());
        guests.strike("weftd-1");
        told().await.expect_err("nothing is new");
    }
}
