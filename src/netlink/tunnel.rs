//! The kernel's own tunnel, point to point: what measurements compare with.

use std::net::Ipv4Addr;

use rtnetlink::LinkVxlan;

use super::{
    Link, Netlink,
    error::{Context as _, Result},
};

/// UDP port of VXLAN (RFC 7348).
const VXLAN_PORT: u16 = 4789;

impl Netlink {
    /// Creates a VXLAN device that sends all it does not know better to one other host, and
    /// learns from what comes back.
    ///
    /// # Errors
    /// If the name is taken, the remote cannot be reached, or the kernel has no VXLAN.
    pub async fn add_vxlan(&self, name: &str, vni: u32, remote: Ipv4Addr, mtu: u32) -> Result<Link> {
        let message = LinkVxlan::new(name, vni).remote(remote).port(VXLAN_PORT).mtu(mtu).build();
        self.socket().await.link().add(message).execute().await.context(name, "create the VXLAN device")?;
        self.need_link(name).await
    }
}
