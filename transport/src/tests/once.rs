//! Messages that are sent once, in a datagram.

use std::net::SocketAddr;
use std::time::Duration;

use starling_gossip::link::{Delivery, Destination, Link as _};

use super::counters::Counters;
use super::gossip::link;
use super::harness::{Ca, Node, eventually, within};
use super::strangers::{client, client_with, connect};
use crate::connection::Connection;
use crate::limits::{
    DATAGRAM_BYTES_LEAST, DATAGRAM_SEND_BUFFER_BYTES, GOODBYE_WAIT, GOSSIP_RECEIVED_MAX, UNUSED_CLOSE,
};

const MESSAGES: &str = "starling_gossip_messages_total";
const BYTES: &str = "starling_gossip_bytes_total";
const DROPPED: &str = "starling_gossip_dropped_total";

fn member(node: &Node) -> Destination {
    Destination::Member { address: node.address(), identity: node.id() }
}

/// A message as gossip would count it: of the kind `talk`.
fn talk(bytes: usize) -> Vec<u8> {
    let mut message = vec![7; bytes];
    message[3] = 32;
    message
}

/// The node's connection to a stranger that dialled it.
async fn accepted(node: &Node, stranger: &quinn::Endpoint) -> Connection {
    let port = stranger.local_addr().expect("an address").port();
    let found = || node.endpoint.pool().connected(SocketAddr::from(([127, 0, 0, 1], port)));
    eventually("it is entered", || found().is_some()).await;
    found().expect("just seen")
}

#[tokio::test]
async fn what_fits_goes_in_one_datagram_and_arrives_once() {
    let ca = Ca::new();
    let (mut a, mut b) = (ca.node("a"), ca.node("b"));
    let (link_a, link_b) = (link(&mut a), link(&mut b));
    let metrics = Counters::here();
    let connection = a.dial(&b).await.expect("connected");
    for message in [talk(4), talk(DATAGRAM_BYTES_LEAST), Vec::new(), vec![1]] {
        link_a.send(member(&b), message.clone(), Delivery::Once);
        let received = within("a message", link_b.recv()).await.expect("open");
        assert_eq!((received.peer, received.from), (a.id(), a.address()));
        assert!(received.message == message);
        link_b.send(Destination::Connected(received.from), message.clone(), Delivery::Once);
        assert!(within("a reply", link_a.recv()).await.expect("open").message == message);
    }
    assert_eq!(connection.quinn().stats().frame_tx.datagram, 4);
    for direction in ["outbound", "inbound"] {
        assert_eq!(metrics.total_of(MESSAGES, &[direction, "once", "talk"]), 4);
        assert_eq!(metrics.total_of(MESSAGES, &[direction, "once", "other"]), 4);
        assert_eq!(
            metrics.total_of(BYTES, &[direction, "once", "talk"]),
            2 * (4 + DATAGRAM_BYTES_LEAST as u64)
        );
        assert_eq!(metrics.total_of(MESSAGES, &[direction]), 8, "nothing went by stream");
    }
    assert_eq!((a.connections(), b.connections()), (1, 1));
}

#[tokio::test]
async fn what_is_too_large_for_a_datagram_goes_on_a_stream() {
    let ca = Ca::new();
    let (mut a, mut b) = (ca.node("a"), ca.node("b"));
    let (link_a, link_b) = (link(&mut a), link(&mut b));
    let metrics = Counters::here();
    a.dial(&b).await.expect("connected");
    link_a.send(member(&b), talk(20_000), Delivery::Once);
    assert!(within("a message", link_b.recv()).await.expect("open").message == talk(20_000));
    eventually("it is counted", || metrics.total_of(MESSAGES, &["reliable", "talk"]) == 2).await;
    assert_eq!(metrics.total(MESSAGES, "once"), 0);
}

#[tokio::test]
async fn what_is_sent_once_dials_like_anything_else() {
    let ca = Ca::new();
    let (mut a, mut b) = (ca.node("a"), ca.node("b"));
    let (link_a, link_b) = (link(&mut a), link(&mut b));
    let metrics = Counters::here();
    link_a.send(Destination::Connected(b.address()), talk(9), Delivery::Once);
    eventually("nobody is dialled for an answer", || metrics.total(DROPPED, "not_connected") == 1).await;
    assert_eq!(a.connections(), 0);
    link_a.send(member(&b), talk(10), Delivery::Once);
    assert!(within("a message", link_b.recv()).await.expect("open").message == talk(10));
    link_a.send(Destination::Seed(b.address()), talk(11), Delivery::Once);
    assert!(within("a message", link_b.recv()).await.expect("open").message == talk(11));
    assert_eq!(metrics.total_of(MESSAGES, &["outbound", "once"]), 2);
    assert_eq!((a.connections(), b.connections()), (1, 1));
}

#[tokio::test]
async fn what_is_sent_once_does_not_wait_behind_what_is_slow() {
    let ca = Ca::new();
    let mut web = ca.node("web");
    let link_web = link(&mut web);
    let mut narrow = quinn::TransportConfig::default();
    narrow.max_concurrent_uni_streams(0u32.into());
    let shown = ca.issue(&["spiffe://acme/svc/narrow"], (2000, 2100));
    let stranger = client_with(&ca, Some(&shown), narrow);
    let there = connect(&stranger, web.address()).await;
    let to_stranger = Destination::Connected(accepted(&web, &stranger).await.peer().address);
    let metrics = Counters::here();
    link_web.send(to_stranger.clone(), talk(5), Delivery::Reliable);
    tokio::task::yield_now().await;
    link_web.send(to_stranger, talk(6), Delivery::Once);
    let datagram = within("the datagram", there.read_datagram()).await.expect("open");
    assert_eq!((datagram[0], &datagram[1..]), (1, &talk(6)[..]));
    assert_eq!(metrics.total(DROPPED, "connection_lost"), 0, "the other one waits still");
    eventually("and in vain", || metrics.total(DROPPED, "connection_lost") == 1).await;
}

#[tokio::test]
async fn who_has_room_for_probes_only_is_sent_a_stream() {
    let ca = Ca::new();
    let mut web = ca.node("web");
    let link_web = link(&mut web);
    let mut earlier = quinn::TransportConfig::default();
    earlier.datagram_receive_buffer_size(Some(1_024));
    let shown = ca.issue(&["spiffe://acme/svc/earlier"], (2000, 2100));
    let stranger = client_with(&ca, Some(&shown), earlier);
    let there = connect(&stranger, web.address()).await;
    let to_stranger = Destination::Connected(accepted(&web, &stranger).await.peer().address);
    link_web.send(to_stranger, talk(6), Delivery::Once);
    within("a message", async {
        loop {
            let mut stream = there.accept_uni().await.expect("open");
            let bytes = stream.read_to_end(1_000).await.expect("a clean end");
            // The other one is the welcome.
            if bytes[1] == 1 {
                return assert_eq!(bytes[4..], talk(6));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn probes_and_what_later_versions_say_are_no_messages() {
    let ca = Ca::new();
    let mut web = ca.node("web");
    let link_web = link(&mut web);
    let stranger = client(&ca, Some(&ca.issue(&["spiffe://acme/svc/later"], (2000, 2100))));
    let there = connect(&stranger, web.address()).await;
    let metrics = Counters::here();
    for bytes in [&b""[..], &[2, 1, 1], &[0], &[255], b"", &[1, 9, 9]] {
        there.send_datagram(bytes.to_vec().into()).expect("sent");
    }
    assert_eq!(within("the message", link_web.recv()).await.expect("open").message, [9, 9]);
    assert_eq!(metrics.total_of("starling_datagrams_ignored_total", &[]), 3);
    assert_eq!(metrics.total(MESSAGES, "inbound"), 1);
    assert_eq!(there.close_reason(), None);
}

#[tokio::test]
async fn a_flood_that_comes_holds_no_more_than_the_queue() {
    let ca = Ca::new();
    let mut web = ca.node("web");
    let stranger = client(&ca, Some(&ca.issue(&["spiffe://acme/svc/flood"], (2000, 2100))));
    let there = connect(&stranger, web.address()).await;
    let metrics = Counters::here();
    let flood = DATAGRAM_BYTES_LEAST - 1;
    let refused = || metrics.total(DROPPED, "receive_queue_full");
    within("a full queue", async {
        while refused() < 10 * GOSSIP_RECEIVED_MAX as u64 {
            let bytes = [&[1][..], &talk(flood)].concat();
            there.send_datagram_wait(bytes.into()).await.expect("the connection lives");
        }
    })
    .await;
    let mut gossip = web.gossip.take().expect("taken once");
    assert_eq!(gossip.len(), GOSSIP_RECEIVED_MAX);
    assert_eq!(metrics.total(MESSAGES, "inbound"), GOSSIP_RECEIVED_MAX as u64);
    while let Ok(received) = gossip.try_recv() {
        assert_eq!(received.message.capacity(), flood, "and not the packet it came in");
    }
    assert_eq!(there.close_reason(), None);
}

#[tokio::test]
async fn a_flood_of_our_own_pushes_its_oldest_out() {
    let ca = Ca::new();
    let (mut a, mut b) = (ca.node("a"), ca.node("b"));
    let (link_a, link_b) = (link(&mut a), link(&mut b));
    let connection = a.dial(&b).await.expect("connected");
    let metrics = Counters::here();
    let sent = 1_000;
    let most = DATAGRAM_SEND_BUFFER_BYTES / 1_000;
    // One runtime thread: nothing leaves before this task waits.
    for number in 0..sent {
        let mut message = talk(1_000);
        message[4..8].copy_from_slice(&u32::to_be_bytes(number));
        link_a.send(member(&b), message, Delivery::Once);
    }
    assert!(connection.quinn().datagram_send_buffer_space() < 2_000);
    let pushed_out = metrics.total(DROPPED, "send_buffer_full");
    assert!(pushed_out >= u64::from(sent) - most as u64, "{pushed_out}");
    let first = within("a message", link_b.recv()).await.expect("open").message;
    let first = u32::from_be_bytes(first[4..8].try_into().expect("four"));
    assert_eq!(u64::from(first), pushed_out, "the newest are kept");
}

/// Nothing here waits for the machine, so the paused clock leaps from one timer to the next.
#[tokio::test]
async fn a_datagram_every_few_seconds_keeps_one_connection_and_none_lets_it_go() {
    let ca = Ca::new();
    let (mut a, mut b) = (ca.node("a"), ca.node("b"));
    let (link_a, link_b) = (link(&mut a), link(&mut b));
    let metrics = Counters::here();
    let connection = a.dial(&b).await.expect("connected");
    tokio::time::pause();
    let every = Duration::from_secs(7);
    // One way only: the one who hears must not think the connection unused either.
    for _ in 0..UNUSED_CLOSE.as_secs() * 4 / every.as_secs() {
        link_a.send(member(&b), talk(40), Delivery::Once);
        within("a message", link_b.recv()).await.expect("open");
        tokio::time::sleep(every).await;
    }
    assert!(connection.is_usable());
    assert_eq!(metrics.total_of("starling_handshakes_total", &["outbound"]), 1);
    tokio::time::sleep(UNUSED_CLOSE - every * 2).await;
    assert!(connection.is_usable(), "the last was not long ago");
    tokio::time::sleep(every * 2).await;
    within("its end", connection.closed()).await;
    tokio::time::sleep(GOODBYE_WAIT).await;
    assert_eq!((a.connections(), b.connections()), (0, 0));
}
