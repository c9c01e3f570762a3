//! Everything the demo puts on the machine: one directory and the processes. All of it goes again.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use starling_gossip::clock::Clock;
use tempfile::TempDir;

use super::plan::{Addresses, NodePlan, Plan, TRUST_DOMAIN};
use super::ports::free_addresses;
use super::process::Process;
use crate::ca::Authority;

/// Names the directory among the temporary ones.
const DIRECTORY_PREFIX: &str = "starling-demo-";

/// Locked as long as the demo of this directory lives.
const LOCK: &str = "lock";

/// Nobody keeps a demo up for longer.
const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(7 * 86_400);

/// The running mesh. The order of fields is the order of their end.
pub(super) struct Stage {
    /// As planned, in the same order.
    pub(super) nodes: Vec<Node>,
    directory: TempDir,
    _lock: File,
}

/// One sidecar and its workload.
pub(super) struct Node {
    /// Who it is.
    pub(super) plan: NodePlan,
    /// Where it listens.
    pub(super) at: Addresses,
    /// The sidecar.
    pub(super) sidecar: Process,
    /// What it serves.
    pub(super) workload: Option<Process>,
}

/// A child that ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
#[error("{role} ended by itself ({how}); the last it said:\n{last_lines}")]
pub(super) struct Died {
    role: String,
    how: String,
    last_lines: String,
}

impl Died {
    /// Whether another program took its port between our choice and its start.
    pub(super) fn found_port_taken(&self) -> bool {
        self.last_lines.contains("in use")
    }
}

impl Stage {
    /// An empty one. Removes what demos left behind that were killed.
    pub(super) fn new() -> anyhow::Result<Self> {
        remove_abandoned(&std::env::temp_dir());
        let directory = tempfile::Builder::new().prefix(DIRECTORY_PREFIX).tempdir();
        let directory = directory.context("cannot make a temporary directory; TMPDIR says where")?;
        let lock = File::create(directory.path().join(LOCK)).context("cannot write a file")?;
        lock.lock().context("cannot lock a file")?;
        Ok(Self { nodes: Vec::new(), directory, _lock: lock })
    }

    /// Where files and logs are.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Makes an authority and starts everybody on free ports.
    pub(super) fn start(&mut self, plan: &Plan, clock: &Clock) -> anyhow::Result<()> {
        let authority = Authority::new(TRUST_DOMAIN.parse()?, clock.wall())?;
        let all = free_addresses(plan.nodes.len()).context("no free ports on loopback")?;
        for (node, at) in plan.nodes.iter().zip(&all) {
            self.write_files(node, &node.configuration(at, &all), &authority, clock)?;
        }
        for (node, at) in plan.nodes.iter().zip(all) {
            let node = self.start_node(node.clone(), at)?;
            self.nodes.push(node);
        }
        Ok(())
    }

    /// SIGKILL to a sidecar and its workload.
    pub(super) fn kill(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.sidecar.kill();
        node.workload.iter_mut().for_each(Process::kill);
    }

    /// Waits until a killed node is gone.
    pub(super) async fn gone(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        for process in node.workload.iter_mut().chain([&mut node.sidecar]) {
            process.gone().await;
        }
    }

    /// Starts a node again that is gone.
    pub(super) fn restart(&mut self, index: usize) -> anyhow::Result<()> {
        let (plan, at) = (self.nodes[index].plan.clone(), self.nodes[index].at);
        self.nodes[index] = self.start_node(plan, at)?;
        Ok(())
    }

    /// Whether all children run that should.
    pub(super) fn check(&mut self) -> Result<(), Died> {
        let mut died = None;
        self.each_ended(|process, how| {
            let (role, last_lines) = (process.role().to_owned(), process.last_lines());
            died.get_or_insert(Died { role, how, last_lines });
        });
        died.map_or(Ok(()), Err)
    }

    /// Tells of each child that has ended since the last call.
    pub(super) fn each_ended(&mut self, mut tell: impl FnMut(&Process, String)) {
        for node in &mut self.nodes {
            for process in node.workload.iter_mut().chain([&mut node.sidecar]) {
                if let Some(how) = process.ended() {
                    tell(process, how);
                }
            }
        }
    }

    /// Ends all children and waits until they are gone.
    pub(super) async fn clear(&mut self) {
        for index in 0..self.nodes.len() {
            self.kill(index);
        }
        for index in 0..self.nodes.len() {
            self.gone(index).await;
        }
        self.nodes.clear();
    }

    fn start_node(&self, plan: NodePlan, at: Addresses) -> anyhow::Result<Node> {
        let home = self.home(&plan);
        let workload = plan.service.map(|_| {
            let arguments = ["demo-workload", "--name", &plan.name, "--listen", &at.workload.to_string()];
            let arguments: Vec<OsString> = arguments.map(OsString::from).into();
            Process::start(format!("the workload of {}", plan.name), home.join("workload.log"), &arguments)
        });
        let arguments = ["run".into(), "--config".into(), home.join("starling.toml").into_os_string()];
        let sidecar =
            Process::start(format!("the sidecar of {}", plan.name), home.join("sidecar.log"), &arguments)?;
        Ok(Node { workload: workload.transpose()?, plan, at, sidecar })
    }

    fn write_files(
        &self,
        node: &NodePlan,
        configuration: &str,
        authority: &Authority,
        clock: &Clock,
    ) -> anyhow::Result<()> {
        let home = self.home(node);
        fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
        let issued = authority.issue(&node.identity().parse()?, CERTIFICATE_VALIDITY, clock.wall())?;
        let files = [
            ("starling.toml", configuration),
            ("tls.crt", &issued.certificate),
            ("tls.key", &issued.key),
            ("ca.crt", authority.certificate_pem()),
        ];
        for (name, contents) in files {
            let path = home.join(name);
            let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
            let written = file.and_then(|mut file| file.write_all(contents.as_bytes()));
            written.with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn home(&self, node: &NodePlan) -> PathBuf {
        self.directory.path().join(&node.name)
    }
}

/// A killed demo cannot remove its directory; the next one does. A living one holds its lock.
fn remove_abandoned(temporary: &Path) {
    let Ok(entries) = fs::read_dir(temporary) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(DIRECTORY_PREFIX) {
            continue;
        }
        let lock = File::open(entry.path().join(LOCK));
        if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
