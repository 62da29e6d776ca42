//! What the data path keeps of each peer.

use core::net::SocketAddr;
use core::time::Duration;
use std::sync::Arc;

use super::fence::Fence;
use super::mtu::Mtu;
use super::path::{Life, Path};
use super::session::Sessions;
use super::table::Key;
use super::window::FloodWindow;
use crate::handover::MAX_RELAYS;
use crate::id::{Incarnation, PeerId};
use crate::wire::datagram::ShortId;

impl Key for ShortId {
    fn words(&self) -> [u64; 3] {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self.0;
        let first = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        [first, u64::from(u32::from_be_bytes(rest)), 0]
    }
}

impl Key for SocketAddr {
    fn words(&self) -> [u64; 3] {
        let ip = match self {
            Self::V4(v4) => u128::from(v4.ip().to_bits()),
            Self::V6(v6) => v6.ip().to_bits(),
        };
        [(ip >> 64) as u64, ip as u64, u64::from(self.port())]
    }
}

/// The two ways to a peer, each with its own path MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Direct = 0,
    Relayed = 1,
}

/// A probe that was sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outstanding {
    pub(crate) id: u32,
    pub(crate) sent: Duration,
    pub(crate) size: u16,
    pub(crate) way: Way,
}

/// Probes whose echoes are awaited: at the quick rate, more than three seconds.
const OUTSTANDING: usize = 64;

/// What there is of a peer once there is a session with it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) sessions: Sessions,
    /// The direct path, while there is an address.
    pub(crate) path: Option<Path>,
    pub(crate) mtu: [Mtu; 2],
    /// The relay that the relayed way's MTU was found with.
    pub(crate) via: Option<u32>,
    /// What control was told last.
    pub(crate) reported_mtu: u16,
    outstanding: [Option<Outstanding>; OUTSTANDING],
    next_probe: u32,
}

impl Link {
    pub(crate) fn new(payload_max: u16, direct: bool, now: Duration) -> Self {
        Self {
            sessions: Sessions::default(),
            path: direct.then(|| Path::new(now)),
            mtu: [Mtu::new(payload_max, now), Mtu::new(payload_max, now)],
            via: None,
            reported_mtu: 0,
            outstanding: [None; OUTSTANDING],
            next_probe: 0,
        }
    }

    /// Notes that a probe is sent; gives its id.
    pub(crate) const fn probe(&mut self, size: u16, way: Way, now: Duration) -> u32 {
        let id = self.next_probe;
        self.next_probe = id.wrapping_add(1);
        self.outstanding[id as usize % OUTSTANDING] = Some(Outstanding { id, sent: now, size, way });
        id
    }

    /// That way is another one now: its size is looked for anew, and what the probes that are
    /// under way will say of the old one does not count.
    pub(crate) fn restart_mtu(&mut self, way: Way, now: Duration) {
        self.mtu[way as usize].restart(now);
        for probe in self.outstanding.iter_mut().flatten().filter(|probe| probe.way == way) {
            probe.size = 0;
        }
    }

    /// The probe that an echo answers. Each is answered once.
    pub(crate) fn answered(&mut self, id: u32) -> Option<Outstanding> {
        let slot = &mut self.outstanding[id as usize % OUTSTANDING];
        slot.filter(|probe| probe.id == id)?;
        slot.take()
    }
}

/// The floods of one origin that were seen.
#[derive(Debug, Default)]
pub(crate) struct Floods {
    pub(crate) incarnation: Incarnation,
    pub(crate) window: FloodWindow,
}

/// One peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    /// False for the free places in the list of peers.
    pub(crate) alive: bool,
    /// In the tables. One that is not only has its session.
    pub(crate) listed: bool,
    /// The address in the last tables …
    pub(crate) told: Option<SocketAddr>,
    /// … and the one in use: the peer may have moved since.
    pub(crate) direct: Option<SocketAddr>,
    pub(crate) relays: [Option<u32>; MAX_RELAYS],
    /// To whom its floods are passed on.
    pub(crate) children: Vec<u32>,
    pub(crate) floods: Option<Box<Floods>>,
    /// What it may not send from; of hardly any peer.
    pub(crate) fence: Option<Arc<Fence>>,
    pub(crate) link: Option<Box<Link>>,
    pub(crate) stage: Option<usize>,
    pub(crate) next_fragment: u32,
    pub(crate) wanted_at: Option<Duration>,
    pub(crate) moved_at: Option<Duration>,
    /// It moved again, and control has not been told.
    pub(crate) move_untold: bool,
    /// The earliest entry of the timer heap for it.
    pub(crate) scheduled: Option<Duration>,
}

impl Peer {
    pub(crate) const fn new(id: PeerId) -> Self {
        Self {
            id,
            alive: true,
            listed: false,
            told: None,
            direct: None,
            relays: [None; MAX_RELAYS],
            children: Vec::new(),
            floods: None,
            fence: None,
            link: None,
            stage: None,
            next_fragment: 0,
            wanted_at: None,
            moved_at: None,
            move_untold: false,
            scheduled: None,
        }
    }

    /// What is known of the direct path; nothing if there is none.
    pub(crate) fn life(&self) -> Option<Life> {
        self.direct?;
        let path = self.link.as_ref().and_then(|link| link.path.as_ref());
        Some(path.map_or(Life::Fresh, Path::life))
    }

    /// Whether there are keys with it, in use or waiting.
    pub(crate) fn has_session(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.sessions.shown().is_some())
    }

    /// Whether frames can be sealed for it.
    pub(crate) fn can_send(&mut self) -> bool {
        self.link.as_mut().is_some_and(|link| link.sessions.sender().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_of_the_old_way_says_nothing_of_the_new_one() {
        let mut link = Link::new(1472, true, Duration::ZERO);
        let id = link.probe(1452, Way::Relayed, Duration::ZERO);
        let other = link.probe(1452, Way::Direct, Duration::ZERO);
        link.restart_mtu(Way::Relayed, Duration::ZERO);
        let late = link.answered(id).unwrap();
        assert_eq!(link.mtu[Way::Relayed as usize].echo(late.size, late.sent, Duration::ZERO), None);
        assert_eq!(link.answered(other).unwrap().size, 1452);
    }

    #[test]
    fn an_echo_is_taken_once_and_only_for_a_probe_that_was_sent() {
        let mut link = Link::new(1472, true, Duration::ZERO);
        assert!(link.answered(0).is_none());
        let id = link.probe(1200, Way::Direct, Duration::ZERO);
        assert!(link.answered(id.wrapping_add(OUTSTANDING as u32)).is_none());
        assert!(link.answered(id).is_some());
        assert!(link.answered(id).is_none());
    }
}
