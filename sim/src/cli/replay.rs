//! `replay`: a run again, with all that happened around a moment in words.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use starling_sim::play::Request;
use starling_sim::scenario::{Override, Span};
use starling_sim::trace::Window;

/// Lines shown at once on a terminal.
const LINES_PER_STEP: usize = 20;

/// Plays a run again and shows what happened around a moment.
#[derive(Args)]
pub(super) struct ReplayArgs {
    /// A scenario of the library, or a file.
    scenario: String,
    /// The run's seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many nodes, whatever the scenario says.
    #[arg(long)]
    nodes: Option<usize>,
    /// As it was given to the run.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    overrides: Vec<Override>,
    /// The moment, in virtual seconds from the start; by default that of a failure, else the end.
    #[arg(long, value_name = "SECONDS")]
    at: Option<f64>,
    /// How long before and after it.
    #[arg(long, default_value = "500ms")]
    around: Span,
    /// Only what this node did or was told, as in node-7.
    #[arg(long)]
    node: Option<String>,
}

impl ReplayArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut overrides = self.overrides.clone();
        overrides.extend(self.nodes.map(|nodes| Override { name: "nodes".into(), value: nodes.to_string() }));
        let (_, scenario) = match super::run::read(&self.scenario, &overrides) {
            Ok(read) => read,
            Err(code) => return Ok(code),
        };
        let host = match self.node.as_deref().map(|node| node.strip_prefix("node-").unwrap_or(node).parse()) {
            None => None,
            Some(Ok(host)) => Some(host),
            Some(Err(_)) => {
                eprintln!("--node {}: write a node's name, as in node-7", self.node.unwrap_or_default());
                return Ok(ExitCode::from(super::WRONG_USAGE));
            }
        };
        // The failure's moment is known only afterwards, so without one the last moments are kept.
        let at = Duration::from_secs_f64(self.at.unwrap_or(0.0).clamp(0.0, 1e7));
        let window = match self.at {
            Some(_) => Window { from: at.saturating_sub(self.around.0), until: at + self.around.0, host },
            None => Window { from: Duration::ZERO, until: Duration::MAX, host },
        };
        let request = Request {
            name: self.scenario,
            seed: self.seed,
            again: String::new(),
            window: Some(window),
            ..Request::default()
        };
        let (run, mut lines) = super::measured(scenario, &request, |_| {})?;
        if self.at.is_none() {
            let from = Duration::from_secs_f64(run.virtual_s).saturating_sub(self.around.0 * 2);
            let is_before = |line: &String| {
                line.trim_start().split(' ').next().and_then(|at| at.parse::<f64>().ok())
                    < Some(from.as_secs_f64())
            };
            let first = lines.iter().position(|line| !is_before(line)).unwrap_or(lines.len());
            lines.drain(..first);
        }
        step_through(&lines)?;
        match &run.violation {
            Some(failed) => println!("{:>10.3} s  FAILED: {}", failed.at_s, failed.what),
            None => println!("{:>10.3} s  the run ended well, trace {}", run.virtual_s, run.trace_hash),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// On a terminal a page at a time; else all at once.
fn step_through(lines: &[String]) -> anyhow::Result<()> {
    let is_stepped = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mut answers = std::io::stdin().lock().lines();
    let mut out = std::io::stdout().lock();
    for (at, line) in lines.iter().enumerate() {
        writeln!(out, "{line}")?;
        if is_stepped && at % LINES_PER_STEP == LINES_PER_STEP - 1 {
            write!(out, "-- {} of {}: Enter goes on, q ends --", at + 1, lines.len())?;
            out.flush()?;
            if answers.next().transpose()?.is_none_or(|answer| answer.trim() == "q") {
                break;
            }
        }
    }
    Ok(())
}
