//! The system calls that no safe crate wraps, each behind a safe function: the only `unsafe` of
//! the data path.
#![allow(unsafe_code, reason = "ioctl, setsockopt and the mmsg calls have no safe wrapper")]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

/// `ioctl(TUNSETIFF)`: makes `tun` the end of the interface `name`, with `IFF_*` `flags`.
pub(super) fn tun_set_interface(tun: impl AsFd, name: &str, flags: libc::c_short) -> io::Result<()> {
    // SAFETY: ifreq is plain old data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.bytes().any(|b| b == 0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the descriptor is open for the call and TUNSETIFF reads and writes one ifreq.
    let result = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `setsockopt` with an `int`.
pub(super) fn set_option(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
    // SAFETY: the descriptor is open for the call; the kernel reads `length` bytes of `value`.
    let result =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Where one datagram lies in a buffer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Span {
    /// First byte.
    pub(super) start: usize,
    /// Length in bytes.
    pub(super) len: usize,
}

/// The arrays that `recvmmsg` and `sendmmsg` work on, made once for batches of a fixed size.
///
/// The pointers in them are set before each call and are never followed after it, so they need
/// not stay valid in between.
pub(super) struct Messages {
    headers: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    addresses: Box<[libc::sockaddr_storage]>,
}

// SAFETY: the pointers are set at the start of each call and not followed after it, so the value
// may change threads between calls.
unsafe impl Send for Messages {}

impl Messages {
    /// Room for `capacity` messages a call.
    pub(super) fn new(capacity: usize) -> Self {
        // SAFETY: the three are plain old data; all zeroes is a valid value of each.
        let (header, vector, address) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            headers: vec![header; capacity].into(),
            vectors: vec![vector; capacity].into(),
            addresses: vec![address; capacity].into(),
        }
    }

    /// Messages a call.
    pub(super) fn capacity(&self) -> usize {
        self.headers.len()
    }

    /// Receives up to [`Self::capacity`] datagrams without waiting, the n-th into the n-th `slot`
    /// bytes of `buffer`. Returns how many.
    pub(super) fn receive(&mut self, socket: impl AsFd, buffer: &mut [u8], slot: usize) -> io::Result<usize> {
        let mut count = 0;
        for bytes in buffer.chunks_exact_mut(slot.max(1)).take(self.headers.len()) {
            self.vectors[count] = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            count += 1;
        }
        self.link(0, count);
        // SAFETY: the first `count` headers point at one iovec and one sockaddr_storage each, and
        // the iovecs at disjoint parts of `buffer`; all of them are borrowed mutably by this call.
        let result = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                libc::c_uint::try_from(count).unwrap_or(0),
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// Of the last [`Self::receive`]: the n-th datagram's sender and length; `None` if it was
    /// longer than its slot or its sender is no IP address.
    pub(super) fn received(&self, n: usize) -> Option<(SocketAddr, usize)> {
        let header = self.headers.get(n)?;
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        Some((decode(self.addresses.get(n)?)?, usize::try_from(header.msg_len).ok()?))
    }

    /// Sets where the n-th message of the next [`Self::send`] goes.
    pub(super) fn set_target(&mut self, n: usize, to: SocketAddr) {
        encode(&mut self.addresses[n], to);
    }

    /// Sends the messages `first..` whose bytes are the spans of `buffer`, without waiting.
    /// Returns how many the kernel took: fewer than asked if it refused the next one.
    pub(super) fn send(&mut self, socket: impl AsFd, buffer: &[u8], spans: &[Span], first: usize) -> io::Result<usize> {
        let end = spans.len().min(self.headers.len());
        for n in first..end {
            let bytes = &buffer[spans[n].start..][..spans[n].len];
            self.vectors[n] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        }
        self.link(first, end);
        for n in first..end {
            self.headers[n].msg_hdr.msg_namelen = address_length(&self.addresses[n]);
        }
        let headers = &mut self.headers[first..end];
        // SAFETY: each of the headers points at one iovec and one sockaddr_storage of this value,
        // each iovec into `buffer`; the kernel only reads what they point at and writes msg_len.
        let result = unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr(),
                libc::c_uint::try_from(headers.len()).unwrap_or(0),
                libc::MSG_DONTWAIT as _,
            )
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// Points the headers `first..end` at their iovec and address.
    fn link(&mut self, first: usize, end: usize) {
        for n in first..end {
            let header = &mut self.headers[n].msg_hdr;
            header.msg_name = (&raw mut self.addresses[n]).cast();
            header.msg_namelen = STORAGE_LENGTH;
            header.msg_iov = &raw mut self.vectors[n];
            header.msg_iovlen = 1;
            header.msg_flags = 0;
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "at most 128")]
const STORAGE_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
#[expect(clippy::cast_possible_truncation, reason = "at most 128")]
const INET_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_in>() as libc::socklen_t;
#[expect(clippy::cast_possible_truncation, reason = "at most 128")]
const INET6_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_in6>() as libc::socklen_t;

fn address_length(storage: &libc::sockaddr_storage) -> libc::socklen_t {
    if libc::c_int::from(storage.ss_family) == libc::AF_INET { INET_LENGTH } else { INET6_LENGTH }
}

fn decode(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the storage is larger than sockaddr_in, as strictly aligned, and any bytes
            // are a valid value of it.
            let address = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddr::from((ip, u16::from_be(address.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for sockaddr_in6.
            let address = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, address.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn encode(storage: &mut libc::sockaddr_storage, address: SocketAddr) {
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: the storage is larger than sockaddr_in, as strictly aligned, and any bytes
            // are a valid value of it.
            let to = unsafe { &mut *(&raw mut *storage).cast::<libc::sockaddr_in>() };
            to.sin_family = libc::AF_INET as libc::sa_family_t;
            to.sin_port = v4.port().to_be();
            to.sin_addr = libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() };
        }
        SocketAddr::V6(v6) => {
            // SAFETY: as above, for sockaddr_in6.
            let to = unsafe { &mut *(&raw mut *storage).cast::<libc::sockaddr_in6>() };
            to.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            to.sin6_port = v6.port().to_be();
            to.sin6_flowinfo = 0;
            to.sin6_addr = libc::in6_addr { s6_addr: v6.ip().octets() };
            to.sin6_scope_id = v6.scope_id();
        }
    }
}
