//! What the ports of the bridge may send: a table of nftables' family `bridge` (guard P1).
//!
//! ```text
//!  table bridge weft-ports
//!    set ports                 names of the ports that are looked at
//!    set macs                  port, with its MAC address
//!    set own4, own6            port, with each of its addresses; of IPv6 the link-local one too
//!    chain arriving            prerouting: whatever comes into the bridge
//!      from one of the ports                    go to `sender`
//!    chain sender
//!      (port, source MAC) not in macs           count `port_mac`, drop
//!      IPv4, IPv6, ARP                          go to `ipv4`, `ipv6`, `arp`
//!      with a VLAN tag                          count `port_tagged`, drop
//!    chain ipv4                not UDP, or no first fragment ─► source4; to a DHCP client ─► `port_dhcp`
//!    chain source4             (port, source) in own4, or count `port_ipv4`, drop
//!    chain ipv6                no first fragment ─► source6; ICMPv6 ─► icmp6; else as IPv4
//!    chain source6             (port, source) in own6, or count `port_ipv6`, drop
//!    chain icmp6               neighbour discovery ─► neighbours; reports of groups from nobody; else ─► source6
//!    chain neighbours          each message in its usual form about its sender; else `port_router`, `port_neighbour`
//!    chain arp                 for Ethernet and IPv4, about its sender; else `port_arp`
//!    set open                  names of ports that are kept to nothing
//!    chain leaving             postrouting: whatever goes out of the bridge
//!      router advertisements and redirects, out by one of `open`   count `port_router`, drop
//!    for each network          what networks.rs shows
//! ```
//!
//! What is let through is what is known to be right: a packet with headers that the kernel cannot
//! follow to their end matches none of these rules and is dropped as `port_malformed`. Ports are
//! known by name, so that one is looked at from its first frame on: it is in the sets before it is
//! on the bridge.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use super::networks::Network;
use super::table::{
    BASE_LINK, BASE_NETWORK, BASE_TRANSPORT, DEL_ELEMENT, Is, META_IIFNAME, META_OIFNAME, META_PROTOCOL, NEW_ELEMENT,
    REGISTER, REGISTER_SMALL, Rule, Table, UDP, interface_name,
};
use crate::netlink::raw::Batch;
use crate::netlink::{Mac, link_local};

const BRIDGE: u8 = 7;
const HOOK_PREROUTING: u32 = 0;
const HOOK_POSTROUTING: u32 = 4;

const PORTS: &str = "ports";
/// Ports with their MAC addresses.
pub(super) const MACS: &str = "macs";
const OWN4: &str = "own4";
const OWN6: &str = "own6";
const OPEN: &str = "open";
/// The sets: length of their keys, and how `nft list` shows them (ifname, ether_addr, ipv4_addr, ipv6_addr).
const SETS: [(&str, u32, u32); 5] =
    [(PORTS, 16, 41), (MACS, 24, 41 << 6 | 9), (OWN4, 20, 41 << 6 | 7), (OWN6, 32, 41 << 6 | 8), (OPEN, 16, 41)];

/// What comes into the bridge.
pub(super) const ARRIVING: &str = "arriving";
/// What goes out of it.
pub(super) const LEAVING: &str = "leaving";
const SENDER: &str = "sender";
const V4: &str = "ipv4";
const SOURCE4: &str = "source4";
const V6: &str = "ipv6";
const SOURCE6: &str = "source6";
const ICMP6: &str = "icmp6";
const NEIGHBOURS: &str = "neighbours";
const ARP: &str = "arp";

pub(super) const MAC: &str = "port_mac";
const IPV4: &str = "port_ipv4";
const IPV6: &str = "port_ipv6";
const ARP_SENDER: &str = "port_arp";
const NEIGHBOUR: &str = "port_neighbour";
const ROUTER: &str = "port_router";
const DHCP: &str = "port_dhcp";
const TAGGED: &str = "port_tagged";
const MALFORMED: &str = "port_malformed";
pub(super) const NETWORK: &str = "port_network";
pub(super) const FOREIGN: &str = "port_foreign";
/// Why frames are dropped; each is the name of a counter.
pub const REASONS: [&str; 11] =
    [MAC, IPV4, IPV6, ARP_SENDER, NEIGHBOUR, ROUTER, DHCP, TAGGED, MALFORMED, NETWORK, FOREIGN];

/// Where the name of the port is in a key, and what comes behind it.
pub(super) const PORT: u32 = REGISTER_SMALL;
const BESIDE: u32 = REGISTER_SMALL + 4;

pub(super) const SOURCE_MAC: u32 = 6;
pub(super) const ETHERTYPE: u32 = 12;
pub(super) const IPV4_TYPE: [u8; 2] = [8, 0];
pub(super) const IPV6_TYPE: [u8; 2] = [0x86, 0xdd];
pub(super) const ARP_TYPE: [u8; 2] = [8, 6];
const DHCP_CLIENT: u16 = 68;
const DHCP6_CLIENT: u16 = 546;
pub(super) const ICMP6_PROTOCOL: u8 = 58;
const FRAGMENT: u8 = 44;
const REPORT_V1: u8 = 131;
const DONE: u8 = 132;
const SOLICIT_ROUTER: u8 = 133;
const ADVERTISE_ROUTER: u8 = 134;
pub(super) const SOLICIT: u8 = 135;
pub(super) const ADVERTISE: u8 = 136;
const REDIRECT: u8 = 137;
const REPORT_V2: u8 = 143;
/// Offsets in the header of IPv6: length of what is behind it, what that is, and the source.
const IP6_LENGTH: u32 = 4;
pub(super) const IP6_NEXT: u32 = 6;
pub(super) const IP6_SOURCE: u32 = 8;
/// Offset in the header of IPv4.
pub(super) const IP4_SOURCE: u32 = 12;
/// ARP for Ethernet and IPv4; offsets of its addresses.
pub(super) const ARP_ETHERNET: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_SENDER_MAC: u32 = 8;
pub(super) const ARP_SENDER_IP: u32 = 14;
pub(super) const ARP_TARGET_IP: u32 = 24;
/// Offset of the target in messages about neighbours.
pub(super) const TARGET: u32 = 8;
/// Options, by type and length: the sender's MAC address, the target's, and a number that tells an own
/// question from another's (RFC 7527).
const OPTION_SOURCE: [u8; 2] = [1, 1];
const OPTION_TARGET: [u8; 2] = [2, 1];
const OPTION_NONCE: [u8; 2] = [14, 1];

/// The first transaction has no more bytes: a send buffer has 200 KiB at least.
const FIRST_BATCH: usize = 150_000;

/// A port that is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Name of the interface on the bridge; it need not be there yet.
    pub interface: String,
    /// MAC address of the interface at the other end.
    pub mac: Mac,
    /// What it is kept to.
    pub kept: Kept,
}

/// What a port is kept to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// It sends only from these addresses, and from the link-local one that follows from the MAC address.
    Own(Vec<IpAddr>),
    /// It sends, and is sent, only what is of the network of this id.
    Network(String),
    /// It sends what it likes, and is sent all but router advertisements and redirects.
    Open,
}

type Elements = BTreeSet<(String, Vec<u8>)>;

impl Port {
    /// The elements that stand for it: set and key.
    fn elements(&self) -> Elements {
        let name = interface_name(&self.interface);
        // Keys are filled up to whole registers of four bytes.
        let mac = (MACS.to_owned(), [&name[..], &self.mac, &[0; 2]].concat());
        let addresses = match &self.kept {
            Kept::Own(addresses) => addresses,
            Kept::Network(id) => return [(Network::set(id), name.to_vec()), mac].into(),
            Kept::Open => return [(OPEN.to_owned(), name.to_vec())].into(),
        };
        let of = |address: IpAddr| match address {
            IpAddr::V4(ip) => (OWN4.to_owned(), [&name[..], &ip.octets()].concat()),
            IpAddr::V6(ip) => (OWN6.to_owned(), [&name[..], &ip.octets()].concat()),
        };
        let all = addresses.iter().copied().chain([link_local(self.mac).into()]).map(of);
        all.chain([(PORTS.to_owned(), name.to_vec()), mac]).collect()
    }
}

/// The table of one bridge.
#[derive(Debug)]
pub struct PortTable {
    table: Table,
}

impl PortTable {
    /// A table that may not be there yet.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn new(table: &str) -> io::Result<Self> {
        Ok(Self { table: Table::new(table, BRIDGE)? })
    }

    /// Sets the table up, or anew, with these ports and networks. There is no moment without, and none at
    /// which a port could send more than it may: where it is too much for one transaction, a port can
    /// send nothing for a moment.
    ///
    /// # Errors
    /// If the kernel has no nftables for bridges, or refuses.
    pub fn install<'a>(
        &self,
        ports: impl IntoIterator<Item = &'a Port>,
        networks: impl IntoIterator<Item = &'a Network>,
    ) -> io::Result<()> {
        let mut elements = BTreeMap::<String, Vec<Vec<u8>>>::new();
        for (set, key) in ports.into_iter().flat_map(Port::elements) {
            elements.entry(set).or_default().push(key);
        }
        let networks: Vec<&Network> = networks.into_iter().collect();
        // Who is looked at comes before what he may send.
        let (details, names): (Vec<_>, Vec<_>) =
            elements.iter().partition(|(set, _)| [MACS, OWN4, OWN6].contains(&set.as_str()));
        let mut left = Vec::new();
        self.table.transact(|batch| {
            self.table.renew(batch);
            let sets = SETS.map(|(name, length, key_type)| (name.to_owned(), length, key_type)).into_iter();
            let of_networks = networks.iter().map(|network| (Network::set(&network.id), 16, 41));
            for (id, (name, length, key_type)) in (1..).zip(sets.chain(of_networks)) {
                self.table.set(batch, &name, id, length, key_type);
            }
            for name in REASONS {
                self.table.counter(batch, name);
            }
            self.rules(batch, &networks);
            for (set, keys) in names {
                self.table.elements(batch, NEW_ELEMENT, set, keys);
            }
            for (set, keys) in details {
                for keys in keys.chunks(500) {
                    match batch.len() < FIRST_BATCH {
                        true => self.table.elements(batch, NEW_ELEMENT, set, keys),
                        false => left.push((set, keys)),
                    }
                }
            }
        })?;
        let mut rest = left.iter();
        rest.try_for_each(|(set, keys)| self.table.transact(|batch| self.table.elements(batch, NEW_ELEMENT, set, keys)))
    }

    /// Replaces what stands for a port by what stands for another, in one step.
    ///
    /// # Errors
    /// If the table is not there or not as it is said to be, or the kernel refuses; then nothing is
    /// changed.
    pub fn change(&self, old: Option<&Port>, new: Option<&Port>) -> io::Result<()> {
        let [old, new] = [old, new].map(|port| port.map(Port::elements).unwrap_or_default());
        if old == new {
            return Ok(());
        }
        self.table.transact(|batch| {
            for (kind, from, without) in [(DEL_ELEMENT, &old, &new), (NEW_ELEMENT, &new, &old)] {
                for (set, key) in from.difference(without) {
                    self.table.elements(batch, kind, set, std::slice::from_ref(key));
                }
            }
        })
    }

    /// Whether the table is there, whole, with exactly these ports and networks.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn stands<'a>(
        &self,
        ports: impl IntoIterator<Item = &'a Port>,
        networks: impl IntoIterator<Item = &'a Network>,
    ) -> io::Result<bool> {
        let wanted: Elements = ports.into_iter().flat_map(Port::elements).collect();
        let networks: Vec<&Network> = networks.into_iter().collect();
        let sets = SETS.iter().map(|(name, ..)| (*name).to_owned());
        let mut found = Elements::new();
        for set in sets.chain(networks.iter().map(|network| Network::set(&network.id))) {
            self.table.list(&set, |key| _ = found.insert((set.clone(), key.to_vec())))?;
        }
        Ok(found == wanted && self.table.rules()? == self.rules(&mut Batch::default(), &networks))
    }

    /// What was dropped since the table was set up, in the order of [`REASONS`].
    ///
    /// # Errors
    /// If the table is not there.
    pub fn dropped(&self) -> io::Result<[u64; REASONS.len()]> {
        let mut counts = [0; REASONS.len()];
        for (count, reason) in counts.iter_mut().zip(REASONS) {
            *count = self.table.count(reason)?;
        }
        Ok(counts)
    }

    /// Takes the table away; fine if there is none.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(&self) -> io::Result<()> {
        self.table.remove()
    }

    /// All chains and rules; the number of rules.
    fn rules(&self, batch: &mut Batch, networks: &[&Network]) -> usize {
        for name in [SENDER, V4, SOURCE4, V6, SOURCE6, ICMP6, NEIGHBOURS, ARP] {
            self.table.chain(batch, name, None);
        }
        for name in networks.iter().flat_map(|network| network.chains()) {
            self.table.chain(batch, &name, None);
        }
        self.table.chain(batch, ARRIVING, Some(HOOK_PREROUTING));
        self.table.chain(batch, LEAVING, Some(HOOK_POSTROUTING));
        let mut rules = Rules { table: &self.table, batch, count: 0 };
        rules.of_frames();
        rules.of_ipv4();
        rules.of_ipv6();
        rules.of_neighbours();
        rules.of_arp();
        rules.of_open();
        networks.iter().for_each(|network| rules.of_network(network));
        rules.count
    }
}

/// The rules being written.
pub(super) struct Rules<'a> {
    table: &'a Table,
    batch: &'a mut Batch,
    count: usize,
}

impl Rules<'_> {
    pub(super) fn add(&mut self, chain: &str, write: impl FnOnce(&mut Rule<'_, '_>)) {
        self.table.rule(self.batch, chain, write);
        self.count += 1;
    }

    /// The end of a chain.
    pub(super) fn drop_rest(&mut self, chain: &str, counter: &str) {
        self.add(chain, |rule| rule.count_and_drop(counter));
    }

    fn of_frames(&mut self) {
        self.add(ARRIVING, |rule| {
            rule.load(PORT, META_IIFNAME);
            rule.is_in(PORTS, PORT, true);
            rule.goto(SENDER);
        });
        self.add(SENDER, |rule| {
            own(rule, MACS, (BASE_LINK, SOURCE_MAC, 6), false);
            rule.count_and_drop(MAC);
        });
        for (kind, chain) in [(IPV4_TYPE, V4), (IPV6_TYPE, V6), (ARP_TYPE, ARP)] {
            self.add(SENDER, |rule| {
                rule.bytes(BASE_LINK, ETHERTYPE, &kind);
                rule.goto(chain);
            });
        }
        for tag in [[0x81, 0], [0x88, 0xa8]] {
            self.add(SENDER, |rule| {
                rule.bytes(BASE_LINK, ETHERTYPE, &tag);
                rule.count_and_drop(TAGGED);
            });
        }
    }

    fn of_ipv4(&mut self) {
        self.add(V4, |rule| {
            rule.payload(REGISTER, BASE_NETWORK, 6, 2);
            rule.mask(&[0x1f, 0xff]);
            rule.compare(Is::Other, &[0, 0]);
            rule.goto(SOURCE4);
        });
        self.of_datagrams(V4, SOURCE4, DHCP_CLIENT);
        self.source(SOURCE4, OWN4, (BASE_NETWORK, IP4_SOURCE, 4), IPV4);
    }

    fn of_ipv6(&mut self) {
        self.add(V6, |rule| {
            rule.extension(FRAGMENT, 2);
            rule.mask(&[0xff, 0xf8]);
            rule.compare(Is::Other, &[0, 0]);
            rule.goto(SOURCE6);
        });
        self.add(V6, |rule| {
            rule.meta(META_PROTOCOL, Is::Equal, &[ICMP6_PROTOCOL]);
            rule.goto(ICMP6);
        });
        self.of_datagrams(V6, SOURCE6, DHCP6_CLIENT);
        self.source(SOURCE6, OWN6, (BASE_NETWORK, IP6_SOURCE, 16), IPV6);
        self.add(ICMP6, |rule| {
            rule.payload(REGISTER, BASE_TRANSPORT, 0, 1);
            rule.compare(Is::AtLeast, &[SOLICIT_ROUTER]);
            rule.compare(Is::AtMost, &[REDIRECT]);
            rule.goto(NEIGHBOURS);
        });
        // While an address is being looked for among others, its owner has none to send from.
        for report in [REPORT_V1, DONE, REPORT_V2] {
            self.add(ICMP6, |rule| {
                rule.bytes(BASE_NETWORK, IP6_SOURCE, &[0; 16]);
                rule.bytes(BASE_TRANSPORT, 0, &[report]);
                rule.accept();
            });
        }
        self.add(ICMP6, |rule| {
            rule.payload(REGISTER, BASE_TRANSPORT, 0, 4);
            rule.goto(SOURCE6);
        });
        self.drop_rest(ICMP6, MALFORMED);
    }

    /// What is in no later fragment. A first one whose ports do not show could be anything.
    fn of_datagrams(&mut self, chain: &str, source: &str, client: u16) {
        self.add(chain, |rule| {
            rule.meta(META_PROTOCOL, Is::Other, &[UDP]);
            rule.goto(source);
        });
        self.add(chain, |rule| {
            rule.meta(META_PROTOCOL, Is::Equal, &[UDP]);
            rule.is_for_port(client);
            rule.count_and_drop(DHCP);
        });
        self.add(chain, |rule| {
            rule.payload(REGISTER, BASE_TRANSPORT, 0, 4);
            rule.goto(source);
        });
        self.drop_rest(chain, MALFORMED);
    }

    fn source(&mut self, chain: &str, set: &str, at: (u32, u32, u32), counter: &str) {
        self.add(chain, |rule| {
            own(rule, set, at, true);
            rule.accept();
        });
        self.drop_rest(chain, counter);
    }

    /// Each message has one of few forms, all of them without extension headers: what is hidden behind one, in
    /// a fragment or by a second option, is none of them.
    fn of_neighbours(&mut self) {
        const NOBODY: [u8; 16] = [0; 16];
        for kind in [ADVERTISE_ROUTER, REDIRECT] {
            self.add(NEIGHBOURS, |rule| {
                rule.bytes(BASE_TRANSPORT, 0, &[kind]);
                rule.count_and_drop(ROUTER);
            });
        }
        self.add(NEIGHBOURS, |rule| {
            rule.payload(REGISTER, BASE_NETWORK, IP6_NEXT, 1);
            rule.compare(Is::Other, &[ICMP6_PROTOCOL]);
            rule.count_and_drop(NEIGHBOUR);
        });
        self.message(SOLICIT_ROUTER, 8, |rule| rule.bytes(BASE_NETWORK, IP6_SOURCE, &NOBODY));
        // Whether somebody else has the address.
        self.message(SOLICIT, 24, |rule| {
            rule.bytes(BASE_NETWORK, IP6_SOURCE, &NOBODY);
            own(rule, OWN6, (BASE_TRANSPORT, TARGET, 16), true);
        });
        self.message(SOLICIT, 32, |rule| {
            rule.bytes(BASE_NETWORK, IP6_SOURCE, &NOBODY);
            rule.bytes(BASE_TRANSPORT, 24, &OPTION_NONCE);
            own(rule, OWN6, (BASE_TRANSPORT, TARGET, 16), true);
        });
        self.add(NEIGHBOURS, |rule| {
            rule.bytes(BASE_NETWORK, IP6_SOURCE, &NOBODY);
            rule.count_and_drop(NEIGHBOUR);
        });
        self.add(NEIGHBOURS, |rule| {
            own(rule, OWN6, (BASE_NETWORK, IP6_SOURCE, 16), false);
            rule.count_and_drop(IPV6);
        });
        self.message(SOLICIT, 24, |_| {});
        self.message(SOLICIT, 32, |rule| option(rule, 24, OPTION_SOURCE));
        self.message(ADVERTISE, 24, |rule| own(rule, OWN6, (BASE_TRANSPORT, TARGET, 16), true));
        self.message(ADVERTISE, 32, |rule| {
            option(rule, 24, OPTION_TARGET);
            own(rule, OWN6, (BASE_TRANSPORT, TARGET, 16), true);
        });
        self.message(SOLICIT_ROUTER, 8, |_| {});
        self.message(SOLICIT_ROUTER, 16, |rule| option(rule, 8, OPTION_SOURCE));
        self.drop_rest(NEIGHBOURS, NEIGHBOUR);
    }

    /// A message of that type and length is let through if it is as said.
    fn message(&mut self, kind: u8, length: u16, more: impl FnOnce(&mut Rule<'_, '_>)) {
        self.add(NEIGHBOURS, |rule| {
            rule.bytes(BASE_TRANSPORT, 0, &[kind]);
            rule.bytes(BASE_NETWORK, IP6_LENGTH, &length.to_be_bytes());
            more(rule);
            rule.accept();
        });
    }

    fn of_arp(&mut self) {
        let about_the_sender = |rule: &mut Rule<'_, '_>| {
            rule.bytes(BASE_NETWORK, 0, &ARP_ETHERNET);
            own(rule, MACS, (BASE_NETWORK, ARP_SENDER_MAC, 6), true);
        };
        self.add(ARP, |rule| {
            about_the_sender(rule);
            own(rule, OWN4, (BASE_NETWORK, ARP_SENDER_IP, 4), true);
            rule.accept();
        });
        // Whether somebody else has the address (RFC 5227).
        self.add(ARP, |rule| {
            about_the_sender(rule);
            rule.bytes(BASE_NETWORK, ARP_SENDER_IP, &[0; 4]);
            own(rule, OWN4, (BASE_NETWORK, ARP_TARGET_IP, 4), true);
            rule.accept();
        });
        self.drop_rest(ARP, ARP_SENDER);
    }

    /// The kernel takes no fragments of these (RFC 6980), and the first one of them is dropped here besides.
    fn of_open(&mut self) {
        for kind in [ADVERTISE_ROUTER, REDIRECT] {
            self.add(LEAVING, |rule| {
                // First what ends the rule for nearly everything.
                rule.meta(META_PROTOCOL, Is::Equal, &[ICMP6_PROTOCOL]);
                rule.bytes(BASE_TRANSPORT, 0, &[kind]);
                rule.load(PORT, META_OIFNAME);
                rule.is_in(OPEN, PORT, true);
                rule.count_and_drop(ROUTER);
            });
        }
    }
}

/// Goes on only if what is there (base, offset, length) is the port's own, or only if it is not.
pub(super) fn own(rule: &mut Rule<'_, '_>, set: &str, (base, offset, length): (u32, u32, u32), wanted: bool) {
    rule.load(PORT, META_IIFNAME);
    rule.payload(BESIDE, base, offset, length);
    rule.is_in(set, PORT, wanted);
}

/// Goes on only if that option is there, with the port's own MAC address.
fn option(rule: &mut Rule<'_, '_>, offset: u32, option: [u8; 2]) {
    rule.bytes(BASE_TRANSPORT, offset, &option);
    own(rule, MACS, (BASE_TRANSPORT, offset + 2, 6), true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_stands_for_its_name_its_mac_and_each_of_its_addresses() {
        let port = Port {
            interface: "weft-abcdefghij".to_owned(),
            mac: [2, 0x77, 10, 32, 0, 5],
            kept: Kept::Own(["10.32.0.5", "fd00::5"].map(|ip| ip.parse().expect("an address")).into()),
        };
        let elements = port.elements();
        let count = |set: &str| elements.iter().filter(|(of, _)| *of == set).count();
        assert_eq!(SETS.map(|(set, ..)| count(set)), [1, 1, 1, 2, 0]);
        for (set, length, _) in SETS {
            let keys = elements.iter().filter(|(of, _)| *of == set);
            assert!(keys.clone().all(|(_, key)| key.len() == length as usize), "{set}");
            assert!(keys.clone().all(|(_, key)| key.starts_with(b"weft-abcdefghij\0")), "{set}");
        }
        let other = Port { kept: Kept::Own(Vec::new()), ..port.clone() };
        assert_eq!(elements.difference(&other.elements()).count(), 2, "but for the addresses all is the same");
        let sets = |kept: Kept| -> Vec<String> {
            Port { kept, ..port.clone() }.elements().into_iter().map(|(set, _)| set).collect()
        };
        assert_eq!(sets(Kept::Network("a1".to_owned())), ["macs", "network-a1"]);
        assert_eq!(sets(Kept::Open), ["open"]);
    }
}
