//! Services of this host: its ports that lead into the mesh, and those at its addresses in the mesh that
//! lead outside (services V1).
//!
//! ```text
//!  export, import ─► checked ─► forwarding on ─► table of nftables ─► record in the store ─► answer
//!                                                   ▲      └─ whoever takes it away
//!                                       put back ◄──┴── notice
//! ```
//!
//! As with [masquerading](super::masquerade), what is known here is what the kernel was told.

mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use mesh_proto::wire::names::Name;
use mesh_proto::wire::services::Service;
use tokio::sync::{Notify, watch};

pub use record::{InvalidPlace, Kind, Place, Record};

use super::attach::Attachments;
use super::keeper::Occasions;
use super::store::{Edit, Store, Table};
use crate::netlink::forward;
use crate::netlink::nft::{Redirect, ServiceTable, Transport};

/// Most services of one host: all of them fit into one transaction of the kernel's.
pub const SERVICES_MAX: usize = 100;

/// Why a service was not made or taken away. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is no such service.
    #[error("{0}; `weft service list` shows what there is")]
    NotFound(String),
    /// It cannot be had as things are.
    #[error("{0}")]
    Unusable(String),
    /// The kernel refused.
    #[error("{0}")]
    Kernel(String),
    /// The record could not be written.
    #[error("the service could not be written to the data directory: {0}")]
    Storage(String),
}

impl From<InvalidPlace> for ServiceError {
    fn from(error: InvalidPlace) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// The services of this host. Clones share them.
#[derive(Debug, Clone)]
pub struct Services {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    attachments: Attachments,
    bridge: String,
    ranges: Vec<IpNet>,
    /// By their keys in the store.
    records: Mutex<BTreeMap<String, Record>>,
    /// Why the kernel is not as it shall be.
    problem: Mutex<Option<String>>,
    /// One change at a time, so that kernel, disk and memory agree.
    busy: tokio::sync::Mutex<()>,
    /// Told of each change.
    changed: Notify,
    /// Told when something went wrong.
    failed: Notify,
    /// Whether there is any.
    any: watch::Sender<bool>,
}

impl Services {
    /// Those of the store; changes nothing. The host's addresses in the mesh are those of `attachments`,
    /// the mesh's those of `ranges`. Whoever listens to `any` is told whether there are any.
    #[must_use]
    pub fn new(
        store: Store,
        stored: &BTreeMap<Vec<u8>, Vec<u8>>,
        attachments: Attachments,
        bridge: &str,
        ranges: &[IpNet],
        any: watch::Sender<bool>,
    ) -> Self {
        let mut records = BTreeMap::new();
        for (key, value) in stored {
            match serde_json::from_slice::<Record>(value) {
                Ok(record) => _ = records.insert(record.key(), record),
                Err(error) => {
                    let key = String::from_utf8_lossy(key);
                    tracing::error!(%key, %error, "a service of this host cannot be read; make it again");
                }
            }
        }
        any.send_replace(!records.is_empty());
        let shared = Shared {
            store,
            attachments,
            bridge: bridge.to_owned(),
            ranges: ranges.to_vec(),
            any,
            records: Mutex::new(records),
            problem: Mutex::default(),
            busy: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            failed: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// All of them, in the order of their places.
    #[must_use]
    pub fn list(&self) -> Vec<Record> {
        self.shared.records().values().cloned().collect()
    }

    /// The names of what is imported, each with its address in the mesh and what it serves there.
    #[must_use]
    pub fn names(&self) -> Vec<(Name, IpAddr, Service)> {
        let of = |record: &Record| {
            let service = format!("{}/{}", record.at.port(), record.transport);
            Some((record.name.as_ref()?.parse().ok()?, record.at.ip(), service.parse().ok()?))
        };
        self.shared.records().values().filter_map(of).collect()
    }

    /// Waits until the services have changed since the last time.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Why services do not work that should.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.shared.problem().clone()
    }

    /// Lets a port of this host lead to an address of the mesh. Fine if it does already. Without an address
    /// in `at`: at any of the host's. Without `at`: the same port.
    ///
    /// # Errors
    /// If the places make no sense, the port is taken, the host has no address in the mesh, or the kernel or
    /// the disk refuses.
    pub async fn export(&self, to: &str, at: &str) -> Result<Record, ServiceError> {
        let (to, at) = places(to, at)?;
        let ip =
            to.ip.ok_or_else(|| ServiceError::Invalid(format!("`{to}` names no address in the mesh to lead to")))?;
        if !self.is_inside(ip) {
            return Err(ServiceError::Invalid(format!(
                "{ip} is not in the mesh ({}); what is outside is for `weft service import`",
                self.ranges()
            )));
        }
        let (transport, to) = (to.transport, SocketAddr::new(ip, to.port));
        let at = at.socket(ip);
        self.make(Record { kind: Kind::Export, transport, at, to, name: None }).await
    }

    /// Gives what is outside a name in the mesh, and a port at one of the host's addresses there. Fine if it
    /// has both already. Without an address in `at`: at the first of the host's. Without `at`: the same port.
    ///
    /// # Errors
    /// As [`Self::export`].
    pub async fn import(&self, name: &Name, to: &str, at: &str) -> Result<Record, ServiceError> {
        let (to, at) = places(to, at)?;
        let ip = to.ip.ok_or_else(|| ServiceError::Invalid(format!("`{to}` names no address outside to lead to")))?;
        if self.is_inside(ip) {
            return Err(ServiceError::Invalid(format!("{ip} is in the mesh; `weft dns add` gives it a name")));
        }
        if ip.is_loopback() || is_link_local(ip) {
            return Err(ServiceError::Invalid(format!(
                "{ip} cannot be reached for others: only {} itself can use it",
                if ip.is_loopback() { "a host" } else { "a link" }
            )));
        }
        let exposed = self.exposed(ip.is_ipv4())?;
        let mine = match at.ip {
            None => exposed.first().copied(),
            Some(mine) => exposed.into_iter().find(|one| *one == mine),
        };
        let mine = mine.ok_or_else(|| {
            ServiceError::Unusable(format!(
                "{at}: this host does not have that address in the mesh; `weft expose` gives it"
            ))
        })?;
        let (transport, to) = (to.transport, SocketAddr::new(ip, to.port));
        let (at, name) = (SocketAddr::new(mine, at.port), Some(name.as_str().to_owned()));
        self.make(Record { kind: Kind::Import, transport, at, to, name }).await
    }

    /// Takes services away, those at a place, or with its port and transport at any; the answer is what was
    /// taken. Connections that are there go on.
    ///
    /// # Errors
    /// If there is none, or kernel or disk refuse.
    pub async fn remove(&self, at: &str) -> Result<Vec<Record>, ServiceError> {
        let place: Place = at.parse()?;
        let meant = |record: &Record| {
            let found = record.place();
            let same_port = (found.port, found.transport) == (place.port, place.transport);
            same_port && (place.ip.is_none() || place.ip == found.ip)
        };
        let removed = self.keep_only(|record| !meant(record)).await?;
        if removed.is_empty() {
            return Err(ServiceError::NotFound(format!("this host has no service at {place}")));
        }
        Ok(removed)
    }

    /// Takes away what needs an address in the mesh that the host has no more; the answer is what was taken.
    ///
    /// # Errors
    /// If kernel or disk refuse.
    pub async fn hide(&self) -> Result<Vec<Record>, ServiceError> {
        let left = self.shared.attachments.exposed();
        self.keep_only(|record| match record.kind {
            Kind::Export => left.iter().any(|ip| ip.is_ipv4() == record.to.is_ipv4()),
            Kind::Import => left.contains(&record.at.ip()),
        })
        .await
    }

    /// Tells the kernel what was in the store. With none, what an earlier run left goes.
    pub async fn adopt(&self) {
        let _busy = self.shared.busy.lock().await;
        let records = self.shared.records().clone();
        let none = records.is_empty();
        if let Err(error) = self.install(records).await {
            match none {
                // A kernel without nftables has nothing of an earlier run either.
                true => tracing::debug!(%error, "no services were looked for"),
                false => tracing::error!(%error, "services of this host may not work"),
            }
        }
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
        let _busy = self.shared.busy.lock().await;
        let records = self.shared.records().clone();
        if records.is_empty() {
            return;
        }
        let (bridge, wanted) = (self.shared.bridge.clone(), redirects(&records));
        let stands = blocking(move || {
            forward_for(&wanted)?;
            ServiceTable::new(&table(&bridge))?.stands(&wanted)
        });
        if matches!(stands.await, Ok(true)) && self.problem().is_none() {
            return;
        }
        let before = self.problem();
        match self.install(records).await {
            Ok(()) => tracing::warn!("the services of this host were not whole: they were put back"),
            Err(error) if before.is_none() => tracing::error!(%error, "the services of this host cannot be put back"),
            Err(_) => {}
        }
    }

    /// A service that was checked as far as it can be by itself.
    async fn make(&self, record: Record) -> Result<Record, ServiceError> {
        let _busy = self.shared.busy.lock().await;
        // Under the lock that `hide` takes after the address is gone.
        let exposed = self.exposed(record.to.is_ipv4())?;
        if record.kind == Kind::Import && !exposed.contains(&record.at.ip()) {
            return Err(ServiceError::Unusable(format!("{} is no address of this host any more", record.at.ip())));
        }
        let mut records = self.shared.records().clone();
        if records.get(&record.key()) == Some(&record) {
            return Ok(record);
        }
        if let Some(other) = records.values().find(|other| other.is_in_the_way_of(&record)) {
            return Err(ServiceError::Unusable(format!(
                "{} is taken: it leads to {} ({}); `weft service remove {}` frees it",
                record.place(),
                other.to,
                other.kind,
                other.place()
            )));
        }
        if records.len() >= SERVICES_MAX {
            return Err(ServiceError::Unusable(format!("a host has at most {SERVICES_MAX} services; remove some")));
        }
        not_in_use(&record)?;
        let before = records.clone();
        records.insert(record.key(), record.clone());
        let value = serde_json::to_vec(&record).map_err(|error| ServiceError::Storage(error.to_string()))?;
        let edit = Edit::set(Table::Services, record.key(), value);
        self.replace(before, records, vec![edit]).await?;
        tracing::info!(kind = %record.kind, at = %record.place(), to = %record.to, "a service of this host");
        Ok(record)
    }

    async fn keep_only(&self, wanted: impl Fn(&Record) -> bool) -> Result<Vec<Record>, ServiceError> {
        let _busy = self.shared.busy.lock().await;
        let before = self.shared.records().clone();
        let (kept, removed): (BTreeMap<_, _>, BTreeMap<_, _>) =
            before.clone().into_iter().partition(|(_, record)| wanted(record));
        if removed.is_empty() {
            return Ok(Vec::new());
        }
        let edits = removed.keys().map(|key| Edit::delete(Table::Services, key.as_str())).collect();
        self.replace(before, kept, edits).await?;
        Ok(removed.into_values().collect())
    }

    /// In the kernel, on disk, in memory: all three or none.
    async fn replace(
        &self,
        before: BTreeMap<String, Record>,
        after: BTreeMap<String, Record>,
        edits: Vec<Edit>,
    ) -> Result<(), ServiceError> {
        let installed = self.install(after.clone()).await;
        let stored = match installed {
            Ok(()) => self.shared.store.write_and_wait(edits).await.map_err(ServiceError::Storage),
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            // What cannot be put back now is by the task that keeps it.
            let _ = self.install(before).await;
            return Err(error);
        }
        let any = !after.is_empty();
        *self.shared.records() = after;
        self.shared.any.send_if_modified(|known| std::mem::replace(known, any) != any);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Makes the kernel do these and no others.
    async fn install(&self, records: BTreeMap<String, Record>) -> Result<(), ServiceError> {
        let name = table(&self.shared.bridge);
        let wanted = redirects(&records);
        let (named, none) = (name.clone(), wanted.is_empty());
        let installed = blocking(move || {
            forward_for(&wanted)?;
            let table = ServiceTable::new(&named)?;
            if wanted.is_empty() { table.remove() } else { table.install(&wanted) }
        })
        .await;
        let error = installed.err().map(|error| match error.kind() {
            ErrorKind::Other => error.to_string(),
            _ => format!(
                "the table {name} of nftables cannot be written: {error}; services need NAT by nftables \
                 (CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NFT_FIB_INET, since Linux 5.2 for the family inet)"
            ),
        });
        *self.shared.problem() =
            error.as_ref().filter(|_| !none).map(|error| format!("services of this host may not work: {error}"));
        match error {
            None => Ok(()),
            Some(error) => {
                self.shared.failed.notify_one();
                Err(ServiceError::Kernel(error))
            }
        }
    }

    /// The host's addresses in the mesh, of one family: by one of them it asks and is asked there.
    fn exposed(&self, v4: bool) -> Result<Vec<IpAddr>, ServiceError> {
        let mut exposed = self.shared.attachments.exposed();
        exposed.retain(|ip| ip.is_ipv4() == v4);
        if exposed.is_empty() {
            let family = if v4 { "IPv4" } else { "IPv6" };
            return Err(ServiceError::Unusable(format!(
                "this host has no {family} address in the mesh; `weft expose` gives it one"
            )));
        }
        Ok(exposed)
    }

    fn is_inside(&self, ip: IpAddr) -> bool {
        self.shared.ranges.iter().any(|range| range.contains(&ip))
    }

    fn ranges(&self) -> String {
        self.shared.ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl Shared {
    fn records(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn problem(&self) -> MutexGuard<'_, Option<String>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where it leads and where it is found, as far as they fit each other.
fn places(to: &str, at: &str) -> Result<(Place, Place), ServiceError> {
    let to: Place = to.parse()?;
    if at.is_empty() {
        return Ok((to, Place { ip: None, ..to }));
    }
    let named: Place = at.parse()?;
    if at.contains('/') && named.transport != to.transport {
        return Err(ServiceError::Invalid(format!("{named} cannot lead to {to}: one is TCP, the other UDP")));
    }
    let at = Place { transport: to.transport, ..named };
    match (at.ip, to.ip) {
        (Some(one), Some(two)) if one.is_ipv4() != two.is_ipv4() => {
            Err(ServiceError::Invalid(format!("{at} cannot lead to {to}: one is IPv4, the other IPv6")))
        }
        (Some(one), _) if one.is_loopback() => Err(ServiceError::Invalid(format!(
            "{at} cannot lead elsewhere: what the host says to its loopback addresses stays there; name another address or none"
        ))),
        _ => Ok((to, at)),
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Whether a process of this host has the port: it would never be asked again, and not know why.
fn not_in_use(record: &Record) -> Result<(), ServiceError> {
    let bound = match record.transport {
        Transport::Tcp => TcpListener::bind(record.at).map(drop),
        Transport::Udp => UdpSocket::bind(record.at).map(drop),
    };
    match bound {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            Err(ServiceError::Unusable(format!("{} is taken: a process of this host uses it", record.place())))
        }
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            Err(ServiceError::Unusable(format!("{}: this host does not have that address", record.place())))
        }
        // No right to the port, or none of that family: nobody is disturbed.
        Ok(()) | Err(_) => Ok(()),
    }
}

fn redirects(records: &BTreeMap<String, Record>) -> BTreeSet<Redirect> {
    records.values().map(Record::redirect).collect()
}

/// The host passes on what is not for itself, of the families that are needed.
fn forward_for(wanted: &BTreeSet<Redirect>) -> io::Result<()> {
    let families: BTreeSet<bool> = wanted.iter().map(|redirect| redirect.to.is_ipv4()).collect();
    families.into_iter().try_for_each(forward)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Name of the table in the packet filter.
#[must_use]
pub fn table(bridge: &str) -> String {
    format!("{bridge}-services")
}

/// Takes the table out of the kernel, whoever made it; fine if there is none.
pub fn remove(bridge: &str) {
    let table = table(bridge);
    if let Err(error) = ServiceTable::new(&table).and_then(|table| table.remove()) {
        // A kernel without nftables has nothing to remove.
        tracing::debug!(%error, table, "the services could not be looked for");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_together_is_refused_with_the_reason() {
        for (to, at, why) in [
            ("10.32.0.1:80", "[fd00::1]:80", "one is IPv4, the other IPv6"),
            ("10.32.0.1:80/udp", "8080/tcp", "one is TCP, the other UDP"),
            ("10.32.0.1:80", "127.0.0.1:80", "loopback"),
            ("[fd00::1]:80", "[::1]:80", "loopback"),
            ("10.32.0.1:80", "x", "`x` cannot be a place"),
        ] {
            let error = places(to, at).expect_err(to).to_string();
            assert!(error.contains(why), "{to} {at}: {error}");
        }
    }

    #[test]
    fn the_port_and_what_carries_it_follow_from_where_it_leads() {
        for (to, at, expected) in [
            ("10.32.0.1:53/udp", "", "53/udp"),
            ("10.32.0.1:53/udp", "5300", "5300/udp"),
            ("10.32.0.1:80", "192.0.2.7:8080/tcp", "192.0.2.7:8080/tcp"),
        ] {
            assert_eq!(places(to, at).expect(to).1.to_string(), expected);
        }
    }

    #[test]
    fn a_port_that_a_process_has_is_taken() {
        let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").expect("bound"), UdpSocket::bind("127.0.0.1:0").expect("b"));
        let to = "10.32.0.1:80".parse().expect("a place");
        for (transport, at) in
            [(Transport::Tcp, tcp.local_addr().expect("one")), (Transport::Udp, udp.local_addr().expect("one"))]
        {
            let record = Record { kind: Kind::Export, transport, at, to, name: None };
            let error = not_in_use(&record).expect_err("taken").to_string();
            assert!(error.contains("a process of this host uses it"), "{error}");
        }
        let at = "192.0.2.77:80".parse().expect("a place");
        let record = Record { kind: Kind::Export, transport: Transport::Tcp, at, to, name: None };
        assert!(not_in_use(&record).expect_err("elsewhere").to_string().contains("does not have that address"));
    }
}
