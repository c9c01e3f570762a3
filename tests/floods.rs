//! A node under a flood of handshakes that nobody means: honest calls go on, and memory stays.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use starling_gossip::clock::Clock;
use starling_gossip::svid::{Svid, TrustBundle};
use starling_tests::workload::Http;
use starling_tests::{HttpConnection, Mesh, Node, get, request};
use starling_transport::credentials::Credentials;
use starling_transport::tls;
use starling_transport::verify::Expected;

/// First packets, each of another connection.
const FIRST_PACKETS: usize = 2_000;
/// Addresses they claim to come from.
const SOURCES: u8 = 64;
/// How fast they come: far more than the mesh of any size would begin, and what one thread of a busy test machine sends.
const PER_SECOND: usize = 2_000;
const FLOOD: Duration = Duration::from_secs(4);

/// What the flood may add to a node's memory: eight times its buffers for half-open handshakes.
const MEMORY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Calls under the flood take no longer than this: a silent connection would be noticed before.
const CALL_MAX: Duration = Duration::from_secs(1);

/// The first datagrams of real QUIC clients of the mesh.
async fn first_packets(mesh: &Mesh) -> Vec<Vec<u8>> {
    let issued = mesh.issue("spiffe://acme/svc/flood");
    let svid = Svid::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).expect("an SVID");
    let bundle = TrustBundle::from_pem(svid.id().trust_domain(), mesh.trust_bundle().as_bytes());
    let credentials = Credentials::new(svid, bundle.expect("a bundle"), Clock::System).expect("good");
    let (config, _) = tls::client(&Arc::new(tls::crypto_provider()), &credentials, Expected::Anybody);
    let config = QuicClientConfig::try_from(config).expect("for QUIC");
    let client = quinn::Endpoint::client(SocketAddr::from((mesh.ip(), 0))).expect("bound");
    let config = quinn::ClientConfig::new(Arc::new(config));
    let sink = tokio::net::UdpSocket::bind(SocketAddr::from((mesh.ip(), 0))).await.expect("bound");
    let address = sink.local_addr().expect("an address");
    let mut packets = Vec::new();
    let mut datagram = vec![0; 65_535];
    while packets.len() < FIRST_PACKETS {
        let dialled = client.connect_with(config.clone(), address, "starling.invalid").expect("dialled");
        let received = tokio::time::timeout(Duration::from_secs(5), sink.recv(&mut datagram)).await;
        packets.push(datagram[..received.expect("a packet").expect("received")].to_vec());
        drop(dialled);
        // What else it sent, its goodbye above all.
        while sink.try_recv(&mut datagram).is_ok() {}
    }
    packets
}

/// Sends `packets` over and over, each from the next address; how many were sent.
fn flood(target: SocketAddr, packets: &[Vec<u8>], ended: &AtomicBool) -> u64 {
    let IpAddr::V4(ip) = target.ip() else { unreachable!("this test's nodes have IPv4 addresses") };
    let [_, high, low, _] = ip.octets();
    // Beside the addresses of tests, so that no other test counts these.
    let bind =
        |source| UdpSocket::bind((Ipv4Addr::new(127, high, low, 190 + source % 64), 0)).expect("bound");
    let sockets: Vec<_> = (0..SOURCES).map(bind).collect();
    let start = Clock::System.now();
    let mut sent = 0;
    for (packet, socket) in packets.iter().cycle().zip(sockets.iter().cycle()) {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        let _ = socket.send_to(packet, target);
        sent += 1;
        let due = Duration::from_secs_f64(sent as f64 / PER_SECOND as f64);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    sent
}

/// The median and the longest of calls for as long as `FLOOD`; all must succeed.
async fn calls(caller: &Node) -> (Duration, Duration) {
    let mut proxy = HttpConnection::open(caller.http_proxy()).await;
    let (start, mut took) = (Clock::System.now(), Vec::new());
    while start.elapsed() < FLOOD {
        let asked = Clock::System.now();
        let reply = proxy.send(request(http::Method::POST, "web.mesh", "/", "x")).await;
        took.push(asked.elapsed());
        assert_eq!(reply.status(), 200, "{}", reply.text());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    took.sort();
    (took[took.len() / 2], took[took.len() - 1])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_and_memory_stays_under_a_flood_of_first_packets() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let packets = first_packets(&mesh).await;
    let quiet = calls(&caller).await;
    let before = server.anonymous_bytes();

    let (ended, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (target, end, count) = (server.listen(), ended.clone(), sent.clone());
    let flooding = std::thread::spawn(move || count.store(flood(target, &packets, &end), Ordering::Relaxed));
    let flooded = calls(&caller).await;
    let after = server.anonymous_bytes();
    // Somebody new gets in, too, by proving its address.
    let late = mesh.node("late").start().await;
    late.finds("web", 1).await;
    assert_eq!(get(late.http_proxy(), "web.mesh", "/").await.status(), 200);
    ended.store(true, Ordering::Relaxed);
    flooding.join().expect("the flood");

    let metrics = server.admin().get("/metrics").await.text;
    let retries = metrics.lines().find(|line| line.contains("handshakes_total") && line.contains("retry"));
    println!(
        "{} first packets from {SOURCES} addresses; median {:?} -> {:?}, longest {:?} -> {:?}; \
         memory {} -> {} KiB; {retries:?}",
        sent.load(Ordering::Relaxed),
        quiet.0,
        flooded.0,
        quiet.1,
        flooded.1,
        before / 1024,
        after / 1024,
    );
    assert!(retries.is_some(), "addresses are asked for:\n{metrics}");
    assert!(flooded.1 < CALL_MAX, "a call took {:?}", flooded.1);
    assert!(after.saturating_sub(before) < MEMORY_BYTES_MAX, "{before} -> {after} bytes");
}
