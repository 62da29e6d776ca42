//! Services, as kube-proxy's rules make them, with pods on two hosts: who answers, and what becomes of the
//! client's address (kubernetes K18).
//!
//! ```text
//!   outside ─ NodePort, hostPort ─► host 1 ─ rules ─► pod `a`, or by the mesh pod `b`
//!   pods, hosts ─ ClusterIP ──────► their host's rules ─► either
//! ```
//!
//! Pods of all hosts are on one link. So an answer goes straight to the client, by its host's bridge, and only
//! there can what the rules changed be changed back.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use serde_json::{Value, json};
use weft::netlink::NetNs;

use crate::{
    driven::{example, keys},
    driver::Driver,
    kubeproxy::{
        self, Service,
        ipvs::{DUMMY, SETTINGS, STRICT_ARP, ipvs},
    },
    outside::plain,
    witness::{PORT, PROTOCOLS, Protocol, Witness, ask, seen},
    world::{Must as _, Served, World, addresses, both},
};

/// The host that is no node.
const OUTSIDE: usize = 2;
const SERVICE_PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const HOST_PORT: u16 = 8081;
/// How long a question may take once neighbours are known: longer than a packet that is sent again takes.
const PROMPT: Duration = Duration::from_secs(5);
/// Until it is known that nobody answers.
const SILENCE: Duration = Duration::from_millis(1500);
/// Questions until each endpoint has answered: that one of two does not is less likely than 2⁻⁵⁹.
const ATTEMPTS: usize = 60;

/// How the rules are laid.
#[derive(Clone, Copy)]
enum Form {
    Iptables,
    Nftables,
    /// Needs a kernel with `ip_vs`.
    Ipvs,
}

struct Pod {
    served: Served,
    host: usize,
    own: [IpAddr; 2],
    _witness: Witness,
}

impl Pod {
    fn new(world: &World, host: usize, name: &str, ours: Value) -> Self {
        let served = Served::new(name);
        let result = driver(world, host, name, ours).add(&served.pod).must("ADD");
        let witness = Witness::start(served.container.namespace(), name);
        Self { own: both(&addresses(&result)), served, host, _witness: witness }
    }

    fn namespace(&self) -> &NetNs {
        self.served.container.namespace()
    }

    fn name(&self) -> &str {
        &self.served.pod.id
    }
}

/// The network of the example, by which `a` has a port of its host.
fn driver<'a>(world: &'a World, host: usize, name: &str, ours: Value) -> Driver<'a> {
    let mapping = |protocol| json!({"hostPort": HOST_PORT, "containerPort": PORT, "protocol": protocol});
    let ports = if name == "a" { json!([mapping("tcp"), mapping("udp")]) } else { json!([]) };
    let portmap = example()["plugins"][1].clone();
    world.driver(host, "1.0.0", ours).then(portmap).capable(json!({"portMappings": ports}))
}

struct Cluster {
    world: World,
    /// `a` is on the first host, `b` on the second: they are behind the service.
    a: Pod,
    b: Pod,
    /// Others on the first host; the second is not masqueraded to outside.
    c: Pod,
    d: Pod,
    /// The hosts' addresses in the mesh.
    gateways: [[IpAddr; 2]; 2],
    witnesses: Vec<Witness>,
}

impl Cluster {
    fn new(form: Form) -> Self {
        let world = World::beside(1);
        let [v4, v6] = underlay(&world, OUTSIDE).map(|ip| ip.to_string());
        for host in 0..2 {
            // Nodes have a way to anywhere, or nothing of theirs would come to the rules.
            world.tool(host, &["ip", "route", "add", "default", "via", &v4], "");
            world.tool(host, &["ip", "-6", "route", "add", "default", "via", &v6], "");
            world.set_bridge_filter(host, false);
        }
        let a = Pod::new(&world, 0, "a", keys());
        // Where what is forwarded is dropped by policy, pods are let pass before anything could be dropped.
        world.tool(1, &["iptables", "-P", "FORWARD", "DROP"], "");
        let b = Pod::new(&world, 1, "b", keys());
        let rules = world.rules(1);
        assert!(rules.contains("-A FORWARD -i weft -o weft -j ACCEPT"), "{rules}");
        world.tool(1, &["iptables", "-P", "FORWARD", "ACCEPT"], "");
        let c = Pod::new(&world, 0, "c", keys());
        let d = Pod::new(&world, 0, "d", plain());
        for host in 0..2 {
            assert_eq!(world.bridge_filter(host), (false, true), "the router has turned it on, for its bridge");
        }
        let gateways = [0, 1].map(|host| {
            let ipam = world.json(host, &["ipam"]);
            let all = ipam["allocations"].as_array().into_iter().flatten();
            let own = all.filter(|one| one["owner"] == "weft:expose");
            let own: Vec<IpNet> = own.map(|one| one["address"].as_str().must("text").parse().must("one")).collect();
            both(&own)
        });
        let names = ["host0", "host1", "outside"].into_iter().enumerate();
        let witnesses = names.map(|(host, name)| Witness::start(world.lab.host(host).namespace(), name)).collect();
        let cluster = Self { world, a, b, c, d, gateways, witnesses };
        for host in 0..2 {
            for family in 0..2 {
                cluster.lay(form, host, family);
            }
        }
        cluster
    }

    fn node(&self, host: usize, family: usize) -> kubeproxy::Node {
        let net = |texts: [&str; 2]| texts[family].parse::<IpNet>().must("a network");
        let web = Service {
            name: "web",
            cluster_ip: cluster_ip(family),
            port: SERVICE_PORT,
            node_port: Some(NODE_PORT),
            endpoints: [&self.a, &self.b].map(|pod| SocketAddr::new(pod.own[family], PORT)).to_vec(),
        };
        // As the Service of the API server, behind which is a node.
        let api = Service {
            name: "api",
            cluster_ip: api_ip(family),
            port: SERVICE_PORT,
            node_port: None,
            endpoints: vec![SocketAddr::new(underlay(&self.world, 1)[family], PORT)],
        };
        kubeproxy::Node {
            address: underlay(&self.world, host)[family],
            gateway: self.gateways[host][family],
            local: [&self.a, &self.b][host].own[family],
            pods: net(["10.32.0.0/12", "fd00:32::/64"]),
            range: net(["10.96.0.0/16", "fd00:96::/112"]),
            services: vec![web, api],
        }
    }

    fn lay(&self, form: Form, host: usize, family: usize) {
        let node = self.node(host, family);
        let lay = |command: &[&str], text: &str| drop(self.world.tool(host, command, text));
        let program = ["iptables-restore", "ip6tables-restore"][family];
        let restore = |rules: &str| lay(&[program, "-w", "5", "--noflush"], rules);
        match form {
            Form::Iptables => restore(&kubeproxy::iptables(&node)),
            Form::Nftables => lay(&["nft", "-f", "-"], &kubeproxy::nftables(&node)),
            Form::Ipvs => {
                if family == 0 {
                    lay(&["ip", "link", "add", DUMMY, "type", "dummy"], "");
                    // One of the hosts is strict: both ways must work.
                    let strict = if host == 0 { &STRICT_ARP[..] } else { &[] };
                    SETTINGS.iter().chain(strict).for_each(|(name, value)| self.world.set(host, name, value));
                }
                let laid = ipvs(&node);
                lay(&["ip", "-batch", "-"], &laid.addresses);
                lay(&["ipset", "restore"], &laid.sets);
                lay(&["ipvsadm", "--restore"], &laid.servers);
                restore(&laid.rules);
            }
        }
    }

    fn take_away(&self, form: Form) {
        for host in 0..2 {
            let tool = |command: &[&str], text: &str| drop(self.world.tool(host, command, text));
            for (program, family) in [("iptables-restore", "ip"), ("ip6tables-restore", "ip6")] {
                match form {
                    Form::Iptables | Form::Ipvs => tool(&[program], "*nat\nCOMMIT\n*filter\nCOMMIT\n"),
                    Form::Nftables => tool(&["nft", "delete", "table", family, "kube-proxy"], ""),
                }
            }
            if matches!(form, Form::Ipvs) {
                tool(&["ipvsadm", "--clear"], "");
                tool(&["ipset", "destroy"], "");
                tool(&["ip", "link", "del", DUMMY], "");
            }
        }
    }

    fn host(&self, host: usize) -> &NetNs {
        self.world.lab.host(host).namespace()
    }
}

fn underlay(world: &World, host: usize) -> [IpAddr; 2] {
    let host = world.lab.host(host);
    [host.v4().into(), host.v6()]
}

fn cluster_ip(family: usize) -> IpAddr {
    ["10.96.0.10", "fd00:96::10"][family].parse().must("an address")
}

fn api_ip(family: usize) -> IpAddr {
    ["10.96.0.1", "fd00:96::1"][family].parse().must("an address")
}

/// Asks until both endpoints have answered; whom each has seen. No question may be lost.
#[track_caller]
fn endpoints(from: &NetNs, protocol: Protocol, to: SocketAddr) -> BTreeMap<String, IpAddr> {
    let first = seen(from, protocol, to);
    let mut all = BTreeMap::from([(first.by, first.from)]);
    for _ in 0..ATTEMPTS {
        let one = ask(from, protocol, to, PROMPT).must(&format!("{protocol:?} from {} to {to}", from.label()));
        let before = all.insert(one.by.clone(), one.from);
        assert!(before.is_none_or(|before| before == one.from), "{one:?}, and before {before:?}");
        if all.len() == 2 {
            return all;
        }
    }
    panic!("{protocol:?} from {} to {to}: only {all:?}", from.label());
}

fn both_see(a: IpAddr, b: IpAddr) -> BTreeMap<String, IpAddr> {
    [("a".to_owned(), a), ("b".to_owned(), b)].into()
}

pub(crate) fn by_iptables() {
    shown(Form::Iptables);
}

pub(crate) fn by_nftables() {
    shown(Form::Nftables);
}

/// [In a guest](crate::guest), whose kernel has IPVS.
pub(crate) fn by_ipvs() {
    shown(Form::Ipvs);
}

fn shown(form: Form) {
    let cluster = Cluster::new(form);
    for family in 0..2 {
        api(&cluster, family);
        for protocol in PROTOCOLS {
            cluster_ips(&cluster, family, protocol);
            node_ports(&cluster, family, protocol);
            host_ports(&cluster, family, protocol);
            without_services(&cluster, family, protocol);
        }
    }
    forgotten_neighbours(&cluster);
    says_what_the_kernel_lacks(&cluster.world);
    needs_the_bridge_filter(&cluster);
    if matches!(form, Form::Ipvs) {
        translated_by_ipvs(&cluster);
    }
    let Cluster { world, a, b, c, d, .. } = &cluster;
    for pod in [a, b, c, d] {
        driver(world, pod.host, pod.name(), keys()).del(&pod.served.pod, None).must("DEL");
    }
    cluster.take_away(form);
    let Cluster { world, a, b, c, d, witnesses, .. } = cluster;
    drop((a, b, c, d, witnesses));
    world.end();
}

/// It was IPVS that led to the pods: its servers have counted connections.
fn translated_by_ipvs(cluster: &Cluster) {
    for host in 0..2 {
        let list = cluster.world.tool(host, &["ipvsadm", "--list", "--numeric", "--stats", "--exact"], "");
        for family in 0..2 {
            let web = SocketAddr::new(cluster_ip(family), SERVICE_PORT);
            let node = SocketAddr::new(underlay(&cluster.world, host)[family], NODE_PORT);
            for server in [web, node].iter().flat_map(|at| [format!("TCP {at} "), format!("UDP {at} ")]) {
                let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
                let line = list.lines().map(words).find_map(|line| line.strip_prefix(&server).map(str::to_owned));
                let connections = line.as_deref().and_then(|line| line.split(' ').next()?.parse().ok());
                assert!(connections > Some(0_u64), "{server}: {list}");
            }
        }
    }
}

/// Pods in their own name, but for one that reaches itself: then, and for a host, it is the host's in the mesh.
fn cluster_ips(cluster: &Cluster, family: usize, protocol: Protocol) {
    let Cluster { a, b, c, d, gateways, .. } = cluster;
    let to = SocketAddr::new(cluster_ip(family), SERVICE_PORT);
    let gateway = |host: usize| gateways[host][family];
    for pod in [c, d] {
        let own = pod.own[family];
        assert_eq!(endpoints(pod.namespace(), protocol, to), both_see(own, own), "{}", pod.name());
    }
    assert_eq!(endpoints(a.namespace(), protocol, to), both_see(gateway(0), a.own[family]));
    assert_eq!(endpoints(b.namespace(), protocol, to), both_see(b.own[family], gateway(1)));
    for host in 0..2 {
        assert_eq!(endpoints(cluster.host(host), protocol, to), both_see(gateway(host), gateway(host)));
    }
}

/// A service with a node behind it, of the same host or another.
fn api(cluster: &Cluster, family: usize) {
    let Cluster { b, c, d, world, .. } = cluster;
    let to = SocketAddr::new(api_ip(family), SERVICE_PORT);
    for (pod, who) in [(b, b.own[family]), (c, underlay(world, 0)[family]), (d, d.own[family])] {
        let seen = seen(pod.namespace(), Protocol::Tcp, to);
        assert_eq!((seen.by.as_str(), seen.from), ("host1", who), "from {}", pod.name());
    }
    for host in 0..2 {
        assert_eq!(seen(cluster.host(host), Protocol::Tcp, to).by, "host1", "from host{host}");
    }
}

/// Whoever comes by a node's port is seen as that node. Of pods only those that are masqueraded may come by another
/// node's: the answer to others would have to leave that node by the mesh, from where it came.
fn node_ports(cluster: &Cluster, family: usize, protocol: Protocol) {
    let Cluster { c, d, gateways, world, .. } = cluster;
    for (node, gateway) in gateways.iter().enumerate() {
        let to = SocketAddr::new(underlay(world, node)[family], NODE_PORT);
        let own = (node == d.host).then(|| d.namespace());
        let node = gateway[family];
        for from in [cluster.host(OUTSIDE), c.namespace()].into_iter().chain(own) {
            assert_eq!(endpoints(from, protocol, to), both_see(node, node), "from {}", from.label());
        }
    }
}

/// By `portmap`: who is outside is seen as itself, and pods as the host whose port it is.
fn host_ports(cluster: &Cluster, family: usize, protocol: Protocol) {
    let Cluster { a, b, c, d, gateways, world, .. } = cluster;
    let to = SocketAddr::new(underlay(world, 0)[family], HOST_PORT);
    let there = underlay(world, 1)[family];
    for (from, who) in [
        (cluster.host(OUTSIDE), underlay(world, OUTSIDE)[family]),
        (cluster.host(1), there),
        (a.namespace(), gateways[0][family]),
        (b.namespace(), there),
        (c.namespace(), gateways[0][family]),
        (d.namespace(), gateways[0][family]),
    ] {
        let seen = seen(from, protocol, to);
        assert_eq!((seen.by.as_str(), seen.from), ("a", who), "from {}", from.label());
    }
}

/// Pods and hosts reach each other without any service: in their own names within the mesh, and pods that are
/// masqueraded come to another host's own address as their host.
fn without_services(cluster: &Cluster, family: usize, protocol: Protocol) {
    let Cluster { a, b, d, gateways, world, .. } = cluster;
    for (host, gateway) in gateways.iter().enumerate() {
        for pod in [a, b, d] {
            let to = SocketAddr::new(pod.own[family], PORT);
            let asked = seen(cluster.host(host), protocol, to);
            assert_eq!((asked.by.as_str(), asked.from), (pod.name(), gateway[family]), "from host{host}");
            let asked = seen(pod.namespace(), protocol, SocketAddr::new(gateway[family], PORT));
            assert_eq!((asked.by, asked.from), (format!("host{host}"), pod.own[family]), "from {}", pod.name());
        }
        let own = underlay(world, host)[family];
        for pod in [a, b] {
            let who = if pod.host == host { pod.own[family] } else { underlay(world, pod.host)[family] };
            // A server by UDP that does not look by which address it was asked answers by that of the way back.
            if pod.host != host || protocol == Protocol::Tcp {
                let asked = seen(pod.namespace(), protocol, SocketAddr::new(own, PORT));
                assert_eq!((asked.by, asked.from), (format!("host{host}"), who), "from {}", pod.name());
            }
        }
    }
}

/// What comes from outside is for a pod that the host does not know, or no more: it asks for the pod's hardware
/// address, though the packet is from none of its own.
fn forgotten_neighbours(cluster: &Cluster) {
    let Cluster { world, .. } = cluster;
    for family in 0..2 {
        let to = SocketAddr::new(underlay(world, 0)[family], HOST_PORT);
        world.tool(0, &["ip", ["-4", "-6"][family], "neigh", "flush", "dev", "weft"], "");
        let asked = seen(cluster.host(OUTSIDE), Protocol::Tcp, to);
        assert_eq!((asked.by.as_str(), asked.from), ("a", underlay(world, OUTSIDE)[family]));
    }
}

/// Where the kernel's module is not there, the router says so. It is as if it were not where its settings are hidden.
fn says_what_the_kernel_lacks(world: &World) {
    let problems = || world.json(0, &["status"])["problems"].clone();
    assert_eq!(problems(), json!([]));
    world.tool(0, &["mount", "-t", "tmpfs", "tmpfs", "/proc/sys/net/bridge"], "");
    let without = problems();
    world.tool(0, &["umount", "/proc/sys/net/bridge"], "");
    assert!(without.to_string().contains("br_netfilter is not loaded"), "{without}");
    assert_eq!(problems(), json!([]));
}

/// Without it no answer is changed back, be the pod that answers on this host or on the other; the next pod that
/// comes brings it.
fn needs_the_bridge_filter(cluster: &Cluster) {
    let Cluster { world, c, .. } = cluster;
    let to = SocketAddr::new(cluster_ip(0), SERVICE_PORT);
    world.set_bridge_filter(0, false);
    for _ in 0..2 {
        // One that is not asked for again: the host may tell it of a shorter way, which it then takes.
        let answer = ask(c.namespace(), Protocol::Tcp, to, SILENCE);
        assert!(answer.is_err(), "{answer:?}");
    }
    let e = Pod::new(world, 0, "e", keys());
    assert_eq!(endpoints(e.namespace(), Protocol::Tcp, to).len(), 2);
    driver(world, 0, "e", keys()).del(&e.served.pod, None).must("DEL");
}
