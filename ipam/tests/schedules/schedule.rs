//! One schedule: requests and faults, each drawn from the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use rand_core::RngCore;

use crate::sim::{Asked, Faults, Peer, World};

const SMALL: [&[&str]; 5] = [
    &["10.0.0.0/28"],
    &["10.0.0.0/27", "fd00::/124"],
    &["10.0.0.0/24"],
    &["10.32.0.0/12", "fd00::/64"],
    &["10.5.0.0/16", "10.0.0.0/29"],
];

/// How a schedule begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Birth {
    /// The first peer founds alone; no partition and no crash until all have joined.
    Alone,
    /// All name all; faults from the first moment.
    Together,
    /// All found alone, some together with others that they reach; what they give then may be given by
    /// others too. All are connected later, perhaps by and by.
    Apart,
    /// Some are told that they are the founders; faults from the first moment.
    Seeded,
}

/// A schedule under way.
pub(crate) struct Schedule {
    pub(crate) world: World,
    pub(crate) birth: Birth,
    pub(crate) asked: Asked,
    pub(crate) partitions: bool,
    pub(crate) crashes: bool,
    pub(crate) crashed: u64,
    /// Disks are lost, and old copies of them put back, one voter's at a time.
    pub(crate) losses: bool,
    pub(crate) lost: BTreeSet<usize>,
    /// For which panel voters have known all, when last seen.
    pub(crate) knows: BTreeMap<usize, u64>,
    /// The voters of each panel that was seen.
    pub(crate) panels: BTreeMap<u64, Vec<usize>>,
    pub(crate) losses_done: u64,
    /// Peers are removed, dead or alive.
    pub(crate) removals: bool,
    /// Hosts sleep: for the others they are away, and their clocks go on.
    pub(crate) sleeps: bool,
    pub(crate) slept: u64,
    pub(crate) removed: u64,
    /// Whether a step that draws a fault which is off is over at once. Otherwise it is a pause of up
    /// to 35 s, as 2 of 109 steps always are; most time of such schedules is spent in pauses.
    pub(crate) brisk: bool,
    /// Writes until all faults ended.
    pub(crate) disturbed_writes: u64,
}

impl Schedule {
    pub(crate) fn new(birth: Birth, seed: u64) -> Self {
        let mut world = World::new(seed, &[0; 7], &[]);
        let count = 3 + world.below(5) as usize;
        let mut named = vec![count - 1; count];
        match birth {
            Birth::Alone => named[0] = 0,
            Birth::Together | Birth::Seeded => {}
            Birth::Apart => named.fill(0),
        }
        let ranges = SMALL[world.below(5) as usize];
        let mut world = World::new(seed, &named, ranges);
        // Each kind of fault is absent from half of the schedules.
        let mut sometimes = |most: u64| {
            let some = world.rng.next_u64() % (most + 1);
            if world.rng.next_u64().is_multiple_of(2) { 0 } else { some }
        };
        let faults = Faults {
            loss: sometimes(300),
            duplication: sometimes(200),
            delay: 1 + sometimes(1500),
            write: 1 + sometimes(300),
            write_error: sometimes(60),
            write_crash: sometimes(60),
        };
        let (partitions, crashes) = (sometimes(1) == 1, sometimes(1) == 1);
        let (losses, removals, jumps) = (sometimes(1) == 1, sometimes(1) == 1, sometimes(1) == 1);
        // Whoever is removed by an operator may have a lease; so not both.
        let silence = sometimes(1) == 1 && !removals;
        world.clock_jumps = jumps;
        // By itself, as sleeping is.
        world.late_surveys = if seed % 16 >= 8 { 5000 } else { 0 };
        world.faults = faults;
        world.dead_after = silence.then(|| Duration::from_secs(10 + world.below(30)));
        if birth == Birth::Seeded {
            let seeds = 1 + world.below(count as u64) as u8;
            world.seeds = Some((1..=seeds).map(Peer).collect());
        } else if birth == Birth::Together && count > 3 && world.below(4) == 0 {
            world.nodes[count - 1].observer = true;
        }
        Self {
            world,
            birth,
            asked: Asked::new(),
            partitions,
            crashes,
            crashed: 0,
            losses,
            lost: BTreeSet::new(),
            knows: BTreeMap::new(),
            panels: BTreeMap::new(),
            losses_done: 0,
            removals,
            // By itself, so that seeds that were kept make the schedules that they made.
            sleeps: seed % 8 >= 4,
            slept: 0,
            removed: 0,
            brisk: !seed.is_multiple_of(4),
            disturbed_writes: 0,
        }
    }

    pub(crate) fn begin(&mut self) {
        if self.birth == Birth::Apart {
            self.begin_apart();
        } else if self.birth == Birth::Alone {
            let faults = self.world.faults.clone();
            self.world.faults.write_crash = 0;
            self.world.faults.loss = faults.loss.min(100);
            self.world.start_all();
            for _ in 0..60 {
                self.world.run_for(Duration::from_secs(1));
                if self.world.is_one_network() {
                    break;
                }
            }
            if !self.world.is_one_network() {
                let text = format!("APART after a minute: {:?}", self.world.networks());
                self.world.check.violation(text);
            }
            self.world.faults = faults;
        } else {
            for node in 0..self.world.nodes.len() {
                self.world.start(node);
                let pause = self.world.below(1500);
                self.world.run_for(Duration::from_millis(pause));
            }
        }
    }

    /// Several networks, each with addresses that others may give too.
    fn begin_apart(&mut self) {
        let count = self.world.nodes.len();
        let parts = 1 + self.world.below(count as u64);
        self.world.groups = {
            let world = &mut self.world;
            (0..count).map(|_| world.below(parts) as u8).collect()
        };
        self.world.start_all();
        for _ in 0..self.world.below(60) {
            let node = self.world.below(count as u64) as usize;
            let (owner, range) = (format!("c{}", self.world.below(40)), self.range());
            match self.world.below(4) {
                0 => self.world.free(node, &owner, None),
                1 => {
                    let address = self.address_of(range);
                    self.world.claim(node, &owner, address);
                }
                _ => {
                    self.world.allocate(node, &owner, range);
                }
            }
            let pause = self.world.below(400);
            self.world.run_for(Duration::from_millis(pause));
        }
        self.world.partition(vec![0; count]);
    }

    pub(crate) fn disturb(&mut self, steps: u64) {
        for _ in 0..steps {
            self.act();
            let pause = self.world.below(400);
            self.world.run_for(Duration::from_millis(pause));
            self.world.lift_fences();
            self.world.check_blocks();
            self.note_voters();
            if !self.world.check.violations.is_empty() {
                return;
            }
        }
        let now = self.world.now;
        self.world.check.overdue(now);
    }

    fn act(&mut self) {
        let node = self.world.below(self.world.nodes.len() as u64) as usize;
        let owner = format!("c{}", self.world.below(40));
        let range = self.range();
        match self.world.below(if self.sleeps { 112 } else { 109 }) {
            0..50 => {
                let net = self.part_of(range);
                let asked = self.world.allocate(node, &owner, net);
                self.asked.extend(asked.map(|request| (node, request)));
            }
            50..60 => {
                let address = self.address_of(range);
                let asked = self.world.claim(node, &owner, address);
                self.asked.extend(asked.map(|request| (node, request)));
            }
            60..80 => self.world.free(node, &owner, None),
            80..84 => {
                if let Some((node, request)) = self.asked.pop_back() {
                    self.world.cancel(node, request);
                }
            }
            84..92 if self.partitions => {
                let groups = (0..self.world.nodes.len()).map(|_| self.world.below(2) as u8).collect();
                self.world.partition(groups);
            }
            92..95 => {
                let groups = vec![0; self.world.nodes.len()];
                self.world.partition(groups);
            }
            95..98 if self.crashes => {
                self.crashed += 1;
                let pause = Duration::from_millis(self.world.below(4000));
                self.world.crash(node, pause);
            }
            98..101 if self.losses => self.lose(node),
            101..103 if self.removals => self.remove(node),
            103..105 if self.losses => self.world.copy(node),
            105 if self.world.clock_jumps => {
                let by = Duration::from_secs(self.world.below(100_000));
                self.world.jump(node, by);
            }
            106 => self.world.raise(node),
            109.. => self.sleep(node),
            ..107 if self.brisk => {}
            _ => {
                let pause = self.world.below(35_000);
                self.world.run_for(Duration::from_millis(pause));
            }
        }
    }

    /// A host sleeps: often for longer than its lease, and than others wait for a silent one.
    fn sleep(&mut self, node: usize) {
        if self.world.is_up(node) {
            let most = self.world.dead_after.map_or(Duration::from_secs(60), |dead_after| dead_after * 3);
            let most = u64::try_from(most.as_millis()).expect("a few minutes");
            let time = Duration::from_millis(self.world.below(most));
            self.slept += 1;
            self.world.sleep(node, time);
        }
    }

    /// The newest voters that anybody knows of, with their version.
    fn voters(&self) -> (u64, Vec<usize>) {
        let up = self.world.nodes.iter().filter_map(|node| node.allocator.as_ref());
        let newest = up.filter_map(|allocator| allocator.panel()).max_by_key(|(version, _)| *version);
        let (version, voters) = newest.unwrap_or_default();
        (version, voters.iter().map(|peer| usize::from(peer.0) - 1).collect())
    }

    /// Notes which voters know all that was settled for which panel.
    fn note_voters(&mut self) {
        for (at, node) in self.world.nodes.iter().enumerate() {
            if let Some(up) = node.allocator.as_ref().filter(|up| !up.is_learning_to_vote())
                && let Some((version, voters)) = up.panel()
                && voters.contains(&node.peer)
                && self.knows.insert(at, version) != Some(version)
            {
                self.world.tell(|| format!("{at} knows all for {version}"));
            }
        }
        let (newest, voters) = self.voters();
        if self.panels.get(&newest) != Some(&voters) {
            self.world.tell(|| format!("panel {newest} {voters:?}"));
        }
        self.panels.insert(newest, voters);
    }

    /// Whether a voter other than `node` does not know all that was settled for this panel.
    fn lacks_another(&self, version: u64, node: usize) -> bool {
        let voters = self.panels.get(&version).into_iter().flatten();
        voters.filter(|voter| **voter != node).any(|voter| self.knows.get(voter).is_none_or(|&known| known < version))
    }

    /// Whether the network bears that the state of one more peer is lost: at most one voter may
    /// be without its state at a time, and before there are three, none.
    fn bears_loss_of(&mut self, node: usize) -> bool {
        if !self.world.were_in_one_network() {
            return false;
        }
        self.note_voters();
        let (newest, voters) = self.voters();
        let before = newest.saturating_sub(1);
        let handing_over = self.lacks_another(newest, usize::MAX);
        let asked: BTreeSet<usize> = [newest, before]
            .iter()
            .filter(|&&version| version == newest || handing_over)
            .filter_map(|version| self.panels.get(version))
            .flatten()
            .copied()
            .collect();
        let (nodes, knows) = (&self.world.nodes, &self.knows);
        let hands_over = self.panels.get(&before).filter(|_| handing_over);
        self.lost.retain(|&lost| {
            let it = &nodes[lost];
            let well = it.allocator.as_ref().is_some_and(|up| up.panel().is_some() && !up.is_learning_to_vote());
            // What it knew as a voter of the panel before does not come back.
            let forgot = hands_over.is_some_and(|voters| voters.contains(&lost))
                && knows.get(&lost).is_none_or(|&known| known < before);
            asked.contains(&lost) && (!well || forgot)
        });
        // One that does not even know yet that it is a voter knows nothing of what was settled: its
        // state is missing as well until it has read that of others, unless these bear a loss (ipam I19).
        let borne =
            self.panels.get(&before).is_some_and(|voters| voters.len() >= 3) && !self.lacks_another(before, node);
        let learning = self.lacks_another(newest, node) && !borne;
        let others = self.lost.iter().any(|&lost| lost != node);
        voters.len() >= 3 && !others && !learning
    }

    /// Whether another peer is not in the network yet, with an empty disk: two that are, and that
    /// reach only each other, found a network of their own (docs/ipam.md, section 8).
    fn is_another_new(&self, node: usize) -> bool {
        self.world.nodes.iter().enumerate().any(|(at, it)| {
            let new = it.allocator.as_ref().map_or(it.disk.is_empty(), |up| up.network().is_none());
            at != node && new
        })
    }

    fn lose(&mut self, node: usize) {
        if !self.bears_loss_of(node) || self.world.nodes[node].allocator.is_none() {
            return;
        }
        let pause = Duration::from_millis(self.world.below(8000));
        if self.world.below(2) == 0 {
            if self.is_another_new(node) {
                return;
            }
            self.world.wipe(node, pause);
        } else if !self.world.roll_back(node, pause) {
            return;
        }
        self.knows.remove(&node);
        self.losses_done += 1;
        self.lost.insert(node);
    }

    /// An operator removes a peer: a dead one, one that is cut off, or one that is well.
    fn remove(&mut self, node: usize) {
        let dead: Vec<usize> = (0..self.world.nodes.len()).filter(|&at| self.world.nodes[at].dead).collect();
        if let Some(&zombie) = dead.first()
            && self.world.below(2) == 0
        {
            let with_disk = self.world.below(2) == 0 || self.is_another_new(zombie);
            self.world.rise(zombie, with_disk);
            if !with_disk {
                self.knows.remove(&zombie);
            }
            return;
        }
        let by = self.world.below(self.world.nodes.len() as u64) as usize;
        if by == node || !self.bears_loss_of(node) || !self.world.is_up(by) {
            return;
        }
        if self.world.below(2) == 0 && dead.is_empty() {
            self.world.die(node);
            self.lost.insert(node);
        }
        self.removed += 1;
        self.world.remove(by, node);
        if self.world.below(3) == 0 {
            let too = self.world.below(self.world.nodes.len() as u64) as usize;
            if too != node {
                self.world.remove(too, node);
            }
        }
    }

    fn range(&mut self) -> IpNet {
        let at = self.world.below(self.world.ranges.len() as u64) as usize;
        self.world.ranges[at]
    }

    fn part_of(&mut self, range: IpNet) -> IpNet {
        if self.world.below(5) > 0 {
            return range;
        }
        let longer = range.prefix_len() + self.world.below(3) as u8;
        IpNet::new(self.address_of(range), longer).expect("a longer prefix").trunc()
    }

    fn address_of(&mut self, range: IpNet) -> std::net::IpAddr {
        let host_bits = range.max_prefix_len() - range.prefix_len();
        let most = 1u64.checked_shl(u32::from(host_bits)).unwrap_or(u64::MAX);
        let at = self.world.below(most.min(200_000));
        match range.addr() {
            std::net::IpAddr::V4(v4) => std::net::Ipv4Addr::from_bits(v4.to_bits() + at as u32).into(),
            std::net::IpAddr::V6(v6) => std::net::Ipv6Addr::from_bits(v6.to_bits() + u128::from(at)).into(),
        }
    }
}
