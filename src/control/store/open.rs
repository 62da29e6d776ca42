//! Opens the file: reads all of it, or keeps it aside and begins anew.

use std::collections::BTreeMap;
use std::fs::{OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_proto::id::Incarnation;
use redb::{Database, ReadableDatabase as _, ReadableTable as _};
use zeroize::Zeroizing;

use super::{State, Table};

/// Version of what is in the tables.
const FORMAT: u64 = 1;
/// Entry that is there once the router had a secret.
const SEALED: &[u8] = b"sealed";
/// Name of the file in the data directory.
const FILE: &str = "weft.redb";

/// The file, open.
#[derive(Debug)]
pub struct File(pub(super) Database);

impl File {
    /// Remembers for good that this peer's network has a secret.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn remember_secret(&self) -> Result<(), String> {
        let entry = BTreeMap::from([(SEALED.to_vec(), vec![1])]);
        write_meta(&self.0, &entry).map_err(|error| error.to_string())
    }
}

/// An open file, read.
#[derive(Debug)]
pub struct Opened {
    /// For the [`super::Store`].
    pub file: File,
    /// All that was in it.
    pub state: State,
    /// Where an unreadable file was kept, and why it was; then `state` is that of a new peer.
    pub set_aside: Option<(PathBuf, String)>,
}

/// Why there is no state to run with.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A newer version wrote it.
    #[error("{}: written by a newer version of weft (format {found}, this version knows {FORMAT}); run that version, or choose another --data-dir", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The system refused.
    #[error("{}: {why}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What it said.
        why: String,
    },
}

/// Why a file could not be used.
enum Trouble {
    Unreadable(String),
    Fatal(OpenError),
}

/// Opens the state in a directory that this process holds, makes it if there is none, and raises
/// the incarnation durably.
///
/// # Errors
/// If the file is of a newer version, or the system refuses to read or write it. A file that is
/// unreadable is no error: it is renamed, and the peer begins anew.
pub fn open(directory: &Path) -> Result<Opened, OpenError> {
    let path = directory.join(FILE);
    match attempt(&path) {
        Ok((database, state)) => Ok(Opened { file: File(database), state, set_aside: None }),
        Err(Trouble::Fatal(error)) => Err(error),
        Err(Trouble::Unreadable(why)) => {
            let kept = set_aside(&path).map_err(|error| OpenError::Refused {
                path: path.clone(),
                why: format!("unreadable ({why}), and cannot be renamed: {error}"),
            })?;
            let (database, state) = attempt(&path).map_err(|trouble| match trouble {
                Trouble::Fatal(error) => error,
                Trouble::Unreadable(why) => OpenError::Refused { path, why },
            })?;
            Ok(Opened { file: File(database), state, set_aside: Some((kept, why)) })
        }
    }
}

/// Keeps a copy of the file as it is, for whoever looks for what was unreadable in it.
///
/// # Errors
/// If it cannot be read or written.
pub fn keep_copy(directory: &Path) -> io::Result<PathBuf> {
    let path = directory.join(FILE);
    let kept = name_aside(&path)?;
    // Its permissions are copied too. What it was copied from is about to be deleted.
    let copied = std::fs::copy(&path, &kept).and_then(|_| std::fs::File::open(&kept)?.sync_all());
    if let Err(error) = copied.and_then(|()| std::fs::File::open(directory)?.sync_all()) {
        // Half a copy is of no use, and the next start makes another.
        _ = std::fs::remove_file(&kept);
        return Err(error);
    }
    Ok(kept)
}

fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let kept = name_aside(path)?;
    std::fs::rename(path, &kept)?;
    Ok(kept)
}

/// A name beside the file that nothing has.
fn name_aside(path: &Path) -> io::Result<PathBuf> {
    let mut number = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    loop {
        let kept = path.with_extension(format!("redb.unreadable-{number}"));
        if !kept.try_exists()? {
            return Ok(kept);
        }
        number += 1;
    }
}

/// The database library checks what it reads, but a page that is wrong behind a right checksum
/// can make it panic: that, too, is a file that cannot be read.
fn attempt(path: &Path) -> Result<(Database, State), Trouble> {
    catch_unwind(AssertUnwindSafe(|| attempt_once(path)))
        .unwrap_or_else(|_| Err(Trouble::Unreadable("the database library gave up on it".into())))
}

fn attempt_once(path: &Path) -> Result<(Database, State), Trouble> {
    let refused = |error: &dyn std::fmt::Display| {
        Trouble::Fatal(OpenError::Refused { path: path.to_owned(), why: error.to_string() })
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| refused(&error))?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(|error| refused(&error))?;
    let mut database = redb::Builder::new().set_cache_size(8 << 20).create_file(file).map_err(|error| match error {
        redb::DatabaseError::Storage(redb::StorageError::Io(io))
            if io.kind() != io::ErrorKind::InvalidData && io.kind() != io::ErrorKind::UnexpectedEof =>
        {
            refused(&io)
        }
        redb::DatabaseError::DatabaseAlreadyOpen => refused(&error),
        other => Trouble::Unreadable(other.to_string()),
    })?;
    let unreadable = |error: &dyn std::fmt::Display| Trouble::Unreadable(error.to_string());
    if !database.check_integrity().map_err(|error| unreadable(&error))? {
        return Err(Trouble::Unreadable("a checksum is wrong".to_owned()));
    }
    let state = load(&database, path)?;
    Ok((database, state))
}

/// One transaction: reads everything, fills in what a new peer needs, raises the incarnation.
fn load(database: &Database, path: &Path) -> Result<State, Trouble> {
    let unreadable = |error: redb::Error| Trouble::Unreadable(error.to_string());
    let mut meta = read(database, Table::Meta).map_err(unreadable)?;
    if meta.is_empty() {
        meta = new_peer();
    }
    let format = u64::from_be_bytes(exact(&meta, "format")?);
    if format > FORMAT {
        return Err(Trouble::Fatal(OpenError::Newer { path: path.to_owned(), found: format }));
    }
    let incarnation = u64::from_be_bytes(exact(&meta, "incarnation")?).saturating_add(1);
    meta.insert(b"incarnation".to_vec(), incarnation.to_be_bytes().to_vec());
    let state = State {
        sign_seed: Zeroizing::new(exact(&meta, "sign-seed")?),
        box_secret: Zeroizing::new(exact(&meta, "box-secret")?),
        instance: u64::from_be_bytes(exact(&meta, "instance")?),
        incarnation: Incarnation(incarnation),
        sealed: meta.contains_key(SEALED),
        ipam: read(database, Table::Ipam).map_err(unreadable)?.into_iter().collect(),
        attachments: read(database, Table::Attachments).map_err(unreadable)?,
        peers: read(database, Table::Peers).map_err(unreadable)?,
        trust: read(database, Table::Trust).map_err(unreadable)?.into_iter().collect(),
        docker: read(database, Table::Docker).map_err(unreadable)?,
        names: read(database, Table::Names).map_err(unreadable)?,
        services: read(database, Table::Services).map_err(unreadable)?,
    };
    write_meta(database, &meta)
        .map_err(|error| Trouble::Fatal(OpenError::Refused { path: path.to_owned(), why: error.to_string() }))?;
    Ok(state)
}

fn read(database: &Database, table: Table) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, redb::Error> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(table.definition()) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeMap::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        found.insert(key.value().to_vec(), value.value().to_vec());
    }
    Ok(found)
}

fn write_meta(database: &Database, meta: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    for table in Table::ALL {
        transaction.open_table(table.definition())?;
    }
    {
        let mut table = transaction.open_table(Table::Meta.definition())?;
        for (key, value) in meta {
            table.insert(key.as_slice(), value.as_slice())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn new_peer() -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut secrets = Zeroizing::new([0; 72]);
    // The system's generator does not fail once it is seeded, which it is long before us.
    aws_lc_rs::rand::fill(secrets.as_mut_slice()).expect("the system has random numbers");
    let entry = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
    BTreeMap::from([
        entry("format", &FORMAT.to_be_bytes()),
        entry("sign-seed", &secrets[..32]),
        entry("box-secret", &secrets[32..64]),
        entry("instance", &secrets[64..]),
        entry("incarnation", &0_u64.to_be_bytes()),
    ])
}

fn exact<const N: usize>(meta: &BTreeMap<Vec<u8>, Vec<u8>>, name: &str) -> Result<[u8; N], Trouble> {
    let Some(value) = meta.get(name.as_bytes()) else {
        return Err(Trouble::Unreadable(format!("the entry `{name}` is missing")));
    };
    value
        .as_slice()
        .try_into()
        .map_err(|_| Trouble::Unreadable(format!("the entry `{name}` has {} bytes, not {N}", value.len())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn aside(directory: &Path) -> usize {
        std::fs::read_dir(directory)
            .expect("listed")
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().contains("unreadable-"))
            .count()
    }

    #[test]
    fn a_restart_keeps_the_keys_and_raises_the_incarnation() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = open(dir.path()).expect("made").state;
        let second = open(dir.path()).expect("opened").state;
        assert_eq!(first.sign_seed, second.sign_seed);
        assert_eq!(first.box_secret, second.box_secret);
        assert_eq!(first.instance, second.instance);
        assert_eq!((first.incarnation.0, second.incarnation.0), (1, 2));
        let mode = dir.path().join(FILE).metadata().expect("there").mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn two_directories_are_two_peers() {
        let (one, two) = (tempfile::tempdir().expect("a"), tempfile::tempdir().expect("b"));
        let (one, two) = (open(one.path()).expect("a"), open(two.path()).expect("b"));
        assert_ne!(one.state.sign_seed, two.state.sign_seed);
        assert_ne!(one.state.instance, two.state.instance);
    }

    #[test]
    fn garbage_is_kept_aside_and_a_new_peer_begins() {
        for garbage in [&b"garbage"[..], &[0; 5000], &[0xff; 70_000]] {
            let dir = tempfile::tempdir().expect("a directory");
            std::fs::write(dir.path().join(FILE), garbage).expect("written");
            let opened = open(dir.path()).expect("begins anew");
            let (kept, why) = opened.set_aside.expect("kept aside");
            assert_eq!(std::fs::read(kept).expect("readable"), garbage);
            assert!(!why.is_empty());
            assert_eq!(opened.state.incarnation.0, 1);
        }
    }

    #[test]
    fn a_file_cut_anywhere_opens_or_is_kept_aside_but_never_stops_the_start() {
        let dir = tempfile::tempdir().expect("a directory");
        let whole = {
            open(dir.path()).expect("made");
            std::fs::read(dir.path().join(FILE)).expect("read")
        };
        for cut in [1, 64, 512, 4096, 8192, whole.len() / 2, whole.len() - 1] {
            let dir = tempfile::tempdir().expect("a directory");
            std::fs::write(dir.path().join(FILE), &whole[..cut]).expect("written");
            let opened = open(dir.path()).expect("starts");
            assert_eq!(aside(dir.path()), usize::from(opened.set_aside.is_some()));
        }
    }

    #[test]
    fn flipped_bytes_never_stop_the_start_nor_change_the_keys_in_silence() {
        let dir = tempfile::tempdir().expect("a directory");
        let (whole, seed) = {
            let opened = open(dir.path()).expect("made");
            let seed = opened.state.sign_seed.clone();
            drop(opened);
            (std::fs::read(dir.path().join(FILE)).expect("read"), seed)
        };
        for step in 0..60 {
            let mut broken = whole.clone();
            for byte in broken.iter_mut().skip(step * 11).step_by(660) {
                *byte ^= 0x55;
            }
            let dir = tempfile::tempdir().expect("a directory");
            std::fs::write(dir.path().join(FILE), broken).expect("written");
            let opened = open(dir.path()).expect("starts");
            assert!(opened.set_aside.is_some() || opened.state.sign_seed == seed);
        }
    }

    #[test]
    fn a_newer_format_is_left_alone_and_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let opened = open(dir.path()).expect("made");
        let newer = BTreeMap::from([(b"format".to_vec(), 9_u64.to_be_bytes().to_vec())]);
        write_meta(&opened.file.0, &newer).expect("written");
        drop(opened);
        let error = open(dir.path()).expect_err("newer").to_string();
        assert!(error.contains("newer version"), "{error}");
        assert_eq!(aside(dir.path()), 0);
    }

    #[test]
    fn that_there_was_a_secret_is_remembered() {
        let dir = tempfile::tempdir().expect("a directory");
        let opened = open(dir.path()).expect("made");
        assert!(!opened.state.sealed);
        opened.file.remember_secret().expect("written");
        drop(opened);
        assert!(open(dir.path()).expect("opened").state.sealed);
    }

    #[test]
    fn an_entry_of_the_wrong_length_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let opened = open(dir.path()).expect("made");
        let short = BTreeMap::from([(b"sign-seed".to_vec(), vec![1; 31])]);
        write_meta(&opened.file.0, &short).expect("written");
        drop(opened);
        let (_, why) = open(dir.path()).expect("anew").set_aside.expect("kept aside");
        assert!(why.contains("sign-seed") && why.contains("31"), "{why}");
    }
}
