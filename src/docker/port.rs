//! An endpoint's interface: one veth pair, whose near end is a port of the bridge. The far end is born beside
//! it; the engine moves it into the container and back.
//!
//! ```text
//!   container                   host
//!   eth0, eth1, … ◄─ engine ─── weftc-XXXXXXXXX ─veth─ weftd-XXXXXXXXX ── bridge weft
//! ```
//!
//! Both names are functions of the endpoint's id, so that a router that was killed finds what it made.

use ipnet::IpNet;

use crate::control::guard::PortGuard;
use crate::netlink::nft::{Kept, Port};
use crate::netlink::{Mac, NetNs, Netlink, NetlinkError, VethPeer, container};

/// How the name of each near end begins.
const NEAR: &str = "weftd-";

const KEEP: &str = "keep the network apart from others by nftables (CONFIG_NF_TABLES_BRIDGE)";

/// Name of the end on the bridge.
pub(super) fn near(endpoint: &str) -> String {
    container::name_for(NEAR, endpoint)
}

/// Name of the other end, as long as it is in no container.
pub(super) fn far(endpoint: &str) -> String {
    container::name_for("weftc-", endpoint)
}

/// An endpoint's port, of a network that is kept apart or of the open mesh.
pub(super) fn port(endpoint: &str, mac: Mac, apart: Option<String>) -> Port {
    Port { interface: near(endpoint), mac, kept: apart.map_or(Kept::Open, Kept::Network) }
}

/// Where the far end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// There is no such pair: its container has gone, and took it along.
    Nowhere,
    /// In no container (yet, or any more).
    Host,
    /// In a container.
    Container,
}

/// What endpoints need of the kernel.
pub trait Ports: std::fmt::Debug + Send + Sync + 'static {
    /// Makes the pair, or completes what is there. `apart` is the id of the network that it is
    /// kept to, which is open.
    fn plug(
        &self,
        endpoint: &str,
        mac: Mac,
        apart: Option<String>,
    ) -> impl Future<Output = Result<(), NetlinkError>> + Send;
    /// Keeps a network of these addresses apart.
    fn open_network(&self, id: &str, subnets: Vec<IpNet>) -> impl Future<Output = Result<(), NetlinkError>> + Send;
    /// Forgets it.
    fn close_network(&self, id: &str) -> impl Future<Output = ()> + Send;
    /// Removes the pair, wherever its far end is.
    fn unplug(&self, near: &str) -> impl Future<Output = Result<(), NetlinkError>> + Send;
    /// Looks where the pair is.
    fn place(&self, endpoint: &str) -> impl Future<Output = Result<Place, NetlinkError>> + Send;
    /// Lets the far end, in the container of that process, take no router advertisements.
    fn shield(&self, endpoint: &str, pid: u32) -> impl Future<Output = Result<(), NetlinkError>> + Send;
    /// Names of all near ends that there are.
    fn all(&self) -> impl Future<Output = Result<Vec<String>, NetlinkError>> + Send;
}

/// The kernel's.
#[derive(Debug)]
pub struct KernelPorts {
    /// The host's network.
    pub netlink: Netlink,
    /// Name of the bridge.
    pub bridge: String,
    /// MTU of the overlay.
    pub mtu: u16,
    /// Keeps networks apart.
    pub guard: PortGuard,
}

impl KernelPorts {
    async fn make(&self, endpoint: &str, mac: Mac) -> Result<(), NetlinkError> {
        let (near, far, mtu) = (near(endpoint), far(endpoint), u32::from(self.mtu));
        let bridge = self.netlink.need_link(&self.bridge).await?;
        match self.place(endpoint).await? {
            Place::Container => {}
            Place::Host => {
                let link = self.netlink.need_link(&far).await?;
                if link.mac != Some(mac) {
                    self.netlink.set_mac(&link, mac).await?;
                }
            }
            Place::Nowhere => {
                let peer = VethPeer { name: &far, mac, namespace: None };
                self.netlink.add_veth(&near, mtu, &peer).await?;
            }
        }
        let port = self.netlink.enslave(&near, &bridge, mtu).await?;
        self.netlink.pin(&port, mac).await
    }
}

impl Ports for KernelPorts {
    async fn plug(&self, endpoint: &str, mac: Mac, apart: Option<String>) -> Result<(), NetlinkError> {
        let before = self.place(endpoint).await?;
        let is_open = apart.is_none();
        // Before there is an interface that anything could be sent by, or to (guard P6).
        match self.guard.protect(port(endpoint, mac, apart)).await {
            Err(error) if is_open => {
                // It is shielded once it runs, which is what can be done without nftables.
                tracing::debug!(%error, "router advertisements are not kept from a container that starts");
                self.guard.release(&near(endpoint)).await;
            }
            kept => kept.map_err(|error| NetlinkError::new(near(endpoint), KEEP, error))?,
        }
        let made = self.make(endpoint, mac).await;
        if made.is_err()
            && before == Place::Nowhere
            && let Err(error) = self.unplug(&near(endpoint)).await
        {
            tracing::warn!(%error, "half-made interface left behind");
        }
        made
    }

    async fn unplug(&self, near: &str) -> Result<(), NetlinkError> {
        self.netlink.delete_link(near).await?;
        self.guard.release(near).await;
        Ok(())
    }

    async fn open_network(&self, id: &str, subnets: Vec<IpNet>) -> Result<(), NetlinkError> {
        let opened = self.guard.open_network(id, subnets).await;
        opened.map_err(|error| NetlinkError::new(super::refusal::short(id), KEEP, error))
    }

    async fn close_network(&self, id: &str) {
        self.guard.close_network(id).await;
    }

    async fn place(&self, endpoint: &str) -> Result<Place, NetlinkError> {
        if self.netlink.link(&near(endpoint)).await?.is_none() {
            return Ok(Place::Nowhere);
        }
        let here = self.netlink.link(&far(endpoint)).await?.is_some();
        Ok(if here { Place::Host } else { Place::Container })
    }

    async fn shield(&self, endpoint: &str, pid: u32) -> Result<(), NetlinkError> {
        let Some(near) = self.netlink.link(&near(endpoint)).await? else { return Ok(()) };
        let inside = Netlink::open_in(&NetNs::from_pid(pid)?)?;
        let links = inside.links().await?;
        // Indexes are of a namespace each: only both together say that they are a pair.
        let mut pair = links.iter().filter(|link| near.peer == Some(link.index) && link.peer == Some(near.index));
        pair.try_for_each(|far| inside.sysctl("ipv6", &far.name, "accept_ra", "0"))
    }

    async fn all(&self) -> Result<Vec<String>, NetlinkError> {
        let links = self.netlink.links().await?;
        let ours = links.into_iter().filter(|link| link.kind.as_deref() == Some("veth") && link.name.starts_with(NEAR));
        Ok(ours.map(|link| link.name).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_stay_the_same() {
        let id = "e".repeat(64);
        assert_eq!((near(&id).len(), far(&id).len()), (15, 15));
        assert_eq!(near(&id), near(&id));
        assert_ne!(near(&id), near(&"f".repeat(64)));
        assert_ne!(near(&id), far(&id));
    }
}
