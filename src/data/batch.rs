//! Receiving in batches: one system call for many messages, and many datagrams in a message.
//!
//! ```text
//!  arena   ┌ slot 0: one datagram ──────┬ slot 1: dgram│dgram│dgram … ┬ …
//!          └ touched as far as it is filled, so many small ones stay in the cache
//! ```

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;

use mesh_proto::address::canonical;

use super::sys::{Messages, Received};

/// Messages that are received before what they carry must be handed over: two super-frames, a
/// message for each datagram.
const SLOTS: usize = 128;

/// Bytes of a slot: the largest message that the kernel puts together, and an odd rest, for slots
/// of a multiple of 4 KiB would all compete for the same few cache lines.
const SLOT: usize = 65_536 + 192;

/// Messages of a system call while they are large: more of them would leave the cache before they
/// are looked at.
const FEW: usize = 4;

/// … while they are small.
const MANY: usize = 32;

/// From this average on messages are large, in bytes.
const LARGE: usize = 8192;

/// Bytes that are received before what they carry is handed over.
const BYTES: usize = 512 * 1024;

/// Receives datagrams, batch behind batch until [`Receiver::rewind`].
pub(super) struct Receiver {
    messages: Messages,
    arena: Box<[u8]>,
    received: Vec<Option<Received>>,
    /// Where the newest batch begins among them.
    fresh: usize,
    /// Messages of the next system call.
    want: usize,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            messages: Messages::new(MANY),
            arena: vec![0; SLOT * SLOTS].into(),
            received: Vec::with_capacity(SLOTS),
            fresh: 0,
            want: FEW,
        }
    }

    /// Takes what waits in the socket, up to a bound, as the newest batch. What the batches before
    /// left in the arena stays.
    ///
    /// # Errors
    /// Of the first call. What was received before a later one failed is kept.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<()> {
        self.fresh = self.received.len();
        let mut bytes = 0;
        while self.received.len() < SLOTS && bytes < BYTES {
            let first = self.received.len();
            let last = (first + self.want).min(SLOTS);
            let count = match self.messages.receive(socket, &mut self.arena[first * SLOT..last * SLOT], SLOT) {
                Ok(count) => count,
                Err(error) if first == self.fresh => return Err(error),
                Err(_) => break,
            };
            self.received.extend((0..count).map(|n| self.messages.received(n)));
            let of_call: usize = self.received[first..].iter().flatten().map(|message| message.len).sum();
            bytes += of_call;
            self.want = if of_call > LARGE * count { FEW } else { MANY };
            if count < last - first {
                break;
            }
        }
        Ok(())
    }

    /// Begins at the start of the arena again: what is in it is not needed any more.
    pub(super) fn rewind(&mut self) {
        self.received.clear();
        self.fresh = 0;
    }

    /// Whether another batch has room behind those that are there.
    pub(super) fn has_room(&self) -> bool {
        self.received.len() + FEW <= SLOTS
    }

    /// Messages in the newest batch.
    pub(super) fn messages(&self) -> u64 {
        (self.received.len() - self.fresh) as u64
    }

    /// The newest batch: where its datagrams are, `None` for one that was too long, and the arena that
    /// they are in.
    pub(super) fn datagrams(
        &mut self,
    ) -> (impl Iterator<Item = Option<(SocketAddr, Range<usize>)>> + use<'_>, &mut [u8]) {
        let messages = self.received.iter().enumerate().skip(self.fresh);
        let datagrams = messages.flat_map(|(n, message)| {
            let start = n * SLOT;
            let (from, len, size) = message.map_or((None, 1, 1), |m| (Some(canonical(m.from)), m.len, m.size));
            let starts = (start..(start + len).max(start + 1)).step_by(size);
            starts.map(move |at| from.map(|from| (from, at..(at + size).min(start + len))))
        });
        (datagrams, &mut self.arena)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh_proto::data::Sink as _;
    use mesh_proto::data::parts::Parts;

    use super::*;
    use crate::data::bind_udp;
    use crate::data::outbox::Outbox;
    use crate::data::udp::for_socket;

    type Datagram = (SocketAddr, Vec<u8>);

    fn socket(address: &str) -> Arc<UdpSocket> {
        Arc::new(bind_udp(address.parse().unwrap()).unwrap())
    }

    fn outbox(socket: &Arc<UdpSocket>) -> Outbox {
        Outbox::without_tap(socket.clone())
    }

    fn take_all(receiver: &mut Receiver, socket: &UdpSocket) -> Vec<Option<Datagram>> {
        let mut all = Vec::new();
        while receiver.receive(socket).is_ok() {
            let (datagrams, arena) = receiver.datagrams();
            all.extend(datagrams.map(|found| found.map(|(from, at)| (from, arena[at].to_vec()))));
            if !receiver.has_room() {
                receiver.rewind();
            }
        }
        receiver.rewind();
        all
    }

    #[test]
    fn trains_arrive_whole_in_order_and_with_their_sender() {
        let (from, to) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
        let target = to.local_addr().unwrap();
        let source = from.local_addr().unwrap();
        let mut receiver = Receiver::new();
        for segmented in [true, false] {
            let mut outbox = outbox(&from);
            outbox.set_segmented(segmented);
            let mut expected = Vec::new();
            for (size, bytes) in [(1, 1), (1472, 44 * 1472), (100, 6350), (9000, 60_001), (65_000, 65_000)] {
                let train: Vec<u8> = (0..bytes).map(|n| (n / size + n) as u8).collect();
                outbox.datagrams(target, Parts::whole(&train), size);
                expected.extend(train.chunks(size).map(|datagram| Some((source, datagram.to_vec()))));
            }
            outbox.datagram(target, &[]);
            expected.push(Some((source, Vec::new())));
            assert!(take_all(&mut receiver, &to) == expected, "segmented: {segmented}");
            assert_eq!(outbox.counters.udp_sent, expected.len() as u64);
        }
    }

    #[test]
    fn a_dual_stack_socket_reaches_both_families_and_shows_ipv4_as_ipv4() {
        let dual = socket("[::]:0");
        let port = dual.local_addr().unwrap().port();
        let mut receiver = Receiver::new();
        let mut outbox = outbox(&dual);
        for (name, target) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
            let other = socket(name);
            let target = SocketAddr::new(target.parse().unwrap(), port);
            other.send_to(b"there", target).unwrap();
            let got = take_all(&mut receiver, &dual);
            let from = other.local_addr().unwrap();
            assert_eq!(got, [Some((from, b"there".to_vec()))]);
            assert!(for_socket(from, true).is_some());
            outbox.datagram(from, b"back");
            assert_eq!(take_all(&mut receiver, &other), [Some((target, b"back".to_vec()))]);
        }
    }

    #[test]
    fn a_datagram_that_the_kernel_refuses_does_not_hold_up_the_others() {
        let (from, to) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
        let target = to.local_addr().unwrap();
        let (mut outbox, mut receiver) = (outbox(&from), Receiver::new());
        outbox.datagram(target, b"before");
        outbox.datagram("255.255.255.255:9".parse().unwrap(), b"broadcast needs a permission");
        outbox.datagram(target, b"after");
        assert_eq!((outbox.counters.udp_sent, outbox.counters.udp_send_failed), (2, 1));
        let got = take_all(&mut receiver, &to);
        let texts: Vec<_> = got.iter().flatten().map(|(_, bytes)| &bytes[..]).collect();
        assert_eq!(texts, [&b"before"[..], b"after"]);
    }

    #[test]
    fn a_larger_datagram_than_udp_has_is_told_as_such() {
        let (from, to) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
        let mut outbox = outbox(&from);
        outbox.datagram(to.local_addr().unwrap(), &[1; 65_508]);
        assert_eq!(outbox.next_too_large(), Some((to.local_addr().unwrap(), 65_508)));
        assert_eq!(outbox.next_too_large(), None);
    }
}
