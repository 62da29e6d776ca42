//! The configuration file of the node's router: its name, and whom it dials.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::replace;
use crate::node::{Node, hash, peer_name};

/// In clusters of up to so many other nodes, a router is told of all of them.
const ALL: usize = 32;
/// Of a larger cluster it is told of the next ones on a ring …
const NEXT: usize = 4;
/// … and of those at distances of 2^63, 2^62, … on it: so many.
const FINGERS: u32 = 12;

/// What the file says. A router reads it at its start, and again when it is told to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// The router's name.
    pub name: String,
    /// Whom it dials.
    pub peer: Vec<String>,
    /// Among how many peers a network is founded, if there is none yet: `consensus=N`.
    #[serde(rename = "ipalloc-init", skip_serializing_if = "Option::is_none", default)]
    pub ipalloc_init: Option<String>,
}

impl File {
    /// What a router is told that starts now (kubernetes K13). `nodes` has its own.
    #[must_use]
    pub fn founding(me: &str, nodes: &[Node]) -> Self {
        let members = nodes.iter().filter(|node| node.member || node.name == me).count().max(1);
        Self {
            name: peer_name(me),
            peer: whom_to_dial(me, nodes.iter()),
            ipalloc_init: Some(format!("consensus={members}")),
        }
    }

    /// Reads it; none if there is no such file.
    ///
    /// # Errors
    /// If it cannot be read, or is not what [`File::write`] wrote.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text)
                .map(Some)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        }
    }

    /// Writes it durably, whole or not at all; says whether it was another one before.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<bool> {
        let body = toml::to_string(self).map_err(io::Error::other)?;
        let text = format!(
            "# From the nodes of the Kubernetes API, by weft-kube. It is written anew when they change.\n{body}"
        );
        replace(path, text.as_bytes(), 0o644)
    }
}

/// Addresses to dial, one a node. In a large cluster not all are named: gossip finds the others,
/// and every named peer costs a link.
pub fn whom_to_dial<'a>(me: &str, nodes: impl Iterator<Item = &'a Node>) -> Vec<String> {
    let nodes: Vec<&Node> = nodes.collect();
    let mine = nodes.iter().find(|node| node.name == me).and_then(|node| node.addresses.first());
    let address = |node: &&Node| {
        let same = node.addresses.iter().find(|ip| mine.is_none_or(|mine| mine.is_ipv4() == ip.is_ipv4()));
        same.or(node.addresses.first()).copied()
    };
    let others: Vec<&Node> =
        nodes.into_iter().filter(|node| node.member && node.name != me && !node.addresses.is_empty()).collect();
    let chosen = if others.len() <= ALL { others } else { neighbours(me, &others) };
    let addresses: BTreeSet<IpAddr> = chosen.iter().filter_map(address).collect();
    addresses.iter().map(ToString::to_string).collect()
}

/// Some of many: each node's place on a ring is the hash of its name. Whom each one names makes one
/// connected graph of small diameter, which changes little when a node comes or goes.
fn neighbours<'a>(me: &str, others: &[&'a Node]) -> Vec<&'a Node> {
    let mut ring: Vec<(u64, &Node)> = others.iter().map(|&node| (hash(&node.name), node)).collect();
    ring.sort_by(|(a, one), (b, other)| (a, &one.name).cmp(&(b, &other.name)));
    let here = hash(me);
    let from = |place: u64| ring.partition_point(|&(at, _)| at < place);
    let next = (0..NEXT).map(|step| from(here) + step);
    let far = (0..FINGERS).map(|finger| from(here.wrapping_add(1 << (63 - finger))));
    let chosen: BTreeSet<usize> = next.chain(far).map(|index| index % ring.len()).collect();
    chosen.into_iter().map(|index| ring[index].1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: usize) -> Node {
        let address = IpAddr::from([10, 0, (number / 256) as u8, (number % 256) as u8]);
        Node {
            name: format!("node-{number}"),
            uid: format!("uid-{number}"),
            addresses: vec![address],
            ready: true,
            member: true,
        }
    }

    #[test]
    fn one_address_a_node_of_our_own_family_and_never_our_own() {
        let v6: IpAddr = "2001:db8::1".parse().expect("an address");
        let mut nodes: Vec<Node> = (1..=3).map(node).collect();
        nodes[1].addresses.insert(0, v6);
        nodes[2].member = false;
        assert_eq!(whom_to_dial("node-1", nodes.iter()), ["10.0.0.2"]);
        assert_eq!(whom_to_dial("node-2", nodes.iter()), ["10.0.0.1"], "the only one that it has");
        let file = File::founding("node-1", &nodes);
        assert_eq!(file.ipalloc_init.as_deref(), Some("consensus=2"));
    }

    #[test]
    fn a_lone_node_founds_among_itself() {
        let file = File::founding("node-1", &[node(1)]);
        assert_eq!((file.peer.len(), file.ipalloc_init.as_deref()), (0, Some("consensus=1")));
    }

    #[test]
    fn the_file_is_a_routers_configuration_and_is_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kubernetes.toml");
        assert_eq!(File::read(&path).expect("nothing"), None);
        let file = File::founding("node-1", &[node(1), node(2)]);
        assert!(file.write(&path).expect("written"));
        assert!(!file.write(&path).expect("the same"), "what is there already is not written again");
        assert_eq!(File::read(&path).expect("read"), Some(file));
        let sources = weft::config::Sources {
            flags: std::collections::BTreeMap::new(),
            environment: std::collections::BTreeMap::new(),
            file: Some(path.clone()),
            directory: dir.path().to_owned(),
            hostname: "elsewhere".to_owned(),
        };
        let settings = sources.read().expect("a configuration");
        assert_eq!((settings.name.as_str(), &settings.peers[..]), ("node-1", &["10.0.0.2".to_owned()][..]));
        std::fs::write(&path, "name = ").expect("written");
        assert!(File::read(&path).expect_err("cut off").to_string().contains("kubernetes.toml"));
    }

    #[test]
    fn in_a_large_cluster_few_are_named_and_everybody_is_within_a_few_steps() {
        for size in [34, 100, 1000] {
            let nodes: Vec<Node> = (0..size).map(node).collect();
            let mut named = vec![BTreeSet::new(); size];
            for (number, node) in nodes.iter().enumerate() {
                let peers = whom_to_dial(&node.name, nodes.iter());
                assert!(peers.len() >= NEXT && peers.len() <= NEXT + FINGERS as usize, "{} of {size}", peers.len());
                for peer in peers {
                    let other = nodes.iter().position(|node| node.addresses[0].to_string() == peer).expect("one");
                    named[number].insert(other);
                    named[other].insert(number);
                }
            }
            let mut reached = BTreeSet::from([0]);
            for _ in 0..6 {
                reached = reached.iter().flat_map(|&at| named[at].iter().copied().chain([at])).collect();
            }
            assert_eq!(reached.len(), size, "all within six steps");
        }
    }

    #[test]
    fn one_node_more_changes_little() {
        let nodes: Vec<Node> = (0..200).map(node).collect();
        let changed = |node: &&Node| {
            let before: BTreeSet<_> = whom_to_dial(&node.name, nodes[..199].iter()).into_iter().collect();
            let after: BTreeSet<_> = whom_to_dial(&node.name, nodes.iter()).into_iter().collect();
            before.difference(&after).count() > 1
        };
        assert_eq!(nodes[..199].iter().filter(changed).count(), 0);
    }
}
