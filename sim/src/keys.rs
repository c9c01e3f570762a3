//! Identities made from the seed: Ed25519 keys, and certificates that are the same bytes each run.
//!
//! ECDSA signatures vary with the operating system's chance, so nothing here is P-256.

use std::sync::Arc;

use anyhow::Context as _;
use rand::Rng as _;
use rand::rngs::StdRng;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ED25519,
    SanType, SerialNumber,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use starling_gossip::clock::WallTime;
use starling_gossip::identity::TrustDomain;
use starling_gossip::svid::{Svid, TrustBundle};
use time::{Duration, OffsetDateTime};

/// What the calendar says when a simulation starts: 2026-01-01 00:00 UTC.
pub const WALL_AT_START: WallTime = WallTime { unix_millis: 1_767_225_600_000 };

/// How long before and after the start certificates are valid.
const VALID_BEFORE: Duration = Duration::days(1);
const VALID_AFTER: Duration = Duration::days(365);

/// Chains and signatures that all nodes together remember as good: three of each of a thousand nodes,
/// and room for what changes. About 20 MB when full.
const PROOFS_REMEMBERED: usize = 64 * 1024;

/// The mesh of every simulation.
pub const TRUST_DOMAIN: &str = "sim";

/// An Ed25519 private key in PKCS#8 up to its 32 bytes (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The simulated mesh's certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    bundle: Arc<TrustBundle>,
    issued: u64,
}

impl Authority {
    /// A root from the next numbers of `rng`.
    pub fn new(rng: &mut StdRng) -> anyhow::Result<Self> {
        let (key, _) = new_key(rng)?;
        let mut params = params(0)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key)?.pem();
        let domain: TrustDomain = TRUST_DOMAIN.parse()?;
        // All nodes judge the same records: each is proved once, and its proof shared.
        let bundle = TrustBundle::from_pem(domain, root.as_bytes())?.remembering(PROOFS_REMEMBERED);
        let bundle = Arc::new(bundle);
        Ok(Self { issuer: Issuer::new(params, key), bundle, issued: 0 })
    }

    /// What all nodes believe.
    pub fn bundle(&self) -> Arc<TrustBundle> {
        self.bundle.clone()
    }

    /// An SVID that may announce `service`.
    pub fn svid(&mut self, service: &str, rng: &mut StdRng) -> anyhow::Result<Arc<Svid>> {
        let (key, private_key) = new_key(rng)?;
        self.issued += 1;
        let mut params = params(self.issued)?;
        let id = format!("spiffe://{TRUST_DOMAIN}/svc/{service}");
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer)?.der().clone();
        Ok(Arc::new(Svid::new(vec![leaf], private_key)?))
    }
}

fn new_key(rng: &mut StdRng) -> anyhow::Result<(KeyPair, PrivateKeyDer<'static>)> {
    let secret: [u8; 32] = rng.random();
    let pkcs8 = PrivatePkcs8KeyDer::from([PKCS8_PREFIX.as_slice(), &secret].concat());
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &PKCS_ED25519).context("an Ed25519 key")?;
    Ok((key, PrivateKeyDer::Pkcs8(pkcs8)))
}

/// Everything that is chance or the calendar's in a certificate, fixed.
fn params(serial: u64) -> anyhow::Result<CertificateParams> {
    let start = OffsetDateTime::from_unix_timestamp(WALL_AT_START.unix_seconds() as i64)?;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(serial + 1));
    params.not_before = start - VALID_BEFORE;
    params.not_after = start + VALID_AFTER;
    Ok(params)
}
