//! Questions that are not the mesh's: asked of the host's resolvers, one after the other until one
//! answers (names N10, N11), and not before what they have said is too old (names N14).
//!
//! ```text
//!   query ─► resolver 1 ── 0.5 s without an answer, or a failure ──► resolver 2 too ─► …
//!                └──────────────── the first good answer of any of them ─────────► client
//! ```
//!
//! The query's bytes travel as they came, over what they came: so does whatever extension of DNS is
//! in them. Only the id is another, for whoever can guess it could answer.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::cache::{Asked, Cache};
use super::message::{Question, Transport, answers, failure, is_failure, passed_on, renumbered};
use super::resolvers::Resolvers;

/// After how long without an answer the next resolver is asked too.
const NEXT_AFTER: Duration = Duration::from_millis(500);
/// How often each resolver is asked at most.
const ROUNDS: usize = 2;
/// When it is given up: clients ask again after 5 s, and should have been told before.
const GIVE_UP: Duration = Duration::from_secs(4);
/// Most questions that are under way to resolvers.
const UNDER_WAY: usize = 1024;
/// Most bytes of a message.
const MESSAGE_MAX: usize = 65_535;

/// Asks the host's resolvers.
#[derive(Debug)]
pub(super) struct Forward {
    resolvers: Arc<Resolvers>,
    cache: Cache,
    room: Semaphore,
}

impl Forward {
    pub(super) fn new(resolvers: Resolvers) -> Self {
        Self { resolvers: Arc::new(resolvers), cache: Cache::default(), room: Semaphore::new(UNDER_WAY) }
    }

    /// The answer to a query, if it is known.
    pub(super) fn known(&self, query: &[u8], question: &Question, transport: Transport) -> Option<Vec<u8>> {
        let asked = Asked::read(query, question)?;
        let now = Instant::now().into_std();
        self.cache.get(self.resolvers.version(), (query, question), &asked, transport, now)
    }

    /// The answer to a query: a resolver's, or that there is none.
    pub(super) async fn answer(&self, query: &[u8], question: &Question, transport: Transport) -> Vec<u8> {
        let Ok(_room) = self.room.try_acquire() else {
            return failure(question, ResponseCode::ServFail);
        };
        let version = self.resolvers.version();
        let Some(answer) = self.ask(query.into(), question, transport).await else {
            return failure(question, ResponseCode::ServFail);
        };
        if let Some(asked) = Asked::read(query, question) {
            self.cache.put(version, &asked, question, &answer, Instant::now().into_std());
        }
        passed_on(answer, query, question)
    }

    async fn ask(&self, query: Arc<[u8]>, question: &Question, transport: Transport) -> Option<Vec<u8>> {
        let servers = self.resolvers.in_order();
        let deadline = Instant::now() + GIVE_UP;
        let mut waiting = servers.iter().cycle().take(servers.len() * ROUNDS);
        let mut asked = JoinSet::new();
        let mut silent: Vec<(SocketAddr, Instant)> = Vec::new();
        let mut refusal = None;
        let mut next_at = Instant::now();
        while Instant::now() < deadline {
            if next_at <= Instant::now() {
                match waiting.next() {
                    Some(&server) => {
                        let (query, question) = (Arc::clone(&query), question.clone());
                        silent.push((server, Instant::now()));
                        asked.spawn(
                            async move { (server, ask_one(server, &query, &question, transport, deadline).await) },
                        );
                        next_at = Instant::now() + NEXT_AFTER;
                    }
                    None if asked.is_empty() => break,
                    None => next_at = deadline,
                }
            }
            tokio::select! {
                Some(done) = asked.join_next() => {
                    let Ok((server, answer)) = done else { continue };
                    match answer {
                        Some(answer) if !is_failure(&answer) => {
                            self.note(server, &silent);
                            return Some(answer);
                        }
                        Some(answer) => {
                            silent.retain(|(other, _)| *other != server);
                            refusal = Some(answer);
                            next_at = Instant::now();
                        }
                        // The port is closed, or the way is: nothing to wait for.
                        None => next_at = Instant::now(),
                    }
                }
                () = sleep_until(next_at.min(deadline)) => {}
            }
        }
        refusal
    }

    /// One answered; those that had their time and did not come after it for a while.
    fn note(&self, server: SocketAddr, silent: &[(SocketAddr, Instant)]) {
        for (other, since) in silent.iter().filter(|(other, _)| *other != server) {
            if since.elapsed() >= NEXT_AFTER {
                self.resolvers.note(*other, false);
            }
        }
        self.resolvers.note(server, true);
    }
}

/// One resolver's answer to a query; none if it cannot be asked, or does not answer in time.
async fn ask_one(
    server: SocketAddr,
    query: &[u8],
    question: &Question,
    transport: Transport,
    deadline: Instant,
) -> Option<Vec<u8>> {
    let mut id = [0; 2];
    aws_lc_rs::rand::fill(&mut id).ok()?;
    let id = u16::from_ne_bytes(id);
    let query = renumbered(query, id);
    let answer = async {
        match transport {
            Transport::Udp => over_udp(server, &query, id, question).await,
            Transport::Tcp => over_tcp(server, &query, id, question).await,
        }
    };
    match timeout_at(deadline, answer).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::debug!(%server, %error, "a resolver cannot be asked");
            None
        }
        Err(_) => None,
    }
}

async fn over_udp(server: SocketAddr, query: &[u8], id: u16, question: &Question) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A socket for each question: its port is one more thing to guess, and only the server is heard.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MESSAGE_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&buffer[..length], id, query, question) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8], id: u16, question: &Question) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&framed(query)).await?;
    loop {
        let length = stream.read_u16().await?;
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await?;
        if answers(&answer, id, query, question) {
            return Ok(answer);
        }
    }
}

/// A message with its length before it, as it is sent over TCP.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    // No message is longer: what comes over TCP has its length in two bytes, and what is made here a bound.
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], message].concat()
}
