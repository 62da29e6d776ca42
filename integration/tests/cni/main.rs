//! Pods of real container runtimes on two hosts, in one network, by the CNI plugin.
//!
//! ```text
//!   ctr, podman, a driver of our own ─ runs ─► weft-cni ─► router 1 ─ lab's wire ─ router 2 ◄─ …
//!        pod ─ eth0 ─ veth ─ bridge of host 1 ──────┘
//! ```
//!
//! Needs root, because the runtimes do; `scripts/setup` installs what it needs. In continuous
//! integration a machine without fails the test; elsewhere it is said that it did not run.

#![allow(clippy::print_stderr, reason = "the harness tells the person who runs it what failed")]

#[path = "../harness/busybox.rs"]
mod busybox;
mod driven;
mod driver;
mod forge;
mod guest;
mod hard;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../harness/kernel.rs"]
mod kernel;
mod kubeproxy;
mod libcni;
mod outside;
mod runtimes;
mod services;
mod spoof;
mod witness;
mod world;

use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use busybox::find;
use harness::{bounded, end_with_the_parent};
use libtest_mimic::{Arguments, Trial};

/// In the environment of a process that shall be `weft` and not the harness.
pub(crate) const ROUTER: &str = "CNI_TEST_ROUTER";
/// In the environment of a harness that has mounts of its own.
const INSIDE: &str = "CNI_TEST_INSIDE";
/// In the environment of a harness that is run in a guest, with a kernel of the guest's.
pub(crate) const GUEST: &str = "CNI_TEST_GUEST";
/// How long a test may take.
const LIMIT: Duration = Duration::from_secs(80);
/// How long one may that boots a guest, which is ten times as slow as its host, and more.
const GUEST_LIMIT: Duration = Duration::from_secs(210);
/// Where Debian keeps the standard plugins.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";
/// Programs that the tests need and `scripts/setup` installs.
const PROGRAMS: [&str; 10] =
    ["containerd", "ctr", "runc", "podman", "iptables", "ip6tables-restore", "busybox", "nft", "ipset", "ipvsadm"];

/// A test with its name and the time after which it has failed.
type Case = (&'static str, Duration, fn());

const CASES: [Case; 18] = [
    ("pods_are_added_checked_and_deleted_in_every_version", LIMIT, driven::every_version),
    ("wishes_are_met_or_refused_by_their_code", LIMIT, driven::wishes),
    ("status_and_gc_do_as_the_specification_says", LIMIT, driven::status_and_gc),
    ("a_hundred_pods_at_once_outlive_a_killed_router", LIMIT, driven::hundred_at_once),
    ("a_pod_ends_in_time_and_whole_whatever_happens_to_the_router", LIMIT, hard::ends),
    ("bad_input_is_refused_by_its_code_and_nothing_half_made_stays", LIMIT, hard::bad_input),
    ("nothing_that_is_not_its_own_leaves_a_pod", LIMIT, spoof::nothing_leaves),
    ("the_guard_of_pods_outlives_its_router_and_is_put_back", LIMIT, spoof::the_guard_stays),
    ("a_pod_that_cannot_be_guarded_is_refused", LIMIT, spoof::closed),
    ("a_port_of_the_host_leads_to_a_pod", LIMIT, driven::host_port),
    ("pods_reach_outside_in_the_hosts_name_or_in_their_own_as_asked", LIMIT, outside::as_asked),
    ("services_by_kube_proxys_iptables_rules_reach_pods_on_both_hosts", LIMIT, services::by_iptables),
    ("services_by_kube_proxys_nftables_rules_reach_pods_on_both_hosts", LIMIT, services::by_nftables),
    ("services_by_kube_proxys_ipvs_rules_reach_pods_on_both_hosts", GUEST_LIMIT, guest::services),
    ("pods_are_added_checked_and_deleted_by_libcni", LIMIT, libcni::every_version),
    ("containers_of_two_containerds_share_a_network", LIMIT, runtimes::containerds),
    ("containers_of_two_podmans_share_a_network", LIMIT, runtimes::podmans),
    ("containers_of_podman_are_attached_by_hand", LIMIT, runtimes::attached_podmans),
];

/// What needs another kernel than this machine's is run in a guest, by one of the others.
const GUEST_CASES: [Case; 1] = [("services_by_ipvs", GUEST_LIMIT, services::by_ipvs)];

fn main() -> ExitCode {
    // As a router by the variable; as the plugin by the name under which runtimes run it.
    let plugin = std::env::args_os().next().is_some_and(|name| Path::new(&name).ends_with(weft::cni::NAME));
    if plugin {
        return weft::cli::main();
    }
    if std::env::var_os(ROUTER).is_some() {
        end_with_the_parent();
        return weft::cli::main();
    }
    let mut arguments = Arguments::from_args();
    let guest = std::env::var_os(GUEST).is_some();
    if !arguments.list && weft::lab::is_root() && std::env::var_os(INSIDE).is_none() && !guest {
        return enter();
    }
    let lacking = if guest { None } else { lacking() };
    if let Some(lacking) = &lacking {
        eprintln!("the tests with container runtimes cannot run: {lacking}");
        if std::env::var_os("CI").is_some() && !arguments.list {
            return ExitCode::FAILURE;
        }
    }
    // What a runtime leaves behind when it dies becomes our child and is seen at the end.
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        eprintln!("orphans of the runtimes will not be seen: {error}");
    }
    let cases = if guest { &GUEST_CASES[..] } else { &CASES };
    let trials = cases.iter().map(|&(name, limit, body)| {
        Trial::test(name, move || bounded(limit, body)).with_ignored_flag(lacking.is_some())
    });
    // One after the other: each looks for what it left behind.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Runs this again with mounts and a `/run` of its own: what runtimes keep there, such as namespaces
/// by name, is seen by them and the routers, and gone at the end.
fn enter() -> ExitCode {
    let Ok(exe) = std::env::current_exe() else {
        return ExitCode::FAILURE;
    };
    let script = "mount -t tmpfs tmpfs /run && exec \"$0\" \"$@\"";
    let error = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "bash", "-c", script])
        .arg(exe)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    eprintln!("the tests cannot have mounts of their own: unshare: {error}");
    ExitCode::FAILURE
}

/// What the machine lacks.
fn lacking() -> Option<String> {
    if !weft::lab::is_root() {
        return Some("container runtimes need root".to_owned());
    }
    let program = PROGRAMS.into_iter().find(|name| find(name).is_none());
    let plugin = ["portmap", "bandwidth"].into_iter().find(|name| !Path::new(PLUGINS).join(name).exists());
    let library = (!libcni::program().exists()).then_some("libcni-driver");
    program.or(plugin).or(library).map(|name| format!("`{name}` is not installed; scripts/setup installs it"))
}
