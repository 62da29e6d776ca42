//! Lets containers' frames pass the host's packet filter.
//!
//! ```text
//!  container ─ bridge ─┬─ br_netfilter ─► forward chains ─┬─ accepted ─► TAP, other containers
//!                      └─ (module not loaded) ────────────┘  or dropped: Docker's policy is DROP
//! ```
//!
//! Where `br_netfilter` is at work, for all bridges or for this one ([`Firewall::prepare`]), what the bridge carries
//! goes through the host's forward chains as if it were routed, and an engine that forwards sets the policy of iptables' FORWARD to DROP: no
//! container would reach another. So in each chain that drops by policy one rule is kept at the end,
//! for frames from the bridge to the bridge. It overrides the policy and none of the operator's own
//! rules. An accept elsewhere, in a table of our own, would not do: a drop in any table is final.
//!
//! | where the chain is | how the rule gets there |
//! |---|---|
//! | nftables, and iptables that is a face of it | netlink, in this process |
//! | the old iptables (its tables are in `/proc/net/ip_tables_names`) | the host's `iptables` program |

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::Mutex;

use crate::netlink::filter::{Changes, Family, Filter, ForwardChain};

/// How often the rules are looked for: the old iptables does not tell when somebody changes it.
const LOOK: Duration = Duration::from_secs(10);
/// A firewall is loaded in many steps: they are looked at once.
const BURST: Duration = Duration::from_millis(200);
/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// More rules than this of one kind are not deleted at once.
const RULES_MAX: usize = 16;

/// What the old iptables has for a family.
struct Old {
    family: Family,
    /// Names of its program, the one that is sure first.
    programs: [&'static str; 2],
    /// Lists its tables that are in use.
    tables: &'static str,
}

const OLD: [Old; 2] = [
    Old { family: Family::V4, programs: ["iptables-legacy", "iptables"], tables: "/proc/net/ip_tables_names" },
    Old { family: Family::V6, programs: ["ip6tables-legacy", "ip6tables"], tables: "/proc/net/ip6_tables_names" },
];

/// The settings of the host for all its bridges.
const BRIDGED_V4: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
const BRIDGED_V6: &str = "/proc/sys/net/bridge/bridge-nf-call-ip6tables";

/// The rules of one bridge. Clones share them.
#[derive(Debug, Clone)]
pub struct Firewall {
    rules: Arc<Mutex<Rules>>,
}

#[derive(Debug)]
struct Rules {
    bridge: String,
    /// What this bridge carries is filtered, or will be, whatever the host's settings say.
    needed: bool,
    /// What was last complained of, so that it is said once.
    complaint: Option<String>,
    /// The kernel did not answer once: it is not asked again.
    stuck: bool,
}

impl Firewall {
    /// Of the bridge of that name; nothing is changed yet.
    #[must_use]
    pub fn new(bridge: &str) -> Self {
        let rules = Rules { bridge: bridge.to_owned(), needed: false, complaint: None, stuck: false };
        Self { rules: Arc::new(Mutex::new(rules)) }
    }

    /// Adds the rules that are needed and not there.
    pub async fn ensure(&self) {
        self.rules.lock().await.ensure().await;
    }

    /// Adds them for a bridge that is about to be filtered, so that nothing is dropped meanwhile.
    pub async fn prepare(&self) {
        let mut rules = self.rules.lock().await;
        if !rules.needed {
            rules.needed = true;
            rules.ensure().await;
        }
    }

    /// Takes the rules away.
    pub async fn remove(&self) {
        self.rules.lock().await.remove().await;
    }

    /// Keeps the rules there for as long as it is polled.
    pub async fn keep(self) {
        // Without notices there is the timer.
        let mut changes = Changes::subscribe().ok();
        loop {
            let changed = async {
                match &mut changes {
                    Some(open) => open.next().await,
                    None => std::future::pending().await,
                }
            };
            match tokio::time::timeout(LOOK, changed).await {
                Ok(Ok(())) => tokio::time::sleep(BURST).await,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "changes of the host's filter are looked for instead");
                    changes = None;
                }
                Err(_) => {}
            }
            if let Some(open) = &mut changes {
                open.skip();
            }
            self.ensure().await;
        }
    }
}

impl Rules {
    async fn ensure(&mut self) {
        if !self.needed && !is_filtered(Family::Both) {
            return;
        }
        let (bridge, needed) = (self.bridge.clone(), self.needed);
        let added = self.in_kernel(move |filter| ensure_rules(filter, &bridge, needed)).await;
        let mut complaint = match added {
            Ok(places) => {
                for place in places {
                    tracing::info!("frames within `{}` are let through the host's filter ({place})", self.bridge);
                }
                None
            }
            Err(error) => Some(format!("nftables: {error}")),
        };
        for old in OLD.iter().filter(|old| (needed || is_filtered(old.family)) && old.is_used()) {
            if let Err(why) = self.ensure_old(old).await {
                complaint.get_or_insert(why);
            }
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

    async fn remove(&mut self) {
        let bridge = self.bridge.clone();
        if let Err(error) = self.in_kernel(move |filter| remove_rules(filter, &bridge)).await {
            tracing::warn!(%error, "a rule for `{}` may be left in the host's filter", self.bridge);
        }
        for old in OLD.iter().filter(|old| old.is_used()) {
            // More than once if somebody else added it too.
            for _ in 0..RULES_MAX {
                if self.call(old, "-D").await.is_err() {
                    break;
                }
            }
        }
    }

    /// Asks the kernel, on a thread that may wait.
    async fn in_kernel<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Filter) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if self.stuck {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let work = tokio::task::spawn_blocking(move || work(&mut Filter::default()));
        match tokio::time::timeout(TIMEOUT, work).await {
            Ok(done) => done.map_err(io::Error::other)?,
            Err(_) => {
                self.stuck = true;
                Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer"))
            }
        }
    }

    async fn ensure_old(&self, old: &Old) -> Result<(), String> {
        if self.call(old, "-C").await.is_ok() {
            return Ok(());
        }
        // Somebody may have added it in between: no harm in a second one.
        let program = self.call(old, "-A").await?;
        tracing::info!("frames within `{}` are let through the host's filter ({program})", self.bridge);
        Ok(())
    }

    /// The program that was called.
    async fn call(&self, old: &Old, action: &str) -> Result<&'static str, String> {
        let mut folders = std::env::var_os("PATH").unwrap_or_default();
        // Services often have a PATH without the administrator's programs.
        folders.push(OsString::from(":/usr/sbin:/sbin"));
        let (program, path) = old.program(&folders).await?;
        run(&path, &arguments(action, &self.bridge)).await.map_err(|why| format!("{program}: {why}"))?;
        Ok(program)
    }
}

impl Old {
    /// Whether there is a chain of the old kind that could drop anything.
    fn is_used(&self) -> bool {
        let tables = std::fs::read_to_string(self.tables).unwrap_or_default();
        tables.lines().any(|table| table == "filter")
    }

    /// The program for the old tables: one of the plain name may be for the new.
    async fn program(&self, folders: &OsStr) -> Result<(&'static str, PathBuf), String> {
        for program in self.programs {
            let mut paths = std::env::split_paths(folders).map(|folder| folder.join(program));
            let Some(path) = paths.find(|path| path.is_file()) else { continue };
            let version = run(&path, &["--version"]).await?;
            if !version.contains("nf_tables") {
                return Ok((program, path));
            }
        }
        Err(format!("the old iptables is in use, and there is no `{}` here", self.programs[0]))
    }
}

/// Where the rule was missing, and now is; `needed`: whether the host's settings say so or not.
fn ensure_rules(filter: &mut Filter, bridge: &str, needed: bool) -> io::Result<Vec<String>> {
    let mut added = Vec::new();
    for chain in filter.forward_chains()? {
        let passed = needed || is_filtered(chain.family);
        if chain.drops && passed && filter.rules_within(&chain, bridge)?.is_empty() {
            filter.accept_within(&chain, bridge)?;
            added.push(place(&chain));
        }
    }
    Ok(added)
}

fn remove_rules(filter: &mut Filter, bridge: &str) -> io::Result<()> {
    for chain in filter.forward_chains()? {
        for rule in filter.rules_within(&chain, bridge)?.into_iter().take(RULES_MAX) {
            filter.delete(&chain, rule)?;
        }
    }
    Ok(())
}

fn place(chain: &ForwardChain) -> String {
    let family = match chain.family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
        Family::Both => "inet",
    };
    format!("chain {} of table {family} {}", chain.name.to_string_lossy(), chain.table.to_string_lossy())
}

/// Whether the kernel can show what bridges carry to the filter of IP: its module is loaded.
#[must_use]
pub fn can_filter_bridged() -> bool {
    Path::new(BRIDGED_V4).exists()
}

/// Whether bridged packets of the family go through the forward chains, of whatever bridge.
fn is_filtered(family: Family) -> bool {
    let v4 = || is_on(Path::new(BRIDGED_V4));
    let v6 = || is_on(Path::new(BRIDGED_V6));
    match family {
        Family::V4 => v4(),
        Family::V6 => v6(),
        Family::Both => v4() || v6(),
    }
}

fn is_on(setting: &Path) -> bool {
    std::fs::read_to_string(setting).is_ok_and(|text| text.trim() != "0")
}

fn arguments<'a>(action: &'a str, bridge: &'a str) -> [&'a str; 9] {
    ["--wait", action, "FORWARD", "-i", bridge, "-o", bridge, "-j", "ACCEPT"]
}

/// What a program prints, or its first complaint.
async fn run(path: &Path, arguments: &[&str]) -> Result<String, String> {
    let run = Command::new(path).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(TIMEOUT, run).await {
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
            Err(line.trim().to_owned())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("not done after {} s", TIMEOUT.as_secs())),
    }
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

    #[tokio::test]
    async fn the_old_tables_are_not_given_to_the_new_program() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = |name: &str, version: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\necho '{version}'\n")).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        };
        let folders = dir.path().as_os_str();
        let old = &OLD[0];
        script("iptables", "iptables v1.8.9 (nf_tables)");
        let why = old.program(folders).await.expect_err("only the new one is there");
        assert!(why.contains("iptables-legacy"), "{why}");
        for (name, version) in [("iptables", "iptables v1.4.21"), ("iptables-legacy", "iptables v1.8.9 (legacy)")] {
            script(name, version);
            assert_eq!(old.program(folders).await, Ok((name, dir.path().join(name))));
        }
    }
}
