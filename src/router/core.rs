//! The loop itself: one input, then drain.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use ipam::allocator::{Allocator, Contest};
use ipam::{AllocError, RequestId};
use ipnet::IpNet;
use mesh_proto::control::NodeConfig;
use mesh_proto::control::node::{Node, PeerInfo, PeerState, TargetInfo};
use mesh_proto::data::Hop;
use mesh_proto::handover::DataEvent;
use mesh_proto::id::{Incarnation, PeerId};
use tokio::sync::{mpsc, oneshot, watch};

use super::addresses::Addresses;
use super::fastpath::{self, Fast, Off};
use super::names::MeshNames;
use super::refusals::Refusals;
use super::{MessageCounters, Peer, RemoveError, Request, Snapshot, TargetView};
use crate::clock::Clock;
use crate::control::events::Events;
use crate::control::identity::Identity;
use crate::control::quic::{Quic, QuicEvent};
use crate::control::store::{Edit, Store, Stored, Table};
use crate::data::DataHandle;
use crate::fastpath::Seen;

/// Timers are served at most this often: a machine that names the past again and again costs a
/// bounded share of a processor.
const TIMER_GRAIN: Duration = Duration::from_millis(1);
/// How long the disk may take for what was written last.
const LAST_WRITES: Duration = Duration::from_secs(3);
/// Most addresses of our own that are remembered.
const OWN_MAX: usize = 64;

/// What the machines are made with.
#[derive(Debug)]
pub(super) struct CoreConfig {
    /// For the node.
    pub(super) node: NodeConfig,
    /// Targets of the node that the operator did not name: peers that there was a link with
    /// before the restart.
    pub(super) hints: BTreeSet<String>,
    /// Keys of this peer.
    pub(super) identity: Identity,
    /// Ranges of the network.
    pub(super) ranges: Vec<IpNet>,
    /// How the address protocol is to begin.
    pub(super) addresses: Addresses,
    /// Durable state of the address protocol.
    pub(super) ipam: Vec<(Vec<u8>, Vec<u8>)>,
    /// Port of a target that names none.
    pub(super) port: u16,
    /// What went wrong already.
    pub(super) problems: Vec<String>,
}

/// What the loop is connected to.
#[derive(Debug)]
pub(super) struct CoreIo {
    /// The process' clock.
    pub(super) clock: Clock,
    /// Links.
    pub(super) quic: Quic,
    /// What happens on them.
    pub(super) quic_events: mpsc::Receiver<QuicEvent>,
    /// The data thread.
    pub(super) data: DataHandle,
    /// What it sees.
    pub(super) data_events: mpsc::Receiver<DataEvent>,
    /// The durable state.
    pub(super) store: Store,
    /// What became durable.
    pub(super) stored: mpsc::Receiver<Stored>,
    /// Where what happens is told.
    pub(super) events: Events,
    /// The fast path, or why it is off.
    pub(super) fast: Result<Fast, Off>,
    /// The names of the mesh.
    pub(super) names: MeshNames,
}

type Answer = oneshot::Sender<Result<IpNet, AllocError>>;

/// The machines, and what they are connected to.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) node: Node<Identity>,
    pub(super) ipam: Allocator<Peer>,
    pub(super) clock: Clock,
    pub(super) quic: Quic,
    pub(super) data: DataHandle,
    pub(super) store: Store,
    pub(super) events: Events,
    pub(super) fast: Option<Fast>,
    /// Why there is none.
    no_fast: String,
    pub(super) names: MeshNames,
    pub(super) ranges: Vec<IpNet>,
    pub(super) port: u16,
    pub(super) endpoints: Vec<SocketAddr>,
    pub(super) problems: Vec<String>,
    /// What is wrong now, by part of the router.
    concerns: BTreeMap<&'static str, String>,
    pub(super) messages: MessageCounters,
    pub(super) discovery: bool,
    /// What the operator named.
    pub(super) targets: BTreeSet<String>,
    /// What the node was told besides, to find again whom there were links with.
    hints: BTreeSet<String>,
    pub(super) resolved: BTreeMap<String, Vec<SocketAddr>>,
    pub(super) resolver: mpsc::Sender<(String, Vec<SocketAddr>)>,
    /// Addresses at which this peer met itself.
    pub(super) own_addresses: BTreeSet<SocketAddr>,
    pub(super) own_key: [u8; 32],
    /// Set by whatever may have changed who is reachable.
    pub(super) reachability_changed: bool,
    reachable: Vec<(Peer, u64)>,
    /// Peers that are fenced off.
    pub(super) fenced: BTreeSet<PeerId>,
    pub(super) waiting: BTreeMap<RequestId, Answer>,
    next_request: u64,
    /// Writes of the address protocol that are not yet known to be durable.
    pub(super) writes: usize,
    pub(super) refusals: Refusals,
    inputs: Inputs,
}

#[derive(Debug)]
struct Inputs {
    quic: mpsc::Receiver<QuicEvent>,
    data: mpsc::Receiver<DataEvent>,
    stored: mpsc::Receiver<Stored>,
    requests: mpsc::Receiver<Request>,
    resolved: mpsc::Receiver<(String, Vec<SocketAddr>)>,
}

enum Input {
    Quic(QuicEvent),
    Data(DataEvent),
    Stored(Stored),
    Request(Request),
    Resolved(String, Vec<SocketAddr>),
    Fast(Seen),
    Timer,
    Stop,
}

impl Core {
    /// The machines, made but not yet running.
    ///
    /// # Errors
    /// If the durable state of the address protocol cannot be used, or the system has no
    /// random numbers.
    pub(super) fn new(config: CoreConfig, io: CoreIo, requests: mpsc::Receiver<Request>) -> anyhow::Result<Self> {
        use mesh_proto::control::Identity as _;

        let now = io.clock.now();
        let seeds = [seed()?, seed()?];
        let own_key = config.identity.sign_key();
        let me = Peer(config.identity.peer());
        let incarnation = config.node.incarnation.0;
        let endpoints = config.node.endpoints.clone();
        let discovery = config.node.discovery;
        let targets = config.node.targets.iter().filter(|t| !config.hints.contains(*t)).cloned().collect();
        let node = Node::new(config.node, config.identity, seeds[0], now);
        let ipam_config = config.addresses.config(me, incarnation, config.ranges.clone());
        let ipam = Allocator::new(ipam_config, config.ipam, seeds[1], now)?;
        let (resolver, resolved) = mpsc::channel(64);
        let (fast, no_fast) = match io.fast {
            Ok(fast) => (Some(fast), String::new()),
            Err(off) => (None, off.text()),
        };
        Ok(Self {
            node,
            ipam,
            clock: io.clock,
            quic: io.quic,
            data: io.data,
            store: io.store,
            events: io.events,
            fast,
            no_fast,
            names: io.names,
            ranges: config.ranges,
            port: config.port,
            endpoints,
            problems: config.problems,
            concerns: BTreeMap::new(),
            messages: MessageCounters::default(),
            discovery,
            targets,
            hints: config.hints,
            resolved: BTreeMap::new(),
            resolver,
            own_addresses: BTreeSet::new(),
            own_key,
            reachability_changed: true,
            reachable: Vec::new(),
            fenced: BTreeSet::new(),
            waiting: BTreeMap::new(),
            next_request: 0,
            writes: 0,
            refusals: Refusals::default(),
            inputs: Inputs { quic: io.quic_events, data: io.data_events, stored: io.stored, requests, resolved },
        })
    }

    /// Runs until `stop` turns true; then says goodbye and returns.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        self.drain();
        loop {
            match self.next(&mut stop).await {
                Input::Stop => break,
                input => self.handle(input),
            }
            self.drain();
        }
        self.finish_writes().await;
        // First, or it would free the entries of peers to whom there are no links any more: what is still heard by
        // sleeve would move them, and nobody would be there to put them back (fastpath F11).
        if let Some(fast) = &self.fast {
            fast.kernel.stop().await;
        }
        self.node.shutdown(self.clock.now());
        self.drain();
        self.quic.shutdown("the router stops").await;
    }

    /// The address protocol writes one thing after the other: what it was told last may still wait.
    async fn finish_writes(&mut self) {
        let all = async {
            while self.writes > 0
                && let Some(stored) = self.inputs.stored.recv().await
            {
                self.handle(Input::Stored(stored));
                self.drain();
            }
        };
        if tokio::time::timeout(LAST_WRITES, all).await.is_err() {
            tracing::error!(
                "the disk under the data directory does not keep up: the last changes of addresses are lost"
            );
        }
    }

    async fn next(&mut self, stop: &mut watch::Receiver<bool>) -> Input {
        let timer = self.next_timer();
        let inputs = &mut self.inputs;
        tokio::select! {
            // An error means that whoever could stop us is gone.
            _ = stop.wait_for(|stop| *stop) => Input::Stop,
            Some(event) = inputs.quic.recv() => Input::Quic(event),
            Some(event) = inputs.data.recv() => Input::Data(event),
            Some(stored) = inputs.stored.recv() => Input::Stored(stored),
            Some(request) = inputs.requests.recv() => Input::Request(request),
            Some((target, addresses)) = inputs.resolved.recv() => Input::Resolved(target, addresses),
            Some(seen) = fastpath::seen(&mut self.fast) => Input::Fast(seen),
            () = tokio::time::sleep_until(timer) => Input::Timer,
        }
    }

    fn next_timer(&self) -> tokio::time::Instant {
        /// With nothing to do, look again after this long: a machine without a timer is idle.
        const IDLE: Duration = Duration::from_secs(60);
        let fast = self.fast.as_ref().and_then(|fast| fast.machine.poll_timeout());
        let timers = [self.node.poll_timeout(), self.ipam.poll_timeout(), self.names.poll_timeout(), fast];
        let earliest = timers.into_iter().flatten().map(|(at, _)| at).min();
        let now = self.clock.now();
        let at = earliest.unwrap_or(now + IDLE).clamp(now + TIMER_GRAIN, now + IDLE);
        self.clock.instant(at).into()
    }

    fn handle(&mut self, input: Input) {
        let now = self.clock.now();
        match input {
            Input::Quic(event) => self.handle_quic(event, now),
            Input::Data(event) => self.node.handle_data_event(event, now),
            Input::Stored(stored) => {
                self.writes = self.writes.saturating_sub(1);
                if let Err(error) = &stored.result {
                    tracing::error!(%error, "the address state could not be written: check the disk under the data directory");
                }
                self.ipam.handle_stored(stored.ticket, stored.result, now);
            }
            Input::Request(request) => self.handle_request(request, now),
            Input::Resolved(target, addresses) => {
                self.node.handle_resolved(&target, &addresses, now);
                self.resolved.insert(target, addresses);
            }
            Input::Fast(seen) => {
                if let Some(fast) = &mut self.fast {
                    fast.handle(seen, now);
                }
            }
            Input::Timer => {
                let due = |timeout: Option<(Duration, _)>| timeout.is_some_and(|(at, _)| at <= now);
                if due(self.node.poll_timeout()) {
                    self.node.handle_timeout(now);
                }
                if due(self.ipam.poll_timeout()) {
                    self.ipam.handle_timeout(now);
                }
                if due(self.names.poll_timeout()) {
                    self.names.handle_timeout(now);
                }
                if let Some(fast) = &mut self.fast
                    && due(fast.machine.poll_timeout())
                {
                    fast.machine.handle_timeout(now);
                }
            }
            Input::Stop => {}
        }
    }

    fn handle_quic(&mut self, event: QuicEvent, now: Duration) {
        match event {
            QuicEvent::Connected(conn, connected) => {
                if let (Some(_), Hop::Direct(address)) = (connected.dial, connected.hop)
                    && connected.sign_key == self.own_key
                    && self.own_addresses.len() < OWN_MAX
                {
                    self.own_addresses.insert(address);
                }
                self.node.set_wall(self.clock.wall(now), now);
                self.node.handle_connected(conn, connected, now);
            }
            QuicEvent::DialFailed(dial, reason) => self.node.handle_dial_failed(dial, &reason, now),
            QuicEvent::Message(conn, bytes) => {
                self.messages.received += 1;
                self.messages.received_bytes += bytes.len() as u64;
                self.node.handle_message(conn, &bytes, now);
            }
            QuicEvent::Disconnected(conn, reason) => self.node.handle_disconnected(conn, &reason, now),
        }
    }

    fn handle_request(&mut self, request: Request, now: Duration) {
        // An asker that has gone away does not need the answer: `send` may fail.
        match request {
            Request::Snapshot(reply) => {
                let _ = reply.send(self.snapshot());
            }
            Request::Ipam(reply) => {
                let _ = reply.send(self.ipam.summary());
            }
            Request::Connect { targets, kept, reply } => {
                let _ = reply.send(self.connect(targets, kept, now));
            }
            Request::Forget(targets, reply) => {
                let _ = reply.send(self.forget(&targets, now));
            }
            Request::Revoke(peer, reply) => {
                let _ = reply.send(self.revoke(&peer, now));
            }
            Request::Secret(secret, reply) => {
                let _ = reply.send(self.node.set_secret(secret, now));
            }
            Request::Allocate { owner, range, reply } => {
                let request = self.await_answer(reply);
                self.ipam.allocate(request, &owner, range, now);
            }
            Request::Claim { owner, address, reply } => {
                let request = self.await_answer(reply);
                self.ipam.claim(request, &owner, address, now);
            }
            Request::Free { owner, address, reply } => {
                let _ = reply.send(self.ipam.free(&owner, address, now));
            }
            Request::Lookup { owner, reply } => {
                let _ = reply.send(self.ipam.lookup(&owner));
            }
            Request::Survey(in_use) => self.ipam.survey(&in_use, now),
            Request::Names(names) => self.names.set_own(&names),
            Request::AskAboutStrays => self.ipam.ask_about_strays(now),
            Request::RemovePeer(name, reply) => {
                let _ = reply.send(self.remove_peer(&name, now));
            }
            Request::Endpoints(endpoints) => {
                self.endpoints.clone_from(&endpoints);
                self.node.set_endpoints(endpoints, now);
            }
            Request::Problem(problem) => self.problems.push(problem),
            Request::Concern(part, problem) => {
                match problem {
                    Some(problem) => self.concerns.insert(part, problem),
                    None => self.concerns.remove(part),
                };
            }
        }
    }

    fn await_answer(&mut self, reply: Answer) -> RequestId {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.waiting.insert(request, reply);
        request
    }

    /// Removes a peer from the address space: by its name, or its id, of which eight digits do.
    fn remove_peer(&mut self, name: &str, now: Duration) -> Result<(PeerId, String), RemoveError> {
        const SHORTEST: usize = 8;
        let infos = self.node.peers();
        let mut found: BTreeMap<PeerId, String> = BTreeMap::new();
        for info in &infos {
            found.insert(info.id, info.name.clone());
        }
        // The mesh forgets who is away for long; what it owned stays.
        for (Peer(id), _) in self.ipam.summary().peers {
            found.entry(id).or_insert_with(|| id.to_string());
        }
        let by_id = |id: &PeerId| name.len() >= SHORTEST && id.to_string().starts_with(name);
        found.retain(|id, known| known == name || by_id(id));
        // Hosts that were replaced had the name that those in their place have. Asked again, it is done already.
        let (removed, mut there): (BTreeMap<_, _>, BTreeMap<_, _>) =
            found.into_iter().partition(|(id, _)| self.ipam.is_removed(Peer(*id)));
        match there.pop_first().or_else(|| removed.into_iter().next()) {
            None => Err(RemoveError::Unknown),
            Some(_) if !there.is_empty() => Err(RemoveError::Ambiguous),
            Some((id, known)) => {
                self.ipam.remove_peer(Peer(id), now)?;
                Ok((id, known))
            }
        }
    }

    fn connect(&mut self, targets: Vec<String>, kept: bool, now: Duration) -> Result<Vec<String>, Vec<String>> {
        for target in &targets {
            self.hints.remove(target);
            self.node.connect(target.clone(), now);
        }
        // The node takes a bounded number.
        let taken: BTreeSet<_> = self.node.targets().into_iter().map(|info| info.target).collect();
        let (taken, refused): (Vec<_>, Vec<_>) = targets.into_iter().partition(|target| taken.contains(target));
        for target in taken {
            if kept {
                self.write_later(Edit::set(Table::Peers, target_key(&target), Vec::new()));
            }
            self.targets.insert(target);
        }
        if refused.is_empty() { Ok(self.targets.iter().cloned().collect()) } else { Err(refused) }
    }

    fn forget(&mut self, targets: &[String], now: Duration) -> Result<Vec<String>, Vec<String>> {
        let unknown: Vec<_> = targets.iter().filter(|target| !self.targets.contains(*target)).cloned().collect();
        if !unknown.is_empty() {
            return Err(unknown);
        }
        for target in targets {
            self.forget_hints(target, now);
            self.node.forget(target, now);
            self.write_later(Edit::delete(Table::Peers, target_key(target)));
            self.targets.remove(target);
            self.resolved.remove(target);
        }
        Ok(self.targets.iter().cloned().collect())
    }

    /// Who is forgotten is not found again by what the last run knew of it.
    fn forget_hints(&mut self, target: &str, now: Duration) {
        let infos = self.node.targets();
        let found = infos.iter().find(|info| info.target == target).and_then(|info| info.peer);
        if let Some(peer) = found {
            self.write_later(Edit::delete(Table::Peers, known_key(peer)));
        }
        let addresses = self.resolved.get(target).cloned().unwrap_or_default();
        for info in infos {
            if !self.hints.contains(&info.target) {
                continue;
            }
            let same_peer = found.is_some() && info.peer == found;
            if same_peer || addresses.iter().any(|address| address.to_string() == info.target) {
                self.node.forget(&info.target, now);
                self.hints.remove(&info.target);
            }
        }
    }

    /// Tells the address protocol who can be reached, if that changed.
    pub(super) fn update_reachable(&mut self, now: Duration) {
        self.reachability_changed = false;
        let mut reachable: Vec<_> = self
            .node
            .peers()
            .iter()
            .filter(|peer| peer.state == PeerState::Established)
            .map(|peer| (Peer(peer.id), peer.incarnation.0))
            .collect();
        reachable.sort_unstable();
        if reachable != self.reachable {
            self.ipam.handle_peers(&reachable, now);
            let peers: Vec<_> = reachable.iter().map(|&(Peer(id), life)| (id, Incarnation(life))).collect();
            self.names.set_reachable(&peers, now);
            self.reachable = reachable;
        }
    }

    fn snapshot(&self) -> Snapshot {
        let summary = self.ipam.summary();
        let infos = self.node.peers();
        let found = self.node.targets();
        let named = found.iter().filter(|info| self.targets.contains(&info.target));
        let targets = named.map(|info| self.target(info, &infos)).collect();
        Snapshot {
            targets,
            peers: infos,
            readiness: self.ipam.readiness(),
            ranges: self.ranges.clone(),
            endpoints: self.endpoints.clone(),
            problems: self
                .problems
                .iter()
                .chain(self.concerns.values())
                .chain(&summary.problems)
                .cloned()
                .chain(summary.contests.iter().map(contest_text))
                .collect(),
            messages: self.messages,
            fast: self.fast.as_ref().map(Fast::snapshot).ok_or_else(|| self.no_fast.clone()),
        }
    }

    fn target(&self, info: &TargetInfo, peers: &[PeerInfo]) -> TargetView {
        let addresses = self.resolved.get(&info.target).cloned().unwrap_or_default();
        let own = |address| self.own_addresses.contains(address) || self.endpoints.contains(address);
        let itself = !addresses.is_empty() && addresses.iter().all(own);
        let reached = info
            .peer
            .is_some_and(|wanted| peers.iter().any(|peer| peer.id == wanted && peer.state == PeerState::Established));
        let reason = match (itself, reached, info.dialling) {
            (true, ..) => "this very peer".to_owned(),
            (_, true, _) => String::new(),
            (.., true) if info.reason.is_empty() => "dialling".to_owned(),
            (.., false) if info.reason.is_empty() => "not dialled yet".to_owned(),
            _ => info.reason.clone(),
        };
        TargetView { target: info.target.clone(), peer: info.peer, addresses, connected: itself || reached, reason }
    }
}

fn contest_text(contest: &Contest<Peer>) -> String {
    let Contest { address, here, peer: Peer(peer), there, theirs } = contest;
    let there = there.as_ref().map_or_else(String::new, |there| format!(", where {there} has it"));
    let whose = if *theirs { "belongs to" } else { "is used at" };
    format!("{address} of {here} {whose} peer {} too{there}: detach one of them", peer.short())
}

/// Random bytes of the system.
pub(super) fn seed() -> anyhow::Result<[u8; 32]> {
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed).map_err(|_| anyhow::anyhow!("the system has no random numbers"))?;
    Ok(seed)
}

/// Key of a target in the peers' table.
pub(super) fn target_key(target: &str) -> Vec<u8> {
    format!("target:{target}").into_bytes()
}

/// Key of a peer that there was a link with.
pub(super) fn known_key(peer: PeerId) -> Vec<u8> {
    format!("known:{peer}").into_bytes()
}
