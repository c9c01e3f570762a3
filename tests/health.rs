//! The health of what a node serves, as another node sees it: every kind of probe against real
//! servers, and how long a flip takes.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use starling_gossip::clock::Clock;
use starling_tests::workload::{Http, Tcp};
use starling_tests::{Mesh, Node, eventually};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

/// Fast enough that nobody waits for it, slow enough for a busy machine.
const FAST: &str = "interval = \"200ms\"\ntimeout = \"200ms\"\nhealthy_after = 1\nunhealthy_after = 2";

fn probe(question: &str) -> String {
    format!("[service.probe]\n{question}\n{FAST}")
}

/// A node that serves `web` with `probe`, and another that hears of it.
struct World {
    server: Node,
    caller: Node,
}

impl World {
    async fn new(mesh: &Mesh, address: SocketAddr, probe: &str) -> Self {
        let server = mesh.node("server").serves_as("web", address, probe).start().await;
        let caller = mesh.node("caller").start().await;
        caller.sees("server", "alive").await;
        Self { server, caller }
    }

    /// Waits until the other node hears `health`; gives how long that took.
    async fn hears(&self, health: &str) -> Duration {
        let since = Clock::System.now();
        eventually(&format!("web to be {health}"), async || {
            let service = self.caller.admin().get("/v1/services/web").await.json;
            (service["instances"][0]["health"] == health).then_some(())
        })
        .await;
        Clock::System.now() - since
    }
}

async fn listen(address: SocketAddr) -> TcpListener {
    TcpListener::bind(address).await.expect("the workload's port")
}

/// Without a probe of its own, as with one: down, up, down, up, and how long each flip took.
#[tokio::test]
async fn a_workload_may_come_after_its_node_and_go_and_come_again() {
    let mesh = Mesh::new();
    let address = mesh.free_address();
    let world = World::new(&mesh, address, "").await;
    world.hears("unhealthy").await;
    let mut took = Vec::new();
    for _ in 0..3 {
        let workload = Http::start_on(listen(address).await, "web");
        took.push(("up", world.hears("healthy").await));
        drop(workload);
        took.push(("down", world.hears("unhealthy").await));
    }
    eprintln!("flips without a probe, as another node sees them: {took:?}");
    let log = world.server.log();
    assert_eq!(log.matches("instance is unhealthy").count(), 4, "one line a flip:\n{log}");
    assert!(log.contains("does not accept: Connection refused"), "with its reason:\n{log}");
}

#[tokio::test]
async fn a_call_that_finds_the_workload_gone_flips_it_before_the_next_check() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    // Nobody looks for ten minutes.
    let keys = "[service.probe]\ntcp = true\ninterval = \"10m\"\nunhealthy_after = 2";
    let world = World::new(&mesh, workload.address(), keys).await;
    world.caller.finds("web", 1).await;
    drop(workload);
    eventually("a refused call", async || {
        let reply = starling_tests::get(world.caller.http_proxy(), "web.mesh", "/").await;
        (reply.status() == 503).then_some(())
    })
    .await;
    world.hears("unhealthy").await;
}

#[tokio::test]
async fn http_is_asked_at_its_path() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let world = World::new(&mesh, workload.address(), &probe("http = \"/status/200\"")).await;
    world.hears("healthy").await;
    let mesh = Mesh::new();
    let world = World::new(&mesh, workload.address(), &probe("http = \"/status/503\"")).await;
    world.hears("unhealthy").await;
    world.server.logs("it answered 503").await;
}

#[tokio::test]
async fn grpc_is_asked_by_its_health_protocol() {
    let mesh = Mesh::new();
    let listener = TcpListener::bind((mesh.ip(), 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (reporter, health) = tonic_health::server::health_reporter();
    let set = async |service: &str, serving: bool| {
        use tonic_health::ServingStatus::{NotServing, Serving};
        reporter.set_service_status(service, if serving { Serving } else { NotServing }).await;
    };
    set("shop.Cart", true).await;
    tokio::spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        tonic::transport::Server::builder().add_service(health).serve_with_incoming(incoming).await
    });
    let world = World::new(&mesh, address, &probe("grpc = \"shop.Cart\"")).await;
    world.hears("healthy").await;
    set("shop.Cart", false).await;
    let down = world.hears("unhealthy").await;
    set("shop.Cart", true).await;
    let up = world.hears("healthy").await;
    eprintln!("flips by gRPC at 200 ms, two failures or one success: down {down:?}, up {up:?}");
    world.server.logs("shop.Cart is NOT_SERVING").await;

    let mesh = Mesh::new();
    let whole = World::new(&mesh, address, &probe("grpc = true")).await;
    whole.hears("healthy").await;
    let mesh = Mesh::new();
    let unknown = World::new(&mesh, address, &probe("grpc = \"shop.Ghost\"")).await;
    unknown.hears("unhealthy").await;
    unknown.server.logs("its health service does not know shop.Ghost").await;
}

#[tokio::test]
async fn a_grpc_server_without_the_health_service_says_so_in_the_log() {
    let mesh = Mesh::new();
    let listener = TcpListener::bind((mesh.ip(), 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        let routes = tonic::service::Routes::default();
        tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(incoming).await
    });
    let world = World::new(&mesh, address, &probe("grpc = true")).await;
    world.hears("unhealthy").await;
    world.server.logs("UNIMPLEMENTED: it does not serve grpc.health.v1.Health").await;
}

#[tokio::test]
async fn a_program_is_asked_by_its_exit_code() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let flag = mesh.directory().join("well");
    let script = format!(
        "echo \"$STARLING_SERVICE at $STARLING_ADDRESS\"; test -e {} || {{ echo 'no flag' >&2; exit 1; }}",
        flag.display()
    );
    let world =
        World::new(&mesh, workload.address(), &probe(&format!("exec = [\"/bin/sh\", \"-c\", {script:?}]")))
            .await;
    world.hears("unhealthy").await;
    world.server.logs("/bin/sh ended with exit status: 1: no flag").await;
    world.server.logs(&format!("web at {}", workload.address())).await;
    std::fs::write(&flag, "").expect("a flag");
    world.hears("healthy").await;
}

/// How many processes run with this argument.
fn running(argument: &str) -> usize {
    let is_it = |entry: &std::fs::DirEntry| {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    };
    std::fs::read_dir("/proc").expect("/proc").flatten().filter(is_it).count()
}

#[tokio::test]
async fn a_program_that_hangs_runs_once_and_ends_with_its_node() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    // A number that no other process is given.
    let seconds = format!("1000.{}", std::process::id());
    let script = format!("sleep {seconds} & sleep {seconds}");
    // Between two probes the killed have time to die.
    let keys = format!(
        "[service.probe]\nexec = [\"/bin/sh\", \"-c\", {script:?}]\ninterval = \"600ms\"\ntimeout = \"200ms\""
    );
    let mut world = World::new(&mesh, workload.address(), &keys).await;
    world.hears("unhealthy").await;
    world.server.logs("no answer within 200ms").await;
    let mut most = 0;
    for _ in 0..150 {
        most = most.max(running(&seconds));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!((1..=2).contains(&most), "{most} processes of one probe that starts two");
    world.server.terminate();
    world.server.ended().await;
    eventually("its processes to be gone", async || (running(&seconds) == 0).then_some(())).await;
}

#[tokio::test]
async fn a_server_that_never_answers_is_asked_by_one_connection_at_a_time() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let mesh = Mesh::new();
    let (open, most, all) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (open.clone(), most.clone(), all.clone());
    let workload = Tcp::start(mesh.ip(), move |mut stream| {
        let (open, most, all) = counts.clone();
        async move {
            all.fetch_add(1, Ordering::SeqCst);
            most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            while let Ok(1..) = stream.read(&mut [0; 1024]).await {}
            open.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    let world = World::new(&mesh, workload.address(), &probe("http = \"/\"")).await;
    world.hears("unhealthy").await;
    eventually("ten probes", async || (all.load(Ordering::SeqCst) >= 10).then_some(())).await;
    assert_eq!(most.load(Ordering::SeqCst), 1);
    world.server.logs("no answer within 200ms").await;
}

#[tokio::test]
async fn a_workload_at_a_unix_socket_is_well_while_it_accepts() {
    let mesh = Mesh::new();
    let path = mesh.directory().join("app.sock");
    let service = format!("[[service]]\nname = \"server\"\naddress = \"unix:{}\"", path.display());
    let server = mesh.node("server").sections(&service).start().await;
    let health = async |health: &str| {
        eventually(&format!("server to be {health}"), async || {
            let service = server.admin().get("/v1/services/server").await.json;
            (service["instances"][0]["health"] == health).then_some(())
        })
        .await;
    };
    health("unhealthy").await;
    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    health("healthy").await;
    drop(listener);
    health("unhealthy").await;
}

#[tokio::test]
async fn a_probe_that_is_off_believes_the_workload() {
    let mesh = Mesh::new();
    let world = World::new(&mesh, mesh.free_address(), starling_tests::UNPROBED).await;
    world.hears("healthy").await;
}

/// A node whose identity may announce `web`, and which serves nothing by its configuration.
async fn empty_node(mesh: &Mesh) -> (Node, Node) {
    let server = mesh.node("server").identity("spiffe://acme/svc/web").start().await;
    let caller = mesh.node("caller").start().await;
    (server, caller)
}

/// The status and the JSON of a request by the node's socket.
async fn send(node: &Node, method: &str, path: &str, body: &str) -> (u16, Value) {
    let path = format!("/v1/instances/{path}");
    let answer = node.admin().send_by_socket(&node.socket(), method, &path, body).await;
    (answer.status.as_u16(), answer.json)
}

async fn put(node: &Node, id: &str, body: &Value) -> (u16, Value) {
    send(node, "PUT", id, &body.to_string()).await
}

/// The instance `id` as its own node shows it.
async fn own(node: &Node, id: &str) -> Option<Value> {
    let all = node.admin().get("/v1/instances").await.json;
    all.as_array()?.iter().find(|one| one["id"] == id).cloned()
}

#[tokio::test]
async fn an_instance_is_registered_called_changed_and_withdrawn_at_run_time() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let (server, caller) = empty_node(&mesh).await;
    let registration =
        json!({ "service": "web", "address": workload.address().to_string(), "version": "v1" });
    let since = Clock::System.now();
    assert_eq!(put(&server, "web-1", &registration).await.0, 201);
    caller.finds("web", 1).await;
    eprintln!("registered until another node may call it: {:?}", Clock::System.now() - since);
    assert_eq!(starling_tests::get(caller.http_proxy(), "web.mesh", "/").await.status(), 200);
    let shown = own(&server, "web-1").await.expect("shown");
    assert_eq!((&shown["source"], &shown["health"]), (&"admin".into(), &"healthy".into()));
    assert_eq!((&shown["service"], &shown["ttl_remaining_ms"]), (&"web".into(), &Value::Null));

    assert_eq!(put(&server, "web-1", &registration).await.0, 200, "the same again changes nothing");
    let mut changed = registration.clone();
    changed["version"] = "v2".into();
    assert_eq!(put(&server, "web-1", &changed).await.0, 200);
    eventually("the new version", async || {
        let service = caller.admin().get("/v1/services/web").await.json;
        (service["instances"][0]["version"] == "v2").then_some(())
    })
    .await;

    let admin = server.admin().address().to_string();
    let table = starling_tests::starling(["instances", "--admin", admin.as_str()]).await;
    assert!(table.out.contains("web-1") && table.out.contains("admin"), "{}", table.out);

    assert_eq!(send(&server, "DELETE", "web-1", "").await.0, 204);
    assert_eq!(send(&server, "DELETE", "web-1", "").await.0, 404);
    eventually("its end", async || {
        (caller.admin().get("/v1/services/web").await.status == 404).then_some(())
    })
    .await;
    assert_eq!(own(&server, "web-1").await, None);
    assert_eq!(put(&server, "web-1", &registration).await.0, 201, "an id may be used again");
    caller.finds("web", 1).await;
}

#[tokio::test]
async fn heartbeats_keep_an_instance_and_their_absence_withdraws_it() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let (server, caller) = empty_node(&mesh).await;
    let world = World { server, caller };
    let registration = json!({ "service": "web", "address": workload.address().to_string(), "ttl": "2s" });
    assert_eq!(put(&world.server, "web", &registration).await.0, 201);
    world.hears("healthy").await;
    assert_eq!(send(&world.server, "PUT", "web/heartbeat", r#"{"health":"unhealthy"}"#).await.0, 200);
    world.hears("unhealthy").await;
    world.server.logs("its last heartbeat says so").await;
    let (status, beat) = send(&world.server, "PUT", "web/heartbeat", "").await;
    assert!(status == 200 && beat["ttl_remaining_ms"].as_u64() > Some(1_000), "{beat}");
    world.hears("healthy").await;
    assert_eq!(put(&world.server, "web", &registration).await.0, 200, "a registration is a heartbeat too");
    world.hears("unhealthy").await;
    let shown = own(&world.server, "web").await.expect("still there");
    assert_eq!(shown["reason"], "no heartbeat within 2s");
    let service = async || world.caller.admin().get("/v1/services/web").await.status;
    eventually("its end", async || (service().await == 404).then_some(())).await;
    eventually("its place to be free", async || own(&world.server, "web").await.is_none().then_some(()))
        .await;
    assert_eq!(send(&world.server, "PUT", "web/heartbeat", "").await.0, 404);
}

#[tokio::test]
async fn a_registration_is_judged_as_the_configuration_is() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let server = mesh.node("server").serves("web", workload.address()).start().await;
    let address = workload.address().to_string();
    let (status, answer) =
        put(&server, "x", &json!({ "service": "web", "address": "nowhere", "wieght": 5, "probe": {} })).await;
    assert_eq!(status, 422);
    let told = answer["mistakes"].as_array().expect("mistakes");
    let mut keys: Vec<&str> = told.iter().filter_map(|one| one["key"].as_str()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["address", "probe", "wieght"], "{answer}");
    assert!(told.iter().all(|one| one["problem"].is_string() && one["suggestion"].is_string()), "{answer}");
    for (id, body, status, says) in [
        ("x", json!({ "service": "bank", "address": address }), 403, "may not announce \"bank\""),
        ("web", json!({ "service": "web", "address": address }), 409, "web is configured"),
        ("a%20b", json!({ "service": "web", "address": address }), 422, "an id is"),
        ("x", json!({ "service": "web", "address": server.admin().address().to_string() }), 422, "1 mistake"),
    ] {
        let (given, answer) = put(&server, id, &body).await;
        assert_eq!(given, status, "{answer}");
        assert!(answer["error"].as_str().is_some_and(|error| error.contains(says)), "{answer}");
    }
    assert_eq!(send(&server, "PUT", "x", "no json").await.0, 422);
    assert_eq!(send(&server, "PUT", "x", &"x".repeat(20_000)).await.0, 413);
    assert_eq!(send(&server, "PUT", "web/heartbeat", "").await.0, 409);
    assert_eq!(send(&server, "DELETE", "web", "").await.0, 409);
    assert_eq!(send(&server, "POST", "web", "").await.0, 404);
    let by_port = server.admin().ask("PUT", "/v1/instances/x", &[]).await;
    assert_eq!(by_port.status, 403, "an action needs the socket or the token");
    assert_eq!(own(&server, "web").await.expect("shown")["source"], "configuration");
    assert_eq!(own(&server, "x").await, None);
}

#[tokio::test]
async fn ids_are_as_many_as_others_remember() {
    let mesh = Mesh::new();
    let (server, _caller) = empty_node(&mesh).await;
    let body = json!({ "service": "web", "address": mesh.free_address().to_string() });
    let most = starling_gossip::limits::INSTANCES_PER_OWNER_MAX;
    for number in 0..most {
        assert_eq!(put(&server, &format!("i{number}"), &body).await.0, 201);
    }
    let (status, answer) = put(&server, "one-more", &body).await;
    assert_eq!(status, 507, "{answer}");
    assert!(
        answer["error"].as_str().is_some_and(|error| error.contains("withdrawn ones included")),
        "{answer}"
    );
    assert_eq!(put(&server, "i7", &body).await.0, 200);
}
