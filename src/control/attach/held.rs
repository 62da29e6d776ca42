//! Attachments that somebody else answers for: a container runtime, by its own name for them.
//!
//! A *holder* (`cni:NETWORK/CONTAINER/INTERFACE`) has the addresses in the place of the namespace.
//! So they are found again when the namespace is gone or was never named, and what is released is
//! what the holder held, whatever came to have the path meanwhile.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Ask, AttachError, Attachments, Make, Record, Target, Terms, Wanted, first, parse_address, parse_mac};
use crate::netlink::container::{self, container_mac};
use crate::netlink::{ALIAS_MAX, Link, Mac, Route};

/// Longest name of a holder, in bytes: the kernel keeps it with the interface.
const HOLDER_MAX: usize = ALIAS_MAX;
/// Most subnets, and most routes, of one request.
const LIST_MAX: usize = 64;
/// The smallest MTU with which IPv4 works (RFC 791).
const MTU_MIN: u16 = 68;
/// The kinds of owners that the router names itself.
const OWN_KINDS: [&str; 3] = ["netns", "docker", "weft"];

/// What a holder asks for.
#[derive(Debug, Clone, Default)]
pub struct Hold {
    /// Whose the addresses shall be: `KIND:NAME`.
    pub holder: String,
    /// The namespace, by path or process id.
    pub target: String,
    /// Name of the interface inside.
    pub interface: String,
    /// Addresses to have.
    pub addresses: Vec<String>,
    /// Where free addresses are taken from, one of each family that `addresses` has none of; empty:
    /// every range.
    pub subnets: Vec<String>,
    /// Routes, as `DESTINATION` or `DESTINATION via GATEWAY`.
    pub routes: Vec<String>,
    /// MTU of both ends; 0: that of the overlay.
    pub mtu: u16,
    /// Hardware address of the interface inside; empty: one that follows from its address.
    pub mac: String,
    /// Whether the bridge gives back to it what it sends to itself.
    pub hairpin: bool,
    /// Whether it may send from addresses that are not its own (guard P2).
    pub may_spoof: bool,
    /// Whether its connections to outside of the mesh go in the host's name (kubernetes K17).
    pub masquerade: bool,
    /// Whether the host translates addresses for it, of services or ports of the host (kubernetes K18).
    pub translated: bool,
}

impl Attachments {
    /// Attaches a namespace for a holder. Repeated, it gives what the holder has already.
    ///
    /// # Errors
    /// If the namespace or an address cannot be had, or the kernel refuses; then nothing is changed.
    pub async fn hold(&self, hold: &Hold) -> Result<Record, AttachError> {
        check_holder(&hold.holder)?;
        let target = namespace_target(&hold.target)?;
        container::check_interface(&hold.interface).map_err(|error| AttachError::Invalid(error.to_string()))?;
        let (asked, mtu) = (self.asked(hold)?, self.mtu_of(hold.mtu)?);
        let (routes, mac) = (routes(&hold.routes)?, wanted_mac(&hold.mac)?);
        let found = target.find(self.inner.host).await?;
        let owner = hold.holder.clone();
        let lock = self.lock(&owner);
        let _busy = lock.lock().await;
        let host_interface = container::host_interface(&found.namespace, &hold.interface);
        if let Some(other) = self.owner_of(&host_interface).filter(|other| *other != owner) {
            return Err(AttachError::Unusable(format!(
                "interface {} of {target} is an attachment of `{other}`: detach that first, or choose another name",
                hold.interface
            )));
        }
        let before = self.record(&owner);
        if let Some(old) = before.as_ref().filter(|old| old.host_interface != host_interface) {
            // The same container in another namespace: the interface in the old one is over.
            container::unplug(&self.inner.netlink, &old.host_interface).await?;
        }
        let asked = if hold.addresses.is_empty() && before.is_some() { Vec::new() } else { asked };
        let (all, fresh) = self.take(&owner, before.as_ref(), asked).await?;
        let record = Record {
            target: target.to_string(),
            interface: hold.interface.clone(),
            mac: mac.or(before.as_ref().map(|old| old.mac)).unwrap_or_else(|| container_mac(first(&all))),
            addresses: all,
            host_interface,
            owner: owner.clone(),
            names: Vec::new(),
            services: Vec::new(),
            masquerade: false,
            held: Some(Terms {
                namespace: found.owner,
                mtu,
                routes,
                hairpin: hold.hairpin,
                may_spoof: hold.may_spoof,
                masquerade: hold.masquerade,
                translated: hold.translated,
            }),
        };
        if let Err(error) = self.plug_and_keep(&found.namespace, &record, before.as_ref(), Make::IfMissing).await {
            self.give_back(&owner, &fresh).await;
            return Err(error);
        }
        tracing::info!(holder = %owner, target = %record.target, addresses = ?record.address_texts(), "attached");
        Ok(record)
    }

    /// Releases what a holder holds; nothing, if it holds nothing.
    ///
    /// # Errors
    /// If that is no name of a holder, or the kernel or the disk refuses.
    pub async fn unhold(&self, holder: &str) -> Result<Vec<IpNet>, AttachError> {
        check_holder(holder)?;
        let lock = self.lock(holder);
        let _busy = lock.lock().await;
        let Some(record) = self.record(holder) else {
            // Half of one may be there, of a request that was cut off.
            let given = self.inner.router.lookup(holder).await?;
            self.give_back(holder, &given).await;
            return Ok(given);
        };
        container::unplug(&self.inner.netlink, &record.host_interface).await?;
        self.keep(holder, None).await?;
        self.give_back(holder, &record.addresses).await;
        tracing::info!(holder, target = %record.target, released = ?record.address_texts(), "detached");
        Ok(record.addresses)
    }

    /// The end on the bridge, as it stands.
    ///
    /// # Errors
    /// If it is not there.
    pub async fn host_end(&self, record: &Record) -> Result<Link, AttachError> {
        Ok(self.inner.netlink.need_link(&record.host_interface).await?)
    }

    /// Refuses to touch what a holder answers for.
    pub(super) fn not_held(&self, owner: &str) -> Result<(), AttachError> {
        if self.record(owner).is_none_or(|record| record.held.is_none()) {
            return Ok(());
        }
        Err(AttachError::Unusable(format!(
            "it is an attachment of `{owner}`: only the container runtime that made it changes or removes it"
        )))
    }

    /// The addresses asked for, then a free one of each family that has none.
    fn asked(&self, hold: &Hold) -> Result<Vec<Ask>, AttachError> {
        if hold.subnets.len() > LIST_MAX {
            return Err(AttachError::Invalid(format!("at most {LIST_MAX} subnets at once")));
        }
        let addresses = self.wanted(&hold.addresses)?;
        let mut asked: Vec<Ask> = addresses.iter().map(|Wanted(address)| Ask::This(*address)).collect();
        let subnets: Vec<IpNet> = if hold.subnets.is_empty() {
            self.inner.ranges.clone()
        } else {
            hold.subnets.iter().map(|text| subnet(text, &self.inner.ranges)).collect::<Result<_, _>>()?
        };
        for subnet in subnets {
            let family = |address: &IpAddr| address.is_ipv4() == subnet.addr().is_ipv4();
            if !addresses.iter().any(|Wanted(address)| family(address)) {
                asked.push(Ask::Free(subnet));
            }
        }
        Ok(asked)
    }

    fn mtu_of(&self, wanted: u16) -> Result<u16, AttachError> {
        match wanted {
            0 => Ok(self.inner.mtu),
            mtu if (MTU_MIN..=self.inner.mtu).contains(&mtu) => Ok(mtu),
            mtu => {
                let most = self.inner.mtu;
                Err(AttachError::Invalid(format!(
                    "MTU {mtu} cannot be: give one of {MTU_MIN} to {most}, which is the network's, or none"
                )))
            }
        }
    }
}

/// Refuses what cannot be the name of a holder.
fn check_holder(holder: &str) -> Result<(), AttachError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "_.:/@-".contains(c);
    let (kind, name) = holder.split_once(':').unwrap_or_default();
    let good = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_lowercase()) && !name.is_empty();
    if good && holder.len() <= HOLDER_MAX && holder.chars().all(fine) && !OWN_KINDS.contains(&kind) {
        return Ok(());
    }
    let shown: String = holder.chars().filter(|c| !c.is_control()).take(80).collect();
    Err(AttachError::Invalid(format!(
        "`{shown}` is not a holder: expected KIND:NAME of letters, digits and `_.:/@-`, at most {HOLDER_MAX} bytes, where KIND is not {}",
        OWN_KINDS.join(", ")
    )))
}

/// A holder names a namespace, and never a container of Docker's.
fn namespace_target(text: &str) -> Result<Target, AttachError> {
    match text.parse()? {
        Target::Docker(name) => Err(AttachError::Invalid(format!(
            "target `{name}` is not the absolute path of a network namespace and not a process id"
        ))),
        target => Ok(target),
    }
}

/// A hardware address that an interface can have.
fn wanted_mac(text: &str) -> Result<Option<Mac>, AttachError> {
    if text.is_empty() {
        return Ok(None);
    }
    parse_mac(text).map(Some).ok_or_else(|| {
        let shown: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
        AttachError::Invalid(format!(
            "`{shown}` is no hardware address of an interface: give one such as 02:42:0a:20:00:05, whose first byte is even, or none"
        ))
    })
}

/// A part of a range, or all of it.
fn subnet(text: &str, ranges: &[IpNet]) -> Result<IpNet, AttachError> {
    let known = || ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let shown: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
    let net: IpNet = text.trim().parse().map_err(|_| {
        AttachError::Invalid(format!("`{shown}` is not a subnet; give a part of {}, as ADDRESS/LENGTH", known()))
    })?;
    if net.trunc() != net {
        return Err(AttachError::Invalid(format!("subnet {net} has host bits: write {}", net.trunc())));
    }
    if ranges.iter().any(|range| range.contains(&net)) {
        return Ok(net);
    }
    Err(AttachError::Invalid(format!("subnet {net} is no part of this network's ranges: {}", known())))
}

fn routes(texts: &[String]) -> Result<Vec<Route>, AttachError> {
    if texts.len() > LIST_MAX {
        return Err(AttachError::Invalid(format!("at most {LIST_MAX} routes at once")));
    }
    texts.iter().map(|text| route(text)).collect()
}

fn route(text: &str) -> Result<Route, AttachError> {
    let shown: String = text.chars().filter(|c| !c.is_control()).take(100).collect();
    let invalid =
        |why: &str| AttachError::Invalid(format!("route `{shown}`: {why}; expected DESTINATION/LENGTH [via GATEWAY]"));
    let mut words = text.split_whitespace();
    let destination: IpNet =
        words.next().and_then(|word| word.parse().ok()).ok_or_else(|| invalid("its destination is not a network"))?;
    let via = match (words.next(), words.next(), words.next()) {
        (None, ..) => None,
        (Some("via"), Some(gateway), None) => {
            Some(parse_address(gateway, &[]).map_err(|_| invalid("its gateway is not an IP address"))?)
        }
        _ => return Err(invalid("it has other words than these")),
    };
    if via.is_some_and(|gateway| gateway.is_ipv4() != destination.addr().is_ipv4()) {
        return Err(invalid("destination and gateway are of two families"));
    }
    Ok(Route { destination: destination.trunc(), via })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Vec<IpNet> {
        ["10.32.0.0/12", "fd00::/64"].iter().map(|r| r.parse().expect("a range")).collect()
    }

    #[test]
    fn a_holder_has_a_kind_that_is_not_the_routers_own() {
        let long = format!("cni:{}", "a".repeat(HOLDER_MAX));
        for holder in ["cni:net/0123/eth0", "a:b:c"] {
            assert!(check_holder(holder).is_ok(), "{holder}");
        }
        for holder in ["", "cni", "cni:", ":x", "netns:1@2", "docker:web", "weft:expose", "CNI:x", "cni:a b", &long] {
            let error = check_holder(holder).expect_err(holder).to_string();
            assert!(error.contains("KIND:NAME"), "{error}");
        }
    }

    #[test]
    fn a_hardware_address_is_six_bytes_and_of_one_interface() {
        assert_eq!(wanted_mac("").expect("none"), None);
        assert_eq!(wanted_mac("02:42:0A:20:00:05").expect("one"), Some([2, 0x42, 10, 0x20, 0, 5]));
        for text in [
            "02:42:0a:20:00",
            "02:42:0a:20:00:05:06",
            "03:42:0a:20:00:05",
            "00:00:00:00:00:00",
            "2:42:a:20:0:5",
            "+2:42:0a:20:00:05",
        ] {
            let error = wanted_mac(text).expect_err(text).to_string();
            assert!(error.contains(text) && error.contains("02:42:0a"), "{error}");
        }
    }

    #[test]
    fn a_subnet_is_a_part_of_a_range() {
        for text in ["10.32.0.0/12", "10.33.7.0/24", "fd00::/64", "fd00::100/120"] {
            assert!(subnet(text, &ranges()).is_ok(), "{text}");
        }
        for (text, word) in [
            ("10.33.7.1/24", "10.33.7.0/24"),
            ("10.0.0.0/8", "10.32.0.0/12"),
            ("192.0.2.0/24", "10.32.0.0/12"),
            ("10.33.7.0", "not a subnet"),
            ("", "not a subnet"),
        ] {
            let error = subnet(text, &ranges()).expect_err(text).to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn routes_are_read_with_and_without_gateway() {
        let read = |text: &str| route(text).map(|route| (route.destination.to_string(), route.via.is_some()));
        assert_eq!(read("0.0.0.0/0 via 10.32.0.1").expect("a route"), ("0.0.0.0/0".to_owned(), true));
        assert_eq!(read("fd01::7/64").expect("a route"), ("fd01::/64".to_owned(), false));
        for text in ["", "default", "0.0.0.0/0 10.32.0.1", "0.0.0.0/0 via", "0.0.0.0/0 via fd00::1", "::/0 via x y"] {
            let error = route(text).expect_err(text).to_string();
            assert!(error.contains("via GATEWAY"), "{error}");
        }
    }
}
