//! PURE: identities, certificates and keys that are believed no more, as a file lists them.
//!
//! One entry a line; `#` begins a comment. An entry is a SPIFFE ID, a certificate's serial number in
//! hexadecimal, or the SHA-256 of a certificate or of a public key (both as DER, as `openssl x509
//! -fingerprint` and `openssl pkey -pubin -outform der` have them); colons and case do not matter.
//! [`crate::svid::TrustBundle::verify`] asks it, so that records and connections are judged alike.
//! It is no CRL: nobody signs it, and it says what this node believes.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::identity::SpiffeId;
use crate::limits::REVOCATIONS_MAX;

/// Bytes of a serial number (RFC 5280, section 4.1.2.2).
const SERIAL_BYTES_MAX: usize = 20;
const HASH_BYTES: usize = 32;

/// What is believed no more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    ids: BTreeSet<SpiffeId>,
    /// Without leading zeros.
    serials: BTreeSet<Vec<u8>>,
    hashes: BTreeSet<Vec<u8>>,
}

/// A line that is no entry, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// Not text.
    #[error("it is not UTF-8 text; it should hold one entry a line")]
    NotText,
    /// None of the three.
    #[error(
        "line {line} is {found:?}; it should be a SPIFFE ID, a serial number in hexadecimal, or the SHA-256 of a \
         certificate or public key"
    )]
    Malformed {
        /// Counted from 1.
        line: usize,
        /// Its beginning.
        found: String,
    },
    /// More than anybody needs.
    #[error("it holds more than {REVOCATIONS_MAX} entries; replace the issuer's root instead")]
    TooMany,
}

impl Revocations {
    /// Reads a file's content.
    pub fn parse(bytes: &[u8]) -> Result<Self, RevocationError> {
        let text = std::str::from_utf8(bytes).map_err(|_| RevocationError::NotText)?;
        let mut all = Self::default();
        for (index, line) in text.lines().enumerate() {
            let entry = line.split_once('#').map_or(line, |(entry, _)| entry).trim();
            if entry.is_empty() {
                continue;
            }
            if !all.add(entry) {
                let found = entry.chars().take(80).collect();
                return Err(RevocationError::Malformed { line: index + 1, found });
            }
            if all.len() > REVOCATIONS_MAX {
                return Err(RevocationError::TooMany);
            }
        }
        Ok(all)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.ids.len() + self.serials.len() + self.hashes.len()
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `id`, or any certificate that leads to it, is listed.
    pub fn lists(&self, id: &SpiffeId, chain: &[CertificateDer<'_>]) -> bool {
        self.ids.contains(id) || chain.iter().any(|certificate| self.lists_certificate(certificate))
    }

    fn lists_certificate(&self, der: &[u8]) -> bool {
        if self.serials.is_empty() && self.hashes.is_empty() {
            return false;
        }
        if self.hashes.contains(digest(&SHA256, der).as_ref()) {
            return true;
        }
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
        self.serials.contains(significant(certificate.raw_serial()))
            || self.hashes.contains(digest(&SHA256, certificate.public_key().raw).as_ref())
    }

    fn add(&mut self, entry: &str) -> bool {
        if let Ok(id) = entry.parse() {
            self.ids.insert(id);
            return true;
        }
        match hexadecimal(entry) {
            Some(bytes) if bytes.len() == HASH_BYTES => self.hashes.insert(bytes),
            Some(bytes) if bytes.len() <= SERIAL_BYTES_MAX => {
                self.serials.insert(significant(&bytes).to_vec())
            }
            _ => return false,
        };
        true
    }
}

/// The bytes of an entry; an odd digit in front stands alone, as tools print serial numbers.
fn hexadecimal(entry: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = entry
        .chars()
        .filter(|one| *one != ':')
        .map(|one| one.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let (odd, pairs) = digits.split_at(digits.len() % 2);
    let bytes: Vec<u8> =
        odd.iter().copied().chain(pairs.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1])).collect();
    (!bytes.is_empty()).then_some(bytes)
}

fn significant(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str =
        "E3:B0:C4:42:98:FC:1C:14:9A:FB:F4:C8:99:6F:B9:24:27:AE:41:E4:64:9B:93:4C:A4:95:99:1B:78:52:B8:55";

    #[test]
    fn every_kind_of_entry_is_read() {
        let text =
            format!("# a comment\n\nspiffe://acme/svc/web  # stolen\n0a1b\n A1B \r\n{HASH}\n00:0A:1B\n");
        let read = Revocations::parse(text.as_bytes()).expect("a right file");
        assert_eq!(read.len(), 3, "one serial number, told three ways");
        assert!(read.lists(&"spiffe://acme/svc/web".parse().expect("an identity"), &[]));
        assert!(!read.lists(&"spiffe://acme/svc/db".parse().expect("an identity"), &[]));
        assert_eq!(Revocations::parse(b""), Ok(Revocations::default()));
    }

    #[test]
    fn a_wrong_line_is_named() {
        let rows: [(&[u8], &str); 6] = [
            (b"spiffe://acme/svc/web\nspiffe://acme/svc/*\n", "line 2"),
            (b"xyz", "line 1"),
            (b"\n\n0a1b2c3d4e5f0a1b2c3d4e5f0a1b2c3d4e5f0a1b2c\n", "line 3"),
            (b":", "line 1"),
            (b"0x0a1b", "line 1"),
            (b"\xff", "UTF-8"),
        ];
        for (text, message) in rows {
            let error = Revocations::parse(text).expect_err("a wrong file").to_string();
            assert!(error.contains(message), "{error}");
        }
        let many: String = (0..=REVOCATIONS_MAX + 1).map(|number| format!("{number:x}\n")).collect();
        assert_eq!(Revocations::parse(many.as_bytes()), Err(RevocationError::TooMany));
    }
}
