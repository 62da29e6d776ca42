//! The host's resolvers, as its `resolv.conf` names them now. The file is only ever read.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Port of a resolver: the file cannot name another one.
const PORT: u16 = 53;
/// Most resolvers that are used: as many as anybody needs to find one that answers.
const SERVERS_MAX: usize = 8;
/// Most bytes of the file that are read.
const FILE_MAX: usize = 64 << 10;
/// How often is looked whether the file has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a resolver that did not answer comes after all others.
const DOUBT: Duration = Duration::from_secs(30);

/// The resolvers, and which of them to ask first.
#[derive(Debug)]
pub(super) struct Resolvers {
    path: PathBuf,
    /// This router's own addresses: to ask itself would go on for ever.
    own: Vec<SocketAddr>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    looked: Option<Instant>,
    /// What told one content of the file from another.
    stamp: Option<(SystemTime, u64)>,
    servers: Arc<[SocketAddr]>,
    /// How often the file was another one.
    version: u64,
    /// Who did not answer, and since when.
    doubted: Vec<(SocketAddr, Instant)>,
}

impl Resolvers {
    /// Those of a file; `own` are the addresses at which this router answers itself.
    pub(super) fn new(path: PathBuf, own: Vec<SocketAddr>) -> Self {
        Self { path, own, state: Mutex::default() }
    }

    /// These, whatever a file says: tests cannot have port 53.
    #[cfg(test)]
    pub(super) fn fixed(servers: Vec<SocketAddr>) -> Self {
        let looked = Some(Instant::now() + Duration::from_secs(3600));
        let state = State { looked, servers: servers.into(), ..State::default() };
        Self { path: PathBuf::new(), own: Vec::new(), state: Mutex::new(state) }
    }

    /// All of them, in the order in which they are to be asked.
    pub(super) fn in_order(&self) -> Vec<SocketAddr> {
        let mut state = self.current();
        state.doubted.retain(|(_, since)| since.elapsed() < DOUBT);
        let doubted = |server: &SocketAddr| state.doubted.iter().any(|(other, _)| other == server);
        let mut servers = state.servers.to_vec();
        // Stable: otherwise they stay in the order of the file.
        servers.sort_by_key(doubted);
        servers
    }

    /// A number that grows when the file changes: what others said before that may hold no more.
    pub(super) fn version(&self) -> u64 {
        self.current().version
    }

    /// What the file says, or said a moment ago.
    fn current(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        if state.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            state.looked = Some(Instant::now());
            self.look(&mut state);
        }
        state
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A resolver answered, or did not.
    pub(super) fn note(&self, server: SocketAddr, answered: bool) {
        let mut state = self.state();
        state.doubted.retain(|(other, _)| *other != server);
        if !answered {
            state.doubted.push((server, Instant::now()));
        }
    }

    fn look(&self, state: &mut State) {
        let stamp = std::fs::metadata(&self.path).and_then(|found| Ok((found.modified()?, found.len()))).ok();
        if stamp == state.stamp && stamp.is_some() {
            return;
        }
        let text = match std::fs::read(&self.path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes[..bytes.len().min(FILE_MAX)]).into_owned(),
            Err(error) => {
                if !state.servers.is_empty() || state.stamp.is_some() {
                    tracing::warn!(path = %self.path.display(), %error, "the host's resolvers are not known any more");
                }
                String::new()
            }
        };
        let servers: Arc<[SocketAddr]> = servers(&text, &self.own).into();
        if servers != state.servers {
            tracing::info!(resolvers = ?servers, "names outside the mesh are asked for at the host's resolvers");
        }
        if stamp != state.stamp || servers != state.servers {
            state.version += 1;
        }
        (state.stamp, state.servers) = (stamp, servers);
    }
}

/// The resolvers that a `resolv.conf` names (resolv.conf(5)), but for those addresses.
fn servers(text: &str, own: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        // An address with a zone (`fe80::1%eth0`) is none to this: it means another thing on each
        // interface.
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
        let server = SocketAddr::new(address, PORT);
        if !own.contains(&server) && !servers.contains(&server) && servers.len() < SERVERS_MAX {
            servers.push(server);
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().expect("an address"), PORT)
    }

    #[test]
    fn the_resolvers_of_a_file_are_read_and_nonsense_and_ourselves_are_left_out() {
        let text = "# nameserver 192.0.2.9\nsearch example\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # so\n\
                    nameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver nowhere\nnameserver\noptions ndots:5\n\
                    nameserver 10.32.0.53\nnameservers 192.0.2.7\n";
        let own = [address("10.32.0.53")];
        assert_eq!(servers(text, &own), [address("192.0.2.1"), address("2001:db8::1")]);
        let many: String = (0..20).map(|last| format!("nameserver 192.0.2.{last}\n")).collect();
        assert_eq!(servers(&many, &[]).len(), SERVERS_MAX);
        // The same address on another port is somebody else.
        let other = [SocketAddr::new(address("192.0.2.1").ip(), 5353)];
        assert_eq!(servers("nameserver 192.0.2.1", &other).len(), 1);
    }

    #[test]
    fn who_did_not_answer_comes_last_and_a_change_of_the_file_is_seen() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n").expect("written");
        let resolvers = Resolvers::new(path.clone(), Vec::new());
        let [one, two] = ["192.0.2.1", "192.0.2.2"].map(address);
        assert_eq!(resolvers.in_order(), [one, two]);
        resolvers.note(one, false);
        assert_eq!(resolvers.in_order(), [two, one]);
        resolvers.note(one, true);
        assert_eq!(resolvers.in_order(), [one, two]);
        let versions: Vec<u64> = [Some("nameserver 192.0.2.33\n"), Some("nameserver 192.0.2.33\n# so\n"), None, None]
            .into_iter()
            .map(|text| {
                match text {
                    Some(text) => std::fs::write(&path, text).expect("written"),
                    None => _ = std::fs::remove_file(&path),
                }
                let before = resolvers.version();
                resolvers.state().looked = None;
                let servers = resolvers.in_order();
                assert_eq!(servers, text.map(|_| address("192.0.2.33")).into_iter().collect::<Vec<_>>());
                resolvers.version() - before
            })
            .collect();
        assert_eq!(versions, [1, 1, 1, 0], "each other file is another version");
    }
}
