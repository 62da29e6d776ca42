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
mod hard;
#[path = "../harness/mod.rs"]
mod harness;
mod kubeproxy;
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
/// After this a test has failed.
const LIMIT: Duration = Duration::from_secs(80);
/// Where Debian keeps the standard plugins.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";
/// Programs that the tests need and `scripts/setup` installs.
const PROGRAMS: [&str; 8] = ["containerd", "ctr", "runc", "podman", "iptables", "ip6tables-restore", "busybox", "nft"];

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
    if !arguments.list && weft::lab::is_root() && std::env::var_os(INSIDE).is_none() {
        return enter();
    }
    let lacking = lacking();
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
    let cases: [(&str, fn()); 16] = [
        ("pods_are_added_checked_and_deleted_in_every_version", driven::every_version),
        ("wishes_are_met_or_refused_by_their_code", driven::wishes),
        ("status_and_gc_do_as_the_specification_says", driven::status_and_gc),
        ("a_hundred_pods_at_once_outlive_a_killed_router", driven::hundred_at_once),
        ("a_pod_ends_in_time_and_whole_whatever_happens_to_the_router", hard::ends),
        ("bad_input_is_refused_by_its_code_and_nothing_half_made_stays", hard::bad_input),
        ("nothing_that_is_not_its_own_leaves_a_pod", spoof::nothing_leaves),
        ("the_guard_of_pods_outlives_its_router_and_is_put_back", spoof::the_guard_stays),
        ("a_pod_that_cannot_be_guarded_is_refused", spoof::closed),
        ("a_port_of_the_host_leads_to_a_pod", driven::host_port),
        ("pods_reach_outside_in_the_hosts_name_or_in_their_own_as_asked", outside::as_asked),
        ("services_by_kube_proxys_iptables_rules_reach_pods_on_both_hosts", services::by_iptables),
        ("services_by_kube_proxys_nftables_rules_reach_pods_on_both_hosts", services::by_nftables),
        ("containers_of_two_containerds_share_a_network", runtimes::containerds),
        ("containers_of_two_podmans_share_a_network", runtimes::podmans),
        ("containers_of_podman_are_attached_by_hand", runtimes::attached_podmans),
    ];
    let trials =
        cases.map(|(name, body)| Trial::test(name, move || bounded(LIMIT, body)).with_ignored_flag(lacking.is_some()));
    // One after the other: each looks for what it left behind.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials.into()).exit_code()
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
    program.or(plugin).map(|name| format!("`{name}` is not installed; scripts/setup installs it"))
}
