//! Retry storms: what arrives at a service that fails, when everybody in front of it would like to
//! ask again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use http::{Method, StatusCode};
use starling_tests::workload::{Http, Tcp};
use starling_tests::{HttpConnection, Mesh, Node, eventually, get, request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Retries that a service gets in ten seconds although hardly anybody asks it.
const FLOOR: usize = 20;

/// What may arrive of `requests`: a fifth more.
fn most(requests: usize) -> usize {
    requests.max(FLOOR * 5) * 6 / 5
}

/// Reads requests off a connection until it ends, and lets `answer` write to each.
async fn serve(mut stream: TcpStream, mut answer: impl AsyncFnMut(&mut TcpStream) -> bool) {
    let mut unread = Vec::new();
    loop {
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes).await {
            Ok(count @ 1..) => unread.extend_from_slice(&bytes[..count]),
            _ => return,
        }
        if unread.ends_with(b"\r\n\r\n") {
            unread.clear();
            if !answer(&mut stream).await {
                return;
            }
        }
    }
}

/// A workload that counts what arrives, and hangs up.
async fn failing(mesh: &Mesh, arrived: &Arc<AtomicUsize>) -> Tcp {
    let arrived = arrived.clone();
    Tcp::start(mesh.ip(), move |stream| {
        let arrived = arrived.clone();
        serve(stream, async move |_| {
            arrived.fetch_add(1, Ordering::Relaxed);
            false
        })
    })
    .await
}

/// A workload that asks `service` by the proxy of its node, and answers as it is answered.
async fn asking(mesh: &Mesh, service: &'static str, proxy: &Arc<OnceLock<std::net::SocketAddr>>) -> Tcp {
    let proxy = proxy.clone();
    Tcp::start(mesh.ip(), move |stream| {
        let proxy = proxy.clone();
        serve(stream, async move |stream| {
            let reply = get(*proxy.get().expect("a proxy"), &format!("{service}.mesh"), "/").await;
            let head = format!("HTTP/1.1 {} Whatever\r\ncontent-length: 0\r\n\r\n", reply.status().as_u16());
            stream.write_all(head.as_bytes()).await.is_ok()
        })
    })
    .await
}

/// Asks `service` so many times, over eight connections; the answers with this status.
async fn ask(node: &Node, service: &str, requests: usize, status: StatusCode) -> usize {
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (proxy, host) = (node.http_proxy(), format!("{service}.mesh"));
        asking.spawn(async move {
            let mut connection = HttpConnection::open(proxy).await;
            let mut count = 0;
            for _ in 0..requests / 8 {
                let reply = connection.send(request(Method::GET, &host, "/", "")).await;
                count += usize::from(reply.status() == status);
            }
            count
        });
    }
    asking.join_all().await.into_iter().sum()
}

#[tokio::test]
async fn a_failing_service_behind_three_hops_gets_a_fifth_more_than_its_requests_at_most() {
    const REQUESTS: usize = 400;
    let mesh = Mesh::new();
    let arrived = Arc::new(AtomicUsize::new(0));
    let mut last = Vec::new();
    for name in ["c1", "c2", "c3"] {
        let workload = failing(&mesh, &arrived).await;
        last.push((mesh.node(name).serves("c", workload.address()).start().await, workload));
    }
    let proxy = Arc::new(OnceLock::new());
    let mut middle = Vec::new();
    for name in ["b1", "b2"] {
        let workload = asking(&mesh, "c", &proxy).await;
        let node = mesh.node(name).serves("b", workload.address()).start().await;
        node.finds("c", 3).await;
        let _ = proxy.set(node.http_proxy());
        middle.push((node, workload));
    }
    let caller = mesh.node("a").start().await;
    caller.finds("b", 2).await;
    let failed = ask(&caller, "b", REQUESTS, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(failed, REQUESTS);
    let arrived = arrived.load(Ordering::Relaxed);
    assert!((REQUESTS..=most(REQUESTS)).contains(&arrived), "{arrived} of {REQUESTS} arrived");
    println!("{REQUESTS} requests, {arrived} arrived");
}

/// What a node counted: the metric's lines that contain all of `labels`.
async fn counted(node: &Node, metric: &str, labels: &[&str]) -> usize {
    let text = node.admin().get("/metrics").await.text;
    let lines = text.lines().filter(|line| line.starts_with(metric));
    let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum()
}

#[tokio::test]
async fn an_overloaded_service_is_asked_a_fifth_more_often_at_most() {
    const REQUESTS: usize = 400;
    let mesh = Mesh::new();
    let mut servers = Vec::new();
    for name in ["c1", "c2", "c3"] {
        let workload = Http::start(mesh.ip(), name).await;
        let node = mesh.node(name).sections("[limits]\nrequests_in_flight_max = 1");
        servers.push((node.serves("c", workload.address()).start().await, workload));
    }
    let caller = mesh.node("a").start().await;
    caller.finds("c", 3).await;
    let mut waiting = tokio::task::JoinSet::new();
    for count in 1..=servers.len() {
        let proxy = caller.http_proxy();
        waiting.spawn(async move { get(proxy, "c.mesh", "/wait").await.status() });
        eventually("each to be busy", async || {
            let all: usize = servers.iter().map(|(_, workload)| workload.waiting()).sum();
            (all == count).then_some(())
        })
        .await;
    }
    // On a busy machine a node may seem silent; what it held goes elsewhere, and it has room.
    let failed = ask(&caller, "c", REQUESTS, StatusCode::SERVICE_UNAVAILABLE).await;
    assert!(failed > REQUESTS / 2, "{failed} of {REQUESTS} failed");
    let mut refused = 0;
    for (node, _) in &servers {
        refused += counted(node, "starling_requests_total", &["inbound", "flags=\"UO\""]).await;
    }
    assert!((failed..=most(REQUESTS)).contains(&refused), "{refused} refused of {REQUESTS}");
    let sent = counted(&caller, "starling_retries_total", &["service=\"c\"", "outcome=\"sent\""]).await;
    let over = counted(&caller, "starling_retries_total", &["service=\"c\"", "over_budget"]).await;
    assert!((FLOOR..=most(REQUESTS) - REQUESTS).contains(&sent) && over > 0, "{sent} sent, {over} not");
    println!("{REQUESTS} requests, {refused} refused, {sent} retries, {over} over budget");
    servers.iter().for_each(|(_, workload)| workload.release());
    while let Some(status) = waiting.join_next().await {
        assert_eq!(status.expect("no panic"), StatusCode::OK);
    }
}
