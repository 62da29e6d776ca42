//! Which host reaches which: random graphs that hang together, also without the hosts that the
//! plan takes away for good.

use std::collections::BTreeSet;

use super::dice::Dice;
use super::queue::Index;

/// Links of each host that are tried, besides the two of the ring.
const MORE_LINKS: u64 = 7;

/// An undirected graph over hosts.
#[derive(Debug, Clone)]
pub(super) struct Graph {
    pub(super) neighbours: Vec<BTreeSet<Index>>,
}

impl Graph {
    fn empty(hosts: Index) -> Self {
        Self { neighbours: vec![BTreeSet::new(); usize::from(hosts)] }
    }

    /// Everybody reaches everybody.
    pub(super) fn full(hosts: Index) -> Self {
        let mut graph = Self::empty(hosts);
        (0..hosts).for_each(|a| (0..a).for_each(|b| graph.join(a, b)));
        graph
    }

    /// A ring in random order and chords, so that nearly every host has six to eight neighbours.
    pub(super) fn partial(hosts: Index, dice: &mut Dice) -> Self {
        let mut graph = Self::empty(hosts);
        let mut order: Vec<Index> = (0..hosts).collect();
        dice.shuffle(&mut order);
        for (place, &host) in order.iter().enumerate() {
            graph.join(host, order[(place + 1) % order.len()]);
        }
        let chords = u64::from(hosts) * MORE_LINKS / 2;
        for _ in 0..chords {
            let (a, b) = (dice.index(order.len()), dice.index(order.len()));
            if graph.neighbours[a].len() < 8 && graph.neighbours[b].len() < 8 {
                graph.join(order_of(a), order_of(b));
            }
        }
        graph
    }

    /// A part of the links that still hangs together: a spanning tree in random order.
    pub(super) fn thin(&self, dice: &mut Dice) -> Self {
        let hosts = order_of(self.neighbours.len());
        let mut tree = Self::empty(hosts);
        let mut seen = BTreeSet::from([0]);
        let mut border: Vec<(Index, Index)> = self.neighbours[0].iter().map(|next| (0, *next)).collect();
        while !border.is_empty() {
            let (from, to) = border.swap_remove(dice.index(border.len()));
            if seen.insert(to) {
                tree.join(from, to);
                border.extend(self.neighbours[usize::from(to)].iter().map(|next| (to, *next)));
            }
        }
        tree
    }

    /// Whether all hosts but those of `gone` reach each other.
    pub(super) fn hangs_together(&self, gone: &BTreeSet<Index>) -> bool {
        let all = (0..order_of(self.neighbours.len())).filter(|host| !gone.contains(host));
        let wanted = all.clone().count();
        let mut seen: BTreeSet<Index> = all.take(1).collect();
        let mut border: Vec<Index> = seen.iter().copied().collect();
        while let Some(host) = border.pop() {
            for &next in &self.neighbours[usize::from(host)] {
                if !gone.contains(&next) && seen.insert(next) {
                    border.push(next);
                }
            }
        }
        seen.len() == wanted
    }

    /// Every link once.
    pub(super) fn links(&self) -> Vec<(Index, Index)> {
        let ends = self.neighbours.iter().enumerate();
        ends.flat_map(|(a, all)| all.iter().map(move |&b| (order_of(a), b))).filter(|(a, b)| a < b).collect()
    }

    fn join(&mut self, a: Index, b: Index) {
        if a != b {
            self.neighbours[usize::from(a)].insert(b);
            self.neighbours[usize::from(b)].insert(a);
        }
    }
}

fn order_of(place: usize) -> Index {
    Index::try_from(place).unwrap_or(Index::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_graph_hangs_together_with_few_links_each() {
        for seed in 0..50 {
            let mut dice = Dice::new(seed, "graph");
            let graph = Graph::partial(100, &mut dice);
            assert!(graph.hangs_together(&BTreeSet::new()));
            let degrees: Vec<usize> = graph.neighbours.iter().map(BTreeSet::len).collect();
            let mean = degrees.iter().sum::<usize>() as f64 / 100.0;
            assert!((6.0..8.0).contains(&mean), "{mean}");
            assert!(degrees.iter().all(|degree| (2..=9).contains(degree)), "{degrees:?}");
            let tree = graph.thin(&mut dice);
            assert!(tree.hangs_together(&BTreeSet::new()));
            assert_eq!(tree.links().len(), 99);
        }
    }

    #[test]
    fn what_falls_apart_without_a_host_is_known() {
        let mut graph = Graph::empty(5);
        (0..4).for_each(|a| graph.join(a, a + 1));
        assert!(graph.hangs_together(&BTreeSet::from([4])));
        assert!(!graph.hangs_together(&BTreeSet::from([2])));
        assert!(Graph::full(5).hangs_together(&BTreeSet::from([2, 3])));
        assert_eq!(Graph::full(5).links().len(), 10);
    }
}
