//! Who takes part: builds hosts, tunnel and containers, and asks the tunnel what it is.

use std::{
    ffi::OsString,
    io,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::Child,
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use clap::ValueEnum;
use ipnet::IpNet;
use weft::{
    lab::{
        CableConfig, CableLab, Container,
        router::{Router, RouterConfig, write_secret},
        wait_until,
    },
    netlink::{Mac, NetNs, Netlink, VethPeer},
};

use super::{
    options::{Mode, Options},
    peers, rtt,
};

/// In the environment of a process that shall be `weft` and not the benchmark.
pub const ROUTER: &str = "PATH_BENCH_ROUTER";

const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const SECRET: &str = "path-benchmark-path-benchmark";
/// What VXLAN adds: outer IPv4, UDP and VXLAN headers, inner Ethernet header.
const VXLAN_OVERHEAD: u32 = 50;
/// Names in the namespaces of a contestant that Weft does not build.
const BRIDGE: &str = "br0";
const CONTAINER_LINK: &str = "eth0";

/// What carries the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Contestant {
    Raw,
    Vxlan,
    WeftFast,
    WeftPlain,
    WeftSealed,
    WeftChacha,
    WeftNacl,
    WeftRelayed,
    WireguardGo,
    Boringtun,
    Tinc,
    Vpncloud,
}

impl Contestant {
    /// In the order of the tables.
    pub(super) const ALL: &[Self] = &[
        Self::Raw,
        Self::Vxlan,
        Self::WeftFast,
        Self::WeftPlain,
        Self::WeftSealed,
        Self::WeftChacha,
        Self::WeftNacl,
        Self::WeftRelayed,
        Self::WireguardGo,
        Self::Boringtun,
        Self::Tinc,
        Self::Vpncloud,
    ];

    /// Its name, here and on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vxlan => "vxlan",
            Self::WeftFast => "weft-fast",
            Self::WeftPlain => "weft-plain",
            Self::WeftSealed => "weft-sealed",
            Self::WeftChacha => "weft-chacha",
            Self::WeftNacl => "weft-nacl",
            Self::WeftRelayed => "weft-relayed",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun",
            Self::Tinc => "tinc",
            Self::Vpncloud => "vpncloud",
        }
    }
}

/// A contestant that stands: two namespaces whose traffic it carries, and what it needs to.
pub(super) struct Standing {
    pub(super) contestant: Contestant,
    /// What it says of itself: carrier and cipher, or version.
    pub(super) said: String,
    /// Its processes, for their memory and idle time.
    pub(super) processes: Vec<u32>,
    // In the order in which they may be dropped: processes, containers, hosts.
    routers: Vec<Router>,
    children: Vec<Child>,
    containers: Vec<Container>,
    pub(super) hosts: CableLab,
    addresses: [IpAddr; 2],
}

impl Standing {
    /// Builds it and waits until traffic passes.
    pub(super) fn build(contestant: Contestant, options: &Options, mode: Mode, mtu: u32) -> anyhow::Result<Self> {
        let relayed = contestant == Contestant::WeftRelayed;
        // The ends of a relayed path are the first and the last of a row.
        let cables = if relayed { vec![(0, 1), (1, 2)] } else { vec![(0, 1)] };
        let config = CableConfig { hosts: cables.len() + 1, cables, mtu, offloads: mode.offloads() };
        let hosts = CableLab::new(&config).context("make the hosts")?;
        let mut built = Self {
            contestant,
            said: String::new(),
            processes: Vec::new(),
            routers: Vec::new(),
            children: Vec::new(),
            containers: Vec::new(),
            hosts,
            addresses: [0, 1].map(|end| IpAddr::V4(CableLab::address(0, end))),
        };
        match contestant {
            Contestant::Raw => built.said = "the network between the hosts itself, no containers".into(),
            Contestant::Vxlan => built.vxlan(mtu)?,
            Contestant::WeftFast => built.weft(options, "fast", "none")?,
            Contestant::WeftPlain => built.weft(options, "sleeve", "none")?,
            Contestant::WeftSealed => built.weft(options, "sleeve", "aes-256-gcm")?,
            Contestant::WeftChacha => built.weft(options, "sleeve", "chacha20-poly1305")?,
            Contestant::WeftNacl => built.weft(options, "sleeve", "nacl")?,
            Contestant::WeftRelayed => built.weft(options, "relay", "aes-256-gcm")?,
            Contestant::WireguardGo => peers::wireguard(&mut built, "wireguard-go", mtu)?,
            Contestant::Boringtun => peers::wireguard(&mut built, "boringtun-cli", mtu)?,
            Contestant::Tinc => peers::tinc(&mut built, mtu)?,
            Contestant::Vpncloud => peers::vpncloud(&mut built, mtu)?,
        }
        built.processes = built.routers.iter().filter_map(Router::pid).collect();
        built.processes.extend(built.children.iter().map(Child::id));
        let passes = || rtt::alone(built.end(0), built.far(1), Duration::from_millis(1)).is_ok();
        ensure!(wait_until(PATIENCE, passes), "no traffic passes within {PATIENCE:?}");
        Ok(built)
    }

    /// The namespace at one end of the path: a container, or the host itself.
    pub(super) fn end(&self, end: usize) -> &NetNs {
        self.containers.get(end).map_or_else(|| self.hosts.host(end), Container::namespace)
    }

    /// The namespace at one end of the path with its address.
    pub(super) fn far(&self, end: usize) -> (&NetNs, IpAddr) {
        (self.end(end), self.addresses[end])
    }

    /// The host at one end of the path.
    pub(super) fn end_host(&self, end: usize) -> usize {
        if end == 0 { 0 } else { self.hosts.hosts().len() - 1 }
    }

    /// Takes a process into its care; it is killed with the contestant.
    pub(super) fn keep(&mut self, child: Child) {
        self.children.push(child);
    }

    /// Traffic goes between the hosts themselves, to these addresses.
    pub(super) fn between_hosts(&mut self, addresses: [IpAddr; 2]) {
        self.addresses = addresses;
    }

    /// A container at each end, behind a bridge with the tunnel's device.
    pub(super) fn containers_behind(&mut self, device: &str, mtu: u32) -> anyhow::Result<()> {
        for end in [0, 1] {
            let container = Container::new(&format!("box{}", end + 1))?;
            let number = end as u8 + 1;
            let address = IpAddr::V4(Ipv4Addr::new(10, 32, 0, number));
            let mac = |kind: u8| -> Mac { [0x02, 0x6a, 0, 0, kind, number] };
            let peer = VethPeer { name: CONTAINER_LINK, mac: mac(1), namespace: Some(container.namespace()) };
            Netlink::block_on_in(self.hosts.host(self.end_host(end)), async |netlink: Netlink| {
                let bridge = netlink.ensure_bridge(BRIDGE, mtu, mac(2)).await?;
                netlink.enslave(device, &bridge, mtu).await?;
                let near = netlink.add_veth("box", mtu, &peer).await?;
                netlink.enslave(&near.name, &bridge, mtu).await.map(drop)
            })?;
            Netlink::block_on_in(container.namespace(), async |netlink: Netlink| {
                let link = netlink.need_link(CONTAINER_LINK).await?;
                netlink.add_address(&link, IpNet::new_assert(address, 24)).await?;
                netlink.set_up(&link).await
            })?;
            self.containers.push(container);
            self.addresses[end] = address;
        }
        Ok(())
    }

    fn vxlan(&mut self, mtu: u32) -> anyhow::Result<()> {
        let inner = mtu - VXLAN_OVERHEAD;
        for end in [0, 1] {
            Netlink::block_on_in(self.hosts.host(end), async |netlink: Netlink| {
                netlink.add_vxlan("vxlan0", 42, CableLab::address(0, 1 - end), inner).await.map(drop)
            })?;
        }
        self.said = format!("the kernel's own, a bridge and a container at each end, MTU {inner}");
        self.containers_behind("vxlan0", inner)
    }

    /// A router on each host, started and used as people do.
    fn weft(&mut self, options: &Options, carrier: &str, cipher: &str) -> anyhow::Result<()> {
        let config = self.router_config(options, carrier, cipher)?;
        let last = self.hosts.hosts().len() - 1;
        for index in 0..=last {
            let mut config = config.clone();
            if index > 0 {
                config = config.with(["--peer".to_owned(), CableLab::address(index - 1, 0).to_string()]);
            }
            let host = self.hosts.host(index);
            let router = Router::start_in(self.hosts.dir(), host.label(), host, config)?;
            self.routers.push(router);
        }
        let far = self.hosts.host(last).label().to_owned();
        let mut seen = Err(anyhow!("no status"));
        let linked = wait_until(PATIENCE, || {
            seen = path_of(&self.routers[0], &far);
            seen.as_ref().is_ok_and(|path| path.carrier == carrier && path.cipher == cipher)
        });
        let path = seen.with_context(|| format!("the path to {far}"))?;
        ensure!(linked, "frames go by {} with cipher {}, not by {carrier} with {cipher}", path.carrier, path.cipher);
        for end in [0, 1] {
            let container = Container::new(&format!("box{}", end + 1))?;
            let router = &self.routers[self.end_host(end)];
            let addresses = router.attach(&container)?;
            let v4 = addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv4);
            self.addresses[end] = v4.with_context(|| format!("{addresses:?} has no IPv4 address"))?;
            self.containers.push(container);
        }
        let inner = self.containers[0].link("weft0")?.map_or(0, |link| link.mtu);
        self.said = format!("{carrier}, cipher {cipher}, MTU {inner}");
        Ok(())
    }

    fn router_config(&self, options: &Options, carrier: &str, cipher: &str) -> anyhow::Result<RouterConfig> {
        let mut config = router_of(options)?.with(["--no-discovery", "--range", "10.32.0.0/12"]);
        if carrier != "fast" {
            config = config.with(["--no-fast-path"]);
        }
        if cipher == "none" {
            return Ok(config);
        }
        let secret: PathBuf = self.hosts.dir().join("secret");
        write_secret(&secret, SECRET)?;
        Ok(config.with(["--cipher", cipher]).with(["--secret-file".into(), secret.into_os_string()]))
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The router that is asked for, without arguments.
pub(super) fn router_of(options: &Options) -> io::Result<RouterConfig> {
    Ok(match &options.weft {
        Some(exe) => RouterConfig { exe: exe.clone(), env: Vec::new(), args: Vec::new() },
        None => {
            let env = vec![(ROUTER.into(), OsString::from("1"))];
            RouterConfig { exe: std::env::current_exe()?, env, args: Vec::new() }
        }
    })
}

/// How a router says that frames reach a peer.
struct Path {
    carrier: String,
    cipher: String,
}

fn path_of(router: &Router, peer: &str) -> anyhow::Result<Path> {
    let status = router.status()?;
    let peers = status["peers"].as_array().with_context(|| format!("status without peers: {status}"))?;
    let found = peers.iter().find(|entry| entry["name"] == peer).with_context(|| format!("{peer} is not known"))?;
    ensure!(found["state"] == "established", "{peer} is {}", found["state"]);
    let text = |field: &str| found[field].as_str().unwrap_or("none").to_owned();
    Ok(Path { carrier: text("carrier"), cipher: text("cipher") })
}
