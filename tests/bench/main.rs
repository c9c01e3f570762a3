//! Sidecar pairs side by side: the program of `tests/bench/run`.
//!
//! | module | what it is |
//! |---|---|
//! | [`ground`] | the directory, certificates, and the application behind all pairs |
//! | [`peers`] | how other makers' pairs are configured |
//! | [`pair`] | a pair: how it is started, what it costs, how it ends |
//! | [`load`] | other makers' load generators, and what they say |
//! | [`pace`] | requests at a fixed rate, whoever is slow (open loop) |
//! | [`table`] | medians, ratios and verdicts |
//!
//! A pair is measured by one line of the table after the other, and then the next pair is; so that minutes in which
//! the machine is slow do not meet one line of all. Ratios within a round are what counts.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use ground::Ground;
use pair::Pair;
use table::{Line, Measured, Table};

mod ground;
mod load;
mod pace;
mod pair;
mod peers;
mod table;

/// Measures pairs of sidecars in turn.
#[derive(clap::Parser)]
#[command(name = "tests/bench/run")]
struct Options {
    /// Times that each pair has its turn; shown are medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each line is measured.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Which of direct, haproxy, haproxy-h2, nginx, envoy; all that are installed by default.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Which lines of the table; all by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    lines: Vec<Line>,
    /// Another pair, as `tests/bench/pair` prints it.
    #[arg(long, value_name = "NAME|http=PORT|tcp=PORT|h2=PORT|A=COMMAND|B=COMMAND")]
    add: Vec<String>,
    /// Envoy's program.
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
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
    // One thread: the load generators have the other processors.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match runtime.block_on(measure(&options)) {
        Ok(table) => {
            match options.output {
                Output::Table => print!("{table}"),
                Output::Json => println!("{:#}", table.json()),
            }
            ExitCode::from(u8::from(!table.is_met()))
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(2)
        }
    }
}

async fn measure(options: &Options) -> Result<Table, String> {
    load::check_installed()?;
    let ground = Ground::lay().await?;
    let mut pairs = peers::installed(&ground, options.envoy.as_deref());
    if let Some(missing) = options.peers.iter().find(|name| pairs.iter().all(|pair| pair.name != **name)) {
        return Err(format!("--peers: {missing} is not known here, or not installed"));
    }
    if !options.peers.is_empty() {
        pairs.retain(|pair| options.peers.contains(&pair.name));
    }
    for added in &options.add {
        pairs.push(Pair::parse(added)?);
    }
    let lines = if options.lines.is_empty() { Line::ALL.to_vec() } else { options.lines.clone() };
    let mut table = Table::new(&pairs, &lines);
    for round in 1..=options.rounds {
        for pair in &pairs {
            say(&format!("round {round} of {}: {}", options.rounds, pair.name));
            let running = pair.start(&ground).await?;
            for line in &lines {
                let Some(port) = pair.port(line.protocol()) else { continue };
                let measure =
                    load::measure(*line, port, Duration::from_secs(options.seconds), &running).await?;
                table.add(Measured { pair: pair.name.clone(), line: *line, measure });
            }
            running.end().await;
        }
    }
    Ok(table)
}

/// Progress goes to standard error, the result to standard output.
fn say(line: &str) {
    eprintln!("{line}");
}
