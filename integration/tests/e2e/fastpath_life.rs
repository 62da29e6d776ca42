//! The fast path without its router, and what others do to it.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    process::Command,
    time::{Duration, Instant},
};

use mesh_proto::{
    control::fastpath::{Kernel, Remote},
    data::macs::Mac,
    id::PeerId,
    wire::fastpath::probe_mac,
};
use rustix::process::{Pid, Signal, kill_process};
use weft::{
    fastpath::{FastConfig, FastHandle, Seen},
    lab::{traffic::GapStream, wait_until},
    netlink::{
        NetNs, Netlink, Topic,
        fdb::{Fdb, FdbEdit, FdbEntry},
        nft::Guard,
    },
};

use crate::{
    Case,
    fastpath::{VXLAN, open_mesh, wait_for_carrier},
    mesh::{Mesh, Must as _, PATIENCE},
};

pub(crate) const CASES: &[Case] = &[
    ("a_stopped_router_and_a_killed_one_lose_no_frame_of_the_kernels", 300, without_a_router),
    ("a_router_that_is_updated_costs_the_kernels_frames_a_moment_at_most", 120, updated),
    ("what_others_delete_is_put_back_within_a_second", 60, put_back),
    ("a_router_at_rest_changes_no_interface", 60, at_rest),
    ("nothing_of_the_fast_path_is_left_after_down", 60, nothing_left),
    ("ten_thousand_addresses_of_a_hundred_peers_are_programmed", 60, programmed),
];

/// How long a router is away: `WEFT_E2E_AWAY` seconds, or so many. Long enough for its peers to
/// give up their links to it.
const AWAY: u64 = 8;
/// What is put back is there after this: a second, and some for the test itself.
const PUT_BACK: Duration = Duration::from_millis(1500);

fn signal(mesh: &Mesh, router: usize, signal: Signal) {
    let pid = mesh.routers[router].pid().must("a process");
    let pid = Pid::from_raw(i32::try_from(pid).must("a pid")).must("a pid");
    kill_process(pid, signal).must("signal");
}

/// How long a router is to be away.
fn away() -> Duration {
    Duration::from_secs(std::env::var("WEFT_E2E_AWAY").map_or(AWAY, |text| text.parse().must("WEFT_E2E_AWAY")))
}

fn without_a_router() {
    let away = away();
    let mut mesh = Mesh::start(&open_mesh(2));
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    let switches = mesh.counter(0, "carrier_switches");

    let streams = mesh.streams(&[(0, 1), (1, 0)]);
    signal(&mesh, 1, Signal::STOP);
    std::thread::sleep(away);
    signal(&mesh, 1, Signal::CONT);
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    assert_eq!(mesh.counter(0, "carrier_switches"), switches, "nobody left the fast path meanwhile");

    mesh.routers[1].kill().must("kill");
    std::thread::sleep(away);
    mesh.routers[1].restart().must("start again");
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    // The last may be under way still.
    finish(&mesh, streams, 2);
    assert_eq!(mesh.counter(0, "carrier_switches"), switches, "nor when it was killed and came back");
}

/// As an update does it: the router is asked to end, says so to its peers, and another one begins.
fn updated() {
    let mut mesh = Mesh::start(&open_mesh(2));
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    let switches = mesh.counter(0, "carrier_switches");
    let streams = mesh.streams(&[(0, 1), (1, 0)]);
    assert!(mesh.routers[1].end(), "it ends when it is asked to");
    assert_eq!(movable(&mesh, 1), Vec::<String>::new(), "what the bridge hears moves nobody");
    std::thread::sleep(away());
    mesh.routers[1].restart().must("start the new one");
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    // One is sent each 10 ms: a tenth of a second, of the eight and more.
    finish(&mesh, streams, 10);
    assert_eq!(mesh.counter(0, "carrier_switches"), switches, "nobody left the fast path");
}

/// Entries of a host's bridge for others' addresses that go elsewhere when one is heard there.
fn movable(mesh: &Mesh, host: usize) -> Vec<String> {
    let run = || Command::new("bridge").args(["fdb", "show", "br", "weft"]).env("PATH", "/usr/sbin:/sbin").output();
    let shown = on_host(mesh, host, run).must("run bridge (Debian's iproute2)").stdout;
    let shown = String::from_utf8(shown).must("text");
    let device = &FastConfig::devices("weft")[0];
    let pinned: Vec<&str> = shown.lines().filter(|line| line.contains(device) && line.contains(" static")).collect();
    assert!(pinned.len() > 1, "{shown}");
    pinned.into_iter().filter(|line| !line.contains("sticky")).map(str::to_owned).collect()
}

/// What became of the streams, of each of which so many may be lost.
fn finish(mesh: &Mesh, streams: Vec<(usize, usize, GapStream)>, lost: u64) {
    // What is inherited is decided upon after this.
    std::thread::sleep(Duration::from_secs(16));
    for (from, to, stream) in streams {
        let report = stream.finish().must("end a stream");
        eprintln!("from {from} to {to}, with the router of {} away: {report:?}", mesh.routers[1].name());
        assert!(report.sent > 1_000 && report.received + lost >= report.sent, "from {from} to {to}: {report:?}");
    }
}

/// Runs in a host of the mesh.
fn on_host<T: Send>(mesh: &Mesh, host: usize, work: impl FnOnce() -> T + Send) -> T {
    mesh.lab.host(host).namespace().run(work).must("enter the host")
}

fn remotes() -> Vec<FdbEntry> {
    let entries = Fdb::open().must("open").entries().must("list");
    entries.into_iter().filter(|entry| entry.remote.is_some()).collect()
}

fn put_back() {
    let mesh = Mesh::start(&open_mesh(2));
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    let complete = || on_host(&mesh, 0, || remotes().into_iter().map(|entry| entry.mac).collect::<BTreeSet<_>>());
    let before = complete();
    assert!(before.len() >= 3, "the probes, the bridge and the container of the other host: {before:?}");

    on_host(&mesh, 0, || {
        let edits: Vec<_> = remotes()
            .iter()
            .flat_map(|entry| {
                let (device, mac) = (entry.interface, entry.mac);
                [FdbEdit::NoRemote { device, mac }, FdbEdit::Unpin { port: device, mac }]
            })
            .collect();
        assert!(Fdb::open().must("open").apply(&edits).must("delete").is_empty());
    });
    assert!(wait_until(PUT_BACK, || complete() == before), "{:?} are there of {before:?}", complete());

    let guard = || Guard::new(&FastConfig::table("weft"), "weft", "weft-wg", VXLAN).must("a socket");
    on_host(&mesh, 0, || guard().remove().must("remove"));
    assert!(wait_until(PUT_BACK, || on_host(&mesh, 0, || guard().dropped().is_ok())), "the guard is back");

    let device = FastConfig::devices("weft")[0].clone();
    Netlink::block_on_in(mesh.lab.host(0).namespace(), async |netlink| netlink.delete_link(&device).await)
        .must("delete the device");
    assert!(wait_until(PUT_BACK, || complete() == before), "{:?} are there of {before:?}", complete());
    // While the router looks at the devices, which it does when it has put the guard back.
    for delay in (0..8).map(|step| step * Duration::from_micros(500)) {
        Netlink::block_on_in(mesh.lab.host(0).namespace(), async |netlink| {
            guard().remove().must("remove");
            let until = Instant::now() + PUT_BACK;
            while guard().dropped().is_err() {
                assert!(Instant::now() < until, "the guard is back");
            }
            std::thread::sleep(delay);
            netlink.delete_link(&device).await
        })
        .must("delete the device");
        assert!(wait_until(PUT_BACK, || complete() == before), "{delay:?} later: {:?} of {before:?}", complete());
    }
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
}

/// Whoever changes interfaces because an interface changed never comes to rest.
fn at_rest() {
    let mesh = Mesh::start(&open_mesh(2));
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    std::thread::sleep(Duration::from_secs(1));
    let seen = Netlink::block_on_in(mesh.lab.host(0).namespace(), async |netlink| {
        let mut monitor = netlink.monitor(&[Topic::Links])?;
        let mut seen = Vec::new();
        let end = tokio::time::Instant::now() + Duration::from_secs(3);
        while let Ok(notice) = tokio::time::timeout_at(end, monitor.next()).await {
            seen.push(notice?);
        }
        Ok(seen)
    });
    let seen = seen.must("watch");
    assert!(seen.is_empty(), "{seen:?}");
}

fn nothing_left() {
    let mut mesh = Mesh::start(&open_mesh(2));
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    mesh.routers[1].command(["down"]).must("down");
    mesh.routers[1].wait_for_exit(Duration::from_secs(5)).must("exit");
    let left = Netlink::block_on_in(mesh.lab.host(1).namespace(), async |netlink| netlink.links().await);
    let names: Vec<String> = left.must("list").into_iter().map(|link| link.name).collect();
    assert_eq!(names, ["lo", "eth0"]);
    let table = FastConfig::table("weft");
    let guard = || Guard::new(&table, "weft", "weft-wg", VXLAN).must("a socket");
    let guard = on_host(&mesh, 1, || guard().dropped());
    assert!(guard.is_err(), "the guard is gone: {guard:?}");
}

/// Processor time in milliseconds and resident memory in kB of a process.
pub(crate) fn usage(process: u32) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).must("stat");
    // Behind the name in brackets: user and system time are the 12th and 13th, in ticks of 10 ms.
    let fields: Vec<u64> = stat.rsplit(')').next().must("fields").split(' ').map(|f| f.parse().unwrap_or(0)).collect();
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).must("status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).must("VmRSS");
    let resident = resident.trim().trim_end_matches(" kB").parse().must("a number");
    ((fields[12] + fields[13]) * 10, resident)
}

/// Prints how long it takes until the kernel has all entries.
fn programmed() {
    const PEERS: u32 = 100;
    const MACS: u32 = 100;
    let host = NetNs::create("host").must("make a namespace");
    let result = Netlink::block_on_in(&host, async |netlink| {
        netlink.ensure_bridge("weft", 1402, [2, 0, 0, 0, 0, 1]).await?;
        let config = FastConfig {
            me: PeerId([0; 16]),
            bridge: "weft".to_owned(),
            tap: "weft-tap".to_owned(),
            port: VXLAN,
            vni: 7,
            mtu: 1402,
            plain: true,
            seal: None,
        };
        let (handle, mut seen) = FastHandle::start(config, netlink.clone(), |_| true).await?;
        assert!(matches!(seen.recv().await, Some(Seen::Local(..))), "the bridge's own address");
        let peer = |number: u32| {
            let mut id = [1; 16];
            id[12..].copy_from_slice(&number.to_be_bytes());
            PeerId(id)
        };
        let (start, before) = (Instant::now(), usage(std::process::id()));
        for number in 0..PEERS {
            let ip = IpAddr::from([192, 0, 2, 1 + number as u8]);
            handle.apply(Kernel::Peer(peer(number), Some(Remote { ip, port: VXLAN }.into())));
            for mac in 0..MACS {
                let [_, _, a, b] = (number * MACS + mac).to_be_bytes();
                handle.apply(Kernel::Owner(Mac([2, 7, 0, 0, a, b]), Some(peer(number))));
            }
            handle.apply(Kernel::Carrier(peer(number), true));
        }
        let fdb = Fdb::open().must("open");
        let wanted = (PEERS * MACS + PEERS) as usize;
        let count = |entries: &[FdbEntry]| {
            let remotes = entries.iter().filter(|entry| entry.remote.is_some()).count();
            let pinned = entries.iter().filter(|entry| entry.remote.is_none() && entry.fixed && !entry.local).count();
            (remotes, pinned)
        };
        let mut found = (0, 0);
        while found != (wanted, wanted) && start.elapsed() < Duration::from_secs(30) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            found = count(&fdb.entries().must("list"));
        }
        let (took, after) = (start.elapsed(), usage(std::process::id()));
        eprintln!(
            "{} addresses of {PEERS} peers programmed in {took:?}; with looking at them {} ms of processor time and {} kB",
            PEERS * MACS,
            after.0 - before.0,
            after.1.saturating_sub(before.1),
        );
        assert_eq!(found, (wanted, wanted));
        assert!(fdb.entries().must("list").iter().any(|entry| entry.mac == probe_mac(peer(7)).0));
        // And away again.
        for number in 0..PEERS {
            handle.apply(Kernel::Carrier(peer(number), false));
            handle.apply(Kernel::Peer(peer(number), None));
        }
        // What is inherited might stay for a while: nothing of this is.
        while found.0 != 0 && start.elapsed() < Duration::from_secs(50) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            found = count(&fdb.entries().must("list"));
        }
        assert_eq!(found.0, 0, "nothing is sent to anybody");
        handle.stop().await;
        Ok(())
    });
    result.must("program");
}
