//! End-to-end tests: real routers as processes, real kernels' namespaces, real traffic.
//!
//! ```text
//!   cargo test -p integration --test e2e                 all, one after the other
//!   cargo test -p integration --test e2e -- ring         those whose name has "ring" in it
//!   cargo test -p integration --test e2e -- --list
//! ```
//!
//! The harness is our own because a user namespace must be entered before the process has
//! threads, and because the routers are this same binary, started again with [`ROUTER`] set.

#![allow(clippy::print_stderr, reason = "the harness tells the person who runs it what failed")]

mod addresses;
mod addresses_load;
mod addresses_replace;
#[path = "../harness/advertise.rs"]
mod advertise;
mod broadcast;
mod cli;
mod connect;
mod fairness;
mod fastpath;
mod fastpath_guard;
mod fastpath_life;
mod firewall;
mod frames;
mod guest;
#[path = "../harness/mod.rs"]
mod harness;
mod host;
#[path = "../harness/kernel.rs"]
mod kernel;
mod lab;
mod ledger;
mod mesh;
mod mtu;
mod names;
mod netlink;
mod order;
mod resolvers;
mod restart;
mod sealed;
mod secrets;
mod services;
mod start;
mod underlay;
#[path = "../cni/witness.rs"]
mod witness;

use std::{
    collections::BTreeSet,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use harness::{bounded, end_with_the_parent};
use libtest_mimic::{Arguments, Trial};

/// In the environment of a process that shall be `weft` and not the harness.
pub(crate) const ROUTER: &str = "E2E_ROUTER";

/// In the environment of a harness that is run in a guest, with a kernel of the guest's.
pub(crate) const GUEST: &str = "E2E_GUEST";

/// So many of the tests that took longest are named at the end.
const SLOWEST: usize = 30;

/// A test with its name and the time after which it has failed.
pub(crate) type Case = (&'static str, u64, fn());

fn main() -> ExitCode {
    if std::env::var_os(ROUTER).is_some() {
        end_with_the_parent();
        return weft::cli::main();
    }
    let mut arguments = Arguments::from_args();
    // Before any thread exists.
    if !arguments.list
        && !weft::lab::is_root()
        && let Err(error) = weft::lab::enter_user_namespace()
    {
        eprintln!("error: the end-to-end tests need network namespaces: {error}");
        return ExitCode::FAILURE;
    }
    // One at a time unless told otherwise: they measure times.
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(1));
    let here: [(&str, &[Case]); 25] = [
        ("netlink", netlink::CASES),
        ("lab", lab::CASES),
        ("start", start::CASES),
        ("cli", cli::CASES),
        ("connect", connect::CASES),
        ("underlay", underlay::CASES),
        ("broadcast", broadcast::CASES),
        ("frames", frames::CASES),
        ("order", order::CASES),
        ("fairness", fairness::CASES),
        ("mtu", mtu::CASES),
        ("secrets", secrets::CASES),
        ("restart", restart::CASES),
        ("addresses", addresses::CASES),
        ("addresses_load", addresses_load::CASES),
        ("addresses_replace", addresses_replace::CASES),
        ("host", host::CASES),
        ("names", names::CASES),
        ("resolvers", resolvers::CASES),
        ("firewall", firewall::CASES),
        ("services", services::CASES),
        ("fastpath", fastpath::CASES),
        ("fastpath", fastpath_guard::CASES),
        ("fastpath", fastpath_life::CASES),
        ("guest", guest::CASES),
    ];
    // What needs another kernel than this machine's is run in a guest, by one of the others.
    let there: [(&str, &[Case]); 1] = [("sealed", sealed::CASES)];
    let groups = if std::env::var_os(GUEST).is_some() { &there[..] } else { &here[..] };
    let took = Arc::new(Mutex::new(BTreeSet::new()));
    let trials = groups.iter().flat_map(|(group, cases)| {
        let took = &took;
        cases.iter().map(move |&(name, seconds, body)| {
            let (name, took) = (format!("{group}::{name}"), Arc::clone(took));
            Trial::test(name.clone(), move || {
                let start = Instant::now();
                let result = bounded(Duration::from_secs(seconds), body);
                took.lock().unwrap_or_else(PoisonError::into_inner).insert((start.elapsed(), name));
                result
            })
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    let took = took.lock().unwrap_or_else(PoisonError::into_inner);
    let slowest = took.iter().rev().take(SLOWEST);
    for (time, name) in slowest {
        eprintln!("{:6.1} s  {name}", time.as_secs_f64());
    }
    conclusion.exit_code()
}
