//! The simulated network as a link: what is sent once, who is shunned, what it costs.

use std::sync::Arc;
use std::time::Duration;

use starling_gossip::link::{Delivery, Destination, Link as _};
use starling_sim::network::{HostLink, Network, address_of};
use starling_sim::scenario::{Conditions, Span};
use starling_sim::trace::Trace;
use tokio::time::{sleep, timeout};

const MESSAGES: usize = 200;

/// Two hosts that lose so much of what they send each other.
fn two(loss: f64) -> (Arc<Network>, [Arc<HostLink>; 2]) {
    let conditions = Conditions { latency: Span::millis(20), loss, ..Conditions::default() };
    let network = Network::new(vec![vec![conditions]], 1, Arc::new(Trace::new(None)));
    let plug = |host: usize| {
        let identity = format!("spiffe://example.org/host-{host}").parse().expect("an identity");
        network.plug(host, 0, address_of(host, 0), identity)
    };
    let hosts = [plug(0), plug(1)];
    (network, hosts)
}

fn in_virtual_time(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().expect("a runtime").block_on(test);
}

fn send(from: &HostLink, to: usize, bytes: usize, delivery: Delivery) {
    from.send(Destination::Seed(address_of(to, 0)), vec![0; bytes], delivery);
}

/// How many messages come until none comes for ten seconds.
async fn received(host: &HostLink) -> usize {
    let mut count = 0;
    while timeout(Duration::from_secs(10), host.recv()).await.is_ok() {
        count += 1;
    }
    count
}

#[test]
fn what_is_sent_once_may_be_lost_and_what_is_large_or_reliable_is_not() {
    in_virtual_time(async {
        let (_, [one, other]) = two(0.2);
        for (bytes, delivery, least, most) in [
            (100, Delivery::Once, MESSAGES * 7 / 10, MESSAGES * 9 / 10),
            (100, Delivery::Reliable, MESSAGES, MESSAGES),
            (5000, Delivery::Once, MESSAGES, MESSAGES),
        ] {
            // Until the handshake is over, whatever it takes.
            while received(&other).await == 0 {
                send(&one, 1, 10, Delivery::Reliable);
            }
            (0..MESSAGES).for_each(|_| send(&one, 1, bytes, delivery));
            let came = received(&other).await;
            assert!((least..=most).contains(&came), "{delivery:?} of {bytes} bytes: {came}");
        }
    });
}

#[test]
fn who_is_shunned_is_cut_off_until_the_span_is_over() {
    in_virtual_time(async {
        let (network, [one, other]) = two(0.0);
        send(&one, 1, 100, Delivery::Reliable);
        assert_eq!(received(&other).await, 1);
        assert_eq!(network.connections().into_values().collect::<Vec<_>>(), [1, 1]);
        send(&one, 1, 100, Delivery::Reliable);
        let peer = "spiffe://example.org/host-0".parse().expect("an identity");
        other.shun(&peer, one.address(), Duration::from_secs(60));
        assert_eq!(network.connections().into_values().collect::<Vec<_>>(), [0, 0]);
        send(&one, 1, 100, Delivery::Reliable);
        send(&other, 0, 100, Delivery::Once);
        assert_eq!(received(&other).await + received(&one).await, 0);
        sleep(Duration::from_secs(60)).await;
        send(&one, 1, 100, Delivery::Reliable);
        assert_eq!(received(&other).await, 1);
    });
}

#[test]
fn what_quic_adds_is_counted_by_kind_and_by_host() {
    in_virtual_time(async {
        let (network, [one, other]) = two(0.0);
        send(&one, 1, 100, Delivery::Once);
        assert_eq!(received(&other).await, 1);
        let traffic = network.traffic();
        let of = |kind: &str| traffic.by_kind.get(kind).copied().unwrap_or_default();
        assert_eq!(of("syn"), (1, 100), "a message of zeros is one");
        assert_eq!(of("quic"), (0, 66 + 11 + 71), "its packet and frame, and one acknowledgement");
        let (_, handshake) = of("handshake");
        assert!((10_000..25_000).contains(&handshake), "{handshake}");
        let all: u64 = traffic.by_kind.values().map(|(_, bytes)| bytes).sum();
        assert_eq!(traffic.by_host.values().sum::<u64>(), all);
        sleep(Duration::from_secs(30)).await;
        let (_, kept) = network.traffic().by_kind["keep-alive"];
        assert_eq!(kept, 2 * 4 * 71, "each of the two, four times in forty seconds");
        // Nobody is there any more: dials in vain, with pauses between.
        network.unplug(1);
        (0..50).for_each(|_| send(&one, 1, 100, Delivery::Once));
        let (_, dialled) = network.traffic().by_kind["handshake"];
        assert_eq!(dialled - handshake, 3 * 2 * 1228);
    });
}
