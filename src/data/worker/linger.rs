//! Whether to go on looking for a while before sleeping.
//!
//! To be woken takes a thread some 20 µs, and twice that on a virtual machine whose processor has
//! gone to sleep with it; an exchange of small packets pays it at each router, and again on the way
//! back. Where packets come closer than that, it is cheaper to look again until the next one is there.
//!
//! ```text
//!  found ──► nothing ──► looks again, other threads first ──► found: no wake-up was paid
//!                            │ for `busy-poll`, and only if most waits of late were shorter
//!                            └ and what comes is small ──► sleeps
//! ```
//!
//! In bulk there is nothing to gain: batches are worth more than their first packet's latency, and the
//! processor is somebody else's. So it is where others want to run: whoever gives way to one of them
//! and is not back in time stops looking for a while.

use std::time::Duration;

/// Average size of a turn above which traffic is bulk, in bytes.
const BULK: usize = 4096;
/// How long it sleeps at once after another thread had the processor for longer than is looked on.
const CONTENDED: Duration = Duration::from_millis(100);
/// Longest wait that counts: some ten short ones make up for it.
const WAIT_MAX: Duration = Duration::from_millis(2);

/// The waits and turns of late.
#[derive(Debug)]
pub(super) struct Linger {
    /// How long is looked on at most.
    most: Duration,
    /// Average of the waits of late.
    waits: Duration,
    /// Average of the bytes of a turn of late.
    bytes: usize,
    /// When the wait began.
    since: Option<Duration>,
    /// It did not sleep since it looked last.
    awake: bool,
    /// Not before then: others want the processor.
    again_at: Duration,
}

impl Linger {
    /// Looks on for `most` at most; with zero never.
    pub(super) const fn new(most: Duration) -> Self {
        Self { most, waits: WAIT_MAX, bytes: 0, since: None, awake: false, again_at: Duration::ZERO }
    }

    /// A turn found so many bytes.
    pub(super) fn found(&mut self, bytes: usize, now: Duration) {
        if let Some(since) = self.since.take() {
            self.waits = (self.waits * 3 + now.saturating_sub(since).min(WAIT_MAX)) / 4;
        }
        self.bytes = (self.bytes * 7 + bytes) / 8;
    }

    /// A turn found nothing: whether to look again, rather than to sleep.
    pub(super) fn goes_on(&mut self, now: Duration) -> bool {
        let waited = now.saturating_sub(*self.since.get_or_insert(now));
        if self.awake && waited >= self.most * 2 {
            self.again_at = now + CONTENDED;
        }
        let soon = self.waits < self.most && self.bytes < BULK;
        self.awake = waited < self.most && soon && self.again_at <= now;
        self.awake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(100);

    /// So many bytes after each of `count` waits of this length; whether it looked on at the end.
    fn traffic(linger: &mut Linger, now: &mut Duration, count: u32, wait: Duration, bytes: usize) -> bool {
        let mut looked = false;
        for _ in 0..count {
            looked = linger.goes_on(*now);
            *now += wait;
            linger.found(bytes, *now);
        }
        looked
    }

    const fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn it_looks_on_where_small_packets_come_soon_and_sleeps_elsewhere() {
        let mut now = Duration::from_secs(1);
        let mut linger = Linger::new(MOST);
        assert!(!traffic(&mut linger, &mut now, 1, micros(20), 100), "nothing is known yet");
        assert!(traffic(&mut linger, &mut now, 20, micros(20), 100));
        assert!(!traffic(&mut linger, &mut now, 20, micros(150), 100), "too slow");
        assert!(traffic(&mut linger, &mut now, 20, micros(20), 100));
        assert!(!traffic(&mut linger, &mut now, 20, micros(20), 60_000), "bulk");
        let mut never = Linger::new(Duration::ZERO);
        assert!(!traffic(&mut never, &mut now, 20, Duration::ZERO, 100));
    }

    #[test]
    fn it_sleeps_when_nothing_came_in_time() {
        let mut now = Duration::from_secs(1);
        let mut linger = Linger::new(MOST);
        assert!(traffic(&mut linger, &mut now, 20, micros(20), 100));
        assert!(linger.goes_on(now));
        assert!(linger.goes_on(now + micros(99)));
        assert!(!linger.goes_on(now + micros(100)));
        // Woken for something else, after a sleep: nobody kept the processor.
        assert!(!linger.goes_on(now + micros(290)));
        // One long wait is no reason to sleep at once the next time: two are.
        linger.found(100, now + micros(300));
        assert!(linger.goes_on(now + micros(300)));
        linger.found(100, now + micros(900));
        assert!(!linger.goes_on(now + micros(900)));
    }

    #[test]
    fn it_leaves_the_processor_to_whoever_keeps_it() {
        let mut now = Duration::from_secs(1);
        let mut linger = Linger::new(MOST);
        assert!(traffic(&mut linger, &mut now, 20, micros(20), 100));
        assert!(linger.goes_on(now));
        now += micros(3000);
        assert!(!linger.goes_on(now), "gave way, and was away for long");
        linger.found(100, now);
        assert!(!traffic(&mut linger, &mut now, 20, micros(20), 100));
        now += CONTENDED;
        assert!(traffic(&mut linger, &mut now, 20, micros(20), 100));
    }
}
