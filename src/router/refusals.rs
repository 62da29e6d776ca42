//! Refusals are told once: whoever is refused tries again for hours, and says the same each time.

use std::collections::BTreeMap;
use std::time::Duration;

/// The same refusal is told again after this long.
const AGAIN: Duration = Duration::from_secs(600);
/// Different refusals that are remembered. Those beyond are not told: somebody makes them up.
const MAX: usize = 256;

/// The refusals that the operator knows of.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    told: BTreeMap<String, Duration>,
}

impl Refusals {
    /// Whether a refusal is news.
    pub(super) fn is_news(&mut self, line: &str, now: Duration) -> bool {
        if self.told.get(line).is_some_and(|&at| now.saturating_sub(at) < AGAIN) {
            return false;
        }
        if self.told.len() >= MAX {
            self.told.retain(|_, &mut at| now.saturating_sub(at) < AGAIN);
        }
        let room = self.told.len() < MAX;
        if room {
            self.told.insert(line.to_owned(), now);
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_once_in_a_while() {
        let mut refusals = Refusals::default();
        let at = Duration::from_secs;
        assert!(refusals.is_news("a: wrong secret", at(0)));
        assert!(!refusals.is_news("a: wrong secret", at(599)));
        assert!(refusals.is_news("b: wrong secret", at(599)));
        assert!(refusals.is_news("a: wrong secret", at(600)));
        assert!(!refusals.is_news("a: wrong secret", at(601)));
    }

    #[test]
    fn refusals_that_somebody_makes_up_neither_fill_the_log_nor_the_memory() {
        let mut refusals = Refusals::default();
        let told = (0..10_000).filter(|n| refusals.is_news(&n.to_string(), Duration::ZERO)).count();
        assert_eq!((told, refusals.told.len()), (MAX, MAX));
        assert!(refusals.is_news("later", AGAIN));
        assert_eq!(refusals.told.len(), 1);
    }
}
