//! Meeting another address network.
//!
//! ```text
//!   ours untouched?  theirs untouched?
//!        no               no             both stay apart, and say so (ipam I4)
//!        no               yes            they come over to us
//!        yes              no             we go over to them
//!        yes              yes            to the one with the lower id
//! ```
//!
//! Networks never merge. But a network that one peer founded alone, and of which nobody ever got
//! an address or a block, is nothing that anybody could miss: that peer forgets it and joins the
//! other one. So hosts that were started apart and connected later find together by themselves.
//! It first listens for two seconds, so that all of them choose the same one.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::id::{Id, NetworkId, Owner, Sender};
use crate::machine::{MAX_NOTED, Machine};
use crate::ring::BUCKETS;
use crate::space::Space;
use crate::store::{self, Key};
use crate::voter::Voter;
use crate::wire::Body;

/// How long all networks around are listened to before one is chosen.
const LISTEN: Duration = Duration::from_secs(2);

/// The networks that this peer could go over to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Others {
    /// By preference: those in use first, then by id; with a member of each.
    heard: BTreeMap<(bool, NetworkId), Sender>,
    choose_at: Option<Duration>,
}

impl Others {
    /// When to choose.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.choose_at
    }
}

impl Machine {
    /// Whether nobody could miss this peer's network: it founded it alone, and neither an address
    /// nor a block of it was ever given.
    pub(crate) fn is_untouched(&self) -> bool {
        let alone = self.network.as_ref().is_some_and(|network| sole_founder(&network.shares) == Some(self.me.peer));
        alone
            && self.gave_nothing()
            && self.is_all_of(self.me.peer)
            && self.areas.iter().all(|area| {
                let blocks = area.ring.blocks();
                area.ring.held(0, blocks).eq([(0, blocks)])
            })
    }

    /// Whether this peer has nothing of its network, and the only one that ever had is `other`.
    fn is_orphan_of(&self, other: Id) -> bool {
        let founder = self.network.as_ref().and_then(|network| sole_founder(&network.shares));
        founder == Some(other)
            && self.gave_nothing()
            && self.is_all_of(other)
            && self.areas.iter().all(|area| area.ring.held(0, area.ring.blocks()).next().is_none())
    }

    fn gave_nothing(&self) -> bool {
        let idle = |space: &Space| space.used() == 0 && space.cooling() == 0;
        self.grants.is_empty() && self.answering.is_empty() && self.areas.iter().all(|area| idle(&area.space))
    }

    /// Whether no block was ever given away by this peer.
    fn is_all_of(&self, peer: Id) -> bool {
        self.areas.iter().all(|area| {
            let mut runs = area.ring.regs(0, area.ring.blocks());
            runs.all(|run| run.reg.order.epoch == 0 && run.reg.holder.peer() == Some(peer))
        })
    }

    /// A message of a member of another network.
    pub(crate) fn on_foreign(&mut self, from: Sender, theirs: NetworkId, body: Body) {
        let Some(ours) = self.network_id() else {
            return;
        };
        match body {
            Body::Here { untouched, ranges, .. } => {
                let ours_is_nothing = self.is_untouched();
                if ranges != self.universe.hash() {
                    self.note_other_ranges(from.peer);
                } else if self.is_orphan_of(from.peer) {
                    self.leave_for(from);
                } else if ours_is_nothing && (!untouched || theirs < ours) {
                    self.consider(from, theirs, untouched);
                } else if untouched {
                    // It comes over once it knows of us.
                    let here = self.here();
                    self.send_durably(from.peer, here);
                } else {
                    self.note_foreign(ours, theirs, from.peer);
                }
            }
            // A peer that is about to come over, or that does not know yet that we did.
            Body::Fetch => self.on_fetch(from),
            Body::Request(_) | Body::Digest(_) => {
                let here = self.here();
                self.send_durably(from.peer, here);
            }
            _ => {}
        }
    }

    fn consider(&mut self, from: Sender, theirs: NetworkId, untouched: bool) {
        if self.others.heard.len() < MAX_NOTED {
            self.others.heard.insert((untouched, theirs), from);
        }
        self.others.choose_at.get_or_insert(self.now + LISTEN);
    }

    /// Goes over to the best of the networks that were heard.
    pub(crate) fn tick_others(&mut self) {
        if self.others.choose_at.is_none_or(|at| self.now < at) {
            return;
        }
        let others = core::mem::take(&mut self.others);
        let reachable = |peer: &Sender| self.peers.get(&peer.peer) == Some(&peer.incarnation);
        let best = others.heard.into_values().find(reachable);
        if let Some(member) = best
            && self.is_untouched()
        {
            self.leave_for(member);
        }
    }

    /// Forgets this peer's network, of which it has nothing to lose, and asks for the other's.
    fn leave_for(&mut self, other: Sender) {
        let Some(network) = self.network.take() else {
            return;
        };
        self.touched.clear();
        self.journal.put(store::delete(Key::Network));
        self.journal.put(store::put(Key::Left, &true));
        for (range, area) in (0u16..).zip(&mut self.areas) {
            area.ring.forget();
            area.counted = None;
            for bucket in (0u8..).take(BUCKETS as usize) {
                self.journal.put(store::delete(Key::Ring { range, bucket }));
                self.journal.put(store::delete(Key::Votes { range, bucket }));
            }
        }
        for key in [Key::Panel, Key::Seat, Key::Gone, Key::Silent] {
            self.journal.put(store::delete(key));
        }
        let blocks: Vec<u32> = self.areas.iter().map(|area| area.ring.blocks()).collect();
        self.voter = Voter::new(&blocks, self.now);
        self.panel = None;
        self.gone.clear();
        self.silence.found.clear();
        self.grants.clear();
        self.witnessing.clear();
        self.restart_takes();
        self.takes.look_again();
        self.asks.clear();
        self.join.left(self.now);
        self.notice(format!(
            "this peer leaves the address network {}, of which nobody has anything, for that of \
             peer {}",
            network.id, other.peer
        ));
        self.fetch(other);
    }

    fn note_other_ranges(&mut self, peer: Id) {
        let text = format!(
            "peer {peer} has an address network with other ranges than {}; configure the same \
             ranges on every peer",
            self.universe.text()
        );
        self.problem(text);
    }

    fn note_foreign(&mut self, ours: NetworkId, theirs: NetworkId, peer: Id) {
        if self.foreign.len() < MAX_NOTED && self.foreign.insert(theirs, peer).is_none() {
            self.notice(format!(
                "peer {peer} belongs to another address network ({theirs}; ours is {ours}): they \
                 were founded apart and are not merged, so an address may be in use in both; to \
                 end this, remove the address state of the peers of one side and start them with \
                 --peer naming the other"
            ));
        }
    }
}

fn sole_founder(shares: &[Owner]) -> Option<Id> {
    match shares {
        [founder] => Some(founder.peer),
        _ => None,
    }
}
