//! The event model against the full simulation, small enough for every run of the tests. What it is
//! held to at 200 nodes, and further, is in the table that `estimate` stands on.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use starling_gossip::watching::UNANSWERED_AFTER;
use starling_sim::model::{self, Measured, Path, Percentiles, Settings};

const NODES: usize = 30;

/// Medians of single changes differ by a sixth, and the full simulation counts whole milliseconds, which
/// makes each message half of one later.
const TOLERANCE: f64 = 0.2;

/// Of three crashes; most of the time until they are suspected is the watchers' patience.
const SUSPECT_TOLERANCE: f64 = 0.15;

/// Of the messages, which chance hardly touches. Another peer in each round would be a third more.
const MESSAGES_TOLERANCE: f64 = 0.1;

/// Of bytes, which depend on when connections are made.
const BYTES_TOLERANCE: f64 = 0.25;

/// As the scenario `converge` has it: 20 ms, and up to 5 on top.
fn settings() -> Settings {
    Settings {
        nodes: NODES,
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
    let model = model::run(&settings(), 1, 50);
    for (pointer, known) in [("/known_ms/p50", model.known_ms.p50), ("/known_ms/p90", model.known_ms.p90)] {
        assert_near(pointer, known, number(&full, pointer), TOLERANCE);
    }
    let suspect = "/took_ms/suspect/p50";
    assert_near(suspect, model.suspect_ms.p50, number(&full, suspect), SUSPECT_TOLERANCE);
    let steady = full["traffic"]["steady"].as_object().expect("kinds of messages");
    let messages: f64 = steady.values().map(|rate| number(rate, "/messages")).sum();
    assert_near("messages", model.messages_per_node_s, messages, MESSAGES_TOLERANCE);
    assert_near("bytes", model.bytes_per_node_s, number(&full, "/bytes_per_node_s"), BYTES_TOLERANCE);
}

#[test]
fn a_seed_replays_its_model_and_no_other() {
    let run = |seed| model::run(&settings(), seed, 2);
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn ten_thousand_nodes_take_their_time_and_no_more() {
    let settings = Settings { nodes: 10_000, renew: Duration::from_secs(10), ..settings() };
    let large = model::run(&settings, 1, 2);
    let small = model::run(&Settings { nodes: 1_000, ..settings }, 1, 2);
    let is_ordered = |it: &Percentiles| it.p50 <= it.p90 && it.p90 <= it.p99 && it.p99 <= it.p100;
    for Measured { known_ms, renewal_ms, suspect_ms, expired_ms, .. } in [&large, &small] {
        assert!([known_ms, renewal_ms, suspect_ms, expired_ms].into_iter().all(is_ordered), "{large:?}");
    }
    // Ten times the nodes are a few tellings more.
    let slower = large.known_ms.p50 / small.known_ms.p50;
    assert!((1.1..1.6).contains(&slower), "{slower} times slower");
    for Measured { suspect_ms, expired_ms, .. } in [&large, &small] {
        let patience = UNANSWERED_AFTER.as_secs_f64() * 1000.0;
        assert!((patience..patience + 2000.0).contains(&suspect_ms.p50), "{suspect_ms}");
        // The last renewal was heard between the crash and as long before as renewals are apart.
        assert!((19_000.0..35_000.0).contains(&expired_ms.p50), "{expired_ms}");
    }
}

#[test]
fn only_renewals_cost_more_in_a_larger_mesh() {
    let bytes = |nodes: usize, renew: u64| {
        let renew = Duration::from_secs(renew);
        let settings = Settings { nodes, renew, lease: renew * 4, ..settings() };
        model::calm(&settings).bytes
    };
    let (small, large) = (bytes(500, 30), bytes(1000, 30));
    // Fifty bytes, three times in all, for five hundred more.
    assert!((2500.0..3500.0).contains(&(large - small)), "{small} {large}");
    assert!(bytes(1000, 60) < large && bytes(500, 30) < 8000.0 && bytes(100, 30) < 4000.0);
}

#[test]
fn losses_make_news_late_and_lose_none() {
    let with_loss = |loss| {
        let path = Path { loss, ..settings().path };
        model::run(&Settings { path, ..settings() }, 1, 50).known_ms.p90
    };
    let (none, some, many) = (with_loss(0.0), with_loss(0.05), with_loss(0.2));
    assert!(none < some && some < many && many < none * 5.0, "{none} {some} {many}");
}
