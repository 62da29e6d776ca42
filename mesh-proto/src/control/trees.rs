//! Broadcast trees from a [`Graph`]: which neighbours this peer passes each origin's frames on to.
//!
//! A tree counts hops only, not round trips: a round trip is news that each peer hears at another
//! moment, and while two peers hold different trees a broadcast is lost or doubled between them.
//! So a tree changes only when an edge comes or goes (gossip G12).
//!
//! The trees of all origins grow at the same time, a bit of a word for each origin:
//!
//! ```text
//!   fresh[n]   origins that are exactly this many hops from n
//!   one hop on:  fresh'[n] = (fresh[a] | fresh[b] | …) & !seen[n]       a, b … neighbours of n
//!                an origin in fresh'[n] has as n's parent the first of a, b … that has it in fresh
//! ```

use std::collections::BTreeMap;

use super::topology::Graph;
use crate::id::PeerId;

/// Up to so many reachable peers each origin has a tree of its own, a bit of a word; above, all
/// share the tree of the lowest id, so that the work stays in proportion to the mesh.
pub const OWN_TREES_MAX: usize = 128;

/// For each origin the neighbours of `me` (a node of the graph) whose parent it is; origins that
/// end here are left out.
pub(super) fn children(graph: &Graph, me: usize) -> BTreeMap<PeerId, Vec<PeerId>> {
    let reachable = reachable(graph, me);
    if reachable.len() <= OWN_TREES_MAX { own_trees(graph, me, &reachable) } else { shared_tree(graph, me, &reachable) }
}

/// The nodes that can be reached from one, and it, ascending.
fn reachable(graph: &Graph, from: usize) -> Vec<usize> {
    let mut seen = vec![false; graph.ids().len()];
    let mut queue = vec![from];
    seen[from] = true;
    while let Some(node) = queue.pop() {
        for &(next, _) in graph.neighbours(node) {
            if !core::mem::replace(&mut seen[next], true) {
                queue.push(next);
            }
        }
    }
    (0..seen.len()).filter(|node| seen[*node]).collect()
}

/// One tree for each origin. Of a node's equally near parents the lowest is the one.
fn own_trees(graph: &Graph, me: usize, reachable: &[usize]) -> BTreeMap<PeerId, Vec<PeerId>> {
    let ids = graph.ids();
    let mut seen = vec![0u128; ids.len()];
    for (bit, &origin) in reachable.iter().enumerate() {
        seen[origin] = 1 << bit;
    }
    let mut fresh = seen.clone();
    let mut next = vec![0u128; ids.len()];
    // For each neighbour the origins in whose trees it is a child of this peer.
    let mut mine: Vec<(usize, u128)> = graph.neighbours(me).iter().map(|edge| (edge.0, 0)).collect();
    loop {
        let mut any = 0;
        for &node in reachable {
            let came = graph.neighbours(node).iter().fold(0, |came, edge| came | fresh[edge.0]) & !seen[node];
            next[node] = came;
            any |= came;
        }
        if any == 0 {
            break;
        }
        for (node, origins) in &mut mine {
            let lower = graph.neighbours(*node).iter().take_while(|edge| edge.0 < me);
            let elsewhere = lower.fold(0, |elsewhere, edge| elsewhere | fresh[edge.0]);
            *origins |= next[*node] & fresh[me] & !elsewhere;
        }
        for &node in reachable {
            seen[node] |= next[node];
        }
        core::mem::swap(&mut fresh, &mut next);
    }
    let children = |bit: usize| -> Vec<PeerId> {
        mine.iter().filter(|(_, origins)| origins >> bit & 1 == 1).map(|(node, _)| ids[*node]).collect()
    };
    let trees = reachable.iter().enumerate().map(|(bit, origin)| (ids[*origin], children(bit)));
    trees.filter(|(_, children)| !children.is_empty()).collect()
}

/// One tree for all, rooted at the lowest id: broadcasts flow along it, away from where they
/// came from.
fn shared_tree(graph: &Graph, me: usize, reachable: &[usize]) -> BTreeMap<PeerId, Vec<PeerId>> {
    let ids = graph.ids();
    let Some(&lowest) = reachable.first() else {
        return BTreeMap::new();
    };
    let Levels { order, parent } = levels(graph, lowest);
    let on_tree: Vec<usize> = graph
        .neighbours(me)
        .iter()
        .map(|(node, _)| *node)
        .filter(|node| parent[*node] == Some(me) || parent[me] == Some(*node))
        .collect();
    // Through which of my tree neighbours each origin's broadcasts come: the child in whose
    // subtree it is, or else my parent.
    let mut side: Vec<Option<usize>> = vec![parent[me]; ids.len()];
    for node in order {
        if let Some(above) = parent[node].filter(|_| node != me) {
            side[node] = if above == me { Some(node) } else { side[above] };
        }
    }
    side[me] = None;
    let children = |origin: usize| -> Vec<PeerId> {
        on_tree.iter().filter(|node| side[origin] != Some(**node)).map(|node| ids[*node]).collect()
    };
    let trees = reachable.iter().map(|origin| (ids[*origin], children(*origin)));
    trees.filter(|(_, children)| !children.is_empty()).collect()
}

/// The tree of fewest hops from one root.
struct Levels {
    /// The nodes, nearer ones first.
    order: Vec<usize>,
    parent: Vec<Option<usize>>,
}

fn levels(graph: &Graph, root: usize) -> Levels {
    let count = graph.ids().len();
    let (mut depth, mut parent) = (vec![usize::MAX; count], vec![None; count]);
    depth[root] = 0;
    let mut order = vec![root];
    let mut at = 0;
    while let Some(&node) = order.get(at) {
        at += 1;
        for &(to, _) in graph.neighbours(node) {
            if depth[to] == usize::MAX {
                depth[to] = depth[node] + 1;
                parent[to] = Some(node);
                order.push(to);
            } else if depth[to] == depth[node] + 1 && parent[to].is_some_and(|above| node < above) {
                parent[to] = Some(node);
            }
        }
    }
    Levels { order, parent }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Trees = BTreeMap<PeerId, Vec<PeerId>>;

    fn id(n: usize) -> PeerId {
        PeerId((n as u128).to_be_bytes())
    }

    fn graph(count: usize, list: &[(usize, usize, u32)]) -> Graph {
        let edges: Vec<_> = list.iter().filter(|(a, b, _)| a != b).map(|&(a, b, cost)| (id(a), id(b), cost)).collect();
        Graph::from_edges((0..count).map(id).collect(), &edges)
    }

    /// Follows a broadcast through every peer's own trees; gives how often each got it.
    fn broadcast(trees: &[Trees], origin: usize) -> Vec<usize> {
        let mut got = vec![0; trees.len()];
        let mut queue = vec![origin];
        while let Some(node) = queue.pop() {
            for child in trees[node].get(&id(origin)).into_iter().flatten() {
                let child = (0..trees.len()).find(|n| id(*n) == *child).unwrap();
                got[child] += 1;
                assert!(got[child] < 3, "a loop");
                queue.push(child);
            }
        }
        got
    }

    fn check(graph: &Graph, trees: &[Trees]) {
        for origin in 0..trees.len() {
            let reachable = reachable(graph, origin);
            for (node, times) in broadcast(trees, origin).into_iter().enumerate() {
                let expected = usize::from(node != origin && reachable.contains(&node));
                assert_eq!(times, expected, "from {origin} at {node}");
            }
        }
    }

    fn any_edges(count: usize) -> impl Strategy<Value = Vec<(usize, usize, u32)>> {
        proptest::collection::vec((0..count, 0..count, 1u32..4), 0..20)
    }

    proptest! {
        #[test]
        fn every_peer_gets_each_broadcast_exactly_once(list in any_edges(8)) {
            let graph = graph(8, &list);
            let all = |trees: fn(&Graph, usize, &[usize]) -> Trees| -> Vec<Trees> {
                (0..8).map(|me| trees(&graph, me, &reachable(&graph, me))).collect()
            };
            check(&graph, &all(own_trees));
            check(&graph, &all(shared_tree));
        }

        #[test]
        fn a_broadcast_takes_the_fewest_hops_through_the_lowest_parents(list in any_edges(8)) {
            let graph = graph(8, &list);
            for me in 0..8 {
                let trees = own_trees(&graph, me, &reachable(&graph, me));
                for origin in 0..8 {
                    let parent = levels(&graph, origin).parent;
                    let expected: Vec<_> = (0..8).filter(|node| parent[*node] == Some(me)).map(id).collect();
                    prop_assert_eq!(trees.get(&id(origin)).cloned().unwrap_or_default(), expected);
                }
            }
        }

        #[test]
        fn opinions_on_round_trips_do_not_part_the_trees(list in any_edges(7), seed in any::<u64>()) {
            // Each peer has heard of other costs; all agree on which edges there are.
            let opinion = |node: usize| {
                let cost = |at: usize| 1 + (seed.rotate_left((at * 7 + node * 13) as u32) % 50) as u32;
                let list: Vec<_> = list.iter().enumerate().map(|(at, &(a, b, _))| (a, b, cost(at))).collect();
                graph(7, &list)
            };
            let trees: Vec<_> = (0..7).map(|node| children(&opinion(node), node)).collect();
            check(&opinion(0), &trees);
        }
    }

    #[test]
    fn a_long_line_uses_the_shared_tree_and_one_of_all_bits_its_own() {
        for count in [OWN_TREES_MAX, OWN_TREES_MAX + 40] {
            let list: Vec<_> = (1..count).map(|n| (n - 1, n, 1)).collect();
            let graph = graph(count, &list);
            let trees: Vec<_> = (0..count).map(|node| children(&graph, node)).collect();
            for origin in [0, 1, count / 2, count - 1] {
                let got = broadcast(&trees, origin);
                assert!(got.iter().enumerate().all(|(node, times)| *times == usize::from(node != origin)));
            }
        }
    }
}
