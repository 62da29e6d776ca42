//! The fast path: the kernel's VXLAN carries what it can, and nobody notices when it cannot.

use std::time::{Duration, Instant};

use weft::lab::{traffic::GapStream, wire::Impairment};

use crate::{
    Case,
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE},
};

pub(crate) const CASES: &[Case] = &[
    ("two_hosts_without_a_secret_are_promoted_and_the_kernel_carries_their_frames", 60, promoted),
    ("a_blocked_port_moves_frames_to_sleeve_and_back", 120, blocked),
];

/// Port of VXLAN: the one after the router's.
const VXLAN: u16 = 6784;
/// How long a promotion may take: the promise.
const PROMOTION: Duration = Duration::from_secs(10);
/// How long a path that failed may be used: the promise, and what the network itself takes.
const DEMOTION: Duration = Duration::from_millis(2500);

fn open_mesh(hosts: usize) -> MeshConfig {
    MeshConfig { secret: None, ..MeshConfig::star(hosts) }
}

/// Waits until two routers send to each other by that carrier.
#[track_caller]
fn wait_for_carrier(mesh: &Mesh, a: usize, b: usize, carrier: &str, limit: Duration) {
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
            std::thread::sleep(Duration::from_secs(1));
            let report = stream.finish().must("end");
            assert!(report.received + 5 >= report.sent && report.sent > 300, "{report:?}");
        }
        let after = [frames(&mesh, 0), frames(&mesh, 1)];
        for (before, after) in before.into_iter().zip(after) {
            assert!(after - before < 20, "the routers saw {} of more than 600 frames", after - before);
        }
        let peer = mesh.peer(0, "host2").must("the peer");
        assert!(peer["reason"].as_str().must("a reason").contains("fast path answers"), "{peer}");
        assert!(mesh.counter(0, "carrier_switches") >= 1);
    }
}

fn blocked() {
    let mesh = Mesh::start(&open_mesh(2));
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    let streams = mesh.streams(&[(0, 1), (1, 0)]);
    mesh.lab.wire().impair(0, 1, Impairment::blocked(VXLAN));
    let start = Instant::now();
    wait_for_carrier(&mesh, 0, 1, "sleeve", DEMOTION + Duration::from_secs(1));
    let took = start.elapsed();
    mesh.reaches(0, 1, Duration::from_secs(1));
    mesh.lab.wire().heal_all();
    wait_for_carrier(&mesh, 0, 1, "fast", PROMOTION + Duration::from_secs(2));
    mesh.reaches(0, 1, Duration::from_secs(1));
    for (from, to, stream) in streams {
        let report = stream.finish().must("end a stream");
        eprintln!("demoted after {took:?}; between {from} and {to}: {report:?}");
        assert!(report.longest_gap <= DEMOTION, "between {from} and {to}: {report:?}");
    }
}
