//! Connecting a container as its record says, and what must be there before.

use super::{AttachError, Attachments, Make, Record};
use crate::netlink::container::{self, Plug};
use crate::netlink::{NetNs, Route};

impl Attachments {
    /// Connects, and writes to disk what is connected. Where that fails, it is looked after as before.
    pub(super) async fn plug_and_keep(
        &self,
        namespace: &NetNs,
        record: &Record,
        before: Option<&Record>,
        make: Make,
    ) -> Result<(), AttachError> {
        let result = match self.prepare(record).await {
            Ok(()) => self.plug_guarded(namespace, record, before, make).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            let before = before.filter(|old| old.host_interface == record.host_interface);
            match before.and_then(Record::port) {
                // What is there already is looked at, whatever went wrong now.
                Some(port) => _ = self.inner.guard.protect(port).await,
                None => self.inner.guard.release(&record.host_interface).await,
            }
            match before.and_then(Record::masqueraded) {
                Some(one) => _ = self.inner.masquerade.begin(one).await,
                None => self.inner.masquerade.end(&record.host_interface).await,
            }
        }
        result
    }

    /// Before there is an interface that anything could be sent by (guard P6).
    async fn prepare(&self, record: &Record) -> Result<(), AttachError> {
        if let Some(port) = record.port() {
            self.inner.guard.protect(port).await.map_err(AttachError::Guard)?;
        }
        if let Some(one) = record.masqueraded() {
            self.inner.masquerade.begin(one).await.map_err(AttachError::Masquerade)?;
        }
        if record.is_translated() {
            // A host whose policy is to drop would else cut containers off, for as long as nobody lets them pass.
            self.inner.firewall.prepare().await;
            let bridge = self.inner.netlink.need_link(&self.inner.bridge).await?;
            self.inner.netlink.filter_bridged(&bridge).await?;
        }
        Ok(())
    }

    async fn plug_guarded(
        &self,
        namespace: &NetNs,
        record: &Record,
        before: Option<&Record>,
        make: Make,
    ) -> Result<(), AttachError> {
        let plugged = self.plug(namespace, record, make).await?;
        if before == Some(record) {
            return Ok(());
        }
        let kept = self.keep(&record.owner, Some(record.clone())).await;
        if kept.is_err() && !plugged {
            let undone = container::unplug(&self.inner.netlink, &record.host_interface).await;
            if let Err(error) = undone {
                tracing::warn!(%error, "an interface was left behind; it goes at the next start");
            }
        }
        kept
    }

    /// Connects a namespace as its record says; true if it was there already.
    async fn plug(&self, namespace: &NetNs, record: &Record, make: Make) -> Result<bool, AttachError> {
        let v4 = record.addresses.iter().any(|address| address.addr().is_ipv4());
        let mut routes = if v4 { vec![Route::MULTICAST_V4] } else { Vec::new() };
        let held = record.held.as_ref();
        routes.extend(held.into_iter().flat_map(|terms| &terms.routes));
        let plug = Plug {
            namespace,
            bridge: &self.inner.bridge,
            interface: &record.interface,
            mac: record.mac,
            mtu: u32::from(held.map_or(self.inner.mtu, |terms| terms.mtu)),
            addresses: &record.addresses,
            routes: &routes,
            hairpin: held.is_some_and(|terms| terms.hairpin),
            alias: held.map(|_| record.owner.as_str()),
            only_complete: make == Make::Nothing,
        };
        Ok(container::plug(&self.inner.netlink, &plug).await?.adopted)
    }
}
