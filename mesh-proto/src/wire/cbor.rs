//! How the small values that many messages share look in CBOR (RFC 8949).
//!
//! ```text
//!  peer id    bytes .size 16
//!  endpoint   bytes .size 6   IPv4 address, port      all in network order
//!             bytes .size 18  IPv6 address, port
//! ```

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use minicbor::decode::{self, Decode, Decoder};
use minicbor::encode::{self, Encode, Encoder, Write};

use crate::id::{PEER_ID_LEN, PeerId};

/// Why a message is not what it claims to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// There is nothing in it.
    #[error("the message is empty")]
    Empty,
    /// It is longer than any message may be.
    #[error("the message has {0} bytes; at most {max} are allowed", max = crate::control::MESSAGE_MAX)]
    TooLong(usize),
    /// Its CBOR is broken, or misses a field.
    #[error("{what} is malformed: {detail}")]
    Malformed {
        /// Which message or part.
        what: &'static str,
        /// What the decoder says.
        detail: String,
    },
    /// A part is longer than its bound.
    #[error("{what} is {found} long; at most {limit} are allowed")]
    Limit {
        /// Which part.
        what: &'static str,
        /// Its bound.
        limit: usize,
        /// What was found.
        found: usize,
    },
}

impl WireError {
    pub(super) fn malformed(what: &'static str, detail: impl Into<String>) -> Self {
        Self::Malformed { what, detail: detail.into() }
    }
}

/// Appends the CBOR of `value`.
pub(super) fn put<T: Encode<()>>(out: &mut Vec<u8>, value: &T) {
    minicbor::encode(value, out).expect("writing to a vector cannot fail");
}

/// The one value that `bytes` are; trailing bytes are an error.
pub(super) fn whole<'b, T: Decode<'b, ()>>(what: &'static str, bytes: &'b [u8]) -> Result<T, WireError> {
    let mut decoder = Decoder::new(bytes);
    let value = decoder.decode().map_err(|error| WireError::malformed(what, error.to_string()))?;
    if decoder.position() != bytes.len() {
        return Err(WireError::malformed(what, "bytes follow its end"));
    }
    Ok(value)
}

/// Refuses what is longer than its bound.
pub(super) const fn bounded(what: &'static str, found: usize, limit: usize) -> Result<(), WireError> {
    if found > limit {
        return Err(WireError::Limit { what, limit, found });
    }
    Ok(())
}

/// Text that may be shown and logged: bounded, and without control characters, so that a peer's
/// name cannot move an operator's cursor.
pub(super) fn printable(what: &'static str, text: &str, limit: usize) -> Result<(), WireError> {
    bounded(what, text.len(), limit)?;
    if text.chars().any(char::is_control) {
        return Err(WireError::malformed(what, "it has control characters"));
    }
    Ok(())
}

impl<C> Encode<C> for PeerId {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for PeerId {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let bytes: [u8; PEER_ID_LEN] =
            d.bytes()?.try_into().map_err(|_| decode::Error::message("a peer id has 16 bytes"))?;
        Ok(Self(bytes))
    }
}

/// An underlay address as it is written on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint(pub SocketAddr);

impl<C> Encode<C> for Endpoint {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        let mut bytes = Vec::with_capacity(18);
        match self.0.ip() {
            IpAddr::V4(ip) => bytes.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes.extend_from_slice(&ip.octets()),
        }
        bytes.extend_from_slice(&self.0.port().to_be_bytes());
        e.bytes(&bytes)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Endpoint {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let bytes = d.bytes()?;
        let (ip, port): (IpAddr, [u8; 2]) = match *bytes {
            [a, b, c, d, p, q] => (Ipv4Addr::new(a, b, c, d).into(), [p, q]),
            [ref ip @ .., p, q] if ip.len() == 16 => {
                let mut octets = [0; 16];
                octets.copy_from_slice(ip);
                (Ipv6Addr::from(octets).into(), [p, q])
            }
            _ => return Err(decode::Error::message("an endpoint has 6 or 18 bytes")),
        };
        Ok(Self(SocketAddr::new(ip, u16::from_be_bytes(port))))
    }
}
