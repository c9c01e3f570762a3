//! A changed configuration: taken over whole while work flows, or not at all.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use starling_tests::workload::Http;
use starling_tests::{HttpConnection, Mesh, Node, eventually, get, request, starling, within};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A hundred a second.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(10);

/// Requests that flow until they are asked how many there were; each must be answered with 200.
struct Flow {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Flow {
    fn start(proxy: SocketAddr, host: &'static str) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopping, counted) = (stop.clone(), done.clone());
        let task = tokio::spawn(async move {
            let mut connection = HttpConnection::open(proxy).await;
            let mut beats = tokio::time::interval(BETWEEN_REQUESTS);
            while !stopping.load(Ordering::Relaxed) {
                beats.tick().await;
                let reply = connection.send(request(Method::POST, host, "/", "x")).await;
                assert_eq!(reply.status(), 200, "{}", reply.text());
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, done, task }
    }

    /// Waits for `count` more.
    async fn goes_on(&self, count: usize) {
        let end = self.done.load(Ordering::Relaxed) + count;
        eventually("requests", async || {
            assert!(!self.task.is_finished(), "a request failed");
            (self.done.load(Ordering::Relaxed) >= end).then_some(())
        })
        .await;
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        within("the last request", self.task).await.expect("no request failed");
        self.done.load(Ordering::Relaxed)
    }
}

fn config(node: &Node) -> String {
    fs::read_to_string(node.config()).expect("a configuration")
}

fn service(id: &str, address: SocketAddr) -> String {
    format!("\n[[service]]\nid = {id:?}\nname = \"web\"\naddress = \"{address}\"\n")
}

fn outbound(service: &str, listen: SocketAddr) -> String {
    format!("\n[[outbound]]\nservice = {service:?}\nlisten = \"{listen}\"\n")
}

async fn is_stale(node: &Node) -> bool {
    let metrics = node.admin().get("/metrics").await.text;
    metrics.lines().any(|line| line == "starling_config_stale 1")
}

async fn reload(node: &Node) -> serde_json::Value {
    node.admin().ask_by_socket(&node.socket(), "POST", "/v1/reload").await.json
}

async fn refuses(address: SocketAddr) -> bool {
    TcpStream::connect(address).await.is_err()
}

#[tokio::test]
async fn services_and_outbounds_come_and_go_while_requests_flow() {
    let mesh = Mesh::new();
    let (one, two) = (Http::start(mesh.ip(), "one").await, Http::start(mesh.ip(), "two").await);
    let server = mesh.node("server").serves("web", one.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let flow = Flow::start(caller.http_proxy(), "web.mesh");
    flow.goes_on(50).await;

    let before = (config(&server), config(&caller));
    server.configure(&format!("{}{}", before.0, service("web-2", two.address())));
    server.hang_up();
    let port = mesh.free_address();
    caller.configure(&format!("{}{}", before.1, outbound("web", port)));
    caller.hang_up();
    caller.finds("web", 2).await;
    eventually("both to answer at the new port", async || {
        if refuses(port).await {
            return None;
        }
        let mut names = Vec::new();
        for _ in 0..8 {
            names.push(get(port, "web", "/").await.text());
        }
        (names.contains(&"one".to_owned()) && names.contains(&"two".to_owned())).then_some(())
    })
    .await;
    flow.goes_on(50).await;

    // The first instance goes; nobody notices.
    let only_two = before.0.replace(&one.address().to_string(), &two.address().to_string());
    server.configure(&only_two.replace("name = \"web\"\n", "name = \"web\"\nid = \"web-2\"\n"));
    server.hang_up();
    caller.finds("web", 1).await;
    flow.goes_on(50).await;
    assert_eq!(get(port, "web", "/").await.text(), "two");

    // The port goes; a connection that is open stays.
    let mut open = HttpConnection::open(port).await;
    assert_eq!(open.send(request(Method::GET, "web", "/", "")).await.status(), 200);
    caller.configure(&before.1);
    caller.hang_up();
    eventually("the port to close", async || refuses(port).await.then_some(())).await;
    assert_eq!(open.send(request(Method::GET, "web", "/", "")).await.status(), 200);
    assert!(!is_stale(&caller).await && !is_stale(&server).await);
    assert!(flow.end().await >= 150);
}

#[tokio::test]
async fn a_wrong_file_changes_nothing_and_every_mistake_is_logged() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let right = config(&server);
    // Without a word to the node: it looks by itself.
    server.configure(&format!("{}\n[nod]\n[limits]\nattempts_max = 99\n", right.replace("web", "w b")));
    server.logs("not reloaded").await;
    let log = server.log();
    for told in ["did you mean \\\"node\\\"?", "99 is out of range", "w b", "starling.toml:"] {
        assert!(log.contains(told), "{told}\nis not in\n{log}");
    }
    assert!(is_stale(&server).await);
    let answer = server.admin().ask_by_socket(&server.socket(), "POST", "/v1/reload").await;
    assert_eq!((answer.status.as_u16(), &answer.json["ok"]), (422, &false.into()));
    assert_eq!(answer.json["mistakes"].as_array().map(Vec::len), Some(3), "{}", answer.text);
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), 200, "it goes on");

    server.configure(&right);
    eventually("the file to be right again", async || (!is_stale(&server).await).then_some(())).await;
}

#[tokio::test]
async fn a_port_that_is_taken_lets_nothing_be_applied_until_it_is_free() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let node = mesh.node("node").serves("web", workload.address()).start().await;
    node.finds("web", 1).await;
    let (free, taken) = (mesh.free_address(), mesh.free_address());
    let holder = TcpListener::bind(taken).await.expect("a port");
    let next = config(&node) + &outbound("web", free) + &outbound("web", taken);
    node.configure(&format!("{next}{}", service("web-2", workload.address())));
    let answer = node.admin().ask_by_socket(&node.socket(), "POST", "/v1/reload").await;
    assert_eq!((answer.status.as_u16(), &answer.json["ok"]), (409, &false.into()));
    let error = answer.json["error"].as_str().unwrap_or_default();
    assert!(error.contains("outbound[1].listen") && error.contains(&taken.to_string()), "{error}");
    assert!(refuses(free).await, "the free one is not bound either");
    let services = node.admin().get("/v1/services/web").await.json;
    assert_eq!(services["instances"].as_array().map(Vec::len), Some(1));
    assert!(is_stale(&node).await);

    drop(holder);
    node.finds("web", 2).await;
    assert_eq!(get(taken, "web", "/").await.status(), 200);
    assert_eq!(get(free, "web", "/").await.status(), 200);
    assert!(!is_stale(&node).await);

    // A wider address on the same port cannot be had before the narrow one is given up.
    let anywhere = SocketAddr::from(([0, 0, 0, 0], taken.port()));
    node.configure(&config(&node).replace(&taken.to_string(), &anywhere.to_string()));
    let error = reload(&node).await["error"].to_string();
    assert!(error.contains(&format!("this node itself listens on {taken}")), "{error}");
    assert_eq!(get(taken, "web", "/").await.status(), 200);
}

#[tokio::test]
async fn what_needs_a_restart_is_told_and_the_rest_is_applied() {
    let mesh = Mesh::new();
    let node = mesh.node("before").start().await;
    let port = mesh.free_address();
    let next = config(&node).replace("name = \"before\"", "name = \"after\"");
    node.configure(&(next + &outbound("web", port)));
    let answer = reload(&node).await;
    assert_eq!(
        (&answer["ok"], &answer["changes"][0]),
        (&true.into(), &format!("outbound {port}: new").into())
    );
    let expected = serde_json::json!([{ "key": "node.name", "running": "before", "file": "after" }]);
    assert_eq!(answer["needs_restart"], expected);
    node.logs("needs a restart: node.name (before -> after)").await;
    assert!(!refuses(port).await, "the rest is applied");
    assert!(is_stale(&node).await);
    assert_eq!(node.admin().get("/v1/node").await.json["name"], "before");

    let socket = format!("unix:{}", node.socket().display());
    let told = starling(["reload", "--admin", &socket]).await;
    assert_eq!(told.code, 0, "{told:?}");
    assert!(told.out.contains("needs a restart: node.name (before -> after)"), "{}", told.out);
    let refused = starling(["reload", "--admin", &node.admin().address().to_string()]).await;
    assert_eq!(refused.code, 1, "reading is open, acting is not: {refused:?}");
}

/// A ConfigMap is a directory of links through `..data`, which is swapped as a whole.
#[tokio::test]
async fn a_config_map_that_is_swapped_is_noticed() {
    let mesh = Mesh::new();
    let node = mesh.node("node").start().await;
    let (directory, first) = (node.directory().to_owned(), config(&node));
    let publish = |name: &str, toml: &str| {
        fs::create_dir(directory.join(name)).expect("a directory");
        fs::write(directory.join(name).join("starling.toml"), toml).expect("a file");
        symlink(name, directory.join("..next")).expect("a link");
        fs::rename(directory.join("..next"), directory.join("..data")).expect("swapped");
    };
    publish("..one", &first);
    symlink(Path::new("..data/starling.toml"), directory.join("link")).expect("a link");
    fs::rename(directory.join("link"), node.config()).expect("in place");
    let port = mesh.free_address();
    publish("..two", &(first.clone() + &outbound("web", port)));
    eventually("the new port", async || (!refuses(port).await).then_some(())).await;
    publish("..three", &first);
    eventually("the port to close", async || refuses(port).await.then_some(())).await;
}

#[tokio::test]
async fn the_log_level_and_the_limits_change_while_it_runs() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let node = mesh.node("node").serves("web", workload.address()).start().await;
    node.finds("web", 1).await;
    let quiet = config(&node).replace("info,starling=debug,starling_transport=debug", "error");
    node.configure(&(quiet + "\n[limits]\nrequests_in_flight_max = 1\n"));
    let answer = reload(&node).await;
    let changes = serde_json::json!(["log.level: changed", "limits.requests_in_flight_max: changed"]);
    assert_eq!(answer["changes"], changes);
    assert!(!node.log().contains("configuration reloaded"), "it says only errors now");
    let proxy = node.http_proxy();
    let waiting = tokio::spawn(async move { get(proxy, "web.mesh", "/wait").await });
    eventually("one request under way", async || (workload.waiting() == 1).then_some(())).await;
    let refused = get(proxy, "web.mesh", "/").await;
    assert_eq!((refused.status().as_u16(), refused.header("x-starling-flags")), (503, "UO"));
    workload.release();
    assert_eq!(waiting.await.expect("no panic").status(), 200);
}

/// `--config <(generate)` is a pipe: nothing waits for it, and asking says why.
#[tokio::test]
async fn what_is_not_a_file_is_read_once() {
    let mesh = Mesh::new();
    let mut node = mesh.node("node").start().await;
    let toml = config(&node);
    node.terminate();
    assert!(node.ended().await.success());
    fs::remove_file(node.config()).expect("removed");
    let made = std::process::Command::new("mkfifo").arg(node.config()).status().expect("coreutils");
    assert!(made.success());
    let pipe = node.config();
    let writing = tokio::task::spawn_blocking(move || fs::write(pipe, toml));
    node.restart().await;
    within("the reader", writing).await.expect("no panic").expect("written");
    for _ in 0..2 {
        let error = reload(&node).await["error"].to_string();
        assert!(error.contains("restart the node"), "{error}");
    }
}
