//! What leads to a removal, and what must not.

use super::*;

const GRACE: Duration = Duration::from_secs(60);

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn node(name: &str, uid: &str) -> Node {
    let last: u8 = name.bytes().last().unwrap_or(0) - b'a' + 1;
    Node { name: name.into(), uid: uid.into(), addresses: vec![[192, 0, 2, last].into()], ready: true, member: true }
}

fn nodes(names: &str) -> Vec<Node> {
    names.split_whitespace().map(|name| node(name, &format!("uid-{name}"))).collect()
}

/// Peers by id; one with a `-` is out of reach. The router is `a`, and its id is the lowest.
fn view(peers: &str) -> View {
    let seen = |text: &str| {
        let name = text.trim_end_matches('-');
        Seen { id: format!("id-{name}"), name: name.into(), reachable: !text.ends_with('-'), owns: true }
    };
    View { me: "id-a".into(), ready: true, peers: peers.split_whitespace().map(seen).collect() }
}

/// Three nodes whose peers were met.
fn cluster() -> Roster {
    let mut roster = Roster::new("a".into(), GRACE, BTreeMap::new());
    roster.listed(nodes("a b c"), s(0)).expect("believed");
    assert!(roster.looked(view("a b c"), s(0)), "there is something to note");
    assert!(!roster.looked(view("a b c"), s(1)), "and it is noted");
    roster
}

/// Polls as the loop does, every two seconds; when somebody was due first.
fn first_due(roster: &mut Roster, seen: &str, from: u64, to: u64) -> Option<(u64, Vec<String>)> {
    (from..=to).step_by(2).find_map(|at| {
        roster.looked(view(seen), s(at));
        let due = roster.due(s(at));
        (!due.is_empty()).then_some((at, due))
    })
}

#[test]
fn a_node_that_was_deleted_is_due_when_its_peer_is_away_as_long_as_the_grace() {
    let mut roster = cluster();
    roster.looked(view("a b c-"), s(10));
    roster.deleted(&node("c", "uid-c"), s(20));
    assert_eq!(first_due(&mut roster, "a b c-", 22, 200), Some((80, vec!["id-c".to_owned()])));
}

#[test]
fn a_peer_that_is_away_but_whose_node_is_there_is_never_due() {
    let mut roster = cluster();
    assert_eq!(first_due(&mut roster, "a b- c-", 2, 100_000), None);
}

#[test]
fn a_peer_that_lives_is_not_due_whatever_the_api_says() {
    let mut roster = cluster();
    roster.deleted(&node("c", "uid-c"), s(2));
    assert_eq!(first_due(&mut roster, "a b c", 2, 100_000), None);
    // The grace begins when it goes out of reach, and anew each time.
    assert_eq!(first_due(&mut roster, "a b c-", 100_002, 100_060), None);
    roster.looked(view("a b c"), s(100_061));
    assert_eq!(first_due(&mut roster, "a b c-", 100_062, 100_200).map(|(at, _)| at), Some(100_122));
}

#[test]
fn a_deletion_that_nobody_saw_is_found_by_the_next_list_also_after_a_restart() {
    let mut roster = cluster();
    roster.looked(view("a b c-"), s(10));
    roster.listed(nodes("a b"), s(20)).expect("believed");
    assert_eq!(first_due(&mut roster, "a b c-", 20, 200).map(|(at, _)| at), Some(80));

    let mut later = Roster::new("a".into(), GRACE, cluster().notes().clone());
    assert_eq!(first_due(&mut later, "a b c-", 0, 1000), None, "no list yet");
    later.listed(nodes("a b"), s(1000)).expect("believed");
    assert_eq!(first_due(&mut later, "a b c-", 1000, 2000), Some((1060, vec!["id-c".to_owned()])));
}

#[test]
fn an_empty_list_and_one_without_this_node_change_nothing() {
    let mut roster = cluster();
    let dialled = roster.whom_to_dial(s(2));
    assert_eq!(roster.listed(Vec::new(), s(10)), Err(Disbelief::Empty));
    assert_eq!(roster.listed(nodes("b"), s(10)), Err(Disbelief::WithoutMe(1)));
    assert_eq!(first_due(&mut roster, "a b- c-", 10, 10_000), None);
    assert_eq!(roster.whom_to_dial(s(10_000)), dialled);
}

#[test]
fn while_this_node_is_said_to_be_deleted_nobody_is_due() {
    let mut roster = cluster();
    roster.deleted(&node("c", "uid-c"), s(10));
    roster.deleted(&node("a", "uid-a"), s(11));
    assert_eq!(first_due(&mut roster, "a b c-", 12, 10_000), None);
    assert_eq!(roster.whom_to_dial(s(10_000)), None, "nor is anybody forgotten");
    roster.applied(node("a", "uid-a2"), s(10_000));
    assert_eq!(first_due(&mut roster, "a b c-", 10_000, 20_000).map(|(at, _)| at), Some(10_060));
}

#[test]
fn peers_that_never_were_nodes_are_left_alone() {
    let mut roster = Roster::new("a".into(), GRACE, BTreeMap::new());
    roster.listed(nodes("a b"), s(0)).expect("believed");
    // `v` is a machine outside of the cluster; `b` was never met, so its id is not known to be b's.
    assert_eq!(first_due(&mut roster, "a b- v", 0, 100), None);
    roster.deleted(&node("b", "uid-b"), s(100));
    assert_eq!(first_due(&mut roster, "a b- v-", 100, 10_000), None);
}

#[test]
fn a_node_that_came_back_under_its_name_is_another_one() {
    let mut roster = cluster();
    roster.looked(view("a b c-"), s(10));
    roster.listed(vec![node("a", "uid-a"), node("b", "uid-b"), node("c", "new")], s(20)).expect("believed");
    let mut with_new = view("a b c-");
    with_new.peers.push(Seen { id: "id-new".into(), name: "c".into(), reachable: true, owns: true });
    roster.looked(with_new.clone(), s(20));
    roster.looked(with_new.clone(), s(82));
    assert_eq!(roster.due(s(82)), ["id-c"], "the old one, by its id");
    // With its old disk it is the same peer.
    let mut roster = cluster();
    roster.listed(vec![node("a", "uid-a"), node("b", "uid-b"), node("c", "new")], s(20)).expect("believed");
    roster.looked(view("a b c"), s(20));
    assert_eq!(first_due(&mut roster, "a b c-", 22, 10_000), None);
}

#[test]
fn a_late_deletion_of_an_earlier_node_does_not_touch_the_present_one() {
    let mut roster = cluster();
    roster.applied(node("c", "new"), s(2));
    roster.deleted(&node("c", "uid-c"), s(3));
    assert!(roster.whom_to_dial(s(1000)).expect("known").contains(&"192.0.2.3".to_owned()));
}

#[test]
fn the_api_away_for_ten_minutes_changes_nothing() {
    let mut roster = cluster();
    let before = (roster.whom_to_dial(s(2)), roster.cut_off());
    // No event, no list; the routers see each other.
    assert_eq!(first_due(&mut roster, "a b c", 2, 602), None);
    assert_eq!((roster.whom_to_dial(s(602)), roster.cut_off()), before);
    roster.listed(nodes("a b c"), s(603)).expect("believed");
    assert_eq!(first_due(&mut roster, "a b c", 604, 1000), None);
}

#[test]
fn the_lowest_of_those_in_reach_goes_first() {
    let mut first = cluster();
    first.listed(nodes("a b"), s(0)).expect("believed");
    let mut second = Roster::new("b".into(), GRACE, first.notes().clone());
    second.listed(nodes("a b"), s(0)).expect("believed");
    let as_b = |peers| View { me: "id-b".into(), ..view(peers) };
    first.looked(view("a b c-"), s(0));
    second.looked(as_b("a b c-"), s(0));
    assert_eq!((first.due(s(60)).len(), second.due(s(60)).len()), (1, 0));
    assert_eq!(second.due(s(65)).len(), 1, "if the first has not done it");
    let mut removed = as_b("a b c-");
    removed.peers[2].owns = false;
    second.looked(removed, s(65));
    assert_eq!(second.due(s(100)), Vec::<String>::new());
    assert_eq!(second.note("id-c"), None, "and nothing of it is kept");
}

#[test]
fn a_router_that_does_not_know_the_address_space_removes_nobody_and_forgets_nothing() {
    let mut roster = cluster();
    roster.listed(nodes("a b"), s(0)).expect("believed");
    let blank = View { ready: false, ..view("a") };
    roster.looked(blank.clone(), s(10));
    roster.looked(blank, s(1000));
    assert_eq!(roster.due(s(1000)), Vec::<String>::new());
    assert!(roster.note("id-c").is_some());
}

#[test]
fn addresses_come_at_once_change_at_once_and_go_after_the_grace() {
    let mut roster = cluster();
    assert_eq!(roster.whom_to_dial(s(0)).expect("known"), ["192.0.2.2", "192.0.2.3"]);
    let mut moved = node("b", "uid-b");
    moved.addresses = vec![[192, 0, 2, 22].into()];
    roster.applied(moved, s(1));
    roster.applied(node("d", "uid-d"), s(1));
    assert_eq!(roster.whom_to_dial(s(1)).expect("known"), ["192.0.2.3", "192.0.2.4", "192.0.2.22"]);
    roster.deleted(&node("c", "uid-c"), s(10));
    assert_eq!(roster.whom_to_dial(s(69)).expect("known"), ["192.0.2.3", "192.0.2.4", "192.0.2.22"]);
    assert_eq!(roster.whom_to_dial(s(70)).expect("known"), ["192.0.2.4", "192.0.2.22"]);
}

#[test]
fn readiness_is_that_most_nodes_which_live_are_in_reach() {
    let mut roster = cluster();
    assert_eq!(roster.cut_off(), None);
    roster.looked(view("a b c-"), s(1));
    assert_eq!(roster.cut_off(), None, "one of two is away: it may be the one that is cut off");
    roster.looked(view("a b- c-"), s(2));
    assert!(roster.cut_off().expect("cut off").contains("b, c"));
    let mut dead = nodes("a b c");
    dead.iter_mut().skip(1).for_each(|node| node.ready = false);
    roster.listed(dead, s(3)).expect("believed");
    assert_eq!(roster.cut_off(), None, "the cluster knows that they are dead");
    roster.looked(View { ready: false, ..view("a") }, s(4));
    assert!(roster.cut_off().is_some());
    let mut lone = Roster::new("a".into(), GRACE, BTreeMap::new());
    lone.looked(view("a"), s(0));
    assert_eq!(lone.cut_off(), None, "a cluster of one node, or one whose API is away");
}
