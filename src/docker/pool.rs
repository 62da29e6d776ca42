//! Pools: the ranges of the mesh, or parts of them. Their ids say all there is to know, so that they need no
//! memory: `10.32.0.0/12`, or `10.32.0.0/12,10.32.1.0/24` where addresses come from a part.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::refusal::Refusal;

/// A pool that is inside a range of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pool {
    /// The network that its containers see.
    pub(super) net: IpNet,
    /// The part that addresses are given from.
    pub(super) part: IpNet,
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.net)?;
        if self.part != self.net { write!(f, ",{}", self.part) } else { Ok(()) }
    }
}

impl Pool {
    /// What was asked for; with nothing, the range of that family.
    pub(super) fn new(net: &str, part: &str, v6: bool, ranges: &[IpNet]) -> Result<Self, Refusal> {
        let refused = |pool: &str, why: String| Refusal::Pool { pool: shown(pool), why };
        let range = ranges.iter().find(|range| range.addr().is_ipv6() == v6);
        let net = match (net, range) {
            ("", Some(range)) => *range,
            ("", None) => {
                let family = if v6 { "IPv6" } else { "IPv4" };
                let why = format!("the mesh has no {family} range; its routers can be given one with --range");
                return Err(refused(family, why));
            }
            (text, _) => inside(text, ranges)?,
        };
        if net.addr().is_ipv6() != v6 {
            return Err(refused(&net.to_string(), format!("is not of IPv{}", if v6 { 6 } else { 4 })));
        }
        let part = if part.is_empty() { net } else { inside(part, ranges)? };
        if !net.contains(&part) {
            return Err(refused(
                &part.to_string(),
                format!("is not inside {net}; choose a part of that as --ip-range"),
            ));
        }
        Ok(Self { net, part })
    }

    /// The pool of an id that [`Self::to_string`] made.
    pub(super) fn from_id(id: &str, ranges: &[IpNet]) -> Result<Self, Refusal> {
        let (net, part) = id.split_once(',').unwrap_or((id, ""));
        if net.is_empty() {
            return Err(Refusal::Malformed("there is no pool without an id".to_owned()));
        }
        Self::new(net, part, net.contains(':'), ranges)
    }

    /// An address that may be given, with the pool's prefix length.
    pub(super) fn address(&self, text: &str) -> Result<IpNet, Refusal> {
        let Ok(address) = text.parse::<IpAddr>() else {
            return Err(Refusal::Malformed(format!("`{}` is not an IP address", shown(text))));
        };
        let refused = |why: &str| Refusal::Pool { pool: self.net.to_string(), why: format!("{address} {why}") };
        if !self.net.contains(&address) {
            return Err(refused("is not in it; choose an address that is"));
        }
        let broadcast = address.is_ipv4() && address == self.net.broadcast();
        if address == self.net.network() || broadcast {
            return Err(refused("is the network itself, or its broadcast address; choose another one"));
        }
        Ok(self.with_prefix(address))
    }

    /// An address with the pool's prefix length.
    pub(super) fn with_prefix(&self, address: IpAddr) -> IpNet {
        // A prefix length of the same family fits: the allocator gives what it was asked for.
        IpNet::new(address, self.net.prefix_len()).unwrap_or_else(|_| address.into())
    }

    /// What the engine is told to be the gateway, of which there is none: an address that nobody gets, so that
    /// none is used up for it on every host, and that shows that it is none.
    pub(super) fn no_gateway(&self) -> IpNet {
        self.net.trunc()
    }
}

/// Reads a network and checks that it is a range or a part of one.
pub(super) fn inside(text: &str, ranges: &[IpNet]) -> Result<IpNet, Refusal> {
    let refused = |why: String| Refusal::Pool { pool: shown(text), why };
    let net: IpNet = text.parse().map_err(|_| refused("is not a network such as 10.32.0.0/16".to_owned()))?;
    if net.trunc() != net {
        return Err(refused(format!("has bits set behind its prefix; did you mean {}?", net.trunc())));
    }
    if ranges.iter().any(|range| range.contains(&net)) {
        return Ok(net);
    }
    let known = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    Err(refused(format!(
        "is not inside the mesh's {known}; choose a part of that as --subnet, or leave it out to get all of it"
    )))
}

/// A text from outside, fit for a message.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Vec<IpNet> {
        ["10.32.0.0/16", "fd00:7::/64"].iter().map(|range| range.parse().expect("a range")).collect()
    }

    fn pool(net: &str, part: &str, v6: bool) -> Result<Pool, String> {
        Pool::new(net, part, v6, &ranges()).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn an_id_reads_back_as_the_pool() {
        for (net, part, v6, id) in [
            ("", "", false, "10.32.0.0/16"),
            ("", "", true, "fd00:7::/64"),
            ("10.32.4.0/24", "", false, "10.32.4.0/24"),
            ("10.32.4.0/24", "10.32.4.128/25", false, "10.32.4.0/24,10.32.4.128/25"),
            ("fd00:7::/80", "fd00:7::1:0/112", true, "fd00:7::/80,fd00:7::1:0/112"),
        ] {
            let pool = pool(net, part, v6).expect("inside");
            assert_eq!(pool.to_string(), id);
            assert_eq!(Pool::from_id(id, &ranges()).expect("an id"), pool);
        }
    }

    #[test]
    fn a_pool_that_is_not_the_meshs_is_refused_with_what_and_why() {
        for (net, part, v6, word) in [
            ("10.40.0.0/16", "", false, "pool 10.40.0.0/16: is not inside the mesh's 10.32.0.0/16 and fd00:7::/64"),
            ("10.0.0.0/8", "", false, "10.0.0.0/8"),
            ("10.32.0.1/16", "", false, "did you mean 10.32.0.0/16?"),
            ("ten", "", false, "pool ten: is not a network"),
            ("10.32.4.0/24", "", true, "is not of IPv6"),
            ("fd00:7::/80", "", false, "is not of IPv4"),
            ("10.32.4.0/24", "10.32.5.0/24", false, "10.32.5.0/24: is not inside 10.32.4.0/24"),
            ("10.32.4.0/24", "10.32.0.0/16", false, "is not inside 10.32.4.0/24"),
        ] {
            let said = pool(net, part, v6).expect_err(net);
            assert!(said.contains(word), "{said}");
        }
        let none = Pool::new("", "", true, &ranges()[..1]).expect_err("no IPv6").to_string();
        assert!(none.contains("no IPv6 range") && none.contains("--range"), "{none}");
        for id in ["", ",", "x", "10.32.0.0/16,"] {
            assert!(Pool::from_id(id, &ranges()).is_err() == (id != "10.32.0.0/16,"), "{id}");
        }
    }

    #[test]
    fn an_address_is_of_the_pool_and_of_a_container() {
        let pool = pool("10.32.4.0/24", "", false).expect("inside");
        assert_eq!(pool.address("10.32.4.9").expect("inside").to_string(), "10.32.4.9/24");
        for (text, word) in [
            ("10.32.5.9", "10.32.5.9 is not in it"),
            ("10.32.4.0", "network itself"),
            ("10.32.4.255", "broadcast"),
            ("fd00:7::1", "is not in it"),
            ("nine", "`nine` is not an IP address"),
        ] {
            let said = pool.address(text).expect_err(text).to_string();
            assert!(said.contains(word), "{said}");
        }
    }
}
