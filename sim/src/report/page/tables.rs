//! PURE: what the page says in numbers: failures, main figures, thresholds, tables.

use crate::report::figures::total;
use crate::report::words::{self, duration, measure, number, share, size};
use crate::report::{Failed, Rates, Report, Run, Threshold};

use super::svg::escape;

/// With many seeds, one cause fails them all.
const FAILURES_SHOWN: usize = 5;

/// Failed checks, each with what happened before and how to see it again.
pub(super) fn failures(report: &Report) -> String {
    let failures = || report.runs.iter().filter_map(|run| Some((run, run.violation.as_ref()?)));
    let mut html: String =
        failures().take(FAILURES_SHOWN).map(|(run, failed)| failure(run, failed)).collect();
    if let Some(more) = failures().count().checked_sub(FAILURES_SHOWN).filter(|more| *more > 0) {
        html += &format!("<p class=\"note\">And {} failed a check.</p>\n", words::plural(more, "more seed"));
    }
    html
}

fn failure(run: &Run, failed: &Failed) -> String {
    format!(
        "<section class=\"failure\">\n<h2 class=\"bad\">A check failed: {}</h2>\n\
         <p class=\"note\">At {} s with seed {}, about {}.</p>\n<pre>{}</pre>\n\
         <p class=\"note\">To see it again:</p>\n<pre>{}</pre>\n</section>\n",
        escape(&failed.what),
        number(failed.at_s),
        run.seed,
        escape(&failed.nodes.join(", ")),
        escape(&failed.history.join("\n")),
        escape(&failed.replay),
    )
}

/// The main figures, large.
pub(super) fn tiles(report: &Report) -> String {
    let known = &report.known_ms;
    let mut tiles = Vec::new();
    if known.count > 0 {
        tiles.push((duration(known.p50), "until half of the nodes know a change"));
        tiles.push((duration(known.p99), "until 99 % know it"));
    }
    for (name, words) in [
        ("unused", "until 99 % no longer call a crashed node"),
        ("joined", "until 99 % know a new node"),
        ("expired", "until 99 % forget a crashed node"),
        ("suspect", "until 99 % suspect a crashed node"),
    ] {
        if let Some(of) = report.took_ms.get(name).filter(|of| of.count > 0) {
            tiles.push((duration(of.p99), words));
        }
    }
    tiles.truncate(4);
    tiles.push((format!("{}/s", size(report.bytes_per_node_s)), "sent by each node at rest"));
    tiles.push((number(report.evictions_false as f64), "live nodes given up wrongly"));
    let tile = |(value, words): (String, &str)| {
        format!("<div class=\"tile\"><b>{value}</b><span>{words}</span></div>\n")
    };
    format!("<div class=\"tiles\">\n{}</div>\n", tiles.into_iter().map(tile).collect::<String>())
}

/// What the scenario demands; a bar shows how much of each limit is used.
pub(super) fn thresholds(report: &Report) -> String {
    if report.thresholds.is_empty() {
        return String::new();
    }
    let missed = report.thresholds.iter().filter(|threshold| !threshold.passed).count();
    let reading = match missed {
        0 => "All hold. A full bar is a limit just reached.".to_owned(),
        missed => format!("{missed} of {} do not hold.", report.thresholds.len()),
    };
    let rows: String = report.thresholds.iter().map(threshold).collect();
    format!(
        "<h2>What the scenario expects</h2>\n<p class=\"note\">{reading}</p>\n<div class=\"scroll\"><table>\n\
         <tr><th>figure</th><th>measured</th><th>limit</th><th>of the limit</th><th></th></tr>\n{rows}</table></div>\n"
    )
}

fn threshold(threshold: &Threshold) -> String {
    let used = match threshold.measured {
        None => 0.0,
        // A limit of none is full as soon as there is one.
        Some(measured) if threshold.limit <= 0.0 => f64::from(u8::from(measured > 0.0)),
        Some(measured) => (measured / threshold.limit).clamp(0.0, 1.0),
    };
    let (class, verdict) = if threshold.passed { ("good", "✓ holds") } else { ("bad", "✗ failed") };
    let over = if threshold.passed { "" } else { " class=\"over\"" };
    format!(
        "<tr><td><code>{}</code></td><td>{}</td><td>{} {}</td><td class=\"bar\"><span class=\"track\">\
         <i{over} style=\"width:{:.0}%\"></i></span></td><td class=\"{class}\">{verdict}</td></tr>\n",
        escape(&threshold.name),
        threshold.measured.map_or_else(|| "nothing".to_owned(), number),
        if threshold.is_least() { "≥" } else { "≤" },
        number(threshold.limit),
        used * 100.0,
    )
}

/// How long things took.
pub(super) fn measures(report: &Report) -> String {
    let row = |(name, of): (&str, &crate::report::Percentiles)| {
        let cells: String = [of.p50, of.p90, of.p99, of.p999, of.p100]
            .iter()
            .map(|millis| format!("<td>{}</td>", duration(*millis)))
            .collect();
        format!("<tr><td>{}</td>{cells}<td>{}</td></tr>\n", escape(measure(name)), number(of.count as f64))
    };
    let rows: String = report.measures().into_iter().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "<div class=\"scroll\"><table>\n<tr><th>time until</th><th>50 %</th><th>90 %</th><th>99 %</th>\
         <th>99.9 %</th><th>100 %</th><th>measures</th></tr>\n{rows}</table></div>\n"
    )
}

/// What each node sent.
pub(super) fn traffic(report: &Report) -> String {
    let phases = [&report.traffic.steady, &report.traffic.change];
    let mut kinds: Vec<_> = phases.iter().flat_map(|rates| rates.keys()).collect();
    kinds.sort();
    kinds.dedup();
    if kinds.is_empty() {
        return String::new();
    }
    let cells =
        |(bytes, messages): (f64, f64)| format!("<td>{}/s</td><td>{}/s</td>", size(bytes), number(messages));
    let of =
        |rates: &Rates, kind: &String| rates.get(kind).map_or((0.0, 0.0), |rate| (rate.bytes, rate.messages));
    let row = |kind: &&String| {
        let both: String = phases.iter().map(|rates| cells(of(rates, kind))).collect();
        format!("<tr><td>{}</td>{both}</tr>\n", escape(kind))
    };
    let rows: String = kinds.iter().map(row).collect();
    let totals: String = phases.iter().map(|rates| cells(total(rates))).collect();
    format!(
        "<div class=\"scroll\"><table>\n<tr><th>sent by each node</th><th>bytes at rest</th>\
         <th>messages at rest</th><th>bytes in change</th><th>messages in change</th></tr>\n{rows}\
         <tr class=\"total\"><td>all kinds</td>{totals}</tr>\n</table></div>\n"
    )
}

/// All that is one number.
pub(super) fn counts(report: &Report) -> String {
    let seconds = |value: f64| format!("{} s", number(value));
    let rows = [
        ("checks that held", number(report.checks.passed as f64)),
        ("checks that failed", number(report.checks.failed as f64)),
        ("live nodes suspected wrongly", number(report.suspicions_false as f64)),
        ("live nodes given up wrongly", number(report.evictions_false as f64)),
        ("records refused", number(report.rejected as f64)),
        ("stale words among those that nodes route by", share(report.stale_share)),
        ("sent by the node that sends most at rest", format!("{}/s", size(report.bytes_per_node_s_max))),
        ("sent by each node for ten seconds, at most", format!("{}/s", size(report.bytes_peak_per_node_s))),
        ("connections of a node, the median", number(report.connections_median as f64)),
        ("connections of a node, the most", number(report.connections_max as f64)),
        ("longest queue of one node", words::plural(report.queue_max as usize, "message")),
        ("from the first start until all catalogues were equal", seconds(report.converged_s)),
        ("from the last event until all were equal again", seconds(report.recovered_s)),
        ("time the simulation took", seconds(report.wall_s)),
        ("memory the simulation took", format!("{} MiB", number(report.memory_mib))),
    ];
    let row = |(name, value): &(&str, String)| format!("<tr><td>{name}</td><td>{value}</td></tr>\n");
    format!("<table>\n{}</table>\n", rows.iter().map(row).collect::<String>())
}
