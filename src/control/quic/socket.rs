//! The shared UDP port as the QUIC endpoint sees it.
//!
//! ```text
//!  endpoint ─ try_send ─┬─ real address ────────► UDP socket
//!                       └─ address of a peer ───► DataHandle::relay_quic
//!  endpoint ◄ poll_recv ── DataOutputs.quic ◄──── data thread
//! ```
//!
//! QUIC knows addresses, not peers. A peer that is reached through relays gets an address that
//! no datagram can come from: its 16-byte id where the IPv6 address is, and a scope that is no
//! interface. So the mapping needs no table, which a stranger could fill.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mesh_proto::address::canonical;
use mesh_proto::data::Hop;
use mesh_proto::id::PeerId;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep};

use crate::data::{DataHandle, send_one};

/// The scope (interface number) of a peer's address. The kernel's are positive.
const PEER_SCOPE: u32 = u32::MAX;
/// The port of a peer's address: any but 0, which QUIC refuses.
const PEER_PORT: u16 = 1;
/// When the socket's buffer is full, try again after this time. Waiting for the socket itself
/// would wake this thread for each datagram that the data thread sends.
const RETRY: Duration = Duration::from_millis(1);

/// The address under which QUIC knows the other end of a hop.
pub(super) fn address_of(hop: Hop) -> SocketAddr {
    match hop {
        Hop::Relayed(peer) => SocketAddrV6::new(Ipv6Addr::from(peer.0), PEER_PORT, 0, PEER_SCOPE).into(),
        Hop::Direct(address) => match canonical(address) {
            // One family inside: what QUIC is told for a dial and sees in a datagram is the same.
            SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into(),
            v6 @ SocketAddr::V6(_) => v6,
        },
    }
}

/// The hop behind an address that QUIC knows.
pub(super) fn hop_of(address: SocketAddr) -> Hop {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() == PEER_SCOPE => Hop::Relayed(PeerId(v6.ip().octets())),
        real => Hop::Direct(canonical(real)),
    }
}

/// The endpoint's socket.
pub(super) struct SharedPort {
    socket: Arc<UdpSocket>,
    socket_is_ipv6: bool,
    port: u16,
    data: DataHandle,
    incoming: Mutex<mpsc::Receiver<(Hop, Vec<u8>)>>,
    /// The last send found the socket's buffer full.
    full: AtomicBool,
}

impl SharedPort {
    pub(super) fn new(
        socket: Arc<UdpSocket>,
        data: DataHandle,
        incoming: mpsc::Receiver<(Hop, Vec<u8>)>,
    ) -> io::Result<Self> {
        let local = socket.local_addr()?;
        Ok(Self {
            socket_is_ipv6: local.is_ipv6(),
            port: local.port(),
            socket,
            data,
            incoming: Mutex::new(incoming),
            full: AtomicBool::new(false),
        })
    }

    fn send(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        match hop_of(to) {
            Hop::Relayed(peer) => {
                // If the queue is full the datagram is lost, which QUIC repairs.
                let _ = self.data.relay_quic(peer, bytes);
                Ok(())
            }
            Hop::Direct(address) => match send_one(&self.socket, self.socket_is_ipv6, address, bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.full.store(true, Ordering::Relaxed);
                    Err(error)
                }
                // No route, a firewall, a port unreachable: lost, as any datagram may be. An
                // error would end the connection although the next path may be good.
                Ok(()) | Err(_) => Ok(()),
            },
        }
    }
}

impl fmt::Debug for SharedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedPort").field("port", &self.port).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for SharedPort {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { port: self, pause: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        transmit.contents.chunks(segment).try_for_each(|bytes| self.send(transmit.destination, bytes))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        let mut filled = 0;
        while filled < bufs.len().min(meta.len()) {
            let (hop, bytes) = match incoming.poll_recv(cx) {
                Poll::Ready(Some(datagram)) => datagram,
                // The data thread has ended, and the process is about to. Nothing comes any more.
                Poll::Ready(None) | Poll::Pending => break,
            };
            // Longer than QUIC allows others to send: not for us.
            let Some(room) = bufs[filled].get_mut(..bytes.len()) else { continue };
            room.copy_from_slice(&bytes);
            meta[filled] =
                RecvMeta { addr: address_of(hop), len: bytes.len(), stride: bytes.len(), ecn: None, dst_ip: None };
            filled += 1;
        }
        if filled == 0 { Poll::Pending } else { Poll::Ready(Ok(filled)) }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        // Always IPv6, whatever the socket is: see `address_of`.
        Ok(SocketAddr::from((Ipv6Addr::UNSPECIFIED, self.port)))
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Waits a little after the socket's buffer was found full.
struct Poller {
    port: Arc<SharedPort>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Poller")
    }
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.pause.is_none() && self.port.full.load(Ordering::Relaxed) {
            self.pause = Some(Box::pin(sleep(RETRY)));
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
            self.port.full.store(false, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hop_comes_back_from_the_address_that_stands_for_it() {
        for hop in [
            Hop::Relayed(PeerId([7; 16])),
            Hop::Relayed(PeerId([0; 16])),
            Hop::Relayed(PeerId(Ipv6Addr::from([0, 0, 0, 0, 0, 0xffff, 1, 2]).octets())),
            Hop::Direct("192.0.2.1:6783".parse().unwrap()),
            Hop::Direct("[2001:db8::1]:6783".parse().unwrap()),
            Hop::Direct("[fe80::1%3]:6783".parse().unwrap()),
        ] {
            assert!(address_of(hop).is_ipv6());
            assert_eq!(hop_of(address_of(hop)), hop);
        }
    }

    #[test]
    fn the_same_direct_address_in_two_spellings_is_one() {
        let plain = Hop::Direct("192.0.2.1:6783".parse().unwrap());
        let mapped = Hop::Direct("[::ffff:192.0.2.1]:6783".parse().unwrap());
        assert_eq!(address_of(plain), address_of(mapped));
    }
}
