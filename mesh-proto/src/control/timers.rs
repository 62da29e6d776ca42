//! What shall happen when: every timer of the node in one ordered set, each with its reason.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use super::ConnId;
use crate::id::PeerId;

/// One thing that waits for its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The handshake on a connection must be done.
    Handshake(ConnId),
    /// A connection that another one replaced has had its time.
    Replaced(ConnId),
    /// The data path to a peer must have answered.
    Path(PeerId),
    /// The link's round trip may be published again.
    Rtt(PeerId),
    /// The other end of a link must have told of it.
    OneSided(PeerId),
    /// A connection through relays may have carried nothing for long enough.
    Idle(ConnId),
    /// The answer to a key proposal must be in.
    Rekey(PeerId),
    /// A peer has been unreachable for long enough to be forgotten.
    Forget(PeerId),
    /// Our record may be published again.
    Publish,
    /// News may be pushed again.
    Push,
    /// Topology may be computed again.
    Routes,
    /// Compare knowledge with a random neighbour: the regular round.
    Compare,
    /// Compare knowledge with a random neighbour: once after a change.
    Repair,
    /// Somebody may be dialled.
    Dial,
    /// Our incarnation may be raised again.
    Raise,
    /// One of too many accepted links may be given up.
    Shed,
}

impl Timer {
    const fn reason(self) -> &'static str {
        match self {
            Self::Handshake(_) => "handshake deadline",
            Self::Replaced(_) => "close a replaced connection",
            Self::Path(_) => "first echo deadline",
            Self::Rtt(_) => "publish a round trip",
            Self::OneSided(_) => "close a link that its other end does not have",
            Self::Idle(_) => "close an idle relayed connection",
            Self::Rekey(_) => "rekey deadline",
            Self::Forget(_) => "forget an unreachable peer",
            Self::Publish => "publish our record",
            Self::Push => "push news",
            Self::Routes => "recompute routes",
            Self::Compare => "compare digests",
            Self::Repair => "compare digests after a change",
            Self::Dial => "dial",
            Self::Raise => "raise our incarnation",
            Self::Shed => "make room among the links",
        }
    }
}

/// All timers of a node: at most one of each name.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeMap<Timer, Duration>,
    order: BTreeSet<(Duration, Timer)>,
}

impl Timers {
    /// Sets a timer, replacing the one of that name.
    pub(crate) fn set(&mut self, timer: Timer, at: Duration) {
        self.clear(timer);
        self.due.insert(timer, at);
        self.order.insert((at, timer));
    }

    /// Sets a timer unless it is set already, to whatever time.
    pub(crate) fn set_if_none(&mut self, timer: Timer, at: Duration) {
        if !self.due.contains_key(&timer) {
            self.set(timer, at);
        }
    }

    /// Sets a timer to this time unless it is due before.
    pub(crate) fn set_if_later(&mut self, timer: Timer, at: Duration) {
        if self.due.get(&timer).is_none_or(|due| *due > at) {
            self.set(timer, at);
        }
    }

    /// Whether that timer is set.
    pub(crate) fn has(&self, timer: Timer) -> bool {
        self.due.contains_key(&timer)
    }

    /// Takes a timer back.
    pub(crate) fn clear(&mut self, timer: Timer) {
        if let Some(at) = self.due.remove(&timer) {
            self.order.remove(&(at, timer));
        }
    }

    /// Takes the earliest timer that is due.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<Timer> {
        let &(at, timer) = self.order.first()?;
        if at > now {
            return None;
        }
        self.clear(timer);
        Some(timer)
    }

    /// When the earliest is due, and why.
    pub(crate) fn next(&self) -> Option<(Duration, &'static str)> {
        self.order.first().map(|&(at, timer)| (at, timer.reason()))
    }

    /// Takes all back.
    pub(crate) fn clear_all(&mut self) {
        self.due.clear();
        self.order.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_comes_first_and_a_new_time_replaces_the_old() {
        let mut timers = Timers::default();
        let s = Duration::from_secs;
        timers.set(Timer::Publish, s(5));
        timers.set(Timer::Routes, s(3));
        timers.set(Timer::Publish, s(1));
        timers.set_if_none(Timer::Routes, s(0));
        assert_eq!(timers.next(), Some((s(1), "publish our record")));
        assert_eq!(timers.pop(s(2)), Some(Timer::Publish));
        assert_eq!(timers.pop(s(2)), None);
        assert_eq!(timers.pop(s(3)), Some(Timer::Routes));
        assert_eq!(timers.next(), None);
    }
}
