//! What the product costs and how quick it is, on real processes: the program of `tests/figures`.
//!
//! | module | measures |
//! |---|---|
//! | [`idle`] | memory, processor time and gossip of nodes that nobody calls |
//! | [`change`] | from a registration until other nodes know it |
//! | [`join`] | from a node's start until a first call is answered |
//! | [`crash`] | from a SIGKILL until callers have gone elsewhere, and until others show a suspect |
//! | [`serf`] | the same of Serf, where it has the same and is installed |
//!
//! [`mesh`] is what they are done to: one mesh on loopback, every node with a certificate, a workload that it
//! probes, and its defaults. Nodes log gossip at the level `debug`, which is how their knowledge is
//! read: nobody is asked while something is measured. Unlike `tests/truth`, there is no distance between
//! nodes: what is measured is what the machine makes of it, so the run says how busy that was.
//!
//! Exits with 1 if a figure is worse than its threshold.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser as _;
use starling_gossip::clock::Clock;

use figure::{Figure, Unit, quantile};
use mesh::{Plan, Stage};
use report::{Machine, Report};

mod change;
mod crash;
mod figure;
mod idle;
mod join;
mod mesh;
mod report;
mod serf;

/// How often the machine is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// More are measured in the simulator.
const NODES_MAX: i64 = 200;

/// Measures real nodes, and Serf beside them if it is installed.
#[derive(clap::Parser)]
#[command(name = "tests/figures")]
struct Options {
    /// Nodes in all.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(..=NODES_MAX))]
    nodes: u16,
    /// Fewer and shorter measures: a minute and a half instead of four.
    #[arg(long)]
    quick: bool,
    /// The `starling` to measure; what the container image holds if it is not said.
    #[arg(long, value_name = "FILE")]
    program: PathBuf,
    /// For people, or for programs.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let plan = match Plan::new(options.nodes.into(), options.quick) {
        Ok(plan) => plan,
        Err(least) => {
            eprintln!(
                "--nodes: at least {least}, for nodes that call, crash and take over are different ones"
            );
            return ExitCode::from(2);
        }
    };
    let program = options.program;
    if !program.is_file() {
        eprintln!("--program: {} is no file", program.display());
        return ExitCode::from(2);
    }
    // One thread: children end with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let report = runtime.block_on(measure(plan, program));
    match options.output {
        Output::Table => print!("{report}"),
        Output::Json => println!("{:#}", report.json()),
    }
    ExitCode::from(u8::from(!report.is_met()))
}

async fn measure(plan: Plan, program: PathBuf) -> Report {
    let lateness = Arc::<Mutex<Vec<f64>>>::default();
    let looking = tokio::spawn(look_at_machine(lateness.clone()));
    let (began, load_before) = (Clock::System.now(), load_average());
    let mut stage = Stage::start(plan, program.clone()).await;
    let mut figures = idle::run(&stage).await;
    figures.extend(change::run(&stage).await);
    figures.extend(join::run(&stage).await);
    figures.extend(crash::run(&mut stage).await);
    figures.push(Figure::one(
        "suspicions of nodes that live",
        "all",
        Unit::Count,
        stage.false_suspicions() as f64,
    ));
    let plan = stage.end().await;
    let serf = serf::run(&plan).await;
    looking.abort();
    let lateness = lateness.lock().expect("nobody panicked");
    Report {
        program,
        plan,
        figures,
        serf,
        machine: Machine {
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            load_average: [load_before, load_average()],
            late_millis: [0.5, 0.99, 1.0].map(|share| quantile(&lateness, share)),
        },
        took: Clock::System.now() - began,
    }
}

/// Notes by how many milliseconds timers are late: what everything here has to wait for besides.
async fn look_at_machine(lateness: Arc<Mutex<Vec<f64>>>) {
    loop {
        let due = Clock::System.now() + LOOK_PERIOD;
        tokio::time::sleep_until(due).await;
        let late = (Clock::System.now() - due).as_secs_f64() * 1000.0;
        lateness.lock().expect("nobody panicked").push(late);
    }
}

/// Processes that ran or wanted to, in the mean of the last minute.
fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}
