//! PURE: what of a request decides where it goes, where a hash does.

use std::net::IpAddr;

use http::header::{COOKIE, HeaderMap};
use http::uri::Uri;

use crate::balance::{HashOn, stable_hash};

/// The key of a request that came from `source`; `None` if it has nothing of the kind, and may go anywhere.
pub(crate) fn key_of(on: &HashOn, uri: &Uri, headers: &HeaderMap, source: Option<IpAddr>) -> Option<u64> {
    match on {
        HashOn::Header(name) => headers.get(name).map(|value| stable_hash(&[value.as_bytes()])),
        HashOn::Cookie(name) => cookie(headers, name.as_bytes()).map(|value| stable_hash(&[value])),
        HashOn::Source => key_of_source(source),
        HashOn::Path => Some(stable_hash(&[uri.path().as_bytes()])),
    }
}

/// The key of a connection, of which nothing else is known.
pub(crate) fn key_of_source(source: Option<IpAddr>) -> Option<u64> {
    let source = source?.to_canonical();
    Some(match source {
        IpAddr::V4(ip) => stable_hash(&[&ip.octets()]),
        IpAddr::V6(ip) => stable_hash(&[&ip.octets()]),
    })
}

/// The first cookie of this name: RFC 6265, section 4.2.1; HTTP/2 has them in several headers.
fn cookie<'h>(headers: &'h HeaderMap, name: &[u8]) -> Option<&'h [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    let named = |pair: &'h [u8]| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        (pair[..equals].trim_ascii() == name).then(|| pair[equals + 1..].trim_ascii())
    };
    pairs.filter_map(named).next()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn key(on: &HashOn, uri: &'static str, headers: &[(&'static str, &'static str)]) -> Option<u64> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        key_of(on, &Uri::from_static(uri), &map, Some(IpAddr::from([127, 0, 0, 1])))
    }

    #[test]
    fn the_same_has_the_same_key_and_nothing_has_none() {
        let header = HashOn::Header("x-user".parse().expect("a name"));
        assert_eq!(key(&header, "/", &[("x-user", "ann")]), key(&header, "/other", &[("x-user", "ann")]));
        assert_ne!(key(&header, "/", &[("x-user", "ann")]), key(&header, "/", &[("x-user", "bob")]));
        assert_eq!(key(&header, "/", &[]), None);
        assert_eq!(key(&HashOn::Path, "/a?x", &[]), key(&HashOn::Path, "/a?y", &[]));
        assert_ne!(key(&HashOn::Path, "/a", &[]), key(&HashOn::Path, "/b", &[]));
        assert!(key(&HashOn::Source, "/", &[]).is_some());
        assert_eq!(
            key_of_source(Some("::ffff:127.0.0.1".parse().expect("an address"))),
            key(&HashOn::Source, "/", &[])
        );
        assert_eq!(key_of_source(None), None);
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let cookie = HashOn::Cookie("session".to_owned());
        let alone = key(&cookie, "/", &[("cookie", "session=abc")]);
        assert!(alone.is_some());
        assert_eq!(key(&cookie, "/", &[("cookie", "a=b; session=abc; session=x")]), alone);
        assert_eq!(key(&cookie, "/", &[("cookie", "a=b"), ("cookie", "session=abc")]), alone);
        assert_eq!(key(&cookie, "/", &[("cookie", "mysession=abc; session; =")]), None);
    }
}
