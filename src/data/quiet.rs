//! Keeps the log readable when the same thing fails for every frame.

use std::time::{Duration, Instant};

/// At most one line in this time from one place.
const INTERVAL: Duration = Duration::from_secs(10);

/// Lets one line through per interval and counts the others.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    next: Option<Instant>,
    kept: u64,
}

impl Quiet {
    /// Whether to write a line now; if so, the number of lines kept back since the last.
    pub(super) fn may_speak(&mut self) -> Option<u64> {
        self.may_speak_at(Instant::now())
    }

    fn may_speak_at(&mut self, now: Instant) -> Option<u64> {
        if self.next.is_some_and(|next| now < next) {
            self.kept += 1;
            return None;
        }
        self.next = Some(now + INTERVAL);
        Some(std::mem::take(&mut self.kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_passes_per_interval_and_says_how_many_did_not() {
        let (mut quiet, start) = (Quiet::default(), Instant::now());
        assert_eq!(quiet.may_speak_at(start), Some(0));
        assert_eq!(quiet.may_speak_at(start + INTERVAL / 2), None);
        assert_eq!(quiet.may_speak_at(start + INTERVAL / 2), None);
        assert_eq!(quiet.may_speak_at(start + INTERVAL), Some(2));
        assert_eq!(quiet.may_speak_at(start + INTERVAL * 2), Some(0));
    }
}
