//! Two ends of a fast path, their kernels and the control protocol between them, in virtual time.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_proto::control::fastpath::{FastPath, FastPathConfig, Kernel, Output, Remote, Why};
use mesh_proto::data::macs::Mac;
use mesh_proto::handover::{PeerPath, Tables};
use mesh_proto::id::{Incarnation, PeerId};

const PORT: u16 = 6784;
const PEERS: [PeerId; 2] = [PeerId([1; 16]), PeerId([2; 16])];
const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

fn v4(end: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, 1 + end as u8])
}

fn v6(end: usize) -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1 + end as u16])
}

/// One end, and what its kernel has been told of the other.
struct End {
    machine: FastPath,
    remote: Option<Remote>,
    sources: Vec<IpAddr>,
    fast: bool,
    owners: BTreeMap<Mac, PeerId>,
    switches: Vec<(u64, bool, Why)>,
}

struct World {
    ends: [Option<End>; 2],
    lives: [u64; 2],
    now: u64,
    /// Whether frames pass between addresses of the family.
    passes: fn(IpAddr, u64) -> bool,
    willing: [bool; 2],
}

impl World {
    fn new() -> Self {
        let mut world = Self { ends: [None, None], lives: [1, 1], now: 0, passes: |_, _| true, willing: [true, true] };
        for end in 0..2 {
            world.start(end);
        }
        world
    }

    fn start(&mut self, end: usize) {
        let config = FastPathConfig { me: PEERS[end], port: PORT, mtu: 1400 };
        let seed = [self.lives[end] as u8 + 10 * end as u8; 32];
        let machine = FastPath::new(config, seed, Duration::from_millis(self.now));
        let (remote, sources, owners) = (None, Vec::new(), BTreeMap::new());
        self.ends[end] = Some(End { machine, remote, sources, fast: false, owners, switches: Vec::new() });
    }

    /// Both ends get tables in which they are linked at these addresses.
    fn link(&mut self, address: Option<fn(usize) -> IpAddr>) {
        let now = Duration::from_millis(self.now);
        for (end, me) in PEERS.into_iter().enumerate() {
            let (other, willing) = (1 - end, self.willing[end]);
            let direct = address.map(|address| SocketAddr::from((address(other), 6783)));
            let path = PeerPath { incarnation: Incarnation(self.lives[other]), direct, relays: Vec::new() };
            let tables = Tables {
                me,
                incarnation: Incarnation(self.lives[end]),
                peers: BTreeMap::from([(PEERS[other], path)]),
                trees: BTreeMap::new(),
            };
            if let Some(end) = &mut self.ends[end] {
                end.machine.set_tables(&tables, |_| willing, now);
            }
        }
        self.drain();
    }

    fn drain(&mut self) {
        let now = Duration::from_millis(self.now);
        for _ in 0..100 {
            let mut quiet = true;
            for at in 0..2 {
                while let Some(output) = self.ends[at].as_mut().and_then(|end| end.machine.poll_output()) {
                    quiet = false;
                    self.carry_out(at, output, now);
                }
            }
            if quiet {
                return;
            }
        }
        panic!("the ends never come to rest");
    }

    fn carry_out(&mut self, at: usize, output: Output, now: Duration) {
        let [first, second] = &mut self.ends;
        let (this, other) = if at == 0 { (first, second) } else { (second, first) };
        let Some(this) = this else { return };
        match output {
            Output::Send(_, bytes) => {
                if let Some(other) = other {
                    other.machine.handle_message(PEERS[at], &bytes, now);
                }
            }
            Output::Frame(frame) => {
                // Past the guard of the other end.
                let (Some(to), Some(other)) = (this.remote, other) else { return };
                let from = if to.ip.is_ipv4() { v4(at) } else { v6(at) };
                if (self.passes)(to.ip, self.now) && other.sources.contains(&from) {
                    other.machine.handle_probe(&frame, now);
                }
            }
            Output::Kernel(Kernel::Peer(_, remote)) => {
                this.remote = remote;
                this.sources = remote.into_iter().map(|remote| remote.ip).collect();
            }
            Output::Kernel(Kernel::Source(_, ip)) => this.sources.push(ip),
            Output::Kernel(Kernel::Carrier(_, fast)) => this.fast = fast,
            Output::Kernel(Kernel::Owner(mac, Some(owner))) => _ = this.owners.insert(mac, owner),
            Output::Kernel(Kernel::Owner(mac, None)) => _ = this.owners.remove(&mac),
            Output::Kernel(Kernel::Live(..)) | Output::Learn(..) => {}
            Output::Switched { fast, why, .. } => this.switches.push((self.now, fast, why)),
        }
    }

    fn run(&mut self, until: u64) {
        while self.now < until {
            self.now += 1;
            let now = Duration::from_millis(self.now);
            for end in self.ends.iter_mut().flatten() {
                if end.machine.poll_timeout().is_some_and(|(at, _)| at <= now) {
                    end.machine.handle_timeout(now);
                }
            }
            self.drain();
        }
    }

    fn local(&mut self, end: usize, mac: Mac) {
        self.set_local(end, mac, true);
    }

    fn set_local(&mut self, end: usize, mac: Mac, present: bool) {
        let now = Duration::from_millis(self.now);
        self.end(end).machine.set_local(mac, present, now);
        self.drain();
    }

    fn end(&mut self, end: usize) -> &mut End {
        self.ends[end].as_mut().expect("it runs")
    }

    fn fast(&mut self) -> [bool; 2] {
        [0, 1].map(|at| self.end(at).fast)
    }
}

#[test]
fn two_ends_that_want_it_are_promoted_and_know_each_others_addresses() {
    let mut world = World::new();
    world.local(1, MAC);
    world.link(Some(v4));
    world.run(3_000);
    assert_eq!(world.fast(), [true, true]);
    assert_eq!(world.end(0).owners, BTreeMap::from([(MAC, PEERS[1])]));
    assert_eq!(world.end(0).remote, Some(Remote { ip: v4(1), port: PORT }));
}

#[test]
fn one_end_that_does_not_want_it_is_enough() {
    for unwilling in 0..2 {
        let mut world = World::new();
        world.willing[unwilling] = false;
        world.link(Some(v4));
        world.run(20_000);
        assert_eq!(world.fast(), [false, false]);
        assert_eq!([0, 1].map(|at| world.end(at).remote), [None, None], "no frame of anybody's is taken");
    }
}

#[test]
fn a_link_that_moves_leaves_what_works_and_finds_the_new_way_when_it_does_not() {
    let mut world = World::new();
    world.passes = |to, now| to.is_ipv6() || now < 20_000;
    world.link(Some(v4));
    world.run(5_000);
    world.link(None);
    world.link(Some(v6));
    world.run(20_000);
    assert_eq!(world.end(0).switches.len(), 1, "the old way still answers");
    world.run(40_000);
    assert_eq!(world.fast(), [true, true]);
    assert_eq!(world.end(0).remote, Some(Remote { ip: v6(1), port: PORT }));
    let [_, (down, false, Why::NoEcho), (up, true, _)] = world.end(0).switches[..] else {
        panic!("{:?}", world.end(0).switches)
    };
    assert!(down <= 22_000 && up <= down + 10_000, "left at {down}, found at {up}");
}

#[test]
fn a_peer_that_starts_again_keeps_the_fast_path() {
    let mut world = World::new();
    world.link(Some(v4));
    world.run(5_000);
    world.ends[1] = None;
    world.run(20_000);
    assert!(world.end(0).fast, "a router that is away is no reason to leave it");
    world.lives[1] = 2;
    world.start(1);
    world.link(Some(v4));
    world.run(40_000);
    assert_eq!(world.fast(), [true, true]);
    assert_eq!(world.end(0).switches.len(), 1, "{:?}", world.ends[0].as_ref().map(|end| &end.switches));
}

#[test]
fn ends_that_choose_different_families_hear_each_other() {
    let mut world = World::new();
    world.link(Some(v4));
    world.run(5_000);
    // The other one starts again, and knows of the second link only that there was a first.
    world.lives[1] = 2;
    world.start(1);
    world.link(Some(v4));
    world.link(Some(v6));
    world.run(20_000);
    assert_eq!(world.fast(), [true, true]);
    let remotes = [0, 1].map(|at| world.end(at).remote.map(|remote| remote.ip));
    assert_eq!(remotes, [Some(v4(1)), Some(v6(0))]);
    assert_eq!(world.end(0).switches.len(), 1, "{:?}", world.ends[0].as_ref().map(|end| &end.switches));
}

#[test]
fn a_peer_that_starts_again_without_a_fast_path_is_left_within_four_seconds() {
    let mut world = World::new();
    world.local(1, MAC);
    world.link(Some(v4));
    world.run(5_000);
    // It runs, and is linked, but answers none of this.
    world.ends[1] = None;
    world.lives[1] = 2;
    world.link(Some(v4));
    world.run(9_000);
    assert_eq!(world.end(0).switches.last(), Some(&(8_000, false, Why::NoOffer)));
    assert_eq!((world.end(0).remote, world.end(0).owners.len()), (None, 0), "its addresses are free");
}

#[test]
fn an_address_here_is_not_lost_to_a_peer_that_claims_it() {
    let mut world = World::new();
    world.local(0, MAC);
    world.link(Some(v4));
    world.run(3_000);
    world.local(1, MAC);
    world.run(6_000);
    assert_eq!(world.end(0).owners, BTreeMap::new(), "no entry sends it away");
    assert_eq!(world.end(1).owners, BTreeMap::from([(MAC, PEERS[0])]), "the first to claim it has it");
    assert!(world.end(0).machine.claims_refused() > 0);
}

#[test]
fn an_address_that_moves_is_followed_whether_it_is_seen_to_come_or_to_go_first() {
    for goes_first in [true, false] {
        let mut world = World::new();
        world.local(1, MAC);
        world.link(Some(v4));
        world.run(3_000);
        for present in if goes_first { [false, true] } else { [true, false] } {
            world.set_local(if present { 0 } else { 1 }, MAC, present);
            world.run(world.now + 500);
        }
        assert_eq!(world.end(0).owners, BTreeMap::new(), "it is here");
        assert_eq!(world.end(1).owners, BTreeMap::from([(MAC, PEERS[0])]));
        assert_eq!(world.fast(), [true, true]);
    }
}

#[test]
fn a_peer_that_is_shut_out_is_sent_nothing_and_heard_no_more_though_it_answers() {
    let mut world = World::new();
    world.local(1, MAC);
    world.link(Some(v4));
    world.run(5_000);
    assert_eq!(world.fast(), [true, true]);
    world.end(0).machine.forget(PEERS[1], Duration::from_millis(5_000));
    world.drain();
    let end = world.end(0);
    assert_eq!((end.fast, end.remote, &end.sources[..], end.owners.len()), (false, None, &[][..], 0));
    // It goes on to probe and to tell.
    world.local(1, Mac([2, 0, 0, 0, 0, 8]));
    world.run(20_000);
    let end = world.end(0);
    assert_eq!((end.fast, end.remote, end.owners.len()), (false, None, 0));
}
