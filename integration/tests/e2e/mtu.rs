//! Underlays of any MTU, and ones whose MTU changes while traffic flows.

use std::{
    thread,
    time::{Duration, Instant},
};

use weft::{
    lab::{
        raw::RawSocket,
        traffic::{paced_transfer, tcp_transfer},
        wire::Impairment,
    },
    netlink::container::INTERFACE,
};

use crate::{
    Case,
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE, no_gaps},
};

pub(crate) const CASES: &[Case] = &[
    ("every_underlay_mtu_from_1280_to_9000_carries_tcp", 150, every_mtu),
    ("tcp_does_not_stall_when_the_path_shrinks_and_icmp_is_dropped", 90, shrinks_silently),
    ("tcp_does_not_stall_when_the_path_shrinks_and_icmp_tells", 90, shrinks_and_tells),
    ("tcp_does_not_stall_when_paths_shrink_under_ipv6_and_behind_a_relay", 90, shrinks_behind_a_relay),
    ("tcp_does_not_stall_when_a_hosts_own_interface_shrinks", 90, interface_shrinks),
    ("interfaces_that_grow_are_used_to_the_full_without_a_restart", 60, interfaces_grow),
    ("a_path_that_grows_again_is_used_to_the_full", 120, grows_again),
    ("senders_are_told_what_goes_whole_by_icmp_and_icmpv6", 60, senders_are_told),
];

const STALL: Duration = Duration::from_secs(3);
/// Bytes a second of one of several streams at once. As fast as they can they would keep the queues of
/// the underlay full, which lose what is too much: a stall would be TCP's own as often as the path's.
const PACE: u64 = 5 << 20;

fn mesh_with(mtu: u32) -> Mesh {
    let mut config = MeshConfig::star(2);
    config.lab.mtu = mtu;
    let mesh = Mesh::start(&config);
    mesh.wait_established(PATIENCE);
    mesh
}

fn every_mtu() {
    let underlays = [1280, 1300, 1400, 1492, 1500, 4000, 9000].map(|mtu| (mtu, false));
    for (mtu, v6_underlay) in underlays.into_iter().chain([(1280, true), (1500, true)]) {
        let mut config = MeshConfig { v6_underlay, ..MeshConfig::star(2) };
        config.lab.mtu = mtu;
        let mesh = Mesh::start(&config);
        mesh.wait_established(PATIENCE);
        for (from, to) in [(0, 1), (1, 0)] {
            for ip in mesh.ips(to) {
                let lasting = Duration::from_secs(1);
                let done = tcp_transfer(&mesh.containers[from], ip, 16 << 20, lasting, STALL * 2);
                let done = done.must(&format!("transfer to {ip} at MTU {mtu}, IPv6 {v6_underlay}"));
                assert!(done.bytes > 1 << 20 && done.longest_stall <= STALL, "{mtu}, {v6_underlay}: {done:?}");
            }
        }
    }
}

/// Runs TCP over IPv4 and IPv6 from the first container to others, and streams of datagrams, while
/// `change` is called with 0, 1, 2 … every three seconds.
fn while_it_changes(mesh: &Mesh, others: &[usize], steps: u32, change: impl Fn(u32)) {
    let pairs: Vec<_> = others.iter().flat_map(|&other| [(0, other), (other, 0)]).collect();
    let streams = mesh.streams(&pairs);
    let every = Duration::from_secs(3);
    let lasting = every * (steps + 1);
    let start = Instant::now();
    thread::scope(|scope| {
        let transfers: Vec<_> = others
            .iter()
            .flat_map(|&other| mesh.ips(other))
            .map(|ip| {
                let container = &mesh.containers[0];
                scope.spawn(move || paced_transfer(container, ip, u64::MAX, PACE, lasting, STALL * 3))
            })
            .collect();
        for step in 0..steps {
            thread::sleep((start + every * (step + 1)).saturating_duration_since(Instant::now()));
            change(step);
        }
        for transfer in transfers {
            let done = transfer.join().expect("no panic").must("transfer");
            assert!(done.longest_stall <= STALL, "{done:?}");
            assert!(done.bytes > 1 << 20, "{done:?}");
        }
    });
    no_gaps(streams);
}

fn shrink(mesh: &Mesh, icmp: bool) {
    while_it_changes(mesh, &[1], 3, |step| {
        let rule = match step {
            0 => Impairment::path_mtu(1400, icmp),
            1 => Impairment::path_mtu(1280, icmp),
            _ => Impairment::default(),
        };
        mesh.lab.wire().impair(0, 1, rule);
    });
}

fn shrinks_silently() {
    let mesh = mesh_with(9000);
    shrink(&mesh, false);
}

fn shrinks_and_tells() {
    let mesh = mesh_with(1500);
    shrink(&mesh, true);
}

/// First the link that the sender cannot see, then its own: down to the least of IPv6.
fn shrinks_behind_a_relay() {
    let mesh = Mesh::start(&MeshConfig { v6_underlay: true, ..MeshConfig::graph(3, &[(0, 1), (1, 2)]) });
    mesh.wait_linked(&[(0, 1), (1, 2)], PATIENCE);
    mesh.wait_for_peer(0, 2, PATIENCE, |peer| peer["carrier"] == "relay");
    let wire = mesh.lab.wire();
    while_it_changes(&mesh, &[1, 2], 3, |step| match step {
        0 => wire.impair(1, 2, Impairment::path_mtu(1400, false)),
        1 => wire.impair(0, 1, Impairment::path_mtu(1280, false)),
        _ => [(0, 1), (1, 2)].iter().for_each(|&(a, b)| wire.heal(a, b)),
    });
}

fn interface_shrinks() {
    let mesh = mesh_with(1500);
    while_it_changes(&mesh, &[1], 2, |step| {
        let mtu = if step == 0 { 1300 } else { 1500 };
        mesh.lab.host(0).set_mtu(mtu).must("change the MTU");
    });
}

fn interfaces_grow() {
    let mesh = mesh_with(1500);
    let mtu = || mesh.peer(0, "host2").must("the peer")["mtu"].as_u64().unwrap_or_default();
    assert!(weft::lab::wait_until(PATIENCE, || mtu() == 1472), "{}", mtu());
    let streams = mesh.streams(&[(0, 1)]);
    for host in [0, 1] {
        mesh.lab.host(host).set_mtu(9000).must("change the MTU");
    }
    assert!(weft::lab::wait_until(Duration::from_secs(10), || mtu() == 8972), "{}", mtu());
    for host in [1, 0] {
        mesh.lab.host(host).set_mtu(1500).must("change the MTU");
    }
    assert!(weft::lab::wait_until(Duration::from_secs(10), || mtu() == 1472), "{}", mtu());
    mesh.all_reach(&[0, 1], STALL);
    no_gaps(streams);
}

fn grows_again() {
    let mesh = mesh_with(1500);
    let mtu = |mesh: &Mesh| {
        let peer = mesh.peer(0, "host2").must("the peer");
        peer["mtu"].as_u64().must(&format!("an MTU in {peer}"))
    };
    let settled = weft::lab::wait_until(PATIENCE, || mtu(&mesh) > 1400);
    assert!(settled, "the whole path is found: {}", mtu(&mesh));
    let full = mtu(&mesh);
    mesh.lab.wire().impair(0, 1, Impairment::path_mtu(1300, false));
    let streams = mesh.streams(&[(0, 1)]);
    let lasting = Duration::from_secs(4);
    let ip = mesh.v4(1);
    let done = tcp_transfer(&mesh.containers[0], ip, u64::MAX, lasting, STALL * 3).must("TCP");
    assert!(done.longest_stall <= STALL, "{done:?}");
    let shrunk = mtu(&mesh);
    assert!(shrunk < full, "{shrunk} of {full}");
    mesh.lab.wire().heal_all();
    // A larger size is looked for once a minute, while frames flow.
    let grown = weft::lab::wait_until(Duration::from_secs(70), || mtu(&mesh) == full);
    assert!(grown, "still {} of {full}", mtu(&mesh));
    no_gaps(streams);
}

/// The MTU that a frame tells its receiver of: ICMP type 3 code 4, or ICMPv6 type 2.
fn too_big(frame: &[u8]) -> Option<(bool, u32)> {
    let number = |at: usize| Some(u32::from(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?)));
    match (frame.get(12..14)?, *frame.get(23)?, *frame.get(20)?) {
        ([0x08, 0x00], 1, _) if frame.get(34..36)? == [3, 4] => Some((false, number(40)?)),
        ([0x86, 0xdd], _, 58) if *frame.get(54)? == 2 => Some((true, number(60)?)),
        _ => None,
    }
}

fn senders_are_told() {
    let mesh = mesh_with(1500);
    mesh.all_reach(&[0, 1], STALL);
    mesh.lab.wire().impair(0, 1, Impairment::path_mtu(1400, false));
    let mut socket = RawSocket::open(&mesh.containers[0], INTERFACE).must("open");
    let told = thread::scope(|scope| {
        let lasting = Duration::from_secs(5);
        let (mesh, socket) = (&mesh, &mut socket);
        let listener = scope.spawn(move || {
            let end = Instant::now() + lasting + Duration::from_secs(1);
            socket.collect(end, usize::MAX, |frame| too_big(frame).is_some()).must("receive")
        });
        let transfers: Vec<_> = mesh
            .ips(1)
            .into_iter()
            .map(|ip| scope.spawn(move || tcp_transfer(&mesh.containers[0], ip, u64::MAX, lasting, STALL * 3)))
            .collect();
        for transfer in transfers {
            let done = transfer.join().expect("no panic").must("transfer");
            assert!(done.longest_stall <= STALL && done.bytes > 1 << 20, "{done:?}");
        }
        listener.join().expect("no panic")
    });
    let told: Vec<(bool, u32)> = told.iter().filter_map(|frame| too_big(frame)).collect();
    for v6 in [false, true] {
        // 1400 less IP, UDP, the headers of sleeve, its tag, and the inner Ethernet header.
        let right = told.iter().any(|&(of, mtu)| of == v6 && mtu == 1400 - 78);
        assert!(right, "{} was told {told:?}", if v6 { "IPv6" } else { "IPv4" });
    }
    assert!(told.len() <= 14, "once a second for a pair of addresses: {told:?}");
}
