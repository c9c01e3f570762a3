//! What the mesh adds to messages, what it takes off, and the one spelling of a path.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use starling_tests::workload::{Http, Tcp, read_to_end};
use starling_tests::{HttpConnection, Mesh, Node, Reply, UNPROBED, get, head_of, request, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How many sidecars a request passes at most, as the README says.
const HOPS_MAX: usize = 32;

/// `web` behind one node, and another node that calls it; both write an access log.
struct World {
    _workload: Http,
    server: Node,
    caller: Node,
    /// Last: it takes the nodes' logs with it.
    _mesh: Mesh,
}

const ACCESS_LOG: &str = "[access_log]\nformat = \"json\"\npath = \"access.log\"";

impl World {
    async fn new() -> Self {
        let mesh = Mesh::new();
        let workload = Http::start(mesh.ip(), "web").await;
        let server = mesh.node("server").serves_as("web", workload.address(), UNPROBED).sections(ACCESS_LOG);
        let server = server.start().await;
        let caller = mesh.node("caller").calls("web").sections(ACCESS_LOG).start().await;
        caller.finds("web", 1).await;
        Self { _workload: workload, server, caller, _mesh: mesh }
    }

    /// What is answered to a GET with these headers.
    async fn ask(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut asked = request(Method::GET, "web.mesh", path, "");
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("a name");
            asked.headers_mut().append(name, value.parse().expect("a value"));
        }
        HttpConnection::open(self.caller.outbound("web")).await.send(asked).await
    }
}

/// The lines of a node's access log.
fn access_log(node: &Node) -> String {
    std::fs::read_to_string(node.directory().join("access.log")).unwrap_or_default()
}

#[tokio::test]
async fn a_path_arrives_in_its_one_spelling() {
    let world = World::new().await;
    for (asked, arrives) in [
        ("/seen?x=/../%2f//", "/seen?x=/../%2f//"),
        ("//seen", "/seen"),
        ("/public/../seen?x", "/seen?x"),
        ("/public/%2e%2E/./%73een", "/seen"),
        ("/../seen", "/seen"),
        ("/seen/group%2fproject%5cx", "/seen/group%2Fproject%5Cx"),
    ] {
        let seen = world.ask(asked, &[]).await.json();
        assert_eq!(seen["target"], arrives, "{asked}");
    }
    for asked in
        ["/a/..%2fseen", "/a%5C..", "/..;/seen", "/seen%00", "/seen%0d%0a", "/a\\seen", "/seen%", "/%zz"]
    {
        let reply = world.ask(asked, &[]).await;
        assert_eq!(reply.status(), StatusCode::BAD_REQUEST, "{asked}");
        assert_eq!(
            (reply.header("x-starling-flags"), reply.header("connection")),
            ("DPE", "close"),
            "{asked}"
        );
    }
}

#[tokio::test]
async fn nobody_says_anything_in_the_name_of_the_mesh() {
    let world = World::new().await;
    let forged = [
        ("x-starling-peer", "me"),
        ("x_starling_peer", "me"),
        ("x-starling-flags", "me"),
        ("X-Starling_Unsent", "me"),
        ("x-starling-of-tomorrow", "me"),
        ("x-starlings", "mine"),
    ];
    let seen = world.ask("/seen", &forged).await.json();
    let own = |pair: &&serde_json::Value| pair[0].as_str().is_some_and(|name| name.contains("starling"));
    let mut own: Vec<_> = seen["headers"].as_array().expect("headers").iter().filter(own).collect();
    own.sort_by_key(|pair| pair[0].as_str());
    let expected = serde_json::json!([
        ["x-starling-hops", "1"],
        ["x-starling-peer", "spiffe://acme/svc/caller"],
        ["x-starlings", "mine"],
    ]);
    assert_eq!(serde_json::json!(own), expected, "{seen}");
}

#[tokio::test]
async fn a_workload_says_nothing_in_its_name_either_trailers_included() {
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |mut stream| {
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nX-Starling-Flags: UH\r\n\
                      x_starling_unsent: 1\r\ntrailer: x-starling-flags, x_starling_flags, x-sum\r\n\r\n\
                      4\r\nbody\r\n0\r\nx-starling-flags: UH\r\nx_starling_flags: UH\r\nx-sum: 42\r\n\r\n";
        while stream.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {
            stream.write_all(answer.as_bytes()).await.expect("written");
        }
    })
    .await;
    let _server = mesh.node("server").serves_as("web", workload.address(), UNPROBED).start().await;
    let caller = mesh.node("caller").calls("web").start().await;
    caller.finds("web", 1).await;
    let mut asked = request(Method::GET, "web.mesh", "/", "");
    asked.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    asked.headers_mut().insert("connection", HeaderValue::from_static("te"));
    let answer = HttpConnection::open(caller.outbound("web")).await.begin(asked).await.expect("an answer");
    let own =
        |headers: &http::HeaderMap| headers.keys().filter(|name| name.as_str().contains("starling")).count();
    assert_eq!((answer.status(), own(answer.headers())), (StatusCode::OK, 0), "{:?}", answer.headers());
    let body = within("the body", answer.into_body().collect()).await.expect("whole");
    let trailers = body.trailers().expect("trailers");
    assert_eq!((trailers.len(), &trailers["x-sum"]), (1, &HeaderValue::from_static("42")), "{trailers:?}");
}

#[tokio::test]
async fn a_request_has_one_name_in_all_logs() {
    let world = World::new().await;
    let seen = world.ask("/seen", &[]).await.json();
    let [made] = head_of(&seen, "x-request-id")[..] else { panic!("no id: {seen}") };
    let lengths: Vec<_> = made.split('-').map(str::len).collect();
    assert_eq!(lengths, [8, 4, 4, 4, 12], "{made}");
    for node in [&world.caller, &world.server] {
        starling_tests::eventually("the access log to name it", async || {
            access_log(node).contains(made).then_some(())
        })
        .await;
    }
    let seen = world.ask("/seen", &[("x-request-id", "edge/7:a")]).await.json();
    assert_eq!(head_of(&seen, "x-request-id"), ["edge/7:a"]);
    let too_long = "a".repeat(129);
    for ids in [&["a b"][..], &["a", "b"], &[&too_long]] {
        let headers: Vec<_> = ids.iter().map(|id| ("x-request-id", *id)).collect();
        let seen = world.ask("/seen", &headers).await.json();
        let [id] = head_of(&seen, "x-request-id")[..] else { panic!("not one id: {seen}") };
        assert!(id.len() == 36 && !ids.contains(&id), "{id}");
    }
}

#[tokio::test]
async fn a_count_of_hops_goes_up_only() {
    let world = World::new().await;
    for (said, heard) in [("5", "6"), ("31", "32"), ("-7", "1"), ("x", "1")] {
        let seen = world.ask("/seen", &[("x-starling-hops", said)]).await.json();
        assert_eq!(head_of(&seen, "x-starling-hops"), [heard], "{said}");
    }
    let reply = world.ask("/seen", &[("x-starling-hops", "32")]).await;
    assert_eq!((reply.status(), reply.header("x-starling-flags")), (StatusCode::LOOP_DETECTED, "LOOP"));
    assert_eq!(reply.text().lines().count(), 1, "{}", reply.text());
}

/// Passes a request on to the node's own port for the same service, as a proxy in a circle does.
async fn pass_on(mut client: TcpStream, to: SocketAddr) {
    let mut head = vec![0; 8192];
    let count = client.read(&mut head).await.expect("a request");
    let head = String::from_utf8_lossy(&head[..count]).replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    let mut next = TcpStream::connect(to).await.expect("the node's port accepts");
    next.write_all(head.as_bytes()).await.expect("written");
    let answer = read_to_end(&mut next).await.expect("an answer");
    let _ = client.write_all(&answer).await;
}

#[tokio::test]
async fn a_request_that_goes_in_a_circle_ends() {
    let mesh = Mesh::new();
    let (port, rounds) = (Arc::new(OnceLock::new()), Arc::new(AtomicUsize::new(0)));
    let (told, counted) = (port.clone(), rounds.clone());
    let workload = Tcp::start(mesh.ip(), move |client| {
        counted.fetch_add(1, Ordering::Relaxed);
        pass_on(client, *told.get().expect("the node runs"))
    })
    .await;
    let node = mesh.node("web").serves_as("web", workload.address(), UNPROBED).calls("web").start().await;
    node.finds("web", 1).await;
    port.set(node.outbound("web")).expect("once");
    let mut asked = request(Method::POST, "web.mesh", "/", "");
    asked.headers_mut().insert("connection", HeaderValue::from_static("close"));
    let reply = within("the end of a circle", async {
        HttpConnection::open(node.outbound("web")).await.send(asked).await
    })
    .await;
    assert_eq!(rounds.load(Ordering::Relaxed), HOPS_MAX);
    // The flag is the last sidecar's word to its client, a workload, which cannot say it again.
    assert_eq!((reply.status(), reply.header("x-starling-flags")), (StatusCode::LOOP_DETECTED, ""));
    assert!(reply.text().starts_with("starling: LOOP: "), "{}", reply.text());
    // Another request is not hindered by the one before.
    assert_eq!(get(node.outbound("web"), "web.mesh", "/").await.status(), StatusCode::LOOP_DETECTED);
}
