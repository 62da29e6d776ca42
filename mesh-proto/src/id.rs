//! Names of peers.

use core::fmt;
use core::str::FromStr;

/// Length of a [`PeerId`] in bytes.
pub const PEER_ID_LEN: usize = 16;

/// Who a peer is: the first 16 bytes of SHA-256 over its two public keys.
///
/// Written as 32 lower-case hexadecimal digits. A new data directory makes new keys, hence a
/// new id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; PEER_ID_LEN]);

impl PeerId {
    /// The id that belongs to an Ed25519 signing key and an X25519 box key (both public, 32 bytes).
    #[must_use]
    pub fn of_keys(sign: &[u8; 32], boxing: &[u8; 32]) -> Self {
        let mut both = [0; 64];
        both[..32].copy_from_slice(sign);
        both[32..].copy_from_slice(boxing);
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &both);
        let mut id = [0; PEER_ID_LEN];
        id.copy_from_slice(&digest.as_ref()[..PEER_ID_LEN]);
        Self(id)
    }

    /// The first eight digits: enough for a log line, not for a decision.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a [`PeerId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a peer id: expected 32 hexadecimal digits")]
pub struct InvalidPeerId(String);

impl FromStr for PeerId {
    type Err = InvalidPeerId;

    fn from_str(text: &str) -> Result<Self, InvalidPeerId> {
        let invalid = || InvalidPeerId(text.to_owned());
        if text.len() != 2 * PEER_ID_LEN || !text.is_ascii() {
            return Err(invalid());
        }
        let mut id = [0; PEER_ID_LEN];
        for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = core::str::from_utf8(digits).map_err(|_| invalid())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| invalid())?;
        }
        Ok(Self(id))
    }
}

/// One life of a peer: raised at every start of its router, kept in its data directory.
///
/// Of two claims by the same peer the one with the higher incarnation holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_from_its_text() {
        let id = PeerId::of_keys(&[1; 32], &[2; 32]);
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn other_text_is_refused_with_the_text_in_the_error() {
        for text in ["", "zz", "0123456789abcdef0123456789abcdeg", "é123456789abcdef0123456789abcd"] {
            let error = text.parse::<PeerId>().expect_err("not an id");
            assert!(error.to_string().contains(text));
        }
    }
}
