//! Turns gathered text into [`Settings`], and collects every mistake on the way.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};
use mesh_proto::handover::Suite;
use mesh_proto::id::PeerId;
use mesh_proto::wire::names::Name;

use super::gather::Gathered;
use super::{
    Cipher, DEFAULT_BRIDGE, DEFAULT_BUSY_POLL, DEFAULT_DATA_DIR, DEFAULT_DEAD_AFTER, DEFAULT_DNS_DOMAIN,
    DEFAULT_NETWORK, DEFAULT_PORT, DEFAULT_RANGE_V4, DEFAULT_RESOLV_CONF, DEFAULT_SOCKET, IpallocInit, LogFormat,
    LogLevel, Mtu, Problem, Problems, Settings,
};

/// Longest name of a peer or network, in bytes.
const NAME_MAX: usize = 63;
/// Longest bridge name: the TAP's is four longer and the kernel's limit is 15.
const BRIDGE_MAX: usize = 11;
/// Smallest MTU at which IPv4 must work (RFC 791).
const MTU_MIN: u16 = 576;
/// Smallest MTU at which IPv6 works (RFC 8200 section 5).
const MTU_MIN_V6: u16 = 1280;
/// Largest MTU that a TAP takes.
const MTU_MAX: u16 = 65_521;
/// `sun_path` of a unix socket has 108 bytes; a name beside it is longer while it is made.
const SOCKET_PATH_MAX: usize = 96;

/// Reads one key after the other and keeps the mistakes.
struct Reader<'a> {
    given: &'a Gathered,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn has(&self, key: &str) -> bool {
        self.given.contains_key(key)
    }

    fn complain(&mut self, key: &str, value: &str, why: impl Into<String>) {
        let what = match self.given.get(key) {
            Some(given) => given.source.label(key, value),
            None => format!("--{key} {value} (the default)"),
        };
        self.problems.push(Problem { what, why: why.into() });
    }

    /// All good values of a key; the bad ones become problems.
    fn many<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let values = self.given.get(key).map(|given| given.values.clone()).unwrap_or_default();
        let mut good = Vec::new();
        for value in &values {
            match parse(value.trim()) {
                Ok(parsed) => good.push(parsed),
                Err(why) => self.complain(key, value, why),
            }
        }
        good
    }

    fn one<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.many(key, parse).pop()
    }
}

impl Settings {
    /// Reads every key. `hostname` is the name of a peer that was given none; relative paths begin
    /// at `directory`.
    ///
    /// # Errors
    /// All mistakes at once, each with the key, its value, and what to do.
    pub fn parse(given: &Gathered, hostname: &str, directory: &Path) -> Result<Self, Problems> {
        let mut reader = Reader { given, problems: Vec::new() };
        let network = reader.one("network", name).unwrap_or_else(|| DEFAULT_NETWORK.to_owned());
        let (listen, port) = listen_and_port(&mut reader);
        let ranges_given = reader.has("range");
        let ranges = ranges(&mut reader, &network);
        let mtu = reader.one("mtu", mtu).unwrap_or(Mtu::Auto);
        if let (Mtu::Fixed(bytes), true) = (mtu, ranges.iter().any(|range| range.addr().is_ipv6()))
            && bytes < MTU_MIN_V6
        {
            reader.complain(
                "mtu",
                &bytes.to_string(),
                format!("IPv6 needs at least {MTU_MIN_V6}; raise it, or give only an IPv4 --range"),
            );
        }
        let settings = Self {
            name: reader.one("name", name).unwrap_or_else(|| default_name(hostname)),
            peers: dedup(reader.many("peer", peer)),
            listen,
            port,
            advertise: dedup(reader.many("advertise", |text| advertise(text, port))),
            ranges,
            ranges_given,
            ipalloc_init: reader.one("ipalloc-init", ipalloc_init).unwrap_or(IpallocInit::Auto),
            dead_after: reader.one("dead-after", dead_after).unwrap_or(Some(DEFAULT_DEAD_AFTER)),
            secret_file: reader.one("secret-file", |text| path(text, directory)),
            data_dir: reader
                .one("data-dir", |text| path(text, directory))
                .unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR)),
            socket: reader
                .one("socket", |text| socket(text, directory))
                .unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET)),
            metrics: reader.one("metrics", metrics),
            docker_socket: reader.one("docker-socket", |text| socket(text, directory)),
            bridge: reader.one("bridge", bridge).unwrap_or_else(|| DEFAULT_BRIDGE.to_owned()),
            mtu,
            discovery: !reader.one("no-discovery", boolean).unwrap_or(false),
            fast_path: !reader.one("no-fast-path", boolean).unwrap_or(false),
            trusted_subnets: dedup(reader.many("trusted-subnet", subnet)),
            dns_listen: dedup(reader.many("dns-listen", dns_listen)),
            dns_domain: reader.one("dns-domain", dns_domain).unwrap_or_else(|| DEFAULT_DNS_DOMAIN.to_owned()),
            resolv_conf: reader
                .one("dns-resolv-conf", |text| path(text, directory))
                .unwrap_or_else(|| PathBuf::from(DEFAULT_RESOLV_CONF)),
            detach: reader.one("detach", boolean).unwrap_or(false),
            cipher: reader.one("cipher", cipher).unwrap_or(Cipher::Auto),
            busy_poll: reader.one("busy-poll", busy_poll).unwrap_or(DEFAULT_BUSY_POLL),
            log_level: reader.one("log-level", str::parse).unwrap_or(LogLevel::Info),
            log_format: reader.one("log-format", str::parse).unwrap_or(LogFormat::Text),
            network,
        };
        inside_out(&mut reader, &settings);
        if reader.problems.is_empty() { Ok(settings) } else { Err(Problems(reader.problems)) }
    }
}

/// Peers are not reached through the network that they make.
fn inside_out(reader: &mut Reader<'_>, settings: &Settings) {
    let range_of = |address: IpAddr| settings.ranges.iter().find(|range| range.contains(&address));
    let hosts = settings.peers.iter().filter_map(|peer| Some((peer, host_port(peer).ok()?.0.parse().ok()?)));
    for (peer, address) in hosts {
        if let Some(range) = range_of(address) {
            reader.complain("peer", peer, format!("is in {range}, the containers' range; choose another --range"));
        }
    }
    for address in &settings.advertise {
        if let Some(range) = range_of(address.ip()) {
            let why = format!("is in {range}, the containers' range; choose another --range");
            reader.complain("advertise", &address.to_string(), why);
        }
    }
}

fn ipalloc_init(text: &str) -> Result<IpallocInit, String> {
    const PEERS_MAX: usize = 1000;
    let wrong = || "expected auto, observer, consensus=N (1 to 1000) or seed=ID,ID,… (ids of `weft status`)".to_owned();
    match text.split_once('=') {
        None if text == "auto" => Ok(IpallocInit::Auto),
        None if text == "observer" => Ok(IpallocInit::Observer),
        Some(("consensus", count)) => match count.parse() {
            Ok(count @ 1..=PEERS_MAX) => Ok(IpallocInit::Consensus(count)),
            _ => Err(wrong()),
        },
        Some(("seed", list)) => {
            let ids = list.split(',').map(|id| id.trim().parse().map_err(|_| wrong()));
            let ids = dedup(ids.collect::<Result<Vec<PeerId>, String>>()?);
            if ids.len() > PEERS_MAX { Err(wrong()) } else { Ok(IpallocInit::Seed(ids)) }
        }
        _ => Err(wrong()),
    }
}

/// A number of seconds, minutes, hours or days; or never.
fn dead_after(text: &str) -> Result<Option<Duration>, String> {
    const SHORTEST: u64 = 10;
    const LONGEST: u64 = 365 * 86_400;
    if text == "never" {
        return Ok(None);
    }
    let wrong = || "expected `never`, or 10s to 365d as a number with s, m, h or d".to_owned();
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text.strip_suffix(unit).unwrap_or_default().parse().map_err(|_| wrong())?;
    match number.checked_mul(factor) {
        Some(seconds @ SHORTEST..=LONGEST) => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(wrong()),
    }
}

fn dedup<T: PartialEq>(values: Vec<T>) -> Vec<T> {
    let mut kept = Vec::new();
    for value in values {
        if !kept.contains(&value) {
            kept.push(value);
        }
    }
    kept
}

fn default_name(hostname: &str) -> String {
    name(hostname).unwrap_or_else(|_| "weft".to_owned())
}

fn name(text: &str) -> Result<String, String> {
    let printable = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if text.is_empty() || text.len() > NAME_MAX || !printable {
        return Err(format!("expected 1 to {NAME_MAX} letters, digits, `-`, `_` or `.`"));
    }
    Ok(text.to_owned())
}

/// Splits `HOST[:PORT]`; IPv6 addresses may stand alone or as `[ADDRESS]:PORT`.
///
/// # Errors
/// What is wrong with it.
pub fn host_port(text: &str) -> Result<(String, Option<u16>), String> {
    let port = |digits: &str| match digits.parse::<u16>() {
        Ok(0) | Err(_) => Err(format!("`{digits}` is not a port (1 to 65535)")),
        Ok(port) => Ok(port),
    };
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((address.to_string(), None));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, tail) = rest.split_once(']').ok_or("`[` without `]`")?;
        address.parse::<Ipv6Addr>().map_err(|_| format!("`{address}` is not an IPv6 address"))?;
        let after = match tail.strip_prefix(':') {
            Some(digits) => Some(port(digits)?),
            None if tail.is_empty() => None,
            None => return Err(format!("expected `:PORT` after `]`, found `{tail}`")),
        };
        return Ok((address.to_owned(), after));
    }
    let (host, after) = match text.split_once(':') {
        Some((host, digits)) => (host, Some(port(digits)?)),
        None => (text, None),
    };
    let digits_only =
        host.chars().all(|c| c.is_ascii_digit() || c == '.') && host.parse::<std::net::Ipv4Addr>().is_err();
    let host_chars = host.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if host.is_empty() || host.len() > 253 || !host_chars || digits_only || host.starts_with('-') {
        return Err(format!("`{host}` is neither a host name nor an IP address"));
    }
    Ok((host.to_owned(), after))
}

/// A peer to dial, `HOST[:PORT]`.
///
/// # Errors
/// What is wrong with it.
pub fn peer(text: &str) -> Result<String, String> {
    let (host, _) = host_port(text).map_err(|why| format!("{why}; expected HOST, HOST:PORT or [IPv6]:PORT"))?;
    match host.parse::<IpAddr>() {
        Ok(address) => dialled(address).map(|()| text.to_owned()),
        Err(_) => Ok(text.to_owned()),
    }
}

/// Refuses what nobody can be dialled at.
fn dialled(address: IpAddr) -> Result<(), String> {
    let canonical = address.to_canonical();
    let link_local = matches!(canonical, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let broadcast = matches!(canonical, IpAddr::V4(v4) if v4.is_broadcast());
    if canonical.is_unspecified() || canonical.is_multicast() || broadcast {
        Err(format!("nobody can be dialled at {address}"))
    } else if link_local {
        Err("a link-local address means something else on each interface; give another one".to_owned())
    } else {
        Ok(())
    }
}

/// Where names are answered. An address of its own each: an answer has to come from the address that
/// was asked, and a name server on every address would answer the whole world.
fn dns_listen(text: &str) -> Result<SocketAddr, String> {
    let wrong = "expected an address of this host and a port, such as 10.32.0.1:53 or [fd00::1]:53";
    let address: SocketAddr = text.parse().map_err(|_| wrong.to_owned())?;
    if address.port() == 0 {
        return Err(wrong.to_owned());
    }
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err("name each address that is to be asked, not all of them at once".to_owned());
    }
    Ok(address)
}

fn dns_domain(text: &str) -> Result<String, String> {
    /// With the longest name before it, it still is a name of DNS.
    const LONGEST: usize = 63;
    let domain = text.strip_suffix('.').unwrap_or(text);
    match domain.parse::<Name>() {
        Ok(name) if domain.len() <= LONGEST => Ok(name.to_string()),
        Ok(_) => Err(format!("expected at most {LONGEST} characters")),
        Err(error) => Err(format!("{error}; expected a domain such as {DEFAULT_DNS_DOMAIN}")),
    }
}

fn listen_and_port(reader: &mut Reader<'_>) -> (Option<IpAddr>, u16) {
    let listen = reader.one("listen", |text| {
        let (host, port) =
            host_port(text).map_err(|why| format!("{why}; expected an address of this host, ADDR[:PORT]"))?;
        let address =
            host.parse::<IpAddr>().map_err(|_| "expected an IP address of this host, not a name".to_owned())?;
        if address.is_multicast() {
            return Err("a multicast address cannot be bound".to_owned());
        }
        Ok((address, port))
    });
    let port = reader.one("port", |text| match text.parse::<u16>() {
        Err(_) if text.contains("://") => Err(
            "expected a UDP port, 1 to 65535 (Kubernetes sets such a variable for a Service named `weft`: name it otherwise, or set enableServiceLinks: false)"
                .to_owned(),
        ),
        Ok(0) | Err(_) => Err("expected a UDP port, 1 to 65535".to_owned()),
        Ok(port) => Ok(port),
    });
    let chosen = match (listen.and_then(|(_, port)| port), port) {
        (Some(one), Some(other)) if one != other => {
            reader.complain(
                "port",
                &other.to_string(),
                format!("--listen names port {one} already; keep one of the two"),
            );
            other
        }
        (one, other) => one.or(other).unwrap_or(DEFAULT_PORT),
    };
    // The unspecified IPv6 address takes both families, which is what no address means.
    let address = listen.map(|(address, _)| address).filter(|address| *address != IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    (address, chosen)
}

fn advertise(text: &str, default_port: u16) -> Result<SocketAddr, String> {
    let (host, port) = host_port(text).map_err(|why| format!("{why}; expected an IP address, ADDR[:PORT]"))?;
    let address: IpAddr = host.parse().map_err(|_| "expected an IP address, not a name".to_owned())?;
    dialled(address)?;
    if address.to_canonical().is_loopback() {
        return Err("other hosts cannot reach a loopback address".to_owned());
    }
    Ok(SocketAddr::new(address, port.unwrap_or(default_port)))
}

fn ranges(reader: &mut Reader<'_>, network: &str) -> Vec<IpNet> {
    if !reader.has("range") {
        let v4 = IpNet::from_str(DEFAULT_RANGE_V4).ok();
        return v4.into_iter().chain([default_v6_range(network)]).collect();
    }
    let mut kept: Vec<IpNet> = Vec::new();
    for range in dedup(reader.many("range", range)) {
        let same_family = kept.iter().find(|other| other.addr().is_ipv4() == range.addr().is_ipv4());
        match same_family {
            Some(other) => {
                let why = format!("{other} is of the same family; give at most one IPv4 and one IPv6 range");
                reader.complain("range", &range.to_string(), why);
            }
            None => kept.push(range),
        }
    }
    if kept.is_empty() && reader.problems.is_empty() {
        reader.complain("range", "(none)", "give at least one range, or leave the key out");
    }
    kept
}

/// The IPv6 range of a network that was given none: a unique local /64 whose global id comes
/// from the network's name, so that all its peers agree and other networks differ (RFC 4193
/// asks for random bits; those of a hash over a chosen name serve the same end).
#[must_use]
pub fn default_v6_range(network: &str) -> IpNet {
    let mut text = b"weft default range\0".to_vec();
    text.extend_from_slice(network.as_bytes());
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text);
    let mut address = [0; 16];
    address[0] = 0xfd;
    address[1..6].copy_from_slice(&digest.as_ref()[..5]);
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from(address), 64))
}

fn range(text: &str) -> Result<IpNet, String> {
    let range: IpNet =
        text.parse().map_err(|_| "expected a range such as 10.32.0.0/12 or fd00:1234::/64".to_owned())?;
    if range.trunc() != range {
        return Err(format!("has bits set behind its prefix; did you mean {}?", range.trunc()));
    }
    let (shortest, longest) = if range.addr().is_ipv4() { (8, 30) } else { (16, 124) };
    if !(shortest..=longest).contains(&range.prefix_len()) {
        return Err(format!("the prefix length must be between /{shortest} and /{longest}"));
    }
    let special: &[&str] = match range {
        IpNet::V4(_) => &["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"],
        IpNet::V6(_) => &["::/16", "fe80::/10", "ff00::/8"],
    };
    for reserved in special {
        let overlaps = reserved
            .parse::<IpNet>()
            .is_ok_and(|reserved| reserved.contains(&range.network()) || range.contains(&reserved.network()));
        if overlaps {
            return Err(format!("overlaps {reserved}, which has a meaning of its own"));
        }
    }
    Ok(range)
}

fn path(text: &str, directory: &Path) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("expected a path".to_owned());
    }
    // A detached router changes its directory, and so may the one that asks for its state.
    std::path::absolute(directory.join(text)).map_err(|error| error.to_string())
}

fn socket(text: &str, directory: &Path) -> Result<PathBuf, String> {
    let path = path(text, directory)?;
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(format!("a socket's path has at most {SOCKET_PATH_MAX} bytes; choose a shorter one"));
    }
    Ok(path)
}

fn metrics(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err("expected ADDR:PORT, such as 127.0.0.1:6782 or [::]:6782".to_owned()),
    }
}

fn bridge(text: &str) -> Result<String, String> {
    let fine = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    // The last two stand for other interfaces in /proc/sys/net.
    let special = [".", "..", "all", "default"].contains(&text) || text.starts_with('-');
    if text.is_empty() || text.len() > BRIDGE_MAX || !fine || special {
        return Err(format!(
            "expected an interface name of 1 to {BRIDGE_MAX} letters, digits, `-`, `_` or `.` (the TAP is named NAME-tap)"
        ));
    }
    Ok(text.to_owned())
}

fn subnet(text: &str) -> Result<IpNet, String> {
    match text.parse::<IpNet>() {
        Ok(net) if net.addr() == net.network() => Ok(net),
        Ok(net) => Err(format!("{net} has bits behind its prefix; did you mean {}?", net.trunc())),
        Err(_) => Err("expected a CIDR, such as 192.0.2.0/24 or 2001:db8::/64".to_owned()),
    }
}

fn mtu(text: &str) -> Result<Mtu, String> {
    if text == "auto" {
        return Ok(Mtu::Auto);
    }
    match text.parse::<u16>() {
        Ok(bytes) if (MTU_MIN..=MTU_MAX).contains(&bytes) => Ok(Mtu::Fixed(bytes)),
        _ => Err(format!("expected `auto` or a number of bytes, {MTU_MIN} to {MTU_MAX}")),
    }
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// A number of microseconds.
fn busy_poll(text: &str) -> Result<Duration, String> {
    const LONGEST: u64 = 1000;
    match text.parse() {
        Ok(micros @ 0..=LONGEST) => Ok(Duration::from_micros(micros)),
        _ => Err(format!("expected 0 to {LONGEST} microseconds")),
    }
}

fn cipher(text: &str) -> Result<Cipher, String> {
    let suites = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305, Suite::Nacl];
    if text == "auto" {
        return Ok(Cipher::Auto);
    }
    suites
        .into_iter()
        .find(|suite| suite.name() == text)
        .map(Cipher::Only)
        .ok_or_else(|| "expected auto, aes-256-gcm, chacha20-poly1305 or nacl".to_owned())
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
