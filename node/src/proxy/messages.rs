//! Requests of a peer's sidecar, in messages of our own, one after the other on one stream.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use h2::Reason;
use http::header::CONNECTION;
use http::{Method, Request, Response};
use http_body::Body as _;
use starling_transport::stream::{MeshStream, SendHalf};
use tokio::sync::oneshot;

use crate::messages::frame::Place;
use crate::messages::read::{MessageBody, MessageReader, TakesBack};
use crate::messages::write::{self, Unsent};
use crate::messages::{MessageError, head, reason_of, reset_with};
use crate::proxy::arrival::Inbox;
use crate::proxy::body::{AnswerBody, BodyError, RequestBody};
use crate::proxy::failure::{Flag, Reset};
use crate::proxy::forward::Passing;
use crate::proxy::inbound::Caller;
use crate::upstream::HttpVersion;
use crate::upstream::hop::HopBody;

/// A stream whose request's body is being read goes back when that has come to its end.
struct Borrowed(oneshot::Sender<Box<MessageReader>>);

/// Serves the requests that come by `stream`, until its caller ends it, or one breaks it.
pub(super) async fn serve(
    caller: &Caller,
    version: HttpVersion,
    stream: MeshStream,
) -> Result<(), MessageError> {
    let (mut send, recv) = stream.into_split();
    let mut reader = MessageReader::new(recv);
    loop {
        let (head, place) = match poll_fn(|context| reader.poll_head(context)).await {
            Ok(Some(head)) => head,
            Ok(None) => {
                send.finish();
                return Ok(());
            }
            Err(error) => return Err(refuse(caller, send, error)),
        };
        if caller.takes_nothing() {
            caller.note_refused(Flag::ConnectFailure);
            // It may go elsewhere, whatever it asks.
            send.reset(reset_with(Reason::REFUSED_STREAM));
            return Ok(());
        }
        let mut request = Box::write(Box::new_uninit(), Request::new(RequestBody::Empty));
        let length = match head::decode_request(head.clone(), version, place, &mut request) {
            Ok(length) => length,
            Err(error) => return Err(refuse(caller, send, error)),
        };
        let is_head = request.method() == Method::HEAD;
        let mut reading = Reading { idle: Some(reader), arriving: None };
        if !place.is_last() {
            *request.body_mut() = poll_fn(|context| Poll::Ready(reading.lend(context, length))).await;
        }
        // On the heap, for as long as there is one: the stream may be idle for long. Made there, for it is large.
        let passing = Passing::of_message(request, version, head);
        let answering = Box::write(Box::new_uninit(), caller.answer(passing));
        let mut answering = Box::into_pin(answering);
        let answer = poll_fn(|context| match answering.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending => reading.poll_given_up(context).map(|()| None),
        });
        let Some(mut answer) = answer.await else { return Ok(()) };
        drop(answering);
        let closes = answer.headers_mut().remove(CONNECTION).is_some();
        if let Some(Reset(reason)) = answer.extensions().get() {
            send.reset(reset_with(*reason));
            return Ok(());
        }
        // What the last frame says is decided when that is written.
        let (is_back, is_kept) = (AtomicBool::new(false), AtomicBool::new(false));
        let keeps = || {
            let keeps = !closes && !caller.is_retired() && is_back.load(Ordering::Relaxed);
            is_kept.store(keeps, Ordering::Relaxed);
            keeps
        };
        let sent = {
            let mut sending = pin!(send_answer(&mut send, answer, is_head, keeps));
            let sent = poll_fn(|context| {
                let _ = reading.poll_arrived(context);
                is_back.store(reading.idle.is_some(), Ordering::Relaxed);
                match sending.as_mut().poll(context) {
                    Poll::Ready(sent) => Poll::Ready(Some(sent)),
                    Poll::Pending => reading.poll_given_up(context).map(|()| None),
                }
            });
            sent.await
        };
        match sent {
            None => return Ok(()),
            Some(Ok(())) => {}
            Some(Err(Unsent::Stream(error))) => return Err(error.into()),
            Some(Err(Unsent::Body(error))) => {
                write::broken(&mut send, reason_of(&error)).await?;
                send.finish();
                return Ok(());
            }
        }
        reader = match reading.idle.take() {
            Some(reader) if is_kept.into_inner() => reader,
            _ => {
                send.finish();
                // The workload may want the rest of the request, though it has answered.
                poll_fn(|context| reading.poll_left(context)).await;
                return Ok(());
            }
        };
    }
}

/// Ends the direction to a caller whose request does not come to be one.
fn refuse(caller: &Caller, send: SendHalf, error: MessageError) -> MessageError {
    if matches!(error, MessageError::Malformed(_)) {
        caller.note_refused(Flag::Malformed);
        send.reset(reset_with(Reason::PROTOCOL_ERROR));
    }
    error
}

/// The direction from the caller, while a request is answered.
struct Reading {
    /// Between two messages.
    idle: Option<Box<MessageReader>>,
    /// Within one.
    arriving: Option<Arriving>,
}

/// A body on its way from the stream to whoever sends it on.
struct Arriving {
    body: Box<MessageBody<Borrowed>>,
    inbox: Inbox,
    /// What gives the stream back when the body has come to its end.
    returned: oneshot::Receiver<Box<MessageReader>>,
}

impl Reading {
    /// The body that follows a head which says that it has `length` bytes: all of it, if it is here.
    fn lend(&mut self, context: &mut Context<'_>, length: Option<u64>) -> RequestBody {
        let Some(reader) = self.idle.take() else { return RequestBody::Empty };
        let (lend, mut returned) = oneshot::channel();
        let mut body = MessageBody::new(reader, length, Borrowed(lend));
        if let Some(data) = body.look_for_whole(context) {
            self.idle = returned.try_recv().ok();
            return RequestBody::new(HopBody::Whole(data), None);
        }
        let inbox = Inbox::new(length);
        let lent = HopBody::Arriving(inbox.body());
        self.arriving = Some(Arriving { body: Box::new(body), inbox, returned });
        RequestBody::new(lent, None)
    }

    /// Takes in what has arrived. Ready when the request has come to its end, or broken off.
    fn poll_arrived(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(Arriving { body, inbox, returned }) = &mut self.arriving else { return Poll::Ready(()) };
        while !body.is_end_stream() {
            ready!(inbox.poll_room(context));
            match ready!(Pin::new(&mut *body).poll_frame(context)) {
                Some(Ok(frame)) => inbox.put(frame),
                Some(Err(error)) => inbox.end(Some(error)),
                None => {}
            }
        }
        inbox.end(None);
        (self.idle, self.arriving) = (returned.try_recv().ok(), None);
        Poll::Ready(())
    }

    /// Ready when nobody waits for the answer any more: the caller has reset the stream, or ended it, or broken the
    /// request off.
    fn poll_given_up(&mut self, context: &mut Context<'_>) -> Poll<()> {
        ready!(self.poll_arrived(context));
        match &mut self.idle {
            Some(reader) => reader.poll_disturbed(context),
            None => Poll::Ready(()),
        }
    }

    /// Ready when nobody reads the request any more, or it has come to its end.
    fn poll_left(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match &self.arriving {
            Some(arriving) if arriving.inbox.poll_dropped(context).is_pending() => self.poll_arrived(context),
            _ => Poll::Ready(()),
        }
    }
}

async fn send_answer(
    send: &mut SendHalf,
    mut answer: Response<AnswerBody>,
    is_head: bool,
    mut keeps: impl FnMut() -> bool,
) -> Result<(), Unsent<BodyError>> {
    head::join_lengths(answer.headers_mut());
    let is_empty = answer.body().is_end_stream();
    let length = answer.body().size_hint().exact().filter(|_| !is_empty);
    if is_empty || is_head {
        let head = head::encode_answer(&answer, Place::Last { keeps: keeps() }, length);
        return send.write_chunk(head.freeze()).await.map_err(Unsent::Stream);
    }
    let head = head::encode_answer(&answer, Place::Inside, length);
    let (http::response::Parts { headers, .. }, body) = answer.into_parts();
    head::give_room(headers);
    write::message(send, head, body, keeps).await
}

impl TakesBack for Borrowed {
    fn take_back(self, reader: Box<MessageReader>, _keeps: bool) {
        // Nobody takes it if the exchange was given up meanwhile.
        let _ = self.0.send(reader);
    }
}
