//! Thousands of TCP connections that wait: what ten thousand of them cost the two sidecars, and what is
//! done about those for which there is no descriptor.

use std::io::Read as _;
use std::net::SocketAddr;
use std::process::Stdio;

use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use starling_tests::workload::Tcp;
use starling_tests::{Mesh, Node, eventually, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// Every connection that the workload sees is a client's: nobody probes it.
const TCP: &str = "protocol = \"tcp\"\n[service.probe]\noff = true";

/// How many wait.
const CONNECTIONS: usize = 10_000;

/// What a sidecar may hold with all of them.
const RESIDENT_BYTES_MAX: u64 = 200 * 1024 * 1024;

/// One in a hundred is asked for an answer.
const SAMPLED: usize = CONNECTIONS / 100;

/// Where the process that is the workload listens.
const WORKLOAD: &str = "STARLING_TESTS_IDLE_WORKLOAD";

/// For this process and for those that it starts: each has one end of every connection, but for a node,
/// which keeps a quarter of its descriptors back.
const DESCRIPTORS: u64 = CONNECTIONS as u64 / 3 * 4 + 500;

fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("the limit of open files");
    let enough = limit.maximum.is_none_or(|most| most >= DESCRIPTORS);
    assert!(enough, "this test needs {DESCRIPTORS} descriptors; raise `ulimit -Hn`");
}

/// Not a test: what [`start_workload`] makes a process of.
#[tokio::test]
async fn workload() {
    let Ok(address) = std::env::var(WORKLOAD) else { return };
    let listener = TcpListener::bind(&address).await.expect("an address of the test's own");
    let accepting = async {
        loop {
            let (stream, _) = listener.accept().await.expect("enough descriptors");
            tokio::spawn(echo(stream));
        }
    };
    // It ends with whoever started it.
    let leash = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]));
    tokio::select! {
        () = accepting => {}
        _ = leash => {}
    }
}

/// The workload is a process of its own, because one process may not have as many descriptors as both
/// ends of all connections need.
async fn start_workload(address: SocketAddr) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this test's own path"));
    command.args(["--exact", "workload"]).env(WORKLOAD, address.to_string());
    command.stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
    let process = command.spawn().expect("a workload");
    eventually("the workload to listen", async || TcpStream::connect(address).await.ok()).await;
    process
}

async fn echo(mut stream: TcpStream) {
    while let Ok(byte) = stream.read_u8().await {
        if stream.write_u8(byte).await.is_err() {
            return;
        }
    }
}

/// A connection through both nodes that has carried a byte each way.
async fn connect(address: SocketAddr) -> Option<TcpStream> {
    let mut client = TcpStream::connect(address).await.ok()?;
    says_back(&mut client, 1).await.then_some(client)
}

async fn says_back(client: &mut TcpStream, byte: u8) -> bool {
    if client.write_u8(byte).await.is_err() {
        return false;
    }
    within("an echo", client.read_u8()).await.is_ok_and(|heard| heard == byte)
}

fn check(node: &Node, before: u64) {
    let (after, own) = (node.resident_bytes(), node.anonymous_bytes());
    let each = own.saturating_sub(before) / CONNECTIONS as u64;
    println!("{}: {CONNECTIONS} connections cost {each} bytes each, {after} in all", node.name());
    assert!(after < RESIDENT_BYTES_MAX, "{} holds {after} bytes", node.name());
}

#[tokio::test]
async fn ten_thousand_idle_connections_fit_in_200_mib_at_each_end_and_are_there() {
    raise_descriptors();
    let mesh = Mesh::new();
    let address = mesh.free_address();
    let _workload = start_workload(address).await;
    let server = mesh.node("server").serves_as("db", address, TCP).start().await;
    let caller = mesh.node("caller").calls("db").start().await;
    caller.finds("db", 1).await;
    let before = [server.anonymous_bytes(), caller.anonymous_bytes()];

    let mut open = Vec::new();
    // As they come from a pool that fills up, some at a time; none ends before the last is there.
    for _ in (0..CONNECTIONS).step_by(50) {
        open.extend(join_all((0..50).map(|_| connect(caller.outbound("db")))).await);
    }
    let mut open: Vec<TcpStream> = open.into_iter().flatten().collect();
    assert_eq!(open.len(), CONNECTIONS, "some were not carried");
    for (node, before) in [&server, &caller].into_iter().zip(before) {
        check(node, before);
    }
    for client in open.iter_mut().step_by(CONNECTIONS / SAMPLED) {
        assert!(says_back(client, 2).await, "a connection that waited is gone");
    }
}

/// Few descriptors for one of the nodes, and then for the other.
#[tokio::test]
async fn what_has_no_descriptor_is_reset_and_the_rest_stays_and_makes_room() {
    for few in ["caller", "server"] {
        let mesh = Mesh::new();
        let workload = Tcp::start(mesh.ip(), echo).await;
        let describe = |name: &str| {
            let node = mesh.node(name);
            if name == few { node.after("ulimit -n 512") } else { node }
        };
        let server = describe("server").serves_as("db", workload.address(), TCP).start().await;
        let caller = describe("caller").calls("db").start().await;
        caller.finds("db", 1).await;

        let (mut open, mut refused) = (Vec::new(), 0);
        for _ in 0..16 {
            for tried in join_all((0..50).map(|_| connect(caller.outbound("db")))).await {
                match tried {
                    Some(client) => open.push(client),
                    None => refused += 1,
                }
            }
        }
        // A node keeps some back for itself, and a quarter for the other kind of connection.
        assert!((100..400).contains(&open.len()), "{few}: {} open, {refused} refused", open.len());
        for client in &mut open {
            assert!(says_back(client, 3).await, "{few}: a connection that had a descriptor is gone");
        }
        server.sees("caller", "alive").await;
        assert_eq!(caller.admin().get("/ready").await.status, 200, "people can ask");
        drop(open);
        eventually("room again", async || connect(caller.outbound("db")).await).await;
        let trouble = caller.admin().get("/v1/routes/db").await.json;
        assert_eq!(trouble["candidates"][0]["trouble"], serde_json::Value::Null, "{few}: {trouble}");
    }
}
