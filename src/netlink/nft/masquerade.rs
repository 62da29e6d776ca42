//! Whose connections to outside of the mesh go in the host's name: a table of nftables' family `inet`
//! (kubernetes K17).
//!
//! ```text
//!  table inet weft-masquerade
//!    set sources4, sources6    addresses of containers
//!    chain leaving             postrouting: the first packet of each connection
//!      not out by the bridge, from one of the sources, to no range of the mesh and no group   masquerade
//!      if the host does so for all: … from any address of the mesh, …                         masquerade
//! ```
//!
//! What other rules have translated already (kube-proxy's come by the same hook) stays as it is: the
//! kernel translates a connection's source once.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::table::{
    BASE_NETWORK, DEL_ELEMENT, Is, META_FAMILY, META_OIFNAME, NEW_ELEMENT, REGISTER, Rule, Table, interface_name,
};
use crate::netlink::raw::Batch;

const INET: u8 = 1;
const HOOK_POSTROUTING: u32 = 4;

const LEAVING: &str = "leaving";
/// One set for each family: how the kernel numbers it, where source and destination are in the header and
/// how long, how `nft list` shows them, and what addresses of groups begin with.
const FAMILIES: [Family; 2] = [
    Family {
        sources: "sources4",
        family: 2,
        source: 12,
        destination: 16,
        length: 4,
        key_type: 7,
        groups: "224.0.0.0/4",
    },
    Family { sources: "sources6", family: 10, source: 8, destination: 24, length: 16, key_type: 8, groups: "ff00::/8" },
];
/// Elements in one transaction: well under the least send buffer.
const ELEMENTS: usize = 1000;

struct Family {
    sources: &'static str,
    family: u8,
    source: u32,
    destination: u32,
    length: u32,
    key_type: u32,
    groups: &'static str,
}

impl Family {
    const fn has(&self, address: IpAddr) -> bool {
        address.is_ipv4() == (self.length == 4)
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The table of one bridge.
#[derive(Debug)]
pub struct MasqueradeTable {
    table: Table,
    bridge: String,
    /// What is not outside.
    ranges: Vec<IpNet>,
}

impl MasqueradeTable {
    /// A table that may not be there yet: for what leaves by another interface than the bridge, to none
    /// of the ranges.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn new(table: &str, bridge: &str, ranges: &[IpNet]) -> io::Result<Self> {
        Ok(Self { table: Table::new(table, INET)?, bridge: bridge.to_owned(), ranges: ranges.to_vec() })
    }

    /// Sets the table up, or anew, for these sources or for the whole mesh, in one step: there is no moment
    /// without. Connections that are there go on as they are. Of more than a thousand sources the rest follow at
    /// once.
    ///
    /// # Errors
    /// If the kernel has no nftables or cannot masquerade by them, or refuses.
    pub fn install(&self, sources: &BTreeSet<IpAddr>, all: bool) -> io::Result<()> {
        let sources: Vec<IpAddr> = sources.iter().copied().collect();
        let mut parts = sources.chunks(ELEMENTS);
        let first = parts.next().unwrap_or_default();
        self.table.transact(|batch| {
            self.table.renew(batch);
            for (id, family) in (1..).zip(&FAMILIES) {
                self.table.set(batch, family.sources, id, family.length, family.key_type);
            }
            self.table.source_chain(batch, LEAVING, HOOK_POSTROUTING);
            self.rules(batch, all);
            self.elements(batch, NEW_ELEMENT, first);
        })?;
        parts.try_for_each(|part| self.table.transact(|batch| self.elements(batch, NEW_ELEMENT, part)))
    }

    /// Takes out some sources and puts in others, in one step.
    ///
    /// # Errors
    /// If the table is not there or not as it is said to be, or the kernel refuses; then nothing is
    /// changed.
    pub fn change(&self, old: &[IpAddr], new: &[IpAddr]) -> io::Result<()> {
        if old.is_empty() && new.is_empty() {
            return Ok(());
        }
        self.table.transact(|batch| {
            self.elements(batch, DEL_ELEMENT, old);
            self.elements(batch, NEW_ELEMENT, new);
        })
    }

    /// Whether the table is there, whole, with exactly these sources.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn stands(&self, sources: &BTreeSet<IpAddr>, all: bool) -> io::Result<bool> {
        let mut found = BTreeSet::new();
        for family in &FAMILIES {
            self.table.list(family.sources, |key| _ = found.insert(key.to_vec()))?;
        }
        let wanted: BTreeSet<Vec<u8>> = sources.iter().copied().map(octets).collect();
        Ok(found == wanted && self.table.rules()? == self.rules(&mut Batch::default(), all))
    }

    /// Takes the table away; fine if there is none.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(&self) -> io::Result<()> {
        self.table.remove()
    }

    /// The rules; how many.
    fn rules(&self, batch: &mut Batch, all: bool) -> usize {
        let mut count = 0;
        for family in &FAMILIES {
            self.outward(batch, family, |rule| {
                rule.payload(REGISTER, BASE_NETWORK, family.source, family.length);
                rule.is_in(family.sources, REGISTER, true);
            });
            count += 1;
            for range in self.ranges.iter().filter(|range| all && family.has(range.addr())) {
                self.outward(batch, family, |rule| rule.within(BASE_NETWORK, family.source, *range, true));
                count += 1;
            }
        }
        count
    }

    /// What leaves the mesh, from some sources.
    fn outward(&self, batch: &mut Batch, family: &Family, from: impl FnOnce(&mut Rule<'_, '_>)) {
        self.table.rule(batch, LEAVING, |rule| {
            rule.meta(META_FAMILY, Is::Equal, &[family.family]);
            // What stays on the bridge, where a filter of IP looks at bridges too, is in the mesh.
            rule.meta(META_OIFNAME, Is::Other, &interface_name(&self.bridge));
            from(rule);
            let groups = family.groups.parse::<IpNet>().into_iter();
            for network in self.ranges.iter().copied().chain(groups).filter(|network| family.has(network.addr())) {
                rule.within(BASE_NETWORK, family.destination, network, false);
            }
            rule.masquerade();
        });
    }

    fn elements(&self, batch: &mut Batch, kind: u16, addresses: &[IpAddr]) {
        for family in &FAMILIES {
            let keys = addresses.iter().copied().filter(|address| family.has(*address)).map(octets);
            self.table.elements(batch, kind, family.sources, &keys.collect::<Vec<_>>());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_networks_of_their_family() {
        for family in &FAMILIES {
            let groups: IpNet = family.groups.parse().expect("a network");
            assert!(family.has(groups.addr()) && groups.addr().is_multicast(), "{groups}");
        }
    }
}
