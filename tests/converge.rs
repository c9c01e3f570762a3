//! Processes that come, die and come back: who knows it, and what callers notice of it.

use starling_tests::workload::Http;
use starling_tests::{HttpConnection, Mesh, Node, eventually, get, request};

/// A lease short enough to see its end, with room for a busy machine's late renewals.
const SHORT_LEASE: &str = "interval = \"200ms\"\nrenew = \"500ms\"\nlease = \"6s\"";

/// Asks `count` times for `web`, by POST, which is never sent twice; every request must succeed.
async fn ask(caller: &Node, count: usize) -> Vec<String> {
    let mut proxy = HttpConnection::open(caller.http_proxy()).await;
    let mut answers = Vec::new();
    for _ in 0..count {
        let reply = proxy.send(request(http::Method::POST, "web.mesh", "/", "x")).await;
        assert_eq!(reply.status(), 200, "{}", reply.text());
        answers.push(reply.text());
    }
    answers
}

/// The simulator may not import the transport, so it says again what of it shows.
#[test]
fn the_simulated_network_is_as_patient_as_the_real_one() {
    use starling_sim::network::{connection, fate};
    use starling_transport::limits;
    assert_eq!(connection::IDLE_TIMEOUT, limits::IDLE_TIMEOUT);
    assert_eq!(connection::UNUSED_CLOSE, limits::UNUSED_CLOSE);
    assert_eq!(fate::GIVEN_UP, limits::MESSAGE_TIMEOUT);
    assert!(limits::KEEP_ALIVE < limits::IDLE_TIMEOUT, "keep-alives hold connections open");
}

#[tokio::test]
async fn nodes_that_join_in_any_order_find_each_other_the_seed_last() {
    let mesh = Mesh::new();
    let seed = mesh.free_address();
    let (one, two) = (Http::start(mesh.ip(), "one").await, Http::start(mesh.ip(), "two").await);
    let web_1 = mesh.node("web-1").seeds(&[seed]).serves("web", one.address()).start().await;
    let web_2 = mesh.node("web-2").seeds(&[seed]).serves("web", two.address()).start().await;
    let caller = mesh.node("caller").seeds(&[seed]).start().await;
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), 404, "nobody is known yet");

    let seed = mesh.node("seed").seeds(&[]).start_at(seed).await;
    let nodes = [&web_1, &web_2, &caller, &seed];
    for node in nodes {
        node.finds("web", 2).await;
        for other in nodes {
            node.sees(other.name(), "alive").await;
        }
    }
    let answers = ask(&caller, 60).await;
    assert!(answers.contains(&"one".to_owned()) && answers.contains(&"two".to_owned()), "{answers:?}");
}

#[tokio::test]
async fn a_mesh_needs_its_seed_only_to_join() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let mut seed = mesh.node("seed").start().await;
    let first = [seed.listen()];
    let server = mesh.node("server").seeds(&first).serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").seeds(&first).start().await;
    caller.finds("web", 1).await;
    seed.kill().await;
    ask(&caller, 20).await;
    let late = mesh.node("late").seeds(&[server.listen()]).start().await;
    late.finds("web", 1).await;
    caller.sees("late", "alive").await;
}

#[tokio::test]
async fn callers_move_away_from_a_killed_node_and_nobody_forgets_it_on_hearsay() {
    let mesh = Mesh::new();
    let mut workloads = Vec::new();
    let mut servers = Vec::new();
    for name in ["web-1", "web-2", "web-3"] {
        let workload = Http::start(mesh.ip(), name).await;
        let node = mesh.node(name).gossip(SHORT_LEASE).serves("web", workload.address());
        servers.push(node.start().await);
        workloads.push(workload);
    }
    let caller = mesh.node("caller").gossip(SHORT_LEASE).start().await;
    caller.finds("web", 3).await;
    ask(&caller, 30).await;

    let killed = servers.remove(0);
    let incarnation = incarnation_of(&caller, "web-1").await;
    let mut killed = killed;
    killed.kill().await;
    // GETs may be sent again, so that not one of them fails from the very first moment on.
    let mut proxy = HttpConnection::open(caller.http_proxy()).await;
    for _ in 0..50 {
        let reply = proxy.send(request(http::Method::GET, "web.mesh", "/", "")).await;
        assert_eq!(reply.status(), 200, "{}", reply.text());
        assert_ne!(reply.text(), "", "an answer of a workload");
    }
    for node in servers.iter().chain([&caller]) {
        node.sees("web-1", "suspect").await;
    }
    assert!(ask(&caller, 50).await.iter().all(|name| name != "web-1"), "callers have moved away");
    for node in servers.iter().chain([&caller]) {
        node.sees("web-1", "expired").await;
        node.finds("web", 2).await;
    }

    killed.restart().await;
    for node in servers.iter().chain([&caller]) {
        node.sees("web-1", "alive").await;
        node.finds("web", 3).await;
    }
    assert!(incarnation_of(&caller, "web-1").await > incarnation, "another life of the same node");
    eventually("calls to the one that came back", async || {
        ask(&caller, 30).await.contains(&"web-1".to_owned()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn half_of_the_nodes_can_die_and_the_rest_admit_discover_and_route() {
    let mesh = Mesh::new();
    let mut nodes = Vec::new();
    let mut workloads = Vec::new();
    for index in 0..4 {
        let workload = Http::start(mesh.ip(), "web").await;
        let node = mesh.node(&format!("web-{index}")).serves("web", workload.address());
        nodes.push(node.start().await);
        workloads.push(workload);
    }
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 4).await;
    // The first two: everybody's seeds among them.
    for node in &mut nodes[..2] {
        node.kill().await;
    }
    let alive = nodes[2].listen();
    let late = mesh.node("late").seeds(&[alive]).start().await;
    late.sees("caller", "alive").await;
    late.sees("web-3", "alive").await;
    eventually("routes from a node that joined late", async || {
        let reply = get(late.http_proxy(), "web.mesh", "/").await;
        (reply.status() == 200).then_some(())
    })
    .await;
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), 200);
}

async fn incarnation_of(node: &Node, member: &str) -> u64 {
    let members = node.admin().get("/v1/members").await.json;
    let members = members.as_array().expect("members");
    let found = members.iter().find(|found| found["node"] == member).expect("the member");
    found["incarnation"].as_u64().expect("a number")
}
