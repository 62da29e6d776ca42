//! The address protocol in the router: how it begins, and what of it the data path must know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ipam::allocator::{Allocator, Birth, Config, StateError};
use ipnet::IpNet;
use mesh_proto::data::fence::Fence;
use mesh_proto::handover::Command;
use mesh_proto::id::PeerId;

use super::Peer;
use super::core::Core;
use crate::config::{IpallocInit, Settings};
use crate::control::store::{self, State};

/// How the address protocol is to begin.
#[derive(Debug, Clone)]
pub(super) struct Addresses {
    /// Other peers that the operator named.
    pub(super) named: usize,
    /// Who founds the network.
    pub(super) birth: Birth<Peer>,
    /// What of its state was lost.
    pub(super) lost: Lost,
    /// Number of other peers that the store remembers.
    pub(super) remembered: usize,
    /// After how long a silence peers are removed.
    pub(super) dead_after: Option<Duration>,
}

/// What of the address state was lost.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Lost {
    /// Nothing.
    #[default]
    Nothing,
    /// These entries, all there were.
    Entries(Vec<Vec<u8>>),
    /// The file that they were in.
    File,
}

impl Addresses {
    /// By the settings; so many other peers are `named` in them, and so many remembered in the store.
    pub(super) fn new(settings: &Settings, named: usize, lost: Lost, remembered: usize) -> Self {
        let (named, birth) = match &settings.ipalloc_init {
            IpallocInit::Auto => (named, Birth::ByItself),
            IpallocInit::Consensus(peers) => (peers - 1, Birth::ByItself),
            IpallocInit::Seed(peers) => (named, Birth::Seeds(peers.iter().copied().map(Peer).collect())),
            IpallocInit::Observer => (named, Birth::Observer),
        };
        Self { named, birth, lost, remembered, dead_after: settings.dead_after }
    }

    /// What the protocol is made with.
    pub(super) fn config(self, me: Peer, incarnation: u64, ranges: Vec<IpNet>) -> Config<Peer> {
        let Self { named, birth, lost, remembered, dead_after } = self;
        let (forgot, lost) = match lost {
            Lost::Nothing => (Vec::new(), false),
            Lost::Entries(keys) => (keys, true),
            Lost::File => (Vec::new(), true),
        };
        Config { birth, forgot, lost, remembered, dead_after, ..Config::new(me, incarnation, ranges, named) }
    }
}

/// Entries of the address state that nobody can read: kept aside as a copy of the whole file, and
/// out of the state from now on.
#[derive(Debug)]
pub(super) struct Unreadable {
    /// What to tell the operator.
    pub(super) text: String,
    /// All of it, by key.
    pub(super) keys: Vec<Vec<u8>>,
}

/// Tries whether the address protocol can begin with the state, before anything is done on the
/// host; what cannot be read is kept aside.
///
/// # Errors
/// If it is not to begin with these ranges, or the file cannot be copied.
pub(super) fn try_state(settings: &Settings, state: &mut State) -> anyhow::Result<Option<Unreadable>> {
    let config = Config::new(Peer(PeerId([0; 16])), 1, settings.ranges.clone(), 1);
    match Allocator::new(config, state.ipam.clone(), [0; 32], Duration::ZERO) {
        Ok(_) => Ok(None),
        Err(StateError::Corrupt { key, why }) => {
            let kept = copy(&settings.data_dir)?;
            let text = format!(
                "the address state was unreadable (entry {key}: {why}); all of it was kept as {kept}, and this router \
                 is a new member of the address network: its containers keep what they have"
            );
            let keys = std::mem::take(&mut state.ipam).into_iter().map(|(key, _)| key).collect();
            Ok(Some(Unreadable { text, keys }))
        }
        Err(other) => Err(other.into()),
    }
}

fn copy(directory: &Path) -> anyhow::Result<String> {
    let kept = store::keep_copy(directory).with_context(|| {
        format!("the address state in {} is unreadable, and cannot be copied to keep it", directory.display())
    })?;
    Ok(kept.display().to_string())
}

impl Core {
    /// Keeps frames of removed peers out that come from addresses of others (ipam I21).
    pub(super) fn fence(&mut self, fences: Vec<(Peer, Vec<(IpAddr, IpAddr)>)>) {
        let fences: BTreeMap<PeerId, Arc<Fence>> =
            fences.into_iter().map(|(Peer(peer), runs)| (peer, Arc::new(Fence::new(runs)))).collect();
        let fenced: BTreeSet<PeerId> = fences.keys().copied().collect();
        for peer in fenced.difference(&self.fenced) {
            tracing::warn!(%peer, "was removed, and has not said that nothing is left of that: its frames from addresses of others are dropped");
        }
        for peer in self.fenced.difference(&fenced) {
            tracing::info!(%peer, "has nothing left of its removal, or cannot be reached: its frames are not looked at any more");
        }
        self.fenced.clone_from(&fenced);
        if let Some(fast) = &mut self.fast {
            fast.keep_off(fenced, self.clock.now());
        }
        self.data.command(Command::Fences(fences));
    }
}
