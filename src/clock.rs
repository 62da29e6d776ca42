//! The one clock: everything that the machines call `now`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// A monotonic clock that begins at zero when it is made, and goes on while the host sleeps: what
/// others have counted meanwhile has passed here too (ipam I22). Copies of it agree.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    epoch: Duration,
}

fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // Neither is ever negative.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

impl Clock {
    /// A clock that begins now.
    #[must_use]
    pub fn start() -> Self {
        Self { epoch: since_boot() }
    }

    /// Time since the clock was started: the `now` of every state machine in the process.
    #[must_use]
    pub fn now(&self) -> Duration {
        since_boot().saturating_sub(self.epoch)
    }

    /// The instant, for timers of the runtime, at which [`Self::now`] will be `at` if the host does
    /// not sleep before: their clock stands still then, so ask for a new one after each wait.
    #[must_use]
    pub fn instant(&self, at: Duration) -> Instant {
        Instant::now() + at.saturating_sub(self.now())
    }

    /// The wall clock's time, in seconds since the Unix epoch, at which [`Self::now`] was `at`:
    /// for people, and for when an admission ends (control C29); never for other decisions.
    #[must_use]
    pub fn wall(&self, at: Duration) -> u64 {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (wall + at).saturating_sub(self.now()).as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_the_one_that_goes_on_while_the_host_sleeps() {
        let uptime = std::fs::read_to_string("/proc/uptime").expect("Linux tells it");
        let uptime: f64 = uptime.split(' ').next().and_then(|text| text.parse().ok()).expect("seconds since the boot");
        let clock = Clock { epoch: Duration::ZERO };
        let after = clock.now().as_secs_f64() - uptime;
        assert!((-0.01..10.0).contains(&after), "{after} s after /proc/uptime, which counts sleep");
    }

    #[test]
    fn an_instant_is_as_far_away_as_its_time() {
        let clock = Clock::start();
        let at = clock.instant(clock.now() + Duration::from_secs(100));
        let left = at.saturating_duration_since(Instant::now());
        assert!((90.0..=100.0).contains(&left.as_secs_f64()), "{left:?}");
        assert!(clock.instant(Duration::ZERO) <= Instant::now(), "what is over is now");
    }
}
