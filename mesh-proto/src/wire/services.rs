//! At which ports a name's addresses serve something.
//!
//! ```text
//!  services   [service …]                              ascending, each once; none: the field is absent
//!  service    [ name, 6 or 17, port, mask ]
//!  mask       bit n: served at the n-th of the entry's addresses; little-endian, no zero byte at the end
//! ```
//!
//! A service belongs to addresses, not to the name: two containers of one name may serve at other ports.

use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;
use std::collections::BTreeMap;

use minicbor::decode::{self, Decoder};
use minicbor::encode::{self, Encoder, Write};
use minicbor::{Decode, Encode};

use super::names::{ADDRESSES_MAX, Addresses};

/// Longest name of a service, in bytes (RFC 6335).
pub const SERVICE_NAME_MAX: usize = 15;

/// Most services that one peer has for one name; those beyond are left out.
pub const SERVICES_MAX: usize = 32;

/// A mask has a bit for each address.
const _: () = assert!(ADDRESSES_MAX <= 128);

/// What carries a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its name, in small letters.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Its number in the header of IP.
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl FromStr for Protocol {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(()),
        }
    }
}

/// A service: what it is called, and where it is found. One of which only the port is known is called
/// by the port's number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    name: Box<str>,
    protocol: Protocol,
    port: u16,
}

/// Why a text is no [`Service`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` cannot be a service: {why}; expected [NAME=]PORT[/tcp|/udp], such as http=8080 or 53/udp")]
pub struct InvalidService {
    text: String,
    why: &'static str,
}

impl Service {
    fn new(name: &str, protocol: Protocol, port: u16) -> Result<Self, &'static str> {
        if port == 0 {
            return Err("a port is a number from 1 to 65535");
        }
        if name.is_empty() || name.len() > SERVICE_NAME_MAX {
            return Err("its name has 1 to 15 characters");
        }
        if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') || name.starts_with('-') {
            return Err("its name has letters, digits and, but at its beginning, `-`");
        }
        Ok(Self { name: name.into(), protocol, port })
    }

    /// What it is called, in small letters and without an underscore.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What carries it.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (port, protocol) = (self.port, self.protocol.as_str());
        if *self.name == *port.to_string() {
            return write!(f, "{port}/{protocol}");
        }
        write!(f, "{}={port}/{protocol}", self.name)
    }
}

impl FromStr for Service {
    type Err = InvalidService;

    /// Reads `[NAME=]PORT[/tcp|/udp]`; capital letters become small ones.
    fn from_str(text: &str) -> Result<Self, InvalidService> {
        let invalid = |why| {
            let text = text.chars().filter(|c| !c.is_control()).take(80).collect();
            InvalidService { text, why }
        };
        let small = text.to_ascii_lowercase();
        let (name, place) = small.split_once('=').map_or((None, &*small), |(name, place)| (Some(name), place));
        let (port, protocol) = place.split_once('/').unwrap_or((place, "tcp"));
        let protocol = protocol.parse().map_err(|()| invalid("only tcp and udp carry services"))?;
        // `parse` alone would take a plus sign.
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let number = port.parse().ok().filter(|_| digits);
        let number: u16 = number.ok_or_else(|| invalid("a port is a number from 1 to 65535"))?;
        Self::new(name.unwrap_or(&number.to_string()), protocol, number).map_err(invalid)
    }
}

/// The services of a name, each with the addresses at which it is. Goes with the [`Addresses`] that it
/// was made with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Services(Vec<(Service, u128)>);

impl Services {
    fn new(addresses: &Addresses, services: impl IntoIterator<Item = (Service, IpAddr)>) -> Self {
        let mut masks: BTreeMap<Service, u128> = BTreeMap::new();
        for (service, address) in services {
            if let Ok(at) = addresses.list().binary_search(&address) {
                *masks.entry(service).or_default() |= 1 << at;
            }
        }
        Self(masks.into_iter().take(SERVICES_MAX).collect())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What one peer says of a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct NameRecords {
    /// Its addresses; none: the name is gone.
    pub addresses: Addresses,
    /// What these serve.
    pub services: Services,
}

impl NameRecords {
    /// These addresses, with what is served there; what is served elsewhere is left out.
    pub fn new(
        addresses: impl IntoIterator<Item = IpAddr>,
        services: impl IntoIterator<Item = (Service, IpAddr)>,
    ) -> Self {
        let addresses = Addresses::new(addresses);
        let services = Services::new(&addresses, services);
        Self { addresses, services }
    }

    /// Each service, with one of the addresses at which it is.
    pub fn services(&self) -> impl Iterator<Item = (&Service, IpAddr)> {
        let at = |mask: u128| {
            let addresses = self.addresses.list().iter().enumerate();
            addresses.filter(move |(at, _)| mask & (1_u128 << *at) != 0).map(|(_, address)| *address)
        };
        self.services.0.iter().flat_map(move |(service, mask)| at(*mask).map(move |address| (service, address)))
    }
}

impl From<Addresses> for NameRecords {
    fn from(addresses: Addresses) -> Self {
        Self { addresses, services: Services::default() }
    }
}

impl<C> Encode<C> for Services {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(self.0.len() as u64)?;
        for (Service { name, protocol, port }, mask) in &self.0 {
            let bytes = mask.to_le_bytes();
            let zeros = mask.leading_zeros() as usize / 8;
            e.array(4)?.str(name)?.u8(protocol.number())?.u16(*port)?.bytes(&bytes[..bytes.len() - zeros])?;
        }
        Ok(())
    }

    /// Then the field is left out: who knows of no services writes the same bytes.
    fn is_nil(&self) -> bool {
        self.is_empty()
    }
}

impl<'b, C> Decode<'b, C> for Services {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let count = d.array()?.ok_or_else(|| decode::Error::message("a list without its length"))?;
        if count > SERVICES_MAX as u64 {
            return Err(decode::Error::message("too many services"));
        }
        let mut list: Vec<(Service, u128)> = Vec::new();
        for _ in 0..count {
            if d.array()? != Some(4) {
                return Err(decode::Error::message("a service has four parts"));
            }
            let name = d.str()?;
            let protocol = match d.u8()? {
                6 => Protocol::Tcp,
                17 => Protocol::Udp,
                _ => return Err(decode::Error::message("only TCP and UDP carry services")),
            };
            let service = Service::new(name, protocol, d.u16()?).map_err(decode::Error::message)?;
            let bytes = d.bytes()?;
            let mut mask = [0; 16];
            match mask.get_mut(..bytes.len()) {
                // One set of addresses has one form.
                Some(place) if bytes.last().is_some_and(|last| *last != 0) => place.copy_from_slice(bytes),
                _ => return Err(decode::Error::message("a mask has 1 to 16 bytes, the last one not zero")),
            }
            if list.last().is_some_and(|(last, _)| *last >= service) {
                return Err(decode::Error::message("services are not in order"));
            }
            list.push((service, u128::from_le_bytes(mask)));
        }
        Ok(Self(list))
    }

    fn nil() -> Option<Self> {
        Some(Self::default())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::wire) fn service() -> impl Strategy<Value = Service> {
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
        ("[a-z0-9][a-z0-9-]{0,14}", protocol, 1..=u16::MAX)
            .prop_map(|(name, protocol, port)| Service::new(&name, protocol, port).unwrap())
    }

    #[test]
    fn a_service_is_read_as_people_write_it_and_what_is_none_is_refused() {
        for (text, shown) in [
            ("http=8080", "http=8080/tcp"),
            ("DNS=53/udp", "dns=53/udp"),
            ("80", "80/tcp"),
            ("80/UDP", "80/udp"),
            ("80=80", "80/tcp"),
            ("8080=80", "8080=80/tcp"),
        ] {
            let service: Service = text.parse().unwrap();
            assert_eq!(service.to_string(), shown, "{text}");
            assert_eq!(shown.parse(), Ok(service), "{text}");
        }
        for text in [
            "",
            "=",
            "=80",
            "http",
            "http=",
            "0",
            "+80",
            "65536",
            "80/sctp",
            "80/",
            "a_b=80",
            "-a=80",
            "ä=80",
            "sixteen-letters-=80",
            "a=b=80",
        ] {
            let error = text.parse::<Service>().expect_err(text).to_string();
            assert!(error.contains("[NAME=]PORT"), "{error}");
        }
    }

    #[test]
    fn a_service_is_at_the_addresses_at_which_it_was_said_to_be() {
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let (web, db): (Service, Service) = ("http=80".parse().unwrap(), "5432".parse().unwrap());
        let said = [(web.clone(), ip(2)), (db.clone(), ip(1)), (web.clone(), ip(3)), (db.clone(), ip(9))];
        let records = NameRecords::new([ip(3), ip(1), ip(2)], said);
        let found: Vec<_> = records.services().collect();
        assert_eq!(found, [(&db, ip(1)), (&web, ip(2)), (&web, ip(3))], "nothing at an address that it does not have");
    }

    #[test]
    fn so_many_services_are_told_and_no_more() {
        let ip = IpAddr::from([10, 0, 0, 1]);
        let all = (1..=SERVICES_MAX as u16 + 5).map(|port| (port.to_string().parse().unwrap(), ip));
        let records = NameRecords::new([ip], all);
        assert_eq!(records.services().count(), SERVICES_MAX);
    }

    #[test]
    fn services_out_of_form_are_refused() {
        let ip = IpAddr::from([10, 0, 0, 1]);
        let records = NameRecords::new([ip], [("http=80".parse().unwrap(), ip)]);
        let bytes = minicbor::to_vec(&records.services).unwrap();
        assert_eq!(bytes, b"\x81\x84\x64http\x06\x18\x50\x41\x01");
        for (what, bad) in [
            ("a capital letter", &b"\x81\x84\x64hTtp\x06\x18\x50\x41\x01"[..]),
            ("another protocol", b"\x81\x84\x64http\x07\x18\x50\x41\x01"),
            ("no port", b"\x81\x84\x64http\x06\x00\x41\x01"),
            ("no address", b"\x81\x84\x64http\x06\x18\x50\x40"),
            ("a zero at the end", b"\x81\x84\x64http\x06\x18\x50\x42\x01\x00"),
            (
                "too many bytes",
                b"\x81\x84\x64http\x06\x18\x50\x51\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01",
            ),
            ("twice the same", b"\x82\x84\x64http\x06\x18\x50\x41\x01\x84\x64http\x06\x18\x50\x41\x01"),
            ("three parts", b"\x81\x83\x64http\x06\x18\x50"),
        ] {
            assert!(minicbor::decode::<Services>(bad).is_err(), "{what}");
        }
    }

    proptest! {
        #[test]
        fn services_read_back(list in proptest::collection::vec((service(), 0..128_u8), 0..20)) {
            let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
            let records = NameRecords::new((0..128).map(ip), list.into_iter().map(|(service, at)| (service, ip(at))));
            let bytes = minicbor::to_vec(&records.services).unwrap();
            prop_assert_eq!(minicbor::decode::<Services>(&bytes).unwrap(), records.services);
        }
    }
}
