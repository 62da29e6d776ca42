//! DEL: what ADD made goes, whatever of it is left.

use std::time::Duration;

use super::conf::Conf;
use super::environment::Environment;
use super::error::CniError;
use super::inside;
use super::router::{Refusal, Router};
use crate::control::api::types::{Released, UnholdRequest};
use crate::netlink::Link;
use crate::netlink::container::{check_interface, host_interface};

/// How long a pod that ends waits for a router that is not there.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Detaches the container. One that is not attached, or whose namespace has gone, is fine
/// (kubernetes K4).
pub(super) async fn delete(environment: &Environment, conf: &Conf) -> Result<(), CniError> {
    let router = Router::new(conf.socket.clone(), conf.wait.min(WAIT_MAX));
    let request = UnholdRequest { holder: environment.holder(&conf.name) };
    match router.post::<Released>("/v1/unhold", &request).await {
        Ok(_) => Ok(()),
        // A pod must be able to end without the router. Once its interface is gone, the router frees its
        // addresses when it comes back, and does not make it again.
        Err(Refusal::Absent(_)) => by_hand(environment, conf, &request.holder).await,
        Err(refusal) => Err(refusal.error()),
    }
}

async fn by_hand(environment: &Environment, conf: &Conf, holder: &str) -> Result<(), CniError> {
    let host = inside::host()?;
    // What the runtime knows leads there at once; the holder's name is with the interface in any case.
    let namespace = if environment.netns.is_empty() { None } else { inside::open(environment).ok() };
    let named = namespace.map(|namespace| host_interface(&namespace, &environment.interface));
    let ends = conf.previous.iter().flat_map(|previous| &previous.interfaces);
    let ends = ends.filter(|end| end.sandbox.is_empty() && check_interface(&end.name).is_ok());
    for name in named.into_iter().chain(ends.map(|end| end.name.clone())) {
        if let Some(end) = host.link(&name).await.map_err(inside::failed)?.filter(|end| is_of(end, holder)) {
            return host.delete_link(&end.name).await.map(drop).map_err(inside::failed);
        }
    }
    let links = host.links().await.map_err(inside::failed)?;
    match links.iter().find(|end| is_of(end, holder)) {
        Some(end) => host.delete_link(&end.name).await.map(drop).map_err(inside::failed),
        None => Ok(()),
    }
}

/// Whether it is the end on the bridge that the router made for the holder.
fn is_of(end: &Link, holder: &str) -> bool {
    end.kind.as_deref() == Some("veth") && end.alias.as_deref() == Some(holder)
}
