//! What containers are called: only the engine knows, and tells whoever listens.
//!
//! ```text
//!   engine ─ GET /events ─► a container has joined, or has another name ─► GET /containers/ID ─► guests
//! ```
//!
//! Names are not written down: an engine that is there tells them again.

use std::time::Duration;

use mesh_proto::wire::names::Name;
use tokio::task::JoinSet;

use super::engine::{Called, Engine};
use super::port::near;
use super::{Docker, Ports};
use crate::control::guests::Guest;

/// How soon an engine that went is listened to again.
const RETRY: Duration = Duration::from_secs(1);

impl<P: Ports> Docker<P> {
    /// Listens for ever.
    pub async fn learn_names(self) {
        let Some(engine) = self.inner.engine.clone() else { return };
        loop {
            if let Err(why) = self.listen(&engine).await {
                tracing::debug!(why, "Docker does not say what its containers are called");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Until the engine goes.
    async fn listen(&self, engine: &Engine) -> Result<(), String> {
        // Listened to before the first look, so that nothing falls between the two.
        let mut events = engine.events().await?;
        let mut looks = JoinSet::new();
        let look = |looks: &mut JoinSet<()>, container: String| {
            // The engine does not answer while a container starts: one must not make others wait.
            looks.spawn(self.clone().look_at(engine.clone(), container));
        };
        for network in self.inner.book.networks() {
            for container in engine.containers(&network.id).await? {
                look(&mut looks, container);
            }
        }
        loop {
            tokio::select! {
                event = events.next() => match event? {
                    Some(event) => event.container().into_iter().for_each(|container| look(&mut looks, container)),
                    None => return Ok(()),
                },
                Some(_) = looks.join_next() => {}
            }
        }
    }

    async fn look_at(self, engine: Engine, container: String) {
        match engine.called(&container).await {
            Ok(Some(called)) => {
                self.shield(&called).await;
                self.enter(called);
            }
            // It has gone meanwhile.
            Ok(None) => {}
            Err(why) => tracing::warn!(why, container, "Docker does not say what it is called: it has no name"),
        }
    }

    /// Makes the container's interfaces that are ours deaf to who calls himself a router: the engine has set them
    /// up by the kernel's defaults, which are for hosts that trust their link.
    async fn shield(&self, called: &Called) {
        let ours = called.endpoints.keys().filter(|id| self.inner.book.endpoint(id).is_some());
        for id in ours.filter(|_| called.pid != 0) {
            if let Err(error) = self.inner.ports.shield(id, called.pid).await {
                tracing::debug!(%error, "a container may take router advertisements");
            }
        }
    }

    /// Names the container's endpoints that are ours.
    pub(super) fn enter(&self, called: Called) {
        // Some may not do for a name in the mesh: the container is connected all the same.
        let own: Vec<Name> = called.names.iter().filter_map(|name| name.parse().ok()).collect();
        for (id, aliases) in called.endpoints {
            let Some(endpoint) = self.inner.book.endpoint(&id) else { continue };
            let mut names = own.clone();
            names.extend(aliases.iter().filter_map(|name| name.parse().ok()));
            names.sort();
            names.dedup();
            let addresses = endpoint.addresses.iter().map(ipnet::IpNet::addr).collect();
            let services = called.services.clone();
            self.inner.guests.enter(&near(&id), Guest { names, addresses, services });
            // It was removed while it was asked for.
            if self.inner.book.endpoint(&id).is_none() {
                self.inner.guests.strike(&near(&id));
            }
        }
    }
}
