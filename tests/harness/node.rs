//! One node: its configuration file, its process, and what it says.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin};

use crate::admin::Admin;
use crate::mesh::{Mesh, replace_file};
use crate::passed::PassedSockets;
use crate::process::{anonymous_bytes, resident_bytes};
use crate::wait::{eventually, within};
use crate::{LEASH, program};

/// Renewals and rounds fast enough that nobody waits for them, slow enough for a busy machine.
const GOSSIP: &str = "interval = \"200ms\"\nrenew = \"500ms\"";

/// A node to be started.
#[must_use = "a node runs once it is started"]
pub struct NodeConfig<'m> {
    mesh: &'m Mesh,
    name: String,
    identity: Option<String>,
    services: Vec<String>,
    served: Vec<String>,
    outbounds: BTreeMap<String, SocketAddr>,
    seeds: Vec<SocketAddr>,
    node: String,
    environment: BTreeMap<String, String>,
    gossip: String,
    extra: String,
    admin: String,
    times: String,
    before: String,
    program: PathBuf,
    is_activated: bool,
}

/// A node's process. It is killed when this is dropped.
pub struct Node {
    name: String,
    launch: Launch,
    process: Child,
    /// Its standard input: when this ends, so does the process. (A `Child` would end it by itself
    /// before waiting.)
    leash: ChildStdin,
    directory: PathBuf,
    listen: SocketAddr,
    admin: SocketAddr,
    http_proxy: SocketAddr,
    outbounds: BTreeMap<String, SocketAddr>,
}

/// How a node's process comes to be, now and when it is restarted.
struct Launch {
    program: PathBuf,
    before: String,
    environment: BTreeMap<String, String>,
    passed: PassedSockets,
}

impl<'m> NodeConfig<'m> {
    pub(crate) fn new(mesh: &'m Mesh, name: &str) -> Self {
        Self {
            mesh,
            name: name.to_owned(),
            identity: None,
            services: Vec::new(),
            served: Vec::new(),
            outbounds: BTreeMap::new(),
            seeds: mesh.seeds(),
            node: String::new(),
            environment: BTreeMap::new(),
            gossip: GOSSIP.to_owned(),
            extra: String::new(),
            admin: String::new(),
            times: String::new(),
            before: String::new(),
            program: program(),
            is_activated: false,
        }
    }

    /// Serves `service`, as HTTP, with the workload at `address`.
    pub fn serves(self, service: &str, address: SocketAddr) -> Self {
        self.serves_as(service, address, "")
    }

    /// Serves `service`, as TCP, with the workload at `address`.
    pub fn serves_tcp(self, service: &str, address: SocketAddr) -> Self {
        self.serves_as(service, address, "protocol = \"tcp\"")
    }

    /// Serves `service` with further keys of its section.
    pub fn serves_as(mut self, service: &str, address: SocketAddr, keys: &str) -> Self {
        self.services.push(format!("[[service]]\nname = {service:?}\naddress = \"{address}\"\n{keys}"));
        self.served.push(service.to_owned());
        self
    }

    /// Serves `service` with a section of the test's own making, but for its name.
    pub fn serves_section(mut self, service: &str, keys: &str) -> Self {
        self.services.push(format!("[[service]]\nname = {service:?}\n{keys}"));
        self.served.push(service.to_owned());
        self
    }

    /// Has a fixed local port for `service`.
    pub fn calls(mut self, service: &str) -> Self {
        self.outbounds.insert(service.to_owned(), self.mesh.free_address());
        self
    }

    /// Another identity than the usual.
    pub fn identity(mut self, id: &str) -> Self {
        self.identity = Some(id.to_owned());
        self
    }

    /// Joins by these and not by the nodes started before.
    pub fn seeds(mut self, seeds: &[SocketAddr]) -> Self {
        self.seeds = seeds.to_vec();
        self
    }

    /// Keys of `[gossip]` in place of the harness's.
    pub fn gossip(mut self, keys: &str) -> Self {
        self.gossip = keys.to_owned();
        self
    }

    /// How long it drains at most.
    pub fn drain_timeout(mut self, duration: &str) -> Self {
        let _ = writeln!(self.node, "drain_timeout = {duration:?}");
        self
    }

    /// Remembers over its own end, in `data` of its directory.
    pub fn remembers(self) -> Self {
        self.remembers_in(Path::new("data"))
    }

    /// As [`NodeConfig::remembers`], in a directory of the test's choice.
    pub fn remembers_in(mut self, directory: &Path) -> Self {
        let _ = writeln!(self.node, "data_dir = {directory:?}");
        self
    }

    /// A variable in its environment, now and after every restart.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Further keys of `[admin]`.
    pub fn admin(mut self, keys: &str) -> Self {
        self.admin = keys.to_owned();
        self
    }

    /// How long its calls may take: keys of `[http_proxy]` and of each `[[outbound]]`.
    pub fn times(mut self, keys: &str) -> Self {
        self.times = keys.to_owned();
        self
    }

    /// What a shell does before it becomes the node: `ulimit`, or joining a control group.
    pub fn after(mut self, command: &str) -> Self {
        self.before = command.to_owned();
        self
    }

    /// Is passed all its sockets bound, and so is every process after the first.
    pub fn is_activated(mut self) -> Self {
        self.is_activated = true;
        self
    }

    /// Further sections.
    pub fn sections(mut self, toml: &str) -> Self {
        self.extra = toml.to_owned();
        self
    }

    /// Another program than the one under test.
    pub fn program(mut self, program: &Path) -> Self {
        self.program = program.to_owned();
        self
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self) -> Node {
        let listen = self.mesh.free_address();
        self.start_at(listen).await
    }

    /// As [`NodeConfig::start`], at an address that others were told before.
    pub async fn start_at(self, listen: SocketAddr) -> Node {
        let directory = self.mesh.directory().join(&self.name);
        fs::create_dir_all(&directory).expect("the node's directory");
        let id = self.identity.clone().unwrap_or_else(|| {
            let service = self.served.first().unwrap_or(&self.name);
            format!("spiffe://{}/svc/{service}", crate::mesh::DOMAIN)
        });
        let issued = self.mesh.issue(&id);
        for (name, contents) in [
            ("tls.crt", issued.certificate.as_str()),
            ("tls.key", issued.key.as_str()),
            ("ca.crt", self.mesh.trust_bundle()),
        ] {
            fs::write(directory.join(name), contents).expect("an identity file");
        }
        let (admin, http_proxy) = (self.mesh.free_address(), self.mesh.free_address());
        fs::write(directory.join("starling.toml"), self.toml(listen, admin, http_proxy)).expect("a file");
        self.mesh.add_seed(listen);
        let mut passed = PassedSockets::default();
        if self.is_activated {
            let local = [admin, http_proxy].into_iter().chain(self.outbounds.values().copied());
            local.for_each(|address| passed.listen(address));
            passed.datagrams(listen);
            passed.listen_unix(&directory.join("admin.sock"));
        }
        let launch =
            Launch { program: self.program, before: self.before, environment: self.environment, passed };
        let (process, leash) = launch.spawn(&directory);
        let mut node = Node {
            launch,
            process,
            leash,
            name: self.name,
            directory,
            listen,
            admin,
            http_proxy,
            outbounds: self.outbounds,
        };
        node.wait_until_ready().await;
        node
    }

    fn toml(&self, listen: SocketAddr, admin: SocketAddr, http_proxy: SocketAddr) -> String {
        let seeds: Vec<String> = self.seeds.iter().map(ToString::to_string).collect();
        let (name, node, gossip) = (&self.name, &self.node, &self.gossip);
        let (extra, keys, times) = (&self.extra, &self.admin, &self.times);
        let mut toml = format!(
            "[node]\nname = {name:?}\nlisten = \"{listen}\"\n{node}\n\
             [mesh]\nseeds = {seeds:?}\n\
             [gossip]\n{gossip}\n\
             [http_proxy]\nlisten = \"{http_proxy}\"\n{times}\n\
             [admin]\nlisten = \"{admin}\"\nsocket = \"admin.sock\"\n{keys}\n\
             [log]\nlevel = \"info,starling=debug,starling_transport=debug\"\n{extra}\n"
        );
        for section in &self.services {
            let _ = writeln!(toml, "{section}");
        }
        for (service, listen) in &self.outbounds {
            let _ = writeln!(toml, "[[outbound]]\nservice = {service:?}\nlisten = \"{listen}\"\n{times}");
        }
        toml
    }
}

impl Node {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its UDP address.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Its port for HTTP by name.
    pub fn http_proxy(&self) -> SocketAddr {
        self.http_proxy
    }

    /// Its fixed port for `service`.
    pub fn outbound(&self, service: &str) -> SocketAddr {
        self.outbounds[service]
    }

    /// What it says on its admin port.
    pub fn admin(&self) -> Admin {
        Admin::new(self.admin)
    }

    /// Its admin socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("admin.sock")
    }

    /// The directory with its configuration, identity and log.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Its resident memory, as the system counts it.
    pub fn resident_bytes(&self) -> u64 {
        resident_bytes(self.pid())
    }

    /// What of that is its own memory: pages of its program come and go, for a node lets go of them after its start.
    pub fn anonymous_bytes(&self) -> u64 {
        anonymous_bytes(self.pid())
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        let id = self.process.id().expect("a running process");
        Pid::from_raw(i32::try_from(id).expect("a process id")).expect("not 0")
    }

    /// Waits until `count` instances of `service` may take its calls and its node believes them
    /// healthy.
    pub async fn finds(&self, service: &str, count: usize) {
        let what = format!("{} to find {count} instances of {service}", self.name);
        eventually(&what, async || {
            let route = self.admin().get(&format!("/v1/routes/{service}")).await.json;
            let known = self.admin().get(&format!("/v1/services/{service}")).await.json;
            let healthy = known["instances"].as_array()?.iter().filter(|one| one["health"] == "healthy");
            (route["candidates"].as_array()?.len() == count && healthy.count() == count).then_some(())
        })
        .await;
    }

    /// Waits until it sees the member `name` in `state`.
    pub async fn sees(&self, name: &str, state: &str) {
        let what = format!("{} to see {name} {state}", self.name);
        eventually(&what, async || {
            let members = self.admin().get("/v1/members").await.json;
            let member = members.as_array()?.iter().find(|member| member["node"] == name)?;
            (member["state"] == state).then_some(())
        })
        .await;
    }

    /// Waits until its log contains `text`.
    pub async fn logs(&self, text: &str) {
        let what = format!("{} to log {text:?}", self.name);
        eventually(&what, async || self.log().contains(text).then_some(())).await;
    }

    /// Replaces its certificate and key, as an issuer would.
    pub fn rotate(&self, issued: &starling::ca::Issued) {
        replace_file(&self.directory.join("tls.key"), &issued.key);
        replace_file(&self.directory.join("tls.crt"), &issued.certificate);
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("starling.toml")
    }

    /// Writes its configuration anew, in one step.
    pub fn configure(&self, toml: &str) {
        replace_file(&self.config(), toml);
    }

    /// Asks it to read its configuration again, as service managers do.
    pub fn hang_up(&self) {
        kill_process(self.pid(), Signal::HUP).expect("a signal");
    }

    /// Asks it to stop, as orchestrators do.
    pub fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).expect("a signal");
    }

    /// Kills it where it stands: no goodbye.
    pub async fn kill(&mut self) {
        self.process.kill().await.expect("killed");
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        within("the node's end", self.process.wait()).await.expect("a status")
    }

    /// Starts it again after its end, with the same files.
    pub async fn restart(&mut self) {
        (self.process, self.leash) = self.launch.spawn(&self.directory);
        self.wait_until_ready().await;
    }

    /// As [`Node::restart`], with another program.
    pub async fn restart_as(&mut self, program: &Path) {
        self.launch.program = program.to_owned();
        self.restart().await;
    }

    /// The program that it runs.
    pub fn program(&self) -> &Path {
        &self.launch.program
    }

    async fn wait_until_ready(&mut self) {
        let admin = self.admin();
        eventually(&format!("{} to be ready", self.name), async || {
            if let Some(status) = self.process.try_wait().expect("a status") {
                panic!("{} ended with {status}:\n{}", self.name, self.log());
            }
            (admin.try_get("/ready").await?.status == 200).then_some(())
        })
        .await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- what {} logged\n{}----", self.name, self.log());
        }
    }
}

impl Launch {
    fn spawn(&self, directory: &Path) -> (Child, ChildStdin) {
        let log =
            fs::OpenOptions::new().create(true).append(true).open(directory.join("log")).expect("a log");
        let before = &self.before;
        let mut command = std::process::Command::new("/bin/sh");
        command.arg("-c").arg(format!("set -e; {before}\nexec \"$0\" \"$@\"")).arg(&self.program);
        command.args(["run", "--config"]).arg(directory.join("starling.toml"));
        // A developer's own settings are not the tests'.
        command.env_clear().envs(&self.environment).env(LEASH, "1");
        command.stdin(Stdio::piped()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.passed.pass_to(&mut command);
        let mut command = tokio::process::Command::from(command);
        let mut process = command.kill_on_drop(true).spawn().expect("the program under test");
        let leash = process.stdin.take().expect("a pipe");
        (process, leash)
    }
}
