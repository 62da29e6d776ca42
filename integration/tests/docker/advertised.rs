//! A container that calls itself a router, all the time, while others start in the open mesh (docs/guard.md, P13).
//!
//! ```text
//!   host 1: "one" ─ advertisements ─► bridge ─┬─► TAP ─ lab's wire ─ host 2: "start1", attached
//!                                             └─► "start0", attached
//! ```

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use weft::{
    lab::{Container, raw::RawSocket, wait_until},
    netlink::Netlink,
};

use crate::{
    Must as _, MustNotPanic as _, PATIENCE, World,
    advertise::{advertisement, is_forged},
    isolation::{TABLE, dropped, nft},
};

/// Between two of them: many of them come while a container starts.
const EVERY: Duration = Duration::from_millis(2);
/// Within this a frame is everywhere.
const ARRIVAL: Duration = Duration::from_millis(500);

/// A container of an engine, from inside, with the interface that the mesh gave it.
fn inside(world: &World, host: usize, name: &str) -> (Container, String) {
    let pid = world.docker(host, &["inspect", "-f", "{{.State.Pid}}", name]);
    let container = Container::of_process(pid.parse().must("a process id")).must("its namespace");
    let mac = world.docker(host, &["inspect", "-f", "{{.NetworkSettings.Networks.mesh.MacAddress}}", name]);
    let mac: Vec<u8> = mac.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let has = |link: &&str| {
        container.link(link).must("look inside").is_some_and(|link| link.mac.is_some_and(|m| m[..] == mac))
    };
    let interface = ["eth0", "eth1"].into_iter().find(has).must("its interface").to_owned();
    (container, interface)
}

/// What addresses it has, after it was told to listen or not.
fn addresses((container, interface): &(Container, String), listen: bool) -> Vec<IpNet> {
    let look = async |netlink: Netlink| {
        if listen {
            netlink.sysctl("ipv6", interface, "accept_ra", "1")?;
        }
        let link = netlink.need_link(interface).await?;
        netlink.addresses(&link).await
    };
    Netlink::block_on_in(container.namespace(), look).must("look inside")
}

/// Whether advertisements come to an interface.
fn arrives((container, interface): &(Container, String), frame: &[u8]) -> bool {
    let mut socket = RawSocket::open(container, interface).must("open a packet socket");
    !socket.collect(Instant::now() + ARRIVAL, 1, |got| got == frame).must("receive").is_empty()
}

/// Nobody believes it, however early; and it is the rule that keeps them from it.
pub(crate) fn never_taken(world: &mut World) {
    let (container, interface) = inside(world, 0, "one");
    let mac = container.link(&interface).must("look inside").and_then(|link| link.mac).must("a MAC address");
    let frame = advertisement(mac);
    let liar = RawSocket::open(&container, &interface).must("open a packet socket");
    let (stop, frame) = (&AtomicBool::new(false), &frame);
    let before = [0, 1].map(|host| dropped(world, host, "port_router"));
    thread::scope(|scope| {
        let lying = scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                liar.send(frame).must("send");
                thread::sleep(EVERY);
            }
        });
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| meanwhile(world, frame, before)));
        stop.store(true, Ordering::Relaxed);
        lying.join().must_not_panic();
        seen.must_not_panic();
    });
}

fn meanwhile(world: &mut World, frame: &[u8], before: [u64; 2]) {
    // They come to both hosts: one that was attached by hand sees them.
    for host in [0, 1] {
        let witness = Container::new("witness").must("make a namespace");
        let target = witness.target().display().to_string();
        world.attach(host, &target);
        let witness = (witness, "weft0".to_owned());
        assert!(wait_until(PATIENCE, || arrives(&witness, frame)), "host {host}");
        assert!(!is_forged(&addresses(&witness, false)), "host {host}");
        world.routers[host].command(["detach", &target]).must("detach");
    }
    for (host, name) in [(0, "start0"), (1, "start1"), (0, "again0"), (1, "again1")] {
        world.engines[host].run(name, &["--network", "mesh"]).must("run");
        let started = inside(world, host, name);
        let routes = || world.engines[host].exec(name, &["ip", "-6", "route"]).must("look inside");
        let innocent = |listen| {
            let found = addresses(&started, listen);
            assert!(!is_forged(&found), "{name}: {found:?}");
            assert!(!routes().contains("default via fe80"), "{name}: {}", routes());
        };
        innocent(false);
        // Also one that listens hears of none.
        innocent(true);
        assert!(!arrives(&started, frame), "{name}");
        innocent(false);
    }
    for host in [0, 1] {
        assert!(dropped(world, host, "port_router") > before[host], "host {host} counts them");
    }
    // Also without a router; without the rule one that listens does believe it.
    world.routers[0].kill().must("kill");
    let started = inside(world, 0, "start0");
    assert!(!arrives(&started, frame) && !is_forged(&addresses(&started, true)));
    assert!(nft(world, 0, &["delete", "table", "bridge", TABLE]).status.success());
    let believes = || is_forged(&addresses(&started, true));
    assert!(wait_until(PATIENCE, believes), "{:?}", addresses(&started, true));
    world.routers[0].restart().must("restart");
    assert!(!arrives(&started, frame), "the rule is there before the router answers");
    for (host, name) in [(0, "start0"), (1, "start1"), (0, "again0"), (1, "again1")] {
        world.docker(host, &["rm", "-f", name]);
    }
}
