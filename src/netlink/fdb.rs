//! Forwarding entries: of a bridge (MAC → port) and of a VXLAN device (MAC → remote).
//!
//! The same messages as `bridge fdb`, thousands at a time.

use std::io;
use std::net::IpAddr;

use rtnetlink::sys::protocols;

use super::Mac;
use super::raw::{Batch, Body, Message, Refusal, Socket, attributes};

const FAMILY: u8 = libc::AF_BRIDGE as u8;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PORT: u16 = 6;
const NDA_IFINDEX: u16 = 8;
const NDA_MASTER: u16 = 9;
const NUD_REACHABLE: u16 = 0x02;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 0x02;
const NTF_MASTER: u8 = 0x04;
const NTF_STICKY: u8 = 0x40;
/// Length of `struct ndmsg`.
const FIXED: usize = 12;
/// Bytes of messages that are sent at once: if each is refused, the answers fit any receive buffer.
const CHUNK: usize = 8 * 1024;

/// A change of forwarding entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FdbEdit {
    /// The bridge sends frames for the address to that port, for good.
    Pin {
        /// Index of the port.
        port: u32,
        /// The address.
        mac: Mac,
        /// Whether it holds even when the address is heard at another port.
        firm: bool,
    },
    /// The bridge sends frames for the address to that port until it hears otherwise.
    Hint {
        /// Index of the port.
        port: u32,
        /// The address.
        mac: Mac,
    },
    /// The bridge delivers frames for the address to the host.
    Local {
        /// Index of the bridge.
        bridge: u32,
        /// The address.
        mac: Mac,
    },
    /// The bridge forgets the address at that port.
    Unpin {
        /// Index of the port.
        port: u32,
        /// The address.
        mac: Mac,
    },
    /// The VXLAN device sends frames for the address to that remote.
    Remote {
        /// Index of the device.
        device: u32,
        /// The address.
        mac: Mac,
        /// Address of the remote.
        ip: IpAddr,
        /// Its UDP port.
        port: u16,
        /// Index of the interface that leads to it, for a remote with a link-local address.
        via: Option<u32>,
    },
    /// The VXLAN device forgets the address.
    NoRemote {
        /// Index of the device.
        device: u32,
        /// The address.
        mac: Mac,
    },
}

/// A forwarding entry as the kernel tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbEntry {
    /// The address.
    pub mac: Mac,
    /// Index of the port or device.
    pub interface: u32,
    /// Index of the bridge, if it is an entry of a bridge.
    pub bridge: Option<u32>,
    /// The remote, if it is an entry of a VXLAN device.
    pub remote: Option<IpAddr>,
    /// UDP port of the remote, if it is not the device's own.
    pub remote_port: Option<u16>,
    /// It is an address of the port or bridge itself.
    pub local: bool,
    /// It was set, not heard.
    pub fixed: bool,
}

impl FdbEntry {
    /// Reads one out of a neighbour message; none if it is about something else.
    pub(super) fn read(message: Message<'_>) -> Option<Self> {
        let [family, _, _, _, i0, i1, i2, i3, s0, s1, ..] = *message.body.first_chunk::<FIXED>()?;
        if family != FAMILY {
            return None;
        }
        let state = u16::from_ne_bytes([s0, s1]);
        let mut entry = Self {
            mac: [0; 6],
            interface: u32::from_ne_bytes([i0, i1, i2, i3]),
            bridge: None,
            remote: None,
            remote_port: None,
            local: false,
            fixed: state & (NUD_NOARP | NUD_PERMANENT) != 0,
        };
        let mut named = false;
        for (kind, value) in attributes(message.body, FIXED) {
            match kind {
                NDA_LLADDR => (entry.mac, named) = (value.try_into().ok()?, true),
                NDA_MASTER => entry.bridge = value.try_into().ok().map(u32::from_ne_bytes),
                NDA_PORT => entry.remote_port = value.try_into().ok().map(u16::from_be_bytes),
                NDA_DST => {
                    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
                    entry.remote = v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok();
                }
                _ => {}
            }
        }
        entry.local = state & NUD_PERMANENT != 0 && entry.remote.is_none();
        named.then_some(entry)
    }
}

/// A connection for forwarding entries, to the namespace of the thread that opens it.
#[derive(Debug)]
pub struct Fdb(Socket);

impl Fdb {
    /// Opens it.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn open() -> io::Result<Self> {
        Socket::open(protocols::NETLINK_ROUTE).map(Self)
    }

    /// Makes changes, in their order; gives those that the kernel refused. To forget what is not
    /// there is no refusal.
    ///
    /// # Errors
    /// If the kernel cannot be spoken to.
    pub fn apply(&self, changes: &[FdbEdit]) -> io::Result<Vec<(FdbEdit, io::Error)>> {
        let mut refused = Vec::new();
        let mut rest = changes;
        while !rest.is_empty() {
            let mut batch = Batch::default();
            let mut count = 0;
            while count < rest.len() && batch.len() < CHUNK {
                write(&mut batch, &rest[count]);
                count += 1;
            }
            for (at, error) in self.0.transact(&batch)? {
                refused.extend(judge(rest, (at, error)));
            }
            rest = &rest[count..];
        }
        Ok(refused)
    }

    /// All entries of all bridges and VXLAN devices.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn entries(&self) -> io::Result<Vec<FdbEntry>> {
        let mut batch = Batch::default();
        let dump = (libc::NLM_F_DUMP) as u16;
        // The whole of `struct ifinfomsg`: what a dump of this family begins with.
        batch
            .message(libc::RTM_GETNEIGH, dump, |body| body.raw(&[FAMILY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
        let mut entries = Vec::new();
        self.0.exchange(&batch, |message| {
            if message.kind == libc::RTM_NEWNEIGH {
                entries.extend(FdbEntry::read(message));
            }
        })?;
        Ok(entries)
    }
}

fn judge(changes: &[FdbEdit], (at, error): Refusal) -> Option<(FdbEdit, io::Error)> {
    let change = *changes.get(usize::try_from(at).ok()?)?;
    let gone = matches!(change, FdbEdit::Unpin { .. } | FdbEdit::NoRemote { .. })
        && matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL));
    (!gone).then_some((change, error))
}

fn write(batch: &mut Batch, change: &FdbEdit) {
    let set = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
    let (add, index, mac, state, flags) = match *change {
        FdbEdit::Pin { port, mac, firm } => {
            (true, port, mac, NUD_NOARP, NTF_MASTER | if firm { NTF_STICKY } else { 0 })
        }
        FdbEdit::Hint { port, mac } => (true, port, mac, NUD_REACHABLE, NTF_MASTER),
        FdbEdit::Local { bridge, mac } => (true, bridge, mac, NUD_PERMANENT, NTF_SELF),
        FdbEdit::Unpin { port, mac } => (false, port, mac, 0, NTF_MASTER),
        FdbEdit::Remote { device, mac, .. } => (true, device, mac, NUD_NOARP | NUD_PERMANENT, NTF_SELF),
        FdbEdit::NoRemote { device, mac } => (false, device, mac, 0, NTF_SELF),
    };
    let (kind, how) = if add { (libc::RTM_NEWNEIGH, set) } else { (libc::RTM_DELNEIGH, 0) };
    batch.message(kind, how, |body| {
        header(body, index, state, flags);
        body.put(NDA_LLADDR, &mac);
        if let FdbEdit::Remote { ip, port, via, .. } = *change {
            match ip {
                IpAddr::V4(ip) => body.put(NDA_DST, &ip.octets()),
                IpAddr::V6(ip) => body.put(NDA_DST, &ip.octets()),
            }
            body.put(NDA_PORT, &port.to_be_bytes());
            if let Some(via) = via {
                body.put(NDA_IFINDEX, &via.to_ne_bytes());
            }
        }
    });
}

fn header(body: &mut Body<'_>, index: u32, state: u16, flags: u8) {
    body.raw(&[FAMILY, 0, 0, 0]);
    body.raw(&index.to_ne_bytes());
    body.raw(&state.to_ne_bytes());
    body.raw(&[flags, 0]);
}
