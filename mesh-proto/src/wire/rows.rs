//! Tables of what is known of each peer, packed: their senders have thousands of rows.
//!
//! ```text
//!   row   id 16 │ three numbers of 8                      no separator, no count
//! ```

use crate::id::{PEER_ID_LEN, PeerId};

use super::cbor::WireError;

/// Length of a row, in bytes.
pub(super) const ROW_LEN: usize = PEER_ID_LEN + 24;

/// The bytes of these rows.
pub(super) fn pack(rows: impl Iterator<Item = (PeerId, [u64; 3])>) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.size_hint().0 * ROW_LEN);
    for (peer, numbers) in rows {
        out.extend_from_slice(&peer.0);
        for number in numbers {
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
    out
}

/// The rows of these bytes.
pub(super) fn unpack(bytes: &[u8]) -> impl Iterator<Item = (PeerId, [u64; 3])> + '_ {
    bytes.chunks_exact(ROW_LEN).map(|row| {
        let (id, numbers) = row.split_at(PEER_ID_LEN);
        let mut peer = [0; PEER_ID_LEN];
        peer.copy_from_slice(id);
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&numbers[at * 8..][..8]);
            u64::from_be_bytes(bytes)
        };
        (PeerId(peer), [0, 1, 2].map(number))
    })
}

/// Says if the last row is cut off, in the message of this name.
pub(super) fn whole_rows(message: &'static str, bytes: &[u8]) -> Result<(), WireError> {
    if bytes.len().is_multiple_of(ROW_LEN) {
        return Ok(());
    }
    Err(WireError::malformed(message, "its last row is cut off"))
}
