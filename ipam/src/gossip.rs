//! Spreading registers: a delta at each change, and a comparison now and then for what was lost.
//!
//! ```text
//!  Here(one hash) ─► differs? Digest(64 hashes a range) ─► Delta(parts, want) ─► Delta(parts)
//! ```
//!
//! Peers that agree exchange one small message every ten seconds and nothing else (ipam I7).

use core::time::Duration;

use rand_core::RngCore;

use crate::id::{Id, Sender};
use crate::machine::Machine;
use crate::ring::{BUCKETS, Hash, RegRun};
use crate::wire::{Body, MAX_RUNS, Part, RangeDigest, WireRun};

/// Pause between two comparisons, plus up to half of it.
const PERIOD: Duration = Duration::from_secs(10);

/// Shortest pause between two digests: after many peers have come at once, comparing with a few
/// of them is enough.
const DIGEST_PAUSE: Duration = Duration::from_millis(100);

impl Machine {
    /// One hash over all registers.
    pub(crate) fn root(&self) -> u64 {
        let mut hash = Hash::default();
        hash.word(self.panel.as_ref().map_or(0, |panel| panel.version));
        for area in &self.areas {
            for &bucket in area.ring.digest() {
                hash.word(bucket);
            }
        }
        hash.finish()
    }

    /// What a member says to others from time to time.
    pub(crate) fn here(&self) -> Body {
        Body::Here {
            root: self.root(),
            untouched: self.is_untouched() || self.is_orphan(),
            ranges: self.universe.hash(),
            removed: self.removed_hash(),
            dead_after: self.silence.own_after(),
            kept: self.kept_hash(),
        }
    }

    /// Sets the time of the next comparison.
    pub(crate) fn schedule_gossip(&mut self) {
        self.next_gossip = self.now + PERIOD + self.jitter(PERIOD / 2);
    }

    /// Compares with one random peer.
    pub(crate) fn tick_gossip(&mut self) {
        if self.now < self.next_gossip {
            return;
        }
        self.schedule_gossip();
        if self.network.is_none() || self.peers.is_empty() {
            return;
        }
        self.tell_strays();
        self.give_back();
        self.clear_own_lives();
        let count = self.peers.len() as u64;
        let at = usize::try_from(self.rng.next_u64() % count).unwrap_or(0);
        if let Some(&peer) = self.peers.keys().nth(at) {
            let here = self.here();
            self.send_durably(peer, here);
        }
        self.remind_foreign();
    }

    /// A member's registers in one hash, and the removed lives and the kept addresses that it knows in
    /// others.
    pub(crate) fn on_here(&mut self, from: Sender, root: u64, removed: u64, kept: Option<u64>) {
        if self.network.is_none() {
            return self.fetch(from);
        }
        let (registers, lives) = (root != self.root(), removed != self.removed_hash());
        let lists = kept != self.kept_hash();
        if self.now < self.next_digest || !(registers || lives || lists) {
            return;
        }
        self.next_digest = self.now + DIGEST_PAUSE;
        if lists {
            self.compare_lists(from.peer, true);
        }
        if lives {
            let lives = self.removed().collect();
            self.send_durably(from.peer, Body::Gone { lives, want: true });
        }
        if registers {
            let digest = self.areas.iter().map(|area| RangeDigest { buckets: area.ring.digest().to_vec() }).collect();
            self.send_durably(from.peer, Body::Digest(digest));
            self.send_panel(from.peer);
        }
    }

    /// A member's registers in 64 hashes a range.
    pub(crate) fn on_digest(&mut self, from: Sender, digest: &[RangeDigest]) {
        let mut parts = Vec::new();
        for (range, (area, theirs)) in (0u16..).zip(self.areas.iter().zip(digest)) {
            for (bucket, (ours, theirs)) in (0u8..).zip(area.ring.digest().iter().zip(&theirs.buckets)) {
                if ours != theirs {
                    parts.push(Part { range, bucket });
                }
            }
        }
        self.send_parts(from.peer, &parts, true);
        self.send_panel(from.peer);
    }

    fn send_panel(&mut self, to: Id) {
        if let Some(panel) = self.panel.clone() {
            self.send_durably(to, Body::Panel(panel));
        }
    }

    /// Sends the registers of some parts, in as many messages as it takes.
    fn send_parts(&mut self, to: Id, parts: &[Part], want: bool) {
        let mut runs = Vec::new();
        for part in parts {
            let index = usize::from(part.range);
            let Some(area) = self.areas.get(index) else {
                continue;
            };
            if u32::from(part.bucket) >= BUCKETS {
                continue;
            }
            let (lo, hi) = area.ring.bucket(u32::from(part.bucket));
            runs.extend(area.ring.regs(lo, hi).map(|run| WireRun::new(index, run)));
        }
        let want = if want { parts.to_vec() } else { Vec::new() };
        if runs.is_empty() && want.is_empty() {
            return;
        }
        for delta in deltas(&runs, want) {
            self.send_durably(to, delta);
        }
    }

    /// Sends all registers, and first what is kept from whoever gets blocks.
    pub(crate) fn send_everything(&mut self, to: Id) {
        let mut runs = Vec::new();
        for (index, area) in self.areas.iter().enumerate() {
            let all = area.ring.regs(0, area.ring.blocks());
            runs.extend(all.map(|run| WireRun::new(index, run)));
        }
        self.compare_lists(to, false);
        for delta in deltas(&runs, Vec::new()) {
            self.send_durably(to, delta);
        }
    }

    /// Tells everyone of new registers once they are durable.
    pub(crate) fn announce(&mut self, runs: &[WireRun]) {
        for delta in deltas(runs, Vec::new()) {
            self.broadcast_durably(delta);
        }
    }

    /// Registers from a member.
    pub(crate) fn on_delta(&mut self, from: Sender, runs: &[WireRun], want: &[Part]) {
        for run in runs {
            let (index, run) = run.parts();
            self.merge_run(from.peer, index, run);
        }
        let mut want = want.to_vec();
        want.sort_unstable();
        want.dedup();
        self.send_parts(from.peer, &want, false);
    }

    /// Joins registers that a peer told of.
    pub(crate) fn merge_run(&mut self, from: Id, index: usize, run: RegRun) {
        let me = self.me;
        let Some(area) = self.areas.get_mut(index) else {
            return;
        };
        if run.lo >= run.hi || run.hi > area.ring.blocks() {
            return;
        }
        let merged = area.ring.merge(run, me);
        for &(lo, _) in &merged.gained {
            area.space.gained(area.range.first_of(lo));
            self.wake = true;
        }
        for &(lo, hi) in &merged.changed {
            let area = &self.areas[index];
            self.keeping.look_again |= area.space.is_busy(area.range.first_of(lo), area.range.first_of(hi) - 1);
            self.record_lazily(index, lo, hi);
        }
        let range = &self.areas[index].range;
        let place = |&(lo, hi): &(u32, u32)| {
            let (first, last) = (range.first_of(lo), range.first_of(hi) - 1);
            format!("{}-{}", range.address(first), range.address(last))
        };
        let mut texts: Vec<String> = Vec::new();
        for blocks in &merged.disputed {
            texts.push(format!(
                "the blocks {} have two owners of the same order (heard from peer {}): nobody \
                 gives addresses from them",
                place(blocks),
                from
            ));
        }
        for blocks in &merged.lost {
            texts.push(format!(
                "the blocks {} went from this peer to {} without its doing (heard from peer {}): \
                 it gives no more addresses from them, those given stay",
                place(blocks),
                run.reg.holder.peer().map_or("nobody".to_owned(), |peer| peer.to_string()),
                from
            ));
        }
        if !merged.lost.is_empty() {
            self.wake = true;
        }
        for text in texts {
            self.problem(text);
        }
    }
}

/// Messages with these runs; the last one asks for the parts.
fn deltas(runs: &[WireRun], want: Vec<Part>) -> Vec<Body> {
    let mut chunks: Vec<Body> =
        runs.chunks(MAX_RUNS).map(|runs| Body::Delta { runs: runs.to_vec(), want: Vec::new() }).collect();
    match chunks.last_mut() {
        Some(Body::Delta { want: last, .. }) => *last = want,
        _ => chunks.push(Body::Delta { runs: Vec::new(), want }),
    }
    chunks
}
