//! A node whose view of a service collapses: what it goes on using, what it says of it, and when it stops.

use rustix::process::{Signal, kill_process};
use serde_json::Value;
use starling_tests::workload::Http;
use starling_tests::{Mesh, Node, eventually, get, starling};

/// A lease short enough to see its end, with room for a busy machine's late renewals.
const SHORT_LEASE: &str = "interval = \"200ms\"\nrenew = \"500ms\"\nlease = \"3s\"";

/// Nodes that serve `web`, each with a workload that answers its name, and a caller.
struct World {
    servers: Vec<Node>,
    _workloads: Vec<Http>,
    caller: Node,
    _mesh: Mesh,
}

impl World {
    async fn new(count: usize, routing: &str) -> Self {
        let mesh = Mesh::new();
        let (mut servers, mut workloads) = (Vec::new(), Vec::new());
        for index in 1..=count {
            let name = format!("web-{index}");
            let workload = Http::start(mesh.ip(), &name).await;
            let node = mesh.node(&name).gossip(SHORT_LEASE).serves("web", workload.address());
            servers.push(node.start().await);
            workloads.push(workload);
        }
        let caller = mesh.node("caller").sections(&format!("[routing]\n{routing}")).start().await;
        caller.finds("web", count).await;
        Self { servers, _workloads: workloads, caller, _mesh: mesh }
    }

    fn signal(&self, servers: std::ops::Range<usize>, signal: Signal) {
        for server in &self.servers[servers] {
            kill_process(server.pid(), signal).expect("a signal");
        }
    }

    /// Waits until so many instances are kept, and gives what the caller shows of the service.
    async fn keeps(&self, count: usize) -> Value {
        eventually(&format!("{count} instances to be kept"), async || {
            let service = self.caller.admin().get("/v1/services/web").await.json;
            let kept = service["instances"].as_array()?.iter().filter(|one| one["retained"] == true).count();
            (kept == count && service["panic"].is_null() == (count == 0)).then_some(service)
        })
        .await
    }
}

#[tokio::test]
async fn instances_that_vanish_together_are_kept_after_all_others_until_they_are_heard_again() {
    let world = World::new(4, "").await;
    let caller = &world.caller;
    world.signal(0..3, Signal::STOP);
    let service = world.keeps(3).await;
    let panic = &service["panic"];
    assert_eq!((&panic["retained"], panic["known"].as_u64()), (&3.into(), Some(4)), "{service:#}");
    assert!(panic["reason"].as_str().is_some_and(|why| why.contains("distrusts")), "{service:#}");
    assert!(panic["age_ms"].is_u64() && panic["lost"].is_u64(), "{service:#}");

    let route = caller.admin().get("/v1/routes/web").await.json;
    let candidates = route["candidates"].as_array().expect("candidates");
    let kept: Vec<bool> = candidates.iter().map(|one| one["retained"] == true).collect();
    assert_eq!(kept, [false, true, true, true], "the one that is heard comes first: {route:#}");
    assert_eq!(candidates[0]["share"], 100.0, "{route:#}");
    for _ in 0..10 {
        assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.text(), "web-4");
    }
    let gauge = "starling_route_retained_endpoints{service=\"web\"}";
    let metrics = async || caller.admin().get("/metrics").await.text;
    assert!(metrics().await.contains(&format!("{gauge} 3\n")), "{}", metrics().await);
    let told = starling(["services", "--admin", &caller.admin().address().to_string()]).await;
    assert_eq!(told.out.matches("kept: its lease ran out").count(), 3, "{}", told.out);
    assert!(caller.log().contains("its last known endpoints are kept"));

    // The last one, too: the service is still known, and whoever calls it hears why it does not answer.
    world.signal(3..4, Signal::STOP);
    world.keeps(4).await;
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), 503, "and not 404");

    world.signal(0..4, Signal::CONT);
    world.keeps(0).await;
    caller.finds("web", 4).await;
    eventually("calls to those that came back", async || {
        let reply = get(caller.http_proxy(), "web.mesh", "/").await;
        (reply.status() == 200 && reply.text() != "web-4").then_some(())
    })
    .await;
    let log = caller.log();
    assert_eq!(log.matches("its last known endpoints are kept").count(), 1, "a line when it begins:\n{log}");
    assert_eq!(log.matches("is kept any more").count(), 1, "and when it ends:\n{log}");
    assert!(metrics().await.contains(&format!("{gauge} 0\n")));
}

#[tokio::test]
async fn instances_that_are_dead_are_given_up_by_the_nodes_own_attempts() {
    let mut world = World::new(2, "max_stale = \"1s\"").await;
    for server in &mut world.servers {
        server.kill().await;
    }
    world.keeps(2).await;
    eventually("the service to be gone", async || {
        (world.caller.admin().get("/v1/services/web").await.status == 404).then_some(())
    })
    .await;
    assert!(world.caller.log().contains("is kept any more"));
    assert_eq!(world.caller.admin().get("/v1/routes/web").await.status, 404);
}
