//! What one peer says of names: a set that only it changes and that everybody can merge.
//!
//! ```text
//!   name ─► (version, addresses, services)      no address: gone, remembered so that an old word does not
//!   floor: a version                  revive it; what is not above the floor is gone for good
//! ```
//!
//! Each change takes the next version. Merging takes the later entry of each name and the higher
//! floor, so order, loss and repetition do not matter (names N2).

use std::collections::BTreeMap;

use super::super::crypto;
use crate::wire::names::{Addresses, Entry, HASH_LEN, Name};
use crate::wire::services::NameRecords;

/// Most names of one peer.
pub const NAMES_MAX: usize = 2048;
/// Most gone names that are remembered; then all others are told anew, above a new floor.
const GONE_MAX: usize = 256;
/// Most names that are taken from another peer: while it tells all anew, old and new overlap.
const TAKEN_MAX: usize = 2 * (NAMES_MAX + GONE_MAX);

/// A change of one name: which addresses it had before, and has now.
pub(super) type Change = (Name, Addresses, Addresses);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    version: u64,
    records: NameRecords,
}

impl Claim {
    fn is_gone(&self) -> bool {
        self.records.addresses.is_empty()
    }
}

/// The names of one peer in one of its lives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Claims {
    floor: u64,
    claims: BTreeMap<Name, Claim>,
    /// The highest version that is in it.
    version: u64,
    /// Of all that is in it: kept up to date with each change, so that comparing costs nothing.
    sum: u128,
}

/// Services are not in it, or peers that know of none would take what they have for incomplete. The
/// version stands for them: it is another one with each change (names N2).
fn hash(name: &Name, claim: &Claim) -> u128 {
    let addresses: Vec<u8> = claim
        .records
        .addresses
        .list()
        .iter()
        .flat_map(|address| match address {
            core::net::IpAddr::V4(v4) => [&[4][..], &v4.octets()].concat(),
            core::net::IpAddr::V6(v6) => [&[6][..], &v6.octets()].concat(),
        })
        .collect();
    half(&crypto::hash(&[name.as_str().as_bytes(), &claim.version.to_be_bytes(), &addresses]))
}

/// The first half of a hash, as a number.
pub(super) fn half(hash: &[u8; 32]) -> u128 {
    let mut half = [0; HASH_LEN];
    half.copy_from_slice(&hash[..HASH_LEN]);
    u128::from_be_bytes(half)
}

impl Claims {
    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    pub(super) const fn floor(&self) -> u64 {
        self.floor
    }

    /// The hash of all of it; the floor is in it too.
    pub(super) fn sum(&self) -> [u8; HASH_LEN] {
        let floor = half(&crypto::hash(&[&self.floor.to_be_bytes()]));
        self.sum.wrapping_add(if self.floor == 0 { 0 } else { floor }).to_be_bytes()
    }

    /// What is said of a name, if it is there.
    pub(super) fn records(&self, name: &Name) -> Option<&NameRecords> {
        self.claims.get(name).map(|claim| &claim.records)
    }

    /// The names that are there, with what is said of them.
    pub(super) fn live(&self) -> impl Iterator<Item = (&Name, &NameRecords)> {
        self.claims.iter().filter(|(_, claim)| !claim.is_gone()).map(|(name, claim)| (name, &claim.records))
    }

    /// What is beyond a version, in the order in which it came.
    pub(super) fn beyond(&self, version: u64) -> Vec<Entry> {
        let later = self.claims.iter().filter(|(_, claim)| claim.version > version);
        let entry = |(name, claim): (&Name, &Claim)| Entry::new(name.clone(), claim.version, claim.records.clone());
        let mut entries: Vec<Entry> = later.map(entry).collect();
        entries.sort_unstable_by_key(|entry| entry.version);
        entries
    }

    /// Makes these the names of this peer. Those beyond [`NAMES_MAX`] are left out.
    pub(super) fn change_to(&mut self, wanted: &BTreeMap<Name, NameRecords>) -> Vec<Change> {
        let there = |records: &NameRecords| !records.addresses.is_empty();
        let wanted: BTreeMap<&Name, &NameRecords> =
            wanted.iter().filter(|(_, records)| there(records)).take(NAMES_MAX).collect();
        let gone: Vec<Name> =
            self.live().map(|(name, _)| name).filter(|name| !wanted.contains_key(name)).cloned().collect();
        let mut changes = Vec::new();
        for name in gone {
            changes.extend(self.next(name, NameRecords::default()));
        }
        for (name, records) in wanted {
            changes.extend(self.next(name.clone(), records.clone()));
        }
        if self.claims.values().filter(|claim| claim.is_gone()).count() > GONE_MAX {
            self.begin_anew();
        }
        changes
    }

    /// The next version of a name, if that is a change.
    fn next(&mut self, name: Name, records: NameRecords) -> Option<Change> {
        if self.claims.get(&name).is_some_and(|claim| claim.records == records) {
            return None;
        }
        self.take(Entry::new(name, self.version + 1, records))
    }

    /// Forgets what is gone, and gives what is there a version above all that was.
    fn begin_anew(&mut self) {
        let floor = self.version;
        let mut version = floor;
        self.sum = 0;
        self.claims.retain(|_, claim| !claim.is_gone());
        for (name, claim) in &mut self.claims {
            version += 1;
            claim.version = version;
            self.sum = self.sum.wrapping_add(hash(name, claim));
        }
        (self.floor, self.version) = (floor, version);
    }

    /// Takes one entry in, if it is later than what is known. That services are others is no change of the
    /// name's addresses.
    pub(super) fn take(&mut self, entry: Entry) -> Option<Change> {
        let Entry { name, version, addresses, services } = entry;
        let claim = Claim { version, records: NameRecords { addresses, services } };
        let old = self.claims.get(&name);
        // Two of one version are of a data directory that ran twice: all take the same of them.
        if version <= self.floor
            || old.is_some_and(|old| *old >= claim)
            || old.is_none() && self.claims.len() >= TAKEN_MAX
        {
            return None;
        }
        self.version = self.version.max(version);
        self.sum = self.sum.wrapping_add(hash(&name, &claim));
        let now = claim.records.addresses.clone();
        let before = self.claims.insert(name.clone(), claim);
        if let Some(before) = &before {
            self.sum = self.sum.wrapping_sub(hash(&name, before));
        }
        let before = before.map(|before| before.records.addresses).unwrap_or_default();
        (before != now).then_some((name, before, now))
    }

    /// Raises the floor: what is not above it is gone.
    pub(super) fn raise_floor(&mut self, floor: u64) -> Vec<Change> {
        if floor <= self.floor {
            return Vec::new();
        }
        self.floor = floor;
        self.version = self.version.max(floor);
        let mut changes = Vec::new();
        let sum = &mut self.sum;
        self.claims.retain(|name, claim| {
            let stays = claim.version > floor;
            if !stays {
                *sum = sum.wrapping_sub(hash(name, claim));
                if !claim.is_gone() {
                    changes.push((name.clone(), claim.records.addresses.clone(), Addresses::default()));
                }
            }
            stays
        });
        changes
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use proptest::prelude::*;

    fn name(number: u8) -> Name {
        format!("n{number}").parse().unwrap()
    }

    fn addresses(number: u8) -> Addresses {
        Addresses::new((0..number).map(|last| IpAddr::from([10, 0, 0, last])))
    }

    /// As many services as addresses, so that different addresses have different ones.
    fn records(number: u8) -> NameRecords {
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let served = (0..number).map(|last| (format!("http={}", 80 + u16::from(last)).parse().unwrap(), ip(last)));
        NameRecords::new((0..number).map(ip), served)
    }

    fn entry((number, version, count): (u8, u64, u8)) -> Entry {
        Entry::new(name(number), version, records(count))
    }

    /// A state that some messages may have led to.
    fn state() -> impl Strategy<Value = Claims> {
        (proptest::collection::vec((0..5u8, 1..8u64, 0..3u8), 0..8), 0..6u64).prop_map(|(entries, floor)| {
            let mut claims = Claims::default();
            for one in entries {
                claims.take(entry(one));
            }
            claims.raise_floor(floor);
            claims
        })
    }

    fn merged(mut into: Claims, other: &Claims) -> Claims {
        for entry in other.beyond(0) {
            into.take(entry);
        }
        into.raise_floor(other.floor());
        into
    }

    fn wanted(list: &[(u8, u8)]) -> BTreeMap<Name, NameRecords> {
        list.iter().map(|&(number, count)| (name(number), records(count))).collect()
    }

    fn live(claims: &Claims) -> BTreeMap<Name, NameRecords> {
        claims.live().map(|(name, records)| (name.clone(), records.clone())).collect()
    }

    #[test]
    fn a_port_that_changes_is_a_change_that_everybody_hears_of() {
        let (mut origin, name) = (Claims::default(), name(1));
        let at = |port: &str| {
            NameRecords::new(addresses(1).list().to_vec(), [(port.parse().unwrap(), addresses(1).list()[0])])
        };
        origin.change_to(&BTreeMap::from([(name.clone(), at("http=80"))]));
        let before = origin.version();
        let mut other = merged(Claims::default(), &origin);
        assert!(origin.change_to(&BTreeMap::from([(name.clone(), at("http=8080"))])).is_empty(), "the same addresses");
        assert_eq!(origin.beyond(before).len(), 1);
        other = merged(other, &origin);
        assert_eq!((other.records(&name), other.sum()), (Some(&at("http=8080")), origin.sum()));
    }

    #[test]
    fn so_many_gone_names_are_remembered_and_then_none() {
        let mut origin = Claims::default();
        let mut other = Claims::default();
        let keep: Name = "keep".parse().unwrap();
        for round in 0..=GONE_MAX {
            let mut wanted = BTreeMap::from([(keep.clone(), records(1))]);
            wanted.insert(format!("one-off-{round}").parse().unwrap(), records(2));
            origin.change_to(&wanted);
            other = merged(other, &origin);
        }
        assert_eq!(origin.floor(), 0);
        origin.change_to(&BTreeMap::from([(keep.clone(), records(1))]));
        assert!(origin.floor() > 0);
        assert_eq!(origin.beyond(0).len(), 1);
        other = merged(other, &origin);
        assert_eq!((&other, other.sum()), (&origin, origin.sum()));
        assert_eq!(live(&other), BTreeMap::from([(keep, records(1))]));
    }

    #[test]
    fn there_is_room_for_so_many_names_and_no_more() {
        let number = |number: usize| -> Name { format!("n{number}").parse().unwrap() };
        let all: BTreeMap<Name, NameRecords> = (0..NAMES_MAX + 5).map(|n| (number(n), records(1))).collect();
        let mut own = Claims::default();
        own.change_to(&all);
        assert_eq!(own.live().count(), NAMES_MAX);
        let mut taken = Claims::default();
        for n in 0..TAKEN_MAX + 5 {
            taken.take(Entry::new(number(n), n as u64 + 1, records(1)));
        }
        assert_eq!(taken.live().count(), TAKEN_MAX);
    }

    proptest! {
        #[test]
        fn merging_is_commutative_associative_and_idempotent(a in state(), b in state(), c in state()) {
            prop_assert_eq!(merged(a.clone(), &b), merged(b.clone(), &a));
            let left = merged(merged(a.clone(), &b), &c);
            prop_assert_eq!(&left, &merged(a.clone(), &merged(b, &c)));
            prop_assert_eq!(&merged(left.clone(), &a), &left);
            prop_assert_eq!(&merged(left.clone(), &left), &left);
        }

        #[test]
        fn the_hash_is_that_of_the_content_however_it_came(a in state(), b in state()) {
            let together = merged(a, &b);
            let mut anew = Claims::default();
            anew.raise_floor(together.floor());
            for entry in together.beyond(0).into_iter().rev() {
                anew.take(entry);
            }
            prop_assert_eq!(anew.sum(), together.sum());
            prop_assert_eq!(anew, together);
        }

        #[test]
        fn whoever_hears_all_messages_in_any_order_knows_what_the_origin_says(
            rounds in proptest::collection::vec(proptest::collection::vec((0..6u8, 1..3u8), 0..5), 1..8),
            seed in any::<usize>(),
        ) {
            let (mut origin, mut told) = (Claims::default(), Vec::new());
            for round in &rounds {
                let before = origin.version();
                origin.change_to(&wanted(round));
                prop_assert_eq!(live(&origin), wanted(round));
                told.push((origin.floor(), origin.beyond(before)));
            }
            let turn = seed % told.len();
            told.rotate_left(turn);
            let mut other = Claims::default();
            for (floor, entries) in told.into_iter().rev() {
                for entry in entries.into_iter().rev() {
                    other.take(entry);
                }
                other.raise_floor(floor);
            }
            prop_assert_eq!(live(&other), live(&origin));
            prop_assert_eq!(other.sum(), origin.sum());
        }

        #[test]
        fn changes_tell_what_was_and_what_is(
            first in proptest::collection::vec((0..6u8, 1..3u8), 0..5),
            second in proptest::collection::vec((0..6u8, 1..3u8), 0..5),
        ) {
            let mut claims = Claims::default();
            claims.change_to(&wanted(&first));
            let addresses = |claims: &Claims| -> BTreeMap<Name, Addresses> {
                claims.live().map(|(name, records)| (name.clone(), records.addresses.clone())).collect()
            };
            let mut seen = addresses(&claims);
            for (name, before, now) in claims.change_to(&wanted(&second)) {
                prop_assert_eq!(seen.remove(&name).unwrap_or_default(), before);
                if !now.is_empty() {
                    seen.insert(name, now);
                }
            }
            prop_assert_eq!(seen, addresses(&claims));
        }
    }
}
