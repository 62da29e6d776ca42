//! Which carrier takes frames to one peer, and why.
//!
//! ```text
//!             nearly every probe of a while answered (F9)
//!   sleeve ────────────────────────────────────────► fast
//!      ▲                                               │
//!      └── no echo for 1 s, while its router answers ──┘
//!          on another way (F10, F11)
//! ```
//!
//! Two lanes are probed on the way of user frames: small frames and frames of the overlay's full
//! size. Only an echo counts: it proves both directions. Once in use, full frames that come back say
//! all there is to know: small ones are sent only when one is missing, to tell a path that has
//! become too small from one that is gone.

use core::time::Duration;
use std::collections::VecDeque;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Between two probes of full size while the path is in use and answers.
const EVERY: Duration = ms(700);
/// For the other lane, meanwhile.
const NEVER: Duration = Duration::MAX;
/// Between two probes of a lane that proves itself.
const PROVE: Duration = ms(300);
/// Between two probes of a lane that does not answer and is not in use.
const SLOW: Duration = ms(2000);
/// Between two probes of a lane in use once an echo is missing …
const QUICK: Duration = ms(100);
/// … and once nobody has answered for [`LONG`].
const PATIENT: Duration = ms(1000);
const LONG: Duration = ms(5000);
/// An echo is missing after three round trips, but within these.
const MISSING_MIN: Duration = ms(300);
const MISSING_MAX: Duration = ms(900);
/// A lane in use that has not answered for so long, and so often, is dead.
const DEAD_AFTER: Duration = ms(1000);
const DEAD_COUNT: u32 = 5;
/// A router that has answered nothing for so long was stopped.
const SILENT: Duration = ms(1500);
/// So many probes on each lane, nearly all answered, make a path good.
const GOOD: u32 = 4;
/// After demotions in the last [`MEMORY`] it takes more, up to so many: 5.4 s of answers.
const GOOD_MAX: u32 = 18;
/// One in so many may be lost, for a queue that a transfer keeps full loses some of everybody's
/// frames, and a path that did so is not worse for it.
const LOST_ONE_IN: u32 = 5;
/// A lane that has not answered so many in a row begins again.
const LOST_IN_A_ROW: u32 = 3;
const MEMORY: Duration = Duration::from_secs(60);
/// Between two questions to the other router on another way.
const PING_EVERY: Duration = ms(300);
/// Probes that are remembered, and questions.
const OUTSTANDING: usize = 64;
const ASKED: usize = 16;

/// What a probe is to prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Frames pass.
    Small,
    /// Frames of the overlay's full size pass.
    Full,
}

/// Why the carrier is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It has not answered long enough yet.
    Proving,
    /// No probe comes back.
    NoEcho,
    /// Small probes come back, those of full size do not.
    TooSmall,
    /// Probes of all sizes come back.
    Answers,
    /// The path has another end now.
    Moved,
    /// This end does not want it (fastpath F5).
    OwnPolicy,
    /// It would have to be sealed, and the kernel here has no WireGuard now (fastpath F19).
    NoSeal,
    /// The other end does not want it, or what it wants is not what this end wants (fastpath F5).
    TheirPolicy,
    /// The other end has said nothing of a fast path.
    NoOffer,
    /// There is no direct link.
    NotDirect,
}

impl Why {
    /// One line for people.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Proving => "fast path is being proven",
            Self::NoEcho => "no fast path: its probes do not come back",
            Self::TooSmall => "no fast path: probes of full size do not come back",
            Self::Answers => "fast path answers, at full size",
            Self::Moved => "fast path is being proven at a new address",
            Self::OwnPolicy => "no fast path: this end does not want it with that peer",
            Self::NoSeal => "no fast path: the network has a secret, and the kernel here has no WireGuard",
            Self::TheirPolicy => "no fast path: the other end does not want it, or has no WireGuard",
            Self::NoOffer => "no fast path: the other end has none",
            Self::NotDirect => "no fast path: no direct link",
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Probing {
    next: Duration,
    /// When the oldest probe without an answer was sent, and how many there are since.
    waiting_since: Option<Duration>,
    unanswered: u32,
    history: History,
}

/// Which of the last probes were answered.
#[derive(Debug, Clone, Copy)]
struct History {
    /// A bit for each, the last one lowest.
    answered: u32,
    length: u32,
}

impl History {
    const EMPTY: Self = Self { answered: 0, length: 0 };

    fn push(&mut self, answered: bool) {
        self.answered = self.answered << 1 | u32::from(answered);
        self.length = (self.length + 1).min(u32::BITS);
    }

    /// Whether nearly all of the last `count` were answered.
    fn is_good(self, count: u32) -> bool {
        let last = self.answered & ((1 << count) - 1);
        self.length >= count && count - last.count_ones() <= count / LOST_ONE_IN
    }
}

impl Probing {
    const fn new(next: Duration) -> Self {
        Self { next, waiting_since: None, unanswered: 0, history: History::EMPTY }
    }

    fn sent(&mut self, fast: bool, missing: Duration, now: Duration) {
        if self.unanswered >= LOST_IN_A_ROW {
            self.history = History::EMPTY;
        } else if self.unanswered > 0 && self.answers() {
            self.history.push(false);
        }
        let since = *self.waiting_since.get_or_insert(now);
        self.unanswered = self.unanswered.saturating_add(1);
        self.next = match fast {
            false => now + if self.answers() { missing } else { SLOW },
            true if now < since + missing => since + missing,
            true if now < since + LONG => now + QUICK,
            true => now + PATIENT,
        };
    }

    fn answered(&mut self, fast: bool, sent: Duration) {
        self.waiting_since = None;
        self.unanswered = 0;
        self.history.push(true);
        self.next = sent + if fast { EVERY } else { PROVE };
    }

    /// Whether there is something good to say of it.
    const fn answers(&self) -> bool {
        self.history.length > 0
    }

    fn dead(&self, now: Duration) -> bool {
        self.waiting_since.is_some_and(|since| now >= since + DEAD_AFTER) && self.unanswered >= DEAD_COUNT
    }
}

/// What a carrier wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Send a probe with that nonce.
    Probe(Lane, u64),
    /// Ask the other router, on another way, whether it lives.
    Ping(u64),
    /// Use the fast path from now on, or no more.
    Switch(bool),
}

/// The state towards one peer that may get the fast path.
#[derive(Debug)]
pub(crate) struct Carrier {
    fast: bool,
    why: Why,
    small: Probing,
    full: Probing,
    outstanding: VecDeque<(u64, Lane, Duration)>,
    rtt: Option<Duration>,
    /// The newest time at which something was sent that the other router has answered.
    alive: Option<Duration>,
    pings: VecDeque<(u64, Duration)>,
    /// Demotions of the last minute.
    falls: VecDeque<Duration>,
}

impl Carrier {
    pub(crate) const fn new(why: Why, now: Duration) -> Self {
        Self {
            fast: false,
            why,
            small: Probing::new(now),
            full: Probing::new(now),
            outstanding: VecDeque::new(),
            rtt: None,
            alive: None,
            pings: VecDeque::new(),
            falls: VecDeque::new(),
        }
    }

    pub(crate) const fn is_fast(&self) -> bool {
        self.fast
    }

    pub(crate) const fn why(&self) -> Why {
        self.why
    }

    /// When [`Self::poll`] has something to do.
    pub(crate) fn due(&self) -> Duration {
        self.small.next.min(self.full.next)
    }

    /// What is to be done now; ask until `None`. `nonce` is used up if it is in the answer.
    pub(crate) fn poll(&mut self, nonce: u64, now: Duration) -> Option<Wish> {
        if let Some(wish) = self.judge(nonce, now) {
            return Some(wish);
        }
        let missing = self.missing();
        if self.small.next == NEVER && self.full.next <= now && self.full.waiting_since.is_some() {
            self.small.next = now;
        }
        for (lane, probing) in [(Lane::Small, &mut self.small), (Lane::Full, &mut self.full)] {
            if probing.next <= now {
                probing.sent(self.fast, missing, now);
                if self.outstanding.len() == OUTSTANDING {
                    self.outstanding.pop_front();
                }
                self.outstanding.push_back((nonce, lane, now));
                return Some(Wish::Probe(lane, nonce));
            }
        }
        None
    }

    /// A probe came back. False if it was none of ours.
    pub(crate) fn echo(&mut self, nonce: u64, now: Duration) -> bool {
        let Some(at) = self.outstanding.iter().position(|(sent, ..)| *sent == nonce) else {
            return false;
        };
        let Some((_, lane, sent)) = self.outstanding.remove(at) else {
            return false;
        };
        let sample = now.saturating_sub(sent);
        // Longer than that is sleep of the host, which its clock counts, and no round trip.
        if sample <= DEAD_AFTER {
            self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        }
        self.heard(sent, true, now);
        match lane {
            Lane::Small => self.small.answered(self.fast, sent),
            Lane::Full => {
                self.full.answered(self.fast, sent);
                if self.fast {
                    self.small = Probing::new(NEVER);
                }
            }
        }
        true
    }

    /// The other router answered a question on another way. `linked` says whether there is a
    /// direct link to it.
    pub(crate) fn pong(&mut self, nonce: u64, linked: bool, now: Duration) {
        if let Some(&(_, at)) = self.pings.iter().find(|(asked, _)| *asked == nonce) {
            self.heard(at, linked, now);
        }
    }

    /// The other router has answered what was sent at `sent`, on whatever way.
    fn heard(&mut self, sent: Duration, linked: bool, now: Duration) {
        for probing in [&mut self.small, &mut self.full] {
            // It was silent on every way for long: it was stopped, or this one was. What went
            // unanswered then is nothing that the path is to blame for. Without a link it is: the
            // answer came through relays, where the direct path is dead for sleeve, too.
            if linked && probing.waiting_since.is_some_and(|since| self.alive < Some(since) && now >= since + SILENT) {
                (probing.waiting_since, probing.unanswered, probing.next) = (Some(now), 0, now);
            }
        }
        self.alive = self.alive.max(Some(sent));
    }

    fn judge(&mut self, nonce: u64, now: Duration) -> Option<Wish> {
        if !self.fast {
            let needed = self.needed(now);
            if [self.small, self.full].iter().all(|lane| lane.history.is_good(needed) && lane.unanswered <= 1) {
                (self.fast, self.why) = (true, Why::Answers);
                (self.small, self.full.next) = (Probing::new(NEVER), now + EVERY);
                return Some(Wish::Switch(true));
            }
            self.why = match (self.small.unanswered > 1, self.full.unanswered > 1) {
                (true, _) => Why::NoEcho,
                (false, true) => Why::TooSmall,
                (false, false) if self.small.answers() && self.full.answers() => Why::Proving,
                (false, false) => self.why,
            };
            return None;
        }
        let waiting = self.full.waiting_since?;
        // A stopped router loses no frame that the kernel carries: only one that answers where
        // its probes do not is better reached on another way (fastpath F11).
        let proof = |since: Duration| self.alive.is_some_and(|alive| alive >= since);
        if self.full.dead(now) && proof(waiting) {
            self.fast = false;
            self.why = if self.small.unanswered > 1 { Why::NoEcho } else { Why::TooSmall };
            self.falls.push_back(now);
            (self.small, self.full) = (Probing::new(now + PROVE), Probing::new(now + PROVE));
            return Some(Wish::Switch(false));
        }
        let missing = now >= waiting + self.missing() && !proof(waiting);
        if missing && self.pings.back().is_none_or(|(_, at)| now >= *at + PING_EVERY) {
            if self.pings.len() == ASKED {
                self.pings.pop_front();
            }
            self.pings.push_back((nonce, now));
            return Some(Wish::Ping(nonce));
        }
        None
    }

    fn missing(&self) -> Duration {
        self.rtt.map_or(MISSING_MIN, |rtt| (rtt * 3).clamp(MISSING_MIN, MISSING_MAX))
    }

    /// Answers that are needed now: the more the more often it fell lately.
    fn needed(&mut self, now: Duration) -> u32 {
        while self.falls.front().is_some_and(|&at| at + MEMORY < now) {
            self.falls.pop_front();
        }
        let falls = self.falls.len().min(8) as u32;
        (GOOD << falls.saturating_sub(1)).min(GOOD_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path for one carrier: what passes, when.
    struct World {
        carrier: Carrier,
        now: u64,
        nonce: u64,
        switches: Vec<(u64, bool)>,
        probes: u32,
    }

    impl World {
        fn new() -> Self {
            let carrier = Carrier::new(Why::Proving, ms(0));
            Self { carrier, now: 0, nonce: 0, switches: Vec::new(), probes: 0 }
        }

        /// Runs until a time; `passes` says of a lane at a time whether its probe comes back, and
        /// `router` whether the other router answers elsewhere. Echoes take a millisecond.
        fn run(&mut self, until: u64, passes: impl Fn(Lane, u64) -> bool, router: impl Fn(u64) -> bool) {
            while self.now < until {
                let (mut echoes, mut pongs) = (Vec::new(), Vec::new());
                self.nonce += 1;
                while let Some(wish) = self.carrier.poll(self.nonce, ms(self.now)) {
                    match wish {
                        Wish::Probe(lane, nonce) => {
                            self.probes += 1;
                            if passes(lane, self.now) {
                                echoes.push(nonce);
                            }
                        }
                        Wish::Ping(nonce) if router(self.now) => pongs.push(nonce),
                        Wish::Ping(_) => {}
                        Wish::Switch(fast) => self.switches.push((self.now, fast)),
                    }
                    self.nonce += 1;
                }
                self.now += 1;
                for nonce in echoes {
                    assert!(self.carrier.echo(nonce, ms(self.now)));
                }
                for nonce in pongs {
                    self.carrier.pong(nonce, true, ms(self.now));
                }
            }
        }
    }

    #[test]
    fn a_good_path_is_used_within_two_seconds_and_probed_seldom() {
        let mut world = World::new();
        world.run(10_000, |_, _| true, |_| true);
        let [(at, true)] = world.switches[..] else { panic!("{:?}", world.switches) };
        assert!(at < 2_000, "{at}");
        world.probes = 0;
        world.run(20_000, |_, _| true, |_| true);
        assert!(world.probes <= 15, "{}", world.probes);
        assert_eq!(world.carrier.why(), Why::Answers);
    }

    #[test]
    fn a_path_that_fails_at_any_moment_is_left_within_two_seconds_and_found_again_within_ten() {
        for fails in (5_000..6_000).step_by(50) {
            let mut world = World::new();
            let passes = |_, now| now < fails || now >= 15_000;
            world.run(30_000, passes, |_| true);
            let [_, (down, false), (up, true)] = world.switches[..] else { panic!("{:?}", world.switches) };
            assert!(down - fails <= 1_900, "failed at {fails}, left at {down}");
            assert!(up - 15_000 <= 10_000, "{up}");
        }
    }

    #[test]
    fn a_path_that_shrinks_is_left_within_two_seconds_and_said_to_be_too_small() {
        for fails in (5_000..6_000).step_by(50) {
            let mut world = World::new();
            world.run(9_000, |lane, now| lane == Lane::Small || now < fails, |_| false);
            let [_, (down, false)] = world.switches[..] else { panic!("{:?}", world.switches) };
            // The small echoes are proof enough that the router lives.
            assert!(down - fails <= 2_000, "shrank at {fails}, left at {down}");
            assert_eq!(world.carrier.why(), Why::TooSmall);
        }
    }

    #[test]
    fn a_stopped_router_keeps_the_fast_path_and_finds_it_again() {
        let mut world = World::new();
        let runs = |now| !(5_000..35_000).contains(&now);
        world.run(60_000, |_, now| runs(now), runs);
        assert_eq!(world.switches.len(), 1, "{:?}", world.switches);
        assert!(world.carrier.is_fast());
    }

    #[test]
    fn a_router_that_was_stopped_itself_does_not_blame_the_path() {
        let mut world = World::new();
        world.run(5_000, |_, _| true, |_| true);
        world.now = 35_000;
        world.run(60_000, |_, _| true, |_| true);
        assert_eq!(world.switches.len(), 1, "{:?}", world.switches);
    }

    #[test]
    fn a_path_that_flaps_is_left_alone_for_longer_each_time() {
        let mut world = World::new();
        // Good for 5 s, bad for 3.
        world.run(80_000, |_, now| now % 8_000 < 5_000, |_| true);
        let ups = world.switches.iter().filter(|(_, fast)| *fast).count();
        assert!((2..=5).contains(&ups), "{:?}", world.switches);
    }

    /// Whether a probe is one of the `percent` that a full queue on the way loses.
    fn lost(percent: u64, seed: u64, lane: Lane, now: u64) -> bool {
        let mixed = ((now * 2 + u64::from(lane == Lane::Full)) ^ (seed << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32 < ((percent << 32) / 100)
    }

    #[test]
    fn five_of_a_hundred_probes_lost_do_not_move_a_path() {
        let mut world = World::new();
        world.run(600_000, |lane, now| !lost(5, 0, lane, now), |_| true);
        assert_eq!(world.switches.len(), 1, "{:?}", world.switches);
    }

    #[test]
    fn a_path_that_failed_often_and_loses_some_probes_is_found_again_within_ten_seconds() {
        for seed in 0..200 {
            let mut world = World::new();
            // Four falls, and then a transfer by sleeve that fills the queue to the brim.
            let falls = |now: u64| now < 40_000 && now % 10_000 >= 7_500;
            world.run(70_000, |lane, now| !falls(now) && (now < 40_000 || !lost(5, seed, lane, now)), |_| true);
            assert!(world.switches.iter().filter(|(_, fast)| !fast).count() >= 3, "{:?}", world.switches);
            let up = world.switches.last().filter(|(_, fast)| *fast).map(|(at, _)| *at);
            assert!(up.is_some_and(|up| up <= 50_000), "seed {seed}: {:?}", world.switches);
        }
    }

    #[test]
    fn a_path_that_loses_every_other_probe_is_left_alone() {
        for seed in 0..50 {
            let mut world = World::new();
            world.run(600_000, |lane, now| !lost(50, seed, lane, now), |_| true);
            let ups = world.switches.iter().filter(|(_, fast)| *fast).count();
            assert!(ups <= 6, "seed {seed}: {:?}", world.switches);
        }
    }
}
