//! Programs in another language, through two sidecars: gRPC by its own makers, and WebSockets. Client and
//! server are Python's `grpcio` and `websockets`, and only their scripts, which lie beside this file, know
//! what is right.
//!
//! `cargo test -p starling-tests --features programs --test python`, with the programs installed.

mod grpc;
mod websocket;

use std::path::PathBuf;

use starling_tests::{Finished, run_program};

/// Debian's own, for whom its packages are: another may come first on a developer's `PATH`.
const PYTHON: &str = "/usr/bin/python3";

/// A script that lies here.
fn script(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("python").join(name);
    path.into_os_string().into_string().expect("a path in UTF-8")
}

/// Runs `script` with `arguments`: it must find all as it should be.
async fn must_hold<A: AsRef<str>>(
    name: &str,
    arguments: impl IntoIterator<Item = A>,
    environment: &[(&str, &str)],
) -> Finished {
    let given = arguments.into_iter().map(|argument| argument.as_ref().to_owned());
    let finished = run_program(PYTHON, [script(name)].into_iter().chain(given), environment).await;
    assert_eq!(finished.code, 0, "{}\n{}", finished.out, finished.err);
    finished
}
