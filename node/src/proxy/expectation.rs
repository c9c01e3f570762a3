//! `Expect: 100-continue` (RFC 9110, section 10.1.1): a body that its caller holds back until somebody
//! wants it.
//!
//! hyper asks the caller for it, by sending 100, when it is first read. So it is not read before the
//! next hop says 100 itself; the callee's sidecar does the same with its workload's word. An answer that
//! comes instead is passed on, and the body never asked for. A next hop that knows nothing of this is
//! not waited for long, as clients do not.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http::{Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use crate::proxy::body::{RequestBody, RequestError};

/// Until the body is asked for unasked. Clients wait a second as a rule; whoever means to refuse a body
/// by what its head says does it sooner than this.
const PATIENCE: Duration = Duration::from_secs(2);

/// Kept until the answer has ended: then nobody wants the body any more.
pub(crate) struct Expectation(Shared);

/// A body behind its expectation.
pub(crate) struct Expected {
    body: RequestBody,
    shared: Shared,
    is_wanted: bool,
    patience: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    phase: Phase,
    reader: Option<Waker>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    /// Nobody has said anything.
    #[default]
    Waiting,
    /// The body is wanted.
    Wanted,
    /// The answer came without it.
    Over,
}

/// Holds back the body of `request`, which has one, if its caller does.
pub(crate) fn hold_back(request: &mut Request<RequestBody>) -> Option<Expectation> {
    let expects = request.headers().get(EXPECT)?.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if !expects {
        return None;
    }
    let shared = Shared::default();
    let heard = shared.clone();
    hyper::ext::on_informational(request, move |answer| {
        if answer.status() == StatusCode::CONTINUE {
            heard.go_to(Phase::Wanted);
        }
    });
    let body = std::mem::replace(request.body_mut(), RequestBody::Empty);
    let held = Expected { body, shared: shared.clone(), is_wanted: false, patience: None };
    *request.body_mut() = RequestBody::Expected(Box::new(held));
    Some(Expectation(shared))
}

impl Expectation {
    /// Whether the body has not been asked for: who holds it back may never send it.
    pub(crate) fn is_waiting(&self) -> bool {
        self.0.lock().phase == Phase::Waiting
    }

    /// The body is sent as it comes.
    pub(crate) fn give_up(&self) {
        self.0.go_to(Phase::Wanted);
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        self.0.go_to(Phase::Over);
    }
}

impl Expected {
    /// Where nobody would be heard saying 100: the body is sent as it comes.
    pub(crate) fn send_anyway(&self) {
        self.shared.go_to(Phase::Wanted);
    }

    /// The body behind it.
    pub(crate) fn body(&self) -> &RequestBody {
        &self.body
    }

    /// The same.
    pub(crate) fn body_mut(&mut self) -> &mut RequestBody {
        &mut self.body
    }

    fn poll_wanted(&mut self, context: &mut Context<'_>) -> Poll<Result<(), RequestError>> {
        if self.is_wanted {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.shared.lock();
        match state.phase {
            Phase::Over => return Poll::Ready(Err(RequestError::Withheld)),
            Phase::Wanted => {}
            Phase::Waiting => {
                let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
                if patience.as_mut().poll(context).is_pending() {
                    state.reader = Some(context.waker().clone());
                    return Poll::Pending;
                }
                state.phase = Phase::Wanted;
            }
        }
        drop(state);
        (self.is_wanted, self.patience) = (true, None);
        Poll::Ready(Ok(()))
    }
}

impl Shared {
    /// Only what is undecided is decided.
    fn go_to(&self, phase: Phase) {
        let reader = {
            let mut state = self.lock();
            if state.phase != Phase::Waiting {
                return;
            }
            state.phase = phase;
            state.reader.take()
        };
        reader.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Body for Expected {
    type Data = Bytes;
    type Error = RequestError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestError>>> {
        match self.poll_wanted(context) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.body).poll_frame(context),
            Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(expect: &str) -> (Request<RequestBody>, Option<Expectation>) {
        let mut request =
            Request::builder().header(EXPECT, expect).body(RequestBody::Empty).expect("a request");
        let expectation = hold_back(&mut request);
        (request, expectation)
    }

    fn poll(request: &mut Request<RequestBody>) -> Poll<Option<Result<(), RequestError>>> {
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(request.body_mut()).poll_frame(&mut context).map(|read| read.map(|frame| frame.map(drop)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_read_when_it_is_wanted_or_when_nobody_says_so() {
        assert!(asked("something else").1.is_none());
        let (mut request, expectation) = asked("100-Continue");
        let expectation = expectation.expect("held back");
        assert!(poll(&mut request).is_pending() && expectation.is_waiting());
        expectation.0.go_to(Phase::Wanted);
        assert!(matches!(poll(&mut request), Poll::Ready(None)) && !expectation.is_waiting());
        let (mut request, _expectation) = asked("100-continue");
        assert!(poll(&mut request).is_pending());
        tokio::time::sleep(PATIENCE).await;
        assert!(matches!(poll(&mut request), Poll::Ready(None)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_nobody_wanted_is_broken_off() {
        let (mut request, expectation) = asked("100-continue");
        assert!(poll(&mut request).is_pending());
        drop(expectation);
        assert!(matches!(poll(&mut request), Poll::Ready(Some(Err(RequestError::Withheld)))));
    }
}
