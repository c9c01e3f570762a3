//! PURE: the head of a request that may be sent twice, until it is known that it need not be.
//!
//! Nearly all are made in vain, so it is a list: to copy and drop a map of headers costs three times as much.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};

use crate::proxy::body::RequestBody;
use crate::proxy::forward::{self, Underway};

/// What it takes to send a request without a body once more.
pub(crate) struct Spare {
    method: Method,
    uri: Uri,
    version: Version,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Spare {
    /// Of a request that may be sent twice.
    pub(crate) fn of(request: &Request<RequestBody>) -> Option<Self> {
        forward::may_be_sent_twice(request).then(|| {
            let header = |(name, value): (&HeaderName, &HeaderValue)| (name.clone(), value.clone());
            Self {
                method: request.method().clone(),
                uri: request.uri().clone(),
                version: request.version(),
                headers: request.headers().iter().map(header).collect(),
            }
        })
    }

    /// The request, once more.
    pub(crate) fn request(&self) -> Underway {
        let mut request = Box::new(Request::new(RequestBody::Empty));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        let mut headers = HeaderMap::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        *request.headers_mut() = headers;
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_back_as_it_was() {
        let request = Request::builder()
            .uri("/path?query")
            .header("accept", "text/html")
            .header("x-twice", "1")
            .header("x-twice", "2")
            .body(RequestBody::Empty)
            .expect("a request");
        let again = Spare::of(&request).expect("it may be sent twice").request();
        assert_eq!((again.method(), again.uri()), (request.method(), request.uri()));
        assert_eq!(again.headers(), request.headers());
    }

    #[test]
    fn what_may_not_be_sent_twice_has_none() {
        let request = Request::post("/").body(RequestBody::Empty).expect("a request");
        assert!(Spare::of(&request).is_none());
    }
}
