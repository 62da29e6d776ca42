//! Paths that die, return, shrink, grow, move; keys that change; hosts that start again.

mod data_net;

use std::time::Duration;

use data_net::*;
use mesh_proto::data::forwarder::Forwarder;
use mesh_proto::data::report::Carried;
use mesh_proto::handover::{Command, DataEvent};

const TRIANGLE: &[(usize, usize)] = &[(0, 1), (1, 2), (0, 2)];

/// Teaches every host where the containers of the others are.
fn acquaint(net: &mut Net) {
    for n in 0..net.nodes.len() {
        net.send(n, &frame(EVERYBODY, mac(n, 1), 60, n as u64));
    }
    net.run(ms(50));
    net.frames.iter_mut().for_each(Vec::clear);
}

fn carrier(node: &Forwarder, now: Duration, peer: usize) -> Carried {
    node.paths(now).find(|path| path.peer == id(peer)).expect("the peer is in the tables").carrier
}

/// Sends one frame each `every` ms for `time` ms; the numbers of those that came.
fn stream(net: &mut Net, from: usize, to: usize, size: usize, every: u64, time: u64) -> Vec<u64> {
    net.frames[to].clear();
    let count = time / every;
    let sent: Vec<_> = (0..count).map(|n| frame(mac(to, 1), mac(from, 1), size, n)).collect();
    for one in &sent {
        net.send(from, one);
        net.run(ms(every));
    }
    net.run(ms(50));
    let came = net.frames[to].iter().map(|f| sent.iter().position(|s| s == f));
    came.map(|n| n.expect("only what was sent arrives") as u64).collect()
}

#[test]
fn a_dead_direct_path_gives_way_to_a_relay_and_comes_back() {
    let mut net = Net::new(3);
    net.ready(TRIANGLE);
    acquaint(&mut net);
    assert_eq!(carrier(&net.nodes[0], net.now, 2), Carried::Direct);
    net.filter = Box::new(|from, to, _, _| from + to != 2 || from == to);
    let cut = net.now;
    let came = stream(&mut net, 0, 2, 200, 10, 6_000);
    let gap = came.windows(2).map(|w| w[1] - w[0]).max().unwrap() * 10;
    let first = came[0] * 10;
    assert!(first.max(gap) <= 3_000, "first {first} ms, gap {gap} ms");
    assert!(came.len() > 300);
    assert_eq!(carrier(&net.nodes[0], net.now, 2), Carried::Relay(id(1)));
    let down = |e: &(Duration, DataEvent)| e.1 == DataEvent::PathDown { peer: id(2) };
    let at = net.events[0].iter().find(|e| down(e)).unwrap().0;
    assert!(at - cut <= ms(2_600), "{:?}", at - cut);
    net.filter = Box::new(|_, _, _, _| true);
    net.run(ms(1_100));
    assert_eq!(carrier(&net.nodes[0], net.now, 2), Carried::Direct);
    let ups = net.events[0].iter().filter(|e| matches!(e.1, DataEvent::PathUp { peer, .. } if peer == id(2)));
    assert_eq!(ups.count(), 2);
}

#[test]
fn a_path_that_works_one_way_only_is_dead_on_both_sides() {
    let mut net = Net::new(3);
    net.ready(TRIANGLE);
    acquaint(&mut net);
    net.filter = Box::new(|from, to, _, _| !(from == 2 && to == 0));
    net.run(ms(3_000));
    for (at, other) in [(0, 2), (2, 0)] {
        assert_eq!(carrier(&net.nodes[at], net.now, other), Carried::Relay(id(1)));
    }
    assert_eq!(stream(&mut net, 0, 2, 200, 10, 100).len(), 10);
    assert_eq!(stream(&mut net, 2, 0, 200, 10, 100).len(), 10);
}

#[test]
fn a_link_that_never_works_is_reported_and_frames_go_by_the_relay_from_the_start() {
    let mut net = Net::new(3);
    net.filter = Box::new(|from, to, _, _| from + to != 2 || from == to);
    net.ready(TRIANGLE);
    acquaint(&mut net);
    assert_eq!(stream(&mut net, 0, 2, 200, 10, 100).len(), 10);
    net.run(ms(2_000));
    assert!(net.has_event(0, |e| *e == DataEvent::PathDown { peer: id(2) }));
    assert!(!net.has_event(0, |e| matches!(e, DataEvent::PathUp { peer, .. } if *peer == id(2))));
}

#[test]
fn a_third_of_all_datagrams_lost_each_way_does_not_kill_a_path() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    let mut state = 1u64;
    net.filter = Box::new(move |_, _, _, _| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state >> 40 > (1 << 24) * 3 / 10
    });
    net.run(Duration::from_secs(300));
    assert!(!net.has_event(0, |e| matches!(e, DataEvent::PathDown { .. })));
    let loss = net.nodes[0].paths(net.now).next().unwrap().loss;
    assert!((0.2..0.8).contains(&loss), "{loss}");
}

#[test]
fn the_path_mtu_is_found_and_told() {
    for (fits, expect) in [(1472, 1472), (1452, 1452), (1252, 1252), (1210, 1200)] {
        let mut net = Net::new(2);
        net.filter = Box::new(move |_, _, bytes, _| bytes.len() <= fits);
        net.ready(&[(0, 1)]);
        let report = net.nodes[0].paths(net.now).next().unwrap();
        assert_eq!(report.payload_mtu, expect, "path of {fits}");
        let mut told = net.events[0].iter().filter_map(|e| match e.1 {
            DataEvent::Mtu { payload, .. } => Some(payload),
            _ => None,
        });
        assert_eq!(told.next_back(), Some(expect));
    }
}

#[test]
fn a_path_that_shrinks_in_mid_flow_stalls_for_less_than_two_seconds() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    acquaint(&mut net);
    assert_eq!(stream(&mut net, 0, 1, 1400, 5, 3_000).len(), 600);
    // No ICMP tells: larger datagrams vanish.
    net.filter = Box::new(|_, _, bytes, _| bytes.len() <= 1252);
    let came = stream(&mut net, 0, 1, 1400, 5, 5_000);
    let gap = came.windows(2).map(|w| w[1] - w[0]).max().unwrap().max(came[0]) * 5;
    assert!(gap < 2_000, "{gap} ms");
    assert_eq!(net.nodes[0].paths(net.now).next().unwrap().payload_mtu, 1252);
    assert!(!net.has_event(0, |e| matches!(e, DataEvent::PathDown { .. })));
    assert!(net.nodes[0].counters().fragments_out > 0);
    // And when it grows again, that is found after a while, with no frame lost.
    net.filter = Box::new(|_, _, _, _| true);
    assert_eq!(stream(&mut net, 0, 1, 1400, 50, 65_000).len(), 1300);
    assert_eq!(net.nodes[0].paths(net.now).next().unwrap().payload_mtu, 1472);
}

#[test]
fn a_relayed_way_has_its_own_path_mtu() {
    let mut net = Net::new(3);
    net.filter = Box::new(|_, to, bytes, _| to != 2 || bytes.len() <= 1400);
    net.ready(&[(0, 1), (1, 2)]);
    acquaint(&mut net);
    assert_eq!(stream(&mut net, 0, 2, 1450, 10, 2_000).len(), 200);
    let report = net.nodes[0].paths(net.now).find(|p| p.peer == id(2)).unwrap();
    assert_eq!((report.carrier, report.payload_mtu), (Carried::Relay(id(1)), 1400));
}

#[test]
fn what_the_socket_refuses_shrinks_the_path_at_once() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    acquaint(&mut net);
    net.filter = Box::new(|_, _, bytes, _| bytes.len() < 1300);
    net.call(0, |node, now, _| node.note_too_large(addr(1), 1472, now));
    net.call(0, |node, now, _| node.note_too_large(addr(9), 1472, now));
    assert_eq!(net.nodes[0].paths(net.now).next().unwrap().payload_mtu, 1200);
    assert_eq!(stream(&mut net, 0, 1, 1400, 10, 2_000).len(), 200);
    assert_eq!(net.nodes[0].paths(net.now).next().unwrap().payload_mtu, 1280);
}

#[test]
fn a_tcp_that_needs_fragments_is_told_of_a_better_size() {
    use etherparse::PacketBuilder;
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    acquaint(&mut net);
    let packet = |size: usize| {
        let builder = PacketBuilder::ethernet2(mac(0, 1), mac(1, 1)).ipv6([1; 16], [2; 16], 64);
        let mut packet = Vec::new();
        builder.tcp(1, 2, 3, 4).write(&mut packet, &vec![7; size]).unwrap();
        packet
    };
    net.send(0, &packet(1300));
    assert_eq!(net.nodes[0].counters().too_big, 0);
    net.send(0, &packet(1422));
    net.run(ms(20));
    assert_eq!(net.nodes[0].counters().too_big, 1);
    assert_eq!(net.frames[0].len(), 1);
    // The frame itself is carried nevertheless.
    assert_eq!(net.frames[1], [packet(1300), packet(1422)]);
}

#[test]
fn a_change_of_keys_in_mid_flow_loses_no_frame() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    acquaint(&mut net);
    net.frames[1].clear();
    for n in 0..1000u64 {
        net.send(0, &frame(mac(1, 1), mac(0, 1), 300, n));
        net.send(1, &frame(mac(0, 1), mac(1, 1), 300, n));
        match n % 20 {
            5 => net.session(0, 1),
            15 => net.session(1, 0),
            _ => {}
        }
        net.run(ms(3));
    }
    net.run(ms(50));
    for host in [0, 1] {
        let expect: Vec<_> = (0..1000).map(|n| frame(mac(host, 1), mac(1 - host, 1), 300, n)).collect();
        assert!(net.frames[host] == expect, "host {host}: {}", net.frames[host].len());
        assert!(net.dropped(host).is_empty(), "{:?}", net.dropped(host));
    }
}

#[test]
fn new_keys_are_asked_for_after_two_minutes_by_the_proposer_first() {
    let mut net = Net::new(2);
    net.link(&[(0, 1)]);
    net.session(0, 1);
    let start = net.now;
    net.run(Duration::from_secs(140));
    let due = |n: usize| {
        let rekey = |e: &&(Duration, DataEvent)| matches!(e.1, DataEvent::RekeyDue { .. });
        net.events[n].iter().filter(rekey).map(|e| (e.0 - start).as_secs()).collect::<Vec<_>>()
    };
    assert!((120..=124).contains(&due(0)[0]), "{:?}", due(0));
    assert!((135..=139).contains(&due(1)[0]), "{:?}", due(1));
    // Nobody answered: asked again, and frames flow on under the old keys.
    assert!((3..=5).contains(&due(0).len()), "{:?}", due(0));
    net.run(Duration::from_secs(600));
    acquaint(&mut net);
    assert_eq!(stream(&mut net, 0, 1, 200, 10, 100).len(), 10);
}

#[test]
fn frames_wait_for_their_session_for_a_second() {
    let mut net = Net::new(2);
    net.link(&[(0, 1)]);
    let sent: Vec<_> = (0..40).map(|n| frame(EVERYBODY, mac(0, 1), 100, n)).collect();
    net.send(0, &sent[0]);
    net.run(ms(1_500));
    for one in &sent[1..] {
        net.send(0, one);
    }
    assert!(net.has_event(0, |e| *e == DataEvent::SessionWanted { peer: id(1) }));
    net.run(ms(200));
    net.session(0, 1);
    net.run(ms(50));
    // The first had waited for too long, and no more than 32 wait.
    assert_eq!(net.frames[1], sent[1..33]);
    assert_eq!(net.dropped(0)["no_session"], 8);
}

#[test]
fn frames_of_the_side_that_answered_wait_until_it_may_send() {
    let mut net = Net::new(2);
    net.link(&[(0, 1)]);
    let [for_0, for_1] = net.keys(0, 1, mesh_proto::handover::Suite::Aes256Gcm);
    net.command(1, Command::Install(Box::new(for_1)));
    let sent = frame(EVERYBODY, mac(1, 1), 100, 1);
    net.send(1, &sent);
    net.run(ms(50));
    assert!(net.frames[0].is_empty());
    net.command(0, Command::Install(Box::new(for_0)));
    net.run(ms(50));
    assert_eq!(net.frames[0], [sent]);
}

#[test]
fn a_host_that_starts_again_is_spoken_to_at_once_and_its_floods_count() {
    let mut net = Net::new(3);
    net.ready(TRIANGLE);
    acquaint(&mut net);
    let old: Vec<_> = net.capture.iter().filter(|w| w.from == addr(0)).cloned().collect();
    net.restart(0, TRIANGLE);
    net.run(ms(500));
    let hello = frame(EVERYBODY, mac(0, 1), 60, 1);
    net.send(0, &hello);
    net.run(ms(50));
    assert_eq!(net.frames[1], std::slice::from_ref(&hello));
    assert_eq!(net.frames[2], [hello]);
    net.frames.iter_mut().for_each(Vec::clear);
    assert_eq!(stream(&mut net, 1, 0, 200, 10, 100).len(), 10);
    // Nothing of its earlier life is accepted any more.
    for wire in old {
        let to = node_of(wire.to).unwrap();
        net.inject(to, wire.from, &wire.bytes);
    }
    assert!(net.frames[1].is_empty() && net.frames[2].is_empty());
}

#[test]
fn a_peer_that_moves_is_followed_and_control_hears_of_it() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    acquaint(&mut net);
    let new: std::net::SocketAddr = "198.51.100.7:40000".parse().unwrap();
    let old_flow = net.capture.iter().rev().find(|w| w.from == addr(1)).unwrap().clone();
    net.source[1] = new;
    net.send(1, &frame(mac(0, 1), mac(1, 1), 100, 1));
    net.run(ms(20));
    assert!(net.has_event(0, |e| *e == DataEvent::Moved { peer: id(1), to: new }));
    assert_eq!(stream(&mut net, 0, 1, 200, 10, 100).len(), 10);
    // A captured datagram from somewhere else moves nobody.
    net.inject(0, addr(7), &old_flow.bytes);
    assert_eq!(net.nodes[0].paths(net.now).next().unwrap().endpoint, Some(new));
    assert_eq!(net.nodes[0].counters().replayed, 1);
    // The tables still name the old address: what was learned since holds.
    net.source[1] = addr(1);
    let tables = net.tables(0, &[(0, 1)]);
    net.source[1] = new;
    net.command(0, Command::Tables(std::sync::Arc::new(tables)));
    assert_eq!(stream(&mut net, 0, 1, 200, 10, 100).len(), 10);
}

#[test]
fn of_two_moves_within_a_second_control_hears_of_the_last() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    acquaint(&mut net);
    let places: [std::net::SocketAddr; 2] = ["198.51.100.7:40000", "198.51.100.8:40000"].map(|at| at.parse().unwrap());
    for place in places {
        net.source[1] = place;
        net.send(1, &frame(mac(0, 1), mac(1, 1), 100, 1));
        net.run(ms(100));
    }
    let told = |net: &Net| -> Vec<_> {
        let moved = net.events[0].iter().filter_map(|(_, event)| match event {
            DataEvent::Moved { to, .. } => Some(*to),
            _ => None,
        });
        moved.collect()
    };
    assert_eq!(told(&net), places[..1]);
    net.run(ms(2500));
    assert_eq!(told(&net), places);
}

#[test]
fn tables_that_follow_a_move_do_not_begin_the_path_anew() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    net.source[1] = "198.51.100.7:40000".parse().unwrap();
    net.send(1, &frame(EVERYBODY, mac(1, 1), 100, 1));
    net.run(ms(20));
    net.events[0].clear();
    let tables = net.tables(0, &[(0, 1)]);
    net.command(0, Command::Tables(std::sync::Arc::new(tables)));
    let path = net.nodes[0].paths(net.now).next().unwrap();
    assert!(path.direct_up);
    assert_eq!((path.endpoint, path.payload_mtu), (Some(net.source[1]), 1472));
    net.run(ms(2_000));
    assert!(!net.has_event(0, |e| matches!(e, DataEvent::PathUp { .. })));
}

#[test]
fn a_removed_peer_hears_and_says_nothing_more() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    acquaint(&mut net);
    net.command(0, Command::Remove(id(1)));
    assert_eq!(stream(&mut net, 1, 0, 200, 10, 100).len(), 0);
    assert_eq!(stream(&mut net, 0, 1, 200, 10, 100).len(), 0);
    assert!(net.dropped(0)["unknown_session"] >= 10);
    // Out of the tables and in again: as if new.
    net.link(&[]);
    net.ready(&[(0, 1)]);
    acquaint(&mut net);
    assert_eq!(stream(&mut net, 0, 1, 200, 10, 100).len(), 10);
}

#[test]
fn a_peer_that_forgot_the_keys_asks_for_new_ones_when_it_can_be_reached_again() {
    let mut net = Net::new(3);
    net.ready(&[(0, 1), (1, 2)]);
    acquaint(&mut net);
    net.link(&[(0, 1)]);
    net.run(ms(3000));
    net.command(2, Command::Remove(id(0)));
    net.events[2].clear();
    net.link(&[(0, 1), (1, 2)]);
    net.run(ms(1000));
    // Nobody has sent a frame.
    assert!(net.has_event(2, |event| *event == DataEvent::SessionWanted { peer: id(0) }), "{:?}", net.events[2]);
    net.session(2, 0);
    net.run(ms(500));
    assert_eq!(stream(&mut net, 0, 2, 100, 10, 200).len(), 20);
    assert_eq!(stream(&mut net, 2, 0, 100, 10, 200).len(), 20);
}

#[test]
fn an_idle_mesh_is_nearly_silent() {
    let mut net = Net::new(3);
    net.ready(TRIANGLE);
    net.run(Duration::from_secs(5));
    net.capture.clear();
    net.run(Duration::from_secs(100));
    let bytes: usize = net.capture.iter().map(|w| w.bytes.len() + 28).sum();
    // Three links; of each a probe, its echo with the other end's probe, and that one's echo; four datagrams where
    // two probes cross.
    assert!((900..=1050).contains(&net.capture.len()), "{}", net.capture.len());
    assert!(bytes / 100 / 3 < 250, "{} bytes per peer and second", bytes / 100 / 3);
}

#[test]
fn quick_probes_follow_a_wish_of_control() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    net.run(ms(300));
    let before = net.nodes[0].counters().echoes;
    net.command(0, Command::Probe(id(1)));
    net.command(0, Command::Probe(id(9)));
    net.run(ms(15));
    assert_eq!(net.nodes[0].counters().echoes, before + 1);
}

#[test]
fn an_echo_goes_to_where_the_probe_came_from_whatever_the_tables_say() {
    let mut net = Net::new(3);
    net.link(TRIANGLE);
    // One end knows of no direct path.
    let blind = net.tables(2, &[(0, 1), (1, 2)]);
    net.command(2, Command::Tables(std::sync::Arc::new(blind)));
    for (a, b) in [(0, 1), (1, 2), (0, 2)] {
        net.session(a, b);
    }
    net.run(ms(500));
    assert!(net.has_event(0, |e| matches!(e, DataEvent::PathUp { peer, .. } if *peer == id(2))));
    assert_eq!(carrier(&net.nodes[2], net.now, 0), Carried::Relay(id(1)));
}

#[test]
fn an_echo_that_took_another_way_proves_no_direct_path() {
    let mut net = Net::new(3);
    net.link(TRIANGLE);
    net.session(0, 1);
    net.session(1, 2);
    net.filter = Box::new(|from, to, _, _| !(from == 2 && to == 0));
    net.session(0, 2);
    net.run(ms(6));
    // Its probe and its echo, 42 bytes each, are blocked; somebody brings them through the relay.
    let small = |w: &&Wire| w.from == addr(2) && w.to == addr(0) && w.bytes.len() == 42;
    let blocked: Vec<_> = net.capture.iter().filter(small).cloned().collect();
    let before = net.nodes[0].counters().echoes;
    for wire in blocked {
        let mut relayed = vec![2, 15, 0, 0];
        relayed.extend_from_slice(&id(0).0[..12]);
        relayed.extend_from_slice(&id(2).0[..12]);
        relayed.extend_from_slice(&wire.bytes);
        net.inject(0, addr(1), &relayed);
    }
    assert!(net.nodes[0].counters().echoes > before);
    assert!(!net.has_event(0, |e| matches!(e, DataEvent::PathUp { peer, .. } if *peer == id(2))));
}

#[test]
fn a_late_datagram_from_the_old_address_does_not_move_a_peer_back() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    net.filter = Box::new(|_, _, _, _| false);
    net.send(1, &frame(EVERYBODY, mac(1, 1), 100, 1));
    let late = net.capture.last().unwrap().clone();
    net.run(ms(20));
    net.filter = Box::new(|_, _, _, _| true);
    let new: std::net::SocketAddr = "198.51.100.7:40000".parse().unwrap();
    net.source[1] = new;
    net.send(1, &frame(EVERYBODY, mac(1, 1), 100, 2));
    net.run(ms(20));
    net.inject(0, late.from, &late.bytes);
    assert_eq!(net.frames[0].len(), 2);
    assert_eq!(net.nodes[0].paths(net.now).next().unwrap().endpoint, Some(new));
}
