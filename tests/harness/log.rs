//! What nodes logged of each other: PURE, from the text of a log to what was noticed when.
//!
//! For nodes named `node-0`, `node-1`, … that log JSON, their gossip at the level `debug`.

use std::time::Duration;

use serde_json::Value;

/// A day, in microseconds.
const DAY: u64 = 86_400_000_000;

/// What one node noticed about another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// That its instance has this weight.
    Weight(u16),
    /// That its watchers cannot reach it.
    Suspect,
    /// That its lease ran out.
    Expired,
}

/// One line of a log, as JSON.
pub struct Line {
    at: u64,
    event: Value,
}

/// The lines of a log that are whole.
pub fn lines(log: &str) -> Vec<Line> {
    let line = |text: &str| {
        let event: Value = serde_json::from_str(text).ok()?;
        let at = micros_of_day(event["timestamp"].as_str()?)?;
        Some(Line { at, event })
    };
    log.lines().filter_map(line).collect()
}

impl Line {
    /// When it was written.
    pub fn at(&self) -> Moment {
        Moment(self.at)
    }

    /// Whether it says that the node's gossip begins.
    pub fn is_begin(&self) -> bool {
        self.event["message"] == "gossip begins"
    }

    /// Whether it says that the node renewed its lease.
    pub fn is_renewal(&self) -> bool {
        self.event["message"] == "lease renewed"
    }

    /// What it says of whom, if it is about a member or an instance.
    pub fn notice(&self) -> Option<(usize, Notice)> {
        let (_, name) = self.event["member"].as_str()?.rsplit_once(" at ")?;
        let subject = name.strip_prefix("node-")?.parse().ok()?;
        let notice = match (self.event["weight"].as_u64(), self.event["state"].as_str()) {
            (Some(weight), _) => Notice::Weight(u16::try_from(weight).ok()?),
            (_, Some("suspect")) => Notice::Suspect,
            (_, Some("expired")) => Notice::Expired,
            _ => return None,
        };
        Some((subject, notice))
    }
}

/// Microseconds of the day: what a run takes is far less, and it may run over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(u64);

impl Moment {
    /// By the calendar.
    pub fn of_unix_millis(millis: u64) -> Self {
        Self(millis * 1000 % DAY)
    }

    /// How long after `earlier` this is.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros((self.0 + DAY - earlier.0) % DAY)
    }
}

/// Of `2026-01-31T12:34:56.123456Z`: the time of day.
fn micros_of_day(timestamp: &str) -> Option<u64> {
    let (_, time) = timestamp.strip_suffix('Z')?.split_once('T')?;
    let (time, micros) = time.split_once('.')?;
    let seconds = time.split(':').try_fold(0, |sum, part| Some(sum * 60 + part.parse::<u64>().ok()?))?;
    Some(seconds * 1_000_000 + micros.parse::<u64>().ok()?)
}
