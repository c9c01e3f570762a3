//! PURE: the headers that the mesh adds to messages, and that nobody else may.
//!
//! | header | where | what it says |
//! |---|---|---|
//! | `x-starling-peer` | requests, at the workload | who calls: the SPIFFE ID that the TLS handshake proved |
//! | `x-starling-hops` | requests | how many outbound sidecars they have passed, see [`super::hops`] |
//! | `x-request-id` | requests | one name in all logs; a client's own is kept, see [`super::request_id`] |
//! | `traceparent` | requests | a trace; a client's own is kept, see [`super::headers::start_trace`] |
//! | `x-starling-flags` | answers | the mesh made this one, and why, see [`super::failure`] |
//! | `x-starling-unsent` | answers, between two sidecars | the workload took nothing of the request |
//! | `x-starling-load` | answers, between two sidecars | how much the instance has to do, see [`super::reported_load`] |
//!
//! Everything that is called `x-starling-…` belongs to the mesh. It is removed from what clients and
//! workloads send, headers and trailers alike, but for the hops of a request, which can only go up.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// Who called, for the workload.
pub(crate) const PEER: HeaderName = HeaderName::from_static("x-starling-peer");

const PREFIX: &[u8] = b"x-starling-";

/// Whether there is any of them. Most answers have none, and requests of programs: then one look at a dozen names costs
/// less than to search for two.
pub(crate) fn has_any(headers: &HeaderMap) -> bool {
    headers.keys().any(is_own)
}

/// Removes all of them, however they are spelt: CGI and what descends from it reads
/// `x_starling_peer` as the same name (RFC 3875, section 4.1.18).
pub(crate) fn remove_all(headers: &mut HeaderMap) {
    remove(headers, is_own);
}

/// Removes all of them but the one that is called `kept`.
pub(crate) fn remove_all_but(kept: &HeaderName, headers: &mut HeaderMap) {
    remove(headers, |name| is_own(name) && name != kept);
}

/// In one look, for there may be as many as a head has room for. There is no list where there are none.
fn remove(headers: &mut HeaderMap, which: impl Fn(&HeaderName) -> bool) {
    let own: Vec<HeaderName> = headers.keys().filter(|name| which(name)).cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

/// Tells the workload who called: `peer` is a proved identity.
pub(crate) fn set_peer(headers: &mut HeaderMap, peer: &HeaderValue) {
    headers.insert(PEER, peer.clone());
}

fn is_own(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    let is_same = |(byte, wanted): (&u8, &u8)| byte == wanted || (*byte == b'_' && *wanted == b'-');
    name.len() >= PREFIX.len() && name.iter().zip(PREFIX).all(is_same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_speaks_for_the_mesh_however_it_is_spelt() {
        let names = [
            "x-starling-peer",
            "x_starling_peer",
            "x-starling_flags",
            "x_starling-unsent",
            "x-starling-",
            "x-starling-of-tomorrow",
            "x-starlings",
            "starling-peer",
        ];
        let value = HeaderValue::from_static("forged");
        let mut headers: HeaderMap =
            names.into_iter().map(|name| (HeaderName::from_static(name), value.clone())).collect();
        headers.append("x-starling-peer", value);
        remove_all(&mut headers);
        set_peer(&mut headers, &HeaderValue::from_static("spiffe://acme/svc/web"));
        let mut left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value)).collect();
        left.sort();
        assert_eq!(
            left,
            [
                ("starling-peer", &HeaderValue::from_static("forged")),
                ("x-starling-peer", &HeaderValue::from_static("spiffe://acme/svc/web")),
                ("x-starlings", &HeaderValue::from_static("forged")),
            ]
        );
    }
}
