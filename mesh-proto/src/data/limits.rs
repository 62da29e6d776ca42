//! Every bound and timer of the data path, each with its unit and its reason.

use core::time::Duration;

/// A direct path with no echo for this long is dead. Leaves room for about ten probes at the
/// quick rate, so 30 % loss each way does not kill a live path.
pub const DEAD_AFTER: Duration = Duration::from_millis(2500);
