//! PURE: reports from JSON, and which of one side belong to which of the other.

use serde_json::Value;
use thiserror::Error;

use crate::report::Report;

/// Why reports cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unmatched {
    /// Only one side has it.
    #[error("{scenario} with {nodes} nodes is only in {side}: compare runs of the same scenarios and sizes")]
    Only {
        /// Which scenario.
        scenario: String,
        /// How many nodes.
        nodes: usize,
        /// The side that has it.
        side: char,
    },
    /// A sweep over something else than nodes: nothing tells which belongs to which.
    #[error(
        "{side} has {count} reports of {scenario} with {nodes} nodes, the other side another number: compare \
         sweeps over the same values"
    )]
    Several {
        /// Which scenario.
        scenario: String,
        /// How many nodes.
        nodes: usize,
        /// The side that has more.
        side: char,
        /// How many it has.
        count: usize,
    },
    /// There is nothing to compare.
    #[error("neither file holds a report")]
    Empty,
}

/// Reads what `starling-sim run -o json` prints: one report, or an array of them.
///
/// # Errors
/// What is not such JSON, with what is wrong with it.
pub fn reports(json: &str) -> serde_json::Result<Vec<Report>> {
    match serde_json::from_str(json)? {
        Value::Array(reports) => reports.into_iter().map(serde_json::from_value).collect(),
        one => Ok(vec![serde_json::from_value(one)?]),
    }
}

/// Pairs the reports of both sides by scenario and nodes, in A's order; equal ones (of a sweep over
/// something else) in the order in which they stand.
///
/// # Errors
/// The first that has no partner.
pub fn matched<'a>(a: &'a [Report], b: &'a [Report]) -> Result<Vec<(&'a Report, &'a Report)>, Unmatched> {
    if a.is_empty() && b.is_empty() {
        return Err(Unmatched::Empty);
    }
    let same = |one: &Report, other: &Report| one.scenario == other.scenario && one.nodes == other.nodes;
    for report in a.iter().chain(b) {
        let [in_a, in_b] = [a, b].map(|side| side.iter().filter(|other| same(report, other)).count());
        let (scenario, nodes) = (report.scenario.clone(), report.nodes);
        let side = if in_a > in_b { 'A' } else { 'B' };
        if in_a.min(in_b) == 0 {
            return Err(Unmatched::Only { scenario, nodes, side });
        }
        if in_a != in_b {
            return Err(Unmatched::Several { scenario, nodes, side, count: in_a.max(in_b) });
        }
    }
    let partner = |at: usize, report: &'a Report| {
        let before = a[..at].iter().filter(|other| same(report, other)).count();
        b.iter().filter(|other| same(report, other)).nth(before).map(|other| (report, other))
    };
    Ok(a.iter().enumerate().filter_map(|(at, report)| partner(at, report)).collect())
}
