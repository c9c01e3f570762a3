//! HTTP/2 through two nodes, where it differs from HTTP/1.1: authority and large heads.

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::Full;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use starling_tests::workload::Http;
use starling_tests::{Mesh, Node, Reply, UNPROBED, head_of, within};
use tokio::net::TcpStream;

/// Three quarters of what may pass, and three times what HTTP libraries take by default.
const LARGE_HEAD_BYTES: usize = 48 * 1024;

/// `web` behind one node, and another that calls it.
struct World {
    caller: Node,
    _server: Node,
    _mesh: Mesh,
}

impl World {
    async fn before(mesh: Mesh, workload: std::net::SocketAddr) -> Self {
        let server = mesh.node("server").serves_as("web", workload, UNPROBED).start().await;
        let caller = mesh.node("caller").calls("web").start().await;
        caller.finds("web", 1).await;
        Self { caller, _server: server, _mesh: mesh }
    }

    async fn client(&self) -> SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.caller.outbound("web")).await.expect("the port accepts");
        let mut builder = Builder::new(TokioExecutor::new());
        builder.max_header_list_size(2 * LARGE_HEAD_BYTES as u32);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("HTTP/2");
        tokio::spawn(connection);
        sender
    }
}

fn post(path: &str, body: &'static str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(Method::POST).uri(format!("http://web.mesh{path}"));
    request.body(Full::new(body.into())).expect("a request")
}

async fn send(sender: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Reply {
    let response = within("a head", sender.send_request(request)).await.expect("an answer");
    Reply::read(response).await
}

#[tokio::test]
async fn a_host_stands_for_a_missing_authority() {
    let mesh = Mesh::new();
    let http = Http::start(mesh.ip(), "web").await;
    let world = World::before(mesh, http.address()).await;
    // hyper sends no authority for a target in origin form, if it is asked to forward HTTP/1.1.
    let request = Request::builder().version(Version::HTTP_11).uri("/seen?a=1").header("host", "any.example");
    let request = request.body(Full::default()).expect("a request");
    let reply = send(&mut world.client().await, request).await;
    assert_eq!(reply.status(), StatusCode::OK, "{}", reply.text());
    let seen = reply.json();
    assert_eq!(seen["target"], "http://any.example/seen?a=1");
    assert!(head_of(&seen, "host").is_empty(), "it is said once: {seen}");
}

#[tokio::test]
async fn large_heads_pass_both_ways() {
    let mesh = Mesh::new();
    let http = Http::start(mesh.ip(), "web").await;
    let world = World::before(mesh, http.address()).await;
    let mut client = world.client().await;
    let mut request = post("/seen", "");
    let large = "a".repeat(LARGE_HEAD_BYTES);
    request.headers_mut().insert("x-large", large.parse().expect("a value"));
    let reply = send(&mut client, request).await;
    assert_eq!(reply.status(), StatusCode::OK, "{}", reply.text());
    assert_eq!(head_of(&reply.json(), "x-large"), [large]);
    let reply = send(&mut client, post(&format!("/head/{LARGE_HEAD_BYTES}"), "")).await;
    assert_eq!((reply.status(), reply.header("x-large").len()), (StatusCode::OK, LARGE_HEAD_BYTES));
}
