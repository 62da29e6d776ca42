//! The fast path's decisions: which peers may have it, which have it now, and whose the MAC
//! addresses are.
//!
//! ```text
//!  tables, messages, probe frames, local MACs ─► FastPath ─┬─► Send, Frame    (offers, probes)
//!                                                          ├─► Kernel         (what shall be there)
//!                                                          └─► Learn, Switched
//! ```
//!
//! Whoever runs it makes the kernel be as the [`Kernel`] outputs say, and puts it back when
//! somebody else changes it; this machine never asks how that went: its probes tell.

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

pub use super::carrier::Why;
use super::carrier::{Carrier, Lane, Wish};
use super::owners::{Change, Owners};
use super::partner::{Partner, Said};
use super::terms::Terms;
pub use super::way::{Remote, Tunnel, Way};
use crate::data::macs::Mac;
use crate::data::overhead::ETHERNET_HEADER;
use crate::handover::Tables;
use crate::id::{Incarnation, PeerId};
use crate::wire::fastpath::{Delta, MACS_PER_PEER, Message, Ping, Pong, ProbeFrame, ProbeKind, Seal, Table, macs};

/// How often every other end is asked for the number of its table.
const SYNC_EVERY: Duration = Duration::from_secs(10);
/// Between two requests for the same table.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long what a peer said in an earlier life holds once its new life can be asked.
const RENEW: Duration = Duration::from_secs(3);
/// Changes of local addresses that come within this go out together.
const GATHER: Duration = Duration::from_millis(5);
/// How often the data path is reminded of addresses it cannot learn by itself: it forgets in 300 s.
const TEACH_EVERY: Duration = Duration::from_secs(100);

/// What a [`FastPath`] needs to know for its whole life.
#[derive(Debug, Clone)]
pub struct FastPathConfig {
    /// This peer.
    pub me: PeerId,
    /// UDP port of this peer's VXLAN device.
    pub port: u16,
    /// MTU of the overlay: the size of the largest probes.
    pub mtu: u16,
}

/// What the kernel shall be like from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kernel {
    /// Take VXLAN from that peer, and send probes to it, or do neither any more.
    Peer(PeerId, Option<Way>),
    /// Take VXLAN also from that address of the peer's, instead of another one of its family.
    Source(PeerId, IpAddr),
    /// Send frames for that peer's addresses by the fast path, or do not, or do so no more.
    Carrier(PeerId, bool),
    /// The peer can be reached, or not: then whoever is heard with one of its addresses has it.
    Live(PeerId, bool),
    /// The address belongs to that peer, or to none that is known.
    Owner(Mac, Option<PeerId>),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a message to a peer, on the control protocol.
    Send(PeerId, Vec<u8>),
    /// Put a frame into the bridge.
    Frame(Vec<u8>),
    /// Change the kernel.
    Kernel(Kernel),
    /// Tell the data path that the addresses are behind that peer.
    Learn(PeerId, Vec<Mac>),
    /// The carrier to a peer changed.
    Switched {
        /// The other end.
        peer: PeerId,
        /// To the fast path, or away from it.
        fast: bool,
        /// The fast path is sealed.
        sealed: bool,
        /// Why.
        why: Why,
    },
}

/// How it stands with one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The other end.
    pub peer: PeerId,
    /// Whether its frames go by the fast path.
    pub fast: bool,
    /// Whether that is sealed.
    pub sealed: bool,
    /// Why, or why not.
    pub why: Why,
    /// Addresses that it has announced.
    pub macs: usize,
}

/// The fast path of one peer, towards all others.
#[derive(Debug)]
pub struct FastPath {
    config: FastPathConfig,
    rng: ChaCha20Rng,
    now: Duration,
    partners: BTreeMap<PeerId, Partner>,
    owners: Owners,
    /// This end of WireGuard, while the kernel has it.
    seal: Option<Seal>,
    /// Number of our own table, and what changed since it was last told.
    number: u64,
    added: BTreeSet<Mac>,
    gone: BTreeSet<Mac>,
    tell_at: Option<Duration>,
    sync_at: Duration,
    unannounced: u64,
    switches: u64,
    out: VecDeque<Output>,
}

impl FastPath {
    /// One that knows nobody. `seed` makes probes unpredictable: draw it from the system.
    #[must_use]
    pub fn new(config: FastPathConfig, seed: [u8; 32], now: Duration) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        // Not the number of an earlier life.
        let number = rng.next_u64() >> 1;
        Self {
            config,
            rng,
            now,
            partners: BTreeMap::new(),
            owners: Owners::default(),
            seal: None,
            number,
            added: BTreeSet::new(),
            gone: BTreeSet::new(),
            tell_at: None,
            sync_at: now + SYNC_EVERY,
            unannounced: 0,
            switches: 0,
            out: VecDeque::new(),
        }
    }

    /// New forwarding tables. `wants` says what this end wants with which addresses (fastpath F5).
    pub fn set_tables(&mut self, tables: &Tables, wants: impl Fn(IpAddr) -> Terms, now: Duration) {
        self.advance(now);
        let known: Vec<PeerId> = self.partners.keys().copied().collect();
        for peer in known {
            if !tables.peers.contains_key(&peer) {
                self.absent(peer);
            }
        }
        for (&peer, path) in &tables.peers {
            if peer == self.config.me {
                continue;
            }
            let direct = path.direct.filter(|address| usable(address.ip()));
            let wanted = direct.map_or(Terms::NONE, |address| wants(address.ip()));
            let reachable = path.direct.is_some() || !path.relays.is_empty();
            self.present(peer, path.incarnation, direct, wanted, reachable);
        }
    }

    /// The kernel here has WireGuard from now on, or has it no more (fastpath F19). Sealed is what goes by it,
    /// or nothing.
    pub fn set_seal(&mut self, seal: Option<Seal>, now: Duration) {
        self.advance(now);
        if self.seal == seal {
            return;
        }
        let known: Vec<PeerId> = self.partners.keys().copied().collect();
        // What peers seal for another key than the device has opens no more.
        if self.seal.take().is_some() {
            for &peer in &known {
                self.review(peer);
            }
        }
        self.seal = seal;
        for peer in known {
            if self.partners.get(&peer).is_some_and(|partner| partner.direct.is_some() && partner.wanted.sealed) {
                self.send_table(peer);
            }
            self.review(peer);
        }
    }

    fn present(&mut self, peer: PeerId, life: Incarnation, direct: Option<SocketAddr>, wanted: Terms, reachable: bool) {
        let partner = self.partners.entry(peer).or_insert_with(|| Partner {
            incarnation: life,
            direct: None,
            stood: [None; 2],
            reachable: false,
            wanted: Terms::NONE,
            table: None,
            renew_by: None,
            asked: None,
            candidate: None,
            taught: None,
        });
        let (died, changed) = (partner.reachable && !reachable, partner.reachable != reachable);
        // What it was told before, its new life does not know; nor did it get what was sent on a
        // connection that broke.
        let tell =
            direct.is_some() && (partner.direct.is_none() || partner.incarnation != life || partner.wanted != wanted);
        partner.reachable = reachable;
        partner.incarnation = life;
        partner.direct = direct;
        if let Some(address) = direct {
            partner.wanted = wanted;
            let stood = &mut partner.stood[usize::from(address.is_ipv6())];
            let stands = Some(address.ip()).filter(|_| wanted.plain);
            if *stood != stands {
                *stood = stands;
                if partner.candidate.as_ref().is_some_and(|(way, _)| way.tunnel.is_none()) {
                    self.out.extend(stands.map(|ip| Output::Kernel(Kernel::Source(peer, ip))));
                }
            }
        }
        if changed {
            self.out.push_back(Output::Kernel(Kernel::Live(peer, reachable)));
        }
        if tell {
            self.send_table(peer);
        }
        if died {
            self.heirs_of(peer);
        }
        self.renew(peer);
        self.review(peer);
    }

    /// Asks a peer that started again whether it still wants the fast path: one that has none now
    /// would never say so.
    fn renew(&mut self, peer: PeerId) {
        let now = self.now;
        let Some(partner) = self.partners.get_mut(&peer) else { return };
        if !partner.reachable || partner.table.is_none_or(|said| said.life == partner.incarnation) {
            partner.renew_by = None;
        } else if partner.renew_by.is_none() {
            partner.renew_by = Some(now + RENEW);
            self.ask(peer);
        }
    }

    /// It has not said anything in this life: what it had to do with the fast path is over.
    fn lapse(&mut self, peer: PeerId) {
        if let Some(partner) = self.partners.get_mut(&peer) {
            (partner.table, partner.renew_by) = (None, None);
        }
        let claimed: Vec<Mac> = self.owners.claimed(peer).collect();
        self.review(peer);
        for mac in claimed {
            self.release(peer, mac);
        }
    }

    /// It is in the tables no more: nothing is sent to it and its addresses are free.
    fn absent(&mut self, peer: PeerId) {
        if let Some(partner) = self.partners.get_mut(&peer) {
            partner.direct = None;
            if core::mem::replace(&mut partner.reachable, false) {
                self.out.push_back(Output::Kernel(Kernel::Live(peer, false)));
            }
            self.heirs_of(peer);
            self.review(peer);
        }
    }

    /// The mesh has forgotten a peer, or shut it out: nothing is sent to it by the kernel, and
    /// nothing taken from it, from now on.
    pub fn forget(&mut self, peer: PeerId, now: Duration) {
        self.advance(now);
        if let Some(partner) = self.partners.remove(&peer)
            && let Some((way, carrier)) = partner.candidate
        {
            self.end_candidate(peer, &way, &carrier, Why::NotDirect);
            self.out.push_back(Output::Kernel(Kernel::Peer(peer, None)));
        }
        let claimed: Vec<Mac> = self.owners.claimed(peer).collect();
        for mac in claimed {
            let change = self.owners.withdraw(mac, peer);
            self.changed(change);
        }
    }

    /// A message of another peer's fast path.
    pub fn handle_message(&mut self, from: PeerId, bytes: &[u8], now: Duration) {
        self.advance(now);
        if !self.partners.contains_key(&from) {
            return;
        }
        match Message::decode(bytes) {
            Ok(Some(Message::Table(table))) => self.on_table(from, &table),
            Ok(Some(Message::Delta(delta))) => self.on_delta(from, &delta),
            Ok(Some(Message::Ask)) => self.send_table(from),
            Ok(Some(Message::Ping(Ping { nonce }))) => {
                let pong = Message::Pong(Pong { nonce, number: self.number });
                self.out.push_back(Output::Send(from, pong.encode()));
                self.ask_unless(from, |said| said.is_some());
            }
            Ok(Some(Message::Pong(pong))) => {
                if let Some(partner) = self.partners.get_mut(&from)
                    && let Some((_, carrier)) = &mut partner.candidate
                {
                    carrier.pong(pong.nonce, partner.direct.is_some(), now);
                }
                self.ask_unless(from, |said| said.is_some_and(|said| said.number == pong.number));
                self.drive(from);
            }
            Ok(None) | Err(_) => {}
        }
    }

    /// A frame of the probes' EtherType that the bridge delivered to this host.
    pub fn handle_probe(&mut self, frame: &[u8], now: Duration) {
        self.advance(now);
        let Some(probe) = ProbeFrame::decode(frame).filter(|probe| probe.to == self.config.me) else {
            return;
        };
        let candidate = self.partners.get_mut(&probe.from).and_then(|partner| partner.candidate.as_mut());
        let Some((_, carrier)) = candidate else {
            return;
        };
        match probe.kind {
            ProbeKind::Probe => {
                let echo = ProbeFrame { kind: ProbeKind::Echo, from: probe.to, to: probe.from, nonce: probe.nonce };
                self.out.push_back(Output::Frame(echo.encode(0)));
            }
            ProbeKind::Echo => {
                if carrier.echo(probe.nonce, now) {
                    self.drive(probe.from);
                }
            }
        }
    }

    /// A MAC address of this host came or went (fastpath F7).
    pub fn set_local(&mut self, mac: Mac, present: bool, now: Duration) {
        self.advance(now);
        if mac.is_group() || mac == Mac([0; 6]) {
            return;
        }
        let me = self.config.me;
        let had = self.owners.count(me);
        let change = if present {
            let partners = &self.partners;
            self.owners.claim(mac, me, |owner| is_live(partners, me, owner))
        } else {
            self.owners.withdraw(mac, me)
        };
        self.changed(change);
        let has = self.owners.count(me);
        if has == had {
            self.unannounced += u64::from(present && had >= MACS_PER_PEER);
            return;
        }
        let (to, other) = if present { (&mut self.added, &mut self.gone) } else { (&mut self.gone, &mut self.added) };
        if !other.remove(&mac) {
            to.insert(mac);
        }
        self.tell_at.get_or_insert(now + GATHER);
    }

    /// A time that [`Self::poll_timeout`] named has come.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.advance(now);
        if self.tell_at.is_some_and(|at| at <= now) {
            self.tell();
        }
        if self.sync_at <= now {
            self.sync_at = now + SYNC_EVERY;
            self.sync();
        }
        let lapsed: Vec<PeerId> = self
            .partners
            .iter()
            .filter(|(_, partner)| partner.renew_by.is_some_and(|at| at <= now))
            .map(|(&peer, _)| peer)
            .collect();
        for peer in lapsed {
            self.lapse(peer);
        }
        let due: Vec<PeerId> = self
            .partners
            .iter()
            .filter(|(_, partner)| partner.candidate.as_ref().is_some_and(|(_, carrier)| carrier.due() <= now))
            .map(|(&peer, _)| peer)
            .collect();
        for peer in due {
            self.drive(peer);
        }
    }

    /// When to call [`Self::handle_timeout`], and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Duration, &'static str)> {
        let probe = self.partners.values().filter_map(|p| p.candidate.as_ref()).map(|(_, carrier)| carrier.due()).min();
        let renew = self.partners.values().filter_map(|partner| partner.renew_by).min();
        let timers = [
            (Some(self.sync_at), "tables compared"),
            (self.tell_at, "addresses told"),
            (probe, "probe due"),
            (renew, "an earlier life's word lapses"),
        ];
        timers.into_iter().filter_map(|(at, why)| Some((at?, why))).min()
    }

    /// What to do next; drain until `None` after every input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// How it stands with each peer that is known.
    pub fn views(&self) -> impl Iterator<Item = View> + '_ {
        self.partners.iter().map(|(&peer, partner)| {
            let (fast, sealed, why) = match &partner.candidate {
                Some((way, carrier)) => (carrier.is_fast(), way.tunnel.is_some(), carrier.why()),
                None => (false, false, partner.why_not(self.seal)),
            };
            View { peer, fast, sealed, why, macs: self.owners.count(peer) }
        })
    }

    /// Changes of carrier so far.
    #[must_use]
    pub const fn switches(&self) -> u64 {
        self.switches
    }

    /// Claims on addresses of live owners that were not granted so far (fastpath F8).
    #[must_use]
    pub const fn claims_refused(&self) -> u64 {
        self.owners.refused()
    }

    /// Local addresses that were not announced because there were too many.
    #[must_use]
    pub const fn unannounced(&self) -> u64 {
        self.unannounced
    }

    fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    fn on_table(&mut self, from: PeerId, table: &Table) {
        let seal = table.seal.filter(|seal| self.is_of(from, seal));
        if let Some(partner) = self.partners.get_mut(&from) {
            let life = partner.incarnation;
            let Table { port, willing, number, .. } = *table;
            partner.table = Some(Said { port, willing, seal, number, life });
            (partner.asked, partner.renew_by) = (None, None);
            if partner.agreed(self.seal).is_none() {
                // Not only for want of a word: what an earlier life left in the kernel ends.
                self.out.push_back(Output::Kernel(Kernel::Carrier(from, false)));
            }
        }
        let now: BTreeSet<Mac> = macs(&table.macs).collect();
        let before: Vec<Mac> = self.owners.claimed(from).collect();
        for mac in before.into_iter().filter(|mac| !now.contains(mac)) {
            self.release(from, mac);
        }
        for mac in now {
            self.claim(from, mac);
        }
        self.review(from);
    }

    /// Whether a key may be that peer's: it is nobody else's. The first to say it has it.
    fn is_of(&self, peer: PeerId, seal: &Seal) -> bool {
        let others = self.partners.iter().filter(|(other, _)| **other != peer);
        let theirs = others.filter_map(|(_, partner)| partner.table?.seal);
        seal.key != [0; 32] && theirs.chain(self.seal).all(|other| other.key != seal.key)
    }

    fn on_delta(&mut self, from: PeerId, delta: &Delta) {
        let said = self.partners.get_mut(&from).and_then(|partner| partner.table.as_mut());
        match said {
            Some(said) if said.number == delta.before => said.number = delta.after,
            Some(said) if said.number == delta.after => return,
            _ => return self.ask(from),
        }
        for mac in macs(&delta.gone) {
            self.release(from, mac);
        }
        for mac in macs(&delta.added) {
            self.claim(from, mac);
        }
    }

    fn claim(&mut self, peer: PeerId, mac: Mac) {
        let (partners, me) = (&self.partners, self.config.me);
        let change = self.owners.claim(mac, peer, |owner| is_live(partners, me, owner));
        self.changed(change);
    }

    fn release(&mut self, peer: PeerId, mac: Mac) {
        let change = self.owners.withdraw(mac, peer);
        self.changed(change);
    }

    fn heirs_of(&mut self, peer: PeerId) {
        let (partners, me) = (&self.partners, self.config.me);
        for change in self.owners.died(peer, |owner| is_live(partners, me, owner)) {
            self.changed(Some(change));
        }
    }

    fn changed(&mut self, change: Option<Change>) {
        if let Some((mac, owner)) = change {
            let owner = owner.filter(|owner| *owner != self.config.me);
            self.out.push_back(Output::Kernel(Kernel::Owner(mac, owner)));
        }
    }

    /// Begins or ends candidacy as both ends want it (fastpath F5).
    fn review(&mut self, peer: PeerId) {
        let seal = self.seal;
        let Some(partner) = self.partners.get_mut(&peer) else { return };
        let agreed = partner.agreed(seal);
        let way = agreed.and_then(|cover| partner.way(peer, cover));
        match (way, partner.candidate.take()) {
            (Some(way), None) => self.begin_candidate(peer, way, Why::Proving),
            // The link has moved, perhaps to the other family: what works is not given up for what
            // is not proven. If it works no more its probes say so, and then comes the new one.
            (Some(way), Some((old, carrier))) if old.leads_as(&way) && carrier.is_fast() => {
                partner.candidate = Some((old, carrier));
            }
            (Some(way), Some((old, carrier))) if old != way => {
                self.end_candidate(peer, &old, &carrier, Why::Moved);
                self.begin_candidate(peer, way, Why::Moved);
            }
            // Its router may have stopped: what the kernel carries goes on (fastpath F11).
            (None, Some((old, carrier))) if agreed == Some(old.cover()) && carrier.is_fast() => {
                partner.candidate = Some((old, carrier));
            }
            (None, Some((old, carrier))) => {
                partner.stood = [None; 2];
                let why = partner.why_not(seal);
                self.end_candidate(peer, &old, &carrier, why);
                self.out.push_back(Output::Kernel(Kernel::Peer(peer, None)));
            }
            (_, kept) => partner.candidate = kept,
        }
    }

    fn begin_candidate(&mut self, peer: PeerId, way: Way, why: Why) {
        if let Some(partner) = self.partners.get_mut(&peer) {
            partner.candidate = Some((way, Carrier::new(why, self.now)));
            self.out.push_back(Output::Kernel(Kernel::Peer(peer, Some(way))));
            if way.tunnel.is_none() {
                let others = partner.stood.into_iter().flatten().filter(|ip| ip.is_ipv6() != way.remote.ip.is_ipv6());
                self.out.extend(others.map(|ip| Output::Kernel(Kernel::Source(peer, ip))));
            }
            self.drive(peer);
        }
    }

    fn end_candidate(&mut self, peer: PeerId, way: &Way, carrier: &Carrier, why: Why) {
        if carrier.is_fast() {
            self.switched(peer, false, way.tunnel.is_some(), why);
        }
    }

    /// Does what a carrier wants.
    fn drive(&mut self, peer: PeerId) {
        loop {
            let nonce = self.rng.next_u64();
            let (now, me, mtu) = (self.now, self.config.me, self.config.mtu);
            let Some(partner) = self.partners.get_mut(&peer) else { return };
            let Some((way, carrier)) = &mut partner.candidate else { return };
            let sealed = way.tunnel.is_some();
            let Some(wish) = carrier.poll(nonce, now) else { return };
            let why = carrier.why();
            match wish {
                Wish::Probe(lane, nonce) => {
                    let length = match lane {
                        Lane::Small => 0,
                        Lane::Full => usize::from(mtu) + usize::from(ETHERNET_HEADER),
                    };
                    let probe = ProbeFrame { kind: ProbeKind::Probe, from: me, to: peer, nonce };
                    self.out.push_back(Output::Frame(probe.encode(length)));
                }
                Wish::Ping(nonce) => {
                    self.out.push_back(Output::Send(peer, Message::Ping(Ping { nonce }).encode()));
                }
                Wish::Switch(fast) => {
                    self.switched(peer, fast, sealed, why);
                    // Without a link there is nothing to prove it on.
                    self.review(peer);
                }
            }
        }
    }

    fn switched(&mut self, peer: PeerId, fast: bool, sealed: bool, why: Why) {
        self.switches += 1;
        if !fast {
            // Before the kernel lets go of them, so that not one frame is flooded.
            self.teach(peer);
        }
        self.out.push_back(Output::Kernel(Kernel::Carrier(peer, fast)));
        self.out.push_back(Output::Switched { peer, fast, sealed, why });
    }

    /// The data path has not seen what the kernel carried: it does not know those addresses.
    fn teach(&mut self, peer: PeerId) {
        let owned: Vec<Mac> = self.owners.owned(peer).collect();
        if !owned.is_empty() {
            self.out.push_back(Output::Learn(peer, owned));
        }
        if let Some(partner) = self.partners.get_mut(&peer) {
            partner.taught = Some(self.now);
        }
    }

    fn ask_unless(&mut self, peer: PeerId, known: impl Fn(Option<Said>) -> bool) {
        if self.partners.get(&peer).is_some_and(|partner| !known(partner.table)) {
            self.ask(peer);
        }
    }

    fn ask(&mut self, peer: PeerId) {
        let now = self.now;
        if let Some(partner) = self.partners.get_mut(&peer)
            && partner.asked.is_none_or(|at| now >= at + ASK_EVERY)
        {
            partner.asked = Some(now);
            self.out.push_back(Output::Send(peer, Message::Ask.encode()));
        }
    }

    fn send_table(&mut self, peer: PeerId) {
        // What is still to be told is told to everybody, so that numbers stay in step.
        self.tell();
        let Some(partner) = self.partners.get(&peer) else { return };
        let macs = bytes(self.owners.claimed(self.config.me));
        let (willing, seal) = (partner.wanted.plain, self.seal.filter(|_| partner.wanted.sealed));
        let table = Table { port: self.config.port, willing, number: self.number, macs, seal };
        self.out.push_back(Output::Send(peer, Message::Table(table).encode()));
    }

    fn tell(&mut self) {
        self.tell_at = None;
        let (added, gone) = (core::mem::take(&mut self.added), core::mem::take(&mut self.gone));
        if added.is_empty() && gone.is_empty() {
            return;
        }
        let before = self.number;
        self.number += 1;
        let delta =
            Delta { before, after: self.number, added: bytes(added.into_iter()), gone: bytes(gone.into_iter()) };
        let message = Message::Delta(delta).encode();
        for (&peer, partner) in &self.partners {
            if partner.direct.is_some() {
                self.out.push_back(Output::Send(peer, message.clone()));
            }
        }
    }

    /// Compares numbers, so that whatever got lost is noticed, and reminds the data path.
    fn sync(&mut self) {
        let nonce = self.rng.next_u64();
        let now = self.now;
        let mut stale = Vec::new();
        for (&peer, partner) in &self.partners {
            if partner.direct.is_some() {
                self.out.push_back(Output::Send(peer, Message::Ping(Ping { nonce }).encode()));
            }
            let fast = partner.candidate.as_ref().is_some_and(|(_, carrier)| carrier.is_fast());
            if !fast && partner.taught.is_some_and(|at| now >= at + TEACH_EVERY) {
                stale.push(peer);
            }
        }
        for peer in stale {
            self.teach(peer);
        }
    }
}

/// Whether an owner of addresses can be asked to give them up (fastpath F8).
fn is_live(partners: &BTreeMap<PeerId, Partner>, me: PeerId, owner: PeerId) -> bool {
    owner == me || partners.get(&owner).is_some_and(|partner| partner.reachable)
}

/// An address that VXLAN can be sent to without naming an interface.
const fn usable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_loopback() && !ip.is_broadcast() && !ip.is_multicast(),
        IpAddr::V6(ip) => {
            !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !ip.is_unicast_link_local()
        }
    }
}

fn bytes(macs: impl Iterator<Item = Mac>) -> Vec<u8> {
    macs.flat_map(|mac| mac.0).collect()
}
