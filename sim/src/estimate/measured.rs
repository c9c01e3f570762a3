//! What was measured, and what it says about places nearby.
//!
//! Between rows it is not the figures that are interpolated but how far the formula is off: that
//! changes slowly. Near means: a similar number of nodes, a similar share of the time between two tellings that a
//! message takes, a similar loss. Lease and renewal need no rows; the formula is exact about them.

use std::cmp::Ordering;
use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use starling_gossip::handle::News;

use super::{Errors, Figures, StandsOn, formula};
use crate::model::{Path, Percentiles, Settings};

/// The committed rows.
const MEASURED: &str = include_str!("measured.json");

/// Rows that one answer stands on. Fewer follow chance, more blur what differs.
const ROWS_ASKED: usize = 6;

/// Rows nearer than this (a hundredth of a doubling) count alike.
const NEAR: f64 = 0.01;

/// Doublings that the root of the loss stands for: from none to one packet in a hundred is as far
/// as doubling the mesh.
const DOUBLINGS_PER_ROOT_OF_LOSS: f64 = 10.0;

/// Of so many errors the largest is left out: nine of ten rows are within what is stated.
const ERRORS_WITHIN: f64 = 0.9;

/// Who measured a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The node's own gossip in virtual time.
    Full,
    /// The event model.
    Model,
}

/// A mesh, and what was measured in it: the mean of each percentile over several runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Who measured it.
    pub by: By,
    /// How many nodes.
    pub nodes: usize,
    /// The mean round trip.
    pub rtt_ms: f64,
    /// By how much messages differ.
    pub jitter_ms: f64,
    /// The share of packets lost.
    pub loss: f64,
    /// The lease.
    pub lease_ms: f64,
    /// Between renewals.
    pub renew_ms: f64,
    /// Seeds that it is the mean of.
    pub runs: usize,
    /// The measures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// All rows, with what the formula says of each.
pub struct Table {
    entries: Vec<Entry>,
    /// Model rows where a full simulation ran too, with its figures.
    doubles: Vec<(Figures, Figures)>,
}

struct Entry {
    row: Row,
    place: Place,
    formula: Figures,
}

/// Where a mesh stands among others, in doublings.
#[derive(Clone, Copy, PartialEq)]
struct Place([f64; 3]);

/// An entry's number, and its share of an answer.
type Weighted = (usize, f64);

impl Row {
    /// What `by` measured in the mesh of `settings`, the mean of `runs`.
    pub fn new(by: By, settings: &Settings, runs: usize, figures: Figures) -> Self {
        let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
        Self {
            by,
            nodes: settings.nodes,
            rtt_ms: millis(settings.path.rtt),
            jitter_ms: millis(settings.path.jitter),
            loss: settings.path.loss,
            lease_ms: millis(settings.lease),
            renew_ms: millis(settings.renew),
            runs,
            figures,
        }
    }

    fn settings(&self) -> Settings {
        let millis = |millis: f64| Duration::from_secs_f64(millis / 1000.0);
        Settings {
            nodes: self.nodes,
            path: Path { rtt: millis(self.rtt_ms), jitter: millis(self.jitter_ms), loss: self.loss },
            lease: millis(self.lease_ms),
            renew: millis(self.renew_ms),
        }
    }
}

impl Place {
    fn of(settings: &Settings) -> Self {
        let message = settings.path.rtt.as_secs_f64() / News::default().period.as_secs_f64();
        let loss = settings.path.loss.sqrt() * DOUBLINGS_PER_ROOT_OF_LOSS;
        Self([(settings.nodes as f64).log2(), message.max(1e-6).log2(), loss])
    }

    fn distance(self, other: Self) -> f64 {
        self.0.iter().zip(other.0).map(|(one, other)| (one - other).powi(2)).sum::<f64>().sqrt()
    }
}

impl Table {
    /// The committed rows.
    ///
    /// # Errors
    ///
    /// If they cannot be read, which a test rules out.
    pub fn committed() -> serde_json::Result<Self> {
        serde_json::from_str(MEASURED).map(Self::new)
    }

    /// A table of these rows. A full simulation stands before a model of the same mesh.
    pub fn new(rows: Vec<Row>) -> Self {
        let is_same = |one: &Row, other: &Row| one.settings() == other.settings();
        let full: Vec<Row> = rows.iter().filter(|row| row.by == By::Full).cloned().collect();
        let (mut entries, mut doubles) = (Vec::new(), Vec::new());
        for row in rows {
            let double = full.iter().find(|it| row.by == By::Model && is_same(it, &row));
            if let Some(full) = double {
                doubles.push((row.figures, full.figures));
            } else {
                let settings = row.settings();
                let (place, formula) = (Place::of(&settings), formula::figures(&settings));
                entries.push(Entry { row, place, formula });
            }
        }
        Self { entries, doubles }
    }

    /// In which respects `settings` are beyond all rows.
    pub(super) fn outside(&self, settings: &Settings) -> Vec<String> {
        let names = ["the number of nodes", "the round trip", "the loss"];
        let asked = Place::of(settings).0;
        let is_outside = |axis: usize| {
            let along = || self.entries.iter().map(|entry| entry.place.0[axis]);
            let (least, most) = (along().fold(f64::MAX, f64::min), along().fold(f64::MIN, f64::max));
            let beyond = if asked[axis] < least - NEAR { "below" } else { "above" };
            (asked[axis] < least - NEAR || asked[axis] > most + NEAR)
                .then(|| format!("{} is {beyond} all that was measured", names[axis]))
        };
        (0..names.len()).filter_map(is_outside).collect()
    }

    /// The rows nearest to `settings`, without one, and their weights, which add up to one.
    pub(super) fn nearest(&self, settings: &Settings, without: Option<usize>) -> Vec<Weighted> {
        let place = Place::of(settings);
        let all = self.entries.iter().enumerate().filter(|(number, _)| Some(*number) != without);
        let mut near: Vec<_> = all.map(|(number, entry)| (number, entry.place.distance(place))).collect();
        near.sort_by(|one, other| one.1.partial_cmp(&other.1).unwrap_or(Ordering::Equal));
        near.truncate(ROWS_ASKED);
        let weight = |distance: f64| (distance.max(NEAR)).powi(-2);
        let sum: f64 = near.iter().map(|(_, distance)| weight(*distance)).sum();
        near.into_iter().map(|(number, distance)| (number, weight(distance) / sum)).collect()
    }

    /// What the formula says, corrected by how far it was off at `nearest`: by as many times where it
    /// speaks of news and cost, by as many milliseconds where something was waited for first.
    pub(super) fn correct(&self, formula: Figures, nearest: &[Weighted]) -> Figures {
        let mut values = formula.values();
        for (at, value) in values.iter_mut().enumerate() {
            let of = |(number, weight): &Weighted| {
                let Entry { row, formula, .. } = &self.entries[*number];
                let (measured, said) = (row.figures.values()[at], formula.values()[at]);
                weight * if Figures::WAITS.contains(&at) { measured - said } else { measured / said }
            };
            let correction: f64 = nearest.iter().map(of).sum();
            *value = if Figures::WAITS.contains(&at) { *value + correction } else { *value * correction };
        }
        Figures::from_values(values)
    }

    /// How far the formula alone was off.
    pub(super) fn formula_error(&self) -> Errors {
        Errors::of(self.entries.iter().map(|entry| (entry.formula, entry.row.figures)))
    }

    /// How far the corrected formula was off, with each row left out when asked for.
    pub(super) fn error(&self) -> Errors {
        let ask = |(number, entry): (usize, &Entry)| {
            let nearest = self.nearest(&entry.row.settings(), Some(number));
            (self.correct(entry.formula, &nearest), entry.row.figures)
        };
        Errors::of(self.entries.iter().enumerate().map(ask))
    }

    /// How far the event model was off where both ran.
    pub(super) fn model_error(&self) -> Errors {
        Errors::of(self.doubles.iter().copied())
    }

    /// The largest mesh that was fully simulated.
    pub(super) fn full_nodes_max(&self) -> usize {
        let full = self.entries.iter().filter(|entry| entry.row.by == By::Full);
        full.map(|entry| entry.row.nodes).max().unwrap_or(0)
    }

    pub(super) fn stands_on(&self, nearest: &[Weighted]) -> Vec<StandsOn> {
        let name = |(number, weight): &Weighted| {
            let Row { by, nodes, rtt_ms, loss, .. } = self.entries[*number].row;
            StandsOn { weight: *weight, by, nodes, rtt_ms, loss }
        };
        nearest.iter().map(name).collect()
    }
}

impl Figures {
    /// How many numbers they are.
    const COUNT: usize = 14;

    /// Those that begin with a wait: for watchers, for the end of a lease.
    const WAITS: Range<usize> = 4..12;

    fn values(&self) -> [f64; Self::COUNT] {
        let [a, b, c, d] = self.known_ms.values();
        let [e, f, g, h] = self.suspect_ms.values();
        let [i, j, k, l] = self.expired_ms.values();
        [a, b, c, d, e, f, g, h, i, j, k, l, self.messages_per_node_s, self.bytes_per_node_s]
    }

    fn from_values(values: [f64; Self::COUNT]) -> Self {
        let percentiles = |from: usize| Percentiles {
            p50: values[from],
            p90: values[from + 1],
            p99: values[from + 2],
            p100: values[from + 3],
        };
        Self {
            known_ms: percentiles(0),
            suspect_ms: percentiles(4),
            expired_ms: percentiles(8),
            messages_per_node_s: values[12],
            bytes_per_node_s: values[13],
        }
    }
}

impl Errors {
    /// Of what was said, and what was measured.
    fn of(all: impl Iterator<Item = (Figures, Figures)>) -> Self {
        let mut off: [Vec<f64>; Figures::COUNT] = Default::default();
        let mut rows = 0;
        for (said, measured) in all {
            rows += 1;
            for (off, (said, measured)) in off.iter_mut().zip(said.values().iter().zip(measured.values())) {
                off.push((said / measured - 1.0).abs() * 100.0);
            }
        }
        let within = off.map(|mut off| {
            off.sort_by(|one, other| one.partial_cmp(other).unwrap_or(Ordering::Equal));
            let rank = (off.len() as f64 * ERRORS_WITHIN).ceil() as usize;
            off.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
        });
        let within = Figures::from_values(within);
        Self {
            known_percent: within.known_ms,
            suspect_percent: within.suspect_ms,
            expired_percent: within.expired_ms,
            messages_percent: within.messages_per_node_s,
            bytes_percent: within.bytes_per_node_s,
            rows,
        }
    }
}
