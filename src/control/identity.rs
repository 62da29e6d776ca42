//! The keys of this peer: Ed25519 for signing, X25519 for `crypto_box`.

use aws_lc_rs::agreement;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use mesh_proto::id::PeerId;

/// Real keys, as [`mesh_proto::control::Identity`] wants them.
pub struct Identity {
    sign: Ed25519KeyPair,
    sign_public: [u8; 32],
    box_public: [u8; 32],
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("peer", &self.peer()).finish_non_exhaustive()
    }
}

impl Identity {
    /// The key pairs of two secrets, as the data directory keeps them.
    ///
    /// # Errors
    /// If the crypto library refuses the secrets.
    pub fn new(sign_seed: &[u8; 32], box_secret: &[u8; 32]) -> anyhow::Result<Self> {
        let refused = |what: &str| anyhow::anyhow!("the {what} key in the data directory is unusable");
        let sign = Ed25519KeyPair::from_seed_unchecked(sign_seed).map_err(|_| refused("signing"))?;
        let sign_public = sign.public_key().as_ref().try_into().map_err(|_| refused("signing"))?;
        let boxing =
            agreement::PrivateKey::from_private_key(&agreement::X25519, box_secret).map_err(|_| refused("box"))?;
        let box_public =
            boxing.compute_public_key().map_err(|_| refused("box"))?.as_ref().try_into().map_err(|_| refused("box"))?;
        Ok(Self { sign, sign_public, box_public })
    }

    /// The id of this peer.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        PeerId::of_keys(&self.sign_public, &self.box_public)
    }
}

impl mesh_proto::control::Identity for Identity {
    fn sign_key(&self) -> [u8; 32] {
        self.sign_public
    }

    fn box_key(&self) -> [u8; 32] {
        self.box_public
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.sign.sign(message).as_ref());
        signature
    }

    fn verify(&self, sign_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        UnparsedPublicKey::new(&ED25519, sign_key).verify(message, signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::control::Identity as _;

    use super::*;

    /// RFC 8032 section 7.1, test 1.
    #[test]
    fn the_signing_key_is_that_of_the_rfc() {
        let hex = |text: &str| -> [u8; 32] {
            let bytes: Vec<u8> =
                (0..64).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal")).collect();
            bytes.try_into().expect("32 bytes")
        };
        let identity =
            Identity::new(&hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"), &[7; 32]);
        let identity = identity.expect("usable");
        assert_eq!(identity.sign_key(), hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"));
    }

    #[test]
    fn a_signature_holds_for_its_message_and_key_only() {
        let (one, two) = (Identity::new(&[1; 32], &[2; 32]), Identity::new(&[3; 32], &[4; 32]));
        let (one, two) = (one.expect("usable"), two.expect("usable"));
        let mut signature = one.sign(b"record");
        assert!(two.verify(&one.sign_key(), b"record", &signature));
        assert!(!two.verify(&one.sign_key(), b"other", &signature));
        assert!(!two.verify(&two.sign_key(), b"record", &signature));
        signature[63] ^= 1;
        assert!(!two.verify(&one.sign_key(), b"record", &signature));
        assert!(!two.verify(&[0xff; 32], b"record", &signature), "not a point: no panic");
        assert_ne!(one.peer(), two.peer());
    }
}
