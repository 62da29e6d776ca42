//! Forwarders that carry frames between each other: direct, relayed, flooded.

mod data_net;

use std::collections::BTreeMap;
use std::sync::Arc;

use data_net::*;
use mesh_proto::data::Hop;
use mesh_proto::data::fence::Fence;
use mesh_proto::handover::{Command, DataEvent, Suite};
use mesh_proto::wire::datagram::RelayHeader;
use proptest::prelude::*;

const LINE: &[(usize, usize)] = &[(0, 1), (1, 2)];

#[test]
fn two_hosts_learn_each_other_by_a_flood_and_then_speak_directly() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    assert!(net.has_event(0, |e| matches!(e, DataEvent::PathUp { .. })));
    let question = frame(EVERYBODY, mac(0, 1), 60, 1);
    net.send(0, &question);
    net.run(ms(10));
    assert_eq!(net.frames[1], [question]);
    let answer = frame(mac(0, 1), mac(1, 1), 200, 2);
    net.send(1, &answer);
    net.run(ms(10));
    assert_eq!(net.frames[0], [answer]);
    assert_eq!(net.nodes[0].counters().floods, 1);
    assert_eq!(net.nodes[1].counters().floods, 0);
    let onward = frame(mac(1, 1), mac(0, 1), 1000, 3);
    net.send(0, &onward);
    net.run(ms(10));
    assert_eq!(net.frames[1][1], onward);
    assert_eq!(net.nodes[0].counters().floods, 1);
}

#[test]
fn the_ends_of_a_line_speak_through_a_relay_that_cannot_read_them() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305, Suite::Nacl] {
        let mut net = Net::new(3);
        net.link(LINE);
        net.session(0, 1);
        net.session(1, 2);
        net.session_with(0, 2, suite);
        net.run(ms(2000));
        net.capture.clear();
        net.send(2, &frame(EVERYBODY, mac(2, 1), 60, 1));
        net.run(ms(20));
        let secret = frame(mac(2, 1), mac(0, 1), 900, 9);
        net.send(0, &secret);
        net.run(ms(20));
        assert_eq!(net.frames[2], std::slice::from_ref(&secret));
        // The flood came to the relay's own containers, the unicast frame did not.
        assert_eq!(net.frames[1].len(), 1);
        assert!(net.nodes[1].counters().relayed > 0);
        let marker = &secret[100..132];
        assert!(net.capture.iter().all(|w| !w.bytes.windows(32).any(|b| b == marker)));
        assert!(net.capture.iter().all(|w| !w.bytes.windows(6).any(|b| b == mac(0, 1))));
    }
}

#[test]
fn quic_is_handed_over_directly_and_through_relays() {
    let mut net = Net::new(3);
    net.ready(LINE);
    let initial = vec![0xc3; 1200];
    net.inject(1, addr(9), &initial);
    assert_eq!(net.quic[1], [(Hop::Direct(addr(9)), initial.clone())]);
    let before = net.capture.len();
    net.call(0, |node, now, out| node.relay_quic(id(2), &initial, now, out));
    net.run(ms(20));
    assert_eq!(net.quic[2], [(Hop::Relayed(id(0)), initial.clone())]);
    // It fits what the smallest IPv6 MTU leaves.
    assert!(net.capture[before..].iter().filter(|w| w.bytes.len() > 1200).all(|w| w.bytes.len() <= 1232));
    // From a stranger's address nothing is passed on or handed over.
    let relayed = net.capture[before].bytes.clone();
    net.inject(1, addr(9), &relayed);
    net.inject(2, addr(9), &relayed);
    net.run(ms(20));
    assert_eq!(net.quic[2].len(), 1);
    assert_eq!(net.dropped(1)["relay_from_stranger"], 1);
    assert_eq!(net.dropped(2)["relay_from_stranger"], 1);
}

#[test]
fn a_relay_sends_nothing_back_and_ends_what_went_in_circles() {
    let mut net = Net::new(3);
    net.ready(LINE);
    net.capture.clear();
    net.call(0, |node, now, out| node.relay_quic(id(2), &[0x40; 50], now, out));
    let relay = net.capture[0].bytes.clone();
    // The far end is given back its own: the only way on is where it came from.
    let mut back = relay.clone();
    back[4..16].copy_from_slice(&id(0).0[..12]);
    net.inject(1, addr(0), &back);
    assert_eq!(net.dropped(1)["relay_back"], 1);
    let mut spent = relay;
    spent[1] = 1;
    net.inject(1, addr(0), &spent);
    assert_eq!(net.dropped(1)["hop_limit"], 1);
}

#[test]
fn no_relay_sends_a_datagram_on_that_has_come_round() {
    let mut net = Net::new(3);
    net.ready(LINE);
    net.capture.clear();
    let send = |net: &mut Net, hops, arrived: usize| {
        let header = RelayHeader { hops, destination: id(2).into(), source: id(0).into() };
        net.inject(1, addr(0), &[&header.bytes()[..], &[0x40; 50]].concat());
        net.run(ms(20));
        assert_eq!(net.quic[2].len(), arrived, "with {hops} hops");
    };
    send(&mut net, 9, 1);
    // Sent again, or copied on the way here.
    send(&mut net, 9, 2);
    send(&mut net, 6, 2);
    assert_eq!(net.dropped(1)["relay_circle"], 1);
}

proptest! {
    /// Any tables at all, however wrong: next hops drawn for each peer by itself.
    #[test]
    fn nothing_goes_in_circles_whatever_the_tables_say(
        drawn in prop::collection::vec(prop::collection::vec(0usize..6, 0..3), 6),
    ) {
        const GOAL: usize = 6;
        let all: Vec<_> = (0..6).flat_map(|a| (0..a).map(move |b| (a, b))).collect();
        let mut net = Net::new(7);
        net.ready(&all);
        for (n, relays) in drawn.iter().enumerate() {
            let mut tables = net.tables(n, &all);
            let path = tables.peers.get_mut(&id(GOAL)).unwrap();
            path.relays = relays.iter().filter(|via| **via != n).map(|via| id(*via)).collect();
            net.command(n, Command::Tables(Arc::new(tables)));
        }
        net.run(ms(50));
        net.capture.clear();
        net.call(0, |node, now, out| node.relay_quic(id(GOAL), &[0x40; 50], now, out));
        net.run(DELAY * 33);
        let mut senders: Vec<_> = net.capture.iter().filter(|wire| wire.bytes.len() == 78).map(|wire| wire.from).collect();
        let sent = senders.len();
        senders.sort();
        senders.dedup();
        prop_assert_eq!(senders.len(), sent);
        prop_assert!((0..6).all(|n| !net.dropped(n).contains_key("hop_limit")));
    }
}

#[test]
fn a_flood_comes_to_every_other_host_exactly_once() {
    let links: &[&[(usize, usize)]] = &[
        &[(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)],
        &[(0, 1), (0, 2), (0, 3), (0, 4), (0, 5)],
        &[(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0), (0, 3), (1, 4)],
    ];
    for links in links {
        let mut net = Net::new(6);
        net.ready(links);
        for n in 0..1000 {
            net.send(n % 6, &frame(EVERYBODY, mac(n % 6, 1), 60 + n % 100, n as u64));
            if n % 10 == 0 {
                net.run(ms(10));
            }
        }
        net.run(ms(100));
        for host in 0..6 {
            let expect = (0..1000).filter(|n| n % 6 != host);
            let mut expect: Vec<_> = expect.map(|n| frame(EVERYBODY, mac(n % 6, 1), 60 + n % 100, n as u64)).collect();
            let mut got = net.frames[host].clone();
            expect.sort();
            got.sort();
            assert!(got == expect, "host {host}: {} of {}", got.len(), expect.len());
            assert_eq!(net.nodes[host].counters().flood_duplicates, 0);
        }
    }
}

#[test]
fn disagreeing_trees_give_no_frame_twice_and_no_storm() {
    use mesh_proto::handover::{Command, Tables};
    use std::sync::Arc;
    let full: Vec<_> = (0..5).flat_map(|a| (a + 1..5).map(move |b| (a, b))).collect();
    let mut net = Net::new(5);
    net.ready(&full);
    // The worst that tables can say: everybody passes on to everybody.
    for n in 0..5 {
        let mut tables: Tables = net.tables(n, &full);
        for children in tables.trees.values_mut() {
            *children = (0..5).filter(|&c| c != n).map(id).collect();
        }
        net.command(n, Command::Tables(Arc::new(tables)));
    }
    let sent = frame(EVERYBODY, mac(0, 1), 60, 5);
    let before = net.capture.len();
    net.send(0, &sent);
    net.run(ms(200));
    for host in 1..5 {
        assert_eq!(net.frames[host], std::slice::from_ref(&sent));
    }
    assert!(net.frames[0].is_empty());
    let floods = net.capture[before..].iter().filter(|w| w.bytes.len() == 129);
    assert_eq!(floods.count(), 4 + 4 * 3);
}

#[test]
fn a_flood_is_not_passed_back_to_where_it_came_from() {
    use mesh_proto::handover::Command;
    use std::sync::Arc;
    let mut net = Net::new(3);
    net.ready(LINE);
    // The last of the line is told to pass on to the one before.
    let mut tables = net.tables(2, LINE);
    tables.trees.insert(id(0), vec![id(1), id(0)]);
    net.command(2, Command::Tables(Arc::new(tables)));
    net.send(0, &frame(EVERYBODY, mac(0, 1), 60, 5));
    net.run(ms(100));
    assert_eq!(net.frames[2].len(), 1);
    assert_eq!(net.nodes[1].counters().flood_duplicates, 0);
    assert_eq!(net.dropped(0).len(), 0);
}

#[test]
fn a_flood_ends_when_it_was_passed_on_too_often() {
    use mesh_proto::handover::Command;
    use std::sync::Arc;
    let line: Vec<_> = (0..40).map(|n| (n, n + 1)).collect();
    let mut net = Net::new(41);
    for n in 0..41 {
        let tables = net.tables(n, &line);
        net.command(n, Command::Tables(Arc::new(tables)));
    }
    line.iter().for_each(|&(a, b)| net.session(a, b));
    net.run(ms(500));
    net.send(0, &frame(EVERYBODY, mac(0, 1), 60, 5));
    net.run(ms(500));
    let came: Vec<_> = net.frames.iter().map(Vec::len).collect();
    assert_eq!(came[1..33], [1; 32]);
    assert_eq!(came[33..], [0; 8]);
    assert_eq!(net.dropped(32)["hop_limit"], 1);
}

#[test]
fn frames_of_every_size_arrive_byte_identical() {
    let mut net = Net::new(3);
    net.ready(LINE);
    let sizes = (14..1700).chain((1700..65_535).step_by(997)).chain([65_534, 65_535]);
    for size in sizes {
        for (to, target) in [(mac(2, 1), 2), (EVERYBODY, 2)] {
            net.frames.iter_mut().for_each(Vec::clear);
            let sent = frame(to, mac(0, 1), size, size as u64);
            net.send(0, &sent);
            net.run(ms(11));
            assert!(net.frames[target] == [sent], "size {size}: {}", net.frames[target].len());
        }
        if size == 14 {
            // From now on the destination is known.
            net.send(2, &frame(EVERYBODY, mac(2, 1), 60, 0));
            net.run(ms(11));
        }
    }
    assert!(net.dropped(2).is_empty(), "{:?}", net.dropped(2));
}

#[test]
fn tagged_llc_and_multicast_frames_are_carried_and_link_local_ones_stay() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    let mut tagged = frame(EVERYBODY, mac(0, 1), 100, 1);
    tagged[12..16].copy_from_slice(&[0x81, 0, 0, 7]);
    let mut llc = frame([1, 0, 0x5e, 0, 0, 1], mac(0, 1), 100, 2);
    llc[12..14].copy_from_slice(&[0, 86]);
    let stp = frame([1, 0x80, 0xc2, 0, 0, 0], mac(0, 1), 60, 3);
    for sent in [&tagged, &llc, &stp] {
        net.send(0, sent);
    }
    net.run(ms(20));
    assert_eq!(net.frames[1], [tagged, llc]);
    assert_eq!(net.dropped(0)["link_local"], 1);
}

#[test]
fn bad_frames_of_the_host_are_counted_and_nothing_else() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    for size in 0..14 {
        net.send(0, &vec![0xff; size]);
    }
    net.send(0, &vec![0xff; 65_536]);
    net.run(ms(20));
    assert_eq!((net.dropped(0)["runt"], net.dropped(0)["giant"]), (14, 1));
    assert!(net.frames[1].is_empty());
    // To an address that is on this side the bridge delivers.
    net.send(0, &frame(EVERYBODY, mac(0, 1), 60, 1));
    net.send(0, &frame(mac(0, 1), mac(0, 2), 60, 1));
    assert_eq!(net.dropped(0)["local"], 1);
}

#[test]
fn small_frames_of_a_batch_share_a_datagram() {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    net.send(1, &frame(EVERYBODY, mac(1, 1), 60, 1));
    net.run(ms(20));
    let before = net.capture.len();
    net.call(0, |node, now, out| {
        for n in 0..20 {
            node.handle_frame(&frame(mac(1, 1), mac(0, 1), 60, n), now, out);
        }
        node.flush(now, out);
    });
    assert_eq!(net.capture.len() - before, 1);
    net.run(ms(6));
    assert_eq!(net.frames[1].len(), 20);
}

#[test]
fn a_fenced_peer_is_heard_from_its_own_addresses_alone() {
    let fence = |addresses: [[u8; 4]; 2]| {
        Command::Fences(BTreeMap::from([(id(0), Arc::new(Fence::new([(addresses[0].into(), addresses[1].into())])))]))
    };
    let mut net = Net::new(3);
    // The fence stands before the peer is known, and outlasts new tables.
    net.command(1, fence([[10, 0, 0, 0], [10, 0, 0, 7]]));
    net.ready(LINE);
    net.send(1, &frame(EVERYBODY, mac(1, 1), 60, 1));
    net.run(ms(20));
    net.frames[2].clear();
    let arp = |from: usize, sender: [u8; 4]| {
        let body = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &mac(from, 1), &sender, &[0; 6], &[10, 0, 0, 9]].concat();
        [&EVERYBODY[..], &mac(from, 1), &[8, 6], &body].concat()
    };
    // In frames for everybody, of which it passes on to others what it does not take itself.
    net.send(0, &arp(0, [10, 0, 0, 7]));
    net.run(ms(20));
    assert!(net.frames[1].is_empty() && net.frames[2].len() == 1, "{:?}", net.frames);
    net.send(0, &arp(0, [10, 0, 0, 8]));
    // Others are not looked at.
    net.send(2, &arp(2, [10, 0, 0, 7]));
    net.run(ms(20));
    assert_eq!(net.frames[1], [arp(0, [10, 0, 0, 8]), arp(2, [10, 0, 0, 7])]);
    // In super-frames, of which all pieces have the source of the first.
    let (header, bytes) = super_frame(mac(1, 1), mac(0, 1), 20_000);
    let send = |net: &mut Net| {
        net.frames[1].clear();
        net.call(0, |node, now, out| {
            node.handle_super_frame(&header, &mut bytes.clone(), now, out);
            node.flush(now, out);
        });
        net.run(ms(20));
        net.frames[1].len()
    };
    let before = net.dropped(1)["fenced"];
    assert_eq!(send(&mut net), 0);
    assert!(net.dropped(1)["fenced"] > before);
    net.command(1, fence([[10, 0, 0, 2], [10, 0, 0, 7]]));
    assert!(send(&mut net) > 0);
    net.command(1, Command::Fences(BTreeMap::new()));
    net.frames[1].clear();
    net.send(0, &arp(0, [10, 0, 0, 7]));
    net.run(ms(20));
    assert_eq!(net.frames[1], [arp(0, [10, 0, 0, 7])]);
}
