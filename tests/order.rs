//! Order does not matter: everybody at once, the seed last, workloads before or after their
//! sidecars, restarts with nobody there to ask.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use starling_gossip::clock::Clock;
use starling_tests::workload::Http;
use starling_tests::{Mesh, Node, eventually, get, starling_in};
use tokio::net::TcpListener;

/// What the mesh promises after a whole-mesh cold start.
const SERVING_WITHIN: Duration = Duration::from_secs(10);

/// How long everybody runs before the seed comes.
const SEED_LATE: Duration = Duration::from_secs(3);

const NODES: usize = 9;

/// Each node's program asks for the next node's service until it is answered.
async fn until_served(node: &Node, service: usize) {
    let host = format!("svc-{service}.mesh");
    eventually(&format!("{} to reach {host}", node.name()), async || {
        let reply = get(node.http_proxy(), &host, "/").await;
        (reply.status() == 200 && reply.text() == format!("svc-{service}")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_whole_mesh_starts_at_once_the_seed_and_half_the_workloads_last() {
    let mesh = Mesh::new();
    let seed = mesh.free_address();
    let addresses: Vec<SocketAddr> = (0..NODES).map(|_| mesh.free_address()).collect();
    let workload = async |index: usize| {
        let listener = TcpListener::bind(addresses[index]).await.expect("the workload's port");
        Http::start_on(listener, &format!("svc-{index}"))
    };
    let mut workloads = Vec::new();
    for index in (0..NODES).step_by(2) {
        workloads.push(workload(index).await);
    }
    let clock = Clock::System;
    let began = clock.now();
    let starting = (0..NODES).map(|index| {
        let node = mesh.node(&format!("node-{index}")).seeds(&[seed]);
        node.serves(&format!("svc-{index}"), addresses[index]).start()
    });
    let nodes = join_all(starting).await;
    println!("{NODES} nodes ready after {:?}", clock.now() - began);
    for index in (1..NODES).step_by(2) {
        workloads.push(workload(index).await);
    }
    tokio::time::sleep_until(began + SEED_LATE).await;

    let seed_began = clock.now();
    let seed_node = mesh.node("seed").seeds(&[]).start_at(seed).await;
    let callers = nodes.iter().enumerate().map(async |(index, node)| {
        until_served(node, (index + 1) % NODES).await;
        clock.now() - seed_began
    });
    let (mut served, by_seed) = tokio::join!(join_all(callers), async {
        until_served(&seed_node, 0).await;
        clock.now() - seed_began
    });
    served.push(by_seed);
    served.sort();
    println!("first answers after the last process started: {served:?}");
    let last = served.last().expect("ten nodes");
    assert!(*last < SERVING_WITHIN, "{served:?}");
}

/// A measurement, for a machine that does nothing else: `cargo test --test order -- --ignored
/// --nocapture newcomer`.
#[tokio::test]
#[ignore = "thirty-one processes; run it by itself"]
async fn a_newcomer_to_a_mesh_of_thirty_is_served_soon() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "svc-0").await;
    let seed = mesh.node("seed").serves("svc-0", workload.address()).start().await;
    let first = [seed.listen()];
    let starting = (1..30).map(|index| mesh.node(&format!("node-{index}")).seeds(&first).start());
    let nodes = join_all(starting).await;
    for node in &nodes {
        until_served(node, 0).await;
        for other in 1..30 {
            node.sees(&format!("node-{other}"), "alive").await;
        }
    }
    let clock = Clock::System;
    for newcomer in 0..5 {
        let began = clock.now();
        let node = mesh.node(&format!("newcomer-{newcomer}")).seeds(&first).start().await;
        let ready = clock.now() - began;
        until_served(&node, 0).await;
        println!(
            "a newcomer to {}: ready after {ready:?}, served after {:?}",
            30 + newcomer,
            clock.now() - began
        );
    }
}

#[tokio::test]
async fn a_restart_with_nobody_there_has_its_last_known_routes_and_rejoins_by_itself() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let mut seed = mesh.node("seed").start().await;
    let first = [seed.listen()];
    let mut web = mesh.node("web-1").seeds(&first).serves("web", workload.address()).start().await;
    let mut caller = mesh.node("caller").seeds(&first).remembers().start().await;
    caller.finds("web", 1).await;
    // What was heard is on disk half a second later.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for node in [&mut seed, &mut web, &mut caller] {
        node.kill().await;
    }

    caller.restart().await;
    let routes = caller.admin().get("/v1/routes/web").await.json;
    assert_eq!(routes["candidates"][0]["node"], "web-1", "{routes}");
    let members = caller.admin().get("/v1/members").await.json;
    let remembered =
        members.as_array().expect("a list").iter().find(|it| it["node"] == "web-1").expect("web-1");
    assert_eq!(remembered["state"], "suspect");
    assert!(
        remembered["reason"].to_string().contains("not been heard since this node started"),
        "{remembered}"
    );
    assert_eq!(caller.admin().get("/v1/node").await.json["store"]["healthy"], true);

    // The seed stays away; the node that comes back knows nobody and is asked by who remembers it.
    web.restart().await;
    caller.sees("web-1", "alive").await;
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), 200);
}

#[tokio::test]
async fn a_mesh_that_was_killed_meets_again_without_its_seed() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "svc-0").await;
    let mut seed = mesh.node("seed").start().await;
    let first = [seed.listen()];
    let mut nodes = Vec::new();
    for index in 0..4 {
        let node = mesh.node(&format!("node-{index}")).seeds(&first).remembers();
        let node = if index == 0 { node.serves("svc-0", workload.address()) } else { node };
        nodes.push(node.start().await);
    }
    for node in &nodes {
        for other in 0..4 {
            node.sees(&format!("node-{other}"), "alive").await;
        }
        node.finds("svc-0", 1).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    seed.kill().await;
    for node in &mut nodes {
        node.kill().await;
    }
    let clock = Clock::System;
    let began = clock.now();
    for node in &mut nodes {
        node.restart().await;
    }
    for node in &nodes {
        until_served(node, 0).await;
        for other in 0..4 {
            node.sees(&format!("node-{other}"), "alive").await;
        }
    }
    println!("four nodes killed and started without their seed: together after {:?}", clock.now() - began);
    nodes[3].sees("seed", "suspect").await;
}

#[tokio::test]
async fn two_processes_do_not_share_a_data_dir_and_checking_says_what_is_in_the_way() {
    let mesh = Mesh::new();
    let node = mesh.node("one").remembers().start().await;
    let toml = std::fs::read_to_string(node.directory().join("starling.toml")).expect("its file");
    let free = || mesh.free_address().to_string();
    let other = toml
        .replace(&node.listen().to_string(), &free())
        .replace(&node.http_proxy().to_string(), &free())
        .replace("socket = \"admin.sock\"", "socket = \"other.sock\"");
    std::fs::write(node.directory().join("other.toml"), &other).expect("written");
    let second = starling_in(node.directory(), &[], ["run", "--config", "other.toml"]).await;
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.err.contains("node.data_dir: ") && second.err.contains("in use"), "{second:?}");

    let wrong = other.replace("data_dir = \"data\"", "data_dir = \"tls.crt/data\"");
    std::fs::write(node.directory().join("wrong.toml"), wrong).expect("written");
    let checked = starling_in(node.directory(), &[], ["check", "--config", "wrong.toml"]).await;
    assert_eq!(checked.code, 2, "{checked:?}");
    assert!(checked.err.contains("tls.crt is not a directory"), "{checked:?}");
    let checked = starling_in(node.directory(), &[], ["check", "--config", "other.toml"]).await;
    assert!(checked.out.contains("remembers peers and records in"), "{checked:?}");
}
