//! The guard in front of the VXLAN port: a table of nftables, made and kept by netlink.
//!
//! ```text
//!  table inet weft-guard
//!    set peers4, peers6        addresses of the peers that VXLAN is taken from
//!    set owned                 MAC addresses that have an owner, here or at a peer
//!    set pairs4, pairs6        the owning peer's address, with the MAC address
//!    chain arriving            input: what this host itself takes, put together from its fragments
//!      to the port, IPv4 without options, not from the
//!        bridge, (source, inner source) in pairs4            accept
//!      to the port                                           go to `vxlan`
//!    chain vxlan
//!      from a link-local source, not from the tunnel         count `strangers`, drop
//!      not from the bridge, (source, inner source) in pairs  accept
//!      not UDP                                               accept
//!      from the bridge                                       count `inside`, drop
//!      source not in peers                                   count `strangers`, drop
//!      inner source not in owned                             accept
//!      all else                                              count `spoofed`, drop
//!    chain passing             forward
//!      to the port, by UDP, not to the bridge                count `inside`, drop
//! ```
//!
//! The last one is for containers that another network of this host masquerades: what they send
//! to a peer's VXLAN port would arrive there with this host's address (fastpath F12).
//!
//! Link-local sources are those of peers inside WireGuard, the tunnel, which proves them; from elsewhere
//! anybody could have written them (fastpath F19).
//!
//! Each packet of the fast path comes by here, so what is usual is quick: a linked peer's frames are
//! accepted by one look into a set, those by IPv4 by the first rule of all. Where br_netfilter is at work,
//! what the bridge passes on comes by `passing`, but not by `arriving`. Both begin with the port: up to four
//! bytes that lie at a multiple of their number are read and compared by nftables in place, without a call.
//! The inner source is therefore read in two parts, the bridge known by its index, and IPv4 in the first rule
//! by the first byte of its header.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use super::table::{
    BASE_NETWORK, BASE_TRANSPORT, DEL_ELEMENT, Is, META_FAMILY, META_IIF, META_IIFNAME, META_OIFNAME, META_PROTOCOL,
    NEW_ELEMENT, REGISTER, REGISTER_SMALL, Rule, Table, UDP, interface_name,
};
use crate::netlink::Mac;
use crate::netlink::raw::Batch;

const INET: u8 = 1;
const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;

const STRANGERS: &str = "strangers";
const INSIDE: &str = "inside";
const SPOOFED: &str = "spoofed";
const ARRIVING: &str = "arriving";
const VXLAN: &str = "vxlan";
const PASSING: &str = "passing";
const RULES: usize = 12;
/// The sets of peers, with what a rule needs: family, and where the source is in the IP header.
const FAMILIES: [Family; 2] = [
    Family { peers: "peers4", pairs: "pairs4", family: 2, offset: 12, length: 4, key_type: 7 },
    Family { peers: "peers6", pairs: "pairs6", family: 10, offset: 8, length: 16, key_type: 8 },
];
const OWNED: &str = "owned";
/// How `nft list` shows MAC addresses (ether_addr).
const ETHER_TYPE: u32 = 9;
/// The same for parts of two and of four bytes (inet_service, mark), of which there is nothing better.
const PART_TYPES: u32 = 13 << 6 | 19;
/// How a header of IPv4 without options begins: its version, and its length in words.
const PLAIN_IPV4: [u8; 1] = [0x45];
/// Where the inner source is, behind the headers of UDP and VXLAN and the inner destination.
const INNER_SOURCE: u32 = 8 + 8 + 6;

struct Family {
    peers: &'static str,
    pairs: &'static str,
    family: u8,
    offset: u32,
    length: u32,
    key_type: u32,
}

/// The family of an address.
const fn family(ip: IpAddr) -> &'static Family {
    match ip {
        IpAddr::V4(_) => &FAMILIES[0],
        IpAddr::V6(_) => &FAMILIES[1],
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A MAC address in a key that it ends: its two parts, each filled up to a register.
fn in_parts(mac: Mac) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac;
    [a, b, 0, 0, c, d, e, f]
}

/// An address of each family, IPv4 first, if there is one.
pub type Sources = [Option<IpAddr>; 2];

/// A MAC address that has an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned {
    /// The address.
    pub mac: Mac,
    /// The peer that may send it; none if nobody may, for it is here or its owner is not a peer
    /// that VXLAN is taken from.
    pub from: Sources,
}

/// Elements in one transaction: well under the least send buffer.
const ELEMENTS: usize = 1000;

/// What the guard has dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// VXLAN from addresses that are no linked peer's.
    pub strangers: u64,
    /// VXLAN that containers sent, to this host or past it.
    pub inside: u64,
    /// VXLAN with an inner source that belongs to somebody else.
    pub spoofed: u64,
}

/// The guard of one VXLAN port.
#[derive(Debug)]
pub struct Guard {
    table: Table,
    bridge: String,
    tunnel: String,
    port: u16,
}

impl Guard {
    /// A guard that is not there yet. `table` is its name, `port` the UDP port, and `tunnel` the interface that
    /// proves link-local sources.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn new(table: &str, bridge: &str, tunnel: &str, port: u16) -> io::Result<Self> {
        let table = Table::new(table, INET)?;
        Ok(Self { table, bridge: bridge.to_owned(), tunnel: tunnel.to_owned(), port })
    }

    /// Sets the guard up, or anew, in one step: there is no moment without. `bridge` is the index of
    /// the bridge: when there is another one, it has to be set up anew.
    ///
    /// # Errors
    /// If the kernel has no nftables, or refuses.
    pub fn install(&self, bridge: u32, peers: &[IpAddr]) -> io::Result<()> {
        let first = peers.len().min(ELEMENTS);
        let table = &self.table;
        table.transact(|batch| {
            table.renew(batch);
            for (id, Family { peers, pairs, length, key_type, .. }) in (1..).step_by(2).zip(&FAMILIES) {
                table.set(batch, peers, id, *length, *key_type);
                table.set(batch, pairs, id + 1, length + 8, key_type << 12 | PART_TYPES);
            }
            table.set(batch, OWNED, 9, 6, ETHER_TYPE);
            for name in [STRANGERS, INSIDE, SPOOFED] {
                table.counter(batch, name);
            }
            table.chain(batch, VXLAN, None);
            table.chain(batch, ARRIVING, Some(HOOK_INPUT));
            table.chain(batch, PASSING, Some(HOOK_FORWARD));
            table.rule(batch, ARRIVING, |rule| {
                rule.is_for_port(self.port);
                rule.bytes(BASE_NETWORK, 0, &PLAIN_IPV4);
                accept_paired(rule, &FAMILIES[0], bridge);
            });
            table.rule(batch, ARRIVING, |rule| {
                rule.is_for_port(self.port);
                rule.goto(VXLAN);
            });
            self.vxlan_rules(batch, bridge);
            table.rule(batch, PASSING, |rule| {
                rule.is_for_port(self.port);
                rule.meta(META_PROTOCOL, Is::Equal, &[UDP]);
                rule.meta(META_OIFNAME, Is::Other, &interface_name(&self.bridge));
                rule.count_and_drop(INSIDE);
            });
            self.peers(batch, NEW_ELEMENT, &peers[..first]);
        })?;
        self.admit(&peers[first..])
    }

    /// What becomes of what is for the port.
    fn vxlan_rules(&self, batch: &mut Batch, bridge: u32) {
        let table = &self.table;
        for family in &FAMILIES {
            if family.length == 16 {
                self.untunnelled(batch, bridge);
            }
            table.rule(batch, VXLAN, |rule| {
                rule.meta(META_FAMILY, Is::Equal, &[family.family]);
                accept_paired(rule, family, bridge);
            });
        }
        table.rule(batch, VXLAN, |rule| {
            rule.meta(META_PROTOCOL, Is::Other, &[UDP]);
            rule.accept();
        });
        table.rule(batch, VXLAN, |rule| {
            rule.meta(META_IIFNAME, Is::Equal, &interface_name(&self.bridge));
            rule.count_and_drop(INSIDE);
        });
        for Family { peers, family, offset, length, .. } in &FAMILIES {
            table.rule(batch, VXLAN, |rule| {
                rule.meta(META_FAMILY, Is::Equal, &[*family]);
                rule.payload(REGISTER, BASE_NETWORK, *offset, *length);
                rule.is_in(peers, REGISTER, false);
                rule.count_and_drop(STRANGERS);
            });
        }
        table.rule(batch, VXLAN, |rule| {
            rule.payload(REGISTER, BASE_TRANSPORT, INNER_SOURCE, 6);
            rule.is_in(OWNED, REGISTER, false);
            rule.accept();
        });
        // Also where there is no inner source to look at: a first fragment of IPv6, which comes by
        // before it is put together, may be cut so short.
        table.rule(batch, VXLAN, |rule| rule.count_and_drop(SPOOFED));
    }

    /// Drops what says that it comes from inside the tunnel, and does not.
    fn untunnelled(&self, batch: &mut Batch, bridge: u32) {
        let Family { family, offset, .. } = &FAMILIES[1];
        self.table.rule(batch, VXLAN, |rule| {
            rule.meta(META_FAMILY, Is::Equal, &[*family]);
            rule.payload(REGISTER, BASE_NETWORK, *offset, 2);
            rule.compare(Is::AtLeast, &[0xfe, 0x80]);
            rule.compare(Is::AtMost, &[0xfe, 0xbf]);
            rule.meta(META_IIF, Is::Other, &bridge.to_ne_bytes());
            rule.meta(META_IIFNAME, Is::Other, &interface_name(&self.tunnel));
            rule.meta(META_PROTOCOL, Is::Equal, &[UDP]);
            rule.count_and_drop(STRANGERS);
        });
    }

    /// Lets VXLAN from these addresses pass.
    ///
    /// # Errors
    /// If the guard is not there, or the kernel refuses.
    pub fn admit(&self, peers: &[IpAddr]) -> io::Result<()> {
        peers.chunks(ELEMENTS).try_for_each(|peers| self.table.transact(|batch| self.peers(batch, NEW_ELEMENT, peers)))
    }

    /// Lets VXLAN from this address pass no more. That it did not pass before is fine.
    ///
    /// # Errors
    /// If the guard is not there, or the kernel refuses.
    pub fn refuse(&self, peer: IpAddr) -> io::Result<()> {
        match self.table.transact(|batch| self.peers(batch, DEL_ELEMENT, &[peer])) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }

    /// Changes owners: the first are no longer as given, the second are from now on. What was
    /// given for an address before must be taken back before, or with, what is given anew.
    ///
    /// # Errors
    /// If the guard is not there, or not as it is said to be; then nothing of at most
    /// a thousand changes was made.
    pub fn own(&self, old: &[Owned], new: &[Owned]) -> io::Result<()> {
        old.chunks(ELEMENTS).try_for_each(|old| self.table.transact(|batch| self.owners(batch, DEL_ELEMENT, old)))?;
        new.chunks(ELEMENTS).try_for_each(|new| self.table.transact(|batch| self.owners(batch, NEW_ELEMENT, new)))
    }

    /// Takes the guard away; fine if there is none.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(&self) -> io::Result<()> {
        self.table.remove()
    }

    /// Whether the guard is there, whole, lets exactly these addresses pass, and knows as many
    /// owners of MAC addresses.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn stands<'a>(&self, peers: &BTreeSet<IpAddr>, owned: impl IntoIterator<Item = &'a Owned>) -> io::Result<bool> {
        let rules = self.table.rules()?;
        let mut found = BTreeSet::new();
        for Family { peers, .. } in &FAMILIES {
            self.table.list(peers, |key| found.extend(address(key)))?;
        }
        // The addresses, and their pairs by IPv4 and IPv6.
        let (mut counts, mut expected) = ([0; 3], [0; 3]);
        for (set, count) in [OWNED, FAMILIES[0].pairs, FAMILIES[1].pairs].into_iter().zip(&mut counts) {
            self.table.list(set, |_| *count += 1)?;
        }
        for Owned { from: [v4, v6], .. } in owned {
            let there = [true, v4.is_some(), v6.is_some()];
            expected.iter_mut().zip(there).for_each(|(count, there)| *count += usize::from(there));
        }
        Ok(rules == RULES && found == *peers && counts == expected)
    }

    /// What was dropped since the guard was set up.
    ///
    /// # Errors
    /// If the guard is not there.
    pub fn dropped(&self) -> io::Result<Dropped> {
        Ok(Dropped {
            strangers: self.table.count(STRANGERS)?,
            inside: self.table.count(INSIDE)?,
            spoofed: self.table.count(SPOOFED)?,
        })
    }

    fn peers(&self, batch: &mut Batch, kind: u16, peers: &[IpAddr]) {
        for Family { peers: set, family: wanted, .. } in &FAMILIES {
            let keys = peers.iter().filter(|ip| family(**ip).family == *wanted).map(|ip| octets(*ip));
            self.table.elements(batch, kind, set, &keys.collect::<Vec<_>>());
        }
    }

    fn owners(&self, batch: &mut Batch, kind: u16, owned: &[Owned]) {
        let macs: Vec<_> = owned.iter().map(|owned| owned.mac.to_vec()).collect();
        self.table.elements(batch, kind, OWNED, &macs);
        for Family { pairs, family: wanted, .. } in &FAMILIES {
            let pair = |owned: &Owned| {
                let ip = owned.from.into_iter().flatten().find(|ip| family(*ip).family == *wanted)?;
                Some([&octets(ip)[..], &in_parts(owned.mac)].concat())
            };
            self.table.elements(batch, kind, pairs, &owned.iter().filter_map(pair).collect::<Vec<_>>());
        }
    }
}

/// The end of what a peer sends for an address of its own, but not of what comes from the bridge. The packet
/// is of that family.
fn accept_paired(rule: &mut Rule<'_, '_>, family: &Family, bridge: u32) {
    let Family { pairs, offset, length, .. } = family;
    rule.meta(META_IIF, Is::Other, &bridge.to_ne_bytes());
    rule.payload(REGISTER_SMALL, BASE_NETWORK, *offset, *length);
    rule.payload(REGISTER_SMALL + length / 4, BASE_TRANSPORT, INNER_SOURCE, 2);
    rule.payload(REGISTER_SMALL + length / 4 + 1, BASE_TRANSPORT, INNER_SOURCE + 2, 4);
    rule.is_in(pairs, REGISTER_SMALL, true);
    rule.accept();
}

fn address(key: &[u8]) -> Option<IpAddr> {
    match key.len() {
        4 => <[u8; 4]>::try_from(key).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(key).ok().map(IpAddr::from),
    }
}
