//! Whether a direct path lives: probes, echoes, round trips.
//!
//! ```text
//!            first echo            no echo for 2.5 s
//!   Fresh ──────────────► Up ─────────────────────────► Down
//!     └── no echo for 2.5 s ──────────────────────────►  │
//!                          ▲──────── first echo ─────────┘
//! ```
//!
//! Only an echo counts: it proves both directions. One probe a second while all is well or all
//! is lost; ten a second while an echo is missing (sleeve S22–S24).

use core::time::Duration;

use super::limits::{DEAD_AFTER, ECHO_MISSING_MIN, PROBE_EARLY, PROBE_EVERY, PROBE_QUICK, RTT_CHANGE_MIN};

/// What is known of a direct path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// Not one echo yet.
    Fresh,
    Up,
    Down,
}

/// What a path has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Up(Duration),
    Down,
    Rtt(Duration),
}

/// A direct path.
#[derive(Debug)]
pub(crate) struct Path {
    life: Life,
    /// Last echo, or when probing began.
    alive: Duration,
    next_probe: Duration,
    /// When the oldest unanswered probe was sent.
    waiting_since: Option<Duration>,
    srtt: Option<Duration>,
    reported: Duration,
    /// One bit a probe, newest lowest: 1 for answered. And how many of them are real.
    history: u64,
    history_len: u32,
}

impl Path {
    pub(crate) const fn new(now: Duration) -> Self {
        Self {
            life: Life::Fresh,
            alive: now,
            next_probe: now,
            waiting_since: None,
            srtt: None,
            reported: Duration::ZERO,
            history: 0,
            history_len: 0,
        }
    }

    pub(crate) const fn life(&self) -> Life {
        self.life
    }

    pub(crate) const fn rtt(&self) -> Option<Duration> {
        self.srtt
    }

    /// Part of the last probes, at most 64, that had no echo. The newest may be under way still
    /// and is left out.
    pub(crate) fn loss(&self) -> f64 {
        let judged = self.history_len.saturating_sub(1);
        if judged == 0 {
            return 0.0;
        }
        let mask = if judged >= 64 { u64::MAX } else { (1 << judged) - 1 };
        let answered = (self.history >> 1 & mask).count_ones().min(judged);
        f64::from(judged - answered) / f64::from(judged)
    }

    /// No probe can be sent yet: what is not asked cannot answer.
    pub(crate) fn hold(&mut self, now: Duration) {
        self.alive = now;
        self.next_probe = now + PROBE_EVERY;
    }

    /// A probe is due now.
    pub(crate) fn hurry(&mut self, now: Duration) {
        self.next_probe = self.next_probe.min(now);
    }

    /// Whether a probe is due; if so it counts as sent.
    pub(crate) fn probe_due(&mut self, now: Duration) -> bool {
        if now < self.next_probe {
            return false;
        }
        self.history <<= 1;
        self.history_len = (self.history_len + 1).min(64);
        let since = *self.waiting_since.get_or_insert(now);
        self.next_probe = if self.life == Life::Down {
            now + PROBE_EVERY
        } else if now >= since + self.missing_after() {
            now + PROBE_QUICK
        } else {
            (since + self.missing_after()).max(now + PROBE_QUICK)
        };
        true
    }

    /// Whether a probe goes with an echo that is sent now; if so it counts as sent.
    pub(crate) fn probe_early(&mut self, now: Duration) -> bool {
        let calm = self.life == Life::Up && self.waiting_since.is_none();
        if !calm || self.next_probe > now + PROBE_EARLY {
            return false;
        }
        self.hurry(now);
        self.probe_due(now)
    }

    /// An echo of a probe that was sent at `sent` came back by the direct path.
    pub(crate) fn echo(&mut self, sent: Duration, now: Duration) -> Option<Change> {
        self.history |= 1;
        self.alive = now;
        self.waiting_since = None;
        self.next_probe = sent.max(now.saturating_sub(PROBE_EVERY)) + PROBE_EVERY;
        let sample = now.saturating_sub(sent);
        // The clock goes on while the host sleeps: an echo that was under way then says nothing of
        // the path's speed.
        let sample = if sample > DEAD_AFTER { self.srtt.unwrap_or(DEAD_AFTER) } else { sample };
        let srtt = self.srtt.map_or(sample, |old| (old * 7 + sample) / 8);
        self.srtt = Some(srtt);
        if self.life != Life::Up {
            self.life = Life::Up;
            (self.srtt, self.reported) = (Some(sample), sample);
            // What a dead path lost says nothing about the one that lives now.
            (self.history, self.history_len) = (1, 1);
            return Some(Change::Up(sample));
        }
        let change = srtt.abs_diff(self.reported);
        if change <= RTT_CHANGE_MIN || change * 4 <= self.reported {
            return None;
        }
        self.reported = srtt;
        Some(Change::Rtt(srtt))
    }

    /// Whether the path has just died.
    pub(crate) fn died(&mut self, now: Duration) -> Option<Change> {
        if self.life == Life::Down || now < self.alive + DEAD_AFTER {
            return None;
        }
        self.life = Life::Down;
        self.next_probe = now + PROBE_EVERY;
        Some(Change::Down)
    }

    /// When something is to be done next, and what.
    pub(crate) fn due(&self) -> (Duration, &'static str) {
        let dead = self.alive + DEAD_AFTER;
        if self.life != Life::Down && dead < self.next_probe {
            return (dead, "path dead");
        }
        (self.next_probe, "path probe")
    }

    fn missing_after(&self) -> Duration {
        self.srtt.map_or(ECHO_MISSING_MIN, |rtt| (rtt * 3).clamp(ECHO_MISSING_MIN, PROBE_EVERY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_that_was_under_way_while_the_host_slept_is_no_round_trip() {
        let mut path = Path::new(ms(0));
        assert_eq!(path.echo(ms(0), ms(10)), Some(Change::Up(ms(10))));
        assert_eq!(path.echo(ms(1000), ms(3_600_000)), None);
        assert_eq!(path.rtt(), Some(ms(10)));
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Runs a path whose echoes take 10 ms while `answers` says so; returns changes and probes.
    fn run(path: &mut Path, from: u64, to: u64, answers: impl Fn(u64) -> bool) -> (Vec<(u64, Change)>, u32) {
        let (mut changes, mut probes, mut echoes) = (Vec::new(), 0, Vec::new());
        for t in from..to {
            if path.probe_due(ms(t)) {
                probes += 1;
                if answers(t) {
                    echoes.push(t);
                }
            }
            while let Some(&sent) = echoes.first().filter(|&&sent| sent + 10 <= t) {
                echoes.remove(0);
                changes.extend(path.echo(ms(sent), ms(t)).map(|c| (t, c)));
            }
            changes.extend(path.died(ms(t)).map(|c| (t, c)));
        }
        (changes, probes)
    }

    #[test]
    fn a_path_comes_up_with_its_first_echo_and_is_probed_once_a_second() {
        let mut path = Path::new(ms(0));
        let (changes, probes) = run(&mut path, 0, 10_000, |_| true);
        assert_eq!(changes, [(10, Change::Up(ms(10)))]);
        assert_eq!(probes, 10);
        assert!(path.loss() < 0.001);
    }

    #[test]
    fn a_probe_goes_early_with_an_echo_and_not_while_one_is_missing() {
        let mut path = Path::new(ms(0));
        assert!(!path.probe_early(ms(0)), "nothing is known of it yet");
        path.echo(ms(0), ms(1));
        assert!(!path.probe_early(ms(499)));
        assert!(path.probe_early(ms(500)));
        assert!(!path.probe_early(ms(501)), "under way");
        path.echo(ms(500), ms(502));
        assert_eq!(path.due(), (ms(1500), "path probe"), "a second after the last");
    }

    #[test]
    fn a_path_that_stops_answering_is_down_in_two_and_a_half_seconds_and_then_up_again() {
        let mut path = Path::new(ms(0));
        let answers = |t| !(5_500..20_000).contains(&t);
        let (changes, _) = run(&mut path, 0, 30_000, answers);
        let [(_, Change::Up(_)), (down, Change::Down), (up, Change::Up(_))] = changes[..] else {
            panic!("{changes:?}");
        };
        assert!((7_000..=8_000).contains(&down), "{down}");
        assert!((20_000..=21_100).contains(&up), "{up}");
        assert!(path.loss() < 0.001, "what was lost while it was down is not held against it");
    }

    #[test]
    fn a_path_that_never_answers_is_reported_down_once_and_probed_slowly() {
        let mut path = Path::new(ms(0));
        let (changes, _) = run(&mut path, 0, 5_000, |_| false);
        assert_eq!(changes, [(2_500, Change::Down)]);
        let (changes, probes) = run(&mut path, 5_000, 65_000, |_| false);
        assert_eq!((changes.len(), probes), (0, 60));
        assert!(path.loss() > 0.99);
    }

    #[test]
    fn half_of_all_echoes_lost_do_not_kill_a_path() {
        let mut path = Path::new(ms(0));
        // A small generator: which probes get lost is fixed, and looks random.
        let lost = |t: u64| (t.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) & 1 == 0;
        let (changes, _) = run(&mut path, 0, 600_000, |t| !lost(t));
        assert!(changes.iter().all(|(_, c)| *c != Change::Down), "{changes:?}");
        assert!((0.3..0.9).contains(&path.loss()), "{}", path.loss());
    }

    #[test]
    fn a_round_trip_is_reported_when_it_changes_by_much() {
        let mut path = Path::new(ms(0));
        assert_eq!(path.echo(ms(0), ms(10)), Some(Change::Up(ms(10))));
        for n in 1..20 {
            assert_eq!(path.echo(ms(n * 1000), ms(n * 1000 + 11)), None);
        }
        let reports = (20..60).filter_map(|n| path.echo(ms(n * 1000), ms(n * 1000 + 40)));
        let reports: Vec<_> = reports.collect();
        assert!((2..=8).contains(&reports.len()), "{reports:?}");
    }
}
