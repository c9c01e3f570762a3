//! From text to a scenario: every mistake at once, each with its line, what is wrong and what would
//! be right.
//!
//! Each table is read by itself, so a mistake in one hides none in another; a table that cannot be
//! read shows its first mistake only.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path as FilePath;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::event::{Do, Event};
use super::library::LIBRARY;
use super::{Conditions, NODES_MAX, Scenario, Span};
use crate::report::thresholds;

/// A mistake in a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The line it begins in, from 1; 0 for one of the whole.
    pub line: usize,
    /// Where: `mesh.lease`, `event 3`.
    pub place: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

/// All mistakes of one scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes {
    /// The file, or the name of a scenario of the library.
    pub source: String,
    /// In the order of lines.
    pub mistakes: Vec<Mistake>,
}

/// A change to a scenario from the command line: `nodes=200`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Which: see [`Override::NAMES`].
    pub name: String,
    /// To what.
    pub value: String,
}

/// The scenario called `name` in the library, or else in the file `name`, with its name.
pub fn load(name: &str) -> Result<(String, Scenario), Mistakes> {
    if let Some((name, text)) = LIBRARY.iter().find(|(known, _)| *known == name) {
        return Ok(((*name).to_owned(), parse(name, text)?));
    }
    let text = std::fs::read_to_string(name).map_err(|error| {
        let what =
            format!("{error}. It is no scenario of the library either: `starling-sim list` shows those");
        Mistakes::one(name, what)
    })?;
    let stem = FilePath::new(name).file_stem().and_then(|stem| stem.to_str()).unwrap_or(name);
    Ok((stem.to_owned(), parse(name, &text)?))
}

/// The JSON Schema of scenario files.
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(Scenario).to_value();
    schema["title"] = "A scenario of starling-sim".into();
    schema
}

/// Reads and judges a scenario.
pub fn parse(source: &str, text: &str) -> Result<Scenario, Mistakes> {
    let mut reader = Reader { text, places: Places::default(), mistakes: Vec::new() };
    let scenario = reader.scenario();
    if let Some(scenario) = &scenario {
        judge(scenario, &reader.places, &mut reader.mistakes);
    }
    reader.mistakes.sort_by_key(|mistake| mistake.line);
    match scenario {
        Some(scenario) if reader.mistakes.is_empty() => Ok(scenario),
        _ => Err(Mistakes { source: source.to_owned(), mistakes: reader.mistakes }),
    }
}

struct Reader<'t> {
    text: &'t str,
    places: Places,
    mistakes: Vec<Mistake>,
}

/// Where each table that could be read stands: its name, by its place among those; and its line.
#[derive(Default)]
struct Places(BTreeMap<(&'static str, usize), (String, usize)>);

impl Places {
    /// Of the `at`th table of `array`; of a scenario that was no file, without a line.
    fn of(&self, array: &'static str, at: usize) -> (String, usize) {
        self.0.get(&(array, at)).cloned().unwrap_or_else(|| (format!("{array} {}", at + 1), 0))
    }
}

const KEYS: [&str; 7] = ["question", "mesh", "network", "site", "path", "event", "expect"];

impl<'t> Reader<'t> {
    /// What could be read, with defaults where it could not.
    fn scenario(&mut self) -> Option<Scenario> {
        let table = match DeTable::parse(self.text) {
            Ok(table) => table,
            Err(error) => {
                self.error("the file", &error, 0);
                return None;
            }
        };
        let mut table = table.into_inner();
        for (key, _) in table.iter().filter(|(key, _)| !KEYS.contains(&key.get_ref().as_ref())) {
            let what = format!("unknown key; there are {}", KEYS.join(", "));
            self.mistakes.push(Mistake {
                line: self.line(key.span().start),
                place: key.get_ref().to_string(),
                what,
            });
        }
        let question = table.remove("question");
        if question.is_none() {
            let what = "missing: say in one line which question the scenario answers".to_owned();
            self.mistakes.push(Mistake { line: 0, place: "question".to_owned(), what });
        }
        Some(Scenario {
            question: question.and_then(|value| self.value("question", value)).unwrap_or_default(),
            mesh: table.remove("mesh").and_then(|value| self.value("mesh", value)).unwrap_or_default(),
            network: table
                .remove("network")
                .and_then(|value| self.value("network", value))
                .unwrap_or_default(),
            site: self.array("site", table.remove("site")),
            path: self.array("path", table.remove("path")),
            event: self.array("event", table.remove("event")),
            expect: table.remove("expect").and_then(|value| self.value("expect", value)).unwrap_or_default(),
        })
    }

    fn value<T: DeserializeOwned>(&mut self, place: &str, value: Spanned<DeValue<'t>>) -> Option<T> {
        let start = value.span().start;
        match T::deserialize(ValueDeserializer::from(value)) {
            Ok(value) => Some(value),
            Err(error) => {
                self.error(place, &error, start);
                None
            }
        }
    }

    fn array<T: DeserializeOwned>(
        &mut self,
        array: &'static str,
        value: Option<Spanned<DeValue<'t>>>,
    ) -> Vec<T> {
        let Some(value) = value else { return Vec::new() };
        let line = self.line(value.span().start);
        let DeValue::Array(items) = value.into_inner() else {
            let what = format!("must be tables: write [[{array}]]");
            self.mistakes.push(Mistake { line, place: array.to_owned(), what });
            return Vec::new();
        };
        let mut read = Vec::new();
        for (number, item) in items.into_iter().enumerate() {
            let (place, line) = (format!("{array} {}", number + 1), self.line(item.span().start));
            if let Some(item) = self.value(&place, item) {
                self.places.0.insert((array, read.len()), (place, line));
                read.push(item);
            }
        }
        read
    }

    fn error(&mut self, place: &str, error: &toml::de::Error, start: usize) {
        let line = self.line(error.span().map_or(start, |span| span.start));
        let what = error.message().trim().to_owned();
        self.mistakes.push(Mistake { line, place: place.to_owned(), what });
    }

    fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
    }
}

/// What types alone do not keep.
fn judge(scenario: &Scenario, places: &Places, mistakes: &mut Vec<Mistake>) {
    let mut wrong = |place: &str, what: String| {
        mistakes.push(Mistake { line: 0, place: place.to_owned(), what });
    };
    let mesh = &scenario.mesh;
    if !(2..=NODES_MAX).contains(&mesh.nodes) {
        wrong("mesh.nodes", format!("{} is out of range: 2 to {NODES_MAX}", mesh.nodes));
    }
    if mesh.replicas == 0 {
        wrong("mesh.replicas", "0 is out of range: at least 1".to_owned());
    }
    if mesh.interval.0.is_zero() || mesh.renew.0.is_zero() {
        wrong("mesh", "`interval` and `renew` must be more than 0".to_owned());
    }
    if mesh.lease < Span::seconds(1) || mesh.lease > Span::seconds(3600) || mesh.lease.0 < mesh.renew.0 * 2 {
        wrong("mesh.lease", "must be at least twice `renew`, at least 1s and at most 1h".to_owned());
    }
    judge_shares("network.", &scenario.network, &mut wrong);
    for name in scenario.expect.keys().filter(|name| !thresholds::is_known(name)) {
        wrong("expect", format!("no measure is called {name:?}; there are {}", thresholds::NAMES.join(", ")));
    }
    let mut wrong = |(place, line): (String, usize), what: String| {
        mistakes.push(Mistake { line, place, what });
    };
    judge_sites(scenario, &mut |array, at, what| wrong(places.of(array, at), what));
    for (at, event) in scenario.event.iter().enumerate() {
        judge_event(scenario, event, &mut |what| wrong(places.of("event", at), what));
    }
}

fn judge_shares(table: &str, conditions: &Conditions, wrong: &mut impl FnMut(&str, String)) {
    let shares =
        [("loss", conditions.loss), ("duplicate", conditions.duplicate), ("reorder", conditions.reorder)];
    for (name, share) in shares.into_iter().filter(|(_, share)| !(0.0..=1.0).contains(share)) {
        wrong(&format!("{table}{name}"), format!("{share} is no share: 0 to 1"));
    }
}

fn judge_sites(scenario: &Scenario, wrong: &mut impl FnMut(&'static str, usize, String)) {
    let is_site = |name: &str| scenario.site.iter().any(|site| site.name == name);
    for (at, site) in scenario.site.iter().enumerate() {
        if scenario.site[..at].iter().any(|other| other.name == site.name) {
            wrong("site", at, format!("{:?} is there twice", site.name));
        }
        if !(site.share > 0.0 && site.share.is_finite()) {
            wrong("site", at, "`share` must be more than 0".to_owned());
        }
    }
    for (at, path) in scenario.path.iter().enumerate() {
        for name in [&path.from, &path.to].into_iter().filter(|name| !is_site(name)) {
            wrong("path", at, format!("there is no [[site]] called {name:?}"));
        }
        let conditions = scenario.network.along(path);
        judge_shares("", &conditions, &mut |name, what| wrong("path", at, format!("`{name}`: {what}")));
    }
}

fn judge_event(scenario: &Scenario, event: &Event, wrong: &mut impl FnMut(String)) {
    let is_site = |name: &String| scenario.site.iter().any(|site| site.name == *name);
    if let Err(error) = event.nodes.count_of(1) {
        wrong(format!("nodes: {error}"));
    }
    let named = event.site.iter().chain(event.parts.iter().flatten());
    for name in named.filter(|name| !is_site(name)) {
        wrong(format!("there is no [[site]] called {name:?}"));
    }
    if event.times == 0 || (event.times > 1 && event.every.0.is_zero()) {
        wrong("`times` must be at least 1, and more than once needs `every`".to_owned());
    }
    if [event.loss_in, event.loss_out].iter().any(|share| !(0.0..=1.0).contains(share)) {
        wrong("`loss_in` and `loss_out` are shares: 0 to 1".to_owned());
    }
    let ends =
        matches!(event.what, Do::Flap | Do::Restart | Do::Pause | Do::Partition | Do::Degrade | Do::Attack);
    if ends && event.lasts.0.is_zero() {
        wrong(format!("`{}` needs `for`: how long it lasts", event.what));
    }
    if event.what == Do::Partition && event.ways < 2 {
        wrong("`ways` must be at least 2".to_owned());
    }
    if event.what == Do::Attack && (event.rate == 0 || event.rate > 10_000) {
        wrong("`rate` is 1 to 10000 messages a second".to_owned());
    }
}

impl Conditions {
    /// These, with what `path` says otherwise.
    pub fn along(&self, path: &super::Path) -> Self {
        Self {
            latency: path.latency.unwrap_or(self.latency),
            jitter: path.jitter.unwrap_or(self.jitter),
            loss: path.loss.unwrap_or(self.loss),
            duplicate: path.duplicate.unwrap_or(self.duplicate),
            reorder: path.reorder.unwrap_or(self.reorder),
            bandwidth: self.bandwidth,
        }
    }
}

impl Override {
    /// What can be changed from outside.
    pub const NAMES: [&'static str; 13] = [
        "quiet",
        "nodes",
        "interval",
        "lease",
        "renew",
        "loss",
        "latency",
        "jitter",
        "distance",
        "fan-out",
        "news-period",
        "length",
        "longest",
    ];

    /// Changes `scenario`, which must be judged again.
    pub fn apply(&self, scenario: &mut Scenario) -> Result<(), String> {
        let value = self.value.as_str();
        let mesh = &mut scenario.mesh;
        match self.name.as_str() {
            "nodes" => mesh.nodes = number(value)?,
            "fan-out" => mesh.news_told = Some(number(value)?),
            "loss" => scenario.network.loss = number(value)?,
            "distance" => scenario.stretch(number(value)?)?,
            "interval" => mesh.interval = span(value)?,
            "lease" => mesh.lease = span(value)?,
            "renew" => mesh.renew = span(value)?,
            "length" => mesh.length = span(value)?,
            "longest" => scenario.shorten(span(value)?),
            "quiet" => mesh.quiet = span(value)?,
            "news-period" => mesh.news_period = Some(span(value)?),
            "latency" => scenario.network.latency = span(value)?,
            "jitter" => scenario.network.jitter = span(value)?,
            name => {
                return Err(format!("no parameter is called {name:?}; there are {}", Self::NAMES.join(", ")));
            }
        }
        let mut mistakes = Vec::new();
        judge(scenario, &Places::default(), &mut mistakes);
        match mistakes.first() {
            Some(mistake) => Err(format!("{self}: {}: {}", mistake.place, mistake.what)),
            None => Ok(()),
        }
    }
}

impl Scenario {
    /// Lets nothing last longer than `longest`: neither the run nor an event, with all its repetitions. What comes
    /// later than that comes all the same.
    fn shorten(&mut self, longest: Span) {
        self.mesh.length = self.mesh.length.min(longest);
        for event in &mut self.event {
            event.lasts = event.lasts.min(longest);
            let times = longest.0.as_millis() / event.every.0.as_millis().max(1);
            event.times = event.times.min(u32::try_from(times).unwrap_or(u32::MAX).max(1));
        }
    }

    /// Makes every way so many times as long.
    fn stretch(&mut self, factor: f64) -> Result<(), String> {
        if !(0.0..=100.0).contains(&factor) {
            return Err(format!("distance={factor} is out of range: 0 to 100"));
        }
        let ways = self.path.iter_mut().filter_map(|path| path.latency.as_mut());
        for latency in ways.chain([&mut self.network.latency]) {
            *latency = Span(latency.0.mul_f64(factor));
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number that fits"))
}

fn span(text: &str) -> Result<Span, String> {
    text.parse().map_err(|error: super::SpanError| error.to_string())
}

impl std::str::FromStr for Override {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) =
            text.split_once('=').ok_or_else(|| format!("{text:?}: write NAME=VALUE, as in nodes=200"))?;
        if !Self::NAMES.contains(&name) {
            return Err(format!("no parameter is called {name:?}; there are {}", Self::NAMES.join(", ")));
        }
        Ok(Self { name: name.to_owned(), value: value.to_owned() })
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

impl Mistakes {
    fn one(source: &str, what: String) -> Self {
        let mistake = Mistake { line: 0, place: "the file".to_owned(), what };
        Self { source: source.to_owned(), mistakes: vec![mistake] }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Mistake { line, place, what }) in self.mistakes.iter().enumerate() {
            let end = if at == 0 { "" } else { "\n" };
            let line = if *line == 0 { String::new() } else { format!(":{line}") };
            write!(f, "{end}{}{line}: {place}: {what}", self.source)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}
