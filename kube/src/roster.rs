//! Which peers are nodes, which nodes are gone, and whose addresses are due to come back
//! (kubernetes K14, K15). Asks nobody and knows no clock: what was seen, and when, comes in.
//!
//! ```text
//!   nodes of the API ──► listed, applied, deleted ─┐
//!                                                  ├─► whom to dial
//!   peers of the router ──► looked ────────────────┴─► whom to remove, once a fresh list agrees
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::node::Node;
use crate::peers::whom_to_dial;

/// Each further peer that could do a removal waits so much longer for somebody else's …
const STAGGER: Duration = Duration::from_secs(5);
/// … but no longer than this.
const STAGGER_MAX: Duration = Duration::from_secs(60);

/// The node that a peer was seen to be. It is kept over restarts, by the peer's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Name of the node.
    pub node: String,
    /// Its uid.
    pub uid: String,
}

/// A peer as the router sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether it can be reached.
    pub reachable: bool,
    /// Whether it owns addresses, and was not removed yet.
    pub owns: bool,
}

/// The peers as the router sees them, itself among them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// The router's own id.
    pub me: String,
    /// Whether it knows the address space: else what it does not know says nothing.
    pub ready: bool,
    /// All peers that it knows.
    pub peers: Vec<Seen>,
}

/// Why a list of nodes is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Disbelief {
    /// It has nobody.
    #[error("the list of nodes is empty")]
    Empty,
    /// It lacks the node that this process runs on.
    #[error("the list of {0} nodes has not this one")]
    WithoutMe(usize),
}

/// What is known of the cluster.
#[derive(Debug, Clone)]
pub struct Roster {
    me: String,
    grace: Duration,
    /// The nodes by name, as of the last list that was believed and what was told since.
    nodes: BTreeMap<String, Node>,
    /// Whether `nodes` has this node: what lacks it is not acted upon.
    believed: bool,
    /// Nodes that went, and since when; they are still dialled for a while.
    gone: BTreeMap<String, (Node, Duration)>,
    notes: BTreeMap<String, Note>,
    /// Since when a peer that was a node is none, and out of reach, all the time.
    absent: BTreeMap<String, Duration>,
    view: View,
}

impl Roster {
    /// Nobody is known yet but for what was noted by earlier runs. `me` is the name of the node, and
    /// `grace` is for how long a node must be gone and its peer out of reach.
    #[must_use]
    pub fn new(me: String, grace: Duration, notes: BTreeMap<String, Note>) -> Self {
        Self {
            me,
            grace,
            nodes: BTreeMap::new(),
            believed: false,
            gone: BTreeMap::new(),
            notes,
            absent: BTreeMap::new(),
            view: View::default(),
        }
    }

    /// All nodes, from one list.
    ///
    /// # Errors
    /// If it cannot be all of them; then nothing changes.
    pub fn listed(&mut self, nodes: Vec<Node>, now: Duration) -> Result<(), Disbelief> {
        if nodes.is_empty() {
            return Err(Disbelief::Empty);
        }
        if !nodes.iter().any(|node| node.name == self.me) {
            return Err(Disbelief::WithoutMe(nodes.len()));
        }
        let new: BTreeMap<String, Node> = nodes.into_iter().map(|node| (node.name.clone(), node)).collect();
        for (name, node) in std::mem::take(&mut self.nodes) {
            if !new.contains_key(&name) {
                self.gone.insert(name, (node, now));
            }
        }
        self.gone.retain(|name, _| !new.contains_key(name));
        self.nodes = new;
        self.believed = true;
        self.look_for_absent(now);
        Ok(())
    }

    /// A node was added or changed.
    pub fn applied(&mut self, node: Node, now: Duration) {
        self.believed |= node.name == self.me;
        self.gone.remove(&node.name);
        self.nodes.insert(node.name.clone(), node);
        self.look_for_absent(now);
    }

    /// A node was deleted. If it is this one, nothing is acted upon until it is back: it may be this
    /// one alone that hears so, and it will end soon if it is true.
    pub fn deleted(&mut self, node: &Node, now: Duration) {
        if self.nodes.get(&node.name).is_none_or(|known| known.uid != node.uid) {
            // Another one has the name by now.
            return;
        }
        if node.name == self.me {
            self.believed = false;
            return;
        }
        if let Some(node) = self.nodes.remove(&node.name) {
            self.gone.insert(node.name.clone(), (node, now));
        }
        self.look_for_absent(now);
    }

    /// What the router sees. Says whether there is something new to note for later runs.
    pub fn looked(&mut self, view: View, now: Duration) -> bool {
        self.view = view;
        let before = self.notes.clone();
        if self.believed {
            for node in self.nodes.values().filter(|node| node.member) {
                let name = node.peer_name();
                for peer in self.view.peers.iter().filter(|peer| peer.reachable && peer.name == name) {
                    let note = Note { node: node.name.clone(), uid: node.uid.clone() };
                    self.notes.insert(peer.id.clone(), note);
                }
            }
        }
        self.look_for_absent(now);
        if self.view.ready {
            // Of a peer that owns nothing any more, nothing can come back.
            let (nodes, view) = (&self.nodes, &self.view);
            self.notes.retain(|id, note| {
                nodes.get(&note.node).is_some_and(|node| node.uid == note.uid)
                    || view.peers.iter().any(|peer| peer.id == *id && (peer.owns || peer.reachable))
            });
        }
        self.notes != before
    }

    fn look_for_absent(&mut self, now: Duration) {
        let absent: Vec<String> = self.candidates().map(ToOwned::to_owned).collect();
        self.absent.retain(|id, _| absent.contains(id));
        for id in absent {
            self.absent.entry(id).or_insert(now);
        }
    }

    /// Peers that were nodes that are none any more, are out of reach and own addresses.
    fn candidates(&self) -> impl Iterator<Item = &str> {
        let usable = self.believed && self.view.ready;
        let peers = self.view.peers.iter().filter(move |peer| usable && peer.owns && !peer.reachable);
        peers.filter(|peer| peer.id != self.view.me && self.was_a_node(&peer.id)).map(|peer| peer.id.as_str())
    }

    fn was_a_node(&self, id: &str) -> bool {
        let is = |note: &Note| self.nodes.get(&note.node).is_some_and(|node| node.uid == note.uid);
        self.notes.get(id).is_some_and(|note| !is(note))
    }

    /// Peers that are due to be removed, as far as is known: ask for a fresh list first.
    #[must_use]
    pub fn due(&self, now: Duration) -> Vec<String> {
        // Who has the lowest id does it; it is also whom the voters' rule prefers (ipam I20).
        let lower = self.view.peers.iter().filter(|peer| peer.reachable && peer.owns && peer.id < self.view.me);
        let rank = u32::try_from(lower.count()).unwrap_or(u32::MAX);
        let wait = self.grace + STAGGER.saturating_mul(rank).min(STAGGER_MAX.min(self.grace));
        let due = self.absent.iter().filter(|&(_, &since)| now.saturating_sub(since) >= wait);
        due.map(|(id, _)| id.clone()).collect()
    }

    /// Whether a peer is one that may be removed, by all that is known now.
    #[must_use]
    pub fn is_absent(&self, id: &str) -> bool {
        self.absent.contains_key(id)
    }

    /// What is noted of a peer.
    #[must_use]
    pub fn note(&self, id: &str) -> Option<&Note> {
        self.notes.get(id)
    }

    /// What later runs have to know.
    #[must_use]
    pub fn notes(&self) -> &BTreeMap<String, Note> {
        &self.notes
    }

    /// Whom the router shall dial; none as long as no list was believed.
    pub fn whom_to_dial(&mut self, now: Duration) -> Option<Vec<String>> {
        if !self.believed {
            return None;
        }
        let grace = self.grace;
        self.gone.retain(|_, (_, since)| now.saturating_sub(*since) < grace);
        Some(whom_to_dial(&self.me, self.nodes.values().chain(self.gone.values().map(|(node, _)| node))))
    }

    /// Why pods here may not reach pods there; none if they do (kubernetes K16).
    #[must_use]
    pub fn cut_off(&self) -> Option<String> {
        if !self.view.ready {
            return Some("the router cannot give addresses yet".to_owned());
        }
        // A node that the cluster knows to be dead is no reason, nor is one without a router.
        let alive = |peer: &&Seen| {
            let mut nodes = self.nodes.values().filter(|node| node.peer_name() == peer.name);
            peer.id != self.view.me && peer.owns && nodes.any(|node| node.ready)
        };
        let others: Vec<&Seen> = self.view.peers.iter().filter(alive).collect();
        let reached = others.iter().filter(|peer| peer.reachable).count();
        let away: Vec<&str> =
            others.iter().filter(|peer| !peer.reachable).map(|peer| peer.name.as_str()).take(3).collect();
        (2 * reached < others.len())
            .then(|| format!("{reached} of {} nodes can be reached; out of reach: {}", others.len(), away.join(", ")))
    }
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
