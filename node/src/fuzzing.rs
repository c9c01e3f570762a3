//! Doors for `tests/fuzz` to the pure parts of the proxy.

use std::io;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::{HeaderMap, Request, Version};
use http_body::Body;
use starling_gossip::identity::SpiffeId;

use crate::deadline;
use crate::messages::frame::PREAMBLE_BYTES;
use crate::messages::head;
use crate::messages::read::{MessageBody, MessageReader, Source, TakesBack};
use crate::proxy::{headers, name, normal, own_headers};
use crate::upstream::HttpVersion;

/// The headers of a request after both sidecars had it: the caller's, then the callee's, who knows `peer`.
pub fn headers_at_workload(mut headers: HeaderMap, version: Version, peer: &SpiffeId) -> HeaderMap {
    for _ in 0..2 {
        let upgrade = headers::upgrade(&headers, version);
        headers::remove_hop_by_hop(&mut headers, upgrade.as_ref());
    }
    own_headers::remove_all(&mut headers);
    own_headers::set_peer(&mut headers, &HeaderValue::from_str(peer.as_str()).expect("ASCII"));
    headers
}

/// The headers of an answer after both sidecars had it.
pub fn headers_at_caller(mut headers: HeaderMap) -> HeaderMap {
    own_headers::remove_all(&mut headers);
    headers::remove_hop_by_hop(&mut headers, None);
    headers::remove_hop_by_hop(&mut headers, None);
    headers
}

/// The time that a `grpc-timeout` says is left, if it says one.
pub fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    deadline::parse(value)
}

/// The `grpc-timeout` that says it.
pub fn grpc_timeout_of(left: Duration) -> String {
    deadline::show(left)
}

/// The service that a request by name means, if it means one.
pub fn service_of(request: &Request<()>) -> Option<String> {
    name::service_of(request).ok()
}

/// The one spelling of a path that begins with a slash; `None` if it has none.
pub fn normal_path(path: &str) -> Option<String> {
    normal::normal(path).ok().map(|other| other.unwrap_or_else(|| path.to_owned()))
}

/// A stream of a peer's messages, in pieces of some bytes each.
struct Pieces<'a> {
    left: &'a [u8],
    piece: usize,
}

impl Source for Pieces<'_> {
    fn poll_chunks(&mut self, _: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<io::Result<usize>> {
        let mut filled = 0;
        while filled < chunks.len() && !self.left.is_empty() {
            let (piece, left) = self.left.split_at(self.piece.clamp(1, self.left.len()));
            chunks[filled] = Bytes::copy_from_slice(piece);
            self.left = left;
            filled += 1;
        }
        Poll::Ready(Ok(filled))
    }
}

struct Back<'b, 'a>(&'b std::sync::Mutex<Option<Box<MessageReader<Pieces<'a>>>>>);

impl<'a> TakesBack<Pieces<'a>> for Back<'_, 'a> {
    fn take_back(self, reader: Box<MessageReader<Pieces<'a>>>, _: bool) {
        *self.0.lock().expect("no panic") = Some(reader);
    }
}

/// What a peer's messages on one stream say, to the first that cannot be read: each request's head, told anew, and its body.
/// It must not depend on `piece`.
pub fn messages(bytes: &[u8], version_2: bool, piece: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let version = if version_2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
    let context = &mut Context::from_waker(Waker::noop());
    let mut reader = MessageReader::new(Pieces { left: bytes, piece });
    let mut read = Vec::new();
    loop {
        let Poll::Ready(Ok(Some((head, place)))) = reader.poll_head(context) else { return read };
        // A peer's head is a request's here, and may be an answer's elsewhere.
        if let Ok((answer, _)) = head::decode_answer(head.clone(), version, place, false) {
            let mut again = head::encode_answer(&answer, place, None);
            let again = again.split_off(PREAMBLE_BYTES).freeze();
            head::decode_answer(again, version, place, false).expect("what was read can be told");
        }
        let mut request = Request::new(());
        let Ok(length) = head::decode_request(head, version, place, &mut request) else { return read };
        let mut told = head::encode_request(&request, place, None);
        let again = told.split_off(PREAMBLE_BYTES).freeze();
        let mut same = Request::new(());
        head::decode_request(again.clone(), version, place, &mut same).expect("what was read can be told");
        assert_eq!(
            (same.method(), same.uri(), same.headers()),
            (request.method(), request.uri(), request.headers())
        );
        let (back, mut data) = (std::sync::Mutex::new(None), Vec::new());
        if place.is_last() {
            read.push((again.to_vec(), data));
            continue;
        }
        let mut is_whole = true;
        {
            let mut body = pin!(MessageBody::new(reader, length, Back(&back)));
            while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(context) {
                match frame {
                    Ok(frame) => data.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                    Err(_) => is_whole = false,
                }
            }
            let has_length = length.is_none_or(|length| length == data.len() as u64);
            assert!(!is_whole || has_length, "as long as it says, or none");
        }
        let returned = back.into_inner().expect("no panic");
        assert_eq!(returned.is_some(), is_whole, "only a whole message leaves a stream to the next");
        read.push((again.to_vec(), data));
        match returned {
            Some(returned) => reader = returned,
            None => return read,
        }
    }
}
