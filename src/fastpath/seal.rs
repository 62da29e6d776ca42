//! WireGuard under the fast path (fastpath F19): its device, its keys and its peers.
//!
//! ```text
//!  bridge ─ weft-vxs ─ VXLAN, fe80::/10, port 6784 ─► weft-wg ─ WireGuard, UDP 6785 ─► peers
//! ```
//!
//! Without the device there is no `weft-vxs` either, for the kernel takes that with it, and no route to
//! where that would send: what the kernel cannot seal it does not send (fastpath F20).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use mesh_proto::control::fastpath::Tunnel;
use mesh_proto::data::overhead::sealed_inner;
use mesh_proto::wire::fastpath::{Seal, sealed_address};

use super::{FastConfig, SealConfig};
use crate::netlink::wireguard::{Key, PeerEdit, PrivateKey, WireGuard};
use crate::netlink::{Netlink, NetlinkError, Result};

/// What WireGuard shall know of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) tunnel: Tunnel,
    /// Its address inside.
    pub(super) address: Ipv6Addr,
}

/// A device that stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Up {
    /// Its index.
    pub(super) index: u32,
    /// What peers are told of it.
    pub(super) seal: Seal,
}

#[derive(Debug)]
pub(super) struct Sealing {
    name: String,
    port: u16,
    mtu: u32,
    address: Ipv6Addr,
    private: PrivateKey,
    wireguard: WireGuard,
    up: Option<Up>,
    /// Its peers as far as we know, with their addresses inside; and where we have said that they are.
    peers: BTreeMap<Key, (Ipv6Addr, Option<Tunnel>)>,
    complaint: Option<String>,
}

impl Sealing {
    pub(super) fn new(config: &FastConfig, seal: &SealConfig) -> Result<Self> {
        let name = FastConfig::wireguard(&config.bridge);
        let wireguard = WireGuard::new(&name).map_err(|error| problem(&name, "use as a name", error))?;
        Ok(Self {
            wireguard,
            name,
            port: seal.port,
            mtu: sealed_inner(config.mtu).into(),
            address: sealed_address(config.me),
            private: seal.key.clone(),
            up: None,
            peers: BTreeMap::new(),
            complaint: None,
        })
    }

    /// Takes over key and peers of the device that an earlier run of this peer left, if there is one: its
    /// sessions go on. A device with another address is of a peer that is no more, and so is its key.
    pub(super) async fn adopt(&mut self, netlink: &Netlink) -> Result<()> {
        if netlink.wireguard_stands(&self.name, self.mtu, self.address).await?
            && let Ok(device) = self.wireguard.read()
            && let Some(private) = device.private
        {
            self.private = private;
            let known = |(key, address): (Key, Option<Ipv6Addr>)| Some((key, (address?, None)));
            self.peers = device.peers.into_iter().filter_map(known).collect();
            return Ok(());
        }
        netlink.delete_link(&self.name).await.map(drop)
    }

    /// Whether there is a peer with that address.
    pub(super) fn knows(&self, address: IpAddr) -> bool {
        self.peers.values().any(|(known, _)| IpAddr::from(*known) == address)
    }

    /// The device, while it stands.
    pub(super) const fn up(&self) -> Option<Up> {
        self.up
    }

    /// Where VXLAN comes from inside, and which interface it goes by.
    pub(super) const fn address(&self) -> Ipv6Addr {
        self.address
    }

    /// Makes the device, or puts right the one that is there. If it cannot be, nothing is sealed; why is said
    /// once, and given.
    pub(super) async fn ensure(&mut self, netlink: &Netlink) -> Option<NetlinkError> {
        match self.make(netlink).await {
            Ok(up) => {
                if self.up.is_none_or(|before| before.index != up.index) {
                    tracing::info!(device = self.name, "the fast path can be sealed by WireGuard");
                }
                (self.up, self.complaint) = (Some(up), None);
                None
            }
            Err(error) => {
                self.up = None;
                self.peers.clear();
                let text = error.to_string();
                if self.complaint.as_ref() != Some(&text) {
                    tracing::info!("the fast path cannot be sealed: {text}");
                    self.complaint = Some(text);
                }
                // Half a device is none: VXLAN must not lean on it.
                if let Err(error) = netlink.delete_link(&self.name).await {
                    tracing::warn!(%error, "a WireGuard device that is not whole is left");
                }
                Some(error)
            }
        }
    }

    async fn make(&mut self, netlink: &Netlink) -> Result<Up> {
        let link = netlink.ensure_wireguard(&self.name).await?;
        let failed = |operation| {
            let name = self.name.clone();
            move |error| problem(&name, operation, error)
        };
        let (reading, setting) = (failed("read the keys of"), failed("set the key and the port of"));
        let mut device = self.wireguard.read().map_err(&reading)?;
        if device.private.as_ref() != Some(&self.private) || device.port != self.port {
            self.wireguard.set(&self.private, self.port).map_err(setting)?;
            device = self.wireguard.read().map_err(&reading)?;
            // The kernel fixes some bits of a key.
            self.private = device.private.clone().unwrap_or_else(|| self.private.clone());
        }
        netlink.raise_wireguard(&link, self.mtu, self.address).await?;
        // What is not there, or is not as it shall be, is set again.
        self.peers.retain(|key, (address, _)| device.peers.get(key) == Some(&Some(*address)));
        let strange: Vec<_> = device.peers.keys().filter(|key| !self.peers.contains_key(*key)).copied().collect();
        let strange: Vec<_> = strange.into_iter().map(|key| PeerEdit::Remove { key }).collect();
        self.wireguard.edit(&strange).map_err(|error| problem(&self.name, "remove strange peers of", error))?;
        let key = device.public.ok_or_else(|| NetlinkError::other(&self.name, "use", "it has no key"))?;
        Ok(Up { index: link.index, seal: Seal { key, port: self.port } })
    }

    /// Whether the device is as it was made, with the peers that we know.
    pub(super) async fn stands(&mut self, netlink: &Netlink) -> Result<bool> {
        let Some(up) = self.up else { return Ok(false) };
        let there = netlink.link(&self.name).await?.is_some_and(|link| link.index == up.index)
            && netlink.wireguard_stands(&self.name, self.mtu, self.address).await?;
        let Ok(device) = self.wireguard.read() else { return Ok(false) };
        let peers = self.peers.iter().map(|(key, (address, _))| (*key, Some(*address)));
        let known = device.public == Some(up.seal.key) && device.port == self.port;
        Ok(there && known && device.peers == peers.collect())
    }

    /// Makes WireGuard know these peers and no other, but for those of an earlier run with an address of
    /// which `keeps` is true.
    pub(super) fn reconcile(&mut self, wanted: &BTreeMap<Key, Wanted>, keeps: impl Fn(Ipv6Addr) -> bool) -> Result<()> {
        if self.up.is_none() {
            return Ok(());
        }
        let taken: BTreeSet<Ipv6Addr> = wanted.values().map(|wanted| wanted.address).collect();
        let gone = self.peers.iter().filter(|(key, (address, _))| {
            // An address is one peer's: a new key of its means that the old one is nobody's.
            !wanted.contains_key(*key) && (taken.contains(address) || !keeps(*address))
        });
        let gone: Vec<Key> = gone.map(|(key, _)| *key).collect();
        let new: Vec<Wanted> = wanted
            .iter()
            .filter(|(key, wanted)| self.peers.get(*key) != Some(&(wanted.address, Some(wanted.tunnel))))
            .map(|(_, wanted)| *wanted)
            .collect();
        let removals = gone.iter().map(|key| PeerEdit::Remove { key: *key });
        let additions = new.iter().map(|Wanted { tunnel: Tunnel { key, endpoint }, address }| PeerEdit::Set {
            key: *key,
            endpoint: *endpoint,
            address: *address,
        });
        let edits: Vec<_> = removals.chain(additions).collect();
        self.wireguard.edit(&edits).map_err(|error| problem(&self.name, "change the peers of", error))?;
        self.peers.retain(|key, _| !gone.contains(key));
        self.peers.extend(new.into_iter().map(|new| (new.tunnel.key, (new.address, Some(new.tunnel)))));
        Ok(())
    }
}

fn problem(name: &str, operation: &'static str, error: io::Error) -> NetlinkError {
    NetlinkError::new(name, operation, error)
}
