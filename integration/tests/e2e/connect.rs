//! Containers reach each other: directly, through others, and after every change.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use weft::lab::{
    frame, wait_until,
    wire::{Captured, Impairment},
};

use crate::{
    Case,
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE, PROMISED_GAP, no_gaps},
};

pub(crate) const CASES: &[Case] = &[
    ("two_hosts", 60, two_hosts),
    ("two_hosts_without_a_secret", 60, two_hosts_in_the_clear),
    ("two_hosts_over_an_ipv6_underlay", 60, two_hosts_v6),
    ("a_line_of_three_relays_and_the_middle_reads_nothing", 60, line_of_three),
    ("three_hosts_route_around_a_cut_and_back", 90, cut_and_heal),
    ("three_hosts_do_so_over_an_ipv6_underlay", 90, cut_and_heal_v6),
    ("a_link_that_works_one_way_only_is_not_used", 90, one_way),
    ("a_ring_of_five_with_one_link_cut_then_two", 120, strict_ring),
    ("five_hosts_told_in_a_ring_with_two_links_cut", 120, loose_ring),
    ("a_router_that_dies_is_routed_around", 90, dead_relay),
    ("containers_on_one_host_and_on_two_talk_alike", 60, same_host),
];

fn two_hosts() {
    let mesh = Mesh::start(&MeshConfig::star(2));
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    mesh.wait_established(PATIENCE);
    let peer = mesh.peer(0, "host2").must("the peer");
    assert_eq!(peer["encrypted"], true, "{peer}");
    assert_eq!(peer["carrier"], "sleeve", "{peer}");
}

fn two_hosts_in_the_clear() {
    let mesh = Mesh::start(&MeshConfig { secret: None, ..MeshConfig::star(2) });
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    mesh.wait_established(PATIENCE);
    let peer = mesh.peer(0, "host2").must("the peer");
    assert_eq!(peer["encrypted"], false, "{peer}");
}

fn two_hosts_v6() {
    let mesh = Mesh::start(&MeshConfig { v6_underlay: true, ..MeshConfig::star(2) });
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    mesh.wait_established(PATIENCE);
    let endpoint = mesh.peer(0, "host2").must("the peer")["endpoint"].clone();
    assert_eq!(endpoint, format!("[{}]:6783", mesh.lab.host(1).v6()));
}

fn line_of_three() {
    let mesh = Mesh::start(&MeshConfig::graph(3, &[(0, 1), (1, 2)]));
    // The kernel may have reported a multicast group before the cut.
    let crossed = mesh.lab.wire().count(0, 2).frames;
    mesh.all_reach(&[0, 1, 2], PROMISED_GAP);
    mesh.wait_for_peer(0, 2, PATIENCE, |peer| {
        peer["state"] == "established" && peer["carrier"] == "relay" && peer["via_name"] == "host2"
    });
    relayed_unchanged(&mesh);
    assert_eq!(mesh.lab.wire().count(0, 2).frames, crossed, "the ends really are cut off");
}

/// Captures what the ends of a line of three say to each other by sleeve: the middle passes it on as it is, for it
/// was sealed end to end. Gives all that was captured.
pub(crate) fn relayed_unchanged(mesh: &Mesh) -> Vec<Captured> {
    let before = mesh.counter(1, "relayed");
    mesh.lab.wire().start_capture(64 << 20);
    // Before the first and after the last there is time for what is under way.
    let under_way = Duration::from_millis(200);
    thread::sleep(under_way);
    mesh.reaches(0, 2, Duration::from_secs(2));
    thread::sleep(under_way);
    let (frames, overwritten) = mesh.lab.wire().take_capture();
    assert_eq!(overwritten, 0, "the capture is whole");
    assert!(mesh.counter(1, "relayed") > before, "the middle counts what it relays");
    // Two seals of the same text differ: the middle has made none.
    let first = frames.first().must("a frame").at;
    let begun = frames.partition_point(|captured| captured.at < first + under_way / 2);
    for (from, to) in [(0, 2), (2, 0)] {
        let came = relayed(mesh, &frames, from, 1);
        let went = relayed(mesh, &frames[begun..], 1, to);
        assert!(went.len() > 20, "only {} datagrams", went.len());
        assert!(went.is_subset(&came), "the middle changed what it relayed");
    }
    frames
}

/// What RELAY datagrams from one host to another carry (sleeve S4).
fn relayed<'a>(mesh: &Mesh, frames: &'a [Captured], from: usize, to: usize) -> BTreeSet<&'a [u8]> {
    const RELAY: u8 = 0x02;
    const HEADER: usize = 28;
    let ip = IpAddr::V4(mesh.lab.host(to).v4());
    let carried = frames.iter().filter(|captured| captured.from == from).filter_map(|captured| {
        let seen = frame::datagram(&captured.frame)?;
        let payload = captured.frame.get(seen.payload)?;
        (seen.destination.ip() == ip && payload.first() == Some(&RELAY)).then(|| payload.get(HEADER..))?
    });
    carried.collect()
}

fn cut_and_heal() {
    around_a_cut(&MeshConfig::star(3));
}

fn cut_and_heal_v6() {
    around_a_cut(&MeshConfig { v6_underlay: true, ..MeshConfig::star(3) });
}

/// How long a link that is cut may be taken for alive, and how long traffic may then take to go
/// another way: the promise.
const DECLARED_DEAD: Duration = Duration::from_secs(3);
const ROUTED_AROUND: Duration = Duration::from_secs(1);

fn around_a_cut(config: &MeshConfig) {
    let mesh = Mesh::start(config);
    mesh.wait_linked(&every_pair(&[0, 1, 2]), PATIENCE);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
    let streams = mesh.streams(&[(0, 2), (2, 0), (0, 1)]);
    let (dead, around) = mesh.while_connecting(&[(0, 2)], || {
        let carriers =
            || [(0, "host3"), (2, "host1")].map(|(at, of)| mesh.peer(at, of).must("the peer")["carrier"].clone());
        let whole = Duration::from_secs(6);
        mesh.lab.wire().cut(0, 2);
        let cut = Instant::now();
        wait_until(whole, || carriers().iter().all(|carrier| carrier != "sleeve"));
        let dead = cut.elapsed();
        wait_until(whole.saturating_sub(dead), || carriers().iter().all(|carrier| carrier == "relay"));
        let around = cut.elapsed() - dead;
        thread::sleep(whole.saturating_sub(cut.elapsed()));
        (dead, around)
    });
    assert!(dead <= DECLARED_DEAD && around <= ROUTED_AROUND, "dead after {dead:?}, routed around {around:?} later");
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(1));
    mesh.lab.wire().heal(0, 2);
    mesh.wait_linked(&every_pair(&[0, 1, 2]), MENDED);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(1));
    no_gaps(streams);
}

fn one_way() {
    let mesh = Mesh::start(&MeshConfig::star(3));
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
    let streams = mesh.streams(&[(0, 2), (2, 0)]);
    mesh.lab.wire().impair_one_way(0, 2, Impairment::cut());
    thread::sleep(Duration::from_secs(6));
    for (from, to) in [(0, 2), (2, 0)] {
        mesh.wait_for_peer(from, to, Duration::ZERO, |peer| peer["carrier"] == "relay" && peer["via_name"] == "host2");
    }
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(1));
    no_gaps(streams);
}

/// How long a link that can stand again may take: whoever was linked in the last two minutes is
/// dialled at least every 5 s (and a quarter, control C19), and a handshake may lose a datagram.
const MENDED: Duration = Duration::from_secs(8);

const RING: [(usize, usize); 5] = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)];

/// Who is not linked directly cannot reach each other at all: with two links cut there are two
/// islands.
fn strict_ring() {
    let mesh = Mesh::start(&MeshConfig::graph(5, &RING));
    mesh.wait_established(PATIENCE);
    let all = [0, 1, 2, 3, 4];
    mesh.all_reach(&all, PROMISED_GAP);
    let streams = mesh.streams(&[(0, 1), (1, 0), (4, 2), (3, 0)]);
    mesh.while_connecting(&[(0, 1), (4, 2)], || {
        mesh.lab.wire().cut(0, 1);
        thread::sleep(Duration::from_secs(6));
    });
    mesh.all_reach(&all, Duration::from_secs(1));
    no_gaps(streams);
    // Left over: 1-2-3 and 4-0.
    let streams = mesh.streams(&[(1, 3), (3, 2), (0, 4)]);
    mesh.while_connecting(&[(1, 3), (0, 4)], || {
        mesh.lab.wire().cut(3, 4);
        thread::sleep(Duration::from_secs(6));
    });
    mesh.all_reach(&[1, 2, 3], Duration::from_secs(1));
    mesh.all_reach(&[0, 4], Duration::from_secs(1));
    mesh.is_cut_off(0, 1);
    mesh.is_cut_off(3, 4);
    // Those on one island notice nothing of it when the others come back.
    mesh.lab.wire().heal(3, 4);
    mesh.lab.wire().heal(0, 1);
    mesh.wait_linked(&RING, MENDED);
    mesh.all_reach(&all, Duration::from_secs(1));
    no_gaps(streams);
}

/// They are told of each other in a ring and discover the rest, so two cuts part nobody.
fn loose_ring() {
    let mut config = MeshConfig::graph(5, &RING);
    config.reachable = None;
    let mesh = Mesh::start(&config);
    mesh.wait_established(PATIENCE);
    let all = [0, 1, 2, 3, 4];
    mesh.all_reach(&all, PROMISED_GAP);
    let streams = mesh.streams(&[(0, 1), (1, 0), (2, 3), (3, 2), (0, 3)]);
    for (a, b) in [(0, 1), (2, 3)] {
        mesh.while_connecting(&[(a, b), (b, a)], || {
            mesh.lab.wire().cut(a, b);
            thread::sleep(Duration::from_secs(6));
        });
        mesh.all_reach(&all, Duration::from_secs(1));
    }
    mesh.lab.wire().heal_all();
    mesh.wait_linked(&every_pair(&all), MENDED);
    mesh.all_reach(&all, Duration::from_secs(1));
    no_gaps(streams);
}

fn every_pair(of: &[usize]) -> Vec<(usize, usize)> {
    of.iter().flat_map(|&a| of.iter().map(move |&b| (a, b))).collect()
}

fn dead_relay() {
    // A square: 0 and 3 reach each other through 1 or through 2.
    let mut mesh = Mesh::start(&MeshConfig::graph(4, &[(0, 1), (0, 2), (1, 3), (2, 3)]));
    mesh.wait_established(PATIENCE);
    mesh.reaches(0, 3, PROMISED_GAP);
    let peer = mesh.peer(0, "host4").must("the peer");
    let relay = if peer["via_name"] == "host2" { 1 } else { 2 };
    let streams = mesh.streams(&[(0, 3), (3, 0)]);
    mesh.routers[relay].kill().must("kill");
    thread::sleep(Duration::from_secs(6));
    mesh.reaches(0, 3, Duration::from_secs(1));
    no_gaps(streams);
    mesh.wait_for_peer(0, relay, PATIENCE, |peer| peer["state"] != "established");
}

fn same_host() {
    let mut mesh = Mesh::start(&MeshConfig::star(2));
    let neighbour = mesh.add_container(0);
    mesh.all_reach(&[0, 1, neighbour], Duration::from_secs(2));
    let mut all: Vec<_> = mesh.addresses.iter().flatten().collect();
    all.sort();
    let count = all.len();
    all.dedup();
    assert_eq!(all.len(), count, "no address is given twice");
}
