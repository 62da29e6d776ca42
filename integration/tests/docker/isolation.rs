//! Two networks on two hosts: each is one over both, and neither hears of the other (docs/guard.md, P10).
//!
//! ```text
//!   host 1: red0, blue0 ─ router ─ lab's wire ─ router ─ red1, blue1 :host 2
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::{Command, Output},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use weft::{
    lab::{Container, frame::build_datagram, raw::RawSocket, wait_until},
    netlink::Mac,
};

use crate::{Must as _, PATIENCE, RESOLVERS, World, busybox, on_two_hosts};

pub(crate) const NETWORKS: [(&str, &str, &str); 2] =
    [("red", "10.33.1.0/24", "fd00:32:0:0:100::/72"), ("blue", "10.33.2.0/24", "fd00:32:0:0:200::/72")];
pub(crate) const TABLE: &str = "weft-ports";
const EVERYBODY: Mac = [0xff; 6];
/// Within this a frame is everywhere.
const ARRIVAL: Duration = Duration::from_millis(500);

pub(crate) fn two_networks_on_two_hosts_are_kept_apart() {
    on_two_hosts(|mut world| act(&mut world));
}

/// A container of an engine, from inside.
struct Member {
    container: Container,
    interface: String,
    mac: Mac,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Member {
    /// `red0` is in the network `red` of the first host.
    fn run(world: &World, host: usize, network: &str) -> Self {
        let name = format!("{network}{host}");
        world.engines[host].run(&name, &["--network", network]).must("run");
        let pid = world.docker(host, &["inspect", "-f", "{{.State.Pid}}", &name]);
        let container = Container::of_process(pid.parse().must("a process id")).must("its namespace");
        let addresses = world.inspect_in(host, &name, network);
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (addresses[0].addr(), addresses[1].addr()) else {
            panic!("{addresses:?}")
        };
        let [a, b, c, d] = v4.octets();
        let mac = [2, 0x77, a, b, c, d];
        let has = |name: &&str| container.link(name).must("look inside").is_some_and(|link| link.mac == Some(mac));
        let interface = ["eth0", "eth1"].into_iter().find(has).must("its interface").to_owned();
        Self { container, interface, mac, v4, v6 }
    }

    fn addresses(&self) -> [IpNet; 2] {
        [IpNet::from(IpAddr::V4(self.v4)), IpNet::from(IpAddr::V6(self.v6))]
    }

    fn socket(&self) -> RawSocket {
        RawSocket::open(&self.container, &self.interface).must("open a packet socket")
    }

    /// Everything is on its link, as far as it can tell.
    fn sees_all(&self) {
        for route in [["-4", "10.32.0.0/12"], ["-6", "fd00:32::/64"]] {
            let args = [route[0], "route", "replace", route[1], "dev", &self.interface];
            let run = || Command::new("ip").args(args).env("PATH", busybox::PATH).output();
            let output = self.container.run(run).must("run ip");
            assert!(output.status.success(), "{args:?}: {output:?}");
        }
    }
}

pub(crate) fn ping(world: &World, host: usize, name: &str, to: IpAddr) -> bool {
    world.engines[host].exec(name, &["ping", "-c", "1", "-W", "1", &to.to_string()]).is_ok()
}

pub(crate) fn nft(world: &World, host: usize, args: &[&str]) -> Output {
    let run = || Command::new("nft").args(args).env("PATH", busybox::PATH).output();
    world.lab.host(host).namespace().run(run).must("enter the host").must("run nft")
}

fn has_table(world: &World, host: usize) -> bool {
    String::from_utf8_lossy(&nft(world, host, &["list", "tables"]).stdout).contains(TABLE)
}

pub(crate) fn dropped(world: &World, host: usize, reason: &str) -> u64 {
    world.json(host, "status")["counters"]["dropped"][reason].as_u64().must(reason)
}

pub(crate) fn create(network: (&'static str, &'static str, &'static str)) -> [&'static str; 11] {
    let (name, v4, v6) = network;
    ["network", "create", "-d", "weft", "--ipam-driver=weft", "--ipv6", "--subnet", v4, "--subnet", v6, name]
}

fn act(world: &mut World) {
    world.wait_until_established();
    for host in [0, 1] {
        NETWORKS.iter().for_each(|network| _ = world.docker(host, &create(*network)));
    }
    let said = world.refuses(0, &create(("green", "10.33.2.128/25", "fd00:32:0:0:300::/72")));
    let id = world.docker(0, &["network", "ls", "-q", "-f", "name=blue"]);
    assert!(said.contains(&id) && said.contains("10.33.2.0/24") && said.contains("10.33.2.128/25"), "{said}");

    let members = [0, 1].map(|host| ["red", "blue"].map(|network| Member::run(world, host, network)));
    let [[red0, blue0], [red1, blue1]] = &members;
    members.iter().flatten().for_each(Member::sees_all);
    for (host, name, to) in [(0, "red0", red1), (1, "red1", red0), (0, "blue0", blue1), (1, "blue1", blue0)] {
        world.reaches((host, name), &to.addresses());
    }
    apart(world, red0, blue0, blue1);
    frames(world, red0, red1, [blue0, blue1]);
    by_name(world);
    attached(world, blue0);

    // Without a router the rules stay, and they are what keeps them apart: without them it is one link.
    world.routers[0].kill().must("kill");
    apart(world, red0, blue0, blue1);
    assert!(nft(world, 0, &["delete", "table", "bridge", TABLE]).status.success());
    assert!(wait_until(PATIENCE, || ping(world, 0, "red0", blue0.v4.into())), "one link");
    assert!(wait_until(PATIENCE, || ping(world, 0, "red0", blue0.v6.into())), "one link");
    world.routers[0].restart().must("restart");
    apart(world, red0, blue0, blue1);
    world.reaches((0, "red0"), &red1.addresses());
    world.reaches((1, "blue1"), &blue0.addresses());

    for host in [0, 1] {
        for (network, ..) in NETWORKS {
            assert!(has_table(world, host));
            world.docker(host, &["rm", "-f", &format!("{network}{host}")]);
            world.docker(host, &["network", "rm", network]);
        }
        assert!(!has_table(world, host), "the rules go with the last network");
        assert!(world.empty(host), "{:?} {}", world.ports(host), world.json(host, "ipam"));
        world.clean(host);
    }
}

/// No ping comes through, whatever the containers believe of their link.
#[track_caller]
fn apart(world: &World, red0: &Member, blue0: &Member, blue1: &Member) {
    for (host, name, to) in [(0, "red0", blue0), (0, "red0", blue1), (0, "blue0", red0), (1, "blue1", red0)] {
        for ip in [IpAddr::V4(to.v4), IpAddr::V6(to.v6)] {
            assert!(!ping(world, host, name, ip), "{name} reaches {ip}");
        }
    }
}

/// How often a frame is seen at each socket.
fn seen(from: &RawSocket, frame: &[u8], at: &mut [RawSocket]) -> Vec<usize> {
    for socket in &mut *at {
        socket.drain().must("drain");
    }
    from.send(frame).must("send");
    let end = Instant::now() + ARRIVAL;
    at.iter_mut().map(|socket| socket.collect(end, 1, |got| got == frame).must("receive").len()).collect()
}

fn ethernet(from: Mac, kind: &[u8], body: &[u8]) -> Vec<u8> {
    [&EVERYBODY[..], &from, kind, body].concat()
}

fn arp(mac: Mac, from: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac, &from.octets(), &[0; 6], &target.octets()].concat()
}

fn udp(mac: Mac, from: IpAddr) -> Vec<u8> {
    let group: IpAddr = match from {
        IpAddr::V4(_) => Ipv4Addr::new(224, 0, 0, 99).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x99).into(),
    };
    build_datagram((mac, EVERYBODY), SocketAddr::new(from, 4000), SocketAddr::new(group, 4000), b"to all")
        .must("a frame")
}

/// A message of neighbour discovery.
fn neighbour(mac: Mac, from: Ipv6Addr, kind: u8, target: Ipv6Addr) -> Vec<u8> {
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    let body =
        [&[0x60, 0, 0, 0, 0, 24, 58, 255][..], &from.octets(), &all, &[kind, 0, 0, 0, 0, 0, 0, 0], &target.octets()];
    ethernet(mac, &[0x86, 0xdd], &body.concat())
}

/// Raw frames to everybody: honest ones are seen in the own network, on the other host too, and nowhere else;
/// forged ones nowhere.
fn frames(world: &World, red0: &Member, red1: &Member, blue: [&Member; 2]) {
    let out = red0.socket();
    let mut at = [red1.socket(), blue[0].socket(), blue[1].socket()];
    let (mac, foreign) = (red0.mac, [0, 1].map(|host| dropped(world, host, "port_foreign")));
    let near = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);
    for (what, frame) in [
        ("IPv4", udp(mac, red0.v4.into())),
        ("IPv6", udp(mac, red0.v6.into())),
        ("ARP", ethernet(mac, &[8, 6], &arp(mac, red0.v4, blue[0].v4))),
        ("an ARP probe", ethernet(mac, &[8, 6], &arp(mac, Ipv4Addr::UNSPECIFIED, red0.v4))),
        ("a claim", neighbour(mac, red0.v6, 136, red0.v6)),
        ("a question from a link-local address", neighbour(mac, near, 135, red1.v6)),
        ("whether an address is taken", neighbour(mac, Ipv6Addr::UNSPECIFIED, 135, red0.v6)),
    ] {
        assert_eq!(seen(&out, &frame, &mut at), [1, 0, 0], "{what}");
    }
    for (host, before) in [0, 1].into_iter().zip(foreign) {
        assert!(dropped(world, host, "port_foreign") >= before + 5, "host {host} keeps them from its blue ones");
    }
    for victim in blue {
        for (what, reason, frame) in [
            ("another's MAC address", "port_mac", udp(victim.mac, red0.v4.into())),
            ("IPv4", "port_network", udp(mac, victim.v4.into())),
            ("IPv6", "port_network", udp(mac, victim.v6.into())),
            ("ARP", "port_network", ethernet(mac, &[8, 6], &arp(mac, victim.v4, victim.v4))),
            ("an ARP probe", "port_network", ethernet(mac, &[8, 6], &arp(mac, Ipv4Addr::UNSPECIFIED, victim.v4))),
            ("a claim", "port_network", neighbour(mac, victim.v6, 136, victim.v6)),
            ("a claim from a link-local address", "", neighbour(mac, near, 136, victim.v6)),
            ("doubt", "", neighbour(mac, Ipv6Addr::UNSPECIFIED, 135, victim.v6)),
            ("a link-local address", "", udp(mac, near.into())),
            ("no IP", "port_network", ethernet(mac, &[0x88, 0xb6], b"whatever")),
            ("a VLAN", "port_network", ethernet(mac, &[0x81, 0, 0, 0, 8, 6], &arp(mac, victim.v4, victim.v4))),
        ] {
            let count = || if reason.is_empty() { 0 } else { dropped(world, 0, reason) };
            let before = count();
            assert_eq!(seen(&out, &frame, &mut at), [0, 0, 0], "{what}");
            assert_eq!(count() - before, u64::from(!reason.is_empty()), "{what}");
        }
    }
}

/// Names of the mesh are asked of the host's router, by the way out.
fn by_name(world: &World) {
    world.routers[0].command(["expose", RESOLVERS[0]]).must("expose");
    let dns = ["--network", "red", "--dns", RESOLVERS[0], "--dns-search", "weft.local"];
    world.engines[0].run("asks", &dns).must("run");
    let found = || world.engines[0].exec("asks", &["ping", "-c", "1", "-W", "1", "red1"]);
    assert!(wait_until(PATIENCE, || found().is_ok()), "{:?}", found());
    world.docker(0, &["rm", "-f", "asks"]);
    world.routers[0].command(["hide"]).must("hide");
}

/// What `weft attach` gives an address of a network belongs to it, and to no other.
fn attached(world: &World, blue0: &Member) {
    let container = Container::new("attached").must("make a namespace");
    let target = container.target().display().to_string();
    world.routers[1].command(["attach", &target, "10.33.2.200"]).must("attach");
    let to: IpAddr = "10.33.2.200".parse().must("an address");
    assert!(wait_until(PATIENCE, || ping(world, 0, "blue0", to)), "{:?}", blue0.addresses());
    assert!(!ping(world, 0, "red0", to) && !ping(world, 1, "red1", to));
    world.routers[1].command(["detach", &target]).must("detach");
}
