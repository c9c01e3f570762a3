//! The calculator: what it says of meshes that were measured, and that it says where it knows nothing.

use std::process::{Command, Output};

use serde_json::Value;

fn estimate(arguments: &str) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_starling-sim"));
    program.arg("estimate").args(arguments.split_whitespace()).output().expect("it runs")
}

fn answer(arguments: &str) -> Value {
    let output = estimate(&format!("{arguments} -o json"));
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn number(answer: &Value, pointer: &str) -> f64 {
    answer.pointer(pointer).and_then(Value::as_f64).expect(pointer)
}

#[test]
fn errors_are_stated_and_small() {
    let answer = answer("--nodes 200 --rtt 45ms");
    for (who, most) in [("formula_error", 20.0), ("table_error", 15.0), ("model_error", 15.0)] {
        let rows = number(&answer, &format!("/{who}/rows"));
        assert!(rows >= 5.0, "{who} of {rows} rows proves nothing");
        let off = number(&answer, &format!("/{who}/known_percent/p50"));
        assert!(off > 0.0 && off < most, "{who}: {off} %");
    }
    let weights = answer["stands_on"].as_array().expect("rows").iter().map(|row| number(row, "/weight"));
    assert!((weights.sum::<f64>() - 1.0).abs() < 1e-6);
    // Formula and table may differ, but not by more than they admit together.
    let (formula, table) = (number(&answer, "/formula/known_ms/p50"), number(&answer, "/table/known_ms/p50"));
    assert!((formula / table - 1.0).abs() < 0.35, "{formula} {table}");
}

#[test]
fn a_lease_is_waited_for_exactly() {
    let (short, long) = (answer("--nodes 200 --lease 60s"), answer("--nodes 200 --lease 150s"));
    for who in ["formula", "table"] {
        let of = |answer: &Value| number(answer, &format!("/{who}/expired_ms/p50"));
        assert!((of(&long) - of(&short) - 90_000.0).abs() < 1.0, "{who}");
    }
}

#[test]
fn beyond_what_was_measured_only_the_formula_speaks() {
    let inside = answer("--nodes 300 --rtt 45ms --loss 0.01");
    assert!(inside["table"].is_object(), "{inside}");
    let outside = answer("--nodes 60000 --rtt 45ms");
    assert!(outside["table"].is_null() && outside["formula"].is_object(), "{outside}");
    assert_eq!(outside["stands_on"].as_array().map(Vec::len), Some(0));
    let cautions = outside["cautions"].to_string();
    assert!(cautions.contains("nobody measured") && cautions.contains("repair has room"), "{cautions}");
}

#[test]
fn nonsense_is_refused_with_what_would_be_right() {
    let wrong = [
        ("--nodes 2", "--nodes must be"),
        ("--nodes 200 --loss 0.9", "--loss is a share"),
        ("--nodes 200 --lease 5s", "--lease must be"),
        ("--nodes 200 --renew 0s", "--renew"),
        ("--nodes 200 --rtt soon", "\"500ms\""),
    ];
    for (arguments, said) in wrong {
        let output = estimate(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments}: {error}");
        assert!(error.contains(said), "{arguments}: {error}");
    }
}
