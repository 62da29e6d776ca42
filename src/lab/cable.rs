//! Hosts joined by cables: the underlay of measurements.
//!
//! ```text
//!   host1 │ eth0 ── veth ── eth0 │ host2        every cable is a network of its own:
//!                           eth1 │ host2        10.98.CABLE.1 and 10.98.CABLE.2, /24
//!                            └── veth ── eth0 │ host3
//! ```
//!
//! With the offloads off, every packet is cut to size, checksummed and paid for, as on a plain
//! network card whose driver does not even merge what it receives; with them on, segments of 64 KiB
//! pass whole, as between virtual machines.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use ipnet::IpNet;

use super::{Directory, sys};
use crate::netlink::{NetNs, Netlink, Result, VethPeer};

/// What the lab shall be.
#[derive(Debug, Clone)]
pub struct CableConfig {
    /// Number of hosts.
    pub hosts: usize,
    /// Pairs of hosts that a cable joins, at most 200.
    pub cables: Vec<(usize, usize)>,
    /// MTU of all interfaces.
    pub mtu: u32,
    /// What the interfaces do by themselves.
    pub offloads: Offloads,
}

/// What an interface does for the packets that it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offloads {
    /// Nothing: every packet is cut, checksummed, and received by itself.
    None,
    /// It merges what it receives (GRO), as the kernel does for every card.
    Merging,
    /// It merges, and leaves segmentation and checksums open.
    All,
}

/// Hosts joined by veth pairs. Dropping it ends the namespaces and deletes the directory.
#[derive(Debug)]
pub struct CableLab {
    hosts: Vec<NetNs>,
    dir: Directory,
}

impl CableLab {
    /// Makes the hosts and joins them.
    ///
    /// # Errors
    /// Without the right to make namespaces.
    pub fn new(config: &CableConfig) -> io::Result<Self> {
        let hosts: Vec<NetNs> = (0..config.hosts)
            .map(|index| {
                let namespace = NetNs::create(format!("host{}", index + 1))?;
                Netlink::block_on_in(&namespace, async |netlink: Netlink| {
                    let loopback = netlink.need_link("lo").await?;
                    netlink.set_up(&loopback).await
                })?;
                Ok(namespace)
            })
            .collect::<Result<_>>()
            .map_err(io::Error::other)?;
        for cable in 0..config.cables.len() {
            join(&hosts, config, cable)?;
        }
        Ok(Self { hosts, dir: Directory::new()? })
    }

    /// The namespace of a host.
    ///
    /// # Panics
    /// If there is no host of that index: a mistake of the caller.
    #[must_use]
    pub fn host(&self, index: usize) -> &NetNs {
        &self.hosts[index]
    }

    /// All hosts.
    #[must_use]
    pub fn hosts(&self) -> &[NetNs] {
        &self.hosts
    }

    /// Directory of the lab: logs, sockets and data of what runs in it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir.path
    }

    /// Address at the first (0) or second (1) end of a cable.
    #[must_use]
    pub fn address(cable: usize, end: usize) -> Ipv4Addr {
        let number = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
        Ipv4Addr::new(10, 98, number(cable), number(end + 1))
    }
}

/// Lays one cable between its two hosts.
fn join(hosts: &[NetNs], config: &CableConfig, cable: usize) -> io::Result<()> {
    let missing = || io::Error::new(io::ErrorKind::InvalidInput, format!("cable {cable} ends at no host"));
    let &(near, far) = config.cables.get(cable).ok_or_else(missing)?;
    let name = |host: usize| {
        let before = config.cables.iter().take(cable).filter(|&&(a, b)| a == host || b == host);
        format!("eth{}", before.count())
    };
    let names = [name(near), name(far)];
    let (near, far) = (hosts.get(near).ok_or_else(missing)?, hosts.get(far).ok_or_else(missing)?);
    let number = u8::try_from(cable).map_err(|_| missing())?;
    let peer = VethPeer { name: &names[1], mac: [0x02, 0x69, 0, 0, number, 2], namespace: Some(far) };
    Netlink::block_on_in(near, async |netlink: Netlink| {
        let link = netlink.add_veth(&names[0], config.mtu, &peer).await?;
        netlink.set_mac(&link, [0x02, 0x69, 0, 0, number, 1]).await
    })
    .map_err(io::Error::other)?;
    for (end, (host, name)) in [near, far].into_iter().zip(&names).enumerate() {
        host.run(|| sys::set_offloads(name, config.offloads)).map_err(io::Error::other)??;
        Netlink::block_on_in(host, async |netlink: Netlink| {
            let link = netlink.need_link(name).await?;
            // Nothing unasked on the cable while something is measured.
            netlink.sysctl("ipv6", name, "disable_ipv6", "1").ok();
            let address = IpNet::new_assert(IpAddr::V4(CableLab::address(cable, end)), 24);
            netlink.add_address(&link, address).await?;
            netlink.set_up(&link).await
        })
        .map_err(io::Error::other)?;
    }
    Ok(())
}
