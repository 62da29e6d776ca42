//! Bulk: TCP streams that are always full.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::{
    event::{PollFd, PollFlags, poll},
    net::sockopt::{Timeout, set_socket_timeout, set_tcp_congestion},
};
use weft::netlink::NetNs;

use super::machine;

/// What is handed to the kernel at once.
const BLOCK: usize = 128 << 10;
/// Connecting takes no longer, lossy paths included.
const PATIENCE: Duration = Duration::from_secs(15);
/// The same on every machine: some have BBR as their default, which halves every tunnel here.
const CONGESTION: [&str; 2] = ["cubic", "reno"];

/// Both ends of a stream.
type Pair = (TcpStream, TcpStream);

/// Streams under way; they end when it is dropped.
pub(super) struct Bulk {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    streams: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

/// What a bulk transfer saw in its window.
pub(super) struct Seen {
    /// Gbit/s of payload.
    pub(super) gigabits: f64,
    /// Seconds of processor time of the whole machine for each 10⁹ bytes of payload.
    pub(super) cpu_per_gigabyte: f64,
}

impl Bulk {
    /// Starts streams from one namespace to an address in another, each with a thread of its own at either end.
    pub(super) fn start(from: &NetNs, to: (&NetNs, IpAddr), streams: usize) -> anyhow::Result<Self> {
        let (mut bulk, pairs) = Self::connect(from, to, streams)?;
        for (sender, receiver) in pairs {
            bulk.add(vec![sender], vec![receiver])?;
        }
        Ok(bulk)
    }

    /// The same with one thread at either end for all of them.
    pub(super) fn start_shared(from: &NetNs, to: (&NetNs, IpAddr), streams: usize) -> anyhow::Result<Self> {
        let (mut bulk, pairs) = Self::connect(from, to, streams)?;
        let (senders, receivers): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        bulk.add(senders, receivers)?;
        Ok(bulk)
    }

    fn connect(from: &NetNs, to: (&NetNs, IpAddr), streams: usize) -> anyhow::Result<(Self, Vec<Pair>)> {
        let (namespace, address) = to;
        let bind = || -> io::Result<_> {
            let listener = TcpListener::bind(SocketAddr::new(address, 0))?;
            set_socket_timeout(&listener, Timeout::Recv, Some(PATIENCE))?;
            prefer(&listener);
            Ok(listener)
        };
        let listener = namespace.run(bind)?.with_context(|| format!("listen on {address}"))?;
        let port = listener.local_addr()?;
        let mut bulk = Self {
            stop: Arc::new(AtomicBool::new(false)),
            received: Arc::new(AtomicU64::new(0)),
            streams: Vec::new(),
            threads: Vec::new(),
        };
        let mut pairs = Vec::new();
        for _ in 0..streams {
            let connect = || TcpStream::connect_timeout(&port, PATIENCE);
            let sender = from.run(connect)?.with_context(|| format!("connect to {port}"))?;
            prefer(&sender);
            let (receiver, _) = listener.accept().context("accept")?;
            // It has inherited the listener's.
            receiver.set_read_timeout(None)?;
            bulk.streams.extend([sender.try_clone()?, receiver.try_clone()?]);
            pairs.push((sender, receiver));
        }
        Ok((bulk, pairs))
    }

    fn add(&mut self, senders: Vec<TcpStream>, receivers: Vec<TcpStream>) -> io::Result<()> {
        for stream in senders.iter().chain(&receivers) {
            // One by itself waits in the call; of several none may hold up the others.
            stream.set_nonblocking(senders.len() > 1)?;
        }
        let (stop, received) = (Arc::clone(&self.stop), Arc::clone(&self.received));
        let send = move || {
            let block = vec![0x5a; BLOCK];
            each_ready(&senders, PollFlags::OUT, |mut stream| match stop.load(Ordering::Acquire) {
                true => Err(io::ErrorKind::Interrupted.into()),
                false => stream.write(&block),
            });
        };
        self.threads.push(thread::Builder::new().name("bulk-send".into()).spawn(send)?);
        let receive = move || {
            let mut block = vec![0; BLOCK];
            each_ready(&receivers, PollFlags::IN, |mut stream| {
                let length = stream.read(&mut block)?;
                received.fetch_add(length as u64, Ordering::Relaxed);
                Ok(length)
            });
        };
        self.threads.push(thread::Builder::new().name("bulk-receive".into()).spawn(receive)?);
        Ok(())
    }

    /// Watches for a while: what arrives, and what the machine works for it.
    pub(super) fn watch(&self, lasting: Duration) -> anyhow::Result<Seen> {
        let (start, bytes, work) = (Instant::now(), self.received.load(Ordering::Relaxed), machine::worked()?);
        thread::sleep(lasting);
        let bytes = (self.received.load(Ordering::Relaxed) - bytes) as f64;
        let (elapsed, work) = (start.elapsed(), machine::worked()?.saturating_sub(work));
        anyhow::ensure!(bytes > 0.0, "nothing arrived in {elapsed:?}");
        Ok(Seen {
            gigabits: bytes * 8.0 / 1e9 / elapsed.as_secs_f64(),
            cpu_per_gigabyte: work.as_secs_f64() / (bytes / 1e9),
        })
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for stream in &self.streams {
            // Fails if the other end was faster.
            let _ = stream.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Does something with each stream that is ready, until that fails or moves nothing: a connection is shut down, which
/// is how it is stopped.
fn each_ready(streams: &[TcpStream], wanted: PollFlags, mut work: impl FnMut(&TcpStream) -> io::Result<usize>) {
    loop {
        let mut ready: Vec<PollFd<'_>> = streams.iter().map(|stream| PollFd::new(stream, wanted)).collect();
        if streams.len() > 1 && poll(&mut ready, None).is_err() {
            return;
        }
        for (stream, ready) in streams.iter().zip(&ready) {
            if streams.len() > 1 && ready.revents().is_empty() {
                continue;
            }
            match work(stream) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
            }
        }
    }
}

/// Sets the congestion control; a kernel without any of them keeps its own.
fn prefer(socket: impl std::os::fd::AsFd) {
    let _ = CONGESTION.iter().any(|name| set_tcp_congestion(&socket, name).is_ok());
}
