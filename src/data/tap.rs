//! The TAP: where the host's bridge and the router exchange Ethernet frames.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use super::sys;

const TUN_DEVICE: &str = "/dev/net/tun";

/// One read or write is one whole Ethernet frame, without a header of the kernel's before it.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI;

/// Opens the TAP `name` in this network namespace, which makes it if it is not there. It goes
/// away when the descriptor is closed, unless somebody made it persistent. Reads and writes do
/// not block.
///
/// # Errors
/// Each says what to do: no `/dev/net/tun`, no right to make interfaces, the TAP in use by
/// another router, a name that is no interface name.
pub fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(TUN_DEVICE)
        .map_err(|error| explain_open(&error))?;
    let flags = libc::c_short::try_from(FLAGS).map_err(io::Error::other)?;
    sys::tun_set_interface(&tun, name, flags).map_err(|error| explain_interface(&error, name))?;
    Ok(tun.into())
}

fn explain_open(error: &io::Error) -> io::Error {
    let advice = match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "it does not exist: load the module (`modprobe tun`), or in a container add the \
             device (`--device /dev/net/tun`)"
        }
        Some(libc::ENODEV | libc::ENXIO) => {
            "the kernel has no TUN/TAP driver: load it (`modprobe tun`) or enable CONFIG_TUN"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "this user may not open it: run as root, or give read and write permission on it; in \
             a container, allow the device (`--device /dev/net/tun`)"
        }
        _ => "the device cannot be opened",
    };
    io::Error::new(error.kind(), format!("{TUN_DEVICE}: {advice} ({error})"))
}

fn explain_interface(error: &io::Error, name: &str) -> io::Error {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM) => "not permitted: the router needs CAP_NET_ADMIN in this network namespace",
        Some(libc::EBUSY) => "in use: another router runs in this network namespace; stop it first (`weft down`)",
        Some(libc::EINVAL) | None => "not a usable name: 1 to 15 bytes, and no interface of another kind has it",
        _ => "the TAP cannot be made",
    };
    io::Error::new(error.kind(), format!("TAP `{name}`: {advice} ({error})"))
}
