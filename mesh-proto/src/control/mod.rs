//! The control path: called when the mesh changes or a timer fires.
//!
//! ```text
//!  connection ─► handshake ─► link ─► gossip ─► topology ─► routes ─► handover::Tables
//!  connector ─► Output::Dial                └─► Output::App (address protocol and others)
//! ```

mod admission;
mod backoff;
pub mod carrier;
mod connector;
mod crypto;
pub mod fastpath;
pub mod gossip;
mod guard;
pub mod handshake;
pub mod identity;
pub mod limits;

pub mod names;
pub mod node;
pub mod record;
mod revocation;
pub mod routes;

mod owners;
mod partner;
pub mod terms;
mod timers;
pub mod topology;
pub mod trees;
mod wanted;
mod way;
mod window;

use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;

use crate::data::Hop;
use crate::handover::{Command, Suite};
use crate::id::{Incarnation, PeerId};

/// A QUIC connection (or what stands for one in the simulator), named by whoever runs the IO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// An attempt to dial, named by the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DialId(pub u64);

/// What the transport knows of a new connection: both ends have proven their TLS key.
#[derive(Clone)]
pub struct Connected {
    /// Direct or through relays.
    pub hop: Hop,
    /// Our dial, if we dialled; `None` if the other end did.
    pub dial: Option<DialId>,
    /// The other end's Ed25519 public key, proven in TLS.
    pub sign_key: [u8; 32],
    /// 32 bytes that both ends of this very connection share (TLS exporter), and nobody else.
    pub exporter: [u8; 32],
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The exporter is a secret.
        f.debug_struct("Connected").field("hop", &self.hop).field("dial", &self.dial).finish_non_exhaustive()
    }
}

/// What a node asks of whoever runs it.
#[derive(Debug)]
pub enum Output {
    /// Connect to an address, or to a peer through relays; answer with
    /// [`node::Node::handle_connected`] or [`node::Node::handle_dial_failed`].
    Dial {
        /// Name of the attempt.
        dial: DialId,
        /// Where to.
        hop: Hop,
    },
    /// Find the addresses of a host that the operator named; answer with
    /// [`node::Node::handle_resolved`].
    Resolve {
        /// As the operator wrote it: `HOST[:PORT]`.
        target: String,
    },
    /// Send a message on a connection: reliable, in order, with its boundaries kept.
    Send {
        /// The connection.
        conn: ConnId,
        /// At most [`MESSAGE_MAX`] bytes.
        bytes: Vec<u8>,
    },
    /// Close a connection. The reason goes to the other end as text.
    Close {
        /// The connection.
        conn: ConnId,
        /// One clear line.
        reason: String,
    },
    /// A decision for the data path.
    Data(Command),
    /// A message of an application that rides on the mesh (the address protocol).
    App {
        /// The peer that sent it.
        from: PeerId,
        /// Its incarnation.
        incarnation: Incarnation,
        /// Its bytes.
        payload: Vec<u8>,
    },
    /// An entry of the trust table to keep in the data directory, or to delete there; the next
    /// start gives them all back ([`TrustConfig::kept`]).
    Keep {
        /// Its name.
        key: Vec<u8>,
        /// What to keep; `None` deletes.
        value: Option<Vec<u8>>,
    },
    /// Something that an operator may want to know.
    Event(Event),
}

/// Largest message on a connection, in bytes. A full table of 16,384 address blocks is the
/// largest that is sent today (about 400 KB).
pub const MESSAGE_MAX: usize = 1 << 20;

/// What happened in the mesh: the source of logs, `weft events` and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A peer was heard of for the first time, or in a new incarnation.
    PeerAppeared {
        /// Its id.
        peer: PeerId,
        /// Its name.
        name: String,
        /// Its incarnation.
        incarnation: Incarnation,
    },
    /// A peer can be reached no more, by any path.
    PeerUnreachable {
        /// Its id.
        peer: PeerId,
        /// Its name.
        name: String,
    },
    /// A peer can be reached (again).
    PeerReachable {
        /// Its id.
        peer: PeerId,
        /// Its name.
        name: String,
    },
    /// A peer was forgotten after a long absence.
    PeerForgotten {
        /// Its id.
        peer: PeerId,
        /// Its name.
        name: String,
    },
    /// A direct link works, both ways, on the way that user frames take.
    LinkUp {
        /// The other end.
        peer: PeerId,
        /// Its name.
        name: String,
        /// Its address.
        address: SocketAddr,
        /// First measured round trip.
        rtt: Duration,
    },
    /// A direct link is gone.
    LinkDown {
        /// The other end.
        peer: PeerId,
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// A connection was refused, by us or by the other end: one clear line.
    Refused {
        /// The other end.
        hop: Hop,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A peer's keys were revoked: it is shut out from now on.
    Revoked {
        /// Its id.
        peer: PeerId,
        /// Its name, if it was known to whoever revoked it.
        name: String,
        /// Who revoked it.
        by: PeerId,
    },
    /// Nothing goes to that peer nor comes from it any more, on whatever way, until it has proven
    /// itself again, if it may.
    ShutOut {
        /// Its id.
        peer: PeerId,
    },
    /// Our own record was met with an incarnation at least as high as ours (an old copy of the
    /// data directory): this incarnation was taken instead and must be stored.
    IncarnationRaised {
        /// The one in force now.
        to: Incarnation,
    },
}

/// What a [`node::Node`] needs to know for its whole life.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Name of this peer, for people.
    pub name: String,
    /// Random number made with the data directory.
    pub instance: u64,
    /// This start of the router.
    pub incarnation: Incarnation,
    /// Name of the network; peers of another are refused.
    pub network: String,
    /// What the network secret was stretched to (Argon2id); `None` for a network without.
    pub secret: Option<crate::handover::SessionKey>,
    /// The suites this peer offers, best first. `[Plain]` without a secret.
    pub suites: Vec<Suite>,
    /// Addresses at which this peer can be dialled, as it knows them itself.
    pub endpoints: Vec<SocketAddr>,
    /// Peers that the operator named, as `HOST[:PORT]`.
    pub targets: Vec<String>,
    /// Dial peers that gossip tells of.
    pub discovery: bool,
    /// Most links that this peer dials for; it accepts as many again.
    pub links_max: usize,
    /// What is known of who is a member.
    pub trust: TrustConfig,
}

/// What a node begins with about trust.
#[derive(Debug, Clone, Default)]
pub struct TrustConfig {
    /// Wall-clock time, in seconds since 1970, when the node's clock was at zero. Admissions end
    /// by it (control C29); a jump is told by [`node::Node::set_wall`].
    pub wall: u64,
    /// What [`Output::Keep`] gave in earlier runs.
    pub kept: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The keys of a peer, as far as the node uses them: the router's are real, the simulator's cheap.
pub trait Identity {
    /// Ed25519 public key.
    fn sign_key(&self) -> [u8; 32];
    /// X25519 public key of `crypto_box`.
    fn box_key(&self) -> [u8; 32];
    /// Signs a record of this peer.
    fn sign(&self, message: &[u8]) -> [u8; 64];
    /// Whether `signature` over `message` was made with the secret half of `sign_key`.
    fn verify(&self, sign_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool;
}
