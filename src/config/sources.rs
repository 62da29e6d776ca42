//! Where the settings of this process come from, so that they can be read again.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::{Given, KEYS, Problem, Problems, Settings, gather};

/// Largest configuration file, in bytes.
const CONFIG_MAX: u64 = 1 << 20;

/// Flags and environment as they were at the start, and the name of the file.
#[derive(Debug, Clone)]
pub struct Sources {
    /// What was on the command line, by key.
    pub flags: BTreeMap<&'static str, Given>,
    /// The variables `WEFT_…`.
    pub environment: BTreeMap<String, String>,
    /// The configuration file, absolute.
    pub file: Option<PathBuf>,
    /// What relative paths are relative to: the directory of the start.
    pub directory: PathBuf,
    /// Name of a peer that is given none.
    pub hostname: String,
}

impl Sources {
    /// Reads the file, if there is one, and merges the three.
    ///
    /// # Errors
    /// All mistakes at once, each with the key, its value, and what to do.
    pub fn read(&self) -> Result<Settings, Problems> {
        let text = match &self.file {
            Some(path) => Some(read_config(path)?),
            None => None,
        };
        let file = self.file.as_deref().zip(text.as_deref());
        let given = gather(self.flags.clone(), |name| self.environment.get(name).cloned(), file)?;
        Settings::parse(&given, &self.hostname, &self.directory)
    }
}

/// Variables that are no keys.
const OTHER: &[&str] = &["WEFT_CONFIG", "WEFT_SECRET", "WEFT_BACKGROUND"];
/// Kubernetes sets these for a Service that is named `weft`.
const KUBERNETES: &[&str] = &["WEFT_SERVICE_", "WEFT_PORT_"];

impl Sources {
    /// Variables that look like keys and are none: misspelt, or of another version.
    #[must_use]
    pub fn unknown_variables(&self) -> Vec<&str> {
        let known = |name: &str| {
            OTHER.contains(&name)
                || KEYS.iter().any(|key| key.variable() == name)
                || KUBERNETES.iter().any(|prefix| name.starts_with(prefix))
        };
        self.environment.keys().map(String::as_str).filter(|name| !known(name)).collect()
    }
}

fn read_config(path: &Path) -> Result<String, Problems> {
    let wrong = |why: String| Problems(vec![Problem { what: format!("configuration file {}", path.display()), why }]);
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(CONFIG_MAX + 1).read_to_string(&mut text));
    match read {
        Err(error) => Err(wrong(error.to_string())),
        Ok(length) if length as u64 > CONFIG_MAX => {
            Err(wrong(format!("is longer than {CONFIG_MAX} bytes: is it the right file?")))
        }
        Ok(_) => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(file: &Path) -> Sources {
        Sources {
            flags: BTreeMap::new(),
            environment: BTreeMap::from([("WEFT_PORT".to_owned(), "7000".to_owned())]),
            file: Some(file.to_owned()),
            directory: PathBuf::from("/start"),
            hostname: "host1".to_owned(),
        }
    }

    #[test]
    fn the_file_is_read_anew_and_flags_and_environment_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("weft.toml");
        std::fs::write(&path, "peer = \"a\"\nport = 1\ndata-dir = \"data\"\n").expect("written");
        let sources = sources(&path);
        let settings = sources.read().expect("valid");
        assert_eq!((settings.port, &settings.peers[..]), (7000, &["a".to_owned()][..]));
        assert_eq!(settings.data_dir, Path::new("/start/data"), "whatever directory the process is in now");
        std::fs::write(&path, "peer = [\"a\", \"b\"]\n").expect("written");
        assert_eq!(sources.read().expect("valid").peers, ["a", "b"]);
    }

    #[test]
    fn a_misspelt_variable_is_named() {
        let mut sources = sources(Path::new("/none"));
        for name in ["WEFT_PERR", "WEFT_LOG_LEVEL", "WEFT_SECRET", "WEFT_SERVICE_HOST", "WEFT_PORT_6783_UDP"] {
            sources.environment.insert(name.to_owned(), "1".to_owned());
        }
        assert_eq!(sources.unknown_variables(), ["WEFT_PERR"]);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = dir.path().join("missing.toml");
        let long = dir.path().join("long.toml");
        std::fs::write(&long, "#".repeat(1 + (1 << 20))).expect("written");
        let binary = dir.path().join("binary.toml");
        std::fs::write(&binary, [0xff, 0xfe]).expect("written");
        for (path, word) in [(&missing, "No such file"), (&long, "longer"), (&binary, "UTF-8")] {
            let text = sources(path).read().expect_err("no file").to_string();
            assert!(text.contains(&path.display().to_string()) && text.contains(word), "{text}");
        }
        let text = sources(dir.path()).read().expect_err("a directory").to_string();
        assert!(text.contains("directory"), "{text}");
    }
}
