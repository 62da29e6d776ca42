//! Versions of the CNI specification.

use serde_json::Value;

use super::error::{CniError, Kind};

/// A version that this plugin speaks, older ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// Addresses name their interface and their family.
    V0_3_1,
    /// CHECK, and `prevResult` for DEL.
    V0_4_0,
    /// Addresses without their family.
    V1_0_0,
    /// STATUS and GC.
    V1_1_0,
}

impl Version {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest.
    pub(super) const LATEST: Self = Self::V1_1_0;

    /// As configurations write it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of a configuration. One that names none is of version 0.1.0.
    pub(super) fn of(conf: &Value) -> Result<Self, CniError> {
        let asked = match conf.get("cniVersion") {
            None => "0.1.0",
            Some(Value::String(text)) if text.is_empty() => "0.1.0",
            Some(Value::String(text)) => text,
            Some(other) => {
                return Err(CniError::new(Kind::Config, format!("`cniVersion` is {other}: expected a text")));
            }
        };
        Self::ALL.into_iter().find(|version| version.name() == asked).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            let asked: String = asked.chars().filter(|c| !c.is_control()).take(40).collect();
            CniError::new(
                Kind::Version,
                format!("`cniVersion` {asked} is not spoken here: set one of {known} in the configuration"),
            )
        })
    }
}
