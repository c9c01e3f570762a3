//! Workloads that break HTTP/1.1: garbage, ends and resets at each point of an answer, silence, and one
//! byte at a time. Callers in either version hear of it from the mesh, or are cut off; nothing looks whole
//! that is not.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use starling_tests::workload::Tcp;
use starling_tests::{HttpConnection, Mesh, Node, UNPROBED, request, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// What a workload says before it does wrong.
const HALF: &str = "half";

const GOOD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\ngood";

/// How a connection goes on once something was said.
#[derive(Clone, Copy)]
enum Then {
    /// It ends in order.
    Ends,
    /// It is reset, as by a killed program.
    Resets,
    /// Nothing more comes.
    Hangs,
    /// This comes, which is wrong, and nothing more.
    Says(&'static str),
}

/// What is said and what follows, for each path.
type Faults = &'static [(&'static str, &'static str, Then)];

/// Nothing of an answer has reached the caller: the mesh answers.
const BEFORE: Faults = &[
    ("/silent/ends", "", Then::Ends),
    ("/silent/resets", "", Then::Resets),
    ("/garbage/ends", "\u{1}\u{2} what is this?\r\n\r\n", Then::Ends),
    ("/garbage/hangs", "\u{1}\u{2} what is this?\r\n\r\n", Then::Hangs),
    ("/banner/hangs", "220 mail.example ESMTP\r\n", Then::Hangs),
    ("/another-version", "HTTP/7.0 200 OK\r\ncontent-length: 4\r\n\r\nhalf", Then::Hangs),
    ("/half-a-head/ends", "HTTP/1.1 200 OK\r\ncontent-len", Then::Ends),
    ("/half-a-head/resets", "HTTP/1.1 200 OK\r\ncontent-len", Then::Resets),
    ("/two-lengths", "HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nhalf", Then::Hangs),
    ("/no-length", "HTTP/1.1 200 OK\r\ncontent-length: four\r\n\r\nhalf", Then::Hangs),
];

/// Nothing of an answer comes in time.
const LATE: Faults = &[
    ("/silent/hangs", "", Then::Hangs),
    ("/half-a-line/hangs", "HTTP/1.1 20", Then::Hangs),
    ("/half-a-head/hangs", "HTTP/1.1 200 OK\r\ncontent-len", Then::Hangs),
];

/// Half of a body has reached the caller: it is cut off.
const WITHIN: Faults = &[
    ("/length/ends", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", Then::Ends),
    ("/length/resets", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", Then::Resets),
    ("/length/hangs", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", Then::Hangs),
    ("/chunk/ends", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\nhalf", Then::Ends),
    ("/chunk/resets", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\nhalf", Then::Resets),
    ("/chunk/hangs", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\nhalf", Then::Hangs),
    ("/chunks/ends", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", Then::Ends),
    ("/chunks/resets", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", Then::Resets),
    ("/chunks/hangs", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", Then::Hangs),
    (
        "/last-chunk/ends",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
        Then::Ends,
    ),
    (
        "/no-chunk",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        Then::Says("size\r\n"),
    ),
    (
        "/chunk-too-long",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf",
        Then::Says("half\r\n0\r\n\r\n"),
    ),
    ("/endless/resets", "HTTP/1.1 200 OK\r\n\r\nhalf", Then::Resets),
    ("/endless/hangs", "HTTP/1.1 200 OK\r\n\r\nhalf", Then::Hangs),
];

/// Whole answers, by whoever writes a byte at a time.
const SLOW: Faults = &[
    ("/slow/length", "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\nhalf", Then::Hangs),
    (
        "/slow/chunks",
        "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
         1\r\nh\r\n3\r\nalf\r\n0\r\n\r\n",
        Then::Hangs,
    ),
    ("/slow/endless", "HTTP/1.1 200 OK\r\n\r\nhalf", Then::Ends),
];

/// Whole answers with something behind them, which is nobody's.
const MORE: Faults = &[
    (
        "/more/another",
        "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhalfHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad",
        Then::Hangs,
    ),
    ("/more/garbage", "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhalf and more", Then::Hangs),
    (
        "/more/after-chunks",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n\r\n\
         HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad",
        Then::Hangs,
    ),
];

struct World {
    caller: Node,
    _server: Node,
    _workload: Tcp,
    /// A permit: the caller has got what there is, and the workload may do wrong.
    heard: Arc<Semaphore>,
    _mesh: Mesh,
}

impl World {
    async fn new() -> Self {
        Self::patient("1s").await
    }

    /// With a caller that waits so long for what does not come.
    async fn patient(idle_timeout: &str) -> Self {
        Self::before(idle_timeout, serve).await
    }

    /// Before a workload that has each connection served by `talk`.
    async fn before<F>(
        idle_timeout: &str,
        talk: impl Fn(TcpStream, Arc<Semaphore>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (mesh, heard) = (Mesh::new(), Arc::new(Semaphore::new(0)));
        let hears = heard.clone();
        let workload = Tcp::start(mesh.ip(), move |stream| talk(stream, hears.clone())).await;
        let server = mesh.node("server").serves_as("web", workload.address(), UNPROBED).start().await;
        // One that fails every time is asked every time all the same.
        let sections = "[[upstream]]\nservice = \"web\"\noutliers.consecutive_errors = 0";
        let caller = mesh.node("caller").calls("web").sections(sections);
        let caller = caller.times(&format!("idle_timeout = {idle_timeout:?}"));
        let caller = caller.start().await;
        caller.finds("web", 1).await;
        Self { caller, _server: server, _workload: workload, heard, _mesh: mesh }
    }

    async fn clients(&self) -> [Client; 2] {
        let address = self.caller.outbound("web");
        let stream = TcpStream::connect(address).await.expect("the port accepts");
        let http2 = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = http2.await.expect("HTTP/2");
        tokio::spawn(connection);
        [Client::Http1(HttpConnection::open(address).await), Client::Http2(sender)]
    }

    /// Asks for `path`, and says what there is to see.
    async fn ask(&self, client: &mut Client, path: &str) -> Seen {
        if !client.is_open().await {
            let [http1, http2] = self.clients().await;
            *client = if client.version() == Version::HTTP_2 { http2 } else { http1 };
        }
        let response = client.begin(path).await.unwrap_or_else(|error| panic!("{path}: {error:?}"));
        let (head, mut body) = response.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(frame) = within("the rest of a body", body.frame()).await {
            let Ok(frame) = frame else { return Seen::CutOff(head.status, bytes.freeze()) };
            bytes.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
            if bytes == HALF {
                self.heard.add_permits(1);
            }
        }
        let flag = head.headers.get("x-starling-flags").map_or("", |flag| flag.to_str().expect("text"));
        Seen::Whole(head.status, flag.to_owned(), bytes.freeze())
    }
}

enum Client {
    Http1(HttpConnection),
    Http2(SendRequest<BoxBody<Bytes, std::io::Error>>),
}

impl Client {
    async fn begin(&mut self, path: &str) -> hyper::Result<Response<Incoming>> {
        // Nobody may ask this twice.
        let asked = request(Method::POST, "web.mesh", path, "once");
        match self {
            Self::Http1(connection) => connection.begin(asked).await,
            Self::Http2(sender) => {
                let uri = format!("http://web.mesh{path}");
                let asked = Request::post(uri).body(asked.into_body()).expect("a request");
                within("a head", sender.send_request(asked)).await
            }
        }
    }

    async fn is_open(&mut self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_open().await,
            Self::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    fn version(&self) -> Version {
        match self {
            Self::Http1(_) => Version::HTTP_11,
            Self::Http2(_) => Version::HTTP_2,
        }
    }
}

/// What a caller sees of an answer.
#[derive(Debug)]
enum Seen {
    /// A head, so much of a body, and no end.
    CutOff(StatusCode, Bytes),
    /// All of one: its status, the mesh's flag if there is one, and its body.
    Whole(StatusCode, String, Bytes),
}

#[track_caller]
fn is_by_the_mesh(seen: &Seen, status: StatusCode, flags: &[&str], what: &str) {
    let Seen::Whole(got, flag, body) = seen else { panic!("{what}: {seen:?}") };
    assert!(*got == status && flags.contains(&flag.as_str()), "{what}: {seen:?}");
    assert!(body.starts_with(b"starling: "), "{what}: {seen:?}");
}

#[track_caller]
fn is_whole(seen: &Seen, expected: &str, what: &str) {
    let Seen::Whole(StatusCode::OK, flag, body) = seen else { panic!("{what}: {seen:?}") };
    assert!(flag.is_empty() && body == expected, "{what}: {seen:?}");
}

/// A server of HTTP/1.1 that does what the path says, once it may.
async fn serve(mut stream: TcpStream, heard: Arc<Semaphore>) {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"once") {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        if bytes.starts_with(b"PRI") {
            let no_http2 = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(no_http2.as_bytes()).await;
            return;
        }
    }
    let head = String::from_utf8_lossy(&bytes);
    let path = head.split(' ').nth(1).unwrap_or_default();
    let is_within = WITHIN.iter().any(|(name, ..)| *name == path);
    let all = [BEFORE, LATE, WITHIN, SLOW, MORE].concat();
    let fault = all.iter().find(|(name, ..)| *name == path);
    let (_, said, then) = fault.copied().unwrap_or(("", GOOD, Then::Ends));
    if path.starts_with("/slow/") {
        let _ = stream.set_nodelay(true);
        for byte in said.as_bytes() {
            let _ = stream.write_all(&[*byte]).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    } else {
        let _ = stream.write_all(said.as_bytes()).await;
    }
    if is_within && let Ok(permit) = heard.acquire().await {
        permit.forget();
    }
    match then {
        Then::Ends => {}
        Then::Resets => {
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
        Then::Says(more) => {
            let _ = stream.write_all(more.as_bytes()).await;
            drop(stream.read(&mut [0; 64]).await);
        }
        Then::Hangs => drop(stream.read(&mut [0; 64]).await),
    }
}

#[tokio::test]
async fn what_fails_before_the_answer_is_answered_by_the_mesh() {
    let world = World::new().await;
    for mut client in world.clients().await {
        for (path, ..) in BEFORE {
            let what = format!("{path} by {:?}", client.version());
            let seen = world.ask(&mut client, path).await;
            is_by_the_mesh(&seen, StatusCode::SERVICE_UNAVAILABLE, &["UC"], &what);
            is_whole(&world.ask(&mut client, "/good").await, "good", &what);
        }
    }
}

#[tokio::test]
async fn what_does_not_come_is_answered_by_the_mesh_in_time() {
    let world = World::new().await;
    for mut client in world.clients().await {
        for (path, ..) in LATE {
            let what = format!("{path} by {:?}", client.version());
            let seen = world.ask(&mut client, path).await;
            is_by_the_mesh(&seen, StatusCode::GATEWAY_TIMEOUT, &["UT"], &what);
            is_whole(&world.ask(&mut client, "/good").await, "good", &what);
        }
    }
}

#[tokio::test]
async fn half_a_body_never_looks_whole() {
    let world = World::new().await;
    for mut client in world.clients().await {
        for (path, ..) in WITHIN {
            let what = format!("{path} by {:?}", client.version());
            match world.ask(&mut client, path).await {
                Seen::CutOff(StatusCode::OK, body) => assert!(body == HALF, "{what}: {body:?}"),
                other => panic!("{what}: {other:?}"),
            }
            is_whole(&world.ask(&mut client, "/good").await, "good", &what);
        }
    }
}

#[tokio::test]
async fn an_answer_of_one_byte_at_a_time_is_whole() {
    // Nothing reaches a caller before a head is complete.
    let world = World::patient("30s").await;
    for mut client in world.clients().await {
        for (path, ..) in SLOW {
            let what = format!("{path} by {:?}", client.version());
            is_whole(&world.ask(&mut client, path).await, HALF, &what);
        }
    }
}

#[tokio::test]
async fn what_comes_behind_an_answer_is_nobodys() {
    let world = World::new().await;
    for mut client in world.clients().await {
        for (path, ..) in MORE {
            let what = format!("{path} by {:?}", client.version());
            is_whole(&world.ask(&mut client, path).await, HALF, &what);
            for _ in 0..3 {
                is_whole(&world.ask(&mut client, "/good").await, "good", &what);
            }
        }
    }
}

/// Not even a refusal of HTTP/2 can be understood.
#[tokio::test]
async fn a_program_that_speaks_no_http_is_answered_for_in_either_version() {
    for said in ["220 mail.example ESMTP\r\n", "\u{0}\u{1}\u{2}\u{3}\u{4}\u{5}\u{6}\u{7}\u{8}\u{9}\n"] {
        let world = World::before("1s", move |mut stream, _| async move {
            let _ = stream.write_all(said.as_bytes()).await;
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        })
        .await;
        for mut client in world.clients().await {
            let seen = world.ask(&mut client, "/").await;
            let what = format!("{said:?} by {:?}", client.version());
            is_by_the_mesh(&seen, StatusCode::SERVICE_UNAVAILABLE, &["UC", "UF"], &what);
        }
    }
}
