//! The values that cross between control and data: all that either knows of the other.
//!
//! Control decides and hands over [`Command`]s; data carries frames by the last that it was
//! given, for as long as it takes, and reports what it saw as [`DataEvent`]s.

use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::data::fence::Fence;
use crate::data::macs::Mac;
use crate::id::{Incarnation, PeerId};

/// How the user frames of a session are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suite {
    /// Not at all: only in a network without a secret.
    Plain,
    /// AES-256-GCM, where both ends have it in hardware.
    Aes256Gcm,
    /// ChaCha20-Poly1305, everywhere else.
    ChaCha20Poly1305,
    /// NaCl's XSalsa20-Poly1305, for those who ask for it.
    Nacl,
}

impl Suite {
    /// The name that users see (`status`, configuration).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "none",
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Nacl => "nacl",
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Plain => 0,
            Self::Aes256Gcm => 1,
            Self::ChaCha20Poly1305 => 2,
            Self::Nacl => 3,
        }
    }

    /// The suite of a number on the wire, if this version knows it.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Plain),
            1 => Some(Self::Aes256Gcm),
            2 => Some(Self::ChaCha20Poly1305),
            3 => Some(Self::Nacl),
            _ => None,
        }
    }
}

/// A 256-bit session key that wipes itself and never shows itself.
#[derive(Clone)]
pub struct SessionKey(pub Zeroizing<[u8; 32]>);

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(…)")
    }
}

/// One generation of the keys that two peers share, end to end.
#[derive(Debug, Clone)]
pub struct SessionKeys {
    /// The other end.
    pub peer: PeerId,
    /// Its incarnation: a higher one replaces every session of a lower one.
    pub incarnation: Incarnation,
    /// What protects the frames.
    pub suite: Suite,
    /// Written into the header of what the other end sends us.
    pub local_index: u32,
    /// Written into the header of what we send.
    pub remote_index: u32,
    /// Key of what we send.
    pub send: SessionKey,
    /// Key of what we receive.
    pub receive: SessionKey,
    /// Whether we may send with these keys at once. The side that proposed them may; the other
    /// waits until it has opened a datagram under them, so that no frame arrives before its key.
    pub initiator: bool,
}

/// How frames reach one peer now, as control sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPath {
    /// The peer's incarnation that gossip vouches for.
    pub incarnation: Incarnation,
    /// Where it is reached without a relay, while there is a link to it.
    pub direct: Option<SocketAddr>,
    /// The neighbours that relay to it, best first, at most [`MAX_RELAYS`]. Empty if there is
    /// none. The second is used from the moment on that the path to the first is seen dead.
    pub relays: Vec<PeerId>,
}

/// Most relays that are kept ready for one peer.
pub const MAX_RELAYS: usize = 2;

/// The forwarding tables: one immutable snapshot, replaced whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// This peer.
    pub me: PeerId,
    /// This peer's own incarnation.
    pub incarnation: Incarnation,
    /// Every peer that may be spoken to (reachable or not), except `me`.
    pub peers: BTreeMap<PeerId, PeerPath>,
    /// The broadcast trees: for frames that began at the key (`me` among them), the neighbours
    /// to which this peer passes them on. An origin without an entry is passed on to nobody.
    pub trees: BTreeMap<PeerId, Vec<PeerId>>,
}

/// What control tells data.
#[derive(Debug, Clone)]
pub enum Command {
    /// Use these tables from now on. Sessions of peers that are not in them end.
    Tables(Arc<Tables>),
    /// Use these keys with that peer from now on; the generation before stays valid for
    /// receiving. Boxed because keys are large and tables are frequent.
    Install(Box<SessionKeys>),
    /// End every session with that peer and forget the MAC addresses behind it.
    Remove(PeerId),
    /// Probe that peer's direct path at once.
    Probe(PeerId),
    /// These MAC addresses are behind that peer: it has said so, and the data path could not
    /// see it, for the kernel carried their frames.
    Learn(PeerId, Vec<Mac>),
    /// The underlay's interfaces carry datagrams with so many bytes of payload from now on: the
    /// upper end of the path MTU search.
    PayloadMax(u16),
    /// Frames of these peers from these addresses are not delivered from now on, and those of all
    /// others are.
    Fences(BTreeMap<PeerId, Arc<Fence>>),
}

/// What data tells control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataEvent {
    /// The direct path answers: the first echo after it was set or after it was down.
    PathUp {
        /// The other end.
        peer: PeerId,
        /// Measured round trip.
        rtt: Duration,
    },
    /// No echo came back for [`crate::data::limits::DEAD_AFTER`]: the direct path is dead, in at
    /// least one direction.
    PathDown {
        /// The other end.
        peer: PeerId,
    },
    /// The smoothed round trip of the direct path changed by enough to matter for routing.
    Rtt {
        /// The other end.
        peer: PeerId,
        /// Smoothed round trip.
        rtt: Duration,
    },
    /// The path MTU to the peer was found or changed.
    Mtu {
        /// The other end.
        peer: PeerId,
        /// Largest UDP payload, in bytes, that the path carries whole.
        payload: u16,
    },
    /// An authenticated datagram came from a new address: the peer roamed or its NAT did.
    Moved {
        /// The other end.
        peer: PeerId,
        /// Where it is now.
        to: SocketAddr,
    },
    /// There are frames for this peer and no session with it.
    SessionWanted {
        /// The other end.
        peer: PeerId,
    },
    /// The keys have been used for long enough (time or datagrams): make new ones.
    RekeyDue {
        /// The other end.
        peer: PeerId,
    },
}
