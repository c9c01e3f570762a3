//! A request whose head is kept, and the beginning of its body, so that it can be sent once more: to a workload
//! that had not shown yet which version of HTTP it speaks, or where a next hop did not process it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use http::request::Parts;
use http_body::{Body, Frame, SizeHint};

use crate::proxy::body::{RequestBody, RequestError};
use crate::proxy::forward::Underway;

/// As much as is kept: more than forms and messages have, and one round trip's worth of an upload.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// And one piece for so many of them: each costs some bytes of its own, and may keep more than itself.
const BYTES_PER_PIECE: usize = 64;

/// A body, as one connection has it.
pub(crate) struct Kept {
    shared: Arc<Mutex<State>>,
    /// How often it had been rewound when it was given away; a connection that failed reads no more.
    turn: u32,
}

/// A request as it was before it was sent.
pub(crate) struct Before {
    head: Parts,
    body: Option<Rewind>,
}

/// What is needed to begin a body again. What is kept for it goes with the last one.
pub(crate) struct Rewind(Arc<Mutex<State>>);

struct State {
    body: RequestBody,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    bytes_max: usize,
    /// Of what is kept, so much has been read since the last rewind.
    position: usize,
    is_lost: bool,
    turn: u32,
    /// Who can begin it again.
    rewinds: usize,
}

/// Whether all of `body` is kept, should it be.
pub(crate) fn fits(body: &RequestBody) -> bool {
    body.size_hint().upper().is_some_and(|bytes| bytes <= KEPT_BYTES_MAX as u64)
}

/// Keeps `request`.
pub(crate) fn keep(request: Underway) -> (Underway, Before) {
    let (request, before) = keep_up_to(KEPT_BYTES_MAX, *request);
    (Box::new(request), before)
}

/// Keeps `request`, unless its body is longer than `bytes_max`. What is kept of it already stays as it is.
pub(crate) fn keep_up_to(bytes_max: usize, request: Request<RequestBody>) -> (Request<RequestBody>, Before) {
    let (head, body) = request.into_parts();
    let (body, rewind) = keep_body(bytes_max, body);
    let before = Before { head: head.clone(), body: rewind };
    (Request::from_parts(head, body), before)
}

/// The same of a body alone; there is nothing to keep of one that is empty.
pub(crate) fn keep_body(bytes_max: usize, body: RequestBody) -> (RequestBody, Option<Rewind>) {
    let kept = match body {
        RequestBody::Empty => return (RequestBody::Empty, None),
        RequestBody::Kept(kept) => kept,
        body => Kept { shared: Arc::new(Mutex::new(State::new(body, bytes_max))), turn: 0 },
    };
    let rewind = Rewind::new(kept.shared.clone());
    (RequestBody::Kept(kept), Some(rewind))
}

impl Before {
    /// The request, unless too much of its body has been read. Whoever still has that finds it empty.
    pub(crate) fn request(self) -> Option<Underway> {
        let body = match self.body {
            None => RequestBody::Empty,
            Some(rewind) => rewind.body()?,
        };
        Some(Box::new(Request::from_parts(self.head, body)))
    }
}

impl Rewind {
    fn new(shared: Arc<Mutex<State>>) -> Self {
        lock(&shared).rewinds += 1;
        Self(shared)
    }

    /// The body from its beginning, unless too much of it has gone.
    pub(crate) fn body(self) -> Option<RequestBody> {
        let mut state = lock(&self.0);
        if state.is_lost {
            return None;
        }
        state.turn += 1;
        state.position = 0;
        let turn = state.turn;
        drop(state);
        Some(RequestBody::Kept(Kept { shared: self.0.clone(), turn }))
    }
}

impl Drop for Rewind {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.rewinds -= 1;
        // A stream that goes on for hours would keep its beginning as long.
        if state.rewinds == 0 && state.position > 0 {
            state.lose();
        }
    }
}

impl Kept {
    /// What `ask` does with the body behind it.
    pub(crate) fn look<T>(&self, ask: impl FnOnce(&mut RequestBody) -> T) -> T {
        ask(&mut lock(&self.shared).body)
    }
}

impl State {
    fn new(body: RequestBody, bytes_max: usize) -> Self {
        Self {
            body,
            kept: Vec::new(),
            kept_bytes: 0,
            bytes_max,
            position: 0,
            is_lost: false,
            turn: 0,
            rewinds: 0,
        }
    }

    fn left(&self) -> &[Bytes] {
        &self.kept[self.position..]
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        if self.is_lost {
            return;
        }
        let has_room = |data: &&Bytes| {
            self.rewinds > 0
                && self.kept.len() < self.bytes_max / BYTES_PER_PIECE
                && self.kept_bytes + data.len() <= self.bytes_max
        };
        match frame.data_ref().filter(has_room) {
            Some(data) => {
                self.kept.push(data.clone());
                self.kept_bytes += data.len();
                self.position += 1;
            }
            // Trailers are the end of an upload that took its time, too.
            _ => self.lose(),
        }
    }

    /// It cannot begin again: what has been read is gone.
    fn lose(&mut self) {
        self.is_lost = true;
        self.kept.drain(..self.position);
        self.position = 0;
    }
}

impl Body for Kept {
    type Data = Bytes;
    type Error = RequestError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestError>>> {
        let mut state = lock(&self.shared);
        if state.turn != self.turn {
            return Poll::Ready(None);
        }
        if let Some(data) = state.left().first().cloned() {
            state.position += 1;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let polled = Pin::new(&mut state.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            state.keep(frame);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.shared);
        state.left().is_empty() && state.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let state = lock(&self.shared);
        let kept: usize = state.left().iter().map(Bytes::len).sum();
        let (kept, rest) = (kept as u64, state.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(kept));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(kept));
        }
        hint
    }
}

fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    // Nothing panics while it is held.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(body: &mut RequestBody) -> Option<Bytes> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        match Pin::new(body).poll_frame(&mut context) {
            Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
            _ => None,
        }
    }

    fn kept(frames: &[Frame<Bytes>]) -> (Arc<Mutex<State>>, Rewind) {
        let shared = Arc::new(Mutex::new(State::new(RequestBody::Empty, KEPT_BYTES_MAX)));
        let rewind = Rewind::new(shared.clone());
        frames.iter().for_each(|frame| lock(&shared).keep(frame));
        (shared, rewind)
    }

    fn data(text: &'static str) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn what_was_sent_is_sent_again_and_only_by_one() {
        let (shared, rewind) = kept(&[data("ab"), data("c")]);
        let mut first = RequestBody::Kept(Kept { shared: shared.clone(), turn: 0 });
        assert!(first.is_end_stream(), "all of it has been read");
        let mut again = rewind.body().expect("little was read");
        assert_eq!((again.size_hint().exact(), again.is_end_stream()), (Some(3), false));
        assert_eq!(poll(&mut first), None, "the failed connection gets no more");
        assert_eq!([poll(&mut again), poll(&mut again)], [Some("ab".into()), Some("c".into())]);
        assert!(again.is_end_stream());
    }

    #[test]
    fn what_is_kept_is_not_kept_twice() {
        let (shared, rewind) = kept(&[data("ab")]);
        let first = RequestBody::Kept(Kept { shared: shared.clone(), turn: 0 });
        let (lent, before) = keep_up_to(1, Request::new(first));
        let mut lent = lent.into_body();
        let RequestBody::Kept(same) = &lent else { panic!("it was kept") };
        assert!(Arc::ptr_eq(&same.shared, &shared));
        let mut again = before.request().expect("little was read").into_body();
        assert_eq!((poll(&mut lent), poll(&mut again)), (None, Some("ab".into())));
        let mut once_more = rewind.body().expect("by the one who kept it first, too");
        assert_eq!(poll(&mut once_more), Some("ab".into()));
    }

    #[test]
    fn nothing_is_kept_for_nobody() {
        let (shared, rewind) = kept(&[data("ab"), data("c")]);
        let (mut again, bytes) = (rewind.body().expect("little was read"), || lock(&shared).kept.len());
        assert_eq!((bytes(), poll(&mut again)), (2, Some("ab".into())), "it is still to be read");
        let second = Rewind::new(shared.clone());
        drop(second);
        assert_eq!((bytes(), poll(&mut again)), (1, Some("c".into())), "and the rest of it");
        lock(&shared).keep(&data("d"));
        assert!(Rewind::new(shared.clone()).body().is_none(), "its beginning is gone");
        let (shared, rewind) = kept(&[]);
        drop(rewind);
        lock(&shared).keep(&data("a"));
        assert_eq!(lock(&shared).kept.len(), 0, "nobody waits for it");
    }

    #[test]
    fn too_much_is_not_kept() {
        let large = Frame::data(Bytes::from(vec![0; KEPT_BYTES_MAX]));
        let one = || data("a");
        assert!(kept(&[one()]).1.body().is_some());
        let pieces: Vec<_> = std::iter::repeat_with(one).take(KEPT_BYTES_MAX / BYTES_PER_PIECE + 1).collect();
        assert!(kept(&pieces).1.body().is_none(), "nor in too many pieces");
        let (shared, rewind) = kept(&[one(), large, one()]);
        assert!(lock(&shared).kept.is_empty());
        assert!(rewind.body().is_none());
    }
}
