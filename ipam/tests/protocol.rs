//! What the protocol promises, one promise a test, without faults unless said.

mod sim;

use std::time::Duration;

use ipam::AllocError;
use sim::{World, fine, net, seconds};

#[test]
fn a_founder_serves_after_one_write_and_without_a_message() {
    let mut world = World::new(1, &[0], &["10.32.0.0/12", "fd00::/64"]);
    world.start(0);
    let v4 = world.allocate(0, "c1", net("10.32.0.0/12"));
    assert_eq!(world.answer(v4), Ok(net("10.32.0.1/12")));
    let v6 = world.allocate(0, "c1", net("fd00::/64"));
    assert_eq!(world.answer(v6), Ok(net("fd00::1/64")));
    let again = world.allocate(0, "c1", net("10.32.0.0/12"));
    assert_eq!(world.answer(again), Ok(net("10.32.0.1/12")));
    assert!(world.nodes[0].allocator.as_ref().unwrap().readiness().is_ok());
    assert_eq!(world.nodes[0].messages_sent, 0);
    fine(&world);
}

#[test]
fn a_peer_that_names_a_founder_joins_and_gets_half() {
    let mut world = World::new(2, &[0, 1], &["10.32.0.0/12"]);
    world.start_all();
    world.run_for(seconds(3));
    let request = world.allocate(1, "c1", net("10.32.0.0/12"));
    assert_eq!(world.answer(request), Ok(net("10.40.0.0/12")));
    let summary = world.nodes[1].allocator.as_ref().unwrap().summary();
    assert_eq!(summary.owned, (1 << 19) - 1);
    assert_eq!(world.networks().len(), 1);
    world.check_blocks();
    fine(&world);
}

#[test]
fn peers_that_name_each_other_found_one_network_with_even_shares() {
    let mut world = World::new(3, &[2, 2, 2], &["10.32.0.0/12", "fd00::/64"]);
    world.start_all();
    world.run_for(seconds(6));
    for node in 0..3 {
        let allocator = world.nodes[node].allocator.as_ref().unwrap();
        assert_eq!(allocator.readiness(), Ok(()));
        let request = world.allocate(node, "c1", net("10.32.0.0/12"));
        world.answer(request).unwrap();
    }
    assert_eq!(world.networks().len(), 1);
    let owned: Vec<u64> =
        world.nodes[0].allocator.as_ref().unwrap().summary().peers.iter().map(|&(_, owned)| owned).collect();
    assert_eq!(owned.len(), 3);
    world.check_blocks();
    fine(&world);
}

#[test]
fn a_peer_alone_says_whom_it_waits_for() {
    let mut world = World::new(4, &[3], &["10.0.0.0/24"]);
    world.start(0);
    world.run_for(seconds(20));
    let waits = world.nodes[0].allocator.as_ref().unwrap().readiness().unwrap_err();
    assert!(waits.starts_with("waiting for 2 of 3 named peers"), "{waits}");
    let request = world.allocate(0, "c1", net("10.0.0.0/24"));
    let refused = world.answer(request).unwrap_err();
    assert!(matches!(refused, AllocError::TimedOut { waited_s: 10, .. }), "{refused}");
    fine(&world);
}

#[test]
fn peers_that_agree_are_silent_but_for_a_small_comparison_every_ten_seconds() {
    let mut world = World::new(5, &[2, 2, 2], &["10.32.0.0/12", "fd00::/64"]);
    world.start_all();
    world.run_for(seconds(60));
    let sent = |world: &World| -> (u64, u64) {
        let nodes = world.nodes.iter();
        nodes.fold((0, 0), |(count, bytes), node| (count + node.messages_sent, bytes + node.bytes_sent))
    };
    let before = sent(&world);
    let writes: u64 = world.nodes.iter().map(|node| node.writes).sum();
    world.run_for(seconds(600));
    let after = sent(&world);
    let (count, bytes) = (after.0 - before.0, after.1 - before.1);
    println!("{count} messages, {bytes} bytes of 3 peers in 600 s");
    assert!(count <= 3 * 60, "{count}");
    assert!(bytes <= count * 48, "{bytes}");
    assert_eq!(writes, world.nodes.iter().map(|node| node.writes).sum::<u64>());
    fine(&world);
}

fn readiness(world: &World, node: usize) -> Result<(), String> {
    let allocator = world.nodes[node].allocator.as_ref();
    allocator.map_or(Err("down".to_owned()), sim::subject::Subject::readiness)
}

fn problems(world: &World, node: usize) -> Vec<String> {
    let allocator = world.nodes[node].allocator.as_ref();
    allocator.map_or_else(Vec::new, |allocator| allocator.summary().problems)
}

/// Two networks, of two nodes each that have given addresses; 10.0.0.1 is given in both.
fn two_networks(range: &str) -> World {
    let mut world = World::new(6, &[0, 1, 0, 1], &[range]);
    world.partition(vec![0, 0, 1, 1]);
    world.start_all();
    world.run_for(seconds(3));
    for node in 0..4 {
        let request = world.allocate(node, &format!("c{node}"), net(range));
        world.answer(request).expect("there is room");
    }
    assert_eq!(world.networks().len(), 2);
    world
}

fn owners_of(world: &World, node: usize, address: &str) -> Vec<String> {
    let summary = world.nodes[node].allocator.as_ref().expect("it is up").summary();
    let here = summary.allocations.into_iter().filter(|(_, net, _)| net.addr().to_string() == address);
    here.map(|(owner, ..)| owner).collect()
}

#[test]
fn networks_that_grew_apart_become_one_in_which_everybody_keeps_what_was_given() {
    for range in ["10.0.0.0/24", "10.32.0.0/12"] {
        let mut world = two_networks(range);
        let given: Vec<_> = (0..4).map(|node| world.up(node).lookup(&format!("c{node}"))).collect();
        assert_eq!((&given[0], &given[1]), (&given[2], &given[3]), "given in both");
        let lower = world.networks().into_iter().next().unwrap();
        world.partition(vec![0; 4]);
        world.run_for(seconds(30));
        assert_eq!(world.networks().into_iter().collect::<Vec<_>>(), [lower], "the lower id remains");
        for (node, kept) in given.iter().enumerate() {
            assert_eq!(readiness(&world, node), Ok(()));
            assert_eq!(world.up(node).lookup(&format!("c{node}")), *kept);
            assert_eq!(problems(&world, node), Vec::<String>::new());
            let (first, other) = (kept[0].addr(), (node + 2) % 4);
            let contests = world.up(node).summary().contests;
            let named = |it: &ipam::allocator::Contest<_>| {
                let there = it.there.as_ref() == Some(&format!("c{other}"));
                (it.address, &it.here, there) == (first, &format!("c{node}"), true)
            };
            assert!(contests.iter().any(named), "node {node}: {contests:?}");
        }
        // Nothing that anybody has is given to a third one.
        world.check.met = true;
        for node in 0..4 {
            let request = world.allocate(node, "more", net(range));
            world.answer(request).unwrap();
            let taken = world.claim(node, "robber", given[(node + 1) % 4][0].addr());
            let refused = world.answer(taken).unwrap_err();
            assert!(matches!(refused, AllocError::InUse { .. } | AllocError::HeldElsewhere { .. }), "{refused}");
        }
        world.check_blocks();
        // One of each two goes, and all is as if there had been one network.
        for node in 0..2 {
            world.free(node, &format!("c{node}"), None);
        }
        world.run_for(seconds(80));
        for (node, kept) in given.iter().enumerate() {
            let contests = world.up(node).summary().contests;
            assert!(contests.is_empty(), "{contests:?}");
            // Blocks of one address have come to whom uses it.
            for &net in kept.iter().filter(|_| node > 1 && range == "10.0.0.0/24") {
                let owner = world.up(0).owner_of(net.addr()).map(|(peer, ..)| peer);
                assert_eq!(owner, Some(sim::Peer(node as u8 + 1)), "{net}");
            }
        }
        assert_eq!(owners_of(&world, 2, &given[2][0].addr().to_string()), ["c2"]);
        fine(&world);
    }
}

#[test]
fn who_is_away_when_networks_become_one_comes_over_later_and_keeps_what_it_gave() {
    let mut world = two_networks("10.0.0.0/24");
    let lower = world.networks().into_iter().next().unwrap();
    let loser = (0..4).find(|&node| world.up(node).network() != lower).unwrap();
    let kept = world.up(loser).lookup(&format!("c{loser}"));
    // One of the network that gives way is down meanwhile, another is cut off.
    world.crash(loser, seconds(100));
    let mut groups = vec![0; 4];
    groups[loser + 1] = 1;
    world.partition(groups);
    world.run_for(seconds(60));
    assert_eq!(world.networks().len(), 2);
    world.partition(vec![0; 4]);
    world.run_for(seconds(60));
    assert_eq!(world.networks().into_iter().collect::<Vec<_>>(), [lower]);
    assert_eq!(world.up(loser).lookup(&format!("c{loser}")), kept);
    world.check.met = true;
    for node in 0..4 {
        let request = world.allocate(node, "more", net("10.0.0.0/24"));
        world.answer(request).unwrap();
    }
    world.check_blocks();
    fine(&world);
}

#[test]
fn nobody_goes_over_to_a_network_whose_voters_do_not_know_what_is_in_use() {
    // Of the two that have the lower id, one is the voter: which, is seen by what happens while it is cut off.
    let held_back = |winner: usize| {
        let mut world = two_networks("10.0.0.0/24");
        let lower = world.networks().into_iter().next().unwrap();
        let of_lower: Vec<usize> = (0..4).filter(|&node| world.up(node).network() == lower).collect();
        let loser = (0..4).find(|node| !of_lower.contains(node)).unwrap();
        let mut groups = vec![0; 4];
        groups[of_lower[winner]] = 1;
        world.partition(groups);
        world.run_for(seconds(20));
        let stays = world.up(loser).network() != lower;
        if stays {
            // In the network that it has met, the next address may be given to somebody already.
            let request = world.allocate(loser, "more", net("10.0.0.0/24"));
            let error = world.answer(request).unwrap_err();
            let waiting =
                |text: &str| text.starts_with("word from a majority of the voters") && text.ends_with("goes over");
            assert!(matches!(&error, AllocError::TimedOut { waiting_for, .. } if waiting(waiting_for)), "{error}");
        }
        world.partition(vec![0; 4]);
        world.run_for(seconds(30));
        assert_eq!(world.networks().into_iter().collect::<Vec<_>>(), [lower]);
        stays
    };
    assert_eq!([held_back(0), held_back(1)].iter().filter(|held| **held).count(), 1);
}

#[test]
fn three_networks_that_meet_at_once_become_one_and_what_is_freed_is_free_for_all() {
    let mut world = World::new(3, &[0; 3], &["10.0.0.0/28"]);
    world.groups = vec![0, 1, 2];
    world.start_all();
    for node in 0..3 {
        for count in 0..5 {
            let request = world.allocate(node, &format!("c{count}"), net("10.0.0.0/28"));
            world.answer(request).unwrap();
        }
    }
    world.partition(vec![0; 3]);
    world.run_for(seconds(30));
    assert_eq!(world.networks().len(), 1);
    world.check.met = true;
    for node in 0..3 {
        for count in 0..5 {
            world.free(node, &format!("c{count}"), None);
        }
    }
    world.run_for(seconds(60));
    for count in 0..14 {
        let request = world.allocate(count % 3, &format!("d{count}"), net("10.0.0.0/28"));
        world.answer(request).unwrap();
    }
    world.check_blocks();
    fine(&world);
}

#[test]
fn a_network_of_which_nobody_has_anything_gives_way() {
    for first in 0..2 {
        let mut world = World::new(7, &[0, 0], &["10.0.0.0/24"]);
        world.groups = vec![0, 1];
        world.start_all();
        let request = world.allocate(first, "c1", net("10.0.0.0/24"));
        assert_eq!(world.answer(request), Ok(net("10.0.0.1/24")));
        world.partition(vec![0, 0]);
        world.run_for(seconds(5));
        assert_eq!(world.networks().len(), 1);
        let request = world.allocate(1 - first, "c2", net("10.0.0.0/24"));
        world.answer(request).unwrap();
        assert_eq!(problems(&world, 0).len() + problems(&world, 1).len(), 0);
        fine(&world);
    }
}

#[test]
fn peers_with_other_ranges_do_not_join_and_say_why() {
    let mut world = World::new(8, &[0, 1], &["10.0.0.0/24"]);
    world.start(0);
    world.ranges = vec![net("10.9.0.0/24")];
    world.start(1);
    world.run_for(seconds(5));
    let waits = readiness(&world, 1).unwrap_err();
    assert!(waits.contains("10.0.0.0/24") && waits.contains("10.9.0.0/24"), "{waits}");
    fine(&world);
}

#[test]
fn a_claim_is_served_by_whoever_asks_if_the_block_is_free_and_refused_with_the_reason_if_not() {
    let mut world = World::new(9, &[0, 1], &["10.0.0.0/24", "10.64.0.0/16"]);
    world.start_all();
    world.run_for(seconds(3));
    let far = world.claim(1, "c1", "10.0.0.7".parse().unwrap());
    assert_eq!(world.answer(far), Ok(net("10.0.0.7/24")));
    let taken = world.claim(0, "c2", "10.0.0.7".parse().unwrap());
    let refused = world.answer(taken).unwrap_err();
    assert!(refused.to_string().contains("in use by c1"), "{refused}");
    let own = world.claim(1, "c1", "10.0.0.7".parse().unwrap());
    assert_eq!(world.answer(own), Ok(net("10.0.0.7/24")));
    let near = world.allocate(0, "c3", net("10.64.0.0/16"));
    assert_eq!(world.answer(near), Ok(net("10.64.0.1/16")));
    let neighbour = world.claim(1, "c4", "10.64.0.2".parse().unwrap());
    let refused = world.answer(neighbour).unwrap_err();
    assert!(matches!(refused, AllocError::HeldElsewhere { .. }), "{refused}");
    for (address, text) in [("10.0.0.255", "reserved"), ("10.1.0.1", "in no range")] {
        let wrong = world.claim(0, "c5", address.parse().unwrap());
        let refused = world.answer(wrong).unwrap_err();
        assert!(refused.to_string().contains(text), "{refused}");
    }
    fine(&world);
}

#[test]
fn all_addresses_of_a_range_can_be_given_and_then_it_is_exhausted_at_once() {
    let mut world = World::new(10, &[2, 2, 2], &["10.0.0.0/26"]);
    world.start_all();
    world.run_for(seconds(5));
    for count in 0..62 {
        let request = world.allocate(count % 3, &format!("c{count}"), net("10.0.0.0/26"));
        world.answer(request).unwrap();
    }
    let before = world.now;
    let request = world.allocate(0, "one more", net("10.0.0.0/26"));
    let refused = world.answer(request).unwrap_err();
    assert!(matches!(refused, AllocError::Exhausted { .. }), "{refused}");
    assert!(world.now < before + seconds(1));
    world.free(1, "c4", None);
    world.run_for(seconds(31));
    let request = world.allocate(0, "one more", net("10.0.0.0/26"));
    world.answer(request).unwrap();
    fine(&world);
}

#[test]
fn space_of_a_peer_that_is_away_is_named_when_it_is_missed() {
    let mut world = World::new(11, &[0, 1], &["10.0.0.0/29"]);
    world.start_all();
    world.run_for(seconds(3));
    world.partition(vec![0, 1]);
    world.run_for(seconds(1));
    let mut last = None;
    for count in 0..5 {
        let request = world.allocate(1, &format!("c{count}"), net("10.0.0.0/29"));
        last = Some(world.answer(request));
    }
    let refused = last.unwrap().unwrap_err();
    assert!(refused.to_string().contains("cannot be reached: 01010101"), "{refused}");
    fine(&world);
}

#[test]
fn nothing_is_answered_while_the_disk_fails_and_all_goes_on_after() {
    let mut world = World::new(12, &[0], &["10.0.0.0/24"]);
    world.start(0);
    world.run_for(seconds(1));
    world.faults.write_error = 1000;
    let request = world.allocate(0, "c1", net("10.0.0.0/24"));
    let refused = world.answer(request).unwrap_err();
    assert!(matches!(refused, AllocError::Storage(_)), "{refused}");
    assert!(readiness(&world, 0).unwrap_err().contains("no space left"));
    assert_eq!(world.nodes[0].allocator.as_ref().unwrap().lookup("c1"), []);
    world.run_for(seconds(60));
    assert!(world.nodes[0].writes < 20, "writes are tried again with pauses");
    world.faults.write_error = 0;
    world.run_for(seconds(11));
    assert_eq!(readiness(&world, 0), Ok(()));
    let request = world.allocate(0, "c1", net("10.0.0.0/24"));
    world.answer(request).unwrap();
    fine(&world);
}

#[test]
fn an_address_of_an_own_block_costs_one_write_and_no_message() {
    let mut world = World::new(16, &[0, 1], &["10.0.0.0/16"]);
    world.start_all();
    world.run_for(seconds(10));
    for node in 0..2 {
        for count in 0..10 {
            let before = (world.nodes[node].writes, world.nodes[node].messages_sent);
            let asked = world.now;
            let request = world.allocate(node, &format!("c{count}"), net("10.0.0.0/16"));
            world.answer(request).unwrap();
            assert_eq!(world.nodes[node].writes, before.0 + 1);
            // A comparison may have come between.
            assert!(world.nodes[node].messages_sent <= before.1 + 1 && world.now < asked + Duration::from_millis(10));
        }
    }
    fine(&world);
}

#[test]
fn a_share_is_refilled_before_it_is_empty() {
    let mut world = World::new(17, &[0, 1], &["10.0.0.0/24"]);
    world.start_all();
    world.run_for(seconds(3));
    let first = world.up(1).summary().owned;
    assert!(first < 130, "{first}");
    let mut given = 0;
    while given < first / 2 + 1 {
        let request = world.allocate(1, &format!("c{given}"), net("10.0.0.0/24"));
        world.answer(request).unwrap();
        given += 1;
    }
    world.run_for(seconds(3));
    let more = world.up(1).summary().owned;
    assert!(more > first + 20, "{first}, {more}");
    // What it has got ahead of need serves it while it reaches nobody.
    world.partition(vec![0, 1]);
    world.run_for(seconds(1));
    while given < more {
        let asked = world.now;
        let request = world.allocate(1, &format!("c{given}"), net("10.0.0.0/24"));
        world.answer(request).unwrap();
        assert!(world.now < asked + seconds(1), "at {given}");
        given += 1;
    }
    fine(&world);
}

#[test]
fn requests_that_arrive_during_a_write_share_the_next_one() {
    let mut world = World::new(13, &[0], &["10.0.0.0/16"]);
    world.start(0);
    world.run_for(seconds(1));
    let before = world.nodes[0].writes;
    let asked: Vec<_> = (0..100).map(|count| world.allocate(0, &format!("c{count}"), net("10.0.0.0/16"))).collect();
    for request in asked {
        world.answer(request).unwrap();
    }
    assert_eq!(world.nodes[0].writes - before, 2);
    fine(&world);
}

#[test]
fn a_damaged_entry_is_named_and_other_ranges_are_refused() {
    use ipam::allocator::{Allocator, Config, StateError};
    let mut world = World::new(14, &[0], &["10.0.0.0/24"]);
    world.start(0);
    let request = world.allocate(0, "c1", net("10.0.0.0/24"));
    world.answer(request).unwrap();
    let config = |range: &str| Config::new(world.nodes[0].peer, 2, vec![net(range)], 0);
    for key in world.nodes[0].disk.keys() {
        let mut disk = world.nodes[0].disk.clone();
        disk.get_mut(key).unwrap()[3] ^= 4;
        let disk = disk.into_iter().collect();
        let error = Allocator::new(config("10.0.0.0/24"), disk, [0; 32], world.now).unwrap_err();
        let named = key.escape_ascii().to_string();
        assert!(matches!(&error, StateError::Corrupt { key, .. } if *key == named), "{error}");
    }
    let disk = world.nodes[0].disk.clone().into_iter().collect();
    let error = Allocator::new(config("10.0.1.0/24"), disk, [0; 32], world.now).unwrap_err();
    assert!(matches!(&error, StateError::Ranges(text) if text.contains("10.0.1.0/24")), "{error}");
}

#[test]
fn many_that_were_started_apart_find_together_when_they_are_connected() {
    for seed in 0..50 {
        let mut world = World::new(seed, &[0; 7], &["10.32.0.0/12"]);
        world.groups = (0..7).collect();
        world.start_all();
        world.run_for(seconds(10));
        world.partition(vec![0; 7]);
        world.run_for(seconds(10));
        assert!(world.is_one_network(), "seed {seed}: {:?}", world.networks());
        for node in 0..7 {
            let request = world.allocate(node, "c1", net("10.32.0.0/12"));
            world.answer(request).unwrap();
        }
        fine(&world);
    }
}

#[test]
fn a_peer_whose_incarnation_is_raised_keeps_its_blocks_and_gets_more() {
    let mut world = World::new(15, &[0, 1], &["10.0.0.0/28"]);
    world.start_all();
    world.run_for(seconds(3));
    let mut given = Vec::new();
    for life in 2..8 {
        let request = world.allocate(1, &format!("c{life}"), net("10.0.0.0/28"));
        world.raise(1);
        given.push(world.answer(request).unwrap());
    }
    given.dedup();
    assert_eq!(given.len(), 6);
    assert_eq!(readiness(&world, 1), Ok(()));
    world.check_blocks();
    fine(&world);
}
