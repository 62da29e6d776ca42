//! What is kept of an attachment.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::control::masquerade::Masqueraded;
use crate::netlink::nft::{Kept, Port};
use crate::netlink::{Mac, Route};

/// One attachment, as it is in the store (JSON) and in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Whose addresses they are.
    pub owner: String,
    /// As the user named it first.
    pub target: String,
    /// Name of the interface inside.
    pub interface: String,
    /// Its hardware address.
    pub mac: Mac,
    /// Its addresses, with the prefix length of their range.
    pub addresses: Vec<IpNet>,
    /// Name of the end on the bridge.
    pub host_interface: String,
    /// What it is called in the mesh; records of older versions have none.
    #[serde(default)]
    pub names: Vec<String>,
    /// What it serves, as far as somebody has said so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// Whether the connections of the whole mesh that leave it at this host go in its name; only of the host's
    /// own addresses (services V7).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub masquerade: bool,
    /// What its holder asked for; `None`: it has none, and belongs to its target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Terms>,
}

/// What a holder asked for besides addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The namespace itself, for another may come to have its path.
    pub namespace: String,
    /// MTU of both ends.
    pub mtu: u16,
    /// Routes besides those that every container has.
    pub routes: Vec<Route>,
    /// Whether the bridge gives back to it what it sends to itself.
    pub hairpin: bool,
    /// Whether it may send what is not its own (guard P1).
    #[serde(default)]
    pub may_spoof: bool,
    /// Whether its connections to outside of the mesh go in the host's name (kubernetes K17).
    #[serde(default)]
    pub masquerade: bool,
    /// Whether the host translates addresses for it (kubernetes K18).
    #[serde(default)]
    pub translated: bool,
}

impl Record {
    /// Whether it has that address; how long the prefix is said to be does not matter.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.addr() == address)
    }

    /// What it is kept to; `None`: it may send whatever it likes (guard P2).
    #[must_use]
    pub fn port(&self) -> Option<Port> {
        self.held.as_ref().filter(|terms| !terms.may_spoof)?;
        let addresses = self.addresses.iter().map(IpNet::addr).collect();
        Some(Port { interface: self.host_interface.clone(), mac: self.mac, kept: Kept::Own(addresses) })
    }

    /// For whom connections to outside of the mesh go in the host's name; `None`: they do not (kubernetes K17).
    #[must_use]
    pub fn masqueraded(&self) -> Option<Masqueraded> {
        self.held.as_ref().filter(|terms| terms.masquerade)?;
        let addresses = self.addresses.iter().map(IpNet::addr).collect();
        Some(Masqueraded { interface: self.host_interface.clone(), addresses })
    }

    /// The families of which everybody's connections to outside go in this host's name: true for IPv4.
    #[must_use]
    pub fn masquerades(&self) -> BTreeSet<bool> {
        let families = self.addresses.iter().map(|net| net.addr().is_ipv4());
        families.filter(|_| self.masquerade).collect()
    }

    /// Whether the host's rules are to see what it sends and gets by the bridge (kubernetes K18).
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.held.as_ref().is_some_and(|terms| terms.translated)
    }

    /// The addresses as text.
    #[must_use]
    pub fn address_texts(&self) -> Vec<String> {
        self.addresses.iter().map(ToString::to_string).collect()
    }
}

/// Reads a hardware address as people write it, if one interface can have it: of no group, and not
/// all zeros.
#[must_use]
pub fn parse_mac(text: &str) -> Option<Mac> {
    let parts: Vec<&str> = text.split(':').collect();
    let byte = |part: &&str| {
        let hex = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex.then(|| u8::from_str_radix(part, 16).ok()).flatten()
    };
    let mac: Mac = parts.iter().map(byte).collect::<Option<Vec<u8>>>()?.try_into().ok()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// A hardware address as people write it.
#[must_use]
pub fn mac_text(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_read_whole_or_not_at_all() {
        assert_eq!(parse_mac("02:77:0a:20:00:05"), Some([2, 0x77, 10, 32, 0, 5]));
        for text in [
            "",
            "02:77:0a:20:00",
            "02:77:0a:20:00:05:06",
            "02:77:0a:20:00:5",
            "02-77-0a-20-00-05",
            "+2:77:0a:20:00:05",
            "03:77:0a:20:00:05",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(parse_mac(text), None, "{text}");
        }
    }
}
