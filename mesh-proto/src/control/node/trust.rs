//! Admissions and revocations: their place in the node.

use core::time::Duration;

use super::super::handshake::{Proven, Refusal, Role};
use super::super::limits::ADMISSION_LIFE;
use super::super::record::SignedRecord;
use super::super::{ConnId, Event, Identity, Output, admission};
use super::link::Phase;
use super::{Node, PeerInfo, PeerState, RevokeError};
use crate::data::Hop;
use crate::handover::Command;
use crate::id::{Incarnation, PeerId};
use crate::wire::control::{Message, RefuseCode};
use crate::wire::trust::{Admission, Admit, Edge, Revocation, Revocations, Revoked};

impl<I: Identity> Node<I> {
    /// The wall clock, in seconds since 1970.
    pub(super) fn wall(&self) -> u64 {
        self.config.trust.wall.saturating_add(self.now.as_secs())
    }

    /// Hands out what the data directory shall keep.
    pub(super) fn keep_trust(&mut self) {
        for kept in self.trust.take_kept() {
            self.out.push_back(Output::Keep { key: kept.key, value: kept.value });
        }
    }

    /// Whether a TLS key needs no proof of the secret.
    pub(super) fn holds_admitted(&mut self, sign_key: &[u8; 32]) -> bool {
        let wall = self.wall();
        self.config.secret.is_some() && self.trust.knows(sign_key, wall)
    }

    /// Why a peer is not to be trusted, though it may prove its keys; `on_word` says that nothing
    /// but admissions speaks for it.
    pub(super) fn distrust(&mut self, peer: &PeerId, name: &str, on_word: bool) -> Option<Refusal> {
        if let Some(revocation) = self.trust.revoked().get(peer) {
            let by = self.name_of(&revocation.signer());
            let here = format!("peer `{name}` was revoked by {by}");
            let there = format!(
                "this peer was revoked by {by}: with an empty data directory and the network's present secret it joins as a new one"
            );
            return Some(Refusal { code: RefuseCode::Revoked, here, there });
        }
        let wall = self.wall();
        if on_word && self.config.secret.is_some() && !self.trust.is_member(peer, wall) {
            let line = format!("peer `{name}` is no longer admitted with these keys: dial again to prove the secret");
            return Some(Refusal::both(RefuseCode::Other, line));
        }
        None
    }

    // ---- admissions ---------------------------------------------------------------------------

    /// Admits who has proven the secret to us, and anew whom we have admitted long ago (control
    /// C26).
    pub(super) fn admit_by_word(&mut self, conn: ConnId, proven: &Proven) {
        let first = proven.by_secret && proven.role == Role::Acceptor;
        if first || self.trust.renewal_due(&proven.peer, self.wall()) {
            self.send_admission(conn, proven.peer, proven.instance);
        }
    }

    fn send_admission(&mut self, conn: ConnId, peer: PeerId, instance: u64) {
        let not_after = self.wall().saturating_add(ADMISSION_LIFE.as_secs());
        let text = admission::admission_text(&self.config.network, &peer, instance, &self.me, not_after);
        let signature = self.identity.sign(&text);
        self.send(conn, &Message::Admit(Admit { not_after, signature }));
    }

    /// Signs anew what is about to end, for the peers that are linked.
    pub(super) fn renew_admissions(&mut self) {
        let wall = self.wall();
        for (peer, conn) in self.neighbours() {
            if self.trust.renewal_due(&peer, wall) {
                let instance = self.peers.get(&peer).map_or(0, |peer| peer.instance);
                self.send_admission(conn, peer, instance);
            }
        }
    }

    /// A sponsor admits us.
    pub(super) fn on_admit(&mut self, conn: ConnId, admit: &Admit) {
        let Some(live) = self.live(conn) else { return };
        let dialled = self.conns.get(&conn).is_some_and(|conn| conn.role == Role::Dialler);
        let may = live.by_secret && dialled || self.trust.is_sponsor(&live.peer);
        if !may {
            return;
        }
        let [sign_key, box_key] = live.keys;
        let edge = Edge {
            network: self.config.network.clone(),
            sign_key: self.identity.sign_key(),
            box_key: self.identity.box_key(),
            instance: self.config.instance,
            admission: Admission { sign_key, box_key, not_after: admit.not_after, signature: admit.signature },
        };
        let wall = self.wall();
        if self.trust.admitted(edge, &self.identity, wall) {
            // At once: others wait for it to link with us.
            self.publish_paid = Duration::ZERO;
            self.stale.record = true;
            self.learn_from_all();
        }
    }

    /// Learns from a record that was just taken in. What it adds may be what others hang on.
    pub(super) fn learn_admissions(&mut self, record: &SignedRecord) {
        let wall = self.wall();
        if self.config.secret.is_some() && self.trust.learn(record, &self.identity, wall) {
            self.learn_from_all();
        }
    }

    fn learn_from_all(&mut self) {
        let wall = self.wall();
        let mut news = true;
        while core::mem::take(&mut news) && self.trust.take_loose() {
            for record in self.store.iter() {
                news |= self.trust.learn(record, &self.identity, wall);
            }
        }
    }

    // ---- revocations --------------------------------------------------------------------------

    pub(super) fn on_revoke(&mut self, peer: PeerId) -> Result<(), RevokeError> {
        let revoked = self.trust.revoked();
        match () {
            () if self.config.secret.is_none() => return Err(RevokeError::NoSecret),
            () if peer == self.me => return Err(RevokeError::Myself),
            () if revoked.has(&peer) => return Err(RevokeError::Already),
            () if !revoked.has_room() => return Err(RevokeError::Full),
            () => {}
        }
        let name = self.peers.get(&peer).map_or("", |peer| &peer.name);
        let revocation = Revocation::sign(&self.config.network, peer, name, self.wall(), &self.identity);
        self.take_revocations(&[revocation], None);
        Ok(())
    }

    /// Says whom we hold revoked, if there is anybody.
    pub(super) fn tell_revoked(&mut self, conn: ConnId) {
        if let Some(hash) = self.trust.revoked().hash() {
            self.send(conn, &Message::Revoked(Revoked { hash }));
        }
    }

    pub(super) fn on_revoked(&mut self, conn: ConnId, theirs: &Revoked) {
        let revoked = self.trust.revoked();
        if revoked.hash() != Some(theirs.hash) {
            let list = revoked.iter().cloned().collect();
            self.send(conn, &Message::Revocations(Revocations { list, ask: true }));
        }
    }

    pub(super) fn on_revocations(&mut self, conn: ConnId, from: PeerId, theirs: &Revocations) {
        if self.config.secret.is_none() {
            return;
        }
        if theirs.ask {
            let has = |peer: &PeerId| theirs.list.iter().any(|revocation| revocation.peer == *peer);
            let lacks = self.trust.revoked().iter().filter(|revocation| !has(&revocation.peer));
            let list: Vec<_> = lacks.cloned().collect();
            if !list.is_empty() {
                self.send(conn, &Message::Revocations(Revocations { list, ask: false }));
            }
        }
        self.take_revocations(&theirs.list, Some(from));
    }

    /// Takes what is news, passes it on, and acts on it.
    fn take_revocations(&mut self, list: &[Revocation], from: Option<PeerId>) {
        let wall = self.wall();
        let take = |revocation: &&Revocation| self.trust.revoke((*revocation).clone(), &self.identity, wall);
        let news: Vec<Revocation> = list.iter().filter(take).cloned().collect();
        if news.is_empty() {
            return;
        }
        let message = Message::Revocations(Revocations { list: news.clone(), ask: false }).encode();
        for (neighbour, conn) in self.neighbours() {
            if Some(neighbour) != from {
                self.send_bytes(conn, message.clone());
            }
        }
        for Revocation { peer, name, .. } in &news {
            if *peer != self.me {
                self.shut_out(*peer);
                self.drop_peer(*peer);
            }
            let by = self.trust.revoked().get(peer).map_or(self.me, Revocation::signer);
            self.emit(Event::Revoked { peer: *peer, name: name.clone(), by });
        }
        self.doubt_all();
        self.stale.record = true;
        self.stale.routes = true;
        self.stale.tables = true;
        self.stale.dials = true;
    }

    /// Whoever hung on who is revoked now must prove the secret again (control C30). Who has done
    /// so on a connection that stands need not.
    fn doubt_all(&mut self) {
        let wall = self.wall();
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            let by_secret = self.live_conns(&id).iter().any(|(_, _, by_secret)| *by_secret);
            if !by_secret && !self.trust.is_member(&id, wall) {
                self.shut_out(id);
            }
        }
    }

    /// Ends every connection and session with a peer, with a line for both operators.
    fn shut_out(&mut self, id: PeerId) {
        let name = self.peers.get(&id).map_or_else(|| id.short(), |peer| peer.name.clone());
        let Some(refusal) = self.distrust(&id, &name, true) else { return };
        self.emit(Event::ShutOut { peer: id });
        for (conn, hop, _) in self.live_conns(&id) {
            self.drop_conn(conn, &refusal.here);
            self.part(conn, hop, &refusal, None);
        }
        let keyed = self.peers.get_mut(&id).is_some_and(|peer| core::mem::take(&mut peer.keyed));
        if keyed {
            self.out.push_back(Output::Data(Command::Remove(id)));
            self.touched.insert(id);
        }
    }

    /// The proven connections with a peer, and whether it has proven the secret on each.
    fn live_conns(&self, id: &PeerId) -> Vec<(ConnId, Hop, bool)> {
        let live = self.conns.iter().filter_map(|(conn, state)| match &state.phase {
            Phase::Live(live) if live.peer == *id => Some((*conn, state.hop, live.by_secret)),
            _ => None,
        });
        live.collect()
    }

    fn name_of(&self, id: &PeerId) -> String {
        let name = if *id == self.me { Some(&self.config.name) } else { self.peers.get(id).map(|peer| &peer.name) };
        match name.filter(|name| !name.is_empty()) {
            Some(name) => format!("`{name}` ({})", id.short()),
            None => id.short(),
        }
    }

    /// The revoked peers, for `status`.
    pub(super) fn revoked_infos(&self) -> impl Iterator<Item = PeerInfo> {
        let others = self.trust.revoked().iter().filter(|revocation| revocation.peer != self.me);
        others.map(|revocation| PeerInfo {
            id: revocation.peer,
            name: revocation.name.clone(),
            instance: 0,
            incarnation: Incarnation(0),
            state: PeerState::Removed,
            direct: None,
            via: None,
            since: Duration::from_secs(revocation.at.saturating_sub(self.config.trust.wall)),
            reason: format!("revoked by {}", self.name_of(&revocation.signer())),
            links: Vec::new(),
        })
    }
}
