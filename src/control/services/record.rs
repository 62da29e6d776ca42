//! What is kept of a service of this host, and how it is written: `[ADDRESS:]PORT[/tcp|/udp]`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::netlink::nft::{Redirect, Transport};

/// Which way a service leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// From this host into the mesh.
    Export,
    /// From the mesh to outside.
    Import,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Export => "export",
            Self::Import => "import",
        })
    }
}

/// One service, as it is in the store (JSON) and in memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Record {
    /// Which way it leads.
    pub kind: Kind,
    /// What carries it.
    pub transport: Transport,
    /// Where it is found; the unspecified address: at any of the host's own.
    pub at: SocketAddr,
    /// Where it leads.
    pub to: SocketAddr,
    /// What it is called in the mesh, without the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Record {
    /// Where it is found, as it is written.
    #[must_use]
    pub fn place(&self) -> Place {
        let ip = self.at.ip();
        Place { ip: (!ip.is_unspecified()).then_some(ip), port: self.at.port(), transport: self.transport }
    }

    /// What the kernel is told.
    #[must_use]
    pub const fn redirect(&self) -> Redirect {
        Redirect { transport: self.transport, at: self.at, to: self.to }
    }

    /// Whether one port would have to lead to two places.
    #[must_use]
    pub fn is_in_the_way_of(&self, other: &Self) -> bool {
        let (one, two) = (self.at.ip(), other.at.ip());
        let same_address = one == two || one.is_unspecified() || two.is_unspecified();
        let same_family = one.is_ipv4() == two.is_ipv4();
        same_family && same_address && self.at.port() == other.at.port() && self.transport == other.transport
    }

    /// Its key in the store.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.at, self.transport)
    }
}

/// A port, and perhaps an address at which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The address, if one was named.
    pub ip: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// What carries it; TCP if nothing was said.
    pub transport: Transport,
}

impl Place {
    /// With an address; that of any if none was named, of the family of another one.
    #[must_use]
    pub fn socket(&self, like: IpAddr) -> SocketAddr {
        let any = if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        SocketAddr::new(self.ip.unwrap_or(any), self.port)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => write!(f, "{}/{}", SocketAddr::new(ip, self.port), self.transport),
            None => write!(f, "{}/{}", self.port, self.transport),
        }
    }
}

/// Why a text is no [`Place`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` cannot be a place: {why}; expected [ADDRESS:]PORT[/tcp|/udp], such as 8080, 192.0.2.7:53/udp or [2001:db8::7]:80"
)]
pub struct InvalidPlace {
    text: String,
    why: &'static str,
}

impl FromStr for Place {
    type Err = InvalidPlace;

    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        let invalid = |why| {
            let text = text.chars().filter(|c| !c.is_control()).take(80).collect();
            InvalidPlace { text, why }
        };
        let (place, transport) = text.split_once('/').unwrap_or((text, "tcp"));
        let transport = match transport {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => return Err(invalid("only tcp and udp can be led elsewhere")),
        };
        let (ip, port) = match place.parse::<SocketAddr>() {
            Ok(SocketAddr::V6(at)) if at.scope_id() != 0 => return Err(invalid("its address has a zone")),
            Ok(at) => (Some(at.ip().to_canonical()), at.port()),
            // `parse` alone would take a plus sign.
            Err(_) if place.bytes().all(|byte| byte.is_ascii_digit()) => {
                (None, place.parse().map_err(|_| invalid("a port is a number from 1 to 65535"))?)
            }
            Err(_) => return Err(invalid("it is neither a port nor an IP address with a port")),
        };
        if port == 0 {
            return Err(invalid("a port is a number from 1 to 65535"));
        }
        if ip.is_some_and(|ip| ip.is_unspecified() || ip.is_multicast()) {
            return Err(invalid("nobody has that address"));
        }
        Ok(Self { ip, port, transport })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str, family: &str) -> Record {
        let place: Place = text.parse().expect(text);
        let to: SocketAddr = if family == "4" { "10.32.0.1:80" } else { "[fd00::1]:80" }.parse().expect("a place");
        let (transport, at) = (place.transport, place.socket(to.ip()));
        Record { kind: Kind::Export, transport, at, to, name: None }
    }

    #[test]
    fn places_are_read_as_they_are_written() {
        for (text, shown) in [
            ("8080", "8080/tcp"),
            ("53/udp", "53/udp"),
            ("192.0.2.7:53/udp", "192.0.2.7:53/udp"),
            ("[2001:db8::7]:80", "[2001:db8::7]:80/tcp"),
            ("[::ffff:192.0.2.7]:80", "192.0.2.7:80/tcp"),
        ] {
            let place: Place = text.parse().expect(text);
            assert_eq!(place.to_string(), shown);
            assert_eq!(shown.parse(), Ok(place));
            assert_eq!(record(text, if text.contains("db8") { "6" } else { "4" }).place(), place);
        }
    }

    #[test]
    fn what_is_no_place_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "a port is"),
            ("0", "from 1 to 65535"),
            ("65536", "from 1 to 65535"),
            ("+80", "neither"),
            ("web:80", "neither"),
            ("192.0.2.7", "neither"),
            ("2001:db8::7:80", "neither"),
            ("192.0.2.7:0", "from 1 to 65535"),
            ("0.0.0.0:80", "nobody"),
            ("[ff02::1]:80", "nobody"),
            ("[fe80::1%3]:80", "zone"),
            ("80/sctp", "tcp and udp"),
            ("80/TCP", "tcp and udp"),
            ("\u{1b}[2J", "`[2J`"),
        ] {
            let error = text.parse::<Place>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn one_port_leads_to_one_place() {
        let first = record("8080", "4");
        for (text, family, taken) in [
            ("8080", "4", true),
            ("192.0.2.7:8080", "4", true),
            ("8080", "6", false),
            ("8080/udp", "4", false),
            ("8081", "4", false),
        ] {
            let second = record(text, family);
            assert_eq!((first.is_in_the_way_of(&second), second.is_in_the_way_of(&first)), (taken, taken), "{text}");
        }
        assert!(!record("192.0.2.7:80", "4").is_in_the_way_of(&record("192.0.2.8:80", "4")));
    }
}
