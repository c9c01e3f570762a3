//! PURE: what a certificate chain claims, before anything of it is proved.
//!
//! [`crate::svid::TrustBundle`] proves it. Sizes come first: nothing of an oversized chain is read.

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::clock::WallTime;
use crate::identity::SpiffeId;
use crate::limits::{CERTIFICATE_BYTES_MAX, CHAIN_CERTIFICATES_MAX};
use crate::svid::{ChainError, PublicKey, VerifiedIdentity};

/// Nothing of an oversized chain is read.
pub(crate) fn check_sizes(chain: &[CertificateDer<'_>]) -> Result<(), ChainError> {
    if chain.len() > CHAIN_CERTIFICATES_MAX || chain.iter().any(|one| one.len() > CERTIFICATE_BYTES_MAX) {
        return Err(ChainError::Oversized);
    }
    Ok(())
}

/// What the leaf claims; nothing of it is proved yet.
pub(crate) fn read_leaf(chain: &[CertificateDer<'_>]) -> Result<VerifiedIdentity, ChainError> {
    check_sizes(chain)?;
    let leaf = chain.first().ok_or(ChainError::Empty)?;
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|error| ChainError::Malformed(error.to_string()))?;
    let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok(VerifiedIdentity {
        id: spiffe_id(&certificate)?,
        public_key: leaf_key(&certificate)?,
        not_after: WallTime { unix_millis: not_after.saturating_mul(1000) },
    })
}

/// The moment nearest to `wall` at which every certificate of `chain` is valid, if there is one.
pub(crate) fn nearest_valid(chain: &[CertificateDer<'_>], wall: WallTime) -> WallTime {
    let (not_before, not_after) = validity(chain);
    wall.max(not_before).min(not_after)
}

/// From when and until when every certificate of `chain` that can be read is valid; where no moment is, the end
/// comes before the beginning.
pub(crate) fn validity(chain: &[CertificateDer<'_>]) -> (WallTime, WallTime) {
    let at = |time: ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
        WallTime { unix_millis: seconds.saturating_mul(1000) }
    };
    let always = (WallTime { unix_millis: 0 }, WallTime { unix_millis: u64::MAX });
    let read = chain.iter().filter_map(|der| X509Certificate::from_der(der).ok());
    read.fold(always, |(not_before, not_after), (_, certificate)| {
        let validity = certificate.validity();
        (not_before.max(at(validity.not_before)), not_after.min(at(validity.not_after)))
    })
}

fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, ChainError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| ChainError::Malformed(error.to_string()))?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next().ok_or_else(|| ChainError::NotOneSpiffeId("has none".into()))?;
    let more = uris.count();
    if more > 0 {
        return Err(ChainError::NotOneSpiffeId(format!("has {}", more + 1)));
    }
    uri.parse().map_err(|error| ChainError::NotOneSpiffeId(format!("has another: {error}")))
}

fn leaf_key(certificate: &X509Certificate<'_>) -> Result<PublicKey, ChainError> {
    /// id-ecPublicKey with prime256v1 (RFC 5480), and id-Ed25519 (RFC 8410).
    const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
    const PRIME256V1: &str = "1.2.840.10045.3.1.7";
    const ID_ED25519: &str = "1.3.101.112";

    let info = certificate.public_key();
    let bytes = info.subject_public_key.data.to_vec();
    match info.algorithm.algorithm.to_id_string().as_str() {
        EC_PUBLIC_KEY => {
            let curve = info.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
            if curve.is_some_and(|oid| oid.to_id_string() == PRIME256V1) {
                Ok(PublicKey::P256(bytes))
            } else {
                Err(ChainError::UnsupportedKey)
            }
        }
        ID_ED25519 => Ok(PublicKey::Ed25519(bytes)),
        _ => Err(ChainError::UnsupportedKey),
    }
}
