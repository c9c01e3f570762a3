//! Ends that are not ours: other certificates, other versions, other kinds.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use starling_gossip::svid::ChainError;

use super::counters::Counters;
use super::harness::{Ca, Issued, eventually, within};
use crate::dial::ConnectError;
use crate::header::{Answer, PREAMBLE_BYTES, Preamble, RefusalReason};
use crate::limits::{HALF_OPEN_PER_SOURCE_MAX, HALF_OPEN_UNPROVED_MAX};
use crate::stream::BeginError;
use crate::tls;
use crate::verify::{Expected, IdentityRefusal, PeerVerifier};

/// A plain quinn client with this certificate, or none.
pub(super) fn client(ca: &Ca, shown: Option<&Issued>) -> quinn::Endpoint {
    client_with(ca, shown, quinn::TransportConfig::default())
}

pub(super) fn client_with(
    ca: &Ca,
    shown: Option<&Issued>,
    transport: quinn::TransportConfig,
) -> quinn::Endpoint {
    let verifier = PeerVerifier::new(ca.credentials("stranger"), Expected::Anybody);
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(tls::crypto_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match shown {
        Some(shown) => {
            let (chain, key) = parts(shown);
            builder.with_client_auth_cert(chain, key).expect("a client")
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![tls::ALPN.to_vec()];
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("bound");
    let config = QuicClientConfig::try_from(config).expect("for QUIC");
    let mut config = quinn::ClientConfig::new(Arc::new(config));
    config.transport_config(Arc::new(transport));
    endpoint.set_default_client_config(config);
    endpoint
}

fn parts(issued: &Issued) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_slice_iter(issued.certificate.as_bytes()).map(|one| one.expect("PEM"));
    (chain.collect(), PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("PEM"))
}

pub(super) async fn connect(endpoint: &quinn::Endpoint, address: SocketAddr) -> quinn::Connection {
    let connecting = endpoint.connect(address, "starling.invalid").expect("dialled");
    within("a handshake", connecting).await.expect("the client's part of it")
}

#[tokio::test]
async fn no_certificate_no_connection() {
    let ca = Ca::new();
    let web = ca.node("web");
    let stranger = client(&ca, None);
    let connection = connect(&stranger, web.address()).await;
    let error = within("the refusal", connection.closed()).await;
    assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{error}");
    assert_eq!(web.connections(), 0);
}

#[tokio::test]
async fn two_identities_are_none() {
    let ca = Ca::new();
    let web = ca.node("web");
    let two = ca.issue(&["spiffe://acme/svc/a", "spiffe://acme/svc/b"], (2000, 2100));
    let stranger = client(&ca, Some(&two));
    let connection = connect(&stranger, web.address()).await;
    let error = within("the refusal", connection.closed()).await;
    assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{error}");
    assert_eq!(web.connections(), 0);

    let (chain, key) = parts(&two);
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(tls::crypto_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a server");
    config.alpn_protocols = vec![tls::ALPN.to_vec()];
    let config =
        quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).expect("QUIC")));
    let server = quinn::Endpoint::server(config, "127.0.0.1:0".parse().expect("an address")).expect("bound");
    let address = server.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            let _ = incoming.await;
        }
    });
    let error = web.seed(address).await.expect_err("refused");
    assert!(
        matches!(
            error,
            ConnectError::RefusedIdentity { why: IdentityRefusal::Chain(ChainError::NotOneSpiffeId(_)), .. }
        ),
        "{error}"
    );
}

/// Certificates of the right authority that prove nobody of this mesh, now.
#[tokio::test]
async fn a_certificate_that_proves_nobody_gets_nothing() {
    let ca = Ca::new();
    let web = ca.node("web");
    let metrics = Counters::here();
    let rows: [(&[&str], (i32, i32)); 13] = [
        (&[], (2000, 2100)),
        (&["spiffe://acme/svc/late"], (2000, 2001)),
        (&["spiffe://acme/svc/early"], (2090, 2100)),
        (&["spiffe://other/svc/web"], (2000, 2100)),
        (&["spiffe://acme/svc/a", "https://acme/svc/a"], (2000, 2100)),
        (&["https://acme/svc/a"], (2000, 2100)),
        (&["spiffe://acme/svc/*"], (2000, 2100)),
        (&["spiffe://*/svc/web"], (2000, 2100)),
        (&["spiffe://acme/svc/web?as=admin"], (2000, 2100)),
        (&["spiffe://acme/svc/%77eb"], (2000, 2100)),
        (&["spiffe://acme/svc/../admin"], (2000, 2100)),
        (&["spiffe://acme:7400/svc/web"], (2000, 2100)),
        (&["SPIFFE://ACME/svc/web"], (2000, 2100)),
    ];
    for (number, (uris, years)) in (1..).zip(rows) {
        let stranger = client(&ca, Some(&ca.issue(uris, years)));
        let connection = connect(&stranger, web.address()).await;
        let error = within("the refusal", connection.closed()).await;
        assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{uris:?}: {error}");
        eventually("it is counted", || {
            metrics.total("starling_handshakes_total", "refused_identity") == number
        })
        .await;
    }
    assert_eq!(web.connections(), 0);
}

#[tokio::test]
async fn strange_headers_are_answered_and_the_connection_lives() {
    let ca = Ca::new();
    let web = ca.node("web");
    let stranger = client(&ca, Some(&ca.issue(&["spiffe://acme/svc/new"], (2000, 2100))));
    let metrics = Counters::here();
    let connection = connect(&stranger, web.address()).await;
    let cases: [(&[u8], RefusalReason); 5] = [
        (&[9, 16, 0, 0], RefusalReason::UnsupportedVersion),
        (&[1, 99, 0, 0], RefusalReason::UnsupportedKind),
        (&[1, 16, 255, 255], RefusalReason::Malformed),
        (&[1, 16, 0, 2, 200, 200], RefusalReason::Malformed),
        (&[1, 1, 0, 0], RefusalReason::UnsupportedKind),
    ];
    for (bytes, reason) in cases {
        let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
        send.write_all(bytes).await.expect("written");
        let answer = within("an answer", recv.read_to_end(1_000)).await.expect("a clean end");
        let preamble = Preamble::decode(answer[..PREAMBLE_BYTES].try_into().expect("four")).expect("ours");
        match Answer::decode(preamble, &answer[PREAMBLE_BYTES..]) {
            Ok(Answer::Refused(refusal)) => assert_eq!(refusal.reason, reason, "{bytes:?}"),
            other => panic!("{bytes:?}: {other:?}"),
        }
    }
    for bytes in [&[9, 1, 0, 0][..], &[1, 99, 0, 0], &[1, 16, 0, 0]] {
        let mut send = connection.open_uni().await.expect("a stream");
        send.write_all(bytes).await.expect("written");
        let stopped = within("a stop", send.stopped()).await.expect("the connection lives");
        assert!(stopped.is_some(), "{bytes:?}");
    }
    assert_eq!(connection.close_reason(), None);
    assert_eq!(metrics.total("starling_streams_refused_total", "unsupported_version"), 2);
    assert_eq!(metrics.total("starling_streams_refused_total", "unsupported_kind"), 3);
    assert_eq!(metrics.total("starling_streams_refused_total", "malformed"), 3);
    assert_eq!(web.connections(), 1);
}

/// More at once than we answer unproved: some must prove their address first, and then get in. A
/// machine busy with other tests may be too slow for a few.
#[tokio::test]
async fn a_crowd_proves_its_address() {
    let ca = Ca::new();
    let web = ca.node("web");
    let stranger = client(&ca, Some(&ca.issue(&["spiffe://acme/svc/many"], (2000, 2100))));
    let metrics = Counters::here();
    let crowd = HALF_OPEN_UNPROVED_MAX + 40;
    let mut dials = tokio::task::JoinSet::new();
    for _ in 0..crowd {
        dials.spawn(stranger.connect(web.address(), "starling.invalid").expect("dialled"));
    }
    let connected = within("the crowd", dials.join_all()).await.into_iter().filter_map(Result::ok).count();
    let count = |outcome| metrics.total("starling_handshakes_total", outcome);
    eventually("all are served", || count("ok") + count("timed_out") + count("lost") >= crowd as u64).await;
    assert!(count("retry") > 0);
    assert_eq!(count("overloaded"), 0);
    assert!(connected as u64 >= count("ok") && count("ok") > 0);
}

/// Passes what a stranger sends, and of the answers only those that ask for a proof of its address.
async fn stall(front: Arc<tokio::net::UdpSocket>, target: SocketAddr) {
    let back = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let (mut there, mut here) = (vec![0; 65_535], vec![0; 65_535]);
    let mut stranger = None;
    loop {
        tokio::select! {
            Ok((bytes, from)) = front.recv_from(&mut there) => {
                stranger = Some(from);
                let _ = back.send_to(&there[..bytes], target).await;
            }
            Ok((bytes, _)) = back.recv_from(&mut here) => {
                // A long header of the type Retry (RFC 9000, section 17.2.5).
                if let (0xf0, Some(to)) = (here[0] & 0xf0, stranger) {
                    let _ = front.send_to(&here[..bytes], to).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn one_source_that_begins_and_never_ends_keeps_nobody_out() {
    let ca = Ca::new();
    let web = ca.node("web");
    let metrics = Counters::here();
    let front = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
    let relay = front.local_addr().expect("an address");
    tokio::spawn(stall(front, web.address()));
    let stranger = client(&ca, None);
    let dials = HALF_OPEN_UNPROVED_MAX + HALF_OPEN_PER_SOURCE_MAX + 150;
    let _dials: Vec<_> =
        (0..dials).map(|_| stranger.connect(relay, "starling.invalid").expect("dialled")).collect();
    // A machine busy with other tests may be too slow to begin so many before the first run out.
    let count = |outcome| metrics.total("starling_handshakes_total", outcome);
    eventually("its share is used up", || {
        count("overloaded") > 0 || count("timed_out") >= HALF_OPEN_UNPROVED_MAX as u64
    })
    .await;
    let other = super::harness::Node::bind("127.0.0.2:0", ca.credentials("other"));
    let connection = other.dial(&web).await.expect("connected all the same");
    assert_eq!(connection.peer().id, web.id());
    eventually("the stranger's handshakes end", || count("timed_out") >= HALF_OPEN_UNPROVED_MAX as u64).await;
}

#[tokio::test]
async fn a_message_of_any_length_is_no_way_into_memory() {
    let ca = Ca::new();
    let web = ca.node("web");
    let stranger = client(&ca, Some(&ca.issue(&["spiffe://acme/svc/big"], (2000, 2100))));
    let connection = connect(&stranger, web.address()).await;
    let mut send = connection.open_uni().await.expect("a stream");
    send.write_all(&[1, 1, 0, 0]).await.expect("written");
    let chunk = vec![7; 64 * 1024];
    let stopped = within("a stop", async { while send.write_all(&chunk).await.is_ok() {} });
    stopped.await;
    assert!(web.gossip.as_ref().is_some_and(|gossip| gossip.is_empty()));
    eventually("the connection lives", || web.connections() == 1).await;
}

#[tokio::test]
async fn who_takes_no_answer_is_not_waited_for() {
    let ca = Ca::new();
    let web = ca.node("web");
    let mut deaf = quinn::TransportConfig::default();
    deaf.stream_receive_window(0u32.into());
    let shown = ca.issue(&["spiffe://acme/svc/deaf"], (2000, 2100));
    let stranger = client_with(&ca, Some(&shown), deaf);
    let connection = connect(&stranger, web.address()).await;
    let mut calls = Vec::new();
    for _ in 0..2 {
        let mut call = connection.open_bi().await.expect("a stream");
        call.0.write_all(&super::harness::tcp().encode().expect("a header")).await.expect("written");
        calls.push(call);
    }
    let (one, other) = (web.incoming().await.stream, web.incoming().await.stream);
    let (accepted, ()) =
        within("both", async { tokio::join!(one.accept(), other.refuse(RefusalReason::Denied, "no")) }).await;
    assert!(matches!(accepted, Err(BeginError::Stalled)));
    eventually("nothing counts as work", || !web.endpoint.pool().is_busy()).await;
    assert_eq!(connection.close_reason(), None);
}

#[tokio::test]
async fn who_says_goodbye_is_let_go_once_nothing_is_under_way() {
    let ca = Ca::new();
    let web = ca.node("web");
    let stranger = client(&ca, Some(&ca.issue(&["spiffe://acme/svc/leaver"], (2000, 2100))));
    let connection = connect(&stranger, web.address()).await;
    let (mut call, mut answer) = connection.open_bi().await.expect("a stream");
    call.write_all(&super::harness::tcp().encode().expect("a header")).await.expect("written");
    let callee = web.incoming().await.stream.accept().await.expect("there");
    let mut goodbye = connection.open_uni().await.expect("a stream");
    goodbye.write_all(&[1, 3, 0, 0]).await.expect("written");
    goodbye.finish().expect("ended");
    let address = stranger.local_addr().expect("an address");
    let gone =
        || web.endpoint.pool().connected(format!("127.0.0.1:{}", address.port()).parse().expect("one"));
    eventually("nothing new goes there", || gone().is_none()).await;
    within("the answer", answer.read_exact(&mut [0; 4])).await.expect("the call lives");
    assert_eq!(connection.close_reason(), None);
    drop(callee);
    let why = within("the close", connection.closed()).await;
    assert!(
        matches!(&why, quinn::ConnectionError::ApplicationClosed(close) if close.error_code == 0u32.into())
    );
}
