//! The names of the mesh: what this peer tells of its own, and what it knows of the others'.
//!
//! ```text
//!  own names, messages, who can be reached ─► Names ─┬─► Send, Broadcast
//!                                                    └─► lookup, reverse, list
//! ```
//!
//! Only a peer itself tells its names: each message of entries comes from their origin, which the
//! control protocol proves (control C25). Others at most tell that there is something newer, and
//! then the origin is asked (names N4).

mod claims;
mod directory;

use core::net::IpAddr;
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

pub use self::claims::NAMES_MAX;
use self::claims::{Change, Claims, half};
use self::directory::Directory;
use super::crypto;
use super::limits::PEERS_MAX;
use crate::id::{Incarnation, PeerId};
use crate::wire::names::{Digest, Entries, HASH_LEN, Message, Name, ROWS_MAX, Row, Table, Want, row_of};
use crate::wire::services::{NameRecords, Service};

/// How often what is known is compared with one other peer's; less a random part of a quarter.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
/// How long what is missing may still come by itself: floods overtake each other.
const PATIENCE: Duration = Duration::from_millis(100);
/// When a peer that was asked is asked again, at first; twice as long each further time.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The same, at most.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(30);

/// What is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A message to a peer.
    Send(PeerId, Vec<u8>),
    /// A message to all.
    Broadcast(Vec<u8>),
}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Its addresses, each once, at least one.
    Addresses(Vec<IpAddr>),
    /// Nothing, but there are names below it.
    Above,
    /// Nothing.
    Nothing,
}

/// A name of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: Name,
    /// Its addresses there, and what they serve.
    pub records: NameRecords,
    /// Whose it is.
    pub peer: PeerId,
    /// Whether it is given as an answer: that peer can be reached, and has said so since.
    pub served: bool,
}

/// When an origin is asked, again.
#[derive(Debug, Clone, Copy)]
struct Ask {
    at: Duration,
    /// How often it was already.
    times: u32,
}

/// What is known of the names of one other peer.
#[derive(Debug)]
struct Origin {
    incarnation: Incarnation,
    claims: Claims,
    /// The latest that it said of all its names: version and hash.
    told: (u64, [u8; HASH_LEN]),
    /// Up to here its names are known without a gap.
    synced: u64,
    /// It was heard of since it can be reached, and its names were known without a gap then.
    confirmed: bool,
    ask: Option<Ask>,
}

impl Origin {
    fn new(incarnation: Incarnation) -> Self {
        let claims = Claims::default();
        let told = (0, claims.sum());
        Self { incarnation, claims, told, synced: 0, confirmed: false, ask: None }
    }
}

/// The names of the mesh, as one peer knows them.
#[derive(Debug)]
pub struct Names {
    me: PeerId,
    incarnation: Incarnation,
    rng: ChaCha20Rng,
    own: Claims,
    /// The version of our own names that was told last.
    told: u64,
    origins: BTreeMap<PeerId, Origin>,
    reachable: BTreeMap<PeerId, Incarnation>,
    directory: Directory,
    compare_at: Duration,
    out: VecDeque<Output>,
}

impl Names {
    /// One that knows no name. `seed` decides with whom it compares.
    #[must_use]
    pub fn new(me: PeerId, incarnation: Incarnation, seed: [u8; 32], now: Duration) -> Self {
        Self {
            me,
            incarnation,
            rng: ChaCha20Rng::from_seed(seed),
            own: Claims::default(),
            told: 0,
            origins: BTreeMap::new(),
            reachable: BTreeMap::new(),
            directory: Directory::default(),
            compare_at: now + COMPARE_EVERY,
            out: VecDeque::new(),
        }
    }

    /// These are the names of this peer from now on; [`NAMES_MAX`] of them are taken.
    pub fn set_own(&mut self, names: &BTreeMap<Name, NameRecords>) {
        let changes = self.own.change_to(names);
        self.note(self.me, changes);
        if self.own.version() > self.told {
            let row = self.row_beyond(self.told);
            self.told = self.own.version();
            // Who comes later asks.
            if !self.reachable.is_empty() {
                self.out.extend(row.iter().map(|message| Output::Broadcast(message.encode())));
            }
        }
    }

    /// This peer lives a later life than it thought. The others ask for its names when they hear of
    /// that life.
    pub fn raise_incarnation(&mut self, to: Incarnation) {
        self.incarnation = self.incarnation.max(to);
    }

    /// Who can be reached from now on, and in which life.
    pub fn handle_peers(&mut self, reachable: &[(PeerId, Incarnation)], now: Duration) {
        let (me, before) = (self.me, core::mem::take(&mut self.reachable));
        for &(peer, incarnation) in reachable.iter().filter(|(peer, _)| *peer != me) {
            self.reachable.insert(peer, incarnation);
            if before.get(&peer) == Some(&incarnation) || !self.has_room(peer) {
                continue;
            }
            let known = self.origins.get(&peer).map(|origin| origin.incarnation);
            if known.is_none_or(|known| known < incarnation) {
                self.begin_life(peer, incarnation);
            }
            if let Some(origin) = self.origins.get_mut(&peer) {
                // It may have changed its names while we did not hear it.
                origin.confirmed = false;
                origin.ask = Some(Ask { at: now, times: 0 });
            }
        }
        self.ask_those_due(now);
    }

    /// A peer is known no more, or shut out. Should it still be reached, or be let in again, it is
    /// asked anew.
    pub fn forget(&mut self, peer: PeerId, now: Duration) {
        self.drop_names(peer);
        if let Some(life) = self.reachable.get(&peer) {
            let ask = Some(Ask { at: now + ASK_AGAIN, times: 0 });
            self.origins.insert(peer, Origin { ask, ..Origin::new(*life) });
        }
    }

    /// A message came in.
    pub fn handle_message(&mut self, from: PeerId, incarnation: Incarnation, bytes: &[u8], now: Duration) {
        // What is malformed says nothing.
        let Ok(Some(message)) = Message::decode(bytes) else { return };
        if from == self.me {
            return;
        }
        match message {
            Message::Entries(entries) => self.on_entries(from, incarnation, entries, now),
            Message::Want(want) => self.on_want(from, &want),
            Message::Digest(digest) => {
                if digest.root != self.root() {
                    self.send_table(from, true, &self.rows());
                }
            }
            Message::Table(table) => self.on_table(from, &table, now),
        }
    }

    /// A time that [`Self::poll_timeout`] named has come.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.ask_those_due(now);
        if self.compare_at <= now {
            let quarter = COMPARE_EVERY.as_millis() as u64 / 4;
            self.compare_at = now + COMPARE_EVERY - Duration::from_millis(self.rng.next_u64() % quarter);
            self.compare();
        }
    }

    /// When, and why, [`Self::handle_timeout`] is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Duration, &'static str)> {
        let asks = self.origins.iter().filter(|(peer, _)| self.reachable.contains_key(*peer));
        let ask = asks.filter_map(|(_, origin)| origin.ask).map(|ask| ask.at).min();
        let compare = (!self.reachable.is_empty()).then_some(self.compare_at);
        [(ask, "a peer is asked for its names"), (compare, "names compared")]
            .into_iter()
            .filter_map(|(at, why)| Some((at?, why)))
            .min()
    }

    /// What to send next; drain until `None` after every input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// The addresses of a name at peers that can be reached.
    #[must_use]
    pub fn lookup(&self, name: &Name) -> Found {
        let said = self.served(name);
        let mut addresses: Vec<IpAddr> = said.flat_map(|records| records.addresses.list()).copied().collect();
        if !addresses.is_empty() {
            addresses.sort_unstable();
            addresses.dedup();
            return Found::Addresses(addresses);
        }
        let below = self.directory.owners_below(name).any(|owner| self.is_served(&owner));
        if below { Found::Above } else { Found::Nothing }
    }

    /// What the addresses of a name serve at peers that can be reached: each service and address once.
    #[must_use]
    pub fn services(&self, name: &Name) -> Vec<(Service, IpAddr)> {
        let mut services: Vec<(Service, IpAddr)> = self
            .served(name)
            .flat_map(NameRecords::services)
            .map(|(service, address)| (service.clone(), address))
            .collect();
        services.sort_unstable();
        services.dedup();
        services
    }

    /// The names of an address at peers that can be reached.
    #[must_use]
    pub fn reverse(&self, address: IpAddr) -> Vec<Name> {
        let known = self.directory.of_address(address).filter(|(owner, _)| self.is_served(owner));
        let mut names: Vec<Name> = known.map(|(_, name)| name.clone()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Every name of every peer that is known.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let others = self.origins.iter().map(|(peer, origin)| (*peer, &origin.claims));
        let all = core::iter::once((self.me, &self.own)).chain(others);
        let mut list: Vec<Listed> = all
            .flat_map(|(peer, claims)| {
                let served = self.is_served(&peer);
                let listed = move |(name, records): (&Name, &NameRecords)| Listed {
                    name: name.clone(),
                    records: records.clone(),
                    peer,
                    served,
                };
                claims.live().map(listed)
            })
            .collect();
        list.sort_unstable_by(|a, b| (&a.name, a.peer).cmp(&(&b.name, b.peer)));
        list
    }

    /// What is said of a name by those that can be reached.
    fn served<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = &'a NameRecords> {
        let owners = self.directory.owners(name).filter(move |owner| self.is_served(owner));
        owners.filter_map(move |owner| self.claims(&owner)?.records(name))
    }

    fn claims(&self, peer: &PeerId) -> Option<&Claims> {
        if *peer == self.me { Some(&self.own) } else { self.origins.get(peer).map(|origin| &origin.claims) }
    }

    fn is_served(&self, peer: &PeerId) -> bool {
        let heard = |origin: &Origin| origin.confirmed && self.reachable.get(peer) == Some(&origin.incarnation);
        *peer == self.me || self.origins.get(peer).is_some_and(heard)
    }

    fn has_room(&self, peer: PeerId) -> bool {
        self.origins.contains_key(&peer) || self.origins.len() < PEERS_MAX
    }

    fn note(&mut self, peer: PeerId, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.directory.apply(peer, change);
        }
    }

    fn drop_names(&mut self, peer: PeerId) {
        if let Some(mut origin) = self.origins.remove(&peer) {
            let changes = origin.claims.raise_floor(u64::MAX);
            self.note(peer, changes);
        }
    }

    /// What a peer said in an earlier life is over.
    fn begin_life(&mut self, peer: PeerId, incarnation: Incarnation) {
        self.drop_names(peer);
        self.origins.insert(peer, Origin::new(incarnation));
    }

    fn on_entries(&mut self, from: PeerId, incarnation: Incarnation, entries: Entries, now: Duration) {
        if !self.has_room(from) || self.reachable.get(&from).is_some_and(|now| *now > incarnation) {
            return;
        }
        match self.origins.get(&from).map(|origin| origin.incarnation) {
            Some(known) if known > incarnation => return,
            Some(known) if known == incarnation => {}
            _ => self.begin_life(from, incarnation),
        }
        let Some(origin) = self.origins.get_mut(&from) else { return };
        let mut changes: Vec<Change> = Vec::new();
        for entry in entries.entries {
            // Up to there nothing is missing, so that can only be an old word.
            if entry.version > origin.synced {
                changes.extend(origin.claims.take(entry));
            }
        }
        changes.extend(origin.claims.raise_floor(entries.floor));
        if entries.version >= origin.told.0 {
            origin.told = (entries.version, entries.sum);
        }
        if origin.claims.sum() == origin.told.1 {
            (origin.synced, origin.confirmed, origin.ask) = (origin.told.0, true, None);
        } else {
            // The rest of a row follows at once, and what is overtaken soon.
            let patience = if entries.more { ASK_AGAIN } else { PATIENCE };
            origin.ask.get_or_insert(Ask { at: now + patience, times: 0 });
        }
        self.note(from, changes);
    }

    fn on_want(&mut self, from: PeerId, want: &Want) {
        let same_life = want.incarnation == self.incarnation.0 && want.version <= self.own.version();
        let row = self.row_beyond(if same_life { want.version } else { 0 });
        self.out.extend(row.iter().map(|message| Output::Send(from, message.encode())));
    }

    /// Our own names beyond a version.
    fn row_beyond(&self, version: u64) -> Vec<Message> {
        row_of(self.own.version(), self.own.floor(), self.own.sum(), self.own.beyond(version))
    }

    fn ask_those_due(&mut self, now: Duration) {
        for peer in self.reachable.keys() {
            let Some(origin) = self.origins.get_mut(peer) else { continue };
            let Some(ask) = origin.ask.as_mut().filter(|ask| ask.at <= now) else { continue };
            let wait = ASK_AGAIN.saturating_mul(1 << ask.times.min(5)).min(ASK_AGAIN_MAX);
            *ask = Ask { at: now + wait, times: ask.times.saturating_add(1) };
            let want = Want { incarnation: origin.incarnation.0, version: origin.synced };
            self.out.push_back(Output::Send(*peer, Message::Want(want).encode()));
        }
    }

    /// What we know of ourselves and of all that can be reached.
    fn rows(&self) -> Vec<Row> {
        let me = (self.me, self.incarnation, &self.own);
        let others =
            self.origins.iter().filter(|(peer, origin)| self.reachable.get(*peer) == Some(&origin.incarnation));
        let others = others.map(|(peer, origin)| (*peer, origin.incarnation, &origin.claims));
        core::iter::once(me)
            .chain(others)
            .filter(|(.., claims)| claims.version() > 0)
            .map(|(peer, incarnation, claims)| Row {
                peer,
                incarnation: incarnation.0,
                version: claims.version(),
                sum: short(&claims.sum()),
            })
            .collect()
    }

    fn root(&self) -> [u8; HASH_LEN] {
        let hash = |row: &Row| {
            let numbers = [row.incarnation, row.version, row.sum].map(u64::to_be_bytes).concat();
            half(&crypto::hash(&[&row.peer.0, &numbers]))
        };
        self.rows().iter().map(hash).fold(0_u128, u128::wrapping_add).to_be_bytes()
    }

    /// Asks one other peer whether it knows the same. Who knows nothing leaves that to the others.
    fn compare(&mut self) {
        let count = self.reachable.len() as u64;
        if count == 0 || self.rows().is_empty() {
            return;
        }
        let at = (self.rng.next_u64() % count) as usize;
        if let Some(peer) = self.reachable.keys().nth(at).copied() {
            let digest = Message::Digest(Digest { root: self.root() });
            self.out.push_back(Output::Send(peer, digest.encode()));
        }
    }

    fn send_table(&mut self, to: PeerId, answer: bool, rows: &[Row]) {
        let parts = rows.chunks(ROWS_MAX).map(<[Row]>::to_vec);
        // One who knows nothing says so, to be told what there is.
        let parts: Vec<Vec<Row>> = if rows.is_empty() { vec![Vec::new()] } else { parts.collect() };
        for part in parts {
            self.out.push_back(Output::Send(to, Message::Table(Table::of(answer, &part)).encode()));
        }
    }

    fn on_table(&mut self, from: PeerId, table: &Table, now: Duration) {
        let theirs: BTreeMap<PeerId, Row> = table.list().map(|row| (row.peer, row)).collect();
        for row in theirs.values() {
            // Only what the origin could say itself is worth a question to it.
            let Some(&life) = self.reachable.get(&row.peer).filter(|life| life.0 == row.incarnation) else { continue };
            if !self.origins.contains_key(&row.peer) && self.has_room(row.peer) {
                self.begin_life(row.peer, life);
            }
            let Some(origin) = self.origins.get_mut(&row.peer) else { continue };
            let same = row.version == origin.claims.version() && row.sum == short(&origin.claims.sum());
            if same || row.version < origin.claims.version() || origin.ask.is_some() {
                continue;
            }
            if row.version == origin.synced {
                // One of the two is wrong of something that seemed to be without a gap.
                origin.synced = 0;
            }
            origin.ask = Some(Ask { at: now, times: 0 });
        }
        if table.answer {
            let newer = |row: &Row| {
                let known = theirs.get(&row.peer);
                known.is_none_or(|known| (row.incarnation, row.version) > (known.incarnation, known.version))
            };
            // A long table comes in parts: what is missing in this one may be in another.
            let whole = theirs.len() < ROWS_MAX;
            let rows: Vec<Row> =
                self.rows().into_iter().filter(|row| newer(row) && (whole || theirs.contains_key(&row.peer))).collect();
            if !rows.is_empty() {
                self.send_table(from, false, &rows);
            }
        }
        self.ask_those_due(now);
    }
}

/// The first eight bytes of a hash.
fn short(sum: &[u8; HASH_LEN]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&sum[..8]);
    u64::from_be_bytes(bytes)
}
