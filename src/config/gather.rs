//! Collects the raw values of every key from flags, environment and file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Problem, Problems};

/// One key of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Name of the flag (`--name`) and of the key in the file.
    pub name: &'static str,
    /// Whether it takes more than one value.
    pub many: bool,
    /// Whether a running router takes a new value from the file (`weft reload`).
    pub live: bool,
}

/// Every key there is. The variable of the environment is `WEFT_` and the name in capitals,
/// with `_` for `-`; lists there are separated by commas.
pub const KEYS: &[Key] = &[
    Key { name: "name", many: false, live: false },
    Key { name: "network", many: false, live: false },
    Key { name: "peer", many: true, live: true },
    Key { name: "listen", many: false, live: false },
    Key { name: "port", many: false, live: false },
    Key { name: "advertise", many: true, live: true },
    Key { name: "range", many: true, live: false },
    Key { name: "ipalloc-init", many: false, live: false },
    Key { name: "dead-after", many: false, live: false },
    Key { name: "secret-file", many: false, live: true },
    Key { name: "data-dir", many: false, live: false },
    Key { name: "socket", many: false, live: false },
    Key { name: "metrics", many: false, live: true },
    Key { name: "docker-socket", many: false, live: false },
    Key { name: "bridge", many: false, live: false },
    Key { name: "mtu", many: false, live: false },
    Key { name: "cipher", many: false, live: false },
    Key { name: "busy-poll", many: false, live: false },
    Key { name: "no-discovery", many: false, live: false },
    Key { name: "no-fast-path", many: false, live: false },
    Key { name: "trusted-subnet", many: true, live: false },
    Key { name: "dns-listen", many: true, live: false },
    Key { name: "dns-domain", many: false, live: false },
    Key { name: "dns-resolv-conf", many: false, live: false },
    Key { name: "detach", many: false, live: false },
    Key { name: "log-level", many: false, live: true },
    Key { name: "log-format", many: false, live: false },
];

impl Key {
    /// The variable of the environment that sets this key.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("WEFT_{}", self.name.to_uppercase().replace('-', "_"))
    }
}

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// On the command line.
    Flag,
    /// In the environment.
    Environment,
    /// In the configuration file.
    File(PathBuf),
}

/// The values of one key and where they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// As written; one unless the key takes many.
    pub values: Vec<String>,
    /// Where.
    pub source: Source,
}

impl Source {
    /// The key with a value, the way the operator wrote it.
    #[must_use]
    pub fn label(&self, key: &str, value: &str) -> String {
        match self {
            Self::Flag if matches!(key, "no-discovery" | "no-fast-path" | "detach") => format!("--{key}"),
            Self::Flag => format!("--{key} {value}"),
            Self::Environment => {
                format!("WEFT_{}={value}", key.to_uppercase().replace('-', "_"))
            }
            Self::File(path) => format!("`{key}` = {value} in {}", path.display()),
        }
    }
}

/// Values by key, as the strongest source gave them.
pub type Gathered = BTreeMap<&'static str, Given>;

/// Merges the three sources. `flags` holds what was on the command line, by key.
///
/// # Errors
/// Every key of the file that is unknown or of an impossible type, or the file's syntax.
pub fn gather(
    flags: BTreeMap<&'static str, Given>,
    environment: impl Fn(&str) -> Option<String>,
    file: Option<(&Path, &str)>,
) -> Result<BTreeMap<&'static str, Given>, Problems> {
    let mut merged = match file {
        Some((path, text)) => from_file(path, text)?,
        None => Gathered::new(),
    };
    for key in KEYS {
        // An empty variable is one that a unit file or a compose file left unset.
        let Some(text) = environment(&key.variable()).filter(|text| !text.trim().is_empty()) else {
            continue;
        };
        let values = if key.many {
            text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
        } else {
            vec![text]
        };
        merged.insert(key.name, Given { values, source: Source::Environment });
    }
    merged.extend(flags);
    Ok(merged)
}

fn from_file(path: &Path, text: &str) -> Result<Gathered, Problems> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        Problems(vec![Problem {
            what: format!("configuration file {}", path.display()),
            why: format!("not valid TOML: {}", error.to_string().trim_end()),
        }])
    })?;
    let mut found = Gathered::new();
    let mut problems = Vec::new();
    for (name, value) in &table {
        let what = || format!("`{name}` in {}", path.display());
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            problems.push(Problem { what: what(), why: unknown(name) });
            continue;
        };
        match scalars(value, key.many) {
            Some(values) => {
                let source = Source::File(path.to_owned());
                found.insert(key.name, Given { values, source });
            }
            None => {
                let why = if key.many {
                    "expected a string, or a list of strings such as [\"a\", \"b\"]"
                } else {
                    "expected one string, number or boolean"
                };
                problems.push(Problem { what: what(), why: why.to_owned() });
            }
        }
    }
    if problems.is_empty() { Ok(found) } else { Err(Problems(problems)) }
}

fn unknown(name: &str) -> String {
    // The two mistakes that people make: the plural, and `_` for `-`.
    let singular = name.replace('_', "-");
    let singular = singular.trim_end_matches('s');
    match KEYS.iter().find(|key| key.name.trim_end_matches('s') == singular) {
        Some(key) => format!("unknown key; did you mean `{}`?", key.name),
        None => {
            let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
            format!("unknown key; the keys are: {}", names.join(", "))
        }
    }
}

fn scalars(value: &toml::Value, many: bool) -> Option<Vec<String>> {
    match value {
        toml::Value::Array(items) if many => items.iter().map(scalar).collect(),
        other => Some(vec![scalar(other)?]),
    }
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(key: &'static str, value: &str) -> Gathered {
        Gathered::from([(key, Given { values: vec![value.to_owned()], source: Source::Flag })])
    }

    #[test]
    fn flags_win_over_environment_over_file() {
        let file = "name = \"file\"\nport = 1\nmtu = 1300\n";
        let environment = |name: &str| match name {
            "WEFT_NAME" => Some("environment".to_owned()),
            "WEFT_PORT" => Some("2".to_owned()),
            _ => None,
        };
        let path = Path::new("weft.toml");
        let merged = gather(flag("name", "flag"), environment, Some((path, file))).expect("valid");
        assert_eq!(merged["name"].values, ["flag"]);
        assert_eq!(merged["port"].values, ["2"]);
        assert_eq!(merged["mtu"].values, ["1300"]);
        assert_eq!(merged["mtu"].source, Source::File(path.to_owned()));
    }

    #[test]
    fn every_unknown_key_is_reported_with_the_likely_one() {
        let file = "peers = [\"a\"]\nlog_level = \"info\"\nfrobnicate = 1\nname = [1]\n";
        let error = gather(Gathered::new(), |_| None, Some((Path::new("w.toml"), file))).expect_err("four mistakes");
        let text = error.to_string();
        assert_eq!(error.0.len(), 4, "{text}");
        assert!(text.contains("did you mean `peer`?"), "{text}");
        assert!(text.contains("did you mean `log-level`?"), "{text}");
        assert!(text.contains("`frobnicate` in w.toml"), "{text}");
        assert!(text.contains("`name` in w.toml"), "{text}");
    }

    #[test]
    fn a_file_that_is_not_toml_is_named_with_the_line() {
        let error = gather(Gathered::new(), |_| None, Some((Path::new("w.toml"), "a = = 1"))).expect_err("syntax");
        assert!(error.to_string().contains("w.toml"));
        assert!(error.to_string().contains("line 1"));
    }

    #[test]
    fn lists_come_as_array_or_string_or_separated_by_commas() {
        let file = "peer = [\"a\", \"b\"]\nrange = \"10.0.0.0/8\"\n";
        let environment = |name: &str| (name == "WEFT_ADVERTISE").then(|| "x, y,".to_owned());
        let merged = gather(Gathered::new(), environment, Some((Path::new("w"), file))).expect("valid");
        assert_eq!(merged["peer"].values, ["a", "b"]);
        assert_eq!(merged["range"].values, ["10.0.0.0/8"]);
        assert_eq!(merged["advertise"].values, ["x", "y"]);
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let merged = gather(Gathered::new(), |_| Some(" ".to_owned()), None).expect("valid");
        assert!(merged.is_empty());
    }
}
