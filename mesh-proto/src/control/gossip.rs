//! What is known of all peers, and how two peers find out where they differ.
//!
//! ```text
//!   Digest(root) ───►  differs: Buckets(64 hashes) ───►  Versions(of the buckets that differ)
//!                               ◄── Records(newer) and Want(older) ──┘       ───► Records
//! ```
//!
//! A record that is news is pushed at once (gossip G5); the comparison above only repairs what
//! pushes missed, so its cost follows the difference (gossip G7). Sums of hashes are kept up to
//! date with each record: comparing costs nothing while nothing changes.

use core::time::Duration;
use std::collections::BTreeMap;

use super::crypto;
use super::limits::{PEERS_MAX, TOMBSTONE};
use super::record::{SignedRecord, Version, tag_of};
use crate::id::PeerId;
use crate::wire::gossip::{BUCKETS, Buckets, Digest, HASH_LEN, VersionEntry, Versions};

/// What became of a record that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It is the first of its origin.
    New,
    /// It replaced an older one.
    Newer,
    /// It was known, or older than what is known.
    Known,
    /// Its origin was forgotten and this is no newer record than the one forgotten.
    Forgotten,
    /// There is no room for another origin.
    Full,
}

impl Offered {
    /// Whether the store has changed.
    #[must_use]
    pub const fn is_news(self) -> bool {
        matches!(self, Self::New | Self::Newer)
    }
}

#[derive(Debug)]
struct Tombstone {
    version: Version,
    until: Duration,
}

/// The records of all peers, this one's among them.
#[derive(Debug, Default)]
pub struct Store {
    records: BTreeMap<PeerId, SignedRecord>,
    /// Whose record has which tag: to know copies without reading them.
    tags: BTreeMap<u64, PeerId>,
    forgotten: BTreeMap<PeerId, Tombstone>,
    sums: Sums,
}

#[derive(Debug)]
struct Sums([u128; BUCKETS]);

impl Default for Sums {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl Sums {
    fn add(&mut self, id: &PeerId, version: &Version) {
        let sum = &mut self.0[bucket(id)];
        *sum = sum.wrapping_add(entry_hash(id, version));
    }

    fn remove(&mut self, id: &PeerId, version: &Version) {
        let sum = &mut self.0[bucket(id)];
        *sum = sum.wrapping_sub(entry_hash(id, version));
    }
}

fn bucket(id: &PeerId) -> usize {
    usize::from(id.0[0] >> 2)
}

fn entry_hash(id: &PeerId, version: &Version) -> u128 {
    let numbers = [version.incarnation.0, version.seq, version.tag].map(u64::to_be_bytes).concat();
    let digest = crypto::hash(&[&id.0, &numbers]);
    let mut half = [0; HASH_LEN];
    half.copy_from_slice(&digest[..HASH_LEN]);
    u128::from_be_bytes(half)
}

impl Store {
    /// Whether a record of that version would be news; to be asked before its signature is
    /// checked. `vouched` says that the origin can be reached now, which overrules forgetting.
    #[must_use]
    pub fn weigh(&self, id: &PeerId, version: &Version, vouched: bool, now: Duration) -> Offered {
        if let Some(known) = self.records.get(id) {
            return if *version > known.version { Offered::Newer } else { Offered::Known };
        }
        if let Some(stone) = self.forgotten.get(id)
            && now < stone.until
            && *version <= stone.version
            && !vouched
        {
            return Offered::Forgotten;
        }
        if self.records.len() >= PEERS_MAX { Offered::Full } else { Offered::New }
    }

    /// Takes in a record whose signature was checked. Merging is a maximum by version.
    pub fn offer(&mut self, record: SignedRecord, vouched: bool, now: Duration) -> Offered {
        let outcome = self.weigh(&record.id, &record.version, vouched, now);
        if outcome.is_news() {
            self.sums.add(&record.id, &record.version);
            self.forgotten.remove(&record.id);
            let (id, tag) = (record.id, record.version.tag);
            if let Some(old) = self.records.insert(id, record) {
                self.sums.remove(&id, &old.version);
                self.tags.remove(&old.version.tag);
            }
            self.tags.insert(tag, id);
        }
        outcome
    }

    /// Drops the record of a peer and refuses it for a while unless there is a newer one.
    pub fn forget(&mut self, id: &PeerId, now: Duration) -> Option<SignedRecord> {
        let record = self.records.remove(id)?;
        self.sums.remove(id, &record.version);
        self.tags.remove(&record.version.tag);
        self.forgotten.retain(|_, stone| stone.until > now);
        if self.forgotten.len() < PEERS_MAX {
            self.forgotten.insert(*id, Tombstone { version: record.version, until: now + TOMBSTONE });
        }
        Some(record)
    }

    /// Whose record these very bytes are, if they are one that is held. Costs a hash, and saves
    /// reading most of what a busy mesh pushes.
    #[must_use]
    pub fn holder_of(&self, bytes: &[u8]) -> Option<PeerId> {
        let id = self.tags.get(&tag_of(bytes)?)?;
        self.records.get(id).filter(|record| *record.bytes == *bytes).map(|record| record.id)
    }

    /// The record of a peer.
    #[must_use]
    pub fn get(&self, id: &PeerId) -> Option<&SignedRecord> {
        self.records.get(id)
    }

    /// All records, ascending by id.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &SignedRecord> {
        self.records.values()
    }

    /// How many peers are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nobody is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The hash of everything.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let root = self.sums.0.iter().fold(0u128, |root, sum| root.wrapping_add(*sum));
        Digest { root: root.to_be_bytes() }
    }

    /// The hash of each bucket.
    #[must_use]
    pub fn buckets(&self) -> Buckets {
        Buckets { hashes: self.sums.0.iter().flat_map(|sum| sum.to_be_bytes()).collect() }
    }

    /// Our versions in the buckets where the other end's hashes differ; `None` if none does.
    #[must_use]
    pub fn versions_where_different(&self, theirs: &Buckets) -> Option<Versions> {
        let mut mask = 0u64;
        for (at, (hash, sum)) in theirs.hashes.chunks_exact(HASH_LEN).zip(&self.sums.0).enumerate() {
            if hash != sum.to_be_bytes() {
                mask |= 1 << at;
            }
        }
        let ours = self.iter().filter(|record| mask >> bucket(&record.id) & 1 == 1);
        (mask != 0).then(|| Versions::of(mask, ours.map(entry)))
    }

    /// Compares the other end's versions with ours: the records that it lacks, and the peers
    /// whose records we lack.
    #[must_use]
    pub fn compare(&self, theirs: &Versions, now: Duration) -> (Vec<PeerId>, Vec<PeerId>) {
        let listed: BTreeMap<PeerId, Version> = theirs.list().map(|entry| (entry.peer, version_of(&entry))).collect();
        let send = self
            .iter()
            .filter(|record| theirs.buckets >> bucket(&record.id) & 1 == 1)
            .filter(|record| listed.get(&record.id).is_none_or(|version| *version < record.version))
            .map(|record| record.id)
            .collect();
        let want = listed
            .iter()
            // What was forgotten is asked for again: its neighbours' records may vouch for it.
            .filter(|(id, version)| {
                let outcome = self.weigh(id, version, false, now);
                outcome.is_news() || outcome == Offered::Forgotten
            })
            .map(|(id, _)| *id)
            .collect();
        (send, want)
    }
}

fn entry(record: &SignedRecord) -> VersionEntry {
    let Version { incarnation, seq, tag } = record.version;
    VersionEntry { peer: record.id, incarnation: incarnation.0, seq, tag }
}

const fn version_of(entry: &VersionEntry) -> Version {
    Version { incarnation: crate::id::Incarnation(entry.incarnation), seq: entry.seq, tag: entry.tag }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{id, record};
    use super::*;
    use proptest::prelude::*;

    const NOW: Duration = Duration::ZERO;

    fn store(list: &[(u8, u64, u64)]) -> Store {
        let mut store = Store::default();
        for &(origin, incarnation, seq) in list {
            store.offer(record(origin, incarnation, seq, &[]), false, NOW);
        }
        store
    }

    fn contents(store: &Store) -> Vec<(PeerId, Version)> {
        store.iter().map(|record| (record.id, record.version)).collect()
    }

    /// One comparison, both ways, as the messages would run it.
    fn repair(a: &mut Store, b: &mut Store) -> usize {
        if a.digest() == b.digest() {
            return 0;
        }
        let versions = a.versions_where_different(&b.buckets()).expect("roots differ, so does a bucket");
        let (send, want) = b.compare(&versions, NOW);
        for id in &send {
            a.offer(b.get(id).unwrap().clone(), false, NOW);
        }
        for id in &want {
            b.offer(a.get(id).unwrap().clone(), false, NOW);
        }
        send.len() + want.len()
    }

    #[test]
    fn a_forgotten_peer_comes_back_with_a_newer_record_or_when_vouched_for() {
        let mut store = store(&[(1, 1, 1)]);
        store.forget(&id(1), NOW).unwrap();
        assert_eq!(store.offer(record(1, 1, 1, &[]), false, NOW), Offered::Forgotten);
        assert_eq!(store.weigh(&id(1), &record(1, 1, 1, &[]).version, true, NOW), Offered::New);
        assert_eq!(store.weigh(&id(1), &record(1, 1, 1, &[]).version, false, TOMBSTONE), Offered::New);
        assert_eq!(store.offer(record(1, 1, 2, &[]), false, NOW), Offered::New);
    }

    #[test]
    fn there_is_room_for_so_many_peers_and_no_more() {
        let mut store = Store::default();
        for n in 0..PEERS_MAX {
            let mut one = record(1, 1, 1, &[]);
            one.id = PeerId((n as u128).to_be_bytes());
            assert_eq!(store.offer(one, false, NOW), Offered::New);
        }
        assert_eq!(store.offer(record(2, 1, 1, &[]), false, NOW), Offered::Full);
        let mut known = record(1, 1, 2, &[]);
        known.id = PeerId([0; 16]);
        assert_eq!(store.offer(known, false, NOW), Offered::Newer);
    }

    #[test]
    fn a_comparison_costs_as_much_as_the_difference() {
        let all: Vec<_> = (0..200).map(|n| (n, 1, 1)).collect();
        let (mut a, mut b) = (store(&all), store(&all));
        assert_eq!(repair(&mut a, &mut b), 0);
        b.offer(record(7, 1, 2, &[]), false, NOW);
        let versions = a.versions_where_different(&b.buckets()).unwrap();
        assert_eq!(versions.buckets.count_ones(), 1);
        assert!(versions.list().count() < 20);
        assert_eq!(repair(&mut a, &mut b), 1);
        assert_eq!(contents(&a), contents(&b));
    }

    fn any_records() -> impl Strategy<Value = Vec<(u8, u64, u64)>> {
        proptest::collection::vec((0..6u8, 0..3u64, 0..4u64), 0..12)
    }

    proptest! {
        #[test]
        fn merging_is_commutative_associative_and_idempotent(
            mut list in any_records(), seed in any::<u64>(),
        ) {
            let once = store(&list);
            let doubled: Vec<_> = list.iter().chain(&list).copied().collect();
            prop_assert_eq!(contents(&store(&doubled)), contents(&once));
            // Any order, split at any point and merged as two stores, gives the same.
            let turn = (seed as usize) % list.len().max(1);
            list.rotate_left(turn);
            list.reverse();
            let (left, right) = list.split_at((seed as usize / 7) % (list.len() + 1));
            let (mut a, b) = (store(left), store(right));
            for record in b.iter() {
                a.offer(record.clone(), false, NOW);
            }
            prop_assert_eq!(contents(&a), contents(&once));
            prop_assert_eq!(a.digest(), once.digest());
            prop_assert_eq!(a.buckets(), once.buckets());
        }

        #[test]
        fn one_comparison_makes_two_stores_equal(left in any_records(), right in any_records()) {
            let (mut a, mut b) = (store(&left), store(&right));
            repair(&mut a, &mut b);
            prop_assert_eq!(contents(&a), contents(&b));
            prop_assert_eq!(a.digest(), b.digest());
        }
    }
}
