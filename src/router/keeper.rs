//! Follows the host: what the mesh is told of it, and what the router made on it.
//!
//! ```text
//!   netlink notices ─┐
//!   new settings ────┼─► look ─┬─ addresses changed ─► the mesh is told
//!   a slow timer ────┘         ├─ interfaces' MTU changed ─► the path MTU search is told
//!                              └─ bridge or TAP is not as it was made ─► put right, containers replugged
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use mesh_proto::handover::Command;
use tokio::sync::watch;

use super::devices::{Made, Mended};
use super::host::{self, Sizes};
use crate::config::Settings;
use crate::control::api::Api;
use crate::logging::rfc3339;
use crate::netlink::{Monitor, Netlink, NetlinkError, Topic};

/// Changes come in bursts: what comes within this time is looked at once.
const BURST: Duration = Duration::from_millis(100);
/// How often is looked without any notice, in case one was missed.
const LOOK: Duration = Duration::from_secs(30);
/// How soon is looked again after something failed.
const RETRY: Duration = Duration::from_secs(1);
/// When interfaces are changed again so soon after they were put right, somebody insists.
const CALM: Duration = Duration::from_secs(10);
/// How often interfaces are put right at once; against somebody who insists, after [`CALM`] each.
const AT_ONCE: u32 = 8;
/// Name of the problem in `status`.
const INTERFACES: &str = "interfaces";

/// What follows the host.
#[derive(Debug)]
pub(super) struct Keeper {
    /// The host's network.
    pub(super) netlink: Netlink,
    /// Bridge and TAP.
    pub(super) made: Made,
    /// The router.
    pub(super) api: Api,
    /// The configuration as it is now.
    pub(super) settings: watch::Receiver<Settings>,
    /// What the mesh was told last.
    pub(super) endpoints: Vec<SocketAddr>,
    /// Largest datagram worth trying, as the data thread was told last.
    pub(super) payload_max: u16,
}

/// What went on so far.
#[derive(Debug, Default)]
struct Memory {
    /// Times that interfaces were put right without [`CALM`] in between.
    mended: u32,
    last: Option<tokio::time::Instant>,
    complaint: Option<String>,
    blind: bool,
}

impl Keeper {
    /// Until the router stops.
    pub(super) async fn run(mut self) {
        let mut memory = Memory::default();
        let mut monitor = None;
        loop {
            // Subscribed before the look, so that no change falls between the two.
            if monitor.is_none() {
                monitor = self.subscribe();
            }
            let seen = self.look(&mut memory).await;
            let kept = self.keep(&mut memory).await;
            let patience = if seen && kept && monitor.is_some() { LOOK } else { RETRY };
            if memory.mended >= AT_ONCE {
                tokio::time::sleep(CALM).await;
            }
            tokio::select! {
                () = burst(&mut monitor) => {}
                changed = self.settings.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(patience) => {}
            }
        }
    }

    fn subscribe(&self) -> Option<Monitor> {
        let topics = [Topic::Links, Topic::Addresses, Topic::Routes];
        self.netlink
            .monitor(&topics)
            .inspect_err(|error| tracing::debug!(%error, "changes of the host are looked for instead"))
            .ok()
    }

    /// Tells what changed of where this host can be dialled, and of how much its interfaces carry;
    /// false if it cannot be seen.
    async fn look(&mut self, memory: &mut Memory) -> bool {
        let settings = self.settings.borrow_and_update().clone();
        let found = match self.see(&settings).await {
            Ok((endpoints, sizes)) => {
                if sizes.payload_max != self.payload_max {
                    self.payload_max = sizes.payload_max;
                    tracing::info!(bytes = self.payload_max, "the largest datagram worth trying changed");
                    self.api.data.command(Command::PayloadMax(self.payload_max));
                }
                endpoints
            }
            Err(error) => {
                if !std::mem::replace(&mut memory.blind, true) {
                    tracing::warn!(%error, "the host's addresses cannot be looked at");
                }
                return false;
            }
        };
        memory.blind = false;
        if found != self.endpoints {
            tracing::info!(addresses = ?found, "the host's addresses changed");
            self.endpoints.clone_from(&found);
            // A router that stops needs no addresses.
            let _ = self.api.router.set_endpoints(found).await;
        }
        true
    }

    async fn see(&self, settings: &Settings) -> Result<(Vec<SocketAddr>, Sizes), NetlinkError> {
        let sizes = host::sizes(&self.netlink, settings, self.api.info.sealed).await?;
        Ok((host::endpoints(&self.netlink, settings).await?, sizes))
    }

    /// Puts the interfaces right; false if that does not work.
    async fn keep(&self, memory: &mut Memory) -> bool {
        let (complaint, fine) = match self.made.mend().await {
            Ok(mended) => (self.tell(mended, memory).await, true),
            Err(error) => (Some(format!("{error:#}")), false),
        };
        if complaint != memory.complaint {
            if let Some(text) = &complaint {
                tracing::error!("{text}");
            }
            let _ = self.api.router.set_concern(INTERFACES, complaint.clone()).await;
            memory.complaint = complaint;
        }
        fine
    }

    /// Says what was put right, and puts back what was on a bridge that was away. What it returns is
    /// wrong for as long as somebody insists.
    async fn tell(&self, mended: Mended, memory: &mut Memory) -> Option<String> {
        let now = tokio::time::Instant::now();
        let calm = memory.last.is_none_or(|last| now - last > CALM * 2);
        if mended.what.is_empty() {
            memory.mended = if calm { 0 } else { memory.mended };
            return memory.complaint.clone().filter(|_| !calm);
        }
        memory.mended = if calm { 1 } else { memory.mended + 1 };
        memory.last = Some(now);
        let text = format!("put right: {}", mended.what);
        tracing::warn!("{text}");
        let info = &self.api.info;
        self.api.events.push(rfc3339(info.clock.wall(info.clock.now())), "interfaces", text);
        if mended.bridge_was_away {
            self.api.attachments.restore().await;
        }
        (memory.mended >= AT_ONCE).then(|| {
            format!("somebody changes the router's interfaces again and again ({}): find out who", mended.what)
        })
    }
}

/// Until something changed and the burst of changes is over; for ever without a monitor.
async fn burst(monitor: &mut Option<Monitor>) {
    let Some(open) = monitor else { return std::future::pending().await };
    if let Err(error) = open.next().await {
        tracing::debug!(%error, "subscribing again");
        *monitor = None;
        return;
    }
    tokio::time::sleep(BURST).await;
    open.skip();
}
