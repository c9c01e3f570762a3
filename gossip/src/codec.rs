//! The one place that names bincode: bytes of records, bounded.
//!
//! bincode 2 is unmaintained (RUSTSEC-2025-0141); behind this seam another encoder can take its
//! place. Decoding never allocates more than the limit, refuses trailing bytes, and takes each value in
//! one spelling only: bincode reads a small number in several widths, and whoever passes bytes on could
//! otherwise give one word many faces.

use bincode::enc::write::Writer;
use bincode::error::EncodeError;
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
    /// A value, spelled otherwise than [`encode`] spells it.
    #[error("not the one encoding of its value")]
    OtherSpelling,
}

/// Encodes `value`. Fails for no type of this crate: all are plain data.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).expect("plain data encodes")
}

/// Decodes exactly one `T` from all of `bytes`, at most `BYTES_MAX` of them.
pub fn decode<T: Serialize + DeserializeOwned, const BYTES_MAX: usize>(
    bytes: &[u8],
) -> Result<T, DecodeError> {
    if bytes.len() > BYTES_MAX {
        return Err(DecodeError::Oversized(bytes.len(), BYTES_MAX));
    }
    let config = bincode::config::standard().with_limit::<BYTES_MAX>();
    let (value, used): (T, usize) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|error| DecodeError::Malformed(error.to_string()))?;
    if used < bytes.len() {
        return Err(DecodeError::Trailing(bytes.len() - used));
    }
    bincode::serde::encode_into_writer(&value, Expect { rest: bytes }, bincode::config::standard())
        .map_err(|_| DecodeError::OtherSpelling)?;
    Ok(value)
}

/// Takes the bytes it expects and fails at the first other one.
struct Expect<'a> {
    rest: &'a [u8],
}

impl Writer for Expect<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.rest = self.rest.strip_prefix(bytes).ok_or(EncodeError::Other("other bytes"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_one_spelling() {
        assert_eq!(encode(&(7u64, "ab")), [7, 2, b'a', b'b']);
        let read = decode::<(u64, String), 64>;
        assert_eq!(read(&[7, 2, b'a', b'b']), Ok((7, "ab".into())));
        assert_eq!(read(&[251, 7, 0, 2, b'a', b'b']), Err(DecodeError::OtherSpelling));
        assert_eq!(read(&[7, 252, 2, 0, 0, 0, b'a', b'b']), Err(DecodeError::OtherSpelling));
    }
}
