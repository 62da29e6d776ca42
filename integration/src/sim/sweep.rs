//! Many seeds, on all processors.

use core::fmt;
use core::ops::Range;
use std::any::Any;
use std::collections::BTreeMap;
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::options::Options;
use super::run::{Measured, Outcome, run};

/// Runs every seed with the given options otherwise, on this many threads. `each` sees every
/// outcome as it comes and says whether to go on.
pub fn sweep(options: &Options, seeds: Range<u64>, threads: usize, mut each: impl FnMut(&Outcome) -> bool) -> Summary {
    let began = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let (sender, outcomes) = mpsc::sync_channel(threads);
    let mut summary = Summary::default();
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || work(options, next, seeds.end, &sender));
        }
        drop(sender);
        for outcome in outcomes {
            summary.add(&outcome);
            if !each(&outcome) {
                next.store(seeds.end, Ordering::Relaxed);
            }
        }
    });
    summary.took = began.elapsed();
    summary
}

fn work(options: &Options, next: &AtomicU64, end: u64, sender: &mpsc::SyncSender<Outcome>) {
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return;
        }
        let outcome = run_caught(&Options { seed, ..options.clone() });
        if sender.send(outcome).is_err() {
            return;
        }
    }
}

/// Runs a simulation; a panic in it is its outcome.
#[must_use]
pub fn run_caught(options: &Options) -> Outcome {
    panic::catch_unwind(|| run(options)).unwrap_or_else(|cause| Outcome {
        options: options.clone(),
        failure: Some(format!("panicked: {}", text_of(&*cause))),
        hash: 0,
        trace: String::new(),
        measured: Measured::default(),
    })
}

fn text_of(cause: &(dyn Any + Send)) -> &str {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("no text")
}

/// What many runs came to. Its text is one line.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// How many runs.
    pub runs: u64,
    /// How many of them failed.
    pub failed: u64,
    /// Over the hashes of all runs, in any order.
    pub hash: u64,
    /// Real time.
    pub took: Duration,
    /// The most of each that any run measured, but sums of `simulated_ms`, `datagrams`, `frames`,
    /// `deliveries`, `addresses`.
    pub measured: Measured,
    converged: BTreeMap<u64, u64>,
}

impl Summary {
    fn add(&mut self, outcome: &Outcome) {
        let (all, one) = (&mut self.measured, &outcome.measured);
        self.runs += 1;
        self.failed += u64::from(outcome.failure.is_some());
        let turn = u32::try_from(outcome.options.seed % 64).unwrap_or(0);
        self.hash ^= outcome.hash.rotate_left(turn);
        all.simulated_ms += one.simulated_ms;
        all.datagrams += one.datagrams;
        all.frames += one.frames;
        all.deliveries += one.deliveries;
        all.addresses += one.addresses;
        all.converged_ms = all.converged_ms.max(one.converged_ms);
        all.idle_per_peer = all.idle_per_peer.max(one.idle_per_peer);
        all.idle_dials = all.idle_dials.max(one.idle_dials);
        all.idle_per_link = all.idle_per_link.max(one.idle_per_link);
        if outcome.failure.is_none() {
            *self.converged.entry(one.converged_ms).or_default() += 1;
        }
    }

    /// The time in milliseconds within which this share of the runs, in thousandths, converged.
    #[must_use]
    pub fn converged(&self, share: u64) -> u64 {
        let mut left = self.converged.values().sum::<u64>() * share / 1000;
        for (ms, count) in &self.converged {
            if left <= *count {
                return *ms;
            }
            left -= count;
        }
        0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = &self.measured;
        write!(
            f,
            "{} runs, {} failed, {:.1} s; {} s simulated, {} datagrams, {} frames, {} deliveries, {} addresses; \
             converged after {} ms (median), {} ms (99 %), {} ms (most); hash {:016x}",
            self.runs,
            self.failed,
            self.took.as_secs_f64(),
            all.simulated_ms / 1000,
            all.datagrams,
            all.frames,
            all.deliveries,
            all.addresses,
            self.converged(500),
            self.converged(990),
            all.converged_ms,
            self.hash,
        )?;
        if all.idle_per_peer > 0 {
            write!(
                f,
                "; idle at most {} bytes/s a peer, {} of them in vain, {} for each link",
                all.idle_per_peer, all.idle_dials, all.idle_per_link
            )?;
        }
        Ok(())
    }
}
