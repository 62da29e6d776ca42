//! Batches of datagrams: one system call for many, all memory made at the start.
//!
//! ```text
//!  receive   ┌ slot 0 ──────┬ slot 1 ──────┬ …          each as large as the largest datagram
//!  send      ┌ dgram 0 ┬ dgram 1 ─────┬ dgram 2 ┬ free  packed, so that the cache holds a batch
//! ```

use std::io;
use std::net::{SocketAddr, UdpSocket};

use mesh_proto::address::canonical;

use super::sys::{Messages, Span};

/// Datagrams a system call, each way. From 32 on, a larger batch gains nothing measurable and
/// delays the first frame of it.
pub(super) const BATCH: usize = 32;

/// Bytes for datagrams that wait for the send call: a whole batch at an Ethernet MTU, and any
/// single datagram.
const ARENA: usize = 96 * 1024;

/// Largest payload of a UDP datagram over IPv4.
const DATAGRAM_MAX: usize = 65_507;

/// Smallest receive slot, in bytes: peers on jumbo frames are heard also by a host that has none.
const SLOT_MIN: usize = 9216;

/// Slots of a multiple of 4 KiB would all compete for the same few cache lines.
const SLOT_SKEW: usize = 192;

/// Receives datagrams.
pub(super) struct Receiver {
    messages: Messages,
    buffer: Box<[u8]>,
    slot: usize,
}

impl Receiver {
    /// For datagrams of at most `payload_max` bytes (and never less than jumbo frames hold).
    pub(super) fn new(payload_max: usize) -> Self {
        let slot = payload_max.clamp(SLOT_MIN, DATAGRAM_MAX) + SLOT_SKEW;
        Self { messages: Messages::new(BATCH), buffer: vec![0; slot * BATCH].into(), slot }
    }

    /// Takes what waits in the socket, at most a batch. Returns how many datagrams.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.messages.receive(socket, &mut self.buffer, self.slot)
    }

    /// The n-th datagram of the batch; `None` if it did not fit into its slot.
    pub(super) fn datagram(&mut self, n: usize) -> Option<(SocketAddr, &mut [u8])> {
        let (from, len) = self.messages.received(n)?;
        Some((canonical(from), self.buffer.get_mut(n * self.slot..)?.get_mut(..len)?))
    }
}

/// What became of a call to [`Sender::flush_once`].
pub(super) enum Flushed {
    /// Nothing is left.
    All,
    /// The socket's buffer is full; what is left waits.
    Busy,
    /// The kernel refused one datagram, which is skipped; the rest waits.
    Refused(io::Error, SocketAddr, usize),
}

/// Collects datagrams and sends them with one call.
pub(super) struct Sender {
    messages: Messages,
    buffer: Box<[u8]>,
    spans: Vec<Span>,
    targets: Vec<SocketAddr>,
    /// The first of `spans` that has not been sent.
    next: usize,
    used: usize,
}

impl Sender {
    pub(super) fn new() -> Self {
        Self {
            messages: Messages::new(BATCH),
            buffer: vec![0; ARENA].into(),
            spans: Vec::with_capacity(BATCH),
            targets: Vec::with_capacity(BATCH),
            next: 0,
            used: 0,
        }
    }

    /// Whether a datagram of `len` bytes fits without a flush before it.
    pub(super) fn fits(&self, len: usize) -> bool {
        self.spans.len() < self.messages.capacity() && len <= self.buffer.len() - self.used
    }

    /// Copies a datagram in. False if it does not fit.
    pub(super) fn push(&mut self, to: SocketAddr, bytes: &[u8]) -> bool {
        if !self.fits(bytes.len()) {
            return false;
        }
        let span = Span { start: self.used, len: bytes.len() };
        self.buffer[span.start..][..span.len].copy_from_slice(bytes);
        self.messages.set_target(self.spans.len(), to);
        self.used += span.len;
        self.spans.push(span);
        self.targets.push(to);
        true
    }

    /// Number and bytes of the datagrams that wait.
    pub(super) fn waiting(&self) -> (u64, u64) {
        let left = &self.spans[self.next..];
        (left.len() as u64, left.iter().map(|span| span.len as u64).sum())
    }

    /// Sends until all is gone, the socket is full, or the kernel refuses a datagram.
    pub(super) fn flush_once(&mut self, socket: &UdpSocket) -> Flushed {
        while self.next < self.spans.len() {
            match self.messages.send(socket, &self.buffer, &self.spans, self.next) {
                Ok(sent) => self.next += sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Flushed::Busy,
                Err(error) => {
                    let refused = self.next;
                    self.next += 1;
                    return Flushed::Refused(error, self.targets[refused], self.spans[refused].len);
                }
            }
        }
        self.clear();
        Flushed::All
    }

    /// Forgets what waits.
    pub(super) fn clear(&mut self) {
        self.spans.clear();
        self.targets.clear();
        self.next = 0;
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::bind_udp;
    use crate::data::udp::for_socket;

    fn socket(address: &str) -> UdpSocket {
        bind_udp(address.parse().unwrap()).unwrap()
    }

    fn send_all(sender: &mut Sender, socket: &UdpSocket) -> Vec<(io::ErrorKind, SocketAddr, usize)> {
        let mut refused = Vec::new();
        loop {
            match sender.flush_once(socket) {
                Flushed::All => return refused,
                Flushed::Refused(error, to, len) => refused.push((error.kind(), to, len)),
                Flushed::Busy => panic!("loopback is never busy"),
            }
        }
    }

    fn take_all(receiver: &mut Receiver, socket: &UdpSocket) -> Vec<Option<(SocketAddr, Vec<u8>)>> {
        let mut all = Vec::new();
        while let Ok(count) = receiver.receive(socket) {
            assert!(count > 0);
            all.extend((0..count).map(|n| receiver.datagram(n).map(|(from, bytes)| (from, bytes.to_vec()))));
        }
        all
    }

    #[test]
    fn batches_arrive_whole_in_order_and_with_their_sender() {
        let (from, to) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
        let target = to.local_addr().unwrap();
        let (mut sender, mut receiver) = (Sender::new(), Receiver::new(1500));
        let datagrams: Vec<Vec<u8>> = (0..100).map(|n| vec![n; usize::from(n) * 70]).collect();
        for bytes in &datagrams {
            if !sender.fits(bytes.len()) {
                assert!(send_all(&mut sender, &from).is_empty());
            }
            assert!(sender.push(target, bytes));
        }
        assert!(send_all(&mut sender, &from).is_empty());
        let expected: Vec<_> = datagrams.into_iter().map(|bytes| Some((from.local_addr().unwrap(), bytes))).collect();
        assert!(take_all(&mut receiver, &to) == expected);
    }

    #[test]
    fn a_dual_stack_socket_reaches_both_families_and_shows_ipv4_as_ipv4() {
        let dual = socket("[::]:0");
        let port = dual.local_addr().unwrap().port();
        let mut receiver = Receiver::new(1500);
        let mut sender = Sender::new();
        for (name, target) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
            let other = socket(name);
            let target = SocketAddr::new(target.parse().unwrap(), port);
            other.send_to(b"there", target).unwrap();
            let got = take_all(&mut receiver, &dual);
            let from = other.local_addr().unwrap();
            assert_eq!(got, [Some((from, b"there".to_vec()))]);
            sender.push(for_socket(from, true).unwrap(), b"back");
            assert!(send_all(&mut sender, &dual).is_empty());
            assert_eq!(take_all(&mut receiver, &other), [Some((target, b"back".to_vec()))]);
        }
    }

    #[test]
    fn a_datagram_that_the_kernel_refuses_does_not_hold_up_the_others() {
        let (from, to) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
        let target = to.local_addr().unwrap();
        let (mut sender, mut receiver) = (Sender::new(), Receiver::new(1500));
        let forbidden: SocketAddr = "255.255.255.255:9".parse().unwrap();
        sender.push(target, b"before");
        sender.push(forbidden, b"broadcast needs a permission");
        sender.push(target, b"after");
        assert_eq!(send_all(&mut sender, &from), [(io::ErrorKind::PermissionDenied, forbidden, 28)]);
        let got = take_all(&mut receiver, &to);
        let texts: Vec<_> = got.iter().flatten().map(|(_, bytes)| &bytes[..]).collect();
        assert_eq!(texts, [&b"before"[..], b"after"]);
    }

    #[test]
    fn the_largest_datagram_passes_and_a_larger_one_is_refused() {
        let (from, to) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
        let target = to.local_addr().unwrap();
        let (mut sender, mut receiver) = (Sender::new(), Receiver::new(usize::from(u16::MAX)));
        assert!(sender.push(target, &[1; DATAGRAM_MAX]));
        assert!(send_all(&mut sender, &from).is_empty());
        assert!(sender.push(target, &[1; DATAGRAM_MAX + 1]));
        assert_eq!(send_all(&mut sender, &from).len(), 1);
        assert!(!sender.push(target, &[1; ARENA + 1]));
        let got = take_all(&mut receiver, &to);
        assert!(got == [Some((from.local_addr().unwrap(), vec![1; DATAGRAM_MAX]))]);
    }

    #[test]
    fn a_datagram_larger_than_its_slot_is_seen_as_such_and_the_next_is_whole() {
        let (from, to) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
        let target = to.local_addr().unwrap();
        let mut receiver = Receiver::new(1500);
        from.send_to(&[1; SLOT_MIN + SLOT_SKEW + 1], target).unwrap();
        from.send_to(&[2; SLOT_MIN], target).unwrap();
        let got = take_all(&mut receiver, &to);
        assert!(got == [None, Some((from.local_addr().unwrap(), vec![2; SLOT_MIN]))]);
    }
}
