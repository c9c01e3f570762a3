//! Local programs that call through a Unix socket: HTTP and TCP, and a file that is in order.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use starling_tests::workload::{Http, Tcp, read_to_end};
use starling_tests::{Mesh, Node, UNPROBED, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

struct World {
    _workloads: (Http, Tcp),
    _servers: [Node; 2],
    caller: Node,
    /// With the sockets `web`, `db` and `nobody`.
    directory: PathBuf,
    /// Last: it takes the nodes' logs with it.
    _mesh: Mesh,
}

/// Greets, then says everything back.
async fn greet_and_echo(mut stream: tokio::net::TcpStream) {
    let _ = stream.write_all(b"hello\n").await;
    let (mut from, mut to) = stream.split();
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

impl World {
    async fn new() -> Self {
        let mesh = Mesh::new();
        let workloads = (Http::start(mesh.ip(), "web").await, Tcp::start(mesh.ip(), greet_and_echo).await);
        let tcp = format!("protocol = \"tcp\"\n{UNPROBED}");
        let servers = [
            mesh.node("web").serves_as("web", workloads.0.address(), UNPROBED).start().await,
            mesh.node("db").serves_as("db", workloads.1.address(), &tcp).start().await,
        ];
        let directory = mesh.directory().join("sockets");
        fs::create_dir_all(&directory).expect("a directory");
        let sections: String = ["web", "db", "nobody"]
            .map(|service| {
                let listen = directory.join(service);
                format!("[[outbound]]\nservice = {service:?}\nlisten = \"unix:{}\"\n", listen.display())
            })
            .concat();
        let caller = mesh.node("caller").sections(&sections).start().await;
        caller.finds("web", 1).await;
        caller.finds("db", 1).await;
        Self { _workloads: workloads, _servers: servers, caller, directory, _mesh: mesh }
    }

    fn socket(&self, service: &str) -> PathBuf {
        self.directory.join(service)
    }
}

/// Asks by HTTP/1.1; the whole answer.
async fn ask(path: &Path) -> String {
    let mut stream = UnixStream::connect(path).await.expect("the socket accepts");
    let request = "GET /seen HTTP/1.1\r\nhost: web.mesh\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("sent");
    let answer = read_to_end(&mut stream).await.expect("a clean end");
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn http_and_tcp_are_called_through_a_socket() {
    let world = World::new().await;
    let answer = ask(&world.socket("web")).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("spiffe://acme/svc/caller"), "{answer}");
    let nobody = ask(&world.socket("nobody")).await;
    assert!(nobody.starts_with("HTTP/1.1 404 ") && nobody.contains("x-starling-flags: NR"), "{nobody}");

    let mut db = UnixStream::connect(world.socket("db")).await.expect("the socket accepts");
    let mut greeting = [0; 6];
    within("a greeting, unasked", db.read_exact(&mut greeting)).await.expect("greeted");
    db.write_all(b"through").await.expect("written");
    db.shutdown().await.expect("half closed");
    let heard = read_to_end(&mut db).await.expect("a clean end");
    assert_eq!((&greeting, heard.as_slice()), (b"hello\n", b"through".as_slice()));
}

#[tokio::test]
async fn the_file_is_the_owners_and_a_stale_one_makes_room() {
    let mut world = World::new().await;
    let path = world.socket("web");
    let mode = |path: &Path| fs::metadata(path).map(|there| there.permissions().mode() & 0o777).ok();
    assert_eq!(mode(&path), Some(0o600));
    world.caller.kill().await;
    assert_eq!(mode(&path), Some(0o600), "left behind");
    world.caller.restart().await;
    world.caller.finds("web", 1).await;
    assert!(ask(&path).await.starts_with("HTTP/1.1 200 "));
    world.caller.terminate();
    assert!(world.caller.ended().await.success());
    assert_eq!(mode(&path), None, "it goes with its listener");
}
