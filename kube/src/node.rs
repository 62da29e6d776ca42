//! What is read of a Node object, and which nodes have a router.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use k8s_openapi::api::core::v1 as core;

/// Longest name of a peer, in bytes; a node's may be four times as long.
const PEER_NAME_MAX: usize = 63;

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its uid: another one under the same name is another node.
    pub uid: String,
    /// Its addresses of the type `InternalIP`, in the order of the object.
    pub addresses: Vec<IpAddr>,
    /// Whether its condition `Ready` is `True`.
    pub ready: bool,
    /// Whether the DaemonSet runs a router there.
    pub member: bool,
}

impl Node {
    /// Reads an object. None if it has no name or no uid, which no API server leaves out.
    #[must_use]
    pub fn read(object: &core::Node, selector: &Selector) -> Option<Self> {
        let name = object.metadata.name.clone()?;
        let uid = object.metadata.uid.clone()?;
        let status = object.status.as_ref();
        let addresses = status.and_then(|status| status.addresses.as_ref()).into_iter().flatten();
        let addresses = addresses.filter(|address| address.type_ == "InternalIP");
        // Link-local addresses are good at one interface only, and say not which.
        let usable = |ip: &IpAddr| !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local(ip));
        let addresses = addresses.filter_map(|address| address.address.parse().ok()).filter(usable).collect();
        let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        let ready = conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let none = BTreeMap::new();
        let member = selector.matches(object.metadata.labels.as_ref().unwrap_or(&none));
        Some(Self { name, uid, addresses, ready, member })
    }

    /// The name of the router there.
    #[must_use]
    pub fn peer_name(&self) -> String {
        peer_name(&self.name)
    }
}

fn link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// The name of a node's router: the node's own, or if that is too long for a peer, its beginning
/// with a hash of the whole (kubernetes K12).
#[must_use]
pub fn peer_name(node: &str) -> String {
    if node.len() <= PEER_NAME_MAX {
        return node.to_owned();
    }
    // Names of nodes are ASCII; of anything else the beginning is cut at a character.
    let mut end = PEER_NAME_MAX - 17;
    while !node.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}-{:016x}", &node[..end], hash(node))
}

/// A hash that is the same at every node and in every version: FNV-1a, and a finalizer that spreads
/// names which differ only at their ends.
pub(crate) fn hash(text: &str) -> u64 {
    let folded = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mixed = (folded ^ (folded >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

/// Which nodes have a router: labels that they must have, as in the DaemonSet's `nodeSelector`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector(Vec<(String, String)>);

impl Selector {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, value)| labels.get(key).is_some_and(|has| has == value))
    }
}

/// A node selector that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no label: write KEY=VALUE, several with commas, as in the DaemonSet's nodeSelector")]
pub struct SelectorError(String);

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let labels = text.split(',').map(str::trim).filter(|label| !label.is_empty());
        let pair = |label: &str| {
            let (key, value) = label.split_once('=').ok_or_else(|| SelectorError(label.to_owned()))?;
            if key.trim().is_empty() || key.ends_with('!') || value.starts_with('=') {
                return Err(SelectorError(label.to_owned()));
            }
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        };
        labels.map(pair).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: serde_json::Value) -> core::Node {
        serde_json::from_value(json).expect("a node")
    }

    #[test]
    fn internal_addresses_are_read_and_others_left_out() {
        let selector: Selector = "kubernetes.io/os=linux".parse().expect("a selector");
        let node = object(serde_json::json!({
            "metadata": {"name": "host1", "uid": "u1", "labels": {"kubernetes.io/os": "linux"}},
            "status": {
                "addresses": [
                    {"type": "Hostname", "address": "host1"},
                    {"type": "InternalIP", "address": "192.0.2.1"},
                    {"type": "InternalIP", "address": "fe80::1"},
                    {"type": "InternalIP", "address": "not an address"},
                    {"type": "InternalIP", "address": "2001:db8::1"},
                    {"type": "ExternalIP", "address": "198.51.100.1"},
                ],
                "conditions": [{"type": "Ready", "status": "Unknown"}],
            },
        }));
        let node = Node::read(&node, &selector).expect("whole");
        let addresses: Vec<_> = node.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["192.0.2.1", "2001:db8::1"]);
        assert!(node.member && !node.ready);
        let other = object(serde_json::json!({"metadata": {"name": "win", "uid": "u2"}}));
        assert!(!Node::read(&other, &selector).expect("whole").member);
        assert_eq!(Node::read(&object(serde_json::json!({"metadata": {"name": "x"}})), &selector), None);
    }

    #[test]
    fn a_selector_is_labels_and_nothing_else() {
        assert_eq!("".parse(), Ok(Selector::default()));
        assert_eq!("a=b, c=".parse(), Ok(Selector(vec![("a".into(), "b".into()), ("c".into(), String::new())])));
        for wrong in ["a", "=b", "a!=b", "a==b", "a in (b)"] {
            let result: Result<Selector, _> = wrong.parse();
            assert!(result.is_err(), "{wrong}");
        }
    }

    #[test]
    fn long_names_stay_apart_and_fit() {
        assert_eq!(peer_name("ip-10-0-1-23.eu-west-1.compute.internal"), "ip-10-0-1-23.eu-west-1.compute.internal");
        let long = "a".repeat(200);
        let [one, two] = [peer_name(&format!("{long}1")), peer_name(&format!("{long}2"))];
        assert!(one.len() == PEER_NAME_MAX && two.len() == PEER_NAME_MAX && one != two, "{one} {two}");
    }
}
