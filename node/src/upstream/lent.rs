//! A request that can be had back while little of its body has been read.
//!
//! A next hop that says that it did not process a request (RFC 9113, section 8.7) may be asked again, or
//! another; but by then the request has been given away, and a connection reads a body as soon as it has
//! it. So its head is copied, and the beginning of its body kept until there is an answer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};

use super::pump::Pump;
use crate::proxy::body::{RequestBody, RequestError};
use crate::proxy::forward;
use crate::proxy::kept::{self, Before};

/// Messages are shorter, most of them. It is a quarter of what a request's head may have, for nobody's window
/// counts it.
const KEPT_BYTES_MAX: usize = 16 * 1024;

/// A request's body as a connection has it.
pub(super) struct LentBody {
    body: RequestBody,
    /// The task that sends it, if there is something to send.
    pump: Option<Pump>,
    /// What was read before it was known which task sends it. It is kept as well, should it be wanted again.
    begun: Option<Frame<Bytes>>,
}

/// Lends `request`. There is no other for one whose caller keeps what it needs to send it twice, for a
/// copy of the head costs something.
pub(super) fn lend(request: Request<RequestBody>) -> (Request<LentBody>, Option<Before>) {
    if forward::may_be_sent_twice(&request) {
        return (request.map(LentBody::new), None);
    }
    let (request, before) = kept::keep_up_to(KEPT_BYTES_MAX, request);
    (request.map(LentBody::new), Some(before))
}

/// A request that was lent and comes back with nothing of it sent.
pub(super) fn returned(request: Request<LentBody>) -> Request<RequestBody> {
    // Who returns it has not read it.
    request.map(|lent| lent.body)
}

impl LentBody {
    fn new(body: RequestBody) -> Self {
        let pump = (!body.is_end_stream()).then(Pump::default);
        Self { body, pump, begun: None }
    }

    /// The task that will send it, if there is something to send.
    pub(super) fn pump(&self) -> Option<Pump> {
        self.pump.clone()
    }
}

impl Body for LentBody {
    type Data = Bytes;
    type Error = RequestError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestError>>> {
        let this = self.get_mut();
        let is_in_pump = this.pump.as_ref().is_none_or(Pump::is_here);
        if let Some(frame) = this.begun.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            ended => return Poll::Ready(ended),
        };
        // hyper asks once before it makes a task, so that what is there as a whole goes with the head.
        if is_in_pump || this.body.is_end_stream() {
            return Poll::Ready(Some(Ok(frame)));
        }
        this.begun = Some(frame);
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.begun.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // It is asked for before anything is read.
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn request(method: Method) -> Request<RequestBody> {
        Request::builder().method(method).uri("/path").body(RequestBody::Empty).expect("a request")
    }

    #[test]
    fn a_request_without_a_body_comes_back_whole() {
        let (lent, before) = lend(request(Method::POST));
        assert!(lent.body().is_end_stream());
        let back = before.and_then(Before::request).expect("nobody has read it");
        assert_eq!((back.method(), back.uri().path()), (&Method::POST, "/path"));
        let (lent, before) = lend(request(Method::GET));
        assert!(before.is_none(), "its caller can make another");
        assert_eq!(returned(lent).method(), Method::GET);
    }
}
