//! Peers that go silent, come back, are restarted, or stop in good order.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::connection::Connection;
use crate::pool::Target;
use crate::silence::Doubt;
use crate::stream::MeshStream;
use crate::verify::Expected;

use super::harness::{Ca, Node, Relay, eventually, tcp, within};

/// A call of `web`'s at `payments`, accepted, over a path that can be cut.
async fn call_by_relay(web: &Node, payments: &Node) -> (Relay, Connection, MeshStream, MeshStream) {
    let relay = Relay::before(payments.address()).await;
    let connection = web.dial_at(relay.address, payments.id()).await.expect("connected");
    let mut caller = connection.open(&tcp()).await.expect("a stream");
    let callee = payments.incoming().await.stream.accept().await.expect("there");
    within("the answer", caller.accepted()).await.expect("accepted");
    (relay, connection, caller, callee)
}

#[tokio::test]
async fn silence_is_noticed_soon_and_ends_when_packets_flow() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let (relay, connection, mut caller, mut callee) = call_by_relay(&web, &payments).await;

    relay.cut(true);
    caller.write_all(b"anybody there?").await.expect("queued");
    let cut_at = Instant::now();
    within("silence", connection.unresponsive()).await;
    let noticed = cut_at.elapsed();
    assert!(noticed >= Duration::from_millis(250) && noticed < Duration::from_millis(1_000), "{noticed:?}");
    assert!(!connection.is_usable() && !connection.is_closed());
    let seen = web.endpoint.pool().peers();
    assert!(seen.iter().any(|peer| peer.connected && !peer.responsive), "{seen:?}");

    relay.cut(false);
    eventually("the peer answers again", || connection.is_usable()).await;
    let mut bytes = [0; 14];
    within("what was written", callee.read_exact(&mut bytes)).await.expect("nothing was lost");
}

#[tokio::test]
async fn who_waits_for_an_answer_learns_of_the_silence() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let (relay, connection, caller, _callee) = call_by_relay(&web, &payments).await;
    let (_send, mut recv) = caller.into_split();
    recv.ring_when_unresponsive();
    let watched = connection.clone();
    let reading =
        tokio::spawn(poll_fn(move |context| match recv.poll_chunks(context, &mut [Bytes::new()]) {
            Poll::Pending if watched.is_responsive() => Poll::Pending,
            _ => Poll::Ready(()),
        }));
    // Everything is acknowledged; nothing is under way but the wait.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(connection.is_usable() && !reading.is_finished());
    relay.cut(true);
    let cut_at = Instant::now();
    within("silence", connection.unresponsive()).await;
    within("the word of it to whoever reads", reading).await.expect("no panic");
    assert!(cut_at.elapsed() < Duration::from_millis(1_500), "{:?}", cut_at.elapsed());
}

#[tokio::test]
async fn a_peer_that_stays_silent_is_gone_and_one_that_is_back_in_time_is_not() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let (relay, connection, mut caller, mut callee) = call_by_relay(&web, &payments).await;

    relay.cut(true);
    caller.write_all(b"there?").await.expect("queued");
    // QUIC repeats at intervals that double, so that this may be eight seconds of silence.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!connection.is_usable() && !connection.is_closed());
    relay.cut(false);
    let mut bytes = [0; 6];
    within("what was written", callee.read_exact(&mut bytes)).await.expect("nothing was lost");
    eventually("the peer answers again", || connection.is_usable()).await;

    relay.cut(true);
    let cut_at = Instant::now();
    let end = tokio::time::timeout(Duration::from_secs(25), caller.read(&mut bytes)).await.expect("an end");
    assert!(end.is_err(), "no orderly end: {end:?}");
    let took = cut_at.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(20)).contains(&took), "{took:?}");
    assert!(connection.is_given_up());
}

#[tokio::test]
async fn an_idle_connection_is_not_watched() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let connection = web.dial(&payments).await.expect("connected");
    eventually("the handshake's last packets are through", || !connection.is_busy()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = connection.quinn().stats().udp_tx.datagrams;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(connection.quinn().stats().udp_tx.datagrams, before);
}

#[tokio::test]
async fn a_restarted_peer_is_noticed_at_once() {
    let ca = Ca::new();
    let web = ca.node("web");
    let credentials = ca.credentials("payments");
    let (address, id) = (free_port().await, credentials.id().clone());
    // A process of its own, as far as sockets go: dropping its runtime closes nothing politely.
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let process = process.expect("a runtime");
    let first = process.block_on_elsewhere(address.clone(), credentials.clone()).await;
    let connection = web.dial_at(first, id.clone()).await.expect("connected");
    process.shutdown_background();

    let second = within("the port is free again", async {
        loop {
            let listen = address.parse().expect("an address");
            let rng = rand::SeedableRng::seed_from_u64(2);
            match crate::endpoint::Endpoint::bind(
                listen,
                credentials.clone(),
                crate::limits::Windows::within(None),
                rng,
            ) {
                Ok(bound) => return bound,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await;
    assert!(!connection.is_closed(), "nobody said goodbye");
    let asked = Instant::now();
    let _stream = connection.open(&tcp()).await;
    let why = within("the reset", connection.closed()).await;
    assert!(asked.elapsed() < Duration::from_millis(1_000), "{:?}: {why}", asked.elapsed());
    assert!(why.contains("reset"), "{why}");
    assert!(web.dial_at(second.0.local_addr(), id).await.is_ok());
}

/// Both ends dialled at once. Silence of one connection speaks against the other, which is to the same process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_peer_gets_nothing_on_its_other_connection() {
    let ca = Ca::new();
    let (web, process) = loop {
        let web = ca.node("web");
        if let Some(process) = doubly_connected(&ca, &web).await {
            break (web, process);
        }
    };
    let (peer, runtime) = process;
    let pool = web.endpoint.pool();
    let first = within("a connection", pool.connect(&peer)).await.expect("connected");
    // It is in use while both stand.
    first.probe();
    first.touch();
    tokio::time::sleep(Duration::from_millis(100)).await;
    runtime.shutdown_background();
    let _stream = first.open(&tcp()).await.expect("written, and no more");
    within("silence", first.unresponsive()).await;
    eventually("doubt", || pool.established(&peer).is_none()).await;
    let second = within("an end of the dial", pool.connect(&peer)).await;
    assert!(second.is_err(), "the other one was not asked whether it lives: {second:?}");
}

/// Another connection of a peer that lives is in doubt until it answers, and what is under way there goes on.
#[tokio::test]
async fn doubt_ends_with_an_answer() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let (relay, connection, mut caller, mut callee) = call_by_relay(&web, &payments).await;
    let last_heard = Instant::now();
    tokio::time::sleep(Duration::from_millis(100)).await;
    relay.cut(true);
    connection.doubt(Doubt { last_heard, unanswered_since: Instant::now() });
    eventually("doubt", || !connection.is_usable()).await;
    assert!(connection.is_responsive());
    relay.cut(false);
    eventually("an answer", || connection.is_usable()).await;
    caller.write_all(b"x").await.expect("not cut");
    within("the byte", callee.read_exact(&mut [0; 1])).await.expect("not cut");
}

/// A peer in a process of its own, as far as sockets go, if it and `web` have dialled each other at once.
async fn doubly_connected(ca: &Ca, web: &Node) -> Option<(Target, tokio::runtime::Runtime)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let back = Target { address: web.address(), expected: Expected::Exactly(web.id()) };
    let credentials = ca.credentials("payments");
    let (tell, told) = tokio::sync::oneshot::channel();
    runtime.spawn(async move {
        let node = Node::bind("127.0.0.1:0", credentials);
        let _ = tell.send((node.address(), node.id()));
        let _connection = node.endpoint.pool().connect(&back).await;
        std::future::pending::<()>().await;
    });
    let (address, id) = told.await.expect("bound");
    let peer = Target { address, expected: Expected::Exactly(id) };
    let _ = within("a dial's end", web.endpoint.pool().connect(&peer)).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    if web.connections() == 2 {
        return Some((peer, runtime));
    }
    runtime.shutdown_background();
    None
}

#[tokio::test]
async fn closing_waits_for_what_was_written() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let connection = web.dial(&payments).await.expect("connected");
    let mut caller = connection.open(&tcp()).await.expect("a stream");
    let mut callee = payments.incoming().await.stream.accept().await.expect("there");
    caller.accepted().await.expect("accepted");
    let reader = tokio::spawn(async move {
        let mut all = Vec::new();
        callee.read_to_end(&mut all).await.map(|_| all.len())
    });
    caller.write_all(&vec![1; 1_000_000]).await.expect("written");
    caller.shutdown().await.expect("ended");
    drop(caller);
    within("closing", web.endpoint.close(Duration::from_secs(10))).await;
    assert_eq!(within("the end", reader).await.expect("no panic").expect("a clean end"), 1_000_000);
    eventually("the peer knows", || payments.connections() == 0).await;
    assert!(web.dial(&payments).await.is_err());
}

async fn free_port() -> String {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    socket.local_addr().expect("an address").to_string()
}

trait Elsewhere {
    async fn block_on_elsewhere(
        &self,
        listen: String,
        credentials: crate::credentials::Credentials,
    ) -> std::net::SocketAddr;
}

impl Elsewhere for tokio::runtime::Runtime {
    /// Runs a node in this runtime, for as long as the runtime lives.
    async fn block_on_elsewhere(
        &self,
        listen: String,
        credentials: crate::credentials::Credentials,
    ) -> std::net::SocketAddr {
        let (tell, told) = tokio::sync::oneshot::channel();
        self.spawn(async move {
            let node = Node::bind(&listen, credentials);
            let _ = tell.send(node.address());
            std::future::pending::<()>().await;
            drop(node);
        });
        told.await.expect("bound")
    }
}
