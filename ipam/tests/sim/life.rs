//! What befalls nodes: they start, crash, sleep, lose their disks, are removed.

use std::net::IpAddr;
use std::time::Duration;

use ipam::allocator::{Birth, Config};
use ipnet::IpNet;
use rand_core::RngCore;

use super::subject::Subject;
use super::{Event, World};

/// So long after it was removed a node in reach has said that it lives.
const SAYS_SO: Duration = Duration::from_secs(2);

impl World {
    /// Starts a node that is down, with its disk.
    pub(crate) fn start(&mut self, node: usize) {
        if self.nodes[node].allocator.is_some() || self.nodes[node].dead {
            return;
        }
        if self.clock_jumps {
            self.nodes[node].ahead = Duration::from_secs(self.below(1_000_000));
        }
        let now = self.now + self.nodes[node].ahead;
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let it = &mut self.nodes[node];
        it.life += 1;
        it.process += 1;
        let birth = match &self.seeds {
            Some(seeds) => Birth::Seeds(seeds.clone()),
            None if it.observer => Birth::Observer,
            None => Birth::ByItself,
        };
        let config = Config {
            birth,
            dead_after: it.dead_after.unwrap_or(self.dead_after),
            ..Config::new(it.peer, it.life, self.ranges.clone(), it.named)
        };
        let subject = Subject::new(self.kind, config, it.disk.clone(), seed, now, self.ablation);
        self.tell(|| format!("{node} starts as {:x}", subject.life()));
        self.nodes[node].allocator = Some(subject);
        self.drain(node);
        self.audit(node);
        self.peers_changed();
    }

    pub(crate) fn start_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.start(node);
        }
    }

    /// What a router does after a start: addresses that nobody has any more are freed.
    fn audit(&mut self, node: usize) {
        let it = &self.nodes[node];
        let Some(allocator) = &it.allocator else {
            return;
        };
        let listed: Vec<(String, IpNet)> =
            allocator.summary().allocations.into_iter().map(|(owner, net, _)| (owner, net)).collect();
        let peer = it.peer;
        for (owner, net) in self.check.after_start(peer, &listed) {
            self.free(node, &owner, Some(net.addr()));
        }
        if self.late_surveys == 0 {
            return self.survey(node);
        }
        // Not drawn, so that schedules that were kept go on as they did.
        let mixed = (self.now.as_micros() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let process = self.nodes[node].process;
        self.schedule(self.now + Duration::from_millis(mixed % self.late_surveys), Event::Survey { node, process });
    }

    /// Tells a node what runs on its host.
    pub(crate) fn survey(&mut self, node: usize) {
        let peer = self.nodes[node].peer;
        let in_use: Vec<(String, IpAddr)> =
            self.check.held_by(peer).into_iter().map(|(address, owner)| (owner, address)).collect();
        let now = self.clock(node);
        if let Some(allocator) = &mut self.nodes[node].allocator {
            allocator.survey(&in_use, now);
        }
        self.drain(node);
    }

    /// A node's clock goes forward at once.
    pub(crate) fn jump(&mut self, node: usize, by: Duration) {
        self.nodes[node].ahead += by;
        if !self.is_up(node) {
            return;
        }
        let now = self.clock(node);
        if let Some(allocator) = &mut self.nodes[node].allocator {
            allocator.handle_timeout(now);
            self.drain(node);
        }
    }

    /// A node's host sleeps: nothing happens there, while its clock goes on; then it all happens at once.
    pub(crate) fn sleep(&mut self, node: usize, time: Duration) {
        if !self.is_up(node) {
            return;
        }
        self.tell(|| format!("{node} sleeps for {time:?}"));
        let until = self.now + time;
        self.nodes[node].asleep_until = until;
        if self.frozen {
            let ahead = self.nodes[node].ahead;
            self.nodes[node].ahead = ahead.saturating_sub(time);
        }
        self.check.slept(self.nodes[node].peer, time);
        self.peers_changed();
        self.schedule(until, Event::Awake);
    }

    pub(crate) fn is_asleep(&self, node: usize) -> bool {
        self.now < self.nodes[node].asleep_until
    }

    /// Whether a node runs, and its host is awake.
    pub(crate) fn is_up(&self, node: usize) -> bool {
        self.nodes[node].allocator.is_some() && !self.is_asleep(node)
    }

    /// Waits until every host is awake.
    pub(super) fn until_awake(&mut self) {
        let last = self.nodes.iter().map(|node| node.asleep_until).max();
        self.run_for(last.unwrap_or_default().saturating_sub(self.now));
    }

    /// Keeps a copy of a node's disk, once it knows of other owners: of one that never was anything
    /// but alone, nothing can tell an old copy from the newest state (docs/ipam.md, section 8).
    pub(crate) fn copy(&mut self, node: usize) {
        let it = &self.nodes[node];
        // As one would know that starts with it: the one that runs may be ahead of its disk.
        let config = Config::new(it.peer, it.life, self.ranges.clone(), it.named);
        let others = match Subject::new(self.kind, config, it.disk.clone(), [0; 32], self.now, self.ablation) {
            Subject::Allocator(one) => one.summary().peers.iter().filter(|(_, owned)| *owned > 0).count() > 1,
            Subject::Weave(_) => true,
        };
        let it = &mut self.nodes[node];
        if it.copies.len() < 4 && others {
            it.copies.push(it.disk.clone());
        }
    }

    /// Ends a node, puts an old copy of its disk back; its containers run on.
    pub(crate) fn roll_back(&mut self, node: usize, back_after: Duration) -> bool {
        let count = self.nodes[node].copies.len() as u64;
        if count == 0 || self.nodes[node].allocator.is_none() {
            return false;
        }
        let at = self.below(count) as usize;
        self.crash(node, back_after);
        self.tell(|| format!("{node} gets copy {at} of its disk"));
        let it = &mut self.nodes[node];
        it.disk = it.copies[at].clone();
        self.check.lost_state(it.peer);
        true
    }

    /// A host and its containers are gone for good.
    pub(crate) fn die(&mut self, node: usize) {
        self.crash(node, Duration::ZERO);
        self.tell(|| format!("{node} is dead"));
        self.nodes[node].dead = true;
        self.check.died(self.nodes[node].peer);
    }

    /// A host that was taken for dead comes back, with its old disk or an empty one.
    pub(crate) fn rise(&mut self, node: usize, with_disk: bool) {
        if !with_disk {
            self.nodes[node].disk.clear();
            self.nodes[node].named = self.nodes[node].named.max(1);
        }
        self.tell(|| format!("{node} rises, with its disk: {with_disk}"));
        self.nodes[node].dead = false;
        self.check.lost_state(self.nodes[node].peer);
        self.start(node);
    }

    /// One node is told that another is gone; once more if it has to ask the others first.
    pub(crate) fn remove(&mut self, node: usize, gone: usize) {
        if !self.try_remove(node, gone) {
            self.run_for(Duration::from_secs(1));
            self.try_remove(node, gone);
        }
    }

    fn try_remove(&mut self, node: usize, gone: usize) -> bool {
        if self.is_asleep(node) {
            return true;
        }
        let (now, peer) = (self.clock(node), self.nodes[gone].peer);
        let Some(allocator) = &mut self.nodes[node].allocator else {
            return true;
        };
        let result = allocator.remove_peer(peer, now);
        let removed = result.is_ok();
        self.tell(|| format!("{node} removes {gone}: {result:?}"));
        if removed {
            let life = self.nodes[gone].allocator.as_ref().map(Subject::life);
            self.nodes[gone].removed_life = life;
            self.check.fence(peer);
            let now = self.now;
            self.nodes[node].told_gone.insert(gone, now);
        }
        self.drain(node);
        removed
    }

    /// Ends the fence of nodes that have begun another life, and know the voters of who took them for gone.
    pub(crate) fn lift_fences(&mut self) {
        self.overrule();
        for node in &mut self.nodes {
            let Some(up) = &node.allocator else { continue };
            let knows = node.overruled_by.is_none_or(|by| up.panel().is_some_and(|(version, _)| version >= by));
            if knows && node.removed_life != Some(up.life()) {
                (node.removed_life, node.overruled_by) = (None, None);
                self.check.unfence(node.peer);
            }
        }
    }

    /// A node that was told that most voters are gone goes on alone. Those of them that live are removed by that,
    /// also if they have begun another life since, but could not say so.
    fn overrule(&mut self) {
        for at in 0..self.nodes.len() {
            let mut gone = core::mem::take(&mut self.nodes[at].told_gone);
            gone.retain(|&other, told| {
                let meets = self.groups[other] == self.groups[at] && self.is_up(other) && self.is_up(at);
                !meets || self.now < *told + SAYS_SO
            });
            let alone = self.nodes[at].allocator.as_ref().and_then(Subject::panel);
            let alone = alone.filter(|(_, voters)| *voters == [self.nodes[at].peer]);
            if let Some((version, _)) = alone {
                for &other in gone.keys() {
                    let it = &mut self.nodes[other];
                    let knows =
                        it.allocator.as_ref().and_then(Subject::panel).is_some_and(|(known, _)| known >= version);
                    if !knows && it.overruled_by.is_none() {
                        it.overruled_by = Some(version);
                        self.check.fence(it.peer);
                    }
                }
                gone.clear();
            }
            self.nodes[at].told_gone = gone;
        }
    }

    /// Ends a node at once; its disk stays, and it comes back after a while.
    pub(crate) fn crash(&mut self, node: usize, back_after: Duration) {
        if self.nodes[node].allocator.take().is_none() {
            return;
        }
        self.tell(|| format!("{node} ends for {back_after:?}"));
        let peer = self.nodes[node].peer;
        self.check.crashed(peer);
        self.nodes[node].timer = None;
        self.nodes[node].asleep_until = Duration::ZERO;
        self.peers_changed();
        let at = self.now + back_after;
        self.schedule(at, Event::Start { node });
    }

    /// Raises the life number of a running node.
    pub(crate) fn raise(&mut self, node: usize) {
        if self.is_asleep(node) {
            return;
        }
        let now = self.clock(node);
        let it = &mut self.nodes[node];
        if let Some(allocator) = &mut it.allocator {
            it.life += 1;
            allocator.raise_incarnation(it.life, now);
            self.drain(node);
            self.peers_changed();
        }
    }

    /// Ends a node and removes its disk.
    pub(crate) fn wipe(&mut self, node: usize, back_after: Duration) {
        self.crash(node, back_after);
        self.tell(|| format!("{node} loses its disk"));
        self.nodes[node].disk.clear();
        // Whoever sets a host up anew beside others names one of them.
        self.nodes[node].named = self.nodes[node].named.max(1);
        let peer = self.nodes[node].peer;
        self.check.lost_state(peer);
    }
}
