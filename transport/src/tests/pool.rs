//! One connection per peer, whoever dialled.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use starling_gossip::identity::SpiffeId;

use super::harness::{Ca, Node, Relay, eventually, tcp, within};
use crate::admission::Occupancy;
use crate::connection::Connection;
use crate::dial::ConnectError;
use crate::limits::{DIAL_TIMEOUT, LOSER_LINGER};
use crate::pool::Target;
use crate::verify::Expected;

#[tokio::test]
async fn lookups_join_one_dial() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let mut lookups = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let pool = web.endpoint.pool().clone();
        let target = Target { address: payments.address(), expected: Expected::Exactly(payments.id()) };
        lookups.spawn(async move { pool.connect(&target).await });
    }
    let connections = within("twenty lookups", lookups.join_all()).await;
    let first = connections[0].as_ref().expect("connected");
    assert!(connections.iter().all(|one| one.as_ref().is_ok_and(|one| one.is_same(first))));
    assert_eq!((web.connections(), payments.connections()), (1, 1));
}

#[tokio::test]
async fn a_peer_that_dialled_us_is_not_dialled_again() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    web.dial(&payments).await.expect("connected");
    eventually("it is entered", || payments.endpoint.pool().connected(web.address()).is_some()).await;
    let back = payments.dial(&web).await.expect("connected");
    assert_eq!(payments.connections(), 1);
    let _stream = back.open(&tcp()).await.expect("a stream");
    assert_eq!(web.incoming().await.peer.id, payments.id());
    assert!(payments.endpoint.pool().connected("127.0.0.1:9".parse().expect("an address")).is_none());
}

#[tokio::test]
async fn what_peers_take_is_counted_until_it_ends() {
    let ca = Ca::new();
    let listen = "[::1]:0";
    let web = Node::bind(listen, ca.credentials("web"));
    let replicas = [0, 1].map(|_| Node::bind(listen, ca.credentials("payments")));
    let other = Node::bind(listen, ca.credentials("other"));
    let payments = replicas[0].id();
    let occupancy =
        || web.endpoint.pool().occupancy("::2".parse().expect("another of this /64"), Some(&payments));
    for replica in &replicas {
        replica.dial(&web).await.expect("connected");
    }
    web.dial(&other).await.expect("connected");
    assert_eq!(occupancy(), Occupancy { connections: 3, accepted: 2, from_source: 3, of_identity: 2 });
    assert_eq!(
        other
            .endpoint
            .pool()
            .occupancy("::1:0:0:0:1".parse().expect("elsewhere"), Some(&web.id()))
            .from_source,
        0
    );
    for replica in &replicas {
        replica.endpoint.close(Duration::ZERO).await;
    }
    eventually("their places are free", || {
        occupancy() == Occupancy { connections: 1, accepted: 0, from_source: 1, of_identity: 0 }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_dial_at_once_end_with_one_connection() {
    let ca = Arc::new(Ca::new());
    let mut doubles = 0;
    for _ in 0..3 {
        let mut rounds = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let ca = ca.clone();
            rounds.spawn(async move { dial_at_once(&ca.node("a"), &ca.node("b")).await });
        }
        doubles += rounds.join_all().await.into_iter().filter(|double| *double).count();
    }
    assert!(doubles > 0, "the test never produced what it is about");
}

/// A machine busy with other tests may take longer over a handshake than a dial may.
async fn dial_until_connected(from: &Node, to: &Node) -> Connection {
    within("a connection", async {
        loop {
            match from.dial(to).await {
                Ok(connection) => return connection,
                Err(ConnectError::TimedOut { .. } | ConnectError::BackingOff { .. }) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(other) => panic!("{other}"),
            }
        }
    })
    .await
}

/// Says whether there were two connections for a while.
async fn dial_at_once(a: &Node, b: &Node) -> bool {
    let (to_b, to_a) = tokio::join!(dial_until_connected(a, b), dial_until_connected(b, a));
    // Streams on either, even the loser, live on.
    let mut from_a = to_b.open(&tcp()).await.expect("a stream");
    let mut from_b = to_a.open(&tcp()).await.expect("a stream");
    let mut at_b = b.incoming().await.stream.accept().await.expect("there");
    let mut at_a = a.incoming().await.stream.accept().await.expect("there");
    within("answers", from_a.accepted()).await.expect("accepted");
    within("answers", from_b.accepted()).await.expect("accepted");
    let winner = |node: &Node, peer: &Node| {
        node.endpoint.pool().connected(peer.address()).expect("one at least").precedence()
    };
    eventually("both use the same one", || winner(a, b) == winner(b, a)).await;
    let double = a.connections() == 2;

    tokio::time::sleep(LOSER_LINGER + Duration::from_millis(500)).await;
    for (near, far) in [(&mut from_a, &mut at_b), (&mut from_b, &mut at_a)] {
        near.write_all(b"x").await.expect("not cut");
        within("the byte", far.read_exact(&mut [0; 1])).await.expect("not cut");
    }
    drop((from_a, from_b, at_a, at_b));
    eventually("one is left", || a.connections() == 1 && b.connections() == 1).await;
    assert_eq!(winner(a, b), winner(b, a));
    double
}

#[tokio::test]
async fn a_failed_dial_is_not_repeated_at_once() {
    let ca = Ca::new();
    let (web, impostor) = (ca.node("web"), ca.node("impostor"));
    let payments: SpiffeId = "spiffe://acme/svc/payments".parse().expect("an identity");
    let mut changes = web.endpoint.pool().changes();
    let first = web.dial_at(impostor.address(), payments.clone()).await.expect_err("refused");
    assert!(matches!(first, ConnectError::RefusedIdentity { .. }), "{first}");
    let again = web.dial_at(impostor.address(), payments.clone()).await.expect_err("refused");
    match &again {
        ConnectError::BackingOff { retry_in, failures: 1, last, .. } => {
            assert!(*retry_in <= Duration::from_millis(100));
            assert_eq!(**last, first);
        }
        other => panic!("{other}"),
    }
    within("news", changes.changed()).await.expect("the pool lives");
    let seen = web.endpoint.pool().peers();
    assert!(seen.iter().any(|peer| peer.identity == payments && !peer.connected), "{seen:?}");
    within("another attempt", async {
        while matches!(
            web.dial_at(impostor.address(), payments.clone()).await,
            Err(ConnectError::BackingOff { failures: 1, .. })
        ) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_last_failure_of_an_address_is_told_until_somebody_is_there() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let pool = web.endpoint.pool();
    assert_eq!(pool.last_failure(payments.address()), None);
    let mut last = None;
    for expected in ["spiffe://acme/svc/z", "spiffe://acme/svc/a"] {
        let wanted = expected.parse().expect("an identity");
        let error = web.dial_at(payments.address(), wanted).await.expect_err("somebody else");
        assert!(matches!(error, ConnectError::RefusedIdentity { .. }), "{error}");
        last = Some(error);
        assert_eq!(pool.last_failure(payments.address()), last);
    }
    let again = web.dial_at(payments.address(), "spiffe://acme/svc/a".parse().expect("one")).await;
    assert!(again.is_err());
    assert_eq!(pool.last_failure(payments.address()), last, "a pause is no failure of its own");
    assert_eq!(pool.last_failure(web.address()), None);

    let relay = Relay::before(payments.address()).await;
    relay.cut(true);
    let address = relay.address;
    web.seed(address).await.expect_err("nobody");
    let timed_out = Some(ConnectError::TimedOut { address, patience: DIAL_TIMEOUT });
    assert_eq!(pool.last_failure(address), timed_out);
    let mapped = format!("[::ffff:127.0.0.1]:{}", address.port());
    assert_eq!(pool.last_failure(mapped.parse().expect("the same")), timed_out);
    relay.cut(false);
    within("a connection", async {
        while web.seed(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(pool.last_failure(address), None);
}

#[tokio::test]
async fn nobody_there_times_out() {
    let ca = Ca::new();
    let web = ca.node("web");
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let error = web.seed(silent.local_addr().expect("an address")).await.expect_err("nobody");
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error}");
}
