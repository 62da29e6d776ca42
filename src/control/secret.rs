//! The network secret: from a file or the environment, stretched once, never shown.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use argon2::{Algorithm, Argon2, Params, Version};
use mesh_proto::handover::SessionKey;
use zeroize::Zeroizing;

/// The variable that holds the secret itself.
pub const VARIABLE: &str = "WEFT_SECRET";
/// Longest secret, in bytes: a file that is larger is not one.
const MAX: u64 = 4096;

/// A secret as it was read, and what should be said about how it was kept.
#[derive(Debug)]
pub struct Loaded {
    /// The secret, without surrounding white space.
    pub secret: Secret,
    /// A warning for the operator.
    pub warning: Option<String>,
}

/// Text that wipes itself and never shows itself.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why there is no secret where one was announced.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("secret file {path}: {why}")]
    File {
        /// The file.
        path: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// The variable holds nothing.
    #[error("{VARIABLE} is set but empty; give a secret, or unset it to run without encryption")]
    EmptyVariable,
    /// The variable holds lines.
    #[error("{VARIABLE} has more than one line; a secret is one")]
    LongVariable,
}

impl Secret {
    /// Takes a secret from the environment, as [`take_variable`] found it.
    ///
    /// # Errors
    /// If it is empty, or more than one line.
    pub fn from_variable(mut value: Zeroizing<Vec<u8>>) -> Result<Self, SecretError> {
        trim(&mut value);
        match value.contains(&b'\n') {
            true => Err(SecretError::LongVariable),
            false if value.is_empty() => Err(SecretError::EmptyVariable),
            false => Ok(Self(value)),
        }
    }

    /// Reads a secret from a file.
    ///
    /// # Errors
    /// If it cannot be read, is empty, or is no secret by its size.
    pub fn from_file(path: &Path) -> Result<Loaded, SecretError> {
        let wrong = |why: String| SecretError::File { path: path.display().to_string(), why };
        let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
        let meta = file.metadata().map_err(|error| wrong(error.to_string()))?;
        if meta.is_dir() {
            return Err(wrong("is a directory".to_owned()));
        }
        let mut value = Zeroizing::new(Vec::with_capacity(MAX as usize + 1));
        file.take(MAX + 1).read_to_end(&mut value).map_err(|error| wrong(error.to_string()))?;
        if value.len() as u64 > MAX {
            return Err(wrong(format!("is longer than {MAX} bytes: is it the right file?")));
        }
        trim(&mut value);
        if value.is_empty() {
            return Err(wrong(
                "is empty; write the secret into it, or leave --secret-file out to run without encryption".to_owned(),
            ));
        }
        if value.contains(&b'\n') {
            return Err(wrong("has more than one line; a secret is one: is it the right file?".to_owned()));
        }
        let others = meta.mode() & 0o077 != 0 && meta.is_file();
        let warning = others.then(|| {
            format!(
                "secret file {} can be read by other users (mode {:o}): chmod 600 it",
                path.display(),
                meta.mode() & 0o777
            )
        });
        Ok(Loaded { secret: Self(value), warning })
    }

    /// Stretches the secret with Argon2id (19 MiB, 2 passes, 1 lane: the first choice of the
    /// OWASP password storage guide), salted with the network's name. Takes about 30 ms.
    ///
    /// # Errors
    /// If the memory for it is not there.
    pub fn stretch(&self, network: &str) -> anyhow::Result<SessionKey> {
        let mut salted = b"weft network secret\0".to_vec();
        salted.extend_from_slice(network.as_bytes());
        let salt = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &salted);
        let failed = |error| anyhow::anyhow!("the network secret cannot be stretched: {error}");
        let params = Params::new(19 * 1024, 2, 1, Some(32)).map_err(failed)?;
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(&self.0, salt.as_ref(), key.as_mut_slice())
            .map_err(failed)?;
        Ok(SessionKey(key))
    }
}

fn trim(value: &mut Zeroizing<Vec<u8>>) {
    let end = value.trim_ascii_end().len();
    value.truncate(end);
    let start = value.len() - value.trim_ascii_start().len();
    value.drain(..start);
}

/// Takes the secret out of the environment: wipes the bytes that `/proc/PID/environ` shows, and
/// unsets the variable so that no child inherits it. Only before the first thread is started.
#[must_use]
#[expect(unsafe_code, reason = "the initial environment is reachable through libc only")]
pub fn take_variable() -> Option<Zeroizing<Vec<u8>>> {
    use std::os::unix::ffi::OsStringExt as _;

    let value = Zeroizing::new(std::env::var_os(VARIABLE)?.into_vec());
    // SAFETY: `weft::cli::main` calls this first, while the process has one thread: nobody reads
    // or writes the environment meanwhile. `getenv` gives the terminated string that belongs to
    // the process; only its own bytes, up to the terminator, are overwritten.
    unsafe {
        let text = libc::getenv(c"WEFT_SECRET".as_ptr());
        if !text.is_null() {
            for at in 0..libc::strlen(text) {
                text.add(at).write_volatile(0);
            }
        }
        std::env::remove_var(VARIABLE);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(content: &[u8], mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("made");
        std::fs::write(file.path(), content).expect("written");
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("changed");
        file
    }

    #[test]
    fn white_space_around_the_secret_does_not_count() {
        let plain = Secret::from_variable(Zeroizing::new(b"s3cret".to_vec())).expect("given");
        let padded = file(b"  s3cret\r\n", 0o600);
        let padded = Secret::from_file(padded.path()).expect("given");
        assert!(padded.warning.is_none());
        let (one, two) = (plain.stretch("n"), padded.secret.stretch("n"));
        assert_eq!(one.expect("stretched").0, two.expect("stretched").0);
    }

    #[test]
    fn network_and_secret_both_matter() {
        let secret = |text: &str| Secret::from_variable(Zeroizing::new(text.into())).expect("set");
        let key = |text: &str, network| secret(text).stretch(network).expect("stretched").0;
        assert_ne!(key("a", "n"), key("b", "n"));
        assert_ne!(key("a", "n"), key("a", "m"));
    }

    #[test]
    fn a_file_that_others_can_read_is_warned_about() {
        let open = file(b"s", 0o644);
        let warning = Secret::from_file(open.path()).expect("given").warning.expect("warned");
        assert!(warning.contains("chmod 600"), "{warning}");
    }

    #[test]
    fn empty_missing_huge_and_long_files_are_refused_by_name() {
        for content in [&b" \n"[..], b"one\ntwo\n", &[b'a'; 5000]] {
            let file = file(content, 0o600);
            let error = Secret::from_file(file.path()).expect_err("refused").to_string();
            assert!(error.contains(&file.path().display().to_string()), "{error}");
        }
        assert!(Secret::from_file(Path::new("/nonexistent/secret")).is_err());
        assert!(Secret::from_file(Path::new("/")).is_err());
        for variable in ["\t\n", "one\ntwo"] {
            assert!(Secret::from_variable(Zeroizing::new(variable.into())).is_err());
        }
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        let secret = Secret::from_variable(Zeroizing::new(b"visible".to_vec())).expect("set");
        assert!(!format!("{secret:?}").contains("visible"));
    }
}
