//! The usual catalogue of request smuggling, sent byte by byte to a node: whatever two readers could
//! see as one request or two is refused, or reaches the workload as one that cannot be misread.
//!
//! The workload records every byte. What it got is judged by a reader of its own that forgives
//! nothing, and the next client must be answered for what it asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use starling_tests::workload::{Http, Tcp};
use starling_tests::{Mesh, Node, UNPROBED, get, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The request that must never be seen as one.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: web.mesh\r\n\r\n";

/// A request that waits for bytes that do not come is given up by its client after this.
const PATIENCE: Duration = Duration::from_millis(700);

/// Variants that are a plain request behind their odd looks, and arrive as one.
const ARRIVING_MIN: usize = 12;

/// What must become of a variant.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// 400, and the connection ends; nothing of it reaches the workload.
    Refused,
    /// It reaches the workload as one plain request, or not at all.
    One,
}

/// One way to smuggle: a POST to `/first` with further lines in its head, and what follows the head.
struct Variant {
    lines: String,
    body: String,
    fate: Fate,
}

fn variant(lines: impl Into<String>, body: impl Into<String>, fate: Fate) -> Variant {
    Variant { lines: lines.into(), body: body.into(), fate }
}

fn catalogue() -> Vec<Variant> {
    lengths().into_iter().chain(codings()).chain(chunks()).chain(lines()).collect()
}

/// CL.CL, and lengths that are none.
fn lengths() -> Vec<Variant> {
    let refused = [
        "content-length: 0\r\ncontent-length: 42",
        "content-length: 42\r\ncontent-length: 0",
        "content-length: 0, 42",
        "content-length: +0",
        "content-length: -1",
        "content-length: 0x2a",
        "content-length: 4 2",
        "content-length:",
        "content-length: 18446744073709551616",
        "content-length : 42",
        "content-length\t: 42",
    ];
    let refused = refused.into_iter().map(|lines| variant(lines, SMUGGLED, Fate::Refused));
    // CL.0: the body is a body, also where methods and switches of protocols have none as a rule.
    let plain = [
        "content-length: 42",
        "connection: content-length\r\ncontent-length: 42",
        "connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 42",
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAA\r\ncontent-length: 42",
        "expect: 100-continue\r\ncontent-length: 42",
        "content-length: 42\r\ncontent-length: 42",
    ];
    refused.chain(plain.into_iter().map(|lines| variant(lines, SMUGGLED, Fate::One))).collect()
}

/// CL.TE, TE.CL and TE.TE.
fn codings() -> Vec<Variant> {
    let chunked = format!("0\r\n\r\n{SMUGGLED}");
    let one = [
        "content-length: 4\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 4",
        "content-length: 0\r\ntransfer-encoding: chunked",
        "content-length: 47\r\ntransfer-encoding: chunked",
    ];
    // hyper reads the coding, forgets the length and ends the connection (RFC 9112, section 6.1).
    let one = one.into_iter().map(|lines| variant(lines, &chunked, Fate::One));
    let obscured = [
        "transfer-encoding: identity\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: x",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: identity, chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: xchunked",
        "transfer-encoding: x chunked",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked;q=1",
        "transfer-encoding: \u{b}chunked",
        "transfer-encoding:",
        "transfer-encoding : chunked",
        "transfer-encoding\t: chunked",
        "transfer-encoding:\r\n chunked",
        "x: a\rtransfer-encoding: chunked",
    ];
    let obscured = obscured.into_iter().flat_map(|lines| {
        let with_length = format!("content-length: 42\r\n{lines}");
        [variant(lines, &chunked, Fate::Refused), variant(with_length, SMUGGLED, Fate::Refused)]
    });
    one.chain(obscured.collect::<Vec<_>>()).collect()
}

/// Chunks that are not what they say.
fn chunks() -> Vec<Variant> {
    let length = SMUGGLED.len();
    let bodies = [
        format!("{length:x};ext=\"\r\n\"\r\n{SMUGGLED}\r\n0\r\n\r\n"),
        format!("{length:x};a=b\n{SMUGGLED}\r\n0\r\n\r\n"),
        format!("{length:x};a=b\r\n{SMUGGLED}\r\n0\r\n\r\n"),
        format!("{length:x} \r\n{SMUGGLED}\r\n0\r\n\r\n"),
        format!("0x{length:x}\r\n{SMUGGLED}\r\n0\r\n\r\n"),
        format!("+{length:x}\r\n{SMUGGLED}\r\n0\r\n\r\n"),
        format!("-1\r\n{SMUGGLED}\r\n0\r\n\r\n"),
        format!("10000000000000000\r\n{SMUGGLED}\r\n0\r\n\r\n"),
        format!("1000000000000002a\r\n{SMUGGLED}\r\n0\r\n\r\n"),
        format!("{length:x}\n{SMUGGLED}\n0\n\n"),
        format!("{length:x}\r{SMUGGLED}\r\n0\r\n\r\n"),
        format!("2\r\nabc\r\n0\r\n\r\n{SMUGGLED}"),
        format!("3\r\nabc0\r\n\r\n{SMUGGLED}"),
        format!("\r\n0\r\n\r\n{SMUGGLED}"),
        "0\r\ncontent-length: 42\r\n\r\n".to_owned(),
        "0\r\nhost: admin.mesh\r\ntransfer-encoding: x\r\n\r\n".to_owned(),
        format!("0\r\nx: a\n{SMUGGLED}"),
    ];
    bodies.into_iter().map(|body| variant("transfer-encoding: chunked", body, Fate::One)).collect()
}

/// Lines of a head that two readers could part differently, and what `Connection` might take away.
fn lines() -> Vec<Variant> {
    let refused = ["x: a\r\n content-length: 42", "x: a\0b", "x\0: a", "x y: a", ": a", "host: admin.mesh"];
    let refused = refused.into_iter().map(|lines| variant(lines, "", Fate::Refused));
    let chunked = format!("2a\r\n{SMUGGLED}\r\n0\r\n\r\n");
    let plain = [
        variant("connection: host", "", Fate::One),
        variant("connection: transfer-encoding\r\ntransfer-encoding: chunked", chunked, Fate::One),
    ];
    refused.chain(plain).collect()
}

/// What one connection to the workload brought, as text: everything sent here is.
type Seen = Arc<Mutex<Vec<String>>>;

/// `web`, whose workload records, behind one node, and another node that calls it.
struct World {
    seen: Seen,
    _workload: Tcp,
    _server: Node,
    caller: Node,
    /// Last: it takes the nodes' logs with it.
    _mesh: Mesh,
}

impl World {
    async fn new() -> Self {
        let mesh = Mesh::new();
        let seen = Seen::default();
        let recorded = seen.clone();
        let workload = Tcp::start(mesh.ip(), move |stream| record(stream, recorded.clone())).await;
        let server = mesh.node("server").serves_as("web", workload.address(), UNPROBED).start().await;
        let caller = mesh.node("caller").calls("web").start().await;
        caller.finds("web", 1).await;
        Self { seen, _workload: workload, _server: server, caller, _mesh: mesh }
    }

    /// The targets of all requests that the workload was ever sent, but for `/next`; panics if one
    /// could be misread.
    fn targets(&self, variant: &str) -> Vec<String> {
        let mut targets = Vec::new();
        for bytes in self.seen.lock().expect("no panic").iter() {
            let mut rest = bytes.as_str();
            while !rest.is_empty() {
                match read_one(rest) {
                    Ok(Some((target, used))) => {
                        targets.extend(Some(target).filter(|target| target != "/next"));
                        rest = &rest[used..];
                    }
                    Ok(None) => break,
                    Err(why) => panic!("{variant}: the workload was sent {why}: {bytes:?}"),
                }
            }
        }
        targets
    }
}

/// Records what comes, and answers each whole request with its target.
async fn record(mut stream: TcpStream, seen: Seen) {
    let index = {
        let mut seen = seen.lock().expect("no panic");
        seen.push(String::new());
        seen.len() - 1
    };
    let (mut answered, mut buffer) = (0, [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let mut answers = String::new();
        {
            let mut seen = seen.lock().expect("no panic");
            seen[index].push_str(&String::from_utf8_lossy(&buffer[..count]));
            let pending = &seen[index][answered..];
            if pending.ends_with("\r\n\r\n") && pending.contains("\r\nexpect: 100-continue\r\n") {
                answers += "HTTP/1.1 100 Continue\r\n\r\n";
            }
            while let Ok(Some((target, used))) = read_one(&seen[index][answered..]) {
                answered += used;
                answers += &format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{target}", target.len());
            }
        }
        if stream.write_all(answers.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The target of the first request and its length, if it is whole; or what a lenient reader might
/// see otherwise.
fn read_one(bytes: &str) -> Result<Option<(String, usize)>, String> {
    let Some(head_bytes) = bytes.find("\r\n\r\n").map(|end| end + 4) else { return Ok(None) };
    let head = &bytes[..head_bytes - 4];
    if head.replace("\r\n", "").contains(['\r', '\n', '\0']) {
        return Err("a bare line end or NUL".into());
    }
    let mut lines = head.split("\r\n");
    let line: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [_, target, "HTTP/1.1"] = line[..] else { return Err(format!("the line {line:?}")) };
    let (mut hosts, mut lengths, mut codings) = (0, Vec::new(), Vec::new());
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a header without a colon")?;
        if name.is_empty() || name.contains([' ', '\t']) {
            return Err(format!("the header name {name:?}"));
        }
        match name.to_ascii_lowercase().as_str() {
            "host" => hosts += 1,
            "content-length" => lengths.push(value.trim().parse::<usize>().map_err(|_| value.to_owned())?),
            "transfer-encoding" => codings.push(value.trim().to_owned()),
            _ => {}
        }
    }
    if hosts != 1 {
        return Err(format!("{hosts} Host"));
    }
    let rest = &bytes[head_bytes..];
    let body_bytes = match (&lengths[..], &codings[..]) {
        ([], []) => Some(0),
        ([length], []) => (rest.len() >= *length).then_some(*length),
        ([], [coding]) if coding == "chunked" => read_chunks(rest)?,
        other => return Err(format!("this for a length: {other:?}")),
    };
    Ok(body_bytes.map(|body_bytes| (target.to_owned(), head_bytes + body_bytes)))
}

fn read_chunks(bytes: &str) -> Result<Option<usize>, String> {
    let mut used = 0;
    loop {
        let Some(line) = bytes[used..].find("\r\n") else { return Ok(None) };
        let size = &bytes[used..used + line];
        let is_plain = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_hexdigit());
        let count = usize::from_str_radix(size, 16).ok().filter(|_| is_plain);
        let count = count.ok_or(format!("the chunk size {size:?}"))?;
        used += line + 2;
        if count == 0 {
            return Ok(bytes[used..].find("\r\n").map(|end| used + end + 2).filter(|_| {
                // No trailers are sent in these tests that may pass.
                bytes[used..].starts_with("\r\n")
            }));
        }
        let Some(end) = bytes.get(used + count..used + count + 2) else { return Ok(None) };
        if end != "\r\n" {
            return Err("a chunk without an end".into());
        }
        used += count + 2;
    }
}

/// Sends these bytes; everything that comes back until the end, or until nothing more does.
async fn raw(address: SocketAddr, bytes: &str) -> (String, bool) {
    let mut stream = TcpStream::connect(address).await.expect("the node's port accepts");
    stream.write_all(bytes.as_bytes()).await.expect("written");
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    let has_ended = loop {
        match tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => break true,
            Ok(Ok(count)) => answer.extend_from_slice(&buffer[..count]),
            Err(_) => break false,
        }
    };
    (String::from_utf8_lossy(&answer).into_owned(), has_ended)
}

#[tokio::test]
async fn no_variant_becomes_two_requests_or_one_that_can_be_misread() {
    let world = World::new().await;
    let address = world.caller.outbound("web");
    for Variant { lines, body, fate } in catalogue() {
        let variant = format!("{lines:?}, {body:?}");
        let before = world.targets(&variant).len();
        let bytes = format!("POST /first HTTP/1.1\r\nhost: web.mesh\r\n{lines}\r\n\r\n{body}");
        let (answer, has_ended) = raw(address, &bytes).await;
        let targets = world.targets(&variant);
        let count = targets.len() - before;
        if fate == Fate::Refused {
            assert!(answer.starts_with("HTTP/1.1 400 ") && has_ended, "{variant}: {answer:?}");
            assert_eq!(count, 0, "{variant}");
        }
        assert!(count <= 1 && targets.iter().all(|target| target == "/first"), "{variant}: {targets:?}");
        assert!(answer.matches("HTTP/1.1 200").count() <= 1, "{variant}: {answer:?}");
        let next = get(address, "web.mesh", "/next").await;
        assert_eq!(next.text(), "/next", "{variant}: the next client is answered for what it asked");
    }
    // Refusing everything would be no proof.
    assert!(world.targets("all").len() >= ARRIVING_MIN, "{:?}", world.targets("all"));
}

/// The reader that judges does see what it is there for.
#[test]
fn the_judge_forgives_nothing() {
    let whole = "POST /first HTTP/1.1\r\nhost: web.mesh\r\ncontent-length: 2\r\n\r\nok";
    assert_eq!(read_one(whole), Ok(Some(("/first".to_owned(), whole.len()))));
    assert_eq!(read_one(&whole[..whole.len() - 1]), Ok(None));
    for variant in catalogue().iter().filter(|variant| variant.fate == Fate::Refused) {
        let bytes =
            format!("POST /first HTTP/1.1\r\nhost: web.mesh\r\n{}\r\n\r\n{}", variant.lines, variant.body);
        let is_one = read_one(&bytes).is_ok_and(|read| read.is_none_or(|(_, used)| used == bytes.len()));
        assert!(!is_one, "{bytes:?}");
    }
}

/// What hyper reads leniently, it writes strictly.
#[tokio::test]
async fn lines_are_ended_as_they_should_be() {
    let world = World::new().await;
    let address = world.caller.outbound("web");
    for bytes in [
        "GET /first HTTP/1.1\nhost: web.mesh\nx: y\n\n",
        "GET /first HTTP/1.1\r\nhost: web.mesh\nx: y\r\n\n",
        "\r\n\r\nGET /first HTTP/1.1\r\nhost: web.mesh\r\n\r\n",
        "GET /first HTTP/1.1\r\nhost: web.mesh\r\nx:  y \t\r\n\r\n",
    ] {
        let before = world.targets(bytes).len();
        let (answer, _) = raw(address, bytes).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("/first"), "{bytes:?}: {answer:?}");
        assert_eq!(world.targets(bytes).len(), before + 1, "{bytes:?}");
    }
    for line in [
        "GET /a b HTTP/1.1",
        "GET  /a HTTP/1.1 x",
        "GET /a\tHTTP/1.1",
        "GET /a HTTP/1.1\r x",
        "GET /a HTTP/1.11",
        "GET /a HTTP/2.0",
        "GET\t/a HTTP/1.1",
        "G\0T /a HTTP/1.1",
        "GET /a%0d%0ahost:x HTTP/1.1",
        "GET /a\\b HTTP/1.1",
        "GET * HTTP/1.1",
        "GET a/b HTTP/1.1",
    ] {
        let (answer, has_ended) = raw(address, &format!("{line}\r\nhost: web.mesh\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && has_ended, "{line:?}: {answer:?}");
        let targets = world.targets(line);
        assert!(targets.iter().all(|target| target == "/first"), "{line:?}: {targets:?}");
    }
}

/// `:method GET`, `:scheme http` of HPACK's static table.
const GET_HTTP: [u8; 2] = [0x82, 0x86];
/// `:status 200` of the same.
const STATUS_200: u8 = 0x88;

/// A header that is not indexed (RFC 7541, section 6.2.2).
fn literal(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("short");
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// Sends one HTTP/2 request; whether it was answered with 200.
async fn is_answered(address: SocketAddr, block: &[u8], body: Option<&[u8]>) -> bool {
    let mut stream = TcpStream::connect(address).await.expect("the node's port accepts");
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, if body.is_some() { 4 } else { 5 }, 1, block));
    bytes.extend(body.map(|body| frame(0, 1, 1, body)).unwrap_or_default());
    stream.write_all(&bytes).await.expect("written");
    let answered = async {
        let mut head = [0; 9];
        while stream.read_exact(&mut head).await.is_ok() {
            let mut payload = vec![0; usize::from(head[1]) * 256 + usize::from(head[2])];
            if stream.read_exact(&mut payload).await.is_err() {
                return false;
            }
            match head[3] {
                1 => return payload.first() == Some(&STATUS_200),
                // RST_STREAM, GOAWAY.
                3 | 7 => return false,
                _ => {}
            }
        }
        false
    };
    within("an answer", answered).await
}

#[tokio::test]
async fn nothing_is_injected_by_http2() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves_as("web", workload.address(), UNPROBED).start().await;
    let caller = mesh.node("caller").calls("web").start().await;
    caller.finds("web", 1).await;
    let address = caller.outbound("web");
    let block = |path: &str, more: &[(&str, &str)]| {
        let more = more.iter().flat_map(|(name, value)| literal(name, value));
        let plain = [GET_HTTP.to_vec(), literal(":path", path), literal(":authority", "web.mesh")].concat();
        plain.into_iter().chain(more).collect::<Vec<u8>>()
    };
    assert!(is_answered(address, &block("/seen", &[("x", "y"), ("host", "web.mesh")]), None).await);
    assert!(is_answered(address, &block("/seen", &[("content-length", "3")]), Some(b"abc")).await);
    for (path, headers) in [
        ("/seen", &[("x", "a\r\nhost: admin.mesh")][..]),
        ("/seen", &[("x", "a\nb")]),
        ("/seen", &[("x", "a\0b")]),
        ("/seen", &[("x\r\nhost", "b")]),
        ("/seen", &[("x: y", "b")]),
        ("/seen", &[("X", "capital")]),
        ("/seen", &[("", "no name")]),
        ("/seen", &[("transfer-encoding", "chunked")]),
        ("/seen", &[("connection", "x")]),
        ("/seen", &[("host", "admin.mesh")]),
        ("/seen", &[("host", "web.mesh"), ("host", "web.mesh")]),
        ("/seen", &[("content-length", "2")]),
        ("/seen", &[("content-length", "3"), ("content-length", "4")]),
        ("/seen", &[("content-length", "+3")]),
        ("/seen", &[(":path", "/admin")]),
        ("/seen", &[(":authority", "admin.mesh")]),
        ("/seen HTTP/1.1\r\nhost: admin.mesh\r\n\r\n", &[]),
        ("/seen HTTP/1.1", &[]),
        ("/a%2f..%2fseen", &[]),
        ("/a%5C..", &[]),
        ("/..;/seen", &[]),
        ("/seen\\", &[]),
        ("seen", &[]),
        ("", &[]),
    ] {
        assert!(!is_answered(address, &block(path, headers), Some(b"abc")).await, "{path:?} {headers:?}");
        assert_eq!(get(address, "web.mesh", "/seen").await.json()["target"], "/seen", "the next is in step");
    }
}
