//! The one clock: everything that the machines call `now`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A monotonic clock that begins at zero when it is made. Copies of it agree.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    epoch: Instant,
}

impl Clock {
    /// A clock that begins now.
    #[must_use]
    pub fn start() -> Self {
        Self { epoch: Instant::now() }
    }

    /// Time since the clock was started: the `now` of every state machine in the process.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// The instant, for timers of the runtime, at which [`Self::now`] will be `at`.
    #[must_use]
    pub fn instant(&self, at: Duration) -> Instant {
        self.epoch + at
    }

    /// The wall clock's time, in seconds since the Unix epoch, at which [`Self::now`] was `at`:
    /// for people, and for when an admission ends (control C29); never for other decisions.
    #[must_use]
    pub fn wall(&self, at: Duration) -> u64 {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (wall + at).saturating_sub(self.now()).as_secs()
    }
}
