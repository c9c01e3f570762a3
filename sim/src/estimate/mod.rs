//! The calculator: how fast, at which cost, without running anything.
//!
//! Two answers. `formula` solves the equations of the epidemic and needs nothing. The table,
//! `measured.json`, holds what was measured: full simulations of small meshes, the event model for
//! large ones. Where it reaches, the formula's answer is corrected by how far it was off nearby.
//! Both state their error, which is found by leaving out each row in turn and asking for it. Beyond the
//! table there is only the formula, and that is said.
//!
//! How the table is made again is in `measure.sh` beside it.

mod formula;
mod measured;

use serde::{Deserialize, Serialize};

use crate::model::{Percentiles, Settings, nodes_max};

pub use measured::{By, Row, Table};

/// What is asked, and what is answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// By the formula alone.
    pub formula: Figures,
    /// By the formula and the table, where it reaches.
    pub table: Option<Figures>,
    /// How far the formula was off, over all rows.
    pub formula_error: Errors,
    /// How far the corrected formula was off, over all rows, each left out when it was asked for.
    pub table_error: Errors,
    /// How far the event model was off where a full simulation ran too.
    pub model_error: Errors,
    /// The rows that count most, and by how much.
    pub stands_on: Vec<StandsOn>,
    /// What to know before believing it.
    pub cautions: Vec<String>,
}

/// What is estimated.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// From a change until other nodes know it.
    pub known_ms: Percentiles,
    /// From a crash until other nodes suspect it: a crash at any moment between two renewals.
    pub suspect_ms: Percentiles,
    /// From a crash until other nodes give it up.
    pub expired_ms: Percentiles,
    /// Messages that each node sends in calm.
    pub messages_per_node_s: f64,
    /// Bytes that each node sends in calm, those that QUIC adds included.
    pub bytes_per_node_s: f64,
}

/// Nine of ten rows are within this many percent; see [`Figures`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Errors {
    /// Of [`Figures::known_ms`].
    pub known_percent: Percentiles,
    /// Of [`Figures::suspect_ms`].
    pub suspect_percent: Percentiles,
    /// Of [`Figures::expired_ms`].
    pub expired_percent: Percentiles,
    /// Of [`Figures::messages_per_node_s`].
    pub messages_percent: f64,
    /// Of [`Figures::bytes_per_node_s`].
    pub bytes_percent: f64,
    /// Over how many rows.
    pub rows: usize,
}

/// A row that an answer stands on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StandsOn {
    /// Its share of the correction, 0 to 1.
    pub weight: f64,
    /// Who measured it.
    pub by: By,
    /// In a mesh of how many.
    pub nodes: usize,
    /// The mean round trip.
    pub rtt_ms: f64,
    /// The share of packets lost.
    pub loss: f64,
}

/// Answers at once.
pub fn estimate(settings: &Settings, table: &Table) -> Estimate {
    let formula = formula::figures(settings);
    let outside = table.outside(settings);
    let nearest = if outside.is_empty() { table.nearest(settings, None) } else { Vec::new() };
    let corrected = table.correct(formula, &nearest);
    Estimate {
        formula,
        table: (!nearest.is_empty()).then_some(corrected),
        formula_error: table.formula_error(),
        table_error: table.error(),
        model_error: table.model_error(),
        stands_on: table.stands_on(&nearest),
        cautions: cautions(settings, table, &outside),
    }
}

fn cautions(settings: &Settings, table: &Table, outside: &[String]) -> Vec<String> {
    let mut cautions = Vec::new();
    if !outside.is_empty() {
        let what = outside.join("; ");
        cautions.push(format!(
            "nobody measured this ({what}): the formula alone answers, and its error here is unknown"
        ));
    }
    if settings.nodes > nodes_max() {
        cautions.push(format!(
            "repair has room for about {} nodes today: beyond, this is what the same protocol would do with more",
            nodes_max()
        ));
    }
    if settings.nodes > table.full_nodes_max() {
        cautions.push("no full simulation ran with so many nodes: the event model vouches for it".to_owned());
    }
    cautions
}
