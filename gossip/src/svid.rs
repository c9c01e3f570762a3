//! Proof of identity: X.509-SVIDs, the keys behind them, and the bundle that judges them.
//!
//! Everything here is a pure function of bytes and wall time. Reading and watching files is
//! `transport::credentials`' work, TLS is `transport::verify`'s.
//!
//! An X.509-SVID is a certificate with exactly one URI SAN, a SPIFFE ID (X509-SVID, section 2).
//! Leaf keys are P-256 or Ed25519, whose signatures are both 64 bytes.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, UnparsedPublicKey,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::chain::{check_sizes, nearest_valid, read_leaf, validity};
use crate::clock::WallTime;
use crate::identity::{SpiffeId, TrustDomain};
use crate::limits::{CERTIFICATE_BYTES_MAX, CHAIN_CERTIFICATES_MAX, TRUST_ANCHORS_MAX};
use crate::proofs::{Evidence, Proofs, ProvedChain};
use crate::revocation::Revocations;

/// Bytes of every signature Starling makes: P-256 as `r || s`, or Ed25519.
pub const SIGNATURE_BYTES: usize = 64;

/// This process's own identity: a chain, leaf first, and the key behind its leaf.
pub struct Svid {
    id: SpiffeId,
    public_key: PublicKey,
    not_after: WallTime,
    chain: Vec<CertificateDer<'static>>,
    private_key: PrivateKeyDer<'static>,
    signing_key: SigningKey,
}

enum SigningKey {
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// The public half of a leaf's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// An uncompressed P-256 point.
    P256(Vec<u8>),
    /// An Ed25519 key.
    Ed25519(Vec<u8>),
}

/// Whom this node believes: the roots of its trust domain, and whom it believes no more.
#[derive(Debug)]
pub struct TrustBundle {
    domain: TrustDomain,
    anchors: Vec<TrustAnchor<'static>>,
    roots: Vec<CertificateDer<'static>>,
    revoked: Revocations,
    proofs: Option<Proofs>,
}

/// What a verified chain says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedIdentity {
    /// The one SPIFFE ID of the leaf.
    pub id: SpiffeId,
    /// The key that signs for it.
    pub public_key: PublicKey,
    /// When the leaf's validity ends.
    pub not_after: WallTime,
}

/// What a chain is verified for; extended key usage is checked accordingly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The peer dialled us, or signed a record.
    Client,
    /// We dialled the peer.
    Server,
}

/// Why a chain proves nothing. It is the peer's fault, and changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// No leaf at all.
    #[error("the certificate chain is empty")]
    Empty,
    /// More certificates, or a larger one, than anybody needs.
    #[error(
        "the certificate chain is oversized: at most {CHAIN_CERTIFICATES_MAX} certificates of {CERTIFICATE_BYTES_MAX} bytes"
    )]
    Oversized,
    /// Not a certificate.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// Not exactly one SPIFFE URI SAN.
    #[error("an X.509-SVID has exactly one URI SAN, a SPIFFE ID; this certificate {0}")]
    NotOneSpiffeId(String),
    /// A leaf key of another kind.
    #[error("the leaf's key is neither P-256 nor Ed25519")]
    UnsupportedKey,
    /// An identity of somebody else's mesh.
    #[error("{id} is not of the trust domain {expected}")]
    ForeignDomain {
        /// Who it says it is.
        id: SpiffeId,
        /// Whom we accept.
        expected: TrustDomain,
    },
    /// Past its validity, or before it.
    #[error("the certificate is not valid now ({0}); check both machines' clocks and the rotation")]
    NotValidNow(String),
    /// Listed as believed no more.
    #[error("{0}, or a certificate of its chain, is revoked")]
    Revoked(SpiffeId),
    /// No path to the bundle.
    #[error("the chain does not lead to the trust bundle: {0}")]
    Untrusted(String),
}

/// Why a key, chain or bundle file cannot be used. The message says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// Not PEM, or no certificate in it.
    #[error("it holds no PEM certificate; it should hold the chain, leaf first")]
    NoCertificate,
    /// No usable private key in it.
    #[error("it holds no usable private key ({0}); it should hold one P-256 or Ed25519 key as PEM")]
    NoKey(String),
    /// The key does not belong to the leaf.
    #[error("the private key does not belong to the certificate; both must come from one issue")]
    KeyMismatch,
    /// The leaf is no X.509-SVID.
    #[error(transparent)]
    Leaf(#[from] ChainError),
    /// A bundle with nothing in it, or too much.
    #[error("it holds {0} certificates; a trust bundle holds 1 to {TRUST_ANCHORS_MAX}")]
    BundleSize(usize),
    /// A bundle entry that is no certificate authority.
    #[error("its certificate number {index} cannot be a trust anchor: {why}")]
    Anchor {
        /// Counted from 1.
        index: usize,
        /// What was wrong with it.
        why: String,
    },
}

impl Svid {
    /// Reads a PEM chain (leaf first) and its PEM private key.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, SvidError> {
        let chain = pem_certificates(certificates)?;
        let private_key =
            PrivateKeyDer::from_pem_slice(key).map_err(|error| SvidError::NoKey(error.to_string()))?;
        Self::new(chain, private_key)
    }

    /// Joins a chain and its key.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        private_key: PrivateKeyDer<'static>,
    ) -> Result<Self, SvidError> {
        let leaf = read_leaf(&chain)?;
        let signing_key = SigningKey::new(&private_key)?;
        if signing_key.public_key() != leaf.public_key {
            return Err(SvidError::KeyMismatch);
        }
        Ok(Self {
            id: leaf.id,
            public_key: leaf.public_key,
            not_after: leaf.not_after,
            chain,
            private_key,
            signing_key,
        })
    }

    /// Whom this proves.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The leaf's key.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// When the leaf's validity ends.
    pub fn not_after(&self) -> WallTime {
        self.not_after
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The key for TLS.
    pub fn private_key(&self) -> &PrivateKeyDer<'static> {
        &self.private_key
    }

    /// Signs `message` with the leaf's key.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut bytes = [0; SIGNATURE_BYTES];
        match &self.signing_key {
            SigningKey::P256(pair) => {
                // Signing fails only when the operating system has no entropy at all.
                let signature = pair.sign(&SystemRandom::new(), message).expect("the system gives entropy");
                bytes.copy_from_slice(signature.as_ref());
            }
            SigningKey::Ed25519(pair) => bytes.copy_from_slice(pair.sign(message).as_ref()),
        }
        bytes
    }
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    fn new(key: &PrivateKeyDer<'_>) -> Result<Self, SvidError> {
        let der = key.secret_der();
        if let Ok(pair) = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, der) {
            return Ok(Self::P256(pair));
        }
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map(Self::Ed25519)
            .map_err(|error| SvidError::NoKey(error.to_string()))
    }

    fn public_key(&self) -> PublicKey {
        match self {
            Self::P256(pair) => PublicKey::P256(pair.public_key().as_ref().to_vec()),
            Self::Ed25519(pair) => PublicKey::Ed25519(pair.public_key().as_ref().to_vec()),
        }
    }
}

impl PublicKey {
    /// Whether `signature` over `message` was made by this key.
    pub fn verifies(&self, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        match self {
            Self::P256(point) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            Self::Ed25519(key) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature),
        }
        .is_ok()
    }

    /// A short name for the key: the SHA-256 of its bytes.
    pub fn fingerprint(&self) -> [u8; 32] {
        let (Self::P256(bytes) | Self::Ed25519(bytes)) = self;
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest(&SHA256, bytes).as_ref());
        fingerprint
    }
}

impl TrustBundle {
    /// Reads a PEM bundle that judges identities of `domain`.
    pub fn from_pem(domain: TrustDomain, pem: &[u8]) -> Result<Self, SvidError> {
        let roots = pem_certificates(pem)?;
        if roots.len() > TRUST_ANCHORS_MAX {
            return Err(SvidError::BundleSize(roots.len()));
        }
        let anchors = roots
            .iter()
            .enumerate()
            .map(|(index, root)| {
                webpki::anchor_from_trusted_cert(root)
                    .map(|anchor| anchor.to_owned())
                    .map_err(|error| SvidError::Anchor { index: index + 1, why: error.to_string() })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { domain, anchors, roots, revoked: Revocations::default(), proofs: None })
    }

    /// Remembers up to `capacity` chains and signatures that it found to be good (up to about 300
    /// bytes each), so that the same bytes cost one hash the next time. No verdict is another for it:
    /// refusals are not remembered, and validity and revocation are judged each time. For whoever
    /// judges the same bytes often, as all nodes of a simulation do together.
    pub fn remembering(self, capacity: usize) -> Self {
        Self { proofs: Some(Proofs::new(capacity)), ..self }
    }

    /// Believes nobody any more whom `revoked` lists.
    pub fn without(self, revoked: Revocations) -> Self {
        Self { revoked, ..self }
    }

    /// Who is believed no more.
    pub fn revoked(&self) -> &Revocations {
        &self.revoked
    }

    /// The trust domain whose members this bundle judges.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The root certificates, as read.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Like [`Self::verify`], without judging what the calendar says now: at the moment nearest to
    /// `wall` at which the whole chain is valid. For those that were accepted once, whom a calendar
    /// that leaps makes neither strangers nor revoked.
    pub fn verify_apart_from_time(
        &self,
        chain: &[CertificateDer<'_>],
        usage: Usage,
        wall: WallTime,
    ) -> Result<VerifiedIdentity, ChainError> {
        // Sizes first: nothing of an oversized chain is read.
        read_leaf(chain)?;
        self.verify(chain, usage, nearest_valid(chain, wall))
    }

    /// Verifies `chain` (leaf first) at wall time `wall`: sizes, one SPIFFE ID, the trust domain,
    /// a path to a root, every certificate's validity (RFC 5280, section 6), and no revocation.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        usage: Usage,
        wall: WallTime,
    ) -> Result<VerifiedIdentity, ChainError> {
        check_sizes(chain)?;
        let remembered = self.proofs.as_ref().map(|proofs| (proofs, Evidence::of_chain(chain, usage)));
        let leaf = match remembered.and_then(|(proofs, evidence)| proofs.chain(evidence, wall)) {
            Some(leaf) => leaf,
            None => {
                let leaf = self.prove(chain, usage, wall)?;
                if let Some((proofs, evidence)) = remembered
                    && chain.iter().all(|one| X509Certificate::from_der(one).is_ok())
                {
                    let (not_before, not_after) = validity(chain);
                    proofs.add_chain(evidence, ProvedChain { leaf: leaf.clone(), not_before, not_after });
                }
                leaf
            }
        };
        if self.revoked.lists(&leaf.id, chain) {
            return Err(ChainError::Revoked(leaf.id));
        }
        Ok(leaf)
    }

    /// All of [`Self::verify`] but revocation.
    fn prove(
        &self,
        chain: &[CertificateDer<'_>],
        usage: Usage,
        wall: WallTime,
    ) -> Result<VerifiedIdentity, ChainError> {
        let leaf = read_leaf(chain)?;
        if !leaf.id.is_in(&self.domain) {
            return Err(ChainError::ForeignDomain { id: leaf.id, expected: self.domain.clone() });
        }
        let usage = match usage {
            Usage::Client => KeyUsage::client_auth(),
            Usage::Server => KeyUsage::server_auth(),
        };
        let time = UnixTime::since_unix_epoch(Duration::from_millis(wall.unix_millis));
        EndEntityCert::try_from(&chain[0])
            .and_then(|certificate| {
                certificate
                    .verify_for_usage(
                        webpki::ALL_VERIFICATION_ALGS,
                        &self.anchors,
                        &chain[1..],
                        time,
                        usage,
                        None,
                        None,
                    )
                    .map(drop)
            })
            .map_err(|error| match error {
                // Without the present time, so that one reason is one text.
                webpki::Error::CertExpired { not_after, .. } => {
                    ChainError::NotValidNow(format!("it ended on {}", date(not_after)))
                }
                webpki::Error::CertNotValidYet { not_before, .. } => {
                    ChainError::NotValidNow(format!("it begins on {}", date(not_before)))
                }
                error => ChainError::Untrusted(error.to_string()),
            })?;
        Ok(leaf)
    }

    /// Whether `key` made `signature` over `message`; [`PublicKey::verifies`], remembered.
    pub(crate) fn verifies(
        &self,
        key: &PublicKey,
        message: &[u8],
        signature: &[u8; SIGNATURE_BYTES],
    ) -> bool {
        let Some(proofs) = &self.proofs else { return key.verifies(message, signature) };
        let evidence = Evidence::of_signature(key, message, signature);
        if proofs.has_signature(evidence) {
            return true;
        }
        let is_good = key.verifies(message, signature);
        if is_good {
            proofs.add_signature(evidence);
        }
        is_good
    }
}

fn date(time: UnixTime) -> String {
    let date = i64::try_from(time.as_secs()).ok().and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
    date.map_or_else(|| format!("second {} since 1970", time.as_secs()), |date| date.to_string())
}

fn pem_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, SvidError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| SvidError::NoCertificate)?;
    if certificates.is_empty() {
        return Err(SvidError::NoCertificate);
    }
    Ok(certificates)
}
