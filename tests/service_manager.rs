//! What a service manager is told, and what it passes: sd_notify(3), sd_listen_fds(3).

use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::{Signal, kill_process};
use starling_tests::workload::Http;
use starling_tests::{Mesh, eventually, get, program, within};
use tokio::net::UnixDatagram;

/// A service manager's ear.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn listen(mesh: &Mesh) -> Self {
        let path = mesh.directory().join("notify.sock");
        Self { socket: UnixDatagram::bind(&path).expect("bound"), path }
    }

    /// Waits until something is said that `fits`.
    async fn hears(&self, fits: impl Fn(&str) -> bool) -> String {
        let mut buffer = [0; 1024];
        within("the node to tell its manager", async {
            loop {
                let length = self.socket.recv(&mut buffer).await.expect("a message");
                let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if fits(&said) {
                    return said;
                }
            }
        })
        .await
    }

    /// Forgets what was said so far.
    fn forget(&self) -> usize {
        let mut buffer = [0; 1024];
        std::iter::from_fn(|| self.socket.try_recv(&mut buffer).ok()).count()
    }
}

#[tokio::test]
async fn a_node_tells_its_manager_that_it_is_ready_alive_and_stopping() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let manager = Manager::listen(&mesh);
    let node = mesh.node("node").environment("NOTIFY_SOCKET", manager.path.to_str().expect("UTF-8"));
    let mut node = node.environment("WATCHDOG_USEC", "400000").start().await;
    manager.hears(|said| said == "READY=1").await;
    manager.hears(|said| said == "STATUS=members: 2 alive, 0 suspect; services: 1, instances: 1").await;
    for _ in 0..3 {
        manager.hears(|said| said == "WATCHDOG=1").await;
    }
    // What stands still says nothing.
    kill_process(node.pid(), Signal::STOP).expect("a signal");
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    manager.forget();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(manager.forget(), 0, "a stopped process feeds no watchdog");
    kill_process(node.pid(), Signal::CONT).expect("a signal");
    manager.hears(|said| said == "WATCHDOG=1").await;
    node.terminate();
    manager.hears(|said| said == "STOPPING=1\nSTATUS=draining").await;
    manager.hears(|said| said == "WATCHDOG=1").await;
    assert_eq!(node.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_passed_socket_that_nothing_is_configured_for_is_refused() {
    let mesh = Mesh::new();
    let node = mesh.node("node").calls("web").is_activated().start().await;
    let toml = node.directory().join("starling.toml");
    let text = std::fs::read_to_string(&toml).expect("its configuration");
    drop(node);
    let other = mesh.free_address();
    std::fs::write(&toml, &text).expect("a file");
    // systemd's own tool passes the socket, and says to whom (LISTEN_PID).
    let Some(tool) = socket_activate() else { return eprintln!("systemd-socket-activate is not installed") };
    let mut command = tokio::process::Command::new(tool);
    command.arg(format!("--listen={other}")).arg(program()).args(["run", "--config"]).arg(&toml);
    let started = command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn();
    let process = started.expect("systemd's tool");
    // It starts the node with the first connection.
    let _client =
        eventually("the tool to listen", async || tokio::net::TcpStream::connect(other).await.ok()).await;
    let output = within("the node's end", process.wait_with_output()).await.expect("its output");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("nothing is configured for the passed socket")
            && said.contains(&format!("TCP {other}")),
        "{said}"
    );
}

#[tokio::test]
async fn systemds_own_tool_starts_a_node_with_the_first_request() {
    let Some(tool) = socket_activate() else { return eprintln!("systemd-socket-activate is not installed") };
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    // The files of a node that once ran; the tool runs it from now on.
    let mut node = mesh.node("caller").start().await;
    let (proxy, directory) = (node.http_proxy(), node.directory().to_owned());
    // Until it is gone: its ports are needed.
    node.kill().await;
    let mut command = tokio::process::Command::new(tool);
    command.arg(format!("--listen={proxy}")).arg(program()).args(["run", "--config"]);
    command
        .arg(directory.join("starling.toml"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let _process = command.spawn().expect("systemd's tool");
    eventually("the tool to listen", async || tokio::net::TcpStream::connect(proxy).await.ok()).await;
    let reply = get(proxy, "web.mesh", "/").await;
    assert_eq!((reply.status().as_u16(), reply.text()), (200, "web".to_owned()));
}

fn socket_activate() -> Option<PathBuf> {
    ["/usr/bin/systemd-socket-activate", "/bin/systemd-socket-activate"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
}
