//! `starling-sim compare`: its verdicts, its words and its exit codes.

mod synthetic;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use starling_sim::report::Report;

struct Files {
    folder: PathBuf,
}

impl Files {
    /// A folder of a test's own.
    fn of(test: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("compare").join(test);
        fs::create_dir_all(&folder).expect("the target directory can be written");
        Self { folder }
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, content).expect("the target directory can be written");
        path
    }

    fn report(&self, name: &str, report: &Report) -> PathBuf {
        self.write(
            name,
            &serde_json::to_string(&report.clone().without_samples()).expect("a report is plain data"),
        )
    }
}

fn compare(a: &PathBuf, b: &PathBuf, more: &[&str]) -> (i32, String, String) {
    let program = env!("CARGO_BIN_EXE_starling-sim");
    let Output { status, stdout, stderr } =
        Command::new(program).arg("compare").args([a, b]).args(more).output().expect("the program runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code().expect("an exit code"), text(stdout), text(stderr))
}

fn verdicts(json: &str) -> Vec<(String, String)> {
    let json: Value = serde_json::from_str(json).expect("JSON");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let changes = list(&json["comparisons"]).into_iter().flat_map(|of| list(&of["changes"]));
    changes.map(|change| (text(&change["figure"]), text(&change["verdict"]))).collect()
}

#[test]
fn the_same_runs_are_the_same() {
    let files = Files::of("same");
    let a = files.report("a.json", &synthetic::report(20, 6, 1.0));
    let (code, text, _) = compare(&a, &a, &[]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("every event was the same in both") && text.contains("0 worse, 0 better, 0 unclear")
    );
}

#[test]
fn what_takes_longer_is_worse_and_the_other_way_round_better() {
    let files = Files::of("slower");
    let a = files.report("a.json", &synthetic::report(20, 8, 1.0));
    let b = files.report("b.json", &synthetic::report(20, 8, 1.3));
    let (code, json, _) = compare(&a, &b, &["-o", "json"]);
    assert_eq!(code, 1);
    let expired = ("expired_ms_p99".to_owned(), "worse".to_owned());
    assert!(verdicts(&json).contains(&expired), "{json}");
    let (code, text, _) = compare(&a, &b, &[]);
    assert!(code == 1 && text.contains("WORSE") && text.contains("Mann-Whitney"), "{text}");
    let (_, json, _) = compare(&b, &a, &["-o", "json"]);
    assert!(verdicts(&json).contains(&("expired_ms_p99".to_owned(), "better".to_owned())), "{json}");
    let (code, text, _) = compare(&a, &b, &["--tolerance", "0.99"]);
    assert!(code == 0 || text.contains("limit holds in A and not in B"), "{text}");
}

#[test]
fn other_seeds_of_the_same_are_not_worse() {
    let files = Files::of("noise");
    let expect = Default::default();
    let of = |seeds: std::ops::Range<u64>| {
        let runs = seeds.map(|seed| synthetic::run(seed, 20, 1.0)).collect();
        Report::of("noise", "", 20, synthetic::INTERVAL, runs, &expect)
    };
    let a = files.report("a.json", &of(1..11));
    let b = files.report("b.json", &of(101..111));
    let (code, text, _) = compare(&a, &b, &[]);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn with_few_seeds_nothing_is_claimed() {
    let files = Files::of("few");
    let a = files.report("a.json", &Report { thresholds: Vec::new(), ..synthetic::report(20, 2, 1.0) });
    let b = files.report("b.json", &Report { thresholds: Vec::new(), ..synthetic::report(20, 2, 1.5) });
    let (code, text, _) = compare(&a, &b, &[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("too few seeds to tell") && text.contains("run at least 5 seeds each"), "{text}");
}

#[test]
fn a_failed_check_and_a_missed_threshold_are_worse_with_one_seed() {
    let files = Files::of("failed");
    let expect = [("expired_ms_p100".to_owned(), 40_000.0)].into();
    let of = |slower, failed| {
        let mut run = synthetic::run(1, 20, slower);
        run.checks.failed = failed;
        Report::of("one", "", 20, synthetic::INTERVAL, vec![run], &expect)
    };
    let fine = files.report("fine.json", &of(1.0, 0));
    let failed = files.report("failed.json", &of(1.0, 1));
    let slow = files.report("slow.json", &of(2.0, 0));
    assert_eq!(compare(&fine, &failed, &[]).0, 1);
    assert_eq!(compare(&failed, &fine, &[]).0, 0);
    let (code, text, _) = compare(&fine, &slow, &[]);
    assert!(
        code == 1 && text.contains("expired_ms_p100: the scenario's limit holds in A and not in B"),
        "{text}"
    );
}

#[test]
fn a_sweep_is_matched_by_its_nodes_in_any_order() {
    let files = Files::of("sweep");
    let (small, large) = (synthetic::report(10, 5, 1.0), synthetic::report(20, 5, 1.0));
    let array = |reports: [&Report; 2]| {
        serde_json::to_string(&reports.map(|of| of.clone().without_samples()))
            .expect("a report is plain data")
    };
    let a = files.write("a.json", &array([&small, &large]));
    let b = files.write("b.json", &array([&large, &small]));
    let (code, text, _) = compare(&a, &b, &[]);
    assert_eq!((code, text.matches("every event was the same in both").count()), (0, 2), "{text}");
}

#[test]
fn what_cannot_be_compared_is_exit_code_two_and_says_why() {
    let files = Files::of("unmatched");
    let a = files.report("a.json", &synthetic::report(10, 2, 1.0));
    let b = files.report("b.json", &synthetic::report(20, 2, 1.0));
    let broken = files.write("broken.json", "{\"scenario\": 1}");
    let cases = [
        (&a, &b, "partition-two-way with 10 nodes is only in A"),
        (&a, &files.folder.join("none.json"), "cannot read"),
        (&broken, &b, "is not what `starling-sim run -o json` prints"),
    ];
    for (a, b, words) in cases {
        let (code, _, errors) = compare(a, b, &[]);
        assert!(code == 2 && errors.contains(words), "{code} {errors}");
    }
    assert_eq!(compare(&a, &a, &["--tolerance", "7"]).0, 2);
}
