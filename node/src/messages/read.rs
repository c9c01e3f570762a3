//! Messages as they arrive on a stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use starling_transport::stream::RecvHalf;

use crate::messages::MessageError;
use crate::messages::frame::{Kind, PREAMBLE_BYTES, Place, Preamble};
use crate::messages::head;

/// Parts of a stream that are read at once: a packet each, as a rule.
const CHUNKS: usize = 8;

/// Where a stream's bytes come from.
pub(crate) trait Source: Send {
    /// Fills `chunks` with the next bytes, and says how many it filled; 0 is the clean end.
    fn poll_chunks(&mut self, context: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<io::Result<usize>>;
}

/// As much as [`CHUNKS`] packets carry on most paths.
const JOINED_BYTES_EXPECTED: usize = CHUNKS * 1536;

/// A body that is here as a whole is copied if it is no longer: else it would keep all that came in with it.
const COPIED_BYTES_MAX: usize = 4 * 1024;

/// A head is given so much room at once; one that says that it is longer gets more as it comes.
const RESERVED_BYTES_MAX: usize = 4 * 1024;

/// Reads one message after the other. Keeps its place across polls, so it may be given up and resumed.
pub(crate) struct MessageReader<S = RecvHalf> {
    stream: S,
    /// Received and not looked at, from the end; the rest is empty.
    chunks: [Bytes; CHUNKS],
    /// How many of them have been filled, and looked at to their end.
    filled: usize,
    passed: usize,
    /// What there is of a preamble, a head or trailers that has not come as a whole.
    partial: BytesMut,
    /// The frame that is being read, and what is left of its data.
    frame: Option<Preamble>,
}

/// A part of a message.
#[derive(Debug)]
pub(crate) enum Part {
    /// A head, not read yet; it may be all of its message.
    Head(Bytes, Place),
    /// Some of the body.
    Data(Bytes, Place),
    /// Trailers, not read yet, with which a message ends.
    Trailers(Bytes, Place),
}

impl Source for RecvHalf {
    fn poll_chunks(&mut self, context: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<io::Result<usize>> {
        Self::poll_chunks(self, context, chunks)
    }
}

impl<S: Source> MessageReader<S> {
    /// Of `stream`, at the beginning of a message. On the heap, for it is large, and goes from hand to hand with every
    /// message.
    pub(crate) fn new(stream: S) -> Box<Self> {
        let chunks = Default::default();
        Box::new(Self { stream, chunks, filled: 0, passed: 0, partial: BytesMut::new(), frame: None })
    }

    /// The stream.
    pub(crate) fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The next head, and whether its message goes on; `None` at the stream's clean end.
    pub(crate) fn poll_head(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<(Bytes, Place)>, MessageError>> {
        Poll::Ready(match ready!(self.poll_part(context))? {
            None => Ok(None),
            Some(Part::Head(head, place)) => Ok(Some((head, place))),
            Some(_) => Err(MessageError::Malformed("a message without a head")),
        })
    }

    /// Between two messages: ready if the stream has ended, is lost, or has something that nobody waits for yet.
    pub(crate) fn poll_disturbed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.has_some() {
            return Poll::Ready(());
        }
        self.poll_fill(context).map(drop)
    }

    /// The next part; `None` at the stream's clean end, between two messages.
    fn poll_part(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Part>, MessageError>> {
        let preamble = match self.frame {
            Some(preamble) => preamble,
            None => {
                let Some(preamble) = ready!(self.poll_preamble(context))? else {
                    return Poll::Ready(Ok(None));
                };
                *self.frame.insert(Preamble::decode(preamble)?)
            }
        };
        let Preamble { kind, place, bytes } = preamble;
        if kind == Kind::Data {
            if bytes > 0 && !self.has_some() && ready!(self.poll_fill(context))? == 0 {
                return Poll::Ready(Err(MessageError::Cut));
            }
            let data = self.take_joined(bytes as usize);
            let left = bytes - data.len() as u32;
            self.frame = (left > 0).then_some(Preamble { bytes: left, ..preamble });
            let place = if left > 0 { Place::Inside } else { place };
            return Poll::Ready(Ok(Some(Part::Data(data, place))));
        }
        let Some(fields) = ready!(self.poll_whole(context, bytes as usize))? else {
            return Poll::Ready(Err(MessageError::Cut));
        };
        self.frame = None;
        Poll::Ready(Ok(Some(match kind {
            Kind::Head => Part::Head(fields, place),
            Kind::Trailers | Kind::Data => Part::Trailers(fields, place),
            Kind::Broken => return Poll::Ready(Err(MessageError::of_frame(&fields))),
        })))
    }

    /// `None` if the stream ends before its first byte.
    fn poll_preamble(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<[u8; PREAMBLE_BYTES]>, MessageError>> {
        if self.partial.is_empty() && !self.has_some() && ready!(self.poll_fill(context))? == 0 {
            return Poll::Ready(Ok(None));
        }
        if let Some(preamble) =
            self.whole_chunk(PREAMBLE_BYTES).and_then(|whole| whole.first_chunk().copied())
        {
            self.pass(PREAMBLE_BYTES);
            return Poll::Ready(Ok(Some(preamble)));
        }
        let whole = ready!(self.poll_whole(context, PREAMBLE_BYTES))?;
        Poll::Ready(Ok(whole.map(|whole| *whole.first_chunk().expect("as many bytes as were asked for"))))
    }

    /// Exactly `bytes`, in memory of their own: what is kept of a head for as long as its request lasts would keep all
    /// that came with it. `None` if the stream ends before the first of them.
    fn poll_whole(
        &mut self,
        context: &mut Context<'_>,
        bytes: usize,
    ) -> Poll<Result<Option<Bytes>, MessageError>> {
        if let Some(whole) = self.whole_chunk(bytes) {
            let whole = Bytes::copy_from_slice(whole);
            self.pass(bytes);
            return Poll::Ready(Ok(Some(whole)));
        }
        if self.partial.capacity() == 0 {
            self.partial.reserve(bytes.min(RESERVED_BYTES_MAX));
        }
        while self.partial.len() < bytes {
            if !self.has_some() && ready!(self.poll_fill(context))? == 0 {
                let end = if self.partial.is_empty() { Ok(None) } else { Err(MessageError::Cut) };
                return Poll::Ready(end);
            }
            let some = self.take(bytes - self.partial.len());
            self.partial.extend_from_slice(&some);
        }
        let whole = std::mem::take(&mut self.partial);
        // What has grown has room for as much again, and may be kept for long.
        let has_grown = bytes > RESERVED_BYTES_MAX;
        Poll::Ready(Ok(Some(if has_grown { Bytes::copy_from_slice(&whole) } else { whole.freeze() })))
    }

    /// The next `bytes`, if they have been received in one piece and nothing before them.
    fn whole_chunk(&self, bytes: usize) -> Option<&[u8]> {
        let is_next = self.partial.is_empty() && self.has_some();
        self.chunks.get(self.passed).filter(|_| is_next)?.get(..bytes)
    }

    /// Those have been looked at.
    fn pass(&mut self, bytes: usize) {
        let chunk = &mut self.chunks[self.passed];
        chunk.advance(bytes);
        if chunk.is_empty() {
            *chunk = Bytes::new();
            self.passed += 1;
        }
    }

    /// Some of what has been received, at most `bytes_max`.
    fn take(&mut self, bytes_max: usize) -> Bytes {
        if !self.has_some() {
            return Bytes::new();
        }
        let chunk = &mut self.chunks[self.passed];
        let some = match chunk.remaining() <= bytes_max {
            true => std::mem::take(chunk),
            false => chunk.split_to(bytes_max),
        };
        if chunk.is_empty() {
            self.passed += 1;
        }
        some
    }

    /// The same, as one piece of all that has been received: whoever passes it on does so once.
    fn take_joined(&mut self, bytes_max: usize) -> Bytes {
        let first = self.take(bytes_max);
        if first.len() == bytes_max || !self.has_some() {
            return first;
        }
        let mut joined = BytesMut::with_capacity(bytes_max.min(JOINED_BYTES_EXPECTED));
        joined.extend_from_slice(&first);
        while joined.len() < bytes_max && self.has_some() {
            let next = self.take(bytes_max - joined.len());
            joined.extend_from_slice(&next);
        }
        joined.freeze()
    }

    fn has_some(&self) -> bool {
        self.passed < self.filled
    }

    /// Receives more; 0 at the stream's end.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<Result<usize, MessageError>> {
        let read = ready!(self.stream.poll_chunks(context, &mut self.chunks));
        (self.passed, self.filled) = (0, *read.as_ref().unwrap_or(&0));
        Poll::Ready(read.map_err(MessageError::of_read))
    }
}

/// Who takes a stream back when a message on it has been read to its end.
pub(crate) trait TakesBack<S = RecvHalf>: Send {
    /// The stream, between two messages; `keeps` as its sender said ([`Place::Last`]).
    fn take_back(self, reader: Box<MessageReader<S>>, keeps: bool);
}

/// The body of a message. Given up before its end, its sender is told to stop.
pub(crate) struct MessageBody<T, S = RecvHalf> {
    /// Until the end.
    source: Option<(Box<MessageReader<S>>, T)>,
    /// What is still to come, if the head says it.
    left: Option<u64>,
    /// What was read before it was asked for.
    ahead: Option<Result<Option<Part>, MessageError>>,
}

impl<S: Source, T: TakesBack<S>> MessageBody<T, S> {
    /// What follows a head that is not all of its message, and says that its body has `length` bytes.
    pub(crate) fn new(reader: Box<MessageReader<S>>, length: Option<u64>, owner: T) -> Self {
        Self { source: Some((reader, owner)), left: length, ahead: None }
    }

    /// All of the body, if it came with the head and nothing follows it.
    pub(crate) fn look_for_whole(&mut self, context: &mut Context<'_>) -> Option<Bytes> {
        let (reader, _) = self.source.as_mut().filter(|(reader, _)| reader.has_some())?;
        let Poll::Ready(part) = reader.poll_part(context) else { return None };
        match part {
            Ok(Some(Part::Data(data, place))) if place.is_last() && self.is_as_long(&data) => {
                self.end(place);
                Some(if data.len() <= COPIED_BYTES_MAX { Bytes::copy_from_slice(&data) } else { data })
            }
            part => {
                self.ahead = Some(part);
                None
            }
        }
    }

    fn is_as_long(&self, data: &Bytes) -> bool {
        self.left.is_none_or(|left| left == data.len() as u64)
    }

    fn end(&mut self, place: Place) {
        if let Place::Last { keeps } = place
            && let Some((reader, owner)) = self.source.take()
        {
            owner.take_back(reader, keeps);
        }
    }

    fn handle_data(&mut self, data: &Bytes, place: Place) -> Result<(), MessageError> {
        let bytes = data.len() as u64;
        if let Some(left) = &mut self.left {
            *left =
                left.checked_sub(bytes).ok_or(MessageError::Malformed("more than Content-Length says"))?;
        }
        self.handle_place(place)
    }

    fn handle_place(&mut self, place: Place) -> Result<(), MessageError> {
        if place.is_last() && self.left.is_some_and(|left| left > 0) {
            return Err(MessageError::Malformed("less than Content-Length says"));
        }
        self.end(place);
        Ok(())
    }

    fn handle_part(&mut self, part: Option<Part>) -> Option<Result<Frame<Bytes>, MessageError>> {
        let frame = match part {
            Some(Part::Data(data, place)) => match self.handle_data(&data, place) {
                Ok(()) if data.is_empty() => return None,
                handled => handled.map(|()| Frame::data(data)),
            },
            Some(Part::Trailers(trailers, place)) => head::decode_trailers(trailers)
                .and_then(|trailers| self.handle_place(place).map(|()| Frame::trailers(trailers))),
            Some(Part::Head(..)) => Err(MessageError::Malformed("a head in a message")),
            None => Err(MessageError::Cut),
        };
        if frame.is_err() {
            // Nothing more comes of it, and the stream goes with it.
            self.source = None;
        }
        Some(frame)
    }

    /// Whoever knows the length asks no more when he has that; so the end that comes by itself is looked for at once.
    fn look_ahead(&mut self, context: &mut Context<'_>) {
        let Some((reader, _)) = self.source.as_mut().filter(|_| self.left == Some(0)) else { return };
        match reader.poll_part(context) {
            // It has as many bytes as it was to have.
            Poll::Ready(Ok(Some(Part::Data(data, place)))) if data.is_empty() => {
                drop(self.handle_place(place))
            }
            Poll::Ready(other) => self.ahead = Some(other),
            Poll::Pending => {}
        }
    }
}

impl<S: Source + Unpin, T: TakesBack<S> + Unpin> Body for MessageBody<T, S> {
    type Data = Bytes;
    type Error = MessageError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, MessageError>>> {
        let this = self.get_mut();
        let Some((reader, _)) = &mut this.source else { return Poll::Ready(None) };
        let part = match this.ahead.take() {
            Some(part) => part,
            None => ready!(reader.poll_part(context)),
        };
        match part {
            Ok(part) => {
                let frame = this.handle_part(part);
                this.look_ahead(context);
                Poll::Ready(frame)
            }
            Err(error) => {
                this.source = None;
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.source, self.left) {
            (None, _) => SizeHint::with_exact(0),
            (Some(_), Some(left)) => SizeHint::with_exact(left),
            (Some(_), None) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use bytes::BufMut as _;
    use http::{HeaderMap, Request, Response};
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;

    use super::*;
    use crate::upstream::HttpVersion;

    const LAST: Place = Place::Last { keeps: true };

    /// What has arrived, in pieces.
    struct Arrived(VecDeque<Bytes>);

    impl Source for Arrived {
        fn poll_chunks(&mut self, _: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<io::Result<usize>> {
            let count = chunks.len().min(self.0.len());
            chunks.iter_mut().zip(self.0.drain(..count)).for_each(|(chunk, piece)| *chunk = piece);
            Poll::Ready(Ok(count))
        }
    }

    type Returned = Arc<Mutex<Option<Box<MessageReader<Arrived>>>>>;

    struct Owner(Returned);

    impl TakesBack<Arrived> for Owner {
        fn take_back(self, reader: Box<MessageReader<Arrived>>, _: bool) {
            *self.0.lock().expect("no panic") = Some(reader);
        }
    }

    fn arrived(bytes: &[u8], piece: usize) -> Box<MessageReader<Arrived>> {
        MessageReader::new(Arrived(bytes.chunks(piece).map(Bytes::copy_from_slice).collect()))
    }

    fn frame(kind: Kind, is_last: bool, bytes: &[u8]) -> Vec<u8> {
        let place = if is_last { LAST } else { Place::Inside };
        let length = u32::try_from(bytes.len()).expect("short");
        [Preamble { kind, place, bytes: length }.encode().as_slice(), bytes].concat()
    }

    fn request(length: Option<u64>) -> Vec<u8> {
        let request = Request::post("/path?query").header("x-any", "some").body(()).expect("a request");
        head::encode_request(&request, Place::Inside, length).to_vec()
    }

    /// What one message says, and the stream if that can carry another.
    async fn read(
        mut reader: Box<MessageReader<Arrived>>,
    ) -> (Result<(Bytes, Option<HeaderMap>), MessageError>, Option<Box<MessageReader<Arrived>>>) {
        let head = match std::future::poll_fn(|context| reader.poll_head(context)).await {
            Ok(head) => head.expect("a head"),
            Err(error) => return (Err(error), None),
        };
        let mut request = Request::new(());
        let length =
            head::decode_request(head.0, HttpVersion::Http1, head.1, &mut request).expect("a request");
        assert_eq!(
            (request.uri().to_string().as_str(), &request.headers()["x-any"] == "some"),
            ("/path?query", true)
        );
        let returned = Returned::default();
        let body = MessageBody::new(reader, length, Owner(returned.clone()));
        let collected = body.collect().await;
        let trailers = collected.as_ref().ok().and_then(|body| body.trailers().cloned());
        let body = collected.map(|body| (body.to_bytes(), trailers));
        (body, returned.lock().expect("no panic").take())
    }

    #[tokio::test]
    async fn messages_come_one_after_the_other_however_they_are_cut() {
        let trailers: HeaderMap =
            [("grpc-status".parse().expect("a name"), "0".parse().expect("a value"))].into_iter().collect();
        let one = [request(None), frame(Kind::Data, false, b"ab"), frame(Kind::Data, true, b"c")].concat();
        let two = [
            request(Some(1)),
            frame(Kind::Data, false, b"d"),
            head::encode_trailers(&trailers, LAST).to_vec(),
        ];
        let all = [one, two.concat(), request(None), frame(Kind::Data, true, b"")].concat();
        for piece in [1, 2, 3, 7, 64, all.len()] {
            let (first, reader) = read(arrived(&all, piece)).await;
            assert_eq!(first.expect("whole"), (Bytes::from_static(b"abc"), None), "pieces of {piece}");
            let (second, reader) = read(reader.expect("it may carry another")).await;
            assert_eq!(second.expect("whole"), (Bytes::from_static(b"d"), Some(trailers.clone())));
            let (third, reader) = read(reader.expect("and another")).await;
            assert_eq!(third.expect("whole"), (Bytes::new(), None));
            let mut reader = reader.expect("it is whole");
            let end = std::future::poll_fn(|context| reader.poll_head(context)).await;
            assert!(end.expect("a clean end").is_none());
        }
    }

    #[tokio::test]
    async fn what_is_cut_short_or_says_another_length_is_no_message() {
        let whole = |body: &[u8]| frame(Kind::Data, true, body);
        let short = &whole(b"abc")[..7];
        for (what, bytes) in [
            ("cut in its data", [request(None), short.to_vec()].concat()),
            ("cut before its end", [request(None), frame(Kind::Data, false, b"abc")].concat()),
            ("cut in a preamble", [request(None), vec![2, 0]].concat()),
            ("longer than it says", [request(Some(2)), whole(b"abc")].concat()),
            ("shorter than it says", [request(Some(4)), whole(b"abc")].concat()),
            ("a second head", [request(None), request(None)].concat()),
            ("no head", whole(b"abc")),
            ("no frame", vec![9; 9]),
            ("nothing, and more", [request(None), frame(Kind::Data, false, b""), whole(b"abc")].concat()),
        ] {
            for piece in [1, 3, bytes.len()] {
                let (read, reader) = read(arrived(&bytes, piece)).await;
                assert!(read.is_err() && reader.is_none(), "{what}: {read:?}");
            }
        }
    }

    /// As a program that was there before wrote it (`tests/fixtures`), frame by frame, in what follows the preambles.
    fn fixture(name: &str) -> Vec<(Preamble, Bytes)> {
        let path =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/messages-1").join(name);
        let mut left = Bytes::from(std::fs::read(path).expect("a fixture"));
        let mut frames = Vec::new();
        while !left.is_empty() {
            let preamble = *left.split_to(PREAMBLE_BYTES).first_chunk().expect("a preamble");
            let preamble = Preamble::decode(preamble).expect("a frame");
            frames.push((preamble, left.split_to(preamble.bytes as usize)));
        }
        frames
    }

    #[test]
    fn what_was_said_once_means_the_same_and_is_said_the_same() {
        for (name, version) in
            [("request", HttpVersion::Http2), ("request-without-a-body", HttpVersion::Http1)]
        {
            let frames = fixture(name);
            let (preamble, head) = &frames[0];
            let mut request = Request::new(());
            let length =
                head::decode_request(head.clone(), version, preamble.place, &mut request).expect(name);
            assert_eq!(length, None);
            let again = head::encode_request(&request, preamble.place, length);
            assert_eq!(
                (&again[..PREAMBLE_BYTES], &again[PREAMBLE_BYTES..]),
                (&preamble.encode()[..], &head[..])
            );
            if name == "request" {
                assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/shop.Cart/Add"));
                assert_eq!(request.headers().get_all("x-app").iter().count(), 2);
                assert!(request.headers()["authorization"].is_sensitive());
                assert_eq!((&frames[1].1[..], &frames[2].1[..]), (&b"bo"[..], &b"dy"[..]));
                assert_eq!(frames[2].0.place, Place::Last { keeps: false });
            }
        }
        for (name, version, status) in
            [("answer", HttpVersion::Http2, 200), ("answer-without-a-body", HttpVersion::Http1, 404)]
        {
            let frames = fixture(name);
            let (preamble, head) = &frames[0];
            let read = head::decode_answer(head.clone(), version, preamble.place, false);
            let (answer, length) = read.expect(name);
            assert_eq!(answer.status(), status);
            let again = head::encode_answer(&answer, preamble.place, length);
            assert_eq!(
                (&again[..PREAMBLE_BYTES], &again[PREAMBLE_BYTES..]),
                (&preamble.encode()[..], &head[..])
            );
            if let Some((preamble, trailers)) = frames.get(2) {
                assert_eq!((preamble.kind, preamble.place), (Kind::Trailers, LAST));
                assert_eq!(head::decode_trailers(trailers.clone()).expect("trailers")["grpc-status"], "0");
            }
        }
    }

    #[test]
    fn names_that_most_messages_have_come_back() {
        let names = [
            "host",
            "date",
            "etag",
            "vary",
            "accept",
            "cookie",
            "server",
            "user-agent",
            "content-type",
            "accept-ranges",
            "authorization",
            "cache-control",
            "last-modified",
            "accept-encoding",
            "accept-language",
            "content-encoding",
            "x-request-id",
            "traceparent",
            "x-starling-hops",
            "x-starling-load",
            "x-forwarded-for",
            "dote",
            "x",
        ];
        let mut request = Request::get("/").body(()).expect("a request");
        for name in names {
            request.headers_mut().insert(name, name.parse().expect("a value"));
        }
        let frame = head::encode_request(&request, LAST, None).freeze().slice(PREAMBLE_BYTES..);
        let mut again = Request::new(());
        head::decode_request(frame, HttpVersion::Http1, LAST, &mut again).expect("ours");
        assert_eq!(again.headers(), request.headers());
        assert!(names.iter().all(|name| again.headers()[*name] == name));
        for name in ["content-length", "transfer-encoding"] {
            let mut answer = http::Response::new(());
            answer.headers_mut().insert(name, "7".parse().expect("a value"));
            let frame = head::encode_answer(&answer, Place::Inside, None).freeze().slice(PREAMBLE_BYTES..);
            let read = head::decode_answer(frame, HttpVersion::Http1, Place::Inside, false).expect("ours");
            assert_eq!(read.0.headers()[name], "7");
        }
    }

    proptest! {
        #[test]
        fn heads_come_back(
            path in "/[a-z0-9/]{0,40}(\\?[a-z=&]{0,20})?",
            headers in proptest::collection::vec(("[a-z][a-z0-9-]{0,30}", "[ -~]{0,300}", any::<bool>()), 0..20),
            status in 200_u16..600,
        ) {
            let mut request = Request::get(path.as_str()).body(()).expect("a request");
            for (name, value, is_sensitive) in &headers {
                let name: http::HeaderName = name.parse().expect("a name");
                let mut value = http::HeaderValue::from_str(value.trim()).expect("a value");
                value.set_sensitive(*is_sensitive);
                request.headers_mut().append(name, value);
            }
            let mut frame = head::encode_request(&request, LAST, None);
            let mut again = Request::new(());
            let frame = frame.split_off(PREAMBLE_BYTES).freeze();
            head::decode_request(frame, HttpVersion::Http1, LAST, &mut again).expect("ours");
            prop_assert_eq!((again.method(), again.uri()), (request.method(), request.uri()));
            prop_assert_eq!(again.headers(), request.headers());
            let sensitive =
                |headers: &HeaderMap| headers.values().map(|value| value.is_sensitive()).collect::<Vec<_>>();
            prop_assert_eq!(sensitive(again.headers()), sensitive(request.headers()));
            let mut answer = Response::builder().status(status).body(()).expect("an answer");
            *answer.headers_mut() = request.headers().clone();
            let mut frame = head::encode_answer(&answer, Place::Inside, None);
            let frame = frame.split_off(PREAMBLE_BYTES).freeze();
            let read = head::decode_answer(frame, HttpVersion::Http1, Place::Inside, false);
            let (again, _) = read.expect("ours");
            prop_assert_eq!((again.status(), again.headers()), (answer.status(), answer.headers()));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let bytes = Bytes::from(bytes);
            for version in [HttpVersion::Http1, HttpVersion::Http2] {
                let _ = head::decode_request(bytes.clone(), version, LAST, &mut Request::new(()));
                let _ = head::decode_answer(bytes.clone(), version, LAST, false);
            }
            let _ = head::decode_trailers(bytes);
        }
    }

    #[test]
    fn a_few_bytes_reserve_no_room_for_many_headers() {
        let mut head = BytesMut::new();
        head.put_slice(&[3, b'G', b'E', b'T', 0, 0, 1, b'/']);
        head.put_u32(0x8000_4000);
        let read = head::decode_request(head.freeze(), HttpVersion::Http1, LAST, &mut Request::new(()));
        assert!(matches!(read, Err(MessageError::Malformed(_))));
    }

    #[test]
    fn what_a_workload_could_read_otherwise_is_no_request() {
        let read = |headers: &[(&str, &str)], place| {
            let mut request = Request::post("/").body(()).expect("a request");
            for (name, value) in headers {
                let name: http::HeaderName = name.parse().expect("a name");
                request.headers_mut().append(name, value.parse().expect("a value"));
            }
            let mut frame = head::encode_request(&request, place, None);
            let mut again = Request::new(());
            let length = head::decode_request(
                frame.split_off(PREAMBLE_BYTES).freeze(),
                HttpVersion::Http1,
                place,
                &mut again,
            );
            length.map(|length| (length, again.headers().len())).ok()
        };
        assert_eq!(read(&[("content-length", "3")], Place::Inside), Some((Some(3), 1)));
        assert_eq!(read(&[("content-length", "0")], LAST), Some((None, 1)));
        assert_eq!(read(&[("transfer-encoding", "chunked")], Place::Inside), Some((None, 1)));
        assert_eq!(read(&[("transfer-encoding", "chunked")], LAST), Some((None, 0)), "there is no body");
        assert_eq!(read(&[("content-length", "3")], LAST), None, "the next request would be taken for it");
        for length in ["", "+3", "3,3", "18446744073709551616", "0x3"] {
            assert_eq!(read(&[("content-length", length)], Place::Inside), None, "{length:?}");
        }
        assert_eq!(read(&[("content-length", "3"), ("content-length", "3")], Place::Inside), None);
        assert_eq!(read(&[("content-length", "3"), ("transfer-encoding", "chunked")], Place::Inside), None);
    }

    #[tokio::test]
    async fn who_has_all_that_was_announced_has_the_end_as_well() {
        let bytes =
            [request(Some(3)), frame(Kind::Data, false, b"abc"), frame(Kind::Data, true, b"")].concat();
        let mut reader = arrived(&bytes, bytes.len());
        let head = std::future::poll_fn(|context| reader.poll_head(context)).await;
        assert!(matches!(head, Ok(Some((_, Place::Inside)))));
        let returned = Returned::default();
        let mut body = MessageBody::new(reader, Some(3), Owner(returned.clone()));
        body.frame().await.expect("data").expect("whole");
        assert!(body.is_end_stream() && returned.lock().expect("no panic").is_some());
    }
}
