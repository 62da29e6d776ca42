//! Hosts and containers: namespaces with the interfaces they need.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
    path::PathBuf,
    thread::{self, JoinHandle},
};

use ipnet::IpNet;

use super::{
    LabConfig, nat_public, sys,
    wire::{Port, host_v6},
};
use crate::netlink::{Link, Mac, NetNs, Netlink, NetlinkError, Result, Route, netns};

/// Name of a host's interface to the underlay.
pub(super) const UPLINK: &str = "eth0";

/// A host: a namespace with one interface to the wire.
#[derive(Debug)]
pub struct Host {
    namespace: NetNs,
    index: usize,
    name: String,
    mac: Mac,
    v4: Ipv4Addr,
    nat: Option<usize>,
}

/// How a host will be addressed; made for all hosts before the first is built, since each is told
/// its neighbours.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    index: usize,
    mac: Mac,
    v4: Ipv4Addr,
    nat: Option<usize>,
}

pub(super) fn switch_mac() -> Mac {
    [0x02, 0x67, 0xff, 0xff, 0xff, 0xff]
}

pub(super) fn gateway_mac(nat: usize) -> Mac {
    let [a, b] = u16::try_from(nat).unwrap_or(u16::MAX).to_be_bytes();
    [0x02, 0x67, 0, 0, a, b]
}

fn gateway(nat: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, u8::try_from(nat + 1).unwrap_or(0), 1)
}

pub(super) fn plan(config: &LabConfig) -> Vec<Plan> {
    (0..config.hosts)
        .map(|index| {
            let number = u8::try_from(index + 1).unwrap_or(0);
            let behind = config.nats.iter().enumerate().find_map(|(nat, group)| {
                let place = group.hosts.iter().position(|&host| host == index)?;
                Some((nat, u8::try_from(place + 2).unwrap_or(0)))
            });
            let v4 = match behind {
                None => Ipv4Addr::new(10, 99, 0, number),
                Some((nat, place)) => {
                    let [a, b, c, _] = gateway(nat).octets();
                    Ipv4Addr::new(a, b, c, place)
                }
            };
            let mac = [0x02, 0x68, 0, 0, 0, number];
            Plan { index, mac, v4, nat: behind.map(|(nat, _)| nat) }
        })
        .collect()
}

/// Makes one host. IPv6 is given to hosts that are behind no translator: it has no use for one.
pub(super) fn build(plan: &Plan, all: &[Plan], config: &LabConfig) -> Result<(Host, Port)> {
    let name = format!("host{}", plan.index + 1);
    let namespace = NetNs::create(&name)?;
    let open = || -> io::Result<OwnedFd> { sys::open_tap(UPLINK) };
    let tap =
        namespace.run(open)?.map_err(|error| NetlinkError::new(&name, "make the interface to the wire", error))?;
    Netlink::block_on_in(&namespace, async |netlink: Netlink| {
        let loopback = netlink.need_link("lo").await?;
        netlink.set_up(&loopback).await?;
        let link = netlink.need_link(UPLINK).await?;
        // No router and no duplicate is to be expected; without these, nothing unasked is sent.
        netlink.sysctl("ipv6", UPLINK, "accept_ra", "0").ok();
        netlink.sysctl("ipv6", UPLINK, "addr_gen_mode", "1").ok();
        netlink.set_mac(&link, plan.mac).await?;
        netlink.set_mtu(&link, config.mtu).await?;
        netlink.set_up(&link).await?;
        address(&netlink, &link, plan).await?;
        introduce(&netlink, &link, plan, all, config).await
    })?;
    let port = Port { tap, mac: plan.mac, v4: plan.v4, nat: plan.nat };
    let Plan { index, mac, v4, nat } = *plan;
    Ok((Host { namespace, index, name, mac, v4, nat }, port))
}

async fn address(netlink: &Netlink, link: &Link, plan: &Plan) -> Result<()> {
    let length = if plan.nat.is_some() { 24 } else { 16 };
    let v4 = IpNet::new_assert(IpAddr::V4(plan.v4), length);
    netlink.add_address(link, v4).await?;
    match plan.nat {
        Some(nat) => {
            let route = Route::default_via(IpAddr::V4(gateway(nat)));
            netlink.add_route(link, &route).await
        }
        None => netlink.add_address(link, IpNet::new_assert(host_v6(plan.index), 64)).await,
    }
}

/// Tells the host's kernel all its neighbours, so that a cut looks as it does on routed networks:
/// silence, and not "no route to host" from its own kernel.
async fn introduce(netlink: &Netlink, link: &Link, plan: &Plan, all: &[Plan], config: &LabConfig) -> Result<()> {
    for other in all.iter().filter(|other| other.index != plan.index && other.nat == plan.nat) {
        netlink.set_neighbour(link, IpAddr::V4(other.v4), other.mac).await?;
        if other.nat.is_none() {
            netlink.set_neighbour(link, host_v6(other.index), other.mac).await?;
        }
    }
    match plan.nat {
        Some(nat) => {
            netlink.set_neighbour(link, IpAddr::V4(gateway(nat)), gateway_mac(nat)).await?;
        }
        None => {
            for nat in 0..config.nats.len() {
                let public = IpAddr::V4(nat_public(nat));
                netlink.set_neighbour(link, public, gateway_mac(nat)).await?;
            }
        }
    }
    Ok(())
}

impl Host {
    /// Its place in the lab.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its name: "host1" for index 0.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &NetNs {
        &self.namespace
    }

    /// Hardware address of its interface to the wire.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Its IPv4 address on the underlay.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address on the underlay; none that works if it is behind a translator.
    #[must_use]
    pub fn v6(&self) -> IpAddr {
        host_v6(self.index)
    }

    /// The translator it is behind.
    #[must_use]
    pub fn nat(&self) -> Option<usize> {
        self.nat
    }

    /// Changes the MTU of its interface to the wire.
    ///
    /// # Errors
    /// If the kernel refuses the value.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        Netlink::block_on_in(&self.namespace, async |netlink: Netlink| {
            let link = netlink.need_link(UPLINK).await?;
            netlink.set_mtu(&link, mtu).await
        })
    }
}

/// A container: a namespace with nothing in it but loopback, until a router attaches it.
#[derive(Debug)]
pub struct Container {
    namespace: NetNs,
}

impl Container {
    /// Makes one. `label` names it in messages.
    ///
    /// # Errors
    /// Without the right to make namespaces.
    pub fn new(label: &str) -> Result<Self> {
        let namespace = NetNs::create(label)?;
        Netlink::block_on_in(&namespace, async |netlink: Netlink| {
            let loopback = netlink.need_link("lo").await?;
            netlink.set_up(&loopback).await
        })?;
        Ok(Self { namespace })
    }

    /// One that somebody else made, by a process in it.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn of_process(pid: u32) -> Result<Self> {
        Ok(Self { namespace: NetNs::from_pid(pid)? })
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &NetNs {
        &self.namespace
    }

    /// How it is named.
    #[must_use]
    pub fn label(&self) -> &str {
        self.namespace.label()
    }

    /// What `weft attach` is told.
    #[must_use]
    pub fn target(&self) -> PathBuf {
        self.namespace.path()
    }

    /// The interface of that name inside, if there is one.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn link(&self, name: &str) -> Result<Option<Link>> {
        Netlink::block_on_in(&self.namespace, async |netlink: Netlink| netlink.link(name).await)
    }

    /// Runs a closure inside and waits for it.
    ///
    /// # Panics
    /// If the namespace cannot be entered, which was tried when it was made; and as the closure.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self.namespace.run(work) {
            Ok(value) => value,
            Err(error) => panic!("{error}"),
        }
    }

    /// Starts a thread inside.
    ///
    /// # Errors
    /// If the thread cannot be started. The thread's own result is an error if it could not enter.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<JoinHandle<io::Result<T>>> {
        let namespace = self.namespace.try_clone().map_err(io::Error::other)?;
        thread::Builder::new().name(self.label().to_owned()).spawn(move || {
            netns::enter(std::os::fd::AsFd::as_fd(&namespace))?;
            work()
        })
    }
}
