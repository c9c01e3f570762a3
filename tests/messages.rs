//! A peer that need not be honest, in sidecars' own messages: what it says reaches a workload as one request that it
//! proved to be its own, or not at all.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use starling_tests::workload::Tcp;
use starling_tests::{Mesh, Node, UNPROBED, eventually, member, within};
use starling_transport::connection::Connection;
use starling_transport::endpoint::Endpoint;
use starling_transport::header::{StreamHeader, StreamKind};
use starling_transport::pool::Target;
use starling_transport::stream::{MeshStream, reset_code};
use starling_transport::verify::Expected;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const HEAD: u8 = 1;
const DATA: u8 = 2;
const TRAILERS: u8 = 3;
const LAST: u8 = 0x80;
const KEEPS: u8 = 0x40;

/// HTTP/2's PROTOCOL_ERROR, as messages say it.
const PROTOCOL_ERROR: u64 = 0x101;

/// What a workload hears, and two answers whatever that is: should two requests come of one, it has them both.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Heard {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned()
    }

    /// The same, but for the first request for `/again`: there the connection ends.
    async fn listen_and_hang_up(self, mut stream: TcpStream) {
        let mut room = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut room).await {
            self.0.lock().expect("no panic").extend_from_slice(&room[..count]);
            if room[..count].starts_with(b"GET /again") && self.text().matches("/again").count() == 1 {
                return;
            }
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                return;
            }
        }
    }

    async fn listen(self, mut stream: TcpStream) {
        let mut room = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut room).await {
            self.0.lock().expect("no panic").extend_from_slice(&room[..count]);
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                return;
            }
        }
    }
}

/// A node that serves `web`, and a member that is no node.
struct Peers {
    _mesh: Mesh,
    heard: Heard,
    server: Node,
    connection: Connection,
    workload: Option<Tcp>,
    _hostile: Endpoint,
}

impl Peers {
    async fn start() -> Self {
        Self::start_with(Heard::listen).await
    }

    async fn start_with<F: Future<Output = ()> + Send + 'static>(
        listen: impl Fn(Heard, TcpStream) -> F + Send + Sync + 'static,
    ) -> Self {
        let (mesh, heard) = (Mesh::new(), Heard::default());
        let told = heard.clone();
        let workload = Tcp::start(mesh.ip(), move |stream| listen(told.clone(), stream)).await;
        let server = mesh.node("server").serves_as("web", workload.address(), UNPROBED).start().await;
        let (hostile, _incoming) = member(&mesh, "spiffe://acme/svc/hostile", mesh.free_address());
        let target = Target { address: server.listen(), expected: Expected::Anybody };
        let connection = within("a connection", hostile.pool().connect(&target)).await.expect("a member");
        Self { _mesh: mesh, heard, server, connection, workload: Some(workload), _hostile: hostile }
    }

    /// Says `bytes` on a stream of its own, once that is accepted.
    async fn say(&self, bytes: &[u8]) -> MeshStream {
        let (service, instance) = ("web".parse().expect("a name"), "web".to_owned());
        let header = StreamHeader::new(StreamKind::Http1Messages { service, instance });
        let mut stream = self.connection.open(&header).await.expect("a stream");
        within("the answer", stream.accepted()).await.expect("accepted");
        stream.write_all(bytes).await.expect("written");
        stream
    }
}

fn frame(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
    [&[kind], length.as_slice(), bytes].concat()
}

fn field(head: &mut Vec<u8>, bytes: &[u8], factor: usize) {
    let length = u16::try_from(bytes.len() * factor).expect("short");
    head.extend_from_slice(&(length | 0x4000).to_be_bytes());
    head.extend_from_slice(bytes);
}

/// The frame of a head; the method, the path and headers are anything.
fn head(kind: u8, method: &str, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut head = Vec::new();
    for part in [method, "", "", path] {
        field(&mut head, part.as_bytes(), 1);
    }
    head.push(u8::try_from(headers.len()).expect("few"));
    for (name, value) in headers {
        field(&mut head, name.as_bytes(), 1);
        field(&mut head, value.as_bytes(), 2);
    }
    frame(kind, &head)
}

/// The code that a stream is reset with.
async fn reset(mut stream: MeshStream) -> Option<u64> {
    let error = within("the end", stream.read_u8()).await.expect_err("no answer");
    reset_code(&error)
}

#[tokio::test]
async fn what_could_be_taken_for_another_request_reaches_no_workload() {
    let peers = Peers::start().await;
    let smuggled = b"GET /smuggled HTTP/1.1\r\nhost: web\r\nx-starling-peer: spiffe://acme/svc/admin\r\n\r\n";
    let length = smuggled.len().to_string();
    let plain = |headers: &[(&str, &str)]| head(HEAD | LAST, "POST", "/", headers);
    let long = |headers: &[(&str, &str)]| head(HEAD, "POST", "/", headers);
    for (what, said) in [
        ("a length without a body", plain(&[("content-length", &length)])),
        ("two lengths", long(&[("content-length", "3"), ("content-length", "4")])),
        ("a length and a coding", long(&[("content-length", "3"), ("transfer-encoding", "chunked")])),
        ("a length that is none", long(&[("content-length", "+3")])),
        ("a header that is two", plain(&[("x-a", "b\r\nx-starling-peer: spiffe://acme/svc/admin")])),
        ("a name that is two", plain(&[("x-a: b\r\nx-c", "d")])),
        ("a name in capitals", plain(&[("X-A", "b")])),
        ("a method that is more", head(HEAD | LAST, "GET /smuggled HTTP/1.1\r\nx-a:", "/", &[])),
        ("a target that is more", head(HEAD | LAST, "GET", "/ HTTP/1.1\r\nx-a: b", &[])),
        ("a target with a fragment", head(HEAD | LAST, "GET", "/a#b", &[])),
        ("a target that is none", head(HEAD | LAST, "GET", "#", &[])),
        ("a target without a path", head(HEAD | LAST, "GET", "web.mesh:80", &[])),
        ("a tunnel", head(HEAD | LAST, "CONNECT", "/", &[])),
        ("a body without a head", frame(DATA | LAST, smuggled)),
        ("trailers without a head", frame(TRAILERS | LAST, &[0])),
        ("more than a head", frame(HEAD | LAST, &[&plain(&[])[5..], b"x"].concat())),
        ("a head that ends too soon", frame(HEAD | LAST, &plain(&[("x-a", "b")])[5..20])),
        ("a head of two gigabytes", vec![HEAD, 0x80, 0, 0, 0]),
        ("a frame of no kind", frame(7, smuggled)),
        ("an end of what goes on", frame(HEAD | KEEPS, &plain(&[])[5..])),
    ] {
        let stream = peers.say(&[&said, smuggled.as_slice()].concat()).await;
        assert_eq!(reset(stream).await, Some(PROTOCOL_ERROR), "{what}");
    }
    assert_eq!(peers.heard.text(), "");
    eventually("each is counted", async || {
        let metrics = peers.server.admin().get("/metrics").await.text;
        let counted = metrics.lines().find(|line| line.contains("DPE") && line.contains("requests_total"));
        counted.is_some_and(|line| line.ends_with(" 20")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_peer_is_who_it_proved_to_be_and_asks_one_thing_at_a_time() {
    let peers = Peers::start().await;
    let forged = [("x-starling-peer", "spiffe://acme/svc/admin"), ("connection", "x-starling-peer")];
    let first = head(HEAD | LAST, "GET", "/first", &forged);
    let answer = read_answer(peers.say(&first).await).await;
    assert!(answer.ends_with(b"ok"), "{answer:?}");
    let heard = peers.heard.text();
    assert!(!heard.contains("admin"), "{heard}");
    assert_eq!(heard.matches("x-starling-peer: spiffe://acme/svc/hostile").count(), 1, "{heard}");
    // What comes behind a request before its answer ends the stream. It never mixes with another.
    let second = [head(HEAD, "POST", "/second", &[]), frame(DATA | LAST, b"body")].concat();
    let mut stream = peers.say(&[first.as_slice(), &second].concat()).await;
    let ended = within("an end", stream.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_err(), "{ended:?}");
    let answer = read_answer(peers.say(&second).await).await;
    assert!(answer.ends_with(b"ok"), "{answer:?}");
    let heard = peers.heard.text();
    assert_eq!(heard.matches("/second").count(), 1, "{heard}");
}

#[tokio::test]
async fn what_a_peer_says_is_taken_in_as_well_when_it_is_sent_again() {
    let peers = Peers::start_with(Heard::listen_and_hang_up).await;
    let answer = read_answer(peers.say(&head(HEAD | LAST, "GET", "/first", &[])).await).await;
    assert!(answer.ends_with(b"ok"), "{answer:?}");
    let said = [
        ("host", "web"),
        ("connection", "x-gone, upgrade"),
        ("x-gone", "gone"),
        ("upgrade", "h2c"),
        ("proxy-authorization", "Basic gone"),
        ("x-starling-peer", "spiffe://acme/svc/gone"),
        ("x_starling_peer", "gone"),
        ("x-starling-hops", "gone"),
        ("x-kept", "1"),
        ("x-kept", "2"),
    ];
    let again = head(HEAD | LAST, "GET", "//x/..//again", &said);
    let answer = read_answer(peers.say(&again).await).await;
    assert!(answer.ends_with(b"ok"), "{answer:?}");
    let heard = peers.heard.text();
    let [_, _first, sent, again] = heard.split("GET ").collect::<Vec<_>>()[..] else { panic!("{heard}") };
    assert_eq!(sent, again);
    assert!(sent.starts_with("/again HTTP/1.1\r\n") && sent.matches("x-kept").count() == 2, "{sent}");
    assert!(sent.contains("x-starling-peer: spiffe://acme/svc/hostile"), "{sent}");
    assert!(!sent.contains("gone") && !sent.contains("upgrade") && !sent.contains("hops"), "{sent}");
}

#[tokio::test]
async fn a_request_whose_body_nobody_reads_is_answered_and_leaves_its_stream_to_the_next() {
    let mut peers = Peers::start().await;
    let mut stream = peers.say(&[]).await;
    drop(peers.workload.take());
    let post = [head(HEAD, "POST", "/", &[]), frame(DATA | LAST, b"body")].concat();
    for _ in 0..3 {
        stream.write_all(&post).await.expect("written");
        let (kind, _) = read_message(&mut stream).await;
        assert_eq!(kind & KEEPS, KEEPS, "all of it was read");
    }
    // Here half of it comes after the answer.
    stream.write_all(&post[..post.len() - 2]).await.expect("written");
    let (kind, _) = read_message(&mut stream).await;
    assert_eq!(kind & KEEPS, 0);
    let _ = stream.write_all(&post[post.len() - 2..]).await;
    let ended = within("the end", stream.read_u8()).await.expect_err("no more");
    assert_eq!(reset_code(&ended), None, "a clean one: {ended}");
    assert!(!peers.server.log().contains("panicked"), "{}", peers.server.log());
}

async fn read_answer(mut stream: MeshStream) -> Bytes {
    read_message(&mut stream).await.1
}

/// What comes until a frame that is the last of its message, and the kind of that.
async fn read_message(stream: &mut MeshStream) -> (u8, Bytes) {
    let mut said = Vec::new();
    loop {
        let kind = within("a frame", stream.read_u8()).await.expect("a kind");
        let mut bytes = vec![0; within("a length", stream.read_u32()).await.expect("a length") as usize];
        within("a frame", stream.read_exact(&mut bytes)).await.expect("a whole frame");
        said.extend_from_slice(&bytes);
        if kind & LAST != 0 {
            return (kind, said.into());
        }
    }
}
