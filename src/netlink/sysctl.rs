//! Settings that have no netlink attribute, written to `/proc/sys/net`, which shows each thread
//! the values of its own network namespace.

use std::{fs, path::PathBuf};

use super::{
    Netlink,
    error::{Context as _, Result},
};

impl Netlink {
    /// Writes `/proc/sys/net/FAMILY/conf/INTERFACE/KEY` in the namespace of this connection.
    ///
    /// # Errors
    /// If the file is missing (a kernel without IPv6) or read-only (an unprivileged pod).
    pub fn sysctl(&self, family: &str, interface: &str, key: &str, value: &str) -> Result<()> {
        let path: PathBuf = ["/proc/sys/net", family, "conf", interface, key].iter().collect();
        let write = || fs::write(&path, value);
        match &self.namespace {
            None => write(),
            Some(namespace) => namespace.run(write)?,
        }
        .context(&format!("{interface} ({})", path.display()), "change the setting")
    }

    /// As [`Netlink::sysctl`], for settings that only quieten an interface: where it cannot be
    /// done, traffic still flows.
    pub(super) fn sysctl_if_possible(&self, family: &str, interface: &str, key: &str, value: &str) {
        if let Err(error) = self.sysctl(family, interface, key, value) {
            tracing::debug!(%error, "setting left as it is");
        }
    }
}
