//! From what the machines know to what the API says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipam::allocator::{Contest, Summary};
use mesh_proto::control::fastpath::View;
use mesh_proto::control::node::{PeerInfo, PeerState};
use mesh_proto::data::report::{Carried, PathReport};
use mesh_proto::handover::Suite;
use mesh_proto::id::PeerId;

use super::types::{Allocation, Contested, Counters, Ipam, IpamPeer, Me, Offloads, Peer, Status, Target};
use crate::clock::Clock;
use crate::control::guard::Guarded;
use crate::data::Report;
use crate::logging::rfc3339;
use crate::router::{Peer as PeerKey, Snapshot};

/// What does not change while a router runs.
#[derive(Debug, Clone)]
pub struct Info {
    /// This peer.
    pub id: PeerId,
    /// Its name.
    pub name: String,
    /// Instance of its data directory.
    pub instance: u64,
    /// Number of this start.
    pub incarnation: u64,
    /// Name of the network.
    pub network: String,
    /// Whether the network has a secret.
    pub sealed: bool,
    /// The suites that are offered, best first.
    pub suites: Vec<Suite>,
    /// MTU of the overlay.
    pub mtu: u16,
    /// Name of the bridge.
    pub bridge: String,
    /// UDP port.
    pub port: u16,
    /// Where this peer could be dialled when it started.
    pub endpoints: Vec<SocketAddr>,
    /// Domain of the mesh's names.
    pub domain: String,
    /// Where names are answered.
    pub dns: Vec<SocketAddr>,
    /// The process' clock; began with the router.
    pub clock: Clock,
}

impl Info {
    fn at(&self, now: std::time::Duration) -> String {
        rfc3339(self.clock.wall(now))
    }
}

/// The answer to `GET /v1/status`.
#[must_use]
pub fn status(info: &Info, snapshot: &Snapshot, report: Option<&Report>, guarded: &Guarded) -> Status {
    let names = names(snapshot);
    let paths: BTreeMap<_, _> = report.iter().flat_map(|report| &report.paths).map(|path| (path.peer, path)).collect();
    let views = snapshot.fast.iter().flat_map(|fast| &fast.peers);
    let fast: BTreeMap<_, _> = views.map(|view| (view.peer, view)).collect();
    let peers: Vec<_> = snapshot
        .peers
        .iter()
        .filter(|peer| peer.state != PeerState::Me)
        .map(|one| peer(info, one, paths.get(&one.id).copied(), fast.get(&one.id).copied(), &names))
        .collect();
    let ready = snapshot.readiness.is_ok() && report.is_some_and(|report| !report.tap_lost);
    let problems = problems(snapshot, report, guarded, &peers);
    let verdict = match (ready, problems.is_empty()) {
        (true, true) => "ok",
        (true, false) => "degraded",
        (false, _) => "starting",
    };
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        peer: Me {
            id: info.id.to_string(),
            name: info.name.clone(),
            instance: format!("{:016x}", info.instance),
            incarnation: info.incarnation,
        },
        network: info.network.clone(),
        ready,
        verdict: verdict.to_owned(),
        problems,
        encryption: encryption(info).to_owned(),
        fast_path: snapshot.fast.as_ref().map_or_else(Clone::clone, |_| "on".to_owned()),
        mtu: info.mtu,
        range: snapshot.ranges.iter().map(ToString::to_string).collect(),
        bridge: info.bridge.clone(),
        port: info.port,
        endpoints: snapshot.endpoints.iter().map(ToString::to_string).collect(),
        pid: std::process::id(),
        since: info.at(std::time::Duration::ZERO),
        targets: snapshot
            .targets
            .iter()
            .map(|view| Target {
                target: view.target.clone(),
                addresses: view.addresses.iter().map(ToString::to_string).collect(),
                connected: view.connected,
                reason: view.reason.clone(),
            })
            .collect(),
        peers,
        offloads: report.map(|report| offloads(&report.offloads)).unwrap_or_default(),
        counters: counters(snapshot, report, guarded),
    }
}

fn offloads(found: &crate::data::Offloads) -> Offloads {
    Offloads {
        checksum: found.checksum,
        tcp: found.tcp,
        udp: found.udp,
        udp_segmentation: found.udp_segmentation,
        missing: found.missing.clone(),
    }
}

fn encryption(info: &Info) -> &'static str {
    match info.suites.first() {
        Some(suite) if info.sealed => suite.name(),
        _ => Suite::Plain.name(),
    }
}

fn names(snapshot: &Snapshot) -> BTreeMap<PeerId, &str> {
    snapshot.peers.iter().map(|view| (view.id, view.name.as_str())).collect()
}

fn peer(
    info: &Info,
    peer: &PeerInfo,
    path: Option<&PathReport>,
    fast: Option<&View>,
    names: &BTreeMap<PeerId, &str>,
) -> Peer {
    let established = peer.state == PeerState::Established;
    // What the data path does counts; what control wants comes to pass within milliseconds.
    let via = match path.map(|path| path.carrier) {
        Some(Carried::Direct) => None,
        Some(Carried::Relay(via)) => Some(via),
        Some(Carried::Nowhere) | None => peer.via,
    };
    // Between the loss of the last way and the next tables nothing flows, whatever the state says.
    let stranded = established && via.is_none() && peer.direct.is_none();
    let established = established && !stranded;
    let via = via.filter(|_| established);
    let is_fast = established && peer.direct.is_some() && fast.is_some_and(|view| view.fast);
    let is_sealed = is_fast && fast.is_some_and(|view| view.sealed);
    let via = via.filter(|_| !is_fast);
    let carrier = match (established, via, peer.direct) {
        _ if is_sealed => Some("wireguard"),
        _ if is_fast => Some("fast"),
        (true, Some(_), _) => Some("relay"),
        (true, None, Some(_)) => Some("sleeve"),
        _ => None,
    };
    let path = path.filter(|_| established);
    let suite = path.and_then(|path| path.suite).filter(|suite| *suite != Suite::Plain);
    let cipher = match (is_fast, is_sealed) {
        // WireGuard knows no other.
        (true, true) => Some(Suite::ChaCha20Poly1305),
        (true, false) => None,
        (false, _) => suite,
    };
    let linked = path.filter(|path| path.direct_up);
    Peer {
        id: peer.id.to_string(),
        name: peer.name.clone(),
        instance: format!("{:016x}", peer.instance),
        incarnation: peer.incarnation.0,
        state: state(if stranded { PeerState::Connecting } else { peer.state }).to_owned(),
        carrier: carrier.map(str::to_owned),
        via: via.map(|via| via.to_string()),
        via_name: via.and_then(|via| names.get(&via).map(|&name| name.to_owned())),
        // The kernel's VXLAN by itself is not.
        encrypted: info.sealed && (!is_fast || is_sealed),
        cipher: cipher.map(|suite| suite.name().to_owned()),
        endpoint: peer.direct.map(|address| address.to_string()),
        mtu: path.map(|path| path.payload_mtu).filter(|bytes| *bytes > 0),
        rtt_us: linked.and_then(|path| path.rtt).map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        loss: linked.map(|path| path.loss),
        since: info.at(peer.since),
        reason: match fast.filter(|_| peer.direct.is_some()) {
            Some(view) => format!("{}; {}", peer.reason, view.why.text()),
            None => peer.reason.clone(),
        },
        links: peer.links.iter().map(ToString::to_string).collect(),
    }
}

const fn state(state: PeerState) -> &'static str {
    match state {
        PeerState::Me => "me",
        PeerState::Established => "established",
        PeerState::Connecting => "connecting",
        PeerState::Retrying => "retrying",
        PeerState::Removed => "removed",
    }
}

/// What an operator should know or do, the gravest first.
fn problems(snapshot: &Snapshot, report: Option<&Report>, guarded: &Guarded, peers: &[Peer]) -> Vec<String> {
    let mut problems = Vec::new();
    match report {
        None => problems.push("the data thread does not answer: restart the router".to_owned()),
        Some(report) if report.tap_lost => {
            problems.push("the TAP was deleted: no frame passes until it is back".to_owned());
        }
        Some(_) => {}
    }
    if let Err(waiting) = &snapshot.readiness {
        problems.push(format!("addresses cannot be given yet: {waiting}"));
    }
    problems.extend(guarded.problems.iter().cloned());
    problems.extend(snapshot.problems.iter().cloned());
    for target in snapshot.targets.iter().filter(|target| !target.connected) {
        problems.push(format!("peer {} is not connected: {}", target.target, target.reason));
    }
    let named =
        |peer: &Peer| snapshot.targets.iter().any(|target| target.peer.is_some_and(|id| id.to_string() == peer.id));
    for peer in peers.iter().filter(|peer| peer.state == "retrying" && !named(peer)) {
        problems.push(format!("peer {} cannot be reached: {}", peer.name, peer.reason));
    }
    problems
}

fn counters(snapshot: &Snapshot, report: Option<&Report>, guarded: &Guarded) -> Counters {
    let messages = snapshot.messages;
    let mut counters = Counters {
        messages_out: messages.sent,
        messages_in: messages.received,
        message_bytes_out: messages.sent_bytes,
        message_bytes_in: messages.received_bytes,
        ..Counters::default()
    };
    if let Ok(fast) = &snapshot.fast {
        counters.carrier_switches = fast.switches;
        counters.mac_claims_refused = fast.claims_refused;
        let dropped = [
            ("fast_stranger", fast.dropped.strangers),
            ("fast_spoofed", fast.dropped.spoofed),
            ("fast_inside", fast.dropped.inside),
        ];
        counters.dropped.extend(dropped.map(|(reason, count)| (reason.to_owned(), count)));
    }
    counters.dropped.extend(guarded.dropped.iter().map(|(reason, count)| ((*reason).to_owned(), *count)));
    let Some(report) = report else {
        return counters;
    };
    let (io, fates) = (&report.io, &report.forwarder);
    counters.frames_in = fates.frames_in;
    counters.bytes_in = fates.bytes_in;
    counters.frames_out = fates.frames_out;
    counters.bytes_out = fates.bytes_out;
    counters.datagrams_in = fates.datagrams_in;
    counters.datagrams_out = fates.datagrams_out;
    counters.relayed = fates.relayed;
    counters.replayed = fates.replayed;
    counters.unsealed = fates.unsealed;
    let drops = fates.drops().map(|(reason, count)| (reason.label(), count));
    let io_drops = [
        ("tap_write_failed", io.tap_write_failed),
        ("tap_read_failed", io.tap_read_failed),
        ("udp_truncated", io.udp_truncated),
        ("udp_receive_failed", io.udp_receive_failed),
        ("udp_send_busy", io.udp_send_busy),
        ("udp_too_large", io.udp_too_large),
        ("udp_send_failed", io.udp_send_failed),
        ("quic_queue_full", io.quic_queue_full),
    ];
    counters.dropped.extend(drops.chain(io_drops).map(|(reason, count)| (reason.to_owned(), count)));
    counters
}

/// The addresses that another peer claims too.
pub(super) fn contested(snapshot: &Snapshot, summary: &Summary<PeerKey>) -> Vec<Contested> {
    let names = names(snapshot);
    let one = |contest: &Contest<PeerKey>| {
        let PeerKey(id) = contest.peer;
        Contested {
            address: contest.address.to_string(),
            owner: contest.here.clone(),
            peer: id.to_string(),
            peer_name: names.get(&id).map_or_else(|| id.to_string(), |&name| name.to_owned()),
            peer_owner: contest.there.clone(),
            fenced: contest.theirs,
        }
    };
    summary.contests.iter().map(one).collect()
}

/// The answer to `GET /v1/ipam`.
#[must_use]
pub fn ipam(info: &Info, snapshot: &Snapshot, summary: &Summary<PeerKey>) -> Ipam {
    let names = names(snapshot);
    let reachable: BTreeSet<PeerId> = snapshot
        .peers
        .iter()
        .filter(|view| matches!(view.state, PeerState::Established | PeerState::Me))
        .map(|view| view.id)
        .collect();
    let away = |id: PeerId| summary.away.iter().find(|away| away.peer == PeerKey(id));
    let share = |&(PeerKey(id), owned): &(PeerKey, u64)| IpamPeer {
        id: id.to_string(),
        name: names.get(&id).map_or_else(|| id.to_string(), |&name| name.to_owned()),
        owned,
        free: (id == info.id).then_some(summary.free),
        reachable: id == info.id || reachable.contains(&id),
        silent_s: away(id).and_then(|away| away.silent).map(|time| time.as_secs()),
        removal_s: away(id).and_then(|away| away.removal).map(|time| time.as_secs()),
        removed: away(id).is_some_and(|away| away.removed),
    };
    Ipam {
        range: summary.ranges.iter().map(ToString::to_string).collect(),
        ready: snapshot.readiness.is_ok(),
        waiting_for: snapshot.readiness.clone().err(),
        owned: summary.owned,
        free: summary.free,
        used: summary.used,
        cooling: summary.cooling,
        contested: contested(snapshot, summary),
        problems: summary.problems.clone(),
        peers: summary.peers.iter().map(share).collect(),
        allocations: summary
            .allocations
            .iter()
            .map(|(owner, address, at)| Allocation {
                owner: owner.clone(),
                address: address.to_string(),
                since: at.map(|at| info.at(at)),
            })
            .collect(),
    }
}
