//! HTTP/1.1 through two nodes: what arrives, what comes back, and what neither side may forge.

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use starling_tests::workload::{Http, Tcp, read_to_end, sized_bytes};
use starling_tests::{HttpConnection, Mesh, Node, Reply, UNPROBED, connect_tunnel, get, head_of, request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const LARGE_BYTES: usize = 50 * 1024 * 1024;

/// `web` behind one node, and another node that calls it both ways.
struct World {
    workload: Http,
    _server: Node,
    caller: Node,
    /// Last: it takes the nodes' logs with it.
    _mesh: Mesh,
}

impl World {
    async fn new() -> Self {
        let mesh = Mesh::new();
        let workload = Http::start(mesh.ip(), "web").await;
        // Its connections are counted.
        let server = mesh.node("server").serves_as("web", workload.address(), UNPROBED).start().await;
        let caller = mesh.node("caller").calls("web").start().await;
        caller.finds("web", 1).await;
        Self { workload, _server: server, caller, _mesh: mesh }
    }

    /// A connection to the fixed port.
    async fn fixed(&self) -> HttpConnection {
        HttpConnection::open(self.caller.outbound("web")).await
    }

    /// A connection to the port for HTTP by name.
    async fn by_name(&self) -> HttpConnection {
        HttpConnection::open(self.caller.http_proxy()).await
    }
}

#[tokio::test]
async fn a_service_is_called_by_name_and_by_a_fixed_port() {
    let world = World::new().await;
    let by_name = world.by_name().await.send(request(Method::GET, "web.mesh", "/seen?a=1", "")).await;
    assert_eq!(by_name.status(), StatusCode::OK);
    let seen = by_name.json();
    assert_eq!((&seen["method"], &seen["target"]), (&"GET".into(), &"/seen?a=1".into()));
    assert_eq!(head_of(&seen, "host"), ["web.mesh"]);

    let fixed = world.fixed().await.send(request(Method::GET, "any.example", "/seen", "")).await;
    let seen = fixed.json();
    assert_eq!(head_of(&seen, "host"), ["any.example"], "a fixed port takes any host, and keeps it");
    assert_eq!(fixed.header("x-starling-flags"), "");
}

#[tokio::test]
async fn connections_are_kept_alive_at_both_ends() {
    let world = World::new().await;
    let mut connection = world.by_name().await;
    for _ in 0..50 {
        let reply = connection.send(request(Method::GET, "web.mesh", "/seen", "")).await;
        assert_eq!(reply.status(), StatusCode::OK);
    }
    assert!(connection.is_open().await);
    assert_eq!(world.workload.connections(), 1, "one after the other, they share a connection");
}

#[tokio::test]
async fn a_body_streams_both_ways_before_it_has_ended() {
    let world = World::new().await;
    let (pieces, body) = tokio::sync::mpsc::channel(1);
    let body = futures_util::stream::unfold(body, async |mut body| Some((body.recv().await?, body)));
    let mut echo = request(Method::POST, "web.mesh", "/echo", "");
    *echo.body_mut() = StreamBody::new(Box::pin(body)).boxed();

    let mut connection = world.by_name().await;
    let response = connection.begin(echo).await.expect("an answer before the request's end");
    let mut answer = response.into_body();
    for piece in ["one", "two", "three"] {
        pieces.send(Ok(http_body::Frame::data(piece.into()))).await.expect("taken");
        let frame = starling_tests::within("an echo", answer.frame()).await.expect("not the end");
        assert_eq!(frame.expect("whole").into_data().expect("data"), piece);
    }
    drop(pieces);
    assert!(answer.frame().await.is_none(), "the answer ends with the request");
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_in_step() {
    let world = World::new().await;
    let mut connection = world.by_name().await;
    for path in ["/status/204", "/status/304", "/status/500"] {
        let reply = connection.send(request(Method::GET, "web.mesh", path, "")).await;
        assert_eq!(format!("/status/{}", reply.status().as_u16()), path);
        assert!(reply.body.is_empty());
    }
    let head = connection.send(request(Method::HEAD, "web.mesh", "/seen", "")).await;
    assert_eq!((head.status(), head.body.len()), (StatusCode::OK, 0));
    let next = connection.send(request(Method::GET, "web.mesh", "/seen", "")).await;
    assert_eq!(next.json()["method"], "GET");
    assert_eq!(next.header("content-length"), next.body.len().to_string());
}

#[tokio::test]
async fn large_bodies_arrive_byte_for_byte() {
    let world = World::new().await;
    let sent = bytes::Bytes::from(sized_bytes(LARGE_BYTES));
    let reply = world.by_name().await.send(request(Method::POST, "web.mesh", "/echo", sent.clone())).await;
    assert_eq!(reply.status(), StatusCode::OK);
    // Not `assert_eq!`: nobody reads a hundred megabytes of difference.
    assert!(reply.body == sent, "{} bytes of {LARGE_BYTES} came back, or others", reply.body.len());
    let chunked = world.fixed().await.send(request(Method::GET, "web", "/bytes/5000000", "")).await;
    assert_eq!(chunked.header("content-length"), "");
    assert_eq!(chunked.body.len(), 5_000_000);
}

#[tokio::test]
async fn headers_of_one_hop_do_not_reach_the_next() {
    let world = World::new().await;
    let mut asked = request(Method::GET, "web.mesh", "/seen", "");
    for (name, value) in [
        ("connection", "x-secret"),
        ("x-secret", "1"),
        ("keep-alive", "timeout=9"),
        ("proxy-authorization", "Basic eDp5"),
        ("te", "gzip"),
        ("x-kept", "2"),
    ] {
        asked.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let seen = world.by_name().await.send(asked).await.json();
    for name in ["x-secret", "keep-alive", "proxy-authorization", "te", "connection"] {
        assert_eq!(head_of(&seen, name), [""; 0], "{name}");
    }
    assert_eq!(head_of(&seen, "x-kept"), ["2"]);

    let rude = get(world.caller.http_proxy(), "web.mesh", "/rude").await;
    assert_eq!(rude.text(), "rude\n");
    for name in ["x-private", "keep-alive"] {
        assert_eq!(rude.header(name), "", "{name}");
    }
    assert_eq!(rude.header("x-public"), "for everybody");
    assert_eq!(rude.header("x-starling-flags"), "", "a workload cannot speak for the mesh");
    assert_eq!(rude.header("x-starling-unsent"), "");
}

#[tokio::test]
async fn the_workload_learns_who_called_and_a_client_cannot_say_otherwise() {
    let world = World::new().await;
    for name in ["x-starling-peer", "X-Starling-Peer", "x_starling_peer", "X-Starling_Peer"] {
        let mut forged = request(Method::GET, "web.mesh", "/seen", "");
        let header: HeaderName = name.parse().expect("a name");
        forged.headers_mut().append(&header, HeaderValue::from_static("spiffe://acme/svc/admin"));
        forged.headers_mut().append(&header, HeaderValue::from_static("spiffe://acme/svc/root"));
        let seen = world.by_name().await.send(forged).await.json();
        assert_eq!(head_of(&seen, "x-starling-peer"), ["spiffe://acme/svc/caller"]);
        assert!(!seen.to_string().contains("spiffe://acme/svc/admin"), "{seen}");
    }
}

/// A body that ends in these trailers.
fn trailed(
    trailers: &[(&'static str, &'static str)],
) -> http_body_util::combinators::BoxBody<bytes::Bytes, std::io::Error> {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    let trailers = http_body::Frame::trailers(trailers.iter().map(pair).collect());
    let frames = [http_body::Frame::data("body".into()), trailers];
    StreamBody::new(futures_util::stream::iter(frames.map(Ok))).boxed()
}

#[tokio::test]
async fn a_trailer_cannot_say_who_called_either() {
    let world = World::new().await;
    let mut forged = request(Method::POST, "web.mesh", "/seen", "");
    forged
        .headers_mut()
        .insert("trailer", HeaderValue::from_static("x-starling-peer, x_starling_peer, x-sum"));
    *forged.body_mut() = trailed(&[
        ("x-starling-peer", "spiffe://acme/svc/admin"),
        ("x_starling_peer", "spiffe://acme/svc/admin"),
        ("x-sum", "42"),
    ]);
    let seen = world.by_name().await.send(forged).await.json();
    assert_eq!(seen["trailers"], serde_json::json!([["x-sum", "42"]]), "{seen}");
    assert_eq!(head_of(&seen, "x-starling-peer"), ["spiffe://acme/svc/caller"]);
}

#[tokio::test]
async fn a_client_that_takes_trailers_gets_them() {
    let world = World::new().await;
    let mut asked = request(Method::POST, "web.mesh", "/echo", "");
    for (name, value) in [("te", "trailers"), ("connection", "TE"), ("trailer", "x-sum")] {
        asked.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    *asked.body_mut() = trailed(&[("x-sum", "42")]);
    let response = world.by_name().await.begin(asked).await.expect("an answer");
    let body = starling_tests::within("the answer's end", response.into_body().collect()).await;
    let body = body.expect("a whole body");
    assert_eq!(
        body.trailers().and_then(|trailers| trailers.get("x-sum")),
        Some(&HeaderValue::from_static("42"))
    );
    assert_eq!(body.to_bytes(), "body");
}

/// Sends these bytes and gives everything up to the connection's end.
async fn raw(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("the node's port accepts");
    stream.write_all(request.as_bytes()).await.expect("written");
    let answer = read_to_end(&mut stream).await.expect("a clean end");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn callers_of_http_1_0_are_answered_and_the_workload_sees_1_1() {
    let world = World::new().await;
    for (address, host) in
        [(world.caller.outbound("web"), ""), (world.caller.http_proxy(), "Host: web.mesh\r\n")]
    {
        let answer = raw(address, &format!("GET /seen HTTP/1.0\r\n{host}\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.0 200 ") || head.starts_with("HTTP/1.1 200 "), "{answer}");
        let seen: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(seen["version"], "HTTP/1.1");
        assert_eq!(head_of(&seen, "host").len(), 1, "HTTP/1.1 has a Host: {seen}");
        // What has no length here ends with the connection: nothing is in chunks before 1.1.
        let answer = raw(address, &format!("GET /bytes/50000 HTTP/1.0\r\n{host}\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
        assert!(body == String::from_utf8_lossy(&sized_bytes(50_000)), "{} bytes, or others", body.len());
    }
}

#[tokio::test]
async fn an_answer_of_http_1_0_that_ends_with_its_connection_arrives_whole() {
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |mut stream| {
        let _request = stream.read(&mut [0; 1024]).await;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await.expect("written");
        stream.write_all(&sized_bytes(1_000_000)).await.expect("written");
    })
    .await;
    let _server = mesh.node("server").serves_as("web", workload.address(), UNPROBED).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let mut proxy = HttpConnection::open(caller.http_proxy()).await;
    for _ in 0..5 {
        let reply = proxy.send(request(Method::GET, "web.mesh", "/", "")).await;
        assert_eq!((reply.status(), reply.head.version), (StatusCode::OK, http::Version::HTTP_11));
        assert!(reply.body == sized_bytes(1_000_000), "{} bytes, or others", reply.body.len());
    }
}

#[tokio::test]
async fn a_name_has_no_case_and_may_end_in_a_dot() {
    let world = World::new().await;
    for host in ["WEB.Mesh.", "WEB.mesh", "web.mesh.", "Web.Mesh.:80"] {
        let reply = get(world.caller.http_proxy(), host, "/seen").await;
        assert_eq!(reply.status(), StatusCode::OK, "{host}: {}", reply.text());
        assert_eq!(head_of(&reply.json(), "host"), [host], "and is passed on as it was said");
    }
}

#[tokio::test]
async fn a_trace_is_started_once_and_continued_unchanged() {
    let world = World::new().await;
    let seen = get(world.caller.http_proxy(), "web.mesh", "/seen").await.json();
    let [started] = head_of(&seen, "traceparent")[..] else { panic!("no trace in {seen}") };
    assert_eq!((started.len(), &started[..3]), (55, "00-"), "{started}");

    let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut traced = request(Method::GET, "web.mesh", "/seen", "");
    traced.headers_mut().insert("traceparent", HeaderValue::from_static(given));
    let seen = world.by_name().await.send(traced).await.json();
    assert_eq!(head_of(&seen, "traceparent"), [given]);
}

#[tokio::test]
async fn clients_that_know_a_proxy_send_absolute_targets() {
    let world = World::new().await;
    let mut absolute = request(Method::GET, "other.example", "http://web.mesh:80/seen?q=1", "");
    absolute.headers_mut().insert("proxy-connection", HeaderValue::from_static("keep-alive"));
    let seen = world.by_name().await.send(absolute).await.json();
    assert_eq!(seen["target"], "/seen?q=1");
    // RFC 9112, section 3.2.2: the target's authority counts, and replaces Host.
    assert_eq!(head_of(&seen, "host"), ["web.mesh:80"]);
    assert_eq!(head_of(&seen, "proxy-connection"), [""; 0]);
}

#[tokio::test]
async fn connect_opens_a_tunnel_in_which_the_caller_is_still_named() {
    let world = World::new().await;
    let (head, tunnel) = connect_tunnel(world.caller.http_proxy(), "web.mesh:80").await;
    assert_eq!(head.status, StatusCode::OK);
    assert!(!head.headers.contains_key("transfer-encoding"));
    let mut tunnel = tunnel.expect("a tunnel");
    let forged = "GET /seen HTTP/1.1\r\nhost: web.mesh\r\nx-starling-peer: spiffe://acme/svc/admin\r\n\
                  connection: close\r\n\r\n";
    tunnel.write_all(forged.as_bytes()).await.expect("written");
    let mut answer = String::new();
    starling_tests::within("the answer's end", tunnel.read_to_string(&mut answer)).await.expect("text");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("spiffe://acme/svc/caller"), "{answer}");
    assert!(!answer.contains("spiffe://acme/svc/admin"), "{answer}");
}

#[tokio::test]
async fn many_requests_at_once_are_all_answered() {
    let world = World::new().await;
    let mut asking = tokio::task::JoinSet::new();
    for index in 0..64 {
        let proxy = world.caller.http_proxy();
        asking.spawn(async move {
            let mut connection = HttpConnection::open(proxy).await;
            let mut replies: Vec<Reply> = Vec::new();
            for turn in 0..8 {
                let body = format!("{index}/{turn}");
                replies.push(connection.send(request(Method::PUT, "web.mesh", "/echo", body)).await);
            }
            (index, replies)
        });
    }
    while let Some(done) = asking.join_next().await {
        let (index, replies) = done.expect("no panic");
        for (turn, reply) in replies.iter().enumerate() {
            assert_eq!((reply.status(), reply.text()), (StatusCode::OK, format!("{index}/{turn}")));
        }
    }
}

#[tokio::test]
async fn a_client_that_ends_its_half_hears_its_answer() {
    let world = World::new().await;
    world.workload.works_for(std::time::Duration::from_millis(300));
    for (what, body) in [("a request", ""), ("a request with a body", "four")] {
        let mut client =
            tokio::net::TcpStream::connect(world.caller.outbound("web")).await.expect("connected");
        let head = format!("POST / HTTP/1.1\r\nhost: web.mesh\r\ncontent-length: {}\r\n\r\n", body.len());
        client.write_all(format!("{head}{body}").as_bytes()).await.expect("written");
        client.shutdown().await.expect("half closed");
        let answer = read_to_end(&mut client).await.expect("an answer and an end");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("web"), "{what}: {answer}");
    }
}

#[tokio::test]
async fn the_work_of_a_client_that_has_gone_is_given_up() {
    let (told, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let mesh = Mesh::new();
    let hung = Tcp::start(mesh.ip(), move |mut stream| {
        let told = told.clone();
        async move {
            // Answers nothing, and hears when its caller goes.
            let _ = read_to_end(&mut stream).await;
            let _ = told.send(());
        }
    })
    .await;
    let _server = mesh.node("server").serves_as("web", hung.address(), UNPROBED).start().await;
    let caller = mesh.node("caller").calls("web").start().await;
    caller.finds("web", 1).await;
    let mut client = tokio::net::TcpStream::connect(caller.outbound("web")).await.expect("connected");
    client.write_all(b"GET / HTTP/1.1\r\nhost: web.mesh\r\n\r\n").await.expect("written");
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    drop(client);
    starling_tests::within("the workload to hear of it", ended.recv()).await.expect("told");
}

#[tokio::test]
async fn the_bytes_of_bodies_are_counted_both_ways() {
    let world = World::new().await;
    let reply = world.fixed().await.send(request(Method::POST, "web.mesh", "/echo", vec![7; 12_345])).await;
    assert_eq!(reply.body.len(), 12_345);
    for node in [&world.caller, &world._server] {
        starling_tests::eventually("the bytes", async || {
            let metrics = node.admin().get("/metrics").await.text;
            let counted =
                |name: &str| metrics.lines().any(|line| line.starts_with(name) && line.ends_with(" 12345"));
            (counted("starling_request_bytes_total{") && counted("starling_response_bytes_total{"))
                .then_some(())
        })
        .await;
    }
}
