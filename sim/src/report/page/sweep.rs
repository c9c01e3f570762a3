//! PURE: one scenario over several values of a parameter: what grows with it, and how.

use std::collections::BTreeMap;

use super::plot::{Line, lines};
use super::scale::{Axis, Unit};
use super::svg::{Drawing, escape};
use super::{Figure, document, files};
use crate::report::words::{duration, number, share, size};
use crate::report::{Percentiles, Report};

/// An axis is logarithmic if its values span more decades than this.
const DECADES: f64 = 1.0;

/// What a line of a sweep shows of each report, if it was measured.
type Value = fn(&Report) -> Option<f64>;

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

fn figures(parameter: &str, reports: &[(String, Report)]) -> Vec<Figure> {
    let known: [(&str, Value); 5] = [
        ("50 % know", |of| some(&of.known_ms, of.known_ms.p50)),
        ("90 % know", |of| some(&of.known_ms, of.known_ms.p90)),
        ("99 % know", |of| some(&of.known_ms, of.known_ms.p99)),
        ("all know", |of| some(&of.known_ms, of.known_ms.p100)),
        ("bound of push gossip", |of| {
            Some(of.rounds.bound * of.rounds.interval_ms).filter(|bound| *bound > 0.0)
        }),
    ];
    let crashes: [(&str, Value); 4] = [
        ("suspected", |of| took(of, "suspect")),
        ("no longer called", |of| took(of, "unused")),
        ("forgotten", |of| took(of, "expired")),
        ("new node known", |of| took(of, "joined")),
    ];
    let bytes: [(&str, Value); 2] = [
        ("at rest", |of| Some(of.bytes_per_node_s)),
        ("in change", |of| figure(of, "bytes_per_node_s_change")),
    ];
    let cost: [(&str, Value); 1] = [("time it took", |of| Some(of.wall_s))];
    let plot = |name, title: String, (label, unit): (&str, Unit), values: &[(&str, Value)], reading: &str| {
        let drawing = plotted(parameter, reports, &title, (label, unit), values)?;
        Some(Figure { name, reading: reading.to_owned(), drawing })
    };
    let over = |what: &str| format!("{what} over {parameter}");
    [
        plot(
            "sweep-known",
            over("How fast a change becomes known"),
            ("time since it was said", Unit::Millis),
            &known,
            "A line that rises no faster than the dashed one scales as well as theory allows.",
        ),
        plot(
            "sweep-detection",
            over("Crashes and new nodes"),
            ("time until 99 % of cases", Unit::Millis),
            &crashes,
            "How long callers suffer from a crash, until it is forgotten, and until a newcomer is of use.",
        ),
        plot(
            "sweep-bytes",
            over("What each node sends"),
            ("each node", Unit::ByteRate),
            &bytes,
            "A flat line is a cost that does not grow; what a node sends all others must also receive.",
        ),
        plot(
            "sweep-cost",
            over("What the simulation takes"),
            ("wall time of a run", Unit::Seconds),
            &cost,
            "Not the product's speed: how long to wait for such a simulation.",
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn some(of: &Percentiles, value: f64) -> Option<f64> {
    (of.count > 0).then_some(value)
}

fn took(report: &Report, name: &str) -> Option<f64> {
    report.took_ms.get(name).and_then(|of| some(of, of.p99))
}

fn figure(report: &Report, name: &str) -> Option<f64> {
    report.figures().get(name).copied()
}

fn plotted(
    parameter: &str,
    reports: &[(String, Report)],
    title: &str,
    (label, unit): (&str, Unit),
    values: &[(&str, Value)],
) -> Option<Drawing> {
    let xs = places(reports);
    let measured: Vec<_> = values
        .iter()
        .map(|(name, value)| {
            let points = xs.iter().zip(reports).filter_map(|(x, (_, of))| Some((*x, value(of)?)));
            let points: Vec<_> = points.filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
            Line { name: (*name).to_owned(), points, dashed: name.starts_with("bound") }
        })
        .filter(|line| !line.points.is_empty())
        .collect();
    let ys: Vec<_> = measured.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y)).collect();
    if ys.is_empty() {
        return None;
    }
    Some(lines(title, axis(parameter, reports, &xs), Axis::fitting(label, unit, DECADES, &ys), &measured))
}

/// Where the values lie: as numbers if all are, else one beside the other.
fn places(reports: &[(String, Report)]) -> Vec<f64> {
    let numbers: Option<Vec<f64>> =
        reports.iter().map(|(value, _)| value.parse().ok().filter(|value: &f64| value.is_finite())).collect();
    numbers.unwrap_or_else(|| (1..=reports.len()).map(|at| at as f64).collect())
}

fn axis(parameter: &str, reports: &[(String, Report)], xs: &[f64]) -> Axis {
    let unit = match parameter {
        name if name.ends_with("_ms") => Unit::Millis,
        name if name.ends_with("_s") => Unit::Seconds,
        name if name.contains("loss") || name.ends_with("_share") => Unit::Share,
        _ => Unit::Count,
    };
    if reports.iter().any(|(value, _)| value.parse::<f64>().is_err()) {
        let named: Vec<_> =
            reports.iter().enumerate().map(|(at, (value, _))| format!("{} {value}", at + 1)).collect();
        let label = format!("{parameter}: {}", named.join(", "));
        return Axis::between(&label, Unit::Count, 1.0, reports.len() as f64);
    }
    Axis::fitting(parameter, unit, DECADES, xs)
}

fn table(parameter: &str, reports: &[(String, Report)]) -> String {
    let head = [
        "50 % know",
        "99 % know",
        "all know",
        "rounds / bound",
        "crash unused, 99 %",
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
    let time = |millis: Option<f64>| millis.map_or_else(|| "-".to_owned(), duration);
    let known = |value: f64| time(some(&report.known_ms, value));
    let rate =
        |bytes: Option<f64>| bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{}/s", size(bytes)));
    let cells = [
        known(report.known_ms.p50),
        known(report.known_ms.p99),
        known(report.known_ms.p100),
        format!("{} / {}", number(report.rounds.p100), number(report.rounds.bound)),
        time(took(report, "unused")),
        rate(Some(report.bytes_per_node_s)),
        rate(figure(report, "bytes_per_node_s_change")),
        share(report.stale_share),
        number(report.evictions_false as f64),
    ];
    let cells: String = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
    let failed = if report.passed() { "" } else { " <span class=\"bad\">✗ failed</span>" };
    format!("<tr><td>{}{failed}</td>{cells}</tr>\n", escape(value))
}
