//! What addresses cost: given with durability on, blocks from another peer, the state of a large
//! network, and rest.
//!
//! `cargo bench -p integration --bench addresses`

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use ipam::allocator::{Allocator, Birth, Config, PeerKey};
use ipam::{Output, RequestId, Ticket};
use ipnet::IpNet;
use tokio::sync::mpsc;
use weft::control::store::{self, Done, Edit, Store, Stored, Table};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Peer(u16);

impl PeerKey for Peer {
    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&self.0.to_be_bytes());
        bytes
    }
    fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u16::from_be_bytes([bytes[0], bytes[1]]))
    }
}

fn range() -> IpNet {
    "10.32.0.0/12".parse().expect("a range")
}

fn seed(number: u16) -> [u8; 32] {
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&number.to_be_bytes());
    seed
}

fn main() -> io::Result<()> {
    let mut out = io::stdout().lock();
    for waiting in [1, 64] {
        let (rate, times) = given_durably(waiting);
        let [half, most] = [50, 99].map(|percent| quantile(&times, percent));
        writeln!(out, "addresses given durably, {waiting} asked for at once: {rate:.0}/s, p50 {half:?}, p99 {most:?}")?;
    }
    let (times, longest) = first_address();
    let [half, most] = [50, 99].map(|percent| quantile(&times, percent));
    writeln!(
        out,
        "first address of a newcomer, without delay of network and disk: p50 {half:?}, p99 {most:?}, waits {longest:?}"
    )?;
    let times = space_request();
    let [half, most] = [50, 99].map(|percent| quantile(&times, percent));
    writeln!(
        out,
        "address of a block that another peer has to give first, with real disks: p50 {half:?}, p99 {most:?}"
    )?;
    let (runs, again, count) = scattered_state();
    writeln!(
        out,
        "state of 1000 peers x 100 runs of blocks ({count} runs): merged in {runs:?}, once more in {again:?}"
    )?;
    let (runs, again, bytes) = large_state();
    writeln!(
        out,
        "state of 1000 peers x 64 ranges ({bytes} bytes): taken over in {runs:?}, merged once more in {again:?}"
    )?;
    for peers in [5, 50] {
        writeln!(out, "at rest, {peers} peers: {:.1} bytes/s sent by each", rest(peers))?;
    }
    Ok(())
}

fn quantile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() * percent / 100).copied().unwrap_or_default()
}

/// One peer and its real store, so many requests under way at a time.
fn given_durably(waiting: usize) -> (f64, Vec<Duration>) {
    const COUNT: u64 = 4000;
    let directory = tempfile::tempdir().expect("a directory");
    let opened = store::open(directory.path()).expect("a store");
    let (store, mut stored) = Store::start(opened.file).expect("a store");
    let config = Config::new(Peer(1), 1, vec![range()], 0);
    let start = Instant::now();
    let mut allocator = Allocator::new(config, Vec::new(), seed(1), Duration::ZERO).expect("an empty state");
    let (mut asked, mut answered) = (0, 0);
    let mut begun = VecDeque::new();
    let mut times = Vec::new();
    while answered < COUNT {
        while asked < COUNT && begun.len() < waiting {
            begun.push_back(Instant::now());
            allocator.allocate(RequestId(asked), &format!("container-{asked}"), range(), start.elapsed());
            asked += 1;
        }
        while let Some(output) = allocator.poll_output() {
            match output {
                Output::Store { ticket, changes } => write(&store, ticket, changes),
                Output::Reply { result, .. } => {
                    result.expect("there is room");
                    answered += 1;
                    times.extend(begun.pop_front().map(|at| at.elapsed()));
                }
                Output::Send { .. } | Output::Broadcast { .. } | Output::Notice(_) | Output::Fences(_) => {}
            }
        }
        if answered < COUNT && begun.len() >= waiting.min((COUNT - answered) as usize) {
            wait(&mut stored, &mut allocator, start);
        }
    }
    (COUNT as f64 / start.elapsed().as_secs_f64(), times)
}

fn write(store: &Store, ticket: Ticket, changes: Vec<ipam::Change>) {
    let edits = changes.into_iter().map(|it| Edit { table: Table::Ipam, key: it.key, value: it.value });
    store.write(edits.collect(), Done::Ipam(ticket)).expect("taken");
}

fn wait(stored: &mut mpsc::Receiver<Stored>, allocator: &mut Allocator<Peer>, start: Instant) {
    if let Some(done) = stored.blocking_recv() {
        allocator.handle_stored(done.ticket, done.result, start.elapsed());
    }
}

/// Peers whose messages arrive at once and whose disks are quick.
struct World {
    now: Duration,
    peers: Vec<Allocator<Peer>>,
    sent: usize,
    answers: usize,
}

impl World {
    /// So many peers, each of which joins those before it.
    fn new(count: u16) -> Self {
        let mut world = Self { now: Duration::ZERO, peers: Vec::new(), sent: 0, answers: 0 };
        for number in 1..=count {
            world.add(number);
            world.connect();
        }
        world
    }

    /// A peer that reaches nobody yet.
    fn add(&mut self, number: u16) {
        let named = usize::from(number > 1);
        let config = Config {
            dead_after: Some(Duration::from_secs(3600)),
            ..Config::new(Peer(number), 1, vec![range()], named)
        };
        let mut it = Allocator::new(config, Vec::new(), seed(number), self.now).expect("an empty state");
        it.survey(&[], self.now);
        self.peers.push(it);
    }

    /// All reach all.
    fn connect(&mut self) {
        let all: Vec<(Peer, u64)> = (1..).map(Peer).zip(self.peers.iter().map(|_| 1)).collect();
        for (peer, me) in self.peers.iter_mut().zip(1..) {
            let others: Vec<(Peer, u64)> = all.iter().filter(|(it, _)| *it != Peer(me)).copied().collect();
            peer.handle_peers(&others, self.now);
        }
        self.settle();
    }

    fn settle(&mut self) {
        let mut busy = true;
        while busy {
            busy = false;
            for from in 0..self.peers.len() {
                while let Some(output) = self.peers[from].poll_output() {
                    busy = true;
                    self.perform(from, output);
                }
            }
        }
    }

    fn perform(&mut self, from: usize, output: Output<Peer>) {
        let me = Peer(from as u16 + 1);
        match output {
            Output::Store { ticket, .. } => self.peers[from].handle_stored(ticket, Ok(()), self.now),
            Output::Send { to, bytes } => {
                self.sent += bytes.len();
                self.peers[usize::from(to.0) - 1].handle_message(me, 1, &bytes, self.now);
            }
            Output::Broadcast { bytes } => {
                for to in (0..self.peers.len()).filter(|&to| to != from) {
                    self.sent += bytes.len();
                    self.peers[to].handle_message(me, 1, &bytes, self.now);
                }
            }
            Output::Reply { result, .. } => {
                result.expect("there is room");
                self.answers += 1;
            }
            Output::Notice(_) | Output::Fences(_) => {}
        }
    }

    /// Lets time pass.
    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let next = self.peers.iter().enumerate();
            let next = next.filter_map(|(at, peer)| Some((peer.poll_timeout()?.0.max(self.now), at))).min();
            let Some((at, peer)) = next.filter(|&(at, _)| at <= until) else {
                break;
            };
            self.now = at;
            self.peers[peer].handle_timeout(at);
            self.settle();
        }
        self.now = until;
    }
}

/// How long a newcomer that reaches two members for the first time takes to give its first address,
/// for which it gets registers, blocks and witnesses: in the time that all three need, and on their
/// clocks.
fn first_address() -> (Vec<Duration>, Duration) {
    let mut longest = Duration::ZERO;
    let times = (0..200).map(|_| {
        let mut world = World::new(2);
        world.run(Duration::from_secs(30));
        world.add(3);
        world.peers[2].allocate(RequestId(1), "container", range(), world.now);
        let (begin, since) = (Instant::now(), world.now);
        world.connect();
        while world.answers == 0 {
            world.run(Duration::from_millis(1));
        }
        longest = longest.max(world.now - since);
        begin.elapsed()
    });
    (times.collect(), longest)
}

/// How long a member that has no block of an address takes to give it, with the disks of both: the other
/// one gives the block away, the voter witnesses it, and the address is recorded, a write each.
fn space_request() -> Vec<Duration> {
    const COUNT: u64 = 200;
    let start = Instant::now();
    let directories = [0, 1].map(|_| tempfile::tempdir().expect("a directory"));
    let mut disks = directories.each_ref().map(|directory| {
        let opened = store::open(directory.path()).expect("a store");
        Store::start(opened.file).expect("a store")
    });
    let small: IpNet = "10.32.0.0/16".parse().expect("a range");
    let begin = |me: u16| {
        let config = Config::new(Peer(me), 1, vec![small], usize::from(me) - 1);
        Allocator::new(config, Vec::new(), seed(me), start.elapsed()).expect("an empty state")
    };
    let mut peers = [begin(1), begin(2)];
    for (me, peer) in peers.iter_mut().enumerate() {
        peer.survey(&[], start.elapsed());
        peer.handle_peers(&[(Peer(2 - me as u16), 1)], start.elapsed());
    }
    let mut answered = 0;
    // Performs what is wanted, until there is an answer or the time is over.
    let mut run = |peers: &mut [Allocator<Peer>; 2], answers: u64, limit: Duration| {
        let end = Instant::now() + limit;
        while answered < answers && Instant::now() < end {
            for me in 0..2 {
                while let Ok(done) = disks[me].1.try_recv() {
                    peers[me].handle_stored(done.ticket, done.result, start.elapsed());
                }
                if peers[me].poll_timeout().is_some_and(|(at, _)| at <= start.elapsed()) {
                    peers[me].handle_timeout(start.elapsed());
                }
                while let Some(output) = peers[me].poll_output() {
                    match output {
                        Output::Store { ticket, changes } => write(&disks[me].0, ticket, changes),
                        Output::Send { bytes, .. } | Output::Broadcast { bytes } => {
                            peers[1 - me].handle_message(Peer(me as u16 + 1), 1, &bytes, start.elapsed());
                        }
                        Output::Reply { result, .. } => {
                            result.expect("nobody has it");
                            answered += 1;
                        }
                        Output::Notice(_) | Output::Fences(_) => {}
                    }
                }
            }
            std::thread::sleep(Duration::from_micros(20));
        }
    };
    run(&mut peers, 1, Duration::from_secs(5));
    let times = (1..=COUNT).map(|number| {
        // The lower half is the first one's, in blocks of four addresses.
        let address = std::net::Ipv4Addr::from(u32::from_be_bytes([10, 32, 0, 0]) + 4 * number as u32);
        let begin = Instant::now();
        peers[1].claim(RequestId(number), "container", address.into(), start.elapsed());
        run(&mut peers, number, Duration::from_secs(10));
        begin.elapsed()
    });
    times.collect()
}

/// A network of a thousand peers of which each owns a hundred blocks or more, none beside another of
/// its own: how long it takes to merge its state, which is as scattered as can be, and once more.
fn scattered_state() -> (Duration, Duration, usize) {
    const PEERS: u16 = 1000;
    const BLOCKS: u32 = 16_384;
    const RANGES: u8 = 7;
    let ranges: Vec<IpNet> = (0..RANGES).map(|net| format!("10.{net}.0.0/16").parse().expect("a range")).collect();
    let config = Config { birth: Birth::Seeds(vec![Peer(1), Peer(2)]), ..Config::new(Peer(1), 1, ranges, 1) };
    let mut member = Allocator::new(config, Vec::new(), seed(1), Duration::ZERO).expect("an empty state");
    member.handle_peers(&[(Peer(2), 1)], Duration::ZERO);
    let mut head = Vec::new();
    while let Some(output) = member.poll_output() {
        match output {
            Output::Store { ticket, .. } => member.handle_stored(ticket, Ok(()), Duration::ZERO),
            // Version and network of every message: two bytes, and a string of sixteen.
            Output::Send { bytes, .. } | Output::Broadcast { bytes } => head = bytes[..19].to_vec(),
            Output::Reply { .. } | Output::Notice(_) | Output::Fences(_) => {}
        }
    }
    let mut deltas: Vec<Vec<u8>> = Vec::new();
    for range in 0..RANGES {
        for first in (0..BLOCKS).step_by(4096) {
            // Registers, kind 5: runs, and no parts wanted.
            let mut bytes = head.clone();
            bytes.extend([0x82, 5, 0x82, 0x99]);
            bytes.extend(4096u16.to_be_bytes());
            for block in first..first + 4096 {
                let number = |number: u32| [[0x1a].as_slice(), &number.to_be_bytes()].concat();
                let owner = Peer((block % u32::from(PEERS)) as u16 + 1);
                // Range, first block and the one after the last; term and epoch; one owner: peer and life.
                bytes.extend([0x84, range]);
                bytes.extend(number(block));
                bytes.extend(number(block + 1));
                bytes.extend([0x82, 0x82, 0x1b]);
                bytes.extend(((1u64 << 44) + (1 << 16)).to_be_bytes());
                bytes.extend([0, 0x82, 1, 0x81, 0x82, 0x50]);
                bytes.extend(owner.to_bytes());
                bytes.push(9);
            }
            bytes.push(0x80);
            deltas.push(bytes);
        }
    }
    let mut merge = || {
        let begin = Instant::now();
        for bytes in &deltas {
            member.handle_message(Peer(2), 1, bytes, Duration::ZERO);
        }
        begin.elapsed()
    };
    let (first, again) = (merge(), merge());
    assert!(member.summary().peers.len() >= usize::from(PEERS) - 1, "all of it was read");
    (first, again, usize::from(RANGES) * BLOCKS as usize)
}

/// A network of a thousand founders with 64 ranges each: how long a newcomer takes to have all of
/// its state, and to merge it once more; and the bytes that it gets.
fn large_state() -> (Duration, Duration, usize) {
    const PEERS: u16 = 1000;
    let ranges: Vec<IpNet> = (0..64).map(|net| format!("10.{net}.0.0/16").parse().expect("a range")).collect();
    let seeds: Vec<Peer> = (1..=PEERS).map(Peer).collect();
    let config = |me: u16| Config { birth: Birth::Seeds(seeds.clone()), ..Config::new(Peer(me), 1, ranges.clone(), 1) };
    let member = Allocator::new(config(1), Vec::new(), seed(1), Duration::ZERO).expect("an empty state");
    let newcomer = Allocator::new(config(PEERS + 1), Vec::new(), seed(2), Duration::ZERO).expect("an empty state");
    let mut ends = [member, newcomer];
    let names = [Peer(1), Peer(PEERS + 1)];
    for (end, other) in [(0, 1), (1, 0)] {
        ends[end].handle_peers(&[(names[other], 1)], Duration::ZERO);
    }
    let mut spent = Duration::ZERO;
    let mut state: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut idle = true;
        for from in [0, 1] {
            while let Some(output) = ends[from].poll_output() {
                idle = false;
                match output {
                    Output::Store { ticket, .. } => ends[from].handle_stored(ticket, Ok(()), Duration::ZERO),
                    Output::Send { bytes, .. } | Output::Broadcast { bytes } => {
                        let begin = Instant::now();
                        ends[1 - from].handle_message(names[from], 1, &bytes, Duration::ZERO);
                        if from == 0 {
                            spent += begin.elapsed();
                            state.push(bytes);
                        }
                    }
                    Output::Reply { .. } | Output::Notice(_) | Output::Fences(_) => {}
                }
            }
        }
        if idle {
            break;
        }
    }
    assert!(ends[1].network().is_some() && ends[1].network() == ends[0].network());
    let begin = Instant::now();
    for bytes in &state {
        ends[1].handle_message(names[0], 1, bytes, Duration::ZERO);
    }
    (spent, begin.elapsed(), state.iter().map(Vec::len).sum())
}

/// Bytes that each peer sends in a second when nobody asks for anything.
fn rest(peers: u16) -> f64 {
    const TIME: Duration = Duration::from_secs(3600);
    let mut world = World::new(peers);
    world.run(Duration::from_secs(120));
    world.sent = 0;
    world.run(TIME);
    world.sent as f64 / TIME.as_secs_f64() / f64::from(peers)
}
