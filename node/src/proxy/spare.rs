//! PURE: the head of a request that may be sent twice, until it is known that it need not be.
//!
//! Nearly all are kept in vain, so it is the head as sidecars tell it one another ([`crate::messages::head`]): that is made
//! or has come anyway, and to keep it is to count one more who holds it.

use bytes::Bytes;
use http::Request;

use crate::messages::frame::{PREAMBLE_BYTES, Place};
use crate::messages::head;
use crate::proxy::body::RequestBody;
use crate::proxy::forward::{self, Underway};
use crate::upstream::HttpVersion;

/// What it takes to send a request without a body once more.
#[derive(Clone, Debug)]
pub(crate) struct Spare {
    head: Bytes,
    version: HttpVersion,
}

/// Without a body, it ends with its head.
const PLACE: Place = Place::Last { keeps: false };

impl Spare {
    /// Of a request that may be sent twice.
    pub(crate) fn of(request: &Request<RequestBody>) -> Option<Self> {
        Self::with_frame(request).map(|(spare, _)| spare)
    }

    /// The same, and the frame that tells its head.
    pub(crate) fn with_frame(request: &Request<RequestBody>) -> Option<(Self, Bytes)> {
        forward::may_be_sent_twice(request).then(|| {
            let frame = head::encode_request(request, PLACE, None).freeze();
            let head = frame.slice(PREAMBLE_BYTES..);
            (Self { head, version: HttpVersion::of(request.version()) }, frame)
        })
    }

    /// Of one whose `head` came as a message.
    pub(crate) fn of_head(head: Bytes, version: HttpVersion) -> Self {
        Self { head, version }
    }

    /// The request, once more; `None` if its head says what no message may.
    pub(crate) fn request(self) -> Option<Underway> {
        let mut request = Box::new(Request::new(RequestBody::Empty));
        head::decode_request(self.head, self.version, PLACE, &mut request).ok()?;
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use http::header::HOST;
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::*;

    fn again(request: &Request<RequestBody>) -> Underway {
        Spare::of(request).expect("it may be sent twice").request().expect("it can be read")
    }

    #[test]
    fn a_request_comes_back_as_it_was() {
        let mut traceparent = HeaderValue::from_static("00-1");
        traceparent.set_sensitive(true);
        for (uri, version) in
            [("/path?query", HttpVersion::Http1), ("http://web/path?query", HttpVersion::Http2)]
        {
            let request = Request::builder()
                .uri(uri)
                .version(version.spoken())
                .header("accept", "text/html")
                .header("x-twice", "1")
                .header("x-twice", "2")
                .header("x-empty", "")
                .header("x-any", HeaderValue::from_bytes(b"a:\tb; \xff").expect("a value"))
                .header("traceparent", traceparent.clone())
                .body(RequestBody::Empty)
                .expect("a request");
            let again = again(&request);
            assert_eq!((again.method(), again.uri()), (request.method(), request.uri()));
            assert_eq!((again.version(), again.headers()), (request.version(), request.headers()));
            let sensitive =
                |(name, value): (&HeaderName, &HeaderValue)| (name == "traceparent") == value.is_sensitive();
            assert!(again.headers().iter().all(sensitive));
        }
    }

    #[test]
    fn no_name_and_no_value_is_lost() {
        let names = (0..=u8::MAX).filter_map(|byte| HeaderName::from_bytes(&[b'x', byte]).ok());
        let lowercase = (0..=u8::MAX).filter_map(|byte| HeaderName::from_lowercase(&[b'x', byte]).ok());
        let values = (0..=u8::MAX).filter_map(|byte| HeaderValue::from_bytes(&[byte, b' ', byte]).ok());
        let all: Vec<_> = values.collect();
        let headers: HeaderMap = names
            .chain(lowercase)
            .zip(all.iter().cycle().cloned())
            .chain(all.iter().map(|value| (HOST, value.clone())))
            .collect();
        let quoted = HeaderName::from_lowercase(b"x\"").expect("a name of HTTP/2");
        assert!(headers.contains_key(&quoted) && headers.get_all(HOST).iter().count() > 200);
        let mut request = Request::new(RequestBody::Empty);
        *request.headers_mut() = headers;
        assert_eq!(again(&request).headers(), request.headers());
    }

    #[test]
    fn what_may_not_be_sent_twice_has_none() {
        let request = Request::post("/").body(RequestBody::Empty).expect("a request");
        assert!(Spare::of(&request).is_none());
    }
}
