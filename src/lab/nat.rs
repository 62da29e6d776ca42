//! A network address translator for UDP over IPv4, of the three kinds that peers meet.
//!
//! ```text
//!   host 192.168.1.2:6783 ──► NAT ──► 10.99.1.1:40000 ──► peer
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

/// How a translator maps and filters (RFC 4787).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    /// One mapping for all destinations, open to everyone.
    Open,
    /// One mapping for all destinations, open to whom the inside has written to.
    Restricted,
    /// A mapping for each destination, open to that destination only.
    Symmetric,
}

#[derive(Debug)]
struct Mapping {
    inside: SocketAddrV4,
    contacted: BTreeSet<SocketAddrV4>,
    used: Duration,
}

/// The translator's table. Time is a duration since any epoch.
#[derive(Debug)]
pub(super) struct Nat {
    pub(super) public: Ipv4Addr,
    kind: NatKind,
    timeout: Duration,
    by_inside: BTreeMap<(SocketAddrV4, Option<SocketAddrV4>), u16>,
    by_port: BTreeMap<u16, Mapping>,
    next: u16,
}

const FIRST_PORT: u16 = 40_000;

impl Nat {
    pub(super) fn new(public: Ipv4Addr, kind: NatKind, timeout: Duration) -> Self {
        Self { public, kind, timeout, by_inside: BTreeMap::new(), by_port: BTreeMap::new(), next: FIRST_PORT }
    }

    /// The source that a datagram from inside has outside.
    pub(super) fn outbound(&mut self, now: Duration, inside: SocketAddrV4, destination: SocketAddrV4) -> SocketAddrV4 {
        self.expire(now);
        let key = (inside, (self.kind == NatKind::Symmetric).then_some(destination));
        let next = self.next;
        let port = *self.by_inside.entry(key).or_insert(next);
        if port == next && !self.by_port.contains_key(&port) {
            self.next = next.checked_add(1).unwrap_or(FIRST_PORT);
            self.by_port.insert(port, Mapping { inside, contacted: BTreeSet::new(), used: now });
        }
        if let Some(mapping) = self.by_port.get_mut(&port) {
            mapping.used = now;
            mapping.contacted.insert(destination);
        }
        SocketAddrV4::new(self.public, port)
    }

    /// Whom inside a datagram to one of the public ports is for; `None`: filtered.
    pub(super) fn inbound(&mut self, now: Duration, from: SocketAddrV4, port: u16) -> Option<SocketAddrV4> {
        self.expire(now);
        let mapping = self.by_port.get_mut(&port)?;
        let open = self.kind == NatKind::Open || mapping.contacted.contains(&from);
        open.then(|| {
            mapping.used = now;
            mapping.inside
        })
    }

    /// Forgets all mappings, as a translator does that was switched off and on.
    pub(super) fn forget(&mut self) {
        self.by_inside.clear();
        self.by_port.clear();
    }

    fn expire(&mut self, now: Duration) {
        let timeout = self.timeout;
        self.by_port.retain(|_, mapping| now.saturating_sub(mapping.used) <= timeout);
        let live = &self.by_port;
        self.by_inside.retain(|_, port| live.contains_key(port));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 2), 6783);
    const A: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 99, 0, 1), 6783);
    const B: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 99, 0, 2), 6783);
    const PUBLIC: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 1);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn each_kind_maps_and_filters_as_its_name_says() {
        for (kind, one_mapping, open) in
            [(NatKind::Open, true, true), (NatKind::Restricted, true, false), (NatKind::Symmetric, false, false)]
        {
            let mut nat = Nat::new(PUBLIC, kind, at(30));
            let to_a = nat.outbound(at(0), INSIDE, A);
            assert_eq!(nat.inbound(at(0), A, to_a.port()), Some(INSIDE), "{kind:?}");
            assert_eq!(nat.inbound(at(0), B, to_a.port()).is_some(), open, "{kind:?}");
            let to_b = nat.outbound(at(0), INSIDE, B);
            assert_eq!(to_a == to_b, one_mapping, "{kind:?}");
            assert_eq!(nat.inbound(at(0), B, to_b.port()), Some(INSIDE), "{kind:?}");
        }
    }

    #[test]
    fn a_mapping_that_is_not_used_is_forgotten() {
        let mut nat = Nat::new(PUBLIC, NatKind::Restricted, at(30));
        let first = nat.outbound(at(0), INSIDE, A);
        assert_eq!(nat.inbound(at(31), A, first.port()), None);
        assert_ne!(nat.outbound(at(31), INSIDE, A), first);
    }
}
