//! What the kernel shall be like, as the machine has said so far, and what of it is still to do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_proto::control::fastpath::{Kernel, Remote};
use mesh_proto::data::macs::Mac;
use mesh_proto::id::PeerId;
use mesh_proto::wire::fastpath::probe_mac;

use crate::netlink::nft::Owned;

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
    /// By sleeve. Until the fast path to that device is decided on, what is there may stay.
    Sleeve {
        /// Where the peer's device is, if that is undecided.
        undecided: Option<Remote>,
    },
    /// Nobody has it.
    Nowhere,
}

#[derive(Debug, Clone, Copy)]
struct Peer {
    remote: Remote,
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
    dirty: BTreeSet<Mac>,
    addresses_changed: bool,
}

impl Plan {
    /// Takes a decision of the machine.
    pub(super) fn apply(&mut self, change: Kernel) {
        match change {
            Kernel::Peer(peer, Some(remote)) => {
                self.peers.insert(peer, Peer { remote, fast: None });
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
            Kernel::Carrier(peer, fast) => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.fast = Some(fast);
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
            return Wanted::Fast(peer.remote, Hold::Firm);
        }
        let Some(owner) = self.owners.get(&mac) else {
            return Wanted::Nowhere;
        };
        match self.peers.get(owner) {
            Some(Peer { remote, fast: Some(true) }) => {
                let hold = if self.unreachable.contains(owner) { Hold::Loose } else { Hold::Firm };
                Wanted::Fast(*remote, hold)
            }
            Some(Peer { remote, fast: None }) => Wanted::Sleeve { undecided: Some(*remote) },
            Some(Peer { fast: Some(false), .. }) | None => Wanted::Sleeve { undecided: None },
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
        self.peers.values().map(|peer| peer.remote.ip).collect()
    }

    /// Who may send frames from an address, if it has an owner. `local` says whether it is here.
    pub(super) fn owner(&self, mac: Mac, local: bool) -> Option<Owned> {
        let owner = self.owners.get(&mac);
        let from = owner.and_then(|owner| self.peers.get(owner)).map(|peer| peer.remote.ip);
        (owner.is_some() || local).then_some(Owned { mac: mac.0, from })
    }

    /// Whether a peer announced an address.
    pub(super) fn has_owner(&self, mac: Mac) -> bool {
        self.owners.contains_key(&mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PeerId = PeerId([1; 16]);
    const B: PeerId = PeerId([2; 16]);
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn remote(last: u8) -> Remote {
        Remote { ip: IpAddr::from([192, 0, 2, last]), port: 6784 }
    }

    #[test]
    fn an_address_goes_where_its_owners_carrier_goes() {
        let mut plan = Plan::default();
        plan.apply(Kernel::Owner(MAC, Some(A)));
        assert_eq!(plan.wanted(MAC), Wanted::Sleeve { undecided: None });
        plan.apply(Kernel::Peer(A, Some(remote(1))));
        assert_eq!(plan.wanted(MAC), Wanted::Sleeve { undecided: Some(remote(1)) });
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
        assert_eq!(plan.wanted(MAC), Wanted::Sleeve { undecided: None });
        plan.apply(Kernel::Owner(MAC, Some(B)));
        assert_eq!(plan.wanted(MAC), Wanted::Sleeve { undecided: None });
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
        assert_eq!(plan.owner(MAC, true), owned(None), "it is here: no peer may send it");
        plan.apply(Kernel::Owner(MAC, Some(A)));
        assert_eq!(plan.owner(MAC, false), owned(None));
        plan.apply(Kernel::Peer(A, Some(remote(1))));
        assert_eq!(plan.owner(MAC, true), owned(Some(remote(1).ip)), "the first to claim it has it");
    }

    #[test]
    fn vxlan_is_taken_from_the_peers_that_may_send_it() {
        let mut plan = Plan::default();
        plan.apply(Kernel::Peer(A, Some(remote(1))));
        plan.apply(Kernel::Peer(B, Some(remote(1))));
        plan.apply(Kernel::Peer(A, None));
        assert!(plan.take_addresses_changed());
        assert!(plan.addresses().contains(&remote(1).ip), "the other peer is there still");
        plan.apply(Kernel::Peer(B, None));
        assert!(plan.addresses().is_empty());
    }
}
