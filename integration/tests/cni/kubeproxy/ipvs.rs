//! The same services by the kernel's IPVS, as kube-proxy's IPVS mode makes them: addresses of services are the
//! node's own, on a dummy interface; virtual servers translate to the endpoints; sets and the rules that look into
//! them say what goes in the node's name. For `ip -batch`, `ipset restore`, `ipvsadm --restore`, `iptables-restore`.

use std::{fmt::Write as _, net::SocketAddr};

use super::{Node, PROTOCOLS, Service};

/// The interface that has the services' addresses. It is never up, and needs not be.
pub(crate) const DUMMY: &str = "kube-ipvs0";

/// What kube-proxy sets when it starts in this mode, on a kernel of 5.9 or newer.
pub(crate) const SETTINGS: [(&str, &str); 4] = [
    ("net/ipv4/vs/conntrack", "1"),
    ("net/ipv4/vs/expire_nodest_conn", "1"),
    ("net/ipv4/vs/expire_quiescent_template", "1"),
    ("net/ipv4/ip_forward", "1"),
];
/// And what if it is told to (`strictARP`).
pub(crate) const STRICT_ARP: [(&str, &str); 2] =
    [("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2")];

/// Chains of the filter, and of what translates addresses.
const FILTER_CHAINS: [&str; 6] = [
    "KUBE-FORWARD",
    "KUBE-NODE-PORT",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];
const NAT_CHAINS: [&str; 5] =
    ["KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-NODE-PORT", "KUBE-LOAD-BALANCER", "KUBE-MARK-MASQ"];

/// From which chains of the kernel's they are reached.
const FILTER_JUMPS: [(&str, &str); 6] = [
    ("FORWARD", "KUBE-FORWARD"),
    ("INPUT", "KUBE-NODE-PORT"),
    ("INPUT", "KUBE-PROXY-FIREWALL"),
    ("FORWARD", "KUBE-PROXY-FIREWALL"),
    ("INPUT", "KUBE-IPVS-FILTER"),
    ("OUTPUT", "KUBE-IPVS-OUT-FILTER"),
];
const NAT_JUMPS: [(&str, &str); 3] =
    [("OUTPUT", "KUBE-SERVICES"), ("PREROUTING", "KUBE-SERVICES"), ("POSTROUTING", "KUBE-POSTROUTING")];

/// Sets that the rules look into, with their types. Those of load balancers and external addresses are empty here.
const SETS: [(&str, &str); 9] = [
    ("LOOP-BACK", "hash:ip,port,ip"),
    ("CLUSTER-IP", "hash:ip,port"),
    ("EXTERNAL-IP", "hash:ip,port"),
    ("EXTERNAL-IP-LOCAL", "hash:ip,port"),
    ("LOAD-BALANCER", "hash:ip,port"),
    ("NODE-PORT-TCP", "bitmap:port"),
    ("NODE-PORT-UDP", "bitmap:port"),
    ("HEALTH-CHECK-NODE-PORT", "bitmap:port"),
    ("IPVS-IPS", "hash:ip"),
];

/// One family of a node.
pub(crate) struct Ipvs {
    pub(crate) addresses: String,
    pub(crate) sets: String,
    pub(crate) servers: String,
    pub(crate) rules: String,
}

pub(crate) fn ipvs(node: &Node) -> Ipvs {
    let v4 = node.address.is_ipv4();
    let mut laid =
        Ipvs { addresses: String::new(), sets: create_sets(v4), servers: String::new(), rules: rules(node, v4) };
    for service in &node.services {
        let address = service.cluster_ip;
        let _ = writeln!(laid.addresses, "address add {address}/{} dev {DUMMY}", if v4 { 32 } else { 128 });
        let _ = writeln!(laid.sets, "add {} {address}", set("IPVS-IPS", v4));
        for protocol in PROTOCOLS {
            one(node, service, protocol, &mut laid);
        }
    }
    laid
}

// Writing to a string does not fail.
fn one(node: &Node, service: &Service, protocol: &str, laid: &mut Ipvs) {
    let v4 = node.address.is_ipv4();
    let Service { cluster_ip, port, node_port, endpoints, .. } = service;
    let _ = writeln!(laid.sets, "add {} {cluster_ip},{protocol}:{port}", set("CLUSTER-IP", v4));
    server(SocketAddr::new(*cluster_ip, *port), protocol, endpoints, &mut laid.servers);
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.ip() == node.local) {
        let (ip, port) = (endpoint.ip(), endpoint.port());
        let _ = writeln!(laid.sets, "add {} {ip},{protocol}:{port},{ip}", set("LOOP-BACK", v4));
    }
    if let Some(node_port) = node_port {
        let name = format!("NODE-PORT-{}", protocol.to_uppercase());
        let _ = writeln!(laid.sets, "add {} {node_port}", set(&name, v4));
        for address in [node.address, node.gateway] {
            server(SocketAddr::new(address, *node_port), protocol, endpoints, &mut laid.servers);
        }
    }
}

/// A virtual server: in turn, translated, and all endpoints alike.
fn server(at: SocketAddr, protocol: &str, endpoints: &[SocketAddr], servers: &mut String) {
    let kind = &protocol[..1];
    let _ = writeln!(servers, "-A -{kind} {at} -s rr");
    for endpoint in endpoints {
        let _ = writeln!(servers, "-a -{kind} {at} -r {endpoint} -m -w 1");
    }
}

/// The name of a set.
fn set(name: &str, v4: bool) -> String {
    format!("{}{name}", if v4 { "KUBE-" } else { "KUBE-6-" })
}

fn create_sets(v4: bool) -> String {
    let family = if v4 { "inet" } else { "inet6" };
    let more = |kind| match kind {
        "bitmap:port" => "range 0-65535".to_owned(),
        _ => format!("family {family} hashsize 1024 maxelem 65536"),
    };
    SETS.iter().map(|&(name, kind)| format!("create {} {kind} {}\n", set(name, v4), more(kind))).collect()
}

fn rules(node: &Node, v4: bool) -> String {
    let matches = |name: &str, fields: &str| format!("-m set --match-set {} {fields}", set(name, v4));
    let chains = |names: &[&str]| names.iter().map(|name| format!(":{name} - [0:0]\n")).collect::<String>();
    let jumps =
        |jumps: &[(&str, &str)]| jumps.iter().map(|(from, to)| format!("-I {from} -j {to}\n")).collect::<String>();
    let of_services = matches("CLUSTER-IP", "dst,dst");
    let loopback = if v4 { "127.0.0.0/8" } else { "::1/128" };
    let seen_by_filter = ["LOAD-BALANCER", "CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL"];
    let let_pass: String = seen_by_filter
        .iter()
        .map(|name| format!("-A KUBE-IPVS-FILTER {} -j RETURN\n", matches(name, "dst,dst")))
        .collect();
    format!(
        "*nat\n{}{}\
         -A KUBE-SERVICES -s {loopback} -j RETURN\n\
         -A KUBE-POSTROUTING {} -j MASQUERADE\n\
         -A KUBE-NODE-PORT -p tcp {} -j KUBE-MARK-MASQ\n\
         -A KUBE-NODE-PORT -p udp {} -j KUBE-MARK-MASQ\n\
         -A KUBE-SERVICES {of_services} ! -s {} -j KUBE-MARK-MASQ\n\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT\n\
         -A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ\n\
         -A KUBE-SERVICES {of_services} -j ACCEPT\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x00004000/0x00004000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x00004000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x00004000\n\
         COMMIT\n\
         *filter\n{}{}\
         -A KUBE-SOURCE-RANGES-FIREWALL -j DROP\n\
         -A KUBE-FORWARD -m mark --mark 0x00004000/0x00004000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A KUBE-NODE-PORT {health} -j ACCEPT\n\
         {let_pass}\
         -A KUBE-IPVS-FILTER {health} -j RETURN\n\
         -A KUBE-IPVS-FILTER -m conntrack --ctstate NEW {} -j REJECT\n\
         COMMIT\n",
        chains(&NAT_CHAINS),
        jumps(&NAT_JUMPS),
        matches("LOOP-BACK", "dst,dst,src"),
        matches("NODE-PORT-TCP", "dst"),
        matches("NODE-PORT-UDP", "dst"),
        node.pods,
        chains(&FILTER_CHAINS),
        jumps(&FILTER_JUMPS),
        matches("IPVS-IPS", "dst"),
        health = matches("HEALTH-CHECK-NODE-PORT", "dst"),
    )
}
