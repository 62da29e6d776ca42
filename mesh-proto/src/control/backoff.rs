//! When to dial again: exponential, with seeded jitter, and eager where a peer was just there.

use core::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::RngCore as _;

use super::limits::{BACKOFF_LATELY, BACKOFF_MAX, BACKOFF_MIN, LATELY};

/// When to try again.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// Failures in a row.
    pub(super) failures: u32,
    /// When the next attempt may follow.
    pub(super) due: Duration,
}

impl Backoff {
    /// One more failure. `linked` is when there was last a link with the peer.
    pub(super) fn failed(&mut self, linked: Option<Duration>, now: Duration, rng: &mut ChaCha20Rng) {
        self.failed_at_most(if lately(linked, now) { BACKOFF_LATELY } else { BACKOFF_MAX }, now, rng);
    }

    /// One more failure; the wait is at most `cap`, by and large.
    pub(super) fn failed_at_most(&mut self, cap: Duration, now: Duration, rng: &mut ChaCha20Rng) {
        let wait = BACKOFF_MIN.saturating_mul(1 << self.failures.min(16)).min(cap);
        self.failures = self.failures.saturating_add(1);
        self.due = now + jitter(wait, rng);
    }

    /// Try again soon, as if for the first time.
    pub(super) fn reset(&mut self, due: Duration) {
        *self = Self { failures: 0, due };
    }
}

/// Whether that was less than [`LATELY`] ago.
pub(super) fn lately(at: Option<Duration>, now: Duration) -> bool {
    at.is_some_and(|at| now.saturating_sub(at) < LATELY)
}

/// How often something may be done: so many times at once, and one more in each `every`.
#[derive(Debug)]
pub(super) struct Pace {
    every: Duration,
    /// How often it was done beyond that, and since when the count goes down.
    spent: u32,
    since: Duration,
}

impl Pace {
    pub(super) const fn new(every: Duration) -> Self {
        Self { every, spent: 0, since: Duration::ZERO }
    }

    /// When it may be done again, if `burst` times at once are allowed; `now` if it may at once.
    pub(super) fn due(&mut self, burst: u32, now: Duration) -> Duration {
        while self.spent > 0 && now >= self.since + self.every {
            self.spent -= 1;
            self.since += self.every;
        }
        if self.spent < burst { now } else { self.since + self.every }
    }

    /// It is done.
    pub(super) fn spend(&mut self, now: Duration) {
        if self.spent == 0 {
            self.since = now;
        }
        self.spent = self.spent.saturating_add(1);
    }

    /// It was no waste.
    pub(super) const fn give_back(&mut self) {
        self.spent = self.spent.saturating_sub(1);
    }
}

/// Between three and five quarters of a time.
pub(crate) fn jitter(time: Duration, rng: &mut ChaCha20Rng) -> Duration {
    time * 3 / 4 + time / 2 * (rng.next_u32() % 1024) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng as _;

    fn waits(seen: Option<Duration>) -> Vec<Duration> {
        let (mut backoff, mut rng) = (Backoff::default(), ChaCha20Rng::from_seed([1; 32]));
        let now = Duration::from_secs(1000);
        let mut wait = || {
            backoff.failed(seen, now, &mut rng);
            backoff.due - now
        };
        (0..12).map(|_| wait()).collect()
    }

    fn within(wait: Duration, of: Duration) -> bool {
        (of * 3 / 4..=of * 5 / 4).contains(&wait)
    }

    #[test]
    fn waits_double_up_to_the_cap() {
        for (seen, cap) in [(None, BACKOFF_MAX), (Some(Duration::from_secs(900)), BACKOFF_LATELY)] {
            for (n, wait) in waits(seen).into_iter().enumerate() {
                assert!(within(wait, (BACKOFF_MIN * (1 << n)).min(cap)), "{n}: {wait:?}");
            }
        }
        let long_ago = Some(Duration::from_secs(1000) - LATELY);
        assert!(within(waits(long_ago)[11], BACKOFF_MAX));
    }

    #[test]
    fn a_pace_allows_a_burst_and_then_one_at_a_time() {
        let s = Duration::from_secs;
        let mut pace = Pace::new(s(10));
        for _ in 0..3 {
            assert_eq!(pace.due(3, s(100)), s(100));
            pace.spend(s(100));
        }
        assert_eq!(pace.due(3, s(101)), s(110));
        assert_eq!(pace.due(3, s(110)), s(110));
        pace.spend(s(110));
        assert_eq!(pace.due(3, s(111)), s(120));
        pace.give_back();
        assert_eq!(pace.due(3, s(111)), s(111));
        assert_eq!(pace.due(3, s(100_000)), s(100_000));
        assert_eq!(pace.spent, 0);
    }

    #[test]
    fn many_failures_overflow_nothing() {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let mut backoff = Backoff { failures: u32::MAX, due: Duration::ZERO };
        backoff.failed(None, Duration::ZERO, &mut rng);
        assert!(within(backoff.due, BACKOFF_MAX));
    }
}
