//! Whom a router dials after its start.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::config::{Settings, host_port};
use crate::control::store::State;

/// Peers of the last run that are dialled at once.
const HINTS_MAX: usize = 16;
/// A peer that was last linked with so long ago, in seconds, is not dialled by itself.
const HINT_AGE: u64 = 7 * 24 * 3600;

/// A peer that there was a link with, as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    /// Its name.
    pub(super) name: String,
    /// Where it was.
    pub(super) address: SocketAddr,
    /// When, in seconds since the Unix epoch.
    pub(super) seen: u64,
}

/// Seconds since the Unix epoch.
pub(super) fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// How many of the peers named are not this one: alone, it founds the network.
pub(super) fn named_peers(settings: &Settings, endpoints: &[SocketAddr]) -> usize {
    let is_me = |peer: &&String| {
        let Ok((host, port)) = host_port(peer) else {
            return false;
        };
        let same_port = port.is_none_or(|port| port == settings.port);
        let same_host = match host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback() || endpoints.iter().any(|endpoint| endpoint.ip() == address),
            Err(_) => host == settings.name,
        };
        same_port && same_host
    };
    settings.peers.iter().filter(|peer| !is_me(peer)).count()
}

/// A target that is an address, with its port.
fn in_full(target: &str, port: u16) -> Option<String> {
    let (host, own) = host_port(target).ok()?;
    Some(SocketAddr::new(host.parse().ok()?, own.unwrap_or(port)).to_string())
}

/// Targets of the operator (now and by `connect` in earlier runs), and besides them the addresses
/// of peers that there were links with lately; the second list is these alone.
pub(super) fn whom_to_dial(settings: &Settings, state: &State) -> (Vec<String>, BTreeSet<String>) {
    let mut targets = settings.peers.clone();
    let mut known = BTreeSet::new();
    let now = wall_clock();
    for (key, value) in &state.peers {
        let key = String::from_utf8_lossy(key);
        if let Some(target) = key.strip_prefix("target:") {
            if host_port(target).is_ok() && !targets.iter().any(|other| other == target) {
                targets.push(target.to_owned());
            }
        } else if let Ok(peer) = serde_json::from_slice::<Known>(value)
            && now.saturating_sub(peer.seen) < HINT_AGE
        {
            known.insert((peer.seen, peer.address.to_string()));
        }
    }
    let mut hints = BTreeSet::new();
    if settings.discovery {
        let latest = known.into_iter().rev().map(|(_, address)| address);
        // Two dials to one address would make two connections, of which one is for nothing.
        let named: BTreeSet<String> = targets.iter().filter_map(|target| in_full(target, settings.port)).collect();
        hints.extend(latest.filter(|address| !named.contains(address)).take(HINTS_MAX));
    }
    targets.extend(hints.iter().cloned());
    (targets, hints)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::config::{Given, Source};
    use crate::control::store;

    fn settings(peers: &[&str]) -> Settings {
        let values = peers.iter().map(|&peer| peer.to_owned()).collect();
        let given = BTreeMap::from([("peer", Given { values, source: Source::Flag })]);
        Settings::parse(&given, "host1", Path::new("/")).expect("valid")
    }

    #[test]
    fn a_list_that_is_the_same_on_every_host_does_not_count_the_host_itself() {
        let endpoints = ["192.0.2.1:6783".parse().expect("an address")];
        for (peers, count) in [
            (&[][..], 0),
            (&["192.0.2.1"], 0),
            (&["192.0.2.1", "192.0.2.2"], 1),
            (&["host1", "host2"], 1),
            (&["192.0.2.1:7000"], 1),
            (&["127.0.0.1:6783"], 0),
        ] {
            assert_eq!(named_peers(&settings(peers), &endpoints), count, "{peers:?}");
        }
    }

    #[test]
    fn targets_of_earlier_runs_and_peers_seen_lately_are_dialled_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut state = store::open(dir.path()).expect("made").state;
        let known = |address: &str, seen| {
            let address = address.parse().expect("an address");
            serde_json::to_vec(&Known { name: "n".to_owned(), address, seen }).expect("JSON")
        };
        state.peers.insert(b"target:host9".to_vec(), Vec::new());
        state.peers.insert(b"known:a".to_vec(), known("192.0.2.3:6783", wall_clock()));
        state.peers.insert(b"known:d".to_vec(), known("192.0.2.5:6783", wall_clock()));
        state.peers.insert(b"known:b".to_vec(), known("192.0.2.4:6783", wall_clock() - 2 * HINT_AGE));
        state.peers.insert(b"known:c".to_vec(), b"not JSON".to_vec());
        let (targets, hints) = whom_to_dial(&settings(&["host2", "192.0.2.5"]), &state);
        assert_eq!(targets, ["host2", "192.0.2.5", "host9", "192.0.2.3:6783"], "none is dialled twice");
        assert_eq!(hints, BTreeSet::from(["192.0.2.3:6783".to_owned()]));
    }
}
