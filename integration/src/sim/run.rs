//! The course of a run: faults, then health; what must hold then; what is measured.
//!
//! ```text
//!  0 s        4 s                 14 s        ≤ CONVERGE      rounds
//!  ├─ starts ──┼─ faults, traffic ──┼─ agreement? ──┼─ liveness ──┼─ silence ──┤
//! ```

use super::clock::{MS, SECOND, Time};
use super::ledger::Mac;
use super::options::Options;
use super::queue::Index;
use super::traffic::ask;
use super::view::{Edges, agreed};
use super::world::World;

/// All routers agree on the mesh at most this long after the last fault has ended.
pub const CONVERGE: core::time::Duration = core::time::Duration::from_secs(15);
/// Bytes that a peer without traffic sends per second and link, with UDP and IP headers: echoes
/// of both ends, keep-alives of the connections, gossip digests, and in a mesh of up to 33 peers
/// its relayed connections.
pub const IDLE_PER_LINK: u64 = 350;
/// Bytes that a peer without traffic sends per second to addresses where nobody answers, in the
/// second minute after the last change.
pub const IDLE_DIALS: u64 = 600;

/// How long a mesh is left alone before it is called idle: what was tried in vain is tried less
/// and less often.
const UNWIND: Time = 60 * SECOND;
/// How long silence is listened to.
const QUIET: Time = 30 * SECOND;
/// How often a round of liveness may be disturbed by a topology that still improves.
const ROUNDS: u32 = 8;
/// Time between two looks at whether all agree.
const LOOK: Time = 250 * MS;
/// In this time all hear of a link that somebody found without any fault.
const NEWS: Time = 2 * SECOND;
/// Frames up to this size fit into one datagram on every path, in bytes.
const CARRIED_EVERYWHERE: usize = 1100;
/// Unicast destinations of each host in a round.
const PARTNERS: usize = 4;

/// Who sends to whom: hosts, the destination's address, the size of the frames.
type Partner = (Index, Index, Mac, usize);

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What was run.
    pub options: Options,
    /// What may not happen and did, if anything.
    pub failure: Option<String>,
    /// Hash over everything that happened.
    pub hash: u64,
    /// The trace, as far as it was asked for.
    pub trace: String,
    /// What was measured.
    pub measured: Measured,
}

/// What was measured in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measured {
    /// Simulated time from the last fault until all routers agreed, in milliseconds.
    pub converged_ms: u64,
    /// Simulated time of the whole run, in milliseconds.
    pub simulated_ms: u64,
    /// Bytes a second that a peer sent when nothing happened, with UDP and IP headers.
    pub idle_per_peer: u64,
    /// Of these, what went to addresses where nobody answers.
    pub idle_dials: u64,
    /// What went elsewhere, for each link of a peer.
    pub idle_per_link: u64,
    /// Events of the simulation.
    pub events: u64,
    /// Datagrams sent.
    pub datagrams: u64,
    /// Messages on connections, and their bytes.
    pub messages: (u64, u64),
    /// Tables handed from control to data.
    pub tables: u64,
    /// Frames that containers sent.
    pub frames: u64,
    /// Frames delivered to containers' hosts.
    pub deliveries: u64,
    /// Addresses given.
    pub addresses: u64,
}

/// Runs a simulation to its end, or to the first thing that may not happen.
#[must_use]
pub fn run(options: &Options) -> Outcome {
    let mut world = World::new(options.clone());
    let mut measured = Measured::default();
    let failure = world.live(&mut measured).err();
    let env = &world.env;
    measured.simulated_ms = env.now / MS;
    measured.events = world.events;
    measured.datagrams = env.net.carried.datagrams;
    measured.messages = env.messages;
    measured.tables = env.tables;
    measured.frames = u64::try_from(env.ledger.len()).unwrap_or(u64::MAX);
    measured.deliveries = env.ledger.deliveries;
    measured.addresses = env.book.granted;
    if let Some(why) = &failure {
        let now = world.env.now;
        world.env.trace.line(now, format_args!("FAILED {why}"));
    }
    let hash = world.env.trace.hash();
    let trace = world.env.trace.into_text();
    Outcome { options: options.clone(), failure, hash, trace, measured }
}

impl World {
    fn live(&mut self, measured: &mut Measured) -> Result<(), String> {
        self.run_until(super::faults::FIRST)?;
        self.spoil();
        self.run_until(Self::healed())?;
        self.heal();
        self.check()?;
        let healed = self.env.now;
        let edges = self.converge()?;
        measured.converged_ms = (self.env.now - healed) / MS;
        self.liveness(edges)?;
        if self.options.addresses {
            self.addresses_flow()?;
        }
        self.silence(measured)
    }

    /// Waits until all routers agree after the last fault.
    fn converge(&mut self) -> Result<Edges, String> {
        let bound = u64::try_from(CONVERGE.as_nanos()).unwrap_or(u64::MAX);
        let seconds = CONVERGE.as_secs();
        self.run_until(self.env.now + LOOK)?;
        let edges =
            self.agreement(bound)?.map_err(|why| format!("no agreement {seconds} s after the last fault: {why}"))?;
        self.env.trace.line(self.env.now, format_args!("all agree"));
        Ok(edges)
    }

    /// What all routers agree upon now, or after a while. The inner result is why they do not.
    fn agreement(&mut self, limit: Time) -> Result<Result<Edges, String>, String> {
        let end = self.env.now + limit;
        loop {
            match agreed(&self.hosts, &self.env.net) {
                Err(_) if self.env.now < end => self.run_until(self.env.now + LOOK)?,
                result => return Ok(result),
            }
        }
    }

    /// Rounds of traffic until one is undisturbed: in that one, everything must arrive.
    fn liveness(&mut self, mut edges: Edges) -> Result<(), String> {
        let mut last = String::new();
        for _ in 0..ROUNDS {
            let changes = self.env.link_changes;
            self.disturbed = false;
            let result = self.round()?;
            match agreed(&self.hosts, &self.env.net) {
                Ok(after) if after == edges && self.env.link_changes == changes && !self.disturbed => {
                    self.env.trace.line(self.env.now, format_args!("a round without changes"));
                    return result.map_err(|why| format!("in a stable mesh: {why}"));
                }
                Ok(after) => edges = after,
                Err(why) => {
                    last = why;
                    edges = self.converge()?;
                }
            }
        }
        Err(format!("the mesh does not come to rest after the last fault: {last}"))
    }

    /// Each host sends one broadcast and a few unicasts. The inner result is what is missing.
    fn round(&mut self) -> Result<Result<(), String>, String> {
        // Gossip of a change that was just agreed upon, and echoes of new links, come to rest.
        self.run_until(self.env.now + SECOND)?;
        let changes = self.env.tree_changes;
        let mut broadcasts = self.broadcasts()?;
        self.run_until(self.env.now + SECOND)?;
        if self.env.tree_changes != changes {
            // Each router changes its trees at another moment. What a broadcast meets between two
            // trees is not decided here; another round follows.
            self.disturbed = true;
            broadcasts.clear();
        }
        // The first frames to a peer may wait for a session with it, or be larger than a new path
        // carries; those after may not.
        let (partners, ways) = (self.partners(), self.env.way_changes);
        self.unicasts(&partners)?;
        self.run_until(self.env.now + 3 * SECOND)?;
        let mut unicasts = self.unicasts(&partners)?;
        self.run_until(self.env.now + SECOND)?;
        if self.env.way_changes != ways {
            // Another relay may carry less than the one before; that is found in 2 s (sleeve).
            unicasts.retain(|id| self.env.ledger.frame(*id).size <= CARRIED_EVERYWHERE);
        }
        Ok(self.all_arrived(&broadcasts, &unicasts))
    }

    fn running(&self) -> Vec<Index> {
        self.hosts.iter().filter(|host| host.live.is_some()).map(|host| host.index).collect()
    }

    fn broadcasts(&mut self) -> Result<Vec<usize>, String> {
        let mut ids = Vec::new();
        for index in self.running() {
            let size = self.traffic.size();
            let host = &mut self.hosts[usize::from(index)];
            ids.extend(self.traffic.one(host, None, size, &mut self.env));
            self.run_until(self.env.now + 2 * MS)?;
        }
        Ok(ids)
    }

    fn partners(&mut self) -> Vec<Partner> {
        let running = self.running();
        let mut partners = Vec::new();
        for &from in &running {
            for _ in 0..PARTNERS.min(running.len() - 1) {
                let to = running[self.env.dice.index(running.len())];
                let mac = self.hosts[usize::from(to)].macs.first();
                let size = self.traffic.size();
                partners.extend(mac.filter(|_| to != from).map(|mac| (from, to, *mac, size)));
            }
        }
        partners
    }

    fn unicasts(&mut self, partners: &[Partner]) -> Result<Vec<usize>, String> {
        let mut ids = Vec::new();
        for &(from, to, mac, size) in partners {
            let host = &mut self.hosts[usize::from(from)];
            ids.extend(self.traffic.one(host, Some((to, mac)), size, &mut self.env));
            self.run_until(self.env.now + MS)?;
        }
        Ok(ids)
    }

    /// What has not arrived, or not by a straight way.
    fn all_arrived(&self, broadcasts: &[usize], unicasts: &[usize]) -> Result<(), String> {
        let running = self.running();
        for &id in broadcasts.iter().chain(unicasts) {
            let frame = self.env.ledger.frame(id);
            let name = format!("frame {id} of p{:02}, sent at {} ms", frame.from, frame.at / MS);
            if frame.circled() {
                return Err(format!("{name}, crossed one peer {} times", frame.crossings()));
            }
            let missed = running.iter().find(|host| {
                let wanted = frame.to.map_or(**host != frame.from, |to| to == **host);
                wanted && !frame.reached(**host)
            });
            if let Some(host) = missed {
                let kind = if frame.to.is_some() { "unicast" } else { "broadcast" };
                return Err(format!("{name}, a {kind}, did not reach p{host:02}"));
            }
        }
        Ok(())
    }

    /// Every allocator gives an address, to containers that ask one after the other.
    fn addresses_flow(&mut self) -> Result<(), String> {
        // Whoever asked during the faults is answered by now, or has been told to ask again.
        self.run_until(self.env.now + 10 * SECOND)?;
        for index in self.running() {
            let who = super::host::holder(index, usize::MAX);
            ask(&mut self.hosts[usize::from(index)], who, 0, &mut self.env);
            self.run_until(self.env.now + 10 * MS)?;
        }
        self.run_until(self.env.now + 10 * SECOND)?;
        match self.env.book.open().next() {
            Some(who) => Err(format!("{who:?} waits for an address since more than 10 s")),
            None => Ok(()),
        }
    }

    /// Nothing happens: so nothing changes, and there is little to hear.
    fn silence(&mut self, measured: &mut Measured) -> Result<(), String> {
        if self.options.idle {
            self.run_until(self.env.now + UNWIND)?;
            self.quicken();
        }
        let quiet = if self.options.idle { QUIET } else { SECOND };
        let before = self.env.net.carried;
        self.run_until(self.env.now + quiet)?;
        let after = self.env.net.carried;
        let edges =
            self.agreement(NEWS)?.map_err(|why| format!("agreement was lost again without any fault: {why}"))?;
        if !self.options.idle {
            return Ok(());
        }
        let seconds = QUIET / SECOND;
        let all = (after.bytes - before.bytes) / seconds;
        let vain = (after.blocked_bytes - before.blocked_bytes) / seconds;
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX).max(1);
        measured.idle_per_peer = all / count(edges.len());
        measured.idle_dials = vain / count(edges.len());
        measured.idle_per_link = (all - vain) / count(edges.values().map(Vec::len).sum());
        let bounds = [
            (measured.idle_per_link, IDLE_PER_LINK, "for each of its links"),
            (measured.idle_dials, IDLE_DIALS, "to addresses that never answer"),
        ];
        for (bytes, bound, what) in bounds {
            if bytes > bound {
                return Err(format!("an idle peer sends {bytes} bytes/s {what}, more than {bound}"));
            }
        }
        Ok(())
    }
}
