//! What the kernel shall be like, as the machine has said so far, and what of it is still to do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_proto::control::fastpath::{Kernel, Remote, Way};
use mesh_proto::data::macs::Mac;
use mesh_proto::id::PeerId;
use mesh_proto::wire::fastpath::{probe_mac, sealed_address};

use super::seal;
use crate::netlink::nft::{Owned, Sources};
use crate::netlink::wireguard::Key;

/// How an entry is held against what the bridge hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Its owner lives.
    Firm,
    /// Its owner cannot be reached: who is heard with the address has it.
    Loose,
}

/// Where frames for an address shall go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// By the fast path to that device. Firmly, or until somebody else is heard with the address.
    Fast(Remote, Hold),
    /// By sleeve.
    Sleeve {
        /// Whether the machine has said so, and it is not only for want of a decision.
        decided: bool,
    },
    /// By sleeve, while that way is being proven.
    Proving(Way),
    /// Nobody has it.
    Nowhere,
}

#[derive(Debug, Clone, Copy)]
struct Peer {
    way: Way,
    /// Where its VXLAN comes from, by IPv4 and IPv6.
    sources: Sources,
    /// `None` until the machine has decided for the first time.
    fast: Option<bool>,
}

/// What the kernel shall be like.
#[derive(Debug, Default)]
pub(super) struct Plan {
    peers: BTreeMap<PeerId, Peer>,
    owners: BTreeMap<Mac, PeerId>,
    owned: BTreeMap<PeerId, BTreeSet<Mac>>,
    probes: BTreeMap<Mac, PeerId>,
    unreachable: BTreeSet<PeerId>,
    /// They, or we, do not want the fast path.
    declined: BTreeSet<PeerId>,
    dirty: BTreeSet<Mac>,
    addresses_changed: bool,
}

impl Plan {
    /// Takes a decision of the machine.
    pub(super) fn apply(&mut self, change: Kernel) {
        match change {
            Kernel::Peer(peer, Some(way)) => {
                let sources = with([None; 2], way.remote.ip);
                self.peers.insert(peer, Peer { way, sources, fast: None });
                self.declined.remove(&peer);
                self.probes.insert(probe_mac(peer), peer);
                self.touch(peer);
                self.addresses_changed = true;
            }
            Kernel::Peer(peer, None) => {
                self.touch(peer);
                self.peers.remove(&peer);
                self.probes.remove(&probe_mac(peer));
                self.addresses_changed = true;
            }
            Kernel::Source(peer, ip) => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.sources = with(peer.sources, ip);
                    self.addresses_changed = true;
                }
                self.touch(peer);
            }
            Kernel::Carrier(peer, fast) => {
                match self.peers.get_mut(&peer) {
                    Some(peer) => peer.fast = Some(fast),
                    None if !fast => {
                        self.declined.insert(peer);
                        self.addresses_changed = true;
                    }
                    None => {}
                }
                self.touch(peer);
            }
            Kernel::Live(peer, live) => {
                if live {
                    self.unreachable.remove(&peer);
                } else {
                    self.unreachable.insert(peer);
                }
                self.touch(peer);
            }
            Kernel::Owner(mac, owner) => {
                let before = match owner {
                    Some(peer) => self.owners.insert(mac, peer),
                    None => self.owners.remove(&mac),
                };
                if let Some(set) = before.and_then(|peer| self.owned.get_mut(&peer)) {
                    set.remove(&mac);
                }
                if let Some(peer) = owner {
                    self.owned.entry(peer).or_default().insert(mac);
                }
                self.dirty.insert(mac);
            }
        }
    }

    fn touch(&mut self, peer: PeerId) {
        self.dirty.insert(probe_mac(peer));
        self.dirty.extend(self.owned.get(&peer).into_iter().flatten());
    }

    /// Where frames for an address shall go.
    pub(super) fn wanted(&self, mac: Mac) -> Wanted {
        if let Some(peer) = self.probes.get(&mac).and_then(|peer| self.peers.get(peer)) {
            return Wanted::Fast(peer.way.remote, Hold::Firm);
        }
        let Some(owner) = self.owners.get(&mac) else {
            return Wanted::Nowhere;
        };
        match self.peers.get(owner) {
            Some(Peer { way, fast: Some(true), .. }) => {
                let hold = if self.unreachable.contains(owner) { Hold::Loose } else { Hold::Firm };
                Wanted::Fast(way.remote, hold)
            }
            Some(Peer { way, fast: None, .. }) => Wanted::Proving(*way),
            Some(Peer { .. }) => Wanted::Sleeve { decided: true },
            None => Wanted::Sleeve { decided: self.declined.contains(owner) },
        }
    }

    /// The addresses whose entries may be wrong; they count as done after this.
    pub(super) fn take_dirty(&mut self) -> BTreeSet<Mac> {
        std::mem::take(&mut self.dirty)
    }

    /// Looks at these, or at all of them, again.
    pub(super) fn mark(&mut self, macs: impl IntoIterator<Item = Mac>) {
        self.dirty.extend(macs);
    }

    /// Looks at everything again.
    pub(super) fn mark_all(&mut self) {
        self.dirty.extend(self.owners.keys().chain(self.probes.keys()));
        self.addresses_changed = true;
    }

    /// Whether the answer of [`Self::addresses`] may have changed since this was asked last.
    pub(super) fn take_addresses_changed(&mut self) -> bool {
        std::mem::take(&mut self.addresses_changed)
    }

    /// The addresses that VXLAN is taken from.
    pub(super) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.peers.values().flat_map(|peer| peer.sources).flatten().collect()
    }

    /// The peers that WireGuard shall know.
    pub(super) fn tunnels(&self) -> BTreeMap<Key, seal::Wanted> {
        let known = self.peers.iter().filter_map(|(peer, Peer { way, .. })| {
            let tunnel = way.tunnel?;
            Some((tunnel.key, seal::Wanted { tunnel, address: sealed_address(*peer) }))
        });
        known.collect()
    }

    /// The addresses inside WireGuard of those that nothing is sent to, by decision.
    pub(super) fn declined(&self) -> BTreeSet<IpAddr> {
        self.declined.iter().map(|peer| sealed_address(*peer).into()).collect()
    }

    /// Who may send frames from an address, if it has an owner. `local` says whether it is here.
    pub(super) fn owner(&self, mac: Mac, local: bool) -> Option<Owned> {
        let owner = self.owners.get(&mac);
        let from = owner.and_then(|owner| self.peers.get(owner)).map_or([None; 2], |peer| peer.sources);
        (owner.is_some() || local).then_some(Owned { mac: mac.0, from })
    }
}

/// The same with that address as the one of its family.
pub(super) fn with(mut sources: Sources, ip: IpAddr) -> Sources {
    sources[usize::from(ip.is_ipv6())] = Some(ip);
    sources
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_proto::control::fastpath::Tunnel;

    const A: PeerId = PeerId([1; 16]);
    const B: PeerId = PeerId([2; 16]);
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    const UNDECIDED: Wanted = Wanted::Sleeve { decided: false };

    fn remote(last: u8) -> Remote {
        Remote { ip: IpAddr::from([192, 0, 2, last]), port: 6784 }
    }

    #[test]
    fn an_address_goes_where_its_owners_carrier_goes() {
        let mut plan = Plan::default();
        plan.apply(Kernel::Owner(MAC, Some(A)));
        assert_eq!(plan.wanted(MAC), UNDECIDED);
        plan.apply(Kernel::Carrier(A, false));
        assert_eq!(plan.wanted(MAC), Wanted::Sleeve { decided: true });
        plan.apply(Kernel::Peer(A, Some(remote(1).into())));
        assert_eq!(plan.wanted(MAC), Wanted::Proving(remote(1).into()));
        assert_eq!(plan.wanted(probe_mac(A)), Wanted::Fast(remote(1), Hold::Firm), "probes always take the fast path");
        plan.take_dirty();
        plan.apply(Kernel::Carrier(A, true));
        assert_eq!(plan.wanted(MAC), Wanted::Fast(remote(1), Hold::Firm));
        plan.apply(Kernel::Live(A, false));
        assert_eq!(plan.wanted(MAC), Wanted::Fast(remote(1), Hold::Loose));
        plan.apply(Kernel::Live(A, true));
        assert_eq!(plan.wanted(MAC), Wanted::Fast(remote(1), Hold::Firm));
        assert!(plan.take_dirty().contains(&MAC));
        plan.apply(Kernel::Carrier(A, false));
        assert_eq!(plan.wanted(MAC), Wanted::Sleeve { decided: true });
        plan.apply(Kernel::Owner(MAC, Some(B)));
        assert_eq!(plan.wanted(MAC), UNDECIDED);
        plan.apply(Kernel::Owner(MAC, None));
        assert_eq!(plan.wanted(MAC), Wanted::Nowhere);
        plan.apply(Kernel::Peer(A, None));
        assert_eq!(plan.wanted(probe_mac(A)), Wanted::Nowhere);
        assert!(plan.take_dirty().contains(&probe_mac(A)));
    }

    #[test]
    fn an_address_is_sent_by_its_owner_only() {
        let mut plan = Plan::default();
        let owned = |from| Some(Owned { mac: MAC.0, from });
        assert_eq!(plan.owner(MAC, false), None);
        assert_eq!(plan.owner(MAC, true), owned([None; 2]), "it is here: no peer may send it");
        plan.apply(Kernel::Owner(MAC, Some(A)));
        assert_eq!(plan.owner(MAC, false), owned([None; 2]));
        plan.apply(Kernel::Peer(A, Some(remote(1).into())));
        assert_eq!(plan.owner(MAC, true), owned([Some(remote(1).ip), None]), "the first to claim it has it");
        let other = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
        plan.apply(Kernel::Source(A, other));
        assert_eq!(plan.owner(MAC, true), owned([Some(remote(1).ip), Some(other)]));
        assert_eq!(plan.addresses(), BTreeSet::from([remote(1).ip, other]));
    }

    #[test]
    fn wireguard_knows_the_peers_that_are_sent_to_by_it() {
        let mut plan = Plan::default();
        plan.apply(Kernel::Peer(A, Some(remote(1).into())));
        assert!(plan.tunnels().is_empty());
        let tunnel = Tunnel { key: [7; 32], endpoint: "192.0.2.2:6785".parse().expect("an address") };
        let inside = Remote { ip: sealed_address(B).into(), port: 6784 };
        plan.apply(Kernel::Peer(B, Some(Way { remote: inside, tunnel: Some(tunnel) })));
        let wanted = seal::Wanted { tunnel, address: sealed_address(B) };
        assert_eq!(plan.tunnels(), BTreeMap::from([([7; 32], wanted)]));
        assert_eq!(plan.wanted(probe_mac(B)), Wanted::Fast(inside, Hold::Firm));
        assert!(plan.addresses().contains(&inside.ip), "and what comes from inside is taken");
        plan.apply(Kernel::Peer(B, None));
        assert!(plan.tunnels().is_empty() && !plan.addresses().contains(&inside.ip));
        plan.apply(Kernel::Carrier(B, false));
        assert_eq!(plan.declined(), BTreeSet::from([inside.ip]));
    }

    #[test]
    fn vxlan_is_taken_from_the_peers_that_may_send_it() {
        let mut plan = Plan::default();
        plan.apply(Kernel::Peer(A, Some(remote(1).into())));
        plan.apply(Kernel::Peer(B, Some(remote(1).into())));
        plan.apply(Kernel::Peer(A, None));
        assert!(plan.take_addresses_changed());
        assert!(plan.addresses().contains(&remote(1).ip), "the other peer is there still");
        plan.apply(Kernel::Peer(B, None));
        assert!(plan.addresses().is_empty());
    }
}
