//! Requests to a peer's sidecar, in messages of our own: streams that are kept, each lent to one request at a time.
//!
//! A request's own task sends it and waits for its answer; only what is left of its body when that begins has another. As in
//! `http1`, the stream used last is the first to be used again.

#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use h2::Reason;
use http::Method;
use http_body::Body as _;
use starling_transport::answer::AnswerError;
use starling_transport::connection::Connection;
use starling_transport::stream::{MeshStream, SendHalf};
use tokio::task::JoinHandle;

use crate::messages::frame::Place;
use crate::messages::read::{MessageBody, MessageReader, TakesBack};
use crate::messages::write::{self, Unsent};
use crate::messages::{MessageError, head, reason_in, reason_of, reset_with};
use crate::proxy::body::{RequestBody, RequestError};
use crate::proxy::forward::Underway;
use crate::proxy::kept::{self, Rewind};
use crate::proxy::spare::Spare;
use crate::upstream::hop::{HopBody, HopError};
use crate::upstream::{Answered, ConnectFailure, HttpVersion, NextHop, SendError, SendFailure};

/// A callee that accepts a stream connects to its workload first, which on one machine takes
/// less than a millisecond.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(5);

/// A longer head waits for its callee's word: one that refuses would have been sent all of it in vain.
const EARLY_BYTES_MAX: usize = 4 * 1024;

/// No request's body is longer than this; it is kept until there is an answer, should the peer not process it.
pub(crate) const BODY_BYTES_MAX: usize = 16 * 1024;

/// Streams to one instance on which messages of one version of HTTP pass.
pub(crate) struct MessagePool {
    version: HttpVersion,
    idle: Mutex<Vec<Kept>>,
    idle_max: usize,
}

/// A stream between two exchanges.
struct Kept {
    send: Sent,
    reader: Box<MessageReader>,
    connection: Connection,
    /// Idle since before the last sweep.
    swept: bool,
}

/// What else belongs to a stream while its answer is read.
pub(crate) struct Lent {
    pool: Arc<MessagePool>,
    upload: Upload,
    connection: Connection,
}

/// How far a request has been sent.
enum Upload {
    /// To its end, or as far as its callee took it.
    Done(Option<Sent>),
    /// By a task of its own. It says with what it ended.
    Underway(JoinHandle<Result<Sent, Unsent<RequestError>>>),
}

/// A direction that is between two messages: unless it is used again, it ends cleanly, for what has not arrived yet of the
/// last one is wanted.
struct Sent(Option<SendHalf>);

/// A direction within a message: unless that comes to its end, it is reset, and the callee hears why.
struct Sending(Option<SendHalf>);

/// A new stream, before its callee has answered.
pub(crate) struct Opened {
    pub(crate) stream: MeshStream,
    pub(crate) connection: Connection,
}

/// What a callee's answer to a new stream on `connection` comes to.
pub(crate) async fn accepted(
    answer: impl Future<Output = Result<(), AnswerError>>,
    connection: &Connection,
) -> Result<(), ConnectFailure> {
    let unreachable = |error: &dyn std::fmt::Display| ConnectFailure::Unreachable(error.to_string());
    let answer = tokio::select! {
        answer = tokio::time::timeout(ACCEPT_PATIENCE, answer) => answer,
        () = connection.unresponsive() => return Err(unreachable(&"the peer has fallen silent")),
    };
    match answer {
        Ok(Ok(())) => Ok(()),
        Ok(Err(AnswerError::Refused(refusal))) => {
            Err(ConnectFailure::Refused(refusal.reason, refusal.detail))
        }
        Ok(Err(error)) => Err(unreachable(&error)),
        Err(_elapsed) => Err(unreachable(&"the peer did not answer in time")),
    }
}

/// Opens streams for messages.
pub(crate) trait OpenMessages: Send + Sync {
    /// Opens one for messages of `version`.
    fn open(&self, version: HttpVersion) -> impl Future<Output = Result<Opened, ConnectFailure>> + Send;
}

impl MessagePool {
    /// No stream is open yet.
    pub(crate) fn new(version: HttpVersion, idle_max: usize) -> Arc<Self> {
        Arc::new(Self { version, idle: Mutex::default(), idle_max })
    }

    /// Sends `request`, on a kept stream if there is one. When the peer has fallen silent and `give_up` says so, the
    /// answer is waited for no longer. What may be sent twice is left in `spare`.
    pub(crate) async fn send(
        self: &Arc<Self>,
        open: &impl OpenMessages,
        request: Underway,
        spare: &mut Option<Spare>,
        give_up: impl Fn() -> bool + Send + Sync,
    ) -> Result<Answered, SendError> {
        let (is_empty, is_head) = (request.body().is_end_stream(), request.method() == Method::HEAD);
        let place = if is_empty { Place::Last { keeps: false } } else { Place::Inside };
        let encode =
            |request: &Underway| head::encode_request(request, place, request.body().size_hint().exact());
        let frame = match Spare::with_frame(&request) {
            Some((made, frame)) => {
                *spare = Some(made);
                Some(frame)
            }
            None => None,
        };
        let may_be_sent_twice = frame.is_some();
        let mut is_ahead = false;
        let (kept, is_used) = match self.take() {
            Some(kept) => (kept, true),
            None => {
                // What may be sent twice goes ahead of its callee's word; nothing is lost by a guess.
                let early = frame.clone().filter(|head| head.len() <= EARLY_BYTES_MAX);
                is_ahead = early.is_some();
                // On the heap, for it is seldom and large, and every request's future would have room for it.
                match Box::pin(self.open(open, early)).await {
                    Ok(kept) => (kept, false),
                    Err(failure) => {
                        let is_unsent =
                            matches!(failure, SendFailure::Connect(_) | SendFailure::Unprocessed(_));
                        return Err(SendError { failure, unsent: is_unsent.then_some(request) });
                    }
                }
            }
        };
        let Kept { send, mut reader, connection, .. } = kept;
        let send = send.begin();
        // Its caller has once more what may be sent twice; its head would lie here as long as it is under way.
        let mut request = if may_be_sent_twice {
            head::give_room(request.into_parts().0.headers);
            None
        } else {
            Some(request)
        };
        let next_hop = NextHop::Peer(connection.clone());
        let mut rewind = None;
        let exchange = Exchange { reader: &mut reader, next_hop: &next_hop, give_up: &give_up };
        let sent = match &mut request {
            None => exchange.without_body(send, frame.filter(|_| !is_ahead)).await,
            Some(request) if is_empty => exchange.without_body(send, Some(encode(request).freeze())).await,
            Some(request) => {
                let head = encode(request);
                let body = std::mem::replace(request.body_mut(), RequestBody::Empty);
                let (body, beginning) = kept::keep_body(BODY_BYTES_MAX, body);
                rewind = beginning;
                exchange.with_body(Box::pin(upload(send, head, body))).await
            }
        };
        let ((head, place), upload) = match sent {
            Ok(answered) => answered,
            Err(failure) => {
                let failure = next_hop.explain(told(failure, is_used && self.version == HttpVersion::Http1));
                let unsent = match &failure {
                    SendFailure::Unprocessed(_) => {
                        // What its callee refuses now it refuses on the others, too: they are of its last life.
                        self.lock().clear();
                        request.and_then(|request| again(request, is_empty, rewind))
                    }
                    _ => None,
                };
                return Err(SendError { failure, unsent });
            }
        };
        // From here on, what goes wrong takes the upload with it.
        let lent = Lent { pool: self.clone(), upload, connection };
        let (response, length) = head::decode_answer(head, self.version, place, is_head)
            .map_err(|error| SendError { failure: SendFailure::Broken(error.into()), unsent: None })?;
        let body = match place {
            Place::Last { keeps } => {
                lent.take_back(reader, keeps);
                HopBody::Empty
            }
            Place::Inside => {
                let mut body = MessageBody::new(reader, length, lent);
                // Whoever reads the rest asks again, and is the one who is woken.
                let whole = body.look_for_whole(&mut Context::from_waker(Waker::noop()));
                whole.map_or_else(|| HopBody::Answer(Box::new(body)), HopBody::Whole)
            }
        };
        Ok(Answered { response: response.map(|()| body), sender: None, stream: None })
    }

    /// Closes streams that were idle since the last sweep, and marks the others.
    pub(crate) fn sweep(&self) {
        self.lock().retain_mut(|kept| !std::mem::replace(&mut kept.swept, true));
    }

    /// A new stream that its callee has accepted, with a request's head on it already, should that be `early`.
    async fn open(&self, open: &impl OpenMessages, early: Option<Bytes>) -> Result<Kept, SendFailure> {
        let Opened { stream, connection } = open.open(self.version).await?;
        let (send, recv) = stream.into_split();
        recv.ring_when_unresponsive();
        let (mut send, mut reader) = (Sending(Some(send)), MessageReader::new(recv));
        let opening = async {
            if let (Some(send), Some(head)) = (&mut send.0, early) {
                // A callee that refuses takes no more of it, and says why all the same.
                let _ = send.write_chunk(head).await;
            }
            reader.stream_mut().accepted().await
        };
        let mut overtaken = None;
        let answer = opening.map(|answer| match answer {
            // The callee had accepted it: this is about the request, and has overtaken its word.
            Err(AnswerError::Lost(error)) if reason_in(&error).is_some() => {
                overtaken = Some(MessageError::of_read(error));
                Ok(())
            }
            answer => answer,
        });
        accepted(answer, &connection).await?;
        if let Some(error) = overtaken {
            return Err(told(broken(error), false));
        }
        Ok(Kept { send: send.end(), reader, connection, swept: false })
    }

    /// The idle stream used last that can take a request now.
    fn take(&self) -> Option<Kept> {
        let mut idle = self.lock();
        while let Some(mut kept) = idle.pop() {
            // Its callee may have ended it, or be lost. Whoever reads the answer asks again, and is the one who is woken.
            if kept.connection.is_usable()
                && poll_once(|context| kept.reader.poll_disturbed(context)).is_none()
            {
                return Some(kept);
            }
        }
        None
    }

    fn put(&self, kept: Kept) {
        let mut idle = self.lock();
        if idle.len() < self.idle_max && kept.connection.is_usable() {
            idle.push(kept);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        // Nothing panics while it is held; a poisoned list is still a list of streams.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn poll_once<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Option<T> {
    match poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(ready) => Some(ready),
        Poll::Pending => None,
    }
}

/// The request, if all of it can be sent again.
fn again(mut request: Underway, is_empty: bool, rewind: Option<Rewind>) -> Option<Underway> {
    if !is_empty {
        *request.body_mut() = rewind?.body()?;
    }
    Some(request)
}

/// A request under way, until its answer begins.
struct Exchange<'e, G> {
    reader: &'e mut MessageReader,
    next_hop: &'e NextHop,
    give_up: &'e G,
}

/// An answer's head, whether it goes on, and what is left of its request.
type AnswerStart = ((Bytes, Place), Upload);

type Uploading<F> = std::pin::Pin<Box<F>>;

impl<G: Fn() -> bool + Send + Sync> Exchange<'_, G> {
    /// `head` is there unless it went ahead.
    async fn without_body(self, mut send: Sending, head: Option<Bytes>) -> Result<AnswerStart, SendFailure> {
        if let (Some(send), Some(head)) = (send.0.as_mut(), head) {
            self.write(send, head).await?;
        }
        // The stream rings when its peer falls silent. On the heap: hardly any request needs it.
        let mut given_up = None;
        let head = poll_fn(|context| {
            if let Poll::Ready(head) = poll_next_head(self.reader, context) {
                return Poll::Ready(head);
            }
            if given_up.is_none() && self.next_hop.is_responsive() {
                return Poll::Pending;
            }
            let given_up = given_up.get_or_insert_with(|| Box::pin(self.next_hop.given_up(self.give_up)));
            given_up.as_mut().poll(context).map(|()| Err(SendFailure::Silent))
        });
        Ok((head.await?, Upload::Done(Some(send.end()))))
    }

    async fn write(&self, send: &mut SendHalf, head: Bytes) -> Result<(), SendFailure> {
        let mut writing = pin!(send.write_chunk(head));
        let written = match poll_fn(|context| Poll::Ready(writing.as_mut().poll(context))).await {
            Poll::Ready(written) => written,
            // The peer reads nothing more just now. On the heap: most that is written has room.
            Poll::Pending => {
                let given_up = Box::pin(self.next_hop.given_up(self.give_up));
                tokio::select! {
                    biased;
                    written = writing => written,
                    () = given_up => return Err(SendFailure::Silent),
                }
            }
        };
        written.map_err(|error| broken(MessageError::Lost(error)))
    }

    async fn with_body<F>(self, mut upload: Uploading<F>) -> Result<AnswerStart, SendFailure>
    where
        F: Future<Output = Result<Sending, Unsent<RequestError>>> + Send + 'static,
    {
        // Until the answer begins, whoever gives up takes back what has been sent.
        let mut sent = None;
        let head = loop {
            tokio::select! {
                biased;
                ended = upload.as_mut(), if sent.is_none() => match ended {
                    Ok(done) => sent = Some(Some(done)),
                    // The peer wants no more of it: its answer says why.
                    Err(Unsent::Stream(_)) => sent = Some(None),
                    Err(Unsent::Body(error)) => return Err(broken(MessageError::Unsent(Box::new(error)))),
                },
                head = next_head(self.reader) => break head?,
                () = self.next_hop.given_up(self.give_up) => return Err(SendFailure::Silent),
            }
        };
        let upload = match sent {
            Some(sent) => Upload::Done(sent.map(Sending::end)),
            None => Upload::Underway(tokio::spawn(async { upload.await.map(Sending::end) })),
        };
        Ok((head, upload))
    }
}

async fn next_head(reader: &mut MessageReader) -> Result<(Bytes, Place), SendFailure> {
    poll_fn(|context| poll_next_head(reader, context)).await
}

fn poll_next_head(
    reader: &mut MessageReader,
    context: &mut Context<'_>,
) -> Poll<Result<(Bytes, Place), SendFailure>> {
    let head = ready!(reader.poll_head(context)).map_err(broken)?;
    Poll::Ready(head.ok_or_else(|| broken(MessageError::Cut)))
}

fn broken(error: MessageError) -> SendFailure {
    SendFailure::Broken(HopError::Message(error))
}

/// What a failure on a stream means; `may_be_stale` is whether that may have been ended without a look at the request. In
/// HTTP/2 nobody expects that, and what is lost speaks against its callee.
fn told(failure: SendFailure, may_be_stale: bool) -> SendFailure {
    match failure {
        SendFailure::Broken(error) if error.reset_code() == Some(Reason::REFUSED_STREAM) => {
            SendFailure::Unprocessed(error)
        }
        // One that was reset was looked at.
        SendFailure::Broken(HopError::Message(error @ (MessageError::Lost(_) | MessageError::Cut)))
            if may_be_stale =>
        {
            SendFailure::Stale(error.into())
        }
        failure => failure,
    }
}

/// Sends a body, with its head if that has not been sent. A body that breaks resets the stream.
async fn upload(
    mut send: Sending,
    head: BytesMut,
    body: RequestBody,
) -> Result<Sending, Unsent<RequestError>> {
    let Some(stream) = &mut send.0 else { return Ok(send) };
    // Of a request nobody asks whether the stream takes another.
    match write::message(stream, head, body, || false).await {
        Ok(()) => Ok(send),
        Err(Unsent::Body(error)) => {
            send.reset(reason_of(&error));
            Err(Unsent::Body(error))
        }
        Err(error) => Err(error),
    }
}

impl Sent {
    /// A message begins.
    fn begin(mut self) -> Sending {
        Sending(self.0.take())
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(send) = &mut self.0 {
            send.finish();
        }
    }
}

impl Sending {
    /// The message has come to its end, and is wanted.
    fn end(mut self) -> Sent {
        Sent(self.0.take())
    }

    fn reset(&mut self, reason: Reason) {
        if let Some(send) = self.0.take() {
            send.reset(reset_with(reason));
        }
    }
}

impl Drop for Sending {
    /// Whoever sent it waits for nothing any more.
    fn drop(&mut self) {
        self.reset(Reason::CANCEL);
    }
}

impl TakesBack for Lent {
    fn take_back(mut self, reader: Box<MessageReader>, keeps: bool) {
        let sent = match &mut self.upload {
            Upload::Done(sent) => sent.take(),
            Upload::Underway(task) => match task.now_or_never() {
                Some(ended) => ended.ok().and_then(Result::ok),
                None => {
                    // What is left of the request may be wanted all the same.
                    self.upload = Upload::Done(None);
                    None
                }
            },
        };
        if let Some(send) = sent.filter(|_| keeps) {
            let connection = self.connection.clone();
            self.pool.put(Kept { send, reader, connection, swept: false });
        }
    }
}

impl Drop for Lent {
    /// Nobody reads the answer any more: nothing more of its request is sent, and what is under way is reset.
    fn drop(&mut self) {
        match &mut self.upload {
            Upload::Done(sent) => drop(sent.take().map(Sent::begin)),
            Upload::Underway(task) => task.abort(),
        }
    }
}
