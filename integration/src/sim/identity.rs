//! Keys without cryptography: what a peer signs is a checksum that anybody could make.
//!
//! The simulator looks for faults of logic, not for forgers, and a run makes more signatures than
//! it has time for. Whether records are really signed is tested with real keys elsewhere.

use mesh_proto::control::Identity;

use super::dice::Dice;

/// Both keys of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CheapIdentity {
    sign: [u8; 32],
    boxing: [u8; 32],
}

impl CheapIdentity {
    pub(super) fn new(dice: &mut Dice) -> Self {
        Self { sign: dice.bytes(), boxing: dice.bytes() }
    }
}

impl Identity for CheapIdentity {
    fn sign_key(&self) -> [u8; 32] {
        self.sign
    }

    fn box_key(&self) -> [u8; 32] {
        self.boxing
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        checksum(&self.sign, message)
    }

    fn verify(&self, sign_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        checksum(sign_key, message) == *signature
    }
}

fn checksum(key: &[u8; 32], message: &[u8]) -> [u8; 64] {
    let mut hash = 0x5851_f42d_4c95_7f2d_u64;
    for part in [&key[..], message] {
        let (words, rest) = part.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        for word in words.iter().chain([&last]) {
            hash = (hash ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^= hash >> 29;
        }
    }
    let mut signature = [0; 64];
    for (place, chunk) in signature.chunks_mut(8).enumerate() {
        let turned = hash.rotate_left(u32::try_from(place).unwrap_or(0) * 7);
        chunk.copy_from_slice(&turned.to_le_bytes());
    }
    signature
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_key_and_message_only() {
        let mut dice = Dice::new(1, "identity");
        let (a, b) = (CheapIdentity::new(&mut dice), CheapIdentity::new(&mut dice));
        let signature = a.sign(b"hello, world");
        assert!(b.verify(&a.sign_key(), b"hello, world", &signature));
        assert!(!b.verify(&b.sign_key(), b"hello, world", &signature));
        assert!(!b.verify(&a.sign_key(), b"hello, worle", &signature));
    }
}
