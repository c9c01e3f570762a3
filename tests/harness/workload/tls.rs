//! Workloads that speak TLS themselves: an issuer as an application has one, and its servers' side.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use starling::ca::Issued;
use starling_gossip::clock::{Clock, WallTime};
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const DAY: Duration = Duration::from_secs(86_400);

/// Issues certificates for names and addresses; it is no trust domain's.
pub struct AppAuthority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// How a server shakes hands; cheap to clone.
#[derive(Clone)]
pub struct ServerTls(Arc<ServerConfig>);

impl AppAuthority {
    /// A root of its own.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, "Application CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a root").pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// The root, as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// A certificate for a name or an address, valid for a day, for servers and clients.
    pub fn issue(&self, name: &str) -> Issued {
        self.issue_from(name, 0)
    }

    /// One that is a day past its end.
    pub fn issue_expired(&self, name: &str) -> Issued {
        self.issue_from(name, 2)
    }

    fn issue_from(&self, name: &str, days_ago: u32) -> Issued {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        // Another subject than the issuer's, or OpenSSL takes it for self-signed.
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = Clock::System.wall().unix_seconds();
        let since = OffsetDateTime::from_unix_timestamp(now as i64).expect("a time") - DAY * days_ago;
        (params.not_before, params.not_after) = (since - Duration::from_secs(60), since + DAY);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        let not_after = WallTime { unix_millis: (since + DAY).unix_timestamp() as u64 * 1000 };
        Issued { certificate, key: key.serialize_pem(), not_after }
    }
}

impl Default for AppAuthority {
    fn default() -> Self {
        Self::new()
    }
}

impl ServerTls {
    /// A server that shows `issued` and speaks the protocols of `alpn`; with `clients`, only to whom
    /// they have issued a certificate.
    pub fn new(issued: &Issued, alpn: &[&str], clients: Option<&AppAuthority>) -> Self {
        let builder =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                let root = CertificateDer::from_pem_slice(clients.certificate.as_bytes()).expect("PEM");
                roots.add(root).expect("a root");
                let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let chain = vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).expect("PEM")];
        let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("PEM");
        let mut config = builder.with_single_cert(chain, key).expect("a server");
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self(Arc::new(config))
    }

    /// Makes TLS of a connection.
    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.0.clone()).accept(stream).await
    }
}
