//! The `starling-sim` program: arguments, exit codes, and the seeded entropy.

mod entropy;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use starling_sim::converge;
use starling_sim::network::Conditions;
use starling_sim::report::Report;
use starling_sim::world::Settings;

/// Runs the gossip of Starling's nodes in virtual time.
#[derive(Parser)]
#[command(name = "starling-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a mesh, change one node, crash another; measure when everybody knows.
    Run(Run),
}

#[derive(Args)]
struct Run {
    /// How many nodes.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(converge::NODES_MIN as i64..=1000))]
    nodes: u16,
    /// Where all chance comes from; the same seed replays the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Milliseconds that every message takes.
    #[arg(long, default_value_t = 20)]
    latency_ms: u64,
    /// Milliseconds that a message may take on top.
    #[arg(long, default_value_t = 5)]
    jitter_ms: u64,
    /// The share of messages that are lost, 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// Milliseconds between a node's rounds of reconciliation.
    #[arg(long, default_value_t = 1000)]
    interval_ms: u64,
    /// Seconds for which others believe in a silent node.
    #[arg(long, default_value_t = 120)]
    lease_s: u32,
    /// Seconds between a node's renewals of its lease.
    #[arg(long, default_value_t = 5)]
    renew_s: u32,
    /// How to print the report.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    let Command::Run(run) = Cli::parse().command;
    let settings = match run.settings() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("starling-sim: {error:#}");
            return ExitCode::from(2);
        }
    };
    match measure(settings).and_then(|report| print(&report, run.output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("starling-sim: seed {}: {error:#}", run.seed);
            ExitCode::FAILURE
        }
    }
}

impl Run {
    fn settings(&self) -> anyhow::Result<Settings> {
        ensure!((0.0..1.0).contains(&self.loss), "--loss {} is no share of 0 to less than 1", self.loss);
        ensure!(self.interval_ms > 0, "--interval-ms must be more than 0");
        ensure!(
            self.renew_s > 0 && self.lease_s >= 2 * self.renew_s && self.lease_s <= 3600,
            "--lease-s must be at least twice --renew-s, and at most 3600"
        );
        Ok(Settings {
            nodes: self.nodes.into(),
            seed: self.seed,
            conditions: Conditions {
                latency: Duration::from_millis(self.latency_ms),
                jitter: Duration::from_millis(self.jitter_ms),
                loss: self.loss,
            },
            interval: Duration::from_millis(self.interval_ms),
            lease: Duration::from_secs(self.lease_s.into()),
            renew: Duration::from_secs(self.renew_s.into()),
        })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a simulation takes is the one thing that is not virtual"
)]
fn measure(settings: Settings) -> anyhow::Result<Report> {
    let start = std::time::Instant::now();
    let report = entropy::with_seed(settings.seed, || converge::run(settings))?;
    Ok(Report { wall_s: start.elapsed().as_secs_f64(), ..report })
}

fn print(report: &Report, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Text => println!("{report}"),
        Output::Json => println!("{}", serde_json::to_string(report).context("a report is plain data")?),
    }
    Ok(())
}
