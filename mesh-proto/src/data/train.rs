//! Sealed datagrams of one size, one behind the other: one system call sends them all.
//!
//! ```text
//!  buffer   │ sent ░░│ datagram │ datagram │ datagram │ records … ┆ room for tag │ free
//!           0        begin                            end  (the one that is being filled)
//! ```
//!
//! [`Train::seal`] alone moves `end`, and only what lies before it is sent: what is not sealed
//! does not leave (sleeve S5).

use core::net::SocketAddr;

use super::Sink;
use super::cipher::SealKey;
use super::parts::Parts;
use crate::wire::datagram::{RELAY_HEADER, RelayHeader, SLEEVE_HEADER, TAG};

/// Datagrams in one call: kernels before 6.10 take no more.
const DATAGRAMS: usize = 64;
/// Their bytes: what UDP over IPv4 and IPv6 carries in one call, rounded down.
const BYTES: usize = 65_400;

/// Datagrams on their way to one address.
#[derive(Debug)]
pub(crate) struct Train {
    buffer: Box<[u8]>,
    begin: usize,
    end: usize,
    /// Bytes of each datagram but the last; 0 while there is none.
    size: usize,
    largest: usize,
}

impl Train {
    /// For datagrams with up to `payload_max` bytes.
    pub(crate) fn new(payload_max: usize) -> Self {
        let largest = RELAY_HEADER + SLEEVE_HEADER + payload_max + TAG;
        Self { buffer: vec![0; BYTES + 2 * largest].into(), begin: 0, end: 0, size: 0, largest }
    }

    /// Whether there is nothing to send.
    pub(crate) const fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Where the records of the next datagram are written.
    pub(crate) fn records(&mut self, relayed: bool) -> &mut [u8] {
        let relay = if relayed { RELAY_HEADER } else { 0 };
        &mut self.buffer[self.end + relay + SLEEVE_HEADER..]
    }

    /// Seals the records that were written there, and sends what cannot wait for more. False if
    /// the key has protected all that it may.
    pub(crate) fn seal(
        &mut self,
        key: &mut SealKey,
        records: usize,
        relay: Option<&RelayHeader>,
        to: SocketAddr,
        sink: &mut impl Sink,
    ) -> bool {
        let Some(sealed) = key.seal(&mut self.buffer[self.end..], records, relay) else {
            return false;
        };
        let length = sealed.len();
        let last = length < self.size;
        if length > self.size {
            self.send_sealed(to, sink);
            self.size = length;
        }
        self.end += length;
        let bytes = self.end - self.begin;
        // By its place, too: what was sent before longer datagrams is behind `begin`.
        if last || self.end + self.size > BYTES || bytes >= DATAGRAMS * self.size {
            self.send(to, sink);
        }
        true
    }

    /// Sends all.
    pub(crate) fn send(&mut self, to: SocketAddr, sink: &mut impl Sink) {
        self.send_sealed(to, sink);
        self.clear();
    }

    /// Forgets all.
    pub(crate) const fn clear(&mut self) {
        (self.begin, self.end, self.size) = (0, 0, 0);
    }

    /// Sends what was sealed before the datagram at `end`, which stays where it is.
    fn send_sealed(&mut self, to: SocketAddr, sink: &mut impl Sink) {
        if self.size > 0 {
            sink.datagrams(to, Parts::whole(&self.buffer[self.begin..self.end]), self.size);
        }
        self.begin = self.end;
        debug_assert!(self.end + self.largest <= self.buffer.len(), "a train leaves room for the next datagram");
    }
}
