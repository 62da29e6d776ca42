//! One lock for each name: requests about one thing wait for each other, those about others do not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use tokio::sync::Mutex;

/// The locks that somebody holds or waits for.
#[derive(Debug, Default)]
pub struct Locks(StdMutex<BTreeMap<String, Arc<Mutex<()>>>>);

impl Locks {
    /// The lock of that name.
    pub fn of(&self, name: &str) -> Arc<Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Locks that only the map holds are free: nobody waits for them.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(name.to_owned()).or_default().clone()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Mutex<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
