//! A span of time as people write it: `"500ms"`, `"2s"`, `"5m"`, `"1h"`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The longest: what a run of days would measure, a shorter one does too.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// A span of time, at most a week.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

/// A text that is no span.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no span of time: write a number and its unit, as in \"500ms\", \"2s\", \"5m\" or \"1h\"; at most 168h"
)]
pub struct SpanError(String);

impl Span {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// So many milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let wrong = || SpanError(text.to_owned());
        let digits = text.find(|character: char| !character.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(digits);
        let unit_millis: u64 = match unit.trim() {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let span = number.checked_mul(unit_millis).map(Duration::from_millis);
        span.filter(|span| *span <= LONGEST).map(Self).ok_or_else(wrong)
    }
}

impl TryFrom<String> for Span {
    type Error = SpanError;
    fn try_from(text: String) -> Result<Self, SpanError> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            millis if millis % 1000 != 0 => write!(f, "{millis}ms"),
            millis => write!(f, "{}s", millis / 1000),
        }
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^[0-9]+\s*(ms|s|m|h)$",
            "description": "A span of time such as \"500ms\", \"2s\", \"5m\" or \"1h\"; at most a week."
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_they_are_shown() {
        for (text, millis, shown) in [
            ("500ms", 500, "500ms"),
            ("2s", 2000, "2s"),
            ("5 m", 300_000, "300s"),
            ("168h", 604_800_000, "604800s"),
        ] {
            let span: Span = text.parse().expect(text);
            assert_eq!(span.0, Duration::from_millis(millis));
            assert_eq!(span.to_string(), shown);
            assert_eq!(shown.parse(), Ok(span));
        }
        for text in ["", "5", "s", "1.5s", "-1s", "169h", "99999999999999999999s", "5 days"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
