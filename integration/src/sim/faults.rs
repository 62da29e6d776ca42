//! What goes wrong, when: drawn before the run begins, from a stream of its own.
//!
//! Each kind of fault is on in half of the seeds, so that seeds differ in what they mix and not
//! only in when it happens (swarm testing).

use core::time::Duration;
use std::collections::BTreeSet;

use super::clock::{MS, SECOND, TRUE_RATE, Time};
use super::dice::Dice;
use super::graph::Graph;
use super::net::Weather;
use super::queue::Index;

/// No fault begins before this.
pub(super) const FIRST: Time = 4 * SECOND;
/// No fault is left after this.
pub(super) const HEALED: Time = 14 * SECOND;

/// What is on a disk after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// All that was durable.
    All,
    /// All, but older by one start: somebody put back a copy.
    Copy,
    /// Nothing: another host in the old one's place.
    Nothing,
}

/// One thing that happens.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// The whole underlay changes its weather.
    Weather(Weather),
    /// A way is cut, one direction.
    Cut(Index, Index),
    /// A way is whole again.
    Mend(Index, Index),
    /// A way loses, repeats and delays: loss and repetition of 65,536, jitter in nanoseconds.
    Sick(Index, Index, u16, u16, u32),
    /// A way carries only payloads up to this, and says nothing.
    Narrow(Index, Index, u16),
    /// Only hosts of one side reach each other.
    Split(Vec<u8>),
    /// The sides are one again.
    Join,
    /// The router dies.
    Crash(Index),
    /// The router says goodbye and ends.
    Leave(Index),
    /// The router starts, with what is left on its disk.
    Start(Index, Kept),
    /// The router stops, as by SIGSTOP.
    Pause(Index),
    /// It goes on.
    Resume(Index),
    /// Its clock jumps forward.
    Jump(Index, Duration),
    /// Its clock runs at this rate (millionths).
    Rate(Index, u64),
    /// The host gets another address, and its router is told or not.
    Roam(Index, bool),
    /// A container moves from one host to another with its address.
    Migrate(Index, Index),
    /// Disks refuse this many writes of a thousand.
    Disks(u64),
    /// Somebody sends this many old datagrams again, some of them changed, and noise.
    Replay(u32),
}

/// Kinds of faults; each is on in half of the seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Loss, duplication, delay and jitter everywhere.
    Weather,
    /// Ways that are cut both ways.
    Cuts,
    /// Ways that are cut in one direction.
    OneWay,
    /// Loss, duplication and jitter of single ways, in one direction.
    Sick,
    /// Ways that carry smaller datagrams only.
    Narrow,
    /// An underlay in two or three parts.
    Splits,
    /// Routers that die and start again.
    Crashes,
    /// Hosts that come back with an empty disk.
    Wipes,
    /// Hosts that come back with an old copy of their disk.
    Copies,
    /// Routers that end as they should and start again.
    Leaves,
    /// Hosts that are gone for good.
    Deaths,
    /// Routers that are stopped for a while.
    Pauses,
    /// Clocks that jump forward.
    Jumps,
    /// Clocks that run at half to double speed.
    Rates,
    /// Hosts that get another address.
    Roams,
    /// Containers that move between hosts.
    Migrations,
    /// Disks that refuse writes.
    Disks,
    /// Datagrams that somebody sends again or makes up.
    Replays,
}

/// Every kind.
pub(super) const KINDS: [Kind; 18] = [
    Kind::Weather,
    Kind::Cuts,
    Kind::OneWay,
    Kind::Sick,
    Kind::Narrow,
    Kind::Splits,
    Kind::Crashes,
    Kind::Wipes,
    Kind::Copies,
    Kind::Leaves,
    Kind::Deaths,
    Kind::Pauses,
    Kind::Jumps,
    Kind::Rates,
    Kind::Roams,
    Kind::Migrations,
    Kind::Disks,
    Kind::Replays,
];

/// The faults of one run.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) faults: Vec<(Time, Fault)>,
    /// Hosts that never come back.
    pub(super) gone: BTreeSet<Index>,
    /// Names of the kinds that are on.
    pub(super) kinds: String,
}

/// What the plan is drawn from.
struct Drawer<'a> {
    plan: Plan,
    dice: Dice,
    hosts: Index,
    links: Vec<(Index, Index)>,
    /// The links that must go on to hold everything together.
    needed: &'a Graph,
}

impl Plan {
    /// Draws a plan. The hosts that are gone for good leave `needed` in one piece.
    pub(super) fn draw(dice: Dice, hosts: Index, graph: &Graph, needed: &Graph, without: &[Kind]) -> Self {
        let plan = Self::default();
        let mut drawer = Drawer { plan, dice, hosts, links: graph.links(), needed };
        for kind in KINDS {
            if drawer.dice.chance(500) && !without.contains(&kind) {
                drawer.plan.kinds.push_str(&format!(" {kind:?}"));
                drawer.kind(kind);
            }
        }
        let mut plan = drawer.plan;
        plan.faults.sort_by_key(|fault| fault.0);
        plan
    }
}

impl Drawer<'_> {
    fn kind(&mut self, kind: Kind) {
        let few = 1 + self.dice.below(1 + u64::from(self.hosts) / 12);
        let count = match kind {
            Kind::Deaths | Kind::Splits | Kind::Disks => 1 + self.dice.below(2),
            Kind::Cuts | Kind::OneWay | Kind::Sick | Kind::Narrow => few * 2,
            _ => few,
        };
        for _ in 0..count {
            self.one(kind);
        }
    }

    fn one(&mut self, kind: Kind) {
        let host = self.host();
        match kind {
            Kind::Weather => {
                let weather = self.weather();
                self.pair(Fault::Weather(weather), Fault::Weather(Weather::default()));
            }
            Kind::Cuts => {
                let (a, b) = self.link();
                let (from, to) = self.span();
                self.put(from, Fault::Cut(a, b));
                self.put(from, Fault::Cut(b, a));
                self.put(to, Fault::Mend(a, b));
                self.put(to, Fault::Mend(b, a));
            }
            Kind::OneWay => {
                let (a, b) = self.link();
                self.pair(Fault::Cut(a, b), Fault::Mend(a, b));
            }
            Kind::Sick => {
                let (a, b) = self.link();
                let loss = self.up_to(20_000);
                let twice = self.up_to(20_000);
                let jitter = u32::try_from(self.dice.below(60 * MS)).unwrap_or(0);
                self.pair(Fault::Sick(a, b, loss, twice, jitter), Fault::Mend(a, b));
            }
            Kind::Narrow => {
                let (a, b) = self.link();
                let payload = [1232, 1252, 1372, 1400][self.dice.index(4)];
                self.pair(Fault::Narrow(a, b, payload), Fault::Mend(a, b));
            }
            Kind::Splits => {
                let parts = 2 + self.dice.below(2);
                let sides = (0..self.hosts).map(|_| self.dice.below(parts).to_le_bytes()[0]);
                let sides = sides.collect();
                self.pair(Fault::Split(sides), Fault::Join);
            }
            Kind::Crashes => self.pair(Fault::Crash(host), Fault::Start(host, Kept::All)),
            Kind::Wipes => self.pair(Fault::Crash(host), Fault::Start(host, Kept::Nothing)),
            Kind::Copies => self.pair(Fault::Crash(host), Fault::Start(host, Kept::Copy)),
            Kind::Leaves => self.pair(Fault::Leave(host), Fault::Start(host, Kept::All)),
            Kind::Deaths => self.death(host),
            Kind::Pauses => self.pair(Fault::Pause(host), Fault::Resume(host)),
            Kind::Jumps => {
                let by = [1, 3, 20, 3600, 86_400 * 3650][self.dice.index(5)];
                let (at, _) = self.span();
                self.put(at, Fault::Jump(host, Duration::from_secs(by)));
            }
            Kind::Rates => {
                let rate = self.dice.between(TRUE_RATE / 2, TRUE_RATE * 2);
                self.pair(Fault::Rate(host, rate), Fault::Rate(host, TRUE_RATE));
            }
            Kind::Roams => {
                let told = self.dice.chance(500);
                let (at, _) = self.span();
                self.put(at, Fault::Roam(host, told));
            }
            Kind::Migrations => {
                let other = self.host();
                let (at, _) = self.span();
                self.put(at, Fault::Migrate(host, other));
            }
            Kind::Replays => {
                let (at, _) = self.span();
                self.put(at, Fault::Replay(200));
            }
            Kind::Disks => {
                let refused = self.dice.between(50, 1000);
                self.pair(Fault::Disks(refused), Fault::Disks(0));
            }
        }
    }

    fn death(&mut self, host: Index) {
        let mut gone = self.plan.gone.clone();
        gone.insert(host);
        if self.needed.hangs_together(&gone) && gone.len() + 2 <= usize::from(self.hosts) {
            self.plan.gone = gone;
            let (at, _) = self.span();
            self.put(at, Fault::Crash(host));
        }
    }

    fn weather(&mut self) -> Weather {
        let mut weather = Weather::default();
        if self.dice.chance(500) {
            weather.loss = self.up_to(20_000);
        }
        if self.dice.chance(500) {
            weather.twice = self.up_to(30_000);
        }
        if self.dice.chance(500) {
            weather.delay = u32::try_from(self.dice.below(150 * MS)).unwrap_or(0);
        }
        if self.dice.chance(500) {
            weather.jitter = u32::try_from(self.dice.below(60 * MS)).unwrap_or(0);
        }
        weather
    }

    fn up_to(&mut self, most: u16) -> u16 {
        u16::try_from(self.dice.below(u64::from(most))).unwrap_or(0)
    }

    fn host(&mut self) -> Index {
        Index::try_from(self.dice.below(u64::from(self.hosts))).unwrap_or(0)
    }

    fn link(&mut self) -> (Index, Index) {
        let (a, b) = self.links[self.dice.index(self.links.len())];
        if self.dice.chance(500) { (a, b) } else { (b, a) }
    }

    /// Short ones are as likely as long ones.
    fn span(&mut self) -> (Time, Time) {
        let from = self.dice.between(FIRST, HEALED - 200 * MS);
        let most = [SECOND, 4 * SECOND, HEALED][self.dice.index(3)];
        let to = from + self.dice.between(50 * MS, most);
        (from, to.min(HEALED - MS))
    }

    fn pair(&mut self, begin: Fault, end: Fault) {
        let (from, to) = self.span();
        self.put(from, begin);
        self.put(to, end);
    }

    fn put(&mut self, at: Time, fault: Fault) {
        self.plan.faults.push((at, fault));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_is_on_in_about_half_of_the_seeds() {
        let mut seen = [0; KINDS.len()];
        for seed in 0..400 {
            let mut dice = Dice::new(seed, "graph");
            let graph = Graph::partial(20, &mut dice);
            let tree = graph.thin(&mut dice);
            let plan = Plan::draw(Dice::new(seed, "faults"), 20, &graph, &tree, &[]);
            for (count, kind) in seen.iter_mut().zip(KINDS) {
                let on = plan.kinds.split(' ').any(|name| name == format!("{kind:?}"));
                *count += u32::from(on);
            }
            assert!(plan.faults.iter().all(|(at, _)| (FIRST..HEALED).contains(at)));
            assert!(plan.faults.is_sorted_by_key(|fault| fault.0));
            assert!(tree.hangs_together(&plan.gone));
        }
        assert!(seen.iter().all(|count| (160..240).contains(count)), "{seen:?}");
    }
}
