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
/// How long a member must have been in reach to have told its panel for sure: the longest pause
/// between two comparisons.
const SURE: Duration = Duration::from_secs(15);
/// Stands for a peer as a voter, whatever its life.
const ANY_LIFE: u64 = 0;
/// Most lives that are remembered as gone, and that fit into a message.
const MAX_GONE: usize = 8192;

impl Machine {
    /// Whether a peer was removed, and did not come back.
    pub(crate) fn is_gone(&self, peer: &Id) -> bool {
        self.gone.contains(&Owner { peer: *peer, life: ANY_LIFE }) && !self.peers.contains_key(peer)
    }

    /// Removes a peer.
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
            return Err(format!(
                "most voters would be gone, and {} could not be asked for 15 s whether there are newer ones: try again \
                 when they are in reach, or remove them first",
                names(apart.iter())
            ));
        }
        self.learn_gone(&lives);
        if alone {
            self.notice("most voters are removed: this peer settles alone from now on, by what it knows".to_owned());
            self.vote_alone();
        }
        self.next_gone = Some(self.now);
        self.tick_gone();
        Ok(())
    }

    /// Members but `peer` that were not in reach for so long that this peer can be sure to know
    /// the voters that they know.
    fn members_apart(&self, peer: Id) -> BTreeSet<Id> {
        let rings = self.areas.iter().flat_map(|area| area.ring.regs(0, area.ring.blocks()));
        let owners = rings.filter_map(|run| run.reg.holder.peer());
        let voters = self.panel.iter().flat_map(|panel| panel.voters.iter().copied());
        let heard = |it: &Id| self.voter.members.get(it).is_some_and(|&since| since + SURE <= self.now);
        let all = owners.chain(voters).chain(self.peers.keys().copied());
        all.filter(|it| *it != peer && *it != self.me.peer && !self.is_gone(it) && !heard(it)).collect()
    }

    /// Lives that somebody removed.
    pub(crate) fn learn_gone(&mut self, gone: &[Owner]) {
        let before = self.gone.len();
        for &owner in gone {
            if self.gone.len() < MAX_GONE && owner.peer != self.me.peer {
                self.gone.insert(owner);
            }
        }
        if self.gone.len() > before {
            self.takes.look_again();
            let list: Vec<Owner> = self.gone.iter().copied().collect();
            self.journal.put(store::put(Key::Gone, &list));
            self.next_gone = Some(self.now + TELL_PAUSE);
        }
        if gone.contains(&self.me) {
            self.live_again();
        }
    }

    /// This peer was removed, and is alive: what it still owns, it owns in a new life.
    fn live_again(&mut self) {
        self.me.life = self.draw();
        for area in &mut self.areas {
            area.ring.let_go();
        }
        self.asks.clear();
        self.witnessing.clear();
        self.restart_takes();
        self.notice(
            "this peer was removed while it was alive: it goes on as a new member; addresses in blocks \
             that went to others are in dispute, and weft ipam check names them"
                .to_owned(),
        );
    }

    /// Tells the others who is gone, as long as anything is left of them.
    pub(crate) fn tick_gone(&mut self) {
        if self.next_gone.is_none_or(|at| self.now < at) {
            return;
        }
        // Who is back is not removed a second time when it is away again.
        let peers = &self.peers;
        self.gone.retain(|owner| owner.life != ANY_LIFE || !peers.contains_key(&owner.peer));
        let owns = self.areas.iter().any(|area| {
            let mut runs = area.ring.regs(0, area.ring.blocks());
            runs.any(|run| {
                matches!(run.reg.holder, Holder::One(owner) if self.gone.contains(&owner) || self.is_gone(&owner.peer))
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
                Holder::One(owner) if self.is_gone(&owner.peer) && !self.gone.contains(&owner) => Some(owner),
                _ => None,
            })
            .collect();
        self.learn_gone(&more);
        let list: Vec<Owner> = self.gone.iter().copied().collect();
        self.broadcast_durably(Body::Gone(list));
    }

    /// Whose block an address is in, with term and epoch.
    pub(crate) fn owner_of(&self, address: IpAddr) -> Option<(Id, u64, u64)> {
        let (index, offset) = self.universe.find(address)?;
        let area = self.areas.get(index)?;
        let reg = area.ring.reg(area.range.block_of(offset));
        Some((reg.holder.peer()?, reg.order.term, reg.order.epoch))
    }
}
