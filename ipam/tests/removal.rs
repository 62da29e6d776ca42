//! Who is removed from a network, by whom, and what becomes of the addresses.

mod sim;

use std::net::IpAddr;
use std::time::Duration;

use ipam::AllocError;
use ipam::allocator::RemoveError;
use sim::{Peer, World, fine, net, seconds};

/// Three peers that have an address each.
fn three(dead_after: Option<Duration>) -> (World, [IpAddr; 3]) {
    let mut world = World::new(7, &[0, 1, 1], &["10.32.0.0/12"]);
    world.dead_after = dead_after;
    world.start_all();
    world.run_for(seconds(15));
    let addresses = [0, 1, 2].map(|node| {
        let request = world.allocate(node, "first", net("10.32.0.0/12"));
        world.answer(request).expect("there is room").addr()
    });
    world.run_for(seconds(15));
    (world, addresses)
}

fn cut_off_the_third(world: &mut World) {
    world.partition(vec![0, 0, 1]);
    world.run_for(seconds(1));
}

#[test]
fn a_peer_that_is_silent_for_long_is_removed_and_has_stopped_to_give_long_before() {
    let (mut world, addresses) = three(Some(seconds(60)));
    cut_off_the_third(&mut world);
    let away = world.up(0).summary().away;
    assert!(away.len() == 1 && away[0].peer == Peer(3) && !away[0].removed, "{away:?}");
    let left = away[0].removal.expect("it will be");
    assert!((seconds(50)..=seconds(60)).contains(&left), "{left:?}");
    // Its lease is good for half of the time.
    world.run_for(seconds(15));
    let request = world.allocate(2, "second", net("10.32.0.0/12"));
    world.answer(request).expect("it has room, and a lease");
    world.run_for(seconds(25));
    let request = world.allocate(2, "third", net("10.32.0.0/12"));
    let refused = world.answer(request).expect_err("without a lease");
    assert!(matches!(&refused, AllocError::TimedOut { waiting_for, .. } if waiting_for.contains("dead")), "{refused}");
    assert!(world.up(2).readiness().is_err_and(|why| why.contains("majority")));
    // What it gave before it has still.
    let request = world.allocate(2, "first", net("10.32.0.0/12"));
    assert_eq!(world.answer(request).expect("given before").addr(), addresses[2]);
    world.run_for(seconds(40));
    let request = world.claim(0, "heir", addresses[2]);
    assert_eq!(world.answer(request).expect("nobody's now").addr(), addresses[2]);
    // It comes back, is told, and is a member like any other.
    world.heal();
    world.run_for(seconds(20));
    assert!(world.nodes[2].notices.iter().any(|text| text.contains("removed while it was alive")));
    let request = world.allocate(2, "fourth", net("10.32.0.0/12"));
    world.answer(request).expect("a member again");
    world.check_blocks();
    fine(&world);
}

#[test]
fn who_is_heard_of_is_not_removed_and_neither_is_anybody_by_a_minority_or_a_clock_that_leaps() {
    let (mut world, _) = three(Some(seconds(20)));
    cut_off_the_third(&mut world);
    // The third is alone: it removes nobody.
    world.run_for(seconds(10));
    world.partition(vec![0, 0, 0]);
    world.run_for(seconds(5));
    for node in 0..3 {
        world.jump(node, seconds(100_000));
        world.run_for(seconds(1));
    }
    world.run_for(seconds(60));
    cut_off_the_third(&mut world);
    world.jump(0, seconds(100_000));
    world.jump(1, seconds(100_000));
    world.run_for(seconds(10));
    for node in 0..3 {
        assert_eq!(world.up(node).removed().count(), 0);
    }
    fine(&world);
}

#[test]
fn a_voter_that_was_cut_off_for_long_ends_no_life_but_its_own() {
    let (mut world, _) = three(Some(seconds(20)));
    let lives = |world: &mut World| [0, 1, 2].map(|node| world.up(node).life());
    let before = lives(&mut world);
    cut_off_the_third(&mut world);
    world.run_for(seconds(60));
    assert_eq!(world.up(0).removed().count(), 1, "the others are two of three");
    world.heal();
    let mut granted = 0;
    for number in 0..60 {
        world.run_for(seconds(1));
        let request = world.allocate(number % 2, &format!("more{number}"), net("10.32.0.0/12"));
        granted += usize::from(world.answer(request).is_ok());
    }
    assert_eq!(granted, 60, "nothing is withdrawn from those that were well");
    assert!(world.up(0).panel().is_some_and(|(_, voters)| voters.len() == 3), "it votes again");
    let after = lives(&mut world);
    assert_eq!(before[..2], after[..2]);
    assert_ne!(before[2], after[2]);
    world.check_blocks();
    fine(&world);
}

#[test]
fn a_host_that_slept_for_long_gives_nothing_new_when_it_wakes_neither_what_was_under_way() {
    let (mut world, _) = three(Some(seconds(20)));
    let range = net("10.32.0.0/12");
    let late = world.allocate(2, "late", range).expect("it is up");
    world.sleep(2, seconds(60));
    let given = world.up(2).lookup("late")[0].addr();
    world.run_for(seconds(50));
    let request = world.claim(0, "heir", given);
    world.answer(request).expect("nobody's now");
    world.run_for(seconds(20));
    let refused = world.replies[&late].clone().expect_err("what was written is another's by now");
    assert!(matches!(&refused, AllocError::TimedOut { waiting_for, .. } if waiting_for.contains("dead")), "{refused}");
    let request = world.allocate(2, "late", range);
    assert_ne!(world.answer(request).expect("a member again").addr(), given);
    world.check_blocks();
    fine(&world);
}

#[test]
fn peers_that_go_by_different_times_give_by_the_shortest_remove_by_the_longest_and_say_so() {
    for other in [Some(seconds(600)), None] {
        let mut world = World::new(7, &[0, 1, 1], &["10.32.0.0/12"]);
        let range = net("10.32.0.0/12");
        world.dead_after = Some(seconds(20));
        world.nodes[2].dead_after = Some(other);
        world.start_all();
        world.run_for(seconds(30));
        let request = world.allocate(2, "first", range);
        let address = world.answer(request).expect("there is room").addr();
        for node in 0..3 {
            let problems = world.up(node).summary().problems;
            assert!(problems.iter().any(|text| text.contains("dead-after")), "{node}: {problems:?}");
        }
        cut_off_the_third(&mut world);
        world.run_for(seconds(60));
        let request = world.allocate(2, "second", range);
        world.answer(request).expect_err("others could take it for dead by now");
        assert_eq!(world.up(0).removed().count(), 0, "it could still give, for all that they know");
        world.run_for(seconds(600));
        let request = world.claim(0, "heir", address);
        assert_eq!(world.answer(request).is_ok(), other.is_some());
        // Once it goes by the same, all is well.
        world.nodes[2].dead_after = None;
        world.crash(2, seconds(1));
        world.heal();
        world.run_for(seconds(60));
        for node in 0..3 {
            assert_eq!(world.up(node).summary().problems, Vec::<String>::new());
        }
        fine(&world);
    }
}

#[test]
fn who_left_for_other_ranges_is_removed_though_it_is_in_reach() {
    let (mut world, addresses) = three(Some(seconds(20)));
    world.free(2, "first", None);
    world.run_for(seconds(1));
    world.crash(2, seconds(1));
    let ranges = std::mem::replace(&mut world.ranges, vec![net("10.99.0.0/16")]);
    world.start(2);
    world.ranges = ranges;
    world.run_for(seconds(60));
    assert_eq!(world.up(0).removed().count(), 1);
    let request = world.claim(0, "heir", addresses[2]);
    world.answer(request).expect("nobody's now");
    assert!(world.up(0).panel().is_some_and(|(_, voters)| !voters.contains(&Peer(3))));
    // It thinks better of it.
    world.crash(2, seconds(1));
    world.run_for(seconds(60));
    let request = world.allocate(2, "second", net("10.32.0.0/12"));
    world.answer(request).expect("a member again");
    assert!(world.up(0).panel().is_some_and(|(_, voters)| voters.contains(&Peer(3))));
    fine(&world);
}

/// As an orchestrator does it: it takes a host away, and says so at once.
#[test]
fn who_is_removed_before_anybody_noticed_its_death_votes_no_more() {
    let mut world = World::new(3, &[0, 1, 1, 1, 1], &["10.0.0.0/24"]);
    world.start_all();
    world.run_for(seconds(30));
    for dead in 1..4 {
        assert!(world.up(0).panel().is_some_and(|(_, voters)| voters.contains(&Peer(dead as u8 + 1))));
        world.die(dead);
        world.remove(0, dead);
        world.run_for(seconds(20));
        let (_, voters) = world.up(0).panel().expect("a panel");
        assert!(!voters.contains(&Peer(dead as u8 + 1)), "{voters:?} without {dead}");
    }
    // Two of five are left, and what the others had is theirs.
    for number in 0..200 {
        let request = world.allocate(4, &format!("heir{number}"), net("10.0.0.0/24"));
        assert!(world.answer(request).is_ok(), "{number}");
    }
    fine(&world);
}

#[test]
fn most_voters_may_be_removed_before_anybody_noticed_their_deaths() {
    let mut world = World::new(3, &[0, 1, 1, 1, 1], &["10.0.0.0/24"]);
    world.start_all();
    world.run_for(seconds(30));
    assert!(world.up(0).panel().is_some_and(|(_, voters)| voters.len() == 5));
    for dead in 1..4 {
        world.die(dead);
    }
    for dead in 1..4 {
        world.remove(0, dead);
    }
    world.run_for(seconds(30));
    for number in 0..200 {
        let request = world.allocate(4, &format!("heir{number}"), net("10.0.0.0/24"));
        assert!(world.answer(request).is_ok(), "{number}");
    }
    fine(&world);
}

#[test]
fn who_was_removed_alive_keeps_its_next_life_though_its_link_fails_soon_after() {
    let (mut world, _) = three(None);
    world.run_for(seconds(20));
    world.remove(0, 2);
    world.run_for(seconds(20));
    let life = world.up(2).life();
    cut_off_the_third(&mut world);
    world.run_for(seconds(15));
    world.heal();
    world.run_for(seconds(30));
    assert_eq!(world.up(2).life(), life);
    assert!(world.up(0).panel().is_some_and(|(_, voters)| voters.len() == 3));
    fine(&world);
}

#[test]
fn a_removal_is_refused_for_good_or_until_the_others_have_said_which_voters_they_know() {
    let mut world = World::new(7, &[0, 1, 1, 1], &["10.32.0.0/12"]);
    world.start_all();
    world.run_for(seconds(15));
    for node in 0..4 {
        let request = world.allocate(node, "first", net("10.32.0.0/12"));
        world.answer(request).expect("there is room");
    }
    world.run_for(seconds(15));
    let refused = world.up(0).remove_peer(Peer(1), Duration::ZERO);
    assert!(matches!(&refused, Err(RemoveError::Refused(why)) if why.contains("itself")), "{refused:?}");
    let (_, voters) = world.up(0).panel().expect("it has a network");
    assert!(voters.len() == 3 && voters.contains(&Peer(1)), "{voters:?}");
    let others: Vec<Peer> = voters.into_iter().filter(|voter| *voter != Peer(1)).collect();
    for &Peer(other) in &others {
        world.crash(usize::from(other) - 1, seconds(10_000));
    }
    world.run_for(seconds(30));
    assert_eq!(world.up(0).remove_peer(others[0], Duration::ZERO), Ok(()));
    let not_yet = world.up(0).remove_peer(others[1], Duration::ZERO);
    assert!(matches!(not_yet, Err(RemoveError::NotYet(_))), "{not_yet:?}");
    // The question leaves with whatever comes next.
    let request = world.allocate(0, "first", net("10.32.0.0/12"));
    world.answer(request).expect("given before");
    world.run_for(seconds(1));
    assert_eq!(world.up(0).remove_peer(others[1], Duration::ZERO), Ok(()));
    fine(&world);
}

#[test]
fn without_a_time_for_it_nobody_is_removed() {
    let (mut world, _) = three(None);
    cut_off_the_third(&mut world);
    world.run_for(seconds(100_000));
    let away = world.up(0).summary().away;
    assert!(away.len() == 1 && away[0].removal.is_none() && away[0].silent.is_some(), "{away:?}");
    let request = world.allocate(2, "second", net("10.32.0.0/12"));
    world.answer(request).expect("from its own blocks");
    fine(&world);
}

#[test]
fn a_peer_that_was_removed_alive_is_fenced_off_from_what_went_to_others_and_both_name_both_containers() {
    let (mut world, addresses) = three(None);
    cut_off_the_third(&mut world);
    world.remove(0, 2);
    world.run_for(seconds(5));
    let request = world.claim(0, "heir", addresses[2]);
    world.answer(request).expect("nobody's now");
    assert!(world.nodes[1].fences.is_empty(), "it is not there");
    world.heal();
    world.run_for(seconds(30));
    // Who watches drops what comes from the one that lost it.
    let fences = world.nodes[1].fences.clone();
    let [(fenced, runs)] = &fences[..] else { panic!("{fences:?}") };
    assert_eq!(*fenced, Peer(3));
    let inside = |address: &IpAddr| runs.iter().any(|(first, last)| first <= address && address <= last);
    assert!(inside(&addresses[2]), "{runs:?}");
    assert!(inside(&addresses[0]), "all that is others'");
    let own = world.up(2).held();
    assert!(!own.is_empty() && own.iter().all(|(first, last)| !inside(first) && !inside(last)), "{own:?} {runs:?}");
    // Both know both.
    for (node, here, there, theirs) in [(0, "heir", "first", false), (2, "first", "heir", true)] {
        let contests = world.up(node).summary().contests;
        let [contest] = &contests[..] else { panic!("{contests:?}") };
        assert_eq!((contest.address, contest.here.as_str(), contest.theirs), (addresses[2], here, theirs));
        assert_eq!(contest.there.as_deref(), Some(there));
    }
    world.free(2, "first", None);
    world.run_for(seconds(60));
    assert!((0..3).all(|node| world.up(node).summary().contests.is_empty()));
    fine(&world);
}

#[test]
fn who_was_not_there_at_the_removal_fences_off_too_and_so_does_who_lost_its_disk_since() {
    let mut world = World::new(13, &[0, 1, 1, 1, 1], &["10.32.0.0/12"]);
    world.start_all();
    world.run_for(seconds(20));
    let request = world.allocate(3, "first", net("10.32.0.0/12"));
    let address = world.answer(request).expect("there is room").addr();
    world.run_for(seconds(15));
    world.partition(vec![0, 0, 0, 1, 1]);
    world.run_for(seconds(1));
    world.remove(0, 3);
    world.run_for(seconds(30));
    let request = world.claim(0, "heir", address);
    world.answer(request).expect("nobody's now");
    world.run_for(seconds(30));
    assert!(world.nodes[4].fences.is_empty(), "it cannot know");
    world.heal();
    world.run_for(seconds(30));
    world.wipe(1, seconds(1));
    world.run_for(seconds(60));
    for node in [0, 1, 2, 4] {
        let [(Peer(4), runs)] = &world.nodes[node].fences[..] else { panic!("{node}: {:?}", world.nodes[node].fences) };
        assert!(runs.iter().any(|(first, last)| (first..=last).contains(&&address)), "{node}: {runs:?}");
    }
    fine(&world);
}

#[test]
fn who_was_removed_is_fenced_off_as_long_as_it_has_something_left_of_that_and_no_longer() {
    let (mut world, addresses) = three(Some(seconds(20)));
    cut_off_the_third(&mut world);
    world.run_for(seconds(50));
    let request = world.claim(0, "heir", addresses[2]);
    world.answer(request).expect("nobody's now");
    world.heal();
    world.run_for(seconds(60));
    let fenced = |world: &World, node: usize| !world.nodes[node].fences.is_empty();
    assert!(fenced(&world, 0) && fenced(&world, 1), "its container is still there");
    world.free(2, "first", None);
    world.run_for(seconds(40));
    assert!(!fenced(&world, 0) && !fenced(&world, 1));
    // That it was removed is remembered, and whoever starts again does not begin to fence it off.
    world.crash(0, seconds(1));
    world.wipe(1, seconds(1));
    world.run_for(seconds(60));
    let notices = world.nodes[2].notices.len();
    world.crash(2, seconds(1));
    world.run_for(seconds(60));
    assert!(!fenced(&world, 0) && !fenced(&world, 1));
    let again = &world.nodes[2].notices[notices..];
    assert!(!again.iter().any(|text| text.contains("removed")), "{again:?}");
    // One that comes back without containers is not fenced off for longer than until it has said so.
    world.free(0, "heir", None);
    world.run_for(seconds(40));
    world.crash(2, seconds(100));
    world.run_for(seconds(160));
    assert!(!fenced(&world, 0) && !fenced(&world, 1));
    fine(&world);
}

#[test]
fn an_address_that_is_used_elsewhere_is_not_given_while_its_owner_hears_so() {
    let mut world = World::new(8, &[0, 1, 1], &["10.0.0.0/28"]);
    let range = net("10.0.0.0/28");
    world.start_all();
    world.run_for(seconds(15));
    for node in 0..3 {
        let request = world.allocate(node, "first", range);
        world.answer(request).expect("there is room");
    }
    world.run_for(seconds(15));
    let used = world.up(2).lookup("first")[0].addr();
    world.partition(vec![0, 0, 1]);
    world.run_for(seconds(1));
    world.remove(0, 2);
    world.run_for(seconds(5));
    // Its block is another's now, who has given it to nobody.
    let request = world.claim(0, "short", used);
    world.answer(request).expect("nobody's now");
    world.free(0, "short", None);
    world.run_for(seconds(35));
    world.heal();
    world.run_for(seconds(30));
    for number in 0..14 {
        let request = world.allocate(number % 2, &format!("more{number}"), range);
        if let Ok(got) = world.answer(request) {
            assert_ne!(got.addr(), used);
        }
    }
    fine(&world);
}

#[test]
fn every_address_that_two_peers_gave_is_named_by_both_however_many_there_are() {
    const MANY: usize = 600;
    let (mut world, _) = three(None);
    for number in 0..MANY {
        let request = world.allocate(2, &format!("old{number}"), net("10.32.0.0/12"));
        world.answer(request).expect("there is room");
    }
    cut_off_the_third(&mut world);
    world.remove(0, 2);
    world.run_for(seconds(5));
    for number in 0..MANY {
        let address = world.up(2).lookup(&format!("old{number}"))[0].addr();
        let request = world.claim(0, &format!("heir{number}"), address);
        world.answer(request).expect("nobody's now");
    }
    world.heal();
    // Told again and again, they stay so.
    for _ in 0..6 {
        world.run_for(seconds(20));
        for node in [0, 2] {
            let contests = world.up(node).summary().contests;
            let both = contests.iter().filter(|contest| contest.there.is_some()).count();
            assert!(both >= MANY, "{both} of {MANY} at {node}");
        }
    }
    fine(&world);
}

#[test]
fn voters_that_could_not_read_those_before_go_on_once_these_are_removed() {
    let mut world = World::new(7, &[0, 1, 1], &["10.0.0.0/24"]);
    world.start_all();
    let is_told = |world: &mut World, node| world.up(node).panel().is_some_and(|(version, _)| version == 2);
    while !is_told(&mut world, 1) && !is_told(&mut world, 2) {
        world.run_for(Duration::from_micros(100));
    }
    // The first host is gone between two words: what it knew as the only voter, nobody has read.
    world.die(0);
    world.run_for(seconds(20));
    assert!([1, 2].iter().all(|&node| world.up(node).is_learning_to_vote()));
    let of_the_first = "10.0.0.1".parse().expect("an address");
    let request = world.claim(1, "one", of_the_first);
    let refused = world.answer(request).expect_err("nobody can settle").to_string();
    assert!(refused.contains("01010101"), "{refused}");
    world.remove(2, 0);
    world.run_for(seconds(5));
    let request = world.claim(1, "one", of_the_first);
    world.answer(request).expect("its space is free");
    let request = world.allocate(2, "another", net("10.0.0.0/24"));
    world.answer(request).expect("its space is free");
    world.check_blocks();
    fine(&world);
}
