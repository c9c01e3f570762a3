//! Starling: a service mesh without a control plane. The sidecar, its command line, its library.

pub mod ca;
pub mod cli;
pub mod config;

pub use cli::run_cli;
