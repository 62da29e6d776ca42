//! Random schedules of requests and faults, then quiet; judged by what was answered.
//!
//! `WEFT_IPAM_SEEDS=1..100000` runs those, `WEFT_IPAM_SEEDS=7..8` one again.

#[path = "schedules/outcome.rs"]
mod outcome;
#[path = "schedules/schedule.rs"]
mod schedule;
mod sim;

use std::ops::Range;
use std::time::Duration;

use ipam::allocator::Ablation;
use outcome::Outcome;
use schedule::{Birth, Schedule};
use sim::Faults;
use sim::subject::Kind;

const STEPS: u64 = 100;

/// The seeds of a run: a slice, or what was asked for.
fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("WEFT_IPAM_SEEDS") else {
        return 1..251;
    };
    let parts = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parts.unwrap_or_else(|| panic!("WEFT_IPAM_SEEDS is FROM..TO, not {text}"))
}

#[expect(clippy::print_stdout, reason = "says what a run has covered")]
fn run_many(birth: Birth) {
    let seeds = seeds();
    let count = seeds.end - seeds.start;
    let mut total = Outcome::default();
    let mut bad = Vec::new();
    for seed in seeds.clone() {
        let outcome = Schedule::new(birth, seed).run(STEPS);
        if !outcome.violations.is_empty() {
            println!("{birth:?} seed {seed}: {:?}", outcome.violations);
            bad.push(seed);
        }
        total.add(outcome);
        if (seed - seeds.start + 1).is_multiple_of(1000) {
            println!("{birth:?}: {} of {count} schedules, {} bad", seed - seeds.start + 1, bad.len());
        }
    }
    println!("{birth:?}: {count} schedules, {total:?}");
    let name = match birth {
        Birth::Alone => "alone",
        Birth::Together => "together",
        Birth::Apart => "apart",
        Birth::Seeded => "by_seeds",
    };
    assert!(
        bad.is_empty(),
        "bad seeds: {bad:?}; run one again with\n  WEFT_IPAM_SEEDS=SEED..SEED+1 cargo test -p ipam \
         --test schedules founded_{name} -- --nocapture"
    );
    // The networks that meet do have something in common.
    assert!(birth != Birth::Apart || count < 100 || total.given_twice > 0, "none had anything to lose");
    assert!(birth == Birth::Apart || total.given_twice == 0, "there were several networks");
}

#[test]
fn no_address_is_given_twice_or_lost_founded_alone() {
    run_many(Birth::Alone);
}

#[test]
fn no_address_is_given_twice_or_lost_founded_together() {
    run_many(Birth::Together);
}

#[test]
fn no_address_is_given_twice_or_lost_founded_apart() {
    run_many(Birth::Apart);
}

#[test]
fn no_address_is_given_twice_or_lost_founded_by_seeds() {
    run_many(Birth::Seeded);
}

/// Schedules that once found something.
#[test]
fn schedules_that_once_failed_hold() {
    let kept = [
        (Birth::Alone, &[97, 2273, 2427, 5042, 7389, 8637, 34202, 34724, 58314][..]),
        (Birth::Together, &[18, 50, 142, 320, 356, 1249, 1688, 6297, 6621, 30729, 31697, 33398, 38185]),
        (
            Birth::Apart,
            &[2204, 2757, 8541, 13766, 23244, 31918, 36064, 39552, 46203, 11918, 48077, 107508, 108483, 127489],
        ),
        (Birth::Seeded, &[3124, 4750, 6621, 40192, 42594, 53799, 128202]),
    ];
    // However they begin.
    let all = [658, 993, 2606, 2776, 3099, 3283, 4530, 4608, 4674, 4846, 6652];
    let births = [Birth::Alone, Birth::Together, Birth::Apart, Birth::Seeded].map(|birth| (birth, &all[..]));
    for (birth, seeds) in kept.into_iter().chain(births) {
        for &seed in seeds {
            let new = || Schedule::new(birth, seed);
            let prompt = || {
                let mut schedule = new();
                schedule.world.late_surveys = 0;
                schedule
            };
            // Older ones are from before hosts slept or were surveyed late, and some were brisk.
            let awake = [false, true].map(|brisk| Schedule { brisk, sleeps: false, ..prompt() });
            for (at, schedule) in awake.into_iter().chain([prompt(), new()]).enumerate() {
                let outcome = schedule.run(STEPS);
                assert!(outcome.violations.is_empty(), "{birth:?} {seed} {at}: {:?}", outcome.violations);
            }
        }
    }
}

#[test]
fn the_same_seed_makes_the_same_trace() {
    for birth in [Birth::Alone, Birth::Together, Birth::Apart, Birth::Seeded] {
        for seed in 1..10 {
            let one = Schedule::new(birth, seed).run(STEPS);
            let two = Schedule::new(birth, seed).run(STEPS);
            assert_eq!(one, two, "seed {seed}");
        }
    }
}

/// Nothing but one crash, at one write: before it is durable, and after.
#[test]
fn a_crash_at_any_write_harms_nothing() {
    let quiet = |crash_at: Option<(u64, bool)>| {
        let mut schedule = Schedule::new(Birth::Together, 5);
        schedule.world.faults = Faults::none();
        schedule.world.clock_jumps = false;
        schedule.world.crash_at = crash_at;
        let s = &mut schedule;
        (s.partitions, s.crashes, s.losses, s.removals, s.sleeps) = (false, false, false, false, false);
        schedule.run(30)
    };
    let undisturbed = quiet(None);
    assert!(undisturbed.violations.is_empty() && undisturbed.disturbed_writes > 50, "{undisturbed:?}");
    for write in 0..undisturbed.disturbed_writes {
        for durable in [false, true] {
            let outcome = quiet(Some((write, durable)));
            assert!(outcome.violations.is_empty(), "at write {write}, durable {durable}: {:?}", outcome.violations);
        }
    }
}

/// Whether a schedule gave an address twice.
fn is_harmed(outcome: &Outcome) -> bool {
    outcome.violations.iter().any(|text| text.contains("DUPLICATE") || text.contains("two holders"))
}

/// Whether one of these schedules gives an address twice with some rule broken, and with all rules does not.
fn harmed_without(broken: Ablation, mut seeds: Range<u64>) -> bool {
    let harmed = |ablation, seed| {
        let mut schedule = Schedule { brisk: false, ..Schedule::new(Birth::Together, seed) };
        schedule.world.ablation = ablation;
        schedule.losses = true;
        schedule.crashes = true;
        schedule.world.faults.duplication = 200;
        is_harmed(&schedule.run(STEPS))
    };
    seeds.find(|&seed| harmed(broken, seed)).is_some_and(|seed| !harmed(Ablation::default(), seed))
}

#[test]
fn without_witnesses_old_disks_make_duplicates() {
    let ablation = Ablation { no_witness: true, ..Ablation::default() };
    assert!(harmed_without(ablation, 1..1501));
}

#[test]
fn without_a_new_term_after_a_restart_old_disks_make_duplicates() {
    let ablation = Ablation { no_restart_term: true, ..Ablation::default() };
    assert!(harmed_without(ablation, 1..1501));
}

#[test]
fn without_reading_other_voters_after_a_start_old_disks_make_duplicates() {
    let ablation = Ablation { no_recovery: true, ..Ablation::default() };
    assert!(harmed_without(ablation, 901..1001));
}

/// How often these schedules give an address that is in use in a network which has become the same one.
fn given_late(ablation: Ablation) -> u64 {
    let late = |seed: u64| {
        let mut schedule = Schedule::new(Birth::Apart, seed);
        schedule.world.ablation = ablation;
        schedule.run(STEPS).given_late
    };
    (1..=60).map(late).sum()
}

#[test]
fn without_the_lists_of_what_others_keep_networks_that_met_make_duplicates() {
    let without = given_late(Ablation { no_keep: true, ..Ablation::default() });
    // With them, only where the news was on its way.
    let with = given_late(Ablation::default());
    println!("given though it was in use in a network that had joined: {without} times, with the lists {with} times");
    assert!(without > 10 * (with + 1), "{without} {with}");
}

/// Whether one of so many schedules in which hosts sleep, with silent ones removed, gives an address without a
/// lease for it.
fn harmed_by_sleep(frozen: bool, schedules: u64) -> bool {
    let harmed = |seed: &u64| {
        let mut schedule = Schedule { sleeps: true, removals: false, ..Schedule::new(Birth::Alone, *seed) };
        schedule.world.dead_after = Some(Duration::from_secs(10));
        // So that a clock can be behind others.
        schedule.world.clock_jumps = true;
        schedule.world.frozen = frozen;
        let outcome = schedule.run(STEPS);
        is_harmed(&outcome) || outcome.violations.iter().any(|text| text.contains("WITHOUT LEASE"))
    };
    (1..=schedules).any(|seed| harmed(&seed))
}

#[test]
fn clocks_that_stand_still_while_hosts_sleep_make_duplicates_and_others_do_not() {
    assert!(harmed_by_sleep(true, 1500));
    assert!(!harmed_by_sleep(false, 100));
}

/// How many of so many schedules give an address twice; `losses` and `removals` only where wanted.
fn harmed(kind: Kind, schedules: u64, losses: bool, removals: bool) -> usize {
    let harmed = |seed: &u64| {
        let mut schedule = Schedule { brisk: false, ..Schedule::new(Birth::Alone, *seed) };
        schedule.world.kind = kind;
        // The model of Weave Net's ring writes again what failed, after what came later.
        schedule.world.faults.write_error = 0;
        schedule.losses &= losses;
        schedule.removals &= removals;
        is_harmed(&schedule.run(STEPS))
    };
    (1..=schedules).filter(harmed).count()
}

#[test]
fn the_ring_of_weave_net_gives_addresses_twice_under_the_same_schedules() {
    let ring = |schedules, losses, removals| harmed(Kind::Weave, schedules, losses, removals);
    let (all, removals, losses) = (ring(400, true, true), ring(400, false, true), ring(3000, true, false));
    println!(
        "of 400 schedules, harmed: {all}; removals alone: {removals}; of 3000, lost and old disks alone: {losses}"
    );
    assert!(losses > 0 && removals > 0 && all > 0, "{all} {losses} {removals}");
    assert_eq!(harmed(Kind::Allocator, 400, true, true), 0);
    // The model is not to blame: messages lost, partitions and crashes alone do it no harm.
    assert_eq!(ring(400, false, false), 0);
}
