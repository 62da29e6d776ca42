//! The fast path sealed by WireGuard (fastpath F19, F20), on a kernel that has it: run in a guest only.

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use mesh_proto::{id::PeerId, wire::fastpath::sealed_address};
use rustix::system::{delete_module, finit_module};
use weft::{
    fastpath::FastConfig,
    lab::{
        frame,
        raw::RawSocket,
        router::Router,
        traffic::{GapStream, paced_transfer, tcp_transfer, udp_echo},
        wait_until,
        wire::Captured,
    },
    netlink::{
        Mac, Netlink,
        container::INTERFACE,
        wireguard::{Device, WireGuard},
    },
};

use crate::{
    Case,
    fastpath::{Ends, VXLAN, wait_for_carrier},
    kernel::MODULES_DIR,
    mesh::{Mesh, MeshConfig, Must as _, SECRET, new_lab, router_config},
};

pub(crate) const CASES: &[Case] = &[
    ("the_kernel_seals_and_without_wireguard_all_goes_by_sleeve_and_nothing_in_the_clear", 300, sealed),
    ("a_mesh_of_kernels_with_and_without_it_and_a_router_that_is_away_or_shut_out", 300, mixed),
];

/// The guest is slow: ten times as slow as its host, and more.
const SLOW: Duration = Duration::from_secs(60);
/// How long nothing may pass when WireGuard goes: three times what is promised, for a guest beside other work.
const LEFT: Duration = Duration::from_secs(6);
const DEVICE: &str = "weft-wg";
const MARKER: [u8; 32] = *b"-- marker of thirty-two bytes --";
const ETHERTYPE: [u8; 2] = [0x88, 0xb6];
const COUNT: usize = 20;
/// Bytes a second of a transfer that is captured as a whole.
const PACE: u64 = 500_000;

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(haystack, needle).is_some()
}

fn mac(mesh: &Mesh, container: usize) -> Mac {
    let link = mesh.containers[container].link(INTERFACE).must("look").must("an interface");
    link.mac.must("a MAC address")
}

/// What must be seen nowhere on the underlay: what containers say, and who they are.
fn needles(mesh: &Mesh) -> Vec<Vec<u8>> {
    let mut needles = vec![MARKER.to_vec()];
    needles.extend((0..mesh.containers.len()).map(|container| mac(mesh, container).to_vec()));
    // Four bytes of an address come up by chance in so much that is sealed: two of them side by side.
    let octets = |container| {
        mesh.ips(container).into_iter().map(|ip| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        })
    };
    for (from, to) in [(0, 1), (1, 0)] {
        needles.extend(octets(from).zip(octets(to)).map(|(from, to)| [from, to].concat()));
    }
    needles
}

/// Nothing of it is in the clear; how many datagrams went to a port.
#[track_caller]
fn nothing_to_read(mesh: &Mesh, frames: &[Captured], port: u16) -> usize {
    for needle in needles(mesh) {
        let seen = frames.iter().find(|captured| contains(&captured.frame, &needle));
        assert!(seen.is_none(), "{needle:02x?} in {seen:02x?}");
    }
    let to = |captured: &Captured| frame::datagram(&captured.frame).map(|datagram| datagram.destination.port());
    assert_eq!(frames.iter().filter(|captured| to(captured) == Some(VXLAN)).count(), 0, "VXLAN in the clear");
    frames.iter().filter(|captured| to(captured) == Some(port)).count()
}

/// Whether a frame of IPv4 is a part of a packet only.
fn is_fragment(frame: &[u8]) -> bool {
    frame.len() > 21 && frame[12..14] == [8, 0] && (frame[20] & 0x3f, frame[21]) != (0, 0)
}

fn captured(mesh: &Mesh) -> Vec<Captured> {
    let (frames, overwritten) = mesh.lab.wire().take_capture();
    assert_eq!(overwritten, 0, "the capture is whole");
    frames
}

fn talk(mesh: &Mesh, times: usize) {
    for ip in mesh.ips(1) {
        for _ in 0..times {
            // Some are lost on the way from one carrier to the other.
            let _ = udp_echo(&mesh.containers[0], ip, &MARKER, Duration::from_millis(500));
        }
    }
}

fn delete_device(mesh: &Mesh, host: usize) {
    let work = async |netlink: Netlink| netlink.delete_link(DEVICE).await;
    assert!(Netlink::block_on_in(mesh.lab.host(host).namespace(), work).must("delete the device"), "it was there");
}

/// What a host's kernel says of the device.
fn wireguard(mesh: &Mesh, host: usize) -> io::Result<Device> {
    mesh.lab.host(host).namespace().run(|| WireGuard::new(DEVICE)?.read()).must("enter the host")
}

/// Which device it is, and its public key.
fn device(mesh: &Mesh, host: usize) -> (u32, Option<[u8; 32]>) {
    let namespace = mesh.lab.host(host).namespace();
    let link = Netlink::block_on_in(namespace, async |netlink| netlink.link(DEVICE).await).must("look");
    (link.must("the device").index, wireguard(mesh, host).must("read the device").public)
}

fn dropped(mesh: &Mesh, router: usize, reason: &str) -> u64 {
    mesh.status(router)["counters"]["dropped"][reason].as_u64().must(reason)
}

fn sealed() {
    let config = MeshConfig::star(2);
    let lab = new_lab(&config);
    lab.wire().start_capture(256 << 20);
    let start = Instant::now();
    let mesh = Mesh::start_in(lab, &config);
    wait_for_carrier(&mesh, 0, 1, "wireguard", SLOW);
    eprintln!("measured: sealed by the kernel {:?} after the start of the routers", start.elapsed());
    let peer = mesh.peer(0, "host2").must("the peer");
    assert_eq!((peer["encrypted"].as_bool(), &peer["cipher"]), (Some(true), &"chacha20-poly1305".into()), "{peer}");
    mesh.all_reach(&[0, 1], Duration::from_secs(10));

    // The kernel carries, at full size and whole.
    let before = mesh.counter(0, "frames_in");
    let second = Duration::from_secs(2);
    let moved = tcp_transfer(&mesh.containers[0], mesh.v4(1), 4 << 20, second * 5, second * 5).must("a transfer");
    talk(&mesh, 20);
    let seen = mesh.counter(0, "frames_in") - before;
    assert!(moved.bytes > 1 << 20 && seen < 100, "{moved:?}, and the router saw {seen} frames");
    let frames = captured(&mesh);
    let datagrams = nothing_to_read(&mesh, &frames, VXLAN + 1);
    assert!(datagrams > 500, "{datagrams} of WireGuard's among {}", frames.len());
    let cut = frames.iter().filter(|captured| is_fragment(&captured.frame)).count();
    assert_eq!(cut, 0, "the overlay's MTU leaves room for what is around a frame");
    eprintln!("measured: {} bytes in {datagrams} datagrams of WireGuard's, none in fragments", moved.bytes);

    forged(&mesh);
    put_back(&mesh);
    taken_away(&mesh);
}

/// Whoever is not inside WireGuard sends nothing into the mesh, whatever address it writes.
fn forged(mesh: &Mesh) {
    let macs = [0, 1].map(|container| mac(mesh, container));
    let id = mesh.peer(0, "host2").must("the peer")["id"].as_str().must("an id").to_owned();
    let inside = IpAddr::V6(sealed_address(id.parse::<PeerId>().must("an id")));
    let mut victim = RawSocket::open(&mesh.containers[0], INTERFACE).must("a socket");
    let plain = FastConfig::vni_of("weft");
    let sources = [IpAddr::from([10, 99, 0, 77]), mesh.lab.host(1).v4().into(), mesh.lab.host(1).v6(), inside];
    for (at, source) in sources.into_iter().enumerate() {
        for vni in [plain, FastConfig::sealed_vni(plain)] {
            let strangers = dropped(mesh, 0, "fast_stranger");
            victim.drain().must("drain");
            let [_, a, b, c] = vni.to_be_bytes();
            for number in 0..COUNT {
                let payload =
                    [&[8, 0, 0, 0, a, b, c, 0][..], &macs[0], &macs[1], &ETHERTYPE, &[number as u8; 64]].concat();
                let source = SocketAddr::new(source, 40_000);
                mesh.lab.inject_datagram(0, source, VXLAN, &payload).must("inject");
            }
            let counted = || dropped(mesh, 0, "fast_stranger") - strangers >= COUNT as u64;
            assert!(wait_until(Duration::from_secs(10), counted), "source {at}, {vni:x}: {}", mesh.status(0));
            let end = Instant::now() + Duration::from_millis(300);
            let got = victim.collect(end, COUNT, |frame| frame[12..14] == ETHERTYPE).must("receive");
            assert_eq!(got.len(), 0, "source {at}, {vni:x}");
        }
    }
}

/// Does something while two containers talk all the time.
fn while_talking(mesh: &Mesh, work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let ends = Ends(&stop);
        let talking = scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                talk(mesh, 5);
            }
        });
        work();
        drop(ends);
        talking.join().expect("talk does not panic");
    });
}

/// The device is deleted while the kernel can make another: nobody is left without the fast path.
fn put_back(mesh: &Mesh) {
    let switches = mesh.counter(0, "carrier_switches");
    mesh.lab.wire().start_capture(256 << 20);
    while_talking(mesh, || {
        let stream = GapStream::start(&mesh.containers[0], mesh.v4(1), Duration::from_millis(10)).must("a stream");
        thread::sleep(Duration::from_secs(1));
        delete_device(mesh, 0);
        let there = || wireguard(mesh, 0).is_ok_and(|device| device.peers.len() == 1);
        assert!(wait_until(LEFT, there), "the device is back, with its peer");
        thread::sleep(Duration::from_secs(2));
        let report = stream.finish().must("the end of the stream");
        eprintln!("measured: the device deleted and put back: {report:?}");
        assert!(report.longest_gap <= LEFT, "{report:?}");
    });
    wait_for_carrier(mesh, 0, 1, "wireguard", SLOW);
    nothing_to_read(mesh, &captured(mesh), VXLAN + 1);
    eprintln!("measured: {} changes of carrier for it", mesh.counter(0, "carrier_switches") - switches);
}

/// The kernel loses WireGuard altogether, and gets it again.
fn taken_away(mesh: &Mesh) {
    mesh.all_reach(&[0, 1], Duration::from_secs(10));
    mesh.lab.wire().start_capture(512 << 20);
    while_talking(mesh, || {
        // Digests are compared at the end: it lasts over both changes.
        let lasting = Duration::from_secs(25);
        let to = (&mesh.containers[0], mesh.v4(1));
        thread::scope(|scope| {
            let transfer = scope.spawn(move || paced_transfer(to.0, to.1, u64::MAX, PACE, lasting, lasting));
            without_wireguard(mesh);
            let moved = transfer.join().expect("no panic").must("a transfer over both changes");
            eprintln!("measured: {} bytes whole over both changes", moved.bytes);
        });
    });
    nothing_to_read(mesh, &captured(mesh), VXLAN + 1);
    mesh.all_reach(&[0, 1], Duration::from_secs(10));
}

/// Until the kernel has it again and uses it.
fn without_wireguard(mesh: &Mesh) {
    let stream = GapStream::start(&mesh.containers[1], mesh.v4(0), Duration::from_millis(10)).must("a stream");
    thread::sleep(Duration::from_secs(1));
    let start = Instant::now();
    let unloaded = || delete_module(c"wireguard", libc::O_NONBLOCK).is_ok();
    assert!(wait_until(Duration::from_secs(5), unloaded), "the module is gone");
    wait_for_carrier(mesh, 0, 1, "sleeve", Duration::from_secs(10));
    eprintln!("measured: without WireGuard, by sleeve after {:?}", start.elapsed());
    let peer = mesh.peer(0, "host2").must("the peer");
    assert!(peer["encrypted"] == true && peer["reason"].as_str().must("a reason").contains("WireGuard"), "{peer}");
    thread::sleep(Duration::from_secs(3));
    let report = stream.finish().must("the end of the stream");
    eprintln!("measured: {report:?}");
    assert!(report.longest_gap <= LEFT, "{report:?}");
    let load = || -> io::Result<()> { Ok(finit_module(File::open(format!("{MODULES_DIR}/wireguard.ko"))?, c"", 0)?) };
    load().must("load the module");
    let start = Instant::now();
    wait_for_carrier(mesh, 0, 1, "wireguard", SLOW);
    eprintln!("measured: sealed by the kernel again after {:?}", start.elapsed());
}

fn mixed() {
    let mut config = MeshConfig { v6_underlay: true, ..MeshConfig::star(3) };
    let lab = new_lab(&config);
    let three = config.clone();
    config.lab.hosts = 2;
    config.told = vec![(1, 0)];
    let mut mesh = Mesh::start_in(lab, &config);
    let wanted = router_config(&mesh.lab, &three, 2, Some(SECRET)).with(["--no-fast-path"]);
    mesh.routers.push(Router::start(&mesh.lab, mesh.lab.host(2), wanted).must("start the third"));
    mesh.add_container(2);
    wait_for_carrier(&mesh, 0, 1, "wireguard", SLOW);
    for host in [0, 1] {
        wait_for_carrier(&mesh, host, 2, "sleeve", SLOW);
    }
    let mtus = [0, 1, 2].map(|host| mesh.status(host)["mtu"].as_u64());
    assert_eq!(mtus, [Some(1350); 3], "one size for all");
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(10));

    // A router that is killed and comes back finds what it left. What proves the path in the guest may come too late
    // for it then, and frames go by sleeve for a while: that loses none.
    let (before, switches) = (device(&mesh, 1), mesh.counter(0, "carrier_switches"));
    let streams = [(0, 1), (1, 0)].map(|(from, to)| {
        GapStream::start(&mesh.containers[from], mesh.v4(to), Duration::from_millis(20)).must("a stream")
    });
    mesh.routers[1].kill().must("kill");
    thread::sleep(Duration::from_secs(5));
    mesh.routers[1].restart().must("start again");
    wait_for_carrier(&mesh, 0, 1, "wireguard", SLOW);
    thread::sleep(Duration::from_secs(16));
    for stream in streams {
        let report = stream.finish().must("the end of a stream");
        eprintln!("measured: a router killed for 5 s: {report:?}");
        assert!(report.received + 2 >= report.sent && report.longest_gap < LEFT, "{report:?}");
    }
    assert_eq!(device(&mesh, 1), before, "the device is as it was");
    eprintln!("measured: {} changes of carrier for it", mesh.counter(0, "carrier_switches") - switches);
    wait_for_carrier(&mesh, 0, 1, "wireguard", SLOW);

    // Who is shut out is unknown to WireGuard at once.
    let peers = || wireguard(&mesh, 0).must("read the device").peers.len();
    assert_eq!(peers(), 1);
    mesh.routers[0].command(["peer", "revoke", "host2"]).must("revoke");
    assert!(wait_until(LEFT, || peers() == 0), "its peer is gone");
    mesh.is_cut_off(0, 1);

    mesh.routers[0].command(["down"]).must("down");
    mesh.routers[0].wait_for_exit(Duration::from_secs(20)).must("exit");
    let left = Netlink::block_on_in(mesh.lab.host(0).namespace(), async |netlink| netlink.links().await);
    let names: Vec<String> = left.must("list").into_iter().map(|link| link.name).collect();
    assert_eq!(names, ["lo", "eth0"], "nothing is left");
}
