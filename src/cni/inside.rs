//! A look into the container's namespace, and at the host's.

use std::path::Path;

use super::environment::Environment;
use super::error::{CniError, Kind};
use crate::netlink::{NetNs, Netlink, NetlinkError};

/// Opens `CNI_NETNS`.
pub(super) fn open(environment: &Environment) -> Result<NetNs, CniError> {
    let path = Path::new(&environment.netns);
    if !path.is_absolute() {
        return Err(CniError::new(
            Kind::Environment,
            format!("CNI_NETNS is `{}`: expected the absolute path of a network namespace", path.display()),
        ));
    }
    NetNs::from_path(path).map_err(|error| match error.errno() {
        Some(libc::ENOENT | libc::ESRCH) => CniError::new(
            Kind::UnknownContainer,
            format!("CNI_NETNS {}: the namespace is not there (any more)", path.display()),
        ),
        _ => CniError::new(Kind::Environment, format!("CNI_NETNS: {error}")),
    })
}

/// What the kernel refused.
pub(super) fn failed(error: NetlinkError) -> CniError {
    CniError::new(Kind::Failed, error.to_string())
}

/// The kernel's configuration inside.
pub(super) fn look(namespace: &NetNs) -> Result<Netlink, CniError> {
    Netlink::open_in(namespace).map_err(failed)
}

/// The kernel's configuration of the host, in whose namespace runtimes run plugins.
pub(super) fn host() -> Result<Netlink, CniError> {
    Netlink::open().map_err(failed)
}
