//! ADD: a pod gets its interface.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::conf::Conf;
use super::environment::Environment;
use super::error::{CniError, Kind};
use super::inside;
use super::result::{CniResult, Interface, Ip, Route};
use super::router::{Refusal, Router};
use crate::control::api::types::{Addresses, ExposeRequest, Held, HoldRequest};

/// Where the kernel says whether a host forwards what is not for itself.
const FORWARDING_V4: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARDING_V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// Attaches the container (kubernetes K3). An interface of that name must not be there; of one that a
/// killed run left half made nothing is there, or the runtime's DEL has removed it.
pub(super) async fn add(environment: &Environment, conf: &Conf) -> Result<Value, CniError> {
    let namespace = inside::open(environment)?;
    let found = inside::look(&namespace)?.link(&environment.interface).await.map_err(inside::failed)?;
    if found.is_some() {
        return Err(CniError::new(
            Kind::Exists,
            format!(
                "CNI_IFNAME {}: {} has an interface of that name; DEL it first, or choose another name",
                environment.interface, environment.netns
            ),
        ));
    }
    let router = Router::new(conf.socket.clone(), conf.wait);
    let gateways = gateways(&router, conf).await?;
    let ips: Vec<IpAddr> = environment.ips.iter().chain(&conf.ips).copied().collect();
    let wanted = |gateway: &&IpNet| wants_family(&ips, &conf.subnets, gateway.addr().is_ipv4());
    let gateways: Vec<IpAddr> = gateways.iter().filter(wanted).map(IpNet::addr).collect();
    if conf.default_gateway {
        gateways.iter().try_for_each(|gateway| forward(gateway.is_ipv4()))?;
    }
    let routes = routes(conf, &gateways);
    let request = HoldRequest {
        holder: environment.holder(&conf.name),
        target: environment.netns.clone(),
        interface: environment.interface.clone(),
        addresses: ips.iter().map(ToString::to_string).collect(),
        subnets: conf.subnets.iter().map(ToString::to_string).collect(),
        routes: routes.iter().map(text).collect(),
        mtu: conf.mtu,
        mac: if conf.mac.is_empty() { environment.mac.clone() } else { conf.mac.clone() },
        hairpin: conf.hairpin,
        may_spoof: !conf.spoof_check,
        masquerade: conf.masquerade,
        // What is sent to the gateway may be for an address that the host translates.
        translated: conf.default_gateway,
    };
    let held: Held = router.post("/v1/hold", &request).await.map_err(|refusal| blame(refusal, environment))?;
    let result = result(&held, environment, conf, &gateways, routes)?;
    Ok(result.after(conf.previous.as_ref()).to_json(conf.version))
}

/// A wrong address is the fault of whoever asked for it.
fn blame(refusal: Refusal, environment: &Environment) -> CniError {
    let error = refusal.error();
    if error.kind == Kind::Config && !environment.ips.is_empty() {
        return CniError::new(Kind::Environment, format!("CNI_ARGS asks for {:?}: {}", environment.ips, error.text));
    }
    error
}

/// The host's own addresses in the network, if it is to be the pods' gateway: those it has, or one of
/// each range.
async fn gateways(router: &Router, conf: &Conf) -> Result<Vec<IpNet>, CniError> {
    if !conf.gateway {
        return Ok(Vec::new());
    }
    let exposed: Addresses = router.post("/v1/expose", &ExposeRequest::default()).await.map_err(Refusal::error)?;
    exposed.addresses.iter().map(|address| parse(address)).collect()
}

/// Whether the pod is to have an address of that family.
fn wants_family(ips: &[IpAddr], subnets: &[IpNet], v4: bool) -> bool {
    let mut named = ips.iter().copied().chain(subnets.iter().map(IpNet::addr));
    subnets.is_empty() || named.any(|address| address.is_ipv4() == v4)
}

/// The routes of the pod: those configured, by the gateway where there is one and they name none.
fn routes(conf: &Conf, gateways: &[IpAddr]) -> Vec<Route> {
    let gateway = |v4: bool| gateways.iter().copied().find(|gateway| gateway.is_ipv4() == v4);
    let mut routes: Vec<Route> = conf
        .routes
        .iter()
        .map(|route| Route { dst: route.dst.trunc(), gw: route.gw.or_else(|| gateway(route.dst.addr().is_ipv4())) })
        .collect();
    if conf.default_gateway {
        for gw in gateways {
            let dst = crate::netlink::Route::default_via(*gw).destination;
            if !routes.iter().any(|route| route.dst == dst) {
                routes.push(Route { dst, gw: Some(*gw) });
            }
        }
    }
    routes
}

fn text(route: &Route) -> String {
    match route.gw {
        Some(gw) => format!("{} via {gw}", route.dst),
        None => route.dst.to_string(),
    }
}

/// Has the host forward, as its pods' gateway must.
fn forward(v4: bool) -> Result<(), CniError> {
    let path = if v4 { FORWARDING_V4 } else { FORWARDING_V6 };
    if std::fs::read_to_string(path).is_ok_and(|value| value.trim() != "0") {
        return Ok(());
    }
    std::fs::write(path, "1").map_err(|error| {
        let text = format!("`isDefaultGateway`: this host does not forward, and {path} cannot be written: {error}");
        CniError::new(Kind::Failed, text)
    })
}

fn result(
    held: &Held,
    environment: &Environment,
    conf: &Conf,
    gateways: &[IpAddr],
    routes: Vec<Route>,
) -> Result<CniResult, CniError> {
    let mtu = Some(u32::from(held.mtu));
    let host = Interface {
        name: held.attachment.host_interface.clone(),
        mac: held.host_mac.clone(),
        mtu,
        sandbox: String::new(),
    };
    let pod = Interface {
        name: environment.interface.clone(),
        mac: held.attachment.mac.clone(),
        mtu,
        sandbox: environment.netns.clone(),
    };
    let ip = |address: &String| {
        let address = parse(address)?;
        let gateway = gateways.iter().copied().find(|gateway| gateway.is_ipv4() == address.addr().is_ipv4());
        Ok(Ip { version: None, interface: Some(1), address, gateway })
    };
    Ok(CniResult {
        interfaces: vec![host, pod],
        ips: held.attachment.addresses.iter().map(ip).collect::<Result<_, CniError>>()?,
        routes,
        dns: conf.dns.clone(),
    })
}

fn parse(address: &str) -> Result<IpNet, CniError> {
    address.parse().map_err(|_| CniError::new(Kind::Io, format!("the router gave `{address}`, which is no address")))
}
