//! Addresses that were given here and are in blocks of others: of a peer that was removed while it
//! was alive, or came from another network (ipam I21, I24).
//!
//! ```text
//!  here                                     owner of the block
//!    ── Strays(address, container) ──────────►  does not give it while it hears so;
//!    ◄─ Theirs(address, its container) ───────  gave it already: says to whom
//! ```
//!
//! Both sides then know both containers, and name them until one is gone. Neither is cut off by
//! itself: see [`crate::fence`] for what others do.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::id::{Id, Sender};
use crate::machine::Machine;
use crate::serve::MAX_OWNER;
use crate::space::REUSE_DELAY;
use crate::wire::{Body, Claim, Net};

/// How long what was told counts; it is told again with every comparison of registers.
const TOLD: Duration = REUSE_DELAY;
/// Most addresses in one message.
const MAX_CLAIMS: usize = 256;
/// Most addresses that others have told of that are remembered.
const MAX_TOLD: usize = 4096;

/// An address that two peers gave, as far as this one knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contest {
    /// The address.
    pub(crate) address: IpAddr,
    /// Whom this peer gave it.
    pub(crate) here: String,
    /// The other peer.
    pub(crate) peer: Id,
    /// Whom that one gave it; `None`: to nobody, or it has not said.
    pub(crate) there: Option<String>,
    /// Whether others drop what comes from here with it: its block is not this peer's, which was removed.
    pub(crate) theirs: bool,
}

/// What others have told of addresses that were given here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    by: BTreeMap<IpAddr, (Id, String, Duration)>,
}

impl Told {
    /// Forgets what was not told again.
    fn forget(&mut self, now: Duration) {
        self.by.retain(|_, (_, _, until)| now < *until);
    }
}

impl Machine {
    /// Tells the owners of other blocks which of their addresses are in use here, and whoever else has
    /// any of them.
    pub(crate) fn tell_strays(&mut self) {
        let mut strays: BTreeMap<Id, Vec<Claim>> = BTreeMap::new();
        for (owner, address, peer) in self.strays() {
            if self.peers.contains_key(&peer) {
                strays.entry(peer).or_default().push(Claim { address: Net(IpNet::from(address)), owner });
            }
        }
        for (address, owner, peer) in self.kept_elsewhere() {
            let claims = strays.entry(peer).or_default();
            let claim = Claim { address: Net(IpNet::from(address)), owner };
            if !claims.contains(&claim) {
                claims.push(claim);
            }
        }
        for (peer, claims) in strays {
            for claims in claims.chunks(MAX_CLAIMS) {
                self.send_durably(peer, Body::Strays(claims.to_vec()));
            }
        }
    }

    /// Addresses given here whose blocks are another peer's: to whom, and whose.
    fn strays(&self) -> Vec<(String, IpAddr, Id)> {
        let mut strays = Vec::new();
        for area in &self.areas {
            for (offset, given) in area.space.all_given() {
                let holder = area.ring.reg(area.range.block_of(offset)).holder.peer();
                if let Some(peer) = holder.filter(|peer| *peer != self.me.peer) {
                    strays.push((given.owner.clone(), area.range.address(offset), peer));
                }
            }
        }
        strays
    }

    /// Another peer has given addresses of blocks that it takes to be this one's.
    pub(crate) fn on_strays(&mut self, from: Sender, claims: &[Claim]) {
        let mut ours = Vec::new();
        self.told.forget(self.now);
        for claim in sound(claims) {
            let address = claim.address.0.addr();
            let Some((index, offset)) = self.universe.find(address) else {
                continue;
            };
            let until = self.now + TOLD;
            let area = &mut self.areas[index];
            match area.space.given(offset) {
                Some(given) => {
                    let owner = given.owner.clone();
                    ours.push(Claim { address: claim.address, owner });
                    self.note_told(address, from.peer, claim.owner.clone());
                }
                // Not recorded: it is told again after a restart.
                None if area.space.kept_at(offset).is_some() => {}
                None if area.ring.holds(area.range.block_of(offset)) => area.space.cool(offset, until),
                None => {}
            }
        }
        if !ours.is_empty() {
            self.send(from.peer, Body::Theirs(ours));
        }
    }

    /// The owner of a block gave addresses of it that are in use here.
    pub(crate) fn on_theirs(&mut self, from: Sender, claims: &[Claim]) {
        self.told.forget(self.now);
        for claim in sound(claims) {
            let address = claim.address.0.addr();
            let given = self.universe.find(address).is_some_and(|(index, offset)| {
                self.areas.get(index).is_some_and(|area| area.space.given(offset).is_some())
            });
            if given {
                self.note_told(address, from.peer, claim.owner.clone());
            }
        }
    }

    fn note_told(&mut self, address: IpAddr, peer: Id, owner: String) {
        let now = self.now;
        let room = self.told.by.len() < MAX_TOLD || self.told.by.contains_key(&address);
        if room && self.told.by.insert(address, (peer, owner.clone(), now + TOLD)).is_none() {
            let here =
                self.universe.find(address).and_then(|(index, offset)| self.areas.get(index)?.space.given(offset));
            let here = here.map(|given| given.owner.clone()).unwrap_or_default();
            self.notice(format!("{address} is in use twice: by {here} here, and by {owner} at peer {peer}"));
        }
    }

    /// Every address given here that another peer gave too, and those that others drop because their
    /// blocks are another peer's since this one was removed.
    pub(crate) fn contests(&self) -> Vec<Contest> {
        let told = |address: &IpAddr| self.told.by.get(address).filter(|(.., until)| self.now < *until);
        let fenced = self.removed().any(|it| it.owner.peer == self.me.peer && !it.cleared);
        let mut all: Vec<Contest> = self
            .strays()
            .into_iter()
            .filter_map(|(here, address, holder)| match told(&address) {
                // It may be in use at a third one, whose block it is not either.
                Some((peer, owner, _)) => {
                    Some(Contest { address, here, peer: *peer, there: Some(owner.clone()), theirs: fenced })
                }
                None => fenced.then_some(Contest { address, here, peer: holder, there: None, theirs: true }),
            })
            .collect();
        let strays: BTreeSet<IpAddr> = all.iter().map(|contest| contest.address).collect();
        for (&address, (peer, owner, _)) in self.told.by.iter().filter(|(address, _)| told(address).is_some()) {
            let known = strays.contains(&address);
            let here =
                self.universe.find(address).and_then(|(index, offset)| self.areas.get(index)?.space.given(offset));
            if let Some(given) = here.filter(|_| !known) {
                let there = Some(owner.clone());
                all.push(Contest { address, here: given.owner.clone(), peer: *peer, there, theirs: false });
            }
        }
        all
    }
}

/// The claims of a message that can be.
fn sound(claims: &[Claim]) -> impl Iterator<Item = &Claim> {
    claims.iter().take(MAX_CLAIMS).filter(|claim| claim.owner.len() <= MAX_OWNER)
}
