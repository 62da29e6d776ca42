//! Who is refused, with which words, and that nobody else notices.

mod control_harness;

use std::time::Duration;

use control_harness::*;
use mesh_proto::control::node::PeerState;
use mesh_proto::control::{Event, NodeConfig};
use mesh_proto::id::Incarnation;
use mesh_proto::wire::control::Message;

const SECOND: Duration = Duration::from_secs(1);

/// Peers 1 and 2 are fine; peer 3 is not and dials peer 1.
fn with_stranger(third: NodeConfig) -> Mesh {
    let mut mesh = Mesh::new([(1, sealed(1, 7)), (2, NodeConfig { targets: vec![target(1)], ..sealed(2, 7) })]);
    mesh.run_until_true(SECOND, "a link", |mesh| mesh.linked(1, 2));
    mesh.start(3, NodeConfig { targets: vec![target(1)], ..third });
    mesh.run_secs(1);
    mesh
}

/// Both sides say it in a line; the others have not noticed.
fn refused_on_both_sides(mesh: &Mesh, here: &str, there: &str) {
    for (n, text) in [(1, here), (3, there)] {
        let lines = mesh.refusals(n);
        assert!(!lines.is_empty(), "{n} says nothing");
        for line in lines {
            assert!(line.contains(text) && !line.contains('\n'), "{n}: {line}");
        }
    }
    assert!(mesh.linked(1, 2) && mesh.state(2, 1) == Some(PeerState::Established));
    assert!(mesh.info(1, 3).is_none() && mesh.info(3, 1).is_none());
    assert!(mesh.host(3).keys.is_empty() && mesh.host(1).keys.iter().all(|keys| keys.peer != id(3)));
    let went_down = |event: &Event| matches!(event, Event::LinkDown { .. });
    assert!(![1, 2].iter().any(|n| mesh.host(*n).events.iter().any(|(_, event)| went_down(event))));
    assert!(mesh.refusals(2).is_empty());
}

#[test]
fn a_wrong_secret_is_refused_on_both_sides() {
    let mesh = with_stranger(sealed(3, 8));
    refused_on_both_sides(&mesh, "peer `peer3` has another secret", "peer `peer1` has another secret");
}

#[test]
fn no_secret_on_one_side_is_refused_on_both_sides() {
    let mesh = with_stranger(config(3));
    refused_on_both_sides(
        &mesh,
        "`peer3` has no secret and this one has one",
        "`peer1` has a secret and this one has none",
    );
}

#[test]
fn another_network_is_refused_on_both_sides() {
    let mesh = with_stranger(NodeConfig { network: "prod".to_owned(), ..sealed(3, 7) });
    refused_on_both_sides(
        &mesh,
        "`peer3` is in network `prod`, this one in `test`",
        "`peer1` is in network `test`, this one in `prod`",
    );
}

#[test]
fn another_version_is_refused_on_both_sides() {
    let mut mesh = Mesh::new([(1, sealed(1, 7)), (2, NodeConfig { targets: vec![target(1)], ..sealed(2, 7) })]);
    mesh.run_until_true(SECOND, "a link", |mesh| mesh.linked(1, 2));
    // Peer 3 is of a later version: so says its Hello, and to it everybody looks old.
    mesh.tamper = Some(Box::new(|from, to, bytes| {
        if let Ok(Some(Message::Hello(mut hello))) = Message::decode(bytes) {
            if from == 3 {
                (hello.version_min, hello.version_max) = (5, 6);
            } else if to == 3 {
                (hello.version_min, hello.version_max) = (0, 0);
            }
            *bytes = Message::Hello(hello).encode();
        }
    }));
    mesh.start(3, NodeConfig { targets: vec![target(1)], ..sealed(3, 7) });
    mesh.run_secs(1);
    refused_on_both_sides(&mesh, "speaks versions 5 to 6", "speaks versions");
}

#[test]
fn a_handshake_that_is_changed_on_its_way_fails() {
    for byte in [None, Some(3)] {
        let make = |n| byte.map_or_else(|| config(n), |byte| sealed(n, byte));
        let mut mesh = Mesh::new([(1, make(1))]);
        mesh.tamper = Some(Box::new(|from, _, bytes| {
            if let Ok(Some(Message::Hello(mut hello))) = Message::decode(bytes)
                && from == 2
            {
                hello.instance += 1;
                *bytes = Message::Hello(hello).encode();
            }
        }));
        mesh.start(2, NodeConfig { targets: vec![target(1)], ..make(2) });
        mesh.run_secs(3);
        assert!(!mesh.linked(1, 2) && mesh.host(1).keys.is_empty() && mesh.host(2).keys.is_empty());
        assert!(!mesh.refusals(1).is_empty() && !mesh.refusals(2).is_empty());
    }
}

#[test]
fn a_dial_to_ourselves_is_silent() {
    let mut mesh = Mesh::new([(1, NodeConfig { targets: vec![target(1)], ..sealed(1, 7) })]);
    mesh.run_secs(120);
    assert!(mesh.refusals(1).is_empty());
    assert_eq!(mesh.host(1).node.peers().len(), 1);
    assert!(mesh.host(1).node.targets()[0].reason.contains("this very peer"));
}

#[test]
fn a_copy_of_the_keys_in_another_data_directory_is_refused() {
    let mut mesh = Mesh::new([(1, sealed(1, 7)), (2, NodeConfig { targets: vec![target(1)], ..sealed(2, 7) })]);
    mesh.run_until_true(SECOND, "a link", |mesh| mesh.linked(1, 2));
    // The keys of peer 2, another instance.
    mesh.start_as(3, 2, NodeConfig { targets: vec![target(1)], ..sealed(3, 7) });
    mesh.run_secs(1);
    for n in [1, 3] {
        assert!(mesh.refusals(n).iter().all(|line| line.contains("copy of another peer's keys")));
        assert!(!mesh.refusals(n).is_empty());
    }
    assert!(mesh.linked(1, 2));
}

#[test]
fn two_routers_with_one_data_directory_do_not_outbid_each_other_for_ever() {
    let mut mesh = Mesh::new([(1, config(1)), (2, NodeConfig { targets: vec![target(1)], ..config(2) })]);
    mesh.run_until_true(SECOND, "a link", |mesh| mesh.linked(1, 2));
    let clone = NodeConfig { targets: vec![target(1)], ..config(2) };
    mesh.start_as(3, 2, clone);
    mesh.run_secs(60);
    let raises = |n: usize| {
        let raised = |event: &Event| matches!(event, Event::IncarnationRaised { .. });
        mesh.host(n).events.iter().filter(|(_, event)| raised(event)).count()
    };
    assert!((1..=14).contains(&(raises(2) + raises(3))), "{} and {}", raises(2), raises(3));
    assert!(mesh.host(1).node.incarnation() == Incarnation(1));
}

#[test]
fn guesses_at_the_secret_are_slow() {
    let mesh = {
        let mut mesh = Mesh::new([(1, sealed(1, 7))]);
        // Many guessers behind one address.
        for n in 2..60 {
            mesh.nat.insert(n, ([192, 0, 2, 1], 1000 + n as u16).into());
        }
        for n in 2..60 {
            mesh.start(n, NodeConfig { targets: vec![target(1)], discovery: false, ..sealed(n, 8) });
        }
        mesh.run_secs(20);
        mesh
    };
    let lines = mesh.refusals(1);
    let guesses = lines.iter().filter(|line| line.contains("another secret")).count();
    // A burst that was in flight before the first failure, then about one a second.
    assert!(guesses <= 58 + 25, "{guesses} guesses in 20 s");
    let late = mesh.host(1).events.iter().filter(|(at, event)| {
        *at > 2 * SECOND && matches!(event, Event::Refused { reason, .. } if reason.contains("another secret"))
    });
    let late = late.count();
    assert!(late <= 25, "{late} guesses after the burst");
    assert!(lines.iter().any(|line| line.contains("too many failed attempts from 192.0.2.1")));
}

#[test]
fn a_peer_whose_secret_was_wrong_joins_when_it_is_put_right() {
    let mut mesh = with_stranger(sealed(3, 8));
    mesh.kill(3);
    mesh.run_secs(10);
    mesh.start(3, NodeConfig { targets: vec![target(1)], incarnation: Incarnation(2), ..sealed(3, 7) });
    mesh.run_until_true(5 * SECOND, "joined", Mesh::all_reach_all);
}

#[test]
fn random_bytes_and_changed_messages_harm_nobody() {
    let mut mesh = Mesh::new((1..=4).map(|n| {
        let targets = if n == 1 { vec![] } else { vec![target(1)] };
        (n, NodeConfig { targets, ..sealed(n, 7) })
    }));
    mesh.run_secs(5);
    assert!(mesh.all_reach_all());
    // Every tenth message from peer 4 has a wrong byte, whatever it is.
    let mut state = 0x1234_5678_9abc_def0u64;
    mesh.tamper = Some(Box::new(move |from, _, bytes| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if from == 4 && state >> 60 < 2 && !bytes.is_empty() {
            let at = (state >> 20) as usize % bytes.len();
            bytes[at] ^= (state >> 8) as u8 | 1;
        }
    }));
    for round in 0..40u32 {
        mesh.run_secs(3);
        let endpoints = vec![address(4), ([10, 1, (round >> 8) as u8, round as u8], 1).into()];
        mesh.with(4, |node, now| node.set_endpoints(endpoints, now));
        mesh.with(4, |node, now| node.broadcast_app(vec![round as u8; 40], now));
    }
    mesh.tamper = None;
    mesh.run_secs(60);
    assert!(mesh.all_reach_all(), "{}", mesh.picture());
    for (a, b) in [(1, 2), (1, 3), (2, 3)] {
        assert!(mesh.linked(a, b));
    }
}
