//! What happened, as one line of text each, and a hash over all of it.
//!
//! ```text
//!    12.345678 p07 LinkUp { peer: …
//!  seconds ──┘  └── peer    └── what
//! ```
//!
//! The hash covers every line and every datagram (time, ends, bytes), whether or not the text is
//! kept. Two runs of a seed that differ anywhere differ in it.

use core::fmt::{self, Write};

use super::clock::Time;
use super::queue::Index;

/// How much of the trace is kept as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Detail {
    /// Nothing: the hash alone.
    #[default]
    Hash,
    /// What the machines decided, faults, frames.
    Events,
    /// Each datagram too.
    Datagrams,
}

/// The trace of one run.
#[derive(Debug)]
pub(super) struct Trace {
    hash: u64,
    detail: Detail,
    text: String,
    line: String,
}

impl Trace {
    pub(super) fn new(detail: Detail) -> Self {
        Self { hash: 0x5765_6674, detail, text: String::new(), line: String::new() }
    }

    /// Records what happened at a peer.
    pub(super) fn peer(&mut self, at: Time, peer: Index, what: fmt::Arguments<'_>) {
        self.line(at, format_args!("p{peer:02} {what}"));
    }

    /// Records what happened.
    pub(super) fn line(&mut self, at: Time, what: fmt::Arguments<'_>) {
        self.line.clear();
        let (seconds, micros) = (at / 1_000_000_000, at / 1000 % 1_000_000);
        // Writing to a String cannot fail.
        let _ = writeln!(self.line, "{seconds:5}.{micros:06} {what}");
        self.hash = mix_bytes(self.hash, self.line.as_bytes());
        if self.detail >= Detail::Events {
            self.text.push_str(&self.line);
        }
    }

    /// Records a datagram that was given to the underlay.
    pub(super) fn datagram(&mut self, at: Time, from: Index, to: Index, fate: Fate, bytes: &[u8]) {
        let ends = u64::from(from) << 32 | u64::from(to) << 16 | u64::from(fate as u8);
        self.hash = mix_bytes(mix(mix(self.hash, at), ends), bytes);
        if self.detail >= Detail::Datagrams {
            let (seconds, micros) = (at / 1_000_000_000, at / 1000 % 1_000_000);
            let _ = write!(self.text, "{seconds:5}.{micros:06} p{from:02} > p{to:02} {fate:?} {} bytes ", bytes.len());
            for byte in bytes.iter().take(24) {
                let _ = write!(self.text, "{byte:02x}");
            }
            self.text.push('\n');
        }
    }

    /// The hash so far.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// The text that was kept.
    pub(super) fn into_text(self) -> String {
        self.text
    }
}

/// What the underlay does with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Fate {
    /// It will arrive.
    Sent,
    /// It will arrive twice.
    Twice,
    /// There is no way.
    Blocked,
    /// It is larger than the path carries.
    TooBig,
    /// Bad luck.
    Lost,
}

fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn mix_bytes(mut hash: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash = mix(hash, u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    mix(mix(hash, u64::from_le_bytes(last)), length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_different_bit_changes_the_hash() {
        let hash_of = |bytes: &[u8]| {
            let mut trace = Trace::new(Detail::Hash);
            trace.datagram(5, 1, 2, Fate::Sent, bytes);
            trace.hash()
        };
        let clean = [0u8; 21];
        for bit in 0..8 * clean.len() {
            let mut flipped = clean;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(hash_of(&flipped), hash_of(&clean));
        }
        assert_ne!(hash_of(&clean[..20]), hash_of(&clean));
    }

    #[test]
    fn the_hash_does_not_depend_on_what_is_kept() {
        let run = |detail| {
            let mut trace = Trace::new(detail);
            trace.peer(1_500_000_000, 7, format_args!("starts"));
            trace.datagram(5, 1, 2, Fate::Lost, b"abc");
            (trace.hash(), trace.into_text())
        };
        let (hash, text) = run(Detail::Hash);
        assert_eq!(text, "");
        assert_eq!(run(Detail::Events), (hash, "    1.500000 p07 starts\n".to_owned()));
        assert_eq!(run(Detail::Datagrams).0, hash);
    }
}
