//! Takes the path of a socket of the router's: from nobody, or from a router that is dead, but not from
//! one that lives.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// The socket's file; removed when dropped, unless somebody else has put another in its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, i64, i64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|meta| identity(&meta) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "the socket's file stays");
        }
    }
}

/// Numbers of inodes are used again at once; with the time of their making they are not.
fn identity(meta: &std::fs::Metadata) -> (u64, i64, i64) {
    (meta.ino(), meta.ctime(), meta.ctime_nsec())
}

/// Why there is no API socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A router answers there.
    #[error("a router is running at {}; stop it (weft down), or give this one another --{option} and --data-dir", path.display())]
    Alive {
        /// The path.
        path: PathBuf,
        /// The key of the configuration that names it.
        option: &'static str,
    },
    /// Something else is there.
    #[error("{} is in the way and is no socket; move it away or choose another --{option}", path.display())]
    Other {
        /// The path.
        path: PathBuf,
        /// The key of the configuration that names it.
        option: &'static str,
    },
    /// The system refused.
    #[error("socket {}: {source}; choose another --{option} or make the directory writable", path.display())]
    Refused {
        /// The path.
        path: PathBuf,
        /// The key of the configuration that names it.
        option: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Binds a socket, readable and writable for this user only (0600); `option` is the key of the
/// configuration that names it.
///
/// # Errors
/// If a live router has it, something else is there, or the system refuses.
pub async fn claim(path: &Path, option: &'static str) -> Result<(UnixListener, SocketFile), ListenError> {
    let refused = |source| ListenError::Refused { path: path.to_owned(), option, source };
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(refused)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ListenError::Other { path: path.to_owned(), option });
        }
        Ok(_) => {
            if UnixStream::connect(path).await.is_ok() {
                return Err(ListenError::Alive { path: path.to_owned(), option });
            }
            std::fs::remove_file(path).map_err(refused)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(refused(error)),
    }
    // Bound under a name that nobody knows and opened to nobody else before it gets its own: at
    // no moment can another user connect.
    let hidden = path.with_extension(format!("{}.new", std::process::id()));
    match std::fs::remove_file(&hidden) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refused(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&hidden).map_err(refused)?;
    let meta = std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&hidden, path))
        .and_then(|()| std::fs::symlink_metadata(path))
        .map_err(refused)?;
    Ok((listener, SocketFile { path: path.to_owned(), identity: identity(&meta) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_live_socket_is_kept_and_a_dead_one_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("run/weft.sock");
        let (listener, file) = claim(&path, "socket").await.expect("free");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(claim(&path, "socket").await, Err(ListenError::Alive { .. })));
        drop(listener);
        let (_listener, again) = claim(&path, "socket").await.expect("the old one is dead");
        drop(file);
        assert!(path.exists(), "a file that is not ours any more is not removed");
        drop(again);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn something_else_in_the_way_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("weft.sock");
        std::fs::write(&path, "precious").expect("written");
        assert!(matches!(claim(&path, "socket").await, Err(ListenError::Other { .. })));
        assert_eq!(std::fs::read(&path).expect("there"), b"precious");
        let error = claim(&path.join("x"), "socket").await.expect_err("a file is no directory");
        assert!(error.to_string().contains("--socket"), "{error}");
    }
}
