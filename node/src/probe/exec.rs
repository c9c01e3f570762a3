//! Runs a program; exit code 0 is good. It and whatever it started end with the question.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tracing::debug;

use super::{Answer, NotWell};
use crate::config::Service;
use crate::descriptors;

/// Of each of its outputs so much is shown in the debug log; the rest is read and dropped, so that
/// nobody waits on a full pipe.
const OUTPUT_BYTES_MAX: usize = 4 * 1024;

/// What was written just before the end is still to be read. One that has left the group may hold
/// an output open for ever; nobody waits for it.
const OUTPUT_GRACE: Duration = Duration::from_millis(100);

/// A process in a group of its own, which is killed as a whole when this is dropped.
struct Group {
    leader: Child,
    id: Option<Pid>,
}

/// What a program writes, until it closes that.
struct Output<R> {
    source: Option<R>,
    kept: Vec<u8>,
}

/// Runs `program` without a shell; `service` tells it what it is to look at.
pub(super) async fn ask(program: &Path, arguments: &[String], service: &Service) -> Result<(), NotWell> {
    let mut group = Group::start(program, arguments, service).map_err(|error| {
        let why = format!("{} cannot be started: {error}", program.display());
        if descriptors::or_the_like_are_used_up(&error) {
            NotWell::NotAsked(why)
        } else {
            NotWell::Failed(why)
        }
    })?;
    let mut out = Output { source: group.leader.stdout.take(), kept: Vec::new() };
    let mut err = Output { source: group.leader.stderr.take(), kept: Vec::new() };
    let status = tokio::select! {
        biased;
        status = group.leader.wait() => status,
        // Both closed is no exit.
        _ = async { tokio::join!(out.take(), err.take()) } => group.leader.wait().await,
    };
    drop(group);
    let rest = async { tokio::join!(out.take(), err.take()) };
    let _ = tokio::time::timeout(OUTPUT_GRACE, rest).await;
    let (out, err) = (String::from_utf8_lossy(&out.kept), String::from_utf8_lossy(&err.kept));
    debug!(program = %program.display(), ?status, %out, %err, "probe ran");
    judge(program, status.map_err(|error| error.to_string())?, &err).map_err(NotWell::Failed)
}

/// The exit code, and the last thing it complained of.
fn judge(program: &Path, status: ExitStatus, err: &str) -> Answer {
    if status.success() {
        return Ok(());
    }
    let complaint = err.lines().rfind(|line| !line.trim().is_empty());
    let complaint = complaint.map(|line| format!(": {}", line.trim())).unwrap_or_default();
    Err(format!("{} ended with {status}{complaint}", program.display()))
}

impl<R: AsyncRead + Unpin> Output<R> {
    /// Reads to the end, keeping the beginning; may be dropped and called again.
    async fn take(&mut self) {
        let mut buffer = [0; 1024];
        while let Some(source) = &mut self.source {
            match source.read(&mut buffer).await {
                Ok(count @ 1..) => {
                    let room = OUTPUT_BYTES_MAX - self.kept.len();
                    self.kept.extend_from_slice(&buffer[..count.min(room)]);
                }
                _ => self.source = None,
            }
        }
    }
}

impl Group {
    fn start(program: &Path, arguments: &[String], service: &Service) -> std::io::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments);
        command.env("STARLING_SERVICE", service.name.as_str());
        command.env("STARLING_ADDRESS", service.address.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let leader = command.process_group(0).kill_on_drop(true).spawn()?;
        let id = leader.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Self { leader, id })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Also after its leader has ended: what that left behind would pile up, probe by probe. The
        // kernel hands numbers out in turn, so this one names no other group yet.
        if let Some(id) = self.id {
            let _ = kill_process_group(id, Signal::KILL);
        }
    }
}
