//! The TAP: where the host's bridge and the router exchange Ethernet frames.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
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

/// Makes the interface of a TAP again, under the same descriptor, if somebody deleted it. True if it
/// was gone.
///
/// # Errors
/// As [`open_tap`].
pub fn renew_tap(tap: impl AsFd, name: &str) -> io::Result<bool> {
    let flags = libc::c_short::try_from(FLAGS).map_err(io::Error::other)?;
    match sys::tun_set_interface(tap, name, flags) {
        Ok(()) => Ok(true),
        // The descriptor still has its interface.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(explain_interface(&error, name)),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn text(errno: i32, explain: impl Fn(&io::Error) -> io::Error) -> String {
        explain(&io::Error::from_raw_os_error(errno)).to_string()
    }

    #[test]
    fn each_error_says_what_to_do() {
        assert!(text(libc::ENOENT, explain_open).contains("modprobe tun"));
        assert!(text(libc::EACCES, explain_open).contains("run as root"));
        let interface = |error: &io::Error| explain_interface(error, "weft-tap");
        assert!(text(libc::EPERM, interface).contains("CAP_NET_ADMIN"));
        assert!(text(libc::EBUSY, interface).contains("another router"));
        assert!(text(libc::EINVAL, interface).contains("weft-tap"));
    }

    /// In a network namespace of its own, where this user may make one.
    #[test]
    #[expect(deprecated, reason = "its successor is unsafe for flags that are not used here")]
    fn a_tap_opens_once_and_refuses_a_second_router_and_bad_names() {
        std::thread::spawn(|| {
            if let Err(error) = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET) {
                assert_eq!(error, rustix::io::Errno::PERM);
                let error = open_tap("weft-tap").expect_err("an ordinary user makes no interface");
                assert!(error.to_string().contains("root") || error.to_string().contains("CAP_NET_ADMIN"), "{error}");
                return;
            }
            let tap = open_tap("weft-tap").unwrap();
            assert_eq!(rustix::io::read(&tap, &mut [0; 64]), Err(rustix::io::Errno::AGAIN));
            let error = open_tap("weft-tap").unwrap_err();
            assert!(error.to_string().contains("another router"), "{error}");
            for name in ["", "a-name-that-is-too-long", "lo", "nul\0"] {
                let error = open_tap(name).unwrap_err();
                assert!(error.to_string().contains("usable name"), "{error}");
            }
            assert!(!renew_tap(&tap, "weft-tap").unwrap(), "it is there");
            drop(tap);
            open_tap("weft-tap").unwrap();
        })
        .join()
        .unwrap();
    }
}
