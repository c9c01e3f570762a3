//! The program itself: the same seed is the same run, a run is safe and converges, and whatever is asked
//! wrongly is answered before anything runs.

use std::process::{Command, Output};

use serde_json::Value;

fn starling_sim(arguments: &str) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_starling-sim"));
    program.args(arguments.split_whitespace()).output().expect("it runs")
}

/// The report of a run that must succeed, without what differs by nature.
fn report(arguments: &str) -> Value {
    let output = starling_sim(&format!("run {arguments} -o json"));
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    let mut report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    forget_real_time(&mut report);
    report
}

fn forget_real_time(report: &mut Value) {
    for name in ["wall_s", "memory_mib"] {
        let taken = report.as_object_mut().and_then(|it| it.remove(name));
        assert!(taken.is_some_and(|it| it.as_f64() >= Some(0.0)), "{name}");
    }
    report.get_mut("runs").and_then(Value::as_array_mut).into_iter().flatten().for_each(forget_real_time);
}

fn number(report: &Value, pointer: &str) -> f64 {
    report.pointer(pointer).and_then(Value::as_f64).expect(pointer)
}

#[test]
fn a_seed_replays_its_run_and_no_other() {
    let asked = "converge --nodes 10 --set loss=0.05 --set jitter=30ms";
    let first = report(&format!("{asked} --seed 7 --seeds 2"));
    assert_eq!(first, report(&format!("{asked} --seed 7 --seeds 2")));
    let hash = |run: &str| first.pointer(&format!("/runs/{run}/trace_hash")).cloned().expect("a hash");
    assert_ne!(hash("0"), hash("1"));
    let alone = report(&format!("{asked} --seed 8"));
    assert_eq!(alone["trace_hash"], hash("1"), "together with others or alone");
    assert_eq!(
        (&first["scenario"], &first["seed"], &first["nodes"]),
        (&"converge".into(), &7.into(), &10.into())
    );
}

#[test]
fn news_and_crashes_are_known_in_time() {
    let report = report("converge --nodes 20 --seed 3");
    assert!(number(&report, "/converged_s") < 10.0, "{report}");
    assert!(number(&report, "/known_ms/p100") < 5_000.0, "{report}");
    // Watchers ask every two seconds, and again for a little longer than two before they speak. The last
    // renewal, of every five seconds, is up to a period older than the crash, and takes its time to be heard.
    for (seen, from, until) in [("suspect", 2_000.0, 6_000.0), ("expired", 25_000.0, 35_000.0)] {
        assert!(number(&report, &format!("/took_ms/{seen}/p50")) >= from, "{report}");
        assert!(number(&report, &format!("/took_ms/{seen}/p100")) <= until, "{report}");
    }
    assert!(number(&report, "/bytes_per_node_s") > 0.0 && number(&report, "/virtual_s") > 30.0);
}

#[test]
fn wrong_arguments_are_answered_before_anything_runs() {
    for arguments in [
        "run --set loss=2",
        "run --nodes 1",
        "run --set lease=5s",
        "run --seed x",
        "run no-such-scenario",
        "run --sweep nodes=5,x",
        "run --set colour=red",
        "replay converge --node seven",
        "show nothing",
    ] {
        let output = starling_sim(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments}");
    }
}

#[test]
fn all_mistakes_of_a_scenario_are_told_at_once_with_their_lines() {
    let file = std::env::temp_dir().join(format!("starling-sim-mistakes-{}.toml", std::process::id()));
    let text = "question = \"?\"\ncolour = 1\n[mesh]\nlease = \"5 parsecs\"\n[[event]]\nat = \"1s\"\ndo = \"dance\"\n\
                [[event]]\nat = \"1s\"\ndo = \"pause\"\n[expect]\nknown_ms_p98 = 1\n";
    std::fs::write(&file, text).expect("written");
    let output = starling_sim(&format!("check {}", file.display()));
    std::fs::remove_file(&file).expect("removed");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    for part in [":2: colour", ":4: mesh", ":7: event 1", ":8: event 2: `pause` needs `for`", "known_ms_p98"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn a_replay_shows_what_happened_around_a_moment() {
    let output = starling_sim("replay converge --nodes 5 --at 1.0 --around 100ms --node node-2");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && told.contains("node-2 -> node-"), "{told}");
    let foreign = |line: &&str| line.contains("node-") && !line.contains("node-2");
    assert_eq!(told.lines().find(foreign), None, "only what concerns it");
}
