//! The devices that the keeper makes, adopts and puts right.

use std::net::IpAddr;

use mesh_proto::control::fastpath::Remote;
use mesh_proto::data::macs::Mac;
use mesh_proto::wire::fastpath::ETHERTYPE;

use super::{Keeper, SEALED, place, problem, sys};
use crate::fastpath::seal::{Sealing, Up};
use crate::fastpath::{FastConfig, Seen};
use crate::netlink::fdb::FdbEdit;
use crate::netlink::{Link, Result, Vxlan, VxlanBy};

impl Keeper {
    /// Takes over what an earlier run left: its flows go on.
    pub(super) async fn inherit(&mut self, keeps: impl Fn(IpAddr) -> bool) -> Result<()> {
        for (at, name) in FastConfig::devices(&self.config.bridge).iter().enumerate() {
            self.devices[at] = self.netlink.link(name).await?.map(|link| link.index);
        }
        let entries = self.fdb.entries().map_err(|error| problem(&self.config.bridge, "list entries", error))?;
        let mut unwanted = Vec::new();
        for entry in entries {
            let (device, mac) = (entry.interface, entry.mac);
            let Some(ip) = entry.remote.filter(|_| self.devices.contains(&Some(device))) else { continue };
            let known = |sealing: &Sealing| sealing.knows(ip);
            if keeps(ip) && (place(ip) != SEALED || self.sealing.as_ref().is_some_and(known)) {
                let port = entry.remote_port.unwrap_or(self.config.port);
                self.installed.insert(Mac(mac), Remote { ip, port });
                self.inherited.insert(Mac(mac));
                self.inherited_from.insert(Mac(mac), ip);
                self.admitted.insert(ip);
            } else {
                unwanted.extend([FdbEdit::Unpin { port: device, mac }, FdbEdit::NoRemote { device, mac }]);
            }
        }
        let refused =
            self.fdb.apply(&unwanted).map_err(|error| problem(&self.config.bridge, "remove entries", error))?;
        match refused.into_iter().next() {
            Some((_, error)) => Err(problem(&self.config.bridge, "remove an entry that is wanted no more", error)),
            None => Ok(()),
        }
    }

    /// Makes the devices, or adopts those that are there.
    pub(super) async fn ensure_devices(&mut self) -> Result<()> {
        let bridge = self.netlink.need_link(&self.config.bridge).await?;
        if bridge.index != self.bridge {
            // Made again: the socket was bound to the one before.
            self.probes = sys::packet_socket(bridge.index, ETHERTYPE)
                .map_err(|error| problem(&bridge.name, "open a packet socket", error))?;
            self.bridge = bridge.index;
            self.install_guard()?;
        }
        match &mut self.sealing {
            Some(sealing) => _ = sealing.ensure(&self.netlink).await,
            None => _ = self.netlink.delete_link(&FastConfig::wireguard(&self.config.bridge)).await?,
        }
        for (at, name) in FastConfig::devices(&self.config.bridge).iter().enumerate() {
            // As it was made, and not as it is found later: one that somebody takes away meanwhile
            // would be taken for one that cannot be made.
            self.devices[at] = match self.vxlan(at, name) {
                Some(wanted) => self.ensure_device(at, &wanted, &bridge).await?,
                None => None,
            };
            if self.devices[at].is_none() {
                self.netlink.delete_link(name).await?;
            }
        }
        self.renew(&bridge).await?;
        self.tell().await;
        Ok(())
    }

    /// Its index; none where it cannot be.
    async fn ensure_device(&self, at: usize, wanted: &Vxlan<'_>, bridge: &Link) -> Result<Option<u32>> {
        match self.netlink.ensure_vxlan(wanted, bridge).await {
            Ok(link) => Ok(Some(link.index)),
            // A kernel without IPv6.
            Err(error) if at == 1 && matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::EPFNOSUPPORT)) => Ok(None),
            // Its interface went while it was being made: that is noticed.
            Err(_)
                if at == SEALED && self.netlink.link(&FastConfig::wireguard(&self.config.bridge)).await?.is_none() =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// WireGuard's device, while it stands.
    pub(super) fn up(&self) -> Option<Up> {
        self.sealing.as_ref().and_then(Sealing::up)
    }

    /// Tells the router when WireGuard has come or gone. What is sealed goes by it, or not at all.
    pub(super) async fn tell(&mut self) {
        let seal = self.up().map(|up| up.seal);
        if self.told != seal {
            self.told = seal;
            self.was_sealed = true;
            // Fails only when the router's loop has ended.
            let _ = self.seen.send(Seen::Seal(seal)).await;
        }
        // A new device knows nobody.
        self.shared.plan().mark_all();
    }

    /// What the device at that place shall be; none if it shall not be.
    pub(super) fn vxlan<'a>(&self, at: usize, name: &'a str) -> Option<Vxlan<'a>> {
        let (by, vni) = match at {
            0 | 1 if !self.config.plain => return None,
            0 => (VxlanBy::V4, self.config.vni),
            1 => (VxlanBy::V6, self.config.vni),
            _ => {
                let sealing = self.sealing.as_ref()?;
                let by = VxlanBy::Link { index: sealing.up()?.index, address: sealing.address() };
                (by, FastConfig::sealed_vni(self.config.vni))
            }
        };
        Some(Vxlan { name, by, vni, port: self.config.port, mtu: self.config.mtu.into() })
    }

    /// Looks whether everything stands, and mends what does not.
    pub(super) async fn check(&mut self) -> Result<()> {
        let stands = self.guard.stands(&self.admitted, self.owned.values());
        if !stands.map_err(|error| problem(&self.config.bridge, "look at the guard", error))? {
            self.install_guard()?;
            tracing::warn!("the guard of the VXLAN port was not whole: it was put back");
        }
        let names = FastConfig::devices(&self.config.bridge);
        let mut stand = true;
        if let Some(sealing) = &mut self.sealing
            && !sealing.stands(&self.netlink).await?
        {
            let before = sealing.up();
            let failed = sealing.ensure(&self.netlink).await;
            // Where it was not and is not, there is nothing else to put right for its sake.
            stand = before.is_none() && failed.is_some();
        }
        for (at, name) in names.iter().enumerate() {
            // What could not be made is not missed.
            if let Some(index) = self.devices[at]
                && let Some(wanted) = self.vxlan(at, name)
            {
                stand &= self.netlink.vxlan_stands(index, &wanted, self.bridge).await?;
            }
        }
        if stand {
            let bridge = self.netlink.need_link(&self.config.bridge).await?;
            return self.renew(&bridge).await;
        }
        tracing::warn!("somebody changed the devices of the fast path: they are put right");
        self.ensure_devices().await
    }
}
