//! How far and how fast news travels, what silence costs, applications, keys.

mod control_harness;

use std::collections::BTreeSet;
use std::time::Duration;

use control_harness::*;
use mesh_proto::control::NodeConfig;
use mesh_proto::handover::DataEvent;
use mesh_proto::id::PeerId;

const SECOND: Duration = Duration::from_secs(1);

/// Peers 1..=count that all name peer 1.
fn star(count: usize, links_max: usize) -> Mesh {
    Mesh::new((1..=count).map(|n| {
        let targets = if n == 1 { vec![] } else { vec![target(1)] };
        (n, NodeConfig { targets, links_max, ..config(n) })
    }))
}

fn known(mesh: &Mesh, n: usize) -> usize {
    mesh.host(n).node.peers().len()
}

fn links(mesh: &Mesh, n: usize) -> usize {
    mesh.host(n).node.peers()[0].links.len()
}

#[test]
fn an_idle_mesh_is_almost_silent() {
    let mut mesh = star(20, 32);
    mesh.run_secs(60);
    assert!(mesh.all_reach_all());
    let before: Vec<usize> = mesh.hosts.values().map(|host| host.sent).collect();
    mesh.run_secs(1000);
    let after: Vec<usize> = mesh.hosts.values().map(|host| host.sent).collect();
    let per_second: Vec<f64> =
        before.iter().zip(&after).map(|(before, after)| (after - before) as f64 / 1000.0).collect();
    let mean = per_second.iter().sum::<f64>() / per_second.len() as f64;
    // docs/gossip.md: one digest of 20 bytes in each 10 s.
    assert!(mean <= 3.0 && mean > 0.5, "{mean} bytes per peer per second");
}

#[test]
fn fifty_peers_with_few_links_stay_one_mesh_of_bounded_degree() {
    let mut mesh = star(50, 6);
    mesh.run_until_true(30 * SECOND, "all known, all reachable", |mesh| {
        (1..=50).all(|n| known(mesh, n) == 50) && mesh.all_reach_all()
    });
    mesh.run_secs(120);
    assert!(mesh.all_reach_all());
    // Dialled and accepted up to the limit each, and neighbours in the order of ids beyond it.
    for n in 1..=50 {
        assert!(
            links(&mesh, n) >= 2 && links(&mesh, n) <= 2 * 6 + 6,
            "{n} has {} links\n{}",
            links(&mesh, n),
            mesh.picture()
        );
    }
    for from in [1, 17, 50] {
        let got = mesh.broadcast(from);
        assert!((1..=50).filter(|n| *n != from).all(|n| got.get(&n) == Some(&1)), "from {from}: {got:?}");
    }
    // Nobody dials and sheds in a circle, once the slow attempts at peers that are reached anyway
    // have found the last ones with room for a link.
    mesh.run_secs(1200);
    let events: usize = mesh.hosts.values().map(|host| host.events.len()).sum();
    mesh.run_secs(600);
    let later: usize = mesh.hosts.values().map(|host| host.events.len()).sum();
    assert_eq!(later, events, "{}", mesh.picture());
}

#[test]
fn half_of_the_peers_die_and_the_rest_stays_connected() {
    let mut mesh = star(40, 6);
    mesh.run_secs(60);
    for n in (2..=40).step_by(2) {
        mesh.kill(n);
    }
    mesh.run_until_true(10 * SECOND, "the rest is one mesh", Mesh::all_reach_all);
}

#[test]
fn a_record_travels_once_around_and_no_message_is_sent_twice() {
    let mut mesh = star(12, 32);
    mesh.run_secs(60);
    let before: usize = mesh.hosts.values().map(|host| host.sent_messages).sum();
    mesh.with(5, |node, now| node.set_endpoints(vec![address(5), address(205)], now));
    mesh.run(Duration::from_millis(50));
    let after: usize = mesh.hosts.values().map(|host| host.sent_messages).sum();
    assert!(after - before <= 11 + 1, "a full mesh of 12 needs 11 messages, not {}", after - before);
}

#[test]
fn links_that_come_one_after_the_other_are_told_at_once() {
    let mut mesh = star(5, 32);
    mesh.run(Duration::from_millis(200));
    assert!(mesh.each_gets_each_broadcast_once(), "{}", mesh.picture());
}

#[test]
fn what_changes_without_end_is_published_at_a_steady_rate() {
    let mut mesh = star(3, 32);
    mesh.run_secs(30);
    let sent = |mesh: &Mesh| mesh.host(2).sent_messages;
    let before = sent(&mesh);
    for n in 0..200u64 {
        let other = address(if n % 2 == 0 { 200 } else { 210 });
        mesh.with(2, |node, now| node.set_endpoints(vec![address(2), other], now));
        mesh.run(Duration::from_millis(50));
    }
    let records = (sent(&mesh) - before) / 2;
    assert!((40..=60).contains(&records), "{records} records for 200 changes in 10 s");
}

#[test]
fn a_changed_round_trip_is_published_seldom() {
    let mut mesh = star(3, 32);
    mesh.run_secs(30);
    let sent = |mesh: &Mesh| mesh.host(2).sent_messages;
    let before = sent(&mesh);
    for n in 0..100u64 {
        let rtt = Duration::from_millis(if n % 2 == 0 { 20 } else { 90 });
        mesh.with(2, |node, now| node.handle_data_event(DataEvent::Rtt { peer: id(1), rtt }, now));
        mesh.run(Duration::from_millis(100));
    }
    assert!(sent(&mesh) - before <= 10, "{} messages for 100 changes in 10 s", sent(&mesh) - before);
}

#[test]
fn the_cheaper_path_is_taken() {
    // 1 and 4 are linked by 2 and by 3; the way by 2 gets slow.
    let mut mesh = Mesh::new([]);
    mesh.cut.extend([(1, 4), (2, 3)]);
    for n in 1..=4 {
        let targets = (1..=4).filter(|to| *to != n).map(target).collect();
        mesh.start(n, NodeConfig { targets, ..config(n) });
    }
    mesh.run_secs(20);
    let (first, other) = match mesh.host(1).tables.peers[&id(4)].relays[..] {
        [first, other] => (first, other),
        ref relays => panic!("two ways, but {relays:?}"),
    };
    let slow = if first == id(2) { 2 } else { 3 };
    for (at, of) in [(1, slow), (slow, 1)] {
        let rtt = Duration::from_millis(80);
        mesh.with(at, |node, now| node.handle_data_event(DataEvent::Rtt { peer: id(of), rtt }, now));
    }
    mesh.run_secs(2);
    assert_eq!(mesh.host(1).tables.peers[&id(4)].relays, [other, first]);
}

#[test]
fn keys_are_renewed_when_data_asks_and_both_ends_agree() {
    let mut mesh = Mesh::new([(1, sealed(1, 7)), (2, NodeConfig { targets: vec![target(1)], ..sealed(2, 7) })]);
    mesh.run_until_true(SECOND, "a link", |mesh| mesh.linked(1, 2));
    let mut seen = BTreeSet::new();
    for round in 0..6 {
        // One asks, the other asks, both ask at once.
        for n in [1, 2] {
            if round % 3 == 2 || round % 3 == n - 1 {
                mesh.with(n, |node, now| node.handle_data_event(DataEvent::RekeyDue { peer: id(3 - n) }, now));
            }
        }
        mesh.run(Duration::from_millis(20));
        let (a, b) = (mesh.host(1).keys.last().unwrap(), mesh.host(2).keys.last().unwrap());
        assert_eq!(*a.send.0, *b.receive.0);
        assert_eq!(*a.receive.0, *b.send.0);
        assert_eq!((a.local_index, a.remote_index), (b.remote_index, b.local_index));
        assert_ne!(a.initiator, b.initiator);
        assert!(seen.insert(*a.send.0) && seen.insert(*a.receive.0), "a key was used before");
        assert_eq!(mesh.host(1).keys.len(), 2 + round);
        assert_eq!(mesh.host(2).keys.len(), 2 + round);
    }
}

#[test]
fn a_proposal_that_is_lost_with_its_connection_is_made_again() {
    let mut mesh = Mesh::new([(1, sealed(1, 7)), (2, NodeConfig { targets: vec![target(1)], ..sealed(2, 7) })]);
    mesh.run_until_true(SECOND, "a link", |mesh| mesh.linked(1, 2));
    mesh.with(1, |node, now| node.handle_data_event(DataEvent::RekeyDue { peer: id(2) }, now));
    mesh.sever(1, 2);
    mesh.run_secs(8);
    mesh.mend(1, 2);
    mesh.run_until_true(10 * SECOND, "a link", |mesh| mesh.linked(1, 2));
    let count = mesh.host(1).keys.len();
    mesh.with(1, |node, now| node.handle_data_event(DataEvent::RekeyDue { peer: id(2) }, now));
    mesh.run_secs(1);
    assert_eq!(mesh.host(1).keys.len(), count + 1);
}

#[test]
fn keys_outlive_connections() {
    let mut mesh = Mesh::new([]);
    mesh.cut.insert((1, 3));
    for n in 1..=3 {
        mesh.start(n, NodeConfig { targets: vec![target(2)], ..sealed(n, 5) });
    }
    mesh.run_secs(5);
    let before = mesh.host(1).keys.len();
    mesh.sever(1, 2);
    mesh.run_secs(6);
    mesh.mend(1, 2);
    mesh.run_until_true(10 * SECOND, "linked", Mesh::all_reach_all);
    for n in 1..=3 {
        assert!(mesh.host(n).removed.is_empty());
    }
    assert!(mesh.host(1).keys.len() > before, "a new connection brings new keys");
}

#[test]
fn application_messages_reach_one_or_all_exactly_once() {
    let mut mesh = Mesh::new((1..=6).map(|n| {
        let targets = if n == 1 { vec![] } else { vec![target(n - 1)] };
        (n, NodeConfig { targets, discovery: false, ..config(n) })
    }));
    for a in 1..=6usize {
        for b in a + 2..=6 {
            mesh.cut.insert((a, b));
        }
    }
    mesh.run_secs(10);
    assert!(mesh.all_reach_all());
    for n in 0..50u8 {
        mesh.with(1, |node, now| node.broadcast_app(vec![n], now));
        mesh.with(4, |node, now| node.send_app(id(6), vec![100 + n], now));
    }
    mesh.run_secs(1);
    let expected: Vec<u8> = (0..50).collect();
    for n in 2..=6 {
        let from_one = |(from, _, _): &&(PeerId, _, Vec<u8>)| *from == id(1);
        let got: Vec<u8> = mesh.host(n).apps.iter().filter(from_one).map(|(_, _, payload)| payload[0]).collect();
        assert_eq!(got, expected, "at {n}");
    }
    let from_four = mesh.host(6).apps.iter().filter(|(from, _, _)| *from == id(4)).count();
    assert_eq!(from_four, 50);
    assert!(mesh.host(1).apps.is_empty(), "nobody hears itself");
    assert!(mesh.host(5).apps.iter().all(|(from, _, _)| *from == id(1)), "relays do not listen");
}

#[test]
fn a_message_hop_by_hop_needs_no_connection_with_its_destination() {
    // Relayed connections cannot be made here: the data path knows no way.
    let mut mesh = Mesh::new([]);
    mesh.cut.insert((1, 3));
    for n in 1..=3 {
        mesh.start(n, NodeConfig { targets: vec![target(2)], ..config(n) });
    }
    mesh.run_until_true(2 * SECOND, "reach", Mesh::all_reach_all);
    mesh.with(1, |node, now| node.send_app(id(3), b"hello".to_vec(), now));
    mesh.with(1, |node, now| node.send_app(id(9), b"nobody".to_vec(), now));
    mesh.run(Duration::from_millis(20));
    assert_eq!(mesh.host(3).apps.len(), 1);
    assert_eq!(mesh.host(3).apps[0].0, id(1));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut mesh = star(12, 4);
        mesh.run_secs(30);
        mesh.sever(1, 5);
        mesh.kill(7);
        mesh.run_secs(30);
        let sent: Vec<usize> = mesh.hosts.values().map(|host| host.sent).collect();
        (sent, mesh.picture())
    };
    assert_eq!(run(), run());
}
