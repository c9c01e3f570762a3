//! HTTP messages between two sidecars: requests and answers in frames of our own, on mesh streams that are kept.
//!
//! Both ends are ours, and QUIC has streams, windows and resets already; so there is no HTTP/1.1 to parse between them, and
//! no HTTP/2 with windows, tables and tasks of its own inside a QUIC stream. A stream carries one exchange at a
//! time, each way one message: a head, then data, then trailers perhaps, and the frame that is its last says so. An answer
//! that breaks off has a last frame that says why, behind all that came before; who gives an exchange up resets its
//! direction of the stream and stops the other. The code is HTTP/2's (RFC 9113, section 7) either way, so that a reset
//! passes through the mesh.
//!
//! What a head means is the proxy's; a switch of protocols, what its caller holds back, and long bodies go in HTTP itself
//! (`crate::endpoint::peer` says why).
//! [`frame`] and [`head`] are pure; [`read`] and [`write`] move bytes.

pub(crate) mod frame;
pub(crate) mod head;
pub(crate) mod read;
pub(crate) mod write;

use std::io;

use h2::Reason;
use starling_transport::stream::reset_code;

use crate::proxy::body::RequestError;

/// What is added to a code of HTTP/2, to tell it from the transport's own.
const RESET: u32 = 0x100;

/// Why a message does not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    /// Its sender gave it up, and said why.
    #[error("reset by the peer: {0}")]
    Reset(#[source] h2::Error),
    /// The stream or its connection is gone.
    #[error("the stream is lost: {0}")]
    Lost(#[from] io::Error),
    /// The stream ends within it.
    #[error("the stream ended in the middle of a message")]
    Cut,
    /// It cannot be read.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// The request whose answer it would be was not sent to its end, by its caller's fault.
    #[error("the request was broken off: {0}")]
    Unsent(Box<RequestError>),
}

impl MessageError {
    /// What reading a stream failed with.
    pub(crate) fn of_read(error: io::Error) -> Self {
        match reason_in(&error) {
            Some(reason) => Self::Reset(h2::Error::from(reason)),
            None => Self::Lost(error),
        }
    }

    /// What a frame says that ends a message before its end ([`frame::Kind::Broken`]).
    fn of_frame(code: &[u8]) -> Self {
        match code.first_chunk() {
            Some(code) => Self::Reset(h2::Error::from(Reason::from(u32::from_be_bytes(*code)))),
            None => Self::Malformed("a broken end that says nothing"),
        }
    }

    /// The code with which its sender gave it up.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Reset(error) => error.reason(),
            _ => None,
        }
    }
}

/// The code with which a stream says `reason`.
pub(crate) fn reset_with(reason: Reason) -> u32 {
    RESET.saturating_add(u32::from(reason))
}

/// With what a message's sender gave it up, if that is why reading failed.
pub(crate) fn reason_in(error: &io::Error) -> Option<Reason> {
    let code = u32::try_from(reset_code(error)?).ok()?;
    code.checked_sub(RESET).map(Reason::from)
}

/// What stands for `error` on the wire: the code of HTTP/2 that it was caused by, if it was.
pub(crate) fn reason_of(error: &(dyn std::error::Error + 'static)) -> Reason {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    let code = causes.find_map(|cause| cause.downcast_ref::<h2::Error>()?.reason());
    code.unwrap_or(Reason::INTERNAL_ERROR)
}
