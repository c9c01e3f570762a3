//! Certificates replaced under running nodes: what lives goes on, what is new uses the new.

use starling_tests::workload::{Http, Tcp};
use starling_tests::{HttpConnection, Mesh, Node, eventually, request, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

async fn echo(mut stream: TcpStream) {
    let (mut from, mut to) = stream.split();
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

async fn says_back(client: &mut TcpStream, byte: u8) {
    client.write_u8(byte).await.expect("written");
    assert_eq!(within("an echo", client.read_u8()).await.expect("echoed"), byte);
}

async fn certificate_end(node: &Node) -> u64 {
    node.admin().get("/v1/node").await.json["certificate_not_after"].as_u64().expect("seconds")
}

/// Issues until the end of validity, counted in seconds, differs; then waits until it is used.
async fn rotate(mesh: &Mesh, node: &Node, id: &str) {
    let before = certificate_end(node).await;
    let issued = eventually("another second", async || {
        let issued = mesh.issue(id);
        (issued.not_after.unix_seconds() != before).then_some(issued)
    })
    .await;
    node.rotate(&issued);
    let expected = issued.not_after.unix_seconds();
    eventually("the new certificate in use", async || {
        (certificate_end(node).await == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn streams_live_on_while_every_certificate_is_replaced_twice() {
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), echo).await;
    let server = mesh.node("server").serves_tcp("db", workload.address()).start().await;
    let caller = mesh.node("caller").calls("db").start().await;
    caller.finds("db", 1).await;
    let mut old = TcpStream::connect(caller.outbound("db")).await.expect("accepted");
    says_back(&mut old, 0).await;
    for round in 1..=2 {
        rotate(&mesh, &server, "spiffe://acme/svc/db").await;
        rotate(&mesh, &caller, "spiffe://acme/svc/caller").await;
        says_back(&mut old, round).await;
        let mut new = TcpStream::connect(caller.outbound("db")).await.expect("accepted");
        says_back(&mut new, round).await;
    }
    // The records are signed anew, so that a node that joins now believes them.
    let late = mesh.node("late").calls("db").start().await;
    late.finds("db", 1).await;
    says_back(&mut TcpStream::connect(late.outbound("db")).await.expect("accepted"), 9).await;
    says_back(&mut old, 10).await;
}

#[tokio::test]
async fn requests_never_fail_while_certificates_are_replaced() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let mut proxy = HttpConnection::open(caller.http_proxy()).await;
    let asking = async {
        loop {
            let reply = proxy.send(request(http::Method::POST, "web.mesh", "/", "x")).await;
            assert_eq!(reply.status(), 200, "{}", reply.text());
        }
    };
    let rotating = async {
        rotate(&mesh, &server, "spiffe://acme/svc/web").await;
        rotate(&mesh, &caller, "spiffe://acme/svc/caller").await;
    };
    tokio::select! {
        () = rotating => {}
        () = asking => {}
    }
}

#[tokio::test]
async fn another_identity_is_refused_and_the_old_one_stays() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let before = certificate_end(&server).await;
    server.rotate(&mesh.issue("spiffe://acme/svc/bank"));
    server.logs("the SPIFFE ID changed from spiffe://acme/svc/web to spiffe://acme/svc/bank").await;
    assert_eq!(certificate_end(&server).await, before);
    let node = server.admin().get("/v1/node").await.json;
    assert_eq!(node["identity"], "spiffe://acme/svc/web");
    let reply = starling_tests::get(caller.http_proxy(), "web.mesh", "/").await;
    assert_eq!(reply.status(), 200);
    // Said once, not once a second; and over as soon as the files are right again.
    rotate(&mesh, &server, "spiffe://acme/svc/web").await;
    assert_eq!(server.log().matches("the SPIFFE ID changed").count(), 1);
}

#[tokio::test]
async fn unusable_files_are_logged_and_the_last_good_ones_stay() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let (foreign, _root) = mesh.issue_foreign("spiffe://acme/svc/web");
    for spoiled in [mesh.issue_expired("spiffe://acme/svc/web"), foreign] {
        let logged = server.log().matches("cannot be used").count();
        server.rotate(&spoiled);
        eventually("a warning", async || {
            (server.log().matches("cannot be used").count() > logged).then_some(())
        })
        .await;
        let reply = starling_tests::get(caller.http_proxy(), "web.mesh", "/").await;
        assert_eq!(reply.status(), 200);
    }
}
