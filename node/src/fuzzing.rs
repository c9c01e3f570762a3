//! Doors for `tests/fuzz` to the pure parts of the proxy.

use std::time::Duration;

use http::header::HeaderValue;
use http::{HeaderMap, Request, Version};
use starling_gossip::identity::SpiffeId;

use crate::deadline;
use crate::proxy::{headers, name, normal, own_headers};

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
