//! Sealing and opening of datagrams, and the types that make "unsealed" impossible.
//!
//! ```text
//!  datagram  │ RELAY, if relayed │ SLEEVE header │ records ………… │ tag │
//!            └── 28 ─────────────┴── 16 ─────────┴──────────────┴ 16 ─┘
//!      SealKey::seal ─► Sealed ─┬─► Sealed::send ─► Sink::datagram
//!                               └─► Train ────────► Sink::datagrams
//! ```
//!
//! A [`Sealed`] is made nowhere else, and user records reach the [`Sink`] nowhere else
//! (sleeve S5). [`Keys::new`] makes no plain key where the network has a secret.
//!
//! Nonces: the 12 bytes of AES-256-GCM and ChaCha20-Poly1305 are four zeros and the counter; the
//! 24 bytes of NaCl's secretbox, which knows no associated data, are the whole header and eight
//! zeros, so that a changed header does not open there either.

use core::fmt;
use core::net::SocketAddr;

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use crypto_secretbox::{AeadInPlace, Key, KeyInit, XSalsa20Poly1305};

use super::Sink;
use crate::handover::{SessionKey, SessionKeys, Suite};
use crate::wire::datagram::{RELAY_HEADER, RelayHeader, SLEEVE_HEADER, SleeveHeader, TAG};

/// Where the records start in a datagram that is to be sealed.
pub(crate) const fn records_at(relayed: bool) -> usize {
    SLEEVE_HEADER + if relayed { RELAY_HEADER } else { 0 }
}
/// Datagrams that one key may protect. AES-GCM's bounds hold far beyond it with margin.
pub(crate) const DATAGRAMS_MAX: u64 = 1 << 32;

/// Whether sessions without protection are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The network has a secret: all user frames are sealed.
    Sealed,
    /// The network has none.
    Open,
}

/// Bytes that a suite adds.
pub(crate) const fn tag_len(suite: Suite) -> usize {
    match suite {
        Suite::Plain => 0,
        _ => TAG,
    }
}

enum Aead {
    Plain,
    Fast(Box<LessSafeKey>),
    Nacl(Box<XSalsa20Poly1305>),
}

impl Aead {
    fn new(suite: Suite, key: &SessionKey) -> Option<Self> {
        let fast = |algorithm| {
            let key = UnboundKey::new(algorithm, &key.0[..]).ok()?;
            Some(Self::Fast(Box::new(LessSafeKey::new(key))))
        };
        match suite {
            Suite::Plain => Some(Self::Plain),
            Suite::Aes256Gcm => fast(&AES_256_GCM),
            Suite::ChaCha20Poly1305 => fast(&CHACHA20_POLY1305),
            Suite::Nacl => {
                let key = Key::from_slice(&key.0[..]);
                Some(Self::Nacl(Box::new(XSalsa20Poly1305::new(key))))
            }
        }
    }

    fn seal(&self, header: &SleeveHeader, records: &mut [u8]) -> Option<[u8; TAG]> {
        match self {
            Self::Plain => None,
            Self::Fast(key) => {
                let aad = Aad::from(header.bytes());
                let tag = key.seal_in_place_separate_tag(nonce(header.counter), aad, records).ok()?;
                tag.as_ref().try_into().ok()
            }
            Self::Nacl(key) => {
                let nonce = nacl_nonce(header);
                let tag = key.encrypt_in_place_detached(&nonce.into(), &[], records);
                tag.ok().map(Into::into)
            }
        }
    }

    fn open<'a>(&self, header: &SleeveHeader, sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
        match self {
            Self::Plain => Some(sealed),
            Self::Fast(key) => {
                let aad = Aad::from(header.bytes());
                key.open_in_place(nonce(header.counter), aad, sealed).ok()
            }
            Self::Nacl(key) => {
                let (records, tag) = sealed.split_last_chunk_mut::<TAG>()?;
                let nonce = nacl_nonce(header);
                let tag = (&*tag).into();
                key.decrypt_in_place_detached(&nonce.into(), &[], records, tag).ok()?;
                Some(records)
            }
        }
    }
}

impl fmt::Debug for Aead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Aead(…)")
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn nacl_nonce(header: &SleeveHeader) -> [u8; 24] {
    let mut nonce = [0; 24];
    nonce[..SLEEVE_HEADER].copy_from_slice(&header.bytes());
    nonce
}

/// A datagram that was sealed, or that may be plain because its network has no secret.
#[derive(Debug)]
pub(crate) struct Sealed<'a>(&'a [u8]);

impl Sealed<'_> {
    /// Hands it to the socket.
    pub(crate) fn send(self, to: SocketAddr, sink: &mut impl Sink) {
        sink.datagram(to, self.0);
    }

    /// Its bytes.
    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }
}

/// One key with what it needs for sending.
#[derive(Debug)]
pub(crate) struct SealKey {
    aead: Aead,
    plain: bool,
    receiver: u32,
    counter: u64,
}

impl SealKey {
    /// Datagrams sealed so far.
    pub(crate) const fn used(&self) -> u64 {
        self.counter
    }

    /// Seals the `records` bytes at [`records_at`] in place. `None` if the key has protected all
    /// that it may.
    pub(crate) fn seal<'a>(
        &mut self,
        datagram: &'a mut [u8],
        records: usize,
        relay: Option<&RelayHeader>,
    ) -> Option<Sealed<'a>> {
        if self.counter >= DATAGRAMS_MAX {
            return None;
        }
        let header = SleeveHeader { receiver: self.receiver, counter: self.counter };
        // Before the seal: whatever happens below, this number is never used again.
        self.counter += 1;
        let start = records_at(relay.is_some());
        let mut end = start + records;
        let body = datagram.get_mut(start..end)?;
        if !self.plain {
            let tag = self.aead.seal(&header, body)?;
            datagram.get_mut(end..end + TAG)?.copy_from_slice(&tag);
            end += TAG;
        }
        datagram[start - SLEEVE_HEADER..start].copy_from_slice(&header.bytes());
        if let Some(relay) = relay {
            datagram[..RELAY_HEADER].copy_from_slice(&relay.bytes());
        }
        Some(Sealed(&datagram[..end]))
    }
}

/// One key for opening.
#[derive(Debug)]
pub(crate) struct OpenKey(Aead);

impl OpenKey {
    /// Opens, in place, what follows the header; gives the records.
    pub(crate) fn open<'a>(&self, header: &SleeveHeader, sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.0.open(header, sealed)
    }
}

/// Both directions of one generation.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) seal: SealKey,
    pub(crate) open: OpenKey,
}

impl Keys {
    /// `None` if the policy forbids the suite.
    pub(crate) fn new(keys: &SessionKeys, policy: Policy) -> Option<Self> {
        let plain = keys.suite == Suite::Plain;
        if plain && policy == Policy::Sealed {
            return None;
        }
        Some(Self {
            seal: SealKey { aead: Aead::new(keys.suite, &keys.send)?, plain, receiver: keys.remote_index, counter: 0 },
            open: OpenKey(Aead::new(keys.suite, &keys.receive)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Incarnation, PeerId};
    use crate::wire::datagram::{Datagram, ShortId};
    use zeroize::Zeroizing;

    const SEALING: [Suite; 3] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305, Suite::Nacl];

    fn keys(suite: Suite, policy: Policy) -> Option<Keys> {
        let key = SessionKey(Zeroizing::new([7; 32]));
        let keys = SessionKeys {
            peer: PeerId([1; 16]),
            incarnation: Incarnation(1),
            suite,
            local_index: 5,
            remote_index: 5,
            send: key.clone(),
            receive: key,
            initiator: true,
        };
        Keys::new(&keys, policy)
    }

    fn sealed(keys: &mut Keys, text: &[u8]) -> Vec<u8> {
        let at = records_at(false);
        let mut buffer = vec![0; at + text.len() + TAG];
        buffer[at..at + text.len()].copy_from_slice(text);
        let sealed = keys.seal.seal(&mut buffer, text.len(), None).unwrap();
        sealed.0.to_vec()
    }

    fn open(keys: &Keys, datagram: &[u8]) -> Option<Vec<u8>> {
        let Ok(Datagram::Sleeve(header)) = Datagram::parse(datagram) else {
            return None;
        };
        let mut body = datagram[SLEEVE_HEADER..].to_vec();
        keys.open.open(&header, &mut body).map(|text| text.to_vec())
    }

    #[test]
    fn what_was_sealed_opens_and_shows_no_plain_text() {
        for suite in SEALING {
            let mut keys = keys(suite, Policy::Sealed).unwrap();
            let text = [0x5a; 100];
            let datagram = sealed(&mut keys, &text);
            assert_eq!(datagram.len(), SLEEVE_HEADER + text.len() + TAG);
            assert!(!datagram.windows(8).any(|w| w == &text[..8]));
            assert_eq!(open(&keys, &datagram).as_deref(), Some(&text[..]));
        }
    }

    #[test]
    fn every_flipped_bit_of_header_text_and_tag_keeps_it_shut() {
        for suite in SEALING {
            let mut keys = keys(suite, Policy::Sealed).unwrap();
            let datagram = sealed(&mut keys, b"fourteen bytes");
            for bit in 0..datagram.len() * 8 {
                let mut bad = datagram.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(open(&keys, &bad), None, "{suite:?} bit {bit}");
            }
        }
    }

    #[test]
    fn a_network_with_a_secret_has_no_plain_keys() {
        assert!(keys(Suite::Plain, Policy::Sealed).is_none());
        let mut open_network = keys(Suite::Plain, Policy::Open).unwrap();
        let datagram = sealed(&mut open_network, b"hello");
        assert_eq!(datagram.len(), SLEEVE_HEADER + 5);
        assert_eq!(open(&open_network, &datagram).as_deref(), Some(&b"hello"[..]));
    }

    #[test]
    fn a_relay_header_goes_in_front_and_outside_of_the_seal() {
        let mut keys = keys(Suite::Aes256Gcm, Policy::Sealed).unwrap();
        let relay = RelayHeader { hops: 16, destination: ShortId([1; 12]), source: ShortId([2; 12]) };
        let mut buffer = vec![0; records_at(true) + 5 + TAG];
        let datagram = keys.seal.seal(&mut buffer, 5, Some(&relay)).unwrap().0;
        assert_eq!(Datagram::parse(datagram), Ok(Datagram::Relay(relay)));
        assert!(open(&keys, &datagram[RELAY_HEADER..]).is_some());
    }

    #[test]
    fn a_key_that_has_protected_enough_seals_no_more() {
        let mut keys = keys(Suite::Aes256Gcm, Policy::Sealed).unwrap();
        keys.seal.counter = DATAGRAMS_MAX - 1;
        let mut buffer = vec![0; records_at(false) + TAG];
        assert!(keys.seal.seal(&mut buffer, 0, None).is_some());
        assert!(keys.seal.seal(&mut buffer, 0, None).is_none());
    }
}
