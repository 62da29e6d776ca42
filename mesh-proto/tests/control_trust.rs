//! Admission, revocation and change of the secret, between whole nodes (control C26 to C33).

mod control_harness;

use std::time::Duration;

use control_harness::*;
use mesh_proto::control::node::{PeerState, RevokeError};
use mesh_proto::control::{Event, NodeConfig};
use mesh_proto::id::{Incarnation, PeerId};
use mesh_proto::wire::control::Message;

const SECOND: Duration = Duration::from_secs(1);
const DAY: u64 = 24 * 3600;

/// A peer that dials peer 1, unless it is that one.
fn member(n: usize, secret: u8, incarnation: u64) -> NodeConfig {
    let targets = if n == 1 { vec![target(2)] } else { vec![target(1)] };
    NodeConfig { targets, incarnation: Incarnation(incarnation), ..sealed(n, secret) }
}

/// Peers 1 to `count`, in one network and settled.
fn mesh_of(count: usize) -> Mesh {
    let mut mesh = Mesh::new([(1, member(1, 7, 1))]);
    for n in 2..=count {
        mesh.start(n, member(n, 7, 1));
    }
    mesh.run_until_true(5 * SECOND, "all reach all", Mesh::all_reach_all);
    mesh.run_secs(2);
    mesh
}

fn restart(mesh: &mut Mesh, n: usize, config: NodeConfig) {
    mesh.kill(n);
    mesh.run_secs(1);
    mesh.start(n, config);
}

/// Whether nobody but itself has anything to do with that peer.
fn is_out(mesh: &Mesh, n: usize) -> bool {
    mesh.hosts.iter().filter(|(other, _)| **other != n).all(|(other, host)| {
        mesh.state(*other, n).is_none_or(|state| state == PeerState::Removed)
            && !mesh.can_reach(*other, n)
            && host.keys.iter().all(|keys| keys.peer != id(n))
            && !host.tables.peers.contains_key(&id(n))
    })
}

fn revoked_events(mesh: &Mesh, at: usize) -> Vec<PeerId> {
    let events = mesh.host(at).events.iter();
    events.filter_map(|(_, event)| if let Event::Revoked { peer, .. } = event { Some(*peer) } else { None }).collect()
}

/// Counts SPAKE2 messages that cross the wire from now on.
fn count_pakes(mesh: &mut Mesh) -> std::rc::Rc<std::cell::Cell<usize>> {
    let seen = std::rc::Rc::new(std::cell::Cell::new(0));
    let counter = std::rc::Rc::clone(&seen);
    mesh.tamper = Some(Box::new(move |_, _, bytes| match Message::decode(bytes) {
        Ok(Some(Message::Hello(hello))) if hello.spake.is_some() => counter.set(counter.get() + 1),
        Ok(Some(Message::Pake(_))) => counter.set(counter.get() + 1),
        _ => {}
    }));
    seen
}

#[test]
fn admitted_peers_link_again_without_the_secret() {
    let mut mesh = mesh_of(4);
    let pakes = count_pakes(&mut mesh);
    for n in [2, 1, 4] {
        restart(&mut mesh, n, member(n, 7, 2));
        mesh.run_until_true(8 * SECOND, "back", Mesh::all_reach_all);
    }
    assert_eq!(pakes.get(), 0);
    // Without what its disk kept a peer knows nobody, and proves the secret as ever.
    mesh.disks.clear();
    restart(&mut mesh, 3, member(3, 7, 2));
    mesh.run_until_true(8 * SECOND, "back", Mesh::all_reach_all);
    assert!(pakes.get() > 0);
}

#[test]
fn peers_that_never_met_know_each_other_through_their_sponsors() {
    let mut mesh = Mesh::new([(1, member(1, 7, 1))]);
    mesh.start(2, member(2, 7, 1));
    mesh.run_until_true(5 * SECOND, "linked", |mesh| mesh.linked(1, 2));
    mesh.sever(2, 3);
    mesh.start(3, member(3, 7, 1));
    mesh.run_until_true(5 * SECOND, "linked", |mesh| mesh.linked(1, 3));
    mesh.run_secs(40);
    let pakes = count_pakes(&mut mesh);
    mesh.mend(2, 3);
    mesh.run_until_true(70 * SECOND, "linked", |mesh| mesh.linked(2, 3));
    assert_eq!(pakes.get(), 0);
}

#[test]
fn a_changed_secret_cuts_nobody_off_and_newcomers_need_the_new_one() {
    let mut mesh = mesh_of(4);
    let lost = |mesh: &Mesh| {
        let down = |event: &Event| matches!(event, Event::LinkDown { .. } | Event::PeerUnreachable { .. });
        mesh.hosts.values().flat_map(|host| &host.events).filter(|(_, event)| down(event)).count()
    };
    let before = lost(&mesh);
    // One after the other, without a restart; the last one is restarted with it instead.
    for n in 1..=3 {
        mesh.with(n, |node, now| node.set_secret(secret(8), now));
        mesh.run_secs(30);
        assert!(mesh.all_reach_all(), "{}", mesh.picture());
    }
    assert_eq!(lost(&mesh), before, "no link was lost");
    restart(&mut mesh, 4, member(4, 8, 2));
    mesh.run_until_true(8 * SECOND, "back", Mesh::all_reach_all);
    // In the middle of it also two restarted ones with different secrets find each other.
    restart(&mut mesh, 2, member(2, 9, 2));
    mesh.run_until_true(8 * SECOND, "back", Mesh::all_reach_all);
    for n in 1..=4 {
        assert!(mesh.refusals(n).is_empty(), "{n}: {:?}", mesh.refusals(n));
    }
    // The old secret opens nothing, the new one does.
    mesh.start(5, NodeConfig { discovery: false, ..member(5, 7, 1) });
    mesh.run_secs(5);
    assert!(mesh.refusals(5).iter().any(|line| line.contains("another secret")));
    assert!(is_out(&mesh, 5));
    mesh.start(6, member(6, 8, 1));
    mesh.run_until_true(8 * SECOND, "joined", |mesh| (1..=4).all(|n| mesh.can_reach(n, 6)));
    // Its sponsor's word is enough for the one that holds a third secret.
    mesh.run_until_true(10 * SECOND, "linked", |mesh| mesh.linked(2, 6));
}

#[test]
fn a_revoked_peer_is_out_everywhere_and_stays_out() {
    let mut mesh = mesh_of(5);
    assert_eq!(mesh.with(2, |node, now| node.revoke(id(4), now)), Ok(()));
    let took = mesh.run_until_true(SECOND, "out", |mesh| is_out(mesh, 4));
    assert!(took <= Duration::from_millis(100), "at the speed of gossip, not {took:?}");
    for n in [1, 2, 3, 5] {
        assert_eq!(revoked_events(&mesh, n), [id(4)]);
        let info = mesh.info(n, 4).expect("it is listed");
        assert_eq!(info.state, PeerState::Removed);
        assert!(info.reason.contains("revoked by `peer2`"), "{}", info.reason);
    }
    assert!(mesh.refusals(4).iter().any(|line| line.contains("this peer was revoked by `peer2`")));
    // It holds the secret and goes on dialling; both ends restart; those who are left do not care.
    mesh.run_secs(120);
    assert!(is_out(&mesh, 4));
    for n in [1, 4, 5] {
        restart(&mut mesh, n, member(n, 7, 2));
        mesh.run_secs(20);
        assert!(is_out(&mesh, 4), "{}", mesh.picture());
    }
    let others = [1, 2, 3, 5];
    assert!(others.iter().all(|a| others.iter().all(|b| a == b || mesh.linked(*a, *b))), "{}", mesh.picture());
    for n in others {
        for line in mesh.refusals(n) {
            assert!(line.contains("was revoked by") || line.contains("too many failed"), "{n}: {line}");
        }
    }
}

#[test]
fn who_was_away_hears_of_a_revocation_before_it_meets_the_revoked() {
    let mut mesh = mesh_of(4);
    mesh.kill(3);
    mesh.run_secs(5);
    mesh.with(1, |node, now| node.revoke(id(4), now).unwrap());
    mesh.run_secs(5);
    mesh.start(3, NodeConfig { targets: vec![target(1), target(4)], ..member(3, 7, 2) });
    mesh.run_until_true(8 * SECOND, "told", |mesh| !revoked_events(mesh, 3).is_empty());
    mesh.run_secs(1);
    assert!(is_out(&mesh, 4), "{}", mesh.picture());
    mesh.run_secs(60);
    assert!(is_out(&mesh, 4) && mesh.linked(1, 3));
}

#[test]
fn whoever_hung_on_a_revoked_sponsor_proves_the_secret_again() {
    // 1, 3 and 4 know each other by the word of 2 alone.
    let mut mesh = Mesh::new([(2, sealed(2, 7))]);
    let pairs = [(1, 3), (1, 4), (3, 4)];
    pairs.iter().for_each(|(a, b)| mesh.sever(*a, *b));
    for n in [1, 3, 4] {
        mesh.start(n, NodeConfig { targets: vec![target(2)], ..member(n, 7, 1) });
    }
    mesh.run_secs(5);
    pairs.iter().for_each(|(a, b)| mesh.mend(*a, *b));
    mesh.run_until_true(80 * SECOND, "linked", |mesh| pairs.iter().all(|(a, b)| mesh.linked(*a, *b)));
    let pakes = count_pakes(&mut mesh);
    // 4 has missed a change of the secret.
    for n in [1, 2, 3] {
        mesh.with(n, |node, now| node.set_secret(secret(8), now));
    }
    mesh.with(1, |node, now| node.revoke(id(2), now).unwrap());
    mesh.run_until_true(5 * SECOND, "proven again", |mesh| is_out(mesh, 2) && mesh.linked(1, 3));
    assert!(pakes.get() >= 2);
    mesh.run_secs(10);
    assert!(!mesh.linked(1, 4) && !mesh.linked(3, 4), "{}", mesh.picture());
    assert!(mesh.refusals(4).iter().any(|line| line.contains("another secret")), "{:?}", mesh.refusals(4));
    mesh.with(4, |node, now| node.set_secret(secret(8), now));
    mesh.run_until_true(40 * SECOND, "proven again", |mesh| mesh.linked(1, 4) && mesh.linked(3, 4));
}

#[test]
fn two_that_revoke_each_other_are_both_out() {
    let mut mesh = mesh_of(4);
    // Neither half has heard of the other's.
    let between = [(1, 3), (1, 4), (2, 3), (2, 4)];
    between.iter().for_each(|(a, b)| mesh.sever(*a, *b));
    mesh.run_secs(5);
    mesh.with(2, |node, now| node.revoke(id(3), now).unwrap());
    mesh.with(3, |node, now| node.revoke(id(2), now).unwrap());
    mesh.run_secs(1);
    between.iter().for_each(|(a, b)| mesh.mend(*a, *b));
    mesh.run_until_true(40 * SECOND, "both out", |mesh| is_out(mesh, 2) && is_out(mesh, 3));
    mesh.run_secs(20);
    assert!(mesh.linked(1, 4));
    for n in [1, 4] {
        let mut seen = revoked_events(&mesh, n);
        seen.sort();
        let mut both = [id(2), id(3)];
        both.sort();
        assert_eq!(seen, both);
    }
}

#[test]
fn who_cannot_be_revoked_is_said() {
    let mut mesh = mesh_of(2);
    assert_eq!(mesh.with(1, |node, now| node.revoke(id(1), now)), Err(RevokeError::Myself));
    assert_eq!(mesh.with(1, |node, now| node.revoke(id(2), now)), Ok(()));
    assert_eq!(mesh.with(1, |node, now| node.revoke(id(2), now)), Err(RevokeError::Already));
    let mut open = Mesh::new([(1, config(1))]);
    assert_eq!(open.with(1, |node, now| node.revoke(id(2), now)), Err(RevokeError::NoSecret));
}

#[test]
fn a_clock_that_jumps_costs_a_proof_and_no_link() {
    let mut mesh = mesh_of(3);
    let pakes = count_pakes(&mut mesh);
    for days in [0, 200, 20_000] {
        for n in 1..=3 {
            mesh.with(n, |node, now| node.set_wall(WALL - 5 + days * DAY, now));
        }
        mesh.run_secs(30);
        assert!(mesh.all_reach_all());
        assert!([(1, 2), (1, 3), (2, 3)].iter().all(|(a, b)| mesh.linked(*a, *b)));
    }
    // Peer 2 thinks that it is 1970: its admissions do not hold, the secret does.
    restart(&mut mesh, 2, NodeConfig { trust: Default::default(), ..member(2, 7, 2) });
    mesh.run_until_true(8 * SECOND, "back", Mesh::all_reach_all);
    assert!(pakes.get() > 0);
    // Sponsors have signed anew for whom they are linked with.
    let later = 20_000 * DAY + 60 * DAY;
    for n in 1..=3 {
        mesh.with(n, |node, now| node.set_wall(WALL + later, now));
    }
    mesh.run_secs(60);
    let pakes = count_pakes(&mut mesh);
    for n in 1..=3 {
        mesh.with(n, |node, now| node.set_wall(WALL + later + 60 * DAY, now));
    }
    let wall = WALL + later + 60 * DAY;
    let trust = mesh_proto::control::TrustConfig { wall: wall - mesh.now.as_secs(), kept: Vec::new() };
    restart(&mut mesh, 3, NodeConfig { trust, ..member(3, 9, 2) });
    mesh.run_until_true(8 * SECOND, "back", Mesh::all_reach_all);
    assert_eq!(pakes.get(), 0);
}

#[test]
fn revocations_of_strangers_and_for_other_networks_are_left_alone() {
    let mut mesh = mesh_of(3);
    // Peer 3 has gone mad and passes on what it made up, in the name of peer 77.
    mesh.tamper = Some(Box::new(|from, _, bytes| {
        if let Ok(Some(Message::Revocations(mut message))) = Message::decode(bytes)
            && from == 3
        {
            for revocation in &mut message.list {
                (revocation.sign_key, revocation.box_key) = ([77; 32], [77; 32]);
            }
            *bytes = Message::Revocations(message).encode();
        }
    }));
    mesh.with(3, |node, now| node.revoke(id(2), now).unwrap());
    mesh.run_secs(30);
    assert!(mesh.linked(1, 2) && revoked_events(&mesh, 1).is_empty());
}
