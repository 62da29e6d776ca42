//! What the kernel tells by itself when its network configuration changes.
//!
//! ```text
//!   kernel ─ multicast groups of NETLINK_ROUTE ─► socket buffer ─► Monitor::next ─► Notice
//!                                                     │ full
//!                                                     └─► Notice::Overrun: read everything anew
//! ```
//!
//! A notice says that something changed, not what the state is: whoever acts on it asks the kernel.
//! So lost notices cost nothing but the look that an [`Notice::Overrun`] asks for, and the socket's
//! buffer is the only queue. Open the monitor first and read the state after that; then no change
//! falls between the two.
//!
//! ```text
//!   let monitor = netlink.monitor(&[Topic::Links, Topic::Fdb])?;
//!   loop { match monitor.next().await? { Notice::Fdb(change) => …, Notice::Overrun => …, _ => {} } }
//! ```

use std::collections::VecDeque;
use std::{fmt, io};

use futures_util::FutureExt as _;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage},
        neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    },
    sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use rustix::net::sockopt;

use super::{
    Mac, Netlink,
    error::{Context as _, Result},
};

/// Bytes of notices that may wait in the kernel: some thousand, as when a host starts all its
/// containers at once.
const BUFFER: usize = 1 << 20;

/// Most datagrams that [`Monitor::skip`] leaves out.
const SKIPPED: usize = 10_000;

/// What to be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// Interfaces that come, change or go.
    Links,
    /// Addresses of interfaces, IPv4 and IPv6.
    Addresses,
    /// Routes, IPv4 and IPv6.
    Routes,
    /// Entries of the forwarding databases of bridges and VXLAN devices.
    Fdb,
}

impl Topic {
    const fn groups(self) -> &'static [MulticastGroup] {
        match self {
            Self::Links => &[MulticastGroup::Link],
            Self::Addresses => &[MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr],
            Self::Routes => &[MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route],
            Self::Fdb => &[MulticastGroup::Neigh],
        }
    }
}

/// One thing that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// An interface came, changed, or joined or left a bridge.
    Link {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
        /// It is no more.
        gone: bool,
    },
    /// An address of an interface came, changed or went.
    Address {
        /// Index of the interface.
        link: u32,
    },
    /// A route came, changed or went.
    Route,
    /// An entry of a forwarding database came, changed or went.
    Fdb(FdbChange),
    /// The kernel had more to tell than the buffer holds: whatever is known may be old.
    Overrun,
}

/// An entry of a forwarding database, and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbChange {
    /// The entry is no more: aged out, moved away or deleted.
    pub gone: bool,
    /// The hardware address.
    pub mac: Mac,
    /// Index of the bridge's port, or of the VXLAN device whose own table it is.
    pub port: u32,
    /// Index of the bridge; `None` in the table of the device itself.
    pub bridge: Option<u32>,
    /// VLAN of the entry.
    pub vlan: Option<u16>,
    /// It is an address of the port itself, or was entered for good.
    pub permanent: bool,
    /// A program entered it (`NTF_EXT_LEARNED`), the bridge did not learn it from a frame.
    pub entered: bool,
}

/// A subscription. Ends when dropped.
pub struct Monitor {
    socket: TokioSocket,
    read: VecDeque<Notice>,
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("read", &self.read.len()).finish_non_exhaustive()
    }
}

impl Netlink {
    /// Subscribes to changes in the namespace of this connection. Needs a Tokio runtime around it.
    ///
    /// # Errors
    /// If the socket cannot be opened.
    pub fn monitor(&self, topics: &[Topic]) -> Result<Monitor> {
        let bits = topics.iter().flat_map(|topic| topic.groups());
        // The groups of old are bits of the address (netlink(7)).
        let groups = bits.fold(0_u32, |all, group| all | 1 << (*group as u32 - 1));
        let runtime = tokio::runtime::Handle::current();
        let open = || -> io::Result<TokioSocket> {
            let _guard = runtime.enter();
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            // The forced form needs CAP_NET_ADMIN; the other is cut at net.core.rmem_max.
            if sockopt::set_socket_recv_buffer_size_force(socket.socket_ref(), BUFFER).is_err() {
                sockopt::set_socket_recv_buffer_size(socket.socket_ref(), BUFFER)?;
            }
            socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
            Ok(socket)
        };
        let socket = match &self.namespace {
            None => open(),
            Some(namespace) => namespace.run(open)?,
        }
        .context("netlink", "subscribe to changes")?;
        Ok(Monitor { socket, read: VecDeque::new() })
    }
}

impl Monitor {
    /// The next change. May be cancelled without losing one.
    ///
    /// # Errors
    /// If the socket fails; then subscribe again.
    pub async fn next(&mut self) -> Result<Notice> {
        loop {
            if let Some(notice) = self.read.pop_front() {
                return Ok(notice);
            }
            match self.socket.recv_from_full().await {
                // Notices come from the kernel; any process may send to this socket.
                Ok((bytes, from)) if from.port_number() == 0 => notices(&bytes, &mut self.read),
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Notice::Overrun),
                Err(error) => return Err(error).context("netlink", "read what changed"),
            }
        }
    }

    /// Leaves out the changes that are told already: for whoever looks at everything next.
    pub fn skip(&mut self) {
        // A flood has an end only if it is cut off: what comes later is told later.
        for _ in 0..SKIPPED {
            self.read.clear();
            if !matches!(self.next().now_or_never(), Some(Ok(_))) {
                return;
            }
        }
    }
}

/// All messages of one datagram; what is not understood is left out.
fn notices(mut bytes: &[u8], out: &mut VecDeque<Notice>) {
    /// Messages begin at multiples of four (netlink(7)).
    const ALIGN: usize = 4;
    while !bytes.is_empty() {
        // The length is in the first four bytes, in the machine's order, and counts itself.
        let length = match bytes.first_chunk().map(|head| u32::from_ne_bytes(*head) as usize) {
            Some(length) if (16..=bytes.len()).contains(&length) => length,
            _ => return,
        };
        if let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes[..length])
            && let NetlinkPayload::InnerMessage(message) = message.payload
        {
            out.extend(notice(&message));
        }
        bytes = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
    }
}

fn notice(message: &RouteNetlinkMessage) -> Option<Notice> {
    use RouteNetlinkMessage as Message;
    match message {
        Message::NewLink(message) => Some(link(message, false)),
        // In the bridge's family it means that a port left the bridge.
        Message::DelLink(message) => Some(link(message, message.header.interface_family != AddressFamily::Bridge)),
        Message::NewAddress(message) | Message::DelAddress(message) => {
            Some(Notice::Address { link: message.header.index })
        }
        Message::NewRoute(_) | Message::DelRoute(_) => Some(Notice::Route),
        Message::NewNeighbour(message) => fdb(message, false),
        Message::DelNeighbour(message) => fdb(message, true),
        _ => None,
    }
}

fn link(message: &LinkMessage, gone: bool) -> Notice {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    Notice::Link { index: message.header.index, name: name.unwrap_or_default(), gone }
}

/// `None`: a neighbour of the Internet protocols.
fn fdb(message: &NeighbourMessage, gone: bool) -> Option<Notice> {
    let header = &message.header;
    if header.family != AddressFamily::Bridge {
        return None;
    }
    let (mut mac, mut bridge, mut vlan) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
            NeighbourAttribute::Controller(index) => bridge = Some(*index),
            NeighbourAttribute::Vlan(id) => vlan = Some(*id),
            _ => {}
        }
    }
    Some(Notice::Fdb(FdbChange {
        gone,
        mac: mac?,
        port: header.ifindex,
        bridge,
        vlan,
        permanent: matches!(header.state, NeighbourState::Permanent),
        entered: header.flags.contains(NeighbourFlags::ExtLearned),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_of_nonsense_has_no_notices_and_ends() {
        for bytes in [
            &[][..],
            &[1],
            &[0; 16],
            &[255; 64],
            &[16, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[17, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
        ] {
            let mut found = VecDeque::new();
            notices(bytes, &mut found);
            assert!(found.is_empty(), "{bytes:?}: {found:?}");
        }
    }
}
