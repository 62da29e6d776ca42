//! How a network is founded, and what becomes of a peer that comes back to it with other ranges or without its disk.

mod sim;

use std::time::Duration;

use ipam::allocator::{Allocator, Birth, Config, StateError};
use ipam::{AllocError, Output};
use ipnet::IpNet;
use sim::{Peer, World, fine, net, seconds};

#[test]
fn founders_that_were_named_found_the_same_network_without_a_word_and_others_join_them() {
    let mut world = World::new(9, &[3, 3, 3, 3], &["10.32.0.0/12"]);
    world.seeds = Some(vec![Peer(1), Peer(2), Peer(3)]);
    let everyone_apart = (0..4).collect();
    world.start_all();
    world.partition(everyone_apart);
    world.run_for(seconds(3));
    let ids: Vec<Option<String>> = (0..4).map(|node| world.up(node).network()).collect();
    assert!(ids[0].is_some() && ids[0] == ids[1] && ids[1] == ids[2], "{ids:?}");
    assert!(ids[3].is_none() && world.up(3).readiness().is_err_and(|why| why.contains("others found")));
    world.heal();
    world.run_for(seconds(10));
    for node in 0..4 {
        let request = world.allocate(node, "first", net("10.32.0.0/12"));
        world.answer(request).expect("there is room");
    }
    assert_eq!(world.networks().len(), 1);
    world.check_blocks();
    fine(&world);
}

#[test]
fn an_observer_founds_nothing_and_is_not_counted() {
    let mut world = World::new(10, &[1, 1], &["10.32.0.0/12"]);
    world.nodes[1].observer = true;
    world.start_all();
    world.run_for(seconds(60));
    assert_eq!(world.networks().into_iter().collect::<Vec<_>>(), [None]);
    let mut world = World::new(11, &[2, 2, 2], &["10.32.0.0/12"]);
    world.nodes[2].observer = true;
    world.start_all();
    world.run_for(seconds(20));
    assert_eq!(world.networks().len(), 1);
    let shares: Vec<Peer> = world.up(0).summary().peers.iter().map(|&(peer, _)| peer).collect();
    assert!(shares.contains(&Peer(1)) && shares.contains(&Peer(2)), "{shares:?}");
    let request = world.allocate(2, "first", net("10.32.0.0/12"));
    world.answer(request).expect("it joined");
    fine(&world);
}

fn begin(state: &sim::Disk, config: Config<Peer>) -> Result<Allocator<Peer>, StateError> {
    Allocator::new(config, state.clone().into_iter().collect(), [5; 32], Duration::ZERO)
}

#[test]
fn other_ranges_are_refused_by_the_address_that_they_would_strand_and_taken_with_those_that_they_have() {
    let mut world = World::new(12, &[0], &["10.32.0.0/12"]);
    world.start(0);
    let request = world.allocate(0, "web", net("10.32.0.0/12"));
    let address = world.answer(request).expect("there is room").addr();
    let part = world.allocate(0, "part", net("10.40.1.0/24"));
    let part = world.answer(part).expect("there is room");
    let with = |range| Config::new(Peer(1), 2, vec![net(range)], 0);
    let refused = begin(&world.nodes[0].disk, with("10.40.0.0/16")).expect_err("it would strand one").to_string();
    assert!(refused.contains(&format!("{address} of web")) && refused.contains("10.32.0.0/12"), "{refused}");
    assert!(!refused.contains("of part"), "{refused}");
    // A wider range, and a narrower one that has all that is in use, and again after a restart.
    for range in ["10.0.0.0/8", "10.32.0.0/12"] {
        let mut disk = world.nodes[0].disk.clone();
        for starts in 0..2 {
            let mut allocator = begin(&disk, with(range)).expect("nothing is stranded");
            write(&mut allocator, &mut disk, Duration::ZERO);
            allocator.survey(&[("web".to_owned(), address), ("part".to_owned(), part.addr())], Duration::ZERO);
            write(&mut allocator, &mut disk, Duration::ZERO);
            // The second start has its blocks settled first.
            assert!(starts > 0 || allocator.readiness().is_ok(), "{:?}", allocator.readiness());
            let whole = net(range).prefix_len();
            assert_eq!(allocator.lookup("web"), [IpNet::new(address, whole).expect("a prefix")]);
            assert_eq!(allocator.lookup("part"), [part]);
        }
        let mut allocator = begin(&disk, with(range)).expect("its own disk");
        write(&mut allocator, &mut disk, Duration::ZERO);
        allocator.free("web", None, Duration::ZERO);
        allocator.free("part", None, Duration::ZERO);
        write(&mut allocator, &mut disk, Duration::ZERO);
        // With nothing in use, any range will do.
        let mut allocator = begin(&disk, with("172.16.0.0/16")).expect("nobody has one");
        write(&mut allocator, &mut disk, Duration::ZERO);
        assert_eq!(allocator.readiness(), Ok(()));
        assert_eq!(allocator.summary().owned, (1 << 16) - 2);
    }
}

#[test]
fn peers_that_change_their_ranges_one_by_one_keep_what_they_gave_and_give_nothing_twice() {
    let mut world = World::new(13, &[2, 2, 2], &["10.32.0.0/12"]);
    world.start_all();
    world.run_for(seconds(6));
    let given: Vec<_> = (0..3).map(|node| world.allocate(node, "web", net("10.32.0.0/12"))).collect();
    let given: Vec<_> = given.into_iter().map(|request| world.answer(request).expect("room").addr()).collect();
    world.ranges = vec![net("10.0.0.0/8")];
    for node in 0..3 {
        world.crash(node, seconds(1));
        world.run_for(seconds(10));
    }
    world.run_for(seconds(30));
    assert!(world.is_one_network(), "{:?}", world.networks());
    for (node, address) in given.into_iter().enumerate() {
        assert_eq!(world.up(node).lookup("web").first().map(IpNet::addr), Some(address));
        let more = world.allocate(node, "more", net("10.0.0.0/8"));
        world.answer(more).expect("room");
        let other = world.claim((node + 1) % 3, "robber", address);
        world.answer(other).expect_err("it is in use");
    }
    fine(&world);
}

/// Performs the writes of an allocator.
fn write(allocator: &mut Allocator<Peer>, disk: &mut sim::Disk, now: Duration) {
    while let Some(output) = allocator.poll_output() {
        if let Output::Store { ticket, changes } = output {
            for change in changes {
                match change.value {
                    Some(value) => disk.insert(change.key, value),
                    None => disk.remove(&change.key),
                };
            }
            allocator.handle_stored(ticket, Ok(()), now);
        }
    }
}

#[test]
fn a_peer_whose_state_is_lost_looks_around_before_it_founds_alone() {
    let config = || Config::new(Peer(1), 2, vec![net("10.0.0.0/24")], 0);
    let seed = Birth::Seeds(vec![Peer(1)]);
    let forgot = Config { forgot: vec![b"old".to_vec()], ..config() };
    let whole = Config { lost: true, ..config() };
    let mut disk = sim::Disk::from([(b"old".to_vec(), b"unreadable".to_vec())]);
    // What could not be read is gone with the first write, and that it was so is not.
    let mut allocator = begin(&sim::Disk::new(), forgot.clone()).expect("no state");
    write(&mut allocator, &mut disk, Duration::ZERO);
    assert!(!disk.contains_key(&b"old"[..]) && !disk.is_empty());
    let seeded = Config { birth: seed.clone(), ..forgot };
    for (disk, config) in [(&disk, config()), (&sim::Disk::new(), whole), (&sim::Disk::new(), seeded)] {
        let mut disk = disk.clone();
        let mut allocator = begin(&disk, config.clone()).expect("readable");
        write(&mut allocator, &mut disk, Duration::ZERO);
        assert!(allocator.readiness().is_err_and(|why| why.contains("lost")));
        allocator.handle_timeout(seconds(29));
        assert_eq!(allocator.network(), None);
        // Somebody is there: it goes on looking.
        allocator.handle_peers(&[(Peer(2), 1)], seconds(29));
        allocator.handle_timeout(seconds(40));
        assert_eq!(allocator.network(), None);
        allocator.handle_peers(&[], seconds(41));
        allocator.handle_timeout(seconds(80));
        write(&mut allocator, &mut disk, seconds(80));
        let network = allocator.network();
        assert!(network.is_some());
        let again = Config { forgot: Vec::new(), lost: false, ..config };
        assert_eq!(begin(&disk, again).expect("its own state").network(), network);
    }
    // Who has met others before waits for one of them, whatever time that takes.
    let remembered = Config { forgot: vec![b"old".to_vec()], remembered: 3, ..config() };
    for birth in [Birth::ByItself, seed] {
        let config = Config { birth, ..remembered.clone() };
        let mut allocator = begin(&sim::Disk::new(), config).expect("no state");
        for time in 1..100 {
            allocator.handle_timeout(seconds(time * 60));
        }
        assert_eq!(allocator.network(), None);
        assert!(allocator.readiness().is_err_and(|why| why.contains("3 peers")));
    }
}

#[test]
fn a_sole_voter_that_starts_again_gives_nothing_new_before_the_other_is_heard_of_or_removed() {
    let range = net("10.32.0.0/12");
    for removed in [false, true] {
        let mut world = World::new(7, &[0, 1], &["10.32.0.0/12"]);
        world.start_all();
        world.run_for(seconds(15));
        let request = world.allocate(0, "first", range);
        let first = world.answer(request).expect("there is room");
        world.partition(vec![0, 1]);
        world.crash(0, seconds(1));
        // By its disk it settles alone; had there been three voters since it was copied, it would not.
        world.run_for(seconds(60));
        let request = world.allocate(0, "first", range);
        assert_eq!(world.answer(request).expect("given before"), first);
        let request = world.allocate(0, "second", range);
        let refused = world.answer(request).expect_err("an old copy, perhaps").to_string();
        assert!(refused.contains("old copy") && refused.contains("02020202"), "{refused}");
        if removed {
            world.remove(0, 1);
        } else {
            world.partition(vec![0, 0]);
        }
        world.run_for(seconds(3));
        let request = world.allocate(0, "second", range);
        world.answer(request).expect("sure of its disk");
        fine(&world);
    }
}

#[test]
fn a_sole_seed_that_lost_its_disk_listens_to_whom_it_meets() {
    let range = net("10.0.0.0/24");
    let mut world = World::new(7, &[2, 2, 2], &["10.0.0.0/24"]);
    world.seeds = Some(vec![Peer(1)]);
    // The answers of those that it meets take a while.
    world.faults.delay = 1000;
    world.start_all();
    world.run_for(seconds(40));
    let request = world.allocate(1, "first", range);
    world.answer(request).expect("there is room");
    world.run_for(seconds(10));
    assert!(world.up(1).panel().is_some_and(|(version, voters)| version > 1 && voters.len() == 3));
    world.partition(vec![0, 1, 1]);
    world.wipe(0, seconds(1));
    world.run_for(seconds(60));
    world.partition(vec![0, 0, 0]);
    for _ in 0..300 {
        world.run_for(Duration::from_millis(100));
        world.check_blocks();
    }
    let request = world.allocate(0, "second", range);
    world.answer(request).expect("it has learned of the others");
    fine(&world);
}

#[test]
fn a_sole_voter_that_lost_its_disk_waits_for_the_word_of_most_owners() {
    let range = net("10.32.0.0/12");
    let mut world = World::new(7, &[0, 1, 1, 1], &["10.32.0.0/12"]);
    world.start_all();
    // All own something, and the last one hears no more when the first hands over to three.
    let owners = |world: &mut World| world.up(3).summary().peers.len();
    while owners(&mut world) < 4 {
        world.run_for(Duration::from_millis(10));
        assert_eq!(world.up(0).panel().map(|(version, _)| version), Some(1), "too late");
    }
    world.partition(vec![0, 0, 0, 1]);
    world.run_for(seconds(15));
    assert!(world.up(1).panel().is_some_and(|(version, voters)| version > 1 && voters.len() == 3));
    world.wipe(0, seconds(1));
    world.partition(vec![0, 1, 1, 0]);
    world.run_for(seconds(60));
    let request = world.allocate(0, "alone", range);
    let refused = world.answer(request).expect_err("three others settle").to_string();
    assert!(refused.contains("newer voters") && refused.contains("02020202"), "{refused}");
    world.heal();
    world.run_for(seconds(10));
    let request = world.allocate(0, "alone", range);
    world.answer(request).expect("it has learned of the others");
    world.check_blocks();
    fine(&world);
}

#[test]
fn nothing_of_an_earlier_life_is_given_before_it_is_known_what_is_in_use() {
    let range = net("10.0.0.0/24");
    let mut world = World::new(7, &[0, 1, 1], &["10.0.0.0/24"]);
    world.start_all();
    world.run_for(seconds(15));
    let first = world.allocate(1, "first", range);
    let first = world.answer(first).expect("there is room").addr();
    // It runs on, and nobody has told the router yet, which has forgotten it.
    world.late_surveys = u64::MAX;
    world.wipe(1, seconds(1));
    world.run_for(seconds(15));
    for request in [world.claim(1, "robber", first), world.allocate(1, "another", range)] {
        let refused = world.answer(request).expect_err("it may be in use").to_string();
        assert!(refused.contains("what runs on this host"), "{refused}");
    }
    let stolen = world.claim(0, "thief", first);
    world.answer(stolen).expect_err("its block may be in use");
    world.survey(1);
    world.run_for(seconds(1));
    let robbed = world.claim(1, "robber", first);
    assert!(world.answer(robbed).is_err_and(|error| matches!(error, AllocError::InUse { .. })));
    let another = world.allocate(1, "another", range);
    world.answer(another).expect("there is room");
    fine(&world);
}
