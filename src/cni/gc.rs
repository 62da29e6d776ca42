//! GC: what the runtime no longer knows of is released.

use std::collections::BTreeSet;

use super::conf::{Attachment, Conf};
use super::environment::{Environment, holders_of};
use super::error::CniError;
use super::router::{Refusal, Router};
use crate::control::api::types::{self, Ipam, Released, UnholdRequest};

/// Releases what this network's holders hold, but for those that are named. Everything is tried; what
/// failed is told at the end (kubernetes K7).
pub(super) async fn gc(conf: &Conf) -> Result<(), CniError> {
    let Some(valid) = &conf.valid else {
        let why = "GC needs the list of what is to stay; without it nothing is released";
        return Err(CniError::key("cni.dev/valid-attachments", why));
    };
    let router = Router::new(conf.socket.clone(), conf.wait);
    let attached: Vec<types::Attachment> = router.get("/v1/ps").await.map_err(Refusal::error)?;
    // An address may have been given to one whose interface was never made.
    let ipam: Ipam = router.get("/v1/ipam").await.map_err(Refusal::error)?;
    let owners = attached.into_iter().map(|one| one.owner);
    let owners = owners.chain(ipam.allocations.into_iter().map(|one| one.owner));
    let mut failures = Vec::new();
    for holder in stale(&conf.name, valid, owners) {
        let request = UnholdRequest { holder: holder.clone() };
        // Each with the whole patience: one that is slow does not take it from the others.
        let router = Router::new(conf.socket.clone(), conf.wait);
        if let Err(refusal) = router.post::<Released>("/v1/unhold", &request).await {
            failures.push(refusal.error());
        }
    }
    match failures.first() {
        None => Ok(()),
        Some(first) => {
            let texts: Vec<&str> = failures.iter().map(|failure| failure.text.as_str()).collect();
            Err(CniError::new(first.kind, format!("{} are left: {}", failures.len(), texts.join("; "))))
        }
    }
}

/// The holders of a network that are not named.
pub(super) fn stale(network: &str, valid: &[Attachment], owners: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    let name = |one: &Attachment| {
        let Attachment { container, interface } = one.clone();
        Environment { container, interface, ..Environment::default() }.holder(network)
    };
    let valid: BTreeSet<String> = valid.iter().map(name).collect();
    let ours = holders_of(network);
    owners.into_iter().filter(|owner| owner.starts_with(&ours) && !valid.contains(owner)).collect()
}
