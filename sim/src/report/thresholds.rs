//! PURE: what a scenario's `[expect]` demands of its figures, and whether they obey.
//!
//! Each key names a figure: `known_ms_p99 = 2000` is the most it may be, `rejected_min = 1` the least.

use std::sync::LazyLock;

use super::figures::{self, Figures};
use super::{Report, Threshold};

/// Ends a key whose limit is the least.
const LEAST: &str = "_min";

/// Every key that a scenario's `[expect]` may hold.
pub static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let names: Vec<_> = figures::names().collect();
    let least: Vec<_> = names.iter().map(|name| format!("{name}{LEAST}")).collect();
    names.into_iter().chain(least).collect()
});

/// Whether a scenario's `[expect]` may hold this key.
pub fn is_known(name: &str) -> bool {
    NAMES.iter().any(|known| known == name)
}

impl Threshold {
    /// Judges the figure that `name` addresses. What was not measured obeys no limit: a scenario that
    /// no longer measures what it promises must not pass.
    pub(super) fn judge(name: &str, limit: f64, figures: &Figures) -> Self {
        let measured = figures.get(name.strip_suffix(LEAST).unwrap_or(name)).copied();
        let passed = measured.is_some_and(|measured| match name.ends_with(LEAST) {
            true => measured >= limit,
            false => measured <= limit,
        });
        Self { name: name.to_owned(), limit, measured, passed }
    }

    /// Whether the limit is the least, not the most.
    pub fn is_least(&self) -> bool {
        self.name.ends_with(LEAST)
    }
}

impl Report {
    /// Whether no check failed and all thresholds hold.
    pub fn passed(&self) -> bool {
        self.checks.failed == 0
            && self.runs.iter().all(|run| run.violation.is_none())
            && self.thresholds.iter().all(|threshold| threshold.passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_scenarios_use_are_known() {
        let names = [
            "known_ms_p99",
            "known_ms_p100",
            "known_ms_p999",
            "suspect_ms_p99",
            "unused_ms_p99",
            "expired_ms_p100",
            "joined_ms_p99",
            "rejoined_ms_p100",
            "bytes_per_node_s_max",
            "bytes_peak_per_node_s",
            "connections_max",
            "connections_median",
            "left_ms_p100",
            "stale_ms_p99",
            "bytes_per_node_s",
            "bytes_per_node_s_change",
            "suspicions_false",
            "evictions_false",
            "rejected_min",
            "stale_share",
            "queue_max",
            "converged_s",
            "recovered_s",
        ];
        for name in names {
            assert!(is_known(name), "{name}");
        }
        assert!(!is_known("known_ms_p98") && !is_known("_min") && !is_known("rejected_min_min"));
    }

    #[test]
    fn a_limit_is_the_most_or_the_least_and_what_was_not_measured_fails() {
        let figures = Figures::from([("known_ms_p99".to_owned(), 2000.0), ("rejected".to_owned(), 3.0)]);
        let passed = |name, limit| Threshold::judge(name, limit, &figures).passed;
        assert!(passed("known_ms_p99", 2000.0) && !passed("known_ms_p99", 1999.0));
        assert!(passed("rejected_min", 3.0) && !passed("rejected_min", 4.0));
        let missing = Threshold::judge("left_ms_p99", 1e9, &figures);
        assert_eq!((missing.measured, missing.passed), (None, false));
        assert!(!passed("left_ms_p99_min", 0.0));
    }
}
