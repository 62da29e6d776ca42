//! The system calls that no safe crate wraps, each behind a safe function: the only `unsafe` of
//! the data path.
#![allow(unsafe_code, reason = "ioctl, setsockopt and the mmsg calls have no safe wrapper")]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

use mesh_proto::data::parts::PLACES;

/// `ioctl(TUNSETIFF)`: makes `tun` the end of the interface `name`, with `IFF_*` `flags`.
pub(super) fn tun_set_interface(tun: impl AsFd, name: &str, flags: libc::c_short) -> io::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the descriptor is open for the call and TUNSETIFF reads and writes one ifreq.
    let result = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `ioctl(TUNSETQUEUE)`: the kernel gives this queue of a TAP no more frames; it still takes some.
pub(super) fn tun_detach_queue(tun: impl AsFd) -> io::Result<()> {
    // SAFETY: ifreq is plain old data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The highest of the flags' 16 bits is none of these.
    request.ifr_ifru.ifru_flags = libc::IFF_DETACH_QUEUE as libc::c_short;
    // SAFETY: the descriptor is open for the call and TUNSETQUEUE reads one ifreq.
    let result = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETQUEUE, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain old data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.bytes().any(|b| b == 0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
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

/// `setsockopt(SO_ATTACH_REUSEPORT_CBPF)`: of all sockets of its port, the one that was there first receives
/// everything (socket(7)).
pub(super) fn first_of_port_receives(socket: impl AsFd) -> io::Result<()> {
    #[expect(clippy::cast_possible_truncation, reason = "an instruction's code has 16 bits")]
    let code = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut program = libc::sock_filter { code, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut program };
    let length = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap_or(16);
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF);
    // SAFETY: the descriptor is open for the call; the kernel reads the program's one instruction, which
    // outlives the call.
    let result =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const program).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `ioctl(TUNSETOFFLOAD)`: the kernel may give super-frames of these `TUN_F_*` kinds.
pub(super) fn tun_set_offload(tun: impl AsFd, kinds: libc::c_uint) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call, and TUNSETOFFLOAD takes a number.
    let result = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(kinds)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `ioctl(SIOCSIFTXQLEN)`: frames that may wait in the interface `name`.
pub(super) fn set_queue_length(socket: impl AsFd, name: &str, frames: libc::c_int) -> io::Result<()> {
    let mut request = interface_request(name)?;
    // The kernel's name for this field of the union is ifr_qlen, of the same type.
    request.ifr_ifru.ifru_metric = frames;
    // SAFETY: the descriptor is open for the call and SIOCSIFTXQLEN reads one ifreq.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFTXQLEN, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Room for one control message with an `int`, as `CMSG_SPACE` counts it, aligned as `cmsghdr`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Control {
    header: libc::cmsghdr,
    value: [u8; CONTROL_VALUE],
}

const CONTROL_VALUE: usize = 8;

/// Parts of one message: the headers, and as many places as the forwarder joins.
const VECTORS: usize = PLACES + 2;

/// What one `sendmsg` or `writev` works on, made once.
///
/// The pointers are set before each call and never followed after it.
pub(super) struct Gather {
    vectors: [libc::iovec; VECTORS],
    count: usize,
}

// SAFETY: the pointers are set at the start of each call and not followed after it, so the value
// may change threads between calls.
unsafe impl Send for Gather {}

impl Gather {
    pub(super) const fn new() -> Self {
        Self { vectors: [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; VECTORS], count: 0 }
    }

    /// False if there are too many parts.
    fn set<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) -> bool {
        self.count = 0;
        for part in parts {
            let Some(vector) = self.vectors.get_mut(self.count) else { return false };
            *vector = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
            self.count += 1;
        }
        true
    }

    /// Writes the parts as one frame.
    pub(super) fn write<'a>(&mut self, to: impl AsFd, parts: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
        if !self.set(parts) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let count = libc::c_int::try_from(self.count).unwrap_or(0);
        // SAFETY: the first `count` vectors point into slices that live as long as `parts`; the
        // kernel only reads them.
        let result = unsafe { libc::writev(to.as_fd().as_raw_fd(), self.vectors.as_ptr(), count) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// Sends the parts without waiting: as one datagram, or, if `size` is given, cut into
    /// datagrams of that many bytes by the kernel.
    pub(super) fn send<'a>(
        &mut self,
        socket: impl AsFd,
        to: SocketAddr,
        parts: impl Iterator<Item = &'a [u8]>,
        size: Option<u16>,
    ) -> io::Result<()> {
        if !self.set(parts) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: plain old data; all zeroes is a valid value of each.
        let (mut header, mut address, mut control): (libc::msghdr, libc::sockaddr_storage, Control) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        encode(&mut address, to);
        header.msg_name = (&raw mut address).cast();
        header.msg_namelen = address_length(&address);
        header.msg_iov = self.vectors.as_mut_ptr();
        header.msg_iovlen = self.count as _;
        if let Some(size) = size {
            control.header.cmsg_level = libc::SOL_UDP;
            control.header.cmsg_type = libc::UDP_SEGMENT;
            control.header.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<u16>()) as _;
            control.value[..2].copy_from_slice(&size.to_ne_bytes());
            header.msg_control = (&raw mut control).cast();
            header.msg_controllen = size_of::<Control>() as _;
        }
        // SAFETY: the header points at an address, vectors and a control message that live on
        // this stack, the vectors into slices that live as long as `parts`; the kernel only reads.
        let result = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, libc::MSG_DONTWAIT as _) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// What a received message is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    pub(super) from: SocketAddr,
    pub(super) len: usize,
    /// Bytes of each datagram in it but the last: the kernel may have put several together.
    pub(super) size: usize,
}

/// The arrays that `recvmmsg` works on, made once for batches of a fixed size.
///
/// The pointers in them are set before each call and are never followed after it, so they need
/// not stay valid in between.
pub(super) struct Messages {
    headers: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    addresses: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
}

// SAFETY: the pointers are set at the start of each call and not followed after it, so the value
// may change threads between calls.
unsafe impl Send for Messages {}

impl Messages {
    /// Room for `capacity` messages a call.
    pub(super) fn new(capacity: usize) -> Self {
        // SAFETY: all are plain old data; all zeroes is a valid value of each.
        let (header, vector, address, control) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            headers: vec![header; capacity].into(),
            vectors: vec![vector; capacity].into(),
            addresses: vec![address; capacity].into(),
            controls: vec![control; capacity].into(),
        }
    }

    /// Receives messages without waiting, the n-th into the n-th `slot` bytes of `buffer`, as
    /// many as it has and this value has room for. Returns how many.
    pub(super) fn receive(&mut self, socket: impl AsFd, buffer: &mut [u8], slot: usize) -> io::Result<usize> {
        let mut count = 0;
        for bytes in buffer.chunks_exact_mut(slot.max(1)).take(self.headers.len()) {
            self.vectors[count] = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            let header = &mut self.headers[count].msg_hdr;
            header.msg_name = (&raw mut self.addresses[count]).cast();
            header.msg_namelen = STORAGE_LENGTH;
            header.msg_iov = &raw mut self.vectors[count];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[count]).cast();
            header.msg_controllen = size_of::<Control>() as _;
            header.msg_flags = 0;
            count += 1;
        }
        // SAFETY: the first `count` headers point at one iovec, one sockaddr_storage and one
        // control message each, and the iovecs at disjoint parts of `buffer`; all of them are
        // borrowed mutably by this call.
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

    /// The n-th message of the last [`Self::receive`]; `None` if it was longer than its slot or
    /// its sender is no IP address.
    pub(super) fn received(&self, n: usize) -> Option<Received> {
        let header = self.headers.get(n)?;
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let len = usize::try_from(header.msg_len).ok()?;
        let control = self.controls.get(n)?;
        let told = header.msg_hdr.msg_controllen >= (size_of::<libc::cmsghdr>() + size_of::<u16>()) as _
            && (control.header.cmsg_level, control.header.cmsg_type) == (libc::SOL_UDP, libc::UDP_GRO);
        let [a, b, c, d, ..] = control.value;
        let size = usize::try_from(libc::c_int::from_ne_bytes([a, b, c, d])).unwrap_or(0);
        let size = if told && size > 0 { size } else { len.max(1) };
        Some(Received { from: decode(self.addresses.get(n)?)?, len, size })
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
