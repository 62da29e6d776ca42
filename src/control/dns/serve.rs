//! The sockets at which questions come in, over UDP and TCP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::forward::{Forward, framed};
use super::message::Transport;
use super::zone::{Reply, Zone};

/// Longest query that is read over UDP.
const QUERY_MAX: usize = 4096;
/// Most connections at one address.
const CONNECTIONS: usize = 256;
/// Most answers of one connection that are under way: who asks for more waits.
const PIPELINE: usize = 64;
/// How long a connection may be idle, and a client may take to take an answer.
const IDLE: Duration = Duration::from_secs(10);
/// After a datagram or a connection could not be taken: until others have ended.
const BREATH: Duration = Duration::from_millis(100);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Both sockets of one address.
#[derive(Debug)]
pub struct Sockets {
    pub(super) address: SocketAddr,
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

impl Sockets {
    /// Binds both, also at an address that the host does not have yet: `weft expose` may give it.
    ///
    /// # Errors
    /// A port in use, or one that the process may not bind.
    pub fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let explain = |error: std::io::Error| {
            let advice = match error.raw_os_error() {
                Some(libc::EADDRINUSE) => "something answers there already; choose another address or port",
                Some(libc::EACCES | libc::EPERM) => "not permitted: ports below 1024 need root or CAP_NET_BIND_SERVICE",
                _ => "cannot be bound",
            };
            std::io::Error::new(error.kind(), format!("--dns-listen {address}: {advice} ({error})"))
        };
        let tcp = open(address, SocketType::STREAM).map_err(explain)?;
        net::listen(&tcp, BACKLOG).map_err(|error| explain(error.into()))?;
        let tcp = TcpListener::from_std(tcp.into())?;
        // Port 0 is any, but the same for both.
        let address = SocketAddr::new(address.ip(), tcp.local_addr()?.port());
        let udp = UdpSocket::from_std(open(address, SocketType::DGRAM).map_err(explain)?.into())?;
        Ok(Self { address, udp, tcp })
    }

    /// Where they are bound.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

fn open(address: SocketAddr, kind: SocketType) -> std::io::Result<std::os::fd::OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if kind == SocketType::STREAM {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if address.is_ipv4() {
        sockopt::set_ip_freebind(&socket, true)?;
    } else {
        sockopt::set_ipv6_freebind(&socket, true)?;
    }
    net::bind(&socket, &address)?;
    Ok(socket)
}

/// Who answers.
#[derive(Debug)]
pub(super) struct Responder {
    pub(super) zone: Zone,
    pub(super) forward: Forward,
}

/// Answers what comes in over UDP, until the task is aborted.
pub(super) async fn serve_udp(socket: UdpSocket, responder: Arc<Responder>) {
    let socket = Arc::new(socket);
    let mut buffer = [0; QUERY_MAX];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Such as an ICMP error for an answer that nobody waited for.
                tracing::debug!(%error, "a datagram could not be received");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let query = &buffer[..length];
        match responder.zone.reply(query, Transport::Udp) {
            Reply::Nothing => {}
            Reply::Answer(answer) => send(&socket, &answer, from).await,
            Reply::AskOthers(question) => {
                if let Some(answer) = responder.forward.known(query, &question, Transport::Udp) {
                    send(&socket, &answer, from).await;
                    continue;
                }
                let (socket, responder, query) = (Arc::clone(&socket), Arc::clone(&responder), query.to_vec());
                tokio::spawn(async move {
                    let answer = responder.forward.answer(&query, &question, Transport::Udp).await;
                    send(&socket, &answer, from).await;
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(answer, to).await {
        tracing::debug!(%to, %error, "an answer could not be sent");
    }
}

/// Answers what comes in over TCP, until the task is aborted.
pub(super) async fn serve_tcp(listener: TcpListener, responder: Arc<Responder>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let responder = Arc::clone(&responder);
                tokio::spawn(async move {
                    converse(stream, responder).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

/// One connection: all that was asked is answered, in the order in which the answers are there.
async fn converse(stream: TcpStream, responder: Arc<Responder>) {
    let (mut reader, writer) = stream.into_split();
    let (answers, outbox) = mpsc::channel::<Vec<u8>>(PIPELINE);
    let writing = tokio::spawn(write(writer, outbox));
    let room = Arc::new(Semaphore::new(PIPELINE));
    loop {
        let message = async {
            let length = reader.read_u16().await?;
            let mut query = vec![0; length.into()];
            reader.read_exact(&mut query).await?;
            Ok::<_, std::io::Error>(query)
        };
        let Ok(Ok(query)) = timeout(IDLE, message).await else { break };
        match responder.zone.reply(&query, Transport::Tcp) {
            Reply::Nothing => break,
            Reply::Answer(answer) => {
                if answers.send(answer).await.is_err() {
                    break;
                }
            }
            Reply::AskOthers(question) => {
                if let Some(answer) = responder.forward.known(&query, &question, Transport::Tcp) {
                    if answers.send(answer).await.is_err() {
                        break;
                    }
                    continue;
                }
                let Ok(place) = Arc::clone(&room).acquire_owned().await else { break };
                let (answers, responder) = (answers.clone(), Arc::clone(&responder));
                tokio::spawn(async move {
                    let answer = responder.forward.answer(&query, &question, Transport::Tcp).await;
                    // The client may have gone.
                    let _ = answers.send(answer).await;
                    drop(place);
                });
            }
        }
    }
    // What is under way is still answered: a client may close its end as soon as it has asked.
    drop(answers);
    let _ = writing.await;
}

async fn write(mut writer: OwnedWriteHalf, mut outbox: mpsc::Receiver<Vec<u8>>) {
    while let Some(answer) = outbox.recv().await {
        if !matches!(timeout(IDLE, writer.write_all(&framed(&answer))).await, Ok(Ok(()))) {
            return;
        }
    }
}
