//! The self test of open checksums: real TCP and UDP, over IPv4 and IPv6, through the code that
//! cuts super-frames and completes checksums, judged by this host's kernel.
//!
//! ```text
//!  a namespace of its own
//!    socket at 198.18.0.1 ──► TAP ──► read ─► swap addresses ─► cut ─► write ──► TAP ─┐
//!           ▲     its peer seems to be 198.18.0.2           open, or complete          │
//!           └──────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! To swap two addresses changes no checksum, so whatever the kernel finds wrong is our doing, or
//! that of a kernel that does not do what it says.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use mesh_proto::data::forwarder::SUPER_FRAME_MAX;
use mesh_proto::data::offload::{Layout, each_frame};
use mesh_proto::data::virtio::{VIRTIO_HEADER, VirtioHeader};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::sys::Gather;
use super::tap::{Tap, open_with_header};
use crate::netlink::{Mac, NetNs, Netlink};

const NAME: &str = "weft-trial";
/// A neighbour that is not there. Addresses of both families are those for tests of devices
/// (RFC 2544) and a local prefix: they are seen by nobody outside of the namespace.
const NEIGHBOUR: Mac = [2, 0x62, 0, 0, 0, 2];
const V4: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), IpAddr::V4(Ipv4Addr::new(198, 18, 0, 2))];
const V6: [IpAddr; 2] =
    [IpAddr::V6(Ipv6Addr::new(0xfd62, 0, 0, 0, 0, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd62, 0, 0, 0, 0, 0, 0, 2))];

/// Longest that a host may take for one step: one that is busy with other things must not fail.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the mirror looks whether it is over.
const LOOK: Duration = Duration::from_millis(20);

const STREAM: usize = 200_000;
const DATAGRAM: u16 = 1000;
const DATAGRAMS: usize = 20;
/// Segments in a piece, and so in each super-frame that is given back.
const PIECE: usize = 3;

/// How the self test went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trial {
    /// All arrived, and unchanged.
    Passed,
    /// Something did not: super-frames and open checksums are not to be used.
    Failed(String),
    /// It could not be tried.
    Skipped(String),
}

impl Trial {
    /// Runs it, in some milliseconds. Blocks.
    #[must_use]
    pub fn run() -> Self {
        Self::with(PATIENCE, |_| ())
    }

    /// Runs it with somebody who meddles with the frames that are complete.
    fn with(patience: Duration, meddle: impl Fn(&mut [u8]) + Sync) -> Self {
        let (namespace, tap, v6) = match prepare() {
            Ok(ready) => ready,
            Err(error) => return Self::Skipped(error.to_string()),
        };
        let over = AtomicBool::new(false);
        let result = thread::scope(|scope| {
            scope.spawn(|| mirror(&tap, &over, &meddle));
            let result = namespace.run(|| transfer(v6, patience));
            over.store(true, Ordering::Release);
            result
        });
        match result {
            Ok(Ok(())) => Self::Passed,
            Ok(Err(why)) => Self::Failed(why),
            Err(error) => Self::Skipped(error.to_string()),
        }
    }
}

/// A namespace with a TAP behind which there seems to be a neighbour; whether it has IPv6.
fn prepare() -> anyhow::Result<(NetNs, Tap, bool)> {
    let namespace = NetNs::create("self test")?;
    let tap = namespace.run(|| open_with_header(NAME))??;
    let v6 = Netlink::block_on_in(&namespace, async |netlink| {
        let link = netlink.need_link(NAME).await?;
        netlink.set_up(&link).await?;
        let mut v6 = true;
        for [own, other] in [V4, V6] {
            let length = if own.is_ipv4() { 24 } else { 64 };
            match netlink.add_address(&link, IpNet::new_assert(own, length)).await {
                Ok(()) => netlink.set_neighbour(&link, other, NEIGHBOUR).await?,
                // As on kernels without it.
                Err(_) if own.is_ipv6() => v6 = false,
                Err(error) => return Err(error),
            }
        }
        Ok(v6)
    })?;
    Ok((namespace, tap, v6))
}

fn transfer(v6: bool, patience: Duration) -> Result<(), String> {
    for [own, other] in [V4, V6].into_iter().take(if v6 { 2 } else { 1 }) {
        let family = if own.is_ipv4() { "IPv4" } else { "IPv6" };
        tcp(own, other, patience).map_err(|error| format!("TCP over {family}: {error}"))?;
        udp(own, other, patience).map_err(|error| format!("UDP over {family}: {error}"))?;
    }
    Ok(())
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n ^ n >> 8 ^ n >> 16) as u8).collect()
}

fn changed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what arrived is not what was sent")
}

fn tcp(own: IpAddr, other: IpAddr, patience: Duration) -> io::Result<()> {
    let listener = TcpListener::bind((own, 0))?;
    let to = SocketAddr::new(other, listener.local_addr()?.port());
    let mut out = TcpStream::connect_timeout(&to, patience)?;
    if !readable(&listener, patience) {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let (mut into, _) = listener.accept()?;
    out.set_write_timeout(Some(patience))?;
    into.set_read_timeout(Some(patience))?;
    let sent = pattern(STREAM);
    thread::scope(|scope| {
        let writer = scope.spawn(|| out.write_all(&sent).and_then(|()| out.shutdown(Shutdown::Write)));
        let mut got = Vec::with_capacity(STREAM);
        into.read_to_end(&mut got)?;
        writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        if got == sent { Ok(()) } else { Err(changed()) }
    })
}

fn udp(own: IpAddr, other: IpAddr, patience: Duration) -> io::Result<()> {
    let (out, into) = (UdpSocket::bind((own, 0))?, UdpSocket::bind((own, 0))?);
    let to = SocketAddr::new(other, into.local_addr()?.port());
    into.set_read_timeout(Some(patience))?;
    let sent = pattern(DATAGRAMS * usize::from(DATAGRAM));
    let at_once = Gather::new().send(&out, to, std::iter::once(&sent[..]), Some(DATAGRAM));
    for datagram in sent.chunks(DATAGRAM.into()) {
        if at_once.is_err() {
            out.send_to(datagram, to)?;
        }
    }
    let mut got = [0; 2 * DATAGRAM as usize];
    for datagram in sent.chunks(DATAGRAM.into()) {
        let length = into.recv(&mut got)?;
        if got[..length] != *datagram {
            return Err(changed());
        }
    }
    Ok(())
}

fn readable(fd: impl AsFd, patience: Duration) -> bool {
    let Ok(timeout) = Timespec::try_from(patience) else { return false };
    matches!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)), Ok(1..))
}

/// Gives back what the TAP gives, until it is over: every other frame complete, the others with
/// their checksums as open as they came.
fn mirror(tap: &Tap, over: &AtomicBool, meddle: impl Fn(&mut [u8])) {
    let [mut frame, mut piece, mut cut] = [(); 3].map(|()| vec![0; VIRTIO_HEADER + SUPER_FRAME_MAX]);
    let mut gather = Gather::new();
    let mut complete = false;
    while !over.load(Ordering::Acquire) {
        if !readable(tap, LOOK) {
            continue;
        }
        let length = match rustix::io::read(tap, &mut frame[..]) {
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => continue,
            // Nothing comes back any more: the transfers tell.
            Err(_) => return,
        };
        let Some((header, frame)) = frame[..length].split_first_chunk_mut() else { continue };
        let Some(header) = VirtioHeader::parse(header).filter(|_| swap(frame)) else { continue };
        // What is not written is missed at the other end.
        let mut give = |header: &VirtioHeader, frame: &[u8]| {
            let _ = gather.write(tap, [&header.bytes()[..], frame].into_iter());
        };
        let Some(layout) = Layout::of(&header, frame) else {
            give(&header, frame);
            continue;
        };
        complete = !complete;
        for first in (0..layout.segments).step_by(PIECE) {
            let count = PIECE.min(layout.segments - first);
            let length = layout.piece(frame, first, count, &mut piece);
            let header = Layout { segments: count, ..layout }.virtio();
            if !complete {
                give(&header, &piece[..length]);
                continue;
            }
            each_frame(&header, &mut piece[..length], &mut cut, |frame| {
                let mut frame = frame.to_vec();
                meddle(&mut frame);
                give(&VirtioHeader::PLAIN, &frame);
            });
        }
    }
}

/// Swaps the addresses of an IP packet and of its frame. False if it is none.
fn swap(frame: &mut [u8]) -> bool {
    let (at, length) = match frame.get(12..14) {
        Some([0x08, 0x00]) => (26, 4),
        Some([0x86, 0xdd]) => (22, 16),
        _ => return false,
    };
    if frame.len() < at + 2 * length {
        return false;
    }
    for (at, length) in [(0, 6), (at, length)] {
        let (one, other) = frame[at..at + 2 * length].split_at_mut(length);
        one.swap_with_slice(other);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped_without_rights(trial: &Trial) -> bool {
        let skipped = matches!(trial, Trial::Skipped(_));
        assert!(!skipped || !rustix::process::geteuid().is_root(), "{trial:?}");
        skipped
    }

    #[test]
    fn this_kernel_passes() {
        let trial = Trial::run();
        assert!(trial == Trial::Passed || skipped_without_rights(&trial), "{trial:?}");
    }

    #[test]
    fn a_wrong_checksum_is_found() {
        let spoil = |frame: &mut [u8]| frame[50] ^= 1;
        let trial = Trial::with(Duration::from_millis(500), spoil);
        assert!(matches!(trial, Trial::Failed(_)) || skipped_without_rights(&trial), "{trial:?}");
    }
}
