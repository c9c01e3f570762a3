//! Peers with whom a node has nothing to do for a while.

use std::time::Duration;

use starling_gossip::link::{Delivery, Destination, Link as _};

use super::counters::Counters;
use super::gossip::link;
use super::harness::{Ca, Node, eventually, tcp, within};
use crate::dial::ConnectError;
use crate::limits::BACKOFF_MAX;
use crate::pool::Target;
use crate::supervise::close_code;
use crate::verify::Expected;

const SPAN: Duration = Duration::from_secs(60);

#[tokio::test]
async fn who_is_shunned_is_cut_off_both_ways_until_it_is_over() {
    let ca = Ca::new();
    let (mut a, mut b, mut c) = (ca.node("a"), ca.node("b"), ca.node("c"));
    let (link_a, link_b, link_c) = (link(&mut a), link(&mut b), link(&mut c));
    let metrics = Counters::here();
    let at_b = b.dial(&a).await.expect("connected");
    let mut call = at_b.open(&tcp()).await.expect("a stream");
    let _callee = a.incoming().await.stream.accept().await.expect("there");
    within("the answer", call.accepted()).await.expect("accepted");
    let to_a = Destination::Member { address: a.address(), identity: a.id() };
    let to_b = Destination::Member { address: b.address(), identity: b.id() };
    link_b.send(to_a.clone(), b"flood".to_vec(), Delivery::Once);
    eventually("it waits", || metrics.total("starling_gossip_messages_total", "inbound") == 1).await;

    link_a.shun(&b.id(), b.address(), SPAN);
    link_a.shun(&b.id(), b.address(), SPAN / 2);
    assert_eq!(metrics.total_of("starling_peers_shunned_total", &[]), 1, "once is enough");
    assert!(a.endpoint.pool().connected(b.address()).is_none(), "at once");
    within("the close", at_b.closed()).await;
    match at_b.quinn().close_reason() {
        Some(quinn::ConnectionError::ApplicationClosed(close)) => {
            assert_eq!(close.error_code, close_code::SHUNNED.into());
        }
        other => panic!("{other:?}"),
    }
    let error = b.dial(&a).await.expect_err("refused");
    assert!(matches!(error, ConnectError::RefusedByPeer { .. }), "{error}");
    assert!(error.to_string().contains("you sent more than you may"), "{error}");
    for error in [a.dial(&b).await, a.seed(b.address()).await].map(|dialled| dialled.expect_err("shunned")) {
        assert!(matches!(error, ConnectError::Shunned { retry_in, .. } if retry_in <= SPAN), "{error}");
    }
    assert!(metrics.total_of("starling_handshakes_total", &["inbound", "shunned"]) >= 1);
    assert_eq!(
        metrics.total_of("starling_handshakes_total", &["outbound", "shunned"]),
        0,
        "no packet was sent"
    );
    for delivery in [Delivery::Reliable, Delivery::Once] {
        link_a.send(to_b.clone(), b"hello".to_vec(), delivery);
    }
    let dropped = || metrics.total("starling_gossip_dropped_total", "shunned");
    eventually("neither goes", || dropped() == 2).await;
    link_c.send(to_a.clone(), b"calm".to_vec(), Delivery::Once);
    let received = within("a message", link_a.recv()).await.expect("open");
    assert_eq!((received.peer, received.message), (c.id(), b"calm".to_vec()));
    assert_eq!(dropped(), 3, "what had waited is not heard");

    tokio::time::pause();
    // A dial that failed is followed by a pause at `b` as well.
    tokio::time::sleep(SPAN + BACKOFF_MAX).await;
    link_b.send(to_a, b"sorry".to_vec(), Delivery::Once);
    assert_eq!(within("a message", link_a.recv()).await.expect("open").message, b"sorry");
    assert_eq!(dropped(), 3);
    assert!(a.dial(&b).await.is_ok());
}

#[tokio::test]
async fn shunning_concerns_one_identity_at_one_address() {
    let ca = Ca::new();
    let mut a = ca.node("a");
    let link_a = link(&mut a);
    let replicas = [0, 1].map(|_| Node::bind("127.0.0.1:0", ca.credentials("b")));
    let other = ca.node("other");
    for peer in [&replicas[0], &replicas[1], &other] {
        a.dial(peer).await.expect("connected");
    }
    link_a.shun(&other.id(), replicas[0].address(), SPAN);
    assert!(a.endpoint.pool().connected(replicas[0].address()).is_some(), "somebody else is there");
    link_a.shun(&replicas[0].id(), replicas[0].address(), SPAN);
    eventually("one is closed", || a.connections() == 2).await;
    assert!(a.dial(&replicas[1]).await.is_ok() && a.dial(&other).await.is_ok());
    assert!(replicas[1].dial(&a).await.is_ok() && other.dial(&a).await.is_ok());
    assert!(replicas[0].dial(&a).await.is_err() && a.dial(&replicas[0]).await.is_err());
}

#[tokio::test]
async fn who_is_shunned_while_it_is_dialled_is_not_connected() {
    let ca = Ca::new();
    let (mut a, b) = (ca.node("a"), ca.node("b"));
    let link_a = link(&mut a);
    let target = Target { address: b.address(), expected: Expected::Exactly(b.id()) };
    let dial = a.endpoint.pool().connect(&target);
    let (dialled, ()) =
        within("the dial", async { tokio::join!(dial, async { link_a.shun(&b.id(), b.address(), SPAN) }) })
            .await;
    let error = dialled.expect_err("shunned");
    assert!(matches!(error, ConnectError::Shunned { .. }), "{error}");
    eventually("nothing is left of it", || (a.connections(), b.connections()) == (0, 0)).await;
}
