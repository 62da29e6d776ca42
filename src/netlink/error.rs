//! What can go wrong between Weft and the kernel's network configuration, told so that the
//! reader knows which interface, which operation, and what to do.

use std::{fmt, io};

/// Result of the netlink calls.
pub type Result<T> = std::result::Result<T, NetlinkError>;

/// A refused or failed request to the kernel.
#[derive(Debug, thiserror::Error)]
#[error("{subject}: cannot {operation}: {source}{}", Hint(.source, .operation))]
pub struct NetlinkError {
    /// The interface, address or namespace that it was about.
    pub subject: String,
    /// What was attempted, as a verb phrase ("create the bridge").
    pub operation: &'static str,
    /// The kernel's answer.
    pub source: io::Error,
}

impl NetlinkError {
    pub(crate) fn new(subject: impl Into<String>, operation: &'static str, source: io::Error) -> Self {
        Self { subject: subject.into(), operation, source }
    }

    pub(crate) fn other(subject: impl Into<String>, operation: &'static str, why: impl Into<String>) -> Self {
        Self::new(subject, operation, io::Error::other(why.into()))
    }

    /// The kernel's error number, if it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// The io error inside a netlink library error.
pub(super) fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        rtnetlink::Error::RequestFailed => {
            io::Error::new(io::ErrorKind::BrokenPipe, "the netlink connection is closed")
        }
        other => io::Error::other(other.to_string()),
    }
}

/// Adds the subject and the operation to an error on its way up.
pub(super) trait Context<T> {
    fn context(self, subject: &str, operation: &'static str) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, rtnetlink::Error> {
    fn context(self, subject: &str, operation: &'static str) -> Result<T> {
        self.map_err(|error| NetlinkError::new(subject, operation, io_error(error)))
    }
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, subject: &str, operation: &'static str) -> Result<T> {
        self.map_err(|error| NetlinkError::new(subject, operation, error))
    }
}

/// Treats one error number as success: for requests that are idempotent by meaning.
pub(super) fn tolerate(
    result: std::result::Result<(), rtnetlink::Error>,
    errno: &[i32],
) -> std::result::Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message)) if errno.contains(&-message.raw_code()) => Ok(()),
        other => other,
    }
}

/// What to do about an error of an operation.
struct Hint<'a>(&'a io::Error, &'static str);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.raw_os_error() {
            // The kernel's answer for an IPv6 address where IPv6 is off.
            Some(libc::EACCES) if self.1 == "add the address" => {
                "; IPv6 is switched off there, and it could not be switched on: the router needs a \
                 writable /proc/sys (in a container: --security-opt systempaths=unconfined)"
            }
            Some(libc::EACCES) if self.1 == "open the network namespace" => {
                "; this needs CAP_SYS_PTRACE: run as root or grant it"
            }
            Some(libc::EPERM | libc::EACCES) => {
                "; this needs CAP_NET_ADMIN (and CAP_SYS_ADMIN to enter another namespace) in the \
                 user namespace that owns the network namespace: run as root or grant them"
            }
            Some(libc::ENODEV | libc::ENXIO) => "; the interface is gone: was it removed by hand?",
            Some(libc::EOPNOTSUPP) => {
                "; the kernel lacks this feature: load the module (bridge, veth, tun) or build it in"
            }
            Some(libc::EBUSY) => "; it belongs to another bridge or is in use: free it first",
            Some(libc::EEXIST) => "; something else has that name or address: choose another",
            Some(libc::ERANGE | libc::EINVAL) => "; the kernel does not accept the value: check name, MTU and address",
            Some(libc::ENOBUFS | libc::ENOMEM) => "; the kernel is out of memory for it",
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => "; the gateway is not on a connected network",
            _ => "",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_interface_the_operation_and_what_to_do() {
        let error = NetlinkError::new("weft", "create the bridge", io::Error::from_raw_os_error(libc::EPERM));
        let text = error.to_string();
        assert!(text.starts_with("weft: cannot create the bridge: "), "{text}");
        assert!(text.contains("CAP_NET_ADMIN"), "{text}");
        assert_eq!(error.errno(), Some(libc::EPERM));
    }

    #[test]
    fn the_same_errno_has_the_remedy_of_its_operation() {
        let text =
            |operation| NetlinkError::new("weft0", operation, io::Error::from_raw_os_error(libc::EACCES)).to_string();
        assert!(text("add the address").contains("writable /proc/sys"));
        assert!(text("open the network namespace").contains("CAP_SYS_PTRACE"));
        assert!(text("create the bridge").contains("CAP_NET_ADMIN"));
    }
}
