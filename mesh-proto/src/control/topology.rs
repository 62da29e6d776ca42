//! The graph of the mesh, as all records together tell it.
//!
//! An edge counts only if the newest records of both its ends list each other (gossip G8): one
//! end alone cannot pull traffic towards itself, and a dead peer's last record does no harm.

use std::collections::BTreeSet;

use super::gossip::Store;
use super::record::SignedRecord;
use crate::id::PeerId;

/// What each hop costs beside its round trip, in microseconds: a detour must be worth it.
pub const HOP_COST_US: u32 = 1000;

/// Round trips are rounded up to a multiple of this, in microseconds, so that noise does not move routes.
pub const RTT_STEP_US: u32 = 250;

/// Round trips above this, in microseconds, count as this.
const RTT_MAX_US: u32 = 10_000_000;

/// The cost of a link, from the round trips that its two ends report.
#[must_use]
pub fn cost(one: u32, other: u32) -> u32 {
    HOP_COST_US + one.max(other).min(RTT_MAX_US).div_ceil(RTT_STEP_US) * RTT_STEP_US
}

/// An undirected graph over peers, numbered in the order of their ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Graph {
    ids: Vec<PeerId>,
    /// For each node its neighbours, ascending, with the cost of the edge.
    edges: Vec<Vec<(usize, u32)>>,
}

/// How a graph differs from the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Not at all.
    Nothing,
    /// The edges at these nodes (ascending) are others, or cost something else.
    Edges {
        /// The nodes.
        nodes: Vec<usize>,
        /// Whether an edge came or went, not costs alone.
        shape: bool,
    },
    /// Peers came or went, so that all have new numbers.
    Peers,
}

/// The graph of the confirmed links, brought up to date record by record.
#[derive(Debug, Default)]
pub struct Topology {
    graph: Graph,
    /// For each node whom it says that it has links with, ascending, and their round trips.
    claims: Vec<Vec<(usize, u32)>>,
}

impl Topology {
    /// The graph as of the last update.
    #[must_use]
    pub const fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Takes in the records of `changed`. The links of `me` are taken from `mine` (ascending by
    /// id) instead of its record, which may be a moment older. The work follows what changed,
    /// unless peers came or went.
    pub fn update(&mut self, store: &Store, me: PeerId, mine: &[(PeerId, u32)], changed: &BTreeSet<PeerId>) -> Change {
        if !store.iter().map(|record| &record.id).eq(&self.graph.ids) {
            self.graph.ids = store.iter().map(|record| record.id).collect();
            self.claims = store.iter().map(|record| self.claims_of(record, me, mine)).collect();
            self.graph.edges = (0..self.claims.len()).map(|node| self.confirmed(node)).collect();
            return Change::Peers;
        }
        let mut touched = BTreeSet::new();
        for id in changed.iter().chain([&me]) {
            let (Some(node), Some(record)) = (self.graph.index(id), store.get(id)) else { continue };
            let claims = self.claims_of(record, me, mine);
            if claims != self.claims[node] {
                touched.insert(node);
                touched.extend(claims.iter().chain(&self.claims[node]).map(|claim| claim.0));
                self.claims[node] = claims;
            }
        }
        let (mut nodes, mut shape) = (Vec::new(), false);
        for node in touched {
            let edges = self.confirmed(node);
            let old = &mut self.graph.edges[node];
            if edges != *old {
                shape |= !edges.iter().map(|edge| edge.0).eq(old.iter().map(|edge| edge.0));
                *old = edges;
                nodes.push(node);
            }
        }
        if nodes.is_empty() { Change::Nothing } else { Change::Edges { nodes, shape } }
    }

    fn claims_of(&self, record: &SignedRecord, me: PeerId, mine: &[(PeerId, u32)]) -> Vec<(usize, u32)> {
        let known = |peer: &PeerId, rtt: u32| Some((self.graph.index(peer).filter(|_| *peer != record.id)?, rtt));
        if record.id == me {
            mine.iter().filter_map(|(peer, rtt)| known(peer, *rtt)).collect()
        } else {
            record.body.links.iter().filter_map(|link| known(&link.peer, link.rtt_us)).collect()
        }
    }

    /// The claims of a node that the other ends make as well.
    fn confirmed(&self, node: usize) -> Vec<(usize, u32)> {
        let edge = |&(to, rtt): &(usize, u32)| {
            let back = &self.claims[to];
            let at = back.binary_search_by_key(&node, |claim| claim.0).ok()?;
            Some((to, cost(rtt, back[at].1)))
        };
        self.claims[node].iter().filter_map(edge).collect()
    }
}

impl Graph {
    /// A graph from a list of edges (for tests and models).
    #[must_use]
    pub fn from_edges(mut ids: Vec<PeerId>, list: &[(PeerId, PeerId, u32)]) -> Self {
        ids.sort_unstable();
        ids.dedup();
        let mut edges = vec![Vec::new(); ids.len()];
        for (a, b, cost) in list {
            if let (Ok(a), Ok(b)) = (ids.binary_search(a), ids.binary_search(b)) {
                edges[a].push((b, *cost));
                edges[b].push((a, *cost));
            }
        }
        for list in &mut edges {
            list.sort_unstable();
            list.dedup_by_key(|edge| edge.0);
        }
        Self { ids, edges }
    }

    /// The peers, ascending.
    #[must_use]
    pub fn ids(&self) -> &[PeerId] {
        &self.ids
    }

    /// The number of a peer.
    #[must_use]
    pub fn index(&self, id: &PeerId) -> Option<usize> {
        self.ids.binary_search(id).ok()
    }

    /// The neighbours of a node, ascending, with the cost of the edge.
    #[must_use]
    pub fn neighbours(&self, node: usize) -> &[(usize, u32)] {
        self.edges.get(node).map_or(&[], Vec::as_slice)
    }

    /// Whether two peers have a confirmed link.
    #[must_use]
    pub fn linked(&self, a: &PeerId, b: &PeerId) -> bool {
        match (self.index(a), self.index(b)) {
            (Some(a), Some(b)) => self.edges[a].binary_search_by_key(&b, |edge| edge.0).is_ok(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{id, record};
    use super::*;
    use core::time::Duration;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn an_edge_counts_only_if_both_ends_list_it() {
        let mut store = Store::default();
        store.offer(record(1, 1, 1, &[]), false, Duration::ZERO);
        store.offer(record(2, 1, 1, &[(id(1), 300), (id(3), 100)]), false, Duration::ZERO);
        store.offer(record(3, 1, 1, &[(id(1), 100)]), false, Duration::ZERO);
        let mut topology = Topology::default();
        assert_eq!(topology.update(&store, id(1), &[(id(2), 900)], &BTreeSet::new()), Change::Peers);
        let graph = topology.graph();
        assert!(graph.linked(&id(1), &id(2)) && graph.linked(&id(2), &id(1)));
        assert!(!graph.linked(&id(2), &id(3)), "3 does not list 2");
        assert!(!graph.linked(&id(1), &id(3)), "1 does not list 3");
        let one = graph.index(&id(1)).unwrap();
        assert_eq!(graph.neighbours(one)[0].1, cost(900, 300));
    }

    /// Records of five peers: who lists whom, with round trips in steps that matter.
    fn any_records() -> impl Strategy<Value = Vec<(u8, Vec<(u8, u32)>)>> {
        let links = proptest::collection::vec((0..5u8, 0..3u32), 0..4);
        proptest::collection::vec((0..5u8, links), 1..12)
    }

    proptest! {
        #[test]
        fn an_updated_graph_is_the_one_made_anew(list in any_records()) {
            let (mut store, mut topology) = (Store::default(), Topology::default());
            for (seq, (origin, links)) in list.into_iter().enumerate() {
                let links: BTreeMap<_, _> = links.into_iter().map(|(to, rtt)| (id(to), rtt * 1000)).collect();
                let links: Vec<_> = links.into_iter().collect();
                store.offer(record(origin, 1, 1 + seq as u64, &links), false, Duration::ZERO);
                let before = topology.graph().clone();
                let change = topology.update(&store, id(9), &[], &BTreeSet::from([id(origin)]));
                let mut anew = Topology::default();
                anew.update(&store, id(9), &[], &BTreeSet::new());
                prop_assert_eq!(topology.graph(), anew.graph());
                match change {
                    Change::Nothing => prop_assert_eq!(&before, topology.graph()),
                    Change::Peers => prop_assert_ne!(&before.ids, &topology.graph().ids),
                    Change::Edges { nodes, shape } => {
                        let lists = |graph: &Graph, node: usize| {
                            graph.edges[node].iter().map(|edge| edge.0).collect::<Vec<_>>()
                        };
                        let now = topology.graph();
                        let differ = (0..now.ids.len()).filter(|node| before.edges[*node] != now.edges[*node]);
                        prop_assert!(differ.eq(nodes));
                        prop_assert_eq!(shape, (0..now.ids.len()).any(|n| lists(&before, n) != lists(now, n)));
                    }
                }
            }
        }
    }

    #[test]
    fn noise_within_a_step_does_not_change_the_cost() {
        assert_eq!(cost(510, 600), cost(740, 501));
        assert!(cost(510, 800) > cost(510, 600));
        assert_eq!(cost(u32::MAX, 0), cost(RTT_MAX_US, 0));
    }
}
