//! One child process: this program again, in another role.
//!
//! No child outlives the demo. It is killed when its [`Process`] is dropped; should the demo itself
//! be killed, the kernel kills the child, which has asked for that first of all ([`die_with`]).

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::process::{Child, Command};

/// Lines of a dead child's log that are shown.
const TAIL_LINES_MAX: usize = 8;

/// A killed process is gone in milliseconds; one in an uninterruptible sleep is not waited for.
const REAP_PATIENCE: Duration = Duration::from_secs(2);

/// A running child.
pub(super) struct Process {
    role: String,
    log: PathBuf,
    pid: u32,
    child: Child,
    is_over: bool,
}

impl Process {
    /// Starts this program with `arguments`. Must be called on the thread that lives as long as the
    /// demo: the kernel takes the end of the forking thread for the end of the parent.
    pub(super) fn start(role: String, log: PathBuf, arguments: &[OsString]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(program);
        command.args(arguments).arg("--die-with").arg(std::process::id().to_string());
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // A group of its own: Ctrl-C is the demo's to hear, who then ends its children in order.
        command.process_group(0).kill_on_drop(true);
        // What a user has set for a node of theirs is not meant for these.
        let is_ours = |name: &OsString| name.to_string_lossy().starts_with("STARLING_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_ours(name)) {
            command.env_remove(name);
        }
        let child = command.spawn().with_context(|| format!("cannot start {role}"))?;
        let pid = child.id().context("a child without a pid")?;
        Ok(Self { role, log, pid, child, is_over: false })
    }

    /// What it is, for people.
    pub(super) fn role(&self) -> &str {
        &self.role
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, told once; `None` while it runs. Also what lets an ended child go for good.
    pub(super) fn ended(&mut self) -> Option<String> {
        if self.is_over {
            return None;
        }
        let status = self.child.try_wait().ok()??;
        self.is_over = true;
        Some(describe(status))
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) {
        let _ = self.child.start_kill();
    }

    /// Waits for it to be gone.
    pub(super) async fn gone(&mut self) {
        let _ = tokio::time::timeout(REAP_PATIENCE, self.child.wait()).await;
        self.is_over = true;
    }

    /// The last lines it wrote.
    pub(super) fn last_lines(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES_MAX)..];
        tail.iter().map(|line| format!("  | {line}\n")).collect()
    }
}

/// Ends this process when `parent` ends, however that happens.
pub(crate) fn die_with(parent: u32) -> anyhow::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("cannot ask to end with the parent")?;
    // It may have ended before the question was asked.
    let actual = rustix::process::Pid::as_raw(rustix::process::getppid());
    ensure!(u32::try_from(actual) == Ok(parent), "process {parent}, which started this one, is gone");
    Ok(())
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown end".to_owned(),
    }
}
