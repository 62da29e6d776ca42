//! Lets containers' frames pass the host's packet filter.
//!
//! ```text
//!  container ─ bridge ─┬─ br_netfilter ─► iptables FORWARD ─┬─ accepted ─► TAP, other containers
//!                      └─ (module not loaded) ──────────────┘  or dropped: Docker's policy is DROP
//! ```
//!
//! Where `br_netfilter` is loaded, what the bridge carries goes through iptables as if it were
//! routed, and an engine that forwards sets the policy of that chain to DROP: no container would
//! reach another. So one rule is kept at the end of FORWARD, for frames from the bridge to the
//! bridge. It overrides the policy and none of the operator's own rules. An accept elsewhere, in a
//! table of our own, would not do: a drop in any table is final.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// How often the rule is looked for: a firewall that is reloaded forgets it.
const LOOK: Duration = Duration::from_secs(10);
/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Each family's program, and the setting that sends bridged packets of the family to it.
const FAMILIES: [(&str, &str); 2] = [
    ("iptables", "/proc/sys/net/bridge/bridge-nf-call-iptables"),
    ("ip6tables", "/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
];

/// The rules of one bridge.
#[derive(Debug)]
pub struct Firewall {
    bridge: String,
    /// What was last complained of, so that it is said once.
    complaint: Option<String>,
}

impl Firewall {
    /// Of the bridge of that name; nothing is changed yet.
    #[must_use]
    pub fn new(bridge: &str) -> Self {
        Self { bridge: bridge.to_owned(), complaint: None }
    }

    /// Adds the rules that are needed and not there.
    pub async fn ensure(&mut self) {
        let mut complaint = None;
        for (program, setting) in FAMILIES {
            if !is_on(Path::new(setting))
                || self.call(program, "-C").await.is_ok()
                // Somebody may have added it in between: no harm in a second one.
                || self.call(program, "-A").await.inspect_err(|why| complaint = Some(why.clone())).is_err()
            {
                continue;
            }
            tracing::info!(program, bridge = self.bridge, "frames within the bridge are let through the host's filter");
        }
        if complaint != self.complaint {
            if let Some(why) = &complaint {
                let bridge = &self.bridge;
                tracing::warn!(
                    "this host filters what its bridges carry, and the rule that lets containers reach each other cannot be added: {why}; where they cannot, run `iptables -A FORWARD -i {bridge} -o {bridge} -j ACCEPT` (and ip6tables)"
                );
            }
            self.complaint = complaint;
        }
    }

    /// Keeps the rules there for as long as it is polled.
    pub async fn keep(mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.ensure().await;
        }
    }

    /// Takes the rules away.
    pub async fn remove(&self) {
        for (program, _) in FAMILIES {
            // More than once if somebody else added it too.
            for _ in 0..4 {
                if self.call(program, "-D").await.is_err() {
                    break;
                }
            }
        }
    }

    async fn call(&self, program: &str, action: &str) -> Result<(), String> {
        let path = find(program).ok_or_else(|| format!("there is no `{program}` here"))?;
        let run =
            Command::new(&path).args(arguments(action, &self.bridge)).stdin(Stdio::null()).kill_on_drop(true).output();
        match tokio::time::timeout(TIMEOUT, run).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
                Err(format!("{program}: {}", line.trim()))
            }
            Ok(Err(error)) => Err(format!("{}: {error}", path.display())),
            Err(_) => Err(format!("{program} was not done after {} s", TIMEOUT.as_secs())),
        }
    }
}

fn arguments<'a>(action: &'a str, bridge: &'a str) -> [&'a str; 9] {
    ["--wait", action, "FORWARD", "-i", bridge, "-o", bridge, "-j", "ACCEPT"]
}

fn is_on(setting: &Path) -> bool {
    std::fs::read_to_string(setting).is_ok_and(|text| text.trim() != "0")
}

/// Services often have a PATH without the administrator's programs.
fn find(program: &str) -> Option<PathBuf> {
    let mut folders = std::env::var_os("PATH").unwrap_or_default();
    folders.push(OsString::from(":/usr/sbin:/sbin"));
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_is_not_there_is_off() {
        let dir = tempfile::tempdir().expect("a directory");
        let setting = dir.path().join("setting");
        assert!(!is_on(&setting));
        std::fs::write(&setting, "0\n").expect("written");
        assert!(!is_on(&setting));
        std::fs::write(&setting, "1\n").expect("written");
        assert!(is_on(&setting));
    }

    #[test]
    fn the_rule_is_for_what_stays_within_the_bridge() {
        assert_eq!(arguments("-A", "weft").join(" "), "--wait -A FORWARD -i weft -o weft -j ACCEPT");
    }
}
