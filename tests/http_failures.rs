//! What a client is told when the mesh itself must answer: which flag, whose fault, in one line.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use rustix::process::{Signal, kill_process};
use starling_gossip::clock::Clock;
use starling_tests::workload::{Http, Tcp};
use starling_tests::{HttpConnection, Mesh, Reply, UNPROBED, connect_tunnel, eventually, get, request};
use tokio::io::AsyncReadExt as _;

#[track_caller]
fn is_mesh_answer(reply: &Reply, status: StatusCode, flag: &str, says: &str) {
    assert_eq!(reply.status(), status, "{}", reply.text());
    assert_eq!(reply.header("server"), "starling");
    assert_eq!(reply.header("x-starling-flags"), flag, "{}", reply.text());
    let line = reply.text();
    assert!(line.starts_with(&format!("starling: {flag}: ")), "{line}");
    assert!(line.contains(says), "{line}\nshould say: {says}");
    assert_eq!(line.find('\n'), Some(line.len() - 1), "one line: {line:?}");
}

#[tokio::test]
async fn a_name_that_nobody_announces_is_nr_404() {
    let mesh = Mesh::new();
    let node = mesh.node("caller").calls("later").start().await;
    let mut proxy = HttpConnection::open(node.http_proxy()).await;
    for (host, says) in [("ghost.mesh", "\"ghost\""), ("web", "SERVICE.mesh"), (".mesh", "SERVICE.mesh")] {
        let reply = proxy.send(request(Method::GET, host, "/", "")).await;
        is_mesh_answer(&reply, StatusCode::NOT_FOUND, "NR", says);
    }
    assert!(proxy.is_open().await, "a wrong name costs no connection");
    let fixed = get(node.outbound("later"), "any", "/").await;
    is_mesh_answer(&fixed, StatusCode::NOT_FOUND, "NR", "\"later\"");
    let (head, tunnel) = connect_tunnel(node.http_proxy(), "ghost.mesh:443").await;
    assert_eq!((head.status, tunnel.is_none()), (StatusCode::NOT_FOUND, true));
}

#[tokio::test]
async fn a_service_whose_probes_fail_is_uh_503_and_comes_back() {
    let mesh = Mesh::new();
    let address = mesh.free_address();
    let probe = "[service.probe]\nhttp = \"/status/200\"\ninterval = \"100ms\"\ntimeout = \"100ms\"";
    let _server = mesh.node("server").serves_as("web", address, probe).start().await;
    let caller = mesh.node("caller").start().await;
    eventually("an unhealthy instance", async || {
        let route = caller.admin().get("/v1/routes/web").await.json;
        (route["excluded"][0]["reason"] == "its node's probes fail").then_some(())
    })
    .await;
    let reply = get(caller.http_proxy(), "web.mesh", "/").await;
    is_mesh_answer(&reply, StatusCode::SERVICE_UNAVAILABLE, "UH", "starling routes web");

    let listener = tokio::net::TcpListener::bind(address).await.expect("the workload's port");
    let _workload = Http::start_on(listener, "web");
    caller.finds("web", 1).await;
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_workload_that_does_not_accept_is_uf_503() {
    let mesh = Mesh::new();
    let _server = mesh.node("server").serves_as("web", mesh.free_address(), UNPROBED).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let reply = get(caller.http_proxy(), "web.mesh", "/").await;
    is_mesh_answer(&reply, StatusCode::SERVICE_UNAVAILABLE, "UF", "server");
    // Not retried: nobody knows what a POST has done. Still the same answer.
    let mut proxy = HttpConnection::open(caller.http_proxy()).await;
    let reply = proxy.send(request(Method::POST, "web.mesh", "/", "body")).await;
    assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reply.header("server"), "starling");
}

#[tokio::test]
async fn a_workload_that_hangs_up_before_it_answers_is_uc_503() {
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |mut stream| {
        let _request = stream.read(&mut [0; 1024]).await;
    })
    .await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let mut proxy = HttpConnection::open(caller.http_proxy()).await;
    let reply = proxy.send(request(Method::POST, "web.mesh", "/", "once")).await;
    is_mesh_answer(&reply, StatusCode::SERVICE_UNAVAILABLE, "UC", "workload");
}

#[tokio::test]
async fn a_truncated_answer_is_never_a_whole_one() {
    use tokio::io::AsyncWriteExt as _;
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |mut stream| {
        let _request = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
    })
    .await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let mut proxy = HttpConnection::open(caller.http_proxy()).await;
    let response = proxy.begin(request(Method::POST, "web.mesh", "/", "once")).await.expect("a head");
    // The reset that ends the answer may overtake its head; then there is none.
    if response.status() == StatusCode::OK {
        let body = http_body_util::BodyExt::collect(response.into_body()).await;
        assert!(body.is_err(), "half an answer must not look whole: {body:?}");
    } else {
        let reply = Reply::read(response).await;
        is_mesh_answer(&reply, StatusCode::SERVICE_UNAVAILABLE, "UC", "server");
    }
}

#[tokio::test]
async fn a_truncated_answer_is_not_whole_for_clients_of_http_1_0() {
    use tokio::io::AsyncWriteExt as _;
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |mut stream| {
        let mut head = [0; 1024];
        let read = stream.read(&mut head).await.unwrap_or(0);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
        if head[..read].starts_with(b"GET /whole") {
            let _ = stream.write_all(b"0\r\n\r\n").await;
        } else {
            // The client has it before it ends.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    let server = mesh.node("server").serves_as("web", workload.address(), UNPROBED).start().await;
    let caller = mesh.node("caller").calls("web").start().await;
    caller.finds("web", 1).await;
    for (path, is_whole) in [("/whole", true), ("/half", false)] {
        let mut stream =
            tokio::net::TcpStream::connect(caller.outbound("web")).await.expect("the port accepts");
        let head = format!("GET {path} HTTP/1.0\r\nhost: web.mesh\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer).await;
        assert_eq!(ended.is_ok(), is_whole, "{path}: {ended:?} after {}", String::from_utf8_lossy(&answer));
    }
    for node in [&server, &caller] {
        eventually("half an answer to be counted as such", async || {
            let metrics = node.admin().get("/metrics").await.text;
            metrics.contains("status=\"200\",flags=\"UC\"").then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn one_bad_instance_of_two_fails_no_request() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "good").await;
    let _good = mesh.node("good").serves("web", workload.address()).start().await;
    let _bad = mesh.node("bad").serves_as("web", mesh.free_address(), UNPROBED).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 2).await;
    let mut proxy = HttpConnection::open(caller.http_proxy()).await;
    for _ in 0..100 {
        let reply = proxy.send(request(Method::POST, "web.mesh", "/", "")).await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::OK, "good".to_owned()));
    }
}

#[tokio::test]
async fn a_killed_workload_of_two_is_passed_over_although_its_node_lives() {
    for probe in [UNPROBED, "", "[service.probe]\ntcp = true\ninterval = \"200ms\"\ntimeout = \"200ms\""] {
        let mesh = Mesh::new();
        let (doomed, other) = (Http::start(mesh.ip(), "doomed").await, Http::start(mesh.ip(), "other").await);
        let _nodes = [
            mesh.node("one").serves_as("web", doomed.address(), probe).start().await,
            mesh.node("two").serves_as("web", other.address(), probe).start().await,
        ];
        let caller = mesh.node("caller").start().await;
        caller.finds("web", 2).await;
        let mut proxy = HttpConnection::open(caller.http_proxy()).await;
        let post = || request(Method::POST, "web.mesh", "/", "body");
        for name in ["doomed", "other", "doomed"] {
            eventually(name, async || (proxy.send(post()).await.text() == name).then_some(())).await;
        }
        let killed = Clock::System.now();
        drop(doomed);
        if probe != UNPROBED {
            caller.finds("web", 1).await;
        }
        let mut failures = Vec::new();
        for _ in 0..400 {
            let reply = proxy.send(post()).await;
            if reply.status() != StatusCode::OK {
                failures.push(reply.text());
            }
        }
        // While nobody probes, each trial costs a request, with at least the least pause between two.
        let trials = 3 + (Clock::System.now() - killed).as_millis() / 250;
        let most = if probe == UNPROBED { trials } else { 0 };
        assert!(failures.len() as u128 <= most, "{} of 400 failed: {failures:#?}", failures.len());
    }
}

#[tokio::test]
async fn work_with_a_node_that_is_killed_ends_soon_and_idempotent_work_goes_elsewhere() {
    let mesh = Mesh::new();
    let (lost, other) = (Http::start(mesh.ip(), "lost").await, Http::start(mesh.ip(), "other").await);
    let mut doomed = mesh.node("doomed").serves("web", lost.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let begin = |method: Method| {
        let proxy = caller.http_proxy();
        tokio::spawn(async move {
            let reply =
                HttpConnection::open(proxy).await.send(request(method, "web.mesh", "/wait", "")).await;
            (Clock::System.now(), reply)
        })
    };
    let (post, get_waiting) = (begin(Method::POST), begin(Method::GET));
    eventually("both requests", async || (lost.waiting() == 2).then_some(())).await;
    let _staying = mesh.node("staying").serves("web", other.address()).start().await;
    caller.finds("web", 2).await;

    let killed = Clock::System.now();
    doomed.kill().await;
    let new = async {
        for _ in 0..50 {
            let reply = get(caller.http_proxy(), "web.mesh", "/").await;
            assert_eq!((reply.status(), reply.text()), (StatusCode::OK, "other".to_owned()));
        }
        Clock::System.now() - killed
    };
    let again = async {
        eventually("the first request elsewhere", async || (other.waiting() == 1).then_some(())).await;
        Clock::System.now() - killed
    };
    let (new, again, post) = tokio::join!(new, again, post);
    other.release();
    let (answered, post) = post.expect("no panic");
    let told = answered - killed;
    is_mesh_answer(&post, StatusCode::SERVICE_UNAVAILABLE, "UC", "doomed");
    let (_, elsewhere) = get_waiting.await.expect("no panic");
    assert_eq!((elsewhere.status(), elsewhere.text()), (StatusCode::OK, "other".to_owned()));
    // Half of a connection's idle timeout, which they must not wait for.
    let most = Duration::from_secs(15);
    assert!(new < most && again < most && told < most, "new: {new:?}, again: {again:?}, told: {told:?}");
}

/// The process stands still, so no host says that nobody is there: its silence alone does.
#[tokio::test]
async fn idempotent_work_with_a_node_that_falls_silent_goes_elsewhere_long_before_that_is_given_up() {
    let mesh = Mesh::new();
    let (still, other) = (Http::start(mesh.ip(), "still").await, Http::start(mesh.ip(), "other").await);
    let stopped = mesh.node("stopped").serves("web", still.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let mut proxy = HttpConnection::open(caller.http_proxy()).await;
    // By a new stream first, and then by one that is kept.
    assert_eq!(proxy.send(request(Method::GET, "web.mesh", "/", "")).await.text(), "still");
    let waiting =
        tokio::spawn(async move { proxy.send(request(Method::GET, "web.mesh", "/wait", "")).await });
    eventually("the request", async || (still.waiting() == 1).then_some(())).await;
    let _staying = mesh.node("staying").serves("web", other.address()).start().await;
    caller.finds("web", 2).await;

    kill_process(stopped.pid(), Signal::STOP).expect("a signal");
    let began = Clock::System.now();
    eventually("the request elsewhere", async || (other.waiting() == 1).then_some(())).await;
    let took = Clock::System.now() - began;
    // Half of what it takes until the connection is closed.
    assert!(took < Duration::from_secs(5), "{took:?}");
    other.release();
    assert_eq!(waiting.await.expect("no panic").text(), "other");
}

#[tokio::test]
async fn a_workload_that_closes_kept_connections_fails_no_request_of_many_at_once() {
    use tokio::io::AsyncWriteExt as _;
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |mut stream| {
        let _request = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nkept").await;
        drop(stream.read(&mut [0; 1024]).await);
    })
    .await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let proxy = caller.http_proxy();
        asking.spawn(async move {
            let mut connection = HttpConnection::open(proxy).await;
            for turn in 0..100 {
                let reply = connection.send(request(Method::GET, "web.mesh", "/", "")).await;
                assert_eq!(
                    (reply.status(), reply.text()),
                    (StatusCode::OK, "kept".to_owned()),
                    "turn {turn}"
                );
            }
        });
    }
    asking.join_all().await;
}

#[tokio::test]
async fn a_workload_that_closes_kept_connections_fails_no_request() {
    use tokio::io::AsyncWriteExt as _;
    let mesh = Mesh::new();
    let connections = Arc::new(AtomicUsize::new(0));
    let workload = Tcp::start(mesh.ip(), move |mut stream| {
        let turn = connections.fetch_add(1, Ordering::Relaxed);
        async move {
            let _request = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nkept").await;
            match turn % 6 {
                // Just as the next one arrives.
                0 => drop(stream.read(&mut [0; 1024]).await),
                // Or a little earlier, or later.
                millis => tokio::time::sleep(Duration::from_millis(millis as u64)).await,
            }
        }
    })
    .await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let mut proxy = HttpConnection::open(caller.http_proxy()).await;
    for turn in 0..200 {
        let reply = proxy.send(request(Method::GET, "web.mesh", "/", "")).await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::OK, "kept".to_owned()), "turn {turn}");
    }
}

#[tokio::test]
async fn what_a_workload_is_sent_again_is_what_it_was_sent() {
    use tokio::io::AsyncWriteExt as _;
    let mesh = Mesh::new();
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let seconds = Arc::new(AtomicUsize::new(0));
    let workload = Tcp::start(mesh.ip(), move |mut stream| {
        let (seconds, heard) = (seconds.clone(), heard.clone());
        async move {
            let mut head = vec![0; 4096];
            while let Ok(bytes @ 1..) = stream.read(&mut head).await {
                let head = String::from_utf8_lossy(&head[..bytes]).into_owned();
                // A kept connection is closed as soon as it is used again.
                let is_closed = head.contains("/second") && seconds.fetch_add(1, Ordering::Relaxed) == 0;
                let mut lines: Vec<_> = head.lines().map(str::to_owned).collect();
                lines.sort();
                let _ = heard.send(lines);
                if is_closed {
                    return;
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nkept").await;
            }
        }
    })
    .await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let mut proxy = HttpConnection::open(caller.http_proxy()).await;
    assert_eq!(proxy.send(request(Method::GET, "web.mesh", "/first", "")).await.text(), "kept");
    let mut second = request(Method::GET, "web.mesh", "//second/./a/../b?q=%2f", "");
    for (name, value) in [
        ("x-starling-peer", "spiffe://acme/svc/forged"),
        ("x_starling_flags", "forged"),
        ("x-starling-hops", "3"),
        ("connection", "x-dropped"),
        ("x-dropped", "1"),
        ("te", "trailers"),
        ("x-twice", "1"),
        ("x-twice", "2"),
        ("x-bytes", "a: b\tc"),
    ] {
        second.headers_mut().append(name, value.parse().expect("a value"));
    }
    assert_eq!(proxy.send(second).await.text(), "kept");
    let [_first, sent, again] = [(); 3].map(|()| hears.try_recv().expect("a request"));
    assert_eq!(sent, again);
    let has = |line: &str| sent.iter().any(|sent| sent.eq_ignore_ascii_case(line));
    assert!(has("GET /second/b?q=%2f HTTP/1.1") && has("x-starling-hops: 4"), "{sent:#?}");
    assert!(has("x-twice: 1") && has("x-twice: 2") && has("x-bytes: a: b\tc"), "{sent:#?}");
    assert!(!sent.iter().any(|line| line.contains("forged") || line.contains("x-dropped")), "{sent:#?}");
}

#[tokio::test]
async fn work_beyond_the_limit_is_uo_503() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").sections("[limits]\nrequests_in_flight_max = 1").start().await;
    caller.finds("web", 1).await;
    let mut first = HttpConnection::open(caller.http_proxy()).await;
    let waiting =
        tokio::spawn(async move { first.send(request(Method::GET, "web.mesh", "/wait", "")).await });
    eventually("the first request", async || (workload.waiting() == 1).then_some(())).await;
    let second = get(caller.http_proxy(), "web.mesh", "/").await;
    is_mesh_answer(&second, StatusCode::SERVICE_UNAVAILABLE, "UO", "try again later");
    assert_eq!(second.header("retry-after"), "1");
    workload.release();
    assert_eq!(waiting.await.expect("no panic").status(), StatusCode::OK);
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), StatusCode::OK);
}
