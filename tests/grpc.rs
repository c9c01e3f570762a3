//! gRPC through two nodes, with tonic's own health service: unary, streaming, and failures that a
//! gRPC client understands.

use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use starling_gossip::clock::Clock;
use starling_tests::{HttpConnection, Mesh, Node, UNPROBED, eventually, request, within};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Server};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::server::HealthReporter;

struct World {
    reporter: HealthReporter,
    address: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
    _server: Node,
    caller: Node,
    _mesh: Mesh,
}

impl World {
    async fn new() -> Self {
        Self::with("").await
    }

    /// With these sections for the caller's node.
    async fn with(sections: &str) -> Self {
        let mesh = Mesh::new();
        let listener = TcpListener::bind((mesh.ip(), 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("shop", tonic_health::ServingStatus::Serving).await;
        let serving = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            // As many streams on a connection as RFC 9113, section 6.5.2, asks for, and no more.
            let mut server = Server::builder().max_concurrent_streams(100);
            server.add_service(health).serve_with_incoming(incoming).await.expect("served");
        });
        let server = mesh.node("server").serves("health", address).start().await;
        let caller = mesh.node("caller").calls("health").sections(sections).start().await;
        caller.finds("health", 1).await;
        Self { reporter, address, serving, _server: server, caller, _mesh: mesh }
    }

    fn fixed(&self) -> HealthClient<Channel> {
        let uri = format!("http://{}", self.caller.outbound("health"));
        HealthClient::new(Endpoint::from_shared(uri).expect("a URI").connect_lazy())
    }

    fn by_name(&self, service: &str) -> HealthClient<Channel> {
        by_name(&self.caller, service)
    }
}

fn by_name(caller: &Node, service: &str) -> HealthClient<Channel> {
    let uri = format!("http://{}", caller.http_proxy());
    let origin = format!("http://{service}.mesh").parse().expect("a URI");
    HealthClient::new(Endpoint::from_shared(uri).expect("a URI").origin(origin).connect_lazy())
}

fn shop() -> HealthCheckRequest {
    HealthCheckRequest { service: "shop".into() }
}

#[tokio::test]
async fn a_unary_call_works_by_a_fixed_port_and_by_name() {
    let world = World::new().await;
    for mut client in [world.fixed(), world.by_name("health")] {
        for _ in 0..20 {
            let answer = within("an answer", client.check(shop())).await.expect("an answer").into_inner();
            assert_eq!(answer.status(), ServingStatus::Serving);
        }
        let unknown = HealthCheckRequest { service: "nothing".into() };
        let status = within("an answer", client.check(unknown)).await.expect_err("an error");
        assert_eq!(status.code(), Code::NotFound, "the server's own status passes: {status:?}");
    }
}

#[tokio::test]
async fn a_stream_delivers_each_message_when_it_is_sent() {
    let world = World::new().await;
    let mut updates =
        within("a stream", world.by_name("health").watch(shop())).await.expect("open").into_inner();
    let first = within("a message", updates.message()).await.expect("no error").expect("a message");
    assert_eq!(first.status(), ServingStatus::Serving);
    for (set, seen) in [
        (tonic_health::ServingStatus::NotServing, ServingStatus::NotServing),
        (tonic_health::ServingStatus::Serving, ServingStatus::Serving),
    ] {
        world.reporter.set_service_status("shop", set).await;
        let update = within("a message", updates.message()).await.expect("no error").expect("a message");
        assert_eq!(update.status(), seen);
    }
}

#[tokio::test]
async fn many_calls_share_a_connection() {
    let world = World::new().await;
    let client = world.fixed();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let mut client = client.clone();
        calls.spawn(async move { client.check(shop()).await });
    }
    while let Some(call) = within("all answers", calls.join_next()).await {
        call.expect("no panic").expect("an answer");
    }
}

#[tokio::test]
async fn a_workload_that_is_gone_is_unavailable() {
    let world = World::new().await;
    world.serving.abort();
    starling_tests::eventually("a closed port", async || {
        tokio::net::TcpStream::connect(world.address).await.is_err().then_some(())
    })
    .await;
    let status = within("an answer", world.by_name("health").check(shop())).await.expect_err("an error");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("server"), "it names the node: {status:?}");
}

#[tokio::test]
async fn a_service_that_nobody_announces_is_unimplemented() {
    let mesh = Mesh::new();
    let caller = mesh.node("caller").start().await;
    let status = within("an answer", by_name(&caller, "ghost").check(shop())).await.expect_err("an error");
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    assert!(status.message().contains("ghost"), "{status:?}");
}

#[tokio::test]
async fn a_call_that_hangs_ends_with_its_deadline() {
    let mesh = Mesh::new();
    let hung = starling_tests::workload::Tcp::start(mesh.ip(), async |mut stream| {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let _server = mesh.node("server").serves("health", hung.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("health", 1).await;
    // By hand, for tonic's own client would give up at the same moment.
    let mut request = request(Method::POST, "health.mesh", "/grpc.health.v1.Health/Check", "");
    for (name, value) in [("content-type", "application/grpc"), ("grpc-timeout", "500m")] {
        request.headers_mut().insert(name, value.parse().expect("a value"));
    }
    let start = Clock::System.now();
    let reply = HttpConnection::open(caller.http_proxy()).await.send(request).await;
    assert_eq!(reply.header("grpc-status"), "4", "{reply:?}");
    assert!(reply.header("grpc-message").contains("server"), "it names the node: {reply:?}");
    let took = Clock::System.now() - start;
    assert!((Duration::from_millis(500)..Duration::from_secs(5)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_stream_ends_with_its_deadline_and_says_so() {
    let world = World::new().await;
    let mut request = tonic::Request::new(shop());
    request.set_timeout(Duration::from_millis(1500));
    let mut updates =
        within("a stream", world.by_name("health").watch(request)).await.expect("open").into_inner();
    let first = within("a message", updates.message()).await.expect("no error").expect("a message");
    assert_eq!(first.status(), ServingStatus::Serving);
    let status = within("the end", updates.message()).await.expect_err("no orderly end");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.message().contains("the time that the request has"), "{status:?}");
}

#[tokio::test]
async fn work_beyond_the_limit_is_resource_exhausted() {
    let world = World::with("[limits]\nrequests_in_flight_max = 1").await;
    let mut updates =
        within("a stream", world.by_name("health").watch(shop())).await.expect("open").into_inner();
    within("a message", updates.message()).await.expect("no error").expect("a message");
    let status = within("an answer", world.by_name("health").check(shop())).await.expect_err("an error");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
}

/// A gRPC server that goes as a killed process does: all at once, its connections included.
struct Killable {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Killable {
    async fn start(mesh: &Mesh) -> Self {
        let (started, address) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let ip = mesh.ip();
        let thread = std::thread::spawn(move || {
            // Whatever tonic spawns ends with its runtime.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let listener = TcpListener::bind((ip, 0)).await.expect("a port");
                started.send(listener.local_addr().expect("an address")).expect("somebody waits");
                let (reporter, health) = tonic_health::server::health_reporter();
                reporter.set_service_status("shop", tonic_health::ServingStatus::Serving).await;
                let serving = Server::builder()
                    .add_service(health)
                    .serve_with_incoming(TcpListenerStream::new(listener));
                tokio::select! {
                    served = serving => served.expect("served"),
                    _ = stopped => {}
                }
            });
        });
        Self { address: within("a gRPC server", address).await.expect("an address"), stop, thread }
    }

    async fn kill(self) {
        drop(self.stop);
        let joined = tokio::task::spawn_blocking(|| self.thread.join());
        within("a gRPC server's end", joined).await.expect("no panic").expect("no panic");
    }
}

const PROBE: &str = "[service.probe]\ntcp = true\ninterval = \"200ms\"\ntimeout = \"200ms\"";

/// Two instances of `health`, probed with these keys, and a node that has called both.
async fn two_instances(mesh: &Mesh, probe: &str) -> (Killable, Killable, [Node; 2], Node) {
    let (doomed, other) = (Killable::start(mesh).await, Killable::start(mesh).await);
    let nodes = [
        mesh.node("one").serves_as("health", doomed.address, probe).start().await,
        mesh.node("two").serves_as("health", other.address, probe).start().await,
    ];
    let caller = mesh.node("caller").start().await;
    caller.finds("health", 2).await;
    let mut client = by_name(&caller, "health");
    eventually("calls to both", async || {
        within("an answer", client.check(shop())).await.expect("an answer");
        let route = caller.admin().get("/v1/routes/health").await.json;
        let used = route["candidates"].as_array()?.iter().filter(|one| one["requests"].as_u64() > Some(3));
        (used.count() == 2).then_some(())
    })
    .await;
    (doomed, other, nodes, caller)
}

#[tokio::test]
async fn a_killed_workload_of_two_is_passed_over_although_its_node_lives() {
    let mesh = Mesh::new();
    let (doomed, _other, _nodes, caller) = two_instances(&mesh, PROBE).await;
    doomed.kill().await;
    caller.finds("health", 1).await;
    let mut client = by_name(&caller, "health");
    for _ in 0..200 {
        let answer = within("an answer", client.check(shop())).await.expect("an answer");
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    }
}

#[tokio::test]
async fn a_killed_workload_that_nobody_probes_is_tried_less_and_less_often() {
    let mesh = Mesh::new();
    let (doomed, _other, _nodes, caller) = two_instances(&mesh, UNPROBED).await;
    let mut client = by_name(&caller, "health");
    let killed = Clock::System.now();
    doomed.kill().await;
    let mut failures = Vec::new();
    while (Clock::System.now() - killed).as_secs() < 6 {
        failures.extend(within("an answer", client.check(shop())).await.err());
    }
    // At 0, 250, 750, 1750 and 3750 ms; the first may be cut off and one more refused.
    assert!(failures.len() <= 8, "{} failed: {failures:#?}", failures.len());
}

#[tokio::test]
async fn streams_beyond_what_a_workloads_connection_takes_stay_open_side_by_side() {
    const CLIENTS: usize = 1;
    const STREAMS: usize = 300;
    let world = World::new().await;
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let client = world.by_name("health");
        for _ in 0..STREAMS {
            let mut client = client.clone();
            opening.spawn(async move {
                let mut updates = client.watch(shop()).await.expect("open").into_inner();
                let first = updates.message().await.expect("no error").expect("a message");
                assert_eq!(first.status(), ServingStatus::Serving);
                updates
            });
        }
    }
    let mut streams = within("all streams to begin", opening.join_all()).await;
    assert_eq!(streams.len(), CLIENTS * STREAMS);
    let answer = within("an answer", world.by_name("health").check(shop())).await.expect("an answer");
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    world.reporter.set_service_status("shop", tonic_health::ServingStatus::NotServing).await;
    for updates in &mut streams {
        let update = within("a message", updates.message()).await.expect("no error").expect("a message");
        assert_eq!(update.status(), ServingStatus::NotServing);
    }
}
