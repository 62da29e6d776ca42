//! The task that makes the kernel agree with the plan, and keeps it so (fastpath F13).
//!
//! What the kernel says has happened is only ever a reason to look: an entry that went is put
//! back because it is missing and wanted, whoever took it.

mod devices;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::control::fastpath::Remote;
use mesh_proto::data::macs::Mac;
use mesh_proto::data::overhead::ETHERNET_HEADER;
use mesh_proto::wire::fastpath::{ETHERTYPE, Seal, probe_mac};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::plan::{Hold, Wanted, with};
use super::seal::Sealing;
use super::{FastConfig, Seen, Shared, sys};
use crate::netlink::fdb::{Fdb, FdbEdit};
use crate::netlink::nft::{Cuts, Guard, Owned};
use crate::netlink::{FdbChange, Link, Monitor, Netlink, NetlinkError, Notice, Result, Topic};

/// How long what an earlier run left may stay undecided (fastpath F14).
const INHERIT: Duration = Duration::from_secs(15);
/// Notifications within this are answered together.
const SETTLE: Duration = Duration::from_millis(100);
/// After something failed.
const RETRY: Duration = Duration::from_secs(1);
/// Everything is compared with the kernel this often, whatever notifications came.
const AUDIT: Duration = Duration::from_secs(60);
/// A kernel that had WireGuard and has it no more is asked for it again this often.
const RESEAL: Duration = Duration::from_secs(5);
/// Changes that are made before others have their turn: about a millisecond.
const CHUNK: usize = 256;
/// Frames that are read in one turn.
const READS: usize = 64;

/// The guard of a fast path.
pub(super) fn guard(config: &FastConfig) -> Result<Guard> {
    let tunnel = FastConfig::wireguard(&config.bridge);
    Guard::new(&FastConfig::table(&config.bridge), &config.bridge, &tunnel, config.port)
        .map_err(|error| problem(&config.bridge, "open a netlink socket for the packet filter", error))
}

fn problem(subject: &str, operation: &'static str, error: io::Error) -> NetlinkError {
    NetlinkError::new(subject, operation, error)
}

pub(super) struct Keeper {
    config: FastConfig,
    netlink: Netlink,
    shared: Arc<Shared>,
    seen: mpsc::Sender<Seen>,
    frames: mpsc::Receiver<Vec<u8>>,
    fdb: Fdb,
    guard: Guard,
    monitor: Monitor,
    cuts: Cuts,
    probes: AsyncFd<OwnedFd>,
    /// Room for one of them.
    probe: Box<[u8]>,
    bridge: u32,
    tap: Option<u32>,
    /// As [`FastConfig::devices`] names them, as far as there are any.
    devices: Devices,
    /// WireGuard, if the fast path is to be sealed.
    sealing: Option<Sealing>,
    /// What the router was told of it last, and whether it was ever there.
    told: Option<Seal>,
    was_sealed: bool,
    /// What is pinned to the devices, as far as we know.
    installed: BTreeMap<Mac, Remote>,
    /// Those of them that are left to whoever is heard with the address.
    loose: BTreeSet<Mac>,
    /// Local addresses, with their ports.
    local: BTreeMap<Mac, u32>,
    admitted: BTreeSet<IpAddr>,
    /// What the guard knows of owners.
    owned: BTreeMap<Mac, Owned>,
    /// What an earlier run left, as long as nothing is decided about it.
    inherited: BTreeSet<Mac>,
    /// Where it came from. A peer may go on to send from there, whatever way we choose to it.
    inherited_from: BTreeMap<Mac, IpAddr>,
    inherit_until: Option<Instant>,
    check_at: Option<Instant>,
    retry_at: Option<Instant>,
    audit_at: Instant,
    complaint: Option<String>,
}

/// Indices of the VXLAN devices: by IPv4, by IPv6, and into WireGuard.
type Devices = [Option<u32>; 3];

/// The place of the last of them.
const SEALED: usize = 2;

/// The place of the device that sends to a remote. What is link-local is inside WireGuard.
const fn place(remote: IpAddr) -> usize {
    match remote {
        IpAddr::V4(_) => 0,
        IpAddr::V6(ip) if !ip.is_unicast_link_local() => 1,
        IpAddr::V6(_) => SEALED,
    }
}

/// The device that sends to a remote, if there is one.
const fn device(devices: &Devices, remote: Remote) -> Option<u32> {
    devices[place(remote.ip)]
}

enum Input {
    Plan,
    Frame(Vec<u8>),
    Probes,
    Notice(Notice),
    Cut,
    Deaf(String),
    Timer,
}

impl Keeper {
    /// Makes what must be there before the first decision. What an earlier run left towards
    /// addresses that `keeps` is true of is adopted.
    pub(super) async fn start(
        config: FastConfig,
        netlink: Netlink,
        shared: Arc<Shared>,
        seen: mpsc::Sender<Seen>,
        frames: mpsc::Receiver<Vec<u8>>,
        keeps: impl Fn(IpAddr) -> bool,
    ) -> Result<Self> {
        let name = config.bridge.clone();
        let failed = |operation| {
            let name = name.clone();
            move |error| problem(&name, operation, error)
        };
        let guard = guard(&config)?;
        let fdb = Fdb::open().map_err(failed("open a netlink socket"))?;
        let monitor = netlink.monitor(&[Topic::Links, Topic::Fdb])?;
        let cuts = Cuts::watch(&FastConfig::table(&config.bridge)).map_err(failed("watch the packet filter"))?;
        let bridge = netlink.need_link(&config.bridge).await?;
        let probes = sys::packet_socket(bridge.index, ETHERTYPE).map_err(failed("open a packet socket"))?;
        let mut sealing = config.seal.as_ref().map(|seal| Sealing::new(&config, seal)).transpose()?;
        if let Some(sealing) = &mut sealing {
            sealing.adopt(&netlink).await?;
            // Without it there is nothing to guard, and nothing to be done.
            if !config.plain
                && let Some(error) = sealing.ensure(&netlink).await
            {
                return Err(error);
            }
        }
        let now = Instant::now();
        let probe = vec![0; usize::from(config.mtu) + usize::from(ETHERNET_HEADER)].into();
        let mut keeper = Self {
            config,
            netlink,
            shared,
            seen,
            frames,
            fdb,
            guard,
            monitor,
            cuts,
            probes,
            probe,
            bridge: bridge.index,
            tap: None,
            devices: [None; 3],
            sealing,
            told: None,
            was_sealed: false,
            installed: BTreeMap::new(),
            loose: BTreeSet::new(),
            local: BTreeMap::new(),
            admitted: BTreeSet::new(),
            owned: BTreeMap::new(),
            inherited: BTreeSet::new(),
            inherited_from: BTreeMap::new(),
            inherit_until: Some(now + INHERIT),
            check_at: None,
            retry_at: None,
            audit_at: now + AUDIT,
            complaint: None,
        };
        keeper.inherit(keeps).await?;
        // Before there is a device that anything could be sent to.
        keeper.install_guard()?;
        keeper.ensure_devices().await?;
        Ok(keeper)
    }

    fn install_guard(&self) -> Result<()> {
        let admitted: Vec<_> = self.admitted.iter().copied().collect();
        let owned: Vec<_> = self.owned.values().copied().collect();
        let installed = self.guard.install(self.bridge, &admitted).and_then(|()| self.guard.own(&[], &owned));
        installed.map_err(|error| problem(&self.config.bridge, "set up the guard of the VXLAN port (nftables)", error))
    }

    /// Sees to all entries of the devices that stand. The devices themselves are left alone: each
    /// change of theirs is told to whoever keeps them, this task not the last.
    async fn renew(&mut self, bridge: &Link) -> Result<()> {
        self.tap = self.netlink.link(&self.config.tap).await?.map(|link| link.index);
        let own = FdbEdit::Local { bridge: self.bridge, mac: probe_mac(self.config.me).0 };
        let refused = self.fdb.apply(&[own]).map_err(|error| problem(&bridge.name, "add an entry", error))?;
        if let Some((_, error)) = refused.into_iter().next() {
            return Err(problem(&bridge.name, "add an entry for probes", error));
        }
        self.resync(bridge).await
    }

    /// Compares what is known with what is there.
    async fn resync(&mut self, bridge: &Link) -> Result<()> {
        let entries = self.fdb.entries().map_err(|error| problem(&bridge.name, "list entries", error))?;
        let mut remotes = BTreeMap::new();
        let mut pinned = BTreeMap::new();
        let mut local = BTreeMap::new();
        for entry in &entries {
            let mac = Mac(entry.mac);
            match entry.remote {
                Some(ip) => _ = remotes.insert((entry.interface, mac), ip),
                None if entry.bridge != Some(self.bridge) => {}
                None if self.devices.contains(&Some(entry.interface)) => _ = pinned.insert(mac, entry.interface),
                None if !entry.local && self.is_container(entry.interface) => _ = local.insert(mac, entry.interface),
                None => {}
            }
        }
        local.extend(bridge.mac.map(|mac| (Mac(mac), bridge.index)));
        let devices = self.devices;
        let missing: Vec<Mac> = self
            .installed
            .iter()
            .filter(|(mac, remote)| {
                let stands = device(&devices, **remote).is_some_and(|device| {
                    remotes.get(&(device, **mac)) == Some(&remote.ip) && pinned.get(*mac) == Some(&device)
                });
                !stands
            })
            .map(|(mac, _)| *mac)
            .collect();
        for mac in missing {
            self.put_back(mac);
        }
        let gone: Vec<Mac> = self.local.keys().filter(|mac| !local.contains_key(mac)).copied().collect();
        for mac in gone {
            self.set_local(mac, None).await;
        }
        for (mac, port) in local {
            self.set_local(mac, Some(port)).await;
        }
        Ok(())
    }

    /// Whether a port of the bridge leads to somebody on this host.
    fn is_container(&self, port: u32) -> bool {
        Some(port) != self.tap && !self.devices.contains(&Some(port))
    }

    async fn set_local(&mut self, mac: Mac, port: Option<u32>) {
        let before = match port {
            Some(port) => self.local.insert(mac, port),
            None => self.local.remove(&mac),
        };
        if before.is_some() != port.is_some() {
            self.shared.plan().mark([mac]);
            // Fails only when the router's loop has ended.
            let _ = self.seen.send(Seen::Local(mac, port.is_some())).await;
        }
    }

    /// Runs until it is aborted.
    pub(super) async fn run(mut self) {
        self.shared.plan().mark_all();
        loop {
            if let Err(error) = self.reconcile().await {
                self.complain(&error);
            }
            match self.next().await {
                Input::Plan => {}
                Input::Frame(frame) => {
                    // A probe that cannot be sent is a probe that is not answered.
                    let _ = rustix::io::write(self.probes.get_ref(), &frame);
                }
                Input::Probes => self.read_probes().await,
                Input::Notice(notice) => self.handle(notice).await,
                Input::Cut => _ = self.check_at.get_or_insert(Instant::now() + SETTLE),
                Input::Deaf(error) => {
                    tracing::warn!(error, "the kernel's notices cannot be read");
                    tokio::time::sleep(RETRY).await;
                    self.check_at = Some(Instant::now());
                }
                Input::Timer => self.timers().await,
            }
        }
    }

    async fn next(&mut self) -> Input {
        let timer = [self.inherit_until, self.check_at, self.retry_at].into_iter().flatten().min();
        let timer = timer.map_or(self.audit_at, |at| at.min(self.audit_at));
        tokio::select! {
            () = self.shared.changed.notified() => Input::Plan,
            Some(frame) = self.frames.recv() => Input::Frame(frame),
            // An error of the runtime would come again: the read that follows finds it.
            _ = self.probes.readable() => Input::Probes,
            notice = self.monitor.next() => match notice {
                Ok(notice) => Input::Notice(notice),
                Err(error) => Input::Deaf(error.to_string()),
            },
            cut = self.cuts.next() => match cut {
                Ok(()) => Input::Cut,
                Err(error) => Input::Deaf(error.to_string()),
            },
            () = tokio::time::sleep_until(timer) => Input::Timer,
        }
    }

    async fn read_probes(&mut self) {
        for _ in 0..READS {
            let Ok(mut ready) = self.probes.readable().await else { return };
            // What is larger than all probes is cut.
            match rustix::io::read(self.probes.get_ref(), &mut *self.probe) {
                // Fails only when the router's loop has ended.
                Ok(length) => _ = self.seen.send(Seen::Probe(self.probe[..length].to_vec())).await,
                Err(rustix::io::Errno::AGAIN) => return ready.clear_ready(),
                Err(_) => return,
            }
        }
    }

    async fn handle(&mut self, notice: Notice) {
        let soon = Instant::now() + SETTLE;
        match notice {
            Notice::Fdb(change) => self.entry(&change).await,
            Notice::Link { index, .. } => {
                let ours = [self.tap, self.up().map(|up| up.index)].contains(&Some(index));
                if index == self.bridge || ours || self.devices.contains(&Some(index)) {
                    self.check_at.get_or_insert(soon);
                }
            }
            Notice::Overrun => _ = self.check_at.get_or_insert(soon),
            Notice::Address { .. } | Notice::Route => {}
        }
    }

    /// Somebody set or took away, or the bridge heard, where an address is.
    async fn entry(&mut self, change: &FdbChange) {
        let mac = Mac(change.mac);
        let device = self.installed.get(&mac).and_then(|remote| device(&self.devices, *remote));
        if change.bridge.is_none() {
            if change.gone && device == Some(change.port) {
                self.put_back(mac);
            }
            return;
        }
        if change.bridge != Some(self.bridge) {
            return;
        }
        if device.is_some_and(|device| change.gone == (device == change.port)) {
            if self.loose.contains(&mac) && !change.gone {
                // Its owner is away and somebody here, or heard by sleeve, has the address now.
                self.installed.remove(&mac);
                self.loose.remove(&mac);
            } else {
                self.put_back(mac);
            }
        }
        if change.permanent {
            if change.gone && mac == probe_mac(self.config.me) {
                self.check_at.get_or_insert(Instant::now() + SETTLE);
            }
        } else if !change.gone {
            self.set_local(mac, self.is_container(change.port).then_some(change.port)).await;
        } else if self.local.get(&mac) == Some(&change.port) {
            self.set_local(mac, None).await;
        }
    }

    fn put_back(&mut self, mac: Mac) {
        // One that is loose is put back only because it is known to have been there.
        if !self.loose.contains(&mac) {
            self.installed.remove(&mac);
        }
        self.shared.plan().mark([mac]);
    }

    async fn timers(&mut self) {
        let now = Instant::now();
        if self.inherit_until.is_some_and(|at| at <= now) {
            self.inherit_until = None;
            self.inherited.clear();
            self.inherited_from.clear();
            let mut plan = self.shared.plan();
            plan.mark_all();
            plan.mark(self.installed.keys().copied());
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
        if self.check_at.is_some_and(|at| at <= now) || self.audit_at <= now {
            self.check_at = None;
            self.audit_at = now + AUDIT;
            if let Err(error) = self.check().await {
                self.complain(&error);
                self.check_at = Some(now + RETRY);
            }
            if self.was_sealed && self.up().is_none() {
                self.check_at.get_or_insert(now + RESEAL);
            }
        }
    }

    /// Makes the kernel agree with the plan where it may differ.
    async fn reconcile(&mut self) -> Result<()> {
        if self.retry_at.is_some() {
            return Ok(());
        }
        let (dirty, addresses) = {
            let mut plan = self.shared.plan();
            let addresses = plan.take_addresses_changed().then(|| plan.addresses());
            let dirty: Vec<_> = plan.take_dirty().into_iter().map(|mac| (mac, plan.wanted(mac))).collect();
            (dirty, addresses)
        };
        let mut leaving = Vec::new();
        if let Some(mut wanted) = addresses {
            wanted.extend(self.inherited_from.values());
            let new: Vec<_> = wanted.difference(&self.admitted).copied().collect();
            leaving = self.admitted.difference(&wanted).copied().collect();
            if let Err(error) = self.guard.admit(&new) {
                self.fail(&dirty);
                return Err(problem(&self.config.bridge, "let a peer through the guard", error));
            }
            // Those that leave are in until they are out.
            self.admitted.extend(new);
            if let Err(error) = self.seal() {
                // The rest is not held up: what is sent to a peer that WireGuard does not know is dropped there.
                self.complain(&error);
                self.fail(&dirty);
                self.check_at = Some(Instant::now() + SETTLE);
            }
        }
        self.own(&dirty)?;
        let mut changes = Vec::new();
        for &(mac, wanted) in &dirty {
            self.change(mac, wanted, &mut changes);
        }
        for chunk in changes.chunks(CHUNK) {
            let refused = self.fdb.apply(chunk).map_err(|error| {
                self.fail(&dirty);
                problem(&self.config.bridge, "set forwarding entries", error)
            })?;
            for (change, error) in refused {
                self.refused(change, &error);
            }
            tokio::task::yield_now().await;
        }
        // Whoever is sent to may send, until it is sent to no more.
        for ip in leaving {
            self.guard.refuse(ip).map_err(|error| {
                self.fail(&dirty);
                problem(&self.config.bridge, "close the guard to a peer", error)
            })?;
            self.admitted.remove(&ip);
        }
        Ok(())
    }

    /// Tells WireGuard who the peers are.
    fn seal(&mut self) -> Result<()> {
        let Some(sealing) = &mut self.sealing else { return Ok(()) };
        let (tunnels, declined) = {
            let plan = self.shared.plan();
            (plan.tunnels(), plan.declined())
        };
        let inherited: BTreeSet<IpAddr> = self.inherited_from.values().copied().collect();
        sealing.reconcile(&tunnels, |address| {
            let ip = IpAddr::from(address);
            inherited.contains(&ip) && !declined.contains(&ip)
        })
    }

    /// Tells the guard whose the addresses are.
    fn own(&mut self, dirty: &[(Mac, Wanted)]) -> Result<()> {
        let (mut old, mut new) = (Vec::<Owned>::new(), Vec::<Owned>::new());
        {
            let plan = self.shared.plan();
            for &(mac, _) in dirty {
                let (before, mut now) = (self.owned.get(&mac), plan.owner(mac, self.local.contains_key(&mac)));
                if let Some(owned) = &mut now
                    && let Some(&ip) = self.inherited_from.get(&mac)
                    && owned.from[usize::from(ip.is_ipv6())].is_none()
                {
                    owned.from = with(owned.from, ip);
                }
                if before != now.as_ref() {
                    old.extend(before);
                    new.extend(now);
                }
            }
        }
        for owned in &old {
            self.owned.remove(&Mac(owned.mac));
        }
        self.owned.extend(new.iter().map(|owned| (Mac(owned.mac), *owned)));
        self.guard.own(&old, &new).map_err(|error| {
            // It may be half done: a look finds out and sets it up anew.
            self.check_at = Some(Instant::now());
            self.fail(dirty);
            problem(&self.config.bridge, "tell the guard whose the addresses are", error)
        })
    }

    /// What has to be changed for one address.
    fn change(&mut self, mac: Mac, wanted: Wanted, changes: &mut Vec<FdbEdit>) {
        let installed = self.installed.get(&mac).copied();
        match wanted {
            Wanted::Fast(remote, hold) => {
                self.inherited.remove(&mac);
                let Some(new) = device(&self.devices, remote) else { return };
                if hold == Hold::Loose {
                    // What was heard meanwhile stays.
                    if installed.is_none() {
                        return;
                    }
                    self.loose.insert(mac);
                } else {
                    self.loose.remove(&mac);
                }
                let via = self.up().map(|up| up.index).filter(|_| place(remote.ip) == SEALED);
                changes.push(FdbEdit::Remote { device: new, mac: mac.0, ip: remote.ip, port: remote.port, via });
                changes.push(FdbEdit::Pin { port: new, mac: mac.0, firm: hold == Hold::Firm });
                let old = installed.and_then(|old| device(&self.devices, old));
                changes.extend(old.filter(|old| *old != new).map(|old| FdbEdit::NoRemote { device: old, mac: mac.0 }));
                self.installed.insert(mac, remote);
            }
            Wanted::Sleeve { decided: false } | Wanted::Nowhere if self.inherited.contains(&mac) => {}
            // What an earlier run sent in the clear does not go on beside a sealed way.
            Wanted::Proving(way)
                if self.inherited.contains(&mac)
                    && installed.is_some_and(|old| (place(old.ip) == SEALED) == way.tunnel.is_some()) => {}
            Wanted::Sleeve { .. } | Wanted::Proving(_) | Wanted::Nowhere => {
                let Some(old) = installed else { return };
                // Whoever is not sent to is not heard from there for an earlier run's sake either.
                self.inherited_from.remove(&mac);
                self.inherited.remove(&mac);
                self.installed.remove(&mac);
                let Some(old) = device(&self.devices, old) else { return };
                // A hint, so that the first frame is not flooded to containers; the bridge hears
                // the next frame of the address at the TAP.
                changes.push(match self.tap.filter(|_| wanted != Wanted::Nowhere) {
                    Some(tap) => FdbEdit::Hint { port: tap, mac: mac.0 },
                    None => FdbEdit::Unpin { port: old, mac: mac.0 },
                });
                changes.push(FdbEdit::NoRemote { device: old, mac: mac.0 });
            }
        }
    }

    /// Nothing of it may have been done.
    fn fail(&mut self, dirty: &[(Mac, Wanted)]) {
        self.retry_at = Some(Instant::now() + RETRY);
        let mut plan = self.shared.plan();
        plan.mark_all();
        plan.mark(dirty.iter().map(|(mac, _)| *mac));
    }

    fn refused(&mut self, change: FdbEdit, error: &io::Error) {
        tracing::debug!(?change, %error, "the kernel refused a forwarding entry");
        let (FdbEdit::Pin { mac, .. } | FdbEdit::Remote { mac, .. }) = change else { return };
        self.retry_at = Some(Instant::now() + RETRY);
        self.check_at = Some(Instant::now());
        self.put_back(Mac(mac));
    }

    /// Once for each thing that goes wrong.
    fn complain(&mut self, error: &NetlinkError) {
        let text = error.to_string();
        if self.complaint.as_ref() != Some(&text) {
            tracing::warn!("the fast path cannot be kept: {text}");
            self.complaint = Some(text);
        }
    }
}
