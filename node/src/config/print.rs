//! A configuration written down again: as TOML that reads back the same, or as JSON.
//!
//! Not the file as it was: comments and order are the author's, and stay in the file.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::keys::Key;
use super::mistake::Place;
use super::{Config, tree};

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What the file and the environment give.
    Given,
    /// Every key, as the node would run with it.
    Effective,
}

/// As TOML. What differs from the default says where it comes from.
pub fn to_toml(config: &Config, extent: Extent) -> String {
    let mut text = String::new();
    for (table, keys) in tables(config) {
        let shown: Vec<&Key> = keys.into_iter().filter(|key| extent.shows(key)).collect();
        // A section may count by being there.
        if shown.is_empty() && !config.sources.places.contains_key(table) {
            continue;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = writeln!(text, "{}", header(table));
        for key in shown {
            let (_, name) = split(&key.path);
            let _ = match &key.value {
                Some(value) => writeln!(text, "{name} = {}{}", inline(value), comment(config, key)),
                None => writeln!(text, "# {name} is not set"),
            };
        }
    }
    text
}

/// As JSON: `config` is what the schema describes, `from` says where what is given was said.
pub fn to_json(config: &Config, extent: Extent) -> Value {
    let mut root = Value::Object(Map::new());
    let mut from = Map::new();
    for (table, _) in tables(config) {
        // A section may count by being there.
        if extent == Extent::Effective || config.sources.places.contains_key(table) {
            insert(&mut root, table, json!({}));
        }
    }
    for key in config.keys.iter().filter(|key| extent.shows(key)) {
        if let Some(value) = &key.value {
            insert(&mut root, &key.path, value.clone());
        }
        let place = match config.sources.place(&key.path) {
            Place::Line { line, .. } => json!({ "line": line }),
            Place::Environment(variable) => json!({ "variable": variable }),
            Place::Whole => continue,
        };
        if key.given {
            from.insert(key.path.clone(), place);
        }
    }
    json!({ "file": config.sources.file, "config": root, "from": from })
}

impl Extent {
    fn shows(self, key: &Key) -> bool {
        self == Self::Effective || key.given
    }
}

/// The keys by their tables. A table inside another follows it before the next one begins, as TOML
/// wants it.
fn tables(config: &Config) -> Vec<(&str, Vec<&Key>)> {
    let mut tables: Vec<(&str, Vec<&Key>)> = Vec::new();
    for key in config.keys.iter() {
        let (table, _) = split(&key.path);
        match tables.iter_mut().find(|(path, _)| *path == table) {
            Some((_, keys)) => keys.push(key),
            None => tables.push((table, vec![key])),
        }
    }
    let mut order = BTreeMap::new();
    for (table, _) in &tables {
        let next = order.len();
        order.entry(section(table)).or_insert(next);
    }
    tables.sort_by_key(|(table, _)| order[section(table)]);
    tables
}

/// `service[0].probe.http` is `http` of `service[0].probe`.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

/// The outermost table: `service[0]`.
fn section(table: &str) -> &str {
    table.split('.').next().unwrap_or(table)
}

fn header(table: &str) -> String {
    let is_repeated = table.ends_with(']');
    let parts: Vec<&str> = table.split('.').map(|part| part.split('[').next().unwrap_or(part)).collect();
    let name = parts.join(".");
    if is_repeated { format!("[[{name}]]") } else { format!("[{name}]") }
}

fn inline(value: &Value) -> String {
    toml::Value::try_from(value).map_or_else(|_| value.to_string(), |value| value.to_string())
}

fn comment(config: &Config, key: &Key) -> String {
    if key.value == key.default {
        return String::new();
    }
    match config.sources.place(&key.path) {
        Place::Line { line, .. } if key.given => format!("  # line {line}"),
        Place::Environment(variable) if key.given => format!("  # {variable}"),
        _ => "  # worked out, not given".to_owned(),
    }
}

/// Puts `value` where `path` says, with the objects and lists on the way.
fn insert(root: &mut Value, path: &str, value: Value) {
    let mut at = root;
    for part in path.split('.') {
        let (name, index) = tree::indexed(part);
        let object = at.as_object_mut().expect("a table holds keys");
        at = match index {
            None => object.entry(name).or_insert_with(|| json!({})),
            Some(index) => {
                let list = object.entry(name).or_insert_with(|| json!([]));
                let list = list.as_array_mut().expect("a section that occurs many times");
                if list.len() <= index {
                    list.resize(index + 1, json!({}));
                }
                &mut list[index]
            }
        };
    }
    *at = value;
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const FULL: &str = include_str!("tests/full.toml");
    const FILE: &str = "/etc/starling/starling.toml";

    fn parse(text: &str, variables: &[(&str, &str)]) -> Config {
        let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Config::parse(text, Path::new(FILE), variables)
            .unwrap_or_else(|mistakes| panic!("{mistakes}\n{text}"))
    }

    fn without_comments(text: &str) -> Vec<&str> {
        let lines = text.lines().map(|line| line.split("  # ").next().unwrap_or(line));
        lines.filter(|line| !line.starts_with("# ")).collect()
    }

    #[test]
    fn what_is_printed_reads_back_the_same_and_prints_the_same() {
        let minimal = "[[service]]\nname = \"web\"\naddress = \"127.0.0.1:80\"\n";
        for text in ["", minimal, FULL, "[http_proxy]\n"] {
            for extent in [Extent::Given, Extent::Effective] {
                let config = parse(text, &[]);
                let printed = to_toml(&config, extent);
                let again = parse(&printed, &[]);
                for key in config.keys.iter().filter(|key| key.path != "node.name" || key.given) {
                    assert_eq!(again.keys.value(&key.path), key.value.as_ref(), "{}", key.path);
                }
                assert_eq!(again.services, config.services);
                assert_eq!(again.keys.iter().count(), config.keys.iter().count());
                let printed_again = to_toml(&again, extent);
                assert_eq!(without_comments(&printed_again), without_comments(&printed));
            }
        }
    }

    #[test]
    fn what_differs_from_the_default_says_where_it_was_said() {
        let text = "[node]\nname = \"one\"\nlisten = \"0.0.0.0:7400\"\n[identity]\nkey = \"my.key\"\n\
                    [[service]]\nname = \"web\"\naddress = \"127.0.0.1:80\"\n";
        let variables = [("STARLING_LIMITS__ATTEMPTS_MAX", "2"), ("STARLING_MESH__SEEDS", "a:1, b:2")];
        let config = parse(text, &variables);
        let printed = to_toml(&config, Extent::Effective);
        for line in [
            "name = \"one\"  # line 2",
            "listen = \"0.0.0.0:7400\"",
            "# advertise is not set",
            "drain_timeout = \"30s\"",
            "seeds = [\"a:1\", \"b:2\"]  # STARLING_MESH__SEEDS",
            "certificate = \"/etc/starling/tls.crt\"",
            "key = \"/etc/starling/my.key\"  # line 5",
            "id = \"web\"  # worked out, not given",
            "attempts_max = 2  # STARLING_LIMITS__ATTEMPTS_MAX",
        ] {
            assert!(printed.lines().any(|printed| printed == line), "{line}\nis not in\n{printed}");
        }
        let given = to_toml(&config, Extent::Given);
        assert!(given.contains("attempts_max = 2") && !given.contains("drain_timeout"), "{given}");
    }

    #[test]
    fn json_has_the_files_own_shape() {
        let json = to_json(&parse(FULL, &[("STARLING_NODE__NAME", "seven")]), Extent::Effective);
        assert_eq!(json["config"]["node"]["name"], "seven");
        assert_eq!(json["config"]["service"][1]["address"], "unix:/run/app.sock");
        assert_eq!(json["config"]["service"][0]["probe"]["interval"], "2s");
        assert_eq!(json["config"]["service"][0]["tags"]["track"], "canary");
        assert_eq!(json["from"]["node.name"]["variable"], "STARLING_NODE__NAME");
        assert_eq!(json["from"]["node.listen"]["line"], 4);
        let json = to_json(&parse("[http_proxy]", &[]), Extent::Given);
        assert_eq!(json["config"], json!({ "http_proxy": {} }));
    }
}
