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
    note_id(request, exchange);
    note_path(make_plain(request)?, request, exchange);
    request.headers_mut().insert(hops::HOPS.clone(), hops::next(passed)?);
    Ok(())
}

/// Takes in a request of the peer that `admission` has let in.
pub(crate) fn of_peer<B>(
    request: &mut Request<B>,
    admission: &Admission,
    exchange: &mut Exchange,
) -> Result<(), Failure> {
    note_id(request, exchange);
    note_path(of_peer_again(request, admission)?, request, exchange);
    Ok(())
}

/// The same of one that has been taken in before, and is to be sent once more; returns whether its path is spelt anew.
pub(crate) fn of_peer_again<B>(request: &mut Request<B>, admission: &Admission) -> Result<bool, Failure> {
    let passed = take_own(request.headers_mut());
    let is_respelt = make_plain(request)?;
    let headers = request.headers_mut();
    own_headers::set_peer(headers, admission.peer_header());
    match hops::same(passed) {
        Some(count) => headers.insert(hops::HOPS.clone(), count),
        None => headers.remove(&hops::HOPS),
    };
    Ok(is_respelt)
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

/// Refuses what is ambiguous, and returns whether the path is spelt anew.
fn make_plain<B>(request: &mut Request<B>) -> Result<bool, Failure> {
    strict::check(request)?;
    normal::normalise(request)
}

fn note_id<B>(request: &Request<B>, exchange: &mut Exchange) {
    exchange.set_request_id(|| request.headers().get(&request_id::REQUEST_ID));
}

fn note_path<B>(is_respelt: bool, request: &Request<B>, exchange: &mut Exchange) {
    if is_respelt {
        exchange.set_request(request.method(), request.uri().path());
    }
}
