//! What the data path's machine costs without any IO: time, or instructions under callgrind.
//!
//! ```text
//!  frames ──► Forwarder ──► datagrams ──► Forwarder ──► frames        "there": the first alone
//! ```
//!
//! `cargo bench -p integration --bench machine`                       time, median of rounds
//! `cargo bench -p integration --bench machine -- --instructions`     needs `valgrind`
//!
//! Valgrind knows no AVX-512: what the ciphers need of instructions is more there than outside.

use std::env;
use std::hint::black_box;
use std::io;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

#[path = "../../mesh-proto/tests/data_net/mod.rs"]
mod data_net;

use data_net::{EVERYBODY, Net, addr, frame, mac, ms, super_frame};
use mesh_proto::data::forwarder::Forwarder;
use mesh_proto::data::parts::Parts;
use mesh_proto::data::virtio::VirtioHeader;
use mesh_proto::data::{Hop, Sink};
use mesh_proto::handover::Suite;
use mesh_proto::wire::datagram::{Datagram, HOPS, RELAY_HEADER, RelayHeader};

/// Frames between two flushes: a turn of the data thread under load.
const TURN: usize = 32;
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(40);

/// What one turn carries.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// Frames of that many bytes from one host to another.
    Frames(usize),
    /// A TCP super-frame with that many bytes of payload, 1300 in a segment.
    Super(usize),
    /// Frames of that many bytes to everybody, of eight others.
    Flood(usize),
    /// Datagrams of frames of that many bytes, passed on for others.
    Relay(usize),
}

struct Case {
    name: &'static str,
    load: Load,
    suite: Suite,
    /// Whether the datagrams are opened again.
    back: bool,
}

const fn case(name: &'static str, load: Load, suite: Suite, back: bool) -> Case {
    Case { name, load, suite, back }
}

const CASES: [Case; 14] = [
    case("64 B, plain, there", Load::Frames(64), Suite::Plain, false),
    case("64 B, plain, there and in", Load::Frames(64), Suite::Plain, true),
    case("64 B, AES-256-GCM, there", Load::Frames(64), Suite::Aes256Gcm, false),
    case("64 B, AES-256-GCM, there and in", Load::Frames(64), Suite::Aes256Gcm, true),
    case("1400 B, plain, there", Load::Frames(1400), Suite::Plain, false),
    case("1400 B, plain, there and in", Load::Frames(1400), Suite::Plain, true),
    case("1400 B, AES-256-GCM, there", Load::Frames(1400), Suite::Aes256Gcm, false),
    case("1400 B, AES-256-GCM, there and in", Load::Frames(1400), Suite::Aes256Gcm, true),
    case("1400 B, ChaCha20-Poly1305, there and in", Load::Frames(1400), Suite::ChaCha20Poly1305, true),
    case("super-frame, plain, there and in", Load::Super(60_000), Suite::Plain, true),
    case("super-frame, AES-256-GCM, there", Load::Super(60_000), Suite::Aes256Gcm, false),
    case("super-frame, AES-256-GCM, there and in", Load::Super(60_000), Suite::Aes256Gcm, true),
    case("100 B to 8 others, AES-256-GCM, there", Load::Flood(100), Suite::Aes256Gcm, false),
    case("1400 B passed on for others", Load::Relay(1400), Suite::Aes256Gcm, true),
];

fn main() -> io::Result<()> {
    let mut words = env::args().skip(1).filter(|word| word != "--bench");
    let mut out = io::stdout().lock();
    match (words.next().as_deref(), words.next(), words.next()) {
        (None, ..) => times(&mut out),
        (Some("--instructions"), ..) => instructions(&mut out),
        (Some("--work"), Some(case), Some(turns)) => {
            let number = |word: String| word.parse::<usize>().map_err(io::Error::other);
            let case = CASES.get(number(case)?).ok_or(io::ErrorKind::InvalidInput)?;
            let mut work = Work::new(case);
            (0..number(turns)?).for_each(|_| work.turn());
            Ok(())
        }
        (Some(word), ..) => Err(io::Error::other(format!("{word}: only --instructions is known"))),
    }
}

fn times(out: &mut impl io::Write) -> io::Result<()> {
    writeln!(out, "{:<42} {:>10} {:>9}", "case", "ns/frame", "Gbit/s")?;
    for case in &CASES {
        let mut work = Work::new(case);
        let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| work.round()).collect();
        rounds.sort_by(f64::total_cmp);
        let (frames, bytes) = work.frames_of_a_turn();
        let turn = rounds[ROUNDS / 2];
        let (each, rate) = (turn / frames as f64, bytes as f64 * 8.0 / turn);
        writeln!(out, "{:<42} {each:>10.0} {rate:>9.2}", case.name)?;
    }
    Ok(())
}

/// Two runs of different length under callgrind: what the longer has more is the work's alone.
fn instructions(out: &mut impl io::Write) -> io::Result<()> {
    const TURNS: [usize; 2] = [20, 60];
    writeln!(out, "{:<42} {:>18}", "case", "instructions/frame")?;
    for (number, case) in CASES.iter().enumerate() {
        let mut seen = [0; 2];
        for (seen, turns) in seen.iter_mut().zip(TURNS) {
            *seen = callgrind(number, turns)?;
        }
        let (frames, _) = Work::new(case).frames_of_a_turn();
        let each = (seen[1] - seen[0]) as f64 / ((TURNS[1] - TURNS[0]) * frames) as f64;
        writeln!(out, "{:<42} {each:>18.0}", case.name)?;
    }
    Ok(())
}

fn callgrind(case: usize, turns: usize) -> io::Result<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(env::current_exe()?);
    let output = valgrind.args(["--work", &case.to_string(), &turns.to_string()]).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find_map(|line| line.split_once("Collected :"));
    let count = line.and_then(|(_, number)| number.trim().parse().ok());
    count.ok_or_else(|| io::Error::other(format!("valgrind counted nothing:\n{text}")))
}

/// What a host gives away, in memory that was there before.
struct Out {
    datagrams: Vec<(SocketAddr, usize)>,
    bytes: Vec<u8>,
}

impl Out {
    fn new() -> Self {
        Self { datagrams: Vec::with_capacity(4096), bytes: Vec::with_capacity(8 << 20) }
    }

    fn clear(&mut self) {
        self.datagrams.clear();
        self.bytes.clear();
    }

    /// Makes relayed datagrams what they were before the relay.
    fn first_hop(&mut self) {
        let mut at = 0;
        for &(_, length) in &self.datagrams {
            if let Ok(Datagram::Relay(header)) = Datagram::parse(&self.bytes[at..at + length]) {
                let header = RelayHeader { hops: HOPS, ..header };
                self.bytes[at..at + RELAY_HEADER].copy_from_slice(&header.bytes());
            }
            at += length;
        }
    }
}

impl Sink for Out {
    fn datagram(&mut self, to: SocketAddr, bytes: &[u8]) {
        self.datagrams.push((to, bytes.len()));
        self.bytes.extend_from_slice(bytes);
    }
    fn frame(&mut self, bytes: &[u8]) {
        black_box(bytes);
    }
    fn super_frame(&mut self, _header: &VirtioHeader, bytes: Parts<'_>) {
        black_box(bytes.iter().count());
    }
    fn quic(&mut self, _from: Hop, _bytes: &[u8]) {}
}

/// Where a turn's trains do not need a copy: as the socket takes them, in place.
struct Null;

impl Sink for Null {
    fn datagram(&mut self, _to: SocketAddr, bytes: &[u8]) {
        black_box(bytes);
    }
    fn datagrams(&mut self, _to: SocketAddr, bytes: Parts<'_>, _size: usize) {
        black_box(bytes.iter().count());
    }
    fn frame(&mut self, bytes: &[u8]) {
        black_box(bytes);
    }
    fn quic(&mut self, _from: Hop, _bytes: &[u8]) {}
}

/// Hosts that are warm, and what goes between them.
struct Work<'a> {
    case: &'a Case,
    net: Net,
    frame: Vec<u8>,
    header: VirtioHeader,
    wire: Out,
    tap: Out,
}

impl<'a> Work<'a> {
    fn new(case: &'a Case) -> Self {
        let hosts = if matches!(case.load, Load::Flood(_)) { 9 } else { 3 };
        let mut net = Net::with(hosts, case.suite != Suite::Plain, 1472);
        let all: Vec<_> = (0..hosts).flat_map(|a| (a + 1..hosts).map(move |b| (a, b))).collect();
        match case.load {
            Load::Relay(_) => net.ready(&[(0, 1), (1, 2)]),
            _ => net.ready(&all),
        }
        if case.suite == Suite::ChaCha20Poly1305 {
            net.session_with(0, 1, case.suite);
        }
        for host in 0..hosts {
            net.send(host, &frame(EVERYBODY, mac(host, 1), 60, host as u64));
        }
        net.run(ms(500));
        let (header, frame) = match case.load {
            Load::Frames(size) => (VirtioHeader::PLAIN, frame(mac(1, 1), mac(0, 1), size, 1)),
            Load::Flood(size) => (VirtioHeader::PLAIN, frame(EVERYBODY, mac(0, 1), size, 1)),
            Load::Relay(size) => (VirtioHeader::PLAIN, frame(mac(2, 1), mac(0, 1), size, 1)),
            Load::Super(payload) => super_frame(mac(1, 1), mac(0, 1), payload),
        };
        let mut work = Self { case, net, frame, header, wire: Out::new(), tap: Out::new() };
        (0..3).for_each(|_| work.turn());
        work
    }

    /// Frames, or segments, of a turn, and their bytes.
    fn frames_of_a_turn(&self) -> (usize, usize) {
        match self.case.load {
            Load::Super(payload) => (payload.div_ceil(1300), self.frame.len()),
            _ => (TURN, TURN * self.frame.len()),
        }
    }

    fn turn(&mut self) {
        self.net.now += Duration::from_micros(20);
        let now = self.net.now;
        if self.case.back {
            self.send(now);
            self.take(now);
        } else {
            feed(&mut self.net.nodes[0], self.case.load, &self.header, &mut self.frame, now, &mut Null);
        }
        while self.net.nodes[0].poll_event().is_some() {}
    }

    fn send(&mut self, now: Duration) {
        if matches!(self.case.load, Load::Relay(_)) && !self.wire.datagrams.is_empty() {
            // Passing on counts the hop in place and nothing else: they can be used again.
            return self.wire.first_hop();
        }
        feed(&mut self.net.nodes[0], self.case.load, &self.header, &mut self.frame, now, &mut self.wire);
    }

    fn take(&mut self, now: Duration) {
        let (node, mut at) = (&mut self.net.nodes[1], 0);
        for n in 0..self.wire.datagrams.len() {
            let place = at..at + self.wire.datagrams[n].1;
            at = place.end;
            node.handle_received(addr(0), &mut self.wire.bytes, place, now, &mut self.tap);
        }
        node.settle(&self.wire.bytes, &mut self.tap);
        node.flush(now, &mut self.tap);
        self.tap.clear();
        if !matches!(self.case.load, Load::Relay(_)) {
            self.wire.clear();
        }
    }

    /// Nanoseconds of a turn.
    fn round(&mut self) -> f64 {
        let (start, mut turns) = (Instant::now(), 0u32);
        while start.elapsed() < ROUND {
            (0..16).for_each(|_| self.turn());
            turns += 16;
        }
        start.elapsed().as_nanos() as f64 / f64::from(turns)
    }
}

/// A turn of a host that reads this from its TAP.
fn feed(
    node: &mut Forwarder,
    load: Load,
    header: &VirtioHeader,
    frame: &mut [u8],
    now: Duration,
    sink: &mut impl Sink,
) {
    match load {
        Load::Super(_) => node.handle_super_frame(header, frame, now, sink),
        _ => (0..TURN).for_each(|_| node.handle_frame(frame, now, sink)),
    }
    node.flush(now, sink);
}
