//! A request's body whose beginning is kept, so that it can be sent once more: to a workload
//! that had not shown yet which version of HTTP it speaks, or where a next hop did not process it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::proxy::body::{RequestBody, RequestError};

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

/// What is needed to begin it again.
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
}

/// Whether all of `body` is kept, should it be.
pub(crate) fn fits(body: &RequestBody) -> bool {
    body.size_hint().upper().is_some_and(|bytes| bytes <= KEPT_BYTES_MAX as u64)
}

/// Keeps the beginning of `body`.
pub(crate) fn keep(body: RequestBody) -> (RequestBody, Rewind) {
    keep_up_to(KEPT_BYTES_MAX, body)
}

/// Keeps the beginning of `body` until it is longer than `bytes_max`. What is kept already stays as it is.
pub(crate) fn keep_up_to(bytes_max: usize, body: RequestBody) -> (RequestBody, Rewind) {
    let kept = match body {
        RequestBody::Kept(kept) => kept,
        body => Kept { shared: Arc::new(Mutex::new(State::new(body, bytes_max))), turn: 0 },
    };
    let rewind = Rewind(kept.shared.clone());
    (RequestBody::Kept(kept), rewind)
}

impl Rewind {
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
        Some(RequestBody::Kept(Kept { shared: self.0, turn }))
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
        Self { body, kept: Vec::new(), kept_bytes: 0, bytes_max, position: 0, is_lost: false, turn: 0 }
    }

    fn left(&self) -> &[Bytes] {
        &self.kept[self.position..]
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        if self.is_lost {
            return;
        }
        let has_room = |data: &&Bytes| {
            self.kept.len() < self.bytes_max / BYTES_PER_PIECE
                && self.kept_bytes + data.len() <= self.bytes_max
        };
        match frame.data_ref().filter(has_room) {
            Some(data) => {
                self.kept.push(data.clone());
                self.kept_bytes += data.len();
                self.position += 1;
            }
            // Trailers are the end of an upload that took its time, too.
            _ => {
                self.is_lost = true;
                self.kept.clear();
                self.position = 0;
            }
        }
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

    fn kept(frames: &[Frame<Bytes>]) -> Arc<Mutex<State>> {
        let mut state = State::new(RequestBody::Empty, KEPT_BYTES_MAX);
        frames.iter().for_each(|frame| state.keep(frame));
        Arc::new(Mutex::new(state))
    }

    #[test]
    fn what_was_sent_is_sent_again_and_only_by_one() {
        let data = |text: &'static str| Frame::data(Bytes::from_static(text.as_bytes()));
        let shared = kept(&[data("ab"), data("c")]);
        let mut first = RequestBody::Kept(Kept { shared: shared.clone(), turn: 0 });
        assert!(first.is_end_stream(), "all of it has been read");
        let mut again = Rewind(shared).body().expect("little was read");
        assert_eq!((again.size_hint().exact(), again.is_end_stream()), (Some(3), false));
        assert_eq!(poll(&mut first), None, "the failed connection gets no more");
        assert_eq!([poll(&mut again), poll(&mut again)], [Some("ab".into()), Some("c".into())]);
        assert!(again.is_end_stream());
    }

    #[test]
    fn what_is_kept_is_not_kept_twice() {
        let shared = kept(&[Frame::data(Bytes::from_static(b"ab"))]);
        let first = RequestBody::Kept(Kept { shared: shared.clone(), turn: 0 });
        let (mut lent, rewind) = keep_up_to(1, first);
        let RequestBody::Kept(same) = &lent else { panic!("it was kept") };
        assert!(Arc::ptr_eq(&same.shared, &shared));
        let mut again = rewind.body().expect("little was read");
        assert_eq!((poll(&mut lent), poll(&mut again)), (None, Some("ab".into())));
        let mut once_more = Rewind(shared).body().expect("by the one who kept it first, too");
        assert_eq!(poll(&mut once_more), Some("ab".into()));
    }

    #[test]
    fn too_much_is_not_kept() {
        let large = Frame::data(Bytes::from(vec![0; KEPT_BYTES_MAX]));
        let one = || Frame::data(Bytes::from_static(b"a"));
        assert!(Rewind(kept(&[one()])).body().is_some());
        let pieces: Vec<_> = std::iter::repeat_with(one).take(KEPT_BYTES_MAX / BYTES_PER_PIECE + 1).collect();
        assert!(Rewind(kept(&pieces)).body().is_none(), "nor in too many pieces");
        let shared = kept(&[one(), large, one()]);
        assert!(lock(&shared).kept.is_empty());
        assert!(Rewind(shared).body().is_none());
    }
}
