//! Ports of a host that lead into the mesh, and ports in the mesh that lead outside.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::{Command, Output},
    time::Duration,
};

use ipnet::IpNet;
use serde_json::Value;
use weft::{
    lab::{Container, LabConfig, wait_until},
    netlink::NetNs,
};

use crate::{
    Case,
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE, new_lab},
    witness::{PORT, PROTOCOLS, Protocol, Seen, Witness, ask, seen},
};

pub(crate) const CASES: &[Case] = &[
    ("a_port_of_a_host_leads_to_containers_on_both_hosts_until_it_is_hidden", 120, exported),
    ("a_service_outside_has_a_name_and_an_address_in_the_mesh_until_it_is_hidden", 120, imported),
    ("what_leaves_the_mesh_at_a_host_goes_in_its_name_if_it_was_told_so", 90, masqueraded),
    ("what_cannot_be_a_service_is_refused_and_says_why", 60, refused),
];

const TABLE: &str = "weft-services";
/// The host that is outside: no router runs there.
const OUTSIDE: usize = 2;
/// Within this what somebody deletes is back.
const PUT_BACK: Duration = Duration::from_secs(1);
/// Within this a name is known everywhere, and a firewall that was loaded anew has been looked at.
const SOON: Duration = Duration::from_secs(2);

/// Two hosts with a router, a container each, and a host outside.
struct World {
    mesh: Mesh,
    /// The first host's own addresses in the mesh, IPv4 and IPv6.
    exposed: [IpAddr; 2],
    _witnesses: Vec<Witness>,
}

impl World {
    fn new() -> Self {
        let config = MeshConfig::star(2);
        let lab = new_lab(&MeshConfig { lab: LabConfig::hosts(3), ..config.clone() });
        let mesh = Mesh::start_in(lab, &config);
        mesh.wait_established(PATIENCE);
        let mut witnesses = vec![Witness::start(mesh.lab.host(OUTSIDE).namespace(), "outside")];
        witnesses.extend(mesh.containers.iter().map(|one| Witness::start(one.namespace(), one.label())));
        let exposed = mesh.routers[0].command(["expose"]).must("expose");
        let exposed = exposed.lines().map(|line| line.parse::<IpNet>().must(line).addr());
        Self { exposed: sorted(exposed), mesh, _witnesses: witnesses }
    }

    fn host(&self, host: usize) -> &NetNs {
        self.mesh.lab.host(host).namespace()
    }

    fn underlay(&self, host: usize) -> [IpAddr; 2] {
        let host = self.mesh.lab.host(host);
        [host.v4().into(), host.v6()]
    }

    fn container(&self, number: usize) -> [IpAddr; 2] {
        sorted(self.mesh.ips(number).into_iter())
    }

    #[track_caller]
    fn service(&self, args: &[&str]) -> String {
        self.mesh.routers[0].command([&["service"][..], args].concat()).must(&format!("{args:?}"))
    }

    #[track_caller]
    fn refuses(&self, args: &[&str], why: &str) {
        let before = self.list();
        let output = self.mesh.routers[0].cli([&["service"][..], args].concat()).must("run");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains(why), "{args:?}: {why:?} is not in {text}");
        assert_eq!(self.list(), before, "{args:?}: nothing is changed");
    }

    fn list(&self) -> Value {
        let text = self.service(&["list", "-o", "json"]);
        serde_json::from_str::<Value>(&text).must("JSON")["services"].take()
    }

    fn tool(&self, host: usize, command: &[&str]) -> Output {
        let run = || Command::new(command[0]).args(&command[1..]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output();
        self.host(host).run(run).must("enter the host").must("run it, which scripts/setup installs")
    }

    #[track_caller]
    fn must(&self, command: &[&str]) -> String {
        let output = self.tool(0, command);
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn table(&self) -> Option<String> {
        let output = self.tool(0, &["nft", "list", "table", "inet", TABLE]);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The host's own filter drops what it forwards, iptables' and another, as with Docker.
    fn drop_by_policy(&self) {
        self.must(&["iptables", "-P", "FORWARD", "DROP"]);
        self.must(&["ip6tables", "-P", "FORWARD", "DROP"]);
        self.must(&[
            "nft",
            "add table inet own; add chain inet own through { type filter hook forward priority 5; policy drop; }",
        ]);
    }

    /// How many rules of ours for services are in the host's own filter.
    fn let_through(&self) -> usize {
        let mut rules = self.must(&["iptables", "-S", "FORWARD"]) + &self.must(&["ip6tables", "-S", "FORWARD"]);
        rules += &self.must(&["nft", "list", "table", "inet", "own"]);
        [
            "-i weft -m conntrack --ctstate DNAT -j ACCEPT",
            "-o weft -m conntrack --ctstate DNAT -j ACCEPT",
            "ct status dnat",
        ]
        .iter()
        .map(|rule| rules.matches(rule).count())
        .sum()
    }

    /// Takes the table away in every way, and the router: the same still works.
    fn stays(&mut self, works: impl Fn(&Self, &str)) {
        let whole = self.table().must("the table");
        for change in [
            &["delete", "table", "inet", TABLE][..],
            &["flush", "chain", "inet", TABLE, "places"],
            &["flush", "chain", "inet", TABLE, "leaving"],
            &["flush", "ruleset"],
        ] {
            self.must(&[&["nft"][..], change].concat());
            assert!(wait_until(PUT_BACK, || self.table().as_ref() == Some(&whole)), "after {change:?}");
            works(self, &format!("after {change:?}"));
        }
        let before = self.list();
        self.mesh.routers[0].kill().must("kill");
        assert_eq!(self.table().as_ref(), Some(&whole), "it is there without the router");
        self.mesh.routers[0].restart().must("start again");
        assert_eq!((self.table().as_ref(), self.list()), (Some(&whole), before));
        self.mesh.wait_established(PATIENCE);
        works(self, "after a start");
    }
}

/// IPv4 first.
fn sorted(addresses: impl Iterator<Item = IpAddr>) -> [IpAddr; 2] {
    let mut all: Vec<IpAddr> = addresses.collect();
    all.sort();
    all.try_into().expect("one of each family")
}

fn place(ip: IpAddr, port: u16) -> String {
    SocketAddr::new(ip, port).to_string()
}

const fn text(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn testimony(by: &str, from: IpAddr) -> Seen {
    Seen { by: by.to_owned(), from }
}

#[track_caller]
fn is_silent(from: &NetNs, protocol: Protocol, to: SocketAddr) {
    let answer = ask(from, protocol, to, Duration::from_millis(400));
    assert!(answer.is_err(), "{protocol:?} to {to}: {answer:?}");
}

/// Ports of the first host by which the containers on both are reached.
const NEAR: u16 = 9000;
const FAR: u16 = 9001;
const BRIDGED: &str = "while the filter of IP sees what bridges carry";

fn exported() {
    let mut world = World::new();
    for family in 0..2 {
        for protocol in PROTOCOLS {
            let protocol = text(protocol);
            let to = |number: usize| format!("{}/{protocol}", place(world.container(number)[family], PORT));
            let said = world.service(&["export", &to(0), "--at", &NEAR.to_string()]);
            assert!(said.starts_with(&format!("{NEAR}/{protocol} -> ")), "{said}");
            // One on another host, and by one address only.
            let at = place(world.underlay(0)[family], FAR);
            let said = world.service(&["export", &to(1), "--at", &at]);
            assert_eq!(world.service(&["export", &to(1), "--at", &at]), said, "once more is fine");
        }
    }
    assert_eq!(world.list().as_array().map(Vec::len), Some(8), "{}", world.list());
    let works = |world: &World, when: &str| {
        for family in 0..2 {
            let (host, own) = (world.underlay(0)[family], world.exposed[family]);
            for protocol in PROTOCOLS {
                // From outside, from the host itself, and from a container by the host's address in the mesh.
                let itself = world.mesh.containers[0].namespace();
                let others = [
                    (world.host(OUTSIDE), host),
                    (world.host(0), host),
                    (world.host(0), own),
                    (world.mesh.containers[1].namespace(), own),
                ];
                // A bridge whose frames the filter translates gives none back to where it came from.
                for (from, to) in others.into_iter().chain((when != BRIDGED).then_some((itself, own))) {
                    let answer = seen(from, protocol, SocketAddr::new(to, NEAR));
                    assert_eq!(answer, testimony("box0", own), "{when}: {protocol:?} to {to}");
                }
                for from in [OUTSIDE, 0] {
                    let answer = seen(world.host(from), protocol, SocketAddr::new(host, FAR));
                    assert_eq!(answer, testimony("box1", own), "{when}: {protocol:?} to {host}");
                }
                is_silent(world.host(0), protocol, SocketAddr::new(own, FAR));
            }
        }
    };
    set_bridge_filter(&world, true);
    works(&world, BRIDGED);
    set_bridge_filter(&world, false);
    works(&world, "while it does not");
    world.stays(works);
    world.drop_by_policy();
    assert!(wait_until(SOON, || world.let_through() == 6), "{}", world.must(&["iptables", "-S", "FORWARD"]));
    works(&world, "while the host's filter drops what it forwards");

    let outside = world.underlay(0)[0];
    let removed = world.service(&["remove", &format!("{NEAR}/udp")]);
    assert_eq!(removed.lines().count(), 2, "both families: {removed}");
    is_silent(world.host(OUTSIDE), Protocol::Udp, SocketAddr::new(outside, NEAR));
    seen(world.host(OUTSIDE), Protocol::Tcp, SocketAddr::new(outside, NEAR));
    // Without an IPv6 address in the mesh, nothing of IPv6 can be exported any more.
    world.mesh.routers[0].command(["hide", &world.exposed[1].to_string()]).must("hide");
    let left = world.list();
    let only_v4 = left.as_array().must("a list").iter().all(|one| !one["to"].as_str().unwrap_or("[").contains('['));
    assert!(only_v4 && left.as_array().map(Vec::len) == Some(3), "{left}");
    seen(world.host(OUTSIDE), Protocol::Tcp, SocketAddr::new(outside, NEAR));
    world.mesh.routers[0].command(["hide"]).must("hide");
    assert_eq!((world.list(), world.table()), (Value::Array(Vec::new()), None));
    for port in [NEAR, FAR] {
        is_silent(world.host(OUTSIDE), Protocol::Tcp, SocketAddr::new(outside, port));
    }
    assert!(wait_until(SOON, || world.let_through() == 0), "{}", world.must(&["iptables", "-S", "FORWARD"]));
}

fn set_bridge_filter(world: &World, on: bool) {
    for kind in ["iptables", "ip6tables"] {
        let setting = format!("/proc/sys/net/bridge/bridge-nf-call-{kind}");
        let write = || fs::write(&setting, if on { "1" } else { "0" });
        world.host(0).run(write).must("enter the host").must(&setting);
    }
}

fn imported() {
    let mut world = World::new();
    // Another port than outside, so that no other way leads there.
    const AT: u16 = 5432;
    for family in 0..2 {
        for protocol in PROTOCOLS {
            let to = format!("{}/{}", place(world.underlay(OUTSIDE)[family], PORT), text(protocol));
            let said = world.service(&["import", "DB", &to, "--at", &AT.to_string()]);
            let at = place(world.exposed[family], AT);
            assert!(said.starts_with(&format!("db.weft.local {at}/")), "{said}");
        }
    }
    let both = |world: &World| world.exposed.map(|ip| ip.to_string()).join("\n") + "\n";
    let told = |world: &World| {
        let output = world.mesh.routers[1].cli(["dns", "lookup", "db"]).must("run");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(wait_until(SOON, || told(&world) == both(&world)), "{} instead of {}", told(&world), both(&world));
    let services = world.mesh.routers[1].command(["dns", "list"]).must("list");
    assert!(services.contains("5432/tcp 5432/udp"), "{services}");
    let works = |world: &World, when: &str| {
        for family in 0..2 {
            let to = SocketAddr::new(world.exposed[family], AT);
            for protocol in PROTOCOLS {
                let containers = world.mesh.containers.iter().map(Container::namespace);
                for from in containers.chain([world.host(0)]) {
                    let answer = seen(from, protocol, to);
                    assert_eq!(answer, testimony("outside", world.underlay(0)[family]), "{when}: {protocol:?} to {to}");
                }
                is_silent(world.mesh.containers[0].namespace(), protocol, SocketAddr::new(to.ip(), PORT));
            }
        }
    };
    for (on, when) in [(true, BRIDGED), (false, "while it does not")] {
        set_bridge_filter(&world, on);
        works(&world, when);
    }
    world.stays(works);
    assert!(wait_until(SOON, || told(&world) == both(&world)), "{}", told(&world));
    world.drop_by_policy();
    assert!(wait_until(SOON, || world.let_through() == 6), "{}", world.must(&["iptables", "-S", "FORWARD"]));
    works(&world, "while the host's filter drops what it forwards");

    world.mesh.routers[0].command(["hide"]).must("hide");
    assert_eq!((world.list(), world.table()), (Value::Array(Vec::new()), None));
    assert!(wait_until(SOON, || told(&world).is_empty()), "{}", told(&world));
    is_silent(world.mesh.containers[1].namespace(), Protocol::Tcp, SocketAddr::new(world.exposed[0], AT));
    // And by the end of the router, all is gone as well.
    let to = place(world.underlay(OUTSIDE)[0], PORT);
    world.mesh.routers[0].command(["expose", &world.exposed[0].to_string()]).must("expose");
    world.service(&["import", "db", &to]);
    let down = world.mesh.routers[0].command(["down"]).must("down");
    assert!(down.contains("import"), "{down}");
    assert!(world.mesh.routers[0].wait_for_exit(PATIENCE).must("exit").success());
    assert_eq!((world.table(), world.let_through()), (None, 0));
    world.mesh.routers[0].restart().must("start again");
    assert_eq!(world.list(), Value::Array(Vec::new()), "nothing of it is left");
}

fn masqueraded() {
    const TABLE: &str = "weft-masquerade";
    let mut world = World::new();
    let container = world.mesh.containers[1].namespace().try_clone().must("open it again");
    let route = |namespace: &NetNs, args: &[&str], via: IpAddr| {
        let family = if via.is_ipv4() { "-4" } else { "-6" };
        let run =
            || Command::new("ip").args([family, "route", "add"]).args(args).args(["via", &via.to_string()]).output();
        let output = namespace.run(run).must("enter").must("run ip");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    for (family, range) in [(0, "10.32.0.0/12"), (1, "fd00:77::/64")] {
        route(&container, &["default"], world.exposed[family]);
        // So that who comes in its own name is answered.
        route(world.host(OUTSIDE), &[range], world.underlay(0)[family]);
    }
    let asks = |world: &World, family: usize, protocol: Protocol| {
        seen(&container, protocol, SocketAddr::new(world.underlay(OUTSIDE)[family], PORT))
    };
    let works = |world: &World, when: &str| {
        for family in 0..2 {
            for protocol in PROTOCOLS {
                let host = world.underlay(0)[family];
                assert_eq!(asks(world, family, protocol), testimony("outside", host), "{when}: {protocol:?}");
                // Within the mesh nothing is.
                let near = SocketAddr::new(world.container(0)[family], PORT);
                assert_eq!(seen(&container, protocol, near), testimony("box0", world.container(1)[family]), "{when}");
            }
        }
    };
    let table = |world: &World| world.tool(0, &["nft", "list", "table", "inet", TABLE]).status.success();
    world.mesh.routers[0].command(["expose", "--masquerade"]).must("expose");
    works(&world, "once it was told so");
    let rules = world.tool(0, &["nft", "list", "table", "inet", TABLE]).stdout;
    let rules = String::from_utf8_lossy(&rules).into_owned();
    assert!(rules.contains("masquerade") && rules.contains("random"), "ports are drawn by lot: {rules}");
    world.mesh.routers[0].command(["expose"]).must("expose");
    works(&world, "after another `expose`");
    world.must(&["nft", "delete", "table", "inet", TABLE]);
    assert!(wait_until(PUT_BACK, || table(&world)), "it is put back");
    works(&world, "after it was deleted");
    world.mesh.routers[0].kill().must("kill");
    assert!(table(&world), "it is there without the router");
    world.mesh.routers[0].restart().must("start again");
    world.mesh.wait_established(PATIENCE);
    works(&world, "after a start");
    world.mesh.routers[0].command(["hide"]).must("hide");
    assert!(!table(&world), "it goes with the addresses");
    let back: Vec<String> = world.exposed.iter().map(ToString::to_string).collect();
    world.mesh.routers[0].command([&["expose".to_owned()][..], &back].concat()).must("expose");
    for family in 0..2 {
        for protocol in PROTOCOLS {
            let own = world.container(1)[family];
            assert_eq!(asks(&world, family, protocol), testimony("outside", own), "without it, in its own name");
        }
    }
}

fn refused() {
    let world = World::new();
    let near = place(world.container(0)[0], PORT);
    let outside = place(world.underlay(OUTSIDE)[0], PORT);
    {
        let _process = Witness::start(world.host(0), "host");
        for protocol in PROTOCOLS {
            let to = format!("{near}/{}", text(protocol));
            world.refuses(&["export", &to], "a process of this host uses it");
        }
    }
    world.service(&["export", &near]);
    world
        .refuses(&["export", &place(world.container(1)[0], PORT)], &format!("{PORT}/tcp is taken: it leads to {near}"));
    let own = place(world.exposed[0], PORT);
    world.refuses(&["import", "db", &outside, "--at", &own], &format!("{PORT}/tcp` frees it"));
    world.refuses(&["export", &outside], "is not in the mesh");
    world.refuses(&["export", &near, "--at", "192.0.2.1:9000"], "this host does not have that address");
    world.refuses(&["import", "db", &near], "is in the mesh");
    world.refuses(&["import", "db", &outside, "--at", "10.32.0.99:9000"], "does not have that address in the mesh");
    world.refuses(&["remove", "9999"], "no service at 9999/tcp");
    world.service(&["remove", &PORT.to_string()]);
    // As many as there can be, and no more; each still works.
    let many = |port: u16| world.mesh.routers[0].cli(["service", "export", &near, "--at", &port.to_string()]);
    for port in 9000..9100 {
        assert!(many(port).must("run").status.success(), "{port}");
    }
    world.refuses(&["export", &near, "--at", "9100"], "at most 100 services");
    let last = SocketAddr::new(world.underlay(0)[0], 9099);
    assert_eq!(seen(world.host(OUTSIDE), Protocol::Tcp, last), testimony("box0", world.exposed[0]));
    assert_eq!(world.mesh.status(0)["verdict"], "ok", "{}", world.mesh.status(0));
}
