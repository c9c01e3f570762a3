//! The `starling-sim` program: the command line, and the seeded entropy that makes runs repeat.

mod cli;
mod entropy;

/// Most of a simulation's work is chitchat's small maps, made and dropped for each message: a fifth of
/// all CPU time less than with the system's allocator. It draws no chance of the simulation's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::run()
}
