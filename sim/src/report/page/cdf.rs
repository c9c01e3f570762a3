//! PURE: how much of something happened within how long: cumulative distributions.

use super::plot::{self, Frame, HEIGHT, POINTS_MAX, WIDTH};
use super::scale::{Axis, Unit};
use super::style::SERIES;
use super::svg::{Anchor, Drawing, dot, line, path, text};
use crate::report::{Report, words};

/// Room for the key above a plot.
const KEY: f64 = 26.0;
/// Of many seeds, this many have a line of their own.
const SEEDS_MAX: usize = 40;
/// Where the longest takes so many times as long as half, an axis of time is logarithmic.
const TAIL: f64 = 20.0;

/// How changes spread: all seeds pooled, each seed, the marks of 50, 90 and 99 %, and theory's bound.
/// None if the runs kept no samples of it.
pub fn propagation(report: &Report) -> Option<Drawing> {
    let pooled = sorted(report, "known");
    let (least, most) = (*pooled.first()?, *pooled.last()?);
    let bound = report.rounds.bound * report.rounds.interval_ms;
    // A bound far beyond all that happened would squeeze it into a corner.
    let shown = bound > 0.0 && bound < 2.5 * most;
    let longest = if shown { bound.max(most) } else { most };
    let time = time_axis("time since it was said", report.known_ms.p50, &[least, longest]);
    let frame = Frame::new(time, shares("of all nodes that learn it"), HEIGHT, KEY, 0.0);
    let mut body = frame.axes();
    if report.runs.len() > 1 {
        for run in report.runs.iter().take(SEEDS_MAX) {
            let mut samples = run.samples.of("known").to_vec();
            samples.sort_unstable_by(f64::total_cmp);
            body += &path("thin l0", steps(&frame, &samples), &format!("seed {}", run.seed));
        }
    }
    body += &path("thick l0", steps(&frame, &pooled), "all seeds");
    body += &marks(&frame, report);
    let seeds =
        if report.runs.len() > 1 { "all seeds together; thin: each seed" } else { "the share that knew" };
    let theory = format!("bound of ideal push gossip: {}", words::duration(bound));
    let mut entries = vec![("f0", seeds)];
    if shown {
        let x = frame.at(bound, 0.0).0;
        body += &line("middle dashed l1", (x, frame.top), (x, frame.bottom()), &theory);
        entries.push(("f1", theory.as_str()));
    }
    body += &plot::key(frame.left, 12.0, &entries);
    Some(Drawing { title: "How fast a change becomes known".to_owned(), width: WIDTH, height: HEIGHT, body })
}

/// How long everything else took; none if nothing else was measured.
pub fn others(report: &Report) -> Option<Drawing> {
    let measured = report.measures();
    let others: Vec<_> = measured.iter().filter(|(name, _)| *name != "known").collect();
    let curves: Vec<_> = others
        .iter()
        .map(|(name, _)| (words::measure(name), sorted(report, name)))
        .filter(|(_, samples)| !samples.is_empty())
        .collect();
    let ends: Vec<_> = curves.iter().flat_map(|(_, of)| [of[0], of[of.len() - 1]]).collect();
    if ends.is_empty() {
        return None;
    }
    let half = curves.iter().map(|(_, of)| of[of.len() / 2]).fold(f64::MAX, f64::min);
    let time = time_axis("time it took", half, &ends);
    let names: Vec<_> = curves.iter().map(|(name, _)| *name).collect();
    let rows = in_rows(&names);
    let above = KEY + 18.0 * (rows.len() - 1) as f64;
    let frame = Frame::new(time, shares("of all cases"), HEIGHT, above, 0.0);
    let mut body = frame.axes();
    for (at, (name, samples)) in curves.iter().enumerate() {
        body += &path(&format!("middle l{}", at % SERIES), steps(&frame, samples), name);
    }
    for (row, entries) in rows.iter().enumerate() {
        let entries: Vec<_> = entries.iter().map(|(class, name)| (class.as_str(), *name)).collect();
        body += &plot::key(frame.left, 12.0 + 18.0 * row as f64, &entries);
    }
    let title = "How long everything else takes".to_owned();
    Some(Drawing { title, width: WIDTH, height: HEIGHT, body })
}

/// Names with their classes, as many in a row as fit.
fn in_rows<'a>(names: &[&'a str]) -> Vec<Vec<(String, &'a str)>> {
    let mut rows: Vec<Vec<(String, &str)>> = vec![Vec::new()];
    let mut used = 0.0;
    for (at, name) in names.iter().enumerate() {
        let width = plot::wide(name) + 37.0;
        if used + width > WIDTH - 120.0 {
            rows.push(Vec::new());
            used = 0.0;
        }
        used += width;
        if let Some(row) = rows.last_mut() {
            row.push((format!("f{}", at % SERIES), name));
        }
    }
    rows
}

fn sorted(report: &Report, measure: &str) -> Vec<f64> {
    let mut samples: Vec<_> = report.runs.iter().flat_map(|run| run.samples.of(measure)).copied().collect();
    samples.sort_unstable_by(f64::total_cmp);
    samples
}

/// From zero, if half of the cases do not vanish at its begin.
fn time_axis(label: &str, half: f64, values: &[f64]) -> Axis {
    let most = values.iter().copied().fold(0.0, f64::max);
    if most > TAIL * half {
        Axis::logarithmic(label, Unit::Millis, values.iter().copied())
    } else {
        Axis::from_zero(label, Unit::Millis, values.iter().copied())
    }
}

fn shares(label: &str) -> Axis {
    Axis::between(label, Unit::Share, 0.0, 1.0)
}

/// A distribution as stairs; of many samples, evenly chosen ranks.
fn steps(frame: &Frame, sorted: &[f64]) -> Vec<(f64, f64)> {
    let count = sorted.len();
    let drawn = count.min(POINTS_MAX);
    let mut points = Vec::with_capacity(2 * drawn + 1);
    let mut share = 0.0;
    for step in 1..=drawn {
        let rank = step * count / drawn;
        let x = sorted[rank - 1];
        points.push(frame.at(x, share));
        share = rank as f64 / count as f64;
        points.push(frame.at(x, share));
    }
    points
}

/// Where half, nine of ten and 99 of 100 know.
fn marks(frame: &Frame, report: &Report) -> String {
    let known = &report.known_ms;
    let mut drawn = String::new();
    for (share, millis) in [(0.5, known.p50), (0.9, known.p90), (0.99, known.p99)] {
        let (x, y) = frame.at(millis, share);
        let words = format!("{} after {}", words::share(share), words::duration(millis));
        drawn += &line("event", (x, y), (x, frame.bottom()), "");
        drawn += &dot("f0", (x, y), 4.5, &words);
        // Beside the curve, where it is not; at the right edge, below it.
        let fits = x + 9.0 + plot::wide(&words) * 1.1 < WIDTH;
        let (anchor, beside) = if fits { (Anchor::Start, 9.0) } else { (Anchor::End, -9.0) };
        drawn += &text("strong", anchor, (x + beside, y + 15.0), &words);
    }
    drawn
}
