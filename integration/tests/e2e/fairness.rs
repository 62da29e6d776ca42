//! A peer behind a slow interface takes nothing from the others.
//!
//! ```text
//!   container ─ host 0 ═══ quick cable ═══ host 1 ═══ slow cable ═══ host 2 ─ container
//!                                            └ container: sends to both
//! ```

use std::{
    net::{IpAddr, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use ipnet::IpNet;
use weft::{
    lab::{
        CableConfig, CableLab, Container, Offloads,
        router::{Router, RouterConfig, write_secret},
        traffic::{Echo, GapReport, GapStream, tcp_transfer, udp_echo},
        wait_until,
    },
    netlink::NetNs,
};

use crate::{
    Case, ROUTER,
    mesh::{Must as _, PATIENCE, SECRET},
};

pub(crate) const CASES: &[Case] = &[("a_slow_interface_holds_up_only_what_goes_through_it", 90, a_slow_interface)];

/// The host that has both interfaces.
const SENDER: usize = 1;
/// How long is looked at the quick peer.
const LASTING: Duration = Duration::from_secs(4);

/// Flows to the quick peer that are looked at.
const BEATS: usize = 8;

/// Where `tc` may be.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Three hosts in a row, each with a container.
struct Row {
    _echoes: Vec<Echo>,
    routers: Vec<Router>,
    containers: Vec<Container>,
    addresses: Vec<IpAddr>,
    lab: CableLab,
}

impl Row {
    fn new() -> Self {
        let cables = vec![(0, 1), (1, 2)];
        let config = CableConfig { hosts: 3, cables, mtu: 1500, offloads: Offloads::Merging };
        let lab = CableLab::new(&config).must("make the lab");
        let secret = lab.dir().join("secret");
        write_secret(&secret, SECRET).must("write the secret");
        let mut row =
            Self { _echoes: Vec::new(), routers: Vec::new(), containers: Vec::new(), addresses: Vec::new(), lab };
        for index in 0..3 {
            let exe = std::env::current_exe().must("find this binary");
            let mut config = RouterConfig { exe, env: vec![(ROUTER.into(), "1".into())], args: Vec::new() }
                .with(["--no-discovery", "--no-fast-path", "--range", "10.32.0.0/16", "--secret-file"])
                .with([secret.clone()]);
            if index > 0 {
                config = config.with(["--peer".to_owned(), CableLab::address(index - 1, 0).to_string()]);
            }
            let host = row.lab.host(index);
            row.routers.push(Router::start_in(row.lab.dir(), host.label(), host, config).must("start a router"));
        }
        for router in &row.routers {
            let container = Container::new(router.name()).must("make a container");
            let addresses = router.attach(&container).must("attach");
            row._echoes.push(Echo::start(&container).must("start the echo"));
            let v4 = addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv4);
            row.addresses.push(v4.expect("an IPv4 address"));
            row.containers.push(container);
        }
        for other in [0, 2] {
            let passes = || udp_echo(row.sender(), row.addresses[other], b"there?", Duration::from_secs(1)).is_ok();
            assert!(wait_until(PATIENCE, passes), "nothing reaches {other}");
        }
        row
    }

    fn sender(&self) -> &Container {
        &self.containers[SENDER]
    }
}

/// Runs `tc` in a namespace.
fn tc(host: &NetNs, args: &str) {
    let run = || Command::new("tc").args(args.split_whitespace()).env("PATH", PATH).output();
    let output = host.run(run).must("enter the namespace").must("run tc (Debian's iproute2)");
    assert!(output.status.success(), "tc {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Datagrams at twenty times what the slow interface takes, until dropped. Not as fast as they go: more than the
/// router can read is lost before it, in the TAP's queue, with whatever else of this container waits there.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Flood {
    fn start(from: &Container, to: IpAddr) -> Self {
        let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).must("open a socket");
        socket.connect((to, 9999)).must("connect");
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !flag.load(Ordering::Acquire) {
                for _ in 0..20 {
                    // Refused: nobody listens there, which is told now and then.
                    let _ = socket.send(&[7; 1200]);
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Err: it panicked, and has said so.
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

fn a_slow_interface() {
    let row = Row::new();
    let (quick, slow) = (row.addresses[0], row.addresses[2]);
    tc(row.lab.host(SENDER), "qdisc add dev eth1 root tbf rate 10mbit burst 20kb limit 1gb");
    let refused = || {
        let status = row.routers[SENDER].status().must("ask the router");
        status["counters"]["dropped"]["udp_send_busy"].as_u64().expect("a count of what the kernel refused")
    };
    let flood = Flood::start(row.sender(), slow);
    assert!(wait_until(PATIENCE, || refused() > 0), "the slow interface takes all of it");
    let before = refused();
    let beat = || GapStream::start(row.sender(), quick, Duration::from_millis(8)).must("start a beat");
    let beats: Vec<GapStream> = (0..BEATS).map(|_| beat()).collect();
    let stream = tcp_transfer(row.sender(), quick, u64::MAX, LASTING, PATIENCE).must("transfer");
    let beats: Vec<GapReport> = beats.into_iter().map(|beat| beat.finish().must("end a beat")).collect();
    assert!(refused() > before, "the slow interface was busy all the time");
    drop(flood);
    eprintln!("beside what is held up: a stream of {:.0} Mbit/s, {beats:?}", stream.megabits());
    // One that the kernel puts into the TAP's queue of the flood loses with the flood, whatever becomes of that:
    // of eight queues one, and another with the stream.
    let whole = beats.iter().filter(|beat| beat.received * 100 >= beat.sent * 99).count();
    assert!(whole * 4 >= beats.len(), "the quick peer lost datagrams to the slow one: {beats:?}");
}
