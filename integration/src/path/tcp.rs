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
use rustix::net::sockopt::{Timeout, set_socket_timeout, set_tcp_congestion};
use weft::netlink::NetNs;

use super::machine;

/// What is handed to the kernel at once.
const BLOCK: usize = 128 << 10;
/// Connecting takes no longer, lossy paths included.
const PATIENCE: Duration = Duration::from_secs(15);
/// The same on every machine: some have BBR as their default, which halves every tunnel here.
const CONGESTION: [&str; 2] = ["cubic", "reno"];

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
    /// Starts streams from one namespace to an address in another.
    pub(super) fn start(from: &NetNs, to: (&NetNs, IpAddr), streams: usize) -> anyhow::Result<Self> {
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
        for _ in 0..streams {
            let connect = || TcpStream::connect_timeout(&port, PATIENCE);
            let sender = from.run(connect)?.with_context(|| format!("connect to {port}"))?;
            prefer(&sender);
            let (receiver, _) = listener.accept().context("accept")?;
            // It has inherited the listener's.
            receiver.set_read_timeout(None)?;
            bulk.add(sender, receiver)?;
        }
        Ok(bulk)
    }

    fn add(&mut self, mut sender: TcpStream, mut receiver: TcpStream) -> io::Result<()> {
        self.streams.extend([sender.try_clone()?, receiver.try_clone()?]);
        let stop = Arc::clone(&self.stop);
        let send = move || {
            let block = vec![0x5a; BLOCK];
            // It ends with an error when its connection is shut down, which is how it is stopped.
            while !stop.load(Ordering::Acquire) && sender.write_all(&block).is_ok() {}
        };
        self.threads.push(thread::Builder::new().name("bulk-send".into()).spawn(send)?);
        let received = Arc::clone(&self.received);
        let receive = move || {
            let mut block = vec![0; BLOCK];
            while let Ok(length @ 1..) = receiver.read(&mut block) {
                received.fetch_add(length as u64, Ordering::Relaxed);
            }
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

/// Sets the congestion control; a kernel without any of them keeps its own.
fn prefer(socket: impl std::os::fd::AsFd) {
    let _ = CONGESTION.iter().any(|name| set_tcp_congestion(&socket, name).is_ok());
}
