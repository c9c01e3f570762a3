//! `starling-sim compare A.json B.json`: exit code 0 if nothing is worse, 1 if something is, 2 if the
//! files cannot be compared.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Value, json};
use starling_sim::compare::{Comparison, Terms, Verdict, matched, rank, reports};
use starling_sim::report::Report;

/// No side's file may be larger: a report of a hundred seeds has less than one.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// To say how many seeds are enough, up to this many are tried.
const SEEDS_MAX: usize = 100;

/// Says what changed between two reports, and whether it is more than noise.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Before: what `run -o json` printed.
    a: PathBuf,
    /// After: the same scenarios, with as many nodes.
    b: PathBuf,
    /// By what share a figure may get worse: 0.05 is 5 %.
    #[arg(long, default_value_t = 0.05, value_parser = share)]
    tolerance: f64,
    /// How seldom chance alone may call a figure changed: 0.01 is once in a hundred figures.
    #[arg(long, default_value_t = 0.01, value_parser = share)]
    level: f64,
    /// Leave out of the tables what is the same.
    #[arg(long)]
    changed: bool,
    /// How to answer.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// How to answer.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Output {
    /// Tables.
    #[default]
    Text,
    /// One JSON document.
    Json,
}

/// Compares, prints, and gives the exit code.
///
/// # Errors
/// None so far: what cannot be compared is said on standard error, and is exit code 2.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let terms = Terms { level: arguments.level, tolerance: arguments.tolerance };
    let comparisons = match compared(arguments, terms) {
        Ok(comparisons) => comparisons,
        Err(error) => {
            eprintln!("starling-sim: {error:#}");
            return Ok(ExitCode::from(2));
        }
    };
    let worse = comparisons.iter().any(Comparison::is_worse);
    let answer = match arguments.output {
        Output::Text => tables(&comparisons, arguments.changed) + &summary(&comparisons, terms),
        Output::Json => format!("{:#}\n", document(&comparisons, terms)),
    };
    // A reader that stops reading (`| head`) is no failure.
    let _ = io::stdout().write_all(answer.as_bytes());
    Ok(if worse { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn compared(arguments: &Arguments, terms: Terms) -> anyhow::Result<Vec<Comparison>> {
    let (a, b) = (read(&arguments.a)?, read(&arguments.b)?);
    Ok(matched(&a, &b)?.into_iter().map(|(a, b)| Comparison::of(a, b, terms)).collect())
}

fn read(path: &Path) -> anyhow::Result<Vec<Report>> {
    let name = path.display();
    let bytes = fs::metadata(path).with_context(|| format!("cannot read {name}"))?.len();
    anyhow::ensure!(bytes <= FILE_BYTES_MAX, "{name} has {bytes} bytes, which no report has");
    let json = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    reports(&json).with_context(|| format!("{name} is not what `starling-sim run -o json` prints"))
}

fn tables(comparisons: &[Comparison], changed: bool) -> String {
    let table = |one: &Comparison| if changed { format!("{one:#}\n") } else { format!("{one}\n") };
    comparisons.iter().map(table).collect()
}

fn summary(comparisons: &[Comparison], terms: Terms) -> String {
    let count = |wanted: Verdict| {
        comparisons.iter().flat_map(|of| &of.changes).filter(|change| change.verdict == wanted).count()
    };
    let missed: usize = comparisons.iter().map(|of| of.missed.len()).sum();
    let (worse, better, few) =
        (count(Verdict::Worse) + missed, count(Verdict::Better), count(Verdict::TooFewSeeds));
    let mut text = format!("{worse} worse, {better} better, {} unclear\n", count(Verdict::Unclear) + few);
    let tested: usize = comparisons.iter().map(Comparison::tested).sum();
    if tested > 0 {
        text += &format!(
            "Mann-Whitney test of the seeds at a level of {} and a tolerance of {} %: of the {tested} figures \
             tested, chance alone would call about {:.1} changed.\n",
            terms.level,
            100.0 * terms.tolerance,
            terms.level * tested as f64
        );
    }
    if few > 0 {
        text += &format!("To tell more, run at least {} seeds each.\n", seeds_needed(terms.level));
    }
    text
}

fn seeds_needed(level: f64) -> usize {
    (1..SEEDS_MAX).find(|seeds| rank::least_chance(*seeds, *seeds) <= level).unwrap_or(SEEDS_MAX)
}

fn document(comparisons: &[Comparison], terms: Terms) -> Value {
    json!({
        "worse": comparisons.iter().any(Comparison::is_worse),
        "level": terms.level,
        "tolerance": terms.tolerance,
        "test": "mann-whitney",
        "comparisons": comparisons,
    })
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(format!("{text} is no share of 0 to 1")) }
}
