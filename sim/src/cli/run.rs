//! `run` and `one`: a scenario over one or several seeds, and one of its processes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Args;

use starling_sim::play::{Request, play};
use starling_sim::report::page::{page, plots, sweep_page, sweep_plots};
use starling_sim::report::{Report, Run};
use starling_sim::scenario::{Override, Scenario, load};

use super::runner::{Job, Line, run_all};
use super::{Output, WRONG_USAGE, print_json};

/// Seeds of one command: more say nothing more.
const SEEDS_MAX: u64 = 1000;

/// Plays a scenario and says what it measured.
#[derive(Args)]
pub(super) struct RunArgs {
    /// A scenario of the library (see `list`), or a file.
    #[arg(default_value = "converge")]
    scenario: String,
    /// Where all chance comes from; the same seed is the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, from --seed on; they run at once, a process each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=SEEDS_MAX))]
    seeds: u64,
    /// How many nodes, whatever the scenario says.
    #[arg(long)]
    nodes: Option<usize>,
    /// Changes a parameter of the scenario, as in loss=0.05 or interval=500ms.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    overrides: Vec<Override>,
    /// Runs it for each of several values, as in nodes=50,100,200,500.
    #[arg(long, value_name = "NAME=VALUE,VALUE...")]
    sweep: Option<Sweep>,
    /// Writes a page with pictures, index.html, and each picture as SVG into this directory.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Puts every measure into the JSON, and not only percentiles.
    #[arg(long)]
    samples: bool,
    /// How to print what was measured.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// One run, for a process that `run` started.
#[derive(Args)]
pub(super) struct OneArgs {
    scenario: String,
    #[arg(long)]
    seed: u64,
    #[arg(long = "set")]
    overrides: Vec<Override>,
    #[arg(long)]
    pictures: bool,
}

/// A parameter and its values.
#[derive(Clone, Debug)]
struct Sweep {
    name: String,
    points: Vec<Override>,
}

impl std::str::FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, values) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?}: write NAME=VALUE,VALUE, as in nodes=50,100"))?;
        let points = values.split(',').map(|value| format!("{name}={value}").parse());
        Ok(Self { name: name.to_owned(), points: points.collect::<Result<_, _>>()? })
    }
}

/// The scenario called `name`, changed by `overrides`. Mistakes are told here.
pub(super) fn read(name: &str, overrides: &[Override]) -> Result<(String, Scenario), ExitCode> {
    let told = |what: &dyn std::fmt::Display| {
        eprintln!("{what}");
        ExitCode::from(WRONG_USAGE)
    };
    let (name, mut scenario) = load(name).map_err(|mistakes| told(&mistakes))?;
    for it in overrides {
        it.apply(&mut scenario).map_err(|mistake| told(&mistake))?;
    }
    Ok((name, scenario))
}

impl RunArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut overrides = self.overrides.clone();
        overrides.extend(self.nodes.map(|nodes| Override { name: "nodes".into(), value: nodes.to_string() }));
        let points = self.sweep.as_ref().map(|sweep| sweep.points.iter().cloned().map(Some).collect());
        let points: Vec<Option<Override>> = points.unwrap_or_else(|| vec![None]);
        let mut wanted = Vec::new();
        for point in points {
            let overrides: Vec<Override> = overrides.iter().cloned().chain(point.clone()).collect();
            match read(&self.scenario, &overrides) {
                Ok((name, scenario)) => wanted.push((name, scenario, overrides, point)),
                Err(code) => return Ok(code),
            }
        }
        let mut jobs = Vec::new();
        for (_, _, overrides, _) in &wanted {
            let overrides: Vec<String> = overrides.iter().map(Override::to_string).collect();
            for seed in self.seed..self.seed.saturating_add(self.seeds) {
                let (scenario, overrides) = (self.scenario.clone(), overrides.clone());
                jobs.push(Job { scenario, seed, overrides, pictures: self.report.is_some() });
            }
        }
        let mut runs = run_all(jobs)?.into_iter();
        let mut reports = Vec::new();
        for (name, scenario, _, point) in wanted {
            let runs: Vec<Run> = runs.by_ref().take(self.seeds as usize).collect();
            ensure!(runs.len() == self.seeds as usize, "a run is missing");
            let interval = scenario.mesh.interval.0;
            let report =
                Report::of(&name, &scenario.question, scenario.mesh.nodes, interval, runs, &scenario.expect);
            reports.push((point.map(|point| point.value).unwrap_or_default(), report));
        }
        self.show(&reports)?;
        let passed = reports.iter().all(|(_, report)| report.passed());
        Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The page, and each of its pictures as a file of its own.
    fn write_page(&self, directory: &Path, reports: &[(String, Report)]) -> anyhow::Result<()> {
        let (page, plots) = match (&self.sweep, reports) {
            (None, [(_, report)]) => (page(report), plots(report)),
            (sweep, reports) => {
                let parameter = sweep.as_ref().map_or("", |sweep| &sweep.name);
                (sweep_page(parameter, reports), sweep_plots(parameter, reports))
            }
        };
        std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        for (name, text) in
            plots.iter().map(|(name, svg)| (name.as_str(), svg)).chain([("index.html", &page)])
        {
            let file = directory.join(name);
            std::fs::write(&file, text).with_context(|| file.display().to_string())?;
        }
        eprintln!("the page is {}", directory.join("index.html").display());
        Ok(())
    }

    fn show(&self, reports: &[(String, Report)]) -> anyhow::Result<()> {
        if let Some(directory) = &self.report {
            self.write_page(directory, reports)?;
        }
        let printed =
            |report: &Report| if self.samples { report.clone() } else { report.clone().without_samples() };
        match (self.output, reports) {
            (Output::Text, reports) => reports.iter().for_each(|(value, report)| {
                if let Some(sweep) = &self.sweep {
                    println!("{} = {value}", sweep.name);
                }
                print!("{report}");
            }),
            (Output::Json, [(_, report)]) if self.sweep.is_none() => print_json(&printed(report))?,
            (Output::Json, reports) => {
                print_json(&reports.iter().map(|(_, it)| printed(it)).collect::<Vec<_>>())?
            }
        }
        Ok(())
    }
}

impl OneArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let scenario = match read(&self.scenario, &self.overrides) {
            Ok((_, scenario)) => scenario,
            Err(code) => return Ok(code),
        };
        let again = self.overrides.iter().map(|it| format!("--set {it}")).collect::<Vec<_>>().join(" ");
        let request = Request {
            name: self.scenario,
            seed: self.seed,
            again,
            window: None,
            pictures: self.pictures,
            ..Request::default()
        };
        let (run, _) = super::measured(scenario, &request, |part| {
            // Whoever reads may have gone; the run is then nobody's.
            let _ = print_json(&Line::Progress(part));
        })?;
        print_json(&Line::Run(Box::new(run)))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Plays with all chance from the seed.
pub(super) fn play_seeded(
    scenario: Scenario,
    request: &Request,
    progress: impl FnMut(f64) + Send,
) -> anyhow::Result<(Run, Vec<String>)> {
    crate::entropy::with_seed(request.seed, || play(scenario, request, progress))
}
