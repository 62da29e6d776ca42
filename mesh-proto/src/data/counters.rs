//! What the data path counted since it began: the source of metrics and of `status`.

/// Why something was not delivered or not sent. The labels are a contract: added, never renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// A datagram too short for its header, or of a type or with bits that this version lacks.
    Malformed,
    /// A SLEEVE datagram for a receiver index that belongs to no session.
    UnknownSession,
    /// The seal did not open: damaged or forged.
    BadSeal,
    /// A record that is not one.
    BadRecord,
    /// A record of a later version.
    UnknownRecord,
    /// A RELAY datagram that did not come from the address of a linked peer.
    RelayFromStranger,
    /// A RELAY datagram for a peer that is not in the tables.
    RelayUnknownPeer,
    /// A RELAY datagram that would go back to where it came from.
    RelayBack,
    /// A RELAY datagram that was sent away from its destination before, and came back.
    RelayCircle,
    /// A RELAY datagram or a flood that was handled by too many peers.
    HopLimit,
    /// No path and no relay leads to the peer.
    NoRoute,
    /// No session came about in time, or too many frames waited for one.
    NoSession,
    /// The session sent all datagrams that its key may protect.
    KeyExhausted,
    /// A frame shorter than its header.
    Runt,
    /// A frame larger than Ethernet has.
    Giant,
    /// 802.1D link-local multicast: never leaves its segment.
    LinkLocal,
    /// The destination is on the side that the frame came from: the bridge delivers it.
    Local,
    /// A flood of an origin that is not in the tables, or of this peer itself.
    FloodUnknownOrigin,
    /// A flood of an origin's earlier life.
    FloodStale,
    /// A fragment that contradicts the others of its record.
    BadFragment,
    /// A record whose last fragments never came, or that gave way to others.
    Incomplete,
    /// A session that does not fit the network: unsealed where there is a secret.
    Policy,
    /// A frame of this host whose description contradicts it, or asks for what is not known.
    BadOffload,
    /// A frame of a removed peer from an address that has gone to another one.
    Fenced,
}

impl DropReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 24] = [
        Self::Malformed,
        Self::UnknownSession,
        Self::BadSeal,
        Self::BadRecord,
        Self::UnknownRecord,
        Self::RelayFromStranger,
        Self::RelayUnknownPeer,
        Self::RelayBack,
        Self::RelayCircle,
        Self::HopLimit,
        Self::NoRoute,
        Self::NoSession,
        Self::KeyExhausted,
        Self::Runt,
        Self::Giant,
        Self::LinkLocal,
        Self::Local,
        Self::FloodUnknownOrigin,
        Self::FloodStale,
        Self::BadFragment,
        Self::Incomplete,
        Self::Policy,
        Self::BadOffload,
        Self::Fenced,
    ];

    /// The name in metrics and in `status -o json`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownSession => "unknown_session",
            Self::BadSeal => "bad_seal",
            Self::BadRecord => "bad_record",
            Self::UnknownRecord => "unknown_record",
            Self::RelayFromStranger => "relay_from_stranger",
            Self::RelayUnknownPeer => "relay_unknown_peer",
            Self::RelayBack => "relay_back",
            Self::RelayCircle => "relay_circle",
            Self::HopLimit => "hop_limit",
            Self::NoRoute => "no_route",
            Self::NoSession => "no_session",
            Self::KeyExhausted => "key_exhausted",
            Self::Runt => "runt",
            Self::Giant => "giant",
            Self::LinkLocal => "link_local",
            Self::Local => "local",
            Self::FloodUnknownOrigin => "flood_unknown_origin",
            Self::FloodStale => "flood_stale",
            Self::BadFragment => "bad_fragment",
            Self::Incomplete => "incomplete",
            Self::Policy => "policy",
            Self::BadOffload => "bad_offload",
            Self::Fenced => "fenced",
        }
    }
}

/// Everything that is counted. Counts only rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Frames from the TAP.
    pub frames_in: u64,
    /// Bytes of those.
    pub bytes_in: u64,
    /// Frames written to the TAP.
    pub frames_out: u64,
    /// Bytes of those.
    pub bytes_out: u64,
    /// Datagrams from the underlay, QUIC's not counted.
    pub datagrams_in: u64,
    /// Datagrams sent, QUIC's not counted.
    pub datagrams_out: u64,
    /// Datagrams passed on for others.
    pub relayed: u64,
    /// Authentic datagrams that had been here before, or were too old to tell.
    pub replayed: u64,
    /// Unsealed user frames or sessions that were refused because the network has a secret.
    pub unsealed: u64,
    /// Frames that were sent to everybody.
    pub floods: u64,
    /// Floods that had been here before.
    pub flood_duplicates: u64,
    /// Fragments sent.
    pub fragments_out: u64,
    /// Fragments received.
    pub fragments_in: u64,
    /// Records made whole again from fragments.
    pub reassembled: u64,
    /// Super-frames that were sent in pieces.
    pub super_frames_out: u64,
    /// Pieces that were joined to those before them.
    pub joined: u64,
    /// Probes sent.
    pub probes: u64,
    /// Echoes that came back.
    pub echoes: u64,
    /// Answers that a smaller packet would be better.
    pub too_big: u64,
    /// Learned MAC addresses that gave way to others because the table was full.
    pub macs_evicted: u64,
    /// Events that control did not fetch in time. Zero unless the caller does not drain.
    pub events_lost: u64,
    dropped: [u64; DropReason::ALL.len()],
}

impl Counters {
    /// How much was dropped for that reason.
    #[must_use]
    pub const fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Every reason with its count.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&r| (r, self.dropped(r)))
    }

    /// Counts one more.
    pub(crate) const fn drop(&mut self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    /// Counts several more.
    pub(crate) const fn drop_many(&mut self, reason: DropReason, count: u64) {
        let slot = &mut self.dropped[reason as usize];
        *slot = slot.saturating_add(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_place_and_label() {
        let mut counters = Counters::default();
        for (i, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
            counters.drop_many(reason, i as u64 + 1);
        }
        let mut labels: Vec<_> = DropReason::ALL.iter().map(|r| r.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), DropReason::ALL.len());
        assert!(counters.drops().all(|(r, n)| n == r as u64 + 1));
    }
}
