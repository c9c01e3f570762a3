//! Every scenario of the library holds on a small mesh: no check fails, no threshold is broken.

use std::collections::VecDeque;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use starling_sim::scenario::{Scenario, list, load, schema};

/// Small enough for a build without optimisation, large enough for parts and majorities.
const NODES: &str = "12";

/// Scenarios that last for minutes to prove something about minutes are cut here; longer than most leases.
const LONGEST: &str = "longest=60s";

#[test]
fn every_scenario_holds_on_a_small_mesh() {
    let waiting: Mutex<VecDeque<_>> = Mutex::new(list().into());
    let wrong = Mutex::new(Vec::new());
    let work = || {
        while let Some(listed) = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
            let mut program = Command::new(env!("CARGO_BIN_EXE_starling-sim"));
            program.args(["run", listed.name, "--nodes", NODES, "--set", LONGEST, "--seed", "1"]);
            let output = program.output().expect("it runs");
            if !output.status.success() {
                let told = format!(
                    "{}\n{}{}",
                    listed.name,
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
                wrong.lock().unwrap_or_else(PoisonError::into_inner).push(told);
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    let wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn the_library_is_as_it_is_listed() {
    let listed = list();
    assert!(listed.len() >= 20);
    for (at, one) in listed.iter().enumerate() {
        assert!(one.question.ends_with('?') && one.question.len() < 100, "{}", one.name);
        assert!(listed[..at].iter().all(|other| other.name != one.name), "{} is there twice", one.name);
    }
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
    let files = std::fs::read_dir(directory).expect("the scenarios").count();
    assert_eq!(files, listed.len(), "each file is listed");
}

#[test]
fn the_schema_accepts_the_library_and_knows_every_key() {
    let schema = schema();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    for listed in list() {
        let (_, scenario): (String, Scenario) = load(listed.name).expect("right");
        let path = format!("{}/scenarios/{}.toml", env!("CARGO_MANIFEST_DIR"), listed.name);
        let text = std::fs::read_to_string(path).expect("a file");
        let written: toml::Table = text.parse().expect("TOML");
        let written = serde_json::to_value(written).expect("plain data");
        let errors: Vec<String> = validator.iter_errors(&written).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", listed.name);
        assert!(!scenario.question.is_empty());
    }
    let colour: Value = serde_json::json!({ "question": "?", "mesh": { "colour": "red" } });
    assert!(!validator.is_valid(&colour), "unknown keys are mistakes");
}
