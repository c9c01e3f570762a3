//! A certificate authority for tests: chains good and bad, for P-256 and Ed25519 leaf keys.
//!
//! It is not `starling ca`: it signs whatever a test asks for.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use starling_gossip::clock::WallTime;
use starling_gossip::svid::{Svid, TrustBundle};
use time::{Duration, OffsetDateTime};

/// What the calendar says in these tests: 2026-01-01 00:00 UTC.
pub(crate) const WALL: WallTime = WallTime { unix_millis: 1_767_225_600_000 };

/// How long leaves last from [`WALL`].
pub(crate) const VALIDITY: Duration = Duration::days(30);

/// The two kinds of leaf key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KeyKind {
    P256,
    Ed25519,
}

/// A root that signs leaves.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = wall() - Duration::days(365);
        params.not_after = wall() + Duration::days(3650);
        let pem = params.self_signed(&key).expect("a root").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A bundle that believes this root about `acme`.
    pub(crate) fn bundle(&self) -> Arc<TrustBundle> {
        bundle(&self.pem)
    }

    /// An SVID that is valid for [`VALIDITY`].
    pub(crate) fn svid(&self, id: &str, kind: KeyKind) -> Arc<Svid> {
        self.svid_until(id, kind, VALIDITY)
    }

    /// An SVID that is valid until `end` after [`WALL`].
    pub(crate) fn svid_until(&self, id: &str, kind: KeyKind, end: Duration) -> Arc<Svid> {
        let key = new_key(kind);
        let leaf = self.certificate(&[id], &key, end);
        let private = PrivateKeyDer::try_from(key.serialize_der()).expect("a private key");
        Arc::new(Svid::new(vec![leaf], private).expect("an SVID"))
    }

    /// Any leaf, also one that is no SVID.
    pub(crate) fn certificate(&self, uris: &[&str], key: &KeyPair, end: Duration) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().expect("ASCII")));
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = wall() - Duration::days(1);
        params.not_after = wall() + end;
        params.signed_by(key, &self.issuer).expect("a leaf").der().clone()
    }
}

/// A bundle that believes the roots in `pem` about `acme`.
pub(crate) fn bundle(pem: &str) -> Arc<TrustBundle> {
    let domain = "acme".parse().expect("a trust domain");
    Arc::new(TrustBundle::from_pem(domain, pem.as_bytes()).expect("a bundle"))
}

/// A new leaf key.
pub(crate) fn new_key(kind: KeyKind) -> KeyPair {
    let algorithm = match kind {
        KeyKind::P256 => &PKCS_ECDSA_P256_SHA256,
        KeyKind::Ed25519 => &PKCS_ED25519,
    };
    KeyPair::generate_for(algorithm).expect("a key")
}

fn wall() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(WALL.unix_seconds() as i64).expect("a date")
}
