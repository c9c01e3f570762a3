//! PURE: a comparison as a table for a terminal.

use std::fmt::{self, Display};

use super::{Change, Comparison, Verdict};
use crate::report::columns::aligned;
use crate::report::figures::{PERCENTILES, SINGLES};
use crate::report::words::{measure, number, plural};

/// All figures, or with `{:#}` only those that are not the same.
impl Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (a, b) = self.seeds;
        let seeds = if a == b { plural(a, "seed") } else { format!("{a} and {b} seeds") };
        writeln!(f, "{}: {}, {seeds}", self.scenario, plural(self.nodes, "node"))?;
        if self.identical {
            writeln!(f, "every event was the same in both")?;
        }
        let head = ["mean of the seeds", "A", "B", "B by A", "by chance", ""];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        let quiet = |change: &&Change| matches!(change.verdict, Verdict::Same | Verdict::Informative);
        rows.extend(self.changes.iter().filter(|change| !f.alternate() || !quiet(change)).map(row));
        write!(f, "{}", aligned("", &rows, true))?;
        if f.alternate() {
            let quiet = self.changes.iter().filter(quiet).count();
            writeln!(f, "{} the same, or no matter of quality", plural(quiet, "figure"))?;
        }
        for missed in &self.missed {
            writeln!(f, "{missed}: the scenario's limit holds in A and not in B: worse")?;
        }
        Ok(())
    }
}

fn row(change: &Change) -> Vec<String> {
    let or_dash = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
    let ratio = change.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
    let chance = match change.chance {
        Some(chance) if chance < 0.001 => "<0.001".to_owned(),
        Some(chance) => format!("{chance:.3}"),
        None => "-".to_owned(),
    };
    vec![
        title(&change.figure),
        or_dash(change.a),
        or_dash(change.b),
        ratio,
        chance,
        words(change.verdict).to_owned(),
    ]
}

/// `known_ms_p99` as `a change known by another node, 99 %, ms`.
fn title(figure: &str) -> String {
    if let Some((_, words)) = SINGLES.iter().find(|(name, _)| *name == figure) {
        return (*words).to_owned();
    }
    let Some((name, percentile)) = figure.split_once("_ms_") else { return figure.to_owned() };
    let shares = ["50 %", "90 %", "99 %", "99.9 %", "100 %"];
    let share = PERCENTILES.iter().position(|known| *known == percentile).map_or(percentile, |at| shares[at]);
    format!("{}, {share}, ms", measure(name))
}

fn words(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "WORSE",
        Verdict::Same => "same",
        Verdict::Unclear => "unclear: chance does that",
        Verdict::TooFewSeeds => "too few seeds to tell",
        Verdict::Missing => "measured in one only",
        Verdict::Informative => "",
    }
}
