//! A mesh in the lab: routers, one container behind each, and the traffic between them.

use std::{
    ffi::OsString,
    fmt::{Debug, Write as _},
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use serde_json::Value;
use weft::{
    lab::{
        Container, Host, Lab, LabConfig,
        router::{Router, RouterConfig, write_secret},
        traffic::{Echo, GapReport, GapStream, tcp_echo, udp_echo},
        wait_until,
    },
    netlink::Netlink,
};

pub(crate) use crate::harness::Must;
use crate::{GUEST, ROUTER};

/// How long a topology may take to be noticed as changed and routed around: the promise.
pub(crate) const PROMISED_GAP: Duration = Duration::from_secs(4);
/// How long a mesh may take to come to life before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// A secret that is in no frame.
pub(crate) const SECRET: &str = "correct horse battery staple 7391";

/// How a mesh shall be.
#[derive(Debug, Clone)]
pub(crate) struct MeshConfig {
    pub(crate) lab: LabConfig,
    /// Which hosts can reach each other; `None`: all.
    pub(crate) reachable: Option<Vec<(usize, usize)>>,
    /// Who is told of whom: (who, whom).
    pub(crate) told: Vec<(usize, usize)>,
    /// The network secret; `None`: none is set.
    pub(crate) secret: Option<&'static str>,
    /// The hosts have IPv6 addresses only.
    pub(crate) v6_underlay: bool,
    /// Further arguments of all routers; with ranges among them, they have these instead of the usual.
    pub(crate) args: Vec<OsString>,
}

impl MeshConfig {
    /// Everyone is told of the first.
    pub(crate) fn star(hosts: usize) -> Self {
        Self {
            lab: LabConfig::hosts(hosts),
            reachable: None,
            told: (1..hosts).map(|host| (host, 0)).collect(),
            secret: Some(SECRET),
            v6_underlay: false,
            args: Vec::new(),
        }
    }

    /// Only these pairs can reach each other; the one with the higher number is told of the other.
    pub(crate) fn graph(hosts: usize, edges: &[(usize, usize)]) -> Self {
        let ordered = edges.iter().map(|&(a, b)| (a.max(b), a.min(b))).collect();
        Self { reachable: Some(edges.to_vec()), told: ordered, ..Self::star(hosts) }
    }
}

/// A running mesh. Fields end in this order.
pub(crate) struct Mesh {
    _echoes: Vec<Echo>,
    pub(crate) routers: Vec<Router>,
    pub(crate) containers: Vec<Container>,
    pub(crate) addresses: Vec<Vec<IpNet>>,
    pub(crate) lab: Lab,
}

/// What a router is started with: this binary, and the arguments of `weft up`.
pub(crate) fn router_config(lab: &Lab, config: &MeshConfig, host: usize, secret: Option<&str>) -> RouterConfig {
    let exe = std::env::current_exe().must("find this binary");
    let mut args: Vec<OsString> = Vec::new();
    if !config.args.iter().any(|arg| arg == "--range") {
        args.extend(["--range", "10.32.0.0/12", "--range", "fd00:77::/64"].map(OsString::from));
    }
    if let Some(secret) = secret {
        let path = lab.dir().join(format!("secret-{host}"));
        write_secret(&path, secret).must("write the secret");
        args.extend(["--secret-file".into(), path.into()]);
    }
    for &(_, other) in config.told.iter().filter(|(who, _)| *who == host) {
        let other = lab.host(other);
        let ip = if config.v6_underlay { other.v6() } else { IpAddr::V4(other.v4()) };
        args.extend(["--peer".into(), ip.to_string().into()]);
    }
    args.extend(config.args.iter().cloned());
    // What is sealed by the kernel is shown in a guest: the others shall be the same on every machine.
    if secret.is_some() && std::env::var_os(GUEST).is_none() && !config.args.iter().any(|arg| arg == "--trusted-subnet")
    {
        args.push("--no-fast-path".into());
    }
    let env = vec![(ROUTER.into(), "1".into())];
    RouterConfig { exe, env, args }
}

/// A lab in which only those hosts reach each other that shall.
pub(crate) fn new_lab(config: &MeshConfig) -> Lab {
    let lab = Lab::new(&config.lab).must("make the lab");
    if config.v6_underlay {
        lab.hosts().iter().for_each(without_v4);
    }
    if let Some(edges) = &config.reachable {
        for a in 0..config.lab.hosts {
            for b in a + 1..config.lab.hosts {
                if !edges.contains(&(a, b)) && !edges.contains(&(b, a)) {
                    lab.wire().cut(a, b);
                }
            }
        }
    }
    lab
}

/// Takes its IPv4 address from a host's interface to the underlay.
fn without_v4(host: &Host) {
    let v4 = IpNet::new_assert(host.v4().into(), 16);
    let work = async |netlink: Netlink| netlink.del_address(&netlink.need_link("eth0").await?, v4).await;
    Netlink::block_on_in(host.namespace(), work).must("take the address away");
}

impl Mesh {
    /// Makes the lab, starts the routers and attaches a container to each.
    pub(crate) fn start(config: &MeshConfig) -> Self {
        Self::start_in(new_lab(config), config)
    }

    /// Starts the mesh on the first hosts of a lab that is there.
    pub(crate) fn start_in(lab: Lab, config: &MeshConfig) -> Self {
        let mut mesh = Self::start_routers(lab, config);
        for host in 0..config.lab.hosts {
            mesh.add_container(host);
        }
        mesh
    }

    /// Starts the routers alone.
    pub(crate) fn start_routers(lab: Lab, config: &MeshConfig) -> Self {
        let mut mesh =
            Self { _echoes: Vec::new(), routers: Vec::new(), containers: Vec::new(), addresses: Vec::new(), lab };
        for host in 0..config.lab.hosts {
            let wanted = router_config(&mesh.lab, config, host, config.secret);
            let router = Router::start(&mesh.lab, mesh.lab.host(host), wanted);
            mesh.routers.push(router.must("start a router"));
        }
        mesh
    }

    /// Attaches one more container; its place in `containers` and `addresses`.
    pub(crate) fn add_container(&mut self, host: usize) -> usize {
        let number = self.containers.len();
        let container = Container::new(&format!("box{number}")).must("make a container");
        let addresses = retry(PATIENCE, || self.routers[host].attach(&container)).must("attach");
        let families: Vec<bool> = addresses.iter().map(|net| net.addr().is_ipv6()).collect();
        assert!(families.contains(&false) && families.contains(&true), "{addresses:?}");
        self._echoes.push(Echo::start(&container).must("start the echo"));
        self.containers.push(container);
        self.addresses.push(addresses);
        number
    }

    /// The container's addresses without prefix length.
    pub(crate) fn ips(&self, container: usize) -> Vec<IpAddr> {
        self.addresses[container].iter().map(IpNet::addr).collect()
    }

    /// One IPv4 address of a container.
    pub(crate) fn v4(&self, container: usize) -> IpAddr {
        self.ips(container).into_iter().find(IpAddr::is_ipv4).must("an IPv4 address")
    }

    /// One container reaches another by TCP and UDP, IPv4 and IPv6, each within the limit.
    #[track_caller]
    pub(crate) fn reaches(&self, from: usize, to: usize, limit: Duration) {
        for ip in self.ips(to) {
            let what = |protocol| format!("{protocol} from container {from} to {to} ({ip})");
            let udp = udp_echo(&self.containers[from], ip, b"over the mesh", limit);
            udp.must(&what("UDP"));
            let bytes: Vec<u8> = (0..20_000_u32).map(|n| (n % 251) as u8).collect();
            tcp_echo(&self.containers[from], ip, &bytes, limit).must(&what("TCP"));
        }
    }

    /// All pairs of these containers reach each other, both ways.
    #[track_caller]
    pub(crate) fn all_reach(&self, containers: &[usize], limit: Duration) {
        for &from in containers {
            for &to in containers.iter().filter(|&&to| to != from) {
                self.reaches(from, to, limit);
            }
        }
    }

    /// No datagram passes between two containers for a while.
    #[track_caller]
    pub(crate) fn is_cut_off(&self, from: usize, to: usize) {
        let answer = udp_echo(&self.containers[from], self.v4(to), b"x", Duration::from_millis(600));
        assert!(answer.is_err(), "container {from} still reaches {to}: {answer:?}");
    }

    /// Streams of datagrams between pairs of containers, IPv4 and IPv6, to be ended with
    /// [`no_gaps`].
    pub(crate) fn streams(&self, pairs: &[(usize, usize)]) -> Vec<(usize, usize, GapStream)> {
        let every = Duration::from_millis(10);
        let ways = pairs.iter().flat_map(|&(from, to)| self.ips(to).into_iter().map(move |ip| (from, to, ip)));
        let start = |(from, to, ip)| {
            let stream = GapStream::start(&self.containers[from], ip, every);
            (from, to, stream.must("start a stream"))
        };
        ways.map(start).collect()
    }

    /// Runs something while one TCP connection after the other is opened between pairs of
    /// containers, IPv4 and IPv6: none of them is without an answer for longer than was promised.
    #[track_caller]
    pub(crate) fn while_connecting<T>(&self, pairs: &[(usize, usize)], during: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        let ways = pairs.iter().flat_map(|&(from, to)| self.ips(to).into_iter().map(move |ip| (from, to, ip)));
        let (done, gaps) = thread::scope(|scope| {
            let over = &over;
            let connect = |(from, to, ip): (usize, usize, IpAddr)| {
                let container = &self.containers[from];
                scope.spawn(move || (from, to, ip, longest_without(container, ip, over)))
            };
            let threads: Vec<_> = ways.map(connect).collect();
            let done = during();
            over.store(true, Ordering::Release);
            let ended = threads.into_iter().map(|thread| thread.join().expect("no panic"));
            (done, ended.collect::<Vec<_>>())
        });
        for (from, to, ip, gap) in gaps {
            assert!(gap <= PROMISED_GAP, "no TCP from container {from} to {to} ({ip}) for {gap:?}");
        }
        done
    }

    /// `weft status -o json` of one router.
    pub(crate) fn status(&self, router: usize) -> Value {
        self.routers[router].status().must("status")
    }

    /// What a router says of a peer, by name.
    pub(crate) fn peer(&self, router: usize, name: &str) -> Option<Value> {
        let status = self.status(router);
        let peers = status.get("peers")?.as_array()?;
        peers.iter().find(|peer| peer["name"] == name).cloned()
    }

    /// Waits until what a router says of a peer satisfies a condition.
    #[track_caller]
    pub(crate) fn wait_for_peer(
        &self,
        router: usize,
        peer: usize,
        limit: Duration,
        condition: impl Fn(&Value) -> bool,
    ) {
        let name = self.routers[peer].name().to_owned();
        let held = wait_until(limit, || self.peer(router, &name).is_some_and(|peer| condition(&peer)));
        assert!(held, "{} says of {name} after {limit:?}: {}", self.routers[router].name(), self.status(router));
    }

    /// Waits until every router counts every other as established, and has a way to it.
    #[track_caller]
    pub(crate) fn wait_established(&self, limit: Duration) {
        self.wait_linked(&[], limit);
    }

    /// The same, and these pairs use sleeve directly. The limit is for all of it.
    #[track_caller]
    pub(crate) fn wait_linked(&self, direct: &[(usize, usize)], limit: Duration) {
        let end = Instant::now() + limit;
        for router in 0..self.routers.len() {
            for peer in (0..self.routers.len()).filter(|&peer| peer != router) {
                let directly = direct.contains(&(router, peer)) || direct.contains(&(peer, router));
                let left = end.saturating_duration_since(Instant::now());
                self.wait_for_peer(router, peer, left, |peer| {
                    let carrier = &peer["carrier"];
                    peer["state"] == "established" && if directly { carrier == "sleeve" } else { carrier.is_string() }
                });
            }
        }
    }

    /// How much a router's data path has dropped for a reason.
    pub(crate) fn counter_dropped(&self, router: usize, reason: &str) -> u64 {
        self.status(router)["counters"]["dropped"][reason].as_u64().unwrap_or(0)
    }

    /// A counter of a router, such as `replayed`.
    pub(crate) fn counter(&self, router: usize, name: &str) -> u64 {
        let status = self.status(router);
        status["counters"][name].as_u64().must(&format!("counter {name} in {status}"))
    }
}

/// The longest time in which no TCP connection was answered, until it is over.
fn longest_without(from: &Container, to: IpAddr, over: &AtomicBool) -> Duration {
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while !over.load(Ordering::Acquire) {
        // A connection attempt whose first packet is lost waits for a second: shorter ones follow.
        if tcp_echo(from, to, b"still there?", Duration::from_millis(400)).is_ok() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        thread::sleep(Duration::from_millis(50));
    }
    longest.max(last.elapsed())
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if thread::panicking() {
            let mut text = String::new();
            for router in &self.routers {
                let _ = writeln!(text, "--- {} ---\n{}", router.name(), router.log_tail(6000));
            }
            eprintln!("{text}");
        }
    }
}

/// Ends streams; none of them had a gap longer than was promised.
#[track_caller]
pub(crate) fn no_gaps(streams: Vec<(usize, usize, GapStream)>) -> Vec<GapReport> {
    let ended = streams.into_iter().map(|(from, to, stream)| {
        let report = stream.finish().must("end a stream");
        assert!(report.longest_gap <= PROMISED_GAP, "between containers {from} and {to}: {report:?}");
        report
    });
    ended.collect()
}

/// Tries until it works or the limit is over; then the last error.
pub(crate) fn retry<T, E: Debug>(limit: Duration, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let end = Instant::now() + limit;
    loop {
        match attempt() {
            Err(_) if Instant::now() < end => thread::sleep(Duration::from_millis(50)),
            result => return result,
        }
    }
}
