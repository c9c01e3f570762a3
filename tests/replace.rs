//! A sidecar is replaced by its successor under load, and nobody's request fails.

use std::time::Duration;

use starling_tests::workload::Http;
use starling_tests::{Load, Mesh, Node, Outcome, get, within};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// Requests a second, half of them on connections of their own.
const RATE: u32 = 500;

/// Steady load before and after, so that what is lost to the replacement is seen.
const STEADY: Duration = Duration::from_secs(1);

/// How long a local program may have to wait: the drain's end, the successor's start, its way into
/// the mesh. Measured: under one second on an idle machine.
const SLOWEST: Duration = Duration::from_secs(10);

/// One load at a time: two would measure each other.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn replace(node: &mut Node) {
    node.terminate();
    assert_eq!(node.ended().await.code(), Some(0), "{}", node.log());
    node.restart().await;
}

fn check(what: &str, outcome: &Outcome, at_least: u32) {
    let Outcome { answered, failed, slowest } = outcome;
    println!("{what}: {answered} answered, {} failed, slowest {slowest:?}", failed.len());
    assert!(
        failed.is_empty(),
        "{} of {answered} failed: {:#?}",
        failed.len(),
        &failed[..failed.len().min(5)]
    );
    assert!(*answered >= at_least as usize, "{answered} is not the load that was meant");
    assert!(*slowest < SLOWEST, "{slowest:?}");
}

#[tokio::test]
async fn the_callers_sidecar_is_replaced_and_its_connections_wait_for_the_successor() {
    let _alone = ALONE.lock().await;
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let mut caller = mesh.node("caller").calls("web").is_activated().start().await;
    caller.finds("web", 1).await;
    let by_name = Load::start(caller.http_proxy(), "web.mesh", RATE / 2);
    let by_port = Load::start(caller.outbound("web"), "anything", RATE / 2);
    for _ in 0..2 {
        tokio::time::sleep(STEADY).await;
        replace(&mut caller).await;
    }
    tokio::time::sleep(STEADY).await;
    check("caller replaced twice, by name", &by_name.end().await, RATE);
    check("caller replaced twice, by port", &by_port.end().await, RATE);
    assert!(caller.socket().exists(), "a passed admin socket belongs to who passed it");
}

#[tokio::test]
async fn the_callees_sidecars_are_replaced_one_after_the_other() {
    let _alone = ALONE.lock().await;
    let mesh = Mesh::new();
    let (one, two) = (Http::start(mesh.ip(), "one").await, Http::start(mesh.ip(), "two").await);
    let mut first = mesh.node("first").serves("web", one.address()).start().await;
    let mut second = mesh.node("second").serves("web", two.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 2).await;
    let load = Load::start(caller.http_proxy(), "web.mesh", RATE);
    tokio::time::sleep(STEADY).await;
    for node in [&mut first, &mut second] {
        replace(node).await;
        caller.finds("web", 2).await;
    }
    tokio::time::sleep(STEADY).await;
    check("both callees replaced", &load.end().await, 2 * RATE);
}

#[tokio::test]
async fn a_passed_socket_that_is_not_wanted_refuses_and_can_be_wanted_again() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").calls("web").is_activated().start().await;
    caller.finds("web", 1).await;
    let port = caller.outbound("web");
    assert_eq!(get(port, "web", "/").await.text(), "web");

    let with = std::fs::read_to_string(caller.config()).expect("a configuration");
    let reload = async |toml: &str| {
        caller.configure(toml);
        caller.admin().ask_by_socket(&caller.socket(), "POST", "/v1/reload").await.json
    };
    let (start, _) = with.match_indices("[[outbound]]").next().expect("one");
    let end = with[start + 1..].find("\n[").map_or(with.len(), |length| start + 1 + length);
    let without = format!("{}{}", &with[..start], &with[end..]);
    assert_eq!(reload(&without).await["ok"], true);
    // The kernel still accepts; the reset may be there before this side has looked at its new connection.
    let told = within("an end", async { TcpStream::connect(port).await?.read(&mut [0; 1]).await }).await;
    let told = told.expect_err("nobody waits for nothing").kind();
    assert_eq!(told, std::io::ErrorKind::ConnectionReset, "reset, by whoever holds the socket");

    assert_eq!(reload(&with).await["ok"], true);
    assert_eq!(get(port, "web", "/").await.text(), "web");
}
