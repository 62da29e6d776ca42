//! Names among several peers: what one says, all that can reach it know, whatever gets lost.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::control::names::{Found, Names, Output};
use mesh_proto::id::{Incarnation, PeerId};
use mesh_proto::wire::names::{Message, Name, Row, Table};
use mesh_proto::wire::services::NameRecords;
use proptest::prelude::*;

fn id(number: usize) -> PeerId {
    PeerId([number as u8 + 1; 16])
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 32, 0, last])
}

fn named(list: &[(&str, u8)]) -> BTreeMap<Name, NameRecords> {
    list.iter().map(|&(text, last)| (name(text), NameRecords::new([address(last)], []))).collect()
}

/// Peers and the messages between them, each delivered after 1 ms unless it is lost.
struct Net {
    now: Duration,
    peers: Vec<Names>,
    lives: Vec<u64>,
    /// Pairs that cannot reach each other.
    cut: BTreeSet<(usize, usize)>,
    /// Of so many messages one is lost; 0: none.
    loss: u64,
    dice: u64,
    under_way: Vec<(usize, usize, u64, Vec<u8>)>,
    sent: usize,
}

impl Net {
    fn new(count: usize) -> Self {
        let now = Duration::from_secs(1);
        let new = |number| Names::new(id(number), Incarnation(1), [number as u8; 32], now);
        let mut net = Self {
            now,
            peers: (0..count).map(new).collect(),
            lives: vec![1; count],
            cut: BTreeSet::new(),
            loss: 0,
            dice: 1,
            under_way: Vec::new(),
            sent: 0,
        };
        net.reach();
        net.run(Duration::from_millis(10));
        net
    }

    fn chance(&mut self) -> bool {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.loss > 0 && self.dice.is_multiple_of(self.loss)
    }

    fn together(&self, a: usize, b: usize) -> bool {
        !self.cut.contains(&(a.min(b), a.max(b)))
    }

    /// Tells everybody whom it can reach.
    fn reach(&mut self) {
        for one in 0..self.peers.len() {
            let others = (0..self.peers.len()).filter(|&other| other != one && self.together(one, other));
            let list: Vec<_> = others.map(|other| (id(other), Incarnation(self.lives[other]))).collect();
            self.peers[one].handle_peers(&list, self.now);
            self.collect(one);
        }
    }

    fn cut(&mut self, a: usize, b: usize) {
        self.cut.insert((a.min(b), a.max(b)));
        self.reach();
    }

    fn heal(&mut self) {
        self.cut.clear();
        self.reach();
    }

    fn set(&mut self, peer: usize, names: &[(&str, u8)]) {
        self.peers[peer].set_own(&named(names));
        self.collect(peer);
    }

    fn restart(&mut self, peer: usize) {
        self.lives[peer] += 1;
        let life = Incarnation(self.lives[peer]);
        self.peers[peer] = Names::new(id(peer), life, [peer as u8; 32], self.now);
        self.reach();
    }

    fn collect(&mut self, from: usize) {
        while let Some(output) = self.peers[from].poll_output() {
            let (to, bytes): (Vec<usize>, _) = match output {
                Output::Send(to, bytes) => ((0..self.peers.len()).filter(|&n| id(n) == to).collect(), bytes),
                Output::Broadcast(bytes) => ((0..self.peers.len()).filter(|&n| n != from).collect(), bytes),
            };
            for to in to {
                self.sent += 1;
                if self.together(from, to) && !self.chance() {
                    self.under_way.push((from, to, self.lives[from], bytes.clone()));
                }
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let due = self.peers.iter().filter_map(Names::poll_timeout).map(|(at, _)| at).min();
            let next = if self.under_way.is_empty() { due.unwrap_or(end).min(end) } else { self.now };
            self.now = next.max(self.now + Duration::from_millis(1));
            for (from, to, life, bytes) in core::mem::take(&mut self.under_way) {
                self.peers[to].handle_message(id(from), Incarnation(life), &bytes, self.now);
                self.collect(to);
            }
            for peer in 0..self.peers.len() {
                if self.peers[peer].poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                    self.peers[peer].handle_timeout(self.now);
                    self.collect(peer);
                }
            }
        }
    }

    fn found(&self, peer: usize, text: &str) -> Vec<IpAddr> {
        match self.peers[peer].lookup(&name(text)) {
            Found::Addresses(list) => list,
            Found::Above | Found::Nothing => Vec::new(),
        }
    }
}

#[test]
fn what_one_says_all_know_after_one_message_and_a_name_of_several_has_all_their_addresses() {
    let mut net = Net::new(3);
    net.set(0, &[("web", 1), ("db.prod", 9)]);
    net.set(1, &[("web", 2)]);
    net.run(Duration::from_millis(2));
    for peer in 0..3 {
        assert_eq!(net.found(peer, "web"), [address(1), address(2)]);
        assert_eq!(net.peers[peer].lookup(&name("prod")), Found::Above);
        assert_eq!(net.peers[peer].lookup(&name("pro")), Found::Nothing);
        assert_eq!(net.peers[peer].reverse(address(9)), [name("db.prod")]);
    }
    net.set(0, &[("db.prod", 9)]);
    net.run(Duration::from_millis(2));
    for peer in 0..3 {
        assert_eq!(net.found(peer, "web"), [address(2)]);
        assert!(net.peers[peer].reverse(address(1)).is_empty());
    }
    assert_eq!(net.peers[2].list().len(), 2);
}

#[test]
fn services_are_those_of_peers_that_can_be_reached_as_these_say_now() {
    let mut net = Net::new(3);
    let said = |net: &mut Net, peer: usize, last: u8, service: &str| {
        let services = [(service.parse().expect("a service"), address(last))];
        net.peers[peer].set_own(&BTreeMap::from([(name("web"), NameRecords::new([address(last)], services))]));
        net.collect(peer);
        net.run(Duration::from_millis(2));
    };
    let found = |net: &Net, peer: usize| -> Vec<String> {
        let services = net.peers[peer].services(&name("web"));
        services.iter().map(|(service, at)| format!("{service} {at}")).collect()
    };
    said(&mut net, 0, 1, "http=80");
    said(&mut net, 1, 2, "http=8080");
    for peer in 0..3 {
        assert_eq!(found(&net, peer), ["http=80/tcp 10.32.0.1", "http=8080/tcp 10.32.0.2"]);
    }
    net.cut(0, 2);
    assert_eq!(found(&net, 2), ["http=8080/tcp 10.32.0.2"]);
    // The same address at another port, of which the third hears when it can again.
    said(&mut net, 0, 1, "http=81");
    assert_eq!(found(&net, 1), ["http=81/tcp 10.32.0.1", "http=8080/tcp 10.32.0.2"]);
    net.heal();
    net.run(Duration::from_millis(5));
    assert_eq!(found(&net, 2), ["http=81/tcp 10.32.0.1", "http=8080/tcp 10.32.0.2"]);
    assert!(net.peers[2].services(&name("none")).is_empty());
}

#[test]
fn who_cannot_be_reached_is_left_out_at_once_and_comes_back_with_what_it_says_then() {
    let mut net = Net::new(3);
    net.set(0, &[("web", 1), ("old", 5)]);
    net.set(1, &[("web", 2)]);
    net.run(Duration::from_millis(2));
    net.cut(0, 2);
    assert_eq!(net.found(2, "web"), [address(2)]);
    assert!(net.found(2, "old").is_empty());
    assert!(net.peers[2].reverse(address(5)).is_empty());
    assert!(net.peers[2].list().iter().any(|listed| listed.name == name("old") && !listed.served));
    net.set(0, &[("web", 1), ("new", 6)]);
    net.run(Duration::from_secs(5));
    net.heal();
    // Not what it said before, until it has said what is true now.
    assert!(net.found(2, "old").is_empty());
    net.run(Duration::from_millis(5));
    assert_eq!(net.found(2, "web"), [address(1), address(2)]);
    assert_eq!(net.found(2, "new"), [address(6)]);
    assert!(net.found(2, "old").is_empty());
}

#[test]
fn a_new_life_begins_without_a_name_and_an_old_word_of_an_earlier_one_is_not_heard() {
    let mut net = Net::new(2);
    net.set(0, &[("web", 1)]);
    let late = net.under_way.clone();
    net.run(Duration::from_millis(2));
    assert_eq!(net.found(1, "web"), [address(1)]);
    net.restart(0);
    assert!(net.found(1, "web").is_empty());
    net.run(Duration::from_secs(1));
    net.under_way.extend(late);
    net.run(Duration::from_secs(1));
    assert!(net.found(1, "web").is_empty());
    net.set(0, &[("web", 2)]);
    net.run(Duration::from_millis(2));
    assert_eq!(net.found(1, "web"), [address(2)]);
}

#[test]
fn a_peer_that_is_forgotten_takes_its_names_with_it() {
    let mut net = Net::new(2);
    net.set(0, &[("web", 1)]);
    net.run(Duration::from_millis(2));
    let now = net.now;
    net.peers[1].forget(id(0), now);
    assert!(net.peers[1].list().is_empty() && net.found(1, "web").is_empty());
    // It is let in again.
    net.run(Duration::from_secs(2));
    assert_eq!(net.found(1, "web"), [address(1)]);
}

#[test]
fn nobody_speaks_for_another() {
    let mut net = Net::new(3);
    net.set(0, &[("web", 1)]);
    net.run(Duration::from_millis(2));
    // Peer 2 says that peer 0 has newer names: peer 0 is asked, and nothing changes.
    let row = Row { peer: id(0), incarnation: 1, version: 7, sum: 9 };
    let lie = Message::Table(Table::of(false, &[row])).encode();
    net.peers[1].handle_message(id(2), Incarnation(1), &lie, net.now);
    let asked = net.peers[1].poll_output();
    assert!(matches!(&asked, Some(Output::Send(to, _)) if *to == id(0)), "{asked:?}");
    net.run(Duration::from_secs(40));
    assert_eq!(net.found(1, "web"), [address(1)]);
}

#[test]
fn a_message_that_was_lost_is_repaired_by_the_next_one_and_by_comparing() {
    let mut net = Net::new(4);
    net.set(0, &[("a", 1)]);
    net.under_way.clear();
    net.set(0, &[("a", 1), ("b", 2)]);
    net.run(Duration::from_millis(200));
    for peer in 1..4 {
        assert_eq!(net.found(peer, "a"), [address(1)], "asked for what was missing before the second");
    }
    net.set(0, &[]);
    net.under_way.clear();
    net.run(Duration::from_secs(40));
    for peer in 1..4 {
        assert!(net.found(peer, "a").is_empty(), "peer {peer} compared");
    }
}

#[test]
fn without_names_peers_ask_each_other_once_and_are_silent_then() {
    let mut net = Net::new(5);
    // One question and one answer in each direction.
    assert_eq!(net.sent, 5 * 4 * 2);
    net.run(Duration::from_secs(60));
    assert_eq!(net.sent, 5 * 4 * 2);
    net.set(0, &[("web", 1)]);
    net.run(Duration::from_millis(10));
    net.sent = 0;
    net.run(Duration::from_secs(60));
    assert!(net.sent <= 5 * 9, "{} messages of peers that agree in a minute", net.sent);
}

#[derive(Debug, Clone)]
enum Step {
    Set(usize, Vec<(u8, u8)>),
    Cut(usize, usize),
    Heal,
    Restart(usize),
    Run(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let names = proptest::collection::vec((0..4u8, 1..4u8), 0..4);
    prop_oneof![
        4 => (0..4usize, names).prop_map(|(peer, names)| Step::Set(peer, names)),
        1 => (0..4usize, 1..4usize).prop_map(|(a, other)| Step::Cut(a, (a + other) % 4)),
        1 => Just(Step::Heal),
        1 => (0..4usize).prop_map(Step::Restart),
        3 => (1..3000u16).prop_map(Step::Run),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_lost_all_agree_with_what_each_says_in_the_end(
        steps in proptest::collection::vec(step(), 1..25), loss in 2..6u64, seed in 1..u64::MAX,
    ) {
        let mut net = Net::new(4);
        (net.loss, net.dice) = (loss, seed);
        let mut truth: Vec<BTreeMap<String, u8>> = vec![BTreeMap::new(); 4];
        for step in steps {
            match step {
                Step::Set(peer, names) => {
                    truth[peer] = names.iter().map(|(name, last)| (format!("n{name}"), 10 * *last + peer as u8)).collect();
                    let list: Vec<_> = truth[peer].iter().map(|(name, last)| (name.as_str(), *last)).collect();
                    net.set(peer, &list);
                }
                Step::Cut(a, b) => net.cut(a, b),
                Step::Heal => net.heal(),
                Step::Restart(peer) => {
                    truth[peer].clear();
                    net.restart(peer);
                }
                Step::Run(ms) => net.run(Duration::from_millis(ms.into())),
            }
        }
        net.heal();
        net.loss = 0;
        net.run(Duration::from_secs(300));
        for number in 0..4 {
            let text = format!("n{number}");
            let mut all: Vec<IpAddr> = truth.iter().filter_map(|names| names.get(&text)).map(|last| address(*last)).collect();
            all.sort_unstable();
            for peer in 0..4 {
                prop_assert_eq!(net.found(peer, &text), all.clone(), "{} at peer {}", text, peer);
            }
        }
    }
}
