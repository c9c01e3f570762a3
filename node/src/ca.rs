//! A small certificate authority for people who have no issuer: a root for one trust domain, and
//! X.509-SVIDs under it.
//!
//! Pure functions from names and wall time to PEM text; the command line puts them into files. It
//! is no service: it keeps no list of what it issued and revokes nothing, because SVIDs are short
//! lived. cert-manager, SPIRE, Vault and step do more, and their files work as well.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use starling_gossip::clock::WallTime;
use starling_gossip::identity::{SpiffeId, TrustDomain};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::X509Certificate;

/// How long a root is valid. Replacing one touches every machine, so it is long.
const ROOT_VALIDITY: Duration = Duration::from_secs(3650 * 86_400);

/// How far validity reaches back, for machines whose clocks are a little behind.
const BACKDATED: Duration = Duration::from_secs(300);

/// RFC 5280, appendix A.1: `ub-common-name`.
const COMMON_NAME_CHARS_MAX: usize = 64;

/// A root certificate and its key.
pub struct Authority {
    domain: TrustDomain,
    certificate: String,
    not_after: WallTime,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, both PEM.
pub struct Issued {
    /// The leaf.
    pub certificate: String,
    /// Its PKCS #8 key.
    pub key: String,
    /// When its validity ends.
    pub not_after: WallTime,
}

/// Why there is no authority, or no certificate. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Not a certificate, or not an authority's.
    #[error(
        "the authority's certificate cannot be used: {0}; `starling ca init` makes one, and other issuers sign with their own tools"
    )]
    Certificate(String),
    /// Not a key, or another certificate's.
    #[error("the authority's key cannot be used: {0}; it is the ca.key written together with the ca.crt")]
    Key(String),
    /// An identity of another mesh.
    #[error(
        "{id} is not of the trust domain {domain}, the only one this authority speaks for; ask for spiffe://{domain}/svc/NAME"
    )]
    ForeignDomain {
        /// Who was asked for.
        id: SpiffeId,
        /// Whom the authority speaks for.
        domain: TrustDomain,
    },
    /// The authority's own identity.
    #[error("{id} is the authority itself; ask for {id}/svc/NAME")]
    NoPath {
        /// Who was asked for.
        id: SpiffeId,
    },
    /// Valid for no time, or longer than the root.
    #[error("a certificate cannot be valid for that long: {0}")]
    Validity(&'static str),
    /// The library refused: no entropy, for instance.
    #[error("the certificate could not be made: {0}")]
    Library(#[from] rcgen::Error),
}

impl Authority {
    /// Makes a root for `domain`, valid from `wall` on.
    pub fn new(domain: TrustDomain, wall: WallTime) -> Result<Self, CaError> {
        let not_after = add(wall, ROOT_VALIDITY);
        let mut params =
            params(&format!("spiffe://{domain}"), &format!("Starling {domain}"), wall, not_after)?;
        // It signs leaves and nothing else (X509-SVID, section 4.1).
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { domain, certificate, not_after, issuer: Issuer::new(params, key) })
    }

    /// Reads a root that [`Authority::new`] made.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, CaError> {
        let unusable = |why: &str| CaError::Certificate(why.to_owned());
        let key = KeyPair::from_pem(key).map_err(|error| CaError::Key(error.to_string()))?;
        let (_, pem) = parse_x509_pem(certificate.as_bytes()).map_err(|_| unusable("it is not PEM"))?;
        let parsed = pem.parse_x509().map_err(|error| unusable(&error.to_string()))?;
        if !parsed.is_ca() {
            return Err(unusable("it may not sign certificates (no CA:TRUE)"));
        }
        if *parsed.public_key().subject_public_key.data != *rcgen::PublicKeyData::der_bytes(&key) {
            return Err(CaError::Key("it belongs to another certificate".into()));
        }
        let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self {
            domain: trust_domain(&parsed).ok_or_else(|| unusable("it names no trust domain"))?,
            certificate: certificate.to_owned(),
            not_after: WallTime { unix_millis: not_after.saturating_mul(1000) },
            issuer: Issuer::from_ca_cert_pem(certificate, key)?,
        })
    }

    /// The trust domain it speaks for.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Its certificate: the trust bundle of its mesh.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// Its key, to be kept secret.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// When its validity ends.
    pub fn not_after(&self) -> WallTime {
        self.not_after
    }

    /// Makes an X.509-SVID for `id` with a key of its own, valid for `ttl` from `wall` on.
    pub fn issue(&self, id: &SpiffeId, ttl: Duration, wall: WallTime) -> Result<Issued, CaError> {
        if !id.is_in(&self.domain) {
            return Err(CaError::ForeignDomain { id: id.clone(), domain: self.domain.clone() });
        }
        if id.path().is_empty() {
            return Err(CaError::NoPath { id: id.clone() });
        }
        let not_after = add(wall, ttl);
        if ttl.as_secs() == 0 {
            return Err(CaError::Validity("ask for a second or more, such as --ttl 24h"));
        }
        if not_after > self.not_after {
            return Err(CaError::Validity("the authority's own certificate ends before; shorten --ttl"));
        }
        let name = id.path().rsplit('/').next().unwrap_or_default();
        let mut params = params(id.as_str(), name, wall, not_after)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { certificate, key: key.serialize_pem(), not_after })
    }
}

/// What root and leaf have in common: one URI, a name for people, and validity.
fn params(uri: &str, name: &str, from: WallTime, to: WallTime) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.distinguished_name = DistinguishedName::new();
    let name: String = name.chars().take(COMMON_NAME_CHARS_MAX).collect();
    params.distinguished_name.push(DnType::CommonName, name);
    let since = WallTime { unix_millis: from.unix_millis.saturating_sub(BACKDATED.as_millis() as u64) };
    params.not_before = date(since)?;
    params.not_after = date(to)?;
    Ok(params)
}

fn add(wall: WallTime, duration: Duration) -> WallTime {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    WallTime { unix_millis: wall.unix_millis.saturating_add(millis) }
}

fn date(wall: WallTime) -> Result<OffsetDateTime, CaError> {
    let seconds = i64::try_from(wall.unix_seconds()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| {
        CaError::Validity("it ends after the year 9999; set the machine's clock or shorten --ttl")
    })
}

/// An authority's one URI is its trust domain and has no path (X509-SVID, section 3.2).
fn trust_domain(certificate: &X509Certificate<'_>) -> Option<TrustDomain> {
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.parse::<SpiffeId>().ok(),
        _ => None,
    });
    let id = uris.next()?;
    (id.path().is_empty() && uris.next().is_none()).then(|| id.trust_domain())
}

#[cfg(test)]
mod tests {
    use starling_gossip::svid::{ChainError, Svid, SvidError, TrustBundle, Usage};

    use super::*;

    const NOW: WallTime = WallTime { unix_millis: 1_800_000_000_000 };
    const DAY: Duration = Duration::from_secs(86_400);

    fn authority() -> Authority {
        Authority::new("acme".parse().expect("a domain"), NOW).expect("a root")
    }

    fn id(text: &str) -> SpiffeId {
        text.parse().expect(text)
    }

    fn later(duration: Duration) -> WallTime {
        add(NOW, duration)
    }

    fn svid(issued: &Issued) -> Svid {
        Svid::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).expect("an SVID")
    }

    fn bundle(authority: &Authority) -> TrustBundle {
        TrustBundle::from_pem(authority.domain().clone(), authority.certificate_pem().as_bytes())
            .expect("a bundle")
    }

    #[test]
    fn issued_files_prove_their_identity_both_ways_until_they_expire() {
        let authority = authority();
        let issued = authority.issue(&id("spiffe://acme/eu/svc/web"), DAY, NOW).expect("issued");
        let (svid, bundle) = (svid(&issued), bundle(&authority));
        assert_eq!(svid.id(), &id("spiffe://acme/eu/svc/web"));
        assert_eq!(svid.not_after(), later(DAY));
        for usage in [Usage::Client, Usage::Server] {
            // Five minutes back: the other machine's clock may be behind.
            let earlier = WallTime { unix_millis: NOW.unix_millis - 299_000 };
            for wall in [earlier, NOW, later(DAY - Duration::from_secs(1))] {
                let verified = bundle.verify(svid.chain(), usage, wall).expect("verified");
                assert_eq!(&verified.id, svid.id());
            }
            let expired = bundle.verify(svid.chain(), usage, later(DAY + Duration::from_secs(1)));
            assert!(matches!(expired, Err(ChainError::NotValidNow(_))), "{expired:?}");
        }
    }

    #[test]
    fn an_authority_read_back_issues_for_the_same_bundle() {
        let made = authority();
        let read = Authority::from_pem(made.certificate_pem(), &made.key_pem()).expect("read back");
        assert_eq!(read.domain(), made.domain());
        assert_eq!(read.not_after(), made.not_after());
        let svid = svid(&read.issue(&id("spiffe://acme/svc/web"), DAY, NOW).expect("issued"));
        bundle(&made).verify(svid.chain(), Usage::Server, NOW).expect("verified");
    }

    #[test]
    fn another_authority_of_the_same_name_is_not_believed() {
        let svid = svid(&authority().issue(&id("spiffe://acme/svc/web"), DAY, NOW).expect("issued"));
        let refused = bundle(&authority()).verify(svid.chain(), Usage::Client, NOW);
        assert!(matches!(refused, Err(ChainError::Untrusted(_))), "{refused:?}");
    }

    #[test]
    fn what_it_should_not_sign_it_refuses_with_the_reason() {
        let authority = authority();
        for (asked, ttl, why) in [
            ("spiffe://other/svc/web", DAY, "not of the trust domain acme"),
            ("spiffe://acme", DAY, "authority itself"),
            ("spiffe://acme/svc/web", Duration::ZERO, "a second or more"),
            ("spiffe://acme/svc/web", DAY * 3651, "ends before"),
        ] {
            let error = authority.issue(&id(asked), ttl, NOW).err().expect(asked).to_string();
            assert!(error.contains(why), "{asked}: {error}");
        }
    }

    #[test]
    fn files_that_are_no_authority_are_refused_with_the_reason() {
        let authority = authority();
        let leaf = authority.issue(&id("spiffe://acme/svc/web"), DAY, NOW).expect("issued");
        let root = authority.certificate_pem();
        for (certificate, key, why) in [
            (root, "no key", "key cannot be used"),
            (root, leaf.key.as_str(), "another certificate"),
            ("no certificate", leaf.key.as_str(), "not PEM"),
            (leaf.certificate.as_str(), leaf.key.as_str(), "CA:TRUE"),
        ] {
            let error = Authority::from_pem(certificate, key).err().expect(why).to_string();
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn a_certificate_with_two_uris_is_no_identity() {
        let authority = authority();
        let mut params = params("spiffe://acme/svc/web", "web", NOW, later(DAY)).expect("params");
        params.subject_alt_names.push(SanType::URI("spiffe://acme/svc/db".try_into().expect("ASCII")));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let certificate = params.signed_by(&key, &authority.issuer).expect("signed").pem();
        let refused = Svid::from_pem(certificate.as_bytes(), key.serialize_pem().as_bytes());
        assert!(matches!(refused, Err(SvidError::Leaf(ChainError::NotOneSpiffeId(_)))), "{refused:?}");
    }
}
