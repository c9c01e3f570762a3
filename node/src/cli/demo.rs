//! `starling demo`: its arguments.

use std::net::SocketAddr;

use super::output::{Failure, Output};
use crate::demo::{self, NODES_MAX, NODES_MIN, Options, REQUESTS_MAX};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Sidecars in all; one of them only calls.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = nodes)]
    nodes: usize,
    /// Requests to send through the mesh; 0 kills nobody either.
    #[arg(long, value_name = "N", default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(..=REQUESTS_MAX))]
    requests: u64,
    /// Leave the mesh up until Ctrl-C, whole again, and say what to try.
    #[arg(long)]
    keep: bool,
}

/// `starling demo-workload`, which `starling demo` starts.
#[derive(Debug, clap::Args)]
pub(super) struct WorkloadArguments {
    /// Where to listen.
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// What to answer.
    #[arg(long)]
    name: String,
    #[command(flatten)]
    parent: Parent,
}

/// For children of `starling demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Parent {
    /// End when this process, which started us, ends.
    #[arg(long, value_name = "PID", hide = true)]
    die_with: Option<u32>,
}

impl Parent {
    /// To be called before anything else.
    pub(super) fn follow(&self) -> anyhow::Result<()> {
        self.die_with.map_or(Ok(()), demo::die_with)
    }
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let Arguments { nodes, requests, keep } = *arguments;
    demo::run(Options { nodes, requests, keep, json: output == Output::Json })?;
    Ok(())
}

pub(super) fn run_workload(arguments: WorkloadArguments) -> Result<(), Failure> {
    arguments.parent.follow()?;
    demo::run_workload(arguments.listen, arguments.name)?;
    Ok(())
}

fn nodes(text: &str) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    let range = NODES_MIN..=NODES_MAX;
    if range.contains(&number) {
        return Ok(number);
    }
    Err(format!("from {NODES_MIN} (a caller and two to choose from) to {NODES_MAX} (for one machine)"))
}
