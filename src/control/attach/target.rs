//! What a user names when attaching: a namespace by path or process, or a Docker container.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use mesh_proto::wire::services::Service;

use crate::control::docker::{self, DockerError};
use crate::netlink::{NetNs, NetNsId};

/// Longest target, in bytes: a path has at most 4095.
const TARGET_MAX: usize = 4095;

/// What a user named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A file that stands for a network namespace.
    Path(PathBuf),
    /// A process in it.
    Pid(u32),
    /// A Docker container, by name or id.
    Docker(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Pid(pid) => write!(f, "{pid}"),
            Self::Docker(name) => write!(f, "docker:{name}"),
        }
    }
}

/// Why a text is no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "target `{text}`: {why}; expected the path of a network namespace (/run/netns/NAME, /proc/PID/ns/net), a process id, docker:NAME, or the name of a Docker container"
)]
pub struct InvalidTarget {
    text: String,
    why: &'static str,
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let invalid = |why| {
            // A text that is too long is not repeated whole.
            InvalidTarget { text: text.chars().take(80).collect(), why }
        };
        if text.is_empty() {
            return Err(invalid("is empty"));
        }
        if text.len() > TARGET_MAX || text.chars().any(char::is_control) {
            return Err(invalid("is too long or has control characters"));
        }
        if let Some(name) = text.strip_prefix("docker:") {
            return container(name).map(Self::Docker).ok_or_else(|| invalid(NO_CONTAINER));
        }
        if text.contains('/') {
            if !text.starts_with('/') {
                return Err(invalid("is not an absolute path"));
            }
            return Ok(Self::Path(PathBuf::from(text)));
        }
        if text.chars().all(|c| c.is_ascii_digit()) {
            return match text.parse() {
                Ok(0) | Err(_) => Err(invalid("is not a process id")),
                Ok(pid) => Ok(Self::Pid(pid)),
            };
        }
        container(text).map(Self::Docker).ok_or_else(|| invalid(NO_CONTAINER))
    }
}

const NO_CONTAINER: &str = "is not a path, not a process id, and cannot be the name of a Docker container";

/// A name or id that Docker could have given.
fn container(text: &str) -> Option<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    (begins && text.chars().all(fine)).then(|| text.to_owned())
}

/// A target that is there.
#[derive(Debug)]
pub struct Found {
    /// Whose addresses they are: stays the same for as long as the target is the same thing.
    pub owner: String,
    /// Its namespace.
    pub namespace: NetNs,
    /// What it is called by whoever runs it.
    pub names: Vec<String>,
    /// What it serves, by whoever runs it.
    pub services: Vec<Service>,
}

/// Why a target cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// It is not there (any more).
    #[error("{0}")]
    Gone(String),
    /// It may be there, but cannot be used now.
    #[error("{0}")]
    Unusable(String),
}

impl Target {
    /// Opens the namespace. `host` is that of the router itself, which cannot be attached.
    ///
    /// # Errors
    /// If there is no such thing, it does not run, or it is the host's own namespace.
    pub async fn find(&self, host: NetNsId) -> Result<Found, FindError> {
        let found = match self {
            Self::Path(path) => {
                let namespace = open(path)?;
                Found { owner: namespace_owner(&namespace), namespace, names: Vec::new(), services: Vec::new() }
            }
            Self::Pid(pid) => {
                let namespace = open(Path::new(&format!("/proc/{pid}/ns/net")))?;
                Found { owner: namespace_owner(&namespace), namespace, names: Vec::new(), services: Vec::new() }
            }
            Self::Docker(name) => {
                let container = docker::inspect(name).await.map_err(|error| match error {
                    DockerError::Unknown(_) => FindError::Gone(error.to_string()),
                    other => FindError::Unusable(other.to_string()),
                })?;
                let namespace = open(Path::new(&format!("/proc/{}/ns/net", container.pid)))?;
                let docker::Container { id, names, services, .. } = container;
                Found { owner: format!("docker:{id}"), namespace, names, services }
            }
        };
        if found.namespace.id() == host {
            return Err(FindError::Unusable(format!(
                "target `{self}` is the network namespace of the host itself; use `weft expose` to give the host an address"
            )));
        }
        Ok(found)
    }
}

fn open(path: &Path) -> Result<NetNs, FindError> {
    NetNs::from_path(path).map_err(|error| {
        let text = error.to_string();
        match error.errno() {
            Some(libc::ENOENT | libc::ESRCH) => FindError::Gone(text),
            _ => FindError::Unusable(text),
        }
    })
}

/// An inode number names a namespace while it lives; with the boot's id it does not name one of
/// after a reboot.
fn namespace_owner(namespace: &NetNs) -> String {
    format!("netns:{}@{}", namespace.id().inode, boot())
}

/// The first eight digits of the kernel's boot id, or `unknown`.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.chars().take(8).collect())
        .unwrap_or_else(|_| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_apart_by_their_form() {
        for (text, target) in [
            ("/run/netns/a", Target::Path("/run/netns/a".into())),
            ("42", Target::Pid(42)),
            ("docker:42", Target::Docker("42".to_owned())),
            ("web", Target::Docker("web".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(target), "{text}");
        }
        for text in ["", "0", "99999999999", "run/netns/a", "a\nb"] {
            let error = text.parse::<Target>().expect_err("no target").to_string();
            assert!(error.contains("docker:NAME"), "{error}");
        }
    }

    #[test]
    fn a_target_reads_back_from_its_text() {
        for text in ["/proc/1/ns/net", "7", "docker:web"] {
            let target: Target = text.parse().expect("a target");
            assert_eq!(target.to_string(), text);
        }
    }
}
