//! Addresses that a peer has given, or freed lately, and whose blocks are not its own: brought along
//! from another network, or left over from a life that was removed.
//!
//! ```text
//!  a peer's list (version raised with each change) ──► everybody, durable; compared as registers are
//!       │ nobody else gives what is on it
//!       └ the owner of a block with nothing else in use gives the block to that peer (ipam I5)
//! ```
//!
//! Only its own peer changes a list, so the one of the higher version is right, and the join of all
//! that was ever heard needs no decision of anybody (ipam I24).

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::id::{Id, Owner, Sender};
use crate::machine::{Area, Machine};
use crate::range::Range;
use crate::ring::Hash;
use crate::store::{self, Key};
use crate::wire::{BlockRuns, Body, KeptAge, KeptList, KeptRun, Net};

/// Most runs of a list. Beyond it the runs are joined over gaps, which keeps more than needed.
pub(crate) const MAX_KEPT_RUNS: usize = 4096;
/// Most lists that are remembered; those without a run are forgotten first.
const MAX_LISTS: usize = 8192;
/// Most blocks that are given back to a peer at once.
const MAX_BACK: usize = 256;

/// The lists of all peers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keeping {
    lists: BTreeMap<Id, KeptList>,
    /// What is on this peer's list, or on another, may have changed.
    pub(crate) look_again: bool,
}

/// Who keeps a run of addresses; `None`: several.
pub(crate) type Keeper = Option<Id>;

impl Keeping {
    /// A list of an earlier run.
    pub(crate) fn restore(&mut self, list: KeptList) {
        self.lists.insert(list.owner.peer, list);
        self.look_again = true;
    }

    /// Whether a peer has something on its list.
    pub(crate) fn has_any(&self, peer: Id) -> bool {
        self.lists.get(&peer).is_some_and(|list| !list.runs.is_empty())
    }

    /// Whose lists have something on them.
    pub(crate) fn owners(&self) -> impl Iterator<Item = Owner> + '_ {
        self.lists.values().filter(|list| !list.runs.is_empty()).map(|list| list.owner)
    }
}

impl Area {
    /// Addresses of the blocks held that others keep.
    pub(crate) fn kept(&self) -> u128 {
        let mut count = 0;
        for (first, last, _) in self.space.kept() {
            let (lo, hi) = (self.range.block_of(first), self.range.block_of(last) + 1);
            for (lo, hi) in self.ring.held(lo, hi) {
                count += last.min(self.range.first_of(hi) - 1) - first.max(self.range.first_of(lo)) + 1;
            }
        }
        count
    }
}

impl Machine {
    /// Makes this peer's list what it has to be, and what others keep known to the ranges.
    pub(crate) fn look_at_kept(&mut self) {
        if !core::mem::take(&mut self.keeping.look_again) {
            return;
        }
        self.renew_list();
        let gone = &self.gone;
        self.keeping.lists.retain(|_, list| list.runs.is_empty() || !gone.contains_key(&list.owner));
        let me = self.me.peer;
        let mut all: Vec<Vec<(u128, u128, Id)>> = vec![Vec::new(); self.areas.len()];
        let others = self.keeping.lists.iter().filter(|(peer, _)| **peer != me && !self.ablation.no_keep);
        for (&peer, list) in others {
            for (index, first, last) in list.runs.iter().filter_map(|run| self.place_of(run)) {
                all[index].push((first, last, peer));
            }
        }
        for (area, runs) in self.areas.iter_mut().zip(all) {
            self.wake |= area.space.keep(joined(runs));
        }
        self.give_back();
    }

    /// What is in use here outside of this peer's blocks: of everything, if it is about to go over to
    /// another network, or is in none.
    fn own_runs(&self, gap: u128) -> Vec<KeptRun> {
        let everything = self.network.is_none() || self.is_moving();
        let mut list = Vec::new();
        for area in &self.areas {
            let strange = |offset: &u128| {
                let holder = area.ring.reg(area.range.block_of(*offset)).holder;
                everything || holder.peer() != Some(self.me.peer)
            };
            list.extend(runs_of(&area.range, area.space.busy().filter(strange), gap));
        }
        list
    }

    fn renew_list(&mut self) {
        let mut gap = 1;
        let mut runs = self.own_runs(gap);
        let old = self.keeping.lists.get(&self.me.peer);
        if !self.surveyed {
            // An old copy of the disk does not know of all that runs here.
            runs.extend(old.into_iter().flat_map(|list| list.runs.iter().copied()));
            runs.sort_unstable();
            runs.dedup();
        }
        while runs.len() > MAX_KEPT_RUNS {
            gap *= 2;
            runs = self.own_runs(gap);
        }
        let same = old.is_some_and(|old| old.runs == runs && (runs.is_empty() || old.owner == self.me));
        if same || (old.is_none() && runs.is_empty()) {
            return;
        }
        let version = old.map_or(0, |old| old.version).saturating_add(1);
        let list = KeptList { owner: self.me, version, runs };
        self.journal.put(store::put(Key::Kept(self.me.peer), &list));
        self.keeping.lists.insert(self.me.peer, list.clone());
        self.broadcast_durably(Body::Kept { lists: vec![list], want: false });
    }

    /// Lists that a peer knows.
    pub(crate) fn on_kept(&mut self, from: Sender, lists: &[KeptList], want: bool) {
        for list in lists {
            self.learn_list(list);
        }
        if want {
            let theirs: BTreeMap<Id, (u64, u64)> =
                lists.iter().map(|list| (list.owner.peer, list.age().order())).collect();
            let news =
                |list: &&KeptList| theirs.get(&list.owner.peer).is_none_or(|&theirs| theirs < list.age().order());
            let news: Vec<KeptList> = self.keeping.lists.values().filter(news).cloned().collect();
            self.send_lists(from.peer, news, false);
        }
    }

    fn learn_list(&mut self, list: &KeptList) {
        let peer = list.owner.peer;
        let known = self.keeping.lists.get(&peer);
        let newer = known.is_none_or(|known| known.age().order() < list.age().order());
        if !newer || list.runs.len() > MAX_KEPT_RUNS || self.gone.contains_key(&list.owner) {
            return;
        }
        if known.is_none() && self.keeping.lists.len() >= MAX_LISTS {
            self.keeping.lists.retain(|_, list| !list.runs.is_empty());
        }
        // Of this peer's own list, others may remember one that its disk has forgotten.
        self.journal.put(store::put(Key::Kept(peer), list));
        self.keeping.lists.insert(peer, list.clone());
        self.keeping.look_again = true;
    }

    /// Sends all lists to a peer that may know others.
    pub(crate) fn compare_lists(&mut self, to: Id, want: bool) {
        let lists: Vec<KeptList> = self.keeping.lists.values().cloned().collect();
        if want || !lists.is_empty() {
            self.send_lists(to, lists, want);
        }
    }

    /// In as many messages as it takes; each is asked about by itself.
    fn send_lists(&mut self, to: Id, lists: Vec<KeptList>, want: bool) {
        let mut rest = lists.into_iter().peekable();
        loop {
            let (mut part, mut count) = (Vec::new(), 0);
            while let Some(list) = rest.next_if(|list| part.is_empty() || count + list.runs.len() <= MAX_KEPT_RUNS) {
                count += list.runs.len() + 1;
                part.push(list);
            }
            if part.is_empty() && !want {
                return;
            }
            let last = rest.peek().is_none();
            // Only one message may ask: what is missing in it is not what is missing here.
            let all = last && want;
            self.send_durably(to, Body::Kept { lists: part, want: all });
            if last {
                return;
            }
        }
    }

    /// Tells a peer the lists that have something in these blocks, or all, before what is said of them next; how new
    /// they are.
    pub(crate) fn tell_lists(&mut self, to: Id, blocks: Option<&[BlockRuns]>) -> Option<Vec<KeptAge>> {
        let within = |list: &&KeptList| {
            let mut places = list.runs.iter().filter_map(|run| self.place_of(run));
            places.any(|(index, first, last)| {
                let range = &self.areas[index].range;
                let (lo, hi) = (range.block_of(first), range.block_of(last) + 1);
                let over = |it: &BlockRuns| usize::from(it.range) == index && it.lo < hi && lo < it.hi;
                blocks.is_none_or(|blocks| blocks.iter().any(over))
            })
        };
        let lists: Vec<KeptList> = self.keeping.lists.values().filter(within).cloned().collect();
        let ages: Vec<KeptAge> = lists.iter().map(KeptList::age).collect();
        if ages.is_empty() {
            return None;
        }
        self.send_lists(to, lists, false);
        Some(ages)
    }

    /// In which range a run is, and its first and last address there.
    fn place_of(&self, run: &KeptRun) -> Option<(usize, u128, u128)> {
        let (index, first) = self.universe.find(run.first.0.addr())?;
        Some((index, first, first.saturating_add(run.more.into()).min(self.areas[index].range.len() - 1)))
    }

    /// Whether these lists are known here, or newer ones. Those of lives that were removed do not count.
    pub(crate) fn knows_lists<'a>(&self, ages: impl IntoIterator<Item = &'a KeptAge>) -> bool {
        ages.into_iter().all(|of| {
            let known = self.keeping.lists.get(&of.owner.peer);
            self.gone.contains_key(&of.owner) || known.is_some_and(|list| list.age().order() >= of.order())
        })
    }

    /// This peer's list, if there is something on it.
    pub(crate) fn own_list(&self) -> Option<&KeptList> {
        self.keeping.lists.get(&self.me.peer).filter(|list| !list.runs.is_empty())
    }

    /// Says to a peer that is to come over that its list will be known to whoever gets blocks here.
    pub(crate) fn confirm_list(&mut self, to: Id) {
        let Some((panel, list)) = self.panel.as_ref().zip(self.keeping.lists.get(&to)) else {
            return;
        };
        let (seat, age) = (&self.voter.seat, list.age());
        // One that has to hear the others first has its list by then too, and so tells it to the next voters.
        let sits = seat.version == panel.version && seat.accepted.is_none();
        // Or it waits for the one that asks, which voted here without knowing it, and waits for it in turn.
        let waits = self.is_learning_to_vote() && panel.voters.contains(&to);
        if panel.voters.contains(&self.me.peer) && (sits || waits) {
            let panel = panel.version;
            self.send_durably(to, Body::Keeping { panel, age });
        }
    }

    /// One hash over what is kept; `None` if nothing is.
    pub(crate) fn kept_hash(&self) -> Option<u64> {
        let mut hash = Hash::default();
        let mut any = false;
        for list in self.keeping.lists.values().filter(|list| !list.runs.is_empty()) {
            any = true;
            let peer = u128::from_be_bytes(list.owner.peer.0);
            for word in [(peer >> 64) as u64, peer as u64, list.version, list.owner.life] {
                hash.word(word);
            }
        }
        any.then(|| hash.finish())
    }

    /// Gives the blocks in which only one other peer has anything to that peer.
    pub(crate) fn give_back(&mut self) {
        if !self.knows_what_is_in_use() {
            return;
        }
        let mut back: BTreeMap<(Id, usize), BTreeSet<u32>> = BTreeMap::new();
        let mut count = 0;
        for (index, area) in self.areas.iter().enumerate() {
            for (first, last, keeper) in area.space.kept() {
                let Some(peer) = keeper.filter(|peer| self.is_fellow(peer)) else {
                    continue;
                };
                let (lo, hi) = (area.range.block_of(first), area.range.block_of(last) + 1);
                for block in area.ring.held(lo, hi).flat_map(|(lo, hi)| lo..hi) {
                    if count < MAX_BACK && area.space.is_only_kept_by(&area.range, block, peer) {
                        count += usize::from(back.entry((peer, index)).or_default().insert(block));
                    }
                }
            }
        }
        for ((peer, index), blocks) in back {
            let Some(to) = self.keeping.lists.get(&peer).map(|list| list.owner) else {
                continue;
            };
            let mut runs: Vec<(u32, u32)> = Vec::new();
            for block in blocks {
                match runs.last_mut() {
                    Some((_, hi)) if *hi == block => *hi += 1,
                    _ => runs.push((block, block + 1)),
                }
            }
            self.give_away(to, index, &runs);
        }
    }

    /// Whether a peer is in reach, and in this network for sure.
    fn is_fellow(&self, peer: &Id) -> bool {
        self.is_here(peer) && self.voter.members.contains_key(peer)
    }

    /// Addresses given here that peers in reach keep too: to whom here, and who they are.
    pub(crate) fn kept_elsewhere(&self) -> Vec<(IpAddr, String, Id)> {
        let mut found = Vec::new();
        let others = self.keeping.lists.iter();
        for (&peer, list) in others.filter(|(peer, _)| **peer != self.me.peer && self.peers.contains_key(peer)) {
            for (index, first, last) in list.runs.iter().filter_map(|run| self.place_of(run)) {
                let area = &self.areas[index];
                let given = area.space.given_in(first, last);
                found.extend(given.map(|(offset, given)| (area.range.address(offset), given.owner.clone(), peer)));
            }
        }
        found
    }

    /// Who else has given an address, or freed it lately, if its block is not that peer's.
    pub(crate) fn kept_by(&self, index: usize, offset: u128) -> Option<String> {
        let (_, keeper) = self.areas.get(index)?.space.kept_at(offset)?;
        Some(keeper.map_or("containers of other peers".to_owned(), |peer| format!("a container of peer {peer}")))
    }
}

impl KeptList {
    /// How new it is.
    pub(crate) const fn age(&self) -> KeptAge {
        KeptAge { owner: self.owner, version: self.version }
    }
}

impl KeptAge {
    /// The higher one is the newer of two lists of one peer: an old copy of a disk may use a version again, in another
    /// life.
    const fn order(&self) -> (u64, u64) {
        (self.version, self.owner.life)
    }
}

/// Addresses in order as runs, with up to `gap` from one to the next.
fn runs_of(range: &Range, offsets: impl Iterator<Item = u128>, gap: u128) -> Vec<KeptRun> {
    let mut runs: Vec<(u128, u64)> = Vec::new();
    for offset in offsets {
        if let Some((first, more)) = runs.last_mut()
            && offset - (*first + u128::from(*more)) <= gap
            && let Ok(longer) = u64::try_from(offset - *first)
        {
            *more = longer;
        } else {
            runs.push((offset, 0));
        }
    }
    let address = |first| -> IpAddr { range.address(first) };
    runs.into_iter().map(|(first, more)| KeptRun { first: Net(IpNet::from(address(first))), more }).collect()
}

/// Runs of which none overlaps another, in order.
fn joined(mut runs: Vec<(u128, u128, Id)>) -> BTreeMap<u128, (u128, Keeper)> {
    runs.sort_unstable();
    let mut all: Vec<(u128, u128, Keeper)> = Vec::new();
    for (first, last, peer) in runs {
        match all.last_mut() {
            Some((_, end, keeper)) if first <= *end => {
                *end = last.max(*end);
                *keeper = keeper.filter(|keeper| *keeper == peer);
            }
            _ => all.push((first, last, Some(peer))),
        }
    }
    all.into_iter().map(|(first, last, keeper)| (first, (last, keeper))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_runs_and_fewer_of_them_over_gaps() {
        let range = Range::new("10.0.0.0/24".parse().unwrap()).unwrap();
        let runs = |gap| {
            let runs = runs_of(&range, [3, 4, 5, 8, 200].into_iter(), gap);
            runs.iter().map(|run| (run.first.0.addr().to_string(), run.more)).collect::<Vec<_>>()
        };
        let of = |text: &str, more| (text.to_owned(), more);
        assert_eq!(runs(1), [of("10.0.0.3", 2), of("10.0.0.8", 0), of("10.0.0.200", 0)]);
        assert_eq!(runs(4), [of("10.0.0.3", 5), of("10.0.0.200", 0)]);
    }

    #[test]
    fn what_several_keep_is_nobodys_to_get_back() {
        let (one, other) = (Id([1; 16]), Id([2; 16]));
        let all = joined(vec![(5, 9, one), (1, 3, one), (9, 12, other), (20, 20, other)]);
        let all: Vec<_> = all.into_iter().collect();
        assert_eq!(all, [(1, (3, Some(one))), (5, (12, None)), (20, (20, Some(other)))]);
    }
}
