//! When to dial again: exponential, with seeded jitter, and eager where a peer was just there.

use core::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::RngCore as _;

use super::limits::{BACKOFF_LATELY, BACKOFF_MAX, BACKOFF_MIN, BACKOFF_RELAYED, LATELY};

/// When to try again.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// Failures in a row.
    pub(super) failures: u32,
    /// When the next attempt may follow.
    pub(super) due: Duration,
}

impl Backoff {
    /// One more failure. `seen` is when the peer was last known to live.
    pub(super) fn failed(&mut self, seen: Option<Duration>, now: Duration, rng: &mut ChaCha20Rng) {
        self.wait(seen, BACKOFF_MAX, now, rng);
    }

    /// The same for a peer that is reached through relays meanwhile. `linked` is when there was
    /// last a link with it.
    pub(super) fn failed_patiently(&mut self, linked: Option<Duration>, now: Duration, rng: &mut ChaCha20Rng) {
        self.wait(linked, BACKOFF_RELAYED, now, rng);
    }

    fn wait(&mut self, lately: Option<Duration>, cap: Duration, now: Duration, rng: &mut ChaCha20Rng) {
        let lately = lately.is_some_and(|seen| now.saturating_sub(seen) < LATELY);
        let cap = if lately { BACKOFF_LATELY } else { cap };
        let wait = BACKOFF_MIN.saturating_mul(1 << self.failures.min(16)).min(cap);
        self.failures = self.failures.saturating_add(1);
        self.due = now + jitter(wait, rng);
    }

    /// Try again soon, as if for the first time.
    pub(super) fn reset(&mut self, due: Duration) {
        *self = Self { failures: 0, due };
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
    fn many_failures_overflow_nothing() {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let mut backoff = Backoff { failures: u32::MAX, due: Duration::ZERO };
        backoff.failed(None, Duration::ZERO, &mut rng);
        assert!(within(backoff.due, BACKOFF_MAX));
    }
}
