//! PURE: the first bytes of every stream, and the callee's one answer.
//!
//! A stream begins with a version byte, a kind byte, the body's length as two bytes (big endian),
//! and the body as the gossip core encodes records. On bidirectional streams the callee answers once in the same shape,
//! accepted or refused, before any other byte. What follows belongs to the stream's kind. Which versions
//! there are, and how one is added, says [`starling_gossip::versions`].
//!
//! A peer's bytes never panic here, and never cost more than [`HEADER_BODY_BYTES_MAX`]. Reading
//! them from the network is `serve`'s and [`crate::stream`]'s work.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use starling_gossip::codec;
use starling_gossip::identity::ServiceName;
use starling_gossip::limits::LABEL_BYTES_MAX;
use starling_gossip::versions::STREAM;

use crate::limits::{HEADER_BODY_BYTES_MAX, REFUSAL_DETAIL_BYTES_MAX};

/// Bytes before the body.
pub const PREAMBLE_BYTES: usize = 4;

/// How a stream begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// What the stream carries.
    pub kind: StreamKind,
}

/// What a stream carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Unidirectional: one gossip message, to the stream's end.
    Gossip,
    /// Unidirectional, empty, from the callee: your certificate was accepted. TLS 1.3 does not
    /// tell the dialler (RFC 8446, section 4.4).
    Welcome,
    /// Unidirectional, empty: I open no more streams here; close once you have none.
    Goodbye,
    /// One TCP connection to an instance.
    Tcp {
        /// The service called.
        service: ServiceName,
        /// Which instance of it, by the id in its record.
        instance: String,
    },
    /// HTTP/1.1 requests to an instance, one after the other.
    Http1 {
        /// The service called.
        service: ServiceName,
        /// Which instance of it, by the id in its record.
        instance: String,
    },
    /// One HTTP/2 connection to an instance.
    Http2 {
        /// The service called.
        service: ServiceName,
        /// Which instance of it, by the id in its record.
        instance: String,
    },
    /// Requests of HTTP/1.1 to an instance, one after the other, as sidecars' own messages.
    Http1Messages {
        /// The service called.
        service: ServiceName,
        /// Which instance of it, by the id in its record.
        instance: String,
    },
    /// The same of HTTP/2.
    Http2Messages {
        /// The service called.
        service: ServiceName,
        /// Which instance of it, by the id in its record.
        instance: String,
    },
}

/// The callee's answer to a bidirectional stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The stream is connected.
    Accepted,
    /// It is not, and this is why.
    Refused(Refusal),
}

/// Why a callee refused a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("the peer refused the stream: {reason}: {detail}")]
pub struct Refusal {
    /// For programs.
    pub reason: RefusalReason,
    /// For people; cut at [`REFUSAL_DETAIL_BYTES_MAX`].
    pub detail: String,
}

/// Why a callee refused a stream, for programs. The order is the wire's: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RefusalReason {
    /// The header's version is not spoken here.
    UnsupportedVersion,
    /// The stream's kind is not served here, or not in this direction.
    UnsupportedKind,
    /// The header cannot be read.
    Malformed,
    /// This node has no such instance (any more).
    NoSuchInstance,
    /// The caller may not call it.
    Denied,
    /// The workload did not take the connection.
    WorkloadUnreachable,
    /// The instance finishes its work and takes nothing new.
    Draining,
    /// Too much is waiting already.
    Overloaded,
}

/// Why bytes are no header. The sender's fault, or it speaks a newer version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Another version.
    #[error("stream protocol version {0} is not supported here, {STREAM} is")]
    UnsupportedVersion(u8),
    /// A kind of a later version.
    #[error("stream kind {0} is not supported here")]
    UnsupportedKind(u8),
    /// A body longer than any header's.
    #[error("a stream header of {0} bytes, at most {HEADER_BODY_BYTES_MAX} are allowed")]
    Oversized(usize),
    /// A body that is not what its kind says.
    #[error("malformed stream header: {0}")]
    Malformed(String),
}

/// The four bytes before a body, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    kind: u8,
    body_bytes: usize,
}

const GOSSIP: u8 = 1;
const WELCOME: u8 = 2;
const GOODBYE: u8 = 3;
const TCP: u8 = 16;
const HTTP1: u8 = 17;
const HTTP2: u8 = 18;
const HTTP1_MESSAGES: u8 = 19;
const HTTP2_MESSAGES: u8 = 20;

const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;

impl StreamHeader {
    /// A header of this kind.
    pub fn new(kind: StreamKind) -> Self {
        Self { kind }
    }

    /// The bytes a stream begins with. Fails only for an instance id no record can have.
    pub fn encode(&self) -> Result<Vec<u8>, HeaderError> {
        match &self.kind {
            StreamKind::Gossip => Ok(framed(GOSSIP, &[])),
            StreamKind::Welcome => Ok(framed(WELCOME, &[])),
            StreamKind::Goodbye => Ok(framed(GOODBYE, &[])),
            StreamKind::Tcp { service, instance } => target(TCP, service, instance),
            StreamKind::Http1 { service, instance } => target(HTTP1, service, instance),
            StreamKind::Http2 { service, instance } => target(HTTP2, service, instance),
            StreamKind::Http1Messages { service, instance } => target(HTTP1_MESSAGES, service, instance),
            StreamKind::Http2Messages { service, instance } => target(HTTP2_MESSAGES, service, instance),
        }
    }

    /// Reads the body that `preamble` announced.
    pub fn decode(preamble: Preamble, body: &[u8]) -> Result<Self, HeaderError> {
        let call = |kind: fn(ServiceName, String) -> StreamKind| {
            read_target(body).map(|(service, instance)| kind(service, instance))
        };
        let kind = match preamble.kind {
            GOSSIP => empty(body, StreamKind::Gossip),
            WELCOME => empty(body, StreamKind::Welcome),
            GOODBYE => empty(body, StreamKind::Goodbye),
            TCP => call(|service, instance| StreamKind::Tcp { service, instance }),
            HTTP1 => call(|service, instance| StreamKind::Http1 { service, instance }),
            HTTP2 => call(|service, instance| StreamKind::Http2 { service, instance }),
            HTTP1_MESSAGES => call(|service, instance| StreamKind::Http1Messages { service, instance }),
            HTTP2_MESSAGES => call(|service, instance| StreamKind::Http2Messages { service, instance }),
            unknown => Err(HeaderError::UnsupportedKind(unknown)),
        }?;
        Ok(Self { kind })
    }
}

impl StreamKind {
    /// Whether the stream has an answer, and so both directions.
    pub fn is_call(&self) -> bool {
        self.target().is_some()
    }

    /// The service and instance called, if any.
    pub fn target(&self) -> Option<(&ServiceName, &str)> {
        match self {
            Self::Tcp { service, instance }
            | Self::Http1 { service, instance }
            | Self::Http2 { service, instance }
            | Self::Http1Messages { service, instance }
            | Self::Http2Messages { service, instance } => Some((service, instance)),
            Self::Gossip | Self::Welcome | Self::Goodbye => None,
        }
    }
}

impl Preamble {
    /// Reads the first four bytes, of a header or of an answer.
    pub fn decode(bytes: [u8; PREAMBLE_BYTES]) -> Result<Self, HeaderError> {
        let [version, kind, length @ ..] = bytes;
        if !STREAM.read(version) {
            return Err(HeaderError::UnsupportedVersion(version));
        }
        let body_bytes = usize::from(u16::from_be_bytes(length));
        if body_bytes > HEADER_BODY_BYTES_MAX {
            return Err(HeaderError::Oversized(body_bytes));
        }
        Ok(Self { kind, body_bytes })
    }

    /// Bytes of the body that follows, at most [`HEADER_BODY_BYTES_MAX`].
    pub fn body_bytes(self) -> usize {
        self.body_bytes
    }
}

impl Answer {
    /// The bytes of the answer. A long detail is cut.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Accepted => framed(ACCEPTED, &[]),
            Self::Refused(refusal) => {
                let mut refusal = refusal.clone();
                refusal.detail.truncate(refusal.detail.floor_char_boundary(REFUSAL_DETAIL_BYTES_MAX));
                framed(REFUSED, &codec::encode(&refusal))
            }
        }
    }

    /// Reads the body that `preamble` announced.
    pub fn decode(preamble: Preamble, body: &[u8]) -> Result<Self, HeaderError> {
        match preamble.kind {
            ACCEPTED => empty(body, Self::Accepted),
            REFUSED => {
                let refusal: Refusal = from_bytes(body)?;
                if refusal.detail.len() > REFUSAL_DETAIL_BYTES_MAX {
                    return Err(HeaderError::Malformed("the detail is too long".into()));
                }
                Ok(Self::Refused(refusal))
            }
            unknown => Err(HeaderError::Malformed(format!("answer {unknown} is unknown"))),
        }
    }
}

impl Refusal {
    /// A refusal with its line for a person.
    pub fn new(reason: RefusalReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

impl RefusalReason {
    /// The reason's name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnsupportedVersion => "unsupported_version",
            Self::UnsupportedKind => "unsupported_kind",
            Self::Malformed => "malformed",
            Self::NoSuchInstance => "no_such_instance",
            Self::Denied => "denied",
            Self::WorkloadUnreachable => "workload_unreachable",
            Self::Draining => "draining",
            Self::Overloaded => "overloaded",
        }
    }
}

impl std::fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl HeaderError {
    /// How a callee answers such bytes.
    pub fn refusal(&self) -> Refusal {
        let reason = match self {
            Self::UnsupportedVersion(_) => RefusalReason::UnsupportedVersion,
            Self::UnsupportedKind(_) => RefusalReason::UnsupportedKind,
            Self::Oversized(_) | Self::Malformed(_) => RefusalReason::Malformed,
        };
        Refusal::new(reason, self.to_string())
    }
}

fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("bodies are bounded far below 64 KiB").to_be_bytes();
    let mut bytes = Vec::with_capacity(PREAMBLE_BYTES + body.len());
    bytes.extend_from_slice(&[STREAM.written, kind, length[0], length[1]]);
    bytes.extend_from_slice(body);
    bytes
}

fn target(kind: u8, service: &ServiceName, instance: &str) -> Result<Vec<u8>, HeaderError> {
    check_instance(instance)?;
    Ok(framed(kind, &codec::encode(&(service, instance))))
}

fn read_target(body: &[u8]) -> Result<(ServiceName, String), HeaderError> {
    let (service, instance): (ServiceName, String) = from_bytes(body)?;
    check_instance(&instance)?;
    Ok((service, instance))
}

fn check_instance(instance: &str) -> Result<(), HeaderError> {
    if instance.len() > LABEL_BYTES_MAX {
        return Err(HeaderError::Malformed(format!("an instance id has at most {LABEL_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn empty<T>(body: &[u8], value: T) -> Result<T, HeaderError> {
    if body.is_empty() { Ok(value) } else { Err(HeaderError::Malformed("its body should be empty".into())) }
}

fn from_bytes<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, HeaderError> {
    codec::decode::<T, HEADER_BODY_BYTES_MAX>(bytes)
        .map_err(|error| HeaderError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_header(bytes: &[u8]) -> Result<StreamHeader, HeaderError> {
        let (preamble, body) = split(bytes)?;
        StreamHeader::decode(preamble, body)
    }

    fn decode_answer(bytes: &[u8]) -> Result<Answer, HeaderError> {
        let (preamble, body) = split(bytes)?;
        Answer::decode(preamble, body)
    }

    fn split(bytes: &[u8]) -> Result<(Preamble, &[u8]), HeaderError> {
        let short = || HeaderError::Malformed("short".into());
        let (first, rest) = bytes.split_first_chunk::<PREAMBLE_BYTES>().ok_or_else(short)?;
        let preamble = Preamble::decode(*first)?;
        Ok((preamble, rest.get(..preamble.body_bytes()).ok_or_else(short)?))
    }

    #[test]
    fn strangers_are_told_what_is_wrong() {
        let reason = |bytes: &[u8]| decode_header(bytes).expect_err("no header").refusal().reason;
        assert_eq!(reason(&[2, GOSSIP, 0, 0]), RefusalReason::UnsupportedVersion);
        assert_eq!(reason(&[STREAM.written, 99, 0, 0]), RefusalReason::UnsupportedKind);
        assert_eq!(reason(&[STREAM.written, TCP, 255, 255]), RefusalReason::Malformed);
        assert_eq!(reason(&[STREAM.written, TCP, 0, 0]), RefusalReason::Malformed);
        assert_eq!(reason(&[STREAM.written, GOSSIP, 0, 1, 7]), RefusalReason::Malformed);
        let name = |text: &str| codec::encode(&(text, "web-1"));
        assert_eq!(reason(&framed(TCP, &name("Not A Name"))), RefusalReason::Malformed);
        let mut trailing = name("web");
        trailing.push(0);
        assert_eq!(reason(&framed(TCP, &trailing)), RefusalReason::Malformed);
    }

    #[test]
    fn an_instance_id_no_record_can_have_is_not_sent() {
        let service = "web".parse().expect("a name");
        let header = StreamHeader::new(StreamKind::Tcp { service, instance: "x".repeat(64) });
        assert!(header.encode().is_err());
    }

    #[test]
    fn the_answer_is_bounded() {
        let long = Refusal::new(RefusalReason::Denied, "é".repeat(1_000));
        let bytes = Answer::Refused(long).encode();
        assert!(bytes.len() <= PREAMBLE_BYTES + REFUSAL_DETAIL_BYTES_MAX + 8);
        assert!(matches!(decode_answer(&bytes), Ok(Answer::Refused(_))));
        assert!(decode_answer(&framed(REFUSED, &[200, 0])).is_err(), "a reason of a later version");
    }

    fn kinds() -> impl Strategy<Value = StreamKind> {
        let named = ("[a-z]([a-z0-9]{0,61}[a-z0-9])?(\\.[a-z0-9]{1,63})?", "[a-zA-Z0-9._-]{0,63}", 0..5);
        prop_oneof![
            Just(StreamKind::Gossip),
            Just(StreamKind::Welcome),
            Just(StreamKind::Goodbye),
            named.prop_map(|(service, instance, which)| {
                let service = service.parse().expect("the pattern gives names");
                match which {
                    0 => StreamKind::Tcp { service, instance },
                    1 => StreamKind::Http1 { service, instance },
                    2 => StreamKind::Http2 { service, instance },
                    3 => StreamKind::Http1Messages { service, instance },
                    _ => StreamKind::Http2Messages { service, instance },
                }
            }),
        ]
    }

    proptest! {
        #[test]
        fn headers_come_back(kind in kinds()) {
            let header = StreamHeader::new(kind);
            prop_assert_eq!(decode_header(&header.encode().expect("encodes")), Ok(header));
        }

        #[test]
        fn answers_come_back(detail in "\\PC{0,40}") {
            let answer = Answer::Refused(Refusal::new(RefusalReason::Overloaded, detail));
            prop_assert_eq!(decode_answer(&answer.encode()), Ok(answer));
        }

        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), steer: bool) {
            if steer && bytes.len() >= 4 {
                (bytes[0], bytes[1], bytes[2]) = (STREAM.written, TCP + bytes[1] % 6, 0);
            }
            let _ = decode_header(&bytes);
            let _ = decode_answer(&bytes);
        }
    }
}
