//! Addresses and routes of interfaces, and what the host itself can be reached at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::{
    AddressMessageBuilder, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope},
    },
};
use serde::{Deserialize, Serialize};

use super::{
    Link, Mac, Netlink,
    error::{Context as _, Result, tolerate},
};

/// A route through an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to; `0.0.0.0/0` or `::/0` is the default route.
    pub destination: IpNet,
    /// Gateway; `None`: directly on the link.
    pub via: Option<IpAddr>,
}

impl Route {
    /// All IPv4 multicast goes out here, though no route of the container's says so.
    pub const MULTICAST_V4: Self = Self { destination: net_v4(Ipv4Addr::new(224, 0, 0, 0), 4), via: None };

    /// The default route.
    #[must_use]
    pub fn default_via(gateway: IpAddr) -> Self {
        let destination = match gateway {
            IpAddr::V4(_) => net_v4(Ipv4Addr::UNSPECIFIED, 0),
            IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
        };
        Self { destination, via: Some(gateway) }
    }
}

const fn net_v4(address: Ipv4Addr, length: u8) -> IpNet {
    IpNet::V4(ipnet::Ipv4Net::new_assert(address, length))
}

/// How the host would send to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteTo {
    /// The interface it would leave by.
    pub link: Link,
    /// The source address it would have.
    pub source: Option<IpAddr>,
    /// The next hop, if it is not on the link.
    pub gateway: Option<IpAddr>,
}

/// An address that another host may have, too.
const UNUSABLE: AddressHeaderFlags = AddressHeaderFlags::Tentative.union(AddressHeaderFlags::Dadfailed);

fn address_message(link: &Link, address: IpNet) -> AddressMessage {
    match address {
        IpNet::V4(net) => {
            AddressMessageBuilder::<Ipv4Addr>::new().index(link.index).address(net.addr(), net.prefix_len()).build()
        }
        IpNet::V6(net) => {
            let mut message = AddressMessageBuilder::<Ipv6Addr>::new()
                .index(link.index)
                .address(net.addr(), net.prefix_len())
                .build();
            // Addresses of the mesh are given once by its own allocator: duplicate address
            // detection would only delay the first packet by a second.
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            message
        }
    }
}

fn parse_address(message: &AddressMessage) -> Option<IpNet> {
    let pick = |want_local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) if want_local => Some(*ip),
            AddressAttribute::Address(ip) if !want_local => Some(*ip),
            _ => None,
        })
    };
    // IFA_LOCAL is the address; IFA_ADDRESS is the far end of a point-to-point link.
    let ip = pick(true).or_else(|| pick(false))?;
    IpNet::new(ip, message.header.prefix_len).ok()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// The link-local address that the kernel makes of a MAC address (RFC 4291, appendix A).
#[must_use]
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

fn route_message(link: &Link, route: &Route) -> RouteMessage {
    let scope = if route.via.is_some() { RouteScope::Universe } else { RouteScope::Link };
    match route.destination {
        IpNet::V4(net) => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(link.index)
                .scope(scope);
            match route.via {
                Some(IpAddr::V4(gateway)) => builder = builder.gateway(gateway),
                Some(IpAddr::V6(gateway)) => builder = builder.via(gateway),
                None => {}
            }
            builder.build()
        }
        IpNet::V6(net) => {
            let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(link.index);
            if let Some(IpAddr::V6(gateway)) = route.via {
                builder = builder.gateway(gateway);
            }
            builder.build()
        }
    }
}

fn is_route(found: &RouteMessage, link: &Link, route: &Route) -> bool {
    let destination = route.destination.network();
    let (mut to, mut via, mut here) = (None, None, false);
    for attribute in &found.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip_of(address),
            RouteAttribute::Gateway(address) => via = ip_of(address),
            RouteAttribute::Oif(index) => here = *index == link.index,
            _ => {}
        }
    }
    // The kernel leaves out a destination of only zeros.
    here && found.header.destination_prefix_length == route.destination.prefix_len()
        && to.map_or(destination.is_unspecified(), |to| to == destination)
        && via == route.via
}

impl Netlink {
    /// The addresses of an interface.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn addresses(&self, link: &Link) -> Result<Vec<IpNet>> {
        let messages = self.address_messages(&link.name).await?;
        let ours = messages.iter().filter(|message| message.header.index == link.index);
        Ok(ours.filter_map(parse_address).collect())
    }

    async fn address_messages(&self, subject: &str) -> Result<Vec<AddressMessage>> {
        let socket = self.socket().await;
        let request = socket.address().get().execute();
        request.try_collect().await.context(subject, "list the addresses")
    }

    /// Adds an address, usable at once (no duplicate address detection). One that is there
    /// already is fine.
    ///
    /// # Errors
    /// If the kernel refuses; for IPv6 that is so where it is disabled on the interface.
    pub async fn add_address(&self, link: &Link, address: IpNet) -> Result<()> {
        let socket = self.socket().await;
        let mut request = socket.address().add(link.index, address.addr(), address.prefix_len());
        *request.message_mut() = address_message(link, address);
        tolerate(request.execute().await, &[libc::EEXIST])
            .context(&format!("{} ({address})", link.name), "add the address")
    }

    /// Removes an address, and only this one. One that is gone already is fine.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn del_address(&self, link: &Link, address: IpNet) -> Result<()> {
        // With the first IPv4 address of a subnet the kernel removes all others of it, unless it is told not to.
        let before = if address.addr().is_ipv4() { self.addresses(link).await? } else { Vec::new() };
        if before.len() > 1 {
            self.sysctl_if_possible("ipv4", &link.name, "promote_secondaries", "1");
        }
        {
            let socket = self.socket().await;
            let request = socket.address().del(address_message(link, address));
            tolerate(request.execute().await, &[libc::EADDRNOTAVAIL, libc::ENODEV])
                .context(&format!("{} ({address})", link.name), "remove the address")?;
        }
        if before.len() > 1 {
            // It cannot be told where /proc/sys is not to be written.
            let after = self.addresses(link).await?;
            for lost in before.into_iter().filter(|one| *one != address && !after.contains(one)) {
                self.add_address(link, lost).await?;
            }
        }
        Ok(())
    }

    /// Gives an interface the link-local address that follows from its hardware address, or takes it away. Without
    /// one the kernel asks for no IPv6 neighbour there, but for packets from an address of the same interface.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn set_link_local(&self, link: &Link, on: bool) -> Result<()> {
        let Some(mac) = link.mac else { return Ok(()) };
        let address = IpNet::V6(ipnet::Ipv6Net::new_assert(link_local(mac), 64));
        if on { self.add_address(link, address).await } else { self.del_address(link, address).await }
    }

    /// Adds a route, or replaces the one to the same destination.
    ///
    /// # Errors
    /// If the gateway cannot be reached or the kernel refuses.
    pub async fn add_route(&self, link: &Link, route: &Route) -> Result<()> {
        let socket = self.socket().await;
        let request = socket.route().add(route_message(link, route)).replace();
        let result = request.execute().await;
        result.context(&format!("{} ({})", link.name, route.destination), "add the route")
    }

    /// Whether there is this route through the interface, whatever others there are.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn has_route(&self, link: &Link, route: &Route) -> Result<bool> {
        let mut query = RouteMessage::default();
        query.header.address_family =
            if route.destination.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let routes = self.routes(query, &link.name).await?;
        Ok(routes.iter().any(|found| is_route(found, link, route)))
    }

    async fn routes(&self, query: RouteMessage, subject: &str) -> Result<Vec<RouteMessage>> {
        let socket = self.socket().await;
        let request = socket.route().get(query).execute();
        request.try_collect().await.context(subject, "list the routes")
    }

    /// Removes a route. One that is gone already is fine.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn del_route(&self, link: &Link, route: &Route) -> Result<()> {
        let socket = self.socket().await;
        let request = socket.route().del(route_message(link, route));
        tolerate(request.execute().await, &[libc::ESRCH, libc::ENODEV])
            .context(&format!("{} ({})", link.name, route.destination), "remove the route")
    }

    /// Tells the kernel for good which hardware address a neighbour has, so that it never asks.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn set_neighbour(&self, link: &Link, address: IpAddr, mac: Mac) -> Result<()> {
        let socket = self.socket().await;
        let request = socket.neighbours().add(link.index, address).link_layer_address(&mac);
        let result = request.replace().execute().await;
        result.context(&format!("{} ({address})", link.name), "set the neighbour")
    }

    /// The addresses at which other hosts may reach this one: of all interfaces that are up,
    /// without loopback, link-local and still tentative addresses, and without the interfaces
    /// named in `except` (our own bridge).
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn local_addresses(&self, except: &[&str]) -> Result<Vec<IpNet>> {
        let links = self.links().await?;
        let usable = |index: u32| {
            links
                .iter()
                .any(|link| link.index == index && link.up && !link.loopback && !except.contains(&link.name.as_str()))
        };
        let messages = self.address_messages("this host").await?;
        let mut found: Vec<IpNet> = messages
            .iter()
            .filter(|message| usable(message.header.index))
            .filter(|message| message.header.scope != AddressScope::Host)
            .filter(|message| !message.header.flags.intersects(UNUSABLE))
            .filter_map(parse_address)
            .filter(|net| !is_link_local(net.addr()) && !net.addr().is_loopback())
            .collect();
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// How the host would send to `destination`; `None` if it cannot.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn route_to(&self, destination: IpAddr) -> Result<Option<RouteTo>> {
        let subject = destination.to_string();
        let message = match destination {
            IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build(),
            IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, 128).build(),
        };
        let socket = self.socket().await;
        let found = Box::pin(socket.route().get(message).execute()).try_next().await;
        drop(socket);
        let answer = match found.context(&subject, "look up the route") {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(None),
            Err(error) => {
                return match error.errno() {
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES) => Ok(None),
                    _ => Err(error),
                };
            }
        };
        self.parse_route(answer).await
    }

    async fn parse_route(&self, answer: RouteMessage) -> Result<Option<RouteTo>> {
        let (mut index, mut source, mut gateway) = (None, None, None);
        for attribute in answer.attributes {
            match attribute {
                RouteAttribute::Oif(oif) => index = Some(oif),
                RouteAttribute::PrefSource(address) => source = ip_of(&address),
                RouteAttribute::Gateway(address) => gateway = ip_of(&address),
                _ => {}
            }
        }
        let Some(index) = index else { return Ok(None) };
        let link = self.link_by_index(index).await?;
        Ok(link.map(|link| RouteTo { link, source, gateway }))
    }

    /// MTU of the interface by which the host would send to `destination`; `None` if there is no
    /// route.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn mtu_towards(&self, destination: IpAddr) -> Result<Option<u32>> {
        Ok(self.route_to(destination).await?.map(|route| route.link.mtu))
    }

    /// The interface that has the IPv4 (or else the IPv6) default route.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn default_route_link(&self) -> Result<Option<Link>> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessage::default();
            query.header.address_family = family;
            let routes = self.routes(query, "default route").await?;
            let oif = routes.iter().filter(|route| route.header.destination_prefix_length == 0).find_map(|route| {
                route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                })
            });
            if let Some(index) = oif
                && let Some(link) = self.link_by_index(index).await?
                && !link.loopback
            {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_is_the_one_that_the_kernel_makes() {
        assert_eq!(link_local([0x02, 0x77, 10, 32, 0, 5]).to_string(), "fe80::77:aff:fe20:5");
        assert_eq!(link_local([0x52, 0x54, 0, 0x12, 0x34, 0x56]).to_string(), "fe80::5054:ff:fe12:3456");
    }
}
