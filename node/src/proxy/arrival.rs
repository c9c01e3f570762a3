//! A request's body between the task that reads a peer's stream and whoever sends the body on.
//!
//! The reader of the stream goes on while nobody asks for the body: so it hears when the peer gives the request up.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::messages::MessageError;
use crate::upstream::messages::BODY_BYTES_MAX;

/// The body. Dropped, nobody wants the rest.
pub(crate) struct Arrival(Inbox);

/// Where what arrives is put.
#[derive(Clone)]
pub(super) struct Inbox(Arc<Mutex<State>>);

struct State {
    /// At most [`BODY_BYTES_MAX`], and what came at once with the last of them.
    data: BytesMut,
    /// Of what is to be read here, if the head says it.
    left: Option<u64>,
    end: Option<End>,
    /// Who waits for more.
    reader: Option<Waker>,
    /// Who waits for room, or for the body to be dropped.
    writer: Option<Waker>,
    is_dropped: bool,
}

enum End {
    Clean,
    Trailers(HeaderMap),
    Broken(MessageError),
}

impl Inbox {
    /// Of a body that has `length` bytes, if that is known.
    pub(super) fn new(length: Option<u64>) -> Self {
        Self(Arc::new(Mutex::new(State {
            data: BytesMut::new(),
            left: length,
            end: None,
            reader: None,
            writer: None,
            is_dropped: false,
        })))
    }

    /// The body that is read from it.
    pub(super) fn body(&self) -> Arrival {
        Arrival(self.clone())
    }

    /// Ready when there is room for more; what comes for a body that was dropped needs none.
    pub(super) fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.is_dropped || state.data.len() < BODY_BYTES_MAX {
            return Poll::Ready(());
        }
        state.writer = Some(context.waker().clone());
        Poll::Pending
    }

    /// Ready when the body was dropped.
    pub(super) fn poll_dropped(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.is_dropped {
            return Poll::Ready(());
        }
        state.writer = Some(context.waker().clone());
        Poll::Pending
    }

    /// Takes in what has arrived.
    pub(super) fn put(&self, frame: Frame<Bytes>) {
        self.change(|state| match frame.into_data() {
            Ok(data) if state.is_dropped => drop(data),
            Ok(data) if state.data.is_empty() => state.data = data.into(),
            Ok(data) => state.data.extend_from_slice(&data),
            Err(frame) => state.end = frame.into_trailers().ok().map(End::Trailers),
        });
    }

    /// Nothing more arrives, by the peer's fault if `error` says so.
    pub(super) fn end(&self, error: Option<MessageError>) {
        self.change(|state| match error {
            Some(error) => state.end = Some(End::Broken(error)),
            None => drop(state.end.get_or_insert(End::Clean)),
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Body for Arrival {
    type Data = Bytes;
    type Error = MessageError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, MessageError>>> {
        let mut state = self.0.lock();
        if !state.data.is_empty() {
            let data = state.data.split().freeze();
            state.left = state.left.map(|left| left.saturating_sub(data.len() as u64));
            let writer = state.writer.take();
            drop(state);
            writer.into_iter().for_each(Waker::wake);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match state.end.take() {
            None => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
            Some(end) => {
                state.end = Some(End::Clean);
                Poll::Ready(match end {
                    End::Clean => None,
                    End::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
                    End::Broken(error) => Some(Err(error)),
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.lock();
        state.data.is_empty() && matches!(state.end, Some(End::Clean))
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.0.lock();
        match (state.left, &state.end) {
            (_, Some(End::Clean)) => SizeHint::with_exact(state.data.len() as u64),
            (Some(left), _) => SizeHint::with_exact(left),
            (None, _) => SizeHint::default(),
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_dropped = true;
        state.data = BytesMut::new();
        let writer = state.writer.take();
        drop(state);
        writer.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(body: &mut Arrival) -> Poll<Option<Result<Frame<Bytes>, MessageError>>> {
        Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()))
    }

    fn data(bytes: &'static [u8]) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(bytes))
    }

    fn has_room(inbox: &Inbox) -> bool {
        inbox.poll_room(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn what_is_put_in_comes_out_in_order_and_ends_as_it_did() {
        let inbox = Inbox::new(None);
        let mut body = inbox.body();
        assert!(poll(&mut body).is_pending());
        inbox.put(data(b"ab"));
        inbox.put(data(b"c"));
        let Poll::Ready(Some(Ok(frame))) = poll(&mut body) else { panic!("data") };
        assert_eq!(frame.into_data().ok(), Some("abc".into()));
        inbox.put(Frame::trailers(HeaderMap::new()));
        inbox.end(None);
        assert!(!body.is_end_stream());
        assert!(matches!(poll(&mut body), Poll::Ready(Some(Ok(frame))) if frame.is_trailers()));
        assert!(body.is_end_stream() && matches!(poll(&mut body), Poll::Ready(None)));

        let inbox = Inbox::new(Some(5));
        let mut body = inbox.body();
        inbox.put(data(b"ab"));
        assert!(poll(&mut body).is_ready());
        assert_eq!(body.size_hint().exact(), Some(3));
        inbox.end(Some(MessageError::Cut));
        assert!(matches!(poll(&mut body), Poll::Ready(Some(Err(MessageError::Cut)))));
        assert!(matches!(poll(&mut body), Poll::Ready(None)));
    }

    #[test]
    fn it_holds_no_more_than_may_be_and_nothing_for_nobody() {
        let inbox = Inbox::new(None);
        let mut body = inbox.body();
        inbox.put(Frame::data(vec![0; BODY_BYTES_MAX].into()));
        assert!(!has_room(&inbox));
        assert!(poll(&mut body).is_ready() && has_room(&inbox));
        inbox.put(Frame::data(vec![0; BODY_BYTES_MAX].into()));
        drop(body);
        inbox.put(data(b"ab"));
        assert!(has_room(&inbox) && inbox.lock().data.is_empty());
        assert!(inbox.poll_dropped(&mut Context::from_waker(Waker::noop())).is_ready());
    }
}
