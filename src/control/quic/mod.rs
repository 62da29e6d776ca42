//! QUIC links: one endpoint on the shared UDP port, TLS 1.3 with raw public keys on both sides.
//!
//! The rules are in `docs/quic.md`.
//!
//! ```text
//!  mod.rs         dial, accept, the table of connections
//!  connection.rs  one connection: messages over one stream, a reader, a writer, its end
//!  socket.rs      the shared port; peers behind relays as addresses
//!  tls.rs         raw keys, and what is proven by them
//! ```

mod connection;
mod socket;
mod tls;

use std::collections::HashMap;
use std::fmt;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_proto::control::{ConnId, Connected, DialId};
use mesh_proto::data::Hop;
use quinn::{
    ClientConfig, Connection, Endpoint, IdleTimeout, ServerConfig, TokioRuntime, TransportConfig,
    ValidationTokenConfig, VarInt,
};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::debug;
use zeroize::Zeroizing;

use connection::Link;
use socket::SharedPort;

use crate::data::DataHandle;

/// How long a handshake may take, ours or the other end's.
const HANDSHAKE: Duration = Duration::from_secs(4);
/// How long a shutdown waits for the other ends.
const SHUTDOWN: Duration = Duration::from_secs(1);
/// Events that may wait for the router's loop.
const EVENTS: usize = 64;
/// Incoming handshakes beyond which the others must show first that their address is theirs.
const PENDING_UNPROVEN: usize = 64;
/// Incoming handshakes beyond which strangers are not answered.
const PENDING_MAX: usize = 1024;
/// Connections beyond which no more are accepted.
const LINKS_MAX: usize = 4096;
/// Bytes kept of one connection that has not been accepted yet, and of all of them.
const INCOMING_BYTES: u64 = 16 << 10;
const INCOMING_BYTES_TOTAL: u64 = 4 << 20;
/// Flow-control windows, in bytes: a connection carries control messages, not bulk.
const WINDOW: u32 = 256 << 10;
/// First guess of a round trip: a lost first datagram is repeated after three of these.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Keeps the path's NAT open.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A connection without a sign of life for this long, in milliseconds, is gone.
const IDLE_MS: u32 = 30_000;

/// What happens on the connections.
///
/// Each `Connected` is followed, in the end, by exactly one `Disconnected` (also when we closed
/// it ourselves), with the `Message`s between them. Each dial ends in exactly one `Connected`
/// that carries its [`DialId`] or one `DialFailed`.
#[derive(Debug)]
pub enum QuicEvent {
    /// A connection is there, by our dial or the other end's.
    Connected(ConnId, Connected),
    /// A dial came to nothing.
    DialFailed(DialId, String),
    /// A whole message, of 1 to [`MESSAGE_MAX`](mesh_proto::control::MESSAGE_MAX) bytes.
    Message(ConnId, Vec<u8>),
    /// A connection is gone, with the other end's reason or the transport's.
    Disconnected(ConnId, String),
}

/// What the endpoint is made of.
pub struct QuicConfig {
    /// The 32-byte seed of this peer's Ed25519 signing key.
    pub seed: Zeroizing<[u8; 32]>,
    /// The shared UDP socket, the same as the data thread's. This side only sends.
    pub socket: Arc<UdpSocket>,
    /// Carries datagrams to peers that are reached through relays.
    pub data: DataHandle,
    /// [`DataOutputs::quic`](crate::data::DataOutputs::quic): what the data thread received.
    pub incoming: mpsc::Receiver<(Hop, Vec<u8>)>,
}

impl fmt::Debug for QuicConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicConfig").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// The endpoint. Clones share it.
#[derive(Clone)]
pub struct Quic {
    shared: Arc<Shared>,
}

impl fmt::Debug for Quic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quic").field("endpoint", &self.shared.endpoint).finish_non_exhaustive()
    }
}

impl Quic {
    /// Starts the endpoint. Must be called within a tokio runtime. The events come over a bounded
    /// queue; while it is full, connections stop reading, so it must be drained.
    ///
    /// # Errors
    /// When the key is unusable or the socket has no address.
    pub fn start(config: QuicConfig) -> anyhow::Result<(Self, mpsc::Receiver<QuicEvent>)> {
        let tls = tls::configure(&config.seed)?;
        let port = SharedPort::new(config.socket, config.data, config.incoming)?;
        let transport = Arc::new(transport());
        let mut server = ServerConfig::with_crypto(tls.server);
        server.transport_config(transport.clone());
        server.max_incoming(PENDING_MAX);
        server.incoming_buffer_size(INCOMING_BYTES);
        server.incoming_buffer_size_total(INCOMING_BYTES_TOTAL);
        // No token for later: a connection is not dialled often enough to be worth one.
        server.validation_token_config(ValidationTokenConfig::default().sent(0).clone());
        let mut client = ClientConfig::new(tls.client);
        client.transport_config(transport);
        let runtime = Arc::new(TokioRuntime);
        let mut endpoint = Endpoint::new_with_abstract_socket(tls.endpoint, Some(server), Arc::new(port), runtime)?;
        endpoint.set_default_client_config(client);
        let (events, events_end) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared {
            endpoint,
            runtime: Handle::current(),
            events,
            links: Mutex::new(Some(HashMap::new())),
            next: AtomicU64::new(1),
            pending: AtomicUsize::new(0),
        });
        tokio::spawn(accept(shared.clone()));
        Ok((Self { shared }, events_end))
    }

    /// Begins to dial; ends in [`QuicEvent::Connected`] or [`QuicEvent::DialFailed`] within 5 s.
    pub fn dial(&self, dial: DialId, hop: Hop) {
        let shared = self.shared.clone();
        self.shared.runtime.spawn(async move {
            match connect(&shared, hop).await {
                Ok(connection) => connection::serve(shared, connection, hop, Some(dial)).await,
                Err(reason) => {
                    let _ = shared.events.send(QuicEvent::DialFailed(dial, reason)).await;
                }
            }
        });
    }

    /// Queues a message; a connection whose queue is over its bound (256 messages, 8 MiB) is
    /// closed as too slow. Does nothing for a connection that is gone.
    pub fn send(&self, conn: ConnId, bytes: Vec<u8>) {
        if let Some(link) = self.shared.link(conn) {
            link.send(bytes);
        }
    }

    /// Closes a connection after what was queued before has been sent (or 500 ms have passed);
    /// the reason reaches the other end as text.
    pub fn close(&self, conn: ConnId, reason: &str) {
        if let Some(link) = self.shared.link(conn) {
            link.close(reason);
        }
    }

    /// Closes every connection as [`Self::close`] does, refuses new ones, and waits until the
    /// other ends know it, at most one second.
    pub async fn shutdown(&self, reason: &str) {
        let shared = &self.shared;
        shared.endpoint.set_server_config(None);
        let links = shared.links.lock().unwrap_or_else(PoisonError::into_inner).take();
        for link in links.into_iter().flat_map(HashMap::into_values) {
            link.close(reason);
        }
        let _ = timeout(SHUTDOWN, shared.endpoint.wait_idle()).await;
        shared.endpoint.close(tls::CLOSE, connection::clean(reason).as_bytes());
    }
}

/// What the handles and the tasks share.
struct Shared {
    endpoint: Endpoint,
    runtime: Handle,
    events: mpsc::Sender<QuicEvent>,
    /// `None` once the endpoint is being shut down.
    links: Mutex<Option<HashMap<ConnId, Arc<Link>>>>,
    next: AtomicU64,
    /// Connections from others whose handshake is under way.
    pending: AtomicUsize,
}

impl Shared {
    /// Names a connection; names are never used again. `None` if the endpoint is shutting down.
    fn add(&self, link: Arc<Link>) -> Option<ConnId> {
        let conn = ConnId(self.next.fetch_add(1, Ordering::Relaxed));
        self.links.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.insert(conn, link);
        Some(conn)
    }

    fn remove(&self, conn: ConnId) {
        if let Some(links) = self.links.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            links.remove(&conn);
        }
    }

    fn link(&self, conn: ConnId) -> Option<Arc<Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.get(&conn).cloned()
    }

    fn count(&self) -> usize {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, HashMap::len)
    }
}

fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::from(VarInt::from_u32(IDLE_MS));
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(u64::from(WINDOW))
        .initial_rtt(INITIAL_RTT)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(idle))
        // Fits into every path that IPv6 may take, and leaves room for a relay's header (quic Q2).
        .initial_mtu(1200)
        .mtu_discovery_config(None)
        .enable_segmentation_offload(false);
    config
}

async fn connect(shared: &Shared, hop: Hop) -> Result<Connection, String> {
    let connecting = shared
        .endpoint
        .connect(socket::address_of(hop), tls::SERVER_NAME)
        .map_err(|error| format!("cannot dial: {error}"))?;
    match timeout(HANDSHAKE, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(connection::explain(&error)),
        Err(_) => Err(format!("no answer within {} s", HANDSHAKE.as_secs())),
    }
}

/// Takes the connections that others make.
async fn accept(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        let pending = shared.pending.load(Ordering::Relaxed);
        if pending >= PENDING_MAX || shared.count() >= LINKS_MAX {
            incoming.ignore();
            continue;
        }
        // A stranger who writes any source address costs us no handshake (quic Q14). A relayed peer cannot
        // repeat a token, because a token holds no scope; relays stand for their neighbours.
        if pending >= PENDING_UNPROVEN && !incoming.remote_address_validated() {
            match socket::hop_of(incoming.remote_address()) {
                Hop::Direct(_) => drop(incoming.retry()),
                Hop::Relayed(_) => incoming.ignore(),
            }
            continue;
        }
        shared.pending.fetch_add(1, Ordering::Relaxed);
        let shared = shared.clone();
        tokio::spawn(async move {
            let hop = socket::hop_of(incoming.remote_address());
            let connection = match incoming.accept() {
                Ok(connecting) => timeout(HANDSHAKE, connecting).await,
                Err(error) => Ok(Err(error)),
            };
            shared.pending.fetch_sub(1, Ordering::Relaxed);
            match connection {
                Ok(Ok(connection)) => connection::serve(shared, connection, hop, None).await,
                Ok(Err(error)) => debug!(?hop, %error, "a handshake failed"),
                Err(_) => debug!(?hop, "a handshake was not completed"),
            }
        });
    }
}

#[cfg(test)]
mod shared_port_tests;
#[cfg(test)]
mod tests;
