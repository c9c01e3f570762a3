//! What the tests of the whole product are made of: a mesh of real processes on loopback.
//!
//! ```text
//! Mesh            a certificate authority, a directory, a loopback address of the test's own
//!  └ NodeConfig   one node's configuration file, described
//!     └ Node      its process, and what it says on its admin API
//! workload        servers behind the nodes; client: programs in front of them
//! ```
//!
//! Nothing here sleeps for a fixed time and hopes: everything waits *until*, with [`PATIENCE`].
//! Each test has a loopback address of its own (127.0.0.0/8 is all loopback on Linux), so fixed
//! ports never meet, however many tests run at once. A node's process ends with its [`Node`], and
//! at the latest with the test that started it.
//!
//! A failing test prints what its nodes logged.

mod admin;
mod client;
mod command;
mod load;
pub mod log;
mod member;
mod mesh;
mod node;
mod passed;
pub mod process;
mod program;
mod wait;
pub mod workload;

pub use admin::Admin;
pub use client::{HttpConnection, Reply, connect_tunnel, get, head_of, request};
pub use command::{Finished, starling, starling_in};
pub use load::{Load, Outcome};
pub use member::{credentials, member};
pub use mesh::{Directory, Mesh};
pub use node::{Node, NodeConfig};
pub use program::{Program, find_program, look_for_program, run_program};
pub use wait::{PATIENCE, eventually, within};

/// Keys of a service whose node takes the workload at its word: nobody connects to it but callers,
/// and only calls notice that it is gone.
pub const UNPROBED: &str = "[service.probe]\noff = true";

/// Set for a process that is to end when its standard input does.
pub const LEASH: &str = "STARLING_TESTS_LEASH";

/// The command line under test, for those who start it by themselves.
pub fn program() -> std::path::PathBuf {
    // Cargo says where it is; a test that is run by hand finds it one directory above its own.
    let told = std::env::var_os("CARGO_BIN_EXE_starling-under-test").map(std::path::PathBuf::from);
    told.unwrap_or_else(|| {
        let test = std::env::current_exe().expect("this test's own path");
        let directory = test.parent().and_then(std::path::Path::parent).expect("target/*/deps");
        directory.join("starling-under-test")
    })
}
