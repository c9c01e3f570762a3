//! The `starling` program. Everything it does is in the library.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: starling::Allocator = starling::Allocator;

fn main() -> ExitCode {
    starling::run_cli()
}
