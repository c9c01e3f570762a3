//! A request that can be had back while nobody has read of its body.
//!
//! A next hop that says that it did not process a request (RFC 9113, section 8.7) may be asked again, or
//! another; but by then the request has been given away. So its head is copied, and its body lent.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Request;
use http::request::Parts;
use http_body::{Body, Frame, SizeHint};

use super::pump::Pump;
use crate::proxy::body::{RequestBody, RequestError};
use crate::proxy::forward;

/// A request's body as a connection has it.
pub(super) enum LentBody {
    /// Nothing to read.
    Empty,
    /// To be read once, or taken back.
    Lent {
        /// Where it is.
        slot: Arc<Slot>,
        /// The task that sends it.
        pump: Pump,
    },
}

/// What is needed to have a request back.
pub(super) struct Pledge {
    head: Parts,
    body: Option<Arc<Slot>>,
}

/// Where a lent body is, until it is taken back.
pub(super) struct Slot(Mutex<State>);

struct State {
    body: Option<RequestBody>,
    /// Somebody has asked for its first bytes.
    read: bool,
    /// What was read before it was known which task sends it.
    begun: Option<Frame<Bytes>>,
}

/// Lends `request`. There is no pledge for one whose caller keeps what it needs to send it twice, for a
/// copy of the head costs something.
pub(super) fn lend(request: Request<RequestBody>) -> (Request<LentBody>, Option<Pledge>) {
    if forward::may_be_sent_twice(&request) {
        return (request.map(|_| LentBody::Empty), None);
    }
    let (head, body) = request.into_parts();
    let slot = match body {
        RequestBody::Empty => None,
        body => Some(Arc::new(Slot::new(body))),
    };
    let lent = slot.clone().map_or(LentBody::Empty, LentBody::lent);
    let pledge = Pledge { head: head.clone(), body: slot };
    (Request::from_parts(head, lent), Some(pledge))
}

/// A request that was lent and comes back with nothing of it sent.
pub(super) fn returned(request: Request<LentBody>) -> Request<RequestBody> {
    request.map(|body| match body {
        LentBody::Empty => RequestBody::Empty,
        // Who returns it has not read it.
        LentBody::Lent { slot, .. } => slot.lock().body.take().unwrap_or(RequestBody::Empty),
    })
}

impl Pledge {
    /// The request, unless its body has been read of. Whoever still has it finds it empty.
    pub(super) fn redeem(self) -> Option<Request<RequestBody>> {
        let body = match &self.body {
            None => RequestBody::Empty,
            Some(slot) => {
                let mut state = slot.lock();
                if state.read {
                    return None;
                }
                state.body.take()?
            }
        };
        Some(Request::from_parts(self.head, body))
    }
}

impl LentBody {
    fn lent(slot: Arc<Slot>) -> Self {
        Self::Lent { slot, pump: Pump::default() }
    }

    /// The task that will send it, if there is something to send.
    pub(super) fn pump(&self) -> Option<Pump> {
        match self {
            Self::Empty => None,
            Self::Lent { pump, .. } => Some(pump.clone()),
        }
    }
}

impl Slot {
    fn new(body: RequestBody) -> Self {
        Self(Mutex::new(State { body: Some(body), read: false, begun: None }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Body for LentBody {
    type Data = Bytes;
    type Error = RequestError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestError>>> {
        let Self::Lent { slot, pump } = &*self else { return Poll::Ready(None) };
        let mut state = slot.lock();
        state.read = true;
        let is_in_pump = pump.is_here();
        if let Some(frame) = state.begun.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(body) = &mut state.body else { return Poll::Ready(None) };
        let frame = match ready!(Pin::new(&mut *body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            ended => return Poll::Ready(ended),
        };
        // hyper asks once before it makes a task, so that what is there as a whole goes with the head.
        if is_in_pump || body.is_end_stream() {
            return Poll::Ready(Some(Ok(frame)));
        }
        state.begun = Some(frame);
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Lent { slot, .. } => {
                let state = slot.lock();
                state.begun.is_none() && state.body.as_ref().is_none_or(Body::is_end_stream)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            // It is asked for before anything is read.
            Self::Lent { slot, .. } => slot.lock().body.as_ref().map(Body::size_hint).unwrap_or_default(),
        }
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

    #[test]
    fn a_body_that_was_asked_for_does_not_come_back() {
        let slot = Arc::new(Slot::new(RequestBody::Empty));
        let pledge = || Pledge { head: request(Method::POST).into_parts().0, body: Some(slot.clone()) };
        let mut lent = LentBody::lent(slot.clone());
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(matches!(Pin::new(&mut lent).poll_frame(&mut context), Poll::Ready(None)));
        assert!(pledge().redeem().is_none());
    }
}
