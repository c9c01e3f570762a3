//! The `starling-sim` program: the command line, and the seeded entropy that makes runs repeat.

mod cli;
mod entropy;

fn main() -> std::process::ExitCode {
    cli::run()
}
