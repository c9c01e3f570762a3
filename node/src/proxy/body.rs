//! The bodies that pass through: the caller's on its way up, the answer's on its way down.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;

use crate::endpoint::Flight;
use crate::proxy::access::Admission;
use crate::proxy::gate::{Held, Pass};
use crate::proxy::headers;
use crate::proxy::overdue::Busy;
use crate::telemetry::exchange::Exchange;
use crate::upstream::LentSender;
use crate::upstream::http2::Stream;

/// A request's body on its way upstream.
pub(crate) enum RequestBody {
    /// As the caller sends it.
    Streamed {
        /// What is left of it.
        body: Incoming,
        /// What of it has gone up; whoever counts the request reads it.
        bytes: Arc<AtomicU64>,
    },
    /// None: such a request can be sent twice.
    Empty,
}

impl RequestBody {
    /// A body as it comes in.
    pub(crate) fn new(body: Incoming) -> Self {
        if body.is_end_stream() { Self::Empty } else { Self::Streamed { body, bytes: Arc::default() } }
    }

    /// Where its bytes are counted as they go up, if there are any.
    pub(crate) fn bytes(&self) -> Option<Arc<AtomicU64>> {
        match self {
            Self::Streamed { bytes, .. } => Some(bytes.clone()),
            Self::Empty => None,
        }
    }
}

/// An answer's body on its way downstream.
pub(crate) struct AnswerBody {
    source: Source,
    guard: AnswerGuard,
}

enum Source {
    Upstream(Incoming),
    Own(Full<Bytes>),
}

/// What must last until an answer has ended or was given up: its parts act when dropped.
#[derive(Default)]
pub(crate) struct AnswerGuard {
    /// The connection it comes by; given back only after a proper end.
    pub(crate) sender: Option<LentSender>,
    /// Counts the answer among its connection's streams.
    pub(crate) stream: Option<Stream>,
    /// Counts the request among its endpoint's.
    pub(crate) flight: Option<Flight>,
    /// Counts the connection that the request came by: it may become a tunnel.
    pub(crate) connection: Option<Held>,
    /// Counts the request among the node's.
    pub(crate) pass: Option<Pass>,
    /// Counts the request among its workload's.
    pub(crate) workload_pass: Option<Pass>,
    /// Says whether the caller is still let in, for what has no requests to ask at.
    pub(crate) admission: Option<Arc<Admission>>,
    /// Counts the request among its local connection's.
    pub(crate) busy: Option<Busy>,
    /// Counts and logs the exchange.
    pub(crate) exchange: Option<Exchange>,
}

impl AnswerBody {
    /// The upstream's body. `guard` is told at once if there is nothing to carry (204, HEAD): such
    /// a body is never polled.
    pub(crate) fn upstream(body: Incoming, guard: AnswerGuard) -> Self {
        let mut answer = Self { source: Source::Upstream(body), guard };
        if answer.source.is_end_stream() {
            answer.guard.handle_end();
        }
        answer
    }

    /// A text of our own.
    pub(crate) fn own(text: String) -> Self {
        Self { source: Source::Own(Full::new(Bytes::from(text))), guard: AnswerGuard::default() }
    }

    /// What lasts until the end.
    pub(crate) fn guard_mut(&mut self) -> &mut AnswerGuard {
        &mut self.guard
    }
}

impl AnswerGuard {
    /// Only counts, so far.
    pub(crate) fn counting(exchange: Exchange) -> Self {
        Self { exchange: Some(exchange), ..Self::default() }
    }

    fn handle_frame(&mut self, frame: &Frame<Bytes>) {
        if let (Some(exchange), Some(data)) = (&mut self.exchange, frame.data_ref()) {
            exchange.add_response_bytes(data.len());
        }
    }

    fn handle_end(&mut self) {
        if let Some(sender) = self.sender.take() {
            sender.give_back();
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Streamed { body, bytes } => Pin::new(body).poll_frame(context).map_ok(|mut frame| {
                if let Some(data) = frame.data_ref() {
                    bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
                if let Some(trailers) = frame.trailers_mut() {
                    headers::remove_peer(trailers);
                }
                frame
            }),
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Streamed { body, .. } => body.is_end_stream(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Streamed { body, .. } => body.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let polled = match &mut this.source {
            Source::Upstream(body) => Pin::new(body).poll_frame(context),
            Source::Own(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
        };
        match &polled {
            Poll::Ready(None) => this.guard.handle_end(),
            Poll::Ready(Some(Ok(frame))) => {
                this.guard.handle_frame(frame);
                if this.source.is_end_stream() {
                    this.guard.handle_end();
                }
            }
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Upstream(body) => body.size_hint(),
            Source::Own(body) => body.size_hint(),
        }
    }
}

impl Source {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Upstream(body) => body.is_end_stream(),
            Self::Own(body) => body.is_end_stream(),
        }
    }
}
