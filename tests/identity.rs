//! Who is nobody gets nothing, and who is somebody else gets nothing of it either.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use starling::ca::Issued;
use starling_tests::workload::{Http, Tcp};
use starling_tests::{Mesh, UNPROBED, credentials, eventually, get, member, starling, within};
use starling_transport::answer::AnswerError;
use starling_transport::header::{RefusalReason, StreamHeader, StreamKind};
use starling_transport::pool::Target;
use starling_transport::tls;
use starling_transport::verify::{Expected, PeerVerifier};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How a node ends the connection of a QUIC client that shows this certificate, or none.
async fn refusal(mesh: &Mesh, address: SocketAddr, shown: Option<&Issued>) -> quinn::ConnectionError {
    let verifier = PeerVerifier::new(credentials(mesh, "spiffe://acme/svc/stranger"), Expected::Anybody);
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(tls::crypto_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(shown) => {
            let chain = CertificateDer::from_pem_slice(shown.certificate.as_bytes()).expect("PEM");
            let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(vec![chain], key).expect("a client")
        }
    };
    config.alpn_protocols = vec![tls::ALPN.to_vec()];
    let mut endpoint = quinn::Endpoint::client(SocketAddr::from((mesh.ip(), 0))).expect("bound");
    let config = QuicClientConfig::try_from(config).expect("for QUIC");
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(config)));
    let connecting = endpoint.connect(address, "starling.invalid").expect("dialled");
    // In TLS 1.3 the client's part ends before the server has judged it.
    let connection = match within("a handshake", connecting).await {
        Ok(connection) => connection,
        Err(error) => return error,
    };
    within("the refusal", connection.closed()).await
}

#[tokio::test]
async fn without_a_certificate_of_the_mesh_there_is_no_connection() {
    let mesh = Mesh::new();
    let node = mesh.node("server").start().await;
    let (foreign, _root) = mesh.issue_foreign("spiffe://acme/svc/web");
    let expired = mesh.issue_expired("spiffe://acme/svc/web");
    for shown in [None, Some(&foreign), Some(&expired)] {
        let error = refusal(&mesh, node.listen(), shown).await;
        assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{error}");
    }
    let members = node.admin().get("/v1/members").await.json;
    assert_eq!(members.as_array().map(Vec::len), Some(1), "nobody but itself: {members}");
}

#[tokio::test]
async fn a_node_of_another_authority_stays_outside() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let server = mesh.node("server").serves("web", workload.address()).start().await;
    // Another authority for a trust domain of the same name.
    let other = Mesh::new();
    let rogue = other.node("rogue").seeds(&[server.listen()]).serves("web", workload.address());
    let rogue = rogue.start().await;
    rogue.logs("proved no acceptable identity").await;
    let honest = mesh.node("honest").start().await;
    honest.finds("web", 1).await;
    for node in [&server, &honest] {
        let members = node.admin().get("/v1/members").await.text;
        assert!(!members.contains("rogue"), "{members}");
    }
    let rogues = rogue.admin().get("/v1/members").await.json;
    assert_eq!(rogues.as_array().map(Vec::len), Some(1), "{rogues}");
}

#[tokio::test]
async fn another_member_at_a_nodes_address_gets_none_of_its_calls() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let mut server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    assert_eq!(get(caller.http_proxy(), "web.mesh", "/").await.status(), 200);
    server.kill().await;

    let (thief, mut incoming) = member(&mesh, "spiffe://acme/svc/thief", server.listen());
    for _ in 0..3 {
        let reply = get(caller.http_proxy(), "web.mesh", "/secret").await;
        assert_eq!((reply.status().as_u16(), reply.header("server")), (503, "starling"), "{}", reply.text());
    }
    eventually("the caller to meet another identity", async || {
        let route = caller.admin().get("/v1/routes/web").await.json;
        route["candidates"][0]["trouble"].as_str().map(drop)
    })
    .await;
    assert!(incoming.streams.try_recv().is_err(), "the thief was called");

    thief.close(Duration::ZERO).await;
    drop((thief, incoming));
    // The address is free again, and its owner is believed as soon as it is back.
    server.restart().await;
    eventually("calls to the owner", async || {
        (get(caller.http_proxy(), "web.mesh", "/").await.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_member_cannot_reach_an_http_workload_past_the_sidecar_that_names_callers() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let server = mesh.node("server").serves_as("web", workload.address(), UNPROBED).start().await;
    let (hostile, _incoming) = member(&mesh, "spiffe://acme/svc/hostile", mesh.free_address());
    let target = Target { address: server.listen(), expected: Expected::Anybody };
    let connection = within("a connection", hostile.pool().connect(&target)).await.expect("a member");
    let call = |service: &str, instance: &str| StreamKind::Tcp {
        service: service.parse().expect("a name"),
        instance: instance.to_owned(),
    };
    for (kind, reason) in [
        (call("web", "web"), RefusalReason::UnsupportedKind),
        (call("web", "other"), RefusalReason::NoSuchInstance),
        (call("other", "web"), RefusalReason::NoSuchInstance),
    ] {
        let mut stream = connection.open(&StreamHeader::new(kind)).await.expect("a stream");
        let refused = within("the answer", stream.accepted()).await;
        let Err(AnswerError::Refused(refusal)) = refused else { panic!("{refused:?}") };
        assert_eq!(refusal.reason, reason, "{refusal}");
    }
    assert_eq!(workload.connections(), 0);
}

#[tokio::test]
async fn a_revoked_identity_loses_its_connections_and_its_place_and_may_come_back() {
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |mut stream: TcpStream| {
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await;
    let server = mesh.node("server").serves_tcp("db", workload.address()).start().await;
    let list = mesh.directory().join("caller/revoked.txt");
    std::fs::create_dir_all(mesh.directory().join("caller")).expect("a directory");
    std::fs::write(&list, "# nobody yet\n").expect("a list");
    let listed = "[identity]\nrevoked = \"revoked.txt\"";
    let caller = mesh.node("caller").calls("db").sections(listed).start().await;
    caller.finds("db", 1).await;
    server.sees("caller", "alive").await;
    let mut open = TcpStream::connect(caller.outbound("db")).await.expect("accepted");
    open.write_u8(1).await.expect("written");
    assert_eq!(within("an echo", open.read_u8()).await.expect("echoed"), 1);

    std::fs::write(&list, "spiffe://acme/svc/db   # its key was stolen\n").expect("a list");
    assert!(within("the end", open.read_u8()).await.is_err());
    eventually("its records to be out of use", async || {
        let members = caller.admin().get("/v1/members").await.text;
        let route = caller.admin().get("/v1/routes/db").await;
        (!members.contains("server") && !route.text.contains("127.")).then_some(())
    })
    .await;
    let refused = async || TcpStream::connect(caller.outbound("db")).await?.read_u8().await;
    assert!(within("the end", refused()).await.is_err());
    // It dials in vain as well.
    caller.logs("is revoked").await;

    std::fs::write(&list, "spiffe://acme/svc/*\n").expect("a list");
    caller.logs("revoked.txt: line 1").await;
    let members = caller.admin().get("/v1/members").await.text;
    assert!(!members.contains("server"), "the last good list stays: {members}");

    std::fs::write(&list, "").expect("a list");
    caller.finds("db", 1).await;
    eventually("a call", async || {
        let mut open = TcpStream::connect(caller.outbound("db")).await.ok()?;
        open.write_u8(2).await.ok()?;
        open.read_u8().await.ok().filter(|byte| *byte == 2).map(drop)
    })
    .await;
}

#[tokio::test]
async fn a_node_that_may_not_announce_its_service_is_told_before_it_starts() {
    let mesh = Mesh::new();
    let directory = mesh.directory();
    let issued = mesh.issue("spiffe://acme/svc/web");
    let config = "[[service]]\nname = \"bank\"\naddress = \"127.0.0.1:8080\"\n";
    for (name, contents) in [
        ("tls.crt", issued.certificate.as_str()),
        ("tls.key", issued.key.as_str()),
        ("ca.crt", mesh.trust_bundle()),
        ("starling.toml", config),
    ] {
        std::fs::write(directory.join(name), contents).expect("a file");
    }
    let file = directory.join("starling.toml");
    for command in ["check", "run"] {
        let finished = starling([command.as_ref(), "--config".as_ref(), file.as_os_str()]).await;
        assert_eq!(finished.code, 2, "{finished:?}");
        assert!(finished.err.contains("starling.toml:2:"), "{finished:?}");
        assert!(finished.err.contains("may not announce \"bank\"; it may announce \"web\""), "{finished:?}");
        assert!(finished.err.contains("spiffe://acme/svc/bank"), "what to do: {finished:?}");
    }
}
