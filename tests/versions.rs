//! Callers and workloads that speak different versions of HTTP: whatever the one asks, the other hears it
//! in its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use h2::Reason;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use starling_tests::workload::{Http, Tcp, sized_bytes};
use starling_tests::{
    HttpConnection, Mesh, Node, Reply, UNPROBED, eventually, get, head_of, request, within,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

type Body = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

/// More than all windows and socket buffers between a server and a client that reads nothing.
const UNREAD_BYTES_MAX: usize = 24 * 1024 * 1024;

/// `web` behind one node, and another that calls it.
struct World {
    caller: Node,
    _server: Node,
    mesh: Mesh,
}

impl World {
    async fn before(mesh: Mesh, workload: SocketAddr) -> Self {
        let server = mesh.node("server").serves_as("web", workload, UNPROBED).start().await;
        let caller = mesh.node("caller").calls("web").start().await;
        caller.finds("web", 1).await;
        Self { caller, _server: server, mesh }
    }

    /// Before a workload that speaks `version` and no other.
    async fn speaking(version: Version) -> (Self, Http) {
        let mesh = Mesh::new();
        let http = speaking((mesh.ip(), 0).into(), version).await;
        (Self::before(mesh, http.address()).await, http)
    }

    fn address(&self) -> SocketAddr {
        self.caller.outbound("web")
    }

    async fn http2(&self) -> SendRequest<Body> {
        let stream = TcpStream::connect(self.address()).await.expect("the port accepts");
        let client = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = client.await.expect("HTTP/2");
        tokio::spawn(connection);
        sender
    }
}

async fn speaking(address: SocketAddr, version: Version) -> Http {
    // The one before it has stopped; its socket is closed a moment later.
    let listener = eventually("the port to be free", async || TcpListener::bind(address).await.ok()).await;
    Http::start_speaking(listener, "web", version)
}

fn asked(method: Method, path: &str, body: impl Into<Bytes>) -> Request<Body> {
    let mut asked = request(method, "web.mesh", path, body);
    asked.headers_mut().remove("host");
    *asked.uri_mut() = format!("http://web.mesh{path}").parse().expect("a target");
    asked
}

async fn send(sender: &mut SendRequest<Body>, request: Request<Body>) -> Reply {
    let response = within("a head", sender.send_request(request)).await.expect("an answer");
    Reply::read(response).await
}

#[tokio::test]
async fn callers_of_http2_reach_a_workload_of_http1() {
    let (world, _http) = World::speaking(Version::HTTP_11).await;
    let mut client = world.http2().await;
    let mut first = asked(Method::GET, "/seen?a=1", "");
    for crumb in ["a=b", "c=d"] {
        first.headers_mut().append("cookie", HeaderValue::from_static(crumb));
    }
    let reply = send(&mut client, first).await;
    assert_eq!((reply.status(), reply.head.version), (StatusCode::OK, Version::HTTP_2), "{}", reply.text());
    let seen = reply.json();
    assert_eq!((&seen["target"], &seen["version"]), (&"/seen?a=1".into(), &"HTTP/1.1".into()));
    assert_eq!(head_of(&seen, "host"), ["web.mesh"]);
    assert_eq!(head_of(&seen, "cookie"), ["a=b; c=d"]);
    assert_eq!(head_of(&seen, "x-starling-peer"), ["spiffe://acme/svc/caller"]);
    let large = sized_bytes(3 * 1024 * 1024);
    let reply = send(&mut client, asked(Method::POST, "/echo", large.clone())).await;
    assert!(reply.body == large, "{} other bytes", reply.body.len());
    // hyper takes a GET for one without a body if nobody says otherwise.
    let pieces = ["a", "bc"].map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes()))));
    let streamed = BodyExt::boxed(StreamBody::new(futures_util::stream::iter(pieces)));
    let reply = send(&mut client, asked(Method::GET, "/seen", "").map(|_| streamed)).await;
    assert_eq!(reply.json()["length"], 3, "{}", reply.text());
    for (method, path, status) in [
        (Method::HEAD, "/bytes/1000", 200),
        (Method::GET, "/status/204", 204),
        (Method::GET, "/status/304", 304),
        (Method::OPTIONS, "/status/404", 404),
    ] {
        let reply = send(&mut client, asked(method, path, "")).await;
        assert_eq!((reply.status().as_u16(), reply.body.len()), (status, 0), "{path}");
    }
    let many = (0..60).map(|_| {
        let mut client = client.clone();
        async move { send(&mut client, asked(Method::GET, "/bytes/70000", "")).await.body.len() }
    });
    let lengths: Vec<usize> = futures_util::stream::iter(many).buffer_unordered(60).collect().await;
    assert!(lengths.len() == 60 && lengths.iter().all(|length| *length == 70_000), "{lengths:?}");
    assert_eq!(get(world.address(), "web.mesh", "/").await.text(), "web", "others are served as ever");
}

#[tokio::test]
async fn callers_of_http1_reach_a_workload_of_http2_the_first_post_included() {
    let (world, _http) = World::speaking(Version::HTTP_2).await;
    let mut client = HttpConnection::open(world.address()).await;
    let reply = client.send(request(Method::POST, "web.mesh", "/seen?a=1", "body")).await;
    assert_eq!(reply.status(), StatusCode::OK, "{}", reply.text());
    let seen = reply.json();
    assert_eq!((&seen["target"], &seen["version"]), (&"http://web.mesh/seen?a=1".into(), &"HTTP/2.0".into()));
    assert_eq!(seen["length"], 4);
    let large = sized_bytes(3 * 1024 * 1024);
    let reply = client.send(request(Method::POST, "web.mesh", "/echo", large.clone())).await;
    assert!(reply.body == large, "{} other bytes", reply.body.len());
    let mut chunked = request(Method::PUT, "web.mesh", "/seen", "chunk");
    chunked.headers_mut().insert("transfer-encoding", HeaderValue::from_static("chunked"));
    assert_eq!(client.send(chunked).await.json()["length"], 5);
    for (method, path, status) in [
        (Method::HEAD, "/bytes/9", 200),
        (Method::GET, "/status/204", 204),
        (Method::GET, "/status/304", 304),
    ] {
        let reply = client.send(request(method, "web.mesh", path, "")).await;
        assert_eq!((reply.status().as_u16(), reply.body.len()), (status, 0), "{path}");
    }
    let mut http2 = world.http2().await;
    assert_eq!(send(&mut http2, asked(Method::GET, "/", "")).await.text(), "web");
}

#[tokio::test]
async fn a_body_cut_short_is_a_reset_and_no_end() {
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |mut stream| {
        let mut heard = [0; 4096];
        let read = stream.read(&mut heard).await.unwrap_or(0);
        let answer = match heard[..read].starts_with(b"PRI") {
            true => "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            false if heard.starts_with(b"GET /chunks") => {
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"
            }
            false => "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
        };
        stream.write_all(answer.as_bytes()).await.expect("written");
    })
    .await;
    let world = World::before(mesh, workload.address()).await;
    let mut client = world.http2().await;
    for path in ["/length", "/chunks"] {
        // The reset may overtake the head.
        let cut = match within("a head", client.send_request(asked(Method::GET, path, ""))).await {
            Ok(answer) => within("the end", answer.into_body().collect()).await.expect_err("no clean end"),
            Err(cut) => cut,
        };
        let cause = std::error::Error::source(&cut).and_then(|cause| cause.downcast_ref::<h2::Error>());
        assert!(cause.is_some_and(h2::Error::is_reset), "{cut:?}");
        assert_eq!(client.ready().await.map_err(|error| error.to_string()), Ok(()), "others go on");
    }
}

#[tokio::test]
async fn a_caller_that_resets_its_stream_ends_the_workloads_work() {
    let mesh = Mesh::new();
    let ended = Arc::new(AtomicUsize::new(0));
    let counted = ended.clone();
    let workload = Tcp::start(mesh.ip(), move |mut stream| {
        let ended = counted.clone();
        async move {
            let mut heard = [0; 4096];
            let read = stream.read(&mut heard).await.unwrap_or(0);
            if heard[..read].starts_with(b"PRI") {
                return;
            }
            if heard.starts_with(b"GET /body") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
            }
            while stream.read(&mut heard).await.is_ok_and(|read| read > 0) {}
            ended.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let world = World::before(mesh, workload.address()).await;
    let mut client = world.http2().await;
    let waiting = tokio::time::timeout(
        Duration::from_millis(500),
        client.send_request(asked(Method::GET, "/silent", "")),
    );
    assert!(waiting.await.is_err(), "nobody answers");
    eventually("the first connection's end", async || (ended.load(Ordering::SeqCst) == 1).then_some(()))
        .await;
    let answer = client.send_request(asked(Method::GET, "/body", "")).await.expect("a head");
    drop(answer);
    eventually("the second one's", async || (ended.load(Ordering::SeqCst) == 2).then_some(())).await;
}

#[tokio::test]
async fn a_reset_by_the_workload_cuts_off_a_caller_of_http1() {
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |stream| {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            if request.uri().path() == "/before" {
                respond.send_reset(Reason::ENHANCE_YOUR_CALM);
                continue;
            }
            let mut body = respond.send_response(Response::new(()), false).expect("a head");
            body.send_data("abc".into(), false).expect("data");
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                body.send_reset(Reason::INTERNAL_ERROR);
            });
        }
    })
    .await;
    let world = World::before(mesh, workload.address()).await;
    let mut client = HttpConnection::open(world.address()).await;
    let reply = client.send(request(Method::POST, "web.mesh", "/before", "x")).await;
    assert_eq!((reply.status(), reply.header("x-starling-flags")), (StatusCode::SERVICE_UNAVAILABLE, "UC"));
    let answer =
        client.begin(request(Method::GET, "web.mesh", "/", "")).await.expect("a head on the same one");
    assert!(within("the end", answer.into_body().collect()).await.is_err(), "no clean end");
}

#[tokio::test]
async fn a_caller_that_reads_nothing_holds_its_workload_back() {
    let mesh = Mesh::new();
    let written = Arc::new(AtomicUsize::new(0));
    let counted = written.clone();
    let workload = Tcp::start(mesh.ip(), move |mut stream| {
        let written = counted.clone();
        async move {
            let mut heard = [0; 4096];
            let read = stream.read(&mut heard).await.unwrap_or(0);
            if heard[..read].starts_with(b"PRI") {
                return;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            let piece = sized_bytes(64 * 1024);
            while stream.write_all(&piece).await.is_ok() {
                written.fetch_add(piece.len(), Ordering::SeqCst);
            }
        }
    })
    .await;
    let world = World::before(mesh, workload.address()).await;
    let mut client = world.http2().await;
    let mut answer = client.send_request(asked(Method::GET, "/", "")).await.expect("a head");
    let mut before = 0;
    eventually("the workload to stand still", async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = written.load(Ordering::SeqCst);
        (std::mem::replace(&mut before, now) == now && now > 0).then_some(())
    })
    .await;
    assert!(before < UNREAD_BYTES_MAX, "{before} bytes on their way to nobody");
    for _ in 0..200 {
        within("the rest", answer.body_mut().frame()).await.expect("more").expect("no error");
    }
    eventually("it to go on", async || (written.load(Ordering::SeqCst) > before).then_some(())).await;
}

#[tokio::test]
async fn a_workload_that_is_replaced_by_one_of_the_other_version_is_served_on() {
    let (world, http) = World::speaking(Version::HTTP_11).await;
    let address = http.address();
    let mut http2 = world.http2().await;
    assert_eq!(send(&mut http2, asked(Method::GET, "/", "")).await.text(), "web");
    drop(http);
    for version in [Version::HTTP_2, Version::HTTP_11, Version::HTTP_2] {
        let _http = speaking(address, version).await;
        for turn in 0..3 {
            eventually("callers of HTTP/1.1 to be answered", async || {
                (get(world.address(), "web.mesh", "/").await.text() == "web").then_some(())
            })
            .await;
            let reply = send(&mut http2, asked(Method::GET, "/seen", "")).await;
            assert_eq!(reply.status(), StatusCode::OK, "{version:?}, {turn}: {}", reply.text());
            assert_eq!(reply.json()["version"], format!("{version:?}"));
        }
    }
    drop(world.mesh);
}

#[tokio::test]
async fn grpc_to_a_workload_of_http1_is_told_why_and_served_once_it_is_replaced() {
    let (world, http) = World::speaking(Version::HTTP_11).await;
    let address = http.address();
    let mut client = world.http2().await;
    let call = || {
        let mut call = asked(Method::POST, "/shop.Cart/Add", "\0\0\0\0\0");
        call.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        call
    };
    for _ in 0..3 {
        let reply = send(&mut client, call()).await;
        assert_eq!((reply.status(), reply.header("grpc-status")), (StatusCode::OK, "14"), "{:?}", reply.head);
        assert!(reply.header("grpc-message").contains("the workload does not speak HTTP/2"));
    }
    let mut web = call();
    web.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc-web+proto"));
    assert_eq!(send(&mut client, web).await.text(), "web", "gRPC-Web is HTTP/1.1 as well");
    drop(http);
    let _http = speaking(address, Version::HTTP_2).await;
    eventually("gRPC to be served", async || (send(&mut client, call()).await.text() == "web").then_some(()))
        .await;
}
