//! Round trips: one after the other, or many at once.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::event::{
    Timespec,
    epoll::{self, EventData, EventFlags},
};
use weft::{
    lab::traffic::{ECHO_PORT, Echo},
    netlink::NetNs,
};

use super::sys;

/// Round trips that are under way at once.
pub(super) const MANY: usize = 64;
/// A question that is not answered by then is asked again.
const LOST: Duration = Duration::from_millis(200);

/// One after the other; their times, sorted.
pub(super) fn alone(from: &NetNs, to: (&NetNs, IpAddr), lasting: Duration) -> anyhow::Result<Vec<Duration>> {
    let _echo = Echo::start_in(to.0).context("start the echo")?;
    let socket = open(from, to.1)?;
    socket.set_read_timeout(Some(LOST))?;
    let mut times = Vec::new();
    let (start, mut answer) = (Instant::now(), [0; 64]);
    for number in 0_u64.. {
        let question = number.to_be_bytes();
        let asked = Instant::now();
        if asked.duration_since(start) >= lasting {
            break;
        }
        socket.send(&question)?;
        // An answer to an earlier question is passed over; silence is a lost one.
        while let Ok(length) = socket.recv(&mut answer) {
            if answer[..length] == question {
                times.push(asked.elapsed());
                break;
            }
        }
    }
    anyhow::ensure!(!times.is_empty(), "no answer in {lasting:?}");
    times.sort_unstable();
    Ok(times)
}

/// Many at once, each on a socket of its own; round trips a second.
pub(super) fn concurrent(from: &NetNs, to: (&NetNs, IpAddr), lasting: Duration) -> anyhow::Result<f64> {
    let _echo = Echo::start_in(to.0).context("start the echo")?;
    let sockets: Vec<UdpSocket> = (0..MANY).map(|_| open(from, to.1)).collect::<anyhow::Result<_>>()?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, socket) in sockets.iter().enumerate() {
        socket.set_nonblocking(true)?;
        epoll::add(&poll, socket, EventData::new_u64(index as u64), EventFlags::IN)?;
    }
    let mut asked = [Instant::now(); MANY];
    for socket in &sockets {
        socket.send(&[0; 64])?;
    }
    // The first second of a path is not what it is afterwards: caches, learned addresses.
    let warm = Instant::now() + lasting / 4;
    let end = warm + lasting;
    let (mut answers, mut looked) = (0_u64, Instant::now());
    let mut events = Vec::with_capacity(MANY);
    let mut buffer = [0; 64];
    let tick = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    loop {
        events.clear();
        match epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), Some(&tick)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let now = Instant::now();
        if now >= end {
            break;
        }
        for event in &events {
            let index = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            let Some(socket) = sockets.get(index) else { continue };
            if socket.recv(&mut buffer).is_ok() {
                answers += u64::from(now >= warm);
                asked[index] = now;
                socket.send(&buffer)?;
            }
        }
        if now.duration_since(looked) > LOST {
            looked = now;
            for (socket, asked) in sockets.iter().zip(&mut asked) {
                if now.duration_since(*asked) > LOST {
                    *asked = now;
                    socket.send(&buffer)?;
                }
            }
        }
    }
    anyhow::ensure!(answers > 0, "no answer in {lasting:?}");
    Ok(answers as f64 / lasting.as_secs_f64())
}

fn open(from: &NetNs, to: IpAddr) -> anyhow::Result<UdpSocket> {
    let connect = || -> io::Result<_> {
        let socket = UdpSocket::bind(match to {
            IpAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
            IpAddr::V6(_) => SocketAddr::from(([0_u16; 8], 0)),
        })?;
        socket.connect((to, ECHO_PORT))?;
        Ok(socket)
    };
    from.run(connect)?.context("open a socket")
}

/// Keeps every processor from sleeping, with loops that anything else pushes aside.
pub(super) struct Awake {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Awake {
    /// Starts one loop a processor.
    pub(super) fn start() -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let number = thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..number)
            .map(|_| {
                let stop = Arc::clone(&stop);
                thread::Builder::new().name("awake".into()).spawn(move || {
                    // At any other priority it would take time from what is measured.
                    if sys::only_when_idle().is_ok() {
                        while !stop.load(Ordering::Relaxed) {
                            std::hint::spin_loop();
                        }
                    }
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { stop, threads })
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
