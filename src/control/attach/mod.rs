//! Attaching containers and exposing the host: addresses from the mesh, interfaces from the
//! kernel, a record in the store, all three or none.
//!
//! ```text
//!  attach TARGET ─► find namespace ─► addresses (IPAM) ─► veth pair ─► record ─► answer
//!                                          │                 │            │
//!                        on failure: ◄─ free ◄──────── unplug ◄───────────┘
//! ```
//!
//! Requests about one owner wait for each other; those about others do not.

mod called;
mod held;
mod plug;
mod record;
mod restore;
mod target;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use ipam::AllocError;
use ipnet::IpNet;
use mesh_proto::wire::names::Name;
use mesh_proto::wire::services::Service;
use tokio::sync::{Mutex, Notify};

use called::{all_names, all_services, check_names, check_services};
pub use held::Hold;
pub use record::{Record, Terms, mac_text, parse_mac};
pub use restore::Audit;
pub use target::{FindError, Found, InvalidTarget, Target};

use crate::control::firewall::{self, Firewall};
use crate::control::guard::{Guarded, PortGuard};
use crate::control::guests::Named;
use crate::control::ledger::Ledger;
use crate::control::locks::Locks;
use crate::control::masquerade::Masquerade;
use crate::control::store::{Edit, Store, Table};
use crate::netlink::container;
use crate::netlink::{NetNsId, Netlink, NetlinkError};
use crate::router::{Handle, Stopped};

/// Owner of the host's own addresses.
pub const EXPOSE: &str = "weft:expose";
/// What is wrong where the module of the kernel is missing (kubernetes K18).
const NOT_TRANSLATED: &str = "containers may not reach services and host ports: the kernel's module br_netfilter is not \
                              loaded; load it (modprobe br_netfilter) now and at each start (/etc/modules-load.d)";
/// Most addresses of one request.
const ADDRESSES_MAX: usize = 64;

/// What is attached to this router. Clones share it.
#[derive(Debug, Clone)]
pub struct Attachments {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    router: Handle,
    store: Store,
    netlink: Netlink,
    host: NetNsId,
    bridge: String,
    mtu: u16,
    ranges: Vec<IpNet>,
    records: StdMutex<BTreeMap<String, Record>>,
    /// Told of each change of the records.
    changed: Notify,
    /// Everything is being taken away.
    closing: AtomicBool,
    /// One for each owner that a request is about.
    locks: Locks,
    /// What other parts of the router hold.
    others: Ledger,
    guard: PortGuard,
    masquerade: Masquerade,
    firewall: Firewall,
}

/// What attachments are made with.
#[derive(Debug)]
pub struct AttachConfig {
    /// The router that gives addresses.
    pub router: Handle,
    /// Where records are kept.
    pub store: Store,
    /// The host's network.
    pub netlink: Netlink,
    /// Name of the bridge.
    pub bridge: String,
    /// MTU of the overlay.
    pub mtu: u16,
    /// Ranges of the network.
    pub ranges: Vec<IpNet>,
    /// What other parts of the router hold.
    pub others: Ledger,
    /// Keeps containers to what is their own.
    pub guard: PortGuard,
    /// Lets containers reach outside of the mesh in the host's name.
    pub masquerade: Masquerade,
    /// Lets frames pass the host's filter.
    pub firewall: Firewall,
}

/// Why something was not attached, detached, exposed or hidden. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The target is not there, or not attached.
    #[error("{0}")]
    NotFound(String),
    /// The target is there but cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// There is no such address to be had.
    #[error(transparent)]
    Address(#[from] AllocError),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// It would not be kept from spoofing.
    #[error(
        "nftables cannot keep the container to its own addresses: {0}; the kernel needs nftables for bridges \
         (CONFIG_NF_TABLES_BRIDGE); `\"spoofCheck\": false` in the network configuration does without"
    )]
    Guard(std::io::Error),
    /// Its connections would go in its own name.
    #[error(
        "nftables cannot masquerade the container: {0}; the kernel needs NAT by nftables (CONFIG_NFT_MASQ, since Linux 5.2 \
         for the family inet); without `ipMasq` in the network configuration it is not needed"
    )]
    Masquerade(std::io::Error),
    /// What leaves the mesh here would go in nobody's name.
    #[error(
        "what leaves the mesh at this host cannot be masqueraded: {0}; the kernel needs NAT by nftables (CONFIG_NFT_MASQ, \
         since Linux 5.2 for the family inet), and the router a writable /proc/sys; `weft expose` alone needs neither"
    )]
    Outside(std::io::Error),
    /// The record could not be written.
    #[error("what is attached could not be written to the data directory: {0}")]
    Storage(String),
    /// The router is stopping.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl From<InvalidTarget> for AttachError {
    fn from(error: InvalidTarget) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<FindError> for AttachError {
    fn from(error: FindError) -> Self {
        match error {
            FindError::Gone(text) => Self::NotFound(text),
            FindError::Unusable(text) => Self::Unusable(text),
        }
    }
}

/// An address that a request names: an IP address, or one with its range's prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted(IpAddr);

/// What is made of an interface that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Make {
    /// It is made.
    IfMissing,
    /// Nothing: whoever asked for it has taken it away.
    Nothing,
}

/// What is asked of the address protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// Any free address of a range, or of a part of one.
    Free(IpNet),
    /// This address.
    This(IpAddr),
}

impl Attachments {
    /// Nothing is attached yet; see [`Self::restore`].
    ///
    /// # Errors
    /// If the router's own namespace cannot be named (`/proc` is not mounted).
    pub fn new(config: AttachConfig) -> std::io::Result<Self> {
        let own = std::fs::metadata("/proc/thread-self/ns/net")?;
        let host = NetNsId { device: own.dev(), inode: own.ino() };
        let inner = Inner {
            router: config.router,
            store: config.store,
            netlink: config.netlink,
            host,
            bridge: config.bridge,
            mtu: config.mtu,
            ranges: config.ranges,
            records: StdMutex::default(),
            changed: Notify::new(),
            closing: AtomicBool::new(false),
            locks: Locks::default(),
            others: config.others,
            guard: config.guard,
            masquerade: config.masquerade,
            firewall: config.firewall,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What is attached, in the order of the owners; the host's own addresses are not in it.
    #[must_use]
    pub fn list(&self) -> Vec<Record> {
        self.records().values().filter(|record| record.owner != EXPOSE).cloned().collect()
    }

    /// The names of what is attached, each with an address and the interface on the bridge that is
    /// there for as long as the container is.
    #[must_use]
    pub fn names(&self) -> Vec<Named> {
        let records = self.records();
        let of_record = |record: &Record| {
            let names: Vec<Name> = record.names.iter().filter_map(|name| name.parse().ok()).collect();
            let services: Vec<Service> = record.services.iter().filter_map(|text| text.parse().ok()).collect();
            let addresses: Vec<IpAddr> = record.addresses.iter().map(IpNet::addr).collect();
            Named::each(&names, &addresses, &services, &record.host_interface)
        };
        records.values().filter(|record| record.owner != EXPOSE).flat_map(of_record).collect()
    }

    /// What was dropped of what containers sent, and why they are not treated as they should be.
    pub async fn guarded(&self) -> Guarded {
        let mut guarded = self.inner.guard.look().await;
        guarded.problems.extend(self.inner.masquerade.problem());
        if !firewall::can_filter_bridged() && self.records().values().any(Record::is_translated) {
            guarded.problems.push(NOT_TRANSLATED.to_owned());
        }
        guarded
    }

    /// Waits until what is attached has changed since the last time.
    pub async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    /// Attaches a target, or gives it more addresses, names and services. Without addresses: one of each
    /// range, or those that it has already. A Docker container has its own name, and the ports that it
    /// exposes, besides.
    ///
    /// # Errors
    /// If the target or an address cannot be had, or the kernel refuses; then nothing is changed.
    pub async fn attach(
        &self,
        target: &str,
        addresses: &[String],
        names: &[String],
        services: &[String],
    ) -> Result<Record, AttachError> {
        let target: Target = target.parse()?;
        let wanted = self.wanted(addresses)?;
        let (names, services) = (check_names(names)?, check_services(services)?);
        let found = target.find(self.inner.host).await?;
        let host_interface = container::host_interface(&found.namespace, container::INTERFACE);
        let owner = self.owner_of(&host_interface).unwrap_or(found.owner);
        self.not_held(&owner)?;
        let lock = self.lock(&owner);
        let _busy = lock.lock().await;
        let before = self.record(&owner);
        let names = all_names(before.as_ref(), &names, &found.names)?;
        let services = all_services(before.as_ref(), &services, &found.services)?;
        let (all, fresh) = self.take_addresses(&owner, before.as_ref(), &wanted).await?;
        let record = Record {
            target: before.as_ref().map_or_else(|| target.to_string(), |old| old.target.clone()),
            interface: container::INTERFACE.to_owned(),
            mac: before.as_ref().map_or_else(|| container::container_mac(first(&all)), |r| r.mac),
            addresses: all,
            host_interface,
            owner: owner.clone(),
            masquerade: false,
            held: before.as_ref().and_then(|old| old.held.clone()),
            names,
            services,
        };
        let attached = self.plug_and_keep(&found.namespace, &record, before.as_ref(), Make::IfMissing).await;
        if let Err(error) = attached {
            self.give_back(&owner, &fresh).await;
            return Err(error);
        }
        if before.as_ref() != Some(&record) {
            tracing::info!(target = %record.target, addresses = ?record.address_texts(), "attached");
        }
        Ok(record)
    }

    /// Detaches a target, or takes some of its addresses away; the answer is what was released.
    ///
    /// # Errors
    /// If it is not attached, does not have an address, or the kernel refuses.
    pub async fn detach(&self, target: &str, addresses: &[String]) -> Result<Vec<IpNet>, AttachError> {
        let target: Target = target.parse()?;
        let wanted = self.wanted(addresses)?;
        let found = target.find(self.inner.host).await.ok();
        let owner = self
            .owner_for_detach(&target, found.as_ref())
            .ok_or_else(|| AttachError::NotFound(format!("`{target}` is not attached; `weft ps` lists what is")))?;
        self.not_held(&owner)?;
        let lock = self.lock(&owner);
        let _busy = lock.lock().await;
        let Some(record) = self.record(&owner) else {
            return Err(AttachError::NotFound(format!("`{target}` is not attached")));
        };
        let released = pick(&record.addresses, &wanted)
            .map_err(|address| AttachError::NotFound(format!("`{target}` does not have {address}")))?;
        if released.len() == record.addresses.len() {
            container::unplug(&self.inner.netlink, &record.host_interface).await?;
            self.keep(&owner, None).await?;
        } else {
            let mut left = record.clone();
            left.addresses.retain(|address| !released.contains(address));
            // Whoever gets the address next gets the hardware address that is made of it.
            if released.iter().any(|address| container::container_mac(address.addr()) == record.mac) {
                left.mac = container::container_mac(first(&left.addresses));
            }
            if let Some(found) = found {
                container::remove_addresses(&found.namespace, &record.interface, &released).await?;
                if left.mac != record.mac {
                    let (port, interface) = (&record.host_interface, &record.interface);
                    container::change_mac(&self.inner.netlink, &found.namespace, port, interface, left.mac).await?;
                }
            }
            self.keep(&owner, Some(left)).await?;
        }
        self.give_back(&owner, &released).await;
        tracing::info!(target = %record.target, released = ?texts(&released), "detached");
        Ok(released)
    }

    /// Gives the host itself addresses in the network; the answer is all that it has. With `masquerade`, the
    /// connections of the whole mesh that leave it here go in the host's name, until it has none (services V7).
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub async fn expose(&self, addresses: &[String], masquerade: bool) -> Result<Vec<IpNet>, AttachError> {
        let wanted = self.wanted(addresses)?;
        let lock = self.lock(EXPOSE);
        let _busy = lock.lock().await;
        let before = self.record(EXPOSE);
        let (all, fresh) = self.take_addresses(EXPOSE, before.as_ref(), &wanted).await?;
        let record = Record {
            target: "host".to_owned(),
            interface: self.inner.bridge.clone(),
            mac: [0; 6],
            addresses: all.clone(),
            host_interface: self.inner.bridge.clone(),
            owner: EXPOSE.to_owned(),
            masquerade: masquerade || before.as_ref().is_some_and(|record| record.masquerade),
            held: None,
            names: Vec::new(),
            services: Vec::new(),
        };
        let exposed = match self.open(&record).await {
            Ok(()) if before.as_ref() == Some(&record) => Ok(()),
            Ok(()) => self.keep(EXPOSE, Some(record)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = exposed {
            let families = before.as_ref().map(Record::masquerades).unwrap_or_default();
            // What is wrong with it is said already.
            let _ = self.inner.masquerade.all(families).await;
            self.take_off_bridge(&fresh).await;
            self.give_back(EXPOSE, &fresh).await;
            return Err(error);
        }
        Ok(all)
    }

    /// What is recorded of the host's own addresses is so.
    async fn open(&self, record: &Record) -> Result<(), AttachError> {
        self.put_on_bridge(&record.addresses).await?;
        self.inner.masquerade.all(record.masquerades()).await.map_err(AttachError::Outside)
    }

    /// The host's own addresses in the network.
    #[must_use]
    pub fn exposed(&self) -> Vec<IpAddr> {
        self.record(EXPOSE).map(|record| record.addresses.iter().map(IpNet::addr).collect()).unwrap_or_default()
    }

    /// Takes the host's addresses away, all or some; the answer is what was released.
    ///
    /// # Errors
    /// If the host does not have an address, or the record cannot be written.
    pub async fn hide(&self, addresses: &[String]) -> Result<Vec<IpNet>, AttachError> {
        let wanted = self.wanted(addresses)?;
        let lock = self.lock(EXPOSE);
        let _busy = lock.lock().await;
        let Some(mut record) = self.record(EXPOSE) else {
            return match wanted.first() {
                None => Ok(Vec::new()),
                Some(Wanted(address)) => Err(AttachError::NotFound(format!("the host does not have {address}"))),
            };
        };
        let released = pick(&record.addresses, &wanted)
            .map_err(|address| AttachError::NotFound(format!("the host does not have {address}")))?;
        self.take_off_bridge(&released).await;
        record.addresses.retain(|address| !released.contains(address));
        if let Err(error) = self.inner.masquerade.all(record.masquerades()).await {
            tracing::warn!(%error, "what leaves the mesh at this host is still masqueraded");
        }
        self.keep(EXPOSE, (!record.addresses.is_empty()).then_some(record)).await?;
        self.give_back(EXPOSE, &released).await;
        Ok(released)
    }

    /// Addresses for an owner: those it has, and those it wants (or one of each range, if it has
    /// none and wants none). The second list is what is new. On failure nothing is.
    async fn take_addresses(
        &self,
        owner: &str,
        before: Option<&Record>,
        wanted: &[Wanted],
    ) -> Result<(Vec<IpNet>, Vec<IpNet>), AttachError> {
        let nothing = before.is_none_or(|record| record.addresses.is_empty());
        let asked = if nothing && wanted.is_empty() {
            self.inner.ranges.iter().copied().map(Ask::Free).collect()
        } else {
            wanted.iter().map(|Wanted(address)| Ask::This(*address)).collect()
        };
        self.take(owner, before, asked).await
    }

    async fn take(
        &self,
        owner: &str,
        before: Option<&Record>,
        asked: Vec<Ask>,
    ) -> Result<(Vec<IpNet>, Vec<IpNet>), AttachError> {
        // Looked at under the owner's lock, which `remove_all` takes after it has set this.
        if self.inner.closing.load(Ordering::SeqCst) {
            return Err(Stopped.into());
        }
        let router = &self.inner.router;
        let had = router.lookup(owner).await?;
        let mut all = before.map(|record| record.addresses.clone()).unwrap_or_default();
        let mut fresh = Vec::new();
        for ask in asked {
            let result = match ask {
                Ask::Free(range) => router.allocate(owner, range).await,
                Ask::This(address) => router.claim(owner, address).await,
            };
            let error = match result {
                Ok(Ok(address)) => {
                    let address = self.in_its_range(address);
                    if !had.iter().any(|had| had.addr() == address.addr()) {
                        fresh.push(address);
                    }
                    if !all.contains(&address) {
                        all.push(address);
                    }
                    continue;
                }
                Ok(Err(error)) => error.into(),
                Err(stopped) => stopped.into(),
            };
            self.give_back(owner, &fresh).await;
            return Err(error);
        }
        Ok((all, fresh))
    }

    /// The address with the prefix length of its range, though it was taken from a part: all of the
    /// range is on the link.
    fn in_its_range(&self, address: IpNet) -> IpNet {
        let range = self.inner.ranges.iter().find(|range| range.contains(&address.addr()));
        range.and_then(|range| IpNet::new(address.addr(), range.prefix_len()).ok()).unwrap_or(address)
    }

    async fn give_back(&self, owner: &str, addresses: &[IpNet]) {
        for address in addresses {
            // A router that stops frees nothing; the owner's addresses are audited at its start.
            let _ = self.inner.router.free(owner, Some(address.addr())).await;
        }
    }

    async fn put_on_bridge(&self, addresses: &[IpNet]) -> Result<(), AttachError> {
        let bridge = self.inner.netlink.need_link(&self.inner.bridge).await?;
        for address in addresses {
            self.inner.netlink.add_address(&bridge, *address).await?;
        }
        if addresses.iter().any(|address| address.addr().is_ipv6()) {
            // From it the host asks for the neighbours of what it forwards, or sends from another address of its own.
            self.inner.netlink.set_link_local(&bridge, true).await?;
        }
        Ok(())
    }

    async fn take_off_bridge(&self, addresses: &[IpNet]) {
        let netlink = &self.inner.netlink;
        let taken = async {
            let bridge = netlink.need_link(&self.inner.bridge).await?;
            for address in addresses {
                netlink.del_address(&bridge, *address).await?;
            }
            let is_global = |net: &IpNet| matches!(net, IpNet::V6(net) if !net.addr().is_unicast_link_local());
            if !netlink.addresses(&bridge).await?.iter().any(is_global) {
                netlink.set_link_local(&bridge, false).await?;
            }
            Ok::<_, NetlinkError>(())
        };
        if let Err(error) = taken.await {
            tracing::warn!(%error, "an address stays on the bridge");
        }
    }

    /// Writes a record, or its absence, to disk and then to memory.
    async fn keep(&self, owner: &str, record: Option<Record>) -> Result<(), AttachError> {
        let edit = match &record {
            Some(record) => {
                let value = serde_json::to_vec(record).map_err(|error| AttachError::Storage(error.to_string()))?;
                Edit::set(Table::Attachments, owner, value)
            }
            None => Edit::delete(Table::Attachments, owner),
        };
        self.inner.store.write_and_wait(vec![edit]).await.map_err(AttachError::Storage)?;
        let now = record.as_ref().and_then(Record::port).map(|port| port.interface);
        let masqueraded = record.as_ref().and_then(Record::masqueraded).map(|one| one.interface);
        let before = match record {
            Some(record) => self.records().insert(owner.to_owned(), record),
            None => self.records().remove(owner),
        };
        if let Some(port) = before.as_ref().and_then(Record::port).filter(|port| Some(&port.interface) != now.as_ref())
        {
            self.inner.guard.release(&port.interface).await;
        }
        if let Some(one) = before.as_ref().and_then(Record::masqueraded)
            && Some(&one.interface) != masqueraded.as_ref()
        {
            self.inner.masquerade.end(&one.interface).await;
        }
        self.inner.changed.notify_one();
        Ok(())
    }

    fn wanted(&self, addresses: &[String]) -> Result<Vec<Wanted>, AttachError> {
        if addresses.len() > ADDRESSES_MAX {
            return Err(AttachError::Invalid(format!("at most {ADDRESSES_MAX} addresses at once")));
        }
        let mut wanted = Vec::new();
        for text in addresses {
            let address = Wanted(parse_address(text, &self.inner.ranges)?);
            if !wanted.contains(&address) {
                wanted.push(address);
            }
        }
        Ok(wanted)
    }

    fn owner_for_detach(&self, target: &Target, found: Option<&Found>) -> Option<String> {
        let by_namespace = found.and_then(|found| {
            let host = container::host_interface(&found.namespace, container::INTERFACE);
            self.owner_of(&host).or_else(|| self.record(&found.owner).map(|record| record.owner))
        });
        // The target may have gone meanwhile; its name is still known.
        by_namespace.or_else(|| {
            let text = target.to_string();
            self.records().values().find(|r| r.target == text).map(|r| r.owner.clone())
        })
    }

    /// Who has the interface of that name: two names of one namespace are one attachment.
    fn owner_of(&self, host_interface: &str) -> Option<String> {
        let records = self.records();
        let record = records.values().find(|record| record.host_interface == host_interface);
        record.map(|record| record.owner.clone())
    }

    fn record(&self, owner: &str) -> Option<Record> {
        self.records().get(owner).cloned()
    }

    fn records(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Record>> {
        self.inner.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self, owner: &str) -> Arc<Mutex<()>> {
        self.inner.locks.of(owner)
    }
}

/// Reads `ADDRESS` or `ADDRESS/LENGTH`, where the length must be that of the range.
fn parse_address(text: &str, ranges: &[IpNet]) -> Result<IpAddr, AttachError> {
    let text = text.trim();
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address);
    }
    let net: IpNet = text.parse().map_err(|_| {
        let shown: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
        AttachError::Invalid(format!(
            "`{shown}` is not an IP address; give one such as 10.32.0.5, or none to get a free one"
        ))
    })?;
    match ranges.iter().find(|range| range.contains(&net.addr())) {
        Some(range) if range.prefix_len() != net.prefix_len() => Err(AttachError::Invalid(format!(
            "{net} must have the prefix length of its range {range}: leave it out or write {}/{}",
            net.addr(),
            range.prefix_len()
        ))),
        _ => Ok(net.addr()),
    }
}

/// Those wanted, or all if none are; the error is one that is not among them.
fn pick(have: &[IpNet], wanted: &[Wanted]) -> Result<Vec<IpNet>, IpAddr> {
    if wanted.is_empty() {
        return Ok(have.to_vec());
    }
    let find = |want: &Wanted| have.iter().copied().find(|net| net.addr() == want.0).ok_or(want.0);
    wanted.iter().map(find).collect()
}

fn first(addresses: &[IpNet]) -> IpAddr {
    // Only an attachment without any address has none: it needs a hardware address all the same.
    addresses.first().map_or(IpAddr::from([0, 0, 0, 0]), IpNet::addr)
}

fn texts(addresses: &[IpNet]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_or_without_the_length_of_their_range() {
        let ranges: Vec<IpNet> = ["10.32.0.0/12", "fd00::/64"].iter().map(|r| r.parse().expect("a range")).collect();
        for text in ["10.32.0.5", "10.32.0.5/12", " fd00::5 ", "fd00::5/64", "192.0.2.1/24"] {
            assert!(parse_address(text, &ranges).is_ok(), "{text}");
        }
        let error = parse_address("10.32.0.5/24", &ranges).expect_err("wrong length");
        assert!(error.to_string().contains("10.32.0.5/12"), "{error}");
        for text in ["", "10.32.0", "10.32.0.5/33", "host", "net:10.0.0.0/8"] {
            assert!(parse_address(text, &ranges).is_err(), "{text}");
        }
    }

    #[test]
    fn picking_names_the_address_that_is_not_there() {
        let have: Vec<IpNet> = vec!["10.32.0.1/12".parse().expect("an address")];
        let want = |text: &str| Wanted(text.parse().expect("an address"));
        assert_eq!(pick(&have, &[]), Ok(have.clone()));
        assert_eq!(pick(&have, &[want("10.32.0.1")]), Ok(have.clone()));
        assert_eq!(pick(&have, &[want("10.32.0.2")]), Err("10.32.0.2".parse().expect("one")));
    }
}
