//! The page and the files of plots: complete, well formed, nothing from elsewhere, no text unescaped.
//! They lie in the target directory afterwards, to be looked at.

mod synthetic;

use std::fs;
use std::path::Path;

use starling_sim::report::Report;
use starling_sim::report::page::{page, plots, sweep_page, sweep_plots};

fn keep(name: &str, content: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    fs::create_dir_all(&folder).expect("the target directory can be written");
    fs::write(folder.join(name), content).expect("the target directory can be written");
}

/// Every element that opens closes, in order; HTML's few that never close are known.
fn assert_well_formed(name: &str, markup: &str) {
    let mut open = Vec::new();
    let without_style: String = markup
        .split("<style>")
        .enumerate()
        .map(|(at, part)| if at == 0 { part } else { part.split_once("</style>").expect("a style ends").1 })
        .collect();
    for tag in without_style.split('<').skip(1) {
        let (tag, text) = tag.split_once('>').unwrap_or_else(|| panic!("{name}: <{tag} does not end"));
        assert!(!text.contains('>'), "{name}: a bare > in {text}");
        let element = tag.trim_start_matches('/').split([' ', '\n']).next().unwrap_or_default();
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "{name}");
        } else if !tag.ends_with('/') && !matches!(element, "!doctype" | "meta") {
            open.push(element);
        }
    }
    assert!(open.is_empty(), "{name}: {open:?} stay open");
}

fn assert_self_contained(name: &str, markup: &str) {
    let named = markup.replace("http://www.w3.org/2000/svg", "");
    for foreign in ["http://", "https://", "<script", "src=", "@import", "NaN", "inf\"", "<b>\n", "flaps <b>"]
    {
        assert!(!named.contains(foreign), "{name}: {foreign}");
    }
}

fn check(name: &str, markup: &str) {
    keep(name, markup);
    assert_well_formed(name, markup);
    assert_self_contained(name, markup);
}

#[test]
fn the_page_shows_everything_and_needs_nothing() {
    let report = synthetic::report(50, 8, 1.0);
    let html = page(&report);
    check("page.html", &html);
    for title in
        ["How fast a change becomes known", "Who is up", "What the mesh sends", "Who knows what when"]
    {
        assert!(html.contains(title), "{title}");
    }
    keep(
        "report.json",
        &serde_json::to_string(&report.clone().without_samples()).expect("a report is plain data"),
    );
    keep("table.txt", &report.to_string());
    let plots = plots(&report);
    assert_eq!(plots.len(), 6);
    for (name, svg) in plots {
        check(&name, &svg);
    }
}

#[test]
fn a_page_about_hundreds_of_nodes_is_no_burden() {
    let html = page(&synthetic::report(500, 1, 1.0));
    check("page-500.html", &html);
    assert!(html.len() < 3_000_000, "{} bytes", html.len());
}

#[test]
fn a_failed_check_comes_first_with_its_history_and_its_replay() {
    let mut runs: Vec<_> = (1..4).map(|seed| synthetic::run(seed, 50, 1.0)).collect();
    runs[1].violation = Some(synthetic::failed(2));
    runs[1].checks.failed = 1;
    let expect = [("left_ms_p99".to_owned(), 100.0)].into();
    let report = Report::of("<&>", "\"Why?\" </title>", 50, synthetic::INTERVAL, runs, &expect);
    let html = page(&report);
    check("page-failed.html", &html);
    let at = |text: &str| html.find(text).unwrap_or_else(|| panic!("no {text}"));
    assert!(
        at("A check failed") < at("--seed 2 --nodes 50") && at("--seed 2 --nodes 50") < at("class=\"tiles\"")
    );
    assert!(html.contains("&lt;script&gt;") && html.contains("With seed 2"));
    let table = report.to_string();
    keep("table-failed.txt", &table);
    assert!(table.trim_end().ends_with("starling-sim run partition-two-way --seed 2 --nodes 50"), "{table}");
    assert!(table.contains("FAILED"), "{table}");
}

#[test]
fn a_report_of_nothing_has_a_page_too() {
    let report = Report::of("empty", "", 0, synthetic::INTERVAL, Vec::new(), &[].into());
    check("page-empty.html", &page(&report));
    assert!(!report.to_string().is_empty());
}

#[test]
fn a_sweep_shows_what_grows_with_its_parameter() {
    let of = |nodes: usize| (nodes.to_string(), synthetic::report(nodes, 3, 1.0));
    let reports: Vec<_> = [10, 20, 50, 100, 200].map(of).into();
    check("sweep.html", &sweep_page("nodes", &reports));
    let plots = sweep_plots("nodes", &reports);
    assert_eq!(plots.len(), 5);
    for (name, svg) in plots {
        check(&name, &svg);
    }
    let named: Vec<_> = ["lan", "<wan>"].map(|name| (name.to_owned(), synthetic::report(20, 2, 1.0))).into();
    check("sweep-named.html", &sweep_page("link", &named));
}
