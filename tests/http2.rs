//! HTTP/2 through two nodes, where it differs from HTTP/1.1: authority, large heads, and what a workload
//! says by resetting a stream or leaving a connection.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Signal, kill_process};
use starling_tests::workload::{Http, Tcp};
use starling_tests::{Mesh, Node, Reply, UNPROBED, eventually, head_of, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Three quarters of what may pass, and three times what HTTP libraries take by default.
const LARGE_HEAD_BYTES: usize = 48 * 1024;

/// Bytes of a frame before its payload (RFC 9113, section 4.1), and of the client's preface.
const FRAME_HEAD_BYTES: usize = 9;
const PREFACE_BYTES: usize = 24;

/// `web` behind one node, and another that calls it.
struct World {
    caller: Node,
    server: Node,
    _mesh: Mesh,
}

impl World {
    async fn before(mesh: Mesh, workload: std::net::SocketAddr) -> Self {
        let server = mesh.node("server").serves_as("web", workload, UNPROBED).start().await;
        let caller = mesh.node("caller").calls("web").start().await;
        caller.finds("web", 1).await;
        Self { caller, server, _mesh: mesh }
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

/// A workload that speaks HTTP/2 and has each stream answered by `answer`, told how many came before it.
async fn workload(
    mesh: &Mesh,
    answer: impl Fn(usize, h2::server::SendResponse<Bytes>) + Clone + Send + 'static,
) -> Tcp {
    let streams = Arc::new(AtomicUsize::new(0));
    Tcp::start(mesh.ip(), move |stream| {
        let (answer, streams) = (answer.clone(), streams.clone());
        async move { serve(stream, &streams, answer).await }
    })
    .await
}

async fn serve(
    stream: TcpStream,
    streams: &AtomicUsize,
    answer: impl Fn(usize, h2::server::SendResponse<Bytes>),
) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((_, respond))) = connection.accept().await {
        answer(streams.fetch_add(1, Ordering::SeqCst), respond);
    }
}

fn ok(mut respond: h2::server::SendResponse<Bytes>) {
    let mut body = respond.send_response(Response::new(()), false).expect("a head");
    body.send_data("served".into(), true).expect("a body");
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

#[tokio::test]
async fn a_refused_stream_is_tried_again_whatever_it_asks() {
    let mesh = Mesh::new();
    let tcp = workload(&mesh, |turn, mut respond| match turn {
        0 => respond.send_reset(Reason::REFUSED_STREAM),
        _ => ok(respond),
    })
    .await;
    let world = World::before(mesh, tcp.address()).await;
    let reply = send(&mut world.client().await, post("/", "")).await;
    assert_eq!((reply.status(), reply.text()), (StatusCode::OK, "served".to_owned()));
}

#[tokio::test]
async fn who_gives_up_many_requests_at_once_ends_nobody_elses() {
    let mesh = Mesh::new();
    // The first is answered when told so, all others never.
    let told = Arc::new(tokio::sync::Notify::new());
    let (first, streams) = (told.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = streams.clone();
    let tcp = workload(&mesh, move |turn, mut respond| {
        counted.fetch_add(1, Ordering::SeqCst);
        let first = first.clone();
        tokio::spawn(async move {
            if turn == 0 {
                first.notified().await;
                return ok(respond);
            }
            let _ = std::future::poll_fn(|context| respond.poll_reset(context)).await;
        });
    })
    .await;
    let world = World::before(mesh, tcp.address()).await;
    let (mut patient, mut hasty) = (world.client().await, world.client().await);
    let waiting = tokio::spawn(async move { send(&mut patient, post("/", "once")).await });
    eventually("the first to be there", async || (streams.load(Ordering::SeqCst) == 1).then_some(())).await;
    // Its node looks away: what comes, and what takes it back, is read at once.
    let server = world.server.pid();
    kill_process(server, Signal::STOP).expect("a signal");
    let asked: Vec<_> = (0..90).map(|_| tokio::spawn(hasty.send_request(post("/", "")))).collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    asked.iter().for_each(tokio::task::JoinHandle::abort);
    tokio::time::sleep(Duration::from_millis(100)).await;
    kill_process(server, Signal::CONT).expect("a signal");
    tokio::time::sleep(Duration::from_millis(300)).await;
    told.notify_one();
    let reply = within("the answer", waiting).await.expect("no panic");
    assert_eq!((reply.status(), reply.text()), (StatusCode::OK, "served".to_owned()));
}

#[tokio::test]
async fn a_workload_that_refuses_every_stream_is_overloaded_and_not_given_up() {
    let mesh = Mesh::new();
    let tcp = workload(&mesh, |turn, mut respond| match turn {
        0..4 => respond.send_reset(Reason::REFUSED_STREAM),
        _ => ok(respond),
    })
    .await;
    let world = World::before(mesh, tcp.address()).await;
    let mut client = world.client().await;
    for _ in 0..2 {
        let reply = send(&mut client, post("/", "")).await;
        assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE, "{}", reply.text());
        assert_eq!((reply.header("x-starling-flags"), reply.header("retry-after")), ("UO", "1"));
    }
    assert_eq!(send(&mut client, post("/", "")).await.text(), "served", "it is asked at once");
}

#[tokio::test]
async fn a_reset_before_the_answer_reaches_the_caller_with_its_code() {
    let mesh = Mesh::new();
    let tcp = workload(&mesh, |_, mut respond| respond.send_reset(Reason::ENHANCE_YOUR_CALM)).await;
    let world = World::before(mesh, tcp.address()).await;
    let mut client = world.client().await;
    for _ in 0..2 {
        let error = within("a reset", client.send_request(post("/", "body"))).await.expect_err("a reset");
        let cause = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>()).expect("from HTTP/2");
        assert_eq!((cause.is_reset(), cause.reason()), (true, Some(Reason::ENHANCE_YOUR_CALM)), "{error}");
    }
}

/// Takes one request of a connection to its end, and leaves without having processed it.
async fn leave(mut stream: TcpStream) {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const END_STREAM: u8 = 1;
    let mut preface = [0; PREFACE_BYTES];
    stream.read_exact(&mut preface).await.expect("a preface");
    // SETTINGS, empty.
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("written");
    loop {
        let mut head = [0; FRAME_HEAD_BYTES];
        stream.read_exact(&mut head).await.expect("a frame");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.expect("its payload");
        if [DATA, HEADERS].contains(&head[3]) && head[4] & END_STREAM != 0 {
            break;
        }
    }
    // GOAWAY: the last stream processed is 0, which is none; NO_ERROR.
    stream.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await.expect("written");
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

/// Answers each request with how many bytes of body it had.
async fn count(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let (mut body, mut bytes) = (request.into_body(), 0);
            while let Some(data) = body.data().await {
                bytes += data.expect("data").len();
            }
            let mut answer = respond.send_response(Response::new(()), false).expect("a head");
            answer.send_data(bytes.to_string().into(), true).expect("a body");
        });
    }
}

/// A workload that leaves its first connection, and what it does with a request of so many bytes, and another.
async fn leaving(body_bytes: usize) -> [Reply; 2] {
    let mesh = Mesh::new();
    let connections = Arc::new(AtomicUsize::new(0));
    let tcp = Tcp::start(mesh.ip(), move |stream| {
        let turn = connections.fetch_add(1, Ordering::SeqCst);
        async move {
            match turn {
                0 => leave(stream).await,
                _ => count(stream).await,
            }
        }
    })
    .await;
    let world = World::before(mesh, tcp.address()).await;
    let mut client = world.client().await;
    let asked = || post("/", "").map(|_| Full::new(vec![b'x'; body_bytes].into()));
    [send(&mut client, asked()).await, send(&mut client, asked()).await]
}

/// Its body may have been read before the other end's word came.
#[tokio::test]
async fn a_request_that_a_leaving_connection_did_not_process_takes_another() {
    for body_bytes in [0, 1, 16 * 1024] {
        for reply in leaving(body_bytes).await {
            assert_eq!((reply.status(), reply.text()), (StatusCode::OK, body_bytes.to_string()));
        }
    }
}

#[tokio::test]
async fn of_an_upload_that_a_leaving_connection_did_not_process_too_much_is_gone() {
    let [lost, next] = leaving(48 * 1024).await;
    assert_eq!(lost.status(), StatusCode::SERVICE_UNAVAILABLE, "{}", lost.text());
    assert_eq!((lost.header("x-starling-flags"), lost.header("retry-after")), ("UO", "1"));
    assert_eq!((next.status(), next.text()), (StatusCode::OK, (48 * 1024).to_string()));
}
