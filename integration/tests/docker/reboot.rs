//! A host loses its power and starts again: its processes, its network and what it had in `/run` are gone at
//! once, and what is on its disks is there. Router and engine come up in either order.
//!
//! ```text
//!   host 1: red ─ "fixed", "free", "once"   blue ─ "other"   attached by hand ─ "plain"
//!   host 2: red ─ "far"                     blue ─ "away"
//! ```

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use weft::lab::wait_until;

use crate::{
    Must as _, PATIENCE, World,
    isolation::{NETWORKS, create, ping},
    on_two_hosts,
};

const RED: &str = NETWORKS[0].0;
const BLUE: &str = NETWORKS[1].0;
/// Longest time for an engine that has just started to start its containers.
const STARTED: Duration = Duration::from_secs(40);
/// Longest time until nothing is left of what was before.
const CLEANED: Duration = Duration::from_secs(30);

/// Who comes up first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Router,
    Engine,
}

pub(crate) fn a_host_that_reboots_regains_its_networks() {
    on_two_hosts(|mut world| act(&mut world));
}

fn act(world: &mut World) {
    world.wait_until_established();
    for host in [0, 1] {
        NETWORKS.iter().for_each(|network| _ = world.docker(host, &create(*network)));
    }
    let fixed = ["--network", RED, "--restart", "always", "--ip", "10.33.1.77", "--ip6", "fd00:32:0:0:100::77"];
    world.engines[0].run("fixed", &fixed).must("run");
    for (host, name, network, policy) in [
        (0, "free", RED, "always"),
        (0, "once", RED, "no"),
        (0, "other", BLUE, "unless-stopped"),
        (0, "plain", "none", "always"),
        (1, "far", RED, "always"),
        (1, "away", BLUE, "always"),
    ] {
        world.engines[host].run(name, &["--network", network, "--restart", policy]).must("run");
    }
    let plain = world.attach(0, "plain");
    regained(world, &plain, &["once"]);

    for first in [First::Router, First::Engine] {
        reboot(world, first);
        let runs = |name: &str| world.docker(0, &["ps", "--format", "{{.Names}}"]).lines().any(|line| line == name);
        let all = || ["fixed", "free", "other", "plain"].into_iter().all(runs);
        assert!(wait_until(STARTED, all), "{first:?}: {}", world.engines[0].log());
        assert!(!runs("once"), "nobody asked for it");
        assert!(wait_until(PATIENCE, || !is_told(world, "once")), "what does not run has no name");
        // Of what was before nothing is left, but the network that it is to have again.
        regained(world, &plain, &[]);
        world.docker(0, &["start", "once"]);
        regained(world, &plain, &["once"]);
    }

    world.docker(0, &["rm", "-f", "plain"]);
    for (host, names) in [(0, &["fixed", "free", "once", "other"][..]), (1, &["far", "away"])] {
        world.docker(host, &[&["rm", "-f"], names].concat());
        NETWORKS.iter().for_each(|(network, ..)| _ = world.docker(host, &["network", "rm", network]));
        assert!(wait_until(PATIENCE, || world.empty(host)), "{:?} {}", world.ports(host), world.json(host, "ipam"));
        world.clean(host);
    }
}

/// All that runs is ended at once, and comes up again.
fn reboot(world: &mut World, first: First) {
    world.routers[0].lose_power().must("kill the router");
    world.engines[0].lose_power().must("kill the engine");
    world.lab.reboot(0).must("make the host anew");
    let World { engines, routers, lab } = world;
    let (engine, router) = (&mut engines[0], &mut routers[0]);
    router.move_to(lab.host(0)).must("move");
    if first == First::Router {
        router.restart().must("start the router");
    }
    engine.boot(lab.host(0)).must("start the engine");
    if first == First::Engine {
        let waits = || engine.log().contains("Unable to locate plugin: weft");
        assert!(wait_until(PATIENCE, waits), "it looks for its driver: {}", engine.log());
        router.restart().must("start the router");
    }
    engine.wait().must("the engine");
}

/// Whether the other host finds the name.
fn is_told(world: &World, name: &str) -> bool {
    world.routers[1].cli(["dns", "lookup", name]).must("look up").status.success()
}

/// Each container has its network, everybody tells the same of it, and nothing else is there.
#[track_caller]
fn regained(world: &World, plain: &[IpNet], more: &[&str]) {
    world.wait_until_established();
    let red: Vec<&str> = ["fixed", "free"].iter().chain(more).copied().collect();
    let fixed = world.inspect_in(0, "fixed", RED);
    assert_eq!(fixed, ["10.33.1.77/24", "fd00:32::100:0:0:77/72"].map(|text| text.parse().must(text)));
    let mut given = 0;
    for (network, names, far) in [(RED, &red[..], "far"), (BLUE, &["other"], "away")] {
        let away = world.inspect_in(1, far, network);
        let mut said = Vec::new();
        for name in names {
            let addresses = world.inspect_in(0, name, network);
            assert_eq!(addresses.len(), 2, "{name}: {addresses:?}");
            let inside = || world.engines[0].exec(name, &["ip", "-o", "address"]).must("look inside");
            assert!(addresses.iter().all(|net| inside().contains(&format!(" {net} "))), "{addresses:?}: {}", inside());
            world.reaches((0, name), &away);
            world.reaches((1, far), &addresses);
            let told = || {
                let text = world.routers[1].cli(["dns", "lookup", name]).must("look up").stdout;
                let found: Vec<IpAddr> =
                    String::from_utf8_lossy(&text).lines().filter_map(|line| line.parse().ok()).collect();
                found.len() == 2 && addresses.iter().all(|net| found.contains(&net.addr()))
            };
            assert!(wait_until(PATIENCE, told), "{name} is {addresses:?}");
            said.push(format!("{name} {} {}", addresses[0], addresses[1]));
            given += addresses.len() as u64;
        }
        // Docker knows of the same.
        let format = "{{range .Containers}}{{println .Name .IPv4Address .IPv6Address}}{{end}}";
        let text = world.docker(0, &["network", "inspect", "-f", format, network]);
        let mut shown: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        shown.sort_unstable();
        said.sort_unstable();
        assert_eq!(shown, said, "{network}");
    }
    // What was attached by hand has what it had.
    let attached = || world.attached(0).into_iter().find(|(target, _)| target == "docker:plain").map(|(_, has)| has);
    assert!(wait_until(PATIENCE, || attached().as_deref() == Some(plain)), "{:?}", world.attached(0));
    let link = || world.engines[0].exec("plain", &["ip", "-o", "address", "show", "weft0"]);
    let has = || link().is_ok_and(|text| plain.iter().all(|net| text.contains(&format!(" {net} "))));
    assert!(wait_until(PATIENCE, has), "{:?}", link());
    // They are apart, as before.
    for to in world.inspect_in(0, "other", BLUE) {
        assert!(!ping(world, 0, "free", to.addr()) && !ping(world, 1, "far", to.addr()), "{to}");
    }
    given += plain.len() as u64;
    let used = || world.json(0, "ipam")["used"].as_u64();
    assert!(wait_until(CLEANED, || used() == Some(given)), "{given} in use: {}", world.json(0, "ipam"));
    assert_eq!(world.ports(0).len(), red.len() + 1, "{:?}", world.ports(0));
    for host in [0, 1] {
        world.clean(host);
    }
}
