//! One router a data directory: a lock that the kernel drops with the process.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Holds a data directory for this process until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why a data directory cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It cannot be made or written.
    #[error("data directory {}: {source}; make it writable for this user or choose another one (--data-dir)", path.display())]
    Unusable {
        /// The directory, or the file in it.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another router uses it.
    #[error("data directory {} is in use by the router with pid {pid}; stop that one (weft down) or choose another directory (--data-dir)", path.display())]
    Taken {
        /// The directory.
        path: PathBuf,
        /// Who holds it.
        pid: String,
    },
}

impl Lock {
    /// Makes the directory (0700) if it is not there, and takes it.
    ///
    /// # Errors
    /// If it is not writable or another router has it.
    pub fn take(directory: &Path) -> Result<Self, LockError> {
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |source| LockError::Unusable { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(unusable(directory))?;
        let path = directory.join("weft.lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(unusable(&path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Only for the message: what cannot be read is shown as unknown.
                let read = (&file).take(16).read_to_string(&mut pid);
                let known = read.is_ok() && !pid.trim().is_empty();
                let pid = if known { pid.trim().to_owned() } else { "unknown".to_owned() };
                return Err(LockError::Taken { path: directory.to_owned(), pid });
            }
            Err(errno) => return Err(unusable(&path)(errno.into())),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(unusable(&path))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_once_and_free_again_after() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("deep/data");
        let lock = Lock::take(&path).expect("free");
        let error = Lock::take(&path).expect_err("taken").to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(lock);
        Lock::take(&path).expect("free again");
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("data");
        std::fs::write(&path, "").expect("written");
        let error = Lock::take(&path).expect_err("a file").to_string();
        assert!(error.contains("data directory") && error.contains("--data-dir"), "{error}");
    }
}
