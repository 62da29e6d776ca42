//! Super-frames: up to 64 KiB of TCP or UDP payload behind one set of headers, and what the
//! kernel's own segmentation would make of them.
//!
//! ```text
//!  super-frame   │ Ethernet │ IP │ TCP/UDP │ payload 0 │ payload 1 │ … │ last, shorter │
//!                0          ip   l4        headers     └─ gso size ┘
//!  piece         │ the same, adapted       │ some of the payloads, in order
//! ```
//!
//! A piece is a smaller super-frame, or a single segment. Its IP length and header checksum are
//! right; its TCP or UDP checksum stays open (it holds the sum of the pseudo header), as the
//! kernel left it. Lengths in that sum are exchanged after RFC 1624, so that even IPv6 routing
//! headers need not be understood.

use super::ethernet;
use super::virtio::{Gso, VirtioHeader};

/// Longest headers of a frame that is treated as a super-frame: any TCP options, any IPv4
/// options, two tags, and IPv6 extensions up to the 255 bytes that a record can express.
pub const HEADERS_MAX: usize = 255 + 60;

const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
const UDP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Where the headers of a TCP or UDP frame lie, and how its payload is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Where IP begins.
    pub ip: usize,
    /// Where TCP or UDP begins.
    pub l4: usize,
    /// Where the payload begins.
    pub headers: usize,
    /// IPv6, not IPv4.
    pub v6: bool,
    /// UDP, not TCP.
    pub udp: bool,
    /// The first segment alone announces a reduced congestion window.
    pub ecn: bool,
    /// Bytes of payload in each segment but the last.
    pub gso: usize,
    /// Number of segments; 1 for a frame that is not to be cut.
    pub segments: usize,
}

impl Layout {
    /// Of a frame as the kernel describes it. `None` if it is not TCP or UDP with an open
    /// checksum, or if frame and description contradict each other.
    #[must_use]
    pub fn of(header: &VirtioHeader, frame: &[u8]) -> Option<Self> {
        if !header.open_checksum {
            return None;
        }
        let udp = match header.csum_offset {
            TCP_CHECKSUM => false,
            UDP_CHECKSUM => true,
            _ => return None,
        };
        let l4 = u8::try_from(header.csum_start).ok()?;
        let mut layout = Self::at(frame, l4, udp)?;
        let fits = match header.gso {
            Gso::None => return Some(layout),
            Gso::Tcp4 => !layout.v6 && !udp,
            Gso::Tcp6 => layout.v6 && !udp,
            Gso::Udp => udp,
        };
        let payload = frame.len() - layout.headers;
        if !fits || header.gso_size == 0 || payload == 0 {
            return None;
        }
        layout.gso = usize::from(header.gso_size);
        layout.segments = payload.div_ceil(layout.gso);
        layout.ecn = header.ecn;
        Some(layout)
    }

    /// Of a frame whose TCP or UDP header begins at `l4`, as one segment. The IP header says how
    /// long the frame is, else `None`.
    #[must_use]
    pub fn at(frame: &[u8], l4: u8, udp: bool) -> Option<Self> {
        let l4 = usize::from(l4);
        let (ip, kind) = ethernet::header(frame)?;
        let (network, transport) = (frame.get(ip..l4)?, frame.get(l4..)?);
        let v6 = match kind {
            0x0800 => false,
            0x86dd => true,
            _ => return None,
        };
        let length = frame.len() - ip;
        let sound = if v6 {
            network.len() >= 40 && network[0] >> 4 == 6 && usize::from(u16_at(network, 4)) + 40 == length
        } else {
            let protocol = if udp { 17 } else { 6 };
            network.len() >= 20
                && usize::from(network[0]) == 0x40 + network.len() / 4
                && network.len().is_multiple_of(4)
                && network[9] == protocol
                && u16_at(network, 6) & 0x3fff == 0
                && usize::from(u16_at(network, 2)) == length
        };
        let header = if udp { UDP_HEADER } else { usize::from(transport.get(12)? >> 4) * 4 };
        let least = if udp { UDP_HEADER } else { TCP_HEADER };
        if !sound || header < least || header > transport.len() {
            return None;
        }
        let headers = l4 + header;
        Some(Self { ip, l4, headers, v6, udp, ecn: false, gso: frame.len() - headers, segments: 1 })
    }

    /// What tells the kernel how to cut a frame with these headers and a payload of `segments`.
    #[must_use]
    pub fn virtio(&self) -> VirtioHeader {
        let gso = match (self.segments, self.udp, self.v6) {
            (..=1, _, _) => Gso::None,
            (_, true, _) => Gso::Udp,
            (_, false, false) => Gso::Tcp4,
            (_, false, true) => Gso::Tcp6,
        };
        VirtioHeader {
            open_checksum: true,
            gso,
            ecn: self.ecn,
            headers: self.headers as u16,
            gso_size: if gso == Gso::None { 0 } else { self.gso as u16 },
            csum_start: self.l4 as u16,
            csum_offset: if self.udp { UDP_CHECKSUM } else { TCP_CHECKSUM },
        }
    }

    /// Bytes of the piece that begins with segment `first` and has at most `count` of them.
    #[must_use]
    pub fn piece_len(&self, frame: &[u8], first: usize, count: usize) -> usize {
        let payload = frame.len() - self.headers;
        self.headers + ((first + count) * self.gso).min(payload).saturating_sub(first * self.gso)
    }

    /// Writes that piece to the start of `out`, which has the room; gives its length.
    pub fn piece(&self, frame: &[u8], first: usize, count: usize, out: &mut [u8]) -> usize {
        let from = self.headers + first * self.gso;
        let length = self.piece_len(frame, first, count);
        let (head, body) = out[..length].split_at_mut(self.headers);
        head.copy_from_slice(&frame[..self.headers]);
        body.copy_from_slice(&frame[from..from + body.len()]);
        if self.segments > 1 {
            let last = first + count >= self.segments;
            self.number(head, first, last);
            self.set_payload(head, frame.len() - self.headers, body.len());
        }
        length
    }

    /// Writes one segment, complete with its checksum, to the start of `out`; gives its length.
    pub fn segment(&self, frame: &[u8], n: usize, out: &mut [u8]) -> usize {
        let length = self.piece(frame, n, 1, out);
        complete(&mut out[..length], self.l4, self.check_at() - self.l4);
        length
    }

    /// Exchanges the length of the payload in the headers.
    pub(crate) fn set_payload(&self, head: &mut [u8], old: usize, new: usize) {
        let l4_header = self.headers - self.l4;
        let length = self.headers - self.ip + new;
        if self.v6 {
            put_u16(head, self.ip + 4, (length - 40) as u16);
        } else {
            put_u16(head, self.ip + 2, length as u16);
            put_u16(head, self.ip + 10, 0);
            let sum = !fold(sum(&head[self.ip..self.l4]));
            put_u16(head, self.ip + 10, sum);
        }
        if self.udp {
            put_u16(head, self.l4 + 4, (l4_header + new) as u16);
        }
        let at = self.check_at();
        let open = u64::from(u16_at(head, at));
        let (old, new) = ((l4_header + old) as u16, (l4_header + new) as u16);
        put_u16(head, at, fold(open + u64::from(!old) + u64::from(new)));
    }

    /// The flags of TCP that are the last segment's, in `head`.
    pub(crate) fn last_flags(&self, head: &[u8]) -> u8 {
        if self.udp { 0 } else { head[self.l4 + TCP_FLAGS] & (FIN | PSH) }
    }

    /// Gives `head` the flags of another last segment.
    pub(crate) fn set_last_flags(&self, head: &mut [u8], flags: u8) {
        if !self.udp {
            head[self.l4 + TCP_FLAGS] |= flags;
        }
    }

    /// The IPv4 identification; none over IPv6.
    pub(crate) fn identification(&self, head: &[u8]) -> Option<u16> {
        (!self.v6).then(|| u16_at(head, self.ip + 4))
    }

    /// Whether `other`, with the same layout, has the same headers as far as datagrams of one
    /// flow share them: all but lengths, checksums and the identification.
    pub(crate) fn same_flow(&self, head: &[u8], other: &[u8]) -> bool {
        let (Some(a), Some(b)) = (head.get(..self.headers), other.get(..self.headers)) else {
            return false;
        };
        let same = |from: usize, to: usize| a[from..to] == b[from..to];
        let l4 = same(self.l4, self.l4 + 4);
        let ip = if self.v6 {
            same(0, self.ip + 4) && same(self.ip + 6, self.l4)
        } else {
            same(0, self.ip + 2) && same(self.ip + 6, self.ip + 10) && same(self.ip + 12, self.l4)
        };
        self.udp && l4 && ip
    }

    /// Whether IPv4's identification means nothing, because the packet may not be cut.
    pub(crate) fn atomic(&self, head: &[u8]) -> bool {
        self.v6 || head[self.ip + 6] & 0x40 != 0
    }

    fn check_at(&self) -> usize {
        self.l4 + usize::from(if self.udp { UDP_CHECKSUM } else { TCP_CHECKSUM })
    }

    /// Numbers the headers as those of segment `first`.
    fn number(&self, head: &mut [u8], first: usize, last: bool) {
        if !self.v6 {
            let id = u16_at(head, self.ip + 4);
            put_u16(head, self.ip + 4, id.wrapping_add(first as u16));
        }
        if self.udp {
            return;
        }
        let sequence: &mut [u8] = &mut head[self.l4 + 4..self.l4 + 8];
        let value = sequence.iter().fold(0_u32, |n, &byte| n << 8 | u32::from(byte));
        let value = value.wrapping_add((first * self.gso) as u32);
        sequence.copy_from_slice(&value.to_be_bytes());
        let flags = &mut head[self.l4 + TCP_FLAGS];
        if !last {
            *flags &= !(FIN | PSH);
        }
        if first > 0 {
            *flags &= !CWR;
        }
    }
}

/// Cuts a super-frame into frames as they are on a cable, in order, with the help of a buffer as
/// large as the super-frame. False if header and frame contradict each other.
pub fn each_frame(header: &VirtioHeader, frame: &mut [u8], buffer: &mut [u8], mut give: impl FnMut(&[u8])) -> bool {
    if let Some(layout) = Layout::of(header, frame) {
        for n in 0..layout.segments {
            let length = layout.segment(frame, n, buffer);
            give(&buffer[..length]);
        }
        return true;
    }
    let (start, offset) = (usize::from(header.csum_start), usize::from(header.csum_offset));
    let sound = header.gso == Gso::None && (!header.open_checksum || complete(frame, start, offset));
    if sound {
        give(frame);
    }
    sound
}

/// Completes the checksum that begins to count at `start` and lies `offset` bytes behind it.
/// False if that is outside of the frame.
pub fn complete(frame: &mut [u8], start: usize, offset: usize) -> bool {
    let at = start + offset;
    if frame.len() < at + 2 {
        return false;
    }
    let value = !fold(sum(&frame[start..]));
    // UDP writes "no checksum" as zero, and a sum of zero as its other form (RFC 768).
    let value = if value == 0 && offset == usize::from(UDP_CHECKSUM) { 0xffff } else { value };
    put_u16(frame, at, value);
    true
}

/// The sum of the 16-bit words of RFC 1071, not yet folded.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
