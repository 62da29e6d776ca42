//! Docker's own networks, by the router's drivers: one network of two engines.
//!
//! ```text
//!   engine 1 ─ "one", "fixed" ─ eth ─┐                        ┌─ eth ─ "two", "late" ─ engine 2
//!      └── weft.sock ─────────── router 1 ── lab's wire ── router 2 ── weft.sock ──┘
//! ```

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use ipnet::IpNet;
use weft::lab::wait_until;

use crate::{Must as _, MustNotPanic as _, PATIENCE, World, advertised::never_taken, busybox, engine, on_two_hosts};

const CREATE: [&str; 9] =
    ["network", "create", "-d", "weft", "--ipam-driver", "weft", "--ipv6", "--subnet", "10.32.0.0/12"];
const V6: [&str; 3] = ["--subnet", "fd00:32::/64", "mesh"];
/// Longest time until what was left over is removed: two looks of the router, and some.
const CLEANED: Duration = Duration::from_secs(30);

pub(crate) fn containers_of_two_engines_share_a_docker_network() {
    on_two_hosts(act);
}

impl World {
    /// A `docker` command that must succeed.
    #[track_caller]
    pub(crate) fn docker(&self, host: usize, args: &[&str]) -> String {
        self.engines[host].docker(args).must(&args.join(" "))
    }

    /// One that must fail; what it said.
    #[track_caller]
    pub(crate) fn refuses(&self, host: usize, args: &[&str]) -> String {
        match self.engines[host].docker(args) {
            Ok(said) => panic!("{args:?} succeeded: {said}"),
            Err(error) => error.to_string(),
        }
    }

    /// The addresses of a container in the network, as Docker tells them.
    #[track_caller]
    fn inspect(&self, host: usize, name: &str) -> Vec<IpNet> {
        self.inspect_in(host, name, "mesh")
    }

    /// Those in a network of that name.
    #[track_caller]
    pub(crate) fn inspect_in(&self, host: usize, name: &str, network: &str) -> Vec<IpNet> {
        let format = format!(
            "{{{{with .NetworkSettings.Networks.{network}}}}}{{{{.IPAddress}}}}/{{{{.IPPrefixLen}}}} \
             {{{{.GlobalIPv6Address}}}}/{{{{.GlobalIPv6PrefixLen}}}}{{{{end}}}}"
        );
        let said = self.docker(host, &["inspect", "-f", &format, name]);
        said.split_whitespace().map(|text| text.parse().must(text)).collect()
    }

    /// Interfaces of a host that Docker's containers were given.
    pub(crate) fn ports(&self, host: usize) -> Vec<String> {
        let run = || Command::new("ip").args(["-o", "link"]).env("PATH", busybox::PATH).output();
        let output = self.lab.host(host).namespace().run(run).must("enter the host").must("list interfaces");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().filter(|line| line.contains("weftd-") || line.contains("weftc-")).map(str::to_owned).collect()
    }

    /// Nothing that was given is used by nobody, or the other way round.
    #[track_caller]
    pub(crate) fn clean(&self, host: usize) {
        self.routers[host].command(["ipam", "check"]).must("ipam check");
    }

    /// Whether nothing of Docker's containers is left.
    pub(crate) fn empty(&self, host: usize) -> bool {
        self.ports(host).is_empty() && self.json(host, "ipam")["used"] == 0
    }
}

fn act(mut world: World) {
    world.wait_until_established();
    bad_networks(&world);
    for host in [0, 1] {
        world.docker(host, &[&CREATE[..], &V6[..]].concat());
    }
    let said = world.refuses(0, &["network", "create", "-d", "weft", "--ipam-driver", "weft", "other"]);
    let id = world.docker(0, &["network", "ls", "-q", "-f", "name=mesh"]);
    assert!(said.contains(&id) && said.contains("docker network rm"), "{said}");

    let fixed = ["--network", "mesh", "--network-alias", "pinned", "--ip", "10.32.77.7", "--ip6", "fd00:32::7777"];
    let door = ["--network", "mesh", "-p", "8080:80", "--hostname", "frontdoor"];
    world.engines[0].run("one", &door).must("run");
    world.engines[0].run("fixed", &fixed).must("run");
    // It is stopped below, and ends by no signal but the last.
    let stubborn = ["--network", "mesh", "--restart", "always", "--stop-timeout", "1"];
    world.engines[1].run("two", &stubborn).must("run");
    let (one, two) = (world.inspect(0, "one"), world.inspect(1, "two"));
    let listed: Vec<IpNet> = world.attached(0).into_iter().flat_map(|(_, addresses)| addresses).collect();
    assert!(listed.len() == 4 && one.iter().all(|net| listed.contains(net)), "{}", world.json(0, "ps"));
    assert_eq!(world.inspect(0, "fixed"), ["10.32.77.7/12", "fd00:32::7777/64"].map(|text| text.parse().must(text)));
    world.lab.wire().start_capture(16 << 20);
    world.reaches((0, "one"), &two);
    world.reaches((1, "two"), &world.inspect(0, "fixed"));
    sealed(&world, &one);
    names(&world, &one, &two);
    shape(&world, &one);
    bad_addresses(&world, &fixed);
    connect(&world, &one);
    never_taken(&mut world);
    for host in [0, 1] {
        world.clean(host);
    }
    killed_router(&mut world, &two);
    restarted(&mut world, &one);
    removed_meanwhile(&mut world, &one);
    removal(&world);
    internal(&world);
}

/// What Docker shows to whoever asks for what cannot be; nothing is made.
fn bad_networks(world: &World) {
    let create = |more: &[&str]| {
        let said = world.refuses(0, &[&["network", "create", "-d", "weft"], more, &["bad"]].concat());
        assert_eq!(world.docker(0, &["network", "ls", "-q", "-f", "driver=weft"]), "", "{said}");
        said
    };
    for (more, word) in [
        (&["--ipam-driver", "weft", "-o", "foo=bar"][..], "no option `foo`"),
        (&["--ipam-driver", "weft", "--ipam-opt", "speed=high"], "no option `speed`"),
        (&["--ipam-driver", "weft", "--subnet", "10.99.0.0/16"], "10.99.0.0/16: is not inside the mesh's 10.32.0.0/12"),
        (&["--ipam-driver", "weft", "--subnet", "10.32.0.0/12", "--gateway", "10.32.0.1"], "leave --gateway out"),
        (&["--subnet", "10.32.5.0/24"], "--ipam-driver weft"),
        (&[], "--ipam-driver weft"),
    ] {
        let said = create(more);
        assert!(said.contains(word), "{more:?}: {said}");
    }
}

/// Of what they fetched nothing was to be read on the way, and nothing of who did.
fn sealed(world: &World, one: &[IpNet]) {
    let (frames, lost) = world.lab.wire().take_capture();
    let bytes: usize = frames.iter().map(|captured| captured.frame.len()).sum();
    assert!(lost == 0 && bytes > 2 * crate::data().len(), "{bytes} bytes, and {lost} frames more");
    let data = crate::data();
    let addresses = one.iter().map(|net| match net.addr() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    });
    // Four bytes may be there by chance, but hardly behind the first of a MAC address, as they are in one.
    let pair = |octets: Vec<u8>| if octets.len() == 4 { [&[0x02, 0x77][..], &octets].concat() } else { octets };
    for secret in addresses.map(pair).chain([data[100_000..100_032].to_vec()]) {
        let shows = |frame: &[u8]| frame.windows(secret.len()).any(|part| part == secret);
        assert!(!frames.iter().any(|captured| shows(&captured.frame)), "{secret:02x?} is to be read");
    }
}

/// Containers are known by their names on all hosts, also to each other.
fn names(world: &World, one: &[IpNet], two: &[IpNet]) {
    world.named("one", one);
    world.named("two.weft.local", two);
    world.named("pinned", &world.inspect(0, "fixed"));
    world.named("frontdoor", one);
    // The port that it exposes, at the addresses that it has in the mesh.
    let text = world.routers[1].command(["dns", "list", "-o", "json"]).must("list");
    let list: serde_json::Value = serde_json::from_str(&text).must("JSON");
    let entry = list["names"].as_array().into_iter().flatten().find(|entry| entry["name"] == "one.weft.local");
    let service = &entry.must("one").clone()["services"][0];
    assert_eq!((&service["protocol"], &service["port"]), (&"tcp".into(), &80.into()), "{text}");
    assert_eq!(service["addresses"].as_array().map(Vec::len), Some(one.len()), "{text}");
    world.docker(0, &["rename", "fixed", "riveted"]);
    world.named("riveted", &world.inspect(0, "riveted"));
    world.named("fixed", &[]);
    world.docker(0, &["rename", "riveted", "fixed"]);
    let resolver = crate::RESOLVERS[0];
    world.routers[0].command(["expose", resolver]).must("expose");
    let dns = ["--network", "mesh", "--dns", resolver, "--dns-search", "weft.local"];
    world.engines[0].run("asks", &dns).must("run");
    let found = || world.engines[0].exec("asks", &["ping", "-c", "1", "-W", "1", "two"]);
    assert!(wait_until(PATIENCE, || found().is_ok()), "{:?}", found());
    world.docker(0, &["rm", "-f", "asks"]);
    world.named("asks", &[]);
    world.routers[0].command(["hide"]).must("hide");
}

/// What a container has, and what Docker says of the network.
fn shape(world: &World, one: &[IpNet]) {
    let mac = world.docker(0, &["inspect", "-f", "{{.NetworkSettings.Networks.mesh.MacAddress}}", "one"]);
    let IpAddr::V4(v4) = one[0].addr() else { panic!("{one:?}") };
    let [a, b, c, d] = v4.octets();
    assert_eq!(mac, format!("02:77:{a:02x}:{b:02x}:{c:02x}:{d:02x}"), "as of an attached container");
    let mtu = world.json(0, "status")["mtu"].to_string();
    let links = world.engines[0].exec("one", &["ip", "link"]).must("look inside");
    assert!(links.contains(&format!("mtu {mtu}")), "{links}");
    // Another container cannot make itself its router, on the interface that has the mesh's address.
    let all = world.engines[0].exec("one", &["ip", "-o", "address"]).must("look inside");
    let line = all.lines().find(|line| line.contains(&v4.to_string())).must(&all);
    let setting = format!("/proc/sys/net/ipv6/conf/{}/accept_ra", line.split_whitespace().nth(1).must(line));
    let deaf = || world.engines[0].exec("one", &["cat", &setting]).is_ok_and(|value| value.trim() == "0");
    assert!(wait_until(PATIENCE, deaf), "{setting}: {:?}", world.engines[0].exec("one", &["cat", &setting]));
    let routes = world.engines[0].exec("one", &["ip", "route"]).must("look inside");
    assert!(routes.contains("default via") && routes.contains("224.0.0.0/4"), "{routes}");
    let subnets = world
        .docker(0, &["network", "inspect", "-f", "{{range .IPAM.Config}}{{.Subnet}},{{.Gateway}};{{end}}", "mesh"]);
    assert_eq!(subnets, "10.32.0.0/12,;fd00:32::/64,;");
    // A published port is Docker's: on the host, by its own bridge.
    let address = SocketAddr::new(world.lab.host(0).v4().into(), 8080);
    let fetch = || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /data HTTP/1.0\r\n\r\n")?;
        let mut got = Vec::new();
        stream.read_to_end(&mut got).map(|_| got)
    };
    let got = world.lab.host(0).namespace().run(fetch).must("enter the host").must("fetch");
    assert!(got.ends_with(&crate::data()), "{} bytes", got.len());
}

fn bad_addresses(world: &World, fixed: &[&str]) {
    let run = |host: usize, more: &[&str]| {
        let said = world.refuses(host, &[&["run", "-d", "--name", "bad"], more, &[engine::IMAGE, "sh"]].concat());
        world.docker(host, &["rm", "bad"]);
        said
    };
    let said = run(0, fixed);
    assert!(said.contains("10.32.77.7/12 is in use by the endpoint"), "{said}");
    let said = run(1, fixed);
    assert!(said.contains("10.32.77.7"), "{said}");
    let said = run(0, &["--network", "mesh", "--ip", "10.32.0.0"]);
    assert!(said.contains("10.32.0.0 is the network itself"), "{said}");
    let said = run(0, &["--network", "mesh", "--ip", "10.99.0.1"]);
    assert!(said.contains("10.99.0.1"), "{said}");
    assert_eq!(world.inspect(0, "fixed").len(), 2);
}

/// A container that runs is connected, talks, and is disconnected.
fn connect(world: &World, one: &[IpNet]) {
    world.engines[1].run("late", &[]).must("run");
    world.docker(1, &["network", "connect", "mesh", "late"]);
    world.reaches((1, "late"), one);
    world.reaches((0, "one"), &world.inspect(1, "late"));
    assert_eq!(world.ports(1).len(), 2);
    let said = world.refuses(1, &["network", "rm", "mesh"]);
    assert!(said.contains("active endpoints"), "{said}");
    world.docker(1, &["network", "disconnect", "mesh", "late"]);
    assert_eq!(world.ports(1).len(), 1);
    world.docker(1, &["rm", "-f", "late"]);
}

/// The containers talk on without a router, or soon after it is back, and new ones start.
fn killed_router(world: &mut World, two: &[IpNet]) {
    world.routers[0].kill().must("kill");
    world.routers[0].restart().must("restart");
    world.reaches((0, "one"), two);
    world.engines[0].run("three", &["--network", "mesh"]).must("run");
    let three = world.inspect(0, "three");
    world.reaches((1, "two"), &three);
    world.docker(0, &["rm", "-f", "three"]);
    world.clean(0);
}

/// Both daemons of a host are restarted as their services do it.
fn restarted(world: &mut World, one: &[IpNet]) {
    assert!(world.routers[1].end(), "it ends when it is asked to");
    world.routers[1].restart().must("restart");
    world.wait_until_established();
    world.reaches((1, "two"), one);
    world.engines[1].restart().must("restart the engine");
    let two = || world.engines[1].exec("two", &["ip", "address"]);
    assert!(wait_until(PATIENCE, || two().is_ok()), "{:?}", two());
    world.reaches((1, "two"), one);
    let addresses = world.inspect(1, "two");
    world.reaches((0, "one"), &addresses);
    world.named("two", &addresses);
    assert!(wait_until(CLEANED, || world.ports(1).len() == 1), "{:?}", world.ports(1));
    world.clean(1);
}

/// Docker removes a container while the router is away, and forgets it: so does the router when it is back.
/// Meanwhile the other engine crashes, and its container comes back by itself.
fn removed_meanwhile(world: &mut World, one: &[IpNet]) {
    world.routers[0].kill().must("kill");
    let World { engines, routers, .. } = &mut *world;
    let (first, second) = engines.split_at_mut(1);
    thread::scope(|scope| {
        // Longer than the engine tries to reach the router for two of its calls; it makes more, to the next.
        let gone = scope.spawn(|| {
            let removed = first[0].patient(&["rm", "-f", "fixed"]);
            removed.must("remove")
        });
        second[0].crash().must("restart the engine");
        let log = || first[0].log().contains("error deleting endpoint");
        assert!(wait_until(Duration::from_secs(40), log), "{}", first[0].log());
        routers[0].restart().must("restart");
        gone.join().must_not_panic();
    });
    let two = || world.engines[1].exec("two", &["ip", "address"]);
    assert!(wait_until(PATIENCE, || two().is_ok()), "{:?}", two());
    world.reaches((1, "two"), one);
    world.reaches((0, "one"), &world.inspect(1, "two"));
    assert!(wait_until(CLEANED, || world.ports(0).len() == 1), "{:?}", world.ports(0));
    let freed = || world.json(0, "ipam")["used"] == 2;
    assert!(wait_until(CLEANED, freed), "{}", world.json(0, "ipam"));
    for host in [0, 1] {
        world.clean(host);
    }
}

fn removal(world: &World) {
    for (host, name) in [(0, "one"), (1, "two")] {
        world.docker(host, &["rm", "-f", name]);
        world.named(name, &[]);
        world.docker(host, &["network", "rm", "mesh"]);
        assert!(world.empty(host), "{:?} {}", world.ports(host), world.json(host, "ipam"));
        world.clean(host);
    }
}

/// Fifty containers that start at the same moment: each has an address of its own and reaches one far away.
pub(crate) fn fifty_containers_start_at_once() {
    on_two_hosts(fifty);
}

fn fifty(world: World) {
    world.wait_until_established();
    for host in [0, 1] {
        world.docker(host, &[&CREATE[..], &V6[..]].concat());
        world.engines[host].run("first", &["--network", "mesh"]).must("run");
    }
    let first = [world.inspect(0, "first"), world.inspect(1, "first")];
    thread::scope(|scope| {
        for number in 0..50 {
            let (world, far) = (&world, &first[1 - number % 2]);
            scope.spawn(move || {
                let (host, name) = (number % 2, format!("box{number}"));
                let more = ["run", "-d", "--name", &name, "--network", "mesh", engine::IMAGE, "sleep", "600"];
                world.engines[host].patient(&more).must("run");
                let ping = |to: &IpNet| {
                    world.engines[host].exec(&name, &["ping", "-c", "1", "-W", "1", &to.addr().to_string()])
                };
                for to in far {
                    assert!(wait_until(PATIENCE, || ping(to).is_ok()), "{name} to {to}: {:?}", ping(to));
                }
            });
        }
    });
    let mut given: Vec<IpNet> = first.concat();
    given.extend((0..50).flat_map(|number| world.inspect(number % 2, &format!("box{number}"))));
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len(), 2 * 52, "each has its own: {given:?}");
    for host in [0, 1] {
        world.clean(host);
        let all = world.docker(host, &["ps", "-q"]);
        world.engines[host]
            .patient(&[&["rm", "-f"], &all.split_whitespace().collect::<Vec<_>>()[..]].concat())
            .must("rm");
        world.docker(host, &["network", "rm", "mesh"]);
        assert!(world.empty(host), "{:?} {}", world.ports(host), world.json(host, "ipam"));
        world.clean(host);
    }
    world.named("box7", &[]);
}

/// Of an internal network there is no way out; without a subnet it is the whole range.
fn internal(world: &World) {
    world.docker(0, &["network", "create", "-d", "weft", "--ipam-driver", "weft", "--internal", "mesh"]);
    world.engines[0].run("inner", &["--network", "mesh"]).must("run");
    let routes = world.engines[0].exec("inner", &["ip", "route"]).must("look inside");
    assert!(routes.contains("10.32.0.0/12") && !routes.contains("default"), "{routes}");
    world.docker(0, &["rm", "-f", "inner"]);
    world.docker(0, &["network", "rm", "mesh"]);
    assert!(world.empty(0), "{:?} {}", world.ports(0), world.json(0, "ipam"));
}
