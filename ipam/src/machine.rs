//! The allocator's state, and the one place where inputs come in and outputs go out.
//!
//! ```text
//!  input ──► join | gossip | grant | serve ──► settle: serve, ask, flush ──► outputs
//!              (change state, journal.put, hold back what depends on it)
//! ```

mod dispatch;
mod outbox;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ipnet::IpNet;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use crate::allocator::{Birth, StateError};
use crate::ask::Ask;
use crate::fence::Fencing;
use crate::founding::Network;
use crate::grant::{Outstanding, Witnessing};
use crate::id::{Id, NetworkId, Owner, Sender};
use crate::join::Join;
use crate::journal::{Effect, Finished, Journal};
use crate::keep::Keeping;
use crate::leave::Others;
use crate::panel::Panel;
use crate::range::{Range, Universe};
use crate::ring::Ring;
use crate::serve::Pending;
use crate::silence::Silence;
use crate::space::Space;
use crate::stray::Told;
use crate::take::Takes;
use crate::voter::Voter;
use crate::wire::{Message, Wanted};
use crate::{Output, RequestId, Ticket};

/// Most foreign networks that are remembered, and texts about the network that are kept.
pub(crate) const MAX_NOTED: usize = 64;
/// Most peers that are remembered as met.
const MAX_MET: usize = 8192;

/// A message on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Packet {
    /// To one peer, or to this one itself.
    To(Id, Message),
    /// To all.
    All(Message),
}

/// One range with all that is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Area {
    /// How it is cut.
    pub(crate) range: Range,
    /// Who owns which block.
    pub(crate) ring: Ring,
    /// The addresses of the blocks held here.
    pub(crate) space: Space,
    /// Addresses in the blocks held, as of so many changes of the ring.
    pub(crate) counted: Option<(u64, u128)>,
}

/// A part of a ring, or of what this voter knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RingPart {
    /// Of the votes.
    pub(crate) votes: bool,
    /// Number of the range.
    pub(crate) index: usize,
    /// Number of the bucket.
    pub(crate) bucket: u32,
}

/// What a [`Machine`] is made with.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// This peer.
    pub(crate) me: Id,
    /// Number of this start, as the mesh counts them.
    pub(crate) incarnation: u64,
    /// The configured ranges.
    pub(crate) ranges: Vec<IpNet>,
    /// Number of other peers that the operator named.
    pub(crate) named: usize,
    /// How this peer comes to its first network.
    pub(crate) birth: Birth<Id>,
    /// Keys of durable state that cannot be read.
    pub(crate) forgot: Vec<Vec<u8>>,
    /// State was lost with its keys.
    pub(crate) lost: bool,
    /// Number of peers that this one has met before.
    pub(crate) remembered: usize,
    /// After how long a silence a peer is removed.
    pub(crate) dead_after: Option<Duration>,
    /// Seed of all randomness.
    pub(crate) seed: [u8; 32],
    /// Rules to break, for tests.
    pub(crate) ablation: Ablation,
}

/// Rules that are not kept, to show by test what each is good for; none in any other build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ablation {
    /// Blocks are used without witnesses (against ipam I15).
    pub no_witness: bool,
    /// Blocks of earlier lives are used without asking (against ipam I9).
    pub no_restart_term: bool,
    /// A voter that restarts trusts its disk (against ipam I18).
    pub no_recovery: bool,
    /// Addresses that others keep are given all the same (against ipam I24).
    pub no_keep: bool,
}

/// The address protocol of one peer.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// This peer, in the life that began with this start.
    pub(crate) me: Owner,
    incarnation: u64,
    pub(crate) universe: Universe,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) now: Duration,
    pub(crate) peers: BTreeMap<Id, u64>,
    /// Since when somebody is in reach without interruption.
    pub(crate) in_reach_since: Option<Duration>,
    /// All that were in reach since the start: they may be members without owning anything known here.
    pub(crate) met: BTreeSet<Id>,
    pub(crate) network: Option<Network>,
    pub(crate) network_batch: u64,
    /// When this run came to know its network.
    pub(crate) joined_at: Duration,
    /// Who settles what owners cannot.
    pub(crate) panel: Option<Panel>,
    pub(crate) voter: Voter,
    pub(crate) takes: Takes,
    pub(crate) witnessing: BTreeMap<u64, Witnessing>,
    /// Lives that were removed; true: their peer has said that nothing is left of them.
    pub(crate) gone: BTreeMap<Owner, bool>,
    pub(crate) next_gone: Option<Duration>,
    /// The operator was told that this peer was removed.
    pub(crate) knows_removal: bool,
    pub(crate) fencing: Fencing,
    pub(crate) silence: Silence,
    pub(crate) told: Told,
    pub(crate) keeping: Keeping,
    /// Peers that an operator has removed here, and until when lives of theirs that this peer did
    /// not know of are removed too, as long as they are out of reach.
    pub(crate) removing: BTreeMap<Id, Duration>,
    /// Blocks of an earlier life are in use again.
    pub(crate) inherited: bool,
    /// What runs on the host was told.
    pub(crate) surveyed: bool,
    pub(crate) ablation: Ablation,
    pub(crate) areas: Vec<Area>,
    /// Where the addresses of each owner are: number of the range and offset.
    pub(crate) owners: BTreeMap<String, BTreeSet<(usize, u128)>>,
    pub(crate) journal: Journal<Packet>,
    /// What of rings and votes is to be written next: encoded then, however often it changes before.
    pub(crate) touched: BTreeSet<RingPart>,
    pub(crate) pending: BTreeMap<RequestId, Pending>,
    pub(crate) deadlines: VecDeque<(Duration, RequestId)>,
    /// Requests whose address waits to be durable.
    pub(crate) answering: BTreeMap<RequestId, (usize, u128)>,
    pub(crate) asks: BTreeMap<Wanted, Ask>,
    pub(crate) next_seq: u64,
    pub(crate) grants: BTreeMap<u64, Outstanding>,
    pub(crate) join: Join,
    pub(crate) next_gossip: Duration,
    pub(crate) next_digest: Duration,
    /// Something changed that may let a pending request be served.
    pub(crate) wake: bool,
    pub(crate) others: Others,
    /// Other networks that were met, and by which peer.
    pub(crate) foreign: BTreeMap<NetworkId, Id>,
    /// Peers in reach that are in no network, or in another one, by their last message.
    pub(crate) elsewhere: BTreeSet<Id>,
    /// Peers that sent what this version cannot read.
    unreadable: BTreeSet<Id>,
    /// What keeps this peer from joining, or blocks from being used.
    pub(crate) problems: BTreeSet<String>,
    /// Messages of this peer to itself.
    inbox: VecDeque<Message>,
    out: VecDeque<Output<Id>>,
}

impl Machine {
    /// A machine with the state of its last run.
    pub(crate) fn new(setup: Setup, state: Vec<(Vec<u8>, Vec<u8>)>, now: Duration) -> Result<Self, StateError> {
        let universe = Universe::new(&setup.ranges).map_err(StateError::Ranges)?;
        let mut rng = ChaCha8Rng::from_seed(setup.seed);
        let areas = universe
            .ranges()
            .iter()
            .map(|range| Area {
                range: range.clone(),
                ring: Ring::new(range.blocks()),
                space: Space::default(),
                counted: None,
            })
            .collect();
        let blocks: Vec<u32> = universe.ranges().iter().map(Range::blocks).collect();
        let mut machine = Self {
            me: Owner { peer: setup.me, life: rng.next_u64().max(1) },
            incarnation: setup.incarnation,
            universe,
            rng,
            now,
            peers: BTreeMap::new(),
            in_reach_since: None,
            network: None,
            network_batch: 0,
            joined_at: now,
            panel: None,
            voter: Voter::new(&blocks, now),
            takes: Takes::default(),
            witnessing: BTreeMap::new(),
            gone: BTreeMap::new(),
            next_gone: None,
            knows_removal: false,
            fencing: Fencing::default(),
            silence: Silence::new(setup.dead_after, now),
            told: Told::default(),
            keeping: Keeping::default(),
            removing: BTreeMap::new(),
            inherited: false,
            surveyed: false,
            ablation: setup.ablation,
            areas,
            owners: BTreeMap::new(),
            journal: Journal::new(),
            touched: BTreeSet::new(),
            pending: BTreeMap::new(),
            deadlines: VecDeque::new(),
            answering: BTreeMap::new(),
            asks: BTreeMap::new(),
            next_seq: 0,
            grants: BTreeMap::new(),
            join: Join::new(setup.named, setup.birth, setup.remembered, now),
            next_gossip: now,
            next_digest: now,
            wake: false,
            others: Others::default(),
            foreign: BTreeMap::new(),
            met: BTreeSet::new(),
            elsewhere: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            problems: BTreeSet::new(),
            inbox: VecDeque::new(),
            out: VecDeque::new(),
        };
        let fresh = machine.restore(state)?;
        if setup.lost || !setup.forgot.is_empty() {
            machine.lose(setup.forgot);
        }
        machine.begin(fresh);
        machine.schedule_gossip();
        machine.settle();
        Ok(machine)
    }

    /// The reachable peers.
    pub(crate) fn handle_peers(&mut self, peers: BTreeMap<Id, u64>, now: Duration) {
        self.clock(now);
        let mut peers = peers;
        peers.remove(&self.me.peer);
        self.note_heard();
        let new: Vec<Id> =
            peers.iter().filter(|&(peer, life)| self.peers.get(peer) != Some(life)).map(|(&peer, _)| peer).collect();
        self.in_reach_since = (!peers.is_empty()).then(|| self.in_reach_since.unwrap_or(now));
        self.peers = peers;
        self.met.extend(new.iter().take(MAX_MET.saturating_sub(self.met.len())));
        self.fencing.look_again = true;
        let peers = &self.peers;
        self.voter.members.retain(|peer, _| peers.contains_key(peer));
        self.elsewhere.retain(|peer| peers.contains_key(peer));
        self.foreign.retain(|_, peer| peers.contains_key(peer));
        self.welcome_back();
        self.look_for_dead();
        for &peer in &new {
            self.greet(peer);
            self.hurry_grants(peer);
        }
        if !new.is_empty() {
            self.join.met(self.now);
            for ask in self.asks.values_mut() {
                ask.hurry(self.now);
            }
        }
        self.settle();
    }

    /// A higher life of this peer begins, with the state as it is.
    pub(crate) fn raise_incarnation(&mut self, incarnation: u64, now: Duration) {
        self.clock(now);
        if incarnation > self.incarnation {
            self.incarnation = incarnation;
            // Answers to what was asked under the old number may not arrive any more.
            self.asks.clear();
            self.restart_takes();
            self.restart_witnesses();
        }
        self.settle();
    }

    /// A message.
    pub(crate) fn handle_message(&mut self, from: Sender, bytes: &[u8], now: Duration) {
        self.clock(now);
        match Message::decode(bytes) {
            // A message of an earlier life of the peer says nothing about this one.
            Ok(_) if self.peers.get(&from.peer).is_some_and(|&life| life > from.incarnation) => {}
            Ok(_) if from.peer == self.me.peer => {}
            Ok(message) => {
                self.heard_of(from.peer);
                self.dispatch(from, message);
            }
            Err(why) => self.note_unreadable(from.peer, &why),
        }
        self.settle();
    }

    /// A write ended.
    pub(crate) fn handle_stored(&mut self, ticket: Ticket, result: Result<(), String>, now: Duration) {
        self.clock(now);
        let failed_before = self.journal.failure().is_some();
        match self.journal.stored(ticket.0, result, self.now) {
            Finished::Durable(effects) => {
                for effect in effects {
                    match effect {
                        // The write may have outlived the lease: of a host that slept meanwhile.
                        Effect::Reply(request) if !self.has_lease() => self.refuse_late(request),
                        effect => self.perform(effect),
                    }
                }
            }
            Finished::Failed { batch, requests } => {
                let why = self.journal.failure().unwrap_or_default().to_owned();
                if !failed_before {
                    self.notice(format!(
                        "the address state cannot be written: {why}; no address is given until \
                         it can"
                    ));
                }
                self.undo(batch, requests, &why);
            }
            Finished::Unknown => {}
        }
        self.settle();
    }

    /// Time has passed.
    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        self.clock(now);
        self.cool_down();
        self.tick_join();
        self.tick_others();
        self.tick_gossip();
        self.tick_grants();
        self.tick_witnesses();
        self.tick_voter();
        self.tick_takes();
        self.tick_silence();
        self.expire_requests();
        self.settle();
    }

    /// Sets the time; it never goes back.
    pub(crate) fn clock(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// What every input ends with.
    pub(crate) fn settle(&mut self) {
        loop {
            self.look_at_kept();
            self.areas.iter_mut().for_each(Area::count);
            self.look_for_takes();
            self.tick_gone();
            while let Some(message) = self.inbox.pop_front() {
                self.dispatch(Sender { peer: self.me.peer, incarnation: self.incarnation }, message);
            }
            self.tick_takes();
            if core::mem::take(&mut self.wake) {
                self.serve_all();
            }
            self.drive_asks();
            self.look_at_fences();
            self.flush();
            if self.inbox.is_empty() && !self.wake {
                return;
            }
        }
    }

    /// The next output.
    pub(crate) fn poll_output(&mut self) -> Option<Output<Id>> {
        self.out.pop_front()
    }

    /// The next time something is to be done.
    pub(crate) fn poll_timeout(&self) -> Option<(Duration, &'static str)> {
        let cooled = self.areas.iter().filter_map(|area| area.space.next_cooled()).min();
        [
            (self.journal.next_flush(), "write the address state"),
            (self.others.next(), "choose among address networks"),
            (self.join.next(self.network.is_some()), "found or join an address network"),
            (
                (self.network.is_some() && !self.peers.is_empty()).then_some(self.next_gossip),
                "compare block registers with a peer",
            ),
            (self.deadlines.front().map(|&(at, _)| at), "give up on a request for an address"),
            (self.next_ask(), "ask a peer for blocks"),
            (self.next_grant(), "send a grant again"),
            (self.next_overdue(), "take back what was not confirmed"),
            (self.next_witness(), "ask voters to witness a grant"),
            (self.next_vote(), "vote"),
            (self.next_take(), "settle blocks through the voters"),
            (self.next_gone, "tell of removed peers"),
            (self.silence.next().filter(|_| self.network.is_some()), "look who is silent"),
            (cooled, "end the reuse delay of an address"),
        ]
        .into_iter()
        .filter_map(|(at, why)| Some((at?, why)))
        .min()
    }

    /// This peer's network.
    pub(crate) fn network_id(&self) -> Option<NetworkId> {
        self.network.as_ref().map(|network| network.id)
    }

    /// A random duration below `most`.
    pub(crate) fn jitter(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(self.rng.next_u64() % most)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::tests::body;
    use crate::wire::{Body, Removed};

    const PEER: Sender = Sender { peer: Id([2; 16]), incarnation: 1 };

    fn machine(named: usize) -> Machine {
        let ranges = ["10.0.0.0/26", "fd00::/64", "10.64.0.0/16"];
        let setup = Setup {
            me: Id([1; 16]),
            incarnation: 1,
            ablation: Ablation::default(),
            ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            named,
            birth: Birth::ByItself,
            forgot: Vec::new(),
            lost: false,
            remembered: 0,
            dead_after: Some(Duration::from_secs(60)),
            seed: [7; 32],
        };
        let mut machine = Machine::new(setup, Vec::new(), Duration::ZERO).unwrap();
        machine.handle_peers(BTreeMap::from([(PEER.peer, 1)]), Duration::ZERO);
        drain(&mut machine);
        machine
    }

    fn drain(machine: &mut Machine) -> usize {
        let mut count = 0;
        while let Some(output) = machine.poll_output() {
            count += 1;
            assert!(count < 10_000, "outputs without end");
            if let Output::Store { ticket, .. } = output {
                machine.handle_stored(ticket, Ok(()), machine.now);
            }
        }
        count
    }

    #[test]
    fn peers_can_be_removed_however_many_were_before_and_never_came_back() {
        let mut machine = machine(0);
        let peer = |number: u16| {
            let mut id = [9; 16];
            id[..2].copy_from_slice(&number.to_be_bytes());
            Id(id)
        };
        for life in [0, 5] {
            let owners = (0..8192).map(|number| Owner { peer: peer(number), life });
            let lives = owners.map(|owner| Removed { owner, cleared: false }).collect();
            let bytes = Message { network: machine.network_id(), body: Body::Gone { lives, want: false } }.encode();
            machine.handle_message(PEER, &bytes, machine.now);
            drain(&mut machine);
        }
        assert!(machine.gone.len() > 8000);
        assert_eq!(machine.remove_peer(peer(9000)), Ok(()));
        assert!(machine.is_gone(&peer(9000)), "and it is remembered");
    }

    proptest! {
        #[test]
        fn any_message_leaves_a_machine_that_goes_on(
            named in 0usize..3,
            bodies in proptest::collection::vec((body(), any::<bool>(), any::<bool>()), 1..20),
        ) {
            let mut machine = machine(named);
            machine.allocate(RequestId(1), "c1", "10.0.0.0/26".parse().unwrap());
            machine.settle();
            for (body, own, wait) in bodies {
                let network = if own { machine.network_id() } else { Some(NetworkId([3; 16])) };
                let bytes = Message { network, body }.encode();
                machine.handle_message(PEER, &bytes, machine.now);
                drain(&mut machine);
                if wait {
                    machine.handle_timeout(machine.now + Duration::from_secs(2));
                    drain(&mut machine);
                }
            }
            machine.handle_timeout(machine.now + Duration::from_secs(60));
            drain(&mut machine);
            prop_assert!(machine.pending.is_empty());
            let _ = (machine.readiness(), machine.counts(), machine.owned_by_peers(), machine.held());
        }
    }
}
