//! Workloads that speak TLS themselves: who is believed, who is not and why, over HTTP and TCP.

use std::io::ErrorKind;
use std::net::SocketAddr;

use http::Method;
use starling_tests::workload::{AppAuthority, Http, ServerTls, Tcp, read_to_end, sized_bytes};
use starling_tests::{HttpConnection, Mesh, Node, Reply, eventually, get, head_of, request, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const NAME: &str = "app.internal";
const HTTP: [&str; 2] = ["h2", "http/1.1"];

/// Keys of a service whose calls are looked at: the probes would fail as they do, and soon nobody would be called.
const UNPROBED: &str = "[service.probe]\noff = true";

struct World {
    server: Node,
    caller: Node,
    _mesh: Mesh,
}

/// The keys of a service at `scheme://address` that is believed if `roots` issued its certificate
/// for `NAME`.
fn section(mesh: &Mesh, scheme: &str, address: SocketAddr, roots: &AppAuthority, more: &str) -> String {
    let bundle = mesh.directory().join("app-ca.crt");
    std::fs::write(&bundle, roots.certificate_pem()).expect("a bundle");
    let protocol = if scheme == "tls" { "tcp" } else { "http" };
    format!(
        "address = \"{scheme}://{address}\"\nprotocol = {protocol:?}\n{more}\n\
         [service.tls]\ntrust_bundle = {bundle:?}\nserver_name = \"{NAME}\"\n"
    )
}

impl World {
    async fn new(mesh: Mesh, section: &str) -> Self {
        let server = mesh.node("server").serves_section("app", section).start().await;
        let caller = mesh.node("caller").calls("app").start().await;
        eventually("the caller to know the service", async || {
            (caller.admin().get("/v1/routes/app").await.status == 200).then_some(())
        })
        .await;
        Self { server, caller, _mesh: mesh }
    }

    /// A workload with HTTP over TLS.
    async fn http(tls: ServerTls, roots: &AppAuthority, more: &str) -> (Self, Http) {
        let mesh = Mesh::new();
        let workload = Http::start_tls(mesh.ip(), "app", tls).await;
        let section = section(&mesh, "https", workload.address(), roots, more);
        (Self::new(mesh, &section).await, workload)
    }

    async fn get(&self, path: &str) -> Reply {
        get(self.caller.http_proxy(), "app.mesh", path).await
    }
}

#[tokio::test]
async fn http_1_and_2_reach_a_workload_that_speaks_tls_and_its_probe_does() {
    let authority = AppAuthority::new();
    let tls = ServerTls::new(&authority.issue(NAME), &HTTP, None);
    let probe = "[service.probe]\nhttp = \"/status/200\"\ninterval = \"1s\"\ntimeout = \"1s\"";
    let mesh = Mesh::new();
    let workload = Http::start_tls(mesh.ip(), "app", tls).await;
    let section = section(&mesh, "https", workload.address(), &authority, "") + probe;
    let world = World::new(mesh, &section).await;
    world.caller.finds("app", 1).await;
    let seen = world.get("/seen").await.json();
    assert_eq!(
        (&seen["version"], head_of(&seen, "x-starling-peer")[0]),
        (&"HTTP/1.1".into(), "spiffe://acme/svc/caller")
    );
    let mut connection = HttpConnection::open(world.caller.outbound("app")).await;
    let body = sized_bytes(300_000);
    let reply = connection.send(request(Method::POST, "app", "/echo", body.clone())).await;
    assert_eq!(reply.status(), 200, "{}", reply.text());
    assert!(reply.body == body, "{} bytes", reply.body.len());
    // gRPC needs HTTP/2: nobody serves it here, and the workload itself says so.
    let uri = format!("http://{}", world.caller.outbound("app"));
    let mut client = HealthClient::new(Endpoint::from_shared(uri).expect("a URI").connect_lazy());
    let status = within("an answer", client.check(HealthCheckRequest::default())).await.expect_err("no gRPC");
    assert!(status.metadata().get("x-starling-flags").is_none(), "{status:?}");
    assert_ne!(status.code(), Code::Unavailable, "{status:?}");
}

#[tokio::test]
async fn a_workload_that_is_not_believed_is_uf_503_and_the_answer_says_why() {
    let (authority, other) = (AppAuthority::new(), AppAuthority::new());
    for (issued, says) in [
        (authority.issue("other.internal"), "its certificate is not for app.internal"),
        (other.issue(NAME), "its certificate was not issued under"),
        (authority.issue_expired(NAME), "its certificate has expired"),
    ] {
        let (world, workload) = World::http(ServerTls::new(&issued, &HTTP, None), &authority, UNPROBED).await;
        let reply = world.get("/").await;
        assert_eq!(
            (reply.status().as_u16(), reply.header("x-starling-flags")),
            (503, "UF"),
            "{}",
            reply.text()
        );
        assert!(reply.text().contains(says), "{}\nshould say: {says}", reply.text());
        assert!(workload.connections() > 0);
    }
}

#[tokio::test]
async fn a_probe_sees_a_certificate_that_is_not_believed() {
    let authority = AppAuthority::new();
    let tls = ServerTls::new(&authority.issue_expired(NAME), &HTTP, None);
    let mesh = Mesh::new();
    let workload = Http::start_tls(mesh.ip(), "app", tls).await;
    let probe = "[service.probe]\ntcp = true\ninterval = \"1s\"\ntimeout = \"1s\"";
    let section = section(&mesh, "https", workload.address(), &authority, "") + probe;
    let world = World::new(mesh, &section).await;
    eventually("an unhealthy instance", async || {
        let route = world.caller.admin().get("/v1/routes/app").await.json;
        (route["excluded"][0]["reason"] == "its node's probes fail").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_workload_without_tls_is_told_apart() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "app").await;
    let section = section(&mesh, "https", workload.address(), &AppAuthority::new(), UNPROBED);
    let world = World::new(mesh, &section).await;
    let reply = world.get("/").await;
    assert_eq!((reply.status().as_u16(), reply.header("x-starling-flags")), (503, "UF"), "{}", reply.text());
    assert!(reply.text().contains("does not speak TLS"), "{}", reply.text());
}

#[tokio::test]
async fn a_workload_that_asks_is_shown_this_nodes_certificate_for_it() {
    let (authority, clients) = (AppAuthority::new(), AppAuthority::new());
    let tls = ServerTls::new(&authority.issue(NAME), &HTTP, Some(&clients));
    let mesh = Mesh::new();
    let workload = Http::start_tls(mesh.ip(), "app", tls).await;
    let without = section(&mesh, "https", workload.address(), &authority, "");
    let issued = clients.issue("sidecar");
    let (certificate, key) = (mesh.directory().join("client.crt"), mesh.directory().join("client.key"));
    std::fs::write(&certificate, &issued.certificate).expect("a file");
    std::fs::write(&key, &issued.key).expect("a file");
    let with = format!("{without}certificate = {certificate:?}\nkey = {key:?}\n");
    let bare = mesh.node("bare").serves_section("bare", &without).start().await;
    let world = World::new(mesh, &with).await;
    assert_eq!(world.get("/").await.text(), "app");
    world.caller.finds("bare", 1).await;
    let refused = get(world.caller.http_proxy(), "bare.mesh", "/").await;
    assert_eq!(refused.status().as_u16(), 503, "{}", refused.text());
    drop(bare);
}

#[tokio::test]
async fn a_bundle_that_rotates_is_believed_without_a_restart() {
    let (old, new) = (AppAuthority::new(), AppAuthority::new());
    let mesh = Mesh::new();
    let workload = Http::start_tls(mesh.ip(), "app", ServerTls::new(&new.issue(NAME), &HTTP, None)).await;
    let section = section(&mesh, "https", workload.address(), &old, "");
    let bundle = mesh.directory().join("app-ca.crt");
    let world = World::new(mesh, &section).await;
    assert_eq!(world.get("/").await.status().as_u16(), 503);
    std::fs::write(&bundle, "half a file").expect("written");
    world.server.logs("the last good ones stay").await;
    std::fs::write(&bundle, format!("{}{}", old.certificate_pem(), new.certificate_pem())).expect("written");
    eventually("the new root to be believed", async || (world.get("/").await.status() == 200).then_some(()))
        .await;
}

/// Echoes over TLS; a connection that begins with `!` is dropped without `close_notify`.
async fn tls_echo(mesh: &Mesh, tls: ServerTls) -> Tcp {
    Tcp::start(mesh.ip(), move |stream| {
        let tls = tls.clone();
        async move {
            let Ok(mut stream) = tls.accept(stream).await else { return };
            let first = stream.read_u8().await.expect("a byte");
            stream.write_u8(first).await.expect("written");
            stream.flush().await.expect("flushed");
            if first == b'!' {
                return;
            }
            let (mut from, mut to) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        }
    })
    .await
}

#[tokio::test]
async fn tcp_over_tls_arrives_whole_and_an_end_without_a_word_is_a_reset() {
    let authority = AppAuthority::new();
    let mesh = Mesh::new();
    let workload = tls_echo(&mesh, ServerTls::new(&authority.issue(NAME), &[], None)).await;
    let section = section(&mesh, "tls", workload.address(), &authority, "");
    let world = World::new(mesh, &section).await;
    world.caller.finds("app", 1).await;
    let address = world.caller.outbound("app");

    let bytes = sized_bytes(3_000_000);
    let (mut from, mut to) = TcpStream::connect(address).await.expect("the port accepts").into_split();
    let sent = bytes.clone();
    let sending = tokio::spawn(async move {
        to.write_all(&sent).await.expect("sent");
        to.shutdown().await.expect("half closed");
        to
    });
    assert!(read_to_end(&mut from).await.expect("a clean end") == bytes, "other bytes");
    within("everything to be sent", sending).await.expect("sent");

    let mut client = TcpStream::connect(address).await.expect("the port accepts");
    client.write_u8(b'!').await.expect("written");
    let error = read_to_end(&mut client).await.expect_err("a reset, not an end");
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
}

#[tokio::test]
async fn tcp_to_a_workload_that_is_not_believed_is_reset() {
    let (authority, other) = (AppAuthority::new(), AppAuthority::new());
    let mesh = Mesh::new();
    let workload = tls_echo(&mesh, ServerTls::new(&other.issue(NAME), &[], None)).await;
    let section = section(&mesh, "tls", workload.address(), &authority, UNPROBED);
    let world = World::new(mesh, &section).await;
    let mut client = TcpStream::connect(world.caller.outbound("app")).await.expect("the port accepts");
    let _ = client.write_u8(b'x').await;
    read_to_end(&mut client).await.expect_err("a reset, not an end");
}
