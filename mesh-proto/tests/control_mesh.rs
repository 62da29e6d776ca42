//! Meshes of a few nodes: links, relays, rings, restarts, partitions.

mod control_harness;

use std::time::Duration;

use control_harness::*;
use mesh_proto::control::node::PeerState;
use mesh_proto::control::{Event, NodeConfig};
use mesh_proto::handover::DataEvent;
use mesh_proto::id::Incarnation;

const SECOND: Duration = Duration::from_secs(1);

/// Peers 1..=count, each told of the one before it.
fn chain(count: usize) -> Mesh {
    Mesh::new((1..=count).map(|n| {
        let targets = if n == 1 { vec![] } else { vec![target(n - 1)] };
        (n, NodeConfig { targets, ..config(n) })
    }))
}

/// Lets only these pairs through.
fn only(mesh: &mut Mesh, pairs: &[(usize, usize)]) {
    let all: Vec<usize> = mesh.hosts.keys().copied().collect();
    for a in &all {
        for b in all.iter().filter(|b| *b > a) {
            if !pairs.contains(&(*a, *b)) {
                mesh.sever(*a, *b);
            }
        }
    }
}

#[test]
fn two_peers_link_with_and_without_a_secret() {
    for byte in [None, Some(9)] {
        let make = |n| byte.map_or_else(|| config(n), |byte| sealed(n, byte));
        let mut mesh = Mesh::new([(1, make(1)), (2, NodeConfig { targets: vec![target(1)], ..make(2) })]);
        mesh.run_until_true(SECOND, "a link", |mesh| mesh.linked(1, 2));
        let (a, b) = (&mesh.host(1).keys, &mesh.host(2).keys);
        assert_eq!((a.len(), b.len()), (1, 1));
        assert_eq!(*a[0].send.0, *b[0].receive.0);
        assert_eq!(*b[0].send.0, *a[0].receive.0);
        assert_eq!((a[0].local_index, a[0].remote_index), (b[0].remote_index, b[0].local_index));
        assert_ne!(a[0].initiator, b[0].initiator);
    }
}

#[test]
fn three_in_a_line_find_the_relay_and_the_ends_have_keys_with_each_other() {
    let mut mesh = Mesh::new([]);
    mesh.cut.insert((1, 3));
    for n in 1..=3 {
        mesh.start(n, NodeConfig { targets: vec![target(2)], ..sealed(n, 5) });
    }
    mesh.run_until_true(2 * SECOND, "1 and 3 reach each other", Mesh::all_reach_all);
    mesh.run_secs(3);
    for (a, b) in [(1, 3), (3, 1)] {
        assert_eq!(mesh.host(a).tables.peers[&id(b)].relays, [id(2)]);
        assert_eq!(mesh.host(a).tables.peers[&id(b)].direct, None);
        let info = mesh.info(a, b).unwrap();
        assert_eq!((info.state, info.via), (PeerState::Established, Some(id(2))));
    }
    let keys = |n: usize, of: usize| mesh.host(n).keys.iter().rfind(|keys| keys.peer == id(of)).unwrap();
    assert_eq!(*keys(1, 3).send.0, *keys(3, 1).receive.0);
    assert!(mesh.each_gets_each_broadcast_once(), "{}", mesh.picture());
}

#[test]
fn the_ends_of_a_line_that_meet_are_promoted_to_a_link() {
    let mut mesh = Mesh::new([]);
    mesh.cut.insert((1, 3));
    for n in 1..=3 {
        mesh.start(n, NodeConfig { targets: vec![target(2)], ..config(n) });
    }
    mesh.run_secs(5);
    mesh.mend(1, 3);
    mesh.run_until_true(20 * SECOND, "a direct link", |mesh| mesh.linked(1, 3));
    mesh.run_secs(1);
    assert!(mesh.host(1).tables.peers[&id(3)].relays.is_empty());
    assert!(mesh.all_reach_all() && mesh.each_gets_each_broadcast_once());
}

#[test]
fn discovery_makes_a_chain_of_eight_a_full_mesh() {
    let mut mesh = chain(8);
    mesh.run_until_true(5 * SECOND, "all linked", |mesh| (1..=8).all(|a| (1..=8).all(|b| a == b || mesh.linked(a, b))));
    mesh.run_secs(1);
    assert!(mesh.each_gets_each_broadcast_once());
}

#[test]
fn without_discovery_only_the_named_are_dialled() {
    let mut mesh = Mesh::new((1..=4).map(|n| {
        let targets = if n == 1 { vec![] } else { vec![target(n - 1)] };
        (n, NodeConfig { targets, discovery: false, ..config(n) })
    }));
    mesh.run_secs(10);
    assert!(mesh.all_reach_all());
    assert!(!mesh.linked(1, 3) && !mesh.linked(1, 4) && !mesh.linked(2, 4));
}

#[test]
fn a_ring_of_five_survives_one_cut_and_two() {
    let mut mesh = chain(5);
    only(&mut mesh, &[(1, 2), (2, 3), (3, 4), (4, 5), (1, 5)]);
    mesh.run_until_true(5 * SECOND, "the ring", Mesh::all_reach_all);
    mesh.run_secs(5);
    assert!(mesh.each_gets_each_broadcast_once(), "{}", mesh.picture());

    mesh.sever(2, 3);
    let took = mesh.run_until_true(4 * SECOND, "around the first cut", Mesh::all_reach_all);
    assert!(took <= Duration::from_millis(3500), "{took:?}");
    mesh.run_secs(1);
    assert!(mesh.each_gets_each_broadcast_once(), "{}", mesh.picture());

    mesh.sever(4, 5);
    mesh.run_secs(4);
    for (a, b) in [(1, 2), (1, 5), (2, 5), (3, 4)] {
        assert!(mesh.can_reach(a, b) && mesh.can_reach(b, a));
    }
    for (a, b) in [(1, 3), (2, 4), (5, 4)] {
        assert!(!mesh.can_reach(a, b));
    }
    mesh.mend(2, 3);
    mesh.run_until_true(8 * SECOND, "healed", Mesh::all_reach_all);
    mesh.run_secs(2);
    assert!(mesh.each_gets_each_broadcast_once(), "{}", mesh.picture());
}

#[test]
fn peers_that_dial_each_other_at_once_keep_one_connection() {
    let mut mesh = Mesh::new([
        (1, NodeConfig { targets: vec![target(2)], ..sealed(1, 1) }),
        (2, NodeConfig { targets: vec![target(1)], ..sealed(2, 1) }),
    ]);
    mesh.run_until_true(2 * SECOND, "a link", |mesh| mesh.linked(1, 2));
    mesh.run_secs(30);
    assert!(mesh.linked(1, 2));
    for n in [1, 2] {
        let ups = mesh.host(n).events.iter().filter(|(_, event)| matches!(event, Event::LinkUp { .. })).count();
        assert_eq!(ups, 1, "{}", mesh.picture());
    }
    let last = |n: usize| mesh.host(n).keys.last().unwrap();
    assert_eq!(*last(1).send.0, *last(2).receive.0);
    assert_eq!(last(1).local_index, last(2).remote_index);
}

#[test]
fn a_restarted_peer_is_back_before_the_old_connection_times_out() {
    let mut mesh = chain(3);
    mesh.run_secs(5);
    mesh.kill(2);
    mesh.run(Duration::from_millis(300));
    mesh.start(2, NodeConfig { incarnation: Incarnation(2), targets: vec![target(1)], ..config(2) });
    let took = mesh.run_until_true(SECOND, "back", |mesh| mesh.linked(1, 2) && mesh.all_reach_all());
    assert!(took < SECOND, "{took:?}");
    assert!(mesh.host(1).removed.contains(&id(2)), "the old session must end");
    mesh.run_secs(10);
    assert!(mesh.all_reach_all() && mesh.linked(2, 3));
    assert_eq!(mesh.host(3).tables.peers[&id(2)].incarnation, Incarnation(2));
    assert_eq!(mesh.host(3).keys.last().unwrap().incarnation, Incarnation(2));
}

#[test]
fn a_peer_with_an_old_incarnation_takes_a_higher_one_and_joins() {
    let mut mesh = chain(3);
    mesh.run_secs(3);
    for (n, old, same) in [(3, 1, false), (2, 1, true)] {
        let first = if same { 1 } else { 5 };
        mesh.kill(n);
        mesh.run_secs(3);
        if !same {
            mesh.start(n, NodeConfig { incarnation: Incarnation(first), targets: vec![target(1)], ..config(n) });
            mesh.run_secs(3);
            mesh.kill(n);
            mesh.run_secs(3);
        }
        mesh.start(n, NodeConfig { incarnation: Incarnation(old), targets: vec![target(1)], ..config(n) });
        mesh.run_until_true(5 * SECOND, "joined", Mesh::all_reach_all);
        mesh.run_secs(2);
        let raised = Incarnation(first + 1);
        assert_eq!(mesh.host(n).node.incarnation(), raised);
        assert!(mesh.host(n).events.iter().any(|(_, event)| *event == Event::IncarnationRaised { to: raised }));
        assert_eq!(mesh.host(1).tables.peers[&id(n)].incarnation, raised);
        assert!(mesh.refusals(n).is_empty(), "no operator needs to act: {:?}", mesh.refusals(n));
    }
}

#[test]
fn a_life_that_is_lived_twice_is_noticed_by_those_who_remember_it() {
    let raised = Event::IncarnationRaised { to: Incarnation(2) };
    // 3 comes back with an old copy of its disk; only 2 remembers it, and hears of it late.
    let mut mesh = Mesh::new([]);
    mesh.cut.insert((2, 3));
    for n in 1..=3 {
        mesh.start(n, NodeConfig { targets: vec![target(1)], ..config(n) });
    }
    mesh.run_until_true(2 * SECOND, "all", Mesh::all_reach_all);
    mesh.kill(3);
    mesh.kill(1);
    mesh.sever(1, 2);
    mesh.run_secs(5);
    mesh.start(1, NodeConfig { incarnation: Incarnation(2), ..config(1) });
    mesh.start(3, NodeConfig { targets: vec![target(1)], ..config(3) });
    // Its new life publishes more than the old one did.
    for port in 0..20 {
        mesh.run_secs(1);
        mesh.with(3, |node, now| node.set_endpoints(vec![address(3), ([192, 0, 2, 1], 1000 + port).into()], now));
    }
    assert_eq!(mesh.host(3).node.incarnation(), Incarnation(1), "nobody who is here remembers");
    mesh.mend(1, 2);
    mesh.run_until_true(10 * SECOND, "all again", |mesh| {
        mesh.all_reach_all() && mesh.host(2).tables.peers[&id(3)].incarnation == Incarnation(2)
    });
    assert_eq!(mesh.host(3).events.iter().filter(|(_, event)| *event == raised).count(), 1);
    let sent = mesh.hosts.values().map(|host| host.sent_messages).sum::<usize>();
    mesh.run_secs(30);
    let after = mesh.hosts.values().map(|host| host.sent_messages).sum::<usize>();
    assert!(after - sent < 40, "the old record goes around no more: {} messages", after - sent);
    assert!(mesh.each_gets_each_broadcast_once(), "{}", mesh.picture());
}

#[test]
fn two_halves_part_forget_nothing_and_heal() {
    let mut mesh = chain(6);
    mesh.run_secs(5);
    for a in 1..=3 {
        for b in 4..=6 {
            mesh.sever(a, b);
        }
    }
    mesh.run_secs(60);
    assert!(mesh.can_reach(1, 3) && mesh.can_reach(4, 6) && !mesh.can_reach(1, 6));
    assert_eq!(mesh.state(1, 6), Some(PeerState::Retrying));
    let unreachable = |event: &Event| matches!(event, Event::PeerUnreachable { peer, .. } if *peer == id(6));
    assert!(mesh.host(1).events.iter().any(|(_, event)| unreachable(event)));
    for a in 1..=3 {
        for b in 4..=6 {
            mesh.mend(a, b);
        }
    }
    let took = mesh.run_until_true(10 * SECOND, "healed", Mesh::all_reach_all);
    assert!(took < 7 * SECOND, "{took:?}");
    mesh.run_secs(10);
    assert!(mesh.each_gets_each_broadcast_once(), "{}", mesh.picture());
}

#[test]
fn what_only_control_can_cross_is_no_link() {
    let mut mesh = Mesh::new([]);
    mesh.frames_cut.insert((1, 2));
    mesh.start(1, config(1));
    mesh.start(2, NodeConfig { targets: vec![target(1)], ..config(2) });
    mesh.run_secs(20);
    assert!(!mesh.linked(1, 2));
    let info = mesh.info(2, 1).unwrap();
    assert_ne!(info.state, PeerState::Established);
    mesh.frames_cut.clear();
    mesh.run_until_true(10 * SECOND, "a link", |mesh| mesh.linked(1, 2));
}

#[test]
fn a_forgotten_target_is_left_alone_until_it_is_named_again() {
    let mut mesh = Mesh::new([
        (1, NodeConfig { discovery: false, ..config(1) }),
        (2, NodeConfig { targets: vec![target(1)], ..config(2) }),
    ]);
    mesh.run_secs(2);
    assert!(mesh.linked(1, 2));
    assert!(!mesh.with(2, |node, now| node.forget("10.9.9.9:1", now)));
    assert!(mesh.with(2, |node, now| node.forget(&target(1), now)));
    mesh.run_secs(60);
    assert!(!mesh.linked(1, 2));
    assert_eq!(mesh.host(2).node.targets(), []);
    mesh.with(2, |node, now| node.connect(target(1), now));
    mesh.run_until_true(SECOND, "linked again", |mesh| mesh.linked(1, 2));
}

#[test]
fn a_peer_that_shuts_down_is_missed_at_once() {
    let mut mesh = chain(3);
    mesh.run_secs(3);
    mesh.with(3, |node, now| node.shutdown(now));
    mesh.run(Duration::from_millis(100));
    assert!(!mesh.linked(1, 3) && mesh.host(1).tables.peers[&id(3)].direct.is_none());
    let why = |event: &Event| matches!(event, Event::LinkDown { reason, .. } if reason.contains("shuts down"));
    assert!(mesh.host(1).events.iter().any(|(_, event)| why(event)));
}

#[test]
fn an_absent_peer_is_forgotten_after_ten_minutes_and_comes_back_when_it_lives() {
    let mut mesh = chain(3);
    mesh.run_secs(3);
    mesh.kill(3);
    mesh.run_secs(590);
    assert!(mesh.info(1, 3).is_some());
    mesh.run_secs(30);
    assert!(mesh.info(1, 3).is_none() && mesh.info(2, 3).is_none());
    assert!(!mesh.host(1).tables.peers.contains_key(&id(3)));
    let forgotten = |event: &Event| matches!(event, Event::PeerForgotten { peer, .. } if *peer == id(3));
    assert_eq!(mesh.host(1).events.iter().filter(|(_, event)| forgotten(event)).count(), 1);
    mesh.run_secs(100);
    assert!(mesh.info(1, 3).is_none(), "nobody brings it back from memory");
    mesh.start(3, NodeConfig { incarnation: Incarnation(2), targets: vec![target(2)], ..config(3) });
    mesh.run_until_true(3 * SECOND, "back", Mesh::all_reach_all);
}

#[test]
fn halves_that_forgot_each_other_find_together_again() {
    let mut mesh = chain(6);
    mesh.run_secs(5);
    for a in 1..=3 {
        for b in 4..=6 {
            mesh.sever(a, b);
        }
    }
    mesh.run_secs(700);
    assert!(mesh.info(1, 6).is_none() && mesh.info(6, 1).is_none());
    mesh.cut.clear();
    // Peer 4 was told of peer 3 by its operator, and a target is never forgotten.
    mesh.run_until_true(60 * SECOND, "together", Mesh::all_reach_all);
}

#[test]
fn the_address_that_two_peers_see_us_at_is_published() {
    let mut mesh = Mesh::new([(1, config(1)), (2, NodeConfig { targets: vec![target(1)], ..config(2) })]);
    let outside = "192.0.2.7:40000".parse().unwrap();
    mesh.nat.insert(3, outside);
    mesh.start(3, NodeConfig { targets: vec![target(1), target(2)], ..config(3) });
    mesh.run_until_true(2 * SECOND, "links", |mesh| mesh.linked(1, 3) && mesh.linked(2, 3));
    mesh.run_secs(2);
    assert_eq!(mesh.host(1).tables.peers[&id(3)].direct, Some(outside));
    // Its own way in is gone; the published one leads back.
    mesh.start(4, NodeConfig { targets: vec![target(1)], ..config(4) });
    mesh.run_until_true(3 * SECOND, "a link with 4", |mesh| mesh.linked(3, 4));
}

#[test]
fn a_peer_with_new_keys_at_an_old_address_is_one_peer_and_one_link() {
    let mut mesh = chain(3);
    mesh.run_secs(3);
    mesh.kill(3);
    mesh.run_secs(4);
    // Its data directory is gone: the same address, other keys.
    mesh.start_as(3, 33, NodeConfig { targets: vec![target(2)], ..config(3) });
    mesh.run_secs(5);
    let ups =
        |mesh: &Mesh, n: usize| mesh.host(n).events.iter().filter(|(_, e)| matches!(e, Event::LinkUp { .. })).count();
    let (before, sent) = (ups(&mesh, 1), mesh.host(1).keys.len());
    mesh.run_secs(120);
    assert_eq!((ups(&mesh, 1), mesh.host(1).keys.len()), (before, sent), "{}", mesh.picture());
    assert_eq!(mesh.state(1, 33), Some(PeerState::Established));
    assert_eq!(mesh.state(1, 3), Some(PeerState::Retrying));
}

#[test]
fn naming_a_peer_that_is_linked_already_changes_nothing() {
    let mut mesh = chain(3);
    mesh.run_secs(3);
    let keys = mesh.host(3).keys.len();
    mesh.with(3, |node, now| node.connect(target(1), now));
    mesh.run_secs(3);
    assert_eq!(mesh.host(3).keys.len(), keys);
    let targets = mesh.host(3).node.targets();
    assert!(targets.iter().all(|target| target.peer.is_some() && target.reason.is_empty()), "{targets:?}");
}

#[test]
fn a_copied_back_data_directory_is_noticed_however_its_numbers_fall() {
    // The life after the copy has the same incarnation and soon the same numbers in its records.
    for others in [1, 2, 3] {
        let mut mesh = chain(others);
        mesh.start(9, NodeConfig { targets: vec![target(1)], ..config(9) });
        mesh.run_secs(3);
        mesh.kill(9);
        mesh.run_secs(4);
        mesh.start(9, NodeConfig { targets: vec![target(1)], ..config(9) });
        mesh.run_secs(5);
        assert_eq!(mesh.host(9).node.incarnation(), Incarnation(2), "{}", mesh.picture());
        assert!(mesh.all_reach_all());
    }
}

#[test]
fn a_link_outlives_the_connection_that_is_made_anew_when_the_dialled_end_moves() {
    let mut mesh = chain(2);
    mesh.run_secs(5);
    let keys = |mesh: &Mesh| (mesh.host(1).keys.len(), mesh.host(2).keys.len());
    let before = keys(&mesh);
    let seq = |mesh: &Mesh| mesh.host(1).sent_messages + mesh.host(2).sent_messages;
    let sent = seq(&mesh);
    let moved = "192.0.2.7:40000".parse().unwrap();
    mesh.nat.insert(1, moved);
    mesh.with(2, |node, now| node.handle_data_event(DataEvent::Moved { peer: id(1), to: moved }, now));
    mesh.run_secs(1);
    assert_eq!(keys(&mesh), (before.0 + 1, before.1 + 1), "one more handshake: {}", mesh.picture());
    mesh.run_secs(30);
    assert_eq!(keys(&mesh), (before.0 + 1, before.1 + 1), "and no other");
    for n in [1, 2] {
        let downs = mesh.host(n).events.iter().filter(|(_, event)| matches!(event, Event::LinkDown { .. })).count();
        assert_eq!(downs, 0, "{}", mesh.picture());
    }
    assert!(mesh.linked(1, 2) && mesh.all_reach_all());
    assert_eq!(mesh.host(2).tables.peers[&id(1)].direct, Some(moved));
    assert!(seq(&mesh) - sent < 40, "no storm: {}", seq(&mesh) - sent);
}

#[test]
fn a_link_that_its_other_end_gave_up_without_a_word_is_made_anew() {
    // 1 and 2 dial 3, and 2 dials 1; who was dialled dials nobody.
    let mut mesh = Mesh::new([]);
    for (n, targets) in [(1, vec![target(3)]), (2, vec![target(1), target(3)]), (3, vec![])] {
        mesh.start(n, NodeConfig { targets, discovery: false, ..config(n) });
    }
    mesh.run_secs(10);
    assert!(mesh.linked(1, 2));
    mesh.ends_lost.insert(2);
    mesh.with(1, |node, now| node.handle_data_event(DataEvent::PathDown { peer: id(2) }, now));
    mesh.ends_lost.clear();
    mesh.run_secs(9);
    let has = |mesh: &Mesh, n: usize, of: usize| mesh.info(n, of).is_some_and(|info| info.direct.is_some());
    assert!(!has(&mesh, 1, 2) && has(&mesh, 2, 1), "{}", mesh.picture());
    mesh.run_secs(4);
    assert!(mesh.linked(1, 2), "{}", mesh.picture());
    let downs = |event: &Event| matches!(event, Event::LinkDown { reason, .. } if reason.contains("no such link"));
    assert_eq!(mesh.host(2).events.iter().filter(|(_, event)| downs(event)).count(), 1);
}

#[test]
fn of_many_connections_made_at_once_one_stays_and_the_link_on_it_never_ends() {
    // Each end knows the other by two names, and messages of one connection overtake another's.
    let names = |n: usize| vec![target(n), format!("[::ffff:10.0.0.{n}]:6783")];
    for seed in 0..300 {
        let mut mesh = Mesh::new([]);
        mesh.uneven = Some(seed);
        let (one, two) = if seed % 2 == 0 { (1, 2) } else { (2, 1) };
        mesh.start(one, NodeConfig { targets: names(two), ..config(one) });
        mesh.run(LATENCY * (seed as u32 % 16));
        mesh.start(two, NodeConfig { targets: names(one), ..config(two) });
        mesh.run_until_true(SECOND, "a link", |mesh| mesh.linked(1, 2));
        mesh.run_secs(20);
        for n in [1, 2] {
            let downs: Vec<_> =
                mesh.host(n).events.iter().filter(|(_, event)| matches!(event, Event::LinkDown { .. })).collect();
            assert!(downs.is_empty(), "seed {seed}: {downs:?}");
        }
        assert!(mesh.linked(1, 2));
    }
}
