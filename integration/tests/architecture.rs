//! Which package may know which: read off the resolved dependency graph.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// What a pure machine must never pull in: runtimes, sockets, event loops, clocks, randomness
/// from the system.
const IMPURE: &[&str] = &[
    "tokio",
    "async-std",
    "smol",
    "mio",
    "quinn",
    "rustls",
    "socket2",
    "rustix",
    "nix",
    "rtnetlink",
    "redb",
    "axum",
    "hyper",
    "tracing",
    "chrono",
    "time",
    "rand",
    "crossbeam-channel",
    "parking_lot",
];

/// Direct and transitive normal dependencies of each workspace member, by name.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let names: BTreeMap<&str, &str> =
        list(&metadata["packages"]).iter().map(|package| (text(&package["id"]), text(&package["name"]))).collect();
    let edges: BTreeMap<&str, Vec<&str>> =
        list(&metadata["resolve"]["nodes"]).iter().map(|node| (text(&node["id"]), normal_dependencies(node))).collect();
    list(&metadata["workspace_members"])
        .iter()
        .map(|id| (names[text(id)].to_owned(), reachable(text(id), &edges, &names)))
        .collect()
}

fn normal_dependencies(node: &serde_json::Value) -> Vec<&str> {
    list(&node["deps"])
        .iter()
        .filter(|dep| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()))
        .map(|dep| text(&dep["pkg"]))
        .collect()
}

fn reachable(from: &str, edges: &BTreeMap<&str, Vec<&str>>, names: &BTreeMap<&str, &str>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = edges[from].clone();
    while let Some(id) = open.pop() {
        if found.insert(names[id].to_owned()) {
            open.extend(&edges[id]);
        }
    }
    found
}

fn list(value: &serde_json::Value) -> &[serde_json::Value] {
    value.as_array().expect("a list")
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().expect("a string")
}

#[test]
fn the_machines_pull_in_nothing_that_does_io() {
    let dependencies = dependencies();
    for machine in ["mesh-proto", "ipam"] {
        for impure in IMPURE {
            assert!(!dependencies[machine].contains(*impure), "{machine} must not depend on {impure}");
        }
    }
}

#[test]
fn packages_depend_on_each_other_in_one_direction() {
    let dependencies = dependencies();
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("mesh-proto", &[][..]),
        ("ipam", &[][..]),
        ("weft", &["mesh-proto", "ipam"][..]),
        ("weft-kube", &["weft", "mesh-proto", "ipam"][..]),
        ("integration", &["weft", "mesh-proto", "ipam"][..]),
    ]);
    for (package, known) in &dependencies {
        let allowed = allowed.get(package.as_str());
        let allowed = allowed.expect("a new package needs its place in ARCHITECTURE.md and here");
        for member in dependencies.keys().filter(|member| known.contains(*member)) {
            assert!(allowed.contains(&member.as_str()), "{package} must not depend on {member}");
        }
    }
}
