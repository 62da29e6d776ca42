//! The fast path in the router's loop: its machine is fed and drained here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use mesh_proto::control::fastpath::{FastPath, FastPathConfig, Output, View};
use mesh_proto::control::terms::Terms;
use mesh_proto::handover::{Command, Tables};
use mesh_proto::id::PeerId;
use tokio::sync::mpsc;

use super::core::{Core, seed};
use super::drain::CHANNEL_FASTPATH;
use crate::clock::Clock;
use crate::config::Settings;
use crate::fastpath::{self, Dropped, FastConfig, FastHandle, SealConfig, Seen};
use crate::netlink::Netlink;
use crate::netlink::wireguard::PrivateKey;

/// The fast path as the loop holds it.
#[derive(Debug)]
pub(super) struct Fast {
    pub(super) machine: FastPath,
    pub(super) kernel: FastHandle,
    pub(super) seen: mpsc::Receiver<Seen>,
    policy: Policy,
    /// Peers whose frames the data path has to look at (ipam I21), and the tables of now.
    kept_off: BTreeSet<PeerId>,
    tables: Option<Arc<Tables>>,
}

/// With whom this end wants it (fastpath F5).
#[derive(Debug, Clone)]
struct Policy {
    sealed: bool,
    trusted: Vec<IpNet>,
}

impl Policy {
    /// The kernel's VXLAN is not encrypted: with a secret it is only for networks that the
    /// operator has said to trust. What is sealed is for everybody, where there is a secret.
    fn wants(&self, address: IpAddr) -> Terms {
        let address = address.to_canonical();
        let plain = !self.sealed || self.trusted.iter().any(|subnet| subnet.contains(&address));
        Terms { plain, sealed: self.sealed }
    }

    /// Whether it could ever want what is not encrypted.
    const fn may_want_plain(&self) -> bool {
        !self.sealed || !self.trusted.is_empty()
    }

    /// Whether what an earlier run sends to that address may go on until there is a decision.
    fn keeps(&self, address: IpAddr) -> bool {
        let inside = matches!(address, IpAddr::V6(ip) if ip.is_unicast_link_local());
        if inside { self.sealed } else { self.wants(address).plain }
    }
}

/// What of the fast path is shown.
#[derive(Debug, Clone, Default)]
pub struct FastSnapshot {
    /// Every peer that it knows.
    pub peers: Vec<View>,
    /// Changes of carrier.
    pub switches: u64,
    /// Claims on addresses of live owners that were not granted.
    pub claims_refused: u64,
    /// What the guard dropped.
    pub dropped: Dropped,
}

/// Why there is no fast path at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Off {
    /// The operator wants none.
    Unwanted,
    /// It would have to be sealed, and the kernel cannot do that.
    NoWireGuard,
    /// What went wrong.
    Failed(String),
}

impl Off {
    /// One line for people.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Unwanted => "off: it is not wanted (no-fast-path)".to_owned(),
            Self::NoWireGuard => "off: the network has a secret, and this kernel has no WireGuard".to_owned(),
            Self::Failed(why) => format!("off: {why}"),
        }
    }
}

/// Sets the fast path up, or takes away what an earlier run left if it is not wanted any more.
///
/// # Errors
/// Why there is none. Nothing is left then.
pub(super) async fn start(
    settings: &Settings,
    sealed: bool,
    me: PeerId,
    mtu: u16,
    netlink: &Netlink,
    clock: Clock,
) -> Result<Fast, Off> {
    let policy = Policy { sealed, trusted: settings.trusted_subnets.clone() };
    let Some(port) = settings.port.checked_add(1).filter(|_| settings.fast_path) else {
        fastpath::remove(netlink, &settings.bridge).await;
        return Err(Off::Unwanted);
    };
    let config = FastConfig {
        me,
        bridge: settings.bridge.clone(),
        tap: settings.tap(),
        port,
        vni: FastConfig::vni_of(&settings.network),
        mtu,
        plain: policy.may_want_plain(),
        seal: None,
    };
    let off = |error: &dyn std::fmt::Display| Off::Failed(error.to_string());
    let random = seed().map_err(|error| off(&error))?;
    let seal = port.checked_add(1).filter(|_| sealed).map(|port| SealConfig { port, key: PrivateKey::new(random) });
    let seed = seed().map_err(|error| off(&error))?;
    let alone = seal.is_some() && !config.plain;
    let config = FastConfig { seal, ..config };
    let (kernel, seen) = match FastHandle::start(config, netlink.clone(), |ip| policy.keeps(ip)).await {
        Ok(started) => started,
        // A kernel like many.
        Err(error) if alone && error.errno() == Some(libc::EOPNOTSUPP) => return Err(Off::NoWireGuard),
        Err(error) => return Err(off(&error)),
    };
    let machine = FastPath::new(FastPathConfig { me, port, mtu }, seed, clock.now());
    Ok(Fast { machine, kernel, seen, policy, kept_off: BTreeSet::new(), tables: None })
}

impl Fast {
    pub(super) fn set_tables(&mut self, tables: &Arc<Tables>, now: Duration) {
        let at = |peer| tables.peers.get(peer).and_then(|path| path.direct).map(|address| address.ip().to_canonical());
        let off: BTreeSet<IpAddr> = self.kept_off.iter().filter_map(at).collect();
        let wants = |address: IpAddr| {
            if off.contains(&address.to_canonical()) { Terms::NONE } else { self.policy.wants(address) }
        };
        self.machine.set_tables(tables, wants, now);
        self.tables = Some(Arc::clone(tables));
    }

    /// Frames to and from these peers do not go by the kernel.
    pub(super) fn keep_off(&mut self, peers: BTreeSet<PeerId>, now: Duration) {
        self.kept_off = peers;
        if let Some(tables) = self.tables.take() {
            self.set_tables(&tables, now);
        }
    }

    pub(super) fn handle(&mut self, seen: Seen, now: Duration) {
        match seen {
            Seen::Probe(frame) => self.machine.handle_probe(&frame, now),
            Seen::Local(mac, present) => self.machine.set_local(mac, present, now),
            Seen::Seal(seal) => self.machine.set_seal(seal, now),
        }
    }

    pub(super) fn snapshot(&self) -> FastSnapshot {
        FastSnapshot {
            peers: self.machine.views().collect(),
            switches: self.machine.switches(),
            claims_refused: self.machine.claims_refused(),
            dropped: self.kernel.dropped(),
        }
    }
}

/// What is seen next; never, without a fast path.
pub(super) async fn seen(fast: &mut Option<Fast>) -> Option<Seen> {
    match fast {
        Some(fast) => fast.seen.recv().await,
        None => std::future::pending().await,
    }
}

impl Core {
    /// Carries out what the fast path asks for. Says whether it asked for anything.
    pub(super) fn drain_fast(&mut self) -> bool {
        let mut any = false;
        while let Some(output) = self.fast.as_mut().and_then(|fast| fast.machine.poll_output()) {
            any = true;
            match output {
                Output::Send(peer, bytes) => {
                    let now = self.clock.now();
                    self.node.send_app(peer, [&[CHANNEL_FASTPATH], &bytes[..]].concat(), now);
                }
                Output::Frame(frame) => self.kernel(|kernel| kernel.send(frame)),
                Output::Kernel(change) => self.kernel(|kernel| kernel.apply(change)),
                Output::Learn(peer, macs) => self.data.command(Command::Learn(peer, macs)),
                Output::Switched { peer, fast, sealed, why } => {
                    let name = self.node.peers().into_iter().find(|info| info.id == peer).map(|info| info.name);
                    let name = name.unwrap_or_default();
                    let carrier = match (fast, sealed) {
                        (true, true) => "the fast path, sealed by WireGuard",
                        (true, false) => "the fast path",
                        (false, _) => "sleeve",
                    };
                    let text = format!("frames to {name} ({}) go by {carrier}: {}", peer.short(), why.text());
                    tracing::info!("{text}");
                    self.record("carrier", text);
                }
            }
        }
        any
    }

    fn kernel(&self, act: impl FnOnce(&FastHandle)) {
        if let Some(fast) = &self.fast {
            act(&fast.kernel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_a_secret_only_trusted_subnets_get_what_is_not_encrypted() {
        let trusted = vec!["10.0.0.0/8".parse().expect("a subnet"), "fd00::/8".parse().expect("a subnet")];
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let policy = Policy { sealed: true, trusted };
        for (text, wanted) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("fd00::1", true),
            ("192.0.2.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(policy.wants(address(text)), Terms { plain: wanted, sealed: true }, "{text}");
            assert_eq!(policy.keeps(address(text)), wanted, "{text}");
        }
        assert!(policy.keeps(address("fe80::1")), "what is inside WireGuard");
        let [sealed, open] = [true, false].map(|sealed| Policy { sealed, trusted: Vec::new() });
        assert!(!sealed.may_want_plain() && open.may_want_plain());
        assert_eq!(sealed.wants(address("192.0.2.1")), Terms::SEALED);
        assert_eq!(open.wants(address("192.0.2.1")), Terms::PLAIN);
        assert!(!open.keeps(address("fe80::1")));
    }
}
