//! The few primitives of the control protocol, in its own words: hash, derive, prove, agree.
//!
//! All are aws-lc's; nothing is invented here. The seeds of ephemeral keys come from the node's
//! generator, so that a simulated run repeats byte for byte.

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::{hkdf, hmac};
use zeroize::Zeroizing;

use crate::handover::SessionKey;

/// SHA-256 over parts, each preceded by its length, so that no two lists of parts hash alike.
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// The length of a derived key, as aws-lc asks for it.
struct Len32;

impl hkdf::KeyType for Len32 {
    fn len(&self) -> usize {
        32
    }
}

/// HKDF-SHA-256, extracted once; expands to as many keys as there are names.
pub(crate) struct Deriver(hkdf::Prk);

impl Deriver {
    /// Mixes the parts of the input key material under a salt.
    pub(crate) fn new(salt: &[u8], parts: &[&[u8]]) -> Self {
        let mut ikm = Zeroizing::new(Vec::with_capacity(128));
        for part in parts {
            ikm.extend_from_slice(part);
        }
        Self(hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&ikm))
    }

    /// The key of that name.
    pub(crate) fn key(&self, name: &[u8]) -> SessionKey {
        let mut key = Zeroizing::new([0; 32]);
        self.0
            .expand(&[name], Len32)
            .and_then(|okm| okm.fill(&mut key[..]))
            .expect("32 bytes are less than HKDF's limit of 255 blocks");
        SessionKey(key)
    }
}

/// HMAC-SHA-256 over a label and the hash of a transcript.
pub(crate) fn prove(key: &SessionKey, label: &[u8], transcript: &[u8; 32]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key.0[..]), &[label, transcript].concat());
    let mut out = [0; 32];
    out.copy_from_slice(tag.as_ref());
    out
}

/// Whether `mac` is what [`prove`] gives, compared in constant time.
pub(crate) fn proven(key: &SessionKey, label: &[u8], transcript: &[u8; 32], mac: &[u8; 32]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key.0[..]);
    hmac::verify(&key, &[label, transcript].concat(), mac).is_ok()
}

/// The secret half of an ephemeral X25519 key.
pub(crate) struct Ephemeral {
    secret: Zeroizing<[u8; 32]>,
    /// The public half.
    pub(crate) public: [u8; 32],
}

impl Ephemeral {
    /// The key of 32 random bytes.
    pub(crate) fn new(secret: Zeroizing<[u8; 32]>) -> Self {
        let mut public = [0; 32];
        if let Ok(key) = PrivateKey::from_private_key(&X25519, &secret[..])
            && let Ok(half) = key.compute_public_key()
        {
            public.copy_from_slice(half.as_ref());
        }
        Self { secret, public }
    }

    /// What both ends share; `None` if the other half is no honest key (all-zero result).
    pub(crate) fn agree(&self, theirs: &[u8; 32]) -> Option<SessionKey> {
        let mine = PrivateKey::from_private_key(&X25519, &self.secret[..]).ok()?;
        agree(&mine, UnparsedPublicKey::new(&X25519, theirs), (), |shared| {
            let mut key = Zeroizing::new([0; 32]);
            if shared.len() != key.len() {
                return Err(());
            }
            key.copy_from_slice(shared);
            Ok(SessionKey(key))
        })
        .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_agree_and_a_zero_key_is_refused() {
        let (a, b) = (Ephemeral::new(Zeroizing::new([1; 32])), Ephemeral::new(Zeroizing::new([2; 32])));
        let ab = a.agree(&b.public).unwrap();
        assert_eq!(*ab.0, *b.agree(&a.public).unwrap().0);
        assert!(a.agree(&[0; 32]).is_none());
    }

    #[test]
    fn hkdf_gives_the_keys_of_rfc_5869() {
        // Appendix A.1, first 32 bytes of the output.
        let salt: Vec<u8> = (0..=0x0c).collect();
        let deriver = Deriver::new(&salt, &[&[0x0b; 11], &[0x0b; 11]]);
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let key = deriver.key(&info);
        let hex: String = key.0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf");
    }

    #[test]
    fn a_proof_holds_for_its_key_label_and_transcript_only() {
        let (key, other) = (Deriver::new(b"s", &[b"k"]).key(b"a"), Deriver::new(b"s", &[b"k"]).key(b"b"));
        let mac = prove(&key, b"label", &[1; 32]);
        assert!(proven(&key, b"label", &[1; 32], &mac));
        assert!(!proven(&other, b"label", &[1; 32], &mac));
        assert!(!proven(&key, b"lapel", &[1; 32], &mac));
        assert!(!proven(&key, b"label", &[2; 32], &mac));
    }

    #[test]
    fn lists_of_parts_that_join_alike_hash_differently() {
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
    }
}
