//! Rules of services as kube-proxy lays them: for `iptables-restore --noflush`, for `nft -f`, and [by IPVS](ipvs).
//! Each service has the same port by TCP and UDP, `externalTrafficPolicy: Cluster`, and local traffic is told by the
//! cluster's range.
//!
//! Left out is what counts (nfacct) and what has nothing in it here (load balancers, session affinity).

pub(crate) mod ipvs;

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

/// Services of one family, as a node sees them.
pub(crate) struct Node {
    /// The node's own address.
    pub(crate) address: IpAddr,
    /// The one that it has in the mesh.
    pub(crate) gateway: IpAddr,
    /// Of the pods behind services, the one that it has.
    pub(crate) local: IpAddr,
    /// Range of all pods.
    pub(crate) pods: IpNet,
    /// Range of all services.
    pub(crate) range: IpNet,
    pub(crate) services: Vec<Service>,
}

pub(crate) struct Service {
    /// Letters.
    pub(crate) name: &'static str,
    pub(crate) cluster_ip: IpAddr,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
    pub(crate) endpoints: Vec<SocketAddr>,
}

const PROTOCOLS: [&str; 2] = ["tcp", "udp"];

const FILTER: &str = r#"*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-I INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-I INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-I INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x00004000/0x00004000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"#;

const NAT_CHAINS: &str = r#"*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
"#;

const NAT: &str = r#"-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x00004000/0x00004000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x00004000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x00004000
"#;

/// For `iptables-restore`, or `ip6tables-restore`.
pub(crate) fn iptables(node: &Node) -> String {
    let (mut chains, mut rules) = (String::new(), String::new());
    for service in &node.services {
        for protocol in PROTOCOLS {
            iptables_port(node, service, protocol, &mut chains, &mut rules);
        }
    }
    // This must be the last rule of its chain.
    let last = "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS";
    format!("{FILTER}{NAT_CHAINS}{chains}{NAT}{rules}{last}\nCOMMIT\n")
}

// Writing to a string does not fail.
fn iptables_port(node: &Node, service: &Service, protocol: &str, chains: &mut String, rules: &mut String) {
    let Service { name, cluster_ip, port, node_port, endpoints } = service;
    let chain = format!("{name}{protocol}").to_uppercase();
    let to = |port: u16| format!("-p {protocol} -m {protocol} --dport {port}");
    let said = format!("-m comment --comment \"default/{name}:{protocol}");
    let _ = writeln!(chains, ":KUBE-SVC-{chain} - [0:0]");
    let at = format!("{said} cluster IP\" {} -d {cluster_ip}", to(*port));
    let _ = writeln!(
        rules,
        "-A KUBE-SERVICES {at} -j KUBE-SVC-{chain}\n-A KUBE-SVC-{chain} {at} ! -s {} -j KUBE-MARK-MASQ",
        node.pods
    );
    if let Some(node_port) = node_port {
        let _ = writeln!(chains, ":KUBE-EXT-{chain} - [0:0]");
        let _ = writeln!(
            rules,
            "-A KUBE-NODEPORTS {said}\" {} -j KUBE-EXT-{chain}\n\
             -A KUBE-EXT-{chain} {said} external\" -j KUBE-MARK-MASQ\n\
             -A KUBE-EXT-{chain} -j KUBE-SVC-{chain}",
            to(*node_port),
        );
    }
    for (number, endpoint) in endpoints.iter().enumerate() {
        let chance = match endpoints.len() - number {
            1 => String::new(),
            left => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
        };
        let _ = writeln!(chains, ":KUBE-SEP-{chain}{number} - [0:0]");
        let _ = writeln!(
            rules,
            "-A KUBE-SVC-{chain} {said} -> {endpoint}\" {chance}-j KUBE-SEP-{chain}{number}\n\
             -A KUBE-SEP-{chain}{number} {said}\" -s {} -j KUBE-MARK-MASQ\n\
             -A KUBE-SEP-{chain}{number} {said}\" -m {protocol} -p {protocol} -j DNAT --to-destination {endpoint}",
            endpoint.ip(),
        );
    }
}

/// For `nft -f`: one table of the services' family.
pub(crate) fn nftables(node: &Node) -> String {
    let Node { address, pods, range, services, .. } = node;
    let (ip, kind) = if address.is_ipv4() { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") };
    let (mut by_ip, mut by_port, mut chains) = (Vec::new(), Vec::new(), String::new());
    for service in services {
        for protocol in PROTOCOLS {
            let of = format!("ULMVA6XW-default/{}/{protocol}/p{}", service.name, service.port);
            by_ip.push(format!("{} . {protocol} . {} : goto service-{of}", service.cluster_ip, service.port));
            by_port.extend(service.node_port.map(|port| format!("{protocol} . {port} : goto external-{of}")));
            nftables_port(service, pods, (ip, protocol), &of, &mut chains);
        }
    }
    let cluster_ips: Vec<String> = services.iter().map(|service| service.cluster_ip.to_string()).collect();
    let (cluster_ips, by_ip, by_port) = (cluster_ips.join(", "), by_ip.join(", "), by_port.join(", "));
    format!(
        "table {ip} kube-proxy {{
  comment \"rules for kube-proxy\"
  set cluster-ips {{ type {kind}; elements = {{ {cluster_ips} }} }}
  set nodeport-ips {{ type {kind}; elements = {{ {address} }} }}
  map firewall-ips {{ type {kind} . inet_proto . inet_service : verdict; }}
  map no-endpoint-services {{ type {kind} . inet_proto . inet_service : verdict; }}
  map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
  map service-ips {{ type {kind} . inet_proto . inet_service : verdict; elements = {{ {by_ip} }} }}
  map service-nodeports {{ type inet_proto . inet_service : verdict; elements = {{ {by_port} }} }}
  chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
  chain masquerading {{
    meta mark & 0x4000 == 0 return
    meta mark set meta mark xor 0x4000
    masquerade fully-random
  }}
{chains}  chain services {{
    {ip} daddr . meta l4proto . th dport vmap @service-ips
    {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }}
  chain cluster-ips-check {{
    {ip} daddr @cluster-ips reject comment \"Reject traffic to invalid ports of ClusterIPs\"
    {ip} daddr {range} drop comment \"Drop traffic to unallocated ClusterIPs\"
  }}
  chain service-endpoints-check {{ {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
  chain nodeport-endpoints-check {{ {ip} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }}
  chain firewall-check {{ {ip} daddr . meta l4proto . th dport vmap @firewall-ips; }}
  chain filter-prerouting {{ type filter hook prerouting priority dstnat - 10; ct state new jump firewall-check; }}
  chain filter-input {{
    type filter hook input priority -110
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
  }}
  chain filter-forward {{
    type filter hook forward priority -110
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain filter-output {{
    type filter hook output priority -110
    ct state new jump service-endpoints-check
    ct state new jump firewall-check
  }}
  chain filter-output-post-dnat {{ type filter hook output priority -90; ct state new jump cluster-ips-check; }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
}}
"
    )
}

fn nftables_port(service: &Service, pods: &IpNet, (ip, protocol): (&str, &str), of: &str, chains: &mut String) {
    let Service { cluster_ip, port, endpoints, .. } = service;
    let mut choice = Vec::new();
    for (number, endpoint) in endpoints.iter().enumerate() {
        let _ = writeln!(
            chains,
            "  chain endpoint-{number}-{of} {{\n    {ip} saddr {} jump mark-for-masquerade\n    \
             meta l4proto {protocol} dnat to {endpoint}\n  }}",
            endpoint.ip(),
        );
        choice.push(format!("{number} : goto endpoint-{number}-{of}"));
    }
    let _ = writeln!(
        chains,
        "  chain service-{of} {{\n    \
         {ip} daddr {cluster_ip} {protocol} dport {port} {ip} saddr != {pods} jump mark-for-masquerade\n    \
         numgen random mod {} vmap {{ {} }}\n  }}\n  \
         chain external-{of} {{\n    jump mark-for-masquerade\n    goto service-{of}\n  }}",
        endpoints.len(),
        choice.join(", "),
    );
}
