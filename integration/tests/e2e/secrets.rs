//! What outsiders can see and do.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use mesh_proto::{
    control::DialId,
    data::{Hop, forwarder::ForwarderConfig},
    wire::control::{Hello, Message, VERSION},
};
use weft::{
    control::quic::{Quic, QuicConfig, QuicEvent},
    data::{DataConfig, DataHandle, Trial, bind_udp, open_tap},
    lab::{
        Lab, frame,
        raw::RawSocket,
        router::{Router, write_secret},
        traffic::{GapStream, tcp_echo, udp_echo},
        wait_until,
        wire::{Captured, Impairment},
    },
    netlink::{Mac, Netlink, container::INTERFACE},
};

use crate::{
    Case,
    fastpath::{Ends, VXLAN, open_mesh, wait_for_carrier},
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE, new_lab, no_gaps, router_config},
};

pub(crate) const CASES: &[Case] = &[
    ("the_underlay_sees_neither_payload_nor_macs_nor_addresses", 60, nothing_to_read),
    ("another_secret_is_refused_on_both_sides_and_disturbs_nobody", 60, another_secret),
    ("no_secret_on_one_side_is_refused_on_both", 60, no_secret),
    ("another_version_of_the_protocol_is_refused_on_both_sides", 60, another_version),
    ("a_changed_secret_cuts_nobody_off_and_shuts_out_the_old_one", 120, rotation),
    ("a_revoked_peer_is_cut_off_everywhere_and_stays_out_after_restarts", 120, revocation),
    ("captured_datagrams_sent_again_are_counted_and_not_delivered", 60, replay),
    ("changed_and_random_datagrams_change_nothing", 120, noise),
    ("random_datagrams_change_nothing_without_a_secret", 120, noise_in_the_open),
];

const MARKER: [u8; 32] = *b"-- marker of thirty-two bytes --";
const PORT: u16 = 6783;

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn talk(mesh: &Mesh, from: usize, to: usize, times: usize) {
    for ip in mesh.ips(to) {
        for _ in 0..times {
            udp_echo(&mesh.containers[from], ip, &MARKER, PATIENCE).must("UDP");
        }
        tcp_echo(&mesh.containers[from], ip, &MARKER.repeat(20), PATIENCE).must("TCP");
    }
}

fn capture(mesh: &Mesh, during: impl FnOnce()) -> Vec<Captured> {
    begin_capture(&mesh.lab);
    during();
    captured(&mesh.lab)
}

fn begin_capture(lab: &Lab) {
    lab.wire().start_capture(256 << 20);
}

fn captured(lab: &Lab) -> Vec<Captured> {
    let (frames, overwritten) = lab.wire().take_capture();
    assert_eq!(overwritten, 0, "the capture is whole");
    frames
}

fn needles(mesh: &Mesh) -> Vec<Vec<u8>> {
    let mut needles = vec![MARKER.to_vec()];
    for (container, addresses) in mesh.containers.iter().zip(&mesh.addresses) {
        let link = container.link(INTERFACE).must("look").must("the interface");
        needles.push(link.mac.must("a MAC").to_vec());
        needles.extend(addresses.iter().map(IpNet::addr).map(octets));
    }
    needles
}

fn nothing_to_read() {
    // From the first datagram on: a join is a part of it, and so are a restart and a link that
    // comes back. And a relay, which sees more.
    let config = MeshConfig::graph(3, &[(0, 1), (1, 2)]);
    let lab = new_lab(&config);
    begin_capture(&lab);
    let mut mesh = Mesh::start_in(lab, &config);
    let talk_all = |mesh: &Mesh| {
        mesh.wait_established(PATIENCE);
        talk(mesh, 0, 2, 20);
        talk(mesh, 2, 1, 20);
    };
    talk_all(&mesh);
    mesh.lab.wire().cut(0, 1);
    assert!(wait_until(PATIENCE, || mesh.peer(0, "host2").is_some_and(|peer| peer["state"] != "established")));
    let _ = udp_echo(&mesh.containers[0], mesh.v4(2), &MARKER, Duration::from_millis(300));
    mesh.lab.wire().heal(0, 1);
    mesh.routers[2].kill().must("kill");
    mesh.routers[2].restart().must("restart");
    talk_all(&mesh);
    let frames = captured(&mesh.lab);
    assert!(frames.len() > 400, "only {} frames", frames.len());
    for needle in needles(&mesh) {
        for captured in &frames {
            assert!(!contains(&captured.frame, &needle), "{needle:02x?} in {captured:02x?}");
        }
    }
    // The check itself finds what is there: without a secret it is all in the clear.
    let open = Mesh::start(&MeshConfig { secret: None, ..MeshConfig::star(2) });
    open.wait_established(PATIENCE);
    let frames = capture(&open, || talk(&open, 0, 1, 5));
    for needle in needles(&open) {
        let seen = frames.iter().any(|captured| contains(&captured.frame, &needle));
        assert!(seen, "{needle:02x?} should have been seen");
    }
}

/// Two hosts with a secret, and a third that comes with something else.
fn stranger(secret: Option<&'static str>) -> (Mesh, Router) {
    let mut config = MeshConfig::star(2);
    config.lab.hosts = 3;
    let lab_config = config.clone();
    config.lab.hosts = 2;
    let mut mesh = Mesh::start_in(new_lab(&lab_config), &config);
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    let streams = mesh.streams(&[(0, 1), (1, 0)]);
    let mut told = config.clone();
    told.told = vec![(2, 0)];
    let wanted = router_config(&mesh.lab, &told, 2, secret);
    let stranger = Router::start(&mesh.lab, mesh.lab.host(2), wanted).must("start the stranger");
    thread::sleep(Duration::from_secs(6));
    undisturbed(streams);
    assert!(mesh.routers[0].exited().must("ask").is_none());
    (mesh, stranger)
}

#[track_caller]
fn undisturbed(streams: Vec<(usize, usize, GapStream)>) {
    for report in no_gaps(streams) {
        assert!(report.longest_gap < Duration::from_millis(500), "others are undisturbed: {report:?}");
    }
}

/// How often any router said that a link is down.
fn lost_links(mesh: &Mesh) -> usize {
    mesh.routers.iter().map(|router| lines(&router.log(), &["link to", "is down"])).sum()
}

/// How many lines of a log have all these words.
fn lines(log: &str, words: &[&str]) -> usize {
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

#[track_caller]
fn one_line(router: &Router, words: &[&str]) {
    let log = router.log();
    let count = lines(&log, words);
    assert_eq!(count, 1, "{words:?} in the log of {}:\n{log}", router.name());
}

#[track_caller]
fn not_linked(mesh: &Mesh, stranger: &Router) {
    let known = mesh.peer(0, "host3");
    assert!(known.as_ref().is_none_or(|peer| peer["state"] != "established"), "{known:?}");
    let status = stranger.status().must("status");
    let linked = status["peers"].as_array().into_iter().flatten();
    assert_eq!(linked.filter(|peer| peer["state"] == "established").count(), 0, "{status}");
    let problems = status["problems"].to_string() + &status["targets"].to_string();
    assert!(problems.contains("secret"), "the operator is told: {status}");
}

fn another_secret() {
    let (mesh, stranger) = stranger(Some("another secret altogether 000"));
    not_linked(&mesh, &stranger);
    one_line(&stranger, &["host1", "secret"]);
    one_line(&mesh.routers[0], &["host3", "secret"]);
}

fn no_secret() {
    let (mesh, stranger) = stranger(None);
    not_linked(&mesh, &stranger);
    one_line(&stranger, &["host1", "has a secret"]);
    one_line(&mesh.routers[0], &["host3", "has no secret"]);
    let output = stranger.cli(["reload"]).must("run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("without a configuration file"), "{said}");
    let output = stranger.cli(["peer", "revoke", &"7".repeat(32)]).must("run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("has no secret"), "{said}");
}

const NEW_SECRET: &str = "another secret altogether 000";

/// Writes another secret into the file that a router was started with.
fn give(mesh: &Mesh, host: usize, secret: &str) {
    let path = mesh.lab.dir().join(format!("secret-{host}"));
    std::fs::remove_file(&path).must("remove the old secret");
    write_secret(&path, secret).must("write the new secret");
}

/// One router after the other takes the new secret, two while they run and one by a restart, while
/// containers talk; then a newcomer needs the new one.
fn rotation() {
    let mut config = MeshConfig::star(3);
    config.lab.hosts = 4;
    let lab = new_lab(&config);
    let newcomer = config.clone();
    config.lab.hosts = 3;
    let mut mesh = Mesh::start_in(lab, &config);
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
    let before = lost_links(&mesh);
    let streams = mesh.streams(&[(0, 1), (1, 2), (2, 0)]);
    for host in [0, 1] {
        give(&mesh, host, NEW_SECRET);
        let output = mesh.routers[host].cli(["reload"]).must("run");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("secret-file"), "{said}");
        assert!(!said.contains(NEW_SECRET) && !mesh.routers[host].log().contains(NEW_SECRET));
        thread::sleep(Duration::from_secs(2));
    }
    undisturbed(streams);
    assert_eq!(lost_links(&mesh), before, "no link was lost");
    // One that has the old secret still, and one that starts with the new one: both know the others.
    let streams = mesh.streams(&[(0, 1)]);
    mesh.routers[2].end();
    mesh.routers[2].restart().must("start with the old secret");
    mesh.wait_established(PATIENCE);
    give(&mesh, 2, NEW_SECRET);
    mesh.routers[2].end();
    mesh.routers[2].restart().must("start with the new secret");
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(4));
    no_gaps(streams);
    for router in &mesh.routers {
        assert_eq!(lines(&router.log(), &["another secret"]), 0, "{}", router.log());
    }
    // The old secret opens nothing, the new one does.
    let mut told = newcomer;
    told.told = vec![(3, 0)];
    let wanted = router_config(&mesh.lab, &told, 3, Some(crate::mesh::SECRET));
    let mut late = Router::start(&mesh.lab, mesh.lab.host(3), wanted).must("start the newcomer");
    let refused = || lines(&late.log(), &["host1", "another secret"]) > 0;
    assert!(wait_until(PATIENCE, refused), "{}", late.log());
    assert!(mesh.peer(0, "host4").is_none_or(|peer| peer["state"] != "established"));
    give(&mesh, 3, NEW_SECRET);
    late.end();
    late.restart().must("start with the new secret");
    let in_it = || (0..3).all(|n| mesh.peer(n, "host4").is_some_and(|peer| peer["state"] == "established"));
    assert!(wait_until(PATIENCE, in_it), "{}", late.log());
}

/// What a router says of a peer in `weft peers`.
fn state(mesh: &Mesh, router: usize, name: &str) -> String {
    mesh.peer(router, name).map_or_else(String::new, |peer| peer["state"].as_str().must("text").to_owned())
}

fn revocation() {
    let mut mesh = Mesh::start(&MeshConfig::star(3));
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
    let unknown = mesh.routers[1].cli(["peer", "revoke", "host9"]).must("run");
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(!unknown.status.success() && said.contains("`host9`"), "{said}");
    let streams = mesh.streams(&[(0, 1)]);
    let output = mesh.routers[1].cli(["peer", "revoke", "host3"]).must("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let start = Instant::now();
    let out = |mesh: &Mesh| (0..2).all(|n| state(mesh, n, "host3") == "removed");
    assert!(wait_until(Duration::from_secs(5), || out(&mesh)), "{}", mesh.status(0));
    let alone = |mesh: &Mesh| (1..3).all(|n| state(mesh, 2, &format!("host{n}")) != "established");
    assert!(wait_until(Duration::from_secs(5).saturating_sub(start.elapsed()), || alone(&mesh)), "{}", mesh.status(2));
    mesh.is_cut_off(0, 2);
    mesh.is_cut_off(2, 1);
    no_gaps(streams);
    assert!(lost_links(&mesh) > 0, "what counts lost links counts these");
    one_line(&mesh.routers[0], &["WARN peer host3", "was revoked by"]);
    assert!(lines(&mesh.routers[2].log(), &["this peer was revoked by `host2`"]) > 0, "{}", mesh.routers[2].log());
    // It has its keys and the secret, and tries again after its restart and those of the others.
    for host in [2, 0, 1] {
        mesh.routers[host].end();
        mesh.routers[host].restart().must("restart");
        thread::sleep(Duration::from_secs(3));
        assert!(out(&mesh) && alone(&mesh), "{}", mesh.status(host));
    }
    assert!(wait_until(PATIENCE, || state(&mesh, 0, "host2") == "established"), "{}", mesh.status(0));
    mesh.reaches(0, 1, Duration::from_secs(4));
    mesh.is_cut_off(0, 2);
    let again = mesh.routers[0].cli(["peer", "revoke", "host3"]).must("run");
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(!again.status.success() && said.contains("revoked already"), "{said}");
}

/// A peer of the future, made of the router's own parts: it says hello with the next version.
fn another_version() {
    let mut config = MeshConfig::star(2);
    config.lab.hosts = 3;
    let lab = new_lab(&config);
    config.lab.hosts = 2;
    let mesh = Mesh::start_in(lab, &config);
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    let before = lost_links(&mesh);
    let streams = mesh.streams(&[(0, 1), (1, 0)]);
    let to = SocketAddr::new(IpAddr::V4(mesh.lab.host(0).v4()), PORT);
    let future = || -> anyhow::Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), dial_from_the_future(to)).await })?
    };
    let reason = mesh.lab.host(2).namespace().run(future).must("enter").must("an answer");
    assert!(reason.contains("version"), "the other side is told: {reason}");
    thread::sleep(Duration::from_millis(200));
    one_line(&mesh.routers[0], &["from-the-future", "versions"]);
    undisturbed(streams);
    assert_eq!(lost_links(&mesh), before, "no link was lost");
    mesh.all_reach(&[0, 1], Duration::from_secs(1));
}

async fn dial_from_the_future(to: SocketAddr) -> anyhow::Result<String> {
    let socket = Arc::new(bind_udp("0.0.0.0:6783".parse()?)?);
    let forwarder = ForwarderConfig { sealed: true, macs_max: 16, mac_age: Duration::from_secs(1), payload_max: 1472 };
    let tap = open_tap("future-tap", &Trial::Passed)?;
    let clock = weft::clock::Clock::start();
    let config = DataConfig { tap, socket: Arc::clone(&socket), forwarder, seed: 1, busy_poll: Duration::ZERO, clock };
    let (data, outputs) = DataHandle::start(config)?;
    let incoming = outputs.quic;
    let config = QuicConfig { seed: [9; 32].into(), socket, data: data.clone(), incoming };
    let (quic, mut events) = Quic::start(config)?;
    quic.dial(DialId(1), Hop::Direct(to));
    let mut reason = None;
    while let Some(event) = events.recv().await {
        match event {
            QuicEvent::Connected(conn, _) => quic.send(conn, Message::Hello(hello()).encode()),
            QuicEvent::Message(_, bytes) => {
                if let Ok(Some(Message::Refuse(refuse))) = Message::decode(&bytes) {
                    reason = Some(refuse.reason);
                    break;
                }
            }
            QuicEvent::DialFailed(_, why) | QuicEvent::Disconnected(_, why) => {
                anyhow::bail!("closed without a refusal: {why}")
            }
        }
    }
    data.stop();
    reason.ok_or_else(|| anyhow::anyhow!("the endpoint ended"))
}

fn hello() -> Hello {
    Hello {
        version_min: VERSION + 1,
        version_max: VERSION + 2,
        network: "weft".into(),
        secret: true,
        suites: vec![1, 2],
        box_key: [7; 32],
        instance: 1,
        incarnation: 1,
        name: "from-the-future".into(),
        run: [3; 16],
        index: 1,
        ephemeral: Some([5; 32]),
        spake: Some(vec![0; 33]),
        observed: None,
        admitted: false,
    }
}

/// The datagrams of a capture that are for one host's router.
fn datagrams<'a>(lab: &Lab, frames: &'a [Captured], to: usize) -> Vec<(&'a [u8], frame::Datagram)> {
    let to = SocketAddr::new(IpAddr::V4(lab.host(to).v4()), PORT);
    let seen = frames.iter().filter_map(|captured| Some((&captured.frame[..], frame::datagram(&captured.frame)?)));
    seen.filter(|(_, seen)| seen.destination == to && !seen.payload.is_empty()).collect()
}

/// QUIC has this bit set in its first byte, sleeve has not.
fn is_quic((frame, seen): &(&[u8], frame::Datagram)) -> bool {
    frame[seen.payload.start] & 0x40 != 0
}

/// The sleeve datagrams of a capture, from one host to another.
fn sleeve<'a>(lab: &Lab, frames: &'a [Captured], from: usize, to: usize) -> Vec<(&'a [u8], frame::Datagram)> {
    let from = IpAddr::V4(lab.host(from).v4());
    let all = datagrams(lab, frames, to).into_iter();
    all.filter(|one| one.1.source.ip() == from && !is_quic(one)).collect()
}

/// What a container's interface receives that has the marker in it.
fn marked(socket: &mut RawSocket, during: impl FnOnce()) -> usize {
    socket.drain().must("drain");
    during();
    let end = Instant::now() + Duration::from_millis(500);
    let frames = socket.collect(end, usize::MAX, |frame| contains(frame, &MARKER));
    frames.must("receive").len()
}

fn replay() {
    let mesh = Mesh::start(&MeshConfig::star(2));
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    let frames = capture(&mesh, || talk(&mesh, 0, 1, 200));
    let again = sleeve(&mesh.lab, &frames, 0, 1);
    assert!(again.len() > 400, "only {} datagrams", again.len());
    let before = mesh.counter(1, "replayed");
    let mut socket = RawSocket::open(&mesh.containers[1], INTERFACE).must("open");
    let delivered = marked(&mut socket, || {
        for chunk in again.chunks(50) {
            for (frame, _) in chunk {
                mesh.lab.wire().inject(1, frame.to_vec());
            }
            thread::sleep(Duration::from_millis(5));
        }
    });
    assert_eq!(delivered, 0, "a replayed frame was delivered");
    let counted = mesh.counter(1, "replayed") - before;
    assert_eq!(counted, again.len() as u64, "every one of them is counted, and nothing else");
    mesh.all_reach(&[0, 1], Duration::from_secs(1));
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// The UDP ports that are open on a host, by the kernel's list.
fn open_ports(mesh: &Mesh, host: usize) -> Vec<u16> {
    let read = || {
        ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"]
            .iter()
            .map(|path| std::fs::read_to_string(path).unwrap_or_default())
            .collect::<String>()
    };
    let table = mesh.lab.host(host).namespace().run(read).must("enter");
    let mut ports: Vec<u16> = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1)?.rsplit_once(':'))
        .filter_map(|(_, port)| u16::from_str_radix(port, 16).ok())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Whether the marker is in a frame, be it with one bit changed.
fn nearly_marked(frame: &[u8]) -> bool {
    let differ = |window: &[u8]| window.iter().zip(&MARKER).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
    frame.windows(MARKER.len()).any(|window| differ(window) <= 1)
}

/// All addresses from which a frame in a mesh can be: of containers and of interfaces of hosts.
fn senders(mesh: &Mesh) -> Vec<Mac> {
    let of_hosts = mesh.lab.hosts().iter().flat_map(|host| {
        Netlink::block_on_in(host.namespace(), async |netlink: Netlink| netlink.links().await).must("list links")
    });
    let of_containers = mesh.containers.iter().filter_map(|container| container.link(INTERFACE).must("look"));
    of_hosts.chain(of_containers).filter_map(|link| link.mac).collect()
}

/// What a container gets meanwhile that nobody in the mesh has sent, or not now. It is read all the
/// time: no buffer is too small for it.
fn strange_frames(mesh: &Mesh, container: usize, during: impl FnOnce()) -> Vec<Vec<u8>> {
    let known = senders(mesh);
    let mut socket = RawSocket::open(&mesh.containers[container], INTERFACE).must("open");
    let over = AtomicBool::new(false);
    let (strange, seen) = thread::scope(|scope| {
        let over = &over;
        let reader = scope.spawn(move || {
            let (mut strange, mut seen) = (Vec::new(), 0);
            loop {
                // What is under way when it is over still arrives.
                let last = over.load(Ordering::Acquire);
                let soon = Instant::now() + Duration::from_millis(500);
                let is_strange = |frame: &[u8]| {
                    seen += 1;
                    nearly_marked(frame) || !known.iter().any(|mac| frame[6..12] == *mac)
                };
                strange.extend(socket.collect(soon, usize::MAX, is_strange).must("receive"));
                if last {
                    return (strange, seen);
                }
            }
        });
        let ends = Ends(over);
        during();
        drop(ends);
        reader.join().expect("no panic")
    });
    assert!(seen > 500, "the streams alone are more than the {seen} frames that came");
    strange
}

fn noise() {
    let config = MeshConfig::star(3);
    let lab = new_lab(&config);
    begin_capture(&lab);
    let mesh = Mesh::start_in(lab, &config);
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
    let joining = captured(&mesh.lab);
    let mut control = datagrams(&mesh.lab, &joining, 1);
    control.retain(is_quic);
    let frames = capture(&mesh, || talk(&mesh, 0, 1, 100));
    let data = sleeve(&mesh.lab, &frames, 0, 1);
    assert!(data.len() >= SAMPLES && control.len() >= 20, "{} of sleeve, {} of QUIC", data.len(), control.len());
    let ports = open_ports(&mesh, 1);
    assert!(ports.contains(&PORT), "{ports:?}");
    let mut random = Random(4711);
    let before = lost_links(&mesh);
    let streams = mesh.streams(&[(0, 2), (0, 1)]);
    let strange = strange_frames(&mesh, 1, || {
        flipped(&mesh, &data, &mut random);
        flipped(&mesh, &control, &mut random);
        random_datagrams(&mesh, &ports, &mut random);
        let bad = mesh.counter_dropped(1, "bad_seal");
        mesh.lab.wire().impair(0, 1, Impairment { corrupt: 0.05, ..Impairment::default() });
        thread::sleep(Duration::from_secs(5));
        mesh.lab.wire().heal(0, 1);
        assert!(mesh.counter_dropped(1, "bad_seal") > bad, "none of what the streams sent was changed");
    });
    assert_eq!(strange, Vec::<Vec<u8>>::new());
    all_is_well(&mesh, streams, before);
}

fn noise_in_the_open() {
    let mesh = Mesh::start(&open_mesh(2));
    wait_for_carrier(&mesh, 0, 1, "fast", PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    let ports = open_ports(&mesh, 1);
    assert!(ports.contains(&PORT) && ports.contains(&VXLAN), "{ports:?}");
    let before = lost_links(&mesh);
    let streams = mesh.streams(&[(0, 1), (1, 0)]);
    let strange = strange_frames(&mesh, 1, || random_datagrams(&mesh, &ports, &mut Random(4712)));
    assert_eq!(strange, Vec::<Vec<u8>>::new());
    all_is_well(&mesh, streams, before);
}

/// Every link is still the one that it was, and nobody was cut off meanwhile.
#[track_caller]
fn all_is_well(mesh: &Mesh, streams: Vec<(usize, usize, GapStream)>, lost_before: usize) {
    no_gaps(streams);
    mesh.wait_established(Duration::ZERO);
    assert_eq!(lost_links(mesh), lost_before, "no link was lost");
    let all: Vec<usize> = (0..mesh.containers.len()).collect();
    mesh.all_reach(&all, Duration::from_secs(1));
    for router in &mesh.routers {
        assert!(!router.log().contains("panicked"), "{}", router.log());
    }
}

/// How many datagrams at most are changed, each in so many ways.
const SAMPLES: usize = 150;
const CHANGES: usize = 60;

/// Every captured datagram with one bit changed, at many places.
fn flipped(mesh: &Mesh, samples: &[(&[u8], frame::Datagram)], random: &mut Random) {
    for round in 0..CHANGES {
        for (frame, seen) in samples.iter().take(SAMPLES) {
            let mut payload = frame[seen.payload.clone()].to_vec();
            // The header, bit by bit, then anywhere.
            let bit = if round < CHANGES / 2 { round * 8 + random.next() as usize % 8 } else { random.next() as usize };
            let bit = bit % (payload.len() * 8);
            payload[bit / 8] ^= 1 << (bit % 8);
            mesh.lab.inject_datagram(1, seen.source, PORT, &payload).must("inject");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn random_datagrams(mesh: &Mesh, ports: &[u16], random: &mut Random) {
    let known = SocketAddr::new(IpAddr::V4(mesh.lab.host(0).v4()), PORT);
    let known6 = SocketAddr::new(mesh.lab.host(0).v6(), PORT);
    let strange: SocketAddr = ([10, 99, 77, 77], 1234).into();
    let sources = [known, known6, strange];
    for &port in ports {
        for number in 0..100_000_usize {
            let length = 1 + random.next() as usize % if number % 10 == 0 { 1400 } else { 80 };
            let mut payload = random.bytes(length);
            // A third looks like sleeve by its first byte, so that more than one check is tried.
            if number % 3 == 0 {
                payload[0] &= 0x0f;
            }
            let source = sources[number % sources.len()];
            mesh.lab.inject_datagram(1, source, port, &payload).must("inject");
            if number % 200 == 199 {
                thread::sleep(Duration::from_millis(2));
            }
        }
    }
}
