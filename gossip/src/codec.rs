//! The one place that names bincode: bytes of records, bounded.
//!
//! bincode 2 is unmaintained (RUSTSEC-2025-0141); behind this seam another encoder can take its
//! place. Decoding never allocates more than the limit and refuses trailing bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The bytes are not what they should be. The sender's fault; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than the limit.
    #[error("{0} bytes where at most {1} are allowed")]
    Oversized(usize, usize),
    /// Not the encoding of the type.
    #[error("malformed: {0}")]
    Malformed(String),
    /// More bytes than the value needs.
    #[error("{0} bytes too many")]
    Trailing(usize),
}

/// Encodes `value`. Fails for no type of this crate: all are plain data.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).expect("plain data encodes")
}

/// Decodes exactly one `T` from all of `bytes`, at most `BYTES_MAX` of them.
pub fn decode<T: DeserializeOwned, const BYTES_MAX: usize>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > BYTES_MAX {
        return Err(DecodeError::Oversized(bytes.len(), BYTES_MAX));
    }
    let config = bincode::config::standard().with_limit::<BYTES_MAX>();
    let (value, used) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|error| DecodeError::Malformed(error.to_string()))?;
    if used < bytes.len() {
        return Err(DecodeError::Trailing(bytes.len() - used));
    }
    Ok(value)
}
