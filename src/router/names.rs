//! The names of the mesh in the router's loop, and as the name server reads them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use mesh_proto::control::names::{Names, Output};
use mesh_proto::id::{Incarnation, PeerId};
use mesh_proto::wire::names::Name;
use mesh_proto::wire::services::NameRecords;

use super::core::Core;
use super::drain::CHANNEL_NAMES;

/// What is known of names. The loop changes it, everybody may read it: a question must not wait
/// for the loop. Clones share it.
#[derive(Debug, Clone)]
pub struct MeshNames(Arc<RwLock<Names>>);

impl MeshNames {
    /// To be shared.
    #[must_use]
    pub fn new(names: Names) -> Self {
        Self(Arc::new(RwLock::new(names)))
    }

    /// As they are now; not to be held over an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Names> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Names) -> T) -> T {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_own(&self, own: &BTreeMap<Name, NameRecords>) {
        self.change(|names| names.set_own(own));
    }

    pub(super) fn set_reachable(&self, reachable: &[(PeerId, Incarnation)], now: Duration) {
        self.change(|names| names.handle_peers(reachable, now));
    }

    pub(super) fn handle_message(&self, from: PeerId, incarnation: Incarnation, bytes: &[u8], now: Duration) {
        self.change(|names| names.handle_message(from, incarnation, bytes, now));
    }

    pub(super) fn raise_incarnation(&self, to: Incarnation) {
        self.change(|names| names.raise_incarnation(to));
    }

    pub(super) fn forget(&self, peer: PeerId, now: Duration) {
        self.change(|names| names.forget(peer, now));
    }

    pub(super) fn handle_timeout(&self, now: Duration) {
        self.change(|names| names.handle_timeout(now));
    }

    pub(super) fn poll_timeout(&self) -> Option<(Duration, &'static str)> {
        self.read().poll_timeout()
    }
}

impl Core {
    /// Sends what peers are to be told of names. Says whether there was anything.
    pub(super) fn drain_names(&mut self) -> bool {
        let outputs: Vec<Output> = self.names.change(|names| std::iter::from_fn(|| names.poll_output()).collect());
        let now = self.clock.now();
        let tagged = |bytes: Vec<u8>| [&[CHANNEL_NAMES], &bytes[..]].concat();
        let any = !outputs.is_empty();
        for output in outputs {
            match output {
                Output::Send(peer, bytes) => self.node.send_app(peer, tagged(bytes), now),
                Output::Broadcast(bytes) => self.node.broadcast_app(tagged(bytes), now),
            }
        }
        any
    }
}
