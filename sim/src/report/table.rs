//! PURE: a report as an aligned table for a terminal: measures, traffic, counts, thresholds, and what
//! failed at the end, where a person who scrolls nothing still sees it.

use std::fmt::{self, Display, Write as _};

use super::columns::aligned;
use super::figures::total;
use super::words::{self, MEASURES, number, share};
use super::{Failed, Percentiles, Report, Threshold};

/// Of what happened before a failed check, this many lines are shown; the trace has all.
const HISTORY_LINES: usize = 20;
/// Of failed checks, this many are shown: with many seeds, one cause fails them all.
const FAILURES_SHOWN: usize = 3;

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeds = match self.runs.len() {
            0 | 1 => format!("seed {}", self.seed),
            several => format!("{several} seeds from {}", self.seed),
        };
        writeln!(f, "{}: {}, {seeds}", self.scenario, words::plural(self.nodes, "node"))?;
        if !self.question.is_empty() {
            writeln!(f, "{}", self.question)?;
        }
        for part in [measures(self), traffic(self), counts(self), thresholds(&self.thresholds)] {
            if !part.is_empty() {
                write!(f, "\n{part}")?;
            }
        }
        write!(f, "\n{}", verdict(self))?;
        failures(self, f)
    }
}

impl Report {
    /// Measures that have samples, in the order in which people ask for them: name and percentiles.
    pub(crate) fn measures(&self) -> Vec<(&str, &Percentiles)> {
        let place = |name: &str| MEASURES.iter().position(|(known, _)| *known == name);
        let mut took: Vec<_> = self.took_ms.iter().map(|(name, of)| (name.as_str(), of)).collect();
        took.sort_by_key(|(name, _)| place(name).unwrap_or(MEASURES.len()));
        let all = [("known", &self.known_ms)].into_iter().chain(took);
        all.filter(|(_, percentiles)| percentiles.count > 0).collect()
    }
}

fn measures(report: &Report) -> String {
    let measures = report.measures();
    if measures.is_empty() {
        return "nothing that takes time was measured\n".to_owned();
    }
    let head = ["milliseconds until", "50 %", "90 %", "99 %", "99.9 %", "100 %", "measures"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (name, of) in measures {
        let cells = [of.p50, of.p90, of.p99, of.p999, of.p100, of.count as f64].map(number);
        rows.push([vec![words::measure(name).to_owned()], cells.to_vec()].concat());
    }
    aligned("", &rows, false)
}

fn traffic(report: &Report) -> String {
    let (steady, change) = (&report.traffic.steady, &report.traffic.change);
    if steady.is_empty() && change.is_empty() {
        return String::new();
    }
    let mut kinds: Vec<_> = steady.keys().chain(change.keys()).collect();
    kinds.sort();
    kinds.dedup();
    let head = ["sent by a node each second", "bytes", "messages", "bytes in change", "messages in change"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for kind in kinds {
        let of = [steady, change].map(|phase| phase.get(kind).copied().unwrap_or_default());
        let cells = of.iter().flat_map(|rate| [number(rate.bytes), number(rate.messages)]);
        rows.push([kind.clone()].into_iter().chain(cells).collect());
    }
    let totals = [steady, change].map(total);
    let cells = totals.iter().flat_map(|(bytes, messages)| [number(*bytes), number(*messages)]);
    rows.push(["all kinds".to_owned()].into_iter().chain(cells).collect());
    aligned("", &rows, false)
}

fn counts(report: &Report) -> String {
    let rounds = &report.rounds;
    let rows = [
        (
            "rounds until half / all know",
            format!(
                "{} / {} (push gossip in theory: {})",
                number(rounds.p50),
                number(rounds.p100),
                number(rounds.bound)
            ),
        ),
        ("false suspicions / evictions", format!("{} / {}", report.suspicions_false, report.evictions_false)),
        ("records refused", report.rejected.to_string()),
        ("stale words that nodes route by", share(report.stale_share)),
        (
            "bytes/s of the node that sends most / peak of all",
            format!("{} / {}", number(report.bytes_per_node_s_max), number(report.bytes_peak_per_node_s)),
        ),
        (
            "connections of a node, median / most",
            format!("{} / {}", report.connections_median, report.connections_max),
        ),
        ("longest queue", words::plural(report.queue_max as usize, "message")),
        (
            "all equal after the start / the last event",
            format!("{} s / {} s", number(report.converged_s), number(report.recovered_s)),
        ),
        (
            "virtual time / time it took / memory",
            format!(
                "{} s / {} s / {} MiB",
                number(report.virtual_s),
                number(report.wall_s),
                number(report.memory_mib)
            ),
        ),
        ("trace hash", report.trace_hash.clone()),
    ];
    // Where nothing was said, nobody came to know it.
    let skipped = usize::from(report.known_ms.count == 0);
    let rows = rows.into_iter().skip(skipped).map(|(name, value)| vec![name.to_owned(), value]);
    aligned("", &rows.collect::<Vec<_>>(), true)
}

fn thresholds(thresholds: &[Threshold]) -> String {
    if thresholds.is_empty() {
        return String::new();
    }
    let mut rows = vec![["the scenario expects", "limit", "measured", ""].map(str::to_owned).to_vec()];
    for threshold in thresholds {
        let limit = if threshold.is_least() { "at least" } else { "at most" };
        rows.push(vec![
            threshold.name.clone(),
            format!("{limit} {}", number(threshold.limit)),
            threshold.measured.map_or_else(|| "nothing".to_owned(), number),
            if threshold.passed { "holds" } else { "FAILED" }.to_owned(),
        ]);
    }
    aligned("", &rows, true)
}

fn verdict(report: &Report) -> String {
    let checks = report.checks;
    let missed = report.thresholds.iter().filter(|threshold| !threshold.passed).count();
    let verdict = if report.passed() { "PASSED" } else { "FAILED" };
    let failed = if checks.failed > 0 { format!(", {} FAILED", checks.failed) } else { String::new() };
    let missed = match missed {
        0 => String::new(),
        missed => format!("; {} not met", words::plural(missed, "threshold")),
    };
    format!("{verdict}: {} held{failed}{missed}\n", words::plural(checks.passed as usize, "check"))
}

fn failures(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let failures: Vec<_> =
        report.runs.iter().filter_map(|run| Some((run, run.violation.as_ref()?))).collect();
    for (run, failed) in failures.iter().take(FAILURES_SHOWN) {
        writeln!(f, "\nseed {}: {}", run.seed, failed)?;
    }
    match failures.len().saturating_sub(FAILURES_SHOWN) {
        0 => Ok(()),
        more => writeln!(f, "\nand {more} more seeds failed a check"),
    }
}

impl Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        writeln!(f, "  at {} s, about {}", number(self.at_s), self.nodes.join(", "))?;
        let mut history = String::new();
        let earlier = self.history.len().saturating_sub(HISTORY_LINES);
        if earlier > 0 {
            writeln!(history, "    ({} earlier)", words::plural(earlier, "event"))?;
        }
        for line in &self.history[earlier..] {
            writeln!(history, "    {line}")?;
        }
        write!(f, "  before it:\n{history}  to see it again: {}", self.replay)
    }
}
