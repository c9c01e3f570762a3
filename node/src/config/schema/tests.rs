//! The schema against what the readers do, by another maker's validator.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jsonschema::Validator;

use super::*;
use crate::config::Config;
use crate::config::tests::{VALUES, WRONG, whole_text};

fn validator() -> Validator {
    jsonschema::draft202012::options().should_validate_formats(true).build(&schema()).expect("a schema")
}

fn is_valid(validator: &Validator, text: &str) -> bool {
    let Ok(table) = text.parse::<toml::Table>() else { return false };
    validator.is_valid(&serde_json::to_value(table).expect("JSON"))
}

fn is_accepted(text: &str) -> bool {
    Config::parse(text, Path::new("/etc/starling/starling.toml"), []).is_ok()
}

/// The paths of all properties, without the numbers of sections.
fn properties(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    let schema = schema.get("items").unwrap_or(schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = tree::join(path, name);
        properties(property, &path, found);
        found.insert(path);
    }
}

#[test]
fn every_key_and_section_has_its_words_and_an_example() {
    fn check(schema: &Value, path: &str) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = tree::join(path, name);
            let inner = property.get("items").filter(|items| items.get("properties").is_some());
            let property = inner.unwrap_or(property);
            let described = property["description"].as_str().is_some_and(|text| text.len() > 10);
            assert!(described, "deploy/starling.toml says nothing above {path}");
            assert!(property["title"] == path.as_str(), "{path}");
            let is_section = property.get("properties").is_some();
            assert!(is_section || property["examples"][0] != Value::Null, "{path} has no example");
            assert_eq!(is_section, property["additionalProperties"] == false, "{path}");
            check(property, &path);
        }
    }
    check(&schema(), "");
}

#[test]
fn the_commented_file_has_every_key_and_no_other() {
    let mut known = BTreeSet::new();
    properties(&schema(), "", &mut known);
    let mut sources = Sources::default();
    tree::parse(COMMENTED, &mut sources).expect("TOML");
    let said: BTreeSet<String> = sources.places.keys().map(|path| plain(path)).collect();
    let free = |path: &&String| !path.contains(".tags.");
    let said: BTreeSet<&String> = said.iter().filter(free).collect();
    assert_eq!(said, known.iter().collect());
}

#[test]
fn the_commented_file_shows_the_defaults() {
    let config = Config::parse(COMMENTED, Path::new("starling.toml"), []).unwrap_or_else(|e| panic!("{e}"));
    // Where the default is nothing at all, the file shows something.
    let shows_more = [
        "mesh.seeds",
        "service[0].tags",
        "access_log.format",
        "service[1].protocol",
        "service[2].protocol",
        "outbound[0].tags",
        "upstream[0].tags",
        "upstream[0].policy",
    ];
    for key in config.keys.iter().filter(|key| key.default.is_some()) {
        if !shows_more.contains(&key.path.as_str()) {
            assert_eq!(key.value, key.default, "{}", key.path);
        }
    }
}

/// The configurations that people are shown: the README's, and those in `deploy/`.
fn examples() -> Vec<(String, String)> {
    fn files(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in
            fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path())
        {
            if entry.is_dir() {
                files(&entry, found);
            } else if entry.extension().is_some_and(|extension| extension == "toml") {
                found.push(entry);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    files(&root.join("deploy"), &mut found);
    let read = |path: &Path| fs::read_to_string(path).expect("a text");
    let mut examples: Vec<_> = found.iter().map(|path| (path.display().to_string(), read(path))).collect();
    let readme = read(&root.join("README.md"));
    let blocks = readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    examples.extend(blocks.map(|block| ("README.md".to_owned(), block.to_owned())));
    examples.push(("tests/full.toml".to_owned(), include_str!("../tests/full.toml").to_owned()));
    examples
}

#[test]
fn the_examples_are_valid_and_accepted() {
    let examples = examples();
    let validator = validator();
    assert!(examples.len() >= 4, "{examples:?}");
    for (name, text) in examples {
        let value = serde_json::to_value(text.parse::<toml::Table>().expect(&name)).expect("JSON");
        let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
        assert!(is_accepted(&text), "{name}");
    }
}

#[test]
fn an_editor_never_marks_what_a_node_accepts() {
    const FULL: &str = include_str!("../tests/full.toml");
    let validator = validator();
    for (index, line) in FULL.lines().enumerate() {
        let Some((key, _)) = line.split_once(" = ") else { continue };
        for value in VALUES {
            let mut lines: Vec<String> = FULL.lines().map(str::to_owned).collect();
            lines[index] = format!("{key} = {value}");
            let text = lines.join("\n");
            assert!(
                is_valid(&validator, &text) || !is_accepted(&text),
                "line {}: {key} = {value}",
                index + 1
            );
        }
    }
}

#[test]
fn an_editor_marks_most_of_what_a_node_refuses() {
    let validator = validator();
    // The rest needs company, a clock's arithmetic or a parser of addresses.
    let marked = WRONG.iter().filter(|(text, _, _)| !is_valid(&validator, &whole_text(text))).count();
    assert!(marked * 2 > WRONG.len(), "only {marked} of {} mistakes", WRONG.len());
    for (text, key) in [
        ("[nod]", "a section"),
        ("[node]\nnmae = \"x\"", "a key"),
        ("[limits]\nattempts_max = 11", "a bound"),
        ("[log]\nformat = \"xml\"", "a word"),
        ("[mesh]\nseeds = [\"seed-a\"]", "a pattern in a list"),
        ("[[service]]\nname = \"my web\"\naddress = \"127.0.0.1:80\"", "a pattern"),
        ("[[service]]\nname = \"web\"", "what is missing"),
        ("[node]\nlisten = \"127.0.0.1:99999\"", "a port"),
    ] {
        assert!(!is_valid(&validator, text), "{key}: {text}");
    }
}
