//! Names that follow from those that somebody gave: of services, and of one address of several (names N13).
//!
//! ```text
//!   _http._tcp.web    where `web` serves http              SRV ─► port, target
//!   _tcp.web          nothing but what is below
//!   ip-10-32-0-1.web  that address of `web`, as a target    A, AAAA
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_proto::wire::names::Name;
use mesh_proto::wire::services::{Protocol, Service};

/// How the label of an address begins.
const ADDRESS: &str = "ip";

/// Services of a name that are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Whose.
    pub(super) name: Name,
    /// Only this one; none if the question is for what is above it.
    pub(super) service: Option<String>,
    protocol: Protocol,
}

impl Asked {
    /// Reads `_SERVICE._PROTOCOL.NAME` and `_PROTOCOL.NAME`.
    pub(super) fn read(name: &Name) -> Option<Self> {
        let (first, rest) = name.as_str().strip_prefix('_')?.split_once('.')?;
        if let Ok(protocol) = first.parse() {
            return Some(Self { name: rest.parse().ok()?, service: None, protocol });
        }
        let (second, rest) = rest.strip_prefix('_')?.split_once('.')?;
        let protocol = second.parse().ok()?;
        Some(Self { name: rest.parse().ok()?, service: Some(first.to_owned()), protocol })
    }

    /// Whether that is one of them.
    pub(super) fn fits(&self, service: &Service) -> bool {
        service.protocol() == self.protocol && self.service.as_ref().is_none_or(|name| **name == *service.name())
    }
}

/// The name of one address of a name; none if it would be too long.
pub(super) fn target(name: &Name, address: IpAddr) -> Option<Name> {
    let label = match address {
        IpAddr::V4(v4) => v4.octets().map(|octet| octet.to_string()).join("-"),
        IpAddr::V6(v6) => v6.segments().map(|segment| format!("{segment:x}")).join("-"),
    };
    format!("{ADDRESS}-{label}.{name}").parse().ok()
}

/// The address that a label of [`target`] stands for, and the name that is to have it.
pub(super) fn read_target(name: &Name) -> Option<(IpAddr, Name)> {
    let (label, rest) = name.as_str().split_once('.')?;
    let (begin, numbers) = label.split_once('-')?;
    let parts: Vec<&str> = numbers.split('-').collect();
    let address = match parts.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(numbers_of(&parts, 10)?).ok()?)),
        8 => IpAddr::from(Ipv6Addr::from(<[u16; 8]>::try_from(numbers_of(&parts, 16)?).ok()?)),
        _ => return None,
    };
    let of = rest.parse().ok()?;
    // An address has one name, not others with zeros in front.
    (begin == ADDRESS && target(&of, address).as_ref() == Some(name)).then_some((address, of))
}

fn numbers_of<T: TryFrom<u32>>(parts: &[&str], radix: u32) -> Option<Vec<T>> {
    parts.iter().map(|part| u32::from_str_radix(part, radix).ok()?.try_into().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn an_address_of_a_name_has_one_name_which_reads_back() {
        for (address, label) in
            [("10.32.0.1", "ip-10-32-0-1"), ("fd00:32::5", "ip-fd00-32-0-0-0-0-0-5"), ("::", "ip-0-0-0-0-0-0-0-0")]
        {
            let address: IpAddr = address.parse().expect("an address");
            let target = target(&name("web.prod"), address).expect("short enough");
            assert_eq!(target.as_str(), format!("{label}.web.prod"));
            assert_eq!(read_target(&target), Some((address, name("web.prod"))));
        }
        for text in [
            "ip-10-32-0-1",
            "ip-10-32-0-01.web",
            "ip-10-32-0-256.web",
            "ip-10-32-0.web",
            "ip-10-32-0-1-2.web",
            "ipx-10-32-0-1.web",
            "ip-fd00-32-0-0-0-0-0-10000.web",
            "ip-0010-32-0-1.web",
            "ip.web",
        ] {
            assert_eq!(read_target(&name(text)), None, "{text}");
        }
        let long = name(&["a"; 88].join("."));
        assert_eq!(target(&long, IpAddr::from([255; 4])), None, "it would be too long");
    }

    #[test]
    fn services_are_asked_for_by_name_and_protocol() {
        let asked = Asked::read(&name("_http._tcp.web.prod")).expect("a question for a service");
        assert_eq!((asked.name.as_str(), asked.service.as_deref()), ("web.prod", Some("http")));
        let service = |text: &str| text.parse::<Service>().expect("a service");
        assert!(asked.fits(&service("http=80")) && asked.fits(&service("http=8080")));
        assert!(!asked.fits(&service("http=80/udp")) && !asked.fits(&service("80")));
        let above = Asked::read(&name("_udp.web")).expect("what is above services");
        assert!(above.service.is_none() && above.fits(&service("dns=53/udp")) && !above.fits(&service("53")));
        for text in ["_tcp", "_http._tcp", "http._tcp.web", "_http.tcp.web", "_http._sctp.web", "_http.web", "web"] {
            assert_eq!(Asked::read(&name(text)), None, "{text}");
        }
    }
}
