//! Percentiles of measures: by nearest rank, so that each is a measure that occurred.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a measure is spread, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// How many measures there were.
    pub count: usize,
    /// The median.
    pub p50: f64,
    /// Nine of ten.
    pub p90: f64,
    /// All but one of a hundred.
    pub p99: f64,
    /// All but one of a thousand. Reports of earlier versions have it as `p99_9`.
    #[serde(alias = "p99_9")]
    pub p999: f64,
    /// All.
    pub p100: f64,
}

impl Percentiles {
    /// Of any number of milliseconds; of none, zeros.
    pub fn of(measures: &[f64]) -> Self {
        let mut sorted = measures.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |per_mille: usize| {
            let rank = (sorted.len() * per_mille).div_ceil(1000).max(1);
            sorted.get(rank - 1).copied().unwrap_or(0.0)
        };
        Self { count: sorted.len(), p50: at(500), p90: at(900), p99: at(990), p999: at(999), p100: at(1000) }
    }
}

/// Milliseconds with a fraction.
pub fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// Seconds with a fraction.
pub fn seconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e6
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, p50, p90, p99, p999, p100 } = self;
        write!(f, "{p50:>9.0} {p90:>9.0} {p99:>9.0} {p999:>9.0} {p100:>9.0} {count:>9}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measures_that_occurred() {
        let millis = |count: u64| (1..=count).map(|n| n as f64).collect::<Vec<_>>();
        let of_200 = Percentiles::of(&millis(200));
        let expected =
            Percentiles { count: 200, p50: 100.0, p90: 180.0, p99: 198.0, p999: 200.0, p100: 200.0 };
        assert_eq!(of_200, expected);
        assert_eq!(Percentiles::of(&millis(1)).p50, 1.0);
        assert_eq!(Percentiles::of(&[]), Percentiles::default());
    }
}
