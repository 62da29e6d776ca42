//! Messages that no correct peer sends. Peers of a network are authenticated and trust each other
//! about registers, so these can move blocks; but nothing panics, nothing given is forgotten, and
//! every request is answered.

mod sim;

use std::time::Duration;

use proptest::prelude::*;
use sim::{Peer, World};

fn busy_world() -> World {
    let mut world = World::new(1, &[2, 2, 2], &["10.0.0.0/26", "fd00::/64"]);
    world.start_all();
    world.run_for(Duration::from_secs(5));
    for count in 0..30 {
        let range = world.ranges[count % 2];
        let request = world.allocate(count % 3, &format!("c{count}"), range);
        world.answer(request).expect("there is room");
    }
    // Comparisons of registers, too.
    world.faults.loss = 300;
    world.claim(0, "far", "10.0.0.60".parse().expect("an address"));
    world.partition(vec![0, 1, 0]);
    world.run_for(Duration::from_secs(5));
    world.heal();
    world.run_for(Duration::from_secs(60));
    world
}

#[test]
fn damaged_messages_neither_panic_nor_lose_what_was_given() {
    let mut world = busy_world();
    let sample = world.sample.clone();
    assert!(sample.len() > 30);
    for round in 0..20_000u64 {
        let mut bytes = sample[world.below(sample.len() as u64) as usize].to_vec();
        for _ in 0..=world.below(3) {
            let at = world.below(bytes.len() as u64) as usize;
            match world.below(4) {
                0 => bytes[at] ^= 1 << world.below(8),
                1 => bytes[at] = 0xff,
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, 0x1b),
            }
        }
        let (node, from) = (world.below(3) as usize, Peer(1 + world.below(4) as u8));
        let now = world.now;
        world.up(node).handle_message(from, 1, &bytes, now);
        world.drain(node);
        if round % 100 == 0 {
            world.run_for(Duration::from_millis(500));
        }
    }
    world.run_for(Duration::from_secs(60));
    for count in 0..30 {
        let allocator = world.up(count % 3);
        assert_eq!(allocator.lookup(&format!("c{count}")).len(), 1);
    }
    for node in 0..3 {
        let range = world.ranges[1];
        let request = world.allocate(node, "after", range);
        let _ = world.answer(request);
    }
    let now = world.now;
    world.check.overdue(now);
    assert_eq!(world.check.violations, Vec::<String>::new());
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_ignored(bytes in proptest::collection::vec(any::<u8>(), 0..200), version in any::<bool>()) {
        let mut world = World::new(1, &[0], &["10.0.0.0/24"]);
        world.start(0);
        let mut bytes = bytes;
        if version {
            bytes.insert(0, 2);
        }
        let now = world.now;
        world.up(0).handle_message(Peer(2), 1, &bytes, now);
        world.drain(0);
        world.run_for(Duration::from_secs(1));
        prop_assert_eq!(world.up(0).readiness(), Ok(()));
    }
}

#[test]
fn a_peer_of_another_version_is_named_once() {
    let mut world = World::new(1, &[0], &["10.0.0.0/24"]);
    world.start(0);
    for _ in 0..10 {
        let now = world.now;
        world.up(0).handle_message(Peer(2), 1, &[9, 0x80], now);
        world.drain(0);
    }
    let notices = &world.nodes[0].notices;
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].contains("02020202") && notices[0].contains("version 9"), "{notices:?}");
}
