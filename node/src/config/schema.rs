//! The JSON Schema (draft 2020-12) of the configuration file, for editors.
//!
//! Shapes, bounds and defaults are the readers' own; descriptions and examples are those of
//! `deploy/starling.toml`, the file with every key and its reason. What is wrong only in company
//! (two listeners on one port) is beyond a schema; `starling check` knows.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::mistake::{Place, Sources};
use super::{describe, tree};

/// Every key with its reason.
pub const COMMENTED: &str = include_str!("../../../deploy/starling.toml");

/// What the commented file says of one key or section.
#[derive(Debug, Default)]
struct Words {
    description: String,
    example: Option<Value>,
}

/// The schema.
pub fn schema() -> Value {
    let words = read_words();
    let mut root = table("Starling", "The configuration of one Starling node.");
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    for key in describe().iter() {
        let (section, name) = key.path.rsplit_once('.').unwrap_or(("", &key.path));
        let table = table_at(&mut root, section, &words);
        table["properties"][name] = property(key, words.get(&plain(&key.path)));
        if key.required {
            match &mut table["required"] {
                Value::Array(names) => names.push(name.into()),
                absent => *absent = json!([name]),
            }
        }
    }
    root
}

fn property(key: &super::Key, words: Option<&Words>) -> Value {
    let mut property = key.schema.clone();
    let own = property["description"].as_str().unwrap_or_default();
    let description = format!("{} {own}", words.map_or("", |words| &words.description));
    property["description"] = description.trim().into();
    property["title"] = plain(&key.path).into();
    if let Some(default) = &key.default {
        property["default"] = default.clone();
    }
    if let Some(example) = words.and_then(|words| words.example.as_ref()) {
        property["examples"] = json!([example]);
    }
    property
}

/// The table at `path`, made with those around it where it is not there yet.
fn table_at<'s>(root: &'s mut Value, path: &str, words: &BTreeMap<String, Words>) -> &'s mut Value {
    let mut at = root;
    let mut whole = String::new();
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let (name, index) = tree::indexed(part);
        whole = tree::join(&whole, name);
        let description = words.get(&whole).map_or("", |words| &words.description);
        let properties = at["properties"].as_object_mut().expect("a table has properties");
        let made = || match index {
            None => table(&whole, description),
            Some(_) => json!({ "type": "array", "items": table(&whole, description) }),
        };
        at = properties.entry(name).or_insert_with(made);
        if index.is_some() {
            at = &mut at["items"];
        }
    }
    at
}

fn table(title: &str, description: &str) -> Value {
    json!({
        "title": title,
        "description": description,
        "type": "object",
        "properties": {},
        "additionalProperties": false,
    })
}

/// The commented file's words, by path.
fn read_words() -> BTreeMap<String, Words> {
    let mut sources = Sources::default();
    let values = tree::parse(COMMENTED, &mut sources).expect("deploy/starling.toml is TOML, as tests show");
    let values = serde_json::to_value(values).unwrap_or_default();
    let lines: Vec<&str> = COMMENTED.lines().collect();
    let mut words = BTreeMap::new();
    // In the file's order: of several services, the first that has a key explains it.
    let mut places: Vec<(&String, &Place)> = sources.places.iter().collect();
    places.sort_by_key(|(_, place)| *place);
    for (path, place) in places {
        let Place::Line { line, .. } = place else { continue };
        let words: &mut Words = words.entry(plain(path)).or_default();
        if words.description.is_empty() {
            words.description = comment_above(&lines, *line);
            words.example = value_at(&values, path).cloned();
        }
    }
    words
}

/// The comment lines that end right above `line`, which counts from 1.
fn comment_above(lines: &[&str], line: usize) -> String {
    let above = lines[..line - 1].iter().rev().map_while(|line| line.trim().strip_prefix('#'));
    let mut comment: Vec<&str> = above.map(str::trim).collect();
    comment.reverse();
    comment.join(" ")
}

fn value_at<'v>(root: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(root, |at, part| match tree::indexed(part) {
        (name, None) => at.get(name),
        (name, Some(index)) => at.get(name)?.get(index),
    })
}

/// The path without the numbers of sections: `service.probe.http`.
fn plain(path: &str) -> String {
    let parts: Vec<&str> = path.split('.').map(|part| tree::indexed(part).0).collect();
    parts.join(".")
}

#[cfg(test)]
mod tests;
