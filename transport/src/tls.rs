//! TLS as Starling speaks it: 1.3 only, both ends authenticated, hybrid key exchange first.
//!
//! No resumption, no tickets, no 0-RTT: a resumed session would bring back a chain that nobody
//! verified again, and early data can be replayed (RFC 8446, section 8). Keys and chains are asked
//! for at each handshake, so a rotation needs no new configuration.

use std::sync::Arc;

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::hmac;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs as provider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use crate::credentials::Credentials;
use crate::verify::{Expected, PeerVerifier, Verdict};

/// The protocol's name in TLS (RFC 7301), of the version that this node prefers.
pub const ALPN: &[u8] = b"starling/1";

/// All that it speaks, best first ([`starling_gossip::versions`]); the callee's best wins.
const ALPN_PROTOCOLS: [&[u8]; 1] = [ALPN];

/// Cipher suites and key exchanges, best first. AES-128-GCM has hardware behind it on every
/// server; ChaCha20 took half as much CPU again in bulk.
pub fn crypto_provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
            provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
            provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![
            provider::kx_group::X25519MLKEM768,
            provider::kx_group::X25519,
            provider::kx_group::SECP256R1,
        ],
        ..provider::default_provider()
    }
}

/// The dialler's configuration for one handshake, and where its verdict will be.
pub fn client(
    provider: &Arc<CryptoProvider>,
    credentials: &Credentials,
    expected: Expected,
) -> (ClientConfig, Verdict) {
    let verifier = PeerVerifier::new(credentials.clone(), expected);
    let verdict = verifier.verdict();
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(CurrentCertificate(credentials.clone())));
    config.alpn_protocols = ALPN_PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    (config, verdict)
}

/// The callee's configuration for one handshake, and where its verdict will be.
pub fn server(provider: &Arc<CryptoProvider>, credentials: &Credentials) -> (ServerConfig, Verdict) {
    let verifier = PeerVerifier::new(credentials.clone(), Expected::Anybody);
    let verdict = verifier.verdict();
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(CurrentCertificate(credentials.clone())));
    config.alpn_protocols = ALPN_PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    (config, verdict)
}

/// [`client`] for quinn.
pub(crate) fn quic_client(
    provider: &Arc<CryptoProvider>,
    credentials: &Credentials,
    expected: Expected,
) -> (Arc<QuicClientConfig>, Verdict) {
    let (config, verdict) = client(provider, credentials, expected);
    let config = QuicClientConfig::try_from(config).expect("the provider has QUIC's initial suite");
    (Arc::new(config), verdict)
}

/// [`server`] for quinn.
pub(crate) fn quic_server(
    provider: &Arc<CryptoProvider>,
    credentials: &Credentials,
) -> (Arc<QuicServerConfig>, Verdict) {
    let (config, verdict) = server(provider, credentials);
    let config = QuicServerConfig::try_from(config).expect("the provider has QUIC's initial suite");
    (Arc::new(config), verdict)
}

/// Keys that must outlive a restart on the same port: with them a new process answers packets of
/// its predecessor's connections by a stateless reset (RFC 9000, section 10.3), and the peers know
/// at once. They come from the private key, which is the only secret that outlives one.
pub(crate) struct ResetKeys {
    /// Makes reset tokens.
    pub(crate) token: hmac::Key,
    /// Marks connection ids as ours.
    pub(crate) connection_id: u64,
}

impl ResetKeys {
    pub(crate) fn derive(private_key: &[u8]) -> Self {
        let secret = Salt::new(HKDF_SHA256, b"starling/1 stateless reset").extract(private_key);
        let mut token = [0; 32];
        let mut connection_id = [0; 8];
        expand(&secret, b"token", &mut token);
        expand(&secret, b"connection id", &mut connection_id);
        Self {
            token: hmac::Key::new(hmac::HMAC_SHA256, &token),
            connection_id: u64::from_be_bytes(connection_id),
        }
    }
}

fn expand(secret: &aws_lc_rs::hkdf::Prk, label: &[u8], out: &mut [u8]) {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    secret
        .expand(&[label], Length(out.len()))
        .and_then(|okm| okm.fill(out))
        .expect("HKDF gives up to 8160 bytes (RFC 5869)");
}

/// Presents whatever certificate is current when a handshake asks.
#[derive(Debug)]
struct CurrentCertificate(Credentials);

impl ResolvesClientCert for CurrentCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified_key())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified_key())
    }
}
