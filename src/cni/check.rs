//! CHECK: whether what is there is what ADD answered.

use super::conf::Conf;
use super::environment::Environment;
use super::error::{CniError, Kind};
use super::inside;
use super::result::{CniResult, Interface, Ip};
use super::router::{Refusal, Router};
use crate::control::api::types::Attachment;
use crate::control::attach::mac_text;
use crate::netlink::{Link, Netlink, Route};

/// Compares `prevResult` with the namespace, the bridge and what the router holds. What other plugins
/// of the chain have added is theirs to check (kubernetes K5).
pub(super) async fn check(environment: &Environment, conf: &Conf) -> Result<(), CniError> {
    let Some(previous) = &conf.previous else {
        return Err(CniError::key("prevResult", "CHECK needs what ADD answered"));
    };
    let ours = |one: &&Interface| one.name == environment.interface && one.sandbox == environment.netns;
    let place = previous.interfaces.iter().position(|one| ours(&one)).ok_or_else(|| {
        differs(format!("prevResult has no interface {} in {}", environment.interface, environment.netns))
    })?;
    let ips: Vec<&Ip> = previous.ips.iter().filter(|ip| ip.interface.is_none_or(|at| at == place)).collect();
    let router = Router::new(conf.socket.clone(), conf.wait);
    let attached: Vec<Attachment> = router.get("/v1/ps").await.map_err(Refusal::error)?;
    let holder = environment.holder(&conf.name);
    let attachment = attached
        .iter()
        .find(|one| one.owner == holder)
        .ok_or_else(|| differs(format!("the router holds nothing for `{holder}`: make the pod anew")))?;
    if let Some(ip) = ips.iter().find(|ip| !attachment.addresses.contains(&ip.address.to_string())) {
        return Err(differs(format!("the router does not hold {} for `{holder}`", ip.address)));
    }
    let namespace = inside::open(environment)?;
    let inside = inside::look(&namespace)?;
    let link = interface(&inside, &environment.interface, &environment.netns, &previous.interfaces[place]).await?;
    let there = inside.addresses(&link).await.map_err(inside::failed)?;
    if let Some(ip) = ips.iter().find(|ip| !there.contains(&ip.address)) {
        return Err(differs(format!("{} of {} does not have {}", link.name, environment.netns, ip.address)));
    }
    routes(&inside, &link, previous, environment).await?;
    let host = inside::host()?;
    let known = previous.interfaces.iter().find(|one| one.sandbox.is_empty() && one.name == attachment.host_interface);
    let none = Interface::default();
    let end = interface(&host, &attachment.host_interface, "the host", known.unwrap_or(&none)).await?;
    if end.master.is_none() || end.peer != Some(link.index) {
        return Err(differs(format!("{} is not on the bridge, or not the other end of {}", end.name, link.name)));
    }
    Ok(())
}

fn differs(text: String) -> CniError {
    CniError::new(Kind::Differs, text)
}

/// An interface that is there, up, and has the hardware address that was told.
async fn interface(netlink: &Netlink, name: &str, place: &str, known: &Interface) -> Result<Link, CniError> {
    let found = netlink.link(name).await.map_err(inside::failed)?;
    let link = found.ok_or_else(|| differs(format!("{place} has no interface {name}")))?;
    if !link.up {
        return Err(differs(format!("{name} of {place} is down")));
    }
    let mac = link.mac.map(mac_text).unwrap_or_default();
    if !known.mac.is_empty() && !known.mac.eq_ignore_ascii_case(&mac) {
        return Err(differs(format!("{name} of {place} has the hardware address {mac}, not {}", known.mac)));
    }
    Ok(link)
}

/// Each route that leads through this interface by a gateway in its network.
async fn routes(
    inside: &Netlink,
    link: &Link,
    previous: &CniResult,
    environment: &Environment,
) -> Result<(), CniError> {
    for route in &previous.routes {
        let ours = |ip: &Ip| route.gw.is_some_and(|gw| ip.address.contains(&gw));
        if !previous.ips.iter().any(ours) {
            continue;
        }
        let wanted = Route { destination: route.dst, via: route.gw };
        if !inside.has_route(link, &wanted).await.map_err(inside::failed)? {
            let gw = route.gw.map(|gw| gw.to_string()).unwrap_or_default();
            return Err(differs(format!("{} has no route to {} via {gw}", environment.netns, route.dst)));
        }
    }
    Ok(())
}
