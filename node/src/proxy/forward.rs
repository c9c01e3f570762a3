//! What both sidecars of a call do to the messages they pass on: take over, and hand on. Where to
//! is decided by `outbound` and `inbound`.

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode, Version};
use http_body::Body as _;

use crate::proxy::body::{AnswerBody, AnswerGuard, RequestBody};
use crate::proxy::expectation::{self, Expectation};
use crate::proxy::spare::Spare;
use crate::proxy::tunnel::Switched;
use crate::proxy::{headers, tunnel};
use crate::upstream::{Answered, HttpVersion};

/// A request on its way. On the heap: each future that it passes through would have room for it, twice, and be
/// larger by as much wherever it is moved.
pub(crate) type Underway = Box<Request<RequestBody>>;

/// A request as it came, ready to be addressed and sent on.
pub(crate) struct Passing {
    /// Without what ended at this hop, in the version that this hop speaks.
    pub(crate) request: Underway,
    /// How the next hop is spoken to.
    pub(crate) version: HttpVersion,
    /// What the answer decides about.
    pub(crate) awaiting: Awaiting,
    /// It as it came, if it came as a message that may be sent twice.
    pub(crate) spare: Option<Spare>,
}

/// What a request has left open until its answer comes.
pub(crate) struct Awaiting {
    /// The caller's half of a switch of protocols, if it asked for one.
    pub(crate) switched: Option<Switched>,
    /// Its body, if its caller holds that back.
    pub(crate) expectation: Option<Expectation>,
}

impl Passing {
    /// Takes a request over. An intermediary sends its own version (RFC 9110, section 6.2): a
    /// caller of HTTP/1.0 costs no connection of its own.
    pub(crate) fn new(mut request: Underway) -> Self {
        let (version, may_expect) =
            (HttpVersion::of(request.version()), request.version() == Version::HTTP_11);
        let upgrade = headers::upgrade(request.headers(), request.version());
        let switched = upgrade.is_some().then(|| Switched::take(&mut request));
        headers::remove_hop_by_hop(request.headers_mut(), upgrade.as_ref());
        if version == HttpVersion::Http1 {
            *request.version_mut() = Version::HTTP_11;
        }
        let held_back = may_expect && !request.body().is_end_stream();
        let expectation = if held_back { expectation::hold_back(&mut request) } else { None };
        Self { request, version, awaiting: Awaiting { switched, expectation }, spare: None }
    }

    /// Takes over a request whose `head` came as a message (`crate::messages`): such a one switches no protocol, and holds
    /// nothing back.
    pub(crate) fn of_message(mut request: Underway, version: HttpVersion, head: Bytes) -> Self {
        headers::remove_hop_by_hop(request.headers_mut(), None);
        let spare = may_be_sent_twice(&request).then(|| Spare::of_head(head, version));
        Self { request, version, awaiting: Awaiting { switched: None, expectation: None }, spare }
    }
}

/// Whether a request may be sent twice: idempotent, and without a body from the first. (One that had a body which has come
/// to its end meanwhile has no spare.)
pub(crate) fn may_be_sent_twice(request: &Request<RequestBody>) -> bool {
    matches!(request.body(), RequestBody::Empty) && headers::is_idempotent(request.method())
}

/// Passes an answer on. One of HTTP/1.0 is told in HTTP/1.1, whose end cannot be mistaken.
pub(crate) fn answer(
    answered: Answered,
    awaiting: Awaiting,
    mut guard: Box<AnswerGuard>,
) -> Response<AnswerBody> {
    let Answered { mut response, sender, stream } = answered;
    if let Some(exchange) = &mut guard.exchange {
        exchange.set_status(response.status());
    }
    if response.version() < Version::HTTP_11 {
        *response.version_mut() = Version::HTTP_11;
    }
    (guard.sender, guard.stream) = (sender, stream);
    let Awaiting { switched, expectation } = awaiting;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(switched) = switched
    {
        let upgrade = response.headers().get(UPGRADE).cloned();
        tunnel::join_upgrade(switched, &mut response, guard);
        headers::remove_hop_by_hop(response.headers_mut(), upgrade.as_ref());
        return response.map(|_| tunnel::no_body());
    }
    headers::remove_hop_by_hop(response.headers_mut(), None);
    match &expectation {
        // What it answers with may be made of the body.
        Some(expectation) if response.status().is_success() => expectation.give_up(),
        Some(expectation) if expectation.is_waiting() => {
            // Nobody knows whether the body will still come (RFC 9110, section 10.1.1).
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    guard.expectation = expectation;
    response.map(|body| AnswerBody::upstream(body, guard))
}
