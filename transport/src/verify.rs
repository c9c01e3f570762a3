//! rustls' questions about a peer's certificate, answered by the trust bundle.
//!
//! No DNS names are looked at: who somebody is says the SPIFFE ID. One verifier serves one
//! handshake, so that its verdict, identity or refusal, can be read afterwards; there is no
//! session resumption that could go round it. The judgement itself is
//! [`starling_gossip::svid::TrustBundle::verify`].

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use starling_gossip::identity::SpiffeId;
use starling_gossip::svid::{ChainError, Usage, VerifiedIdentity};

use crate::credentials::Credentials;

/// Who may be at the other end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Expected {
    /// Anybody of our trust domain: seeds, and whoever dials us.
    Anybody,
    /// This identity and no other.
    Exactly(SpiffeId),
}

/// Why a peer's certificate was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityRefusal {
    /// It proves nothing.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// It proves somebody else.
    #[error("{found} answered where {expected} was expected")]
    SomebodyElse {
        /// Who was to answer.
        expected: SpiffeId,
        /// Who did.
        found: SpiffeId,
    },
}

/// What one handshake found out about its peer. Empty until the certificate arrived.
pub type Verdict = Arc<OnceLock<Result<VerifiedIdentity, IdentityRefusal>>>;

/// Judges the peer of one handshake.
#[derive(Debug)]
pub struct PeerVerifier {
    credentials: Credentials,
    expected: Expected,
    verdict: Verdict,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    /// A verifier for one handshake.
    pub fn new(credentials: Credentials, expected: Expected) -> Self {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        Self { credentials, expected, verdict: Verdict::default(), algorithms }
    }

    /// Where the verdict will be. It counts only once the handshake is complete: until then the
    /// peer has not proved that it holds the key.
    pub fn verdict(&self) -> Verdict {
        self.verdict.clone()
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
    ) -> Result<(), Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
        let current = self.credentials.current();
        let result = current
            .bundle()
            .verify(&chain, usage, self.credentials.clock().wall())
            .map_err(IdentityRefusal::Chain)
            .and_then(|found| self.demand(found));
        // One handshake asks once; a second answer could only repeat the first.
        match self.verdict.get_or_init(|| result) {
            Ok(_) => Ok(()),
            Err(refusal) => Err(as_rustls(refusal)),
        }
    }

    fn demand(&self, found: VerifiedIdentity) -> Result<VerifiedIdentity, IdentityRefusal> {
        match &self.expected {
            Expected::Exactly(expected) if *expected != found.id => {
                Err(IdentityRefusal::SomebodyElse { expected: expected.clone(), found: found.id })
            }
            Expected::Exactly(_) | Expected::Anybody => Ok(found),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(leaf, intermediates, Usage::Server).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    /// No hints: every node has one certificate, and the roots' names are nobody's business.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(leaf, intermediates, Usage::Client).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn only_tls13() -> Error {
    Error::General("only TLS 1.3 is spoken here".into())
}

/// The alert the peer will see (RFC 8446, section 6.2) follows from the variant.
fn as_rustls(refusal: &IdentityRefusal) -> Error {
    Error::InvalidCertificate(match refusal {
        IdentityRefusal::Chain(ChainError::NotValidNow(_)) => CertificateError::Expired,
        IdentityRefusal::Chain(ChainError::Revoked(_)) => CertificateError::Revoked,
        IdentityRefusal::Chain(ChainError::Untrusted(_)) => CertificateError::UnknownIssuer,
        IdentityRefusal::Chain(ChainError::Malformed(_) | ChainError::Empty) => CertificateError::BadEncoding,
        refusal => CertificateError::Other(OtherError(Arc::new(refusal.clone()))),
    })
}
