//! The command line, run to its end.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::program;
use crate::wait::within;

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Finished {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Finished {
    /// Standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {self:#?}"))
    }
}

/// Runs `starling` with `arguments`.
pub async fn starling<A: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = A>) -> Finished {
    starling_in(Path::new("/"), &[], arguments).await
}

/// Runs `starling` in a directory, with environment variables.
pub async fn starling_in<A: AsRef<std::ffi::OsStr>>(
    directory: &Path,
    environment: &[(&str, &str)],
    arguments: impl IntoIterator<Item = A>,
) -> Finished {
    let mut command = tokio::process::Command::new(program());
    command.args(arguments).current_dir(directory).stdin(Stdio::null()).kill_on_drop(true);
    command.env_clear().envs(environment.iter().copied());
    let output = within("a command's end", command.output()).await.expect("the program under test");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Finished {
        code: output.status.code().expect("an exit code"),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}
