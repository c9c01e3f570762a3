//! PURE: what happens to a request before anything is decided by what it says: the ambiguous is
//! refused, its path gets the one spelling, what only the mesh may say is taken off and said anew.
//!
//! Both sidecars of a call do so: the caller's for a program that may be careless or hostile, the
//! callee's because a peer need not be a sidecar that did.

use http::{HeaderMap, Request};

use crate::balance::Chance;
use crate::proxy::access::Admission;
use crate::proxy::failure::Failure;
use crate::proxy::{headers, hops, normal, own_headers, request_id, strict};
use crate::telemetry::exchange::Exchange;

/// Takes in a local program's request.
pub(crate) fn of_program<B>(
    request: &mut Request<B>,
    chance: &Chance,
    exchange: &mut Exchange,
) -> Result<(), Failure> {
    let passed = take_own(request.headers_mut());
    request_id::ensure(request.headers_mut(), chance);
    headers::start_trace(request.headers_mut(), chance);
    make_plain(request, exchange)?;
    request.headers_mut().insert(hops::HOPS.clone(), hops::next(passed)?);
    Ok(())
}

/// Takes in a request of the peer that `admission` has let in.
pub(crate) fn of_peer<B>(
    request: &mut Request<B>,
    admission: &Admission,
    exchange: &mut Exchange,
) -> Result<(), Failure> {
    let passed = take_own(request.headers_mut());
    make_plain(request, exchange)?;
    let headers = request.headers_mut();
    own_headers::set_peer(headers, admission.peer_header());
    match hops::same(passed) {
        Some(count) => headers.insert(hops::HOPS.clone(), count),
        None => headers.remove(&hops::HOPS),
    };
    Ok(())
}

/// Removes what only the mesh says, and returns how many sidecars the request has passed by its word. That word stays where
/// it is, until it is said anew.
fn take_own(headers: &mut HeaderMap) -> usize {
    if !own_headers::has_any(headers) {
        return 0;
    }
    own_headers::remove_all_but(&hops::HOPS, headers);
    hops::passed(headers)
}

fn make_plain<B>(request: &mut Request<B>, exchange: &mut Exchange) -> Result<(), Failure> {
    exchange.set_request_id(|| request.headers().get(&request_id::REQUEST_ID));
    strict::check(request)?;
    if normal::normalise(request)? {
        exchange.set_request(request.method(), request.uri().path());
    }
    Ok(())
}
