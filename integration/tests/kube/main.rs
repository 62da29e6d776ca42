//! `weft-kube` with a small API server, over real TLS and HTTP: faults beside a made-up router, and
//! clusters of real routers in the lab.
//!
//! ```text
//!   API server ─ 127.0.0.1:6443 in each host's namespace ─► weft-kube ─ file, API ─► router ─ lab's wire ─ …
//! ```

#![allow(clippy::print_stderr, reason = "the harness tells the person who runs it what failed")]

mod apiserver;
mod cluster;
mod faults;
#[path = "../harness/mod.rs"]
mod harness;
mod manifests;
mod transcripts;

use std::{process::ExitCode, time::Duration};

use harness::{bounded, end_with_the_parent};
use libtest_mimic::{Arguments, Trial};

/// In the environment of a process that shall be `weft` and not the harness.
pub(crate) const ROUTER: &str = "KUBE_TEST_ROUTER";
/// In the environment of one that shall be `weft-kube`.
pub(crate) const KUBE: &str = "KUBE_TEST_KUBE";
/// After this a test has failed.
const LIMIT: Duration = Duration::from_secs(90);

/// A test with its name.
pub(crate) type Case = (&'static str, fn());

fn main() -> ExitCode {
    if std::env::var_os(ROUTER).is_some() {
        end_with_the_parent();
        return weft::cli::main();
    }
    if std::env::var_os(KUBE).is_some() {
        end_with_the_parent();
        return weft_kube::cli::main();
    }
    let mut arguments = Arguments::from_args();
    // Before any thread exists.
    if !arguments.list
        && !weft::lab::is_root()
        && let Err(error) = weft::lab::enter_user_namespace()
    {
        eprintln!("error: the tests with real routers need network namespaces: {error}");
        return ExitCode::FAILURE;
    }
    // They wait most of the time, each for its own.
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(4));
    let groups: [(&str, &[Case]); 4] = [
        ("transcripts", transcripts::CASES),
        ("manifests", manifests::CASES),
        ("faults", faults::CASES),
        ("cluster", cluster::CASES),
    ];
    let trials = groups.iter().flat_map(|(group, cases)| {
        cases.iter().map(move |&(name, body)| Trial::test(format!("{group}::{name}"), move || bounded(LIMIT, body)))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
