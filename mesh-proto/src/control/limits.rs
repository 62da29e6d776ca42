//! Every bound and timer of the control path, each with its unit and its reason.

use core::time::Duration;

/// Most peers that are known at once, this one included. The peer after it is not taken in; the
/// tables of 4,096 peers are about 2 MB.
pub const PEERS_MAX: usize = 4096;

/// A handshake that is not done in this time is given up.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// A refused connection stays open for so long, unless its other end closes it, so that the
/// refusal arrives.
pub const REFUSAL: Duration = Duration::from_secs(1);

/// After the handshake the data path must have answered in this time, or the connection is
/// closed: what only control can cross is no link.
pub const FIRST_ECHO: Duration = Duration::from_secs(5);

/// The other end of a link must have told of it in this time, or the connection is closed. Its
/// record takes a second at most to be published, and a comparison after a lost push another.
pub const ONE_SIDED: Duration = Duration::from_secs(10);

/// Longest Hello, in bytes: it is held while the other end's SPAKE2 message is awaited.
pub const HELLO_MAX: usize = 16 * 1024;

/// A dial that neither succeeded nor failed in this time is given up.
pub const DIAL: Duration = Duration::from_secs(10);

/// Most connections in the handshake that others opened.
pub const SHAKING_MAX: usize = 256;

/// Our record is published once in this time for as long as it changes (in a larger mesh, see
/// `publish_every`) …
pub const PUBLISH_EVERY: Duration = Duration::from_millis(250);

/// … but so many changes after a rest go out at once, for a link carries nothing for others before
/// both its ends have told of it: a router that starts has its links within milliseconds …
pub const PUBLISH_BURST: usize = 8;

/// … in a mesh of at most this many peers. In one of n times as many, an n-th of it, at least one.
pub const PUBLISH_BURST_PEERS: usize = 16;

/// A round trip that changed is published at most once in this time.
pub const RTT_EVERY: Duration = Duration::from_secs(10);

/// A round trip is published again if it changed by more than this …
pub const RTT_CHANGE: Duration = Duration::from_millis(2);

/// Regular comparison of digests with one random neighbour.
pub const COMPARE_EVERY: Duration = Duration::from_secs(10);

/// Comparison after a change of topology: catches what pushes along stale links missed.
pub const REPAIR_AFTER: Duration = Duration::from_secs(1);

/// Routes are computed at most once in this time in a small mesh; in a larger one the time grows
/// with the number of peers (see `routes_every`).
pub const ROUTES_EVERY: Duration = Duration::from_millis(20);

/// A peer that was unreachable for so long is forgotten.
pub const FORGET_AFTER: Duration = Duration::from_secs(600);

/// An old record of a forgotten peer is refused for so long.
pub const TOMBSTONE: Duration = Duration::from_secs(900);

/// First wait after a failed dial.
pub const BACKOFF_MIN: Duration = Duration::from_millis(250);

/// Longest wait between dials to a peer that was there lately.
pub const BACKOFF_LATELY: Duration = Duration::from_secs(5);

/// Longest wait between dials to a peer that the operator named, whoever relays to it meanwhile.
pub const BACKOFF_NAMED: Duration = Duration::from_secs(10);

/// Longest wait between dials to others.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Peers that are reached through relays and had no link lately are dialled once, `links_max` of
/// them, and then one of them in this time. A dial into the void costs several datagrams of 1200
/// bytes, so that is about 80 bytes a second.
pub const UPGRADE_EVERY: Duration = Duration::from_secs(60);

/// How long "lately" is.
pub const LATELY: Duration = Duration::from_secs(120);

/// Of two peers that may dial each other the one with the higher id waits so long, so that they
/// seldom meet in the middle.
pub const DIAL_HIGHER_AFTER: Duration = Duration::from_millis(500);

/// The same for connections through relays.
pub const RELAY_HIGHER_AFTER: Duration = Duration::from_secs(1);

/// Up to so many known peers, sessions through relays are made before there is traffic. Each peer
/// of a larger mesh has sessions with those that it speaks to.
pub const PROACTIVE_MAX: usize = 16;

/// In a mesh of more than twice [`PROACTIVE_MAX`] peers a relayed connection that carried nothing
/// for so long is closed: the keys that it was made for outlive it.
pub const RELAY_IDLE: Duration = Duration::from_secs(20);

/// A session with a peer is made until so long after frames last waited for one.
pub const SESSION_WANTED: Duration = Duration::from_secs(5);

/// How long a peer that said it has links enough is left alone.
pub const FULL_FOR: Duration = Duration::from_secs(300);

/// A second connection of a peer replaces the first if that is at least this old: its other end
/// would not have dialled had it still held the first.
pub const DUPLICATE_WITHIN: Duration = Duration::from_secs(2);

/// Shortest time between two raises of our incarnation: two clones of one data directory would
/// otherwise outbid each other as fast as gossip travels.
pub const RAISE_EVERY: Duration = Duration::from_secs(10);

/// Hops that an application's message may travel.
pub const APP_HOPS: u8 = 32;

/// Most records in one gossip message, in bytes.
pub const RECORDS_BYTES: usize = 256 * 1024;

/// Most endpoints in our own record.
pub const OWN_ENDPOINTS_MAX: usize = crate::wire::gossip::ENDPOINTS_MAX;

/// Most endpoints of our own that we learn from others.
pub const OBSERVED_MAX: usize = 4;

/// Most addresses that are remembered as our own because a dial there met ourselves.
pub const SELF_MAX: usize = 64;

/// Most addresses that are remembered because a dial there met another peer than the one meant.
pub const MET_MAX: usize = 1024;

/// Most targets.
pub const TARGETS_MAX: usize = 1024;

/// Most source addresses of failed handshakes that are remembered.
pub const GUARD_MAX: usize = 1024;

/// Failed handshakes that a source address has free …
pub const GUARD_BURST: u32 = 5;

/// … and how long it takes until it has one more.
pub const GUARD_REFILL: Duration = Duration::from_secs(1);

/// How long an admission holds: long enough that a host may be away for a season and still come
/// back under a changed secret.
pub const ADMISSION_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// How far a sponsor's clock may be ahead of ours.
pub const ADMISSION_SKEW: Duration = Duration::from_secs(24 * 3600);

/// Most admissions of all peers that are held: four a peer, about 5 MB.
pub const EDGES_MAX: usize = 4 * PEERS_MAX;

/// Too many accepted links are given up in steps, one in this time, so that the topology settles
/// in between …
pub const SHED_EVERY: Duration = Duration::from_secs(1);

/// … and at most so many in one step.
pub const SHED_AT_ONCE: usize = 16;

/// A peer has at most so many links beyond twice what it dials for, neighbours in the order of
/// ids apart.
pub const LINKS_BEYOND: usize = 2;

/// A peer that was heard of for the first time is not taken for unreachable before routes have
/// surely been computed with it.
pub const SETTLED_AFTER: Duration = Duration::from_secs(2);
