//! PURE: medians, ratios and verdicts of what was measured.

use std::fmt;

use serde_json::{Value, json};

use crate::pace;
use crate::pair::Pair;

/// What travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Tcp,
    H2,
}

/// How it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// As many requests as go through.
    Full,
    /// A fixed rate.
    Paced,
    /// A connection for each request.
    Fresh,
    /// As many requests as go through, on streams of few connections.
    Streams,
    /// One gibibyte.
    Bulk,
}

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Line {
    HttpFull,
    HttpPaced,
    HttpFresh,
    H2Full,
    TcpFull,
    TcpPaced,
    TcpFresh,
    TcpBulk,
}

/// What one pair did in one line of one round. What does not apply is `None`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measure {
    pub per_second: Option<f64>,
    pub p50_millis: Option<f64>,
    pub p99_millis: Option<f64>,
    /// For each request, of all processes of the pair.
    pub processor_micros: Option<f64>,
    pub megabytes_per_second: Option<f64>,
    pub processor_seconds_per_gib: Option<f64>,
    /// Of the largest process: before any load, and at most in this line.
    pub idle_bytes: Option<f64>,
    pub peak_bytes: Option<f64>,
    pub errors: f64,
}

/// A measure, and whose it is.
pub struct Measured {
    pub pair: String,
    pub line: Line,
    pub measure: Measure,
}

/// Everything that was measured.
pub struct Table {
    pairs: Vec<String>,
    lines: Vec<Line>,
    measured: Vec<Measured>,
}

/// One value of a measure.
type Value1 = (&'static str, fn(&Measure) -> Option<f64>);

const PER_SECOND: Value1 = ("per_second", |measure| measure.per_second);
const P50: Value1 = ("p50_ms", |measure| measure.p50_millis);
const P99: Value1 = ("p99_ms", |measure| measure.p99_millis);
const MICROS: Value1 = ("cpu_us_per_request", |measure| measure.processor_micros);
const BULK: Value1 = ("mb_per_second", |measure| measure.megabytes_per_second);
const PER_GIB: Value1 = ("cpu_s_per_gib", |measure| measure.processor_seconds_per_gib);
const IDLE: Value1 = ("idle_mib", |measure| Some(measure.idle_bytes? / MIB));
const PEAK: Value1 = ("peak_mib", |measure| Some(measure.peak_bytes? / MIB));
const VALUES: [Value1; 8] = [PER_SECOND, P50, P99, MICROS, BULK, PER_GIB, IDLE, PEAK];

const MIB: f64 = 1024.0 * 1024.0;

/// What our pair is held to: a share of another's value, or with no other an absolute one.
struct Threshold {
    line: Line,
    value: Value1,
    bound: Bound,
    of: Option<&'static str>,
}

enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

const OURS: &str = "starling";

const fn threshold(line: Line, value: Value1, bound: Bound, of: Option<&'static str>) -> Threshold {
    Threshold { line, value, bound, of }
}

const THRESHOLDS: [Threshold; 11] = [
    threshold(Line::HttpFull, PER_SECOND, Bound::AtLeast(1.3), Some("haproxy")),
    threshold(Line::HttpFull, PER_SECOND, Bound::AtLeast(1.0), Some("haproxy-h2")),
    threshold(Line::HttpFull, PER_SECOND, Bound::AtLeast(3.0), Some("envoy")),
    threshold(Line::HttpFull, MICROS, Bound::AtMost(0.75), Some("haproxy")),
    threshold(Line::HttpFull, MICROS, Bound::AtMost(0.33), Some("envoy")),
    threshold(Line::HttpPaced, P50, Bound::AtMost(1.0), Some("nginx")),
    threshold(Line::HttpPaced, P99, Bound::AtMost(1.0), Some("nginx")),
    threshold(Line::HttpFresh, PER_SECOND, Bound::AtLeast(1.0), Some("nginx")),
    threshold(Line::TcpFull, MICROS, Bound::AtMost(0.93), Some("haproxy")),
    threshold(Line::HttpFull, IDLE, Bound::AtMost(15.0), None),
    threshold(Line::HttpFull, PEAK, Bound::AtMost(30.0), None),
];

impl Line {
    /// All of them, as they are measured.
    pub const ALL: [Self; 8] = [
        Self::HttpFull,
        Self::HttpPaced,
        Self::HttpFresh,
        Self::H2Full,
        Self::TcpFull,
        Self::TcpPaced,
        Self::TcpFresh,
        Self::TcpBulk,
    ];

    /// What travels.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::HttpFull | Self::HttpPaced | Self::HttpFresh => Protocol::Http,
            Self::H2Full => Protocol::H2,
            Self::TcpFull | Self::TcpPaced | Self::TcpFresh | Self::TcpBulk => Protocol::Tcp,
        }
    }

    /// How it is loaded.
    pub fn work(self) -> Work {
        match self {
            Self::HttpFull | Self::TcpFull => Work::Full,
            Self::HttpPaced | Self::TcpPaced => Work::Paced,
            Self::HttpFresh | Self::TcpFresh => Work::Fresh,
            Self::H2Full => Work::Streams,
            Self::TcpBulk => Work::Bulk,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::HttpFull => "http-full",
            Self::HttpPaced => "http-paced",
            Self::HttpFresh => "http-fresh",
            Self::H2Full => "h2-full",
            Self::TcpFull => "tcp-full",
            Self::TcpPaced => "tcp-paced",
            Self::TcpFresh => "tcp-fresh",
            Self::TcpBulk => "tcp-bulk",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::HttpFull => "HTTP/1.1, 1 KiB, 64 kept connections",
            Self::HttpPaced => "HTTP/1.1, 1 KiB, 2,000 requests a second",
            Self::HttpFresh => "HTTP/1.1, 1 KiB, a connection for each request",
            Self::H2Full => "HTTP/2, 1 KiB, 8 connections with 16 streams each",
            Self::TcpFull => "TCP, carrying 1 KiB answers, 64 kept connections",
            Self::TcpPaced => "TCP, carrying 1 KiB answers, 2,000 requests a second",
            Self::TcpFresh => "TCP, carrying 1 KiB answers, a connection for each request",
            Self::TcpBulk => "TCP, one GiB",
        }
    }
}

impl Table {
    /// Nothing has been measured yet.
    pub fn new(pairs: &[Pair], lines: &[Line]) -> Self {
        let pairs = pairs.iter().map(|pair| pair.name.clone()).collect();
        Self { pairs, lines: lines.to_vec(), measured: Vec::new() }
    }

    /// One more measure.
    pub fn add(&mut self, measured: Measured) {
        self.measured.push(measured);
    }

    /// Whether our pair is within every threshold that could be judged.
    pub fn is_met(&self) -> bool {
        self.verdicts().iter().all(|(_, is_met)| *is_met)
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let rows = self.lines.iter().flat_map(|line| self.pairs.iter().map(move |pair| (line, pair)));
        let rows = rows.filter(|(line, pair)| self.of(pair, **line).next().is_some()).map(|(line, pair)| {
            let mut row = json!({
                "pair": pair,
                "line": line.as_str(),
                "rounds": self.of(pair, *line).count(),
                "errors": self.errors(pair, *line),
            });
            for value in VALUES {
                row[value.0] = json!(self.median(pair, *line, value));
            }
            row
        });
        let verdicts = self.verdicts();
        json!({
            "rows": rows.collect::<Vec<_>>(),
            "thresholds": verdicts.iter().map(|(what, is_met)| json!({ "what": what, "met": is_met })).collect::<Vec<_>>(),
            "met": self.is_met(),
        })
    }

    fn of(&self, pair: &str, line: Line) -> impl Iterator<Item = &Measure> {
        let measured = self.measured.iter().filter(move |one| one.pair == pair && one.line == line);
        measured.map(|one| &one.measure)
    }

    fn errors(&self, pair: &str, line: Line) -> f64 {
        self.of(pair, line).map(|measure| measure.errors).sum()
    }

    fn median(&self, pair: &str, line: Line, (_, value): Value1) -> Option<f64> {
        let mut values: Vec<f64> = self.of(pair, line).filter_map(value).collect();
        values.sort_by(f64::total_cmp);
        pace::quantile(&values, 0.5)
    }

    /// Each threshold whose sides were both measured, in words, and whether it is met.
    fn verdicts(&self) -> Vec<(String, bool)> {
        let one = |threshold: &Threshold| {
            let Threshold { line, value, bound, of } = threshold;
            let ours = self.median(OURS, *line, *value)?;
            let (ratio, beside) = match of {
                Some(peer) => (ours / self.median(peer, *line, *value)?, format!("x {peer}'s")),
                None => (ours, String::new()),
            };
            let (is_met, bound) = match bound {
                Bound::AtLeast(least) => (ratio >= *least, format!("at least {least}")),
                Bound::AtMost(most) => (ratio <= *most, format!("at most {most}")),
            };
            Some((format!("{} {}: {ratio:.2} {beside} ({bound})", line.as_str(), value.0), is_met))
        };
        THRESHOLDS.iter().filter_map(one).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{}", line.title())?;
            let (first, second, third) = match line.work() {
                Work::Bulk => ("MB/s", "", ""),
                _ => ("req/s", "p50 ms", "p99 ms"),
            };
            let cost = if line.work() == Work::Bulk { "CPU s/GiB" } else { "CPU us" };
            writeln!(
                f,
                "  {:<14}{first:>10}{second:>9}{third:>9}{cost:>10}{:>10}{:>8}",
                "", "peak MiB", "errors"
            )?;
            for pair in &self.pairs {
                if self.of(pair, *line).next().is_none() {
                    continue;
                }
                let show = |value, digits: usize| {
                    let median = self.median(pair, *line, value);
                    median.map_or("-".to_owned(), |median| format!("{median:.digits$}"))
                };
                let is_bulk = line.work() == Work::Bulk;
                let rate = if is_bulk { show(BULK, 0) } else { show(PER_SECOND, 0) };
                let [p50, p99] = if is_bulk { Default::default() } else { [show(P50, 2), show(P99, 2)] };
                let cost = if is_bulk { show(PER_GIB, 2) } else { show(MICROS, 1) };
                let (peak, errors) = (show(PEAK, 1), self.errors(pair, *line));
                writeln!(f, "  {pair:<14}{rate:>10}{p50:>9}{p99:>9}{cost:>10}{peak:>10}{errors:>8.0}")?;
            }
            writeln!(f)?;
        }
        for (what, is_met) in self.verdicts() {
            writeln!(f, "{:<6} {what}", if is_met { "ok" } else { "MISSED" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(pair: &str, per_second: f64) -> Measured {
        let measure = Measure { per_second: Some(per_second), ..Measure::default() };
        Measured { pair: pair.to_owned(), line: Line::HttpFull, measure }
    }

    #[test]
    fn medians_are_compared_and_what_was_not_measured_is_not_judged() {
        let pairs = ["haproxy", OURS].map(|name| Pair { name: name.to_owned(), ..Pair::default() });
        let mut table = Table::new(&pairs, &Line::ALL);
        for per_second in [100.0, 90.0, 5.0] {
            table.add(measured("haproxy", per_second));
        }
        table.add(measured(OURS, 118.0));
        assert_eq!(
            table.verdicts(),
            [("http-full per_second: 1.31 x haproxy's (at least 1.3)".to_owned(), true)]
        );
        table.add(measured(OURS, 30.0));
        assert!(!table.is_met());
        assert_eq!(table.json()["rows"][0]["per_second"], 90.0);
    }
}
