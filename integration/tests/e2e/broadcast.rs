//! What is for everyone, or for nobody known: to everyone, once.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use weft::{
    lab::{raw::RawSocket, wait_until},
    netlink::{Mac, container::INTERFACE},
};

use crate::{
    Case,
    fastpath::wait_for_carrier,
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE, PROMISED_GAP},
};

pub(crate) const CASES: &[Case] = &[
    ("a_thousand_broadcasts_reach_every_container_exactly_once", 90, partial_mesh),
    ("a_thousand_broadcasts_reach_every_container_in_a_full_mesh_exactly_once", 90, full_mesh),
    ("a_thousand_frames_beside_the_fast_path_reach_every_container_exactly_once", 120, beside_the_fast_path),
    ("from_its_first_frame_on_a_host_that_joins_misses_none", 60, joins),
    ("a_thousand_frames_to_a_group_and_to_nobody_known_reach_every_container_exactly_once", 120, groups_and_unknown),
];

/// An EtherType for local experiments (IEEE 802).
const LOCAL: [u8; 2] = [0x88, 0xb5];
const COUNT: u32 = 1000;

const EVERYBODY: Mac = [0xff; 6];
const NOBODY: Mac = [0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0xee];
const EDGES: [(usize, usize); 7] = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (4, 5), (2, 5)];

fn partial() -> MeshConfig {
    MeshConfig::graph(6, &EDGES)
}

fn partial_mesh() {
    exactly_once(&Mesh::start(&partial()), &[EVERYBODY]);
}

fn full_mesh() {
    exactly_once(&Mesh::start(&MeshConfig::star(4)), &[EVERYBODY]);
}

/// What goes to everyone, or to nobody known, goes by sleeve in the clear while the kernel carries
/// what goes to one.
fn beside_the_fast_path() {
    let mesh = Mesh::start(&MeshConfig { secret: None, ..partial() });
    let all_fast = || EDGES.iter().for_each(|&(a, b)| wait_for_carrier(&mesh, a, b, "fast", PATIENCE));
    all_fast();
    exactly_once(&mesh, &[EVERYBODY, NOBODY]);
    all_fast();
}

fn groups_and_unknown() {
    let group = [0x01, 0x00, 0x5e, 0x01, 0x02, 0x03];
    let group6 = [0x33, 0x33, 0, 0, 0x12, 0x34];
    exactly_once(&Mesh::start(&partial()), &[group, group6, NOBODY]);
}

fn exactly_once(mesh: &Mesh, destinations: &[Mac]) {
    mesh.wait_established(PATIENCE);
    let all: Vec<usize> = (0..mesh.containers.len()).collect();
    mesh.all_reach(&all, PROMISED_GAP);
    for &destination in destinations {
        for &sender in &[0, mesh.containers.len() - 1] {
            flood_from(mesh, sender, destination);
        }
    }
}

fn flood_from(mesh: &Mesh, sender: usize, destination: Mac) {
    let open = |container| RawSocket::open(container, INTERFACE).must("open a packet socket");
    let mut sockets: Vec<RawSocket> = mesh.containers.iter().map(open).collect();
    let link = mesh.containers[sender].link(INTERFACE).must("look").must("the interface");
    let mac = link.mac.must("a MAC address");
    let out = open(&mesh.containers[sender]);
    let expected = |container: usize| if container == sender { 0 } else { COUNT as usize };
    let ours = |frame: &[u8]| frame.len() >= 100 && frame[12..14] == LOCAL;
    let end = Instant::now() + Duration::from_secs(12);
    let mut received = thread::scope(|scope| {
        let read = |(container, socket): (usize, &mut RawSocket)| {
            socket.collect(end, expected(container), ours).must("receive")
        };
        let readers: Vec<_> = sockets.iter_mut().enumerate().map(|at| scope.spawn(move || read(at))).collect();
        for number in 0..COUNT {
            let mut frame = [&destination[..], &mac, &LOCAL, &number.to_be_bytes()].concat();
            frame.resize(100, 0x5a);
            out.send(&frame).must("send");
            thread::sleep(Duration::from_millis(2));
        }
        readers.into_iter().map(|reader| reader.join().expect("no panic")).collect::<Vec<_>>()
    });
    // What comes to somebody a second time, or back to its sender.
    thread::sleep(Duration::from_secs(1));
    for (socket, frames) in sockets.iter_mut().zip(&mut received) {
        let soon = Instant::now() + Duration::from_millis(20);
        frames.extend(socket.collect(soon, usize::MAX, ours).must("receive"));
    }
    for (container, frames) in received.into_iter().enumerate() {
        let mut times: BTreeMap<u32, u32> = BTreeMap::new();
        for frame in &frames {
            assert_eq!(frame.len(), 100);
            assert!(frame[18..].iter().all(|&byte| byte == 0x5a), "byte-identical");
            let number = frame[14..18].try_into().expect("four bytes");
            *times.entry(u32::from_be_bytes(number)).or_default() += 1;
        }
        let expected = expected(container);
        let more: Vec<_> = times.iter().filter(|&(_, &count)| count != 1).take(5).collect();
        assert!(
            frames.len() == expected && more.is_empty(),
            "container {container} got {} of {expected} from {sender} to {destination:02x?}; not once: {more:?}",
            frames.len()
        );
    }
}

/// Numbered broadcasts from both ends while the second host joins: once the first of them has come
/// through, all that follow do, in both directions.
fn joins() {
    let mut config = MeshConfig::star(2);
    config.args = vec!["--no-discovery".into()];
    let mesh = Mesh::start(&config);
    mesh.wait_established(PATIENCE);
    let first = mesh.lab.host(0).v4().to_string();
    for _ in 0..3 {
        mesh.routers[1].command(["forget", &first]).must("forget");
        for (router, other) in [(0, "host2"), (1, "host1")] {
            let apart = || mesh.peer(router, other).is_none_or(|peer| peer["state"] != "established");
            assert!(wait_until(PATIENCE, apart), "{}", mesh.status(router));
        }
        for (from, numbers) in numbered_while(&mesh, || {
            thread::sleep(Duration::from_millis(300));
            mesh.routers[1].command(["connect", &first]).must("connect");
        }) {
            let first = *numbers.first().must("a frame");
            let missing: Vec<u32> = (first..).take(numbers.len()).filter(|n| !numbers.contains(n)).collect();
            assert!(numbers.len() > 200 && missing.is_empty(), "from {from}, from {first} on: {missing:?}");
        }
    }
}

/// Two containers send numbered broadcasts for three seconds while something happens: by sender,
/// those that the other received.
fn numbered_while(mesh: &Mesh, during: impl FnOnce()) -> [(usize, Vec<u32>); 2] {
    thread::scope(|scope| {
        let end = Instant::now() + Duration::from_secs(3);
        let ways = [(0, 1), (1, 0)].map(|(from, to)| {
            let open = |container: usize| RawSocket::open(&mesh.containers[container], INTERFACE).must("open");
            let (out, mut inn) = (open(from), open(to));
            let mac = mesh.containers[from].link(INTERFACE).must("look").must("weft0").mac.must("a MAC");
            let reader = scope.spawn(move || {
                let ours = |frame: &[u8]| frame[6..14] == [&mac[..], &LOCAL].concat();
                inn.collect(end + Duration::from_millis(300), usize::MAX, ours).must("receive")
            });
            scope.spawn(move || {
                for number in 0_u32.. {
                    let frame = [&EVERYBODY[..], &mac, &LOCAL, &number.to_be_bytes(), &[0; 42]].concat();
                    out.send(&frame).must("send");
                    thread::sleep(Duration::from_millis(5));
                    if Instant::now() > end {
                        break;
                    }
                }
            });
            (from, reader)
        });
        during();
        ways.map(|(from, reader)| {
            let frames = reader.join().expect("no panic");
            let number = |frame: &Vec<u8>| u32::from_be_bytes(frame[14..18].try_into().expect("four bytes"));
            (from, frames.iter().map(number).collect())
        })
    })
}
