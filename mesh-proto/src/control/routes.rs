//! Next hops, alternates and broadcast trees from a [`Graph`].
//!
//! All peers hold the same records, so each computes the same trees without a word about it. Of
//! equal paths the one through the lower id is taken, everywhere (gossip G10).
//!
//! Unicast takes the cheapest path. Broadcast trees count hops only: a round trip is news that each
//! peer hears at another moment, and while two peers hold different trees a broadcast is lost or
//! doubled between them. So a tree changes only when an edge comes or goes (gossip G12).
//!
//! ```text
//!   me ── N ─ ─ ─► D     first hop on the shortest path
//!    └─── A ─ ─ ─► D     alternate, loop free by RFC 5286: dist(A, D) < dist(A, me) + dist(me, D)
//! ```

use core::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::topology::Graph;
use crate::handover::MAX_RELAYS;
use crate::id::PeerId;

/// Up to so many peers each origin has its own shortest-path tree; above, all share the tree of
/// the lowest id, so that the work stays in proportion to the mesh.
pub const OWN_TREES_MAX: usize = 128;

/// Most neighbours that are considered as alternates, nearest first.
const ALTERNATES_FROM: usize = 16;

const FAR: u64 = u64::MAX;

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
        let count = graph.ids().len();
        let mut tree = Self { distance: vec![FAR; count], parent: vec![None; count] };
        let mut queue = BinaryHeap::from([Reverse((0u64, root))]);
        tree.distance[root] = 0;
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

    /// The same for a graph whose edges all cost one, level by level: no queue to keep in order.
    #[must_use]
    pub fn flat(graph: &Graph, root: usize) -> Self {
        let count = graph.ids().len();
        let mut tree = Self { distance: vec![FAR; count], parent: vec![None; count] };
        tree.distance[root] = 0;
        let (mut level, mut next, mut depth) = (vec![root], Vec::new(), 0);
        while !level.is_empty() {
            depth += 1;
            for node in level.drain(..) {
                for &(to, _) in graph.neighbours(node) {
                    if tree.distance[to] == FAR {
                        tree.distance[to] = depth;
                        tree.parent[to] = Some(node);
                        next.push(to);
                    } else if tree.distance[to] == depth && tree.parent[to].is_some_and(|parent| node < parent) {
                        tree.parent[to] = Some(node);
                    }
                }
            }
            core::mem::swap(&mut level, &mut next);
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

/// The graph of now with the trees that were computed on it: a change costs only the trees in
/// which a distance changes.
#[derive(Debug, Default)]
pub struct Router {
    graph: Graph,
    /// Cheapest paths, by root.
    trees: BTreeMap<usize, Spt>,
    /// The graph with every edge at the same cost.
    shape: Graph,
    /// Paths of fewest hops, by root.
    flat: BTreeMap<usize, Spt>,
}

impl Router {
    /// The graph of now.
    #[must_use]
    pub const fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Takes the graph of now; false if it is the one of before.
    pub fn update(&mut self, graph: Graph) -> bool {
        if graph == self.graph {
            return false;
        }
        let shape = graph.shape();
        adapt(&mut self.trees, &self.graph, &graph);
        adapt(&mut self.flat, &self.shape, &shape);
        (self.graph, self.shape) = (graph, shape);
        true
    }

    /// Routes and trees as `me` sees them.
    pub fn routes(&mut self, me: PeerId) -> Routes {
        let Some(root) = self.graph.index(&me) else {
            return Routes::default();
        };
        let hops = hops(&mut Cache { graph: &self.graph, trees: &mut self.trees, make: Spt::new }, root);
        let mut flat = Cache { graph: &self.shape, trees: &mut self.flat, make: Spt::flat };
        let tree = flat.tree(root);
        let reachable: Vec<usize> = (0..tree.distance.len()).filter(|node| tree.distance[*node] != FAR).collect();
        let trees = if reachable.len() <= OWN_TREES_MAX {
            own_trees(&mut flat, root, &reachable)
        } else {
            // The trees of former neighbours and of single origins are needed no more.
            let near: Vec<usize> = self.graph.neighbours(root).iter().map(|edge| edge.0).collect();
            self.trees.retain(|node, _| *node == root || near.contains(node));
            flat.trees.retain(|node, _| *node == root || reachable.first() == Some(node));
            shared_tree(&mut flat, root, &reachable)
        };
        Routes { hops, trees }
    }
}

/// Keeps what holds of the trees when one graph takes the place of another.
fn adapt(trees: &mut BTreeMap<usize, Spt>, old: &Graph, new: &Graph) {
    if new.ids() != old.ids() {
        return trees.clear();
    }
    let changed: Vec<usize> =
        (0..new.ids().len()).filter(|node| new.neighbours(*node) != old.neighbours(*node)).collect();
    if !changed.is_empty() {
        trees.retain(|root, tree| tree.repair(new, *root, &changed));
    }
}

struct Cache<'a> {
    graph: &'a Graph,
    trees: &'a mut BTreeMap<usize, Spt>,
    make: fn(&Graph, usize) -> Spt,
}

impl Cache<'_> {
    fn tree(&mut self, root: usize) -> &Spt {
        self.trees.entry(root).or_insert_with(|| (self.make)(self.graph, root))
    }

    fn distance(&mut self, from: usize, to: usize) -> u64 {
        self.tree(from).distance[to]
    }
}

fn hops(cache: &mut Cache<'_>, root: usize) -> BTreeMap<PeerId, Vec<PeerId>> {
    let ids = cache.graph.ids();
    let mut near: Vec<(usize, u32)> = cache.graph.neighbours(root).to_vec();
    near.sort_by_key(|&(node, cost)| (cost, node));
    near.truncate(ALTERNATES_FROM);
    let primary = cache.tree(root).first_hops(root);
    let mut hops = BTreeMap::new();
    for (node, first) in primary.iter().enumerate() {
        let Some(first) = *first else { continue };
        let mut list = vec![ids[first]];
        if let Some(second) = alternate(cache, root, &near, node, first)
            && list.len() < MAX_RELAYS
        {
            list.push(ids[second]);
        }
        hops.insert(ids[node], list);
    }
    hops
}

/// The best neighbour other than `first` that does not send what is for `to` back to us, one
/// whose own path avoids `first` before one whose path does not.
fn alternate(cache: &mut Cache<'_>, root: usize, near: &[(usize, u32)], to: usize, first: usize) -> Option<usize> {
    let mut best: Option<(bool, u64, usize)> = None;
    let straight = cache.distance(root, to);
    for &(node, cost) in near.iter().filter(|(node, _)| *node != first) {
        let rest = cache.distance(node, to);
        if rest == FAR || rest >= cache.distance(node, root).saturating_add(straight) {
            continue;
        }
        let (there, on) = (cache.distance(node, first), cache.distance(first, to));
        let crosses = to != first && rest >= there.saturating_add(on);
        let candidate = (crosses, rest + u64::from(cost), node);
        if best.is_none_or(|best| candidate < best) {
            best = Some(candidate);
        }
    }
    best.map(|(_, _, node)| node)
}

/// One tree for each origin: my children are the neighbours whose parent I am.
fn own_trees(cache: &mut Cache<'_>, root: usize, reachable: &[usize]) -> BTreeMap<PeerId, Vec<PeerId>> {
    let ids = cache.graph.ids();
    let neighbours = cache.graph.neighbours(root);
    let mut trees = BTreeMap::new();
    for &origin in reachable {
        let tree = cache.tree(origin);
        let children: Vec<PeerId> = neighbours
            .iter()
            .filter(|(node, _)| tree.parent[*node] == Some(root))
            .map(|(node, _)| ids[*node])
            .collect();
        if !children.is_empty() {
            trees.insert(ids[origin], children);
        }
    }
    trees
}

/// One tree for all, rooted at the lowest id: broadcasts flow along it, away from where they
/// came from.
fn shared_tree(cache: &mut Cache<'_>, root: usize, reachable: &[usize]) -> BTreeMap<PeerId, Vec<PeerId>> {
    let ids = cache.graph.ids();
    let Some(&lowest) = reachable.first() else {
        return BTreeMap::new();
    };
    let neighbours = cache.graph.neighbours(root);
    let tree = cache.tree(lowest);
    let on_tree: Vec<usize> = neighbours
        .iter()
        .map(|(node, _)| *node)
        .filter(|node| tree.parent[*node] == Some(root) || tree.parent[root] == Some(*node))
        .collect();
    // Through which of my tree neighbours each origin's broadcasts come: the child in whose
    // subtree it is, or else my parent.
    let mut side: Vec<Option<usize>> = vec![tree.parent[root]; ids.len()];
    let mut order = reachable.to_vec();
    order.sort_unstable_by_key(|node| tree.distance[*node]);
    for node in order {
        if let Some(parent) = tree.parent[node].filter(|_| node != root) {
            side[node] = if parent == root { Some(node) } else { side[parent] };
        }
    }
    side[root] = None;
    let mut trees = BTreeMap::new();
    for &origin in reachable {
        let children: Vec<PeerId> =
            on_tree.iter().filter(|node| side[origin] != Some(**node)).map(|node| ids[*node]).collect();
        if !children.is_empty() {
            trees.insert(ids[origin], children);
        }
    }
    trees
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
        router.update(graph.clone());
        router.routes(id(me))
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

    /// Follows a broadcast through every peer's own tables; gives how often each got it.
    fn broadcast(tables: &[Routes], origin: usize) -> Vec<usize> {
        let mut got = vec![0; tables.len()];
        let mut queue = vec![origin];
        while let Some(node) = queue.pop() {
            for child in tables[node].trees.get(&id(origin)).into_iter().flatten() {
                let child = (0..tables.len()).find(|n| id(*n) == *child).unwrap();
                got[child] += 1;
                assert!(got[child] < 3, "a loop");
                queue.push(child);
            }
        }
        got
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

    fn check_broadcasts(graph: &Graph, tables: &[Routes]) {
        let all = distances(graph);
        for (origin, distances) in all.iter().enumerate() {
            for (node, times) in broadcast(tables, origin).into_iter().enumerate() {
                let expected = usize::from(node != origin && distances[node] != FAR);
                assert_eq!(times, expected, "from {origin} at {node}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_peer_gets_each_broadcast_exactly_once(graph in any_graph()) {
            let count = graph.ids().len();
            let tables: Vec<_> = (0..count).map(|node| routes_of(&graph, node)).collect();
            check_broadcasts(&graph, &tables);
            let shared: Vec<_> = (0..count).map(|node| {
                let mut trees = BTreeMap::new();
                let mut cache = Cache { graph: &graph, trees: &mut trees, make: Spt::new };
                let reachable: Vec<_> =
                    (0..count).filter(|to| cache.tree(node).distance[*to] != FAR).collect();
                Routes { hops: BTreeMap::new(), trees: shared_tree(&mut cache, node, &reachable) }
            }).collect();
            check_broadcasts(&graph, &shared);
        }

        #[test]
        fn a_flat_tree_is_the_cheapest_one_when_every_edge_costs_the_same(graph in any_graph()) {
            let shape = graph.shape();
            for root in 0..shape.ids().len() {
                prop_assert_eq!(Spt::flat(&shape, root), Spt::new(&shape, root));
            }
        }

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
        fn repaired_trees_are_the_ones_made_anew(graphs in proptest::collection::vec(edges_of(7), 1..6)) {
            for me in 0..7 {
                let mut router = Router::default();
                for list in &graphs {
                    let graph = graph(7, list);
                    router.update(graph.clone());
                    prop_assert_eq!(router.routes(id(me)), routes_of(&graph, me));
                    for (root, tree) in &router.trees {
                        prop_assert_eq!(tree, &Spt::new(&graph, *root));
                    }
                    for (root, tree) in &router.flat {
                        prop_assert_eq!(tree, &Spt::new(&graph.shape(), *root));
                    }
                }
            }
        }

        #[test]
        fn opinions_on_round_trips_do_not_part_the_broadcast_trees(list in edges_of(7), seed in any::<u64>()) {
            // Each peer has heard of other costs; all agree on which edges there are.
            let opinion = |node: usize| {
                let cost = |at: usize| 1 + (seed.rotate_left((at * 7 + node * 13) as u32) % 50) as u32;
                let list: Vec<_> = list.iter().enumerate().map(|(at, &(a, b, _))| (a, b, cost(at))).collect();
                graph(7, &list)
            };
            let tables: Vec<_> = (0..7).map(|node| routes_of(&opinion(node), node)).collect();
            check_broadcasts(&opinion(0), &tables);
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

    #[test]
    fn a_long_line_uses_the_shared_tree_and_still_reaches_all() {
        let count = OWN_TREES_MAX + 40;
        let list: Vec<_> = (1..count).map(|n| (n - 1, n, 1)).collect();
        let graph = graph(count, &list);
        let tables: Vec<_> = (0..count).map(|node| routes_of(&graph, node)).collect();
        for origin in [0, 1, count / 2, count - 1] {
            let got = broadcast(&tables, origin);
            assert!(got.iter().enumerate().all(|(node, times)| *times == usize::from(node != origin)));
        }
    }
}
