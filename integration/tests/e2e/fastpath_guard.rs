//! Who may send what by VXLAN, and with whom there is a fast path at all.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use weft::{
    fastpath::FastConfig,
    lab::{raw::RawSocket, wait_until},
    netlink::{Mac, Netlink, Route, container::INTERFACE},
};

use crate::{
    Case,
    connect::relayed_unchanged,
    fastpath::{VXLAN, leads_to, open_mesh, wait_for_carrier},
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE, no_gaps, router_config},
};

pub(crate) const CASES: &[Case] = &[
    ("forged_vxlan_is_dropped_and_counted", 60, forged),
    ("forged_vxlan_in_fragments_is_dropped_and_counted", 60, fragmented),
    ("vxlan_of_containers_reaches_no_peer_and_their_own_port_is_theirs", 60, inside),
    ("the_address_of_an_attached_container_stays_whoever_sends_with_it", 60, stolen),
    ("with_a_secret_only_mutual_trust_opens_the_fast_path", 90, trust),
    ("a_revoked_peer_loses_the_fast_path_at_once", 90, revoked),
    ("a_line_of_three_has_the_fast_path_where_there_are_links", 120, line),
];

const ETHERTYPE: [u8; 2] = [0x88, 0xb6];
const COUNT: usize = 20;

/// A VXLAN packet of the network's with a frame in it.
fn vxlan(to: Mac, from: Mac, number: u8) -> Vec<u8> {
    let [_, a, b, c] = FastConfig::vni_of("weft").to_be_bytes();
    [&[8, 0, 0, 0, a, b, c, 0][..], &to, &from, &ETHERTYPE, &[number; 64]].concat()
}

fn mac(mesh: &Mesh, container: usize) -> Mac {
    let link = mesh.containers[container].link(INTERFACE).must("look").must("an interface");
    link.mac.must("a MAC address")
}

fn dropped(mesh: &Mesh, router: usize, reason: &str) -> u64 {
    mesh.status(router)["counters"]["dropped"][reason].as_u64().must(reason)
}

fn forged() {
    let mesh = Mesh::start(&open_mesh(3));
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        wait_for_carrier(&mesh, a, b, "fast", PATIENCE);
    }
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
    let macs = [0, 1, 2].map(|container| mac(&mesh, container));
    let mut victim = RawSocket::open(&mesh.containers[0], INTERFACE).must("a socket");
    let mut arrives = |source: SocketAddr, from: Mac| {
        victim.drain().must("drain");
        for number in 0..COUNT {
            let packet = vxlan(macs[0], from, number as u8);
            mesh.lab.inject_datagram(0, source, VXLAN, &packet).must("inject");
        }
        let end = Instant::now() + Duration::from_millis(500);
        victim.collect(end, COUNT, |frame| frame[12..14] == ETHERTYPE).must("receive").len()
    };
    let host = |index: usize| SocketAddr::from((mesh.lab.host(index).v4(), 40_000));
    let stranger = SocketAddr::from(([10, 99, 0, 77], 40_000));

    // The forger can do it right: these are what a peer may send.
    assert_eq!(arrives(host(1), macs[1]), COUNT);
    assert_eq!(arrives(host(1), [2, 0x77, 0, 0, 0, 1]), COUNT, "nobody has claimed that one yet");
    // A peer's first probes may have come before it was known here.
    let strangers = dropped(&mesh, 0, "fast_stranger");
    assert_eq!(dropped(&mesh, 0, "fast_spoofed"), 0);

    assert_eq!(arrives(stranger, macs[1]), 0);
    assert_eq!(dropped(&mesh, 0, "fast_stranger") - strangers, COUNT as u64);
    // Of another peer's container, and of one of this host.
    assert_eq!(arrives(host(1), macs[2]), 0);
    assert_eq!(arrives(host(1), macs[0]), 0);
    assert_eq!(dropped(&mesh, 0, "fast_spoofed"), 2 * COUNT as u64);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(1));
}

fn fragmented() {
    for v6_underlay in [false, true] {
        let mesh = Mesh::start(&MeshConfig { v6_underlay, ..open_mesh(2) });
        wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
        mesh.all_reach(&[0, 1], Duration::from_secs(2));
        let macs = [0, 1].map(|container| mac(&mesh, container));
        let mut victim = RawSocket::open(&mesh.containers[0], INTERFACE).must("a socket");
        let peer = mesh.lab.host(1);
        let peer = if v6_underlay { peer.v6() } else { peer.v4().into() };
        let mut id = 0;
        let mut arrives = |from: Mac, first: usize| {
            victim.drain().must("drain");
            for number in 0..COUNT {
                id += 1;
                let packet = vxlan(macs[0], from, number as u8);
                let source = SocketAddr::new(peer, 40_000);
                mesh.lab.inject_fragments(0, source, VXLAN, &packet, id, first).must("inject");
            }
            let end = Instant::now() + Duration::from_millis(500);
            victim.collect(end, COUNT, |frame| frame[12..14] == ETHERTYPE).must("receive").len()
        };
        // The inner source is in the first fragment, or is not: UDP, VXLAN, destination, source.
        assert_eq!(arrives(macs[1], 32), COUNT, "the forger can do it right");
        assert_eq!(dropped(&mesh, 0, "fast_spoofed"), 0);
        for (times, first) in [(1, 32), (2, 24), (3, 8)] {
            assert_eq!(arrives(macs[0], first), 0, "cut after {first} bytes");
            assert_eq!(dropped(&mesh, 0, "fast_spoofed"), times * COUNT as u64, "cut after {first} bytes");
        }
    }
}

fn inside() {
    let mesh = Mesh::start(&open_mesh(2));
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    let macs = [0, 1].map(|container| mac(&mesh, container));
    let exposed = mesh.routers[0].command(["expose"]).must("expose");
    let own: IpNet = exposed.lines().next().must("an address").parse().must("an address");
    let mut caught = dropped(&mesh, 0, "fast_inside");
    let mut send = |to: IpAddr| {
        mesh.containers[0].run(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).must("bind");
            for number in 0..COUNT {
                socket.send_to(&vxlan(macs[0], macs[1], number as u8), (to, VXLAN)).must("send");
            }
        });
        std::thread::sleep(Duration::from_millis(200));
        let before = std::mem::replace(&mut caught, dropped(&mesh, 0, "fast_inside"));
        caught - before
    };
    // To its own host, and past it to a peer: as where another network of the host masquerades.
    assert_eq!(send(own.addr()), COUNT as u64);
    let peer = IpAddr::V4(mesh.lab.host(1).v4());
    Netlink::block_on_in(mesh.lab.host(0).namespace(), async |netlink| {
        netlink.sysctl("ipv4", "all", "forwarding", "1")
    })
    .must("forward");
    Netlink::block_on_in(mesh.containers[0].namespace(), async |netlink| {
        let link = netlink.need_link(INTERFACE).await?;
        netlink.add_route(&link, &Route { destination: IpNet::from(peer), via: Some(own.addr()) }).await
    })
    .must("a route");
    assert_eq!(send(peer), COUNT as u64);

    // What they do with that port among themselves is theirs.
    let listener = mesh.containers[1].run(|| UdpSocket::bind(("0.0.0.0", VXLAN))).must("bind");
    listener.set_read_timeout(Some(Duration::from_secs(5))).must("a time limit");
    assert_eq!(send(mesh.v4(1)), 0);
    let mut buffer = [0; 1500];
    for _ in 0..COUNT {
        listener.recv(&mut buffer).must("every datagram");
    }
}

/// Frames for everybody go by sleeve, which takes them as they are.
fn stolen() {
    const THIEF: usize = 1;
    let mesh = Mesh::start(&open_mesh(3));
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        wait_for_carrier(&mesh, a, b, "fast", PATIENCE);
    }
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
    let address = mac(&mesh, 0);
    let stays = || [THIEF, 2].into_iter().all(|host| leads_to(&mesh, host, address, 0));
    let thief = RawSocket::open(&mesh.containers[THIEF], INTERFACE).must("a socket");
    let mut victim = RawSocket::open(&mesh.containers[0], INTERFACE).must("a socket");
    let streams = mesh.streams(&[(2, 0), (THIEF, 0)]);
    let frame = [&[0xff; 6][..], &address, &ETHERTYPE, &[7; 64]].concat();
    for _ in 0..COUNT {
        thief.send(&frame).must("send");
        // Also right after one of the thief's.
        std::thread::sleep(Duration::from_millis(100));
        assert!(stays(), "the kernels send elsewhere");
    }
    let end = Instant::now() + Duration::from_millis(500);
    let heard = victim.collect(end, 1, |frame| frame[6..12] == address && frame[12..14] == ETHERTYPE);
    assert!(!heard.must("receive").is_empty(), "the thief was not heard at the host that it stole from");
    no_gaps(streams);
}

fn trusted(hosts: usize) -> MeshConfig {
    MeshConfig { args: ["--trusted-subnet", "10.99.0.0/16"].map(Into::into).into(), ..MeshConfig::star(hosts) }
}

fn trust() {
    let config = trusted(2);
    let mut mesh = Mesh::start(&config);
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    let peer = mesh.peer(0, "host2").must("the peer");
    assert_eq!((peer["encrypted"].as_bool(), peer["cipher"].as_str()), (Some(false), None), "{peer}");

    // One that trusts nothing: both ends go by sleeve, sealed.
    let plain = MeshConfig { args: Vec::new(), ..config };
    mesh.routers[1].set_args(router_config(&mesh.lab, &plain, 1, plain.secret).args);
    mesh.routers[1].restart().must("start again");
    wait_for_carrier(&mesh, 0, 1, "sleeve", PATIENCE);
    mesh.lab.wire().start_capture(1 << 24);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    let (captured, _) = mesh.lab.wire().take_capture();
    let ports = captured.iter().filter_map(|one| weft::lab::frame::datagram(&one.frame));
    let leaked = ports.filter(|datagram| datagram.destination.port() == VXLAN).count();
    assert_eq!(leaked, 0, "nothing goes by VXLAN");
    let peer = mesh.peer(0, "host2").must("the peer");
    assert_eq!(peer["encrypted"].as_bool(), Some(true), "{peer}");
}

fn revoked() {
    let mesh = Mesh::start(&trusted(3));
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        wait_for_carrier(&mesh, a, b, "fast", PATIENCE);
    }
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
    let kept = mesh.streams(&[(0, 1)]);
    // Its own kernel goes on to send to the others.
    let streams = mesh.streams(&[(2, 0), (0, 2)]);
    mesh.routers[1].command(["peer", "revoke", "host3"]).must("revoke");
    let start = Instant::now();
    let told = |host| mesh.peer(host, "host3").is_some_and(|peer| peer["state"] == "removed");
    assert!(wait_until(Duration::from_secs(5), || told(0) && told(1)), "{}", mesh.status(0));
    let strangers = dropped(&mesh, 0, "fast_stranger");
    std::thread::sleep(Duration::from_secs(2));
    let cut = start.elapsed();
    assert!(dropped(&mesh, 0, "fast_stranger") > strangers, "{}", mesh.status(0));
    for (from, to, stream) in streams {
        let report = stream.finish().must("end a stream");
        eprintln!("from {from} to {to}, revoked {cut:?} ago: {report:?}");
        assert!(report.longest_gap + Duration::from_secs(1) > cut, "{report:?}");
    }
    mesh.is_cut_off(0, 2);
    mesh.is_cut_off(2, 1);
    no_gaps(kept);
}

fn line() {
    // When the ends meet, it may be by either family.
    let mut args = trusted(3).args;
    args.extend(["--trusted-subnet", "fd99::/64"].map(Into::into));
    let mesh = Mesh::start(&MeshConfig { args, ..MeshConfig::graph(3, &[(0, 1), (1, 2)]) });
    let stands = |limit| {
        wait_for_carrier(&mesh, 0, 1, "fast", limit);
        wait_for_carrier(&mesh, 1, 2, "fast", limit);
        wait_for_carrier(&mesh, 0, 2, "relay", limit);
    };
    stands(PATIENCE);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(4));
    let peer = mesh.peer(0, "host3").must("the peer");
    assert_eq!((peer["via_name"].as_str(), peer["encrypted"].as_bool()), (Some("host2"), Some(true)), "{peer}");

    // The ends' frames cross the middle as they were sealed, and the kernels carry none of them.
    let streams = mesh.streams(&[(0, 2), (2, 0)]);
    let captured = relayed_unchanged(&mesh);
    let datagrams = captured.iter().filter_map(|one| Some((one, weft::lab::frame::datagram(&one.frame)?)));
    let vxlan: Vec<_> = datagrams.filter(|(_, datagram)| datagram.destination.port() == VXLAN).collect();
    assert!(!vxlan.is_empty(), "the kernels' probes between neighbours are seen");
    let ends = [mesh.ips(0), mesh.ips(2)].map(|ips| ips.iter().map(octets).collect::<Vec<_>>());
    let tells = |frame: &[u8]| {
        let says = |ips: &[Vec<u8>]| ips.iter().any(|ip| frame.windows(ip.len()).any(|part| part == ip));
        says(&ends[0]) && says(&ends[1])
    };
    assert!(!captured.iter().any(|one| tells(&one.frame)), "the ends' addresses are read on the wire");
    stands(Duration::ZERO);

    mesh.lab.wire().heal_all();
    wait_for_carrier(&mesh, 0, 2, "fast", Duration::from_secs(40));
    // By the kernel, in the clear: the same search finds them.
    mesh.lab.wire().start_capture(1 << 24);
    std::thread::sleep(Duration::from_millis(200));
    let (captured, _) = mesh.lab.wire().take_capture();
    assert!(captured.iter().any(|one| one.from == 0 && tells(&one.frame)), "the kernel carries the ends' frames");
    no_gaps(streams);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
}

fn octets(ip: &IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
