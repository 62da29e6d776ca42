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
//! another life as soon as it hears of it, and owns what was not taken yet (ipam I20).

use core::net::IpAddr;
use core::time::Duration;
use std::collections::BTreeSet;

use crate::id::{Id, Owner};
use crate::machine::Machine;
use crate::ring::Holder;
use crate::store::{self, Key};
use crate::wire::{Body, names};

/// Pause between two tellings of who is gone.
const TELL_PAUSE: Duration = Duration::from_secs(5);
/// For how long it counts that a member has said which voters it knows.
const SURE: Duration = Duration::from_secs(5);
/// For how long after a removal lives that were not known of are removed too.
const REMOVING: Duration = Duration::from_secs(60);
/// Stands for a peer as a voter, whatever its life.
pub(crate) const ANY_LIFE: u64 = 0;
/// Most lives that are remembered as gone, and that fit into a message.
const MAX_GONE: usize = 8192;

impl Machine {
    /// Whether a peer was removed, and did not come back.
    pub(crate) fn is_gone(&self, peer: &Id) -> bool {
        self.gone.contains(&Owner { peer: *peer, life: ANY_LIFE }) && !self.peers.contains_key(peer)
    }

    /// Removes a peer for an operator.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(crate) fn remove_peer(&mut self, peer: Id) -> Result<(), String> {
        if peer == self.me.peer {
            return Err("a peer cannot remove itself; ask another one".to_owned());
        }
        let Some(panel) = self.panel.clone() else {
            return Err(self.waiting());
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
        // One that is alive after all goes on as a voter.
        let goes = |it: &Id| self.is_gone(it) || (*it == peer && !self.peers.contains_key(it));
        let stays = |it: &Id| *it == self.me.peer || !goes(it);
        let alone = panel.voters.iter().filter(|voter| stays(voter)).count() < panel.majority();
        let apart = self.members_apart(peer);
        if alone && !apart.is_empty() {
            self.broadcast_durably(Body::PanelAsk);
            return Err(format!(
                "most voters would be gone, and {} did not say yet whether there are newer ones: try again in a \
                 moment, when they are in reach, or remove them first",
                names(apart.iter())
            ));
        }
        // Of two that are asked at once, only one may go on alone.
        let lowest = self.peers.keys().copied().filter(|it| *it != peer && !self.is_gone(it)).min();
        if let Some(other) = lowest.filter(|other| alone && *other < self.me.peer) {
            return Err(format!("most voters would be gone, and one peer must settle alone then: ask peer {other}"));
        }
        self.removing.insert(peer, self.now + REMOVING);
        if alone {
            self.learn_gone(&lives);
            self.notice("most voters are removed: this peer settles alone from now on, by what it knows".to_owned());
            self.vote_alone();
        }
        self.remove_lives(&lives);
        Ok(())
    }

    /// Removes lives.
    pub(crate) fn remove_lives(&mut self, lives: &[Owner]) {
        self.learn_gone(lives);
        self.next_gone = Some(self.now);
        self.tick_gone();
    }

    /// Members but `peer` that have not said lately that they know the same voters.
    fn members_apart(&self, peer: Id) -> BTreeSet<Id> {
        let rings = self.areas.iter().flat_map(|area| area.ring.regs(0, area.ring.blocks()));
        let owners = rings.filter_map(|run| run.reg.holder.peer());
        let voters = self.panel.iter().flat_map(|panel| panel.voters.iter().copied());
        let same = &self.voter.same_panel;
        let heard = |it: &Id| self.peers.contains_key(it) && same.get(it).is_some_and(|&at| self.now <= at + SURE);
        let all = owners.chain(voters).chain(self.peers.keys().copied());
        all.filter(|it| *it != peer && *it != self.me.peer && !self.is_gone(it) && !heard(it)).collect()
    }

    /// Lives that somebody removed.
    pub(crate) fn learn_gone(&mut self, gone: &[Owner]) {
        if self.gone.len() + gone.len() > MAX_GONE {
            self.forget_gone();
        }
        let before = self.gone.len();
        for &owner in gone {
            let back = owner.life == ANY_LIFE && self.peers.contains_key(&owner.peer);
            if self.gone.len() < MAX_GONE && owner.peer != self.me.peer && !back {
                self.gone.insert(owner);
            }
        }
        if self.gone.len() > before {
            self.takes.look_again();
            self.fencing.look_again = true;
            let list: Vec<Owner> = self.gone.iter().copied().collect();
            self.journal.put(store::put(Key::Gone, &list));
            self.next_gone = Some(self.now + TELL_PAUSE);
        }
        let mine = |owner: &&Owner| owner.peer == self.me.peer && owner.life != ANY_LIFE;
        if gone.contains(&self.me) {
            self.live_again();
        } else if !self.knows_removal && gone.iter().any(|owner| mine(&owner)) {
            self.knows_removal = true;
            self.notice(
                "this peer was removed while it was away: it is a new member; addresses in blocks that went to others \
                 are in dispute, and weft ipam check names them"
                    .to_owned(),
            );
        }
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
        let peers = &self.peers;
        self.gone.retain(|owner| owner.life == ANY_LIFE || own.contains(owner) || peers.contains_key(&owner.peer));
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
        let (peers, before) = (&self.peers, self.gone.len());
        self.gone.retain(|owner| owner.life != ANY_LIFE || !peers.contains_key(&owner.peer));
        if self.gone.len() < before {
            let list: Vec<Owner> = self.gone.iter().copied().collect();
            self.journal.put(store::put(Key::Gone, &list));
        }
    }

    /// Tells the others who is gone, as long as anything is left of them.
    pub(crate) fn tick_gone(&mut self) {
        if self.next_gone.is_none_or(|at| self.now < at) {
            return;
        }
        let (peers, now) = (&self.peers, self.now);
        self.removing.retain(|peer, until| now < *until && !peers.contains_key(peer));
        let owns = self.areas.iter().any(|area| {
            let mut runs = area.ring.regs(0, area.ring.blocks());
            runs.any(|run| {
                matches!(run.reg.holder, Holder::One(owner)
                    if self.gone.contains(&owner) || self.removing.contains_key(&owner.peer))
            })
        });
        let votes = self.panel.as_ref().is_some_and(|panel| panel.voters.iter().any(|voter| self.is_gone(voter)));
        if !owns && !votes {
            self.next_gone = None;
            return;
        }
        self.next_gone = Some(self.now + TELL_PAUSE);
        // What it owned without our knowing it until now.
        let more: Vec<Owner> = self
            .areas
            .iter()
            .flat_map(|area| area.ring.regs(0, area.ring.blocks()))
            .filter_map(|run| match run.reg.holder {
                Holder::One(owner) if self.removing.contains_key(&owner.peer) && !self.gone.contains(&owner) => {
                    Some(owner)
                }
                _ => None,
            })
            .collect();
        self.learn_gone(&more);
        let list: Vec<Owner> = self.gone.iter().copied().collect();
        self.broadcast_durably(Body::Gone(list));
    }

    /// The lives that were removed.
    pub(crate) fn removed(&self) -> impl Iterator<Item = Owner> + '_ {
        self.gone.iter().copied().filter(|owner| owner.life != ANY_LIFE)
    }

    /// Whose block an address is in, with term and epoch.
    pub(crate) fn owner_of(&self, address: IpAddr) -> Option<(Id, u64, u64)> {
        let (index, offset) = self.universe.find(address)?;
        let area = self.areas.get(index)?;
        let reg = area.ring.reg(area.range.block_of(offset));
        Some((reg.holder.peer()?, reg.order.term, reg.order.epoch))
    }
}
