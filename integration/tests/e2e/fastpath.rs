//! The fast path: the kernel's VXLAN carries what it can, and nobody notices when it cannot.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use weft::{
    lab::{
        raw::RawSocket,
        traffic::{GapStream, tcp_transfer},
        wait_until,
        wire::Impairment,
    },
    netlink::{Mac, container::INTERFACE, fdb::Fdb},
};

use crate::{
    Case,
    fastpath_life::usage,
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE},
};

pub(crate) const CASES: &[Case] = &[
    ("two_hosts_without_a_secret_are_promoted_and_the_kernel_carries_their_frames", 60, promoted),
    ("a_blocked_port_moves_frames_to_sleeve_and_back", 2400, blocked),
    ("a_path_that_shrinks_moves_frames_to_sleeve_and_back", 60, shrunk),
    ("an_address_that_moves_to_another_host_is_followed_on_the_fast_path", 90, moved),
];

/// Port of VXLAN: the one after the router's.
pub(crate) const VXLAN: u16 = 6784;
/// How long a promotion may take: the promise.
const PROMOTION: Duration = Duration::from_secs(10);
/// How long a path that failed may be used: the promise, and what the network itself takes.
const DEMOTION: Duration = Duration::from_millis(2500);
/// Nothing stops on the way up. This is what a busy machine keeps a ping waiting for.
const UP_GAP: Duration = Duration::from_secs(1);

pub(crate) fn open_mesh(hosts: usize) -> MeshConfig {
    MeshConfig { secret: None, ..MeshConfig::star(hosts) }
}

/// Waits until two routers send to each other by that carrier.
#[track_caller]
pub(crate) fn wait_for_carrier(mesh: &Mesh, a: usize, b: usize, carrier: &str, limit: Duration) {
    for (from, to) in [(a, b), (b, a)] {
        mesh.wait_for_peer(from, to, limit, |peer| peer["carrier"] == carrier);
    }
}

/// Frames that a router has taken from its containers.
fn frames(mesh: &Mesh, router: usize) -> u64 {
    mesh.counter(router, "frames_in")
}

fn promoted() {
    for v6_underlay in [false, true] {
        let mesh = Mesh::start(&MeshConfig { v6_underlay, ..open_mesh(2) });
        wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
        // Neighbours and addresses are known after this.
        mesh.all_reach(&[0, 1], Duration::from_secs(2));
        let before = [frames(&mesh, 0), frames(&mesh, 1)];
        for ip in mesh.ips(1) {
            let stream = GapStream::start(&mesh.containers[0], ip, Duration::from_millis(1)).must("start");
            thread::sleep(Duration::from_secs(1));
            let report = stream.finish().must("end");
            assert!(report.received + 5 >= report.sent && report.sent > 300, "{report:?}");
        }
        let after = [frames(&mesh, 0), frames(&mesh, 1)];
        for (before, after) in before.into_iter().zip(after) {
            assert!(after - before < 20, "the routers saw {} of more than 600 frames", after - before);
        }
        let work = || [0, 1].map(|router| usage(mesh.routers[router].pid().must("a pid")).0);
        let before = work();
        let lasting = Duration::from_secs(5);
        let transfer = tcp_transfer(&mesh.containers[0], mesh.v4(1), u64::MAX, lasting, Duration::from_secs(8));
        let (bytes, after) = (transfer.must("a transfer").bytes, work());
        eprintln!(
            "{bytes} bytes in {lasting:?}; the routers worked {} and {} ms",
            after[0] - before[0],
            after[1] - before[1]
        );
        let peer = mesh.peer(0, "host2").must("the peer");
        assert!(peer["reason"].as_str().must("a reason").contains("fast path answers"), "{peer}");
        assert!(mesh.counter(0, "carrier_switches") >= 1);
    }
}

/// How often the port is blocked: `WEFT_E2E_BLOCKS`, or this.
const BLOCKS: u32 = 5;

/// Ends what runs beside a test, also when that fails.
pub(crate) struct Ends<'a>(pub(crate) &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn blocked() {
    let blocks = std::env::var("WEFT_E2E_BLOCKS").map_or(BLOCKS, |text| text.parse().must("WEFT_E2E_BLOCKS"));
    let mesh = Mesh::start(&open_mesh(2));
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Digests are compared at the end of each, and each lasts over more than one change.
        let transfers = scope.spawn(|| {
            let mut bytes = 0;
            while !stop.load(Ordering::Acquire) {
                let lasting = Duration::from_secs(20);
                let transfer = tcp_transfer(&mesh.containers[0], mesh.v4(1), u64::MAX, lasting, Duration::from_secs(8));
                bytes += transfer.must("a transfer over changes of carrier").bytes;
            }
            bytes
        });
        let ends = Ends(&stop);
        let pings = || {
            let ways = [(0, 1), (1, 0)].map(|(from, to)| {
                let stream = GapStream::start(&mesh.containers[from], mesh.v4(to), Duration::from_millis(1));
                (from, to, stream.must("start a stream"))
            });
            thread::sleep(Duration::from_millis(200));
            ways
        };
        // The longest gap of both. Pings are lost meanwhile, too: on sleeve the TCP stream beside
        // them fills queues to the brim.
        let finish = |ways: [(usize, usize, GapStream); 2]| {
            let reports = ways.map(|(_, _, stream)| stream.finish().must("end a stream"));
            let [there, back] = &reports;
            (there.longest_gap.max(back.longest_gap), format!("{reports:?}"))
        };
        let (mut down, mut up) = ((Duration::ZERO, Duration::ZERO), (Duration::ZERO, Duration::ZERO));
        for round in 0..blocks {
            let streams = pings();
            // In both directions, in one, in the other.
            match round % 3 {
                0 => mesh.lab.wire().impair(0, 1, Impairment::blocked(VXLAN)),
                1 => mesh.lab.wire().impair_one_way(0, 1, Impairment::blocked(VXLAN)),
                _ => mesh.lab.wire().impair_one_way(1, 0, Impairment::blocked(VXLAN)),
            }
            let start = Instant::now();
            wait_for_carrier(&mesh, 0, 1, "sleeve", PATIENCE);
            let took = start.elapsed();
            // The kernel is told right after.
            thread::sleep(Duration::from_millis(200));
            let (gap, reports) = finish(streams);
            assert!(gap <= DEMOTION, "round {round}: {reports}");
            down = (down.0.max(took), down.1.max(gap));

            let streams = pings();
            mesh.lab.wire().heal_all();
            let start = Instant::now();
            wait_for_carrier(&mesh, 0, 1, "fast", PROMOTION + Duration::from_secs(2));
            let took = start.elapsed();
            thread::sleep(Duration::from_millis(200));
            let (gap, reports) = finish(streams);
            assert!(gap <= UP_GAP, "round {round}: {reports}");
            up = (up.0.max(took), up.1.max(gap));
        }
        drop(ends);
        let bytes = transfers.join().expect("the transfers went well");
        eprintln!(
            "{blocks} blocks: down in {:?} with a gap of {:?}, up in {:?} with a gap of {:?}, {bytes} bytes whole",
            down.0, down.1, up.0, up.1
        );
    });
}

fn shrunk() {
    let mesh = Mesh::start(&open_mesh(2));
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    mesh.lab.wire().impair(0, 1, Impairment::path_mtu(1300, false));
    wait_for_carrier(&mesh, 0, 1, "sleeve", DEMOTION + Duration::from_secs(1));
    let peer = mesh.peer(0, "host2").must("the peer");
    assert!(peer["reason"].as_str().must("a reason").contains("full size"), "{peer}");
    mesh.all_reach(&[0, 1], Duration::from_secs(3));
    mesh.lab.wire().heal_all();
    wait_for_carrier(&mesh, 0, 1, "fast", PROMOTION + Duration::from_secs(2));
}

/// An address that no container of the mesh has by itself, as that of a machine in one.
const WANDERER: Mac = [2, 0x77, 0, 0, 0, 0x42];
/// How soon the frames of others find it where it is now.
const FOLLOWED: Duration = Duration::from_secs(2);

/// Whether the kernel of one host sends frames for an address to another.
pub(crate) fn leads_to(mesh: &Mesh, at: usize, address: Mac, host: usize) -> bool {
    let entries = mesh.lab.host(at).namespace().run(|| Fdb::open().and_then(|fdb| fdb.entries()));
    let entries = entries.must("enter the host").must("list");
    let entry = entries.into_iter().find(|entry| entry.mac == address && entry.remote.is_some());
    entry.and_then(|entry| entry.remote) == Some(mesh.lab.host(host).v4().into())
}

fn moved() {
    const OBSERVER: usize = 2;
    let mesh = Mesh::start(&open_mesh(3));
    for (a, b) in [(0, 1), (0, OBSERVER), (1, OBSERVER)] {
        wait_for_carrier(&mesh, a, b, "fast", PATIENCE);
    }
    let mut sockets = [0, 1, OBSERVER].map(|at| RawSocket::open(&mesh.containers[at], INTERFACE).must("a socket"));
    let observer = mesh.containers[OBSERVER].link(INTERFACE).must("look").must("an interface").mac.must("an address");
    let frame = |to: Mac, from: Mac| [&to[..], &from, &[0x88, 0xb6], &[7; 64]].concat();
    for home in [0, 1, 0] {
        // It says that it is here, and goes on to talk.
        let arrived = Instant::now();
        let known = wait_until(FOLLOWED, || {
            sockets[home].send(&frame([0xff; 6], WANDERER)).must("send");
            leads_to(&mesh, OBSERVER, WANDERER, home)
        });
        assert!(known, "the kernel of the third host still sends elsewhere than to host {home}");
        eprintln!("at host {home} after {:?}", arrived.elapsed());
        let before = frames(&mesh, OBSERVER);
        sockets[home].drain().must("drain");
        for _ in 0..20 {
            sockets[OBSERVER].send(&frame(WANDERER, observer)).must("send");
        }
        let is_for_it = |frame: &[u8]| frame[..6] == WANDERER;
        let got = sockets[home].collect(Instant::now() + FOLLOWED, 20, is_for_it).must("receive");
        assert_eq!(got.len(), 20, "at host {home}");
        assert!(frames(&mesh, OBSERVER) - before < 10, "the router carried what is the kernel's");
    }
}
