//! A server that says its name and from where it was asked: who answers for a service, and what became of
//! the client's address on the way.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use weft::{lab::wait_until, netlink::NetNs};

use crate::harness::Must as _;

/// Where it listens, by TCP and UDP, IPv4 and IPv6.
pub(crate) const PORT: u16 = 8080;
/// Bytes of a question by TCP: more than goes into one packet.
const QUESTION: usize = 4000;
/// How long it is asked again until there is an answer.
const PATIENCE: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(50);
/// After this a datagram is sent again.
const AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// What a witness has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Its name.
    pub(crate) by: String,
    /// Whom it was asked by.
    pub(crate) from: IpAddr,
}

/// It serves until it is dropped.
pub(crate) struct Witness {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Witness {
    #[track_caller]
    pub(crate) fn start(namespace: &NetNs, name: &str) -> Self {
        let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), PORT);
        let bind = || -> io::Result<_> { Ok((TcpListener::bind(any)?, UdpSocket::bind(any)?)) };
        let (tcp, udp) = namespace.run(bind).must("enter the namespace").must("listen");
        set_socket_timeout(&tcp, Timeout::Recv, Some(TICK)).must("a time-out");
        udp.set_read_timeout(Some(TICK)).must("a time-out");
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, me) = (stop.clone(), name.to_owned());
        let streams = thread::spawn(move || serve_tcp(&tcp, &me, &flag));
        let (flag, me) = (stop.clone(), name.to_owned());
        let datagrams = thread::spawn(move || serve_udp(&udp, &me, &flag));
        Self { stop, threads: vec![streams, datagrams] }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn testimony(name: &str, from: SocketAddr) -> String {
    format!("{name} {}", from.ip().to_canonical())
}

fn serve_tcp(listener: &TcpListener, name: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        // A time-out, or somebody who went away: the asker notices.
        let Ok((mut stream, from)) = listener.accept() else { continue };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        if stream.read_exact(&mut [0; QUESTION]).is_ok() {
            let _ = stream.write_all(testimony(name, from).as_bytes());
        }
    }
}

fn serve_udp(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(testimony(name, from).as_bytes(), from);
        }
    }
}

/// Asks whoever answers at an address, from a namespace.
pub(crate) fn ask(from: &NetNs, protocol: Protocol, to: SocketAddr, limit: Duration) -> io::Result<Seen> {
    let text = match protocol {
        Protocol::Tcp => by_tcp(from, to, limit),
        Protocol::Udp => by_udp(from, to, limit),
    }?;
    let wrong = || io::Error::other(format!("not what a witness says: {text:?}"));
    let (by, from) = text.split_once(' ').ok_or_else(wrong)?;
    Ok(Seen { by: by.to_owned(), from: from.parse().map_err(|_| wrong())? })
}

fn by_tcp(from: &NetNs, to: SocketAddr, limit: Duration) -> io::Result<String> {
    let connect = || TcpStream::connect_timeout(&to, limit);
    let mut stream = from.run(connect).map_err(io::Error::other)??;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(&[b'?'; QUESTION])?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn by_udp(from: &NetNs, to: SocketAddr, limit: Duration) -> io::Result<String> {
    let any = SocketAddr::new(if to.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() }, 0);
    let open = || -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(any)?;
        // From now on only answers of that address are heard.
        socket.connect(to)?;
        Ok(socket)
    };
    let socket = from.run(open).map_err(io::Error::other)??;
    socket.set_read_timeout(Some(AGAIN))?;
    let end = Instant::now() + limit;
    let mut buffer = [0; 256];
    loop {
        let failed = match socket.send(b"?").and_then(|_| socket.recv(&mut buffer)) {
            Ok(length) => return Ok(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            Err(error) => error,
        };
        if Instant::now() >= end {
            return Err(io::Error::new(failed.kind(), format!("no answer by UDP from {to} in {limit:?}: {failed}")));
        }
        // One that is refused comes back at once.
        if failed.kind() == io::ErrorKind::ConnectionRefused {
            thread::sleep(TICK);
        }
    }
}

/// The same, again and again until there is an answer: neighbours have to be found, addresses to be tried.
#[track_caller]
pub(crate) fn seen(from: &NetNs, protocol: Protocol, to: SocketAddr) -> Seen {
    let mut last = None;
    let answered = wait_until(PATIENCE, || {
        let answer = ask(from, protocol, to, Duration::from_secs(2));
        let fine = answer.is_ok();
        last = Some(answer);
        fine
    });
    let last = last.must("at least one attempt");
    assert!(answered, "{protocol:?} from {} to {to}: {last:?}", from.label());
    last.must("an answer")
}
