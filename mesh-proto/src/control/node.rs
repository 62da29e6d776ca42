//! The node: handshake, links, gossip, topology, routes and connector behind one surface.
//!
//! ```text
//!  input ─► its part (shake, link, gossip, session, apps, connect) ─► marks what is stale
//!  poll_output ─► settle: publish ─► push ─► routes ─► tables ─► dials ─► status
//! ```
//!
//! Inputs change state and mark what follows from it as stale; the first `poll_output` after
//! them brings everything up to date once, however many inputs there were.

mod apps;
mod connect;
mod gossip;
mod link;
mod routes;
mod session;
mod shake;
mod status;
mod trust;

use core::net::SocketAddr;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use self::link::{Conn, Peer};
use self::shake::REPLACED;
use super::admission::Trust;
use super::connector::Connector;
pub use super::connector::TargetInfo;
use super::gossip::Store;
use super::guard::Guard;
use super::record::SignedRecord;
use super::routes::Router;
use super::timers::{Timer, Timers};
use super::topology::Topology;
use super::window::Window;
use super::{ConnId, Connected, DialId, Event, Identity, NodeConfig, Output};
use crate::address::canonical;
use crate::handover::{DataEvent, Tables};
use crate::id::{Incarnation, PeerId};
use crate::wire::control::Message;

/// The control plane of one peer.
#[derive(Debug)]
pub struct Node<I> {
    identity: I,
    config: NodeConfig,
    me: PeerId,
    /// Tells this run of the router from a clone of its data directory.
    run: [u8; 16],
    incarnation: Incarnation,
    /// Number of our newest record in this incarnation.
    seq: u64,
    rng: ChaCha20Rng,
    now: Duration,
    out: VecDeque<Output>,
    timers: Timers,
    stale: Stale,
    stopped: bool,
    conns: BTreeMap<ConnId, Conn>,
    peers: BTreeMap<PeerId, Peer>,
    guard: Guard,
    store: Store,
    /// Of peers that live one incarnation twice the older record, until they have heard of it.
    clashes: BTreeMap<PeerId, SignedRecord>,
    /// Records to push on, with the neighbours that have sent them to us, in that order.
    push: BTreeMap<PeerId, Vec<PeerId>>,
    pushed_at: Option<Duration>,
    /// Until when what we published is paid for: each record costs `publish_every`.
    publish_paid: Duration,
    raised_at: Option<Duration>,
    /// The incarnation to take as soon as it may be raised again.
    raise_to: Option<Incarnation>,
    /// Where other peers see us.
    observed: BTreeMap<PeerId, SocketAddr>,
    topology: Topology,
    router: Router,
    routes_at: Option<Duration>,
    /// Whose records list other links than when routes were computed last.
    relinked: BTreeSet<PeerId>,
    tables: Option<Arc<Tables>>,
    /// Paths to probe as soon as the data path knows them.
    probe: BTreeSet<PeerId>,
    connector: Connector,
    dials_at: Option<Duration>,
    /// Peers whose state may be another than when it was noted last.
    touched: BTreeSet<PeerId>,
    app_seq: u64,
    windows: BTreeMap<PeerId, Window>,
    trust: Trust,
}

/// What must be brought up to date before the next output.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent marks, each cleared by its own step")]
struct Stale {
    record: bool,
    routes: bool,
    tables: bool,
    dials: bool,
    /// Dials do not wait until the next time that all peers are looked at.
    urgent: bool,
}

impl<I: Identity> Node<I> {
    /// A node that knows nobody yet. All its randomness (jitter, ephemeral keys) comes from
    /// `seed`, so the router must draw that from the system.
    pub fn new(mut config: NodeConfig, identity: I, seed: [u8; 32], now: Duration) -> Self {
        let me = PeerId::of_keys(&identity.sign_key(), &identity.box_key());
        let mut rng = ChaCha20Rng::from_seed(seed);
        let mut run = [0; 16];
        rng.fill_bytes(&mut run);
        config.name = clean(&config.name);
        config.endpoints.iter_mut().for_each(|address| *address = canonical(*address));
        let mut node = Self {
            identity,
            me,
            run,
            incarnation: config.incarnation,
            seq: 0,
            rng,
            now,
            out: VecDeque::new(),
            timers: Timers::default(),
            stale: Stale { record: true, routes: true, tables: true, dials: true, urgent: true },
            stopped: false,
            conns: BTreeMap::new(),
            peers: BTreeMap::new(),
            guard: Guard::default(),
            store: Store::default(),
            clashes: BTreeMap::new(),
            push: BTreeMap::new(),
            pushed_at: None,
            publish_paid: Duration::ZERO,
            raised_at: None,
            raise_to: None,
            observed: BTreeMap::new(),
            topology: Topology::default(),
            router: Router::default(),
            routes_at: None,
            relinked: BTreeSet::new(),
            tables: None,
            probe: BTreeSet::new(),
            connector: Connector::default(),
            dials_at: None,
            touched: BTreeSet::new(),
            app_seq: 0,
            windows: BTreeMap::new(),
            trust: Trust::new(me, &config.network, core::mem::take(&mut config.trust.kept)),
            config,
        };
        for target in core::mem::take(&mut node.config.targets) {
            node.connector.add_target(&target, now);
        }
        node
    }

    /// This peer.
    pub fn id(&self) -> PeerId {
        self.me
    }

    /// This peer's incarnation: the configured one, unless it had to be raised.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// A connection was made, by us or by the other end.
    pub fn handle_connected(&mut self, conn: ConnId, connected: Connected, now: Duration) {
        self.advance(now);
        self.on_connected(conn, connected);
    }

    /// A dial came to nothing.
    pub fn handle_dial_failed(&mut self, dial: DialId, reason: &str, now: Duration) {
        self.advance(now);
        self.connector.failed(dial, &clean_line(reason), now, &mut self.rng);
        self.stale.dials = true;
    }

    /// A message came in.
    pub fn handle_message(&mut self, conn: ConnId, bytes: &[u8], now: Duration) {
        self.advance(now);
        if !self.stopped {
            self.on_message(conn, bytes);
        }
    }

    /// A connection is gone; `reason` is the other end's text or the transport's.
    pub fn handle_disconnected(&mut self, conn: ConnId, reason: &str, now: Duration) {
        self.advance(now);
        self.on_disconnected(conn, &clean_line(reason));
    }

    /// The answer to [`Output::Resolve`]; no address means that the name does not resolve.
    pub fn handle_resolved(&mut self, target: &str, addresses: &[SocketAddr], now: Duration) {
        self.advance(now);
        let addresses: Vec<SocketAddr> = addresses.iter().copied().map(canonical).collect();
        self.connector.resolved(target, &addresses, now, &mut self.rng);
        self.dial_now();
    }

    /// The data path saw something.
    pub fn handle_data_event(&mut self, event: DataEvent, now: Duration) {
        self.advance(now);
        if !self.stopped {
            self.on_data_event(&event);
        }
    }

    /// The addresses at which this peer can be dialled changed.
    pub fn set_endpoints(&mut self, endpoints: Vec<SocketAddr>, now: Duration) {
        self.advance(now);
        let endpoints: Vec<SocketAddr> = endpoints.into_iter().map(canonical).collect();
        if self.config.endpoints != endpoints {
            self.config.endpoints = endpoints;
            self.stale.record = true;
        }
    }

    /// The wall clock says so many seconds since 1970 now: to be told when it has jumped.
    pub fn set_wall(&mut self, wall: u64, now: Duration) {
        self.advance(now);
        self.config.trust.wall = wall.saturating_sub(self.now.as_secs());
    }

    /// The operator has changed the network secret: from now on newcomers prove this one. Links
    /// stand, and those who are admitted link as before (control C33). False if that changes
    /// nothing: it is the same, or the network has none.
    pub fn set_secret(&mut self, secret: crate::handover::SessionKey, now: Duration) -> bool {
        self.advance(now);
        let changes = self.config.secret.as_ref().is_some_and(|old| old.0 != secret.0);
        if changes {
            self.config.secret = Some(secret);
        }
        changes
    }

    /// The operator revokes a peer's keys: every member shuts it out, for good (control C30).
    ///
    /// # Errors
    /// If that cannot be.
    pub fn revoke(&mut self, peer: PeerId, now: Duration) -> Result<(), RevokeError> {
        self.advance(now);
        self.on_revoke(peer)
    }

    /// The operator names one more peer to dial.
    pub fn connect(&mut self, target: String, now: Duration) {
        self.advance(now);
        if !self.stopped {
            self.connector.add_target(&target, now);
            self.dial_now();
        }
    }

    /// The operator takes a target back. Established links to it are closed, and it is not
    /// dialled any more, not even by discovery, until it is named again. (What it dials itself is
    /// accepted: to part for good, both ends must forget.) False if it was no target.
    pub fn forget(&mut self, target: &str, now: Duration) -> bool {
        self.advance(now);
        self.on_forget(target)
    }

    /// Says goodbye on every connection, so that nobody waits for a timeout.
    pub fn shutdown(&mut self, now: Duration) {
        self.advance(now);
        let reason = format!("peer `{}` shuts down", self.config.name);
        self.close_all(&reason);
        self.connector.stop();
        self.timers.clear_all();
        self.stopped = true;
    }

    /// Sends an application's message to one peer, through others if need be. Best effort: it is
    /// lost if there is no path, so applications repeat what matters.
    pub fn send_app(&mut self, to: PeerId, payload: Vec<u8>, now: Duration) {
        self.advance(now);
        self.app_to(to, payload);
    }

    /// Sends an application's message to every reachable peer, best effort, at most once each.
    pub fn broadcast_app(&mut self, payload: Vec<u8>, now: Duration) {
        self.advance(now);
        self.app_to_all(payload);
    }

    /// A time that [`Self::poll_timeout`] named has come (earlier or later is harmless).
    pub fn handle_timeout(&mut self, now: Duration) {
        self.advance(now);
        while let Some(timer) = self.timers.pop(now) {
            self.on_timer(timer);
        }
    }

    /// What to do next; drain until `None` after every input.
    pub fn poll_output(&mut self) -> Option<Output> {
        if self.out.is_empty() && !self.stopped {
            self.settle();
        }
        self.out.pop_front()
    }

    /// When to call [`Self::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Duration, &'static str)> {
        self.timers.next()
    }

    /// Every peer that this node knows, for `status` and `peers`, itself first.
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.peer_infos()
    }

    /// The peers that the operator named, and how dialling them goes.
    pub fn targets(&self) -> Vec<TargetInfo> {
        self.connector.targets()
    }

    /// Time does not go back, whatever the caller says.
    fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Handshake(conn) => self.handshake_late(conn),
            Timer::Replaced(conn) => self.close(conn, REPLACED),
            Timer::Path(peer) => self.first_echo_late(peer),
            Timer::Rtt(peer) => self.republish_rtt(peer),
            Timer::OneSided(peer) => self.one_sided(peer),
            Timer::Idle(conn) => self.close_if_idle(conn),
            Timer::Rekey(peer) => self.rekey_late(peer),
            Timer::Forget(peer) => self.forget_peer(peer),
            Timer::Publish => self.stale.record = true,
            Timer::Push => {}
            Timer::Routes => self.stale.routes = true,
            Timer::Compare => self.compare_regularly(),
            Timer::Repair => _ = self.compare_with_one(),
            Timer::Dial => self.stale.dials = true,
            Timer::Raise => self.raise_if_due(),
            Timer::Shed => self.shed_if_crowded(),
        }
    }

    /// Brings everything up to date.
    fn settle(&mut self) {
        self.keep_trust();
        self.publish_if_stale();
        self.push_records();
        self.recompute_routes();
        self.publish_tables();
        self.run_connector();
        self.refresh_status();
    }

    /// Somebody is to be dialled, and that is not to wait.
    fn dial_now(&mut self) {
        self.stale.dials = true;
        self.stale.urgent = true;
    }

    fn emit(&mut self, event: Event) {
        self.out.push_back(Output::Event(event));
    }

    fn send(&mut self, conn: ConnId, message: &Message) {
        self.out.push_back(Output::Send { conn, bytes: message.encode() });
    }
}

/// A name as it may be shown and sent: without control characters, not too long.
fn clean(name: &str) -> String {
    shorten(name, crate::wire::control::NAME_MAX)
}

/// A line of text from outside, as it may be shown and sent.
fn clean_line(line: &str) -> String {
    shorten(line, crate::wire::control::REASON_MAX)
}

fn shorten(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for char in text.chars().filter(|char| !char.is_control()) {
        if out.len() + char.len_utf8() > limit {
            break;
        }
        out.push(char);
    }
    out
}

/// One peer as the control plane sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its id.
    pub id: PeerId,
    /// Its name.
    pub name: String,
    /// Its instance.
    pub instance: u64,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// What stands between us.
    pub state: PeerState,
    /// The link's address, if there is a link.
    pub direct: Option<SocketAddr>,
    /// The neighbour that frames go through, if there is no link but a route.
    pub via: Option<PeerId>,
    /// Time (on the node's clock) of the last change of `state`.
    pub since: Duration,
    /// Why the state is what it is: the last error, or how the link came about.
    pub reason: String,
    /// Peers it has links with, as gossip tells.
    pub links: Vec<PeerId>,
}

/// What stands between this peer and another (contract of `weft status -o json`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerState {
    /// It is this peer itself.
    Me,
    /// Frames can flow, by a link or through relays.
    Established,
    /// A dial or a handshake is under way.
    Connecting,
    /// The last attempt failed; another follows.
    Retrying,
    /// It was revoked.
    Removed,
}

/// Why a peer cannot be revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RevokeError {
    /// Who is revoked could come back under any other name.
    #[error("the network has no secret, so whoever is shut out comes back with new keys: set a secret first")]
    NoSecret,
    /// A peer cannot leave like that.
    #[error("this is the very peer that is asked: stop it with `weft down`")]
    Myself,
    /// Nothing is left to do.
    #[error("it is revoked already")]
    Already,
    /// The set has a bound.
    #[error("{max} peers are revoked already, the most that are kept", max = crate::wire::trust::REVOKED_MAX)]
    Full,
}
