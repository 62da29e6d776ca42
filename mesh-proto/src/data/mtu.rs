//! How large a datagram may be on one way to a peer: DPLPMTUD after RFC 8899.
//!
//! ```text
//!  SIZES   1200 ═══ 1400 ─── 1452 ✗── 1472 ✗── …      ═ in use   ─ not yet tried   ✗ lost
//!            base      in use    ╰ three times lost: nothing from here on fits
//! ```
//!
//! Several sizes are tried at once, spread over what is open, so that the best is nearly in use
//! after one round trip. While frames flow the size in use is confirmed every 300 ms; three
//! losses in a row, while a small probe is answered, are a black hole: back to the base and
//! search again (sleeve S25–S27). ICMP is not asked.

use core::time::Duration;

use super::limits::{
    MTU_BURST, MTU_CONFIRM_EVERY, MTU_CONFIRM_WAIT, MTU_RAISE_EVERY, MTU_TRIES, MTU_WAIT, PAYLOAD_BASE,
};

/// UDP payloads that are tried: those of common link MTUs less the headers of IPv4 (28) or IPv6
/// (48) and of tunnels, and coarse steps between. The last is replaced by the upper end.
const SIZES: [u16; 25] = [
    1232,
    1252,
    1280,
    1312,
    1344,
    1372,
    1400,
    1412,
    1424,
    1432,
    1440,
    1452,
    1472,
    1500,
    2020,
    3044,
    4052,
    6000,
    8152,
    8872,
    8900,
    8922,
    8952,
    8972,
    u16::MAX,
];

/// Sizes to probe now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Burst {
    sizes: [u16; MTU_BURST + 2],
    len: usize,
}

impl Burst {
    fn push(&mut self, size: u16) {
        if let Some(slot) = self.sizes.get_mut(self.len) {
            *slot = size;
            self.len += 1;
        }
    }

    pub(crate) fn sizes(&self) -> &[u16] {
        &self.sizes[..self.len]
    }
}

/// The search on one way.
#[derive(Debug)]
pub(crate) struct Mtu {
    current: u16,
    max: u16,
    /// Below this, because the socket refused it. Forgotten when the search is raised.
    ceiling: u16,
    tries: [u8; SIZES.len()],
    /// End of the round under way, while searching.
    round: Option<Duration>,
    /// Largest size of the round.
    round_top: u16,
    raise_at: Duration,
    used: Option<Duration>,
    confirm_at: Duration,
    confirm_sent: Option<Duration>,
    confirm_lost: u8,
    small_answered: bool,
    srtt: Duration,
}

impl Mtu {
    pub(crate) fn new(max: u16, now: Duration) -> Self {
        Self {
            current: PAYLOAD_BASE,
            max: max.max(PAYLOAD_BASE),
            ceiling: u16::MAX,
            tries: [0; SIZES.len()],
            round: Some(now),
            round_top: 0,
            raise_at: now,
            used: None,
            confirm_at: now,
            confirm_sent: None,
            confirm_lost: 0,
            small_answered: false,
            srtt: Duration::ZERO,
        }
    }

    /// Largest UDP payload in bytes that may be used now.
    pub(crate) const fn current(&self) -> u16 {
        self.current
    }

    /// Whether the search is over, so that the size will stay for a while.
    pub(crate) const fn settled(&self) -> bool {
        self.round.is_none()
    }

    /// Starts over from the base: the way is another one now.
    pub(crate) fn restart(&mut self, now: Duration) {
        let used = self.used;
        *self = Self::new(self.max, now);
        self.used = used;
    }

    /// The upper end is another one. A size that is in use and below it stays in use while larger
    /// ones are looked for.
    pub(crate) fn limit(&mut self, max: u16, now: Duration) {
        self.max = max.max(PAYLOAD_BASE);
        if self.current > self.max {
            self.restart(now);
        } else {
            self.tries = [0; SIZES.len()];
            self.ceiling = u16::MAX;
            self.round = Some(now);
        }
    }

    /// User frames flow. True if the timer must be looked at again, for it slept.
    pub(crate) fn used(&mut self, now: Duration) -> bool {
        let slept = self.used.is_none_or(|at| at + MTU_CONFIRM_EVERY <= now);
        if slept {
            self.used = Some(now);
        }
        slept
    }

    fn flowing(&self, now: Duration) -> bool {
        self.used.is_some_and(|at| now < at + MTU_CONFIRM_EVERY * 2)
    }

    /// A probe of that size, sent at `sent`, was answered. The new size if it changed.
    pub(crate) fn echo(&mut self, size: u16, sent: Duration, now: Duration) -> Option<u16> {
        self.srtt = (self.srtt * 3 + now.saturating_sub(sent)) / 4;
        if size <= PAYLOAD_BASE {
            self.small_answered = true;
        }
        if size >= self.current {
            self.confirm_sent = None;
            self.confirm_lost = 0;
            self.confirm_at = now + MTU_CONFIRM_EVERY;
        }
        if self.round.is_some() && size >= self.round_top {
            self.round = Some(now);
        }
        if size <= self.current || size > self.max {
            return None;
        }
        self.current = size;
        Some(size)
    }

    /// The socket refused a datagram of that size. The new size if it changed.
    pub(crate) fn refused(&mut self, size: u16, now: Duration) -> Option<u16> {
        if size <= PAYLOAD_BASE {
            return None;
        }
        self.ceiling = self.ceiling.min(size - 1);
        if self.current < size {
            return None;
        }
        let ceiling = self.ceiling;
        self.restart(now);
        self.ceiling = ceiling;
        Some(self.current)
    }

    /// What is to be probed now, and the new size if the way turned out to be a black hole.
    pub(crate) fn poll(&mut self, now: Duration) -> (Burst, Option<u16>) {
        let mut burst = Burst::default();
        let fell = self.poll_confirm(now, &mut burst);
        if self.round.is_none() && now >= self.raise_at && self.flowing(now) {
            self.tries = [0; SIZES.len()];
            self.ceiling = u16::MAX;
            self.round = Some(now);
        }
        if self.round.is_some_and(|until| now >= until) {
            self.begin_round(now, &mut burst);
        }
        (burst, fell)
    }

    /// When to poll next, and why.
    pub(crate) fn due(&self) -> Option<(Duration, &'static str)> {
        let round = self.round.map(|at| (at, "path MTU search"));
        let confirm = if self.current == PAYLOAD_BASE {
            None
        } else if let Some(sent) = self.confirm_sent {
            Some((sent + self.confirm_wait(), "path MTU confirmation"))
        } else {
            // Runs only while frames flow: nothing is due on an idle way.
            let awake = |used| self.confirm_at < used + MTU_CONFIRM_EVERY * 2;
            self.used.is_some_and(awake).then_some((self.confirm_at, "path MTU confirmation"))
        };
        match (round, confirm) {
            (Some(a), Some(b)) => Some(if a.0 <= b.0 { a } else { b }),
            (a, b) => a.or(b),
        }
    }

    fn poll_confirm(&mut self, now: Duration, burst: &mut Burst) -> Option<u16> {
        if self.current == PAYLOAD_BASE {
            return None;
        }
        if let Some(sent) = self.confirm_sent {
            if now < sent + self.confirm_wait() {
                return None;
            }
            self.confirm_sent = None;
            self.confirm_lost = self.confirm_lost.saturating_add(1);
            self.confirm_at = now;
            if self.confirm_lost >= MTU_TRIES {
                if self.small_answered {
                    self.restart(now);
                    return Some(self.current);
                }
                // Nothing passes at all: not a matter of size. Ask less often.
                self.confirm_at = now + MTU_CONFIRM_EVERY;
            }
        }
        if now < self.confirm_at || !(self.flowing(now) || self.confirm_lost > 0) {
            return None;
        }
        if self.confirm_lost == 0 {
            self.small_answered = false;
        } else if !self.flowing(now) && self.confirm_lost >= MTU_TRIES {
            self.confirm_lost = 0;
            return None;
        } else {
            burst.push(PAYLOAD_BASE);
        }
        burst.push(self.current);
        self.confirm_sent = Some(now);
        None
    }

    fn begin_round(&mut self, now: Duration, burst: &mut Burst) {
        let top = self.max.min(self.ceiling);
        let mut open = [0; SIZES.len()];
        let mut count = 0;
        for (i, &size) in SIZES.iter().enumerate() {
            let size = size.min(top);
            if size <= self.current {
                continue;
            }
            if self.tries[i] >= MTU_TRIES {
                break;
            }
            open[count] = i;
            count += 1;
            if size == top {
                break;
            }
        }
        if count == 0 {
            self.round = None;
            self.raise_at = now + MTU_RAISE_EVERY;
            return;
        }
        // Evenly spread, the smallest and the largest among them.
        let picks = count.min(MTU_BURST);
        for n in 0..picks {
            let i = open[n * (count - 1) / (picks - 1).max(1)];
            self.tries[i] += 1;
            self.round_top = SIZES[i].min(top);
            burst.push(self.round_top);
        }
        self.round = Some(now + self.wait());
    }

    fn wait(&self) -> Duration {
        (self.srtt * 2).clamp(MTU_WAIT, MTU_WAIT * 5)
    }

    fn confirm_wait(&self) -> Duration {
        (self.srtt * 4).clamp(MTU_CONFIRM_WAIT, MTU_WAIT * 5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A path that carries payloads up to `fits(t)` and answers after 5 ms; all probes and the
    /// times at which the size changed.
    struct Run {
        mtu: Mtu,
        probes: u64,
        changes: Vec<(u64, u16)>,
    }

    impl Run {
        fn new(max: u16) -> Self {
            Self { mtu: Mtu::new(max, ms(0)), probes: 0, changes: Vec::new() }
        }

        fn go(&mut self, from: u64, to: u64, flows: bool, fits: impl Fn(u64) -> u16) {
            let mut under_way = Vec::new();
            for t in from..to {
                if flows {
                    self.mtu.used(ms(t));
                }
                let due = self.mtu.due();
                if due.is_some_and(|(at, _)| at <= ms(t)) {
                    let (burst, fell) = self.mtu.poll(ms(t));
                    self.changes.extend(fell.map(|size| (t, size)));
                    self.probes += burst.sizes().len() as u64;
                    under_way.extend(burst.sizes().iter().filter(|&&s| s <= fits(t)).map(|&s| (t, s)));
                }
                under_way.retain(|&(sent, size)| {
                    if sent + 5 > t {
                        return true;
                    }
                    self.changes.extend(self.mtu.echo(size, ms(sent), ms(t)).map(|s| (t, s)));
                    false
                });
            }
        }
    }

    #[test]
    fn the_largest_size_that_fits_is_found_within_a_second() {
        for (path, found) in
            [(1200, 1200), (1231, 1200), (1252, 1252), (1400, 1400), (1452, 1452), (1472, 1472), (9999, 1472)]
        {
            let mut run = Run::new(1472);
            run.go(0, 1000, false, |_| path);
            assert_eq!(run.mtu.current(), found, "path {path}");
            assert!(run.mtu.settled());
        }
    }

    #[test]
    fn jumbo_is_found_within_two_seconds_and_most_of_it_at_once() {
        for (path, found) in [(1472, 1472), (8972, 8972), (8950, 8922), (4500, 4052)] {
            let mut run = Run::new(8972);
            run.go(0, 30, false, |_| path);
            assert!(run.mtu.current() >= 1400);
            run.go(30, 2000, false, |_| path);
            assert_eq!(run.mtu.current(), found, "path {path}");
        }
    }

    #[test]
    fn an_idle_way_is_not_probed() {
        let mut run = Run::new(1472);
        run.go(0, 2_000, false, |_| 1400);
        let before = run.probes;
        run.go(2_000, 200_000, false, |_| 1400);
        assert_eq!(run.probes, before);
        assert_eq!(run.mtu.due(), None);
    }

    #[test]
    fn a_black_hole_is_found_in_half_a_second_of_flow() {
        let mut run = Run::new(1472);
        run.go(0, 5_500, true, |_| 1472);
        run.go(5_500, 20_000, true, |_| 1300);
        let fell = run.changes.iter().find(|c| c.1 == PAYLOAD_BASE).unwrap().0;
        assert!(fell < 6_000, "{fell}");
        assert_eq!(run.mtu.current(), 1280);
        let after = run.changes.last().unwrap().0;
        assert!(after < fell + 1_000);
    }

    #[test]
    fn a_dead_path_is_not_taken_for_a_black_hole() {
        let mut run = Run::new(1472);
        run.go(0, 5_000, true, |_| 1472);
        run.go(5_000, 15_000, true, |_| 0);
        assert_eq!(run.mtu.current(), 1472);
        run.go(15_000, 20_000, true, |_| 1472);
        assert_eq!(run.mtu.current(), 1472);
    }

    #[test]
    fn a_path_that_grew_is_used_after_a_minute_of_flow() {
        let mut run = Run::new(1472);
        run.go(0, 10_000, true, |_| 1300);
        run.go(10_000, 65_000, true, |_| 1472);
        assert_eq!(run.mtu.current(), 1472);
    }

    #[test]
    fn what_the_socket_refuses_is_not_tried_again_soon() {
        let mut run = Run::new(1472);
        run.go(0, 3_000, true, |_| 1472);
        assert_eq!(run.mtu.refused(1440, ms(3_000)), Some(PAYLOAD_BASE));
        run.go(3_000, 10_000, true, |_| 1472);
        assert_eq!(run.mtu.current(), 1439);
        assert_eq!(run.mtu.refused(1440, ms(10_000)), None);
    }

    #[test]
    fn another_upper_end_is_found_at_once_and_what_is_in_use_stays() {
        let mut run = Run::new(1472);
        run.go(0, 3_000, true, |_| 8972);
        run.mtu.limit(8972, ms(3_000));
        assert_eq!(run.mtu.current(), 1472);
        run.go(3_000, 5_000, true, |_| 8972);
        assert_eq!(run.mtu.current(), 8972);
        assert!(run.changes.iter().all(|&(_, size)| size > PAYLOAD_BASE), "{:?}", run.changes);
        run.mtu.limit(1400, ms(5_000));
        run.go(5_000, 6_000, true, |_| 8972);
        assert_eq!(run.mtu.current(), 1400);
    }

    proptest! {
        #[test]
        fn it_never_uses_more_than_was_answered_or_less_than_the_base(max: u16, steps in prop::collection::vec((0u64..500, any::<u16>(), any::<bool>()), 0..200)) {
            let mut mtu = Mtu::new(max, ms(0));
            let (mut now, mut answered) = (0, PAYLOAD_BASE);
            for (wait, size, echo) in steps {
                now += wait;
                mtu.used(ms(now));
                if echo && size <= max {
                    mtu.echo(size, ms(now), ms(now));
                    answered = answered.max(size);
                }
                let (burst, _) = mtu.poll(ms(now));
                prop_assert!(burst.sizes().iter().all(|&s| s <= max.max(PAYLOAD_BASE)));
                prop_assert!((PAYLOAD_BASE..=answered).contains(&mtu.current()));
            }
        }
    }
}
