//! PURE: the one spelling of a request's path, found before anything is decided by it, so that what
//! is matched is what is sent.
//!
//! - Percent-encoded characters that need no encoding are decoded, and the digits of the others are
//!   capitals (RFC 3986, sections 6.2.2.1 and 6.2.2.2).
//! - `.` and `..` are resolved (RFC 3986, section 5.2.4), also where they were written `%2e`.
//! - Empty segments go: `//` is `/`. In this order, as Envoy's `normalize_path` and `merge_slashes`
//!   have it: `/a//../b` is `/a/b`.
//! - An encoded slash or backslash is data, as RFC 3986, section 2.2, has it: part of a project's or a
//!   package's name. It is never decoded, so it parts no segments here, and goes on as it is.
//! - What servers read in different ways is refused and not guessed at: a path that would have dot
//!   segments for a server that does decode `%2F` or `%5C` or cuts off `;` and what follows, a bare
//!   backslash, control characters, a percent sign that encodes nothing.
//!
//! Everything else stays as it is: the query, matrix parameters, case, a last slash, characters
//! that should have been encoded.

use bytes::Bytes;
use http::uri::{PathAndQuery, Uri};
use http::{Method, Request};

use crate::proxy::failure::{Failure, Flag};

/// Gives `request` the one spelling of its target's path. Says whether that is another than it had.
pub(crate) fn normalise<B>(request: &mut Request<B>) -> Result<bool, Failure> {
    let uri = request.uri();
    let Some(target) = uri.path_and_query() else { return Ok(false) };
    if target.as_str() == "*" && request.method() == Method::OPTIONS {
        // The server itself, and no path of it (RFC 9112, section 3.2.4).
        return Ok(false);
    }
    if !target.as_str().starts_with(['/', '?']) {
        return Err(refused("does not begin with a slash"));
    }
    let path = match normal(target.path())? {
        Some(path) => path,
        None if target.as_str().starts_with('/') => return Ok(false),
        // `http://web.mesh?a=1` has an empty path, which is `/` (RFC 9110, section 4.2.3).
        None => "/".to_owned(),
    };
    let whole = match target.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let cannot = |_| refused("cannot be passed on");
    let mut parts = uri.clone().into_parts();
    let target = PathAndQuery::from_maybe_shared(Bytes::from(whole));
    parts.path_and_query = Some(target.map_err(|_| refused("cannot be passed on"))?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(cannot)?;
    Ok(true)
}

/// What one look at each byte of a path tells.
struct Look {
    /// It is spelt as it should be.
    is_normal: bool,
    /// Some servers part or cut its segments elsewhere than at slashes.
    may_hide_dots: bool,
}

/// The one spelling of `path`, which begins with a slash; `None` if it is that already, which costs
/// one look at each byte.
pub(crate) fn normal(path: &str) -> Result<Option<String>, Failure> {
    let look = look(path.as_bytes())?;
    if look.is_normal {
        return if look.may_hide_dots { without_hidden_dots(path).map(|()| None) } else { Ok(None) };
    }
    let decoded = decode(path);
    if look.may_hide_dots {
        without_hidden_dots(&decoded)?;
    }
    let mut segments: Vec<&str> = Vec::new();
    let mut given = decoded.split('/').skip(1).peekable();
    while let Some(segment) = given.next() {
        match segment {
            "." => {}
            ".." => {
                segments.pop();
            }
            _ => segments.push(segment),
        }
        if given.peek().is_none() && matches!(segment, "." | "..") {
            // `/a/.` and `/a/b/..` are the directory `/a/`.
            segments.push("");
        }
    }
    let last = segments.pop().unwrap_or_default();
    let mut path = String::with_capacity(decoded.len() + 1);
    for segment in segments.into_iter().filter(|segment| !segment.is_empty()).chain([last]) {
        path.push('/');
        path.push_str(segment);
    }
    Ok(Some(path))
}

/// Looks at it; an error if nobody can say what it means.
fn look(path: &[u8]) -> Result<Look, Failure> {
    let mut look = Look { is_normal: true, may_hide_dots: false };
    let mut index = 0;
    while index < path.len() {
        match path[index] {
            b'/' => look.is_normal &= !begins_odd_segment(&path[index + 1..]),
            b'%' => {
                let byte = escaped(&path[index..]);
                look.may_hide_dots |= matches!(byte, Some(b'/' | b'\\' | b';'));
                look.is_normal &= is_normal_escape(&path[index + 1..], byte)?;
                index += 2;
            }
            b';' => look.may_hide_dots = true,
            b'\\' => return Err(refused("has a backslash")),
            0..=0x1F | 0x7F => return Err(refused("has a control character")),
            _ => {}
        }
        index += 1;
    }
    Ok(look)
}

/// Refuses `path`, whose escapes are those that stay, if a server that decodes `%2F` or `%5C` and
/// resolves dots then would leave it upwards, or one that takes `..;a=b` for `..`, as servlet
/// containers do. (Dot segments between plain slashes are resolved here.)
fn without_hidden_dots(path: &str) -> Result<(), Failure> {
    let is_dots = |part: &str| {
        let end = [part.find(';'), part.find("%3B")].into_iter().flatten().min();
        matches!(&part[..end.unwrap_or(part.len())], "." | "..")
    };
    for segment in path.split('/').filter(|segment| !matches!(*segment, "." | "..")) {
        if segment.split("%2F").flat_map(|part| part.split("%5C")).any(is_dots) {
            return Err(refused("has dot segments beside an encoded slash, a backslash or a semicolon"));
        }
    }
    Ok(())
}

/// Whether a segment begins here that is empty, and not the last, or is `.` or `..`.
fn begins_odd_segment(rest: &[u8]) -> bool {
    matches!(rest, [b'/', ..] | [b'.'] | [b'.', b'/', ..] | [b'.', b'.'] | [b'.', b'.', b'/', ..])
}

/// The same for the two `digits` after a percent sign, and what follows them: they stand for `byte`.
fn is_normal_escape(digits: &[u8], byte: Option<u8>) -> Result<bool, Failure> {
    match byte {
        None => Err(refused("has a percent sign that encodes nothing")),
        Some(0..=0x1F | 0x7F) => Err(refused("has an encoded control character")),
        Some(byte) => {
            let has_capitals = !digits[..2].iter().any(u8::is_ascii_lowercase);
            Ok(has_capitals && !is_unreserved(byte))
        }
    }
}

/// The byte that a percent sign and two digits stand for.
fn escaped(rest: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*rest.get(at)?).to_digit(16);
    u8::try_from(digit(1)? * 16 + digit(2)?).ok()
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Decodes what needs no encoding, and writes the rest in capitals.
fn decode(path: &str) -> String {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(start) = rest.find('%') {
        decoded.push_str(&rest[..start]);
        let escape = &rest[start..start + 3];
        match escaped(escape.as_bytes()) {
            Some(byte) if is_unreserved(byte) => decoded.push(char::from(byte)),
            _ => decoded.push_str(&escape.to_ascii_uppercase()),
        }
        rest = &rest[start + 3..];
    }
    decoded.push_str(rest);
    decoded
}

fn refused(what: &str) -> Failure {
    Failure::new(
        Flag::Malformed,
        format!("the request's path {what}; servers would read it in different ways"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_normal_is_left_alone() {
        for path in [
            "/",
            "/a/b/",
            "/grpc.health.v1.Health/Check",
            "/.well-known/x",
            "/..a/.b/c..",
            "/a;v=1/b;w=2,3",
            "/%20%C3%A4%25",
            "/a%3Fb%23",
            "/~u/a-b_c",
            "/a:b@c!$&'()*+,=|\"{}^`",
            "/\u{e4}",
            "/%252e%252e/",
            "/api/v4/projects/group%2Fproject",
            "/@scope%2Fpackage",
            "/api/queues/%2F/jobs",
            "/share%5Cname",
            "/https%3A%2F%2Fexample.com%2F",
            "/..a%2F.b%5Cc..",
            "/a;..",
        ] {
            assert_eq!(normal(path), Ok(None), "{path}");
        }
    }

    #[test]
    fn there_is_one_spelling_of_each_path() {
        for (given, expected) in [
            ("/a/./b/../c", "/a/c"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/..", "/"),
            ("/../../etc", "/etc"),
            ("//", "/"),
            ("//a///b//", "/a/b/"),
            ("/a//../b", "/a/b"),
            ("/%61%7e%2d", "/a~-"),
            ("/%c3%a4/%3f", "/%C3%A4/%3F"),
            ("/\u{e4}%2e//x", "/\u{e4}./x"),
            ("/./", "/"),
            ("/group%2fproject", "/group%2Fproject"),
            ("/a%5cb", "/a%5Cb"),
            ("/a%2fb/../%2F", "/%2F"),
            ("//a%2f%2fb", "/a%2F%2Fb"),
        ] {
            assert_eq!(normal(given), Ok(Some(expected.to_owned())), "{given}");
            assert_eq!(normal(expected), Ok(None), "{expected} is normal");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for path in [
            "/a/..%2fb",
            "/a/%2e%2e%2Fb",
            "/a%2F..",
            "/a%2F../b",
            "/a%2f.%2Fb",
            "/%2f%2e",
            "/a%5c..%5cb",
            "/x/..%5C",
            "/a%2F..;v=1/b",
            "/a/..;/b",
            "/a/..;v=1/b",
            "/.;/b",
            "/..%3b/b",
            "/a\\b",
            "/%00",
            "/a%0d%0aX:1",
            "/%7F",
            "/a\u{1}",
            "/%",
            "/%a",
            "/%zz",
            "/%%32e",
            "/%+1",
        ] {
            assert_eq!(normal(path).map_err(|failure| failure.flag), Err(Flag::Malformed), "{path}");
        }
    }

    #[test]
    fn the_target_is_replaced_and_its_query_is_not() {
        let normalised = |method: Method, uri: &str| {
            let mut request = Request::builder().method(method).uri(uri).body(()).expect("a request");
            normalise(&mut request).map(|changed| (changed, request.uri().to_string())).ok()
        };
        let same = |uri: &str| Some((false, uri.to_owned()));
        assert_eq!(normalised(Method::GET, "/a?b=//%2f%2e/../"), same("/a?b=//%2f%2e/../"));
        assert_eq!(normalised(Method::GET, "/x/../a?b=%2f//"), Some((true, "/a?b=%2f//".to_owned())));
        let absolute = Some((true, "http://web.mesh/a?b".to_owned()));
        assert_eq!(normalised(Method::GET, "http://web.mesh//a?b"), absolute);
        assert_eq!(
            normalised(Method::GET, "http://web.mesh?b"),
            Some((true, "http://web.mesh/?b".to_owned()))
        );
        assert_eq!(normalised(Method::OPTIONS, "*"), same("*"));
        assert_eq!(normalised(Method::GET, "*"), None);
        assert_eq!(normalised(Method::GET, "/%2f"), Some((true, "/%2F".to_owned())));
        assert_eq!(normalised(Method::GET, "/..%2f"), None);
    }
}
