//! Next hops and alternates from a [`Graph`], and what else this peer needs of it.
//!
//! All peers hold the same records, so each computes the same paths without a word about it. Of
//! equal paths the one through the lower id is taken, everywhere (gossip G10).
//!
//! ```text
//!   me ── N ─ ─ ─► D     first hop on the shortest path
//!    └─── A ─ ─ ─► D     alternate, loop free by RFC 5286: dist(A, D) < dist(A, me) + dist(me, D)
//! ```

use core::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::topology::{Change, Graph};
use super::trees;
use crate::handover::MAX_RELAYS;
use crate::id::PeerId;

/// Most neighbours that are considered as alternates, nearest first.
const ALTERNATES_FROM: usize = 16;

const FAR: u64 = u64::MAX;

const _: () = assert!(MAX_RELAYS == 2, "a first hop and an alternate");

type Queue = BinaryHeap<Reverse<(u64, usize)>>;

/// Distances and parents from one root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spt {
    distance: Vec<u64>,
    parent: Vec<Option<usize>>,
}

impl Spt {
    /// Dijkstra from `root`. Of the equally near parents of a node the lowest is its parent.
    #[must_use]
    pub fn new(graph: &Graph, root: usize) -> Self {
        Self::with(graph, root, &mut BinaryHeap::new())
    }

    /// The same with a queue that was used before: many trees are made in a row.
    fn with(graph: &Graph, root: usize, queue: &mut Queue) -> Self {
        let count = graph.ids().len();
        let mut tree = Self { distance: vec![FAR; count], parent: vec![None; count] };
        tree.distance[root] = 0;
        queue.push(Reverse((0, root)));
        while let Some(Reverse((distance, node))) = queue.pop() {
            if distance > tree.distance[node] {
                continue;
            }
            for &(next, cost) in graph.neighbours(node) {
                let through = distance + u64::from(cost);
                let known = tree.distance[next];
                if through < known {
                    tree.distance[next] = through;
                    tree.parent[next] = Some(node);
                    queue.push(Reverse((through, next)));
                } else if through == known && tree.parent[next].is_some_and(|parent| node < parent) {
                    tree.parent[next] = Some(node);
                }
            }
        }
        tree
    }

    /// Brings the tree up to date after the edges at some nodes have changed, if no distance has
    /// changed by that; false if one has, and the tree must be made anew.
    ///
    /// Shortest distances are the only ones that fit together at every node (costs are positive),
    /// and they still do wherever no edge has changed. So it is enough to look at the others.
    fn repair(&mut self, graph: &Graph, root: usize, changed: &[usize]) -> bool {
        for &node in changed.iter().filter(|node| **node != root) {
            let (mut nearest, mut parent) = (FAR, None);
            for &(from, cost) in graph.neighbours(node) {
                let through = self.distance[from].saturating_add(u64::from(cost));
                // Neighbours come in ascending order, so the lowest of equals stays.
                if through < nearest {
                    (nearest, parent) = (through, Some(from));
                }
            }
            if nearest != self.distance[node] {
                return false;
            }
            self.parent[node] = parent;
        }
        true
    }

    /// Distance to a node, if it can be reached.
    #[must_use]
    pub fn distance(&self, node: usize) -> Option<u64> {
        (self.distance[node] != FAR).then_some(self.distance[node])
    }

    /// The node before this one on the path from the root.
    #[must_use]
    pub fn parent(&self, node: usize) -> Option<usize> {
        self.parent[node]
    }

    /// For each node the first hop on the way to it from the root.
    fn first_hops(&self, root: usize) -> Vec<Option<usize>> {
        let mut hops = vec![None; self.parent.len()];
        let mut order: Vec<usize> = (0..hops.len()).filter(|node| self.distance[*node] != FAR).collect();
        order.sort_unstable_by_key(|node| self.distance[*node]);
        for node in order {
            if let Some(parent) = self.parent[node] {
                hops[node] = if parent == root { Some(node) } else { hops[parent] };
            }
        }
        hops
    }
}

/// What this peer needs of the graph.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes {
    /// For each reachable peer (except this one) the neighbours to send through, best first, at
    /// most [`MAX_RELAYS`]. For a linked peer the first may be that peer itself.
    pub hops: BTreeMap<PeerId, Vec<PeerId>>,
    /// For each origin the neighbours that this peer passes its broadcasts on to; origins whose
    /// broadcasts end here are left out.
    pub trees: BTreeMap<PeerId, Vec<PeerId>>,
}

impl Routes {
    /// Whether there is a way to that peer.
    #[must_use]
    pub fn reaches(&self, peer: &PeerId) -> bool {
        self.hops.contains_key(peer)
    }
}

/// What was computed on the graph of now: a change costs only the paths in which a distance
/// changes, and the broadcast trees only if an edge comes or goes.
#[derive(Debug, Default)]
pub struct Router {
    /// Cheapest paths, by root: from here, and from the neighbours that matter.
    paths: BTreeMap<usize, Spt>,
    routes: Routes,
    queue: Queue,
}

impl Router {
    /// Routes and trees as of the last update.
    #[must_use]
    pub const fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Computes routes and trees as `me` sees them, after a change that led to `graph`.
    pub fn update(&mut self, graph: &Graph, change: &Change, me: PeerId) {
        let shape = match change {
            Change::Nothing => return,
            Change::Edges { nodes, shape } => {
                self.paths.retain(|root, tree| tree.repair(graph, *root, nodes));
                *shape
            }
            Change::Peers => {
                self.paths.clear();
                true
            }
        };
        let Some(root) = graph.index(&me) else {
            self.routes = Routes::default();
            return;
        };
        self.routes.hops = self.hops(graph, root);
        if shape {
            self.routes.trees = trees::children(graph, root);
        }
    }

    fn hops(&mut self, graph: &Graph, root: usize) -> BTreeMap<PeerId, Vec<PeerId>> {
        let mut near: Vec<(usize, u32)> = graph.neighbours(root).to_vec();
        near.sort_by_key(|&(node, cost)| (cost, node));
        near.truncate(ALTERNATES_FROM);
        self.compute(graph, root);
        let firsts = self.paths[&root].first_hops(root);
        let needed: BTreeSet<usize> =
            firsts.iter().flatten().copied().chain(near.iter().map(|edge| edge.0)).chain([root]).collect();
        self.paths.retain(|node, _| needed.contains(node));
        for &node in &needed {
            self.compute(graph, node);
        }
        let near: Vec<(usize, u32, &Spt)> =
            near.into_iter().map(|(node, cost)| (node, cost, &self.paths[&node])).collect();
        let straight = &self.paths[&root];
        let ids = graph.ids();
        let hop = |(to, first): (usize, Option<usize>)| {
            let first = first?;
            let other = alternate(&near, root, to, straight.distance[to], (first, &self.paths[&first]));
            let list: Vec<PeerId> = [Some(first), other].into_iter().flatten().map(|node| ids[node]).collect();
            Some((ids[to], list))
        };
        firsts.into_iter().enumerate().filter_map(hop).collect()
    }

    fn compute(&mut self, graph: &Graph, root: usize) {
        let queue = &mut self.queue;
        self.paths.entry(root).or_insert_with(|| Spt::with(graph, root, queue));
    }
}

/// The best neighbour other than `first` that does not send what is for `to` back to us, one
/// whose own path avoids `first` before one whose path does not.
fn alternate(
    near: &[(usize, u32, &Spt)],
    root: usize,
    to: usize,
    straight: u64,
    (first, from_first): (usize, &Spt),
) -> Option<usize> {
    let mut best: Option<(bool, u64, usize)> = None;
    for &(node, cost, from) in near.iter().filter(|(node, ..)| *node != first) {
        let rest = from.distance[to];
        if rest == FAR || rest >= from.distance[root].saturating_add(straight) {
            continue;
        }
        let crosses = to != first && rest >= from.distance[first].saturating_add(from_first.distance[to]);
        let candidate = (crosses, rest + u64::from(cost), node);
        if best.is_none_or(|best| candidate < best) {
            best = Some(candidate);
        }
    }
    best.map(|(_, _, node)| node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn id(n: usize) -> PeerId {
        PeerId((n as u128).to_be_bytes())
    }

    fn graph(count: usize, list: &[(usize, usize, u32)]) -> Graph {
        let edges: Vec<_> = list.iter().filter(|(a, b, _)| a != b).map(|&(a, b, cost)| (id(a), id(b), cost)).collect();
        Graph::from_edges((0..count).map(id).collect(), &edges)
    }

    fn routes_of(graph: &Graph, me: usize) -> Routes {
        let mut router = Router::default();
        router.update(graph, &Change::Peers, id(me));
        router.routes().clone()
    }

    fn difference(old: &Graph, new: &Graph) -> Change {
        let differ = |node: &usize| old.neighbours(*node) != new.neighbours(*node);
        let ends = |graph: &Graph, node: usize| graph.neighbours(node).iter().map(|edge| edge.0).collect::<Vec<_>>();
        let nodes: Vec<usize> = (0..new.ids().len()).filter(differ).collect();
        let shape = nodes.iter().any(|node| ends(old, *node) != ends(new, *node));
        if nodes.is_empty() { Change::Nothing } else { Change::Edges { nodes, shape } }
    }

    /// The reference: Floyd and Warshall, all distances by the definition.
    fn distances(graph: &Graph) -> Vec<Vec<u64>> {
        let count = graph.ids().len();
        let mut all = vec![vec![FAR; count]; count];
        for (node, row) in all.iter_mut().enumerate() {
            row[node] = 0;
            for &(to, cost) in graph.neighbours(node) {
                row[to] = u64::from(cost);
            }
        }
        for via in 0..count {
            for from in 0..count {
                for to in 0..count {
                    let detour = all[from][via].saturating_add(all[via][to]);
                    all[from][to] = all[from][to].min(detour);
                }
            }
        }
        all
    }

    fn edges_of(count: usize) -> impl Strategy<Value = Vec<(usize, usize, u32)>> {
        proptest::collection::vec((0..count, 0..count, 1u32..3), 4..14)
    }

    fn any_graph() -> impl Strategy<Value = Graph> {
        (2usize..9).prop_flat_map(|count| {
            // Few costs, so that there are many equal paths.
            proptest::collection::vec((0..count, 0..count, 1u32..4), 0..20).prop_map(move |list| graph(count, &list))
        })
    }

    proptest! {
        #[test]
        fn next_hops_agree_with_the_reference(graph in any_graph()) {
            let all = distances(&graph);
            for from in 0..all.len() {
                let routes = routes_of(&graph, from);
                for to in (0..all.len()).filter(|to| *to != from) {
                    let hops = routes.hops.get(&id(to));
                    prop_assert_eq!(hops.is_some(), all[from][to] != FAR);
                    let Some(hops) = hops else { continue };
                    let at = |n: usize| graph.index(&hops[n]).unwrap();
                    let cost = |n: usize| u64::from(graph.neighbours(from).iter().find(|e| e.0 == n).unwrap().1);
                    prop_assert_eq!(cost(at(0)) + all[at(0)][to], all[from][to]);
                    if hops.len() > 1 {
                        prop_assert_ne!(hops[0], hops[1]);
                        prop_assert!(all[at(1)][to] < all[at(1)][from] + all[from][to], "not loop free");
                    } else {
                        for &(node, _) in graph.neighbours(from).iter().filter(|edge| edge.0 != at(0)) {
                            prop_assert!(all[node][to] == FAR || all[node][to] >= all[node][from] + all[from][to]);
                        }
                    }
                }
            }
        }

        #[test]
        fn repaired_paths_are_the_ones_made_anew(graphs in proptest::collection::vec(edges_of(7), 1..6)) {
            for me in 0..7 {
                let mut router = Router::default();
                let mut before = None;
                for list in &graphs {
                    let graph = graph(7, list);
                    let change = before.as_ref().map_or(Change::Peers, |before| difference(before, &graph));
                    router.update(&graph, &change, id(me));
                    prop_assert_eq!(router.routes(), &routes_of(&graph, me));
                    for (root, tree) in &router.paths {
                        prop_assert_eq!(tree, &Spt::new(&graph, *root));
                    }
                    before = Some(graph);
                }
            }
        }

        #[test]
        fn following_the_first_hops_arrives(graph in any_graph()) {
            let count = graph.ids().len();
            let tables: Vec<_> = (0..count).map(|node| routes_of(&graph, node)).collect();
            for from in 0..count {
                for to in tables[from].hops.keys() {
                    let (mut at, mut seen) = (id(from), BTreeSet::new());
                    while at != *to {
                        prop_assert!(seen.insert(at), "a loop");
                        at = tables[graph.index(&at).unwrap()].hops[to][0];
                    }
                }
            }
        }
    }

    #[test]
    fn an_alternate_that_avoids_the_first_hop_is_preferred() {
        // 0 to 4: first through 1. 2 goes on through 1 as well; 3 has its own way, a longer one.
        let graph = graph(5, &[(0, 1, 1), (1, 4, 1), (0, 2, 1), (2, 1, 1), (0, 3, 2), (3, 4, 2)]);
        assert_eq!(routes_of(&graph, 0).hops[&id(4)], [id(1), id(3)]);
    }
}
