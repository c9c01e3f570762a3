//! Who gets the work: by latency, in turn, by a hash, of a part of a service; and who gets none.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, StatusCode};
use starling_tests::workload::{Http, Tcp};
use starling_tests::{HttpConnection, Mesh, Node, Reply, eventually, get, request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A service with a node and a workload of each name.
async fn servers(mesh: &Mesh, names: &[&str]) -> Vec<(Node, Http)> {
    let mut servers = Vec::new();
    for name in names {
        let workload = Http::start(mesh.ip(), name).await;
        servers.push((mesh.node(name).serves("web", workload.address()).start().await, workload));
    }
    servers
}

/// Who answered so many requests, one after the other.
async fn counts(proxy: SocketAddr, requests: usize) -> BTreeMap<String, usize> {
    let mut connection = HttpConnection::open(proxy).await;
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        let reply = connection.send(request(Method::GET, "web.mesh", "/", "")).await;
        assert_eq!(reply.status(), StatusCode::OK, "{}", reply.text());
        *counts.entry(reply.text()).or_default() += 1;
    }
    counts
}

/// What `node` shows of its route `name`.
async fn route(node: &Node, name: &str) -> serde_json::Value {
    node.admin().get(&format!("/v1/routes/{name}")).await.json
}

#[tokio::test]
async fn a_slow_instance_gets_far_less_than_its_share() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, &["fast", "quick", "slow"]).await;
    servers[2].1.works_for(Duration::from_millis(200));
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 3).await;
    let counts = counts(caller.http_proxy(), 200).await;
    // Never more than one at a time, so that its work under way says nothing.
    assert!(counts.get("slow").is_none_or(|count| *count <= 10), "{counts:?}");
    let route = route(&caller, "web").await;
    assert_eq!(route["policy"], "peak_ewma");
    let slow = route["candidates"].as_array().expect("a list").iter().find(|one| one["node"] == "slow");
    let estimate = slow.and_then(|slow| slow["estimate_ms"].as_f64());
    assert!(estimate.is_none_or(|millis| millis > 50.0), "{route}");
}

#[tokio::test]
async fn round_robin_gives_each_its_turn() {
    let mesh = Mesh::new();
    let _servers = servers(&mesh, &["a", "b", "c"]).await;
    let policy = "[[upstream]]\nservice = \"web\"\npolicy = \"round_robin\"";
    let caller = mesh.node("caller").sections(policy).start().await;
    caller.finds("web", 3).await;
    let counts = counts(caller.http_proxy(), 60).await;
    // A table that changes meanwhile begins another round.
    assert!(counts.len() == 3 && counts.values().all(|count| (16..=24).contains(count)), "{counts:?}");
}

#[tokio::test]
async fn a_running_node_takes_over_another_policy() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, &["a", "b", "slow"]).await;
    servers[2].1.works_for(Duration::from_millis(50));
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 3).await;
    counts(caller.http_proxy(), 30).await;
    let before = std::fs::read_to_string(caller.config()).expect("a configuration");
    caller.configure(&format!("{before}\n[[upstream]]\nservice = \"web\"\npolicy = \"round_robin\"\n"));
    caller.hang_up();
    eventually("another policy", async || {
        (route(&caller, "web").await["policy"] == "round_robin").then_some(())
    })
    .await;
    let counts = counts(caller.http_proxy(), 60).await;
    assert!(counts.len() == 3 && counts.values().all(|count| (16..=24).contains(count)), "{counts:?}");
}

#[tokio::test]
async fn a_hash_keeps_its_instance_when_another_leaves() {
    let mesh = Mesh::new();
    let mut servers = servers(&mesh, &["a", "b", "c", "d", "e"]).await;
    let policy = "[[upstream]]\nservice = \"web\"\npolicy = \"consistent_hash\"\nhash_on = \"header:x-user\"";
    let caller = mesh.node("caller").sections(policy).start().await;
    caller.finds("web", 5).await;
    let before = owners(&caller, 200).await;
    assert_eq!(owners(&caller, 200).await, before);
    let counts = before.iter().fold(BTreeMap::new(), |mut counts: BTreeMap<&str, usize>, owner| {
        *counts.entry(owner).or_default() += 1;
        counts
    });
    assert!(counts.len() == 5 && counts.values().all(|count| *count >= 15), "{counts:?}");

    let (mut left, _workload) = servers.remove(2);
    left.terminate();
    left.ended().await;
    caller.finds("web", 4).await;
    let after = owners(&caller, 200).await;
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
    assert!(moved.clone().all(|(before, _)| before == "c"), "only what was its own has moved");
    assert_eq!(moved.count(), counts["c"]);
    assert_eq!(route(&caller, "web").await["hash_on"], "header:x-user");
}

/// Who answers each of so many users.
async fn owners(caller: &Node, users: usize) -> Vec<String> {
    let mut connection = HttpConnection::open(caller.http_proxy()).await;
    let mut owners = Vec::new();
    for user in 0..users {
        let mut request = request(Method::GET, "web.mesh", "/", "");
        request.headers_mut().insert("x-user", format!("user-{user}").parse().expect("a value"));
        owners.push(connection.send(request).await.text());
    }
    owners
}

#[tokio::test]
async fn the_newest_request_over_a_services_limit_is_uo() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, &["server"]).await;
    let limit = "[[upstream]]\nservice = \"web\"\nrequests_max = 2";
    let caller = mesh.node("caller").sections(limit).start().await;
    caller.finds("web", 1).await;
    let mut waiting = tokio::task::JoinSet::new();
    for count in 1..=2 {
        let proxy = caller.http_proxy();
        waiting.spawn(async move { get(proxy, "web.mesh", "/wait").await });
        eventually("a request to wait", async || (servers[0].1.waiting() == count).then_some(())).await;
    }
    let refused = get(caller.http_proxy(), "web.mesh", "/").await;
    is_overflow(&refused, "requests_max is 2");
    let requests = route(&caller, "web").await["under_way"]["requests"].clone();
    assert_eq!((&requests["used"], &requests["max"]), (&2.into(), &2.into()));
    let metrics = caller.admin().get("/metrics").await.text;
    assert!(
        metrics.contains("starling_upstream_overflow_total{service=\"web\",limit=\"requests\"} 1"),
        "{metrics}"
    );
    servers[0].1.release();
    for reply in waiting.join_all().await {
        assert_eq!(reply.status(), StatusCode::OK);
    }
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), StatusCode::OK);
}

fn is_overflow(reply: &Reply, says: &str) {
    assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE, "{}", reply.text());
    assert_eq!((reply.header("x-starling-flags"), reply.header("retry-after")), ("UO", "1"));
    assert!(reply.text().contains(says), "{}", reply.text());
}

#[tokio::test]
async fn the_newest_connection_over_a_services_limit_is_reset() {
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |mut stream| {
        let mut bytes = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut bytes).await {
            let _ = stream.write_all(&bytes[..count]).await;
        }
    })
    .await;
    let _server = mesh.node("server").serves_tcp("db", workload.address()).start().await;
    let limit = "[[upstream]]\nservice = \"*\"\nconnections_max = 1";
    let caller = mesh.node("caller").calls("db").sections(limit).start().await;
    caller.finds("db", 1).await;
    let mut first = TcpStream::connect(caller.outbound("db")).await.expect("a connection");
    assert_eq!(echo(&mut first).await, Some(4));
    // The reset may be there before it knows that it is connected.
    let another = async || echo(&mut TcpStream::connect(caller.outbound("db")).await.ok()?).await;
    assert_eq!(another().await, None);
    assert_eq!(echo(&mut first).await, Some(4), "the first goes on");
    drop(first);
    eventually("room again", another).await;
}

async fn echo(stream: &mut TcpStream) -> Option<usize> {
    stream.write_all(b"ping").await.ok()?;
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).await.ok()
}

#[tokio::test]
async fn a_part_of_a_service_is_called_by_a_port_and_by_a_name() {
    let mesh = Mesh::new();
    let mut servers = Vec::new();
    for (name, keys) in [
        ("old", "version = \"v1\""),
        ("new", "version = \"v2\""),
        ("canary", "version = \"v2\"\ntags = { track = \"canary\" }"),
    ] {
        let workload = Http::start(mesh.ip(), name).await;
        servers.push((mesh.node(name).serves_as("web", workload.address(), keys).start().await, workload));
    }
    let port = mesh.free_address();
    let parts = format!(
        "[[outbound]]\nlisten = \"{port}\"\nservice = \"web\"\nversion = \"v2\"\n\
         [[upstream]]\nservice = \"*\"\npolicy = \"round_robin\"\n\
         [[upstream]]\nservice = \"web\"\nname = \"web-canary\"\ntags = {{ track = \"canary\" }}\n\
         [[upstream]]\nservice = \"web\"\nname = \"web-v3\"\nversion = \"v3\""
    );
    let caller = mesh.node("caller").sections(&parts).start().await;
    caller.finds("web", 3).await;
    assert_eq!(counts(caller.http_proxy(), 60).await.len(), 3);
    let by_port = counts(port, 60).await;
    assert_eq!(by_port.keys().collect::<Vec<_>>(), ["canary", "new"], "{by_port:?}");
    for _ in 0..10 {
        let reply = get(caller.http_proxy(), "web-canary.mesh", "/").await;
        assert_eq!(reply.text(), "canary");
    }
    let nobody = get(caller.http_proxy(), "web-v3.mesh", "/").await;
    assert_eq!((nobody.status(), nobody.header("x-starling-flags")), (StatusCode::SERVICE_UNAVAILABLE, "UH"));
    let shown = route(&caller, "web@version=v2").await;
    assert_eq!((&shown["service"], shown["candidates"].as_array().map(Vec::len)), (&"web".into(), Some(2)));
    assert_eq!(shown["excluded"][0]["reason"], "its version or tags are not those that are asked for");
    // The canary leaves: nobody else takes its part's work.
    servers[2].0.terminate();
    servers[2].0.ended().await;
    caller.finds("web", 2).await;
    let gone = get(caller.http_proxy(), "web-canary.mesh", "/").await;
    assert_eq!(gone.header("x-starling-flags"), "UH", "{}", gone.text());
}

#[tokio::test]
async fn a_newcomer_among_warm_ones_begins_with_little() {
    const SLOW_START: Duration = Duration::from_secs(8);
    let mesh = Mesh::new();
    let mut servers = servers(&mesh, &["a", "b"]).await;
    let settings = "[[upstream]]\nservice = \"web\"\npolicy = \"least_request\"\nslow_start = \"8s\"";
    let caller = mesh.node("caller").sections(settings).start().await;
    caller.finds("web", 2).await;
    let shares = counts(caller.http_proxy(), 60).await;
    assert!(shares.values().all(|count| *count > 10), "who comes together is spared together: {shares:?}");
    // As long as it takes to be warm.
    tokio::time::sleep(SLOW_START).await;
    let workload = Http::start(mesh.ip(), "c").await;
    servers.push((mesh.node("c").serves("web", workload.address()).start().await, workload));
    eventually("a newcomer", async || {
        let route = route(&caller, "web").await;
        route["candidates"].as_array()?.iter().find(|one| one["node"] == "c").map(drop)
    })
    .await;
    let early = counts(caller.http_proxy(), 150).await;
    let readiness = readiness_of(&caller, "c").await;
    // A third of what it was ready for at the end, and as much again for chance.
    let most = 5.0 + 150.0 * readiness / 100.0 * 0.66;
    assert!((early.get("c").copied().unwrap_or_default() as f64) < most, "{early:?} at {readiness} %");
    eventually("the newcomer to be warm", async || (readiness_of(&caller, "c").await == 100.0).then_some(()))
        .await;
    let late = counts(caller.http_proxy(), 150).await;
    assert!(late["c"] > 30, "{late:?}");
}

async fn readiness_of(caller: &Node, node: &str) -> f64 {
    let route = route(caller, "web").await;
    let one = route["candidates"].as_array().expect("a list").iter().find(|one| one["node"] == node).cloned();
    one.expect("a candidate")["readiness"].as_f64().expect("a number")
}

#[tokio::test]
async fn of_a_large_service_a_caller_uses_a_share() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let mut server = mesh.node("server");
    for _ in 0..14 {
        server = server.serves("web", workload.address());
    }
    let _server = server.start().await;
    let share = "[[upstream]]\nservice = \"*\"\nendpoints_max = 10";
    let one = mesh.node("one").sections(share).start().await;
    let other = mesh.node("other").sections(share).start().await;
    let mut used = Vec::new();
    for caller in [&one, &other] {
        let route = eventually("all of them", async || {
            let route = route(caller, "web").await;
            let count = |list: &str| route[list].as_array().map(Vec::len);
            (count("candidates") == Some(10) && count("excluded") == Some(4)).then_some(route)
        })
        .await;
        let reason = route["excluded"][0]["reason"].as_str().expect("a reason");
        assert!(reason.starts_with("left to other callers"), "{reason}");
        let ids = route["candidates"].as_array().expect("a list").iter().map(|one| one["id"].to_string());
        used.push(ids.collect::<Vec<_>>());
        assert_eq!(counts(caller.http_proxy(), 20).await["web"], 20);
    }
    assert_ne!(used[0], used[1], "callers' shares differ");
}

#[tokio::test]
async fn a_draining_instance_finishes_what_it_has_and_gets_nothing_new() {
    let mesh = Mesh::new();
    let servers = servers(&mesh, &["stays", "leaves"]).await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 2).await;
    // Whoever gets it: until the one that leaves has one.
    let mut waiting = tokio::task::JoinSet::new();
    while servers[1].1.waiting() == 0 {
        let (proxy, before) = (caller.http_proxy(), servers[0].1.waiting() + servers[1].1.waiting());
        waiting.spawn(async move { get(proxy, "web.mesh", "/wait").await });
        let arrived = || servers[0].1.waiting() + servers[1].1.waiting() > before;
        eventually("a request to wait", async || arrived().then_some(())).await;
    }
    servers[1].0.terminate();
    eventually("the drain to be known", async || {
        let excluded = route(&caller, "web").await["excluded"].clone();
        (excluded[0]["reason"] == "it is draining").then_some(())
    })
    .await;
    let new = counts(caller.http_proxy(), 50).await;
    assert_eq!(new, BTreeMap::from([("stays".to_owned(), 50)]));
    servers.iter().for_each(|(_, workload)| workload.release());
    for reply in waiting.join_all().await {
        assert_eq!(reply.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn what_an_instance_does_for_others_counts() {
    const WAITING: usize = 24;
    let mesh = Mesh::new();
    let mut servers = Vec::new();
    for name in ["idle", "busy"] {
        let workload = Http::start(mesh.ip(), name).await;
        let version = format!("version = {name:?}");
        servers
            .push((mesh.node(name).serves_as("web", workload.address(), &version).start().await, workload));
    }
    let port = mesh.free_address();
    let only = format!("[[outbound]]\nlisten = \"{port}\"\nservice = \"web\"\nversion = \"busy\"");
    let other = mesh.node("other").sections(&only).start().await;
    let policy = "[[upstream]]\nservice = \"web\"\npolicy = \"least_request\"";
    let caller = mesh.node("caller").sections(policy).start().await;
    other.finds("web", 2).await;
    caller.finds("web", 2).await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..WAITING {
        waiting.spawn(async move { get(port, "any", "/wait").await });
    }
    let busy = &servers[1].1;
    eventually("all to wait", async || (busy.waiting() == WAITING).then_some(())).await;
    // Told with one answer of eight.
    let counts = counts(caller.http_proxy(), 100).await;
    assert!(counts.get("busy").is_none_or(|count| *count <= 25), "{counts:?}");
    busy.release();
    for reply in waiting.join_all().await {
        assert_eq!((reply.status(), reply.header("x-starling-load")), (StatusCode::OK, ""));
    }
}
