//! TCP through two nodes: every byte, both ends' ends, and a failure that looks like one.

use std::io::ErrorKind;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::SockRef;
use starling_gossip::clock::Clock;
use starling_tests::workload::{Tcp, read_to_end, sized_bytes};
use starling_tests::{Mesh, Node, connect_tunnel, eventually, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Every connection that the workload sees is a client's: nobody probes it.
const TCP: &str = "protocol = \"tcp\"\n[service.probe]\noff = true";

const LARGE_BYTES: usize = 64 * 1024 * 1024;

/// More than one QUIC connection carries at first.
const MANY: usize = 3_000;

struct World {
    workload: Option<Tcp>,
    server: Node,
    caller: Node,
    mesh: Mesh,
}

impl World {
    /// `db` behind one node, which has this conversation with everybody.
    async fn new<F>(talk: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mesh = Mesh::new();
        let workload = Tcp::start(mesh.ip(), talk).await;
        let server = mesh.node("server").serves_as("db", workload.address(), TCP).start().await;
        let caller = mesh.node("caller").calls("db").start().await;
        caller.finds("db", 1).await;
        Self { workload: Some(workload), server, caller, mesh }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.caller.outbound("db")).await.expect("the fixed port accepts")
    }
}

/// Says everything back until the client's end, then ends.
async fn echo(mut stream: TcpStream) {
    let (mut from, mut to) = stream.split();
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

/// For this process, which is client and workload, and for the nodes that it starts.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("the limit of open files");
    let enough = limit.maximum.is_none_or(|most| most as usize > MANY * 2 + 500);
    assert!(enough, "this test needs {} descriptors; raise `ulimit -Hn`", MANY * 2 + 500);
}

fn is_reset(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_first() {
    let world = World::new(async |mut stream| {
        stream.write_all(b"hello, who is it?\n").await.expect("greeted");
        let mut name = [0; 6];
        stream.read_exact(&mut name).await.expect("a name");
        stream.write_all(&name).await.expect("answered");
    })
    .await;
    let mut client = world.connect().await;
    let mut greeting = [0; 18];
    within("the greeting", client.read_exact(&mut greeting)).await.expect("greeted");
    assert_eq!(&greeting, b"hello, who is it?\n");
    client.write_all(b"Sturno").await.expect("written");
    assert_eq!(read_to_end(&mut client).await.expect("a clean end"), b"Sturno");
}

#[tokio::test]
async fn a_client_that_speaks_first_is_answered() {
    let world = World::new(echo).await;
    let mut client = world.connect().await;
    for turn in 0..20 {
        let said = format!("turn {turn}");
        client.write_all(said.as_bytes()).await.expect("written");
        let mut heard = vec![0; said.len()];
        within("an echo", client.read_exact(&mut heard)).await.expect("echoed");
        assert_eq!(heard, said.as_bytes());
    }
}

#[tokio::test]
async fn a_client_may_end_its_half_and_hear_the_rest() {
    let world = World::new(async |mut stream| {
        let heard = read_to_end(&mut stream).await.expect("the client's end");
        // Only now, after the end, comes the answer.
        stream.write_all(format!("{} bytes", heard.len()).as_bytes()).await.expect("answered");
    })
    .await;
    let mut client = world.connect().await;
    client.write_all(&sized_bytes(100_000)).await.expect("written");
    client.shutdown().await.expect("half closed");
    assert_eq!(read_to_end(&mut client).await.expect("a clean end"), b"100000 bytes");
}

#[tokio::test]
async fn a_server_may_end_its_half_and_hear_the_rest() {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let world = World::new(move |mut stream| {
        let told = told.clone();
        async move {
            stream.write_all(b"no more from me").await.expect("written");
            stream.shutdown().await.expect("half closed");
            let _ = told.send(read_to_end(&mut stream).await.expect("the client's end"));
        }
    })
    .await;
    let mut client = world.connect().await;
    assert_eq!(read_to_end(&mut client).await.expect("the server's end"), b"no more from me");
    client.write_all(b"and still I speak").await.expect("written");
    client.shutdown().await.expect("closed");
    let heard = within("the rest", heard.recv()).await.expect("told");
    assert_eq!(heard, b"and still I speak");
}

#[tokio::test]
async fn a_servers_reset_is_a_reset_and_not_an_end() {
    let world = World::new(async |mut stream| {
        stream.write_all(b"half of").await.expect("written");
        stream.read_u8().await.expect("the client has read");
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a reset at close");
    })
    .await;
    let mut client = world.connect().await;
    let mut half = [0; 7];
    within("the first half", client.read_exact(&mut half)).await.expect("half");
    client.write_u8(1).await.expect("written");
    let error = read_to_end(&mut client).await.expect_err("a reset, not an end");
    assert!(is_reset(&error), "{error}");
}

#[tokio::test]
async fn a_clients_reset_is_a_reset_and_not_an_end() {
    let (told, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let world = World::new(move |mut stream| {
        let told = told.clone();
        async move {
            stream.write_u8(1).await.expect("greeted");
            let _ = told.send(read_to_end(&mut stream).await);
        }
    })
    .await;
    let mut client = world.connect().await;
    within("the greeting", client.read_u8()).await.expect("greeted");
    client.write_all(b"half of").await.expect("written");
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("a reset at close");
    drop(client);
    let ended = within("the server's word", ended.recv()).await.expect("told");
    assert!(is_reset(ended.as_ref().expect_err("a reset, not an end")), "{ended:?}");
}

#[tokio::test]
async fn a_service_without_a_workload_resets_its_callers() {
    let mut world = World::new(echo).await;
    drop(world.workload.take());
    let reset = eventually("refusal", async || {
        // It may come before the client knows that it is connected.
        let mut client = match TcpStream::connect(world.caller.outbound("db")).await {
            Ok(client) => client,
            Err(reset) => return Some(reset),
        };
        client.write_all(b"anybody?").await.ok()?;
        read_to_end(&mut client).await.err()
    })
    .await;
    assert!(is_reset(&reset), "{reset}");
    let caller = world.mesh.node("stranger").calls("ghost").start().await;
    let mut client = TcpStream::connect(caller.outbound("ghost")).await.expect("the port accepts");
    client.write_all(b"\x16\x03\x01 no HTTP, nobody there").await.expect("written");
    // Nobody knows yet what it would speak; what is said is no HTTP, and not the service's word.
    let heard = read_to_end(&mut client).await.unwrap_or_default();
    assert!(heard.is_empty() || heard.starts_with(b"HTTP/1.1 4"), "{heard:?}");
}

#[tokio::test]
async fn a_node_killed_in_mid_stream_resets_its_callers() {
    let mut world = World::new(echo).await;
    let mut client = world.connect().await;
    client.write_u8(1).await.expect("written");
    within("an echo", client.read_u8()).await.expect("echoed");
    world.server.kill().await;
    let error = read_to_end(&mut client).await.expect_err("a reset, not an end");
    assert!(is_reset(&error), "{error}");
}

#[tokio::test]
async fn a_tunnel_whose_far_node_is_killed_ends_in_an_error() {
    let mut world = World::new(async |mut stream| {
        // It goes on until somebody stops it.
        while stream.write_all(&sized_bytes(64 * 1024)).await.is_ok() {}
    })
    .await;
    let (head, tunnel) = connect_tunnel(world.caller.http_proxy(), "db.mesh:5432").await;
    assert_eq!(head.status, 200);
    let mut tunnel = tunnel.expect("a tunnel");
    let mut begun = vec![0; 1024 * 1024];
    within("a megabyte", tunnel.read_exact(&mut begun)).await.expect("read");
    world.server.kill().await;
    let error = read_to_end(&mut tunnel).await.expect_err("a reset, not an end");
    assert!(is_reset(&error), "{error}");
}

#[tokio::test]
async fn a_client_that_comes_before_its_service_is_served_once_it_appears() {
    let mesh = Mesh::new();
    let caller = mesh.node("caller").calls("db").start().await;
    let port = caller.outbound("db");
    let workload = Tcp::start(mesh.ip(), async |mut stream| {
        stream.write_all(b"hello").await.expect("greeted");
        let _ = read_to_end(&mut stream).await;
    })
    .await;
    // Nobody can say beforehand when the service will be known: somebody new calls all the time, and
    // afterwards we see who came just before.
    let mut clients = tokio::task::JoinSet::new();
    let appearing = eventually("the service to be known", async || {
        let connected = Clock::System.now();
        clients.spawn(async move {
            let mut client = TcpStream::connect(port).await.expect("the fixed port accepts");
            let mut greeting = Vec::new();
            let mut client = (&mut client).take(5);
            let heard = within("a greeting or a reset", client.read_to_end(&mut greeting)).await;
            (connected, heard.map(|_| greeting))
        });
        let route = caller.admin().get("/v1/routes/db").await;
        (route.status == 200).then(|| Clock::System.now())
    });
    let server = mesh.node("server").serves_tcp("db", workload.address());
    let (appeared, _server) = tokio::join!(appearing, server.start());
    let mut early = 0;
    for (connected, heard) in within("every client", clients.join_all()).await {
        let waited = appeared.saturating_duration_since(connected);
        match heard {
            Ok(greeting) => assert_eq!(greeting, b"hello", "a client {waited:?} before its service"),
            Err(error) => {
                assert!(is_reset(&error), "{error}");
                assert!(waited > Duration::from_millis(700), "reset {waited:?} before its service");
            }
        }
        early += usize::from(waited > Duration::from_millis(50));
    }
    assert!(early > 0, "nobody came early");
}

#[tokio::test]
async fn a_client_that_waits_for_a_service_that_never_appears_is_reset() {
    let mesh = Mesh::new();
    let caller = mesh.node("caller").calls("ghost").start().await;
    let since = Clock::System.now();
    let mut client = TcpStream::connect(caller.outbound("ghost")).await.expect("the fixed port accepts");
    let mut heard = Vec::new();
    let ended = within("a reset", client.read_to_end(&mut heard)).await;
    assert!(is_reset(&ended.expect_err("a reset, not an end")));
    assert_eq!(heard, b"", "nothing it would take for its server's word");
    let waited = Clock::System.now() - since;
    assert!(waited < Duration::from_secs(20), "{waited:?}");
}

#[tokio::test]
async fn large_transfers_arrive_byte_for_byte_in_both_directions_at_once() {
    let world = World::new(async |stream| {
        let (mut from, mut to) = stream.into_split();
        let sending = tokio::spawn(async move {
            to.write_all(&sized_bytes(LARGE_BYTES)).await.expect("sent");
            to.shutdown().await.expect("ended");
        });
        let heard = read_to_end(&mut from).await.expect("the client's end");
        assert!(heard == sized_bytes(LARGE_BYTES), "{} bytes of {LARGE_BYTES}, or others", heard.len());
        sending.await.expect("sent");
    })
    .await;
    let (mut from, mut to) = world.connect().await.into_split();
    let sending = tokio::spawn(async move {
        to.write_all(&sized_bytes(LARGE_BYTES)).await.expect("sent");
        to.shutdown().await.expect("ended");
    });
    let heard = read_to_end(&mut from).await.expect("the server's end");
    assert!(heard == sized_bytes(LARGE_BYTES), "{} bytes of {LARGE_BYTES}, or others", heard.len());
    within("everything to be sent", sending).await.expect("sent");
}

#[tokio::test]
async fn an_idle_connection_outlives_many_gossip_rounds() {
    let world = World::new(echo).await;
    let mut client = world.connect().await;
    client.write_u8(1).await.expect("written");
    within("an echo", client.read_u8()).await.expect("echoed");
    let renewals = async || {
        let metrics = world.caller.admin().get("/metrics").await.text;
        let line = metrics.lines().find(|line| line.starts_with("starling_gossip_records_total"))?;
        line.rsplit(' ').next()?.parse::<f64>().ok()
    };
    let before = eventually("a count", async || renewals().await).await;
    eventually("other traffic", async || (renewals().await? > before + 8.0).then_some(())).await;
    client.write_u8(2).await.expect("written");
    assert_eq!(within("an echo", client.read_u8()).await.expect("still there"), 2);
}

#[tokio::test]
async fn a_tunnel_by_connect_carries_tcp_too() {
    let world = World::new(echo).await;
    let (head, tunnel) = connect_tunnel(world.caller.http_proxy(), "db.mesh:5432").await;
    assert_eq!(head.status, 200);
    let mut tunnel = tunnel.expect("a tunnel");
    tunnel.write_all(b"through").await.expect("written");
    tunnel.shutdown().await.expect("half closed");
    assert_eq!(read_to_end(&mut tunnel).await.expect("a clean end"), b"through");
}

#[tokio::test]
async fn thousands_of_connections_to_one_endpoint_all_carry_bytes() {
    raise_descriptors();
    let world = World::new(echo).await;
    let talk = async |number: usize| {
        let mut client = world.connect().await;
        client.write_u64(number as u64).await.ok()?;
        let heard = within("an echo", client.read_u64()).await.ok()?;
        (heard == number as u64).then_some(client)
    };
    // As they come from a pool that fills up, some at a time; none ends before the last is there.
    let mut open = Vec::new();
    for first in (0..MANY).step_by(50) {
        open.extend(join_all((first..first + 50).map(talk)).await);
    }
    let broken = open.iter().filter(|client| client.is_none()).count();
    assert_eq!(broken, 0, "of {MANY}");
    let trouble = world.caller.admin().get("/v1/routes/db").await.json;
    assert_eq!(trouble["candidates"][0]["trouble"], serde_json::Value::Null, "{trouble}");
}

/// The same, for a workload that asks who calls.
const PROXY_PROTOCOL: &str = "protocol = \"tcp\"\nproxy_protocol = true\n[service.probe]\ntcp = true";

#[tokio::test]
async fn a_workload_that_asks_hears_who_calls_before_the_first_byte() {
    let mesh = Mesh::new();
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let workload = Tcp::start(mesh.ip(), move |mut stream| {
        let heard = heard.clone();
        async move {
            let mut head = [0; 16];
            if stream.read_exact(&mut head).await.is_err() {
                return;
            }
            let mut rest = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
            stream.read_exact(&mut rest).await.expect("a whole header");
            let _ = heard.send((head, rest));
            echo(stream).await;
        }
    })
    .await;
    let to = workload.address();
    let _server = mesh.node("server").serves_as("db", to, PROXY_PROTOCOL).start().await;
    let caller = mesh.node("caller").calls("db").start().await;
    caller.finds("db", 1).await;
    let mut client = TcpStream::connect(caller.outbound("db")).await.expect("the fixed port accepts");
    // A signature that a client sends itself is a byte like any other.
    client.write_all(b"\r\n\r\n\0\r\nQUIT\n forged").await.expect("written");
    client.shutdown().await.expect("half closed");
    assert_eq!(read_to_end(&mut client).await.expect("an echo"), b"\r\n\r\n\0\r\nQUIT\n forged");
    let (head, rest) = loop {
        let (head, rest) = within("a header", hears.recv()).await.expect("one");
        assert!(head.starts_with(b"\r\n\r\n\0\r\nQUIT\n"), "{head:?}");
        match head[12] {
            // A probe's.
            0x20 => assert!(rest.is_empty()),
            _ => break (head, rest),
        }
    };
    assert_eq!(head[12..14], [0x21, 0x11], "PROXY, TCP over IPv4");
    let (from, id) = (caller.listen(), b"spiffe://acme/svc/caller");
    let expected = [
        &mesh.ip().octets()[..],
        &mesh.ip().octets(),
        &from.port().to_be_bytes(),
        &to.port().to_be_bytes(),
        &[0xE0, 0, u8::try_from(id.len()).expect("short")],
        id,
    ];
    assert_eq!(rest, expected.concat());
}
