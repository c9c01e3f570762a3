//! A certificate authority, nodes on loopback, and a network that can be cut.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use tokio::net::UdpSocket;
use tokio::sync::{Mutex, mpsc};

use starling_gossip::clock::Clock;
use starling_gossip::identity::SpiffeId;
use starling_gossip::link::Received;
use starling_gossip::revocation::Revocations;
use starling_gossip::svid::{Svid, TrustBundle};

use crate::connection::Connection;
use crate::credentials::Credentials;
use crate::dial::ConnectError;
use crate::endpoint::Endpoint;
use crate::header::{StreamHeader, StreamKind};
use crate::incoming::IncomingStream;
use crate::limits::Windows;
use crate::pool::Target;
use crate::verify::Expected;

/// Long enough for a loaded machine; nothing waits for it to pass.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
}

/// PEM of a chain and its key.
pub(super) struct Issued {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Ca {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let pem = params.self_signed(&key).expect("a root").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A leaf with these URI SANs, valid in these years.
    pub(super) fn issue(&self, uris: &[&str], years: (i32, i32)) -> Issued {
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))).collect();
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a leaf").pem();
        Issued { certificate, key: key.serialize_pem() }
    }

    pub(super) fn svid(&self, service: &str) -> (Svid, TrustBundle) {
        self.judge(&self.issue(&[&format!("spiffe://acme/svc/{service}")], (2000, 2100)))
    }

    pub(super) fn judge(&self, issued: &Issued) -> (Svid, TrustBundle) {
        let svid = Svid::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).expect("an SVID");
        let bundle = TrustBundle::from_pem(svid.id().trust_domain(), self.pem.as_bytes()).expect("a bundle");
        (svid, bundle)
    }

    pub(super) fn credentials(&self, service: &str) -> Credentials {
        let (svid, bundle) = self.svid(service);
        Credentials::new(svid, bundle, Clock::System).expect("good credentials")
    }

    /// The same, believing nobody whom `revoked` lists.
    pub(super) fn credentials_without(&self, service: &str, revoked: &str) -> Credentials {
        let (svid, bundle) = self.svid(service);
        let bundle = bundle.without(Revocations::parse(revoked.as_bytes()).expect("a list"));
        Credentials::new(svid, bundle, Clock::System).expect("good credentials")
    }

    /// A node on IPv4 loopback.
    pub(super) fn node(&self, service: &str) -> Node {
        Node::bind("127.0.0.1:0", self.credentials(service))
    }

    /// The same, of a node that may use so much memory.
    pub(super) fn node_within(&self, service: &str, memory_bytes: u64) -> Node {
        Node::bind_within("127.0.0.1:0", self.credentials(service), Windows::within(Some(memory_bytes)))
    }
}

pub(super) struct Node {
    pub(super) endpoint: Endpoint,
    pub(super) streams: Mutex<mpsc::Receiver<IncomingStream>>,
    pub(super) gossip: Option<mpsc::Receiver<Received>>,
    pub(super) credentials: Credentials,
}

impl Node {
    pub(super) fn bind(listen: &str, credentials: Credentials) -> Self {
        Self::bind_within(listen, credentials, Windows::within(None))
    }

    fn bind_within(listen: &str, credentials: Credentials, windows: Windows) -> Self {
        let listen = listen.parse().expect("an address");
        let rng = StdRng::seed_from_u64(1);
        let (endpoint, incoming) = Endpoint::bind(listen, credentials.clone(), windows, rng).expect("bound");
        Self { endpoint, streams: Mutex::new(incoming.streams), gossip: Some(incoming.gossip), credentials }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    pub(super) fn id(&self) -> SpiffeId {
        self.credentials.id().clone()
    }

    pub(super) async fn dial(&self, peer: &Node) -> Result<Connection, ConnectError> {
        self.dial_at(peer.address(), peer.id()).await
    }

    pub(super) async fn dial_at(
        &self,
        address: SocketAddr,
        expected: SpiffeId,
    ) -> Result<Connection, ConnectError> {
        let target = Target { address, expected: Expected::Exactly(expected) };
        within("connected or not", self.endpoint.pool().connect(&target)).await
    }

    pub(super) async fn seed(&self, address: SocketAddr) -> Result<Connection, ConnectError> {
        let target = Target { address, expected: Expected::Anybody };
        within("connected or not", self.endpoint.pool().connect(&target)).await
    }

    /// The next stream a peer opened here.
    pub(super) async fn incoming(&self) -> IncomingStream {
        within("a stream", async { self.streams.lock().await.recv().await }).await.expect("still open")
    }

    /// Every open connection.
    pub(super) fn connections(&self) -> usize {
        self.endpoint.pool().occupancy("127.0.0.1".parse().expect("an address"), None).connections
    }
}

pub(super) fn tcp() -> StreamHeader {
    let service = "payments".parse().expect("a name");
    StreamHeader::new(StreamKind::Tcp { service, instance: "payments-1".into() })
}

/// Fails the test when `future` takes longer than [`PATIENCE`].
pub(super) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

/// Waits until `holds`.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A UDP relay in front of one node. Cut, it swallows everything.
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    cut: Arc<AtomicBool>,
}

impl Relay {
    pub(super) async fn before(target: SocketAddr) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
        let address = front.local_addr().expect("an address");
        let cut = Arc::new(AtomicBool::new(false));
        tokio::spawn(forward(front, target, cut.clone()));
        Self { address, cut }
    }

    pub(super) fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }
}

async fn forward(front: Arc<UdpSocket>, target: SocketAddr, cut: Arc<AtomicBool>) {
    let mut backs: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut packet = vec![0; 65_535];
    while let Ok((bytes, client)) = front.recv_from(&mut packet).await {
        if cut.load(Ordering::SeqCst) {
            continue;
        }
        let back = match backs.entry(client) {
            Entry::Occupied(back) => back.into_mut(),
            Entry::Vacant(empty) => {
                let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
                tokio::spawn(send_back(back.clone(), front.clone(), client, cut.clone()));
                empty.insert(back)
            }
        };
        let _ = back.send_to(&packet[..bytes], target).await;
    }
}

async fn send_back(back: Arc<UdpSocket>, front: Arc<UdpSocket>, client: SocketAddr, cut: Arc<AtomicBool>) {
    let mut packet = vec![0; 65_535];
    while let Ok((bytes, _)) = back.recv_from(&mut packet).await {
        if !cut.load(Ordering::SeqCst) {
            let _ = front.send_to(&packet[..bytes], client).await;
        }
    }
}
