//! A TOML text, or an error with its line: the values, and where each key stood.
//!
//! Knows nothing of what the keys mean.

use serde::Deserialize as _;
use toml::de::{DeTable, DeValue, Deserializer};

use super::mistake::{Mistake, Place, Sources};

/// Reads `text` into its values, and notes in `sources` where each key stands.
pub(super) fn parse(text: &str, sources: &mut Sources) -> Result<toml::Table, Mistake> {
    let document = DeTable::parse(text).map_err(|error| syntax_mistake(text, &error, sources))?;
    note_table(document.get_ref(), "", text, sources);
    toml::Table::deserialize(Deserializer::from(document))
        .map_err(|error| syntax_mistake(text, &error, sources))
}

/// The path of `key` inside `parent`.
pub(super) fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

/// `service[3]` is number 3 of `service`; `node` is no number of anything.
pub(super) fn indexed(part: &str) -> (&str, Option<usize>) {
    match part.strip_suffix(']').and_then(|part| part.split_once('[')) {
        Some((name, index)) => (name, index.parse().ok()),
        None => (part, None),
    }
}

fn note_table(table: &DeTable<'_>, path: &str, text: &str, sources: &mut Sources) {
    for (key, value) in table {
        let path = join(path, key.get_ref());
        sources.places.insert(path.clone(), place(text, key.span().start));
        note_value(value.get_ref(), &path, text, sources);
    }
}

fn note_value(value: &DeValue<'_>, path: &str, text: &str, sources: &mut Sources) {
    match value {
        DeValue::Table(table) => note_table(table, path, text, sources),
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}[{index}]");
                sources.places.insert(path.clone(), place(text, item.span().start));
                note_value(item.get_ref(), &path, text, sources);
            }
        }
        _ => {}
    }
}

fn place(text: &str, offset: usize) -> Place {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    Place::Line { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
}

fn syntax_mistake(text: &str, error: &toml::de::Error, sources: &Sources) -> Mistake {
    Mistake {
        file: sources.file.clone(),
        place: error.span().map_or(Place::Whole, |span| place(text, span.start)),
        key: String::new(),
        problem: format!("this is not TOML: {}", error.message()),
        suggestion: "correct the syntax (https://toml.io); the rest is checked after that".into(),
    }
}
