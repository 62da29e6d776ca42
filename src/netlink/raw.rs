//! Netlink messages by hand, many at once, for what has no crate or must be quick: forwarding
//! entries by the thousand, and nftables.
//!
//! ```text
//!  batch = message message …      message = length 4, type 2, flags 2, sequence 4, port 4, body
//!                                 body    = fixed part, attribute attribute …
//!                                 attribute = length 2, type 2, value, zeroes to a multiple of 4
//! ```
//!
//! The kernel works a batch off while it is being sent: when `send` returns, every answer is
//! there to be read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rtnetlink::sys::{Socket as Inner, SocketAddr};
use tokio::io::unix::AsyncFd;

/// Asks for an answer even if all went well.
pub(super) const ACK: u16 = libc::NLM_F_ACK as u16;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const HEADER: usize = 16;
/// Room for one answer of the kernel: more than a page, as libnetlink has it.
const ANSWER: usize = 64 * 1024;

/// Messages to be sent together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    count: u32,
}

/// The body of one message, or the inside of an attribute, being written.
pub(super) struct Body<'a>(&'a mut Vec<u8>);

impl Body<'_> {
    /// Bytes as they stand.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// An attribute.
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) {
        self.nest_as(kind, |body| body.raw(value));
    }

    /// An attribute that is a text with its zero.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        self.nest_as(kind, |body| {
            body.raw(text.as_bytes());
            body.raw(&[0]);
        });
    }

    /// An attribute that is a number in network order.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// An attribute that consists of attributes.
    pub(super) fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Body<'_>)) {
        self.nest_as(kind | libc::NLA_F_NESTED as u16, write);
    }

    fn nest_as(&mut self, kind: u16, write: impl FnOnce(&mut Body<'_>)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        write(&mut Body(self.0));
        let length = u16::try_from(self.0.len() - start).expect("attributes written here are short");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

impl Batch {
    /// Adds a message.
    pub(super) fn message(&mut self, kind: u16, flags: u16, write: impl FnOnce(&mut Body<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER]);
        write(&mut Body(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - start).expect("messages written here are short");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 4..start + 6].copy_from_slice(&kind.to_ne_bytes());
        self.bytes[start + 6..start + 8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes[start + 8..start + 12].copy_from_slice(&self.count.to_ne_bytes());
        self.count += 1;
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// One message of the kernel's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    sequence: u32,
    pub(super) body: &'a [u8],
}

/// The messages in what was received. What is cut short ends it.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([k0, k1]);
        Some(Message { kind, sequence: u32::from_ne_bytes([s0, s1, s2, s3]), body })
    })
}

/// The attributes in a body, behind its fixed part. What is cut short ends it.
pub(super) fn attributes(body: &[u8], fixed: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut bytes = body.get(fixed..).unwrap_or_default();
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & libc::NLA_TYPE_MASK as u16, value))
    })
}

/// The value of one attribute.
pub(super) fn attribute(body: &[u8], fixed: usize, kind: u16) -> Option<&[u8]> {
    attributes(body, fixed).find_map(|(found, value)| (found == kind).then_some(value))
}

/// A netlink socket of the namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket {
    inner: Inner,
}

/// What the kernel did not want: the message's place in the batch, and why.
pub(super) type Refusal = (u32, io::Error);

impl Socket {
    /// Opens one of a protocol (`NETLINK_*`).
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut inner = Inner::new(protocol)?;
        inner.bind_auto()?;
        inner.set_non_blocking(true)?;
        // Old kernels repeat the whole request in each error: a matter of room only.
        let _ = inner.set_cap_ack(true);
        inner.set_rx_buf_sz(1_i32 << 20)?;
        Ok(Self { inner })
    }

    /// Joins a group of notifications.
    pub(super) fn join(&self, group: u32) -> io::Result<()> {
        self.inner.add_membership(group)
    }

    /// For waiting until there is something to receive. Needs a Tokio runtime around it.
    #[expect(unsafe_code, reason = "the runtime wants a promise about the descriptor")]
    pub(super) fn watch(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the socket owns its descriptor, never changes it, and closes it when dropped.
        unsafe { AsyncFd::register(self) }.map_err(Into::into)
    }

    /// Sends a batch and gives what was refused of it.
    pub(super) fn transact(&self, batch: &Batch) -> io::Result<Vec<Refusal>> {
        let mut refused = Vec::new();
        self.exchange(batch, |message| {
            if i32::from(message.kind) == libc::NLMSG_ERROR
                && let Some(code) = message.body.first_chunk().map(|code| i32::from_ne_bytes(*code))
                && code != 0
            {
                refused.push((message.sequence, io::Error::from_raw_os_error(-code)));
            }
        })?;
        Ok(refused)
    }

    /// Sends a batch and hands over every message that comes back.
    pub(super) fn exchange(&self, batch: &Batch, mut take: impl FnMut(Message<'_>)) -> io::Result<()> {
        if batch.bytes.is_empty() {
            return Ok(());
        }
        self.inner.send_to(&batch.bytes, &SocketAddr::new(0, 0), 0)?;
        let mut buffer = Vec::with_capacity(ANSWER);
        while self.receive(&mut buffer)? {
            messages(&buffer).for_each(&mut take);
        }
        Ok(())
    }

    /// Receives what is there; false if there is nothing now.
    pub(super) fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            buffer.clear();
            match self.inner.recv(buffer, 0) {
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl std::os::fd::AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut batch = Batch::default();
        batch.message(28, ACK, |body| {
            body.raw(&[7; 12]);
            body.put(2, &[1, 2, 3, 4, 5, 6]);
            body.nest(3, |body| body.number(4, 5));
            body.text(6, "name");
        });
        batch.message(29, 0, |_| {});
        let all: Vec<_> = messages(&batch.bytes).collect();
        assert_eq!(all.iter().map(|m| (m.kind, m.sequence)).collect::<Vec<_>>(), [(28, 0), (29, 1)]);
        let body = all[0].body;
        assert_eq!(attribute(body, 12, 2), Some(&[1, 2, 3, 4, 5, 6][..]));
        let inside = attribute(body, 12, 3).expect("the nest");
        assert_eq!(attribute(inside, 0, 4), Some(&[0, 0, 0, 5][..]));
        assert_eq!(attribute(body, 12, 6), Some(&b"name\0"[..]));
        assert_eq!(attribute(body, 12, 9), None);
    }

    #[test]
    fn what_is_cut_short_is_no_panic() {
        let mut batch = Batch::default();
        batch.message(28, 0, |body| {
            body.raw(&[0; 12]);
            body.put(1, &[9; 20]);
        });
        for end in 0..batch.bytes.len() {
            assert_eq!(messages(&batch.bytes[..end]).count(), 0);
            for message in messages(&batch.bytes) {
                let _ = attributes(&message.body[..end.min(message.body.len())], 12).count();
            }
        }
    }
}
