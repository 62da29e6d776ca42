//! Generations of sleeve keys after the first.
//!
//! ```text
//!   proposer                                              answerer
//!     ├── Rekey {index, ephemeral} ─────────────────────────►│ installs: receives under them
//!     │◄───────────────── RekeyAnswer {index, ephemeral} ────┤ sends once it has opened one
//!   installs: sends and receives
//!
//!   keys = HKDF(salt = SHA-256(both messages), ikm = chain ‖ X25519(ephemerals))
//! ```
//!
//! The messages travel on any proven connection between the two, hence end to end. If both
//! propose at once, the proposal of the lower id holds (control C10).

use rand_core::RngCore as _;
use zeroize::Zeroizing;

use super::super::crypto::{self, Deriver, Ephemeral};
use super::super::limits::HANDSHAKE;
use super::super::timers::Timer;
use super::super::{ConnId, Identity, Output};
use super::Node;
use crate::handover::{Command, SessionKey, SessionKeys, Suite};
use crate::id::PeerId;
use crate::wire::control::{Message, Rekey, RekeyAnswer};

/// A proposal that waits for its answer.
pub(super) struct Proposal {
    conn: ConnId,
    index: u32,
    ephemeral: Option<Ephemeral>,
    bytes: Vec<u8>,
}

impl core::fmt::Debug for Proposal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Proposal").field("conn", &self.conn).field("index", &self.index).finish_non_exhaustive()
    }
}

impl<I: Identity> Node<I> {
    /// Proposes new keys to a peer, unless a proposal is under way. Without a connection one is
    /// made, and its handshake gives new keys.
    pub(super) fn propose_keys(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else { return };
        if peer.proposal.is_some() {
            return;
        }
        let Some(conn) = self.conn_of(&id) else {
            self.connector.session_wanted(id, self.now);
            self.dial_now();
            return;
        };
        let Some(suite) = self.live(conn).map(|live| live.suite) else { return };
        let ephemeral = self.new_ephemeral(suite);
        let index = self.rng.next_u32();
        let message = Message::Rekey(Rekey { index, ephemeral: ephemeral.as_ref().map(|key| key.public) });
        let bytes = message.encode();
        self.out.push_back(Output::Send { conn, bytes: bytes.clone() });
        self.peer_mut(id).proposal = Some(Proposal { conn, index, ephemeral, bytes });
        self.timers.set(Timer::Rekey(id), self.now + HANDSHAKE);
    }

    /// No answer came: the next time that keys are due, they are proposed anew.
    pub(super) fn rekey_late(&mut self, id: PeerId) {
        self.peer_mut(id).proposal = None;
    }

    pub(super) fn on_rekey(&mut self, conn: ConnId, theirs: &Rekey, bytes: &[u8]) {
        let Some(live) = self.live(conn) else { return };
        let (id, suite, chain) = (live.peer, live.suite, live.chain.clone());
        if self.peer_mut(id).proposal.is_some() {
            if self.me < id {
                return;
            }
            self.peer_mut(id).proposal = None;
            self.timers.clear(Timer::Rekey(id));
        }
        let ephemeral = self.new_ephemeral(suite);
        let Some(shared) = agree(suite, ephemeral.as_ref(), theirs.ephemeral) else { return };
        let index = self.rng.next_u32();
        let answer = Message::RekeyAnswer(RekeyAnswer {
            proposal: theirs.index,
            index,
            ephemeral: ephemeral.as_ref().map(|key| key.public),
        });
        let answer = answer.encode();
        let keys = derive(&chain, shared.as_ref(), bytes, &answer);
        self.install_generation(id, suite, (index, theirs.index), (keys.1, keys.0), false);
        self.out.push_back(Output::Send { conn, bytes: answer });
    }

    pub(super) fn on_rekey_answer(&mut self, conn: ConnId, answer: &RekeyAnswer, bytes: &[u8]) {
        let Some(live) = self.live(conn) else { return };
        let (id, suite, chain) = (live.peer, live.suite, live.chain.clone());
        let peer = self.peer_mut(id);
        let fits = |mine: &Proposal| mine.conn == conn && mine.index == answer.proposal;
        if !peer.proposal.as_ref().is_some_and(fits) {
            return;
        }
        let Some(mine) = peer.proposal.take() else { return };
        self.timers.clear(Timer::Rekey(id));
        let Some(shared) = agree(suite, mine.ephemeral.as_ref(), answer.ephemeral) else { return };
        let keys = derive(&chain, shared.as_ref(), &mine.bytes, bytes);
        self.install_generation(id, suite, (mine.index, answer.index), keys, true);
    }

    fn new_ephemeral(&mut self, suite: Suite) -> Option<Ephemeral> {
        (suite != Suite::Plain).then(|| {
            let mut seed = Zeroizing::new([0; 32]);
            self.rng.fill_bytes(&mut seed[..]);
            Ephemeral::new(seed)
        })
    }

    fn install_generation(
        &mut self,
        id: PeerId,
        suite: Suite,
        (local_index, remote_index): (u32, u32),
        (send, receive): (SessionKey, SessionKey),
        initiator: bool,
    ) {
        let peer = self.peer_mut(id);
        peer.keyed = true;
        let incarnation = peer.incarnation;
        let keys = SessionKeys { peer: id, incarnation, suite, local_index, remote_index, send, receive, initiator };
        self.out.push_back(Output::Data(Command::Install(Box::new(keys))));
        self.touched.insert(id);
    }
}

/// What the two ephemeral keys share; `None` if the other end's is missing or no honest key.
#[expect(clippy::option_option, reason = "the outer is failure, the inner is a network without a secret")]
fn agree(suite: Suite, mine: Option<&Ephemeral>, theirs: Option<[u8; 32]>) -> Option<Option<SessionKey>> {
    if suite == Suite::Plain {
        return Some(None);
    }
    mine?.agree(&theirs?).map(Some)
}

/// The keys from proposer to answerer, and back.
fn derive(chain: &SessionKey, shared: Option<&SessionKey>, rekey: &[u8], answer: &[u8]) -> (SessionKey, SessionKey) {
    let salt = crypto::hash(&[b"weft rekey 1", rekey, answer]);
    let shared = shared.map_or(&[][..], |key| &key.0[..]);
    let deriver = Deriver::new(&salt, &[&chain.0[..], shared]);
    (deriver.key(b"weft sleeve 1 proposer to answerer"), deriver.key(b"weft sleeve 1 answerer to proposer"))
}
