//! What is kept of an attachment.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::netlink::Mac;

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
}

impl Record {
    /// The addresses as text.
    #[must_use]
    pub fn address_texts(&self) -> Vec<String> {
        self.addresses.iter().map(ToString::to_string).collect()
    }
}

/// A hardware address as people write it.
#[must_use]
pub fn mac_text(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
