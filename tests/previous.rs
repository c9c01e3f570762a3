//! Nodes of the version before and of this one in one mesh: who calls whom does not matter. The
//! script `tests/previous` builds the other version and runs this.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use starling_gossip::clock::Clock;
use starling_tests::workload::{Http, Tcp};
use starling_tests::{HttpConnection, Mesh, Node, Reply, get, request, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Calls of each kind between each pair.
const CALLS: usize = 20;

fn previous() -> PathBuf {
    std::env::var_os("STARLING_PREVIOUS").expect("run by tests/previous, which sets STARLING_PREVIOUS").into()
}

async fn echo(mut stream: TcpStream) {
    let (mut from, mut to) = stream.split();
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

/// Longer than what sidecars tell one another in messages of their own: this goes in HTTP.
const LONG_BYTES: usize = 100_000;

/// A request with a body in HTTP/2, which must come back whole.
async fn echo_in_http2(caller: &Node, http: &str, body: &Bytes) {
    let stream = TcpStream::connect(caller.http_proxy()).await.expect("accepted");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::post(format!("http://{http}.mesh/echo")).body(Full::new(body.clone()));
    let answer = within("an answer", sender.send_request(request.expect("a request"))).await;
    let reply = Reply::read(answer.expect("answered")).await;
    assert_eq!(reply.status(), 200, "{} to {http}: {}", caller.name(), reply.text());
    assert!(reply.body == *body, "{} to {http}: {} bytes", caller.name(), reply.body.len());
}

/// One kept TCP connection and many requests, all of which must be answered.
async fn calls(caller: &Node, http: &str, tcp: &str) {
    let mut kept = TcpStream::connect(caller.outbound(tcp)).await.expect("accepted");
    for number in 0..CALLS {
        let reply = get(caller.http_proxy(), &format!("{http}.mesh"), "/").await;
        assert_eq!(reply.status(), 200, "{} to {http}: {}", caller.name(), reply.text());
        let body = if number % 2 == 0 { Bytes::from_static(b"short") } else { vec![b'x'; LONG_BYTES].into() };
        let mut kept_http = HttpConnection::open(caller.http_proxy()).await;
        let request = request(Method::POST, &format!("{http}.mesh"), "/echo", body.clone());
        let reply = kept_http.send(request).await;
        assert!(reply.status() == 200 && reply.body == body, "{} to {http}: {}", caller.name(), reply.text());
        echo_in_http2(caller, http, &body).await;
        let byte = u8::try_from(number).expect("few");
        kept.write_u8(byte).await.expect("written");
        assert_eq!(
            within("an echo", kept.read_u8()).await.expect("echoed"),
            byte,
            "{} to {tcp}",
            caller.name()
        );
    }
}

#[tokio::test]
async fn two_versions_are_one_mesh() {
    let mesh = Mesh::new();
    let (web, shop) = (Http::start(mesh.ip(), "web").await, Http::start(mesh.ip(), "shop").await);
    let (db, cache) = (Tcp::start(mesh.ip(), echo).await, Tcp::start(mesh.ip(), echo).await);
    // The first node, by which all others join, is of the old version; half of each kind is new.
    let old = previous();
    let mut old_web = mesh.node("old-web").program(&old).serves("web", web.address()).start().await;
    let old_db = mesh.node("old-db").program(&old).serves_tcp("db", db.address()).start().await;
    let mut new_shop = mesh.node("new-shop").serves("shop", shop.address()).start().await;
    let new_cache = mesh.node("new-cache").serves_tcp("cache", cache.address()).start().await;
    let old_caller = mesh.node("old-caller").program(&old).calls("db").calls("cache").start().await;
    let new_caller = mesh.node("new-caller").calls("db").calls("cache").start().await;
    for caller in [&old_caller, &new_caller] {
        for service in ["web", "db", "shop", "cache"] {
            caller.finds(service, 1).await;
        }
    }
    calls(&old_caller, "shop", "cache").await;
    calls(&new_caller, "web", "db").await;
    calls(&old_caller, "web", "db").await;
    calls(&new_caller, "shop", "cache").await;

    // Each version hears the other's withdrawal at once, and not by a lease that runs out.
    let asked = Clock::System.now();
    old_web.terminate();
    new_shop.terminate();
    for caller in [&old_caller, &new_caller] {
        caller.sees("old-web", "left").await;
        caller.sees("new-shop", "left").await;
    }
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    assert!(old_web.ended().await.success() && new_shop.ended().await.success());

    // One is upgraded and one set back, each with its own files.
    old_web.restart_as(new_caller.program()).await;
    new_shop.restart_as(&old).await;
    for caller in [&old_caller, &new_caller] {
        for service in ["web", "shop"] {
            caller.finds(service, 1).await;
        }
        calls(caller, "web", "db").await;
        calls(caller, "shop", "cache").await;
    }
    drop((old_db, new_cache));
}
