//! When to look after a table of nftables that others may take away.

use std::time::Duration;

use tokio::sync::Notify;

use crate::netlink::nft::Cuts;

/// Everything is compared with the kernel this often, whatever notices came.
const AUDIT: Duration = Duration::from_secs(60);
/// After something failed.
const RETRY: Duration = Duration::from_secs(1);
/// Notices within this are answered together.
const SETTLE: Duration = Duration::from_millis(20);

/// Reasons to compare a table with what it shall be.
pub(super) struct Occasions {
    /// Without notices there is the timer.
    cuts: Option<Cuts>,
}

impl Occasions {
    /// For the table of this name.
    pub(super) fn of(table: &str) -> Self {
        Self { cuts: Cuts::watch(table).ok() }
    }

    /// Waits until somebody changed the table, something `failed`, or it is time to look whatever happened.
    pub(super) async fn next(&mut self, failed: &Notify) {
        let cuts = &mut self.cuts;
        let cut = async {
            match cuts {
                Some(cuts) => cuts.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            cut = cut => match cut {
                Ok(()) => tokio::time::sleep(SETTLE).await,
                Err(error) => {
                    tracing::debug!(%error, "changes of nftables are looked for instead");
                    self.cuts = None;
                }
            },
            () = failed.notified() => tokio::time::sleep(RETRY).await,
            () = tokio::time::sleep(AUDIT) => {}
        }
    }
}
