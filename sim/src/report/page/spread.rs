//! PURE: how far the seeds lie apart: a row for each percentile, a dot for each seed.

use super::plot::{Frame, LEFT, WIDTH};
use super::scale::{Axis, Unit};
use super::svg::{Anchor, Drawing, dot, line, text};
use crate::report::{Percentiles, Report, Run, words};

const ROW: f64 = 36.0;

/// None with fewer than two seeds.
pub fn spread(report: &Report) -> Option<Drawing> {
    type Row = (&'static str, fn(&Percentiles) -> f64);
    const ROWS: [Row; 5] = [
        ("50 %", |of| of.p50),
        ("90 %", |of| of.p90),
        ("99 %", |of| of.p99),
        ("99.9 %", |of| of.p999),
        ("100 %", |of| of.p100),
    ];
    let runs: Vec<&Run> = report.runs.iter().filter(|run| run.known_ms.count > 0).collect();
    if runs.len() < 2 {
        return None;
    }
    let values: Vec<_> = runs.iter().flat_map(|run| ROWS.map(|(_, value)| value(&run.known_ms))).collect();
    let time = Axis::fitting("time until this share of the nodes knew a change", Unit::Millis, 2.2, &values);
    let height = ROWS.len() as f64 * ROW;
    let y = Axis::between("", Unit::Count, 0.0, ROWS.len() as f64);
    let frame = Frame { left: LEFT, top: 8.0, width: WIDTH - LEFT - 16.0, height, x: time, y };
    let mut body = String::new();
    for tick in frame.x.ticks() {
        let x = frame.at(tick, 0.0).0;
        body += &line("grid", (x, frame.top), (x, frame.bottom()), "");
        body += &text("tick", Anchor::Middle, (x, frame.bottom() + 19.0), &frame.x.written(tick));
    }
    for (row, (name, value)) in ROWS.iter().enumerate() {
        let middle = frame.top + (row as f64 + 0.5) * ROW;
        body += &text("label", Anchor::End, (LEFT - 10.0, middle + 4.0), name);
        let mut of: Vec<_> = runs.iter().map(|run| value(&run.known_ms)).collect();
        for (run, millis) in runs.iter().zip(&of) {
            let tooltip = format!("seed {}: {name} after {}", run.seed, words::duration(*millis));
            body += &dot("seed f0", (frame.at(*millis, 0.0).0, middle), 6.0, &tooltip);
        }
        of.sort_unstable_by(f64::total_cmp);
        let median = of[of.len() / 2];
        let x = frame.at(median, 0.0).0;
        let tooltip = format!("median of the seeds: {}", words::duration(median));
        body += &line("thick ink", (x, middle - 11.0), (x, middle + 11.0), &tooltip);
    }
    let at = (LEFT + frame.width / 2.0, frame.bottom() + 38.0);
    body += &text("label", Anchor::Middle, at, &frame.x.label);
    let title = "How far the seeds lie apart".to_owned();
    Some(Drawing { title, width: WIDTH, height: height + 54.0, body })
}
