//! Starling: a service mesh without a control plane. The sidecar, its command line, its library.

pub mod admin;
mod allocator;
mod allowance;
pub mod app;
pub mod authz;
mod balance;
mod breaker;
pub mod ca;
mod calendar;
mod capacity;
mod care;
mod circuit;
pub mod cli;
pub mod config;
mod deadline;
mod demo;
mod descriptors;
pub mod drain;
mod endpoint;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod live;
mod local;
mod memory;
mod messages;
pub mod notify;
mod outlier;
mod patience;
mod pressure;
mod probe;
mod proxy;
pub mod reload;
mod retry;
pub mod route;
mod router;
mod seeds;
pub mod sockets;
mod store;
mod surplus;
pub mod telemetry;
mod unix_socket;
mod upstream;
mod usage;

pub use allocator::Allocator;
pub use cli::run_cli;
