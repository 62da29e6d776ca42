//! The UDP socket that sleeve and QUIC share.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6, UdpSocket};

use mesh_proto::address::canonical;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

use super::sys;

/// A socket's send buffer, in bytes; the kernel doubles it and counts its own structures too. It holds what waits in
/// front of an interface, and so how long: 3 ms at 10 Gbit/s, 30 ms at 1 Gbit/s.
const SEND_BUFFER: usize = 2 << 20;

/// The socket's receive buffer, in bytes; the kernel doubles it and counts its own structures
/// too. It holds a burst of 5 MB, or 8 ms at 5 Gbit/s. A quarter of that lost one datagram in a
/// thousand of four streams, and a third of the speed of one; twice as much is only filled by TCP,
/// whose windows are larger, and who is behind a bulk stream waits for it.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Binds the socket: dual-stack for `[::]`, or IPv4 only where the machine has no IPv6; of the
/// given family for any other address. Non-blocking, with buffers of the sizes above where permitted, and never
/// fragmented by the kernel (the path MTU is searched for by the forwarder, blind to ICMP).
///
/// # Errors
/// A port in use, an address that is not this machine's; each says what to do.
pub fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let bound = match bind(address, false) {
        Err(error) if address.ip().is_unspecified() && address.is_ipv6() && no_ipv6(&error) => {
            bind((Ipv4Addr::UNSPECIFIED, address.port()).into(), false)
        }
        other => other,
    };
    bound.map_err(|error| explain(&error, address))
}

/// Binds another socket to the address of one that is there, which must permit it (`SO_REUSEPORT`).
///
/// # Errors
/// What the kernel says.
pub(super) fn bind_beside(address: SocketAddr) -> io::Result<UdpSocket> {
    bind(address, true)
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn bind(address: SocketAddr, beside: bool) -> io::Result<UdpSocket> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(family, SocketType::DGRAM, flags, None)?;
    let probe = libc::IP_PMTUDISC_PROBE;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, false)?;
        sys::set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, probe)?;
    }
    // Also for the IPv4 half of a dual-stack socket.
    sys::set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, probe)?;
    // The forced form needs CAP_NET_ADMIN; the other is cut at net.core.{r,w}mem_max.
    if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
    }
    if sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER).is_err() {
        sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
    }
    // Kernels before 5.0 do not put datagrams together: then they come one by one.
    let _ = sys::set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    if beside {
        sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    net::bind(&socket, &address)?;
    Ok(socket.into())
}

fn explain(error: &io::Error, address: SocketAddr) -> io::Error {
    let advice = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => "the port is in use: is another router running? Else choose another port (`--port`)",
        Some(libc::EADDRNOTAVAIL) => "the address is not one of this machine's (`--listen`)",
        Some(libc::EACCES | libc::EPERM) => "not permitted: ports below 1024 need root",
        _ => "cannot be bound",
    };
    io::Error::new(error.kind(), format!("UDP {address}: {advice} ({error})"))
}

/// The address as a socket of the given family takes it; `None` if it cannot reach it.
pub(super) fn for_socket(address: SocketAddr, socket_is_ipv6: bool) -> Option<SocketAddr> {
    match (canonical(address), socket_is_ipv6) {
        (SocketAddr::V4(v4), true) => Some(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()),
        (SocketAddr::V6(_), false) => None,
        (same, _) => Some(same),
    }
}

/// Sends one datagram from outside the data thread (QUIC).
///
/// # Errors
/// `WouldBlock` when the send buffer is full, and what the kernel says.
pub(crate) fn send_one(socket: &UdpSocket, socket_is_ipv6: bool, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
    let to = for_socket(to, socket_is_ipv6).ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
    socket.send_to(bytes, to).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_written_as_the_socket_takes_it() {
        assert_eq!(for_socket(address("192.0.2.1:5"), true), Some(address("[::ffff:192.0.2.1]:5")));
        assert_eq!(for_socket(address("192.0.2.1:5"), false), Some(address("192.0.2.1:5")));
        assert_eq!(for_socket(address("[::1]:5"), true), Some(address("[::1]:5")));
        assert_eq!(for_socket(address("[::1]:5"), false), None);
    }

    #[test]
    fn a_port_in_use_is_named_with_what_to_do() {
        let first = bind_udp(address("127.0.0.1:0")).unwrap();
        let taken = first.local_addr().unwrap();
        let error = bind_udp(taken).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&taken.to_string()), "{error}");
        assert!(error.to_string().contains("--port"), "{error}");
    }

    #[test]
    fn an_address_of_another_machine_is_named_with_what_to_do() {
        for foreign in ["192.0.2.1:0", "[2001:db8::1]:0"] {
            let error = bind_udp(address(foreign)).unwrap_err();
            assert!(error.to_string().contains("--listen"), "{error}");
        }
    }

    #[test]
    fn the_socket_does_not_block() {
        let socket = bind_udp(address("[::]:0")).unwrap();
        assert_eq!(socket.recv(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
