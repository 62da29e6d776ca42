//! What a run is made of. A run is a function of its [`Options`] and of nothing else.

use core::fmt;

use super::faults::{KINDS, Kind};
use super::trace::Detail;

/// How hosts reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underlay {
    /// Each host reaches a random six to eight others directly, and everybody through them.
    Partial,
    /// Each host reaches every other.
    Full,
}

/// A rule that is broken on purpose: shows that its check can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ablation {
    /// Now and then a frame is written to a TAP twice.
    DoubleDelivery,
    /// Every router sends broadcasts to all its neighbours instead of along the tree.
    Flood,
    /// One router hears of no change of the routes once the faults have begun.
    StaleTables,
    /// Now and then an address is given although somebody has it.
    DoubleAddress,
    /// One router's clock runs a hundred times too fast once nothing happens any more.
    Restless,
    /// Delays depend on something else than the seed.
    Chaos,
}

impl Ablation {
    /// Every ablation.
    pub const ALL: [Self; 6] =
        [Self::DoubleDelivery, Self::Flood, Self::StaleTables, Self::DoubleAddress, Self::Restless, Self::Chaos];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DoubleDelivery => "double-delivery",
            Self::Flood => "flood",
            Self::StaleTables => "stale-tables",
            Self::DoubleAddress => "double-address",
            Self::Restless => "restless",
            Self::Chaos => "chaos",
        }
    }
}

/// What a run is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where all randomness comes from.
    pub seed: u64,
    /// How many hosts, each with a router and containers. At least 2, at most 1000.
    pub peers: u16,
    /// How they reach each other.
    pub underlay: Underlay,
    /// Whether the network has a secret: real handshakes, sealed frames.
    pub sealed: bool,
    /// Whether routers give addresses.
    pub addresses: bool,
    /// Whether there are faults.
    pub faults: bool,
    /// Kinds of faults that stay off although the seed has them on, to find out which one matters.
    pub without: Vec<Kind>,
    /// Whether the mesh is left alone for a while at the end, and what it sends then is measured.
    pub idle: bool,
    /// How much of the trace is kept as text.
    pub detail: Detail,
    /// The rule that is broken, if any.
    pub ablation: Option<Ablation>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 0,
            peers: 100,
            underlay: Underlay::Partial,
            sealed: false,
            addresses: false,
            faults: true,
            without: Vec::new(),
            idle: false,
            detail: Detail::Hash,
            ablation: None,
        }
    }
}

/// The arguments of the `sim` program that repeat the run.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--seed {} --peers {}", self.seed, self.peers)?;
        let flags = [
            (self.underlay == Underlay::Full, " --full"),
            (self.sealed, " --sealed"),
            (self.addresses, " --addresses"),
            (!self.faults, " --no-faults"),
            (self.idle, " --idle"),
        ];
        for (_, flag) in flags.iter().filter(|(on, _)| *on) {
            f.write_str(flag)?;
        }
        for kind in &self.without {
            write!(f, " --without {kind:?}")?;
        }
        match self.ablation {
            Some(ablation) => write!(f, " --break {}", ablation.name()),
            None => Ok(()),
        }
    }
}

impl Options {
    /// The command that repeats the run and shows its trace.
    #[must_use]
    pub fn replay(&self) -> String {
        format!("cargo run -p integration --bin sim -- {self} --trace events")
    }

    /// Takes one argument of the command line, and its value from `values` if it has one. False
    /// if the argument is not one of a run.
    ///
    /// # Errors
    /// If the value is missing or wrong.
    pub fn take(&mut self, argument: &str, values: &mut dyn Iterator<Item = String>) -> Result<bool, String> {
        let mut value = || values.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument {
            "--seed" => self.seed = number(argument, &value()?)?,
            "--peers" => {
                let peers = number(argument, &value()?)?;
                self.peers = (u16::try_from(peers).ok())
                    .filter(|peers| (2..=1000).contains(peers))
                    .ok_or_else(|| format!("--peers {peers}: expected 2 to 1000"))?;
            }
            "--full" => self.underlay = Underlay::Full,
            "--sealed" => self.sealed = true,
            "--addresses" => self.addresses = true,
            "--no-faults" => self.faults = false,
            "--idle" => self.idle = true,
            "--without" => {
                let name = value()?;
                let found = KINDS.into_iter().find(|kind| format!("{kind:?}") == name);
                self.without.push(found.ok_or_else(|| format!("--without {name}: expected one of {KINDS:?}"))?);
            }
            "--trace" => {
                self.detail = match value()?.as_str() {
                    "hash" => Detail::Hash,
                    "events" => Detail::Events,
                    "datagrams" => Detail::Datagrams,
                    other => {
                        return Err(format!("--trace {other}: expected hash, events or datagrams"));
                    }
                };
            }
            "--break" => {
                let name = value()?;
                let found = Ablation::ALL.into_iter().find(|ablation| ablation.name() == name);
                let names = Ablation::ALL.map(Ablation::name).join(", ");
                self.ablation = Some(found.ok_or_else(|| format!("--break {name}: expected one of {names}"))?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// A number on the command line.
///
/// # Errors
/// If it is none.
pub fn number(argument: &str, text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{argument} {text}: expected a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replay_command_means_the_same_run() {
        for ablation in Ablation::ALL {
            let options = Options {
                seed: 42,
                peers: 12,
                underlay: Underlay::Full,
                sealed: true,
                addresses: true,
                faults: false,
                without: vec![Kind::Roams, Kind::Wipes],
                idle: true,
                detail: Detail::Events,
                ablation: Some(ablation),
            };
            let command = options.replay();
            let mut words = command.split(' ').skip(7).map(str::to_owned);
            let mut read = Options::default();
            while let Some(word) = words.next() {
                assert_eq!(read.take(&word, &mut words), Ok(true), "{word}");
            }
            assert_eq!(read, options);
        }
    }

    #[test]
    fn wrong_values_are_named() {
        let mut options = Options::default();
        for (argument, value) in
            [("--seed", "x"), ("--peers", "1"), ("--trace", "all"), ("--break", "it"), ("--without", "rain")]
        {
            let mut values = [value.to_owned()].into_iter();
            let error = options.take(argument, &mut values).unwrap_err();
            assert!(error.contains(argument) && error.contains(value), "{error}");
            assert!(options.take(argument, &mut [].into_iter()).is_err());
        }
    }
}
