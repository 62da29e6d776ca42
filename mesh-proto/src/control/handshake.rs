//! Proof that both ends of a connection belong to one network, and the keys that follow.
//!
//! ```text
//!   dialler                                              acceptor
//!     ├── Hello  (as soon as the connection stands) ────────►│
//!     │◄──────────────────────────────────────────── Hello ──┤
//!     ├── Confirm  HMAC(k, "dialler" ‖ H) ──────────────────►│  proven: receives under the keys
//!     │◄────────────────── Confirm  HMAC(k, "acceptor" ‖ H) ─┤
//!   proven: sends and receives
//!
//!   H = SHA-256(both Hellos, both TLS keys)       k = HKDF(salt = exporter, ikm = SPAKE2 key)
//!   sleeve keys = HKDF(salt = H, ikm = exporter ‖ X25519(ephemerals) ‖ SPAKE2 key)
//! ```
//!
//! The SPAKE2 messages are part of the Hellos. If both ends say in their Hello that they hold the
//! other's TLS key for admitted there are none, and the SPAKE2 key is empty; if only one does, it
//! sends its own in a message after its Hello (control C28).
//!
//! Somebody in the middle holds two connections with two exporters, and whoever changes a Hello
//! changes H: both fail (control C6, C7). Without a secret the same messages run with an empty
//! SPAKE2 key: they bind the Hellos to the connection and prove nothing more.

use core::fmt;

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use spake2::{Ed25519Group, Identity as SpakeIdentity, Password, Spake2};
use zeroize::Zeroizing;

use super::crypto::{self, Deriver, Ephemeral};
use super::limits::HELLO_MAX;
use crate::handover::{SessionKey, Suite};
use crate::id::{Incarnation, PeerId};
use crate::wire::cbor::Endpoint;
use crate::wire::control::{Confirm, Hello, Message, Refuse, RefuseCode, VERSION};
use crate::wire::trust::Pake;

/// Who opened the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// This end.
    Dialler,
    /// The other end.
    Acceptor,
}

impl Role {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Dialler => b"weft confirm 1 dialler",
            Self::Acceptor => b"weft confirm 1 acceptor",
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::Dialler => Self::Acceptor,
            Self::Acceptor => Self::Dialler,
        }
    }
}

/// What this end brings to a handshake.
pub struct Offer<'a> {
    /// Who opened the connection.
    pub role: Role,
    /// Name of the network.
    pub network: &'a str,
    /// The stretched network secret.
    pub secret: Option<&'a SessionKey>,
    /// Suites, best first.
    pub suites: &'a [Suite],
    /// This peer's TLS key.
    pub sign_key: [u8; 32],
    /// This peer's box key.
    pub box_key: [u8; 32],
    /// This peer's instance.
    pub instance: u64,
    /// This peer's incarnation.
    pub incarnation: Incarnation,
    /// This peer's name.
    pub name: &'a str,
    /// Random number of this run.
    pub run: [u8; 16],
    /// The other end's TLS key.
    pub their_sign_key: [u8; 32],
    /// The connection's exporter.
    pub exporter: [u8; 32],
    /// Where the other end is seen.
    pub observed: Option<core::net::SocketAddr>,
    /// Whether the other end's TLS key is an admitted peer's.
    pub admitted: bool,
}

impl fmt::Debug for Offer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer").field("role", &self.role).field("network", &self.network).finish_non_exhaustive()
    }
}

/// A handshake under way.
pub struct Handshake {
    role: Role,
    mine: Hello,
    mine_bytes: Vec<u8>,
    sign_key: [u8; 32],
    their_sign_key: [u8; 32],
    exporter: Zeroizing<[u8; 32]>,
    ephemeral: Option<Ephemeral>,
    secret: Option<SessionKey>,
    spake: Option<Spake2<Ed25519Group>>,
    /// Seed of a SPAKE2 message that may be asked for later.
    later: Zeroizing<[u8; 32]>,
    heard: Option<Heard>,
    keyed: Option<Keyed>,
}

/// The other end's Hello, while its SPAKE2 message is awaited.
struct Heard {
    theirs: Hello,
    bytes: Vec<u8>,
    suite: Suite,
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("role", &self.role).finish_non_exhaustive()
    }
}

/// What is known once both Hellos are there.
struct Keyed {
    theirs: Hello,
    peer: PeerId,
    suite: Suite,
    by_secret: bool,
    transcript: [u8; 32],
    confirm: SessionKey,
    dialler_to_acceptor: SessionKey,
    acceptor_to_dialler: SessionKey,
    chain: SessionKey,
}

/// The outcome of a handshake: the other end is who it says, and in our network.
#[derive(Debug)]
pub struct Proven {
    /// Who opened the connection.
    pub role: Role,
    /// The other end.
    pub peer: PeerId,
    /// Its TLS key.
    pub sign_key: [u8; 32],
    /// Its box key.
    pub box_key: [u8; 32],
    /// Whether it has proven the secret on this very connection.
    pub by_secret: bool,
    /// Its name.
    pub name: String,
    /// Its instance.
    pub instance: u64,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Where it sees us.
    pub observed: Option<core::net::SocketAddr>,
    /// What protects the frames.
    pub suite: Suite,
    /// Header number of what it sends us.
    pub local_index: u32,
    /// Header number of what we send.
    pub remote_index: u32,
    /// Key of what we send.
    pub send: SessionKey,
    /// Key of what we receive.
    pub receive: SessionKey,
    /// Secret of this connection, from which later generations are derived.
    pub chain: SessionKey,
}

/// Why there will be no link: a line for each operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind, for the machine.
    pub code: RefuseCode,
    /// For this end.
    pub here: String,
    /// For the other end.
    pub there: String,
}

impl Refusal {
    /// A refusal with the same line for both.
    pub fn both(code: RefuseCode, line: impl Into<String>) -> Self {
        let here = line.into();
        Self { code, there: here.clone(), here }
    }

    fn settings(here: String, there: String) -> Self {
        Self { code: RefuseCode::Settings, here, there }
    }

    /// The message for the other end.
    #[must_use]
    pub fn message(&self, record: Option<Vec<u8>>) -> Message {
        Message::Refuse(Refuse { code: self.code.code(), reason: self.there.clone(), record })
    }
}

impl Handshake {
    /// Begins; send [`Self::hello`] at once.
    pub fn new(offer: &Offer<'_>, rng: &mut ChaCha20Rng) -> Self {
        let mut seeds = [Zeroizing::new([0; 32]), Zeroizing::new([0; 32])];
        if offer.secret.is_some() {
            seeds.iter_mut().for_each(|seed| rng.fill_bytes(&mut seed[..]));
        }
        let [seed, later] = seeds;
        let ephemeral = offer.secret.map(|_| Ephemeral::new(seed));
        let admitted = offer.admitted && offer.secret.is_some();
        let (spake, spake_message) = offer
            .secret
            .filter(|_| !admitted)
            .map(|secret| start_spake(offer.role, &offer.sign_key, &offer.their_sign_key, secret, &later))
            .unzip();
        let mine = Hello {
            version_min: VERSION,
            version_max: VERSION,
            network: offer.network.to_owned(),
            secret: offer.secret.is_some(),
            suites: usable(offer.suites, offer.secret.is_some()).map(Suite::code).collect(),
            box_key: offer.box_key,
            instance: offer.instance,
            incarnation: offer.incarnation.0,
            name: offer.name.to_owned(),
            run: offer.run,
            index: rng.next_u32(),
            ephemeral: ephemeral.as_ref().map(|key| key.public),
            spake: spake_message,
            observed: offer.observed.map(Endpoint),
            admitted,
        };
        let mine_bytes = Message::Hello(mine.clone()).encode();
        Self {
            role: offer.role,
            mine,
            mine_bytes,
            sign_key: offer.sign_key,
            their_sign_key: offer.their_sign_key,
            exporter: Zeroizing::new(offer.exporter),
            ephemeral,
            secret: offer.secret.cloned(),
            spake,
            later,
            heard: None,
            keyed: None,
        }
    }

    /// Whether this end has said that the other's TLS key is an admitted peer's.
    #[must_use]
    pub const fn holds_admitted(&self) -> bool {
        self.mine.admitted
    }

    /// The key that the other end has proven in TLS.
    #[must_use]
    pub const fn their_sign_key(&self) -> &[u8; 32] {
        &self.their_sign_key
    }

    /// Our first message.
    #[must_use]
    pub fn hello(&self) -> Vec<u8> {
        self.mine_bytes.clone()
    }

    /// The id that the other end has by its keys, once its Hello is there.
    #[must_use]
    pub fn peer(&self) -> Option<PeerId> {
        self.keyed.as_ref().map(|keyed| keyed.peer)
    }

    /// The other end's Hello. Gives what to send next, if it is our turn.
    ///
    /// # Errors
    /// If the two cannot be linked.
    pub fn handle_hello(&mut self, mut theirs: Hello, bytes: &[u8]) -> Result<Vec<Message>, Refusal> {
        if self.keyed.is_some() || self.heard.is_some() {
            return Err(Refusal::both(RefuseCode::Other, "a second Hello came on one connection"));
        }
        if bytes.len() > HELLO_MAX {
            return Err(Refusal::both(RefuseCode::Other, format!("the Hello is longer than {HELLO_MAX} bytes")));
        }
        self.compare(&theirs)?;
        let suite = self.choose(&theirs)?;
        let Some(secret) = self.secret.as_ref().filter(|_| !(self.mine.admitted && theirs.admitted)) else {
            // SPAKE2 has nothing to say: there is no secret, or both hold the other for admitted.
            self.spake = None;
            return self.key(theirs, bytes, suite, None);
        };
        let mut replies = Vec::new();
        if self.mine.admitted {
            let (state, message) = start_spake(self.role, &self.sign_key, &self.their_sign_key, secret, &self.later);
            self.spake = Some(state);
            replies.push(Message::Pake(Pake { message }));
        }
        if theirs.admitted {
            self.heard = Some(Heard { theirs, bytes: bytes.to_vec(), suite });
            return Ok(replies);
        }
        let message = theirs.spake.take().unwrap_or_default();
        let spake = self.finish_spake(&message)?;
        replies.extend(self.key(theirs, bytes, suite, Some(&spake))?);
        Ok(replies)
    }

    /// The SPAKE2 message that the other end's Hello left out. Gives what to send next, if it is our
    /// turn.
    ///
    /// # Errors
    /// If it is broken, or comes where none is awaited.
    pub fn handle_pake(&mut self, pake: &Pake) -> Result<Vec<Message>, Refusal> {
        let Some(Heard { theirs, bytes, suite }) = self.heard.take() else {
            return Err(Refusal::both(RefuseCode::Other, "a SPAKE2 message came that was not asked for"));
        };
        let spake = self.finish_spake(&pake.message)?;
        self.key(theirs, &bytes, suite, Some(&spake))
    }

    /// Everything is there: derives the keys.
    fn key(
        &mut self,
        theirs: Hello,
        bytes: &[u8],
        suite: Suite,
        spake: Option<&[u8]>,
    ) -> Result<Vec<Message>, Refusal> {
        let by_secret = spake.is_some();
        let spake = spake.unwrap_or_default();
        let agreed = self.agree(&theirs)?;
        let (first, second) = match self.role {
            Role::Dialler => ((&self.mine_bytes[..], &self.sign_key), (bytes, &self.their_sign_key)),
            Role::Acceptor => ((bytes, &self.their_sign_key), (&self.mine_bytes[..], &self.sign_key)),
        };
        let transcript = crypto::hash(&[b"weft handshake 1", first.0, second.0, first.1, second.1]);
        let confirm = Deriver::new(&self.exporter[..], &[spake]).key(b"weft confirm 1");
        let shared = agreed.as_ref().map_or(&[][..], |key| &key.0[..]);
        let sleeve = Deriver::new(&transcript, &[&self.exporter[..], shared, spake]);
        self.keyed = Some(Keyed {
            peer: PeerId::of_keys(&self.their_sign_key, &theirs.box_key),
            suite,
            by_secret,
            transcript,
            confirm,
            dialler_to_acceptor: sleeve.key(b"weft sleeve 1 dialler to acceptor"),
            acceptor_to_dialler: sleeve.key(b"weft sleeve 1 acceptor to dialler"),
            chain: sleeve.key(b"weft chain 1"),
            theirs,
        });
        Ok((self.role == Role::Dialler).then(|| self.confirmation()).flatten().into_iter().collect())
    }

    /// The other end's proof. Gives our own, if it is our turn, and the outcome.
    ///
    /// # Errors
    /// If it is wrong or comes too early.
    pub fn handle_confirm(mut self: Box<Self>, theirs: &Confirm) -> Result<(Option<Message>, Proven), Refusal> {
        let reply = (self.role == Role::Acceptor).then(|| self.confirmation()).flatten();
        let Some(keyed) = self.keyed.take() else {
            return Err(Refusal::both(RefuseCode::Other, "a Confirm came before its Hello"));
        };
        if !crypto::proven(&keyed.confirm, self.role.other().label(), &keyed.transcript, &theirs.mac) {
            return Err(self.wrong_proof(&keyed));
        }
        let (send, receive) = match self.role {
            Role::Dialler => (keyed.dialler_to_acceptor, keyed.acceptor_to_dialler),
            Role::Acceptor => (keyed.acceptor_to_dialler, keyed.dialler_to_acceptor),
        };
        let proven = Proven {
            role: self.role,
            peer: keyed.peer,
            sign_key: self.their_sign_key,
            box_key: keyed.theirs.box_key,
            by_secret: keyed.by_secret,
            name: keyed.theirs.name,
            instance: keyed.theirs.instance,
            incarnation: Incarnation(keyed.theirs.incarnation),
            observed: keyed.theirs.observed.map(|endpoint| endpoint.0),
            suite: keyed.suite,
            local_index: self.mine.index,
            remote_index: keyed.theirs.index,
            send,
            receive,
            chain: keyed.chain,
        };
        Ok((reply, proven))
    }

    fn confirmation(&self) -> Option<Message> {
        let keyed = self.keyed.as_ref()?;
        let mac = crypto::prove(&keyed.confirm, self.role.label(), &keyed.transcript);
        Some(Message::Confirm(Confirm { mac }))
    }

    fn wrong_proof(&self, keyed: &Keyed) -> Refusal {
        if !keyed.by_secret {
            let line = "the handshake was changed on its way: something sits between the two peers";
            return Refusal::both(RefuseCode::Settings, line);
        }
        let line = |name: &str| {
            format!(
                "peer `{name}` has another secret for network `{}` (or something sits in between): \
                 give both peers the same secret",
                self.mine.network
            )
        };
        Refusal::settings(line(&keyed.theirs.name), line(&self.mine.name))
    }

    fn compare(&self, theirs: &Hello) -> Result<(), Refusal> {
        let mine = &self.mine;
        if theirs.version_min > mine.version_max || mine.version_min > theirs.version_max {
            let line = |name: &str, other: (u16, u16), own: (u16, u16)| {
                format!(
                    "peer `{name}` speaks versions {} to {} of the control protocol, this one {} to {}: \
                     upgrade the older one",
                    other.0, other.1, own.0, own.1
                )
            };
            let (own, other) = ((mine.version_min, mine.version_max), (theirs.version_min, theirs.version_max));
            return Err(Refusal::settings(line(&theirs.name, other, own), line(&mine.name, own, other)));
        }
        if theirs.network != mine.network {
            let line = |name: &str, other: &str, own: &str| {
                format!(
                    "peer `{name}` is in network `{other}`, this one in `{own}`: \
                     give both the same network name, or do not name it as a peer"
                )
            };
            return Err(Refusal::settings(
                line(&theirs.name, &theirs.network, &mine.network),
                line(&mine.name, &mine.network, &theirs.network),
            ));
        }
        if theirs.secret != mine.secret {
            let line = |name: &str, has: bool| {
                let (it, we) = if has { ("has a secret", "has none") } else { ("has no secret", "has one") };
                format!("peer `{name}` {it} and this one {we}: give both the same secret, or none to either")
            };
            return Err(Refusal::settings(line(&theirs.name, theirs.secret), line(&mine.name, mine.secret)));
        }
        Ok(())
    }

    /// The dialler's best suite that the acceptor has too.
    fn choose(&self, theirs: &Hello) -> Result<Suite, Refusal> {
        let (wanted, offered) = match self.role {
            Role::Dialler => (&self.mine.suites, &theirs.suites),
            Role::Acceptor => (&theirs.suites, &self.mine.suites),
        };
        wanted
            .iter()
            .filter(|code| offered.contains(code))
            .filter_map(|code| Suite::from_code(*code))
            // Fails closed: with a secret nothing goes out in the clear, whatever was offered.
            .find(|suite| (*suite == Suite::Plain) != self.mine.secret)
            .ok_or_else(|| {
                let line = |name: &str, theirs: &[u8], mine: &[u8]| {
                    format!(
                        "peer `{name}` offers the ciphers {}, this one {}: allow one in common",
                        names(theirs),
                        names(mine)
                    )
                };
                Refusal::settings(
                    line(&theirs.name, &theirs.suites, &self.mine.suites),
                    line(&self.mine.name, &self.mine.suites, &theirs.suites),
                )
            })
    }

    fn finish_spake(&mut self, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        let Some(state) = self.spake.take() else {
            return Err(Refusal::both(RefuseCode::Other, "a second SPAKE2 message came on one connection"));
        };
        state.finish(message).map(Zeroizing::new).map_err(|error| {
            Refusal::both(RefuseCode::Other, format!("the Hello has a broken SPAKE2 message ({error:?})"))
        })
    }

    fn agree(&self, theirs: &Hello) -> Result<Option<SessionKey>, Refusal> {
        let Some(mine) = &self.ephemeral else {
            return Ok(None);
        };
        let shared = theirs.ephemeral.and_then(|key| mine.agree(&key));
        shared.map(Some).ok_or_else(|| Refusal::both(RefuseCode::Other, "the Hello has no honest ephemeral key"))
    }
}

/// What may be offered: everything but plain with a secret, plain alone without.
fn usable(suites: &[Suite], secret: bool) -> impl Iterator<Item = Suite> {
    let fallback: &[Suite] = if secret { &[Suite::ChaCha20Poly1305] } else { &[Suite::Plain] };
    let fits = move |suite: &Suite| (*suite == Suite::Plain) != secret;
    let any = suites.iter().any(fits);
    let list = if any { suites } else { fallback };
    list.iter().copied().filter(fits)
}

fn names(codes: &[u8]) -> String {
    let names: Vec<_> = codes
        .iter()
        .map(|code| Suite::from_code(*code).map_or_else(|| format!("#{code}"), |suite| suite.name().to_owned()))
        .collect();
    names.join(", ")
}

fn start_spake(
    role: Role,
    sign_key: &[u8; 32],
    their_sign_key: &[u8; 32],
    secret: &SessionKey,
    seed: &[u8; 32],
) -> (Spake2<Ed25519Group>, Vec<u8>) {
    let mut rng = ChaCha20Rng::from_seed(*seed);
    let password = Password::new(&secret.0[..]);
    let (mine, theirs) = (SpakeIdentity::new(sign_key), SpakeIdentity::new(their_sign_key));
    match role {
        Role::Dialler => Spake2::start_a_with_rng(&password, &mine, &theirs, &mut rng),
        Role::Acceptor => Spake2::start_b_with_rng(&password, &theirs, &mine, &mut rng),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Side {
        secret: Option<SessionKey>,
        network: &'static str,
        suites: Vec<Suite>,
        exporter: [u8; 32],
        admitted: bool,
    }

    fn side(secret: Option<u8>) -> Side {
        Side {
            secret: secret.map(|byte| SessionKey(Zeroizing::new([byte; 32]))),
            network: "net",
            suites: vec![Suite::Plain, Suite::Aes256Gcm, Suite::ChaCha20Poly1305],
            exporter: [9; 32],
            admitted: false,
        }
    }

    fn start(side: &Side, role: Role) -> Box<Handshake> {
        let (me, them) = if role == Role::Dialler { (1, 2) } else { (2, 1) };
        let offer = Offer {
            role,
            network: side.network,
            secret: side.secret.as_ref(),
            suites: &side.suites,
            sign_key: [me; 32],
            box_key: [me; 32],
            instance: 1,
            incarnation: Incarnation(1),
            name: if me == 1 { "one" } else { "two" },
            run: [me; 16],
            their_sign_key: [them; 32],
            exporter: side.exporter,
            observed: None,
            admitted: side.admitted,
        };
        Box::new(Handshake::new(&offer, &mut ChaCha20Rng::from_seed([me; 32])))
    }

    /// Runs both sides; `change` sits on the way of the dialler's Hello.
    fn run(a: &Side, b: &Side, change: impl Fn(&mut Hello)) -> Result<(Proven, Proven), Refusal> {
        let mut ends = [Some(start(a, Role::Dialler)), Some(start(b, Role::Acceptor))];
        let mut hello = ends[0].as_ref().unwrap().mine.clone();
        change(&mut hello);
        let mut wire = vec![(1, Message::Hello(hello)), (0, Message::Hello(ends[1].as_ref().unwrap().mine.clone()))];
        let mut proven = [None, None];
        while !wire.is_empty() {
            let (to, message) = wire.remove(0);
            let bytes = message.encode();
            let end = ends[to].as_mut().expect("nothing comes after the proof");
            let replies = match message {
                Message::Hello(hello) => end.handle_hello(hello, &bytes)?,
                Message::Pake(pake) => end.handle_pake(&pake)?,
                Message::Confirm(confirm) => {
                    let (reply, outcome) = ends[to].take().unwrap().handle_confirm(&confirm)?;
                    proven[to] = Some(outcome);
                    reply.into_iter().collect()
                }
                other => panic!("not of a handshake: {other:?}"),
            };
            wire.extend(replies.into_iter().map(|reply| (1 - to, reply)));
        }
        match proven {
            [Some(a), Some(b)] => Ok((a, b)),
            _ => Err(Refusal::both(RefuseCode::Other, "the two wait for each other until the handshake is late")),
        }
    }

    fn admitted(secret: u8) -> Side {
        Side { admitted: true, ..side(Some(secret)) }
    }

    #[test]
    fn ends_that_hold_each_other_for_admitted_need_no_common_secret() {
        let (a, b) = run(&admitted(1), &admitted(2), |_| ()).unwrap();
        assert_eq!((*a.send.0, *a.chain.0), (*b.receive.0, *b.chain.0));
        assert!(!a.by_secret && !b.by_secret);
    }

    #[test]
    fn if_only_one_end_holds_the_other_for_admitted_the_secret_decides() {
        for (a, b) in [(admitted(1), side(Some(1))), (side(Some(1)), admitted(1))] {
            let (at_a, at_b) = run(&a, &b, |_| ()).unwrap();
            assert_eq!((*at_a.send.0, *at_a.chain.0), (*at_b.receive.0, *at_b.chain.0));
            assert!(at_a.by_secret && at_b.by_secret);
        }
        for (a, b) in [(admitted(1), side(Some(2))), (side(Some(1)), admitted(2))] {
            assert!(run(&a, &b, |_| ()).unwrap_err().here.contains("another secret"));
        }
    }

    #[test]
    fn a_claim_to_hold_the_other_for_admitted_does_not_save_the_proof() {
        // A stranger says so in its Hello, and leaves its message out.
        let claim = |hello: &mut Hello| {
            hello.admitted = true;
            hello.spake = None;
        };
        let mut acceptor = start(&side(Some(1)), Role::Acceptor);
        let mut hello = start(&side(Some(2)), Role::Dialler).mine.clone();
        claim(&mut hello);
        let bytes = Message::Hello(hello.clone()).encode();
        assert_eq!(acceptor.handle_hello(hello, &bytes), Ok(vec![]));
        assert!(acceptor.peer().is_none(), "nothing is known of it before its message came");
        let refusal = acceptor.handle_confirm(&Confirm { mac: [0; 32] }).unwrap_err();
        assert!(refusal.here.contains("before its Hello"), "{refusal:?}");
        // Nor does taking the claim back, or making it for another, pass unnoticed.
        assert!(run(&admitted(1), &admitted(1), |hello| hello.admitted = false).is_err());
        assert!(run(&side(Some(1)), &admitted(1), |hello| hello.admitted = true).is_err());
    }

    #[test]
    fn both_ends_get_the_same_keys_in_opposite_directions() {
        for secret in [None, Some(5)] {
            let (a, b) = run(&side(secret), &side(secret), |_| ()).unwrap();
            assert_eq!(*a.send.0, *b.receive.0);
            assert_eq!(*a.receive.0, *b.send.0);
            assert_ne!(*a.send.0, *a.receive.0);
            assert_eq!(*a.chain.0, *b.chain.0);
            assert_eq!((a.local_index, a.remote_index), (b.remote_index, b.local_index));
            assert_eq!(a.suite, if secret.is_some() { Suite::Aes256Gcm } else { Suite::Plain });
            assert_eq!(a.suite, b.suite);
        }
    }

    #[test]
    fn each_mismatch_is_refused_with_a_line_that_names_it() {
        let other_net = Side { network: "other", ..side(Some(1)) };
        let only_nacl = Side { suites: vec![Suite::Nacl], ..side(Some(1)) };
        let cases = [
            (side(Some(1)), side(Some(2)), "another secret"),
            (side(Some(1)), side(None), "has a secret and this one has none"),
            (side(None), side(Some(1)), "has no secret and this one has one"),
            (side(Some(1)), other_net, "network `net`, this one in `other`"),
            (side(Some(1)), only_nacl, "ciphers aes-256-gcm, chacha20-poly1305, this one nacl"),
        ];
        for (a, b, text) in cases {
            let refusal = run(&a, &b, |_| ()).unwrap_err();
            assert!(refusal.here.contains(text), "{text}: {refusal:?}");
            assert!(refusal.here.contains("`one`") && refusal.there.contains("`two`"), "{refusal:?}");
            assert_eq!(refusal.code, RefuseCode::Settings);
        }
    }

    #[test]
    fn another_version_is_refused() {
        let refusal = run(&side(None), &side(None), |hello| {
            hello.version_min = 7;
            hello.version_max = 9;
        });
        assert!(refusal.unwrap_err().here.contains("speaks versions 7 to 9"));
    }

    #[test]
    fn two_exporters_mean_somebody_in_the_middle() {
        for secret in [None, Some(1)] {
            let middle = Side { exporter: [8; 32], ..side(secret) };
            assert!(run(&side(secret), &middle, |_| ()).is_err());
        }
    }

    #[test]
    fn a_changed_hello_is_noticed_so_nothing_can_be_downgraded() {
        for secret in [None, Some(1)] {
            assert!(run(&side(secret), &side(secret), |hello| hello.suites.push(77)).is_err());
            assert!(run(&side(secret), &side(secret), |hello| hello.index ^= 1).is_err());
            assert!(run(&side(secret), &side(secret), |hello| hello.incarnation += 1).is_err());
        }
        let stripped = run(&side(Some(1)), &side(Some(1)), |hello| hello.suites = vec![Suite::Plain.code()]);
        assert!(stripped.unwrap_err().here.contains("ciphers none"));
    }

    #[test]
    fn broken_halves_of_keys_are_refused() {
        for change in [
            (|hello: &mut Hello| hello.spake = None) as fn(&mut Hello),
            |hello| hello.spake = Some(vec![0x41; 33]),
            |hello| hello.ephemeral = None,
            |hello| hello.ephemeral = Some([0; 32]),
        ] {
            assert!(run(&side(Some(1)), &side(Some(1)), change).is_err());
        }
    }

    #[test]
    fn a_proof_cannot_be_sent_back_to_its_maker() {
        let (mut dialler, acceptor) = (start(&side(Some(1)), Role::Dialler), start(&side(Some(1)), Role::Acceptor));
        let own = dialler.handle_hello(acceptor.mine.clone(), &acceptor.hello()).unwrap();
        let [Message::Confirm(own)] = &own[..] else { panic!("expected a Confirm, got {own:?}") };
        assert!(dialler.handle_confirm(own).is_err());
    }
}
