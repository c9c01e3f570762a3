//! `starling-sim model`: the event model, for meshes too large to simulate in full.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use starling_sim::estimate::{By, Figures, Row};
use starling_sim::model::{self, Measured, Percentiles, Settings};
use starling_sim::scenario::Span;

use super::mesh::Mesh;
use super::{Output, WRONG_USAGE, print_json};

/// Plays a simplified gossip of up to 100,000 nodes; measures when everybody knows a change or misses a
/// crashed node.
#[derive(Args, Debug)]
pub(super) struct Model {
    #[command(flatten)]
    mesh: Mesh,
    /// By how much single messages differ, part of the round trip.
    #[arg(long, default_value = "5ms")]
    jitter: Span,
    /// Where chance comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, from --seed on.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    seeds: u16,
    /// Print a row for the table that `estimate` stands on.
    #[arg(long, hide = true)]
    row: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What `-o json` prints.
#[derive(Serialize)]
struct Report {
    nodes: usize,
    seed: u64,
    seeds: u16,
    /// Changes, and crashes, per seed.
    repeats: usize,
    #[serde(flatten)]
    mean: Measured,
    /// What each seed gave for `known_ms`, so that the spread can be seen.
    known_ms_by_seed: Vec<Percentiles>,
    wall_s: f64,
}

/// Runs it and prints what came out.
#[expect(clippy::disallowed_methods, reason = "how long a model takes is the one thing that is not virtual")]
pub(super) fn run(model: &Model) -> anyhow::Result<ExitCode> {
    let settings = match model.mesh.settings(model.jitter) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("starling-sim: {error:#}");
            return Ok(ExitCode::from(WRONG_USAGE));
        }
    };
    let start = std::time::Instant::now();
    let seeds: Vec<u64> = (0..u64::from(model.seeds)).map(|nth| model.seed.wrapping_add(nth)).collect();
    let by_seed = all_seeds(&settings, &seeds);
    let report = Report {
        nodes: settings.nodes,
        seed: model.seed,
        seeds: model.seeds,
        repeats: settings.repeats(),
        mean: Measured::mean(&by_seed),
        known_ms_by_seed: by_seed.iter().map(|it| it.known_ms).collect(),
        wall_s: start.elapsed().as_secs_f64(),
    };
    match model.output {
        _ if model.row => print_json(&row(&settings, &report))?,
        Output::Json => print_json(&report)?,
        Output::Text => print(model, &report),
    }
    Ok(ExitCode::SUCCESS)
}

/// On all cores; what comes out is in the order of the seeds.
fn all_seeds(settings: &Settings, seeds: &[u64]) -> Vec<Measured> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut measured = Vec::with_capacity(seeds.len());
    for batch in seeds.chunks(cores) {
        measured.extend(std::thread::scope(|scope| {
            let play = |seed: &u64| {
                let seed = *seed;
                scope.spawn(move || model::run(settings, seed, settings.repeats()))
            };
            let playing: Vec<_> = batch.iter().map(play).collect();
            let join = |it: std::thread::ScopedJoinHandle<'_, _>| {
                it.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            playing.into_iter().map(join).collect::<Vec<_>>()
        }));
    }
    measured
}

fn row(settings: &Settings, report: &Report) -> Row {
    let mean = &report.mean;
    let figures = Figures {
        known_ms: mean.known_ms,
        suspect_ms: mean.suspect_ms,
        expired_ms: mean.expired_ms,
        messages_per_node_s: mean.messages_per_node_s,
        bytes_per_node_s: mean.bytes_per_node_s,
    };
    Row::new(By::Model, settings, report.seeds.into(), figures)
}

fn print(model: &Model, report: &Report) {
    let (mean, changes) = (&report.mean, usize::from(report.seeds) * report.repeats);
    println!("model: {}", model.mesh.headline());
    println!("  milliseconds, mean of {changes:<6}     50 %     90 %     99 %    100 %");
    println!("  a change is known             {}", mean.known_ms);
    println!("  a renewal is heard            {}", mean.renewal_ms);
    println!("  the newest renewal is so old  {}", mean.renewal_age_ms);
    println!("  a crash is suspected          {}", mean.suspect_ms);
    println!("  a crash ends the lease        {}", mean.expired_ms);
    let (messages, kilobytes) = (mean.messages_per_node_s, mean.bytes_per_node_s / 1000.0);
    println!("  each node sends {messages:.1} messages and {kilobytes:.1} kB a second");
    if report.nodes > model::nodes_max() {
        println!("  repair has room for about {} nodes today; this supposes more", model::nodes_max());
    }
    println!("  {:.1} s", report.wall_s);
}
