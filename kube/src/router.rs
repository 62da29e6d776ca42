//! The router's API, as far as it is needed here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use weft::control::api::REQUEST_TIMEOUT;
use weft::control::api::types::{ErrorBody, Ipam, Reloaded, RemovedPeer, Status};
use weft::control::http::request;

use crate::roster::{Seen, View};

/// How long a question may take.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The router of this node.
#[derive(Debug, Clone)]
pub struct Router {
    socket: PathBuf,
}

impl Router {
    /// The router whose API socket this is.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Who is there.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn view(&self) -> anyhow::Result<View> {
        let status: Status = self.ask(Method::GET, "/v1/status", None::<&()>, READ_TIMEOUT).await?;
        let ipam: Ipam = self.ask(Method::GET, "/v1/ipam", None::<&()>, READ_TIMEOUT).await?;
        Ok(view(&status, &ipam))
    }

    /// Has it read its configuration again.
    ///
    /// # Errors
    /// If it does not answer, or refuses.
    pub async fn reload(&self) -> anyhow::Result<Reloaded> {
        self.ask(Method::POST, "/v1/reload", Some(&BTreeMap::<(), ()>::new()), REQUEST_TIMEOUT).await
    }

    /// Removes a peer, by its id, from the address space for good.
    ///
    /// # Errors
    /// If it does not answer, or refuses.
    pub async fn remove(&self, id: &str) -> anyhow::Result<RemovedPeer> {
        let body = BTreeMap::from([("peer", id)]);
        self.ask(Method::POST, "/v1/peers/remove", Some(&body), REQUEST_TIMEOUT).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        timeout: Duration,
    ) -> anyhow::Result<T> {
        let body = body.map(serde_json::to_vec).transpose()?;
        let (status, answer) = request(&self.socket, method, path, body, timeout).await?;
        if status != StatusCode::OK {
            match serde_json::from_slice::<ErrorBody>(&answer) {
                Ok(body) => bail!("the router refused {path}: {}", body.error),
                Err(_) => bail!("the router refused {path} with {status}"),
            }
        }
        serde_json::from_slice(&answer)
            .with_context(|| format!("the router's answer to {path} is not understood (another version?)"))
    }
}

fn view(status: &Status, ipam: &Ipam) -> View {
    let mut peers: BTreeMap<&str, Seen> = BTreeMap::new();
    for peer in &status.peers {
        let reachable = peer.state == "established";
        let seen = Seen { id: peer.id.clone(), name: peer.name.clone(), reachable, owns: false };
        peers.insert(&peer.id, seen);
    }
    for owner in &ipam.peers {
        let fresh = || Seen { id: owner.id.clone(), name: owner.name.clone(), reachable: false, owns: false };
        let seen = peers.entry(&owner.id).or_insert_with(fresh);
        seen.reachable |= owner.reachable;
        seen.owns = owner.owned > 0 && !owner.removed;
    }
    View { me: status.peer.id.clone(), ready: status.ready && ipam.ready, peers: peers.into_values().collect() }
}
