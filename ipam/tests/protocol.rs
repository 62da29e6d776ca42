//! What the protocol promises, one promise a test, without faults unless said.

mod sim;

use std::time::Duration;

use ipam::AllocError;
use ipnet::IpNet;
use sim::World;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn settle(world: &World) {
    assert_eq!(world.check.violations, Vec::<String>::new());
}

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
    settle(&world);
}

#[test]
fn a_peer_that_names_a_founder_joins_and_gets_half() {
    let mut world = World::new(2, &[0, 1], &["10.32.0.0/12"]);
    world.start_all();
    world.run_for(secs(3));
    let request = world.allocate(1, "c1", net("10.32.0.0/12"));
    assert_eq!(world.answer(request), Ok(net("10.40.0.0/12")));
    let summary = world.nodes[1].allocator.as_ref().unwrap().summary();
    assert_eq!(summary.owned, (1 << 19) - 1);
    assert_eq!(world.networks().len(), 1);
    world.check_blocks();
    settle(&world);
}

#[test]
fn peers_that_name_each_other_found_one_network_with_even_shares() {
    let mut world = World::new(3, &[2, 2, 2], &["10.32.0.0/12", "fd00::/64"]);
    world.start_all();
    world.run_for(secs(6));
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
    settle(&world);
}

#[test]
fn a_peer_alone_says_whom_it_waits_for() {
    let mut world = World::new(4, &[3], &["10.0.0.0/24"]);
    world.start(0);
    world.run_for(secs(20));
    let waits = world.nodes[0].allocator.as_ref().unwrap().readiness().unwrap_err();
    assert!(waits.starts_with("waiting for 2 of 3 named peers"), "{waits}");
    let request = world.allocate(0, "c1", net("10.0.0.0/24"));
    let refused = world.answer(request).unwrap_err();
    assert!(matches!(refused, AllocError::TimedOut { waited_s: 10, .. }), "{refused}");
    settle(&world);
}
