//! The command line: arguments, exit codes, and who does the work.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

pub(crate) mod ask;
mod ca;
mod check;
mod config;
mod demo;
mod files;
pub(crate) mod members;
mod output;
mod run;
pub(crate) mod show;
mod table;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use serde_json::json;

use output::{Failure, Output};

/// A service mesh without a control plane.
#[derive(Debug, Parser)]
#[command(name = "starling", version, arg_required_else_help = true)]
struct Cli {
    /// How to answer.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a root and certificates, where there is no issuer.
    #[command(subcommand)]
    Ca(ca::Command),
    /// Check a configuration and the files it names; exits with 0 or 2.
    Check(check::Arguments),
    /// Show the configuration as it counts, or its schema.
    #[command(subcommand)]
    Config(config::Command),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Run a node until SIGTERM or SIGINT; then drain, withdraw and exit.
    Run(run::Arguments),
    /// A whole mesh on this machine: it forms, carries traffic, and loses a node.
    Demo(demo::Arguments),
    #[command(hide = true)]
    DemoWorkload(demo::WorkloadArguments),
    /// Exits with 0 if the local node is ready, with 1 if it drains or does not answer: for probes.
    Ready(ask::Asked),
    /// Who is in the mesh, as the local node sees it.
    Members(members::Arguments),
    /// What is served in the mesh, and by whom.
    Services(ask::Asked),
    /// What the local node itself serves, and how well.
    Instances(ask::Asked),
    /// Where calls of a service, or of all, may go from the local node.
    Routes(show::RouteArguments),
    /// Let the local node finish what is under way, withdraw, and stop.
    Drain(ask::Asked),
    /// Let the local node read its configuration again, and say what that changes.
    Reload(ask::Asked),
    /// Let the local node withdraw and stop at once.
    Leave(ask::Asked),
    /// Print the version.
    Version,
}

/// Runs the command in this process's arguments.
pub fn run_cli() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli.command, cli.output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(cli.output),
    }
}

fn dispatch(command: Command, output: Output) -> Result<(), Failure> {
    match command {
        Command::Ca(command) => ca::run(command, output),
        Command::Check(arguments) => check::run(&arguments, output),
        Command::Config(command) => config::run(&command, output),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "starling", &mut script);
            // A reader that stops reading (`| head`) is no failure.
            let _ = io::stdout().write_all(&script);
            Ok(())
        }
        Command::Run(arguments) => run::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments, output),
        Command::DemoWorkload(arguments) => demo::run_workload(arguments),
        Command::Ready(asked) => show::ready(&asked, output),
        Command::Members(arguments) => members::run(&arguments, output),
        Command::Services(asked) => show::services(&asked, output),
        Command::Instances(asked) => show::instances(&asked, output),
        Command::Routes(arguments) => show::routes(&arguments, output),
        Command::Drain(asked) => show::act(&asked, "drain", output),
        Command::Reload(asked) => show::reload(&asked, output),
        Command::Leave(asked) => show::act(&asked, "leave", output),
        Command::Version => {
            let version = env!("CARGO_PKG_VERSION");
            output.print(&format!("starling {version}"), &json!({ "version": version }));
            Ok(())
        }
    }
}

/// This process's environment, as [`crate::config::Config::load`] wants it. Text that is not
/// Unicode is kept visibly wrong, so that the key it sets is reported.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
