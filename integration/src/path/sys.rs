//! The system calls that no safe crate wraps.
#![allow(
    unsafe_code,
    reason = "sendmmsg, recvmmsg, SCHED_IDLE, sysconf and other processes' clocks have no safe wrapper"
)]

use std::{io, net::UdpSocket, os::fd::AsRawFd as _, time::Duration};

/// Most datagrams of one call.
pub(super) const BATCH: usize = 64;
/// Length of each.
pub(super) const LENGTH: usize = 64;

fn count(result: libc::c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Sends the same datagram up to `number` times on a connected socket; how many times it did.
pub(super) fn send_many(socket: &UdpSocket, datagram: &[u8; LENGTH], number: usize) -> io::Result<usize> {
    let mut part = libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: LENGTH };
    // SAFETY: mmsghdr is plain old data; all zeroes is a valid value.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for message in &mut messages {
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
    }
    let number = number.min(BATCH) as libc::c_uint;
    // SAFETY: at most BATCH headers are read; each names the one live part, which sending only reads.
    count(unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), number, 0) })
}

/// Receives up to [`BATCH`] datagrams, each cut to [`LENGTH`]; waits for the first only. How many
/// there are.
pub(super) fn receive_many(socket: &UdpSocket, datagrams: &mut [[u8; LENGTH]; BATCH]) -> io::Result<usize> {
    let mut parts =
        datagrams.each_mut().map(|datagram| libc::iovec { iov_base: datagram.as_mut_ptr().cast(), iov_len: LENGTH });
    // SAFETY: mmsghdr is plain old data; all zeroes is a valid value.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for (message, part) in messages.iter_mut().zip(&mut parts) {
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
    }
    let flags = libc::MSG_WAITFORONE as _;
    // SAFETY: BATCH headers, each with one part of LENGTH live, writable bytes of its own.
    count(unsafe {
        libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BATCH as libc::c_uint, flags, std::ptr::null_mut())
    })
}

/// Lets the calling thread run only when nothing else wants the processor.
pub(super) fn only_when_idle() -> io::Result<()> {
    // SAFETY: sched_param is plain old data; priority zero is the one that SCHED_IDLE has.
    let parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: thread 0 is the calling one, and the parameter is live.
    count(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameter) }).map(drop)
}

/// Processor time of a process since it began, to the nanosecond.
pub(super) fn processor_time(process: u32) -> io::Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the clock's number is written to a live place. A process that has ended is an error.
    let error = unsafe { libc::clock_getcpuclockid(process.cast_signed(), &raw mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written to a live place.
    count(unsafe { libc::clock_gettime(clock, &raw mut time) })?;
    Ok(Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0)))
}

/// Unit of the times in /proc/stat.
pub(super) fn ticks_per_second() -> f64 {
    // SAFETY: no pointers are passed.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    // Every architecture that Linux runs on today has 100.
    if ticks > 0 { ticks as f64 } else { 100.0 }
}
