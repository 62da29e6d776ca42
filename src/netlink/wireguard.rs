//! WireGuard: its device by rtnetlink, its keys and peers by generic netlink.
//!
//! The kernel works public keys out of private ones, so nothing is computed here.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv6Net};
use netlink_bindings::wireguard::{Request, WgpeerFlags};
use netlink_socket2::NetlinkSocket;
use rtnetlink::LinkWireguard;
use zeroize::Zeroizing;

use super::error::{Context as _, NetlinkError, Result};
use super::{Link, Netlink};

/// A public key.
pub type Key = [u8; 32];

/// Peers in one message: an attribute has at most 64 KiB, and a peer less than 200 bytes.
const PEERS: usize = 250;
/// Of an address that is one peer's.
const ONE_ADDRESS: u8 = 128;
/// All of IPv6's link-local addresses.
const LINK_LOCAL: u8 = 10;

/// A private key. Wiped when it is dropped, and shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(Zeroizing<[u8; 32]>);

impl PrivateKey {
    /// One of random bytes. WireGuard fixes the bits that are not random itself.
    #[must_use]
    pub fn new(random: [u8; 32]) -> Self {
        Self(Zeroizing::new(random))
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey")
    }
}

/// What a device is to WireGuard.
#[derive(Debug)]
pub struct Device {
    /// Its private key, if it has one.
    pub private: Option<PrivateKey>,
    /// Its public key, if it has a private one.
    pub public: Option<Key>,
    /// Its UDP port.
    pub port: u16,
    /// Its peers, with the address that each may send from and is sent to, if it is one alone.
    pub peers: BTreeMap<Key, Option<Ipv6Addr>>,
}

/// A change of a device's peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerEdit {
    /// The peer is there, at that endpoint, with that address and no other.
    Set {
        /// Its key.
        key: Key,
        /// Where it is until it is heard from elsewhere.
        endpoint: SocketAddr,
        /// Its address inside.
        address: Ipv6Addr,
    },
    /// The peer is there no more.
    Remove {
        /// Its key.
        key: Key,
    },
}

/// What the kernel's WireGuard is asked about one device, in the namespace of the thread that asks. Each call has
/// a socket of its own: the kernel's number of WireGuard is another one when the module was loaded anew.
#[derive(Debug, Clone)]
pub struct WireGuard {
    device: CString,
}

impl WireGuard {
    /// For the device of that name, whether it is there or not.
    ///
    /// # Errors
    /// If that is no name.
    pub fn new(device: &str) -> io::Result<Self> {
        let device = CString::new(device).map_err(io::Error::other)?;
        Ok(Self { device })
    }

    /// The device as it is.
    ///
    /// # Errors
    /// If it is not there, is no WireGuard, or the kernel refuses, for want of CAP_NET_ADMIN.
    pub fn read(&self) -> io::Result<Device> {
        let mut request = Request::new().op_get_device_dump();
        request.encode().push_ifname(&self.device);
        let mut socket = NetlinkSocket::new();
        let mut replies = socket.request(&request)?;
        let mut device = Device { private: None, public: None, port: 0, peers: BTreeMap::new() };
        while let Some(reply) = replies.recv() {
            let reply = reply?;
            let key = |bytes: &[u8]| Key::try_from(bytes).ok().filter(|key| *key != [0; 32]);
            if let Some(private) = reply.get_private_key().ok().and_then(key) {
                device.private = Some(PrivateKey::new(private));
            }
            device.public = reply.get_public_key().ok().and_then(key).or(device.public);
            device.port = reply.get_listen_port().unwrap_or(device.port);
            // The peers of a large device come in several messages.
            for peer in reply.get_peers().into_iter().flatten() {
                let Some(key) = peer.get_public_key().ok().and_then(key) else { continue };
                let mut allowed = peer.get_allowedips().into_iter().flatten();
                let address = match (allowed.next(), allowed.next()) {
                    (Some(one), None) if one.get_cidr_mask() == Ok(ONE_ADDRESS) => match one.get_ipaddr() {
                        Ok(IpAddr::V6(address)) => Some(address),
                        _ => None,
                    },
                    _ => None,
                };
                device.peers.insert(key, address);
            }
        }
        Ok(device)
    }

    /// Gives the device its key and its port. Peers stay.
    ///
    /// # Errors
    /// If it is not there, or somebody else has the port.
    pub fn set(&self, private: &PrivateKey, port: u16) -> io::Result<()> {
        let mut request = Request::new().op_set_device_do();
        request.encode().push_ifname(&self.device).push_private_key(&*private.0).push_listen_port(port);
        Ok(NetlinkSocket::new().request(&request)?.recv_ack()?)
    }

    /// Changes peers. That one to be removed is not there is fine.
    ///
    /// # Errors
    /// If the device is not there.
    pub fn edit(&self, edits: &[PeerEdit]) -> io::Result<()> {
        let mut socket = NetlinkSocket::new();
        for edits in edits.chunks(PEERS) {
            let request = encode(Request::new(), &self.device, edits);
            socket.request(&request)?.recv_ack()?;
        }
        Ok(())
    }
}

fn encode<'a>(
    request: Request<'a>,
    device: &CStr,
    edits: &[PeerEdit],
) -> netlink_bindings::wireguard::OpSetDeviceDo<'a> {
    let mut request = request.op_set_device_do();
    let mut peers = request.encode().push_ifname(device).array_peers();
    for edit in edits {
        let peer = peers.entry_nested();
        peers = match *edit {
            PeerEdit::Remove { key } => {
                peer.push_public_key(&key).push_flags(WgpeerFlags::RemoveMe as u32).end_nested()
            }
            PeerEdit::Set { key, endpoint, address } => {
                let peer = peer.push_public_key(&key).push_flags(WgpeerFlags::ReplaceAllowedips as u32);
                let allowed = peer.push_endpoint(endpoint).array_allowedips().entry_nested();
                let allowed = allowed.push_family(libc::AF_INET6 as u16).push_ipaddr(address.into());
                allowed.push_cidr_mask(ONE_ADDRESS).end_nested().end_array().end_nested()
            }
        };
    }
    drop(peers);
    request
}

impl Netlink {
    /// Makes a device of WireGuard, or adopts the one that is there; what else has its name is
    /// replaced. It has no key yet, and is down.
    ///
    /// # Errors
    /// If the kernel has no WireGuard (`EOPNOTSUPP`), or refuses.
    pub async fn ensure_wireguard(&self, name: &str) -> Result<Link> {
        match self.link(name).await? {
            Some(link) if link.kind.as_deref() == Some("wireguard") => return Ok(link),
            Some(_) => _ = self.delete_link(name).await?,
            None => {}
        }
        let message = LinkWireguard::new(name).build();
        let made = self.socket().await.link().add(message).execute().await;
        made.context(name, "create the WireGuard device")?;
        self.need_link(name).await
    }

    /// Brings a device of WireGuard up, with that address, and with a route to all link-local ones by it.
    ///
    /// # Errors
    /// If somebody else has its UDP port, or there is no IPv6.
    pub async fn raise_wireguard(&self, link: &Link, mtu: u32, address: Ipv6Addr) -> Result<()> {
        self.quiet(link).await;
        self.sysctl_if_possible("ipv6", &link.name, "disable_ipv6", "0");
        if link.mtu != mtu {
            self.set_mtu(link, mtu).await?;
        }
        // Before the address: the kernel makes a route for it only where the device is up.
        self.set_up(link).await?;
        self.add_address(link, wide(&link.name, address)?).await
    }

    /// Whether the device is there, up, of that size, and has the address.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn wireguard_stands(&self, name: &str, mtu: u32, address: Ipv6Addr) -> Result<bool> {
        let Some(link) = self.link(name).await? else { return Ok(false) };
        let right = link.up && link.mtu == mtu && link.kind.as_deref() == Some("wireguard");
        Ok(right && self.addresses(&link).await?.contains(&wide(name, address)?))
    }
}

fn wide(device: &str, address: Ipv6Addr) -> Result<IpNet> {
    Ipv6Net::new(address, LINK_LOCAL)
        .map(IpNet::V6)
        .map_err(|error| NetlinkError::other(device, "use as an address", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_written_as_the_kernel_reads_them() {
        let (a, b) = ([1; 32], [2; 32]);
        let address = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);
        let endpoint = "192.0.2.1:6785".parse().expect("an address");
        let edits = [PeerEdit::Set { key: a, endpoint, address }, PeerEdit::Remove { key: b }];
        let request = encode(Request::new(), c"weft-wg", &edits);
        let bytes = netlink_bindings::traits::NetlinkRequest::payload(&request);
        // Command 1, version 1; the name (attribute 2); the peers (8).
        assert_eq!(&bytes[..4], [1, 1, 0, 0]);
        assert_eq!(&bytes[4..16], b"\x0c\x00\x02\x00weft-wg\0");
        assert_eq!(bytes[18..20], [8, 0x80]);
        assert_eq!(usize::from(u16::from_ne_bytes([bytes[16], bytes[17]])), bytes.len() - 16);
        let read = netlink_bindings::wireguard::OpSetDeviceDo::decode_request(bytes);
        let mut peers = read.get_peers().expect("peers");
        let first = peers.next().expect("the first");
        assert_eq!(first.get_public_key().expect("a key"), a);
        assert_eq!(first.get_endpoint().expect("an endpoint"), endpoint);
        let allowed: Vec<_> = first.get_allowedips().expect("addresses").collect();
        let [one] = &allowed[..] else { panic!("{} addresses", allowed.len()) };
        assert_eq!((one.get_ipaddr(), one.get_cidr_mask()), (Ok(address.into()), Ok(128)));
        assert_eq!(one.get_family(), Ok(10));
        assert_eq!(first.get_flags(), Ok(2), "no other address stays");
        let second = peers.next().expect("the second");
        assert_eq!((second.get_public_key().expect("a key"), second.get_flags()), (&b[..], Ok(1)));
        assert!(peers.next().is_none());
    }

    #[test]
    fn a_private_key_is_not_shown() {
        assert_eq!(format!("{:?}", PrivateKey::new([7; 32])), "PrivateKey");
    }
}
