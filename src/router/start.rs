//! From settings to a running router, and from a running router to nothing.
//!
//! ```text
//!  start:  Ground (checks, locks, sockets, state) ─► bridge, TAP ─► data thread ─► QUIC ─► core ─► API
//!  stop:   API ─► core (goodbye) ─► store (flush) ─► data thread (closes the TAP) ─► bridge, on `down` only
//! ```

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh_proto::control::names::Names;
use mesh_proto::control::{NodeConfig, TrustConfig};
use mesh_proto::data::forwarder::ForwarderConfig;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::addresses::Addresses;
use super::core::{Core, CoreConfig, CoreIo, seed};
use super::devices::{Devices, Made};
use super::dial::{named_peers, whom_to_dial};
use super::fastpath;
use super::host;
use super::keeper::Keeper;
use super::prepare::Ground;
use super::reload::{Reloader, Reloads};
use super::{Handle, MeshNames};
use crate::clock::Clock;
use crate::config::{Settings, Sources};
use crate::control::api::{self, Api, Info, Stop};
use crate::control::attach::{AttachConfig, Attachments};
use crate::control::dns::{self, DnsConfig};
use crate::control::events::Events;
use crate::control::firewall::Firewall;
use crate::control::guard::PortGuard;
use crate::control::guests::Guests;
use crate::control::identity::Identity;
use crate::control::ledger::Ledger;
use crate::control::masquerade::Masquerade;
use crate::control::names::{Book, Teller};
use crate::control::quic::{Quic, QuicConfig};
use crate::control::secret::Secret;
use crate::control::services::Services;
use crate::control::store::{File, Store};
use crate::data::{DataConfig, DataHandle};
use crate::docker::{self, Docker, DockerConfig, Engine, KernelPorts};
use crate::logging::rfc3339;
use crate::metrics;

/// Most learned MAC addresses: 40 bytes each, far above any host's containers and its peers'.
const MACS_MAX: usize = 65_536;
/// How long a MAC address stays learned, as Linux bridges do it.
const MAC_AGE: Duration = Duration::from_secs(300);
/// Most links that a router dials for.
const LINKS_MAX: usize = 128;
/// How often attachments are compared with what is there.
const AUDIT: Duration = Duration::from_secs(10);
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

/// Runs a router until it is told to stop.
///
/// # Errors
/// Why it cannot start: everything that is wrong with this host, or the first thing that went
/// wrong on the way. Then nothing is left that was not there before.
pub async fn run(settings: Settings, sources: Sources, secret: Option<Secret>) -> anyhow::Result<Finished> {
    let signals = Signals::new()?;
    let (ground, file, held) = Ground::take(settings, secret).await?;
    let devices = ground.devices();
    let adopted = devices.exist().await?;
    let result = operate(ground, file, &devices, sources, signals).await;
    let leave_nothing = match &result {
        Ok(finished) => *finished == Finished::Removed,
        Err(_) => !adopted,
    };
    if leave_nothing {
        devices.remove().await;
    }
    drop(held);
    tracing::info!("stopped");
    result
}

async fn operate(
    mut ground: Ground,
    file: File,
    devices: &Devices,
    sources: Sources,
    mut signals: Signals,
) -> anyhow::Result<Finished> {
    let clock = Clock::start();
    let stored_attachments = std::mem::take(&mut ground.state.attachments);
    let stored_docker = std::mem::take(&mut ground.state.docker);
    let stored_names = std::mem::take(&mut ground.state.names);
    let stored_services = std::mem::take(&mut ground.state.services);
    let (core, made) = RunningCore::start(&mut ground, file, devices, clock).await?;
    let Ground { settings, netlink, sizes, listener, metrics, dns, .. } = ground;
    let (others, guests) = (Ledger::default(), Guests::default());
    let guard = PortGuard::new(&settings.bridge);
    let masquerade = Masquerade::new(&settings.bridge, &settings.ranges);
    let (serving, served) = watch::channel(!stored_services.is_empty());
    let firewall = Firewall::new(&settings.bridge, served);
    firewall.ensure().await;
    let attachments = Attachments::new(AttachConfig {
        router: core.handle.clone(),
        store: core.store.clone(),
        netlink: netlink.clone(),
        bridge: settings.bridge.clone(),
        mtu: sizes.overlay,
        ranges: settings.ranges.clone(),
        others: others.clone(),
        guard: guard.clone(),
        masquerade: masquerade.clone(),
        firewall: firewall.clone(),
    })?;
    let docker = Docker::new(DockerConfig {
        router: core.handle.clone(),
        store: core.store.clone(),
        stored: stored_docker,
        ledger: others,
        guests: guests.clone(),
        ports: KernelPorts {
            netlink: netlink.clone(),
            bridge: settings.bridge.clone(),
            mtu: sizes.overlay,
            guard: guard.clone(),
        },
        engine: engine(),
        mtu: sizes.overlay,
        ranges: settings.ranges.clone(),
    });
    let services = Services::new(
        core.store.clone(),
        &stored_services,
        attachments.clone(),
        &settings.bridge,
        &settings.ranges,
        serving,
    );
    attachments.load(&stored_attachments).await;
    // The kernel has kept the table of the last run until now (guard P6).
    guard.adopt([attachments.ports(), docker.guarded()].concat(), docker.networks()).await;
    masquerade.adopt(attachments.masqueraded(), attachments.masquerades()).await;
    services.adopt().await;

    let (stop, stopped) = watch::channel(Stop::No);
    let (reloads, reload_inbox) = Reloads::new();
    let api = Api {
        router: core.handle.clone(),
        data: core.data.clone(),
        attachments: attachments.clone(),
        guests: guests.clone(),
        names: core.names.clone(),
        book: Book::new(core.store.clone(), &stored_names),
        services: services.clone(),
        events: core.events.clone(),
        info: core.info.clone(),
        reloads,
        stop: Arc::new(stop),
    };
    let mut tasks = JoinSet::new();
    let dns_config = DnsConfig {
        domain: settings.dns_domain.clone(),
        ranges: settings.ranges.clone(),
        names: core.names.clone(),
        resolv_conf: settings.resolv_conf.clone(),
    };
    dns::serve(dns_config, dns, &mut tasks)?;
    let teller = Teller {
        router: core.handle.clone(),
        attachments: attachments.clone(),
        guests,
        book: api.book.clone(),
        services: services.clone(),
        netlink: netlink.clone(),
        bridge: settings.bridge.clone(),
    };
    tasks.spawn(teller.run());
    let mut metrics_server = JoinSet::new();
    if let Some(listener) = metrics {
        metrics_server.spawn(metrics::serve(listener, api.clone()));
    }
    let (current, settings_seen) = watch::channel(settings.clone());
    let keeper = Keeper {
        netlink,
        made,
        api: api.clone(),
        settings: settings_seen,
        endpoints: core.info.endpoints.clone(),
        payload_max: sizes.payload_max,
    };
    tasks.spawn(keeper.run());
    let reloader = Reloader { sources, settings: current, api: api.clone(), metrics: metrics_server };
    tasks.spawn(reloader.run(reload_inbox, signals.reload.take()));
    tasks.spawn(firewall.keep());
    tasks.spawn(guard.keep());
    tasks.spawn(masquerade.keep());
    tasks.spawn(services.keep());
    tasks.spawn(look_after(attachments, core.handle.clone()));
    tasks.spawn(docker.clone().look_after());
    if let Some(path) = &settings.docker_socket {
        tasks.spawn(docker.clone().learn_names());
        tasks.spawn(docker::serve(docker, path.clone()));
    }
    let server = tokio::spawn(api::serve(listener, api.clone(), stopped.clone()));
    announce(&settings, &core);

    let finished = wait_for_the_end(signals, stopped).await;
    tracing::info!("stopping");
    if finished == Finished::Kept {
        api.stop.send_replace(Stop::Keep);
    }
    // The tasks end by themselves or are ended here; how is of no interest any more.
    let _ = server.await;
    tasks.shutdown().await;
    core.stop().await;
    Ok(finished)
}

/// The loop and what it drives.
struct RunningCore {
    handle: Handle,
    data: DataHandle,
    store: Store,
    names: MeshNames,
    events: Events,
    info: Arc<Info>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl RunningCore {
    async fn start(ground: &mut Ground, file: File, devices: &Devices, clock: Clock) -> anyhow::Result<(Self, Made)> {
        let state = ground.state.clone();
        let lost = std::mem::take(&mut ground.lost);
        let settings = &ground.settings;
        let identity = Identity::new(&state.sign_seed, &state.box_secret)?;
        let endpoints = host::endpoints(&ground.netlink, settings).await?;
        let (targets, hints) = whom_to_dial(settings, &state);
        // Whom the configuration names counts as named already.
        let remembered = targets.iter().filter(|target| !settings.peers.contains(target)).count();
        let info = Arc::new(Info {
            id: identity.peer(),
            name: settings.name.clone(),
            instance: state.instance,
            incarnation: state.incarnation.0,
            network: settings.network.clone(),
            sealed: ground.secret.is_some(),
            suites: ground.suites.clone(),
            mtu: ground.sizes.overlay,
            bridge: settings.bridge.clone(),
            port: settings.port,
            endpoints: endpoints.clone(),
            domain: settings.dns_domain.clone(),
            dns: ground.dns.iter().map(dns::Sockets::address).collect(),
            clock,
        });
        let config = CoreConfig {
            node: NodeConfig {
                name: settings.name.clone(),
                instance: state.instance,
                incarnation: state.incarnation,
                network: settings.network.clone(),
                secret: ground.secret.take(),
                suites: ground.suites.clone(),
                endpoints: endpoints.clone(),
                targets,
                discovery: settings.discovery,
                links_max: LINKS_MAX,
                trust: TrustConfig { wall: clock.wall(Duration::ZERO), kept: state.trust },
            },
            hints,
            ranges: settings.ranges.clone(),
            addresses: Addresses::new(settings, named_peers(settings, &endpoints), lost, remembered),
            ipam: state.ipam,
            port: settings.port,
            problems: std::mem::take(&mut ground.problems),
            identity,
        };
        let (made, tap) = devices.make(info.id.0).await?;
        let [a, b, c, d, e, f, g, h, ..] = seed()?;
        let (data, outputs) = DataHandle::start(DataConfig {
            tap,
            socket: ground.socket.clone(),
            forwarder: ForwarderConfig {
                sealed: info.sealed,
                macs_max: MACS_MAX,
                mac_age: MAC_AGE,
                payload_max: ground.sizes.payload_max,
            },
            seed: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            busy_poll: settings.busy_poll,
            clock,
        })
        .context("the data thread cannot be started")?;
        let (quic, quic_events) = Quic::start(QuicConfig {
            seed: state.sign_seed,
            socket: ground.socket.clone(),
            data: data.clone(),
            incoming: outputs.quic,
        })?;
        let netlink = &ground.netlink;
        let fast = fastpath::start(settings, info.sealed, info.id, info.mtu, netlink, clock).await;
        match &fast {
            // Nothing is wrong with the network: it is slower than it could be.
            Err(fastpath::Off::Failed(why)) => {
                tracing::warn!("the fast path is off, all frames go by sleeve: {why}; --no-fast-path silences this");
            }
            Err(fastpath::Off::NoWireGuard) => {
                tracing::info!("no fast path: the network has a secret, and this kernel has no WireGuard");
            }
            Err(fastpath::Off::Unwanted) | Ok(_) => {}
        }
        let (store, stored) = Store::start(file)?;
        let events = Events::default();
        let names = MeshNames::new(Names::new(info.id, state.incarnation, seed()?, clock.now()));
        let io = CoreIo {
            clock,
            quic,
            quic_events,
            data: data.clone(),
            data_events: outputs.events,
            store: store.clone(),
            stored,
            events: events.clone(),
            fast,
            names: names.clone(),
        };
        let (handle, requests) = Handle::new();
        let core = Core::new(config, io, requests)?;
        let (stop, stops) = watch::channel(false);
        let task = tokio::spawn(core.run(stops));
        Ok((Self { handle, data, store, names, events, info, stop, task }, made))
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the router's loop ended before its time");
        }
        // What the machines asked to be kept last is durable before the process ends.
        let flushed = tokio::time::timeout(FLUSH, self.store.write_and_wait(Vec::new())).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::error!(result = ?flushed, "the last writes to the data directory may be lost");
        }
        self.data.stop();
    }
}

/// Connects what was attached in the last run, and compares what is attached with what is there,
/// again and again.
async fn look_after(attachments: Attachments, router: Handle) {
    attachments.restore().await;
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

/// The Docker engine of this host, as `weft attach` asks it too.
fn engine() -> Option<Engine> {
    crate::control::docker::socket()
        .map(|socket| Engine { socket })
        .inspect_err(|error| tracing::debug!(%error, "no Docker engine is asked what it has"))
        .ok()
}

fn announce(settings: &Settings, core: &RunningCore) {
    let info = &core.info;
    tracing::info!(
        peer = %info.id,
        name = info.name,
        network = info.network,
        start = info.incarnation,
        port = info.port,
        mtu = info.mtu,
        socket = %settings.socket.display(),
        "weft {} is up",
        env!("CARGO_PKG_VERSION"),
    );
    if !info.sealed {
        tracing::warn!(
            "no secret is set: whoever reaches the port can join, and frames are not encrypted; set one with --secret-file or WEFT_SECRET"
        );
    }
    let now = rfc3339(info.clock.wall(info.clock.now()));
    core.events.push(now, "started", format!("start {}", info.incarnation));
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// On a terminal: it was closed, and with it ends what was started there.
    hangup: Option<Signal>,
    /// Elsewhere the same signal asks to read the configuration again.
    reload: Option<Signal>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let hangup = signal(SignalKind::hangup())?;
        let (hangup, reload) = if std::io::stdin().is_terminal() { (Some(hangup), None) } else { (None, Some(hangup)) };
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, hangup, reload })
    }
}

async fn wait_for_the_end(mut signals: Signals, mut stop: watch::Receiver<Stop>) -> Finished {
    let hangup = async {
        match &mut signals.hangup {
            Some(signal) => signal.recv().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = hangup => Finished::Kept,
        _ = signals.interrupt.recv() => Finished::Kept,
        _ = signals.terminate.recv() => Finished::Kept,
        // The sender is in the API's state, which outlives this.
        _ = stop.wait_for(|stop| *stop == Stop::Remove) => Finished::Removed,
    }
}
