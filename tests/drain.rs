//! SIGTERM: callers go elsewhere, work under way ends, the records are withdrawn.

use std::time::Duration;

use http::Method;
use starling_gossip::clock::Clock;
use starling_tests::workload::{Http, Tcp, read_to_end};
use starling_tests::{HttpConnection, Mesh, eventually, get, request, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_terminated_node_finishes_what_is_under_way_and_callers_lose_nothing() {
    let mesh = Mesh::new();
    let (slow, other) = (Http::start(mesh.ip(), "slow").await, Http::start(mesh.ip(), "other").await);
    let mut leaving = mesh.node("leaving").serves("web", slow.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let mut first = HttpConnection::open(caller.http_proxy()).await;
    let waiting =
        tokio::spawn(async move { first.send(request(Method::POST, "web.mesh", "/wait", "x")).await });
    eventually("the slow request", async || (slow.waiting() == 1).then_some(())).await;
    let _staying = mesh.node("staying").serves("web", other.address()).start().await;
    caller.finds("web", 2).await;

    leaving.terminate();
    eventually("callers to hear of it", async || {
        let route = caller.admin().get("/v1/routes/web").await.json;
        let reason = route["excluded"].as_array()?.iter().find(|one| one["node"] == "leaving")?;
        (reason["reason"] == "it is draining").then_some(())
    })
    .await;
    let mut proxy = HttpConnection::open(caller.http_proxy()).await;
    for _ in 0..50 {
        let reply = proxy.send(request(Method::POST, "web.mesh", "/", "x")).await;
        assert_eq!((reply.status().as_u16(), reply.text()), (200, "other".to_owned()));
    }
    assert!(!waiting.is_finished(), "the slow request is still under way");
    slow.release();
    let reply = within("the slow request's answer", waiting).await.expect("no panic");
    assert_eq!((reply.status().as_u16(), reply.text()), (200, "slow".to_owned()));
    assert_eq!(leaving.ended().await.code(), Some(0), "{}", leaving.log());
    caller.sees("leaving", "left").await;
    caller.finds("web", 1).await;
    assert!(!leaving.socket().exists(), "the admin socket goes with its node");
}

#[tokio::test]
async fn no_request_fails_while_a_node_comes_and_goes() {
    let mesh = Mesh::new();
    let (one, two) = (Http::start(mesh.ip(), "one").await, Http::start(mesh.ip(), "two").await);
    let _stays = mesh.node("stays").serves("web", one.address()).start().await;
    let mut goes = mesh.node("goes").serves("web", two.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 2).await;
    let proxy = caller.http_proxy();
    let asking = async {
        let mut connection = HttpConnection::open(proxy).await;
        loop {
            let reply = connection.send(request(Method::POST, "web.mesh", "/", "x")).await;
            assert_eq!(reply.status(), 200, "{}", reply.text());
        }
    };
    let restarting = async {
        for _ in 0..2 {
            goes.terminate();
            assert_eq!(goes.ended().await.code(), Some(0));
            caller.finds("web", 1).await;
            goes.restart().await;
            caller.finds("web", 2).await;
        }
    };
    tokio::select! {
        () = restarting => {}
        () = asking => {}
    }
}

/// Longer than a node's tasks go without a look at the routes.
const ALL_HAVE_LOOKED: Duration = Duration::from_secs(4);

/// A node that has left waits up to a second for the last bytes of others.
#[tokio::test]
async fn a_kept_connection_is_nobodys_work_and_no_end_waits_for_it() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let mut caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), 200);
    tokio::time::sleep(ALL_HAVE_LOOKED).await;
    caller.terminate();
    caller.logs("left the mesh").await;
    let left = Clock::System.now();
    assert_eq!(caller.ended().await.code(), Some(0), "{}", caller.log());
    assert!(left.elapsed() < Duration::from_millis(800), "{:?}", left.elapsed());
}

#[tokio::test]
async fn a_drain_ends_at_its_timeout() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "slow").await;
    let server = mesh.node("server").drain_timeout("3s").serves("web", workload.address());
    let mut server = server.start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let mut connection = HttpConnection::open(caller.http_proxy()).await;
    let waiting =
        tokio::spawn(async move { connection.send(request(Method::POST, "web.mesh", "/wait", "x")).await });
    eventually("the slow request", async || (workload.waiting() == 1).then_some(())).await;
    server.terminate();
    assert_eq!(server.ended().await.code(), Some(0));
    let reply = within("an answer", waiting).await.expect("no panic");
    assert_eq!((reply.status().as_u16(), reply.header("x-starling-flags")), (503, "UC"));
    assert!(server.log().contains("drain timeout"));
}

/// The drain timeout of these nodes is far longer than the test's patience for each.
#[tokio::test]
async fn a_drain_is_cut_short_by_another_signal_or_by_leave() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "slow").await;
    for ends_by_signal in [true, false] {
        let server = mesh.node("server").drain_timeout("10m").serves("web", workload.address());
        let mut server = server.start().await;
        let caller = mesh.node("caller").start().await;
        caller.finds("web", 1).await;
        let proxy = caller.http_proxy();
        let asked = workload.waiting();
        let waiting = tokio::spawn(async move { get(proxy, "web.mesh", "/wait").await });
        eventually("the slow request", async || (workload.waiting() > asked).then_some(())).await;
        server.terminate();
        eventually("the drain", async || (server.admin().get("/ready").await.status == 503).then_some(()))
            .await;
        if ends_by_signal {
            server.terminate();
        } else {
            server.admin().ask_by_socket(&server.socket(), "POST", "/v1/leave").await;
        }
        assert_eq!(server.ended().await.code(), Some(0));
        assert!(server.log().contains("leaving at once: what is under way is cut off"), "{}", server.log());
        caller.sees("server", "left").await;
        waiting.abort();
    }
}

#[tokio::test]
async fn readiness_ends_with_the_drain_and_liveness_does_not() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "slow").await;
    let mut server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let proxy = caller.http_proxy();
    let waiting = tokio::spawn(async move { get(proxy, "web.mesh", "/wait").await });
    eventually("the slow request", async || (workload.waiting() == 1).then_some(())).await;
    server.terminate();
    let admin = server.admin();
    let ready = eventually("the drain", async || {
        let ready = admin.get("/ready").await;
        (ready.status == 503).then_some(ready)
    })
    .await;
    assert_eq!(ready.text, "draining\n");
    assert_eq!(admin.get("/live").await.status, 200);
    let node = admin.get("/v1/node").await.json;
    assert_eq!((&node["state"], &node["under_way"]), (&"draining".into(), &1.into()));
    workload.release();
    assert_eq!(waiting.await.expect("no panic").status(), 200);
    assert_eq!(server.ended().await.code(), Some(0));
}

#[tokio::test]
async fn an_open_tcp_stream_is_given_its_time() {
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |mut stream| {
        let heard = read_to_end(&mut stream).await.expect("the client's end");
        stream.write_all(&heard).await.expect("answered");
    })
    .await;
    let mut server = mesh.node("server").serves_tcp("db", workload.address()).start().await;
    let caller = mesh.node("caller").calls("db").start().await;
    caller.finds("db", 1).await;
    let mut client = TcpStream::connect(caller.outbound("db")).await.expect("accepted");
    client.write_all(b"before, ").await.expect("written");
    eventually("the stream to arrive", async || {
        (server.admin().get("/v1/node").await.json["under_way"] == 1).then_some(())
    })
    .await;
    server.terminate();
    eventually("the drain", async || (server.admin().get("/ready").await.status == 503).then_some(())).await;
    client.write_all(b"and after").await.expect("written");
    client.shutdown().await.expect("half closed");
    let mut heard = String::new();
    within("the answer", client.read_to_string(&mut heard)).await.expect("a clean end");
    assert_eq!(heard, "before, and after");
    assert_eq!(server.ended().await.code(), Some(0));
}

#[tokio::test]
async fn leave_withdraws_at_once() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let mut server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let answer = server.admin().ask_by_socket(&server.socket(), "POST", "/v1/leave").await;
    assert_eq!((answer.status.as_u16(), &answer.json["ok"]), (202, &true.into()));
    assert_eq!(server.ended().await.code(), Some(0));
    caller.sees("server", "left").await;
    let reply = get(caller.http_proxy(), "web.mesh", "/").await;
    assert_eq!((reply.status().as_u16(), reply.header("x-starling-flags")), (404, "NR"));
}
