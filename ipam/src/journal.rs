//! Group commit: what must be durable before what may leave.
//!
//! ```text
//!  put ──► pending ──flush──► in flight ──stored──► durable up to batch n
//!            ▲                    │ failed                    │
//!            └────────────────────┘                           ▼
//!  after(batch, effect) ─────── held back ─────────────► effect may leave
//! ```
//!
//! One write is in flight at a time; whatever is put meanwhile shares the next one. A write that
//! failed is put back under what came later, so that a batch being durable means that all
//! batches before it are. Effects other than replies survive a failure: they leave when a later
//! write carries what they depend on.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use crate::{Change, RequestId};

/// How long a change that nothing waits for may wait for company.
const LAZY: Duration = Duration::from_secs(1);
/// Pause after the first failed write; doubled with each further one up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Something that must not leave before a batch is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect<E> {
    /// The good answer to a request; the caller knows which one it is.
    Reply(RequestId),
    /// Anything else.
    Other(E),
}

#[derive(Debug, Clone)]
struct InFlight {
    batch: u64,
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

#[derive(Debug, Clone)]
struct Failing {
    why: String,
    pause: Duration,
    retry_at: Duration,
}

/// The changes on their way to the disk.
#[derive(Debug, Clone)]
pub(crate) struct Journal<E> {
    pending: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Something changed whose new value is added only when it is written.
    announced: bool,
    urgent: bool,
    lazy_at: Option<Duration>,
    in_flight: Option<InFlight>,
    /// The number that the pending changes will get.
    next: u64,
    /// The last batch that somebody may wait for.
    newest: u64,
    durable: u64,
    held: VecDeque<(u64, Effect<E>)>,
    failing: Option<Failing>,
}

/// What a finished write sets free.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finished<E> {
    /// These may leave now.
    Durable(Vec<Effect<E>>),
    /// These requests cannot be answered: their batches up to `batch` are not durable.
    Failed {
        /// The batch.
        batch: u64,
        /// The requests.
        requests: Vec<RequestId>,
    },
    /// Not a write of ours.
    Unknown,
}

impl<E> Journal<E> {
    /// Nothing to write, everything of before is durable.
    pub(crate) fn new() -> Self {
        Self {
            pending: BTreeMap::new(),
            announced: false,
            urgent: false,
            lazy_at: None,
            in_flight: None,
            next: 1,
            newest: 0,
            durable: 0,
            held: VecDeque::new(),
            failing: None,
        }
    }

    /// Adds a change; returns the batch that it will be part of.
    pub(crate) fn put(&mut self, change: Change) -> u64 {
        self.pending.insert(change.key, change.value);
        self.urgent = true;
        self.newest = self.next;
        self.next
    }

    /// As [`Self::put`] of a change that is added only when it is written, by [`Self::add`].
    pub(crate) fn announce(&mut self) -> u64 {
        self.announced = true;
        self.urgent = true;
        self.newest = self.next;
        self.next
    }

    /// As [`Self::put_lazily`] of a change that is added only when it is written.
    pub(crate) fn announce_lazily(&mut self, now: Duration) {
        self.announced = true;
        self.lazy_at.get_or_insert(now + LAZY);
    }

    /// Adds a change that was announced.
    pub(crate) fn add(&mut self, change: Change) {
        self.pending.insert(change.key, change.value);
    }

    /// Adds a change that may be lost in a crash: it is written with the next one that may not,
    /// or after a second.
    pub(crate) fn put_lazily(&mut self, change: Change, now: Duration) {
        self.pending.insert(change.key, change.value);
        self.lazy_at.get_or_insert(now + LAZY);
    }

    /// The batch that, once durable, has everything that was put until now, lazily put changes
    /// aside: nothing waits for those.
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// Whether a batch is durable.
    pub(crate) fn is_durable(&self, batch: u64) -> bool {
        batch <= self.durable
    }

    /// Holds an effect back until the batch is durable; gives it back if it is.
    #[must_use]
    pub(crate) fn after(&mut self, batch: u64, effect: Effect<E>) -> Option<Effect<E>> {
        if self.is_durable(batch) {
            return Some(effect);
        }
        if matches!(effect, Effect::Reply(_)) {
            // Somebody waits: try at once even if the last write failed.
            self.urgent = true;
            if let Some(failing) = &mut self.failing {
                failing.retry_at = Duration::ZERO;
            }
        }
        self.held.push_back((batch, effect));
        None
    }

    /// Drops the reply to a request that nobody waits for any more.
    pub(crate) fn forget(&mut self, request: RequestId) {
        self.held.retain(|(_, effect)| !matches!(effect, Effect::Reply(held) if *held == request));
    }

    /// Whether there is a write to make now: what was announced is to be added first.
    pub(crate) fn is_due(&self, now: Duration) -> bool {
        let due = self.urgent || self.lazy_at.is_some_and(|at| at <= now);
        let paused = self.failing.as_ref().is_some_and(|failing| now < failing.retry_at);
        self.in_flight.is_none() && (self.announced || !self.pending.is_empty()) && due && !paused
    }

    /// The next write, if there is one to make now.
    pub(crate) fn flush(&mut self, now: Duration) -> Option<(u64, Vec<Change>)> {
        if !self.is_due(now) {
            return None;
        }
        self.announced = false;
        let changes = core::mem::take(&mut self.pending);
        let batch = self.next;
        self.next += 1;
        self.urgent = false;
        self.lazy_at = None;
        let list = changes.iter().map(|(key, value)| Change { key: key.clone(), value: value.clone() }).collect();
        self.in_flight = Some(InFlight { batch, changes });
        Some((batch, list))
    }

    /// The write of a batch is durable, or failed.
    pub(crate) fn stored(&mut self, batch: u64, result: Result<(), String>, now: Duration) -> Finished<E> {
        let Some(write) = self.in_flight.take_if(|write| write.batch == batch) else {
            return Finished::Unknown;
        };
        match result {
            Ok(()) => {
                self.durable = batch;
                self.failing = None;
                Finished::Durable(self.release(batch))
            }
            Err(why) => {
                for (key, value) in write.changes {
                    self.pending.entry(key).or_insert(value);
                }
                self.urgent = true;
                let pause = self.failing.as_ref().map_or(FIRST_PAUSE, |failing| MAX_PAUSE.min(failing.pause * 2));
                let requests = self.fail_replies(batch);
                // As in `after`: those that came during this write need the next one.
                let waited_for = self.held.iter().any(|(_, effect)| matches!(effect, Effect::Reply(_)));
                let retry_at = if waited_for { Duration::ZERO } else { now + pause };
                self.failing = Some(Failing { why, pause, retry_at });
                Finished::Failed { batch, requests }
            }
        }
    }

    fn release(&mut self, batch: u64) -> Vec<Effect<E>> {
        let (free, held) =
            core::mem::take(&mut self.held).into_iter().partition::<VecDeque<_>, _>(|&(needs, _)| needs <= batch);
        self.held = held;
        free.into_iter().map(|(_, effect)| effect).collect()
    }

    fn fail_replies(&mut self, batch: u64) -> Vec<RequestId> {
        let mut failed = Vec::new();
        self.held.retain(|(needs, effect)| match effect {
            Effect::Reply(request) if *needs <= batch => {
                failed.push(*request);
                false
            }
            _ => true,
        });
        failed
    }

    /// Why the last write failed, if it did.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failing.as_ref().map(|failing| failing.why.as_str())
    }

    /// When [`Self::flush`] should be called again.
    pub(crate) fn next_flush(&self) -> Option<Duration> {
        if self.in_flight.is_some() || (self.pending.is_empty() && !self.announced) {
            return None;
        }
        match &self.failing {
            Some(failing) => Some(failing.retry_at),
            None if self.urgent => Some(Duration::ZERO),
            None => self.lazy_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: u8, value: u8) -> Change {
        Change { key: vec![key], value: Some(vec![value]) }
    }

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn changes_made_during_a_write_share_the_next_one() {
        let mut journal = Journal::<u8>::new();
        let first = journal.put(set(1, 1));
        assert_eq!(journal.flush(NOW), Some((first, vec![set(1, 1)])));
        let second = journal.put(set(2, 2));
        assert_eq!(journal.put(set(3, 3)), second);
        assert_eq!(journal.flush(NOW), None, "one write at a time");
        assert_eq!(journal.after(second, Effect::Other(9)), None);
        assert_eq!(journal.stored(first, Ok(()), NOW), Finished::Durable(vec![]));
        assert_eq!(journal.flush(NOW), Some((second, vec![set(2, 2), set(3, 3)])));
        let free = journal.stored(second, Ok(()), NOW);
        assert_eq!(free, Finished::Durable(vec![Effect::Other(9)]));
        assert_eq!(journal.after(second, Effect::Other(9)), Some(Effect::Other(9)));
    }

    #[test]
    fn a_failed_write_fails_its_replies_and_is_written_under_what_came_later() {
        let mut journal = Journal::<u8>::new();
        let first = journal.put(set(1, 1));
        journal.put(set(2, 1));
        assert_eq!(journal.after(first, Effect::Reply(RequestId(7))), None);
        assert_eq!(journal.after(first, Effect::Other(9)), None);
        journal.flush(NOW);
        journal.put(set(2, 2));
        let failed = journal.stored(first, Err("disk full".into()), NOW);
        let requests = vec![RequestId(7)];
        assert_eq!(failed, Finished::Failed { batch: first, requests });
        assert_eq!(journal.failure(), Some("disk full"));
        assert_eq!(journal.flush(NOW), None, "a pause first");
        let later = journal.next_flush().unwrap();
        let (batch, changes) = journal.flush(later).unwrap();
        assert_eq!(changes, [set(1, 1), set(2, 2)]);
        let free = journal.stored(batch, Ok(()), later);
        assert_eq!(free, Finished::Durable(vec![Effect::Other(9)]));
        assert_eq!(journal.failure(), None);
    }

    #[test]
    fn who_came_during_a_write_that_failed_waits_for_no_pause() {
        let mut journal = Journal::<u8>::new();
        let first = journal.put(set(1, 1));
        journal.flush(NOW);
        let second = journal.put(set(2, 2));
        assert_eq!(journal.after(second, Effect::Reply(RequestId(7))), None);
        journal.stored(first, Err("disk full".into()), NOW);
        let (batch, _) = journal.flush(NOW).unwrap();
        let requests = vec![RequestId(7)];
        assert_eq!(journal.stored(batch, Err("disk full".into()), NOW), Finished::Failed { batch, requests });
        assert_eq!(journal.flush(NOW), None, "nobody waits any more");
    }

    #[test]
    fn a_lazy_change_waits_a_second_or_for_company() {
        let mut journal = Journal::<u8>::new();
        journal.put_lazily(set(1, 1), NOW);
        assert_eq!(journal.flush(NOW), None);
        assert_eq!(journal.next_flush(), Some(LAZY));
        assert!(journal.is_durable(journal.newest()), "nothing waits for it");
        journal.put(set(2, 2));
        assert_eq!(journal.flush(NOW).map(|(_, list)| list.len()), Some(2));
    }

    #[test]
    fn the_end_of_an_unknown_write_changes_nothing() {
        let mut journal = Journal::<u8>::new();
        let batch = journal.put(set(1, 1));
        journal.flush(NOW);
        assert_eq!(journal.stored(batch + 1, Ok(()), NOW), Finished::Unknown);
        assert!(!journal.is_durable(batch));
    }
}
