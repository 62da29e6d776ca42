//! The kernel's network configuration, by netlink, in this process: nothing is shelled out.
//!
//! ```text
//!   Netlink ─┬─ link.rs       interfaces: find, bridge, TAP as a port, veth, MTU, MAC, up, delete
//!            ├─ tunnel.rs     a VXLAN device to one other host
//!            ├─ address.rs    addresses and routes of an interface, and those of the host
//!            ├─ filter.rs     forward chains of nftables, a few rules in them
//!            ├─ monitor.rs    what changes, told by the kernel
//!            ├─ sysctl.rs     the few settings that have no netlink attribute (/proc/sys/net)
//!            ├─ netns.rs      namespaces: open, identify, run inside
//!            ├─ vxlan.rs      VXLAN devices as ports of the bridge
//!            ├─ wireguard.rs  WireGuard devices, their keys and peers
//!            └─ container.rs  a container's interface, plugged into the bridge and out again
//!
//!   raw.rs ─┬─ fdb.rs         forwarding entries, thousands at a time
//!           └─ nft/           tables of our own: the guard in front of the VXLAN port, that of
//!                             the bridge's ports, what is translated
//! ```
//!
//! Every call is idempotent by meaning: what is there already is adopted, what is gone already is
//! fine. A [`Netlink`] is tied to the namespace in which it was opened, whatever thread uses it.

mod address;
pub mod container;
mod error;
pub mod fdb;
pub mod filter;
mod link;
mod monitor;
pub mod netns;
pub mod nft;
mod raw;
mod sysctl;
mod tunnel;
mod vxlan;
pub mod wireguard;

use std::{fmt, io, sync::Arc};

use tokio::{
    sync::{Mutex, MutexGuard},
    task::JoinHandle,
};

use self::error::Context as _;
pub use self::{
    address::{Route, RouteTo, link_local},
    error::{NetlinkError, Result},
    link::{ALIAS_MAX, Link, Mac, VethPeer},
    monitor::{FdbChange, Monitor, Notice, Topic},
    netns::{NetNs, NetNsId},
    sysctl::forward,
    vxlan::{Vxlan, VxlanBy},
};

/// A netlink connection to one network namespace. Clones share it.
#[derive(Clone)]
pub struct Netlink {
    /// For one request at a time: the kernel refuses a second listing while one is under way, and
    /// the answers to a hundred requests at once would overrun what the socket holds. Who waits
    /// for one that is lost waits for good.
    socket: Arc<Mutex<rtnetlink::Handle>>,
    // Where /proc/sys/net is to be written; `None` is the namespace of the process.
    namespace: Option<Arc<NetNs>>,
    // Ends the reader of the socket with the last clone.
    _reader: Arc<Reader>,
}

struct Reader(JoinHandle<()>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = self.namespace.as_ref().map_or("current", |ns| ns.label());
        f.debug_struct("Netlink").field("namespace", &namespace).finish_non_exhaustive()
    }
}

impl Netlink {
    /// Connects to the namespace of the process. Needs a Tokio runtime around it.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn open() -> Result<Self> {
        Self::connect(None)
    }

    /// Connects to another namespace. Needs a Tokio runtime around it.
    ///
    /// # Errors
    /// If the namespace cannot be entered or the socket cannot be opened.
    pub fn open_in(namespace: &NetNs) -> Result<Self> {
        let namespace = Arc::new(namespace.try_clone()?);
        Self::connect(Some(namespace))
    }

    fn connect(namespace: Option<Arc<NetNs>>) -> Result<Self> {
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|_| NetlinkError::other("netlink", "connect", "no Tokio runtime here"))?;
        // The namespace of a netlink socket is that of the thread that makes it.
        let open = || -> io::Result<_> {
            let _guard = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection()?;
            Ok((connection, handle))
        };
        let (connection, handle) = match &namespace {
            None => open(),
            Some(ns) => ns.run(open)?,
        }
        .context("netlink", "open the socket")?;
        let reader = Arc::new(Reader(runtime.spawn(connection)));
        Ok(Self { socket: Arc::new(Mutex::new(handle)), namespace, _reader: reader })
    }

    /// The socket, until it is dropped: with the statement that asks it, in most cases.
    async fn socket(&self) -> MutexGuard<'_, rtnetlink::Handle> {
        self.socket.lock().await
    }

    /// Runs asynchronous netlink work inside a namespace from a synchronous caller, on a thread
    /// and a runtime of its own.
    ///
    /// # Errors
    /// As [`Netlink::open_in`], and what the work returns.
    pub fn block_on_in<T: Send>(namespace: &NetNs, work: impl AsyncFnOnce(Self) -> Result<T> + Send) -> Result<T> {
        namespace.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("netlink", "start a runtime")?;
            runtime.block_on(async { work(Self::open_in(namespace)?).await })
        })?
    }
}
