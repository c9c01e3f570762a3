//! PURE: what a QUIC datagram (RFC 9221) between nodes says.
//!
//! An empty one is a probe: that it is acknowledged was the point. Any other begins with one byte that
//! says what the rest is. A byte from a later version is ignored, for nobody waits for an answer to a
//! datagram. How a message is cut, repeated or ordered is not decided here: one datagram is one message.

use bytes::{BufMut as _, Bytes, BytesMut};

/// What one datagram says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Datagram {
    /// "Acknowledge this."
    Probe,
    /// A message for the gossip loop.
    Gossip(Bytes),
    /// Something of a later version.
    Unknown,
}

/// Bytes in front of a message.
pub(crate) const MARK_BYTES: usize = 1;

/// A gossip message, in this version's form.
const GOSSIP: u8 = 1;

impl Datagram {
    /// The empty datagram.
    pub(crate) fn probe() -> Bytes {
        Bytes::new()
    }

    /// A gossip message, ready to be sent.
    pub(crate) fn gossip(message: &[u8]) -> Bytes {
        let mut bytes = BytesMut::with_capacity(MARK_BYTES + message.len());
        bytes.put_u8(GOSSIP);
        bytes.put_slice(message);
        bytes.freeze()
    }

    /// What a peer sent.
    pub(crate) fn decode(mut bytes: Bytes) -> Self {
        match bytes.first() {
            None => Self::Probe,
            Some(&GOSSIP) => Self::Gossip(bytes.split_off(MARK_BYTES)),
            Some(_) => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_is_taken_for_a_probe() {
        assert_eq!(Datagram::decode(Datagram::probe()), Datagram::Probe);
        for message in [&b""[..], b"\x01", b"a rumour"] {
            let sent = Datagram::gossip(message);
            assert_eq!(sent.len(), MARK_BYTES + message.len());
            assert_eq!(Datagram::decode(sent), Datagram::Gossip(Bytes::copy_from_slice(message)));
        }
    }

    #[test]
    fn what_a_later_version_says_is_unknown() {
        for mark in (0..=u8::MAX).filter(|mark| *mark != GOSSIP) {
            assert_eq!(Datagram::decode(Bytes::copy_from_slice(&[mark, 1])), Datagram::Unknown, "{mark}");
        }
    }
}
