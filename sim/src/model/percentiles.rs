//! How a measure is spread over the nodes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::mean;

/// Milliseconds, by nearest rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// Nine of ten.
    pub p90: f64,
    /// All but one of a hundred.
    pub p99: f64,
    /// All.
    pub p100: f64,
}

impl Percentiles {
    /// Of any number of measures in microseconds; of none, zeros.
    pub fn of(mut micros: Vec<i64>) -> Self {
        micros.sort_unstable();
        let at = |percent: usize| {
            let rank = (micros.len() * percent).div_ceil(100).max(1);
            micros.get(rank - 1).map_or(0.0, |measure| *measure as f64 / 1000.0)
        };
        Self { p50: at(50), p90: at(90), p99: at(99), p100: at(100) }
    }

    /// The mean of each over several runs; of none, zeros.
    pub fn mean(all: &[Self]) -> Self {
        let of = |measure: fn(&Self) -> f64| mean(all.iter().map(measure));
        Self { p50: of(|it| it.p50), p90: of(|it| it.p90), p99: of(|it| it.p99), p100: of(|it| it.p100) }
    }

    /// What `change` makes of each.
    pub fn map(self, change: impl Fn(f64) -> f64) -> Self {
        Self { p50: change(self.p50), p90: change(self.p90), p99: change(self.p99), p100: change(self.p100) }
    }

    /// What `join` makes of each of two.
    pub fn zip(self, other: Self, join: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            p50: join(self.p50, other.p50),
            p90: join(self.p90, other.p90),
            p99: join(self.p99, other.p99),
            p100: join(self.p100, other.p100),
        }
    }

    /// From the median to all.
    pub fn values(self) -> [f64; 4] {
        [self.p50, self.p90, self.p99, self.p100]
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p90, p99, p100] = self.values();
        write!(f, "{p50:>8.0} {p90:>8.0} {p99:>8.0} {p100:>8.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measures_that_occurred() {
        let of_200 = Percentiles::of((1..=200).map(|millis| millis * 1000).collect());
        assert_eq!(of_200.values(), [100.0, 180.0, 198.0, 200.0]);
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
    }
}
