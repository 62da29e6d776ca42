//! Small packets one way: the highest rate that arrives whole.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use weft::netlink::NetNs;

use super::sys::{self, BATCH, LENGTH};

/// Share of the datagrams that may be missing for a rate to count as whole.
const LOSS: f64 = 0.001;
/// The sender kept to a rate if it reached this share of it.
const KEPT: f64 = 0.97;
/// The search ends when the best and the first bad rate are this close, or after so many trials.
const CLOSE: f64 = 1.04;
const TRIALS: usize = 10;
const TICK: Duration = Duration::from_millis(20);
/// Between two looks at the clock of a sender that is ahead of its rate.
const PAUSE: Duration = Duration::from_micros(150);
const BUFFER: usize = 16 << 20;

/// Sender and receiver of small datagrams.
pub(super) struct Flood {
    sender: UdpSocket,
    counter: Arc<Counter>,
    receiver: Option<JoinHandle<()>>,
    trial: u64,
}

#[derive(Default)]
struct Counter {
    stop: AtomicBool,
    // What of an earlier trial comes late does not count.
    trial: AtomicU64,
    received: AtomicU64,
}

struct Trial {
    sent: u64,
    received: u64,
    elapsed: Duration,
}

impl Trial {
    fn whole(&self) -> bool {
        self.received as f64 >= self.sent as f64 * (1.0 - LOSS)
    }

    fn sent_rate(&self) -> f64 {
        self.sent as f64 / self.elapsed.as_secs_f64()
    }

    fn received_rate(&self) -> f64 {
        self.received as f64 / self.elapsed.as_secs_f64()
    }
}

impl Flood {
    /// Opens both ends.
    pub(super) fn open(from: &NetNs, to: (&NetNs, IpAddr)) -> anyhow::Result<Self> {
        let (namespace, address) = to;
        let bind = || -> io::Result<_> {
            let socket = UdpSocket::bind(SocketAddr::new(address, 0))?;
            socket.set_read_timeout(Some(TICK))?;
            // The path is measured, not the receiver's patience; without the right to, what the
            // system allows.
            if set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
                set_socket_recv_buffer_size(&socket, BUFFER)?;
            }
            Ok(socket)
        };
        let socket = namespace.run(bind)?.context("bind")?;
        let target = socket.local_addr()?;
        let connect = || -> io::Result<_> {
            let socket = UdpSocket::bind(match target {
                SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
                SocketAddr::V6(_) => SocketAddr::from(([0_u16; 8], 0)),
            })?;
            socket.connect(target)?;
            Ok(socket)
        };
        let sender = from.run(connect)?.context("connect")?;
        let counter = Arc::new(Counter::default());
        let shared = Arc::clone(&counter);
        let receiver = thread::Builder::new().name("flood-receive".into()).spawn(move || receive(&socket, &shared))?;
        Ok(Self { sender, counter, receiver: Some(receiver), trial: 0 })
    }

    /// The highest rate, in datagrams a second, of which less than one in a thousand is lost.
    pub(super) fn search(&mut self, lasting: Duration) -> anyhow::Result<f64> {
        let all = self.trial(f64::INFINITY, lasting)?;
        anyhow::ensure!(all.received > 0, "nothing of {} datagrams arrived", all.sent);
        if all.whole() {
            return Ok(all.sent_rate());
        }
        let (mut good, mut bad) = (0.0_f64, f64::INFINITY);
        let mut rate = all.received_rate();
        for _ in 0..TRIALS {
            let mut trial = self.trial(rate, lasting)?;
            if !trial.whole() {
                // Once more: one loss may be the machine's and not the path's.
                trial = self.trial(rate, lasting)?;
            }
            if trial.whole() {
                good = good.max(trial.sent_rate());
                if trial.sent_rate() < rate * KEPT {
                    break;
                }
            } else {
                bad = bad.min(rate);
            }
            if bad <= good * CLOSE {
                break;
            }
            rate = match (good > 0.0, bad.is_finite()) {
                (true, true) => (good * bad).sqrt(),
                (true, false) => rate * 1.25,
                (false, _) => rate * 0.7,
            };
        }
        anyhow::ensure!(good > 0.0, "even {rate:.0} datagrams a second do not arrive whole");
        Ok(good)
    }

    fn trial(&mut self, rate: f64, lasting: Duration) -> anyhow::Result<Trial> {
        self.trial += 1;
        self.counter.trial.store(self.trial, Ordering::Release);
        self.counter.received.store(0, Ordering::Release);
        let mut datagram = [0; LENGTH];
        datagram[..8].copy_from_slice(&self.trial.to_be_bytes());
        let (start, mut sent) = (Instant::now(), 0_u64);
        let elapsed = loop {
            let elapsed = start.elapsed();
            if elapsed >= lasting {
                break elapsed;
            }
            let due = (rate * elapsed.as_secs_f64()).min(u64::MAX as f64) as u64;
            match due.saturating_sub(sent) {
                0 => thread::sleep(PAUSE),
                behind => {
                    let number = usize::try_from(behind).unwrap_or(BATCH).min(BATCH);
                    // What the kernel refuses for want of memory is lost like any other.
                    sent += sys::send_many(&self.sender, &datagram, number).unwrap_or(1) as u64;
                }
            }
        };
        let mut received = self.counter.received.load(Ordering::Acquire);
        for _ in 0..25 {
            thread::sleep(TICK);
            let now = self.counter.received.load(Ordering::Acquire);
            if now == received && now > 0 || now >= sent {
                break;
            }
            received = now;
        }
        Ok(Trial { sent, received: self.counter.received.load(Ordering::Acquire), elapsed })
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.counter.stop.store(true, Ordering::Release);
        if let Some(thread) = self.receiver.take() {
            let _ = thread.join();
        }
    }
}

fn receive(socket: &UdpSocket, counter: &Counter) {
    let mut datagrams = [[0; LENGTH]; BATCH];
    while !counter.stop.load(Ordering::Acquire) {
        // A time-out is the moment to look whether it is over.
        let Ok(number) = sys::receive_many(socket, &mut datagrams) else { continue };
        let trial = counter.trial.load(Ordering::Acquire).to_be_bytes();
        let ours = datagrams.iter().take(number).filter(|datagram| datagram.starts_with(&trial)).count();
        counter.received.fetch_add(ours as u64, Ordering::Release);
    }
}
