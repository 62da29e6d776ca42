//! Network namespaces: held by descriptor, told apart by inode, entered only by threads that
//! were made for it.
//!
//! A thread that has changed its namespace is never given back: a pool's thread left in the wrong
//! namespace would open the next socket in a container. So [`NetNs::run`] starts a fresh thread,
//! moves it, runs the closure and ends it.

use std::{
    fmt, fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::{Context as _, NetlinkError, Result};

/// Identity of a namespace while it lives: device and inode of its nsfs file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetNsId {
    /// Device number of nsfs.
    pub device: u64,
    /// Inode: the number in `net:[4026531840]`.
    pub inode: u64,
}

impl fmt::Display for NetNsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.inode)
    }
}

/// An open network namespace. It lives at least as long as this handle.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
    id: NetNsId,
    label: String,
}

impl NetNs {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn current() -> Result<Self> {
        Self::from_path(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace of a process.
    ///
    /// # Errors
    /// If there is no such process or it may not be looked at.
    pub fn from_pid(pid: u32) -> Result<Self> {
        Self::from_path(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// The namespace that a file stands for: `/run/netns/NAME`, `/proc/PID/ns/net`,
    /// `/proc/PID/fd/N`.
    ///
    /// # Errors
    /// If the file cannot be opened, is no network namespace, or may not be entered.
    pub fn from_path(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        let file = fs::File::open(path).context(&label, "open the network namespace")?;
        Self::from_fd(file.into(), label)
    }

    /// Takes an open descriptor of a namespace. `label` names it in messages.
    ///
    /// # Errors
    /// If it is no network namespace, or may not be entered.
    pub fn from_fd(fd: OwnedFd, label: String) -> Result<Self> {
        let file = fs::File::from(fd);
        let meta = file.metadata().context(&label, "inspect the network namespace")?;
        let namespace = Self { fd: file.into(), id: NetNsId { device: meta.dev(), inode: meta.ino() }, label };
        // Entering once is the only check that covers all: that it is a namespace, one of
        // networks, and ours to enter.
        namespace.run(|| ()).map_err(|error| {
            if error.errno() == Some(libc::EINVAL) {
                let why = "this is not a network namespace: give a path such as \
                           /proc/PID/ns/net or /run/netns/NAME";
                NetlinkError::other(namespace.label.clone(), "enter", why)
            } else {
                error
            }
        })?;
        Ok(namespace)
    }

    /// A new, empty namespace with the loopback interface down. It is gone when the last handle,
    /// process and mount of it is.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN in the user namespace.
    pub fn create(label: impl Into<String>) -> Result<Self> {
        let label = label.into();
        let made = thread::Builder::new()
            .name("netns".into())
            .spawn(|| {
                unshare_network()?;
                fs::File::open("/proc/thread-self/ns/net")
            })
            .context(&label, "start a thread")?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .context(&label, "create a network namespace")?;
        Self::from_fd(made.into(), label)
    }

    /// Identity of the namespace.
    #[must_use]
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// How it was named when it was opened.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A path that other processes of the same user can open as long as this handle lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()))
    }

    /// Another handle of the same namespace.
    ///
    /// # Errors
    /// If the process is out of descriptors.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().context(&self.label, "duplicate the namespace handle")?;
        Ok(Self { fd, id: self.id, label: self.label.clone() })
    }

    /// Runs a closure inside, on a thread of its own, and waits for it. Sockets and files that it
    /// opens and returns stay in the namespace. A panic of the closure is passed on.
    ///
    /// # Errors
    /// If the namespace may not be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let body = || -> io::Result<T> {
                enter(self.fd.as_fd())?;
                Ok(work())
            };
            thread::Builder::new()
                .name("in-netns".into())
                .spawn_scoped(scope, body)?
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .context(&self.label, "enter the network namespace")
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Moves the calling thread. Only for threads that end afterwards, and for a child between fork
/// and exec.
pub(crate) fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
}

#[expect(unsafe_code, reason = "unshare(2) has no safe wrapper")]
fn unshare_network() -> io::Result<()> {
    // SAFETY: only the network namespace of this thread changes; the table of descriptors, which
    // is what makes unshare unsafe, stays shared.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_namespace_is_refused_with_advice() {
        let error = NetNs::from_path(Path::new("/proc/self/status")).unwrap_err().to_string();
        assert!(error.contains("not a network namespace"), "{error}");
        let error = NetNs::from_path(Path::new("/nonexistent/ns")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/ns"), "{error}");
    }

    #[test]
    fn the_same_namespace_has_the_same_identity_by_every_name() {
        // Opening is not enough to be allowed in: without the right to enter, the error says so.
        match (NetNs::current(), NetNs::from_pid(std::process::id())) {
            (Ok(a), Ok(b)) => assert_eq!(a.id(), b.id()),
            (Err(e), _) | (_, Err(e)) => assert!(e.to_string().contains("CAP_SYS_ADMIN"), "{e}"),
        }
    }
}
