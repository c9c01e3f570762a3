//! Runs as processes: one process repeats one run, so several seeds are several processes, as many at
//! once as there are processors.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _};
use std::num::NonZero;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use starling_sim::report::Run;

/// One run that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// A scenario of the library, or a file.
    pub(super) scenario: String,
    pub(super) seed: u64,
    /// As on the command line.
    pub(super) overrides: Vec<String>,
    pub(super) pictures: bool,
}

/// What a run's process says, a line each.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// So much of it is over, 0 to 1.
    Progress(f64),
    /// It is over.
    Run(Box<Run>),
}

/// Parts of a whole run that the bar counts.
const PARTS: f64 = 100.0;

/// Runs all of `jobs`; the results are in their order.
pub(super) fn run_all(jobs: Vec<Job>) -> anyhow::Result<Vec<Run>> {
    let bar =
        ProgressBar::with_draw_target(Some(jobs.len() as u64 * PARTS as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} %  {msg}  {elapsed}, about {eta} to go");
    bar.set_style(style.context("a template")?);
    let count = jobs.len();
    let waiting: Mutex<VecDeque<(usize, Job)>> = Mutex::new(jobs.into_iter().enumerate().collect());
    let done: Mutex<Vec<Option<Run>>> = Mutex::new((0..count).map(|_| None).collect());
    let failed: Mutex<Option<anyhow::Error>> = Mutex::new(None);
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get).min(count.max(1));
    let work = || {
        while let Some((at, job)) = lock(&waiting).pop_front() {
            bar.set_message(format!("{} seed {}", job.scenario, job.seed));
            match run_one(&job, &bar) {
                Ok(run) => lock(&done)[at] = Some(run),
                Err(error) => {
                    lock(&waiting).clear();
                    *lock(&failed) = Some(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    bar.finish_and_clear();
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(lock(&done).drain(..).flatten().collect()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run_one(job: &Job, bar: &ProgressBar) -> anyhow::Result<Run> {
    let program = std::env::current_exe().context("this program's own file")?;
    let mut command = Command::new(program);
    command.args(["one", job.scenario.as_str(), "--seed", &job.seed.to_string()]);
    command.args(job.overrides.iter().flat_map(|it| ["--set", it.as_str()]));
    if job.pictures {
        command.arg("--pictures");
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().context("its output is piped")?).lines();
    let (mut result, mut shown) = (None, 0);
    for line in lines {
        match serde_json::from_str(&line?).context("a line of a run's process")? {
            Line::Progress(part) => {
                let part = (part * PARTS) as u64;
                bar.inc(part.saturating_sub(shown));
                shown = shown.max(part);
            }
            Line::Run(run) => result = Some(*run),
        }
    }
    bar.inc((PARTS as u64).saturating_sub(shown));
    let mut complaint = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut complaint)?;
    }
    let status = child.wait()?;
    match result {
        Some(run) if status.success() => Ok(run),
        _ => {
            let again = job.overrides.iter().map(|it| format!(" --set {it}")).collect::<String>();
            bail!(
                "the run ended with {status}: {}\nrepeat it with: starling-sim run {} --seed {}{again}",
                complaint.trim(),
                job.scenario,
                job.seed
            )
        }
    }
}
