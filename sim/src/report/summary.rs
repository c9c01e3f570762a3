//! PURE: one or several seeds' runs, summed up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use aws_lc_rs::digest::{self, SHA256};

use super::{Checks, Percentiles, Rate, Rates, Report, Rounds, Run, Samples, Threshold, Traffic, millis};

impl Report {
    /// Sums up `runs` and judges `thresholds` (figures by name; `thresholds::NAMES` has them all).
    /// `interval` is what a node waits between two rounds of gossip. The runs keep their samples and pictures,
    /// which the page draws; [`Self::without_samples`] drops them.
    pub fn of(
        scenario: &str,
        question: &str,
        nodes: usize,
        interval: Duration,
        runs: Vec<Run>,
        thresholds: &BTreeMap<String, f64>,
    ) -> Self {
        let mut took_ms = pooled(&runs);
        let known_ms = took_ms.remove("known").unwrap_or_default();
        let mut report = Self {
            scenario: scenario.to_owned(),
            question: question.to_owned(),
            seed: runs.first().map_or(0, |run| run.seed),
            nodes,
            trace_hash: hash(&runs),
            checks: Checks {
                passed: sum(&runs, |run| run.checks.passed),
                failed: sum(&runs, |run| run.checks.failed),
            },
            rejected: sum(&runs, |run| run.rejected),
            known_ms,
            took_ms,
            rounds: Rounds::of(&known_ms, nodes, interval),
            bytes_per_node_s: mean(&runs, |run| run.bytes_per_node_s),
            bytes_per_node_s_max: most(&runs, |run| run.bytes_per_node_s_max),
            bytes_peak_per_node_s: most(&runs, |run| run.bytes_peak_per_node_s),
            connections_max: greatest(&runs, |run| run.connections_max),
            connections_median: greatest(&runs, |run| run.connections_median),
            traffic: Traffic {
                steady: mean_rates(&runs, |run| &run.traffic.steady),
                change: mean_rates(&runs, |run| &run.traffic.change),
            },
            suspicions_false: sum(&runs, |run| run.suspicions_false),
            evictions_false: sum(&runs, |run| run.evictions_false),
            stale_share: mean(&runs, |run| run.stale_share),
            queue_max: greatest(&runs, |run| run.queue_max),
            converged_s: most(&runs, |run| run.converged_s),
            recovered_s: most(&runs, |run| run.recovered_s),
            virtual_s: most(&runs, |run| run.virtual_s),
            wall_s: most(&runs, |run| run.wall_s),
            memory_mib: most(&runs, |run| run.memory_mib),
            thresholds: Vec::new(),
            runs,
        };
        report.judge(thresholds);
        report
    }

    fn judge(&mut self, thresholds: &BTreeMap<String, f64>) {
        let figures = self.figures();
        let judged = |(name, limit): (&String, &f64)| Threshold::judge(name, *limit, &figures);
        self.thresholds = thresholds.iter().map(judged).collect();
    }

    /// Without what only the page needs of each seed: for printing.
    pub fn without_samples(mut self) -> Self {
        for run in &mut self.runs {
            run.samples = Samples::default();
            run.pictures = None;
        }
        self
    }
}

impl Rounds {
    fn of(known: &Percentiles, nodes: usize, interval: Duration) -> Self {
        let interval_ms = millis(interval);
        let rounds = |millis: f64| if interval_ms > 0.0 { millis / interval_ms } else { 0.0 };
        let nodes = nodes.max(1) as f64;
        Self {
            p50: rounds(known.p50),
            p100: rounds(known.p100),
            bound: nodes.log2() + nodes.ln(),
            interval_ms,
        }
    }
}

fn pooled(runs: &[Run]) -> BTreeMap<String, Percentiles> {
    let mut pooled: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, samples) in runs.iter().flat_map(|run| &run.samples.0) {
        pooled.entry(name).or_default().extend(samples);
    }
    pooled.into_iter().map(|(name, samples)| (name.to_owned(), Percentiles::of(&samples))).collect()
}

/// One run's own hash; of several, SHA-256 over their hashes, one a line.
fn hash(runs: &[Run]) -> String {
    if let [run] = runs {
        return run.trace_hash.clone();
    }
    let lines: String = runs.iter().map(|run| format!("{}\n", run.trace_hash)).collect();
    digest::digest(&SHA256, lines.as_bytes()).as_ref().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn sum(runs: &[Run], of: impl Fn(&Run) -> u64) -> u64 {
    runs.iter().map(of).sum()
}

fn mean(runs: &[Run], of: impl Fn(&Run) -> f64) -> f64 {
    runs.iter().map(of).sum::<f64>() / runs.len().max(1) as f64
}

fn greatest(runs: &[Run], of: impl Fn(&Run) -> u64) -> u64 {
    runs.iter().map(of).max().unwrap_or_default()
}

fn most(runs: &[Run], of: impl Fn(&Run) -> f64) -> f64 {
    runs.iter().map(of).fold(0.0, f64::max)
}

/// Means by kind; a run that never sent a kind counts with zero.
fn mean_rates<'a>(runs: &'a [Run], of: impl Fn(&'a Run) -> &'a Rates) -> Rates {
    let kinds: BTreeSet<_> = runs.iter().flat_map(|run| of(run).keys()).collect();
    let mean_rate = |kind: &String| {
        let (bytes, messages) = runs
            .iter()
            .filter_map(|run| of(run).get(kind))
            .fold((0.0, 0.0), |(bytes, messages), rate| (bytes + rate.bytes, messages + rate.messages));
        let runs = runs.len() as f64;
        Rate { bytes: bytes / runs, messages: messages / runs }
    };
    kinds.into_iter().map(|kind| (kind.clone(), mean_rate(kind))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seed: u64, known: &[f64], bytes: f64) -> Run {
        let mut samples = Samples::default();
        known.iter().for_each(|millis| samples.add("known", *millis));
        samples.add("left", seed as f64);
        let gossip = Rates::from([("syn".to_owned(), Rate { bytes, messages: 1.0 })]);
        Run {
            seed,
            trace_hash: format!("hash-{seed}"),
            checks: Checks { passed: 10, failed: 0 },
            rejected: 2,
            known_ms: Percentiles::of(known),
            bytes_per_node_s: bytes,
            traffic: Traffic { steady: gossip, change: Rates::new() },
            queue_max: seed,
            recovered_s: seed as f64,
            samples,
            ..Run::default()
        }
    }

    fn report(runs: Vec<Run>, expect: &[(&str, f64)]) -> Report {
        let expect = expect.iter().map(|(name, limit)| ((*name).to_owned(), *limit)).collect();
        Report::of("quiet", "How fast?", 8, Duration::from_millis(500), runs, &expect)
    }

    #[test]
    fn samples_are_pooled_counts_summed_rates_averaged_times_the_longest() {
        let report = report(vec![run(3, &[100.0, 200.0], 10.0), run(4, &[1000.0], 30.0)], &[]);
        assert_eq!((report.seed, report.checks.passed, report.rejected), (3, 20, 4));
        assert_eq!((report.known_ms.count, report.known_ms.p50, report.known_ms.p100), (3, 200.0, 1000.0));
        assert_eq!(report.took_ms["left"].count, 2);
        assert!(!report.took_ms.contains_key("known"));
        assert_eq!((report.bytes_per_node_s, report.traffic.steady["syn"].bytes), (20.0, 20.0));
        assert_eq!((report.queue_max, report.recovered_s), (4, 4.0));
        assert_eq!((report.rounds.p50, report.rounds.p100), (0.4, 2.0));
        assert!((report.rounds.bound - (3.0 + 8f64.ln())).abs() < 1e-12);
        assert!(report.runs.iter().all(|run| !run.samples.is_empty()), "the page draws them");
        assert!(report.without_samples().runs.iter().all(|run| run.samples.is_empty()));
    }

    #[test]
    fn one_seed_keeps_its_hash_and_several_have_that_of_all() {
        assert_eq!(report(vec![run(1, &[], 0.0)], &[]).trace_hash, "hash-1");
        let both = report(vec![run(1, &[], 0.0), run(2, &[], 0.0)], &[]).trace_hash;
        let swapped = report(vec![run(2, &[], 0.0), run(1, &[], 0.0)], &[]).trace_hash;
        assert_eq!(both.len(), 64);
        assert_ne!(both, swapped);
    }

    #[test]
    fn a_report_passes_by_its_checks_and_thresholds_and_survives_json() {
        let fine = report(vec![run(1, &[100.0], 1.0)], &[("known_ms_p99", 100.0), ("rejected_min", 2.0)]);
        assert!(fine.passed());
        let missing = report(vec![run(1, &[], 1.0)], &[("known_ms_p99", 100.0)]);
        assert!(!missing.passed());
        let json = serde_json::to_string(&missing).expect("a report is plain data");
        assert!(json.contains(r#""measured":null"#), "{json}");
        assert_eq!(serde_json::from_str::<Report>(&json).expect("what was written is read"), missing);
        let mut failed = run(1, &[100.0], 1.0);
        failed.checks.failed = 1;
        assert!(!report(vec![failed], &[]).passed());
        assert!(report(Vec::new(), &[]).passed());
    }
}
