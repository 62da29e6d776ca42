//! Ports of the host that lead to another address: a table of nftables' family `inet` (services V3).
//!
//! ```text
//!  table inet weft-services
//!    chain arriving    prerouting: the first packet of each connection that comes    go to `places`
//!    chain sending     output: … that this host opens                                go to `places`
//!    chain places      for each service: to its address, or any of the host's, and its port   there instead
//!    chain leaving     postrouting: for each service: what was sent elsewhere by it           masquerade
//! ```
//!
//! Whoever is asked instead may know no way back to the one that asks: so it is this host that asks it.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::table::{
    BASE_NETWORK, BASE_TRANSPORT, CT_ADDRESS_4, CT_ADDRESS_6, CT_PORT, Is, META_FAMILY, META_OIFNAME, META_PROTOCOL,
    Rule, TCP, Table, UDP, interface_name,
};
use crate::netlink::raw::Batch;

const INET: u8 = 1;
const HOOK_PREROUTING: u32 = 0;
const HOOK_OUTPUT: u32 = 3;
const HOOK_POSTROUTING: u32 = 4;

const ARRIVING: &str = "arriving";
const SENDING: &str = "sending";
const PLACES: &str = "places";
const LEAVING: &str = "leaving";

/// How IPv4 and IPv6 are numbered, where their destination is, what of it is the host alone, and what a
/// connection remembers of it.
const V4: Family = Family {
    number: 2,
    destination: 16,
    loopback: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    original: CT_ADDRESS_4,
};
const V6: Family = Family {
    number: 10,
    destination: 24,
    loopback: IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    original: CT_ADDRESS_6,
};

struct Family {
    number: u8,
    destination: u32,
    loopback: IpNet,
    original: u32,
}

/// What carries a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Connections to one place that go to another. Both are of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Redirect {
    /// What carries them.
    pub transport: Transport,
    /// Where they are for; at the unspecified address: any address of the host but its loopback ones.
    pub at: SocketAddr,
    /// Where they go.
    pub to: SocketAddr,
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

impl Redirect {
    const fn family(&self) -> &'static Family {
        if self.to.is_ipv4() { &V4 } else { &V6 }
    }

    /// What is for its place goes elsewhere.
    fn translate(&self, rule: &mut Rule<'_, '_>) {
        let family = self.family();
        self.carried(rule);
        if self.at.ip().is_unspecified() {
            rule.is_for_this_host();
            rule.within(BASE_NETWORK, family.destination, family.loopback, false);
        } else {
            rule.bytes(BASE_NETWORK, family.destination, &octets(self.at.ip()));
        }
        rule.is_for_port(self.at.port());
        rule.redirect(family.number, &octets(self.to.ip()), self.to.port());
    }

    /// What went elsewhere by this, and by no other's rule, does so in the host's name.
    fn masquerade(&self, rule: &mut Rule<'_, '_>) {
        let family = self.family();
        self.carried(rule);
        // What the host says to itself has an address already to which the answer finds back.
        rule.meta(META_OIFNAME, Is::Other, &interface_name("lo"));
        rule.is_translated();
        rule.was(CT_PORT, &self.at.port().to_be_bytes());
        if !self.at.ip().is_unspecified() {
            rule.was(family.original, &octets(self.at.ip()));
        }
        rule.bytes(BASE_NETWORK, family.destination, &octets(self.to.ip()));
        rule.bytes(BASE_TRANSPORT, 2, &self.to.port().to_be_bytes());
        rule.masquerade();
    }

    fn carried(&self, rule: &mut Rule<'_, '_>) {
        rule.meta(META_FAMILY, Is::Equal, &[self.family().number]);
        rule.meta(META_PROTOCOL, Is::Equal, &[self.transport.number()]);
    }
}

/// The table of one bridge.
#[derive(Debug)]
pub struct ServiceTable {
    table: Table,
}

impl ServiceTable {
    /// A table that may not be there yet.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn new(table: &str) -> io::Result<Self> {
        Ok(Self { table: Table::new(table, INET)? })
    }

    /// Sets the table up, or anew, for these and no others, in one step: there is no moment without.
    /// Connections that are there go on as they are.
    ///
    /// # Errors
    /// If the kernel has no nftables or cannot translate by them, or refuses; then nothing is changed.
    pub fn install(&self, redirects: &BTreeSet<Redirect>) -> io::Result<()> {
        self.table.transact(|batch| {
            self.table.renew(batch);
            self.table.chain(batch, PLACES, None);
            self.table.destination_chain(batch, ARRIVING, HOOK_PREROUTING);
            self.table.destination_chain(batch, SENDING, HOOK_OUTPUT);
            self.table.source_chain(batch, LEAVING, HOOK_POSTROUTING);
            self.rules(batch, redirects);
        })
    }

    /// Whether the table is there, whole, for so many.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn stands(&self, redirects: &BTreeSet<Redirect>) -> io::Result<bool> {
        Ok(self.table.rules()? == self.rules(&mut Batch::default(), redirects))
    }

    /// Takes the table away; fine if there is none.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(&self) -> io::Result<()> {
        self.table.remove()
    }

    /// The rules; how many.
    fn rules(&self, batch: &mut Batch, redirects: &BTreeSet<Redirect>) -> usize {
        let hooks = [ARRIVING, SENDING];
        for hook in hooks {
            self.table.rule(batch, hook, |rule| rule.goto(PLACES));
        }
        for redirect in redirects {
            self.table.rule(batch, PLACES, |rule| redirect.translate(rule));
            self.table.rule(batch, LEAVING, |rule| redirect.masquerade(rule));
        }
        hooks.len() + 2 * redirects.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_fit_into_one_transaction() {
        let table = ServiceTable { table: Table::new("none", INET).expect("a socket") };
        let at = |port| SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
        let all = (1..=100).map(|port| Redirect { transport: Transport::Udp, at: at(port), to: at(port) }).collect();
        let mut batch = Batch::default();
        assert_eq!(table.rules(&mut batch, &all), 202);
        // The least send buffer of a socket on a usual host, net.core.wmem_default.
        assert!(batch.len() < 200_000, "{}", batch.len());
    }
}
