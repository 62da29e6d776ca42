//! Two ends of a fast path, their kernels and the control protocol between them, in virtual time.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_proto::control::fastpath::{FastPath, FastPathConfig, Kernel, Output, Remote, Tunnel, Way, Why};
use mesh_proto::control::terms::Terms;
use mesh_proto::data::macs::Mac;
use mesh_proto::handover::{PeerPath, Tables};
use mesh_proto::id::{Incarnation, PeerId};
use mesh_proto::wire::fastpath::{Message, Seal, Table, sealed_address};

const PORT: u16 = 6784;
const PEERS: [PeerId; 2] = [PeerId([1; 16]), PeerId([2; 16])];
const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

fn v4(end: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, 1 + end as u8])
}

fn v6(end: usize) -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1 + end as u16])
}

/// The way to an address in the clear.
fn plain(ip: IpAddr) -> Way {
    Remote { ip, port: PORT }.into()
}

/// The sealed way to an end that is at an address.
fn sealed(end: usize, key: u8, ip: IpAddr) -> Way {
    let tunnel = Tunnel { key: [key; 32], endpoint: SocketAddr::from((ip, PORT + 1)) };
    Way { remote: Remote { ip: sealed_address(PEERS[end]).into(), port: PORT }, tunnel: Some(tunnel) }
}

/// One end, and what its kernel has been told of the other.
struct End {
    machine: FastPath,
    way: Option<Way>,
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
    wanted: [Terms; 2],
    /// Key of each end's WireGuard, while it has it.
    seals: [Option<Seal>; 2],
}

impl World {
    fn new() -> Self {
        let (wanted, seals) = ([Terms::PLAIN; 2], [None; 2]);
        let mut world = Self { ends: [None, None], lives: [1, 1], now: 0, passes: |_, _| true, wanted, seals };
        for end in 0..2 {
            world.start(end);
        }
        world
    }

    fn start(&mut self, end: usize) {
        let config = FastPathConfig { me: PEERS[end], port: PORT, mtu: 1400 };
        let seed = [self.lives[end] as u8 + 10 * end as u8; 32];
        let machine = FastPath::new(config, seed, Duration::from_millis(self.now));
        let (way, sources, owners) = (None, Vec::new(), BTreeMap::new());
        self.ends[end] = Some(End { machine, way, sources, fast: false, owners, switches: Vec::new() });
    }

    /// Both ends get tables in which they are linked at these addresses.
    fn link(&mut self, address: Option<fn(usize) -> IpAddr>) {
        let now = Duration::from_millis(self.now);
        for (end, me) in PEERS.into_iter().enumerate() {
            let (other, wanted) = (1 - end, self.wanted[end]);
            let direct = address.map(|address| SocketAddr::from((address(other), 6783)));
            let path = PeerPath { incarnation: Incarnation(self.lives[other]), direct, relays: Vec::new() };
            let tables = Tables {
                me,
                incarnation: Incarnation(self.lives[end]),
                peers: BTreeMap::from([(PEERS[other], path)]),
                trees: BTreeMap::new(),
            };
            if let Some(end) = &mut self.ends[end] {
                end.machine.set_tables(&tables, |_| wanted, now);
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
                let (Some(to), Some(other)) = (this.way, other) else { return };
                // WireGuard takes what the two have keys for, of each other.
                let key = |way: Option<Way>| way.and_then(|way| way.tunnel).map(|tunnel| tunnel.key);
                let known = |end: usize, way| key(way) == self.seals[1 - end].map(|seal| seal.key);
                let from = match to.tunnel {
                    Some(_) if known(at, this.way) && known(1 - at, other.way) => sealed_address(PEERS[at]).into(),
                    Some(_) => return,
                    None if to.remote.ip.is_ipv4() => v4(at),
                    None => v6(at),
                };
                let underlay = to.tunnel.map_or(to.remote.ip, |tunnel| tunnel.endpoint.ip());
                if (self.passes)(underlay, self.now) && other.sources.contains(&from) {
                    other.machine.handle_probe(&frame, now);
                }
            }
            Output::Kernel(Kernel::Peer(_, way)) => {
                this.way = way;
                this.sources = way.into_iter().map(|way| way.remote.ip).collect();
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

    /// The kernel of an end gets WireGuard with that key, or loses it.
    fn set_seal(&mut self, end: usize, key: Option<u8>) {
        let now = Duration::from_millis(self.now);
        self.seals[end] = key.map(|key| Seal { key: [key; 32], port: PORT + 1 });
        let seal = self.seals[end];
        self.end(end).machine.set_seal(seal, now);
        self.drain();
    }

    /// Both ends have WireGuard, and a secret.
    fn with_seals() -> Self {
        let mut world = Self::new();
        world.wanted = [Terms::SEALED; 2];
        world.set_seal(0, Some(10));
        world.set_seal(1, Some(11));
        world
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
    assert_eq!(world.end(0).way, Some(plain(v4(1))));
}

#[test]
fn one_end_that_does_not_want_it_is_enough() {
    for unwilling in 0..2 {
        let mut world = World::new();
        world.wanted[unwilling] = Terms::NONE;
        world.link(Some(v4));
        world.run(20_000);
        assert_eq!(world.fast(), [false, false]);
        assert_eq!([0, 1].map(|at| world.end(at).way), [None, None], "no frame of anybody's is taken");
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
    assert_eq!(world.end(0).way, Some(plain(v6(1))));
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
    let remotes = [0, 1].map(|at| world.end(at).way.map(|way| way.remote.ip));
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
    assert_eq!((world.end(0).way, world.end(0).owners.len()), (None, 0), "its addresses are free");
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
    assert_eq!((end.fast, end.way, &end.sources[..], end.owners.len()), (false, None, &[][..], 0));
    // It goes on to probe and to tell.
    world.local(1, Mac([2, 0, 0, 0, 0, 8]));
    world.run(20_000);
    let end = world.end(0);
    assert_eq!((end.fast, end.way, end.owners.len()), (false, None, 0));
}

#[test]
fn two_ends_with_wireguard_are_promoted_to_the_sealed_way() {
    let mut world = World::with_seals();
    world.local(1, MAC);
    world.link(Some(v4));
    world.run(3_000);
    assert_eq!(world.fast(), [true, true]);
    assert_eq!([0, 1].map(|at| world.end(at).way), [Some(sealed(1, 11, v4(1))), Some(sealed(0, 10, v4(0)))]);
    assert!(world.end(0).machine.views().all(|view| view.fast && view.sealed));
    // What works goes on where the link moves: WireGuard follows by itself.
    world.link(Some(v6));
    world.run(20_000);
    assert_eq!(world.end(0).switches.len(), 1);
    assert_eq!(world.end(0).sources, [IpAddr::from(sealed_address(PEERS[1]))], "and nothing comes by the underlay");
}

#[test]
fn without_wireguard_at_either_end_there_is_no_way_and_never_one_in_the_clear() {
    for lost in 0..2 {
        let mut world = World::with_seals();
        world.link(Some(v4));
        world.run(3_000);
        world.set_seal(lost, None);
        assert_eq!(world.fast(), [false, false], "at once, on both ends");
        assert_eq!([0, 1].map(|at| world.end(at).way), [None, None]);
        let whys = [0, 1].map(|at| world.end(at).machine.views().map(|view| view.why).collect::<Vec<_>>());
        assert_eq!([&whys[lost][..], &whys[1 - lost][..]], [&[Why::NoSeal][..], &[Why::TheirPolicy][..]]);
        world.run(20_000);
        assert_eq!([0, 1].map(|at| world.end(at).way), [None, None]);
        world.set_seal(lost, Some(12));
        world.run(23_000);
        assert_eq!(world.fast(), [true, true], "with a new key");
        assert_eq!(world.end(1 - lost).way, Some(sealed(lost, 12, v4(lost))));
    }
}

#[test]
fn an_end_with_another_key_is_proven_anew() {
    let mut world = World::with_seals();
    world.link(Some(v4));
    world.run(3_000);
    world.set_seal(1, Some(12));
    assert_eq!(world.fast(), [false, false], "what is sealed for the old key opens no more");
    world.run(6_000);
    assert_eq!(world.fast(), [true, true]);
    assert_eq!(world.end(0).way, Some(sealed(1, 12, v4(1))));
}

#[test]
fn a_peer_that_starts_again_with_its_wireguard_keeps_the_sealed_way() {
    let mut world = World::with_seals();
    world.link(Some(v4));
    world.run(5_000);
    world.ends[1] = None;
    world.run(20_000);
    world.lives[1] = 2;
    world.start(1);
    world.set_seal(1, Some(11));
    world.link(Some(v4));
    world.run(40_000);
    assert_eq!(world.fast(), [true, true]);
    assert_eq!(world.end(0).switches.len(), 1, "{:?}", world.ends[0].as_ref().map(|end| &end.switches));
}

#[test]
fn in_the_clear_only_where_both_ends_trust_the_subnet() {
    let both = Terms { plain: true, sealed: true };
    for (wanted, ways) in [
        ([both, both], [Some(plain(v4(1))), Some(plain(v4(0)))]),
        ([both, Terms::SEALED], [Some(sealed(1, 11, v4(1))), Some(sealed(0, 10, v4(0)))]),
        ([both, Terms::PLAIN], [Some(plain(v4(1))), Some(plain(v4(0)))]),
        ([Terms::SEALED, Terms::PLAIN], [None, None]),
    ] {
        let mut world = World::with_seals();
        world.wanted = wanted;
        world.link(Some(v4));
        world.run(5_000);
        assert_eq!([0, 1].map(|at| world.end(at).way), ways, "{wanted:?}");
        assert_eq!(world.fast(), ways.map(|way| way.is_some()), "{wanted:?}");
    }
}

#[test]
fn a_key_is_of_the_peer_that_said_it_first() {
    let now = Duration::from_secs(1);
    let (me, peers) = (PeerId([9; 16]), [PEERS[0], PEERS[1]]);
    let mut machine = FastPath::new(FastPathConfig { me, port: PORT, mtu: 1350 }, [7; 32], now);
    machine.set_seal(Some(Seal { key: [9; 32], port: PORT + 1 }), now);
    let path = |end: usize| {
        let direct = Some(SocketAddr::from((v4(end), 6783)));
        (peers[end], PeerPath { incarnation: Incarnation(1), direct, relays: Vec::new() })
    };
    let tables =
        Tables { me, incarnation: Incarnation(1), peers: BTreeMap::from([path(0), path(1)]), trees: BTreeMap::new() };
    machine.set_tables(&tables, |_| Terms::SEALED, now);
    let mut says = |peer: PeerId, key: u8| {
        let seal = Some(Seal { key: [key; 32], port: PORT + 1 });
        let table = Table { port: PORT, willing: false, number: 1, macs: Vec::new(), seal };
        machine.handle_message(peer, &Message::Table(table).encode(), now);
        let outputs = std::iter::from_fn(|| machine.poll_output());
        let ways = outputs.filter_map(|output| match output {
            Output::Kernel(Kernel::Peer(of, Some(way))) if of == peer => way.tunnel.map(|tunnel| tunnel.key),
            _ => None,
        });
        ways.last()
    };
    assert_eq!(says(peers[0], 3), Some([3; 32]));
    for key in [3, 9, 0] {
        assert_eq!(says(peers[1], key), None, "it is the other peer's, ours, or nobody's: {key}");
    }
    assert_eq!(says(peers[1], 4), Some([4; 32]));
}
