//! Names: what real resolvers are told, on every host, while containers and hosts come and go.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use weft::{
    lab::{Container, Lab, wait_until},
    netlink::NetNs,
};

use crate::{
    Case,
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE, new_lab, retry},
};

pub(crate) const CASES: &[Case] = &[
    ("names_of_containers_and_services_are_answered_on_every_host", 90, answered),
    ("a_container_that_ends_is_out_of_all_answers_within_two_seconds", 180, rounds),
    ("addresses_of_a_host_that_is_cut_off_are_left_out_and_come_back", 120, cut_off),
    ("fifty_records_fit_whatever_the_client_takes", 90, fifty),
    ("other_names_are_asked_of_the_resolvers_that_the_host_has_now", 90, forwarded),
    ("given_names_outlast_a_restart_and_those_of_a_dead_router_do_not", 120, restarted),
];

/// How long a change may take to be known on every host: the promise.
pub(crate) const PROMISED: Duration = Duration::from_secs(2);
/// Where each host's router answers names, on the host's own loopback interface.
const HERE: &str = "127.0.0.1:53";

/// What `dig` says.
pub(crate) struct Dug(String);

impl Dug {
    /// Asks the router on a host, or at another address.
    fn ask(namespace: &NetNs, args: &[&str]) -> Self {
        let server = if args.iter().any(|arg| arg.starts_with('@')) { None } else { Some("@127.0.0.1") };
        let work = || Command::new("dig").args(server).args(["+time=5", "+tries=1"]).args(args).output();
        let output = namespace.run(work).must("enter the namespace").must("run dig, which scripts/setup installs");
        Self(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[track_caller]
    fn header(&self, what: &str) -> String {
        let (_, rest) = self.0.split_once(what).must(&format!("{what:?} in {}", self.0));
        rest.chars().take_while(|c| !",;\n".contains(*c)).collect::<String>().trim().to_owned()
    }

    #[track_caller]
    pub(crate) fn code(&self) -> String {
        self.header("status: ")
    }

    #[track_caller]
    pub(crate) fn has_flag(&self, flag: &str) -> bool {
        self.header("flags: ").split_whitespace().any(|found| found == flag)
    }

    /// The data of the records in one section, in their order.
    pub(crate) fn section(&self, name: &str) -> Vec<String> {
        let lines = self.0.lines().skip_while(|line| !line.starts_with(&format!(";; {name} SECTION")));
        let records = lines.skip(1).take_while(|line| !line.is_empty());
        records.filter_map(|line| Some(line.split_whitespace().last()?.to_owned())).collect()
    }

    /// All of it.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.lines()
    }

    fn answers(&self) -> Vec<String> {
        self.section("ANSWER")
    }
}

/// The options of routers that answer names.
fn options(lab: &Lab) -> Vec<OsString> {
    let file = resolv_conf(lab);
    std::fs::write(&file, "# none\n").must("write");
    ["--dns-listen", HERE, "--dns-resolv-conf"].map(OsString::from).into_iter().chain([file.into()]).collect()
}

fn resolv_conf(lab: &Lab) -> PathBuf {
    lab.dir().join("resolv.conf")
}

pub(crate) fn mesh(hosts: usize) -> Mesh {
    let mut config = MeshConfig::star(hosts);
    let lab = new_lab(&config);
    config.args = options(&lab);
    let mesh = Mesh::start_in(lab, &config);
    mesh.wait_established(PATIENCE);
    mesh
}

impl Mesh {
    pub(crate) fn dig(&self, host: usize, args: &[&str]) -> Dug {
        Dug::ask(self.lab.host(host).namespace(), args)
    }

    pub(crate) fn attach_as(&self, host: usize, container: &Container, name: &str) -> BTreeSet<String> {
        let target = container.target();
        let target = target.to_str().must("a path in UTF-8");
        let text = retry(PATIENCE, || self.routers[host].command(["attach", target, "--name", name])).must("attach");
        text.lines().filter_map(|line| Some(line.split('/').next()?.to_owned())).collect()
    }

    /// The addresses of a name, of both families, as one host is told.
    pub(crate) fn addresses_of(&self, host: usize, name: &str) -> BTreeSet<String> {
        ["A", "AAAA"].iter().flat_map(|kind| self.dig(host, &[name, kind]).answers()).collect()
    }

    /// Waits until every one of these hosts is told these addresses, and no others; how long it took. Who asks
    /// after `limit` is told nothing else.
    #[track_caller]
    pub(crate) fn all_are_told(
        &self,
        hosts: &[usize],
        name: &str,
        expected: &BTreeSet<String>,
        limit: Duration,
    ) -> Duration {
        let start = Instant::now();
        let is_told = |host| loop {
            let asked = start.elapsed();
            let found = self.addresses_of(host, name);
            if found == *expected {
                break Ok(());
            }
            if asked > limit {
                break Err(format!("host {host} after {asked:?}: {found:?} instead of {expected:?}"));
            }
            thread::sleep(Duration::from_millis(20));
        };
        thread::scope(|scope| {
            let asking: Vec<_> = hosts.iter().map(|&host| scope.spawn(move || is_told(host))).collect();
            asking.into_iter().for_each(|host| host.join().expect("it does not panic").must("what was promised"));
        });
        start.elapsed()
    }
}

fn answered() {
    let mesh = mesh(3);
    let boxes: Vec<Container> = (0..3).map(|n| Container::new(&format!("web{n}")).must("make")).collect();
    let mut all = BTreeSet::new();
    for (host, container) in boxes.iter().enumerate() {
        all.extend(mesh.attach_as(host, container, "Web"));
    }
    assert_eq!(all.len(), 6, "{all:?}");
    mesh.all_are_told(&[0, 1, 2], "web.weft.local", &all, PROMISED);
    for host in 0..3 {
        let dug = mesh.dig(host, &["WEB.weft.LOCAL", "A"]);
        assert!(dug.has_flag("aa") && dug.has_flag("ra") && !dug.has_flag("tc"), "{}", dug.0);
        assert!(dug.0.contains(";WEB.weft.LOCAL."), "in the letters of the question: {}", dug.0);
        for (args, code, records) in [
            (["web.weft.local", "TXT"], "NOERROR", 0),
            (["none.weft.local", "A"], "NXDOMAIN", 0),
            (["none.weft.local", "AAAA"], "NXDOMAIN", 0),
            (["weft.local", "SOA"], "NOERROR", 1),
            (["elsewhere.example", "A"], "SERVFAIL", 0),
        ] {
            let dug = mesh.dig(host, &args);
            assert_eq!((dug.code().as_str(), dug.answers().len()), (code, records), "{args:?}: {}", dug.0);
            let soa = dug.0.contains("AUTHORITY: 1");
            assert_eq!(soa, records == 0 && code != "SERVFAIL", "{args:?}: {}", dug.0);
        }
        for address in &all {
            assert_eq!(mesh.dig(host, &["-x", address]).answers(), ["web.weft.local."], "{address}");
        }
    }
    // The first address is another one each time.
    let first: BTreeSet<String> =
        (0..3).filter_map(|_| mesh.dig(1, &["web.weft.local", "A"]).answers().first().cloned()).collect();
    assert_eq!(first.len(), 3, "{first:?}");
    // One without IPv6 is told so, not that there is no such name.
    mesh.routers[2].command(["dns", "add", "db.outside", "192.0.2.7"]).must("add");
    let only = BTreeSet::from(["192.0.2.7".to_owned()]);
    mesh.all_are_told(&[0, 1, 2], "db.outside.weft.local", &only, PROMISED);
    for (name, kind) in [("db.outside.weft.local", "AAAA"), ("outside.weft.local", "A")] {
        let dug = mesh.dig(0, &[name, kind]);
        assert_eq!((dug.code().as_str(), dug.answers().len()), ("NOERROR", 0), "{}", dug.0);
    }
    // A container asks the address that its host has in the mesh, which it got after the router began to listen.
    let text = mesh.routers[0].command(["dns", "lookup", "db.outside"]).must("look up");
    assert_eq!(text, "192.0.2.7\n");
    let list = mesh.routers[1].command(["dns", "list"]).must("list");
    assert!(list.contains("db.outside.weft.local") && list.contains("host3"), "{list}");
    assert_eq!(mesh.routers[1].cli(["dns", "lookup", "nobody"]).must("run").status.code(), Some(1));
    mesh.routers[2].command(["dns", "remove", "db.outside.weft.local."]).must("remove");
    mesh.all_are_told(&[0, 1, 2], "db.outside.weft.local", &BTreeSet::new(), PROMISED);
    let target = boxes[0].target();
    let target = target.to_str().must("a path in UTF-8");
    let released = mesh.routers[0].command(["detach", target]).must("detach");
    for line in released.lines() {
        assert!(all.remove(line.split('/').next().unwrap_or_default()), "{line}");
    }
    mesh.all_are_told(&[0, 1, 2], "web.weft.local", &all, PROMISED);
}

/// Six containers with one name on three hosts, of which one after the other ends without a word and
/// is started again.
fn rounds() {
    const ROUNDS: usize = 12;
    let mesh = mesh(3);
    let name = "shop.weft.local";
    let start = |round: usize, host: usize| {
        let container = Container::new(&format!("shop{round}")).must("make");
        let addresses = mesh.attach_as(host, &container, "shop");
        (host, container, addresses)
    };
    let mut running: Vec<_> = (0..6).map(|number| start(number, number % 3)).collect();
    let expected = |running: &[(usize, Container, BTreeSet<String>)]| -> BTreeSet<String> {
        running.iter().flat_map(|(.., addresses)| addresses.iter().cloned()).collect()
    };
    let known = |running: &[(usize, Container, BTreeSet<String>)]| {
        let took = mesh.all_are_told(&[0, 1, 2], name, &expected(running), PROMISED);
        // And so it stays.
        mesh.all_are_told(&[0, 1, 2], name, &expected(running), Duration::ZERO);
        took
    };
    known(&running);
    let mut slowest = Duration::ZERO;
    for round in 0..ROUNDS {
        let (host, container, _) = running.remove(round * 5 % running.len());
        // The last that holds its namespace: it ends as that of a container whose processes were killed.
        drop(container);
        slowest = slowest.max(known(&running));
        running.push(start(6 + round, host));
        slowest = slowest.max(known(&running));
    }
    eprintln!("the slowest of {ROUNDS} ends and starts was known on every host after {slowest:?}");
}

fn cut_off() {
    let mesh = mesh(3);
    let boxes: Vec<Container> = (0..3).map(|n| Container::new(&format!("web{n}")).must("make")).collect();
    let each: Vec<_> = boxes.iter().enumerate().map(|(host, one)| mesh.attach_as(host, one, "web")).collect();
    let of = |hosts: &[usize]| -> BTreeSet<String> { hosts.iter().flat_map(|&host| each[host].clone()).collect() };
    mesh.all_are_told(&[0, 1, 2], "web.weft.local", &of(&[0, 1, 2]), PROMISED);
    for other in [0, 1] {
        mesh.lab.wire().cut(other, 2);
    }
    for router in [0, 1] {
        mesh.wait_for_peer(router, 2, PATIENCE, |peer| peer["state"] != "established");
        // `status` may know of the lost link a moment before the router's tables do.
        mesh.all_are_told(&[router], "web.weft.local", &of(&[0, 1]), Duration::from_secs(1));
    }
    mesh.all_are_told(&[2], "web.weft.local", &of(&[2]), PATIENCE);
    // What ends meanwhile is not told when the host is back.
    let target = boxes[2].target();
    mesh.routers[2].command(["detach", target.to_str().must("a path in UTF-8")]).must("detach");
    mesh.routers[2].command(["dns", "add", "late", "192.0.2.9"]).must("add");
    mesh.lab.wire().heal_all();
    let gone = of(&[2]);
    let late = BTreeSet::from(["192.0.2.9".to_owned()]);
    let back = || {
        let told = mesh.addresses_of(0, "web.weft.local");
        assert!(told.is_disjoint(&gone), "{told:?} has addresses of before");
        mesh.addresses_of(0, "late.weft.local") == late
    };
    assert!(wait_until(PATIENCE, back), "{}", mesh.status(0));
    mesh.all_are_told(&[1, 2], "web.weft.local", &of(&[0, 1]), PATIENCE);
}

fn fifty() {
    let mesh = mesh(2);
    let v4: Vec<String> = (1..=50).map(|last| format!("192.0.2.{last}")).collect();
    let v6: Vec<String> = (1..=50).map(|last| format!("2001:db8::{last:x}")).collect();
    for (router, addresses) in [(0, &v4[..25]), (1, &v4[25..]), (0, &v6[..25]), (1, &v6[25..])] {
        let add = ["dns", "add", "many"].map(str::to_owned).into_iter().chain(addresses.iter().cloned());
        mesh.routers[router].command(add).must("add");
    }
    let all: BTreeSet<String> = v4.iter().chain(&v6).cloned().collect();
    for host in 0..2 {
        // `dig` asks again over TCP by itself when an answer was cut.
        mesh.all_are_told(&[host], "many.weft.local", &all, PROMISED);
        for (kind, all, sure) in [("A", &v4, 50), ("AAAA", &v6, 40)] {
            let whole = |dug: &Dug| dug.answers().into_iter().collect::<BTreeSet<_>>() == all.iter().cloned().collect();
            let name = "many.weft.local";
            let dug = mesh.dig(host, &[name, kind, "+noedns", "+ignore"]);
            assert!(dug.has_flag("tc") && dug.0.contains("MSG SIZE"), "{}", dug.0);
            let size: usize = dug.header("rcvd: ").parse().must("a size");
            let found = dug.answers().len();
            assert!(size <= 512 && size > 480 && found >= 15, "{found} records in {size} bytes: as many as fit");
            let dug = mesh.dig(host, &[name, kind, "+bufsize=4096", "+ignore"]);
            assert!(dug.answers().len() >= sure, "{kind}: {}", dug.answers().len());
            assert!(whole(&dug) || dug.has_flag("tc"), "{}", dug.0);
            let dug = mesh.dig(host, &[name, kind, "+tcp"]);
            assert!(whole(&dug) && !dug.has_flag("tc"), "{}", dug.0);
        }
    }
}

/// For how many seconds it may be remembered that there is nothing, by the test's own resolvers.
const NEGATIVE: u8 = 2;

/// A resolver on a host: it answers every question for addresses with so many of them, over UDP with as many as
/// fit, and counts. It has none of IPv6, no name that begins with `no`, and fails at those that begin with `fail`.
struct Upstream {
    asked: Arc<AtomicUsize>,
}

impl Upstream {
    fn start(mesh: &Mesh, host: usize, address: &str, last: u8, count: u8) -> Self {
        let address: SocketAddr = address.parse().must("an address");
        let bind = || (UdpSocket::bind(address).must("bind"), TcpListener::bind(address).must("bind"));
        let (udp, tcp) = mesh.lab.host(host).namespace().run(bind).must("enter the namespace");
        let asked = Arc::new(AtomicUsize::new(0));
        let answer = move |query: &[u8], most: usize| -> Vec<u8> {
            let question = 12 + query[12..].iter().position(|byte| *byte == 0).must("the end of the name") + 5;
            let (name, kind) = (&query[13..question - 4], query[question - 3]);
            let [none, fails] = [&b"no"[..], b"fail"].map(|start| name.starts_with(start));
            if none || fails || kind == 28 {
                let code = 0x80 | if fails { 2 } else { 3 * u8::from(none) };
                let head = [&query[..2], &[0x81, code, 0, 1, 0, 0, 0, 1, 0, 0], &query[12..question]].concat();
                // The zone's SOA: of the root, for 5 minutes, but no more than 2 s that there is nothing.
                let soa = [&[0, 0, 6, 0, 1, 0, 0, 1, 44, 0, 22, 0, 0][..], &[0; 16], &[0, 0, 0, NEGATIVE]].concat();
                return [head, soa].concat();
            }
            let fit = ((most - question) / 16).min(count.into()) as u8;
            let truncated = if fit < count { 2 } else { 0 };
            let mut out =
                [&query[..2], &[0x81 | truncated, 0x80, 0, 1, 0, fit, 0, 0, 0, 0], &query[12..question]].concat();
            for number in 0..fit {
                out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, last, number]);
            }
            out
        };
        let count = Arc::clone(&asked);
        // Both end with the process: nothing else tells them to.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                count.fetch_add(1, Ordering::SeqCst);
                // Whoever sent an extension record takes more.
                let most = if buffer[11] > 0 { 1232 } else { 512 };
                let _ = udp.send_to(&answer(&buffer[..length], most), from);
            }
        });
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let mut length = [0; 2];
                let mut query = vec![0; 4096];
                if stream.read_exact(&mut length).is_err() {
                    continue;
                }
                query.truncate(u16::from_be_bytes(length).into());
                if stream.read_exact(&mut query).is_err() {
                    continue;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let answer = answer(&query, 65_535);
                let length = (answer.len() as u16).to_be_bytes();
                let _ = stream.write_all(&[&length[..], &answer].concat());
            }
        });
        Self { asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn forwarded() {
    let mesh = mesh(1);
    let few = Upstream::start(&mesh, 0, "127.0.0.2:53", 1, 3);
    let file = resolv_conf(&mesh.lab);
    let ask = |args: &[&str]| mesh.dig(0, args);
    let expected: Vec<String> = (0..3).map(|last| Ipv4Addr::new(198, 51, 1, last).to_string()).collect();
    // Ourselves, then an address where nobody is, then one where nothing listens.
    std::fs::write(&file, "nameserver 127.0.0.1\nnameserver 10.99.7.7\nnameserver 127.0.0.9\nnameserver 127.0.0.2\n")
        .must("write");
    let found = || ask(&["example.com", "A"]).answers() == expected;
    assert!(wait_until(Duration::from_secs(8), found), "{}", ask(&["example.com", "A"]).0);
    for number in 0..5 {
        let dug = ask(&[&format!("n{number}.example.com"), "A"]);
        assert_eq!(dug.answers(), expected);
        let took: u64 = dug.header("Query time: ").trim_end_matches(" msec").parse().must("a time");
        assert!(took < 450, "the silent one is not waited for again: {took} ms");
    }
    assert_eq!(ask(&["tcp.example.com", "A", "+tcp"]).answers(), expected);
    assert_eq!(ask(&["plain.example.com", "A", "+noedns"]).answers(), expected);
    assert!(few.asked() >= 8);
    remembered(&mesh, &few);
    // The file is another one now, and so are the answers: 60 of them, whole over TCP.
    let many = Upstream::start(&mesh, 0, "127.0.0.3:53", 2, 60);
    assert_eq!(ask(&["example.com", "A"]).answers(), expected, "remembered");
    std::fs::write(&file, "nameserver 127.0.0.3\n").must("write");
    let asked = few.asked();
    assert!(wait_until(Duration::from_secs(5), || ask(&["example.com", "A"]).answers().len() == 60));
    assert_eq!(few.asked(), asked, "what was remembered is forgotten with who said it");
    // What is remembered is cut to what the client takes; what came cut is not, and asked for over TCP.
    let dug = ask(&["example.com", "A", "+noedns", "+ignore"]);
    assert!(dug.has_flag("tc") && (25..=30).contains(&dug.answers().len()), "{}", dug.0);
    let before = many.asked();
    assert_eq!((ask(&["example.com", "A", "+noedns"]).answers().len(), many.asked()), (60, before));
    let dug = ask(&["long.example.com", "A", "+noedns"]);
    assert_eq!((dug.answers().len(), many.asked()), (60, before + 2), "over UDP first, then over TCP: {}", dug.0);
    // That a resolver fails is no answer to remember.
    let before = many.asked();
    assert_eq!([0; 2].map(|_| ask(&["fail.example.com", "A"]).code()), ["SERVFAIL"; 2]);
    assert!(many.asked() >= before + 2, "{} times", many.asked() - before);
    // The mesh's own names are never asked for elsewhere.
    let before = (few.asked(), many.asked());
    assert_eq!(ask(&["none.weft.local", "A"]).code(), "NXDOMAIN");
    assert_eq!(ask(&["-x", "10.32.255.1"]).code(), "NXDOMAIN");
    assert_eq!((few.asked(), many.asked()), before);
    assert_eq!(ask(&["-x", "192.0.2.1"]).code(), "NOERROR");
    assert_eq!(std::fs::read_to_string(&file).must("read"), "nameserver 127.0.0.3\n", "it is only read");
}

/// What there is not is asked for once, and again when it is too old; so is what there is.
fn remembered(mesh: &Mesh, upstream: &Upstream) {
    for (name, kind, code) in [
        ("none.example.com", "A", "NXDOMAIN"),
        ("six.example.com", "AAAA", "NOERROR"),
        ("six.example.com", "A", "NOERROR"),
    ] {
        let (start, before) = (Instant::now(), upstream.asked());
        // Whatever else is asked with it.
        for more in ["+edns", "+noedns", "+nocookie", "+tcp", "+bufsize=4096"] {
            let dug = mesh.dig(0, &[name, kind, more]);
            assert_eq!(
                (dug.code().as_str(), dug.answers().len()),
                (code, if kind == "A" && code == "NOERROR" { 3 } else { 0 })
            );
            assert_eq!(dug.0.contains("AUTHORITY: 1"), dug.answers().is_empty(), "{}", dug.0);
        }
        let asked = upstream.asked() - before;
        let late = start.elapsed() >= Duration::from_secs(NEGATIVE.into());
        assert!(asked == 1 || late, "{name} {kind}: asked {asked} times");
    }
    let again = || {
        let before = upstream.asked();
        let dug = mesh.dig(0, &["none.example.com", "A"]);
        let soa = dug.0.lines().find(|line| line.contains("\tSOA\t")).must(&dug.0).to_owned();
        let ttl: u32 = soa.split_whitespace().nth(1).and_then(|ttl| ttl.parse().ok()).must(&soa);
        let asked = upstream.asked() > before;
        // Told anew by the resolver it has all of its time, remembered less each time.
        assert!(if asked { ttl == 300 } else { (1..=NEGATIVE.into()).contains(&ttl) }, "{asked}: {soa}");
        asked
    };
    assert!(wait_until(Duration::from_secs(u64::from(NEGATIVE) + 2), again), "it is asked again");
}

fn restarted() {
    let mut mesh = mesh(2);
    let container = Container::new("web").must("make");
    let addresses = mesh.attach_as(1, &container, "web");
    mesh.routers[1].command(["dns", "add", "db", "192.0.2.7"]).must("add");
    let db = BTreeSet::from(["192.0.2.7".to_owned()]);
    mesh.all_are_told(&[0, 1], "web.weft.local", &addresses, PROMISED);
    mesh.all_are_told(&[0, 1], "db.weft.local", &db, PROMISED);
    mesh.routers[1].kill().must("kill");
    mesh.wait_for_peer(0, 1, PATIENCE, |peer| peer["state"] != "established");
    for name in ["web.weft.local", "db.weft.local"] {
        let left_out = || mesh.dig(0, &[name, "A"]).code() == "NXDOMAIN";
        assert!(wait_until(Duration::from_secs(1), left_out), "{name} is of a host that is away");
    }
    mesh.routers[1].restart().must("start again");
    mesh.wait_established(PATIENCE);
    mesh.all_are_told(&[0, 1], "web.weft.local", &addresses, PATIENCE);
    mesh.all_are_told(&[0, 1], "db.weft.local", &db, PROMISED);
    // A container asks at the address that its host has in the mesh: the router listens there before
    // the host has it.
    let mut args = mesh.routers[0].args().to_vec();
    args.extend(["--dns-listen", "10.44.0.53:53", "--dns-listen", "[fd00:77::53]:53"].map(OsString::from));
    mesh.routers[0].end();
    mesh.routers[0].set_args(args);
    mesh.routers[0].restart().must("start with two more addresses");
    mesh.wait_established(PATIENCE);
    retry(PATIENCE, || mesh.routers[0].command(["expose", "10.44.0.53", "fd00:77::53"])).must("expose");
    for server in ["@10.44.0.53", "@fd00:77::53"] {
        let told = || Dug::ask(mesh.containers[0].namespace(), &[server, "web.weft.local", "A"]).answers();
        let v4: Vec<String> = addresses
            .iter()
            .filter(|address| address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()))
            .cloned()
            .collect();
        assert!(wait_until(PATIENCE, || told() == v4), "{server}: {:?}", told());
    }
}
