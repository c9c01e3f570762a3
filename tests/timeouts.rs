//! Workloads that hang, at each stage of a call, and callers that do not wait for ever.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use starling_gossip::clock::Clock;
use starling_tests::workload::{Http, Tcp};
use starling_tests::{HttpConnection, Mesh, Node, Reply, UNPROBED, get, head_of, request, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A workload that reads, counts and never answers.
async fn hung(mesh: &Mesh, arrived: &Arc<AtomicUsize>) -> Tcp {
    let arrived = arrived.clone();
    Tcp::start(mesh.ip(), move |mut stream| {
        let arrived = arrived.clone();
        async move {
            let mut bytes = [0; 4096];
            while let Ok(1..) = stream.read(&mut bytes).await {
                arrived.fetch_add(1, Ordering::Relaxed);
            }
        }
    })
    .await
}

#[track_caller]
fn is_timeout(reply: &Reply, says: &str) {
    assert_eq!(reply.status(), StatusCode::GATEWAY_TIMEOUT, "{}", reply.text());
    assert_eq!(reply.header("x-starling-flags"), "UT");
    assert!(reply.text().contains(says), "{}", reply.text());
}

async fn send(node: &Node, method: Method) -> Reply {
    HttpConnection::open(node.http_proxy()).await.send(request(method, "web.mesh", "/", "")).await
}

#[tokio::test]
async fn a_request_ends_with_its_time_whatever_the_workload_does() {
    let mesh = Mesh::new();
    let workload = hung(&mesh, &Arc::default()).await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").calls("web").times("timeout = \"300ms\"").start().await;
    caller.finds("web", 1).await;
    for method in [Method::GET, Method::POST] {
        let start = Clock::System.now();
        is_timeout(&send(&caller, method).await, "the time that the request has");
        let took = Clock::System.now() - start;
        assert!((Duration::from_millis(300)..Duration::from_secs(5)).contains(&took), "{took:?}");
    }
    is_timeout(&get(caller.outbound("web"), "web", "/").await, "the time that the request has");
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_goes_elsewhere_where_it_may() {
    let mesh = Mesh::new();
    let arrived = Arc::new(AtomicUsize::new(0));
    let (bad, good) = (hung(&mesh, &arrived).await, Http::start(mesh.ip(), "good").await);
    let _nodes = [
        mesh.node("bad").serves("web", bad.address()).start().await,
        mesh.node("good").serves("web", good.address()).start().await,
    ];
    // Nobody is avoided for being slow.
    let in_turn =
        "[[upstream]]\nservice = \"web\"\npolicy = \"round_robin\"\noutliers.consecutive_errors = 0";
    let caller = mesh.node("caller").times("attempt_timeout = \"300ms\"").sections(in_turn).start().await;
    caller.finds("web", 2).await;
    for _ in 0..20 {
        let reply = send(&caller, Method::GET).await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::OK, "good".to_owned()));
    }
    assert!(arrived.load(Ordering::Relaxed) > 0, "the hung one was asked");
    let mut answers = Vec::new();
    while answers.len() < 40 && answers.last() != Some(&StatusCode::GATEWAY_TIMEOUT) {
        answers.push(send(&caller, Method::POST).await.status());
    }
    assert_eq!(answers.last(), Some(&StatusCode::GATEWAY_TIMEOUT), "nobody knows what a POST has done");
}

#[tokio::test]
async fn a_service_that_hangs_gets_a_fifth_more_than_its_requests_at_most() {
    const REQUESTS: usize = 320;
    let mesh = Mesh::new();
    let arrived = Arc::new(AtomicUsize::new(0));
    let mut servers = Vec::new();
    for name in ["one", "two", "three"] {
        let workload = hung(&mesh, &arrived).await;
        servers.push((mesh.node(name).serves("web", workload.address()).start().await, workload));
    }
    let caller = mesh.node("caller").times("attempt_timeout = \"200ms\"").start().await;
    caller.finds("web", 3).await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let proxy = caller.http_proxy();
        asking.spawn(async move {
            for _ in 0..REQUESTS / 32 {
                let reply = get(proxy, "web.mesh", "/").await;
                assert_eq!(reply.status(), StatusCode::GATEWAY_TIMEOUT, "{}", reply.text());
            }
        });
    }
    asking.join_all().await;
    let arrived = arrived.load(Ordering::Relaxed);
    println!("{REQUESTS} requests, {arrived} arrived");
    // And two retries a second, while a slow machine has sent hardly anything.
    assert!(arrived <= REQUESTS * 6 / 5 + 20, "{arrived} of {REQUESTS} arrived");
}

#[tokio::test]
async fn a_call_that_stands_still_is_given_up_and_a_slow_one_is_not() {
    let mesh = Mesh::new();
    // Says so many words, 100 ms apart, and promises more.
    let workload = Tcp::start(mesh.ip(), async |mut stream| {
        let mut bytes = [0; 4096];
        let Ok(count @ 1..) = stream.read(&mut bytes).await else { return };
        let words = if bytes[..count].starts_with(b"GET /slow") { 30 } else { 3 };
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        for _ in 0..words {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let _ = stream.write_all(b"4\r\nword\r\n").await;
        }
        if words == 30 {
            let _ = stream.write_all(b"0\r\n\r\n").await;
        }
        drop(stream.read(&mut bytes).await);
    })
    .await;
    let silent = hung(&mesh, &Arc::default()).await;
    let _nodes = [
        mesh.node("server").serves("web", workload.address()).start().await,
        mesh.node("silent").serves("silent", silent.address()).start().await,
    ];
    let caller = mesh.node("caller").times("idle_timeout = \"1s\"").start().await;
    caller.finds("web", 1).await;
    caller.finds("silent", 1).await;
    let slow = get(caller.http_proxy(), "web.mesh", "/slow").await;
    assert_eq!((slow.status(), slow.body.len()), (StatusCode::OK, 120));
    let mut connection = HttpConnection::open(caller.http_proxy()).await;
    let halting = connection.begin(request(Method::GET, "web.mesh", "/halting", "")).await.expect("a head");
    let body = within("the end of a body", halting.into_body().collect()).await;
    assert!(body.is_err(), "what is cut off does not look whole: {body:?}");
    is_timeout(&get(caller.http_proxy(), "silent.mesh", "/").await, "idle_timeout");
}

#[tokio::test]
async fn a_connection_that_stands_still_is_reset() {
    let mesh = Mesh::new();
    let workload = Tcp::echo(mesh.ip()).await;
    let _server = mesh.node("server").serves_tcp("db", workload.address()).start().await;
    let caller = mesh.node("caller").calls("db").times("idle_timeout = \"1s\"").start().await;
    caller.finds("db", 1).await;
    let mut stream = TcpStream::connect(caller.outbound("db")).await.expect("accepted");
    let mut heard = [0; 4];
    for _ in 0..20 {
        stream.write_all(b"ping").await.expect("written");
        within("an echo", stream.read_exact(&mut heard)).await.expect("an echo");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let end = within("a reset", stream.read(&mut heard)).await;
    assert!(end.is_err(), "no orderly end: {end:?}");
}

#[tokio::test]
async fn a_grpc_workload_is_told_what_time_is_left() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").times("timeout = \"20s\"").start().await;
    caller.finds("web", 1).await;
    for (told, most) in [(Some("5S"), 5_000_000), (Some("90S"), 20_000_000), (None, 20_000_000)] {
        let mut asked = request(Method::POST, "web.mesh", "/seen", "");
        asked.headers_mut().insert("content-type", "application/grpc".parse().expect("a value"));
        told.map(|told| asked.headers_mut().insert("grpc-timeout", told.parse().expect("a value")));
        let seen = HttpConnection::open(caller.http_proxy()).await.send(asked).await.json();
        let values = head_of(&seen, "grpc-timeout");
        let [value] = values[..] else { panic!("{values:?}") };
        let micros: u64 = value.strip_suffix('u').and_then(|number| number.parse().ok()).expect(value);
        assert!((most - 2_000_000..most).contains(&micros), "{value} of {told:?}");
    }
}

/// What an upload is told, from a program that sends for as long as anybody takes something in.
async fn upload(node: &Node) -> String {
    let mut stream = TcpStream::connect(node.http_proxy()).await.expect("a connection");
    let head = b"POST / HTTP/1.1\r\nhost: web.mesh\r\ncontent-length: 500000000\r\n\r\n";
    stream.write_all(head).await.expect("a head");
    let (mut answer, mut sent) = stream.split();
    let chunk = vec![b'x'; 64 * 1024];
    let sending = async { while sent.write_all(&chunk).await.is_ok() {} };
    let mut told = vec![0; 1024];
    tokio::select! {
        read = within("an answer", answer.read(&mut told)) => told.truncate(read.unwrap_or_default()),
        () = sending => told.clear(),
    }
    String::from_utf8_lossy(&told).into_owned()
}

/// Waits until a request is not answered, while uploads have time left. A busy machine fills windows slowly.
async fn windows_fill<F: Future>(ask: impl Fn() -> F) {
    let start = Clock::System.now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    while tokio::time::timeout(Duration::from_millis(500), ask()).await.is_ok() {
        let is_in_time = Clock::System.now() - start < Duration::from_secs(5);
        assert!(is_in_time, "the windows are not full, so this shows nothing");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// All requests between two nodes share one connection's windows. Uploads that a deaf workload takes
/// nothing of fill them; when their time is over, others must have room.
#[tokio::test]
async fn what_ran_out_of_time_holds_no_room_for_others() {
    let mesh = Mesh::new();
    let deaf_to_uploads = Tcp::start(mesh.ip(), async |mut stream| {
        let mut bytes = [0; 4096];
        while let Ok(1..) = stream.read(&mut bytes).await {
            if bytes.starts_with(b"POST") {
                std::future::pending::<()>().await;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let small = "[limits]\nmemory_max = \"256MiB\"";
    let _server = mesh.node("server").serves("web", deaf_to_uploads.address()).sections(small).start().await;
    let caller = mesh.node("caller").times("timeout = \"6s\"").sections(small).start().await;
    caller.finds("web", 1).await;
    let uploads = futures_util::future::join_all((0..60).map(|_| upload(&caller)));
    let (told, ()) = tokio::join!(uploads, windows_fill(|| get(caller.http_proxy(), "web.mesh", "/")));
    // A connection that is closed with a request's bytes unread is reset, which may overtake the answer.
    let is_over = |told: &String| told.is_empty() || told.starts_with("HTTP/1.1 504 ");
    assert!(told.iter().all(is_over) && told.iter().any(|told| !told.is_empty()), "{told:?}");
    let start = Clock::System.now();
    let reply = get(caller.http_proxy(), "web.mesh", "/").await;
    let took = Clock::System.now() - start;
    assert_eq!(reply.status(), StatusCode::OK, "{}", reply.text());
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// A workload that speaks HTTP/2 and takes nothing of an upload to `/deaf`, nor of one to `/half`, which it
/// begins to answer at once. Of others it takes everything.
async fn deaf_in_http2(mesh: &Mesh) -> Tcp {
    Tcp::start(mesh.ip(), async |stream| {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(answer_in_http2(request, respond));
        }
    })
    .await
}

async fn answer_in_http2(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    if path == "/deaf" {
        let _ = poll_fn(|context| respond.poll_reset(context)).await;
        return;
    }
    if path == "/half" {
        let Ok(mut answer) = respond.send_response(Response::new(()), false) else { return };
        let _ = poll_fn(|context| answer.poll_reset(context)).await;
        return;
    }
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
    }
    let _ = respond.send_response(Response::new(()), true);
}

/// Sends a body to `path` by an HTTP/2 connection of its own. Gives the status, and whether the answer came
/// to its end.
async fn post_in_http2(node: &Node, path: &str, body: BoxBody<Bytes, std::io::Error>) -> (StatusCode, bool) {
    let stream = TcpStream::connect(node.outbound("web")).await.expect("a connection");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::builder().method(Method::POST).uri(format!("http://web.mesh{path}"));
    let request = request.body(body).expect("a request");
    let answer = within("a head", sender.send_request(request)).await.expect("an answer");
    let status = answer.status();
    (status, within("an end", answer.into_body().collect()).await.is_ok())
}

fn endless() -> BoxBody<Bytes, std::io::Error> {
    let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
    let chunks = futures_util::stream::repeat_with(move || Ok(Frame::data(chunk.clone())));
    BoxBody::new(StreamBody::new(chunks))
}

/// The same where everybody speaks HTTP/2: its window is shared by all, on every hop, answered or not.
#[tokio::test]
async fn what_ran_out_of_time_in_http2_holds_no_room_for_others() {
    for (path, uploads_are_told) in [("/deaf", StatusCode::GATEWAY_TIMEOUT), ("/half", StatusCode::OK)] {
        let mesh = Mesh::new();
        let workload = deaf_in_http2(&mesh).await;
        let small = "[limits]\nmemory_max = \"256MiB\"";
        let _server =
            mesh.node("server").serves_as("web", workload.address(), UNPROBED).sections(small).start().await;
        let caller = mesh.node("caller").calls("web").times("timeout = \"6s\"").sections(small).start().await;
        caller.finds("web", 1).await;
        let body = || Full::new(Bytes::from(vec![b'x'; 200_000])).map_err(|never| match never {}).boxed();
        assert_eq!(post_in_http2(&caller, "/", body()).await, (StatusCode::OK, true));
        let uploads =
            futures_util::future::join_all((0..90).map(|_| post_in_http2(&caller, path, endless())));
        let (told, ()) = tokio::join!(uploads, windows_fill(|| post_in_http2(&caller, "/", body())));
        assert!(told.iter().all(|(status, _)| *status == uploads_are_told), "{told:?}");
        assert!(told.iter().all(|(_, is_whole)| *is_whole == (path == "/deaf")), "{told:?}");
        let start = Clock::System.now();
        let reply = tokio::time::timeout(Duration::from_secs(3), post_in_http2(&caller, "/", body())).await;
        let took = Clock::System.now() - start;
        assert_eq!(reply, Ok((StatusCode::OK, true)), "{path}");
        assert!(took < Duration::from_secs(1), "{path}: {took:?}");
    }
}
