//! The bodies that pass through: the caller's on its way up, the answer's on its way down.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use crate::allowance::ALLOWANCE;
use crate::endpoint::Flight;
use crate::patience::Elapsed;
use crate::proxy::access::Admission;
use crate::proxy::attempt::failure_of_elapsed;
use crate::proxy::expectation::{Expectation, Expected};
use crate::proxy::failure::Flag;
use crate::proxy::gate::{Held, Pass};
use crate::proxy::kept::Kept;
use crate::proxy::overdue::Busy;
use crate::proxy::own_headers;
use crate::proxy::timer::{Moved, Timer};
use crate::telemetry::exchange::Exchange;
use crate::upstream::LentSender;
use crate::upstream::hop::{HopBody, HopError};
use crate::upstream::http2::Stream;

/// A request's body on its way upstream.
pub(crate) enum RequestBody {
    /// As the caller sends it.
    Streamed {
        /// What is left of it.
        body: HopBody,
        /// What of it has gone up; whoever counts the request reads it.
        bytes: Arc<AtomicU64>,
        /// Where it is noted that it moves, once it is sent.
        moved: Option<Moved>,
        /// Keeps the connection that it comes by busy.
        _uploading: Option<Busy>,
    },
    /// Held back until somebody wants it.
    Expected(Box<Expected>),
    /// Read with its beginning kept.
    Kept(Kept),
    /// None: such a request can be sent twice.
    Empty,
}

/// Why a request's body does not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// Its caller broke off.
    #[error(transparent)]
    Caller(#[from] HopError),
    /// The answer came without it, and its caller holds it back.
    #[error("the body was never asked for")]
    Withheld,
}

impl RequestBody {
    /// A body as it comes in. By a local connection, that is busy (`uploading`) until it has ended: a workload may answer
    /// first and read on.
    pub(crate) fn new(body: HopBody, uploading: Option<Busy>) -> Self {
        if body.is_end_stream() {
            Self::Empty
        } else {
            Self::Streamed { body, bytes: Arc::default(), moved: None, _uploading: uploading }
        }
    }

    /// Looks at what there is of it at once, for that may be all; see [`HopBody::look_for_end`].
    pub(crate) fn look_for_end(&mut self) {
        if let Self::Streamed { body, .. } = self {
            body.look_for_end();
        }
    }

    /// Has it noted where it moves; one without bytes never does.
    pub(crate) fn note_in(&mut self, place: impl FnOnce() -> Moved) {
        match self {
            Self::Streamed { moved, .. } => *moved = Some(place()),
            Self::Expected(body) => body.body_mut().note_in(place),
            Self::Kept(body) => body.look(|body| body.note_in(place)),
            Self::Empty => {}
        }
    }

    /// Where its bytes are counted as they go up, if there are any.
    pub(crate) fn bytes(&self) -> Option<Arc<AtomicU64>> {
        match self {
            Self::Streamed { bytes, .. } => Some(bytes.clone()),
            Self::Expected(body) => body.body().bytes(),
            Self::Kept(body) => body.look(|body| body.bytes()),
            Self::Empty => None,
        }
    }

    /// Sends it as it comes, if it was held back.
    pub(crate) fn send_anyway(&self) {
        match self {
            Self::Expected(body) => body.send_anyway(),
            Self::Kept(body) => body.look(|body| body.send_anyway()),
            Self::Streamed { .. } | Self::Empty => {}
        }
    }
}

/// An answer's body on its way downstream.
pub(crate) struct AnswerBody {
    source: Source,
    /// What it broke with. It is told a turn later: who sends the answer drops what it has not written yet as soon as it
    /// hears of this, and its head and what came of it may be among that. In HTTP/2, where another task writes, and with
    /// several workers, that may still come second.
    broken: Option<BodyError>,
    /// On the heap: an answer is moved a dozen times on its way, and this is most of it.
    guard: Box<AnswerGuard>,
}

enum Source {
    Upstream(HopBody),
    Own(Full<Bytes>),
}

/// What must last until an answer has ended or was given up: its parts act when dropped.
#[derive(Default)]
pub(crate) struct AnswerGuard {
    /// The connection it comes by; given back only after a proper end.
    pub(crate) sender: Option<LentSender>,
    /// Counts the answer among its connection's streams, and resets its own unless it ended properly.
    pub(crate) stream: Option<Stream>,
    /// Counts the request among its endpoint's.
    pub(crate) flight: Option<Flight>,
    /// Counts the connection that the request came by: it may become a tunnel.
    pub(crate) connection: Option<Held>,
    /// Counts the request among the node's.
    pub(crate) pass: Option<Pass>,
    /// Counts the request among its workload's.
    pub(crate) workload_pass: Option<Pass>,
    /// What the caller holds back, if the answer came without it.
    pub(crate) expectation: Option<Expectation>,
    /// Says whether the caller is still let in, for what has no requests to ask at.
    pub(crate) admission: Option<Arc<Admission>>,
    /// Counts the request among its local connection's.
    pub(crate) busy: Option<Busy>,
    /// What time is left for the answer's body.
    pub(crate) time: Option<BodyTime>,
    /// How long a tunnel may stand still, should it become one.
    pub(crate) tunnel_idle: Option<Duration>,
    /// Counts and logs the exchange.
    pub(crate) exchange: Option<Exchange>,
}

/// An answer's time, and how its client is told that it is over.
pub(crate) struct BodyTime {
    pub(crate) timer: Timer,
    pub(crate) for_grpc: bool,
}

/// Why an answer's body does not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// It broke on its way here.
    #[error(transparent)]
    Upstream(#[from] HopError),
    /// It took longer than it may.
    #[error("the answer took longer than it may")]
    TimedOut,
}

impl AnswerBody {
    /// The upstream's body. `guard` is told at once if there is nothing to carry (204, HEAD): such
    /// a body is never polled.
    pub(crate) fn upstream(body: HopBody, guard: Box<AnswerGuard>) -> Self {
        let mut answer = Self { source: Source::Upstream(body), broken: None, guard };
        if answer.source.is_end_stream() {
            answer.guard.handle_end();
        }
        answer
    }

    /// A text of our own.
    pub(crate) fn own(text: String) -> Self {
        Self { source: Source::Own(Full::new(Bytes::from(text))), broken: None, guard: Box::default() }
    }

    /// Ends it before its time, and what sends it: a gRPC client is told so in the trailers, any other
    /// sees it cut off.
    fn time_out(&mut self, elapsed: Elapsed) -> Result<Frame<Bytes>, BodyError> {
        // A body of a known length has to end with it.
        let has_trailers = self.size_hint().exact().is_none();
        self.source = Source::Own(Full::default());
        let guard = *std::mem::take(&mut self.guard);
        let Some(mut exchange) = guard.exchange else { return Err(BodyError::TimedOut) };
        exchange.set_flag(Flag::TimedOut);
        self.guard.busy = guard.busy;
        match guard.time {
            Some(time) if time.for_grpc && has_trailers => {
                let failure = failure_of_elapsed(elapsed, "the service");
                Ok(Frame::trailers(failure.grpc_trailers()))
            }
            _ => {
                self.guard.handle_broken();
                Err(BodyError::TimedOut)
            }
        }
    }

    /// What comes next: at once, unless it is how it breaks.
    fn tell<T>(
        &mut self,
        context: &Context<'_>,
        next: Option<Result<T, BodyError>>,
    ) -> Poll<Option<Result<T, BodyError>>> {
        let Some(Err(error)) = next else { return Poll::Ready(next) };
        self.broken = Some(error);
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// `guard` lasts until the end, instead of what did before.
    pub(crate) fn set_guard(&mut self, guard: Box<AnswerGuard>) {
        self.guard = guard;
    }

    /// What lasts until the end.
    pub(crate) fn guard_mut(&mut self) -> &mut AnswerGuard {
        &mut self.guard
    }
}

impl AnswerGuard {
    /// Only counts, so far.
    pub(crate) fn counting(exchange: Exchange) -> Box<Self> {
        // Made where it stays: it is large.
        let mut guard = Box::<Self>::default();
        guard.exchange = Some(exchange);
        guard
    }

    /// The answer does not come to its end.
    fn handle_broken(&mut self) {
        if let Some(exchange) = &mut self.exchange {
            exchange.set_flag(Flag::ConnectionEnded);
        }
        if let Some(busy) = &self.busy {
            busy.handle_broken_answer();
        }
    }

    fn handle_frame(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            ALLOWANCE.take(data.len());
            if let Some(exchange) = &mut self.exchange {
                exchange.add_response_bytes(data.len());
            }
        }
        if let Some(time) = &mut self.time {
            time.timer.note();
        }
    }

    fn handle_end(&mut self) {
        self.expectation = None;
        if let Some(sender) = self.sender.take() {
            sender.give_back();
        }
        if let Some(stream) = &mut self.stream {
            stream.handle_end();
        }
        if let Some(flight) = &self.flight {
            flight.handle_end();
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestError>>> {
        match self.get_mut() {
            Self::Streamed { body, bytes, moved, .. } => {
                ready!(ALLOWANCE.poll_some(context));
                let polled = Pin::new(body).poll_frame(context);
                if let Some(moved) = moved {
                    moved.set_awaited(polled.is_pending());
                }
                let polled = polled.map_ok(|frame| {
                    moved.iter().for_each(Moved::note);
                    if let Some(data) = frame.data_ref() {
                        ALLOWANCE.take(data.len());
                        bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                    }
                    without_own_trailers(frame)
                });
                polled.map_err(|error| {
                    moved.iter().for_each(Moved::set_broken);
                    RequestError::from(error)
                })
            }
            Self::Expected(body) => Pin::new(body).poll_frame(context),
            Self::Kept(body) => Pin::new(body).poll_frame(context),
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Streamed { body, .. } => body.is_end_stream(),
            Self::Expected(body) => body.is_end_stream(),
            Self::Kept(body) => body.is_end_stream(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Streamed { body, .. } => body.size_hint(),
            Self::Expected(body) => body.size_hint(),
            Self::Kept(body) => body.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let polled = match &mut this.source {
            Source::Upstream(_) if ALLOWANCE.poll_some(context).is_pending() => Poll::Pending,
            Source::Upstream(body) => {
                let polled = Pin::new(body).poll_frame(context);
                polled.map_ok(without_own_trailers).map_err(BodyError::from)
            }
            Source::Own(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
        };
        match &polled {
            Poll::Ready(None) => this.guard.handle_end(),
            Poll::Ready(Some(Ok(frame))) => {
                this.guard.handle_frame(frame);
                // Nobody asks again after trailers.
                if this.source.is_end_stream() || frame.is_trailers() {
                    this.guard.handle_end();
                }
            }
            Poll::Ready(Some(Err(_))) => {
                this.guard.handle_broken();
                // With what its caller breaks off of a request, the connection ends, and the answer.
                let is_callers = this.guard.time.as_ref().is_some_and(|time| time.timer.is_broken_off());
                if let (false, Some(flight)) = (is_callers, &this.guard.flight) {
                    flight.handle_broken_answer();
                }
            }
            Poll::Pending => {
                if let Some(time) = &mut this.guard.time {
                    let elapsed = ready!(time.timer.poll_elapsed(context));
                    let timed_out = this.time_out(elapsed);
                    return this.tell(context, Some(timed_out));
                }
            }
        }
        this.tell(context, ready!(polled))
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Upstream(body) => body.size_hint(),
            Source::Own(body) => body.size_hint(),
        }
    }
}

/// Nobody speaks for the mesh in trailers either.
fn without_own_trailers(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        own_headers::remove_all(trailers);
    }
    frame
}

impl Source {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Upstream(body) => body.is_end_stream(),
            Self::Own(body) => body.is_end_stream(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    use super::*;
    use crate::messages::MessageError;
    use crate::proxy::arrival::Inbox;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn how_an_answer_breaks_is_told_a_turn_after_what_came_of_it() {
        let inbox = Inbox::new(None);
        inbox.put(Frame::data(Bytes::from_static(b"half")));
        inbox.end(Some(MessageError::Cut));
        let mut body = AnswerBody::upstream(HopBody::Arriving(inbox.body()), Box::default());
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut next = || {
            let polled = Pin::new(&mut body).poll_frame(&mut Context::from_waker(&waker));
            (polled, body.is_end_stream(), wakes.0.load(Ordering::Relaxed))
        };
        assert!(matches!(next(), (Poll::Ready(Some(Ok(frame))), false, 0) if frame.is_data()));
        assert!(matches!(next(), (Poll::Pending, false, 1)), "not at once, and it is asked again");
        assert!(matches!(next(), (Poll::Ready(Some(Err(BodyError::Upstream(_)))), _, 1)));
    }
}
