//! Every bound and timer of the data path, each with its unit and its reason.

use core::time::Duration;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

// Liveness of direct paths.

/// A direct path with no echo for this long is dead. Leaves room for about ten probes at the
/// quick rate, so 30 % loss each way does not kill a live path.
pub const DEAD_AFTER: Duration = ms(2500);
/// Between two probes of a path that answers, or that is known to be dead.
pub const PROBE_EVERY: Duration = ms(1000);
/// A probe that is due in so much time goes with the echo of the other end's: it wakes nobody by itself then.
pub const PROBE_EARLY: Duration = ms(500);
/// Between two probes once an echo is missing.
pub const PROBE_QUICK: Duration = ms(100);
/// An echo is missing after three round trips, but not before this.
pub const ECHO_MISSING_MIN: Duration = ms(300);
/// A round trip that changed by less than this is not worth a new route.
pub const RTT_CHANGE_MIN: Duration = ms(1);
/// Addresses that a peer may move to in a second, as far as control hears of it: one.
pub const MOVED_EVERY: Duration = ms(1000);

// Path MTU.

/// UDP payload that every path is taken to carry: what QUIC asks of a path too (RFC 9000 §14).
pub const PAYLOAD_BASE: u16 = 1200;
/// A probe of a size that is not answered in this time, or two round trips, is lost.
pub const MTU_WAIT: Duration = ms(200);
/// A size that was lost this often does not fit (MAX_PROBES of RFC 8899).
pub const MTU_TRIES: u8 = 3;
/// Sizes tried at once: the best of them is in use one round trip after the path came up.
pub const MTU_BURST: usize = 6;
/// A probe of the size in use that is not answered in this time, or four round trips, is lost: it goes
/// with a small one that says whether anything passes, so little patience does no harm.
pub const MTU_CONFIRM_WAIT: Duration = ms(50);
/// Between two probes of the size in use while frames flow. With [`MTU_TRIES`] of
/// [`MTU_CONFIRM_WAIT`] a black hole is found in under half a second: before TCP's second
/// retransmission, 0.6 s after the loss. The third would come at 1.4 s, the fourth at 3 s, a stall
/// that users see.
pub const MTU_CONFIRM_EVERY: Duration = ms(300);
/// After this a larger size is looked for again, if frames flow.
pub const MTU_RAISE_EVERY: Duration = Duration::from_secs(60);

// Sessions.

/// Age at which the initiator's side asks for new keys: WireGuard's, so that a stolen key opens
/// little.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);
/// The other side leaves the initiator this much time before it asks itself.
pub const REKEY_GRACE: Duration = Duration::from_secs(15);
/// At most this much is added to [`REKEY_AFTER`], so that a mesh that started together does not
/// rekey together.
pub const REKEY_JITTER: Duration = ms(3333);
/// Datagrams after which new keys are due, whatever their age.
pub const REKEY_DATAGRAMS: u64 = 1 << 30;
/// Between two requests for the same.
pub const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Between two requests for a first session.
pub const SESSION_WANTED_EVERY: Duration = ms(1000);
/// Generations that are kept for receiving besides the one in use: the one before, and two that
/// the other end proposed one right after the other.
pub const GENERATIONS_KEPT: usize = 3;
/// An old generation stays valid for receiving this long after the other end was seen to use the
/// new one, and after it was last heard under the old one. Datagrams under way are younger.
pub const KEPT_FOR: Duration = Duration::from_secs(30);
/// Between two probes that tell the other end that we use new keys, until it answers under them.
pub const CONFIRM_EVERY: Duration = ms(200);
/// After so many probes without an answer they become rare.
pub const CONFIRM_TRIES: u32 = 25;

// Memory.

/// Records that wait for a session with one peer …
pub const WAITING_RECORDS: usize = 32;
/// … their bytes (one record of any size always fits) …
pub const WAITING_BYTES: usize = 1 << 16;
/// … and how long: a later answer to ARP or SYN helps nobody.
pub const WAITING_AGE: Duration = ms(1000);
/// Peers for which records wait at the same time.
pub const WAITING_PEERS: usize = 64;
/// Datagrams that are being filled at the same time, one a peer.
pub const STAGES: usize = 32;
/// Records that are being put together from fragments, from all peers …
pub const ASSEMBLIES: usize = 64;
/// … and from one.
pub const ASSEMBLIES_PER_PEER: usize = 8;
/// Fragments of one record come within this, or not at all.
pub const ASSEMBLY_AGE: Duration = ms(1000);
/// Separate runs of bytes that one record may consist of while it is put together. In order
/// there is one; this is how much reordering is borne.
pub const ASSEMBLY_RUNS: usize = 32;
/// Events that control has not fetched.
pub const EVENTS_MAX: usize = 8192;
/// Peers that may send a flood on: a tree of any sane mesh is less deep.
pub const FLOOD_HOPS: u8 = 32;
/// Between two answers "too big" to the same pair of addresses.
pub const TOO_BIG_EVERY: Duration = ms(1000);
