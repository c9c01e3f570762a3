//! The gossip core's link over real connections.

use starling_gossip::limits::MESSAGE_BYTES_MAX;
use starling_gossip::link::{Delivery, Destination, Link as _};

use super::counters::Counters;
use super::harness::{Ca, Relay, eventually, within};
use crate::gossip_link::GossipLink;
use crate::limits::GOSSIP_QUEUED_PER_PEER_MAX;

pub(super) fn link(node: &mut super::harness::Node) -> GossipLink {
    GossipLink::new(node.endpoint.pool().clone(), node.gossip.take().expect("taken once"))
}

#[tokio::test]
async fn messages_arrive_and_replies_need_no_dial() {
    let ca = Ca::new();
    let (mut a, mut b) = (ca.node("a"), ca.node("b"));
    let (link_a, link_b) = (link(&mut a), link(&mut b));
    let to_b = Destination::Member { address: b.address(), identity: b.id() };
    let large = vec![3; MESSAGE_BYTES_MAX];
    for message in [b"small".to_vec(), Vec::new(), large] {
        link_a.send(to_b.clone(), message.clone(), Delivery::Reliable);
        let received = within("a message", link_b.recv()).await.expect("open");
        assert_eq!((received.peer, received.from), (a.id(), a.address()));
        assert!(received.message == message);
        link_b.send(Destination::Connected(received.from), message.clone(), Delivery::Reliable);
        let reply = within("a reply", link_a.recv()).await.expect("open");
        assert!(reply.peer == b.id() && reply.message == message);
    }
    assert_eq!((a.connections(), b.connections()), (1, 1));
}

#[tokio::test]
async fn an_answer_to_nobody_does_not_dial() {
    let ca = Ca::new();
    let (mut a, b) = (ca.node("a"), ca.node("b"));
    let link_a = link(&mut a);
    let metrics = Counters::here();
    link_a.send(Destination::Connected(b.address()), b"hello".to_vec(), Delivery::Reliable);
    link_a.send(Destination::Connected(b.address()), vec![0; MESSAGE_BYTES_MAX + 1], Delivery::Reliable);
    let dropped = |reason| metrics.total("starling_gossip_dropped_total", reason);
    eventually("both are dropped", || dropped("not_connected") == 1 && dropped("oversized") == 1).await;
    assert_eq!((a.connections(), b.connections()), (0, 0));
}

#[tokio::test]
async fn a_full_queue_drops_the_newest() {
    let ca = Ca::new();
    let (mut a, mut b) = (ca.node("a"), ca.node("b"));
    let (link_a, link_b) = (link(&mut a), link(&mut b));
    let to_b = Destination::Seed(b.address());
    let metrics = Counters::here();
    // One runtime thread: nothing is sent before this task waits.
    for number in 0..GOSSIP_QUEUED_PER_PEER_MAX + 50 {
        link_a.send(to_b.clone(), number.to_string().into_bytes(), Delivery::Reliable);
    }
    let mut numbers = Vec::new();
    for _ in 0..GOSSIP_QUEUED_PER_PEER_MAX {
        let received = within("a message", link_b.recv()).await.expect("open");
        numbers.push(String::from_utf8(received.message).expect("text").parse::<usize>().expect("a number"));
    }
    numbers.sort_unstable();
    assert_eq!(metrics.total("starling_gossip_dropped_total", "send_queue_full"), 50);
    let sent = || metrics.total("starling_gossip_messages_total", "outbound");
    eventually("all are counted", || sent() == GOSSIP_QUEUED_PER_PEER_MAX as u64).await;
    assert!(numbers.iter().copied().eq(0..GOSSIP_QUEUED_PER_PEER_MAX), "the oldest are kept: {numbers:?}");
}

#[tokio::test]
async fn gossip_alone_notices_a_dead_peer() {
    let ca = Ca::new();
    let (mut a, b) = (ca.node("a"), ca.node("b"));
    let link_a = link(&mut a);
    let relay = Relay::before(b.address()).await;
    let to_b = Destination::Member { address: relay.address, identity: b.id() };
    link_a.send(to_b.clone(), b"one".to_vec(), Delivery::Reliable);
    let responsive = |a: &super::harness::Node| a.endpoint.pool().peers().iter().any(|peer| peer.responsive);
    for delivery in [Delivery::Reliable, Delivery::Once] {
        eventually("connected", || responsive(&a)).await;
        relay.cut(true);
        link_a.send(to_b.clone(), b"two".to_vec(), delivery);
        eventually("the peer is known to be silent", || {
            a.endpoint.pool().peers().iter().any(|peer| peer.connected && !peer.responsive)
        })
        .await;
        relay.cut(false);
    }
}
