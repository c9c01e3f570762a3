//! The result, as a table or as one JSON object.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::figure::Figure;
use crate::mesh::Plan;
use crate::serf::Beside;

/// Everything that was measured.
pub struct Report {
    pub program: PathBuf,
    pub plan: Plan,
    pub figures: Vec<Figure>,
    pub serf: Option<Beside>,
    pub machine: Machine,
    pub took: Duration,
}

/// What it was measured on.
pub struct Machine {
    pub processors: usize,
    /// Before and after.
    pub load_average: [f64; 2],
    /// By how much timers were late: half of them, 99 %, all at most.
    pub late_millis: [f64; 3],
}

impl Report {
    /// Whether no figure is worse than it may be.
    pub fn is_met(&self) -> bool {
        self.figures.iter().all(|figure| figure.is_met() != Some(false))
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let figures = |figures: &[Figure]| figures.iter().map(Figure::json).collect::<Vec<_>>();
        let serf = self.serf.as_ref();
        let [p50, p99, max] = self.machine.late_millis;
        json!({
            "program": self.program,
            "nodes": self.plan.nodes,
            "quick": self.plan.is_quick,
            "seconds": self.took.as_secs_f64(),
            "machine": {
                "processors": self.machine.processors,
                "load_average": self.machine.load_average,
                "timers_late_ms": { "p50": p50, "p99": p99, "max": max },
            },
            "figures": figures(&self.figures),
            "serf": serf.map(|serf| json!({ "version": serf.version, "figures": figures(&serf.figures) })),
            "met": self.is_met(),
        })
    }

    fn beside(&self, figure: &Figure) -> String {
        let figures = self.serf.iter().flat_map(|serf| &serf.figures);
        let mut same = figures.filter(|other| other.what == figure.what && other.which == figure.which);
        same.next().map_or("-".to_owned(), |other| other.unit.show(other.value).to_string())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, cells: [&str; 6]| {
            let [what, which, value, most, verdict, serf] = cells;
            writeln!(f, "{what:<34} {which:<4} {value:>9} {most:>9} {verdict:<6} {serf:>10}")
        };
        row(f, ["", "", "starling", "at most", "", "Serf"])?;
        for figure in &self.figures {
            let verdict = figure.is_met().map_or("", |is_met| if is_met { "ok" } else { "MISSED" });
            let most = figure.most.map_or(String::new(), |most| figure.unit.show(most).to_string());
            let value = figure.unit.show(figure.value).to_string();
            row(f, [figure.what, figure.which, &value, &most, verdict, &self.beside(figure)])?;
        }
        let serf = self.serf.as_ref().map_or("not installed", |serf| &serf.version);
        let [before, after] = self.machine.load_average;
        let [p50, p99, max] = self.machine.late_millis;
        writeln!(f, "\nSerf: {serf}")?;
        writeln!(f, "{} nodes of {}, {:.0?}", self.plan.nodes, self.program.display(), self.took)?;
        writeln!(
            f,
            "{} processors, load {before:.1} before and {after:.1} after; timers were late by {p50:.1} ms (p50), \
             {p99:.1} ms (p99), {max:.0} ms (max)",
            self.machine.processors
        )
    }
}
