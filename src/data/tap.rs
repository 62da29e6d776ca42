//! The TAP: where the host's bridge and the router exchange Ethernet frames and super-frames.
//!
//! ```text
//!            ┌─ queue ─ bulk bulk bulk bulk ─┐
//!  bridge ───┤─ queue ─ ping ────────────────├──► one frame of each in turn
//!            └─ queue ───────────────────────┘
//!         ◄─── a queue that is detached ◄─────── all that comes for this host
//! ```
//!
//! The kernel puts the frames of a flow into one of several queues, by their hash, so who fills his own
//! with bulk data is not in the way of the others. A flow whose frames it sees coming out of another
//! queue it moves there, and what waits in the old one is overtaken; of a detached queue it takes no
//! note (`tun_get_user` of drivers/net/tun.c). So a flow stays where it is, in its order.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketType};

use super::{Trial, sys};

const TUN_DEVICE: &str = "/dev/net/tun";

/// One read or write is one whole Ethernet frame or super-frame.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI;

/// The same with a virtio header, and as one queue of several.
const SEVERAL: libc::c_int = FLAGS | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
/// Only if there is no such interface.
const EXCLUSIVE: libc::c_int = libc::IFF_TUN_EXCL;

const TCP: libc::c_uint = libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Queues of a TAP.
pub(super) const QUEUES: usize = 8;

/// Frames that may wait in each of them until they are read: of small ones what a sender makes while
/// the data thread waits for a processor, and what it makes at once when it was away itself. With 500
/// half of the rate of small ones was lost that way; with 4,000 nothing was gained.
const QUEUE: libc::c_int = 2000;

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

/// The TAP's descriptors, with what it can do.
#[derive(Debug)]
pub struct Tap {
    /// One for each queue; there is at least one.
    queues: Box<[OwnedFd]>,
    /// The detached one, for what is written.
    writer: Option<OwnedFd>,
    header: bool,
    /// What the kernel was told to give: `TUN_F_*`.
    kinds: libc::c_uint,
    offloads: Offloads,
}

/// A descriptor whose reads and writes are frames, without a header and complete.
impl From<OwnedFd> for Tap {
    fn from(fd: OwnedFd) -> Self {
        Self { queues: Box::new([fd]), writer: None, header: false, kinds: 0, offloads: Offloads::default() }
    }
}

/// The first queue.
impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queues[0].as_fd()
    }
}

impl Tap {
    /// A descriptor whose reads and writes begin with a virtio header and may be super-frames.
    #[must_use]
    pub fn with_header(fd: OwnedFd) -> Self {
        let offloads = Offloads { checksum: true, tcp: true, udp: true, ..Offloads::default() };
        Self { queues: Box::new([fd]), writer: None, header: true, kinds: 0, offloads }
    }

    /// All queues.
    pub(super) const fn queues(&self) -> &[OwnedFd] {
        &self.queues
    }

    /// Where frames are written.
    pub(super) fn writer(&self) -> &OwnedFd {
        self.writer.as_ref().unwrap_or(&self.queues[0])
    }

    /// Whether each read and write begins with a virtio header.
    pub(super) const fn has_header(&self) -> bool {
        self.header
    }

    /// What is in use.
    pub(super) const fn offloads(&self) -> &Offloads {
        &self.offloads
    }

    /// Other descriptors of the same TAP.
    ///
    /// # Errors
    /// When the process may not open more.
    pub fn try_clone(&self) -> io::Result<Self> {
        let queues: io::Result<Box<[OwnedFd]>> = self.queues.iter().map(OwnedFd::try_clone).collect();
        let writer = self.writer.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(Self { queues: queues?, writer, offloads: self.offloads.clone(), ..*self })
    }

    /// Of queues that give headers, with as many offloads as the kernel has.
    fn of(queues: Vec<OwnedFd>) -> Self {
        let mut tap =
            Self { queues: queues.into(), writer: None, header: true, kinds: 0, offloads: Offloads::default() };
        tap.probe();
        tap
    }

    fn probe(&mut self) {
        let steps = [
            (libc::TUN_F_CSUM | TCP | UDP, "UDP super-frames (kernels before 6.2 have none)"),
            (libc::TUN_F_CSUM | TCP, "TCP super-frames"),
            (libc::TUN_F_CSUM, "open checksums"),
        ];
        for (kinds, what) in steps {
            match sys::tun_set_offload(&*self, kinds) {
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
        Trial::Passed | Trial::Skipped(_) => open_several(name),
    };
    let is_taken = |error: &io::Error| error.raw_os_error() == Some(libc::EBUSY);
    let mut tap = opened.or_else(|error| {
        if is_taken(&error) {
            return Err(explain_interface(&error, name));
        }
        let tun = open_tun()?;
        attach(&tun, name, FLAGS).map_err(|error| explain_interface(&error, name))?;
        let mut tap = Tap::from(OwnedFd::from(tun));
        tap.offloads.missing.push(format!("TAP without super-frames and open checksums: {error}"));
        Ok::<_, io::Error>(tap)
    })?;
    if let Trial::Skipped(why) = trial {
        tap.offloads.missing.push(format!("the self test of open checksums: {why}"));
    }
    if let Err(error) = size_queue(name) {
        tap.offloads.missing.push(format!("TAP with the kernel's own queue length: {error}"));
    }
    Ok(tap)
}

/// The same, with a header before each frame, as many offloads as the kernel has, and several queues.
fn open_several(name: &str) -> io::Result<Tap> {
    let tun = open_tun()?;
    // Whoever may add queues could add one to another router's TAP: it must be new.
    if let Err(error) = attach(&tun, name, SEVERAL | EXCLUSIVE) {
        // One that somebody made before, for one reader; or another router's, if it takes one more; or
        // an interface of another kind.
        let mut tap = match open_with_header(name) {
            Ok(tap) => tap,
            Err(alone) => return Err(if attach(&tun, name, SEVERAL).is_ok() { error } else { alone }),
        };
        tap.offloads.missing.push(format!("TAP with one queue: {error}"));
        return Ok(tap);
    }
    let mut queues = vec![tun.into()];
    let mut missing = Vec::new();
    while queues.len() < QUEUES {
        match open_tun().and_then(|tun| attach(&tun, name, SEVERAL).map(|()| tun)) {
            Ok(tun) => queues.push(tun.into()),
            Err(error) => {
                missing.push(format!("TAP with {} queues of {QUEUES}: {error}", queues.len()));
                break;
            }
        }
    }
    let mut tap = Tap::of(queues);
    match open_tun().and_then(|tun| attach_writer(&tun, name).map(|()| tun)) {
        Ok(tun) => tap.writer = Some(tun.into()),
        Err(error) => missing.push(format!("TAP without a queue for writing: {error}")),
    }
    tap.offloads.missing.append(&mut missing);
    Ok(tap)
}

/// One more queue, which takes frames and gives none.
fn attach_writer(tun: impl AsFd, name: &str) -> io::Result<()> {
    attach(&tun, name, SEVERAL)?;
    sys::tun_detach_queue(&tun)
}

/// The same with one queue.
pub(super) fn open_with_header(name: &str) -> io::Result<Tap> {
    let tun = open_tun()?;
    attach(&tun, name, FLAGS | libc::IFF_VNET_HDR)?;
    Ok(Tap::of(vec![tun.into()]))
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
    let flags = match (tap.header, tap.queues.len()) {
        (false, _) => FLAGS,
        (true, 1) => FLAGS | libc::IFF_VNET_HDR,
        (true, _) => SEVERAL,
    };
    match attach(tap, name, flags) {
        Ok(()) => {
            for queue in &tap.queues[1..] {
                attach(queue, name, flags)?;
            }
            if let Some(writer) = &tap.writer {
                attach_writer(writer, name)?;
            }
            if tap.header {
                sys::tun_set_offload(tap, tap.kinds)?;
            }
            // As when it was opened: without, more frames wait.
            let _ = size_queue(name);
            Ok(true)
        }
        // The descriptor still has its interface.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(explain_interface(&error, name)),
    }
}

fn attach(tun: impl AsFd, name: &str, flags: libc::c_int) -> io::Result<()> {
    // All flags have 16 bits; the highest is one of them.
    let flags = u16::try_from(flags).map_err(io::Error::other)?;
    sys::tun_set_interface(tun, name, flags.cast_signed())
}

fn size_queue(name: &str) -> io::Result<()> {
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
            assert_eq!(tap.queues().len(), QUEUES, "{:?}", tap.offloads());
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
