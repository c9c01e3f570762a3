//! The event model against the full simulation, small enough for every run of the tests. What it is
//! held to at 200 nodes, and further, is in the table that `estimate` stands on.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use starling_sim::model::{self, Measured, Path, Percentiles, Settings};

const NODES: usize = 30;

/// Medians of single changes differ by a sixth, and the full simulation counts whole milliseconds, which
/// makes each message half of one later.
const TOLERANCE: f64 = 0.2;

/// Of the time between half and nine of ten, of three crashes.
const SPREAD_TOLERANCE: f64 = 0.3;

/// Of the messages, which chance hardly touches. Another peer in each round would be a third more.
const MESSAGES_TOLERANCE: f64 = 0.05;

/// As the scenario `converge` has it: 20 ms, and up to 5 on top.
fn settings() -> Settings {
    Settings {
        nodes: NODES,
        interval: Duration::from_secs(1),
        path: Path { rtt: Duration::from_millis(45), jitter: Duration::from_millis(5), loss: 0.0 },
        lease: Duration::from_secs(30),
        renew: Duration::from_secs(5),
    }
}

/// Three runs of five changes and a crash.
fn full_runs() -> Value {
    let arguments = ["run", "converge", "--nodes", "30", "--seeds", "3", "-o", "json"];
    let output = Command::new(env!("CARGO_BIN_EXE_starling-sim")).args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn number(report: &Value, pointer: &str) -> f64 {
    report.pointer(pointer).and_then(Value::as_f64).expect(pointer)
}

fn assert_near(what: &str, model: f64, full: f64, tolerance: f64) {
    assert!((model / full - 1.0).abs() < tolerance, "{what}: the model has {model}, full runs {full}");
}

#[test]
fn the_model_says_what_full_runs_say() {
    let full = full_runs();
    let model = model::run(&settings(), 1, 50).expect("a model's end");
    for (pointer, known) in [("/known_ms/p50", model.known_ms.p50), ("/known_ms/p90", model.known_ms.p90)] {
        assert_near(pointer, known, number(&full, pointer), TOLERANCE);
    }
    let steady = full["traffic"]["steady"].as_object().expect("kinds of messages");
    let messages: f64 = steady.values().map(|rate| number(rate, "/messages")).sum();
    assert_near("messages", model.messages_per_node_s, messages, MESSAGES_TOLERANCE);
    assert_near("bytes", model.bytes_per_node_s, number(&full, "/bytes_per_node_s"), MESSAGES_TOLERANCE);
    // How a crash is noticed is a renewal's way through the mesh; when it comes between two is chance.
    let runs = full["runs"].as_array().expect("runs");
    let spread = |run: &Value| number(run, "/took_ms/expired/p90") - number(run, "/took_ms/expired/p50");
    let full_spread = runs.iter().map(spread).sum::<f64>() / runs.len() as f64;
    assert_near("expired", model.expired_ms.p90 - model.expired_ms.p50, full_spread, SPREAD_TOLERANCE);
}

#[test]
fn a_seed_replays_its_model_and_no_other() {
    let run = |seed| model::run(&settings(), seed, 2).expect("a model's end");
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn ten_thousand_nodes_take_their_time_and_no_more() {
    let settings = Settings { nodes: 10_000, ..settings() };
    let large = model::run(&settings, 1, 2).expect("a model's end");
    let small = model::run(&Settings { nodes: 1_000, ..settings }, 1, 2).expect("a model's end");
    let is_ordered = |it: &Percentiles| it.p50 <= it.p90 && it.p90 <= it.p99 && it.p99 <= it.p100;
    for Measured { known_ms, renewal_ms, suspect_ms, expired_ms, .. } in [&large, &small] {
        assert!([known_ms, renewal_ms, suspect_ms, expired_ms].into_iter().all(is_ordered), "{large:?}");
    }
    // Ten times the nodes are a few tellings more, and ten times the bytes.
    let slower = large.known_ms.p50 / small.known_ms.p50;
    assert!((1.1..1.6).contains(&slower), "{slower} times slower");
    assert_near("bytes", large.bytes_per_node_s, small.bytes_per_node_s * 10.0, 0.05);
    // Nobody is suspected before four renewals are missed, the first of which a crash may have cut off.
    assert!(suspects_in_time(&large, &settings) && suspects_in_time(&small, &settings), "{large:?}");
}

fn suspects_in_time(measured: &Measured, settings: &Settings) -> bool {
    let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let due = millis(settings.suspect_after());
    let slack = measured.renewal_ms.p100 + millis(settings.renew);
    (due - millis(settings.renew)..due + slack).contains(&measured.suspect_ms.p50)
        && (measured.expired_ms.p50 - measured.suspect_ms.p50 - (millis(settings.lease) - due)).abs() < 1.0
}

#[test]
fn losses_make_news_late_and_lose_none() {
    let with_loss = |loss| {
        let path = Path { loss, ..settings().path };
        model::run(&Settings { path, ..settings() }, 1, 10).expect("a model's end").known_ms.p50
    };
    let (none, some, many) = (with_loss(0.0), with_loss(0.01), with_loss(0.2));
    assert!(none < some && some < many && many < none * 5.0, "{none} {some} {many}");
}
