//! PURE: many measures in, the figures that are shown out.

use std::fmt;

use serde_json::{Value, json};

/// One number of the table.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub what: &'static str,
    /// Which of the measures it is: `p50`, `p99`, `max`, `all`.
    pub which: &'static str,
    /// In what.
    pub unit: Unit,
    /// How much; infinite for what never happened.
    pub value: f64,
    /// How much it may be.
    pub most: Option<f64>,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Millis,
    Bytes,
    BytesPerSecond,
    /// Of one processor.
    Percent,
    Count,
}

impl Figure {
    /// Without a threshold.
    pub fn one(what: &'static str, which: &'static str, unit: Unit, value: f64) -> Self {
        Self { what, which, unit, value, most: None }
    }

    /// Of `measures`, those that `which` names.
    pub fn of<const N: usize>(
        what: &'static str,
        unit: Unit,
        measures: &[f64],
        which: [(&'static str, Option<f64>); N],
    ) -> Vec<Self> {
        let share = |which| match which {
            "p50" => 0.5,
            "p99" => 0.99,
            _ => 1.0,
        };
        let one = |(which, most)| Self { what, which, unit, value: quantile(measures, share(which)), most };
        which.map(one).into()
    }

    /// Whether it is no worse than it may be; `None` if it may be anything.
    pub fn is_met(&self) -> Option<bool> {
        self.most.map(|most| self.value <= most)
    }

    /// For programs. What is not finite is `null`.
    pub fn json(&self) -> Value {
        json!({
            "what": self.what,
            "which": self.which,
            "unit": self.unit.as_str(),
            "value": (self.value * 1000.0).round() / 1000.0,
            "most": self.most,
            "met": self.is_met(),
        })
    }
}

impl Unit {
    fn as_str(self) -> &'static str {
        match self {
            Self::Millis => "ms",
            Self::Bytes => "B",
            Self::BytesPerSecond => "B/s",
            Self::Percent => "%",
            Self::Count => "",
        }
    }

    /// For people.
    pub fn show(self, value: f64) -> impl fmt::Display {
        if !value.is_finite() {
            return "never".to_owned();
        }
        match self {
            Self::Bytes => format!("{:.1} MiB", value / 1024.0 / 1024.0),
            Self::Percent => format!("{value:.2} %"),
            Self::Millis | Self::BytesPerSecond => format!("{value:.0} {}", self.as_str()),
            Self::Count => format!("{value:.0}"),
        }
    }
}

/// The least measure that is not less than `share` of them. Without measures nothing ever happened.
pub fn quantile(measures: &[f64], share: f64) -> f64 {
    let mut sorted = measures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::INFINITY)
}
