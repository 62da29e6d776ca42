//! What control decides: tables, keys, removals.

use core::net::SocketAddr;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Forwarder;
use crate::address::canonical;
use crate::data::Sink;
use crate::data::counters::DropReason;
use crate::data::fence::Fence;
use crate::data::limits::REKEY_JITTER;
use crate::data::macs::{Mac, Owner};
use crate::data::path::Path;
use crate::data::peer::{Link, Peer, Way};
use crate::data::session::{Ended, Refused};
use crate::handover::{MAX_RELAYS, PeerPath, SessionKeys, Tables};
use crate::id::{Incarnation, PeerId};

impl Forwarder {
    pub(super) fn set_tables(&mut self, tables: &Tables, now: Duration, sink: &mut impl Sink) {
        // What waits was meant for the old paths and sessions, which may be about to go.
        self.flush_stages(now, sink);
        (self.me, self.incarnation) = (tables.me, tables.incarnation);
        for slot in 0..self.peers.len() as u32 {
            let peer = &self.peers[slot as usize];
            if peer.alive && !tables.peers.contains_key(&peer.id) {
                self.discard(slot);
            }
        }
        for (&id, path) in &tables.peers {
            if id != tables.me
                && let Some(slot) = self.slot_or_new(id)
            {
                self.set_path(slot, path, now);
            }
        }
        for (&id, path) in &tables.peers {
            let mut relays = [None; MAX_RELAYS];
            for (to, &relay) in relays.iter_mut().zip(&path.relays) {
                *to = self.listed(relay).filter(|_| relay != id);
            }
            if let Some(slot) = self.slot(id) {
                let peer = &mut self.peers[slot as usize];
                let parted = peer.direct.is_none() && peer.relays.iter().all(Option::is_none);
                peer.relays = relays;
                peer.children.clear();
                if parted
                    && relays.iter().any(Option::is_some)
                    && let Some(link) = &mut peer.link
                {
                    link.sessions.confirm_again(now);
                }
            }
        }
        self.children.clear();
        for (&origin, children) in &tables.trees {
            let children = children.iter().filter_map(|&child| self.listed(child)).collect();
            if origin == tables.me {
                self.children = children;
            } else if let Some(slot) = self.slot(origin) {
                self.peers[slot as usize].children = children;
            }
        }
        for slot in 0..self.peers.len() as u32 {
            self.poll_peer(slot, now, sink);
        }
    }

    pub(super) fn install(&mut self, keys: &SessionKeys, now: Duration, sink: &mut impl Sink) {
        if keys.peer == self.me {
            return;
        }
        let Some(slot) = self.slot_or_new(keys.peer) else {
            return;
        };
        self.flush_stages(now, sink);
        let jitter = REKEY_JITTER.mul_f64((self.draw() >> 11) as f64 / (1u64 << 53) as f64);
        let peer = &mut self.peers[slot as usize];
        let link = peer.link.get_or_insert_with(|| Box::new(Link::new(self.payload_max, peer.direct.is_some(), now)));
        if self.by_index.get(&keys.local_index).is_some_and(|other| other != slot) {
            // Two peers cannot share an index; the first keeps it.
            return;
        }
        match link.sessions.install(keys, self.policy, jitter, now) {
            Ok(ended) => {
                self.by_index.insert(keys.local_index, slot);
                self.end_indices(ended);
                self.peers[slot as usize].wanted_at = None;
                if let Some(path) = self.path_mut(slot) {
                    path.hurry(now);
                }
                self.send_waiting(slot, now, sink);
                self.poll_peer(slot, now, sink);
            }
            Err(Refused::Unsealed) => {
                self.counters.unsealed += 1;
                self.counters.drop(DropReason::Policy);
            }
            Err(Refused::Stale) => {}
        }
    }

    pub(super) fn remove(&mut self, id: PeerId) {
        if let Some(slot) = self.slot(id) {
            self.end_link(slot);
            if !self.peers[slot as usize].listed {
                self.discard(slot);
            }
        }
    }

    /// Control knows better than frames where these are (fastpath F10).
    pub(super) fn learn_behind(&mut self, id: PeerId, macs: &[Mac], now: Duration) {
        if let Some(slot) = self.slot(id) {
            for &mac in macs {
                self.macs.learn(mac, Owner::Peer(slot), Incarnation(0), now);
            }
        }
    }

    /// Who may not send from where (ipam I21).
    pub(super) fn set_fences(&mut self, fences: BTreeMap<PeerId, Arc<Fence>>) {
        self.fences = fences;
        for peer in &mut self.peers {
            peer.fence = self.fences.get(&peer.id).cloned();
        }
    }

    pub(super) fn probe_now(&mut self, id: PeerId, now: Duration, sink: &mut impl Sink) {
        let Some(slot) = self.slot(id) else {
            return;
        };
        if let Some(path) = self.path_mut(slot) {
            path.hurry(now);
        }
        self.poll_peer(slot, now, sink);
    }

    pub(super) fn end_indices(&mut self, ended: Ended) {
        for index in ended.into_iter().flatten() {
            self.by_index.remove(&index);
        }
    }

    pub(super) fn path_mut(&mut self, slot: u32) -> Option<&mut Path> {
        self.peers[slot as usize].link.as_mut()?.path.as_mut()
    }

    /// The slot of a peer, a new one if it has none. None if another peer has the same short id.
    fn slot_or_new(&mut self, id: PeerId) -> Option<u32> {
        if self.by_id.get(&id.into()).is_some() {
            return self.slot(id);
        }
        let peer = Peer { fence: self.fences.get(&id).cloned(), ..Peer::new(id) };
        let slot = if let Some(slot) = self.free.pop() {
            self.peers[slot as usize] = peer;
            slot
        } else {
            self.peers.push(peer);
            (self.peers.len() - 1) as u32
        };
        self.by_id.insert(id.into(), slot);
        self.macs.reserve_owner(slot);
        Some(slot)
    }

    fn set_path(&mut self, slot: u32, path: &PeerPath, now: Duration) {
        let peer = &mut self.peers[slot as usize];
        peer.listed = true;
        let told = path.direct.map(canonical);
        let changed = peer.told != told;
        peer.told = told;
        // Where it moved to by itself nothing begins anew.
        if changed && peer.direct != told {
            self.set_direct(slot, told);
            let link = self.peers[slot as usize].link.as_mut();
            if let Some(link) = link {
                link.path = told.map(|_| Path::new(now));
                link.restart_mtu(Way::Direct, now);
            }
        }
    }

    /// Notes the address in use.
    pub(super) fn set_direct(&mut self, slot: u32, direct: Option<SocketAddr>) {
        let old = core::mem::replace(&mut self.peers[slot as usize].direct, direct);
        if let Some(old) = old
            && self.by_addr.get(&old) == Some(slot)
        {
            self.by_addr.remove(&old);
            // Two peers may be told to have one address; the other one has it alone now.
            if let Some(other) = self.peers.iter().position(|p| p.alive && p.direct == Some(old)) {
                self.by_addr.insert(old, other as u32);
            }
        }
        if let Some(new) = direct {
            self.by_addr.insert(new, slot);
        }
    }

    /// Ends what depends on sessions.
    fn end_link(&mut self, slot: u32) {
        self.macs.forget_owner(Owner::Peer(slot));
        self.assembler.forget(slot);
        if let Some(queue) = self.waiting.take(slot) {
            self.waiting.give_back(queue);
        }
        let peer = &mut self.peers[slot as usize];
        if let Some(stage) = peer.stage.take() {
            self.stages.all[stage].clear();
        }
        if let Some(mut link) = peer.link.take() {
            self.end_indices(link.sessions.end());
        }
    }

    fn discard(&mut self, slot: u32) {
        self.end_link(slot);
        self.set_direct(slot, None);
        let peer = &mut self.peers[slot as usize];
        peer.alive = false;
        peer.listed = false;
        let id = peer.id;
        if self.by_id.get(&id.into()) == Some(slot) {
            self.by_id.remove(&id.into());
        }
        self.free.push(slot);
    }
}
