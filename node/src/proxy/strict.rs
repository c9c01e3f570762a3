//! PURE: requests whose end or whose addressee two readers could see differently are refused.
//!
//! hyper and h2 have parsed them before, and pass on messages that they frame themselves: of
//! `Content-Length` and `Transfer-Encoding` together hyper keeps the second alone and ends the
//! connection with the answer (RFC 9112, section 6.1); of several different lengths, or one that is
//! no number, it makes a 400. What they let pass, and a workload might read otherwise, ends here.

use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{Request, Version};

use crate::proxy::failure::{Failure, Flag};

/// What a message says of itself, each at most once.
#[derive(Default)]
struct Said<'a> {
    host: Option<&'a HeaderValue>,
    length: Option<&'a HeaderValue>,
    coding: Option<&'a HeaderValue>,
}

/// Refuses `request` if it is ambiguous; what is left of it says everything once.
pub(crate) fn check<B>(request: &mut Request<B>) -> Result<(), Failure> {
    let said = read(request.headers())?;
    if said.length.is_some_and(|length| !is_number(length)) {
        return Err(refused("Content-Length is no number"));
    }
    if said.host.is_some_and(|host| !is_host(host)) {
        return Err(refused("Host is no host"));
    }
    let is_canonical = match said.coding {
        None => true,
        Some(_) if said.length.is_some() => {
            return Err(refused("Content-Length and Transfer-Encoding say two things"));
        }
        // Any other is unknown here (RFC 9112, section 6.1), and a workload that knew it, or knew
        // less of it, would see another end.
        Some(coding) if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            return Err(refused("Transfer-Encoding is not \"chunked\""));
        }
        Some(coding) => coding == "chunked",
    };
    let repeats_authority = match (request.version(), request.uri().authority(), said.host) {
        (Version::HTTP_2, Some(authority), _) if authority.as_str().contains('@') => {
            // RFC 9113, section 8.3.1.
            return Err(refused(":authority names a user"));
        }
        (Version::HTTP_2, Some(authority), Some(host)) if !is_same(authority, host) => {
            // RFC 9113, section 8.3.1: as good as malformed.
            return Err(refused(":authority and Host name two hosts"));
        }
        // In HTTP/1.1 the target's authority replaces Host (RFC 9112, section 3.2.2).
        (Version::HTTP_2, Some(_), Some(_)) => true,
        _ => false,
    };
    if !is_canonical {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if repeats_authority {
        request.headers_mut().remove(HOST);
    }
    Ok(())
}

fn read(headers: &HeaderMap) -> Result<Said<'_>, Failure> {
    let mut said = Said::default();
    for (name, value) in headers {
        let (place, twice) = match *name {
            // RFC 9112, section 3.2.
            HOST => (&mut said.host, "there are several Host"),
            CONTENT_LENGTH => (&mut said.length, "there are several Content-Length"),
            TRANSFER_ENCODING => (&mut said.coding, "there are several Transfer-Encoding"),
            _ => continue,
        };
        if place.replace(value).is_some() {
            return Err(refused(twice));
        }
    }
    Ok(said)
}

fn is_number(length: &HeaderValue) -> bool {
    !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit)
}

/// Whether it could be a host and a port (RFC 3986, section 3.2, without a user): a list of two, or
/// half a target, is none. It may be empty (RFC 9112, section 3.2).
fn is_host(host: &HeaderValue) -> bool {
    let may_be = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=:[]%".contains(byte);
    host.as_bytes().iter().all(may_be)
}

/// Hosts have no case, and HTTP's port may be left out (RFC 9110, section 4.2.3).
fn is_same(authority: &Authority, host: &HeaderValue) -> bool {
    let without_port = |host: &'_ [u8]| host.strip_suffix(b":80").unwrap_or(host).to_vec();
    without_port(authority.as_str().as_bytes()).eq_ignore_ascii_case(&without_port(host.as_bytes()))
}

fn refused(what: &str) -> Failure {
    Failure::new(Flag::Malformed, format!("the request is ambiguous: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(version: Version, uri: &str, headers: &[(&str, &str)]) -> Result<Request<()>, String> {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(()).expect("a request");
        check(&mut request).map(|()| request).map_err(|failure| failure.detail)
    }

    #[test]
    fn what_says_everything_once_passes() {
        for headers in [
            &[][..],
            &[("host", "web.mesh"), ("content-length", "5")],
            &[("host", "[::1]:80"), ("transfer-encoding", "chunked")],
            &[("host", "")],
        ] {
            assert!(checked(Version::HTTP_11, "/", headers).is_ok(), "{headers:?}");
        }
        // The target's authority will replace it.
        assert!(checked(Version::HTTP_11, "http://web.mesh/", &[("host", "other.example")]).is_ok());
        let odd = checked(Version::HTTP_11, "/", &[("transfer-encoding", "Chunked")]).expect("good");
        assert_eq!(odd.headers()["transfer-encoding"], "chunked");
    }

    #[test]
    fn what_says_two_things_is_refused() {
        for headers in [
            &[("host", "web.mesh"), ("host", "web.mesh")][..],
            &[("host", "web.mesh, other.mesh")],
            &[("host", "web.mesh/x")],
            &[("host", "admin@web.mesh")],
            &[("content-length", "5"), ("content-length", "5")],
            &[("content-length", "5, 5")],
            &[("content-length", "+5")],
            &[("content-length", "-5")],
            &[("content-length", "0x5")],
            &[("content-length", "")],
            &[("content-length", "5"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "identity"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "xchunked")],
        ] {
            assert!(checked(Version::HTTP_11, "/", headers).is_err(), "{headers:?}");
        }
    }

    #[test]
    fn in_http2_the_authority_is_said_once() {
        let asked = |authority: &str, host: &str| {
            checked(Version::HTTP_2, &format!("http://{authority}/"), &[("host", host)])
        };
        let request = asked("web.mesh", "WEB.mesh:80").expect("the same");
        assert!(!request.headers().contains_key("host"));
        assert!(asked("web.mesh", "admin.mesh").is_err());
        assert!(asked("user@web.mesh", "web.mesh").is_err());
        assert!(checked(Version::HTTP_2, "/", &[("host", "web.mesh")]).is_ok(), "without an authority");
    }
}
