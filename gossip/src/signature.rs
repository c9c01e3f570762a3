//! An owner's signature over a record: sealing and checking.
//!
//! What is signed is a context string, the format version and the record's bytes as they travel,
//! so a signature for one purpose never serves another, and nothing is re-encoded to be checked.
//! Which formats there are, and what a change of [`Record`] takes, says [`crate::versions`].

use crate::codec::{self, DecodeError};
use crate::limits::RECORD_BYTES_MAX;
use crate::record::Record;
use crate::svid::{PublicKey, SIGNATURE_BYTES, Svid, TrustBundle};
use crate::versions::RECORD;

/// Keeps record signatures apart from everything else the same key signs (TLS above all).
const CONTEXT: &[u8] = b"starling record\0";

/// A record as it travels: its format, its owner's signature, and the bytes that are signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedRecord {
    format: u8,
    signature: [u8; SIGNATURE_BYTES],
    body: Vec<u8>,
}

/// Why sealed bytes are not a record. The sender's fault; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    /// A format this program does not know.
    #[error("record format {0} is not supported (this program reads {RECORD})")]
    Format(u8),
    /// Shorter than a format and a signature.
    #[error("{0} bytes are too few for a sealed record")]
    Truncated(usize),
    /// Not a record, or too large.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl SealedRecord {
    /// Seals `record` with its owner's key.
    pub fn seal(record: &Record, svid: &Svid) -> Self {
        let body = codec::encode(record);
        let signature = svid.sign(&signed_bytes(RECORD.written, &body));
        Self { format: RECORD.written, body, signature }
    }

    /// The bytes that travel: one of format, 64 of signature, then the record.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + SIGNATURE_BYTES + self.body.len());
        bytes.push(self.format);
        bytes.extend_from_slice(&self.signature);
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// Reads what travelled. Nothing is checked yet but its size.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, UnsealError> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(DecodeError::Oversized(bytes.len(), RECORD_BYTES_MAX).into());
        }
        let truncated = || UnsealError::Truncated(bytes.len());
        let (format, rest) = bytes.split_first().ok_or_else(truncated)?;
        let (signature, body) = rest.split_first_chunk().ok_or_else(truncated)?;
        Ok(Self { format: *format, signature: *signature, body: body.to_vec() })
    }

    /// The record inside, still unverified: its owner is a claim until [`Self::is_signed_by`].
    pub fn unverified(&self) -> Result<Record, UnsealError> {
        if !RECORD.read(self.format) {
            return Err(UnsealError::Format(self.format));
        }
        Ok(codec::decode::<Record, RECORD_BYTES_MAX>(&self.body)?)
    }

    /// Whether `key` made the signature; `bundle` may remember that it did.
    pub fn is_signed_by(&self, key: &PublicKey, bundle: &TrustBundle) -> bool {
        bundle.verifies(key, &signed_bytes(self.format, &self.body), &self.signature)
    }
}

fn signed_bytes(format: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(CONTEXT.len() + 1 + body.len());
    bytes.extend_from_slice(CONTEXT);
    bytes.push(format);
    bytes.extend_from_slice(body);
    bytes
}
