//! Runs the simulator: one seed with its trace, or a range of seeds on all processors.
//!
//! ```text
//! sim --seed 42 --peers 100 --trace events     one run, its trace on standard output
//! sim --seeds 0..1000 --peers 100              a thousand runs, two lines for each that fails, a summary
//! ```

use std::io::{self, Write as _};
use std::ops::Range;
use std::process::ExitCode;
use std::thread;

use integration::sim::{Detail, Options, number, run_caught, sweep};

const USAGE: &str = "\
usage: sim [--seed N | --seeds FROM..TO] [--peers N] [--full] [--sealed] [--addresses] [--no-faults] [--without KIND]… [--idle]
           [--break RULE] [--trace hash|events|datagrams] [--threads N] [--keep-going]";

struct Job {
    options: Options,
    seeds: Range<u64>,
    threads: usize,
    keep_going: bool,
}

fn main() -> ExitCode {
    let mut out = io::stdout();
    let result = match read(std::env::args().skip(1)) {
        Ok(job) if job.options.detail > Detail::Hash => show(&job, &mut out),
        Ok(job) => all(&job, &mut out),
        Err(why) => {
            let _ = writeln!(io::stderr(), "sim: {why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        // A closed pipe ends the program like a failure does.
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

fn read(mut arguments: impl Iterator<Item = String>) -> Result<Job, String> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut job = Job { options: Options::default(), seeds: 0..0, threads, keep_going: false };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seeds" => {
                let text = arguments.next().unwrap_or_default();
                let (from, to) = text.split_once("..").ok_or_else(|| format!("--seeds {text}: expected FROM..TO"))?;
                job.seeds = number("--seeds", from)?..number("--seeds", to)?;
            }
            "--threads" => {
                let threads = number("--threads", &arguments.next().unwrap_or_default())?;
                job.threads = usize::try_from(threads).unwrap_or(usize::MAX).clamp(1, 256);
            }
            "--keep-going" => job.keep_going = true,
            other => {
                if !job.options.take(other, &mut arguments)? {
                    return Err(format!("unknown argument {other}"));
                }
            }
        }
    }
    if job.seeds.is_empty() {
        job.seeds = job.options.seed..job.options.seed + 1;
    }
    Ok(job)
}

/// Runs seeds one after the other and shows what happened.
fn show(job: &Job, out: &mut impl io::Write) -> io::Result<bool> {
    let mut fine = true;
    for seed in job.seeds.clone() {
        let outcome = run_caught(&Options { seed, ..job.options.clone() });
        out.write_all(outcome.trace.as_bytes())?;
        writeln!(out, "{} hash {:016x} {:?}", outcome.options, outcome.hash, outcome.measured)?;
        if let Some(why) = outcome.failure {
            writeln!(out, "FAILED {why}")?;
            fine = false;
        }
    }
    Ok(fine)
}

/// Runs seeds on all processors, shows failures as they come, and what was measured at the end.
fn all(job: &Job, out: &mut impl io::Write) -> io::Result<bool> {
    let summary = sweep(&job.options, job.seeds.clone(), job.threads, |outcome| match &outcome.failure {
        Some(why) => {
            let shown = writeln!(out, "FAILED {why}\n  replay: {}", outcome.options.replay());
            shown.is_ok() && job.keep_going
        }
        None => true,
    });
    writeln!(out, "{summary}")?;
    Ok(summary.failed == 0)
}
