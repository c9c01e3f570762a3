//! `Expect: 100-continue` through two nodes: a body is asked for when the workload wants it, and not
//! when it answers without; and one that comes may outlive its answer.

use std::net::SocketAddr;
use std::time::Duration;

use starling_gossip::clock::Clock;
use starling_tests::workload::{Http, Tcp};
use starling_tests::{Mesh, Node, UNPROBED, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// What a client sends before it waits.
const HEAD: &str =
    "POST /echo HTTP/1.1\r\nhost: web.mesh\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";

/// A client that hears nothing waits so long in these tests before it believes that.
const SILENCE: Duration = Duration::from_millis(400);

/// Longer than a node waits for a workload that knows nothing of this, and shorter than anybody notices.
const AT_ONCE: Duration = Duration::from_millis(1500);

struct World {
    caller: Node,
    _server: Node,
    _workload: Option<Tcp>,
    _mesh: Mesh,
}

impl World {
    async fn before(mesh: Mesh, workload: SocketAddr) -> Self {
        let server = mesh.node("server").serves_as("web", workload, UNPROBED).start().await;
        let caller = mesh.node("caller").calls("web").start().await;
        caller.finds("web", 1).await;
        Self { caller, _server: server, _workload: None, _mesh: mesh }
    }

    /// Before a workload that has each connection served by `talk` once it has read a request's head.
    async fn with<F>(talk: impl Fn(TcpStream) -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mesh = Mesh::new();
        let workload = Tcp::start(mesh.ip(), move |mut stream| {
            let talk = talk.clone();
            async move {
                let head = heard(&mut stream).await;
                if head.ends_with("\r\n\r\n") {
                    talk(stream).await;
                }
            }
        })
        .await;
        let world = Self::before(mesh, workload.address()).await;
        Self { _workload: Some(workload), ..world }
    }

    async fn client(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.caller.outbound("web")).await.expect("the port accepts");
        stream.write_all(HEAD.as_bytes()).await.expect("written");
        stream
    }
}

/// What comes next.
async fn heard(stream: &mut TcpStream) -> String {
    let mut buffer = [0; 4096];
    let read = within("bytes", stream.read(&mut buffer)).await.unwrap_or(0);
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}

/// All that comes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = within("the end", stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn is_silent(stream: &mut TcpStream) -> bool {
    tokio::time::timeout(SILENCE, stream.read(&mut [0; 1])).await.is_err()
}

#[tokio::test]
async fn a_body_is_asked_for_when_the_workload_asks() {
    let world = World::with(async |mut stream| {
        assert!(is_silent(&mut stream).await, "the body has not been asked for");
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.expect("written");
        assert_eq!(heard(&mut stream).await, "hello");
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.expect("written");
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let mut client = world.client().await;
    let began = Clock::System.now();
    assert_eq!(heard(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(
        (SILENCE..AT_ONCE).contains(&(Clock::System.now() - began)),
        "{:?}",
        (Clock::System.now() - began)
    );
    client.write_all(b"hello").await.expect("written");
    let answer = heard(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    assert!(!answer.contains("connection: close"), "the connection goes on: {answer}");
}

#[tokio::test]
async fn an_answer_without_the_body_is_passed_on_and_the_body_not_asked_for() {
    for answer in ["417 Expectation Failed", "401 Unauthorized", "413 Content Too Large"] {
        let world = World::with(move |mut stream| async move {
            let head = format!("HTTP/1.1 {answer}\r\ncontent-length: 5\r\n\r\nnever");
            stream.write_all(head.as_bytes()).await.expect("written");
            assert_eq!(rest(&mut stream).await, "", "the body never comes, and the connection ends");
        })
        .await;
        let mut client = world.client().await;
        let began = Clock::System.now();
        let heard = rest(&mut client).await;
        assert!(heard.starts_with(&format!("HTTP/1.1 {answer}\r\n")), "{heard}");
        assert!(heard.contains("\r\nconnection: close\r\n") && heard.ends_with("\r\n\r\nnever"), "{heard}");
        assert!((Clock::System.now() - began) < AT_ONCE, "{:?}", (Clock::System.now() - began));
    }
}

#[tokio::test]
async fn a_workload_that_knows_nothing_of_it_gets_the_body_after_a_while() {
    let world = World::with(async |mut stream| {
        assert_eq!(heard(&mut stream).await, "hello");
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.expect("written");
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let mut client = world.client().await;
    // Who waits for nobody is served as well.
    client.write_all(b"hello").await.expect("written");
    let mut answer = heard(&mut client).await;
    while !answer.ends_with("\r\n\r\nok") {
        answer += &heard(&mut client).await;
    }
    assert!(answer.contains("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[tokio::test]
async fn the_mesh_answers_without_the_body_too() {
    let mesh = Mesh::new();
    let caller = mesh.node("caller").start().await;
    let mut client = TcpStream::connect(caller.http_proxy()).await.expect("the port accepts");
    client.write_all(HEAD.replace("web.mesh", "ghost.mesh").as_bytes()).await.expect("written");
    let heard = rest(&mut client).await;
    assert!(heard.starts_with("HTTP/1.1 404 Not Found\r\n"), "{heard}");
}

#[tokio::test]
async fn a_workload_of_http2_is_sent_the_body_as_it_comes() {
    let mesh = Mesh::new();
    let listener = tokio::net::TcpListener::bind((mesh.ip(), 0)).await.expect("a port");
    let http = Http::start_speaking(listener, "web", http::Version::HTTP_2);
    let world = World::before(mesh, http.address()).await;
    for _ in 0..2 {
        let mut client = world.client().await;
        // It echoes as soon as it has the head, which may be before the body is asked for.
        let first = heard(&mut client).await;
        assert!(first.starts_with("HTTP/1.1 100 ") || first.starts_with("HTTP/1.1 200 "), "{first}");
        client.write_all(b"hello").await.expect("written");
        let began = Clock::System.now();
        let mut answer = first;
        while !answer.ends_with("hello") {
            answer += &heard(&mut client).await;
        }
        assert!((Clock::System.now() - began) < AT_ONCE, "{:?}", (Clock::System.now() - began));
        assert!(answer.contains("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
}

/// Other 1xx end at the callee's sidecar: hyper's servers cannot send them.
#[tokio::test]
async fn early_hints_are_swallowed_and_the_answer_is_not() {
    let world = World::with(async |mut stream| {
        let early = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n";
        stream.write_all(early.as_bytes()).await.expect("written");
        assert!(is_silent(&mut stream).await, "the body has not been asked for");
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.expect("written");
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let mut client = world.client().await;
    let mut answer = heard(&mut client).await;
    while !answer.ends_with("\r\n\r\nok") {
        answer += &heard(&mut client).await;
    }
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[tokio::test]
async fn an_upload_may_outlive_its_answer() {
    // Longer than a request's head may take.
    const PIECES: usize = 14;
    let (done, mut whole) = mpsc::channel(1);
    let world = World::with(move |mut stream| {
        let done = done.clone();
        async move {
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            let (mut body, mut piece) = (0, [0; 64]);
            while body < PIECES
                && let Ok(read @ 1..) = stream.read(&mut piece).await
            {
                body += read;
            }
            let _ = done.send(body).await;
        }
    })
    .await;
    let mut stream = TcpStream::connect(world.caller.outbound("web")).await.expect("the port accepts");
    let head = format!("POST /echo HTTP/1.1\r\nhost: web.mesh\r\ncontent-length: {PIECES}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("written");
    assert!(heard(&mut stream).await.starts_with("HTTP/1.1 204"));
    for _ in 0..PIECES {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stream.write_all(b"x").await.expect("the connection stands");
    }
    assert_eq!(within("the body", whole.recv()).await, Some(PIECES));
}
