//! Sidecars and workloads that are killed at every stage of a request: each request ends, with an answer
//! or with a clean failure; none hangs, and what may not be sent twice arrives once at most.
//!
//! Two instances serve; requests carry an id, and the workloads count what arrived under which.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use rustix::process::{Signal, kill_process};
use starling_gossip::clock::Clock;
use starling_tests::workload::Tcp;
use starling_tests::{HttpConnection, Mesh, Node, UNPROBED, eventually, get, request, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// A request that can be answered, or fail, has done so within this.
const PROMPT: Duration = Duration::from_secs(15);

/// An answer whose node has died under it is cut off about two seconds after: its host says that nobody
/// listens there. Far less than the silence after which a connection ends in any case.
const CUT_OFF: Duration = Duration::from_secs(7);

/// Where a workload stands still until the test goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// It has the request, and has not answered.
    BeforeHead,
    /// The answer's head is out, and nothing of its body.
    AfterHead,
    /// So is half of the body.
    MidBody,
}

/// What arrived at all workloads, by the requests' ids, and where they stand still.
#[derive(Clone, Default)]
struct Arrivals(Arc<Mutex<BTreeMap<String, usize>>>);

impl Arrivals {
    fn add(&self, id: &str) {
        *self.0.lock().expect("no panic").entry(id.to_owned()).or_default() += 1;
    }

    fn of(&self, id: &str) -> usize {
        self.0.lock().expect("no panic").get(id).copied().unwrap_or(0)
    }
}

/// A workload that stands still at `stage` of each request for `/stop`, and says so; dropping `go`
/// lets nothing go on.
async fn workload(mesh: &Mesh, stage: Stage, arrivals: &Arrivals, stopped: &Arc<Semaphore>) -> Tcp {
    let (arrivals, stopped) = (arrivals.clone(), stopped.clone());
    Tcp::start(mesh.ip(), move |stream| {
        let (arrivals, stopped) = (arrivals.clone(), stopped.clone());
        async move { serve(stream, stage, &arrivals, &stopped).await }
    })
    .await
}

async fn serve(mut stream: TcpStream, stage: Stage, arrivals: &Arrivals, stopped: &Semaphore) {
    loop {
        let Some(head) = head(&mut stream).await else { return };
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        arrivals.add(&target);
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n";
        if !target.starts_with("/stop") {
            if stream.write_all(format!("{answer}answered").as_bytes()).await.is_err() {
                return;
            }
            continue;
        }
        let said = match stage {
            Stage::BeforeHead => String::new(),
            Stage::AfterHead => answer.to_owned(),
            Stage::MidBody => format!("{answer}answ"),
        };
        if stream.write_all(said.as_bytes()).await.is_err() {
            return;
        }
        stopped.add_permits(1);
        // Until whoever asks has gone.
        while stream.read(&mut [0; 256]).await.is_ok_and(|read| read > 0) {}
        return;
    }
}

/// The next request's head, with its body read.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(end) = heard.windows(4).position(|end| end == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&heard[..end]).into_owned();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if heard.len() >= end + 4 + length.and_then(|length| length.parse().ok()).unwrap_or(0) {
                return Some(head);
            }
        }
        match stream.read(&mut buffer).await {
            Ok(read @ 1..) => heard.extend_from_slice(&buffer[..read]),
            _ => return None,
        }
    }
}

/// `web` on two nodes, whose workloads stand still at `stage`, and a node that calls it.
struct World {
    stage: Stage,
    arrivals: Arrivals,
    stopped: Arc<Semaphore>,
    workloads: Vec<Tcp>,
    servers: Vec<Node>,
    caller: Node,
    _mesh: Mesh,
}

impl World {
    async fn new(stage: Stage, servers: usize) -> Self {
        let mesh = Mesh::new();
        let (arrivals, stopped) = (Arrivals::default(), Arc::new(Semaphore::new(0)));
        let (mut workloads, mut nodes) = (Vec::new(), Vec::new());
        for number in 0..servers {
            let workload = workload(&mesh, stage, &arrivals, &stopped).await;
            let node = mesh.node(&format!("server-{number}"));
            nodes.push(node.serves_as("web", workload.address(), UNPROBED).start().await);
            workloads.push(workload);
        }
        let caller = mesh.node("caller").calls("web").start().await;
        caller.finds("web", servers).await;
        Self { stage, arrivals, stopped, workloads, servers: nodes, caller, _mesh: mesh }
    }

    /// A request that stands still at its stage when this returns, with what has been said at its caller;
    /// gives what becomes of it.
    async fn stopped(&self, method: Method, id: &str) -> tokio::task::JoinHandle<Fate> {
        let (tell, told) = tokio::sync::oneshot::channel();
        let (address, path) = (self.caller.outbound("web"), format!("/stop/{id}"));
        let asking = tokio::spawn(async move {
            let mut connection = HttpConnection::open(address).await;
            let body = if method == Method::POST { "body" } else { "" };
            match connection.begin(request(method, "web.mesh", &path, body)).await {
                Err(_) => Fate::Cut,
                Ok(answer) => {
                    let status = answer.status();
                    let _ = tell.send(());
                    match answer.into_body().collect().await {
                        Ok(_) => Fate::Answered(status),
                        Err(_) => Fate::Cut,
                    }
                }
            }
        });
        within("the workload to stand still", self.stopped.acquire()).await.expect("open").forget();
        if self.stage != Stage::BeforeHead {
            within("the answer's head", told).await.expect("a head");
        }
        asking
    }

    async fn is_served(&self) {
        eventually("requests to be served", async || {
            let answer = get(self.caller.outbound("web"), "web.mesh", "/again").await;
            (answer.text() == "answered").then_some(())
        })
        .await;
    }
}

#[derive(Debug, PartialEq)]
enum Fate {
    Answered(StatusCode),
    /// The connection ended, or the body was cut short.
    Cut,
}

async fn fate_of(asking: tokio::task::JoinHandle<Fate>) -> Fate {
    let began = Clock::System.now();
    let fate = within("a request's end", asking).await.expect("no panic");
    let limit = if fate == Fate::Cut { CUT_OFF } else { PROMPT };
    assert!((Clock::System.now() - began) < limit, "{fate:?} after {:?}", (Clock::System.now() - began));
    fate
}

const STAGES: [Stage; 3] = [Stage::BeforeHead, Stage::AfterHead, Stage::MidBody];

#[tokio::test]
async fn a_callees_sidecar_is_killed_at_every_stage() {
    for stage in STAGES {
        let mut world = World::new(stage, 1).await;
        let asking = world.stopped(Method::POST, "post").await;
        world.servers[0].kill().await;
        let fate = fate_of(asking).await;
        let expected = match stage {
            Stage::BeforeHead => Fate::Answered(StatusCode::SERVICE_UNAVAILABLE),
            Stage::AfterHead | Stage::MidBody => Fate::Cut,
        };
        assert_eq!(fate, expected, "{stage:?}");
        assert_eq!(world.arrivals.of("/stop/post"), 1, "{stage:?}");
        world.servers[0].restart().await;
        world.is_served().await;
    }
}

#[tokio::test]
async fn what_may_be_sent_twice_goes_elsewhere_and_a_post_does_not() {
    let mut world = World::new(Stage::BeforeHead, 2).await;
    let (get, post) = (world.stopped(Method::GET, "get").await, world.stopped(Method::POST, "post").await);
    // Whichever they are at: both are killed, one after the other.
    world.servers[0].kill().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.servers[1].kill().await;
    assert_eq!(fate_of(post).await, Fate::Answered(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(fate_of(get).await, Fate::Answered(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(world.arrivals.of("/stop/post"), 1);
    assert!((1..=2).contains(&world.arrivals.of("/stop/get")), "{}", world.arrivals.of("/stop/get"));
}

#[tokio::test]
async fn a_callers_sidecar_is_killed_at_every_stage() {
    for stage in STAGES {
        let mut world = World::new(stage, 1).await;
        let asking = world.stopped(Method::POST, "post").await;
        world.caller.kill().await;
        assert_eq!(fate_of(asking).await, Fate::Cut, "{stage:?}");
        assert_eq!(world.arrivals.of("/stop/post"), 1, "{stage:?}");
        world.caller.restart().await;
        world.caller.finds("web", 1).await;
        world.is_served().await;
    }
}

#[tokio::test]
async fn a_workload_is_killed_at_every_stage() {
    for stage in STAGES {
        let mut world = World::new(stage, 1).await;
        let asking = world.stopped(Method::POST, "post").await;
        // Its connections end with it.
        world.workloads.clear();
        let fate = fate_of(asking).await;
        let expected = match stage {
            Stage::BeforeHead => Fate::Answered(StatusCode::SERVICE_UNAVAILABLE),
            Stage::AfterHead | Stage::MidBody => Fate::Cut,
        };
        assert_eq!((fate, world.arrivals.of("/stop/post")), (expected, 1), "{stage:?}");
    }
}

/// Between two requests of one kept connection, and of its sidecar's. One may find out; no second one does, whichever
/// of the callers' connections to that node it would have gone by.
#[tokio::test]
async fn a_callees_sidecar_is_killed_between_two_requests() {
    let mut world = World::new(Stage::BeforeHead, 2).await;
    let mut connection = HttpConnection::open(world.caller.outbound("web")).await;
    for turn in 0..20 {
        let path = format!("/before/{turn}");
        let reply = connection.send(request(Method::POST, "web.mesh", &path, "body")).await;
        assert_eq!(reply.text(), "answered");
    }
    world.servers[0].kill().await;
    let mut failed = 0;
    for turn in 0..20 {
        let (path, began) = (format!("/after/{turn}"), Clock::System.now());
        let reply = connection.send(request(Method::POST, "web.mesh", &path, "body")).await;
        assert!((Clock::System.now() - began) < PROMPT, "{:?}", (Clock::System.now() - began));
        let arrived = world.arrivals.of(&path);
        match reply.status() {
            StatusCode::OK => assert_eq!(arrived, 1, "{path}"),
            status => {
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}: {}", reply.text());
                assert!(arrived <= 1, "{path} arrived {arrived} times");
                failed += 1;
            }
        }
    }
    assert!(failed <= 1, "{failed} requests met the dead node");
    // Chance may have led all of them to the other node: then gossip finds out.
    let is_noticed = async || {
        let route = world.caller.admin().get("/v1/routes/web").await.json;
        let candidates = route["candidates"].as_array().cloned().unwrap_or_default();
        let well = candidates.iter().filter(|one| one["trouble"].is_null());
        well.map(|one| one["node"].as_str().unwrap_or_default().to_owned()).eq(["server-1"]).then_some(())
    };
    eventually("the death to be noticed", is_noticed).await;
    let path = "/after/all";
    let reply = connection.send(request(Method::POST, "web.mesh", path, "body")).await;
    assert_eq!((reply.text().as_str(), world.arrivals.of(path)), ("answered", 1), "it goes to the other");
}

/// Nothing is under way when its sidecar dies, so nothing fails: its silence alone speaks against it, and still does
/// when the silent connection has been given up.
#[tokio::test]
async fn a_callee_that_was_silent_to_the_end_gets_no_request_before_it_is_reached() {
    let mut world = World::new(Stage::BeforeHead, 1).await;
    let mut connection = HttpConnection::open(world.caller.outbound("web")).await;
    let reply = connection.send(request(Method::GET, "web.mesh", "/before", "")).await;
    assert_eq!(reply.text(), "answered");
    world.servers[0].kill().await;
    let candidate = async || {
        let route = world.caller.admin().get("/v1/routes/web").await.json;
        route["candidates"][0].clone()
    };
    let is_silent = async || candidate().await["trouble"].as_str() == Some("its node has fallen silent");
    eventually("silence", async || is_silent().await.then_some(())).await;
    eventually("the end of its connection", async || (!is_silent().await).then_some(())).await;
    let before = candidate().await;
    assert_eq!(
        (&before["node"], &before["requests"]),
        (&"server-0".into(), &1.into()),
        "its lease is not over"
    );
    let reply = connection.send(request(Method::GET, "web.mesh", "/after", "")).await;
    assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_ne!(candidate().await["requests"], 2, "the request waited for a dial that failed");
    world.servers[0].restart().await;
    world.is_served().await;
}

/// One that waits for bytes, and sends nothing.
#[tokio::test]
async fn a_tcp_connection_is_reset_with_its_callee() {
    let mesh = Mesh::new();
    let workload = Tcp::echo(mesh.ip()).await;
    let mut server = mesh.node("server").serves_tcp("db", workload.address()).start().await;
    let caller = mesh.node("caller").calls("db").start().await;
    caller.finds("db", 1).await;
    let mut client = TcpStream::connect(caller.outbound("db")).await.expect("the port accepts");
    let mut heard = [0; 4];
    client.write_all(b"ping").await.expect("written");
    within("an echo", client.read_exact(&mut heard)).await.expect("an echo");
    server.kill().await;
    let killed = Clock::System.now();
    let end = within("the end", client.read(&mut heard)).await;
    assert!(end.is_err(), "no orderly end: {end:?}");
    assert!((Clock::System.now() - killed) < CUT_OFF, "{:?}", (Clock::System.now() - killed));
}

/// A process that stands still is not dead: its port is still there, and what waits for it goes on.
#[tokio::test]
async fn a_callees_sidecar_that_is_paused_loses_nothing() {
    let mesh = Mesh::new();
    let workload = Tcp::echo(mesh.ip()).await;
    let server = mesh.node("server").serves_tcp("db", workload.address()).start().await;
    let caller = mesh.node("caller").calls("db").start().await;
    caller.finds("db", 1).await;
    let mut client = TcpStream::connect(caller.outbound("db")).await.expect("the port accepts");
    for _ in 0..2 {
        let mut heard = [0; 4];
        client.write_all(b"ping").await.expect("written");
        within("an echo", client.read_exact(&mut heard)).await.expect("an echo");
        kill_process(server.pid(), Signal::STOP).expect("a signal");
        client.write_all(b"ping").await.expect("written");
        tokio::time::sleep(Duration::from_secs(4)).await;
        kill_process(server.pid(), Signal::CONT).expect("a signal");
        within("a late echo", client.read_exact(&mut heard)).await.expect("an echo");
    }
}

/// A body on its way up when the callee's sidecar dies.
#[tokio::test]
async fn an_upload_is_cut_off_with_its_callee() {
    let mut world = World::new(Stage::BeforeHead, 1).await;
    let mut client = TcpStream::connect(world.caller.outbound("web")).await.expect("the port accepts");
    let head = "POST /upload HTTP/1.1\r\nhost: web.mesh\r\ncontent-length: 1000000\r\n\r\nhalf";
    client.write_all(head.as_bytes()).await.expect("written");
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.servers[0].kill().await;
    let (mut heard, began) = (Vec::new(), Clock::System.now());
    let _ = within("the end", async {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = client.read(&mut buffer).await {
            heard.extend_from_slice(&buffer[..read]);
            if heard.windows(4).any(|end| end == b"\r\n\r\n") {
                break;
            }
        }
    })
    .await;
    let heard = String::from_utf8_lossy(&heard);
    assert!(heard.is_empty() || heard.starts_with("HTTP/1.1 503 "), "{heard}");
    assert!((Clock::System.now() - began) < PROMPT, "{:?}", (Clock::System.now() - began));
}
