//! Removing a peer for good.
//!
//! ```text
//!  remove_peer ─► gone += its lives, durable ─► told to everyone, again until nothing is left of them
//!                   │                                    │
//!                   ▼ its blocks, through the voters     ▼ the panel, if it was on it
//!                 nobody's                              without it
//! ```
//!
//! What is removed are lives that own blocks, not the peer: if it is alive after all, it begins
//! another life as soon as it hears of it, and owns what was not taken yet (ipam I20). Everybody
//! keeps the removed lives, and compares them with others as registers are compared: whoever was not
//! there at the removal must fence the peer off too. Once the peer has nothing left of them, it says
//! so, and is fenced off no more (ipam I21).

use core::net::IpAddr;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use crate::allocator::RemoveError;
use crate::id::{Id, Owner, Sender};
use crate::machine::Machine;
use crate::ring::{Hash, Holder};
use crate::store::{self, Key};
use crate::wire::{Body, Removed, names};

/// Pause between two tellings of who is gone.
const TELL_PAUSE: Duration = Duration::from_secs(5);
/// Pause between two tries to settle alone.
const ALONE_PAUSE: Duration = Duration::from_secs(1);
/// How the words about a removal begin that left too few voters.
const INCOMPLETE: &str = "the removal of peer";
/// For how long it counts that a member has said which voters it knows.
const SURE: Duration = Duration::from_secs(5);
/// For how long after a removal lives that were not known of are removed too.
const REMOVING: Duration = Duration::from_secs(60);
/// For how long a peer that was removed may seem to be in reach, though it is dead: longer than the mesh
/// takes to notice. Who is in reach after that is alive.
const SEEMS_HERE: Duration = Duration::from_secs(10);
/// What comes of a peer so long after it was removed was sent after that.
pub(crate) const UNDER_WAY: Duration = Duration::from_secs(2);
/// Stands for a peer as a voter, whatever its life.
pub(crate) const ANY_LIFE: u64 = 0;
/// Most lives that are remembered as gone, and that fit into a message.
const MAX_GONE: usize = 8192;

impl Machine {
    /// Whether a peer is in reach, and not known to have left for another network.
    pub(crate) fn is_here(&self, peer: &Id) -> bool {
        self.peers.contains_key(peer) && !self.elsewhere.contains(peer)
    }

    /// Whether a peer was removed, and did not come back.
    pub(crate) fn is_gone(&self, peer: &Id) -> bool {
        self.gone.contains_key(&Owner { peer: *peer, life: ANY_LIFE }) && !self.is_here(peer)
    }

    /// Removes a peer for an operator.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(crate) fn remove_peer(&mut self, peer: Id) -> Result<(), RemoveError> {
        let refused = |why: String| Err(RemoveError::Refused(why));
        if peer == self.me.peer {
            return refused("a peer cannot remove itself; ask another one".to_owned());
        }
        let Some(panel) = self.panel.clone() else {
            return refused(self.waiting());
        };
        let mut lives = vec![Owner { peer, life: ANY_LIFE }];
        for area in &self.areas {
            for run in area.ring.regs(0, area.ring.blocks()) {
                if let Holder::One(owner) = run.reg.holder
                    && owner.peer == peer
                {
                    lives.push(owner);
                }
            }
        }
        lives.extend(self.keeping.owners().filter(|owner| owner.peer == peer));
        if !self.can_remember(&lives) {
            return refused(format!(
                "{MAX_GONE} removed lives that own blocks are remembered already; try again later"
            ));
        }
        // One that is alive after all goes on as a voter.
        let goes = |it: &Id| self.is_gone(it) || (*it == peer && !self.is_here(it));
        let stays = |it: &Id| *it == self.me.peer || !goes(it);
        let alone = panel.voters.iter().filter(|voter| stays(voter)).count() < panel.majority();
        let apart = self.members_apart(peer);
        if alone && !apart.is_empty() {
            self.broadcast_durably(Body::PanelAsk);
            return Err(RemoveError::NotYet(format!(
                "most voters would be gone, and {} did not say yet whether there are newer ones: try again in a \
                 moment, when they are in reach, or remove them first",
                names(apart.iter())
            )));
        }
        // Of two that are asked at once, only one may go on alone.
        let lowest = self.peers.keys().copied().filter(|it| *it != peer && !self.is_gone(it)).min();
        if let Some(other) = lowest.filter(|other| alone && *other < self.me.peer) {
            return refused(format!(
                "most voters would be gone, and one peer must settle alone then: ask peer {other}"
            ));
        }
        self.removing.insert(peer, self.now + REMOVING);
        if alone {
            self.learn_gone(&removed(lives.iter().copied()));
            self.notice("most voters are removed: this peer settles alone from now on, by what it knows".to_owned());
            self.vote_alone();
        }
        self.remove_lives(lives.into_iter());
        Ok(())
    }

    /// Removes lives.
    pub(crate) fn remove_lives(&mut self, lives: impl Iterator<Item = Owner>) {
        self.learn_gone(&removed(lives));
        self.next_gone = Some(self.now);
        self.tick_gone();
    }

    /// Peers but `peer` that may be members, and have not said lately that they know the same voters.
    pub(crate) fn members_apart(&self, peer: Id) -> BTreeSet<Id> {
        let rings = self.areas.iter().flat_map(|area| area.ring.regs(0, area.ring.blocks()));
        let owners = rings.filter_map(|run| run.reg.holder.peer());
        let voters = self.panel.iter().flat_map(|panel| panel.voters.iter().copied());
        let same = &self.voter.same_panel;
        let heard = |it: &Id| self.peers.contains_key(it) && same.get(it).is_some_and(|&at| self.now <= at + SURE);
        let kept = self.keeping.owners().map(|owner| owner.peer);
        // Not all that are in reach are noted as met, if there are too many.
        let seen = self.met.iter().chain(self.peers.keys()).copied();
        let all = owners.chain(voters).chain(kept).chain(seen);
        all.filter(|it| *it != peer && *it != self.me.peer && !self.is_gone(it) && !heard(it)).collect()
    }

    /// Removed lives that another peer knows.
    pub(crate) fn on_gone(&mut self, from: Sender, lives: &[Removed], want: bool) {
        self.learn_gone(lives);
        if want {
            let theirs: BTreeMap<Owner, bool> = lives.iter().map(|it| (it.owner, it.cleared)).collect();
            let news = |it: &Removed| theirs.get(&it.owner).is_none_or(|cleared| it.cleared && !cleared);
            let lives: Vec<Removed> = self.removed().filter(news).collect();
            if !lives.is_empty() {
                self.send_durably(from.peer, Body::Gone { lives, want: false });
            }
        }
    }

    /// Lives that somebody removed.
    pub(crate) fn learn_gone(&mut self, lives: &[Removed]) {
        let owners: Vec<Owner> = lives.iter().map(|removed| removed.owner).collect();
        self.can_remember(&owners);
        let (mut news, mut was_away, mut voters) = (false, false, Vec::new());
        for &Removed { owner, cleared } in lives {
            let (mine, whatever_life) = (owner.peer == self.me.peer, owner.life == ANY_LIFE);
            let known = self.gone.get(&owner).copied();
            let back = whatever_life && (mine || self.is_here(&owner.peer));
            let room = known.is_some() || self.gone.len() < MAX_GONE;
            if back || !room || known.is_some_and(|before| before || !cleared) {
                continue;
            }
            self.gone.insert(owner, cleared);
            news = true;
            voters.extend(whatever_life.then_some(owner.peer));
            was_away |= mine && known.is_none() && !cleared;
        }
        if news {
            self.takes.look_again();
            self.fencing.look_again = true;
            self.keeping.look_again = true;
            self.look_at_panel_soon();
            self.read_without(&voters);
            self.record_gone();
            self.next_gone = Some(self.now + TELL_PAUSE);
        }
        if lives.iter().any(|removed| removed.owner == self.me) {
            self.live_again();
        } else if was_away && !self.knows_removal {
            self.knows_removal = true;
            self.notice(
                "this peer was removed while it was away: it is a new member; addresses in blocks that went to others \
                 are in dispute, and weft ipam check names them"
                    .to_owned(),
            );
        }
    }

    fn record_gone(&mut self) {
        let list: Vec<Removed> = self.gone.iter().map(|(&owner, &cleared)| Removed { owner, cleared }).collect();
        self.journal.put(store::put(Key::Gone, &list));
    }

    /// Says that nothing is left of the removed lives of this peer, once all that it has given is in
    /// blocks that it holds: nobody needs to fence it off any more (ipam I21).
    pub(crate) fn clear_own_lives(&mut self) {
        let left = self.removed().filter(|it| it.owner.peer == self.me.peer && !it.cleared);
        let lives: Vec<Removed> = left.map(|it| Removed { cleared: true, ..it }).collect();
        let mut areas = self.areas.iter();
        let is_clear = self.surveyed
            && areas.all(|area| {
                let mut given = area.space.all_given();
                given.all(|(offset, _)| area.ring.holds(area.range.block_of(offset)))
            });
        if is_clear && !lives.is_empty() {
            self.learn_gone(&lives);
            self.broadcast_durably(Body::Gone { lives, want: false });
        }
    }

    /// Makes room for removed lives if there is not enough; whether there is then.
    fn can_remember(&mut self, lives: &[Owner]) -> bool {
        let has_room = |gone: &BTreeMap<Owner, bool>| {
            gone.len() + lives.iter().filter(|owner| !gone.contains_key(owner)).count() <= MAX_GONE
        };
        if !has_room(&self.gone) {
            self.forget_gone();
        }
        has_room(&self.gone)
    }

    /// Forgets lives that nothing is left of, and whose peers are not here to be fenced.
    fn forget_gone(&mut self) {
        let runs = self.areas.iter().flat_map(|area| area.ring.regs(0, area.ring.blocks()));
        let own: BTreeSet<Owner> = runs
            .filter_map(|run| match run.reg.holder {
                Holder::One(owner) => Some(owner),
                Holder::Nobody | Holder::Disputed => None,
            })
            .collect();
        let owners: BTreeSet<Id> = own.iter().map(|owner| owner.peer).collect();
        let votes = |peer: &Id| self.panel.as_ref().is_some_and(|panel| panel.voters.contains(peer));
        self.gone.retain(|owner, cleared| match owner.life {
            ANY_LIFE => owners.contains(&owner.peer) || votes(&owner.peer),
            _ => own.contains(owner) || (!*cleared && self.peers.contains_key(&owner.peer)),
        });
    }

    /// This peer was removed, and is alive: what it still owns, it owns in a new life.
    pub(crate) fn live_again(&mut self) {
        self.withdraw_new();
        self.me.life = self.draw();
        self.knows_removal = true;
        for area in &mut self.areas {
            area.ring.let_go();
        }
        self.asks.clear();
        self.witnessing.clear();
        self.restart_takes();
        self.notice(
            "this peer was removed while it was alive, or taken for dead: it goes on as a new member; addresses in \
             blocks that went to others are in dispute, and weft ipam check names them"
                .to_owned(),
        );
    }

    /// Who is back is not removed a second time when it is away again.
    pub(crate) fn welcome_back(&mut self) {
        let (peers, elsewhere, before) = (&self.peers, &self.elsewhere, self.gone.len());
        let is_here = |peer: &Id| peers.contains_key(peer) && !elsewhere.contains(peer);
        self.gone.retain(|owner, _| owner.life != ANY_LIFE || !is_here(&owner.peer));
        if self.gone.len() < before {
            self.record_gone();
        }
    }

    /// Tells the others who is gone, as long as anything is left of them.
    pub(crate) fn tick_gone(&mut self) {
        if self.next_gone.is_none_or(|at| self.now < at) {
            return;
        }
        let (peers, now) = (&self.peers, self.now);
        self.removing
            .retain(|peer, until| now < *until && (!peers.contains_key(peer) || now + REMOVING < *until + SEEMS_HERE));
        let more = self.removed_meanwhile();
        self.learn_gone(&removed(more.into_iter()));
        let pause = if self.settle_alone_after_all() { ALONE_PAUSE } else { TELL_PAUSE };
        let owns = self.areas.iter().any(|area| {
            let mut runs = area.ring.regs(0, area.ring.blocks());
            runs.any(|run| matches!(run.reg.holder, Holder::One(owner) if self.gone.contains_key(&owner)))
        });
        let votes = self.panel.as_ref().is_some_and(|panel| panel.voters.iter().any(|voter| self.is_gone(voter)));
        let again = owns || votes;
        self.next_gone = (again || !self.removing.is_empty()).then_some(self.now + pause);
        if !again {
            return;
        }
        let lives = self.gone.iter().map(|(&owner, &cleared)| Removed { owner, cleared }).collect();
        self.broadcast_durably(Body::Gone { lives, want: false });
    }

    /// When a peer was removed it may have seemed to be in reach, and with it a majority of the voters. If that has
    /// turned out to be wrong, the removal is completed now as it would be if it was asked for now.
    /// Whether it could not be.
    fn settle_alone_after_all(&mut self) -> bool {
        let Some(panel) = &self.panel else {
            return false;
        };
        let left = panel.voters.iter().filter(|voter| !self.is_gone(voter)).count();
        let dead = self.removing.iter().find(|(peer, _)| panel.voters.contains(peer) && self.is_gone(peer));
        let Some((&peer, &until)) = dead.filter(|_| left < panel.majority()) else {
            return false;
        };
        let result = self.remove_peer(peer);
        // It was asked for then, not now.
        self.removing.insert(peer, until);
        if let Err(why) = &result {
            self.problem(format!("{INCOMPLETE} {peer} is not complete: {why}"));
        }
        result.is_err()
    }

    /// There are voters that can settle again.
    pub(crate) fn forget_incomplete_removals(&mut self) {
        self.problems.retain(|text| !text.starts_with(INCOMPLETE));
    }

    /// What is to be removed with peers that were: their votes, once it is seen that they are dead, and what
    /// they owned without our knowing it until now.
    fn removed_meanwhile(&self) -> Vec<Owner> {
        let dead: BTreeSet<Id> = self.removing.keys().copied().filter(|peer| !self.peers.contains_key(peer)).collect();
        let mut more: Vec<Owner> = dead.iter().map(|&peer| Owner { peer, life: ANY_LIFE }).collect();
        if !dead.is_empty() {
            let runs = self.areas.iter().flat_map(|area| area.ring.regs(0, area.ring.blocks()));
            more.extend(runs.filter_map(|run| match run.reg.holder {
                Holder::One(owner) if dead.contains(&owner.peer) => Some(owner),
                _ => None,
            }));
            more.extend(self.keeping.owners().filter(|owner| dead.contains(&owner.peer)));
        }
        more.retain(|owner| !self.gone.contains_key(owner));
        more
    }

    /// A message of a peer: one that was removed a while ago is alive, and so not dead if its link fails next.
    pub(crate) fn heard_of(&mut self, peer: Id) {
        if self.removing.get(&peer).is_some_and(|&until| until + UNDER_WAY < self.now + REMOVING) {
            self.removing.remove(&peer);
        }
    }

    /// Peers went out of reach: those that were removed a moment ago are dead.
    pub(crate) fn look_for_dead(&mut self) {
        if self.removing.keys().any(|peer| !self.peers.contains_key(peer)) {
            self.next_gone = Some(self.now);
        }
    }

    /// The lives that were removed.
    pub(crate) fn removed(&self) -> impl Iterator<Item = Removed> + '_ {
        let lives = self.gone.iter().filter(|(owner, _)| owner.life != ANY_LIFE);
        lives.map(|(&owner, &cleared)| Removed { owner, cleared })
    }

    /// One hash over them; 0 if there is none.
    pub(crate) fn removed_hash(&self) -> u64 {
        let mut hash = Hash::default();
        for Removed { owner, cleared } in self.removed() {
            let peer = u128::from_be_bytes(owner.peer.0);
            for word in [(peer >> 64) as u64, peer as u64, owner.life, u64::from(cleared)] {
                hash.word(word);
            }
        }
        self.removed().next().map_or(0, |_| hash.finish())
    }

    /// Whose block an address is in, with term and epoch.
    pub(crate) fn owner_of(&self, address: IpAddr) -> Option<(Id, u64, u64)> {
        let (index, offset) = self.universe.find(address)?;
        let area = self.areas.get(index)?;
        let reg = area.ring.reg(area.range.block_of(offset));
        Some((reg.holder.peer()?, reg.order.term, reg.order.epoch))
    }
}

/// Lives as they are when they are removed.
fn removed(lives: impl Iterator<Item = Owner>) -> Vec<Removed> {
    lives.map(|owner| Removed { owner, cleared: false }).collect()
}
