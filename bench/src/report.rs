//! The figures of a run: minimum, median and maximum of each, its ratio to Envoy's, as a table and as JSON.

use crate::pair::Peer;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One thing measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Metric {
    /// What it is.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
}

/// All figures.
#[derive(Default)]
pub struct Report {
    cases: Vec<Case>,
}

struct Case {
    name: &'static str,
    about: &'static str,
    values: BTreeMap<(Metric, Peer), Vec<f64>>,
    failed: BTreeMap<Peer, String>,
}

/// One line of the JSON.
#[derive(Serialize)]
struct Line<'a> {
    case: &'a str,
    peer: &'a str,
    metric: &'a str,
    unit: &'a str,
    min: f64,
    median: f64,
    max: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_to_envoy: Option<f64>,
}

impl Report {
    /// Begins a case.
    pub fn case(&mut self, name: &'static str, about: &'static str) {
        self.cases.push(Case { name, about, values: BTreeMap::new(), failed: BTreeMap::new() });
    }

    /// Adds what one peer reached in one round of the case begun last.
    pub fn add(&mut self, peer: Peer, figures: Vec<(Metric, f64)>) {
        let Some(case) = self.cases.last_mut() else { return };
        for (metric, value) in figures {
            case.values.entry((metric, peer)).or_default().push(value);
        }
    }

    /// Notes that a peer could not be measured.
    pub fn fail(&mut self, peer: Peer, why: String) {
        if let Some(case) = self.cases.last_mut() {
            case.failed.insert(peer, why);
        }
    }

    /// True when our own proxy could not be measured somewhere.
    pub fn weft_failed(&self) -> bool {
        self.cases.iter().any(|case| case.failed.contains_key(&Peer::Weft))
    }

    /// The table of the last case, in Markdown.
    pub fn last(&self) -> String {
        self.cases.last().map(table).unwrap_or_default()
    }

    /// All tables, in Markdown.
    pub fn markdown(&self) -> String {
        self.cases.iter().map(table).collect()
    }

    /// All figures, as a JSON list.
    pub fn json(&self) -> serde_json::Result<String> {
        let lines: Vec<Line<'_>> = self.cases.iter().flat_map(lines).collect();
        serde_json::to_string_pretty(&lines)
    }
}

fn lines(case: &Case) -> Vec<Line<'_>> {
    let line = |((metric, peer), values): (&(Metric, Peer), &Vec<f64>)| {
        let (min, median, max) = spread(values);
        let envoy = case.values.get(&(*metric, Peer::Envoy)).map(|values| spread(values).1);
        let ratio_to_envoy = envoy.filter(|envoy| *envoy > 0.0).map(|envoy| median / envoy);
        Line {
            case: case.name,
            peer: peer.name(),
            metric: metric.name,
            unit: metric.unit,
            min,
            median,
            max,
            ratio_to_envoy,
        }
    };
    case.values.iter().map(line).collect()
}

fn table(case: &Case) -> String {
    let mut out = format!("\n### {}\n\n{}\n\n", case.name, case.about);
    let _ = writeln!(out, "| metric | peer | min | median | max | : Envoy |\n|---|---|---|---|---|---|");
    for line in lines(case) {
        let ratio = line.ratio_to_envoy.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let (min, median, max) = (short(line.min), short(line.median), short(line.max));
        let _ =
            writeln!(out, "| {}, {} | {} | {min} | {median} | {max} | {ratio} |", line.metric, line.unit, line.peer);
    }
    for (peer, why) in &case.failed {
        let _ = writeln!(out, "\n{}: not measured: {why}", peer.name());
    }
    out
}

/// Minimum, median, maximum.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    (at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1)))
}

fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Metric = Metric { name: "CPU", unit: "µs" };

    #[test]
    fn a_ratio_is_of_medians() {
        let mut report = Report::default();
        report.case("pair", "about");
        for (ours, envoys) in [(1.0, 10.0), (9.0, 12.0), (3.0, 11.0)] {
            report.add(Peer::Weft, vec![(CPU, ours)]);
            report.add(Peer::Envoy, vec![(CPU, envoys)]);
        }
        let text = report.markdown();
        assert!(text.contains("| CPU, µs | weft | 1.00 | 3.00 | 9.00 | 0.27 |"), "{text}");
        assert!(text.contains("| CPU, µs | envoy | 10.0 | 11.0 | 12.0 | 1.00 |"), "{text}");
    }

    #[test]
    fn what_failed_is_said() {
        let mut report = Report::default();
        report.case("pair", "about");
        report.fail(Peer::Weft, "it ended".into());
        assert!(report.weft_failed());
        assert!(report.last().contains("weft: not measured: it ended"));
    }
}
