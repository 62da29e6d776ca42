//! What the data thread costs: frames through two data threads over loopback, beside the same
//! bytes as plain datagrams, in one run.
//!
//! ```text
//!  plain    sender ── UDP ──────────────────────────────────► receiver
//!  sleeve   feeder ── pair ──► weft-data ── UDP ──► weft-data ── pair ──► reader
//! ```
//!
//! A pair of local sockets stands for each TAP, so no privilege is needed; a real TAP costs about
//! the same per frame. Figures of different runs do not compare, ratios within one run do.
//!
//! `cargo bench -p integration --bench datapath`

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mesh_proto::data::forwarder::ForwarderConfig;
use mesh_proto::handover::{Command, PeerPath, SessionKey, SessionKeys, Suite, Tables};
use mesh_proto::id::{Incarnation, PeerId};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use weft::clock::Clock;
use weft::data::{DataConfig, DataHandle, DataOutputs, bind_udp};

const A: PeerId = PeerId([0xa; 16]);
const B: PeerId = PeerId([0xb; 16]);
const MEASURE: Duration = Duration::from_secs(2);
const SIZES: [usize; 2] = [64, 1400];

fn main() -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{:<20} {:>6} {:>9} {:>8} {:>7} {:>9}", "path", "bytes", "kframes/s", "Gbit/s", "ratio", "CPU s/GB")?;
    for size in SIZES {
        let plain = plain(size)?;
        row(&mut out, "plain UDP", size, plain, plain.frames)?;
        for suite in [Suite::Plain, Suite::Aes256Gcm, Suite::ChaCha20Poly1305, Suite::Nacl] {
            let sleeve = Pair::start(suite)?.flood(size)?;
            row(&mut out, &format!("sleeve, {}", suite.name()), size, sleeve, plain.frames)?;
        }
    }
    let pair = Pair::start(Suite::Aes256Gcm)?;
    let (p50, p99) = pair.round_trips()?;
    writeln!(out, "round trip of one frame: p50 {p50:?}, p99 {p99:?}")?;
    let before = data_cpu();
    thread::sleep(MEASURE);
    let busy = (data_cpu() - before).as_secs_f64() / MEASURE.as_secs_f64() / 2.0;
    writeln!(out, "idle: {:.3} % of a core per router", busy * 100.0)?;
    Ok(())
}

/// What one measurement saw.
#[derive(Clone, Copy)]
struct Seen {
    /// Frames that arrived, per second.
    frames: f64,
    /// CPU time of the threads between, for all frames, per second.
    cpu: f64,
}

fn row(out: &mut impl io::Write, name: &str, size: usize, seen: Seen, plain: f64) -> io::Result<()> {
    let bytes = seen.frames * size as f64;
    let (gbits, ratio, cost) = (bytes * 8.0 / 1e9, seen.frames / plain, seen.cpu / bytes * 1e9);
    writeln!(out, "{name:<20} {size:>6} {:>9.0} {gbits:>8.2} {ratio:>7.2} {cost:>9.2}", seen.frames / 1e3)
}

/// One thread sends datagrams one by one, another receives them: the cost of the kernel alone.
fn plain(size: usize) -> io::Result<Seen> {
    let receiver = UdpSocket::bind("127.0.0.1:0")?;
    receiver.set_read_timeout(Some(Duration::from_millis(200)))?;
    let (to, stop) = (receiver.local_addr()?, Arc::new(AtomicBool::new(false)));
    let sender = named("bench-plain", {
        let (stop, socket) = (stop.clone(), UdpSocket::bind("127.0.0.1:0")?);
        move || {
            let bytes = vec![0; size];
            while !stop.load(Ordering::Relaxed) {
                // A full buffer shows as fewer datagrams received.
                let _ = socket.send_to(&bytes, to);
            }
        }
    })?;
    let mut buffer = [0; 2048];
    let (mut count, began, cpu) = (0_u64, Instant::now(), process_cpu());
    while began.elapsed() < MEASURE {
        count += u64::from(receiver.recv(&mut buffer).is_ok());
    }
    let seen = Seen { frames: per_second(count), cpu: (process_cpu() - cpu).as_secs_f64() / MEASURE.as_secs_f64() };
    stop.store(true, Ordering::Relaxed);
    let _ = sender.join();
    Ok(seen)
}

fn per_second(count: u64) -> f64 {
    count as f64 / MEASURE.as_secs_f64()
}

fn named(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// A router's data thread, and the far end of its TAP.
struct Host {
    data: DataHandle,
    _outputs: DataOutputs,
    bridge: OwnedFd,
    address: SocketAddr,
}

impl Host {
    fn start(sealed: bool) -> io::Result<Self> {
        let (tap, bridge) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&tap, true)?;
        let socket = Arc::new(bind_udp(([127, 0, 0, 1], 0).into())?);
        let address = socket.local_addr()?;
        let forwarder =
            ForwarderConfig { sealed, macs_max: 1024, mac_age: Duration::from_secs(300), payload_max: 1472 };
        let config = DataConfig {
            tap: tap.into(),
            socket,
            forwarder,
            seed: 1,
            busy_poll: Duration::ZERO,
            clock: Clock::start(),
        };
        let (data, outputs) = DataHandle::start(config)?;
        Ok(Self { data, _outputs: outputs, bridge, address })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.data.stop();
    }
}

/// Two linked hosts.
struct Pair {
    a: Host,
    b: Host,
}

impl Pair {
    fn start(suite: Suite) -> io::Result<Self> {
        let sealed = suite != Suite::Plain;
        let (a, b) = (Host::start(sealed)?, Host::start(sealed)?);
        link(A, B, b.address, suite).into_iter().for_each(|command| a.data.command(command));
        link(B, A, a.address, suite).into_iter().for_each(|command| b.data.command(command));
        let pair = Self { a, b };
        // Both learn where the other's address is, and the path MTU is found meanwhile.
        let mut buffer = [0; 2048];
        for (from, to, frame) in [(&pair.a, &pair.b, frame(0xff, 1, 60)), (&pair.b, &pair.a, frame(1, 2, 60))] {
            rustix::io::write(&from.bridge, &frame)?;
            rustix::io::read(&to.bridge, &mut buffer)?;
        }
        thread::sleep(Duration::from_millis(1500));
        Ok(pair)
    }

    /// As many frames as go through, one way.
    fn flood(&self, size: usize) -> io::Result<Seen> {
        let stop = Arc::new(AtomicBool::new(false));
        let feeder = named("bench-feeder", {
            let (stop, bridge, frame) = (stop.clone(), self.a.bridge.try_clone()?, frame(2, 1, size));
            move || {
                while !stop.load(Ordering::Relaxed) && rustix::io::write(&bridge, &frame).is_ok() {}
            }
        })?;
        let mut buffer = [0; 2048];
        let (mut count, began, cpu) = (0_u64, Instant::now(), data_cpu());
        while began.elapsed() < MEASURE {
            count += u64::from(rustix::io::read(&self.b.bridge, &mut buffer)? == size);
        }
        let seen = Seen { frames: per_second(count), cpu: (data_cpu() - cpu).as_secs_f64() / MEASURE.as_secs_f64() };
        stop.store(true, Ordering::Relaxed);
        let _ = feeder.join();
        Ok(seen)
    }

    /// One frame at a time, there and back.
    fn round_trips(&self) -> io::Result<(Duration, Duration)> {
        let (there, back) = (frame(2, 1, 64), frame(1, 2, 64));
        let mut buffer = [0; 2048];
        let mut times = Vec::new();
        for _ in 0..5000 {
            let began = Instant::now();
            rustix::io::write(&self.a.bridge, &there)?;
            rustix::io::read(&self.b.bridge, &mut buffer)?;
            rustix::io::write(&self.b.bridge, &back)?;
            rustix::io::read(&self.a.bridge, &mut buffer)?;
            times.push(began.elapsed());
        }
        times.sort_unstable();
        Ok((times[times.len() / 2], times[times.len() * 99 / 100]))
    }
}

fn link(me: PeerId, other: PeerId, at: SocketAddr, suite: Suite) -> [Command; 2] {
    let (incarnation, first) = (Incarnation(1), me < other);
    let path = PeerPath { incarnation, direct: Some(at), relays: Vec::new() };
    let trees = BTreeMap::from([(me, vec![other]), (other, Vec::new())]);
    let tables = Tables { me, incarnation, peers: BTreeMap::from([(other, path)]), trees };
    let key = |byte: u8| SessionKey([byte; 32].into());
    let (send, receive) = if first { (key(1), key(2)) } else { (key(2), key(1)) };
    let (local_index, remote_index) = if first { (1, 2) } else { (2, 1) };
    let keys =
        SessionKeys { peer: other, incarnation, suite, local_index, remote_index, send, receive, initiator: first };
    [Command::Tables(Arc::new(tables)), Command::Install(Box::new(keys))]
}

/// A frame between two locally administered addresses, or to everybody.
fn frame(to: u8, from: u8, len: usize) -> Vec<u8> {
    let to = if to == 0xff { [0xff; 6] } else { [2, 0, 0, 0, 0, to] };
    let mut frame = [&to[..], &[2, 0, 0, 0, 0, from], &[0x88, 0xb5]].concat();
    frame.resize(len, 0x5a);
    frame
}

/// CPU time of this process' data threads since they began, in steps of nanoseconds.
fn data_cpu() -> Duration {
    tasks_cpu(|name| name == "weft-data")
}

/// CPU time of all threads of this process.
fn process_cpu() -> Duration {
    tasks_cpu(|_| true)
}

fn tasks_cpu(wanted: impl Fn(&str) -> bool) -> Duration {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let read = |task: &fs::DirEntry, file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
    tasks
        .filter(|task| wanted(read(task, "comm").trim()))
        .filter_map(|task| read(&task, "schedstat").split(' ').next()?.parse().ok().map(Duration::from_nanos))
        .sum()
}
