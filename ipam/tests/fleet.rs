//! Promises to whoever runs many hosts for long: hosts come and go, links come and go, and every
//! address is of use.

mod sim;

use std::time::Duration;

use ipnet::IpNet;
use sim::{World, fine, seconds};

const HOSTS: usize = 5;

/// Asks for so many addresses, one after the other; each must be given.
fn fill(world: &mut World, node: usize, count: usize, range: IpNet) {
    for container in 0..count {
        let request = world.allocate(node, &format!("n{node}c{container}"), range);
        let answer = world.answer(request);
        assert!(answer.is_ok(), "container {container} of node {node}: {answer:?}");
    }
}

fn nothing_wrong(world: &mut World) {
    world.check_blocks();
    fine(world);
}

/// A host is gone at once with what ran on it, `told` later somebody hears that it will not come back, and another
/// host takes its place; then nothing happens for `pause`. Ten times each.
fn replace_every_host(seed: u64, told: Duration, pause: Duration) {
    const ROUNDS: usize = 10;
    const ADDRESSES: usize = 254 * 95 / 100;
    let named: Vec<usize> = (0..HOSTS * (ROUNDS + 1)).map(|node| usize::from(node > 0)).collect();
    let mut world = World::new(seed, &named, &["10.0.0.0/24"]);
    let range = world.ranges[0];
    let share = |place: usize| ADDRESSES / HOSTS + usize::from(place < ADDRESSES % HOSTS);
    let mut hosts: Vec<usize> = (0..HOSTS).collect();
    for node in 0..HOSTS {
        world.start(node);
    }
    world.run_for(seconds(20));
    for (place, &host) in hosts.iter().enumerate() {
        fill(&mut world, host, share(place), range);
    }
    for newcomer in HOSTS..named.len() {
        let place = newcomer % HOSTS;
        let dead = hosts[place];
        world.die(dead);
        world.run_for(told);
        hosts[place] = newcomer;
        // As from an orchestrator's list: all hear it.
        for &host in hosts.iter().filter(|&&host| host != newcomer) {
            world.remove(host, dead);
        }
        world.start(newcomer);
        fill(&mut world, newcomer, share(place), range);
        assert_eq!(world.check.count(), ADDRESSES);
        nothing_wrong(&mut world);
        world.run_for(pause);
    }
}

#[test]
fn every_host_is_replaced_ten_times_at_95_percent_and_every_request_is_served() {
    replace_every_host(95, seconds(2), seconds(15));
}

/// Before anybody has noticed that the host is dead, and the next one a second after its addresses are given again:
/// one whose voters change more slowly than that loses most of them.
#[test]
fn the_voters_keep_up_with_hosts_that_are_replaced_one_a_second() {
    for seed in 0..5 {
        replace_every_host(seed, Duration::from_millis(50), seconds(1));
    }
}

#[test]
fn after_eleven_thousand_operations_and_a_cut_every_five_seconds_each_address_of_a_22_is_of_use() {
    const OPERATIONS: u64 = 11_000;
    let mut world = World::new(22, &[0, 1, 1, 1, 1], &["10.0.0.0/22"]);
    let range = world.ranges[0];
    world.start_all();
    world.run_for(seconds(20));
    let mut cut = world.now;
    for _ in 0..OPERATIONS {
        if world.now >= cut {
            cut = world.now + seconds(5);
            let groups = (0..HOSTS).map(|_| world.below(2) as u8).collect();
            world.partition(groups);
        }
        let node = world.below(HOSTS as u64) as usize;
        let owner = format!("c{}", world.below(150));
        match world.below(3) {
            0 => {
                world.allocate(node, &owner, range);
            }
            1 => {
                let address = range.hosts().nth(world.below(1022) as usize).expect("a host");
                world.claim(node, &owner, address);
            }
            _ => world.free(node, &owner, None),
        }
        let pause = world.below(40);
        world.run_for(Duration::from_millis(pause));
        nothing_wrong(&mut world);
    }
    world.heal();
    world.run_for(seconds(45));
    let now = world.now;
    world.check.overdue(now);
    nothing_wrong(&mut world);
    assert!(world.check.given > OPERATIONS / 4, "{} given, {:?}", world.check.given, world.check.refused);
    for left in world.check.count()..1022 {
        let request = world.allocate(left % HOSTS, &format!("last{left}"), range);
        let answer = world.answer(request);
        assert!(answer.is_ok(), "the address number {left}: {answer:?}");
    }
    assert_eq!(world.check.count(), 1022);
    nothing_wrong(&mut world);
}
