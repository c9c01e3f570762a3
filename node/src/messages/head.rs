//! PURE: the heads of requests and answers, and trailers, as sidecars tell them one another.
//!
//! A head is a row of fields, each a length and its bytes; lengths are QUIC's integers (RFC 9000, section 16) of four
//! bytes at most. Of a request: method, scheme, authority (both empty in HTTP/1.1 as a rule), path, headers. Of an
//! answer: status (two bytes), the reason, headers. Headers: how many there are, then name and value of each; the lowest bit of a value's length says
//! that it stays out of the tables of HTTP/2 (RFC 7541, section 7.1.3). Which version of HTTP it is, the stream says.
//!
//! What is read is as much as hyper would let pass: no name, value, method or target that HTTP could not say. It is read
//! without copying, so that a value holds the head that it came in; its map may be one that another head has left, emptied.

use std::cell::RefCell;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{self, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::uri::{self, Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, Response, StatusCode};
use hyper::ext::ReasonPhrase;

use crate::messages::MessageError;
use crate::messages::frame::{Kind, PREAMBLE_BYTES, Place, Preamble};
use crate::messages::write::COPIED_BYTES_MAX;
use crate::proxy::heads::PASSED_HEAD_BYTES_MAX;
use crate::upstream::HttpVersion;

/// What HTTP/2 counts for a header beside its bytes (RFC 9113, section 6.5.2): an entry of a map takes as much.
const HEADER_OVERHEAD_BYTES: usize = 32;

/// Of all headers of a head, counted so: a head of HTTP/1.1 may have a hundred more than its bytes say.
const HEADERS_BYTES_MAX: usize = PASSED_HEAD_BYTES_MAX + 100 * HEADER_OVERHEAD_BYTES;

/// What a header's two lengths take at most.
const LENGTHS_BYTES: usize = 2 * 4;

/// What a head has beside its target and its headers, and the first data that go with it.
const ROOM_BYTES: usize = 128;

/// Names that the standards of HTTP do not have, and most messages between sidecars do: they need no room of their own.
static OFTEN: [HeaderName; 5] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("x-starling-hops"),
    HeaderName::from_static("x-starling-load"),
    HeaderName::from_static("x-forwarded-for"),
];

/// How many maps a thread keeps for the heads that it reads next, and how many headers one of them has room for at most.
const ROOMS_MAX: usize = 64;
const ROOM_HEADERS_MAX: usize = 24;

thread_local! {
    /// Empty maps: who has told a head reads the next one soon.
    static ROOMS: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

type Read<T> = Result<T, MessageError>;

/// The frame of a request's head. A body whose length is known says it (`length`).
pub(crate) fn encode_request<B>(request: &Request<B>, place: Place, length: Option<u64>) -> BytesMut {
    let mut frame = begin(request.uri().path().len(), request.headers(), length.unwrap_or(0));
    put(&mut frame, request.method().as_str().as_bytes());
    put_uri(&mut frame, request.uri());
    put_headers(&mut frame, request.headers(), length.filter(|_| !place.is_last()));
    end(frame, Kind::Head, place)
}

/// The frame of an answer's head. A body whose length is known says it (`length`).
pub(crate) fn encode_answer<B>(answer: &Response<B>, place: Place, length: Option<u64>) -> BytesMut {
    let mut frame = begin(0, answer.headers(), length.unwrap_or(0));
    frame.put_u16(answer.status().as_u16());
    put(&mut frame, answer.extensions().get::<ReasonPhrase>().map_or(b"", ReasonPhrase::as_bytes));
    put_headers(&mut frame, answer.headers(), length);
    end(frame, Kind::Head, place)
}

/// A head has been told, and its map is no longer wanted: it serves for one that is read.
pub(crate) fn give_room(mut headers: HeaderMap) {
    // What has room for one name's many values is not in its capacity.
    if headers.capacity().max(headers.len()) > ROOM_HEADERS_MAX {
        return;
    }
    headers.clear();
    ROOMS.with_borrow_mut(|rooms| {
        if rooms.len() < ROOMS_MAX {
            rooms.push(headers);
        }
    });
}

/// Says a length once that is said several times, as a workload may (RFC 9112, section 6.3); what says two stays, and is no
/// answer to whoever reads it.
pub(crate) fn join_lengths(headers: &mut HeaderMap) {
    let said = |value: &HeaderValue| {
        value.to_str().unwrap_or_default().split(',').map(|one| one.trim().to_owned()).collect::<Vec<_>>()
    };
    let Some(first) = headers.get(CONTENT_LENGTH) else { return };
    if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_none() && !first.as_bytes().contains(&b',') {
        return;
    }
    let all: Vec<_> = headers.get_all(CONTENT_LENGTH).iter().flat_map(said).collect();
    if all.iter().all(|one| *one == all[0])
        && let Ok(one) = HeaderValue::from_str(&all[0])
    {
        headers.insert(CONTENT_LENGTH, one);
    }
}

/// The frame of trailers.
pub(crate) fn encode_trailers(trailers: &HeaderMap, place: Place) -> BytesMut {
    let mut frame = begin(0, trailers, 0);
    put_headers(&mut frame, trailers, None);
    end(frame, Kind::Trailers, place)
}

/// Reads a request's head into `request`; gives the length that it says its body has. It is the only word on that: what
/// could be read in two ways is no message, whatever `Host` or `Content-Length` a workload would believe.
pub(crate) fn decode_request<B>(
    head: Bytes,
    version: HttpVersion,
    place: Place,
    request: &mut Request<B>,
) -> Read<Option<u64>> {
    let mut fields = Fields::of(&head);
    let method = Method::from_bytes(fields.take()?).map_err(|_| MessageError::Malformed("no method"))?;
    if method == Method::CONNECT {
        return Err(MessageError::Malformed("a tunnel is no message"));
    }
    *request.method_mut() = method;
    *request.uri_mut() = fields.uri()?;
    *request.version_mut() = version.spoken();
    *request.headers_mut() = fields.headers()?;
    let length = length_of(request.headers(), version)?;
    match length {
        Some(1..) if place.is_last() => Err(MessageError::Malformed("a length without a body")),
        _ if place.is_last() => {
            request.headers_mut().remove(TRANSFER_ENCODING);
            Ok(None)
        }
        length => Ok(length),
    }
}

/// Reads an answer's head, to a request by HEAD perhaps; gives the length that it says its body has.
pub(crate) fn decode_answer(
    head: Bytes,
    version: HttpVersion,
    place: Place,
    is_head: bool,
) -> Read<(Response<()>, Option<u64>)> {
    let mut fields = Fields::of(&head);
    let status = StatusCode::from_u16(u16::from_be_bytes(fields.bytes()?));
    let status = status.map_err(|_| MessageError::Malformed("no status"))?;
    if status.is_informational() {
        return Err(MessageError::Malformed("an answer that is none yet"));
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = version.spoken();
    let reason = fields.take()?;
    if !reason.is_empty() {
        let reason = ReasonPhrase::try_from(fields.shared(reason))
            .map_err(|_| MessageError::Malformed("no reason"))?;
        response.extensions_mut().insert(reason);
    }
    *response.headers_mut() = fields.headers()?;
    // What it says is how long the body would be (RFC 9110, section 8.6).
    if is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok((response, None));
    }
    match length_of(response.headers(), version)? {
        Some(1..) if place.is_last() => Err(MessageError::Malformed("a length without a body")),
        length => Ok((response, length)),
    }
}

/// Reads trailers.
pub(crate) fn decode_trailers(trailers: Bytes) -> Read<HeaderMap> {
    Fields::of(&trailers).headers()
}

/// How long a message says that its body is. What says two things is no message (RFC 9112, section 6.3); and HTTP/2 frames
/// bodies itself (RFC 9113, section 8.2.2).
fn length_of(headers: &HeaderMap, version: HttpVersion) -> Read<Option<u64>> {
    let is_coded = headers.contains_key(TRANSFER_ENCODING);
    if is_coded && version == HttpVersion::Http2 {
        return Err(MessageError::Malformed("Transfer-Encoding in HTTP/2"));
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return Ok(None) };
    if is_coded || lengths.next().is_some() {
        return Err(MessageError::Malformed("two lengths"));
    }
    let digits = length.to_str().ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let length = digits.and_then(|digits| digits.parse().ok());
    length.map(Some).ok_or(MessageError::Malformed("Content-Length is no number"))
}

/// With room for a body that is copied beside its head.
fn begin(target_bytes: usize, headers: &HeaderMap, body_bytes: u64) -> BytesMut {
    let body_bytes = usize::try_from(body_bytes).ok().filter(|bytes| *bytes <= COPIED_BYTES_MAX).unwrap_or(0);
    let bytes =
        |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + LENGTHS_BYTES;
    let headers_bytes: usize = headers.iter().map(bytes).sum();
    let mut frame = BytesMut::with_capacity(headers_bytes + target_bytes + body_bytes + ROOM_BYTES);
    frame.put_bytes(0, PREAMBLE_BYTES);
    frame
}

fn end(mut frame: BytesMut, kind: Kind, place: Place) -> BytesMut {
    let bytes = u32::try_from(frame.len() - PREAMBLE_BYTES).unwrap_or(u32::MAX);
    frame[..PREAMBLE_BYTES].copy_from_slice(&Preamble { kind, place, bytes }.encode());
    frame
}

fn put(frame: &mut BytesMut, field: &[u8]) {
    put_number(frame, field.len());
    frame.put_slice(field);
}

fn put_number(frame: &mut BytesMut, number: usize) {
    // All that is counted here is bounded by what a head may have.
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    match number {
        0..0x40 => frame.put_u8(number as u8),
        0x40..0x4000 => frame.put_u16(number as u16 | 0x4000),
        _ => frame.put_u32(number | 0x8000_0000),
    }
}

fn put_uri(frame: &mut BytesMut, uri: &Uri) {
    put(frame, uri.scheme_str().unwrap_or_default().as_bytes());
    put(frame, uri.authority().map_or("", |authority| authority.as_str()).as_bytes());
    put(frame, uri.path_and_query().map_or("/", |path| path.as_str()).as_bytes());
}

fn put_headers(frame: &mut BytesMut, headers: &HeaderMap, length: Option<u64>) {
    let is_said = headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING);
    let length = length.filter(|_| !is_said);
    put_number(frame, headers.len() + usize::from(length.is_some()));
    for (name, value) in headers {
        put(frame, name.as_str().as_bytes());
        put_number(frame, value.len() << 1 | usize::from(value.is_sensitive()));
        frame.put_slice(value.as_bytes());
    }
    if let Some(length) = length {
        let length = HeaderValue::from(length);
        put(frame, CONTENT_LENGTH.as_str().as_bytes());
        put_number(frame, length.len() << 1);
        frame.put_slice(length.as_bytes());
    }
}

/// A head and what is left of it. A step on moves a slice; only what is kept counts as one more who holds the head.
struct Fields<'h> {
    head: &'h Bytes,
    left: &'h [u8],
}

const SHORT: MessageError = MessageError::Malformed("a head that ends too soon");

impl<'h> Fields<'h> {
    fn of(head: &'h Bytes) -> Self {
        Self { head, left: head }
    }

    fn bytes<const N: usize>(&mut self) -> Read<[u8; N]> {
        let Some((bytes, left)) = self.left.split_first_chunk() else { return Err(SHORT) };
        self.left = left;
        Ok(*bytes)
    }

    fn number(&mut self) -> Read<usize> {
        let [first] = self.bytes()?;
        let number = match first >> 6 {
            0 => u32::from(first),
            1 => {
                let [second] = self.bytes()?;
                u32::from_be_bytes([0, 0, first & 0x3f, second])
            }
            2 => {
                let [b, c, d] = self.bytes()?;
                u32::from_be_bytes([first & 0x3f, b, c, d])
            }
            _ => return Err(MessageError::Malformed("a number that is too large")),
        };
        Ok(number as usize)
    }

    fn take(&mut self) -> Read<&'h [u8]> {
        let bytes = self.number()?;
        self.take_bytes(bytes)
    }

    fn take_bytes(&mut self, bytes: usize) -> Read<&'h [u8]> {
        let Some((taken, left)) = self.left.split_at_checked(bytes) else { return Err(SHORT) };
        self.left = left;
        Ok(taken)
    }

    /// A part of the head, which holds it.
    fn shared(&self, part: &[u8]) -> Bytes {
        self.head.slice_ref(part)
    }

    fn uri(&mut self) -> Read<Uri> {
        const NO_TARGET: MessageError = MessageError::Malformed("no target");
        let [scheme, authority, path] = [self.take()?, self.take()?, self.take()?];
        // It would leave out what is behind a `#`, and take more for a path than HTTP does (RFC 9112, section 3.2).
        if path.contains(&b'#') || !(path.starts_with(b"/") || path == b"*") {
            return Err(NO_TARGET);
        }
        let path = PathAndQuery::from_maybe_shared(self.shared(path)).map_err(|_| NO_TARGET)?;
        if scheme.is_empty() && authority.is_empty() {
            return Ok(Uri::from(path));
        }
        let mut parts = uri::Parts::default();
        parts.scheme = Some(Scheme::try_from(scheme).map_err(|_| NO_TARGET)?);
        parts.authority = Some(Authority::from_maybe_shared(self.shared(authority)).map_err(|_| NO_TARGET)?);
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).map_err(|_| NO_TARGET)
    }

    fn headers(&mut self) -> Read<HeaderMap> {
        let count = self.number()?;
        // So that a few bytes do not reserve what only many could fill.
        if count * HEADER_OVERHEAD_BYTES > HEADERS_BYTES_MAX || count > self.left.len() {
            return Err(MessageError::Malformed("too many headers"));
        }
        let mut headers = ROOMS.with_borrow_mut(Vec::pop).unwrap_or_default();
        headers.reserve(count);
        let mut bytes = 0;
        for _ in 0..count {
            let name = self.take()?;
            let length = self.number()?;
            let value = self.take_bytes(length >> 1)?;
            bytes += name.len() + value.len() + HEADER_OVERHEAD_BYTES;
            if bytes > HEADERS_BYTES_MAX {
                return Err(MessageError::Malformed("too many headers"));
            }
            let mut value = HeaderValue::from_maybe_shared(self.shared(value))
                .map_err(|_| MessageError::Malformed("a header's value"))?;
            value.set_sensitive(length & 1 == 1);
            headers
                .try_append(read_name(name)?, value)
                .map_err(|_| MessageError::Malformed("too many headers"))?;
        }
        match self.left.is_empty() {
            true => Ok(headers),
            false => Err(MessageError::Malformed("more than a head")),
        }
    }
}

fn read_name(name: &[u8]) -> Read<HeaderName> {
    // Those of nearly all messages, each told from the others by its length and a few bytes.
    Ok(match name {
        b"host" => header::HOST,
        b"date" => header::DATE,
        b"etag" => header::ETAG,
        b"vary" => header::VARY,
        b"accept" => header::ACCEPT,
        b"cookie" => header::COOKIE,
        b"server" => header::SERVER,
        b"user-agent" => header::USER_AGENT,
        b"content-type" => header::CONTENT_TYPE,
        b"accept-ranges" => header::ACCEPT_RANGES,
        b"authorization" => header::AUTHORIZATION,
        b"cache-control" => header::CACHE_CONTROL,
        b"last-modified" => header::LAST_MODIFIED,
        b"content-length" => header::CONTENT_LENGTH,
        b"accept-encoding" => header::ACCEPT_ENCODING,
        b"accept-language" => header::ACCEPT_LANGUAGE,
        b"content-encoding" => header::CONTENT_ENCODING,
        b"transfer-encoding" => header::TRANSFER_ENCODING,
        _ => match OFTEN.iter().find(|often| often.as_str().as_bytes() == name) {
            Some(often) => often.clone(),
            None => {
                HeaderName::from_lowercase(name).map_err(|_| MessageError::Malformed("a header's name"))?
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms() -> usize {
        ROOMS.with_borrow(Vec::len)
    }

    fn map(names: impl IntoIterator<Item = String>) -> HeaderMap {
        let mut map = HeaderMap::new();
        for name in names {
            map.append(name.parse::<HeaderName>().expect("a name"), HeaderValue::from_static("secret"));
        }
        map
    }

    #[test]
    fn a_map_that_serves_again_brings_nothing_along() {
        let mut said = map(["authorization".into(), "x-twice".into(), "x-twice".into()]);
        let trailers = map(["x-other".into()]);
        let frame = encode_trailers(&trailers, Place::Last { keeps: true }).freeze().slice(PREAMBLE_BYTES..);
        said.reserve(4);
        give_room(said);
        assert_eq!(rooms(), 1);
        assert_eq!(decode_trailers(frame).expect("ours"), trailers);
        assert_eq!(rooms(), 0, "it was taken");
    }

    #[test]
    fn what_is_kept_is_few_and_small() {
        give_room(map((0..100).map(|index| format!("x-{index}"))));
        give_room(map((0..100).map(|_| "x-again".into())));
        assert_eq!(rooms(), 0, "large, either way");
        (0..2 * ROOMS_MAX).for_each(|_| give_room(map(["x-one".into()])));
        assert_eq!(rooms(), ROOMS_MAX);
    }
}
