//! Failed handshakes cost their source address: a guess at the secret is online and slow.
//!
//! Each source has a bucket of [`GUARD_BURST`] attempts that refills by one each
//! [`GUARD_REFILL`]; only failures are taken from it. An IPv6 source is its /64.

use core::net::{IpAddr, Ipv6Addr};
use core::time::Duration;
use std::collections::BTreeMap;

use super::limits::{GUARD_BURST, GUARD_MAX, GUARD_REFILL};
use crate::data::Hop;
use crate::id::PeerId;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Address(IpAddr),
    Relayed(PeerId),
}

impl Source {
    fn of(hop: &Hop) -> Self {
        match hop {
            Hop::Relayed(peer) => Self::Relayed(*peer),
            Hop::Direct(address) => Self::Address(match address.ip() {
                IpAddr::V6(ip) if ip.to_ipv4_mapped().is_none() => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
                ip => ip.to_canonical(),
            }),
        }
    }
}

/// The sources that failed lately.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// When the bucket of a source is full again.
    full_at: BTreeMap<Source, Duration>,
}

impl Guard {
    /// How long that source must wait before it may try again, if it must.
    pub(crate) fn must_wait(&self, hop: &Hop, now: Duration) -> Option<Duration> {
        let full_at = *self.full_at.get(&Source::of(hop))?;
        (full_at + GUARD_REFILL).checked_sub(now + GUARD_REFILL * GUARD_BURST).filter(|wait| !wait.is_zero())
    }

    /// A handshake from that source failed.
    pub(crate) fn failed(&mut self, hop: &Hop, now: Duration) {
        let source = Source::of(hop);
        if self.full_at.len() >= GUARD_MAX && !self.full_at.contains_key(&source) {
            self.full_at.retain(|_, at| *at > now);
            if self.full_at.len() >= GUARD_MAX
                && let Some(soonest) = self.full_at.iter().min_by_key(|(_, at)| **at).map(|(source, _)| *source)
            {
                self.full_at.remove(&soonest);
            }
        }
        let at = self.full_at.entry(source).or_insert(now);
        // A source that keeps trying does not lock itself out for ever.
        *at = ((*at).max(now) + GUARD_REFILL).min(now + GUARD_REFILL * (2 * GUARD_BURST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> Hop {
        Hop::Direct(text.parse().unwrap())
    }

    #[test]
    fn five_failures_are_free_and_then_one_a_second() {
        let mut guard = Guard::default();
        let (mut now, bad) = (Duration::from_secs(9), from("192.0.2.1:1"));
        for _ in 0..GUARD_BURST {
            assert_eq!(guard.must_wait(&bad, now), None);
            guard.failed(&bad, now);
        }
        assert_eq!(guard.must_wait(&bad, now), Some(GUARD_REFILL));
        assert_eq!(guard.must_wait(&from("192.0.2.2:1"), now), None);
        assert!(guard.must_wait(&from("192.0.2.1:2"), now).is_some(), "another port is the same source");
        now += GUARD_REFILL;
        assert_eq!(guard.must_wait(&bad, now), None);
        guard.failed(&bad, now);
        assert!(guard.must_wait(&bad, now).is_some());
    }

    #[test]
    fn a_whole_ipv6_network_is_one_source() {
        let mut guard = Guard::default();
        for n in 0..GUARD_BURST {
            guard.failed(&from(&format!("[2001:db8::{n:x}]:1")), Duration::ZERO);
        }
        assert!(guard.must_wait(&from("[2001:db8::ffff]:1"), Duration::ZERO).is_some());
        assert!(guard.must_wait(&from("[2001:db8:0:1::1]:1"), Duration::ZERO).is_none());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut guard = Guard::default();
        for n in 0..2 * GUARD_MAX {
            let peer = PeerId((n as u128).to_be_bytes());
            guard.failed(&Hop::Relayed(peer), Duration::ZERO);
        }
        assert_eq!(guard.full_at.len(), GUARD_MAX);
    }
}
