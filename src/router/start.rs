//! From settings to a running router, and from a running router to nothing.
//!
//! ```text
//!  checks ─► lock, socket ─► state ─► UDP ─► bridge, TAP ─► data thread ─► QUIC ─► core ─► API
//!  stop:   API ─► core (goodbye) ─► data thread (closes the TAP) ─► bridge, on `down` only
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use mesh_proto::control::NodeConfig;
use mesh_proto::data::forwarder::ForwarderConfig;
use mesh_proto::handover::Suite;
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::Handle;
use super::checks::{check_kernel, overlaps};
use super::core::{Core, CoreConfig, CoreIo};
use super::drain::Known;
use super::host::{self, Sizes};
use crate::clock::Clock;
use crate::config::{Settings, host_port};
use crate::control::api::{self, Api, Info, SocketFile, Stop};
use crate::control::attach::{AttachConfig, Attachments};
use crate::control::events::Events;
use crate::control::firewall::Firewall;
use crate::control::identity::Identity;
use crate::control::quic::{Quic, QuicConfig};
use crate::control::secret::Secret;
use crate::control::store::{self, Lock, Opened, State, Store};
use crate::data::{DataConfig, DataHandle, bind_udp, open_tap};
use crate::logging::rfc3339;
use crate::metrics;
use crate::netlink::Netlink;

/// Most learned MAC addresses: 40 bytes each, far above any host's containers and its peers'.
const MACS_MAX: usize = 65_536;
/// How long a MAC address stays learned, as Linux bridges do it.
const MAC_AGE: Duration = Duration::from_secs(300);
/// Most links that a router dials for.
const LINKS_MAX: usize = 128;
/// How often attachments are compared with what is there.
const AUDIT: Duration = Duration::from_secs(10);
/// Peers of the last run that are dialled at once.
const HINTS_MAX: usize = 16;
/// A peer that was last linked with so long ago is not dialled by itself.
const HINT_AGE: u64 = 7 * 24 * 3600;

/// How long the disk may take at the end.
const FLUSH: Duration = Duration::from_secs(5);

/// How a router ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// By a signal: bridge and attachments are there for the next start.
    Kept,
    /// By `weft down`: nothing is left.
    Removed,
}

/// What was taken before anything was changed on the host.
struct Claimed {
    _lock: Lock,
    listener: UnixListener,
    _socket: SocketFile,
    problems: Vec<String>,
}

/// Runs a router until it is told to stop.
///
/// # Errors
/// Why it cannot start: everything that is wrong with this host, or the first thing that went
/// wrong on the way. Then nothing is left behind.
pub async fn run(settings: Settings, secret: Option<Secret>) -> anyhow::Result<Finished> {
    let claimed = claim(&settings).await?;
    let signals = Signals::new()?;
    let clock = Clock::start();
    let opened = open_state(&settings).await?;
    let netlink = Netlink::open()?;
    let sizes = host::sizes(&netlink, &settings).await?;
    let bound = SocketAddr::new(settings.listen.unwrap_or(Ipv6Addr::UNSPECIFIED.into()), settings.port);
    let socket = Arc::new(bind_udp(bound)?);
    let stretched = match secret {
        Some(secret) => {
            let network = settings.network.clone();
            Some(tokio::task::spawn_blocking(move || secret.stretch(&network)).await??)
        }
        None => None,
    };
    let suites = if stretched.is_some() { settings.cipher.suites() } else { vec![Suite::Plain] };
    let sealed = stretched.is_some();

    let state = opened.state.clone();
    let identity = Identity::new(&state.sign_seed, &state.box_secret)?;
    let id = identity.peer();
    let devices = Devices { netlink: netlink.clone(), settings: settings.clone(), sizes };
    let tap = devices.make(id.0).await?;
    let (data, outputs) = DataHandle::start(DataConfig {
        tap,
        socket: socket.clone(),
        forwarder: ForwarderConfig { sealed, macs_max: MACS_MAX, mac_age: MAC_AGE, payload_max: sizes.payload_max },
        seed: u64::from_ne_bytes(random()?),
        clock,
    })
    .context("the data thread cannot be started")?;
    let (quic, quic_events) =
        Quic::start(QuicConfig { seed: state.sign_seed.clone(), socket, data: data.clone(), incoming: outputs.quic })?;

    let mut problems = claimed.problems;
    if let Some((kept, why)) = &opened.set_aside {
        let text = format!(
            "the state in the data directory was unreadable ({why}); it was kept as {} and this router started as a new peer",
            kept.display()
        );
        tracing::error!("{text}");
        problems.push(text);
    }
    let (store, stored) = Store::start(opened)?;
    let events = Events::default();
    let endpoints = host::endpoints(&netlink, &settings).await?;
    let named = named_peers(&settings, &endpoints);
    let (targets, hints) = whom_to_dial(&settings, &state);
    let (handle, requests) = Handle::new();
    let node = NodeConfig {
        name: settings.name.clone(),
        instance: state.instance,
        incarnation: state.incarnation,
        network: settings.network.clone(),
        secret: stretched,
        suites: suites.clone(),
        endpoints: endpoints.clone(),
        targets,
        discovery: settings.discovery,
        links_max: LINKS_MAX,
    };
    let config = CoreConfig {
        node,
        hints,
        identity,
        ranges: settings.ranges.clone(),
        named_peers: named,
        ipam: state.ipam.clone(),
        port: settings.port,
        problems,
    };
    let io = CoreIo {
        clock,
        quic,
        quic_events,
        data: data.clone(),
        data_events: outputs.events,
        store: store.clone(),
        stored,
        events: events.clone(),
    };
    let core = Core::new(config, io, requests)?;
    let (stop_core, core_stops) = watch::channel(false);
    let core = tokio::spawn(core.run(core_stops));

    let attachments = Attachments::new(AttachConfig {
        router: handle.clone(),
        store: store.clone(),
        netlink: netlink.clone(),
        bridge: settings.bridge.clone(),
        mtu: sizes.overlay,
        ranges: settings.ranges.clone(),
    })?;
    let mut firewall = Firewall::new(&settings.bridge);
    firewall.ensure().await;
    attachments.restore(&state.attachments).await;

    let info = Arc::new(Info {
        id,
        name: settings.name.clone(),
        instance: state.instance,
        incarnation: state.incarnation.0,
        network: settings.network.clone(),
        sealed,
        suites,
        mtu: sizes.overlay,
        bridge: settings.bridge.clone(),
        port: settings.port,
        clock,
    });
    let (stop, stopped) = watch::channel(Stop::No);
    let api = Api {
        router: handle.clone(),
        data: data.clone(),
        attachments: attachments.clone(),
        events: events.clone(),
        info,
        stop: Arc::new(stop),
    };
    let mut tasks = tokio::task::JoinSet::new();
    if let Some(address) = settings.metrics {
        let listener = metrics::bind(address).await?;
        tasks.spawn(metrics::serve(listener, api.clone()));
    }
    tasks.spawn(host::watch(netlink, settings.clone(), endpoints, handle.clone()));
    tasks.spawn(firewall.keep());
    tasks.spawn(look_after(attachments, handle));
    let server = tokio::spawn(api::serve(claimed.listener, api.clone(), stopped.clone()));
    announce(&settings, &state, id, sizes, sealed);
    events.push(rfc3339(clock.wall(clock.now())), "started", format!("start {}", state.incarnation.0));

    let finished = wait_for_the_end(signals, stopped).await;
    if finished == Finished::Kept {
        api.stop.send_replace(Stop::Keep);
    }
    tracing::info!("stopping");
    let _ = server.await;
    tasks.shutdown().await;
    stop_core.send_replace(true);
    let _ = core.await;
    // What the machines asked to be kept last is durable before the process ends.
    let flushed = tokio::time::timeout(FLUSH, store.write_and_wait(Vec::new())).await;
    if !matches!(flushed, Ok(Ok(()))) {
        tracing::error!(result = ?flushed, "the last writes to the data directory may be lost");
    }
    data.stop();
    if finished == Finished::Removed {
        Firewall::new(&settings.bridge).remove().await;
        devices.remove().await;
    }
    tracing::info!("stopped");
    Ok(finished)
}

/// Everything that can be wrong with this host, before anything is changed on it.
async fn claim(settings: &Settings) -> anyhow::Result<Claimed> {
    let mut wrong: Vec<String> = Vec::new();
    let mut problems = Vec::new();
    if let Err(missing) = check_kernel() {
        wrong.extend(missing.iter().map(ToString::to_string));
    }
    for overlap in overlaps(&settings.ranges, &settings.bridge, settings.ranges_given) {
        if settings.ranges_given {
            tracing::warn!("{overlap}");
            problems.push(overlap.to_string());
        } else {
            wrong.push(overlap.to_string());
        }
    }
    let socket = api::claim(&settings.socket).await.map_err(|error| wrong.push(error.to_string()));
    let lock = Lock::take(&settings.data_dir).map_err(|error| wrong.push(error.to_string()));
    match (socket, lock) {
        (Ok((listener, socket)), Ok(lock)) if wrong.is_empty() => {
            Ok(Claimed { _lock: lock, listener, _socket: socket, problems })
        }
        _ => Err(anyhow::anyhow!(wrong.join("\n"))),
    }
}

async fn open_state(settings: &Settings) -> anyhow::Result<Opened> {
    let directory = settings.data_dir.clone();
    Ok(tokio::task::spawn_blocking(move || store::open(&directory)).await??)
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system has no random numbers"))?;
    Ok(bytes)
}

/// Bridge and TAP.
struct Devices {
    netlink: Netlink,
    settings: Settings,
    sizes: Sizes,
}

impl Devices {
    /// Makes or adopts the bridge and puts a new TAP into it.
    async fn make(&self, id: [u8; 16]) -> anyhow::Result<std::os::fd::OwnedFd> {
        let mtu = u32::from(self.sizes.overlay);
        let (bridge, tap) = (&self.settings.bridge, self.settings.tap());
        let existed = self.netlink.link(bridge).await?.is_some();
        let made = async {
            // A function of the peer, so that the host keeps its address across restarts.
            let mac = [0x02, 0x62, id[0], id[1], id[2], id[3]];
            let link = self.netlink.ensure_bridge(bridge, mtu, mac).await?;
            let fd = open_tap(&tap)?;
            self.netlink.enslave(&tap, &link, mtu).await?;
            Ok(fd)
        }
        .await;
        if made.is_err() && !existed {
            self.remove().await;
        }
        made
    }

    async fn remove(&self) {
        for name in [self.settings.tap(), self.settings.bridge.clone()] {
            if let Err(error) = self.netlink.delete_link(&name).await {
                tracing::error!(%error, "an interface is left; delete it by hand (ip link del {name})");
            }
        }
    }
}

/// How many of the peers named are not this one: alone, it founds the network.
fn named_peers(settings: &Settings, endpoints: &[SocketAddr]) -> usize {
    let is_me = |peer: &&String| {
        let Ok((host, port)) = host_port(peer) else {
            return false;
        };
        let same_port = port.is_none_or(|port| port == settings.port);
        let same_host = match host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback() || endpoints.iter().any(|endpoint| endpoint.ip() == address),
            Err(_) => host == settings.name,
        };
        same_port && same_host
    };
    settings.peers.iter().filter(|peer| !is_me(peer)).count()
}

/// Targets of the operator (now and by `connect` in earlier runs), and besides them the addresses
/// of peers that there were links with lately.
fn whom_to_dial(settings: &Settings, state: &State) -> (Vec<String>, BTreeSet<String>) {
    let mut targets = settings.peers.clone();
    let mut known: BTreeMap<(u64, String), ()> = BTreeMap::new();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for (key, value) in &state.peers {
        let key = String::from_utf8_lossy(key);
        if let Some(target) = key.strip_prefix("target:") {
            if host_port(target).is_ok() && !targets.iter().any(|other| other == target) {
                targets.push(target.to_owned());
            }
        } else if let Ok(peer) = serde_json::from_slice::<Known>(value)
            && now.saturating_sub(peer.seen) < HINT_AGE
        {
            known.insert((peer.seen, peer.address.to_string()), ());
        }
    }
    let mut hints = BTreeSet::new();
    if settings.discovery {
        let fresh = known.into_keys().rev().map(|(_, address)| address);
        hints.extend(fresh.filter(|address| !targets.contains(address)).take(HINTS_MAX));
    }
    targets.extend(hints.iter().cloned());
    (targets, hints)
}

/// Compares attachments with what is there, again and again.
async fn look_after(attachments: Attachments, router: Handle) {
    if let Err(lost) = attachments.reclaim().await {
        for line in lost {
            tracing::error!("{line}");
            if router.add_problem(line).await.is_err() {
                return;
            }
        }
    }
    loop {
        tokio::time::sleep(AUDIT).await;
        attachments.audit().await;
    }
}

fn announce(settings: &Settings, state: &State, id: mesh_proto::id::PeerId, sizes: Sizes, sealed: bool) {
    tracing::info!(
        peer = %id,
        name = settings.name,
        network = settings.network,
        start = state.incarnation.0,
        port = settings.port,
        mtu = sizes.overlay,
        socket = %settings.socket.display(),
        "weft {} is up",
        env!("CARGO_PKG_VERSION"),
    );
    if !sealed {
        tracing::warn!(
            "no secret is set: whoever reaches the port can join, and frames are not encrypted; set one with --secret-file or WEFT_SECRET"
        );
    }
}

struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }
}

async fn wait_for_the_end(mut signals: Signals, mut stop: watch::Receiver<Stop>) -> Finished {
    tokio::select! {
        _ = signals.interrupt.recv() => Finished::Kept,
        _ = signals.terminate.recv() => Finished::Kept,
        // The sender is in the API's state, which outlives this.
        _ = stop.wait_for(|stop| *stop == Stop::Remove) => Finished::Removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Given, Source};

    fn settings(peers: &[&str]) -> Settings {
        let values = peers.iter().map(|&peer| peer.to_owned()).collect();
        let given = BTreeMap::from([("peer", Given { values, source: Source::Flag })]);
        Settings::parse(&given, "host1").expect("valid")
    }

    #[test]
    fn a_list_that_is_the_same_on_every_host_does_not_count_the_host_itself() {
        let endpoints = ["192.0.2.1:6783".parse().expect("an address")];
        for (peers, count) in [
            (&[][..], 0),
            (&["192.0.2.1"], 0),
            (&["192.0.2.1", "192.0.2.2"], 1),
            (&["host1", "host2"], 1),
            (&["192.0.2.1:7000"], 1),
            (&["127.0.0.1:6783"], 0),
        ] {
            assert_eq!(named_peers(&settings(peers), &endpoints), count, "{peers:?}");
        }
    }

    #[test]
    fn targets_of_earlier_runs_and_peers_seen_lately_are_dialled_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut state = store::open(dir.path()).expect("made").state;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let known = |address: &str, seen| {
            let address = address.parse().expect("an address");
            serde_json::to_vec(&Known { name: "n".to_owned(), address, seen }).expect("JSON")
        };
        state.peers.insert(b"target:host9".to_vec(), Vec::new());
        state.peers.insert(b"known:a".to_vec(), known("192.0.2.3:6783", now));
        state.peers.insert(b"known:b".to_vec(), known("192.0.2.4:6783", now - 2 * HINT_AGE));
        state.peers.insert(b"known:c".to_vec(), b"not JSON".to_vec());
        let (targets, hints) = whom_to_dial(&settings(&["host2"]), &state);
        assert_eq!(targets, ["host2", "host9", "192.0.2.3:6783"]);
        assert_eq!(hints, BTreeSet::from(["192.0.2.3:6783".to_owned()]));
    }
}
