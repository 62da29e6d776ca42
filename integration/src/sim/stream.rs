//! The two byte directions of one connection: messages cut into numbered segments, acknowledged
//! cumulatively, sent again after a time that doubles.
//!
//! ```text
//!  Data    0        4        8      9
//!          ├ number ┼ ack    ┼ last ┼ part of a message …
//!  Ack     ├ ack    ┤                 (number of the first segment that has not come)
//! ```

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

/// Length of what precedes the part of a message.
const HEADER: usize = 9;
/// Most segments on the way.
const WINDOW: usize = 64;
/// Most segments that are kept until those before them come.
const EARLY_MAX: usize = 2 * WINDOW;
/// An acknowledgement waits this long for company (RFC 9000 §13.2.1).
const ACK_DELAY: Duration = Duration::from_millis(25);
/// Segments that are sent again at once when the first of them is late.
const RESEND: usize = 8;
/// Retransmission timeout without a sample, and its bounds.
const RTO_FIRST: Duration = Duration::from_millis(500);
const RTO_LEAST: Duration = Duration::from_millis(60);
const RTO_MOST: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Segment {
    number: u32,
    last: bool,
    bytes: Vec<u8>,
    /// When it was sent, unless it was sent more than once (Karn).
    sent: Option<Duration>,
}

/// One connection's messages, both ways.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Segments that are not acknowledged; the first `flying` of them have been sent.
    waiting: VecDeque<Segment>,
    flying: usize,
    next: u32,
    /// Messages that have not been cut yet.
    whole: VecDeque<Vec<u8>>,
    rtt: Option<Duration>,
    again: Option<Duration>,
    tries: u32,
    repeats: u32,
    /// Of the segments on the way, those from the first to the second are sent again now.
    resend: (usize, usize),
    /// Number of the segment that is expected next.
    expected: u32,
    early: BTreeMap<u32, (bool, Vec<u8>)>,
    part: Vec<u8>,
    ready: VecDeque<Vec<u8>>,
    unacked: u32,
    ack_at: Option<Duration>,
    ack_now: bool,
}

impl Stream {
    /// A message to send.
    pub(super) fn push(&mut self, message: &[u8]) {
        self.whole.push_back(message.to_vec());
    }

    /// The content of a Data datagram.
    pub(super) fn handle_segment(&mut self, body: &[u8], now: Duration) {
        let Some((head, bytes)) = body.split_at_checked(HEADER) else { return };
        let Some(number) = word(head, 0) else { return };
        self.handle_ack(&head[4..], now);
        if number != self.expected || !self.early.is_empty() {
            self.ack_now = true;
        }
        self.unacked += 1;
        self.ack_at.get_or_insert(now + ACK_DELAY);
        if number < self.expected || self.early.len() >= EARLY_MAX {
            return;
        }
        self.early.entry(number).or_insert_with(|| (head[8] != 0, bytes.to_vec()));
        while let Some((last, bytes)) = self.early.remove(&self.expected) {
            self.expected += 1;
            if self.part.is_empty() {
                self.part = bytes;
            } else {
                self.part.extend_from_slice(&bytes);
            }
            if last {
                self.ready.push_back(std::mem::take(&mut self.part));
            }
        }
    }

    /// The next message that has come whole.
    pub(super) fn poll_message(&mut self) -> Option<Vec<u8>> {
        self.ready.pop_front()
    }

    /// An acknowledgement.
    pub(super) fn handle_ack(&mut self, body: &[u8], now: Duration) {
        let Some(ack) = word(body, 0) else { return };
        let first = self.waiting.front().map_or(self.next, |segment| segment.number);
        if ack > self.next || ack < first {
            return;
        }
        if ack == first {
            self.repeats += u32::from(self.flying > 0);
            // RFC 5681 §3.2: three repetitions say that the first segment is lost.
            if self.repeats == 3 {
                self.resend = (0, 1);
            }
            return;
        }
        while self.waiting.front().is_some_and(|segment| segment.number < ack) {
            let Some(segment) = self.waiting.pop_front() else { break };
            self.flying = self.flying.saturating_sub(1);
            if let Some(sent) = segment.sent {
                self.sample(now.saturating_sub(sent));
            }
        }
        self.tries = 0;
        self.repeats = 0;
        self.resend = (0, 0);
        self.again = (self.flying > 0).then(|| now + self.timeout());
    }

    /// The other end wants to hear from us.
    pub(super) fn owe_ack(&mut self) {
        self.ack_now = true;
    }

    /// Whether an acknowledgement has to go by itself.
    pub(super) fn ack_is_due(&self, now: Duration) -> bool {
        self.ack_now || self.unacked >= 2 || self.ack_at.is_some_and(|at| at <= now)
    }

    /// Writes the content of an Ack datagram.
    pub(super) fn write_ack(&mut self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.expected.to_be_bytes());
        self.ack_now = false;
        self.ack_at = None;
        self.unacked = 0;
    }

    /// Writes the content of the next Data datagram, of at most `most` bytes in all; false if
    /// there is nothing to send now.
    pub(super) fn poll_segment(&mut self, to: &mut Vec<u8>, most: usize, now: Duration) -> bool {
        if self.again.is_some_and(|at| at <= now) && self.flying > 0 {
            self.tries += 1;
            self.resend = (0, self.flying.min(RESEND));
            self.again = Some(now + self.timeout());
        }
        let late = self.resend.0 < self.resend.1;
        let place = if late {
            self.resend.0 += 1;
            self.resend.0 - 1
        } else {
            if self.flying >= WINDOW {
                return false;
            }
            if self.flying == self.waiting.len() {
                self.cut(most - to.len() - HEADER);
            }
            if self.flying == self.waiting.len() {
                return false;
            }
            self.flying += 1;
            self.flying - 1
        };
        let timeout = self.timeout();
        let Some(segment) = self.waiting.get_mut(place) else { return false };
        segment.sent = (!late).then_some(now);
        to.extend_from_slice(&segment.number.to_be_bytes());
        to.extend_from_slice(&self.expected.to_be_bytes());
        to.push(u8::from(segment.last));
        to.extend_from_slice(&segment.bytes);
        self.again.get_or_insert(now + timeout);
        self.ack_now = false;
        self.ack_at = None;
        self.unacked = 0;
        true
    }

    /// When something has to be sent.
    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        self.again.into_iter().chain(self.ack_at).min()
    }

    fn cut(&mut self, size: usize) {
        let Some(message) = self.whole.pop_front() else { return };
        let pieces = message.len().div_ceil(size).max(1);
        for piece in 0..pieces {
            let end = message.len().min((piece + 1) * size);
            let bytes = message[piece * size..end].to_vec();
            let last = piece + 1 == pieces;
            self.waiting.push_back(Segment { number: self.next, last, bytes, sent: None });
            self.next += 1;
        }
    }

    fn sample(&mut self, rtt: Duration) {
        self.rtt = Some(self.rtt.map_or(rtt, |smooth| (smooth * 7 + rtt) / 8));
    }

    fn timeout(&self) -> Duration {
        let one = self.rtt.map_or(RTO_FIRST, |rtt| rtt * 2 + ACK_DELAY);
        (one.max(RTO_LEAST) * 2u32.pow(self.tries.min(6))).min(RTO_MOST)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}
