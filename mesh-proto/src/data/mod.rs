//! The data path: called for each frame and each datagram.
//!
//! ```text
//!  TAP ─► handle_super_frame ─► switch ─► cut, or fill ─► seal ─► Sink::datagrams ─► UDP
//!  UDP ─► handle_received ─┬─ QUIC ────────────────────────► Sink::quic ──────► control
//!                          ├─ relayed, not for us ─────────► Sink::datagrams ─► next hop
//!                          └─ ours ─► open ─► replay ─► switch ─► join ─► Sink::super_frame ─► TAP
//! ```

mod circles;
pub mod counters;
pub mod fence;
pub mod forwarder;
pub mod limits;
pub mod macs;
pub mod offload;
pub mod overhead;
pub mod parts;
pub mod report;
pub mod table;
pub mod virtio;
pub mod window;

mod cipher;
mod ethernet;
mod fragment;
mod joiner;
mod mtu;
mod path;
mod peer;
mod session;
mod stage;
mod too_big;
mod train;

use core::net::SocketAddr;

use self::parts::Parts;
use self::virtio::VirtioHeader;
use crate::id::PeerId;

/// Where a datagram came from, or goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hop {
    /// Straight over the underlay.
    Direct(SocketAddr),
    /// Through one or more relays, from or to that peer.
    Relayed(PeerId),
}

/// Takes what a [`forwarder::Forwarder`] makes, as it makes it: no queue, no allocation between.
///
/// The slices are valid for the call only. The router's sink hands them to the kernel; the
/// simulator's puts them on a virtual wire. What a sink cannot do at once it is given one by one.
pub trait Sink {
    /// Send this UDP datagram.
    fn datagram(&mut self, to: SocketAddr, bytes: &[u8]);
    /// Write this Ethernet frame to the TAP.
    fn frame(&mut self, bytes: &[u8]);

    /// Send these datagrams, each of `size` bytes, the last perhaps shorter. The router does so
    /// with one system call; else each is sent by itself.
    fn datagrams(&mut self, to: SocketAddr, bytes: Parts<'_>, size: usize) {
        if let Some(bytes) = bytes.in_one_place() {
            return bytes.chunks(size.max(1)).for_each(|datagram| self.datagram(to, datagram));
        }
        let mut copy = vec![0; bytes.len()];
        bytes.copy_to(&mut copy);
        copy.chunks(size.max(1)).for_each(|datagram| self.datagram(to, datagram));
    }

    /// Write this super-frame to the TAP. The router does so with one system call; else it is cut
    /// into frames, and their checksums completed.
    fn super_frame(&mut self, header: &VirtioHeader, bytes: Parts<'_>) {
        let mut copy = vec![0; bytes.len()];
        bytes.copy_to(&mut copy);
        offload::each_frame(header, &mut copy, &mut vec![0; bytes.len()], |frame| self.frame(frame));
    }

    /// Give this datagram to the QUIC endpoint.
    fn quic(&mut self, from: Hop, bytes: &[u8]);
}
