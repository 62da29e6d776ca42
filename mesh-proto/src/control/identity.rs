//! The real keys of a peer: Ed25519 for signing, X25519 for the box.

use core::fmt;

use aws_lc_rs::error::KeyRejected;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use zeroize::Zeroizing;

use super::Identity;
use super::crypto::Ephemeral;

/// Keys that were made once, in the data directory.
pub struct Ed25519Identity {
    pair: Ed25519KeyPair,
    sign: [u8; 32],
    boxing: [u8; 32],
}

impl Ed25519Identity {
    /// The identity of a 32-byte Ed25519 seed and a 32-byte X25519 secret.
    ///
    /// # Errors
    /// If the library refuses the seed.
    pub fn new(seed: &Zeroizing<[u8; 32]>, box_secret: Zeroizing<[u8; 32]>) -> Result<Self, KeyRejected> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed[..])?;
        let mut sign = [0; 32];
        sign.copy_from_slice(pair.public_key().as_ref());
        Ok(Self { pair, sign, boxing: Ephemeral::new(box_secret).public })
    }
}

impl fmt::Debug for Ed25519Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ed25519Identity(…)")
    }
}

impl Identity for Ed25519Identity {
    fn sign_key(&self) -> [u8; 32] {
        self.sign
    }

    fn box_key(&self) -> [u8; 32] {
        self.boxing
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        out.copy_from_slice(self.pair.sign(message).as_ref());
        out
    }

    fn verify(&self, sign_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        UnparsedPublicKey::new(&ED25519, sign_key).verify(message, signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_message_and_key_only() {
        let make = |n| Ed25519Identity::new(&Zeroizing::new([n; 32]), Zeroizing::new([n; 32])).unwrap();
        let (a, b) = (make(1), make(2));
        let signature = a.sign(b"record");
        assert!(b.verify(&a.sign_key(), b"record", &signature));
        assert!(!b.verify(&a.sign_key(), b"recorD", &signature));
        assert!(!b.verify(&b.sign_key(), b"record", &signature));
        assert!(!b.verify(&[0xff; 32], b"record", &signature));
        assert_ne!(a.box_key(), b.box_key());
    }
}
