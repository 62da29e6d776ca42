//! What comes of a schedule, once all faults have ended.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;

use crate::schedule::{Birth, Schedule};
use crate::sim::Peer;

/// What a schedule did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) given: u64,
    pub(crate) refused: BTreeMap<&'static str, u64>,
    pub(crate) crashes: u64,
    pub(crate) losses: u64,
    pub(crate) removals: u64,
    pub(crate) sleeps: u64,
    pub(crate) given_twice: u64,
    pub(crate) given_late: u64,
    pub(crate) trace: u64,
    pub(crate) messages: u64,
    pub(crate) writes: u64,
    pub(crate) disturbed_writes: u64,
    pub(crate) violations: Vec<String>,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: Self) {
        self.given += other.given;
        self.crashes += other.crashes;
        self.losses += other.losses;
        self.removals += other.removals;
        self.sleeps += other.sleeps;
        self.given_twice += other.given_twice;
        self.given_late += other.given_late;
        self.messages += other.messages;
        self.writes += other.writes;
        for (why, count) in other.refused {
            *self.refused.entry(why).or_default() += count;
        }
    }
}

impl Schedule {
    /// After all faults have ended: everyone agrees, nothing is lost, whoever asks gets.
    fn recover(&mut self) {
        self.disturbed_writes = self.world.nodes.iter().map(|node| node.writes).sum();
        self.world.heal();
        for node in 0..self.world.nodes.len() {
            if self.world.nodes[node].dead {
                let with_disk = self.world.below(2) == 0;
                self.world.rise(node, with_disk);
            }
        }
        // Longer than the reuse delay.
        self.world.run_for(Duration::from_secs(35));
        self.world.lift_fences();
        let now = self.world.now;
        self.world.check.overdue(now);
        self.world.check_blocks();
        self.agree();
        self.world.check.met = true;
        for node in 0..self.world.nodes.len() {
            self.nothing_lost(node);
            for range in self.world.ranges.clone() {
                self.gets_an_address(node, range);
            }
        }
        self.world.run_for(Duration::from_secs(1));
        self.world.check_blocks();
        self.settle_disputes();
    }

    /// Whatever two have is named at both until one of them goes.
    fn settle_disputes(&mut self) {
        let all: Vec<_> = (0..self.world.nodes.len()).map(|node| self.world.contests(node)).collect();
        for (address, peer, owner) in self.world.check.twice() {
            let node = usize::from(peer.0) - 1;
            let contests = &all[node];
            if !contests.contains(&(address, owner.clone())) {
                let text = format!("UNNAMED {address} of {owner} at {peer:?}: {contests:?}");
                self.world.check.violation(text);
            }
            self.world.free(node, &owner, Some(address));
        }
        if self.world.check.given_twice == 0 {
            return;
        }
        self.world.run_for(Duration::from_secs(80));
        for node in 0..self.world.nodes.len() {
            let mut left = self.world.contests(node);
            left.retain(|(address, _)| !self.world.check.is_orphaned(*address));
            if !left.is_empty() {
                let text = format!("IN DISPUTE {left:?} at {:?}", self.world.nodes[node].peer);
                self.world.check.violation(text);
            }
            self.nothing_lost(node);
        }
    }

    /// A grant may be on its way at any one moment, but not for long. What messages that were lost
    /// would have told spreads by comparisons, of each with one random other every 10 to 15 s: to
    /// all within 80 s of the last fault, of which 35 are over.
    fn agree(&mut self) {
        for _ in 0..45 {
            if self.birth != Birth::Apart && self.views().len() == 1 && self.world.networks().len() == 1 {
                return;
            }
            self.world.run_for(Duration::from_secs(1));
        }
        let networks = self.world.networks();
        if networks.len() != 1 {
            self.world.check.violation(format!("APART {networks:?}"));
        }
        let views = self.views();
        if views.len() != 1 {
            self.world.check.violation(format!("DISAGREE {views:?}"));
        }
    }

    /// What the nodes believe that everybody owns, each opinion once.
    fn views(&self) -> Vec<Vec<(Peer, u64)>> {
        let mut views: Vec<_> = Vec::new();
        for node in &self.world.nodes {
            let summary = node.allocator.as_ref().map(|allocator| allocator.summary());
            let mut peers = summary.map(|summary| summary.peers).unwrap_or_default();
            peers.retain(|&(_, owned)| owned > 0);
            peers.sort_unstable();
            views.push(peers);
        }
        views.dedup();
        views
    }

    fn nothing_lost(&mut self, node: usize) {
        let peer = self.world.nodes[node].peer;
        for (address, owner) in self.world.check.held_by(peer) {
            let allocator = self.world.nodes[node].allocator.as_ref();
            let found = allocator.map(|allocator| allocator.lookup(&owner));
            let there = found.unwrap_or_default().iter().any(|net| net.addr() == address);
            if !there {
                let text = format!("LOST {address} of {owner} at {peer:?} at the end");
                self.world.check.violation(text);
            }
        }
    }

    fn gets_an_address(&mut self, node: usize, range: IpNet) {
        let request = self.world.allocate(node, "last", range);
        let answer = self.world.answer(request);
        if answer.is_err() && self.free_anywhere(range) {
            let text = format!("STUCK {:?} in {range}: {answer:?}", self.world.nodes[node].peer);
            self.world.check.violation(text);
        }
    }

    /// Whether an address is free for anyone: blocks of these ranges are single addresses, or
    /// far too many to run out of.
    fn free_anywhere(&self, range: IpNet) -> bool {
        let host_bits = range.max_prefix_len() - range.prefix_len();
        if host_bits > 14 {
            return true;
        }
        let reserved = if range.addr().is_ipv4() { 2 } else { 1 };
        let used: usize = self
            .world
            .nodes
            .iter()
            .filter_map(|node| node.allocator.as_ref())
            .flat_map(|allocator| allocator.summary().allocations)
            .filter(|(_, net, _)| range.contains(&net.addr()))
            .count();
        used < (1 << host_bits) - reserved
    }

    /// What everybody knows, for whoever looks for the reason of a violation.
    #[expect(clippy::print_stdout, reason = "asked for by a variable")]
    fn dump(&self) {
        for node in &self.world.nodes {
            let Some(allocator) = &node.allocator else {
                println!("{:?} is down", node.peer);
                continue;
            };
            let summary = allocator.summary();
            println!("{:?} life {} panel {:?} {:?}", node.peer, allocator.life(), allocator.panel(), node.notices);
            println!("  holds {:?}", allocator.held());
            println!("  gave {:?}", summary.allocations);
            println!("  problems {:?} cooling {}", summary.problems, summary.cooling);
            for range in &self.world.ranges {
                let owners: Vec<String> = range
                    .hosts()
                    .take(16)
                    .filter_map(|address| Some((address, allocator.owner_of(address)?)))
                    .map(|(address, (peer, term, epoch))| format!("{address}={}@{term:x}.{epoch}", peer.0))
                    .collect();
                println!("  owners {}", owners.join(" "));
            }
        }
    }

    pub(crate) fn run(mut self, steps: u64) -> Outcome {
        self.begin();
        self.disturb(steps);
        if self.world.check.violations.is_empty() {
            self.recover();
        }
        if std::env::var_os("WEFT_IPAM_DEBUG").is_some() {
            self.dump();
        }
        Outcome {
            given: self.world.check.given,
            refused: self.world.check.refused,
            crashes: self.crashed,
            losses: self.losses_done,
            removals: self.removed,
            sleeps: self.slept,
            given_twice: self.world.check.given_twice,
            given_late: self.world.check.given_late,
            trace: self.world.trace,
            messages: self.world.nodes.iter().map(|node| node.messages_sent).sum(),
            disturbed_writes: self.disturbed_writes,
            writes: self.world.nodes.iter().map(|node| node.writes).sum(),
            violations: self.world.check.violations,
        }
    }
}
