//! The graph of the mesh, as all records together tell it.
//!
//! An edge counts only if the newest records of both its ends list each other (gossip G8): one
//! end alone cannot pull traffic towards itself, and a dead peer's last record does no harm.

use super::gossip::Store;
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

impl Graph {
    /// The graph of the confirmed links in a store. The links of `me` are taken from `mine`
    /// (ascending by id) instead of its record, which may be a moment older.
    #[must_use]
    pub fn of(store: &Store, me: PeerId, mine: &[(PeerId, u32)]) -> Self {
        let ids: Vec<PeerId> = store.iter().map(|record| record.id).collect();
        let mut edges = vec![Vec::new(); ids.len()];
        let reverse = |from: &PeerId, to: &PeerId| {
            if *from == me {
                mine.binary_search_by_key(to, |link| link.0).ok().map(|at| mine[at].1)
            } else {
                store.get(from)?.link_to(to)
            }
        };
        for (at, record) in store.iter().enumerate() {
            let own: Vec<(PeerId, u32)> = if record.id == me {
                mine.to_vec()
            } else {
                record.body.links.iter().map(|link| (link.peer, link.rtt_us)).collect()
            };
            for (peer, rtt) in own.into_iter().filter(|(peer, _)| *peer != record.id) {
                if let Ok(to) = ids.binary_search(&peer)
                    && let Some(back) = reverse(&peer, &record.id)
                {
                    edges[at].push((to, cost(rtt, back)));
                }
            }
        }
        Self { ids, edges }
    }

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

    /// The same edges, each at the same cost: what broadcast trees are made of (gossip G12).
    #[must_use]
    pub fn shape(&self) -> Self {
        let level = |list: &Vec<(usize, u32)>| list.iter().map(|edge| (edge.0, 1)).collect();
        Self { ids: self.ids.clone(), edges: self.edges.iter().map(level).collect() }
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

    #[test]
    fn an_edge_counts_only_if_both_ends_list_it() {
        let mut store = Store::default();
        store.offer(record(1, 1, 1, &[]), false, Duration::ZERO);
        store.offer(record(2, 1, 1, &[(id(1), 300), (id(3), 100)]), false, Duration::ZERO);
        store.offer(record(3, 1, 1, &[(id(1), 100)]), false, Duration::ZERO);
        let graph = Graph::of(&store, id(1), &[(id(2), 900)]);
        assert!(graph.linked(&id(1), &id(2)) && graph.linked(&id(2), &id(1)));
        assert!(!graph.linked(&id(2), &id(3)), "3 does not list 2");
        assert!(!graph.linked(&id(1), &id(3)), "1 does not list 3");
        let one = graph.index(&id(1)).unwrap();
        assert_eq!(graph.neighbours(one)[0].1, cost(900, 300));
    }

    #[test]
    fn noise_within_a_step_does_not_change_the_cost() {
        assert_eq!(cost(510, 600), cost(740, 501));
        assert!(cost(510, 800) > cost(510, 600));
        assert_eq!(cost(u32::MAX, 0), cost(RTT_MAX_US, 0));
    }
}
