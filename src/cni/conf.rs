//! The network configuration on standard input.
//!
//! A key that is not known, or has a value that it cannot have, is refused by name.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::environment::{Command, address, is_name, shown};
use super::error::{CniError, Kind};
use super::result::{CniResult, Dns};
use super::version::Version;
use crate::config::DEFAULT_SOCKET;
use crate::control::attach::parse_mac;

/// How long is waited for a router that starts, unless `waitSeconds` says otherwise.
const WAIT: u64 = 60;
/// Longest wait: runtimes give up after a few minutes, and then nobody is told why.
const WAIT_MAX: u64 = 240;
/// What a configuration may have: our own keys, and those that runtimes put in.
const KEYS: [&str; 19] = [
    "type",
    "socket",
    "waitSeconds",
    "subnet",
    "mtu",
    "isGateway",
    "isDefaultGateway",
    "routes",
    "hairpinMode",
    "ipMasq",
    "spoofCheck",
    "dns",
    "cniVersion",
    "name",
    "capabilities",
    "args",
    "runtimeConfig",
    "prevResult",
    "disableCheck",
];
/// Keys of other plugins, which somebody may expect to work here too (kubernetes K10).
const UNSUPPORTED: [(&str, &str); 3] = [
    ("ipam", "Weft gives addresses itself: leave it out, and choose where from with `subnet`"),
    ("macspoofchk", "Weft looks at addresses of all kinds: leave it out, for `spoofCheck` is on"),
    ("vlan", "leave it out"),
];

/// A network, as it is configured.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conf {
    pub(super) version: Version,
    /// Name of the network.
    pub(super) name: String,
    /// The router's API.
    pub(super) socket: PathBuf,
    /// How long to wait for it.
    pub(super) wait: Duration,
    /// Where addresses are taken from; empty: one of each range.
    pub(super) subnets: Vec<IpNet>,
    /// Addresses that are asked for.
    pub(super) ips: Vec<IpAddr>,
    /// The hardware address that is asked for, or nothing.
    pub(super) mac: String,
    /// MTU; 0: that of the overlay.
    pub(super) mtu: u16,
    pub(super) hairpin: bool,
    /// Whether its connections to outside of the mesh go in the host's name (kubernetes K17).
    pub(super) masquerade: bool,
    /// Whether the pod is kept to its own addresses (guard P2).
    pub(super) spoof_check: bool,
    /// The host has addresses in the network, and is the pods' gateway.
    pub(super) gateway: bool,
    /// … to everywhere.
    pub(super) default_gateway: bool,
    pub(super) routes: Vec<RouteConf>,
    pub(super) dns: Dns,
    /// What ADD answered, or what the plugins before this one did.
    pub(super) previous: Option<CniResult>,
    /// What the runtime still has; only GC says so.
    pub(super) valid: Option<Vec<Attachment>>,
}

/// A route that pods get.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct RouteConf {
    pub(super) dst: IpNet,
    #[serde(default)]
    pub(super) gw: Option<IpAddr>,
}

/// One attachment that a runtime knows of.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Attachment {
    #[serde(rename = "containerID")]
    pub(super) container: String,
    #[serde(rename = "ifname")]
    pub(super) interface: String,
}

/// One or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

/// Reads JSON that is an object.
pub(super) fn decode(input: &[u8]) -> Result<Value, CniError> {
    if u64::try_from(input.len()).is_ok_and(|bytes| bytes > super::INPUT_MAX) {
        return Err(CniError::new(Kind::Decode, format!("the configuration has more than {} bytes", super::INPUT_MAX)));
    }
    let conf: Value = serde_json::from_slice(input)
        .map_err(|error| CniError::new(Kind::Decode, format!("the configuration on stdin is not JSON: {error}")))?;
    if conf.is_object() {
        return Ok(conf);
    }
    Err(CniError::new(Kind::Decode, "the configuration on stdin is not a JSON object"))
}

impl Conf {
    /// Reads a configuration. What takes away does not stumble over a key that it does not know.
    pub(super) fn parse(input: &[u8], command: Command) -> Result<Self, CniError> {
        let value = decode(input)?;
        let version = Version::of(&value)?;
        let none = Map::new();
        let map = value.as_object().unwrap_or(&none);
        if !matches!(command, Command::Del | Command::Gc) {
            refuse_unknown(map)?;
        }
        let name: String = field(map, "name")?.unwrap_or_default();
        if !is_name(&name) {
            let why = format!("is `{}`: expected a letter or digit, then letters, digits, `_`, `.`, `-`", shown(&name));
            return Err(CniError::key("name", why));
        }
        let socket: PathBuf = field(map, "socket")?.unwrap_or_else(|| DEFAULT_SOCKET.into());
        if !socket.is_absolute() {
            return Err(CniError::key("socket", "expected the absolute path of the router's API socket"));
        }
        let wait = field(map, "waitSeconds")?.unwrap_or(WAIT);
        if wait > WAIT_MAX {
            return Err(CniError::key("waitSeconds", format!("at most {WAIT_MAX}")));
        }
        let default_gateway = field(map, "isDefaultGateway")?.unwrap_or(false);
        Ok(Self {
            version,
            name,
            socket,
            wait: Duration::from_secs(wait),
            subnets: subnets(map)?,
            ips: ips(map)?,
            mac: mac(map)?,
            mtu: field(map, "mtu")?.unwrap_or(0),
            hairpin: field(map, "hairpinMode")?.unwrap_or(false),
            masquerade: field(map, "ipMasq")?.unwrap_or(false),
            spoof_check: field(map, "spoofCheck")?.unwrap_or(true),
            gateway: default_gateway || field(map, "isGateway")?.unwrap_or(false),
            default_gateway,
            routes: routes(map)?,
            dns: field(map, "dns")?.unwrap_or_default(),
            previous: field(map, "prevResult")?,
            valid: valid(map)?,
        })
    }
}

/// A key of ours; `null` is as good as not there.
fn field<T: DeserializeOwned>(map: &Map<String, Value>, key: &str) -> Result<Option<T>, CniError> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value).map(Some).map_err(|error| CniError::key(key, error)),
    }
}

/// Refuses keys that nobody here reads (kubernetes K10). One with a `/` is of whoever is named before it.
fn refuse_unknown(map: &Map<String, Value>) -> Result<(), CniError> {
    for (key, advice) in UNSUPPORTED {
        refuse(map, key, advice)?;
    }
    let ours =
        |key: &str| KEYS.contains(&key) || key.contains('/') || UNSUPPORTED.iter().any(|(known, _)| *known == key);
    let advice = format!("this plugin has no such key: leave it out, or write one of {}", KEYS.join(", "));
    map.keys().filter(|key| !ours(key)).try_for_each(|key| refuse(map, key, &advice))
}

/// Refuses a key that asks for something; one that is off or empty asks for nothing.
fn refuse(map: &Map<String, Value>, key: &str, advice: &str) -> Result<(), CniError> {
    let nothing = match map.get(key) {
        None | Some(Value::Null | Value::Bool(false)) => true,
        Some(Value::Object(inner)) => inner.is_empty(),
        Some(Value::Number(number)) => number.as_u64() == Some(0),
        Some(_) => false,
    };
    if nothing {
        return Ok(());
    }
    let value = shown(&map.get(key).map(ToString::to_string).unwrap_or_default());
    Err(CniError::new(Kind::Unsupported, format!("`{}` is {value}: {advice}", shown(key))))
}

fn subnets(map: &Map<String, Value>) -> Result<Vec<IpNet>, CniError> {
    let given = field::<OneOrMany<String>>(map, "subnet");
    let given = given.map_err(|_| CniError::key("subnet", "expected one ADDRESS/LENGTH, or a list of them"))?;
    let texts = match given {
        None => Vec::new(),
        Some(OneOrMany::One(text)) => vec![text],
        Some(OneOrMany::Many(texts)) => texts,
    };
    let read = |text: &String| {
        let net = text.parse::<IpNet>().ok().filter(|net| net.trunc() == *net);
        let why = || format!("`{}` is not a network: expected one such as 10.32.8.0/24", shown(text));
        net.ok_or_else(|| CniError::key("subnet", why()))
    };
    let subnets = texts.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let of = |v4: bool| subnets.iter().filter(|net| net.addr().is_ipv4() == v4).count();
    if of(true) > 1 || of(false) > 1 {
        return Err(CniError::key("subnet", "at most one of IPv4 and one of IPv6"));
    }
    Ok(subnets)
}

fn object(key: &str, value: Option<&Value>) -> Result<Map<String, Value>, CniError> {
    match value {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(inner)) => Ok(inner.clone()),
        Some(_) => Err(CniError::key(key, "expected an object")),
    }
}

/// The hardware address of `runtimeConfig.mac`.
fn mac(map: &Map<String, Value>) -> Result<String, CniError> {
    let runtime = object("runtimeConfig", map.get("runtimeConfig"))?;
    let wrong = |why: String| CniError::key("runtimeConfig.mac", why);
    let text: String = field(&runtime, "mac").map_err(|error| wrong(error.text))?.unwrap_or_default();
    if text.is_empty() || parse_mac(&text).is_some() {
        return Ok(text);
    }
    Err(wrong(format!("`{}` is no hardware address of an interface", shown(&text))))
}

/// The addresses of `runtimeConfig.ips` and `args.cni.ips`.
fn ips(map: &Map<String, Value>) -> Result<Vec<IpAddr>, CniError> {
    let runtime = object("runtimeConfig", map.get("runtimeConfig"))?;
    let args = object("args", map.get("args"))?;
    let cni = object("args.cni", args.get("cni"))?;
    let mut ips = Vec::new();
    for (key, inner) in [("runtimeConfig.ips", &runtime), ("args.cni.ips", &cni)] {
        let texts: Vec<String> =
            field(inner, "ips").map_err(|error| CniError::key(key, error.text))?.unwrap_or_default();
        for text in texts {
            let ip = address(&text);
            let ip = ip.ok_or_else(|| CniError::key(key, format!("`{}` is not an IP address", shown(&text))))?;
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
    }
    Ok(ips)
}

fn routes(map: &Map<String, Value>) -> Result<Vec<RouteConf>, CniError> {
    let routes: Vec<RouteConf> = field(map, "routes")?.unwrap_or_default();
    let mixed = |route: &&RouteConf| route.gw.is_some_and(|gw| gw.is_ipv4() != route.dst.addr().is_ipv4());
    match routes.iter().find(mixed) {
        None => Ok(routes),
        Some(route) => Err(CniError::key("routes", format!("to {}: `gw` is of the other family", route.dst))),
    }
}

/// The list of GC, under its name and under the one that runtimes sent before it was corrected.
fn valid(map: &Map<String, Value>) -> Result<Option<Vec<Attachment>>, CniError> {
    match field(map, "cni.dev/valid-attachments")? {
        Some(list) => Ok(Some(list)),
        None => field(map, "cni.dev/attachments"),
    }
}
