//! Virtual time, and what a peer's own clock makes of it.
//!
//! ```text
//!  peer's now
//!      │            ╱ rate 1.3
//!      │       ____╱
//!      │      │   jump
//!      │   __╱│
//!      │__╱    rate 1
//!      └──────────────────► time of the simulation (nanoseconds since its start)
//! ```
//!
//! Each peer counts from an epoch of its own, so that no machine can get away with comparing its
//! `now` with another peer's.

use core::time::Duration;

/// Time of the simulation in nanoseconds since its start.
pub(super) type Time = u64;

/// Nanoseconds in a millisecond.
pub(super) const MS: Time = 1_000_000;
/// Nanoseconds in a second.
pub(super) const SECOND: Time = 1_000_000_000;

/// A rate of one, in millionths.
pub(super) const TRUE_RATE: u64 = 1_000_000;

/// The clock of one peer: never goes back, may jump forward, may run fast or slow.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    /// Where the present stretch began, in time of the simulation.
    began: Time,
    /// What the clock showed then, in nanoseconds.
    shown: u64,
    /// Local nanoseconds in a million of the simulation's.
    rate: u64,
}

impl Clock {
    /// A clock that shows `epoch` at the start of the simulation.
    pub(super) fn new(epoch: Duration, rate: u64) -> Self {
        Self { began: 0, shown: nanos(epoch), rate: rate.max(1) }
    }

    /// What the clock shows at this time.
    pub(super) fn local(&self, at: Time) -> Duration {
        Duration::from_nanos(self.shown + (at - self.began) * self.rate / TRUE_RATE)
    }

    /// The first time, not before `now`, at which the clock shows at least `local`.
    pub(super) fn reaches(&self, local: Duration, now: Time) -> Time {
        let ahead = nanos(local).saturating_sub(self.shown);
        let scaled = (u128::from(ahead) * u128::from(TRUE_RATE)).div_ceil(u128::from(self.rate));
        let after = u64::try_from(scaled).unwrap_or(u64::MAX);
        self.began.saturating_add(after).max(now)
    }

    /// The clock jumps forward.
    pub(super) fn jump(&mut self, at: Time, by: Duration) {
        self.shown = nanos(self.local(at)) + nanos(by);
        self.began = at;
    }

    /// The clock runs at another rate from now on.
    pub(super) fn set_rate(&mut self, at: Time, rate: u64) {
        self.jump(at, Duration::ZERO);
        self.rate = rate.max(1);
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_time_is_reached_exactly_when_the_clock_shows_it() {
        for rate in [500_000, 999_937, 1_000_000, 1_300_001, 2_000_000] {
            let mut clock = Clock::new(Duration::from_secs(77), rate);
            clock.jump(3 * SECOND, Duration::from_secs(3600));
            clock.set_rate(5 * SECOND, rate + 11);
            for ahead in [1, 999, 1_000_003, 5_000_000_019] {
                let wanted = clock.local(6 * SECOND) + Duration::from_nanos(ahead);
                let at = clock.reaches(wanted, 6 * SECOND);
                assert!(clock.local(at) >= wanted);
                assert!(clock.local(at - 2) < wanted, "rate {rate}, ahead {ahead}");
            }
        }
    }

    #[test]
    fn a_time_that_has_passed_is_reached_now() {
        let clock = Clock::new(Duration::from_secs(9), TRUE_RATE);
        assert_eq!(clock.reaches(Duration::from_secs(1), 42), 42);
    }
}
