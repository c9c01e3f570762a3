//! PURE: the head of a request that may be sent twice, until it is known that it need not be.
//!
//! Nearly all are made in vain, so its headers are kept as text: to copy and drop a list of names and values costs
//! twice as much, and a map of them six times.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};

use crate::proxy::body::RequestBody;
use crate::proxy::forward::{self, Underway};

/// What it takes to send a request without a body once more.
pub(crate) struct Spare {
    method: Method,
    uri: Uri,
    version: Version,
    headers: Lines,
}

/// Headers, one a line: name, separator, value, [`END`]. No name has one of the separators, no value the end (RFC 9110,
/// sections 5.1 and 5.5).
struct Lines(Vec<u8>);

const SEPARATOR: u8 = b':';

/// Of a value that is kept out of the tables of HTTP/2 connections.
const SENSITIVE: u8 = b'\t';

const END: u8 = b'\n';

impl Spare {
    /// Of a request that may be sent twice.
    pub(crate) fn of(request: &Request<RequestBody>) -> Option<Self> {
        forward::may_be_sent_twice(request).then(|| Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: Lines::of(request.headers()),
        })
    }

    /// The request, once more.
    pub(crate) fn request(&self) -> Underway {
        let mut request = Box::new(Request::new(RequestBody::Empty));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers.read();
        request
    }
}

impl Lines {
    fn of(headers: &HeaderMap) -> Self {
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 2).sum();
        let mut lines = Vec::with_capacity(bytes);
        for (name, value) in headers {
            lines.extend_from_slice(name.as_str().as_bytes());
            lines.push(if value.is_sensitive() { SENSITIVE } else { SEPARATOR });
            lines.extend_from_slice(value.as_bytes());
            lines.push(END);
        }
        Self(lines)
    }

    fn read(&self) -> HeaderMap {
        self.0.split_inclusive(|byte| *byte == END).filter_map(read_line).collect()
    }
}

fn read_line(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let at = line.iter().position(|byte| [SEPARATOR, SENSITIVE].contains(byte))?;
    let (name, value) = line.strip_suffix(&[END])?.split_at(at);
    let (separator, value) = value.split_first()?;
    let mut value = HeaderValue::from_bytes(value).ok()?;
    value.set_sensitive(*separator == SENSITIVE);
    // As HTTP/2 reads them: it takes some that HTTP/1.1 does not, and none but of small letters.
    Some((HeaderName::from_lowercase(name).ok()?, value))
}

#[cfg(test)]
mod tests {
    use http::header::HOST;

    use super::*;

    #[test]
    fn a_request_comes_back_as_it_was() {
        let mut traceparent = HeaderValue::from_static("00-1");
        traceparent.set_sensitive(true);
        let request = Request::builder()
            .uri("/path?query")
            .header("accept", "text/html")
            .header("x-twice", "1")
            .header("x-twice", "2")
            .header("x-empty", "")
            .header("x-any", HeaderValue::from_bytes(b"a:\tb; \xff").expect("a value"))
            .header("traceparent", traceparent)
            .body(RequestBody::Empty)
            .expect("a request");
        let again = Spare::of(&request).expect("it may be sent twice").request();
        assert_eq!((again.method(), again.uri()), (request.method(), request.uri()));
        assert_eq!(again.headers(), request.headers());
        let sensitive =
            |(name, value): (&HeaderName, &HeaderValue)| (name == "traceparent") == value.is_sensitive();
        assert!(again.headers().iter().all(sensitive));
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
        assert_eq!(Lines::of(&headers).read(), headers);
    }

    #[test]
    fn what_may_not_be_sent_twice_has_none() {
        let request = Request::post("/").body(RequestBody::Empty).expect("a request");
        assert!(Spare::of(&request).is_none());
    }
}
