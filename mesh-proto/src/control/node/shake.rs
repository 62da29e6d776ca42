//! From a new connection to a proven peer: the handshake's place in the node.

use super::super::connector::describe;
use super::super::handshake::{Handshake, Offer, Proven, Refusal, Role};
use super::super::limits::{DUPLICATE_WITHIN, FIRST_ECHO, HANDSHAKE, PEERS_MAX, REFUSAL, SHAKING_MAX};
use super::super::record::SignedRecord;
use super::super::timers::Timer;
use super::super::{ConnId, Connected, Event, Identity, Output};
use super::Node;
use super::link::{Conn, Direct, Live, Phase};
use crate::address::canonical;
use crate::data::Hop;
use crate::handover::{Command, SessionKeys};
use crate::id::PeerId;
use crate::wire::control::{Confirm, Hello, Message, Refuse, RefuseCode};
use crate::wire::trust::Pake;

/// Why one of two connections is closed.
pub(super) const REPLACED: &str = "another connection between the two peers is kept";

/// Who sent a Hello, by its keys.
enum Whose {
    /// Another peer, as far as can be seen.
    Fine,
    /// This very node.
    Ours,
    /// Nobody to be linked with; perhaps with the record that tells it why.
    Wrong(Refusal, Option<Vec<u8>>),
}

impl<I: Identity> Node<I> {
    pub(super) fn on_connected(&mut self, conn: ConnId, connected: Connected) {
        let Connected { hop, dial, sign_key, exporter } = connected;
        let hop = match hop {
            Hop::Direct(address) => Hop::Direct(canonical(address)),
            relayed @ Hop::Relayed(_) => relayed,
        };
        let turn_away = |node: &mut Self, reason: &str| {
            node.out.push_back(Output::Close { conn, reason: reason.to_owned() });
        };
        if self.stopped {
            return turn_away(self, "this peer shuts down");
        }
        if self.conns.contains_key(&conn) {
            return;
        }
        match dial {
            Some(dial) if !self.connector.awaits(dial) => return turn_away(self, "this dial is no longer wanted"),
            Some(_) => {}
            None => {
                let shaking = self.conns.values().filter(|conn| !matches!(conn.phase, Phase::Live(_))).count();
                if shaking >= SHAKING_MAX {
                    return turn_away(self, "too many handshakes at once: try again");
                }
                if let Some(wait) = self.guard.must_wait(&hop, self.now) {
                    let line =
                        format!("too many failed attempts from {}: next in {} s", describe(&hop), wait.as_secs() + 1);
                    let refusal = Refusal::both(RefuseCode::TooFast, line);
                    self.part(conn, hop, &refusal, None);
                    return self.emit(Event::Refused { hop, reason: refusal.here });
                }
            }
        }
        let role = if dial.is_some() { Role::Dialler } else { Role::Acceptor };
        let admitted = self.holds_admitted(&sign_key);
        let offer = Offer {
            role,
            network: &self.config.network,
            secret: self.config.secret.as_ref(),
            suites: &self.config.suites,
            sign_key: self.identity.sign_key(),
            box_key: self.identity.box_key(),
            instance: self.config.instance,
            incarnation: self.incarnation,
            name: &self.config.name,
            run: self.run,
            their_sign_key: sign_key,
            exporter,
            observed: match hop {
                Hop::Direct(address) => Some(address),
                Hop::Relayed(_) => None,
            },
            admitted,
        };
        let handshake = Box::new(Handshake::new(&offer, &mut self.rng));
        self.out.push_back(Output::Send { conn, bytes: handshake.hello() });
        self.timers.set(Timer::Handshake(conn), self.now + HANDSHAKE);
        self.conns.insert(conn, Conn { hop, role, dial, phase: Phase::Shaking(handshake) });
    }

    pub(super) fn on_message(&mut self, conn: ConnId, bytes: &[u8]) {
        let Some(state) = self.conns.get(&conn) else { return };
        let shaking = match state.phase {
            Phase::Shaking(_) => true,
            Phase::Live(_) => false,
            Phase::Refused(_) => return,
        };
        let message = match Message::decode(bytes) {
            Ok(Some(message)) => message,
            // Of a later version. Whoever sent it knows that we may not understand.
            Ok(None) => return,
            Err(error) if shaking => {
                return self.refuse(conn, &Refusal::both(RefuseCode::Other, error.to_string()), None);
            }
            // One bad message of a proven peer is no reason to lose a link.
            Err(_) => return,
        };
        match (message, shaking) {
            (Message::Hello(hello), true) => self.on_hello(conn, hello, bytes),
            (Message::Pake(pake), true) => self.on_pake(conn, &pake),
            (Message::Confirm(confirm), true) => self.on_confirm(conn, &confirm),
            (Message::Refuse(refuse), _) => self.on_refused(conn, &refuse),
            (_, true) => {
                let refusal = Refusal::both(RefuseCode::Other, "a message came before the handshake was done");
                self.refuse(conn, &refusal, None);
            }
            (message, false) => self.on_live_message(conn, message, bytes),
        }
    }

    fn on_live_message(&mut self, conn: ConnId, message: Message, bytes: &[u8]) {
        match message {
            Message::Rekey(rekey) => {
                self.note_use(conn);
                self.on_rekey(conn, &rekey, bytes);
            }
            Message::RekeyAnswer(answer) => self.on_rekey_answer(conn, &answer, bytes),
            Message::App(app) => {
                self.note_use(conn);
                self.on_app(conn, app);
            }
            Message::Admit(admit) => self.on_admit(conn, &admit),
            gossip => self.on_gossip(conn, gossip),
        }
    }

    fn on_hello(&mut self, conn: ConnId, hello: Hello, bytes: &[u8]) {
        match self.check_identity(conn, &hello) {
            Whose::Fine => {}
            Whose::Ours => {
                if let Some(dial) = self.conns.get(&conn).and_then(|conn| conn.dial) {
                    self.connector.met_self(dial, self.now, &mut self.rng);
                }
                return self.close(conn, "this is the very same peer");
            }
            Whose::Wrong(refusal, record) => return self.refuse(conn, &refusal, record),
        }
        let Some(Conn { phase: Phase::Shaking(handshake), .. }) = self.conns.get_mut(&conn) else { return };
        let outcome = handshake.handle_hello(hello, bytes);
        self.go_on(conn, outcome);
    }

    fn on_pake(&mut self, conn: ConnId, pake: &Pake) {
        let Some(Conn { phase: Phase::Shaking(handshake), .. }) = self.conns.get_mut(&conn) else { return };
        let outcome = handshake.handle_pake(pake);
        self.go_on(conn, outcome);
    }

    fn go_on(&mut self, conn: ConnId, outcome: Result<Vec<Message>, Refusal>) {
        match outcome {
            Ok(replies) => replies.iter().for_each(|reply| self.send(conn, reply)),
            Err(refusal) => self.refuse(conn, &refusal, None),
        }
    }

    /// Looks for what no secret can cure: ourselves, a clone, a life that is over.
    fn check_identity(&mut self, conn: ConnId, hello: &Hello) -> Whose {
        let Some(Conn { phase: Phase::Shaking(handshake), .. }) = self.conns.get(&conn) else { return Whose::Fine };
        let peer = PeerId::of_keys(handshake.their_sign_key(), &hello.box_key);
        if peer == self.me && hello.run == self.run {
            return Whose::Ours;
        }
        let said_admitted = handshake.holds_admitted();
        if let Some(refusal) = self.distrust(&peer, &hello.name, said_admitted) {
            return Whose::Wrong(refusal, None);
        }
        let known = self.store.get(&peer);
        if peer == self.me || known.is_some_and(|known| known.body.instance != hello.instance) {
            let line = format!(
                "peer `{}` runs with a copy of another peer's keys (id {}): give it an empty data directory",
                hello.name,
                peer.short()
            );
            return Whose::Wrong(Refusal::both(RefuseCode::Settings, line), None);
        }
        // Of another run, the same incarnation is over as well: somebody put back an old copy of
        // the data directory.
        let over = |known: &&SignedRecord| {
            (known.version.incarnation.0, known.body.run != hello.run) > (hello.incarnation, false)
        };
        match known.filter(over) {
            None => Whose::Fine,
            Some(known) => {
                let line = format!("incarnation {} of this peer is over", hello.incarnation);
                Whose::Wrong(Refusal::both(RefuseCode::Stale, line), Some(known.bytes.to_vec()))
            }
        }
    }

    fn on_confirm(&mut self, conn: ConnId, confirm: &Confirm) {
        let Some(state) = self.conns.remove(&conn) else { return };
        let Conn { hop, role, dial, phase: Phase::Shaking(handshake) } = state else { return };
        let peer = handshake.peer();
        let outcome = handshake.handle_confirm(confirm);
        // Whatever follows finds the connection in its table, in one state or the other.
        let (reply, proven) = match outcome {
            Ok(proven) => proven,
            Err(refusal) => return self.refuse_gone(conn, hop, dial, &refusal, None),
        };
        // What was revoked meanwhile counts too.
        let distrust = self.distrust(&proven.peer, &proven.name, !proven.by_secret);
        if let Some(refusal) = distrust.or_else(|| self.no_room(&proven, hop, role)) {
            return self.refuse_gone(conn, hop, dial, &refusal, None);
        }
        debug_assert_eq!(peer, Some(proven.peer));
        let live = Live {
            peer: proven.peer,
            suite: proven.suite,
            chain: proven.chain.clone(),
            keys: [proven.sign_key, proven.box_key],
            by_secret: proven.by_secret,
        };
        self.timers.clear(Timer::Handshake(conn));
        self.conns.insert(conn, Conn { hop, role, dial, phase: Phase::Live(live) });
        self.admit(conn, hop, role, proven, reply);
    }

    fn no_room(&self, proven: &Proven, hop: Hop, role: Role) -> Option<Refusal> {
        if self.store.len() >= PEERS_MAX && self.store.get(&proven.peer).is_none() {
            let line = format!("the network has {PEERS_MAX} peers already, the most that are supported");
            return Some(Refusal::both(RefuseCode::Settings, line));
        }
        let direct = matches!(hop, Hop::Direct(_));
        let crowded = direct && (role == Role::Acceptor && self.is_crowded_for(&proven.peer) || self.is_full());
        crowded.then(|| Refusal::both(RefuseCode::Full, "this peer has links enough; you reach it through others"))
    }

    /// Takes in a proven connection.
    fn admit(&mut self, conn: ConnId, hop: Hop, role: Role, proven: Proven, reply: Option<Message>) {
        let id = proven.peer;
        let dial = self.conns.get(&conn).and_then(|conn| conn.dial);
        if let Some(dial) = dial {
            self.connector.proven(dial, id, self.now, &mut self.rng);
        }
        let peer = self.peer_mut(id);
        if proven.incarnation < peer.incarnation {
            return self.close(conn, "a newer incarnation of this peer is known");
        }
        let newer = proven.incarnation > peer.incarnation;
        (peer.name, peer.instance) = (proven.name.clone(), proven.instance);
        if newer {
            self.reset_peer(id, proven.incarnation);
        }
        let Some(crossed) = self.settle_duplicates(conn, id, hop, role) else {
            // The one that stands was dialled by the other end, which is proven last on it. Were
            // this one closed here, it could be gone there before that; so the other end does it.
            if matches!(hop, Hop::Direct(_)) && role == Role::Dialler {
                return self.timers.set(Timer::Replaced(conn), self.now + HANDSHAKE);
            }
            return self.close(conn, REPLACED);
        };
        self.install(&proven);
        if let Some(reply) = reply {
            self.send(conn, &reply);
        }
        self.admit_by_word(conn, &proven);
        match hop {
            Hop::Relayed(_) => {
                self.peer_mut(id).relayed = Some(conn);
                self.note_use(conn);
            }
            Hop::Direct(address) => {
                let now = self.now;
                self.peer_mut(id).direct = Some(Direct { conn, address, role, since: now });
                if self.peer_mut(id).up.is_none() {
                    self.timers.set(Timer::Path(id), now + FIRST_ECHO);
                    self.probe.insert(id);
                }
                self.note_observed(id, proven.observed);
                self.greet(conn, role);
            }
        }
        if crossed && role == Role::Dialler {
            // The two ends may have installed two handshakes' keys in different orders: one more
            // generation, made in one exchange, puts both on the same page.
            self.propose_keys(id);
        }
        self.stale.tables = true;
        self.stale.dials = true;
        self.touched.insert(id);
    }

    /// Decides between a new connection and one of the same kind that stands; `None` if the new
    /// one has to go, else whether it replaced one that the other end had dialled at the same
    /// time. Both ends decide alike (control C12).
    fn settle_duplicates(&mut self, conn: ConnId, id: PeerId, hop: Hop, role: Role) -> Option<bool> {
        let (now, me) = (self.now, self.me);
        let peer = self.peers.get_mut(&id)?;
        let (old, old_role, age) = match hop {
            Hop::Relayed(_) if peer.up.is_some() => return None,
            Hop::Relayed(_) => match peer.relayed {
                None => return Some(false),
                Some(old) => (old, self.conns.get(&old).map(|conn| conn.role), None),
            },
            Hop::Direct(_) => match peer.direct {
                None => return Some(false),
                Some(direct) => (direct.conn, Some(direct.role), Some(now.saturating_sub(direct.since))),
            },
        };
        let by_lower = |role: Role| (role == Role::Dialler) == (me < id);
        let crossing = old_role.is_some_and(|old| old != role) && age.is_none_or(|age| age < DUPLICATE_WITHIN);
        if crossing && !by_lower(role) {
            return None;
        }
        // The old one goes without a trace: what stands on it stands on the new one now.
        let lingers = matches!(hop, Hop::Direct(_)) && role == Role::Acceptor;
        match hop {
            Hop::Relayed(_) => peer.relayed = None,
            Hop::Direct(address) => {
                let moved = peer.direct.take().is_some_and(|direct| direct.address != address);
                if moved {
                    self.link_down(id, "the peer came from another address");
                    self.stale.tables = true;
                }
            }
        }
        debug_assert_ne!(old, conn);
        if lingers && self.live(old).is_some() {
            // The dialler is proven last. Were the old one closed here, it could be gone there
            // before the new one stands, and a link with it; so the dialler closes it.
            self.timers.set(Timer::Replaced(old), now + HANDSHAKE);
        } else if self.conns.remove(&old).is_some() {
            self.timers.clear(Timer::Replaced(old));
            self.out.push_back(Output::Close { conn: old, reason: REPLACED.to_owned() });
        }
        Some(crossing)
    }

    fn install(&mut self, proven: &Proven) {
        self.peer_mut(proven.peer).keyed = true;
        self.peer_mut(proven.peer).proposal = None;
        self.timers.clear(Timer::Rekey(proven.peer));
        // Of the two ends the dialler is proven last: when it is, the other can receive.
        let initiator = proven.role == Role::Dialler;
        let keys = SessionKeys {
            peer: proven.peer,
            incarnation: proven.incarnation,
            suite: proven.suite,
            local_index: proven.local_index,
            remote_index: proven.remote_index,
            send: proven.send.clone(),
            receive: proven.receive.clone(),
            initiator,
        };
        self.out.push_back(Output::Data(Command::Install(Box::new(keys))));
    }

    pub(super) fn handshake_late(&mut self, conn: ConnId) {
        let Some(state) = self.conns.get(&conn) else { return };
        match &state.phase {
            Phase::Shaking(_) => {}
            Phase::Live(_) => return,
            Phase::Refused(reason) => {
                let reason = reason.clone();
                return self.close(conn, &reason);
            }
        }
        if state.dial.is_none() {
            self.guard.failed(&state.hop, self.now);
        }
        self.close(conn, "the handshake was not done in time");
    }

    /// Refuses a connection in its handshake, with a line on both sides.
    pub(super) fn refuse(&mut self, conn: ConnId, refusal: &Refusal, record: Option<Vec<u8>>) {
        if let Some(Conn { hop, dial, .. }) = self.conns.remove(&conn) {
            self.refuse_gone(conn, hop, dial, refusal, record);
        }
    }

    /// Sends a refusal, and closes when it has had the time to arrive.
    pub(super) fn part(&mut self, conn: ConnId, hop: Hop, refusal: &Refusal, record: Option<Vec<u8>>) {
        self.send(conn, &refusal.message(record));
        self.timers.set(Timer::Handshake(conn), self.now + REFUSAL);
        let phase = Phase::Refused(refusal.there.clone());
        self.conns.insert(conn, Conn { hop, role: Role::Acceptor, dial: None, phase });
    }

    fn refuse_gone(
        &mut self,
        conn: ConnId,
        hop: Hop,
        dial: Option<super::DialId>,
        refusal: &Refusal,
        record: Option<Vec<u8>>,
    ) {
        self.part(conn, hop, refusal, record);
        match dial {
            Some(dial) => self.connector.failed(dial, &refusal.here, self.now, &mut self.rng),
            None if matches!(refusal.code, RefuseCode::Settings | RefuseCode::Other) => {
                self.guard.failed(&hop, self.now);
            }
            None => {}
        }
        if !matches!(refusal.code, RefuseCode::Stale | RefuseCode::Full) {
            self.emit(Event::Refused { hop, reason: refusal.here.clone() });
        }
        self.stale.dials = true;
    }

    /// The other end refuses us.
    fn on_refused(&mut self, conn: ConnId, refuse: &Refuse) {
        let Some(state) = self.conns.get(&conn) else { return };
        let (hop, dial) = (state.hop, state.dial);
        let peer = match &state.phase {
            Phase::Shaking(handshake) => handshake.peer(),
            Phase::Live(live) => Some(live.peer),
            Phase::Refused(_) => return,
        };
        match (RefuseCode::from_code(refuse.code), peer) {
            (RefuseCode::Full, Some(peer)) => {
                self.connector.is_full(dial, peer, self.now, &mut self.rng);
            }
            (RefuseCode::Stale, _) => {
                if let Some(dial) = dial {
                    self.connector.failed(dial, &refuse.reason, self.now, &mut self.rng);
                }
                self.close(conn, "refused");
                return self.meet_own_record(refuse.record.as_deref().unwrap_or_default());
            }
            _ => self.emit(Event::Refused { hop, reason: refuse.reason.clone() }),
        }
        // The reason of the refusal is the reason of what follows from it.
        self.out.push_back(Output::Close { conn, reason: "refused".to_owned() });
        self.drop_conn(conn, &refuse.reason);
    }
}
