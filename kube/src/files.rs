//! Files that others read while they are written.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Puts a file in place of another, durably, whole or not at all: written beside it, synced, and
/// renamed within the directory, which is what containerd takes notice of. Says whether anything
/// was to be done.
///
/// # Errors
/// If it cannot be written; then the old one is as it was, and nothing lies beside it.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
    let said = |error: io::Error| io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()));
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(said(io::Error::new(io::ErrorKind::InvalidInput, "it has no name")));
    };
    if is(path, content, mode) {
        return Ok(false);
    }
    // The leading dot and the ending keep runtimes from taking it for a configuration or a plugin.
    let beside: PathBuf = directory.join(format!(".{}.{}.new", name.to_string_lossy(), std::process::id()));
    let write = || {
        let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.write_all(content)?;
        // The mode of `open` is less the umask, and that of a file that was left behind is its own.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&beside);
        said(error)
    })?;
    Ok(true)
}

fn is(path: &Path, content: &[u8], mode: u32) -> bool {
    let Ok(there) = fs::symlink_metadata(path) else { return false };
    there.is_file()
        && there.len() == content.len() as u64
        && there.permissions().mode() & 0o777 == mode
        && fs::read(path).is_ok_and(|bytes| bytes == content)
}

/// Deletes a file; says whether it was there.
///
/// # Errors
/// If it is there and cannot be deleted.
pub fn delete(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot delete {}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("a directory");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("plugin");
        assert!(replace(&path, b"one", 0o755).expect("written"));
        let first = File::open(&path).expect("there");
        assert!(replace(&path, b"two", 0o755).expect("written"));
        assert!(!replace(&path, b"two", 0o755).expect("there already"));
        assert!(replace(&path, b"two", 0o644).expect("another mode"));
        assert_eq!(io::read_to_string(first).expect("read"), "one", "who runs the old one goes on with it");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o644);
        assert_eq!(names(dir.path()), ["plugin"]);
        assert!(delete(&path).expect("deleted") && !delete(&path).expect("gone"));
    }

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, target) = (dir.path().join("plugin"), dir.path().join("target"));
        fs::write(&target, "same").expect("written");
        std::os::unix::fs::symlink(&target, &path).expect("linked");
        assert!(replace(&path, b"same", 0o644).expect("written"));
        assert!(fs::symlink_metadata(&path).expect("there").is_file());
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_one_and_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        // A directory cannot be replaced by a file.
        let path = dir.path().join("plugin");
        fs::create_dir(&path).expect("made");
        let error = replace(&path, b"x", 0o644).expect_err("a directory").to_string();
        assert!(error.contains("plugin"), "{error}");
        assert_eq!(names(dir.path()), ["plugin"]);
        assert!(replace(&dir.path().join("none/plugin"), b"x", 0o644).is_err());
    }
}
