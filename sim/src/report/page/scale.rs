//! PURE: axes: where a value lies between two ends, and at which round numbers ticks stand.

use crate::report::words;

/// About how many ticks an axis has.
const TICKS: f64 = 6.0;

/// What an axis measures; decides how its ticks are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds; from a second on, seconds.
    Millis,
    /// Seconds.
    Seconds,
    /// Bytes each second.
    ByteRate,
    /// A share of one, as per cent.
    Share,
    /// Anything that is counted.
    Count,
}

/// One axis of a plot.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it measures; ticks carry the unit.
    pub label: String,
    unit: Unit,
    low: f64,
    high: f64,
    logarithmic: bool,
    names: Vec<String>,
}

impl Axis {
    /// From `low` to `high`.
    pub fn between(label: &str, unit: Unit, low: f64, high: f64) -> Self {
        let high = if high > low { high } else { low + 1.0 };
        Self { label: label.to_owned(), unit, low, high, logarithmic: false, names: Vec::new() }
    }

    /// From zero to the first tick that no value exceeds.
    pub fn from_zero(label: &str, unit: Unit, values: impl IntoIterator<Item = f64>) -> Self {
        let most = values.into_iter().filter(|value| value.is_finite()).fold(0.0, f64::max);
        let most = if most > 0.0 { most } else { 1.0 };
        let step = step(most / TICKS);
        Self::between(label, unit, 0.0, (most / step - 1e-9).ceil() * step)
    }

    /// Logarithmic, from the 1, 2 or 5 of a decade below the least value to that above the most.
    /// Values of zero and less have no place on it; with no others, it is linear.
    pub fn logarithmic(label: &str, unit: Unit, values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<_> = values.into_iter().filter(|value| value.is_finite() && *value > 0.0).collect();
        let Some(least) = values.iter().copied().reduce(f64::min) else {
            return Self::from_zero(label, unit, values);
        };
        let most = values.iter().copied().fold(least, f64::max);
        let (low, high) = (rounded(least, false), rounded(most, true));
        let high = if high > low { high } else { low * 10.0 };
        Self { logarithmic: true, ..Self::between(label, unit, low, high) }
    }

    /// Logarithmic if the values span more than `decades` and none is zero, else from zero.
    pub fn fitting(label: &str, unit: Unit, decades: f64, values: &[f64]) -> Self {
        let positive = || values.iter().copied().filter(|value| *value > 0.0);
        let (least, most) = (positive().fold(f64::MAX, f64::min), positive().fold(0.0, f64::max));
        let has_zero = values.contains(&0.0);
        if !has_zero && most > least && (most / least).log10() > decades {
            Self::logarithmic(label, unit, values.iter().copied())
        } else {
            Self::from_zero(label, unit, values.iter().copied())
        }
    }

    /// Words, the first at 1, the second at 2 and so on.
    pub fn named(label: &str, names: &[&str]) -> Self {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        Self { names: names.clone(), ..Self::between(label, Unit::Count, 0.5, names.len() as f64 + 0.5) }
    }

    /// Whether values grow by factors along it.
    pub fn is_logarithmic(&self) -> bool {
        self.logarithmic
    }

    /// Where `value` lies: 0 at the low end, 1 at the high end, never beyond.
    pub fn place(&self, value: f64) -> f64 {
        let place = if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        place.clamp(0.0, 1.0)
    }

    /// Round values to mark.
    pub fn ticks(&self) -> Vec<f64> {
        if !self.names.is_empty() {
            return (1..=self.names.len()).map(|at| at as f64).collect();
        }
        if self.logarithmic {
            return logarithmic_ticks(self.low, self.high);
        }
        let step = step((self.high - self.low) / TICKS);
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|at| at as f64 * step).collect()
    }

    /// A value of this axis, as it is written.
    pub fn written(&self, value: f64) -> String {
        if !self.names.is_empty() {
            return self.names.get((value.round() as usize).wrapping_sub(1)).cloned().unwrap_or_default();
        }
        match self.unit {
            Unit::Millis if value == 0.0 && self.high >= 1000.0 => "0 s".to_owned(),
            Unit::Millis => words::duration(value),
            Unit::Seconds => format!("{} s", words::number(value)),
            Unit::ByteRate => format!("{}/s", words::size(value)),
            Unit::Share => words::share(value),
            Unit::Count => words::number(value),
        }
    }
}

/// The 1, 2 or 5 of a decade that is at least `about`.
fn step(about: f64) -> f64 {
    rounded(about, true)
}

/// The next 1, 2 or 5 of a decade above or below.
fn rounded(value: f64, up: bool) -> f64 {
    let decade = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
    let found = if up {
        steps.into_iter().find(|step| *step >= value * (1.0 - 1e-9))
    } else {
        steps.into_iter().rev().find(|step| *step <= value * (1.0 + 1e-9))
    };
    found.unwrap_or(decade)
}

fn logarithmic_ticks(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    // Over many decades, their beginnings alone.
    let steps: &[f64] = if last - first > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let within = |tick: &f64| *tick >= low * (1.0 - 1e-9) && *tick <= high * (1.0 + 1e-9);
    (first..=last)
        .flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)))
        .filter(within)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_stand_at_round_numbers() {
        let axis = Axis::from_zero("time", Unit::Millis, [130.0, 4210.0]);
        assert_eq!(axis.ticks(), [0.0, 1000.0, 2000.0, 3000.0, 4000.0, 5000.0]);
        let written: Vec<_> = axis.ticks().into_iter().map(|tick| axis.written(tick)).collect();
        assert_eq!(written, ["0 s", "1 s", "2 s", "3 s", "4 s", "5 s"]);
        let axis = Axis::between("time", Unit::Seconds, 3.0, 61.0);
        assert_eq!(axis.ticks(), [10.0, 20.0, 30.0, 40.0, 50.0, 60.0].map(|at| at * 1.0));
        assert_eq!(Axis::from_zero("nothing", Unit::Count, []).ticks().last(), Some(&1.0));
    }

    #[test]
    fn a_logarithmic_axis_begins_and_ends_round() {
        let axis = Axis::logarithmic("nodes", Unit::Count, [12.0, 480.0]);
        assert_eq!(axis.ticks(), [10.0, 20.0, 50.0, 100.0, 200.0, 500.0]);
        assert_eq!((axis.place(10.0), axis.place(500.0), axis.place(0.0)), (0.0, 1.0, 0.0));
        assert!(Axis::logarithmic("one", Unit::Count, [10.0]).place(20.0) > 0.0);
    }

    #[test]
    fn words_stand_where_their_numbers_do() {
        let axis = Axis::named("link", &["lan", "wan"]);
        let written: Vec<_> = axis.ticks().into_iter().map(|tick| axis.written(tick)).collect();
        assert_eq!(
            (written, axis.place(1.0), axis.written(9.0)),
            (vec!["lan".into(), "wan".into()], 0.25, "".into())
        );
    }

    #[test]
    fn only_what_spans_decades_is_logarithmic() {
        assert!(!Axis::fitting("", Unit::Count, 1.0, &[10.0, 90.0, 0.0]).is_logarithmic());
        assert!(Axis::fitting("", Unit::Count, 1.0, &[10.0, 110.0]).is_logarithmic());
        assert!(!Axis::fitting("", Unit::Count, 1.0, &[]).is_logarithmic());
    }
}
