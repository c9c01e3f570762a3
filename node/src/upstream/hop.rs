//! What a hop carries, by whichever protocol: bodies, and why they break off.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::Reason;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::messages::Lent;
use crate::messages::MessageError;
use crate::messages::read::MessageBody;
use crate::proxy::arrival::Arrival;
use crate::proxy::body::RequestError;

/// The body of a request or of an answer, as it comes in.
pub(crate) enum HopBody {
    /// None.
    Empty,
    /// In HTTP.
    Http(Incoming),
    /// Of a peer's message: all of it.
    Whole(Bytes),
    /// Of a peer's request, as it arrives.
    Arriving(Arrival),
    /// Of a peer's answer. On the heap: it holds half the stream, and messages are moved a dozen times.
    Answer(Box<MessageBody<Lent>>),
    /// In HTTP, and looked at.
    Begun(Box<Begun>),
}

/// A body of which something has been read already.
pub(crate) struct Begun {
    /// Until it is asked for.
    first: Option<Result<Frame<Bytes>, hyper::Error>>,
    rest: Incoming,
}

/// Why a hop broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HopError {
    /// In HTTP.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// Between two sidecars.
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl HopError {
    /// Whether it is because a request's caller broke off its body.
    pub(crate) fn is_callers(&self) -> bool {
        let error = match self {
            Self::Http(error) => error,
            Self::Message(error) => return matches!(error, MessageError::Unsent(_)),
        };
        let is_of_body = |error: &(dyn Error + 'static)| error.is::<RequestError>();
        let is_reset_here = |cause: &h2::Error| cause.is_reset() && !cause.is_remote() && !cause.is_library();
        std::iter::successors(error.source(), |error| (*error).source()).any(is_of_body)
            || http2_cause(error).is_some_and(is_reset_here)
    }

    /// The code with which the next hop reset the request's stream, if it meant to say something to whoever asks.
    pub(super) fn reset_code(&self) -> Option<Reason> {
        let reason = match self {
            Self::Http(error) => {
                http2_cause(error).filter(|cause| cause.is_remote() && cause.is_reset())?.reason()
            }
            Self::Message(error) => error.reason(),
        };
        reason.filter(|reason| *reason != Reason::NO_ERROR)
    }
}

/// What HTTP/2 says of it.
pub(super) fn http2_cause(error: &hyper::Error) -> Option<&h2::Error> {
    error.source()?.downcast_ref()
}

impl HopBody {
    /// Looks at what there is of it at once: that may be all, and then its length is known. Nothing is waited for.
    pub(crate) fn look_for_end(&mut self) {
        let Self::Http(body) = self else { return };
        // Whoever reads on is woken; this poll is nobody's.
        let polled = Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(first) = polled
            && let Self::Http(rest) = std::mem::replace(self, Self::Empty)
        {
            *self = Self::Begun(Box::new(Begun { first, rest }));
        }
    }
}

impl Begun {
    fn first_bytes(&self) -> u64 {
        let first = self.first.as_ref().and_then(|first| first.as_ref().ok()?.data_ref());
        first.map_or(0, |data| data.len() as u64)
    }
}

impl Body for Begun {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        match this.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => Pin::new(&mut this.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.first.is_some() && self.rest.is_end_stream() {
            return SizeHint::with_exact(self.first_bytes());
        }
        let (first, rest) = (self.first_bytes(), self.rest.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(first));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(first));
        }
        hint
    }
}

impl From<Incoming> for HopBody {
    fn from(body: Incoming) -> Self {
        Self::Http(body)
    }
}

impl Body for HopBody {
    type Data = Bytes;
    type Error = HopError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HopError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Http(body) => Pin::new(body).poll_frame(context).map_err(HopError::from),
            Self::Whole(data) => {
                let data = Some(std::mem::take(data)).filter(|data| !data.is_empty());
                Poll::Ready(data.map(|data| Ok(Frame::data(data))))
            }
            Self::Arriving(body) => Pin::new(body).poll_frame(context).map_err(HopError::from),
            Self::Answer(body) => Pin::new(&mut **body).poll_frame(context).map_err(HopError::from),
            Self::Begun(body) => Pin::new(&mut **body).poll_frame(context).map_err(HopError::from),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http(body) => body.is_end_stream(),
            Self::Whole(data) => data.is_empty(),
            Self::Arriving(body) => body.is_end_stream(),
            Self::Answer(body) => body.is_end_stream(),
            Self::Begun(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Http(body) => body.size_hint(),
            Self::Whole(data) => SizeHint::with_exact(data.len() as u64),
            Self::Arriving(body) => body.size_hint(),
            Self::Answer(body) => body.size_hint(),
            Self::Begun(body) => body.size_hint(),
        }
    }
}
