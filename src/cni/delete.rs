//! DEL: what ADD made goes, whatever of it is left.

use std::time::Duration;

use super::conf::Conf;
use super::environment::Environment;
use super::error::CniError;
use super::inside;
use super::router::{Refusal, Router};
use crate::control::api::types::{Released, UnholdRequest};

/// How long a pod that ends waits for a router that is not there.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// How the host ends begin that the router makes.
const HOST_PREFIX: &str = "weft-";

/// Detaches the container. One that is not attached, or whose namespace has gone, is fine
/// (kubernetes K4).
pub(super) async fn delete(environment: &Environment, conf: &Conf) -> Result<(), CniError> {
    let router = Router::new(conf.socket.clone(), conf.wait.min(WAIT_MAX));
    let request = UnholdRequest { holder: environment.holder(&conf.name) };
    match router.post::<Released>("/v1/unhold", &request).await {
        Ok(_) => Ok(()),
        // A pod must be able to end without the router. Once its interface is gone, the router frees its
        // addresses when it comes back.
        Err(Refusal::Absent(_)) => by_hand(environment, conf).await,
        Err(refusal) => Err(refusal.error()),
    }
}

async fn by_hand(environment: &Environment, conf: &Conf) -> Result<(), CniError> {
    if !environment.netns.is_empty()
        && let Ok(namespace) = inside::open(environment)
    {
        let inside = inside::look(&namespace)?;
        let found = inside.link(&environment.interface).await.map_err(inside::failed)?;
        if found.is_some_and(|link| link.kind.as_deref() == Some("veth")) {
            inside.delete_link(&environment.interface).await.map_err(inside::failed)?;
        }
        return Ok(());
    }
    // The namespace cannot be named; the other end can, if the runtime remembers it.
    let host = inside::host()?;
    let ends = conf.previous.iter().flat_map(|previous| &previous.interfaces);
    for end in ends.filter(|end| end.sandbox.is_empty() && end.name.starts_with(HOST_PREFIX)) {
        let found = host.link(&end.name).await.map_err(inside::failed)?;
        if found.is_some_and(|link| link.kind.as_deref() == Some("veth")) {
            host.delete_link(&end.name).await.map_err(inside::failed)?;
        }
    }
    Ok(())
}
