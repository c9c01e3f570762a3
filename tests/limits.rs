//! At a limit the newest work is refused with the documented answer, everything else goes on, and
//! there is room again as soon as the pressure ends.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, StatusCode};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use starling_gossip::clock::Clock;
use starling_tests::workload::Http;
use starling_tests::{HttpConnection, Mesh, Node, eventually, get, request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The places of one kind under `ulimit -n 256`: three quarters of what is left of it. Kept back are
/// 32, 96 for the admin API, 64 for refusals; two listeners of that and one for HTTP by name; and one
/// for a probe, where something is served, which is lost in the rounding.
const PLACES: usize = (256 - 32 - 96 - 64 - 3) / 4 * 3;

/// How soon there must be room again.
const RECOVERY: Duration = Duration::from_secs(2);

/// What a client that opens a connection and asks once is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Served,
    Overloaded,
    Reset,
}

/// Asks for `/` on a connection of its own, and keeps it.
async fn ask(address: SocketAddr) -> (Told, Option<TcpStream>) {
    let Ok(mut stream) = TcpStream::connect(address).await else { return (Told::Reset, None) };
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: web.mesh\r\n\r\n").await;
    let mut answer = [0; 1024];
    let read = starling_tests::within("an answer", stream.read(&mut answer)).await.unwrap_or_default();
    let answer = String::from_utf8_lossy(&answer[..read]).to_lowercase();
    match answer.split(' ').nth(1) {
        Some("200") => (Told::Served, Some(stream)),
        Some("503") if answer.contains("x-starling-flags: uo\r\n") => (Told::Overloaded, None),
        None => (Told::Reset, None),
        Some(_) => panic!("{answer}"),
    }
}

/// A request is served within [`RECOVERY`].
async fn recovers(node: &Node) {
    let clock = Clock::System;
    let end = clock.now() + RECOVERY;
    while ask(node.http_proxy()).await.0 != Told::Served {
        assert!(clock.now() < end, "no room {RECOVERY:?} after the pressure ended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Opens `count` connections at once and keeps those that are served.
async fn crowd(node: &Node, count: usize) -> (Vec<TcpStream>, Vec<Told>) {
    let asked = (0..count).map(|_| ask(node.http_proxy()));
    let told = futures_util::future::join_all(asked).await;
    let (told, streams): (Vec<Told>, Vec<Option<TcpStream>>) = told.into_iter().unzip();
    (streams.into_iter().flatten().collect(), told)
}

fn count(told: &[Told], which: Told) -> usize {
    told.iter().filter(|told| **told == which).count()
}

#[tokio::test]
async fn a_connection_too_many_hears_uo_and_there_is_room_when_others_end() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").sections("[limits]\nconnections_max = 20").start().await;
    caller.finds("web", 1).await;
    let (held, told) = crowd(&caller, 60).await;
    assert_eq!((held.len(), count(&told, Told::Overloaded)), (20, 40), "{told:?}");
    drop(held);
    recovers(&caller).await;
}

#[tokio::test]
async fn a_node_with_few_descriptors_refuses_connections_and_keeps_its_place_in_the_mesh() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").after("ulimit -n 256").start().await;
    caller.finds("web", 1).await;
    caller.logs("raise the limit of open files").await;
    let (held, told) = crowd(&caller, 300).await;
    // Some have a place; as many as may be told at a time are told.
    assert_eq!(held.len(), PLACES, "{told:?}");
    assert!(count(&told, Told::Overloaded) >= 64, "{told:?}");
    server.sees("caller", "alive").await;
    assert_eq!(caller.admin().get("/ready").await.status, StatusCode::OK, "people can ask");
    drop(held);
    recovers(&caller).await;
}

#[tokio::test]
async fn a_callee_with_few_descriptors_refuses_calls_and_is_not_given_up() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves("web", workload.address()).after("ulimit -n 256").start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..150 {
        let mut connection = HttpConnection::open(caller.http_proxy()).await;
        asked.spawn(async move { connection.send(request(Method::GET, "web.mesh", "/wait", "")).await });
    }
    // Those that have no place are told at once; the others wait for the workload.
    for _ in 0..150 - PLACES {
        let reply = asked.join_next().await.expect("an answer").expect("no panic");
        assert_eq!(
            (reply.status(), reply.header("x-starling-flags")),
            (StatusCode::SERVICE_UNAVAILABLE, "UO")
        );
    }
    eventually("all that have a place to be at the workload", async || {
        (workload.waiting() == PLACES).then_some(())
    })
    .await;
    workload.release();
    recovers(&caller).await;
    for reply in asked.join_all().await {
        assert_eq!(reply.status(), StatusCode::OK, "{}", reply.text());
    }
}

#[tokio::test]
async fn a_node_whose_descriptors_are_gone_serves_those_it_has_and_recovers() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let mut before = HttpConnection::open(caller.http_proxy()).await;
    assert_eq!(before.send(request(Method::GET, "web.mesh", "/", "")).await.status(), StatusCode::OK);

    let pid = caller.pid();
    let maximum = getrlimit(Resource::Nofile).maximum;
    let usual = prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(3), maximum });
    let usual = usual.expect("a limit of a process of ours");
    let waiting = tokio::spawn(ask(caller.http_proxy()));
    caller.logs("cannot accept local connections").await;
    for _ in 0..20 {
        let reply = before.send(request(Method::GET, "web.mesh", "/", "")).await;
        assert_eq!(reply.status(), StatusCode::OK, "what is connected goes on");
    }
    prlimit(Some(pid), Resource::Nofile, usual).expect("its usual limit");
    recovers(&caller).await;
    assert_eq!(waiting.await.expect("an answer").0, Told::Served, "it waited in the system's queue");
    assert_eq!(caller.log().matches("cannot accept local connections").count(), 1, "one line, not a flood");
}

#[tokio::test]
async fn a_head_that_does_not_end_loses_its_place_and_an_idle_connection_does_not() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").sections("[limits]\nconnections_max = 2").start().await;
    caller.finds("web", 1).await;
    let mut idle = HttpConnection::open(caller.http_proxy()).await;
    assert_eq!(idle.send(request(Method::GET, "web.mesh", "/", "")).await.status(), StatusCode::OK);

    let mut slow = TcpStream::connect(caller.http_proxy()).await.expect("a connection");
    let dribble = async {
        for byte in b"GET / HTTP/1.1\r\nhost: web.mesh\r\nx-slow: ".iter().chain(std::iter::repeat(&b'a')) {
            if slow.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    starling_tests::within("the slow client to lose its place", dribble).await;
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), StatusCode::OK);
    assert_eq!(idle.send(request(Method::GET, "web.mesh", "/", "")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn heads_beyond_any_sane_size_are_refused_and_cost_nobody_else() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let mut stream = TcpStream::connect(caller.http_proxy()).await.expect("a connection");
    let head = format!("GET / HTTP/1.1\r\nhost: web.mesh\r\nx-large: {}\r\n\r\n", "a".repeat(200_000));
    let _ = stream.write_all(head.as_bytes()).await;
    let status = eventually("a refusal or a reset", async || {
        let mut answer = [0; 12];
        match stream.read(&mut answer).await {
            Ok(read) if read >= 12 => Some(String::from_utf8_lossy(&answer).into_owned()),
            Ok(_) | Err(_) => Some(String::new()),
        }
    })
    .await;
    assert!(status.is_empty() || status.ends_with("431"), "{status}");
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), StatusCode::OK);
}
