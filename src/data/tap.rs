//! The TAP: where the host's bridge and the router exchange Ethernet frames and super-frames.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketType};

use super::{Trial, sys};

const TUN_DEVICE: &str = "/dev/net/tun";

/// One read or write is one whole Ethernet frame or super-frame.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI;

const TCP: libc::c_uint = libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Frames that may wait in the TAP until they are read. Of super-frames each may have 64 KiB:
/// more of them would only wait longer.
const QUEUE: libc::c_int = 256;

/// What is in use of the kernel's offloads, and why not the rest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offloads {
    /// The TAP gives and takes frames whose checksums are open.
    pub checksum: bool,
    /// … TCP super-frames.
    pub tcp: bool,
    /// … UDP super-frames.
    pub udp: bool,
    /// The socket sends many datagrams with one call.
    pub udp_segmentation: bool,
    /// What is not in use, and why: a line each.
    pub missing: Vec<String>,
}

/// The TAP's descriptor, with what it can do.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    header: bool,
    /// What the kernel was told to give: `TUN_F_*`.
    kinds: libc::c_uint,
    offloads: Offloads,
}

/// A descriptor whose reads and writes are frames, without a header and complete.
impl From<OwnedFd> for Tap {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, header: false, kinds: 0, offloads: Offloads::default() }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Tap {
    /// A descriptor whose reads and writes begin with a virtio header and may be super-frames.
    #[must_use]
    pub fn with_header(fd: OwnedFd) -> Self {
        let offloads = Offloads { checksum: true, tcp: true, udp: true, ..Offloads::default() };
        Self { fd, header: true, kinds: 0, offloads }
    }

    /// Whether each read and write begins with a virtio header.
    pub(super) const fn has_header(&self) -> bool {
        self.header
    }

    /// What is in use.
    pub(super) const fn offloads(&self) -> &Offloads {
        &self.offloads
    }

    /// Another descriptor of the same TAP.
    ///
    /// # Errors
    /// When the process may not open more.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, offloads: self.offloads.clone(), ..*self })
    }

    /// Asks for as many offloads as the kernel has.
    fn probe(&mut self) {
        let steps = [
            (libc::TUN_F_CSUM | TCP | UDP, "UDP super-frames (kernels before 6.2 have none)"),
            (libc::TUN_F_CSUM | TCP, "TCP super-frames"),
            (libc::TUN_F_CSUM, "open checksums"),
        ];
        for (kinds, what) in steps {
            match sys::tun_set_offload(&self.fd, kinds) {
                Ok(()) => {
                    self.kinds = kinds;
                    self.offloads.checksum = true;
                    (self.offloads.tcp, self.offloads.udp) = (kinds & TCP != 0, kinds & UDP != 0);
                    return;
                }
                Err(error) => self.offloads.missing.push(format!("TAP without {what}: {error}")),
            }
        }
    }
}

/// Opens the TAP `name` in this network namespace, which makes it if it is not there. It goes
/// away when the descriptor is closed, unless somebody made it persistent. Reads and writes do
/// not block. Offloads that the kernel does not have, or that failed their trial, are left out.
///
/// # Errors
/// Each says what to do: no `/dev/net/tun`, no right to make interfaces, the TAP in use by
/// another router, a name that is no interface name.
pub fn open_tap(name: &str, trial: &Trial) -> io::Result<Tap> {
    let opened = match trial {
        Trial::Failed(why) => Err(io::Error::other(format!("the self test failed: {why}"))),
        Trial::Passed | Trial::Skipped(_) => open_with_header(name),
    };
    let mut tap = opened.or_else(|error| {
        let tun = open_tun()?;
        attach(&tun, name, false).map_err(|error| explain_interface(&error, name))?;
        let mut tap = Tap::from(OwnedFd::from(tun));
        tap.offloads.missing.push(format!("TAP without super-frames and open checksums: {error}"));
        Ok::<_, io::Error>(tap)
    })?;
    if let Trial::Skipped(why) = trial {
        tap.offloads.missing.push(format!("the self test of open checksums: {why}"));
    }
    if let Err(error) = shorten_queue(name) {
        tap.offloads.missing.push(format!("TAP with the kernel's own queue length: {error}"));
    }
    Ok(tap)
}

/// The same, with a header before each frame and as many offloads as the kernel has.
pub(super) fn open_with_header(name: &str) -> io::Result<Tap> {
    let tun = open_tun()?;
    attach(&tun, name, true)?;
    let mut tap = Tap { fd: tun.into(), header: true, kinds: 0, offloads: Offloads::default() };
    tap.probe();
    Ok(tap)
}

fn open_tun() -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    options.open(TUN_DEVICE).map_err(|error| explain_open(&error))
}

/// Makes the interface of a TAP again, under the same descriptor, if somebody deleted it. True if it
/// was gone.
///
/// # Errors
/// As [`open_tap`].
pub fn renew_tap(tap: &Tap, name: &str) -> io::Result<bool> {
    match attach(tap, name, tap.header) {
        Ok(()) => {
            if tap.header {
                sys::tun_set_offload(tap, tap.kinds)?;
            }
            // As when it was opened: without, more frames wait.
            let _ = shorten_queue(name);
            Ok(true)
        }
        // The descriptor still has its interface.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(explain_interface(&error, name)),
    }
}

fn attach(tun: impl AsFd, name: &str, header: bool) -> io::Result<()> {
    let flags = if header { FLAGS | libc::IFF_VNET_HDR } else { FLAGS };
    sys::tun_set_interface(tun, name, libc::c_short::try_from(flags).map_err(io::Error::other)?)
}

fn shorten_queue(name: &str) -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    sys::set_queue_length(&socket, name, QUEUE)
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
                let error = open_tap("weft-tap", &Trial::Passed).expect_err("an ordinary user makes no interface");
                assert!(error.to_string().contains("root") || error.to_string().contains("CAP_NET_ADMIN"), "{error}");
                return;
            }
            let tap = open_tap("weft-tap", &Trial::Passed).unwrap();
            assert_eq!(rustix::io::read(&tap, &mut [0; 64]), Err(rustix::io::Errno::AGAIN));
            assert!(tap.has_header() && tap.offloads().checksum && tap.offloads().tcp, "{:?}", tap.offloads());
            let error = open_tap("weft-tap", &Trial::Passed).unwrap_err();
            assert!(error.to_string().contains("another router"), "{error}");
            for name in ["", "a-name-that-is-too-long", "lo", "nul\0"] {
                let error = open_tap(name, &Trial::Passed).unwrap_err();
                assert!(error.to_string().contains("usable name"), "{error}");
            }
            assert!(!renew_tap(&tap, "weft-tap").unwrap(), "it is there");
            drop(tap);
            open_tap("weft-tap", &Trial::Passed).unwrap();
        })
        .join()
        .unwrap();
    }
}
