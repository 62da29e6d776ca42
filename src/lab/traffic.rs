//! Traffic between containers, and what became of it.
//!
//! Every container that is to be spoken to runs an [`Echo`]: TCP and UDP, IPv4 and IPv6.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aws_lc_rs::digest;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::{Container, raw::hang_up, sys};
use crate::netlink::NetNs;

/// UDP and TCP port that sends back what it gets.
pub const ECHO_PORT: u16 = 7;
/// TCP port that answers the SHA-256 of all it got once the sender has closed its side.
pub const DIGEST_PORT: u16 = 9;
const TICK: Duration = Duration::from_millis(50);

/// The services of a container, until dropped.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Echo {
    /// Starts the services in a container.
    ///
    /// # Errors
    /// If a port is taken.
    pub fn start(container: &Container) -> io::Result<Self> {
        Self::start_in(container.namespace())
    }

    /// Starts the services in a namespace.
    ///
    /// # Errors
    /// If a port is taken.
    pub fn start_in(namespace: &NetNs) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let any = |port| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        let bind = || -> io::Result<_> {
            Ok((
                UdpSocket::bind(any(ECHO_PORT))?,
                TcpListener::bind(any(ECHO_PORT))?,
                TcpListener::bind(any(DIGEST_PORT))?,
            ))
        };
        let (udp, echo, sink) = namespace.run(bind).map_err(io::Error::other)??;
        let mut threads = Vec::new();
        let flag = Arc::clone(&stop);
        threads.push(thread::spawn(move || serve_udp(&udp, &flag)));
        for (listener, serve) in [(echo, serve_echo as Serve), (sink, serve_digest as Serve)] {
            let (flag, list) = (Arc::clone(&stop), Arc::clone(&streams));
            threads.push(thread::spawn(move || accept(&listener, &flag, &list, serve)));
        }
        Ok(Self { stop, streams, threads })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for stream in self.streams.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            hang_up(stream);
        }
        for thread in self.threads.drain(..) {
            // Its error is that of a peer that went away.
            let _ = thread.join();
        }
    }
}

type Serve = fn(TcpStream) -> io::Result<()>;

fn timed_out(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

fn serve_udp(socket: &UdpSocket, stop: &AtomicBool) -> io::Result<()> {
    socket.set_read_timeout(Some(TICK))?;
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Acquire) {
        match socket.recv_from(&mut buffer) {
            // The way back may be cut; that is for the asker to notice.
            Ok((length, from)) => drop(socket.send_to(&buffer[..length], from)),
            Err(error) if timed_out(&error) => {}
            // An ICMP error for an earlier answer.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn accept(listener: &TcpListener, stop: &AtomicBool, streams: &Mutex<Vec<TcpStream>>, serve: Serve) -> io::Result<()> {
    set_socket_timeout(listener, Timeout::Recv, Some(TICK))?;
    let mut workers = Vec::new();
    while !stop.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nodelay(true)?;
                // It has inherited the listener's, and would end with the first pause.
                stream.set_read_timeout(None)?;
                let copy = stream.try_clone()?;
                streams.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
                workers.push(thread::spawn(move || serve(stream)));
            }
            Err(error) if timed_out(&error) => {}
            Err(error) => return Err(error),
        }
    }
    for worker in workers {
        let _ = worker.join();
    }
    Ok(())
}

fn serve_echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn serve_digest(mut stream: TcpStream) -> io::Result<()> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 1 << 17];
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            length => context.update(&buffer[..length]),
        }
    }
    stream.write_all(context.finish().as_ref())?;
    // A socket dropped with its sender still there would be reset before the answer is read.
    hang_up(&stream);
    Ok(())
}

/// Connects from a container.
///
/// # Errors
/// If it cannot within the limit.
pub fn connect(from: &Container, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let stream = from.run(|| TcpStream::connect_timeout(&to, limit))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

/// Sends bytes to the TCP echo and compares what comes back; how long it took, connecting
/// included.
///
/// # Errors
/// If it does not connect, answer, or answer the same, each within the limit.
pub fn tcp_echo(from: &Container, to: IpAddr, bytes: &[u8], limit: Duration) -> io::Result<Duration> {
    let start = Instant::now();
    let mut stream = connect(from, SocketAddr::new(to, ECHO_PORT), limit)?;
    stream.write_all(bytes)?;
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer)?;
    if answer == bytes { Ok(start.elapsed()) } else { Err(io::Error::other("echo differs")) }
}

/// Sends one datagram to the UDP echo, again every 200 ms, until it comes back; the round-trip
/// time of the one that did.
///
/// # Errors
/// If none does within the limit.
pub fn udp_echo(from: &Container, to: IpAddr, bytes: &[u8], limit: Duration) -> io::Result<Duration> {
    let socket = from.run(|| udp_socket(to))?;
    let end = Instant::now() + limit;
    let mut buffer = vec![0; 1 << 16];
    let mut error = io::Error::from(io::ErrorKind::TimedOut);
    for number in 0_u32.. {
        let mut message = number.to_be_bytes().to_vec();
        message.extend_from_slice(bytes);
        let sent = Instant::now();
        // Refused and unreachable are states that may pass within the limit.
        if let Err(refused) = socket.send(&message) {
            error = refused;
        }
        let pause = sent + Duration::from_millis(200);
        while Instant::now() < pause.min(end) {
            let left = pause.min(end).saturating_duration_since(Instant::now());
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match socket.recv(&mut buffer) {
                Ok(length) if buffer[..length] == message => return Ok(sent.elapsed()),
                // An answer to an earlier one: it has come too late to be timed.
                Ok(_) => {}
                Err(late) if timed_out(&late) => {}
                Err(refused) => error = refused,
            }
        }
        if Instant::now() >= end {
            break;
        }
    }
    Err(io::Error::new(error.kind(), format!("no UDP echo from {to} in {limit:?}: {error}")))
}

fn udp_socket(to: IpAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match to {
        IpAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect((to, ECHO_PORT))?;
    Ok(socket)
}

/// What became of a transfer.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    /// Bytes that arrived and were checked.
    pub bytes: u64,
    /// From the first byte to the receiver's confirmation.
    pub elapsed: Duration,
    /// The longest time in which nothing could be handed to the connection.
    pub longest_stall: Duration,
}

impl Transfer {
    /// Throughput in Mbit/s.
    #[must_use]
    pub fn megabits(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e6 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Sends bytes by TCP to the digest service until the time or the number is reached, and compares
/// the digests.
///
/// # Errors
/// If it does not connect, stalls for the limit, or arrives changed.
pub fn tcp_transfer(
    from: &Container,
    to: IpAddr,
    bytes: u64,
    lasting: Duration,
    limit: Duration,
) -> io::Result<Transfer> {
    paced_transfer(from, to, bytes, u64::MAX, lasting, limit)
}

/// The same, of at most `pace` bytes a second: as the kernel sends them, so that what stands still shows
/// as soon as without a pace.
///
/// # Errors
/// If it does not connect, stalls for the limit, or arrives changed.
pub fn paced_transfer(
    from: &Container,
    to: IpAddr,
    bytes: u64,
    pace: u64,
    lasting: Duration,
    limit: Duration,
) -> io::Result<Transfer> {
    let mut stream = connect(from, SocketAddr::new(to, DIGEST_PORT), limit)?;
    sys::set_pace(&stream, pace)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut block = vec![0_u8; 1 << 16];
    let start = Instant::now();
    let (mut sent, mut longest_stall) = (0_u64, Duration::ZERO);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while sent < bytes && start.elapsed() < lasting {
        for word in block.chunks_exact_mut(8) {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            word.copy_from_slice(&state.to_le_bytes());
        }
        let length = usize::try_from(bytes - sent).unwrap_or(usize::MAX).min(block.len());
        context.update(&block[..length]);
        let before = Instant::now();
        stream.write_all(&block[..length])?;
        longest_stall = longest_stall.max(before.elapsed());
        sent += length as u64;
    }
    let before = Instant::now();
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = [0; 32];
    stream.read_exact(&mut answer)?;
    longest_stall = longest_stall.max(before.elapsed());
    if answer == context.finish().as_ref() {
        Ok(Transfer { bytes: sent, elapsed: start.elapsed(), longest_stall })
    } else {
        Err(io::Error::other(format!("{sent} bytes arrived changed")))
    }
}

/// A stream of numbered datagrams to the UDP echo of a container, to see what a change does to
/// traffic that is under way.
#[derive(Debug)]
pub struct GapStream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<io::Result<Vec<(Instant, u64)>>>,
    started: Instant,
}

/// What became of a [`GapStream`].
#[derive(Debug, Clone, Copy)]
pub struct GapReport {
    /// Datagrams sent.
    pub sent: u64,
    /// Different ones that came back.
    pub received: u64,
    /// Those that came back again.
    pub duplicates: u64,
    /// The longest time in which none came back, from the start to the end.
    pub longest_gap: Duration,
}

impl GapStream {
    /// Starts to send one datagram per interval, and to wait for their return.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn start(from: &Container, to: IpAddr, interval: Duration) -> io::Result<Self> {
        let socket = Arc::new(from.run(|| udp_socket(to))?);
        socket.set_read_timeout(Some(TICK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, out) = (Arc::clone(&stop), Arc::clone(&socket));
        let sender = thread::Builder::new().name("gap-sender".into()).spawn(move || {
            let mut number = 0_u64;
            let start = Instant::now();
            while !flag.load(Ordering::Acquire) {
                // What cannot be sent counts as sent: it does not come back.
                let _ = out.send(&number.to_be_bytes());
                number += 1;
                let next = start + interval.saturating_mul(u32::try_from(number).unwrap_or(u32::MAX));
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            number
        })?;
        let flag = Arc::clone(&stop);
        let receiver = thread::Builder::new().name("gap-receiver".into()).spawn(move || {
            let mut seen = Vec::new();
            let mut buffer = [0; 64];
            let mut last_chance = false;
            loop {
                match socket.recv(&mut buffer) {
                    Ok(8) => {
                        let mut number = [0; 8];
                        number.copy_from_slice(&buffer[..8]);
                        seen.push((Instant::now(), u64::from_be_bytes(number)));
                    }
                    Ok(_) => {}
                    Err(_) if last_chance => return Ok(seen),
                    Err(error) if timed_out(&error) => {}
                    // Unreachable for now.
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
                last_chance = flag.load(Ordering::Acquire);
            }
        })?;
        Ok(Self { stop, sender, receiver, started: Instant::now() })
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// If a thread of it failed.
    pub fn finish(self) -> io::Result<GapReport> {
        let ended = Instant::now();
        self.stop.store(true, Ordering::Release);
        let broken = |_| io::Error::other("a thread of the stream panicked");
        let sent = self.sender.join().map_err(broken)?;
        let arrivals = self.receiver.join().map_err(broken)??;
        let mut last = self.started;
        let mut longest_gap = Duration::ZERO;
        for &(at, _) in &arrivals {
            longest_gap = longest_gap.max(at.saturating_duration_since(last));
            last = at;
        }
        longest_gap = longest_gap.max(ended.saturating_duration_since(last));
        let mut numbers: Vec<u64> = arrivals.iter().map(|&(_, number)| number).collect();
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        Ok(GapReport { sent, received: numbers.len() as u64, duplicates: (all - numbers.len()) as u64, longest_gap })
    }
}
