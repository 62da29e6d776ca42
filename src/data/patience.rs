//! How long the data thread waits for room in a socket's buffer.
//!
//! To wait is good for whoever sends: what is too fast is slowed down instead of lost. It is bad for everybody else,
//! for the thread does nothing meanwhile. So while others have something to send or to receive, one destination may
//! take a small part of the thread's time; what does not fit then is lost, as in the queue of an interface.

use std::net::SocketAddr;
use std::time::Duration;

/// How long one call may wait: long enough for an interface of 1 Gbit/s to send a super-frame, short enough that
/// the timers do not notice.
const MOST: Duration = Duration::from_millis(2);

/// The part of the time that may be spent waiting beside others.
const PART: u32 = 10;

/// Others are there if one of them sent or received something in this time.
const BESIDE: Duration = Duration::from_millis(10);

/// Who has to do with the thread, and what was waited.
#[derive(Debug, Default)]
pub(super) struct Patience {
    last: Option<SocketAddr>,
    /// When it was another one than before.
    changed: Option<Duration>,
    /// What may be waited beside others.
    left: Duration,
    /// Until when it is counted.
    counted: Duration,
}

impl Patience {
    /// Something goes to this address, or came from there.
    pub(super) fn sees(&mut self, who: SocketAddr, now: Duration) {
        if self.last != Some(who) {
            self.changed = self.last.is_some().then_some(now);
            self.last = Some(who);
        }
    }

    /// How long may be waited now.
    pub(super) fn left(&mut self, now: Duration) -> Duration {
        self.left = (self.left + now.saturating_sub(self.counted) / PART).min(MOST);
        self.counted = now;
        let beside = self.changed.is_some_and(|changed| changed + BESIDE > now);
        if beside { self.left } else { MOST }
    }

    /// So long was waited.
    pub(super) fn spend(&mut self, waited: Duration) {
        self.left = self.left.saturating_sub(waited);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn alone_it_waits_as_long_as_it_takes_and_beside_others_a_tenth_of_the_time() {
        let (a, b) = (SocketAddr::from(([192, 0, 2, 1], 1)), SocketAddr::from(([192, 0, 2, 2], 1)));
        let mut patience = Patience::default();
        for n in 0..100 {
            patience.sees(a, at(n * 2000));
            assert_eq!(patience.left(at(n * 2000)), MOST);
            patience.spend(MOST);
        }
        let mut waited = Duration::ZERO;
        let (mut now, start) = (at(1_000_000), at(1_000_000));
        while now < start + Duration::from_secs(1) {
            patience.sees(a, now);
            let left = patience.left(now);
            patience.spend(left);
            (waited, now) = (waited + left, now + left + at(100));
            patience.sees(b, now);
        }
        assert!(waited <= at(104_000) && waited >= at(95_000), "{waited:?}");
        patience.sees(a, now);
        assert_eq!(patience.left(now + BESIDE), MOST, "the other has gone");
    }
}
