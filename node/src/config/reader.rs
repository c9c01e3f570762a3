//! A reader of one kind of value: how it is judged, how it is shown again, and how an editor may
//! judge it beforehand. One thing, so that the three cannot disagree.

use std::fmt::Display;

use serde_json::{Value as Json, json};

use super::mistake::Wrong;
use super::section::Given;

type Judge<T> = dyn Fn(Given<'_>) -> Result<T, Wrong>;

/// Reads values of one kind.
pub(super) struct Reader<T> {
    pub(super) schema: Json,
    judge: Box<Judge<T>>,
    show: Box<dyn Fn(&T) -> Json>,
}

impl<T> Reader<T> {
    /// Values that `schema` describes (as far as JSON Schema can), `judge` decides about, and
    /// `show` writes so that `judge` reads the same again.
    pub(super) fn new(
        schema: Json,
        show: impl Fn(&T) -> Json + 'static,
        judge: impl Fn(Given<'_>) -> Result<T, Wrong> + 'static,
    ) -> Self {
        Self { schema, judge: Box::new(judge), show: Box::new(show) }
    }

    /// Texts of a form: `pattern` is a regular expression that every right one matches.
    pub(super) fn text(pattern: &str, judge: impl Fn(Given<'_>) -> Result<T, Wrong> + 'static) -> Self
    where
        T: Display,
    {
        let schema = json!({ "type": "string", "pattern": pattern });
        Self::new(schema, |value: &T| value.to_string().into(), judge)
    }

    pub(super) fn read(&self, given: Given<'_>) -> Result<T, Wrong> {
        (self.judge)(given)
    }

    pub(super) fn show(&self, value: &T) -> Json {
        (self.show)(value)
    }
}
