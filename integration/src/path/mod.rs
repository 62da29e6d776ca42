//! The path benchmark: what traffic between two containers costs over Weft, and over what else
//! carries it, side by side on one machine.
//!
//! ```text
//!   container ─ bridge ─ router │ host1 ═══ veth pair ═══ host2 │ router ─ bridge ─ container
//!   generator                                                              generator
//! ```
//!
//! Every contestant has hosts and containers of its own; all stand at the same time. A round
//! measures each figure with one contestant after the other, so that whatever the machine does
//! meanwhile hits all of them. What is printed is the median over the rounds with its extremes;
//! figures of different runs do not compare, ratios within one run do.
//!
//! ```text
//!   options.rs      what is asked for
//!   contestant.rs   who takes part: builds hosts, tunnel and containers, and asks it what it is
//!   peers.rs        the contestants that are programs of others
//!   figures.rs      what is measured, and how
//!   tcp.rs udp.rs rtt.rs   the traffic
//!   crowd.rs        what further peers cost a router
//!   machine.rs      processor time and memory, as the kernel accounts them
//!   report.rs plot.rs      tables, JSON, picture
//! ```

mod contestant;
mod crowd;
mod figures;
mod machine;
mod options;
mod peers;
mod plot;
mod report;
mod rtt;
mod sys;
mod tcp;
mod udp;

use std::{
    fs,
    io::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;

use contestant::Standing;
use figures::{Bench, Metric};
use report::Report;

pub use contestant::ROUTER;
pub use machine::end_with_the_parent;
pub use options::Options;

/// What is left of the last measurement is over by then: retransmissions, wake-ups, freed memory.
const SETTLE: Duration = Duration::from_millis(100);

/// Runs the benchmark, prints its tables and writes its files.
///
/// # Errors
/// If no namespace can be made, or a file cannot be written. A contestant that cannot be set up is
/// reported as absent, a measurement that fails as missing.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let interrupted = watch_for_interrupts()?;
    if options.crowd {
        say(&crowd::measure(options)?);
        return Ok(());
    }
    let mut reports = Vec::new();
    for &mode in &options.modes() {
        for &mtu in &options.mtus() {
            let report = measure(options, mode, mtu, &interrupted)?;
            say(&report.tables());
            reports.push(report);
        }
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report::json(&reports))?;
        fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &options.plot {
        fs::write(path, plot::svg(&reports)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// One underlay: all contestants, all rounds.
fn measure(options: &Options, mode: options::Mode, mtu: u32, interrupted: &AtomicBool) -> anyhow::Result<Report> {
    let mut report = Report::new(options, mode, mtu);
    let mut standing = Vec::new();
    for contestant in options.contestants() {
        go_on(interrupted)?;
        match Standing::build(contestant, options, mode, mtu) {
            Ok(built) => {
                report.present(contestant, &built.said);
                standing.push(built);
            }
            Err(error) => {
                note(&format!("{} is absent: {error:#}", contestant.name()));
                report.absent(contestant, &format!("{error:#}"));
            }
        }
    }
    anyhow::ensure!(!standing.is_empty(), "none of the contestants could be set up");
    let bench = Bench::new(options);
    for round in 0..options.rounds() {
        for figure in options.figures() {
            if !figure.applies(mode) {
                continue;
            }
            for step in 0..standing.len() {
                go_on(interrupted)?;
                // Another one is first in each round.
                let course = &standing[(step + round) % standing.len()];
                thread::sleep(SETTLE);
                let name = course.contestant.name();
                let progress = format!("{} mtu {mtu}, round {}: {} {name}", mode.name(), round + 1, figure.name());
                match bench.measure(figure, course) {
                    Ok(values) => {
                        let shown: Vec<String> = values.iter().map(|(metric, value)| metric.show(*value)).collect();
                        note(&format!("{progress}: {}", shown.join(", ")));
                        for (metric, value) in values {
                            report.add(course.contestant, metric, value);
                        }
                    }
                    Err(error) => note(&format!("{progress}: {error:#}")),
                }
            }
        }
    }
    for course in &standing {
        // After all the work: what it grew to.
        if let Some(bytes) = machine::resident(&course.processes) {
            report.add(course.contestant, Metric::Memory, bytes as f64 / 1e6);
        }
    }
    Ok(report)
}

/// An interrupt ends the run between two measurements, so that nothing is left behind.
fn watch_for_interrupts() -> io::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("interrupts".into()).spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            flag.store(true, Ordering::Release);
        }
    })?;
    Ok(interrupted)
}

fn go_on(interrupted: &AtomicBool) -> anyhow::Result<()> {
    anyhow::ensure!(!interrupted.load(Ordering::Acquire), "interrupted");
    Ok(())
}

fn say(text: &str) {
    // A closed pipe ends nothing: the files are still to be written.
    let _ = io::stdout().write_all(text.as_bytes());
}

fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
