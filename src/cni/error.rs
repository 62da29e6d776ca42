//! Errors as CNI wants them: a code that runtimes act on and a text for whoever runs the cluster.

use serde_json::{Value, json};

use super::version::Version;

/// What kind of error it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A version that is not spoken, or that does not know the command.
    Version,
    /// The configuration asks for what there is not.
    Unsupported,
    /// The container's namespace is not there.
    UnknownContainer,
    /// A variable of the environment.
    Environment,
    /// Input, or the router's socket, cannot be read.
    Io,
    /// The input is not JSON.
    Decode,
    /// A key of the configuration.
    Config,
    /// It may work a little later.
    TryAgain,
    /// STATUS: no pod can be added.
    NotAvailable,
    /// STATUS: no pod can be added, and what is there may be cut off.
    Limited,
    /// An address cannot be had, or the namespace cannot be used.
    Refused,
    /// The interface is there already.
    Exists,
    /// CHECK: what is there is not what ADD made.
    Differs,
    /// The kernel or the disk refused; the router says what.
    Failed,
}

impl Kind {
    /// The code: up to 99 those of the specification.
    pub(super) const fn code(self) -> u32 {
        match self {
            Self::Version => 1,
            Self::Unsupported => 2,
            Self::UnknownContainer => 3,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::Config => 7,
            Self::TryAgain => 11,
            Self::NotAvailable => 50,
            Self::Limited => 51,
            Self::Refused => 100,
            Self::Exists => 101,
            Self::Differs => 102,
            Self::Failed => 103,
        }
    }

    const fn headline(self) -> &'static str {
        match self {
            Self::Version => "incompatible CNI version",
            Self::Unsupported => "unsupported field in the network configuration",
            Self::UnknownContainer => "unknown container",
            Self::Environment => "invalid environment variable",
            Self::Io => "input or output failed",
            Self::Decode => "the input cannot be decoded",
            Self::Config => "invalid network configuration",
            Self::TryAgain => "not now, try again later",
            Self::NotAvailable => "Weft cannot add pods",
            Self::Limited => "Weft cannot add pods, and those on this host may be cut off",
            Self::Refused => "refused by the router",
            Self::Exists => "the interface is there already",
            Self::Differs => "the container's network is not as it was made",
            Self::Failed => "the kernel or the disk refused",
        }
    }
}

/// A refusal or a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CniError {
    pub(super) kind: Kind,
    /// What was wrong, where, and what to do.
    pub(super) text: String,
}

impl CniError {
    pub(super) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// A key of the configuration that has a wrong value.
    pub(super) fn key(key: &str, why: impl std::fmt::Display) -> Self {
        Self::new(Kind::Config, format!("`{key}` in the network configuration: {why}"))
    }

    /// In the form of the specification. Runtimes show `msg` and often nothing else, so it says all.
    pub(super) fn to_json(&self, version: Option<Version>) -> Value {
        json!({
            "cniVersion": version.unwrap_or(Version::LATEST).name(),
            "code": self.kind.code(),
            "msg": format!("weft: {}: {}", self.kind.headline(), self.text),
        })
    }
}
