//! The command line of `starling-sim`: what there is to ask, and exit codes: 0 done and well, 1 a check or
//! threshold failed, 2 wrong usage or a wrong scenario.

mod compare;
mod estimate;
mod mesh;
mod model;
mod replay;
mod run;
mod runner;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use starling_sim::play::Request;
use starling_sim::report::Run;
use starling_sim::scenario::{self, Scenario};

/// A run in which nothing comes to pass for so long is stuck: the slowest steps of a thousand nodes take
/// seconds.
const STALLED_AFTER: Duration = Duration::from_secs(120);

/// Wrong usage, or a scenario with mistakes.
const WRONG_USAGE: u8 = 2;

/// Plays Starling's own gossip in virtual time: how fast a mesh converges, what it costs, what breaks it.
#[derive(Parser)]
#[command(name = "starling-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::RunArgs),
    #[command(hide = true)]
    One(run::OneArgs),
    Compare(compare::Arguments),
    Replay(replay::ReplayArgs),
    Estimate(estimate::Estimate),
    Model(model::Model),
    List(ListArgs),
    Check(CheckArgs),
    /// Prints the JSON Schema of scenario files, for editors.
    Schema,
    /// Prints a scenario of the library, to begin one's own with.
    Show {
        /// Its name.
        name: String,
    },
}

/// Shows the scenarios of the library, each with the question it answers.
#[derive(Args)]
struct ListArgs {
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Judges scenario files without playing them: every mistake at once.
#[derive(Args)]
struct CheckArgs {
    /// Files, or scenarios of the library.
    #[arg(required = true)]
    scenarios: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Runs the command line.
pub(crate) fn run() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(arguments) => arguments.run(),
        Command::One(arguments) => arguments.run(),
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Replay(arguments) => arguments.run(),
        Command::Estimate(asked) => estimate::run(&asked),
        Command::Model(model) => model::run(&model),
        Command::List(arguments) => arguments.run(),
        Command::Check(arguments) => Ok(arguments.run()),
        Command::Schema => print_json(&scenario::schema()).map(|()| ExitCode::SUCCESS),
        Command::Show { name } => Ok(show(&name)),
    };
    done.unwrap_or_else(|error| {
        eprintln!("starling-sim: {error:#}");
        ExitCode::FAILURE
    })
}

impl ListArgs {
    fn run(self) -> anyhow::Result<ExitCode> {
        let listed = scenario::list();
        match self.output {
            Output::Json => print_json(&listed)?,
            Output::Text => {
                let width = listed.iter().map(|it| it.name.len()).max().unwrap_or_default();
                listed.iter().for_each(|it| println!("{:width$}  {}", it.name, it.question));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl CheckArgs {
    fn run(self) -> ExitCode {
        let mut are_right = true;
        for name in &self.scenarios {
            match scenario::load(name) {
                Ok((_, scenario)) => println!("{name}: right: {}", scenario.question),
                Err(mistakes) => {
                    are_right = false;
                    eprintln!("{mistakes}");
                }
            }
        }
        if are_right { ExitCode::SUCCESS } else { ExitCode::from(WRONG_USAGE) }
    }
}

fn show(name: &str) -> ExitCode {
    match scenario::LIBRARY.iter().find(|(known, _)| *known == name) {
        Some((_, text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("no scenario of the library is called {name:?}: `starling-sim list` shows them");
            ExitCode::from(WRONG_USAGE)
        }
    }
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    use std::io::Write as _;
    let text = serde_json::to_string(value).context("it is plain data")?;
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

/// Plays with all chance from the seed, and says what it cost in the real world.
#[expect(
    clippy::disallowed_methods,
    reason = "how long a simulation takes is the one thing that is not virtual"
)]
fn measured(
    scenario: Scenario,
    request: &Request,
    progress: impl FnMut(f64) + Send,
) -> anyhow::Result<(Run, Vec<String>)> {
    let start = std::time::Instant::now();
    watch(&request.pulse);
    let (run, lines) = run::play_seeded(scenario, request, progress)?;
    Ok((Run { wall_s: start.elapsed().as_secs_f64(), memory_mib: memory_mib(), ..run }, lines))
}

/// Ends the process when virtual time stands still: something asks to be woken at a moment that has passed,
/// again and again. No check could notice it, because none is ever asked.
fn watch(pulse: &Arc<AtomicU64>) {
    let pulse = Arc::downgrade(pulse);
    std::thread::spawn(move || {
        let mut seen = None;
        while let Some(count) = pulse.upgrade().map(|pulse| pulse.load(Ordering::Relaxed)) {
            if seen == Some(count) {
                eprintln!("virtual time stands still: nothing has come to pass for {STALLED_AFTER:?}");
                std::process::exit(1);
            }
            seen = Some(count);
            std::thread::sleep(STALLED_AFTER);
        }
    });
}

/// The most memory this process ever held; 0 where the system does not say.
fn memory_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib =
        peak.and_then(|rest| rest.trim().strip_suffix("kB")).and_then(|kib| kib.trim().parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}
