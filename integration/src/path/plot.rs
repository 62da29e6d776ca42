//! The picture: a panel a figure, a bar a contestant, as SVG.

use std::fmt::Write as _;

use super::{
    contestant::Contestant,
    figures::Metric,
    report::{Report, Summary, machine},
};

const PANEL: f64 = 380.0;
const COLUMNS: usize = 3;
const BAR: f64 = 18.0;
const LABEL: f64 = 96.0;
const VALUE: f64 = 70.0;
const HEAD: f64 = 30.0;
const TITLE: f64 = 34.0;

/// One picture of all runs, one below the other.
pub(super) fn svg(reports: &[Report]) -> String {
    let (mut body, mut y) = (String::new(), 12.0);
    for report in reports {
        y = run(&mut body, report, y);
    }
    let (width, height) = (PANEL * COLUMNS as f64 + 24.0, y + 26.0);
    let machine = escape(&machine());
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} \
         {height}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"#fff\"/>\n{body}<text x=\"12\" y=\"{}\" fill=\"#666\">Bars: medians; lines: min–max; dashed: \
         vxlan. {machine}</text>\n</svg>\n",
        height - 10.0
    )
}

/// Draws the panels of one run below `top`; where the next may begin.
fn run(body: &mut String, report: &Report, top: f64) -> f64 {
    let rows = report.present_rows();
    let _ = writeln!(
        body,
        "<text x=\"12\" y=\"{}\" font-size=\"16\" font-weight=\"bold\">{}</text>",
        top + 18.0,
        escape(&report.heading())
    );
    let metrics = report.metrics();
    let height = HEAD + BAR * rows.len() as f64 + 14.0;
    for (index, &metric) in metrics.iter().enumerate() {
        let x = 12.0 + PANEL * (index % COLUMNS) as f64;
        let y = top + TITLE + height * (index / COLUMNS) as f64;
        panel(body, report, &rows, metric, (x, y));
    }
    top + TITLE + height * metrics.len().div_ceil(COLUMNS) as f64
}

fn panel(body: &mut String, report: &Report, rows: &[Contestant], metric: Metric, (x, y): (f64, f64)) {
    let (title, unit) = metric.title();
    let _ = writeln!(body, "<text x=\"{x}\" y=\"{}\" font-weight=\"bold\">{title}, {unit}</text>", y + 18.0);
    let summaries: Vec<Option<Summary>> = rows.iter().map(|&row| report.summary(metric, row)).collect();
    let top = summaries.iter().flatten().map(|summary| summary.max).fold(f64::MIN_POSITIVE, f64::max);
    let scale = |value: f64| value / top * (PANEL - LABEL - VALUE - 20.0);
    if let Some(reference) = report.summary(metric, Contestant::Vxlan) {
        let at = x + LABEL + scale(reference.median);
        let _ = writeln!(
            body,
            "<path d=\"M{at:.1} {}V{}\" stroke=\"#888\" stroke-dasharray=\"4 3\"/>",
            y + HEAD - 2.0,
            y + HEAD + BAR * rows.len() as f64
        );
    }
    for (index, (row, summary)) in rows.iter().zip(&summaries).enumerate() {
        let line = y + HEAD + BAR * index as f64;
        let (left, middle) = (x + LABEL, line + BAR / 2.0);
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            middle + 4.0,
            row.name()
        );
        let Some(summary) = summary else { continue };
        let (from, to) = (left + scale(summary.min), left + scale(summary.max));
        let _ = writeln!(
            body,
            "<rect x=\"{left}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/><path d=\"M{from:.1} \
             {middle}H{to:.1}\" stroke=\"#000\" stroke-width=\"1.5\"/><text x=\"{:.1}\" y=\"{}\" paint-order=\"stroke\" \
             stroke=\"#fff\" stroke-width=\"3\">{}</text>",
            line + 2.0,
            scale(summary.median),
            BAR - 4.0,
            colour(*row),
            to + 5.0,
            middle + 4.0,
            Metric::digits(summary.median)
        );
    }
}

fn colour(contestant: Contestant) -> &'static str {
    match contestant {
        Contestant::Raw | Contestant::Vxlan => "#b0b7c0",
        Contestant::WeftFast
        | Contestant::WeftPlain
        | Contestant::WeftSealed
        | Contestant::WeftChacha
        | Contestant::WeftNacl
        | Contestant::WeftRelayed => "#2f7fc1",
        Contestant::WireguardGo | Contestant::Boringtun | Contestant::Tinc | Contestant::Vpncloud => "#d9954a",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
