//! Memory under pressure, on the real kernel: ten thousand connections that do nothing, and nodes
//! with 64 MiB in front of clients and workloads that do not read.
//!
//! Needs root (control groups) and some ten thousand descriptors.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::StatusCode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use starling_gossip::clock::Clock;
use starling_tests::workload::{Http, Tcp};
use starling_tests::{Mesh, Node, get};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const MEMORY_BYTES: u64 = 64 * 1024 * 1024;

const IDLE_CONNECTIONS: usize = 10_000;

/// How soon work must be taken again.
const RECOVERY: Duration = Duration::from_secs(2);

/// A control group with a memory limit, removed at the end.
struct Group {
    directory: PathBuf,
}

impl Group {
    fn new(name: &str, bytes: u64) -> Self {
        let version1 = Path::new("/sys/fs/cgroup/memory");
        let (root, limit) = match version1.is_dir() {
            true => (version1, "memory.limit_in_bytes"),
            false => (Path::new("/sys/fs/cgroup"), "memory.max"),
        };
        let directory = root.join(format!("starling-{}-{name}", std::process::id()));
        fs::create_dir(&directory).expect("a control group; this suite needs root");
        fs::write(directory.join(limit), bytes.to_string()).expect("its limit");
        Self { directory }
    }

    /// For the shell that becomes the node.
    fn join(&self) -> String {
        format!("echo $$ > {}", self.directory.join("cgroup.procs").display())
    }

    /// The most it has used, and how often its limit was met.
    fn told(&self) -> String {
        let files = ["memory.max_usage_in_bytes", "memory.failcnt", "memory.peak", "memory.events"];
        let read = |file: &&'static str| Some((*file, fs::read_to_string(self.directory.join(file)).ok()?));
        let told = files.iter().filter_map(read).map(|(file, it)| format!("{file}: {}", it.trim()));
        told.collect::<Vec<_>>().join(", ")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its last process may still be on its way out.
        for _ in 0..100 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// As many descriptors as this process may have.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("the limit of open files");
    let enough = limit.maximum.is_none_or(|most| most as usize > IDLE_CONNECTIONS + 500);
    assert!(enough, "this suite needs {} descriptors; raise `ulimit -Hn`", IDLE_CONNECTIONS + 500);
}

/// A plain request is answered within [`RECOVERY`].
async fn recovers(node: &Node, service: &str) {
    let clock = Clock::System;
    let began = clock.now();
    loop {
        let reply = get(node.http_proxy(), &format!("{service}.mesh"), "/").await;
        let took = clock.now() - began;
        if reply.status() == StatusCode::OK {
            return println!("{} serves again after {took:?}", node.name());
        }
        assert!(took < RECOVERY, "{took:?} after the pressure ended: {}", reply.text());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Sends the head of a request on a connection of its own and reads the status of the answer; what
/// follows stays unread.
async fn begin(address: SocketAddr, head: &str) -> Option<(TcpStream, StatusCode)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut start = [0; 12];
    let read = stream.read_exact(&mut start);
    tokio::time::timeout(Duration::from_secs(20), read).await.ok()?.ok()?;
    let status = std::str::from_utf8(&start[9..]).ok()?.parse::<u16>().ok()?;
    Some((stream, StatusCode::from_u16(status).ok()?))
}

#[tokio::test]
async fn ten_thousand_idle_connections_cost_little_and_nobody_else() {
    raise_descriptors();
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), StatusCode::OK);
    let before = caller.anonymous_bytes();
    let mut held = Vec::with_capacity(IDLE_CONNECTIONS);
    while held.len() < IDLE_CONNECTIONS - 10 {
        held.push(TcpStream::connect(caller.http_proxy()).await.expect("a place"));
    }
    let reply = get(caller.http_proxy(), "web.mesh", "/").await;
    assert_eq!(reply.status(), StatusCode::OK, "{}", reply.text());
    // Half of them have asked once: that is what a pool of a program looks like.
    for stream in held.iter_mut().step_by(2) {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: web.mesh\r\n\r\n").await.expect("a request");
        let read = stream.read(&mut [0; 512]).await.expect("an answer");
        assert!(read > 0);
    }
    let each = (caller.anonymous_bytes() - before) / held.len() as u64;
    println!("{} idle connections cost {each} bytes each", held.len());
    assert!(each < 32 * 1024, "{each} bytes for each idle connection");
    drop(held);
    recovers(&caller, "web").await;
}

#[tokio::test]
async fn with_64_mib_slow_readers_and_writers_are_survived_and_the_excess_hears_uo() {
    raise_descriptors();
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let deaf = Tcp::start(mesh.ip(), async |stream| {
        // Takes connections and reads nothing.
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let group = |name: &str| Group::new(name, MEMORY_BYTES);
    let (for_server, for_sink, for_caller) = (group("server"), group("sink"), group("caller"));
    let mut server = mesh
        .node("server")
        .serves("web", workload.address())
        .identity("spiffe://acme/svc/web")
        .after(&for_server.join())
        .start()
        .await;
    let mut sink = mesh.node("sink").serves("deaf", deaf.address()).after(&for_sink.join()).start().await;
    let mut caller = mesh.node("caller").after(&for_caller.join()).start().await;
    caller.finds("web", 1).await;
    caller.finds("deaf", 1).await;

    for (what, head) in [
        ("slow readers", "GET /bytes/50000000 HTTP/1.1\r\nhost: web.mesh\r\n\r\n"),
        ("slow writers", "POST /echo HTTP/1.1\r\nhost: web.mesh\r\ncontent-length: 50000000\r\n\r\n"),
        ("deaf workload", "POST / HTTP/1.1\r\nhost: deaf.mesh\r\ncontent-length: 50000000\r\n\r\n"),
    ] {
        let mut clients = JoinSet::new();
        for _ in 0..1500 {
            let address = caller.http_proxy();
            clients.spawn(async move {
                let begun = match head.starts_with("GET") {
                    true => begin(address, head).await,
                    false => {
                        let mut stream = TcpStream::connect(address).await.ok()?;
                        stream.write_all(head.as_bytes()).await.ok()?;
                        // As much as anybody takes, until nobody takes more.
                        let chunk = vec![b'x'; 64 * 1024];
                        while let Ok(Ok(_)) =
                            tokio::time::timeout(Duration::from_secs(1), stream.write_all(&chunk)).await
                        {
                        }
                        Some((stream, StatusCode::CONTINUE))
                    }
                };
                tokio::time::sleep(Duration::from_secs(3)).await;
                begun.map(|(_, status)| status)
            });
        }
        let told = clients.join_all().await;
        let of = |status: StatusCode| told.iter().filter(|it| **it == Some(status)).count();
        println!(
            "{what}: {} served, {} refused, {} cut off; caller {} MiB ({}), server {}, sink {}",
            of(StatusCode::OK) + of(StatusCode::CONTINUE),
            of(StatusCode::SERVICE_UNAVAILABLE),
            told.iter().filter(|status| status.is_none()).count(),
            caller.resident_bytes() >> 20,
            for_caller.told(),
            for_server.told(),
            for_sink.told(),
        );
        recovers(&caller, "web").await;
    }
    for node in [&mut server, &mut sink, &mut caller] {
        node.terminate();
        assert!(node.ended().await.success(), "{} was not killed for its memory", node.name());
    }
}
