//! Sockets of their own for destinations that something slow is in front of.
//!
//! The kernel charges a datagram to its socket until the interface has sent it, so what waits in front of one slow
//! interface (or in one slow class of it) would fill the buffer that everybody shares, and hold up all of them.
//!
//! ```text
//!  shared socket ── full? ──► lane of A   (its own buffer: full means that A is slow)
//!      │ has room        └──► lane of B   (has room at once: B was only held up)
//!      ▼
//!  everybody else
//! ```
//!
//! A lane only sends. It has the shared socket's address and port, so that peers and translators see no difference;
//! what comes is given to the shared socket by a filter of the port's group.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use super::{sys, udp};

/// Most lanes: more than the interfaces of a host, and the classes of their queues, that are full at a time.
const LANES_MAX: usize = 16;

/// A lane that was not used for so long may be given to another destination.
const IDLE: Duration = Duration::from_secs(10);

/// After a lane could not be opened, none is tried for so long.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Lane {
    to: SocketAddr,
    socket: UdpSocket,
    used: Duration,
}

/// The lanes of one shared socket. None are open until its buffer was full once.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    not_before: Duration,
}

impl Lanes {
    /// The socket of this destination, if it has one of its own.
    pub(super) fn of(&mut self, to: SocketAddr, now: Duration) -> Option<&UdpSocket> {
        let lane = self.lanes.iter_mut().find(|lane| lane.to == to)?;
        lane.used = now;
        Some(&lane.socket)
    }

    /// Gives this destination a socket of its own beside `shared`.
    ///
    /// # Errors
    /// When all are in use, or the kernel refuses one; then none is tried for a while.
    pub(super) fn open(&mut self, shared: &UdpSocket, to: SocketAddr, now: Duration) -> io::Result<()> {
        if now < self.not_before {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.not_before = now + RETRY;
        if self.lanes.len() >= LANES_MAX {
            let oldest = (0..self.lanes.len()).min_by_key(|&n| self.lanes[n].used);
            let idle = oldest.filter(|&n| self.lanes[n].used + IDLE <= now);
            self.lanes.swap_remove(idle.ok_or(io::ErrorKind::QuotaExceeded)?);
        }
        sys::set_option(shared, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        let socket = udp::bind_beside(shared.local_addr()?)?;
        // Until this is in force, what comes may be given to the lane, where it is lost: so at once, and once for the
        // first is enough.
        sys::first_of_port_receives(shared)?;
        self.lanes.push(Lane { to, socket, used: now });
        self.not_before = Duration::ZERO;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::data::bind_udp;

    const NOW: Duration = Duration::from_secs(1000);

    #[test]
    fn a_lane_sends_from_the_shared_address_and_everything_comes_to_the_shared_socket() {
        for any in ["127.0.0.1:0", "[::]:0"] {
            let shared = bind_udp(any.parse().unwrap()).unwrap();
            let port = shared.local_addr().unwrap().port();
            let target = SocketAddr::new("127.0.0.1".parse().unwrap(), port);
            let mut lanes = Lanes::default();
            let others: Vec<UdpSocket> = (0..64).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
            for other in &others[..3] {
                let to = other.local_addr().unwrap();
                assert!(lanes.of(to, NOW).is_none());
                lanes.open(&shared, to, NOW).unwrap();
                let to_socket = udp::for_socket(to, any.starts_with('[')).unwrap();
                lanes.of(to, NOW).unwrap().send_to(b"hello", to_socket).unwrap();
                let mut bytes = [0; 8];
                assert_eq!(other.recv_from(&mut bytes).unwrap(), (5, target), "{any}");
            }
            for other in &others {
                other.send_to(b"answer", target).unwrap();
                assert_eq!(shared.recv(&mut [0; 8]).unwrap(), 6, "{any}");
            }
            let taken = bind_udp(shared.local_addr().unwrap()).unwrap_err();
            assert_eq!(taken.kind(), ErrorKind::AddrInUse, "for another router the port is taken as before");
        }
    }

    #[test]
    fn lanes_are_bounded_and_only_idle_ones_are_given_away() {
        let shared = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = |n: usize| SocketAddr::from(([192, 0, 2, 1], 1000 + u16::try_from(n).unwrap()));
        let mut lanes = Lanes::default();
        for n in 0..LANES_MAX {
            lanes.open(&shared, to(n), NOW).unwrap();
        }
        lanes.of(to(0), NOW + Duration::from_secs(1)).unwrap();
        let refused = |lanes: &mut Lanes, now| lanes.open(&shared, to(99), now).unwrap_err().kind();
        assert_eq!(refused(&mut lanes, NOW + IDLE / 2), ErrorKind::QuotaExceeded);
        assert_eq!(refused(&mut lanes, NOW + IDLE / 2 + RETRY / 2), ErrorKind::WouldBlock, "not again at once");
        lanes.open(&shared, to(99), NOW + IDLE).unwrap();
        assert!(lanes.of(to(99), NOW + IDLE).is_some());
        assert!(lanes.of(to(0), NOW + IDLE).is_some(), "was in use");
        assert_eq!(lanes.lanes.len(), LANES_MAX);
    }
}
