//! Records in and out: publish ours, push what is news, compare with neighbours.

use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use rand_core::RngCore as _;

use super::super::backoff::jitter;
use super::super::gossip::Offered;
use super::super::handshake::Role;
use super::super::limits::{
    COMPARE_EVERY, FORGET_AFTER, OBSERVED_MAX, OWN_ENDPOINTS_MAX, PUBLISH_BURST, PUBLISH_BURST_PEERS, PUBLISH_EVERY,
    RAISE_EVERY, RECORDS_BYTES, REPAIR_AFTER,
};
use super::super::record::{SignedRecord, Unchecked};
use super::super::timers::Timer;
use super::super::{ConnId, Event, Identity, Output};
use super::routes::routes_every;
use super::{Node, PeerState};
use crate::address::canonical;
use crate::data::Hop;
use crate::id::{Incarnation, PeerId};
use crate::wire::cbor::Endpoint;
use crate::wire::control::Message;
use crate::wire::gossip::{LINKS_MAX, LinkEntry, RecordBody, Records, Versions, Want};

/// The least time between two of our records in a mesh of that many peers: each goes to all.
fn publish_every(peers: usize) -> Duration {
    PUBLISH_EVERY * (100 + u32::try_from(peers).unwrap_or(u32::MAX).min(300)) / 100
}

/// How many of our records may follow each other at once in a mesh of that many peers, after a rest.
fn publish_burst(peers: usize) -> u32 {
    let burst = PUBLISH_BURST * PUBLISH_BURST_PEERS / peers.max(PUBLISH_BURST_PEERS);
    u32::try_from(burst).unwrap_or(u32::MAX).max(1)
}

impl<I: Identity> Node<I> {
    // ---- ours -------------------------------------------------------------------------------

    /// Publishes our record if it changed: a few changes at once, then one in each
    /// [`PUBLISH_EVERY`] (gossip G3).
    pub(super) fn publish_if_stale(&mut self) {
        if !self.stale.record {
            return;
        }
        let (every, burst) = (publish_every(self.store.len()), publish_burst(self.store.len()));
        let due = self.publish_paid.saturating_sub(every * (burst - 1));
        if self.now < due {
            self.timers.set(Timer::Publish, due);
            return;
        }
        self.stale.record = false;
        let body = self.own_body(self.seq + 1);
        let known = self.store.get(&self.me);
        let unchanged = known.is_some_and(|known| RecordBody { seq: known.version.seq, ..body.clone() } == known.body);
        if unchanged {
            return;
        }
        self.seq += 1;
        self.publish_paid = self.publish_paid.max(self.now) + every;
        let record = SignedRecord::sign(body, &self.identity);
        self.push.insert(self.me, Vec::new());
        // What waits goes with it.
        self.pushed_at = None;
        self.store.offer(record, true, self.now);
        self.stale.routes = true;
    }

    fn own_body(&self, seq: u64) -> RecordBody {
        let links =
            self.peers.iter().filter_map(|(id, peer)| Some(LinkEntry { peer: *id, rtt_us: peer.up?.published_us }));
        RecordBody {
            sign_key: self.identity.sign_key(),
            box_key: self.identity.box_key(),
            instance: self.config.instance,
            incarnation: self.incarnation.0,
            seq,
            name: self.config.name.clone(),
            endpoints: self.own_endpoints(),
            links: links.take(LINKS_MAX).collect(),
            run: self.run,
            admissions: self.trust.own(self.wall()),
        }
    }

    /// Where we can be dialled: as we know it, and as others see us where that is new to us
    /// and either two of them agree or nobody disagrees.
    fn own_endpoints(&self) -> Vec<Endpoint> {
        let mut list = self.config.endpoints.clone();
        list.truncate(OWN_ENDPOINTS_MAX - OBSERVED_MAX);
        let mut seen: BTreeMap<_, usize> = BTreeMap::new();
        for address in self.observed.values().filter(|address| !list.contains(address)) {
            *seen.entry(*address).or_default() += 1;
        }
        let alone = seen.len() == 1;
        let believed = seen.into_iter().filter(|(_, votes)| alone || *votes > 1);
        list.extend(believed.map(|(address, _)| address).take(OBSERVED_MAX));
        list.into_iter().map(Endpoint).collect()
    }

    /// A proven peer told where it sees us.
    pub(super) fn note_observed(&mut self, peer: PeerId, at: Option<core::net::SocketAddr>) {
        let Some(at) = at.map(canonical) else { return };
        if at.ip().is_unspecified() || at.port() == 0 {
            return;
        }
        if self.observed.len() < 64 || self.observed.contains_key(&peer) {
            let old = self.observed.insert(peer, at);
            self.stale.record |= old != Some(at);
        }
    }

    /// Looks at a copy of our own record that came from elsewhere. If it is of a later life than
    /// ours, or of another run in the same, the data directory is an old copy or there are two of
    /// us: our incarnation goes above it (gossip G4).
    pub(super) fn meet_own_record(&mut self, bytes: &[u8]) {
        let Ok(read) = Unchecked::read(bytes) else { return };
        let (id, version) = (read.id(), read.version());
        let ours = version.incarnation == self.incarnation && read.body().run == self.run;
        if id != self.me || version.incarnation < self.incarnation || ours {
            return;
        }
        if read.check(&self.identity).is_ok() {
            self.raise_to = Some(Incarnation(version.incarnation.0.saturating_add(1)));
            self.raise_if_due();
        }
    }

    /// Takes a higher incarnation, unless the last raise was just now.
    pub(super) fn raise_if_due(&mut self) {
        let due = self.raised_at.map_or(self.now, |at| at + RAISE_EVERY);
        if self.now < due {
            self.timers.set(Timer::Raise, due);
            return;
        }
        let Some(to) = self.raise_to.take().filter(|to| *to > self.incarnation) else { return };
        self.raised_at = Some(self.now);
        self.incarnation = to;
        self.seq = 0;
        self.app_seq = 0;
        self.publish_paid = Duration::ZERO;
        self.stale.record = true;
        self.stale.tables = true;
        self.emit(Event::IncarnationRaised { to });
        // The other ends hold keys of the life that is over.
        self.close_all(&format!("peer `{}` goes on as incarnation {}", self.config.name, to.0));
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            self.connector.heard(id, true, self.now);
        }
    }

    // ---- push -------------------------------------------------------------------------------

    /// Sends what is news to the neighbours that may not have it yet: not to those that sent it
    /// to us, nor to those that are linked with the first of them, for they got it from there.
    /// (Only the first: two that hear it from each other would else both leave it to the other.)
    /// The first news goes out at once, more of it together a moment later (gossip G5).
    pub(super) fn push_records(&mut self) {
        if self.push.is_empty() {
            return;
        }
        let due = self.pushed_at.map_or(self.now, |at| at + routes_every(self.store.len()) / 2);
        if self.now < due {
            self.timers.set_if_none(Timer::Push, due);
            return;
        }
        self.timers.clear(Timer::Push);
        self.pushed_at = Some(self.now);
        let push = core::mem::take(&mut self.push);
        for (neighbour, conn) in self.neighbours() {
            let graph = self.topology.graph();
            let has = |from: &Vec<PeerId>| {
                from.contains(&neighbour) || from.first().is_some_and(|first| graph.linked(first, &neighbour))
            };
            // An origin is told of its own record only if it has lived that life twice.
            let wants = |id: &PeerId| *id != neighbour || self.clashes.contains_key(id);
            let news = push.iter().filter(|(id, from)| wants(id) && !has(from));
            let ids: Vec<PeerId> = news.map(|(id, _)| *id).collect();
            self.send_records(conn, &ids);
        }
    }

    fn send_records(&mut self, conn: ConnId, ids: &[PeerId]) {
        let held = ids.iter().flat_map(|id| self.store.get(id).into_iter().chain(self.clashes.get(id)));
        let records: Vec<Arc<[u8]>> = held.map(|record| Arc::clone(&record.bytes)).collect();
        let (mut batch, mut size) = (Vec::new(), 0);
        for bytes in records {
            if size + bytes.len() > RECORDS_BYTES && !batch.is_empty() {
                self.send(conn, &Message::Records(Records { records: core::mem::take(&mut batch) }));
                size = 0;
            }
            size += bytes.len();
            batch.push(bytes.to_vec().into());
        }
        if !batch.is_empty() {
            self.send(conn, &Message::Records(Records { records: batch }));
        }
    }

    // ---- compare ----------------------------------------------------------------------------

    /// First words on a new connection: who we are; and the dialler begins to compare. Also
    /// between peers of one mesh: what was pushed on a connection before may be lost with it.
    pub(super) fn greet(&mut self, conn: ConnId, role: Role) {
        self.send_records(conn, &[self.me]);
        if let Some(clash) = self.live(conn).map(|live| live.peer).filter(|peer| self.clashes.contains_key(peer)) {
            self.send_records(conn, &[clash]);
        }
        self.tell_revoked(conn);
        if role == Role::Dialler {
            let digest = Message::Digest(self.store.digest());
            self.send(conn, &digest);
        }
        let every = jitter(COMPARE_EVERY, &mut self.rng);
        self.timers.set_if_none(Timer::Compare, self.now + every);
    }

    /// Something changed: compare once more when the pushes should have arrived.
    pub(super) fn compare_soon(&mut self) {
        self.timers.set_if_none(Timer::Repair, self.now + REPAIR_AFTER);
    }

    pub(super) fn compare_regularly(&mut self) {
        if self.compare_with_one() {
            let every = jitter(COMPARE_EVERY, &mut self.rng);
            self.timers.set(Timer::Compare, self.now + every);
            self.renew_admissions();
        }
    }

    /// Compares with one random neighbour; false if there is none.
    pub(super) fn compare_with_one(&mut self) -> bool {
        let neighbours = self.neighbours();
        if neighbours.is_empty() {
            return false;
        }
        let (_, conn) = neighbours[self.rng.next_u32() as usize % neighbours.len()];
        let digest = Message::Digest(self.store.digest());
        self.send(conn, &digest);
        self.tell_revoked(conn);
        true
    }

    // ---- in ---------------------------------------------------------------------------------

    pub(super) fn on_gossip(&mut self, conn: ConnId, message: Message) {
        let Some(from) = self.live(conn).map(|live| live.peer) else { return };
        // Also on a connection that was just replaced: its other end may not know yet.
        if !self.conns.get(&conn).is_some_and(|conn| matches!(conn.hop, Hop::Direct(_))) {
            return;
        }
        match message {
            Message::Records(records) => self.on_records(from, &records),
            Message::Digest(theirs) if theirs == self.store.digest() => {}
            Message::Digest(_) => {
                let buckets = Message::Buckets(self.store.buckets());
                self.send(conn, &buckets);
            }
            Message::Buckets(theirs) => {
                if let Some(versions) = self.store.versions_where_different(&theirs) {
                    self.send(conn, &Message::Versions(versions));
                }
            }
            Message::Versions(theirs) => self.on_versions(conn, &theirs),
            Message::Want(want) => self.send_records(conn, &want.peers),
            Message::Revoked(theirs) => self.on_revoked(conn, &theirs),
            Message::Revocations(theirs) => self.on_revocations(conn, from, &theirs),
            _ => {}
        }
    }

    fn on_versions(&mut self, conn: ConnId, theirs: &Versions) {
        let (send, want) = self.store.compare(theirs, self.now);
        self.send_records(conn, &send);
        if !want.is_empty() {
            self.send(conn, &Message::Want(Want { peers: want }));
        }
    }

    fn on_records(&mut self, from: PeerId, records: &Records) {
        let mut waiting: Vec<&[u8]> = records.records.iter().map(|bytes| &bytes[..]).collect();
        // A forgotten peer counts again as soon as a reachable one vouches for it, and the record
        // that vouches may stand behind it in the list.
        loop {
            let before = waiting.len();
            waiting.retain(|bytes| self.on_record(from, bytes) == Offered::Forgotten);
            if waiting.is_empty() || waiting.len() == before {
                break;
            }
        }
    }

    fn on_record(&mut self, from: PeerId, bytes: &[u8]) -> Offered {
        if let Some(id) = self.store.holder_of(bytes) {
            // The very one that we have. If it waits to be pushed, its sender needs it no more.
            if let Some(have) = self.push.get_mut(&id).filter(|have| !have.contains(&from)) {
                have.push(from);
            }
            return Offered::Known;
        }
        let Ok(read) = Unchecked::read(bytes) else { return Offered::Known };
        let (id, version) = (read.id(), read.version());
        if id == self.me {
            self.meet_own_record(bytes);
            return Offered::Known;
        }
        if self.trust.revoked().has(&id) {
            return Offered::Known;
        }
        let clashes = |known: &SignedRecord| {
            known.version.incarnation == version.incarnation && known.body.run != read.body().run
        };
        if self.store.get(&id).is_some_and(clashes) {
            if let Ok(record) = read.check(&self.identity) {
                self.on_clash(record, from);
            }
            return Offered::Known;
        }
        let vouched = id == from || self.vouched(&id, &read);
        let outcome = self.store.weigh(&id, &version, vouched, self.now);
        if !outcome.is_news() {
            return outcome;
        }
        // The signature is checked only now: what is known costs nothing.
        let Ok(record) = read.check(&self.identity) else { return Offered::Known };
        self.accept(record, from, vouched);
        outcome
    }

    /// A record of an incarnation that we know from another run: its origin lives that life twice,
    /// and what it numbers is taken for repetition by all who remember the first time. Both records
    /// go around, once, until the origin hears of it and takes the next incarnation (gossip G4).
    fn on_clash(&mut self, record: SignedRecord, from: PeerId) {
        let Some(known) = self.store.get(&record.id) else { return };
        let (id, newer) = (record.id, record.version > known.version);
        let older = if newer { known.clone() } else { record.clone() };
        let first = self.clashes.get(&id).is_none_or(|old| old.version.incarnation < older.version.incarnation);
        if first {
            self.clashes.insert(id, older);
        }
        if newer {
            self.accept(record, from, true);
        }
        if first {
            // Also to where it came from: there they may know one of the two only.
            self.push.insert(id, Vec::new());
        }
    }

    /// Whether a peer that we reach has a link with the origin of that record, both ways.
    fn vouched(&self, id: &PeerId, read: &Unchecked<'_>) -> bool {
        read.body().links.iter().any(|link| {
            link.peer == self.me && self.peers.get(id).is_some_and(|peer| peer.up.is_some())
                || self.store.get(&link.peer).is_some_and(|other| other.link_to(id).is_some())
        })
    }

    fn accept(&mut self, record: SignedRecord, from: PeerId, vouched: bool) {
        let (id, incarnation) = (record.id, record.version.incarnation);
        self.learn_admissions(&record);
        let old = self.store.get(&id).cloned();
        let (name, instance) = (record.body.name.clone(), record.body.instance);
        let new_life = old.as_ref().is_none_or(|old| old.version.incarnation < incarnation);
        let moved = new_life || old.as_ref().is_none_or(|old| old.body.endpoints != record.body.endpoints);
        if old.as_ref().is_none_or(|old| old.body.links != record.body.links) {
            self.relinked.insert(id);
            self.stale.routes = true;
        }
        if self.store.offer(record, vouched, self.now).is_news() {
            self.push.insert(id, vec![from]);
            self.look_at_other_end(id);
            if old.is_none() || new_life {
                self.clashes.remove(&id);
                self.stale.tables = true;
                self.emit(Event::PeerAppeared { peer: id, name: name.clone(), incarnation });
            }
            let peer = self.peer_mut(id);
            (peer.name, peer.instance) = (name, instance);
            let known = peer.incarnation;
            if incarnation > known {
                self.reset_peer(id, incarnation);
            }
            self.connector.heard(id, moved, self.now);
            self.stale.dials |= moved;
            if moved {
                self.touched.insert(id);
            }
        }
    }

    // ---- forget -----------------------------------------------------------------------------

    /// A peer has been unreachable for long enough.
    pub(super) fn forget_peer(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else { return };
        if peer.reachable || peer.direct.is_some() || peer.relayed.is_some() {
            self.timers.set(Timer::Forget(id), self.now + FORGET_AFTER);
            return;
        }
        let name = peer.name.clone();
        self.drop_peer(id);
        self.emit(Event::PeerForgotten { peer: id, name });
    }

    /// Drops all that is known of a peer.
    pub(super) fn drop_peer(&mut self, id: PeerId) {
        self.peers.remove(&id);
        for timer in [Timer::Forget(id), Timer::Path(id), Timer::Rtt(id), Timer::OneSided(id), Timer::Rekey(id)] {
            self.timers.clear(timer);
        }
        self.store.forget(&id, self.now);
        self.clashes.remove(&id);
        self.connector.drop_peer(&id);
        self.windows.remove(&id);
        self.observed.remove(&id);
        self.stale.routes = true;
        self.stale.tables = true;
    }

    /// Marks a peer as reachable or not, and starts or stops its way to oblivion.
    pub(super) fn set_reachable(&mut self, id: PeerId, reachable: bool) {
        let due = self.now + FORGET_AFTER;
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.reachable != reachable) else { return };
        peer.reachable = reachable;
        let name = peer.name.clone();
        if reachable {
            self.timers.clear(Timer::Forget(id));
            self.emit(Event::PeerReachable { peer: id, name });
        } else {
            self.timers.set(Timer::Forget(id), due);
            self.emit(Event::PeerUnreachable { peer: id, name });
            self.connector.parted(id, self.now);
        }
        self.touched.insert(id);
        self.stale.dials = true;
    }

    /// For `status`.
    pub(super) fn own_info(&self) -> super::PeerInfo {
        super::PeerInfo {
            id: self.me,
            name: self.config.name.clone(),
            instance: self.config.instance,
            incarnation: self.incarnation,
            state: PeerState::Me,
            direct: None,
            via: None,
            since: Duration::ZERO,
            reason: "this peer".to_owned(),
            links: self.peers.iter().filter(|(_, peer)| peer.up.is_some()).map(|(id, _)| *id).collect(),
        }
    }
}

impl<I> Node<I> {
    /// Queues raw bytes that were encoded once for many.
    pub(super) fn send_bytes(&mut self, conn: ConnId, bytes: Vec<u8>) {
        self.out.push_back(Output::Send { conn, bytes });
    }
}
