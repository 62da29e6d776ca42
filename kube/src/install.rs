//! The plugin's binary and its configuration, on the host.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::files::{delete, replace};

/// Name of the plugin, as configurations call it.
const PLUGIN: &str = "weft-cni";

/// Where the runtime looks for plugins and configurations.
#[derive(Debug, Clone)]
pub struct Host {
    /// Folder of plugins, as `/opt/cni/bin`.
    pub bin_dir: PathBuf,
    /// Folder of configurations, as `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
}

impl Host {
    /// Installs both, the plugin first: a configuration that names a plugin which is not there
    /// makes pods fail.
    ///
    /// # Errors
    /// If one cannot be read or written, or the configuration has no such plugin.
    pub fn install(&self, plugin: &Path, conflist: &Path) -> anyhow::Result<()> {
        let binary = fs::read(plugin).with_context(|| format!("cannot read {}", plugin.display()))?;
        let text = fs::read(conflist).with_context(|| format!("cannot read {}", conflist.display()))?;
        check(&text).with_context(|| format!("{} is no configuration of {PLUGIN}", conflist.display()))?;
        let name = conflist.file_name().context("the configuration has no name")?;
        for (path, content, mode) in
            [(self.bin_dir.join(PLUGIN), &binary, 0o755), (self.conf_dir.join(name), &text, 0o644)]
        {
            if replace(&path, content, mode)? {
                tracing::info!("installed {}", path.display());
            }
        }
        Ok(())
    }

    /// Takes both away again, the configuration first.
    ///
    /// # Errors
    /// If one is there and cannot be deleted.
    pub fn uninstall(&self, conflist: &Path) -> anyhow::Result<()> {
        let name = conflist.file_name().context("the configuration has no name")?;
        for path in [self.conf_dir.join(name), self.bin_dir.join(PLUGIN)] {
            if delete(&path)? {
                tracing::info!("deleted {}", path.display());
            }
        }
        Ok(())
    }
}

fn check(text: &[u8]) -> anyhow::Result<()> {
    let conflist: serde_json::Value = serde_json::from_slice(text)?;
    let plugins = conflist["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !plugins.iter().any(|plugin| plugin["type"] == PLUGIN) {
        bail!("none of its plugins has the type {PLUGIN}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_installed_renewed_and_taken_away() {
        let dir = tempfile::tempdir().expect("a directory");
        let [bin_dir, conf_dir, from] = ["bin", "net.d", "from"].map(|name| dir.path().join(name));
        for dir in [&bin_dir, &conf_dir, &from] {
            fs::create_dir(dir).expect("made");
        }
        let (plugin, conflist) = (from.join("weft"), from.join("10-weft.conflist"));
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/cni/10-weft.conflist");
        fs::write(&plugin, "one").expect("written");
        fs::copy(example, &conflist).expect("copied");
        let host = Host { bin_dir: bin_dir.clone(), conf_dir: conf_dir.clone() };
        host.install(&plugin, &conflist).expect("installed");
        fs::write(&plugin, "two").expect("written");
        host.install(&plugin, &conflist).expect("renewed");
        assert_eq!(fs::read_to_string(bin_dir.join("weft-cni")).expect("there"), "two");
        assert!(conf_dir.join("10-weft.conflist").is_file());

        fs::write(&conflist, r#"{"plugins": [{"type": "bridge"}]}"#).expect("written");
        let error = format!("{:#}", host.install(&plugin, &conflist).expect_err("another plugin's"));
        assert!(error.contains("10-weft.conflist") && error.contains("weft-cni"), "{error}");
        fs::write(&conflist, "{").expect("written");
        assert!(host.install(&plugin, &conflist).is_err(), "cut off");
        assert!(check(&fs::read(conf_dir.join("10-weft.conflist")).expect("there")).is_ok(), "the old one stays");

        host.uninstall(&conflist).expect("taken away");
        host.uninstall(&conflist).expect("nothing is fine");
        for dir in [bin_dir, conf_dir] {
            assert_eq!(fs::read_dir(dir).expect("a directory").count(), 0);
        }
    }
}
