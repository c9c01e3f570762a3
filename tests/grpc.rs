//! gRPC through two nodes, with tonic's own health service: unary, streaming, and failures that a
//! gRPC client understands.

use std::net::SocketAddr;

use starling_tests::{Mesh, Node, within};
use tokio::net::TcpListener;
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
        let mesh = Mesh::new();
        let listener = TcpListener::bind((mesh.ip(), 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("shop", tonic_health::ServingStatus::Serving).await;
        let serving = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            Server::builder().add_service(health).serve_with_incoming(incoming).await.expect("served");
        });
        let server = mesh.node("server").serves("health", address).start().await;
        let caller = mesh.node("caller").calls("health").start().await;
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
