//! Names and addresses of all peers, to be found by either.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};

use super::claims::Change;
use crate::id::PeerId;
use crate::wire::names::Name;

/// Who says something of which name, and which names an address has.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// By the name with its labels the other way round, so that those below one follow it.
    names: BTreeMap<String, BTreeSet<PeerId>>,
    addresses: BTreeMap<IpAddr, BTreeSet<(PeerId, Name)>>,
}

impl Directory {
    pub(super) fn apply(&mut self, peer: PeerId, (name, before, now): Change) {
        for address in before.list() {
            remove(&mut self.addresses, address, &(peer, name.clone()));
        }
        for address in now.list() {
            self.addresses.entry(*address).or_default().insert((peer, name.clone()));
        }
        let key = name.reversed();
        if now.is_empty() {
            remove(&mut self.names, &key, &peer);
        } else {
            self.names.entry(key).or_default().insert(peer);
        }
    }

    /// Who has that name.
    pub(super) fn owners(&self, name: &Name) -> impl Iterator<Item = PeerId> + '_ {
        self.names.get(&name.reversed()).into_iter().flatten().copied()
    }

    /// Who has names below that one.
    pub(super) fn owners_below(&self, name: &Name) -> impl Iterator<Item = PeerId> + '_ {
        let prefix = name.reversed() + ".";
        let from = self.names.range(prefix.clone()..);
        from.take_while(move |(key, _)| key.starts_with(&prefix)).flat_map(|(_, owners)| owners.iter().copied())
    }

    /// Which names an address has, and by whom.
    pub(super) fn of_address(&self, address: IpAddr) -> impl Iterator<Item = &(PeerId, Name)> {
        self.addresses.get(&address).into_iter().flatten()
    }
}

fn remove<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::names::Addresses;

    #[test]
    fn what_was_put_in_is_found_by_name_and_by_address_until_it_is_taken_out() {
        let (peer, other) = (PeerId([1; 16]), PeerId([2; 16]));
        let name: Name = "db.prod".parse().unwrap();
        let address = IpAddr::from([10, 0, 0, 1]);
        let mut directory = Directory::default();
        let one = || Addresses::new([address]);
        for peer in [peer, other] {
            directory.apply(peer, (name.clone(), Addresses::default(), one()));
        }
        let above: Name = "prod".parse().unwrap();
        let like: Name = "pro".parse().unwrap();
        assert_eq!(directory.owners(&name).collect::<Vec<_>>(), [peer, other]);
        assert_eq!(directory.owners(&above).count(), 0);
        assert_eq!(directory.owners_below(&above).collect::<Vec<_>>(), [peer, other]);
        assert_eq!(directory.owners_below(&like).count(), 0);
        assert_eq!(directory.of_address(address).count(), 2);
        for peer in [peer, other] {
            directory.apply(peer, (name.clone(), one(), Addresses::default()));
        }
        assert_eq!(directory.owners(&name).chain(directory.owners_below(&above)).count(), 0);
        assert_eq!(directory.of_address(address).count(), 0);
        assert!(directory.names.is_empty() && directory.addresses.is_empty());
    }
}
