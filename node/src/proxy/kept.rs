//! A request's body whose beginning is kept, so that it can be sent once more: only for a workload
//! that has not shown yet which version of HTTP it speaks.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::proxy::body::{RequestBody, RequestError};

/// As much as is kept: more than forms and messages have, and one round trip's worth of an upload.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// And of so many pieces: each costs some bytes of its own, and may keep more than itself.
const KEPT_PIECES_MAX: usize = 1024;

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
    let state = State { body, kept: Vec::new(), kept_bytes: 0, position: 0, is_lost: false, turn: 0 };
    let shared = Arc::new(Mutex::new(state));
    let rewind = Rewind(shared.clone());
    (RequestBody::Kept(Kept { shared, turn: 0 }), rewind)
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
    /// What `ask` finds out about what is left.
    fn look<T>(&self, ask: impl FnOnce(&State) -> T) -> T {
        ask(&lock(&self.shared))
    }
}

impl State {
    fn left(&self) -> &[Bytes] {
        &self.kept[self.position..]
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        if self.is_lost {
            return;
        }
        let has_room = |data: &&Bytes| {
            self.kept.len() < KEPT_PIECES_MAX && self.kept_bytes + data.len() <= KEPT_BYTES_MAX
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
        self.look(|state| state.left().is_empty() && state.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.look(|state| {
            let kept: usize = state.left().iter().map(Bytes::len).sum();
            let (kept, rest) = (kept as u64, state.body.size_hint());
            let mut hint = SizeHint::new();
            hint.set_lower(rest.lower().saturating_add(kept));
            if let Some(upper) = rest.upper() {
                hint.set_upper(upper.saturating_add(kept));
            }
            hint
        })
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
        let mut state = State {
            body: RequestBody::Empty,
            kept: Vec::new(),
            kept_bytes: 0,
            position: 0,
            is_lost: false,
            turn: 0,
        };
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
    fn too_much_is_not_kept() {
        let large = Frame::data(Bytes::from(vec![0; KEPT_BYTES_MAX]));
        let one = || Frame::data(Bytes::from_static(b"a"));
        assert!(Rewind(kept(&[one()])).body().is_some());
        let pieces: Vec<_> = std::iter::repeat_with(one).take(KEPT_PIECES_MAX + 1).collect();
        assert!(Rewind(kept(&pieces)).body().is_none(), "nor in too many pieces");
        let shared = kept(&[one(), large, one()]);
        assert!(lock(&shared).kept.is_empty());
        assert!(Rewind(shared).body().is_none());
    }
}
