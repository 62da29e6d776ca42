//! Which MAC address is behind which peer.
//!
//! ```text
//!  table: MAC ─► entry      entries: one fixed array
//!  owner 0 (local)  newest ⇄ … ⇄ least recently used
//!  owner n (peer)   newest ⇄ … ⇄ least recently used      one list an owner
//! ```
//!
//! The bound is shared fairly: when the table is full, an owner with at least its share gives up
//! its own least recently used entry, and one with less takes that of the largest owner. So a
//! host that sprays random addresses only ever pushes out its own (sleeve S20).

use core::time::Duration;

use super::table::{Key, Table};
use crate::id::Incarnation;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Broadcast or multicast: never the address of a sender.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// 01:80:c2:00:00:00 to 0f: for the bridge at the end of the cable, which is not us
    /// (IEEE 802.1D table 7-10).
    #[must_use]
    pub const fn is_link_local(self) -> bool {
        matches!(self.0, [0x01, 0x80, 0xc2, 0, 0, last] if last < 0x10)
    }
}

impl Key for Mac {
    fn words(&self) -> [u64; 3] {
        let [a, b, c, d, e, f] = self.0;
        [u64::from_be_bytes([0, 0, a, b, c, d, e, f]), 0, 0]
    }
}

/// Who is behind an address: this host or a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Local,
    Peer(u32),
}

impl Owner {
    const fn index(self) -> usize {
        match self {
            Self::Local => 0,
            Self::Peer(slot) => slot as usize + 1,
        }
    }
}

const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Entry {
    mac: Mac,
    owner: Owner,
    incarnation: Incarnation,
    /// Last frame from it: what ageing counts.
    heard: Duration,
    /// Last frame from it or to it, to the second: what eviction counts.
    used: Duration,
    newer: u32,
    older: u32,
}

#[derive(Debug, Clone, Copy)]
struct List {
    newest: u32,
    oldest: u32,
    len: u32,
}

const EMPTY: List = List { newest: NONE, oldest: NONE, len: 0 };

/// How much older than its last use an entry's place in the list may be. Saves the relinking for
/// every frame.
const COARSE: Duration = Duration::from_secs(1);

/// Addresses that there is room for at the start. The table grows beyond, up to its bound: a
/// small one stays in the processor's cache, and most hosts never need the memory of a full one.
const FIRST_ROOM: usize = 1024;

/// The table.
#[derive(Debug)]
pub(crate) struct Macs {
    table: Table<Mac, u32>,
    entries: Vec<Entry>,
    free: Vec<u32>,
    owners: Vec<List>,
    active_owners: usize,
    max: usize,
    age: Duration,
    evicted: u64,
}

impl Macs {
    pub(crate) fn new(max: usize, age: Duration, seed: u64) -> Self {
        let max = max.clamp(1, NONE as usize - 1);
        Self {
            table: Table::new(max.min(FIRST_ROOM), seed),
            entries: Vec::with_capacity(max.min(FIRST_ROOM)),
            free: Vec::with_capacity(max.min(FIRST_ROOM)),
            owners: vec![EMPTY],
            active_owners: 0,
            max,
            age,
            evicted: 0,
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Makes room for owners up to that peer slot, so that learning does not allocate.
    pub(crate) fn reserve_owner(&mut self, slot: u32) {
        let need = slot as usize + 2;
        if self.owners.len() < need {
            self.owners.resize(need, EMPTY);
        }
    }

    /// Who is behind `mac`, if that is known and not too old.
    pub(crate) fn lookup(&mut self, mac: Mac, now: Duration) -> Option<Owner> {
        let at = self.table.get(&mac)?;
        let entry = self.entries[at as usize];
        if now.saturating_sub(entry.heard) > self.age {
            self.forget(at);
            return None;
        }
        self.touch(at, now);
        Some(entry.owner)
    }

    /// Notes that a frame from `mac` came from `owner`. The newest frame holds, but never one of
    /// an earlier life of the same peer (sleeve S19).
    pub(crate) fn learn(&mut self, mac: Mac, owner: Owner, life: Incarnation, now: Duration) {
        if mac.is_group() || mac == Mac([0; 6]) {
            return;
        }
        if let Owner::Peer(slot) = owner {
            self.reserve_owner(slot);
        }
        let Some(at) = self.table.get(&mac) else {
            self.add(mac, owner, life, now);
            return;
        };
        let entry = &mut self.entries[at as usize];
        if entry.owner == owner {
            if life >= entry.incarnation {
                entry.heard = now;
                entry.incarnation = life;
                self.touch(at, now);
            }
            return;
        }
        self.unlink(at);
        let entry = &mut self.entries[at as usize];
        (entry.owner, entry.incarnation) = (owner, life);
        (entry.heard, entry.used) = (now, now);
        self.link(at);
    }

    /// Forgets all that is behind `owner`.
    pub(crate) fn forget_owner(&mut self, owner: Owner) {
        while let Some(list) = self.owners.get(owner.index())
            && list.oldest != NONE
        {
            self.forget(list.oldest);
        }
    }

    fn add(&mut self, mac: Mac, owner: Owner, incarnation: Incarnation, now: Duration) {
        if self.table.len() >= self.max {
            self.evict(owner);
        }
        let entry = Entry { mac, owner, incarnation, heard: now, used: now, newer: NONE, older: NONE };
        let at = if let Some(at) = self.free.pop() {
            self.entries[at as usize] = entry;
            at
        } else {
            self.entries.push(entry);
            (self.entries.len() - 1) as u32
        };
        self.table.insert(mac, at);
        self.link(at);
    }

    fn evict(&mut self, newcomer: Owner) {
        let own = self.owners[newcomer.index()];
        let sharers = self.active_owners + usize::from(own.len == 0);
        let victim = if own.len as usize >= (self.max / sharers.max(1)).max(1) {
            own
        } else {
            let largest = self.owners.iter().max_by_key(|list| list.len);
            *largest.expect("the local owner's list is always there")
        };
        self.evicted += 1;
        self.forget(victim.oldest);
    }

    fn forget(&mut self, at: u32) {
        self.unlink(at);
        self.table.remove(&self.entries[at as usize].mac);
        self.free.push(at);
    }

    fn touch(&mut self, at: u32, now: Duration) {
        if now.saturating_sub(self.entries[at as usize].used) < COARSE {
            return;
        }
        self.unlink(at);
        self.entries[at as usize].used = now;
        self.link(at);
    }

    /// Puts an entry at the newest end of its owner's list.
    fn link(&mut self, at: u32) {
        let list = &mut self.owners[self.entries[at as usize].owner.index()];
        let second = list.newest;
        list.newest = at;
        if second == NONE {
            list.oldest = at;
            self.active_owners += 1;
        } else {
            self.entries[second as usize].newer = at;
        }
        list.len += 1;
        let entry = &mut self.entries[at as usize];
        (entry.newer, entry.older) = (NONE, second);
    }

    fn unlink(&mut self, at: u32) {
        let entry = self.entries[at as usize];
        let list = &mut self.owners[entry.owner.index()];
        match entry.newer {
            NONE => list.newest = entry.older,
            newer => self.entries[newer as usize].older = entry.older,
        }
        match entry.older {
            NONE => list.oldest = entry.newer,
            older => self.entries[older as usize].newer = entry.newer,
        }
        list.len -= 1;
        self.active_owners -= usize::from(list.len == 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const AGE: Duration = Duration::from_secs(300);
    const LIFE: Incarnation = Incarnation(1);

    fn mac(n: u32) -> Mac {
        let [a, b, c, d] = n.to_be_bytes();
        Mac([2, 0, a, b, c, d])
    }

    fn at(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn an_address_moves_with_its_newest_frame_and_ages() {
        let mut macs = Macs::new(8, AGE, 1);
        macs.learn(mac(1), Owner::Peer(4), LIFE, at(0));
        assert_eq!(macs.lookup(mac(1), at(1)), Some(Owner::Peer(4)));
        macs.learn(mac(1), Owner::Local, LIFE, at(2));
        assert_eq!(macs.lookup(mac(1), at(302)), Some(Owner::Local));
        assert_eq!(macs.lookup(mac(1), at(303)), None);
        assert_eq!(macs.len(), 0);
    }

    #[test]
    fn group_and_zero_addresses_are_not_learned() {
        let mut macs = Macs::new(8, AGE, 1);
        for bad in [Mac([0xff; 6]), Mac([1, 0, 0, 0, 0, 9]), Mac([0; 6])] {
            macs.learn(bad, Owner::Local, LIFE, at(0));
        }
        assert_eq!(macs.len(), 0);
    }

    #[test]
    fn an_earlier_life_does_not_refresh_what_a_later_one_said() {
        let mut macs = Macs::new(8, AGE, 1);
        macs.learn(mac(1), Owner::Peer(0), Incarnation(5), at(0));
        macs.learn(mac(1), Owner::Peer(0), Incarnation(4), at(200));
        assert_eq!(macs.lookup(mac(1), at(301)), None);
    }

    #[test]
    fn a_spray_of_random_addresses_leaves_those_of_others_alone() {
        let mut macs = Macs::new(100, AGE, 1);
        for n in 0..10 {
            macs.learn(mac(n), Owner::Local, LIFE, at(0));
            macs.learn(mac(100 + n), Owner::Peer(1), LIFE, at(0));
        }
        for n in 0..10_000 {
            macs.learn(mac(1000 + n), Owner::Peer(2), LIFE, at(1));
        }
        assert_eq!(macs.len(), 100);
        for n in 0..10 {
            assert_eq!(macs.lookup(mac(n), at(2)), Some(Owner::Local));
            assert_eq!(macs.lookup(mac(100 + n), at(2)), Some(Owner::Peer(1)));
        }
        assert_eq!(macs.evicted(), 10_000 - 80);
    }

    #[test]
    fn an_address_in_use_outlives_a_spray_by_its_own_host() {
        let mut macs = Macs::new(100, AGE, 1);
        macs.learn(mac(1), Owner::Peer(1), LIFE, at(0));
        for n in 0..1000u64 {
            macs.learn(mac(1000 + n as u32), Owner::Peer(1), LIFE, at(n / 50));
            assert_eq!(macs.lookup(mac(1), at(n / 50)), Some(Owner::Peer(1)));
        }
    }

    #[test]
    fn a_newcomer_gets_its_share_of_a_full_table() {
        let mut macs = Macs::new(100, AGE, 1);
        for n in 0..1000 {
            macs.learn(mac(n), Owner::Peer(0), LIFE, at(0));
        }
        for n in 0..50 {
            macs.learn(mac(5000 + n), Owner::Peer(1), LIFE, at(0));
        }
        for n in 0..50 {
            assert!(macs.lookup(mac(5000 + n), at(0)).is_some());
        }
        macs.forget_owner(Owner::Peer(1));
        assert_eq!(macs.len(), 50);
    }

    proptest! {
        #[test]
        fn below_its_bound_it_agrees_with_a_map(steps in prop::collection::vec((0u32..20, 0u32..4, 0u64..400), 0..200)) {
            let mut macs = Macs::new(32, AGE, 3);
            let mut map = BTreeMap::new();
            let mut now = 0;
            for (n, peer, wait) in steps {
                now += wait / 8;
                let owner = if peer == 0 { Owner::Local } else { Owner::Peer(peer) };
                macs.learn(mac(n), owner, LIFE, at(now));
                map.insert(n, (owner, now));
                for n in 0..20 {
                    let expect = map.get(&n).filter(|(_, heard)| now - heard <= 300).map(|e| e.0);
                    prop_assert_eq!(macs.lookup(mac(n), at(now)), expect);
                }
            }
        }

        #[test]
        fn above_its_bound_it_never_grows_or_panics(steps in prop::collection::vec((any::<u16>(), 0u32..6, any::<bool>()), 0..400)) {
            let mut macs = Macs::new(16, AGE, 3);
            for (n, peer, forget) in steps {
                macs.learn(mac(n.into()), Owner::Peer(peer), LIFE, at(0));
                if forget && n % 16 == 0 {
                    macs.forget_owner(Owner::Peer(peer));
                }
                prop_assert!(macs.len() <= 16);
            }
        }
    }
}
