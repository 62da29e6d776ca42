//! After a restart, and again and again: what is recorded and what is there are made one.
//!
//! ```text
//!  record, veth there            keep; complete it
//!  record, target there          plug it again, same addresses
//!  record, target gone           release its addresses
//!  record of a holder, veth gone the same: the holder plugs it again, not we
//!  no record, veth `weft-…`      a start that was cut off: delete it
//!  no record, address given      the same: free it
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ipnet::IpNet;

use super::{AttachError, Attachments, EXPOSE, FindError, Make, Record, Target};
use crate::control::masquerade::Masqueraded;
use crate::netlink::nft::Port;
use crate::netlink::{NetlinkError, container};
use crate::router::Stopped;

/// How long requests may take that are under way when everything is taken away.
const REQUESTS_END: Duration = Duration::from_secs(2);

/// What a comparison of what was given with what is there has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// Given, and used by nobody on this host: owner and address.
    pub leaked: Vec<(String, IpNet)>,
    /// Used on this host, and not given.
    pub missing: Vec<(String, IpNet)>,
    /// Of these, what is in order now.
    pub repaired: Vec<IpNet>,
}

/// What came of one record.
enum Fate {
    Kept,
    Restored,
    Released,
}

impl Attachments {
    /// Takes over the records of the last run, and deletes what a crash left half-made. Comes
    /// before every request.
    pub async fn load(&self, stored: &BTreeMap<Vec<u8>, Vec<u8>>) {
        for (owner, value) in stored {
            match serde_json::from_slice::<Record>(value) {
                Ok(record) => {
                    self.records().insert(record.owner.clone(), record);
                }
                Err(error) => {
                    let owner = String::from_utf8_lossy(owner);
                    tracing::error!(%owner, %error, "what was attached cannot be read; attach it again");
                }
            }
        }
        if let Err(error) = self.delete_leftovers().await {
            tracing::warn!(%error, "interfaces of a run that was cut off may be left");
        }
    }

    /// The ports that are kept to what is their own (guard P2).
    #[must_use]
    pub fn ports(&self) -> Vec<Port> {
        self.all().iter().filter_map(Record::port).collect()
    }

    /// Those whose connections to outside of the mesh go in the host's name (kubernetes K17).
    #[must_use]
    pub fn masqueraded(&self) -> Vec<Masqueraded> {
        self.all().iter().filter_map(Record::masqueraded).collect()
    }

    /// The families of which everybody's connections to outside go in this host's name (services V7).
    #[must_use]
    pub fn masquerades(&self) -> BTreeSet<bool> {
        self.record(EXPOSE).map(|record| record.masquerades()).unwrap_or_default()
    }

    /// Connects what was attached in the last run and is still there, and releases what has gone.
    /// Does not need the mesh.
    pub async fn restore(&self) {
        // Before all that may take a while: without it nothing new is given, not to others either (ipam I9).
        // What has gone is freed as it is found.
        if self.survey().await.is_err() {
            return;
        }
        let (mut restored, mut released) = (0, 0);
        for record in self.all() {
            match self.mend(&record, true).await {
                Fate::Kept => {}
                Fate::Restored => restored += 1,
                Fate::Released => released += 1,
            }
        }
        if restored + released > 0 {
            tracing::info!(restored, released, "attachments of the last run");
        }
        self.inner.others.tell_restored();
    }

    /// Tells the address protocol what the last run gave.
    async fn survey(&self) -> Result<(), Stopped> {
        let records = self.all();
        let attached = records
            .iter()
            .flat_map(|record| record.addresses.iter().map(|address| (record.owner.clone(), address.addr())));
        self.inner.router.survey(attached.chain(self.inner.others.entries()).collect()).await
    }

    /// Claims what is in use once more, and frees what nobody uses. Waits until the mesh can answer.
    ///
    /// # Errors
    /// One line for each address that is in use here and was given to somebody else.
    pub async fn reclaim(&self) -> Result<(), Vec<String>> {
        let mut lost = Vec::new();
        let records = self.all();
        for (owner, address) in self.inner.others.entries() {
            match self.inner.router.claim(&owner, address).await {
                // Given back while this was under way: the claim must not bring it back.
                Ok(Ok(_)) if !self.inner.others.has(&owner, address) => {
                    let _ = self.inner.router.free(&owner, Some(address)).await;
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => lost.push(format!("{address} of {owner}: {error}; start its container anew")),
                Err(_stopped) => return Ok(()),
            }
        }
        for record in records {
            for address in &record.addresses {
                match self.inner.router.claim(&record.owner, address.addr()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => {
                        lost.push(format!("{address} of {}: {error}; detach it and attach it again", record.target))
                    }
                    Err(_stopped) => return Ok(()),
                }
            }
        }
        self.free_orphans().await;
        if lost.is_empty() { Ok(()) } else { Err(lost) }
    }

    /// One look at everything that is attached: mends it, or releases what has gone.
    pub async fn audit(&self) {
        for record in self.all() {
            match self.mend(&record, false).await {
                Fate::Kept => {}
                Fate::Restored => tracing::info!(target = %record.target, "attached again"),
                Fate::Released => {
                    tracing::info!(target = %record.target, addresses = ?record.address_texts(), "gone, its addresses are free");
                }
            }
        }
    }

    /// Takes everything away, for good: interfaces, records, addresses. One line for each thing.
    /// Nothing can be attached afterwards.
    pub async fn remove_all(&self) -> Vec<String> {
        self.inner.closing.store(true, Ordering::SeqCst);
        self.wait_for_requests().await;
        let mut removed = Vec::new();
        for record in self.all() {
            let lock = self.lock(&record.owner);
            let _busy = lock.lock().await;
            if record.owner == EXPOSE {
                // The table goes with the bridge, whatever is said here.
                let _ = self.inner.masquerade.all(BTreeSet::new()).await;
                self.take_off_bridge(&record.addresses).await;
            } else if let Err(error) = container::unplug(&self.inner.netlink, &record.host_interface).await {
                tracing::warn!(%error, "an interface is left");
            }
            self.release(&record).await;
            removed.push(format!("{}: {}", record.target, record.address_texts().join(" ")));
        }
        removed
    }

    /// Lets those end that began before the closing; one that waits for the mesh is not waited for.
    async fn wait_for_requests(&self) {
        let locks = self.inner.locks.all();
        let all = async {
            for lock in locks {
                drop(lock.lock().await);
            }
        };
        // Too late: it finds the router stopped.
        let _ = tokio::time::timeout(REQUESTS_END, all).await;
    }

    fn all(&self) -> Vec<Record> {
        self.records().values().cloned().collect()
    }

    async fn mend(&self, record: &Record, thorough: bool) -> Fate {
        let lock = self.lock(&record.owner);
        let _busy = lock.lock().await;
        if self.record(&record.owner).as_ref() != Some(record) {
            // It was changed while we waited.
            return Fate::Kept;
        }
        if record.owner == EXPOSE {
            if thorough && let Err(error) = self.put_on_bridge(&record.addresses).await {
                tracing::error!(%error, "the host's addresses cannot be restored");
            }
            return Fate::Kept;
        }
        let link = match self.inner.netlink.link(&record.host_interface).await {
            Ok(link) => link,
            Err(error) => {
                tracing::warn!(%error, target = %record.target, "cannot be looked at");
                return Fate::Kept;
            }
        };
        if record.held.is_some() && link.is_none() {
            // Whoever asked for it says when it comes back; until then it has gone (kubernetes K6).
            self.release(record).await;
            return Fate::Released;
        }
        let port = link.as_ref().is_some_and(|link| link.master.is_some());
        if port && !thorough {
            return Fate::Kept;
        }
        self.mend_by_target(record, port || record.held.is_some()).await
    }

    async fn mend_by_target(&self, record: &Record, there: bool) -> Fate {
        let found = match record.target.parse::<Target>() {
            Ok(target) => target.find(self.inner.host).await,
            Err(error) => Err(FindError::Gone(error.to_string())),
        };
        match found {
            Ok(found) if found.owner == *record.held.as_ref().map_or(&record.owner, |terms| &terms.namespace) => {
                let host_interface = container::host_interface(&found.namespace, &record.interface);
                let now = Record { host_interface, ..record.clone() };
                // A runtime may be taking it away at this moment: made again, it would stay for good.
                let make = if record.held.is_some() { Make::Nothing } else { Make::IfMissing };
                match self.plug_and_keep(&found.namespace, &now, Some(record), make).await {
                    Ok(()) => Fate::Restored,
                    Err(_) if record.held.is_some() && self.has_gone(&record.host_interface).await => {
                        self.release(record).await;
                        Fate::Released
                    }
                    Err(error) => {
                        tracing::error!(%error, target = %record.target, "cannot be attached again");
                        Fate::Kept
                    }
                }
            }
            // The name stands for something else now, or for nothing: but as long as the
            // interface is there, so is the namespace.
            _ if there => Fate::Kept,
            Ok(_) | Err(FindError::Gone(_)) => {
                self.release(record).await;
                Fate::Released
            }
            Err(FindError::Unusable(why)) => {
                tracing::debug!(target = %record.target, why, "waits");
                Fate::Kept
            }
        }
    }

    async fn has_gone(&self, host_interface: &str) -> bool {
        matches!(self.inner.netlink.link(host_interface).await, Ok(None))
    }

    async fn release(&self, record: &Record) {
        if let Err(error) = self.keep(&record.owner, None).await {
            tracing::warn!(%error, target = %record.target, "the record stays until the next start");
        }
        self.give_back(&record.owner, &record.addresses).await;
    }

    async fn delete_leftovers(&self) -> Result<(), NetlinkError> {
        let netlink = &self.inner.netlink;
        let known: BTreeSet<String> = self.records().values().map(|record| record.host_interface.clone()).collect();
        let bridge = netlink.need_link(&self.inner.bridge).await?;
        for port in netlink.bridge_ports(bridge.index).await? {
            let ours = port.kind.as_deref() == Some("veth") && port.name.starts_with("weft-");
            if ours && !known.contains(&port.name) {
                tracing::warn!(interface = port.name, "belongs to nothing that is attached: deleted");
                netlink.delete_link(&port.name).await?;
            }
        }
        Ok(())
    }

    /// Compares what was given on this host with what has it, and makes them one if that is wanted.
    ///
    /// # Errors
    /// If the router stops.
    pub async fn check(&self, repair: bool) -> Result<Audit, AttachError> {
        let mut audit = Audit::default();
        // The records first: what is attached meanwhile is given before it is recorded.
        let records = self.all();
        let others = self.inner.others.entries();
        let before: BTreeSet<&String> = others.iter().map(|(owner, _)| owner).collect();
        let allocations = self.inner.router.ipam().await?.allocations;
        let given: BTreeSet<(String, IpNet)> =
            allocations.into_iter().map(|(owner, address, _)| (owner, self.in_its_range(address))).collect();
        // A record may be from before the range was changed.
        let used = records
            .iter()
            .flat_map(|record| record.addresses.iter().map(|&at| (record.owner.clone(), self.in_its_range(at))));
        let used: BTreeSet<(String, IpNet)> = used.collect();
        for (owner, address) in given.difference(&used).filter(|(owner, _)| !before.contains(owner)) {
            // Somebody who holds the lock is about to make the record.
            let lock = self.lock(owner);
            let Ok(_free) = lock.try_lock() else {
                continue;
            };
            if self.record(owner).is_some_and(|record| record.has(address.addr())) {
                continue;
            }
            if self.inner.others.knows(owner) {
                continue;
            }
            audit.leaked.push((owner.clone(), *address));
            if repair {
                self.give_back(owner, &[*address]).await;
                audit.repaired.push(*address);
            }
        }
        for (owner, address) in used.difference(&given) {
            if self.record(owner).is_none_or(|record| !record.has(address.addr())) {
                continue;
            }
            audit.missing.push((owner.clone(), *address));
            if repair && self.inner.router.claim(owner, address.addr()).await?.is_ok() {
                audit.repaired.push(*address);
            }
        }
        self.check_others(&others, &given, repair, &mut audit).await?;
        Ok(audit)
    }

    /// What other parts of the router hold, and was not given.
    async fn check_others(
        &self,
        others: &[(String, IpAddr)],
        given: &BTreeSet<(String, IpNet)>,
        repair: bool,
        audit: &mut Audit,
    ) -> Result<(), AttachError> {
        let held: BTreeSet<(&String, IpAddr)> = given.iter().map(|(owner, net)| (owner, net.addr())).collect();
        for (owner, address) in others.iter().filter(|(owner, address)| !held.contains(&(owner, *address))) {
            // Given back since the list was made.
            if !self.inner.others.has(owner, *address) {
                continue;
            }
            let net = IpNet::from(*address);
            audit.missing.push((owner.clone(), net));
            if repair && self.inner.router.claim(owner, *address).await?.is_ok() {
                audit.repaired.push(net);
            }
        }
        Ok(())
    }

    async fn free_orphans(&self) {
        let Ok(summary) = self.inner.router.ipam().await else {
            return;
        };
        for (owner, address, _) in summary.allocations {
            let lock = self.lock(&owner);
            // Somebody who holds the lock is about to make the record.
            let Ok(_free) = lock.try_lock() else {
                continue;
            };
            let used = self.record(&owner).is_some_and(|record| record.has(address.addr()));
            if !used && !self.inner.others.knows(&owner) {
                tracing::info!(owner, %address, "was given but is used by nobody: freed");
                self.give_back(&owner, &[address]).await;
            }
        }
    }
}
