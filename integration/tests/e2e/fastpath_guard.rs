//! Who may send what by VXLAN, and with whom there is a fast path at all.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use weft::{
    fastpath::FastConfig,
    lab::raw::RawSocket,
    netlink::{Mac, container::INTERFACE},
};

use crate::{
    Case,
    fastpath::{VXLAN, open_mesh, wait_for_carrier},
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE, router_config},
};

pub(crate) const CASES: &[Case] = &[
    ("forged_vxlan_is_dropped_and_counted", 60, forged),
    ("with_a_secret_only_mutual_trust_opens_the_fast_path", 90, trust),
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

    // A container, to the address of its own host in the overlay.
    let exposed = mesh.routers[0].command(["expose"]).must("expose");
    let address: ipnet::IpNet = exposed.lines().next().must("an address").parse().must("an address");
    let before = dropped(&mesh, 0, "fast_inside");
    mesh.containers[0].run(|| {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).must("bind");
        for number in 0..COUNT {
            socket.send_to(&vxlan(macs[0], macs[1], number as u8), (address.addr(), VXLAN)).must("send");
        }
    });
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(dropped(&mesh, 0, "fast_inside") - before, COUNT as u64);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(1));
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

fn line() {
    let mesh = Mesh::start(&trusted(3));
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        wait_for_carrier(&mesh, a, b, "fast", PATIENCE);
    }
    mesh.lab.wire().cut(0, 2);
    wait_for_carrier(&mesh, 0, 2, "relay", PATIENCE);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(4));
    for (a, b) in [(0, 1), (1, 2)] {
        wait_for_carrier(&mesh, a, b, "fast", Duration::ZERO);
    }
    let peer = mesh.peer(0, "host3").must("the peer");
    assert_eq!((peer["via_name"].as_str(), peer["encrypted"].as_bool()), (Some("host2"), Some(true)), "{peer}");
    mesh.lab.wire().heal_all();
    wait_for_carrier(&mesh, 0, 2, "fast", Duration::from_secs(40));
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
}
