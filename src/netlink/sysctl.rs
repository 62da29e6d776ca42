//! Settings that have no netlink attribute, written to `/proc/sys/net`, which shows each thread
//! the values of its own network namespace.

use std::{fs, io, path::PathBuf};

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

/// Lets this host pass on packets of a family that are not for itself, in the namespace of this thread.
/// Fine if it does already.
///
/// # Errors
/// If the setting cannot be written (an unprivileged container), or there is no such family.
pub fn forward(v4: bool) -> io::Result<()> {
    let setting = if v4 { "/proc/sys/net/ipv4/ip_forward" } else { "/proc/sys/net/ipv6/conf/all/forwarding" };
    let failed = |error: io::Error| {
        io::Error::other(format!(
            "this host does not forward, and that cannot be changed: {setting}: {error}; write 1 to it, or run the router \
             with a writable /proc/sys (in a container: --security-opt systempaths=unconfined)"
        ))
    };
    if fs::read_to_string(setting).map_err(failed)?.trim() != "0" {
        return Ok(());
    }
    fs::write(setting, "1").map_err(failed)
}
