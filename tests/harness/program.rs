//! Other makers' programs, run as ordinary processes of this user with directories of their own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::command::Finished;
use crate::wait::{eventually, within};

/// Where servers are on systems that keep them off a user's `PATH`.
const ALSO: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/sbin"];

/// A server that was started here; killed when it is dropped.
pub struct Program {
    name: String,
    process: Child,
    log: PathBuf,
}

/// Where `program` is. The suite that asks was chosen by somebody, so a missing program fails it.
pub fn find_program(program: &str) -> PathBuf {
    look_for_program(program)
        .unwrap_or_else(|| panic!("{program} is not installed; `.ci/run` says which packages are needed"))
}

/// Where `program` is, if it is installed.
pub fn look_for_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(ALSO.iter().map(PathBuf::from));
    directories.map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// Runs `program` to its end, with nothing on standard input.
pub async fn run_program<A: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = A>,
    environment: &[(&str, &str)],
) -> Finished {
    let mut command = Command::new(find_program(program));
    command.args(arguments).env_remove("no_proxy").env_remove("NO_PROXY");
    command.envs(environment.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
    let output = within(program, command.output()).await.expect("a program");
    Finished {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Program {
    /// Starts a server in the foreground, its output in a file in `directory`, and waits until it
    /// accepts connections at `address`.
    pub async fn start<A: AsRef<OsStr>>(
        name: &str,
        directory: &Path,
        address: std::net::SocketAddr,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        // A program that is named by its path has a log here all the same.
        let file_name = Path::new(name).file_name().expect("a program's name");
        let log = directory.join(file_name).with_extension("log");
        let file = std::fs::File::create(&log).expect("a log");
        let mut command = Command::new(find_program(name));
        command.args(arguments).current_dir(directory).stdin(Stdio::null());
        command.stdout(file.try_clone().expect("a log")).stderr(file).kill_on_drop(true);
        let process = command.spawn().expect("a server");
        let mut program = Self { name: name.to_owned(), process, log };
        eventually(&format!("{name} to accept"), async || {
            if let Some(status) = program.process.try_wait().expect("a status") {
                panic!("{name} ended with {status}");
            }
            TcpStream::connect(address).await.ok()
        })
        .await;
        program
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("---- what {} said\n{log}----", self.name);
        }
    }
}
