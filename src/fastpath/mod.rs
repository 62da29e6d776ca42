//! The fast path's IO: makes the kernel be as [`mesh_proto::control::fastpath`] decides, keeps it
//! so, and carries its probes.
//!
//! ```text
//!  router loop ─ FastHandle ─► plan (what shall be) ─┐                 ┌─► VXLAN devices, bridge ports
//!                          └─► probe frames ─────────┼─► keeper (task) ├─► forwarding entries
//!  router loop ◄─ Seen: probes, local addresses, ────┘        ▲        ├─► WireGuard: device, keys, peers
//!                 WireGuard's key                             │        └─► guard (nftables)
//!                                                             └── what the kernel says has happened
//! ```
//!
//! The plan is shared, not queued: the router never waits for the kernel, and however much
//! changes, there is never more to do than to make the kernel agree with the plan.

mod keeper;
mod plan;
mod seal;
mod sys;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_proto::control::fastpath::Kernel;
use mesh_proto::data::macs::Mac;
use mesh_proto::id::PeerId;
use mesh_proto::wire::fastpath::Seal;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

pub use crate::netlink::nft::Dropped;

use crate::netlink::nft::Guard;
use crate::netlink::wireguard::PrivateKey;
use crate::netlink::{Netlink, Result};
use keeper::Keeper;
use plan::Plan;

/// Frames to be sent that wait. When full they are dropped: the next probe follows soon.
const FRAMES: usize = 256;
/// What was seen and not yet looked at. When full the keeper waits: nothing of it is lost.
const SEEN: usize = 1024;

/// What the fast path is made of on this host.
#[derive(Debug, Clone)]
pub struct FastConfig {
    /// This peer.
    pub me: PeerId,
    /// Name of the bridge.
    pub bridge: String,
    /// Name of the TAP.
    pub tap: String,
    /// UDP port of the VXLAN devices.
    pub port: u16,
    /// Number of the virtual network.
    pub vni: u32,
    /// MTU of the overlay.
    pub mtu: u16,
    /// Whether VXLAN may go in the clear to anybody (fastpath F5).
    pub plain: bool,
    /// How it is sealed; none if it is not to be.
    pub seal: Option<SealConfig>,
}

/// What WireGuard is made with.
#[derive(Debug, Clone)]
pub struct SealConfig {
    /// Its UDP port.
    pub port: u16,
    /// Its key, unless an earlier run has left one in the kernel (fastpath F14).
    pub key: PrivateKey,
}

impl FastConfig {
    /// Names of the VXLAN devices: for IPv4 and IPv6 underlays, and for what is sealed.
    #[must_use]
    pub fn devices(bridge: &str) -> [String; 3] {
        ["vx4", "vx6", "vxs"].map(|device| format!("{bridge}-{device}"))
    }

    /// Name of WireGuard's device.
    #[must_use]
    pub fn wireguard(bridge: &str) -> String {
        format!("{bridge}-wg")
    }

    /// Name of the table in the packet filter.
    #[must_use]
    pub fn table(bridge: &str) -> String {
        format!("{bridge}-guard")
    }

    /// The number of a network's VXLAN, which all its peers come to: 24 bits of FNV-1a over its
    /// name, never 0.
    #[must_use]
    pub fn vni_of(network: &str) -> u32 {
        let hash =
            network.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        ((hash >> 24) ^ (hash & 0x00ff_ffff)).max(1)
    }

    /// The number of what is sealed: another one, for the kernel has one device of a number, a port and a
    /// family. Never 0.
    #[must_use]
    pub const fn sealed_vni(vni: u32) -> u32 {
        match vni ^ 0x0080_0000 {
            0 => 1,
            other => other,
        }
    }
}

/// What the keeper sees.
#[derive(Debug)]
pub enum Seen {
    /// A frame of the probes' EtherType.
    Probe(Vec<u8>),
    /// A local MAC address came, or went.
    Local(Mac, bool),
    /// The kernel has WireGuard with that key and port now, or has it no more.
    Seal(Option<Seal>),
}

/// The router's hold on the fast path. Clones share it.
#[derive(Debug, Clone)]
pub struct FastHandle {
    shared: Arc<Shared>,
    frames: mpsc::Sender<Vec<u8>>,
}

#[derive(Debug)]
struct Shared {
    plan: Mutex<Plan>,
    changed: Notify,
    /// For its counters only; the keeper has its own.
    guard: Guard,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl FastHandle {
    /// Makes the devices and the guard and begins to keep them. Of what an earlier run left, only
    /// what is sent to addresses that `keeps` is true of goes on. Needs a Tokio runtime around it.
    ///
    /// # Errors
    /// If the kernel lacks VXLAN or nftables, or refuses; then nothing is left.
    pub async fn start(
        config: FastConfig,
        netlink: Netlink,
        keeps: impl Fn(IpAddr) -> bool,
    ) -> Result<(Self, mpsc::Receiver<Seen>)> {
        let bridge = config.bridge.clone();
        match Self::begin(config, netlink.clone(), keeps).await {
            Ok(started) => Ok(started),
            Err(error) => {
                remove(&netlink, &bridge).await;
                Err(error)
            }
        }
    }

    async fn begin(
        config: FastConfig,
        netlink: Netlink,
        keeps: impl Fn(IpAddr) -> bool,
    ) -> Result<(Self, mpsc::Receiver<Seen>)> {
        let guard = keeper::guard(&config)?;
        let (seen_in, seen) = mpsc::channel(SEEN);
        let (frames, frames_out) = mpsc::channel(FRAMES);
        let shared = Arc::new(Shared { plan: Mutex::default(), changed: Notify::new(), guard, task: Mutex::default() });
        let keeper = Keeper::start(config, netlink, shared.clone(), seen_in, frames_out, keeps).await?;
        *shared.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(tokio::spawn(keeper.run()));
        Ok((Self { shared, frames }, seen))
    }

    /// Takes a decision of the machine; it is in force within milliseconds.
    pub fn apply(&self, change: Kernel) {
        self.shared.plan().apply(change);
        self.shared.changed.notify_one();
    }

    /// Puts a frame into the bridge, as if the host had sent it.
    pub fn send(&self, frame: Vec<u8>) {
        // Full means that the keeper is busy: a probe more would help nobody.
        let _ = self.frames.try_send(frame);
    }

    /// What the guard has dropped; nothing if it is not there for the moment.
    #[must_use]
    pub fn dropped(&self) -> Dropped {
        self.shared.guard.dropped().unwrap_or_default()
    }

    /// Ends the keeper. What is in the kernel stays.
    pub async fn stop(&self) {
        let task = self.shared.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            // Cancelled, as wanted.
            let _ = task.await;
        }
    }
}

impl Shared {
    fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes everything of a fast path out of the kernel, whoever made it; fine if there is nothing.
pub async fn remove(netlink: &Netlink, bridge: &str) {
    // VXLAN before what it goes by.
    for name in FastConfig::devices(bridge).into_iter().chain([FastConfig::wireguard(bridge)]) {
        if let Err(error) = netlink.delete_link(&name).await {
            tracing::error!(%error, "an interface is left; delete it by hand (ip link del {name})");
        }
    }
    let table = FastConfig::table(bridge);
    let removed = Guard::new(&table, bridge, "", 0).and_then(|guard| guard.remove());
    if let Err(error) = removed {
        // A kernel without nftables has nothing to remove.
        tracing::debug!(%error, table, "the guard could not be looked for");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_numbers_of_24_bits() {
        for name in ["weft", "", "a", "another network"] {
            let vni = FastConfig::vni_of(name);
            let sealed = FastConfig::sealed_vni(vni);
            assert!((1..1 << 24).contains(&vni) && (1..1 << 24).contains(&sealed), "{name}: {vni}, {sealed}");
            assert_ne!(vni, sealed);
        }
        assert_ne!(FastConfig::vni_of("weft"), FastConfig::vni_of("weft2"));
    }
}
