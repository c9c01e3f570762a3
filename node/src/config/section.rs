//! Walking the parsed text: each key is taken once, by name, with the reader that judges it.
//!
//! A key that nobody took is unknown. A key whose value is wrong is reported, and its default
//! stands in for it so that the walk goes on; the configuration is thrown away at the end.
//!
//! The same walk, over nothing, tells which keys there are: every section is there once, and what
//! the readers say of their keys is kept.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde_json::json;
use toml::Value;

use super::keys::{Key, Keys};
use super::mistake::{Mistake, Place, Sources, Wrong};
use super::reader::Reader;
use super::tree::join;

/// What has been found wrong so far, and where things stand.
pub(super) struct Report {
    pub(super) sources: Sources,
    mistakes: RefCell<Vec<Mistake>>,
    keys: RefCell<Keys>,
    /// Nothing was given, and every section counts as given once.
    describes: bool,
}

/// One table of the configuration while it is read.
pub(super) struct Section<'r> {
    report: &'r Report,
    path: String,
    table: toml::Table,
    known: Vec<&'static str>,
}

/// A value to be read.
#[derive(Clone, Copy)]
pub(super) struct Given<'v> {
    pub(super) value: &'v Value,
    /// From the environment, where numbers and lists are texts too.
    pub(super) textual: bool,
}

impl Report {
    pub(super) fn new(sources: Sources, mistakes: Vec<Mistake>) -> Self {
        Self { sources, mistakes: mistakes.into(), keys: RefCell::default(), describes: false }
    }

    /// For a walk that only tells which keys there are.
    pub(super) fn describing() -> Self {
        Self { describes: true, ..Self::new(Sources::default(), Vec::new()) }
    }

    /// Notes a mistake at `key`.
    pub(super) fn add(&self, key: &str, problem: impl Into<String>, suggestion: impl Into<String>) {
        self.mistakes.borrow_mut().push(self.sources.mistake(key, problem, suggestion));
    }

    /// Whether the value at `key`, or anything within it, was wrong.
    pub(super) fn has_mistake_within(&self, key: &str) -> bool {
        self.mistakes.borrow().iter().any(|mistake| mistake.key.starts_with(key))
    }

    /// Whether the value at `key` was wrong.
    pub(super) fn has_mistake_at(&self, key: &str) -> bool {
        self.mistakes.borrow().iter().any(|mistake| mistake.key == key)
    }

    pub(super) fn finish(self) -> (Sources, Vec<Mistake>, Keys) {
        (self.sources, self.mistakes.into_inner(), self.keys.into_inner())
    }

    fn add_wrong(&self, key: &str, wrong: Wrong) {
        self.add(key, wrong.problem, wrong.suggestion);
    }
}

impl<'r> Section<'r> {
    pub(super) fn root(report: &'r Report, table: toml::Table) -> Self {
        Self { report, path: String::new(), table, known: Vec::new() }
    }

    /// This table's own path from the root.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The key's path from the root, for later reports.
    pub(super) fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    pub(super) fn report(&self) -> &'r Report {
        self.report
    }

    /// Whether the key was given at all.
    pub(super) fn has(&self, key: &str) -> bool {
        self.report.describes || self.table.contains_key(key)
    }

    /// Whether the key, which may have been read, was given.
    pub(super) fn is_given(&self, key: &str) -> bool {
        self.report.keys.borrow().get(&self.path_of(key)).is_some_and(|key| key.given)
    }

    /// What was given for the key, not yet judged.
    pub(super) fn given(&self, key: &str) -> Option<&Value> {
        self.table.get(key)
    }

    /// A key that may be absent.
    pub(super) fn optional<T>(&mut self, key: &'static str, reader: Reader<T>) -> Option<T> {
        self.note(key, &reader, None, false);
        self.read(key, &reader)
    }

    /// A key with a default.
    pub(super) fn or<T>(&mut self, key: &'static str, default: T, reader: Reader<T>) -> T {
        self.note(key, &reader, Some(&default), false);
        self.read(key, &reader).unwrap_or(default)
    }

    /// A key with a default that comes from elsewhere, and is judged like a given value.
    pub(super) fn or_text<T>(&mut self, key: &'static str, default: &str, reader: Reader<T>) -> Option<T> {
        self.note(key, &reader, None, false);
        self.table.entry(key).or_insert_with(|| default.into());
        self.read(key, &reader)
    }

    /// A key that has been read, and whose value follows from others where it was not given.
    pub(super) fn follows<T: ToString>(&self, key: &str, value: Option<&T>) {
        if let Some(value) = value {
            self.counts_as(key, value.to_string().into());
        }
    }

    /// What a key that has been read means in full.
    pub(super) fn counts_as(&self, key: &str, value: serde_json::Value) {
        self.report.keys.borrow_mut().set(&self.path_of(key), value);
    }

    /// A key that must be there; `example` shows one. `None` has been reported.
    pub(super) fn required<T>(&mut self, key: &'static str, example: &str, reader: Reader<T>) -> Option<T> {
        self.note(key, &reader, None, true);
        if !self.table.contains_key(key) {
            self.known.push(key);
            // A key that looks like this one will be reported as unknown; once is enough.
            if !self.table.keys().any(|other| is_near(other, key)) {
                let add = format!("add {key} = {example}");
                self.report.add(&self.path_of(key), format!("{key} is missing"), add);
            }
            return None;
        }
        self.read(key, &reader)
    }

    /// A list, by default empty; each item that is wrong is reported by its index.
    pub(super) fn list<T>(&mut self, key: &'static str, reader: Reader<T>) -> Vec<T> {
        self.list_or(key, reader, Some(json!([]))).unwrap_or_default()
    }

    /// A list whose absence means something else than an empty one.
    pub(super) fn optional_list<T>(&mut self, key: &'static str, reader: Reader<T>) -> Option<Vec<T>> {
        self.list_or(key, reader, None)
    }

    fn list_or<T>(
        &mut self,
        key: &'static str,
        reader: Reader<T>,
        default: Option<serde_json::Value>,
    ) -> Option<Vec<T>> {
        let path = self.path_of(key);
        let schema = json!({ "type": "array", "items": reader.schema });
        self.note_as(path.clone(), self.table.contains_key(key), schema, default, false);
        let items = match self.take(key)? {
            Value::Array(items) => items,
            Value::String(text) if self.is_textual(&path) => {
                text.split(',').map(|item| item.trim().into()).collect()
            }
            other => {
                let write = format!("write a list: {key} = [{}]", other);
                self.report.add(&path, format!("{key} is a list, not {}", kind(&other)), write);
                return Some(Vec::new());
            }
        };
        let textual = self.is_textual(&path);
        let mut read_items = Vec::new();
        for (index, value) in items.iter().enumerate() {
            match reader.read(Given { value, textual }) {
                Ok(item) => read_items.push(item),
                Err(wrong) => self.report.add_wrong(&format!("{path}[{index}]"), wrong),
            }
        }
        let shown = read_items.iter().map(|item| reader.show(item)).collect();
        self.report.keys.borrow_mut().set(&path, shown);
        Some(read_items)
    }

    /// A table inside this one; absent is the same as empty.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'r> {
        let path = self.path_of(key);
        let table = match self.take(key) {
            None => toml::Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                // TOML does not number what is in a list: a header belongs to the last one above it.
                let names = path.split('.').map(|part| part.split('[').next().unwrap_or(part));
                let header = names.collect::<Vec<_>>().join(".");
                let hint = format!("write [{header}] on a line of its own, its keys below");
                self.report.add(&path, format!("{path} is a section, not {}", kind(&other)), hint);
                toml::Table::new()
            }
        };
        Section { report: self.report, path, table, known: Vec::new() }
    }

    /// A section that may occur many times.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Section<'r>> {
        let path = self.path_of(key);
        let items = match self.take(key) {
            None if self.report.describes => vec![toml::Table::new().into()],
            None => return Vec::new(),
            Some(Value::Array(items)) if items.iter().all(Value::is_table) => items,
            Some(other) => {
                let what = format!("{path} may occur many times, and is given as {}", kind(&other));
                self.report.add(&path, what, format!("write [[{path}]], with two brackets"));
                return Vec::new();
            }
        };
        let numbered = items.into_iter().enumerate();
        numbered
            .filter_map(|(index, item)| match item {
                Value::Table(table) => Some((format!("{path}[{index}]"), table)),
                _ => None,
            })
            .map(|(path, table)| Section { report: self.report, path, table, known: Vec::new() })
            .collect()
    }

    /// A table whose keys are free; keys and values are read alike.
    pub(super) fn pairs<T: Ord + ToString>(self, reader: Reader<T>) -> BTreeMap<T, T> {
        let mut pairs = BTreeMap::new();
        let names = reader.schema.clone();
        let schema =
            json!({ "type": "object", "propertyNames": names, "additionalProperties": reader.schema });
        self.note_as(self.path.clone(), !self.table.is_empty(), schema, Some(json!({})), false);
        for (key, value) in &self.table {
            let path = self.path_of(key);
            let key = reader.read(Given { value: &key.as_str().into(), textual: false });
            let value = reader.read(Given { value, textual: self.is_textual(&path) });
            match (key, value) {
                (Ok(key), Ok(value)) => drop(pairs.insert(key, value)),
                (key, value) => {
                    let both = [key.err(), value.err()];
                    both.into_iter().flatten().for_each(|wrong| self.report.add_wrong(&path, wrong));
                }
            }
        }
        let shown = pairs.iter().map(|(key, value)| (key.to_string(), reader.show(value))).collect();
        self.report.keys.borrow_mut().set(&self.path, serde_json::Value::Object(shown));
        pairs
    }

    /// Reports every key that nobody took.
    pub(super) fn finish(self) {
        for (key, value) in &self.table {
            let is_section = value.is_table() || (self.path.is_empty() && value.is_array());
            let name = if is_section { format!("section [{key}]") } else { format!("key {key:?}") };
            let nearest = self.known.iter().filter(|known| is_near(key, known));
            let nearest = nearest.min_by_key(|known| strsim::osa_distance(key, known));
            let suggestion = match nearest {
                Some(known) => format!("did you mean {known:?}?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            self.report.add(&self.path_of(key), format!("unknown {name}"), suggestion);
        }
    }

    /// Reads a key that has been noted; `None` is absent or reported.
    fn read<T>(&mut self, key: &'static str, reader: &Reader<T>) -> Option<T> {
        let value = self.take(key)?;
        let path = self.path_of(key);
        let given = Given { value: &value, textual: self.is_textual(&path) };
        let read = reader.read(given).map_err(|wrong| self.report.add_wrong(&path, wrong)).ok()?;
        self.report.keys.borrow_mut().set(&path, reader.show(&read));
        Some(read)
    }

    fn note<T>(&self, key: &str, reader: &Reader<T>, default: Option<&T>, required: bool) {
        let default = default.map(|default| reader.show(default));
        let given = self.table.contains_key(key);
        self.note_as(self.path_of(key), given, reader.schema.clone(), default, required);
    }

    fn note_as(
        &self,
        path: String,
        given: bool,
        schema: serde_json::Value,
        default: Option<serde_json::Value>,
        required: bool,
    ) {
        let value = default.clone();
        self.report.keys.borrow_mut().0.push(Key { path, schema, default, required, given, value });
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.remove(key)
    }

    fn is_textual(&self, path: &str) -> bool {
        matches!(self.report.sources.places.get(path), Some(Place::Environment(_)))
    }
}

/// What a value is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a number",
        Value::Float(_) => "a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a single section",
    }
}

/// Whether one is probably a slip of the pen for the other: one letter in three.
fn is_near(given: &str, known: &str) -> bool {
    strsim::osa_distance(given, known) <= (known.len() / 3).max(1)
}
