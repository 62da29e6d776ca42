//! Which frames belong to a network: the part of the table of ports that keeps networks apart (guard P10).
//!
//! ```text
//!    set network-ID            names of its ports
//!    chain arriving            prerouting: from one of them     go to `from-ID`
//!    chain leaving             postrouting: out by one of them  go to `to-ID`
//!    chain from-ID             (port, source MAC) not in macs   count `port_mac`, drop; else as below, `port_network`
//!    chain to-ID
//!      IPv4, IPv6 from an address of the network                accept
//!      ARP of such a sender, or whether such an address is free accept
//!      neighbour discovery from a link-local address or none, about such an address   accept
//!      else from these                                          drop: nobody misses it
//!      all else                                                 count `port_foreign`, drop
//! ```

use ipnet::IpNet;

use super::ports::{
    ADVERTISE, ARP_ETHERNET, ARP_SENDER_IP, ARP_TARGET_IP, ARP_TYPE, ARRIVING, ETHERTYPE, FOREIGN, ICMP6_PROTOCOL,
    IP4_SOURCE, IP6_NEXT, IP6_SOURCE, IPV4_TYPE, IPV6_TYPE, LEAVING, MAC, MACS, NETWORK, PORT, Rules, SOLICIT,
    SOURCE_MAC, TARGET, own,
};
use super::table::{BASE_LINK, BASE_NETWORK, BASE_TRANSPORT, Is, META_IIFNAME, META_OIFNAME, REGISTER, Rule};

/// A network whose ports hear only of its own addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// How its ports name it: at most 128 letters and digits.
    pub id: String,
    /// Its addresses.
    pub subnets: Vec<IpNet>,
}

impl Network {
    /// The set of its ports.
    pub(super) fn set(id: &str) -> String {
        format!("network-{id}")
    }

    /// The chains of it: for what its ports send, and for what they are sent.
    pub(super) fn chains(&self) -> [String; 2] {
        [format!("from-{}", self.id), format!("to-{}", self.id)]
    }
}

impl Rules<'_> {
    pub(super) fn of_network(&mut self, network: &Network) {
        let set = Network::set(&network.id);
        let [from, to] = network.chains();
        for (hook, key, chain) in [(ARRIVING, META_IIFNAME, &from), (LEAVING, META_OIFNAME, &to)] {
            self.add(hook, |rule| {
                rule.load(PORT, key);
                rule.is_in(&set, PORT, true);
                rule.goto(chain);
            });
        }
        self.add(&from, |rule| {
            own(rule, MACS, (BASE_LINK, SOURCE_MAC, 6), false);
            rule.count_and_drop(MAC);
        });
        for (chain, counter) in [(&from, NETWORK), (&to, FOREIGN)] {
            for &subnet in &network.subnets {
                match subnet {
                    IpNet::V4(_) => self.of_subnet4(chain, subnet),
                    IpNet::V6(_) => self.of_subnet6(chain, subnet),
                }
            }
            // What each host says to all before it has an address, and of none that could be told from
            // another network's.
            for (prefix, mask) in LINK_LOCAL {
                self.add(chain, |rule| {
                    rule.bytes(BASE_LINK, ETHERTYPE, &IPV6_TYPE);
                    masked(rule, IP6_SOURCE, &prefix, &mask);
                    rule.drop();
                });
            }
            self.drop_rest(chain, counter);
        }
    }

    fn of_subnet4(&mut self, chain: &str, subnet: IpNet) {
        self.add(chain, |rule| {
            rule.bytes(BASE_LINK, ETHERTYPE, &IPV4_TYPE);
            rule.within(BASE_NETWORK, IP4_SOURCE, subnet, true);
            rule.accept();
        });
        let arp = |rule: &mut Rule<'_, '_>| {
            rule.bytes(BASE_LINK, ETHERTYPE, &ARP_TYPE);
            rule.bytes(BASE_NETWORK, 0, &ARP_ETHERNET);
        };
        self.add(chain, |rule| {
            arp(rule);
            rule.within(BASE_NETWORK, ARP_SENDER_IP, subnet, true);
            rule.accept();
        });
        self.add(chain, |rule| {
            arp(rule);
            rule.bytes(BASE_NETWORK, ARP_SENDER_IP, &[0; 4]);
            rule.within(BASE_NETWORK, ARP_TARGET_IP, subnet, true);
            rule.accept();
        });
    }

    fn of_subnet6(&mut self, chain: &str, subnet: IpNet) {
        self.add(chain, |rule| {
            rule.bytes(BASE_LINK, ETHERTYPE, &IPV6_TYPE);
            rule.within(BASE_NETWORK, IP6_SOURCE, subnet, true);
            rule.accept();
        });
        for (prefix, mask) in LINK_LOCAL {
            self.add(chain, |rule| {
                rule.bytes(BASE_LINK, ETHERTYPE, &IPV6_TYPE);
                masked(rule, IP6_SOURCE, &prefix, &mask);
                rule.bytes(BASE_NETWORK, IP6_NEXT, &[ICMP6_PROTOCOL]);
                rule.payload(REGISTER, BASE_TRANSPORT, 0, 1);
                rule.compare(Is::AtLeast, &[SOLICIT]);
                rule.compare(Is::AtMost, &[ADVERTISE]);
                rule.within(BASE_TRANSPORT, TARGET, subnet, true);
                rule.accept();
            });
        }
    }
}

/// Addresses that tell nothing of a network, the unspecified one and the link-local ones: prefix and mask.
const LINK_LOCAL: [([u8; 16], [u8; 16]); 2] = {
    let (mut prefix, mut mask) = ([0; 16], [0; 16]);
    (prefix[0], prefix[1], mask[0], mask[1]) = (0xfe, 0x80, 0xff, 0xc0);
    [([0; 16], [0xff; 16]), (prefix, mask)]
};

fn masked(rule: &mut Rule<'_, '_>, offset: u32, prefix: &[u8; 16], mask: &[u8; 16]) {
    rule.payload(REGISTER, BASE_NETWORK, offset, 16);
    rule.mask(mask);
    rule.compare(Is::Equal, prefix);
}
