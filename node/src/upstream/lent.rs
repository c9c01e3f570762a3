//! A request that can be had back while little of its body has been read.
//!
//! A next hop that says that it did not process a request (RFC 9113, section 8.7) may be asked again, or
//! another; but by then the request has been given away, and a connection reads a body as soon as it has
//! it. So its head is copied, and the beginning of its body kept until there is an answer.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use http::request::Parts;
use http_body::{Body, Frame, SizeHint};

use crate::proxy::body::{RequestBody, RequestError};
use crate::proxy::forward;
use crate::proxy::kept::{self, Rewind};

/// Messages are shorter, most of them. It is a quarter of what a request's head may have, for nobody's window
/// counts it.
const KEPT_BYTES_MAX: usize = 16 * 1024;

/// A request's body as a connection has it.
pub(super) struct LentBody(RequestBody);

/// What is needed to have a request back.
pub(super) struct Pledge {
    head: Parts,
    body: Option<Rewind>,
}

/// Lends `request`. There is no pledge for one whose caller keeps what it needs to send it twice, for a
/// copy of the head costs something.
pub(super) fn lend(request: Request<RequestBody>) -> (Request<LentBody>, Option<Pledge>) {
    if forward::may_be_sent_twice(&request) {
        return (request.map(LentBody), None);
    }
    let (head, body) = request.into_parts();
    let (body, rewind) = match body {
        RequestBody::Empty => (RequestBody::Empty, None),
        body => {
            let (body, rewind) = kept::keep_up_to(KEPT_BYTES_MAX, body);
            (body, Some(rewind))
        }
    };
    let pledge = Pledge { head: head.clone(), body: rewind };
    (Request::from_parts(head, LentBody(body)), Some(pledge))
}

/// A request that was lent and comes back with nothing of it sent.
pub(super) fn returned(request: Request<LentBody>) -> Request<RequestBody> {
    request.map(|LentBody(body)| body)
}

impl Pledge {
    /// The request, unless too much of its body has been read. Whoever still has that finds it empty.
    pub(super) fn redeem(self) -> Option<Request<RequestBody>> {
        let body = match self.body {
            None => RequestBody::Empty,
            Some(rewind) => rewind.body()?,
        };
        Some(Request::from_parts(self.head, body))
    }
}

impl Body for LentBody {
    type Data = Bytes;
    type Error = RequestError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestError>>> {
        Pin::new(&mut self.get_mut().0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
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
        let (lent, pledge) = lend(request(Method::POST));
        assert!(lent.body().is_end_stream());
        let back = pledge.and_then(Pledge::redeem).expect("nobody has read it");
        assert_eq!((back.method(), back.uri().path()), (&Method::POST, "/path"));
        let (lent, pledge) = lend(request(Method::GET));
        assert!(pledge.is_none(), "its caller can make another");
        assert_eq!(returned(lent).method(), Method::GET);
    }
}
