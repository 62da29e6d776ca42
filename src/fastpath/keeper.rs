//! The task that makes the kernel agree with the plan, and keeps it so (fastpath F13).
//!
//! What the kernel says has happened is only ever a reason to look: an entry that went is put
//! back because it is missing and wanted, whoever took it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::control::fastpath::Remote;
use mesh_proto::data::macs::Mac;
use mesh_proto::data::overhead::ETHERNET_HEADER;
use mesh_proto::wire::fastpath::{ETHERTYPE, probe_mac};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::plan::{Hold, Wanted, with};
use super::{FastConfig, Seen, Shared, is_v6, sys};
use crate::netlink::fdb::{Fdb, FdbEdit};
use crate::netlink::nft::{Cuts, Guard, Owned};
use crate::netlink::{FdbChange, Link, Monitor, Netlink, NetlinkError, Notice, Result, Topic, Vxlan};

/// How long what an earlier run left may stay undecided (fastpath F14).
const INHERIT: Duration = Duration::from_secs(15);
/// Notifications within this are answered together.
const SETTLE: Duration = Duration::from_millis(100);
/// After something failed.
const RETRY: Duration = Duration::from_secs(1);
/// Everything is compared with the kernel this often, whatever notifications came.
const AUDIT: Duration = Duration::from_secs(60);
/// Changes that are made before others have their turn: about a millisecond.
const CHUNK: usize = 256;
/// Frames that are read in one turn.
const READS: usize = 64;

/// The guard of a fast path.
pub(super) fn guard(config: &FastConfig) -> Result<Guard> {
    Guard::new(&FastConfig::table(&config.bridge), &config.bridge, config.port)
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
    /// For IPv4 and IPv6 underlays. A host without IPv6 has only the first.
    devices: [Option<u32>; 2],
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
            devices: [None; 2],
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

    /// Takes over what an earlier run left: its flows go on.
    async fn inherit(&mut self, keeps: impl Fn(IpAddr) -> bool) -> Result<()> {
        self.find_devices().await?;
        let entries = self.fdb.entries().map_err(|error| problem(&self.config.bridge, "list entries", error))?;
        let mut unwanted = Vec::new();
        for entry in entries {
            let (device, mac) = (entry.interface, entry.mac);
            let Some(ip) = entry.remote.filter(|_| self.devices.contains(&Some(device))) else { continue };
            if keeps(ip) {
                let port = entry.remote_port.unwrap_or(self.config.port);
                self.installed.insert(Mac(mac), Remote { ip, port });
                self.inherited.insert(Mac(mac));
                self.inherited_from.insert(Mac(mac), ip);
                self.admitted.insert(ip);
            } else {
                unwanted.extend([FdbEdit::Unpin { port: device, mac }, FdbEdit::NoRemote { device, mac }]);
            }
        }
        let refused =
            self.fdb.apply(&unwanted).map_err(|error| problem(&self.config.bridge, "remove entries", error))?;
        match refused.into_iter().next() {
            Some((_, error)) => Err(problem(&self.config.bridge, "remove an entry that is wanted no more", error)),
            None => Ok(()),
        }
    }

    async fn find_devices(&mut self) -> Result<()> {
        for (at, name) in FastConfig::devices(&self.config.bridge).iter().enumerate() {
            self.devices[at] = self.netlink.link(name).await?.map(|link| link.index);
        }
        self.tap = self.netlink.link(&self.config.tap).await?.map(|link| link.index);
        Ok(())
    }

    /// Makes the devices, or adopts those that are there.
    async fn ensure_devices(&mut self) -> Result<()> {
        let bridge = self.netlink.need_link(&self.config.bridge).await?;
        if bridge.index != self.bridge {
            // Made again: the socket was bound to the one before.
            self.probes = sys::packet_socket(bridge.index, ETHERTYPE)
                .map_err(|error| problem(&bridge.name, "open a packet socket", error))?;
            self.bridge = bridge.index;
            self.install_guard()?;
        }
        let names = FastConfig::devices(&self.config.bridge);
        for (v6, name) in [false, true].into_iter().zip(&names) {
            match self.netlink.ensure_vxlan(&self.vxlan(v6, name), &bridge).await {
                Ok(_) => {}
                // A kernel without IPv6.
                Err(error) if v6 && matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::EPFNOSUPPORT)) => {
                    self.netlink.delete_link(name).await?;
                }
                Err(error) => return Err(error),
            }
        }
        self.renew(&bridge).await
    }

    /// Sees to all entries of the devices that stand. The devices themselves are left alone: each
    /// change of theirs is told to whoever keeps them, this task not the last.
    async fn renew(&mut self, bridge: &Link) -> Result<()> {
        self.find_devices().await?;
        let own = FdbEdit::Local { bridge: self.bridge, mac: probe_mac(self.config.me).0 };
        let refused = self.fdb.apply(&[own]).map_err(|error| problem(&bridge.name, "add an entry", error))?;
        if let Some((_, error)) = refused.into_iter().next() {
            return Err(problem(&bridge.name, "add an entry for probes", error));
        }
        self.resync(bridge).await
    }

    const fn vxlan<'a>(&self, v6: bool, name: &'a str) -> Vxlan<'a> {
        Vxlan { name, v6, vni: self.config.vni, port: self.config.port, mtu: self.config.mtu as u32 }
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
                let device = devices[usize::from(is_v6(remote.ip))];
                let stands = device.is_some_and(|device| {
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
                if index == self.bridge || self.tap == Some(index) || self.devices.contains(&Some(index)) {
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
        let device = self.installed.get(&mac).and_then(|remote| self.devices[usize::from(is_v6(remote.ip))]);
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
        }
    }

    /// Looks whether everything stands, and mends what does not.
    async fn check(&mut self) -> Result<()> {
        let stands = self.guard.stands(&self.admitted, self.owned.values());
        if !stands.map_err(|error| problem(&self.config.bridge, "look at the guard", error))? {
            self.install_guard()?;
            tracing::warn!("the guard of the VXLAN port was not whole: it was put back");
        }
        let names = FastConfig::devices(&self.config.bridge);
        let mut stand = true;
        for (at, name) in names.iter().enumerate() {
            // What could not be made at the start is not missed.
            if self.devices[at].is_some() {
                stand &= self.netlink.vxlan_stands(&self.vxlan(at == 1, name), self.bridge).await?;
            }
        }
        if stand {
            let bridge = self.netlink.need_link(&self.config.bridge).await?;
            return self.renew(&bridge).await;
        }
        tracing::warn!("somebody changed the VXLAN devices: they are put right");
        self.ensure_devices().await
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
            self.admitted = wanted;
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
            self.guard.refuse(ip).map_err(|error| problem(&self.config.bridge, "close the guard to a peer", error))?;
        }
        Ok(())
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
        let device = |devices: &[Option<u32>; 2], remote: Remote| devices[usize::from(is_v6(remote.ip))];
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
                changes.push(FdbEdit::Remote { device: new, mac: mac.0, ip: remote.ip, port: remote.port });
                changes.push(FdbEdit::Pin { port: new, mac: mac.0, firm: hold == Hold::Firm });
                let old = installed.and_then(|old| device(&self.devices, old));
                changes.extend(old.filter(|old| *old != new).map(|old| FdbEdit::NoRemote { device: old, mac: mac.0 }));
                self.installed.insert(mac, remote);
            }
            Wanted::Sleeve { decided: false } | Wanted::Nowhere if self.inherited.contains(&mac) => {}
            Wanted::Sleeve { .. } | Wanted::Nowhere => {
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
