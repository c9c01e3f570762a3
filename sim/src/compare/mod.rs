//! PURE: what changed between two reports, and whether it is more than noise.
//!
//! Each figure is compared by its values in the seeds of either side, not by one number: only what
//! chance seldom does ([`rank`]) and what exceeds the tolerance is a change. A failed check and a
//! threshold that no longer holds are worse without any statistics.

pub mod rank;
mod read;
mod show;

use serde::Serialize;

use crate::report::figures::names;
use crate::report::{Report, Run};

pub use read::{Unmatched, matched, reports};

/// The one figure that is judged without statistics.
const CHECKS_FAILED: &str = "checks_failed";

/// What counts as a change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// How seldom chance alone may do it: of figures that did not change, this share looks changed.
    pub level: f64,
    /// By what share a figure may change and still count as the same.
    pub tolerance: f64,
}

/// What became of one figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It improved, beyond chance and tolerance.
    Better,
    /// It got worse, beyond chance and tolerance.
    Worse,
    /// The same in every seed, or no further apart than the tolerance.
    Same,
    /// Further apart than the tolerance, but chance does that.
    Unclear,
    /// With so few seeds, no difference can be told from chance.
    TooFewSeeds,
    /// One side did not measure it.
    Missing,
    /// It depends on the machine or says nothing about quality.
    Informative,
}

/// One figure of both sides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The figure's name.
    pub figure: String,
    /// The mean of its values in A's seeds.
    pub a: Option<f64>,
    /// The mean of its values in B's seeds.
    pub b: Option<f64>,
    /// B by A, if A is not zero.
    pub ratio: Option<f64>,
    /// How likely chance alone puts them this far apart.
    pub chance: Option<f64>,
    /// What that means.
    pub verdict: Verdict,
}

/// One scenario with one number of nodes, of both sides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Which scenario.
    pub scenario: String,
    /// How many nodes.
    pub nodes: usize,
    /// How many seeds A and B ran.
    pub seeds: (usize, usize),
    /// Whether every event of both was the same.
    pub identical: bool,
    /// Figure by figure.
    pub changes: Vec<Change>,
    /// Thresholds that held in A and do not in B, or that only B has and misses.
    pub missed: Vec<String>,
}

impl Comparison {
    /// Of two reports about the same scenario and number of nodes.
    pub fn of(a: &Report, b: &Report, terms: Terms) -> Self {
        let sides = [&a.runs, &b.runs];
        let seeds = (a.runs.len(), b.runs.len());
        let change = |figure: String| {
            let [a, b] = sides.map(|runs| values(runs, &figure));
            Change::of(figure, &a, &b, terms)
        };
        let held = |name: &str| a.thresholds.iter().any(|of| of.name == name && !of.passed);
        let missed = b.thresholds.iter().filter(|of| !of.passed && !held(&of.name));
        Self {
            scenario: a.scenario.clone(),
            nodes: a.nodes,
            seeds,
            identical: a.trace_hash == b.trace_hash,
            changes: names().map(change).filter(|change| change.a.is_some() || change.b.is_some()).collect(),
            missed: missed.map(|of| of.name.clone()).collect(),
        }
    }

    /// Whether anything is worse.
    pub fn is_worse(&self) -> bool {
        !self.missed.is_empty() || self.changes.iter().any(|change| change.verdict == Verdict::Worse)
    }

    /// How many figures were put to the test.
    pub fn tested(&self) -> usize {
        self.changes.iter().filter(|change| change.chance.is_some()).count()
    }
}

impl Change {
    fn of(figure: String, a: &[f64], b: &[f64], terms: Terms) -> Self {
        let mean = |of: &[f64]| (!of.is_empty()).then(|| of.iter().sum::<f64>() / of.len() as f64);
        let means = (mean(a), mean(b));
        let ratio = match means {
            (Some(a), Some(b)) if a != 0.0 => Some(b / a),
            _ => None,
        };
        let (verdict, chance) = judge(&figure, a, b, terms);
        Self { figure, a: means.0, b: means.1, ratio, chance, verdict }
    }
}

/// A figure in each seed. A failed check ends its run early: what that measured until then says nothing.
fn values(runs: &[Run], figure: &str) -> Vec<f64> {
    let counts = |run: &&Run| run.violation.is_none() || figure == CHECKS_FAILED;
    runs.iter().filter(counts).filter_map(|run| run.figures().get(figure).copied()).collect()
}

/// The verdict, and how likely chance is if it was put to the test.
fn judge(figure: &str, a: &[f64], b: &[f64], terms: Terms) -> (Verdict, Option<f64>) {
    if a.is_empty() || b.is_empty() {
        return (Verdict::Missing, None);
    }
    let sum = |of: &[f64]| of.iter().sum::<f64>();
    if figure == CHECKS_FAILED {
        // Safety is not a matter of chance: what a seed can reach, a mesh can.
        let verdict = match (sum(a) > 0.0, sum(b) > 0.0) {
            (false, true) => Verdict::Worse,
            (true, false) => Verdict::Better,
            _ => Verdict::Same,
        };
        return (verdict, None);
    }
    if is_informative(figure) {
        return (Verdict::Informative, None);
    }
    if sorted(a) == sorted(b) {
        return (Verdict::Same, None);
    }
    if rank::least_chance(a.len(), b.len()) > terms.level {
        return (Verdict::TooFewSeeds, None);
    }
    let (before, after) = (sum(a) / a.len() as f64, sum(b) / b.len() as f64);
    let chance = rank::chance(a, b);
    let within = (after - before).abs() <= terms.tolerance * before.abs();
    let verdict = match (within, chance <= terms.level) {
        (true, _) => Verdict::Same,
        (false, false) => Verdict::Unclear,
        (false, true) if after > before => Verdict::Worse,
        (false, true) => Verdict::Better,
    };
    (verdict, Some(chance))
}

/// Of all else, less is better.
fn is_informative(figure: &str) -> bool {
    matches!(figure, "rejected" | "virtual_s" | "wall_s" | "memory_mib")
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { level: 0.01, tolerance: 0.05 };

    fn verdict(figure: &str, a: &[f64], b: &[f64]) -> Verdict {
        judge(figure, a, b, TERMS).0
    }

    #[test]
    fn only_what_exceeds_chance_and_tolerance_is_a_change() {
        let (low, high) = ([100.0, 101.0, 102.0, 103.0, 104.0], [150.0, 151.0, 152.0, 153.0, 154.0]);
        assert_eq!(verdict("known_ms_p99", &low, &high), Verdict::Worse);
        assert_eq!(verdict("known_ms_p99", &high, &low), Verdict::Better);
        assert_eq!(verdict("known_ms_p99", &low, &low.map(|of| of * 1.04)), Verdict::Same);
        let wild = [10.0, 50.0, 100.0, 300.0, 900.0];
        assert_eq!(verdict("known_ms_p99", &low, &wild), Verdict::Unclear);
    }

    #[test]
    fn few_seeds_tell_nothing_unless_they_are_equal() {
        assert_eq!(verdict("known_ms_p99", &[1.0, 2.0], &[50.0, 60.0]), Verdict::TooFewSeeds);
        assert_eq!(verdict("known_ms_p99", &[2.0, 1.0], &[1.0, 2.0]), Verdict::Same);
        assert_eq!(verdict("known_ms_p99", &[], &[1.0]), Verdict::Missing);
        assert_eq!(verdict("wall_s", &[1.0], &[50.0]), Verdict::Informative);
    }

    #[test]
    fn from_none_any_number_is_beyond_tolerance() {
        assert_eq!(verdict("evictions_false", &[0.0; 6], &[1.0; 6]), Verdict::Worse);
        assert_eq!(verdict("evictions_false", &[0.0; 6], &[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]), Verdict::Unclear);
    }

    #[test]
    fn one_failed_check_is_worse_with_any_number_of_seeds() {
        assert_eq!(verdict("checks_failed", &[0.0], &[1.0]), Verdict::Worse);
        assert_eq!(verdict("checks_failed", &[1.0], &[0.0]), Verdict::Better);
        assert_eq!(verdict("checks_failed", &[1.0], &[1.0, 1.0]), Verdict::Same);
    }
}
