//! The variables by which a runtime says what to do, and with which container.

use std::ffi::OsString;
use std::net::IpAddr;

use super::error::{CniError, Kind};
use super::version::Version;
use crate::control::attach::parse_mac;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

const COMMANDS: [Command; 6] =
    [Command::Add, Command::Del, Command::Check, Command::Status, Command::Gc, Command::Version];

impl Command {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }

    /// The version of the specification that brought it.
    pub(super) const fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_3_1,
            Self::Check => Version::V0_4_0,
            Self::Status | Self::Gc => Version::V1_1_0,
        }
    }

    /// Reads `CNI_COMMAND`.
    pub(super) fn read(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let known = COMMANDS.map(Self::name).join(", ");
        let Some(asked) = text(variable, "CNI_COMMAND")?.filter(|asked| !asked.is_empty()) else {
            return Err(wrong(format!(
                "CNI_COMMAND is not set: a container runtime runs this program, and says by it one of {known}"
            )));
        };
        COMMANDS
            .into_iter()
            .find(|command| command.name() == asked)
            .ok_or_else(|| wrong(format!("CNI_COMMAND is `{}`: expected one of {known}", shown(&asked))))
    }
}

/// Which container, and what about it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Environment {
    pub(super) container: String,
    /// Empty where the command does not need it: of a container that has gone.
    pub(super) netns: String,
    pub(super) interface: String,
    /// Addresses that `CNI_ARGS` asks for.
    pub(super) ips: Vec<IpAddr>,
    /// The hardware address that it asks for, or nothing.
    pub(super) mac: String,
}

impl Environment {
    /// Reads what the command needs.
    pub(super) fn read(command: Command, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let needed: &[&str] = match command {
            Command::Add | Command::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Command::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Command::Status | Command::Gc | Command::Version => return Ok(Self::default()),
        };
        let read = |name| text(variable, name).map(Option::unwrap_or_default);
        let (container, netns, interface) = (read("CNI_CONTAINERID")?, read("CNI_NETNS")?, read("CNI_IFNAME")?);
        let given = [("CNI_CONTAINERID", &container), ("CNI_NETNS", &netns), ("CNI_IFNAME", &interface)];
        let missing: Vec<&str> = given
            .into_iter()
            .filter(|(name, value)| value.is_empty() && needed.contains(name))
            .map(|(name, _)| name)
            .collect();
        if !missing.is_empty() {
            return Err(wrong(format!("{} must be set for {}", missing.join(", "), command.name())));
        }
        if !is_name(&container) {
            return Err(wrong(format!(
                "CNI_CONTAINERID is `{}`: expected a letter or digit, then letters, digits, `_`, `.`, `-`",
                shown(&container)
            )));
        }
        if !is_interface(&interface) {
            return Err(wrong(format!(
                "CNI_IFNAME is `{}`: expected 1 to 15 letters, digits, `_`, `.`, `-`, and not `.` or `..`",
                shown(&interface)
            )));
        }
        let (ips, mac) = match command {
            Command::Add => arguments(&read("CNI_ARGS")?)?,
            // What a container was made with does not matter when it goes.
            _ => Default::default(),
        };
        Ok(Self { container, netns, interface, ips, mac })
    }

    /// Whose the addresses are, at the router.
    pub(super) fn holder(&self, network: &str) -> String {
        format!("{}{}/{}", holders_of(network), self.container, self.interface)
    }
}

/// How every holder of a network begins.
pub(super) fn holders_of(network: &str) -> String {
    format!("cni:{network}/")
}

/// Names of networks and containers: so says the specification.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(fine)
}

fn is_interface(text: &str) -> bool {
    (1..=15).contains(&text.len()) && text.chars().all(fine) && text != "." && text != ".."
}

fn fine(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.-".contains(c)
}

/// The IP addresses and the hardware address in `CNI_ARGS`: `KEY=VALUE;…`. What a runtime adds for
/// others is marked by itself (`IgnoreUnknown=1`).
fn arguments(text: &str) -> Result<(Vec<IpAddr>, String), CniError> {
    let (mut ips, mut mac, mut unknown, mut lenient) = (Vec::new(), String::new(), Vec::new(), false);
    for pair in text.split(';').filter(|pair| !pair.trim().is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(wrong(format!("CNI_ARGS has `{}`: expected KEY=VALUE;…", shown(pair))));
        };
        match key.trim() {
            "IgnoreUnknown" => lenient = matches!(value.trim(), "1" | "true" | "TRUE" | "True" | "t" | "T"),
            "IP" => {
                for one in value.split(',').map(str::trim).filter(|one| !one.is_empty()) {
                    let ip = address(one)
                        .ok_or_else(|| wrong(format!("CNI_ARGS has IP={}: expected an IP address", shown(one))))?;
                    ips.push(ip);
                }
            }
            "MAC" => {
                let wrong =
                    || wrong(format!("CNI_ARGS has MAC={}: expected a hardware address of an interface", shown(value)));
                value.trim().clone_into(&mut mac);
                if !mac.is_empty() {
                    parse_mac(&mac).ok_or_else(wrong)?;
                }
            }
            other => unknown.push(shown(other)),
        }
    }
    if !lenient && !unknown.is_empty() {
        return Err(wrong(format!(
            "CNI_ARGS has {}: only IP and MAC are known here; set IgnoreUnknown=1 if others are meant",
            unknown.join(", ")
        )));
    }
    Ok((ips, mac))
}

/// An address, whose prefix length (that of the network here, whatever it says) may be there.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let ip = text.parse().ok();
    ip.or_else(|| text.parse::<ipnet::IpNet>().ok().map(|net| net.addr()))
}

fn text(variable: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Result<Option<String>, CniError> {
    let value = variable(name).map(OsString::into_string).transpose();
    value.map_err(|raw| wrong(format!("{name} is `{}`: not UTF-8", shown(&raw.to_string_lossy()))))
}

fn wrong(text: String) -> CniError {
    CniError::new(Kind::Environment, text)
}

/// As much of a text as is of use in a message.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}
