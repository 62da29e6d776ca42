//! Connections and the links that they become.
//!
//! ```text
//!  conn ── handshake ─► direct conn = candidate link ── PathUp ─► link (in our record)
//!                       relayed conn                  ◄─ PathDown, lost, restarted ─┘
//! ```
//!
//! A peer has at most one connection of each kind. A link is what the data path has seen work
//! both ways; it leaves our record in the moment that this ends (control C15). Keys outlive
//! connections: only a new incarnation ends them (control C11).

use core::net::SocketAddr;
use core::time::Duration;

use super::super::handshake::{Handshake, Role};
use super::super::limits::{FIRST_ECHO, FORGET_AFTER, ONE_SIDED, PROACTIVE_MAX, RELAY_IDLE, RTT_CHANGE, RTT_EVERY};
use super::super::timers::Timer;
use super::super::wanted::rank;
use super::super::{ConnId, DialId, Event, Identity, Output};
use super::session::Proposal;
use super::{Node, PeerState};
use crate::address::canonical;
use crate::data::Hop;
use crate::handover::{Command, DataEvent, SessionKey, Suite};
use crate::id::{Incarnation, PeerId};

/// A connection that stands.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) hop: Hop,
    pub(super) role: Role,
    pub(super) dial: Option<DialId>,
    pub(super) phase: Phase,
}

/// How far a connection is.
#[derive(Debug)]
pub(super) enum Phase {
    /// In the handshake.
    Shaking(Box<Handshake>),
    /// Proven.
    Live(Live),
    /// Refused: left open for a moment, for a connection that closes takes what is under way
    /// with it, and the refusal should arrive. The other end closes when it has read it.
    Refused(String),
}

/// A connection whose other end is proven.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) peer: PeerId,
    pub(super) suite: Suite,
    /// The secret that later generations of keys are derived from.
    pub(super) chain: SessionKey,
    /// Its TLS key and its box key.
    pub(super) keys: [[u8; 32]; 2],
    /// Whether it has proven the secret on this very connection.
    pub(super) by_secret: bool,
}

/// All that is held about one other peer beside its record.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) instance: u64,
    /// The newest incarnation that was heard of or proven.
    pub(super) incarnation: Incarnation,
    pub(super) direct: Option<Direct>,
    pub(super) relayed: Option<ConnId>,
    pub(super) up: Option<Up>,
    /// The data path has keys for this incarnation.
    pub(super) keyed: bool,
    pub(super) proposal: Option<Proposal>,
    pub(super) reachable: bool,
    pub(super) known_since: Duration,
    /// Its place in the order in which peers are dialled.
    pub(super) rank: u64,
    pub(super) state: PeerState,
    pub(super) since: Duration,
}

/// The direct connection of a peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Direct {
    pub(super) conn: ConnId,
    pub(super) address: SocketAddr,
    pub(super) role: Role,
    pub(super) since: Duration,
}

/// A link that works.
#[derive(Debug, Clone, Copy)]
pub(super) struct Up {
    pub(super) rtt: Duration,
    /// What our record says.
    pub(super) published_us: u32,
    pub(super) published_at: Duration,
}

impl<I: Identity> Node<I> {
    /// The entry of a peer, made if there is none.
    pub(super) fn peer_mut(&mut self, id: PeerId) -> &mut Peer {
        let (now, me, timers) = (self.now, self.me, &mut self.timers);
        self.peers.entry(id).or_insert_with(|| {
            timers.set(Timer::Forget(id), now + FORGET_AFTER);
            Peer {
                name: String::new(),
                instance: 0,
                incarnation: Incarnation(0),
                direct: None,
                relayed: None,
                up: None,
                keyed: false,
                proposal: None,
                reachable: false,
                known_since: now,
                rank: rank(&me, &id),
                state: PeerState::Connecting,
                since: now,
            }
        })
    }

    /// The connection on which control messages reach that peer end to end.
    pub(super) fn conn_of(&self, peer: &PeerId) -> Option<ConnId> {
        let peer = self.peers.get(peer)?;
        peer.direct.map(|direct| direct.conn).or(peer.relayed)
    }

    /// The proven peer of a connection.
    pub(super) fn live(&self, conn: ConnId) -> Option<&Live> {
        match &self.conns.get(&conn)?.phase {
            Phase::Live(live) => Some(live),
            Phase::Shaking(_) | Phase::Refused(_) => None,
        }
    }

    /// The neighbours that gossip is exchanged with: everyone on a proven direct connection.
    pub(super) fn neighbours(&self) -> Vec<(PeerId, ConnId)> {
        self.peers.iter().filter_map(|(id, peer)| Some((*id, peer.direct?.conn))).collect()
    }

    /// Closes a connection from our side.
    pub(super) fn close(&mut self, conn: ConnId, reason: &str) {
        if self.conns.contains_key(&conn) {
            self.out.push_back(Output::Close { conn, reason: reason.to_owned() });
            self.drop_conn(conn, reason);
        }
    }

    /// Closes every connection.
    pub(super) fn close_all(&mut self, reason: &str) {
        let all: Vec<ConnId> = self.conns.keys().copied().collect();
        for conn in all {
            self.close(conn, reason);
        }
    }

    /// A connection ended from outside.
    pub(super) fn on_disconnected(&mut self, conn: ConnId, reason: &str) {
        if let Some(peer) = self.live(conn).map(|live| live.peer) {
            self.go_back_to_replaced(peer, conn);
        }
        self.drop_conn(conn, reason);
    }

    /// Of two connections that the other end dialled it keeps the one that was proven last there,
    /// and that may be the other one here. If it has closed the one that is held for the newer,
    /// the link stands on the other (control C12).
    fn go_back_to_replaced(&mut self, id: PeerId, lost: ConnId) {
        let now = self.now;
        let lingers = |(conn, state): (&ConnId, &Conn)| {
            let theirs = matches!(&state.phase, Phase::Live(live) if live.peer == id);
            let Hop::Direct(address) = state.hop else { return None };
            (theirs && self.timers.has(Timer::Replaced(*conn))).then_some((*conn, address, state.role))
        };
        let Some((conn, address, role)) = self.conns.iter().filter_map(lingers).next_back() else { return };
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(old) = peer.direct.filter(|direct| direct.conn == lost) else { return };
        peer.direct = Some(Direct { conn, address, role, since: now });
        self.timers.clear(Timer::Replaced(conn));
        if old.address != address {
            self.link_down(id, "the peer came from another address");
            self.timers.set(Timer::Path(id), now + FIRST_ECHO);
            self.probe.insert(id);
        }
        self.stale.tables = true;
        self.stale.dials = true;
        self.touched.insert(id);
    }

    /// A connection is good for something. (Those through relays are closed when they are not.)
    pub(super) fn note_use(&mut self, conn: ConnId) {
        if matches!(self.conns.get(&conn), Some(Conn { hop: Hop::Relayed(_), .. })) {
            self.timers.set(Timer::Idle(conn), self.now + RELAY_IDLE);
        }
    }

    /// A relayed connection has carried nothing for a while. In a small mesh it stays, for there
    /// every pair has one (control C22).
    pub(super) fn close_if_idle(&mut self, conn: ConnId) {
        if self.peers.len() > 2 * PROACTIVE_MAX {
            self.close(conn, "nothing was sent for a while: it is made again when needed");
        } else {
            self.note_use(conn);
        }
    }

    /// Forgets a connection, and what stood on it.
    pub(super) fn drop_conn(&mut self, conn: ConnId, reason: &str) {
        let Some(old) = self.conns.remove(&conn) else { return };
        self.timers.clear(Timer::Handshake(conn));
        self.timers.clear(Timer::Replaced(conn));
        self.timers.clear(Timer::Idle(conn));
        self.stale.dials = true;
        let live = match old.phase {
            Phase::Live(live) => live,
            Phase::Refused(_) => return,
            Phase::Shaking(_) => {
                if let Some(dial) = old.dial {
                    self.connector.failed(dial, reason, self.now, &mut self.rng);
                }
                return;
            }
        };
        self.touched.insert(live.peer);
        let Some(peer) = self.peers.get_mut(&live.peer) else { return };
        if peer.direct.is_some_and(|direct| direct.conn == conn) {
            peer.direct = None;
            let was_up = peer.up.is_some();
            self.timers.clear(Timer::Path(live.peer));
            self.stale.tables = true;
            self.link_down(live.peer, reason);
            self.connector.lost(live.peer, was_up, reason, self.now, &mut self.rng);
        } else if peer.relayed == Some(conn) {
            peer.relayed = None;
            self.connector.relay_lost(live.peer, self.now, &mut self.rng);
        }
    }

    /// The peer has begun a new life: nothing of the old one holds.
    pub(super) fn reset_peer(&mut self, id: PeerId, incarnation: Incarnation) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.incarnation = incarnation;
        peer.proposal = None;
        let had_keys = core::mem::take(&mut peer.keyed);
        let standing = [peer.direct.map(|direct| direct.conn), peer.relayed];
        let replaced = |(conn, state): &(&ConnId, &Conn)| {
            self.timers.has(Timer::Replaced(**conn)) && matches!(&state.phase, Phase::Live(live) if live.peer == id)
        };
        let replaced = self.conns.iter().filter(replaced).map(|(conn, _)| *conn);
        let conns: Vec<ConnId> = replaced.chain(standing.into_iter().flatten()).collect();
        let reason = format!("peer `{}` restarted (incarnation {})", peer.name, incarnation.0);
        for conn in conns {
            self.close(conn, &reason);
        }
        self.windows.remove(&id);
        if had_keys {
            // The data path must see the old path end before a new one begins at one address.
            self.stale.tables = true;
            self.publish_tables();
            self.out.push_back(Output::Data(Command::Remove(id)));
        }
        self.connector.heard(id, true, self.now);
    }

    /// What the data path saw.
    pub(super) fn on_data_event(&mut self, event: &DataEvent) {
        match *event {
            DataEvent::PathUp { peer, rtt } => self.link_up(peer, rtt),
            DataEvent::PathDown { peer } => self.path_down(peer),
            DataEvent::Rtt { peer, rtt } => self.rtt_changed(peer, rtt),
            DataEvent::Mtu { .. } => {}
            DataEvent::Moved { peer, to } => {
                if let Some(direct) = self.peers.get_mut(&peer).and_then(|peer| peer.direct.as_mut()) {
                    direct.address = canonical(to);
                    self.stale.tables = true;
                    // QUIC follows the end that dialled, not the one that was dialled (control C12).
                    if direct.role == Role::Dialler {
                        self.connector.renew(peer, direct.address, self.now);
                        self.stale.dials = true;
                    }
                }
            }
            DataEvent::SessionWanted { peer } => {
                if self.conn_of(&peer).is_some() {
                    self.propose_keys(peer);
                } else if self.peers.contains_key(&peer) {
                    self.connector.session_wanted(peer, self.now);
                    self.dial_now();
                }
            }
            DataEvent::RekeyDue { peer } => self.propose_keys(peer),
        }
    }

    fn link_up(&mut self, id: PeerId, rtt: Duration) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(direct) = peer.direct else { return };
        self.timers.clear(Timer::Path(id));
        if let Some(up) = &mut peer.up {
            up.rtt = rtt;
            return;
        }
        peer.up = Some(Up { rtt, published_us: micros(rtt), published_at: now });
        let (name, address, relayed) = (peer.name.clone(), direct.address, peer.relayed);
        self.connector.linked(id, now);
        self.emit(Event::LinkUp { peer: id, name, address, rtt });
        if let Some(relayed) = relayed {
            self.close(relayed, "a direct link took over");
        }
        self.link_changed(id);
        self.compare_soon();
        self.look_at_other_end(id);
    }

    /// The record of a link's other end may have come or changed: if it does not tell of the link,
    /// it has some time to do so (control C34).
    pub(super) fn look_at_other_end(&mut self, id: PeerId) {
        let up = self.peers.get(&id).is_some_and(|peer| peer.up.is_some());
        if up && self.store.get(&id).is_some_and(|record| record.link_to(&self.me).is_none()) {
            self.timers.set_if_none(Timer::OneSided(id), self.now + ONE_SIDED);
        } else {
            self.timers.clear(Timer::OneSided(id));
        }
    }

    /// The other end has closed the connection, and that word was lost; or the path carries user
    /// frames one way only.
    pub(super) fn one_sided(&mut self, id: PeerId) {
        if let Some(direct) = self.peers.get(&id).and_then(|peer| peer.direct) {
            self.close(direct.conn, "the other end has no such link");
        }
    }

    /// A link ends: it leaves our record at once.
    pub(super) fn link_down(&mut self, id: PeerId, reason: &str) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.up.take().is_some() {
            let name = peer.name.clone();
            self.timers.clear(Timer::Rtt(id));
            self.timers.clear(Timer::OneSided(id));
            self.emit(Event::LinkDown { peer: id, name, reason: reason.to_owned() });
            self.link_changed(id);
        }
    }

    fn link_changed(&mut self, id: PeerId) {
        self.stale.record = true;
        self.stale.routes = true;
        self.stale.tables = true;
        self.stale.dials = true;
        self.touched.insert(id);
    }

    fn path_down(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else { return };
        if let (Some(direct), true) = (peer.direct, peer.up.is_some()) {
            self.close(direct.conn, "no echo came back on the path of user frames");
        }
    }

    /// The handshake is long done, but the data path does not answer.
    pub(super) fn first_echo_late(&mut self, id: PeerId) {
        let direct = self.peers.get(&id).filter(|peer| peer.up.is_none()).and_then(|peer| peer.direct);
        if let Some(direct) = direct {
            let reason =
                format!("control reached {0} but no user frame did: let UDP to {0} pass both ways", direct.address);
            self.close(direct.conn, &reason);
        }
    }

    fn rtt_changed(&mut self, id: PeerId, rtt: Duration) {
        if let Some(up) = self.peers.get_mut(&id).and_then(|peer| peer.up.as_mut()) {
            up.rtt = rtt;
            self.republish_rtt(id);
        }
    }

    /// Publishes a round trip that changed by more than half and more than noise, seldom.
    pub(super) fn republish_rtt(&mut self, id: PeerId) {
        let now = self.now;
        let Some(up) = self.peers.get_mut(&id).and_then(|peer| peer.up.as_mut()) else { return };
        let (new, old) = (micros(up.rtt), up.published_us);
        let change = new.abs_diff(old);
        if change <= old / 2 || change <= micros(RTT_CHANGE) {
            return;
        }
        let due = up.published_at + RTT_EVERY;
        if now < due {
            self.timers.set(Timer::Rtt(id), due);
            return;
        }
        (up.published_us, up.published_at) = (new, now);
        self.stale.record = true;
        self.stale.routes = true;
    }
}

/// A time in whole microseconds, for the wire.
pub(super) fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
