//! Who belongs to the network: how it is founded, who is removed from it and how, and what becomes
//! of the addresses.

mod sim;

use std::net::IpAddr;
use std::time::Duration;

use ipam::allocator::{Allocator, Birth, Config, RemoveError, StateError};
use ipam::{AllocError, Output};
use ipnet::IpNet;
use sim::{Peer, World};

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

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

fn fine(world: &World) {
    assert_eq!(world.check.violations, Vec::<String>::new());
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
