//! The `starling` program. Everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    starling::run_cli()
}
