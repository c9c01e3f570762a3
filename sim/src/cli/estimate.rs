//! `starling-sim estimate`: the calculator.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use starling_sim::estimate::{Errors, Estimate as Answer, Figures, Table, estimate};
use starling_sim::model::Percentiles;
use starling_sim::scenario::Span;

use super::mesh::Mesh;
use super::{Output, WRONG_USAGE, print_json};

/// Says at once how fast news spread, when a crash is noticed and what gossip costs.
#[derive(Args, Debug)]
pub(super) struct Estimate {
    #[command(flatten)]
    mesh: Mesh,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Answers and prints.
pub(super) fn run(asked: &Estimate) -> anyhow::Result<ExitCode> {
    let settings = match asked.mesh.settings(Span::default()) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("starling-sim: {error:#}");
            return Ok(ExitCode::from(WRONG_USAGE));
        }
    };
    let table = Table::committed().context("the table of this build cannot be read; build it again")?;
    let answer = estimate(&settings, &table);
    match asked.output {
        Output::Json => print_json(&answer)?,
        Output::Text => print(&asked.mesh, &answer),
    }
    Ok(ExitCode::SUCCESS)
}

fn print(mesh: &Mesh, answer: &Answer) {
    println!("{}", mesh.headline());
    println!("milliseconds                  50 %     90 %     99 %    100 %   nine of ten within");
    if let Some(table) = &answer.table {
        println!("from what was measured nearby");
        print_figures(table, &answer.table_error);
    }
    println!("by the formula alone");
    print_figures(&answer.formula, &answer.formula_error);
    if !answer.stands_on.is_empty() {
        println!("stands on");
    }
    for row in &answer.stands_on {
        let by = match row.by {
            starling_sim::estimate::By::Full => "full simulation",
            starling_sim::estimate::By::Model => "event model",
        };
        println!(
            "  {:>3.0} %  {by}: {} nodes, a round trip of {} ms, loss {} %",
            row.weight * 100.0,
            row.nodes,
            row.rtt_ms,
            row.loss * 100.0
        );
    }
    let model = &answer.model_error;
    if model.rows > 0 {
        println!(
            "the event model against full simulations, {} pairs: a change is known {}",
            model.rows,
            plus_minus(model.known_percent)
        );
    }
    for caution in &answer.cautions {
        println!("caution: {caution}");
    }
}

fn print_figures(figures: &Figures, errors: &Errors) {
    println!("  a change is known       {}   {}", figures.known_ms, plus_minus(errors.known_percent));
    println!("  a crash is suspected    {}   {}", figures.suspect_ms, plus_minus(errors.suspect_percent));
    println!("  a crash ends the lease  {}   {}", figures.expired_ms, plus_minus(errors.expired_percent));
    println!(
        "  each node sends {:.1} messages and {:.1} kB a second, ± {:.1} %",
        figures.messages_per_node_s,
        figures.bytes_per_node_s / 1000.0,
        errors.bytes_percent
    );
}

fn plus_minus(percent: Percentiles) -> String {
    let [p50, p90, p99, p100] = percent.values();
    format!("± {p50:.0} / {p90:.0} / {p99:.0} / {p100:.0} %")
}
