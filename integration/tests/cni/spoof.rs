//! A pod sends only what is its own (docs/guard.md): forged frames out of a real namespace, looked for at a pod
//! of the same host and at one of another.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use weft::lab::{raw::RawSocket, wait_until};

use crate::{
    busybox::PATH,
    driven::{code, keys},
    forge::{Forged, Somebody, all, honest},
    world::{Must as _, PATIENCE, Served, World, addresses, v4},
};

/// Until a frame that was sent has been seen everywhere.
const ARRIVAL: Duration = Duration::from_millis(500);
/// Within this what somebody deletes is back.
const PUT_BACK: Duration = Duration::from_secs(1);
const TABLE: &str = "weft-ports";

fn unchecked() -> Value {
    let mut keys = keys();
    keys["spoofCheck"] = json!(false);
    keys
}

/// Lets frames pass that a filter of IP on bridges would drop because they make no sense.
fn without_ip_filter(world: &World) {
    (0..2).for_each(|host| world.set_bridge_filter(host, false));
}

/// A pod of a host, and who it is.
fn pod(world: &World, host: usize, name: &str, keys: Value) -> (Served, Somebody, Value) {
    let served = Served::new(name);
    let result = world.driver(host, "1.0.0", keys).add(&served.pod).must("ADD");
    let me = somebody(&served, &result);
    (served, me, result)
}

fn somebody(served: &Served, result: &Value) -> Somebody {
    let own = addresses(result);
    let IpAddr::V4(four) = v4(&own) else { panic!("{own:?}") };
    let v6 = own.iter().find_map(|net| match net.addr() {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    });
    Somebody::of(&served.container, four, v6.must("an IPv6 address"))
}

fn socket(served: &Served) -> RawSocket {
    RawSocket::open(&served.container, "eth0").must("open a packet socket")
}

/// How many of the sockets see a frame that a pod sends.
fn seen(from: &RawSocket, frame: &[u8], at: &mut [RawSocket], expected: usize) -> usize {
    for socket in &mut *at {
        socket.drain().must("drain");
    }
    from.send(frame).must("send");
    // What is not to come can only be waited for.
    let end = Instant::now() + if expected == 0 { Duration::from_millis(150) } else { ARRIVAL };
    at.iter_mut().map(|socket| socket.collect(end, 1, |got| got == frame).must("receive").len()).sum()
}

/// What the guard of a host has dropped, by reason.
fn dropped(world: &World, host: usize) -> BTreeMap<String, u64> {
    let status = world.routers[host].status().must("status");
    let all = status["counters"]["dropped"].as_object().must("counters").clone();
    let ports = all.into_iter().filter(|(reason, _)| reason.starts_with("port_"));
    ports.map(|(reason, count)| (reason, count.as_u64().must("a number"))).collect()
}

fn nft(world: &World, host: usize, args: &[&str]) -> Output {
    let run = || Command::new("nft").args(args).env("PATH", PATH).output();
    world.lab.host(host).namespace().run(run).must("enter the host").must("run nft")
}

fn has_table(world: &World, host: usize) -> bool {
    String::from_utf8_lossy(&nft(world, host, &["list", "tables"]).stdout).contains(TABLE)
}

pub(crate) fn nothing_leaves() {
    let world = World::start();
    let (near, near_is, _) = pod(&world, 0, "near", keys());
    let (far, far_is, there) = pod(&world, 1, "far", keys());
    let (open, open_is, _) = pod(&world, 0, "open", unchecked());
    let mut at = [socket(&near), socket(&far)];

    // The honest pod: its kernel asks whether its addresses are taken, and is heard.
    let (held, me, result) = pod(&world, 0, "held", keys());
    let question = |frame: &[u8]| frame[12..14] == [0x86, 0xdd] && frame[54] == 135 && frame[22..38] == [0; 16];
    for socket in &mut at {
        let heard =
            socket.collect(Instant::now() + PATIENCE, 1, |frame| frame.len() > 78 && question(frame)).must("receive");
        assert_eq!(heard.len(), 1, "duplicate address detection is heard");
    }
    // Each ADD turns it on (kubernetes K18).
    without_ip_filter(&world);
    held.reaches(&addresses(&there));
    far.reaches(&addresses(&result));
    near.reaches(&addresses(&result));
    let quiet = dropped(&world, 0);
    assert!(quiet.len() == 11 && quiet.values().all(|&count| count == 0), "{quiet:?}");
    let out = socket(&held);
    for (what, frame) in honest(me) {
        assert_eq!(seen(&out, &frame, &mut at, 2), 2, "{what}: {:?}", dropped(&world, 0));
    }
    assert_eq!(dropped(&world, 0), quiet);

    // Where nothing is looked at, each of the others arrives on both hosts: so it can be seen.
    let anything = socket(&open);
    for victim in [near_is, far_is] {
        for Forged { what, frame, .. } in all(open_is, victim) {
            assert_eq!(seen(&anything, &frame, &mut at, 2), 2, "{what}");
        }
    }
    assert_eq!(dropped(&world, 0), quiet);

    // None leaves the pod, and each is counted.
    let mut counts = quiet;
    for victim in [near_is, far_is] {
        for Forged { what, reason, frame } in all(me, victim) {
            assert_eq!(seen(&out, &frame, &mut at, 0), 0, "{what} left the pod");
            *counts.get_mut(reason).must(reason) += 1;
            assert_eq!(dropped(&world, 0), counts, "{what}");
        }
    }
    // One for the bridge alone is seen by no rule. Nobody is taken for another by it.
    let to_near = [&near_is.mac[..], &far_is.mac, &[0x88, 0xb6], b"for near"].concat();
    let from_far = socket(&far);
    at[1] = socket(&held);
    for group in [0, 1, 2, 3, 0x0e] {
        out.send(&[&[1, 0x80, 0xc2, 0, 0, group][..], &near_is.mac, &[0x88, 0xcc], b"whatever"].concat()).must("send");
        assert_eq!(seen(&from_far, &to_near, &mut at[..1], 1), 1, "after a frame to group {group}");
        assert_eq!(seen(&from_far, &to_near, &mut at[1..], 0), 0, "after a frame to group {group}");
    }
    held.reaches(&addresses(&there));
    far.reaches(&addresses(&result));
    near.reaches(&addresses(&result));

    for (host, served) in [(0, &near), (1, &far), (0, &open), (0, &held)] {
        world.driver(host, "1.0.0", keys()).del(&served.pod, None).must("DEL");
    }
    for host in 0..2 {
        assert!(!has_table(&world, host), "the table goes with the last pod");
    }
    world.end();
}

/// Sends a frame a thousand times a second while something is done; how many of them are seen at a pod.
fn meanwhile(from: &Served, frame: &[u8], at: &mut RawSocket, work: impl FnOnce()) -> usize {
    at.drain().must("drain");
    let (out, done) = (socket(from), AtomicBool::new(false));
    let sent = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                out.send(frame).must("send");
                sent += 1;
                thread::sleep(Duration::from_millis(1));
            }
            sent
        });
        work();
        done.store(true, Ordering::Relaxed);
        sender.join().expect("no panic")
    });
    assert!(sent > 100, "only {sent} frames in all that time");
    at.collect(Instant::now() + ARRIVAL, usize::MAX, |got| got == frame).must("receive").len()
}

pub(crate) fn the_guard_stays() {
    let mut world = World::start();
    let (near, near_is, _) = pod(&world, 0, "near", keys());
    let (held, me, result) = pod(&world, 0, "held", keys());
    let victim = Somebody { v4: Ipv4Addr::new(10, 32, 250, 250), v6: Ipv6Addr::LOCALHOST, ..near_is };
    let lie = all(me, victim).into_iter().find(|one| one.reason == "port_ipv4").must("one").frame;
    let mut at = socket(&near);

    // The router is killed, away, back, asked to end and started again: not one frame gets by.
    let got = meanwhile(&held, &lie, &mut at, || {
        world.routers[0].kill().must("kill");
        near.reaches(&addresses(&result));
        world.routers[0].launch().must("start again");
        world.ready(0);
        world.routers[0].restart().must("restart");
        world.ready(0);
    });
    assert_eq!(got, 0, "{got} frames left the pod while its router was started again");
    assert!(dropped(&world, 0)["port_ipv4"] > 0);
    near.reaches(&addresses(&result));

    // Somebody takes the table away, a chain's rules, or a port: it is back within a second.
    let all = nft(&world, 0, &["list", "table", "bridge", TABLE]).stdout;
    let strip = |text: &[u8]| {
        let lines = String::from_utf8_lossy(text)
            .lines()
            .filter(|line| !line.contains("packets"))
            .map(str::to_owned)
            .collect::<Vec<_>>();
        lines.join("\n")
    };
    for change in [
        &["delete", "table", "bridge", TABLE][..],
        &["flush", "chain", "bridge", TABLE, "source4"],
        &["flush", "set", "bridge", TABLE, "ports"],
        &["add", "rule", "bridge", TABLE, "sender", "accept"],
        &["flush", "ruleset"],
    ] {
        let done = nft(&world, 0, change);
        assert!(done.status.success(), "{change:?}: {done:?}");
        if change[0] == "add" {
            // What is added is told by nobody: it is found when somebody takes something away.
            assert!(nft(&world, 0, &["flush", "set", "bridge", TABLE, "macs"]).status.success());
        }
        let back = || strip(&nft(&world, 0, &["list", "table", "bridge", TABLE]).stdout) == strip(&all);
        assert!(wait_until(PUT_BACK, back), "after {change:?}");
        let out = socket(&held);
        assert_eq!(seen(&out, &lie, std::slice::from_mut(&mut at), 0), 0, "after {change:?}");
    }
    near.reaches(&addresses(&result));

    // Pods without the check, and others' hands, are not looked at; `weft down` leaves nothing.
    let (open, open_is, _) = pod(&world, 0, "open", unchecked());
    let lie = crate::forge::all(open_is, victim).into_iter().find(|one| one.reason == "port_ipv4").must("one").frame;
    let lies = (0..10).map(|_| seen(&socket(&open), &lie, std::slice::from_mut(&mut at), 1));
    assert!(lies.sum::<usize>() > 0, "what is not looked at passes");
    assert!(has_table(&world, 0));
    world.routers[0].command(["down"]).must("down");
    assert!(wait_until(PATIENCE, || world.routers[0].exited().must("look").is_some()));
    assert!(!has_table(&world, 0), "nothing is left");
}

pub(crate) fn closed() {
    let world = World::start();
    // Somebody else owns a table of that name: the kernel lets nobody change it.
    let start = || Command::new("nft").arg("-i").env("PATH", PATH).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut owner = world.lab.host(0).namespace().run(start).must("enter the host").must("run nft");
    let mut stdin = owner.stdin.take().must("its input");
    writeln!(stdin, "add table bridge {TABLE} {{ flags owner; }}").must("write");
    assert!(wait_until(PATIENCE, || has_table(&world, 0)), "somebody's table is there");

    let served = Served::new("refused");
    let refused = world.driver(0, "1.1.0", keys());
    code(refused.add(&served.pod), 103, "spoofCheck");
    code(refused.add(&served.pod), 103, "nftables");
    assert!(served.container.link("eth0").must("look inside").is_none());
    world.nothing_is_left();
    let status = world.json(0, &["status"]);
    assert_eq!(status["verdict"], "ok", "nobody is unguarded who should not be: {status}");

    let result = world.driver(0, "1.1.0", unchecked()).add(&served.pod).must("ADD without the check");
    let (far, _, there) = pod(&world, 1, "far", keys());
    served.reaches(&addresses(&there));
    far.reaches(&addresses(&result));
    world.driver(0, "1.1.0", unchecked()).del(&served.pod, Some(&result)).must("DEL");
    world.driver(1, "1.0.0", keys()).del(&far.pod, None).must("DEL");

    // It goes, and with it its table.
    drop(stdin);
    owner.wait().must("wait for nft");
    assert!(!has_table(&world, 0));
    let result = refused.add(&served.pod).must("ADD");
    assert!(has_table(&world, 0));
    refused.del(&served.pod, Some(&result)).must("DEL");
    world.end();
}
