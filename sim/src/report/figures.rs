//! PURE: every figure of a report or a run by its name, for thresholds and `compare`.
//!
//! What was not measured has no figure: a threshold on it fails, a comparison of it says so.

use std::collections::BTreeMap;

use super::words::MEASURES;
use super::{Percentiles, Rates, Report, Run, Traffic};

/// Figures by name.
pub type Figures = BTreeMap<String, f64>;

/// Figures that are one number, with what they mean in words.
pub(crate) const SINGLES: [(&str, &str); 19] = [
    ("bytes_per_node_s", "bytes per node and second"),
    ("bytes_per_node_s_change", "the same, during change"),
    ("bytes_per_node_s_max", "the same, of the node that sent most"),
    ("bytes_peak_per_node_s", "the same, at most for ten seconds"),
    ("messages_per_node_s", "messages per node and second"),
    ("messages_per_node_s_change", "the same, during change"),
    ("suspicions_false", "false suspicions"),
    ("evictions_false", "false evictions"),
    ("rejected", "records refused"),
    ("stale_share", "share of stale words"),
    ("queue_max", "longest queue, messages"),
    ("connections_max", "most connections of a node"),
    ("connections_median", "connections, median"),
    ("converged_s", "all equal after the start, s"),
    ("recovered_s", "all equal after the last event, s"),
    ("checks_failed", "failed checks"),
    ("virtual_s", "virtual time, s"),
    ("wall_s", "time it took, s"),
    ("memory_mib", "memory, MiB"),
];

/// Percentiles by the end of their figures' names.
pub(crate) const PERCENTILES: [&str; 5] = ["p50", "p90", "p99", "p999", "p100"];

/// The fields that a report and a run have in common.
macro_rules! figures_of {
    ($measured:expr) => {{
        let of = $measured;
        let singles = [
            ("bytes_per_node_s", of.bytes_per_node_s),
            ("bytes_per_node_s_max", of.bytes_per_node_s_max),
            ("bytes_peak_per_node_s", of.bytes_peak_per_node_s),
            ("suspicions_false", of.suspicions_false as f64),
            ("evictions_false", of.evictions_false as f64),
            ("rejected", of.rejected as f64),
            ("stale_share", of.stale_share),
            ("queue_max", of.queue_max as f64),
            ("connections_max", of.connections_max as f64),
            ("connections_median", of.connections_median as f64),
            ("converged_s", of.converged_s),
            ("recovered_s", of.recovered_s),
            ("checks_failed", of.checks.failed as f64),
            ("virtual_s", of.virtual_s),
            ("wall_s", of.wall_s),
            ("memory_mib", of.memory_mib),
        ];
        figures(&of.known_ms, &of.took_ms, &of.traffic, &singles)
    }};
}

impl Report {
    /// Every figure that was measured.
    pub fn figures(&self) -> Figures {
        figures_of!(self)
    }
}

impl Run {
    /// Every figure that was measured.
    pub fn figures(&self) -> Figures {
        figures_of!(self)
    }
}

impl Percentiles {
    /// The five, by the names in `PERCENTILES`.
    pub(crate) fn named(&self) -> [(&'static str, f64); 5] {
        let [p50, p90, p99, p999, p100] = PERCENTILES;
        [(p50, self.p50), (p90, self.p90), (p99, self.p99), (p999, self.p999), (p100, self.p100)]
    }
}

fn figures(
    known: &Percentiles,
    took: &BTreeMap<String, Percentiles>,
    traffic: &Traffic,
    singles: &[(&str, f64)],
) -> Figures {
    let mut figures: Figures = singles.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    let took = took.iter().map(|(name, percentiles)| (name.as_str(), percentiles));
    for (measure, percentiles) in took.chain([("known", known)]).filter(|(_, of)| of.count > 0) {
        for (percentile, value) in percentiles.named() {
            figures.insert(format!("{measure}_ms_{percentile}"), value);
        }
    }
    for (phase, rates) in [("", &traffic.steady), ("_change", &traffic.change)] {
        if rates.is_empty() {
            continue;
        }
        let (bytes, messages) = total(rates);
        figures.entry(format!("bytes_per_node_s{phase}")).or_insert(bytes);
        figures.insert(format!("messages_per_node_s{phase}"), messages);
    }
    figures.retain(|_, value| value.is_finite());
    figures
}

/// All figures' names, measures first, as people would list them.
pub(crate) fn names() -> impl Iterator<Item = String> {
    let of_measures = MEASURES
        .iter()
        .flat_map(|(measure, _)| PERCENTILES.map(|percentile| format!("{measure}_ms_{percentile}")));
    of_measures.chain(SINGLES.iter().map(|(name, _)| (*name).to_owned()))
}

/// Bytes and messages of all kinds together.
pub(crate) fn total(rates: &Rates) -> (f64, f64) {
    rates.values().fold((0.0, 0.0), |(bytes, messages), rate| (bytes + rate.bytes, messages + rate.messages))
}
