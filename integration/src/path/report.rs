//! What was measured, as tables and as JSON.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use serde_json::{Value, json};

use super::{
    contestant::Contestant,
    figures::Metric,
    options::{Mode, Options},
};

/// All samples of one underlay.
pub(super) struct Report {
    mode: Mode,
    mtu: u32,
    rounds: usize,
    seconds: f64,
    rows: Vec<(Contestant, Result<String, String>)>,
    samples: BTreeMap<(Metric, Contestant), Vec<f64>>,
}

/// Samples in short.
#[derive(Clone, Copy)]
pub(super) struct Summary {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Summary {
    fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Some(Self { median, min, max })
    }

    fn show(self) -> String {
        let digits = Metric::digits;
        if self.min == self.max {
            return digits(self.median);
        }
        format!("{} ({}–{})", digits(self.median), digits(self.min), digits(self.max))
    }
}

impl Report {
    pub(super) fn new(options: &Options, mode: Mode, mtu: u32) -> Self {
        let (rounds, seconds) = (options.rounds(), options.lasting().as_secs_f64());
        Self { mode, mtu, rounds, seconds, rows: Vec::new(), samples: BTreeMap::new() }
    }

    /// A contestant that takes part, with what it says of itself.
    pub(super) fn present(&mut self, contestant: Contestant, said: &str) {
        self.rows.push((contestant, Ok(said.to_owned())));
    }

    /// A contestant that does not, and why.
    pub(super) fn absent(&mut self, contestant: Contestant, why: &str) {
        self.rows.push((contestant, Err(why.to_owned())));
    }

    /// A sample. Those of the same metric are in the order of the rounds.
    pub(super) fn add(&mut self, contestant: Contestant, metric: Metric, value: f64) {
        self.samples.entry((metric, contestant)).or_default().push(value);
    }

    /// The contestants that took part.
    pub(super) fn present_rows(&self) -> Vec<Contestant> {
        self.rows.iter().filter(|(_, said)| said.is_ok()).map(|&(contestant, _)| contestant).collect()
    }

    /// The metrics of which there is a sample.
    pub(super) fn metrics(&self) -> Vec<Metric> {
        let mut metrics: Vec<Metric> = self.samples.keys().map(|&(metric, _)| metric).collect();
        metrics.dedup();
        metrics
    }

    /// What a contestant showed.
    pub(super) fn summary(&self, metric: Metric, contestant: Contestant) -> Option<Summary> {
        Summary::of(self.samples.get(&(metric, contestant))?)
    }

    /// The same as a multiple of what VXLAN showed in the same round.
    fn ratio(&self, metric: Metric, contestant: Contestant) -> Option<Summary> {
        let own = self.samples.get(&(metric, contestant))?;
        let reference = self.samples.get(&(metric, Contestant::Vxlan))?;
        if own.len() == reference.len() {
            let ratios: Vec<f64> = own.iter().zip(reference).map(|(own, reference)| own / reference).collect();
            return Summary::of(&ratios);
        }
        // A round of one of them failed: only the medians compare.
        let ratio = Summary::of(own)?.median / Summary::of(reference)?.median;
        Some(Summary { median: ratio, min: ratio, max: ratio })
    }

    /// What this was measured on, in one line.
    pub(super) fn heading(&self) -> String {
        let offloads = match self.mode {
            Mode::Wire => "offloads off",
            Mode::Card => "merging on receive alone",
            Mode::Virtual => "offloads on",
        };
        format!("{} ({offloads}), MTU {}: {} rounds of {} s", self.mode.name(), self.mtu, self.rounds, self.seconds)
    }

    /// The tables that people read.
    pub(super) fn tables(&self) -> String {
        let mut text = format!("\n{}; {}\n\n", self.heading(), machine());
        for (contestant, said) in &self.rows {
            let said = said.as_ref().map_or_else(|why| format!("absent: {why}"), Clone::clone);
            let _ = writeln!(text, "  {:<13} {said}", contestant.name());
        }
        text.push_str("\nmedian (min–max)\n");
        text += &self.table(Self::summary);
        if self.samples.keys().any(|&(_, contestant)| contestant == Contestant::Vxlan) {
            text.push_str("\nas a multiple of vxlan in the same round\n");
            text += &self.table(Self::ratio);
        }
        text
    }

    fn table(&self, cell: impl Fn(&Self, Metric, Contestant) -> Option<Summary>) -> String {
        let metrics = self.metrics();
        let mut lines = vec![vec![String::new()], vec![String::new()]];
        for metric in &metrics {
            let (title, unit) = metric.title();
            lines[0].push(title.to_owned());
            lines[1].push(unit.to_owned());
        }
        for contestant in self.present_rows() {
            let mut line = vec![contestant.name().to_owned()];
            for &metric in &metrics {
                line.push(cell(self, metric, contestant).map_or_else(|| "-".to_owned(), Summary::show));
            }
            lines.push(line);
        }
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..=metrics.len()).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            for (cell, width) in line.iter().zip(&widths) {
                let _ = write!(text, "  {cell:<width$}");
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }

    fn json(&self) -> Value {
        let contestants: Vec<Value> = self
            .rows
            .iter()
            .map(|(contestant, said)| match said {
                Ok(said) => json!({ "name": contestant.name(), "says": said }),
                Err(why) => json!({ "name": contestant.name(), "absent": why }),
            })
            .collect();
        let results: Vec<Value> = self
            .samples
            .iter()
            .map(|(&(metric, contestant), samples)| {
                let (_, unit) = metric.title();
                let summary = |summary: Option<Summary>| {
                    summary.map(|s| json!({ "median": s.median, "min": s.min, "max": s.max }))
                };
                json!({
                    "contestant": contestant.name(),
                    "figure": metric.key(),
                    "unit": unit,
                    "samples": samples,
                    "value": summary(Summary::of(samples)),
                    "of_vxlan": summary(self.ratio(metric, contestant)),
                })
            })
            .collect();
        json!({
            "mode": self.mode.name(),
            "mtu": self.mtu,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "contestants": contestants,
            "results": results,
        })
    }
}

/// All runs, for programs.
pub(super) fn json(reports: &[Report]) -> Value {
    let runs: Vec<Value> = reports.iter().map(Report::json).collect();
    json!({ "machine": machine(), "runs": runs })
}

/// Processors and kernel.
pub(super) fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{processors} processors, {}, Linux {}", model.unwrap_or("of unknown make"), kernel.trim())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn report(samples: &[(Contestant, &[f64])]) -> Report {
        let mut report = Report::new(&Options::parse_from(["path"]), Mode::Wire, 1500);
        for (contestant, values) in samples {
            report.present(*contestant, "here");
            for value in *values {
                report.add(*contestant, Metric::Tcp1, *value);
            }
        }
        report
    }

    #[test]
    fn a_summary_is_the_median_with_its_extremes() {
        let odd = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(Summary::of(&[4.0, 1.0]).unwrap().median, 2.5);
        assert!(Summary::of(&[]).is_none());
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        // Both follow the machine; the ratio does not.
        let report = report(&[(Contestant::Vxlan, &[2.0, 4.0, 8.0]), (Contestant::WeftSealed, &[1.0, 2.0, 4.0])]);
        let ratio = report.ratio(Metric::Tcp1, Contestant::WeftSealed).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (0.5, 0.5, 0.5));
    }

    #[test]
    fn a_failed_round_leaves_the_ratio_of_the_medians() {
        let report = report(&[(Contestant::Vxlan, &[2.0, 4.0, 8.0]), (Contestant::WeftSealed, &[1.0, 3.0])]);
        assert_eq!(report.ratio(Metric::Tcp1, Contestant::WeftSealed).unwrap().median, 0.5);
        assert!(report.ratio(Metric::Tcp1, Contestant::Raw).is_none());
    }

    #[test]
    fn tables_name_who_is_absent_and_why() {
        let mut report = report(&[(Contestant::Vxlan, &[2.0])]);
        report.absent(Contestant::Tinc, "tincd is not installed");
        let tables = report.tables();
        assert!(tables.contains("absent: tincd is not installed"), "{tables}");
        assert!(tables.contains("TCP 1"), "{tables}");
    }
}
