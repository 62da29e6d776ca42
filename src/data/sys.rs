//! The system calls that no safe crate wraps, each behind a safe function: the only `unsafe` of
//! the data path.
#![allow(unsafe_code, reason = "ioctl, setsockopt and the mmsg calls have no safe wrapper")]

use std::io;
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
