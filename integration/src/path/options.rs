//! What is asked for.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use weft::lab::Offloads;

use super::{contestant::Contestant, figures::Figure};

/// The path benchmark: what traffic between containers costs over Weft, beside kernel VXLAN and
/// other tunnels, in one run.
///
/// Needs no root where users may make namespaces. A run of the defaults takes about three minutes,
/// one with --full about two hours. Build with --release: anything else measures the compiler.
#[derive(Debug, Clone, Parser)]
#[command(name = "path")]
pub struct Options {
    /// How often each figure is measured with each contestant.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// How long one measurement of throughput lasts, in seconds.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Who takes part, separated by commas; the default is all that are installed.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    only: Vec<Contestant>,
    /// What is measured, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "FIGURE,…")]
    figures: Vec<Figure>,
    /// Offloads of the network between the hosts: none, merging on receive alone as on a plain card,
    /// or all as between virtual machines.
    #[arg(long, value_delimiter = ',', value_name = "MODE,…")]
    mode: Vec<Mode>,
    /// MTU of the network between the hosts.
    #[arg(long, value_delimiter = ',', value_name = "BYTES,…", value_parser = clap::value_parser!(u32).range(1280..=65_000))]
    mtu: Vec<u32>,
    /// Everything: all modes, MTU 1500 and 9000, all figures, at least five rounds of two seconds.
    #[arg(long)]
    full: bool,
    /// Instead of all that: memory and idle time of a router with three linked peers, and with ten.
    #[arg(long, conflicts_with_all = ["only", "figures", "mode", "mtu", "full", "json", "plot"])]
    pub crowd: bool,
    /// Writes all samples there.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes a picture (SVG) there.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// The `weft` to measure; the default is the one that is built into this program.
    #[arg(long, value_name = "BINARY")]
    pub weft: Option<PathBuf>,
    /// Keeps the processors awake with an idle-priority loop each while round trips are measured:
    /// without, they are as long as it takes to wake a sleeping processor.
    #[arg(long)]
    pub awake: bool,
}

/// What the underlay's interfaces do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// No offloads: every packet is cut, checksummed and paid for.
    Wire,
    /// What arrives is merged (GRO), all else is as in `wire`: a card without offloads of its own.
    Card,
    /// Offloads on: segments of 64 KiB pass whole.
    Virtual,
}

impl Mode {
    /// Its name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::Card => "card",
            Self::Virtual => "virtual",
        }
    }

    pub(super) fn offloads(self) -> Offloads {
        match self {
            Self::Wire => Offloads::None,
            Self::Card => Offloads::Merging,
            Self::Virtual => Offloads::All,
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.1..=600.0).contains(&seconds) { Ok(seconds) } else { Err("between 0.1 and 600".into()) }
}

impl Options {
    /// Reads the command line; ends the process if it makes no sense.
    #[must_use]
    pub fn read() -> Self {
        let mut options = Self::parse();
        if options.full {
            options.rounds = options.rounds.max(5);
            options.seconds = options.seconds.max(2.0);
        }
        options
    }

    /// Number of rounds.
    pub(super) fn rounds(&self) -> usize {
        usize::from(self.rounds)
    }

    /// Length of a measurement.
    pub(super) fn lasting(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Who takes part, in the order of the tables.
    pub(super) fn contestants(&self) -> Vec<Contestant> {
        let all = Contestant::ALL.iter().copied();
        all.filter(|contestant| self.only.is_empty() || self.only.contains(contestant)).collect()
    }

    /// What is measured.
    pub(super) fn figures(&self) -> Vec<Figure> {
        match (self.figures.is_empty(), self.full) {
            (false, _) => self.figures.clone(),
            (true, true) => Figure::ALL.to_vec(),
            (true, false) => Figure::QUICK.to_vec(),
        }
    }

    /// The underlays.
    pub(super) fn modes(&self) -> Vec<Mode> {
        match (self.mode.is_empty(), self.full) {
            (false, _) => self.mode.clone(),
            (true, true) => vec![Mode::Wire, Mode::Card, Mode::Virtual],
            (true, false) => vec![Mode::Wire],
        }
    }

    /// Their MTUs.
    pub(super) fn mtus(&self) -> Vec<u32> {
        match (self.mtu.is_empty(), self.full) {
            (false, _) => self.mtu.clone(),
            (true, true) => vec![1500, 9000],
            (true, false) => vec![1500],
        }
    }
}
