//! Answers that a router alone does not give, held against the description: with peers, addresses
//! and disputes, and with each field that may be null both ways.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, json};

use super::{description, schema};
use crate::control::api::ROUTES;
use crate::control::api::types::{
    Addresses, Allocation, Attachment, ConfigChange, ConfigRefusal, Contested, Counters, DnsEntry, DnsList, DnsName,
    DnsService, EventList, Held, Holding, HostService, Ipam, IpamCheck, IpamPeer, Me, Offloads, Peer, Released,
    Reloaded, RemovedPeer, RevokedPeer, ServiceList, Status, Stopping, Target, Targets,
};
use crate::control::events::Record;

fn text(text: &str) -> String {
    text.to_owned()
}

fn value(answer: impl Serialize) -> Value {
    serde_json::to_value(answer).expect("JSON")
}

/// A peer with all that may be null, and one without.
fn peers() -> Vec<Peer> {
    let full = Peer {
        id: text("00112233445566778899aabbccddeeff"),
        name: text("host2"),
        instance: text("0011223344556677"),
        incarnation: 3,
        state: text("established"),
        carrier: Some(text("relay")),
        via: Some(text("ffeeddccbbaa99887766554433221100")),
        via_name: Some(text("host3")),
        encrypted: true,
        cipher: Some(text("aes-256-gcm")),
        endpoint: Some(text("192.0.2.2:6783")),
        mtu: Some(1472),
        rtt_us: Some(250),
        loss: Some(0.25),
        since: text("2026-01-01T00:00:00Z"),
        reason: text("linked"),
        links: vec![text("ffeeddccbbaa99887766554433221100")],
    };
    let with = |state: &str, carrier: Option<&str>| Peer {
        state: text(state),
        carrier: carrier.map(text),
        via: None,
        via_name: None,
        encrypted: false,
        cipher: None,
        endpoint: None,
        mtu: None,
        rtt_us: None,
        loss: None,
        links: Vec::new(),
        ..full.clone()
    };
    let others = [
        with("established", Some("fast")),
        with("established", Some("wireguard")),
        with("established", Some("sleeve")),
        with("connecting", None),
        with("retrying", None),
        with("removed", None),
    ];
    [full].into_iter().chain(others).collect()
}

fn status(verdict: &str) -> Status {
    Status {
        version: text("0.1.0"),
        peer: Me { id: text("0123"), name: text("host1"), instance: text("4567"), incarnation: 1 },
        network: text("weft"),
        ready: verdict != "starting",
        verdict: text(verdict),
        problems: vec![text("peer host9 is not connected")],
        encryption: text("aes-256-gcm"),
        fast_path: text("on"),
        mtu: 1402,
        range: vec![text("10.32.0.0/12")],
        bridge: text("weft"),
        port: 6783,
        endpoints: vec![text("192.0.2.1:6783")],
        pid: 1,
        since: text("2026-01-01T00:00:00Z"),
        targets: vec![Target {
            target: text("host9"),
            addresses: vec![text("192.0.2.9:6783")],
            connected: false,
            reason: text("timed out"),
        }],
        peers: peers(),
        offloads: Offloads { missing: vec![text("udp: the kernel has none")], ..Offloads::default() },
        counters: Counters { dropped: BTreeMap::from([(text("malformed"), 1)]), ..Counters::default() },
    }
}

fn contested(peer_owner: Option<String>) -> Contested {
    Contested {
        address: text("10.32.0.1/12"),
        owner: text("docker:web"),
        peer: text("0123"),
        peer_name: text("host2"),
        peer_owner,
        fenced: true,
    }
}

fn ipam(some: bool) -> Ipam {
    let number = some.then_some(7);
    Ipam {
        range: vec![text("10.32.0.0/12")],
        ready: !some,
        waiting_for: some.then(|| text("a peer")),
        owned: 256,
        free: 250,
        used: 4,
        cooling: 2,
        peers: vec![IpamPeer {
            id: text("0123"),
            name: text("host2"),
            owned: 256,
            free: number,
            reachable: !some,
            silent_s: number,
            removal_s: number,
            removed: some,
        }],
        allocations: vec![Allocation {
            owner: text("docker:web"),
            address: text("10.32.0.1/12"),
            since: some.then(|| text("2026-01-01T00:00:00Z")),
        }],
        contested: vec![contested(some.then(|| text("weft:expose")))],
        problems: vec![text("10.32.0.1 is claimed by host2")],
    }
}

/// What each route can answer.
fn answers() -> Vec<(&'static str, &'static str, Value)> {
    let attachment = Attachment {
        target: text("docker:web"),
        interface: text("weft0"),
        mac: text("02:00:00:00:00:01"),
        addresses: vec![text("10.32.0.1/12")],
        names: vec![text("web")],
        services: vec![text("http=8080/tcp")],
        owner: text("docker:web"),
        host_interface: text("weft-abcdefghij"),
    };
    let held = Held {
        attachment: attachment.clone(),
        host_mac: text("02:00:00:00:00:02"),
        mtu: 1402,
        routes: vec![text("0.0.0.0/0 via 10.32.0.2")],
    };
    let services = || {
        let (service, protocol) = (text("http"), text("tcp"));
        vec![DnsService { service, protocol, port: 8080, addresses: vec![text("10.32.0.1")] }]
    };
    let dns = DnsEntry {
        name: text("web.weft.local"),
        addresses: vec![text("10.32.0.1")],
        services: services(),
        peer: text("0123"),
        peer_name: text("host2"),
        served: true,
    };
    let holding = || vec![Holding { address: text("10.32.0.1/12"), owner: text("docker:web") }];
    let check = |peer_owner| IpamCheck {
        leaked: holding(),
        missing: holding(),
        contested: vec![contested(peer_owner)],
        repaired: vec![text("10.32.0.1/12")],
    };
    let event =
        Record { seq: 1, at: text("2026-01-01T00:00:00Z"), kind: text("link-up"), message: text("host2 is linked") };
    let service = |kind: &str, name: Option<&str>| HostService {
        kind: text(kind),
        at: text("8080/tcp"),
        to: text("10.32.0.1:80"),
        name: name.map(text),
    };
    let (export, import) = (service("export", None), service("import", Some("db.weft.local")));
    let both = || value(ServiceList { services: vec![export.clone(), import.clone()] });
    let targets = || value(Targets { targets: vec![text("host2")] });
    let released = || value(Released { released: vec![text("10.32.0.1/12")] });
    let (key, from, to) = (text("port"), text("1"), text("2"));
    let reloaded = Reloaded {
        changed: vec![ConfigChange { key: key.clone(), from: from.clone(), to: to.clone() }],
        refused: vec![ConfigRefusal { key, from, to, reason: text("it needs a restart") }],
    };
    vec![
        ("get", "/v1/status", value(status("ok"))),
        ("get", "/v1/status", value(status("degraded"))),
        ("get", "/v1/status", value(status("starting"))),
        ("get", "/v1/peers", value(peers())),
        ("get", "/v1/ps", json!([attachment])),
        ("get", "/v1/ipam", value(ipam(true))),
        ("get", "/v1/ipam", value(ipam(false))),
        ("post", "/v1/ipam/check", value(check(Some(text("docker:db"))))),
        ("post", "/v1/ipam/check", value(check(None))),
        ("get", "/v1/events", value(EventList { events: vec![event] })),
        ("post", "/v1/connect", targets()),
        ("post", "/v1/forget", targets()),
        ("post", "/v1/revoke", value(RevokedPeer { id: text("0123"), name: text("host2") })),
        ("post", "/v1/peers/remove", value(RemovedPeer { id: text("0123"), name: text("host2") })),
        ("post", "/v1/attach", value(&attachment)),
        ("post", "/v1/detach", released()),
        ("post", "/v1/hold", value(held)),
        ("post", "/v1/unhold", released()),
        ("post", "/v1/expose", value(Addresses { addresses: vec![text("10.32.0.2/12")] })),
        ("post", "/v1/hide", released()),
        ("get", "/v1/services", both()),
        ("post", "/v1/services/export", value(&export)),
        ("post", "/v1/services/import", value(&import)),
        ("post", "/v1/services/remove", both()),
        (
            "get",
            "/v1/dns",
            value(DnsList { domain: text("weft.local"), listen: vec![text("10.32.0.1:53")], names: vec![dns] }),
        ),
        (
            "post",
            "/v1/dns/add",
            value(DnsName { name: text("db.weft.local"), addresses: vec![text("192.0.2.7")], services: services() }),
        ),
        ("post", "/v1/dns/remove", released()),
        ("post", "/v1/reload", value(reloaded)),
        ("post", "/v1/down", value(Stopping { pid: 1, removed: vec![text("bridge weft")] })),
    ]
}

#[test]
fn every_answer_with_all_that_can_be_in_it_is_as_described() {
    let description = description();
    let answers = answers();
    for (method, path, answer) in &answers {
        schema::check_answer(&description, method, path, answer);
    }
    let checked: BTreeSet<_> = answers.iter().map(|(method, path, _)| (*method, *path)).collect();
    assert_eq!(checked, ROUTES.iter().copied().collect(), "each route has an answer here");
}
