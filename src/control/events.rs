//! The last things that happened in the mesh, for `weft events`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// How many are kept.
const KEPT: usize = 1024;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Number since the router started, from 1.
    pub seq: u64,
    /// When (RFC 3339, UTC).
    pub at: String,
    /// What kind of thing, in one word (`link-up`, `refused`, …).
    pub kind: String,
    /// One line for people.
    pub message: String,
}

/// The ring of records. Clones share it.
#[derive(Debug, Clone)]
pub struct Events {
    ring: Arc<Mutex<VecDeque<Record>>>,
    last: Arc<watch::Sender<u64>>,
}

impl Default for Events {
    fn default() -> Self {
        Self { ring: Arc::default(), last: Arc::new(watch::channel(0).0) }
    }
}

impl Events {
    /// Adds one; the oldest goes when there are too many.
    pub fn push(&self, at: String, kind: &str, message: String) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = ring.back().map_or(1, |last| last.seq + 1);
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(Record { seq, at, kind: kind.to_owned(), message });
        drop(ring);
        self.last.send_replace(seq);
    }

    /// Those after a number, oldest first.
    #[must_use]
    pub fn after(&self, seq: u64) -> Vec<Record> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.iter().filter(|record| record.seq > seq).cloned().collect()
    }

    /// Waits until there is one after a number.
    pub async fn wait_after(&self, seq: u64) {
        let mut last = self.last.subscribe();
        // Fails only when the sender is gone, and we hold it.
        let _ = last.wait_for(|last| *last > seq).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_go_and_the_numbers_go_on() {
        let events = Events::default();
        for number in 0..KEPT + 10 {
            events.push(String::new(), "test", number.to_string());
        }
        let all = events.after(0);
        assert_eq!(all.len(), KEPT);
        assert_eq!(all[0].seq, 11);
        assert_eq!(events.after(KEPT as u64 + 9).len(), 1);
        events.wait_after(KEPT as u64 + 9).await;
    }
}
