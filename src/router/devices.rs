//! Bridge and TAP: made or adopted, put right again, removed.

use std::fmt::Write as _;

use anyhow::Context as _;
use tokio::sync::watch;

use crate::config::Settings;
use crate::control::firewall::Firewall;
use crate::data::{Tap, Trial, open_tap, renew_tap};
use crate::netlink::{Link, Mac, Netlink};

/// How the hardware address of every bridge of a router begins.
const OURS: [u8; 2] = [0x02, 0x62];

/// Bridge and TAP of a router.
#[derive(Debug, Clone)]
pub(super) struct Devices {
    netlink: Netlink,
    bridge: String,
    tap: String,
    mtu: u32,
}

/// The same, made.
#[derive(Debug)]
pub(super) struct Made {
    devices: Devices,
    mac: Mac,
    /// The data thread's end of the TAP.
    end: Tap,
}

/// What was put right.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mended {
    /// What had been wrong; empty if nothing.
    pub(super) what: String,
    /// The bridge was away: ports and addresses may be off it.
    pub(super) bridge_was_away: bool,
}

impl Mended {
    fn note(&mut self, what: &str) {
        let comma = if self.what.is_empty() { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(self.what, "{comma}{what}");
    }
}

impl Devices {
    /// Nothing is made yet. `mtu` is that of the overlay.
    pub(super) fn new(netlink: Netlink, settings: &Settings, mtu: u16) -> Self {
        Self { netlink, bridge: settings.bridge.clone(), tap: settings.tap(), mtu: mtu.into() }
    }

    /// Whether there is a bridge of an earlier run.
    pub(super) async fn exist(&self) -> anyhow::Result<bool> {
        Ok(self.netlink.link(&self.bridge).await?.is_some())
    }

    /// Makes or adopts the bridge and puts a new TAP into it. The second is for the data thread.
    pub(super) async fn make(&self, id: [u8; 16]) -> anyhow::Result<(Made, Tap)> {
        // A function of the peer, so that the host keeps its address across restarts.
        let [a, b] = OURS;
        let mac = [a, b, id[0], id[1], id[2], id[3]];
        self.refuse_foreign_bridge().await?;
        let bridge = self.netlink.ensure_bridge(&self.bridge, self.mtu, mac).await?;
        let trial = tokio::task::spawn_blocking(Trial::run).await.context("the self test ended")?;
        let tap = open_tap(&self.tap, &trial)?;
        self.netlink.enslave(&self.tap, &bridge, self.mtu).await?;
        let end = tap.try_clone().context("the TAP cannot be shared")?;
        Ok((Made { devices: self.clone(), mac, end }, tap))
    }

    /// What somebody else made is not changed, and not removed by `weft down`.
    async fn refuse_foreign_bridge(&self) -> anyhow::Result<()> {
        match self.netlink.link(&self.bridge).await? {
            Some(link)
                if link.kind.as_deref() == Some("bridge") && !link.mac.is_some_and(|mac| mac.starts_with(&OURS)) =>
            {
                anyhow::bail!(
                    "the bridge `{0}` was not made by Weft: choose another name with --bridge, or delete it (ip link del {0})",
                    self.bridge
                )
            }
            _ => Ok(()),
        }
    }

    /// Removes both, and what lets their frames pass the host's filter.
    pub(super) async fn remove(&self) {
        Firewall::new(&self.bridge, watch::channel(false).1).remove().await;
        crate::fastpath::remove(&self.netlink, &self.bridge).await;
        crate::control::guard::remove(&self.bridge);
        crate::control::masquerade::remove(&self.bridge);
        crate::control::services::remove(&self.bridge);
        for name in [&self.tap, &self.bridge] {
            if let Err(error) = self.netlink.delete_link(name).await {
                tracing::error!(%error, "an interface is left; delete it by hand (ip link del {name})");
            }
        }
    }
}

impl Made {
    /// Looks whether both are as they were made, and puts right what somebody changed.
    ///
    /// # Errors
    /// What cannot be put right, and why.
    pub(super) async fn mend(&self) -> anyhow::Result<Mended> {
        let mut mended = Mended::default();
        let bridge = self.mend_bridge(&mut mended).await?;
        self.mend_tap(&bridge, &mut mended).await?;
        Ok(mended)
    }

    async fn mend_bridge(&self, mended: &mut Mended) -> anyhow::Result<Link> {
        let Devices { netlink, bridge: name, mtu, .. } = &self.devices;
        let found = netlink.link(name).await?;
        let wrong = match &found {
            None => "was deleted",
            Some(link) if link.kind.as_deref() != Some("bridge") => "is something else now",
            Some(link) if !link.up => "was set down",
            Some(link) if link.mtu != *mtu => "had another MTU",
            Some(link) if link.mac != Some(self.mac) => "had another MAC address",
            Some(link) => return Ok(link.clone()),
        };
        let failed = || format!("the bridge `{name}` {wrong} and cannot be put back");
        let link = netlink.ensure_bridge(name, *mtu, self.mac).await.with_context(failed)?;
        mended.note(&format!("the bridge `{name}` {wrong}"));
        mended.bridge_was_away = found.is_none_or(|link| !link.up);
        Ok(link)
    }

    async fn mend_tap(&self, bridge: &Link, mended: &mut Mended) -> anyhow::Result<()> {
        let Devices { netlink, tap: name, mtu, .. } = &self.devices;
        let deleted = renew_tap(&self.end, name)
            .with_context(|| format!("the TAP `{name}` was deleted and cannot be made again"))?;
        let wrong = match netlink.link(name).await? {
            None => anyhow::bail!(
                "the TAP `{name}` was renamed or moved to another namespace: name it `{name}` again, or restart the router"
            ),
            Some(_) if deleted => "was deleted",
            Some(link) if link.master != Some(bridge.index) => "was out of the bridge",
            Some(link) if !link.up => "was set down",
            Some(link) if link.mtu != *mtu => "had another MTU",
            Some(_) => return Ok(()),
        };
        let failed = || format!("the TAP `{name}` {wrong} and cannot be put back");
        netlink.enslave(name, bridge, *mtu).await.with_context(failed)?;
        mended.note(&format!("the TAP `{name}` {wrong}"));
        Ok(())
    }
}
