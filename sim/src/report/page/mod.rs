//! PURE: a report as one page of HTML that needs nothing else: no script, no font, no network. It is
//! right by day and by night and on paper; all text from files is escaped.

mod bytes;
mod cdf;
mod heat;
mod members;
pub mod plot;
mod read;
pub mod scale;
mod spread;
pub mod style;
pub mod svg;
mod sweep;
mod tables;

use std::collections::BTreeMap;

use super::{Pictures, Report, words};
use svg::{Drawing, escape};

pub use sweep::{sweep_page, sweep_plots};

/// One figure of the page: the name of its file, what to read from it, and how it looks.
pub(super) struct Figure {
    name: &'static str,
    reading: String,
    drawing: Drawing,
}

/// The page. Propagation needs the runs' samples ([`super::Samples`]); members, bytes and who
/// knows what need the pictures of one run; what is missing is left out.
pub fn page(report: &Report) -> String {
    let mut body = header(report);
    body += &tables::failures(report);
    body += &tables::tiles(report);
    body += &tables::thresholds(report);
    for figure in figures(report) {
        body += &figure.html();
    }
    body += "<h2>The figures</h2>\n";
    body += &tables::measures(report);
    body += &tables::traffic(report);
    body += &tables::counts(report);
    body += &footer(report);
    document(&report.scenario, &body)
}

/// The page's plots as SVG files of their own, by file name.
pub fn plots(report: &Report) -> BTreeMap<String, String> {
    files(figures(report))
}

fn files(figures: Vec<Figure>) -> BTreeMap<String, String> {
    let file = |figure: Figure| (format!("{}.svg", figure.name), figure.drawing.standalone());
    figures.into_iter().map(file).collect()
}

fn figures(report: &Report) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut add = |name, reading: String, drawing: Option<Drawing>| {
        figures.extend(drawing.map(|drawing| Figure { name, reading, drawing }));
    };
    add("propagation", read::propagation(report), cdf::propagation(report));
    add("spread", read::spread(report), spread::spread(report));
    add("durations", read::others(report), cdf::others(report));
    if let Some((seed, pictures)) = pictured(report) {
        add("members", read::members(seed, pictures), members::members(pictures));
        add("bytes", read::bytes(report, seed), bytes::bytes(pictures));
        add("knowledge", read::heat(seed, pictures), heat::heat(pictures));
    }
    figures
}

/// The first run that has pictures, by its seed; one that failed a check before all others.
fn pictured(report: &Report) -> Option<(u64, &Pictures)> {
    let pictured = || report.runs.iter().filter(|run| run.pictures.is_some());
    let run = pictured().find(|run| run.violation.is_some()).or_else(|| pictured().next())?;
    Some((run.seed, run.pictures.as_ref()?))
}

impl Figure {
    fn html(&self) -> String {
        let (title, reading) = (escape(&self.drawing.title), escape(&self.reading));
        let svg = self.drawing.inline();
        format!("<figure>\n<h2>{title}</h2>\n<figcaption>{reading}</figcaption>\n{svg}</figure>\n")
    }
}

fn header(report: &Report) -> String {
    let (class, verdict) = if report.passed() { ("good", "passed") } else { ("bad", "failed") };
    let seeds = match report.runs.as_slice() {
        [] | [_] => format!("seed {}", report.seed),
        several => format!("{} seeds from {}", several.len(), report.seed),
    };
    let question = if report.question.is_empty() {
        String::new()
    } else {
        format!("<p class=\"question\">{}</p>\n", escape(&report.question))
    };
    format!(
        "<header>\n<h1>{}</h1>\n{question}<p class=\"facts\"><span class=\"verdict {class}\">{verdict}</span>\
         {}, {seeds}, {} s of virtual time{}</p>\n</header>\n",
        escape(&report.scenario),
        words::plural(report.nodes, "node"),
        words::number(report.virtual_s),
        if report.runs.len() > 1 { " each" } else { "" },
    )
}

fn footer(report: &Report) -> String {
    format!(
        "<footer>Measured by starling-sim, which runs the nodes' own gossip in virtual time. The same program, \
         scenario and seed give the same trace: <code>{}</code></footer>\n",
        escape(&report.trace_hash)
    )
}

fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{} - starling-sim</title>\n\
         <style>{}{}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(title),
        style::PAGE,
        style::drawing(),
    )
}
