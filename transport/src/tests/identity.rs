//! Who may talk to whom.

use std::sync::Arc;
use std::time::Duration;

use starling_gossip::clock::{Clock, WallTime};
use starling_gossip::svid::ChainError;

use super::harness::{Ca, Node, eventually, tcp};
use crate::credentials::{Credentials, RotationError};
use crate::dial::ConnectError;
use crate::tls;
use crate::verify::{Expected, IdentityRefusal};

#[tokio::test]
async fn both_ends_know_each_other() {
    let ca = Ca::new();
    for (listen, dialled) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")] {
        let web = Node::bind(listen, ca.credentials("web"));
        let payments = Node::bind(listen, ca.credentials("payments"));
        let address = format!("{dialled}:{}", payments.address().port()).parse();
        let address = address.unwrap_or_else(|_| payments.address());
        let connection = web.dial_at(address, payments.id()).await.expect("connected");
        assert_eq!(connection.peer().id, payments.id());
        assert_eq!(connection.peer().address, address, "as dialled, not IPv4-mapped");
        let key = payments.credentials.current().svid().public_key().fingerprint();
        assert_eq!(connection.peer().key_fingerprint, key);

        let _stream = connection.open(&tcp()).await.expect("a stream");
        let incoming = payments.incoming().await;
        assert_eq!(incoming.peer.id, web.id());
        assert_eq!(incoming.peer.address.port(), web.address().port());
        assert_eq!(incoming.header, tcp());
    }
}

#[tokio::test]
async fn another_identity_at_the_right_address_is_refused() {
    let ca = Ca::new();
    let (web, impostor) = (ca.node("web"), ca.node("impostor"));
    let expected = "spiffe://acme/svc/payments".parse().expect("an identity");
    let error = web.dial_at(impostor.address(), expected).await.expect_err("refused");
    assert!(
        matches!(&error, ConnectError::RefusedIdentity { why: IdentityRefusal::SomebodyElse { found, .. }, .. }
            if *found == impostor.id()),
        "{error}"
    );
    assert!(web.seed(impostor.address()).await.is_ok(), "as a seed anybody of the domain will do");
}

#[tokio::test]
async fn a_foreign_authority_is_refused_by_either_end() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let (web, foreign) = (ours.node("web"), theirs.node("payments"));
    let error = web.dial(&foreign).await.expect_err("refused");
    assert!(matches!(error, ConnectError::RefusedIdentity { .. }), "{error}");

    // One who believes both roots, and whom the other does not believe.
    let (svid, _) = theirs.svid("payments");
    let both = format!("{}{}", ours.pem, theirs.pem);
    let bundle = starling_gossip::svid::TrustBundle::from_pem(svid.id().trust_domain(), both.as_bytes());
    let credentials = Credentials::new(svid, bundle.expect("a bundle"), Clock::System).expect("credentials");
    let open = Node::bind("127.0.0.1:0", credentials);
    let error = open.dial(&web).await.expect_err("refused");
    assert!(matches!(error, ConnectError::RefusedByPeer { .. }), "{error}");
    eventually("nothing is left over", || web.connections() == 0).await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_either_end() {
    let ca = Ca::new();
    let (svid, bundle) = ca.judge(&ca.issue(&["spiffe://acme/svc/old"], (2010, 2012)));
    let in_2011 = Clock::starting_at(WallTime { unix_millis: 1_300_000_000_000 });
    let old = Node::bind("127.0.0.1:0", Credentials::new(svid, bundle, in_2011).expect("valid then"));
    let web = ca.node("web");
    let error = web.dial(&old).await.expect_err("refused");
    assert!(
        matches!(
            error,
            ConnectError::RefusedIdentity { why: IdentityRefusal::Chain(ChainError::NotValidNow(_)), .. }
        ),
        "{error}"
    );
    let error = old.dial(&web).await.expect_err("refused");
    assert!(matches!(error, ConnectError::RefusedByPeer { .. }), "{error}");
}

#[tokio::test]
async fn our_own_certificate_is_judged_first() {
    let ca = Ca::new();
    let (svid, bundle) = ca.judge(&ca.issue(&["spiffe://acme/svc/old"], (2010, 2012)));
    let refused = Credentials::new(svid, bundle, Clock::System).expect_err("expired");
    assert!(matches!(refused, RotationError::Unaccepted(ChainError::NotValidNow(_))), "{refused}");

    let (svid, bundle) = ca.judge(&ca.issue(&["spiffe://acme/svc/short"], (2010, 2012)));
    // A second before 2012.
    let late_2011 = Clock::starting_at(WallTime { unix_millis: 1_325_375_999_900 });
    let short = Node::bind("127.0.0.1:0", Credentials::new(svid, bundle, late_2011).expect("valid yet"));
    let web = ca.node("web");
    tokio::time::sleep(Duration::from_millis(200)).await;
    for _ in 0..2 {
        assert!(matches!(short.dial(&web).await, Err(ConnectError::BadCredentials)), "and no pause");
    }
    let pool = short.endpoint.pool();
    assert_eq!(pool.last_failure(web.address()), Some(ConnectError::BadCredentials));
    assert!(pool.peers().iter().all(|peer| peer.connected), "nobody was asked");
}

/// The two configurations, shaking hands in memory.
#[test]
fn the_handshake_is_hybrid_tls_13_without_tickets() {
    let ca = Ca::new();
    let provider = Arc::new(tls::crypto_provider());
    let (client, verdict) = tls::client(&provider, &ca.credentials("web"), Expected::Anybody);
    let (server, _) = tls::server(&provider, &ca.credentials("payments"));
    let name = "starling.invalid".try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(client), name).expect("a client");
    let mut server = rustls::ServerConnection::new(Arc::new(server)).expect("a server");
    for _ in 0..4 {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).expect("written");
        server.read_tls(&mut wire.as_slice()).expect("read");
        server.process_new_packets().expect("accepted");
        let mut wire = Vec::new();
        server.write_tls(&mut wire).expect("written");
        client.read_tls(&mut wire.as_slice()).expect("read");
        client.process_new_packets().expect("accepted");
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    let group = client.negotiated_key_exchange_group().expect("a group").name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    let suite = client.negotiated_cipher_suite().expect("a suite").suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(client.alpn_protocol(), Some(tls::ALPN));
    assert_eq!(client.tls13_tickets_received(), 0);
    let found = verdict.get().expect("judged").as_ref().expect("accepted");
    assert_eq!(found.id.as_str(), "spiffe://acme/svc/payments");
}
