//! The header that the kernel puts before each frame of a TAP that was opened for super-frames.
//!
//! ```text
//!  0       1          2             4            6              8               10
//!  ┌───────┬──────────┬─────────────┬────────────┬──────────────┬───────────────┐
//!  │ flags │ gso type │ headers     │ gso size   │ csum start   │ csum offset   │ frame …
//!  └───────┴──────────┴─────────────┴────────────┴──────────────┴───────────────┘
//! ```
//!
//! This is `struct virtio_net_hdr` of the kernel (VIRTIO 1.2 §5.1.6), in the byte order of the
//! machine: it never leaves the host.

/// Bytes of the header.
pub const VIRTIO_HEADER: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What a super-frame is to be cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gso {
    /// Nothing: one frame.
    None,
    /// TCP segments over IPv4.
    Tcp4,
    /// TCP segments over IPv6.
    Tcp6,
    /// UDP datagrams over either.
    Udp,
}

/// What the kernel leaves to whoever has the frame next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioHeader {
    /// The checksum at `csum_start + csum_offset` holds the sum of the pseudo header only; the
    /// rest, from `csum_start` to the end, is to be added.
    pub open_checksum: bool,
    /// What it is to be cut into.
    pub gso: Gso,
    /// The sender announces a reduced congestion window: the first segment says so alone.
    pub ecn: bool,
    /// Bytes of the headers that each segment gets; a hint only.
    pub headers: u16,
    /// Bytes of payload in each segment but the last.
    pub gso_size: u16,
    /// Where the checksum begins to count.
    pub csum_start: u16,
    /// Where the checksum is, from there.
    pub csum_offset: u16,
}

impl VirtioHeader {
    /// A frame that is complete.
    pub const PLAIN: Self = Self {
        open_checksum: false,
        gso: Gso::None,
        ecn: false,
        headers: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Reads a header. `None` for a kind of super-frame that is not known.
    #[must_use]
    pub fn parse(bytes: &[u8; VIRTIO_HEADER]) -> Option<Self> {
        let [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1] = *bytes;
        Some(Self {
            open_checksum: flags & NEEDS_CSUM != 0,
            gso: match gso & !GSO_ECN {
                GSO_NONE => Gso::None,
                GSO_TCP4 => Gso::Tcp4,
                GSO_TCP6 => Gso::Tcp6,
                GSO_UDP => Gso::Udp,
                _ => return None,
            },
            ecn: gso & GSO_ECN != 0,
            headers: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([s0, s1]),
            csum_start: u16::from_ne_bytes([c0, c1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        })
    }

    /// The header's bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; VIRTIO_HEADER] {
        let gso = match self.gso {
            Gso::None => GSO_NONE,
            Gso::Tcp4 => GSO_TCP4,
            Gso::Tcp6 => GSO_TCP6,
            Gso::Udp => GSO_UDP,
        };
        let mut bytes = [0; VIRTIO_HEADER];
        bytes[0] = if self.open_checksum { NEEDS_CSUM } else { 0 };
        bytes[1] = if self.ecn && gso != GSO_NONE { gso | GSO_ECN } else { gso };
        bytes[2..4].copy_from_slice(&self.headers.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_that_is_understood_reads_back(bytes: [u8; VIRTIO_HEADER]) {
            if let Some(header) = VirtioHeader::parse(&bytes) {
                let again = VirtioHeader { ecn: header.ecn && header.gso != Gso::None, ..header };
                prop_assert_eq!(VirtioHeader::parse(&header.bytes()), Some(again));
            }
        }
    }

    #[test]
    fn a_frame_that_is_complete_has_a_header_of_zeros() {
        assert_eq!(VirtioHeader::PLAIN.bytes(), [0; VIRTIO_HEADER]);
        assert_eq!(VirtioHeader::parse(&[0; VIRTIO_HEADER]), Some(VirtioHeader::PLAIN));
    }

    #[test]
    fn fragmentation_of_udp_is_not_segmentation_and_not_known() {
        assert_eq!(VirtioHeader::parse(&[1, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
