//! What is wrong with a configuration, in words for the person who wrote it.
//!
//! A mistake names its file, line and key, says what is wrong and what would be right. Mistakes
//! are gathered, never thrown one by one: whoever edits a file wants all of them at once.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

/// Where something was said.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Nowhere in particular: the file as a whole.
    #[default]
    Whole,
    /// In the file; both count from 1.
    Line {
        /// The line.
        line: usize,
        /// The column, in characters.
        column: usize,
    },
    /// In this environment variable.
    Environment(String),
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The configuration file, as it was given.
    pub file: String,
    /// Where it was said.
    pub place: Place,
    /// The key's path, for instance `service[0].name`.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub suggestion: String,
}

/// Everything that is wrong: at least one mistake, in the file's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

/// Where each key of a configuration was said, kept to explain what turns out wrong later (an
/// unreadable certificate, an address already in use).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    pub(super) file: String,
    pub(super) places: BTreeMap<String, Place>,
}

/// Why one value cannot be used, before it is known where it stood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}: {suggestion}")]
pub struct Wrong {
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub suggestion: String,
}

/// Shorthand for `Err(Wrong { .. })`.
pub(crate) fn wrong<T>(problem: impl Into<String>, suggestion: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { problem: problem.into(), suggestion: suggestion.into() })
}

impl Sources {
    /// A mistake at `key`, or where its nearest parent was said.
    pub fn mistake(&self, key: &str, problem: impl Into<String>, suggestion: impl Into<String>) -> Mistake {
        Mistake {
            file: self.file.clone(),
            place: self.place(key),
            key: key.to_owned(),
            problem: problem.into(),
            suggestion: suggestion.into(),
        }
    }

    /// Where `key` was said, or its nearest parent.
    pub(super) fn place(&self, key: &str) -> Place {
        let mut path = key;
        loop {
            if let Some(place) = self.places.get(path) {
                return place.clone();
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return Place::Whole,
            }
        }
    }
}

impl Mistake {
    /// Where it was said: `starling.toml:3:1`.
    pub(crate) fn located(&self) -> String {
        match &self.place {
            Place::Whole => self.file.clone(),
            Place::Line { line, column } => format!("{}:{line}:{column}", self.file),
            Place::Environment(variable) => format!("environment: {variable}"),
        }
    }
}

impl Mistakes {
    /// `Ok` when nothing is wrong; otherwise everything, in the file's order.
    pub fn none_of(mut mistakes: Vec<Mistake>) -> Result<(), Self> {
        if mistakes.is_empty() {
            return Ok(());
        }
        mistakes.sort_by(|a, b| a.place.cmp(&b.place));
        Err(Self(mistakes))
    }

    /// The mistakes, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }

    /// For programs: `{"ok":false,"mistakes":[…]}`.
    pub fn to_json(&self) -> Value {
        json!({ "ok": false, "mistakes": self.0 })
    }
}

impl From<Mistake> for Mistakes {
    fn from(mistake: Mistake) -> Self {
        Self(vec![mistake])
    }
}

impl Serialize for Mistake {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (file, line) = match &self.place {
            Place::Whole => (self.file.as_str(), None),
            Place::Line { line, .. } => (self.file.as_str(), Some(*line)),
            Place::Environment(_) => ("environment", None),
        };
        let mut object = json!({
            "file": file,
            "line": line,
            "key": self.key,
            "problem": self.problem,
            "suggestion": self.suggestion,
        });
        match &self.place {
            Place::Whole => {}
            Place::Line { column, .. } => object["column"] = json!(column),
            Place::Environment(variable) => object["variable"] = json!(variable),
        }
        object.serialize(serializer)
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.located())?;
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, "\n    {}\n    help: {}", self.problem, self.suggestion)
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in &self.0 {
            writeln!(f, "{mistake}")?;
        }
        let plural = if self.0.len() == 1 { "" } else { "s" };
        write!(f, "{} mistake{plural} in the configuration", self.0.len())
    }
}

impl std::error::Error for Mistakes {}
