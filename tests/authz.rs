//! Who may call: a list at the callee, obeyed before a byte reaches its workload.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Method;
use starling_tests::workload::{Http, Tcp, read_to_end};
use starling_tests::{
    HttpConnection, Mesh, Node, Reply, connect_tunnel, eventually, get, head_of, request, within,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

// Nobody probes them: whoever connects to the workload is a caller.
const ONLY_WEB: &str = "allow = [\"spiffe://acme/svc/web\"]\n[service.probe]\noff = true";
const ONLY_SHOP: &str =
    "allow = [\"spiffe://acme/svc/web\", \"spiffe://acme/ns/shop/*\"]\n[service.probe]\noff = true";
const JSON_LOG: &str = "[access_log]\nformat = \"json\"\npath = \"access.log\"\n";

/// A node called `name` that knows `count` instances of `service`.
async fn caller(mesh: &Mesh, name: &str, service: &str, count: usize) -> Node {
    let node = mesh.node(name).calls(service).start().await;
    node.finds(service, count).await;
    node
}

#[track_caller]
fn is_denied(reply: &Reply) {
    assert_eq!(reply.status(), 403, "{}", reply.text());
    assert_eq!((reply.header("server"), reply.header("x-starling-flags")), ("starling", "RBAC"));
    assert!(reply.text().starts_with("starling: RBAC: node "), "{}", reply.text());
}

/// Why this node gives the service's first instance no work, if it does not.
async fn trouble(node: &Node, service: &str) -> Option<String> {
    let route = node.admin().get(&format!("/v1/routes/{service}")).await.json;
    route["candidates"][0]["trouble"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn who_is_not_listed_is_answered_403_and_never_reaches_the_workload() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "db").await;
    let server = mesh.node("server").serves_as("db", workload.address(), ONLY_WEB);
    let server = server.sections(JSON_LOG).start().await;
    let stranger = caller(&mesh, "stranger", "db", 1).await;
    for _ in 0..20 {
        let reply = get(stranger.http_proxy(), "db.mesh", "/secret").await;
        is_denied(&reply);
        assert!(reply.text().contains("not on the service's list: spiffe://acme/svc/stranger"));
    }
    let mut connection = HttpConnection::open(stranger.outbound("db")).await;
    is_denied(&connection.send(request(Method::POST, "db", "/", "a body")).await);
    assert!(connection.is_open().await, "a refusal costs the caller no connection");
    assert_eq!(workload.connections(), 0);
    assert_eq!(trouble(&stranger, "db").await, None, "a denial is no failure of the endpoint");

    let web = caller(&mesh, "web", "db", 1).await;
    let seen = get(web.http_proxy(), "db.mesh", "/seen").await;
    assert_eq!(head_of(&seen.json(), "x-starling-peer"), ["spiffe://acme/svc/web"]);

    let told = server.log();
    let lines: Vec<&str> = told.lines().filter(|line| line.contains("caller denied")).collect();
    let [line] = lines[..] else { panic!("one line for one caller, not {}", lines.len()) };
    assert!(line.contains("WARN") && line.contains("spiffe://acme/svc/stranger"), "{line}");
    let metrics = server.admin().get("/metrics").await.text;
    for series in [
        "starling_access_decisions_total{service=\"db\",decision=\"denied\",rule=\"\"}",
        "starling_access_decisions_total{service=\"db\",decision=\"allowed\",rule=\"spiffe://acme/svc/web\"}",
        "peer=\"other\",status=\"0\",flags=\"RBAC\"",
    ] {
        assert!(metrics.contains(series), "{series} is not in\n{metrics}");
    }
    let log = std::fs::read_to_string(server.directory().join("access.log")).expect("an access log");
    let denied = log.lines().find(|line| line.contains("RBAC")).expect("a line");
    assert!(denied.contains("\"peer\":\"spiffe://acme/svc/stranger\""), "{denied}");
    let allowed = log.lines().find(|line| line.contains("/seen")).expect("a line");
    assert!(allowed.contains("\"rule\":\"spiffe://acme/svc/web\""), "{allowed}");
}

#[tokio::test]
async fn a_star_lets_in_whoever_is_below_it() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "db").await;
    let _server = mesh.node("server").serves_as("db", workload.address(), ONLY_SHOP).start().await;
    for (name, identity, status) in [
        ("cart", "spiffe://acme/ns/shop/sa/cart", 200),
        ("deep", "spiffe://acme/ns/shop/eu/sa/cart", 200),
        ("shopping", "spiffe://acme/ns/shopping/sa/cart", 403),
        ("web", "spiffe://acme/svc/web", 200),
        ("web-2", "spiffe://acme/svc/web-2", 403),
    ] {
        let node = mesh.node(name).identity(identity).start().await;
        node.finds("db", 1).await;
        let reply = get(node.http_proxy(), "db.mesh", "/").await;
        assert_eq!(reply.status().as_u16(), status, "{identity}: {}", reply.text());
    }
}

#[tokio::test]
async fn an_empty_list_is_nobody_and_the_nodes_own_probes_still_pass() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "db").await;
    let keys =
        "allow = []\n[service.probe]\nhttp = \"/status/200\"\ninterval = \"100ms\"\ntimeout = \"100ms\"";
    let _server = mesh.node("server").serves_as("db", workload.address(), keys).start().await;
    let web = caller(&mesh, "web", "db", 1).await;
    let reply = get(web.http_proxy(), "db.mesh", "/").await;
    is_denied(&reply);
    assert!(reply.text().contains("nobody may call this service"), "{}", reply.text());
}

#[tokio::test]
async fn a_grpc_client_is_told_permission_denied() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "db").await;
    let _server = mesh.node("server").serves_as("db", workload.address(), ONLY_WEB).start().await;
    let stranger = caller(&mesh, "stranger", "db", 1).await;
    let uri = format!("http://{}", stranger.outbound("db"));
    let mut client = HealthClient::new(Endpoint::from_shared(uri).expect("a URI").connect_lazy());
    for _ in 0..3 {
        let answer = within("an answer", client.check(HealthCheckRequest::default())).await;
        let status = answer.expect_err("an error");
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
        assert!(status.message().contains("does not let this caller in"), "{status:?}");
    }
    assert_eq!(workload.connections(), 0);
}

/// Counts its connections and says everything back.
async fn counting_echo(mesh: &Mesh) -> (Tcp, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let workload = Tcp::start(mesh.ip(), move |mut stream| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        }
    })
    .await;
    (workload, connections)
}

async fn say(address: SocketAddr) -> std::io::Result<Vec<u8>> {
    // It may be reset before it knows that it is connected.
    let mut client = TcpStream::connect(address).await?;
    client.write_all(b"hello").await?;
    client.shutdown().await?;
    read_to_end(&mut client).await
}

#[tokio::test]
async fn a_tcp_connection_of_who_is_not_listed_is_reset_and_never_reaches_the_workload() {
    let mesh = Mesh::new();
    let (workload, connections) = counting_echo(&mesh).await;
    let keys = format!("protocol = \"tcp\"\n{ONLY_WEB}");
    let _server = mesh.node("server").serves_as("db", workload.address(), &keys).start().await;
    let stranger = caller(&mesh, "stranger", "db", 1).await;
    for _ in 0..5 {
        say(stranger.outbound("db")).await.expect_err("a reset, not an end");
    }
    let (head, tunnel) = connect_tunnel(stranger.http_proxy(), "db.mesh:5432").await;
    assert_eq!((head.status.as_u16(), tunnel.is_none()), (403, true));
    assert_eq!(connections.load(Ordering::SeqCst), 0);
    assert_eq!(trouble(&stranger, "db").await, None);
    let web = caller(&mesh, "web", "db", 1).await;
    assert_eq!(say(web.outbound("db")).await.expect("an echo"), b"hello");
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

/// While a list is rolled out some instances have it and some do not.
#[tokio::test]
async fn a_request_that_one_instance_denies_is_served_by_another() {
    let mesh = Mesh::new();
    let (strict, lax) = (Http::start(mesh.ip(), "strict").await, Http::start(mesh.ip(), "lax").await);
    let _strict = mesh.node("strict").serves_as("db", strict.address(), ONLY_WEB).start().await;
    let _lax = mesh.node("lax").serves("db", lax.address()).start().await;
    let stranger = caller(&mesh, "stranger", "db", 2).await;
    let mut connection = HttpConnection::open(stranger.http_proxy()).await;
    for _ in 0..20 {
        // Nothing of a denied request is sent, so one that may not be sent twice goes on, too.
        let reply = connection.send(request(Method::POST, "db.mesh", "/", "once")).await;
        assert_eq!((reply.status().as_u16(), reply.text().as_str()), (200, "lax"));
    }
    assert_eq!(strict.connections(), 0);
    assert_eq!(trouble(&stranger, "db").await, None);
}

#[tokio::test]
async fn another_list_holds_from_the_restart_on() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "db").await;
    let mut server = mesh.node("server").serves_as("db", workload.address(), ONLY_WEB).start().await;
    let stranger = caller(&mesh, "stranger", "db", 1).await;
    is_denied(&get(stranger.http_proxy(), "db.mesh", "/").await);
    let file = server.directory().join("starling.toml");
    let text = std::fs::read_to_string(&file).expect("a configuration");
    std::fs::write(&file, text.replace(ONLY_WEB, "allow = [\"spiffe://acme/svc/stranger\"]"))
        .expect("written");
    server.terminate();
    server.ended().await;
    server.restart().await;
    eventually("the stranger to be let in", async || {
        (get(stranger.http_proxy(), "db.mesh", "/").await.status() == 200).then_some(())
    })
    .await;
    let web = caller(&mesh, "web", "db", 1).await;
    is_denied(&get(web.http_proxy(), "db.mesh", "/").await);
}
