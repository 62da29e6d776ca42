//! Broadcast: to everyone, once.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use weft::{lab::raw::RawSocket, netlink::container::INTERFACE};

use crate::{
    Case,
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE, PROMISED_GAP},
};

pub(crate) const CASES: &[Case] = &[
    ("a_thousand_broadcasts_reach_every_container_exactly_once", 90, partial_mesh),
    ("a_thousand_broadcasts_reach_every_container_in_a_full_mesh_exactly_once", 90, full_mesh),
];

/// An EtherType for local experiments (IEEE 802).
const LOCAL: [u8; 2] = [0x88, 0xb5];
const COUNT: u32 = 1000;

fn partial_mesh() {
    let edges = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (4, 5), (2, 5)];
    exactly_once(&MeshConfig::graph(6, &edges));
}

fn full_mesh() {
    exactly_once(&MeshConfig::star(4));
}

fn exactly_once(config: &MeshConfig) {
    let mesh = Mesh::start(config);
    mesh.wait_established(PATIENCE);
    let all: Vec<usize> = (0..mesh.containers.len()).collect();
    mesh.all_reach(&all, PROMISED_GAP);
    for &sender in &[0, mesh.containers.len() - 1] {
        broadcast_from(&mesh, sender);
    }
}

fn broadcast_from(mesh: &Mesh, sender: usize) {
    let open = |container| RawSocket::open(container, INTERFACE).must("open a packet socket");
    let mut sockets: Vec<RawSocket> = mesh.containers.iter().map(open).collect();
    let link = mesh.containers[sender].link(INTERFACE).must("look").must("the interface");
    let mac = link.mac.must("a MAC address");
    let out = open(&mesh.containers[sender]);
    let received = thread::scope(|scope| {
        let end = Instant::now() + Duration::from_secs(6);
        let readers: Vec<_> = sockets
            .iter_mut()
            .map(|socket| {
                scope.spawn(move || {
                    let ours = |frame: &[u8]| frame.len() >= 100 && frame[12..14] == LOCAL;
                    socket.collect(end, usize::MAX, ours).must("receive")
                })
            })
            .collect();
        for number in 0..COUNT {
            let mut frame = [&[0xff; 6], &mac[..], &LOCAL, &number.to_be_bytes()].concat();
            frame.resize(100, 0x5a);
            out.send(&frame).must("send");
            thread::sleep(Duration::from_millis(2));
        }
        readers.into_iter().map(|reader| reader.join().expect("no panic")).collect::<Vec<_>>()
    });
    for (container, frames) in received.into_iter().enumerate() {
        let mut times: BTreeMap<u32, u32> = BTreeMap::new();
        for frame in &frames {
            assert_eq!(frame.len(), 100);
            assert!(frame[18..].iter().all(|&byte| byte == 0x5a), "byte-identical");
            let number = frame[14..18].try_into().expect("four bytes");
            *times.entry(u32::from_be_bytes(number)).or_default() += 1;
        }
        let expected = if container == sender { 0 } else { COUNT };
        let more: Vec<_> = times.iter().filter(|&(_, &count)| count != 1).take(5).collect();
        assert!(
            frames.len() == expected as usize && more.is_empty(),
            "container {container} got {} of {expected} from {sender}; not once: {more:?}",
            frames.len()
        );
    }
}
