//! PURE: headers that end at this hop, and headers that begin here.

use http::header::{
    CONNECTION, CONTENT_LENGTH, Entry, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{Method, Version};

use crate::balance::Chance;
use crate::proxy::hexadecimal;

/// Why an answer was made by the mesh: response flags as in Envoy's access log.
pub(crate) static FLAGS: HeaderName = HeaderName::from_static("x-starling-flags");

/// From one sidecar to another: nothing of this request reached the workload.
pub(crate) static UNSENT: HeaderName = HeaderName::from_static("x-starling-unsent");

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Belong to the message and not to a hop, whatever `Connection` says (RFC 9110, section 7.6.1):
/// without them it would have another end or another addressee.
static MESSAGE: [HeaderName; 3] = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING];

/// The protocol a request asks to switch to, if it does (RFC 9110, section 7.8). A switch to HTTP/2
/// is not passed on (RFC 9113, section 3.1, has no such switch any more): its requests would
/// reach the workload unread, with whatever they say of their caller.
pub(crate) fn upgrade(headers: &HeaderMap, version: Version) -> Option<HeaderValue> {
    if version != Version::HTTP_11 || !connection_names(headers, "upgrade") {
        return None;
    }
    let mut values = headers.get_all(UPGRADE).iter();
    let protocol = values.next().filter(|_| values.next().is_none())?;
    let mut names = protocol.to_str().ok()?.split(',');
    let is_http =
        names.any(|name| name.trim().get(..2).is_some_and(|start| start.eq_ignore_ascii_case("h2")));
    (!is_http).then(|| protocol.clone())
}

/// Removes what ends at this hop. An upgrade passes, for the next hop must agree to it too.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) {
    // Each removal looks its name up; most messages have nothing to remove, which one look at all tells.
    if headers.keys().any(ends_here) {
        remove_what_ends_here(headers);
    }
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    }
}

/// Whether it ends at every hop, be it named by `Connection` or not (RFC 9110, section 7.6.1); what the next hop is to
/// hear of it is said anew. Most names differ from all of these in length already.
fn ends_here(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "te" | "upgrade" | "keep-alive" | "proxy-connection" | "proxy-authorization"
    )
}

fn remove_what_ends_here(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        // Most connections say only this.
        .filter(|name| !name.trim().eq_ignore_ascii_case("keep-alive"))
        .filter_map(|name| name.trim().parse().ok())
        // Those that end here all the same are next.
        .filter(|name| !MESSAGE.contains(name) && !ends_here(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
    let mut takes_trailers = false;
    // Each turn removes one of so few names.
    while let Some(name) = headers.keys().find(|name| ends_here(name)).cloned() {
        let value = headers.remove(&name);
        takes_trailers |= name == TE && value.is_some_and(|value| value == "trailers");
    }
    // Whoever takes trailers names TE in Connection (RFC 9110, section 10.1.4), and so do we.
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Starts a trace if the caller has none (W3C Trace Context, section 3.2); one that is there goes
/// on untouched.
pub(crate) fn start_trace(headers: &mut HeaderMap, chance: &Chance) {
    let place = match headers.try_entry(&TRACEPARENT) {
        Ok(Entry::Occupied(mut given)) => return given.iter_mut().for_each(mark_as_new_each_time),
        Ok(Entry::Vacant(place)) => place,
        // There is no room for it.
        Err(_) => return,
    };
    // The lowest bit set keeps both ids from being all zero, which the standard forbids.
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    hexadecimal::write(chance.bits(), &mut text[3..19]);
    hexadecimal::write(chance.bits() | 1, &mut text[19..35]);
    hexadecimal::write(chance.bits() | 1, &mut text[36..52]);
    if let Ok(mut value) = HeaderValue::from_bytes(&text) {
        mark_as_new_each_time(&mut value);
        place.insert(value);
    }
}

/// Keeps a value that no other request has out of the tables of HTTP/2 connections (RFC 7541, section 6.2.3):
/// each would push out one that comes again, and be looked for in vain.
pub(crate) fn mark_as_new_each_time(value: &mut HeaderValue) {
    value.set_sensitive(true);
}

/// Whether sending the request twice does no more than sending it once (RFC 9110, section 9.2.2).
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// Whether a gRPC client waits for the answer, who reads no HTTP status.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Whether it is gRPC as such, which exists in HTTP/2 alone; gRPC-Web is for HTTP/1.1 too.
pub(crate) fn needs_http2(headers: &HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

fn connection_names(headers: &HeaderMap, wanted: &str) -> bool {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|name| name.trim().eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().expect("name"), value.parse::<HeaderValue>().expect("value"))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn what_the_connection_header_names_ends_here() {
        let mut map = headers(&[
            ("connection", "close, X-Private"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("te", "gzip"),
            ("x-public", "2"),
        ]);
        remove_hop_by_hop(&mut map, None);
        assert_eq!(map, headers(&[("x-public", "2")]));
    }

    #[test]
    fn the_connection_header_cannot_take_a_message_apart() {
        let kept = [("host", "web.mesh"), ("transfer-encoding", "chunked"), ("content-length", "3")];
        let mut map = headers(&kept);
        map.append(CONNECTION, HeaderValue::from_static("Host, Transfer-Encoding, content-length"));
        remove_hop_by_hop(&mut map, None);
        assert_eq!(map, headers(&kept));
    }

    #[test]
    fn an_upgrade_passes_and_trailers_stay_announced() {
        let mut map =
            headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket"), ("te", "trailers")]);
        let protocol = upgrade(&map, Version::HTTP_11);
        assert_eq!(protocol.as_ref().map(HeaderValue::as_bytes), Some(b"websocket".as_slice()));
        assert_eq!(upgrade(&map, Version::HTTP_2), None);
        remove_hop_by_hop(&mut map, protocol.as_ref());
        assert_eq!(map, headers(&[("te", "trailers"), ("connection", "upgrade"), ("upgrade", "websocket")]));
    }

    #[test]
    fn a_caller_that_takes_trailers_gets_them() {
        let mut map = headers(&[("connection", "TE"), ("te", "trailers")]);
        remove_hop_by_hop(&mut map, None);
        assert_eq!(map, headers(&[("te", "trailers")]));
    }

    #[test]
    fn a_switch_to_http2_is_not_passed_on() {
        for protocol in ["h2c", "H2C", "websocket, h2c", "h2"] {
            let map = headers(&[("connection", "upgrade"), ("upgrade", protocol)]);
            assert_eq!(upgrade(&map, Version::HTTP_11), None, "{protocol}");
        }
        let twice = headers(&[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")]);
        assert_eq!(upgrade(&twice, Version::HTTP_11), None);
    }

    #[test]
    fn grpc_needs_http2_and_its_likes_do_not() {
        let needs = |kind: &str| needs_http2(&headers(&[("content-type", kind)]));
        assert!(needs("application/grpc") && needs("application/grpc+proto") && needs("application/grpc;x"));
        assert!(!needs("application/grpc-web") && !needs("application/json"));
        assert!(!needs_http2(&HeaderMap::new()));
    }

    #[test]
    fn a_trace_is_started_once() {
        let chance = Chance::new(1);
        let mut map = HeaderMap::new();
        start_trace(&mut map, &chance);
        let first = map.clone();
        start_trace(&mut map, &chance);
        assert_eq!(map, first);
        let value = first["traceparent"].to_str().expect("text");
        let lengths: Vec<_> = value.split('-').map(str::len).collect();
        assert_eq!(lengths, [2, 32, 16, 2]);
    }
}
