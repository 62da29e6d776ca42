//! Messages of applications that ride on the mesh.
//!
//! To one peer: on the connection with it if there is one, which proves the sender; else signed
//! and passed on from next hop to next hop. To all: signed, flooded as records are (gossip G5),
//! each number of an origin delivered once.

use super::super::limits::APP_HOPS;
use super::super::window::Window;
use super::super::{ConnId, Identity, MESSAGE_MAX, Output};
use super::Node;
use crate::id::{Incarnation, PeerId};
use crate::wire::control::{App, Message};

/// Room that the other fields of a message may take, in bytes.
const ENVELOPE: usize = 256;

impl<I: Identity> Node<I> {
    pub(super) fn app_to(&mut self, to: PeerId, payload: Vec<u8>) {
        if to == self.me || payload.len() > MESSAGE_MAX - ENVELOPE {
            return;
        }
        let mut app = self.new_app(Some(to), payload);
        if let Some(conn) = self.conn_of(&to) {
            self.note_use(conn);
            return self.send(conn, &Message::App(app));
        }
        app.signature = Some(self.identity.sign(&app.signed()));
        self.pass_on(&to, &app);
    }

    pub(super) fn app_to_all(&mut self, payload: Vec<u8>) {
        if payload.len() > MESSAGE_MAX - ENVELOPE {
            return;
        }
        let mut app = self.new_app(None, payload);
        app.signature = Some(self.identity.sign(&app.signed()));
        self.flood(&app, None);
    }

    fn new_app(&mut self, to: Option<PeerId>, payload: Vec<u8>) -> App {
        self.app_seq += 1;
        App {
            origin: self.me,
            incarnation: self.incarnation.0,
            seq: self.app_seq,
            to,
            hops: APP_HOPS,
            payload,
            signature: None,
        }
    }

    fn pass_on(&mut self, to: &PeerId, app: &App) {
        let hops = self.router.routes().hops.get(to).into_iter().flatten();
        let conn = hops
            .filter_map(|hop| self.peers.get(hop))
            .filter(|hop| hop.up.is_some())
            .find_map(|hop| hop.direct)
            .map(|direct| direct.conn);
        if let Some(conn) = conn {
            self.send(conn, &Message::App(app.clone()));
        }
    }

    fn flood(&mut self, app: &App, from: Option<PeerId>) {
        let bytes = Message::App(app.clone()).encode();
        for (neighbour, conn) in self.neighbours() {
            let has_it = neighbour == app.origin
                || from.is_some_and(|from| from == neighbour || self.topology.graph().linked(&from, &neighbour));
            if !has_it {
                self.send_bytes(conn, bytes.clone());
            }
        }
    }

    pub(super) fn on_app(&mut self, conn: ConnId, mut app: App) {
        let Some(from) = self.live(conn).map(|live| live.peer) else { return };
        if app.origin == self.me || !self.is_authentic(&app, &from) {
            return;
        }
        let incarnation = Incarnation(app.incarnation);
        match app.to {
            Some(to) if to != self.me => {
                app.hops = app.hops.saturating_sub(1).min(APP_HOPS);
                if app.hops > 0 && app.signature.is_some() {
                    self.pass_or_hand_over(&to, &app);
                }
            }
            Some(_) => self.deliver(app.origin, incarnation, app.seq, app.payload),
            None => {
                if !self.is_first(app.origin, incarnation, app.seq) {
                    return;
                }
                app.hops = app.hops.saturating_sub(1).min(APP_HOPS);
                if app.hops > 0 {
                    self.flood(&app, Some(from));
                }
                self.out.push_back(Output::App { from: app.origin, incarnation, payload: app.payload });
            }
        }
    }

    /// The last hop uses the connection with the destination, whatever kind it is.
    fn pass_or_hand_over(&mut self, to: &PeerId, app: &App) {
        match self.conn_of(to) {
            Some(conn) => self.send(conn, &Message::App(app.clone())),
            None => self.pass_on(to, app),
        }
    }

    fn deliver(&mut self, origin: PeerId, incarnation: Incarnation, seq: u64, payload: Vec<u8>) {
        if self.is_first(origin, incarnation, seq) {
            self.out.push_back(Output::App { from: origin, incarnation, payload });
        }
    }

    /// Nobody speaks for another: the connection proves its own end, a signature any origin.
    fn is_authentic(&self, app: &App, from: &PeerId) -> bool {
        if app.origin == *from && app.to == Some(self.me) {
            return true;
        }
        let (Some(record), Some(signature)) = (self.store.get(&app.origin), &app.signature) else { return false };
        let seen = self.windows.get(&app.origin);
        if app.to.is_none() && seen.is_some_and(|window| window.has(Incarnation(app.incarnation), app.seq)) {
            // A copy: not worth the check, it goes nowhere.
            return false;
        }
        self.identity.verify(&record.body.sign_key, &app.signed(), signature)
    }

    fn is_first(&mut self, origin: PeerId, incarnation: Incarnation, seq: u64) -> bool {
        // One window per known peer, dropped with it; unknown origins cannot be authentic unless
        // they sit on the other end of a proven connection.
        self.windows.entry(origin).or_insert_with(|| Window::new(incarnation)).is_first(incarnation, seq)
    }
}
