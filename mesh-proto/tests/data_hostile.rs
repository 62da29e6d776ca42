//! What strangers and damage can do: nothing is delivered, everything is counted.

mod data_net;

use data_net::*;
use mesh_proto::handover::{Command, DataEvent, Suite};

/// A small generator: the same bytes in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// Two hosts that exchanged 200 frames each way; their capture holds nothing older.
fn conversation() -> Net {
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    net.capture.clear();
    for n in 0..200 {
        net.send(0, &frame(EVERYBODY, mac(0, 1), 60 + n as usize, n));
        net.send(1, &frame(mac(0, 1), mac(1, 1), 1600, n));
        net.run(ms(2));
    }
    net.run(ms(100));
    assert_eq!((net.frames[0].len(), net.frames[1].len()), (200, 200));
    net.frames.iter_mut().for_each(Vec::clear);
    net
}

#[test]
fn captured_datagrams_sent_again_are_counted_and_none_delivered() {
    let mut net = conversation();
    let captured = net.capture.clone();
    let before = [0, 1].map(|n| net.nodes[n].counters().replayed);
    for wire in &captured {
        net.inject(node_of(wire.to).unwrap(), wire.from, &wire.bytes);
    }
    for n in [0, 1] {
        let sent_to = captured.iter().filter(|w| w.to == addr(n)).count() as u64;
        assert!(sent_to > 200);
        assert_eq!(net.nodes[n].counters().replayed - before[n], sent_to);
        assert!(net.frames[n].is_empty());
        assert!(net.dropped(n).is_empty(), "{:?}", net.dropped(n));
    }
}

#[test]
fn a_datagram_with_any_bit_flipped_is_not_delivered() {
    let mut net = conversation();
    let captured = net.capture.clone();
    let mut tried = 0;
    for (i, wire) in captured.iter().enumerate() {
        let bits = wire.bytes.len() * 8;
        for bit in (i % 61..bits).step_by(61) {
            let mut bytes = wire.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            net.inject(node_of(wire.to).unwrap(), wire.from, &bytes);
            tried += 1;
        }
    }
    assert!(tried > 10_000);
    assert!(net.frames[0].is_empty() && net.frames[1].is_empty());
    // The link is as before.
    net.run(ms(3000));
    assert!(!net.has_event(0, |e| matches!(e, DataEvent::PathDown { .. })));
    net.send(1, &frame(mac(0, 1), mac(1, 1), 100, 1));
    net.run(ms(20));
    assert_eq!(net.frames[0].len(), 1);
}

#[test]
fn of_100_000_random_datagrams_none_is_delivered_and_each_is_counted() {
    let mut net = conversation();
    let mut noise = Noise(42);
    let before = *net.nodes[0].counters();
    let quic = net.quic[0].len();
    for n in 0..100_000u64 {
        let length = (noise.next() % 200) as usize;
        let mut bytes = noise.bytes(length);
        // Three of four get a head start: a type that is known, zeros where zeros must be.
        if let (1..=3, Some(head)) = (n % 4, bytes.first_chunk_mut::<4>()) {
            *head = [1 + (n % 2) as u8, head[1] * u8::from(n % 2 == 1), 0, 0];
        }
        net.inject(0, addr((noise.next() % 3) as usize), &bytes);
    }
    let after = net.nodes[0].counters();
    assert!(net.frames[0].is_empty());
    assert_eq!(after.frames_out, before.frames_out);
    let dropped: u64 = after.drops().map(|d| d.1).sum::<u64>() - before.drops().map(|d| d.1).sum::<u64>();
    assert_eq!(dropped + (net.quic[0].len() - quic) as u64, 100_000);
    for reason in ["malformed", "unknown_session", "relay_unknown_peer", "relay_from_stranger"] {
        assert!(net.dropped(0)[reason] > 100, "{reason}: {:?}", net.dropped(0));
    }
}

#[test]
fn a_network_with_a_secret_takes_no_plain_session() {
    let mut net = Net::new(2);
    net.link(&[(0, 1)]);
    net.session_with(0, 1, Suite::Plain);
    net.send(0, &frame(EVERYBODY, mac(0, 1), 100, 1));
    net.run(ms(500));
    assert!(net.capture.is_empty());
    for n in [0, 1] {
        assert_eq!((net.nodes[n].counters().unsealed, net.dropped(n)["policy"]), (1, 1));
    }
}

#[test]
fn what_a_plain_network_sends_is_not_accepted_where_there_is_a_secret() {
    let mut plain = Net::with(2, false, 1472);
    plain.ready(&[(0, 1)]);
    plain.send(0, &frame(EVERYBODY, mac(0, 1), 100, 1));
    plain.run(ms(20));
    assert_eq!(plain.frames[1].len(), 1);
    // The same indices, the same addresses.
    let mut net = Net::new(2);
    net.ready(&[(0, 1)]);
    for wire in plain.capture {
        net.inject(node_of(wire.to).unwrap(), wire.from, &wire.bytes);
    }
    assert!(net.frames[0].is_empty() && net.frames[1].is_empty());
    assert!(net.dropped(1)["bad_seal"] > 0);
}

#[test]
fn a_key_index_that_another_peer_has_is_not_taken_over() {
    let mut net = Net::new(3);
    net.ready(&[(0, 1), (0, 2)]);
    let [mut keys, _] = net.keys(0, 2, Suite::Aes256Gcm);
    keys.local_index = 102;
    net.command(0, Command::Install(Box::new(keys)));
    net.send(1, &frame(EVERYBODY, mac(1, 1), 100, 1));
    net.run(ms(20));
    assert_eq!(net.frames[0].len(), 1);
}

#[test]
fn timers_and_events_stay_bounded_under_a_stream_of_nonsense() {
    let mut net = Net::new(4);
    net.ready(&[(0, 1), (1, 2), (2, 3), (3, 0)]);
    let mut noise = Noise(7);
    for round in 0..200u64 {
        let links: Vec<_> = [(0, 1), (1, 2), (2, 3), (3, 0)].into_iter().filter(|_| noise.next() & 3 > 0).collect();
        match noise.next() % 5 {
            0 => net.link(&links),
            1 => net.session((round % 4) as usize, ((round + 1) % 4) as usize),
            2 => net.command((round % 4) as usize, Command::Remove(id((noise.next() % 6) as usize))),
            3 => net.restart((round % 4) as usize, &links),
            _ => {
                let (from, size) = ((round % 4) as usize, (noise.next() % 5000) as usize);
                net.send(from, &frame(EVERYBODY, mac(from, 1), size, round));
            }
        }
        net.run(ms(noise.next() % 700));
    }
    net.ready(&[(0, 1), (1, 2), (2, 3), (3, 0)]);
    net.run(ms(3000));
    net.frames.iter_mut().for_each(Vec::clear);
    let last = frame(EVERYBODY, mac(0, 1), 500, 1);
    net.send(0, &last);
    net.run(ms(50));
    for n in 1..4 {
        assert_eq!(net.frames[n], std::slice::from_ref(&last));
    }
}

#[test]
fn a_peer_cannot_move_to_the_address_of_another() {
    let mut net = Net::new(3);
    net.ready(&[(0, 1), (1, 2)]);
    net.source[0] = addr(2);
    net.send(0, &frame(EVERYBODY, mac(0, 1), 100, 1));
    net.run(ms(20));
    assert!(!net.has_event(1, |e| matches!(e, DataEvent::Moved { .. })));
    let paths: Vec<_> = net.nodes[1].paths(net.now).map(|p| (p.peer, p.endpoint)).collect();
    assert_eq!(paths, [(id(0), Some(addr(0))), (id(2), Some(addr(2)))]);
}
