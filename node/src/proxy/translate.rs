//! PURE: a message told in the other version of HTTP, where caller and workload do not speak the same.
//!
//! What a version has and the other has not: pseudo-header fields and `Host` (RFC 9113, section
//! 8.3.1), the framing of bodies, several `Cookie` lines (section 8.2.3), and headers of a connection
//! (section 8.2.2). Bodies, trailers and resets need no words: hyper carries them either way.

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Request, Response, StatusCode, Version};
use http_body::Body;

use crate::proxy::name;
use crate::upstream::HttpVersion;

/// A request that cannot be told in the other version, for all that it passed as one of its own: its
/// `Host` is no authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Untold;

/// Tells `request`, which is for `service`, in `version`.
pub(crate) fn request<B: Body>(
    request: &mut Request<B>,
    version: HttpVersion,
    service: &str,
) -> Result<(), Untold> {
    match version {
        HttpVersion::Http1 => to_http1(request),
        HttpVersion::Http2 => to_http2(request, service),
    }
}

/// Tells an answer in `version`.
pub(crate) fn answer<B>(answer: &mut Response<B>, version: HttpVersion) {
    *answer.version_mut() = match version {
        HttpVersion::Http1 => Version::HTTP_11,
        HttpVersion::Http2 => Version::HTTP_2,
    };
    if version == HttpVersion::Http2 {
        answer.headers_mut().remove(TRANSFER_ENCODING);
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            // Nobody asked, and HTTP/2 cannot say it (RFC 9113, section 8.6).
            *answer.status_mut() = StatusCode::BAD_GATEWAY;
        }
    }
}

fn to_http1<B: Body>(request: &mut Request<B>) -> Result<(), Untold> {
    let host = request.uri().authority().map(|authority| HeaderValue::from_str(authority.as_str()));
    let host = host.transpose().map_err(|_| Untold)?;
    *request.uri_mut() = Uri::from(path_of(request.uri()));
    *request.version_mut() = Version::HTTP_11;
    let is_empty = request.body().is_end_stream();
    let headers = request.headers_mut();
    match host {
        Some(host) => drop(headers.insert(HOST, host)),
        // RFC 9112, section 3.2.
        None => drop(headers.entry(HOST).or_insert(HeaderValue::from_static(""))),
    }
    join_cookies(headers)?;
    if !is_empty && !headers.contains_key(CONTENT_LENGTH) {
        // Said outright, because hyper takes a GET for one without a body.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    Ok(())
}

fn to_http2<B>(request: &mut Request<B>, service: &str) -> Result<(), Untold> {
    let path = path_of(request.uri());
    let headers = request.headers_mut();
    let host = headers.remove(HOST).filter(|host| !host.is_empty());
    let authority = match host {
        Some(host) => Authority::try_from(host.as_bytes()),
        None => Authority::try_from(name::host_of(service)),
    };
    for name in [CONNECTION, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    let builder = Uri::builder().scheme(Scheme::HTTP).authority(authority.map_err(|_| Untold)?);
    *request.uri_mut() = builder.path_and_query(path).build().map_err(|_| Untold)?;
    *request.version_mut() = Version::HTTP_2;
    Ok(())
}

/// HTTP/2 may part a `Cookie` at its semicolons; HTTP/1.1 has one line of it.
pub(crate) fn join_cookies(headers: &mut HeaderMap) -> Result<(), Untold> {
    let mut cookies = headers.get_all(COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return Ok(());
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let joined = HeaderValue::from_bytes(&crumbs.join(b"; ".as_slice())).map_err(|_| Untold)?;
    headers.insert(COOKIE, joined);
    Ok(())
}

fn path_of(uri: &Uri) -> PathAndQuery {
    uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{Empty, Full};

    use super::*;

    type Told = Result<(String, Version, Vec<(String, String)>), Untold>;

    fn told<B: Body>(uri: &str, headers: &[(&str, &str)], body: B, version: HttpVersion) -> Told {
        let mut asked = Request::builder().uri(uri);
        for (name, value) in headers {
            asked = asked.header(*name, *value);
        }
        let mut asked = asked.body(body).expect("a request");
        request(&mut asked, version, "web")?;
        let text = |value: &HeaderValue| value.to_str().expect("text").to_owned();
        let headers = asked.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        Ok((asked.uri().to_string(), asked.version(), headers))
    }

    fn pairs(headers: &[(&str, &str)]) -> Vec<(String, String)> {
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_authority_becomes_the_host_and_crumbs_one_cookie() {
        let crumbs = [("cookie", "a=b"), ("x", "y"), ("cookie", "c=d"), ("cookie", "e=f")];
        let asked = told("http://web.mesh:80/p?q", &crumbs, Empty::<Bytes>::new(), HttpVersion::Http1);
        let (uri, version, mut headers) = asked.expect("it can be told");
        headers.sort();
        assert_eq!((uri.as_str(), version), ("/p?q", Version::HTTP_11));
        assert_eq!(headers, pairs(&[("cookie", "a=b; c=d; e=f"), ("host", "web.mesh:80"), ("x", "y")]));
        let asked = told("/", &[("host", "kept")], Empty::<Bytes>::new(), HttpVersion::Http1);
        assert_eq!(asked.expect("told").2, pairs(&[("host", "kept")]));
    }

    #[test]
    fn a_body_of_no_known_length_is_chunked_and_another_is_not() {
        let body = || Full::new(Bytes::from_static(b"body"));
        let asked = told("http://web/", &[], body(), HttpVersion::Http1).expect("told").2;
        assert_eq!(asked, pairs(&[("host", "web"), ("transfer-encoding", "chunked")]));
        let sized = told("http://web/", &[("content-length", "5")], body(), HttpVersion::Http1);
        assert_eq!(sized.expect("told").2, pairs(&[("content-length", "5"), ("host", "web")]));
    }

    #[test]
    fn the_host_becomes_the_authority_and_the_connection_is_nobodys() {
        let headers = [("host", "Web.mesh"), ("transfer-encoding", "chunked"), ("te", "trailers")];
        let asked = told("/p?q", &headers, Empty::<Bytes>::new(), HttpVersion::Http2);
        let expected = ("http://Web.mesh/p?q".to_owned(), Version::HTTP_2, pairs(&[("te", "trailers")]));
        assert_eq!(asked, Ok(expected));
        let asked = told("/", &[("host", "")], Empty::<Bytes>::new(), HttpVersion::Http2).expect("told");
        assert_eq!(asked.0, "http://web.mesh/");
        assert!(told("/", &[("host", "a b")], Empty::<Bytes>::new(), HttpVersion::Http2).is_err());
    }

    #[test]
    fn an_answer_of_http1_says_nothing_of_its_connection_in_http2() {
        let told = |status: u16| {
            let asked = Response::builder().status(status).header("transfer-encoding", "chunked");
            let mut told = asked.body(()).expect("an answer");
            answer(&mut told, HttpVersion::Http2);
            (told.status().as_u16(), told.version(), told.headers().len())
        };
        assert_eq!(told(200), (200, Version::HTTP_2, 0));
        assert_eq!(told(101).0, 502);
    }
}
