//! What a service manager is told, and what it passes: sd_notify(3), sd_listen_fds(3).

use std::path::PathBuf;

use rustix::process::{Signal, kill_process};
use starling_tests::workload::Http;
use starling_tests::{Mesh, within};
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
