//! PURE: one scenario over several values of a parameter: what grows with it, and how.

use std::collections::BTreeMap;

use super::plot::{self, Line};
use super::scale::{Axis, Unit};
use super::svg::escape;
use super::{Figure, document, files};
use crate::report::Report;
use crate::report::words::{duration, number, share, size};

/// An axis is logarithmic if its values span more decades than this.
const DECADES: f64 = 1.0;

/// A page about `parameter`, each of whose values has its report. Values that are all numbers lie on
/// an axis of numbers, others beside one another.
pub fn sweep_page(parameter: &str, reports: &[(String, Report)]) -> String {
    let first = reports.first().map(|(_, report)| report);
    let scenario = first.map_or("", |report| report.scenario.as_str());
    let question = first.map_or("", |report| report.question.as_str());
    let failed: Vec<_> =
        reports.iter().filter(|(_, report)| !report.passed()).map(|(value, _)| value.as_str()).collect();
    let (class, verdict) = if failed.is_empty() { ("good", "passed") } else { ("bad", "failed") };
    let with = if failed.is_empty() { String::new() } else { format!(" with {}", failed.join(", ")) };
    let title = format!("{scenario} over {parameter}");
    let mut body = format!(
        "<header>\n<h1>{}</h1>\n<p class=\"question\">{}</p>\n<p class=\"facts\">\
         <span class=\"verdict {class}\">{verdict}{}</span>{}</p>\n</header>\n",
        escape(&title),
        escape(question),
        escape(&with),
        escape(&values(parameter, reports)),
    );
    body += "<h2>The figures</h2>\n";
    body += &table(parameter, reports);
    for figure in figures(parameter, reports) {
        body += &figure.html();
    }
    document(&title, &body)
}

/// The page's plots as SVG files of their own, by file name.
pub fn sweep_plots(parameter: &str, reports: &[(String, Report)]) -> BTreeMap<String, String> {
    files(figures(parameter, reports))
}

fn values(parameter: &str, reports: &[(String, Report)]) -> String {
    let seeds = reports.iter().map(|(_, report)| report.runs.len()).max().unwrap_or_default();
    let values: Vec<_> = reports.iter().map(|(value, _)| value.as_str()).collect();
    let each = if seeds > 1 { format!("; {seeds} seeds each") } else { String::new() };
    format!("{parameter} = {}{each}", values.join(", "))
}

/// One plot of a sweep: its file, title, axis of y, lines (name and figure), and what to read.
struct Plan {
    name: &'static str,
    title: &'static str,
    axis: (&'static str, Unit),
    lines: &'static [(&'static str, &'static str)],
    reading: &'static str,
}

/// Stands for theory's bound, which is no measured figure.
const BOUND: &str = "bound";

const PLANS: [Plan; 5] = [
    Plan {
        name: "sweep-known",
        title: "How fast a change becomes known",
        axis: ("time since it was said", Unit::Millis),
        lines: &[
            ("50 % know", "known_ms_p50"),
            ("90 % know", "known_ms_p90"),
            ("99 % know", "known_ms_p99"),
            ("all know", "known_ms_p100"),
            ("bound of push gossip", BOUND),
        ],
        reading: "A line that rises no faster than the dashed one scales as well as theory allows; the shades are \
                  how far the seeds lie apart.",
    },
    Plan {
        name: "sweep-detection",
        title: "Crashes and new nodes",
        axis: ("time until 99 % of cases", Unit::Millis),
        lines: &[
            ("crash suspected", "suspect_ms_p99"),
            ("others preferred", "unused_ms_p99"),
            ("forgotten", "expired_ms_p99"),
            ("new node known", "joined_ms_p99"),
        ],
        reading: "How long until routes prefer others to a crashed node, until it is forgotten, and until a newcomer is of use.",
    },
    Plan {
        name: "sweep-bytes",
        title: "What each node sends",
        axis: ("each node", Unit::ByteRate),
        lines: &[("at rest", "bytes_per_node_s"), ("in change", "bytes_per_node_s_change")],
        reading: "A flat line is a cost that does not grow; what a node sends, others must receive.",
    },
    Plan {
        name: "sweep-wrong",
        title: "What is believed wrongly",
        axis: ("in a run, on average", Unit::Count),
        lines: &[("false suspicions", "suspicions_false"), ("false evictions", "evictions_false")],
        reading: "A suspicion costs little: callers prefer others for a while. An eviction of a live node is a fault.",
    },
    Plan {
        name: "sweep-cost",
        title: "What the simulation takes",
        axis: ("wall time of a run", Unit::Seconds),
        lines: &[("time it took", "wall_s")],
        reading: "Not the product's speed: how long to wait for such a simulation.",
    },
];

fn figures(parameter: &str, reports: &[(String, Report)]) -> Vec<Figure> {
    PLANS.iter().filter_map(|plan| plan.drawn(parameter, reports)).collect()
}

impl Plan {
    /// None if nothing of it was measured.
    fn drawn(&self, parameter: &str, reports: &[(String, Report)]) -> Option<Figure> {
        let xs = places(reports);
        let lines: Vec<_> = self
            .lines
            .iter()
            .map(|(name, figure)| series(name, figure, &xs, reports))
            .filter(|line| !line.points.is_empty())
            .collect();
        let points = lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y));
        let ends = lines.iter().flat_map(|line| line.ranges.iter().flat_map(|(_, low, high)| [*low, *high]));
        let ys: Vec<_> = points.chain(ends).collect();
        if ys.iter().all(|y| *y == 0.0) {
            return None;
        }
        let (label, unit) = self.axis;
        let title = format!("{}, over {parameter}", self.title);
        let y = Axis::fitting(label, unit, DECADES, &ys);
        let drawing = plot::lines(&title, axis(parameter, reports, &xs), y, &lines);
        Some(Figure { name: self.name, reading: self.reading.to_owned(), drawing })
    }
}

/// One figure over the parameter, with the spread of its seeds.
fn series(name: &str, figure: &str, xs: &[f64], reports: &[(String, Report)]) -> Line {
    let mut line =
        Line { name: name.to_owned(), points: Vec::new(), ranges: Vec::new(), dashed: figure == BOUND };
    for (x, (_, report)) in xs.iter().zip(reports) {
        if figure == BOUND {
            let bound = report.rounds.bound * report.rounds.interval_ms;
            line.points.extend((bound > 0.0).then_some((*x, bound)));
            continue;
        }
        let seeds: Vec<_> = report.runs.iter().filter_map(|run| run.figures().get(figure).copied()).collect();
        // A report sums counts up; over a parameter, those of a run are what compares.
        let value = match figure.ends_with("_false") {
            true => Some(seeds.iter().sum::<f64>() / seeds.len().max(1) as f64),
            false => report.figures().get(figure).copied(),
        };
        line.points.extend(value.map(|value| (*x, value)));
        let (least, most) = seeds.iter().fold((f64::MAX, 0.0f64), |(l, m), of| (l.min(*of), m.max(*of)));
        line.ranges.extend((seeds.len() > 1).then_some((*x, least, most)));
    }
    line
}

/// Where the values lie: as numbers if all are, else one beside the other.
fn places(reports: &[(String, Report)]) -> Vec<f64> {
    let number = |value: &str| value.parse().ok().filter(|number: &f64| number.is_finite());
    let numbers: Option<Vec<f64>> = reports.iter().map(|(value, _)| number(value)).collect();
    numbers.unwrap_or_else(|| (1..=reports.len()).map(|at| at as f64).collect())
}

fn axis(parameter: &str, reports: &[(String, Report)], xs: &[f64]) -> Axis {
    if reports.iter().any(|(value, _)| value.parse::<f64>().is_err()) {
        let names: Vec<_> = reports.iter().map(|(value, _)| value.as_str()).collect();
        return Axis::named(parameter, &names);
    }
    let unit = match parameter {
        name if name.ends_with("_ms") => Unit::Millis,
        name if name.ends_with("_s") => Unit::Seconds,
        name if name.contains("loss") || name.ends_with("_share") => Unit::Share,
        _ => Unit::Count,
    };
    Axis::fitting(parameter, unit, DECADES, xs)
}

fn table(parameter: &str, reports: &[(String, Report)]) -> String {
    let head = [
        "50 % know",
        "99 % know",
        "all know",
        "rounds / bound",
        "others preferred, 99 %",
        "sent at rest",
        "in change",
        "stale",
        "false evictions",
    ];
    let head: String = head.iter().map(|title| format!("<th>{title}</th>")).collect();
    let rows: String = reports.iter().map(|(value, report)| row(value, report)).collect();
    let parameter = escape(parameter);
    format!("<div class=\"scroll\"><table>\n<tr><th>{parameter}</th>{head}</tr>\n{rows}</table></div>\n")
}

fn row(value: &str, report: &Report) -> String {
    let figures = report.figures();
    let shown = |name: &str, words: &dyn Fn(f64) -> String| {
        figures.get(name).map_or_else(|| "-".to_owned(), |figure| words(*figure))
    };
    let rate = |bytes: f64| format!("{}/s", size(bytes));
    let cells = [
        shown("known_ms_p50", &duration),
        shown("known_ms_p99", &duration),
        shown("known_ms_p100", &duration),
        format!("{} / {}", number(report.rounds.p100), number(report.rounds.bound)),
        shown("unused_ms_p99", &duration),
        shown("bytes_per_node_s", &rate),
        shown("bytes_per_node_s_change", &rate),
        shown("stale_share", &share),
        shown("evictions_false", &number),
    ];
    let cells: String = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
    let failed = if report.passed() { "" } else { "&nbsp;<span class=\"bad\">✗</span>" };
    format!("<tr><td>{}{failed}</td>{cells}</tr>\n", escape(value))
}
