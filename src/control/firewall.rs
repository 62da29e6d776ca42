//! Lets containers' frames pass the host's packet filter.
//!
//! ```text
//!  container ─ bridge ─┬─ br_netfilter ─► forward chains ─┬─ accepted ─► TAP, other containers
//!                      └─ (module not loaded) ────────────┘  or dropped: Docker's policy is DROP
//! ```
//!
//! Where `br_netfilter` is at work, for all bridges or for this one ([`Firewall::prepare`]), what the bridge carries
//! goes through the host's forward chains as if it were routed, and an engine that forwards sets the policy
//! of iptables' FORWARD to DROP: no container would reach another. So in each chain that drops by policy one rule is kept at the end,
//! for frames from the bridge to the bridge. It overrides the policy and none of the operator's own
//! rules. An accept elsewhere, in a table of our own, would not do: a drop in any table is final.
//!
//! The same chains drop what goes between the bridge and elsewhere, so services of this host
//! (services V4) have two rules more, for as long as there is one: for connections from the bridge and to it
//! whose destination was translated.
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
use tokio::sync::{Mutex, watch};

use crate::netlink::filter::{Changes, Family, Filter, ForwardChain, Pass};

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
    /// Whether there are services of this host.
    services: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Rules {
    bridge: String,
    /// What this bridge carries is filtered, or will be, whatever the host's settings say.
    needed: bool,
    /// Whether there are services of this host.
    services: watch::Receiver<bool>,
    /// Whether rules for them may be there.
    served: bool,
    /// What was last complained of, so that it is said once.
    complaint: Option<String>,
    /// The kernel did not answer once: it is not asked again.
    stuck: bool,
}

impl Firewall {
    /// Of the bridge of that name, and for services of this host as long as there are any; nothing is changed
    /// yet.
    #[must_use]
    pub fn new(bridge: &str, services: watch::Receiver<bool>) -> Self {
        let rules = Rules {
            bridge: bridge.to_owned(),
            needed: false,
            services: services.clone(),
            // Of an earlier run.
            served: true,
            complaint: None,
            stuck: false,
        };
        Self { rules: Arc::new(Mutex::new(rules)), services }
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
    pub async fn keep(mut self) {
        // Without notices there is the timer.
        let mut changes = Changes::subscribe().ok();
        loop {
            let changed = async {
                match &mut changes {
                    Some(open) => open.next().await,
                    None => std::future::pending().await,
                }
            };
            let services = &mut self.services;
            let served = async {
                if services.changed().await.is_err() {
                    std::future::pending().await
                }
            };
            tokio::select! {
                () = served => {}
                changed = tokio::time::timeout(LOOK, changed) => match changed {
                    Ok(Ok(())) => tokio::time::sleep(BURST).await,
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "changes of the host's filter are looked for instead");
                        changes = None;
                    }
                    Err(_) => {}
                }
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
        let services = *self.services.borrow();
        let served = std::mem::replace(&mut self.served, services);
        if !self.needed && !is_filtered(Family::Both) && !services && !served {
            return;
        }
        let wanted = Wanted { within: self.needed, services };
        let bridge = self.bridge.clone();
        let added = self.in_kernel(move |filter| ensure_rules(filter, &bridge, wanted)).await;
        let mut complaint = match added {
            Ok(places) => {
                for place in places {
                    tracing::info!("{place} for `{}`", self.bridge);
                }
                None
            }
            Err(error) => Some(format!("nftables: {error}")),
        };
        for old in OLD.iter().filter(|old| old.is_used()) {
            for pass in Pass::ALL {
                if wanted.has(pass, old.family) {
                    if let Err(why) = self.ensure_old(old, pass).await {
                        complaint.get_or_insert(why);
                    }
                } else if served && pass != Pass::Within {
                    self.remove_old(old, pass).await;
                }
            }
        }
        if complaint.is_some() {
            // Looked at once more, though there may be no services any more.
            self.served = true;
        }
        if complaint != self.complaint {
            if let Some(why) = &complaint {
                let bridge = &self.bridge;
                tracing::warn!(
                    "this host filters what it forwards, and the rules that let containers reach each other, and services be reached, cannot be added: {why}; where they cannot, run `iptables -A FORWARD -i {bridge} -o {bridge} -j ACCEPT` (and ip6tables), for services also with `-i {bridge} -m conntrack --ctstate DNAT` and `-o {bridge} -m conntrack --ctstate DNAT`"
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
            for pass in Pass::ALL {
                self.remove_old(old, pass).await;
            }
        }
    }

    async fn remove_old(&self, old: &Old, pass: Pass) {
        // More than once if somebody else added it too.
        for _ in 0..RULES_MAX {
            if self.call(old, "-D", pass).await.is_err() {
                break;
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

    async fn ensure_old(&self, old: &Old, pass: Pass) -> Result<(), String> {
        if self.call(old, "-C", pass).await.is_ok() {
            return Ok(());
        }
        // Somebody may have added it in between: no harm in a second one.
        let program = self.call(old, "-A", pass).await?;
        tracing::info!("{} ({program}) for `{}`", what_passes(pass), self.bridge);
        Ok(())
    }

    /// The program that was called.
    async fn call(&self, old: &Old, action: &str, pass: Pass) -> Result<&'static str, String> {
        let mut folders = std::env::var_os("PATH").unwrap_or_default();
        // Services often have a PATH without the administrator's programs.
        folders.push(OsString::from(":/usr/sbin:/sbin"));
        let (program, path) = old.program(&folders).await?;
        run(&path, &arguments(action, pass, &self.bridge)).await.map_err(|why| format!("{program}: {why}"))?;
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

/// What would be dropped without a rule.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// What this bridge carries is filtered, whatever the host's settings say.
    within: bool,
    /// There are services of this host.
    services: bool,
}

impl Wanted {
    fn has(self, pass: Pass, family: Family) -> bool {
        match pass {
            Pass::Within => self.within || is_filtered(family),
            Pass::From | Pass::Into => self.services,
        }
    }
}

/// Where a rule was missing, and now is.
fn ensure_rules(filter: &mut Filter, bridge: &str, wanted: Wanted) -> io::Result<Vec<String>> {
    let mut added = Vec::new();
    for chain in filter.forward_chains()?.into_iter().filter(|chain| chain.drops) {
        let there = filter.passes(&chain, bridge)?;
        for pass in Pass::ALL {
            let is_there = there.iter().any(|(found, _)| *found == pass);
            if wanted.has(pass, chain.family) && !is_there {
                filter.accept(&chain, pass, bridge)?;
                added.push(format!("{} ({})", what_passes(pass), place(&chain)));
            }
        }
        let over = there.iter().filter(|(pass, _)| *pass != Pass::Within && !wanted.services);
        over.take(RULES_MAX).try_for_each(|(_, rule)| filter.delete(&chain, *rule))?;
    }
    Ok(added)
}

fn remove_rules(filter: &mut Filter, bridge: &str) -> io::Result<()> {
    for chain in filter.forward_chains()? {
        for (_, rule) in filter.passes(&chain, bridge)?.into_iter().take(RULES_MAX) {
            filter.delete(&chain, rule)?;
        }
    }
    Ok(())
}

/// What is said of a rule that was added.
const fn what_passes(pass: Pass) -> &'static str {
    match pass {
        Pass::Within => "frames within the bridge are let through the host's filter",
        Pass::From => "what services send from the bridge is let through the host's filter",
        Pass::Into => "what services send to the bridge is let through the host's filter",
    }
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

fn arguments<'a>(action: &'a str, pass: Pass, bridge: &'a str) -> Vec<&'a str> {
    const TRANSLATED: [&str; 4] = ["-m", "conntrack", "--ctstate", "DNAT"];
    let which: Vec<&str> = match pass {
        Pass::Within => vec!["-i", bridge, "-o", bridge],
        Pass::From => [&["-i", bridge][..], &TRANSLATED].concat(),
        Pass::Into => [&["-o", bridge][..], &TRANSLATED].concat(),
    };
    [&["--wait", action, "FORWARD"][..], &which, &["-j", "ACCEPT"]].concat()
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
    fn the_rules_are_for_what_stays_within_the_bridge_and_for_services() {
        let line = |pass| arguments("-A", pass, "weft").join(" ");
        assert_eq!(line(Pass::Within), "--wait -A FORWARD -i weft -o weft -j ACCEPT");
        assert_eq!(line(Pass::From), "--wait -A FORWARD -i weft -m conntrack --ctstate DNAT -j ACCEPT");
        assert_eq!(line(Pass::Into), "--wait -A FORWARD -o weft -m conntrack --ctstate DNAT -j ACCEPT");
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
