//! `starling config`: the configuration as it counts, and the schema of its file.

use std::path::PathBuf;

use super::environment;
use super::output::{Failure, Output};
use crate::config::print::{self, Extent};
use crate::config::{Config, schema};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print what the file and the environment say, together.
    Print(Arguments),
    /// Print the JSON Schema of the file, for editors.
    Schema,
}

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Every key, as a node would run with it: defaults too.
    #[arg(long)]
    effective: bool,
}

pub(super) fn run(command: &Command, output: Output) -> Result<(), Failure> {
    match command {
        Command::Print(arguments) => {
            let config = Config::load(&arguments.config, environment())?;
            let extent = if arguments.effective { Extent::Effective } else { Extent::Given };
            output.print(print::to_toml(&config, extent).trim_end(), &print::to_json(&config, extent));
        }
        Command::Schema => {
            let schema = schema::schema();
            output.print(&format!("{schema:#}"), &schema);
        }
    }
    Ok(())
}
