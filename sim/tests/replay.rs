//! The program itself: the same seed is the same run, and every run is safe and converges.
//!
//! One process repeats one run, so each run here is a process.

use std::process::{Command, Output};

use serde_json::Value;

const RENEW_MS: f64 = 2_000.0;
const LEASE_MS: f64 = 12_000.0;

fn starling_sim(arguments: &str) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_starling-sim"));
    program.arg("run").args(arguments.split_whitespace()).output().expect("it runs")
}

/// The report of a run that must succeed, without what differs by nature.
fn report(arguments: &str) -> Value {
    let output = starling_sim(&format!("{arguments} --lease-s 12 --renew-s 2 -o json"));
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    let mut report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let wall = report.as_object_mut().and_then(|report| report.remove("wall_s"));
    assert!(wall.is_some_and(|wall| wall.as_f64() > Some(0.0)));
    report
}

fn number(report: &Value, pointer: &str) -> f64 {
    report.pointer(pointer).and_then(Value::as_f64).expect(pointer)
}

#[test]
fn a_seed_replays_its_run_and_no_other() {
    let first = report("--nodes 12 --seed 7 --jitter-ms 30 --loss 0.05");
    assert_eq!(first, report("--nodes 12 --seed 7 --jitter-ms 30 --loss 0.05"));
    let other = report("--nodes 12 --seed 8 --jitter-ms 30 --loss 0.05");
    assert_ne!(first["trace_hash"], other["trace_hash"]);
    assert_ne!(first["known_ms"], other["known_ms"]);
    assert_eq!(
        (&first["scenario"], &first["seed"], &first["nodes"]),
        (&"converge".into(), &7.into(), &12.into())
    );
}

#[test]
fn news_and_crashes_are_known_in_time() {
    let report = report("--nodes 20 --seed 3");
    assert!(number(&report, "/converged_s") < 10.0, "{report}");
    assert!(number(&report, "/known_ms/p100") < 5_000.0, "{report}");
    // The last renewal is up to a period older than the crash, and takes its time to be heard.
    for (seen, due) in [("suspect_ms", RENEW_MS * 4.0), ("expired_ms", LEASE_MS)] {
        assert!(number(&report, &format!("/{seen}/p50")) >= due - RENEW_MS, "{report}");
        assert!(number(&report, &format!("/{seen}/p100")) <= due + 5_000.0, "{report}");
    }
    assert!(number(&report, "/bytes_per_node_s") > 0.0 && number(&report, "/virtual_s") > 12.0);
}

#[test]
fn a_lossy_network_is_slower_and_still_safe() {
    for seed in 1..4 {
        let report = report(&format!("--nodes 10 --seed {seed} --loss 0.3 --jitter-ms 200"));
        assert!(number(&report, "/known_ms/p100") > 0.0, "{report}");
    }
}

#[test]
fn wrong_arguments_are_answered_before_anything_runs() {
    for arguments in ["--loss 2", "--nodes 2", "--lease-s 5 --renew-s 5", "--seed x"] {
        let output = starling_sim(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments}");
    }
}
