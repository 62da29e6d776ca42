//! The lab: hosts, containers and the network between them on one machine, for the tests and for
//! `weft demo`. Nothing of the machine's own network is touched, and nothing is left behind.
//!
//! ```text
//!   container namespace ─ veth ─ bridge weft │ host namespace: router process   │
//!                                            │ eth0 = TAP, 10.99.0.1, fd99::1   ├─ wire (thread)
//!   container namespace ─ veth ─ bridge weft │ host namespace: router process   │
//! ```
//!
//! * Hosts and containers are anonymous network namespaces, held open by this process and named
//!   `/proc/PID/fd/N` to others; nothing is mounted. Root is not needed where the system lets a
//!   user make namespaces ([`enter_user_namespace`]).
//! * The underlay is a thread ([`wire`]) that can cut, lose, delay, reorder, duplicate, corrupt,
//!   limit sizes, translate addresses, and keep what it carries. Chance comes from one seed.
//! * Routers are child processes ([`router`]), ended with the lab.
//! * For measurements that thread would be the bottleneck: a [`CableLab`] joins hosts by veth pairs
//!   and leaves all to the kernel.

mod cable;
pub mod frame;
mod host;
mod nat;
pub mod raw;
pub mod router;
mod sys;
pub mod traffic;
mod userns;
pub mod wire;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use wire::{NatSetup, Wire};

pub use cable::{CableConfig, CableLab, Offloads};
pub use host::{Container, Host};
pub use nat::NatKind;
pub use userns::{enter_user_namespace, is_root};

/// A group of hosts behind one translator.
#[derive(Debug, Clone)]
pub struct NatConfig {
    /// How it translates.
    pub kind: NatKind,
    /// After how long without traffic it forgets a mapping.
    pub timeout: Duration,
    /// The hosts behind it, by index.
    pub hosts: Vec<usize>,
}

/// What the lab shall be.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Number of hosts, at most 200.
    pub hosts: usize,
    /// MTU of the hosts' interfaces.
    pub mtu: u32,
    /// Seed of all chance on the wire.
    pub seed: u64,
    /// Translators.
    pub nats: Vec<NatConfig>,
}

impl LabConfig {
    /// That many hosts on one network of MTU 1500.
    #[must_use]
    pub fn hosts(hosts: usize) -> Self {
        Self { hosts, mtu: 1500, seed: 1, nats: Vec::new() }
    }
}

/// A running lab. Dropping it ends the wire and deletes the directory.
#[derive(Debug)]
pub struct Lab {
    // First, so that it is dropped first: the wire owns the hosts' interfaces.
    wire: Wire,
    hosts: Vec<Host>,
    plans: Vec<host::Plan>,
    config: LabConfig,
    dir: Directory,
}

impl Lab {
    /// Makes the hosts and connects them.
    ///
    /// # Errors
    /// Without the right to make namespaces (see [`enter_user_namespace`]), or without
    /// `/dev/net/tun`.
    pub fn new(config: &LabConfig) -> io::Result<Self> {
        if config.hosts == 0 || config.hosts > 200 {
            let why = format!("a lab has 1 to 200 hosts, not {}", config.hosts);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let plans = host::plan(config);
        let mut hosts = Vec::with_capacity(config.hosts);
        let mut ports = Vec::with_capacity(config.hosts);
        for plan in &plans {
            let (host, port) = host::build(plan, &plans, config).map_err(io::Error::other)?;
            hosts.push(host);
            ports.push(port);
        }
        let nats: Vec<NatSetup> = config
            .nats
            .iter()
            .enumerate()
            .map(|(index, nat)| NatSetup {
                public: nat_public(index),
                gateway: host::gateway_mac(index),
                kind: nat.kind,
                timeout: nat.timeout,
            })
            .collect();
        let wire = Wire::start(config.seed, ports, &nats)?;
        Ok(Self { wire, hosts, plans, config: config.clone(), dir: Directory::new()? })
    }

    /// The network between the hosts.
    #[must_use]
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// A host.
    ///
    /// # Panics
    /// If there is no host of that index: a mistake of the caller.
    #[must_use]
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// All hosts.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Takes a host's network away, with all that is in it, and gives it a new one of the same addresses: what
    /// is left when a machine starts again. Its processes must have been ended before, for each holds what
    /// it is in.
    ///
    /// # Errors
    /// As [`Lab::new`].
    ///
    /// # Panics
    /// If there is no host of that index: a mistake of the caller.
    pub fn reboot(&mut self, index: usize) -> io::Result<()> {
        let (host, port) = host::build(&self.plans[index], &self.plans, &self.config).map_err(io::Error::other)?;
        self.wire.replace(index, port.tap);
        self.hosts[index] = host;
        Ok(())
    }

    /// Directory of the lab: logs, sockets and data of the routers.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir.path
    }

    /// Leaves the directory behind when the lab ends, for whoever wants to read the logs.
    pub fn keep_dir(&mut self) {
        self.dir.keep = true;
    }

    /// Hands a UDP datagram to a host as if another address of the underlay had sent it.
    ///
    /// # Errors
    /// If the datagram is too long.
    pub fn inject_datagram(
        &self,
        to: usize,
        source: std::net::SocketAddr,
        port: u16,
        payload: &[u8],
    ) -> io::Result<()> {
        self.wire.inject(to, self.datagram_to(to, source, port, payload)?);
        Ok(())
    }

    /// The same in two fragments, the first with so many bytes (a multiple of 8) from the UDP header
    /// on. Those of one `id` belong together.
    ///
    /// # Errors
    /// If the datagram is too long, or shorter than that.
    pub fn inject_fragments(
        &self,
        to: usize,
        source: std::net::SocketAddr,
        port: u16,
        payload: &[u8],
        id: u16,
        first: usize,
    ) -> io::Result<()> {
        let frame = self.datagram_to(to, source, port, payload)?;
        let cut = || io::Error::new(io::ErrorKind::InvalidInput, "datagram too short");
        for fragment in frame::fragments(&frame, id, first).ok_or_else(cut)? {
            self.wire.inject(to, fragment);
        }
        Ok(())
    }

    fn datagram_to(&self, to: usize, source: std::net::SocketAddr, port: u16, payload: &[u8]) -> io::Result<Vec<u8>> {
        let host = self.host(to);
        let destination = match source.ip() {
            IpAddr::V4(_) => IpAddr::V4(host.v4()),
            IpAddr::V6(_) => host.v6(),
        };
        let macs = (host::switch_mac(), host.mac());
        let destination = std::net::SocketAddr::new(destination, port);
        frame::build_datagram(macs, source, destination, payload)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "datagram too long"))
    }
}

/// Public address of a translator.
#[must_use]
pub fn nat_public(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 1, u8::try_from(index + 1).unwrap_or(0))
}

/// Waits until a condition holds; says whether it came to hold in time.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A directory of the lab's own under the system's temporary directory.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    keep: bool,
}

impl Directory {
    fn new() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("weft-lab-{}-{number}", process::id()));
        // A directory of a process that had this id and died is nobody's.
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&path)?,
        }
        Ok(Self { path, keep: false })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot delete the directory");
        }
    }
}
