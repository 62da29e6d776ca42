//! What carrying a frame costs in bytes, in one place.
//!
//! ```text
//!  link MTU  │ IP 20/40 │ UDP 8 │ RELAY 28? │ SLEEVE 16 │ record 4 │ Ethernet 14 │ inner packet │ tag 16? │
//!            └───────── UDP payload begins ─►│                      └─ frame ────────────────┘
//! ```

use core::net::IpAddr;

use super::cipher::tag_len;
use crate::handover::Suite;
use crate::wire::datagram::{RELAY_HEADER, SLEEVE_HEADER};
use crate::wire::record::RECORD_HEADER;

/// Bytes of an Ethernet header without tags.
pub const ETHERNET_HEADER: u16 = 14;
const UDP_HEADER: u16 = 8;
/// RFC 7348 section 5.
const VXLAN_HEADER: u16 = 8;

/// All bytes of an IP packet of the underlay besides the inner IP packet, where the kernel's VXLAN
/// carries it.
#[must_use]
pub const fn vxlan(v6: bool) -> u16 {
    ip(v6) + UDP_HEADER + VXLAN_HEADER + ETHERNET_HEADER
}

/// WireGuard's header of a data message, and its tag: type 4, receiver 4, counter 8, tag 16.
const WIREGUARD: u16 = 32;

/// What WireGuard carries at most, where the kernel's VXLAN within it carries a packet of that size: the
/// MTU of its device. It pads what is smaller to a multiple of 16, but never beyond this.
#[must_use]
pub const fn sealed_inner(inner_mtu: u16) -> u16 {
    inner_mtu.saturating_add(vxlan(true))
}

/// The same as [`vxlan`], where VXLAN goes within WireGuard; `v6` says what WireGuard goes by.
#[must_use]
pub const fn sealed(v6: bool) -> u16 {
    ip(v6) + UDP_HEADER + WIREGUARD + vxlan(true)
}

const fn ip(v6: bool) -> u16 {
    if v6 { 40 } else { 20 }
}

/// The carrier whose overhead is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carrier {
    /// The underlay speaks IPv6.
    pub v6: bool,
    /// Through a relay.
    pub relayed: bool,
    /// The session's suite.
    pub suite: Suite,
}

impl Carrier {
    /// A direct carrier to that address.
    #[must_use]
    pub const fn direct(to: IpAddr, suite: Suite) -> Self {
        Self { v6: to.is_ipv6(), relayed: false, suite }
    }

    /// Headers of IP and UDP.
    #[must_use]
    pub const fn underlay(&self) -> u16 {
        ip(self.v6) + UDP_HEADER
    }

    /// What a datagram of one whole frame has besides that frame, in its UDP payload.
    #[must_use]
    pub const fn sleeve(&self) -> u16 {
        let relay = if self.relayed { RELAY_HEADER } else { 0 };
        (relay + SLEEVE_HEADER + RECORD_HEADER + tag_len(self.suite)) as u16
    }

    /// All bytes of an IP packet of the underlay besides the inner IP packet.
    #[must_use]
    pub const fn total(&self) -> u16 {
        self.underlay() + self.sleeve() + ETHERNET_HEADER
    }

    /// UDP payload that fits a link of that MTU.
    #[must_use]
    pub const fn payload_of_link(&self, link_mtu: u16) -> u16 {
        link_mtu.saturating_sub(self.underlay())
    }

    /// The largest inner IP packet that goes whole in such a UDP payload.
    #[must_use]
    pub const fn inner_mtu(&self, payload: u16) -> u16 {
        payload.saturating_sub(self.sleeve() + ETHERNET_HEADER)
    }

    /// The UDP payload that an inner packet of that size needs.
    #[must_use]
    pub const fn payload_of_inner(&self, inner_mtu: u16) -> u16 {
        inner_mtu.saturating_add(self.sleeve() + ETHERNET_HEADER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carrier(v6: bool, relayed: bool) -> Carrier {
        let suite = Suite::Aes256Gcm;
        Carrier { v6, relayed, suite }
    }

    #[test]
    fn the_sums_are_those_of_the_picture() {
        assert_eq!(carrier(false, false).total(), 20 + 8 + 16 + 4 + 14 + 16);
        assert_eq!(carrier(true, true).total(), 40 + 8 + 28 + 16 + 4 + 14 + 16);
        let plain = Carrier { suite: Suite::Plain, ..carrier(false, false) };
        assert_eq!(plain.total(), 20 + 8 + 16 + 4 + 14);
    }

    #[test]
    fn a_link_of_1500_carries_1422_sealed_by_ipv4() {
        let carrier = carrier(false, false);
        let payload = carrier.payload_of_link(1500);
        assert_eq!((payload, carrier.inner_mtu(payload)), (1472, 1422));
        assert_eq!(carrier.payload_of_inner(1422), 1472);
    }

    #[test]
    fn a_link_of_1500_carries_1450_by_vxlan_and_1430_where_it_is_ipv6() {
        assert_eq!([false, true].map(|v6| 1500 - vxlan(v6)), [1450, 1430]);
    }

    #[test]
    fn a_link_of_1500_carries_1370_by_vxlan_in_wireguard_and_1350_where_it_is_ipv6() {
        assert_eq!([false, true].map(|v6| 1500 - sealed(v6)), [1370, 1350]);
        assert_eq!(sealed_inner(1350), 1420);
        assert_eq!(sealed_inner(u16::MAX), u16::MAX);
    }

    #[test]
    fn nothing_underflows() {
        assert_eq!(carrier(true, true).payload_of_link(10), 0);
        assert_eq!(carrier(true, true).inner_mtu(10), 0);
        assert_eq!(carrier(true, true).payload_of_inner(u16::MAX), u16::MAX);
    }
}
