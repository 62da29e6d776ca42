//! The system calls of the lab that no safe crate wraps: a TAP for the wire, a packet socket for
//! frames byte by byte, and the user namespace.
#![allow(unsafe_code, reason = "ioctl, packet sockets and unshare have no safe wrapper")]

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, FromRawFd as _, OwnedFd},
};

use super::Offloads;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Makes a TAP without any offload in the namespace of the calling thread: what is read from it
/// is exactly what would be on a wire, cut to its size and with its checksums.
pub(super) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let mut request = interface_request(name)?;
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|e| io::Error::new(e.kind(), format!("/dev/net/tun: {e}; the lab and the router need it")))?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open and TUNSETIFF reads and writes one ifreq.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    rustix::io::ioctl_fionbio(&file, true)?;
    Ok(file.into())
}

/// Bytes a second that the kernel sends for a TCP socket at most (`SO_MAX_PACING_RATE`).
pub(super) fn set_pace(socket: &impl AsFd, bytes_a_second: u64) -> io::Result<()> {
    let (fd, rate) = (socket.as_fd().as_raw_fd(), &raw const bytes_a_second);
    let (level, option, length) = (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the descriptor is open, and the kernel reads `length` bytes of a number that outlives the call.
    check(unsafe { libc::setsockopt(fd, level, option, rate.cast(), length) }).map(drop)
}

/// Commands of ethtool that switch one kind of offload each (linux/ethtool.h; the crate libc has
/// none of them): checksums on receive and send, TCP segmentation (and, as it depends on them on
/// newer kernels, that of UDP), segmentation in software, and merging on receive.
const OFFLOADS: [u32; 5] = [0x15, 0x17, 0x1f, 0x24, MERGING];
const MERGING: u32 = 0x2c;

/// Switches the offloads of an interface in the namespace of the calling thread. An interface that
/// has one of them fixed keeps it.
pub(super) fn set_offloads(name: &str, offloads: Offloads) -> io::Result<()> {
    #[repr(C)]
    struct EthtoolValue {
        command: u32,
        data: u32,
    }
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    for command in OFFLOADS {
        let on = match offloads {
            Offloads::None => false,
            Offloads::Merging => command == MERGING,
            Offloads::All => true,
        };
        let mut value = EthtoolValue { command, data: u32::from(on) };
        let mut request = interface_request(name)?;
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: the descriptor is open; SIOCETHTOOL reads one ifreq and, through its pointer, one
        // ethtool_value, both of which outlive the call.
        match check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) }) {
            Err(error) if error.raw_os_error() != Some(libc::EOPNOTSUPP) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.bytes().any(|byte| byte == 0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no name")));
    }
    // SAFETY: ifreq is plain old data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// A raw packet socket on one interface of the calling thread's namespace. It sees what arrives,
/// not what leaves, and tells the VLAN tags that the kernel took off.
pub(super) fn packet_socket(index: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    let all = (libc::ETH_P_ALL as u16).to_be();
    // Protocol 0 until it is bound: else it would gather frames of all interfaces first.
    // SAFETY: no pointers are passed.
    let raw = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the descriptor was made above and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 8 << 20)?;
    // SAFETY: sockaddr_ll is plain old data; all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = index as libc::c_int;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of the address.
    check(unsafe { libc::bind(raw, (&raw const address).cast(), length) })?;
    let membership = libc::packet_mreq {
        mr_ifindex: index as libc::c_int,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    let length = size_of::<libc::packet_mreq>() as libc::socklen_t;
    let value = (&raw const membership).cast();
    let (level, name) = (libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP);
    // SAFETY: the kernel reads `length` bytes of the request.
    check(unsafe { libc::setsockopt(raw, level, name, value, length) })?;
    Ok(socket)
}

fn set_option(fd: &OwnedFd, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    let pointer = (&raw const value).cast();
    // SAFETY: the kernel reads `length` bytes of the value.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, pointer, length) }).map(drop)
}

/// A frame's length in `buffer`, and its outer VLAN tag (TPID and TCI) if the kernel took it off.
pub(super) type Received = (usize, Option<[u8; 4]>);

/// Receives one frame. Would-block errors are the caller's: set a time-out on the socket.
pub(super) fn receive_frame(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // Aligned as control messages want it.
    let mut control = [0_u64; 16];
    // SAFETY: msghdr is plain old data; all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: all pointers in the header are to live buffers of the stated lengths.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let Ok(length) = usize::try_from(length) else { return Err(io::Error::last_os_error()) };
    let mut tag = None;
    // SAFETY: the header was filled in by the kernel; the CMSG functions walk only within
    // msg_controllen, and the data is read unaligned after its level and type were checked.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_PACKET && (*header).cmsg_type == libc::PACKET_AUXDATA {
                let data = libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>();
                let aux = data.read_unaligned();
                if aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                    let tpid =
                        if aux.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0 { aux.tp_vlan_tpid } else { 0x8100 };
                    let ([a, b], [c, d]) = (tpid.to_be_bytes(), aux.tp_vlan_tci.to_be_bytes());
                    tag = Some([a, b, c, d]);
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok((length, tag))
}

/// Leaves the user, network and mount namespaces of the process for new ones in which it is root.
pub(super) fn unshare_user() -> io::Result<()> {
    use rustix::thread::UnshareFlags;
    let flags = UnshareFlags::NEWUSER | UnshareFlags::NEWNET | UnshareFlags::NEWNS;
    // SAFETY: the table of descriptors stays shared.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}
