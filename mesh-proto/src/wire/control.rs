//! Messages on a connection between two peers, version 1 (frozen: fields are only ever added).
//!
//! ```text
//!  message      0       1
//!             +-------+---------------------------------------------+
//!             | type  | CBOR map of numbered fields                 |
//!             +-------+---------------------------------------------+
//!
//!  Hello        1  { 0 version_min, 1 version_max, 2 network, 3 secret?, 4 [suites],
//!                    5 box key, 6 instance, 7 incarnation, 8 name, 9 run, 10 session index,
//!                    ? 11 ephemeral key, ? 12 SPAKE2 message, ? 13 "I see you at",
//!                    ? 14 you are admitted }
//!  Confirm      2  { 0 mac }
//!  Refuse       3  { 0 code, 1 reason, ? 2 your newest record }
//!  Rekey        4  { 0 session index, ? 1 ephemeral key }
//!  RekeyAnswer  5  { 0 proposal's index, 1 session index, ? 2 ephemeral key }
//!  Pake         6  } wire::trust
//!  …            9  }
//!  Records     16  } wire::gossip
//!  …           20  }
//!  App         32  { 0 origin, 1 incarnation, 2 sequence, ? 3 destination, 4 hops left, 5 payload,
//!                    ? 6 signature }
//! ```
//!
//! Unknown fields are skipped and messages of unknown types are ignored, so that a later version
//! can say more to those who understand it (control C2).

use minicbor::{Decode, Encode};

use super::cbor::{Endpoint, WireError, bounded, printable, put, whole};
use super::gossip::{Buckets, Digest, Records, Versions, Want};
use super::trust::{Admit, PAKE_MAX, Pake, Revocations, Revoked};
use crate::control::MESSAGE_MAX;
use crate::id::PeerId;

/// The version of the control protocol that this module writes.
pub const VERSION: u16 = 1;

/// Longest name of a network or a peer, in bytes.
pub const NAME_MAX: usize = 64;

/// Longest reason of a refusal, in bytes.
pub const REASON_MAX: usize = 512;

/// Most suites that are offered.
pub const SUITES_MAX: usize = 16;

/// First message of both ends.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// Lowest version that the sender speaks.
    #[n(0)]
    pub version_min: u16,
    /// Highest version that the sender speaks.
    #[n(1)]
    pub version_max: u16,
    /// Name of the network.
    #[n(2)]
    pub network: String,
    /// Whether the network has a secret.
    #[n(3)]
    pub secret: bool,
    /// Suites, best first ([`crate::handover::Suite::code`]).
    #[n(4)]
    pub suites: Vec<u8>,
    /// X25519 key; together with the key that TLS has proven it makes the peer id.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub box_key: [u8; 32],
    /// Instance of the data directory.
    #[n(6)]
    pub instance: u64,
    /// Incarnation of the sender.
    #[n(7)]
    pub incarnation: u64,
    /// Name of the sender.
    #[n(8)]
    pub name: String,
    /// Random number of this run of the router: tells a connection to oneself from a clone.
    #[cbor(n(9), with = "minicbor::bytes")]
    pub run: [u8; 16],
    /// What the other end shall write into the header of sleeve datagrams to the sender.
    #[n(10)]
    pub index: u32,
    /// Ephemeral X25519 key for the sleeve keys; absent without a secret.
    #[cbor(n(11), with = "minicbor::bytes")]
    pub ephemeral: Option<[u8; 32]>,
    /// SPAKE2 message; absent without a secret, and if the receiver is admitted.
    #[cbor(n(12), with = "minicbor::bytes")]
    pub spake: Option<Vec<u8>>,
    /// The address at which the sender sees the receiver.
    #[n(13)]
    pub observed: Option<Endpoint>,
    /// Whether the sender holds the receiver's TLS key for admitted.
    #[cbor(n(14), default)]
    pub admitted: bool,
}

/// Proof of the same secret on the same connection.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Confirm {
    /// HMAC-SHA-256 over the sender's role and the hash of both Hellos.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub mac: [u8; 32],
}

/// Why there will be no link; the connection closes after it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Refuse {
    /// What kind of refusal ([`RefuseCode`]).
    #[n(0)]
    pub code: u8,
    /// One line for the receiver's operator.
    #[n(1)]
    pub reason: String,
    /// The receiver's own record, where the sender knows a newer incarnation of it.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub record: Option<Vec<u8>>,
}

/// The refusals that a machine treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefuseCode {
    /// Settings differ; an operator must act.
    Settings,
    /// The receiver knows a newer incarnation of the sender.
    Stale,
    /// The receiver has as many links as it wants, and the sender is reachable without this one.
    Full,
    /// Too many failed attempts.
    TooFast,
    /// The receiver was revoked.
    Revoked,
    /// Another kind, from a later version.
    Other,
}

impl RefuseCode {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Other => 0,
            Self::Settings => 1,
            Self::Stale => 2,
            Self::Full => 3,
            Self::TooFast => 4,
            Self::Revoked => 5,
        }
    }

    /// The kind of a number on the wire.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Settings,
            2 => Self::Stale,
            3 => Self::Full,
            4 => Self::TooFast,
            5 => Self::Revoked,
            _ => Self::Other,
        }
    }
}

/// Proposes a new generation of sleeve keys.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Rekey {
    /// What the answerer shall write into the header under the new keys.
    #[n(0)]
    pub index: u32,
    /// New ephemeral key.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub ephemeral: Option<[u8; 32]>,
}

/// Accepts a [`Rekey`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RekeyAnswer {
    /// Index of the proposal that is answered.
    #[n(0)]
    pub proposal: u32,
    /// What the proposer shall write into the header under the new keys.
    #[n(1)]
    pub index: u32,
    /// New ephemeral key.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub ephemeral: Option<[u8; 32]>,
}

/// A message of an application, to one peer or to all.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct App {
    /// Who sent it first.
    #[n(0)]
    pub origin: PeerId,
    /// In which incarnation.
    #[n(1)]
    pub incarnation: u64,
    /// Its number among the origin's messages of this incarnation.
    #[n(2)]
    pub seq: u64,
    /// For whom; absent: for everybody.
    #[n(3)]
    pub to: Option<PeerId>,
    /// How many times it may still be passed on.
    #[n(4)]
    pub hops: u8,
    /// The application's bytes.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub payload: Vec<u8>,
    /// The origin's signature over [`App::signed`]; absent where the connection itself proves
    /// the origin.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub signature: Option<[u8; 64]>,
}

impl App {
    /// What the origin signs: everything but the hops, which relays change.
    #[must_use]
    pub fn signed(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.payload.len() + 80);
        bytes.extend_from_slice(b"weft app 1");
        bytes.extend_from_slice(&self.origin.0);
        bytes.extend_from_slice(&self.incarnation.to_be_bytes());
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        match self.to {
            None => bytes.push(0),
            Some(to) => {
                bytes.push(1);
                bytes.extend_from_slice(&to.0);
            }
        }
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// Any message on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Confirm`].
    Confirm(Confirm),
    /// See [`Refuse`].
    Refuse(Refuse),
    /// See [`Rekey`].
    Rekey(Rekey),
    /// See [`RekeyAnswer`].
    RekeyAnswer(RekeyAnswer),
    /// See [`Pake`].
    Pake(Pake),
    /// See [`Admit`].
    Admit(Admit),
    /// See [`Revoked`].
    Revoked(Revoked),
    /// See [`Revocations`].
    Revocations(Revocations),
    /// See [`Records`].
    Records(Records),
    /// See [`Digest`].
    Digest(Digest),
    /// See [`Buckets`].
    Buckets(Buckets),
    /// See [`Versions`].
    Versions(Versions),
    /// See [`Want`].
    Want(Want),
    /// See [`App`].
    App(App),
}

impl Message {
    /// The bytes of the message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.kind()];
        match self {
            Self::Hello(body) => put(&mut out, body),
            Self::Confirm(body) => put(&mut out, body),
            Self::Refuse(body) => put(&mut out, body),
            Self::Rekey(body) => put(&mut out, body),
            Self::RekeyAnswer(body) => put(&mut out, body),
            Self::Pake(body) => put(&mut out, body),
            Self::Admit(body) => put(&mut out, body),
            Self::Revoked(body) => put(&mut out, body),
            Self::Revocations(body) => put(&mut out, body),
            Self::Records(body) => put(&mut out, body),
            Self::Digest(body) => put(&mut out, body),
            Self::Buckets(body) => put(&mut out, body),
            Self::Versions(body) => put(&mut out, body),
            Self::Want(body) => put(&mut out, body),
            Self::App(body) => put(&mut out, body),
        }
        out
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Confirm(_) => 2,
            Self::Refuse(_) => 3,
            Self::Rekey(_) => 4,
            Self::RekeyAnswer(_) => 5,
            Self::Pake(_) => 6,
            Self::Admit(_) => 7,
            Self::Revoked(_) => 8,
            Self::Revocations(_) => 9,
            Self::Records(_) => 16,
            Self::Digest(_) => 17,
            Self::Buckets(_) => 18,
            Self::Versions(_) => 19,
            Self::Want(_) => 20,
            Self::App(_) => 32,
        }
    }

    /// The message that `bytes` are; `None` if it is of a type that this version does not know.
    ///
    /// # Errors
    /// If it is empty, too long, malformed, or one of its parts is longer than its bound.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        if bytes.len() > MESSAGE_MAX {
            return Err(WireError::TooLong(bytes.len()));
        }
        let (&kind, body) = bytes.split_first().ok_or(WireError::Empty)?;
        let message = match kind {
            1 => Self::Hello(whole("Hello", body)?),
            2 => Self::Confirm(whole("Confirm", body)?),
            3 => Self::Refuse(whole("Refuse", body)?),
            4 => Self::Rekey(whole("Rekey", body)?),
            5 => Self::RekeyAnswer(whole("RekeyAnswer", body)?),
            6 => Self::Pake(whole("Pake", body)?),
            7 => Self::Admit(whole("Admit", body)?),
            8 => Self::Revoked(whole("Revoked", body)?),
            9 => Self::Revocations(whole("Revocations", body)?),
            16 => Self::Records(whole("Records", body)?),
            17 => Self::Digest(whole("Digest", body)?),
            18 => Self::Buckets(whole("Buckets", body)?),
            19 => Self::Versions(whole("Versions", body)?),
            20 => Self::Want(whole("Want", body)?),
            32 => Self::App(whole("App", body)?),
            _ => return Ok(None),
        };
        message.check()?;
        Ok(Some(message))
    }

    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Hello(hello) => {
                printable("the network's name", &hello.network, NAME_MAX)?;
                printable("the peer's name", &hello.name, NAME_MAX)?;
                bounded("the list of suites", hello.suites.len(), SUITES_MAX)?;
                bounded("the SPAKE2 message", hello.spake.as_ref().map_or(0, Vec::len), PAKE_MAX)
            }
            Self::Refuse(refuse) => printable("the reason", &refuse.reason, REASON_MAX),
            Self::Pake(pake) => pake.check(),
            Self::Revocations(revocations) => revocations.check(),
            Self::Buckets(buckets) => buckets.check(),
            Self::Versions(versions) => versions.check(),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            version_min: 1,
            version_max: 1,
            network: "net".into(),
            secret: true,
            suites: vec![1, 2],
            box_key: [7; 32],
            instance: 9,
            incarnation: 3,
            name: "host1".into(),
            run: [1; 16],
            index: 77,
            ephemeral: Some([4; 32]),
            spake: Some(vec![5; 33]),
            observed: Some(Endpoint("[fd00::1]:6783".parse().unwrap())),
            admitted: false,
        }
    }

    #[test]
    fn a_hello_reads_back_from_its_bytes() {
        let message = Message::Hello(hello());
        assert_eq!(Message::decode(&message.encode()), Ok(Some(message)));
    }

    #[test]
    fn an_unknown_type_is_ignored_and_an_unknown_field_is_skipped() {
        assert_eq!(Message::decode(&[200, 1, 2, 3]), Ok(None));
        // {0: mac, 99: "later"}
        let mut bytes = vec![2, 0xa2, 0x00, 0x58, 32];
        bytes.extend_from_slice(&[9; 32]);
        bytes.extend_from_slice(&[0x18, 99, 0x65]);
        bytes.extend_from_slice(b"later");
        let confirm = Message::Confirm(Confirm { mac: [9; 32] });
        assert_eq!(Message::decode(&bytes), Ok(Some(confirm)));
    }

    #[test]
    fn a_name_with_control_characters_is_refused() {
        let mut bad = hello();
        bad.name = "a\u{1b}[2Jb".into();
        assert!(Message::decode(&Message::Hello(bad).encode()).is_err());
    }

    #[test]
    fn bytes_after_the_end_are_refused() {
        let mut bytes = Message::Confirm(Confirm { mac: [9; 32] }).encode();
        bytes.push(0);
        assert!(Message::decode(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn flipped_bytes_of_a_true_message_never_panic(at in 0usize..300, to in any::<u8>()) {
            let mut bytes = Message::Hello(hello()).encode();
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn app_messages_read_back(
            origin in any::<[u8; 16]>(), to in proptest::option::of(any::<[u8; 16]>()),
            seq in any::<u64>(), hops in any::<u8>(),
            payload in proptest::collection::vec(any::<u8>(), 0..200), signed in any::<bool>(),
        ) {
            let message = Message::App(App {
                origin: PeerId(origin), incarnation: 1, seq, to: to.map(PeerId), hops, payload,
                signature: signed.then_some([3; 64]),
            });
            prop_assert_eq!(Message::decode(&message.encode()), Ok(Some(message)));
        }
    }
}
