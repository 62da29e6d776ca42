//! Configuration of a router: flags over environment over file over defaults.
//!
//! ```text
//!  flags ──┐
//!  WEFT_* ─┼─► gather ─► key → (values, where from) ─► Settings::parse ─► Settings
//!  file ───┘                                     └───► every mistake, at once
//! ```
//!
//! Every flag of `weft up` is a key of the file under the same name, and a variable `WEFT_NAME`
//! of the environment. A list given at one level replaces the list of the level below it.

mod gather;
mod parse;
mod sources;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use mesh_proto::handover::Suite;
use mesh_proto::id::PeerId;

pub use gather::{Gathered, Given, KEYS, Key, Source, gather};
pub use parse::{default_v6_range, host_port, peer};
pub use sources::Sources;

/// UDP port of control and sleeve, unless told otherwise.
pub const DEFAULT_PORT: u16 = 6783;
/// Where the API socket is, unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/weft/weft.sock";
/// Where the durable state is, unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/weft";
/// Name of the bridge, unless told otherwise.
pub const DEFAULT_BRIDGE: &str = "weft";
/// Name of the network, unless told otherwise.
pub const DEFAULT_NETWORK: &str = "weft";
/// How long a peer may be silent before it is removed from the address space, unless told otherwise.
pub const DEFAULT_DEAD_AFTER: Duration = Duration::from_secs(3600);
/// How long the data thread looks on before it sleeps, unless told otherwise.
pub const DEFAULT_BUSY_POLL: Duration = Duration::from_micros(100);
/// Domain of the mesh's names, unless told otherwise.
pub const DEFAULT_DNS_DOMAIN: &str = "weft.local";
/// File that names the host's resolvers, unless told otherwise.
pub const DEFAULT_RESOLV_CONF: &str = "/etc/resolv.conf";
/// IPv4 range of containers, unless told otherwise.
pub const DEFAULT_RANGE_V4: &str = "10.32.0.0/12";

/// All that a router is told before it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of this peer, for people.
    pub name: String,
    /// Name of the network.
    pub network: String,
    /// Peers to dial, as `HOST[:PORT]`.
    pub peers: Vec<String>,
    /// Address to bind; `None` binds every address of both families.
    pub listen: Option<IpAddr>,
    /// UDP port of control and sleeve.
    pub port: u16,
    /// Addresses at which other peers can dial this one; empty: those of the host's interfaces.
    pub advertise: Vec<SocketAddr>,
    /// Address ranges of the network, at most one a family.
    pub ranges: Vec<IpNet>,
    /// Whether the ranges were given (then an overlap with the host's routes is a warning).
    pub ranges_given: bool,
    /// How the address space is founded.
    pub ipalloc_init: IpallocInit,
    /// After how long a silence a peer is removed from the address space; `None`: never.
    pub dead_after: Option<Duration>,
    /// File that holds the network secret.
    pub secret_file: Option<PathBuf>,
    /// Directory of the durable state.
    pub data_dir: PathBuf,
    /// Path of the API socket.
    pub socket: PathBuf,
    /// Where Prometheus metrics are served, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Path of the socket at which a Docker engine finds its drivers, if it shall.
    pub docker_socket: Option<PathBuf>,
    /// Name of the bridge; the TAP is named after it.
    pub bridge: String,
    /// MTU of the overlay.
    pub mtu: Mtu,
    /// How long the data thread goes on looking for packets that come one soon after the other; zero: not
    /// at all.
    pub busy_poll: Duration,
    /// Whether peers that gossip tells of are dialled.
    pub discovery: bool,
    /// Whether the kernel's VXLAN carries frames where it can.
    pub fast_path: bool,
    /// Networks in which frames need no encryption, though the network has a secret.
    pub trusted_subnets: Vec<IpNet>,
    /// Where names are answered; empty: nowhere.
    pub dns_listen: Vec<SocketAddr>,
    /// Domain of the mesh's names, in small letters and without a dot at its end.
    pub dns_domain: String,
    /// File that names the host's resolvers.
    pub resolv_conf: PathBuf,
    /// Whether `weft up` returns once the router is ready.
    pub detach: bool,
    /// Protection of user frames in a network with a secret.
    pub cipher: Cipher,
    /// How much is logged.
    pub log_level: LogLevel,
    /// How log lines are written.
    pub log_format: LogFormat,
}

/// How the address space of a new network is founded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpallocInit {
    /// By a peer to which none was named, or by those that were named to each other.
    Auto,
    /// By so many peers, of which a majority is enough.
    Consensus(usize),
    /// By these peers; each knows it at once.
    Seed(Vec<PeerId>),
    /// By others.
    Observer,
}

impl fmt::Display for IpallocInit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Consensus(peers) => write!(f, "consensus={peers}"),
            Self::Seed(peers) => {
                let peers: Vec<String> = peers.iter().map(ToString::to_string).collect();
                write!(f, "seed={}", peers.join(","))
            }
            Self::Observer => f.write_str("observer"),
        }
    }
}

/// MTU of the overlay's interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mtu {
    /// The underlay's MTU less the overhead of sleeve.
    Auto,
    /// So many bytes of IP packet.
    Fixed(u16),
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(bytes) => write!(f, "{bytes}"),
        }
    }
}

/// Which ciphers a router offers to its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// All of them, the fastest of this machine first.
    Auto,
    /// This one only.
    Only(Suite),
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Only(suite) => suite.name(),
        })
    }
}

impl Cipher {
    /// The suites offered, best first, in a network with a secret.
    #[must_use]
    pub fn suites(self) -> Vec<Suite> {
        match self {
            Self::Only(suite) => vec![suite],
            Self::Auto if aes_in_hardware() => {
                vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305, Suite::Nacl]
            }
            Self::Auto => vec![Suite::ChaCha20Poly1305, Suite::Nacl],
        }
    }
}

/// AES and carry-less multiplication in hardware: without both, ChaCha20 is faster and AES may
/// leak its key through the cache.
fn aes_in_hardware() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// The operator must act.
    Error,
    /// Something is degraded.
    Warn,
    /// The mesh changed.
    Info,
    /// Why it changed.
    Debug,
    /// Every step.
    Trace,
}

impl LogLevel {
    /// The word of the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace]
            .into_iter()
            .find(|level| level.name() == text)
            .ok_or_else(|| "expected error, warn, info, debug or trace".to_owned())
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// The word of the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("expected text or json".to_owned()),
        }
    }
}

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The flag, variable or key, with its value, as it was written.
    pub what: String,
    /// What is wrong with it and what to do.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

/// Every mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl Settings {
    /// Every key with its value as text, in the order of [`KEYS`]: two settings can be compared by
    /// it, and the difference be shown.
    #[must_use]
    pub fn values(&self) -> Vec<(&'static str, String)> {
        let list = |values: &[String]| values.join(", ");
        let texts = |values: &[SocketAddr]| list(&values.iter().map(ToString::to_string).collect::<Vec<_>>());
        let nets = |values: &[IpNet]| list(&values.iter().map(ToString::to_string).collect::<Vec<_>>());
        let path = |path: &Path| path.display().to_string();
        let none = || "none".to_owned();
        vec![
            ("name", self.name.clone()),
            ("network", self.network.clone()),
            ("peer", list(&self.peers)),
            ("listen", self.listen.map_or_else(|| "every address".to_owned(), |address| address.to_string())),
            ("port", self.port.to_string()),
            ("advertise", texts(&self.advertise)),
            ("range", nets(&self.ranges)),
            ("ipalloc-init", self.ipalloc_init.to_string()),
            ("dead-after", self.dead_after.map_or_else(|| "never".to_owned(), |time| format!("{}s", time.as_secs()))),
            ("secret-file", self.secret_file.as_deref().map_or_else(none, path)),
            ("data-dir", path(&self.data_dir)),
            ("socket", path(&self.socket)),
            ("metrics", self.metrics.map_or_else(none, |address| address.to_string())),
            ("docker-socket", self.docker_socket.as_deref().map_or_else(none, path)),
            ("bridge", self.bridge.clone()),
            ("mtu", self.mtu.to_string()),
            ("cipher", self.cipher.to_string()),
            ("busy-poll", self.busy_poll.as_micros().to_string()),
            ("no-discovery", (!self.discovery).to_string()),
            ("no-fast-path", (!self.fast_path).to_string()),
            ("trusted-subnet", nets(&self.trusted_subnets)),
            ("dns-listen", texts(&self.dns_listen)),
            ("dns-domain", self.dns_domain.clone()),
            ("dns-resolv-conf", path(&self.resolv_conf)),
            ("detach", self.detach.to_string()),
            ("log-level", self.log_level.name().to_owned()),
            ("log-format", self.log_format.name().to_owned()),
        ]
    }

    /// The name of the TAP of this router.
    #[must_use]
    pub fn tap(&self) -> String {
        format!("{}-tap", self.bridge)
    }
}
