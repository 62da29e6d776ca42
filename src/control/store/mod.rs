//! The durable state of a router: one redb file in the data directory.
//!
//! ```text
//!  DATA-DIR/            0700
//!    weft.lock          held (flock) while a router runs; its pid inside
//!    weft.redb          0600
//!      meta             format, keys of the peer, instance, incarnation, whether there was a secret
//!      ipam             key → value, as the address protocol wants it
//!      attachments      owner → JSON
//!      peers            endpoint of a peer we had a link with → JSON;  target → JSON
//!      trust            who was admitted, who revoked, as the mesh protocol wants it
//!      docker           networks, endpoints and addresses of the Docker engine → JSON
//!      names            name that the operator gave → its addresses and what they serve, as JSON
//!      services         place of a service of this host → where it leads, as JSON
//!    weft.redb.unreadable-SECONDS     kept aside, never deleted by us
//! ```
//!
//! Opening is done once, before the router runs. After that one thread owns the file and makes
//! writes durable in the order in which they came, many at a time ([`Store`]).

mod lock;
mod open;
mod writer;

use std::collections::BTreeMap;

use mesh_proto::id::Incarnation;
use zeroize::Zeroizing;

pub use lock::{Lock, LockError};
pub use open::{File, OpenError, Opened, keep_copy, open};
pub use writer::{Done, Store, StoreClosed, Stored};

/// A table of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Format, identity, incarnation.
    Meta,
    /// State of the address protocol.
    Ipam,
    /// What is attached.
    Attachments,
    /// Whom to dial after a restart.
    Peers,
    /// Who is a member.
    Trust,
    /// What the Docker engine was given.
    Docker,
    /// Names that the operator gave.
    Names,
    /// Services of this host.
    Services,
}

impl Table {
    const ALL: [Self; 8] = [
        Self::Meta,
        Self::Ipam,
        Self::Attachments,
        Self::Peers,
        Self::Trust,
        Self::Docker,
        Self::Names,
        Self::Services,
    ];

    const fn definition(self) -> redb::TableDefinition<'static, &'static [u8], &'static [u8]> {
        redb::TableDefinition::new(match self {
            Self::Meta => "meta",
            Self::Ipam => "ipam",
            Self::Attachments => "attachments",
            Self::Peers => "peers",
            Self::Trust => "trust",
            Self::Docker => "docker",
            Self::Names => "names",
            Self::Services => "services",
        })
    }
}

/// One change of a table: a key with its new value, or without one if it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The table.
    pub table: Table,
    /// The key.
    pub key: Vec<u8>,
    /// The value; `None` deletes.
    pub value: Option<Vec<u8>>,
}

impl Edit {
    /// Sets a key.
    pub fn set(table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self { table, key: key.into(), value: Some(value.into()) }
    }

    /// Deletes a key.
    pub fn delete(table: Table, key: impl Into<Vec<u8>>) -> Self {
        Self { table, key: key.into(), value: None }
    }
}

/// What the file held when it was opened.
#[derive(Clone)]
pub struct State {
    /// Seed of the Ed25519 signing key.
    pub sign_seed: Zeroizing<[u8; 32]>,
    /// Secret half of the X25519 box key.
    pub box_secret: Zeroizing<[u8; 32]>,
    /// Made with the data directory.
    pub instance: u64,
    /// Number of this start, raised durably already.
    pub incarnation: Incarnation,
    /// Whether an earlier run had a network secret.
    pub sealed: bool,
    /// State of the address protocol.
    pub ipam: Vec<(Vec<u8>, Vec<u8>)>,
    /// What was attached, by owner.
    pub attachments: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Whom to dial.
    pub peers: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Who is a member.
    pub trust: Vec<(Vec<u8>, Vec<u8>)>,
    /// What the Docker engine was given.
    pub docker: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Names that the operator gave.
    pub names: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Services of this host.
    pub services: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("instance", &self.instance)
            .field("incarnation", &self.incarnation)
            .field("ipam", &self.ipam.len())
            .field("attachments", &self.attachments.len())
            .field("peers", &self.peers.len())
            .field("trust", &self.trust.len())
            .field("docker", &self.docker.len())
            .field("names", &self.names.len())
            .field("services", &self.services.len())
            .finish_non_exhaustive()
    }
}
