//! Instances that take work and do it badly are left out for a while, a few at a time.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::Value;
use starling_tests::workload::{Http, Tcp};
use starling_tests::{HttpConnection, Mesh, Node, UNPROBED, eventually, get, request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// In turn, so that nobody is spared by the balancer; `outliers` are keys of their section.
fn in_turn(outliers: &str) -> String {
    format!("[[upstream]]\nservice = \"*\"\npolicy = \"round_robin\"\n[upstream.outliers]\n{outliers}")
}

/// A service with a node and a workload of each name.
async fn servers(mesh: &Mesh, names: &[&str]) -> Vec<(Node, Http)> {
    let mut servers = Vec::new();
    for name in names {
        let workload = Http::start(mesh.ip(), name).await;
        servers.push((mesh.node(name).serves("web", workload.address()).start().await, workload));
    }
    servers
}

/// Why each is out that is.
async fn ejected(caller: &Node) -> Vec<(String, String)> {
    let route = caller.admin().get("/v1/routes/web").await.json;
    let out = |one: &Value| {
        let reason = one["ejected"]["reason"].as_str()?;
        Some((one["node"].as_str()?.to_owned(), reason.to_owned()))
    };
    route["candidates"].as_array().expect("a list").iter().filter_map(out).collect()
}

/// The statuses of so many answers.
async fn ask(caller: &Node, requests: usize) -> Vec<u16> {
    let mut connection = HttpConnection::open(caller.http_proxy()).await;
    let mut statuses = Vec::new();
    for _ in 0..requests {
        let reply = connection.send(request(Method::GET, "web.mesh", "/", "")).await;
        statuses.push(reply.status().as_u16());
    }
    statuses
}

#[tokio::test]
async fn an_instance_that_fails_is_left_out_and_comes_back_when_it_does_not() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, &["a", "b", "c"]).await;
    let caller = mesh.node("caller").sections(&in_turn("ejection_time = \"1s\"")).start().await;
    caller.finds("web", 3).await;
    servers[0].1.answers_with(500);
    let seen = eventually("an ejection", async || {
        ask(&caller, 6).await;
        ejected(&caller).await.pop()
    })
    .await;
    assert_eq!(seen, ("a".to_owned(), "5 errors in a row".to_owned()));
    // One request a second at most is its trial.
    let statuses = ask(&caller, 60).await;
    let failed = statuses.iter().filter(|status| **status == 500).count();
    assert!(failed <= 5, "{failed} of 60 failed");
    let metrics = caller.admin().get("/metrics").await.text;
    assert!(
        metrics.contains("starling_ejections_total{service=\"web\",reason=\"consecutive_errors\"} 1"),
        "{metrics}"
    );
    servers[0].1.answers_with(200);
    eventually("the instance to be back", async || {
        ask(&caller, 6).await;
        ejected(&caller).await.is_empty().then_some(())
    })
    .await;
    caller.logs("endpoint back").await;
}

#[tokio::test]
async fn where_all_fail_no_more_than_a_share_is_left_out() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, &["a", "b", "c"]).await;
    servers.iter().for_each(|(_, workload)| workload.answers_with(503));
    let caller = mesh.node("caller").sections(&in_turn("")).start().await;
    caller.finds("web", 3).await;
    let mut connection = HttpConnection::open(caller.http_proxy()).await;
    for _ in 0..100 {
        let reply = connection.send(request(Method::POST, "web.mesh", "/", "")).await;
        assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(reply.header("x-starling-flags"), "", "the workloads' own answers");
        assert!(ejected(&caller).await.len() <= 1);
    }
    assert_eq!(ejected(&caller).await.len(), 1);
}

/// Reads everything and says nothing.
async fn hung(mesh: &Mesh) -> Tcp {
    let read_on = async |mut stream: TcpStream| {
        let mut bytes = [0; 4096];
        while let Ok(1..) = stream.read(&mut bytes).await {}
    };
    Tcp::start(mesh.ip(), read_on).await
}

#[tokio::test]
async fn attempts_that_take_too_long_are_errors() {
    let mesh = Mesh::new();
    let hung = hung(&mesh).await;
    let _hung = mesh.node("hung").serves("web", hung.address()).start().await;
    let _servers = servers(&mesh, &["a", "b"]).await;
    let caller = mesh.node("caller").times("attempt_timeout = \"100ms\"").sections(&in_turn(""));
    let caller = caller.start().await;
    caller.finds("web", 3).await;
    let out = eventually("an ejection", async || {
        // Sent again elsewhere each time, so nobody notices.
        assert_eq!(ask(&caller, 3).await, [200, 200, 200]);
        ejected(&caller).await.pop()
    })
    .await;
    assert_eq!(out, ("hung".to_owned(), "5 errors in a row".to_owned()));
}

#[tokio::test]
async fn an_instance_whose_answers_break_off_is_left_out() {
    let mesh = Mesh::new();
    let half = Tcp::start(mesh.ip(), async |mut stream| {
        let _request = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
        // Its head is to arrive before its end: this is about answers that had begun.
        tokio::time::sleep(Duration::from_millis(20)).await;
    })
    .await;
    let _half = mesh.node("half").serves("web", half.address()).start().await;
    let _servers = servers(&mesh, &["a", "b"]).await;
    let caller = mesh.node("caller").sections(&in_turn("success_rate = false")).start().await;
    caller.finds("web", 3).await;
    let (node, reason) = eventually("an ejection", async || {
        let mut connection = HttpConnection::open(caller.http_proxy()).await;
        if let Ok(answer) = connection.begin(request(Method::GET, "web.mesh", "/", "")).await {
            assert_eq!(answer.status(), StatusCode::OK);
            let _whole_or_half = answer.into_body().collect().await;
        }
        ejected(&caller).await.pop()
    })
    .await;
    assert_eq!(node, "half");
    assert!(reason.ends_with("errors in a row"), "{reason}");
}

/// The head of an upload and its beginning.
const BEGINNING: &[u8] = b"POST / HTTP/1.1\r\nhost: web.mesh\r\ncontent-length: 100\r\n\r\nhalf";

#[tokio::test]
async fn nobody_is_left_out_for_a_caller_that_is_slow_to_send() {
    let mesh = Mesh::new();
    let workload = hung(&mesh).await;
    let _one = mesh.node("one").serves("web", workload.address()).start().await;
    let _two = mesh.node("two").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").times("attempt_timeout = \"500ms\"").sections(&in_turn(""));
    let caller = caller.start().await;
    caller.finds("web", 2).await;
    for _ in 0..12 {
        let mut slow = TcpStream::connect(caller.http_proxy()).await.expect("a connection");
        slow.write_all(BEGINNING).await.expect("it is read");
        let mut told = [0; 12];
        // The reset that ends the upload may overtake it.
        if slow.read_exact(&mut told).await.is_ok() {
            assert_eq!(&told, b"HTTP/1.1 504");
        }
    }
    assert_eq!(ejected(&caller).await, []);
}

/// Answers while it reads, and for as long.
async fn answering(mesh: &Mesh) -> Tcp {
    let answer = async |mut stream: TcpStream| {
        let mut bytes = [0; 4096];
        let _head = stream.read(&mut bytes).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
        while let Ok(1..) = stream.read(&mut bytes).await {}
    };
    Tcp::start(mesh.ip(), answer).await
}

/// Ends its side in the midst of an upload, whose answer has begun or does not come.
async fn break_off(proxy: SocketAddr, host: &str, is_answered: bool) {
    let mut gone = TcpStream::connect(proxy).await.expect("a connection");
    let beginning = format!("POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 100\r\n\r\nhalf");
    gone.write_all(beginning.as_bytes()).await.expect("it is read");
    if is_answered {
        gone.read_exact(&mut [0; 12]).await.expect("an answer");
    } else {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    gone.shutdown().await.expect("its end");
    let _ = gone.read_to_end(&mut Vec::new()).await;
}

async fn break_off_in_http2(proxy: SocketAddr, host: &str, is_answered: bool) {
    let connection = TcpStream::connect(proxy).await.expect("a connection");
    let (mut sender, connection) = h2::client::handshake(connection).await.expect("HTTP/2");
    tokio::spawn(connection);
    for _ in 0..8 {
        let upload = Request::post(format!("http://{host}/")).body(()).expect("a request");
        let (answer, mut body) = sender.send_request(upload, false).expect("room");
        body.send_data("half".into(), false).expect("room");
        if is_answered {
            assert_eq!(answer.await.expect("an answer").status(), StatusCode::OK);
        } else {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        body.send_reset(h2::Reason::CANCEL);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn nobody_is_left_out_for_a_caller_that_breaks_off() {
    let mesh = Mesh::new();
    let (answering, hung) = (answering(&mesh).await, hung(&mesh).await);
    let mut servers = Vec::new();
    for (name, service, workload) in
        [("a", "web", &answering), ("b", "web", &answering), ("c", "mute", &hung), ("d", "mute", &hung)]
    {
        servers.push(mesh.node(name).serves(service, workload.address()).start().await);
    }
    let caller = mesh.node("caller").sections(&in_turn("consecutive_errors = 1")).start().await;
    caller.finds("web", 2).await;
    caller.finds("mute", 2).await;
    tokio::join!(
        break_off(caller.http_proxy(), "web.mesh", true),
        break_off(caller.http_proxy(), "mute.mesh", false),
        break_off_in_http2(caller.http_proxy(), "web.mesh", true),
        break_off_in_http2(caller.http_proxy(), "mute.mesh", false),
    );
    let metrics = caller.admin().get("/metrics").await.text;
    assert!(!metrics.contains("starling_ejections_total{"), "{metrics}");
}

#[tokio::test]
async fn an_instance_that_is_far_slower_than_the_others_is_left_out() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, &["a", "b", "c", "d"]).await;
    servers[3].1.works_for(Duration::from_millis(400));
    let settings = in_turn("interval = \"2s\"\nrequests_min = 3");
    let caller = mesh.node("caller").sections(&settings).start().await;
    caller.finds("web", 4).await;
    let (node, reason) = eventually("an ejection", async || {
        ask(&caller, 8).await;
        ejected(&caller).await.pop()
    })
    .await;
    assert_eq!(node, "d");
    assert!(reason.starts_with("its answers took"), "{reason}");
}

#[tokio::test]
async fn when_nobody_is_left_whoever_answers_is_asked_once_more() {
    let mesh = Mesh::new();
    let address = mesh.free_address();
    let _server = mesh.node("server").serves_as("web", address, UNPROBED).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    for _ in 0..3 {
        let reply = get(caller.http_proxy(), "web.mesh", "/").await;
        assert_eq!(
            (reply.status(), reply.header("x-starling-flags")),
            (StatusCode::SERVICE_UNAVAILABLE, "UF")
        );
        assert!(reply.text().contains("refused"), "{}", reply.text());
    }
    // Its pause has grown to a second or more by now; nobody waits for its end.
    let listener = TcpListener::bind(address).await.expect("the workload's port");
    let _workload = Http::start_on(listener, "web");
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), StatusCode::OK);
}
