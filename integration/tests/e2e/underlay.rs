//! Networks that misbehave: loss, reordering, duplication, translators.

use std::{thread, time::Duration};

use weft::lab::{NatConfig, NatKind, traffic::tcp_transfer, wire::Impairment};

use crate::{
    Case,
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE},
};

pub(crate) const CASES: &[Case] = &[
    ("traffic_passes_where_frames_are_lost_reordered_and_duplicated", 90, rough),
    ("duplicated_and_reordered_datagrams_arrive_once", 60, once_each),
    ("a_host_behind_a_translator_is_part_of_the_mesh", 90, one_behind_nat),
    ("two_hosts_behind_symmetric_translators_meet_through_a_third", 90, two_behind_nat),
];

fn rough() {
    let mesh = Mesh::start(&MeshConfig::star(2));
    mesh.wait_established(PATIENCE);
    let rule = Impairment {
        loss: 0.02,
        reorder: 0.05,
        duplicate: 0.05,
        delay: Duration::from_millis(2),
        jitter: Duration::from_millis(2),
        ..Impairment::default()
    };
    mesh.lab.wire().impair(0, 1, rule);
    for ip in mesh.ips(1) {
        let lasting = Duration::from_secs(4);
        let limit = Duration::from_secs(5);
        let done = tcp_transfer(&mesh.containers[0], ip, 8 << 20, lasting, limit).must("transfer");
        assert!(done.bytes > 100_000 && done.longest_stall <= Duration::from_secs(3), "{done:?}");
    }
    let peer = mesh.peer(0, "host2").must("the peer");
    assert_eq!(peer["state"], "established", "two per cent of loss are no reason to part: {peer}");
    mesh.lab.wire().heal_all();
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
}

fn once_each() {
    let mesh = Mesh::start(&MeshConfig::star(2));
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    let rule = Impairment { duplicate: 0.3, reorder: 0.3, ..Impairment::default() };
    mesh.lab.wire().impair(0, 1, rule);
    let streams = mesh.streams(&[(0, 1)]);
    thread::sleep(Duration::from_secs(5));
    for (_, _, stream) in streams {
        let report = stream.finish().must("end the stream");
        assert_eq!(report.duplicates, 0, "{report:?}");
        // The last may still be under way.
        assert!(report.received + 2 >= report.sent, "nothing is lost by reordering: {report:?}");
    }
    assert!(mesh.counter(1, "replayed") > 0, "the copies were counted");
}

fn behind(kind: NatKind, hosts: &[usize]) -> Vec<NatConfig> {
    let timeout = Duration::from_secs(30);
    hosts.iter().map(|&host| NatConfig { kind, timeout, hosts: vec![host] }).collect()
}

fn one_behind_nat() {
    for kind in [NatKind::Restricted, NatKind::Symmetric] {
        let mut config = MeshConfig::star(3);
        config.lab.nats = behind(kind, &[2]);
        let mesh = Mesh::start(&config);
        mesh.wait_established(PATIENCE);
        mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
        // The translator is switched off and on: the host inside is seen at another port.
        mesh.lab.wire().forget_nat(0);
        thread::sleep(Duration::from_secs(5));
        mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
    }
}

fn two_behind_nat() {
    let mut config = MeshConfig::star(3);
    config.lab.nats = behind(NatKind::Symmetric, &[1, 2]);
    let mesh = Mesh::start(&config);
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
    let peer = mesh.peer(1, "host3").must("the peer");
    assert_eq!(peer["carrier"], "relay", "{peer}");
}
